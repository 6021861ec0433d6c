# SPDX-License-Identifier: MIT
"""gdb's tracepoints on Debian's kernel: system calls of which the number and
the arguments are known."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import gdb  # noqa: E402 pylint: disable=import-error
from bed import (contains, equal, ex, main, match, num,  # noqa: E402
                 require, trace)
from debian import Debian  # noqa: E402

_guests = {}
# The arguments of a system call are in a struct, and `$rdi` points at it.
REGS = "((struct pt_regs *) $rdi)"


def guest(*options):
    """One boot does for several tests."""
    if options not in _guests:
        close()
        _guests[options] = Debian(options)
    _guests[options].anew()
    return _guests[options]


def close():
    for g in _guests.values():
        g.close()
    _guests.clear()


def four_levels():
    return guest("-cpu", "qemu64", "-smp", "2")


def five_levels():
    return guest("-cpu", "max", "-smp", "2")


def frames():
    return int(match(ex("tstatus"), r"Collected (\d+)").group(1))


def string(expression):
    return gdb.parse_and_eval("(char *) " + expression).string()


def every_system_call_is_counted():
    g = four_levels()
    trace(g.at("__x64_sys_getppid"), "collect $regs")
    ex("tstart")
    g.work("WORK_GETPPID", 100)
    ex("tstop")
    equal(frames(), 100)
    for i in (0, 50, 99):
        ex("tfind %d" % i)
        equal(num("$rip") % 2 ** 64, g.symbols["__x64_sys_getppid"])
        equal(num("$cs"), 0x10)
        require(num("$rdi") % 2 ** 64 > 2 ** 63, "no kernel address")


def arguments_are_what_the_program_passed():
    g = four_levels()
    trace(g.at("__x64_sys_openat"), "collect *" + REGS,
          "collect/s (char *) %s->si + 0" % REGS)
    trace(g.at("__x64_sys_write"), "collect *" + REGS,
          "collect *(char *) %s->si@20" % REGS)
    ex("tstart")
    g.work("WORK_OPEN", 25)
    g.work("WORK_WRITE", 25)
    ex("tstop")
    equal(frames(), 50)
    for i in range(25):
        ex("tfind %d" % i)
        equal(num(REGS + "->dx"), i)
        equal(num("(int) %s->di" % REGS), -100)
        equal(string(REGS + "->si"), "/no/such/file-%d" % i)
    for i in range(25):
        ex("tfind %d" % (25 + i))
        want = "line %d of many\n" % i
        equal(num(REGS + "->dx"), len(want))
        equal(gdb.parse_and_eval("(char *) %s->si" % REGS).string(
            length=len(want)), want)


def conditions_and_pass_counts():
    g = four_levels()
    n = trace("%s if %s->dx %% 10 == 7" % (g.at("__x64_sys_openat"), REGS),
              "collect %s->dx" % REGS)
    ex("tstart")
    g.work("WORK_OPEN", 40)
    ex("tstop")
    equal(frames(), 4)
    for i in range(4):
        ex("tfind %d" % i)
        equal(num(REGS + "->dx"), 10 * i + 7)
    ex("tfind none")
    ex("passcount 2 %d" % n)
    ex("tstart")
    g.work("WORK_OPEN", 40)
    contains(ex("tstatus"), "stopped by tracepoint %d" % n)
    equal(frames(), 2)


def frames_tell_the_processor():
    g = four_levels()
    equal(num("processors"), 2)
    trace(g.at("__x64_sys_getpgid"), "collect $trace_cpu, %s->di" % REGS)
    ex("tstart")
    g.work("WORK_EVERYWHERE", 30)
    ex("tstop")
    equal(frames(), 60)
    seen = [0, 0]
    for i in range(60):
        ex("tfind %d" % i)
        equal(num(REGS + "->di"), 1000 + num("$trace_cpu"))
        seen[num("$trace_cpu")] += 1
    equal(seen, [30, 30])


def data_is_watched():
    g = four_levels()
    n = trace("ready", "collect done")
    ex('eval "monitor rhea watch %d %%#lx 8 w", &done' % n)
    first = num("done")
    ex("tstart")
    g.work("WORK_GETPPID", 50)
    ex("tstop")
    ex("monitor rhea unwatch %d" % n)
    equal(frames(), 50)
    for i in (0, 25, 49):
        ex("tfind %d" % i)
        equal(num("done"), first + i + 1)


def the_kernel_is_elsewhere_each_time():
    """The symbols come out of the running kernel, so this is about the test:
    the others did find it at an address that is no default."""
    g = four_levels()
    first = g.symbols["_text"]
    equal(first % 0x200000, 0)
    second = five_levels().symbols["_text"]
    require(first != second or first != 0xffffffff81000000, "no KASLR")


def five_levels_of_tables():
    g = five_levels()
    equal(num("$cr4") >> 12 & 1, 1)
    contains(ex("monitor rhea"), "memory: read from process")
    high = num("(long) high")
    require(high > 2 ** 55, "it has no high address")
    trace(g.at("__x64_sys_openat"), "collect/s (char *) %s->si + 0" % REGS)
    ex("tstart")
    g.work("WORK_HIGH", 5)
    ex("tstop")
    equal(frames(), 5)
    ex("tfind 4")
    equal(num("%s->si" % REGS), high)
    equal(string(REGS + "->si"), "/high/above")


main([
    every_system_call_is_counted,
    arguments_are_what_the_program_passed,
    conditions_and_pass_counts,
    frames_tell_the_processor,
    data_is_watched,
    the_kernel_is_elsewhere_each_time,
    five_levels_of_tables,
], close)
