# SPDX-License-Identifier: MIT
"""rhea-img amend: QEMU finds the image as asked for, and its contents."""
import os
import struct

import tool
from tool import MIB, contents


class Amend(tool.Case):
    def make(self, options, base=None):
        more = ['-b', base, '-F', 'raw'] if base else []
        self.qemu('create', '-q', '-f', 'qcow2', '-o', options, *more, 'new',
                  '6M')
        self.qemu_io('new', 'qcow2', 'write -P 3 0 300k', 'write -P 4 2M 1M',
                     'write -z 2500k 200k', 'write -z -u 4M 300k',
                     'write -z 100k 7k')
        self.qemu('convert', '-O', 'raw', 'new', 'before')

    def amend(self, *options):
        result = self.rhea('amend', '-f', 'qcow2', '-o', ','.join(options),
                           'new')
        self.assertEqual(result.out, '')
        self.qemu('check', 'new')
        info = self.qemu('info', '--output=json', 'new').json
        data = info['format-specific']['data']
        self.qemu('convert', '-O', 'raw', 'new', 'after')
        self.rhea('convert', '-O', 'raw', 'new', 'ours')
        self.assertEqual(contents('ours'), contents('after'))
        return info, data

    def same_contents(self):
        self.assertEqual(contents('after'), contents('before'))

    def test_versions_there_and_back(self):
        self.make_data('base', 5 * MIB, [(0, 5 * MIB)])
        for options in ('cluster_size=4k', 'cluster_size=64k',
                        'lazy_refcounts=on', 'compression_type=zstd'):
            for base in (None, 'base'):
                with self.subTest(options=options, base=base):
                    self.make(options, base)
                    self.assertEqual(self.amend('compat=0.10')[1]['compat'],
                                     '0.10')
                    self.same_contents()
                    self.qemu_io('new', 'qcow2', 'write -P 9 3M 1M')
                    os.replace('new', 'kept')
                    os.replace('kept', 'new')
                    self.qemu('convert', '-O', 'raw', 'new', 'before')
                    self.assertEqual(self.amend('compat=1.1')[1]['compat'],
                                     '1.1')
                    self.same_contents()

    def test_snapshots_follow(self):
        self.make('compat=0.10,cluster_size=4k')
        self.qemu('snapshot', '-c', 'one', 'new')
        self.qemu_io('new', 'qcow2', 'write -P 8 1M 1M')
        self.qemu('convert', '-O', 'raw', 'new', 'before')
        self.amend('compat=v3')
        self.same_contents()
        self.amend('compat=v2')
        self.same_contents()
        self.amend('compat=v3', 'refcount_bits=32')
        self.same_contents()
        self.qemu_io('new', 'qcow2', 'write -z 0 1M')
        self.qemu('snapshot', '-c', 'two', 'new')
        self.fails(tool.rhea('amend', '-o', 'compat=v2,refcount_bits=16',
                             'new'))

    def test_snapshots_of_old_programs_are_made_complete(self):
        """Version 2 needs no disk size with a snapshot, version 3 does."""
        self.make('compat=0.10,cluster_size=4k')
        self.qemu('snapshot', '-c', 'one', 'new')
        table = struct.unpack('>Q', contents('new')[64:72])[0]
        entry = contents('new')[table:table + 40]
        id_size, name_size = struct.unpack('>HH', entry[12:16])
        extra = struct.unpack('>I', entry[36:40])[0]
        names = contents('new')[table + 40 + extra:][:id_size + name_size]
        tool.poke('new', table, entry[:36] + bytes(4) + names + bytes(extra))
        self.amend('compat=1.1')
        self.same_contents()
        self.assertEqual(self.rhea('check', 'new').out,
                         self.qemu('check', 'new').out)
        table = struct.unpack('>Q', contents('new')[64:72])[0]
        self.assertEqual(contents('new')[table + 36:table + 56],
                         struct.pack('>IQQ', 24, 0, 6 * MIB))

    def test_refcount_bits(self):
        for cluster in ('512', '4k', '64k'):
            self.make('cluster_size=' + cluster)
            for bits in (1, 64, 2, 32, 4, 8, 16):
                with self.subTest(cluster=cluster, bits=bits):
                    data = self.amend(f'refcount_bits={bits}')[1]
                    self.assertEqual(data['refcount-bits'], bits)
                    self.same_contents()
        self.make('refcount_bits=16')
        self.qemu('snapshot', '-c', 'one', 'new')
        self.fails(tool.rhea('amend', '-o', 'refcount_bits=1', 'new'))
        self.sound('new', 'qcow2')
        self.amend('refcount_bits=2')
        self.same_contents()

    def test_lazy_refcounts_and_size(self):
        self.make('cluster_size=4k')
        for value in ('on', 'off'):
            data = self.amend(f'lazy_refcounts={value}')[1]
            self.assertEqual(data['lazy-refcounts'], value == 'on')
            self.same_contents()
        self.assertEqual(self.amend('size=9M')[0]['virtual-size'], 9 * MIB)
        self.assertEqual(contents('after')[:6 * MIB], contents('before'))
        self.assertEqual(self.amend('size=2M', 'compat=v2')[0]['virtual-size'],
                         2 * MIB)
        self.assertEqual(contents('after'), contents('before')[:2 * MIB])

    def test_data_files(self):
        self.make('data_file=data,data_file_raw=on')
        self.assertFalse(self.amend('data_file_raw=off')[1]['data-file-raw'])
        os.rename('data', 'other')
        self.rhea('amend', '-o', 'data_file=other', '--image-opts',
                  'driver=qcow2,file.filename=new,data-file.filename=other')
        self.assertEqual(self.amend('lazy_refcounts=on')[1]['data-file'],
                         'other')
        self.same_contents()

    def test_what_is_refused_changes_nothing(self):
        self.make_data('base', MIB, [])
        self.make('extended_l2=on', 'base')
        before = contents('new')
        for options in ('compat=0.10', 'cluster_size=4k', 'bogus=1',
                        'compression_type=zstd', 'preallocation=full',
                        'refcount_bits=3', 'refcount_bits=0', 'compat=7',
                        'backing_file=other', 'backing_fmt=qcow2',
                        'data_file=x', 'data_file_raw=on', 'lazy_refcounts=x',
                        'encrypt.keyslot=1', 'size=x', 'size=9P',
                        'compat=0.10,refcount_bits=8'):
            with self.subTest(options=options):
                self.fails(tool.rhea('amend', '-o', options, 'new'))
                self.assertTrue(contents('new') == before)
        self.fails(tool.rhea('amend', 'new'))
        self.fails(tool.rhea('amend', '-o', 'compat=v3'))
        self.fails(tool.rhea('amend', '-f', 'raw', '-o', 'size=1M', 'base'))
        self.amend('backing_file=base', 'backing_fmt=raw')

    def test_help(self):
        ours = self.rhea('amend', '-f', 'qcow2', '-o', 'help').out.split('\n')
        theirs = self.qemu('amend', '-f', 'qcow2', '-o', 'help')
        for a, b in zip(ours, theirs.out.split('\n')):
            self.assertEqual(a.split('- ')[0], b.split('- ')[0])
        self.make('cluster_size=4k')
        self.assertEqual(self.rhea('amend', '-o', 'help', 'new').out,
                         '\n'.join(ours))
        self.fails(tool.rhea('amend', '-f', 'qed', '-o', 'help'))


if __name__ == '__main__':
    tool.main()
