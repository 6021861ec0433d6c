# SPDX-License-Identifier: MIT
"""VMDK images of every sort, against QEMU's tools: what QEMU writes we read and
describe as it does, also in several files and over parents; and what we write
it reads."""
import os
import random
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413

SPARSE = ['monolithicSparse', 'twoGbMaxExtentSparse']
FLAT = ['monolithicFlat', 'twoGbMaxExtentFlat']
STREAM = 'streamOptimized'
SUBFORMATS = SPARSE + FLAT + [STREAM]
ZEROED = 'subformat=monolithicSparse,zeroed_grain=on'

# What differs between two images of the same contents.
IDENTITY = ('cid', 'actual-size', 'filename', 'children')


class Vmdk(tool.Case):
    def make(self, name, options='', size='3M', program=tool.qemu, base=None):
        args = ['create', '-q', '-f', 'vmdk']
        if options:
            args += ['-o', options]
        if base:
            args += ['-b', base, '-F', 'vmdk']
            size = ''
        self.good(program(*args, name, *([size] if size else [])))

    def random_writes(self, path, size, count, seed, zeroes=True):
        rng = random.Random(seed)
        commands = []
        for i in range(count):
            length = rng.choice((512, 4096, 65536, 100 * 512, 3 * 65536))
            at = rng.randrange((size - length) // 512) * 512
            kind = '-z' if zeroes and i % 5 == 4 else \
                f'-P {rng.randrange(1, 255)}'
            commands.append(f'write {kind} {at} {length}')
        self.qemu_io(path, 'vmdk', *commands)

    def rhea_io(self, path, *commands):
        args = [os.environ['RHEA_IO']]
        for command in commands:
            args += ['-c', command]
        self.good(tool.execute(*args, path))

    def model_writes(self, path, model, count, seed):
        """COUNT random writes by us to PATH and to MODEL, a bytearray."""
        rng = random.Random(seed)
        commands = []
        for i in range(count):
            n = rng.choice((512, 4096, 65536, 100 * 512, 5 * 65536 + 1024))
            at = rng.randrange((len(model) - n) // 512) * 512
            value = rng.randrange(1, 255)
            if i % 5 == 4:
                value = 0
                commands.append(f'write -z {"-u" * (i % 2)} {at} {n}')
            else:
                commands.append(f'write -P {value} {at} {n}')
            model[at:at + n] = bytes([value]) * n
        self.rhea_io(path, *commands)

    def holds(self, path, model):
        """Both programs read MODEL out of PATH."""
        self.same_contents(path)
        self.assertTrue(contents('ours') == model, path)

    def same_contents(self, path, fmt='vmdk'):
        """Both programs read the same out of PATH."""
        self.qemu('convert', '-f', fmt, '-O', 'raw', path, 'theirs')
        self.rhea('convert', '-f', fmt, '-O', 'raw', path, 'ours')
        self.assertTrue(contents('theirs') == contents('ours'), path)


class Reading(Vmdk):
    def test_every_subformat(self):
        for n, subformat in enumerate(SUBFORMATS):
            with self.subTest(subformat=subformat):
                self.make_data('raw', 3 * MIB + 5 * 512,
                               [(0, 700), (MIB, MIB), (3 * MIB, 2560)], n)
                self.qemu('convert', '-O', 'vmdk', '-o',
                          f'subformat={subformat}', 'raw', 'new.vmdk')
                self.same_contents('new.vmdk')
                self.assertTrue(contents('ours') == contents('raw'))
                self.same('info', 'new.vmdk')
                self.same_json('info', 'new.vmdk')
                self.same('info', os.path.abspath('new.vmdk'))
                if subformat != STREAM:
                    self.same('map', 'new.vmdk')
                    self.same_json('map', 'new.vmdk', drop=('compressed',))

    def test_random_writes(self):
        for n, options in enumerate(
                [f'subformat={s}' for s in SPARSE + FLAT] + [ZEROED]):
            with self.subTest(options=options):
                self.make('new.vmdk', options, '5M')
                self.random_writes('new.vmdk', 5 * MIB, 40, n)
                self.same_contents('new.vmdk')

    def test_several_extents(self):
        for subformat in ('twoGbMaxExtentSparse', 'twoGbMaxExtentFlat'):
            with self.subTest(subformat=subformat):
                self.make('big.vmdk', f'subformat={subformat}', '5G')
                self.qemu_io('big.vmdk', 'vmdk', 'write -P 1 65024 1k',
                             'write -P 2 2147483136 1k', 'write -P 3 4G 70k',
                             'write -P 4 5368709000 120')
                self.same('info', 'big.vmdk')
                self.same('map', 'big.vmdk')
                self.same_json('map', 'big.vmdk', drop=('compressed',))
                self.identical('big.vmdk', 'vmdk', 'big.vmdk', 'vmdk')
                self.rhea('compare', 'big.vmdk', 'big.vmdk')
                for at, length in ((65024, 1024), (2147483136, 1024),
                                   (4 << 30, 70 << 10)):
                    theirs = tool.qemu('dd', '-O', 'raw', 'bs=512',
                                       f'skip={at // 512}',
                                       f'count={(at + length) // 512}',
                                       'if=big.vmdk', 'of=theirs')
                    ours = tool.rhea('dd', '-O', 'raw', 'bs=512',
                                     f'skip={at // 512}',
                                     f'count={(at + length) // 512}',
                                     'if=big.vmdk', 'of=ours')
                    self.good(theirs)
                    self.good(ours)
                    self.assertEqual(contents('ours'), contents('theirs'))

    def test_children(self):
        for n, options in enumerate(
                [f'subformat={s}' for s in SPARSE] + [ZEROED]):
            with self.subTest(options=options):
                self.make('base.vmdk', options, '4M')
                self.random_writes('base.vmdk', 4 * MIB, 20, n)
                for i in range(3):
                    below = f'top{i - 1}.vmdk' if i else 'base.vmdk'
                    self.make(f'top{i}.vmdk', options, base=below)
                    self.random_writes(f'top{i}.vmdk', 4 * MIB, 10, n + 10 * i)
                self.same_contents('top2.vmdk')
                self.same('info', '--backing-chain', 'top2.vmdk')
                self.same_json('info', '--backing-chain', 'top2.vmdk')
                self.same('map', 'top2.vmdk')

    def test_a_parent_that_has_changed(self):
        self.make('base.vmdk', size='1M')
        self.make('top.vmdk', base='base.vmdk')
        self.rhea('map', 'top.vmdk')
        self.qemu_io('base.vmdk', 'vmdk', 'write -P 7 0 512')
        self.fails(tool.rhea('convert', '-O', 'raw', 'top.vmdk', 'out'),
                   says=r'top\.vmdk.*base\.vmdk.*content id')
        self.assertFalse(os.path.exists('out'))

    def test_a_parent_that_is_missing(self):
        self.make('base.vmdk', size='1M')
        self.make('top.vmdk', base='base.vmdk')
        os.unlink('base.vmdk')
        self.fails(tool.rhea('map', 'top.vmdk'),
                   says=r'top\.vmdk.*base\.vmdk')
        self.rhea('info', 'top.vmdk')

    def test_a_parent_by_another_systems_name(self):
        self.make('base.vmdk', size='1M')
        self.random_writes('base.vmdk', MIB, 5, 3)
        self.make('top.vmdk', base='base.vmdk')
        text = contents('top.vmdk')
        for name in (rb'C:\vm\base.vmdk', b'/vmfs/volumes/5f/x/base.vmdk',
                     rb'.\base.vmdk'):
            with self.subTest(name=name):
                head = text[512:1536].replace(b'"base.vmdk"', b'"%s"' % name)
                with open('top.vmdk', 'r+b') as f:
                    f.seek(512)
                    f.write(head[:1024])
                self.rhea('compare', 'top.vmdk', 'base.vmdk')

    def test_extents_stay_in_the_folder(self):
        os.mkdir('in')
        os.chdir('in')
        self.make('disk.vmdk', 'subformat=monolithicFlat', '1M')
        text = contents('disk.vmdk')
        os.rename('disk-flat.vmdk', '../disk-flat.vmdk')
        outside = os.path.abspath('../disk-flat.vmdk').encode()
        for name in (b'../disk-flat.vmdk', outside, b'a/../../disk-flat.vmdk',
                     b'link'):
            with self.subTest(name=name):
                with open('disk.vmdk', 'wb') as f:
                    f.write(text.replace(b'disk-flat.vmdk', name))
                if name == b'link':
                    os.symlink('../disk-flat.vmdk', 'link')
                self.fails(tool.rhea('info', 'disk.vmdk'), says='folder')

    def test_the_second_grain_directory_is_used(self):
        self.make_data('raw', 3 * MIB, [(0, 3 * MIB)])
        self.qemu('convert', '-O', 'vmdk', 'raw', 'good.vmdk')
        head = contents('good.vmdk')[:512]
        directory = int.from_bytes(head[56:64], 'little') * 512
        for name, at, data in (
                ('no directory', 56, b'\xff' * 7 + b'\0'),
                ('no table', directory, bytes(4)),
                ('a table nowhere', directory, b'\xff\xff\xff\x7f')):
            with self.subTest(name=name):
                shutil.copy('good.vmdk', 'bad.vmdk')
                with open('bad.vmdk', 'r+b') as f:
                    f.seek(at)
                    f.write(data)
                self.rhea('convert', '-O', 'raw', 'bad.vmdk', 'ours')
                self.assertTrue(contents('ours') == contents('raw'))


class Writing(Vmdk):
    def test_new_images(self):
        for subformat in SUBFORMATS + ['vmfs', 'vmfsSparse']:
            with self.subTest(subformat=subformat):
                self.make('new.vmdk', f'subformat={subformat}', '4g', tool.rhea)
                self.same('info', 'new.vmdk')
                self.sound('new.vmdk', 'vmdk')
                self.assertEqual(self.same('map', 'new.vmdk').code, 0)
                self.rhea('info', 'new.vmdk')

    def test_options(self):
        for options, lines in (
                ('', ['adapterType = "ide"', 'virtualHWVersion = "4"',
                      'geometry.cylinders = "2"', 'geometry.heads = "16"']),
                ('adapter_type=lsilogic,hwversion=13,toolsversion=12325',
                 ['adapterType = "lsilogic"', 'virtualHWVersion = "13"',
                  'toolsVersion = "12325"', 'geometry.heads = "64"',
                  'geometry.sectors = "32"']),
                ('adapter_type=legacyESX,compat6=on',
                 ['adapterType = "legacyESX"', 'virtualHWVersion = "6"']),
                ('adapter_type=buslogic,hwversion=undefined',
                 ['adapterType = "buslogic"', 'virtualHWVersion = "4"'])):
            with self.subTest(options=options):
                self.make('new.vmdk', options, '1M', tool.rhea)
                text = contents('new.vmdk')[512:1024].decode()
                for line in lines:
                    self.assertIn(f'ddb.{line}\n', text)
                self.same_contents('new.vmdk')
        for options in ('adapter_type=pvscsi', 'subformat=thin', 'hwversion="',
                        'subformat=seSparse', 'compat6=on,hwversion=7',
                        'subformat=monolithicFlat,zeroed_grain=on',
                        'preallocation=full', 'subformat=vmfs,'
                        'preallocation=metadata'):
            with self.subTest(options=options):
                self.fails(tool.rhea('create', '-f', 'vmdk', '-o', options,
                                     'other.vmdk', '1M'))
                self.assertFalse(os.path.exists('other.vmdk'))
        for mode in ('falloc', 'full'):
            self.make('new.vmdk', 'subformat=monolithicFlat,preallocation=' +
                      mode, '1M', tool.rhea)
            self.assertEqual(os.stat('new-flat.vmdk').st_blocks * 512, MIB)

    def test_geometry_of_scsi_disks(self):
        for size, cylinders, heads, sectors in (
                ('1G', 1024, 64, 32), ('2G', 1024, 128, 32),
                ('3G', 391, 255, 63), ('80G', 10443, 255, 63),
                ('2000G', 65535, 255, 63)):
            with self.subTest(size=size):
                self.make('new.vmdk', 'subformat=vmfs,adapter_type=lsilogic',
                          size, tool.rhea)
                text = contents('new.vmdk').decode()
                for name, value in (('cylinders', cylinders), ('heads', heads),
                                    ('sectors', sectors)):
                    self.assertIn(f'ddb.geometry.{name} = "{value}"\n', text)

    def test_random_writes(self):
        for n, options in enumerate(
                [f'subformat={s}' for s in SPARSE + FLAT +
                 ['vmfs', 'vmfsSparse']] + [ZEROED]):
            with self.subTest(options=options):
                model = bytearray(5 * MIB)
                self.make('new.vmdk', options, '5M', tool.rhea)
                for i in range(3):
                    self.model_writes('new.vmdk', model, 25, 10 * n + i)
                    self.holds('new.vmdk', model)
                    self.sound('new.vmdk', 'vmdk')

    def test_both_programs_write_in_turn(self):
        for n, options in enumerate(
                [f'subformat={s}' for s in SPARSE + FLAT] + [ZEROED]):
            with self.subTest(options=options):
                self.make('new.vmdk', options, '5M')
                model = bytearray(5 * MIB)
                for i in range(3):
                    self.model_writes('new.vmdk', model, 10, 20 + 10 * n + i)
                    self.qemu_io('new.vmdk', 'vmdk',
                                 f'write -P {i + 1} {i}M 70k')
                    model[i * MIB:i * MIB + (70 << 10)] = \
                        bytes([i + 1]) * (70 << 10)
                self.holds('new.vmdk', model)

    def test_children(self):
        for n, options in enumerate(
                [f'subformat={s}' for s in SPARSE] + [ZEROED]):
            with self.subTest(options=options):
                model = bytearray(4 * MIB)
                self.make('base.vmdk', options, '4M', tool.rhea)
                self.model_writes('base.vmdk', model, 20, n)
                for i in range(3):
                    below = f'top{i - 1}.vmdk' if i else 'base.vmdk'
                    self.make(f'top{i}.vmdk', options, program=tool.rhea,
                              base=below)
                    self.model_writes(f'top{i}.vmdk', model, 10, 10 * n + i)
                    self.holds(f'top{i}.vmdk', model)
                self.same('info', '--backing-chain', 'top2.vmdk')

    def test_a_write_is_a_new_content_id(self):
        for subformat in SPARSE + FLAT:
            with self.subTest(subformat=subformat):
                self.make('base.vmdk', f'subformat={subformat}', '1M',
                          tool.rhea)
                self.make('top.vmdk', '', program=tool.rhea, base='base.vmdk')
                self.rhea_io('base.vmdk', 'read 0 512')
                self.rhea('map', 'top.vmdk')
                self.rhea_io('base.vmdk', 'write 0 512')
                self.fails(tool.rhea('map', 'top.vmdk'), says='content id')
                result = tool.qemu('convert', '-O', 'raw', 'top.vmdk', 'out')
                self.assertEqual(result.code, 1)


if __name__ == '__main__':
    tool.main()
