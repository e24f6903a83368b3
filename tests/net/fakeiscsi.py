"""fakeiscsi.py - an iSCSI target with a volatile cache that misbehaves on request.

Target(faults) listens on 127.0.0.1; one thread a connection.  What is written is seen
by reads at once (live) and reaches the medium with SYNCHRONIZE CACHE or FUA only;
lose_cache() brings live back to the medium, as a power failure does.  A login with the ISID
of an open connection ends that one (session reinstatement); conn.session is the ISID's last
number, which tells an initiator's sessions apart.

A fault is a function f(target, conn, cmd) that target.on(opcode, f, count) calls in
place of the next commands with that opcode (of one session, if it is named).  It returns True when it has dealt with the
command, or False to have it done as usual afterwards.  The ready-made ones are below.
"""
import hashlib
import os
import socket
import struct
import threading
import time

BLOCK = 512
READ, WRITE, SYNC, TUR, SAME, UNMAP = 0x28, 0x2a, 0x35, 0x00, 0x93, 0x42
ALIAS = {0x88: READ, 0x8a: WRITE, 0x91: SYNC}


class Gone(Exception):
    pass


class Cmd:
    def __init__(self, bhs, data):
        self.bhs, self.data = bhs, data
        self.itt = bhs[16:20]
        self.edtl, = struct.unpack('>I', bhs[20:24])
        self.cdb = bhs[32:48]
        op = self.cdb[0]
        self.op = ALIAS.get(op, op)
        if op in (0x88, 0x8a, 0x91, 0x93):
            self.lba, self.count = struct.unpack('>QI', self.cdb[2:14])
        elif op in (0x28, 0x2a, 0x35):
            self.lba, _, self.count = struct.unpack('>IBH', self.cdb[2:9])
        else:
            self.lba = self.count = 0
        self.fua = op in (0x2a, 0x8a) and bool(self.cdb[1] & 8)


