# SPDX-License-Identifier: MIT
"""Parallels' images and bundles, read and written by the description alone
(docs/interop/parallels.txt and prl-xml.txt in QEMU): nothing of it is shared
with what is tested. Slow and whole in memory.
"""
import hashlib
import os
import random
import struct
import uuid
import xml.etree.ElementTree as ElementTree
from xml.sax.saxutils import escape

SECTOR = 512
HEADER = 64
TOP = '{5fbaabe3-6958-40ff-92a7-860e329aab41}'
NONE = '{00000000-0000-0000-0000-000000000000}'
IN_USE = 0x746f6e59
CLOSED = 0x312e3276
FIELDS = struct.Struct('<16sIIIIIQIIIQ')


class Hds:
    """A growing file. CLUSTERS: guest bytes by number, only what it has."""

    def __init__(self, size, cluster=1 << 20, extended=True):
        self.size, self.cluster, self.extended = size, cluster, extended
        self.clusters = {}
        self.in_use, self.flags = 0, 0
        self.start = None  # of the clusters, in bytes; None: as it is usual
        self.zero_start = False  # the header does not say
        self.bitmaps = []  # (uuid, granularity in sectors, bits as bytes)

    def entries(self):
        return -(-self.size // self.cluster)

    def put(self, offset, data, below=bytes):
        """Write guest bytes; what they do not cover of a cluster comes from
        BELOW (offset, length), zeroes where that is left out."""
        while data:
            number, skip = divmod(offset, self.cluster)
            n = min(self.cluster - skip, len(data))
            if number not in self.clusters:
                base = number * self.cluster
                self.clusters[number] = bytearray(
                    bytes(self.cluster) if below is bytes else
                    below(base, self.cluster).ljust(self.cluster, b'\0'))
            self.clusters[number][skip:skip + n] = data[:n]
            data, offset = data[n:], offset + n

    def write(self, path, order=None):
        """ORDER: a random.Random that decides where clusters go."""
        unit = self.cluster if self.extended else SECTOR
        table_end = HEADER + 4 * self.entries()
        align = self.cluster if self.extended else SECTOR
        start = self.start or -(-table_end // align) * align
        places = list(range(len(self.clusters)))
        if order:
            order.shuffle(places)
        table = [0] * self.entries()
        with open(path, 'wb') as f:
            for place, number in zip(places, sorted(self.clusters)):
                host = start + place * self.cluster
                table[number] = host // unit
                f.seek(host)
                f.write(self.clusters[number])
            end = start + len(places) * self.cluster
            extension = self.write_bitmaps(f, end) if self.bitmaps else 0
            f.truncate(max(end, f.seek(0, 2)))
            f.seek(0)
            sectors = self.size // SECTOR
            f.write(FIELDS.pack(
                b'WithouFreSpacExt' if self.extended else b'WithoutFreeSpace',
                2, 16, sectors // 512, self.cluster // SECTOR, self.entries(),
                sectors, self.in_use,
                0 if self.zero_start else start // SECTOR, self.flags,
                extension // SECTOR))
            f.write(struct.pack(f'<{len(table)}I', *table))

    def write_bitmaps(self, f, at):
        """Their bits and the extension behind AT; where that is."""
        features = b''
        for name, granularity, bits in self.bitmaps:
            l1 = []
            for i in range(0, -(-len(bits) // 8) * 8, self.cluster):
                piece = bits[i:i + self.cluster]
                if not any(piece):
                    l1.append(0)
                    continue
                f.seek(at)
                f.write(piece.ljust(self.cluster, b'\0'))
                l1.append(at // SECTOR)
                at += self.cluster
            data = struct.pack('<Q16sII', self.size // SECTOR,
                               uuid.UUID(name).bytes, granularity, len(l1))
            data += struct.pack(f'<{len(l1)}Q', *l1)
            features += struct.pack('<QQII', 0x20385fae252cb34a, 0, len(data),
                                    0) + data
        body = (features + bytes(24)).ljust(self.cluster - 24, b'\0')
        f.seek(at)
        f.write(struct.pack('<Q', 0xab234cef23dcea87) +
                hashlib.md5(body).digest() + body)
        return at


def read_hds(path):
    """A file as an Hds."""
    with open(path, 'rb') as f:
        data = f.read()
    (magic, version, _, _, tracks, entries, sectors, in_use, start, flags,
     _) = FIELDS.unpack(data[:HEADER])
    assert version == 2 and magic in (b'WithouFreSpacExt', b'WithoutFreeSpace')
    extended = magic == b'WithouFreSpacExt'
    if not extended:
        sectors &= 0xffffffff
    hds = Hds(sectors * SECTOR, tracks * SECTOR, extended)
    hds.in_use, hds.flags = in_use, flags
    assert entries >= hds.entries()
    hosts = {}
    for i, entry in enumerate(struct.unpack_from(f'<{entries}I', data,
                                                 HEADER)):
        if not entry:
            continue
        host = entry * (hds.cluster if extended else SECTOR)
        assert host >= max(start * SECTOR, HEADER + 4 * entries)
        assert host + hds.cluster <= len(data), (path, i, host, len(data))
        assert host not in hosts, 'used twice'
        hosts[host] = i
        hds.clusters[i] = bytearray(data[host:host + hds.cluster])
    return hds


def disk_bytes(size, files):
    """The guest's bytes of FILES, from the lowest up: Hds, or bytes."""
    guest = bytearray(size)
    for file in files:
        if not isinstance(file, Hds):
            guest[:] = bytes(file[:size]).ljust(size, b'\0')
            continue
        for number, data in file.clusters.items():
            at = number * file.cluster
            n = min(file.cluster, size - at)
            guest[at:at + n] = data[:n]
    return bytes(guest)


def local_name(name):
    """The file that a descriptor means, from where it was moved to."""
    if name.startswith('/') or '\\' in name:
        name = name.replace('\\', '/').rsplit('/', 1)[-1]
    return name


class Bundle:
    """A folder, as its descriptor has it."""

    def __init__(self, folder):
        self.folder = folder
        root = ElementTree.parse(os.path.join(folder,
                                              'DiskDescriptor.xml')).getroot()
        assert root.tag == 'Parallels_disk_image'
        self.size = int(root.findtext('Disk_Parameters/Disk_size')) * SECTOR
        self.storages = []
        for storage in root.iterfind('StorageData/Storage'):
            files = {i.findtext('GUID'): (i.findtext('Type'),
                                          i.findtext('File'))
                     for i in storage.iterfind('Image')}
            assert len(files) == len(storage.findall('Image'))
            self.storages.append((int(storage.findtext('Start')) * SECTOR,
                                  int(storage.findtext('End')) * SECTOR,
                                  files))
        self.storages.sort(key=lambda s: s[0])
        self.parents, self.names = {}, {}
        for shot in root.iterfind('Snapshots/Shot'):
            guid = shot.findtext('GUID')
            self.parents[guid] = shot.findtext('ParentGUID')
            self.names[shot.findtext('Name')] = guid
        self.temporary = {s.findtext('GUID') for s in
                          root.iterfind('Snapshots/Shot')
                          if s.find('Temporary') is not None}
        self.top = root.findtext('Snapshots/TopGUID') or TOP

    def chain(self, guid):
        """From the root to GUID."""
        chain = []
        while guid != NONE:
            chain.insert(0, guid)
            guid = self.parents[guid]
            assert len(chain) < 1000
        return chain

    def read(self, guid=None):
        guest = b''
        for start, end, files in self.storages:
            assert start == len(guest)
            layers = []
            for one in self.chain(guid or self.top):
                kind, name = files[one]
                path = os.path.join(self.folder, local_name(name))
                if kind == 'Plain':
                    with open(path, 'rb') as f:
                        layers.append(f.read())
                else:
                    layers.append(read_hds(path))
                    assert layers[-1].size == end - start
            guest += disk_bytes(end - start, layers)
        assert len(guest) == self.size
        return guest

    def file_names(self):
        return {os.path.basename(local_name(name)) for _, _, files in self.storages
                for _, name in files.values()}


def descriptor(size, storages, shots, top=None, extra=''):
    """A descriptor's text. STORAGES: (start, end, block, images), in sectors;
    an image is (guid, type, file). SHOTS: (guid, parent)."""
    text = ['<?xml version="1.0" encoding="UTF-8"?>',
            '<Parallels_disk_image Version="1.0">', '<Disk_Parameters>',
            f'<Disk_size>{size // SECTOR}</Disk_size>',
            f'<Cylinders>{size // SECTOR // 512}</Cylinders><Heads>16</Heads>',
            '<Sectors>32</Sectors><Padding>0</Padding>', extra,
            '</Disk_Parameters>', '<StorageData>']
    for start, end, block, files in storages:
        text.append(f'<Storage><Start>{start}</Start><End>{end}</End>'
                    f'<Blocksize>{block}</Blocksize>')
        text += [f'<Image><GUID>{guid}</GUID><Type>{kind}</Type>'
                 f'<File>{escape(name)}</File></Image>'
                 for guid, kind, name in files]
        text.append('</Storage>')
    text.append('</StorageData><Snapshots>')
    if top:
        text.append(f'<TopGUID>{top}</TopGUID>')
    text += [f'<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID>'
             '</Shot>' for guid, parent in shots]
    text.append('</Snapshots></Parallels_disk_image>')
    return '\n'.join(text) + '\n'


def random_guid(rng):
    return '{%s}' % uuid.UUID(int=rng.getrandbits(128), version=4)


def make_bundle(folder, seed):
    """A random bundle, and what each of its shots holds: by GUID, bytes."""
    rng = random.Random(seed)
    os.mkdir(folder)
    cluster = rng.choice([512, 4096, 63 * 512, 65536, 252 << 10])
    n_parts = rng.choice([1, 1, 1, 2, 3, 7])
    per = rng.randrange(1, 40) * rng.choice([cluster, cluster, 512])
    size = max(512, per * n_parts - rng.randrange(per // 512) * 512)
    top = rng.choice([None, None, random_guid(rng)])
    guids = [random_guid(rng) for _ in range(rng.choice([0, 0, 1, 2, 5]))]
    guids.append(top or TOP)
    parents = {}
    for i, guid in enumerate(guids):
        parents[guid] = rng.choice(guids[:i]) if i else NONE
    guests = {guid: b'' for guid in guids}
    storages = []
    plain = rng.random() < 0.3
    for part, start in enumerate(range(0, size, per)):
        end = min(start + per, size)
        files, parts = [], {}
        for guid in guids:
            below = parts.get(parents[guid], bytes(end - start))
            is_plain = plain and parents[guid] == NONE
            guest = bytearray(below)
            hds = Hds(end - start, cluster, rng.random() < 0.5)
            if not hds.extended and rng.random() < 0.3:
                hds.zero_start = True
            for _ in range(rng.randrange(6)):
                at = rng.randrange(end - start)
                data = rng.randbytes(rng.randrange(1, 3 * cluster))
                if rng.random() < 0.2:
                    data = bytes(len(data))
                data = data[:end - start - at]
                guest[at:at + len(data)] = data
                hds.put(at, data, lambda o, n, b=below: bytes(b[o:o + n]))
            name = f'disk.hdd.{part}.{guid}.hds'
            if is_plain:
                with open(os.path.join(folder, name), 'wb') as f:
                    f.write(guest)
            else:
                hds.write(os.path.join(folder, name), rng)
            if rng.random() < 0.2:
                name = rng.choice(['/vm/other.pvm/disk.hdd/', './',
                                   'C:\\vm\\']) + name
            files.append((guid, 'Plain' if is_plain else 'Compressed', name))
            parts[guid] = bytes(guest)
            guests[guid] += guest
        rng.shuffle(files)
        storages.append((start // SECTOR, end // SECTOR, cluster // SECTOR,
                         files))
    shots = list(parents.items())
    rng.shuffle(storages)
    rng.shuffle(shots)
    with open(os.path.join(folder, 'DiskDescriptor.xml'), 'w',
              encoding='utf-8') as f:
        f.write(descriptor(size, storages, shots, top))
    return guests, top or TOP
