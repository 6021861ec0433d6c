# SPDX-License-Identifier: MIT
"""VHDX: QEMU, libvhdi and 7-Zip read what we write, and we what QEMU writes;
what these refuse (parents, other sectors, logs) is judged by a reader and a
writer of the tests' own, and by raw copies made beside.

libvhdi 20210425 reads blocks of a child that are zeroes (states 1, 2 and 3) from
the parent, so it is not asked of these."""
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413
import images_vhdx as vhdx  # noqa: E402  pylint: disable=C0413

K = 1024

# Debian's own Python has libvhdi. Arguments: the images from the top down.
LIBVHDI = r'''
import hashlib, sys
import pyvhdi
files = []
for name in sys.argv[1:]:
    f = pyvhdi.file()
    f.open(name)
    files.append(f)
for above, below in zip(files, files[1:]):
    above.set_parent(below)
digest = hashlib.sha256()
left = files[0].get_media_size()
while left:
    data = files[0].read_buffer(min(left, 1 << 20))
    digest.update(data)
    left -= len(data)
print(digest.hexdigest())
'''


def has_libvhdi():
    return subprocess.run(['/usr/bin/python3', '-c', 'import pyvhdi'],
                          capture_output=True, check=False).returncode == 0


class Vhdx(tool.Images):
    FORMAT = 'vhdx'

    def create(self, path, size, options='', *more):
        args = ['-o', options] if options else []
        self.rhea('create', '-q', '-f', 'vhdx', *args, *more, path, size)

    def clean(self, path):
        """By our own check, and by looking."""
        self.rhea('check', path)
        image = vhdx.read(path)
        self.assertEqual(os.path.getsize(path), image.file_end, path)
        return image

    def libvhdi_reads(self, want, *names):
        if not has_libvhdi():
            return
        out = subprocess.run(['/usr/bin/python3', '-c', LIBVHDI, *names],
                             capture_output=True, check=False)
        self.assertEqual(out.stdout.decode().strip(),
                         hashlib.sha256(want).hexdigest(),
                         out.stderr.decode())

    def scribble(self, rng, shadow, count, zeroes=True):
        """Random guest writes, made in SHADOW too. ZEROES: some of them are
        told to be."""
        commands = tool.random_writes(
            rng, shadow, count, (512, 12 * K, 70 * 512, 3 * MIB),
            ('-z', '-z -u') if zeroes else ('-P 0',))
        for at in range(len(commands), 0, -1):
            if rng.random() < 0.2:
                commands.insert(at, 'flush')
        return commands

    # --- fixed and dynamic, with QEMU, libvhdi and 7-Zip ---

    def test_random_writes_both_ways(self):
        options = ('', 'subformat=fixed', 'block_size=1M',
                   'block_state_zero=off,block_size=2M', 'log_size=3M',
                   'subformat=fixed,block_state_zero=off')
        for seed, text in enumerate(options):
            for maker in (tool.rhea, tool.qemu):
                with self.subTest(maker=maker.__name__, options=text):
                    self.random_writes(maker, text, seed)

    def random_writes(self, maker, options, seed):
        rng = random.Random(seed)
        size = 9 * MIB + 512 * 7
        args = ['-o', options] if options else []
        self.good(maker('create', '-q', '-f', 'vhdx', *args, 'new', size))
        shadow = bytearray(size)
        for turn in range(4):
            commands = self.scribble(rng, shadow, 5)
            if turn % 2:
                self.io('new', *commands)
                self.rhea('check', 'new')
            else:
                self.qemu_io('new', 'vhdx', *commands)
            self.sound('new', 'vhdx')
        self.assertEqual(self.raw('new'), shadow)
        self.qemu('convert', '-O', 'raw', '-f', 'vhdx', 'new', 'theirs')
        self.assertEqual(contents('theirs'), shadow)
        if maker is tool.rhea:
            self.libvhdi_reads(shadow, 'new')
            self.assertEqual(vhdx.flatten(vhdx.read('new')), shadow)

    def test_7zip_reads_ours(self):
        self.seven_zip_reads('VHDX', 'subformat=dynamic', 'subformat=fixed',
                             'block_size=1M', 'block_size=256M')

    def test_conversion_from_and_to_all(self):
        self.make_data('raw', 7 * MIB, [(0, 700), (MIB, MIB), (6 * MIB, 99)])
        for i, options in enumerate(('', 'subformat=fixed', 'block_size=1M',
                                     'block_size=256M', 'log_size=2M',
                                     'block_state_zero=off',
                                     'physical_sector_size=4096',
                                     'logical_sector_size=4096',
                                     'logical_sector_size=4096,block_size=1M,'
                                     'subformat=fixed')):
            with self.subTest(options=options):
                args = ['-o', options] if options else []
                self.rhea('convert', '-O', 'vhdx', *args, 'raw', 'new')
                image = self.clean('new')
                self.assertEqual(self.raw('new'), contents('raw'))
                self.assertEqual(vhdx.flatten(image), contents('raw'))
                self.rhea('convert', '-O', 'qcow2', 'new', 'q')
                self.identical('q', 'qcow2', 'raw', 'raw')
                self.libvhdi_reads(contents('raw'), 'new')
                if i < 7:
                    self.sound('new', 'vhdx')
                    self.identical('new', 'vhdx', 'raw', 'raw')

    def test_info_and_the_line_of_create_as_qemu(self):
        for options in ('', 'subformat=fixed', 'block_size=1M,log_size=2M',
                        'block_state_zero=off'):
            args = ['-o', options] if options else []
            self.same('create', '-f', 'vhdx', *args, 'new', '20M')
            self.same_json('info', 'new', drop=('format-specific', 'children',
                                                'actual-size'))

    def test_measured_sizes_are_right(self):
        self.make_data('raw', 7 * MIB, [(0, 700), (MIB, MIB), (6 * MIB, 99)])
        for options in ('subformat=dynamic', 'subformat=fixed',
                        'block_size=1M', 'log_size=5M'):
            want = self.rhea('measure', '--output=json', '-O', 'vhdx', '-o',
                             options, '-f', 'raw', 'raw').json
            self.rhea('convert', '-O', 'vhdx', '-o', options, 'raw', 'new')
            self.assertEqual(want['required'], os.path.getsize('new'), options)

    def test_facts(self):
        self.create('new', '5G', 'block_size=4M,logical_sector_size=4096')
        image = vhdx.read('new')
        info = self.rhea('info', '--output=json', 'new').json
        self.assertEqual(info['cluster-size'], 4 * MIB)
        facts = info['format-specific']['data']
        self.assertEqual(facts, {
            'subformat': 'dynamic', 'block-size': 4 * MIB,
            'logical-sector-size': 4096, 'physical-sector-size': 4096,
            'log-size': MIB, 'log-pending': False,
            'disk-id': str(image.disk_id),
            'data-write-id': str(image.data_write),
            'creator': image.creator})
        self.assertRegex(image.creator, r'^Rhea v\d')

    def test_what_cannot_be_created(self):
        for options in ('block_size=3M', 'logical_sector_size=1024',
                        'physical_sector_size=8192', 'subformat=other',
                        'log_size=4G', 'unknown=1'):
            self.fails(tool.rhea('create', '-f', 'vhdx', '-o', options, 'new',
                                 '1M'))
        self.fails(tool.rhea('create', '-f', 'vhdx', 'new', '65T'),
                   says='64 TiB')
        self.assertFalse(os.path.exists('new'))

    def test_a_large_disk(self):
        self.create('new', '64T', 'block_size=256M')
        self.io('new', 'write -P 7 63.9T 1M', 'read -P 7 63.9T 1M')
        self.sound('new', 'vhdx')
        self.rhea('check', 'new')
        self.qemu_io('new', 'vhdx', 'read -P 7 63.9T 1M')

    # --- what QEMU refuses, or never makes, from the writer above ---

    def test_all_sorts_of_files_are_read(self):
        sorts = ((MIB, 512, vhdx.DYNAMIC), (2 * MIB, 512, vhdx.FIXED),
                 (MIB, 4096, vhdx.DYNAMIC), (4 * MIB, 4096, vhdx.FIXED),
                 (8 * MIB, 512, vhdx.DYNAMIC))
        for seed, (block, sector, kind) in enumerate(sorts):
            with self.subTest(block=block, sector=sector, kind=kind):
                made = vhdx.Image(3 * block + 5 * 4096, block, sector,
                                  kind=kind, physical=4096)
                made.scatter(seed).write('new', seed)
                want = vhdx.flatten(made)
                self.assertTrue(self.raw('new') == want)
                self.rhea('check', 'new')
                facts = self.rhea('info', '--output=json', 'new').json[
                    'format-specific']['data']
                self.assertEqual(facts['subformat'], kind)
                self.assertEqual(facts['logical-sector-size'], sector)
                self.assertEqual(facts['data-write-id'], str(made.data_write))
                self.assertEqual(facts['creator'], 'a test')

    def test_all_sorts_of_files_are_written(self):
        for seed, (sector, kind) in enumerate(
                [(512, vhdx.DYNAMIC), (4096, vhdx.DYNAMIC), (512, vhdx.FIXED),
                 (4096, vhdx.DYNAMIC)]):
            with self.subTest(sector=sector, kind=kind):
                rng = random.Random(seed)
                made = vhdx.Image(7 * MIB + 4096, MIB, sector, kind=kind)
                made.scatter(seed).write('new', seed)
                want = bytearray(vhdx.flatten(made))
                for _ in range(3):
                    self.io('new', *self.scribble(rng, want, 6))
                self.rhea('check', 'new')
                now = vhdx.read('new')
                self.assertTrue(vhdx.flatten(now) == want)
                self.assertTrue(self.raw('new') == want)
                self.assertNotEqual(now.data_write, made.data_write)
                self.assertEqual(now.disk_id, made.disk_id)

    def test_what_has_to_be_known_is(self):
        other = uuid.UUID(int=1234567)
        made = vhdx.Image(3 * MIB).scatter(1)
        made.write('new', more=[(other, 6, b'what')])
        self.fails(tool.rhea('map', 'new'), says=str(other))
        made.write('new', more=[(other, 2, b'what')])
        self.assertEqual(self.raw('new'), vhdx.flatten(made))
        made.write('new', regions=[(other, 900 * MIB, MIB, 1)])
        self.fails(tool.rhea('map', 'new'), says=str(other))
        made.write('new', regions=[(other, 900 * MIB, MIB, 0)])
        self.assertEqual(self.raw('new'), vhdx.flatten(made))

    # --- the log ---

    def test_logs_are_replayed(self):
        """In memory where the image is only read, by the check, and where it is
        written to."""
        for seed in range(12):
            kind = (vhdx.DYNAMIC, vhdx.DIFF)[seed % 2]
            with self.subTest(seed=seed):
                base = vhdx.Image(5 * MIB).scatter(100 + seed, 1)
                base.write('base.vhdx', seed)
                made = base.child('base.vhdx') if kind == vhdx.DIFF else \
                    vhdx.Image(5 * MIB)
                made.scatter(seed).write('new', seed, log=True)
                chain = (made, base) if kind == vhdx.DIFF else (made,)
                want = vhdx.flatten(*chain)
                before = contents('new')
                self.assertTrue(self.raw('new') == want)
                facts = self.rhea('info', '--output=json', 'new').json
                self.assertTrue(facts['dirty-flag'])
                self.assertTrue(
                    facts['format-specific']['data']['log-pending'])
                self.assertEqual(tool.rhea('check', 'new').code, 2)
                self.assertTrue(contents('new') == before)
                shutil.copy('new', 'again')
                repaired = tool.rhea('check', '-r', 'all', 'new')
                self.assertEqual(repaired.code, 0, str(repaired))
                self.assertIn('1 corruptions', repaired.out)
                self.rhea('check', 'new')
                self.assertTrue(vhdx.flatten(vhdx.read('new'), *chain[1:]) ==
                                want)
                # A parent stays the same one.
                self.assertEqual(vhdx.read('new').data_write, made.data_write)
                self.io('again', 'write -P 1 0 512')
                want = b'\1' * 512 + want[512:]
                self.assertTrue(vhdx.flatten(vhdx.read('again'), *chain[1:]) ==
                                want)

    def test_what_was_cut_short_is_brought_into_order(self):
        """By QEMU and by us, from either."""
        for writer in ('rhea', 'qemu'):
            for reader in (tool.rhea, tool.qemu):
                with self.subTest(writer=writer, reader=reader.__name__):
                    self.create('new', '20M', 'block_size=1M')
                    commands = ['write -P 1 0 1M', 'write -P 2 5M 3M', 'flush',
                                'write -P 3 11M 64k', 'flush', 'abort']
                    if writer == 'rhea':
                        self.rhea_io('new', *commands)
                        self.assertEqual(tool.qemu('check', 'new').code, 1)
                    else:
                        args = [a for c in commands for a in ('-c', c)]
                        tool.execute('qemu-io', '-f', 'vhdx', *args, 'new')
                    want = b'\1' * MIB + bytes(4 * MIB) + b'\2' * 3 * MIB + \
                        bytes(3 * MIB) + b'\3' * 64 * K
                    want = want.ljust(20 * MIB, b'\0')
                    self.assertTrue(self.raw('new') == want)
                    done = reader('check', '-r', 'all', '-f', 'vhdx', 'new')
                    self.assertEqual(done.code, 0, str(done))
                    self.clean('new')
                    self.assertTrue(self.raw('new') == want)
                    self.qemu('convert', '-O', 'raw', 'new', 'theirs')
                    self.assertTrue(contents('theirs') == want)

    def test_damaged_logs(self):
        vhdx.Image(5 * MIB).scatter(3).write('new', 3, log=True)
        data = contents('new')
        # Each entry loses a bit: nothing whole is left.
        for match in re.finditer(rb'loge', data):
            at = match.start()
            if at % 4096 == 0:
                tool.poke('new', at + 70, bytes([data[at + 70] ^ 1]))
        self.fails(tool.rhea('map', 'new'), says='log.*damaged')
        self.assertEqual(tool.rhea('check', 'new').code, 2)
        # What was to be in the tables is lost, but they can be looked at.
        tool.rhea('check', '-r', 'all', 'new')
        self.rhea('info', 'new')
        self.assertFalse(self.rhea('info', '--output=json', 'new')
                         .json['dirty-flag'])

    def test_a_file_that_was_cut_off(self):
        self.create('new', '20M', 'block_size=1M')
        self.io('new', 'write -P 1 0 5M')
        for end in (8 * MIB, 7 * MIB + 4096):
            shutil.copy('new', 'cut')
            with open('cut', 'r+b') as f:
                f.truncate(end)
            self.fails(tool.rhea('convert', '-O', 'raw', 'cut', 'flat'),
                       says='past the end')
            result = self.rhea_io('cut', 'write 0 512')
            self.assertNotEqual(result.code, 0)
            self.assertIn('cut off', result.err)
            self.assertEqual(os.path.getsize('cut'), end)
            self.assertEqual(tool.rhea('check', 'cut').code, 2)

    def test_one_of_two_is_enough(self):
        self.create('new', '5M')
        self.io('new', 'write -P 1 0 1M')
        good = contents('new')
        for place in (64, 128, 192, 256):
            with self.subTest(place=place):
                shutil.copy('new', 'bad')
                tool.poke('bad', place * K + 20, b'damage')
                self.assertEqual(self.raw('bad'),
                                 b'\1' * MIB + bytes(4 * MIB))
                self.assertEqual(tool.rhea('check', 'bad').code, 2)
                self.assertEqual(tool.rhea('check', '-r', 'all', 'bad').code,
                                 0)
                self.clean('bad')
                self.assertEqual(contents('bad')[2 * MIB:], good[2 * MIB:])
        for place in ((64, 128), (192, 256)):
            shutil.copy('new', 'bad')
            for i in place:
                tool.poke('bad', i * K + 20, b'damage')
            self.fails(tool.rhea('map', 'bad'), says='both')

    # --- parents ---

    def chain(self, count, seed=3, sector=512, **how):
        """Images 0, 1, ... each over the one before, and what they hold."""
        made = [vhdx.Image(5 * MIB + 4096, MIB, sector).scatter(seed, 1)
                .write('0.vhdx', seed)]
        for i in range(1, count):
            made.append(made[-1].child(f'{i - 1}.vhdx')
                        .scatter(seed + i, 0.6, **how)
                        .write(f'{i}.vhdx', seed + i))
        return made

    def test_chains_from_elsewhere_are_read(self):
        for sector in (512, 4096):
            for count in (2, 3, 5):
                with self.subTest(sector=sector, count=count):
                    made = self.chain(count, sector=sector)
                    want = vhdx.flatten(*reversed(made))
                    self.assertTrue(self.raw(f'{count - 1}.vhdx') == want)
        chain = self.rhea('info', '--backing-chain', '--output=json',
                          '4.vhdx').json
        self.assertEqual([i['filename'] for i in chain],
                         [f'{i}.vhdx' for i in (4, 3, 2, 1, 0)])
        parent = chain[0]['format-specific']['data']['parent']
        self.assertEqual(parent['relative-path'], '.\\3.vhdx')
        self.assertEqual(parent['linkage'], str(made[3].data_write))

    def test_a_chain_as_libvhdi_reads_it(self):
        made = self.chain(4, states=(vhdx.NOT_PRESENT,))
        want = vhdx.flatten(*reversed(made))
        self.libvhdi_reads(want, '3.vhdx', '2.vhdx', '1.vhdx', '0.vhdx')
        self.assertTrue(self.raw('3.vhdx') == want)

    def test_what_we_write_over_parents(self):
        """Random writes to chains, with a raw copy beside each image."""
        for seed, (size, options) in enumerate((
                (9 * MIB + 512, 'block_size=1M'),
                (9 * MIB + 4096, 'block_size=2M,logical_sector_size=4096'),
                (30 * MIB, ''))):
            with self.subTest(options=options):
                self.write_over_parents(seed, size, options, seed != 0)
                for i in range(4):
                    os.unlink(f'{i}.vhdx')

    def write_over_parents(self, seed, size, options, zeroes):
        rng = random.Random(seed)
        self.create('0.vhdx', size, options)
        shadow = bytearray(size)
        for i in range(4):
            if i:
                self.rhea('create', '-q', '-f', 'vhdx', '-o', 'block_size=1M',
                          '-b', f'{i - 1}.vhdx', '-F', 'vhdx', f'{i}.vhdx')
            for _ in range(2):
                self.io(f'{i}.vhdx', *self.scribble(rng, shadow, 8, zeroes))
            self.clean(f'{i}.vhdx')
            self.assertTrue(self.raw(f'{i}.vhdx') == shadow)
            names = [f'{j}.vhdx' for j in range(i, -1, -1)]
            files = [vhdx.read(name) for name in names]
            self.assertTrue(vhdx.flatten(*files) == shadow)
            if not zeroes:
                self.libvhdi_reads(shadow, *names)
            for above, below in zip(files, files[1:]):
                self.assertEqual(above.kind, vhdx.DIFF)
                self.assertEqual(above.disk_id, below.disk_id)
                self.assertEqual(above.pairs['parent_linkage'],
                                 f'{{{below.data_write}}}')

    def test_parents_are_found_by_other_systems_names(self):
        base = vhdx.Image(3 * MIB).scatter(1, 1).write('base.vhdx')
        os.mkdir('sub')
        names = ({'relative_path': '.\\base.vhdx'},
                 {'relative_path': 'base.vhdx'},
                 {'volume_path': '\\\\?\\Volume{26A21BDA-A627-11D7-9931-'
                                 '806E6F6E6963}\\a b\\base.vhdx'},
                 {'absolute_win32_path': '\\\\?\\D:\\vm\\base.vhdx'},
                 {'absolute_win32_path': '\\\\server\\share\\base.vhdx'},
                 {'relative_path': '..\\gone\\base.vhdx',
                  'absolute_win32_path': '\\\\?\\D:\\base.vhdx'},
                 {'relative_path': '..\\base.vhdx', 'folder': 'sub'})
        for names in names:
            with self.subTest(names=names):
                made = base.child('base.vhdx')
                folder = names.pop('folder', '.')
                made.pairs = {'parent_linkage': f'{{{base.data_write}}}',
                              **names}
                made.scatter(2).write(f'{folder}/child.vhdx')
                self.assertTrue(self.raw(f'{folder}/child.vhdx') ==
                                vhdx.flatten(made, base))

    def test_parents_in_other_folders(self):
        os.mkdir('away')
        self.create('away/base.vhdx', '3M')
        self.io('away/base.vhdx', 'write -P 9 0 3M')
        for name in ('away/base.vhdx', os.path.abspath('away/base.vhdx')):
            self.rhea('create', '-q', '-f', 'vhdx', '-b', name, '-F', 'vhdx',
                      'new.vhdx')
            self.assertEqual(self.raw('new.vhdx'), b'\x09' * 3 * MIB)
            info = self.rhea('info', '--output=json', 'new.vhdx').json
            self.assertEqual(info['backing-filename'], name)
            self.assertEqual(info['backing-filename-format'], 'vhdx')
        pairs = vhdx.read('new.vhdx').pairs
        self.assertEqual(pairs['relative_path'], '.\\base.vhdx')

    def test_a_missing_parent_is_named(self):
        self.chain(2)
        os.unlink('0.vhdx')
        for command in (['convert', '-O', 'raw', '1.vhdx', 'flat'],
                        ['map', '1.vhdx'], ['compare', '1.vhdx', '1.vhdx']):
            result = tool.rhea(*command)
            self.assertNotEqual(result.code, 0)
            self.assertIn('1.vhdx', result.err)
            self.assertIn('0.vhdx', result.err)
        self.rhea('info', '1.vhdx')

    def test_a_changed_parent_is_an_error_that_names_both(self):
        for change in ('write -P 1 0 512', 'write -z 0 1M'):
            self.chain(3)
            self.io('0.vhdx', change)
            self.fails(tool.rhea('convert', '-O', 'raw', '2.vhdx', 'flat'),
                       says="'1.vhdx' and its parent '0.vhdx'.*changed")
            # Nor is it written to.
            self.assertNotEqual(self.rhea_io('1.vhdx', 'write 0 512').code, 0)

    def test_a_second_identity_is_one_too(self):
        made = self.chain(2)
        made[1].pairs['parent_linkage2'] = f'{{{made[0].data_write}}}'
        made[1].pairs['parent_linkage'] = f'{{{uuid.uuid4()}}}'
        made[1].write('1.vhdx')
        self.assertTrue(self.raw('1.vhdx') == vhdx.flatten(*reversed(made)))

    def test_opening_for_writing_does_not_change_a_parent(self):
        made = self.chain(2)
        self.io('0.vhdx', 'read 0 512')
        self.rhea('check', '-r', 'all', '0.vhdx')
        self.assertTrue(self.raw('1.vhdx') == vhdx.flatten(*reversed(made)))

    def test_a_changed_parent_can_be_accepted(self):
        made = self.chain(2)
        self.io('0.vhdx', 'write -P 7 0 5M')
        self.fails(tool.rhea('map', '1.vhdx'))
        self.rhea('rebase', '-u', '-b', '0.vhdx', '-F', 'vhdx', '1.vhdx')
        made[0] = vhdx.read('0.vhdx')
        self.assertTrue(self.raw('1.vhdx') == vhdx.flatten(*reversed(made)))

    def test_commit_and_rebase(self):
        made = self.chain(4)
        want = vhdx.flatten(*reversed(made))
        other = made[0].child('0.vhdx')  # it is to notice
        other.write('other.vhdx')
        self.rhea('commit', '-b', '1.vhdx', '3.vhdx')
        self.assertTrue(self.raw('3.vhdx') == want)
        self.assertTrue(self.raw('1.vhdx') == want)
        self.raw('other.vhdx')
        self.rhea('commit', '1.vhdx')
        self.assertTrue(self.raw('0.vhdx') == want)
        self.rhea('check', '0.vhdx')
        self.fails(tool.rhea('convert', '-O', 'raw', 'other.vhdx', 'flat'),
                   says='changed')
        self.assertTrue(self.raw('1.vhdx') == want)
        self.assertFalse(vhdx.read('1.vhdx').blocks)

        made = self.chain(4)
        self.rhea('rebase', '-b', '0.vhdx', '-F', 'vhdx', '3.vhdx')
        for name in ('1.vhdx', '2.vhdx'):
            os.unlink(name)
        self.assertTrue(self.raw('3.vhdx') == want)
        self.rhea('rebase', '-b', '', '3.vhdx')
        os.unlink('0.vhdx')
        self.assertTrue(self.raw('3.vhdx') == want)
        self.assertEqual(vhdx.read('3.vhdx').kind, vhdx.DYNAMIC)
        self.rhea('check', '3.vhdx')
        self.sound('3.vhdx', 'vhdx')
        self.qemu('convert', '-O', 'raw', '3.vhdx', 'theirs')
        self.assertTrue(contents('theirs') == want)

    def test_a_parent_for_a_disk_that_had_none(self):
        base = vhdx.Image(5 * MIB).scatter(1, 1).write('base.vhdx')
        made = vhdx.Image(5 * MIB).scatter(2, 0.6).write('new.vhdx')
        want = vhdx.flatten(made)
        self.rhea('rebase', '-b', 'base.vhdx', '-F', 'vhdx', 'new.vhdx')
        self.assertTrue(self.raw('new.vhdx') == want)
        now = vhdx.read('new.vhdx')
        self.assertEqual(now.kind, vhdx.DIFF)
        self.assertTrue(vhdx.flatten(now, base) == want)

    def test_what_cannot_be_a_parent(self):
        self.rhea('create', '-q', '-f', 'raw', 'base.raw', '1M')
        self.create('base.vhdx', '1M', 'logical_sector_size=4096')
        self.fails(tool.rhea('create', '-f', 'vhdx', '-b', 'base.raw', '-F',
                             'raw', 'new.vhdx'), says='VHDX image')
        self.fails(tool.rhea('create', '-u', '-f', 'vhdx', '-b', 'gone.vhdx',
                             '-F', 'vhdx', 'new.vhdx', '1M'), says='identity')
        self.fails(tool.rhea('create', '-f', 'vhdx', '-o',
                             'logical_sector_size=512', '-b', 'base.vhdx',
                             '-F', 'vhdx', 'new.vhdx'), says='4096')
        self.fails(tool.rhea('create', '-f', 'vhdx', '-o', 'subformat=fixed',
                             '-b', 'base.vhdx', '-F', 'vhdx', 'new.vhdx'))
        self.assertFalse(os.path.exists('new.vhdx'))

    # --- size ---

    def test_growing(self):
        for seed in range(6):
            rng = random.Random(seed)
            kind = (vhdx.DYNAMIC, vhdx.FIXED)[seed % 2]
            made = vhdx.Image(3 * MIB + 4096 * (seed % 3), MIB,
                              (512, 4096)[seed // 3], kind=kind)
            want = vhdx.flatten(made.scatter(seed).write('new', seed))
            for size in (len(want) + 4096, 9 * MIB, 17 * MIB + 8192):
                with self.subTest(seed=seed, size=size):
                    self.rhea('resize', '-f', 'vhdx', 'new', size)
                    want = want.ljust(size, b'\0')
                    self.assertTrue(self.raw('new') == want)
                    self.rhea('check', 'new')
                    self.assertTrue(vhdx.flatten(vhdx.read('new')) == want)
                    at = rng.randrange(size // 512 - 20) * 512
                    self.io('new', f'write -P 1 {at} 10k')
                    want = want[:at] + b'\1' * 10240 + want[at + 10240:]
                    self.assertTrue(self.raw('new') == want)

    def test_shrinking(self):
        """And growing again, which does not bring back what was lost."""
        for seed in (0, 1, 5):
            kind = (vhdx.DYNAMIC, vhdx.FIXED)[seed % 2]
            sector = (512, 4096)[seed // 3]
            made = vhdx.Image(13 * MIB + 4096 * seed, MIB, sector, kind=kind)
            want = vhdx.flatten(made.scatter(seed).write('new', seed))
            for size in (7 * MIB + 20 * sector, MIB - 4096):
                with self.subTest(seed=seed, size=size):
                    self.shrink('new', size)
                    self.assertTrue(self.raw('new') == want[:size])
                    self.shrink('new', 9 * MIB)
                    again = want[:size].ljust(9 * MIB, b'\0')
                    self.assertTrue(self.raw('new') == again)
                    want = again
            self.assertTrue(vhdx.flatten(vhdx.read('new')) == want)
            self.shrink('new', 4096)
            self.assertLess(os.stat('new').st_blocks * 512, 5 * MIB)

    def shrink(self, name, size):
        self.rhea('resize', '--shrink', '-f', 'vhdx', name, size)
        self.rhea('check', name)
        if vhdx.read(name).sector == 512 and vhdx.read(name).kind != vhdx.DIFF:
            self.sound(name, 'vhdx')

    def test_what_became_free_is_used_again(self):
        """By a disk that grows again, and of what QEMU has left unused."""
        for options in ('block_size=1M', 'block_size=2M,subformat=fixed'):
            with self.subTest(options=options):
                self.create('new', '24M', options)
                self.io('new', 'write -P 1 16M 8M', 'write -P 2 0 4M',
                        'write -P 3 8M 2M')
                self.shrink('new', 10 * MIB)
                self.rhea('resize', 'new', '24M')
                size = os.path.getsize('new')
                self.io('new', 'write -P 4 20M 4M')
                if 'fixed' not in options:
                    self.assertEqual(os.path.getsize('new'), size)
                self.rhea('check', 'new')
                self.sound('new', 'vhdx')
                want = (b'\2' * 4 * MIB + bytes(4 * MIB) + b'\3' * 2 * MIB +
                        bytes(10 * MIB) + b'\4' * 4 * MIB)
                self.assertTrue(self.raw('new') == want)
                self.assertTrue(vhdx.flatten(vhdx.read('new')) == want)
                self.qemu_io('new', 'vhdx', 'write -P 5 10M 3M')
                self.io('new', 'write -P 6 14M 2M')
                self.rhea('check', 'new')
                self.sound('new', 'vhdx')
                want = (want[:10 * MIB] + b'\5' * 3 * MIB + bytes(MIB) +
                        b'\6' * 2 * MIB + want[16 * MIB:])
                self.assertTrue(self.raw('new') == want)
                self.qemu('convert', '-O', 'raw', 'new', 'theirs')
                self.assertTrue(contents('theirs') == want)
        self.qemu('create', '-q', '-f', 'vhdx', '-o',
                  'subformat=fixed,block_size=1M', 'theirs.vhdx', '8M')
        size = os.path.getsize('theirs.vhdx')
        self.io('theirs.vhdx', 'write -P 7 2M 3M')
        self.assertEqual(os.path.getsize('theirs.vhdx'), size)
        self.sound('theirs.vhdx', 'vhdx')
        self.qemu('convert', '-O', 'raw', 'theirs.vhdx', 'theirs')
        self.assertTrue(contents('theirs') == bytes(2 * MIB) +
                        b'\7' * 3 * MIB + bytes(3 * MIB))

    def test_shrinking_a_child(self):
        base = vhdx.Image(9 * MIB).scatter(1, 1).write('0.vhdx')
        child = base.child('0.vhdx').scatter(2, 0.7).write('1.vhdx')
        want = vhdx.flatten(child, base)
        for size in (8 * MIB, 3 * MIB + 512, 512):
            self.shrink('1.vhdx', size)
            self.assertTrue(self.raw('1.vhdx') == want[:size])
        self.rhea('resize', '1.vhdx', 9 * MIB)
        self.assertTrue(self.raw('1.vhdx') ==
                        want[:512].ljust(9 * MIB, b'\0'))

    def test_amend(self):
        self.create('new', '5M')
        self.io('new', 'write -P 3 1M 100k')
        before = self.raw('new')
        was = self.rhea('info', '--output=json', 'new').json
        for size in (4096, 512):
            self.rhea('amend', '-f', 'vhdx', '-o',
                      f'physical_sector_size={size},disk_id=new', 'new')
            now = self.rhea('info', '--output=json', 'new').json
            facts = now['format-specific']['data']
            self.assertEqual(facts['physical-sector-size'], size)
            for name in ('disk-id', 'data-write-id'):
                self.assertNotEqual(facts[name],
                                    was['format-specific']['data'][name])
            self.rhea('check', 'new')
            self.sound('new', 'vhdx')
            self.assertEqual(self.raw('new'), before)
            was = now
        wanted = '12345678-9abc-def0-1234-56789abcdef0'
        self.rhea('amend', '-o', f'disk_id={wanted}', 'new')
        self.assertIn(wanted, self.rhea('info', 'new').out)
        for bad in ('disk_id=5', 'physical_sector_size=1024', 'block_size=2M'):
            self.fails(tool.rhea('amend', '-o', bad, 'new'))

    def test_growing_what_qemu_made(self):
        self.make_data('raw', 3 * MIB, [(0, 3 * MIB)])
        for options in ('block_size=1M', 'subformat=fixed',
                        'block_state_zero=off'):
            self.qemu('convert', '-O', 'vhdx', '-o', options, 'raw', 'new')
            self.rhea('resize', '-f', 'vhdx', 'new', '40M')
            if 'fixed' not in options:
                self.rhea('resize', '-f', 'vhdx', 'new', '300G')
            self.sound('new', 'vhdx')
            self.qemu('dd', '-f', 'vhdx', '-O', 'raw', 'bs=1M', 'count=3',
                      'if=new', 'of=out')
            self.assertEqual(contents('out'), contents('raw'))

    def test_growing_a_child_does_not_show_the_parent(self):
        base = vhdx.Image(9 * MIB).scatter(1, 1).write('0.vhdx')
        made = base.child('0.vhdx')
        made.size, made.count = 3 * MIB + 512, 4
        made.states = made.states[:4]
        made.write('1.vhdx')
        want = vhdx.flatten(base)[:made.size].ljust(8 * MIB, b'\0')
        self.rhea('resize', '1.vhdx', 8 * MIB)
        self.assertTrue(self.raw('1.vhdx') == want)

    def test_what_cannot_be_resized(self):
        self.create('new', '5M', 'logical_sector_size=4096')
        self.fails(tool.rhea('resize', '-f', 'vhdx', 'new', '1M'),
                   says='--shrink')
        self.fails(tool.rhea('resize', '--shrink', '-f', 'vhdx', 'new', '1k'))
        self.fails(tool.rhea('resize', '--preallocation=full', '-f', 'vhdx',
                             'new', '9M'))
        self.fails(tool.rhea('resize', '-f', 'vhdx', 'new', 5 * MIB + 512))
        self.fails(tool.rhea('resize', '-f', 'vhdx', 'new', '65T'))

    # --- damage ---

    def test_damage_is_found_and_repaired(self):
        for seed in range(10):
            with self.subTest(seed=seed):
                rng = random.Random(seed)
                made = vhdx.Image(12 * MIB).scatter(seed, 0.6)
                made.write('new', seed)
                before = vhdx.read('new')
                full = [i for i in range(12) if before.states[i] == vhdx.FULL]
                bat = self.find_bat('new')
                errors = 0
                lost = rng.sample(full, min(len(full), rng.randrange(1, 4)))
                for i in lost:  # leads nowhere, to tables, means nothing
                    entry = rng.choice((900 * MIB | 6, 6, bat | 6, 4))
                    tool.poke('new', bat + 8 * i, entry.to_bytes(8, 'little'))
                    errors += 1
                    made.states[i] = vhdx.ZERO
                found = tool.rhea('check', '--output=json', 'new')
                self.assertEqual(found.json['corruptions'], errors, str(found))
                self.fails(tool.rhea('convert', '-O', 'raw', 'new', 'flat'))
                fixed = tool.rhea('check', '-r', 'all', '--output=json', 'new')
                self.assertEqual(fixed.code, 0, str(fixed))
                self.assertEqual(fixed.json['corruptions-fixed'], errors)
                self.assertTrue(self.raw('new') == vhdx.flatten(made))
                self.rhea('check', 'new')

    def find_bat(self, path):
        data = contents(path)[192 * K:192 * K + 112]
        at = data.index(vhdx.BAT.bytes_le)
        return int.from_bytes(data[at + 16:at + 24], 'little')

    def test_blocks_that_overlap_are_told(self):
        vhdx.Image(6 * MIB, 2 * MIB).scatter(1, 1).write('new', 1)
        bat = self.find_bat('new')
        tool.poke('new', bat + 8, contents('new')[bat:bat + 8])
        for fix in ([], ['-r', 'all']):
            result = tool.rhea('check', *fix, 'new')
            self.assertEqual(result.code, 2, str(result))
            self.assertIn('overlaps', result.err)

    def test_the_end_of_the_file_is_a_leak(self):
        self.create('new', '20M', 'block_size=1M')
        self.io('new', 'write -P 1 0 3M')
        size = os.path.getsize('new')
        with open('new', 'r+b') as f:
            f.truncate(size + 5 * MIB)
        self.assertEqual(tool.rhea('check', 'new').code, 3)
        self.assertEqual(tool.rhea('check', '-r', 'leaks', 'new').code, 0)
        self.clean('new')
        self.assertEqual(os.path.getsize('new'), size)


if __name__ == '__main__':
    tool.main()
