# SPDX-License-Identifier: MIT
"""VMDK extents and descriptors, by a program that shares nothing with the one
that is tested. Sizes are sectors; DATA has a grain's bytes, or ZERO, by its
number. Little care for speed, much for showing what is in a file."""
import struct
import zlib

ZERO = object()
SECTOR = 512
AT_END = 2**64 - 1


def up(n, unit):
    return -(-n // unit) * unit


def pad(data, unit=SECTOR):
    return data.ljust(up(len(data), unit), b'\0')


def descriptor(kind, extents, cid=0x12345678, parent_cid=0xffffffff, hint=None,
               more=''):
    """EXTENTS: lines."""
    lines = ['# Disk DescriptorFile', 'version=1', 'encoding="UTF-8"',
             f'CID={cid:08x}', f'parentCID={parent_cid:08x}',
             f'createType="{kind}"']
    if hint:
        lines.append(f'parentFileNameHint="{hint}"')
    lines += ['', '# Extent description', *extents, '', '#DDB', '',
              'ddb.adapterType = "ide"', more, '']
    return '\n'.join(lines).encode()


def entries_of(data, n, grain, first):
    """Entries and grains, one after the other from sector FIRST on."""
    entries, grains, at = [0] * n, [], first
    for index in sorted(data):
        if data[index] is ZERO:
            entries[index] = 1
            continue
        entries[index] = at
        grains.append(data[index].ljust(grain * SECTOR, b'\0'))
        at += grain
    return entries, b''.join(grains)


def tables_of(entries, per_table, first):
    """A directory, and its tables from sector FIRST on, padded."""
    tables = [entries[i:i + per_table]
              for i in range(0, len(entries), per_table)]
    each = up(4 * per_table, SECTOR)
    directory = struct.pack(f'<{len(tables)}I', *(
        first + i * each // SECTOR for i in range(len(tables))))
    return pad(directory), b''.join(
        struct.pack(f'<{len(t)}I', *t).ljust(each, b'\0') for t in tables)


def hosted_header(size, grain, per_table, **how):
    zeroes = how.get('zeroes')
    flags = how.get('flags', 1 | (2 if how.get('redundant') else 0) |
                    (4 if zeroes else 0))
    return pad(struct.pack(
        '<IIIQQQQIQQQB4sH', 0x564d444b,
        how.get('version', 2 if zeroes else 1), flags, size, grain,
        1 if how.get('text') else 0, how.get('text', 0), per_table,
        how.get('redundant', 0), how.get('directory', 0), how['overhead'],
        how.get('unclean', 0), b'\n \r\n', how.get('method', 0)))


def hosted(size, data, grain=8, per_table=16, text=b'', redundant=True, **how):
    """An extent as Workstation makes it."""
    n = -(-size // grain)
    text = pad(text)
    zeroes = ZERO in data.values()
    directory, tables = tables_of([0] * n, per_table, 0)
    copy = (len(directory) + len(tables)) // SECTOR
    second = 1 + len(text) // SECTOR
    first = second + copy if redundant else second
    overhead = up(first + copy, grain)
    entries, grains = entries_of(data, n, grain, overhead)
    parts = b''
    for at in [second, first] if redundant else [first]:
        parts += b''.join(tables_of(entries, per_table,
                                    at + len(directory) // SECTOR))
    head = hosted_header(size, grain, per_table, zeroes=zeroes,
                         text=len(text) // SECTOR, directory=first,
                         redundant=second if redundant else 0,
                         overhead=overhead, **how)
    return (head + text + parts).ljust(overhead * SECTOR, b'\0') + grains


def marker(kind, sectors):
    return pad(struct.pack('<QII', sectors, 0, kind))


def stream(size, data, text, grain=128, per_table=512, footer=True, level=9):
    """A stream as an export of ESXi is."""
    out = [b'\0' * SECTOR, pad(text)]
    text_sectors = len(out[1]) // SECTOR
    overhead = up(1 + text_sectors, grain)
    out.append(b'\0' * ((overhead - 1 - text_sectors) * SECTOR))
    at = overhead
    directory = []
    for first in range(0, -(-size // grain), per_table):
        table = [0] * per_table
        for i in range(per_table):
            if first + i not in data:
                continue
            bytes_ = zlib.compress(data[first + i].ljust(grain * SECTOR, b'\0'),
                                   level)
            table[i] = at
            out.append(pad(struct.pack('<QI', (first + i) * grain,
                                       len(bytes_)) + bytes_))
            at += len(out[-1]) // SECTOR
        if not any(table):
            directory.append(0)
            continue
        out += [marker(1, up(4 * per_table, SECTOR) // SECTOR),
                pad(struct.pack(f'<{per_table}I', *table))]
        directory.append(at + 1)
        at += (len(out[-1]) + len(out[-2])) // SECTOR
    directory = pad(struct.pack(f'<{len(directory)}I', *directory))
    how = dict(version=3, flags=0x30001, text=text_sectors, overhead=overhead,
               method=1)
    there = hosted_header(size, grain, per_table, directory=at + 1, **how)
    out += [marker(2, len(directory) // SECTOR), directory, marker(3, 1), there,
            marker(0, 0)]
    out[0] = there if not footer else hosted_header(
        size, grain, per_table, directory=AT_END, **how)
    return b''.join(out)


def cowd(size, data, grain=1, **how):
    """An extent as ESX makes it: a table comes with its first grain."""
    per_table = 4096
    n_tables = -(-size // (grain * per_table))
    directory, at, out = [0] * n_tables, 4 + up(4 * n_tables, SECTOR) // SECTOR, []
    for index in range(n_tables):
        mine = {i: d for i, d in data.items() if i // per_table == index}
        if not mine:
            continue
        directory[index] = at
        at += per_table * 4 // SECTOR
        table = [0] * per_table
        grains = []
        for i in sorted(mine):
            table[i % per_table] = at
            grains.append(mine[i].ljust(grain * SECTOR, b'\0'))
            at += grain
        out += [struct.pack(f'<{per_table}I', *table), *grains]
    head = struct.pack('<8I', 0x44574f43, 1, 3, size, grain, 4, n_tables,
                       how.get('free', at)).ljust(1648, b'\0')
    head += struct.pack('<I', how.get('unclean', 0))
    return head.ljust(2048, b'\0') + pad(
        struct.pack(f'<{n_tables}I', *directory)) + b''.join(out)


UNMAPPED = object()


def sesparse_entry(kind, number):
    return kind << 60 | (number & 0xfff) << 48 | number >> 12


def sesparse(size, data, grain=8, table=64, **how):
    """An extent as ESXi makes it, whose areas are closer together. Tables and
    grains are not in the guest's order. BY: whether the back map counts tables
    by their 'place' or their 'index' in the directory."""
    per_table = table * SECTOR // 8
    n_grains = -(-size // grain)
    n_tables = -(-n_grains // per_table)
    directory = [0] * up(n_tables, 64)
    used = sorted({i // per_table for i in data}, reverse=True)
    tables, grains, back = [], [], []
    for place, index in enumerate(used):
        directory[index] = 1 << 60 | place
        entries = [0] * per_table
        owner = place if how.get('by', 'place') == 'place' else index
        for i in sorted(data, reverse=place % 2 == 0):
            if i // per_table != index:
                continue
            if data[i] is ZERO:
                entries[i % per_table] = 2 << 60
            elif data[i] is UNMAPPED:
                entries[i % per_table] = 1 << 60 | 5
            else:
                entries[i % per_table] = sesparse_entry(3, len(grains))
                grains.append(data[i].ljust(grain * SECTOR, b'\0'))
                back.append(sesparse_entry(1, owner * per_table +
                                           i % per_table))
        tables.append(struct.pack(f'<{per_table}Q', *entries))
    bits = ((1 << len(grains)) - 1).to_bytes(-(-n_grains // 8), 'little')
    back += [0] * (n_grains - len(grains))
    areas, at, parts = [], 1, []
    for content in (pad(struct.pack('<4Q', 0xcafecafe,
                                    how.get('free', len(used)), 0,
                                    how.get('replay', 0))),
                    pad(struct.pack('<3Q', 0xdeafc0de, 0, 1)),
                    how.get('journal', b'').ljust(4 * SECTOR, b'\0'),
                    pad(struct.pack(f'<{len(directory)}Q', *directory)),
                    b''.join(tables).ljust(n_tables * table * SECTOR, b'\0'),
                    pad(bits), pad(struct.pack(f'<{n_grains}Q', *back))):
        areas += [at, len(content) // SECTOR]
        at += len(content) // SECTOR
        parts.append(content)
    fill = up(at, grain) - at
    areas += [at + fill, n_grains * grain]
    head = struct.pack('<26Q', 0xcafebabe, how.get('version', 0x200000001),
                       size, grain, table, how.get('flags', 0),
                       how.get('mark', 0), 0, 0, 0, *areas)
    return pad(head) + b''.join(parts) + bytes(fill * SECTOR) + b''.join(grains)


PARTS = ('volatile', 'journal_header', 'journal', 'directory', 'tables',
         'bitmap', 'back_map', 'grains')


class SeSparse:
    """An extent of the sizes that ESXi makes, read and judged."""

    def __init__(self, path):
        with open(path, 'rb') as f:
            self.data = f.read()
        head = self.words(0, 26)
        self.version, self.capacity = head[1:3]
        self.at, self.size = {}, {}
        for i, name in enumerate(PARTS):
            self.at[name], self.size[name] = (n * SECTOR for n in
                                              head[10 + 2 * i:12 + 2 * i])
        self.free, self.transaction, self.replay = self.words(
            self.at['volatile'] + 8, 3)
        n = -(-self.capacity // (8 * 4096))
        self.directory = self.words(self.at['directory'], n)

    def words(self, at, n):
        return struct.unpack(f'<{n}Q', self.data[at:at + 8 * n].ljust(8 * n,
                                                                      b'\0'))

    def part(self, name):
        return self.data[self.at[name]:self.at[name] + self.size[name]]

    def grains(self):
        """Of each grain: entry in the directory, number of its table, entry in
        that, number of its place."""
        for index, entry in enumerate(self.directory):
            if not entry:
                continue
            number = entry & 0xffffffff
            table = self.words(self.at['tables'] + number * 32768, 4096)
            for at, e in enumerate(table):
                if e >> 60 == 3:
                    yield (index, number, at,
                           (e >> 48 & 0xfff) | (e & 0xffffffffffff) << 12)

    def problems(self, by='place'):
        """What is not as it should be, in an extent without leaks."""
        bits = int.from_bytes(self.part('bitmap'), 'little')
        seen, found = 0, []
        for index, number, at, place in self.grains():
            owner = number if by == 'place' else index
            back, = self.words(self.at['back_map'] + 8 * place, 1)
            if back != sesparse_entry(1, owner * 4096 + at):
                found.append(f'back map of {place}')
            if seen >> place & 1:
                found.append(f'{place} twice')
            seen |= 1 << place
        if seen != bits:
            found.append(f'bitmap: {seen ^ bits:x}')
        numbers = [e & 0xffffffff for e in self.directory if e]
        if len(set(numbers)) != len(numbers) or \
                any(n >= self.free for n in numbers):
            found.append('directory')
        if self.replay or self.part('journal').strip(b'\0'):
            found.append('journal')
        return found
