# SPDX-License-Identifier: MIT
"""Changes of whole VMDKs, judged by QEMU's tools, libvmdk and 7-Zip: options
amended, and sizes measured."""
import os
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


if __name__ == '__main__':
    tool.main()
