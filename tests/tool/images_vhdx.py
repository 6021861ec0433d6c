# SPDX-License-Identifier: MIT
"""A reader and a writer of VHDX images, from [MS-VHDX], that know nothing of the
project's own. The writer scatters things over the file, and can leave a part of
its tables to the log; the reader refuses what the description does not allow.
"""
import random
import struct
import uuid

MIB = 1 << 20
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULL, PARTIAL = 0, 1, 2, 3, 6, 7
DYNAMIC, FIXED, DIFF = 'dynamic', 'fixed', 'differencing'

BAT = uuid.UUID('2DC27766-F623-4200-9D64-115E9BFD4A08')
METADATA = uuid.UUID('8B7CA206-4790-4B9A-B8FE-575F050F886E')
PARAMETERS = uuid.UUID('CAA16737-FA36-4D43-B3B6-33F0AA44E76B')
SIZE = uuid.UUID('2FA54224-CD1B-4876-B211-5DBED83BF4B8')
DISK_ID = uuid.UUID('BECA12AB-B2E6-4523-93EF-C309E000C746')
LOGICAL = uuid.UUID('8141BF1D-A96F-4709-BA47-F233A8FAAB5F')
PHYSICAL = uuid.UUID('CDA348C7-445D-4471-9CC9-E9885251C556')
LOCATOR = uuid.UUID('A8D35F2D-B30B-454D-ABF7-D3D84834AB0C')
LOCATOR_VHDX = uuid.UUID('B04AEFB7-D19E-4A81-B789-25B8E9445913')
NULL = uuid.UUID(int=0)


def crc_table():
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82f63b78 if byte & 1 else 0)
        yield byte


TABLE = list(crc_table())


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xffffffff


def with_sum(data):
    """DATA with its checksum, which stands at 4."""
    data = data[:4] + bytes(4) + data[8:]
    return data[:4] + struct.pack('<I', crc32c(data)) + data[8:]


def has_sum(data):
    return with_sum(data) == data


def chunk_ratio(block, sector):
    return (1 << 23) * sector // block


def locator(pairs):
    """The metadata item for a parent: keys and values."""
    texts = [t.encode('utf-16-le') for pair in pairs.items() for t in pair]
    at = 20 + 12 * len(pairs)
    places, body = [], b''
    for text in texts:
        places.append((at + len(body), len(text)))
        body += text
    entries = b''.join(
        struct.pack('<IIHH', key[0], value[0], key[1], value[1])
        for key, value in zip(places[::2], places[1::2]))
    return LOCATOR_VHDX.bytes_le + struct.pack('<HH', 0, len(pairs)) + \
        entries + body


