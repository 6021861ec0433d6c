# SPDX-License-Identifier: MIT
"""rhea-img and rhea-io, called by the names of QEMU's programs, are found by
scripts to be these, and know every option of theirs."""
import os
import re
import select
import signal
import subprocess
import time

import tool

RHEA_IO = os.environ['RHEA_IO']
COMMANDS = ('amend', 'bench', 'bitmap', 'check', 'commit', 'compare', 'convert',
            'create', 'dd', 'info', 'map', 'measure', 'rebase', 'resize',
            'snapshot')


def options(text):
    """The options that TEXT speaks of."""
    return set(re.findall(r'(?<![\w-])(--?[A-Za-z][\w-]*)', text))


class DropIn(tool.Case):
    def setUp(self):
        super().setUp()
        os.symlink(tool.RHEA, 'qemu-img')
        os.symlink(RHEA_IO, 'qemu-io')

    def img(self, *args):
        return tool.execute('./qemu-img', *args)

    def test_the_version_line_is_one_that_scripts_parse(self):
        for name in ('qemu-img', 'qemu-io'):
            for option in ('--version', '-V'):
                r = self.good(tool.execute('./' + name, option))
                self.assertRegex(r.out, rf'\A{name} version (\d+\.)+\d+ \(rhea')
        self.assertRegex(self.rhea('--version').out, r'\Arhea-img \d')

    def test_messages_carry_the_name_it_was_called_by(self):
        for args in ((), ('nonsense',), ('info',), ('info', 'missing'),
                     ('info', '-Z', 'x'), ('create', 'x', 'y'),
                     ('--nonsense',), ('convert', 'missing', 'x')):
            r = self.img(*args)
            self.assertEqual(r.code, 1, str(r))
            for line in r.err.splitlines():
                self.assertTrue(line.startswith('qemu-img: '), str(r))
            self.assertNotIn('rhea', r.err)
        r = self.good(self.img('info', '--help'))
        self.assertTrue(r.out.startswith('usage: qemu-img info '), str(r))
        r = tool.execute('./qemu-io', 'missing')
        self.assertTrue(r.err.startswith('qemu-io: '), str(r))

    def test_another_name_is_no_reason_to_change_it(self):
        os.symlink(tool.RHEA, 'qemu-img-static')
        r = tool.execute('./qemu-img-static', 'info', 'missing')
        self.assertTrue(r.err.startswith('rhea-img: '), str(r))

    def test_help_has_all_commands_and_their_options(self):
        ours = self.good(self.img('--help')).out
        theirs = self.qemu('--help').out
        for command in COMMANDS:
            with self.subTest(command=command):
                lines = [re.search(rf'^  {command} ((?:-|\(|\[).*)$', text, re.M)
                         for text in (ours, theirs)]
                self.assertTrue(all(lines))
                mine, wanted = (options(m.group(1)) for m in lines)
                details = self.good(self.img(command, '--help')).out
                for option in wanted:
                    self.assertIn(option, mine | options(details))
                # What the list of options explains, the usage has as well.
                usage, _, text = details.partition('\n\n')
                for line in text.splitlines():
                    found = re.match(r' +(-\w|--[\w-]+)', line)
                    if found:
                        self.assertIn(found.group(1), options(usage), command)

    def test_formats_are_in_a_line_that_scripts_look_for(self):
        line = re.search(r'^Supported formats:(.*)$', self.img('-h').out, re.M)
        found = line.group(1).split()
        for name in ('raw', 'qcow2', 'qed', 'luks', 'file', 'host_device',
                     'nbd', 'http', 'https', 'blkdebug', 'null-co'):
            self.assertIn(name, found)

    def test_trace_options_of_old_scripts(self):
        self.qemu('create', '-q', '-f', 'raw', 'image', '1M')
        for args in (('-T', 'enable=x'), ('--trace', 'enable=x'),
                     ('--trace=x',), ('-Tx',), ('-T', 'x', '-T', 'y')):
            r = self.good(self.img(*args, 'info', 'image'))
            self.assertIn('file format: raw', r.out)
        self.assertEqual(self.img('-T').code, 1)
        self.assertEqual(self.img('-T', 'x').code, 1)

    def test_options_may_follow_the_file(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'image', '1M')
        r = self.good(self.img('info', 'image', '--output=json', '-U'))
        self.assertEqual(r.json['format'], 'qcow2')

    def test_a_file_named_as_an_option(self):
        self.qemu('create', '-q', '-f', 'qcow2', './-f', '1M')
        r = self.good(self.img('info', '--', '-f'))
        self.assertIn('image: -f\n', r.out)

    def test_progress_of_whatever_takes_long(self):
        self.make_data('data', 3 * tool.MIB, [(0, 3 * tool.MIB)])
        done = r'(    \(\d+\.\d\d/100%\)\r)*    \(100\.00/100%\)\r\n'
        for fmt in ('raw', 'qcow2', 'luks'):
            secret = () if fmt != 'luks' else (
                '--object', 'secret,id=s,data=x', '-o',
                'key-secret=s,iter-time=10')
            args = ('create', '-f', fmt, *secret, '-o', 'preallocation=full',
                    'image', '4M')
            self.assertRegex(self.rhea(*args, '-p').out, done)
            self.assertEqual(self.rhea(*args, '-pq').out, '')
            if fmt != 'luks':
                self.assertRegex(self.rhea(
                    'resize', '-p', '-f', fmt, '--preallocation=full', 'image',
                    '6M').out, done + 'Image resized.\n')
        self.assertRegex(self.rhea('dd', '-p', 'if=data', 'of=copy').out, done)

    def test_sigusr1_where_nothing_else_is_shown(self):
        with open('data', 'wb') as f:
            f.truncate(2 << 30)
        for target, *command in (
                ('image', 'create', '-q', '-f', 'raw', '-o',
                 'preallocation=full', 'image', '2G'),
                ('copy', 'dd', 'if=data', 'of=copy')):
            with subprocess.Popen([tool.RHEA, *command],
                                  stderr=subprocess.PIPE) as running:
                # It ends who does not listen to it yet.
                while not os.path.exists(target):
                    time.sleep(.01)
                said = b''
                while not said and running.poll() is None:
                    running.send_signal(signal.SIGUSR1)
                    if select.select([running.stderr], [], [], .01)[0]:
                        said = os.read(running.stderr.fileno(), 100)
                running.kill()
            self.assertRegex(said, rb'^    \(\d+\.\d\d/100%\)\n', command)
            os.unlink(target)

    def test_abbreviated_options(self):
        self.qemu('create', '-q', '-f', 'qcow2', 'image', '1M')
        r = self.good(self.img('info', '--out=json', '--force', 'image'))
        self.assertEqual(r.json['virtual-size'], 1 << 20)


if __name__ == '__main__':
    tool.main()
