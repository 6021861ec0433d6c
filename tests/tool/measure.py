# SPDX-License-Identifier: MIT
"""rhea-img measure: qemu-img's numbers, to the byte."""
import random

import tool

MIB = 1 << 20


def random_options(rng):
    options = []
    cluster = rng.choice((512, 1024, 4096, 16384, 65536, 1 << 20, 2 << 20))
    options.append(f'cluster_size={cluster}')
    if rng.random() < 0.3:
        options.append(f'refcount_bits={1 << rng.randrange(7)}')
    if rng.random() < 0.3 and cluster >= 16384:
        options.append('extended_l2=on')
    if rng.random() < 0.3:
        options.append('preallocation=' + rng.choice(
            ('off', 'metadata', 'falloc', 'full')))
    if rng.random() < 0.2 and len(options) == 1:
        options.append('compat=0.10')
    return ','.join(options)


class Measure(tool.Case):
    def test_sizes_alone(self):
        rng = random.Random(4)
        for fmt in ('raw', 'qcow2'):
            for size in (0, 1, 511, 512, 1000, '1M', '77M', '1T', '3.5G',
                         rng.randrange(1 << 40)):
                self.same('measure', '-O', fmt, '--size', size, code=0)
        for _ in range(30):
            size = rng.randrange(1 << rng.randrange(1, 34))
            self.same('measure', '-O', 'qcow2', '-o', random_options(rng),
                      '--size', size, code=0)
        self.same('measure', '--size', '5M', code=0)
        self.same_json('measure', '--size', '5M', '-O', 'qcow2')

    def test_contents(self):
        rng = random.Random(5)
        self.make_data('raw', 9 * MIB + 512,
                       [(0, 700), (MIB, 300000), (3 * MIB + 512, 512),
                        (4 * MIB - 512, 1024), (8 * MIB, MIB)])
        self.qemu('convert', '-O', 'qcow2', '-o',
                  'compat=0.10,cluster_size=4k', '-c', 'raw', 'qcow2')
        self.qemu('convert', '-O', 'qed', '-o', 'cluster_size=4k', 'raw', 'qed')
        self.qemu('create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', '-b',
                  'raw', '-F', 'raw', 'over', '12M')
        self.qemu_io('over', 'qcow2', 'write -z 0 1M', 'write 10M 100k')
        for name in ('raw', 'qcow2', 'qed', 'over'):
            self.same('measure', name, code=0)
            for _ in range(5):
                self.same('measure', '-O', 'qcow2', '-o', random_options(rng),
                          name, code=0)
            self.same('measure', '-O', 'qcow2', '-o', 'backing_file=raw', name,
                      code=0)
            self.same_json('measure', '-O', 'qcow2', name)

    def test_what_is_refused(self):
        self.make_data('raw', MIB, [])
        for args in ((), ('raw', 'raw'), ('--size', '1M', 'raw'),
                     ('-f', 'raw', '--size', '1M'),
                     ('--image-opts', '--size', '1M'),
                     ('-l', 'x', '--size', '1M'), ('-O', 'qed', 'raw'),
                     ('-O', 'none', 'raw'), ('none',), ('--size', 'x'),
                     ('-O', 'qcow2', '-o', 'bogus=1', 'raw'),
                     ('-O', 'qcow2', '-o', 'cluster_size=3', 'raw'),
                     ('-O', 'qcow2', '-o', 'cluster_size=512', '--size', '4P'),
                     ('--output=xml', 'raw'), ('-l', 'x', 'raw')):
            with self.subTest(args=args):
                self.fails(tool.rhea('measure', *args))
                self.assertEqual(tool.qemu('measure', *args).code, 1)


if __name__ == '__main__':
    tool.main()
