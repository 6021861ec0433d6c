# SPDX-License-Identifier: MIT
"""Debian's kernel with a program of ours (guest/init.c), for tests that run
inside gdb. The kernel has no symbols but those that the program finds in
/proc/kallsyms, and lies where it likes (KASLR)."""
import os
import subprocess

import gdb  # pylint: disable=import-error

import bed
from bed import equal, ex, go, num, scratch, tap

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(HERE))
_built = []


def kernel():
    found = subprocess.run([os.path.join(SOURCE, "scripts/debian-kernel")],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           encoding="utf-8", check=False)
    if found.returncode:
        raise tap.Skip(found.stderr.strip())
    return found.stdout.strip()


def archive(files):
    """An initramfs (cpio, `newc`) of NAME: (MODE, BYTES)."""
    data = b""
    for i, (name, (mode, content)) in enumerate(list(files.items()) +
                                                [("TRAILER!!!", (0, b""))]):
        name = name.encode("ascii") + b"\0"
        fields = (i, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        data += b"070701" + b"".join(b"%08x" % n for n in fields) + name
        data += b"\0" * (-len(data) % 4) + content
        data += b"\0" * (-len(data) % 4)
    return data


def build():
    """The program, and the initramfs in which it is."""
    if not _built:
        elf, initrd = scratch("init"), scratch("initrd")
        subprocess.check_call(
            ["gcc", "-O1", "-g", "-static", "-no-pie", "-fcf-protection=none",
             "-o", elf, os.path.join(HERE, "guest", "init.c")])
        with open(elf, "rb") as f:
            program = f.read()
        with open(initrd, "wb") as f:
            f.write(archive({"init": (0o100755, program),
                             "dev": (0o040755, b"")}))
        _built.extend((elf, initrd))
    return _built


class Debian(bed.Guest):
    """The guest, which stands in `ready`."""

    def __init__(self, options=(), **how):
        elf, initrd = build()
        super().__init__(
            image=kernel(), elf=elf,
            options=["-initrd", initrd, "-m", "256", "-append",
                     "quiet panic=-1"] + list(options), **how)
        self.until_ready()
        self.symbols = {}
        entries = gdb.parse_and_eval("symbols")
        for i in range(entries.type.range()[1] + 1):
            self.symbols[entries[i]["name"].string()] = int(
                entries[i]["address"])

    def until_ready(self):
        ex(self.tbreak + "ready")
        equal(go()[0], "ready", "where it stopped")

    def work(self, work, count):
        """Do work, until it is done."""
        ex("set var work = %s" % work)
        ex("set var count = %d" % count)
        self.until_ready()
        equal(num("count"), count)

    def at(self, name):
        return "*%#x" % self.symbols[name]

    def anew(self):
        """Without what another test has left."""
        for command in ("tstop", "delete", "tfind none"):
            try:
                ex(command)
            except gdb.error:
                pass
