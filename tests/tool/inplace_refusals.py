# SPDX-License-Identifier: MIT
"""What conversion in place refuses: every refusal names its reason, exits
non-zero, and leaves each byte of the file and its size as they were. What a
user may accept to lose is named with the option that accepts it."""
import hashlib
import os
import struct
import subprocess
import time

import tool

CLUSTER = 65536


def fingerprint(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while piece := f.read(tool.MIB):
            digest.update(piece)
    return os.path.getsize(path), digest.hexdigest()


def read_u64(path, offset, order='>'):
    with open(path, 'rb') as f:
        f.seek(offset)
        return struct.unpack(order + 'Q', f.read(8))[0]


def patch(path, offset, data):
    with open(path, 'r+b') as f:
        f.seek(offset)
        f.write(data)


def first_l2(path):
    """Where the first L2 table of a QCOW2 image is."""
    return read_u64(path, read_u64(path, 40)) & 0x00fffffffffffe00


class Refusals(tool.Case):
    def make(self, fmt='qcow2', *create):
        tool.execute('qemu-img', 'create', '-q', '-f', fmt, *create, 'image',
                     '64M')
        self.io(fmt, 'write -P 1 0 1M', 'write -P 2 10M 256k')

    def io(self, fmt, *commands):
        args = []
        for command in commands:
            args += ['-c', command]
        done = tool.execute('qemu-io', '-f', fmt, *args, 'image')
        self.assertEqual(done.code, 0, str(done))

    def refused(self, says, *args, target='qed'):
        before = fingerprint('image')
        for dry in [[], ['--dry-run']]:
            done = tool.rhea('convert-inplace', '-O', target, *dry, *args,
                             'image')
            self.assertNotEqual(done.code, 0, str(done))
            self.assertRegex(done.err, says)
            self.assertEqual(fingerprint('image'), before)

    def accepted(self, *args):
        tool.execute('cp', 'image', 'before')
        self.good_code(tool.rhea('convert-inplace', '-O', 'qed', *args,
                                 'image'))
        self.good_code(tool.qemu('check', '-f', 'qed', 'image'))
        self.good_code(tool.qemu('compare', '-f', 'qcow2', '-F', 'qed',
                                 'before', 'image'))

    def good_code(self, done):
        self.assertEqual(done.code, 0, str(done))

    def test_internal_snapshots(self):
        self.make()
        tool.qemu('snapshot', '-c', 'one', 'image')
        self.io('qcow2', 'write -P 9 512k 1M')
        self.refused('snapshot.*--allow-loss=snapshots')
        self.accepted('--allow-loss=snapshots')

    def test_persistent_bitmaps(self):
        self.make()
        self.good_code(tool.qemu('bitmap', '--add', 'image', 'b'))
        self.refused('bitmap.*--allow-loss=bitmaps')
        self.accepted('--allow-loss=bitmaps')

    def test_all_losses_are_named_at_once(self):
        self.make()
        tool.qemu('snapshot', '-c', 'one', 'image')
        self.good_code(tool.qemu('bitmap', '--add', 'image', 'b'))
        self.refused('--allow-loss=snapshots,bitmaps')
        self.accepted('--allow-loss=snapshots,bitmaps')

    def test_luks_encryption(self):
        # QEMU measures how fast it derives keys, and gives up where the clock
        # does not move meanwhile.
        for _ in range(20):
            done = tool.qemu('create', '-q', '-f', 'qcow2', '--object',
                             'secret,id=s,data=abc', '-o',
                             'encrypt.format=luks,encrypt.key-secret=s,'
                             'encrypt.iter-time=10', 'image', '8M')
            if 'CPU usage' not in done.err:
                break
        self.good_code(done)
        self.refused('encrypted')

    def test_old_aes_encryption(self):
        self.make()
        patch('image', 32, struct.pack('>I', 1))
        self.refused('encrypted')

    def test_an_external_data_file(self):
        self.make('qcow2', '-o', 'data_file=data')
        self.refused('data in another file')

    def test_the_corrupt_flag(self):
        self.make()
        patch('image', 72, struct.pack('>Q', 2))
        self.refused('corrupt')

    def test_an_unknown_incompatible_feature(self):
        self.make()
        patch('image', 72, struct.pack('>Q', 1 << 40))
        self.refused('feature')

    def test_an_unknown_qed_feature(self):
        self.make('qed')
        patch('image', 16, struct.pack('<Q', 1 << 40))
        self.refused('feature', target='qcow2')

    def test_an_extension_of_unknown_meaning(self):
        self.make()
        length = read_u64('image', 96) & 0xffffffff
        patch('image', length, struct.pack('>IIQ', 0x12345678, 8, 7) +
              bytes(8))
        self.refused('--allow-loss=extensions')
        self.accepted('--allow-loss=extensions')

    def test_an_l1_table_out_of_the_file(self):
        self.make()
        patch('image', 40, struct.pack('>Q', 1 << 40))
        self.refused('.')

    def test_an_l2_table_out_of_the_file(self):
        self.make()
        l1 = read_u64('image', 40)
        patch('image', l1, struct.pack('>Q', 1 << 63 | 1 << 40))
        self.refused('end of the file')

    def test_a_qed_table_out_of_the_file(self):
        self.make('qed')
        l1 = read_u64('image', 40, '<')
        patch('image', l1, struct.pack('<Q', 1 << 40))
        self.refused('damaged', target='qcow2')

    def test_data_beyond_the_end_of_the_file(self):
        self.make()
        patch('image', first_l2('image'), struct.pack('>Q', 1 << 63 | 1 << 40))
        self.refused('end of the file')

    def test_a_file_that_was_cut_short(self):
        for fmt, target in [('qcow2', 'qed'), ('qed', 'qcow2')]:
            self.make(fmt)
            os.truncate('image', os.path.getsize('image') - 4 * CLUSTER)
            self.refused('.', target=target)

    def test_a_cluster_used_twice(self):
        self.make()
        l2 = first_l2('image')
        patch('image', l2, struct.pack('>Q', read_u64('image', l2 + 8)))
        self.refused('used twice')

    def test_a_table_used_as_data(self):
        self.make()
        l2 = first_l2('image')
        patch('image', l2, struct.pack('>Q', 1 << 63 | l2))
        self.refused('used twice')

    def test_a_qed_cluster_used_twice(self):
        self.make('qed')
        l2 = read_u64('image', read_u64('image', 40, '<'), '<')
        patch('image', l2, struct.pack('<Q', read_u64('image', l2 + 8, '<')))
        self.refused('used twice', target='qcow2')

    def test_a_disk_that_is_no_multiple_of_512(self):
        self.make()
        patch('image', 24, struct.pack('>Q', (64 << 20) - 100))
        self.refused('512')

    def test_a_disk_that_is_too_large_for_the_options(self):
        done = tool.qemu('create', '-q', '-f', 'qcow2', 'image', '8T')
        self.good_code(done)
        self.refused('cannot hold', '-o', 'cluster_size=4k,table_size=2')

    def test_a_backing_format_that_would_be_lost(self):
        tool.qemu('create', '-q', '-f', 'raw', 'base', '64M')
        tool.qemu('create', '-q', '-u', '-f', 'qcow2', '-b', 'base', '-F',
                  'qcow2', 'image', '64M')
        self.refused('--allow-loss=backing-format')

    def test_a_backing_name_that_qcow2_cannot_hold(self):
        self.make('qed')
        patch('image', 16, struct.pack('<Q', 1))
        patch('image', 56, struct.pack('<II', 64, 1100) + b'x' * 1100)
        self.refused('name', target='qcow2')

    def test_a_raw_image(self):
        tool.qemu('create', '-q', '-f', 'raw', 'image', '1M')
        self.refused('raw')
        self.refused('raw', '-f', 'raw')

    def test_a_raw_image_that_looks_like_the_target(self):
        """Whatever a guest wrote into its raw disk, it is not touched."""
        tool.qemu('create', '-q', '-f', 'qed', 'image', '1M')
        with open('image', 'ab') as f:
            f.write(bytes(3 * CLUSTER))
        self.refused('raw', '-f', 'raw')

    def test_a_wrong_source_format(self):
        self.make('qcow2')
        self.refused('not a qed image', '-f', 'qed', target='qed')

    def test_formats_without_conversion_in_place(self):
        self.make()
        self.refused('vmdk', target='vmdk')
        self.refused('.', target='raw')

    def test_unknown_options(self):
        self.make()
        self.refused('no option', '-o', 'subformat=flat')
        self.refused('cluster_size', '-o', 'cluster_size=5k')
        self.refused('table_size', '-o', 'table_size=3')

    def test_what_is_no_file(self):
        os.mkdir('folder')
        done = tool.rhea('convert-inplace', '-O', 'qed', 'folder')
        self.assertEqual(done.code, 1)
        self.assertRegex(done.err, 'directory')
        done = tool.rhea('convert-inplace', '-O', 'qed', 'absent')
        self.assertEqual(done.code, 1)
        self.assertRegex(done.err, 'No such file')

    def test_a_file_in_use_by_a_virtual_machine(self):
        self.make()
        with subprocess.Popen(
                ['qemu-system-x86_64', '-nodefaults', '-display', 'none',
                 '-machine', 'none', '-S', '-blockdev',
                 'driver=qcow2,node-name=d,file.driver=file,'
                 'file.filename=image', '-monitor', 'stdio'],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE) as vm:
            try:
                # Opened for writing before the monitor greets.
                vm.stdout.readline()
                time.sleep(0.2)
                self.refused('in use')
            finally:
                vm.kill()
        self.accepted()


if __name__ == '__main__':
    tool.main()
