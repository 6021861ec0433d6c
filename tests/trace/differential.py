# SPDX-License-Identifier: MIT
"""Random agent expressions, evaluated by gdbserver and by rhea-trace in front of
another gdbserver: values, conditions, and what is recorded have to agree.

    differential.py NUMBER [SEED]

Where gdbserver is known to be wrong, or gives what cannot be compared, no
expression goes. That is:

- `ext` by 33 to 63 bits: it makes the sign's mask from an int;
- shifts by 64 or more: undefined in C, and what comes depends on its compiler;
- the lowest number divided by -1: it dies of the trap;
- memory that is not there: it goes on with the bytes of the last read;
- `reg` of registers wider than 8 bytes: it gives up with an internal error;
- `getv` of a variable that is not there: 0, where we say that there is none;
- `trace16`: it does not know it;
- loops without end: it has no bound.

Nor does gdbserver stop tracing for a division by zero, as its agent does and we
do: it forgets to note the error. What happens to the expression is the same.
"""
import os
import random
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import judge  # noqa: E402
import tap  # noqa: E402
from remote import Client, log_of, start_gdbserver, start_trace  # noqa: E402

BATCH = 150
DATA = 8192
# Registers of up to 8 bytes by number: general ones, eflags, segments, those of
# the floating point unit, fs_base and gs_base.
REGISTERS = list(range(24)) + [32, 33, 34, 35, 58, 59]
VALUES = 200  # numbers of variables from here on take the values
SHARED = 100  # and three from here on are read and written by all

ADD, SUB, MUL, DIVS, DIVU, REMS, REMU, LSH, RSHS, RSHU = range(2, 12)
TRACE, TRACEQ, NOT, AND, OR, XOR, INV, EQ, LTS, LTU, EXT = range(12, 23)
REF8, REF16, REF32, REF64 = range(0x17, 0x1b)
IF, GOTO, C8, C16, C32, C64, REG, END, DUP, POP, ZEXT, SWAP = range(0x20, 0x2c)
GETV, SETV, TRACEV, TRACENZ = range(0x2c, 0x30)
PICK, ROT = 0x32, 0x33


def constant(value, size=None):
    size = size or next(n for n in (1, 2, 4, 8) if value < 1 << 8 * n)
    return bytes([{1: C8, 2: C16, 4: C32, 8: C64}[size]]) + \
        value.to_bytes(size, "big")


