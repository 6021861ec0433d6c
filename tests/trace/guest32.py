# SPDX-License-Identifier: MIT
"""Guests of 32 bits. gdb stays with an architecture, so they have a gdb of
their own."""
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from bed import (Guest, contains, equal, ex, main, num,  # noqa: E402
                 require, scratch, trace)


HERE = os.path.dirname(os.path.abspath(__file__))


def trace_turns(g):
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
    ex("tfind none")


def a_guest_of_32_bits():
    with Guest(bits=32, qemu="qemu-system-i386") as g:
        contains(ex("monitor rhea"), "as the stub has them")
        trace_turns(g)


def one_under_qemu_for_x86_64():
    """QEMU's own stub gives gdb more registers than it takes."""
    with Guest(bits=32, own=["--arch", "i386"]) as g:
        contains(ex("monitor rhea"), "registers: i386")
        trace_turns(g)
        # All that gdb writes gets to its place.
        for name, value in (("eax", 0x12345678), ("edi", 0xfedcba98),
                            ("eflags", 0x46)):
            ex("set var $%s = %d" % (name, value))
        ex("set var $xmm3.v4_int32[2] = 77")
        ex("flushregs")
        equal(num("$eax"), 0x12345678)
        equal(num("$edi") & 0xffffffff, 0xfedcba98)
        equal(num("$eflags"), 0x46)
        equal(num("$xmm3.v4_int32[2]"), 77)
        require(num("$cr0") & 1)
        equal(num("$cs"), 8)


def it_is_found_out_from_a_guest_that_runs():
    with Guest(bits=32, stopped=False, connect=False) as g:
        time.sleep(1)
        for _ in range(50):
            g.connect()
            if "registers: i386" in ex("monitor rhea"):
                break
            ex("disconnect")  # still in the firmware
            time.sleep(0.2)
        g.run_turns(1)  # it may have been anywhere
        trace_turns(g)


def boot_sector():
    """The code of real mode: its ELF file, and the disk."""
    name = scratch("real16")
    run = subprocess.check_call
    run(["gcc", "-m32", "-c", "-o", name + ".o",
         os.path.join(HERE, "guest", "real16.S")])
    run(["ld", "-m", "elf_i386", "--build-id=none", "-Ttext", "0x7c00",
         "-o", name, name + ".o"])
    run(["objcopy", "-O", "binary", "-j", ".text", name, name + ".bin"])
    return name, name + ".bin"


def trace_in_real_mode(qemu, own):
    elf, disk = boot_sector()
    with Guest(elf=elf, image=disk, qemu=qemu, own=own, kernel="-hda") as g:
        # gdb does not know of segments: to it, the stop is nobody's.
        ex("break *&finished")
        ex("continue")
        equal(num("*(short *) &turns"), 0)
        trace("*&add16 if ($eax & 1) == 0", "collect $regs, *(short *) &turns")
        ex("tstart")
        ex("set var *(short *) &last = 20")
        ex("stepi")
        ex("continue")
        ex("tstop")
        contains(ex("tstatus"), "Collected 10 trace frames")
        for i in range(10):
            ex("tfind %d" % i)
            n = 2 * (i + 1)
            equal((num("$ax"), num("$bx"), num("$ecx")), (n, 2 * n, 0x12345678))
            equal(num("$cs"), 0x7c0)
            equal(num("$eip") + 0x7c00, num("&add16"))
            equal(num("*(short *) &turns"), n)
        del g


def real_mode():
    trace_in_real_mode("qemu-system-i386", ())


def real_mode_under_qemu_for_x86_64():
    trace_in_real_mode("qemu-system-x86_64", ("--arch", "i8086"))


main([
    a_guest_of_32_bits,
    one_under_qemu_for_x86_64,
    it_is_found_out_from_a_guest_that_runs,
    real_mode,
    real_mode_under_qemu_for_x86_64,
])
