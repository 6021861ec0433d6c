# SPDX-License-Identifier: MIT
"""Guests under KVM; gdb that leaves and comes back."""
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import gdb  # noqa: E402 pylint: disable=import-error
from bed import (Guest, contains, equal, ex, fails, go, main,  # noqa: E402
                 match, num, tap, trace)


def kvm_guest():
    """Breakpoints in memory need not work under every KVM, so gdb uses the
    processor's here, too."""
    if not os.access("/dev/kvm", os.W_OK):
        raise tap.Skip("no KVM here")
    g = Guest(options=["-enable-kvm"], connect=False)
    ex("file " + g.elf)
    try:
        ex("target remote " + g.socket)
    except gdb.error as e:
        raise tap.Skip("KVM does not start a guest here: %s" % e) from e
    ex("thbreak main")
    equal(go()[0], "main")
    return g


def hardware_breakpoints_trace_under_kvm():
    with kvm_guest() as g:
        contains(ex("monitor rhea"), "way: hardware")
        trace("add", "collect a, b")
        trace("bare", "collect $rip")
        trace("look", "collect *p")
        ex("tstart")
        ex("set var last=30")
        ex("thbreak finished")
        equal(go()[0], "finished")
        ex("tstop")
        contains(ex("tstatus"), "Collected 120 trace frames")
        for i in range(30):
            ex("tfind %d" % (4 * i + 1))
            equal((num("a"), num("b")), (i + 1, 2))
            ex("tfind %d" % (4 * i + 2))
            equal(num("point.y"), -(i + 1))
            ex("tfind %d" % (4 * i + 3))
            equal(num("$rip"), num("&bare_start"))
        ex("tfind none")
        # The processor has four. A fifth is refused, and none is left in.
        ex("delete")
        for i in range(5):
            trace("*add+%d" % [0, 1, 4, 8, 12][i])
        contains(fails("tstart"), "another hardware breakpoint")
        contains(ex("tstatus"), "No trace has been run")
        ex("delete")
        ex("set var last=turns+3")
        ex("thbreak turn")
        equal(go()[0], "turn")
        del g


def tracing_goes_on_without_gdb():
    with Guest() as g:
        trace("add", "collect a")
        trace("look", "collect *p")
        ex("set disconnected-tracing on")
        ex("tstart")
        ex("set var last=%d" % (num("turns") + 40))
        ex("disconnect")
        ex("delete")
        for _ in range(50):
            time.sleep(0.1)
            g.connect()
            text = ex("tstatus")
            if "Collected 120 " in text:
                break
            ex("disconnect")
        contains(text, "Trace is running")
        contains(text, "will continue if GDB disconnects")
        contains(text, "Collected 120 trace frames")
        contains(ex("info tracepoints"), "collect *p")
        ex("tstop")
        ex("tfind 119")
        contains(ex("tdump"), "*p = ")


def gdb_that_is_killed_leaves_a_guest_that_runs():
    with Guest() as g:
        ex("break look")
        equal(go()[0], "look")
        trace("add", "collect a")
        ex("tstart")
        # Not disconnected tracing: it ends, and the breakpoint goes.
        ex("detach")
        ex("delete")
        time.sleep(0.2)
        g.connect()
        contains(ex("tstatus"), "stopped because of disconnection")
        seen = []
        for _ in range(3):
            ex("tbreak turn")
            equal(go()[0], "turn")
            seen.append(num("turns"))
        equal(seen, [seen[0], seen[0] + 1, seen[0] + 2])


def extended_remote_works_as_well():
    with Guest(remote="extended-remote") as g:
        trace("add", "collect a")
        ex("tstart")
        g.run_turns(5)
        ex("tstop")
        match(ex("tstatus"), "Collected 10 trace frames")


main([
    hardware_breakpoints_trace_under_kvm,
    tracing_goes_on_without_gdb,
    gdb_that_is_killed_leaves_a_guest_that_runs,
    extended_remote_works_as_well,
])
