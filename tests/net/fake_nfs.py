#!/usr/bin/env python3
"""fake_nfs.py - an NFSv3 server (MOUNT and NFS on one TCP port, one file) that misbehaves
on demand.  The file has two contents: what is on "disk" and what UNSTABLE writes have made
of it so far; COMMIT copies the second to the first, a crash the first over the second.

  fake_nfs.py PORT SIZE [COMMAND]...     prints "ready"; commands also on stdin, a line each,
                                         answered by "ok" (or by what was asked for)
Commands
  lose             drop unflushed writes, change the verifier, keep connections (N3)
  crash            the same and cut all connections (N2)
  lose-at-commit [COUNT]   as lose, when the next COMMIT arrives, COUNT times
  verifier-at-write    every WRITE answers with a new verifier, and loses what came before
  status OP CODE COUNT     the next COUNT calls of OP (read write commit ...) fail with CODE
  short-write N    a WRITE takes N bytes at most, -1: all;   empty-write COUNT: 0 bytes
  short-read N     the same for READ;   empty-read COUNT
  long-read N      READ answers with N bytes more than asked;  long-write N: claims more
  fsinfo RT WT     rtmax, wtmax
  silent COUNT     the next COUNT calls are never answered
  hold OP COUNT    the next COUNT calls of OP are neither executed nor answered, until
  release          they are, however old; crash forgets them
  pace MS          every reply takes that long
  garbage COUNT    the next COUNT replies are nonsense behind a good header
  bad-record       a record that is too long on all connections, which stay open
  sync             WRITE answers FILE_SYNC and means it
  truncate SIZE    another client's doing
  save FILE        "disk" content into FILE;   save-all FILE: with unflushed
  counts           prints the number of calls of each kind as JSON
With FAKE_PORTMAP set it answers on port 111 as well, for clients that cannot be told a port.
"""
import json
import os
import socket
import struct
import sys
import threading
import time

LOCK = threading.RLock()
OPS = {0: "null", 1: "getattr", 2: "setattr", 3: "lookup", 4: "access", 5: "readlink", 6: "read",
       7: "write", 8: "create", 12: "remove", 19: "fsinfo", 18: "fsstat", 20: "pathconf",
       21: "commit"}
DIR, FILE = b"D" * 16, b"F" * 16
STALE, NOENT = 70, 2


class State:
    def __init__(self, size):
        self.disk = bytearray(size)
        self.mem = bytearray(size)
        self.boot = 1
        self.status = {}            # op -> [code, count]
        self.limit = {"read": -1, "write": -1}
        self.empty = {"read": 0, "write": 0}
        self.extra = {"read": 0, "write": 0}
        self.fsinfo = (1 << 20, 1 << 20)
        self.silent = self.garbage = self.pace = 0
        self.hold = {}              # op -> count
        self.held = []              # (connection, call)
        self.sync = self.verifier_at_write = False
        self.lose_at_commit = 0
        self.counts = {}
        self.unstable = 0
        self.conns = set()

    def lose(self):
        self.mem = bytearray(self.disk)
        self.boot += 1

    def verf(self):
        return struct.pack(">Q", 0x1234567800000000 + self.boot)


S = None
PORT = 0


class Xdr:
    def __init__(self, data):
        self.d, self.at = data, 0

    def u32(self):
        self.at += 4
        return struct.unpack_from(">I", self.d, self.at - 4)[0]

    def u64(self):
        self.at += 8
        return struct.unpack_from(">Q", self.d, self.at - 8)[0]

    def opaque(self):
        n = self.u32()
        v = self.d[self.at:self.at + n]
        self.at += (n + 3) & ~3
        return v


def opaque(b):
    return struct.pack(">I", len(b)) + b + b"\0" * (-len(b) % 4)


def u32(*v):
    return struct.pack(">%dI" % len(v), *v)


