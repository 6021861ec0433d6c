# SPDX-License-Identifier: MIT
"""rhea-img resize: sizes, contents and what it says, next to qemu-img."""
import os
import random
import shutil

import tool
from tool import contents

KINDS = [('raw', ''), ('qed', 'cluster_size=4k,table_size=2'),
         ('qcow2', 'cluster_size=512'), ('qcow2', 'cluster_size=64k'),
         ('qcow2', 'cluster_size=4k,compat=0.10'),
         ('qcow2', 'cluster_size=16k,extended_l2=on'),
         ('qcow2', 'cluster_size=1k,refcount_bits=64'),
         ('qcow2', 'cluster_size=4k,lazy_refcounts=on')]
MODES = {'raw': ('off', 'falloc', 'full'), 'qed': ('off',),
         'qcow2': ('off', 'metadata', 'falloc', 'full')}


class Resize(tool.Case):
    def make(self, name, fmt, options, size='3M', base=None):
        more = ['-o', options] if options else []
        if base:
            more += ['-b', base, '-F', 'raw']
        self.qemu('create', '-q', '-f', fmt, *more, name, size)

    def size(self, name, fmt):
        return self.qemu('info', '-f', fmt, '--output=json',
                         name).json['virtual-size']

    def check(self, name, fmt):
        if fmt != 'raw':
            self.sound(name, fmt)

    def test_grow_and_shrink_keep_the_contents(self):
        rng = random.Random(3)
        for fmt, options in KINDS:
            for mode in MODES[fmt]:
                with self.subTest(fmt=fmt, options=options, mode=mode):
                    self.make_data('data', 3 << 20, [(0, 70000), (2000000, 999),
                                                     ((3 << 20) - 700, 700)],
                                   rng.randrange(100))
                    self.make('new', fmt, options)
                    self.qemu('convert', '-n', '-f', 'raw', '-O', fmt, 'data',
                              'new')
                    said = self.rhea('resize', '-f', fmt, '--preallocation',
                                     mode, 'new', '+5001k')
                    self.assertEqual(said.out, 'Image resized.\n')
                    os.truncate('data', (3 << 20) + 5001 * 1024)
                    self.identical('data', 'raw', 'new', fmt)
                    self.check('new', fmt)
                    if fmt == 'qed' or mode in ('metadata', 'falloc'):
                        continue
                    self.rhea('resize', '-q', '--shrink', '-f', fmt, 'new',
                              '-7000k')
                    os.truncate('data', (3 << 20) - 1999 * 1024)
                    self.identical('data', 'raw', 'new', fmt)
                    self.check('new', fmt)
                    self.rhea('resize', '-f', fmt, 'new', '4M')
                    os.truncate('data', 4 << 20)
                    self.identical('data', 'raw', 'new', fmt)
                    self.check('new', fmt)

    def test_a_longer_backing_file_does_not_show(self):
        self.make_data('base', 5 << 20, [(0, 5 << 20)])
        for fmt, options in KINDS[1:]:
            for mode in MODES[fmt]:
                with self.subTest(fmt=fmt, options=options, mode=mode):
                    size = (1 << 20) + 512 * 3
                    self.make('new', fmt, options, size, 'base')
                    self.rhea('resize', '-f', fmt, '--preallocation', mode,
                              'new', '7M')
                    shutil.copy('base', 'data')
                    os.truncate('data', size)
                    os.truncate('data', 7 << 20)
                    self.identical('data', 'raw', 'new', fmt)
                    self.check('new', fmt)

    def test_random_sizes_as_qemu(self):
        rng = random.Random(11)
        for fmt, options in KINDS:
            for ours in ('', 'rhea'):
                self.make('new' + ours, fmt, options)
            for _ in range(3):
                size = rng.randrange(1, 300 << 10) * 512 + (64 << 20)
                if fmt == 'qed':
                    size = max(size, self.size('new', fmt))
                size = min(size, 1000 << 20)
                self.qemu_io('new', fmt, 'write -P 7 %d 60k' %
                             rng.randrange(1 << 20))
                shutil.copy('new', 'newrhea')
                theirs = self.qemu('resize', '--shrink', '-f', fmt, 'new', size)
                result = self.rhea('resize', '--shrink', '-f', fmt, 'newrhea',
                                   size)
                self.assertEqual(theirs.out, result.out)
                self.assertEqual(self.size('newrhea', fmt),
                                 self.size('new', fmt))
                self.identical('new', fmt, 'newrhea', fmt)
                self.check('newrhea', fmt)

    def test_the_file_becomes_as_small_as_qemus(self):
        for options in ('cluster_size=64k', 'cluster_size=512'):
            self.make('new', 'qcow2', options, '64M')
            self.qemu_io('new', 'qcow2', 'write -P 1 0 20M')
            shutil.copy('new', 'theirs')
            self.rhea('resize', '--shrink', '-f', 'qcow2', 'new', '2M')
            self.qemu('resize', '--shrink', '-f', 'qcow2', 'theirs', '2M')
            self.assertLessEqual(os.path.getsize('new'),
                                 os.path.getsize('theirs'))
            self.sound('new', 'qcow2')

    def test_snapshots_stay_whole(self):
        self.make('new', 'qcow2', 'cluster_size=4k', '8M')
        self.qemu_io('new', 'qcow2', 'write -P 1 0 8M')
        self.qemu('snapshot', '-c', 'one', 'new')
        self.qemu_io('new', 'qcow2', 'write -P 2 3M 2M')
        self.rhea('resize', '--shrink', '-f', 'qcow2', 'new', '4M')
        self.sound('new', 'qcow2')
        self.rhea('resize', '-f', 'qcow2', 'new', '300M')
        self.sound('new', 'qcow2')
        self.qemu_io('new', 'qcow2', 'read -P 1 0 3M', 'read -P 2 3M 1M',
                     'read -P 0 4M 296M')
        self.qemu('snapshot', '-a', 'one', 'new')
        self.qemu_io('new', 'qcow2', 'read -P 1 0 8M')
        self.sound('new', 'qcow2')

    def test_what_is_refused_changes_nothing(self):
        self.make('new', 'qcow2', '')
        self.make('qed', 'qed', '')
        self.make('old', 'qcow2', 'compat=0.10')
        self.qemu('snapshot', '-c', 'one', 'old')
        before = contents('new'), contents('qed'), contents('old')
        for args in (('new', '2M'), ('new', '-1M'), ('--shrink', 'new', '-3M'),
                     ('--shrink', 'new', '0'), ('--shrink', 'new', '-4M'),
                     ('new', '+8E'), ('new', '3P'), ('new', 'x'), ('new', '+'),
                     ('--preallocation=full', '--shrink', 'new', '2M'),
                     ('--preallocation=much', 'new', '4M'), ('new',),
                     ('new', 'qed', '4M'), ('none', '4M'), ('old', '4M'),
                     ('--shrink', 'qed', '1M'), ('-f', 'qed', 'qed', '4E'),
                     ('--preallocation=metadata', 'qed', '4M')):
            with self.subTest(args=args):
                self.fails(tool.rhea('resize', *args))
                self.assertEqual((contents('new'), contents('qed'),
                                  contents('old')), before)


if __name__ == '__main__':
    tool.main()
