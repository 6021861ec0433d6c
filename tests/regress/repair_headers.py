# SPDX-License-Identifier: MIT
"""A repair goes by the header. Where a number in that is wrong, it must not take
tables and guest data for what is to be repaired: "check -r all" has dropped
entries that were good, written into descriptors and cut off data for it.
"""
import os
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413


class Headers(tool.Case):
    def setUp(self):
        super().setUp()
        self.make_data('raw', 3 * MIB, [(0, 3 * MIB)])

    def make(self, fmt, options=()):
        self.rhea('convert', '-O', fmt, *options, 'raw', 'good')

    def change(self, at, layout, new):
        """A copy, bad, with a number at AT, from the end if negative."""
        shutil.copy('good', 'bad')
        data = bytearray(contents('bad'))
        at += len(data) if at < 0 else 0
        old, = struct.unpack_from(layout, data, at)
        struct.pack_into(layout, data, at, new(old))
        with open('bad', 'wb') as f:
            f.write(data)
        return old

    def same(self):
        """What the guest has read before, and that is all, it reads now."""
        self.rhea('convert', '-O', 'raw', 'bad', 'out')
        self.assertTrue(contents('out')[:3 * MIB] == contents('raw'))

    def is_left_alone(self):
        before = contents('bad')
        self.fails(tool.rhea('check', '-r', 'all', 'bad'), says='damaged|has no room for')
        self.assertTrue(contents('bad') == before)

    def is_repaired(self):
        self.assertEqual(tool.rhea('check', 'bad').code, 2)
        done = tool.rhea('check', '-r', 'all', 'bad')
        self.assertEqual(done.code, 0, str(done))
        self.rhea('check', 'bad')
        self.same()

    def test_vmdk_sizes(self):
        """By which the directory would reach into the tables."""
        self.make('vmdk')
        for new in (24, 28, 40):
            with self.subTest(new):
                self.change(12, '<Q', lambda n, new=new: n + (1 << new))
                self.is_left_alone()

    def test_vmdk_a_smaller_disk(self):
        """The descriptor knows better; nothing is cut off."""
        self.make('vmdk')
        old = self.change(12, '<Q', lambda n: n // 2)
        done = tool.rhea('check', '-r', 'all', 'bad')
        self.assertEqual(done.code, 2, str(done))
        self.assertIn('descriptor', done.err)
        with open('bad', 'r+b') as f:
            f.seek(12)
            f.write(struct.pack('<Q', old))
        self.same()

    def test_vmdk_directories(self):
        """One is in the descriptor, a table or the guest's data."""
        self.make('vmdk')
        for at in (48, 56):
            for new in (1, 2, 22, 27, 5376):
                with self.subTest(at=at, new=new):
                    if self.change(at, '<Q', lambda n, new=new: new) != new:
                        self.is_repaired()

    def test_vmdk_end_of_metadata(self):
        self.make('vmdk')
        for new in (129, 256, 0x8000, 1 << 24):
            with self.subTest(new):
                self.change(64, '<Q', lambda n, new=new: new)
                self.is_repaired()

    def test_vmdk_streams(self):
        """The directory is followed by the footer."""
        self.make('vmdk', ['-o', 'subformat=streamOptimized'])
        self.change(-1024 + 12, '<Q', lambda n: n + (1 << 24))
        self.is_left_alone()

    def test_vdi_blocks_elsewhere(self):
        """All are past the end of the file then: none is dropped."""
        self.make('vdi')
        for at, new in ((344, 1 << 29), (380, 1 << 24)):
            with self.subTest(at=at):
                self.change(at, '<I', lambda n, new=new: n + new)
                self.is_left_alone()
                self.rhea('info', 'bad')
        # What there is can be had by one who asks for it.
        done = tool.rhea('convert', '--salvage', '-O', 'raw', 'bad', 'out')
        self.assertEqual(done.code, 0, str(done))

    def test_qcow_tables(self):
        self.make('qcow')
        for at, new in ((24, 0x3000000000), (40, 0x20000)):
            with self.subTest(at=at):
                self.change(at, '>Q', lambda n, new=new: new)
                self.is_left_alone()

    def test_parallels(self):
        self.make('parallels', ['-o', 'cluster_size=64k'])
        for at, new in ((32, 1 << 24), (32, 0x300000),
                        (48, 0x81), (48, 0x100), (48, 1), (48, 0x8000)):
            with self.subTest(at=at, new=new):
                self.change(at, '<I', lambda n, new=new: new)
                self.is_repaired()
        # Clusters of another size.
        self.change(28, '<I', lambda n: 0x8000)
        self.is_left_alone()

    def test_vhd(self):
        """A header is not sealed as good by which blocks overlap."""
        self.make('vpc', ['-o', 'block_size=64k'])
        for at, layout, new in ((512 + 32, '>I', 0x20000),
                                (512 + 16, '>Q', 0xc00)):
            with self.subTest(at=at):
                self.change(at, layout, lambda n, new=new: new)
                self.is_left_alone()
        self.change(512 + 36, '>I', lambda n: 5)
        self.is_repaired()


if __name__ == '__main__':
    tool.main()