def fattr(fh):
    is_dir = fh == DIR
    size = 4096 if is_dir else len(S.mem)
    return (u32(2 if is_dir else 1, 0o755 if is_dir else 0o644, 1, 0, 0) +
            struct.pack(">QQ", size, size) + u32(0, 0) +
            struct.pack(">QQ", 99, 1 if is_dir else 2) + u32(1, 0, 1, 0, 1, 0))


def post(fh):
    return u32(1) + fattr(fh)


def wcc(fh):
    return u32(0) + post(fh)


def op_read(x):
    x.opaque()
    off, count = x.u64(), x.u32()
    data = bytes(S.mem[off:off + count])
    if S.empty["read"]:
        S.empty["read"] -= 1
        data = b""
    elif S.limit["read"] >= 0:
        data = data[:S.limit["read"]]
    eof = off + len(data) >= len(S.mem)
    if S.extra["read"]:
        data = (data + b"\xee" * (S.extra["read"] + count))[:count + S.extra["read"]]
    return u32(0) + post(FILE) + u32(len(data), int(eof)) + opaque(data)


def op_write(x):
    x.opaque()
    off, count, stable = x.u64(), x.u32(), x.u32()
    data = x.opaque()[:count]
    if S.verifier_at_write:
        S.lose()
    if S.empty["write"]:
        S.empty["write"] -= 1
        data = b""
    elif S.limit["write"] >= 0:
        data = data[:S.limit["write"]]
    end = off + len(data)
    stable = 2 if S.sync else stable
    for content in (S.mem, S.disk) if stable else (S.mem,):
        if end > len(content):
            content.extend(b"\0" * (end - len(content)))
        content[off:end] = data
    S.unstable += stable == 0
    return u32(0) + wcc(FILE) + u32(len(data) + S.extra["write"], stable) + S.verf()


def op_commit(x):
    if S.lose_at_commit:
        S.lose_at_commit -= 1
        S.lose()
    S.disk = bytearray(S.mem)
    return u32(0) + wcc(FILE) + S.verf()


def op_setattr(x):
    x.opaque()
    for _ in range(3):                  # mode, uid, gid
        if x.u32():
            x.u32()
    if x.u32():
        size = x.u64()
        for content in (S.mem, S.disk):
            del content[size:]
            content.extend(b"\0" * (size - len(content)))
    return u32(0) + wcc(FILE)


def op_fsinfo(x):
    rt, wt = S.fsinfo
    return (u32(0) + post(DIR) + u32(rt, rt, 1, wt, wt, 1, 4096) + struct.pack(">Q", 1 << 62) +
            u32(0, 1, 0x1b))


def nfs_call(proc, x):
    op = OPS.get(proc)
    S.counts[op] = S.counts.get(op, 0) + 1
    if op == "null":
        return b""
    if op in S.status and S.status[op][1]:
        S.status[op][1] -= 1
        code = S.status[op][0]
        return u32(code) + (b"" if op == "getattr" else
                            u32(0) if op in ("read", "lookup", "fsinfo") else u32(0, 0))
    if op == "getattr":
        return u32(0) + fattr(x.opaque())
    if op == "lookup":
        x.opaque()
        return u32(0) + opaque(FILE) + post(FILE) + post(DIR)
    if op == "create":
        return u32(0) + u32(1) + opaque(FILE) + post(FILE) + wcc(DIR)
    if op == "access":
        return u32(0) + post(x.opaque()) + u32(x.u32())
    fn = {"read": op_read, "write": op_write, "commit": op_commit, "setattr": op_setattr,
          "fsinfo": op_fsinfo}.get(op)
    return fn(x) if fn else u32(10004, 0, 0)


