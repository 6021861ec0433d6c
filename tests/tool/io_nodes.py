# SPDX-License-Identifier: MIT
"""rhea-io on images that are put together of several nodes, as qemu-io."""
import shutil

import tool
from iocase import IO, IoCase

# What an option list begins with that names a file of its own, by its name.
LIMITS = ('align=4k,max-transfer=64k',
          'align=512,max-transfer=64k,opt-write-zero=1M',
          'align=512,opt-write-zero=15M,max-write-zero=15M',
          'align=512,opt-discard=15M,max-discard=15M',
          'align=4k,opt-write-zero=3M,max-write-zero=6M,opt-discard=5M')


class IoNodes(IoCase):
    def both(self, *commands, code=0):
        """The same on two equal images; {} in a command is the image."""
        results = []
        for program, path in (('qemu-io', 'theirs'), ('./qemu-io', 'ours')):
            results.append(self.run_io(
                program, None, *(c.replace('{}', path) for c in commands)))
        theirs, ours = results
        plain = [r.out.replace('theirs', 'ours').splitlines() for r in results]
        for lines in plain:
            lines[:] = [x for x in lines if ' ops; ' not in x]
        self.assertEqual((ours.code, plain[1]), (theirs.code, plain[0]),
                         f'{ours}\n{theirs}')
        self.assertEqual(ours.code, code, str(ours))
        return ours

    def make(self, fmt='qcow2', size='64M', create=()):
        self.fresh()
        for path in ('ours', 'theirs'):
            self.qemu('create', '-q', '-f', fmt, *create, path, size)

    def base(self):
        self.qemu('create', '-q', '-f', 'raw', 'base', '64M')
        tool.pattern('base', 5 << 20, 3 << 20, 1)

    def settle(self, fmt='qcow2', maps=True):
        self.sound('ours', fmt)
        self.identical('ours', fmt, 'theirs', fmt)
        if not maps:
            return
        maps = [self.qemu('map', '-f', fmt, '--output=json', path).json
                for path in ('ours', 'theirs')]
        for found in maps:
            for entry in found:
                entry.pop('offset', None)
        self.assertEqual(*maps)

    def test_limits_in_front_of_a_format(self):
        """The limits of blkdebug decide what is written, zeroed and given
        back; where the bytes are shows through it."""
        self.base()
        for limits in LIMITS:
            with self.subTest(limits=limits):
                self.make(create=('-b', 'base', '-F', 'raw'))
                self.both(f'open -o driver=blkdebug,image.driver=qcow2,{limits} '
                          'blkdebug::{}', 'write -P 5 0 50M',
                          'write -P 33 1000 128k', 'read -P 33 1000 128k',
                          'write -z 8003584 2093056', 'write -z 20M 29M',
                          'discard 30000001 19M', 'alloc 1 1', 'alloc 49M 10M',
                          'map')
                self.settle()

    def test_map_through_a_filter(self):
        self.base()
        self.make(create=('-b', 'base', '-F', 'raw'))
        self.qemu_io('ours', 'qcow2', 'write 0 1M', 'write -z 6M 1M')
        options = ('driver=blkdebug,image.driver=qcow2,'
                   'image.file.filename=ours,align=4k')
        args = ('map', '--image-opts', options)
        self.assertEqual(self.rhea(*args).out, self.qemu(*args).out)
        args += ('--output=json',)
        self.assertEqual(tool.without(self.rhea(*args).json, ('compressed',)),
                         tool.without(self.qemu(*args).json, ('compressed',)))
        self.rhea('convert', '-O', 'raw', '--image-opts', options, 'copy')
        self.identical('copy', 'raw', 'ours', 'qcow2')

    def test_copy_on_read(self):
        self.base()
        for fmt in ('qcow2', 'qed'):
            with self.subTest(format=fmt):
                self.make(fmt, create=('-b', 'base', '-F', 'raw'))
                self.both(f'open -o driver=copy-on-read,file.driver={fmt} {{}}',
                          'read 0 0', 'write -z 4M 64k', 'read 5000000 300k',
                          'read 32M 10M', 'read 67108863 1', 'map', 'info')
                # What is zero is copied as zeroes, qemu-io also copies data.
                self.settle(fmt, maps=False)

    def test_copy_on_read_of_what_is_there_writes_nothing(self):
        self.base()
        self.make(create=('-b', 'base', '-F', 'raw'))
        with open('rules', 'w', encoding='ascii') as f:
            f.write('[inject-error]\nevent = "cor_write"\nsector = "10240"\n')
        self.both('open -o driver=copy-on-read,file.driver=blkdebug,'
                  'file.config=rules,file.image.driver=qcow2 {}',
                  'write -P 7 5M 64k', 'read 5M 128k', 'map')
        self.settle()

    def test_copy_on_read_needs_an_image_to_write_to(self):
        self.make()
        r = self.run_io(IO, None, 'open -r -o driver=copy-on-read,'
                        'file.driver=qcow2 ours')
        self.assertEqual(r.code, 1, str(r))
        self.assertRegex(r.err, 'for reading only')

    def test_what_compress_writes(self):
        """Clusters that are new; those that are there are written over, which
        qemu-io refuses."""
        self.make()
        name = 'json:{"driver": "compress", "file": {"driver": "qcow2", ' \
               '"file": {"driver": "file", "filename": "%s"}}}'
        for path, program in (('ours', IO), ('theirs', 'qemu-io')):
            for command in ('write -P 5 0 229376', 'write -P 6 278528 200k',
                            'read -P 5 100k 1k'):
                r = self.run_io(program, name % path, command)
                self.assertEqual((r.code, r.err), (0, ''), str(r))
        self.assertEqual(
            self.qemu('check', '--output=json', 'ours').json[
                'compressed-clusters'], 8)
        self.settle()
        r = self.run_io(IO, name % 'ours', 'write -P 9 1000 100k',
                        'read -P 9 1000 100k', 'read -P 5 0 1000')
        self.assertEqual((r.code, r.err), (0, ''), str(r))
        self.sound('ours', 'qcow2')

    def test_compress_is_for_formats_that_can(self):
        self.make('qed')
        r = self.run_io(IO, 'driver=compress,file.driver=qed,'
                        'file.file.filename=ours', 'length',
                        options=('--image-opts',))
        self.assertEqual(r.code, 1, str(r))
        self.assertRegex(r.err, 'compressed')

    def test_filters_have_no_other_options(self):
        self.make()
        for options in ('driver=compress,nonsense=1,file.driver=qcow2',
                        'driver=copy-on-read,file=ours',
                        'driver=copy-on-read', 'driver=copy-on-write'):
            r = self.run_io(IO, options, 'length', options=('--image-opts',))
            self.assertEqual(r.code, 1, str(r))

    def test_what_the_nodes_are_cannot_be_changed(self):
        self.base()
        self.make(create=('-b', 'base', '-F', 'raw'))
        for options in ('node-name=x', 'file.node-name=x',
                        'backing.node-name=x', 'driver=raw',
                        'file.driver=qcow2', 'backing.driver=file',
                        'read-only=perhaps', 'cache.direct=perhaps'):
            with self.subTest(options=options):
                self.both('open {}', f'reopen -o {options}', 'length', code=1)
        for options in ('node-name=x', 'file.node-name=x',
                        'backing.node-name=x'):
            with self.subTest(options=options):
                self.both(f'open -o {options} {{}}', f'reopen -o {options}',
                          'reopen', 'length')
        for options in ('driver=qcow2', 'file.driver=file',
                        'backing.driver=raw'):
            with self.subTest(options=options):
                self.both('open {}', f'reopen -o {options}', 'length')

    def test_info_of_a_storage(self):
        self.make()
        self.both('open -o driver=file {}', 'reopen', 'info')
        r = self.run_io('./qemu-io', "json:{'driver': 'null-co', 'size': 65536}",
                        'reopen', 'info', fmt='null-co')
        self.assertEqual(r.out, 'format name: null-co\n' * 2)

    def quorum(self, *more, names=('c0', 'c1', 'c2'), threshold=2, driver=''):
        options = [f'vote-threshold={threshold}', *more]
        for i, name in enumerate(names):
            child = f'children.{i}.'
            if ':' in name:
                options += [f'{child}driver=blkdebug',
                            f'{child}image.filename={name[1:]}',
                            f'{child}inject-error.0.event=none']
            else:
                options += [f'{child}driver=file', f'{child}filename={name}']
        if not driver:
            return ','.join(['driver=quorum', *options])
        return ','.join([f'driver={driver}', 'file.driver=quorum',
                         *('file.' + o for o in options)])

    def quorum_io(self, options, *commands):
        """The same as qemu-io, on copies."""
        results = []
        for program in ('qemu-io', './qemu-io'):
            for name in ('c0', 'c1', 'c2'):
                shutil.copy(name, 'kept-' + name)
            r = self.run_io(program, options, *commands,
                            options=('--image-opts',))
            results.append((r.code, [x for x in r.out.splitlines()
                                     if ' ops; ' not in x],
                            [tool.contents(n) for n in ('c0', 'c1', 'c2')]))
            if program == 'qemu-io':
                for name in ('c0', 'c1', 'c2'):
                    shutil.copy('kept-' + name, name)
        self.assertEqual(results[1][:2], results[0][:2])
        self.assertTrue(results[1][2] == results[0][2])

    def test_quorum(self):
        for name, byte in (('c0', 5), ('c1', 5), ('c2', 9)):
            with open(name, 'wb') as f:
                f.write(bytes([byte]) * 65536 + bytes(983040))
        work = ('read -P 5 0 64k', 'write -P 7 4k 8k', 'write -z 20k 4k',
                'read -P 5 0 4k', 'read -P 7 4k 8k', 'read -P 0 64k 64k',
                'discard 128k 64k', 'length', 'map')
        for more in ((), ('read-pattern=fifo',), ('rewrite-corrupted=on',),
                     ('read-pattern=quorum', 'blkverify=off')):
            for threshold in (1, 2, 3):
                with self.subTest(more=more, threshold=threshold):
                    self.quorum_io(self.quorum(*more, threshold=threshold),
                                   *work)
        for more, threshold in (((), 4), ((), 0), (('blkverify=on',), 2),
                                (('read-pattern=x',), 2),
                                (('rewrite-corrupted=on',
                                  'read-pattern=fifo'), 2)):
            with self.subTest(more=more, threshold=threshold):
                self.quorum_io(self.quorum(*more, threshold=threshold),
                               'length')

    def test_a_child_of_a_quorum_that_fails(self):
        for name in ('c0', 'c1', 'c2'):
            with open(name, 'wb') as f:
                f.truncate(1 << 20)
        for names, threshold, code in (
                ((':c0', 'c1', 'c2'), 2, 0), (('c0', ':c1', ':c2'), 2, 1),
                ((':c0', 'c1', 'c2'), 3, 1)):
            with self.subTest(names=names, threshold=threshold):
                r = self.run_io(IO, self.quorum(names=names,
                                                threshold=threshold),
                                'write -P 3 0 64k', 'read -P 3 0 64k',
                                options=('--image-opts',))
                self.assertEqual(r.code, code, str(r))
                self.assertRegex(r.err, '(?m)^child [012] of 3 of the quorum')

    def test_a_format_on_a_quorum(self):
        self.make('qcow2', '8M')
        for name in ('c0', 'c1', 'c2'):
            shutil.copy('ours', name)
        options = self.quorum(driver='qcow2')
        r = self.run_io(IO, options, 'write -P 3 1M 3M', 'write -z 2M 1M',
                        'discard 3M 64k', 'read -P 3 1M 1M',
                        options=('--image-opts',))
        self.assertEqual((r.code, r.err), (0, ''), str(r))
        for name in ('c0', 'c1', 'c2'):
            self.sound(name, 'qcow2')
            self.assertEqual(tool.contents(name), tool.contents('c0'))
        ours = self.rhea('info', '--image-opts', options).out
        name = ours.splitlines()[0].split(' ', 1)[1]
        self.assertEqual(name, self.qemu('info', '--image-opts', options)
                         .out.splitlines()[0].split(' ', 1)[1])
        self.assertEqual(self.rhea('info', name).out, ours)

    def test_errors_of_a_data_file(self):
        """What stands in front of it fails where that passes the event."""
        self.make(create=('-o', 'data_file=data'))
        with open('rules', 'w', encoding='ascii') as f:
            f.write('[inject-error]\nevent = "write_aio"\nonce = "on"\n')
        name = ('driver=qcow2,file.filename=ours,data-file.driver=raw,'
                'data-file.file.driver=blkdebug,data-file.file.config=rules,'
                'data-file.file.image.filename=data')
        r = self.run_io('./qemu-io', name, 'write 0 64k', 'write 0 64k',
                        options=('--image-opts',))
        self.assertEqual(r.out.splitlines()[0],
                         'write failed: Input/output error', str(r))
        self.assertIn('wrote 65536', r.out)
        self.sound('ours', 'qcow2')

    def test_data_and_reserved_zeroes_in_a_row_are_one_write(self):
        """The second write under way would fail."""
        rules = ('set-state.0.event=write_aio,set-state.0.new_state=2,'
                 'inject-error.0.event=write_aio,inject-error.0.state=2')
        for extended in ('off', 'on'):
            with self.subTest(extended_l2=extended):
                self.make(create=('-o', f'extended_l2={extended}'))
                self.both('open {}', 'write -P 42 0 256k', 'write -z 64k 64k')
                self.both(f'open -o file.driver=blkdebug,{{}}'.replace(
                    '{}', ','.join('file.' + r for r in rules.split(','))) +
                          ',file.image.filename={},driver=qcow2',
                          'write -P 23 0 200k', 'read -P 23 0 200k',
                          'read -P 42 200k 56k')
                self.settle()


if __name__ == '__main__':
    tool.main()
