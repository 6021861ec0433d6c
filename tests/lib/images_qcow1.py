# SPDX-License-Identifier: MIT
"""QCOW images of version 1, written and read by a program that shares nothing
with the one that is tested."""
import random
import struct
import zlib

COMPRESSED = 1 << 63


class Image:
    """A file in the making. SIZE in bytes."""

    def __init__(self, size, cluster_bits=12, l2_bits=9, **how):
        self.size, self.cluster_bits, self.l2_bits = size, cluster_bits, l2_bits
        self.cluster = 1 << cluster_bits
        self.name = how.get('name', b'')
        self.l1_at = (48 + len(self.name) + 7) & ~7
        self.l1_at += how.get('gap', 0)
        self.l1 = [0] * -(-size >> cluster_bits + l2_bits)
        self.l2 = {}  # L1 index: entries
        self.file = bytearray(self.l1_at + 8 * len(self.l1))
        self.guest = {}  # cluster: what it holds

    def align(self, unit):
        self.file += bytes(-len(self.file) % unit)
        return len(self.file)

    def table(self, index):
        if not self.l1[index]:
            self.l1[index] = self.align(self.cluster)
            self.file += bytes(8 << self.l2_bits)
            self.l2[index] = [0] * (1 << self.l2_bits)
        return self.l2[index]

    def entry(self, cluster, value=None):
        table = self.table(cluster >> self.l2_bits)
        at = cluster & (1 << self.l2_bits) - 1
        if value is not None:
            table[at] = value
        return table[at]

    def put(self, cluster, data, packed=False):
        data = data.ljust(self.cluster, b'\0')
        self.table(cluster >> self.l2_bits)
        self.guest[cluster] = data
        z = zlib.compressobj(9, zlib.DEFLATED, -12)
        small = z.compress(data) + z.flush()
        if packed and len(small) < self.cluster:
            self.entry(cluster, COMPRESSED | len(self.file) | len(small)
                       << 63 - self.cluster_bits)
            self.file += small
        else:
            self.entry(cluster, self.align(self.cluster))
            self.file += data

    def scatter(self, seed, chance=0.4, packed=0.3):
        rng = random.Random(seed)
        order = list(range(-(-self.size // self.cluster)))
        rng.shuffle(order)
        for cluster in order:
            if rng.random() < chance:
                data = rng.randbytes(self.cluster)
                if rng.random() < packed:
                    data = rng.randbytes(self.cluster // 4) * 4
                self.put(cluster, data, packed=True)
        return self

    def header(self):
        return struct.pack('>IIQIIQBBHIQ', 0x514649fb, 1,
                           48 if self.name else 0, len(self.name), 0, self.size,
                           self.cluster_bits, self.l2_bits, 0, 0, self.l1_at)

    def write(self, path):
        f = self.file
        f[:48] = self.header()
        f[48:48 + len(self.name)] = self.name
        struct.pack_into(f'>{len(self.l1)}Q', f, self.l1_at, *self.l1)
        for index, entries in self.l2.items():
            struct.pack_into(f'>{len(entries)}Q', f, self.l1[index], *entries)
        with open(path, 'wb') as out:
            out.write(f)
        return self

    def flatten(self, below=b''):
        out = bytearray(below.ljust(self.size, b'\0')[:self.size])
        for cluster, data in self.guest.items():
            at = cluster * self.cluster
            out[at:at + self.cluster] = data
        return bytes(out[:self.size])


class Reader:
    """An image that is not encrypted, as it is in a file."""

    def __init__(self, path):
        with open(path, 'rb') as f:
            self.file = f.read()
        (magic, version, name_at, name_len, _, self.size, self.cluster_bits,
         self.l2_bits, _, self.method, self.l1_at) = struct.unpack_from(
             '>IIQIIQBBHIQ', self.file)
        assert (magic, version) == (0x514649fb, 1)
        self.name = self.file[name_at:name_at + name_len] if name_at else b''
        self.cluster = 1 << self.cluster_bits
        n = -(-self.size >> self.cluster_bits + self.l2_bits)
        self.l1 = struct.unpack_from(f'>{n}Q', self.file, self.l1_at)

    def entries(self):
        """(cluster, entry) of all that is there."""
        for index, table in enumerate(self.l1):
            if table:
                n = 1 << self.l2_bits
                for i, e in enumerate(struct.unpack_from(f'>{n}Q', self.file,
                                                         table)):
                    if e:
                        yield (index << self.l2_bits) + i, e

    def data(self, entry):
        if not entry & COMPRESSED:
            return self.file[entry:entry + self.cluster]
        shift = 63 - self.cluster_bits
        at, n = entry & (1 << shift) - 1, entry >> shift & self.cluster - 1
        return zlib.decompressobj(-15).decompress(self.file[at:at + n])

    def flatten(self, below=b''):
        out = bytearray(below.ljust(self.size, b'\0')[:self.size])
        for cluster, entry in self.entries():
            data = self.data(entry)
            assert len(data) == self.cluster, hex(entry)
            at = cluster * self.cluster
            out[at:at + self.cluster] = data
        return bytes(out[:self.size])
