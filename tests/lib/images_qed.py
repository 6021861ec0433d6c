# SPDX-License-Identifier: MIT
"""QED images of many sorts, some of them by hand; see images.py."""
import os
import struct

from image_parts import (MIB, TIB, describe_options, fill, make_backing,
                         pick_size, places, run)


def qed_capacity(cluster_size, table_size):
    entries = cluster_size * table_size // 8
    return entries * entries * cluster_size


def qed_options(image, cluster=None, table=None):
    rng = image.rng
    image.cluster_size = cluster or 1 << rng.choice(
        [12, 12, 13, 14, 15, 16, 16, 16, 16, 17, 18, 20, 21, 22])
    image.table_size = table or rng.choice([2, 4, 4, 8, 16])
    # QEMU computes the capacity in 64 bits and opens nothing that has more.
    while not table and qed_capacity(image.cluster_size,
                                     image.table_size) >= 1 << 64:
        image.table_size //= 2
    return {"cluster_size": image.cluster_size,
            "table_size": image.table_size}


def qed_largest(image):
    return min(qed_capacity(image.cluster_size, image.table_size), 65 * TIB)


def qed_per_table(image):
    return image.cluster_size * image.table_size // 8 * image.cluster_size


def qed_plain(image, cluster=None, table=None, backing=None, abort=False,
              kinds=("write", "write", "write", "zero")):
    rng = image.rng
    options = qed_options(image, cluster, table)
    image.size = pick_size(rng, image.cluster_size, qed_largest(image))
    args = ["qemu-img", "create", "-q", "-f", "qed", "-o",
            ",".join("%s=%s" % kv for kv in options.items())]
    if backing:
        name, fmt = make_backing(image, None if backing is True else backing)
        args += ["-b", name, "-F", fmt]
    run(*args, os.path.basename(image.path), image.size, cwd=image.folder)
    describe_options(image, options)
    fill(image, list(kinds), qed_per_table(image), abort=abort,
         rounds=rng.choice([1, 1, 2]))
    return image


def qed_backed(image):
    return qed_plain(image, backing=True)


def qed_need_check(image):
    image.text.append("need-check")
    return qed_plain(image, backing=image.rng.random() < 0.3, abort=True)


def qed_large_clusters(image):
    """To be split, for QCOW2 has none so large. QEMU opens none larger than
    4 MiB (see qed_options)."""
    rng = image.rng
    cluster = rng.choice([4, 4, 8, 16, 64]) * MIB
    image.max_data = cluster
    if cluster > 4 * MIB:
        return qed_by_hand(image, rng.choice([1, 2, 16]), cluster, 1)
    return qed_plain(image, cluster, 2)


def qed_trailing(image):
    qed_plain(image)
    with open(image.path, "ab") as f:
        f.write(image.rng.randbytes(image.rng.choice(
            [1, 511, 512, image.cluster_size - 1])))
    image.text.append("trailing")
    return image


def qed_zero_clusters(image):
    image.text.append("zeroes")
    return qed_plain(image, backing=True, kinds=["write", "zero", "zero"])


def qed_empty(image):
    return qed_plain(image, kinds=["discard"])


class QedWriter:
    """A QED file by hand, with all the freedom its description leaves: the
    header's length, tables of one cluster, any order of clusters, gaps."""

    def __init__(self, image, header_clusters):
        self.image = image
        self.header_clusters = header_clusters
        self.entries = image.cluster_size * image.table_size // 8
        self.next = header_clusters
        self.tables = {}  # index: (cluster, list of entries)

    def take(self, clusters):
        rng = self.image.rng
        if rng.random() < 0.15:
            self.next += rng.randint(1, self.image.gap)
        at = self.next
        self.next += clusters
        return at

    def map(self, guest_cluster, value):
        index, slot = divmod(guest_cluster, self.entries)
        if index not in self.tables:
            self.tables[index] = (self.take(self.image.table_size), {})
        self.tables[index][1][slot] = value

    def write(self, clusters, features=0, backing=b""):
        """CLUSTERS: a list of (guest cluster, bytes or None for zeroes)."""
        image = self.image
        size, cs = image.size, image.cluster_size
        l1_at = self.take(image.table_size) if image.rng.random() < 0.5 \
            else None
        placed = []
        for guest, data in clusters:
            if data is None:
                self.map(guest, 1)
                continue
            # A table may come before its data, or behind.
            if image.rng.random() < 0.5:
                self.map(guest, 0)
            at = self.take(1)
            placed.append((at, data))
            self.map(guest, at * cs)
        if l1_at is None:
            l1_at = self.take(image.table_size)

        with open(image.path, "wb") as f:
            name_at = 64 if backing else 0
            f.write(struct.pack("<4sIIIQQQQQII", b"QED\0", cs,
                                image.table_size, self.header_clusters,
                                features, 0, 0, l1_at * cs, size, name_at,
                                len(backing)))
            f.write(backing)
            for at, data in placed:
                f.seek(at * cs)
                f.write(data)
            for index, (at, slots) in self.tables.items():
                f.seek(l1_at * cs + index * 8)
                f.write(struct.pack("<Q", at * cs))
                for slot, value in slots.items():
                    f.seek(at * cs + slot * 8)
                    f.write(struct.pack("<Q", value))
            f.truncate(self.next * cs)


