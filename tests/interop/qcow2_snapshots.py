#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Internal snapshots of qcow2 images, made by QEMU's tools and by this
project's in turn, against a shadow model.

    qcow2_snapshots.py IMGTOOL [-s SEED] [-n COUNT] [-k]

Each step writes to the image, or makes, applies or deletes a snapshot, or
changes the size, by either side. The image must be clean for both after it,
and its contents and every snapshot's what the model says, read by both. Cases
print their seed when they fail; -k keeps their files.
"""
import argparse
import json
import os
import random
import shutil
import sys
import tempfile

import qcow2_random as q
from qcow2_random import Failed, run, tool

RHEA = os.environ['RHEA_IMG']


def content(path):
    with open(path, 'rb') as f:
        return f.read()


class Case:
    def __init__(self, rng, folder):
        self.rng = rng
        self.image = os.path.join(folder, 'x')
        self.scratch = os.path.join(folder, 'scratch')
        self.options = q.random_options(rng)
        self.options.pop('preallocation', None)
        # Narrower ones soon cannot count what is shared.
        if self.options.get('refcount_bits', 16) < 8:
            self.options['refcount_bits'] = 8
        self.v3 = self.options.get('compat') != '0.10'
        self.cluster = self.options['cluster_size']
        self.size = min(q.random_size(rng, self.options), 24 << 20)
        self.active = bytes(self.size)
        self.state = b''
        self.snapshots = []     # (id, name, content, VM state)
        self.next_id = 1
        self.log = []

    def create(self):
        text = q.option_list(self.options)
        if self.rng.random() < .5:
            run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', text,
                self.image, self.size)
        else:
            run(RHEA, 'create', '-q', '-f', 'qcow2', '-o', text, self.image,
                self.size)

    def convert(self, program, which=None):
        args = ['-l', 'snapshot.id=%s' % which] if which else []
        run(program, 'convert', '-f', 'qcow2', '-O', 'raw', *args, self.image,
            self.scratch)
        return content(self.scratch)

    # Steps. Each returns what was done.

    def write_theirs(self):
        writes = q.random_writes(self.rng, self.options, self.size,
                                 self.rng.randint(1, 8))
        q.qemu_io(self.image, writes)
        self.active = self.convert('qemu-img')
        return writes

    def write_ours(self):
        rng, model, args = self.rng, bytearray(self.active), []
        compressed = []
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(self.size)
            n = max(1, min(self.size - at, rng.randint(1, 3 * self.cluster)))
            kind = rng.random()
            if kind < .6:
                byte = rng.randint(1, 255)
                args += ['write', at, n, byte]
                model[at:at + n] = bytes([byte]) * n
            elif kind < .85:
                args += ['zero' if kind < .7 else 'unmap', at, n]
                model[at:at + n] = bytes(n)
            else:
                at = at // self.cluster * self.cluster
                n = min(self.size - at, self.cluster)
                args += ['compress', at, n, rng.randint(1, 1 << 30)]
                compressed.append((at, n))
        tool(self.image, *args)
        found = self.convert('qemu-img')
        for at, n in compressed:
            model[at:at + n] = found[at:at + n]
        if found != model:
            raise Failed('what was written is not there')
        self.active = found
        return args

    def write_state(self):
        """VM state; only this driver can write it without a machine."""
        rng = self.rng
        n = rng.randint(1, 5 * self.cluster)
        at = rng.randint(0, 2 * self.cluster)
        tool(self.image, 'save', 0, 1, 0, 'save', at, n, rng.randint(1, 9999))
        tool(self.image, 'saved', at + n, self.scratch)
        self.state = content(self.scratch)
        return (at, n)

    def create_one(self):
        name = 'name-%d' % self.rng.randint(1, 5)
        side = self.rng.choice(['qemu-img', RHEA])
        state = self.state
        if state:
            side = 'imgtool'
            tool(self.image, 'snapshot', name, len(state))
            self.state = b''
        else:
            run(side, 'snapshot', '-c', name, self.image)
        self.snapshots.append((str(self.next_id), name, self.active, state))
        self.next_id += 1
        return side, name

    def pick(self):
        return self.rng.choice(self.snapshots)

    def apply_one(self):
        which, _, self.active, self.state = self.pick()
        self.size = len(self.active)
        side = self.rng.choice(['qemu-img', RHEA])
        run(side, 'snapshot', '-a', which, self.image)
        return side, which

    def delete_one(self):
        name = self.pick()[1]
        side = self.rng.choice(['qemu-img', RHEA])
        run(side, 'snapshot', '-d', name, self.image)
        first = [s for s in self.snapshots if s[1] == name][0]
        self.snapshots.remove(first)
        self.next_id = max([int(s[0]) for s in self.snapshots] + [0]) + 1
        return side, name

    def resize(self):
        if not self.v3 or self.state:
            return None
        size = self.rng.randint(1, 2 * self.size // 512) * 512
        shrink = ['--shrink'] if size < self.size else []
        run('qemu-img', 'resize', '-q', *shrink, '-f', 'qcow2', self.image,
            size)
        self.active = self.active[:size] + bytes(max(0, size - self.size))
        self.size = size
        return size

    def step(self):
        kind = self.rng.random()
        if kind < .2:
            return self.write_theirs
        if kind < .4:
            return self.write_ours
        if kind < .48:
            return self.write_state
        if kind < .55:
            return self.resize
        if kind < .75 or not self.snapshots:
            return self.create_one
        return self.apply_one if kind < .88 else self.delete_one

    def check(self, contents):
        q.assert_same_check(self.image)
        q.assert_clean(self.image)
        if json.loads(run(RHEA, 'info', '--output=json', self.image).stdout) \
                .get('snapshots') != \
                json.loads(run('qemu-img', 'info', '--output=json',
                               self.image).stdout).get('snapshots'):
            raise Failed('the lists of snapshots differ')
        if not contents:
            return
        if self.convert('qemu-img') != self.active or \
                self.convert(RHEA) != self.active:
            raise Failed('the active state is wrong')
        if self.state:
            tool(self.image, 'saved', len(self.state), self.scratch)
            if content(self.scratch) != self.state:
                raise Failed('the VM state is wrong')
        for which, _, data, state in self.snapshots:
            if self.convert(RHEA, which) != data:
                raise Failed('snapshot %s is wrong' % which)
            # QEMU 7.2 shows a snapshot at the size of the active state.
            if len(data) == self.size and \
                    self.convert('qemu-img', which) != data:
                raise Failed('snapshot %s is wrong for QEMU' % which)
            if state:
                tool(self.image, 'load', which, 'saved', len(state),
                     self.scratch)
                if content(self.scratch) != state:
                    raise Failed('VM state of snapshot %s is wrong' % which)

    def run(self):
        self.create()
        for i in range(self.rng.randint(6, 12)):
            step = self.step()
            self.log.append(step.__name__)
            self.log.append(step())
            if q.is_damaged(self.image) and step == self.write_theirs:
                return
            self.check(i % 3 == 2)
        self.check(True)
        # Nothing is left once all are gone.
        while self.snapshots:
            self.log.append(self.delete_one())
        self.check(True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('imgtool')
    parser.add_argument('-s', type=int, default=0, dest='seed')
    parser.add_argument('-n', type=int, default=10, dest='count')
    parser.add_argument('-k', action='store_true', dest='keep')
    args = parser.parse_args()
    if not shutil.which('qemu-io'):
        sys.exit(77)
    q.IMGTOOL = args.imgtool
    failed = 0
    for seed in range(args.seed, args.seed + args.count):
        folder = tempfile.mkdtemp(prefix='rhea-snapshots-')
        case = Case(random.Random('snapshots %d' % seed), folder)
        try:
            case.run()
        except Failed as e:
            failed += 1
            print('seed %d, %s: %s' % (seed, case.options, e))
            for line in case.log:
                print('   ', line)
        if args.keep:
            print(folder)
        else:
            shutil.rmtree(folder)
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
