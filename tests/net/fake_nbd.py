#!/usr/bin/env python3
"""fake_nbd.py - an NBD server with a volatile cache, which loses it when told to.

  fake_nbd.py LISTEN SIZE [COMMAND]...  a port on 127.0.0.1; 0: any.  Prints "ready PORT";
                                        commands also on stdin, a line each, answered by "ok"
  crash            forget what is not flushed, cut all connections
  cut              cut all connections
  flags NAME...    what the export offers: flush fua trim zeroes fast-zero multi read-only
  blocks MIN MAX   block sizes it advertises; 0 0: none
  size N           the export's size, for later connections
  fail OP ERRNO N  the next N commands of that kind (read write flush trim zeroes) fail
  hold N           the next N writes are neither executed nor answered, nor is what follows
                   on their connections, until
  release          they are, whether their connections are there or not; crash forgets them
  pace MS          every reply takes that long
  lie WHAT         the next reply: magic, handle (unknown), error (an odd number)
  nonsense         bytes that are no reply, on all connections, which stay open
  oldstyle on|off  no fixed newstyle handshake
  counts           what there has been, as JSON
  save FILE        the stable part;  save-all FILE: the cache, too
"""
import json
import os
import socket
import struct
import sys
import threading
import time

LOCK = threading.RLock()
FLAGS = {"read-only": 2, "flush": 4, "fua": 8, "trim": 32, "zeroes": 64, "multi": 256,
         "fast-zero": 2048}
OPS = ["read", "write", "disc", "flush", "trim", "cache", "zeroes", "status"]


class Server:
    size = 0
    stable = cache = None
    flags = 1 | 4 | 8 | 32 | 64
    blocks = (0, 0)
    fail = {}
    lie = None
    hold = epoch = pace = 0
    go = threading.Event()
    oldstyle = False
    counts = {}
    conns = set()


def recv(s, n):
    data = b""
    while len(data) < n:
        part = s.recv(n - len(data))
        if not part:
            raise OSError("gone")
        data += part
    return data


def option_reply(s, opt, kind, data=b""):
    s.sendall(struct.pack(">QIII", 0x3e889045565a9, opt, kind, len(data)) + data)


def handshake(s):
    """Until the export is chosen."""
    if Server.oldstyle:
        s.sendall(b"NBDMAGIC" + struct.pack(">QQI", 0x00420281861253, Server.size,
                                            Server.flags) + bytes(124))
        return
    s.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
    recv(s, 4)
    while True:
        _, opt, length = struct.unpack(">QII", recv(s, 16))
        recv(s, length)
        if opt == 7:            # GO
            option_reply(s, opt, 3, struct.pack(">HQH", 0, Server.size, Server.flags))
            if Server.blocks[1]:
                option_reply(s, opt, 3, struct.pack(">HIII", 3, Server.blocks[0], 4096,
                                                    Server.blocks[1]))
            option_reply(s, opt, 1)
            return
        option_reply(s, opt, 0x80000001)        # unsupported: also structured replies


def change(op, flags, off, data):
    end = off + len(data)
    Server.cache[off:end] = data
    if flags & 1:               # FUA
        Server.stable[off:end] = data


def execute(op, flags, off, length, data):
    """errno, data of the reply"""
    Server.counts[op] = Server.counts.get(op, 0) + 1
    if Server.fail.get(op, (0, 0))[1] > 0:
        err, n = Server.fail[op]
        Server.fail[op] = (err, n - 1)
        return err, b""
    if op == "read":
        return 0, bytes(Server.cache[off:off + length])
    if op == "write":
        change(op, flags, off, data)
    elif op in ("trim", "zeroes"):
        change(op, flags, off, bytes(length))
    elif op == "flush":
        Server.stable[:] = Server.cache
    return 0, b""


def serve(s):
    try:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handshake(s)
        while True:
            magic, flags, kind, handle, off, length = struct.unpack(">IHHQQI", recv(s, 28))
            assert magic == 0x25609513
            data = recv(s, length) if kind == 1 else b""
            late = False
            if kind == 2:
                return
            if kind == 1 and Server.hold:
                Server.hold -= 1
                Server.counts["held"] = Server.counts.get("held", 0) + 1
                epoch = Server.epoch
                Server.go.wait()
                if Server.epoch != epoch:
                    return
                late = True
            with LOCK:
                if s not in Server.conns and not late:
                    return
                err, out = execute(OPS[kind], flags, off, length, data)
                lie, Server.lie = Server.lie, None
            time.sleep(Server.pace / 1000)
            s.sendall(struct.pack(">IIQ", 0x12345678 if lie == "magic" else 0x67446698,
                                  12345 if lie == "error" else err,
                                  handle ^ (1 << 40) if lie == "handle" else handle) +
                      (b"" if lie == "error" else out))
    except (OSError, struct.error, AssertionError):
        pass
    finally:
        with LOCK:
            Server.conns.discard(s)
        s.close()


def accept(listener):
    while True:
        s, _ = listener.accept()
        with LOCK:
            Server.conns.add(s)
            Server.counts["connections"] = Server.counts.get("connections", 0) + 1
        threading.Thread(target=serve, args=(s,), daemon=True).start()


def cut():
    for s in list(Server.conns):
        Server.conns.discard(s)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.shutdown(socket.SHUT_RDWR)


def release():
    Server.go.set()
    Server.go = threading.Event()


def command(line):
    w = line.split()
    if w[0] == "crash":
        Server.cache[:] = Server.stable
        Server.epoch += 1
        Server.hold = 0
        release()
        cut()
    elif w[0] == "hold":
        Server.hold = int(w[1])
    elif w[0] == "pace":
        Server.pace = int(w[1])
    elif w[0] == "release":
        release()
    elif w[0] == "nonsense":
        for s in list(Server.conns):
            s.sendall(b"\x7f" * 64)
    elif w[0] == "cut":
        cut()
    elif w[0] == "flags":
        Server.flags = 1 + sum(FLAGS[x] for x in w[1:])
    elif w[0] == "blocks":
        Server.blocks = int(w[1]), int(w[2])
    elif w[0] == "size":
        Server.size = int(w[1])
    elif w[0] == "fail":
        Server.fail[w[1]] = int(w[2]), int(w[3])
    elif w[0] == "lie":
        Server.lie = w[1]
    elif w[0] == "oldstyle":
        Server.oldstyle = w[1] == "on"
    elif w[0] == "counts":
        return json.dumps(Server.counts)
    elif w[0] in ("save", "save-all"):
        with open(w[1], "wb") as f:
            f.write(Server.stable if w[0] == "save" else Server.cache)
    else:
        return "unknown command: " + w[0]
    return "ok"


def main():
    Server.size = int(sys.argv[2])
    Server.stable, Server.cache = bytearray(Server.size), bytearray(Server.size)
    for line in sys.argv[3:]:
        command(line)
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", int(sys.argv[1])))
    s.listen(64)
    threading.Thread(target=accept, args=(s,), daemon=True).start()
    print("ready", s.getsockname()[1], flush=True)
    for line in sys.stdin:
        if line.strip():
            with LOCK:
                text = command(line)
            print(text, flush=True)
    os._exit(0)


main()
