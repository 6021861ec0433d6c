# SPDX-License-Identifier: MIT
"""Images by options, by json: names, and one upon another."""
import json
import os
import subprocess
import unittest

import tool

MIB = tool.MIB


def described(**options):
    return 'json:' + json.dumps(options)


class Names(tool.Case):
    def setUp(self):
        super().setUp()
        self.make_data('base', MIB, [(0, 70000), (500000, 3000)])
        self.qemu('convert', '-f', 'raw', '-O', 'qcow2', 'base', 'b.qcow2')
        self.qemu('create', '-q', '-f', 'qcow2', '-b', 'b.qcow2', '-F',
                  'qcow2', 'top')
        self.qemu_io('top', 'qcow2', 'write -P 7 128k 64k')

    def same_info(self, *args):
        self.same('info', *args)
        ours, theirs = (run('info', '--output=json', *args)
                        for run in (tool.rhea, tool.qemu))
        self.assertEqual((ours.code, ours.out), (theirs.code, theirs.out))

    def test_options_are_those_of_qemu_img(self):
        for text in ('driver=qcow2,file.filename=top',
                     'file.filename=top',
                     'driver=qcow2,file.driver=file,file.filename=top',
                     'driver=raw,file.filename=top',
                     'driver=file,filename=top',
                     'driver=qcow2,file.filename=top,backing=',
                     'driver=qcow2,file.filename=top,lazy-refcounts=on',
                     'driver=qcow2,file.filename=top,overlap-check=none,'
                     'l2-cache-size=1M,cache-clean-interval=10',
                     'driver=qcow2,file.filename=top,cache.direct=on,'
                     'cache.no-flush=on,node-name=x,read-only=on',
                     'driver=qcow2,file.filename=top,discard=unmap,'
                     'detect-zeroes=unmap,file.locking=off,force-share=on',
                     'driver=raw,file.filename=base,offset=512',
                     'driver=raw,file.filename=base,offset=512,size=64k',
                     'driver=qcow2,file.driver=raw,file.file.filename=top'):
            with self.subTest(text=text):
                self.same_info('--image-opts', text)

    def test_json_names_are_those_of_qemu_img(self):
        for options in (
                {'driver': 'qcow2', 'file': {'filename': 'top'}},
                {'file.driver': 'file', 'file.filename': 'top'},
                {'driver': 'file', 'filename': 'top'},
                {'driver': 'raw', 'offset': 512, 'size': 1024,
                 'file': {'driver': 'file', 'filename': 'base'}},
                {'driver': 'raw', 'offset': '1k', 'file.filename': 'base'},
                {'driver': 'qcow2', 'file': {'driver': 'raw', 'offset': 0,
                                             'file.filename': 'top'}},
                {'driver': 'qcow2', 'lazy-refcounts': True,
                 'file.filename': 'top'},
                {'file': {'driver': 'qcow2', 'file': {'filename': 'top'}},
                 'driver': 'qcow2'}):
            with self.subTest(options=options):
                self.same_info(described(**options))
        self.same_info("json:{'driver': 'qcow2', 'file.filename': 'top'}")
        self.same_info('-f', 'raw', described(driver='qcow2',
                                              **{'file.filename': 'top'}))

    def test_what_nobody_knows_is_an_error(self):
        for text, says in (
                ('driver=qcow2,file.filename=top,foo=1', "'foo'"),
                ('driver=qcow2,file.filename=top,file.foo=1', "'foo'"),
                ('driver=qcow2,file.filename=top,offset=1', "'offset'"),
                ('driver=raw,file.filename=top,lazy-refcounts=on', 'lazy'),
                ('driver=foo,file.filename=top', "'foo'"),
                ('driver=qcow2', 'file.filename'),
                ('driver=qcow2,filename=top', 'file.filename'),
                ('driver=qcow2,file=top', 'no node of that name'),
                ('driver=qcow2,file.filename=top,backing=top', 'no node'),
                ('driver=raw,file.filename=base,backing.driver=raw', 'backing'),
                ('driver=qcow2,file.filename=top,data-file.filename=base',
                 'data-file'),
                ('driver=qcow2,file.filename=top,detect-zeroes=unmap',
                 'discard'),
                ('driver=qcow2,file.filename=top,cache.direct=maybe', 'maybe'),
                ('driver=qcow2,file.filename=top,overlap-check=some', 'some'),
                ('driver=raw,file.filename=base,offset=2M', 'offset'),
                ('driver=raw,file.filename=base,size=2M', 'size'),
                ('driver=raw,file.filename=base,size=1000', 'multiple'),
                ('driver=qcow2,file.filename=none', 'none'),
                ('driver=qcow2,file.filename=nbd:top', 'nbd:top'),
                ('top', 'no node of that name')):
            with self.subTest(text=text):
                self.fails(tool.rhea('map', '--image-opts', text), says=says)
        self.fails(tool.rhea('map', '-f', 'qcow2', '--image-opts',
                             'file.filename=top'), says='driver=qcow2')

    def test_bad_json_is_an_error(self):
        deep = 'json:' + '{"file":' * 200 + '1' + '}' * 200
        for name in ('json:', 'json:{', 'json:[1]', 'json:{"driver":1}',
                     'json:{"driver":"qcow2","driver":"raw"}',
                     'json:{"file":{"filename":["top"]}}', deep,
                     'json:{"' + 300 * 'x' + '":1}'):
            with self.subTest(name=name[:50]):
                self.fails(tool.rhea('info', name))

    def test_nodes_cannot_pile_up_without_end(self):
        options = {'filename': 'top'}
        for _ in range(20):
            options = {'driver': 'raw', 'file': options}
        self.fails(tool.rhea('map', described(**options)), says='on each')
        name = described(driver='raw', file={
            'driver': 'qcow2', 'file.filename': 'loop'})
        self.qemu('create', '-q', '-u', '-f', 'qcow2', '-b', name, '-F', 'raw',
                  'loop', '1M')
        self.fails(tool.rhea('map', 'loop'))

    def test_backing_names_may_be_json(self):
        name = described(driver='qcow2', file={'driver': 'file',
                                               'filename': 'b.qcow2'})
        self.qemu('create', '-q', '-f', 'qcow2', '-b', name, '-F', 'qcow2',
                  'j')
        self.same_info('j')
        self.same_info('--backing-chain', 'j')
        self.identical('j', 'qcow2', 'base', 'raw')
        self.rhea('compare', '-f', 'qcow2', 'j', '-F', 'raw', 'base')
        self.rhea('create', '-q', '-f', 'qcow2', '-b', name, '-F', 'qcow2',
                  'ours')
        self.identical('ours', 'qcow2', 'base', 'raw')
        self.fails(tool.rhea('create', described(filename='new'), '1M'),
                   says='json')

    def test_another_image_can_be_put_below(self):
        self.make_data('other', MIB, [(0, 4096)], seed=5)
        text = ('driver=qcow2,file.filename=top,backing.driver=raw,'
                'backing.file.filename=other')
        self.rhea('convert', '--image-opts', '-O', 'raw', text, 'ours')
        self.qemu('convert', '--image-opts', '-O', 'raw', text, 'theirs')
        self.identical('ours', 'raw', 'theirs', 'raw')
        self.same('compare', '--image-opts', text,
                  'driver=qcow2,file.filename=top', code=1)
        self.rhea('convert', '--image-opts', '-O', 'raw',
                  'driver=qcow2,file.filename=top,backing=', 'alone')
        with open('alone', 'rb') as f:
            self.assertEqual(f.read(65536), bytes(65536))

    def test_a_part_of_a_raw_file(self):
        with open('base', 'rb') as f:
            whole = f.read()
        with open('shell', 'wb') as f:
            f.write(b'x' * 3072 + whole + b'y' * 5000)
        part = f'driver=raw,file.filename=shell,offset=3k,size={MIB}'
        self.rhea('compare', '--image-opts', part,
                  'driver=raw,file.filename=base')
        self.same('compare', '--image-opts', part,
                  'driver=raw,file.filename=base', code=0)
        ours, theirs = (run('map', '--output=json', '--image-opts', part)
                        for run in (tool.rhea, tool.qemu))
        self.assertEqual(tool.without(ours.json, ['compressed']),
                         tool.without(theirs.json, ['compressed']))
        self.make_data('new', MIB, [(0, MIB)], seed=9)
        self.rhea('convert', '-n', '-f', 'raw', '--target-image-opts', 'new',
                  part)
        with open('shell', 'rb') as f, open('new', 'rb') as new:
            self.assertEqual(f.read(), b'x' * 3072 + new.read() + b'y' * 5000)
        self.fails(tool.rhea('resize', '--image-opts', part, '+1M'),
                   says='size')
        self.rhea('resize', '--image-opts',
                  'driver=raw,file.filename=shell,offset=3k', '2M')
        self.assertEqual(os.path.getsize('shell'), 3072 + 2 * MIB)

    def test_formats_stand_on_formats(self):
        with open('shell', 'wb') as f:
            f.truncate(512 * 1024)
        inner = 'file.driver=raw,file.offset=4k,file.file.filename=shell'
        subprocess.run(['dd', 'if=b.qcow2', 'of=shell', 'bs=4k', 'seek=1',
                        'conv=notrunc', 'status=none'], check=True)
        text = 'driver=qcow2,' + inner
        self.same_info('--image-opts', text)
        self.rhea('compare', '--image-opts', text,
                  'driver=raw,file.filename=base')
        # It grows, and what is in front of it stays.
        self.make_data('new', MIB, [(0, MIB)], seed=3)
        self.rhea('convert', '-n', '-f', 'raw', '--target-image-opts', 'new',
                  text)
        self.same('check', '--image-opts', text, code=0)
        self.same('compare', '--image-opts', text,
                  'driver=raw,file.filename=new', code=0)
        with open('shell', 'rb') as f:
            self.assertEqual(f.read(4096), bytes(4096))

    def test_a_qcow2_image_in_a_qcow2_image(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'outer', '4M')
        self.rhea('create', '-q', '-f', 'qcow2', 'inner', '1M')
        self.rhea('convert', '-n', '-f', 'raw', '-O', 'qcow2', 'inner',
                  'outer')
        text = 'driver=qcow2,file.driver=qcow2,file.file.filename=outer'
        self.rhea('convert', '-n', '-f', 'raw', '--target-image-opts', 'base',
                  text)
        self.sound('outer', 'qcow2')
        self.same('compare', '--image-opts', text,
                  'driver=raw,file.filename=base', code=0)

    def test_a_name_that_looks_like_a_protocol(self):
        self.rhea('create', '-q', '-f', 'qcow2', 'file:a:b', '1M')
        self.same('info', './a:b', code=0)
        self.same('info', 'file:a:b', code=0)
        self.fails(tool.rhea('info', 'a:b'), says="'a'")
        self.fails(tool.rhea('info', 'host_device:top'), says='block device')

    def test_json_takes_no_guess_about_raw(self):
        self.same('info', described(driver='raw', file={'filename': 'top'}),
                  code=0)
        self.qemu('create', '-q', '-u', '-f', 'qcow2', '-b', 'b.qcow2', '-F',
                  'raw', 'said-raw', '1M')
        self.same('compare', 'said-raw', 'b.qcow2', code=1)

    def test_secrets(self):
        with open('pass', 'w', encoding='ascii') as f:
            f.write('word')
        secret = 'secret,id=s,file=pass'
        self.rhea('create', '-q', '--object', secret, '-f', 'luks', '-o',
                  'key-secret=s,iter-time=10', 'l', '4M')
        self.rhea('convert', '--object', secret, '-n', '-f', 'raw',
                  '--target-image-opts', 'base',
                  'driver=luks,key-secret=s,file.filename=l')
        self.same('compare', '--object', secret, '--image-opts',
                  'driver=luks,key-secret=s,file.filename=l',
                  'driver=raw,file.filename=base')
        self.rhea('compare', '--object', '{"qom-type": "secret", "id": "s", '
                  '"data": "word"}', '--image-opts',
                  'driver=luks,key-secret=s,file.filename=l',
                  'driver=luks,key-secret=s,file.filename=l')
        self.fails(tool.rhea('info', '--object', 'iothread,id=x', 'top'),
                   says='secret')
        # Another image on top of it.
        self.rhea('convert', '--object', secret, '-f', 'raw',
                  '--target-image-opts', '-n', 'b.qcow2',
                  'driver=luks,key-secret=s,file.filename=l')
        text = ('driver=qcow2,file.driver=luks,file.key-secret=s,'
                'file.file.filename=l')
        self.rhea('compare', '--object', secret, '--image-opts', text,
                  'driver=raw,file.filename=base')
        self.same('compare', '--object', secret, '--image-opts', text,
                  'driver=raw,file.filename=base', code=0)
        self.same('info', '--object', secret, '--image-opts', text)


