# SPDX-License-Identifier: MIT
"""rhea-img convert shares blocks with its sources where the file system can.

Needs root, loop devices, and an XFS or Btrfs in the kernel; whichever is
missing is skipped.
"""
import fcntl
import os
import random
import shutil
import struct
import subprocess
import tempfile
import unittest

import tool
from tool import MIB, contents

# What each file system is made by; the smallest that XFS makes.
MAKE = {'xfs': ('mkfs.xfs', '-q', '-m', 'reflink=1'),
        'btrfs': ('mkfs.btrfs', '-q')}
DISK_MIB = 320
LENGTH = 24 * MIB + 3 * 512
TARGETS = (('raw', ''), ('qcow2', ''), ('qcow2', 'cluster_size=2M'),
           ('qcow2', 'extended_l2=on'),
           ('qcow2', 'compat=0.10'), ('qcow2', 'data_file=target.data'),
           ('qcow2', 'preallocation=metadata'), ('qed', ''), ('vdi', ''),
           ('vhdx', ''), ('parallels', ''))


# linux/fiemap.h
FS_IOC_FIEMAP = 0xC020660B
FIEMAP_FLAG_SYNC = 1
FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_SHARED = 1, 0x2000


def extents(path):
    """(length in bytes, whether it is shared) of each extent of a file."""
    most, at, last = 128, 0, False
    with open(path, 'rb') as f:
        while not last:
            buf = bytearray(struct.pack('=QQIIII', at, 2**64 - 1 - at,
                                        FIEMAP_FLAG_SYNC, 0, most, 0) +
                            bytes(56 * most))
            fcntl.ioctl(f, FS_IOC_FIEMAP, buf)
            n = struct.unpack_from('=I', buf, 20)[0]
            for i in range(n):
                logical, _, length, _, _, flags = struct.unpack_from(
                    '=QQQQQI', buf, 32 + 56 * i)
                yield length, bool(flags & FIEMAP_EXTENT_SHARED)
                at = logical + length
                last = bool(flags & FIEMAP_EXTENT_LAST)
            if not n:
                break


def shared(*paths):
    """How much of all that these files hold they share with others."""
    found = [e for path in paths if os.path.exists(path)
             for e in extents(path)]
    return (sum(length for length, is_shared in found if is_shared) /
            sum(length for length, _ in found))


