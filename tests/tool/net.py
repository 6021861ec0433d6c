# SPDX-License-Identifier: MIT
"""Images of NBD and HTTP servers, good ones and others."""
import http.server
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
import unittest

import tool
from tool import MIB

SOCKET = 'socket'
EXPORT = f'nbd+unix:///disk?socket={SOCKET}'
PLAIN = f'nbd+unix://?socket={SOCKET}'


class Nbd:
    """A server on SOCKET, for as long as the block lasts."""

    def __init__(self, *command):
        self.command = command

    def __enter__(self):
        if os.path.exists(SOCKET):
            os.unlink(SOCKET)
        # pylint: disable-next=consider-using-with
        self.server = subprocess.Popen(self.command, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
        limit = time.monotonic() + 30
        while not os.path.exists(SOCKET):
            if self.server.poll() is not None or time.monotonic() > limit:
                raise unittest.SkipTest(f'{self.command[0]} does not start')
            time.sleep(0.01)
        return self.server

    def __exit__(self, *_):
        self.server.terminate()
        self.server.wait()


def qemu_nbd(path, fmt, *more):
    return Nbd('qemu-nbd', '-t', '-e', '8', '-f', fmt, '-x', 'disk', '-k',
               os.path.abspath(SOCKET), *more, path)


def nbdkit(*more):
    if not shutil.which('nbdkit'):
        raise unittest.SkipTest('nbdkit is not installed')
    return Nbd('nbdkit', '-f', '-U', os.path.abspath(SOCKET), *more)


class OldNbd:
    """A server on SOCKET that greets as the first ones did, with FLAGS, and
    hangs up instead of answering each LOSE'th request, until it has done so
    TIMES."""

    def __init__(self, size=1 << 20, flags=0, lose=0, times=1 << 30, tcp=False):
        self.data = bytearray(size)
        self.flags, self.lose, self.times = flags, lose, times
        self.requests = 0
        self.tcp = tcp

    def __enter__(self):
        if os.path.exists(SOCKET):
            os.unlink(SOCKET)
        self.sock = socket.socket(socket.AF_INET if self.tcp
                                  else socket.AF_UNIX)
        self.sock.bind(('127.0.0.1', 0) if self.tcp else SOCKET)
        self.sock.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.sock.close()

    def serve(self):
        while True:
            try:
                conn = self.sock.accept()[0]
            except OSError:
                return
            try:
                with conn, conn.makefile('rwb') as f:
                    self.speak(f)
            except (struct.error, OSError, EOFError):
                pass

    def speak(self, f):
        f.write(struct.pack('>8sQQI124x', b'NBDMAGIC', 0x420281861253,
                            len(self.data), self.flags))
        f.flush()
        while True:
            _, kind, handle, at, n = struct.unpack('>IIQQI', f.read(28))
            if kind == 2:
                return
            data = f.read(n) if kind == 1 else b''
            self.requests += 1
            if self.lose and self.times and self.requests % self.lose == 0:
                self.times -= 1
                raise EOFError
            if kind == 1:
                self.data[at:at + n] = data
            f.write(struct.pack('>IIQ', 0x67446698, 0, handle))
            if kind == 0:
                f.write(self.data[at:at + n])
            f.flush()


class NbdImages(tool.Case):
    def setUp(self):
        super().setUp()
        self.make_data('raw', 5 * MIB, [(0, 70000), (2 * MIB, MIB)])

    def test_info_and_map(self):
        with qemu_nbd('raw', 'raw'):
            for name in (EXPORT, f'nbd:unix:{SOCKET}:exportname=disk'):
                with self.subTest(name=name):
                    self.same('info', '-f', 'raw', name, code=0)
                    self.same_json('map', '-f', 'raw', name,
                                   drop=('compressed',))
            self.same('info', 'json:{"driver":"raw","file":{"driver":"nbd",'
                      f'"server":{{"type":"unix","path":"{SOCKET}"}},'
                      '"export":"disk"}}', code=0)

    def test_reads_what_qemu_serves(self):
        self.qemu('convert', '-O', 'qcow2', 'raw', 'qcow2')
        with qemu_nbd('qcow2', 'qcow2', '-r'):
            self.rhea('compare', '-f', 'raw', '-F', 'raw', EXPORT, 'raw')
            self.rhea('convert', '-f', 'raw', '-O', 'qcow2', EXPORT, 'copy')
        self.identical('copy', 'qcow2', 'raw', 'raw')
        self.sound('copy', 'qcow2')

    def test_a_format_over_nbd(self):
        self.qemu('convert', '-O', 'qcow2', 'raw', 'qcow2')
        with qemu_nbd('qcow2', 'raw'):
            self.same_json('info', EXPORT)
            self.rhea('compare', '-F', 'raw', EXPORT, 'raw')
            self.rhea('check', EXPORT)

    def test_writes_what_qemu_serves(self):
        tool.execute('truncate', '-s', '5M', 'disk')
        with qemu_nbd('disk', 'raw'):
            self.rhea('convert', '-f', 'raw', '-O', 'raw', 'raw', EXPORT)
            self.rhea('compare', '-f', 'raw', '-F', 'raw', 'raw', EXPORT)
        self.assertEqual(tool.contents('disk'), tool.contents('raw'))

    def test_old_contents_are_written_over(self):
        for what in ('raw', 'qcow2'):
            with open('disk', 'wb') as f:
                f.write(b'\xaa' * (8 * MIB))
            with qemu_nbd('disk', 'raw'):
                self.rhea('convert', '-f', 'raw', '-O', what, 'raw', EXPORT)
                if what == 'qcow2':
                    self.sound(EXPORT, 'qcow2')
                    self.rhea('compare', '-f', 'raw', '-F', 'qcow2', 'raw',
                              EXPORT)
            if what == 'raw':
                self.assertEqual(tool.contents('disk')[:5 * MIB],
                                 tool.contents('raw'))

    def test_too_small_an_export(self):
        tool.execute('truncate', '-s', '1M', 'disk')
        with qemu_nbd('disk', 'raw'):
            self.fails(tool.rhea('convert', '-f', 'raw', '-O', 'raw', 'raw',
                                 EXPORT), says='5242880 are needed')

    def test_a_server_that_wants_whole_blocks(self):
        with nbdkit('file', 'raw', '--filter=blocksize-policy',
                    'blocksize-minimum=4096', 'blocksize-preferred=64K',
                    'blocksize-maximum=256K', 'blocksize-error-policy=error'):
            self.rhea('compare', '-f', 'raw', '-F', 'raw', PLAIN, 'raw')
            self.rhea('convert', '-f', 'raw', '-O', 'qcow2', PLAIN, 'copy')
        self.identical('copy', 'qcow2', 'raw', 'raw')

    def test_a_server_that_fails(self):
        with nbdkit('file', 'raw', '--filter=error', 'error-pread=EIO',
                    'error-pread-rate=100%'):
            self.fails(tool.rhea('convert', '-f', 'raw', '-O', 'qcow2', PLAIN,
                                 'copy'), says='could not read')

    def test_a_server_that_goes_away(self):
        with nbdkit('memory', '64M', '--filter=delay', 'delay-read=100ms') as s:
            timer = threading.Timer(0.5, s.kill)
            timer.start()
            self.fails(tool.rhea('convert', '-f', 'raw', '-S', '0', '-O',
                                 'raw', PLAIN, 'copy'), says='could not ')
            timer.join()

    def test_servers_of_the_first_years(self):
        for flags in (0, 1, 1 | 4):
            for tcp in (False, True):
                with self.subTest(flags=flags, tcp=tcp), \
                        OldNbd(5 * MIB, flags, tcp=tcp) as server:
                    name = f'nbd://127.0.0.1:{server.sock.getsockname()[1]}' \
                        if tcp else PLAIN
                    self.rhea('convert', '-n', '-f', 'raw', '-O', 'raw', 'raw',
                              name)
                    self.rhea('compare', '-f', 'raw', '-F', 'raw', 'raw', name)
                    self.assertEqual(bytes(server.data), tool.contents('raw'))

    def test_lost_connections(self):
        """Are made anew, and what was asked for is asked for again, for as
        long as is said."""
        def name(seconds):
            return ('json:{"driver":"raw","file":{"driver":"nbd","server":'
                    f'{{"type":"unix","path":"{SOCKET}"}},'
                    f'"reconnect-delay":{seconds}}}}}')
        with OldNbd(5 * MIB, lose=2) as server:
            self.rhea('convert', '-n', '-O', 'raw', '-f', 'raw', 'raw',
                      name(10))
            self.assertEqual(bytes(server.data), tool.contents('raw'))
            self.rhea('compare', 'raw', name(10))
            self.assertLess(server.times, (1 << 30) - 1)
            self.fails(tool.rhea('compare', 'raw', name(0)), code=4)
        # A server that ends each request so is given up.
        with OldNbd(5 * MIB, lose=1) as server:
            self.fails(tool.rhea('compare', 'raw', name(1)), code=4)
        # One whose export is another than before is not taken for the same.
        with OldNbd(5 * MIB, lose=2, times=1) as server:
            server.data[:] = tool.contents('raw')
            real = server.speak

            def speak(f):
                if not server.times:
                    server.data = bytearray(6 * MIB)
                real(f)
            server.speak = speak
            self.fails(tool.rhea('compare', 'raw', name(1)), code=4)

    def test_a_read_only_export(self):
        with qemu_nbd('raw', 'raw', '-r'):
            self.fails(tool.rhea('convert', '-f', 'raw', '-O', 'raw', 'raw',
                                 EXPORT), says='read only')

    def test_no_server(self):
        for name in (PLAIN, 'nbd://localhost:1/x', 'nbd:localhost:1'):
            with self.subTest(name=name):
                self.fails(tool.rhea('info', name), says='could not connect')

    def test_names_that_mean_nothing(self):
        for name in ('nbd://', 'nbd+unix:///x', 'nbd+unix://host/x?socket=s',
                     'nbd:host', 'nbd://[::1/x', 'nbd://h/%zz', 'nbds://h/x',
                     'nbd://h/x?y=z'):
            with self.subTest(name=name):
                self.fails(tool.rhea('info', name))


class Server(http.server.BaseHTTPRequestHandler):
    """Sends ranges of `raw`; MODE makes it lie from the third request on."""

    protocol_version = 'HTTP/1.1'
    mode = 'good'
    requests = 0

    def log_message(self, *_):  # pylint: disable=arguments-differ
        pass

    def redirect(self, where):
        self.send_response(302)
        self.send_header('Location', where)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def do_GET(self):  # pylint: disable=invalid-name
        mode, kind = self.mode, type(self)
        kind.requests += 1
        if mode == 'elsewhere' and self.path != '/there':
            return self.redirect('/there')
        if mode == 'to a file':
            return self.redirect('file:///etc/passwd')
        if mode == 'missing':
            return self.send_error(404)
        data = tool.contents('raw')
        asked = re.match(r'bytes=(\d+)-(\d+)$', self.headers.get('Range', ''))
        if mode == 'whole' or not asked:
            self.send_response(200)
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.close_connection = True
            try:
                return self.wfile.write(data)
            except OSError:
                return None
        first, last = int(asked[1]), int(asked[2])
        return self.send_part(data, first, last,
                              'good' if kind.requests < 3 else mode)

    def send_part(self, data, first, last, mode):
        body, total, tag = data[first:last + 1], len(data), 'one'
        if mode == 'changed':
            tag = 'two'
        elif mode == 'grown':
            total += 512
        elif mode == 'short':
            body = body[:-1]
        elif mode == 'long':
            body += b'x' * 100000
        elif mode == 'other':
            first, last = first + 1, last + 1
        self.send_response(206)
        self.send_header('Content-Range', f'bytes {first}-{last}/{total}')
        self.send_header('ETag', f'"{tag}"')
        cut = mode == 'cut'
        self.send_header('Content-Length', str(len(body) + cut))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            pass
        self.close_connection = cut or mode == 'long'


class Http:
    """A server; the block gets the address of its file."""

    def __init__(self, mode):
        self.handler = type('Handler', (Server,), {'mode': mode})

    def __enter__(self):
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0),
                                                      self.handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever,
                                       args=(0.05,))
        self.thread.start()
        return f'http://127.0.0.1:{self.server.server_address[1]}/raw'

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class HttpImages(tool.Case):
    def setUp(self):
        super().setUp()
        self.make_data('raw', 5 * MIB, [(0, 70000), (2 * MIB, MIB)])

    def test_reading(self):
        for mode in ('good', 'elsewhere'):
            with Http(mode) as url:
                info = self.rhea('info', '--output=json', '-f', 'raw', url).json
                self.assertEqual(info['virtual-size'], 5 * MIB)
                self.assertEqual(info['filename'], url)
                self.rhea('compare', '-f', 'raw', '-F', 'raw', url, 'raw')
                self.rhea('convert', '-f', 'raw', '-O', 'qcow2', url, 'copy')
            self.identical('copy', 'qcow2', 'raw', 'raw')

    def test_a_format_over_http(self):
        self.qemu('convert', '-c', '-O', 'qcow2', 'raw', 'qcow2')
        os.rename('raw', 'plain')
        os.rename('qcow2', 'raw')
        with Http('good') as url:
            self.rhea('compare', '-F', 'raw', url, 'plain')
            self.qemu('create', '-q', '-u', '-f', 'qcow2', '-b', url, '-F',
                      'qcow2', 'top', '5M')
            self.rhea('compare', '-F', 'raw', 'top', 'plain')

    def test_small_reads_become_few_requests(self):
        with Http('good') as url:
            options = {'driver': 'http', 'url': url, 'readahead': 1 << 20}
            name = 'json:' + json.dumps({'driver': 'raw', 'file': options})
            self.rhea('dd', '-O', 'raw', 'bs=4096', f'if={name}',
                      'of=copy')
        self.assertEqual(tool.contents('copy'), tool.contents('raw'))

    def test_servers_of_no_use(self):
        for mode, says in (('to a file', 'could not read'),
                           ('missing', '404'),
                           ('whole', 'cannot send parts')):
            with self.subTest(mode=mode), Http(mode) as url:
                self.fails(tool.rhea('info', '-f', 'raw', url), says=says)

    def test_servers_that_lie(self):
        for mode, says in (('changed', 'was changed'), ('grown', 'was changed'),
                           ('short', 'another part'), ('long', 'more of'),
                           ('other', 'another part'),
                           ('cut', 'could not read')):
            with self.subTest(mode=mode), Http(mode) as url:
                self.fails(tool.rhea('convert', '-f', 'raw', '-O', 'raw', url,
                                     'copy'), says=says)

    def test_writing_is_refused(self):
        with Http('good') as url:
            self.fails(tool.rhea('convert', '-f', 'raw', '-O', 'raw', 'raw',
                                 url))
        self.fails(tool.rhea('info', 'http://127.0.0.1:1/x'))


class NullImages(tool.Case):
    def test_info_and_map(self):
        self.rhea('info', 'null-co://')
        self.same_json('map', 'json:{"driver":"raw","file":'
                       '{"driver":"null-co","size":1048576,'
                       '"read-zeroes":true}}', drop=('compressed',))


if __name__ == '__main__':
    tool.main()
