# SPDX-License-Identifier: MIT
"""rhea-img dd copies the same as qemu-img dd."""
import os

import tool
from tool import contents


class Dd(tool.Case):

    def twin(self, *args, code=0):
        """The same output image by both; its contents."""
        ours = tool.rhea('dd', *args, 'of=ours')
        theirs = tool.qemu('dd', *args, 'of=theirs')
        self.assertEqual((ours.code, ours.out), (theirs.code, theirs.out),
                         f'{ours}\n{theirs}')
        self.assertEqual(ours.code, code, str(ours))
        for name in ('ours', 'theirs'):
            if os.path.exists(name):
                self.qemu('convert', '-O', 'raw', name, name + '.raw')
        if code == 0:
            self.assertEqual(contents('ours.raw'), contents('theirs.raw'))
        return ours

    def setUp(self):
        super().setUp()
        self.make_data('in', 300 * 1024, [(0, 100000), (200000, 5000)])

    def test_parts(self):
        for args in ((), ('bs=1k',), ('bs=3M',), ('count=3',), ('skip=5',),
                     ('bs=1k', 'count=20', 'skip=7'), ('bs=1k', 'skip=300'),
                     ('count=1000000000000',), ('bs=4k', 'count=0')):
            for fmt in ('raw', 'qcow2'):
                with self.subTest(args=args, fmt=fmt):
                    self.good(self.twin('-f', 'raw', '-O', fmt, *args,
                                        'if=in'))

    def test_a_skip_past_the_end_leaves_nothing(self):
        for args in (('skip=1000',), ('skip=7E',), ('count=2', 'skip=3')):
            with self.subTest(args=args):
                result = self.twin('-f', 'raw', *args, 'if=in')
                self.assertEqual(os.path.getsize('ours'), 0)
                self.assertRegex(result.err, '^rhea-img: in')

    def test_seek(self):
        self.rhea('dd', '-f', 'raw', 'if=in', 'of=out', 'bs=1k', 'skip=2',
                  'count=5', 'seek=3')
        self.assertEqual(contents('out'),
                         bytes(3072) + contents('in')[2048:5120])

    def test_errors(self):
        before = contents('in')
        for args in (('if=in',), ('of=out',), ('if=missing', 'of=out'),
                     ('if=in', 'of=out', 'bs=0'), ('if=in', 'of=out', 'bs=x'),
                     ('if=in', 'of=out', 'count=-1'),
                     ('if=in', 'of=out', 'conv=sync'),
                     ('if=in', 'of=out', 'skip'),
                     ('if=in', 'of=out', '-O', 'none'),
                     ('if=in', 'of=in'), ('-Z', 'if=in', 'of=out'),
                     ('if=in', 'of=out', 'seek=7E')):
            with self.subTest(args=args):
                self.fails(tool.rhea('dd', *args))
                self.assertFalse(os.path.exists('out'))
        self.assertEqual(contents('in'), before)


if __name__ == '__main__':
    tool.main()
