# SPDX-License-Identifier: MIT
"""What only the plugin in QEMU has to do with: registers in the middle of a
block, code at several addresses, other kinds of QEMU's threads, a plugin that
was loaded by hand, and ends of any of the processes."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import gdb  # noqa: E402 pylint: disable=import-error
from bed import (NEWER, TRACE, Guest, build, contains, die_with_parent,  # noqa: E402
                 equal, ex, fails, go, judge, main, match, num,
                 require, scratch, tap, trace)

PLUGIN_FILE = os.environ["RHEA_TRACE_PLUGIN"]


def frames():
    return int(match(ex("tstatus"), r"Collected (\d+)").group(1))


def flags_of_difference(a, b):
    """What cmp sets of eflags, in 32 bits."""
    d = (a - b) & 0xffffffff
    return ((a < b) | ((bin(d & 255).count("1") % 2 == 0) << 2) |
            (((a ^ b ^ d) >> 4 & 1) << 4) | ((d == 0) << 6) | (d >> 31 << 7) |
            ((((a ^ b) & (a ^ d)) >> 31 & 1) << 11))


def registers_are_true_in_the_middle_of_a_block():
    with Guest() as g:
        trace("*exact_middle", "collect $rax, $rcx, $rip")
        trace("*exact_flags", "collect $regs")
        ex("tstart")
        last = g.run_turns(150)
        ex("tstop")
        equal(frames(), 300)
        for i in range(150):
            n = last - 149 + i
            ex("tfind %d" % (2 * i))
            equal(num("$rip"), num("&exact_middle"))
            equal(num("$rax"), n + 7, "rax in turn %d" % n)
            equal(num("$rcx"), 3 * (n + 7))
            ex("tfind %d" % (2 * i + 1))
            equal(num("$rip"), num("&exact_flags"))
            equal(num("$rdx"), 0x1234)
            equal(num("$eflags") & 0x8d5, flags_of_difference(n + 7, 100),
                  "flags in turn %d" % n)


def all_registers_are_as_the_stub_has_them():
    with Guest() as g:
        trace("look", "collect $regs")
        ex("tstart")
        names = [line.split()[0]
                 for line in ex("info all-registers").splitlines()
                 if line[:1].isalpha()]
        ex("break *look+16")
        equal(go()[0], "look")
        want = {n: ex("info registers " + n) for n in names}
        ex("delete breakpoints 2-99")
        ex("tbreak *look+20")
        equal(go()[0], "look")
        ex("tstop")
        ex("tfind start")
        for n in names:
            if n not in ("cr8",):
                equal(ex("info registers " + n), want[n], n)
        require(len(names) > 60, names)
        # QEMU's stub before 8.2 numbers them without their stack.
        require((num("(int) $st0"), num("(int) $st1")) == (1, 3) or
                (num("(int) $st6"), num("(int) $st7")) == (1, 3))
        equal(num("$xmm3.v2_int64[0]"), 0x1122334455667788)
        del g


def registers_that_qemu_computes_are_not_those_of_before():
    values = [(0x37f, 0, 0x1f80, 0), (0x27f, 0x4100, 0x1fa1, 5),
              (0x37f, 0x3800, 0x9fc0, 15), (0x37f, 0, 0x1f80, 15),
              (0x37f, 0, 0x1f80, 0)]
    names = ("fctrl", "fstat", "mxcsr", "cr8")
    with Guest() as g:
        trace("bare", "collect $regs")
        ex("break bare_end")
        ex("tstart")
        for turn in values:
            for name, value in zip(names, turn):
                ex("set $%s = %#x" % (name, value))
            for _ in range(2):
                ex("continue")
        ex("tstop")
        equal(frames(), 2 * len(values))
        for i, turn in enumerate(values):
            for j in range(2):
                ex("tfind %d" % (2 * i + j))
                equal(tuple(num("$" + name) for name in names), turn,
                      "turn %d" % i)
        del g


def a_repeated_instruction_is_passed_once():
    with Guest() as g:
        trace("*exact_repeated", "collect $rcx")
        trace("*exact_end", "collect $rcx")
        ex("tstart")
        g.run_turns(50)
        ex("tstop")
        equal(frames(), 200)
        for i in range(200):
            ex("tfind %d" % i)
            equal(num("$rcx"), 0 if i % 4 else 5)


def a_repeated_instruction_that_does_nothing_is_passed_too():
    """Its count is one less than that of the last time that the one before it
    was begun anew."""
    with Guest() as g:
        trace("*exact_repeated", "collect $rcx")
        ex("tstart")
        g.run_turns(50)
        ex("tstop")
        equal(frames(), 100)
        for i in range(100):
            ex("tfind %d" % i)
            equal(num("$rcx"), 0 if i % 2 else 5)


def code_at_two_addresses():
    """QEMU translates it once."""
    with Guest() as g:
        other = num("(long) &again") + 2 ** 39
        one = trace("*again", "collect $rip")
        two = trace("*%d" % other, "collect $rip")
        ex("disable %d" % one)
        ex("tstart")
        g.run_turns(30)
        equal(frames(), 30)
        ex("enable %d" % one)
        g.run_turns(30)
        ex("tstop")
        equal(frames(), 90)
        for i in range(90):
            ex("tfind %d" % i)
            equal(num("$rip"), other if i < 30 or i % 2 else other - 2 ** 39)
        contains(ex("info tracepoints"), "already hit 30 times")
        del two


def it_tells_how_registers_are_read():
    with Guest() as g:
        major = int(match(ex("monitor info version"), r"^(\d+)\.").group(1))
        require(major >= 9 or not NEWER, "QEMU %d" % major)
        contains(ex("monitor rhea"), "registers by QEMU's plugin API"
                 if major >= 9 else "registers as QEMU 7.2 keeps them")
        trace("add")
        ex("tstart")
        contains(ex("tstatus"), "way: plugin")
        del g


def steps_go_through_blocks():
    with Guest() as g:
        trace("*exact", "collect $rip", "while-stepping 8",
              "collect $rip, $rcx, $rax", "end")
        ex("tstart")
        last = g.run_turns(20)
        ex("tstop")
        equal(frames(), 20 * 9)
        for i in range(20):
            ex("tfind %d" % (9 * i + 4))
            equal(num("$rip"), num("&exact_middle"))
            equal(num("$rax"), last - 19 + i + 7)
            ex("tfind %d" % (9 * i + 6))
            equal(num("$rip"), num("&exact_flags"))
            equal(num("$rcx"), 3 * (last - 19 + i + 7))


def one_thread_for_all_processors():
    for options in (["-accel", "tcg,thread=single", "-smp", "2"],
                    ["-icount", "shift=0"]):
        with Guest(options=options) as g:
            contains(ex("monitor rhea"), "way: plugin")
            trace("add", "collect a, b")
            trace("*exact_middle", "collect $rcx")
            ex("tstart")
            last = g.run_turns(40)
            trace("look")
            g.run_turns(10)
            ex("tstop")
            equal(frames(), 40 * 3 + 10 * 4)
            ex("tfind 119")
            equal(num("$rcx"), 3 * (last + 7))


def nothing_runs_after_tracing():
    """Code is translated anew, without callbacks."""
    with Guest() as g:
        trace("add", "collect a")
        ex("tstart")
        g.run_turns(5)
        ex("tstop")
        before = ex("monitor rhea")
        contains(before, "10 hits")
        g.run_turns(5)
        equal(ex("monitor rhea"), before)


class ByHand:
    """QEMU with the plugin, started by somebody else."""

    def __init__(self, arguments="", own=(), way="auto"):
        self.elf, image = build()
        self.stub = scratch("stub-%d" % time.monotonic_ns())
        self.listen = self.stub + ".gdb"
        self.file = self.stub + ".frames"
        self.log = open(self.stub + ".log", "w+b")
        self.tbreak = "tbreak "
        self.own = ["-w", way] + list(own)
        self.qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-display", "none", "-monitor", "none",
             "-serial", "none", "-nodefaults", "-kernel", image, "-S", "-gdb",
             "unix:%s,server=on,wait=off" % self.stub, "-plugin",
             PLUGIN_FILE + arguments], stdin=subprocess.DEVNULL,
            stdout=self.log, stderr=self.log, preexec_fn=die_with_parent)
        self.trace = None
        self.wait(self.stub)
        self.start()

    def wait(self, path):
        end = time.monotonic() + 60
        while not os.path.exists(path):
            require(self.qemu.poll() is None and time.monotonic() < end,
                    "QEMU did not start")
            time.sleep(0.005)

    def start(self):
        self.trace = subprocess.Popen(
            [TRACE, "-l", self.listen, "-f", self.file, "-q", "-s",
             self.stub] + self.own, stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=self.log, preexec_fn=die_with_parent)
        self.wait(self.listen)
        ex("file " + self.elf)
        ex("target remote " + self.listen)

    def to_main(self):
        ex("tbreak main")
        equal(go()[0], "main")

    def __enter__(self):
        return self

    def __exit__(self, *args):
        for command in ("delete", "tfind none",
                        "set circular-trace-buffer off",
                        "set disconnected-tracing off", "disconnect", "file"):
            try:
                ex(command)
            except gdb.error:
                pass
        for p in (self.trace, self.qemu):
            p.kill()
            p.wait()
        self.log.close()


def turns_with(g, n):
    return Guest.run_turns(g, n)


def a_plugin_that_was_loaded_by_hand_is_found():
    with ByHand() as g:
        g.to_main()
        contains(ex("monitor rhea"), "way: plugin")
        trace("add", "collect a")
        ex("tstart")
        turns_with(g, 20)
        ex("tstop")
        equal(frames(), 40)


def a_socket_of_its_own():
    path = scratch("plugin-socket")
    with ByHand(",socket=" + path, ["--plugin", path], "plugin") as g:
        g.to_main()
        contains(ex("monitor rhea"), "way: plugin")
        trace("add", "collect a")
        ex("tstart")
        turns_with(g, 3)
        ex("tstop")
        equal(frames(), 6)


def under_kvm_it_is_refused():
    if not os.access("/dev/kvm", os.W_OK):
        raise tap.Skip("no KVM here")
    try:
        with Guest(own=["-w", "plugin"], options=["-enable-kvm"],
                   connect=False):
            raise judge.Failure("it was taken")
    except judge.Failure as e:
        contains(str(e), "under KVM QEMU translates no code")


def qemu_that_was_stopped_is_asked_again():
    with Guest(own=["-t", "1"]) as g:
        qemu = int(subprocess.check_output(["pgrep", "-P",
                                            str(g.process.pid)]))
        trace("add", "collect a")
        os.kill(qemu, signal.SIGSTOP)
        try:
            fails("tstart", "does not answer")
        finally:
            os.kill(qemu, signal.SIGCONT)
        ex("tstart")
        g.run_turns(10)
        ex("tstop")
        equal(frames(), 20)


def strangers_are_sent_away():
    path = scratch("plugin-socket-2")
    with ByHand(",socket=" + path, ["-w", "stub"]) as g:
        g.to_main()
        for junk in (b"", b"x", b"\0" * 256, b"\xff" * 256, b"1" * 5000):
            s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            s.connect(path)
            s.send(junk)
            s.close()
        equal(g.qemu.poll(), None)
        # And one that stays does not keep the other from being answered.
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s, \
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as t:
            s.connect(path)
            time.sleep(0.05)
            t.connect(path)
            t.settimeout(20)
            contains(t.recv(4096).decode("latin1"), "another rhea-trace")


def is_whole(path):
    """The frames of a file: none is torn, lost, or there twice."""
    out = subprocess.run([TRACE, "report", "--json", path], check=True,
                         stdout=subprocess.PIPE, encoding="utf-8", timeout=100)
    lines = [json.loads(line) for line in out.stdout.splitlines()]
    equal(lines[-1]["type"], "end")
    equal(lines[-1]["trouble"], [])
    values = [int.from_bytes(bytes.fromhex(f["memory"][0]["bytes"]), "little")
              for f in lines[1:-1]]
    require(len(values) > 100, "%d frames" % len(values))
    first = values[0]
    equal(values, list(range(first, first + len(values))))
    return lines[0]["stop"]


def trace_for_ever():
    """Into a circular buffer, without gdb."""
    trace("look", "collect turns")
    ex("set circular-trace-buffer on")
    ex("set disconnected-tracing on")
    ex("tstart")
    ex("disconnect")
    ex("delete")


SMALL = ["-b", "1M"]


def rhea_trace_that_is_killed_leaves_whole_frames():
    with ByHand(own=SMALL) as g:
        for turn in range(3):
            if turn == 0:
                g.to_main()
            trace_for_ever()
            time.sleep(0.3 + 0.1 * turn)
            g.trace.kill()
            g.trace.wait()
            equal(is_whole(g.file), "tunknown")
            os.unlink(g.listen)
            # QEMU goes on, and so can tracing.
            equal(g.qemu.poll(), None)
            g.file += "x"
            g.start()
            contains(ex("monitor rhea"), "way: plugin")


def qemu_that_is_killed_leaves_whole_frames():
    for turn in range(3):
        with ByHand(own=SMALL) as g:
            g.to_main()
            trace_for_ever()
            time.sleep(0.2 + 0.1 * turn)
            g.qemu.kill()
            g.trace.wait(60)
            require(is_whole(g.file) == "tstop")
            contains(subprocess.check_output([TRACE, "report", g.file,
                                              "--frames", "0"],
                                             encoding="utf-8"),
                     "trace: stopped: the guest has ended\n")


def all_that_is_killed_leaves_whole_frames():
    with ByHand(own=SMALL) as g:
        g.to_main()
        trace_for_ever()
        time.sleep(0.3)
        g.trace.kill()
        g.qemu.kill()
        g.trace.wait()
        equal(is_whole(g.file), "tunknown")


main([
    registers_are_true_in_the_middle_of_a_block,
    all_registers_are_as_the_stub_has_them,
    registers_that_qemu_computes_are_not_those_of_before,
    a_repeated_instruction_is_passed_once,
    a_repeated_instruction_that_does_nothing_is_passed_too,
    code_at_two_addresses,
    it_tells_how_registers_are_read,
    steps_go_through_blocks,
    one_thread_for_all_processors,
    nothing_runs_after_tracing,
    a_plugin_that_was_loaded_by_hand_is_found,
    a_socket_of_its_own,
    under_kvm_it_is_refused,
    qemu_that_was_stopped_is_asked_again,
    strangers_are_sent_away,
    rhea_trace_that_is_killed_leaves_whole_frames,
    qemu_that_is_killed_leaves_whole_frames,
    all_that_is_killed_leaves_whole_frames,
])
