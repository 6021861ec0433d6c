# SPDX-License-Identifier: MIT
"""Packets of gdb's, damaged at random, sent to rhea-trace in front of a stub that
is sound: it neither ends nor hangs.

    fuzz.py NUMBER [SEED]
"""
import os
import random
import resource
import signal
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import judge  # noqa: E402
import tap  # noqa: E402
from fake import START, Fake, path_in  # noqa: E402
from remote import Client, frame, log_of, start_trace  # noqa: E402

# As gdb sends them, in the order in which they make sense.
PACKETS = [p.encode() for p in """
qSupported:multiprocess+;swbreak+;hwbreak+;qRelocInsn+;vContSupported+
?
qTStatus
qTfV
qTsV
qTfP
qTsP
Hg1
Hc-1
qfThreadInfo
qXfer:features:read:target.xml:0,ffb
Z0,400020,1
Z0,400030,1;X5,2207220327X3,220127
Z0,400040,1;cmds:1,X1d,25000000000000000025000000000000000034000009256c640a0027
z0,400020,1
Z2,400100,8
QTinit
QTDV:3:0000000000000005:0:636f756e74
QTDP:1:0000000000400010:E:0:0-
QTDP:-1:0000000000400010:R0100ff-
QTDP:-1:0000000000400010:M-1,400100,40X6,2201220202 27
QTDP:-1:0000000000400010:X000a,2c00032201022d000327
QTDP:2:0000000000400050:E:3:5:F5:X7,26000022071327-
QTDP:-2:0000000000400050:M7,10,20-
QTDP:-2:0000000000400050:S R03-
QTDP:-2:0000000000400050:X8,2340002220 0c27
QTDP:4:0000000000400060:D:0:0
QTDPsrc:1:400010:at:0:3:616464
QTDPsrc:1:400010:cond:0:6:61203d3d2031
QTDPsrc:1:400010:cmd:0:b:636f6c6c6563742024726567
QTEnable:1:400010
QTDisable:1:400010
QTro:400000,400100:400200,400300
QTDisconnected:1
QTBuffer:circular:1
QTBuffer:size:4000
QTBuffer:size:-1
QTNotes:user:7573;notes:6e;tstop:;
QTStart
vCont;c
vCont;s:1;c
vCont;C05:1
c
s
qTStatus
qTP:1:400010
QTStop
QTFrame:0
QTFrame:pc:400010
QTFrame:tdp:1
QTFrame:range:400000:400100
QTFrame:outside:400000:400100
qXfer:traceframe-info:read::0,ffb
g
p10
m400100,40
qTV:3
QTFrame:ffffffff
qTBuffer:0,400
P10=1000400000000000
G0000
M400100,4:00112233
X400100,4:abcd
qRcmd,72686561
qRcmd,696e666f
vFile:open:2f61,0,1b6
qTMinFTPILen
qTSTMat:400000
qTfSTM
QNonStop:1
vMustReplyEmpty
D
k
bc
bs
QTSave:66
""".replace(" ", "").split("\n") if p]
BITS = [b":", b";", b",", b"-", b"-1", b"ffffffffffffffff", b"80000000", b"0",
        b"X", b"X5,", b"R", b"M", b"S", b"#", b"$", b"}", b"*", b"\0", b"T05",
        b"7fffffff", b"ffffffff", b"F", b"E", b"p1.1", b"27", b"20", b"21"]


