# SPDX-License-Identifier: MIT
"""QCOW2 images of many sorts; see images.py."""
import os
import struct

from image_parts import (MIB, TIB, describe_options, fill,
                         forget_backing_format, make_backing, pick_size,
                         qemu_io, run)


def qcow2_create(image, options, backing=None, record=True):
    args = ["qemu-img", "create", "-q", "-f", "qcow2", "-o",
            ",".join("%s=%s" % kv for kv in options.items())]
    if backing:
        args += ["-b", backing[0], "-F", backing[1]]
    run(*args, os.path.basename(image.path), image.size, cwd=image.folder)
    if backing and not record:
        if forget_backing_format(image.path):
            image.text.append("format-unstated")


def qcow2_options(image, cluster=None, version=None):
    rng = image.rng
    options = {}
    image.cluster_size = cluster or 1 << rng.choice(
        [9, 10, 11, 12, 12, 13, 14, 15, 16, 16, 16, 16, 17, 18, 20, 21])
    options["cluster_size"] = image.cluster_size
    v3 = version == 3 or (version is None and rng.random() < 0.75)
    options["compat"] = "1.1" if v3 else "0.10"
    if v3:
        image.refcount_bits = rng.choice([1, 2, 4, 8, 16, 16, 16, 32, 64])
        options["refcount_bits"] = image.refcount_bits
        if rng.random() < 0.3:
            options["lazy_refcounts"] = "on"
    return options


def qcow2_largest(image, subclusters=False):
    """The largest disk that QEMU takes."""
    entries = image.cluster_size // (16 if subclusters else 8)
    return min(entries * image.cluster_size * (4 * MIB), 65 * TIB,
               # tables that QEMU reads entry by entry: keep it quick
               entries * image.cluster_size * 200000)


def per_table(image):
    entries = image.cluster_size // (16 if image.subclusters else 8)
    return entries * image.cluster_size


def qcow2_plain(image, cluster=None, version=None, backing=None,
                kinds=("write", "write", "zero", "unmap", "discard"),
                abort=False, **more):
    rng = image.rng
    options = qcow2_options(image, cluster, version)
    options.update(more)
    if options.get("extended_l2") == "on":
        image.subclusters = True
    image.size = pick_size(rng, image.cluster_size,
                           qcow2_largest(image, image.subclusters))
    record = True
    if backing:
        backing = make_backing(image, None if backing is True else backing)
        record = rng.random() < 0.7
    qcow2_create(image, options, backing, record)
    describe_options(image, options)
    fill(image, list(kinds), per_table(image), abort=abort,
         rounds=rng.choice([1, 1, 2]))
    return image


def qcow2_backed(image):
    return qcow2_plain(image, backing=True)


def qcow2_small_clusters(image):
    return qcow2_plain(image, cluster=image.rng.choice([512, 1024, 2048]),
                       backing=image.rng.random() < 0.4)


def qcow2_refcounts(image):
    """Narrow and wide counts, over more clusters than one block counts."""
    rng = image.rng
    return qcow2_plain(image, cluster=rng.choice([4096, 8192]), version=3,
                       refcount_bits=set_bits(image,
                                              rng.choice([1, 2, 4, 32, 64])))


def set_bits(image, bits):
    image.refcount_bits = bits
    return bits


def qcow2_lazy_dirty(image):
    image.text.append("dirty")
    return qcow2_plain(image, version=3, lazy_refcounts="on", abort=True)


def qcow2_crashed(image):
    """Closed by a crash, without lazy refcounts: perhaps leaks."""
    image.text.append("aborted")
    return qcow2_plain(image, abort=True)


def qcow2_compressed(image, method="zlib"):
    rng = image.rng
    v = 3 if method == "zstd" else None
    more = {"compression_type": method} if method == "zstd" else {}
    cluster = rng.choice([512, 4096, 16384, 65536, 65536, 262144, 2 * MIB])
    kinds = ["compress", "compress", "compress", "write", "zero", "discard"]
    image.max_data = max(image.max_data, 2 * cluster)
    return qcow2_plain(image, cluster, v, rng.random() < 0.4, kinds, **more)


def qcow2_zstd(image):
    return qcow2_compressed(image, "zstd")


def qcow2_subclusters(image, backing=None, zstd=False):
    rng = image.rng
    cluster = 1 << rng.choice([14, 15, 16, 16, 17, 18])
    kinds = ["write", "write", "zero", "unmap", "discard"]
    if rng.random() < 0.3:
        kinds.append("compress")
    backing = rng.random() < 0.5 if backing is None else backing
    return qcow2_plain(image, cluster, 3, backing, kinds, extended_l2="on")


