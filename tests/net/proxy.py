#!/usr/bin/env python3
"""proxy.py - a TCP proxy that does to connections what networks do to them.

  proxy.py LISTEN TARGET [COMMAND]...   ports on 127.0.0.1; LISTEN 0: any.  Prints "ready PORT";
                                        commands also on stdin, a line each, answered by "ok"
  cut                   cut all connections (RST)
  cut-one N             cut the N-th connection (0: the first)
  cut-next DIR N...     the next connections are cut, each after so many bytes in direction DIR,
                        up (to the server) or down; "-" leaves one alone
  cut-every DIR N       every connection from now on; -1: none
  refuse COUNT          the next COUNT connections are closed at once
  down / up             close the listening port (connection refused) and all connections / back
  stall / go            forward nothing / go on
  stall-one N           forward nothing on the N-th connection (0: the first), until go
  delay MS              each piece waits so long
  frames rpc|iscsi      what the two below count: records of ONC RPC, or iSCSI PDUs
  duplicate COUNT       the next COUNT frames to the client are sent twice
  swap COUNT            the next COUNT frames to the client each change places with the one after
  count                 prints "connections bytes-up bytes-down" so far
"""
import os
import select
import socket
import struct
import sys
import threading
import time

LOCK = threading.RLock()


class Net:
    target = 0
    cuts = []                   # (direction, bytes) or None, for the next connections
    every = None
    refuse = 0
    stalled = False
    stalled_ones = set()
    delay = 0.0
    frames = "rpc"
    duplicate = swap = 0
    total = {"up": 0, "down": 0}
    connections = 0
    cut_count = 0               # how often all connections were cut
    pairs = set()
    listener = None


def reset(s):
    """Close with RST: nothing that is on its way arrives."""
    try:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
    except OSError:
        pass


def frame_length(data):
    """Length of the first whole frame in data, or 0."""
    if Net.frames == "rpc":
        n = struct.unpack(">I", data[:4])[0] & 0x7fffffff if len(data) >= 4 else None
        n = None if n is None else n + 4
    else:
        n = 48 + 4 * data[4] + ((int.from_bytes(data[5:8], "big") + 3) & ~3) \
            if len(data) >= 8 else None
    return n if n and len(data) >= n else 0


class Pair:
    def __init__(self, client, cut, number):
        self.client = client
        self.number = number
        self.cut = cut
        self.server = socket.create_connection(("127.0.0.1", Net.target))
        self.seen = {"up": 0, "down": 0}
        self.held = b""         # frames: an incomplete one
        self.swapped = b""      # waits for the next one
        for s in (self.client, self.server):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def stalled(self):
        return Net.stalled or self.number in Net.stalled_ones

    def reframe(self, data):
        """Frames to the client, some twice or out of order."""
        if not (Net.duplicate or Net.swap or self.held or self.swapped):
            return data
        self.held += data
        out = b""
        while (n := frame_length(self.held)):
            frame, self.held = self.held[:n], self.held[n:]
            if self.swapped:
                frame, self.swapped = frame + self.swapped, b""
            elif Net.swap:
                Net.swap -= 1
                self.swapped, frame = frame, b""
            elif Net.duplicate:
                Net.duplicate -= 1
                frame += frame
            out += frame
        if not (Net.duplicate or Net.swap or self.swapped):
            out, self.held = out + self.held, b""
        return out

    def forward(self, direction, data, dst):
        if Net.delay:
            time.sleep(Net.delay)
        with LOCK:
            if direction == "down":
                data = self.reframe(data)
            left = None
            if self.cut and self.cut[0] == direction:
                left = self.cut[1] - self.seen[direction]
                data = data[:left]
            self.seen[direction] += len(data)
            Net.total[direction] += len(data)
        dst.sendall(data)
        return left is None or self.seen[direction] < self.cut[1]

    def run(self):
        ways = {self.client: ("up", self.server), self.server: ("down", self.client)}
        try:
            if self.cut and self.cut[1] == 0:
                return
            while True:
                if self.stalled():
                    time.sleep(0.02)
                    continue
                for s in select.select(list(ways), [], [], 0.05)[0]:
                    if self.stalled():
                        break
                    direction, dst = ways[s]
                    data = s.recv(65536)
                    if not data:        # the end of one way is not that of the other
                        del ways[s]
                        dst.shutdown(socket.SHUT_WR)
                    if not (self.forward(direction, data, dst) if data else ways):
                        return
        except (OSError, ValueError):
            pass
        finally:
            self.close()

    def close(self):
        if self.cut:
            time.sleep(0.01)    # let what was sent arrive
        with LOCK:
            Net.pairs.discard(self)
        # What was sent before a cut is to arrive: an orderly end, towards the client.
        for s in (self.client, self.server):
            try:
                s.shutdown(socket.SHUT_RDWR)
                s.close()
            except OSError:
                pass


def connection(client):
    with LOCK:
        number = Net.connections
        Net.connections += 1
        cut = Net.cuts.pop(0) if Net.cuts else Net.every
        refused = Net.refuse > 0
        Net.refuse -= refused
        born = Net.cut_count
    try:
        if refused:
            reset(client)
            return
        pair = Pair(client, cut, number)
    except OSError:
        reset(client)
        return
    with LOCK:
        Net.pairs.add(pair)
        if born != Net.cut_count:       # "all connections" were cut while this one was made
            reset(pair.client)
            reset(pair.server)
    pair.run()


def accept(listener):
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=connection, args=(client,), daemon=True).start()


def listen(port):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", port))
    s.listen(64)
    threading.Thread(target=accept, args=(s,), daemon=True).start()
    Net.listener = s
    return s.getsockname()[1]


def cut_those(pairs):
    for pair in pairs:
        reset(pair.client)
        reset(pair.server)


def cut_all():
    Net.cut_count += 1
    cut_those(list(Net.pairs))


def command(line, port):
    w = line.split()
    name = w[0]
    if name == "cut":
        cut_all()
    elif name == "cut-one":
        cut_those([pair for pair in Net.pairs if pair.number == int(w[1])])
    elif name == "cut-next":
        Net.cuts = [None if n == "-" else (w[1], int(n)) for n in w[2:]]
    elif name == "cut-every":
        Net.every = (w[1], int(w[2])) if int(w[2]) >= 0 else None
    elif name == "refuse":
        Net.refuse = int(w[1])
    elif name == "down":
        Net.listener.shutdown(socket.SHUT_RDWR)
        Net.listener.close()
        cut_all()
    elif name == "up":
        listen(port)
    elif name in ("stall", "go"):
        Net.stalled = name == "stall"
        Net.stalled_ones = set()
    elif name == "stall-one":
        Net.stalled_ones.add(int(w[1]))
    elif name == "delay":
        Net.delay = int(w[1]) / 1000
    elif name == "frames":
        Net.frames = w[1]
    elif name in ("duplicate", "swap"):
        setattr(Net, name, int(w[1]))
    elif name == "count":
        return "%d %d %d" % (Net.connections, Net.total["up"], Net.total["down"])
    else:
        return "unknown command: " + name
    return "ok"


def main():
    Net.target = int(sys.argv[2])
    for line in sys.argv[3:]:
        command(line, 0)
    port = listen(int(sys.argv[1]))
    print("ready", port, flush=True)
    for line in sys.stdin:
        if line.strip():
            with LOCK:
                text = command(line, port)
            print(text, flush=True)
    os._exit(0)


main()
