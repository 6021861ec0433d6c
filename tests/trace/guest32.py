# SPDX-License-Identifier: MIT
"""A guest of 32 bits. gdb stays with an architecture, so it has its own."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from bed import Guest, equal, ex, main, num, trace  # noqa: E402


def a_guest_of_32_bits():
    with Guest(bits=32, qemu="qemu-system-i386") as g:
        trace("add if b == 2", "collect $args, $regs")
        trace("look", "collect *p")
        ex("tstart")
        last = g.run_turns(10)
        ex("tstop")
        for i in range(10):
            ex("tfind %d" % (2 * i))
            equal(num("a"), last - 9 + i)
            equal(num("$eip") & ~63, num("&add") & ~63)
            ex("tfind %d" % (2 * i + 1))
            equal(num("point.x"), 3 * (last - 9 + i))


main([a_guest_of_32_bits])
