#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random histories of QCOW2's persistent bitmaps.

    bitmaps_random.py IMGTOOL [-s SEED] [-n COUNT] [-k]

Our driver and qemu-io write to one image in turn, our rhea-img and qemu-img
add, change, merge and remove its bitmaps. After each step the bits are read
from the file's bytes, and compared with what they must be. Every case prints
its seed when it fails; -k keeps its files.
"""
import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'lib'))
import bitmaps  # noqa: E402  pylint: disable=wrong-import-position

RHEA = os.environ.get('RHEA_IMG', 'rhea-img')


class Failed(Exception):
    pass


def run(*args, fail=True):
    p = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True, check=False)
    if fail and (p.returncode or p.stderr):
        raise Failed('%s: %d %s%s' % (' '.join(map(str, args)), p.returncode,
                                      p.stdout, p.stderr))
    return p


class Shadow:
    """What one bitmap must be."""

    def __init__(self, size, granularity):
        self.size, self.granularity = size, granularity
        self.enabled, self.bits = True, set()

    def touch(self, start, end):
        end = min(end, self.size)
        if start < end:
            self.bits.update(range(start // self.granularity,
                                   (end - 1) // self.granularity + 1))

    def merge(self, other):
        for bit in list(other.bits):
            self.touch(bit * other.granularity, (bit + 1) * other.granularity)


class History:
    def __init__(self, rng, folder, imgtool):
        self.rng, self.imgtool = rng, imgtool
        self.image = os.path.join(folder, 'image')
        self.cluster = 1 << rng.choice([9, 10, 12, 14, 16, 16, 18, 21])
        self.size = min(rng.randint(1, 4000) * rng.choice([512, 4096]),
                        self.cluster * 8000)
        self.shadows = {}
        self.log = []
        options = 'cluster_size=%d' % self.cluster
        if rng.random() < .3:
            options += ',lazy_refcounts=on'
        if self.cluster >= 16384 and rng.random() < .4:
            options += ',extended_l2=on'
        more = []
        if rng.random() < .4:
            base = os.path.join(folder, 'b' * rng.choice([1, 100, 200]))
            with open(base, 'wb') as f:
                f.write(rng.randbytes(self.size))
            more = ['-b', base, '-F', 'raw']
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, *more,
            self.image, self.size)

    def piece(self):
        at = self.rng.randrange(0, self.size, 512)
        n = self.rng.choice([512, 4096, 3 * self.cluster, 1 << 20])
        return at, min(self.size - at, n)

    def touch(self, at, n):
        for shadow in self.shadows.values():
            if shadow.enabled:
                shadow.touch(at, at + n)

    def our_writes(self):
        args = []
        for _ in range(self.rng.randint(1, 6)):
            at, n = self.piece()
            verb = self.rng.choice(['write', 'fill', 'zero', 'unmap',
                                    'compress', 'flush', 'check'])
            if verb in ('flush', 'check'):
                args += [verb]
                continue
            if verb == 'compress':
                at = at // self.cluster * self.cluster
                n = min(self.cluster, self.size - at)
            args += [verb, at, n]
            if verb in ('write', 'fill', 'compress'):
                args += [self.rng.randint(1, 255)]
            self.touch(at, n)
        run(self.imgtool, 'qcow2', self.image, *args)
        return 'imgtool %s' % args

    def qemu_writes(self):
        args = []
        for _ in range(self.rng.randint(1, 4)):
            at, n = self.piece()
            args += ['-c', '%s %d %d' % (
                self.rng.choice(['write -P 7', 'write -z', 'discard']), at, n)]
            self.touch(at, n)
        run('qemu-io', '-d', 'unmap', '-f', 'qcow2', *args, self.image)
        return 'qemu-io %s' % args

    def add(self, name, args):
        granularity = 1 << self.rng.choice([9, 10, 12, 15, 16, 20, 31])
        args += ['--add', '-g', granularity]
        self.shadows[name] = Shadow(self.size, granularity)

    def change(self, name, args):
        shadow = self.shadows[name]
        other = self.rng.choice(sorted(self.shadows))
        for verb in self.rng.choices(['clear', 'enable', 'disable', 'merge'],
                                     k=self.rng.randint(1, 3)):
            args += ['--' + verb]
            if verb == 'merge':
                args += [other]
                shadow.merge(self.shadows[other])
            elif verb == 'clear':
                shadow.bits = set()
            else:
                shadow.enabled = verb == 'enable'

    def bitmap(self):
        program = self.rng.choice([RHEA, RHEA, 'qemu-img'])
        args, what = [], self.rng.random()
        if not self.shadows or what < .35:
            name = 'b%d' % self.rng.randint(0, 1 << 40)
            if self.rng.random() < .1:
                name = 'n' * 1023
            if name in self.shadows:
                return 'nothing'
            self.add(name, args)
        else:
            name = self.rng.choice(sorted(self.shadows))
            if what < .5:
                args += ['--remove']
                del self.shadows[name]
            else:
                self.change(name, args)
        run(program, 'bitmap', *args, self.image, name)
        return '%s bitmap %s %.20s' % (program, args, name)

    def check(self):
        found = {b.name: b for b in bitmaps.read(self.image)}
        if set(found) != set(self.shadows):
            raise Failed('%s, not %s' % (found, self.shadows))
        for name, shadow in self.shadows.items():
            got = found[name]
            if got.in_use or got.enabled != shadow.enabled or \
                    got.granularity != shadow.granularity:
                raise Failed('%s' % got)
            if got.bits != shadow.bits:
                raise Failed('%s: not set %s, set %s' % (
                    got, sorted(shadow.bits - got.bits)[:9],
                    sorted(got.bits - shadow.bits)[:9]))

    def step(self):
        what = self.rng.random()
        self.log.append('')
        self.log[-1] = self.our_writes() if what < .35 else \
            self.qemu_writes() if what < .5 else self.bitmap()
        self.check()


def case(rng, folder, imgtool):
    history = History(rng, folder, imgtool)
    try:
        for _ in range(14):
            history.step()
        for program in ('qemu-img', RHEA):
            if run(program, 'check', history.image).returncode:
                raise Failed('%s check is not content' % program)
    except (Failed, AssertionError) as e:
        raise Failed('%s\nafter:\n%s' % (e, '\n'.join(history.log))) from e


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('imgtool')
    parser.add_argument('-s', '--seed', type=int, default=1)
    parser.add_argument('-n', '--count', type=int, default=12)
    parser.add_argument('-k', '--keep', action='store_true')
    args = parser.parse_args()
    for program in ('qemu-img', 'qemu-io'):
        if not shutil.which(program):
            print('no %s' % program)
            return 77
    failed = 0
    for seed in range(args.seed, args.seed + args.count):
        folder = tempfile.mkdtemp(prefix='rhea-bitmaps-')
        try:
            case(random.Random('bitmaps %d' % seed), folder,
                 os.path.abspath(args.imgtool))
        except Failed as e:
            print('-s %d -n 1 failed: %s' % (seed, e))
            failed += 1
            if args.keep:
                print('files are in', folder)
                return 1
        shutil.rmtree(folder)
    print('done')
    return failed > 0


if __name__ == '__main__':
    sys.exit(main())
