# SPDX-License-Identifier: MIT
"""rhea-img create makes what qemu-img create makes, and says the same."""
import os
import subprocess

import tool
from tool import contents

OPTIONS = {
    'raw': ['', 'preallocation=falloc', 'preallocation=full'],
    'qed': ['', 'cluster_size=4k', 'cluster_size=1M,table_size=2',
            'table_size=16'],
    'qcow2': ['', 'compat=0.10', 'compat=v3', 'cluster_size=512',
              'cluster_size=2M', 'refcount_bits=1', 'refcount_bits=64',
              'lazy_refcounts=on', 'extended_l2=on', 'compression_type=zstd',
              'preallocation=metadata', 'preallocation=falloc',
              'preallocation=full,cluster_size=4096',
              'preallocation=metadata,extended_l2=on'],
}


class Create(tool.Case):
    def both(self, *args):
        """Run both programs; returns what is the same of the two results."""
        results = []
        for program in (tool.rhea, tool.qemu):
            result = program('create', *args)
            results.append((result, self.looked_at()))
        self.assertEqual(results[0][1], results[1][1],
                         f'{results[0][0]}\n{results[1][0]}')
        self.assertEqual(results[0][0].code, results[1][0].code,
                         f'{results[0][0]}\n{results[1][0]}')
        return results[0][0], results[1][0]

    def looked_at(self):
        """What QEMU says of the image that was just made, and forget it."""
        if not os.path.exists('new'):
            return None
        info = tool.qemu('info', '--output=json', 'new')
        found = tool.without(info.json, ('actual-size',))
        found['length'] = os.path.getsize('new')
        if found['format'] == 'raw':
            found['blocks'] = os.stat('new').st_blocks
        if found['format'] != 'raw' and found.get(
                'backing-filename') != 'none':
            self.sound('new', found['format'])
        os.unlink('new')
        return found

    def test_every_option_gives_the_same_image_and_line(self):
        for fmt, choices in OPTIONS.items():
            for options in choices:
                with self.subTest(format=fmt, options=options):
                    more = ['-o', options] if options else []
                    ours, theirs = self.both('-f', fmt, *more, 'new', '3M')
                    self.assertEqual(ours.out, theirs.out)
                    self.assertEqual(ours.code, 0)

    def test_sizes(self):
        for size in ('0', '1', '511', '1000', '1k', '1K', '7b', '1.5G', '0x200',
                     '5.5k', '3T', '010'):
            for fmt in ('raw', 'qcow2', 'qed'):
                with self.subTest(format=fmt, size=size):
                    ours, theirs = self.both('-f', fmt, 'new', size)
                    self.assertEqual(ours.out, theirs.out)

    def test_wrong_sizes_are_refused(self):
        for size in ('', 'abc', '1.5', '1kk', '-1', '.5k', '1e3', '9E', '1 k',
                     '99999999999999999999', '0x10k'):
            with self.subTest(size=size):
                self.fails(tool.rhea('create', 'new', '--', size))
                self.assertFalse(os.path.exists('new'))

    def test_backing_files(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'base', '5M')
        for fmt in ('qcow2', 'qed'):
            for size in ((), ('2M',), ('8M',)):
                with self.subTest(format=fmt, size=size):
                    ours, theirs = self.both('-f', fmt, '-b', 'base', '-F',
                                             'qcow2', 'new', *size)
                    self.assertEqual(ours.out, theirs.out)
        ours, theirs = self.both(
            '-f', 'qcow2', '-o', 'backing_file=base,backing_fmt=qcow2', 'new')
        self.assertEqual(ours.out, theirs.out)

    def test_a_backing_file_is_named_relative_to_the_new_image(self):
        os.mkdir('sub')
        self.qemu('create', '-q', '-f', 'qcow2', 'sub/base', '5M')
        self.rhea('create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2',
                  'sub/top')
        self.assertEqual(self.qemu('info', '--output=json', 'sub/top')
                         .json['virtual-size'], 5 << 20)

    def test_a_missing_backing_file_is_accepted_with_u_and_a_size(self):
        self.fails(tool.rhea('create', '-f', 'qcow2', '-b', 'none', '-F', 'raw',
                             'new', '1M'), says='none')
        self.fails(tool.rhea('create', '-u', '-f', 'qcow2', '-b', 'none', '-F',
                             'raw', 'new'), says='size')
        self.assertFalse(os.path.exists('new'))
        self.both('-u', '-f', 'qcow2', '-b', 'none', '-F', 'raw', 'new', '1M')

    def test_a_backing_file_that_cannot_be_used_is_told_of_first(self):
        self.qemu('create', '-q', '-f', 'raw', 'base', '1M')
        self.qemu('create', '-q', '-f', 'qcow2', 'below', '1M')
        for fmt in ('qcow', 'qcow2', 'qed', 'vmdk'):
            for name, of in (('none', 'raw'), ('base', 'qcow2'),
                             ('below', 'vmdk')):
                for size in ((), ('2M',)):
                    with self.subTest(format=fmt, name=name, size=size):
                        ours, theirs = self.both(
                            '-f', fmt, '-b', name, '-F', of, 'new', *size)
                        self.assertEqual((ours.code, ours.out),
                                         (theirs.code, theirs.out))
                        self.assertEqual((ours.code, ours.out), (1, ''))
                        self.assertIn(name, ours.err)
                        self.assertFalse(os.path.exists('new'))

    def test_commas_in_values(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'b,a=s', '5M')
        ours, theirs = self.both(
            '-f', 'qcow2', '-o', 'backing_file=b,,a=s,backing_fmt=qcow2', 'new')
        self.assertEqual(ours.out, theirs.out)
        self.assertEqual(ours.code, 0)

    def test_the_last_of_several_options_counts(self):
        ours, theirs = self.both('-f', 'qcow2', '-o', 'cluster_size=4k,compat='
                                 'v2', '-o', 'cluster_size=8k', 'new', '1M')
        self.assertEqual(ours.out, theirs.out)

    def test_errors_leave_an_existing_file_alone(self):
        with open('new', 'wb') as f:
            f.write(b'precious' * 1000)
        before = contents('new')
        for args in (('-f', 'none', 'new', '1M'),
                     ('-f', 'qcow2', 'new'),
                     ('-f', 'qcow2', '-o', 'bogus=1', 'new', '1M'),
                     ('-f', 'qcow2', '-o', 'cluster_size=3000', 'new', '1M'),
                     ('-f', 'qcow2', '-o', 'cluster_size=4M', 'new', '1M'),
                     ('-f', 'qcow2', '-o', 'refcount_bits=3', 'new', '1M'),
                     ('-f', 'qcow2', '-o', 'compat=0.10,lazy_refcounts=on',
                      'new', '1M'),
                     ('-f', 'qcow2', '-o', '', 'new', '1M'),
                     ('-f', 'qcow2', '-o', 'compat=v3,', 'new', '1M'),
                     ('-f', 'qed', '-o', 'table_size=3', 'new', '1M'),
                     ('-f', 'qed', '-o', 'cluster_size=2k', 'new', '1M'),
                     ('-f', 'raw', '-o', 'preallocation=much', 'new', '1M'),
                     ('-f', 'raw', '-o', 'nocow=perhaps', 'new', '1M'),
                     ('-f', 'qed', '-o', 'extent_size_hint=4G', 'new', '1M'),
                     ('-f', 'raw', '-b', 'tool', '-F', 'raw', 'new', '1M'),
                     ('-f', 'qcow2', '-F', 'raw', 'new', '1M'),
                     ('-f', 'qcow2', '-b', 'new', '-F', 'raw', 'new', '1M'),
                     ('-f', 'qcow2', '-b', './new', '-F', 'raw', 'new', '1M'),
                     ('-f', 'qcow2', '-b', 'none', 'new', '1M'),
                     ('-f', 'qcow2', 'new', '1M', '2M'),
                     ('-Z', 'new', '1M'),
                     ('-f', 'qcow2', 'new', '9999P')):
            with self.subTest(args=args):
                self.fails(tool.rhea('create', *args))
                kept = contents('new') == before
                with open('new', 'wb') as f:
                    f.write(before)
                self.assertTrue(kept)

    def test_a_file_in_use_is_refused(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'new', '5M')
        before = contents('new')
        with subprocess.Popen(['qemu-io', '-f', 'qcow2', 'new'],
                              stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as user:
            user.stdin.write(b'length\n')
            user.stdin.flush()
            user.stdout.readline()
            self.fails(tool.rhea('create', '-f', 'qed', 'new', '1M'),
                       says='in use')
        self.assertEqual(contents('new'), before)

    def test_options_of_the_file(self):
        for fmt in ('raw', 'qcow2', 'qed'):
            for options in ('extent_size_hint=0', 'extent_size_hint=64k',
                            'nocow=on', 'nocow=off,extent_size_hint=0'):
                with self.subTest(format=fmt, options=options):
                    ours, theirs = self.both('-f', fmt, '-o', options, 'new',
                                             '3M')
                    self.assertEqual(sorted(ours.out.split()),
                                     sorted(theirs.out.split()))
        self.rhea('create', '-q', 'disk', '1M')
        self.rhea('convert', '-O', 'qcow2', '-o', 'nocow=on', 'disk', 'new')
        self.assertEqual(
            self.rhea('measure', '-O', 'qcow2', '-o', 'nocow=on', 'disk').out,
            self.rhea('measure', '-O', 'qcow2', 'disk').out)
        self.fails(tool.rhea('create', '-f', 'qcow2', '-o', 'nocow=on',
                             'nbd://localhost:1/', '1M'), says='nocow')

    def test_help_names_the_options_of_a_file_that_is_named(self):
        for command in (('create', '-f', 'qcow2'), ('convert', '-O', 'qcow2',
                                                    'source')):
            self.assertRegex(self.rhea(*command, '-o', 'help', 'new').out,
                             r'(?s)^Supported options:\n.*\n  nocow=')
            self.assertNotIn('nocow=',
                             self.rhea(*command[:3], '-o', 'help').out)

    def test_preallocation_fills_a_data_file_that_is_there(self):
        kept = b'kept' * 1024
        for mode in ('falloc', 'full'):
            with open('data', 'wb') as f:
                f.truncate(8 * tool.MIB)
                f.write(kept)
            self.rhea('create', '-q', '-f', 'qcow2', '-o', 'data_file=data,'
                      f'data_file_raw=on,preallocation={mode}', 'new', '6M')
            data = contents('data')
            self.assertEqual((data[:len(kept)], len(data)),
                             (kept, 8 * tool.MIB))
            self.assertGreaterEqual(os.stat('data').st_blocks * 512,
                                    6 * tool.MIB)

    def test_help_for_options(self):
        for fmt in ('raw', 'qcow2', 'qed'):
            ours = self.rhea('create', '-f', fmt, '-o', 'help')
            for name in ('size',) if fmt == 'raw' else (
                    'size', 'backing_file', 'backing_fmt', 'cluster_size'):
                self.assertRegex(ours.out, rf'(?m)^  {name}=<\w+> +- \w')
        self.fails(tool.rhea('create', '-f', 'none', '-o', 'help'))

    def test_quiet_prints_nothing(self):
        self.assertEqual(
            self.rhea('create', '-q', '-f', 'qed', 'new', '1M').out, '')


if __name__ == '__main__':
    tool.main()
