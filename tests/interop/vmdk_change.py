# SPDX-License-Identifier: MIT
"""Changes of whole VMDKs, judged by QEMU's tools, libvmdk and 7-Zip: options
amended, sizes measured, and disks that grow and shrink."""
import os
import random
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
from vmdk import FLAT, SPARSE, STREAM, Vmdk  # noqa: E402  pylint: disable=C0413
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413

ALL = SPARSE + FLAT + [STREAM, 'vmfs', 'vmfsSparse']


def descriptor(path):
    """The text, wherever it is."""
    data = contents(path)
    if data[:4] == b'KDMV':
        at, n = (int.from_bytes(data[i:i + 8], 'little') * 512
                 for i in (28, 36))
        data = data[at:at + n]
    return data.split(b'\0')[0].decode()


class Amend(Vmdk):
    OPTIONS = 'adapter_type=lsilogic,hwversion=13,toolsversion=12345'

    def test_every_type(self):
        for n, subformat in enumerate(ALL):
            with self.subTest(subformat=subformat):
                self.make_data('raw', 3 * MIB, [(0, 700), (MIB, MIB)], n)
                self.rhea('convert', '-O', 'vmdk', '-o',
                          f'subformat={subformat}', 'raw', 'new.vmdk')
                before = descriptor('new.vmdk')
                self.rhea('amend', '-o', self.OPTIONS, 'new.vmdk')
                text = descriptor('new.vmdk')
                for line in ('adapterType = "lsilogic"',
                             'virtualHWVersion = "13"',
                             'toolsVersion = "12345"', 'geometry.heads = "64"',
                             'geometry.sectors = "32"',
                             'geometry.cylinders = "3"'):
                    self.assertEqual(text.count(f'ddb.{line}\n'), 1, text)
                self.assertEqual(before.split('ddb.')[0], text.split('ddb.')[0])
                self.same_contents('new.vmdk')
                self.assertTrue(contents('ours') == contents('raw'))
                self.rhea('check', 'new.vmdk')
                self.rhea('amend', '-o', 'adapter_type=ide,hwversion=4,'
                          'toolsversion=2147483647', 'new.vmdk')
                self.assertEqual(descriptor('new.vmdk'), before)
                if shutil.which('vmdkinfo'):
                    result = tool.execute('vmdkinfo', 'new.vmdk')
                    self.assertEqual(result.code, 0, str(result))

    def test_children_stay_children(self):
        self.make('base.vmdk', size='1M', program=tool.rhea)
        self.make('top.vmdk', base='base.vmdk', program=tool.rhea)
        self.rhea('amend', '-o', self.OPTIONS, 'base.vmdk')
        self.rhea('map', 'top.vmdk')
        self.qemu('map', 'top.vmdk')

    def test_lines_that_are_not_there_yet(self):
        self.make('new.vmdk', 'subformat=monolithicFlat', '1M', tool.rhea)
        text = descriptor('new.vmdk').split('# The Disk')[0]
        with open('new.vmdk', 'w', encoding='utf-8') as f:
            f.write(text)
        self.rhea('amend', '-o', self.OPTIONS, 'new.vmdk')
        self.assertIn('\nddb.adapterType = "lsilogic"\n',
                      descriptor('new.vmdk') + '\n')
        self.rhea('check', 'new.vmdk')

    def test_a_descriptor_that_fills_its_room(self):
        self.make('new.vmdk', '', '1M', tool.rhea)
        with open('new.vmdk', 'r+b') as f:
            text = descriptor('new.vmdk') + '#' * 9000
            f.seek(512)
            f.write(text.encode())
        self.rhea('amend', '-o', self.OPTIONS, 'new.vmdk')
        self.assertIn('\nddb.adapterType = "lsilogic"\n',
                      descriptor('new.vmdk'))
        self.fails(tool.rhea('amend', '-o', 'toolsversion=' + '1' * 900,
                             'new.vmdk'), says='room')
        self.rhea('check', 'new.vmdk')
        self.qemu('info', 'new.vmdk')

    def test_what_is_refused(self):
        self.make('new.vmdk', size='1M')
        before = contents('new.vmdk')
        for option in ('subformat=vmfs', 'adapter_type=pvscsi', 'bogus=1',
                       'hwversion="', 'zeroed_grain=on', 'size=2M'):
            self.fails(tool.rhea('amend', '-o', option, 'new.vmdk'))
        self.assertTrue(contents('new.vmdk') == before)
        self.assertIn('toolsversion',
                      self.rhea('amend', '-f', 'vmdk', '-o', 'help').out)


