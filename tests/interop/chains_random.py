#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random histories of backing chains, of all formats that QEMU and this project
both write, encrypted ones too, made by the programs of either side in turn and
held against a shadow model.

    chains_random.py [-s SEED] [-n COUNT] [-k]

Each step writes to the topmost image, puts a new one on it, commits it, gives
it another backing file, changes its size or converts all that it shows. After
each both sides must read what the model says, and find the images clean. Cases
print their seed when they fail; -k keeps their files.
"""
import argparse
import os
import random
import shutil
import sys
import tempfile

from qcow2_random import Failed, random_options, run

SIDES = {'ours': (os.environ['RHEA_IMG'], os.environ['RHEA_IO']),
         'qemu': ('qemu-img', 'qemu-io')}
SECRET = ('--object', 'secret,id=s,data=letmein')
MIB = 1 << 20


def differ(a, b):
    for i in range(0, min(len(a), len(b)), 512):
        if a[i:i + 512] != b[i:i + 512]:
            return 'at %d' % i
    return 'in length: %d, %d' % (len(a), len(b))


class Image:
    def __init__(self, fmt, path, options, below):
        self.fmt, self.path, self.options, self.below = (fmt, path, options,
                                                         below)
        self.model = None       # what it shows, once another is over it

    @property
    def encrypted(self):
        return self.fmt == 'luks' or 'encrypt.format' in self.options

    @property
    def key(self):
        """The option that tells the passphrase."""
        if not self.encrypted:
            return ''
        prefix = '' if self.fmt == 'luks' else 'encrypt.'
        return ',%skey-secret=s' % prefix

    @property
    def name(self):
        return 'driver=%s,file.filename=%s%s' % (self.fmt, self.path, self.key)


class Case:
    def __init__(self, rng, folder):
        self.rng, self.folder = rng, folder
        self.count = 0
        self.log = []
        self.top = None
        self.model = bytearray()

    def side(self):
        """Who does the next thing: its name, and its two programs."""
        name = self.rng.choice(sorted(SIDES))
        return (name, *SIDES[name])

    def path(self):
        self.count += 1
        return os.path.join(self.folder, 'i%d' % self.count)

    def note(self, *words):
        self.log.append(' '.join(str(w) for w in words))

    # --- making images -----------------------------------------------------

    def random_format(self, below):
        names = ['qcow2', 'qcow2', 'qcow2', 'qed']
        return self.rng.choice(names if below else names + ['raw', 'luks'])

    def options(self, fmt, below):
        rng, options = self.rng, {}
        if fmt == 'qcow2':
            options = random_options(rng)
            if below:
                options.pop('preallocation', None)
            if rng.random() < .25:
                options['encrypt.format'] = 'luks'
                options['encrypt.key-secret'] = 's'
                options['encrypt.iter-time'] = 10
                # What nobody wrote reads as noise.
                options.pop('preallocation', None)
        elif fmt == 'qed':
            options['cluster_size'] = 1 << rng.randint(12, 18)
            options['table_size'] = rng.choice([2, 4, 8, 16])
        elif fmt == 'luks':
            options = {'key-secret': 's', 'iter-time': 10,
                       'cipher-mode': rng.choice(['xts', 'cbc'])}
        return options

    def create(self, fmt, size, below, side=None):
        """A new image over BELOW; luks images are ours, for QEMU does not
        create one on a busy machine."""
        image = Image(fmt, self.path(), self.options(fmt, below), below)
        name, img, _ = side or self.side()
        if image.encrypted:
            img = SIDES['ours'][0]
        args = [img, 'create', '-q', *SECRET, '-f', fmt]
        for option in image.options.items():
            args += ['-o', '%s=%s' % option]
        if below:
            # QED notes no other format, so that it is guessed.
            args += ['-b', below.path, '-F', below.fmt]
        self.note(name, *args[1:], image.path, size)
        run(*args, image.path, size)
        return image

    # --- steps -------------------------------------------------------------

    def write(self):
        name, _, io = self.side()
        top, size = self.top, len(self.model)
        args = []
        for _ in range(self.rng.randint(1, 10)):
            at = self.rng.randrange(0, size, self.rng.choice([1, 512, 4096]))
            n = min(self.rng.randint(1, 200000), size - at)
            kind = self.rng.random()
            # A part of a zero cluster of QED takes what lies below, with QEMU.
            zeroes = kind < .2 and not (top.fmt == 'qed' and top.below)
            byte = 0 if zeroes else self.rng.randint(1, 255)
            how = '-z' if zeroes and kind < .1 else '-z -u' if zeroes else \
                '-P %d' % byte
            args += ['-c', 'write %s %d %d' % (how, at, n)]
            self.model[at:at + n] = bytes([byte]) * n
        self.note(name, 'io', *args)
        run(io, *SECRET, '--image-opts', '-t', 'writeback', *args, top.name)

    def overlay(self):
        # Nothing says where the passphrase of a backing file is.
        if self.top.encrypted:
            return
        size = len(self.model)
        if self.rng.random() < .3:
            size = max(512, size + self.rng.randint(-200, 200) * 512)
        fmt = self.random_format(self.top)
        self.top.model = self.model[:]
        self.top = self.create(fmt, size, self.top)
        self.cut(size)

    def cut(self, size):
        self.model = self.model[:size] + bytes(max(0, size - len(self.model)))

    def commit(self):
        top = self.top
        if not top.below:
            return
        name, img, _ = self.side()
        self.note(name, 'commit')
        run(img, 'commit', '-q', *SECRET, '--image-opts', top.name)
        self.verify()
        # What was larger below stays so.
        self.top = top.below
        self.model += self.top.model[len(self.model):]

    def rebase(self):
        top = self.top
        if not top.below:
            return
        name, img, _ = self.side()
        new = top.below.below if self.rng.random() < .6 else None
        args = ['-b', new.path, '-F', new.fmt] if new else ['-b', '']
        self.note(name, 'rebase', *args)
        run(img, 'rebase', *SECRET, '--image-opts', *args, top.name)
        top.below = new

    def resize(self):
        top = self.top
        if top.fmt == 'luks' or top.options.get('compat') == '0.10':
            return
        size = len(self.model) + self.rng.randint(-300, 600) * 512
        size = max(512, size)
        name, img, _ = self.side()
        # QEMU lets what lies below a QED image show; see docs/rhea-img.md.
        if top.fmt == 'qed' or top.below:
            name, img = 'ours', SIDES['ours'][0]
            size = max(size, len(self.model)) if top.fmt == 'qed' else size
        self.note(name, 'resize', size)
        run(img, 'resize', '-q', '--shrink', *SECRET, '--image-opts', top.name,
            size)
        self.cut(size)

    def convert(self):
        name, img, _ = self.side()
        fmt = self.random_format(None)
        target = Image(fmt, self.path(), self.options(fmt, None), None)
        if target.encrypted:
            name, img = 'ours', SIDES['ours'][0]
        args = [img, 'convert', *SECRET, '--image-opts', '-O', fmt]
        for option in target.options.items():
            args += ['-o', '%s=%s' % option]
        if fmt == 'qcow2' and not target.encrypted and \
                'preallocation' not in target.options and \
                self.rng.random() < .3:
            args.append('-c')
        self.note(name, *args[1:])
        run(*args, self.top.name, target.path)
        self.top = target

    # --- judging -----------------------------------------------------------

    def read(self, image, img):
        raw = os.path.join(self.folder, 'raw')
        run(img, 'convert', *SECRET, '--image-opts', '-O', 'raw', image.name,
            raw)
        with open(raw, 'rb') as f:
            return bytearray(f.read())

    def verify(self):
        for name, (img, _) in SIDES.items():
            found = self.read(self.top, img)
            if found != self.model:
                raise Failed('%s reads something else: %s' % (
                    name, differ(found, self.model)))
            image = self.top
            while image:
                if image.fmt in ('qcow2', 'qed'):
                    run(img, 'check', *SECRET, '--image-opts', image.name)
                image = image.below

    def run(self, steps):
        size = self.rng.randint(1, 4000) * 512
        fmt = self.random_format(None)
        self.top = self.create(fmt, size, None)
        self.model = bytearray(size)
        if fmt == 'luks':
            _, _, io = self.side()
            run(io, *SECRET, '--image-opts', '-c', 'write -z 0 %d' % size,
                self.top.name)
        for _ in range(steps):
            self.rng.choice([self.write, self.write, self.write, self.overlay,
                             self.overlay, self.commit, self.rebase,
                             self.resize, self.convert])()
            self.verify()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('-s', type=int, default=0, help='the first seed')
    parser.add_argument('-n', type=int, default=10, help='how many')
    parser.add_argument('-k', action='store_true', help='keep the files')
    args = parser.parse_args()
    for seed in range(args.s, args.s + args.n):
        folder = tempfile.mkdtemp(prefix='rhea-chains-')
        case = Case(random.Random(seed), folder)
        try:
            case.run(12)
        except Failed as e:
            print('seed %d: %s' % (seed, e))
            print('\n'.join(case.log))
            if args.k:
                print('its files are in', folder)
            return 1
        finally:
            if not args.k:
                shutil.rmtree(folder)
    print('%d chains are sound' % args.n)
    return 0


if __name__ == '__main__':
    sys.exit(main())
