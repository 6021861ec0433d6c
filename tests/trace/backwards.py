# SPDX-License-Identifier: MIT
"""Backwards in time, where QEMU plays what it has recorded. It looks for what
was before by running from a snapshot up to there, perhaps more than once.

    -global apic-common.vapic=off

is what keeps QEMU (7.2 to 10.0) from standing still for good at times: when it
loads the snapshot, that device waits for the virtual processor to do something,
which waits for the lock of the recording, which QEMU holds. Without rhea-trace
it does, too."""
import json
import os
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import gdb  # noqa: E402 pylint: disable=import-error
from bed import (Guest, build, die_with_parent, equal, ex, go,  # noqa: E402
                 main, match, num, require, scratch, trace)

DRIVE = ["-drive", "file=%s,if=none,id=d" % scratch("snapshot.qcow2"),
         "-global", "apic-common.vapic=off"]


def icount(mode):
    return ["-icount", "shift=7,rr=%s,rrfile=%s,rrsnapshot=init" % (
        mode, scratch("recording"))]


class Monitor:
    """QEMU's, without gdb."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.lines.readline()
        self.say("qmp_capabilities")

    def say(self, command, **arguments):
        self.socket.sendall(json.dumps(
            {"execute": command, "arguments": arguments}).encode())
        while True:
            answer = json.loads(self.lines.readline())
            if "event" not in answer:
                return answer["return"]

    def number_at(self, address):
        text = self.say("human-monitor-command",
                        **{"command-line": "xp /1gx %#x" % address})
        return int(match(text, r": 0x([0-9a-f]+)").group(1), 16)


def record(turns):
    """The guest's first TURNS, and some."""
    elf, image = build()
    path = scratch("monitor")
    ex("file " + elf)
    address = num("(long) &turns")
    ex("file")
    subprocess.check_call(["qemu-img", "create", "-q", "-f", "qcow2",
                           scratch("snapshot.qcow2"), "64M"])
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-display", "none", "-monitor", "none",
         "-serial", "none", "-nodefaults", "-kernel", image, "-qmp",
         "unix:%s,server=on,wait=off" % path] + DRIVE + icount("record"),
        stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    try:
        end = time.monotonic() + 60
        while not os.path.exists(path):
            require(process.poll() is None and time.monotonic() < end,
                    "QEMU did not start")
            time.sleep(0.01)
        monitor = Monitor(path)
        while monitor.number_at(address) < turns:
            require(time.monotonic() < end, "the guest did not start")
            time.sleep(0.01)
        monitor.say("quit")
        equal(process.wait(60), 0, "QEMU's exit code")
    finally:
        process.kill()
        process.wait()


def replay():
    """The guest as it was recorded: nothing in it may be changed."""
    if not os.path.exists(scratch("recording")):
        record(20)
    return Guest(options=DRIVE + icount("replay"))


def frames():
    return int(match(ex("tstatus"), r"Collected (\d+)").group(1))


def to(where, turn, command="continue"):
    """Up to the next time, or the last one, that the guest is there."""
    ex("tbreak " + where)
    equal(go(command)[0], where, "where it stopped")
    equal(num("turns"), turn, "the turn")


def up_to_turn(n):
    for i in range(num("turns"), n):
        to("turn", i + 1)


def breakpoints_are_reached_backwards():
    with replay() as g:
        up_to_turn(6)
        for turn in (5, 4, 3):
            to("look", turn, "reverse-continue")
            equal(num("p->x"), 3 * turn)
        to("add", 3, "reverse-continue")
        equal(num("b"), 2)
        to("add", 3, "reverse-continue")
        equal(num("b"), 1)
        to("look", 3)
        to("turn", 4)
        del g


def steps_go_backwards():
    with replay() as g:
        up_to_turn(4)
        to("look", 4)
        seen = []
        for _ in range(6):
            seen.append((num("$rip"), num("$rsp"), num("$rax")))
            ex("stepi")
        while seen:
            ex("reverse-stepi")
            equal((num("$rip"), num("$rsp"), num("$rax")), seen.pop())
        del g


def memory_is_what_it_was():
    """Also of what QEMU has loaded anew."""
    with replay() as g:
        up_to_turn(7)
        before = num("sum")
        to("look", 6, "reverse-continue")
        equal(num("sum"), before)
        to("look", 5, "reverse-continue")
        equal(num("sum"), before - 6 - 6 - 3)
        equal(num("point.y"), -5)
        del g


def tracepoints_count_forwards_only():
    with replay() as g:
        up_to_turn(2)
        trace("add", "collect a, b")
        ex("tstart")
        up_to_turn(5)
        equal(frames(), 6)
        to("look", 4, "reverse-continue")
        to("look", 3, "reverse-continue")
        ex("reverse-stepi")
        ex("stepi")
        equal(frames(), 6)
        # And again from here on.
        up_to_turn(5)
        equal(frames(), 8)
        ex("tstop")
        seen = []
        for i in range(8):
            ex("tfind %d" % i)
            seen.append((num("a"), num("b")))
        equal(seen, [(a, b) for a in (2, 3, 4, 4) for b in (1, 2)])
        ex("tfind none")
        del g


def a_wait_for_nothing_ends_at_the_beginning():
    with replay() as g:
        up_to_turn(3)
        try:
            ex("reverse-continue")
        except gdb.error as e:
            require("reverse" in str(e), str(e))
        require(num("$rip") != num("&turn"))
        to("main", 0)
        del g


main([
    breakpoints_are_reached_backwards,
    steps_go_backwards,
    memory_is_what_it_was,
    tracepoints_count_forwards_only,
    a_wait_for_nothing_ends_at_the_beginning,
])
