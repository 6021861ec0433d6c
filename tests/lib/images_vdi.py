# SPDX-License-Identifier: MIT
"""VDI images, written and read by a program that shares nothing with the one
that is tested. Little care for speed, much for showing what is in a file."""
import random
import struct
import uuid

FREE, ZERO = 0xffffffff, 0xfffffffe
DYNAMIC, FIXED, UNDO, DIFF = 1, 2, 3, 4
NONE = uuid.UUID(int=0)


class Image:
    """What a file says, or is to say. BLOCKS: data by number in the file."""

    def __init__(self, size, block=1 << 20, **how):
        self.size, self.block = size, block
        self.version = how.get('version', 1)
        self.kind = how.get('kind', DYNAMIC)
        self.extra = how.get('extra', 0)
        self.align = how.get('align', 512)
        self.head = how.get('head', 400)
        self.uuids = how.get('uuids') or [uuid.uuid4(), uuid.uuid4(), NONE,
                                          NONE]
        self.entries = [FREE] * -(-size // block)
        self.count = None  # of blocks; None: as it should be
        self.blocks = {}
        self.comment = how.get('comment', b'')

    def child(self, **how):
        """An image over this one, as it is now."""
        how.setdefault('kind', DIFF)
        how['uuids'] = [uuid.uuid4(), uuid.uuid4(), self.uuids[0],
                        self.uuids[1]]
        return Image(how.pop('size', self.size), self.block, **how)

    def put(self, index, data):
        """Guest block INDEX has DATA, in a new block of the file."""
        number = max(self.blocks, default=-1) + 1
        self.entries[index] = number
        self.blocks[number] = data.ljust(self.block, b'\0')
        return number

    def scatter(self, seed, chance=0.4):
        """Some blocks with data, some zero, in any order in the file."""
        rng = random.Random(seed)
        order = list(range(len(self.entries)))
        rng.shuffle(order)
        for index in order:
            if self.kind == FIXED or rng.random() < chance:
                self.put(index, rng.randbytes(self.block))
            elif rng.random() < 0.2:
                self.entries[index] = ZERO
        return self

    def layout(self):
        """Where the table and the blocks begin."""
        if self.version == 0:
            return 420, 420 + 4 * len(self.entries)
        up = lambda n: -(-n // self.align) * self.align
        table = up(72 + self.head)
        return table, up(table + 4 * len(self.entries))

    def header(self):
        table, data = self.layout()
        count = len(self.blocks) if self.count is None else self.count
        ids = b''.join(u.bytes_le for u in self.uuids)
        text = b'<<< a test >>>\n'.ljust(64, b'\0')
        geometry = struct.pack('<4I', 0, 0, 0, 512)
        if self.version == 0:
            return text + struct.pack(
                '<IIII256s16sQIII', 0xbeda107f, 2, self.kind, 0, self.comment,
                geometry, self.size, self.block, len(self.entries),
                count) + ids[:48]
        head = text + struct.pack(
            '<IIIII256sII16sIQIIII', 0xbeda107f, 0x10001, self.head, self.kind,
            0, self.comment, table, data, geometry, 0, self.size, self.block,
            self.extra, len(self.entries), count) + ids
        return head + (geometry if self.head >= 400 else b'')

    def write(self, path):
        table, data = self.layout()
        stride = self.extra + self.block
        with open(path, 'wb') as f:
            f.write(self.header())
            f.seek(table)
            f.write(struct.pack(f'<{len(self.entries)}I', *self.entries))
            f.truncate(max(data, f.tell()))
            for number, block in self.blocks.items():
                f.seek(data + number * stride)
                f.write(b'x' * self.extra + block)
        return self


def read(path):
    """The Image that PATH holds. Of blocks only those that are referred to."""
    with open(path, 'rb') as f:
        head = f.read(512)
        signature, version = struct.unpack_from('<II', head, 64)
        assert signature == 0xbeda107f
        v0 = version == 2
        at = (72, 352, 360, 364, 368, 372) if v0 else (76, 368, 376, 384, 388,
                                                       392)
        kind, size, block, n, count = (struct.unpack_from(form, head, o)[0]
                                       for form, o in zip('IQIII', at))
        image = Image(size, block, version=0 if v0 else 1, kind=kind)
        image.uuids = [uuid.UUID(bytes_le=head[o:o + 16]) for o in
                       range(at[5], at[5] + (48 if v0 else 64), 16)]
        image.count = count
        table, data = 420, 420 + 4 * n
        if not v0:
            table, data = struct.unpack_from('<II', head, 340)
            image.extra = struct.unpack_from('<I', head, 380)[0]
        f.seek(table)
        image.entries = list(struct.unpack(f'<{n}I', f.read(4 * n)))
        for number in image.entries:
            if number < ZERO:
                f.seek(data + number * (block + image.extra) + image.extra)
                image.blocks[number] = f.read(block).ljust(block, b'\0')
    return image


def flatten(*chain):
    """What the guest of the first one sees; each is an Image and over the
    next."""
    top = chain[0]
    out = bytearray()
    below = flatten(*chain[1:]) if chain[1:] else b''
    for index, number in enumerate(top.entries):
        if number < ZERO:
            data = top.blocks[number]
        elif number == ZERO:
            data = bytes(top.block)
        else:
            at = index * top.block
            data = below[at:at + top.block].ljust(top.block, b'\0')
        out += data
    return bytes(out[:top.size])


def dense(image):
    """As VirtualBox and QEMU have it: each block is used once, the numbers
    have no gaps, and the header counts them all."""
    used = sorted(n for n in image.entries if n < ZERO)
    return used == list(range(len(used))) and image.count == len(used)
