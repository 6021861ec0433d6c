# SPDX-License-Identifier: MIT
"""Debian's kernel with a program of ours (guest/init.c), for tests that run
inside gdb. The kernel has no symbols but those that the program finds in
/proc/kallsyms, and lies where it likes (KASLR)."""
import gdb  # pylint: disable=import-error

import bed
import guest_images
from bed import equal, ex, go, num, scratch, tap


def kernel():
    try:
        return guest_images.debian_kernel()
    except guest_images.NotThere as e:
        raise tap.Skip(str(e)) from e


class Debian(bed.Guest):
    """The guest, which stands in `ready`."""

    def __init__(self, options=(), **how):
        elf, initrd = guest_images.debian(scratch(""))
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
