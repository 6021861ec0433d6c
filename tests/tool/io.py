# SPDX-License-Identifier: MIT
"""rhea-io does and prints what qemu-io does, on images of every format."""
import os
import shutil

import tool
from iocase import FORMATS, IO, IoCase, plain


class IoTest(IoCase):
    def test_reads_and_writes(self):
        self.every_format('write 0 64k', 'write -P 7 64k 1.5k',
                          'write -P 0x1f 1M 512', 'read -P 0xcd 0 64k',
                          'read -P 7 65536 1536', 'read 0 4M', 'r 1 3',
                          'w 3 5', 'write -q 0 1', 'read -C 0 4k',
                          'write 0 0', 'read -p 0 1', 'length', code=0)

    def test_vectors(self):
        self.every_format('writev 0 512 1k 3', 'writev -P 5 1M 64k 64k 1',
                          'readv -v 500 20 4 1', 'readv -P 5 1M 1 1 1',
                          'readv 0 \t1k \t2k', code=0)

    def test_patterns_that_differ(self):
        self.every_format('write -P 1 0 1k', 'read -P 2 0 1k',
                          'read -P 1 -s 100 0 1k', 'read -P 0 -s 1k 0 2k',
                          'read -P 1 -l 1k 0 2k', 'read -P 1 -l 1025 0 2k',
                          'readv -P 1 0 1k 1', code=1)

    def test_dump(self):
        self.every_format('write -P 0x41 10 5', 'read -v 0 40',
                          'read -v 4194300 4', 'aio_read -v 8 9', 'aio_flush',
                          code=0)

    def test_zeroes_and_discards(self):
        self.every_format('write 0 1M', 'write -z 0 64k', 'write -z 100k 1k',
                          'write -z -u 128k 192k', 'read -P 0 0 64k',
                          'discard 512k 64k', 'discard -q 1 2',
                          'aio_write -z 700k 1k', 'aio_flush', code=0)

    def test_allocation(self):
        for fmt in ('qcow2', 'qed'):
            for cluster in ('4k', '64k'):
                with self.subTest(format=fmt, cluster=cluster):
                    self.fresh()
                    self.same(fmt, 'map', 'alloc 0', 'write 100k 1',
                              'write 1M 1M', 'map',
                              'alloc 64k 1M', 'alloc 3M 8M', 'alloc 9M 1k',
                              'alloc 0 4M', create=(
                                  '-o', f'cluster_size={cluster}'), code=0)

    def test_backing_chain(self):
        self.qemu('create', '-q', '-f', 'raw', 'base', '3M')
        tool.pattern('base', 0, 2 << 20, 1)
        self.same('qcow2', 'alloc 0 4M', 'write 64k 1k', 'map',
                  'discard 128k 128k', 'read -v 64k 64', 'read -P 0 3M 1M',
                  'map', create=('-b', 'base', '-F', 'raw'), code=0)

    def test_discard_keeps_backing_of_version_2(self):
        self.qemu('create', '-q', '-f', 'raw', 'base', '4M')
        self.same('qcow2', 'write 0 1M', 'discard 0 1M', 'map', 'read -v 0 16',
                  create=('-o', 'compat=0.10', '-b', 'base', '-F', 'raw'),
                  code=0)

    def test_compressed(self):
        self.same('qcow2', 'write -c 0 64k', 'write -c -P 3 64k 128k',
                  'read -P 3 64k 128k', 'write 70k 1k', 'map', code=0)
        self.same('qcow2', 'write -c 512 64k', code=1)
        self.same('qcow2', 'write -c -z 64k 64k', 'read -P 0 64k 64k', 'map',
                  code=0)

    def test_compressed_is_not_for_all(self):
        for fmt in ('qed', 'raw'):
            self.fresh()
            self.same(fmt, 'write -c 0 64k', code=1)

    def test_from_a_file(self):
        with open('source', 'wb') as f:
            f.write(b'abc\n')
        self.every_format('write -s source 1 10', 'read -v 0 16', code=0)
        self.fresh()
        self.same('raw', 'write -s missing 0 4', code=1)

    def test_asynchronous(self):
        commands = []
        for i in range(40):
            commands.append(f'aio_write -P {i + 1} {i * 96}k 64k')
        self.every_format(*commands, 'aio_flush', 'aio_read -P 1 0 64k',
                          'aio_flush', 'aio_read -P 9 0 64k', 'aio_flush',
                          'aio_read -i 0 1', 'aio_write -i 0 1',
                          any_order=True)

    def test_later_of_two_overlapping_writes_wins(self):
        r = self.run_io(IO, self.image('qcow2'), *(
            f'aio_write -q -P {i} 0 256k' for i in range(1, 65)),
            'aio_flush', 'read -P 64 0 256k')
        self.assertEqual(r.code, 0, str(r))
        self.assertNotIn('failed', r.out)

    def image(self, fmt, name='image', size='4M'):
        self.qemu('create', '-q', '-f', fmt, name, size)
        return name

    def test_past_the_end(self):
        for fmt in FORMATS:
            for command in ('read 4M 1', 'read 4194303 2', 'write 4M 1',
                            'write 5M 0', 'write -z 3M 2M', 'discard 4M 1k',
                            'read 7E 1', 'writev 4M 1 1', 'readv 3M 1M 1',
                            'aio_read 4M 1', 'aio_write 4M 1'):
                with self.subTest(format=fmt, command=command):
                    self.fresh()
                    self.same(fmt, command)

    def test_wrong_commands(self):
        """Of these only the exit code and the image can be the same."""
        for command in ('', ' ', 'foo', 'read', 'read 0', 'read 0 1 2',
                        'read x 1', 'read 0 1x', 'read -P', 'read -Z 0 1',
                        'read -l 1 0 1', 'read -s 1 0 1', 'read 0 3G',
                        'read -P 1 -s 2 0 1', 'read -b 1 512', 'write 0',
                        'write -n 0 1', 'write -u 0 1', 'write -z -P 1 0 1', 'write -s x -P 1 0 1',
                        'write -b -z 0 512', 'write -f -c 0 64k',
                        'write -b 0 1', 'writev 0', 'writev 0 x', 'readv 0',
                        'aio_read 0', 'aio_write -u 0 1', 'aio_write 0 x',
                        'aio_write -z 0 1 2', 'discard 0', 'discard 0 4G',
                        'alloc', 'alloc 1 2 3', 'alloc x', 'length 1',
                        'map 1', 'help foo', 'sleep', 'sleep x', 'sleep -1',
                        'sigraise 1000', 'truncate', 'truncate x', 'reopen -Z',
                        'reopen -r -w', 'reopen x', 'open', 'open a b',
                        'read 0 99999999999999999999', 'read -- -1 1',
                        'wait_break', 'break a', 'resume', 'remove_break',
                        'break x A', 'resume A', 'remove_break A',
                        'close 1', 'flush 1', 'aio_flush 1', 'abort 1'):
            with self.subTest(command=command):
                results = [self.run_io(p, self.image('raw', 'x'), command,
                                       fmt='raw')
                           for p in ('qemu-io', './qemu-io')]
                self.assertEqual(results[0].code, results[1].code,
                                 f'{results[0]}\n{results[1]}')

    def test_patterns_that_are_none(self):
        for word in ('256', '-1', 'x', '4k', '0x100', '1.5'):
            with self.subTest(word=word):
                self.same('raw', f'write -P {word} 0 1', code=1)

    def test_read_only(self):
        self.same('qcow2', 'write 0 64k')
        self.same('qcow2', 'write 0 1', 'read 0 64k', 'writev 0 1',
                  'aio_write 0 1', 'discard 0 1', options=('-r',), code=1)
        self.same('qcow2', 'write -P 9 0 64k', 'reopen -r', 'write -P 1 0 1',
                  'read -P 9 0 1', 'reopen -w', 'write -P 2 0 1',
                  'read -P 2 0 1', code=1)

    def test_reopening_with_options(self):
        for command in ('reopen -o lazy-refcounts=on', 'reopen -o driver=qcow2',
                        'reopen -o driver=raw', 'reopen -r -o read-only=on',
                        'reopen -c none -o cache.direct=on', 'reopen -c none',
                        'reopen -o overlap-check=maybe', 'reopen -o nonsense=1',
                        'reopen -o backing=none'):
            with self.subTest(command=command):
                self.fresh()
                self.same('qcow2', command, 'write 0 4k', 'read -P 0xcd 0 4k')

    def test_reopening_keeps_how_the_image_was_named(self):
        """A raw image that looks like another stays raw, and a list of
        options is no file name."""
        path = self.image('qcow2')
        r = self.run_io(IO, path, 'reopen -r -o cache.no-flush=on', 'length',
                        fmt='raw')
        self.assertEqual((r.code, r.err), (0, ''), str(r))
        self.assertNotIn('4 MiB', r.out)
        r = self.run_io(IO, f'driver=qcow2,file.filename={path}',
                        'reopen -r -o lazy-refcounts=on', 'length',
                        options=('--image-opts',))
        self.assertEqual((r.code, r.out, r.err), (0, '4 MiB\n', ''), str(r))

    def test_what_truncate_adds_hides_the_backing_file(self):
        self.qemu('create', '-q', '-f', 'raw', 'base', '2M')
        tool.pattern('base', 0, 2 << 20, 1)
        self.same('qcow2', 'truncate 3M', 'length', 'map',
                  'read -P 0 1M 2M', size='1M', code=0,
                  create=('-b', 'base', '-F', 'raw'))

    def test_commands_from_standard_input(self):
        self.every_format(stdin='write 0 4k\n\n  read  -P 0xcd 0 4k\nfoo\n'
                          'aio_write 8k 1k\naio_flush\nlength\nquit\nread 0 1',
                          code=1)

    def test_open_and_close(self):
        for fmt in ('qcow2', 'raw'):
            out = []
            for program in ('qemu-io', './qemu-io'):
                self.image(fmt)
                r = self.run_io(program, None, f'open -o driver={fmt} image',
                                'write 0 4k', 'close', 'open -r image',
                                'read -P 0xcd 0 4k', 'close', 'open image',
                                'length', 'quit', 'length')
                out.append((r.code, plain(r.out)))
            self.assertEqual(out[0], out[1])
            self.assertEqual(out[0][0], 0)

    def test_without_a_file(self):
        for program in ('qemu-io', './qemu-io'):
            r = self.run_io(program, None, 'read 0 1')
            self.assertEqual((r.code, r.err),
                             (1, "no file open, try 'help open'\n"))

    def test_snapshot_forgets(self):
        path = self.image('qcow2')
        self.qemu_io(path, 'qcow2', 'write -P 1 0 64k')
        before = tool.contents(path)
        r = self.run_io(IO, path, 'write -P 2 0 64k', 'read -P 2 0 64k',
                        'read -P 0 64k 64k', options=('-s',))
        self.assertEqual((r.code, r.err), (0, ''), str(r))
        self.assertEqual(tool.contents(path), before)

    def test_an_image_that_was_not_closed_is_repaired_aloud(self):
        for program, path in (('qemu-io', 'theirs'), (IO, 'ours')):
            self.qemu('create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on',
                      path, '4M')
            self.run_io(program, path, 'write 0 512', 'sigraise 9')
            r = self.run_io(program, path, 'read 0 1', options=('-r',))
            self.assertEqual((r.code, r.err), (0, ''), str(r))
            r = self.run_io('qemu-io' if path == 'ours' else IO, path,
                            'write 0 512')
            self.assertEqual(r.code, 0, str(r))
            self.assertRegex(r.err, '(?m)^ERROR cluster')
            self.sound(path, 'qcow2')

    def test_what_is_written_at_once_stays_together(self):
        """Refcount blocks stand behind it, not in the middle."""
        create = ('-o', 'cluster_size=4k,refcount_bits=64')
        self.same('qcow2', 'write -P 1 0 12M', size='12M', create=create)
        maps = [[(e['start'], e['length'], e['offset'])
                 for e in self.qemu('map', '--output=json', path).json]
                for path in ('ours', 'theirs')]
        self.assertEqual(*maps)

    def test_what_was_discarded_is_used_before_the_file_grows(self):
        path = self.image('qcow2', size='64M')
        again = ('discard 0 32M', 'write 0 32M') * 6
        r = self.run_io(IO, path, 'write 0 32M', *again,
                        options=('-t', 'writeback'))
        self.assertEqual((r.code, r.err), (0, ''), str(r))
        self.assertLess(os.path.getsize(path), 66 * tool.MIB)
        self.sound(path, 'qcow2')

    def test_snapshot_of_what_options_name(self):
        """Of an encrypted image, too, and of one with another backing file."""
        secret = ('--object', 'secret,id=s,data=open')
        # qemu-img makes none on a busy machine.
        self.rhea('create', '-q', *secret, '-f', 'luks', '-o',
                  'key-secret=s,iter-time=10', 'luks', '1M')
        for fmt, options in (
                ('qcow2', 'driver=qcow2,file.filename='),
                ('luks', 'driver=luks,key-secret=s,file.filename=')):
            with self.subTest(format=fmt):
                path = 'luks' if fmt == 'luks' else self.image(fmt)
                before = tool.contents(path)
                for commands in (('write -P 2 0 64k', 'read -P 2 0 64k',
                                  'write -z 32k 64k', 'read -P 0 32k 64k',
                                  'discard 0 64k', 'length'),
                                 ('read 0 1M', 'reopen', 'close', 'length')):
                    r = self.run_io(IO, options + path, *commands,
                                    options=('-s', '--image-opts', *secret))
                    self.assertNotIn('failed', r.out, str(r))
                self.assertEqual(tool.contents(path), before)

    def test_copy_on_read(self):
        self.qemu('create', '-q', '-f', 'raw', 'base', '4M')
        tool.pattern('base', 0, 4 << 20, 1)
        self.same('qcow2', 'read 100k 1k', 'map', 'read 1M 200k', 'map',
                  create=('-b', 'base', '-F', 'raw'), options=('-C',), code=0)

    def test_cache_modes(self):
        for mode in ('writethrough', 'writeback', 'none', 'directsync',
                     'unsafe'):
            self.fresh()
            self.same('qcow2', 'write 1000 10k', 'write -f 20k 3', 'flush',
                      'read 0 64k', options=('-t', mode), code=0)
        self.same('qcow2', 'write 3 100k', 'read 1 2k', options=('-n', '-m'),
                  code=0)
        r = self.run_io(IO, 'ours', options=('-t', 'maybe'))
        self.assertEqual(r.code, 1)

    def test_writethrough_survives_a_kill(self):
        """Each write is on the disk before its line is printed."""
        for fmt in FORMATS:
            with self.subTest(format=fmt):
                path = self.image(fmt, f'kill.{fmt}')
                r = self.run_io(IO, path, 'write -P 5 64k 300k', 'sigraise 9',
                                fmt=fmt)
                self.assertEqual(r.code, -9, str(r))
                shutil.copy(path, 'copy')
                r = self.run_io('qemu-io', 'copy', 'read -P 5 64k 300k',
                                fmt=fmt)
                self.assertEqual(r.code, 0, str(r))

    def test_info(self):
        for fmt, create in (('qcow2', ()), ('qcow2', ('-o', 'compat=0.10')),
                            ('qcow2', ('-o', 'extended_l2=on')),
                            ('qed', ()), ('raw', ())):
            with self.subTest(format=fmt, create=create):
                self.fresh()
                self.same(fmt, 'info', create=create, code=0)

    def test_help_lists_what_qemu_io_has(self):
        def names(program, own=()):
            out = self.run_io(program, None, 'help').out
            return {line.split()[0] for line in out.splitlines()
                    if ' -- ' in line} - set(own)
        self.assertEqual(names('qemu-io') - names('./qemu-io'), set())
        for name in sorted(names('./qemu-io')):
            r = self.run_io(IO, None, f'help {name}')
            self.assertEqual(r.code, 0, str(r))
            self.assertTrue(r.out.startswith(name), str(r))

    def test_reasons_under_our_own_name(self):
        r = self.run_io(IO, self.image('raw'), 'read 4M 1', fmt='raw')
        self.assertEqual(r.out, 'read failed: Input/output error\n')
        self.assertRegex(r.err, '^rhea-io: .*inside')

    def test_wrong_options(self):
        for options in (('-Z',), ('--nonsense',), ('-d', 'x'), ('-i', 'x'),
                        ('-f', 'nonsense'), ('-c',), ('a', 'b')):
            r = self.run_io(IO, self.image('raw'), options=options)
            self.assertEqual(r.code, 1, str(r))
            self.assertRegex(r.err, '^rhea-io: .+')


if __name__ == '__main__':
    tool.main()
