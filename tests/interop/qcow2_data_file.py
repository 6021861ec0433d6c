# SPDX-License-Identifier: MIT
"""qcow2 images with an external data file: QEMU reads what we write, and we
what it writes; a raw one is at every moment what the guest sees; and what a
data file held before its image is made is not lost."""
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413

KINDS = ['', 'cluster_size=4k', 'data_file_raw=on',
         'data_file_raw=on,cluster_size=512', 'preallocation=metadata',
         'extended_l2=on', 'extended_l2=on,data_file_raw=on,cluster_size=16k',
         'preallocation=falloc,cluster_size=16k', 'preallocation=full']


class DataFile(tool.Case):
    def make(self, options, size='5M', program=tool.rhea):
        options = ','.join(filter(None, ['data_file=data', options]))
        self.good(program('create', '-q', '-f', 'qcow2', '-o', options, 'new',
                          size))

    def forget(self):
        for name in ('new', 'data'):
            if os.path.exists(name):
                os.unlink(name)

    def test_conversion_both_ways(self):
        for i, options in enumerate(KINDS):
            for maker in (tool.rhea, tool.qemu):
                for writer, reader in ((tool.rhea, tool.qemu),
                                       (tool.qemu, tool.rhea)):
                    with self.subTest(options=options, maker=maker.__name__,
                                      writer=writer.__name__):
                        self.forget()
                        self.make_data('raw', 5 * MIB, [
                            (0, 700), (MIB, MIB), (4 * MIB - 512, 3000)], i)
                        self.make(options, program=maker)
                        self.good(writer('convert', '-n', '-O', 'qcow2', '-f',
                                         'raw', 'raw', 'new'))
                        self.sound('new', 'qcow2')
                        self.rhea('check', 'new')
                        self.good(reader('convert', '-O', 'raw', 'new', 'out'))
                        self.assertEqual(contents('out'), contents('raw'))
                        if 'raw=on' in options:
                            self.assertEqual(contents('data')[:5 * MIB],
                                             contents('raw'))

    def test_random_writes_and_sizes(self):
        rng = random.Random(8)
        for options in KINDS:
            with self.subTest(options=options):
                self.forget()
                self.make(options)
                for _ in range(3):
                    size = self.qemu('info', '--output=json',
                                     'new').json['virtual-size']
                    at = rng.randrange(size // 512 - 400) * 512
                    self.qemu_io('new', 'qcow2',
                                 f'write -P {rng.randrange(255)} {at} 77k',
                                 f'write -z -u {at + 10240} 20k')
                    new = rng.randrange(3 << 11, 9 << 11) * 512
                    self.rhea('resize', '--shrink', '-f', 'qcow2', 'new', new)
                    self.sound('new', 'qcow2')
                    self.qemu('convert', '-O', 'raw', 'new', 'theirs')
                    self.rhea('convert', '-O', 'raw', 'new', 'ours')
                    self.assertEqual(contents('theirs'), contents('ours'))
                    if 'raw=on' in options:
                        self.assertEqual(contents('data'), contents('ours'))

    def test_what_the_data_file_held_stays(self):
        for options in KINDS:
            with self.subTest(options=options):
                self.forget()
                self.make_data('data', 7 * MIB, [(0, 7 * MIB)])
                before = contents('data')
                self.make(options)
                self.assertEqual(contents('data'), before)
                self.sound('new', 'qcow2')
                self.rhea('convert', '-O', 'raw', 'new', 'ours')
                self.qemu('convert', '-O', 'raw', 'new', 'theirs')
                expect = bytes(5 * MIB)
                if 'raw=on' in options:
                    expect = before[:5 * MIB]
                self.assertTrue(contents('ours') == expect)
                self.assertTrue(contents('theirs') == expect)
                self.rhea('info', 'new')
                self.assertEqual(contents('data'), before)

    def test_what_is_refused(self):
        self.make_data('base', MIB, [(0, MIB)])
        for options in ('data_file_raw=on', 'data_file=data,compat=0.10',
                        'data_file=new'):
            with self.subTest(options=options):
                self.fails(tool.rhea('create', '-f', 'qcow2', '-o', options,
                                     'new', '1M'))
        self.fails(tool.rhea('create', '-f', 'qcow2', '-o',
                             'data_file=data,data_file_raw=on', '-b', 'base',
                             '-F', 'raw', 'new', '1M'))
        self.make('')
        self.fails(tool.rhea('convert', '-c', '-n', '-O', 'qcow2', 'base',
                             'new'))
        os.unlink('data')
        self.fails(tool.rhea('convert', '-O', 'raw', 'new', 'out'))


if __name__ == '__main__':
    tool.main()
