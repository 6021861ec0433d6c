# SPDX-License-Identifier: MIT
"""Encrypted images, luks and qcow2: what we write QEMU and cryptsetup read, and
the other way round."""
import shutil
import subprocess
import unittest

import tool

SECRET = ('--object', 'secret,id=sec0,data=letmein')
SECRETS = SECRET + ('--object', 'secret,id=sec1,data=second')
FAST = 'iter-time=10'

# Each algorithm, mode, IV generator and hash at least once.
LUKS = [
    '',
    'cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,hash-alg=sha1',
    'cipher-alg=aes-128,cipher-mode=ctr,ivgen-alg=plain,hash-alg=sha512',
    'cipher-alg=serpent-256,hash-alg=sha384',
    'cipher-alg=serpent-128,cipher-mode=cbc,hash-alg=ripemd160',
    'cipher-alg=twofish-256,cipher-mode=ecb,hash-alg=sha224',
    'cipher-alg=twofish-128',
    'cipher-alg=cast5-128,cipher-mode=cbc',
    'cipher-mode=xts,ivgen-alg=essiv,ivgen-hash-alg=sha256',
]
QCOW2 = [
    'encrypt.format=luks',
    'encrypt.format=luks,cluster_size=4k,encrypt.cipher-mode=cbc,'
    'encrypt.ivgen-alg=essiv',
    'encrypt.format=luks,extended_l2=on,lazy_refcounts=on',
    'encrypt.format=aes',
    'encrypt.format=aes,compat=0.10,cluster_size=512',
]


def luks_name(path, secret='sec0'):
    return f'driver=luks,file.filename={path},key-secret={secret}'


def qcow2_name(path, secret='sec0'):
    return f'driver=qcow2,file.filename={path},encrypt.key-secret={secret}'


def raw_name(path):
    return f'driver=raw,file.filename={path}'


