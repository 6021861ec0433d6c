# SPDX-License-Identifier: MIT
"""rhea-img check judges, and repairs, as qemu-img check does."""
import shutil
import struct

import tool
from tool import contents

FIELDS = ('total-clusters', 'allocated-clusters', 'fragmented-clusters',
          'compressed-clusters', 'format', 'filename', 'check-errors')


def be64(data, at):
    return struct.unpack_from('>Q', data, at)[0]


class Check(tool.Case):
    def make(self, *options):
        self.make_data('raw', 5 << 20, [(0, 1 << 20), (3 << 20, 70000)])
        self.qemu('convert', '-f', 'raw', '-O', 'qcow2', *options, 'raw', 'x')

    def refcount_block(self, data):
        return be64(data, be64(data, 48))

    def set_refcount(self, cluster, count):
        with open('x', 'r+b') as f:
            at = self.refcount_block(f.read())
            f.seek(at + 2 * cluster)
            f.write(struct.pack('>H', count))

    def leak(self):
        """One cluster at the end of the file that nobody uses."""
        with open('x', 'r+b') as f:
            end = f.seek(0, 2)
            end = (end + 65535) // 65536 * 65536
            f.truncate(end + 65536)
        self.set_refcount(end // 65536, 1)

    def corrupt(self):
        """A data cluster that the counts call free."""
        data = contents('x')
        l2 = be64(data, be64(data, 40)) & 0x00fffffffffffe00
        self.set_refcount((be64(data, l2) & 0x00fffffffffffe00) // 65536, 0)

    def test_clean_images(self):
        for options in ((), ('-c',), ('-o', 'compat=0.10'),
                        ('-o', 'cluster_size=4k'), ('-o', 'extended_l2=on')):
            with self.subTest(options=options):
                self.make(*options)
                self.same('check', 'x', code=0)
                self.same_json('check', 'x')
                self.assertEqual(self.rhea('check', '-q', 'x').out, '')

    def test_qed_images(self):
        self.make_data('raw', 5 << 20, [(0, 1 << 20), (3 << 20, 70000)])
        self.qemu('convert', '-f', 'raw', '-O', 'qed', 'raw', 'x')
        theirs = self.qemu('check', 'x').out
        # QEMU does not tell where a QED image ends.
        self.assertEqual(self.rhea('check', 'x').out,
                         f'{theirs}Image end offset: {len(contents("x"))}\n')
        self.same_json('check', 'x', drop=('image-end-offset',))

    def test_raw_images_have_nothing_to_check(self):
        self.make_data('raw', 1 << 20, [])
        self.fails(tool.rhea('check', '-f', 'raw', 'raw'), code=63)

    def test_leaks(self):
        self.make()
        self.leak()
        self.same('check', 'x', code=3)
        self.same_json('check', 'x')
        shutil.copy('x', 'y')
        theirs = tool.qemu('check', '-r', 'leaks', 'y')
        ours = tool.rhea('check', '-r', 'leaks', 'x')
        self.assertEqual((ours.code, ours.out), (theirs.code, theirs.out))
        self.sound('x', 'qcow2')
        self.identical('x', 'qcow2', 'raw', 'raw')

    def test_corruption(self):
        self.make()
        self.corrupt()
        ours = tool.rhea('check', 'x')
        self.assertEqual(ours.code, 2, str(ours))
        self.assertRegex(ours.out, r'\n[1-9]\d* errors were found on the '
                         r'image\.\nData may be corrupted, or further writes '
                         r'to the image may corrupt it\.\n')
        before = contents('x')
        quiet = tool.rhea('check', '-q', 'x')
        self.assertEqual((quiet.code, quiet.out), (2, ''))
        self.assertEqual(contents('x'), before)

    def test_repair(self):
        self.make()
        self.corrupt()
        self.leak()
        ours = tool.rhea('check', '-r', 'all', 'x')
        self.assertEqual(ours.code, 0, str(ours))
        self.assertRegex(ours.out,
                         r'^The following inconsistencies were found and '
                         r'repaired:\n\n    \d+ leaked clusters\n'
                         r'    [1-9]\d* corruptions\n\n'
                         r'Double checking the fixed image now\.\.\.\n'
                         r'No errors were found on the image\.\n')
        self.sound('x', 'qcow2')
        self.identical('x', 'qcow2', 'raw', 'raw')

    def test_repair_tells_scripts_what_it_did(self):
        self.make()
        self.corrupt()
        found = tool.rhea('check', '-r', 'all', '--output=json', 'x')
        self.assertEqual(found.code, 0, str(found))
        self.assertGreater(found.json['corruptions-fixed'], 0)
        self.assertNotIn('corruptions', found.json)

    def test_repair_of_leaks_leaves_corruption(self):
        self.make()
        self.corrupt()
        self.assertNotIn(tool.rhea('check', '-r', 'leaks', 'x').code, (0, 3))
        self.assertEqual(tool.qemu('check', 'x').code, 2)

    def test_a_missing_backing_file_does_not_matter(self):
        self.qemu('create', '-q', '-f', 'qcow2', '-u', '-b', 'none', '-F',
                  'raw', 'x', '1M')
        self.rhea('check', 'x')

    def test_errors(self):
        self.make()
        for args in ((), ('none',), ('x', 'y'), ('-r', 'some', 'x'),
                     ('-Z', 'x'), ('--output=x', 'x'), ('-f', 'qed', 'x'),
                     ('-r', 'all', '-U', 'x'), ('-T', 'none such', 'x')):
            with self.subTest(args=args):
                self.fails(tool.rhea('check', *args))

    def test_repair_clears_what_it_does_not_know_to_be_right(self):
        """Unknown autoclear bits, even where nothing is to be mended."""
        self.qemu('create', '-q', '-f', 'qcow2', 'image', '4M')
        tool.poke('image', 88, b'\xc0')
        for args, left in ((), b'\xc0'), (('-r', 'leaks'), b'\0'):
            self.rhea('check', *args, 'image')
            self.assertEqual(tool.contents('image')[88:89], left)

    def test_samples_of_every_sort(self):
        for _, image in tool.sample(50, 200):
            with self.subTest(image=image.describe()):
                ours = tool.rhea('check', '--output=json', '-f', image.format,
                                 image.path)
                if not image.qemu_opens:
                    self.assertIn(ours.code, (0, 3), str(ours))
                    continue
                theirs = tool.qemu('check', '--output=json', '-f', image.format,
                                   image.path)
                if image.format == 'qed':
                    # QEMU sees leaks in QED images where none are.
                    self.assertIn(theirs.code, (0, 3))
                    self.assertIn(ours.code, (0, theirs.code), str(ours))
                else:
                    self.assertEqual(ours.code, theirs.code, str(ours))
                    self.assertEqual(ours.json.get('leaks'),
                                     theirs.json.get('leaks'))
                for field in FIELDS:
                    self.assertEqual(ours.json.get(field),
                                     theirs.json.get(field), field)


if __name__ == '__main__':
    tool.main()