class Expression:
    """Bytecode that leaves one value and records things on the way."""

    def __init__(self, r, data, records):
        self.r, self.data, self.records = r, data, records
        self.code = b""
        self.height = 0

    def put(self, *code, by=0):
        for part in code:
            self.code += bytes([part]) if isinstance(part, int) else part
        self.height += by

    def interesting(self):
        r = self.r
        kind = r.randrange(5)
        if kind == 0:
            return r.randrange(4)
        if kind == 1:
            return (1 << r.randrange(64)) + r.choice((-1, 0, 1)) & (1 << 64) - 1
        if kind == 2:
            return (1 << 64) - 1 - r.randrange(300)
        return r.getrandbits(r.choice((8, 16, 32, 64)))

    def push(self):
        r = self.r
        kind = r.randrange(8)
        if kind < 4:
            self.put(constant(self.interesting()), by=1)
        elif kind < 6:
            self.put(REG, r.choice(REGISTERS).to_bytes(2, "big"), by=1)
        elif kind == 6:
            self.put(GETV, (SHARED + r.randrange(3)).to_bytes(2, "big"), by=1)
        else:
            self.address(8)
            self.put(r.choice((REF8, REF16, REF32, REF64)))

    def address(self, room):
        """Push an address with ROOM bytes behind it."""
        self.put(constant(self.data + self.r.randrange(DATA - room + 1), 8),
                 by=1)

    def binary(self):
        r = self.r
        op = r.choice((ADD, SUB, MUL, DIVS, DIVU, REMS, REMU, LSH, RSHS, RSHU,
                       AND, OR, XOR, EQ, LTS, LTU))
        if op in (LSH, RSHS, RSHU):
            self.put(constant(63), AND)
        elif op in (DIVU, REMU):
            self.put(constant(1), OR)
        elif op in (DIVS, REMS):
            # From 1 on, or from -2 on down.
            self.put(constant(r.choice((0xff, 0x7fffffff, (1 << 63) - 1))), AND,
                     constant(1), OR)
            if r.random() < 0.5:
                self.put(INV)
        self.put(op, by=-1)

    def unary(self):
        r = self.r
        kind = r.randrange(5)
        if kind == 0:
            self.put(EXT, r.choice([64, 200] + list(range(1, 33))))
        elif kind == 1:
            self.put(ZEXT, r.randrange(0, 70))
        elif kind == 2:
            self.put(NOT)
        elif kind == 3:
            self.put(INV)
        else: # of any value an address
            self.put(constant(0xfff), AND, constant(self.data, 8), ADD,
                     r.choice((REF8, REF16, REF32, REF64)))

    def shuffle(self):
        r = self.r
        kind = r.randrange(5)
        if kind == 0:
            self.put(DUP, by=1)
        elif kind == 1 and self.height > 1:
            self.put(POP, by=-1)
        elif kind == 2 and self.height > 1:
            self.put(SWAP)
        elif kind == 3 and self.height > 2:
            self.put(ROT)
        else:
            self.put(PICK, r.randrange(self.height), by=1)

    def branch(self, depth):
        """value => one of two."""
        self.put(IF, b"??", by=-1)
        hole = len(self.code) - 2
        height = self.height
        self.body(self.r.randrange(1, 6), depth + 1, height + 1)
        self.put(GOTO, b"??")
        other = len(self.code) - 2
        self.patch(hole)
        self.height = height
        self.body(self.r.randrange(1, 6), depth + 1, height + 1)
        self.patch(other)

    def loop(self):
        """Count down from a few, doing something with a value below."""
        self.put(constant(self.r.randrange(1, 9)), by=1)
        start = len(self.code)
        self.put(SWAP, constant(self.interesting()),
                 self.r.choice((ADD, SUB, MUL, XOR)), SWAP)
        self.put(constant(1), SUB, DUP, IF, start.to_bytes(2, "big"), POP,
                 by=-1)

    def patch(self, hole):
        self.code = self.code[:hole] + len(self.code).to_bytes(2, "big") + \
            self.code[hole + 2:]

    def record(self):
        r = self.r
        kind = r.randrange(5)
        if kind == 0:
            n = r.randrange(0, 256)
            self.address(n)
            self.put(TRACEQ, n, POP, by=-1)
        elif kind == 1:
            n = r.choice((0, 1, 8, 300, 5000))
            self.address(n)
            self.put(constant(n), TRACE, by=-1)
        elif kind == 2:
            n = r.randrange(1, 200)
            self.address(300)
            self.put(constant(n), TRACENZ, by=-1)
        elif kind == 3:
            self.put(TRACEV, (SHARED + r.randrange(3)).to_bytes(2, "big"))
        else:
            self.put(SETV, (SHARED + r.randrange(3)).to_bytes(2, "big"))

    def body(self, n, depth=0, want=1):
        """Leaves WANT values, of which those below are not touched: pieces that
        shuffle may look at them."""
        below = want - 1
        self.push()
        for _ in range(n):
            kind = self.r.randrange(12)
            own = self.height - below
            if kind < 4 or own < 1:
                self.push()
            elif kind < 7 and own > 1:
                self.binary()
            elif kind < 9:
                self.unary()
            elif kind == 9 and depth < 3:
                self.branch(depth)
            elif kind == 10 and own > 1:
                self.loop()
            elif self.records and self.r.random() < 0.6:
                self.record()
            elif own > 2:
                self.shuffle()
            if self.height > 40:
                break
        while self.height > want:
            self.binary()


def generate(r, data, records=False):
    e = Expression(r, data, records)
    e.body(r.randrange(1, 16))
    return e.code


class Side:
    """A server whose tracing is asked."""

    def __init__(self, name, client, places):
        self.name, self.client, self.places = name, client, places
        self.thread = None
        client.call(b"?")
        self.ok(b"Hg0")
        self.ok(b"Z0,%x,1" % places["finished"])

    def ok(self, *packets):
        for packet, reply in zip(packets, self.client.calls(packets)):
            judge.require(reply == b"OK", self.name, "answers", packet[:200],
                          "by", reply)

    def turn(self):
        """Once from one stop to the next."""
        stop = self.places["finished"]
        if self.thread:
            self.ok(b"z0,%x,1" % stop)
            self.client.call(b"vCont;s:%s;c" % self.thread)
            self.ok(b"Z0,%x,1" % stop)
        reply = self.client.call(b"vCont;c")
        judge.require(reply[:3] == b"T05", self.name, "stops by", reply)
        self.thread = re.search(rb"thread:([^;]+)", reply).group(1)

    def begin(self):
        self.ok(b"QTinit", *[b"QTDV:%x:%x:0:" % (SHARED + i, i * 0x1111)
                             for i in range(3)])

    def run(self):
        """What stopped tracing, "" if nothing did."""
        self.ok(b"QTStart")
        self.turn()
        status = self.client.call(b"qTStatus")
        self.client.call(b"QTStop")
        found = re.match(rb"T0;(terror[^;]*)", status)
        return found.group(1).decode() if found else ""

    # --- three ways to ask ---------------------------------------------------

    def point(self, n, condition=b"", actions=()):
        place = self.places["place"]
        text = b"QTDP:%x:%x:E:0:0" % (n, place)
        if condition:
            text += b":X%x,%s" % (len(condition), condition.hex().encode())
        out = [text + (b"-" if actions else b"")]
        for i, code in enumerate(actions):
            out.append(b"QTDP:-%x:%x:X%x,%s%s" % (
                n, place, len(code), code.hex().encode(),
                b"-" if i + 1 < len(actions) else b""))
        return out

    def values(self, codes):
        """Each value goes to a variable."""
        self.begin()
        numbers = range(VALUES, VALUES + len(codes))
        self.ok(*[b"QTDV:%x:5eed:0:" % n for n in numbers])
        self.ok(*self.point(1, actions=[
            code + bytes([SETV]) + n.to_bytes(2, "big") + bytes([END])
            for n, code in zip(numbers, codes)]))
        error = self.run()
        return [error] + self.client.calls([b"qTV:%x" % n for n in numbers])

    def conditions(self, codes):
        self.begin()
        for n, code in enumerate(codes, 1):
            self.ok(*self.point(n, code + bytes([END])))
        error = self.run()
        hits = self.client.calls([b"qTP:%x:%x" % (n, self.places["place"])
                                  for n in range(1, len(codes) + 1)])
        return [error] + [h.split(b":")[0] for h in hits]

    def records(self, codes):
        """A tracepoint and a frame for each: the bytes that are in it."""
        self.begin()
        for n, code in enumerate(codes, 1):
            self.ok(*self.point(n, actions=[code + bytes([END])]))
        out = [self.run()]
        for n in range(len(codes)):
            reply = self.client.call(b"QTFrame:%x" % n)
            out.append((reply, self.frame() if reply != b"F-1" else {}))
        self.client.call(b"QTFrame:ffffffff")
        return out

    def frame(self):
        info = self.client.transfer(b"traceframe-info:read:")
        out = {}
        for start, size in re.findall(
                rb'memory start="0x(\w+)" length="0x(\w+)"', info):
            at, left = int(start, 16), int(size, 16)
            while left:
                text = self.client.call(b"m%x,%x" % (at, min(left, 1500)))
                judge.require(len(text) > 1 and text[:1] != b"E", self.name,
                              "gives", text)
                part = bytes.fromhex(text.decode())
                out.update((at + i, byte) for i, byte in enumerate(part))
                at, left = at + len(part), left - len(part)
        # gdbserver writes their numbers in decimal.
        for n in {int(n, 0) for n in re.findall(rb'tvar id="(\w+)"', info)}:
            out["variable %d" % n] = self.client.call(b"qTV:%x" % n)
        return out


