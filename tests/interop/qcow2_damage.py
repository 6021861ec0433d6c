#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Damaged qcow2 images, each with one kind of damage: `rhea-img check`, with
-r leaks and -r all too, finds, counts and repairs what qemu-img does, exits as
it does, and leaves the guest's bytes and the snapshots' alone.

    qcow2_damage.py [-k] [KIND...]

Where the two differ on purpose, DIFFERS says why.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

RHEA = os.environ['RHEA_IMG']
KEYS = ('corruptions', 'leaks', 'check-errors', 'corruptions-fixed',
        'leaks-fixed', 'total-clusters', 'allocated-clusters',
        'fragmented-clusters', 'compressed-clusters', 'image-end-offset')
COPIED, COMPRESSED = 1 << 63, 1 << 62
OFFSET = 0x00fffffffffffe00


class Image:
    """The tables of an image, to be damaged."""

    def __init__(self, path):
        self.file = open(path, 'r+b', buffering=0)
        self.cluster = 1 << self.get(20, 4)
        self.l1, self.l1_size = self.get(40), self.get(36, 4)
        self.table = self.get(48)
        self.snapshots = self.get(64)
        self.entry = 16 if self.get(72) & 16 else 8
        self.bits = 1 << self.get(96, 4)
        self.end = os.path.getsize(path)

    def get(self, at, n=8):
        self.file.seek(at)
        return int.from_bytes(self.file.read(n), 'big')

    def put(self, at, value, n=8):
        self.file.seek(at)
        self.file.write((value & (1 << 8 * n) - 1).to_bytes(n, 'big'))

    def change(self, at, function, n=8):
        self.put(at, function(self.get(at, n)), n)

    def block(self):
        return self.get(self.table)

    def refcount_at(self, cluster):
        assert self.bits == 16
        return self.block() + 2 * cluster

    def l2_entries(self, l1=None):
        """Places of the entries in use."""
        for i in range(self.l1_size):
            table = self.get((l1 or self.l1) + 8 * i) & OFFSET
            for k in range(self.cluster // self.entry if table else 0):
                at = table + k * self.entry
                if self.get(at):
                    yield at

    def data(self):
        return next(a for a in self.l2_entries()
                    if not self.get(a) & COMPRESSED and self.get(a) & OFFSET)

    def compressed(self):
        return next(a for a in self.l2_entries() if self.get(a) & COMPRESSED)


def refcount(value):
    def damage(i):
        host = i.get(i.data()) & OFFSET
        i.put(i.refcount_at(host // i.cluster), value, 2)
    return damage


def leak(count):
    def damage(i):
        for k in range(1, count + 1):
            i.put(i.refcount_at(i.end // i.cluster + k), 1, 2)
        i.file.seek(i.end + i.cluster * (count + 1))
        i.file.write(b'x')
    return damage


def reftable(value, index=0):
    return lambda i: i.put(i.table + 8 * index, value(i))


def l1(change):
    return lambda i: i.change(i.l1, change)


def l2(change):
    return lambda i: i.change(i.data(), change)


def past_end(i):
    return (i.end // i.cluster + 5) * i.cluster


def snapshot_field(offset, size, value):
    return lambda i: i.put(i.snapshots + offset, value, size)


def shared_cluster(i):
    places = [a for a in i.l2_entries() if not i.get(a) & COMPRESSED]
    i.put(places[1], i.get(places[0]))


def zero_bad_offset(i):
    i.change(i.data(), lambda e: (e | 1) + 512)


KINDS = {
    'nothing': lambda i: None,
    'refcount-0': refcount(0),
    'refcount-2': refcount(2),
    'refcount-many': refcount(65535),
    'leak-1': leak(1),
    'leak-20': leak(20),
    'header-refcount-0': lambda i: i.put(i.refcount_at(0), 0, 2),
    'header-refcount-2': lambda i: i.put(i.refcount_at(0), 2, 2),
    'copied-l1': l1(lambda e: e ^ COPIED),
    'copied-l2': l2(lambda e: e ^ COPIED),
    'reftable-unaligned': reftable(lambda i: i.block() + 512),
    'reftable-reserved': reftable(lambda i: i.block() | 1),
    'reftable-zero': reftable(lambda i: 0),
    'reftable-outside': reftable(past_end),
    'reftable-second-outside': reftable(past_end, 1),
    'reftable-second-same': reftable(lambda i: i.block(), 1),
    'reftable-is-header': reftable(lambda i: 0 * i.end + i.cluster * 0, 1),
    'reftable-is-l1': reftable(lambda i: i.l1),
    'reftable-is-data': reftable(lambda i: i.get(i.data()) & OFFSET),
    'no-reftable': lambda i: i.put(56, 0, 4),
    'l1-unaligned': l1(lambda e: e + 512),
    'l1-reserved': l1(lambda e: e | 1 << 56),
    'l1-outside': lambda i: i.put(i.l1, past_end(i) | COPIED),
    'l1-is-header': l1(lambda e: COPIED),
    'l2-unaligned': l2(lambda e: e + 512),
    'l2-reserved': l2(lambda e: e | 2),
    'l2-reserved-high': l2(lambda e: e | 1 << 57),
    'l2-outside': lambda i: i.put(i.data(), past_end(i) | COPIED),
    'l2-far-outside': lambda i: i.put(i.data(), 1 << 55 | COPIED),
    'l2-is-l1': lambda i: i.put(i.data(), i.l1 | COPIED),
    'l2-shared': shared_cluster,
    'zero-bad-offset': zero_bad_offset,
    'zero-outside': lambda i: i.put(i.data(), past_end(i) | COPIED | 1),
    'compressed-copied': lambda i: i.change(i.compressed(),
                                            lambda e: e | COPIED),
    'compressed-outside': lambda i: i.change(
        i.compressed(), lambda e: e | 1 << 40),
    'dirty': lambda i: i.change(72, lambda e: e | 1),
    'corrupt': lambda i: i.change(72, lambda e: e | 2),
    'dirty-and-corrupt': lambda i: i.change(72, lambda e: e | 3),
    'snapshots-unaligned': lambda i: i.put(64, i.snapshots + 512),
    'snapshots-outside': lambda i: i.put(64, past_end(i)),
    'snapshots-too-many': lambda i: i.put(60, 70000, 4),
    'snapshot-l1-unaligned': snapshot_field(0, 8, 513),
    'snapshot-l1-outside': lambda i: i.put(i.snapshots, past_end(i)),
    'snapshot-l1-huge': snapshot_field(8, 4, 1 << 30),
    'snapshot-l1-none': snapshot_field(8, 4, 0),
    'snapshot-extra': snapshot_field(36, 4, 2000),
    'snapshot-little-extra': snapshot_field(36, 4, 8),
    'snapshot-l2-outside': lambda i: i.put(i.get(i.snapshots),
                                           past_end(i)),
}

# What differs on purpose: the keys that may, and why.
REPAIRED = KEYS + ('code',)
DIFFERS = {
    'reftable-unaligned': (REPAIRED, 'QEMU 7.2 gives up, and repairs nothing'),
    'reftable-reserved': (REPAIRED, 'QEMU 7.2 gives up, and repairs nothing'),
    'reftable-outside': (('corruptions-fixed',), 'QEMU makes the file longer'),
    'reftable-second-outside': (('corruptions-fixed',), 'so here'),
    'snapshot-l1-huge': (REPAIRED, 'QEMU stops at a COPIED flag: it takes all '
                         'of the file for that table'),
}


def run(*args):
    return subprocess.run([str(a) for a in args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False)


def check(program, path, *args):
    p = run(program, 'check', '--output=json', '-f', 'qcow2', *args, path)
    found = json.loads(p.stdout) if p.stdout else {}
    return dict({k: found.get(k, 0) for k in KEYS}, code=p.returncode), \
        p.stderr


def contents(path):
    """Of the active state and the snapshot; None where they cannot be read."""
    result = []
    for args in ((), ('-l', 'one')):
        p = run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', *args, path,
                path + '.raw')
        data = None
        if p.returncode == 0:
            with open(path + '.raw', 'rb') as f:
                data = f.read()
        result.append(data)
    return result


def make(folder, options, snapshot):
    path = os.path.join(folder, 'good')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, path, '4M')
    commands = ['write -c -P 1 3M 64k', 'write -P 2 0 100k',
                'write -P 3 1M 300k', 'write -z 2M 128k']
    if snapshot:
        run('qemu-io', '-f', 'qcow2', '-c', 'write -P 9 64k 128k', path)
        run('qemu-img', 'snapshot', '-c', 'one', path)
    for c in commands:
        run('qemu-io', '-f', 'qcow2', '-c', c, path)
    return path


def judge(kind, good, folder):
    """What is wrong with how KIND is checked and repaired."""
    ours, theirs = (os.path.join(folder, n) for n in ('ours', 'theirs'))
    wrong = []
    for args in ((), ('-r', 'leaks'), ('-r', 'all')):
        for path in (ours, theirs):
            shutil.copyfile(good, path)
            image = Image(path)
            KINDS[kind](image)
            image.file.close()
        before = contents(theirs)
        a, said = check(RHEA, ours, *args)
        b, they_said = check('qemu-img', theirs, *args)
        drop = DIFFERS.get(kind, ((), ''))[0]
        diff = {k: (a[k], b[k]) for k in a if a[k] != b[k] and k not in drop}
        if diff:
            wrong.append('%s: ours, theirs: %s\n%s--\n%s' % (
                args, diff, said, they_said))
        # After a repair both find the same left.
        x, y = check('qemu-img', ours)[0], check('qemu-img', theirs)[0]
        left = {k: (x[k], y[k]) for k in ('corruptions', 'leaks', 'code')
                if x[k] > y[k]}
        if left and 'left' not in drop:
            wrong.append('%s: left by ours, by theirs: %s' % (args, left))
        for name, old, new in zip(('guest', 'snapshot'), before,
                                  contents(ours)):
            if args and old is not None and new != old and 'bytes' not in drop:
                wrong.append('%s: the %s changed' % (args, name))
    return wrong


def main():
    keep = '-k' in sys.argv
    kinds = [a for a in sys.argv[1:] if not a.startswith('-')] or KINDS
    if not shutil.which('qemu-io'):
        sys.exit(77)
    failed = 0
    folder = tempfile.mkdtemp(prefix='rhea-damage-')
    plain = make(folder, 'cluster_size=64k', False)
    os.rename(plain, plain + '-plain')
    for kind in kinds:
        snapshot = kind.startswith('snapshot')
        if snapshot or not os.path.exists(plain):
            make(folder, 'cluster_size=64k', True)
        wrong = judge(kind, plain if snapshot else plain + '-plain', folder)
        for text in wrong:
            print('%s %s' % (kind, text))
        failed += bool(wrong)
    if keep:
        print(folder)
    else:
        shutil.rmtree(folder)
    print('%d of %d kinds differ' % (failed, len(kinds)))
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
