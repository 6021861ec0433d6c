# SPDX-License-Identifier: MIT
"""rhea-img bench does the requests that it says it does."""
import os
import re
import shutil
import subprocess

import tool
from tool import MIB, contents


class Bench(tool.Case):

    def setUp(self):
        super().setUp()
        self.make_data('raw', MIB, [(0, MIB)])
        self.qemu('convert', '-O', 'qcow2', 'raw', 'qcow2')

    def twin(self, *args):
        """The output is qemu-img's, but for the time."""
        ours, theirs = tool.rhea('bench', *args), tool.qemu('bench', *args)
        self.assertEqual(ours.code, theirs.code, f'{ours}\n{theirs}')
        self.assertEqual(re.sub(r'\d+\.\d+ s', 'N s', ours.out),
                         re.sub(r'\d+\.\d+ s', 'N s', theirs.out))
        return ours

    def test_output(self):
        for args in (('-c', '100'), ('-c', '1000', '-d', '1'),
                     ('-c', '0'), ('-c', '200', '-d', '130', '-s', '512'),
                     ('-c', '50', '-o', '8k', '-s', '4k', '-S', '8k'),
                     ('-c', '100', '-w', '--flush-interval=64'),
                     ('-c', '100', '-w', '-d', '5', '--flush-interval', '7',
                      '--no-drain', '--pattern', '65'),
                     ('-c', '20', '-w', '-t', 'writethrough')):
            for fmt in ('raw', 'qcow2'):
                with self.subTest(args=args, fmt=fmt):
                    self.assertEqual(self.twin('-f', fmt, *args, fmt).code, 0)
        self.sound('qcow2', 'qcow2')

    def test_it_writes_what_it_says(self):
        for drain in ((), ('--no-drain',)):
            self.rhea('bench', '-f', 'raw', '-w', '-c', '10', '-d', '3', '-o',
                      '64k', '-s', '1k', '-S', '2k', '--pattern', '0x41',
                      '--flush-interval', '4', *drain, 'raw')
            got = contents('raw')
            for i in range(10):
                at = 65536 + 2048 * i
                self.assertEqual(got[at:at + 1024], b'A' * 1024)
                self.assertNotEqual(got[at + 1024:at + 1028], b'AAAA')

    def test_requests_are_under_way_together(self):
        # As many threads as requests at a time, whatever the number of
        # processors is.
        if not shutil.which('strace'):
            self.skipTest('there is no strace')
        result = subprocess.run(
            ['strace', '-f', '-e', 'trace=clone,clone3', '-o', 'trace',
             tool.RHEA, 'bench', '-f', 'raw', '-c', '2000', '-d', '40', 'raw'],
            capture_output=True, check=False,
            env=dict(os.environ,
                     ASAN_OPTIONS='detect_leaks=0'))
        if result.returncode:
            self.skipTest('cannot trace')
        with open('trace', encoding='utf-8') as f:
            self.assertEqual(f.read().count('CLONE_THREAD'), 40)

    def test_errors(self):
        for args in (('--flush-interval', '100', 'raw'),
                     ('-w', '--flush-interval', '10', 'raw'),
                     ('-d', '0', 'raw'), ('-d', '5000', 'raw'),
                     ('--pattern', '256', 'raw'), ('-c', 'x', 'raw'),
                     ('-i', 'magic', 'raw'), ('-t', 'some', 'raw'),
                     ('missing',), (), ('raw', 'qcow2'), ('-Z', 'raw')):
            with self.subTest(args=args):
                self.fails(tool.rhea('bench', '-f', 'raw', *args))
        # A request past the end.
        self.assertEqual(self.twin('-f', 'raw', '-w', '-c', '10', '-o',
                                   MIB - 1024, 'raw').code, 1)


if __name__ == '__main__':
    tool.main()
