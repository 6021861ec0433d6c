# SPDX-License-Identifier: MIT
"""Stubs that misbehave once gdb is connected, also while the guest runs: gdb is
told, nothing crashes, nothing hangs."""
import os
import socket
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import judge  # noqa: E402
import tap  # noqa: E402
from fake import RIP, START, Fake, path_in  # noqa: E402
from remote import Client, frame, log_of, start_trace  # noqa: E402

TIMEOUT = 1.0  # seconds that rhea-trace gives the stub
PLACE = START + 0x10


class Bed:
    """gdb, rhea-trace and a stub that is sound until `spoil` is set."""

    def __init__(self, qemu=True):
        self.folder = tempfile.TemporaryDirectory()
        name = self.folder.name
        self.spoil = None
        self.stub = Fake(path_in(name), self.answer, qemu=qemu)
        self.process, self.path = start_trace(name, path_in(name), "-b", "1M",
                                              "-t", str(TIMEOUT))
        self.client = Client(self.path, 15)
        self.output = b""

    def answer(self, stub, packet, answer):
        if self.spoil:
            return self.spoil(stub, packet, answer)
        return frame(answer)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.client.close()
        if kind:
            self.process.kill()
        elif self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(15)
        except Exception:
            self.process.kill()
            raise
        if kind:
            return
        text = log_of(self.folder.name)
        judge.require(code in (0, 1, 143) and "Sanitizer" not in text,
                      "exit code", code, text)
        self.folder.cleanup()

    def ok(self, *packets):
        for packet in packets:
            reply = self.client.call(packet)
            judge.require(reply == b"OK", packet, reply)

    def trace(self, *actions):
        self.ok(b"QTinit", b"QTDP:1:%x:E:0:0-" % PLACE)
        for i, a in enumerate(actions):
            self.ok(b"QTDP:-1:%x:%s%s" % (PLACE, a,
                                          b"-" if i + 1 < len(actions)
                                          else b""))
        self.ok(b"QTStart")

    def answer_or_end(self):
        """What gdb gets next but for output; None: the connection closed. More
        time than this is a hang."""
        try:
            while True:
                reply = self.client.receive()
                if reply is None or reply[:1] != b"O" or reply == b"OK":
                    return reply
                self.output += bytes.fromhex(reply[1:].decode())
        except TimeoutError:
            raise judge.Failure("it hangs: " +
                                log_of(self.folder.name)) from None

    def must_end(self, *words):
        """gdb is told why, and the connection closes."""
        reply = self.answer_or_end()
        while reply is not None:
            self.output += reply
            reply = self.answer_or_end()
        judge.require(any(w.encode() in self.output for w in words), words,
                      "not in", self.output)
        judge.require(self.process.wait(10) == 1, self.process.returncode)
        judge.require("rhea-trace: " in log_of(self.folder.name))


def resumes(packet):
    return packet[:6] == b"vCont;" or packet in (b"c", b"s")


def instead_of_stops(bad):
    def spoil(stub, packet, answer):
        del stub
        return bad if resumes(packet) else frame(answer)
    return spoil


# --- while the guest runs --------------------------------------------------------

def a_stop_that_never_comes():
    for bad in (b"", b"$T05thr", b"+++", b"%Stop:T05#00", b"\0\xff"):
        with Bed() as b:
            b.spoil = instead_of_stops(bad)
            b.client.send(b"vCont;c")
            time.sleep(0.1)
            b.client.packets.socket.sendall(b"\x03")
            b.must_end("does not stop the guest")


def garbage_in_a_stop_s_place():
    for bad in (b"OK", b"garbage", b"12", b"T", b"Tzz", b"\x80\x81", b"m01",
                b"l", b"vCont;c", b"QC1"):
        with Bed() as b:
            b.spoil = instead_of_stops(frame(bad))
            b.client.send(b"vCont;c")
            b.must_end("why the guest has stopped")


def refusals_are_passed_on():
    for bad in (b"", b"E01", b"E.no"):
        with Bed() as b:
            b.spoil = instead_of_stops(frame(bad))
            judge.require(b.client.call(b"vCont;c") == bad)
            b.spoil = None
            judge.require(b.client.call(b"vCont;c")[:3] == b"T05")


