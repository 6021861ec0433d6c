# SPDX-License-Identifier: MIT
"""
What the makers of images share (see images.py): running QEMU's tools, an image
in the making, what is written into it, and its backing file.
"""
import os
import subprocess
import struct

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


class ToolError(Exception):
    """A program that was to help failed."""


def run(*args, ok=(0,), cwd=None, preexec=None, env=None):
    """Run a program; returns (exit code, stdout + stderr)."""
    p = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                       cwd=cwd, preexec_fn=preexec, env=env, check=False)
    text = p.stdout.decode("utf-8", "replace")
    if ok is not None and p.returncode not in ok:
        raise ToolError("%s: exit %d: %s" % (" ".join(map(str, args)),
                                             p.returncode, text.strip()))
    return p.returncode, text


def copy_sparse(source, target):
    run("cp", "--sparse=always", source, target)


class Image:
    """What was made. guest: a file with the same guest bytes, and its format:
    mostly a copy of the image; a raw file where QEMU cannot open the image."""

    def __init__(self, rng, folder, fmt, max_data, effort=1):
        self.rng = rng
        self.folder = folder
        self.format = fmt
        self.path = os.path.join(folder, "image." + fmt)
        self.max_data = max_data
        self.effort = effort  # how many times as much is done to it
        self.size = 0
        self.cluster_size = 65536
        self.table_size = 0
        self.refcount_bits = 16
        self.compressed = False
        self.subclusters = False
        self.zeroes = False  # has zero clusters, perhaps
        self.backing = None
        self.qemu_opens = True
        self.touched = []  # (offset, length) of what was done to it
        self.gap = 3  # clusters at most
        self.prefers = None  # options for its conversion
        self.loses = []  # what it has and QED has not
        self.text = []  # what is special about it, for messages
        self.guest = None
        self.guest_format = None

    def describe(self):
        return "%s %s" % (self.format, " ".join(self.text))

    def keep_guest(self):
        if self.guest is None:
            self.guest = os.path.join(self.folder, "guest." + self.format)
            self.guest_format = self.format
            copy_sparse(self.path, self.guest)

    @property
    def other(self):
        return "qed" if self.format == "qcow2" else "qcow2"


# --- what is written into them ---------------------------------------------

def places(rng, size, cluster, per_table, effort=1):
    """Offsets around which data is put: the ends, and either side of what one
    second-level table maps."""
    found = [0, max(0, size - 3 * cluster)]
    tables = size // max(per_table, 1)
    for _ in range(rng.randint(0, 3) * effort):
        if tables:
            at = rng.randint(1, tables) * per_table
            found.append(max(0, min(at - cluster, size - 1)))
    return found


