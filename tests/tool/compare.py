# SPDX-License-Identifier: MIT
"""rhea-img compare judges as qemu-img compare does."""
import shutil

import tool

MIB = tool.MIB


class Compare(tool.Case):
    def setUp(self):
        super().setUp()
        self.make_data('a', 5 * MIB, [(0, MIB), (3 * MIB + 512, 5000)])
        for fmt in ('qcow2', 'qed'):
            self.qemu('convert', '-f', 'raw', '-O', fmt, 'a', f'a.{fmt}')
        self.qemu('convert', '-c', '-f', 'raw', '-O', 'qcow2', 'a', 'a.packed')

    def test_the_first_of_many_differences_in_large_images(self):
        for name in ('a', 'b'):
            self.qemu('create', '-q', '-f', 'qcow2', '-o',
                      'preallocation=metadata', name, '300M')
            self.qemu_io(name, 'qcow2', 'write -P 7 70M 5M',
                         'write -P 9 190M 1M')
        self.same('compare', 'a', 'b', code=0)
        for where in ('260M', '191M', '100M', '71M'):
            self.qemu_io('b', 'qcow2', f'write -P 5 {where} 512')
            for args in (('a', 'b'), ('b', 'a')):
                self.same('compare', *args, code=1)

    def test_the_same_contents_in_any_format(self):
        names = ('a', 'a.qcow2', 'a.qed', 'a.packed')
        for one in names:
            for other in names:
                with self.subTest(one=one, other=other):
                    self.same('compare', one, other, code=0)

    def test_the_first_difference_is_told_by_sector(self):
        for at in (0, 511, 512, 70000, MIB - 1, MIB, 2 * MIB + 7,
                   3 * MIB + 4000, 5 * MIB - 1):
            shutil.copy('a', 'b')
            with open('b', 'r+b') as f:
                f.seek(at)
                byte = f.read(1)
                f.seek(at)
                f.write(bytes([byte[0] ^ 1]))
            with self.subTest(at=at):
                for name in ('a', 'a.qcow2', 'a.qed', 'a.packed'):
                    self.same('compare', '-F', 'raw', name, 'b', code=1)
                    self.same('compare', '-f', 'raw', 'b', name, code=1)

    def test_sizes_that_differ(self):
        for length, runs, code in ((7 * MIB, [], 0), (7 * MIB, [(6 * MIB, 9)],
                                                      1)):
            self.make_data('b', 5 * MIB, [(0, MIB), (3 * MIB + 512, 5000)])
            with open('b', 'r+b') as f:
                f.truncate(length)
            for offset, size in runs:
                tool.pattern('b', offset, size, 9)
            for name in ('a', 'a.qcow2', 'a.qed'):
                with self.subTest(name=name, runs=runs):
                    self.same('compare', '-F', 'raw', name, 'b', code=code)
                    self.same('compare', '-f', 'raw', 'b', name, code=code)
                    self.same('compare', '-s', '-F', 'raw', name, 'b', code=1)

    def test_strictly(self):
        for one, other, code in (('a.qcow2', 'a.qcow2', 0),
                                 ('a.qed', 'a.qed', 0),
                                 ('a', 'a', 0)):
            self.same('compare', '-s', one, other, code=code)
        self.assertEqual(tool.rhea('compare', '-s', 'a.qcow2', 'a').code, 1)

    def test_backing_files(self):
        self.qemu('create', '-q', '-f', 'qcow2', '-b', 'a.qed', '-F', 'qed',
                  'top')
        self.same('compare', 'top', 'a', code=0)
        self.qemu_io('top', 'qcow2', 'write -z 0 64k')
        self.same('compare', 'top', 'a', code=1)

    def test_quiet_only_exits(self):
        self.assertEqual(self.rhea('compare', '-q', 'a', 'a.qcow2').out, '')
        self.make_data('b', 5 * MIB, [])
        result = tool.rhea('compare', '-q', '-F', 'raw', 'a.qcow2', 'b')
        self.assertEqual((result.code, result.out, result.err), (1, '', ''))

    def test_progress_ends_at_a_hundred(self):
        self.assertRegex(self.rhea('compare', '-p', 'a', 'a.qed').out,
                         r'    \(0\.00/100%\)\r.*    \(100\.00/100%\)\r')

    def test_errors_are_not_mistaken_for_a_difference(self):
        for args in ((), ('a',), ('a', 'a', 'a'), ('none', 'a'), ('a', 'none'),
                     ('-f', 'none', 'a', 'a'), ('-Z', 'a', 'a'),
                     ('-f', 'qed', 'a.qcow2', 'a')):
            with self.subTest(args=args):
                self.fails(tool.rhea('compare', *args), code=2)

    def test_an_error_past_the_end_of_the_shorter_one(self):
        """What was found out before is told all the same."""
        self.qemu('create', '-q', '-f', 'qcow2', 'short', '1M')
        with open('rules', 'w', encoding='ascii') as f:
            f.write('[inject-error]\nevent = "read_aio"\n')
        self.same('compare', 'blkdebug:rules:a.qcow2', 'short', code=4)
        self.qemu('create', '-q', '-f', 'qcow2', 'short', '0')
        ours = self.same('compare', 'blkdebug:rules:a.qcow2', 'short', code=4)
        self.assertEqual(ours.out, 'Warning: Image size mismatch!\n')


if __name__ == '__main__':
    tool.main()
