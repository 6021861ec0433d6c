# SPDX-License-Identifier: MIT
"""A little TAP: tests are functions, named in the order in which they run.

    def a_promise_holds():
        require(...)

    sys.exit(tap.main([a_promise_holds, ...]))

A test that raises has failed; tap.Skip skips it.
"""
import sys
import traceback

import images
import judge


class Skip(Exception):
    """This test cannot run here, because ..."""


def need_strace():
    """Some containers do not let a program trace another one."""
    code, text = images.run("strace", "-f", "-o", "/dev/null", "true", ok=None)
    if code:
        raise Skip("cannot trace: " + " ".join(text.split()))


class Tap:
    """Prints results as they come."""

    def __init__(self, count):
        print("1..%d" % count, flush=True)
        self.n = self.failed = 0

    def report(self, name, problem=None, skip=None):
        self.n += 1
        self.failed += problem is not None
        print("%sok %d - %s%s" % ("not " if problem is not None else "",
                                  self.n, name,
                                  " # SKIP " + skip if skip else ""))
        for line in (problem or "").splitlines():
            print("# " + line)
        sys.stdout.flush()

    def run(self, name, function, *args):
        try:
            function(*args)
            self.report(name)
        except Skip as e:
            self.report(name, skip=str(e))
        except judge.Failure as e:
            self.report(name, str(e) or "failed")
        except Exception:  # pylint: disable=broad-except
            self.report(name, traceback.format_exc())

    def exit_code(self):
        return 1 if self.failed else 0


def main(tests):
    tap = Tap(len(tests))
    for test in tests:
        tap.run(test.__name__.replace("_", " "), test)
    return tap.exit_code()
