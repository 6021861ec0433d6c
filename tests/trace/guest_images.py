# SPDX-License-Identifier: MIT
"""The guests of tests and measurements, built into a folder."""
import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(HERE))
FLAGS = {
    64: ["-m64", "-mno-red-zone", "-mcmodel=small"],
    32: ["-m32"],
}


class NotThere(Exception):
    """What Debian has is not there; the reason."""


def bare_metal(folder, bits=64, source="guest.c"):
    """A bare-metal guest: its ELF file, and the image that boots."""
    name = os.path.join(folder, "%s-%d" % (source.split(".")[0], bits))
    if os.path.exists(name + ".bin"):
        return name, name + ".bin"
    run = subprocess.check_call
    run(["gcc", "-O0", "-g", "-ffreestanding", "-fno-pic", "-no-pie",
         "-fno-stack-protector", "-fcf-protection=none",
         "-fno-asynchronous-unwind-tables", "-c", "-o", name + ".o",
         os.path.join(HERE, "guest", source)] + FLAGS[bits])
    run(["gcc", FLAGS[bits][0], "-c", "-o", name + "-boot.o",
         os.path.join(HERE, "guest", "boot%d.S" % bits)])
    run(["ld", "-m", "elf_x86_64" if bits == 64 else "elf_i386", "-n",
         "--build-id=none", "--no-warn-rwx-segments", "-z", "noexecstack",
         "-T", os.path.join(HERE, "guest", "guest.lds"), "-o", name,
         name + "-boot.o", name + ".o"])
    run(["objcopy", "-O", "binary", name, name + ".bin"])
    return name, name + ".bin"


def fetched(script):
    """The path that one of the project's scripts prints."""
    found = subprocess.run([os.path.join(SOURCE, "scripts", script)],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           encoding="utf-8", check=False)
    if found.returncode:
        raise NotThere(" ".join(found.stderr.split()))
    return found.stdout.strip()


def debian_kernel():
    return fetched("debian-kernel")


def use_newer_qemu():
    """Every QEMU that is started from now on."""
    os.environ["PATH"] = fetched("newer-qemu") + ":" + os.environ["PATH"]


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


def debian(folder):
    """The program of a Debian guest, and the initramfs in which it is."""
    elf, initrd = os.path.join(folder, "init"), os.path.join(folder, "initrd")
    if os.path.exists(initrd):
        return elf, initrd
    subprocess.check_call(
        ["gcc", "-O1", "-g", "-static", "-no-pie", "-fcf-protection=none",
         "-o", elf, os.path.join(HERE, "guest", "init.c")])
    with open(elf, "rb") as f:
        program = f.read()
    with open(initrd, "wb") as f:
        f.write(archive({"init": (0o100755, program), "dev": (0o040755, b"")}))
    return elf, initrd