def mutate(r, packet):
    data = bytearray(packet)
    for _ in range(r.choice((1, 1, 1, 2, 4, 8))):
        at = r.randrange(len(data) + 1)
        kind = r.randrange(8)
        if kind == 0:
            data[at:at + 1] = bytes([r.randrange(256)])
        elif kind == 1:
            del data[at:at + r.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = r.choice(BITS)
        elif kind == 3:
            end = r.randrange(at, len(data) + 1)
            data[at:at] = data[at:end] * r.choice((1, 2, 60))
        elif kind == 4:
            data[at:at + 1] = b"%x" % r.randrange(16)
        elif kind == 5:
            other = r.choice(PACKETS)
            data[at:] = other[r.randrange(len(other)):]
        elif kind == 6:
            del data[at:]
        else:
            data[at:at + 2] = b"%02x" % r.randrange(256)
    # No file but those in the folder where it runs.
    if b"QTSave" in data:
        data = bytearray(b"QTSave:" + r.choice((b"66", b"6", b"", b"6600")))
    return bytes(data[:3000])


def limits():
    """A buffer of any size may be asked for."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))


class Bed:
    def __init__(self, qemu=False):
        self.folder = tempfile.TemporaryDirectory()
        name = self.folder.name
        self.stub = Fake(path_in(name), qemu=qemu)
        here = os.getcwd()
        os.chdir(name)
        try:
            self.process, self.path = start_trace(
                name, path_in(name), "-b", "256K", "-t", "8", more=limits)
        finally:
            os.chdir(here)
        self.client = None
        self.probes = 0
        self.sent = b""
        self.connect()

    def connect(self):
        try:
            self.client = Client(self.path, 16)
        except OSError as e:
            self.fail("cannot connect again: %s" % e)

    def fail(self, text):
        raise judge.Failure("%s; exit code %s\n%s\nsent: %r\nthe stub got: %r" % (
            text, self.process.poll(), log_of(self.folder.name)[-3000:],
            self.sent, self.stub.heard[-20:]))

    def probe(self):
        """Whether it still answers, in order."""
        self.probes += 1
        want = b"probe%x" % self.probes
        try:
            # What was begun has to end first.
            self.client.packets.socket.sendall(
                b"#00#00" + frame(b"qProbe:%x" % self.probes))
            while True:
                reply = self.client.receive()
                if reply == want:
                    return True
                if reply is None:
                    break
        except TimeoutError:
            self.fail("it hangs")
        except OSError:
            pass
        if self.process.poll() is not None:
            self.fail("it has ended")
        return False

    def close(self):
        self.client.close()
        self.process.terminate()
        code = self.process.wait(30)
        if code not in (0, 143):
            self.fail("it did not end well")
        self.folder.cleanup()


def send(r, bed, packets):
    data = b""
    for p in packets:
        kind = r.randrange(40)
        if kind == 0:
            data += p
        elif kind == 1:
            data += frame(p)[:r.randrange(1, 20)]
        elif kind == 2:
            data += b"$" + p + b"#00"
        elif kind == 3:
            data += b"\x03"
        else:
            data += frame(p)
    bed.sent = data
    try:
        bed.client.packets.socket.sendall(data)
    except OSError:
        pass


def mutated_packets(qemu):
    r = random.Random("%s %s" % (qemu, seed))
    bed = Bed(qemu)
    left = number // 2
    try:
        at = 0
        while left > 0:
            # On from somewhere, so that tracing is begun and frames are there.
            if r.random() < 0.1:
                at = r.randrange(len(PACKETS))
            n = r.randrange(1, 30)
            run = [PACKETS[(at + i) % len(PACKETS)] for i in range(n)]
            at = (at + n) % len(PACKETS)
            send(r, bed, [mutate(r, p) if r.random() < 0.7 else p
                          for p in run])
            left -= n
            if not bed.probe():
                bed.connect()
            bed.stub.heard.clear()
    finally:
        bed.stub.heard.clear()
    bed.close()


def before_a_sound_stub_of_another_kind():
    mutated_packets(False)


def before_a_sound_stub_of_qemu():
    mutated_packets(True)


# --- torn ----------------------------------------------------------------------

def conversation(client, cut):
    """Every packet in order, in two pieces from CUT on; the answers."""
    out = []
    for packet in TORN:
        data = frame(packet)
        at = cut % len(data)
        client.packets.socket.sendall(data[:at])
        client.packets.socket.sendall(data[at:])
        out.append(client.receive())
    return out


TORN = [p for p in PACKETS if p[:1] not in b"DkGPF?c" and
        p[:4] not in (b"qRcm", b"qSup", b"QTSa", b"QNon", b"QTBu") and
        p != b"qTStatus"]


def gdb_s_packets_torn_at_every_byte():
    longest = max(len(frame(p)) for p in TORN)
    want = None
    for cut in range(longest):
        bed = Bed()
        got = conversation(bed.client, cut)
        want = want or got
        judge.require(got == want, "cut at", cut, ":",
                      [(p, a, b) for p, a, b in zip(TORN, want, got) if a != b])
        bed.close()
        if sanitized and cut > 20:
            break


def the_stub_s_answers_torn_at_every_byte():
    seen = []
    for pieces in (0, 1, 2, 3, 7):
        bed = Bed()
        bed.stub.pieces = pieces
        seen.append(conversation(bed.client, 0))
        bed.close()
    judge.require(all(s == seen[0] for s in seen), seen)


number = int(sys.argv[1])
seed = sys.argv[2] if len(sys.argv) > 2 else "1"
sanitized = "asan" in os.environ.get("RHEA_BUILD", "")
sys.exit(tap.main([before_a_sound_stub_of_another_kind,
                   before_a_sound_stub_of_qemu,
                   gdb_s_packets_torn_at_every_byte,
                   the_stub_s_answers_torn_at_every_byte]))
