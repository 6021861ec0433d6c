# SPDX-License-Identifier: MIT
"""rhea-img rebase gives an image another backing file, and the guest the same
bytes."""
import os
import shutil
import signal
import subprocess
import time

import tool
from tool import MIB, contents


class Rebase(tool.Case):

    def make(self, fmt='qcow2', sizes=(2, 3, 1), options=()):
        """Bases a and b, and the image top over a."""
        for i, name in enumerate('ab'):
            self.qemu('create', '-q', '-f', 'qcow2', name, sizes[i] * MIB)
            end = sizes[i] * 1024
            self.qemu_io(name, 'qcow2', 'write -P 7 0 128k',
                         f'write -P {i + 1} 128k 256k',
                         f'write -P {i + 1} {512 + i * 128}k 192k',
                         f'write -P {i + 3} {end - 100}k 100k')
        self.qemu('create', '-q', '-f', fmt, *options, '-b', 'a', '-F',
                  'qcow2', 'top', sizes[2] * MIB)
        self.qemu_io('top', fmt, 'write -P 9 200k 30k')
        self.qemu('convert', '-f', fmt, '-O', 'raw', 'top', 'want')

    def check(self, fmt='qcow2', backing=None):
        self.sound('top', fmt)
        self.identical('top', fmt, 'want', 'raw')
        told = self.rhea('info', '-f', fmt, '--output=json', 'top').json
        self.assertEqual(told.get('backing-filename'), backing)

    def test_onto_another_image(self):
        for fmt in ('qcow2', 'qed'):
            for sizes in ((2, 3, 3), (3, 2, 3), (2, 2, 3), (3, 3, 1),
                          (1, 3, 4)):
                with self.subTest(fmt=fmt, sizes=sizes):
                    self.make(fmt, sizes)
                    shutil.copy('top', 'theirs')
                    self.rhea('rebase', '-f', fmt, '-b', 'b', '-F', 'qcow2',
                              'top')
                    self.check(fmt, 'b')
                    self.qemu('rebase', '-f', fmt, '-b', 'b', '-F', 'qcow2',
                              'theirs')
                    self.identical('top', fmt, 'theirs', fmt)
                    self.assertLessEqual(os.path.getsize('top'),
                                         os.path.getsize('theirs'))

    def test_what_is_alike_is_not_copied(self):
        self.make(sizes=(2, 2, 2))
        shutil.copy('top', 'theirs')
        self.rhea('rebase', '-b', 'b', '-F', 'qcow2', 'top')
        self.qemu('rebase', '-b', 'b', '-F', 'qcow2', 'theirs')
        ours = self.rhea('map', '--output=json', 'top').json
        theirs = self.rhea('map', '--output=json', 'theirs').json
        for told in ours + theirs:
            told.pop('offset', None)
        self.assertEqual(ours, theirs)
        self.assertEqual(ours[0]['depth'], 1)

    def test_flatten(self):
        self.make()
        self.rhea('rebase', '-b', '', 'top')
        self.check()
        os.unlink('a')
        self.identical('top', 'qcow2', 'want', 'raw')

    def test_within_the_chain(self):
        self.make(sizes=(2, 2, 2))
        shutil.copy('top', 'low')
        self.qemu('create', '-q', '-f', 'qcow2', '-b', 'low', '-F', 'qcow2',
                  'top', 3 * MIB)
        self.qemu_io('top', 'qcow2', 'write -P 8 1M 10k')
        self.qemu('convert', '-O', 'raw', 'top', 'want')
        self.rhea('rebase', '-b', 'a', '-F', 'qcow2', 'top')
        self.check(backing='a')
        # Only what the image between had was copied.
        told = self.rhea('map', '--output=json', 'top').json
        self.assertLess(sum(e['length'] for e in told if e['depth'] == 0),
                        MIB + 256 * 1024)

    def test_back_from_none(self):
        self.make()
        self.rhea('rebase', '-b', '', 'top')
        self.rhea('rebase', '-b', 'b', '-F', 'qcow2', 'top')
        self.check(backing='b')

    def test_compressed(self):
        for options in ((), ('-o', 'extended_l2=on'),
                        ('-o', 'cluster_size=4k,compression_type=zstd')):
            with self.subTest(options=options):
                self.make(options=options)
                self.rhea('rebase', '-c', '-b', '', 'top')
                self.check()
                self.assertTrue(any(e['compressed'] for e in self.rhea(
                    'map', '--output=json', 'top').json))

    def test_unsafe_only_changes_the_header(self):
        self.make(sizes=(2, 2, 2))
        shutil.copy('top', 'theirs')
        os.rename('a', 'moved')
        for args in (('-u', '-b', 'moved', '-F', 'qcow2'),
                     ('-u', '-b', ''), ('-u',),
                     ('-u', '-b', '/dev/nowhere', '-F', 'host_device'),
                     ('-u', '-b', 'nowhere', '-F', 'file'),
                     ('-u', '-b', 'nowhere', '-F', 'raw')):
            with self.subTest(args=args):
                self.rhea('rebase', *args, 'top')
                self.qemu('rebase', *args, 'theirs')
                ours = self.rhea('info', '--output=json', '-U', 'top').json
                theirs = self.rhea('info', '--output=json', '-U',
                                   'theirs').json
                for key in ('backing-filename', 'backing-filename-format'):
                    self.assertEqual(ours.get(key), theirs.get(key))
                if 'moved' in args:
                    self.check(backing='moved')

    def test_names_are_relative_to_the_image(self):
        os.mkdir('sub')
        os.chdir('sub')
        self.make()
        os.chdir('..')
        self.rhea('rebase', '-b', 'b', '-F', 'qcow2', 'sub/top')
        self.fails(tool.rhea('rebase', '-b', 'sub/a', '-F', 'qcow2',
                             'sub/top'))
        os.chdir('sub')
        self.check(backing='b')

    def test_errors_leave_it_alone(self):
        self.make()
        before = contents('top')
        for args in (('top',), ('-b', 'b', 'top'), ('-u', '-b', 'b', 'top'),
                     ('-b', 'missing', '-F', 'qcow2', 'top'),
                     ('-b', 'b', '-F', 'qed', 'top'),
                     ('-b', 'b', '-F', 'none', 'top'),
                     ('-b', 'top', '-F', 'qcow2', 'top'),
                     ('-b', 'b', '-F', 'qcow2', '-t', 'some', 'top'),
                     ('-b', 'b', '-F', 'qcow2', '-T', 'some', 'top'),
                     ('-b', 'b', '-F', 'qcow2', 'top', 'top'),
                     ('-u', '-b', 'x' * 1024, '-F', 'qcow2', 'top'),
                     ('-Z',), ('-b', '', 'missing')):
            with self.subTest(args=args):
                self.fails(tool.rhea('rebase', *args))
                self.assertEqual(contents('top'), before)

    def test_a_chain_that_would_loop_is_refused(self):
        self.make()
        self.qemu('create', '-q', '-f', 'qcow2', '-b', 'top', '-F', 'qcow2',
                  'above')
        before = contents('top')
        for args in ((), ('-U',)):
            self.fails(tool.rhea('rebase', *args, '-b', 'above', '-F',
                                 'qcow2', 'top'))
        self.assertEqual(contents('top'), before)

    def test_an_interrupt_is_safe(self):
        self.qemu('create', '-q', '-f', 'raw', 'base', '512M')
        self.qemu('create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'raw',
                  'top')
        for i in range(64):
            tool.pattern('base', i * 8 * MIB, MIB, i)
        self.qemu('convert', '-O', 'raw', 'top', 'want')
        with subprocess.Popen([tool.RHEA, 'rebase', '-b', '', 'top'],
                              stderr=subprocess.PIPE) as running:
            while os.path.getsize('top') < MIB and running.poll() is None:
                time.sleep(0.001)
            running.send_signal(signal.SIGTERM)
            running.communicate()
        self.check(backing='base' if running.returncode else None)

    def test_progress(self):
        self.make()
        told = self.rhea('rebase', '-p', '-b', '', 'top').out
        self.assertRegex(told, r'^    \(0\.00/100%\)\r')
        self.assertTrue(told.endswith('(100.00/100%)\r\n'), told)
        self.assertEqual(self.rhea('rebase', '-p', '-q', '-b', 'b', '-F',
                                   'qcow2', 'top').out, '')


if __name__ == '__main__':
    tool.main()
