#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Images made to do harm, through every command of rhea-img.

Whatever a file claims, a command ends soon, with little memory, not by a
signal, and with either a result or a message; and a conversion in place that is
refused leaves the file as it was. One test point for each image; TAP.

usage: hostile.py [--slow] [WORD]: only the images whose name contains WORD;
--slow is for builds with sanitizers.
"""
import hashlib
import os
import resource
import struct
import subprocess
import sys
import tempfile
import zlib

RHEA = os.environ['RHEA_IMG']
SLOW = '--slow' in sys.argv
SECONDS = 20 if SLOW else 2        # of the processor
MEMORY = 256 << 20                 # resident; and to be had, if not SLOW
K, M = 1 << 10, 1 << 20

CASES = []


def case(*names, **more):
    """Register builders: FUNCTION(path) makes the image. What is expected of
    MORE: refused (by convert-inplace), check (exit code), huge (all of its data
    takes long to copy, and that is nobody's fault)."""
    def add(function):
        CASES.append((names[0] if names else function.__name__, function, more))
        return function
    return add


# --- builders ----------------------------------------------------------------

def sparse(path, pieces, size=None):
    """A file of (offset, bytes), and holes."""
    with open(path, 'wb') as f:
        for offset, data in pieces:
            f.seek(offset)
            f.write(data)
        if size is not None:
            f.truncate(size)


def be64(*values):
    return struct.pack(f'>{len(values)}Q', *values)


def le64(*values):
    return struct.pack(f'<{len(values)}Q', *values)


def qcow2(path, bits=16, l2=None, patches=(), size=None, extensions=b'',
          file_size=None, virtual=None, l1=None, data=1):
    """A sound image: header, refcount table, refcount block, L1 table, L2
    table and DATA clusters, in this order, each a cluster; then PATCHES
    (offset, bytes). L2 and L1 replace the entries."""
    cluster = 1 << bits
    at = [i * cluster for i in range(6 + data)]
    copied = 1 << 63
    head = struct.pack('>4sIQIIQIIQQIIQQQQII', b'QFI\xfb', 3, 0, 0, bits,
                       1 << 20 if virtual is None else virtual, 0,
                       max(1, -(-(virtual or 1 << 20) // (cluster ** 2 // 8))),
                       at[3], at[1], 1, 0, 0, 0, 0, 0, 4, 112)
    head += bytes(8) + extensions
    entries = [at[5 + i] | copied for i in range(data)]
    pieces = [
        (0, head), (at[1], be64(at[2])),
        (at[2], struct.pack('>H', 1) * (5 + data)),
        (at[3], be64(*(l1 or [at[4] | copied]))),
        (at[4], be64(*(entries if l2 is None else l2))),
        (at[5], b'guest' * 100), *patches]
    sparse(path, pieces,
           file_size if file_size is not None else (5 + data) * cluster)


def qcow2_field(name, form, value):
    """A patch of one field of the header."""
    offsets = {'version': 4, 'backing_offset': 8, 'backing_size': 16,
               'bits': 20, 'size': 24, 'crypt': 32, 'l1_size': 36,
               'l1_offset': 40, 'reftable_offset': 48,
               'reftable_clusters': 56, 'n_snapshots': 60,
               'snapshots_offset': 64, 'incompatible': 72, 'autoclear': 88,
               'refcount_order': 96, 'header_length': 100}
    return (offsets[name], struct.pack('>' + form, value))


def qed(path, cluster=4096, table=1, header=1, features=0, l1_offset=None,
        size=1 << 20, backing=(0, 0), l1=None, l2=None, file_size=None,
        patches=()):
    """Header, L1 table, L2 table and one data cluster."""
    bytes_of_table = cluster * max(table, 1)
    at = [0, cluster, cluster + bytes_of_table, cluster + 2 * bytes_of_table]
    head = struct.pack('<IIIIQQQQQII', 0x00444551, cluster, table, header,
                       features, 0, 0,
                       at[1] if l1_offset is None else l1_offset, size,
                       *backing)
    pieces = [(0, head)]
    if file_size is None or file_size > at[3]:
        pieces += [(at[1], le64(*(l1 or [at[2]]))),
                   (at[2], le64(*(l2 or [at[3]]))), (at[3], b'guest' * 100)]
    sparse(path, pieces + list(patches),
           at[3] + cluster if file_size is None else file_size)


# --- QCOW2 -------------------------------------------------------------------

def qcow2_fields():
    """One field of the header with a value that makes no sense."""
    for name, form, values in (
            ('version', 'I', (0, 4, 2 ** 32 - 1)),
            ('bits', 'I', (0, 8, 22, 31, 63, 64, 2 ** 32 - 1)),
            ('size', 'Q', (2 ** 60, 2 ** 63 - 512, 2 ** 63, 2 ** 64 - 1)),
            ('crypt', 'I', (1, 2, 3, 2 ** 32 - 1)),
            ('l1_size', 'I', (0, 2 ** 22 + 1, 2 ** 31, 2 ** 32 - 1)),
            ('l1_offset', 'Q', (0, 8, 512, 65536, 2 ** 62, 2 ** 64 - 65536,
                                2 ** 63)),
            ('reftable_offset', 'Q', (0, 8, 2 ** 62, 2 ** 64 - 65536)),
            ('reftable_clusters', 'I', (0, 129, 2 ** 31, 2 ** 32 - 1)),
            ('n_snapshots', 'I', (1, 65537, 2 ** 32 - 1)),
            ('incompatible', 'Q', (2, 4, 8, 16, 32, 2 ** 63)),
            ('refcount_order', 'I', (7, 64, 2 ** 32 - 1)),
            ('header_length', 'I', (0, 72, 100, 105, 65537, 2 ** 32 - 8,
                                    2 ** 32 - 1))):
        for value in values:
            def make(path, patch=qcow2_field(name, form, value)):
                qcow2(path, patches=[patch])
            # The flag of subclusters makes something else of the L2 table,
            # but nothing wrong; and a length of 105 harms nobody.
            fine = (name, value) in (('incompatible', 16),
                                     ('header_length', 105))
            case(f'qcow2 {name} {value:#x}', refused=not fine)(make)


qcow2_fields()


def qcow2_entries():
    """An entry of a table that leads where it should not."""
    cluster = 65536
    copied = 1 << 63
    where = {'the header': 0, 'the refcount table': 1, 'the refcount block': 2,
             'the L1 table': 3, 'the L2 table': 4, 'the end': 100}
    for name, index in where.items():
        to = index * cluster | copied
        if index:  # 0 is "none" in L1 and L2
            case(f'qcow2 data in {name}', refused=True)(
                lambda path, to=to: qcow2(path, l2=[to]))
        if index not in (0, 4):
            case(f'qcow2 an L2 table in {name}', refused=True)(
                lambda path, to=to: qcow2(path, l1=[to]))
        case(f'qcow2 a refcount block in {name}', refused=index != 2)(
            lambda path, index=index: qcow2(path, patches=[
                (cluster + 8, be64(index * cluster or 1))]))
    for name, entry in (('reserved bits', 5 * cluster | 0x3e),
                        ('an odd offset', 5 * cluster + 512 | copied),
                        ('all bits', 2 ** 64 - 1),
                        ('the highest offset', (1 << 56) - cluster | copied)):
        case(f'qcow2 data with {name}', refused=True)(
            lambda path, entry=entry: qcow2(path, l2=[entry]))
        case(f'qcow2 an L2 table with {name}', refused=True)(
            lambda path, entry=entry: qcow2(path, l1=[entry]))


qcow2_entries()


@case('qcow2 a cluster twice', refused=True, check=2)
def _(path):
    qcow2(path, l2=[5 * 65536 | 1 << 63] * 2)


@case('qcow2 the largest disk, and no data', refused=True)
def _(path):
    """2^60 bytes are 2^21 L1 entries at 2 MiB clusters, all of them none."""
    bits = 21
    qcow2(path, bits=bits, virtual=2 ** 60, l1=[0], l2=[], data=0, patches=[
        qcow2_field('l1_offset', 'Q', 5 << bits),
        (2 << bits, struct.pack('>H', 1) * 13)], file_size=13 << bits)


@case('qcow2 every L1 entry to one L2 table', refused=True, huge=True)
def _(path):
    """65,536 entries, each with 8,192 more behind it."""
    n = 2 ** 16
    qcow2(path, virtual=n * 2 ** 29, file_size=96 * M, patches=[
        qcow2_field('l1_offset', 'Q', 64 * K * 16),
        (64 * K * 16, be64(4 * 64 * K | 1 << 63) * n)])


@case('qcow2 every L2 entry to one cluster', refused=True)
def _(path):
    qcow2(path, virtual=2 ** 29, l2=[5 << 16 | 1 << 63] * 8192)


def qcow2_compressed(host, sectors):
    """The entry at clusters of 64 KiB."""
    return 1 << 62 | (sectors - 1) << 54 | host


@case('qcow2 compressed data past the end', refused=True)
def _(path):
    qcow2(path, l2=[qcow2_compressed(1 << 40, 8)])


@case('qcow2 compressed data that goes on past the end')
def _(path):
    qcow2(path, l2=[qcow2_compressed(5 * 65536 + 65000, 256)])


@case('qcow2 compressed data that is none', refused=True)
def _(path):
    qcow2(path, l2=[qcow2_compressed(5 * 65536, 8)])


@case('qcow2 compressed data in the L2 table', refused=True)
def _(path):
    qcow2(path, l2=[qcow2_compressed(4 * 65536, 4)])


def bomb(path, method):
    """64 KiB that grow to a gigabyte, where a cluster is expected."""
    if method:
        done = subprocess.run(
            f'head -c {1 << 30} /dev/zero | zstd -q -1 -c', shell=True,
            check=False, capture_output=True)
        data = done.stdout
    else:
        packer = zlib.compressobj(9, zlib.DEFLATED, -12)
        data = b''.join(packer.compress(bytes(M)) for _ in range(64))
    patches = [(5 * 65536, data[:65536])]
    if method:
        patches += [qcow2_field('incompatible', 'Q', 8), (104, b'\1')]
    qcow2(path, l2=[qcow2_compressed(5 * 65536, 128)], patches=patches)


case('qcow2 a bomb of zlib')(lambda path: bomb(path, 0))
case('qcow2 a bomb of zstd')(lambda path: bomb(path, 1))


def qcow2_backing(path, name, offset=None, size=None, form=b''):
    at = 4096
    data = name.encode()
    extensions = b''
    if form:
        extensions = struct.pack('>II', 0xe2792aca, len(form)) + form
    qcow2(path, l2=[0], extensions=extensions, patches=[
        (at, data),
        qcow2_field('backing_offset', 'Q', at if offset is None else offset),
        qcow2_field('backing_size', 'I', len(data) if size is None else size)])


for _offset, _size in ((4096, M), (4096, 2 ** 32 - 1), (65530, 100),
                       (2 ** 63, 10), (2 ** 64 - 5, 10), (0, 10), (8, 10)):
    case(f'qcow2 a backing name of {_size} bytes at {_offset:#x}',
         refused=_offset > 8)(
        lambda path, o=_offset, s=_size: qcow2_backing(path, 'base', o, s))


@case('qcow2 its own backing file')
def _(path):
    qcow2_backing(path, os.path.basename(path), form=b'qcow2')


@case('qcow2 its own backing file, under another name')
def _(path):
    os.symlink(os.path.basename(path), path + '.link')
    qcow2_backing(path, './' + os.path.basename(path) + '.link')


@case('qcow2 two that back each other')
def _(path):
    qcow2_backing(path, os.path.basename(path) + '.other', form=b'qcow2')
    qcow2_backing(path + '.other', os.path.basename(path), form=b'qcow2')


@case('qcow2 a chain of a thousand')
def _(path):
    name = os.path.basename(path)
    qcow2_backing(path, name + '.1', form=b'qcow2')
    for i in range(1, 1000):
        qcow2_backing(f'{path}.{i}', f'{name}.{i + 1}', form=b'qcow2')


for _name in ('/dev/zero', '/dev/tty', '/proc/self/mem', '/etc', 'a' * 1000,
              'nbd:localhost:1', 'json:{"driver":"raw"}', 'fd:0', '%s%n',
              '/dev/stdin', 'fifo'):
    @case(f'qcow2 a backing file named {_name[:24]}')
    def _(path, name=_name):
        if name == 'fifo':
            name = os.path.basename(path) + '.fifo'
            os.mkfifo(path + '.fifo')
        qcow2_backing(path, name)


for _length in (7, 65536, 2 ** 31, 2 ** 32 - 8, 2 ** 32 - 1):
    for _magic in (0xe2792aca, 0x6803f857, 0x23852875, 0x0537be77, 0x44415441,
                   0x12345678):
        case(f'qcow2 an extension {_magic:#x} of {_length} bytes')(
            lambda path, m=_magic, n=_length: qcow2(
                path, extensions=struct.pack('>II', m, n)))


def qcow2_bitmaps(path, n, size, offset, directory=b''):
    qcow2(path, extensions=struct.pack('>IIIIQQ', 0x23852875, 24, n, 0, size,
                                       offset),
          patches=[qcow2_field('autoclear', 'Q', 1), (5 * 65536, directory)])


for _n, _size, _offset in ((1, 32, 5 * 65536), (65536, 2 ** 40, 5 * 65536),
                           (2 ** 32 - 1, 2 ** 64 - 1, 2 ** 64 - 65536),
                           (1, 32, 3), (1, 32, 2 ** 50), (0, 0, 0)):
    case(f'qcow2 {_n} bitmaps in {_size} bytes at {_offset:#x}', refused=True)(
        lambda path, a=(_n, _size, _offset): qcow2_bitmaps(path, *a))


@case('qcow2 a bitmap with a table of no end', refused=True)
def _(path):
    entry = struct.pack('>QIIBBHI', 3 * 65536, 2 ** 32 - 1, 2, 1, 255, 2, 0)
    qcow2_bitmaps(path, 1, 32, 5 * 65536, entry + b'bitmap' + bytes(8))


def qcow2_many_bitmaps(path, n, entry, n_table=8192, flags=2, granularity=9):
    """N bitmaps of a disk of 2 TiB that share a table, all of whose entries are
    ENTRY."""
    directory = b''.join(
        struct.pack('>QIIBBHI8s', 16 * 65536, n_table, flags, 1, granularity, 8,
                    0, b'%08x' % i) for i in range(n))
    qcow2(path, virtual=2 << 40, file_size=6 << 30, extensions=struct.pack(
        '>IIIIQQ', 0x23852875, 24, n, 0, len(directory), 20 * 65536),
          patches=[qcow2_field('autoclear', 'Q', 1),
                   (16 * 65536, be64(entry) * n_table),
                   (20 * 65536, directory)])


for _n, _entry in ((1, 1), (65535, 0), (65535, 1), (65535, 5 * 65536),
                   (65535, 16 * 65536)):
    case(f'qcow2 {_n} bitmaps, all entries {_entry:#x}', refused=True)(
        lambda path, a=(_n, _entry): qcow2_many_bitmaps(path, *a))


def qcow2_snapshots(path, n, table, **more):
    qcow2(path, patches=[qcow2_field('n_snapshots', 'I', n),
                         qcow2_field('snapshots_offset', 'Q', 6 * 65536),
                         (6 * 65536, table), *more.get('patches', ())],
          data=1, file_size=more.get('file_size', 64 * M))


def snapshot(l1_offset, l1_size, id_size=1, name_size=1, extra=16):
    head = struct.pack('>QIHHIIQII', l1_offset, l1_size, id_size, name_size,
                       0, 0, 0, 0, extra)
    body = head + bytes(min(extra, 1024)) + b'1' * min(id_size + name_size, 4)
    return body + bytes(-len(body) % 8)


for _title, _args in (
        ('a table past the end', (2 ** 50, 1)),
        ('a table of 2^32 - 1', (3 * 65536, 2 ** 32 - 1)),
        ('an odd table', (3 * 65536 + 8, 1)),
        ('a table in the header', (0, 1)),
        ('names without end', (3 * 65536, 1, 65535, 65535)),
        ('extra data without end', (3 * 65536, 1, 1, 1, 2 ** 32 - 1))):
    case(f'qcow2 a snapshot with {_title}', refused=True)(
        lambda path, a=_args: qcow2_snapshots(path, 1, snapshot(*a)))


@case('qcow2 a snapshot whose L1 entries lead to one L2 table', refused=True)
def _(path):
    """2^16 entries, each with 2^13 more behind it."""
    qcow2_snapshots(path, 1, snapshot(16 * M, 2 ** 16),
                    patches=[(16 * M, be64(4 * 65536 | 1 << 63) * 2 ** 16)])


@case('qcow2 subclusters that contradict each other', refused=True)
def _(path):
    qcow2(path, l2=[5 * 65536 | 1 << 63, 2 ** 64 - 1],
          patches=[qcow2_field('incompatible', 'Q', 16)])


@case('qcow2 compressed with subclusters', refused=True)
def _(path):
    qcow2(path, l2=[qcow2_compressed(5 * 65536, 2), 1],
          patches=[qcow2_field('incompatible', 'Q', 16)])


@case('qcow2 only a magic', refused=True)
def _(path):
    sparse(path, [(0, b'QFI\xfb\0\0\0\3')])


@case('qcow2 cut off', refused=True)
def _(path):
    qcow2(path, file_size=3 * 65536 + 100)


@case('qcow2 in a file as long as can be')
def _(path):
    qcow2(path)
    grow(path)


# --- QED ---------------------------------------------------------------------

def grow(path):
    """As long as the file system can have it."""
    for bits in (63, 62, 44, 43, 40):
        try:
            os.truncate(path, (1 << bits) - 65536)
            return
        except OSError:
            pass


def qed_fields():
    for name, values in (
            ('cluster', (0, 1, 2048, 4097, 128 * M, 2 ** 31)),
            ('table', (0, 3, 32, 2 ** 31)),
            ('header', (0, 2, 2 ** 32 - 1)),
            ('features', (8, 2 ** 63)),
            ('l1_offset', (0, 64, 4097, 2 ** 62, 2 ** 64 - 4096)),
            ('size', (1, 2 ** 62, 2 ** 63, 2 ** 64 - 512))):
        for value in values:
            def make(path, name=name, value=value):
                small = name in ('cluster', 'table')
                qed(path, **{name: value},
                    **({'file_size': 65536, 'l1_offset': 8192}
                       if small else {}))
            case(f'qed {name} {value:#x}', refused=True)(make)


qed_fields()

for _name, _l1, _l2 in (
        ('an L2 table in the header', [1], None),
        ('an L2 table in the L1 table', [4096], None),
        ('an L2 table past the end', [2 ** 40], None),
        ('an L2 table at the end of numbers', [2 ** 64 - 4096], None),
        ('every L1 entry to one L2 table', [8192] * 512, None),
        ('data in the header', None, [2]),
        ('data in the L1 table', None, [4096]),
        ('data in the L2 table', None, [8192]),
        ('data past the end', None, [2 ** 40]),
        ('data at the end of numbers', None, [2 ** 64 - 4096]),
        ('a cluster twice', None, [12288, 12288])):
    case(f'qed {_name}', refused=True)(
        lambda path, a=_l1, b=_l2: qed(path, l1=a, l2=b))


@case('qed the largest tables in the smallest file', refused=True)
def _(path):
    qed(path, cluster=64 * M, table=16, size=2 ** 62, file_size=100)


@case('qed the largest tables')
def _(path):
    qed(path, cluster=64 * M, table=16, size=2 ** 50)


@case('qed the largest tables, and every L1 entry past the end', refused=True)
def _(path):
    qed(path, cluster=64 * M, table=16, size=2 ** 50, l1=[2 ** 60] * 65536)


@case('qed damaged and not closed', refused=True)
def _(path):
    qed(path, features=2, l2=[2 ** 40])


for _offset, _size in ((64, M), (64, 2 ** 32 - 1), (4090, 100),
                       (2 ** 32 - 1, 2 ** 32 - 1), (0, 4)):
    case(f'qed a backing name of {_size} bytes at {_offset:#x}',
         refused=_offset != 0)(
        lambda path, b=(_offset, _size): qed(path, features=1, backing=b))


@case('qed its own backing file')
def _(path):
    name = os.path.basename(path).encode()
    qed(path, features=1, backing=(64, len(name)), patches=[(64, name)])


@case('qed only a magic', refused=True)
def _(path):
    sparse(path, [(0, b'QED\0')], 64)


@case('qed in a file as long as can be')
def _(path):
    qed(path)
    grow(path)


# --- others ------------------------------------------------------------------

# --- Parallels ---------------------------------------------------------------

def parallels(path, tracks=8, entries=4, sectors=32, table=(), data_off=8,
              extended=True, ext_off=0, in_use=0, version=2, file_size=None,
              patches=()):
    head = struct.pack('<16sIIIIIQIIIQ', b'WithouFreSpacExt' if extended else
                       b'WithoutFreeSpace', version, 16, 1, tracks, entries,
                       sectors, in_use, data_off, 0, ext_off)
    sparse(path, [(0, head), (64, struct.pack(f'<{len(table)}I', *table)),
                  *patches], 1 << 16 if file_size is None else file_size)


for field, values in (
        ('tracks', (0, 1, 7, 4186000, 2 ** 31, 2 ** 32 - 1)),
        ('entries', (0, 3, 2 ** 29 - 1, 2 ** 29, 2 ** 32 - 1)),
        ('sectors', (0, 33, 2 ** 54, 2 ** 63, 2 ** 64 - 1)),
        ('data_off', (0, 1, 2 ** 31, 2 ** 32 - 1)),
        ('ext_off', (1, 8, 2 ** 54, 2 ** 55, 2 ** 64 - 1)),
        ('in_use', (0x746f6e59, 0x312e3276, 2 ** 32 - 1)),
        ('version', (0, 1, 3, 2 ** 32 - 1))):
    for value in values:
        for extended in (False, True):
            case(f'parallels {field} {value:#x}'
                 f'{" extended" if extended else ""}', refused=True)(
                     lambda path, f=field, v=value, e=extended: parallels(
                         path, table=(1, 2, 3), extended=e, **{f: v}))


@case('parallels the largest table', refused=True)
def _(path):
    parallels(path, tracks=8, entries=2 ** 29 - 1, sectors=8 * (2 ** 29 - 1),
              data_off=8 * 2 ** 19, file_size=1 << 40)


@case('parallels the largest clusters', refused=True)
def _(path):
    parallels(path, tracks=4185000, entries=20, sectors=4185000 * 20,
              table=[77, 2], data_off=4185000, file_size=1 << 32)


@case('parallels an extension of 2 GiB', refused=True)
def _(path):
    parallels(path, tracks=4185000, sectors=4185000, data_off=4185000,
              ext_off=4185000, in_use=0x312e3276, file_size=1 << 33,
              patches=[(4185000 * 512, le64(0xab234cef23dcea87))])


@case('parallels all entries alike', refused=True)
def _(path):
    parallels(path, entries=4000, sectors=32000, table=[8] * 4000, data_off=32)


@case('parallels a file as long as can be', refused=True)
def _(path):
    parallels(path, entries=2000, sectors=16000, table=[2 ** 31 - 2] * 2000,
              data_off=16, file_size=1 << 42)


@case('nothing', refused=True)
def _(path):
    sparse(path, [])


@case('raw as long as can be', refused=True)
def _(path):
    sparse(path, [(0, b'x' * 512)])
    grow(path)


# --- running -----------------------------------------------------------------

class Broken(Exception):
    pass


def limits():
    if not SLOW:
        resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY, 2 * MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS * 2, SECONDS * 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def rhea(*args):
    """Run it; its exit code, held against what is true of every command."""
    line = ' '.join(args)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen((RHEA, *args), stdin=subprocess.DEVNULL,
                                 stdout=out, stderr=err, preexec_fn=limits,
                                 env={**os.environ, 'MALLOC_ARENA_MAX': '1'})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        said = err.read(4000).decode('utf-8', 'replace')
    code = child.returncode
    if code < 0:
        raise Broken(f'{line}: signal {-code}: {said}')
    if code > (63 if args[0] == 'check' else 4):
        raise Broken(f'{line}: exit code {code}: {said}')
    if code == 1 and 'compare' not in args and 'rhea-img: ' not in said:
        raise Broken(f'{line}: fails without a message: {said!r}')
    if 'Sanitizer' in said:
        raise Broken(f'{line}: {said}')
    if usage.ru_utime + usage.ru_stime > SECONDS:
        raise Broken(f'{line}: {usage.ru_utime:.1f} + {usage.ru_stime:.1f} s')
    if not SLOW and usage.ru_maxrss * 1024 > MEMORY:
        raise Broken(f'{line}: {usage.ru_maxrss} KiB')
    return code


def digest(path):
    """Of the size and the bytes, whether zeroes are holes or not."""
    sha = hashlib.sha256(str(os.path.getsize(path)).encode())
    block = 65536
    with open(path, 'rb') as f:
        at = 0
        while True:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                return sha.hexdigest()
            at -= at % block
            data = os.pread(f.fileno(), block, at)
            if data.strip(b'\0'):
                sha.update(str(at).encode() + data)
            at += block


def convert(path, target, expect):
    before = digest(path)
    code = rhea('convert-inplace', '--dry-run', '-O', target, path)
    if digest(path) != before:
        raise Broken(f'a dry run to {target} changes the file')
    again = rhea('convert-inplace', '-O', target, path)
    # A dry run reads no guest data, and compressed clusters may be damaged.
    if again == 0 and code != 0:
        raise Broken(f'to {target}: exit code {again}, but {code} when dry')
    if again and digest(path) != before:
        raise Broken(f'to {target}: refused, but the file has changed')
    if again == 0 and expect.get('refused'):
        raise Broken(f'to {target}: was to be refused')
    # An image that has the format already is left to its check.
    if digest(path) != before and rhea('check', path) not in (0, 63):
        raise Broken(f'to {target}: does not check clean')


def run(make, expect, folder):
    path = os.path.join(folder, 'image')
    make(path)
    before = digest(path)
    commands = [('info', '--output=json'), ('check',),
                ('map', '--output=json'), ('compare', path)]
    if not SLOW:
        commands += [('info',), ('check', '--output=json'), ('map',)]
    for name, *args in commands:
        code = rhea(name, *args, path)
        if code != expect.get(name, code):
            raise Broken(f'{name}: exit code {code}, not {expect[name]}')
    if digest(path) != before:
        raise Broken('something that only reads changes the file')
    for target in ('qcow2',) if SLOW else ('raw', 'qcow2', 'qed'):
        if not expect.get('huge'):
            rhea('convert', '-O', target, path, os.path.join(folder, 'out'))
    is_qed = open(path, 'rb').read(4) == b'QED\0'
    for target in ('qcow2', 'qed'):
        own = target == ('qed' if is_qed else 'qcow2')
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            copy = os.path.join(fresh, 'image')
            make(copy)
            convert(copy, target, {} if own else expect)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        copy = os.path.join(fresh, 'image')
        make(copy)
        good = rhea('check', '-r', 'all', copy) == 0
        if good and rhea('check', copy) != 0:
            raise Broken('repaired, but does not check clean')
        if rhea('bitmap', '--add', copy, 'new') == 0:
            rhea('bitmap', '--merge', 'new', copy, '00000000')
            rhea('bitmap', '--remove', copy, 'new')
        if good and rhea('check', copy) != 0:
            raise Broken('does not check clean with a bitmap')


def main():
    words = [a for a in sys.argv[1:] if not a.startswith('-')]
    chosen = [c for c in CASES if all(w in c[0] for w in words)]
    print(f'1..{len(chosen)}')
    failed = 0
    for i, (name, make, expect) in enumerate(chosen, 1):
        with tempfile.TemporaryDirectory(prefix='rhea-hostile-') as folder:
            try:
                run(make, expect, folder)
                print(f'ok {i} - {name}', flush=True)
            except Broken as e:
                failed += 1
                print(f'not ok {i} - {name}\n# {e}', flush=True)
    return failed > 0


if __name__ == '__main__':
    sys.exit(main())
