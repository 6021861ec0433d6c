# SPDX-License-Identifier: MIT
"""VHD: QEMU, 7-Zip and libvhdi read what we write, and we what QEMU writes; the
rest is judged by a reader and a writer of the tests' own, and by raw copies made
beside. Of differencing images QEMU takes no notice of the parent, and libvhdi
takes a sector that is not there for one that is where another one in the same
byte of the bitmap, before it, is there: it is asked about whole bytes only."""
import os
import random
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413
import images_vhd as vhd  # noqa: E402  pylint: disable=C0413

IMGTOOL = os.path.abspath(sys.argv.pop(1))
K = 1024
# That of the system, which has Debian's modules.
PYTHON = '/usr/bin/python3'
LIBVHDI = '''
import pyvhdi, sys
files = []
for name in sys.argv[2:]:
    files.append(pyvhdi.file())
    files[-1].open(name)
for child, parent in zip(files, files[1:]):
    child.set_parent(parent)
left = files[0].get_media_size()
with open(sys.argv[1], 'wb') as out:
    while left:
        data = files[0].read_buffer(min(left, 1 << 20))
        out.write(data)
        left -= len(data)
'''


def utf16(text):
    return text.encode('utf-16-le')


class Vhd(tool.Images):
    FORMAT = 'vpc'

    def clean(self, path):
        """By our own check, and by looking closely."""
        self.rhea('check', '-f', 'vpc', path)
        return vhd.Reader(path)

    def facts(self, path):
        info = self.rhea('info', '--output=json', path).json
        return info['format-specific']['data']

    def libvhdi(self, *chain):
        if tool.execute(PYTHON, '-c', 'import pyvhdi').code:
            self.skipTest('python3-libvhdi is not installed')
        done = tool.execute(PYTHON, '-c', LIBVHDI, 'theirs', *chain)
        self.assertEqual(done.code, 0, str(done))
        return contents('theirs')

    def create(self, path, *args, **options):
        given = ','.join(f'{k}={v}' for k, v in options.items())
        args = (['-o', given] if given else []) + [path, *args]
        self.rhea('create', '-q', '-f', 'vpc', *args)

    # --- fixed and dynamic ---

    def test_random_writes_both_ways(self):
        for seed, kind in enumerate(('dynamic', 'fixed')):
            for maker in (tool.rhea, tool.qemu):
                with self.subTest(maker=maker.__name__, kind=kind):
                    self.random_writes(maker, kind, seed)

    def random_writes(self, maker, kind, seed):
        rng = random.Random(seed)
        size = 9 * MIB + 512 * 7
        self.good(maker('create', '-q', '-f', 'vpc', '-o',
                        f'force_size=on,subformat={kind}', 'new', size))
        shadow = bytearray(size)
        self.write_in_turn('new', 6, lambda: tool.random_writes(
            rng, shadow, 6, (512, 70 * K, 2 * MIB, 3 * MIB)))
        self.assertEqual(self.raw('new'), shadow)
        self.assertEqual(vhd.Reader('new').guest(), shadow)
        self.qemu('convert', '-O', 'raw', '-f', 'vpc', 'new', 'theirs')
        self.assertEqual(contents('theirs'), shadow)
        self.assertEqual(self.libvhdi('new'), shadow)

    def test_7zip_reads_ours(self):
        self.seven_zip_reads('VHD', *(f'force_size=on,subformat={kind}'
                                      for kind in ('fixed', 'dynamic')))

    def test_map_and_info_as_qemu(self):
        for kind in ('fixed', 'dynamic'):
            self.qemu('create', '-q', '-f', 'vpc', '-o', f'subformat={kind}',
                      'new', '20M')
            self.qemu_io('new', 'vpc', 'write 3M 1M', 'write 9M 1k',
                         'write 18M 1M', 'write 4M 1M')
            self.same('map', '-f', 'vpc', 'new')
            self.assertEqual(
                [{k: v for k, v in e.items() if k != 'compressed'} for e in
                 self.rhea('map', '-f', 'vpc', '--output=json', 'new').json],
                self.qemu('map', '-f', 'vpc', '--output=json', 'new').json)
            self.same_json('info', '-f', 'vpc', 'new',
                           drop=('format-specific', 'children'))
            self.same('compare', '-f', 'vpc', '-F', 'vpc', 'new', 'new')

    def test_sizes_and_geometries_as_qemu(self):
        sizes = (0, 1, 512, 100 * MIB, 504 * MIB, 1 << 30, 8 << 30, 31 << 30,
                 126 << 30, 128 << 30, 2040 << 30)
        for size in sizes:
            for how in ('force_size=off', 'force_size=on'):
                for maker in (tool.qemu, tool.rhea):
                    self.good(maker('create', '-q', '-f', 'vpc', '-o', how,
                                    maker.__name__, size))
                ours, theirs = vhd.Reader('rhea'), vhd.Reader('qemu')
                self.assertEqual(ours.footer.size, theirs.footer.size)
                if how == 'force_size=off':
                    self.assertEqual(ours.footer.geometry,
                                     theirs.footer.geometry)
                for path in ('rhea', 'qemu'):
                    info = self.same_json('info', path, drop=(
                        'format-specific', 'children')).json
                    self.assertEqual(info['virtual-size'], ours.footer.size)
        for maker in (tool.qemu, tool.rhea):
            self.assertEqual(maker('create', '-f', 'vpc', 'new', '2041G').code,
                             1)

    def test_whose_size_rules(self):
        for rule, size, want, creator in (
                ('virtual-pc', 10 * MIB, None, b'rhea'),
                ('hyper-v', 10 * MIB + 512, 10 * MIB + 512, b'win '),
                ('azure', 10 * MIB + 512, 11 * MIB, b'win '),
                ('azure', 10 * MIB, 10 * MIB, b'win '),
                ('xenserver', 9 * MIB, 10 * MIB, b'tap\0')):
            for kind in ('fixed', 'dynamic'):
                self.create('new', size, size_rule=rule, subformat=kind)
                footer = vhd.Reader('new').footer
                self.assertEqual(footer.creator, creator)
                if want is None:
                    want = footer.chs
                    self.assertGreaterEqual(want, size)
                self.assertEqual(footer.size, want, rule)
                self.assertLessEqual(footer.chs, footer.size)
                for program in (self.rhea, self.qemu):
                    info = program('info', '-f', 'vpc', '--output=json',
                                   'new').json
                    self.assertEqual(info['virtual-size'], want, rule)
        self.create('large', 3000 << 30, size_rule='azure', subformat='fixed')
        self.assertEqual(self.rhea('info', '--output=json', 'large').json[
            'virtual-size'], 3000 << 30)
        for options in ('size_rule=azure,force_size=on', 'size_rule=other',
                        'size_rule=xenserver,block_size=512k',
                        'block_size=3M', 'block_size=2k',
                        'subformat=fixed,block_size=2M', 'subformat=sparse',
                        'subformat=differencing'):
            self.fails(tool.rhea('create', '-f', 'vpc', '-o', options, 'no',
                                 10 * MIB + 512))
            self.assertFalse(os.path.exists('no'))

    def test_whose_sizes_are_read(self):
        geometry = (300, 4, 17)
        chs, size = 300 * 4 * 17 * 512, 10 * MIB + 512
        for creator, by_geometry, qemu_differs in (
                (b'vpc ', True, False), (b'qemu', True, False),
                (b'qem2', False, False), (b'win ', False, False),
                (b'd2v ', False, False), (b'CTXS', False, False),
                (b'tap\0', False, False),
                # QEMU cuts these off at the geometry, VirtualBox does not.
                (b'vbox', False, True), (b'dutl', False, True)):
            for kind in (vhd.FIXED, vhd.DYNAMIC):
                vhd.Image(size, kind, creator=creator, geometry=geometry).write(
                    'new')
                want = chs if by_geometry else size
                info = self.rhea('info', '--output=json', 'new').json
                self.assertEqual(info['virtual-size'], want, creator)
                theirs = self.qemu('info', '-f', 'vpc', '--output=json',
                                   'new').json['virtual-size']
                self.assertEqual(theirs == want, not qemu_differs)
                for calc, size_of in (('chs', chs), ('current_size', size)):
                    spec = f'driver=vpc,force_size_calc={calc},file.filename=new'
                    self.assertEqual(self.same_json(
                        'info', '--image-opts', spec, drop=(
                            'format-specific', 'children')).json[
                                'virtual-size'], size_of)

    def test_fixed_images_are_recognized(self):
        vhd.Image(MIB, vhd.FIXED).write('new')
        info = self.rhea('info', '--output=json', 'new').json
        self.assertEqual((info['format'], info['virtual-size']), ('vpc', MIB))
        # What the guest writes does not make it another image: the footer at
        # the end says what it is, whatever the beginning looks like.
        child = vhd.Image(MIB).child().named('/etc/passwd')
        tool.poke('new', 0, child.footer())
        self.assertEqual(self.facts('new')['subformat'], 'fixed')
        # With a wrong checksum, and other values than it has, it is none; with
        # the checksum alone it is a damaged one, see odd.py.
        tool.poke('new', MIB + 100, b'x')
        tool.poke('new', MIB + 60, b'xxxx')
        tool.poke('new', 0, bytes(512))
        self.assertEqual(self.rhea('info', '--output=json', 'new').json[
            'format'], 'raw')
        self.fails(tool.rhea('info', '-f', 'vpc', 'new'), says='checksum')

    def test_footers_of_511_bytes(self):
        made = vhd.Image(3 * 64 * K + 512, vhd.FIXED, short=True)
        made.raw = random.Random(1).randbytes(made.size)
        made.write('fixed')
        vhd.Image(20 * 64 * K, block=64 * K, short=True).scatter(1).write('dyn')
        for path in ('fixed', 'dyn'):
            info = self.rhea('info', '--output=json', path).json
            self.assertEqual(info['format'], 'vpc')
            want = bytearray(self.raw(path))
            self.rhea('check', path)
            self.io(path, 'write -P 7 1000 600')
            want[1000:1600] = b'\7' * 600
            self.assertEqual(self.raw(path), want)
            self.rhea('check', path)
        self.assertEqual(os.path.getsize('fixed'), made.size + 511)
        self.clean('dyn')

    def test_conversion_from_and_to_all(self):
        self.make_data('raw', 7 * MIB, [(0, 700), (MIB, MIB), (6 * MIB, 99)])
        for i, options in enumerate((
                'force_size=on', 'force_size=on,subformat=fixed',
                'size_rule=hyper-v', 'size_rule=azure,subformat=fixed',
                'size_rule=hyper-v,block_size=512k',
                'size_rule=hyper-v,block_size=4k',
                'size_rule=hyper-v,block_size=64M')):
            with self.subTest(options=options):
                self.rhea('convert', '-O', 'vpc', '-o', options, 'raw', 'new')
                self.assertEqual(self.clean('new').guest(), contents('raw'))
                self.assertEqual(self.raw('new'), contents('raw'))
                self.rhea('convert', '-O', 'qcow2', 'new', 'q')
                self.identical('q', 'qcow2', 'raw', 'raw')
                self.identical('new', 'vpc', 'raw', 'raw')
                if i < 4:
                    self.assertEqual(self.libvhdi('new'), contents('raw'))
        # A convert leaves out what is zero inside of blocks, too.
        self.make_data('raw', 8 * MIB, [(64 * K, 4096), (4 * MIB, 8192)])
        self.rhea('convert', '-O', 'vpc', '-o', 'force_size=on', 'raw', 'new')
        self.assertLess(os.stat('new').st_blocks * 512, 256 * K)

    def test_measured_sizes_are_right(self):
        self.make_data('raw', 7 * MIB, [(0, 700), (MIB, MIB), (6 * MIB, 99)])
        for options in ('subformat=fixed', 'force_size=on', 'size_rule=azure',
                        'size_rule=xenserver',
                        'size_rule=hyper-v,block_size=64k'):
            want = self.rhea('measure', '--output=json', '-O', 'vpc', '-o',
                             options, '-f', 'raw', 'raw').json
            self.rhea('convert', '-O', 'vpc', '-o', options, 'raw', 'new')
            self.assertEqual(want['required'], os.path.getsize('new'), options)
            self.io('new', 'write -P 1 0 7M')
            self.assertEqual(want['fully-allocated'], os.path.getsize('new'),
                             options)

    # --- from the writer above ---

    def test_all_sorts_of_files_are_read(self):
        for seed, block in enumerate((512, 4 * K, 64 * K, 512 * K, 2 * MIB,
                                      4 * MIB)):
            for sectors in (None, 0.5):
                with self.subTest(block=block, sectors=sectors):
                    size = 5 * block + (1024 if seed % 2 else 0)
                    made = vhd.Image(size, block=block, gap=seed * 512,
                                     more_entries=seed * 100)
                    made.scatter(seed, 0.7, sectors).write('new')
                    self.assertTrue(self.raw('new') == vhd.flatten(made))
                    self.clean('new')
                    # QEMU takes bitmaps of less than a byte for none at all.
                    if sectors is None and block >= 4 * K:
                        self.identical('new', 'vpc', 'flat', 'raw')

    def test_bitmaps_of_xenservers_first_tools(self):
        made = vhd.Image(9 * MIB, creator=b'tap\0', version=1)
        made.scatter(4, 0.8, 0.5).write('new')
        self.assertTrue(self.raw('new') == vhd.flatten(made))

    def test_a_map_of_full_blocks_stays_true(self):
        self.create('base', '64M', size_rule='xenserver')
        self.assertIn(b'tdbatmap', contents('base')[:4096])
        self.create('new', '-b', 'base', '-F', 'vpc', size_rule='xenserver')
        self.io('new', 'write -P 1 0 5M')
        at = contents('new').index(b'tdbatmap')
        tool.poke('new', at + 24, b'\xff\xff\xff\x3f')  # two blocks are full
        tool.poke('new', at + 512, b'\xc0')
        self.rhea('commit', '-q', 'new')
        self.assertEqual(contents('new')[at + 24:at + 28], b'\xff' * 4)
        self.assertEqual(contents('new')[at + 512:at + 520], bytes(8))
        self.rhea('resize', 'base', '4G')
        self.assertTrue(self.raw('base')[:5 * MIB] == b'\1' * 5 * MIB)
        reader = self.clean('base')
        end = vhd.up(reader.table + 4 * reader.n)
        self.assertEqual(reader.file[end:end + 8], b'tdbatmap')

    def test_all_sorts_of_files_are_written(self):
        for seed, block in enumerate((512, 4 * K, 64 * K, 2 * MIB)):
            for kind in (vhd.DYNAMIC, vhd.DIFF):
                with self.subTest(block=block, kind=kind):
                    self.written(seed, block, kind)

    def written(self, seed, block, kind):
        rng = random.Random(seed)
        size = min(200 * block, 9 * MIB) + 512
        base = vhd.Image(size, block=block).scatter(seed, 0.6)
        chain = [base.write('base.vhd')]
        if kind == vhd.DIFF:
            base = base.child().named('base.vhd').scatter(seed + 1, 0.3, 0.5)
            chain.insert(0, base.write('new.vhd'))
        path = 'new.vhd' if kind == vhd.DIFF else 'base.vhd'
        want = bytearray(vhd.flatten(*chain))
        for _ in range(12):
            at = rng.randrange(size - 2048) & ~511
            n = min(rng.choice((512, 2048, 3 * block)), size - at)
            byte = rng.randrange(1, 256)
            zero = rng.random() < 0.2
            want[at:at + n] = bytes([0 if zero else byte]) * n
            self.io(path, f'write {"-z" if zero else f"-P {byte}"} {at} {n}')
        below = vhd.flatten(chain[1]) if chain[1:] else b''
        self.assertTrue(self.clean(path).guest(below) == want)
        self.assertTrue(self.raw(path) == want)

    # --- parents ---

    def chain(self, count, block=64 * K, seed=3, kind=vhd.DYNAMIC):
        """Images 0, 1, ... each over the one before."""
        base = vhd.Image(17 * block, kind, block=block)
        if kind == vhd.FIXED:
            base.raw = random.Random(seed).randbytes(base.size)
        else:
            base.scatter(seed)
        made = [base.write('0.vhd')]
        for i in range(1, count):
            name = f'{i - 1}.vhd'
            made.append(made[-1].child().named(
                name, (b'W2ru', utf16('.\\' + name))).scatter(
                    seed + i, 0.4, 0.5).write(f'{i}.vhd'))
        return made

    def test_chains_from_elsewhere_are_read(self):
        for kind in (vhd.FIXED, vhd.DYNAMIC):
            for count in (2, 3, 5):
                with self.subTest(kind=kind, count=count):
                    made = self.chain(count, kind=kind)
                    self.assertTrue(self.raw(f'{count - 1}.vhd') ==
                                    vhd.flatten(*reversed(made)))
        chain = self.rhea('info', '--backing-chain', '--output=json',
                          '4.vhd').json
        self.assertEqual([i['filename'] for i in chain],
                         [f'{i}.vhd' for i in (4, 3, 2, 1, 0)])
        facts = chain[0]['format-specific']['data']
        self.assertEqual(facts['parent-uuid'], str(made[3].uuid))
        self.assertEqual(facts['uuid'], str(made[4].uuid))
        self.assertEqual(facts['parent-names'], ['.\\3.vhd', '3.vhd'])

    def test_every_kind_of_parent_locator(self):
        base = vhd.Image(17 * 64 * K, block=64 * K).scatter(1)
        os.mkdir('sub')
        os.mkdir('other')
        base.write('sub/the base.vhd')
        base.write('beside.vhd')
        here = os.path.realpath('.')
        for code, data in (
                (b'W2ru', utf16('.\\sub\\the base.vhd')),
                (b'W2ru', utf16('sub\\the base.vhd')),
                (b'W2ku', utf16('D:\\vm\\beside.vhd')),
                (b'W2ku', utf16('\\\\server\\vm\\beside.vhd')),
                (b'W2ku', utf16('\\\\?\\D:\\vm\\beside.vhd')),
                (b'W2ku', utf16(here + '/sub/the base.vhd')),
                (b'W2ku', utf16('C:\\gone\\beside.vhd\0\0garbage')),
                (b'Wi2r', b'.\\sub\\the base.vhd'),
                (b'Wi2k', b'D:\\vm\\beside.vhd'),
                (b'MacX', b'file:///Volumes/HD/beside.vhd'),
                (b'MacX', b'file://localhost/vm/beside.vhd'),
                (b'MacX', f'file://{here}/sub/the%20base.vhd'.encode()),
                (b'MacX', b'file://./sub/the base.vhd'),
                (b'Mac ', vhd.alias(b'beside.vhd')),
                (b'Mac ', vhd.alias(b'x.vhd', b'Users/me/beside.vhd',
                                    b'/Volumes/HD'))):
            with self.subTest(code=code, data=data):
                child = base.child().named('', (code, data))
                child.scatter(2, 0.5, 0.5).write('child.vhd')
                self.assertTrue(self.raw('child.vhd') ==
                                vhd.flatten(child, base))
        # The name in the header, alone or where the locators lead nowhere.
        for locators in ((), ((b'W2ru', utf16('.\\gone.vhd')),
                              (b'W2ku', utf16('C:\\gone.vhd')))):
            child = base.child(spaces_in_sectors=True).named(
                'beside.vhd', *locators)
            child.scatter(2, 0.5, 0.5).write('child.vhd')
            self.assertTrue(self.raw('child.vhd') == vhd.flatten(child, base))

    def test_names_that_are_not_ascii(self):
        for name in ('bäse.vhd', '基.vhd', '😀.vhd'):
            base = vhd.Image(17 * 64 * K, block=64 * K).scatter(1).write(name)
            child = base.child().named(name, (b'W2ru', utf16('.\\' + name)))
            child.scatter(2, 0.5, 0.5).write('child.vhd')
            self.assertTrue(self.raw('child.vhd') == vhd.flatten(child, base))
            self.create('ours.vhd', '-b', name, '-F', 'vpc')
            self.assertTrue(self.raw('ours.vhd') == vhd.flatten(base))
            self.assertEqual(vhd.Reader('ours.vhd').name, name)
        vhd.Image(17 * 64 * K).write('b\xe4se.vhd'.encode('latin-1'))
        child = vhd.Image(17 * 64 * K).child().named(
            '', (b'Wi2r', b'.\\b\xe4se.vhd')).write('child.vhd')
        self.assertEqual(self.facts('child.vhd')['parent-names'],
                         ['.\\bäse.vhd'])

    def test_a_missing_parent_is_named(self):
        self.chain(2)
        os.unlink('0.vhd')
        for command in (['convert', '-O', 'raw', '1.vhd', 'flat'],
                        ['map', '1.vhd'], ['compare', '1.vhd', '1.vhd']):
            result = self.fails(tool.rhea(*command),
                                2 if command[0] == 'compare' else 1)
            self.assertIn('1.vhd', result.err)
            self.assertIn('0.vhd', result.err)
        self.rhea('info', '1.vhd')

    def test_another_parent_is_an_error_that_names_both(self):
        made = self.chain(3)
        other = vhd.Image(17 * 64 * K, block=64 * K).write('0.vhd')
        result = self.fails(tool.rhea('convert', '-O', 'raw', '2.vhd', 'flat'),
                            says="'1.vhd' and its parent '0.vhd'")
        self.assertIn(str(made[0].uuid), result.err)
        self.assertIn(str(other.uuid), result.err)
        self.assertNotEqual(self.rhea_io('1.vhd', 'write 0 512').code, 0)
        # A name that leads to an image of another format.
        self.qemu('create', '-q', '-f', 'raw', '0.vhd', '10M')
        self.fails(tool.rhea('convert', '-O', 'raw', '1.vhd', 'flat'))

    def test_a_changed_parent_is_an_error_that_names_both(self):
        for kind in (vhd.FIXED, vhd.DYNAMIC):
            for change in ('write -P 1 0 512', 'write -z 0 1M',
                           'write -z -u 0 1M'):
                self.chain(3, kind=kind)
                self.io('0.vhd', change)
                self.fails(tool.rhea('convert', '-O', 'raw', '2.vhd', 'flat'),
                           says="'1.vhd' and its parent '0.vhd'.*written")
        # The same second, over and over, with children of ours.
        self.create('0.vhd', '10M')
        for _ in range(3):
            self.create('1.vhd', '-b', '0.vhd', '-F', 'vpc')
            self.io('1.vhd', 'write -P 2 0 512')
            self.raw('1.vhd')
            self.io('0.vhd', 'write -P 1 0 512')
            self.fails(tool.rhea('convert', '-O', 'raw', '1.vhd', 'flat'),
                       says="'1.vhd' and its parent '0.vhd'.*written")
        self.rhea('rebase', '-u', '-b', '0.vhd', '-F', 'vpc', '1.vhd')
        self.raw('1.vhd')

    def test_a_parent_that_was_copied_or_touched_is_the_same(self):
        made = self.chain(2)
        shutil.copy('0.vhd', 'copy')
        os.rename('copy', '0.vhd')
        os.utime('0.vhd', (time.time() + 5000,) * 2)
        self.io('0.vhd', 'read 0 512')
        self.rhea('check', '-r', 'all', '0.vhd')
        self.assertTrue(self.raw('1.vhd') == vhd.flatten(*reversed(made)))

    def test_what_we_write_over_parents(self):
        """Random writes to chains, with a raw copy beside each image."""
        for block, grain in (('64k', 512), ('2M', 4096)):
            size = 5 * MIB
            rng = random.Random(11)
            shadow = bytearray(size)
            self.create('0.vhd', size, block_size=block, force_size='on')
            for i in range(4):
                if i:
                    self.create(f'{i}.vhd', '-b', f'{i - 1}.vhd', '-F', 'vpc',
                                block_size=block)
                self.io(f'{i}.vhd', *tool.random_writes(
                    rng, shadow, 12, (grain, 5 * grain, 150 * grain),
                    ('-z -u',), grain))
                self.clean(f'{i}.vhd')
                self.assertTrue(self.raw(f'{i}.vhd') == shadow)
                guest = b''
                for j in range(i + 1):
                    guest = vhd.Reader(f'{j}.vhd').guest(guest)
                self.assertTrue(guest == shadow)
                if grain == 4096:
                    self.assertTrue(self.libvhdi(*[
                        f'{j}.vhd' for j in range(i, -1, -1)]) == shadow)

    def test_a_child_is_as_large_as_its_parent(self):
        for size in (10 * MIB + 512, 10 * MIB):
            vhd.Image(size).write('base.vhd')
            self.create('new.vhd', '-b', 'base.vhd', '-F', 'vpc')
            info = self.rhea('info', '--output=json', 'new.vhd').json
            self.assertEqual(info['virtual-size'], size)
            reader = vhd.Reader('new.vhd')
            self.assertEqual(set(reader.locators), {b'MacX', b'W2ku', b'W2ru'})
            self.assertEqual(reader.locators[b'W2ru'], utf16('.\\base.vhd'))
            self.assertEqual(reader.locators[b'MacX'], b'file://./base.vhd')
        path = os.path.realpath('base.vhd')
        self.create('new.vhd', '-b', path, '-F', 'vpc')
        reader = vhd.Reader('new.vhd')
        self.assertEqual(set(reader.locators), {b'MacX', b'W2ku'})
        info = self.rhea('info', '--output=json', 'new.vhd').json
        self.assertEqual(info['backing-filename'], path)

    def test_raw_parents(self):
        self.make_data('base.raw', 3 * MIB, [(0, 2 * MIB)])
        self.create('new.vhd', '-b', 'base.raw', '-F', 'raw')
        self.assertTrue(self.raw('new.vhd') == contents('base.raw'))
        info = self.rhea('info', '--output=json', 'new.vhd').json
        self.assertEqual(info['backing-filename-format'], 'raw')
        # What is in it is not looked at: it may be a guest's.
        self.qemu('create', '-q', '-f', 'qcow2', 'base.qcow2', '3M')
        shutil.copy('base.qcow2', 'base.raw')
        self.assertEqual(self.raw('new.vhd')[:4], b'QFI\xfb')
        self.fails(tool.rhea('create', '-f', 'vpc', '-b', 'base.qcow2', '-F',
                             'qcow2', 'no'), says='VHD or a raw image')
        self.fails(tool.rhea('create', '-f', 'vpc', '-u', '-b', 'gone', '-F',
                             'vpc', 'no', '3M'), says='cannot be opened')

    def test_commit_and_rebase(self):
        self.create('0.vhd', 5 * MIB, force_size='on')
        self.io('0.vhd', 'write -P 1 0 5M')
        for i in (1, 2, 3):
            self.create(f'{i}.vhd', '-b', f'{i - 1}.vhd', '-F', 'vpc')
            self.io(f'{i}.vhd', f'write -P {i + 1} {i}M 1M')
        want = self.raw('3.vhd')
        self.rhea('commit', '-q', '2.vhd')
        self.assertTrue(self.raw('3.vhd') == want)
        self.assertLess(os.path.getsize('2.vhd'), 16 * K)
        self.clean('2.vhd')
        self.rhea('rebase', '-b', '0.vhd', '-F', 'vpc', '3.vhd')
        self.assertTrue(self.raw('3.vhd') == want)
        self.clean('3.vhd')
        self.rhea('rebase', '-b', '', '3.vhd')
        self.assertTrue(self.raw('3.vhd') == want)
        self.assertEqual(self.facts('3.vhd')['subformat'], 'dynamic')
        self.identical('3.vhd', 'vpc', 'flat', 'raw')
        self.clean('3.vhd')
        self.rhea('rebase', '-u', '-b', '0.vhd', '-F', 'vpc', '3.vhd')
        self.assertTrue(self.raw('3.vhd') == want)

    def test_rebase_keeps_what_other_systems_know(self):
        base = vhd.Image(17 * 64 * K, block=64 * K).write('base.vhd')
        child = base.child().named('base.vhd', (b'W2ku', utf16(
            'C:\\vm\\base.vhd'))).write('child.vhd')
        self.io('child.vhd', 'write -P 1 0 64k')
        self.rhea('commit', '-q', 'child.vhd')
        reader = self.clean('child.vhd')
        self.assertEqual(reader.locators, dict(child.locators))

    # --- size ---

    def test_resize(self):
        for kind, options in (('dynamic', {}), ('fixed', {}),
                              ('dynamic', {'block_size': '4k'})):
            self.create('new', 5 * MIB, subformat=kind, force_size='on',
                        **options)
            self.io('new', 'write -P 1 0 5M')
            want = b'\1' * 5 * MIB
            for size in (5 * MIB + 512, 7 * MIB, 40 * MIB, 3 * MIB + 1024,
                         600 * MIB):
                shrink = ['--shrink'] if size < len(want) else []
                self.rhea('resize', '-q', *shrink, 'new', size)
                want = want[:size].ljust(size, b'\0')
                self.rhea('check', '-f', 'vpc', 'new')
                vhd.Reader('new')
                self.identical_to('new', want)
            self.assertEqual(self.rhea('info', '--output=json', 'new').json[
                'virtual-size'], 600 * MIB)
        for mode in ('falloc', 'full'):
            self.create('new', 5 * MIB, subformat='fixed', force_size='on')
            self.rhea('resize', '-q', '--preallocation', mode, 'new', '9M')
            self.assertGreaterEqual(os.stat('new').st_blocks * 512, 4 * MIB)
            self.clean('new')

    def identical_to(self, path, want):
        with open('want', 'wb') as f:
            f.write(want)
        self.identical(path, 'vpc', 'want', 'raw')
        self.rhea('compare', '-q', '-f', 'vpc', '-F', 'raw', path, 'want')

    def test_what_was_cut_off_does_not_come_back(self):
        self.create('base.vhd', 5 * MIB, force_size='on')
        self.io('base.vhd', 'write -P 3 0 5M')
        self.create('new.vhd', '-b', 'base.vhd', '-F', 'vpc')
        for path in ('base.vhd', 'new.vhd'):
            shutil.copy(path, 'copy.vhd')
            self.io('copy.vhd', 'write -P 2 2M 3M')
            self.rhea('resize', '-q', '--shrink', 'copy.vhd', 2 * MIB + 512)
            self.rhea('resize', '-q', 'copy.vhd', 6 * MIB)
            data = self.raw('copy.vhd')
            self.assertEqual(data[2 * MIB:2 * MIB + 512], b'\2' * 512)
            self.assertEqual(data[2 * MIB + 512:].strip(b'\0'), b'', path)
            self.clean('copy.vhd')

    # --- amend ---

    def test_amend(self):
        for kind in ('fixed', 'dynamic'):
            self.create('new', 10 * MIB, subformat=kind)
            self.io('new', 'write -P 5 1M 4M')
            want = self.raw('new', '-f', 'vpc')
            was = self.clean('new').footer
            self.rhea('amend', '-f', 'vpc', '-o', 'size_rule=hyper-v,uuid=new',
                      'new')
            footer = self.clean('new').footer
            self.assertEqual((footer.creator, footer.size), (b'win ', was.size))
            self.assertNotEqual(footer.uuid, was.uuid)
            self.assertEqual(self.raw('new', '-f', 'vpc'), want)
            self.identical('new', 'vpc', 'flat', 'raw')
            self.fails(tool.rhea('amend', '-f', 'vpc', '-o', 'size_rule=azure',
                                 'new'), says='11534336 would be one')
            self.rhea('resize', '-q', '-f', 'vpc', 'new', '12M')
            for rule, creator in (('azure', b'win '), ('xenserver', b'tap\0'),
                                  ('virtual-pc', b'rhea')):
                self.rhea('amend', '-f', 'vpc', '-o', f'size_rule={rule}',
                          'new')
                footer = self.clean('new').footer
                self.assertEqual((footer.creator, footer.size),
                                 (creator, 12 * MIB))
                self.identical_to('new', want.ljust(12 * MIB, b'\0'))
            text = '01234567-89ab-cdef-0123-456789abcdef'
            self.rhea('amend', '-f', 'vpc', '-o', f'uuid={text}', 'new')
            self.assertEqual(str(self.clean('new').footer.uuid), text)
            self.fails(tool.rhea('amend', '-f', 'vpc', '-o', 'uuid=0', 'new'))
            self.fails(tool.rhea('amend', '-f', 'vpc', '-o', 'size=1M', 'new'))
        self.rhea('amend', '-f', 'vpc', '-o', 'help')

    # --- damage ---

    def test_a_damaged_footer_is_recovered_from_its_copy(self):
        for tail, head in ((False, True), (True, False)):
            for kind in (vhd.DYNAMIC, vhd.DIFF):
                base = vhd.Image(17 * 64 * K, block=64 * K).scatter(1)
                base.write('base.vhd')
                made = [base]
                if kind == vhd.DIFF:
                    made.insert(0, base.child().named('base.vhd').scatter(
                        2, 0.5, 0.5))
                for how in ('missing', 'damaged'):
                    made[0].write('new', tail or how == 'damaged',
                                  head or how == 'damaged')
                    if how == 'damaged':
                        tool.poke('new', 100 if not head else
                                  os.path.getsize('new') - 412, b'x')
                    self.assertTrue(self.raw('new', '-f', 'vpc') ==
                                    vhd.flatten(*made))
                    found = tool.rhea('check', '-f', 'vpc', '--output=json',
                                      'new')
                    self.assertEqual((found.code, found.json['corruptions']),
                                     (2, 1))
                    self.repair('new')
                    self.clean('new')
                    self.assertTrue(self.raw('new') == vhd.flatten(*made))
        vhd.Image(MIB).scatter(1).write('new')
        tool.poke('new', 100, b'x')
        tool.poke('new', os.path.getsize('new') - 412, b'x')
        self.fails(tool.rhea('info', '-f', 'vpc', 'new'), says='no good copy')

    def repair(self, path):
        result = tool.rhea('check', '-f', 'vpc', '-r', 'all', path)
        self.assertEqual(result.code, 0, str(result))

    def test_writing_mends_footers(self):
        vhd.Image(17 * 64 * K, block=64 * K).scatter(1).write('new', tail=False)
        self.io('new', 'write -P 1 0 512')
        self.clean('new')

    def damaged(self, seed):
        """A file in which a check finds an error; what the guest sees once it
        is repaired, None where it cannot be."""
        made = vhd.Image(12 * 64 * K, block=64 * K).scatter(seed, 1)
        made.write('new')
        _, _, where, end = made.layout()
        want = bytearray(vhd.flatten(made))
        entry = lambda b, at: tool.poke('new', 1536 + 4 * b,
                                        (at // 512).to_bytes(4, 'big'))
        gone = lambda b: want.__setitem__(slice(b * 64 * K, (b + 1) * 64 * K),
                                          bytes(64 * K))
        kind = seed % 6
        if kind == 0:  # outside of the file
            entry(3, end + 5 * MIB)
            gone(3)
        elif kind == 1:  # in the header
            entry(3, 512)
            gone(3)
        elif kind == 2:  # twice the same
            entry(3, where[4])
            want = None
        elif kind == 3:  # overlaps
            entry(3, where[made.order[4]] + 512)
            want = None
        elif kind == 4:  # cut off, with a footer at the new end
            os.truncate('new', end - 10 * K)
            with open('new', 'ab') as f:
                f.write(made.footer())
            last = made.order[-1]
            at = (last + 1) * 64 * K - 10 * K
            want[at:at + 10 * K] = bytes(10 * K)
        else:  # the header's checksum
            tool.poke('new', 512 + 37, b'\0')
        return want

    def test_damage_is_found_and_repaired(self):
        for seed in range(12):
            with self.subTest(seed=seed):
                want = self.damaged(seed)
                found = tool.rhea('check', '--output=json', 'new')
                self.assertEqual(found.code, 2, str(found))
                # The one that it overlaps may reach into the next.
                self.assertIn(found.json['corruptions'],
                              (1, 2) if seed % 6 == 3 else (1,), str(found))
                fixed = tool.rhea('check', '-r', 'all', 'new')
                if want is None:
                    self.assertEqual(fixed.code, 2, str(fixed))
                    continue
                # A block that was dropped leaves room that nobody uses.
                self.assertIn(fixed.code, (0, 3), str(fixed))
                self.assertEqual(tool.rhea('check', 'new').code, fixed.code)
                vhd.Reader('new')
                self.assertTrue(self.raw('new') == want)
                self.identical('new', 'vpc', 'flat', 'raw')
                self.io('new', 'write -P 3 0 4k')

    def test_a_bitmap_that_is_a_footer(self):
        made = vhd.Image(12 * 64 * K, block=64 * K).scatter(5, 1).write('new')
        tool.poke('new', made.layout()[2][3], made.footer())
        self.assertEqual(tool.rhea('check', 'new').code, 2)
        self.repair('new')
        self.clean('new')
        self.assertTrue(self.raw('new') == vhd.flatten(made))

    def test_what_nobody_uses_is_told_and_cut_off(self):
        made = vhd.Image(12 * 64 * K, block=64 * K).scatter(5, 1).write('new')
        last, middle = made.order[-1], made.order[4]
        for block in (last, middle):
            tool.poke('new', 1536 + 4 * block, b'\xff' * 4)
        want = bytearray(vhd.flatten(made))
        for block in (last, middle):
            want[block * 64 * K:(block + 1) * 64 * K] = bytes(64 * K)
        found = tool.rhea('check', '--output=json', 'new')
        self.assertEqual((found.code, found.json['leaks']), (3, 2))
        fixed = tool.rhea('check', '-r', 'leaks', '--output=json', 'new')
        self.assertEqual((fixed.code, fixed.json['leaks-fixed']), (0, 2),
                         str(fixed))
        size = made.layout()[3] + 512
        self.assertEqual(os.path.getsize('new'), size - 2 * (64 * K + 512))
        self.clean('new')
        self.assertTrue(self.raw('new') == want)

    def test_a_file_cut_short_is_no_zeroes(self):
        made = vhd.Image(8 * 64 * K, block=64 * K).scatter(2, 1).write('new')
        os.truncate('new', os.path.getsize('new') - 100 * K)
        self.fails(tool.rhea('convert', '-O', 'raw', 'new', 'flat'),
                   says='cut off')
        self.assertNotEqual(self.rhea_io('new', 'write 0 512').code, 0)
        found = tool.rhea('check', 'new')
        self.assertEqual(found.code, 2, str(found))
        # What there is of it can be read.
        for block in made.order[:6]:
            self.rhea('dd', '-f', 'vpc', '-O', 'raw', 'bs=64k',
                      f'count={block + 1}', f'skip={block}', 'if=new',
                      'of=part')

    def test_numbers_that_lie(self):
        """A word of the headers at a time: an error, or an image."""
        vhd.Image(17 * 64 * K, block=64 * K).scatter(1).write('good')
        good = contents('good')
        for word in (b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff',
                     b'\0\0\0\1', b'\x80\0\0\0'):
            for at in range(512 + 8, 512 + 64, 4):
                header = bytearray(good[512:1536])
                header[at - 512:at - 508] = word
                with open('new', 'wb') as f:
                    f.write(good[:512] + vhd.sealed(bytes(header), 36) +
                            good[1536:])
                self.bad_or_good('new')
            for at in range(8, 84, 4):
                footer = bytearray(good[:512])
                footer[at:at + 4] = word
                footer = vhd.sealed(bytes(footer), 64)
                with open('new', 'wb') as f:
                    f.write(footer + good[512:-512] + footer)
                self.bad_or_good('new')

    def bad_or_good(self, path):
        for command in (['check', path], ['map', path]):
            result = tool.rhea(*command)
            self.assertIn(result.code, (0, 1, 2, 3), str(result))

    # --- many threads ---

    def test_threads_with_a_shadow(self):
        for seed in range(4):
            options = [f'block_size={(4 << seed)}k', 'force_size=on']
            want = self.random_by_threads(IMGTOOL, 'new', 3000320, seed,
                                          options=options)
            self.assertTrue(self.raw('new') == want)
            os.unlink('new')


if __name__ == '__main__':
    tool.main()
