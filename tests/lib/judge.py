# SPDX-License-Identifier: MIT
"""What QEMU's tools say of an image, and running rhea-img on it."""
import hashlib
import json
import os
import resource
import signal

import images
from images import run


class Failure(Exception):
    """A promise that did not hold."""


def require(condition, *text):
    if not condition:
        raise Failure(" ".join(map(str, text)))


def rhea_img():
    return os.environ.get("RHEA_IMG", "rhea-img")


def digest(path):
    """Of size and bytes, whatever of them are holes."""
    block = 1 << 16
    size = os.path.getsize(path)
    h = hashlib.sha256(b"%d " % size)
    at = 0
    with open(path, "rb") as f:
        while at < size:
            try:
                at = max(at, os.lseek(f.fileno(), at, os.SEEK_DATA) //
                         block * block)
            except OSError:  # a hole to the end
                break
            f.seek(at)
            data = f.read(block)
            if data.strip(b"\0"):
                h.update(b"%d " % at + data)
            at += block
    return h.hexdigest()


# --- QEMU as the judge -------------------------------------------------------

def probe(path):
    """The image's format by what the file begins with."""
    with open(path, "rb") as f:
        magic = f.read(4)
    return {b"QFI\xfb": "qcow2", b"QED\0": "qed"}.get(magic, "raw")


def qed_header(path):
    with open(path, "rb") as f:
        head = f.read(64)
    number = lambda at, n: int.from_bytes(head[at:at + n], "little")
    return number(4, 4), number(8, 4)


def qed_false_leaks(path):
    """qemu-img check divides by the cluster size less one when it counts the
    clusters of a QED file, and calls the surplus leaks."""
    cluster, _ = qed_header(path)
    clusters = os.path.getsize(path) // cluster
    return clusters // (cluster - 1)


def check(path, fmt, leaks_allowed=False):
    """qemu-img check finds nothing wrong, and no leak."""
    code, text = run("qemu-img", "check", "-f", fmt, "--output=json", path,
                     ok=None)
    try:
        found = json.loads(text[text.index("{"):])
    except ValueError:
        raise Failure("qemu-img check: exit %d: %s" % (code, text)) from None
    leaks = found.get("leaks", 0)
    if fmt == "qed":
        leaks -= qed_false_leaks(path)
    require(code in (0, 3) and not found.get("corruptions") and
            not found.get("check-errors"),
            "qemu-img check: exit %d: %s" % (code, text))
    require(leaks_allowed or leaks == 0, leaks, "leaks in", path, text)
    return leaks


def breaks_block_status(path, fmt):
    """QEMU multiplies clusters by their size in 32 bits when it says how a QED
    disk is mapped, and aborts where a run of 4 GiB in one table makes 0."""
    if fmt != "qed":
        return False
    cluster, table = qed_header(path)
    return cluster * cluster * table // 8 >= 1 << 32


def read_window(path, fmt, block, count):
    """COUNT MiB of the guest's bytes from MiB number BLOCK on."""
    out = os.path.join(os.path.dirname(path), "window.raw")
    run("qemu-img", "dd", "-f", fmt, "-O", "raw", "bs=1M", "skip=%d" % block,
        "count=%d" % (block + count), "if=" + path, "of=" + out)
    with open(out, "rb") as f:
        data = f.read()
    os.unlink(out)
    return data


def compare_windows(a, a_format, b, b_format, touched):
    """As compare, but by QEMU only around what was TOUCHED, a list of (offset,
    length); everywhere by ourselves."""
    done = 0
    for at, length in sorted(touched):
        block = max(done, (at >> 20) - 2)
        done = max(done, (min(at + length, at + (64 << 20)) >> 20) + 3)
        if block >= done:
            continue
        require(read_window(a, a_format, block, done - block) ==
                read_window(b, b_format, block, done - block),
                "guest bytes differ between MiB", block, "and", done)
    code, text = run(rhea_img(), "compare", "-f", a_format, "-F", b_format,
                     a, b, ok=None)
    require(code == 0, "rhea-img compare: exit %d: %s" % (code, text.strip()))


def compare_image(image, path, fmt):
    """PATH holds what IMAGE held when it was made."""
    if image.size >= 1 << 32 and (
            breaks_block_status(image.guest, image.guest_format) or
            breaks_block_status(path, fmt)):
        compare_windows(image.guest, image.guest_format, path, fmt,
                        image.touched)
    else:
        compare(image.guest, image.guest_format, path, fmt)


