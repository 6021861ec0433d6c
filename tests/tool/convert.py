# SPDX-License-Identifier: MIT
"""rhea-img convert copies what qemu-img convert copies, and no more."""
import os
import shutil
import signal
import stat
import subprocess
import time

import tool
from tool import MIB, contents

TARGETS = (
    ('raw', ()), ('raw', ('-S', '0')), ('raw', ('-S', '1M')),
    ('raw', ('-S', '512', '-m', '1')), ('raw', ('-m', '16', '-W')),
    ('qed', ()), ('qed', ('-o', 'cluster_size=4k,table_size=1')),
    ('qed', ('-o', 'cluster_size=4M,table_size=2')), ('qed', ('-S', '0')),
    ('qcow2', ()), ('qcow2', ('-c',)), ('qcow2', ('-c', '-m', '8')),
    ('qcow2', ('-S', '0')), ('qcow2', ('-W', '-m', '8')),
    ('qcow2', ('-o', 'cluster_size=512')),
    ('qcow2', ('-o', 'cluster_size=2M', '-c')),
    ('qcow2', ('-o', 'compat=v2,cluster_size=4k')),
    ('qcow2', ('-o', 'extended_l2=on')),
    ('qcow2', ('-c', '-o', 'compression_type=zstd')),
    ('qcow2', ('-o', 'preallocation=metadata')),
    ('qcow2', ('-o', 'preallocation=full')),
    ('qcow2', ('-t', 'none', '-T', 'none')),
    ('qed', ('-t', 'writethrough')),
)
SIZE = 21 * MIB + 1536
RUNS = [(0, 3 * MIB), (4 * MIB + 512, 5000), (9 * MIB, 2 * MIB + 100),
        (15 * MIB - 1000, 2000), (SIZE - 600, 600)]


def blocks(path):
    return os.stat(path).st_blocks * 512


