# SPDX-License-Identifier: MIT
"""What the tests of rhea-img share: run it and qemu-img side by side.

Every test runs in a folder of its own, which is gone afterwards.
"""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'lib'))
import images  # noqa: E402  pylint: disable=wrong-import-position

RHEA = os.environ['RHEA_IMG']
MIB = 1 << 20


class Result:
    """What a program said."""

    def __init__(self, args, done):
        self.args = args
        self.code = done.returncode
        self.out = done.stdout.decode('utf-8', 'replace')
        self.err = done.stderr.decode('utf-8', 'replace')

    @property
    def json(self):
        return json.loads(self.out)

    def __str__(self):
        return (f'{" ".join(self.args)}: exit code {self.code}\n'
                f'{self.out}\n{self.err}')


def execute(*args):
    args = [str(a) for a in args]
    return Result(args, subprocess.run(args, capture_output=True, check=False,
                                       stdin=subprocess.DEVNULL))


def rhea(*args):
    return execute(RHEA, *args)


def qemu(*args):
    return execute('qemu-img', *args)


def poke(path, offset, data):
    """Change bytes of a file."""
    with open(path, 'r+b') as f:
        f.seek(offset)
        f.write(data)


def pattern(path, offset, length, seed):
    """Random bytes into a raw file."""
    with open(path, 'r+b') as f:
        f.seek(offset)
        f.write(random.Random(seed).randbytes(length))


def random_writes(rng, shadow, count, lengths, zeroes=('-z', '-z -u'),
                  unit=512):
    """Commands for qemu-io: COUNT writes, each of one of LENGTHS, half of them
    of zeroes by one of the options ZEROES. SHADOW has them already."""
    commands = []
    for _ in range(count):
        at = rng.randrange(len(shadow) // unit) * unit
        n = min(rng.choice(lengths), len(shadow) - at)
        byte = rng.choice((0, rng.randrange(256)))
        how = f'-P {byte}' if byte else rng.choice(zeroes)
        commands.append(f'write {how} {at} {n}')
        shadow[at:at + n] = bytes([byte]) * n
    return commands


class Case(unittest.TestCase):
    """A test in a scratch folder, which is the current one."""

    maxDiff = None

    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix='rhea-tool-')
        self.addCleanup(scratch.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(scratch.name)

    def good(self, result):
        """RESULT, which must be a success that complains of nothing."""
        self.assertEqual((result.code, result.err), (0, ''), str(result))
        return result

    def fails(self, result, code=1, says=None):
        """RESULT, which must be an error with one understandable message."""
        self.assertEqual(result.code, code, str(result))
        self.assertRegex(result.err, r'^rhea-img: .+\n', str(result))
        if says:
            self.assertRegex(result.err, says, str(result))
        return result

    def rhea(self, *args):
        return self.good(rhea(*args))

    def qemu(self, *args):
        return self.good(qemu(*args))

    def qemu_io(self, path, fmt, *commands):
        args = ['qemu-io', '-f', fmt, '-d', 'unmap']
        for command in commands:
            args += ['-c', command]
        result = execute(*args, path)
        self.assertEqual(result.code, 0, str(result))

    def same(self, *args, code=None):
        """rhea-img and qemu-img print the same and exit alike."""
        ours, theirs = rhea(*args), qemu(*args)
        self.assertEqual((ours.code, ours.out), (theirs.code, theirs.out),
                         f'{ours}\n{theirs}')
        if code is not None:
            self.assertEqual(ours.code, code, str(ours))
        return ours

    def same_json(self, *args, drop=()):
        """The same for --output=json, whatever the order of keys."""
        ours = rhea(*args, '--output=json')
        theirs = qemu(*args, '--output=json')
        self.assertEqual(ours.code, theirs.code, f'{ours}\n{theirs}')
        self.assertEqual(without(ours.json, drop), without(theirs.json, drop),
                         f'{ours}\n{theirs}')
        return ours

    def identical(self, a, a_format, b, b_format):
        """By qemu-img: the same contents."""
        result = qemu('compare', '-f', a_format, '-F', b_format, a, b)
        self.assertEqual(result.code, 0, str(result))

    def sound(self, path, fmt):
        """By qemu-img: no corruption, and not a leaked cluster."""
        result = qemu('check', '-f', fmt, path)
        self.assertEqual(result.code, 0, str(result))

    def make_data(self, path, size, runs, seed=1):
        """A sparse raw file with random bytes in RUNS: (offset, length)."""
        with open(path, 'wb') as f:
            f.truncate(size)
        for i, (offset, length) in enumerate(runs):
            pattern(path, offset, length, seed * 1000 + i)


class Images(Case):
    """Tests of one format, FORMAT."""

    FORMAT = None

    def rhea_io(self, path, *commands, args=()):
        args = [os.environ['RHEA_IO'], '-f', self.FORMAT, *args]
        for command in commands:
            args += ['-c', command]
        return execute(*args, path)

    def io(self, path, *commands, args=()):
        """COMMANDS, all of which must do well."""
        result = self.good(self.rhea_io(path, *commands, args=args))
        self.assertNotIn('failed', result.out, str(result))

    def raw(self, path, *args):
        """What the guest sees."""
        self.rhea('convert', '-O', 'raw', *args, path, 'flat')
        return contents('flat')

    def clean(self, path):
        """By our own check; tests of a format look closer."""
        self.rhea('check', '-f', self.FORMAT, path)

    def write_in_turn(self, path, turns, change):
        """What CHANGE tells, by qemu-io and rhea-io in turn."""
        for turn in range(turns):
            if turn % 2:
                self.io(path, *change())
            else:
                self.qemu_io(path, self.FORMAT, *change())
            self.clean(path)

    def random_by_threads(self, imgtool, path, size, seed, count=200, options=()):
        """COUNT changes of a new image by four threads; what it holds then."""
        for args in (('create', size, *options), ('random', seed, count, 4)):
            self.good(execute(imgtool, self.FORMAT, path, *args))
        self.clean(path)
        return contents(path + '.expect')

    def seven_zip_reads(self, kind, *options):
        """Images that we make with each of OPTIONS."""
        if not shutil.which('7zz'):
            self.skipTest('7zz is not installed')
        self.make_data('raw', 5 * MIB, [(0, 700), (MIB, 2 * MIB)])
        for given in options:
            self.rhea('convert', '-O', self.FORMAT, '-o', given, 'raw', 'new')
            out = subprocess.run(['7zz', 'e', '-so', f'-t{kind}', 'new'],
                                 capture_output=True, check=True).stdout
            self.assertEqual(out, contents('raw'), given)


def without(value, keys):
    """VALUE without the members named KEYS, at any depth."""
    if isinstance(value, dict):
        return {k: without(v, keys) for k, v in value.items() if k not in keys}
    if isinstance(value, list):
        return [without(v, keys) for v in value]
    return value


def contents(path):
    with open(path, 'rb') as f:
        return f.read()


def sample(count, first=0):
    """Images of every sort: (seed, image), each in a folder of its own. On
    large sparse QED disks with large clusters QEMU 7.2 aborts, in its
    bdrv_co_block_status."""
    for seed in range(first, first + count):
        folder = os.path.join(os.getcwd(), f'sample-{seed}')
        os.mkdir(folder)
        image = images.make(seed, folder)
        if image.size <= 1 << 40:
            yield seed, image


def main():
    for program in ('qemu-img', 'qemu-io'):
        if not any(os.access(os.path.join(p, program), os.X_OK)
                   for p in os.get_exec_path()):
            print(f'{program} is not installed')
            sys.exit(77)
    unittest.main(verbosity=2)
