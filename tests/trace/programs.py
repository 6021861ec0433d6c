# SPDX-License-Identifier: MIT
"""Programs under gdbserver with rhea-trace in front of it: all that gdbserver can
do besides tracing goes on working."""
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import gdb  # noqa: E402 pylint: disable=import-error
from bed import (HERE, contains, equal, ex, go, main, match, num, require,  # noqa: E402
                 scratch, tap, trace)
from remote import start_gdbserver, start_trace  # noqa: E402

_built = []


def program():
    if not _built:
        path = scratch("threads")
        subprocess.check_call(["gcc", "-g", "-O0", "-pthread", "-o", path,
                               os.path.join(HERE, "guest", "threads.c")])
        _built.append(path)
    return _built[0]


class Program:
    """One that runs, with gdb connected, at main."""

    def __init__(self, *arguments):
        tap.need_strace()
        folder = scratch("program-%d" % time.monotonic_ns())
        os.mkdir(folder)
        self.server, port = start_gdbserver(program(), *arguments)
        self.trace, path = start_trace(folder, port, "-b", "4M")
        ex("set sysroot /")
        ex("file " + program())
        ex("target remote " + path)
        ex("break main")
        equal(go()[0], "main")

    def __enter__(self):
        return self

    def __exit__(self, *args):
        for command in ("delete", "tfind none", "set detach-on-fork on",
                        "set schedule-multiple off",
                        "set follow-fork-mode parent", "kill", "disconnect",
                        "file"):
            try:
                ex(command)
            except gdb.error:
                pass
        for p in (self.trace, self.server):
            p.kill()
            p.wait()


def ends(text):
    """Let it run; it ends, and gdb says TEXT."""
    gdb.flush()
    contains(ex("continue") + ex("info program"), "not being run")
    contains(ex("print $_exitcode"), text)


def threads_count_each_hit():
    with Program():
        ex("handle SIGUSR1 nostop noprint pass")
        trace("work", "collect thread, turn")
        ex("break finished")
        ex("tstart")
        equal(go()[0], "finished")
        ex("tstop")
        contains(ex("tstatus"), "Collected 200 trace frames")
        equal([num("counts[%d]" % i) for i in range(4)], [50] * 4)
        equal(num("signals"), 20, "signals")
        seen = set()
        for i in range(200):
            ex("tfind %d" % i)
            seen.add((num("thread"), num("turn")))
        ex("tfind none")
        equal(len(seen), 200, "different hits")
        ends("= 3")


def breakpoints_with_conditions_stop_the_right_thread():
    with Program():
        ex("handle SIGUSR1 nostop noprint pass")
        ex("break work if thread == 2 && turn == 30")
        equal(go()[0], "work")
        equal((num("thread"), num("turn")), (2, 30))
        require(len(gdb.selected_inferior().threads()) >= 2)
        ex("next")
        ex("finish")
        contains(ex("info threads"), "in run (arg=0x2)")


def a_child_lives_with_breakpoints_and_tracepoints():
    with Program("child"):
        ex("break finished")
        trace("work", "collect thread, turn")
        ex("tstart")
        equal(go()[0], "finished")
        equal(num("child_status"), 0, "the child's status")
        contains(ex("info breakpoints"), "already hit 1 time")


def gdb_follows_a_child():
    with Program("child"):
        ex("set follow-fork-mode child")
        ex("break work")
        equal(go()[0], "work")
        equal(num("turn"), 7)


def both_can_be_followed():
    with Program("child"):
        ex("set detach-on-fork off")
        ex("set schedule-multiple on")
        ex("break work")
        ex("break finished")
        equal(go()[0], "work")
        equal(num("turn"), 7)
        ends("= 0")
        left = [i.num for i in gdb.inferiors() if i.pid]
        equal(len(left), 1)
        ex("inferior %d" % left[0])
        equal(go()[0], "finished")


def a_program_goes_on_when_rhea_trace_is_told_to_end():
    with Program("without", "end") as p:
        trace("work", "collect thread")
        ex("set disconnected-tracing on")
        ex("tstart")
        pid = gdb.selected_inferior().pid
        try:
            ex("disconnect")
            time.sleep(0.3)
            p.trace.terminate()
            equal(p.trace.wait(20), 143)
            time.sleep(0.3)
            with open("/proc/%d/stat" % pid, encoding="ascii") as f:
                state = f.read().rsplit(")", 1)[1].split()[0]
            require(state in "SR", state)
        finally:
            ex("set disconnected-tracing off")
            os.kill(pid, signal.SIGKILL)


def other_things_pass_through():
    with Program():
        contains(ex("info auxv"), "AT_PHDR")
        contains(ex("info proc"), "threads")
        contains(ex("info sharedlibrary"), "libc")
        path = scratch("maps")
        ex("remote get /proc/version " + path)
        with open(path, encoding="ascii") as f:
            contains(f.read(), "Linux")
        ex("watch signals")
        ex("handle SIGUSR1 nostop noprint pass")
        contains(go()[1], "New value = 1")
        ex("delete")
        ex("catch syscall exit_group")
        contains(go()[1], "call to syscall exit_group")
        match(ex("monitor help"), ".")
        contains(ex("monitor rhea"), "not QEMU's")


main([
    threads_count_each_hit,
    breakpoints_with_conditions_stop_the_right_thread,
    a_program_goes_on_when_rhea_trace_is_told_to_end,
    a_child_lives_with_breakpoints_and_tracepoints,
    gdb_follows_a_child,
    both_can_be_followed,
    other_things_pass_through,
])