class DataFiles(tool.Case):
    def setUp(self):
        super().setUp()
        os.mkdir('sub')
        self.make_data('sub/data', MIB, [(0, MIB)])
        with open('sub/data', 'rb') as f:
            self.before = f.read()

    def data(self):
        with open('sub/data', 'rb') as f:
            return f.read()

    def test_creating_keeps_what_the_data_file_holds(self):
        self.rhea('create', '-q', '-f', 'qcow2', '-o',
                  'data_file=data,data_file_raw=on', 'sub/image', '2M')
        self.assertEqual(self.data(), self.before + bytes(MIB))
        self.fails(tool.rhea('create', '-q', '-f', 'qcow2', '-o',
                             'data_file=data,cluster_size=3', 'sub/image',
                             '8M'))
        self.fails(tool.rhea('create', '-q', '-f', 'qcow2', '-o',
                             'data_file=image', 'sub/image', '8M'),
                   says='own data file')
        self.assertEqual(len(self.data()), 2 * MIB)

    def test_what_a_failed_creation_made_is_gone(self):
        self.fails(tool.rhea('create', '-q', '-f', 'qcow2', '-o',
                             'data_file=new,cluster_size=3', 'sub/image',
                             '1M'))
        self.assertEqual(sorted(os.listdir('sub')), ['data'])

    def test_the_name_is_relative_to_the_image(self):
        self.rhea('create', '-q', '-f', 'qcow2', '-o',
                  'data_file=data,data_file_raw=on', 'sub/image', '1M')
        self.rhea('map', 'sub/image')
        os.rename('sub/data', 'sub/away')
        self.fails(tool.rhea('map', 'sub/image'), says='sub/data')
        text = ('driver=qcow2,file.filename=sub/image,'
                'data-file.filename=sub/away')
        self.rhea('map', '--image-opts', text)
        self.rhea('info', 'sub/image')
        self.rhea('map', described(**{
            'driver': 'qcow2', 'file.filename': 'sub/image',
            'data-file': {'driver': 'raw', 'file.filename': 'sub/away'}}))

    def test_what_an_image_says_is_only_a_file_name(self):
        self.qemu('create', '-q', '-f', 'qcow2', '-o', 'data_file=plain',
                  'image', '1M')
        with open('image', 'r+b') as f:
            head = f.read(4096)
            at = head.index(b'plain')
            f.seek(at)
            f.write(b'nbd:x')
        self.fails(tool.rhea('map', 'image'), says='nbd:x.*No such file')


