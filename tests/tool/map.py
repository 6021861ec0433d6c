# SPDX-License-Identifier: MIT
"""rhea-img map says what qemu-img map says."""
import tool


class Map(tool.Case):
    def same_map(self, *args):
        # "compressed" came with QEMU 8.2.
        ours = self.same_json('map', *args, drop=('compressed',))
        if any(e['compressed'] for e in ours.json):
            self.fails(tool.rhea('map', *args))
        else:
            self.same('map', *args, code=0)

    def make_chain(self):
        self.make_data('base', 5 << 20, [(0, 1 << 20), (3 << 20, 70000)])
        self.qemu('convert', '-f', 'raw', '-O', 'qcow2', 'base', 'base.qcow2')
        self.qemu('create', '-q', '-f', 'qed', '-b', 'base.qcow2', '-F',
                  'qcow2', 'middle', '4M')
        self.qemu_io('middle', 'qed', 'write -P 1 512k 200k',
                     'write -z 3M 128k')
        self.qemu('create', '-q', '-f', 'qcow2', '-b', 'middle', '-F', 'qed',
                  'top', '7M')
        self.qemu_io('top', 'qcow2', 'write -P 2 64k 64k', 'write -z 4M 1M',
                     'write -P 3 6M 1k')

    def test_chains(self):
        self.make_chain()
        for name in ('top', 'middle', 'base.qcow2', 'base'):
            with self.subTest(name=name):
                self.same_map(name)

    def test_parts(self):
        self.make_chain()
        for args in (('-s', '64k'), ('-l', '1M'), ('-s', '100k', '-l', '3M'),
                     ('-s', '3.5M', '-l', '1k'), ('--start-offset=6M',),
                     ('--max-length=1',)):
            with self.subTest(args=args):
                self.same_map(*args, 'top')

    def test_nothing_lies_past_the_end(self):
        self.make_chain()
        self.assertEqual(
            self.rhea('map', '--output=json', '-s', '9M', 'top').json, [])

    def test_holes_of_preallocated_images(self):
        self.qemu('create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata',
                  'x', '10M')
        self.same_map('x')

    def test_sparse_raw_images(self):
        self.make_data('x', 3 << 20, [(0, 65536), (1 << 20, 65536)])
        self.same_map('-f', 'raw', 'x')

    def test_errors(self):
        for args in ((), ('none',), ('-s', 'x', 'none'), ('-l', '-1', 'none'),
                     ('--output=x', 'none'), ('a', 'b')):
            with self.subTest(args=args):
                self.fails(tool.rhea('map', *args))

    def test_samples_of_every_sort(self):
        for _, image in tool.sample(50, 100):
            with self.subTest(image=image.describe()):
                if not image.qemu_opens:
                    continue
                self.same_map('-f', image.format, image.path)


if __name__ == '__main__':
    tool.main()