class Clone:
    """On a file system of its own, which is the current folder."""

    kind = None

    @classmethod
    def setUpClass(cls):
        if os.geteuid() or not shutil.which(MAKE[cls.kind][0]):
            raise unittest.SkipTest('root and mkfs are needed')
        scratch = tempfile.TemporaryDirectory(prefix='rhea-clone-')
        cls.addClassCleanup(scratch.cleanup)
        disk = os.path.join(scratch.name, 'disk')
        cls.mount = os.path.join(scratch.name, 'mount')
        with open(disk, 'wb') as f:
            f.truncate(DISK_MIB * MIB)
        subprocess.run([*MAKE[cls.kind], disk], check=True,
                       stdout=subprocess.DEVNULL)
        os.mkdir(cls.mount)
        if subprocess.run(['mount', '-o', 'loop', disk, cls.mount],
                          stderr=subprocess.DEVNULL, check=False).returncode:
            raise unittest.SkipTest(f'no {cls.kind}, or no loop devices')
        cls.addClassCleanup(subprocess.run, ['umount', cls.mount], check=True)
        cls.make_source(os.path.join(cls.mount, 'source-raw'))

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory(dir=self.mount)
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        subprocess.run(['cp', '--reflink=always', '../source-raw', 'raw'],
                       check=True)

    @staticmethod
    def make_source(path):
        """Data, holes and zeroes at all kinds of places; no whole number of
        clusters long."""
        rng = random.Random(5)
        with open(path, 'wb') as f:
            f.truncate(LENGTH)
            at = 0
            while at < LENGTH:
                n = min(LENGTH - at, rng.choice(
                    (512, 4096, 12288, 65536, 300000, MIB, 3 * MIB)))
                kind = rng.randrange(10)
                if kind == 0:
                    f.seek(at)
                    f.write(bytes(n))
                elif kind < 8:
                    f.seek(at)
                    f.write(rng.randbytes(n))
                at += n

    def convert(self, source, fmt, *more, shares=True):
        """Into 'target'; whether it takes room of its own is checked, too."""
        for name in ('target', 'target.data'):
            if os.path.exists(name):
                os.unlink(name)
        self.rhea('convert', '-O', fmt, *more, source, 'target')
        part = shared('target', 'target.data')
        if shares:
            self.assertGreater(part, 0.6)
        else:
            self.assertEqual(part, 0)

    def holds(self, fmt, path='target'):
        """QEMU reads in PATH what is in 'raw', and finds it clean."""
        self.qemu('compare', '-q', '-f', 'raw', '-F', fmt, 'raw', path)
        if fmt != 'raw':
            self.qemu('check', '-q', '-f', fmt, path)

    def test_every_target(self):
        for fmt, options in TARGETS:
            with self.subTest(fmt=fmt, options=options):
                self.convert('raw', fmt, *(['-o', options] if options else []))
                self.holds(fmt)

    def test_every_source(self):
        for fmt, options in TARGETS:
            if fmt in ('vdi', 'parallels'):
                continue  # QEMU's lie elsewhere than at whole blocks
            if 'data_file' in options:
                options = 'data_file=source.data'
            self.qemu('convert', '-f', 'raw', '-O', fmt,
                      *(['-o', options] if options else []), 'raw', 'source')
            with self.subTest(fmt=fmt, options=options):
                for to in ('raw', 'qcow2', 'qed'):
                    self.convert('source', to)
                    self.holds(to)
            os.unlink('source')

    def test_each_of_both_can_be_written_to(self):
        self.convert('raw', 'qcow2')
        was = contents('raw')
        self.rhea_writes('target', 'qcow2', 0x55)
        self.assertEqual(contents('raw'), was)
        shutil.copy('target', 'copy')
        self.rhea_writes('raw', 'raw', 0x66)
        self.qemu('compare', '-q', '-f', 'qcow2', '-F', 'qcow2', 'copy',
                  'target')

    def rhea_writes(self, path, fmt, byte):
        self.qemu_io(path, fmt, f'write -P {byte} 0 4M',
                     f'write -P {byte} 20001k 99k')

    def test_compressed_and_plain_clusters(self):
        self.qemu_io('raw', 'raw', 'write -P 4 0 12M')
        self.rhea('convert', '-c', '-O', 'qcow2', 'raw', 'source')
        self.qemu_io('source', 'qcow2', 'write -P 3 1M 5M')
        self.qemu('convert', '-f', 'qcow2', '-O', 'raw', 'source', 'raw')
        self.rhea('convert', '-O', 'qcow2', 'source', 'target')
        self.holds('qcow2')
        part = shared('target')
        self.assertTrue(0.4 < part < 0.8, part)

    def test_a_last_cluster_that_is_short_of_the_files_end(self):
        # QEMU reads zeroes there.
        self.rhea('create', '-q', '-f', 'qcow2', 'short', '4M')
        self.qemu_io('short', 'qcow2', 'write -P 6 0 1M', 'write -P 7 1M 20k')
        os.truncate('short', os.path.getsize('short') - 40960)
        self.qemu('convert', '-f', 'qcow2', '-O', 'raw', 'short', 'raw')
        for to in ('raw', 'qcow2', 'qed'):
            self.rhea('convert', '-O', to, 'short', 'target')
            self.holds(to)
            os.unlink('target')

    def test_chain(self):
        self.rhea('create', '-q', '-f', 'qcow2', '-b', 'raw', '-F', 'raw',
                  'top')
        self.qemu_io('top', 'qcow2', 'write -P 9 100k 5M', 'write -z 7M 3M')
        self.qemu('convert', '-f', 'qcow2', '-O', 'raw', 'top', 'flat')
        self.convert('top', 'qcow2')
        os.rename('flat', 'raw')
        self.holds('qcow2')
        # Over a backing file that has some of it.
        self.rhea('convert', '-O', 'qcow2', 'target', 'base')
        self.rhea('convert', '-O', 'qcow2', '-B', 'base', '-F', 'qcow2',
                  'raw', 'over')
        self.holds('qcow2', 'over')

    def test_existing_target(self):
        for fmt in ('raw', 'qcow2', 'qed'):
            with self.subTest(fmt=fmt):
                self.rhea('create', '-q', '-f', fmt, 'old',
                          align(LENGTH))
                self.qemu_io('old', fmt, 'write -P 7 0 18M')
                self.rhea('convert', '-n', '-O', fmt, 'raw', 'old')
                self.holds(fmt, 'old')
                os.unlink('old')

    def test_several_sources(self):
        self.convert_joined('qcow2')
        self.convert_joined('raw')

    def convert_joined(self, fmt):
        self.rhea('convert', '-O', fmt, 'raw', 'raw', 'joined')
        with open('twice', 'wb') as f:
            f.write(contents('raw') * 2)
        self.qemu('compare', '-q', '-f', 'raw', '-F', fmt, 'twice', 'joined')
        os.unlink('joined')

    def test_what_looks_at_the_bytes_copies_them(self):
        for args in (('-S', '4k'), ('-S', '0'), ('--salvage',),
                     ('-o', 'preallocation=falloc'),
                     ('-o', 'preallocation=full')):
            with self.subTest(args=args):
                self.convert('raw', 'qcow2', *args, shares=False)
                self.holds('qcow2')
        self.fails(tool.rhea('convert', '-C', '-S', '4k', 'raw', 'target'))
        self.convert('raw', 'raw', '-C')
        self.assertEqual(contents('raw'), contents('target'))

    def test_encrypted_targets_share_nothing(self):
        self.convert('raw', 'qcow2', '--object', 'secret,id=s,data=geheim',
                     '-o', 'encrypt.format=luks,encrypt.key-secret=s,'
                     'encrypt.iter-time=10', shares=False)

    def test_progress(self):
        out = self.rhea('convert', '-p', '-O', 'qcow2', 'raw', 'target').out
        self.assertTrue(out.rstrip().endswith('(100.00/100%)'), out)

    def test_past_the_page_cache(self):
        self.convert('raw', 'qcow2', '-t', 'none', '-T', 'none')
        self.holds('qcow2')


def align(n):
    return (n + 65535) // 65536 * 65536


class Xfs(Clone, tool.Case):
    kind = 'xfs'


class Btrfs(Clone, tool.Case):
    kind = 'btrfs'


class Elsewhere(tool.Case):
    """Where nothing can be shared, conversion copies."""

    def test_another_file_system(self):
        self.make_data('raw', 5 * MIB, [(0, MIB), (2 * MIB, 70000)])
        other = '/dev/shm'
        if os.stat(other).st_dev == os.stat('.').st_dev:
            self.skipTest('both folders are on one file system')
        target = os.path.join(other, f'rhea-clone-{os.getpid()}')
        self.addCleanup(lambda: os.path.exists(target) and os.unlink(target))
        for args in ((), ('-C',)):
            self.rhea('convert', '-O', 'qcow2', *args, 'raw', target)
            self.qemu('compare', '-q', '-F', 'qcow2', '-f', 'raw', 'raw',
                      target)


if __name__ == '__main__':
    tool.main()
