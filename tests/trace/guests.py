# SPDX-License-Identifier: MIT
"""Guests under KVM; gdb that leaves and comes back."""
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import gdb  # noqa: E402 pylint: disable=import-error
from bed import (Guest, contains, equal, ex, go, main, require,  # noqa: E402
                 match, num, tap, trace)


def kvm_guest(source="guest.c"):
    """Breakpoints in memory need not work under every KVM, so gdb uses the
    processor's here, too."""
    if not os.access("/dev/kvm", os.W_OK):
        raise tap.Skip("no KVM here")
    g = Guest(options=["-enable-kvm"], connect=False, source=source,
              hardware=True)
    ex("file " + g.elf)
    try:
        g.connect()
    except gdb.error as e:
        raise tap.Skip("KVM does not start a guest here: %s" % e) from e
    return g


def hardware_breakpoints_trace_under_kvm():
    with kvm_guest() as g:
        contains(ex("monitor rhea"), "way: hardware")
        trace("add", "collect a, b")
        trace("bare", "collect $rip")
        trace("look", "collect *p")
        ex("tstart")
        g.run_turns(30)
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


def past_the_fourth_they_are_in_memory_or_refused():
    """The processor has four. Whether others work is the KVM's affair."""
    with kvm_guest() as g:
        for i in range(6):
            trace("*add+%d" % [0, 1, 4, 8, 12, 16][i])
        try:
            ex("tstart")
        except gdb.error as e:
            contains(str(e), "which are all in use; and breakpoints in memory")
            contains(ex("tstatus"), "No trace has been run")
            # None is left in.
            ex("delete")
            g.run_turns(3)
            return
        ex("delete")
        g.tbreak = "tbreak "
        g.run_turns(5)
        contains(ex("tstatus"), "Collected 60 trace frames")


def in_memory_past_the_fourth():
    """With TCG, where they always work."""
    with Guest(own=["--way", "hardware"]) as g:
        for i in range(6):
            trace("*add+%d" % [0, 1, 4, 8, 12, 16][i])
        ex("tstart")
        g.run_turns(5)
        ex("tstop")
        contains(ex("tstatus"), "Collected 60 trace frames")


def count_in_spite_of_handlers(g, n):
    ex("set var turns = 0")
    for place in "counts", "divides", "reads":
        trace("*&" + place, "collect turns, ticks")
    ex("tstart")
    g.run_turns(n)
    ex("tstop")
    contains(ex("tstatus"), "Collected %d trace frames" % (3 * n))
    for i in range(3 * n):
        ex("tfind %d" % i)
        equal(num("turns"), 1 + i // 3)
        equal(num("$rip"), num("&" + ("counts", "divides", "reads")[i % 3]))
    ex("tfind none")
    require(num("ticks") > 0, "no tick")


def a_hit_that_a_handler_interrupts_counts_once():
    with Guest(source="ticks.c", own=["--way", "stub"]) as g:
        count_in_spite_of_handlers(g, 100)


def dynamic_printf_prints_once_in_spite_of_handlers():
    with Guest(source="ticks.c") as g:
        ex("set dprintf-style agent")
        ex('dprintf *&divides,"divides %d\\n", turns')
        ex('dprintf *&reads,"reads %d\\n", turns')
        ex("set var turns = 0")
        ex("set var last = 5")
        ex("tbreak finished")
        text = go()[1]
        ex("set dprintf-style gdb")
        for n in range(1, 6):
            equal(text.count("divides %d\n" % n), 1)
            equal(text.count("reads %d\n" % n), 1)


def the_same_under_kvm_where_steps_meet_interrupts():
    with kvm_guest("ticks.c") as g:
        count_in_spite_of_handlers(g, 100)


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


def gdb_may_come_while_the_firmware_runs():
    """Which has 32 bits, as a boot loader has; what comes after need not."""
    with Guest() as g:
        ex("monitor system_reset")
        ex("thbreak *&_start")
        ex("continue")
        equal(num("$cr0") & 0x80000001, 1)
        ex("set var *(short *) &_start = 0xfeeb")  # jump to itself
        ex("disconnect")
        g.connect()
        equal(num("$rip"), num("&_start"))
        contains(ex("monitor rhea"), "registers: as the stub has them")
        # And now in the firmware itself, wherever it is.
        for _ in range(5):
            ex("monitor system_reset")
            ex("disconnect")
            time.sleep(0.02)
            g.connect()
            require(num("$rip") < 2 ** 32)


def backwards_tracepoints_do_not_count_and_then_do():
    """This QEMU has recorded nothing, so that it refuses."""
    with Guest() as g:
        trace("add", "collect a")
        ex("tstart")
        g.run_turns(3)
        for command in ("reverse-stepi", "reverse-continue"):
            try:
                ex(command)
            except gdb.error:
                pass
        g.run_turns(3)
        contains(ex("tstatus"), "Collected 12 trace frames")


def extended_remote_works_as_well():
    with Guest(remote="extended-remote") as g:
        trace("add", "collect a")
        ex("tstart")
        g.run_turns(5)
        ex("tstop")
        match(ex("tstatus"), "Collected 10 trace frames")


main([
    hardware_breakpoints_trace_under_kvm,
    past_the_fourth_they_are_in_memory_or_refused,
    in_memory_past_the_fourth,
    a_hit_that_a_handler_interrupts_counts_once,
    dynamic_printf_prints_once_in_spite_of_handlers,
    the_same_under_kvm_where_steps_meet_interrupts,
    tracing_goes_on_without_gdb,
    gdb_that_is_killed_leaves_a_guest_that_runs,
    gdb_may_come_while_the_firmware_runs,
    backwards_tracepoints_do_not_count_and_then_do,
    extended_remote_works_as_well,
])