def source_file(image, length, compressible):
    """A file of random bytes for `write -s`."""
    rng = image.rng
    name = os.path.join(image.folder, "bytes.%d" % rng.getrandbits(40))
    if compressible:
        unit = rng.randbytes(max(length // 16, 1))
        data = (unit * 17)[:length]
    else:
        data = rng.randbytes(length)
    with open(name, "wb") as f:
        f.write(data)
    return name


def operations(image, kinds, per_table, budget, align=512):
    """qemu-io commands: KINDS is a list of write, zero, unmap, discard,
    compress."""
    rng, size, cluster = image.rng, image.size, image.cluster_size
    spots = places(rng, size, cluster, per_table, image.effort)
    commands, files = [], []
    spent = 0
    for _ in range(rng.randint(3, 14) * image.effort):
        kind = rng.choice(kinds)
        at = rng.choice(spots) + \
            rng.randint(0, 6 * image.effort) * cluster
        if rng.random() < 0.5:
            at += rng.randint(0, max(cluster // align - 1, 0)) * align
        length = rng.choice([align, cluster, cluster // 2 or align,
                             2 * cluster, 3 * cluster + align,
                             rng.randint(1, 8) * align])
        at -= at % align
        if kind == "compress":
            at -= at % cluster
            length = cluster
        if at >= size:
            continue
        length = max(min(length, size - at), 1)
        image.touched.append((at, length))
        if kind in ("write", "compress"):
            # What is written allocates whole clusters.
            cost = (at + length - 1) // cluster - at // cluster + 1
            if spent + cost * cluster > budget and spent:
                continue
            spent += cost * cluster
            name = source_file(image, length, kind == "compress")
            files.append(name)
            flag = "-c " if kind == "compress" else ""
            image.compressed |= kind == "compress"
            commands.append("write -q %s-s %s %d %d" % (flag, name, at, length))
        elif kind == "discard":
            commands.append("discard -q %d %d" % (at, length))
        else:
            image.zeroes = True
            flag = "-u " if kind == "unmap" else ""
            if rng.random() < 0.2:
                length = min(size - at, rng.randint(1, 200) * cluster)
                image.touched.append((at, length))
            # A part of a cluster is written out where it cannot be a zero
            # cluster.
            spent += 2 * cluster
            commands.append("write -q -z %s%d %d" % (flag, at, length))
    return commands, files


def qemu_io(image, commands, abort=False):
    """Run the commands on the image; with ABORT as if the program crashed."""
    args = ["qemu-io", "-f", image.format, "-d", "unmap"]
    for c in commands:
        args += ["-c", c]
    if abort:
        args += ["-c", "abort"]
    args.append(image.path)
    # An aborted qemu-io may leave no core behind.
    code, text = run(*args, ok=None, cwd=image.folder, preexec=no_core)
    # QEMU does not write a compressed cluster over one that is there.
    may_fail = any("write -q -c" in c for c in commands)
    if code != (-6 if abort else 0) and not (may_fail and code == 1):
        raise ToolError("qemu-io: exit %d: %s" % (code, text))


def no_core():
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def fill(image, kinds, per_table, budget=None, abort=False, rounds=1):
    align = 512
    for i in range(rounds):
        commands, files = operations(image, kinds, per_table,
                                     budget or image.max_data, align)
        if not commands and not abort:
            continue
        if abort and i == rounds - 1:
            # Only an allocating write marks the image.
            name = source_file(image, min(image.size, 512), False)
            files.append(name)
            commands.append("write -q -s %s 0 %d"
                            % (name, min(image.size, 512)))
        qemu_io(image, commands, abort and i == rounds - 1)
        for name in files:
            os.unlink(name)


def pick_size(rng, cluster, largest, huge=0.15):
    """A disk size, a multiple of 512."""
    kind = rng.random()
    if kind < huge:
        size = rng.choice([GIB, 100 * GIB, TIB, 5 * TIB, 64 * TIB, 65 * TIB])
        size += rng.choice([0, 512, cluster // 2])
    elif kind < 0.3:
        size = rng.choice([512, 1024, 3584, cluster, cluster + 512])
    elif kind < 0.6:
        size = rng.randint(1, 300) * cluster + rng.choice([0, 512, 1536])
    else:
        size = rng.randint(1, 64) * MIB + rng.randint(0, 2000) * 512
    size = min(size, largest)
    return max(512, size // 512 * 512)


# --- backing files ----------------------------------------------------------

def make_backing(image, how=None, long_name=None):
    """A base for IMAGE; returns (name to be recorded, format)."""
    rng = image.rng
    fmt = how or rng.choice(["raw", "raw", "qcow2", "qed"])
    base = Image(rng, image.folder, fmt, image.max_data)
    base.path = os.path.join(image.folder, "base." + fmt)
    relation = rng.choice(["same", "shorter", "longer", "tiny"])
    size = min(image.size, 2 * TIB)
    if relation == "shorter":
        size = max(512, size // 2 // 512 * 512 + 512)
    elif relation == "longer":
        size = size + 512 * rng.randint(1, 5000)
    elif relation == "tiny":
        size = min(size, 512 * rng.randint(1, 50))
    base.size = size
    base.cluster_size = rng.choice([4096, 65536])
    args = ["qemu-img", "create", "-q", "-f", fmt]
    if fmt == "qcow2":
        args += ["-o", "cluster_size=%d" % max(base.cluster_size, 65536)]
    elif fmt == "qed":
        args += ["-o", "cluster_size=65536"]
    run(*args, base.path, size)
    # It has something wherever the image might have a hole.
    wrote = []
    for at in sorted(set(places(rng, size, image.cluster_size, 0))):
        length = min(4 * image.cluster_size + 512, size - at, image.max_data)
        name = source_file(base, length, False)
        wrote.append(name)
        image.touched.append((at, length))
        qemu_io(base, ["write -q -s %s %d %d" % (name, at, length)])
    for name in wrote:
        os.unlink(name)
    name = os.path.basename(base.path)
    wanted = long_name or rng.choice([0, 0, 0, 100, 400, 900, 1023])
    room = image.cluster_size - 200 if image.format == "qcow2" else 2000
    wanted = min(wanted, room, 1023)
    if wanted > len(name) + 3:
        name = "./" * ((wanted - len(name)) // 2) + name
        if len(name) < wanted and wanted - len(name) == 1:
            name = "." + "/" + "/" + name[2:]
    image.backing = (name, fmt)
    image.text.append("backing=%s/%s/%d" % (fmt, relation, len(name)))
    return name, fmt


def forget_backing_format(path):
    """Take the backing format out of a QCOW2 header, as old QEMUs left it."""
    with open(path, "r+b") as f:
        head = bytearray(f.read(4096))
        version, = struct.unpack_from(">I", head, 4)
        at = struct.unpack_from(">I", head, 100)[0] if version == 3 else 72
        while True:
            magic, length = struct.unpack_from(">II", head, at)
            if magic == 0:
                return False
            if magic == 0xE2792ACA:
                break
            at += 8 + (length + 7) // 8 * 8
        # An extension that any program may ignore would be one we refuse to
        # lose; so end the list here.
        struct.pack_into(">II", head, at, 0, 0)
        f.seek(0)
        f.write(head)
    return True


def describe_options(image, options):
    image.text += ["%s=%s" % kv for kv in options.items()]
    image.text.append("size=%d" % image.size)
