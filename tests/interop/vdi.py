# SPDX-License-Identifier: MIT
"""VDI: QEMU and 7-Zip read what we write, and we what QEMU writes; what they
refuse (parents, old headers, other blocks) is judged by a reader and a writer
of the tests' own, and by raw copies made beside."""
import itertools
import os
import random
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413
import images_vdi as vdi  # noqa: E402  pylint: disable=C0413

IMGTOOL = os.path.abspath(sys.argv.pop(1))
K = 1024


class Vdi(tool.Images):
    FORMAT = 'vdi'

    def clean(self, path):
        """By our own check, and by looking."""
        self.rhea('check', path)
        self.assertTrue(vdi.dense(vdi.read(path)), path)

    # --- fixed and dynamic, with QEMU and 7-Zip ---

    def test_random_writes_both_ways(self):
        for seed, options in enumerate(('', 'static=on')):
            for maker in (tool.rhea, tool.qemu):
                with self.subTest(maker=maker.__name__, options=options):
                    self.random_writes(maker, options, seed)

    def random_writes(self, maker, options, seed):
        rng = random.Random(seed)
        size = 9 * MIB + 512 * 7
        args = ['-o', options] if options else []
        self.good(maker('create', '-q', '-f', 'vdi', *args, 'new', size))
        shadow = bytearray(size)
        for _ in range(3):
            self.write_in_turn('new', 2, lambda: tool.random_writes(
                rng, shadow, 6, (512, 70 * K, 2 * MIB, 3 * MIB)))
            self.sound('new', 'vdi')
        self.assertEqual(self.raw('new'), shadow)
        self.qemu('convert', '-O', 'raw', '-f', 'vdi', 'new', 'theirs')
        self.assertEqual(contents('theirs'), shadow)

    def test_7zip_reads_ours(self):
        self.seven_zip_reads('VDI', 'static=off', 'static=on')

    def test_map_and_info_as_qemu(self):
        for options in ('', 'static=on'):
            args = ['-o', options] if options else []
            self.qemu('create', '-q', '-f', 'vdi', *args, 'new', '20M')
            self.qemu_io('new', 'vdi', 'write 3M 1M', 'write 9M 1k',
                         'write 19M 1M', 'write 4M 1M')
            self.same('map', '-f', 'vdi', 'new')
            self.same_json('info', 'new', drop=('format-specific', 'children'))
            self.same('compare', '-f', 'vdi', '-F', 'vdi', 'new', 'new')

    def test_conversion_from_and_to_all(self):
        self.make_data('raw', 7 * MIB, [(0, 700), (MIB, MIB), (6 * MIB, 99)])
        for i, options in enumerate(('', 'static=on', 'preallocation=falloc',
                                     'preallocation=full', 'block_size=4k',
                                     'block_size=64M')):
            with self.subTest(options=options):
                args = ['-o', options] if options else []
                self.rhea('convert', '-O', 'vdi', *args, 'raw', 'new')
                self.clean('new')
                self.assertEqual(self.raw('new'), contents('raw'))
                self.rhea('convert', '-O', 'qcow2', 'new', 'q')
                self.identical('q', 'qcow2', 'raw', 'raw')
                if i < 4:
                    self.sound('new', 'vdi')
                    self.identical('new', 'vdi', 'raw', 'raw')

    def test_measured_sizes_are_right(self):
        self.make_data('raw', 7 * MIB, [(0, 700), (MIB, MIB), (6 * MIB, 99)])
        for options in ('static=off', 'static=on', 'block_size=64k'):
            want = self.rhea('measure', '--output=json', '-O', 'vdi', '-o',
                             options, '-f', 'raw', 'raw').json
            self.rhea('convert', '-O', 'vdi', '-o', options, 'raw', 'new')
            self.assertEqual(want['required'], os.path.getsize('new'), options)

    # --- what QEMU refuses, from the writer above ---

    def test_all_sorts_of_files_are_read(self):
        kinds = itertools.product((0, 1), (vdi.DYNAMIC, vdi.FIXED),
                                  (512, 16 * K, MIB), (0, 512))
        for seed, (version, kind, block, extra) in enumerate(kinds):
            if extra and not version:
                continue
            with self.subTest(version=version, kind=kind, block=block,
                              extra=extra):
                size = 7 * block + (block // 2 if seed % 2 else 0)
                made = vdi.Image(size, block, version=version, kind=kind,
                                 extra=extra, align=512 << seed % 5,
                                 head=384 + seed % 2 * 16)
                made.scatter(seed).write('new')
                self.rhea('check', 'new')
                want = vdi.flatten(made).ljust(-(-size // 512) * 512, b'\0')
                self.assertTrue(self.raw('new')[:size] == want[:size])
                self.assertEqual(len(contents('flat')), len(want))
                info = self.rhea('info', '--output=json', 'new').json
                facts = info['format-specific']['data']
                self.assertEqual(facts['uuid'], str(made.uuids[0]))
                self.assertEqual(facts['modification-uuid'],
                                 str(made.uuids[1]))
                self.assertEqual(facts['version'], ('0.2', '1.1')[version])

    def test_all_sorts_of_files_are_written(self):
        for seed, (version, block, extra) in enumerate(
                [(0, 512, 0), (0, 4 * K, 0), (1, 4 * K, 0), (1, 4 * K, 512),
                 (1, 64 * K, 4096)]):
            with self.subTest(version=version, block=block, extra=extra):
                rng = random.Random(seed)
                made = vdi.Image(200 * block, block, version=version,
                                 extra=extra)
                made.scatter(seed, 0.1).write('new')
                want = bytearray(vdi.flatten(made))
                for _ in range(30):
                    at = rng.randrange(len(want) - 3 * block) & ~511
                    data = bytes([rng.randrange(256)]) * (3 * block & ~511)
                    want[at:at + len(data)] = data
                    self.io('new', f'write -P {data[0]} {at} {len(data)}')
                self.clean('new')
                now = vdi.read('new')
                self.assertTrue(vdi.flatten(now) == want)
                self.assertEqual(self.raw('new'), want)
                self.assertNotEqual(now.uuids[1], made.uuids[1])
                self.assertEqual(now.uuids[0], made.uuids[0])

    # --- chains ---

    def chain(self, count, block=64 * K, seed=3, **how):
        """Images 0, 1, ... each over the one before, and what they hold."""
        made = [vdi.Image(17 * block, block).scatter(seed).write('0.vdi')]
        for i in range(1, count):
            made.append(made[-1].child(**how).scatter(seed + i, 0.2)
                        .write(f'{i}.vdi'))
        return made

    def test_chains_from_elsewhere_are_read(self):
        for kind in (vdi.DIFF, vdi.UNDO, vdi.DYNAMIC):
            for count in (2, 3, 5):
                with self.subTest(kind=kind, count=count):
                    made = self.chain(count, kind=kind)
                    self.assertEqual(self.raw(f'{count - 1}.vdi'),
                                     vdi.flatten(*reversed(made)))
        chain = self.rhea('info', '--backing-chain', '--output=json',
                          '4.vdi').json
        self.assertEqual([i['filename'] for i in chain],
                         [f'{i}.vdi' for i in (4, 3, 2, 1, 0)])

    def test_a_chain_of_old_headers(self):
        made = self.chain(3, version=0)
        self.assertEqual(self.raw('2.vdi'), vdi.flatten(*reversed(made)))

    def test_parents_are_found_where_virtualbox_has_them(self):
        made = self.chain(3)
        os.mkdir('Snapshots')
        for i in (1, 2):
            os.rename(f'{i}.vdi', f'Snapshots/{{{made[i].uuids[0]}}}.vdi')
        top = f'Snapshots/{{{made[2].uuids[0]}}}.vdi'
        self.assertEqual(self.raw(top), vdi.flatten(*reversed(made)))

    def test_of_two_with_the_same_uuid_the_unchanged_one_is_the_parent(self):
        for order in ('ab', 'ba'):
            made = self.chain(2)
            os.rename('0.vdi', order[0] + '.vdi')
            shutil.copy(order[0] + '.vdi', order[1] + '.vdi')
            self.io(order[1] + '.vdi', 'write -P 1 0 512')
            self.assertEqual(self.raw('1.vdi'), vdi.flatten(*reversed(made)))

    def test_a_missing_parent_is_named(self):
        made = self.chain(2)
        os.unlink('0.vdi')
        for command in (['convert', '-O', 'raw', '1.vdi', 'flat'],
                        ['map', '1.vdi'], ['compare', '1.vdi', '1.vdi']):
            result = tool.rhea(*command)
            self.assertNotEqual(result.code, 0)
            self.assertIn('1.vdi', result.err)
            self.assertIn(str(made[0].uuids[0]), result.err)
        self.rhea('info', '1.vdi')

    def test_a_changed_parent_is_an_error_that_names_both(self):
        for change in (lambda: self.io('0.vdi', 'write -P 1 0 512'),
                       lambda: self.io('0.vdi', 'write -z 0 1M')):
            self.chain(3)
            change()
            self.fails(tool.rhea('convert', '-O', 'raw', '2.vdi', 'flat'),
                       says="'1.vdi' and its parent '0.vdi'.*changed")
            # Nor is it written to.
            self.assertNotEqual(self.rhea_io('1.vdi', 'write 0 512').code, 0)

    def test_opening_for_writing_does_not_change_a_parent(self):
        made = self.chain(2)
        self.io('0.vdi', 'read 0 512')
        self.rhea('check', '-r', 'all', '0.vdi')
        self.assertEqual(self.raw('1.vdi'), vdi.flatten(*reversed(made)))

    def test_another_file_can_be_named(self):
        made = self.chain(2)
        os.mkdir('away')
        os.rename('0.vdi', 'away/base.vdi')
        self.rhea('convert', '-O', 'raw', '--image-opts',
                  'driver=vdi,file.filename=1.vdi,'
                  'backing.driver=vdi,backing.file.filename=away/base.vdi',
                  'flat')
        self.assertEqual(contents('flat'), vdi.flatten(*reversed(made)))

    def test_what_we_write_over_parents(self):
        """Random writes to chains, with a raw copy beside each image."""
        block = 64 * K
        size = 40 * block + 512
        rng = random.Random(11)
        self.rhea('create', '-q', '-f', 'vdi', '-o', f'block_size={block}',
                  '0.vdi', size)
        shadow = bytearray(size)
        for i in range(5):
            if i:
                self.rhea('create', '-q', '-f', 'vdi', '-o',
                          f'block_size={block}', '-b', f'{i - 1}.vdi', '-F',
                          'vdi', f'{i}.vdi')
            self.io(f'{i}.vdi', *tool.random_writes(
                rng, shadow, 12, (512, 5 * K, 3 * block), ('-z -u',)))
            self.clean(f'{i}.vdi')
            self.assertTrue(self.raw(f'{i}.vdi') == shadow)
            files = [vdi.read(f'{j}.vdi') for j in range(i, -1, -1)]
            self.assertTrue(vdi.flatten(*files) == shadow)
            for below, above in zip(files[1:], files):
                self.assertEqual(above.uuids[2:], below.uuids[:2])
                self.assertEqual(above.kind, vdi.DIFF)

    def test_commit_and_rebase(self):
        made = self.chain(4)
        want = vdi.flatten(*reversed(made))
        other = made[0].child()  # of the same base; it is to notice
        other.write('other.vdi')
        self.rhea('commit', '-b', '1.vdi', '3.vdi')
        self.assertEqual(self.raw('3.vdi'), want)
        self.assertEqual(self.raw('1.vdi'), want)
        self.raw('other.vdi')
        self.rhea('commit', '1.vdi')
        self.assertEqual(self.raw('0.vdi'), want)
        self.clean('0.vdi')
        self.fails(tool.rhea('convert', '-O', 'raw', 'other.vdi', 'flat'),
                   says='changed')
        self.assertEqual(self.raw('1.vdi'), want)
        self.assertEqual(vdi.read('1.vdi').count, 0)

        made = self.chain(4)
        self.rhea('rebase', '-b', '0.vdi', '-F', 'vdi', '3.vdi')
        for name in ('1.vdi', '2.vdi'):
            os.unlink(name)
        self.assertEqual(self.raw('3.vdi'), want)
        self.rhea('rebase', '-b', '', '3.vdi')
        os.unlink('0.vdi')
        self.assertEqual(self.raw('3.vdi'), want)
        self.assertEqual(vdi.read('3.vdi').kind, vdi.DYNAMIC)
        self.clean('3.vdi')

    def test_a_changed_parent_can_be_accepted(self):
        made = self.chain(2)
        self.io('0.vdi', f'write -P 7 0 {made[0].size}')
        self.fails(tool.rhea('map', '1.vdi'))
        self.rhea('rebase', '-u', '-b', '0.vdi', '-F', 'vdi', '1.vdi')
        made[0] = vdi.read('0.vdi')
        self.assertEqual(self.raw('1.vdi'), vdi.flatten(*reversed(made)))

    def test_what_cannot_be_a_parent(self):
        os.mkdir('away')
        self.rhea('create', '-q', '-f', 'vdi', 'away/base.vdi', '1M')
        self.rhea('create', '-q', '-f', 'raw', 'base.raw', '1M')
        self.fails(tool.rhea('create', '-f', 'vdi', '-b', 'away/base.vdi',
                             '-F', 'vdi', 'new.vdi'), says='one folder')
        self.fails(tool.rhea('create', '-f', 'vdi', '-b', 'base.raw', '-F',
                             'raw', 'new.vdi'), says='VDI image')
        self.fails(tool.rhea('create', '-u', '-f', 'vdi', '-b', 'gone.vdi',
                             '-F', 'vdi', 'new.vdi', '1M'), says='UUID')
        self.assertFalse(os.path.exists('new.vdi'))
        # Nor does a failure cost the file that was there.
        shutil.copy('away/base.vdi', 'old.vdi')
        self.fails(tool.rhea('create', '-f', 'vdi', '-b', 'away/base.vdi',
                             '-F', 'vdi', 'old.vdi'))
        self.assertEqual(contents('old.vdi'), contents('away/base.vdi'))

    # --- size ---

    def test_growing(self):
        block = 4 * K
        for seed in range(8):
            rng = random.Random(seed)
            kind = rng.choice((vdi.DYNAMIC, vdi.FIXED))
            made = vdi.Image(50 * block + 512 * (seed % 3), block, kind=kind,
                             extra=512 * (seed % 2), align=rng.choice((
                                 512, 4096)))
            want = vdi.flatten(made.scatter(seed).write('new'))
            for _ in range(4):
                size = len(want) + rng.randrange(1, 3000 * 8) * 512
                with self.subTest(seed=seed, size=size):
                    self.rhea('resize', '-f', 'vdi', 'new', size)
                    want = want.ljust(size, b'\0')
                    self.assertTrue(self.raw('new') == want)
                    self.clean('new')
                    self.assertTrue(vdi.flatten(vdi.read('new')) == want)
                    at = rng.randrange(size // 512 - 20) * 512
                    self.io('new', f'write -P 1 {at} 10k')
                    want = want[:at] + b'\1' * 10240 + want[at + 10240:]
                    self.assertTrue(self.raw('new') == want)

    def test_shrinking(self):
        """And growing again, which does not bring back what was lost."""
        block = 4 * K
        for seed in range(8):
            rng = random.Random(seed)
            made = vdi.Image(500 * block + 512 * (seed % 3), block,
                             kind=(vdi.DYNAMIC, vdi.FIXED)[seed // 2 % 2],
                             extra=512 * (seed % 4 == 1),
                             version=int(seed % 4 != 3))
            want = vdi.flatten(made.scatter(seed).write('new'))
            for _ in range(2):
                size = rng.randrange(1, len(want) // 512) * 512
                with self.subTest(seed=seed, size=size):
                    self.rhea('resize', '--shrink', '-f', 'vdi', 'new', size)
                    want = want[:size]
                    self.assertTrue(self.raw('new') == want)
                    self.clean('new')
                    self.assertTrue(vdi.flatten(vdi.read('new')) == want)
                    if not vdi.read('new').version:
                        continue
                    self.rhea('resize', '--shrink', '-f', 'vdi', 'new',
                              300 * block)
                    want = want.ljust(300 * block, b'\0')[:300 * block]
                    self.assertTrue(self.raw('new') == want)
                    self.clean('new')

    def test_shrinking_what_qemu_made(self):
        for options in ('static=off', 'static=on'):
            self.qemu('create', '-q', '-f', 'vdi', '-o', options, 'new', '40M')
            self.qemu_io('new', 'vdi', 'write -P 1 30M 9M', 'write -P 2 0 4M')
            self.rhea('resize', '--shrink', '-f', 'vdi', 'new', '3584k')
            self.sound('new', 'vdi')
            self.qemu_io('new', 'vdi', 'read -P 2 0 3584k')
            self.assertEqual(os.path.getsize('new') // MIB, 4, options)
            os.unlink('new')

    def test_shrinking_a_child(self):
        block = 4 * K
        base = vdi.Image(20 * block, block).scatter(1, 1).write('0.vdi')
        child = base.child(size=20 * block).scatter(2).write('1.vdi')
        want = vdi.flatten(child, base)
        for size in (18 * block, 9 * block + 512):
            self.rhea('resize', '--shrink', '1.vdi', size)
            self.assertTrue(self.raw('1.vdi') == want[:size])
            self.clean('1.vdi')

    def test_growing_what_qemu_made(self):
        self.make_data('raw', 3 * MIB, [(0, 3 * MIB)])
        for options in ('static=off', 'static=on'):
            self.qemu('convert', '-O', 'vdi', '-o', options, 'raw', 'new')
            self.rhea('resize', '-f', 'vdi', 'new', '300G')
            self.sound('new', 'vdi')
            self.assertEqual(tool.qemu('info', '--output=json', 'new').json[
                'virtual-size'], 300 << 30)
            self.qemu('dd', '-f', 'vdi', '-O', 'raw', 'bs=1M', 'count=3',
                      'if=new', 'of=out')
            self.assertEqual(contents('out'), contents('raw'))
            os.unlink('new')

    def test_growing_a_child_does_not_show_the_parent(self):
        block = 4 * K
        base = vdi.Image(20 * block, block).scatter(1, 1).write('0.vdi')
        base.child(size=10 * block + 512).write('1.vdi')
        want = vdi.flatten(base)[:10 * block + 512].ljust(15 * block, b'\0')
        self.rhea('resize', '1.vdi', 15 * block)
        self.assertTrue(self.raw('1.vdi') == want)

    def test_amend(self):
        self.rhea('create', '-q', '-f', 'vdi', 'new', '5M')
        self.io('new', 'write -P 3 1M 100k')
        before, facts = self.raw('new'), self.facts('new')
        self.rhea('amend', '-f', 'vdi', '-o', 'uuid=new,comment=a copy', 'new')
        now = self.facts('new')
        self.assertEqual(now.pop('comment'), 'a copy')
        self.assertNotEqual(now.pop('uuid'), facts.pop('uuid'))
        self.assertEqual(now, facts)
        wanted = '12345678-9abc-def0-1234-56789abcdef0'
        self.rhea('amend', '-o', f'uuid={wanted},comment=', 'new')
        self.assertEqual(self.facts('new'), {**facts, 'uuid': wanted})
        self.assertEqual(str(vdi.read('new').uuids[0]), wanted)
        self.assertEqual(self.raw('new'), before)
        self.sound('new', 'vdi')
        for bad in ('uuid=5', 'comment=' + 'x' * 256, 'block_size=2M'):
            self.fails(tool.rhea('amend', '-o', bad, 'new'))

    def facts(self, path):
        return self.rhea('info', '--output=json', path).json[
            'format-specific']['data']

    def test_what_cannot_be_resized(self):
        self.rhea('create', '-q', '-f', 'vdi', 'new', '5M')
        self.fails(tool.rhea('resize', '-f', 'vdi', 'new', '1M'),
                   says='--shrink')
        self.fails(tool.rhea('resize', '--shrink', '-f', 'vdi', 'new', 1000))
        self.fails(tool.rhea('resize', '--preallocation=full', '-f', 'vdi',
                             'new', '9M'))
        vdi.Image(6 * K, 4 * K, version=0).scatter(1).write('old')
        self.rhea('resize', '-f', 'vdi', 'old', 8 * K)
        self.fails(tool.rhea('resize', '-f', 'vdi', 'old', 9 * K))

    # --- damage ---

    def damaged(self, seed):
        """An image with errors, how many of each, and what it shows."""
        rng = random.Random(seed)
        block = 4 * K
        made = vdi.Image(60 * block, block).scatter(seed, 0.5)
        full = [i for i, n in enumerate(made.entries) if n < vdi.ZERO]
        rng.shuffle(full)
        errors = leaks = 0
        for _ in range(rng.randrange(4)):  # shares a block: one is a leak
            made.entries[full.pop()] = made.entries[full[0]]
            errors += 1
            leaks += 1
        for _ in range(rng.randrange(3)):  # leads out of the file
            made.entries[full.pop()] = rng.choice((1 << 20, vdi.ZERO - 1))
            errors += 1
            leaks += 1
        for _ in range(rng.randrange(3)):  # is nobody's
            made.entries[full.pop()] = vdi.FREE
            leaks += 1
        used = set(n for n in made.entries if n < 1 << 20)
        if rng.random() < 0.3:
            made.count = rng.randrange(max(used))
            errors += 1
        want = [made.blocks[n] if n < 1 << 20 else bytes(block)
                for n in made.entries]
        return made, errors, leaks, b''.join(want)

    def test_damage_is_found_and_repaired(self):
        for seed in range(40):
            with self.subTest(seed=seed):
                made, errors, leaks, want = self.damaged(seed)
                made.write('new')
                found = tool.rhea('check', '--output=json', 'new')
                self.assertEqual(found.code, 2 if errors else 3 * bool(leaks))
                self.assertEqual(found.json.get('corruptions', 0), errors)
                self.assertEqual(found.json.get('leaks', 0), leaks)
                if errors:
                    refused = self.rhea_io('new', 'write 0 512')
                    ok = made.count is not None and errors == 1
                    self.assertEqual(refused.code == 0, ok, str(refused))
                if errors and ok:
                    made.write('new')
                fixed = tool.rhea('check', '-r', 'all', 'new')
                self.assertEqual(fixed.code, 0, str(fixed))
                self.clean('new')
                self.assertTrue(self.raw('new') == want)
                self.io('new', 'write -P 3 0 4k')
                self.assertTrue(self.raw('new')[4 * K:] == want[4 * K:])

    def test_unused_blocks_are_used_again(self):
        made = vdi.Image(20 * 4 * K, 4 * K).scatter(5, 0.8)
        full = [i for i, n in enumerate(made.entries) if n < vdi.ZERO]
        for index in full[1:6]:
            made.entries[index] = vdi.FREE
        made.write('new')
        size = os.path.getsize('new')
        want = vdi.flatten(made)
        for i, index in enumerate(full[1:6]):
            self.io('new', f'write -P {i + 1} {index * 4 * K} 512')
            want = (want[:index * 4 * K] + bytes([i + 1]) * 512
                    + want[index * 4 * K + 512:])
        self.assertTrue(self.raw('new') == want)
        self.assertEqual(os.path.getsize('new'), size)
        self.clean('new')

    def test_repaired_for_qemu(self):
        made = vdi.Image(20 * MIB).scatter(6, 0.5)
        full = [i for i, n in enumerate(made.entries) if n < vdi.ZERO]
        made.entries[full[0]] = vdi.FREE
        made.entries[full[2]] = made.entries[full[3]]
        made.write('new')
        want = vdi.flatten(made)
        self.rhea_repair('new')
        self.sound('new', 'vdi')
        self.qemu('convert', '-O', 'raw', '-f', 'vdi', 'new', 'out')
        self.assertTrue(contents('out') == want)

    def rhea_repair(self, path):
        result = tool.rhea('check', '-r', 'all', path)
        self.assertEqual(result.code, 0, str(result))

    def test_a_file_cut_short_is_no_zeroes(self):
        made = vdi.Image(8 * 64 * K, 64 * K).scatter(2, 1).write('new')
        os.truncate('new', os.path.getsize('new') - 70 * K)
        self.fails(tool.rhea('convert', '-O', 'raw', 'new', 'flat'),
                   says='past the end of the file')
        found = tool.rhea('check', 'new')
        self.assertEqual(found.code, 2, str(found))
        self.assertEqual(len(made.blocks), 8)

    # --- many threads ---

    def test_threads_with_a_shadow(self):
        for seed in range(4):
            options = [f'block_size={(4 << seed)}k']
            want = self.random_by_threads(IMGTOOL, 'new', 3000000, seed,
                                          options=options)
            self.assertTrue(self.raw('new') == want)
            os.unlink('new')


if __name__ == '__main__':
    tool.main()
