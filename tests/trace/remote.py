# SPDX-License-Identifier: MIT
"""gdb's remote protocol by hand: packets, a client, gdbserver and rhea-trace as
processes."""
import ctypes
import os
import re
import signal
import socket
import subprocess
import time


def frame(payload):
    """`$...#xx`, with the escapes that the protocol wants."""
    body = bytearray()
    for byte in payload:
        if byte in b"#$}*":
            body += bytes((0x7d, byte ^ 0x20))
        else:
            body.append(byte)
    return b"$%s#%02x" % (bytes(body), sum(body) & 255)


def unescape(body):
    """Escapes and runs of a packet from a server."""
    out = bytearray()
    at = 0
    while at < len(body):
        byte = body[at]
        if byte == 0x7d and at + 1 < len(body):
            at += 1
            out.append(body[at] ^ 0x20)
        elif byte == 0x2a and at + 1 < len(body) and out:
            at += 1
            out += out[-1:] * (body[at] - 29)
        else:
            out.append(byte)
        at += 1
    return bytes(out)


class Packets:
    """What comes in on a socket, cut into packets."""

    def __init__(self, connection, timeout=30):
        self.socket = connection
        self.socket.settimeout(timeout)
        self.data = b""

    def next(self):
        """The next packet's body, as it came; None: the other side is gone."""
        while True:
            start = self.data.find(b"$")
            end = self.data.find(b"#", start)
            if start >= 0 and 0 <= end <= len(self.data) - 3:
                body = self.data[start + 1:end]
                self.data = self.data[end + 3:]
                return body
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self.data += more


class Client:
    """gdb's end of a connection, without acknowledgements."""

    def __init__(self, address, timeout=30):
        if isinstance(address, int):
            s = socket.create_connection(("localhost", address))
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            s = socket.socket(socket.AF_UNIX)
            s.connect(address)
        self.packets = Packets(s, timeout)
        self.acknowledge = True
        self.features = self.call(
            b"qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+;"
            b"xmlRegisters=i386")
        if b"QStartNoAckMode+" in self.features:
            self.call(b"QStartNoAckMode")
            self.acknowledge = False

    def send(self, payload):
        self.packets.socket.sendall(frame(payload))

    def receive(self):
        body = self.packets.next()
        if self.acknowledge and body is not None:
            self.packets.socket.sendall(b"+")
        return None if body is None else unescape(body)

    def call(self, payload):
        self.send(payload)
        return self.receive()

    def calls(self, payloads):
        """Many at a time; their answers in order."""
        out = []
        for start in range(0, len(payloads), 32):
            part = payloads[start:start + 32]
            self.packets.socket.sendall(b"".join(frame(p) for p in part))
            out += [self.receive() for _ in part]
        return out

    def transfer(self, name):
        out = b""
        while True:
            part = self.call(b"qXfer:%s:%x,%x" % (name, len(out), 0xf00))
            if part[:1] not in (b"m", b"l"):
                raise ValueError("no %r: %r" % (name, part))
            out += part[1:]
            if part[:1] == b"l":
                return out

    def close(self):
        self.packets.socket.close()


def die_with_parent():
    """Nothing stays behind when a test is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def start_gdbserver(*arguments):
    """The process and its port."""
    p = subprocess.Popen(["gdbserver", "--once", "localhost:0"] +
                         list(arguments), stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                         preexec_fn=die_with_parent)
    for line in iter(p.stderr.readline, b""):
        found = re.match(rb"Listening on port (\d+)", line)
        if found:
            return p, int(found.group(1))
    raise OSError("gdbserver does not start: %s" % p.wait())


def is_listened_on(path):
    """The socket's file is there a moment before."""
    with open("/proc/net/unix", encoding="ascii", errors="replace") as f:
        return any(line.split()[3] == "00010000" for line in f
                   if line.rstrip("\n").endswith(" " + path))


def can_connect(address):
    """And leaves at once."""
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return False
    return True


def start_trace(folder, stub, *options, more=None, listen=None):
    """rhea-trace in front of STUB, a port or a path; the process and where it
    listens: at LISTEN, an address, or a path. MORE is called in the new process
    before it begins."""
    def prepare():
        die_with_parent()
        if more:
            more()

    path = os.path.join(folder, "gdb")
    log = open(os.path.join(folder, "log"), "wb")
    p = subprocess.Popen(
        [os.environ["RHEA_TRACE"], "-q", "-l", listen or path, "-f",
         os.path.join(folder, "frames"), "-s",
         "localhost:%d" % stub if isinstance(stub, int) else stub] +
        list(options), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        preexec_fn=prepare)
    log.close()
    end = time.monotonic() + 60
    while not (can_connect(listen) if listen else is_listened_on(path)):
        if p.poll() is not None or time.monotonic() > end:
            break
        time.sleep(0.005)
    return p, path


def log_of(folder):
    with open(os.path.join(folder, "log"), encoding="utf-8",
              errors="replace") as f:
        return f.read()
