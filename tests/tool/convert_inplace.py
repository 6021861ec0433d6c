# SPDX-License-Identifier: MIT
"""What rhea-img convert-inplace says and how it exits. What it does to images
is tested in tests/interop and tests/crash."""
import os
import re
import signal
import subprocess
import time

import tool
from tool import MIB, contents

OTHER = {'qcow2': 'qed', 'qed': 'qcow2'}


class ConvertInplace(tool.Case):
    def setUp(self):
        super().setUp()
        self.make_data('raw', 21 * MIB + 512, [(0, 3 * MIB), (9 * MIB, MIB)])
        for fmt in OTHER:
            self.qemu('convert', '-f', 'raw', '-O', fmt, 'raw', fmt)

    def refused(self, name, *args, says=None):
        """An error that leaves every byte alone, and says so."""
        before = contents(name)
        result = self.fails(tool.rhea('convert-inplace', *args, name),
                            says=says)
        self.assertRegex(result.err, r'^rhea-img: convert-inplace: '
                         rf'{name}: .+\n{name} was not changed\.\n$')
        self.assertEqual(result.out, '')
        self.assertEqual(contents(name), before)
        return result

    def test_there_and_back(self):
        for fmt, other in OTHER.items():
            with self.subTest(source=fmt):
                for to in (other, fmt):
                    out = self.rhea('convert-inplace', '-O', to, fmt).out
                    self.assertRegex(out, rf'^{fmt} is a {to.upper()} image '
                                     r'now: 4 MiB stayed in place, .*\n$')
                    self.sound(fmt, to)
                    self.identical('raw', 'raw', fmt, to)

    def test_a_large_image_that_takes_two_threads(self):
        # 10 MiB of tables: planning and tidying share the work. Each place is
        # known by what was written there.
        size = 80 << 30
        self.qemu('create', '-q', '-f', 'qcow2', '-o',
                  'preallocation=metadata', 'large', str(size))
        places = [n * (size // 40) + n * 512 for n in range(40)]
        self.qemu_io('large', 'qcow2',
                     *[f'write -q -P {n + 1} {at} 70000'
                       for n, at in enumerate(places)])
        for fmt in ('qed', 'qcow2', 'qed', 'qcow2'):
            self.rhea('convert-inplace', '-q', '-O', fmt, 'large')
            self.qemu_io('large', fmt,
                         *[f'read -q -P {n + 1} {at} 70000'
                           for n, at in enumerate(places)])
            self.rhea('check', '-q', 'large')
        self.sound('large', 'qcow2')

    def test_options_of_the_target(self):
        self.rhea('convert-inplace', '-f', 'qed', '-O', 'qcow2', '-o',
                  'refcount_bits=8', 'qed')
        info = self.qemu('info', '--output=json', '-f', 'qcow2', 'qed').json
        self.assertEqual(info['format-specific']['data']['refcount-bits'], 8)
        self.refused('qcow2', '-O', 'qed', '-o', 'bogus=1', says='bogus')

    def test_a_dry_run_prints_the_plan_and_writes_nothing(self):
        for fmt, other in OTHER.items():
            for flag in ('-n', '--dry-run'):
                before = contents(fmt)
                out = self.rhea('convert-inplace', flag, '-O', other, fmt).out
                self.assertEqual(contents(fmt), before)
                for line in (
                        rf'file: +{fmt}',
                        rf'conversion: +{fmt.upper()} to {other.upper()}',
                        r'stays in place: +4 MiB \(4194304 bytes\)',
                        r'is rewritten: +0 B \(0 bytes\)',
                        r'tables and header: +.* \(\d+ bytes\)',
                        r'written, at most: +.* \(\d+ bytes\)',
                        r'extra space, at peak: +.* \(\d+ bytes\)',
                        rf'size of the file: +.* \({len(before)} bytes\)',
                        r'would be lost: +nothing'):
                    self.assertRegex(out, rf'(?m)^{line}$')

    def test_json(self):
        size = os.path.getsize('qcow2')
        plan = self.rhea('convert-inplace', '-n', '--json', '-O', 'qed',
                         'qcow2').json
        self.assertEqual(
            {k: plan[k] for k in ('file', 'dry-run', 'action', 'source',
                                  'target', 'outcome', 'kept', 'file-size',
                                  'losses')},
            {'file': 'qcow2', 'dry-run': True, 'action': 'convert',
             'source': 'qcow2', 'target': 'qed', 'outcome': 'untouched',
             'kept': 4 * MIB, 'file-size': size, 'losses': []})
        self.assertEqual(os.path.getsize('qcow2'), size)
        done = self.rhea('convert-inplace', '--json', '-O', 'qed', 'qcow2').json
        self.assertEqual((done['outcome'], done['dry-run']), ('done', False))
        self.assertEqual(done['final-file-size'], os.path.getsize('qcow2'))
        self.assertGreater(done['seconds'], 0)
        self.assertNotIn('error', done)

    def test_json_of_an_error(self):
        self.qemu('snapshot', '-c', 's', 'qcow2')
        before = contents('qcow2')
        result = self.fails(tool.rhea('convert-inplace', '--json', '-O', 'qed',
                                      'qcow2'))
        self.assertIn('snapshot', result.json['error'])
        self.assertRegex(result.json['reason'], r'^E[A-Z]+$')
        self.assertEqual(result.json['outcome'], 'untouched')
        self.assertEqual(contents('qcow2'), before)

    def test_losses_are_refused_by_name(self):
        self.qemu('snapshot', '-c', 's', 'qcow2')
        self.qemu('bitmap', '--add', '-f', 'qcow2', 'qcow2', 'b')
        self.refused('qcow2', '-O', 'qed', says='--allow-loss')
        self.refused('qcow2', '-O', 'qed', '--allow-loss=snapshots',
                     says='--allow-loss')
        out = self.rhea('convert-inplace', '-n', '-O', 'qed',
                        '--allow-loss=snapshots,bitmaps', 'qcow2').out
        self.assertRegex(out, r'(?m)^would be lost: +snapshots \(1\), '
                         r'bitmaps \(1\)$')
        self.rhea('convert-inplace', '-O', 'qed', '--allow-loss=snapshots',
                  '--allow-loss=bitmaps', 'qcow2')
        self.sound('qcow2', 'qed')
        self.identical('raw', 'raw', 'qcow2', 'qed')

    def test_again_there_is_nothing_to_do(self):
        for fmt in OTHER:
            before = contents(fmt)
            out = self.rhea('convert-inplace', '-O', fmt, fmt).out
            self.assertIn('already', out)
            self.assertIn('already',
                          self.rhea('convert-inplace', '-n', '-O', fmt,
                                    fmt).out)
            found = self.rhea('convert-inplace', '--json', '-O', fmt, fmt).json
            self.assertEqual(found['action'], 'nothing')
            self.assertEqual(contents(fmt), before)

    def test_quiet_prints_nothing(self):
        self.assertEqual(self.rhea('convert-inplace', '-q', '-p', '-O', 'qed',
                                   'qcow2').out, '')
        self.assertEqual(self.rhea('convert-inplace', '-q', '-n', '-O', 'qcow2',
                                   'qcow2').out, '')

    def test_progress_of_what_takes_a_while(self):
        with open('raw', 'wb') as f:
            f.write(tool.random.Random(1).randbytes(96 * MIB).hex().encode())
        self.qemu('convert', '-c', '-o', 'compression_type=zstd', '-f', 'raw',
                  '-O', 'qcow2', 'raw', 'packed')
        start = time.monotonic()
        result = tool.rhea('convert-inplace', '-p', '-O', 'qed', 'packed')
        self.assertEqual(result.code, 0, str(result))
        if time.monotonic() - start > 1:
            self.assertRegex(result.err, r'  \(100\.00/100%\)')
        for line in result.err.replace('\r', '\n').splitlines():
            self.assertRegex(line, r'^([\w ]+  \(\d+\.\d\d/100%\) *)?$')

    def test_no_progress_of_what_takes_no_time(self):
        result = tool.rhea('convert-inplace', '-p', '-n', '-O', 'qed', 'qcow2')
        self.assertEqual((result.code, result.err), (0, ''), str(result))

    def test_errors(self):
        for args in ((), ('qcow2',), ('-O', 'qed'), ('-O', 'none', 'qcow2'),
                     ('-f', 'none', '-O', 'qed', 'qcow2'),
                     ('-O', 'qed', '--allow-loss=everything', 'qcow2'),
                     ('-O', 'qed', 'qcow2', 'qed'), ('-Z', 'qcow2'),
                     ('-O', 'qed', '-o', '', 'qcow2'),
                     ('-O', 'qed', '-o', 'a=b,', 'qcow2')):
            before = contents('qcow2')
            with self.subTest(args=args):
                self.fails(tool.rhea('convert-inplace', *args))
                self.assertEqual(contents('qcow2'), before)
        self.fails(tool.rhea('convert-inplace', '-O', 'qed', 'none'),
                   says='No such file')
        self.assertFalse(os.path.exists('none'))
        self.refused('raw', '-f', 'raw', '-O', 'qed')

    def test_an_image_in_use_is_refused(self):
        with subprocess.Popen(['qemu-io', '-r', '-f', 'qcow2', 'qcow2'],
                              stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as user:
            user.stdin.write(b'length\n')
            user.stdin.flush()
            user.stdout.readline()
            self.refused('qcow2', '-O', 'qed', says='in use')

    def test_a_signal_stops_it_cleanly(self):
        # Compressed clusters are all to be rewritten, which takes a while.
        with open('raw', 'wb') as f:
            f.write(tool.random.Random(1).randbytes(24 * MIB).hex().encode())
        self.qemu('convert', '-c', '-f', 'raw', '-O', 'qcow2', 'raw', 'packed')
        stopped = 0
        for number, delay in ((signal.SIGTERM, 0.05), (signal.SIGINT, 0.02),
                              (signal.SIGTERM, 0.1), (signal.SIGINT, 0.01),
                              (signal.SIGTERM, 0.03)):
            fmt = 'qcow2'
            with subprocess.Popen(
                    [tool.RHEA, 'convert-inplace', '-O', 'qed', 'packed'],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
                time.sleep(delay)
                p.send_signal(number)
                p.send_signal(number)
                _, err = p.communicate()
            err = err.decode()
            if p.returncode == -number:
                continue  # it came before the program had begun
            if p.returncode == 0:
                fmt = 'qed'
            else:
                self.assertEqual(p.returncode, 128 + number, err)
                self.assertRegex(err, r'^rhea-img: convert-inplace: packed: '
                                 rf'stopped by {number.name}\npacked .+\n$')
                if re.search('was not changed|still a whole QCOW2', err):
                    fmt = 'qcow2'
                else:
                    self.assertRegex(err, 'packed is a whole QED image')
                    fmt = 'qed'
                stopped += 1
            self.identical('raw', 'raw', 'packed', fmt)
            if fmt == 'qed':
                self.rhea('convert-inplace', '-O', 'qed', 'packed')
                self.sound('packed', 'qed')
                self.qemu('convert', '-c', '-f', 'raw', '-O', 'qcow2', 'raw',
                          'packed')
        self.assertGreater(stopped, 0)
        self.rhea('convert-inplace', '-O', 'qed', 'packed')
        self.sound('packed', 'qed')
        self.identical('raw', 'raw', 'packed', 'qed')


if __name__ == '__main__':
    tool.main()