class Devices(tool.Case):
    def setUp(self):
        super().setUp()
        with open('disk', 'wb') as f:
            f.write(os.urandom(8 * MIB))
        done = subprocess.run(['losetup', '-f', '--show', 'disk'],
                              capture_output=True, check=False)
        if done.returncode:
            raise unittest.SkipTest('no loop devices')
        self.device = done.stdout.decode().strip()
        self.addCleanup(subprocess.run, ['losetup', '-d', self.device],
                        check=True)

    def test_images_on_a_device(self):
        self.make_data('data', MIB, [(0, 100000), (300000, 5)])
        self.same('info', self.device, code=0)
        self.same('info', 'host_device:' + self.device, code=0)
        self.same('info', '--image-opts', 'driver=raw,offset=1M,size=1M,'
                  'file.driver=host_device,file.filename=' + self.device)
        for options in (['qcow2'],
                        ['qcow2', '-o', 'preallocation=metadata'],
                        ['qcow2', '-o', 'extended_l2=on']):
            with self.subTest(options=options):
                self.rhea('create', '-q', '-f', *options, self.device, '4M')
                self.sound(self.device, 'qcow2')
                with open('zero', 'wb') as f:
                    f.truncate(4 * MIB)
                self.identical(self.device, 'qcow2', 'zero', 'raw')
        self.rhea('convert', '-f', 'raw', '-O', 'qcow2', 'data', self.device)
        self.sound(self.device, 'qcow2')
        self.identical(self.device, 'qcow2', 'data', 'raw')
        self.rhea('convert', '-f', 'raw', '-O', 'raw', 'data', self.device)
        self.rhea('compare', '--image-opts', 'driver=raw,file.filename=data',
                  'driver=raw,size=1M,file.filename=' + self.device)
        self.fails(tool.rhea('create', '-q', self.device, '9M'),
                   says='device')
        self.fails(tool.rhea('create', '-q', '-f', 'qed', self.device, '1M'),
                   says='qed')


if __name__ == '__main__':
    tool.main()
