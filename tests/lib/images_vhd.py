# SPDX-License-Identifier: MIT
"""VHD images, written and read by a program that shares nothing with the one
that is tested. Little care for speed, much for showing what is in a file."""
import random
import struct
import uuid

FIXED, DYNAMIC, DIFF = 2, 3, 4
UNUSED = 0xffffffff
NONE = uuid.UUID(int=0)
SECTOR = 512


def checksum(data, at):
    return ~(sum(data) - sum(data[at:at + 4])) & 0xffffffff


def sealed(data, at):
    return data[:at] + struct.pack('>I', checksum(data, at)) + data[at + 4:]


def up(n, unit=SECTOR):
    return -(-n // unit) * unit


def alias(name, path=b'', mount=b''):
    """A Mac OS alias record."""
    fixed = struct.pack('>4sHHh28pI2sHI64p', b'\0' * 4, 0, 2, 0, b'Macintosh HD',
                        0, b'H+', 0, 2, name).ljust(150, b'\0')
    tags = b''
    for tag, data in ((18, path), (19, mount)):
        if data:
            tags += struct.pack('>hH', tag, len(data)) + data + bytes(
                len(data) % 2)
    whole = fixed + tags + struct.pack('>hH', -1, 0)
    return whole[:4] + struct.pack('>H', len(whole)) + whole[6:]


class Image:
    """What a file says, or is to say. DATA: the bytes of blocks, BITS: which of
    their sectors there are."""

    def __init__(self, size, kind=DYNAMIC, **how):
        self.size, self.kind = size, kind
        self.block = how.get('block', 2 << 20)
        self.creator = how.get('creator', b'win ')
        self.version = how.get('version', 0x60003)
        self.geometry = how.get('geometry', (0, 0, 0))
        self.time = how.get('time', 400000000)
        self.uuid = how.get('uuid') or uuid.uuid4()
        self.parent, self.parent_time = NONE, 0
        self.name = ''
        self.locators = []  # (code, data)
        self.spaces_in_sectors = how.get('spaces_in_sectors', False)
        self.gap = how.get('gap', 0)  # before the first block
        self.more_entries = how.get('more_entries', 0)
        self.reversed = version_1(self)
        self.short = how.get('short', False)  # the footer, as of old
        self.data, self.bits, self.order = {}, {}, []
        self.raw = bytes(size) if kind == FIXED else b''

    def child(self, **how):
        how.setdefault('block', self.block)
        made = Image(how.pop('size', self.size), DIFF, **how)
        made.parent, made.parent_time = self.uuid, self.time
        return made

    def named(self, name, *locators):
        self.name, self.locators = name, list(locators)
        return self

    def put(self, block, data, bits=None):
        """BITS: the sectors that count; None: all."""
        self.data[block] = data.ljust(self.block, b'\0')
        self.bits[block] = (set(range(self.block // SECTOR))
                            if bits is None else set(bits))
        self.order.append(block)
        return self

    def blocks(self):
        return -(-self.size // self.block)

    def scatter(self, seed, chance=0.4, sectors=None):
        """Some blocks in any order; of each SECTORS, a chance, or all."""
        rng = random.Random(seed)
        order = list(range(self.blocks()))
        rng.shuffle(order)
        for block in order:
            if rng.random() >= chance:
                continue
            data, bits = rng.randbytes(self.block), None
            if sectors is not None:
                bits = [s for s in range(self.block // SECTOR)
                        if rng.random() < sectors]
            self.put(block, data, bits)
        return self

    def bitmap(self, block):
        out = bytearray(up(self.block // SECTOR // 8 or 1))
        for s in self.bits[block]:
            out[s // 8] |= 1 << s % 8 if self.reversed else 0x80 >> s % 8
        return bytes(out)

    def footer(self):
        head = -1 if self.kind == FIXED else SECTOR
        data = struct.pack('>8sIIqI4sI4sQQHBBII16s', b'conectix', 2, 0x10000,
                           head, self.time, self.creator, self.version,
                           b'Wi2k', self.size, self.size, *self.geometry,
                           self.kind, 0, self.uuid.bytes)
        return sealed(data.ljust(512, b'\0'), 64)

    def header(self, places):
        name = self.name.encode('utf-16-be')
        data = struct.pack('>8sqQIIII16sII512s', b'cxsparse', -1, 1536, 0x10000,
                           self.blocks() + self.more_entries, self.block, 0,
                           self.parent.bytes, self.parent_time, 0, name)
        for (code, text), at in zip(self.locators, places):
            space = up(len(text) or 1)
            data += struct.pack('>4sIIIQ', code,
                                space // 512 if self.spaces_in_sectors
                                else space, len(text), 0, at)
        return sealed(data.ljust(1024, b'\0'), 36)

    def layout(self):
        """The table's end, the places of locators' data, of blocks, the
        footer's."""
        table = up(1536 + 4 * (self.blocks() + self.more_entries))
        at, places, where = table, [], {}
        for _, text in self.locators:
            places.append(at)
            at += up(len(text) or 1)
        at += self.gap
        for block in self.order:
            where[block] = at
            at += len(self.bitmap(block)) + self.block
        return table, places, where, at

    def write(self, path, tail=True, head=True):
        footer = self.footer()
        with open(path, 'wb') as f:
            if self.kind == FIXED:
                f.write(self.raw)
                f.write(footer[:511] if self.short else footer)
                return self
            table, places, where, end = self.layout()
            f.write(footer if head else bytes(512))
            f.write(self.header(places))
            entries = [where[b] // SECTOR if b in where else UNUSED
                       for b in range(self.blocks())]
            entries += [UNUSED] * self.more_entries
            f.write(struct.pack(f'>{len(entries)}I', *entries).ljust(
                table - 1536, b'\xff'))
            for (_, text), at in zip(self.locators, places):
                f.seek(at)
                f.write(text)
            for block, at in where.items():
                f.seek(at)
                f.write(self.bitmap(block) + self.data[block])
            f.truncate(end)
            f.seek(end)
            if tail:
                f.write(footer[:511] if self.short else footer)
        return self


def version_1(image):
    return image.creator == b'tap\0' and image.version == 1


class Footer:
    def __init__(self, data):
        assert data[:8] == b'conectix', data[:8]
        assert struct.unpack_from('>I', data, 64)[0] == checksum(data, 64)
        (self.head, self.time, self.creator, self.version) = struct.unpack_from(
            '>qI4sI', data, 16)
        (self.original, self.size, *geometry,
         self.kind) = struct.unpack_from('>QQHBBI', data, 40)
        self.geometry = tuple(geometry)
        self.uuid = uuid.UUID(bytes=data[68:84])
        self.bytes = data

    @property
    def chs(self):
        c, h, s = self.geometry
        return c * h * s * SECTOR


class Reader:
    """A file, looked at closely: each promise of the format is an assertion."""

    def __init__(self, path):
        with open(path, 'rb') as f:
            self.file = f.read()
        self.footer = Footer(self.file[-512:])
        self.kind, self.size = self.footer.kind, self.footer.size
        if self.kind != FIXED:
            assert self.file[:512] == self.file[-512:]
            self.read_header()

    def read_header(self):
        h = self.file[self.footer.head:self.footer.head + 1024]
        assert h[:8] == b'cxsparse'
        assert struct.unpack_from('>I', h, 36)[0] == checksum(h, 36)
        self.table, _, self.n, self.block = struct.unpack_from('>QIII', h, 16)
        self.parent = uuid.UUID(bytes=h[40:56])
        self.parent_time = struct.unpack_from('>I', h, 56)[0]
        self.name = h[64:576].decode('utf-16-be').rstrip('\0')
        self.locators = {}
        used = [(0, 512), (self.footer.head, self.footer.head + 1024),
                (self.table, up(self.table + 4 * self.n))]
        for at in range(576, 768, 24):
            code, space, length, _, where = struct.unpack_from('>4sIIIQ', h, at)
            if code != bytes(4):
                assert length <= space and space % 512 == 0
                self.locators[code] = self.file[where:where + length]
                used.append((where, where + space))
        self.entries = struct.unpack_from(f'>{self.n}I', self.file, self.table)
        assert self.n >= -(-self.size // self.block)
        self.bitmap_bytes = up(self.block // SECTOR // 8 or 1)
        for entry in self.entries:
            if entry != UNUSED:
                at = entry * SECTOR
                used.append((at, at + self.bitmap_bytes + self.block))
        used.sort()
        for a, b in zip(used, used[1:] + [(len(self.file) - 512, None)]):
            assert a[1] <= b[0], (a, b)

    def bits(self, block):
        at = self.entries[block] * SECTOR
        bitmap = self.file[at:at + self.bitmap_bytes]
        return [s for s in range(self.block // SECTOR)
                if bitmap[s // 8] & 0x80 >> s % 8]

    def guest(self, below=b''):
        """What the guest sees."""
        if self.kind == FIXED:
            return self.file[:self.size]
        out = bytearray(below[:self.size].ljust(self.size, b'\0'))
        for i, entry in enumerate(self.entries):
            if entry == UNUSED:
                continue
            data = entry * SECTOR + self.bitmap_bytes
            for s in self.bits(i):
                at = i * self.block + s * SECTOR
                here = data + s * SECTOR
                out[at:at + SECTOR] = self.file[here:here + SECTOR]
        return bytes(out[:self.size])


def flatten(*chain):
    """What the guest of the first one sees; each is an Image and over the
    next."""
    top = chain[0]
    if top.kind == FIXED:
        return top.raw
    below = flatten(*chain[1:]) if chain[1:] else b''
    out = bytearray(below[:top.size].ljust(top.size, b'\0'))
    for block, data in top.data.items():
        for s in top.bits[block]:
            at = block * top.block + s * SECTOR
            out[at:at + SECTOR] = data[s * SECTOR:(s + 1) * SECTOR]
    return bytes(out[:top.size])