def compare(a, a_format, b, b_format):
    """The guest bytes are the same, and the disks' sizes too."""
    code, text = run("qemu-img", "compare", "-f", a_format, "-F", b_format,
                     a, b, ok=None)
    # It only warns where one disk is larger, with zeroes.
    require(code == 0 and "Warning" not in text,
            "qemu-img compare: exit %d: %s" % (code, text.strip()))


def write_and_check(path, fmt, rng, size):
    """QEMU writes to a copy of the image at once, and finds it sound."""
    copy = path + ".written"
    images.copy_sparse(path, copy)
    commands = []
    for at in (0, rng.randint(0, (size - 1) // 512) * 512, size - 512):
        length = min(size - at, rng.choice([512, 4096, 70144]))
        commands += ["-c", "write -q -P 0x5a %d %d" % (at, length),
                     "-c", "read -q -P 0x5a %d %d" % (at, length)]
    at = rng.randint(0, (size - 1) // 512) * 512
    commands += ["-c", "write -q -z %d %d" % (at, min(size - at, 65536)),
                 "-c", "discard -q 0 %d" % min(size, 1 << 20)]
    code, text = run("qemu-io", "-f", fmt, *commands, copy, ok=None)
    require(code == 0 and not text.strip(),
            "qemu-io: exit %d: %s" % (code, text))
    check(copy, fmt)
    os.unlink(copy)


def sound(image, path):
    """As after a crash: whole, of either format, with IMAGE's guest bytes;
    leaks are allowed. Returns the format."""
    fmt = probe(path)
    require(fmt in ("qcow2", "qed"), path, "is no image any more")
    check(path, fmt, leaks_allowed=True)
    compare_image(image, path, fmt)
    return fmt


def finished(image, path, fmt):
    """As after the conversion: of format FMT, with IMAGE's guest bytes and not
    a cluster leaked."""
    require(probe(path) == fmt, path, "is no", fmt, "image")
    check(path, fmt)
    compare_image(image, path, fmt)


# --- rhea-img ----------------------------------------------------------------

def convert_inplace(path, target, options=(), *more, limit=None, ok=(0,)):
    """Returns (exit code, output). The file may not grow past LIMIT."""
    def preexec():
        images.no_core()
        if limit is not None:
            # Then a write past it fails, and does not kill.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    args = [rhea_img(), "convert-inplace", "-O", target]
    if options:
        args += ["-o", ",".join(options)]
    code, text = run(*args, *more, path, ok=None, preexec=preexec)
    if ok is not None:
        require(code in ok, "convert-inplace -O %s %s: exit %d: %s" %
                (target, " ".join(options), code, text.strip()))
    return code, text


def accept_losses(image):
    return ["--allow-loss=" + ",".join(image.loses)] if image.loses else []


def plan(path, target, options=(), *more):
    """What --dry-run prints for scripts; the file stays as it is."""
    before = digest(path)
    code, text = convert_inplace(path, target, options, "--dry-run", "--json",
                                 *more, ok=None)
    require(digest(path) == before, "--dry-run changed the file")
    require(code == 0, "convert-inplace --dry-run -O %s %s: exit %d: %s" %
            (target, " ".join(options), code, text.strip()))
    return json.loads(text[text.index("{"):])


def strace(path, target, *args, more=()):
    """Run the conversion under strace, as `run` does."""
    # The sanitizers' leak check cannot run under it.
    env = dict(os.environ, ASAN_OPTIONS="detect_leaks=0")
    return run("strace", "-f", "-qq", *args, rhea_img(), "convert-inplace",
               "-O", target, *more, path, ok=None, env=env,
               preexec=images.no_core)


def count_writes(path, target):
    """How many calls of pwrite64 a conversion of the file makes, and which
    one (from 1) commits."""
    copy = path + ".counted"
    log = path + ".log"
    images.copy_sparse(path, copy)
    code, text = strace(copy, target, "-o", log, "-e", "trace=pwrite64")
    require(code == 0, "under strace: exit", code, text)
    writes = commit = 0
    with open(log, encoding="utf-8", errors="replace") as f:
        for line in f:
            writes += "pwrite64(" in line
            if line.rstrip().endswith(", 512, 0) = 512") and not commit:
                commit = writes
    os.unlink(copy)
    os.unlink(log)
    require(commit, "found no commit among", writes, "writes")
    return writes, commit