class Encryption(tool.Case):
    def setUp(self):
        super().setUp()
        self.make_data('raw', 3 * tool.MIB + 512,
                       [(0, 5000), (tool.MIB - 300, 70000),
                        (3 * tool.MIB, 512)])

    def qemu_create(self, *args):
        """QEMU now and then fails to measure its own speed."""
        for _ in range(8):
            result = tool.qemu('create', '-q', *SECRET, *args)
            if 'CPU usage' not in result.err:
                break
        else:
            self.skipTest('QEMU cannot create LUKS on a machine this busy')
        self.good(result)

    def both_compare(self, a, b):
        for program in tool.qemu, tool.rhea:
            result = program('compare', *SECRETS, '--image-opts', a, b)
            self.assertEqual(result.code, 0, str(result))

    def qemu_io_named(self, name, *commands):
        args = ['qemu-io', *SECRET, '--image-opts', name]
        for command in commands:
            args += ['-c', command]
        result = tool.execute(*args)
        self.assertEqual((result.code, result.err), (0, ''), str(result))

    def same_info(self, path):
        self.same('info', path)
        self.same_json('info', path)

    def test_qemu_reads_our_luks(self):
        for options in LUKS:
            with self.subTest(options=options):
                self.rhea('convert', '-f', 'raw', '-O', 'luks', *SECRET, '-o',
                          f'key-secret=sec0,{FAST}'
                          + (',' + options if options else ''), 'raw', 'a')
                self.both_compare(raw_name('raw'), luks_name('a'))
                self.same_info('a')

    def test_we_read_qemus_luks(self):
        for options in LUKS[:2]:
            with self.subTest(options=options):
                self.qemu_create('-f', 'luks', '-o',
                                 f'key-secret=sec0,{FAST},{options}'.rstrip(
                                     ','), 'q', '3M')
                self.qemu_io_named(luks_name('q'), 'write -P 7 512 5120')
                self.rhea('convert', *SECRET, '--image-opts', luks_name('q'),
                          '-O', 'raw', 'copy')
                self.both_compare(raw_name('copy'), luks_name('q'))
                with open('copy', 'rb') as f:
                    f.seek(512)
                    self.assertEqual(f.read(5120), b'\7' * 5120)
                self.same_info('q')

    @unittest.skipUnless(shutil.which('cryptsetup', path='/sbin:/usr/sbin:'
                                      '/bin:/usr/bin'), 'no cryptsetup')
    def test_cryptsetup_takes_our_luks(self):
        cryptsetup = shutil.which('cryptsetup',
                                  path='/sbin:/usr/sbin:/bin:/usr/bin')
        self.rhea('create', '-q', '-f', 'luks', *SECRET, '-o',
                  f'key-secret=sec0,{FAST}', 'a', '1M')
        for passphrase, code in (b'letmein', 0), (b'wrong', 2):
            done = subprocess.run(
                [cryptsetup, 'open', '--type', 'luks1', '--test-passphrase',
                 '--key-file', '-', 'a'], input=passphrase, check=False,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.assertEqual(done.returncode, code, passphrase)

    def test_qemu_reads_our_qcow2(self):
        for options in QCOW2:
            with self.subTest(options=options):
                more = '' if 'aes' in options else f',encrypt.{FAST}'
                self.rhea('convert', '-f', 'raw', '-O', 'qcow2', *SECRET, '-o',
                          f'encrypt.key-secret=sec0,{options}{more}', 'raw',
                          'a')
                self.both_compare(raw_name('raw'), qcow2_name('a'))
                check = tool.qemu('check', *SECRET, '--image-opts',
                                  qcow2_name('a'))
                self.assertEqual(check.code, 0, str(check))
                self.assertEqual(self.rhea('check', 'a').out, check.out)
                self.same_info('a')

    def test_we_read_qemus_qcow2(self):
        for options in QCOW2[0], QCOW2[4]:
            with self.subTest(options=options):
                more = '' if 'aes' in options else f',encrypt.{FAST}'
                self.qemu_create('-f', 'qcow2', '-o',
                                 f'encrypt.key-secret=sec0,{options}{more}',
                                 'q', '3M')
                self.qemu_io_named(qcow2_name('q'), 'write -P 7 1000 5000',
                                   'write -P 9 500k 524k', 'write -z 600k 200k')
                self.rhea('convert', *SECRET, '--image-opts', qcow2_name('q'),
                          '-O', 'raw', 'copy')
                self.both_compare(raw_name('copy'), qcow2_name('q'))
                self.same_info('q')

    def test_chain_with_a_passphrase_each(self):
        self.rhea('convert', '-f', 'raw', '-O', 'luks', *SECRETS, '-o',
                  f'key-secret=sec1,{FAST}', 'raw', 'base')
        self.rhea('create', '-q', '-f', 'qcow2', '-u', '-b', 'base', '-F',
                  'luks', *SECRETS, '-o', 'encrypt.format=luks,'
                  f'encrypt.key-secret=sec0,encrypt.{FAST}', 'top',
                  str(3 * tool.MIB + 512))
        name = (qcow2_name('top') + ',backing.driver=luks,'
                'backing.file.filename=base,backing.key-secret=sec1')
        self.both_compare(raw_name('raw'), name)
        # A part of a cluster takes the rest from below.
        self.rhea('convert', '-n', *SECRETS, '--target-image-opts', '-f',
                  'raw', 'raw', name)
        self.both_compare(raw_name('raw'), name)

    def test_the_passphrase_is_asked_for(self):
        self.rhea('create', '-q', '-f', 'luks', *SECRET, '-o',
                  f'key-secret=sec0,{FAST}', 'a', '1M')
        self.rhea('create', '-q', '-f', 'qcow2', *SECRET, '-o',
                  'encrypt.format=luks,encrypt.key-secret=sec0,encrypt.'
                  + FAST, 'b', '1M')
        self.fails(tool.rhea('convert', '-O', 'raw', 'a', 'x'),
                   says='key-secret')
        self.fails(tool.rhea('convert', '-O', 'raw', 'b', 'x'),
                   says='encrypt.key-secret')
        self.fails(tool.rhea('convert', '--object', 'secret,id=sec0,data=no',
                             '--image-opts', luks_name('a'), '-O', 'raw', 'x'),
                   says='passphrase is wrong')
        self.fails(tool.rhea('create', '-f', 'luks', 'c', '1M'),
                   says='key-secret')
        self.fails(tool.rhea('convert', '-c', '-f', 'raw', '-O', 'qcow2',
                             *SECRET, '-o', 'encrypt.format=luks,encrypt.'
                             'key-secret=sec0,encrypt.' + FAST, 'raw', 'x'))

    def test_measure(self):
        """The numbers are QEMU's, which takes a second and may fail."""
        for fmt, options, required, all_of_it in (
                ('luks', 'key-secret=sec0', 106926080, 106926080),
                ('qcow2', 'encrypt.format=luks,encrypt.key-secret=sec0',
                 2424832, 107282432)):
            out = self.rhea('measure', *SECRET, '-O', fmt, '-o', options,
                            '--size', '100M').out
            self.assertEqual(out, f'required size: {required}\n'
                             f'fully allocated size: {all_of_it}\n')

    def test_map(self):
        self.rhea('convert', '-f', 'raw', '-O', 'qcow2', *SECRET, '-o',
                  f'encrypt.format=luks,encrypt.key-secret=sec0,encrypt.{FAST}',
                  'raw', 'a')
        self.same_json('map', *SECRET, '--image-opts', qcow2_name('a'),
                       drop=('compressed',))


if __name__ == '__main__':
    tool.main()
