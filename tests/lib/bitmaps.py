# SPDX-License-Identifier: MIT
"""The persistent bitmaps of a QCOW2 file, read straight from its bytes
(QEMU's docs/interop/qcow2.txt, "Bitmaps")."""
import struct

EXTENSION = 0x23852875
IN_USE, AUTO = 1, 2


class Bitmap:
    def __init__(self, name, granularity, flags, bits):
        self.name = name
        self.granularity = granularity
        self.in_use = bool(flags & IN_USE)
        self.enabled = bool(flags & AUTO)
        self.bits = bits  # the numbers of those that are set

    def __repr__(self):
        return (f'{self.name}/{self.granularity}'
                f'{" in use" * self.in_use}{" enabled" * self.enabled}')


def extension(data):
    """Where the extension's contents stand; None without one."""
    version, = struct.unpack_from('>I', data, 4)
    bits, = struct.unpack_from('>I', data, 20)
    end, = struct.unpack_from('>Q', data, 8)
    at, = struct.unpack_from('>I', data, 100) if version > 2 else (72,)
    while at + 8 <= (end or 1 << bits):
        kind, size = struct.unpack_from('>II', data, at)
        if kind == 0:
            break
        if kind == EXTENSION:
            assert size == 24
            return at + 8
        at += 8 + (size + 7) // 8 * 8
    return None


def table_bits(data, offset, n, cluster):
    """The bits that a table leads to, as one number."""
    out = bytearray()
    for entry in struct.unpack_from(f'>{n}Q', data, offset):
        host = entry & 0x00fffffffffffe00
        assert not entry & 0xff000000000001fe and not host % cluster
        if host:
            assert not entry & 1
            out += data[host:host + cluster].ljust(cluster, b'\0')
        else:
            out += (b'\xff' if entry & 1 else b'\0') * cluster
    return out


def read(path):
    """A list of Bitmap. Asserts what the description demands."""
    with open(path, 'rb') as f:
        data = f.read()
    size, = struct.unpack_from('>Q', data, 24)
    cluster = 1 << struct.unpack_from('>I', data, 20)[0]
    autoclear, = struct.unpack_from('>Q', data, 88)
    at = extension(data)
    if not autoclear & 1:
        assert at is None, 'an extension without its autoclear bit'
        return []
    n, zero, dir_size, dir_offset = struct.unpack_from('>IIQQ', data, at)
    assert n and not zero and not dir_offset % cluster
    found, at = [], dir_offset
    for _ in range(n):
        table, n_table, flags, kind, shift, name_size, extra = \
            struct.unpack_from('>QIIBBHI', data, at)
        name = data[at + 24 + extra:at + 24 + extra + name_size].decode()
        granularity = 1 << shift
        n_bits = -(-size // granularity)
        assert kind == 1 and table and not table % cluster and name
        bits = None
        if not flags & IN_USE:
            assert n_table == -(-n_bits // (8 * cluster)), (n_table, n_bits)
            raw = table_bits(data, table, n_table, cluster)
            bits = {i * 8 + k for i, byte in enumerate(raw) if byte
                    for k in range(8) if byte >> k & 1}
            assert max(bits, default=0) < n_bits
        found.append(Bitmap(name, granularity, flags, bits))
        at += (24 + extra + name_size + 7) // 8 * 8
    assert at == dir_offset + dir_size
    assert len({b.name for b in found}) == len(found)
    return found