class Measure(Vmdk):
    def write(self, name, data):
        with open(name, 'wb') as f:
            f.write(data)

    def real(self, options, source):
        """The bytes of all files that converting SOURCE makes."""
        os.mkdir('new')
        self.rhea('convert', '-O', 'vmdk', '-o', options, source,
                  'new/new.vmdk')
        total = sum(e.stat().st_size for e in os.scandir('new'))
        shutil.rmtree('new')
        return total

    def measured(self, *args):
        return self.rhea('measure', '--output=json', '-O', 'vmdk',
                         *args).json

    def test_what_conversion_makes(self):
        size = 70 * MIB + 1536
        self.make_data('raw', size, [(0, 700), (MIB + 512, 3 * MIB),
                                     (35 * MIB, 65536), (size - 512, 512)])
        for options in [f'subformat={s}' for s in ALL] + \
                ['zeroed_grain=on', 'adapter_type=lsilogic,hwversion=13']:
            with self.subTest(options=options):
                real = self.real(options, 'raw')
                found = self.measured('-o', options, 'raw')
                required = found['required']
                self.assertGreaterEqual(required, real)
                # Grains that are not full are compressed.
                slack = 3 * 65536 + 60 * 512 if STREAM in options else 1000
                self.assertLess(required, real + slack)
                full = found['fully-allocated']
                self.assertGreaterEqual(full, size)
                empty = self.measured('-o', options, '--size', size)
                self.assertEqual(empty['fully-allocated'], full)
                self.assertLessEqual(empty['required'], required)
                if 'Flat' not in options and options != 'subformat=vmfs':
                    self.assertLess(empty['required'], MIB)

    def test_disks_that_are_full(self):
        self.make_data('raw', 5 * MIB, [(0, 5 * MIB)])
        for subformat in ALL:
            found = self.measured('-o', f'subformat={subformat}', 'raw')
            self.assertEqual(found['required'], found['fully-allocated'])
            real = self.real(f'subformat={subformat}', 'raw')
            self.assertLessEqual(real, found['required'])

    def test_extents(self):
        for subformat in ('twoGbMaxExtentSparse', 'twoGbMaxExtentFlat'):
            self.write('raw', b'')
            os.truncate('raw', 5 << 30)
            self.qemu_io('raw', 'raw', 'write 2147450880 64k', 'write 4G 9k')
            real = self.real(f'subformat={subformat}', 'raw')
            found = self.measured('-o', f'subformat={subformat}', 'raw')
            self.assertGreaterEqual(found['required'], real)
            self.assertLess(found['required'], real + 2000)

    def test_what_is_refused(self):
        for args in (('-o', 'subformat=x', '--size', '1M'),
                     ('-o', 'subformat=vmfsSparse', '--size', '4T'),
                     ('--size', '0')):
            self.fails(tool.rhea('measure', '-O', 'vmdk', *args))


GIB = 1 << 30


