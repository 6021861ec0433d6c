# SPDX-License-Identifier: MIT
"""rhea-trace record: for scripts, with gdb as the one who knows names and
without it. Guests are those of bed.py; what is recorded of them is known."""
import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from bed import (TRACE, build, contains, die_with_parent, equal, ex,  # noqa: E402
                 main, match, require, scratch)


def qemu(*more):
    return ["qemu-system-x86_64", "-display", "none", "-monitor", "none",
            "-serial", "none", "-nodefaults", "-kernel", build()[1]] + list(more)


def record(*arguments, code=0, guest=True, env=None):
    """Its messages."""
    p = subprocess.run([TRACE, "record"] + list(arguments) +
                       (["--"] + qemu() if guest else []), check=False,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, encoding="utf-8", timeout=120,
                       env=env, cwd=scratch(""))
    equal(p.returncode, code, "exit code (%s)" % p.stderr)
    return p.stderr


def frames(path):
    out = subprocess.run([TRACE, "report", "--json", path], check=True,
                         stdout=subprocess.PIPE, timeout=60).stdout
    lines = [json.loads(line) for line in out.splitlines()]
    equal(lines[-1]["trouble"], [])
    return lines[0], lines[1:-1]


def number(block):
    return int.from_bytes(bytes.fromhex(block["bytes"]), "little", signed=True)


def address(name):
    return int(match(ex("info address " + name), r"0x[0-9a-f]+").group(0), 16)


def names_and_expressions():
    """From the guest's first instruction on, so the first turn is turn 1."""
    out = scratch("names.tf")
    text = record("--symbols", build()[0], "--at", "add", "--collect", "a, b",
                  "--condition", "b == 2", "--at", "look", "--collect", "*p",
                  "--collect", "/s word + 0", "--count", "8", "--output", out)
    contains(text, "15 frames in %s, stopped by the pass count of tracepoint 1"
             % out)
    head, got = frames(out)
    equal([p["location"] for p in head["tracepoints"]], ["add", "look"])
    equal([p["hits"] for p in head["tracepoints"]], [8, 7])
    for i, f in enumerate(got):
        turn = i // 2 + 1
        require("time-ns" in f and f["cpu"] == 0)
        if i % 2 == 0:
            equal([number(b) for b in f["memory"]], [turn, 2])
        else:
            blocks = [bytes.fromhex(b["bytes"]) for b in f["memory"]]
            contains([b[:4] for b in blocks], (3 * turn).to_bytes(4, "little"))
            word = ["zero", "one", "two", "three"][turn % 4]
            contains(blocks, word.encode() + b"\0")


def without_gdb():
    out = scratch("own.tf")
    ex("file " + build()[0])
    add, turns, point = address("add"), address("turns"), address("point")
    # Nothing but itself is needed, so none can be found.
    qemus = subprocess.check_output(["sh", "-c", "command -v qemu-system-x86_64"],
                                    encoding="utf-8").strip()
    p = subprocess.run(
        [TRACE, "record", "-c", "$rdi", "-c", "$pc", "-p", "*0x%x" % add, "-c",
         "0x%x,8" % turns, "-p", "%d" % (address("look") + 4), "-c", "$rdi,16",
         "-c", "$rsp-8,8", "-n", "9", "-o", out, "--", qemus] + qemu()[1:],
        check=False, env={"PATH": "/nonexistent", "TMPDIR": scratch("")},
        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, encoding="utf-8",
        timeout=60)
    equal(p.returncode, 0, p.stderr)
    head, got = frames(out)
    equal([p["hits"] for p in head["tracepoints"]], [9, 4])
    equal(len(got), 13)
    for i, f in enumerate(got):
        turn = i // 3 + 1
        registers = {k: int(v, 16) for k, v in f["registers"].items()}
        equal(sorted(registers), ["rdi", "rip"])
        require("time-ns" in f)
        if i % 3 < 2:
            equal(registers, {"rdi": turn, "rip": add})
            equal([(int(b["address"], 16), number(b)) for b in f["memory"]],
                  [(turns, turn)])
        else:
            equal(registers["rdi"], point)
            equal([len(b["bytes"]) // 2 for b in f["memory"]], [16, 8])
            equal(number({"bytes": f["memory"][0]["bytes"][:8]}), 3 * turn)
    # gdb opens it, and knows what the actions were.
    text = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", "file " + build()[0], "-ex",
         "target tfile " + out, "-ex", "info tracepoints", "-ex", "tfind 5",
         "-ex", "print point.x", "-ex", "tdump"], check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        timeout=60).stdout
    contains(text, "collect *(unsigned char *) 0x%x@8" % turns)
    contains(text, "$1 = 6")
    contains(text, "$rdi = ")


def the_end_is_a_time_or_a_signal():
    out = scratch("time.tf")
    started = time.monotonic()
    contains(record("--at", "add", "--symbols", build()[0], "--for", "0.5", "-w",
                    "stub", "-o", out), "stopped on request")
    require(time.monotonic() - started < 30)
    require(len(frames(out)[1]) > 10)
    out = scratch("signal.tf")
    # By the stub, which does not fill the buffer in this time.
    p = subprocess.Popen([TRACE, "record", "--at", "0x%x" % address("add"), "-q",
                          "-w", "stub",
                          "-o", out, "--"] + qemu(), stdin=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, preexec_fn=die_with_parent)
    time.sleep(1.5)
    require(p.poll() is None, "it ended by itself")
    p.send_signal(signal.SIGINT)
    equal(p.wait(30), 0, "exit code")
    require(len(frames(out)[1]) > 10)


