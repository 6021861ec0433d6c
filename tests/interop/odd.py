# SPDX-License-Identifier: MIT
"""Images as other vendors' programs, old versions and people's hands leave them:
what is odd about them is no reason to refuse them, nor to read something else.
"""
import os
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                '..', 'tool'))
import tool  # noqa: E402  pylint: disable=wrong-import-position
import images_vhd as vhd  # noqa: E402  pylint: disable=wrong-import-position
import images_vmdk as vmdk  # noqa: E402  pylint: disable=wrong-import-position
from tool import MIB, contents  # noqa: E402  pylint: disable=C0413

DESCRIPTOR = '''# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicFlat"

# Extent description
RW 2048 FLAT "a-flat.vmdk" 0

# The Disk Data Base
#DDB

ddb.adapterType = "ide"
'''


class Odd(tool.Case):
    def raw(self, path):
        """What the guest sees; the format is for the program to find out."""
        self.rhea('convert', '-O', 'raw', path, 'raw')
        return contents('raw')


class Descriptors(Odd):
    def setUp(self):
        super().setUp()
        self.guest = bytes(range(256)) * 4096
        with open('a-flat.vmdk', 'wb') as f:
            f.write(self.guest)

    def write(self, text, encoding='utf-8'):
        with open('d.vmdk', 'wb') as f:
            f.write(text.encode(encoding))

    def test_spellings(self):
        def swap(*pairs):
            text = DESCRIPTOR
            for old, new in pairs:
                assert old in text
                text = text.replace(old, new)
            return text
        texts = {
            'line ends of Windows': swap(('\n', '\r\n')),
            "Windows' mark of the encoding": '\ufeff' + DESCRIPTOR,
            'its title alone': swap(('version=1\n', '')),
            'no title': swap(('# Disk DescriptorFile\n', '')),
            'another title': swap(('# Disk DescriptorFile',
                                   '#disk descriptor file')),
            'another order': swap(('version=1\n', ''),
                                  ('CID=fffffffe',
                                   'encoding="UTF-8"\nversion=1\n'
                                   'CID=fffffffe')),
            'comments': swap(('version=1', 'version=1 # it is'),
                             ('CID=fffffffe', 'CID=fffffffe # unknown')),
            'upper and lower case': swap(('version', 'VERSION'),
                                         ('parentCID', 'PARENTcid'),
                                         ('RW', 'rw'), ('FLAT', 'Flat')),
            'blanks': swap(('=', '  =\t'), ('RW 2048 FLAT', '  RW\t2048   FLAT')),
            'numbers with a prefix': swap(('CID=fffffffe', 'CID=0xfffffffe')),
            'no content id': swap(('CID=fffffffe\n', '')),
            'a damaged content id': swap(('CID=fffffffe', 'CID=fff\xfefffe')),
            'a damaged one of no parent': swap(('=ffffffff', '=ffgfffff')),
            'no content id of a parent': swap(('parentCID=ffffffff\n', '')),
            'an empty one': swap(('parentCID=ffffffff', 'parentCID=')),
            'no quotes': swap(('"a-flat.vmdk"', 'a-flat.vmdk')),
            'no offset': swap(('.vmdk" 0', '.vmdk"')),
            'no type of its making': swap(('createType="monolithicFlat"\n', '')),
            'no line end': DESCRIPTOR.rstrip('\n'),
            'zeroes': DESCRIPTOR + '\0' * 3000,
            'another folder': swap(('a-flat', '/vmfs/volumes/5f1/vm/a-flat')),
            "Windows' folder": swap(('a-flat', 'C:\\vm\\a-flat')),
            "Windows' own folder": swap(('a-flat', '.\\a-flat')),
            'the folder itself': swap(('a-flat',
                                       os.path.abspath('a-flat'))),
            "Windows' idea of names": swap(('a-flat', 'A-Flat')),
        }
        for what, text in texts.items():
            with self.subTest(what):
                self.write(text)
                self.assertTrue(self.raw('d.vmdk') == self.guest)
                self.rhea('check', 'd.vmdk')
        # What cannot be a descriptor is no raw image either.
        self.write(swap(('version=1', 'version=4')))
        self.fails(tool.rhea('info', 'd.vmdk'), says='version 4')
        self.write(swap(('RW 2048 FLAT "a-flat.vmdk" 0\n', '')))
        self.fails(tool.rhea('info', 'd.vmdk'), says='no extents')

    def test_changes_need_an_identity(self):
        """Who is made over such an image could not tell that it was changed."""
        self.write(DESCRIPTOR.replace('CID=fffffffe\n', '', 1))
        done = tool.execute(os.environ['RHEA_IO'], '-c', 'write 0 1k', 'd.vmdk')
        self.assertEqual(done.code, 1, str(done))
        self.assertIn('CID=', done.err)
        self.assertTrue(contents('a-flat.vmdk') == self.guest)

    def test_two_extents_that_a_move_made_one(self):
        self.write(DESCRIPTOR.replace(
            'RW 2048 FLAT "a-flat.vmdk" 0',
            'RW 1024 FLAT "/one/a-flat.vmdk" 0\n'
            'RW 1024 FLAT "/two/a-flat.vmdk" 0'))
        self.fails(tool.rhea('info', 'd.vmdk'), says='another part')


