# SPDX-License-Identifier: MIT
"""bash completes the command lines of rhea-img, rhea-io and rhea-trace, and the
man pages tell of all that there is to complete."""
import os
import re
import shutil
import subprocess
import unittest

import tool
from drop_in import COMMANDS, options

SOURCE = os.environ['RHEA_SOURCE']
SCRIPTS = {'rhea-img': 'tools/rhea-img/rhea-img.bash',
           'rhea-io': 'tools/rhea-io/rhea-io.bash',
           'rhea-trace': 'tools/rhea-trace/rhea-trace.bash'}


def man_page(name):
    """A man page as one reads it, without what sets its letters apart."""
    text = subprocess.run(['mandoc', '-T', 'ascii',
                           os.path.join(SOURCE, 'docs', name + '.1')],
                          stdout=subprocess.PIPE, check=True).stdout.decode()
    return re.sub('.\b', '', text)


class Completion(tool.Case):
    def setUp(self):
        super().setUp()
        os.symlink(tool.RHEA, 'rhea-img')
        os.symlink(os.environ['RHEA_IO'], 'rhea-io')
        os.symlink(os.environ['RHEA_TRACE'], 'rhea-trace')

    def complete(self, *words):
        """What is offered for the last of WORDS, the first being a program."""
        name = os.path.basename(words[0])
        # As `bash -i` would do it, with the function that `complete` names.
        script = (f'. {SOURCE}/{SCRIPTS[name]}; compopt() {{ :; }}; '
                  'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
                  f'_{name.replace("-", "_")}; printf "%s\\n" '
                  '"${COMPREPLY[@]}"')
        done = subprocess.run(['bash', '-c', script, 'bash', *words],
                              capture_output=True, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, b''), words)
        return set(done.stdout.decode().split('\n')) - {''}

    def test_commands(self):
        found = self.complete('./rhea-img', '')
        for command in (*COMMANDS, 'convert-inplace', 'help', '--version'):
            self.assertIn(command, found)
        self.assertEqual(self.complete('./rhea-img', 'com'),
                         {'commit', 'compare'})
        self.assertIn('rebase', self.complete('./rhea-img', 'help', 're'))

    def test_options_of_every_command(self):
        for command in (*COMMANDS, 'convert-inplace'):
            usage = self.rhea(command, '--help').out.partition('\n\n')[0]
            found = {o.rstrip('=') for o in
                     self.complete('./rhea-img', command, '-')}
            self.assertEqual(found, options(usage) | {'--help'}, command)

    def test_values(self):
        for words, expected in (
                (('info', '-f', 'qc'), 'qcow2'),
                (('convert', '-O', 'lu'), 'luks'),
                (('check', '-r', ''), 'leaks'),
                (('convert', '-t', 'un'), 'unsafe'),
                (('resize', '--preallocation=f'), '--preallocation=full'),
                (('info', '--output=j'), '--output=json'),
                (('dd', 'b'), 'bs='),
                (('create', '-f', 'qcow2', '-o', 'comp'), 'compat='),
                (('create', '-f', 'qcow2', '-o', 'compat=v3,lazy'),
                 'compat=v3,lazy_refcounts='),
                (('convert', '-O', 'qed', '-o', ''), 'table_size='),
                (('amend', '-f', 'qcow2', '-o', 'refc'), 'refcount_bits=')):
            with self.subTest(words=words):
                self.assertIn(expected, self.complete('./rhea-img', *words))

    def test_files(self):
        with open('disk.img', 'wb'):
            pass
        self.assertEqual(self.complete('./rhea-img', 'info', 'dis'),
                         {'disk.img'})
        self.assertEqual(self.complete('./rhea-img', 'dd', 'if=dis'),
                         {'if=disk.img'})
        self.assertEqual(self.complete('./rhea-io', 'dis'), {'disk.img'})

    def test_rhea_io(self):
        found = self.complete('./rhea-io', '-')
        for option in ('-c', '--cmd', '-f', '-r', '--image-opts', '-U', '-t'):
            self.assertIn(option, found)
        self.assertIn('aio_write', self.complete('./rhea-io', '-c', 'aio'))
        self.assertEqual(self.complete('./rhea-io', '-d', 'u'), {'unmap'})

    def test_rhea_trace(self):
        for command, some in ((), {'--listen', '-s', '--way'}), \
                (('record',), {'--at', '--collect', '--stub', '-o'}), \
                (('report',), {'--json', '--ctf', '--frames'}):
            told = self.good(tool.execute('./rhea-trace', *command,
                                          '--help')).out
            found = self.complete('./rhea-trace', *command, '-')
            self.assertLessEqual(some, found)
            self.assertEqual(found, options(told) & found)
        self.assertEqual(self.complete('./rhea-trace', 're'),
                         {'record', 'report'})
        self.assertEqual(self.complete('./rhea-trace', '--way', 'h'),
                         {'hardware'})

    @unittest.skipUnless(shutil.which('mandoc'), 'mandoc is not installed')
    def test_man_page_of_rhea_trace_has_all_options(self):
        page = man_page('rhea-trace')
        parts = page.split('\n   re')  # before, cord, port
        for command, part in (((), parts[0]), (('record',), parts[0] + parts[1]),
                              (('report',), parts[0] + parts[2])):
            told = self.good(tool.execute('./rhea-trace', *command,
                                          '--help')).out
            listed = {o for line in told.splitlines() if line.startswith('  -')
                      for o in options(line.split('  ')[1])}
            self.assertGreater(len(listed), 5)
            self.assertLessEqual(listed, options(part), command)

    @unittest.skipUnless(shutil.which('mandoc'), 'mandoc is not installed')
    def test_man_page_of_rhea_img_has_all_commands_and_options(self):
        page = man_page('rhea-img')
        common = page[:page.index('\n   amend')]
        for command in (*COMMANDS, 'convert-inplace'):
            start = page.index(f'\n   {command}\n')
            end = re.compile(r'\n(   )?\S').search(page, start + 1).start()
            has = options(common) | options(page[start:end])
            # Options that bundle in the synopsis.
            for letters in re.findall(r'\[-([A-Za-z]+)\]', common):
                has |= {'-' + letter for letter in letters}
            usage = self.rhea(command, '--help').out.partition('\n\n')[0]
            self.assertLessEqual(options(usage), has, command)

    @unittest.skipUnless(shutil.which('mandoc'), 'mandoc is not installed')
    def test_man_page_of_rhea_io_has_all_commands_and_options(self):
        page = man_page('rhea-io')
        has = options(page)
        told = self.good(tool.execute('./rhea-io', '--help')).out
        self.assertLessEqual(
            options(told) - {'--help', '-h', '--version', '-V', '--trace'}, has)
        for line in tool.execute('./rhea-io', '-c', 'help').out.splitlines():
            if ' -- ' in line:
                self.assertIn(f'\n     {line.split()[0]}', page)


if __name__ == '__main__':
    tool.main()