def wrong_stops():
    for bad in (b"T05", b"S05", b"T05thread:", b"T05thread:;;;", b"T05;;:::",
                b"T05thread:zz;", b"T05thread:p1.ffffffffffffffffffff;",
                b"T05" + b"x" * 4000, b"T99watch:zz;", b"W00", b"W0", b"W3;process:1", b"X09", b"N",
                b"W", b"T00", b"Tffthread:1;"):
        with Bed() as b:
            b.trace(b"R1ff")
            b.spoil = instead_of_stops(frame(bad))
            b.client.send(b"vCont;c")
            # For good or bad, but it ends; where it goes on, gdb can stop it.
            time.sleep(0.05)
            try:
                b.client.packets.socket.sendall(b"\x03")
            except BrokenPipeError:
                pass
            reply = b.answer_or_end()
            judge.require(reply or b"why the guest has stopped" in b.output,
                          bad, b.output)


def a_thread_that_is_not_there():
    def spoil(stub, packet, answer):
        del stub
        if packet[:2] == b"Hg" and packet != b"Hg1":
            return frame(b"E01")
        return frame(b"T05thread:7;" if resumes(packet) else answer)

    with Bed() as b:
        b.trace(b"R1ff")
        b.spoil = spoil
        reply = b.client.call(b"vCont;c")
        judge.require(reply.startswith(b"E.") and b"no thread 7" in reply,
                      reply)
        b.spoil = None
        judge.require(b.client.call(b"qTStatus")[:2] == b"T1")


def stops_that_are_told_twice():
    def spoil(stub, packet, answer):
        del stub
        return frame(answer) * (3 if resumes(packet) else 1)

    with Bed() as b:
        b.ok(b"Z0,%x,1" % PLACE)
        b.trace(b"R1ff")
        b.spoil = spoil
        for _ in range(3):
            judge.require(b.client.call(b"vCont;c")[:3] == b"T05")
            judge.require(len(b.client.call(b"g")) == 2 * (17 * 8 + 8))
        b.spoil = None
        b.ok(b"QTStop")


def hanging_up_while_it_runs():
    for spoil in (instead_of_stops(None),
                  lambda stub, packet, answer:
                  stub.send(b"$T05th") if resumes(packet) else frame(answer)):
        with Bed() as b:
            b.spoil = spoil
            b.client.send(b"vCont;c")
            judge.require(b.answer_or_end() is None)


def output_without_end():
    def spoil(stub, packet, answer):
        if not resumes(packet):
            return frame(answer)
        stub.connection.settimeout(10)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            stub.send(frame(b"O" + b"61" * 100) * 20)
        return frame(b"T02thread:1;")

    with Bed() as b:
        b.spoil = spoil
        b.client.send(b"vCont;c")
        judge.require(b.answer_or_end()[:3] == b"T02")
        judge.require(len(b.output) > 10000, len(b.output))


def noise_after_an_interrupt():
    """It never stops, and never is silent."""
    for noise in (frame(b"O61"), b"%Stop:T05#00", b"-", b"$O61#00"):
        def spoil(stub, packet, answer):
            if not resumes(packet):
                return frame(answer)
            end = time.monotonic() + 8
            while time.monotonic() < end:
                stub.send(noise * 10)
                time.sleep(0.005)
            return None

        with Bed() as b:
            b.spoil = spoil
            b.client.send(b"vCont;c")
            time.sleep(0.1)
            b.client.packets.socket.sendall(b"\x03")
            b.must_end("does not stop the guest")


def interrupted_as_qemu_is_from_8_1_on(output):
    """It stops at any byte, and tells of it only if that was 0x03; but a byte
    that comes while it waits for an acknowledgement is swallowed. OUTPUT: when
    it writes something for gdb, which is to be acknowledged."""
    def spoil(stub, packet, answer):
        if not resumes(packet):
            return frame(answer)
        read = stub.connection.recv
        if output == "while it runs":
            stub.send(frame(b"O61"))
        elif output == "as it is interrupted":
            judge.require(read(1) == b"\x03")
            stub.send(frame(b"O61"))
        while output and read(1) != b"+":
            pass
        return frame(b"T02thread:01;") if read(1) == b"\x03" else b""
    return spoil


def another_gdb_is_turned_away():
    """At once, with the reason, and the first hears nothing of it."""
    for runs in (False, True):
        with Bed() as b:
            if runs:
                b.spoil = interrupted_as_qemu_is_from_8_1_on("")
                b.client.send(b"vCont;c")
                time.sleep(0.1)
            for _ in range(3):
                other = Client(b.path, 5)
                judge.require(b"another gdb is connected" in other.features,
                              other.features)
                judge.require(other.packets.next() is None, "it stays open")
                other.close()
            # Who asks nothing is not waited for.
            silent = socket.socket(socket.AF_UNIX)
            silent.connect(b.path)
            if runs:
                b.client.packets.socket.sendall(b"\x03")
                judge.require(b.answer_or_end()[:1] == b"T")
            judge.require(b.client.call(b"qC") == b"QC01")
            silent.close()
            # And where there is none, it is taken.
            b.client.close()
            b.client = Client(b.path, 15)
            judge.require(b"PacketSize" in b.client.features)