def qcow2_preallocated(image):
    rng = image.rng
    options = qcow2_options(image, cluster=rng.choice([4096, 65536, 131072]))
    mode = rng.choice(["metadata", "falloc", "full"])
    options["preallocation"] = mode
    image.size = rng.randint(1, 40) * 512 * rng.choice([1, 16, 128])
    if mode == "metadata" and rng.random() < 0.3:
        image.size = 64 * MIB + 512
    else:
        image.size = min(image.size, image.max_data // 512 * 512)
    qcow2_create(image, options)
    describe_options(image, options)
    if rng.random() < 0.7:
        fill(image, ["write", "zero", "discard", "unmap"], per_table(image))
    return image


def qcow2_zero_clusters(image):
    """Mostly zero clusters, with and without a host cluster."""
    image.text.append("zeroes")
    return qcow2_plain(image, version=3, backing=image.rng.random() < 0.5,
                       kinds=["write", "zero", "zero", "unmap", "unmap"])


def qcow2_resized(image):
    """A first-level table longer than the disk needs, or one that moved."""
    rng = image.rng
    options = qcow2_options(image, cluster=rng.choice([512, 4096, 65536]))
    image.size = pick_size(rng, image.cluster_size, 64 * MIB, huge=0)
    qcow2_create(image, options)
    describe_options(image, options)
    fill(image, ["write", "zero", "discard"], per_table(image),
         image.max_data // 2)
    image.size = max(512, rng.choice([image.size // 2, image.size * 3 + 512,
                                      image.size + 256 * MIB]) // 512 * 512)
    run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", image.path,
        image.size)
    image.text.append("resized=%d" % image.size)
    fill(image, ["write", "zero", "discard"], per_table(image),
         image.max_data // 2)
    return image


def qcow2_snapshotted(image):
    """Had a snapshot, which is gone: gaps, clusters out of order."""
    rng = image.rng
    qcow2_plain(image, cluster=rng.choice([4096, 65536]),
                refcount_bits=set_bits(image, 16), compat="1.1")
    run("qemu-img", "snapshot", "-c", "s", image.path)
    fill(image, ["write", "write", "zero"], per_table(image))
    run("qemu-img", "snapshot", "-d", "s", image.path)
    image.text.append("snapshot-gone")
    return image


def qcow2_amended(image):
    """From one version to the other; and with a bitmap that is gone."""
    rng = image.rng
    qcow2_plain(image, cluster=rng.choice([4096, 65536]), version=3,
                refcount_bits=set_bits(image, 16), lazy_refcounts="off")
    if rng.random() < 0.5:
        run("qemu-img", "bitmap", "--add", "-f", "qcow2", image.path, "b")
        run("qemu-img", "bitmap", "--remove", "-f", "qcow2", image.path, "b")
        image.text.append("bitmap-gone")
    run("qemu-img", "amend", "-f", "qcow2", "-o", "compat=0.10", image.path)
    image.text.append("amended=0.10")
    if rng.random() < 0.5:
        run("qemu-img", "amend", "-f", "qcow2", "-o", "compat=1.1",
            image.path)
        image.text.append("amended=1.1")
        if rng.random() < 0.5:
            shorten_header(image.path)
            image.text.append("header=104")
    fill(image, ["write", "discard"], per_table(image))
    return image


def shorten_header(path):
    """As QEMU wrote it before there were compression types."""
    with open(path, "r+b") as f:
        head = bytearray(f.read(512))
        length, = struct.unpack_from(">I", head, 100)
        assert length == 112 and not any(head[104:112])
        at = length
        while head[at:at + 4] != bytes(4):
            size, = struct.unpack_from(">I", head, at + 4)
            at += 8 + (size + 7) // 8 * 8
        head[104:at] = head[112:at + 8]
        head[at:at + 8] = bytes(8)
        struct.pack_into(">I", head, 100, 104)
        f.seek(0)
        f.write(head)


def qcow2_losses(image):
    """With internal snapshots and bitmaps, which are to be lost."""
    rng = image.rng
    qcow2_plain(image, cluster=rng.choice([512, 4096, 65536]),
                refcount_bits=set_bits(image, 16), compat="1.1")
    for i in range(rng.randint(0, 3)):
        run("qemu-img", "snapshot", "-c", "s%d" % i, image.path)
        image.loses = ["snapshots"]
        fill(image, ["write", "write", "zero"], per_table(image))
    if not image.loses or rng.random() < 0.6:
        run("qemu-img", "bitmap", "--add", "-f", "qcow2", image.path, "b")
        fill(image, ["write", "zero"], per_table(image))
        image.loses.append("bitmaps")
    image.text += ["loses"] + image.loses
    return image


def qcow2_trailing(image):
    """Bytes behind the last cluster, as a crash or a block device leaves."""
    qcow2_plain(image)
    with open(image.path, "ab") as f:
        f.write(image.rng.randbytes(image.rng.choice([1, 511, 512, 70000])))
    image.text.append("trailing")
    return image


def qcow2_empty(image):
    options = qcow2_options(image)
    image.size = pick_size(image.rng, image.cluster_size, qcow2_largest(image))
    qcow2_create(image, options)
    describe_options(image, options)
    return image


def qcow2_huge(image):
    rng = image.rng
    options = qcow2_options(image, cluster=rng.choice([65536, 262144,
                                                       2 * MIB]))
    image.size = rng.choice([TIB, 64 * TIB - 512, 64 * TIB, 64 * TIB + 512])
    image.size = min(image.size, qcow2_largest(image))
    qcow2_create(image, options)
    describe_options(image, options)
    fill(image, ["write", "zero", "discard"], per_table(image))
    return image


def qcow2_gaps(image):
    """Data was at the beginning and has been discarded, so that tables of many
    clusters move to where it was, past what was written later."""
    rng = image.rng
    options = qcow2_options(image, cluster=4096)
    image.size = rng.choice([8, 64]) * MIB + 512 * rng.randint(0, 9)
    qcow2_create(image, options)
    describe_options(image, options)
    first = rng.randint(20, 300) * 4096
    image.touched.append((0, 2 * first))
    qemu_io(image, ["write -q -P 7 0 %d" % first])
    fill(image, ["write"], per_table(image), image.max_data // 2)
    for _ in range(rng.randint(1, 12)):
        at = rng.randint(0, first // 4096 - 1) * 4096
        length = rng.randint(1, 40) * 4096
        qemu_io(image, ["discard -q %d %d" % (at, min(length, first - at))])
    image.prefers = ["table_size=%d" % rng.choice([2, 4, 8, 16, 16])]
    image.text += ["to:"] + image.prefers
    return image