class Pair:
    """Both servers."""

    def __init__(self):
        tap.need_strace()
        self.folder = tempfile.TemporaryDirectory()
        program = os.path.join(self.folder.name, "user")
        subprocess.check_call(
            ["gcc", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-o",
             program, os.path.join(HERE, "guest", "user.c")])
        names = subprocess.check_output(["nm", program], text=True)
        self.places = {line.split()[2]: int(line.split()[0], 16)
                       for line in names.splitlines()}
        self.processes = []
        server, port = start_gdbserver(program)
        self.processes.append(server)
        self.theirs = Side("gdbserver", Client(port), self.places)
        server, port = start_gdbserver(program)
        trace, path = start_trace(self.folder.name, port, "-b", "16M")
        self.processes += [server, trace]
        self.ours = Side("rhea-trace", Client(path), self.places)
        for side in (self.theirs, self.ours):
            side.turn()

    def close(self):
        for side in (self.ours, self.theirs):
            side.client.close()
        for p in self.processes:
            p.kill()
            p.wait()
        self.folder.cleanup()

    def compare(self, how, codes):
        """Run CODES; where something differs, find out which by itself."""
        theirs, ours = getattr(self.theirs, how)(codes), \
            getattr(self.ours, how)(codes)
        if theirs == ours and not theirs[0]:
            return
        if len(codes) > 1:
            for code in codes:
                self.compare(how, [code])
        raise judge.Failure("%s of %s: gdbserver %s, rhea-trace %s" %
                            (how, [c.hex() for c in codes],
                             short(theirs), short(ours)) +
                            log_of(self.folder.name))


def short(result):
    return repr(result)[:600]


def work(how, share, records=False):
    def test():
        r = random.Random("%s %s" % (how, seed))
        left = number * share // 100
        pair = Pair()
        try:
            while left > 0:
                n = min(left, BATCH)
                pair.compare(how, [generate(r, pair.places["data"], records)
                                   for _ in range(n)])
                left -= n
        finally:
            pair.close()
    return test


def values_agree():
    work("values", 60)()


def conditions_agree():
    work("conditions", 15)()


def records_agree():
    work("records", 25, records=True)()


def a_division_by_zero_ends_an_expression():
    pair = Pair()
    try:
        for op in (DIVS, DIVU, REMS, REMU):
            code = constant(5) + constant(0) + bytes([op])
            theirs, ours = (side.values([code])
                            for side in (pair.theirs, pair.ours))
            judge.require(theirs[1] == ours[1] == b"V5eed", theirs, ours)
            judge.require(ours[0].startswith("terror:") and
                          ours[0].endswith(":1"), ours)
            theirs, ours = (side.conditions([code])
                            for side in (pair.theirs, pair.ours))
            judge.require(theirs[1] == ours[1] == b"V0", theirs, ours)
            judge.require(ours[0].startswith("terror:"), ours)
    finally:
        pair.close()


number = int(sys.argv[1])
seed = sys.argv[2] if len(sys.argv) > 2 else "1"
sys.exit(tap.main([values_agree, conditions_agree, records_agree,
                   a_division_by_zero_ends_an_expression]))