class Target:
    def __init__(self, size=16 << 20, name='iqn.2026-01.test:fake', secret=None, wce=True):
        self.size, self.name, self.secret, self.wce = size, name, secret, wce
        self.live, self.medium, self.dirty = bytearray(size), bytearray(size), []
        self.lock = threading.RLock()
        self.faults, self.count, self.log = {}, {}, []
        self.digest = False
        self.login_fault = None
        self.refused = set()            # sessions that cannot log in
        self.silent = False             # answers nothing any more on open connections
        self.conns = set()
        self.logins = 0
        self.sock = None
        self.port = 0
        self.listen()

    def listen(self):
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(('127.0.0.1', self.port))
        self.port = self.sock.getsockname()[1]
        self.sock.listen(16)
        threading.Thread(target=self.accept, args=(self.sock,), daemon=True).start()

    def accept(self, sock):
        while True:
            try:
                s, _ = sock.accept()
            except OSError:
                return
            Conn(self, s)

    def url(self, query=''):
        return 'iscsi://127.0.0.1:%d/%s/1%s' % (self.port, self.name, query)

    def on(self, op, fault, count=1, session=None):
        with self.lock:
            self.faults.setdefault(op, []).extend([(fault, session)] * count)

    def next_fault(self, op, session):
        with self.lock:
            self.count[op] = self.count.get(op, 0) + 1
            queue = self.faults.get(op, [])
            for i, (fault, which) in enumerate(queue):
                if which in (None, session):
                    del queue[i]
                    return fault
            return None

    def attention(self, key, ascq):
        for c in list(self.conns):
            c.attentions.append((key, ascq))

    def lose_cache(self):
        with self.lock:
            self.live[:] = self.medium
            self.dirty = []
        self.attention(6, 0x2900)

    def cut(self):
        for c in list(self.conns):
            c.close()

    def stop_listening(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def store(self, off, data, durable):
        with self.lock:
            self.live[off:off + len(data)] = data
            if durable or not self.wce:
                self.medium[off:off + len(data)] = data
            else:
                self.dirty.append((off, len(data)))

    def sync(self):
        with self.lock:
            for off, n in self.dirty:
                self.medium[off:off + n] = self.live[off:off + n]
            self.dirty = []


class Conn:
    def __init__(self, target, sock):
        self.t, self.s = target, sock
        self.attentions = [(6, 0x2900)]         # as every target, for a new nexus
        self.statsn, self.expcmdsn = 1, 1
        self.digest = False
        self.isid = self.session = None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        target.conns.add(self)
        threading.Thread(target=self.run, daemon=True).start()

    def close(self):
        self.t.conns.discard(self)
        try:
            self.s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.s.close()

    def recv(self, n):
        out = b''
        while len(out) < n:
            try:
                part = self.s.recv(n - len(out))
            except OSError:
                part = b''
            if not part:
                raise Gone
            out += part
        return out

    def pdu(self):
        bhs = self.recv(48)
        if self.digest:
            self.recv(4)
        n = int.from_bytes(bhs[5:8], 'big')
        data = self.recv((n + 3) & ~3)[:n]
        return bhs, data

    def send(self, bhs, data=b'', raw=None):
        """raw(bytes) -> bytes: what goes out instead."""
        bhs = bytearray(bhs)
        bhs[5:8] = len(data).to_bytes(3, 'big')
        out = bytes(bhs) + (b'\xde\xad\xbe\xef' if self.digest else b'')
        out += data + bytes(-len(data) % 4)
        if raw:
            out = raw(out)
        try:
            self.s.sendall(out)
        except OSError:
            raise Gone

    def head(self, op, flags, itt, b2=0, b3=0):
        h = bytearray(48)
        h[0], h[1], h[2], h[3] = op, flags, b2, b3
        h[16:20] = itt
        h[24:36] = struct.pack('>III', self.statsn & 0xffffffff, self.expcmdsn & 0xffffffff,
                               (self.expcmdsn + 64) & 0xffffffff)
        return h

    def run(self):
        try:
            self.login()
            while True:
                bhs, data = self.pdu()
                if self.t.silent:
                    while True:
                        self.recv(1)
                self.dispatch(bhs, data)
        except Gone:
            pass
        finally:
            self.close()

    # login ---------------------------------------------------------------------

    def login_reply(self, bhs, flags, keys, status=(0, 0)):
        h = bytearray(48)
        h[0], h[1] = 0x23, flags
        h[8:14] = bhs[8:14]
        h[14:16] = b'\0\1' if flags & 0x83 == 0x83 else b'\0\0'
        h[16:20] = bhs[16:20]
        h[24:36] = struct.pack('>III', self.statsn, self.expcmdsn, self.expcmdsn + 64)
        h[36], h[37] = status
        self.statsn += 1
        self.send(h, ''.join('%s=%s\0' % kv for kv in keys).encode())

    def login(self):
        chap = None
        while True:
            bhs, data = self.pdu()
            if bhs[0] & 0x3f != 3:
                raise Gone
            self.expcmdsn, = struct.unpack('>I', bhs[24:28])
            self.isid, self.session = bhs[8:14], bhs[13]
            keys = dict(k.split('=', 1) for k in data.decode().split('\0') if '=' in k)
            flags, stage = bhs[1], bhs[1] >> 2 & 3
            if self.t.login_fault:
                status, extra = self.t.login_fault
                self.t.logins += 1
                self.login_reply(bhs, flags, extra, status)
                raise Gone
            if self.session in self.t.refused:
                self.login_reply(bhs, flags, [], (3, 1))
                raise Gone
            if stage == 0 and self.t.secret:
                if 'CHAP_R' in keys:
                    want = hashlib.md5(b'\x07' + self.t.secret.encode() + chap).hexdigest()
                    if keys['CHAP_R'].lower() != '0x' + want:
                        self.t.logins += 1
                        self.login_reply(bhs, flags, [], (2, 1))
                        raise Gone
                    self.login_reply(bhs, flags, [])
                elif 'CHAP_A' in keys:
                    chap = os.urandom(16)
                    self.login_reply(bhs, flags & 0x7f, [('CHAP_A', '5'), ('CHAP_I', '7'),
                                                         ('CHAP_C', '0x' + chap.hex())])
                elif 'CHAP' in keys.get('AuthMethod', ''):
                    self.login_reply(bhs, flags & 0x7c, [('AuthMethod', 'CHAP'),
                                                         ('TargetPortalGroupTag', '1')])
                else:
                    self.login_reply(bhs, flags, [], (2, 1))
                    raise Gone
            elif stage == 0:
                self.login_reply(bhs, flags, [('AuthMethod', 'None'),
                                              ('TargetPortalGroupTag', '1')])
            else:
                digest = 'CRC32C' if self.t.digest else 'None'
                self.login_reply(bhs, flags, [
                    ('HeaderDigest', digest), ('DataDigest', 'None'), ('ImmediateData', 'Yes'),
                    ('InitialR2T', 'Yes'), ('MaxBurstLength', '262144'),
                    ('FirstBurstLength', '65536'), ('MaxRecvDataSegmentLength', '65536'),
                    ('MaxOutstandingR2T', '1'), ('MaxConnections', '1'),
                    ('ErrorRecoveryLevel', '0'), ('DefaultTime2Wait', '0'),
                    ('DefaultTime2Retain', '0'), ('DataPDUInOrder', 'Yes'),
                    ('DataSequenceInOrder', 'Yes')])
                self.digest = self.t.digest
                if flags & 0x83 == 0x83:
                    self.t.logins += 1
                    self.reinstate()
                    return

    def reinstate(self):
        with self.t.lock:
            for c in list(self.t.conns):
                if c is not self and c.isid == self.isid:
                    c.close()

    # full feature phase ------------------------------------------------------------

    def dispatch(self, bhs, data):
        op = bhs[0] & 0x3f
        if not bhs[0] & 0x40 and op in (0, 1, 2, 6):
            self.expcmdsn += 1
        if op == 1:
            self.command(Cmd(bhs, data))
        elif op == 0 and bhs[16:20] != b'\xff' * 4:
            h = self.head(0x20, 0x80, bhs[16:20])
            h[20:24] = b'\xff' * 4
            self.send(h, data)
            self.statsn += 1
        elif op == 2:
            self.send(self.head(0x22, 0x80, bhs[16:20]))
            self.statsn += 1
        elif op == 6:
            self.send(self.head(0x26, 0x80, bhs[16:20]))
            raise Gone

    def status(self, cmd, status=0, sense=None):
        h = self.head(0x21, 0x80, cmd.itt, 0, status)
        data = b''
        if sense:
            key, ascq = sense
            s = bytearray(18)
            s[0], s[2], s[7], s[12], s[13] = 0x70, key, 10, ascq >> 8, ascq & 255
            data = b'\0\x12' + bytes(s)
        self.statsn += 1
        self.send(h, data)

    def data_in(self, cmd, data, raw=None, itt=None):
        """Data and GOOD status in one or more PDUs; raw for the first of them."""
        data = data[:cmd.edtl]
        at, sn = 0, 0
        while True:
            part = data[at:at + 65536]
            last = at + len(part) == len(data)
            h = self.head(0x25, 0x81 if last else 0, itt or cmd.itt)
            if not last:
                h[24:28] = b'\0' * 4
            short = cmd.edtl - len(data)
            if last and short:
                h[1] |= 2
                h[44:48] = struct.pack('>I', short)
            h[20:24] = b'\xff' * 4
            h[36:44] = struct.pack('>II', sn, at)
            self.send(h, part, raw)
            raw = None
            sn += 1
            at += len(part)
            if last:
                self.statsn += 1
                return

    def r2t(self, cmd, at, n, sn=0):
        h = self.head(0x31, 0x80, cmd.itt)
        h[20:24] = struct.pack('>I', at // BLOCK + 1)
        h[36:48] = struct.pack('>III', sn, at, n)
        self.send(h)

    def data_out(self, cmd, stop_at=None):
        """All of a command's data; stop_at: cut the connection when that much is here."""
        buf, sn = bytearray(cmd.data), 0
        while len(buf) < cmd.edtl:
            want = min(262144, cmd.edtl - len(buf))
            self.r2t(cmd, len(buf), want, sn)
            sn += 1
            end = len(buf) + want
            while len(buf) < end:
                bhs, data = self.pdu()
                if bhs[0] & 0x3f != 5:
                    self.later.append((bhs, data))
                    continue
                at, = struct.unpack('>I', bhs[40:44])
                assert at == len(buf)
                buf += data
                if stop_at is not None and len(buf) >= stop_at:
                    raise Gone
        return bytes(buf)

    later = None

    def command(self, cmd):
        self.later = []
        with self.t.lock:
            self.t.log.append((cmd.op, cmd.lba, cmd.count))
        fault = self.t.next_fault(cmd.op, self.session)
        if not (fault and fault(self.t, self, cmd)):
            if self.attentions and cmd.op != 0x12:
                self.status(cmd, 2, self.attentions.pop(0))
            else:
                self.execute(cmd)
        later, self.later = self.later, []
        for bhs, data in later:
            self.dispatch(bhs, data)

    def execute(self, cmd):
        t, op = self.t, cmd.cdb[0]
        off, n = cmd.lba * BLOCK, cmd.count * BLOCK
        if cmd.op in (READ, WRITE, SAME) and off + n > t.size:
            self.status(cmd, 2, (5, 0x2100))
        elif cmd.op == READ:
            with t.lock:
                data = bytes(t.live[off:off + n])
            self.data_in(cmd, data)
        elif cmd.op == WRITE:
            t.store(off, self.data_out(cmd), cmd.fua)
            self.status(cmd)
        elif cmd.op == SAME:
            t.store(off, self.data_out(cmd) * cmd.count, False)
            self.status(cmd)
        elif cmd.op == SYNC:
            t.sync()
            self.status(cmd)
        elif op == 0:
            self.status(cmd)
        elif op == 0x12:
            self.inquiry(cmd)
        elif op == 0x25:
            self.data_in(cmd, struct.pack('>II', t.size // BLOCK - 1, BLOCK))
        elif op == 0x9e and cmd.cdb[1] & 31 == 0x10:
            self.data_in(cmd, struct.pack('>QI', t.size // BLOCK - 1, BLOCK) + bytes(20))
        elif op == 0x1a:
            page = bytearray(20)
            page[0], page[1], page[2] = 8, 18, 4 if t.wce else 0
            self.data_in(cmd, bytes([23, 0, 0x10, 0]) + bytes(page))
        else:
            self.status(cmd, 2, (5, 0x2000))

    def inquiry(self, cmd):
        if not cmd.cdb[1] & 1:
            data = bytes([0, 0, 5, 2, 31, 0, 0, 2]) + b'PLATTER FAKE            0001'
        elif cmd.cdb[2] == 0x80:
            data = b'\0\x80\0\x04FAKE'
        else:
            self.status(cmd, 2, (5, 0x2400))
            return
        self.data_in(cmd, data)


# ready-made faults --------------------------------------------------------------------

def status(code):
    return lambda t, c, cmd: c.status(cmd, code) or True


def sense(key, ascq):
    return lambda t, c, cmd: c.status(cmd, 2, (key, ascq)) or True


def hang(t, c, cmd):
    while True:
        c.recv(1)


def cut(t, c, cmd):
    raise Gone


def power_loss(t, c, cmd):
    """The cache is lost while connections stay: this very command gets the attention."""
    t.lose_cache()
    return False


def restart(t, c, cmd):
    """The whole target goes, and comes back without its cache."""
    t.lose_cache()
    t.cut()
    raise Gone


def cut_data_out(after):
    """Cut when that much of a WRITE's data, or all of it, is here."""
    def fault(t, c, cmd):
        c.data_out(cmd, stop_at=after)
        raise Gone
    return fault


def cut_reply(after):
    """Only the first bytes of the answer to a READ leave."""
    def fault(t, c, cmd):
        data = bytes(t.live[cmd.lba * BLOCK:(cmd.lba + cmd.count) * BLOCK])
        c.data_in(cmd, data, raw=lambda out: out[:after])
        time.sleep(0.01)
        raise Gone
    return fault
