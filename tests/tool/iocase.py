# SPDX-License-Identifier: MIT
"""What the tests of rhea-io share: run it and qemu-io side by side."""
import os
import re
import subprocess

import tool

IO = os.environ['RHEA_IO']
FORMATS = ('qcow2', 'qed', 'raw')


def plain(text):
    """Without what depends on the time."""
    text = re.sub(r'ops; .*', 'ops', text)
    return re.sub(r'(?m)^(\d+,1),.*', r'\1', text)


class IoCase(tool.Case):
    """Runs rhea-io, also as qemu-io, side by side with qemu-io."""

    def setUp(self):
        super().setUp()
        os.symlink(IO, 'qemu-io')

    def run_io(self, program, path, *commands, fmt=None, options=(),
               stdin=None):
        args = [program, *(('-f', fmt) if fmt else ()), *options]
        for command in commands:
            args += ['-c', command]
        done = subprocess.run(args + ([path] if path else []),
                              input=(stdin or '').encode(), check=False,
                              capture_output=True)
        return tool.Result(args, done)

    def same(self, fmt, *commands, create=(), size='4M', options=(),
             stdin=None, code=None, any_order=False):
        """On equal images: the same output and exit code, and equal images
        afterwards."""
        results = []
        for program, path in (('qemu-io', 'theirs'), ('./qemu-io', 'ours')):
            if not os.path.exists(path):
                self.qemu('create', '-q', '-f', fmt, *create, path, size)
            r = self.run_io(program, path, *commands, fmt=fmt,
                            options=options, stdin=stdin)
            results.append(r)
        theirs, ours = results
        said = [plain(r.out) for r in results]
        if any_order:
            said = [sorted(text.splitlines()) for text in said]
        self.assertEqual((ours.code, said[1]), (theirs.code, said[0]),
                         f'{ours}\n{theirs}')
        if code is not None:
            self.assertEqual(ours.code, code, str(ours))
        if fmt != 'raw':
            self.sound('ours', fmt)
        self.identical('ours', fmt, 'theirs', fmt)
        return ours

    def fresh(self):
        for name in ('ours', 'theirs'):
            if os.path.exists(name):
                os.remove(name)

    def every_format(self, *commands, **kw):
        for fmt in FORMATS:
            with self.subTest(format=fmt):
                self.fresh()
                self.same(fmt, *commands, **kw)
