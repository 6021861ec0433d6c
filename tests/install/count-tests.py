#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What scripts/count-tests counts is what ran: nothing that failed, died or
did not run is lost in the sum that CI goes by."""
import json
import os
import subprocess
import sys
import tempfile

SCRIPT = os.path.join(os.environ['RHEA_SOURCE'], 'scripts/count-tests')
failures = 0


def check(name, tests, last_line, code):
    global failures
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'testlog.json')
        if tests is not None:
            with open(path, 'w', encoding='utf-8') as f:
                for result, stdout in tests:
                    f.write(json.dumps({'name': 'n', 'result': result,
                                        'stdout': stdout}) + '\n')
        done = subprocess.run([SCRIPT, path], stdout=subprocess.PIPE,
                              text=True, check=False)
    seen = done.stdout.splitlines()[-1], done.returncode
    if seen != (last_line, code):
        failures += 1
        print(f'{name}: {seen}, not {(last_line, code)}')


TAP = '1..3\nok 1 - a\nok 2 - b # SKIP why\nok 3 - c\n'
BAD = '1..2\nok 1 - a\nnot ok 2 - b\n'

check('plain tests count once', [('OK', 'ok'), ('OK', None)],
      '2 passed, 0 failed', 0)
check('TAP counts by points', [('OK', TAP)], '2 passed, 0 failed, 1 skipped', 0)
check('a bad point fails', [('FAIL', BAD)], '1 passed, 1 failed', 1)
check('dying after good points fails', [('ERROR', 'ok 1 - a\n1..1\n')],
      '1 passed, 1 failed', 1)
check('a timeout fails', [('TIMEOUT', '')], '0 passed, 1 failed', 1)
check('an unexpected pass fails', [('UNEXPECTEDPASS', ''), ('OK', '')],
      '1 passed, 1 failed', 1)
check('an expected failure passes', [('EXPECTEDFAIL', BAD)],
      '1 passed, 0 failed', 0)
check('all skipped is no success', [('SKIP', '')],
      '0 passed, 0 failed, 1 skipped', 1)
check('an empty log fails', [], '0 passed, 1 failed', 1)
check('a missing log fails', None, '0 passed, 1 failed', 1)
sys.exit(failures > 0)
