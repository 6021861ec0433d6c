# SPDX-License-Identifier: MIT
"""rhea-img info says what qemu-img info says."""
import json
import os
import shutil
import subprocess

import tool


class Info(tool.Case):
    def same_info(self, *args):
        self.same('info', *args, code=0)
        self.same_json('info', *args)

    def test_formats_and_options(self):
        for i, args in enumerate((
                ('-f', 'raw', '{}', '1000'),
                ('-f', 'raw', '{}', '5G'),
                ('-f', 'qed', '-o', 'cluster_size=1M', '{}', '999M'),
                ('-f', 'qcow2', '{}', '1023k'),
                ('-f', 'qcow2', '-o', 'compat=0.10', '{}', '64T'),
                ('-f', 'qcow2', '-o', 'lazy_refcounts=on,refcount_bits=64',
                 '{}', '1M'),
                ('-f', 'qcow2', '-o', 'extended_l2=on,compression_type=zstd',
                 '{}', '1M'),
                ('-f', 'qcow2', '-o', 'data_file=d,data_file_raw=on', '{}',
                 '1M'))):
            with self.subTest(args=args):
                name = f'image{i}'
                self.qemu('create', '-q', *[a.format(name) for a in args])
                self.same_info(name)

    def test_backing_chains(self):
        os.mkdir('sub')
        self.qemu('create', '-q', '-f', 'raw', 'base', '5M')
        self.qemu('create', '-q', '-f', 'qed', '-b', '../base', '-F', 'raw',
                  'sub/middle')
        self.qemu('create', '-q', '-f', 'qcow2', '-b', 'sub/middle', '-F',
                  'qed', 'top')
        for name in ('top', 'sub/middle', os.path.abspath('sub/middle')):
            with self.subTest(name=name):
                self.same_info(name)
                self.same_info('--backing-chain', name)

    def test_a_missing_backing_file_matters_to_the_chain_only(self):
        self.qemu('create', '-q', '-f', 'qcow2', '-u', '-b', 'none', '-F',
                  'raw', 'top', '1M')
        self.same_info('top')
        self.fails(tool.rhea('info', '--backing-chain', 'top'), says='none')

    def test_a_loop_is_an_error(self):
        for a, b in ('xy', 'yx'):
            self.qemu('create', '-q', '-f', 'qcow2', '-u', '-b', b, '-F',
                      'qcow2', a, '1M')
        self.fails(tool.rhea('info', '--backing-chain', 'x'), says='loop')

    def test_an_unclean_image(self):
        self.qemu('create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on', 'x',
                  '1M')
        subprocess.run(['qemu-io', '-c', 'write 0 1k', '-c', 'abort', 'x'],
                       capture_output=True, check=False,
                       preexec_fn=tool.images.no_core)
        self.assertIn('cleanly shut down: no',
                      self.same('info', 'x', code=0).out)
        self.same_json('info', 'x')

    def test_a_stated_format_is_believed(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'x', '1M')
        self.same_info('-f', 'raw', 'x')
        self.fails(tool.rhea('info', '-f', 'qed', 'x'))

    def test_an_unclean_qed_image(self):
        # QEMU 7.2 forgets to say it of this format.
        self.qemu('create', '-q', '-f', 'qed', 'x', '1M')
        self.assertNotIn('cleanly', self.rhea('info', 'x').out)
        with open('x', 'r+b') as f:
            f.seek(16)
            f.write(b'\2')
        self.assertIn('cleanly shut down: no\n', self.rhea('info', 'x').out)
        self.assertTrue(self.rhea('info', '--output=json', 'x')
                        .json['dirty-flag'])

    def test_snapshots_are_listed(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'x', '1M')
        for name in ('one', 'a longer name than there is room', 'caf\u00e9'):
            self.qemu('snapshot', '-c', name, 'x')
            self.same_info('x')

    def test_bitmaps(self):
        self.qemu('create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on', 'x',
                  '1M')
        for args in ((), ('-g', '512', '--disable'), ('-g', '2G')):
            self.qemu('bitmap', '--add', *args, 'x', f'b{len(args)}')
        self.same_info('x')
        subprocess.run(['qemu-io', '-c', 'write 0 1k', '-c', 'abort', 'x'],
                       capture_output=True, check=False,
                       preexec_fn=tool.images.no_core)
        self.assertIn('in-use', self.same('info', '-U', 'x', code=0).out)
        self.same_json('info', 'x')

    def test_names_that_are_no_text(self):
        name = b'caf\xe9'
        subprocess.run(['qemu-img', 'create', '-q', '-f', 'qed', name, '1M'],
                       check=True)
        done = subprocess.run([tool.RHEA, 'info', '--output=json', name],
                              capture_output=True, check=True)
        self.assertEqual(json.loads(done.stdout)['filename'], 'caf\ufffd')

    def test_an_image_in_use_needs_U(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'x', '1M')
        with subprocess.Popen(['qemu-io', '-f', 'qcow2', 'x'],
                              stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as user:
            user.stdin.write(b'length\n')
            user.stdin.flush()
            user.stdout.readline()
            self.fails(tool.rhea('info', 'x'), says='in use')
            self.same_info('-U', 'x')

    def test_errors(self):
        for args in ((), ('a', 'b'), ('none',), ('--output=xml', 'x'), ('.',),
                     ('-Z',), ('--image-opts', 'driver=raw')):
            with self.subTest(args=args):
                self.fails(tool.rhea('info', *args))

    def test_samples_of_every_sort(self):
        for _, image in tool.sample(50):
            with self.subTest(image=image.describe()):
                if image.qemu_opens and 'need-check' not in image.text:
                    self.same_info(image.path)

    def test_names_cannot_drive_the_terminal(self):
        evil = 'e\x1b[31m\x07'
        with open(evil + '-flat.vmdk', 'wb') as f:
            f.truncate(1 << 20)
        with open('x.vmdk', 'w', encoding='utf-8') as f:
            f.write('# Disk DescriptorFile\nversion=1\nCID=fffffffe\n'
                    'parentCID=ffffffff\n'
                    f'RW 2048 FLAT "{evil}-flat.vmdk" 0\n'
                    f'ddb.adapterType = "{evil}"\n')
        out = self.good(tool.rhea('info', 'x.vmdk')).out
        self.assertIn('adapter type: e?[31m?\n', out)
        self.assertNotIn('\x1b', out)
        shutil.move(evil + '-flat.vmdk', 'away')
        err = self.fails(tool.rhea('info', 'x.vmdk')).err
        self.assertNotIn('\x1b', err)
        self.qemu('create', '-q', '-f', 'qcow2', '-u', '-b', evil, '-F', 'raw',
                  'y', '1M')
        self.assertNotIn('\x1b', self.good(tool.rhea('info', 'y')).out)

    def test_json_is_ascii(self):
        """As QEMU has it, whatever the locale of who reads it."""
        self.qemu('create', '-q', '-f', 'qcow2', 'd\u00efsk', '1M')
        r = self.same_json('info', 'd\u00efsk', drop=('actual-size',))
        self.assertTrue(r.out.isascii())
        self.assertEqual(r.json['filename'], 'd\u00efsk')


if __name__ == '__main__':
    tool.main()