def answer(data, c=None):
    """c: where it came from; None: it has been held."""
    x = Xdr(data)
    xid, _, _, prog, _, proc = (x.u32() for _ in range(6))
    for _ in range(2):                  # credentials, verifier
        x.u32()
        x.opaque()
    with LOCK:
        if proc and S.silent:
            S.silent -= 1
            return None
        if c and prog == 100003 and S.hold.get(OPS.get(proc)):
            S.hold[OPS[proc]] -= 1
            S.held.append((c, data))
            S.counts["held"] = S.counts.get("held", 0) + 1
            return None
        if prog == 100000:              # portmapper, GETPORT: all is here
            body = u32(PORT) if proc == 3 else b""
        elif prog == 100005:            # MNT, EXPORT: an empty list
            body = u32(0) + opaque(DIR) + u32(1, 1) if proc == 1 else u32(0) if proc == 5 else b""
        else:
            body = nfs_call(proc, x)
        if proc and S.garbage:
            S.garbage -= 1
            body = b"\0\0\0\0" + b"\xff" * 24
    return u32(xid, 1, 0, 0, 0, 0) + body


def recv_all(c, n):
    data = b""
    while len(data) < n:
        part = c.recv(n - len(data))
        if not part:
            raise OSError("closed")
        data += part
    return data


def send(c, reply):
    c.sendall(struct.pack(">I", 0x80000000 | len(reply)) + reply)


def release():
    held, S.held, S.hold = S.held, [], {}
    for c, data in held:
        reply = answer(data)
        try:
            send(c, reply)
        except OSError:
            pass                        # the client has closed it; executed all the same


def serve(c):
    try:
        while True:
            data, last = b"", False
            while not last:
                mark = struct.unpack(">I", recv_all(c, 4))[0]
                last = mark >> 31
                data += recv_all(c, mark & 0x7fffffff)
            reply = answer(data, c)
            time.sleep(S.pace / 1000)
            if reply is not None:
                send(c, reply)
    except OSError:
        pass
    with LOCK:
        S.conns.discard(c)
    c.close()


def accept(listener):
    while True:
        c, _ = listener.accept()
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with LOCK:
            S.conns.add(c)
        threading.Thread(target=serve, args=(c,), daemon=True).start()


def command(line):
    w = line.split()
    name, n = w[0], [int(v) for v in w[1:] if v.lstrip("-").isdigit()]
    if name == "lose":
        S.lose()
    elif name == "crash":
        S.lose()
        S.held, S.hold = [], {}
        for c in list(S.conns):
            c.shutdown(socket.SHUT_RDWR)
    elif name == "lose-at-commit":
        S.lose_at_commit = n[0] if n else 1
    elif name == "verifier-at-write":
        S.verifier_at_write = n[0] != 0 if n else True
    elif name == "status":
        S.status[w[1]] = n
    elif name in ("short-write", "short-read"):
        S.limit[name[6:]] = n[0]
    elif name in ("empty-write", "empty-read"):
        S.empty[name[6:]] = n[0]
    elif name in ("long-write", "long-read"):
        S.extra[name[5:]] = n[0]
    elif name == "fsinfo":
        S.fsinfo = (n[0], n[1])
    elif name in ("silent", "garbage", "pace"):
        setattr(S, name, n[0])
    elif name == "hold":
        S.hold[w[1]] = n[0]
    elif name == "bad-record":
        for c in list(S.conns):
            c.sendall(b"\x7f" * 64)
    elif name == "release":
        release()
    elif name == "sync":
        S.sync = True
    elif name == "truncate":
        for content in (S.mem, S.disk):
            del content[n[0]:]
            content.extend(b"\0" * (n[0] - len(content)))
    elif name in ("save", "save-all"):
        with open(w[1], "wb") as f:
            f.write(S.disk if name == "save" else S.mem)
    elif name == "counts":
        return json.dumps(dict(S.counts, unstable=S.unstable))
    else:
        return "unknown command: " + name
    return "ok"


def listen(port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    return listener.getsockname()[1]


def main():
    global S, PORT
    S = State(int(sys.argv[2]))
    for line in sys.argv[3:]:
        command(line)
    PORT = listen(int(sys.argv[1]))
    if os.environ.get("FAKE_PORTMAP"):
        listen(111)
    print("ready", PORT, flush=True)
    for line in sys.stdin:
        if line.strip():
            with LOCK:
                answer_text = command(line)
            print(answer_text, flush=True)
    os._exit(0)


main()
