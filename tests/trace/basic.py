# SPDX-License-Identifier: MIT
"""gdb's tracepoint commands on a bare-metal guest whose every value is known:
see guest/guest.c."""
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import gdb  # noqa: E402 pylint: disable=import-error
from bed import (PLUGIN, Guest, contains, equal, ex, fails, go, main, match,  # noqa: E402
                 num, require, scratch, trace)


def frames():
    return int(match(ex("tstatus"), r"Collected (\d+)").group(1))


def arguments_and_globals_are_collected():
    with Guest() as g:
        trace("add", "collect $args, turns")
        ex("tstart")
        last = g.run_turns(20)
        ex("tstop")
        equal(frames(), 40, "frames")
        first = last - 19
        for i in range(40):
            ex("tfind %d" % i)
            equal(num("a"), first + i // 2, "a")
            equal(num("b"), 1 + i % 2, "b")
            equal(num("turns"), first + i // 2, "turns")
        contains(ex("tfind none"), "No longer looking")
        equal(num("turns"), last)


def registers_and_locals_are_collected():
    with Guest() as g:
        trace("look", "collect $regs, $locals")
        # Behind the statement that sets `local`.
        trace("*look+37", "collect $rip, $rsp, $eflags")
        ex("tstart")
        g.run_turns(2)
        ex("tstop")
        ex("tfind 0")
        equal(num("$rip"), num("&look") + 16)
        require(num("$rsp") > 0x100000)
        equal(num("$cs"), 8)
        equal(num("$cr0") & 0x80000001, 0x80000001)
        contains(ex("tdump"), "local = ")
        ex("tfind 1")
        contains(ex("info registers rax"), "<unavailable>")
        equal(num("$rip"), num("&look") + 37)


def memory_ranges_and_expressions():
    with Guest() as g:
        trace("look", "collect *p, words[1]@2, point.name, p->x + 1",
              "collect (char) *(char *) 0x100000")
        ex("tstart")
        last = g.run_turns(3)
        ex("tstop")
        for i in range(3):
            ex("tfind %d" % i)
            n = last - 2 + i
            equal(num("point.x"), 3 * n)
            equal(num("point.y"), -n)
            equal(num("(long) words[2]"), num("(long) words[2]"))
            contains(ex("print point.name"), "origin")
            equal(num("*(unsigned char *) 0x100000"), 2)
            contains(ex("print turns"), "<unavailable>")


def strings_end_where_they_end():
    """Of constants gdb would look into the ELF file."""
    with Guest() as g:
        trace("look", "collect/s title + 0")
        trace("look", "collect/s3 title + 0")
        trace("look", "collect/s word")
        ex("tstart")
        g.run_turns(8)
        ex("tstop")
        for i in range(8):
            ex("tfind %d" % (3 * i))
            contains(ex("output title"), '"writable"')
            contains(ex("output title[9]"), "<unavailable>")
            ex("tfind %d" % (3 * i + 1))
            equal(gdb.parse_and_eval("title").string(length=3), "wri")
            contains(ex("output title[3]"), "<unavailable>")
            ex("tfind %d" % (3 * i + 2))
            contains(ex("tdump"), "word = ")


def every_hit_counts_once():
    """QEMU now and then tells of a step that it has not made."""
    with Guest() as g:
        trace("look", "collect $rip")
        ex("tstart")
        g.run_turns(2000)
        ex("tstop")
        equal(frames(), 2000)


def conditions_choose():
    with Guest() as g:
        first = num("turns")
        trace("add if b == 2 && a % 5 == 0", "collect a")
        ex("tstart")
        last = g.run_turns(50)
        ex("tstop")
        want = [n for n in range(first + 1, last + 1) if n % 5 == 0]
        equal(frames(), len(want), "frames")
        for i, n in enumerate(want):
            ex("tfind %d" % i)
            equal(num("a"), n)


def pass_counts_stop_tracing():
    with Guest() as g:
        n = trace("add", "collect a")
        ex("passcount 7 %d" % n)
        ex("tstart")
        g.run_turns(20)
        text = ex("tstatus")
        contains(text, "stopped by tracepoint %d" % n)
        contains(text, "Collected 7 trace frames")
        contains(ex("info tracepoints"), "already hit 7 times")


def tracepoints_are_enabled_and_disabled_while_running():
    with Guest() as g:
        a = trace("add", "collect a")
        b = trace("look", "collect *p")
        ex("disable %d" % b)
        ex("tstart")
        g.run_turns(3)
        equal(frames(), 6)
        ex("enable %d" % b)
        ex("disable %d" % a)
        g.run_turns(4)
        equal(frames(), 10)
        ex("disable %d" % b)
        g.run_turns(2)
        ex("tstop")
        equal(frames(), 10)


def trace_state_variables_count():
    with Guest() as g:
        ex("tvariable $seen = 100")
        trace("add if b == 2", "teval $seen = $seen + 3", "collect $seen")
        ex("tstart")
        g.run_turns(5)
        ex("tstop")
        match(ex("info tvariables"), r"\$seen +100 +115")
        contains(ex("info tvariables"), "$trace_timestamp")
        for i in range(5):
            ex("tfind %d" % i)
            equal(num("$seen"), 103 + 3 * i)


def predefined_variables():
    with Guest() as g:
        trace("add", "collect $trace_timestamp, $trace_cpu")
        ex("tstart")
        g.run_turns(5)
        ex("tstop")
        before = 0
        for i in range(10):
            ex("tfind %d" % i)
            now = num("$trace_timestamp")
            require(now >= max(before, 10 ** 15), "time goes back")
            before = now
            equal(num("$trace_cpu"), 0)


def while_stepping_follows_the_guest():
    with Guest() as g:
        n = trace("*bare", "collect $rip", "while-stepping 3",
                  "collect $rip, turns", "end")
        ex("tstart")
        last = g.run_turns(4)
        ex("tstop")
        equal(frames(), 16)
        at = [num("&%s" % s) for s in ("bare_start", "bare_middle")]
        at += [at[1] + 1, num("&bare_end")]
        for i in range(16):
            ex("tfind %d" % i)
            equal(num("$rip"), at[i % 4], "rip of frame %d" % i)
            if i % 4:
                equal(num("turns"), last - 3 + i // 4)
        contains(ex("info tracepoints"), "already hit 4 times")
        contains(ex("tfind start"), "tracepoint %d" % n)


def default_collect():
    with Guest() as g:
        ex("set default-collect turns")
        trace("add")
        trace("look", "collect p")
        ex("tstart")
        last = g.run_turns(1)
        ex("tstop")
        for i in range(3):
            ex("tfind %d" % i)
            equal(num("turns"), last)


def tfind_in_every_form():
    with Guest() as g:
        a = trace("add", "collect a")
        b = trace("look", "collect p")
        ex("tstart")
        g.run_turns(5)
        ex("tstop")
        contains(ex("tfind start"), "Found trace frame 0, tracepoint %d" % a)
        contains(ex("tfind"), "Found trace frame 1, tracepoint %d" % a)
        contains(ex("tfind -"), "Found trace frame 0")
        contains(ex("tfind pc look+16"), "Found trace frame 2, tracepoint %d" % b)
        contains(ex("tfind pc"), "Found trace frame 5")
        contains(ex("tfind tracepoint %d" % a), "Found trace frame 6")
        contains(ex("tfind tracepoint"), "Found trace frame 7")
        contains(ex("tfind range look, look+20"), "Found trace frame 8")
        contains(ex("tfind outside look, look+20"), "Found trace frame 9")
        line = gdb.find_pc_line(num("&look") + 16).line
        contains(ex("tfind line %d" % line), "Found trace frame 11, tracepoint %d" % b)
        contains(ex("tfind 14"), "Found trace frame 14")
        contains(ex("tfind 15"), "No trace frame found")
        contains(ex("tfind start"), "Found trace frame 0")
        contains(ex("tfind none"), "No longer looking")
        equal(num("$trace_frame"), -1)


def notes_and_status():
    with Guest() as g:
        contains(ex("tstatus"), "No trace has been run")
        trace("add")
        ex("set trace-user somebody")
        ex("tstart what it is about")
        contains(ex("tstatus"), "Trace is running")
        g.run_turns(2)
        ex("tstop enough of it")
        text = ex("tstatus")
        contains(text, "stopped by a tstop command (enough of it)")
        contains(text, "Trace user is somebody")
        contains(text, "Trace notes: what it is about [way: %s]" %
                 ("plugin" if PLUGIN else "stub"))
        match(text, r"started at \d+\.\d+ secs, stopped \d+\.\d+ secs later")
        ex("set trace-user")
        ex("set trace-notes")
        ex("tstart")
        contains(ex("tstatus"), "Trace notes: [way: ")
        ex("tstop")


def a_full_buffer_stops_and_a_circular_one_does_not():
    with Guest() as g:
        trace("add", "collect a, b")
        ex("set trace-buffer-size 2000")
        ex("tstart")
        g.run_turns(50)
        text = ex("tstatus")
        contains(text, "Trace stopped because the buffer was full")
        n = frames()
        require(5 < n < 50, "%d frames" % n)
        contains(text, "of 2000 bytes free")
        ex("tfind start")
        first = num("a")
        ex("tfind none")
        ex("set circular-trace-buffer on")
        ex("tstart")
        last = g.run_turns(50)
        ex("tstop")
        text = ex("tstatus")
        contains(text, "Trace buffer is circular")
        match(text, r"Buffer contains \d+ trace frames \(of 100 created total")
        n = int(match(text, r"contains (\d+)").group(1))
        require(5 < n < 50, "%d frames" % n)
        ex("tfind %d" % (n - 1))
        equal(num("a"), last)
        ex("tfind start")
        require(num("a") > first + 25)


def several_at_one_address():
    with Guest() as g:
        one = trace("add", "collect a")
        two = trace("add if b == 1", "collect b")
        three = trace("*add+16", "collect $rdi", before="ftrace")
        ex("break add")
        ex("tstart")
        for _ in range(4):
            equal(go()[0], "add")
        ex("delete breakpoints")
        ex("tstop")
        # The plugin counts when the instruction runs, and at the last stop it
        # has not.
        equal(frames(), 8 if PLUGIN else 10)
        numbers = []
        for i in range(frames()):
            numbers.append(int(match(ex("tfind %d" % i),
                                     r"tracepoint (\d+)").group(1)))
        turn = [one, two, three, one, three]
        want = (turn * 2, (turn[3:] + turn[:3]) * 2)
        require(numbers in [w[:frames()] for w in want], numbers)
        del g


def static_tracepoints_are_refused_and_fast_ones_are_not():
    """gdb 13 would crash where it is told of a marker, see session_trace.c."""
    with Guest() as g:
        for command in ("strace add", "strace *look", "strace -m marker",
                        "info static-tracepoint-markers"):
            fails(command, "a guest has no markers for static tracepoints")
        contains(ex("info tracepoints"), "No tracepoints")
        fails("ftrace *0x7fffffff0000", "Cannot access memory")
        # Of one byte, where a jump of five would have to be put.
        trace("*bare_middle", "collect $_sdata, turns", before="ftrace")
        ex("tstart")
        last = g.run_turns(3)
        fails("strace add", "a guest has no markers for static tracepoints")
        contains(ex("tstatus"), "Trace is running")
        ex("tstop")
        equal(frames(), 3)
        ex("tfind 2")
        equal(num("turns"), last)
        contains(ex("print $_sdata"), "= void")


def tracepoints_set_while_tracing_runs():
    with Guest() as g:
        trace("add", "collect a")
        ex("tstart")
        g.run_turns(2)
        # gdb sends it as it is set, before one can give it actions.
        ex("set default-collect turns")
        trace("look")
        # And does not send the variables that are made meanwhile.
        ex("tvariable $late = 1")
        fails("trace bare if $late == 1", "start again")
        last = g.run_turns(2)
        contains(ex("tstatus"), "Trace is running")
        ex("tstop")
        equal(frames(), 4 + 6)
        ex("tfind pc look+16")
        equal(num("turns"), last - 1)


def breakpoints_work_as_before():
    with Guest() as g:
        ex("break look if p->x % 2 == 0")
        for _ in range(3):
            equal(go()[0], "look")
            equal(num("p->x") % 2, 0)
        ex("finish")
        ex("stepi")
        ex("delete")
        ex("watch point.x")
        contains(go()[1], "atchpoint")
        ex("delete")
        ex("hbreak add")
        equal(go()[0], "add")
        ex("next")
        ex("step")
        contains(ex("info threads"), "CPU#0")
        contains(ex("monitor info status"), "paused")
        contains(ex("monitor rhea"), "way: " + ("plugin" if PLUGIN else "stub"))
        ex("set var $rax = 5")
        equal(num("$rax"), 5)
        del g


def conditions_are_evaluated_here():
    with Guest() as g:
        ex("set breakpoint condition-evaluation target")
        ex("break add if b == 2 && a % 100 == 0")
        equal(go()[0], "add")
        a = num("a")
        equal(a % 100, 0)
        equal(go()[0], "add")
        equal(num("a"), a + 100)
        contains(ex("info breakpoints"), "(target evals)")
        ex("set breakpoint condition-evaluation auto")
        del g


def dynamic_printf_prints_here():
    with Guest() as g:
        ex("set dprintf-style agent")
        ex('dprintf look,"x=%d y=%ld word=%s.\\n", p->x, p->y, word')
        last = num("turns") + 3
        ex("set var last=%d" % last)
        ex("tbreak finished")
        where, text = go()
        equal(where, "finished")
        names = ["zero", "one", "two", "three"]
        for n in range(last - 2, last + 1):
            contains(text, "x=%d y=%d word=%s." % (3 * n, -n, names[n % 4]))
        equal(text.count("word="), 3)
        ex("set dprintf-style gdb")


def gdb_reads(elf, path, *commands):
    """What a gdb of its own says about a trace file."""
    script = scratch("tfile.gdb")
    with open(script, "w", encoding="ascii") as f:
        f.write("\n".join(("set pagination off", "file " + elf,
                           "target tfile " + path) + commands) + "\n")
    return subprocess.run(["gdb", "-nx", "-batch", "-x", script], check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          encoding="utf-8").stdout


def saved_files_open_in_gdb():
    with Guest() as g:
        trace("add", "collect $args, $regs")
        ex("tvariable $v = 7")
        trace("look", "collect *p, $v", "while-stepping 1", "collect $rsp",
              "end")
        ex("tstart")
        last = g.run_turns(10)
        ex("tstop for now")
        local, remote = scratch("local.tf"), scratch("remote.tf")
        ex("tsave " + local)
        ex("tsave -r " + remote)
        ex("kill")
        ex("delete")
        for path in (local, remote):
            # gdb 13 mixes up two of them in a row, so each gets its own gdb.
            commands = ["tstatus", "info tvariables", "info tracepoints"]
            for i in range(10):
                commands += ["tfind %d" % (4 * i + 1), "print a", "print b",
                             "print $rsp > 0x100000", "tfind %d" % (4 * i + 2),
                             "print p->x", "print $v"]
            text = gdb_reads(g.elf, path, *commands)
            contains(text, "Using a trace file")
            contains(text, "Collected 40 trace frames")
            contains(text, "stopped by a tstop command (for now)")
            contains(text, "$v")
            contains(text, "already hit 20 times")
            values = [int(n) for n in re.findall(r"^\$\d+ = (-?\d+)", text,
                                                 re.MULTILINE)]
            want = []
            for n in range(last - 9, last + 1):
                want += [n, 2, 1, 3 * n, 7]
            equal(values, want)


def strings_and_long_lists_do_not_spoil_a_file():
    """gdb 13 does not open a trace file with collect/s, or with long lines."""
    with Guest() as g:
        trace("look", "collect/s word + 0", "while-stepping 1",
              "collect/s10 p->name + 0", "end")
        trace("add", "collect " + ", ".join(["a", "b"] * 200))
        trace("turn", "collect n")
        ex("tstart " + "note " * 30)
        g.run_turns(2)
        ex("tstop " + "enough " * 20)
        contains(ex("info tracepoints"), "collect/s word + 0")
        for option in ("", "-r "):
            path = scratch("odd.tf")
            ex("tsave " + option + path)
            text = gdb_reads(g.elf, path, "info tracepoints",
                             "tfind 0", "tdump", "tfind 1", "print a",
                             "tfind 3", "print word")
            contains(text, "tracepoint already hit 4 times")
            contains(text, "n = 1")
            contains(text, "= 1\n")
            match(text, r'= 0x[0-9a-f]+ .*"one"')


def a_trace_file_is_the_same_either_way():
    with Guest() as g:
        trace("add", "collect $args, $regs")
        ex("tstart")
        g.run_turns(30)
        ex("tstop")
        data = []
        for option in ("", "-r "):
            path = scratch("same.tf")
            ex("tsave %s%s" % (option, path))
            with open(path, "rb") as f:
                data.append(f.read().split(b"\n\n", 1)[1])
        equal(data[0], data[1], "the frames")
        require(len(data[0]) > 60 * 600)


def watch(number, what, kind=""):
    ex('eval "monitor rhea watch %d %%#lx %%d %s", &(%s), sizeof(%s)' % (
        number, kind, what, what))


def data_is_watched():
    """A tracepoint is where it likes, and hits at accesses to memory."""
    with Guest() as g:
        written = trace("add if turns % 2 == 0", "collect turns, $rip")
        watch(written, "turns")
        read = trace("add", "collect turns")
        watch(read, "ones", "r")
        both = trace("add", "collect sum")
        watch(both, "sum", "rw")
        contains(ex("monitor rhea watch"),
                 "tracepoint %d: reads of 4 bytes" % read)
        ex("tstart")
        last = g.run_turns(10)
        ex("tstop")
        seen = {written: [], read: [], both: []}
        for i in range(frames()):
            number = int(match(ex("tfind %d" % i), r"tracepoint (\d+)").group(1))
            if number == both:
                seen[both].append(num("sum"))
                continue
            seen[number].append(num("turns"))
            if number == written:
                equal(gdb.selected_frame().name(), "main")
        turns = list(range(last - 9, last + 1))
        equal(seen[written], [n for n in turns if n % 2 == 0])
        equal(seen[read], turns)
        # Read and written by an instruction each, or by one.
        require(len(seen[both]) in (20, 40), seen[both])
        equal(seen[both], sorted(seen[both]))
        ex("tfind none")
        contains(ex("monitor rhea watch 1 2"), "say monitor rhea watch NUMBER")
        contains(ex("monitor rhea sing"), "knows watch and unwatch")
        ex("monitor rhea unwatch %d" % read)
        ex("monitor rhea unwatch %d" % both)
        ex("delete %d %d" % (read, both))
        # gdb's own, beside it.
        ex("watch turns")
        ex("tstart")
        last = num("turns") + 2
        for n in (last - 1, last):
            contains(go()[1], "atchpoint")
            equal(num("turns"), n)
        ex("tstop")
        equal(frames(), 1)
        ex("monitor rhea unwatch %d" % written)
        contains(ex("monitor rhea watch"), "nothing is watched")


def what_cannot_be_collected_is_refused():
    with Guest() as g:
        trace("add", "collect $xmm0, $st0, $cr3")
        trace("look", "collect *(int *) 0xffff800000000000, p")
        ex("tstart")
        g.run_turns(2)
        ex("tstop")
        ex("tfind 0")
        contains(ex("print $xmm0"), "uint128 = 0")
        equal(num("$cr3") % 4096, 0)
        ex("tfind pc look+16")
        contains(ex("print *(int *) 0xffff800000000000"), "<unavailable>")
        require(num("p") > 0)


def a_division_by_zero_stops_tracing():
    with Guest() as g:
        trace("add", "collect 100 / (b - 2)")
        ex("tstart")
        g.run_turns(2)
        contains(ex("tstatus"), "stopped by an error")
        contains(ex("tstatus"), "division by zero")
        equal(frames() in (0, 1), True)


main([
    arguments_and_globals_are_collected,
    registers_and_locals_are_collected,
    memory_ranges_and_expressions,
    strings_end_where_they_end,
    every_hit_counts_once,
    conditions_choose,
    pass_counts_stop_tracing,
    tracepoints_are_enabled_and_disabled_while_running,
    trace_state_variables_count,
    predefined_variables,
    while_stepping_follows_the_guest,
    default_collect,
    tfind_in_every_form,
    notes_and_status,
    a_full_buffer_stops_and_a_circular_one_does_not,
    several_at_one_address,
    static_tracepoints_are_refused_and_fast_ones_are_not,
    tracepoints_set_while_tracing_runs,
    breakpoints_work_as_before,
    conditions_are_evaluated_here,
    dynamic_printf_prints_here,
    saved_files_open_in_gdb,
    strings_and_long_lists_do_not_spoil_a_file,
    a_trace_file_is_the_same_either_way,
    data_is_watched,
    what_cannot_be_collected_is_refused,
    a_division_by_zero_stops_tracing,
])