class Convert(tool.Case):
    def setUp(self):
        super().setUp()
        self.make_data('a', SIZE, RUNS)
        # Compressible, and zeroes that are written out.
        with open('a', 'r+b') as f:
            f.seek(12 * MIB)
            f.write(b'text ' * 100000 + bytes(MIB))

    def convert(self, source_format, source, target_format, target, *more):
        result = self.rhea('convert', '-f', source_format, '-O', target_format,
                           *more, source, target)
        self.assertEqual(result.out, '')
        if target_format != 'raw' and 'table_size=1' not in ''.join(more):
            self.sound(target, target_format)

    def test_every_format_and_option(self):
        for fmt in ('qcow2', 'qed'):
            self.qemu('convert', '-f', 'raw', '-O', fmt, 'a', f'a.{fmt}')
        self.qemu('convert', '-c', '-f', 'raw', '-O', 'qcow2', 'a', 'a.packed')
        sources = (('raw', 'a'), ('qcow2', 'a.qcow2'), ('qed', 'a.qed'),
                   ('qcow2', 'a.packed'))
        for source_format, source in sources:
            for target_format, more in TARGETS:
                with self.subTest(source=source, target=target_format,
                                  options=more):
                    self.convert(source_format, source, target_format, 'b',
                                 *more)
                    if 'table_size=1' in ''.join(more):
                        # QEMU does not open such a table.
                        self.rhea('check', '-f', 'qed', 'b')
                        self.rhea('compare', '-f', 'raw', '-F', 'qed', 'a', 'b')
                    else:
                        self.identical('a', 'raw', 'b', target_format)
                    os.unlink('b')

    def test_what_is_zero_takes_no_space(self):
        for fmt in ('raw', 'qcow2', 'qed'):
            with self.subTest(format=fmt):
                self.convert('raw', 'a', fmt, 'ours')
                self.qemu('convert', '-f', 'raw', '-O', fmt, 'a', 'theirs')
                self.assertLessEqual(os.path.getsize('ours'),
                                     os.path.getsize('theirs') + 65536)
                self.assertLessEqual(blocks('ours'), blocks('theirs') + 262144)

    def test_blocks_have_holes_where_zeroes_are(self):
        """A block of MiBs of which only some KiB are data takes those."""
        for fmt in ('vpc', 'vhdx', 'vdi', 'parallels'):
            with self.subTest(format=fmt):
                self.rhea('convert', '-f', 'raw', '-O', fmt, 'a', 'b')
                self.identical('a', 'raw', 'b', fmt)
                # The tables of an empty image, and three pages at the seams.
                self.rhea('create', '-q', '-f', fmt, 'empty', SIZE)
                self.assertLess(blocks('b'),
                                blocks('a') + blocks('empty') + 65536)
                os.unlink('empty')

    def test_S0_writes_all(self):
        self.convert('raw', 'a', 'raw', 'b', '-S', '0')
        self.assertGreaterEqual(blocks('b'), SIZE // 4096 * 4096)

    def test_empty_images_of_any_size(self):
        for size in ('0', '512', '100T'):
            for fmt in ('qcow2', 'qed') if size != '100T' else ('qcow2',):
                with self.subTest(format=fmt, size=size):
                    self.qemu('create', '-q', '-f', 'qcow2', '-o',
                              'cluster_size=2M', 'x', size)
                    self.convert('qcow2', 'x', fmt, 'b', '-o',
                                 'cluster_size=2M')
                    self.identical('x', 'qcow2', 'b', fmt)
                    self.assertLess(blocks('b'), 16 * MIB)

    def test_odd_sizes_are_rounded_up(self):
        self.make_data('odd', 70000, [(0, 70000)])
        for fmt in ('raw', 'qcow2', 'qed'):
            self.convert('raw', 'odd', fmt, 'ours')
            self.qemu('convert', '-f', 'raw', '-O', fmt, 'odd', 'theirs')
            self.identical('ours', fmt, 'theirs', fmt)

    def test_backing_chains_are_flattened(self):
        self.qemu('create', '-q', '-f', 'qed', '-b', 'a', '-F', 'raw', 'middle',
                  '10M')
        self.qemu_io('middle', 'qed', 'write -P 7 1M 1M', 'write -z 2M 64k')
        self.qemu('create', '-q', '-f', 'qcow2', '-b', 'middle', '-F', 'qed',
                  'top', '30M')
        self.qemu_io('top', 'qcow2', 'write -P 8 1500k 100k',
                     'write -P 9 29M 1M')
        for fmt, more in TARGETS:
            if 'table_size=1' in ''.join(more):
                continue
            with self.subTest(format=fmt, options=more):
                self.convert('qcow2', 'top', fmt, 'b', *more)
                self.identical('top', 'qcow2', 'b', fmt)
                os.unlink('b')

    def chain(self):
        """base (all of a), middle that is shorter, top that is longer."""
        self.qemu('convert', '-f', 'raw', '-O', 'qcow2', 'a', 'base')
        self.qemu('create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2',
                  'middle', '16M')
        self.qemu_io('middle', 'qcow2', 'write -P 7 1M 1M', 'write -z 2M 64k')
        self.qemu('create', '-q', '-f', 'qcow2', '-b', 'middle', '-F', 'qcow2',
                  'top', '30M')
        self.qemu_io('top', 'qcow2', 'write -P 8 1500k 100k',
                     'write -P 9 29M 1M', 'write -z 9M 1M')

    def test_a_backing_format_needs_a_backing_file(self):
        for program in (tool.rhea, tool.qemu):
            r = program('convert', '-O', 'qcow2', '-F', 'raw', 'a', 'b')
            self.assertEqual(r.code, 1, str(r))
            self.assertFalse(os.path.exists('b'))

    def test_B_copies_what_the_backing_file_lacks(self):
        self.chain()
        shutil.copy('middle', 'elsewhere')
        self.make_data('other', SIZE, [(0, MIB), (20 * MIB, MIB)], seed=5)
        for backing, fmt in (('middle', 'qcow2'), ('base', 'qcow2'),
                             ('elsewhere', 'qcow2'), ('a', 'raw'),
                             ('other', 'raw')):
            for target, more in (('qcow2', ()), ('qcow2', ('-c',)),
                                 ('qcow2', ('-o', 'cluster_size=2M')),
                                 ('qed', ())):
                with self.subTest(backing=backing, target=target, more=more):
                    self.convert('qcow2', 'top', target, 'b', '-B', backing,
                                 '-F', fmt, *more)
                    self.identical('top', 'qcow2', 'b', target)
                    info = self.qemu('info', '--output=json', 'b').json
                    self.assertEqual(info['backing-filename'], backing)
                    if backing in ('middle', 'elsewhere') and not more:
                        self.assertLess(blocks('b'), 4 * MIB)
                    os.unlink('b')

    def test_B_as_an_option(self):
        self.chain()
        self.convert('qcow2', 'top', 'qcow2', 'b', '-o',
                     'backing_file=middle,backing_fmt=qcow2')
        self.identical('top', 'qcow2', 'b', 'qcow2')

    def test_several_sources_are_joined(self):
        self.make_data('odd', 70000, [(0, 70000)])
        self.rhea('convert', '-f', 'raw', '-O', 'qcow2', 'a', 'odd', 'a', 'b')
        self.qemu('convert', '-f', 'raw', '-O', 'raw', 'a', 'odd', 'a', 'c')
        self.identical('b', 'qcow2', 'c', 'raw')
        self.sound('b', 'qcow2')

    def test_n_writes_into_what_is_there(self):
        for fmt in ('raw', 'qcow2', 'qed'):
            with self.subTest(format=fmt):
                self.qemu('create', '-q', '-f', fmt, 'b', '23M')
                self.qemu_io('b', fmt, 'write -P 5 0 23M')
                inode = os.stat('b').st_ino
                self.convert('raw', 'a', fmt, 'b', '-n')
                self.assertEqual(os.stat('b').st_ino, inode)
                self.qemu('create', '-q', '-f', 'raw', 'want', '23M')
                self.qemu_io('want', 'raw', 'write -P 5 0 23M')
                with open('want', 'r+b') as f:
                    f.write(contents('a'))
                self.identical('want', 'raw', 'b', fmt)

    def test_n_needs_a_target_that_is_large_enough(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'b', '20M')
        before = contents('b')
        self.fails(tool.rhea('convert', '-n', '-f', 'raw', '-O', 'qcow2', 'a',
                             'b'), says='b')
        self.assertEqual(contents('b'), before)
        self.fails(tool.rhea('convert', '-n', '-O', 'qcow2', 'a', 'none'),
                   says='none')
        self.assertFalse(os.path.exists('none'))

    def test_a_target_known_to_be_zero(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'b', str(SIZE))
        self.convert('raw', 'a', 'qcow2', 'b', '-n', '--target-is-zero')
        self.identical('a', 'raw', 'b', 'qcow2')

    def test_what_is_read_is_never_overwritten(self):
        self.chain()
        os.link('top', 'link')
        os.symlink('base', 'symlink')
        before = {name: contents(name) for name in ('top', 'middle', 'base')}
        for target in ('top', './top', 'middle', 'base', 'link', 'symlink'):
            for more in ((), ('-n',)):
                with self.subTest(target=target, more=more):
                    self.fails(tool.rhea('convert', '-O', 'qcow2', *more, 'top',
                                         target), says='overwritten')
        self.fails(tool.rhea('convert', '-O', 'qcow2', '-B', 'base', '-F',
                             'qcow2', 'a', 'base'))
        for name, old in before.items():
            self.assertEqual(contents(name), old, name)

    def test_a_target_in_use_is_refused(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'b', str(SIZE))
        before = contents('b')
        with subprocess.Popen(['qemu-io', '-f', 'qcow2', 'b'],
                              stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as user:
            user.stdin.write(b'length\n')
            user.stdin.flush()
            user.stdout.readline()
            for more in ((), ('-n',)):
                self.fails(tool.rhea('convert', '-f', 'raw', '-O', 'qcow2',
                                     *more, 'a', 'b'), says='in use')
            self.fails(tool.rhea('convert', '-f', 'qcow2', 'b', 'c'),
                       says='in use')
        self.assertEqual(contents('b'), before)
        self.assertFalse(os.path.exists('c'))

    def test_errors_leave_an_existing_target_alone(self):
        with open('b', 'wb') as f:
            f.write(b'precious' * 1000)
        before = contents('b')
        for args in (('-O', 'none', 'a', 'b'),
                     ('-f', 'none', 'a', 'b'),
                     ('none', 'b'),
                     ('-f', 'qcow2', 'a', 'b'),
                     ('b',), (),
                     ('-c', '-O', 'raw', 'a', 'b'),
                     ('-c', '-O', 'qed', 'a', 'b'),
                     ('-c', '-O', 'qcow2', '-o', 'preallocation=full', 'a',
                      'b'),
                     ('-O', 'qcow2', '-o', 'bogus=1', 'a', 'b'),
                     ('-O', 'qcow2', '-o', 'cluster_size=3000', 'a', 'b'),
                     ('-O', 'qcow2', '-B', 'a', 'a', 'b'),
                     ('-O', 'qcow2', '-B', 'none', '-F', 'raw', 'a', 'b'),
                     ('-O', 'qcow2', '-B', 'a', '-F', 'raw', 'a', 'a', 'b'),
                     ('-n', '-o', 'size=1', 'a', 'b'),
                     ('--target-is-zero', 'a', 'b'),
                     ('-S', '1000', 'a', 'b'), ('-S', '17M', 'a', 'b'),
                     ('-m', '0', 'a', 'b'), ('-m', '17', 'a', 'b'),
                     ('-t', 'some', 'a', 'b'), ('-T', 'some', 'a', 'b'),
                     ('-l', 'snapshot', 'a', 'b'), ('--bitmaps', 'a', 'b'),
                     ('--bitmaps', '-O', 'qcow2', 'a', 'b'),
                     ('--skip-broken-bitmaps', '-O', 'qcow2', 'a', 'b'),
                     ('-C', '-c', '-O', 'qcow2', 'a', 'b'),
                     ('-C', '-S', '4k', 'a', 'b'),
                     ('-C', '--salvage', 'a', 'b'), ('-r', 'fast', 'a', 'b'),
                     ('-Z', 'a', 'b')):
            with self.subTest(args=args):
                self.fails(tool.rhea('convert', *args))
                self.assertEqual(contents('b'), before)

    def test_a_rate_is_kept_to(self):
        self.make_data('src.raw', 8 * MIB, [(0, 8 * MIB)])
        start = time.monotonic()
        self.rhea('convert', '-f', 'raw', '-O', 'qcow2', '-r', '8M',
                  'src.raw', 'dst.qcow2')
        self.assertGreater(time.monotonic() - start, 0.4)
        self.identical('src.raw', 'raw', 'dst.qcow2', 'qcow2')

    def test_salvage_leaves_out_what_cannot_be_read(self):
        # An image whose second cluster lies past the end of the file.
        self.make_data('src.raw', 256 << 10, [(i << 16, 1000)
                                              for i in range(4)])
        self.qemu('convert', '-f', 'raw', '-O', 'qcow2', 'src.raw',
                  'bad.qcow2')
        with open('bad.qcow2', 'r+b') as f:
            f.seek(40)
            f.seek(int.from_bytes(f.read(8), 'big'))
            table = int.from_bytes(f.read(8), 'big') & 0xfffffffffffe00
            f.seek(table + 8)
            f.write((1 << 63 | 1 << 50).to_bytes(8, 'big'))
        self.fails(tool.rhea('convert', '-O', 'raw', 'bad.qcow2', 'dst.raw'))
        result = tool.rhea('convert', '--salvage', '-O', 'raw', 'bad.qcow2',
                           'dst.raw')
        self.assertEqual(result.code, 0, str(result))
        self.assertIn('warning', result.err)
        want = bytearray(contents('src.raw'))
        want[1 << 16:2 << 16] = bytes(1 << 16)
        self.assertEqual(contents('dst.raw'), want)
        result = tool.rhea('convert', '-q', '--salvage', '-O', 'raw',
                           'bad.qcow2', 'dst.raw')
        self.assertEqual((result.code, result.err), (0, ''), str(result))

    def test_sigusr1_tells_how_far_it_is(self):
        self.make_data('src.raw', 8 * MIB, [(0, 8 * MIB)])
        with subprocess.Popen(
                [tool.RHEA, 'convert', '-f', 'raw', '-O', 'qcow2', '-r', '8M',
                 'src.raw', 'dst.qcow2'], stderr=subprocess.PIPE) as running:
            while not os.path.exists('dst.qcow2'):
                time.sleep(0.01)
            running.send_signal(signal.SIGUSR1)
            said = running.communicate()[1].decode()
        self.assertEqual(running.returncode, 0)
        self.assertRegex(said, r'^    \(\d+\.\d\d/100%\)\n$')

    def test_a_full_disk_is_told(self):
        # A file size limit stands for it.
        def limit():
            import resource  # pylint: disable=import-outside-toplevel
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))
        for more in ((), ('-c',), ('-m', '1')):
            done = subprocess.run(
                [tool.RHEA, 'convert', '-f', 'raw', '-O', 'qcow2', *more, 'a',
                 'b'], capture_output=True, preexec_fn=limit, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, rb'^rhea-img: .*\n$')

    def test_damaged_sources_are_told(self):
        with open('a', 'wb') as f:
            f.write(tool.random.Random(1).randbytes(MIB).hex().encode())
        self.qemu('convert', '-c', '-f', 'raw', '-O', 'qcow2', 'a', 'a.packed')
        with open('a.packed', 'r+b') as f:
            f.seek(600000)
            f.write(b'\xff' * 100000)  # where a cluster begins
        for more in ((), ('-m', '1'), ('-c', '-O', 'qcow2')):
            self.fails(tool.rhea('convert', '-f', 'qcow2', *more, 'a.packed',
                                 'b'), says='a.packed')

    def test_progress_ends_at_a_hundred(self):
        for fmt in ('raw', 'qcow2'):
            out = self.rhea('convert', '-p', '-f', 'raw', '-O', fmt, 'a',
                            'b').out
            self.assertRegex(out, r'^    \(0\.00/100%\)\r.*'
                             r'    \(100\.00/100%\)\r\n$')
        self.assertEqual(
            self.rhea('convert', '-pq', '-f', 'raw', 'a', 'b').out, '')

    def test_the_result_does_not_depend_on_chance(self):
        for i in range(3):
            self.convert('raw', 'a', 'qcow2', f'b{i}', '-m', '8')
        self.assertEqual(contents('b0'), contents('b1'))
        self.assertEqual(contents('b0'), contents('b2'))

    def test_names_with_commas_and_folders(self):
        os.mkdir('a folder')
        self.convert('raw', 'a', 'qcow2', 'a folder/b,c')
        self.assertTrue(stat.S_ISREG(os.stat('a folder/b,c').st_mode))

    def test_samples_of_every_sort(self):
        for seed, image in tool.sample(50, 300):
            if not image.qemu_opens:
                continue
            target, more = (('qcow2', ()), ('qed', ()), ('qcow2', ('-c',)),
                            ('raw', ()))[seed % 4]
            if image.size > 1 << 40:
                more += ('-o', 'cluster_size=2M')
                if target == 'raw':
                    target = 'qcow2'
            out = os.path.join(image.folder, 'out')
            with self.subTest(image=image.describe(), target=target):
                self.convert(image.format, image.path, target, out, *more)
                self.identical(image.path, image.format, out, target)
                self.assertEqual(tool.rhea('compare', '-f', image.format, '-F',
                                           target, image.path, out).code, 0)
            shutil.rmtree(image.folder)


if __name__ == '__main__':
    tool.main()