def qed_by_hand(image, table=None, cluster=None, most=40):
    rng = image.rng
    qed_options(image, cluster or rng.choice([4096, 4096, 16384, 65536]),
                table or rng.choice([1, 1, 2, 4]))
    header = rng.choice([1, 2, 3, 5])
    image.size = pick_size(rng, image.cluster_size, qed_largest(image),
                           huge=0)
    image.qemu_opens = (
        image.table_size > 1 and
        qed_capacity(image.cluster_size, image.table_size) < 1 << 64)
    image.text += ["by-hand", "cluster_size=%d" % image.cluster_size,
                   "table_size=%d" % image.table_size,
                   "header=%d" % header, "size=%d" % image.size]

    n = (image.size + image.cluster_size - 1) // image.cluster_size
    wanted = min(n, max(image.max_data // image.cluster_size, 2), most)
    guests = set()
    for at in places(rng, image.size, image.cluster_size,
                     qed_per_table(image)):
        for _ in range(wanted // 3 + 1):
            guests.add(min(at // image.cluster_size + rng.randint(0, 12),
                           n - 1))
    guests = sorted(guests)
    rng.shuffle(guests)
    guests = guests[:wanted]
    clusters = []
    for g in guests:
        data = None if rng.random() < 0.2 else \
            rng.randbytes(image.cluster_size)
        image.zeroes |= data is None
        clusters.append((g, data))
    # What lies past the disk's end belongs to nobody, but is in use.
    for g in range(n, min(n + 3, qed_per_table(image) // image.cluster_size)):
        if rng.random() < 0.2:
            clusters.append((g, rng.randbytes(image.cluster_size)))

    base = b""
    features = 0
    raw = os.path.join(image.folder, "guest.raw")
    with open(raw, "wb") as f:
        f.truncate(image.size)
        if rng.random() < 0.3:
            # The base reads as what it holds, then zeroes.
            data = rng.randbytes(min(image.size, 3 * image.cluster_size))
            with open(os.path.join(image.folder, "base.raw"), "wb") as b:
                b.write(data)
            f.write(data)
            base, features = b"base.raw", 1 | 4
            image.backing = ("base.raw", "raw")
            image.text.append("backing=raw")
        for g, data in clusters:
            at = g * image.cluster_size
            data = bytes(image.cluster_size) if data is None else data
            if at < image.size:
                f.seek(at)
                f.write(data[:image.size - at])
    image.guest, image.guest_format = raw, "raw"
    QedWriter(image, header).write(clusters, features, base)
    if rng.random() < 0.3:
        with open(image.path, "ab") as f:
            f.write(rng.randbytes(777))
        image.text.append("trailing")
    return image


def qed_table_1(image):
    return qed_by_hand(image, 1)


def qed_gaps(image):
    """Mostly gaps. On the way to small clusters with wide counts these need
    far more reference counts than what is left in the end."""
    rng = image.rng
    image.gap = rng.choice([300, 1000, 3000])
    qed_by_hand(image, rng.choice([1, 2]), 4096, 20)
    image.prefers = ["cluster_size=%d" % rng.choice([512, 512, 1024, 4096]),
                     "refcount_bits=%d" % rng.choice([32, 64, 64])]
    image.text += ["to:"] + image.prefers
    return image
