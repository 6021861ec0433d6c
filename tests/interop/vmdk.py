# SPDX-License-Identifier: MIT
"""VMDK images of every sort, against QEMU's tools: what QEMU writes we read and
describe as it does, also in several files and over parents; and what we write
it reads."""
import os
import random
import re
import shutil
import struct
import sys
import typing

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
import images_vmdk as vmdk  # noqa: E402  pylint: disable=wrong-import-position
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413

SPARSE = ['monolithicSparse', 'twoGbMaxExtentSparse']
FLAT = ['monolithicFlat', 'twoGbMaxExtentFlat']
STREAM = 'streamOptimized'
SUBFORMATS = SPARSE + FLAT + [STREAM]
ZEROED = 'subformat=monolithicSparse,zeroed_grain=on'


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

    def scatter(self, seed, size, grain, kinds=(b'',)):
        """Random grains and zeroes for a disk of SIZE sectors, and what they
        say: offset, bytes."""
        rng = random.Random(seed)
        data = {}
        for index in range(-(-size // grain)):
            kind = rng.choice(kinds)
            if rng.random() < 0.3:
                data[index] = kind if kind != b'' else \
                    rng.randbytes(grain * 512)
        return data

    def apply(self, model, data, grain):
        for index, what in data.items():
            at = index * grain * 512
            n = min(grain * 512, len(model) - at)
            model[at:at + n] = what[:n] if isinstance(what, bytes) else bytes(n)

    def write(self, name, data):
        with open(name, 'wb') as f:
            f.write(data)

    def both_read(self, name, model, theirs=True):
        if theirs:
            self.qemu('convert', '-O', 'raw', name, 'theirs')
            self.assertTrue(contents('theirs') == model, name)
        self.rhea('convert', '-O', 'raw', name, 'ours')
        self.assertTrue(contents('ours') == model, name)
        self.rhea('check', name)

    def check(self, path, *args, code=0):
        result = tool.rhea('check', '--output=json', *args, path)
        self.assertEqual(result.code, code, str(result))
        return result.json

    def fails_io(self, path, command, says=''):
        result = tool.execute(os.environ['RHEA_IO'], '-c', command, path)
        self.assertEqual(result.code, 1, str(result))
        self.assertIn(says, result.out + result.err)


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
        for subformat in SUBFORMATS + ['vmfs', 'vmfsSparse', 'seSparse']:
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
                        'compat6=on,hwversion=7',
                        'subformat=seSparse,preallocation=full',
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
                 ['vmfs', 'vmfsSparse', 'seSparse']] + [ZEROED]):
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
                [f'subformat={s}' for s in SPARSE + ['seSparse']] + [ZEROED]):
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

    def test_commit_and_rebase(self):
        model = bytearray(4 * MIB)
        below = None
        for i, name in enumerate(('a.vmdk', 'b.vmdk', 'c.vmdk')):
            self.make(name, ZEROED, '4M', tool.rhea, below)
            self.model_writes(name, model, 15, 40 + i)
            below = name
        for parent in ('a.vmdk', ''):
            self.good(tool.rhea('rebase', '-f', 'vmdk', '-b', parent,
                                *(['-F', 'vmdk'] if parent else []), 'c.vmdk'))
            self.holds('c.vmdk', model)
            self.good(tool.rhea('check', 'c.vmdk'))
        self.make('d.vmdk', ZEROED, program=tool.rhea, base='b.vmdk')
        self.same_contents('b.vmdk')
        model = bytearray(contents('ours'))
        self.model_writes('d.vmdk', model, 15, 50)
        self.good(tool.rhea('commit', '-f', 'vmdk', 'd.vmdk'))
        for name in ('b.vmdk', 'd.vmdk'):
            self.holds(name, model)
            self.good(tool.rhea('check', name))

    def test_a_write_is_a_new_content_id(self):
        for subformat in SPARSE + FLAT + ['seSparse']:
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


class Marker(typing.NamedTuple):
    sector: int
    size: int  # of a compressed grain
    kind: int
    value: int  # a grain's guest sector, or the sectors that follow