class VirtualBox(Odd):
    """Its VMDK children have UUIDs, and "no parent" where VMware's have one."""
    NONE = '00000000-0000-0000-0000-000000000000'

    def image(self, path, data, numbers):
        """NUMBERS of the image, its modification, the parent's two."""
        uuids = [f'{n:08x}-1111-4111-8111-111111111111' if n else self.NONE
                 for n in numbers]
        text = vmdk.descriptor(
            'monolithicSparse', [f'RW 512 SPARSE "{os.path.basename(path)}"'],
            more='\n'.join(f'ddb.uuid.{name}="{value}"' for name, value in zip(
                ('image', 'modification', 'parent', 'parentmodification'),
                uuids)))
        with open(path, 'wb') as f:
            f.write(vmdk.hosted(512, data, text=text.ljust(10240, b'\0')))

    def chain(self):
        os.mkdir('Snapshots')
        self.image('base.vmdk', {0: b'A' * 4096, 1: b'A' * 4096}, (1, 2, 0, 0))
        self.image('Snapshots/{3}.vmdk', {1: b'B' * 4096}, (3, 4, 1, 2))
        # Not this one, which has the base's UUID and was changed since.
        self.image('a copy.vmdk', {0: b'X' * 4096}, (1, 7, 0, 0))
        return 'Snapshots/{3}.vmdk', (b'A' * 4096 + b'B' * 4096).ljust(
            512 * 512, b'\0')

    def test_a_chain(self):
        top, guest = self.chain()
        self.image('Snapshots/{5}.vmdk', {2: b'C' * 4096}, (5, 6, 3, 4))
        self.assertTrue(self.raw(top) == guest)
        self.assertTrue(self.raw('Snapshots/{5}.vmdk') ==
                        guest[:8192] + b'C' * 4096 + guest[12288:])
        chain = self.rhea('info', '--backing-chain', '--output=json',
                          'Snapshots/{5}.vmdk').json
        self.assertEqual([os.path.basename(i['filename']) for i in chain],
                         ['{5}.vmdk', '{3}.vmdk', 'base.vmdk'])
        data = chain[1]['format-specific']['data']
        self.assertTrue(data['parent-uuid'].startswith('00000001'))
        self.assertTrue(data['image-uuid'].startswith('00000003'))

    def test_a_parent_that_is_missing_or_was_changed(self):
        top, _ = self.chain()
        done = tool.execute(os.environ['RHEA_IO'], '-c', 'write 0 1k',
                            'base.vmdk')
        self.assertEqual(done.code, 0, str(done))
        os.unlink('a copy.vmdk')
        self.fails(tool.rhea('map', top), says=r'\{3\}.*base\.vmdk.*changed')
        os.unlink('base.vmdk')
        self.fails(tool.rhea('map', top), says=r'\{3\}.*\{00000001-1111')
        self.rhea('info', top)

    def test_commit_and_rebase(self):
        top, guest = self.chain()
        self.rhea('commit', top)
        self.assertTrue(self.raw('base.vmdk') == guest)
        self.assertTrue(self.raw(top) == guest)
        self.rhea('rebase', '-b', '', top)
        shutil.move('base.vmdk', 'away')
        self.assertTrue(self.raw(top) == guest)
        self.assertNotIn('backing', self.rhea('info', top).out)


class Footers(Odd):
    """VHD."""

    def write(self, image, head=None, tail=None, behind=b''):
        """HEAD, TAIL: (offset in the footer, bytes), which are sealed anew."""
        image.write('x.vhd')
        data = bytearray(contents('x.vhd'))
        for at, change in ((0, head), (len(data) - 512, tail)):
            if change:
                data[at + change[0]:at + change[0] + len(change[1])] = change[1]
                data[at:at + 512] = vhd.sealed(bytes(data[at:at + 512]), 64)
        with open('x.vhd', 'wb') as f:
            f.write(data + behind)
        return vhd.flatten(image)

    def test_versions_that_were_left_out(self):
        guest = self.write(vhd.Image(5 * MIB).scatter(1), (12, bytes(4)),
                           (12, bytes(4)))
        self.assertTrue(self.raw('x.vhd') == guest)

    def test_what_is_behind_the_footer(self):
        for behind in (bytes(3584), b'x' * 1234, bytes(MIB)):
            guest = self.write(vhd.Image(5 * MIB).scatter(2), behind=behind)
            self.assertTrue(self.raw('x.vhd') == guest)

    def test_a_geometry_of_more_than_there_is(self):
        image = vhd.Image(5 * MIB, creator=b'vpc ',
                          geometry=(1000, 16, 63)).scatter(3)
        self.assertTrue(self.raw_of(image) == vhd.flatten(image))
        image = vhd.Image(5 * MIB, vhd.FIXED, creator=b'vpc ',
                          geometry=(1000, 16, 63))
        self.assertTrue(self.raw_of(image) == bytes(5 * MIB))

    def raw_of(self, image):
        self.write(image)
        return self.raw('x.vhd')

    def test_a_damaged_footer_is_none_of_the_guests(self):
        """A fixed image has no copy of it; it is no raw image for that."""
        self.write(vhd.Image(5 * MIB, vhd.FIXED))
        with open('x.vhd', 'r+b') as f:
            f.seek(5 * MIB + 64)
            f.write(b'\1')
        self.fails(tool.rhea('convert', '-O', 'raw', 'x.vhd', 'raw'),
                   says='footer is damaged')
        self.rhea('info', '-f', 'raw', 'x.vhd')


class Vdi(Odd):
    def test_lengths_of_the_header(self):
        """Every program has its fields in the same places."""
        self.make_data('raw', 3 * MIB, [(0, 700), (2 * MIB, MIB)])
        self.rhea('convert', '-O', 'vdi', 'raw', 'x.vdi')
        guest = contents('raw')
        for length in (0, 72, 348, 384, 400, 512):
            with self.subTest(length=length):
                with open('x.vdi', 'r+b') as f:
                    f.seek(72)
                    f.write(struct.pack('<I', length))
                self.assertTrue(self.raw('x.vdi') == guest)
                self.rhea('check', 'x.vdi')


if __name__ == '__main__':
    tool.main()
