# SPDX-License-Identifier: MIT
"""Whatever fails while an image is written to, at whichever point: what was
written before is there, and nothing is wrong but leaks."""
import os
import subprocess

import tool
from iocase import IO, IoCase

EVENTS = ('l1_update', 'l1_grow_alloc_table', 'l1_grow_write_table',
          'l1_grow_activate_table', 'l2_load', 'l2_update', 'l2_alloc_cow_read',
          'l2_alloc_write', 'read_aio', 'read_backing_aio', 'write_aio',
          'write_compressed', 'read_compressed', 'vmstate_save', 'cow_read',
          'cow_write', 'refblock_load', 'refblock_update_part',
          'refblock_alloc', 'refblock_alloc_hookup', 'refblock_alloc_write',
          'refblock_alloc_write_blocks', 'refblock_alloc_write_table',
          'refblock_alloc_switch_table', 'cluster_alloc', 'cluster_free',
          'flush_to_disk', 'pwritev', 'pwritev_zero')

WORK = {
    'data': ('write -P 3 512k 1M', 'write -P 4 700k 3M', 'flush'),
    'vm state': ('write -b 0 64k', 'write -b 100k 24M', 'flush'),
    'zeroes': ('write -z 100k 1M', 'write -z -u 1M 1M', 'discard 0 512k',
               'write 300k 100k', 'flush'),
    'compressed': ('write -c -P 6 3M 128k', 'write 3100k 10k', 'flush'),
    'much': ('write -P 7 0 40M', 'flush'),
}


class IoErrors(IoCase):
    def make(self, cluster, fmt='qcow2'):
        """An image whose end holds what nobody touches."""
        kept = f'{fmt}-{cluster}'
        if not os.path.exists(kept):
            self.qemu('create', '-q', '-f', fmt, '-o',
                      f'cluster_size={cluster}', kept, '1G')
            self.qemu_io(kept, fmt, 'write -P 2 1M 512k', 'write -P 1 60M 64k')
        subprocess.run(['cp', '--sparse=always', kept, 'image'], check=True)

    def disturb(self, event, once, commands, fmt='qcow2'):
        with open('rules', 'w', encoding='ascii') as f:
            f.write(f'[inject-error]\nevent = "{event}"\nerrno = "28"\n'
                    f'once = "{once}"\n')
        r = self.run_io(IO, 'blkdebug:rules:image', *commands, fmt=fmt)
        self.assertIn(r.code, (0, 1), str(r))
        return r.code

    def unharmed(self, fmt='qcow2'):
        r = tool.qemu('check', '-f', fmt, 'image')
        self.assertIn(r.code, (0, 3), str(r))
        r = self.run_io('qemu-io', 'image', 'read -P 1 60M 64k', fmt=fmt)
        self.assertEqual((r.code, r.err), (0, ''), str(r))

    def test_qcow2(self):
        hit = 0
        for cluster, work in (('512', 'vm state'),
                              ('1k', 'data'), ('4k', 'zeroes'),
                              ('64k', 'compressed')):
            for i, event in enumerate(EVENTS):
                # Once, or from then on.
                once = ('off', 'on')[i % 2]
                with self.subTest(cluster=cluster, work=work, event=event):
                    self.make(cluster)
                    hit += self.disturb(event, once, WORK[work])
                    self.unharmed()
        self.assertGreater(hit, 40)

    def test_qed(self):
        hit = 0
        for event in ('l2_load', 'l2_update', 'l2_alloc_write', 'write_aio',
                      'cow_write', 'cow_read', 'flush_to_disk', 'pwritev'):
            for once in ('on', 'off'):
                for work in ('data', 'much'):
                    with self.subTest(work=work, event=event, once=once):
                        self.make('4k', 'qed')
                        hit += self.disturb(event, once, WORK[work], 'qed')
                        self.unharmed('qed')
        self.assertGreater(hit, 10)


if __name__ == '__main__':
    tool.main()