class Image:
    """What is in a file. BLOCKS: by number, the bytes of those that have a
    place. SECTORS: for those that are partially present, whether each sector
    is. STATES: of all blocks."""

    def __init__(self, size, block=MIB, sector=512, physical=None,
                 kind=DYNAMIC, pairs=None):
        self.size, self.block, self.sector = size, block, sector
        self.physical = physical or sector
        self.kind, self.pairs = kind, pairs
        self.data_write = uuid.uuid4()
        self.disk_id = uuid.uuid4()
        self.count = -(-size // block)
        self.states = [NOT_PRESENT] * self.count
        self.blocks, self.sectors = {}, {}
        self.creator = 'a test'

    def child(self, name, **how):
        """One over this, which is called NAME there."""
        how = {'block': self.block, 'sector': self.sector, **how}
        pairs = {'parent_linkage': f'{{{self.data_write}}}',
                 'relative_path': '.\\' + name,
                 'absolute_win32_path': '\\\\?\\C:\\vm\\' + name}
        made = Image(self.size, kind=DIFF, pairs=pairs, **how)
        made.disk_id = self.disk_id
        return made

    def scatter(self, seed, share=0.5,
                states=(NOT_PRESENT, ZERO, UNDEFINED, UNMAPPED)):
        """Random bytes into some blocks, and STATES for the others."""
        rng = random.Random(seed)
        for i in range(self.count):
            if self.kind != FIXED and rng.random() > share:
                self.states[i] = rng.choice(states)
                continue
            # A byte for each piece: quick to make, and to see.
            piece = self.block // 256
            self.blocks[i] = b''.join(bytes([b]) * piece
                                      for b in rng.randbytes(256))
            self.states[i] = FULL
            if self.kind == DIFF and rng.random() < 0.7:
                self.states[i] = PARTIAL
                n = self.block // self.sector
                some = rng.choice((rng.random(), 0.5))
                run = rng.choice((1, 7, 64))
                self.sectors[i] = [b for _ in range(-(-n // run))
                                   for b in [rng.random() < some] * run][:n]
        return self

    # --- the parts of a file ---

    def bat(self, places, bitmaps):
        ratio = chunk_ratio(self.block, self.sector)
        entries = []
        for i in range(self.count):
            entries.append(places.get(i, 0) | self.states[i])
            if i % ratio == ratio - 1:
                entries.append(bitmaps.get(i // ratio, 0))
        if self.kind == DIFF and self.count % ratio:
            entries += [0] * (ratio - self.count % ratio)
            entries.append(bitmaps.get(self.count // ratio, 0))
        return struct.pack(f'<{len(entries)}Q', *entries)

    def bitmap(self, chunk):
        ratio = chunk_ratio(self.block, self.sector)
        bits = 0
        n = self.block // self.sector
        for i in range(chunk * ratio, min((chunk + 1) * ratio, self.count)):
            for k, there in enumerate(self.sectors.get(i, [])):
                bits |= there << ((i - chunk * ratio) * n + k)
        return bits.to_bytes(MIB, 'little')

    def metadata(self, rng, more=()):
        flags = {FIXED: 1, DIFF: 2}.get(self.kind, 0)
        items = [(PARAMETERS, 4, struct.pack('<II', self.block, flags)),
                 (SIZE, 6, struct.pack('<Q', self.size)),
                 (DISK_ID, 6, self.disk_id.bytes_le),
                 (LOGICAL, 6, struct.pack('<I', self.sector)),
                 (PHYSICAL, 6, struct.pack('<I', self.physical))]
        if self.pairs:
            items.append((LOCATOR, 4, locator(self.pairs)))
        items += more
        rng.shuffle(items)
        table = struct.pack('<8sHH20x', b'metadata', 0, len(items))
        body = b''
        for guid, kind, data in items:
            body += bytes(rng.randrange(40))
            table += guid.bytes_le + struct.pack(
                '<IIII', 65536 + len(body), len(data), kind, 0)
            body += data
        return (table.ljust(65536, b'\0') + body).ljust(MIB, b'\0')

    def write(self, path, seed=0, log=False, log_size=MIB, more=(),
              regions=()):
        """LOG: a part of the tables is only there."""
        rng = random.Random(seed)
        order = ['log', 'metadata', 'bat']
        order += [('block', i) for i in self.blocks]
        chunks = {i // chunk_ratio(self.block, self.sector)
                  for i in self.sectors}
        order += [('bitmap', i) for i in chunks]
        rng.shuffle(order)
        bat_bytes = -(-len(self.bat({}, {})) // MIB) * MIB or MIB
        lengths = {'log': log_size, 'metadata': MIB, 'bat': bat_bytes,
                   'block': self.block, 'bitmap': MIB}
        at, where = MIB, {}
        for what in order:
            at += rng.choice((0, 0, MIB))
            where[what] = at
            at += lengths[what if isinstance(what, str) else what[0]]
        places = {i: where['block', i] for i in self.blocks}
        bat = self.bat(places, {i: where['bitmap', i] | FULL for i in chunks})
        with open(path, 'wb') as f:
            f.truncate(at)
            for i, data in self.blocks.items():
                f.seek(places[i])
                f.write(data)
            tables = [(where['bat'], bat)]
            tables += [(where['bitmap', i], self.bitmap(i)) for i in chunks]
            f.seek(where['metadata'])
            f.write(self.metadata(rng, more))
            guid = NULL
            if log:
                guid = uuid.UUID(int=rng.getrandbits(128))
                ring = Log(rng, guid, log_size, at)
                tables = ring.take(tables)
                f.seek(where['log'])
                f.write(ring.bytes)
            for place, data in tables:
                f.seek(place)
                f.write(data)
            self.write_heads(f, rng, where, bat_bytes, log_size, guid, regions)
        return self

    def write_heads(self, f, rng, where, bat_bytes, log_size, guid, regions):
        f.seek(0)
        f.write(b'vhdxfile' + self.creator.encode('utf-16-le'))
        number = rng.randrange(1 << 40)
        order = [64 << 10, 128 << 10]
        rng.shuffle(order)
        for i, place in enumerate(order):
            head = struct.pack('<4sIQ', b'head', 0, number + i)
            head += uuid.uuid4().bytes_le + self.data_write.bytes_le
            head += guid.bytes_le
            head += struct.pack('<HHIQ', 0, 1, log_size, where['log'])
            f.seek(place)
            f.write(with_sum(head.ljust(4096, b'\0')))
        listed = [(BAT, where['bat'], bat_bytes, 1),
                  (METADATA, where['metadata'], MIB, 1), *regions]
        rng.shuffle(listed)
        table = struct.pack('<4sIII', b'regi', 0, len(listed), 0)
        for region, place, length, required in listed:
            table += region.bytes_le + struct.pack('<QII', place, length,
                                                   required)
        table = with_sum(table.ljust(65536, b'\0'))
        for place in (192 << 10, 256 << 10):
            f.seek(place)
            f.write(table)

    # --- what it means ---

    def sector_at(self, i, k):
        """Sector K of block I; None: the parent's."""
        if self.states[i] == NOT_PRESENT and self.kind == DIFF:
            return None
        if self.states[i] not in (FULL, PARTIAL):
            return bytes(self.sector)
        if self.states[i] == PARTIAL and not self.sectors[i][k]:
            return None
        return self.blocks[i][k * self.sector:(k + 1) * self.sector]


def flatten(*images):
    """The guest's bytes, of the top image and those below, in that order."""
    size = images[0].size
    out = bytearray(size)
    for image in reversed(images):
        n = image.block // image.sector
        for i in range(image.count):
            at = i * image.block
            if image.states[i] == FULL:
                data = image.blocks[i]
            elif image.states[i] == PARTIAL:
                for k in range(n):
                    if image.sectors[i][k]:
                        here = at + k * image.sector
                        out[here:here + image.sector] = image.sector_at(i, k)
                continue
            elif image.states[i] == NOT_PRESENT and image.kind == DIFF:
                continue
            else:
                data = bytes(image.block)
            out[at:at + image.block] = data[:max(0, size - at)]
        del out[size:]
    return bytes(out)


def rng_bytes(rng, old):
    """Others than OLD."""
    new = old
    while new == old:
        new = rng.randbytes(len(old))
    return new


class Log:
    """A ring with an active sequence, and what may be around it: entries of
    before its tail, of older logs, and one that was torn."""

    def __init__(self, rng, guid, size, file_size):
        self.rng, self.guid, self.size = rng, guid, size
        self.file_size = file_size
        self.bytes = bytearray(size)
        self.at = rng.randrange(size // 4096) * 4096
        self.number = rng.randrange(1, 1 << 50)

    def put(self, data):
        for i in range(0, len(data), 4096):
            place = (self.at + i) % self.size
            self.bytes[place:place + 4096] = data[i:i + 4096]
        self.at = (self.at + len(data)) % self.size

    def entry(self, changes, tail, torn=False, guid=None, skip=0):
        """CHANGES: (offset, 4096 bytes) or (offset, length of zeroes)."""
        self.number += 1 + skip
        datas, sectors = b'', b''
        for offset, what in changes:
            if isinstance(what, int):
                datas += struct.pack('<4sIQQQ', b'zero', 0, what, offset,
                                     self.number)
                continue
            datas += b'desc' + what[4092:] + what[:8] + struct.pack(
                '<QQ', offset, self.number)
            sectors += b'data' + struct.pack('<I', self.number >> 32) + \
                what[8:4092] + struct.pack('<I', self.number & 0xffffffff)
        n = -(-(64 + len(datas)) // 4096) * 4096
        here = self.at
        head = struct.pack('<4sIIIQII', b'loge', 0, n + len(sectors),
                           here if tail is None else tail, self.number,
                           len(changes), 0)
        head += (guid or self.guid).bytes_le
        head += struct.pack('<QQ', self.file_size, self.file_size)
        data = with_sum((head + datas).ljust(n, b'\0') + sectors)
        if torn:
            place = self.rng.randrange(len(data) // 512) * 512
            data = data[:place] + rng_bytes(self.rng, data[place:place + 512]) \
                + data[place + 512:]
        self.put(data)
        return here

    def take(self, tables):
        """Put a part of TABLES into the log; returns what the file is to have
        instead."""
        rng = self.rng
        old, changes = [], []
        for place, data in tables:
            data = bytearray(data.ljust(-(-len(data) // 4096) * 4096, b'\0'))
            for i in range(0, len(data), 4096):
                piece = bytes(data[i:i + 4096])
                if any(piece):
                    changes.append((place + i, piece))
                    data[i:i + 4096] = rng.choice((piece, bytes(4096),
                                                   rng.randbytes(4096)))
                elif i < 4096 * 8:
                    changes.append((place + i, 4096))
                    data[i:i + 4096] = rng.choice((piece,
                                                   rng.randbytes(4096)))
            old.append((place, bytes(data)))
        stale = [(o, rng.randbytes(4096)) for o, _ in changes[:3]]
        if rng.random() < 0.5:
            self.entry(stale, None, guid=uuid.UUID(int=rng.getrandbits(128)))
        if rng.random() < 0.5:  # before the tail: it must not be replayed
            self.entry(stale, None, skip=5)
        tail = self.at
        if rng.random() < 0.5:
            changes = stale + changes  # later ones win
        while changes:
            n = rng.choice((1, 3, 14, 130))
            self.entry(changes[:n], tail)
            changes = changes[n:]
        if rng.random() < 0.5:
            self.entry(stale, tail, torn=True)
        return old


class Bad(Exception):
    """The description does not allow it."""


def demand(held, text):
    if not held:
        raise Bad(text)


def read_items(f, offset, length):
    f.seek(offset)
    region = f.read(length)
    signature, _, n = struct.unpack_from('<8sHH', region)
    demand(signature == b'metadata', 'metadata')
    items, used = {}, []
    for i in range(n):
        guid = uuid.UUID(bytes_le=region[32 + 32 * i:48 + 32 * i])
        at, size, _, _ = struct.unpack_from('<IIII', region, 48 + 32 * i)
        demand(at >= 65536 and at + size <= length, f'item {guid}')
        demand(guid not in items, f'item {guid} twice')
        items[guid] = region[at:at + size]
        used.append((at, at + size))
    used.sort()
    demand(all(a[1] <= b[0] for a, b in zip(used, used[1:])), 'items overlap')
    return items


def read_pairs(item):
    demand(item[:16] == LOCATOR_VHDX.bytes_le, 'locator')
    pairs = {}
    for i in range(struct.unpack_from('<H', item, 18)[0]):
        key, value, nkey, nvalue = struct.unpack_from('<IIHH', item,
                                                      20 + 12 * i)
        demand(key and value and nkey and nvalue, 'empty')
        pairs[item[key:key + nkey].decode('utf-16-le')] = \
            item[value:value + nvalue].decode('utf-16-le')
    return pairs


def read_header(f):
    best = None
    for place in (64 << 10, 128 << 10):
        f.seek(place)
        data = f.read(4096)
        demand(data[:4] == b'head' and has_sum(data), f'header at {place}')
        number, = struct.unpack_from('<Q', data, 8)
        demand(best is None or number != best[0], 'numbers of headers')
        best = max(best or (0,), (number, data))
    return best[1]


def read(path):
    """The image in a file, which must be one that was closed cleanly."""
    with open(path, 'rb') as f:
        demand(f.read(8) == b'vhdxfile', 'signature')
        creator = f.read(512).decode('utf-16-le').split('\0')[0]
        head = read_header(f)
        demand(head[48:64] == bytes(16), 'the log is in use')
        version, log_version, log_size, log_at = \
            struct.unpack_from('<HHIQ', head, 64)
        demand((version, log_version) == (0, 1), 'version')
        tables = []
        for place in (192 << 10, 256 << 10):
            f.seek(place)
            tables.append(f.read(65536))
        demand(tables[0] == tables[1] and has_sum(tables[0]), 'region tables')
        used = [(0, MIB), (log_at, log_at + log_size)]
        regions = {}
        for i in range(struct.unpack_from('<I', tables[0], 8)[0]):
            entry = tables[0][16 + 32 * i:48 + 32 * i]
            at, size, required = struct.unpack('<QII', entry[16:])
            demand(at % MIB == 0 and size % MIB == 0 and required == 1,
                   'region')
            regions[uuid.UUID(bytes_le=entry[:16])] = at, size
            used.append((at, at + size))
        items = read_items(f, *regions[METADATA])
        block, flags = struct.unpack('<II', items[PARAMETERS])
        image = Image(struct.unpack('<Q', items[SIZE])[0], block,
                      struct.unpack('<I', items[LOGICAL])[0],
                      struct.unpack('<I', items[PHYSICAL])[0],
                      DIFF if flags & 2 else FIXED if flags & 1 else DYNAMIC,
                      read_pairs(items[LOCATOR]) if flags & 2 else None)
        demand((flags & 2 != 0) == (LOCATOR in items), 'locator')
        image.creator = creator
        image.data_write = uuid.UUID(bytes_le=head[32:48])
        image.disk_id = uuid.UUID(bytes_le=items[DISK_ID])
        image.items = items
        read_blocks(f, image, regions[BAT], used)
        f.seek(0, 2)
        demand(f.tell() % MIB == 0, 'size of the file')
        used.sort()
        demand(all(a[1] <= b[0] for a, b in zip(used, used[1:])), 'overlap')
        demand(used[-1][1] <= f.tell(), 'end of the file')
        image.file_end = used[-1][1]
        return image


def read_blocks(f, image, region, used):
    ratio = chunk_ratio(image.block, image.sector)
    f.seek(region[0])
    bat = f.read(min(region[1], (image.count // ratio + 1) * (ratio + 1) * 8))
    bitmaps = {}

    def entry(i):
        return struct.unpack_from('<Q', bat, i * 8)[0] \
            if i * 8 < len(bat) else 0

    for chunk in range(-(-image.count // ratio)):
        e = entry(chunk * (ratio + 1) + ratio)
        demand(e & 7 in (0, FULL) and (e & 7 == 0 or image.kind == DIFF),
               'bitmap')
        if e & 7:
            used.append((e & ~0xfffff, (e & ~0xfffff) + MIB))
            f.seek(e & ~0xfffff)
            bitmaps[chunk] = int.from_bytes(f.read(MIB), 'little')
    for i in range(image.count):
        e = entry(i + i // ratio)
        demand(e & 0xffff8 == 0, 'reserved bits')
        image.states[i] = e & 7
        demand(e & 7 in (0, 1, 2, 3, FULL) or
               (e & 7 == PARTIAL and image.kind == DIFF), 'state')
        if e & 7 < FULL:
            continue
        place = e & ~0xfffff
        used.append((place, place + image.block))
        f.seek(place)
        image.blocks[i] = f.read(image.block)
        if e & 7 == PARTIAL:
            n = image.block // image.sector
            bits = bitmaps[i // ratio] >> (i % ratio * n)
            image.sectors[i] = [bool(bits >> k & 1) for k in range(n)]
