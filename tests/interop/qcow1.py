# SPDX-License-Identifier: MIT
"""QCOW version 1: QEMU and libqcow read what we write, and we what QEMU and a
writer of the tests' own write; what QEMU cannot do with it (other clusters,
growing, another backing file, checks) it reads afterwards."""
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413
import images_qcow1 as qcow  # noqa: E402  pylint: disable=C0413

IMGTOOL = os.path.abspath(sys.argv.pop(1))
K = 1024
# That of the system, which has Debian's modules.
PYTHON = '/usr/bin/python3'
LIBQCOW = '''
import pyqcow, sys
f = pyqcow.file()
f.open(sys.argv[1])
left = f.get_media_size()
with open(sys.argv[2], 'wb') as out:
    while left:
        data = f.read_buffer(min(left, 1 << 20))
        out.write(data)
        left -= len(data)
'''
# All with one passphrase.
SECRET = ('--object', 'secret,id=key,data=Sesame')
OPEN = 'driver=qcow,encrypt.key-secret=key,file.filename='


class Qcow(tool.Images):
    FORMAT = 'qcow'

    def theirs(self, path):
        self.qemu('convert', '-O', 'raw', '-f', 'qcow', path, 'theirs')
        return contents('theirs')

    def all_see(self, path, want):
        """We, QEMU and a reader of the tests' own; it has no backing file."""
        self.assertTrue(self.raw(path) == want, path)
        self.assertTrue(self.theirs(path) == want, path)
        self.assertTrue(qcow.Reader(path).flatten() == want, path)

    def changes(self, rng, shadow, count=6, most=70 * K):
        """Random writes, which the shadow has already."""
        return tool.random_writes(rng, shadow, count, (512, 9 * K, most))

    # --- plain ---

    def test_random_writes_both_ways(self):
        for seed, maker in enumerate((tool.rhea, tool.qemu)):
            rng = random.Random(seed)
            shadow = bytearray(5 * MIB + 512 * 7)
            self.good(maker('create', '-q', '-f', 'qcow', 'new', len(shadow)))
            self.write_in_turn(
                'new', 8, lambda: self.changes(rng, shadow))
            self.all_see('new', shadow)

    def test_map_and_info_as_qemu(self):
        self.qemu('create', '-q', '-f', 'qcow', 'new', '20M')
        self.qemu_io('new', 'qcow', 'write 3M 1M', 'write 9M 1k', 'write 19M 1M',
                     'write 4M 1M')
        self.same('map', '-f', 'qcow', 'new')
        self.same_json('map', '-f', 'qcow', 'new', drop=('compressed',))
        self.same_json('info', 'new', drop=('format-specific', 'children'))
        self.qemu('create', '-q', '-f', 'qcow', '-b', 'new', '-F', 'qcow', 'top')
        self.qemu_io('top', 'qcow', 'write 1M 3k', 'write 3M 1k')
        self.same('map', '-f', 'qcow', 'top')
        self.same_json('map', '-f', 'qcow', 'top', drop=('compressed',))

    def test_all_cluster_sizes(self):
        self.make_data('raw', 3 * MIB + 512, [(0, 700), (MIB, 70 * K),
                                              (3 * MIB - 99, 600)])
        for bits in range(9, 17):
            with self.subTest(cluster=1 << bits):
                self.rhea('convert', '-O', 'qcow', '-o',
                          f'cluster_size={1 << bits}', 'raw', 'new')
                self.clean('new')
                self.all_see('new', contents('raw'))
                self.rhea('convert', '-O', 'qcow2', 'new', 'q')
                self.identical('q', 'qcow2', 'raw', 'raw')

    def test_libqcow_reads_ours(self):
        """It takes no clusters of 64 KiB, and no L2 tables that are larger than
        a cluster."""
        if tool.execute(PYTHON, '-c', 'import pyqcow').code:
            self.skipTest('python3-libqcow is not installed')
        self.make_data('raw', 2 * MIB, [(0, 700), (MIB, 70 * K)])
        with open('raw', 'r+b') as f:
            f.seek(300 * K)
            f.write(b'some text' * 5000)
        for args in ((), ('-c',), ('-o', 'cluster_size=16k')):
            self.rhea('convert', '-O', 'qcow', *args, 'raw', 'new')
            self.good(tool.execute(PYTHON, '-c', LIBQCOW, 'new', 'out'))
            self.assertTrue(contents('out') == contents('raw'), args)

    def test_measured_sizes_are_right(self):
        self.make_data('raw', 9 * MIB, [(0, 4096), (MIB, 70 * K - K),
                                        (8 * MIB, 8192)])
        for options in ('cluster_size=512', 'cluster_size=4k',
                        'cluster_size=64k'):
            want = self.rhea('measure', '--output=json', '-O', 'qcow', '-o',
                             options, '-f', 'raw', 'raw').json
            self.rhea('convert', '-S', '512', '-O', 'qcow', '-o', options,
                      'raw', 'new')
            self.assertLessEqual(os.path.getsize('new'), want['required'])
            self.rhea('convert', '-S', '0', '-O', 'qcow', '-o', options,
                      'raw', 'new')
            self.assertEqual(os.path.getsize('new'), want['fully-allocated'])

    # --- compressed ---

    def compress(self, program, raw, path):
        """QEMU 7.2 ends with exit code 1 and no message, after having written
        all there is: its last write, of no bytes, is none of a cluster."""
        result = program('convert', '-c', '-O', 'qcow', raw, path)
        bad = (1, '', '') if program == tool.qemu else (0, '', '')
        self.assertEqual((result.code, result.out, result.err), bad)

    def test_compressed_both_ways(self):
        rng = random.Random(4)
        with open('raw', 'wb') as f:
            for i in range(60):
                f.write(rng.randbytes(rng.randrange(9 * K)))
                f.write(b'line %d of some text\n' % i * rng.randrange(900))
                f.seek(rng.randrange(40) * K, 1)
            f.truncate(-(-f.tell() // 512) * 512)
        want = contents('raw')
        self.compress(tool.qemu, 'raw', 'q')
        self.all_see('q', want)
        self.clean('q')
        self.compress(tool.rhea, 'raw', 'r')
        self.all_see('r', want)
        self.clean('r')
        self.assertLessEqual(os.path.getsize('r'), os.path.getsize('q'))
        for bits in (9, 16):
            self.rhea('convert', '-c', '-O', 'qcow', '-o',
                      f'cluster_size={1 << bits}', 'raw', 'new')
            self.all_see('new', want)
            self.clean('new')

    def test_writes_over_compressed_clusters(self):
        for seed, maker in enumerate((tool.rhea, tool.qemu)):
            rng = random.Random(seed)
            shadow = bytearray(b'0123456789abcdef' * (64 * K))
            with open('raw', 'wb') as f:
                f.write(shadow)
            self.compress(maker, 'raw', 'new')
            self.write_in_turn(
                'new', 6, lambda: self.changes(rng, shadow, most=20 * K))
            self.all_see('new', shadow)

    # --- what QEMU does not make ---

    def test_all_sorts_of_files(self):
        for seed in range(20):
            rng = random.Random(seed)
            bits, l2 = rng.randrange(9, 17), rng.randrange(6, 14)
            made = qcow.Image(((30 << bits) + 512 * rng.randrange(3)), bits, l2,
                              gap=rng.choice((0, 8, 4096)))
            made.scatter(seed).write('new')
            with self.subTest(seed=seed, bits=bits, l2=l2):
                shadow = bytearray(made.flatten())
                self.clean('new')
                self.all_see('new', shadow)
                self.io('new', *self.changes(rng, shadow, most=2 << bits))
                self.clean('new')
                self.all_see('new', shadow)

    def test_threads_with_a_shadow(self):
        for seed in range(4):
            self.all_see('new', self.random_by_threads(
                IMGTOOL, 'new', 3000320, seed, 300,
                (f'cluster_size={512 << seed}',)))
            os.unlink('new')

    # --- backing files ---

    def test_random_writes_to_a_chain(self):
        for seed, maker in enumerate((tool.rhea, tool.qemu)):
            rng = random.Random(seed)
            shadow = bytearray(MIB)
            for i in range(4):
                base = ['-b', f'{i - 1}', '-F', 'qcow'] if i else []
                self.good(maker('create', '-q', '-f', 'qcow', *base, f'{i}',
                                len(shadow)))
                for turn in range(4):
                    commands = self.changes(rng, shadow)
                    if turn % 2:
                        self.io(f'{i}', *commands)
                    else:
                        self.qemu_io(f'{i}', 'qcow', *commands)
                self.clean(f'{i}')
                self.assertTrue(self.raw(f'{i}') == shadow)
                self.assertTrue(self.theirs(f'{i}') == shadow)
                below = b''
                for j in range(i + 1):
                    below = qcow.Reader(f'{j}').flatten(below)
                self.assertTrue(below == shadow)
            for i in range(4):
                os.unlink(f'{i}')

    def test_large_clusters_over_a_backing_file(self):
        """Of which QEMU fills what is not written with zeroes; it makes no such
        images."""
        self.make_data('base', MIB, [(0, MIB)])
        shadow = bytearray(contents('base'))
        self.rhea('create', '-q', '-f', 'qcow', '-o', 'cluster_size=16k', '-b',
                  'base', '-F', 'raw', 'new')
        self.io('new', *self.changes(random.Random(2), shadow, count=9))
        self.assertTrue(self.raw('new') == shadow)
        self.assertTrue(self.theirs('new') == shadow)

    def test_rebase_and_commit(self):
        self.make_data('base', MIB, [(0, MIB)])
        self.rhea('create', '-q', '-f', 'qcow', '-b', 'base', '-F', 'raw', 'top')
        shadow = bytearray(contents('base'))
        self.io('top', *self.changes(random.Random(3), shadow))
        self.make_data('b', MIB, [(5000, 9000)])
        for name in ('b', './b', './' + 'd/../' * 20 + 'b',
                     os.path.join(os.getcwd(), 'b'), './' * 400 + 'b', 'b', ''):
            os.makedirs('d', exist_ok=True)
            self.rhea('rebase', '-F', 'raw', '-b', name, 'top')
            self.clean('top')
            self.assertEqual(qcow.Reader('top').name.decode(), name)
            self.assertTrue(self.raw('top') == shadow, name)
            self.assertTrue(self.theirs('top') == shadow, name)
        self.rhea('rebase', '-F', 'raw', '-b', './' * 300 + 'b', 'top')
        # QEMU's commit cuts the file off behind the L1 table.
        for program in (tool.rhea, tool.qemu):
            self.io('top', *self.changes(random.Random(4), shadow))
            self.good_commit(program('commit', '-f', 'qcow', 'top'))
            self.assertTrue(contents('b') == shadow)
            self.assertTrue(self.raw('top') == shadow)
            self.assertTrue(self.theirs('top') == shadow)
            self.assertEqual(list(qcow.Reader('top').entries()), [])
            self.clean('top')

    def good_commit(self, result):
        self.assertEqual(result.code, 0, str(result))

    def test_names_that_are_too_long(self):
        self.make_data('base', MIB, [])
        self.rhea('create', '-q', '-f', 'qcow', '-b', 'base', '-F', 'raw', 'new')
        long = './' * 520 + 'base'
        self.fails(tool.rhea('rebase', '-u', '-F', 'raw', '-b', long, 'new'),
                   says='longer than 1023')
        self.fails(tool.rhea('create', '-f', 'qcow', '-F', 'raw', '-b', long,
                             'other'), says='longer than 1023')
        self.assertEqual(self.raw('new'), bytes(MIB))

    # --- size ---

    def test_growing(self):
        for seed in range(6):
            rng = random.Random(seed)
            made = qcow.Image(64 * K + 512 * seed, 9 + seed % 3, 6 + seed % 2)
            want = made.scatter(seed).write('new').flatten()
            for _ in range(4):
                size = len(want) + rng.randrange(1, 4000) * 512
                with self.subTest(seed=seed, size=size):
                    self.rhea('resize', '-f', 'qcow', 'new', size)
                    want = bytearray(want.ljust(size, b'\0'))
                    self.clean('new')
                    self.all_see('new', want)
                    self.io('new', *self.changes(rng, want))
                    self.all_see('new', want)

    def test_shrinking(self):
        """And growing again, which does not bring back what was lost."""
        for seed in range(6):
            rng = random.Random(seed)
            made = qcow.Image(900 * K + 512 * seed, 9 + seed % 3, 6 + seed % 2)
            want = made.scatter(seed).write('new').flatten()
            for _ in range(2):
                size = rng.randrange(1, len(want) // 512) * 512
                with self.subTest(seed=seed, size=size):
                    self.rhea('resize', '--shrink', '-f', 'qcow', 'new', size)
                    want = bytearray(want[:size])
                    self.clean('new')
                    self.all_see('new', want)
                    self.rhea('resize', '-f', 'qcow', 'new', 901 * K)
                    want = bytearray(want.ljust(901 * K, b'\0'))
                    self.all_see('new', want)
                    self.io('new', *self.changes(rng, want))
                    self.clean('new')
                    self.all_see('new', want)

    def test_shrinking_gives_space_back(self):
        self.make_data('raw', 4 * MIB, [(0, 4 * MIB)])
        for options in ((), ('-c',)):
            self.rhea('convert', *options, '-O', 'qcow', 'raw', 'new')
            size = os.path.getsize('new')
            self.rhea('resize', '--shrink', '-f', 'qcow', 'new', MIB)
            self.assertTrue(self.raw('new') == contents('raw')[:MIB])
            # Compressed clusters lie in the order in which threads were ready.
            self.assertLess(os.stat('new').st_blocks * 512, size / 2)
            os.unlink('new')

    def test_growing_does_not_show_what_is_below(self):
        self.make_data('base', MIB, [(0, MIB)])
        self.rhea('create', '-q', '-f', 'qcow', '-b', 'base', '-F', 'raw', 'new',
                  100 * K + 512)
        self.rhea('resize', 'new', 300 * K)
        want = contents('base')[:100 * K + 512].ljust(300 * K, b'\0')
        self.assertTrue(self.raw('new') == want)
        self.assertTrue(self.theirs('new') == want)

    def test_what_cannot_be_made_or_resized(self):
        self.fails(tool.rhea('create', '-f', 'qcow', 'new', '0'))
        self.fails(tool.rhea('create', '-f', 'qcow', '-o', 'cluster_size=128k',
                             'new', '1M'))
        self.rhea('create', '-q', '-f', 'qcow', 'new', '5M')
        self.fails(tool.rhea('resize', '-f', 'qcow', 'new', '1M'),
                   says='--shrink')
        self.fails(tool.rhea('resize', '--shrink', '-f', 'qcow', 'new', 1000))
        self.fails(tool.rhea('resize', '--preallocation=full', '-f', 'qcow',
                             'new', '9M'))

    # --- encryption ---

    def see_locked(self, path, want):
        for program in (tool.rhea, tool.qemu):
            self.good(program('convert', *SECRET, '-O', 'raw', '--image-opts',
                              OPEN + path, 'flat'))
            self.assertTrue(contents('flat') == want)

    def test_encryption_both_ways(self):
        for seed, maker in enumerate((tool.rhea, tool.qemu)):
            for option in ('encryption=on', 'encrypt.format=aes'):
                rng = random.Random(seed)
                shadow = bytearray(MIB + 512)
                self.good(maker('create', '-q', *SECRET, '-f', 'qcow', '-o',
                                option + ',encrypt.key-secret=key', 'new',
                                len(shadow)))
                for turn in range(6):
                    commands = self.changes(rng, shadow)
                    program = (os.environ['RHEA_IO'], 'qemu-io')[turn % 2]
                    args = [program, *SECRET, '--image-opts']
                    for command in commands:
                        args += ['-c', command]
                    self.good(tool.execute(*args, OPEN + 'new'))
                self.see_locked('new', shadow)
                self.clean('new')
                self.assertNotIn(bytes(99), contents('new')[64 * K:])

    def test_encryption_byte_by_byte(self):
        shadow = bytearray(64 * K)
        self.rhea('create', '-q', *SECRET, '-f', 'qcow', '-o',
                  'encrypt.format=aes,encrypt.key-secret=key', 'new',
                  len(shadow))
        args = [os.environ['RHEA_IO'], *SECRET, '--image-opts']
        rng = random.Random(9)
        for _ in range(60):
            at = rng.randrange(len(shadow))
            n = min(rng.randrange(1, 3000), len(shadow) - at)
            byte = rng.randrange(256)
            args += ['-c', f'write -P {byte} {at} {n}']
            shadow[at:at + n] = bytes([byte]) * n
        self.good(tool.execute(*args, OPEN + 'new'))
        self.see_locked('new', shadow)

    def test_what_encrypted_images_say(self):
        self.rhea('create', '-q', *SECRET, '-f', 'qcow', '-o',
                  'encryption=on,encrypt.key-secret=key', 'new', '1M')
        info = self.rhea('info', '--output=json', 'new').json
        self.assertTrue(info['encrypted'])
        self.assertIn('weak', info['format-specific']['data']['encrypt'][
            'warning'])
        self.assertIn('weak', self.rhea('info', 'new').out)
        self.fails(tool.rhea('convert', '-O', 'raw', 'new', 'out'),
                   says='passphrase')
        self.fails(tool.rhea('create', '-f', 'qcow', '-o', 'encryption=on',
                             'other', '1M'), says='key-secret')
        self.fails(tool.rhea('create', '-f', 'qcow', '-o',
                             'encrypt.format=luks,encrypt.key-secret=key',
                             *SECRET, 'other', '1M'), says='aes')
        self.fails(tool.rhea('convert', '-c', *SECRET, '-O', 'qcow', '-o',
                             'encryption=on,encrypt.key-secret=key', '-f',
                             'raw', 'new', 'other'), says='compress')

    # --- damage ---

    def damaged(self, seed):
        """An image with errors, how many, and what it shows once they are
        repaired."""
        rng = random.Random(seed)
        made = qcow.Image(80 * K, 9, 6).scatter(seed, 0.6)
        there = [c for c in made.guest]
        rng.shuffle(there)
        errors = 0
        plain = [c for c in there if not made.entry(c) & qcow.COMPRESSED]
        for _ in range(rng.randrange(4)):  # shares its place
            made.entry(there[-1], made.entry(plain[0]))
            made.guest[there.pop()] = made.guest[plain[0]]
            errors += 1
        for _ in range(rng.randrange(4)):  # leads nowhere
            made.entry(there[-1], rng.choice((
                1 << 40, 12, 48, made.l1_at, 513, qcow.COMPRESSED | 1 << 40,
                qcow.COMPRESSED | 4096, (1 << 63) - 512)))
            del made.guest[there.pop()]
            errors += 1
        if rng.random() < 0.3:  # a table that cannot be
            index = rng.randrange(len(made.l1))
            made.table(index)
            for c in list(made.guest):
                if c >> made.l2_bits == index:
                    errors -= not self.sane(made, c)
                    del made.guest[c]
            errors = None
            made.l2.pop(index)
            made.l1[index] = rng.choice((1 << 50, 40, made.l1_at, 777))
        return made, errors

    def sane(self, made, cluster):
        return made.entry(cluster) == 0

    def test_damage_is_found_and_repaired(self):
        for seed in range(40):
            with self.subTest(seed=seed):
                made, errors = self.damaged(seed)
                made.write('new')
                found = tool.rhea('check', '--output=json', '-f', 'qcow', 'new')
                if errors is not None:
                    self.assertEqual(found.code, 2 if errors else 0,
                                     str(found))
                    self.assertEqual(found.json.get('corruptions', 0), errors)
                else:
                    self.assertGreater(found.json['corruptions'], 0)
                fixed = tool.rhea('check', '-r', 'all', '-f', 'qcow', 'new')
                self.assertEqual(fixed.code, 0, str(fixed))
                self.clean('new')
                if errors is not None:
                    self.all_see('new', made.flatten())
                shadow = bytearray(self.raw('new'))
                self.io('new', *self.changes(random.Random(seed), shadow))
                self.all_see('new', shadow)

    def test_what_is_left_at_the_end_is_cut_off(self):
        made = qcow.Image(80 * K).scatter(1).write('new')
        size = os.path.getsize('new')
        with open('new', 'ab') as f:
            f.write(b'x' * 20000)
        found = tool.rhea('check', '--output=json', 'new')
        self.assertEqual((found.code, found.json['leaks']), (3, 5))
        self.assertEqual(tool.rhea('check', '-r', 'leaks', 'new').code, 0)
        self.assertLessEqual(os.path.getsize('new'), size + 511)
        self.all_see('new', made.flatten())

    def test_a_shared_table_is_told_of_and_left(self):
        made = qcow.Image(200 * K, 9, 6).scatter(1)
        made.l1[2] = made.l1[1]
        made.l2.pop(2)
        made.write('new')
        for args in ((), ('-r', 'all')):
            self.assertEqual(tool.rhea('check', *args, 'new').code, 2)


if __name__ == '__main__':
    tool.main()