def timers_of(port):
    """Of connections to it that are open."""
    with open("/proc/net/tcp", encoding="ascii") as f:
        lines = [line.split() for line in f]
    return [line[5][:2] for line in lines
            if line[1] == "0100007F:%04X" % port and line[3] == "01"]


def a_gdb_whose_machine_is_gone_is_asked_for():
    """Linux has a timer for it: `tr` is 2 (proc(5), /proc/net/tcp)."""
    with tempfile.TemporaryDirectory() as name:
        Fake(path_in(name), qemu=True)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        p, _ = start_trace(name, path_in(name), "-b", "1M",
                           listen="127.0.0.1:%d" % port)
        try:
            client = Client(port, 15)
            judge.require(client.call(b"qC") == b"QC01")
            end = time.monotonic() + 10
            while timers_of(port) != ["02"]:  # another one, until it has an ack
                judge.require(time.monotonic() < end, timers_of(port))
                time.sleep(0.02)
            client.close()
        finally:
            p.terminate()
            p.wait(15)


def an_interrupt_is_all_that_a_running_guest_gets():
    for output in ("", "while it runs", "as it is interrupted"):
        with Bed() as b:
            b.spoil = interrupted_as_qemu_is_from_8_1_on(output)
            b.client.send(b"vCont;c")
            time.sleep(0.1)
            b.client.packets.socket.sendall(b"\x03")
            reply = b.answer_or_end()
            judge.require(reply and reply[:3] == b"T02", output, reply,
                          b.output)
            judge.require(b.output == b"a" * bool(output), b.output)
            b.spoil = None


def notifications_are_no_stops():
    def spoil(stub, packet, answer):
        del stub
        out = frame(answer)
        return b"%%Stop:T05thread:1;#00%s%%x#00" % out

    with Bed() as b:
        b.spoil = spoil
        b.trace(b"R1ff", b"M-1,%x,8" % START)
        b.ok(b"Z0,%x,1" % (PLACE + 4))
        for _ in range(4):
            judge.require(b.client.call(b"vCont;c")[:3] == b"T05")
        judge.require(b"tframes:" in b.client.call(b"qTStatus"))


def a_guest_that_only_hits_tracepoints_can_be_stopped():
    with Bed() as b:
        b.trace(b"R1ff")
        b.client.send(b"vCont;c")
        time.sleep(0.3)
        b.client.packets.socket.sendall(b"\x03")
        judge.require(b.answer_or_end()[:3] == b"T02")
        judge.require(int(b.client.call(b"qTStatus").split(b"tframes:")[1]
                          .split(b";")[0], 16) > 5)


def a_step_that_was_not_made_prints_nothing_again():
    """QEMU 7.2 tells of such steps now and then."""
    steps = []

    def spoil(stub, packet, answer):
        if packet[:7] == b"vCont;s":
            steps.append(packet)
            if len(steps) <= 3:
                stub.registers[RIP] = PLACE
                return frame(b"T05thread:01;")
            return frame(answer)
        if resumes(packet):
            # The first time there, then somewhere else.
            stub.registers[RIP] = PLACE + len(steps) * 4
        return frame(b"T05thread:01;" if resumes(packet) else answer)

    with Bed(qemu=False) as b:
        b.spoil = spoil
        # printf("hot"), on no particular channel.
        b.ok(b"Z0,%x,1;cmds:0,Xd,2200220034000004686f740027" % PLACE,
             b"Z0,%x,1" % (PLACE + 16))
        b.client.send(b"vCont;c")
        judge.require(b.answer_or_end()[:3] == b"T05")
        judge.require(len(steps) == 4, steps)
        judge.require(b.output == b"hot", b.output)


# --- during a hit ------------------------------------------------------------------

def spoil_one(start, bad):
    def spoil(stub, packet, answer):
        del stub
        return bad if packet[:len(start)] == start else frame(answer)
    return spoil


def hit_with(start, bad, actions):
    b = Bed()
    b.trace(*actions)
    b.spoil = spoil_one(start, bad)
    b.client.send(b"vCont;c")
    return b