def a_guest_that_is_not_ours_runs_on():
    stub, out = scratch("stub"), scratch("stub.tf")
    ex("file " + build()[0])
    guest = subprocess.Popen(
        qemu("-gdb", "unix:%s,server=on,wait=off" % stub),
        stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    try:
        while not os.path.exists(stub):
            time.sleep(0.01)
        time.sleep(1)
        for end in (("--count", "30"), ("--for", "0.3")):
            text = record("--stub", stub, "--at", "0x%x" % address("add"),
                          "--collect", "0x%x,8" % address("turns"), "-o", out,
                          *end, guest=False)
            contains(text, "each hit will stop the guest for a moment: there is "
                     "no plugin of rhea-trace in QEMU")
            match(text, r"-plugin /.*librhea-trace-plugin\.so\n")
            values = [number(f["memory"][0]) for f in frames(out)[1]]
            require(len(values) > 5, values)
            # Each call is there, two a turn.
            equal(values, sorted(values))
            equal(values[-1] - values[0], (len(values) - 1 + (
                values[0] != values[1])) // 2 if values[0] == values[1] else
                len(values) // 2)
            ex("target remote " + stub)
            first = int(ex("output turns"))
            ex("detach")
            time.sleep(0.2)
            ex("target remote " + stub)
            require(int(ex("output turns")) > first, "it stands still")
            ex("detach")
        # Nor is it done without, where it was asked for.
        contains(record("--stub", stub, "-u", scratch("missing"), "--at", "0x10",
                        "-o", scratch("none.tf"), code=1, guest=False),
                 "there is no plugin of rhea-trace in QEMU")
    finally:
        guest.kill()
        guest.wait()


def guests_of_32_bits():
    """The symbols' file says so, while the processor is still in 16 bits."""
    elf, image = build(32)
    out = scratch("narrow.tf")
    p = subprocess.run(
        [TRACE, "record", "-y", elf, "--at", "add", "-c", "a, $ebp", "-n", "6",
         "-o", out, "--"] + qemu()[:-1] + [image], check=False,
        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, encoding="utf-8",
        timeout=60)
    equal(p.returncode, 0, p.stderr)
    got = frames(out)[1]
    equal([number(f["memory"][0]) for f in got], [1, 1, 2, 2, 3, 3])
    equal([len(f["memory"][0]["bytes"]) for f in got], [8] * 6)
    contains(got[0]["registers"], "ebp")


def mistakes_are_named():
    elf = build()[0]
    out = scratch("none.tf")
    for arguments, code, part in (
            (("--at", "nosuch", "--symbols", elf), 1, 'nosuch: Function "nosuch"'),
            (("--at", "nosuch", "-i", "1", "-y", elf), 1,
             '--at nosuch: Function "nosuch"'),
            (("--at", "guest.c:9999", "-y", elf), 1, "--at guest.c:9999: No line"),
            (("--at", "add"), 1, "--symbols FILE"),
            (("--at", "add", "-y", elf, "-c", "a", "-c", "missing"), 1,
             '--collect missing: No symbol "missing"'),
            (("--at", "add", "-y", elf, "-i", "missing > 1"), 1,
             "--condition missing > 1: No symbol"),
            (("--at", "add", "-y", elf, "-e", "nonsense 1"), 1,
             "--gdb-command nonsense 1: Undefined command"),
            (("--at", "0x10", "-c", "$nothing"), 1,
             "--at 0x10: there is no register $nothing"),
            (("--at", "add", "-g", "/nonexistent/gdb"), 1,
             "cannot run /nonexistent/gdb"),
            (("--at", "add", "-y", "/nonexistent/elf"), 2, "No such file"),
            (("--at", "add\nshell true"), 2, "control character"),
            (("--at", "add", "--count", "0"), 2, "--count 0"),
            (("--at", "add", "--for", "-1"), 2, "--for -1"),
            (("--collect", "a"), 2, "--at"),
            (("--nonsense",), 2, "--nonsense"),
    ):
        contains(record("-o", out, *arguments, code=code), part)
    require(not os.path.exists(out), "a file was made")
    contains(record("--at", "add", code=2, guest=False), "--stub")
    contains(record("--at", "add", "-o", "/nonexistent/x", "-y", elf, code=2),
             "no file can be made there: No such file")
    # What cannot be saved stays where it is.
    contains(record("--at", "add", "-o", scratch(""), "-n", "1", "-y", elf,
                    code=1), "the trace frames are in")
    for option in ("--stub", "-s"):
        for port in ("65536", "99999", "99999999999999999999"):
            contains(record("--at", "0x10", option, "localhost:" + port, code=1,
                            guest=False), "a port is 65535 at most")
    with open(scratch("trace.tf"), "w", encoding="ascii") as f:
        f.write("mine")
    contains(record("--at", "add", code=2), "is there already")


def help_is_there():
    for words in ([], ["record"], ["report"]):
        text = subprocess.check_output([TRACE] + words + ["--help"],
                                       encoding="utf-8")
        contains(text, "usage: rhea-trace" + "".join(" " + w for w in words))
        require(all(len(line) < 80 for line in text.splitlines()), "long lines")
        contains(subprocess.check_output([TRACE] + words + ["--version"],
                                         encoding="utf-8"), "rhea-trace 0.")


main([
    names_and_expressions,
    without_gdb,
    the_end_is_a_time_or_a_signal,
    a_guest_that_is_not_ours_runs_on,
    guests_of_32_bits,
    mistakes_are_named,
    help_is_there,
])
