# SPDX-License-Identifier: MIT
"""rhea-img commit writes what qemu-img commit writes, and leaves what it
leaves."""
import os
import shutil
import signal
import subprocess
import time

import tool
from tool import MIB, contents


class Commit(tool.Case):
    """Each on a chain base <- mid <- top."""

    def make(self, fmt='qcow2', base='raw', sizes=(2, 2, 2)):
        self.qemu('create', '-q', '-f', base, 'base', sizes[0] * MIB)
        self.qemu('create', '-q', '-f', fmt, '-b', 'base', '-F', base, 'mid',
                  sizes[1] * MIB)
        self.qemu('create', '-q', '-f', fmt, '-b', 'mid', '-F', fmt, 'top',
                  sizes[2] * MIB)
        for i, (name, f) in enumerate(
                (('base', base), ('mid', fmt), ('top', fmt))):
            self.qemu_io(name, f, f'write -P {i + 1} {i * 200}k 400k',
                         f'write -P {i + 5} {sizes[i] * 1024 - 64}k 64k')
        if fmt == 'qcow2':
            self.qemu_io('top', fmt, 'write -z 400k 128k')
        self.qemu('convert', '-f', fmt, '-O', 'raw', 'top', 'want')

    def twin(self, *args, fmt='qcow2', base='raw', names=('base', 'mid',
                                                          'top')):
        """The same by qemu-img, on a copy."""
        os.mkdir('theirs')
        for name in ('base', 'mid', 'top'):
            shutil.copy(name, 'theirs')
        ours = tool.rhea('commit', *args, 'top')
        os.chdir('theirs')
        theirs = tool.qemu('commit', *args, 'top')
        os.chdir('..')
        self.assertEqual((ours.code, ours.out), (theirs.code, theirs.out),
                         f'{ours}\n{theirs}')
        for name in names:
            f = base if name == 'base' else fmt
            self.identical(name, f, 'theirs/' + name, f)
            if f != 'raw':
                self.sound(name, f)
        return ours

    def test_into_the_backing_file(self):
        for fmt in ('qcow2', 'qed'):
            for base in ('raw', fmt):
                with self.subTest(fmt=fmt, base=base):
                    self.make(fmt, base)
                    self.twin('-f', fmt, fmt=fmt, base=base)
                    self.identical('mid', fmt, 'want', 'raw')
                    shutil.rmtree('theirs')

    def test_the_image_is_emptied(self):
        self.make()
        self.rhea('commit', 'top')
        told = self.rhea('map', '--output=json', 'top').json
        self.assertEqual([e for e in told if e['depth'] == 0], [])

    def test_with_d_it_is_not(self):
        self.make()
        before = contents('top')
        self.twin('-d')
        self.assertEqual(contents('top'), before)

    def test_past_a_layer(self):
        self.make()
        mid, top = contents('mid'), contents('top')
        self.twin('-b', 'base', names=('base', 'top'))
        self.assertEqual((contents('mid'), contents('top')), (mid, top))
        self.identical('base', 'raw', 'want', 'raw')

    def test_a_smaller_one_grows(self):
        for sizes in ((1, 1, 2), (1, 2, 3), (3, 1, 2), (2, 1, 3), (3, 2, 1)):
            for args in ((), ('-b', 'base')):
                with self.subTest(sizes=sizes, args=args):
                    self.make(sizes=sizes)
                    self.rhea('commit', *args, 'top')
                    target, fmt = (('base', 'raw') if args
                                   else ('mid', 'qcow2'))
                    # What reached past the top image's end stays.
                    self.rhea('resize', '--shrink', '-f', fmt, target,
                              sizes[2] * MIB)
                    self.identical(target, fmt, 'want', 'raw')

    def test_a_name_is_relative_to_the_image_above(self):
        os.mkdir('sub')
        os.chdir('sub')
        self.make()
        os.chdir('..')
        self.same('commit', '-b', 'sub/mid', 'sub/top', code=1)
        self.rhea('commit', '-b', 'mid', 'sub/top')
        self.rhea('commit', '-b', os.path.abspath('sub/base'), 'sub/top')
        self.identical('sub/base', 'raw', 'sub/want', 'raw')

    def test_output(self):
        self.make()
        self.assertEqual(self.rhea('commit', '-q', '-p', 'top').out, '')
        self.make()
        told = self.rhea('commit', '-p', 'top').out
        self.assertRegex(told, r'^    \(0\.00/100%\)\r')
        self.assertTrue(told.endswith('(100.00/100%)\r\nImage committed.\n'))

    def test_errors(self):
        self.make()
        for args in (('base',), ('-b', 'other', 'top'), ('-b', 'top', 'top'),
                     (), ('top', 'mid'), ('-r', 'x', 'top'),
                     ('-t', 'some', 'top'), ('-f', 'raw', 'top'), ('-Z',),
                     ('missing',)):
            with self.subTest(args=args):
                before = contents('top'), contents('mid'), contents('base')
                self.fails(tool.rhea('commit', *args))
                self.assertEqual(
                    (contents('top'), contents('mid'), contents('base')),
                    before)

    def test_a_base_in_use_is_not_written(self):
        self.make()
        with subprocess.Popen(['qemu-io', '-f', 'qcow2', 'mid'],
                              stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as other:
            other.stdin.write(b'read 0 512\n')
            other.stdin.flush()
            other.stdout.readline()
            before = contents('mid')
            self.fails(tool.rhea('commit', 'top'), says='in use')
            self.assertEqual(contents('mid'), before)
            other.communicate()
        self.rhea('commit', 'top')

    def test_an_interrupt_is_safe(self):
        self.make(sizes=(8, 8, 8))
        self.qemu_io('top', 'qcow2', 'write -P 9 0 8M')
        with subprocess.Popen([tool.RHEA, 'commit', '-r', '2M', 'top'],
                              stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as running:
            time.sleep(0.5)
            running.send_signal(signal.SIGINT)
            out, err = running.communicate()
        self.assertEqual((running.returncode, out), (1, b''), err)
        self.assertIn(b'stopped', err)
        self.sound('top', 'qcow2')
        self.sound('mid', 'qcow2')
        self.rhea('convert', '-O', 'raw', 'top', 'now')
        self.assertEqual(contents('now'), b'\x09' * (8 * MIB))
        self.rhea('commit', 'top')
        self.rhea('convert', '-O', 'raw', 'mid', 'now')
        self.assertEqual(contents('now'), b'\x09' * (8 * MIB))


if __name__ == '__main__':
    tool.main()
