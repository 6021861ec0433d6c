# SPDX-License-Identifier: MIT
"""Parallels' images and bundles: QEMU reads and checks the growing files that
we write, and we those that it writes; bundles, which QEMU does not know, are
read and written by tests/lib/prl.py, with raw copies beside."""
import os
import random
import shutil
import struct
import subprocess
import sys
import time
import uuid

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413

sys.path.insert(0, os.path.join(HERE, '..', 'lib'))
import prl  # noqa: E402  pylint: disable=wrong-import-position

RHEA_IO = os.environ['RHEA_IO']
KINDS = ['', 'cluster_size=64k', 'cluster_size=32256', 'extended=off',
         'extended=off,cluster_size=4k']


class Parallels(tool.Case):
    maps = 0

    def rhea_io(self, path, *commands, options=()):
        args = []
        for command in commands:
            args += ['-c', command]
        done = tool.execute(RHEA_IO, '-f', 'parallels', *options, *args, path)
        self.assertEqual(done.code, 0, str(done))
        self.assertNotIn('failed', done.out, str(done))

    def same_bytes(self, image, guest, *args):
        self.rhea('convert', '-f', 'parallels', '-O', 'raw', *args, image,
                  'same.raw')
        self.assertTrue(contents('same.raw') == guest, f'{image} {args}')

    def random_commands(self, rng, guest, count):
        """Commands of qemu-io, carried out in GUEST too."""
        commands = []
        for _ in range(count):
            at = rng.randrange(len(guest) // 512) * 512
            length = min(rng.choice([512, 4096, 70 << 10, MIB, 3 * MIB]),
                         len(guest) - at)
            value = rng.randrange(1, 256)
            if rng.random() < 0.25:
                value = 0
                commands.append(f'write -z {rng.choice(["", "-u"])} {at} '
                                f'{length}')
            else:
                commands.append(f'write -P {value} {at} {length}')
            guest[at:at + length] = bytes([value]) * length
        return commands

    def test_conversion_both_ways(self):
        self.make_data('raw', 9 * MIB + 512, [
            (0, 700), (MIB, MIB), (4 * MIB - 512, 3000), (9 * MIB - 100, 612)])
        for options in KINDS:
            for writer, reader in ((tool.rhea, tool.qemu),
                                   (tool.qemu, tool.rhea)):
                if writer is tool.qemu and 'extended' in options:
                    continue
                with self.subTest(options=options, writer=writer.__name__):
                    args = ['-o', options] if options else []
                    self.good(writer('convert', '-O', 'parallels', '-f', 'raw',
                                     *args, 'raw', 'new'))
                    self.sound('new', 'parallels')
                    self.rhea('check', '-f', 'parallels', 'new')
                    self.good(reader('convert', '-f', 'parallels', '-O', 'raw',
                                     'new', 'out'))
                    self.assertEqual(contents('out'), contents('raw'))
                    self.assertEqual(
                        prl.disk_bytes(9 * MIB + 512, [prl.read_hds('new')]),
                        contents('raw'))

    def test_both_write_to_one_image(self):
        for seed in range(4):
            rng = random.Random(seed)
            options = KINDS[seed + 1]
            with self.subTest(seed=seed, options=options):
                guest = bytearray(5 * MIB + 1024 * seed)
                self.rhea('create', '-q', '-f', 'parallels', '-o', options,
                          'new', len(guest))
                for turn in range(6):
                    commands = self.random_commands(rng, guest, 5)
                    if turn % 2:
                        self.qemu_io('new', 'parallels', *commands)
                    else:
                        self.rhea_io('new', *commands)
                    self.same_bytes('new', guest)
                    self.qemu('convert', '-f', 'parallels', '-O', 'raw', 'new',
                              'theirs')
                    self.assertTrue(contents('theirs') == guest)
                    self.sound('new', 'parallels')
                    self.rhea('check', '-f', 'parallels', 'new')

    def test_files_of_other_layouts(self):
        """Clusters in any order, anywhere, and headers as old programs left
        them."""
        for seed in range(24):
            rng = random.Random(seed)
            hds = prl.Hds(rng.randrange(1, 4000) * 512,
                          rng.choice([512, 4096, 63 * 512, 65536]),
                          rng.random() < 0.5)
            hds.in_use = rng.choice([0, prl.CLOSED, 0x32326470])
            hds.flags = rng.choice([0, 0, 1])
            guest = bytearray(hds.size)
            for _ in range(rng.randrange(8)):
                at = rng.randrange(hds.size)
                data = rng.randbytes(rng.randrange(1, 2 * hds.cluster))
                data = data[:hds.size - at]
                hds.put(at, data)
                guest[at:at + len(data)] = data
            if not hds.extended:
                hds.zero_start = rng.random() < 0.3
                hds.start = rng.choice([None, -(-(64 + 4 * hds.entries()) //
                                                512) * 512 + 512 * 5])
                if hds.zero_start:
                    hds.start = None
            with self.subTest(seed=seed):
                hds.write('old', rng)
                self.same_bytes('old', guest)
                code = tool.rhea('check', '-f', 'parallels', 'old').code
                wrong = hds.flags and hds.clusters
                self.assertEqual(code, 2 if wrong else 0)
                commands = self.random_commands(rng, guest, 4)
                self.rhea_io('old', *commands)
                self.same_bytes('old', guest)
                self.rhea('check', '-f', 'parallels', 'old')
                self.assertEqual(
                    prl.disk_bytes(hds.size, [prl.read_hds('old')]), guest)
                self.assertEqual(prl.read_hds('old').flags & 1, 0)
                self.sound('old', 'parallels')

    def test_clusters_elsewhere_than_the_header_says(self):
        """The file grows when new clusters need it, and not otherwise."""
        header = struct.pack('<16s5IQ3IQ', b'WithoutFreeSpace', 2, 16, 0, 8, 8,
                             64, 0, 1, 0, 0)
        table = struct.pack('<8I', 24, 32, *[0] * 6)
        with open('elsewhere', 'wb') as file:
            file.write((header + table).ljust(24 * 512, b'\0') + b'x' * 8192)
        for i in range(3):
            self.rhea_io('elsewhere', f'write -P {i + 1} 0 512')
            self.assertEqual(os.stat('elsewhere').st_size, 40 * 512)
        self.sound('elsewhere', 'parallels')

    def test_sizes(self):
        for seed in range(8):
            rng = random.Random(seed)
            options = f'cluster_size={rng.choice([512, 4096, 65536])}'
            options += rng.choice([',extended=off', ''])
            with self.subTest(seed=seed, options=options):
                guest = bytearray(rng.randrange(1, 3000) * 512)
                self.rhea('create', '-q', '-f', 'parallels', '-o', options,
                          'new', len(guest))
                for _ in range(4):
                    self.rhea_io('new', *self.random_commands(rng, guest, 3))
                    size = rng.randrange(1, 6000) * 512
                    self.rhea('resize', '--shrink', '-f', 'parallels', 'new',
                              size)
                    guest = guest[:size] + bytearray(max(0, size - len(guest)))
                    self.same_bytes('new', guest)
                    self.sound('new', 'parallels')
                    self.rhea('check', '-f', 'parallels', 'new')
                    self.qemu('convert', '-f', 'parallels', '-O', 'raw', 'new',
                              'theirs')
                    self.assertTrue(contents('theirs') == guest)

    def sound(self, path, fmt):
        """QEMU 7.2 takes a part of the table of an image without any cluster
        for a leak, where that is longer than a cluster."""
        if prl.read_hds(path).clusters:
            super().sound(path, fmt)

    # --- Bitmaps ---

    @staticmethod
    def wait_for(number):
        """Until process NUMBER is at its end, though perhaps nobody has asked
        for its exit code yet. While other threads of it end, its files are
        still open."""
        while True:
            try:
                threads = len(os.listdir(f'/proc/{number}/task'))
                with open(f'/proc/{number}/stat', encoding='utf-8') as f:
                    state = f.read().rsplit(')', 1)[1].split()[0]
                if state == 'Z' and threads == 1:
                    return
            except (FileNotFoundError, ProcessLookupError):
                return
            time.sleep(0.01)

    def dirty(self, path, name):
        """What QEMU's server calls dirty: (offset, length)."""
        if not shutil.which('qemu-nbd'):
            self.skipTest('no qemu-nbd')
        pid = os.path.join(os.getcwd(), 'pid')
        socket = os.path.join(os.getcwd(), 'socket')
        done = subprocess.run(
            ['qemu-nbd', '--read-only', '--fork', '--pid-file', pid, '--socket',
             socket, '--bitmap', name, '-f', 'parallels', path],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.maps += 1
        program = self.rhea if self.maps % 2 else self.qemu
        chunks = program('map', '--output=json', '--image-opts',
                         f'driver=nbd,server.type=unix,server.path={socket},'
                         f'x-dirty-bitmap=qemu:dirty-bitmap:{name}').json
        self.wait_for(contents(pid).decode().strip())
        return [(c['start'], c['length']) for c in chunks if not c['data']]

    def test_bitmaps_follow_writes(self):
        name = 'e4f2eed0-37fe-4539-b50b-85d2e7fd235f'
        other = str(uuid.UUID(int=5))
        self.rhea('create', '-q', '-f', 'parallels', '-o', 'cluster_size=64k',
                  'new', '64M')
        self.rhea('bitmap', '--add', '-g', '65536', '-f', 'parallels', 'new',
                  name)
        self.rhea_io('new', 'write -P 1 5M 64k', 'write -z 10M 192k')
        self.assertEqual(self.dirty('new', name),
                         [(5 * MIB, 65536), (10 * MIB, 196608)])
        self.rhea('bitmap', '--add', '-g', '4096', '-f', 'parallels', 'new',
                  other)
        for _ in range(4):
            self.rhea_io('new', 'write -P 2 63M 1M', 'write 0 512')
            self.rhea('check', '-f', 'parallels', 'new')
        self.assertEqual(self.dirty('new', name),
                         [(0, 65536), (5 * MIB, 65536), (10 * MIB, 196608),
                          (63 * MIB, MIB)])
        self.assertEqual(self.dirty('new', other), [(0, 4096), (63 * MIB, MIB)])
        # The clusters of the ones before are used again.
        self.assertLess(os.path.getsize('new'), 3 * MIB)
        self.rhea('bitmap', '--clear', '-f', 'parallels', 'new', name)
        self.assertEqual(self.dirty('new', name), [])
        self.rhea('bitmap', '--merge', other, '-f', 'parallels', 'new', name)
        self.assertEqual(self.dirty('new', name), [(0, 65536), (63 * MIB, MIB)])
        self.rhea('bitmap', '--remove', '-f', 'parallels', 'new', other)
        self.rhea('bitmap', '--remove', '-f', 'parallels', 'new', name)
        self.sound('new', 'parallels')

    def test_bitmaps_of_other_programs(self):
        """Kept through our writes, and out of date after QEMU's, which knows
        nothing of them."""
        name = str(uuid.UUID(int=77))
        bits = bytearray(64)
        bits[3] = 0x21
        hds = prl.Hds(64 * MIB, 65536)
        hds.put(MIB, b'data')
        hds.bitmaps = [(name, 256, bytes(bits))]
        hds.in_use = prl.CLOSED
        hds.write('new')
        self.assertEqual(self.dirty('new', name),
                         [(24 * 131072, 131072), (29 * 131072, 131072)])
        self.rhea_io('new', 'write 0 1k')
        self.assertEqual(self.dirty('new', name),
                         [(0, 131072), (24 * 131072, 131072),
                          (29 * 131072, 131072)])
        tool.execute('qemu-io', '-f', 'parallels', '-c', 'write 0 1k', 'new')
        for _ in range(2):
            info = self.rhea('info', '--output=json', 'new').json
            bitmap, = info['format-specific']['data']['bitmaps']
            self.assertIn('in-use', bitmap['flags'])
            self.fails(tool.rhea('bitmap', '--clear', 'new', name))
            self.rhea_io('new', 'write 2k 1k')
            self.rhea('check', '-f', 'parallels', 'new')
        self.rhea('bitmap', '--remove', 'new', name)
        self.assertNotIn('bitmaps', self.rhea('info', 'new').out)
        # Where QEMU puts data over the bitmap, which it then cannot open.
        hds.write('again')
        tool.execute('qemu-io', '-f', 'parallels', '-c', 'write 40M 1M',
                     'again')
        self.rhea('check', '-f', 'parallels', 'again')
        self.assertNotIn('bitmaps', self.rhea('info', 'again').out)
        self.rhea_io('again', 'write 2k 1k')
        self.rhea('check', '-f', 'parallels', 'again')
        self.rhea('bitmap', '--add', '-f', 'parallels', 'again', name)
        self.assertEqual(self.dirty('again', name), [])

    # --- Bundles ---

    def top_file(self):
        bundle = prl.Bundle('x.hdd')
        return 'x.hdd/' + bundle.storages[0][2][bundle.top][1]

    def test_bitmaps_of_bundles(self):
        """They are those of the file that the guest writes to, whatever
        becomes of the snapshots."""
        name, other = str(uuid.UUID(int=77)), str(uuid.UUID(int=78))
        self.rhea('create', '-q', '-f', 'parallels', '-o',
                  'bundle=on,cluster_size=64k', 'x.hdd', '16M')
        self.rhea('bitmap', '--add', '-g', '64k', 'x.hdd', name)
        self.rhea_io('x.hdd', 'write -P 1 1M 3M')
        self.assertEqual(self.dirty(self.top_file(), name),
                         [(MIB, 3 * MIB)])
        with open(self.top_file(), 'rb') as f:
            first = f.read()
        self.rhea('snapshot', '-c', 'one', 'x.hdd')
        self.rhea_io('x.hdd', 'write -P 2 8M 64k')
        self.assertEqual(self.dirty(self.top_file(), name),
                         [(MIB, 3 * MIB), (8 * MIB, 65536)])
        listed, = self.rhea('info', '--output=json', 'x.hdd').json[
            'format-specific']['data']['bitmaps']
        self.assertEqual((listed['name'], listed['flags'],
                          listed['granularity']), (name, ['auto'], 65536))
        self.rhea('bitmap', '--add', '-g', '128k', 'x.hdd', other)
        self.rhea('bitmap', '--merge', name, 'x.hdd', other)
        self.rhea('bitmap', '--remove', 'x.hdd', name)
        self.assertEqual(self.dirty(self.top_file(), other),
                         [(MIB, 3 * MIB), (8 * MIB, 131072)])
        self.rhea('bitmap', '--remove', 'x.hdd', other)
        # A bitmap that somebody has left in the snapshot's file knows nothing
        # of what has changed since, and must not come up with that file.
        bundle = prl.Bundle('x.hdd')
        snapshot = bundle.parents[bundle.top]
        below = 'x.hdd/' + bundle.storages[0][2][snapshot][1]
        with open(below, 'wb') as f:
            f.write(first)
        self.assertEqual(self.dirty(below, name), [(MIB, 3 * MIB)])
        self.rhea('snapshot', '-d', 'one', 'x.hdd')
        self.assertEqual(self.top_file(), below)
        self.assertNotIn('bitmaps', self.rhea('info', 'x.hdd').out)
        self.rhea('check', 'x.hdd')
        guest = bytearray(16 * MIB)
        guest[MIB:4 * MIB] = b'\1' * (3 * MIB)
        guest[8 * MIB:8 * MIB + 65536] = b'\2' * 65536
        self.assertTrue(prl.Bundle('x.hdd').read() == guest)
        for options in ('type=plain', 'type=plain,split=4M'):
            self.rhea('create', '-q', '-f', 'parallels', '-o',
                      f'bundle=on,{options}', 'y.hdd', '16M')
            self.fails(tool.rhea('bitmap', '--add', 'y.hdd', name),
                       says='plain')
            shutil.rmtree('y.hdd')

    def parts(self):
        """The files that the guest of x.hdd writes to, in order."""
        bundle = prl.Bundle('x.hdd')
        return ['x.hdd/' + images[bundle.top][1]
                for *_, images in sorted(bundle.storages,
                                         key=lambda s: s[0])]

    def dirty_parts(self, name, start=6 * MIB):
        """What QEMU calls dirty in each file, by the disk's offsets in MiB."""
        return [((i * start + at) // MIB, length // MIB)
                for i, path in enumerate(self.parts())
                for at, length in self.dirty(path, name)]

    def test_bitmaps_of_split_disks(self):
        """One in each file, all of one name, are one of the disk."""
        name, other = str(uuid.UUID(int=77)), str(uuid.UUID(int=78))
        self.rhea('create', '-q', '-f', 'parallels', '-o',
                  'bundle=on,cluster_size=64k,split=6M', 'x.hdd', '16M')
        self.assertEqual(len(self.parts()), 3)
        self.fails(tool.rhea('bitmap', '--add', '-g', '4M', 'x.hdd', name),
                   says='2097152')
        self.rhea('bitmap', '--add', '-g', '1M', 'x.hdd', name)
        self.fails(tool.rhea('bitmap', '--add', '-g', '1M', 'x.hdd', name),
                   says='already')
        self.rhea_io('x.hdd', 'write -P 1 5M 2M', 'write -P 2 15M 512')
        # Six bits a file, so that none of the others begins with a byte.
        self.assertEqual(self.dirty_parts(name), [(5, 1), (6, 1), (15, 1)])
        self.rhea('bitmap', '--add', '-g', '64k', 'x.hdd', other)
        self.rhea_io('x.hdd', 'write -P 3 12M 64k')
        self.rhea('bitmap', '--merge', other, 'x.hdd', name)
        self.rhea('bitmap', '--clear', 'x.hdd', other)
        self.rhea('bitmap', '--merge', name, 'x.hdd', other)
        listed = self.rhea('info', '--output=json', 'x.hdd').json[
            'format-specific']['data']['bitmaps']
        self.assertEqual(
            [(b['name'], b['flags'], b['granularity']) for b in listed],
            [(name, ['auto'], MIB), (other, ['auto'], 65536)])
        # A snapshot's files keep nothing, the new ones all.
        self.rhea('snapshot', '-c', 'one', 'x.hdd')
        self.rhea_io('x.hdd', 'write -P 4 0 1M')
        for which in (name, other):
            self.assertEqual(self.dirty_parts(which), [
                (0, 1), (5, 1), (6, 1), (12, 1), (15, 1)])
        self.rhea('snapshot', '-d', 'one', 'x.hdd')
        self.rhea('bitmap', '--clear', 'x.hdd', name)
        self.assertEqual(self.dirty_parts(name), [])
        self.rhea('check', 'x.hdd')
        # Where one file has none any more, there is none of the disk.
        self.rhea_io('x.hdd', 'write -P 5 1M 10M')
        tool.execute('qemu-io', '-f', 'parallels', '-c', 'write 0 1k',
                     self.parts()[1])
        for which in (name, other):
            self.fails(tool.rhea('bitmap', '--clear', 'x.hdd', which),
                       says='removed')
        listed = self.rhea('info', '--output=json', 'x.hdd').json[
            'format-specific']['data']['bitmaps']
        self.assertEqual([b['flags'] for b in listed],
                         [['in-use', 'auto']] * 2)
        for which in (name, other):
            self.rhea('bitmap', '--remove', 'x.hdd', which)
        self.assertNotIn('bitmaps', self.rhea('info', 'x.hdd').out)
        self.fails(tool.rhea('bitmap', '--remove', 'x.hdd', name), says='no')
        self.rhea('check', 'x.hdd')

    def test_bundles_of_others_are_read(self):
        for seed in range(30):
            with self.subTest(seed=seed):
                folder = f'b{seed}.hdd'
                guests, top = prl.make_bundle(folder, seed)
                path = folder if seed % 2 else f'{folder}/DiskDescriptor.xml'
                self.same_bytes(path, guests[top])
                self.rhea('check', path)
                for guid, guest in guests.items():
                    self.assertTrue(prl.Bundle(folder).read(guid) == guest)
                    if guid != top:
                        self.same_bytes(path, guest, '-l', guid.strip('{}'))
                shutil.rmtree(folder)

    def judge(self, folder, guest, snapshots):
        """By our reader and by the tests': the active state and all others."""
        self.rhea('check', folder)
        bundle = prl.Bundle(folder)
        self.assertTrue(bundle.read() == guest)
        self.same_bytes(folder, guest)
        listed = self.rhea('snapshot', '-l', folder).out
        for name, data in snapshots.items():
            self.assertIn(name, listed)
            self.assertTrue(bundle.read(bundle.names[name]) == data, name)
            self.same_bytes(folder, data, '-l', name)
        # Nothing is left behind.
        there = {n for n in os.listdir(folder) if n.endswith('.hds')}
        self.assertEqual(there, bundle.file_names())

    def history(self, seed, folder, guest):
        """Random writes and snapshots of the bundle FOLDER."""
        rng = random.Random(seed)
        snapshots = {}
        for turn in range(14):
            what = rng.random()
            if what < 0.5:
                self.rhea_io(folder, *self.random_commands(rng, guest, 2))
            elif what < 0.7 or not snapshots:
                name = f'state {turn} <&> "ä"'
                self.rhea('snapshot', '-c', name, folder)
                snapshots[name] = bytes(guest)
            elif what < 0.85:
                name = rng.choice(list(snapshots))
                self.rhea('snapshot', '-a', name, folder)
                guest = bytearray(snapshots[name])
            else:
                name = rng.choice(list(snapshots))
                done = tool.rhea('snapshot', '-d', name, folder)
                bundle = prl.Bundle(folder)
                guid = bundle.names.get(name)
                if done.code:
                    self.assertGreater(
                        list(bundle.parents.values()).count(guid), 1)
                else:
                    self.assertIsNone(guid)
                    del snapshots[name]
            self.judge(folder, guest, snapshots)

    def test_snapshots_of_our_own(self):
        kinds = ['', 'split=1M', 'type=plain', 'type=plain,split=700k',
                 'extended=on', 'cluster_size=512,split=1M']
        for seed, kind in enumerate(kinds):
            with self.subTest(kind=kind):
                guest = bytearray(3 * MIB + 512 * seed)
                options = ','.join(filter(None, [
                    'bundle=on', 'cluster_size=64k', kind]))
                self.rhea('create', '-q', '-f', 'parallels', '-o', options,
                          'new.hdd', len(guest))
                self.history(seed, 'new.hdd', guest)
                shutil.rmtree('new.hdd')

    def test_snapshots_of_others_bundles(self):
        for seed in range(100, 110):
            with self.subTest(seed=seed):
                guests, top = prl.make_bundle('other.hdd', seed)
                for guid, guest in guests.items():
                    if guid != top:
                        self.same_bytes('other.hdd', guest, '-l',
                                        guid.strip('{}'))
                bundle = prl.Bundle('other.hdd')
                # Ours can only be deleted where the others allow it.
                if len(bundle.parents) == 1:
                    self.history(seed, 'other.hdd', bytearray(guests[top]))
                else:
                    guest = bytearray(guests[top])
                    rng = random.Random(seed)
                    self.rhea_io('other.hdd',
                                 *self.random_commands(rng, guest, 3))
                    self.rhea('snapshot', '-c', 'ours', 'other.hdd')
                    self.rhea_io('other.hdd',
                                 *self.random_commands(rng, guest, 3))
                    bundle = prl.Bundle('other.hdd')
                    self.assertTrue(bundle.read() == guest)
                    for guid, before in guests.items():
                        if guid != top:
                            self.assertTrue(bundle.read(guid) == before)
                shutil.rmtree('other.hdd')

    def test_conversion_to_bundles(self):
        self.make_data('raw', 5 * MIB + 512, [(0, 700), (MIB, 2 * MIB),
                                              (5 * MIB, 512)])
        for kind in ('', ',split=2M', ',type=plain', ',type=plain,split=1M',
                     ',cluster_size=4k', ',extended=on'):
            with self.subTest(kind=kind):
                self.rhea('convert', '-O', 'parallels', '-o',
                          'bundle=on' + kind, 'raw', 'new.hdd')
                self.judge('new.hdd', contents('raw'), {})
                self.rhea('compare', 'new.hdd', 'raw')
                shutil.rmtree('new.hdd')

    def test_sizes_of_bundles(self):
        for kind in ('', ',split=1M', ',type=plain', ',type=plain,split=1M'):
            with self.subTest(kind=kind):
                rng = random.Random(kind)
                guest = bytearray(2 * MIB + 512)
                self.rhea('create', '-q', '-f', 'parallels', '-o',
                          'bundle=on,cluster_size=4k' + kind, 'new.hdd',
                          len(guest))
                for size in (3 * MIB, 2 * MIB + 1024, 9 * MIB):
                    self.rhea_io('new.hdd',
                                 *self.random_commands(rng, guest, 4))
                    self.rhea('resize', '--shrink', 'new.hdd', size)
                    guest = guest[:size] + bytearray(max(0, size - len(guest)))
                    self.judge('new.hdd', guest, {})
                shutil.rmtree('new.hdd')


if __name__ == '__main__':
    tool.main()
