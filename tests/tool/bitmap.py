# SPDX-License-Identifier: MIT
"""rhea-img bitmap does what qemu-img bitmap does."""
import shutil
import struct
import subprocess

import tool
import bitmaps

MIB = tool.MIB


def found(path):
    """What a file holds: name, granularity, flags, bits."""
    return [(b.name, b.granularity, b.in_use, b.enabled, b.bits)
            for b in bitmaps.read(path)]


class Bitmap(tool.Case):
    def create(self, path='x', size='10M', **options):
        text = ','.join(f'{k}={v}' for k, v in options.items())
        self.qemu('create', '-q', '-f', 'qcow2', *(['-o', text] * bool(text)),
                  path, size)

    def abandon(self, path, command='write 0 1k'):
        """Let QEMU die with the image open."""
        subprocess.run(['qemu-io', '-c', command, '-c', 'abort', path],
                       capture_output=True, check=False,
                       preexec_fn=tool.images.no_core)

    def both(self, *steps, prepare=('x',)):
        """The same STEPS by both programs; each succeeds with both or fails
        with both, and what is in the files then is the same."""
        for path in prepare:
            shutil.copy(path, path + '.ours')
            shutil.copy(path, path + '.theirs')
        for step in steps:
            ours = tool.rhea('bitmap', *[a.replace('@', '.ours')
                                         for a in step])
            theirs = tool.qemu('bitmap', *[a.replace('@', '.theirs')
                                           for a in step])
            self.assertEqual((ours.code, ours.out), (theirs.code, theirs.out),
                             f'{ours}\n{theirs}')
            if ours.code:
                self.fails(ours)
        for path in prepare:
            self.assertEqual(found(path + '.ours'), found(path + '.theirs'))
            self.sound(path + '.ours', 'qcow2')
            self.rhea('check', path + '.ours')

    def test_add(self):
        for cluster in (512, 16384, 2 * MIB):
            with self.subTest(cluster=cluster):
                self.create(cluster_size=cluster)
                self.both(('--add', 'x@', 'a'),
                          ('--add', '-g', '512', 'x@', 'b'),
                          ('--add', '-g', '2G', '--disable', 'x@', 'c'),
                          ('--add', '--granularity', '1M', '-f', 'qcow2', 'x@',
                           'd' * 1023),
                          ('--add', 'x@', 'a'),
                          ('--add', 'x@', ''),
                          ('--add', 'x@', 'e' * 1024),
                          ('--add', '-g', '4G', 'x@', 'e'),
                          ('--add', '-g', '256', 'x@', 'e'),
                          ('--add', '-g', '12345', 'x@', 'e'))

    def test_remove(self):
        self.create()
        self.both(('--remove', 'x@', 'a'), ('--add', 'x@', 'a'),
                  ('--add', 'x@', 'b'), ('--add', 'x@', 'c'),
                  ('--remove', 'x@', 'b'), ('--remove', 'x@', 'b'),
                  ('--remove', 'x@', 'c'), ('--remove', 'x@', 'a'))
        self.assertEqual(found('x.ours'), [])

    def test_enable_disable_clear_follow_writes(self):
        self.create()
        self.both(('--add', 'x@', 'a'), ('--add', '--disable', 'x@', 'b'))
        for path in ('x.ours', 'x.theirs'):
            self.qemu_io(path, 'qcow2', 'write 1M 100k')
        self.assertEqual(found('x.ours'), found('x.theirs'))
        self.assertTrue(found('x.ours')[0][4])
        shutil.copy('x.ours', 'y')
        self.both(('--disable', 'y@', 'a'), ('--disable', 'y@', 'a'),
                  ('--enable', 'y@', 'b'), ('--clear', 'y@', 'b'),
                  ('--clear', 'y@', 'none'), ('--enable', 'y@', 'none'),
                  ('--disable', 'y@', 'none'), prepare='y')
        self.both(('--clear', '--disable', 'y@', 'a'), prepare='y')
        self.assertEqual(found('y.ours')[0][3:], (False, set()))

    def test_merge(self):
        self.create('x', size='1000k')
        self.create('other', size='1000k', cluster_size=512)
        self.create('larger', size='2M')
        for path, names in (('x', 'ab'), ('other', 'cd'), ('larger', 'e')):
            for name, g in zip(names, ('512', '256k')):
                self.qemu('bitmap', '--add', '-g', g, path, name)
            self.qemu_io(path, 'qcow2', 'write 64k 1k', 'write 999k 1k')
            self.qemu('bitmap', '--disable', path, names[0])
            self.qemu_io(path, 'qcow2', 'write 700k 1k')
        prepare = ('x', 'other')
        self.both(('--merge', 'a', 'x@', 'b'), prepare=prepare)
        self.both(('--merge', 'b', 'x@', 'a'), prepare=prepare)
        self.both(('--merge', 'd', '-b', 'other@', 'x@', 'a'), prepare=prepare)
        self.both(('--add', '--merge', 'c', '--merge', 'd', '--disable', '-b',
                   'other@', '-F', 'qcow2', 'x@', 'new'), prepare=prepare)
        self.both(('--merge', 'none', 'x@', 'a'),
                  ('--merge', 'a', 'x@', 'none'),
                  ('--merge', 'e', '-b', 'larger', 'x@', 'a'),
                  ('--merge', 'e', '-b', 'none', 'x@', 'a'),
                  ('--clear', '--merge', 'none', 'x@', 'a'), prepare=prepare)

    def test_one_that_was_not_saved_can_only_be_removed(self):
        self.create()
        self.qemu('bitmap', '--add', 'x', 'a')
        self.qemu('bitmap', '--add', 'x', 'b')
        self.abandon('x')
        self.qemu('bitmap', '--remove', 'x', 'b')
        self.assertTrue(found('x')[0][2])
        self.both(('--clear', 'x@', 'a'), ('--enable', 'x@', 'a'),
                  ('--disable', 'x@', 'a'), ('--add', 'x@', 'a'),
                  ('--add', 'x@', 'b'), ('--merge', 'a', 'x@', 'b'),
                  ('--merge', 'b', 'x@', 'a'))
        self.both(('--remove', 'x@', 'a'), ('--add', 'x@', 'a'))

    def test_images_without(self):
        self.create(compat='0.10')
        self.qemu('create', '-q', '-f', 'raw', 'raw', '1M')
        self.create('empty', '0')
        for path, fmt in (('x', 'qcow2'), ('raw', 'raw'), ('empty', 'qcow2'),
                          ('none', 'qcow2')):
            self.fails(tool.rhea('bitmap', '--add', '-f', fmt, path, 'b'))

    def test_a_header_without_room_moves_the_backing_name(self):
        for cluster in (512, 1024, 65536):
            for length in (1, 100, 250):
                name = 'b' * length
                self.qemu('create', '-q', '-f', 'raw', name, '1M')
                self.qemu('create', '-q', '-f', 'qcow2', '-b', name, '-F',
                          'raw', '-o', f'cluster_size={cluster}', 'x')
                self.both(('--add', 'x@', 'a'), ('--add', 'x@', 'b'),
                          ('--remove', 'x@', 'a'))
                self.same('info', 'x.ours')

    def test_an_unknown_extension_stays(self):
        self.create()
        with open('x', 'r+b') as f:
            head = bytearray(f.read(1024))
            at = 112
            while head[at:at + 4] != bytes(4):
                at += 8 + struct.unpack_from('>I', head, at + 4)[0]
            head[at:at + 32] = struct.pack('>II12s', 0x12345678, 12,
                                           b'rather new ') + bytes(12)
            f.seek(0)
            f.write(head)
        self.both(('--add', 'x@', 'a'), ('--add', 'x@', 'b'))
        self.assertIn(b'rather new', tool.contents('x.ours')[:1024])
        self.both(('--remove', 'x@', 'b'), ('--remove', 'x@', 'a'))
        self.assertIn(b'rather new', tool.contents('x.ours')[:1024])

    def test_bitmaps_that_another_program_lost(self):
        self.create()
        self.qemu('bitmap', '--add', 'x', 'a')
        with open('x', 'r+b') as f:
            f.seek(88)
            f.write(bytes(8))
        self.assertNotIn('bitmaps', self.rhea('info', 'x').out)
        self.fails(tool.rhea('bitmap', '--clear', 'x', 'a'))
        self.rhea('bitmap', '--add', '-g', '1M', 'x', 'b')
        self.assertEqual(found('x'), [('b', MIB, False, True, set())])
        self.assertEqual(tool.rhea('check', '-r', 'leaks', 'x').code, 0)
        self.sound('x', 'qcow2')

    def test_applying_a_snapshot_sets_all_bits(self):
        self.create(size='1000k')
        self.qemu('snapshot', '-c', 's', 'x')
        self.qemu('bitmap', '--add', '-g', '64k', 'x', 'a')
        self.qemu('bitmap', '--add', '--disable', '-g', '64k', 'x', 'b')
        self.rhea('snapshot', '-a', 's', 'x')
        self.assertEqual([b[2:] for b in found('x')],
                         [(False, True, set(range(16))), (False, False, set())])
        self.sound('x', 'qcow2')

    def test_resize_keeps_bits(self):
        for size in ('200k', '1023k', '3M', '20G'):
            self.create(size='1000k')
            for name, g in (('a', '512'), ('b', '64k'), ('c', '1M')):
                self.qemu('bitmap', '--add', '-g', g, 'x', name)
            self.qemu_io('x', 'qcow2', 'write 1k 1k', 'write 300k 10k',
                         'write 999k 1k')
            self.qemu('bitmap', '--disable', 'x', 'b')
            shutil.copy('x', 'y')
            args = ('-q', '--shrink', '-f', 'qcow2')
            ours = tool.rhea('resize', *args, 'x', size)
            theirs = tool.qemu('resize', *args, 'y', size)
            self.assertEqual(ours.code, theirs.code, f'{ours}\n{theirs}')
            self.assertEqual(found('x'), found('y'), size)
            self.sound('x', 'qcow2')

    def test_a_size_for_which_a_bitmap_would_be_too_large(self):
        self.create(size='1M')
        self.qemu('bitmap', '--add', '-g', '512', 'x', 'a')
        self.qemu_io('x', 'qcow2', 'write 1k 1k')
        before = found('x')
        # QEMU changes the size and loses the bitmap.
        self.fails(tool.rhea('resize', 'x', '20480G'), says='bitmap')
        self.assertEqual(found('x'), before)
        self.sound('x', 'qcow2')

    def test_a_bitmap_that_was_not_saved_keeps_the_size(self):
        self.create(size='1M')
        self.qemu('bitmap', '--add', 'x', 'a')
        self.abandon('x')
        before = tool.contents('x')
        self.assertEqual(tool.qemu('resize', '-f', 'qcow2', 'x', '2M').code, 1)
        self.fails(tool.rhea('resize', 'x', '2M'), says="'a'")
        self.assertEqual(tool.contents('x'), before)

    def convert_both(self, *args, code=0):
        ours = tool.rhea('convert', *args, '-O', 'qcow2', 'x', 'x.ours')
        theirs = tool.qemu('convert', *args, '-O', 'qcow2', 'x', 'x.theirs')
        self.assertEqual((ours.code, ours.out), (theirs.code, theirs.out),
                         f'{ours}\n{theirs}')
        self.assertEqual(ours.code, code, str(ours))
        if code == 0:
            self.assertEqual(found('x.ours'), found('x.theirs'))
            self.sound('x.ours', 'qcow2')
        return ours

    def test_convert_copies_bitmaps(self):
        self.create(cluster_size=4096)
        self.convert_both('--bitmaps')
        for args in (('-g', '512'), ('--disable',)):
            self.qemu('bitmap', '--add', *args, 'x', f'b{len(args)}')
        self.qemu_io('x', 'qcow2', 'write 0 5M')
        self.qemu('bitmap', '--add', 'x', 'new')
        self.convert_both()
        self.assertEqual(found('x.ours'), [])
        for args in ((), ('-c',), ('-o', 'cluster_size=512'),
                     ('-o', 'extended_l2=on,lazy_refcounts=on')):
            self.convert_both('--bitmaps', *args)
        self.convert_both('--bitmaps', '-n', code=1)
        self.convert_both('--bitmaps', '-o', 'compat=0.10', code=1)
        self.assertEqual(tool.qemu('convert', '--bitmaps', '-O', 'raw', 'x',
                                   'r').code, 1)
        self.fails(tool.rhea('convert', '--bitmaps', '-O', 'raw', 'x', 'r'),
                   says='bitmaps')

    def test_convert_and_bitmaps_that_were_not_saved(self):
        self.create()
        self.qemu('bitmap', '--add', 'x', 'broken')
        self.abandon('x')
        self.qemu('bitmap', '--add', 'x', 'whole')
        self.qemu_io('x', 'qcow2', 'write 1M 1M')
        self.assertIn('broken', self.convert_both('--bitmaps', code=1).err)
        self.assertIn('broken', self.convert_both(
            '--bitmaps', '--skip-broken-bitmaps').err)
        self.assertEqual([b[0] for b in found('x.ours')], ['whole'])

    def damage(self, path, at, value, fmt='Q'):
        """AT: a function of the file's bytes and its directory's offset."""
        with open(path, 'r+b') as f:
            data = f.read()
            directory, = struct.unpack_from('>Q', data,
                                            bitmaps.extension(data) + 16)
            f.seek(at(data, directory))
            f.write(struct.pack('>' + fmt, value))

    def test_damaged_bitmaps(self):
        def table(data, directory):
            return struct.unpack_from('>Q', data, directory)[0]

        self.create('clean')
        self.qemu('bitmap', '--add', 'clean', 'a')
        self.qemu('bitmap', '--add', '--disable', 'clean', 'b')
        self.qemu_io('clean', 'qcow2', 'write 0 1M')
        for what, removable, damage in (
                ('granularity', False, (lambda _, d: d + 17, 8, 'B')),
                ('flags', False, (lambda _, d: d + 15, 0x83, 'B')),
                ('type', False, (lambda _, d: d + 16, 2, 'B')),
                ('name', False, (lambda _, d: d + 18, 0x4000, 'H')),
                ('names', False, (lambda _, d: d + 24, ord('b'), 'B')),
                ('extra data', False, (lambda _, d: d + 20, 1 << 31, 'I')),
                ('table size', False, (lambda _, d: d + 8, 1 << 31, 'I')),
                ('no table', False, (lambda _, d: d, 0)),
                ('unaligned table', False, (lambda _, d: d, 65537)),
                ('table past the end', True, (lambda _, d: d, 1 << 40)),
                ('table of another size', True, (lambda _, d: d + 8, 2, 'I')),
                ('count', False, (lambda d, _: bitmaps.extension(d), 3, 'I')),
                ('entry', True, (table, 1 << 60)),
                ('entry of ones with a place', True, (table, 5 << 16 | 1)),
                ('entry past the end', True, (table, 1 << 40)),
                ('entry at the L1 table', True, (table, 3 << 16))):
            with self.subTest(what=what):
                shutil.copy('clean', 'x')
                self.damage('x', *damage)
                ours, theirs = tool.rhea('check', 'x'), tool.qemu('check', 'x')
                self.assertIn((ours.code, theirs.code),
                              ((1, 1), (2, 2)), f'{ours}\n{theirs}')
                self.identical('x' if theirs.code == 2 else 'clean', 'qcow2',
                               'clean', 'qcow2')
                # Reading needs no bitmaps, writing does.
                self.rhea('compare', 'x', 'clean')
                if not removable:
                    self.fails(tool.rhea('bitmap', '--remove', 'x', 'a'))
                    self.fails(tool.rhea('info', 'x'))
                    continue
                if what != 'entry at the L1 table':
                    self.fails(tool.rhea('bitmap', '--merge', 'a', 'x', 'b'))
                self.rhea('bitmap', '--remove', 'x', 'a')
                self.assertIn(tool.rhea('check', '-r', 'leaks', 'x').code,
                              (0, 2))
                self.assertEqual([b[0] for b in found('x')], ['b'])
                self.sound('x', 'qcow2')

    def test_extra_data_is_kept(self):
        self.create()
        self.qemu('bitmap', '--add', 'x', 'a')
        for flags in (2, 6):
            shutil.copy('x', 'y')
            self.damage('y', lambda _, d: d + 12, flags, 'I')
            self.damage('y', lambda _, d: d + 20, 5, 'I')
            self.damage('y', lambda _, d: d + 24, int.from_bytes(
                b'extraa\0\0', 'big'))
            self.rhea('check', 'y')
            (self.rhea if flags & 4 else
             lambda *a: self.fails(tool.rhea(*a)))('bitmap', '--clear', 'y',
                                                   'a')
            self.rhea('bitmap', '--add', 'y', 'b')
            self.assertEqual([b[0] for b in found('y')], ['a', 'b'])
            self.assertIn(b'extraa', tool.contents('y'))

    def test_contradictions(self):
        self.create()
        for args in ((), ('x',), ('x', 'b'), ('--add', 'x'),
                     ('--add', 'x', 'b', 'c'), ('--clear', '-g', '1M', 'x', 'b'),
                     ('--merge', 'b', '-F', 'qcow2', 'x', 'b'),
                     ('--add', '-b', 'y', 'x', 'b'), ('--add', '-Z', 'x', 'b'),
                     ('--add', '-g', 'many', 'x', 'b'),
                     ('--merge',), ('--add', '-f', 'none', 'x', 'b')):
            with self.subTest(args=args):
                self.fails(tool.rhea('bitmap', *args))
                self.assertEqual(tool.qemu('bitmap', *args).code, 1)
        self.assertEqual(found('x'), [])

    def test_an_image_in_use_is_refused(self):
        self.create()
        with subprocess.Popen(['qemu-io', '-f', 'qcow2', 'x'],
                              stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as user:
            user.stdin.write(b'length\n')
            user.stdin.flush()
            user.stdout.readline()
            self.fails(tool.rhea('bitmap', '--add', 'x', 'b'), says='in use')


if __name__ == '__main__':
    tool.main()
