# SPDX-License-Identifier: MIT
"""rhea-img snapshot does what qemu-img snapshot does, and `convert -l` copies
what a snapshot holds."""
import os
import re
import struct

import tool

MIB = tool.MIB


class Snapshot(tool.Case):
    def make(self, options=None, size='4M'):
        args = ['-o', options] if options else []
        self.qemu('create', '-q', '-f', 'qcow2', *args, 'x', size)

    def content(self, which=None, program=tool.rhea):
        args = ['-l', which] if which else []
        self.good(program('convert', '-O', 'raw', *args, 'x', 'out'))
        return tool.contents('out')

    def names(self):
        found = self.rhea('info', '--output=json', 'x').json
        return [(s['id'], s['name']) for s in found.get('snapshots', [])]

    def test_create_list_apply_delete(self):
        self.make()
        self.same('snapshot', '-l', 'x', code=0)
        self.qemu_io('x', 'qcow2', 'write -P 1 0 1M')
        self.assertEqual(self.rhea('snapshot', '-c', 'one', 'x').out, '')
        self.qemu_io('x', 'qcow2', 'write -P 2 512k 1M')
        self.rhea('snapshot', '-q', '-c', 'two', 'x')
        self.same('snapshot', '-l', 'x', code=0)
        self.same('snapshot', 'x', code=0)
        self.sound('x', 'qcow2')
        first, second = self.content('one'), self.content('2')
        self.assertEqual(first, b'\1' * MIB + bytes(3 * MIB))
        self.assertEqual(second[:MIB + MIB // 2],
                         b'\1' * (MIB // 2) + b'\2' * MIB)
        self.rhea('snapshot', '-a', '1', 'x')
        self.assertEqual(self.content(), first)
        self.qemu_io('x', 'qcow2', 'write -P 3 0 4M')
        for which, expect in (('1', first), ('two', second)):
            for program in (tool.rhea, tool.qemu):
                self.assertEqual(self.content(which, program), expect)
        self.rhea('snapshot', '-d', 'one', 'x')
        self.assertEqual(self.names(), [('2', 'two')])
        self.sound('x', 'qcow2')
        self.rhea('snapshot', '-d', 'two', 'x')
        self.same('info', 'x', code=0)
        self.sound('x', 'qcow2')
        self.assertEqual(self.content(), b'\3' * 4 * MIB)

    def test_the_date_is_now(self):
        self.make()
        self.rhea('snapshot', '-c', 'one', 'x')
        self.qemu('snapshot', '-c', 'two', 'x')
        a, b = self.rhea('info', '--output=json', 'x').json['snapshots']
        self.assertLess(abs(a['date-sec'] - b['date-sec']), 60)
        self.assertNotEqual(a['date-nsec'], 0)

    def test_an_id_deletes_nothing(self):
        self.make()
        self.rhea('snapshot', '-c', 'one', 'x')
        self.fails(tool.rhea('snapshot', '-d', '1', 'x'), says='no snapshot')
        self.assertEqual(self.names(), [('1', 'one')])

    def test_of_two_with_a_name_the_first_goes(self):
        self.make()
        for _ in range(2):
            self.rhea('snapshot', '-c', 'same', 'x')
        self.rhea('snapshot', '-d', 'same', 'x')
        self.assertEqual(self.names(), [('2', 'same')])
        self.rhea('snapshot', '-c', 'next', 'x')
        self.assertEqual(self.names(), [('2', 'same'), ('3', 'next')])

    def test_snapshots_of_other_sizes(self):
        self.make(size='1M')
        self.qemu_io('x', 'qcow2', 'write -P 1 0 1M')
        self.rhea('snapshot', '-c', 'small', 'x')
        self.qemu('resize', '-q', 'x', '3M')
        self.qemu_io('x', 'qcow2', 'write -P 2 2M 1M')
        self.rhea('snapshot', '-c', 'large', 'x')
        self.assertEqual(self.content('small'), b'\1' * MIB)
        self.rhea('snapshot', '-a', 'small', 'x')
        self.assertEqual(self.content(program=tool.qemu), b'\1' * MIB)
        self.sound('x', 'qcow2')
        self.assertEqual(self.content('large'),
                         b'\1' * MIB + bytes(MIB) + b'\2' * MIB)
        self.rhea('snapshot', '-a', 'large', 'x')
        self.assertEqual(len(self.content(program=tool.qemu)), 3 * MIB)
        self.sound('x', 'qcow2')

    def test_a_bitmap_has_all_bits_after_an_apply(self):
        for size in (None, '3M'):
            self.make(size='2M')
            self.rhea('bitmap', '--add', 'x', 'b')
            self.rhea('snapshot', '-c', 'one', 'x')
            if size:
                self.qemu('resize', '-q', 'x', size)
            self.rhea('bitmap', '--clear', 'x', 'b')
            self.rhea('snapshot', '-a', 'one', 'x')
            self.sound('x', 'qcow2')
            found = self.qemu('info', '--output=json', 'x').json
            bitmap, = found['format-specific']['data']['bitmaps']
            self.assertEqual(bitmap['flags'], ['auto'])
            # All of its table's single cluster is ones.
            with open('x', 'rb') as f:
                data = f.read()
            self.assertIn(b'\xff' * (2 * MIB // 65536 // 8), data)
            self.rhea('snapshot', '-d', 'one', 'x')
            self.sound('x', 'qcow2')

    def test_over_a_backing_file(self):
        self.make_data('base', MIB, [(0, MIB)])
        self.rhea('create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'raw',
                  'x')
        self.rhea('snapshot', '-c', 'one', 'x')
        self.qemu_io('x', 'qcow2', 'write -P 1 0 1M')
        self.assertEqual(self.content('one'), tool.contents('base'))
        self.rhea('snapshot', '-a', 'one', 'x')
        self.assertEqual(self.content(), tool.contents('base'))

    def test_refcounts_too_narrow_change_nothing(self):
        self.make('refcount_bits=1')
        self.qemu_io('x', 'qcow2', 'write -P 1 0 64k')
        before = tool.contents('x')
        self.fails(tool.rhea('snapshot', '-c', 'one', 'x'), says='1 bit')
        self.assertEqual(tool.contents('x'), before)

    def test_a_data_file_excludes_snapshots(self):
        self.make('data_file=data')
        self.fails(tool.rhea('snapshot', '-c', 'one', 'x'), says='data file')

    def test_other_formats_have_none(self):
        self.qemu('create', '-q', '-f', 'qed', 'q', '1M')
        self.assertEqual(self.rhea('snapshot', '-l', 'q').out, '')
        for option in ('-c', '-a', '-d'):
            self.fails(tool.rhea('snapshot', option, 'one', 'q'))

    def test_damaged_tables_are_told_of(self):
        self.make()
        self.qemu_io('x', 'qcow2', 'write -P 1 0 1M')
        self.rhea('snapshot', '-c', 'one', 'x')
        with open('x', 'r+b') as f:
            f.seek(64)
            at, = struct.unpack('>Q', f.read(8))
            for field in (1, 1 << 62, 1 << 50):
                f.seek(at)
                f.write(struct.pack('>Q', field))
                f.flush()
                for args in (('snapshot', '-a', 'one', 'x'),
                             ('snapshot', '-d', 'one', 'x'),
                             ('convert', '-l', 'one', 'x', 'y')):
                    with self.subTest(field=field, args=args):
                        self.fails(tool.rhea(*args), says='damaged')

    def test_naming_a_snapshot_to_convert(self):
        self.make()
        for name in ('one', 'two'):
            self.rhea('snapshot', '-c', name, 'x')
        for which in ('one', '1', 'snapshot.id=1', 'snapshot.name=two',
                      'snapshot.id=2,snapshot.name=two'):
            self.rhea('convert', '-l', which, 'x', 'y')
        for which in ('three', 'snapshot.id=3', 'snapshot.name=1',
                      'snapshot.id=1,snapshot.name=two', 'snapshot.x=1'):
            os.unlink('y') if os.path.exists('y') else None
            with self.subTest(which=which):
                self.fails(tool.rhea('convert', '-l', which, 'x', 'y'))
                self.assertFalse(os.path.exists('y'))
        self.fails(tool.rhea('convert', '-l', 'one', 'x', 'x', 'y'))

    def test_errors(self):
        self.make()
        for args in ((), ('-l', '-c', 'a', 'x'), ('-a', 'none', 'x'),
                     ('-d', 'none', 'x'), ('-l', 'none'), ('-l', 'x', 'x'),
                     ('-c', 'a' * 256, 'x'), ('-U', '-c', 'a', 'x'),
                     ('-Z', 'x')):
            with self.subTest(args=args):
                self.fails(tool.rhea('snapshot', *args))
        self.assertEqual(self.names(), [])

    def test_help_names_the_options(self):
        out = self.rhea('snapshot', '--help').out
        for option in ('-l', '-c', '-a', '-d', '-U', '-q'):
            self.assertTrue(re.search(r'(?m)^  %s' % option, out), out)


if __name__ == '__main__':
    tool.main()
