# SPDX-License-Identifier: MIT
"""Parallels' images and bundles, as a user meets them: what the commands print,
what is refused and how it is said, what a check finds and mends."""
import json
import os
import shutil
import struct
import sys

import tool
from tool import MIB, contents

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'lib'))
import prl  # noqa: E402  pylint: disable=wrong-import-position

CHECK_FIELDS = ('total-clusters', 'allocated-clusters', 'fragmented-clusters')


def patch(path, offset, data):
    with open(path, 'r+b') as f:
        f.seek(offset)
        f.write(data)


def le32(*values):
    return struct.pack(f'<{len(values)}I', *values)


class Files(tool.Images):
    """Growing files by themselves."""

    FORMAT = 'parallels'

    def make(self, clusters=4, extended=True):
        hds = prl.Hds(clusters * 65536, 65536, extended)
        for i in range(clusters):
            hds.put(i * 65536, bytes([i + 1]) * 65536)
        hds.write('x')
        return hds

    def test_it_looks_as_in_qemu(self):
        for args in ((), ('-o', 'cluster_size=64k')):
            ours = self.rhea('create', '-f', 'parallels', *args, 'x', '64M').out
            theirs = self.qemu('create', '-f', 'parallels', *args, 'y',
                               '64M').out
            self.assertEqual(ours, theirs.replace("'y'", "'x'"))
            self.assertEqual(contents('x'), contents('y'))
        self.make()
        self.same('check', 'x', code=0)
        self.same('map', 'x')
        self.same_json('map', 'x', drop=('compressed',))
        ours, theirs = self.rhea('info', 'x').out, self.qemu('info', 'x').out
        self.assertTrue(ours.startswith(theirs), ours + theirs)
        self.assertEqual(self.rhea('info', '--output=json',
                                   'x').json['format'], 'parallels')

    def test_measure_is_exact(self):
        self.make_data('raw', 9 * MIB + 512, [(0, 700), (3 * MIB, MIB),
                                              (9 * MIB, 512)])
        for options in ('cluster_size=1M', 'cluster_size=4k',
                        'cluster_size=32256', 'extended=off'):
            with self.subTest(options=options):
                told = self.rhea('measure', '--output=json', '-O', 'parallels',
                                 '-o', options, 'raw').json
                self.rhea('convert', '-O', 'parallels', '-o', options, 'raw',
                          'x')
                self.assertEqual(told['required'], os.path.getsize('x'))
                self.rhea('convert', '-S', '0', '-O', 'parallels', '-o',
                          options, 'raw', 'x')
                self.assertEqual(told['fully-allocated'], os.path.getsize('x'))

    def test_what_cannot_be_made(self):
        for options, size, says in (
                ('cluster_size=100', '1M', 'multiple of 512'),
                ('cluster_size=4G', '1M', 'at most'),
                ('cluster_size=512', '2T', 'holds at most'),
                ('extended=off', '3T', 'extended=on'),
                ('type=plain', '1M', 'bundle=on'),
                ('split=1M', '1M', 'bundle=on'),
                ('bundle=on', '0', 'no size'),
                ('bundle=on,type=thin', '1M', 'expanding'),
                ('bundle=on,split=100', '1M', 'at least a cluster'),
                ('bundle=on,split=1M', '2G', 'too small'),
                ('bundle=on,cluster_size=3', '1M', 'multiple'),
                ('colour=red', '1M', 'colour')):
            with self.subTest(options=options):
                self.fails(tool.rhea('create', '-q', '-f', 'parallels', '-o',
                                     options, 'x', size), says=says)
                self.assertFalse(os.path.exists('x'))

    def test_sizes_of_clusters_that_are_no_power_of_2(self):
        self.rhea('create', '-q', '-f', 'parallels', '-o', 'cluster_size=252k',
                  'x', '10M')
        self.rhea('bitmap', '--add', 'x',
                  '00000000-0000-4000-8000-000000000001')
        self.fails(tool.rhea('bitmap', '--add', 'x', 'name'), says='UUID')
        self.fails(tool.rhea('bitmap', '--disable', 'x',
                             '00000000-0000-4000-8000-000000000001'))
        self.fails(tool.rhea('resize', 'x', '20M'), says='bitmaps')
        self.rhea('check', 'x')

    # --- Damage ---

    def found(self, code=2, **expected):
        result = tool.rhea('check', '--output=json', 'x')
        self.assertEqual(result.code, code, str(result))
        told = json.loads(result.out)
        for name in ('corruptions', 'leaks'):
            self.assertEqual(told.get(name, 0), expected.get(name, 0),
                             str(result))

    def repaired(self, guest, how='all', extension=False):
        result = tool.rhea('check', '-r', how, 'x')
        self.assertEqual(result.code, 0, str(result))
        self.rhea('check', 'x')
        if not extension:  # which QEMU 7.2 takes for leaks
            self.sound('x', 'parallels')
        self.assertTrue(prl.disk_bytes(len(guest), [prl.read_hds('x')]) ==
                        guest)
        self.rhea('convert', '-O', 'raw', 'x', 'raw')
        self.assertTrue(contents('raw') == guest)

    def test_entries_outside(self):
        for entry in (77, 2 ** 32 - 1, 6):
            hds = self.make()
            guest = prl.disk_bytes(hds.size, [hds])
            patch('x', prl.HEADER + 8, le32(entry))
            with self.subTest(entry=entry):
                self.found(corruptions=1)
                self.fails(tool.rhea('convert', '-O', 'raw', 'x', 'raw'),
                           says='damaged')
                self.repaired(guest[:131072] + bytes(65536) + guest[196608:])

    def test_an_entry_that_leads_to_the_header(self):
        hds = self.make(extended=False)
        guest = prl.disk_bytes(hds.size, [hds])
        hds.write('x')
        patch('x', 48, le32(128 + 1))
        patch('x', prl.HEADER, le32(0))
        patch('x', prl.HEADER + 4, le32(1))
        self.found(corruptions=1)
        self.assertEqual(len(guest), hds.size)

    def test_entries_that_share_a_cluster(self):
        """Each further one gets a copy, so that nobody's bytes change."""
        hds = self.make()
        guest = prl.disk_bytes(hds.size, [hds])
        first = contents('x')[prl.HEADER:prl.HEADER + 4]
        patch('x', prl.HEADER + 4, first * 2)
        self.found(corruptions=2)
        self.repaired(guest[:65536] * 3 + guest[196608:])

    def hostile(self, entries, cluster=256 << 20):
        """A small file: one cluster, almost all of it a hole, for all."""
        start = -(-(prl.HEADER + 4 * entries) // cluster) * cluster
        with open('x', 'wb') as f:
            f.write(prl.FIELDS.pack(
                b'WithouFreSpacExt', 2, 16, 0, cluster // 512, entries,
                entries * (cluster // 512), 0, start // 512, 0, 0))
            f.write(le32(start // cluster) * entries)
            f.seek(start + cluster // 2)
            f.write(b'guest' * 20000)
            f.truncate(start + cluster)
        return start

    def test_copies_have_a_bound(self):
        """A stranger's file that would become gigabytes."""
        start = self.hostile(2000)
        # Copies are as sparse as what they are made of, and as many as the
        # file is large: the header's cluster, and the guest's.
        result = tool.rhea('check', '-r', 'all', 'x')
        self.assertEqual(result.code, 2, str(result))
        self.assertEqual(result.err.count('given its own'), 2, result.err[:500])
        self.assertIn('left so, because copies', result.err)
        self.assertLess(os.stat('x').st_blocks * 512, 3 * MIB)
        with open('x', 'rb') as f:
            for entry in struct.unpack('<64x4I', f.read(80)):
                f.seek(entry * start + start // 2)
                self.assertEqual(f.read(100000), b'guest' * 20000)
        # Nor does a resize copy one over and over.
        self.hostile(2000, 4096)
        self.fails(tool.rhea('resize', 'x', 64 * MIB), says='used twice')
        self.assertLess(os.path.getsize('x'), MIB)

    def test_a_file_of_nothing_takes_no_memory(self):
        self.hostile(4, 512)
        os.truncate('x', 3 << 40)
        self.fails(tool.rhea('check', 'x'), says='can be checked')
        self.io('x', 'read 0 512')

    def test_copies_of_much_data_have_a_bound(self):
        """A file is not large because it says so: holes do not count."""
        start = self.hostile(500, 4 * MIB)
        with open('x', 'r+b') as f:
            f.seek(start)
            f.write(bytes(range(256)) * (16 << 10))
            f.truncate(1 << 40)
        result = tool.rhea('check', '-r', 'all', 'x')
        self.assertEqual(result.code, 2, str(result)[:500])
        self.assertLess(os.stat('x').st_blocks * 512, 32 * MIB)
        # What stays damaged stays marked as not closed.
        patch('x', 44, le32(prl.IN_USE))
        tool.rhea('check', '-r', 'all', 'x')
        with open('x', 'rb') as f:
            self.assertEqual(f.read(48)[44:], le32(prl.IN_USE))

    def test_clusters_that_overlap_in_part(self):
        hds = self.make(extended=False)
        guest = bytearray(prl.disk_bytes(hds.size, [hds]))
        second, = struct.unpack('<I', contents('x')[68:72])
        patch('x', prl.HEADER + 4, le32(second + 3))
        guest[65536:131072] = contents('x')[(second + 3) * 512:][:65536]
        self.found(corruptions=1)
        self.repaired(bytes(guest))

    def test_a_file_that_is_cut_off(self):
        """What is left of the last cluster stays."""
        hds = self.make()
        guest = bytearray(prl.disk_bytes(hds.size, [hds]))
        os.truncate('x', os.path.getsize('x') - 60000)
        guest[-60000:] = bytes(60000)
        self.found(corruptions=1)
        self.repaired(bytes(guest))

    def test_leaks(self):
        hds = self.make()
        guest = prl.disk_bytes(hds.size, [hds])
        end = os.path.getsize('x')
        os.truncate('x', end + 3 * 65536)
        self.found(code=3, leaks=3)
        self.repaired(guest, how='leaks')
        self.assertEqual(os.path.getsize('x'), end)

    def test_new_clusters_go_where_nobody_is(self):
        """Between the others, and what was there before does not show."""
        for extended in (True, False):
            with self.subTest(extended=extended):
                hds = self.make(8, extended)
                guest = bytearray(prl.disk_bytes(hds.size, [hds]))
                end = os.path.getsize('x')
                for i in (2, 3, 5):
                    patch('x', prl.HEADER + 4 * i, le32(0))
                    guest[i * 65536:(i + 1) * 65536] = bytes(65536)
                self.rhea('check', 'x')
                self.io('x', 'write -P 7 170k 100k', 'write -P 9 350k 1k')
                guest[170 << 10:270 << 10] = b'\7' * (100 << 10)
                guest[350 << 10:351 << 10] = b'\x09' * 1024
                self.assertEqual(os.path.getsize('x'), end)
                self.repaired(guest)
                # The end of the file is one such place, too.
                os.truncate('x', end + 5 * 65536)
                patch('x', end, b'x' * 5 * 65536)
                patch('x', prl.HEADER, le32(0))
                self.io('x', 'write -P 8 0 64k')
                guest[:65536] = b'\x08' * 65536
                self.repaired(guest)

    def test_discarded_clusters_are_given_back(self):
        for extended in (True, False):
            with self.subTest(extended=extended):
                hds = self.make(8, extended)
                guest = bytearray(prl.disk_bytes(hds.size, [hds]))
                end = os.path.getsize('x')
                self.io('x', 'discard 60k 200k', 'read -P 0 64k 192k',
                        'write -P 9 130k 1k')
                guest[65536:4 * 65536] = bytes(3 * 65536)
                guest[130 << 10:131 << 10] = b'\x09' * 1024
                # Not at once in the same places, for a write may be under way.
                self.assertEqual(os.path.getsize('x'), end + 65536)
                self.repaired(guest)
                self.assertLess(os.stat('x').st_blocks * 512, end - 65536)
                self.io('x', 'write -P 7 64k 64k', 'write -P 8 192k 64k')
                guest[1 << 16:2 << 16] = b'\7' * 65536
                guest[3 << 16:4 << 16] = b'\x08' * 65536
                self.assertEqual(os.path.getsize('x'), end + 65536)
                self.repaired(guest)
        # A damaged image loses nothing of what another cluster has, too.
        hds = self.make(4)
        guest = bytearray(prl.disk_bytes(hds.size, [hds]))
        patch('x', prl.HEADER + 4, contents('x')[prl.HEADER:prl.HEADER + 4])
        self.io('x', 'discard 64k 64k')
        guest[65536:131072] = bytes(65536)
        self.repaired(guest)

    def test_a_discarded_end_is_cut_off(self):
        """Of guest clusters and of bitmaps' that were there before, but of
        nothing that somebody needs."""
        name = 'e4f2eed0-37fe-4539-b50b-85d2e7fd235f'
        for extended in (True, False):
            with self.subTest(extended=extended):
                hds = self.make(8, extended)
                guest = bytearray(prl.disk_bytes(hds.size, [hds]))
                end = os.path.getsize('x')
                self.io('x', 'discard 320k 192k')
                guest[320 << 10:] = bytes(192 << 10)
                self.assertEqual(os.path.getsize('x'), end - 3 * 65536)
                self.repaired(guest)
                # What the file has behind the last cluster goes, too.
                os.truncate('x', end + 5 * 65536)
                self.io('x', 'write -P 5 64k 64k', 'discard 192k 64k')
                guest[64 << 10:128 << 10] = b'\5' * 65536
                guest[192 << 10:256 << 10] = bytes(65536)
                self.assertEqual(os.path.getsize('x'), end - 3 * 65536)
                self.repaired(guest)
                self.rhea('bitmap', '--add', '-g', '512', 'x', name)
                self.io('x', 'write -P 6 1k 512', 'write -P 7 400k 1k')
                guest[1024:1536] = b'\6' * 512
                guest[400 << 10:401 << 10] = b'\7' * 1024
                self.repaired(guest, extension=True)
                # The bitmap, behind the guest's last cluster, moves up.
                before = os.path.getsize('x')
                self.io('x', 'discard 384k 64k', 'discard 256k 64k')
                guest[256 << 10:320 << 10] = bytes(65536)
                guest[384 << 10:448 << 10] = bytes(65536)
                self.assertLess(os.path.getsize('x'), before)
                self.repaired(guest, extension=True)
                self.assertIn(name, self.rhea('info', 'x').out)
                self.rhea('bitmap', '--remove', 'x', name)
                self.io('x', 'discard 0 512k')
                self.assertEqual(os.path.getsize('x'), end - 8 * 65536)
                self.repaired(bytes(len(guest)))

    def test_bitmaps_are_nobodys_place(self):
        """What the extension had, or is to be written to again, stays."""
        name = 'e4f2eed0-37fe-4539-b50b-85d2e7fd235f'
        hds = self.make(8)
        hds.bitmaps = [(name, 1, b'\x05' * 128)]
        hds.in_use = prl.CLOSED
        hds.write('x')
        guest = bytearray(prl.disk_bytes(hds.size, [hds]))
        for i in (1, 4):
            patch('x', prl.HEADER + 4 * i, le32(0))
            guest[i * 65536:(i + 1) * 65536] = bytes(65536)
        end = os.path.getsize('x')
        self.io('x', 'write -P 7 65k 1k', 'write -P 9 256k 64k')
        guest[65 << 10:66 << 10] = b'\7' * 1024
        guest[256 << 10:320 << 10] = b'\x09' * 65536
        self.assertEqual(os.path.getsize('x'), end)
        self.repaired(guest, extension=True)
        bitmaps = self.rhea('info', '--output=json', 'x').json[
            'format-specific']['data']['bitmaps']
        self.assertEqual([(b['name'], b['flags']) for b in bitmaps],
                         [(name, ['auto'])])
        # One that another program has left behind is not spoilt either.
        patch('x', 44, le32(0))
        patch('x', prl.HEADER, le32(0))
        guest[:65536] = bytes(65536)
        self.io('x', 'write -P 3 0 64k', 'write -P 3 64k 64k')
        guest[:131072] = b'\3' * 131072
        self.repaired(guest, extension=True)
        self.rhea('bitmap', '--remove', 'x', name)

    def test_an_image_that_was_not_closed(self):
        hds = self.make()
        guest = prl.disk_bytes(hds.size, [hds])
        hds.in_use = prl.IN_USE
        hds.write('x')
        self.found(corruptions=1)
        self.assertTrue(self.rhea('info', '--output=json',
                                  'x').json['dirty-flag'])
        self.repaired(guest)
        hds.write('x')
        # Writing to it is no danger, and closes it.
        self.good(tool.rhea('resize', 'x', hds.size + 512))
        self.rhea('check', 'x')
        hds.write('x')
        patch('x', prl.HEADER, le32(99))
        self.fails(tool.rhea('resize', 'x', hds.size + 512),
                   says='not closed cleanly.*check -r all')

    def test_a_header_that_is_wrong_about_the_data(self):
        hds = self.make()
        guest = prl.disk_bytes(hds.size, [hds])
        patch('x', 48, b'\xff\xff\xff\xff')
        self.found(corruptions=1)
        self.rhea('convert', '-O', 'raw', 'x', 'raw')
        self.assertTrue(contents('raw') == guest)
        self.fails(tool.rhea('resize', 'x', hds.size + 512),
                   says='check -r all')
        self.repaired(guest)

    def test_an_extension_that_is_damaged(self):
        hds = self.make()
        guest = prl.disk_bytes(hds.size, [hds])
        hds.bitmaps = [('e4f2eed0-37fe-4539-b50b-85d2e7fd235f', 128,
                        b'\x05')]
        hds.in_use = prl.CLOSED
        hds.write('x')
        self.rhea('check', 'x')
        end = os.path.getsize('x')
        patch('x', end - 1, b'x')
        self.found(corruptions=1)
        self.rhea('convert', '-O', 'raw', 'x', 'raw')
        self.assertTrue(contents('raw') == guest)
        self.fails(tool.rhea('resize', '--shrink', 'x', '64k'),
                   says='extension is damaged.*check -r all')
        self.repaired(guest)
        # Its cluster is the guest's too: the guest goes first.
        hds.write('x')
        patch('x', prl.HEADER, le32(end // 65536 - 2))
        self.found(corruptions=1)

    def test_extensions_that_are_not_known(self):
        hds = self.make()
        for flags, can_write, stays in ((0, True, False), (1, False, True),
                                        (2, True, True), (3, False, True)):
            with self.subTest(flags=flags):
                hds.bitmaps = [('e4f2eed0-37fe-4539-b50b-85d2e7fd235f', 128,
                                b'\x05')]
                hds.in_use = prl.CLOSED
                hds.write('x')
                data = bytearray(contents('x'))
                at = len(data) - 65536 + 24
                struct.pack_into('<QQ', data, at, 0x1234, flags)
                data[at - 16:at] = prl.hashlib.md5(data[at:]).digest()
                patch('x', 0, bytes(data))
                self.rhea('check', 'x')
                self.rhea('convert', '-O', 'raw', 'x', 'raw')
                done = tool.execute(os.environ['RHEA_IO'], '-c', 'write 0 1k',
                                    'x')
                self.assertEqual(done.code, 0 if can_write else 1, str(done))
                if not can_write:
                    self.assertIn('must not ignore', done.err)
                data = contents('x')
                at, = struct.unpack('<Q', data[56:64])
                self.assertEqual(at != 0, stays)
                self.assertEqual(le32(0x1234, 0) in data[at * 512:][:65536],
                                 stays)
                # Its clusters are known to nobody once it is dropped.
                self.assertIn(tool.rhea('check', 'x').code,
                              (0,) if stays else (0, 3))


class Bundles(tool.Case):
    def make(self, *options, size='10M', name='x.hdd'):
        self.rhea('create', '-q', '-f', 'parallels', '-o',
                  ','.join(('bundle=on',) + options), name, size)

    def hds(self, name='x.hdd'):
        return sorted(n for n in os.listdir(name) if n.endswith('.hds'))

    def test_what_is_made(self):
        self.make('split=4M')
        self.assertEqual(self.hds(), [
            f'x.hdd.{i}.{prl.TOP}.hds' for i in range(3)])
        self.assertEqual(os.path.getsize('x.hdd/x.hdd'), 0)
        bundle = prl.Bundle('x.hdd')
        self.assertEqual([(s, e) for s, e, _ in bundle.storages],
                         [(0, 4 * MIB), (4 * MIB, 8 * MIB),
                          (8 * MIB, 10 * MIB)])
        for name in self.hds():
            self.assertFalse(prl.read_hds(f'x.hdd/{name}').extended)
        self.make('type=plain', name='p.hdd')
        self.assertEqual(os.path.getsize(f'p.hdd/{self.hds("p.hdd")[0]}'),
                         10 * MIB)
        self.make('cluster_size=64k', 'extended=on', name='dir/../e &é.hdd'
                  if os.path.isdir('dir') else 'e &é.hdd')
        self.rhea('check', 'e &é.hdd')

    def test_opened_by_folder_and_by_descriptor(self):
        self.make()
        for name in ('x.hdd', 'x.hdd/', './x.hdd', 'x.hdd/DiskDescriptor.xml',
                     os.path.abspath('x.hdd')):
            info = self.rhea('info', '--output=json', name).json
            self.assertEqual((info['format'], info['virtual-size']),
                             ('parallels', 10 * MIB))
            self.assertTrue(info['format-specific']['data']['bundle'])
        os.chdir('x.hdd')
        self.rhea('info', 'DiskDescriptor.xml')
        self.rhea('info', '.')
        os.chdir('..')
        os.mkdir('empty')
        self.fails(tool.rhea('info', 'empty'))
        self.fails(tool.rhea('info', '-f', 'qcow2', 'x.hdd'))

    def test_a_part_is_not_taken_for_the_whole(self):
        self.make()
        only = f'x.hdd/{self.hds()[0]}'
        self.rhea('convert', '-O', 'raw', only, 'raw')
        self.rhea('snapshot', '-c', 'one', 'x.hdd')
        for name in self.hds():
            path = f'x.hdd/{name}'
            self.fails(tool.rhea('convert', '-O', 'raw', path, 'raw'),
                       says='only a part')
            self.fails(tool.rhea('resize', path, '20M'), says='only a part')
            self.rhea('info', path)
            self.rhea('check', path)
        self.rhea('snapshot', '-d', 'one', 'x.hdd')
        self.rhea('convert', '-O', 'raw', f'x.hdd/{self.hds()[0]}', 'raw')
        self.make('split=4M', name='s.hdd')
        self.fails(tool.rhea('convert', '-O', 'raw',
                             f's.hdd/{self.hds("s.hdd")[1]}', 'raw'),
                   says='only a part')

    def test_missing_files(self):
        self.make('split=4M')
        gone = self.hds()[1]
        os.unlink(f'x.hdd/{gone}')
        for command in (('info',), ('check',), ('convert', '-O', 'raw')):
            result = self.fails(tool.rhea(*command, 'x.hdd',
                                          *(['raw'] if len(command) > 1
                                            else [])))
            self.assertIn(gone, result.err)

    def test_snapshots(self):
        self.make()
        self.fails(tool.rhea('snapshot', '-a', 'none', 'x.hdd'), says='none')
        self.rhea('snapshot', '-c', 'one', 'x.hdd')
        self.fails(tool.rhea('snapshot', '-c', 'one', 'x.hdd'), says='one')
        self.fails(tool.rhea('snapshot', '-c',
                             '00000000-0000-4000-8000-000000000001', 'x.hdd'))
        snapshot, = self.rhea('info', '--output=json', 'x.hdd').json[
            'snapshots']
        self.assertEqual(snapshot['name'], 'one')
        for which in ('one', snapshot['id'], '{%s}' % snapshot['id'].upper()):
            self.rhea('convert', '-l', which, '-O', 'raw', 'x.hdd', 'raw')
        self.fails(tool.rhea('resize', 'x.hdd', '20M'), says='snapshots')
        self.rhea('snapshot', '-a', 'one', 'x.hdd')
        self.rhea('snapshot', '-c', 'two', 'x.hdd')
        self.rhea('snapshot', '-a', 'one', 'x.hdd')
        # The active state and "two" are over it.
        self.fails(tool.rhea('snapshot', '-d', 'one', 'x.hdd'), says='2')
        self.rhea('snapshot', '-d', 'two', 'x.hdd')
        self.rhea('snapshot', '-d', 'one', 'x.hdd')
        self.assertEqual(len(self.hds()), 1)

    def test_a_deletion_that_was_cut_short(self):
        self.make()
        self.rhea('snapshot', '-c', 'one', 'x.hdd')
        path = 'x.hdd/DiskDescriptor.xml'
        with open(path, encoding='utf-8') as f:
            text = f.read()
        with open(path, 'w', encoding='utf-8') as f:
            f.write(text.replace('<Name>one', '<Temporary/><Name>one'))
        snapshot, = self.rhea('info', '--output=json', 'x.hdd').json[
            'snapshots']
        self.assertEqual(snapshot['name'], snapshot['id'])
        for which in ('one', snapshot['id']):
            self.fails(tool.rhea('convert', '-l', which, '-O', 'raw', 'x.hdd',
                                 'raw'))
            self.fails(tool.rhea('snapshot', '-a', which, 'x.hdd'))
        self.fails(tool.rhea('snapshot', '-d', 'one', 'x.hdd'))
        self.rhea('snapshot', '-d', snapshot['id'], 'x.hdd')
        self.assertEqual(len(self.hds()), 1)
        self.rhea('check', 'x.hdd')

    def test_what_the_descriptor_has_besides_stays(self):
        self.make()
        path = 'x.hdd/DiskDescriptor.xml'
        with open(path, encoding='utf-8') as f:
            text = f.read()
        more = '<Ours a="1"><!-- b --><Deep>&amp;</Deep></Ours>'
        text = text.replace('<Padding>', more + '<Padding>').replace(
            '</Shot>', more + '</Shot>')
        with open(path, 'w', encoding='utf-8') as f:
            f.write(text)
        self.rhea('snapshot', '-c', 'one', 'x.hdd')
        self.rhea('snapshot', '-a', 'one', 'x.hdd')
        with open(path, encoding='utf-8') as f:
            self.assertEqual(f.read().count(more), 2)
        self.rhea('snapshot', '-d', 'one', 'x.hdd')
        with open(path, encoding='utf-8') as f:
            self.assertIn(more, f.read())

    def test_a_bundle_in_use(self):
        self.make()
        holder = tool.subprocess.Popen(
            [os.environ['RHEA_IO'], 'x.hdd'], stdin=tool.subprocess.PIPE,
            stdout=tool.subprocess.PIPE)
        try:
            holder.stdin.write(b'write 0 1k\n')
            holder.stdin.flush()
            self.assertTrue(holder.stdout.readline())
            for name in ('x.hdd', f'x.hdd/{self.hds()[0]}'):
                self.fails(tool.rhea('resize', name, '20M'), says='in use')
                self.fails(tool.rhea('convert', '-O', 'raw', name, 'raw'),
                           says='in use')
            self.assertIn('x.hdd', self.rhea('info', '-U', 'x.hdd').out)
        finally:
            holder.communicate()

    def test_commit_into_a_bundle(self):
        """The image below is opened anew for writing, all of its files."""
        self.make('split=4M')
        self.rhea('create', '-q', '-f', 'qcow2', '-b', 'x.hdd', '-F',
                  'parallels', 'top')
        done = tool.execute(os.environ['RHEA_IO'], '-c', 'write -P 7 3M 2M',
                            'top')
        self.assertEqual(done.code, 0)
        self.rhea('commit', 'top')
        self.assertEqual(prl.Bundle('x.hdd').read(),
                         bytes(3 * MIB) + b'\7' * 2 * MIB + bytes(5 * MIB))
        self.rhea('rebase', '-f', 'qcow2', '-b', '', 'top')

    # --- Descriptors that mean harm ---

    def describe(self, text):
        os.makedirs('h.hdd', exist_ok=True)
        with open('h.hdd/DiskDescriptor.xml', 'w', encoding='utf-8') as f:
            f.write(text)

    def harm(self, text, says):
        self.describe(text)
        before = sorted(os.listdir('.'))
        for command in (('info', 'h.hdd'), ('check', 'h.hdd'),
                        ('convert', '-O', 'raw', 'h.hdd', 'raw'),
                        ('snapshot', '-c', 'n', 'h.hdd'),
                        ('resize', 'h.hdd', '1M')):
            self.fails(tool.rhea(*command), says=says)
        self.assertEqual(sorted(os.listdir('.')), before)

    def one(self, name='x.hds', shots=None, top=None, extra='', kind='Plain',
            size=512 << 10):
        return prl.descriptor(size, [(0, size // 512, 2048,
                                      [(prl.TOP, kind, name)])],
                              shots or [(prl.TOP, prl.NONE)], top, extra)

    def test_files_outside_of_the_folder(self):
        with open('secret', 'wb') as f:
            f.truncate(512 << 10)
        os.mkdir('h.hdd')
        os.symlink('../secret', 'h.hdd/link')
        os.symlink('..', 'h.hdd/up')
        for name in ('../secret', 'a/../../secret', 'link', 'up/secret', '..'):
            with self.subTest(name=name):
                self.harm(self.one(name), 'outside|not in its own folder')
        for name in (os.path.abspath('secret'), '/etc/passwd',
                     'C:\\vm\\..\\secret', '..\\secret'):
            with self.subTest(name=name):
                self.harm(self.one(name), 'neither in this folder')
        for name in ('nbd:localhost:1', 'json:{}', 'http://localhost/x'):
            with self.subTest(name=name):
                self.harm(self.one(name), 'No such file')
        self.assertEqual(contents('secret'), bytes(512 << 10))

    def test_descriptors_that_do_not_hold(self):
        open('x.hds', 'wb').close()
        os.makedirs('h.hdd')
        with open('h.hdd/x.hds', 'wb') as f:
            f.truncate(512 << 10)
        a, b = prl.random_guid(prl.random), prl.random_guid(prl.random)
        plain = [(prl.TOP, 'Plain', 'x.hds')]
        shot = [(prl.TOP, prl.NONE)]
        for text, says in (
                (self.one('DiskDescriptor.xml'), 'two of its files'),
                (self.one(shots=[(prl.TOP, a)]), 'missing'),
                (self.one(shots=[(prl.TOP, a), (a, b), (b, a)]), 'loop'),
                (self.one(shots=[(prl.TOP, prl.TOP)]), 'loop'),
                (self.one(shots=[(a, prl.NONE)]), 'not among'),
                (self.one(top=a), 'not among'),
                (self.one(shots=shot * 2), 'GUID'),
                (self.one(shots=[(prl.TOP, a), (a, prl.NONE)],
                          kind='Compressed'), 'no file'),
                (self.one(kind='Odd'), 'Odd'),
                (self.one(kind='Compressed'), 'x.hds.*not a Parallels'),
                (self.one(extra='<Encryption><Engine>{%s}</Engine>'
                          '</Encryption>' % a[1:-1]), 'encrypted'),
                (self.one(extra='<LogicSectorSize>4096</LogicSectorSize>'),
                 'logical sectors'),
                (self.one().replace('<Padding>0', '<Padding>1'), 'padding'),
                (self.one().replace('<Start>0', '<Start>-1'), 'Start'),
                (self.one().replace('<End>1024', '<End>99999999999999999999'),
                 'End'),
                (self.one().replace('<End>1024', '<End>512'), 'up to 512'),
                (prl.descriptor(1 << 20, [(0, 512, 8, plain),
                                          (1024, 2048, 8, plain)], shot),
                 'gap'),
                (prl.descriptor(1 << 20, [(0, 1024, 8, plain),
                                          (512, 2048, 8, plain)], shot),
                 'overlap'),
                (prl.descriptor(1 << 20, [(0, 1024, 8, plain),
                                          (1024, 2048, 8, plain)], shot),
                 'two of its files'),
                (self.one()[:-30], 'no XML'),
                ('<Parallels_disk_image/>', 'storages'),
                ('<Parallels_disk_image>' + '<a>' * 100, 'too deeply')):
            with self.subTest(says=says):
                self.harm(text, says)

    def test_descriptors_that_grow(self):
        bomb = ''.join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">'
                       for i in range(1, 12))
        text = self.one()
        head, rest = text.split('<Parallels_disk_image', 1)
        self.harm(f'{head}<!DOCTYPE x [<!ENTITY e0 "aaaaaaaaaa">{bomb}]>'
                  f'<Parallels_disk_image' + rest.replace('x.hds', '&e11;'),
                  'entities')
        self.harm(f'{head}<!DOCTYPE x [<!ENTITY f SYSTEM "/etc/passwd">]>'
                  f'<Parallels_disk_image' + rest.replace('x.hds', '&f;'),
                  'entities')
        self.harm(text.replace('x.hds', 'x' * 5000), '4096')
        shots = [(prl.random_guid(prl.random), prl.NONE) for _ in range(600)]
        self.harm(self.one(shots=shots), '512 snapshots')
        parts = [(i, i + 1, 8, []) for i in range(2000)]
        self.harm(prl.descriptor(2000 * 512, parts, shots[:1]),
                  '1024 storages')
        self.harm(text + ' ' * (5 << 20), 'bytes')

    def test_one_image_and_no_word_of_snapshots(self):
        os.mkdir('h.hdd')
        with open('h.hdd/x.hds', 'wb') as f:
            f.write(b'guest'.ljust(512 << 10, b'\0'))
        text = self.one()
        self.describe(text[:text.index('<Snapshots>')] +
                      '</Parallels_disk_image>')
        self.rhea('snapshot', '-c', 'one', 'h.hdd')
        done = tool.execute(os.environ['RHEA_IO'], '-c', 'write 4k 4k', 'h.hdd')
        self.assertEqual(done.code, 0)
        self.rhea('convert', '-l', 'one', '-O', 'raw', 'h.hdd', 'raw')
        self.assertEqual(contents('raw'), b'guest'.ljust(512 << 10, b'\0'))
        self.assertEqual(prl.Bundle('h.hdd').read()[:8192],
                         b'guest'.ljust(4096, b'\0') + b'\xcd' * 4096)

    def test_other_encodings(self):
        self.make()
        path = 'x.hdd/DiskDescriptor.xml'
        with open(path, encoding='utf-8') as f:
            text = f.read()
        with open(path, 'wb') as f:
            f.write(text.replace('UTF-8', 'UTF-16').encode('utf-16'))
        # The folder says what it is; the text begins otherwise.
        self.rhea('convert', '-f', 'parallels', '-O', 'raw', 'x.hdd', 'raw')
        self.fails(tool.rhea('snapshot', '-c', 'one', 'x.hdd'))
        with open(path, 'wb') as f:
            f.write(text.encode('utf-8-sig'))
        self.rhea('snapshot', '-c', 'one', 'x.hdd')
        self.rhea('check', 'x.hdd')

    def test_plain_files_that_are_short(self):
        self.make('type=plain')
        path = f'x.hdd/{self.hds()[0]}'
        os.truncate(path, MIB)
        self.fails(tool.rhea('convert', '-O', 'raw', 'x.hdd', 'raw'),
                   says="check")
        self.assertEqual(tool.rhea('check', 'x.hdd').code, 2)
        self.assertEqual(tool.rhea('check', '-r', 'all', 'x.hdd').code, 0)
        self.rhea('check', 'x.hdd')
        self.assertEqual(os.path.getsize(path), 10 * MIB)

    def test_discards(self):
        """Nothing of a snapshot comes up where something was discarded."""
        self.make('cluster_size=64k', 'split=4M')
        io = (os.environ['RHEA_IO'], '-c')
        self.good(tool.execute(*io, 'write -P 1 3M 2M', 'x.hdd'))
        self.good(tool.execute(*io, 'discard 3M 1M', 'x.hdd'))
        guest = bytearray(10 * MIB)
        guest[4 * MIB:5 * MIB] = b'\1' * MIB
        self.assertTrue(prl.Bundle('x.hdd').read() == guest)
        self.rhea('snapshot', '-c', 'one', 'x.hdd')
        self.good(tool.execute(*io, 'write -P 2 4M 64k', '-c',
                               'discard 4M 128k', 'x.hdd'))
        before = bytes(guest)
        guest[4 * MIB:4 * MIB + 65536] = bytes(65536)
        self.assertTrue(prl.Bundle('x.hdd').read() == guest)
        self.rhea('snapshot', '-a', 'one', 'x.hdd')
        self.assertTrue(prl.Bundle('x.hdd').read() == before)

    def test_what_was_made_in_vain_is_removed(self):
        self.make(name='full.hdd')
        shutil.rmtree('full.hdd')
        os.mkdir('full.hdd')
        os.mkdir(f'full.hdd/full.hdd.1.{prl.TOP}.hds')
        self.fails(tool.rhea('create', '-q', '-f', 'parallels', '-o',
                             'bundle=on,split=4M', 'full.hdd', '10M'))
        self.assertEqual(os.listdir('full.hdd'),
                         [f'full.hdd.1.{prl.TOP}.hds'])


if __name__ == '__main__':
    tool.main()