def markers(path):
    """Of a stream, up to its end."""
    data = contents(path)
    overhead = struct.unpack_from('<Q', data, 64)[0]
    at, found = overhead, []
    while not found or found[-1].size or found[-1].kind:
        value, size, kind = struct.unpack_from('<QII', data, at * 512)
        found.append(Marker(at, size, kind if not size else -1, value))
        at += (12 + size + 511) // 512 if size else 1 + value
    return found, at * 512 == len(data)


class Foreign(Vmdk):
    """Extents by a writer of the tests' own, of kinds that no program here
    writes; QEMU reads them, too."""

    def test_hosted_extents(self):
        for seed, (grain, per_table, redundant, kinds) in enumerate([
                (8, 16, True, (b'',)), (16, 512, True, (b'', vmdk.ZERO)),
                (1, 128, False, (b'',)), (128, 64, False, (b'', vmdk.ZERO))]):
            with self.subTest(grain=grain, per_table=per_table):
                size = 40 * grain + 3
                data = self.scatter(seed, size, grain, kinds)
                model = bytearray(size * 512)
                self.apply(model, data, grain)
                text = vmdk.descriptor('monolithicSparse',
                                       [f'RW {size} SPARSE "x"'])
                self.write('x.vmdk', vmdk.hosted(size, data, grain, per_table,
                                                 text, redundant))
                self.both_read('x.vmdk', model)
                self.model_writes('x.vmdk', model, 5, seed) \
                    if size > 700 else None
                self.both_read('x.vmdk', model)

    def test_streams(self):
        for footer in (True, False):
            size = 5 * 128 * 512 + 77
            data = self.scatter(3, size, 128)
            for index in (2, 3, *range(512, 700)):
                data.pop(index, None)
            model = bytearray(size * 512)
            self.apply(model, data, 128)
            text = vmdk.descriptor('streamOptimized',
                                   [f'RDONLY {size} SPARSE "x"'])
            self.write('x.vmdk', vmdk.stream(size, data, text, footer=footer))
            self.both_read('x.vmdk', model)

    def snapshot(self, model, seed, make, kind, line, grain, kinds=(b'',)):
        """One more image over top.vmdk."""
        size = len(model) // 512
        data = self.scatter(seed, size, grain, kinds)
        self.apply(model, data, grain)
        name = f'disk-{seed:06}'
        self.write(f'{name}-{line}.vmdk', make(size, data))
        self.write(f'{name}.vmdk', vmdk.descriptor(
            kind, [f'RW {size} {line} "{name}-{line}.vmdk"'], 1000 + seed,
            1000 + seed - 1 if seed > 1 else 1000, f'disk-{seed - 1:06}.vmdk'
            if seed > 1 else 'disk.vmdk'))
        return f'{name}.vmdk'

    def test_snapshots_of_esxi(self):
        size = 9 * MIB
        model = bytearray(random.Random(1).randbytes(size))
        self.write('disk-flat.vmdk', model)
        self.write('disk.vmdk', vmdk.descriptor(
            'vmfs', [f'RW {size // 512} VMFS "disk-flat.vmdk"'], 1000))
        makers = {
            'VMFSSPARSE': ('vmfsSparse', vmdk.cowd, 1, (b'',)),
            'SESPARSE': ('seSparse', vmdk.sesparse, 8,
                         (b'', vmdk.ZERO, vmdk.UNMAPPED)),
        }
        for seed, line in enumerate(['VMFSSPARSE', 'SESPARSE', 'VMFSSPARSE',
                                     'SESPARSE'], 1):
            kind, make, grain, kinds = makers[line]
            name = self.snapshot(model, seed, make, kind, line, grain, kinds)
            self.both_read(name, model)
            self.same('info', name)
        self.same('info', '--backing-chain', name)
        # A delta of ESX is written to; the copies beside show what it holds.
        self.model_writes('disk-000003.vmdk', bytearray(size), 1, 1)
        self.fails(tool.rhea('map', name), says='content id')
        shutil.copy('disk-000003.vmdk', 'three.vmdk')
        model = self.whole('three.vmdk')
        self.model_writes('three.vmdk', model, 20, 8)
        self.both_read('three.vmdk', model)

    def whole(self, name):
        self.qemu('convert', '-O', 'raw', name, 'theirs')
        return bytearray(contents('theirs'))

    def test_deltas_alone_are_refused(self):
        self.write('cowd.vmdk', vmdk.cowd(100, {0: b'x'}))
        self.write('sesparse.vmdk', vmdk.sesparse(100, {0: b'x'}))
        for name in ('cowd.vmdk', 'sesparse.vmdk'):
            self.fails(tool.rhea('info', name), says='snapshot')

    def test_an_extent_alone(self):
        self.write('x-s001.vmdk', vmdk.hosted(100, {0: b'x'}))
        self.rhea('convert', '-O', 'raw', 'x-s001.vmdk', 'out')
        self.assertEqual(contents('out'), b'x' + bytes(51199))
        self.write('x.vmdk', vmdk.descriptor(
            'twoGbMaxExtentSparse', ['RW 100 SPARSE "x-s001.vmdk"'],
            parent_cid=7, hint='base.vmdk'))
        self.fails(tool.rhea('convert', '-O', 'raw', 'x-s001.vmdk', 'out'),
                   says=r"image 'x\.vmdk'")

    def test_extents_of_every_kind_together(self):
        self.write('flat', bytes(1024) + b'flat'.ljust(51200, b'.'))
        self.write('sparse', vmdk.hosted(100, {0: b'sparse'}))
        self.write('x.vmdk', vmdk.descriptor('custom', [
            'RW 100 FLAT "flat" 2', 'RW 50 ZERO', 'RW 100 SPARSE "sparse"',
            'NOACCESS 10 FLAT "flat" 2']))
        model = b'flat'.ljust(51200, b'.') + bytes(25600) + \
            b'sparse'.ljust(51200, b'\0') + bytes(5120)
        self.both_read('x.vmdk', model, theirs=False)
        self.rhea_io('x.vmdk', 'write -P 7 0 51200', 'write -P 8 75k 50k')
        self.fails_io('x.vmdk', 'write 60k 512')
        self.fails_io('x.vmdk', 'write 125k 512')
        self.both_read('x.vmdk', bytes([7]) * 51200 + bytes(25600) +
                       bytes([8]) * 51200 + bytes(5120), theirs=False)

    def test_names_in_other_encodings(self):
        self.write('über.vmdk', b'x' * 5120)
        text = vmdk.descriptor('monolithicFlat',
                               ['RW 10 FLAT "\xfcber.vmdk" 0'])
        text = text.decode().replace('UTF-8', 'windows-1252')
        self.write('x.vmdk', text.encode('latin-1'))
        self.both_read('x.vmdk', b'x' * 5120, theirs=False)
        # The second byte of a character may be a backslash.
        shutil.move('über.vmdk', 'ソ表.vmdk')
        for encoding in 'Shift_JIS', 'windows-932', 'EUC-JP':
            text = vmdk.descriptor('monolithicFlat',
                                   ['RW 10 FLAT "C:\\vm\\ソ表.vmdk" 0'])
            text = text.decode().replace('UTF-8', encoding)
            self.write('x.vmdk', text.encode(
                'euc-jp' if encoding == 'EUC-JP' else 'cp932'))
            self.both_read('x.vmdk', b'x' * 5120, theirs=False)

    def test_changes_that_are_tracked(self):
        text = vmdk.descriptor('monolithicSparse', ['RW 100 SPARSE "x"'],
                               more='\nchangeTrackPath="x-ctk.vmdk"')
        self.write('x.vmdk', vmdk.hosted(100, {0: b'x'}, text=text, version=3))
        self.rhea('check', 'x.vmdk')
        self.fails_io('x.vmdk', 'write 0 512')
        text = text.replace(b'changeTrackPath="x-ctk.vmdk"', b'')
        self.write('x.vmdk', vmdk.hosted(100, {0: b'x'}, text=text, version=3))
        self.rhea_io('x.vmdk', 'write 0 512')


