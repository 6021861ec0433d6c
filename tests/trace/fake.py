# SPDX-License-Identifier: MIT
"""A stub with a guest that is not there: registers, a little memory,
breakpoints that are reached one after the other. Tests spoil what it says."""
import os
import socket
import threading

from remote import Packets, frame, unescape

XML = b"""<target><architecture>i386:x86-64</architecture>
<feature name="org.gnu.gdb.i386.core">""" + b"".join(
    b'<reg name="%s" bitsize="64"/>' % n for n in (
        b"rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip"
        .split())) + b"""<reg name="eflags" bitsize="32"/>
<reg name="cs" bitsize="32"/></feature></target>"""
RIP = 16
START, SIZE = 0x400000, 0x4000


class Fake(threading.Thread):
    """Serves one connection at PATH, and remembers what it was sent.

    `spoil(fake, packet, answer)` gives the bytes to send in the answer's place,
    or None: hang up. `pieces`: bytes sent at a time."""

    def __init__(self, path, spoil=None, qemu=False, pieces=0, steps=True):
        super().__init__(daemon=True)
        self.spoil, self.qemu, self.pieces = spoil, qemu, pieces
        self.registers = [0x1111 * n for n in range(17)] + [0x202, 0x33]
        self.registers[RIP] = START
        self.memory = bytearray(n * 7 & 255 for n in range(SIZE))
        self.breakpoints = []
        self.turn = 0
        self.vcont = steps
        self.heard = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.connection = None
        self.start()

    # --- what a sound stub says ----------------------------------------------

    def g(self):
        return b"".join(n.to_bytes(8 if i < 17 else 4, "little").hex().encode()
                        for i, n in enumerate(self.registers))

    def set_g(self, text):
        data = bytes.fromhex(text.decode())
        for i in range(17):
            self.registers[i] = int.from_bytes(data[8 * i:8 * i + 8], "little")
        return b"OK"

    def read(self, text):
        start, size = [int(n, 16) for n in text.split(b",")]
        if not START <= start < START + SIZE:
            return b"E14"
        return self.memory[start - START:][:size].hex().encode()

    def part(self, text, packet):
        at, size = [int(n, 16) for n in packet.split(b":")[-1].split(b",")]
        return (b"l" if at + size >= len(text) else b"m") + text[at:at + size]

    def breakpoint(self, packet):
        place = packet[1:].split(b";")[0]
        if packet[:1] == b"z" and place in self.breakpoints:
            self.breakpoints.remove(place)
        elif packet[:1] == b"Z" and place not in self.breakpoints:
            self.breakpoints.append(place)
        return b"OK"

    def stop(self):
        return b"T05thread:01;"

    def run_guest(self, step):
        """A step goes an instruction further; else the next breakpoint of those
        there are is reached."""
        if step or not self.breakpoints:
            self.registers[RIP] = self.registers[RIP] + 1 & (1 << 64) - 1
        else:
            self.turn += 1
            place = self.breakpoints[self.turn % len(self.breakpoints)]
            self.registers[RIP] = int(place.split(b",")[1], 16)
        return self.stop()

    def set_register(self, packet):
        number, _, value = packet[1:].partition(b"=")
        n = int(number, 16)
        self.registers[n] = int.from_bytes(
            bytes.fromhex(value.decode())[:8 if n < 17 else 4], "little")
        return b"OK"

    def answer(self, packet):
        simple = {b"?": self.stop(), b"qC": b"QC01", b"g": self.g(),
                  b"qfThreadInfo": b"m01", b"qsThreadInfo": b"l",
                  b"QStartNoAckMode": b""}
        if self.vcont:
            simple[b"vCont?"] = b"vCont;c;C;s;S"
        if packet in simple:
            return simple[packet]
        for start, handle in (
                (b"qSupported",
                 lambda: b"PacketSize=1000;qXfer:features:read+"),
                (b"qXfer:features:read:target.xml:",
                 lambda: self.part(XML, packet)),
                (b"qqemu.sstepbits",
                 lambda: b"ENABLE=1,NOIRQ=2,NOTIMER=4" if self.qemu else b""),
                (b"qProbe:", lambda: b"probe" + packet[7:]),
                (b"m", lambda: self.read(packet[1:])),
                (b"G", lambda: self.set_g(packet[1:])),
                (b"P", lambda: self.set_register(packet)),
                (b"Z", lambda: self.breakpoint(packet)),
                (b"z", lambda: self.breakpoint(packet)),
                (b"H", lambda: b"OK"), (b"M", lambda: b"OK"),
                (b"X", lambda: b"OK"), (b"T", lambda: b"OK"),
                (b"vCont;", lambda: self.run_guest(packet[6:7] in b"sS")),
                (b"c", lambda: self.run_guest(False)),
                (b"C", lambda: self.run_guest(False)),
                (b"s", lambda: self.run_guest(True)),
                (b"S", lambda: self.run_guest(True))):
            if packet.startswith(start):
                try:
                    return handle()
                except (ValueError, IndexError, UnicodeDecodeError,
                        OverflowError):
                    return b"E22"
        return b""

    # --- the connection ------------------------------------------------------

    def send(self, data):
        if not self.pieces:
            self.connection.sendall(data)
            return
        for at in range(0, len(data), self.pieces):
            self.connection.sendall(data[at:at + self.pieces])

    def run(self):
        self.connection, _ = self.listener.accept()
        packets = Packets(self.connection, None)
        try:
            while True:
                body = packets.next()
                if body is None:
                    break
                packet = unescape(body)
                self.heard.append(packet)
                if packet == b"k":
                    continue
                answer = self.answer(packet)
                out = frame(answer)
                if self.spoil:
                    out = self.spoil(self, packet, answer)
                if out is None:
                    break
                self.send(b"+" + out)
        except OSError:
            pass
        self.connection.close()
        self.listener.close()


def path_in(folder):
    return os.path.join(folder, "stub")