class Resize(Vmdk):
    TYPES = [f'subformat={s}' for s in SPARSE + FLAT + ['vmfs', 'vmfsSparse']] \
        + ['zeroed_grain=on']

    def others_read(self, path, model):
        """7-Zip and libvmdk, where they know the type."""
        if shutil.which('7zz') and 'COWD' not in str(contents(path)[:4]):
            result = tool.execute('7zz', 'x', '-y', '-osevenzip', path)
            self.assertEqual(result.code, 0, str(result))
            name = os.path.splitext(path)[0] + '.img'
            self.assertTrue(contents('sevenzip/' + name) == model)
            shutil.rmtree('sevenzip')
        script = ('import pyvmdk, sys; h = pyvmdk.handle(); h.open(sys.argv[1])'
                  '; h.open_extent_data_files(); n = h.get_media_size();'
                  'sys.stdout.buffer.write(h.read_buffer(n))')
        with open('model', 'wb') as f:
            f.write(model)
        if tool.execute('/usr/bin/python3', '-c', 'import pyvmdk').code == 0:
            result = tool.execute(
                '/bin/sh', '-c', f'/usr/bin/python3 -c "{script}" {path} >lib')
            self.assertEqual(result.code, 0, str(result))
            self.assertTrue(contents('lib') == model)

    def resize(self, path, size, *more):
        self.rhea('resize', '-f', 'vmdk', '--shrink', *more, path, size)

    def test_there_and_back(self):
        """Sizes at random, with writes by both programs in between."""
        sizes = [33 * MIB + 512, 2 * MIB, 4 * MIB]
        for n, options in enumerate(self.TYPES):
            with self.subTest(options=options):
                self.make('new.vmdk', options, str(3 * MIB), tool.rhea)
                model = bytearray(3 * MIB)
                self.model_writes('new.vmdk', model, 15, n)
                rng = random.Random(n)
                for turn, size in enumerate(sizes):
                    size += rng.randrange(4 * MIB // 512) * 512
                    self.resize('new.vmdk', size)
                    model = (model + bytearray(size))[:size]
                    self.rhea('check', 'new.vmdk')
                    self.holds('new.vmdk', model)
                    self.same('info', 'new.vmdk')
                    self.model_writes('new.vmdk', model, 15, 10 * n + turn)
                    if 'vmfs' in options:
                        continue
                    self.qemu_io('new.vmdk', 'vmdk',
                                 f'write -P 7 {size - 512} 512')
                    model[-512:] = b'\7' * 512
                self.holds('new.vmdk', model)
                self.rhea('check', 'new.vmdk')
                if 'vmfs' not in options:
                    self.others_read('new.vmdk', model)

    def test_images_by_qemu(self):
        for n, subformat in enumerate(SPARSE + FLAT):
            with self.subTest(subformat=subformat):
                size = 40 * MIB + 512
                self.make_data('raw', size, [(0, 700), (19 * MIB, 3 * MIB)], n)
                self.qemu('convert', '-O', 'vmdk', '-o',
                          f'subformat={subformat}', 'raw', 'new.vmdk')
                model = bytearray(contents('raw'))
                for size in (70 * MIB, 20 * MIB):
                    self.resize('new.vmdk', size)
                    model = (model + bytearray(70 * MIB))[:size]
                    self.sound('new.vmdk', 'vmdk')
                    self.holds('new.vmdk', model)

    def test_as_a_new_one(self):
        """An empty disk that has grown is as one that was made so."""
        for size, to in (('3M', '100M'), ('3M', '9G'), ('5G', '40G')):
            for options in ('', 'zeroed_grain=on'):
                self.make('new.vmdk', options, size, tool.rhea)
                self.make('other.vmdk', options, to, tool.rhea)
                self.rhea('resize', 'new.vmdk', to)
                with open('new.vmdk', 'rb') as a, open('other.vmdk', 'rb') as b:
                    ours, theirs = a.read(512), b.read(512)
                    self.assertEqual(ours, theirs)
                    a.seek(21 * 512)
                    b.seek(21 * 512)
                    while True:
                        piece = a.read(4 * MIB)
                        self.assertTrue(piece == b.read(4 * MIB))
                        if not piece:
                            break

    def extents(self, path):
        lines = [line.split() for line in descriptor(path).splitlines()
                 if line.startswith('RW ')]
        return [(int(line[1]), line[3].strip('"')) for line in lines]

    def test_extents_that_are_added(self):
        gib = GIB // 512
        for subformat, letter in (('twoGbMaxExtentSparse', 's'),
                                  ('twoGbMaxExtentFlat', 'f')):
            with self.subTest(subformat=subformat):
                self.make('new.vmdk', f'subformat={subformat}', '1G',
                          tool.rhea)
                self.rhea_io('new.vmdk', 'write -P 1 1023M 1M')
                with open(f'new-{letter}002.vmdk', 'w', encoding='ascii') as f:
                    f.write('mine')
                self.resize('new.vmdk', '5G')
                names = [f'new-{letter}{n:03}.vmdk' for n in (1, 3, 4)]
                self.assertEqual(self.extents('new.vmdk'),
                                 list(zip((2 * gib, 2 * gib, gib), names)))
                self.assertEqual(contents(f'new-{letter}002.vmdk'), b'mine')
                self.sound('new.vmdk', 'vmdk')
                self.rhea_io('new.vmdk', 'write -P 2 4095M 2M',
                             'read -P 1 1023M 1M', 'read -P 0 1G 9M')
                self.qemu_io('new.vmdk', 'vmdk', 'read -P 2 4095M 2M',
                             'write -P 3 5119M 1M')
                self.resize('new.vmdk', '4608M')
                self.sound('new.vmdk', 'vmdk')
                self.resize('new.vmdk', '7G')
                self.qemu_io('new.vmdk', 'vmdk', 'read -P 0 4607M 9M',
                             'read -P 0 5118M 9M',
                             'read -P 2 4095M 2M')
                self.resize('new.vmdk', '1G')
                self.assertEqual(self.extents('new.vmdk'), [(gib, names[0])])
                self.assertEqual(sorted(os.listdir()),
                                 ['new-' + letter + '001.vmdk',
                                  'new-' + letter + '002.vmdk', 'new.vmdk'])
                self.qemu_io('new.vmdk', 'vmdk', 'read -P 1 1023M 1M')
                for name in os.listdir():
                    os.unlink(name)

    def test_children(self):
        """What lies below does not come up."""
        for options in ('', 'zeroed_grain=on', 'subformat=vmfsSparse',
                        'subformat=twoGbMaxExtentSparse'):
            with self.subTest(options=options):
                self.make('base.vmdk', '', '6M', tool.rhea)
                base = bytearray(6 * MIB)
                self.model_writes('base.vmdk', base, 40, 5)
                self.make('top.vmdk', options, '6M', tool.rhea, 'base.vmdk')
                self.model_writes('top.vmdk', base, 10, 6)
                self.resize('top.vmdk', 2 * MIB + 512)
                self.resize('top.vmdk', 5 * MIB + 512)
                model = base[:2 * MIB + 512] + bytes(3 * MIB)
                self.holds('top.vmdk', model)
                self.resize('top.vmdk', 11 * MIB)
                self.holds('top.vmdk', model + bytes(6 * MIB - 512))
                self.rhea('check', 'top.vmdk')

    def test_children_of_what_is_resized(self):
        self.make('base.vmdk', '', '6M', tool.rhea)
        self.make('top.vmdk', '', program=tool.rhea, base='base.vmdk')
        self.resize('base.vmdk', '100M')
        self.rhea('map', 'top.vmdk')
        self.resize('base.vmdk', '6M')
        self.fails(tool.rhea('map', 'top.vmdk'), says='content id')

    def test_commit_to_what_is_smaller(self):
        for options in self.TYPES:
            with self.subTest(options=options):
                model = bytearray(33 * MIB)
                self.make('base.vmdk', options, '3M', tool.rhea)
                self.make('top.vmdk', '', program=tool.rhea, base='base.vmdk')
                self.resize('top.vmdk', 33 * MIB)
                self.rhea_io('top.vmdk', 'write -P 5 1M 1M',
                             'write -P 6 32M 1M')
                model[MIB:2 * MIB] = b'\5' * MIB
                model[32 * MIB:] = b'\6' * MIB
                self.rhea('commit', 'top.vmdk')
                self.holds('base.vmdk', model)
                self.rhea('compare', 'base.vmdk', 'top.vmdk')

    def test_cylinders(self):
        self.make('new.vmdk', 'adapter_type=lsilogic', '1G', tool.rhea)
        self.resize('new.vmdk', '3G')
        for line in ('cylinders = "3072"', 'heads = "64"', 'sectors = "32"'):
            self.assertIn('ddb.geometry.' + line, descriptor('new.vmdk'))

    def test_preallocation(self):
        self.make('new.vmdk', 'subformat=monolithicFlat', '1M', tool.rhea)
        for mode, size in (('falloc', 2), ('full', 3)):
            self.resize('new.vmdk', f'{size}M', f'--preallocation={mode}')
            self.assertEqual(os.stat('new-flat.vmdk').st_blocks * 512,
                             (size - 1) * MIB)
        self.make('sparse.vmdk', '', '1M', tool.rhea)
        self.fails(tool.rhea('resize', '--preallocation=full', 'sparse.vmdk',
                             '2M'), says='flat')

    def test_bytes_behind_a_flat_extent(self):
        self.make('new.vmdk', 'subformat=monolithicFlat', '1M', tool.rhea)
        with open('new-flat.vmdk', 'ab') as f:
            f.write(b'x' * MIB)
        self.resize('new.vmdk', '3M')
        self.qemu_io('new.vmdk', 'vmdk', 'read -P 0 1M 2M')

    def test_what_is_refused(self):
        self.make('new.vmdk', f'subformat={STREAM}', '1M', tool.rhea)
        self.fails(tool.rhea('resize', 'new.vmdk', '2M'), says='convert')
        self.make('new.vmdk', 'subformat=vmfsSparse', '1M', tool.rhea)
        self.fails(tool.rhea('resize', 'new.vmdk', '2T'), says='2 TiB')
        self.make('new.vmdk', '', '1M', tool.rhea)
        self.fails(tool.rhea('resize', 'new.vmdk', '4000P'))
        self.fails(tool.rhea('resize', 'new.vmdk', '512k'), says='--shrink')
        self.rhea('check', 'new.vmdk')


if __name__ == '__main__':
    tool.main()
