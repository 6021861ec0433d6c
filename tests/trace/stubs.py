# SPDX-License-Identifier: MIT
"""Stubs that misbehave: rhea-trace says so and ends, and neither crashes nor
hangs."""
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import judge  # noqa: E402
import tap  # noqa: E402

XML = b"""<target><architecture>i386:x86-64</architecture>
<feature name="a"><reg name="rax" bitsize="64"/><reg name="rip" bitsize="64"/>
</feature></target>"""


def frame(payload):
    return b"$" + payload + b"#%02x" % (sum(payload) & 255)


class Stub(threading.Thread):
    """Answers as a sound stub does, but for what `spoil` changes: it gets a
    packet and the answer, and returns bytes to send; None: hang up."""

    def __init__(self, path, spoil):
        super().__init__(daemon=True)
        self.spoil = spoil
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.start()

    @staticmethod
    def answer(packet):
        if packet.startswith(b"qSupported"):
            return b"PacketSize=1000;qXfer:features:read+"
        if packet == b"?":
            return b"T05thread:1;"
        if packet == b"qC":
            return b"QC1"
        if packet == b"vCont?":
            return b"vCont;c;C;s;S"
        if packet.startswith(b"qXfer:features:read:target.xml:"):
            at, size = [int(n, 16) for n in packet.split(b":")[-1].split(b",")]
            part = XML[at:at + size]
            return (b"l" if at + size >= len(XML) else b"m") + part
        return b""

    def run(self):
        connection, _ = self.listener.accept()
        data = b""
        try:
            while True:
                more = connection.recv(65536)
                if not more:
                    break
                data += more
                while b"$" in data and len(data[data.index(b"$"):]
                                           .partition(b"#")[2]) >= 2:
                    packet, _, rest = data[data.index(b"$") + 1:].partition(
                        b"#")
                    data = rest[2:]
                    out = self.spoil(packet, self.answer(packet))
                    if out is None:
                        connection.close()
                        return
                    connection.sendall(b"+" + out)
        except OSError:
            pass


