# SPDX-License-Identifier: MIT
"""Guests under rhea-trace, for tests that run inside gdb.

    gdb -nx -batch -x TEST.py

Each test has a guest of its own, or several share one that is reset by the
test (`with bed.Guest() as g`). gdb's commands are run by `ex`, which returns
what gdb printed; values are read by `num`.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import gdb  # pylint: disable=import-error

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import guest_images  # noqa: E402
import judge  # noqa: E402,F401
import tap  # noqa: E402,F401

sys.path.insert(0, HERE)

from remote import die_with_parent, is_listened_on  # noqa: E402

TRACE = os.environ.get("RHEA_TRACE") or os.path.join(
    os.environ["RHEA_BUILD"], "tools/rhea-trace/rhea-trace")
# How hits are to be noticed; "auto" is the plugin, for guests that we start.
WAY = os.environ.get("RHEA_TRACE_WAY") or "auto"
PLUGIN = WAY in ("auto", "plugin")
# The QEMU that scripts/newer-qemu fetches, and not the one that is installed.
NEWER = bool(os.environ.get("RHEA_TRACE_NEWER_QEMU"))
# What gdb itself says goes to a file; results go where the output was to go.
_out = None
_scratch = tempfile.mkdtemp(prefix="trace-")


def clean():
    shutil.rmtree(_scratch, ignore_errors=True)


def scratch(name):
    return os.path.join(_scratch, name)


def build(bits=64, source="guest.c"):
    """The bare-metal guest: its ELF file, and the image that boots."""
    return guest_images.bare_metal(_scratch, bits, source)


def ex(command):
    return gdb.execute(command, to_string=True)


def go(command="continue"):
    """Let the guest run; the function in which it stops, and what gdb says."""
    gdb.flush()
    at = os.fstat(1).st_size
    gdb.execute(command)
    gdb.flush()
    with open(_out, encoding="utf-8", errors="replace") as f:
        f.seek(at)
        text = f.read()
    return gdb.selected_frame().name(), text


def num(expression):
    return int(gdb.parse_and_eval(expression))


def require(condition, message="not so"):
    if not condition:
        raise judge.Failure(message)


def equal(got, want, what="the value"):
    if got != want:
        raise judge.Failure("%s is %r, not %r" % (what, got, want))


def contains(text, part):
    if part not in text:
        raise judge.Failure("not %r in:\n%s" % (part, text))


def match(text, pattern):
    found = re.search(pattern, text)
    if not found:
        raise judge.Failure("no match of %r in:\n%s" % (pattern, text))
    return found


def fails(command, part=""):
    try:
        text = ex(command)
    except gdb.error as e:
        contains(str(e), part)
        return str(e)
    raise judge.Failure("%s did not fail:\n%s" % (command, text))


def trace(where, *actions, before=""):
    """A tracepoint with actions; its number."""
    text = ex("%s %s" % (before or "trace", where))
    number = match(text, r"racepoint (\d+) at").group(1)
    if actions:
        path = scratch("actions.gdb")
        with open(path, "w", encoding="ascii") as f:
            f.write("actions %s\n%s\nend\n" % (number, "\n".join(actions)))
        ex("source " + path)
    return int(number)


class Guest:
    """A guest under rhea-trace, with gdb connected."""

    def __init__(self, bits=64, qemu="qemu-system-x86_64", options=(),
                 own=(), image=None, elf=None, connect=True, remote="remote",
                 stopped=True, kernel="-kernel", source="guest.c",
                 hardware=False):
        """HARDWARE: gdb uses the processor's breakpoints."""
        self.elf, self.image = ((elf, image) if image
                                else build(bits, source))
        self.tbreak = "thbreak " if hardware else "tbreak "
        self.socket = scratch("gdb-%d" % time.monotonic_ns())
        self.file = self.socket + ".frames"
        self.log = open(self.socket + ".log", "w+b")
        self.remote = remote
        self.fresh = image is None and stopped
        self.process = subprocess.Popen(
            [TRACE, "-l", self.socket, "-f", self.file, "-q", "-w", WAY] +
            list(own) +
            ["--", qemu, "-display", "none", "-monitor", "none", "-serial",
             "none", "-nodefaults", kernel, self.image] +
            ["-S"] * stopped + list(options),
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            preexec_fn=die_with_parent)
        self.wait_for_socket()
        if connect:
            self.connect()

    def wait_for_socket(self):
        end = time.monotonic() + 60
        while not is_listened_on(self.socket):
            if self.process.poll() is not None or time.monotonic() > end:
                raise judge.Failure("rhea-trace did not start: " +
                                    self.output())
            time.sleep(0.005)

    def output(self):
        self.log.flush()
        with open(self.log.name, encoding="utf-8", errors="replace") as f:
            return f.read()

    def connect(self):
        if self.elf:
            ex("file " + self.elf)
        for _ in range(50):
            try:
                ex("target %s %s" % (self.remote, self.socket))
                break
            except gdb.error as e:
                # The socket is there a moment before it can be connected to.
                if "refused" not in str(e):
                    raise
                time.sleep(0.02)
        if self.fresh:
            # Until then the firmware runs, and memory is not the guest's yet.
            self.fresh = False
            ex(self.tbreak + "main")
            equal(go()[0], "main", "where it stopped")

    def run_turns(self, n):
        """Run until `turns` is N more; the new value."""
        last = num("turns") + n
        ex("set var last=%d" % last)
        ex(self.tbreak + "finished")
        equal(go()[0], "finished", "where it stopped")
        ex("set var last=0")
        equal(num("turns"), last, "turns")
        return last

    def close(self):
        for command in ("delete", "delete tvariable", "tfind none",
                        "set disconnected-tracing off",
                        "set circular-trace-buffer off",
                        "set trace-buffer-size -1", "set default-collect",
                        "kill", "disconnect", "file"):
            try:
                ex(command)
            except gdb.error:
                pass
        if self.process.poll() is None:
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.terminate()
                self.process.wait(10)
        self.log.close()
        for path in (self.file, self.socket):
            if os.path.exists(path):
                os.unlink(path)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.close()


def main(tests, after=None):
    """AFTER: what is to be done at the end."""
    global _out  # pylint: disable=global-statement
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    _out = scratch("gdb.out")
    log = os.open(_out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for command in ("set confirm off", "set pagination off", "set width 0",
                    "set print thread-events off", "set debuginfod enabled off",
                    "set breakpoint pending off"):
        ex(command)
    if NEWER:
        try:
            guest_images.use_newer_qemu()
        except guest_images.NotThere as e:
            print("1..0 # SKIP " + str(e), flush=True)
            clean()
            os._exit(0)
    names = sys.argv[1:]
    tests = [t for t in tests
             if not names or any(n in t.__name__ for n in names)]
    code = tap.main(tests)
    if after:
        after()
    clean()
    sys.stdout.flush()
    os._exit(code)