def memory_that_cannot_be_read_is_left_out():
    for bad in (b"E14", b"", b"zz", b"123", b"E.no", b"00" * 3000):
        with hit_with(b"m", frame(bad), (b"R1ff", b"M-1,%x,8" % START)) as b:
            time.sleep(0.2)
            b.client.packets.socket.sendall(b"\x03")
            judge.require(b.answer_or_end()[:3] == b"T02")
            b.spoil = None
            judge.require(b.client.call(b"QTFrame:0") == b"F0T1")
            if bad != b"123":
                info = b.client.transfer(b"traceframe-info:read:")
                judge.require(b"memory" not in info, bad, info)


def registers_that_make_no_sense():
    for bad in (b"", b"E01", b"zz", b"00", b"O6162", b"xx" * 144,
                b"00" * 30000):
        with hit_with(b"g", frame(bad), (b"R1ff",)) as b:
            time.sleep(0.1)
            b.client.packets.socket.sendall(b"\x03")
            judge.require(b.answer_or_end() is not None, bad)


def answers_that_are_too_long_or_never_come():
    for bad in (b"", b"$" + b"0" * 200000 + b"#00", b"$0000",
                frame(b"T05thread:1;") * 50):
        with hit_with(b"g", bad, (b"R1ff",)) as b:
            b.must_end("no answer", "no sense")


def breakpoints_that_are_refused():
    with hit_with(b"z0", frame(b"E01"), (b"R1ff",)) as b:
        b.must_end("refused")
    for bad in (b"E01", b"", b"x"):
        with Bed() as b:
            b.ok(b"QTinit", b"QTDP:1:%x:E:0:0" % PLACE)
            b.spoil = spoil_one(b"Z0", frame(bad))
            reply = b.client.call(b"QTStart")
            judge.require(reply.startswith(b"E."), reply)
            b.spoil = None
            b.ok(b"QTStart")


# --- while it stands still ----------------------------------------------------------

def noise_in_an_answer_s_place():
    for noise in (b"-", b"%x#00", b"$x#00", b"\0", b"$" + b"y" * 1000):
        def spoil(stub, packet, answer):
            if packet != b"qC":
                return frame(answer)
            end = time.monotonic() + 8
            while time.monotonic() < end:
                stub.send(noise * 10)
                time.sleep(0.005)
            return None

        with Bed() as b:
            b.spoil = spoil
            b.client.send(b"qC")
            b.must_end("no answer")


def a_command_s_output_without_end():
    def spoil(stub, packet, answer):
        if packet[:5] != b"qRcmd":
            return frame(answer)
        out = frame(b"O" + b"61" * 15000) * 32
        end = time.monotonic() + 60
        while time.monotonic() < end:
            stub.send(out)
        return None

    with Bed() as b:
        b.spoil = spoil
        b.client.send(b"qRcmd,66")
        tail = more = b"-"
        while more:
            more = b.client.packets.socket.recv(1 << 20)
            tail = (tail + more)[-1000:]
        judge.require(b"has no end" in tail, tail)
        judge.require(b.process.wait(10) == 1, b.process.returncode)


def hanging_up_while_it_stands_still():
    with Bed() as b:
        b.spoil = spoil_one(b"qC", None)
        b.client.send(b"qC")
        while b.answer_or_end() is not None:
            pass


def an_answer_that_never_comes():
    for packet in (b"qC", b"g", b"m400000,4", b"Z0,400000,1", b"Hg1",
                   b"qSupported:", b"vFile:open:2f,0,0"):
        with Bed() as b:
            b.spoil = lambda stub, packet, answer: b""
            b.client.send(packet)
            b.must_end("no answer")


sys.exit(tap.main([
    a_stop_that_never_comes,
    garbage_in_a_stop_s_place,
    refusals_are_passed_on,
    wrong_stops,
    a_thread_that_is_not_there,
    stops_that_are_told_twice,
    hanging_up_while_it_runs,
    output_without_end,
    noise_after_an_interrupt,
    an_interrupt_is_all_that_a_running_guest_gets,
    notifications_are_no_stops,
    a_guest_that_only_hits_tracepoints_can_be_stopped,
    a_step_that_was_not_made_prints_nothing_again,
    memory_that_cannot_be_read_is_left_out,
    registers_that_make_no_sense,
    answers_that_are_too_long_or_never_come,
    breakpoints_that_are_refused,
    another_gdb_is_turned_away,
    a_gdb_whose_machine_is_gone_is_asked_for,
    noise_in_an_answer_s_place,
    a_command_s_output_without_end,
    hanging_up_while_it_stands_still,
    an_answer_that_never_comes,
]))