def run(spoil, gone=False):
    """rhea-trace on such a stub: it must give up, in time. GONE: the stub may
    also end well."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s")
        Stub(path, spoil)
        p = subprocess.run(
            [os.environ["RHEA_TRACE"], "-q", "-t", "0.3", "-l",
             os.path.join(folder, "l"), "-f", os.path.join(folder, "f"), "-b",
             "1M", "-s", path], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=60, check=False,
            encoding="utf-8", errors="replace")
        judge.require(p.returncode in ((0, 1) if gone else (1,)),
                      "exit code", p.returncode, p.stdout)
        judge.require(gone or "rhea-trace: " in p.stdout, "no message",
                      p.stdout)
        return p.stdout


def spoil_one(name, bad):
    def spoil(packet, answer):
        return bad if packet.startswith(name) else frame(answer)
    return spoil


def nobody_listens():
    p = subprocess.run([os.environ["RHEA_TRACE"], "-l", "/tmp/nowhere/l", "-s",
                        "/nonexistent/stub"], stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, timeout=60, check=False)
    judge.require(p.returncode == 1 and b"cannot connect" in p.stdout,
                  p.stdout)


def trace(*arguments, **environment):
    p = subprocess.run([os.environ["RHEA_TRACE"]] + list(arguments),
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                       timeout=60, check=False, encoding="utf-8",
                       env=dict(os.environ, **environment))
    return p.returncode, p.stdout


def a_mistyped_command_is_not_started():
    for words in (["recrod", "--at", "main"], ["true"],
                  ["record", "--at", "main", "true"]):
        code, text = trace(*words)
        judge.require(code == 2 and "there is no command" in text, code, text)


def what_does_not_start_leaves_no_file():
    with tempfile.TemporaryDirectory() as folder, \
            socket.create_server(("localhost", 0)) as used:
        frames = os.path.join(folder, "f")
        Stub(os.path.join(folder, "s"), lambda packet, answer: frame(answer))
        code, text = trace("-l", "localhost:%d" % used.getsockname()[1], "-f",
                           frames, "-s", os.path.join(folder, "s"))
        judge.require(code == 1 and "cannot listen" in text, code, text)
        judge.require(not os.path.exists(frames))


def a_port_that_is_taken_is_told_with_what_to_do():
    with socket.create_server(("localhost", 0)) as used:
        port = used.getsockname()[1]
        code, text = trace("--", "qemu-system-x86_64", "-display", "none",
                           "-nodefaults", "-S", "-gdb",
                           "tcp:localhost:%d" % port)
        judge.require(code == 1 and "say with --listen" in text, code, text)
        code, text = trace("-l", "localhost:65536", "--", "qemu-system-x86_64",
                           "-display", "none", "-nodefaults", "-S")
        judge.require(code == 1 and "a port is 65535 at most" in text, code,
                      text)


def a_plugin_that_is_not_there_is_missed():
    for way, code in (("auto", 1), ("plugin", 1)):
        got, text = trace("-w", way, "--", "qemu-system-x86_64", "-machine",
                          "nosuch", RHEA_TRACE_PLUGIN="/nonexistent.so")
        judge.require(got == code and "/nonexistent.so" in text, got, text)


def silence_is_not_waited_for():
    for name in (b"qSupported", b"?", b"vCont?", b"qXfer", b"qqemu"):
        text = run(spoil_one(name, b""))
        # Without an answer to `?`, that to `qC` comes in its place.
        judge.require("no answer" in text or name == b"?", name, text)


def a_stub_that_hangs_up():
    for name in (b"qSupported", b"?", b"vCont?", b"qXfer", b"qqemu"):
        run(spoil_one(name, None))


def damaged_packets():
    for bad in (b"$x#00", b"$#zz", b"$" + b"y" * 70000 + b"#00",
                b"%notice#00", b"+++---", b"$0*\x01#5b"):
        run(spoil_one(b"qXfer", bad))


def nonsense_for_a_description():
    for bad in (b"", b"E01", b"x", b"m", b"l", b"l<target>",
                b"l<target><reg name='a' bitsize='7'/></target>",
                b"l<target><reg name='a' bitsize='99999999'/></target>",
                b"l<target><reg name='a' bitsize='8' regnum='70000'/></target>",
                b"l<target></target>", b"l\x00\xff\xfe",
                b"l<target><xi:include href='target.xml'/></target>",
                b"l" + b"<a>" * 20000):
        run(spoil_one(b"qXfer", frame(bad)))


def a_description_without_end():
    run(spoil_one(b"qXfer", frame(b"m" + b" " * 4000)))


def stops_without_end():
    run(spoil_one(b"qC", frame(b"T05thread:1;") * 40))


def random_answers():
    """From the first answer on, or from a later one."""
    r = random.Random(5)
    for turn in range(24):
        left = [turn % 8]

        def spoil(packet, answer):
            del packet
            left[0] -= 1
            if left[0] >= 0:
                return frame(answer)
            n = r.randrange(60)
            junk = bytes(r.choice(b"ETSWXOlm0123456789abcdef:;,$#}*+-\x03")
                         for _ in range(n))
            return frame(junk) if r.random() < 0.7 else junk

        # pylint: disable=cell-var-from-loop
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "s")
            Stub(path, spoil)
            p = subprocess.Popen(
                [os.environ["RHEA_TRACE"], "-q", "-t", "0.3", "-l",
                 os.path.join(folder, "l"), "-f", os.path.join(folder, "f"),
                 "-b", "1M", "-s", path], stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL)
            try:
                p.wait(1)
            except subprocess.TimeoutExpired:
                p.terminate()  # it found the stub sound, and serves
            judge.require(p.wait(20) in (0, 1, 143), "exit code", p.returncode)


sys.exit(tap.main([
    nobody_listens,
    a_mistyped_command_is_not_started,
    what_does_not_start_leaves_no_file,
    a_port_that_is_taken_is_told_with_what_to_do,
    a_plugin_that_is_not_there_is_missed,
    silence_is_not_waited_for,
    a_stub_that_hangs_up,
    damaged_packets,
    nonsense_for_a_description,
    a_description_without_end,
    stops_without_end,
    random_answers,
]))
