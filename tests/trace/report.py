# SPDX-License-Identifier: MIT
"""rhea-trace report: what it shows of a trace is what happened in the guest,
whichever file it is in and whichever form it takes."""
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from bed import (HERE, TRACE, Guest, contains, equal, ex, main,  # noqa: E402
                 match, num, require, scratch, tap, trace)

TURNS = 12


def report(*arguments, code=0):
    """Output and messages."""
    p = subprocess.run([TRACE, "report"] + list(arguments), check=False,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       encoding="utf-8", timeout=60)
    equal(p.returncode, code, "exit code (%s)" % p.stderr)
    return p.stdout, p.stderr


def report_json(*arguments):
    lines = [json.loads(line) for line in
             report("--json", *arguments)[0].splitlines()]
    equal(lines[0]["type"], "trace")
    equal(lines[-1]["type"], "end")
    equal(lines[-1]["frames"], len(lines) - 2)
    require(all(f["type"] == "frame" for f in lines[1:-1]))
    return lines[0], lines[1:-1], lines[-1]


def number(block):
    return int.from_bytes(bytes.fromhex(block["bytes"]), "little", signed=True)


class Traced:
    """A guest that was traced for TURNS turns, and the files of it: a frame of
    add (twice a turn), one of look, one step behind it."""

    def __init__(self, time_too=True):
        self.time_too = time_too

    def __enter__(self):
        self.guest = g = Guest()
        extra = ", $trace_timestamp, $trace_cpu" if self.time_too else ""
        self.add = trace("add if b < 3", "collect $rdi, $rsi, a, b" + extra)
        ex("tvariable $seen = 5")
        self.look = trace("look", "teval $seen = $seen + 2",
                          "collect *p, $seen, $eflags" + extra,
                          "while-stepping 1", "collect $rsp" + extra, "end")
        ex("set trace-user the test")
        ex("tstart a few turns")
        self.last = g.run_turns(TURNS)
        ex('tstop that is "all"')
        self.first = self.last - TURNS + 1
        self.point = num("&point")
        self.pc = {"add": self.address(self.add), "look": self.address(self.look)}
        self.local, self.remote = scratch("r-local.tf"), scratch("r-remote.tf")
        ex("tsave " + self.local)
        ex("tsave -r " + self.remote)
        self.ring = g.file
        return self

    def address(self, n):
        return int(match(ex("info tracepoints"),
                         r"(?m)^%d .*(0x[0-9a-f]+) in" % n).group(1), 16)

    def __exit__(self, *args):
        ex("set trace-user")
        ex("set trace-notes")
        self.guest.close()

    def check_frames(self, frames):
        equal(len(frames), 4 * TURNS, "frames")
        for i, f in enumerate(frames):
            n, kind = self.first + i // 4, i % 4
            equal(f["frame"], i)
            equal(f["tracepoint"], self.add if kind < 2 else self.look)
            equal(f["step"], kind == 3)
            registers = {k: int(v, 16) for k, v in f.get("registers", {}).items()}
            if kind < 2:
                equal(int(f["pc"], 16), self.pc["add"])
                equal(sorted(registers), ["rbp", "rdi", "rsi"])
                equal((registers["rdi"], registers["rsi"]), (n, kind + 1))
                equal([number(b) for b in f["memory"]], [n, kind + 1])
            elif kind == 2:
                equal(int(f["pc"], 16), self.pc["look"])
                memory = {int(b["address"], 16): b["bytes"]
                          for b in f["memory"]}
                equal(int.from_bytes(bytes.fromhex(memory[self.point])[:4],
                                     "little"), 3 * n)
                values = {v["name"]: v["value"] for v in f["variables"]}
                equal(values["seen"], 7 + 2 * (i // 4))
                equal(sorted(registers), ["eflags", "rbp"])
            else:
                require(int(f["pc"], 16) > self.pc["look"])
                equal(list(registers), ["rsp"])


def json_has_what_happened():
    """In the file of frames as in gdb's trace files."""
    with Traced() as t:
        for path in (t.ring, t.local, t.remote):
            head, frames, end = report_json(path)
            t.check_frames(frames)
            equal(end["trouble"], [])
            # What gdb saves says behind the notes how hits were noticed.
            equal((head["stop"], head["stop-text"], head["user"],
                   head["notes"].split(" [way")[0]),
                  ("tstop", 'that is "all"', "the test", "a few turns"))
            equal(head["frames"], 4 * TURNS)
            # gdb turns their order round.
            points = sorted(head["tracepoints"], key=lambda p: p["number"])
            equal([(p["number"], p["location"], p["hits"]) for p in points],
                  [(t.add, "add", 2 * TURNS), (t.look, "look", TURNS)])
            equal(points[0]["conditions"], ["b < 3"])
            contains(points[1]["actions"], "while-stepping 1")
            contains([v["name"] for v in head["variables"]], "seen")
            times = [f["time-ns"] for f in frames]
            equal(times, sorted(times))
            require(abs(times[-1] / 1e9 - time.time()) < 100, times[-1])
            equal({f["cpu"] for f in frames}, {0})


def only_what_is_asked_for_is_shown():
    with Traced() as t:
        for path in (t.ring, t.local):
            every = report_json(path)[1]
            for option, want in (("3-5", every[3:6]), ("7", every[7:8]),
                                 ("40-", every[40:]), ("-4", every[:5]),
                                 ("4000-", [])):
                equal(report_json("--frames", option, path)[1], want, option)
            got = report_json("-n", str(t.look), "-r", "4-11", path)[1]
            equal([f["frame"] for f in got], [6, 7, 10, 11])
        for option in ("x", "5-3", "-", "", "1-2-3", "99999999999999999999"):
            contains(report("--frames", option, t.ring, code=2)[1], "--frames")
        contains(report("--tracepoint", "1x", t.ring, code=2)[1], "no number")
        contains(report("--json", "--ctf", "x", t.ring, code=2)[1], "together")
        contains(report(code=2)[1], "one file")


def text_is_for_people():
    with Traced() as t:
        for path in (t.ring, t.local):
            text = report(path)[0]
            contains(text, 'trace: stopped: that is "all"\n')
            contains(text, "tracepoint %d at 0x%x (add): %d hits\n  if b < 3\n"
                     % (t.add, t.pc["add"], 2 * TURNS))
            contains(text, "variable $seen, at first 5\n")
            for i in range(TURNS):
                n = t.first + i
                part = match(text, r"(?s)frame %d: .*?(?=frame %d:|$)" %
                             (4 * i + 1, 4 * i + 2)).group(0)
                match(part, r"tracepoint %d at 0x%x, cpu 0, \d+\.\d{9} s\n"
                      % (t.add, t.pc["add"]))
                contains(part, "  rsi = 0x2\n  rdi = 0x%x\n  rbp = 0x" % n)
                contains(part, ": %s  |" % " ".join(
                    "%02x" % b for b in n.to_bytes(8, "little")))
            contains(text, "  $seen = 7\n")
            contains(text, "%d frames shown\n" % (4 * TURNS))
            contains(text, "|")
            require("origin" in text, "characters of memory")


def babeltrace(folder):
    """Events as babeltrace2 prints them."""
    if not shutil.which("babeltrace2"):
        raise tap.Skip("no babeltrace2")
    p = subprocess.run(["babeltrace2", "--clock-seconds", folder], check=False,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                       encoding="utf-8", timeout=60)
    equal((p.returncode, p.stderr), (0, ""), "babeltrace2")
    return p.stdout.splitlines()


def babeltrace_reads_ctf():
    with Traced() as t:
        for i, path in enumerate((t.ring, t.local, t.remote)):
            folder = scratch("ctf-%d" % i)
            out = report("--ctf", folder, path)
            equal(out, ("%d events in %s\n" % (4 * TURNS, folder), ""))
            events = babeltrace(folder)
            equal(len(events), 4 * TURNS, "events")
            for k, event in enumerate(events):
                n, kind = t.first + k // 4, k % 4
                name = ("tracepoint %d at add" % t.add if kind < 2 else
                        "tracepoint %d at look%s" %
                        (t.look, ", step" if kind == 3 else ""))
                contains(event, " %s: " % name)
                contains(event, "cpu_id = 0")
                contains(event, "frame = %d," % k)
                if kind < 2:
                    match(event, r"(?i)pc = 0x0*%x, rsi = 0x0*%x, rdi = 0x0*%x,"
                          % (t.pc["add"], kind + 1, n))
                    match(event, r"memory_0 = \[ \[0\] = 0x0*%X, \[1\] = 0x" % (n & 255))
                if kind == 2:
                    contains(event, "seen = %d," % (7 + 2 * (k // 4)))
            times = [float(match(e, r"^\[([\d.]+)\]").group(1)) for e in events]
            equal(times, sorted(times))
            require(abs(times[-1] - time.time()) < 100, times[-1])
        contains(report("--ctf", scratch("ctf-0"), t.ring, code=1)[1],
                 "cannot make the folder")


def frames_without_times_are_numbered():
    with Traced(time_too=False) as t:
        t.check_frames(report_json(t.local)[1])
        folder = scratch("ctf-ordinal")
        contains(report("--ctf", folder, t.local)[1], "not all frames have a time")
        events = babeltrace(folder)
        for k, event in enumerate(events):
            contains(event, "[0.%09d]" % k)
        equal(len(events), 4 * TURNS)


def run_gdb(*commands):
    p = subprocess.run(["gdb", "-nx", "-batch"] +
                       [x for c in ("set pagination off",) + commands
                        for x in ("-ex", c)],
                       check=False, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, encoding="utf-8", timeout=60)
    return p.stdout


def files_are_small():
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def a_trace_opens_after_everything_was_killed():
    """The file of frames of the day it was, and what gdb makes of it."""
    # By the stub, which does not fill the buffer in this time.
    with Guest(own=["-w", "stub"]) as g:
        trace("add", "collect a, b, $rip")
        ex("set disconnected-tracing on")
        ex("tstart")
        ex("disconnect")
        ex("delete")
        time.sleep(1)
        g.process.send_signal(signal.SIGKILL)
        g.process.wait()
        head, frames, end = report_json(g.file)
        equal(head["stop"], "tunknown")
        equal(end["trouble"], [])
        require(len(frames) > 20, "%d frames" % len(frames))
        values = [[number(b) for b in f["memory"]] for f in frames]
        first = values[0][0]
        equal(values, [[first + i // 2, 1 + i % 2] for i in range(len(frames))])
        out = scratch("crashed.tf")
        report("--tfile", out, g.file)
        text = run_gdb("file " + g.elf, "target tfile " + out, "tstatus",
                       "tfind 7", "print a", "print b")
        contains(text, "Collected %d trace frames" % len(frames))
        contains(text, "$1 = %d\n$2 = 2" % (first + 3))
        equal(report_json(out)[1][7]["memory"], frames[7]["memory"])
        # Python leaves the signal ignored.
        p = subprocess.run([TRACE, "report", "--tfile", scratch("big.tf"),
                            g.file], check=False, stderr=subprocess.PIPE,
                           encoding="utf-8", restore_signals=False,
                           preexec_fn=files_are_small)
        equal(p.returncode, 1)
        contains(p.stderr, "big.tf: File too large")
        require(not [n for n in os.listdir(scratch("")) if "big.tf" in n])
        # Pages that did not get to the disk: those frames are lost, and it is
        # said; all others are there.
        with open(g.file, "r+b") as f:
            data = f.read()
            at = data.index(bytes.fromhex(frames[10]["memory"][0]["bytes"]),
                            data.rindex(b"tdesc"))
            f.seek(at)
            f.write(b"\xff" * 8)
        _, left, end = report_json(g.file)
        require(len(left) < len(frames), "a torn frame is shown")
        contains(end["trouble"][0], "lost")
        seen = [[number(b) for b in f["memory"]] for f in left]
        require(all(v in values for v in seen), "made up")
        require(len(left) >= len(frames) - 2)


def damaged_files_are_refused_or_told_of():
    with Traced() as t:
        with open(t.local, "rb") as f:
            data = f.read()
        head = data.index(b"\n\n") + 2
        path = scratch("damaged.tf")
        whole = report_json(t.local)[1]
        for cut in list(range(0, head, 97)) + list(range(head, len(data), 311)):
            with open(path, "wb") as f:
                f.write(data[:cut])
            if cut < head:
                report("--json", path, code=1)
                continue
            _, frames, end = report_json(path)
            equal(frames, whole[:len(frames)])
            contains(end["trouble"], "the file ends in the middle of its frames")
        equal(report_json(t.local)[2]["trouble"], [])
        for path, why in ((t.guest.elf, "neither"), ("/dev/null", "neither"),
                          (scratch("missing"), "No such file"),
                          (HERE, "")):
            contains(report(path, code=1)[1], why)
        contains(report("--tfile", path, t.local, code=1)[1], "already")


USER = """
#include <stdlib.h>
static volatile long sum;
__attribute__((noinline)) void visit(long n, const char *word)
{ sum += n + word[0]; }
int main(void)
{ for (long i = 1; i <= 25; i++) visit(i, "guest"); return 0; }
"""


def traces_of_gdbserver_are_read():
    program, path = scratch("user"), scratch("gdbserver.tf")
    with open(program + ".c", "w", encoding="ascii") as f:
        f.write(USER)
    subprocess.check_call(["gcc", "-O1", "-g", "-no-pie", "-o", program,
                           program + ".c"])
    with open(program + ".gdb", "w", encoding="ascii") as f:
        f.write("""
set pagination off
set breakpoint pending off
set sysroot /
file %s
target remote | gdbserver --once - %s
tvariable $n = 3
break main
continue
trace visit
actions
collect $rdi, n, $n, $trace_timestamp
collect/s word
end
break exit
tstart
continue
tstop
tsave %s
kill
""" % (program, program, path))
    text = subprocess.run(["gdb", "-nx", "-batch", "-x", program + ".gdb"],
                          check=False, stdout=subprocess.PIPE, timeout=60,
                          stderr=subprocess.STDOUT, encoding="utf-8").stdout
    if not os.path.exists(path):
        raise tap.Skip("gdbserver does not trace here: " + text[-300:])
    head, frames, end = report_json(path)
    equal((len(frames), end["trouble"]), (25, []))
    # gdbserver says it in decimal where gdb reads hexadecimal.
    require(head["tracepoints"][0]["hits"] in (25, 0x25))
    for i, f in enumerate(frames):
        equal(int(f["registers"]["rdi"], 16), i + 1)
        equal({v["name"]: v["value"] for v in f["variables"]}["n"], 3)
        require("time-ns" in f)
    folder = scratch("ctf-gdbserver")
    report("--ctf", folder, path)
    equal(len(babeltrace(folder)), 25)


main([
    json_has_what_happened,
    only_what_is_asked_for_is_shown,
    text_is_for_people,
    babeltrace_reads_ctf,
    frames_without_times_are_numbered,
    a_trace_opens_after_everything_was_killed,
    damaged_files_are_refused_or_told_of,
    traces_of_gdbserver_are_read,
])
