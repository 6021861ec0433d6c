# SPDX-License-Identifier: MIT
"""SESparse, what ESXi's snapshots are: extents by a writer of the tests' own, of
ESXi's form, that we change, and our own, which QEMU reads; a reader of the
tests' own judges the maps."""
import os
import random
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
import images_vmdk as vmdk  # noqa: E402  pylint: disable=wrong-import-position
from vmdk import Vmdk  # noqa: E402  pylint: disable=C0413
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413

# In sectors: three grain tables, the last one not whole.
SIZE = 40 * 2048 - 3


class SeSparse(Vmdk):
    def scatter_se(self, seed, tables=(0, 2)):
        """Some grains of grain TABLES of a disk of SIZE."""
        rng = random.Random(seed)
        data = {}
        for table in tables:
            first = table * 4096
            for index in range(first, min(first + 4096, -(-SIZE // 8))):
                if rng.random() < 0.02:
                    data[index] = rng.choice((vmdk.ZERO, vmdk.UNMAPPED,
                                              rng.randbytes(4096)))
        return data

    def put(self, data, name='x', size=SIZE, **how):
        """An image, and what its guest sees."""
        model = bytearray(size * 512)
        self.apply(model, data, 8)
        self.write(f'{name}-sesparse.vmdk', vmdk.sesparse(size, data, **how))
        self.write(f'{name}.vmdk', vmdk.descriptor(
            'seSparse', [f'RW {size} SESPARSE "{name}-sesparse.vmdk"']))
        return model

    def is_whole(self, name='x', by='place'):
        extent = vmdk.SeSparse(f'{name}-sesparse.vmdk')
        self.assertEqual(extent.problems(by), [])
        return extent

    def change(self, *changes, name='x'):
        """CHANGES: (offset, bytes)."""
        with open(f'{name}-sesparse.vmdk', 'r+b') as f:
            for at, data in changes:
                f.seek(at)
                f.write(data)


class Writing(SeSparse):
    def test_images_of_esxi(self):
        for seed, by in enumerate(('place', 'index')):
            with self.subTest(by=by):
                model = self.put(self.scatter_se(seed), by=by,
                                 journal=b'\xee\xff\xc0' + bytes(99) + b'x')
                self.both_read('x.vmdk', model)
                for i in range(3):
                    self.model_writes('x.vmdk', model, 12, 10 * seed + i)
                    self.both_read('x.vmdk', model)
                extent = self.is_whole(by=by)
                # The first is the table of the end.
                self.assertEqual([e & 0xff for e in extent.directory],
                                 [1, 2, 0])
                self.assertEqual(extent.free, 3)

    def test_an_empty_one_of_esxi(self):
        model = self.put({})
        self.rhea_io('x.vmdk', f'write -P 3 {33 * MIB} 70000')
        model[33 * MIB:33 * MIB + 70000] = b'\3' * 70000
        self.both_read('x.vmdk', model)
        # All tables up to there have their places in the guest's order.
        extent = self.is_whole(by='index')
        self.assertEqual(extent.problems('place'), [])
        self.assertEqual([e & 0xff for e in extent.directory], [0, 1, 2])

    def test_layout_of_new_images(self):
        """As hostd.log shows it of 100 MiB; and of 3 TiB, by the same rule."""
        self.make('new.vmdk', 'subformat=seSparse', '100M', tool.rhea)
        extent = self.is_whole('new')
        self.assertEqual(
            [(extent.at[n] // 512, extent.size[n] // 512) for n in vmdk.PARTS],
            [(1, 1), (2, 2), (2048, 2048), (4096, 2048), (6144, 2048),
             (8192, 2048), (10240, 2048), (12288, 204800)])
        self.assertEqual((extent.version, extent.capacity, extent.free),
                         (0x200000001, 204800, 0))
        text = contents('new.vmdk').decode()
        self.assertIn('createType="seSparse"\n', text)
        self.assertIn('RW 204800 SESPARSE "new-sesparse.vmdk"\n', text)
        self.assertIn('ddb.grain = "8"\n', text)
        self.make('big.vmdk', 'subformat=seSparse', '3T', tool.rhea)
        self.rhea_io('big.vmdk', 'write -P 5 3298534879232 4096',
                     'write -P 6 1T 12288', 'write -z 2T 1M')
        result = tool.execute(
            'qemu-io', '-r', '-c', 'read -P 5 3298534879232 4096', '-c',
            'read -P 6 1T 12288', '-c', 'read -P 0 2T 1M', 'big.vmdk')
        self.assertEqual(result.code, 0, str(result))
        self.assertNotIn('fail', result.out)
        self.rhea('check', 'big.vmdk')
        self.fails(tool.rhea('create', '-f', 'vmdk', '-o', 'subformat=seSparse',
                             'large.vmdk', '65T'), says='more than')

    def test_measured(self):
        self.make_data('raw', 40 * MIB, [(0, MIB), (20 * MIB, 70000)])
        self.rhea('convert', '-O', 'vmdk', '-o', 'subformat=seSparse', 'raw',
                  'new.vmdk')
        self.holds('new.vmdk', contents('raw'))
        self.is_whole('new')
        found = self.rhea('measure', '--output=json', '-O', 'vmdk', '-o',
                          'subformat=seSparse', 'raw').json
        size = os.path.getsize('new-sesparse.vmdk')
        self.assertLess(0, found['required'] - size)
        self.assertLess(found['required'] - size, 4096)

    def test_chains(self):
        """Four deltas over a flat disk, one of them ESX's; written in the
        middle of the work of each, and committed."""
        size = 36 * MIB
        model = bytearray(random.Random(5).randbytes(size))
        self.write('disk-flat.vmdk', model)
        self.write('disk.vmdk', vmdk.descriptor(
            'vmfs', [f'RW {size // 512} VMFS "disk-flat.vmdk"'], 1000))
        below, models = 'disk.vmdk', []
        for i, kind in enumerate(('seSparse', 'vmfsSparse', 'seSparse',
                                  'seSparse')):
            name = f'disk-{i + 1:06}.vmdk'
            self.make(name, f'subformat={kind}', program=tool.rhea, base=below)
            models.append(bytes(model))
            for turn in range(2):
                self.model_writes(name, model, 12, 100 + 2 * i + turn)
            self.holds(name, model)
            self.rhea('check', name)
            below = name
        self.same('info', '--backing-chain', below)
        for i in (1, 3, 4):
            self.is_whole(f'disk-{i:06}')
        self.rhea('commit', below)
        extent = self.is_whole('disk-000004')
        self.assertEqual(list(extent.grains()), [])
        self.holds(below, model)
        self.holds('disk-000003.vmdk', model)
        self.is_whole('disk-000003')
        self.rhea('rebase', '-b', 'disk.vmdk', '-F', 'vmdk', 'disk-000003.vmdk')
        self.holds('disk-000003.vmdk', model)
        self.rhea('rebase', '-u', '-b', '', 'disk-000001.vmdk')

    def test_room_inside(self):
        """Where the file has all places already, free ones are taken: not those
        of grains that were unmapped, nor what the bitmap says is taken."""
        data = {i: random.Random(i).randbytes(4096) for i in (3, 50, 97)}
        model = self.put(data, size=800)
        extent = vmdk.SeSparse('x-sesparse.vmdk')
        grains, bitmap = extent.at['grains'], extent.at['bitmap']
        self.change((bitmap, b'\x2f'), (grains + 6 * 4096, b'junk' * 5120))
        os.truncate('x-sesparse.vmdk', grains + 98 * 4096)
        for at in range(0, 95, 5):
            if at == 50:
                continue
            n = 512 * (at % 3 + 1)
            self.rhea_io('x.vmdk', f'write -P {at + 1} {at * 4096 + 1024} {n}')
            model[at * 4096 + 1024:at * 4096 + 1024 + n] = \
                bytes([at + 1]) * n
        self.holds('x.vmdk', model)
        used = {place for *_, place in vmdk.SeSparse(
            'x-sesparse.vmdk').grains()}
        self.assertFalse(used & {3, 5})
        self.assertLessEqual({98, 99}, used)
        self.assertEqual(self.check('x.vmdk', code=3)['leaks'], 2)
        self.check('x.vmdk', '-r', 'leaks')
        self.is_whole()
        self.rhea_io('x.vmdk', f'write -P 7 0 {400 * 1024}')
        self.holds('x.vmdk', b'\7' * 409600)
        self.is_whole()
        # With leaks in all the rest there is none.
        self.put({}, size=800)
        self.change((bitmap, b'\xff' * 13))
        os.truncate('x-sesparse.vmdk', grains + 100 * 4096)
        self.fails_io('x.vmdk', 'write 100k 4096', 'no room')
        self.check('x.vmdk', '-r', 'leaks')
        self.rhea_io('x.vmdk', 'write 100k 4096')


class Growing(SeSparse):
    def grow(self, model, size, name='x', by='place'):
        self.rhea('resize', f'{name}.vmdk', size)
        model += bytes(size - len(model))
        self.both_read(f'{name}.vmdk', model)
        return self.is_whole(name, by)

    def test_looks_as_one_that_was_made_so_large(self):
        """The model is a file with holes."""
        self.make('x.vmdk', 'subformat=seSparse', '100M', tool.rhea)
        self.write('model', b'')
        os.truncate('model', 100 * MIB)
        for turn, size in enumerate((101, 513, 1100)):
            with self.subTest(size=size):
                # More grains than are in the way, and fewer.
                at = os.path.getsize('model') - (6 + turn) * MIB
                for where, what in ((at, bytes([turn + 1]) * 4 * MIB),
                                    (30 * MIB, bytes([turn + 77]) * 12288)):
                    self.rhea_io('x.vmdk',
                                 f'write -P {what[0]} {where} {len(what)}')
                    with open('model', 'r+b') as f:
                        f.seek(where)
                        f.write(what)
                self.rhea('resize', 'x.vmdk', f'{size}M')
                os.truncate('model', size * MIB)
                for program in (self.qemu, self.rhea):
                    program('compare', '-f', 'vmdk', '-F', 'raw', 'x.vmdk',
                            'model')
                self.rhea('check', 'x.vmdk')
                extent = self.is_whole()
                self.rhea('create', '-q', '-f', 'vmdk', '-o',
                          'subformat=seSparse', f'new-{size}.vmdk', f'{size}M')
                self.assertEqual(
                    extent.data[:512],
                    contents(f'new-{size}-sesparse.vmdk')[:512])

    def test_images_of_esxi(self):
        """Whichever way the back map counts, with grains that were unmapped,
        and areas that are closer together than ours."""
        for seed, by in enumerate(('place', 'index')):
            with self.subTest(by=by):
                rng = random.Random(seed)
                model = self.put(self.scatter_se(seed), by=by)
                for turn in range(3):
                    size = len(model) + rng.randrange(1, 40000) * 512
                    self.rhea('resize', 'x.vmdk', size)
                    model += bytes(size - len(model))
                    self.is_whole(by=by)
                    self.model_writes('x.vmdk', model, 8, 10 * seed + turn)
                    self.both_read('x.vmdk', model)
                    self.is_whole(by=by)

    def test_unmapped_grains_keep_their_places(self):
        model = self.put(self.scatter_se(7))
        extent = self.is_whole()
        places = sorted(extent.grains(), key=lambda g: g[3])
        for index, number, entry, place in (places[2], places[-1]):
            self.change((extent.at['tables'] + number * 32768 + entry * 8,
                         struct.pack('<Q', vmdk.sesparse_entry(1, place))))
            guest = (index * 4096 + entry) * 4096
            n = min(4096, len(model) - guest)
            model[guest:guest + n] = bytes(n)
        self.both_read('x.vmdk', model)
        self.rhea('resize', 'x.vmdk', 60 * MIB)
        model += bytes(60 * MIB - len(model))
        self.both_read('x.vmdk', model)
        self.assertEqual(self.check('x.vmdk').get('leaks', 0), 0)
        extent = vmdk.SeSparse('x-sesparse.vmdk')
        used = {place for *_, place in extent.grains()}
        bits = int.from_bytes(extent.part('bitmap'), 'little')
        self.assertEqual(bits.bit_count(), len(places))
        self.assertEqual(len(used), len(places) - 2)

    def test_leaks_are_no_more(self):
        model = self.put(self.scatter_se(3))
        extent = self.is_whole()
        n = len(list(extent.grains()))
        bits = bytearray(extent.part('bitmap'))
        for place in (n, n + 100, n + 2000):
            bits[place // 8] |= 1 << place % 8
        self.change((extent.at['bitmap'], bits))
        self.rhea('resize', 'x.vmdk', 50 * MIB)
        model += bytes(50 * MIB - len(model))
        self.assertLessEqual(self.check('x.vmdk', code=3)['leaks'], 3)
        self.check('x.vmdk', '-r', 'leaks')
        self.both_read('x.vmdk', model)
        self.is_whole()

    def test_a_child_does_not_show_what_is_below(self):
        self.make('base.vmdk', '', '100M')
        self.qemu_io('base.vmdk', 'vmdk', 'write -P 1 0 83M')
        self.rhea('create', '-q', '-f', 'vmdk', '-o', 'subformat=seSparse',
                  '-b', 'base.vmdk', '-F', 'vmdk', 'x.vmdk', '80M')
        self.rhea_io('x.vmdk', 'write -P 2 79M 512k')
        model = bytearray(b'\1' * 80 * MIB)
        model[79 * MIB:79 * MIB + 524288] = b'\2' * 524288
        self.grow(model, 95 * MIB)
        self.rhea_io('x.vmdk', 'write -P 4 82M 512')
        model[82 * MIB:82 * MIB + 512] = b'\4' * 512
        self.both_read('x.vmdk', model)

    def test_what_does_not_grow(self):
        model = self.put(self.scatter_se(1))
        self.fails(tool.rhea('resize', '--shrink', 'x.vmdk', '10M'),
                   says='smaller')
        self.fails(tool.rhea('resize', 'x.vmdk', '65T'), says='64 TiB')
        self.both_read('x.vmdk', model)
        extent = self.is_whole()
        self.change((extent.at['bitmap'], b'\0'))
        self.fails(tool.rhea('resize', 'x.vmdk', '60M'), says='damaged')
        self.check('x.vmdk', '-r', 'all')
        self.grow(model, 60 * MIB)

    def test_a_large_one(self):
        """Its areas are holes of the file."""
        self.make('x.vmdk', 'subformat=seSparse', '1T', tool.rhea)
        self.rhea_io('x.vmdk', f'write -P 1 0 4k', f'write -P 2 {2**40 - 4096}'
                     ' 4k')
        self.rhea('resize', 'x.vmdk', '6T')
        end = 6 * 2**40 - 4096
        self.rhea_io('x.vmdk', f'write -P 3 {end} 4k')
        done = tool.execute('qemu-io', '-r', '-c', 'read -P 1 0 4k', '-c',
                            f'read -P 2 {2**40 - 4096} 4k', '-c',
                            f'read -P 0 {2**40} 16M', '-c',
                            f'read -P 3 {end} 4k', 'x.vmdk')
        self.assertNotIn('fail', self.good(done).out)
        self.rhea('check', 'x.vmdk')
        self.assertLess(os.stat('x-sesparse.vmdk').st_blocks * 512, 6 * MIB)


class Refusing(SeSparse):
    def test_a_journal_that_is_not_replayed(self):
        self.put(self.scatter_se(1), replay=1)
        before = contents('x-sesparse.vmdk')
        self.fails(tool.rhea('convert', '-O', 'raw', 'x.vmdk', 'out'),
                   says='journal')
        self.assertIn('journal to be replayed: true',
                      self.rhea('info', 'x.vmdk').out)
        self.fails_io('x.vmdk', 'write 0 512', 'journal')
        self.assertGreater(self.check('x.vmdk', code=1)['check-errors'], 0)
        self.fails(tool.rhea('check', '-r', 'all', 'x.vmdk'), says='journal')
        self.assertEqual(contents('x-sesparse.vmdk'), before)

    def test_what_can_only_be_read(self):
        for how, says in ((dict(mark=0x200), 'mark'),
                          (dict(version=0x200000002), 'version'),
                          (dict(table=1), 'sizes')):
            with self.subTest(how=how):
                model = self.put(self.scatter_se(2, [0]), **how)
                # QEMU reads none of these.
                self.both_read('x.vmdk', model, theirs=False)
                self.fails_io('x.vmdk', 'write 0 512', says)

    def test_maps_that_nobody_understands(self):
        data = self.scatter_se(3)
        for name in ('back map', 'free bitmap'):
            with self.subTest(name=name):
                self.put(data)
                extent = vmdk.SeSparse('x-sesparse.vmdk')
                n = len(list(extent.grains()))
                if name == 'back map':
                    self.change((extent.at['back_map'], bytes(8 * n)))
                else:
                    self.assertNotEqual(n % 8, 0)
                    # The first bit is the highest one of a byte.
                    self.change((extent.at['bitmap'] + n // 8, bytes(
                        [0xff00 >> n % 8 & 0xff])))
                before = contents('x-sesparse.vmdk')
                self.fails_io('x.vmdk', 'write 0 512', name)
                self.assertEqual(contents('x-sesparse.vmdk')[:len(before)],
                                 before)

    def test_areas_that_overlap(self):
        model = self.put(self.scatter_se(4))
        areas = contents('x-sesparse.vmdk')[80:208]
        for i in (0, 16, 32, 64, 80, 96):
            with self.subTest(i=i):
                self.change((80 + i, areas[48:64]))
                if i not in (0, 64):
                    self.both_read('x.vmdk', model, theirs=False)
                self.fails_io('x.vmdk', 'write 0 512')
                self.change((80, areas))
        self.both_read('x.vmdk', model)


class Checking(SeSparse):
    def make_good(self, seed=7, by='place'):
        self.model = self.put(self.scatter_se(seed), by=by)
        self.extent = self.is_whole(by=by)
        self.places = list(self.extent.grains())

    def table_entry(self, n):
        """Where the entry of grain number N stands."""
        _, number, at, _ = self.places[n]
        return self.extent.at['tables'] + number * 32768 + at * 8

    def test_what_is_repaired(self):
        nowhere = struct.pack('<Q', vmdk.sesparse_entry(3, 1 << 40))
        for by in ('place', 'index'):
            self.make_good(by=by)
            at = self.extent.at
            for name, changes, loses in (
                    ('bits lost', [(at['bitmap'], bytes(3))], None),
                    ('a wrong owner', [(at['back_map'] + 80,
                                        struct.pack('<2Q', 5, 0))], None),
                    ('free tables', [(at['volatile'] + 8, bytes(8))], None),
                    ('too many tables', [(at['volatile'] + 8, b'\xff' * 8)],
                     None),
                    ('a grain nowhere', [(self.table_entry(4), nowhere)], 4),
                    ('no such kind', [(self.table_entry(5) + 7, b'\xf0')], 5)):
                # Both count the same where it is about tables.
                if by == 'index' and name not in ('bits lost', 'a wrong owner'):
                    continue
                with self.subTest(by=by, name=name):
                    self.make_good(by=by)
                    self.change(*changes)
                    before = self.check('x.vmdk', code=2)
                    self.assertGreater(before['corruptions'], 0)
                    found = self.check('x.vmdk', '-r', 'all')
                    self.assertEqual(found['corruptions-fixed'],
                                     before['corruptions'])
                    if loses is not None:
                        index, _, entry, _ = self.places[loses]
                        guest = (index * 4096 + entry) * 4096
                        self.model[guest:guest + 4096] = bytes(4096)
                    self.both_read('x.vmdk', self.model)
                    self.is_whole(by=by)
                    self.model_writes('x.vmdk', self.model, 5, 1)
                    self.both_read('x.vmdk', self.model)

    def test_what_cannot_be_repaired(self):
        self.make_good()
        at = self.table_entry(3)
        with open('x-sesparse.vmdk', 'rb') as f:
            f.seek(at)
            entry = f.read(8)
        self.change((self.table_entry(2), entry))
        for args in ([], ['-r', 'all'], []):
            found = self.check('x.vmdk', *args, code=2)
            self.assertEqual(found['corruptions'], 2)
        self.make_good()
        self.change((self.extent.at['directory'] + 16,
                     contents('x-sesparse.vmdk')[self.extent.at['directory']:]
                     [:8]))
        self.assertGreater(self.check('x.vmdk', code=2)['corruptions'], 0)

    def test_a_table_nowhere(self):
        self.make_good()
        self.change((self.extent.at['directory'], struct.pack('<Q', 1 << 60 | 77)))
        self.fails_io('x.vmdk', 'read 0 512', 'damaged')
        self.fails_io('x.vmdk', f'write {33 * MIB} 512', 'damaged')
        self.assertEqual(self.check('x.vmdk', code=2)['corruptions'], 1)
        self.check('x.vmdk', '-r', 'all')
        self.model[:16 * MIB] = bytes(16 * MIB)
        self.both_read('x.vmdk', self.model)
        self.is_whole()

    def test_leaks(self):
        self.make_good()
        n = len(self.places)
        more = bytearray(self.extent.part('bitmap'))
        for place in (n, n + 1, n + 100):
            more[place // 8] |= 1 << place % 8
        self.change((self.extent.at['bitmap'], more))
        self.assertEqual(self.check('x.vmdk', code=3)['leaks'], 3)
        self.check('x.vmdk', '-r', 'leaks')
        self.is_whole()
        self.both_read('x.vmdk', self.model)
        # What a crash left at the end of the file.
        size = os.path.getsize('x-sesparse.vmdk')
        os.truncate('x-sesparse.vmdk', size + 5 * 4096)
        self.check('x.vmdk')
        self.check('x.vmdk', '-r', 'leaks')
        self.assertEqual(os.path.getsize('x-sesparse.vmdk'), size)

    def test_places_of_unmapped_grains_are_kept(self):
        for by in ('place', 'index'):
            with self.subTest(by=by):
                self.make_good(by=by)
                index, _, entry, place = self.places[-1]
                self.change((self.table_entry(-1), struct.pack(
                    '<Q', vmdk.sesparse_entry(1, place))))
                guest = (index * 4096 + entry) * 4096
                n = min(4096, len(self.model) - guest)
                self.model[guest:guest + n] = bytes(n)
                self.check('x.vmdk')
                self.check('x.vmdk', '-r', 'all')
                self.both_read('x.vmdk', self.model)
                bits = vmdk.SeSparse('x-sesparse.vmdk').part('bitmap')
                self.assertTrue(bits[place // 8] >> place % 8 & 1)
                # Written to again, it has another place, and that one leaks.
                self.rhea_io('x.vmdk', f'write -P 9 {guest} 512')
                self.model[guest:guest + 512] = b'\x09' * 512
                self.assertEqual(self.check('x.vmdk', code=3)['leaks'], 1)
                self.check('x.vmdk', '-r', 'leaks')
                self.is_whole(by=by)

    def test_what_is_cut_off(self):
        self.make_good()
        os.truncate('x-sesparse.vmdk', self.extent.at['grains'] + 4096 * 3)
        self.assertGreater(self.check('x.vmdk', code=2)['corruptions'], 0)
        shutil.copy('x-sesparse.vmdk', 'y')
        self.check('x.vmdk', '-r', 'all')
        self.rhea('convert', '-O', 'raw', 'x.vmdk', 'out')


if __name__ == '__main__':
    tool.main()