class Checking(Vmdk):
    def damaged(self, *changes):
        """A copy of good.vmdk, bad.vmdk, with CHANGES: (offset, bytes)."""
        shutil.copy('good.vmdk', 'bad.vmdk')
        with open('bad.vmdk', 'r+b') as f:
            for at, data in changes:
                f.seek(at)
                f.write(data)

    def make_good(self):
        self.make_data('raw', 5 * MIB, [(0, MIB), (2 * MIB, 2 * MIB)])
        self.qemu('convert', '-O', 'vmdk', 'raw', 'good.vmdk')
        head = contents('good.vmdk')[:512]
        places = [int.from_bytes(head[at:at + 8], 'little') * 512
                  for at in (56, 48)]
        self.tables = []
        for at in places:
            with open('good.vmdk', 'rb') as f:
                f.seek(at)
                self.tables.append(int.from_bytes(f.read(4), 'little') * 512)
        self.directories = places

    def still_there(self):
        for program in (tool.qemu, tool.rhea):
            self.good(program('convert', '-O', 'raw', 'bad.vmdk', 'out'))
            self.assertTrue(contents('out') == contents('raw'))

    def test_sound_images(self):
        for subformat in SUBFORMATS + ['vmfsSparse', 'seSparse']:
            with self.subTest(subformat=subformat):
                for program in (tool.rhea, tool.qemu):
                    if subformat not in SUBFORMATS and program == tool.qemu:
                        continue
                    self.make_data('raw', 5 * MIB, [(0, MIB), (2 * MIB, 9)])
                    self.good(program('convert', '-O', 'vmdk', '-o',
                                      f'subformat={subformat}', 'raw',
                                      'new.vmdk'))
                    found = self.check('new.vmdk')
                    if subformat in SPARSE + [STREAM]:
                        self.assertEqual((found['total-clusters'],
                                          found['allocated-clusters']),
                                         (80, 17))

    def test_what_the_second_tables_repair(self):
        self.make_good()
        nowhere = b'\xff\xff\xff\x0f'
        first, second = self.tables
        for name, changes in (
                ('entries nowhere', [(first, nowhere * 9)]),
                ('entries lost', [(first, bytes(4 * 16))]),
                ('a whole table lost', [(first, bytes(2048))]),
                ('the copy differs', [(second + 8, bytes(40))]),
                ('the copy nowhere', [(second, nowhere * 16)]),
                ('no table', [(self.directories[0], bytes(4))]),
                ('a table nowhere', [(self.directories[0], nowhere)]),
                ('no copy of the table', [(self.directories[1], bytes(4))]),
                ('a directory nowhere', [(56, b'\xff' * 7 + b'\0')]),
                ('no second directory', [(48, b'\xff' * 7 + b'\0')])):
            with self.subTest(name=name):
                self.damaged(*changes)
                self.assertGreater(self.check('bad.vmdk', code=2)
                                   ['corruptions'], 0)
                found = self.check('bad.vmdk', '-r', 'all')
                self.assertGreater(found['corruptions-fixed'], 0)
                self.check('bad.vmdk')
                self.still_there()
                self.rhea_io('bad.vmdk', 'write -P 1 1M 64k')
                self.check('bad.vmdk')

    def test_what_cannot_be_repaired(self):
        self.make_good()
        nowhere = b'\xff\xff\xff\x0f'
        # Dropped.
        self.damaged(*[(at + 4, nowhere) for at in self.tables])
        self.fails(tool.rhea('convert', '-O', 'raw', 'bad.vmdk', 'out'),
                   says='damaged')
        self.check('bad.vmdk', '-r', 'all', code=3)  # the grain is a leak now
        self.rhea('convert', '-O', 'raw', 'bad.vmdk', 'out')
        expect = bytearray(contents('raw'))
        expect[65536:131072] = bytes(65536)
        self.assertTrue(contents('out') == expect)
        # Tables that share their place.
        with open('good.vmdk', 'rb') as f:
            f.seek(self.directories[0])
            entry = f.read(4)
        self.make_data('raw', 70 * MIB, [(0, MIB), (33 * MIB, MIB)])
        self.qemu('convert', '-O', 'vmdk', 'raw', 'good.vmdk')
        head = contents('good.vmdk')[:512]
        places = [int.from_bytes(head[at:at + 8], 'little') * 512
                  for at in (56, 48)]
        with open('good.vmdk', 'rb') as f:
            f.seek(places[0])
            entry = f.read(4)
        self.damaged(*[(at + 4, entry) for at in places])
        self.assertGreater(self.check('bad.vmdk', code=2)['corruptions'], 1)
        self.check('bad.vmdk', '-r', 'all', code=2)

    def test_grains_that_are_used_twice(self):
        self.make_good()
        with open('good.vmdk', 'rb') as f:
            f.seek(self.tables[0])
            entry = f.read(4)
        self.damaged(*[(at + 4, entry * 3) for at in self.tables])
        self.assertEqual(self.check('bad.vmdk', code=2)['corruptions'], 3)
        found = self.check('bad.vmdk', '-r', 'all', code=3)
        self.assertEqual(found['corruptions-fixed'], 3)
        expect = bytearray(contents('raw'))
        for index in (1, 2, 3):
            expect[index << 16:(index + 1) << 16] = expect[:65536]
        self.holds('bad.vmdk', expect)
        self.model_writes('bad.vmdk', expect, 20, 3)
        self.holds('bad.vmdk', expect)
        self.assertEqual(self.check('bad.vmdk', code=3)['leaks'], 3)

    def test_grains_where_tables_are(self):
        """The guest's next write would go over them."""
        self.make_good()
        entry = (self.tables[1] // 512).to_bytes(4, 'little')
        with open('good.vmdk', 'r+b') as f:
            f.seek(64)
            f.write((21).to_bytes(8, 'little'))
        self.damaged(*[(at + 4, entry) for at in self.tables])
        before = self.check('bad.vmdk', code=2)
        self.assertEqual(before['corruptions'], 1)
        self.check('bad.vmdk', '-r', 'all', code=3)
        self.rhea_io('bad.vmdk', 'write -P 7 64k 64k')
        self.assertNotIn('corruptions', self.check('bad.vmdk', code=3))

    def test_copies_have_a_bound(self):
        """Of a small file whose entries all lead to one place."""
        size = 3000 * 128
        data = {index: b'x' * 65536 for index in range(1)}
        good = bytearray(vmdk.hosted(size, data, 128, 512, vmdk.descriptor(
            'monolithicSparse', [f'RW {size} SPARSE "x"'])))
        directory = int.from_bytes(good[56:64], 'little') * 512
        for index in range(5):
            at = int.from_bytes(good[directory + 4 * index:
                                     directory + 4 * index + 4],
                                'little') * 512
            if index == 0:
                entry = bytes(good[at:at + 4])
            if at:
                good[at:at + 2048] = entry * 512
        with open('bad.vmdk', 'wb') as f:
            f.write(good)
        found = self.check('bad.vmdk', '-r', 'all', code=2)
        self.assertGreater(found['corruptions-fixed'], 100)
        self.assertLessEqual(os.path.getsize('bad.vmdk'),
                             len(good) + 17 * MIB)

    def test_leaks(self):
        self.make_good()
        shutil.copy('good.vmdk', 'bad.vmdk')
        size = os.path.getsize('bad.vmdk')
        with open('bad.vmdk', 'r+b') as f:
            f.seek(size + 65536)
            f.write(b'x' * 65536)
        self.assertEqual(self.check('bad.vmdk', code=3)['leaks'], 2)
        self.check('bad.vmdk', '-r', 'leaks')
        self.assertEqual(os.path.getsize('bad.vmdk'), size)
        self.still_there()

    def test_what_is_cut_off(self):
        self.make_data('raw', 5 * MIB, [(0, MIB)])
        self.qemu('convert', '-O', 'vmdk', '-o', 'subformat=monolithicFlat',
                  'raw', 'good.vmdk')
        os.truncate('good-flat.vmdk', 3 * MIB)
        self.fails(tool.rhea('convert', '-O', 'raw', 'good.vmdk', 'out'),
                   says='cut off')
        self.assertEqual(self.check('good.vmdk', code=2)['corruptions'], 1)
        self.make_good()
        os.truncate('good.vmdk', 3 * MIB)
        self.assertGreater(self.check('good.vmdk', code=2)['corruptions'], 0)

    def test_an_extent_that_was_not_closed(self):
        self.make_good()
        self.damaged((72, b'\1'))
        self.check('bad.vmdk', '-r', 'all')
        self.assertEqual(contents('bad.vmdk')[72], 0)
        self.still_there()


class Streams(Vmdk):
    def make_raw(self, seed, size=70 * MIB + 1536):
        rng = random.Random(seed)
        runs = [(rng.randrange(size - 400000), rng.randrange(1, 400000))
                for _ in range(20)] + [(0, 700), (size - 1000, 1000)]
        self.make_data('raw', size, runs, seed)
        with open('raw', 'r+b') as f:
            for i in range(20):
                f.seek(rng.randrange(size - 400000))
                f.write(b'as text %d ' % i * rng.randrange(1, 30000))

    def test_converted_streams(self):
        for seed, source in enumerate(['raw', 'qcow2', 'vmdk']):
            with self.subTest(source=source):
                self.make_raw(seed)
                if source != 'raw':
                    self.qemu('convert', '-O', source, 'raw', 'source')
                self.rhea('convert', '-O', 'vmdk', '-o',
                          'subformat=streamOptimized',
                          'raw' if source == 'raw' else 'source', 'new.vmdk')
                self.same_contents('new.vmdk')
                self.assertTrue(contents('ours') == contents('raw'))
                self.sound('new.vmdk', 'vmdk')
                self.same('info', 'new.vmdk')
                self.judged_by_others('new.vmdk', 'raw')

    def judged_by_others(self, path, raw):
        """7-Zip and libvmdk, where they are installed."""
        if shutil.which('7zz'):
            result = tool.execute('7zz', 'x', '-y', '-osevenzip', path)
            self.assertEqual(result.code, 0, str(result))
            name = os.path.splitext(path)[0] + '.img'
            self.assertTrue(contents('sevenzip/' + name) == contents(raw))
            shutil.rmtree('sevenzip')
        script = ('import pyvmdk, sys; h = pyvmdk.handle(); h.open(sys.argv[1])'
                  '; h.open_extent_data_files(); sys.exit(0 if h.read_buffer('
                  'h.get_media_size()) == open(sys.argv[2], "rb").read() '
                  'else 1)')
        # Debian's module is for Debian's Python.
        python = '/usr/bin/python3'
        if tool.execute(python, '-c', 'import pyvmdk').code == 0:
            result = tool.execute(python, '-c', script, path, raw)
            self.assertEqual(result.code, 0, str(result))

    def test_layout_that_vmware_wants(self):
        """Header version 3, no second directory, grains in order, tables
        behind their grains, directory, footer, end."""
        self.make_raw(7)
        self.rhea('convert', '-O', 'vmdk', '-o',
                  'subformat=streamOptimized,adapter_type=lsilogic', 'raw',
                  'new.vmdk')
        data = contents('new.vmdk')
        header = struct.unpack_from('<IIIQQQQIQQQB4sH', data)
        self.assertEqual(header[:3], (0x564d444b, 3, 0x30001))
        self.assertEqual(header[4:11], (128, 1, 20, 512, 0, 2**64 - 1, 128))
        self.assertEqual(header[11:], (0, b'\n \r\n', 1))
        text = data[512:21 * 512].rstrip(b'\0').decode()
        self.assertTrue(text.startswith('# Disk DescriptorFile\nversion=1\n'))
        cid = re.search('^CID=([0-9a-f]{8})$', text, re.M).group(1)
        self.assertRegex(text, f'longContentID = "[0-9a-f]{{24}}{cid}"')
        found, whole = markers('new.vmdk')
        self.assertTrue(whole)
        grains = [m.value for m in found if m.size]
        self.assertEqual(grains, sorted(grains))
        self.assertEqual([m.kind for m in found if not m.size],
                         [1, 1, 1, 2, 3, 0])
        table = None
        for m in found[:-3]:
            self.assertTrue(m.size or table is not None)
            if m.size:
                self.assertIn(table, (None, m.value // 65536))
            table = m.value // 65536 if m.size else None
        directory, footer = found[-3], found[-2]
        there = struct.unpack_from('<Q', data, footer.sector * 512 + 568)[0]
        self.assertEqual(there, directory.sector + 1)

    def test_written_in_pieces(self):
        model = bytearray(70 * MIB)
        self.make('new.vmdk', 'subformat=streamOptimized', '70M', tool.rhea)
        for start in (0, 1, 2):
            commands = []
            for i, at in enumerate(range(start, 1120, 7 if start else 13)):
                if model[at << 16]:
                    continue
                value = 1 + (i * 5 + start) % 250
                compressed = '-c' if i % 2 else ''
                commands.append(f'write {compressed} -P {value} {at << 16} 64k')
                model[at << 16:(at + 1) << 16] = bytes([value]) * 65536
                if i % 40 == 20:
                    commands.append('flush')
                    commands.append(f'read -P {value} {at << 16} 64k')
            self.rhea_io('new.vmdk', *commands)
            self.holds('new.vmdk', model)
            self.assertTrue(tool.qemu('check', 'new.vmdk').code == 0)
        result = tool.execute(os.environ['RHEA_IO'], '-c', 'write 0 64k',
                              'new.vmdk')
        self.assertIn('written already', result.err)
        result = tool.execute(os.environ['RHEA_IO'], '-c',
                              f'write {1119 << 16} 512', 'new.vmdk')
        self.assertIn('whole grains', result.err)
        self.holds('new.vmdk', model)

    def test_what_was_cut_off_is_refused(self):
        self.make_raw(9, 3 * MIB)
        self.rhea('convert', '-O', 'vmdk', '-o', 'subformat=streamOptimized',
                  'raw', 'new.vmdk')
        size = os.path.getsize('new.vmdk')
        for cut in (512, 1024, 4096, size // 2):
            os.truncate('new.vmdk', size - cut)
            self.fails(tool.rhea('info', 'new.vmdk'), says='cut off')
            self.fails(tool.rhea('convert', '-O', 'raw', 'new.vmdk', 'out'),
                       says='cut off.*-r all')

    def test_what_was_cut_off_is_recovered(self):
        self.make_raw(11, 40 * MIB)
        self.rhea('convert', '-O', 'vmdk', '-o', 'subformat=streamOptimized',
                  'raw', 'new.vmdk')
        whole, raw = contents('new.vmdk'), contents('raw')
        found, _ = markers('new.vmdk')
        grains = [m for m in found if m.size]
        rng = random.Random(11)
        cuts = [len(whole) - 512, len(whole) - 1024, len(whole) - 1536,
                65536, 65536 + 700, found[-3].sector * 512 + 512] + \
            [rng.randrange(65536, len(whole)) for _ in range(4)]
        for cut in cuts:
            with self.subTest(cut=cut):
                with open('new.vmdk', 'wb') as f:
                    f.write(whole[:cut])
                    # As some transfers leave it.
                    if cut % 3 == 0 and cut < len(whole) - 1536:
                        f.truncate(len(whole))
                before = contents('new.vmdk')
                result = tool.rhea('check', 'new.vmdk')
                self.assertEqual(result.code, 2, str(result))
                self.assertTrue(contents('new.vmdk') == before)
                result = tool.rhea('check', '-r', 'all', 'new.vmdk')
                self.assertEqual(result.code, 0, str(result))
                self.assertIn('the rest is lost', result.err)
                expect = bytearray(len(raw))
                for m in grains:
                    if m.sector * 512 + 12 + m.size <= cut:
                        at = m.value * 512
                        expect[at:at + 65536] = raw[at:at + 65536]
                self.holds('new.vmdk', expect)
                self.sound('new.vmdk', 'vmdk')
        self.judged_by_others('new.vmdk', 'ours')

    def test_what_is_no_stream_any_more(self):
        """Where grains may follow what is damaged nothing is cut off."""
        self.make_raw(12, 9 * MIB)
        self.rhea('convert', '-O', 'vmdk', '-o', 'subformat=streamOptimized',
                  'raw', 'new.vmdk')
        found, _ = markers('new.vmdk')
        middle = found[len(found) // 2 - 2]
        with open('new.vmdk', 'r+b') as f:
            f.seek(middle.sector * 512)
            f.write(b'x' * 512)
            f.truncate(found[-3].sector * 512)
        before = contents('new.vmdk')
        self.assertGreater(len(before) - middle.sector * 512, 70000)
        result = tool.rhea('check', '-r', 'all', 'new.vmdk')
        self.assertEqual(result.code, 2, str(result))
        self.assertTrue(contents('new.vmdk') == before)

    def test_only_streams_are_compressed(self):
        self.make_raw(3, MIB)
        self.fails(tool.rhea('convert', '-c', '-O', 'vmdk', 'raw', 'new.vmdk'),
                   says='streamOptimized')


if __name__ == '__main__':
    tool.main()
