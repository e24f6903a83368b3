#!/usr/bin/env python3
"""nbd-faults.t - NBD over a network that cuts, stalls and refuses, and from a server that
loses its cache, fails and lies: nothing flushed is lost, no read is wrong, EIO when the
policy's time is over.  N9-N12 and their like."""
import os
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import faultlib
from faultlib import Child, Io, Proxy, Tap

SIZE = 4 << 20
K = 1024
faultlib.isolate()
tap = Tap()


class Nbd(Child):
    def __init__(self, *commands):
        super().__init__("fake_nbd.py", 0, SIZE, *commands)

    def url(self, *args, port=None):
        return "nbd://127.0.0.1:%d/x" % (port or self.port) + ("?" + "&".join(args) if args else "")

    def counts(self):
        import json
        return json.loads(self.do("counts"))

    def content(self, which="save"):
        with tempfile.NamedTemporaryFile() as f:
            self.do("%s %s" % (which, f.name))
            return f.read()


def case(fn):
    """With a server, a proxy before it, and a disk through them."""
    def test():
        commands, args = getattr(fn, "commands", ()), getattr(fn, "args", ())
        with Nbd(*commands) as s, Proxy(s.port) as p:
            with Io(s.url(*args, port=p.port), *getattr(fn, "flags", ())) as io:
                fn(s, p, io)
    test.__doc__ = fn.__doc__
    return test


def lost_cache(s, p, io):
    """N16: a server that lost acknowledged, unflushed writes gets them again, in order"""
    io.good("write -P 1 0 64k")
    io.good("flush")
    io.good("write -P 2 0 64k")
    io.good("write -P 3 32k 64k")
    io.good("write -z 80k 8k")
    io.good("discard 88k 4k")
    s.do("crash")
    io.good("read -P 2 0 32k")
    io.good("read -P 3 32k 48k")
    io.good("flush")
    got = s.content()
    assert got[:32 * K] == b"\2" * 32 * K and got[32 * K:80 * K] == b"\3" * 48 * K
    assert not any(got[80 * K:92 * K]) and got[92 * K:96 * K] == b"\3" * 4 * K
    assert "verification failed" not in io.text and "connected again" in io.text, io.text


lost_cache.flags = ("-d", "unmap")


def lost_again(s, p, io):
    """N16: and once more, when it is lost again before the flush"""
    for i in range(6):
        io.good("write -P %d %dk 64k" % (i + 1, 32 * i))
        s.do("crash")
    io.good("flush")
    got = s.content()
    for i in range(6):
        assert got[32 * K * i:32 * K * (i + 1)] == bytes([i + 1]) * 32 * K, i


def lost_fua(s, p, io):
    """N16: a FUA write over an unflushed one is the newer one after a replay, too"""
    io.good("write -P 1 0 64k")
    io.good("write -f -P 2 0 4k")
    s.do("crash")
    io.good("flush")
    assert s.content()[:8 * K] == b"\2" * 4 * K + b"\1" * 4 * K


def unsafe_lost(s, p, io):
    """with cache=unsafe a possible loss makes closing fail"""
    io.good("write -P 1 0 64k")
    s.do("crash")
    io.good("read 0 4k")
    status, out = io.end()
    assert status and "may have lost written data" in io.text, (status, io.text)


unsafe_lost.flags = ("-t", "unsafe")


def unsafe_flushes(s, p, io):
    """with cache=unsafe what was written is flushed at the end"""
    io.good("write -P 1 0 64k")
    status, _ = io.end()
    assert not status and s.content()[:64 * K] == b"\1" * 64 * K


unsafe_flushes.flags = ("-t", "unsafe")


def replay_fails(s, p, io):
    """a write that cannot be made again: every later flush fails"""
    io.good("write -P 1 0 64k")
    s.do("fail write 28 1000000")
    s.do("crash")
    io.bad("flush", "No space left")
    s.do("fail write 28 0")
    io.good("write -P 1 0 64k")
    io.bad("flush", "No space left")


def flush_fails(s, p, io):
    """N22: a flush that the server fails is an error for ever"""
    io.good("write -P 1 0 64k")
    s.do("fail flush 5 1")
    io.bad("flush", "Input/output error")
    io.bad("flush", "Input/output error")


def no_flush(s, p, io):
    """a server without flush: nothing is kept, nothing asked"""
    io.good("write -P 1 0 64k")
    io.good("flush")
    assert not s.counts().get("flush")


no_flush.commands = ("flags trim",)


def server_errors(s, p, io):
    """the server's errors are the caller's: EIO, ENOSPC, EPERM; and it goes on"""
    for number, words in ((5, "Input/output error"), (28, "No space left"), (1, "not permitted")):
        s.do("fail write %d 1" % number)
        io.bad("write -P 1 0 4k", words)
    io.good("write -P 1 0 4k")


def journal_bounded(s, p, io):
    """without flushes of the user's the server is flushed before too much is kept"""
    for i in range(18):
        io.good("write -q -P %d 0 4M" % (i + 1))
    assert s.counts().get("flush", 0) >= 1
    s.do("crash")
    io.good("read -P 18 0 4M")


def resized(s, p, io):
    """another size after coming back: not the same export, EIO in the end"""
    io.good("write -P 1 0 64k")
    s.do("size %d" % (SIZE * 2))
    s.do("cut")
    io.bad("read 0 4k", "Input/output error", 20)
    assert "size changed" in io.text, io.text
    s.do("size %d" % SIZE)
    for _ in range(12):
        if "failed" not in io.do("read -P 1 0 4k"):
            break
        io.do("sleep 1000")
    io.good("read -P 1 0 64k")


resized.args = ("timeout=2", "reconnect=2")


def lies(s, p, io):
    """N21: bad magic, unknown handles: the connection is dropped, the command asked again"""
    io.good("write -P 7 0 64k")
    for lie in ("magic", "handle"):
        s.do("lie " + lie)
        io.good("read -P 7 0 64k")
    s.do("lie error")
    io.bad("read 0 64k", "failed")
    io.good("read -P 7 0 64k")


def n11_up(s, p, io):
    """N11: cut after every few bytes of handshake and command: a write resumes"""
    for at in range(0, 330, 13):
        p.do("cut-next up %d -" % at)
        p.do("cut")
        io.good("write -P 7 8k 64")
    assert s.content("save-all")[8 * K:8 * K + 64] == b"\7" * 64


def n11_down(s, p, io):
    """N11: cut after every few bytes of handshake and replies: a read resumes"""
    io.good("write -P 7 8k 64")
    for at in range(0, 330, 13):
        p.do("cut-next down %d -" % at)
        p.do("cut")
        io.good("read -P 7 8k 64")
    assert "verification failed" not in io.text, io.text


def n11_large(s, p, io):
    """N11: cuts in the middle of large writes and reads, on several connections"""
    for i in range(4):
        p.do("cut-next up %d - %d" % (300000 * i + 177, 200001))
        p.do("cut")
        io.good("aio_write -q -P %d 0 1M" % (i + 1))
        io.good("aio_write -q -P %d 1M 3M" % (i + 1))
        io.good("aio_flush", 30)
        p.do("cut-next down %d - %d" % (500000 * i + 299, 123457))
        p.do("cut")
        io.good("read -P %d 0 4M" % (i + 1), 30)
    io.good("flush")
    assert s.content() == b"\4" * SIZE


n11_large.commands = ("flags flush fua multi",)
n11_large.args = ("connections=3",)


def n9_stall(s, p, io):
    """N9: a black hole for 2 s, shorter than the timeout: only slow"""
    p.do("stall")
    threading.Timer(2, lambda: p.do("go")).start()
    io.good("write -P 3 0 64k", 10)
    io.good("read -P 3 0 64k")
    assert "reconnecting" not in io.text


def n9_for_ever(s, p, io):
    """N9: a black hole for ever: EIO after timeout + reconnect, and the program ends"""
    p.do("stall")
    t = time.monotonic()
    io.bad("write -P 3 0 64k", "Input/output error", 15)
    assert 1 <= time.monotonic() - t < 8
    status, _ = io.end(20)
    assert time.monotonic() - t < 15


n9_for_ever.args = ("timeout=1", "reconnect=2")


def n12_refused(s, p, io):
    """N12: refused for 2 s: tried again with growing pauses, then everything goes on"""
    io.good("write -P 3 0 64k")
    p.do("down")
    threading.Timer(2, lambda: p.do("up")).start()
    io.good("read -P 3 0 64k", 20)
    io.good("flush")
    assert s.content()[:64 * K] == b"\3" * 64 * K
    assert "reconnecting" in io.text and "connected again" in io.text, io.text


def n12_over(s, p, io):
    """N12: refused for longer than reconnect=: EIO, at once for later requests, then back"""
    io.good("write -P 3 0 64k")
    p.do("down")
    io.bad("read 0 4k", "Input/output error", 20)
    t = time.monotonic()
    io.bad("read 0 4k", "Input/output error", 20)
    assert time.monotonic() - t < 1
    assert "given up after 2 s" in io.text, io.text
    p.do("up")
    for _ in range(12):
        if "failed" not in io.do("read -P 3 0 4k"):
            break
        io.do("sleep 1000")
    io.good("flush")
    assert s.content()[:64 * K] == b"\3" * 64 * K


n12_over.args = ("timeout=2", "reconnect=2")


def n12_count(s, p, io):
    """N12: the number of attempts is bounded by the steps 0.1, 0.2, 0.4 ... s"""
    before = p.connections()
    p.do("refuse 1000")
    p.do("cut")
    io.bad("read 0 4k", "Input/output error", 20)
    assert 3 <= p.connections() - before <= 8, p.connections() - before


n12_count.args = ("timeout=2", "reconnect=3")

for fn in (lost_cache, lost_again, lost_fua, unsafe_lost, unsafe_flushes, replay_fails, flush_fails,
           no_flush, server_errors, journal_bounded, resized, lies, n11_up, n11_down, n11_large,
           n9_stall, n9_for_ever, n12_refused, n12_over, n12_count):
    if not sys.argv[1:] or fn.__name__ in sys.argv[1:]:
        tap.run(case(fn))


def strange_servers():
    """servers that make no sense are refused with a line: sizes, read-only; old style is not"""
    import subprocess
    for commands, words, good in (
            (["size 1000", "blocks 512 4096"], "multiple of minimum block size", False),
            (["size 9223372036854775807"], "size makes no sense", False),
            (["oldstyle on"], "virtual size: 4 MiB", True)):
        with Nbd(*commands) as s:
            r = subprocess.run([faultlib.IMG, "info", s.url()], capture_output=True, text=True,
                               timeout=20, check=False)
            assert words in r.stdout + r.stderr and (r.returncode == 0) == good, (commands, r)
            if not good:
                assert r.returncode == 1 and "Could not open 'nbd://" in r.stderr, r
    with Nbd("flags flush read-only") as s:
        r = subprocess.run([faultlib.IO, "-f", "raw", "-c", "write 0 4k", s.url()],
                           capture_output=True, text=True, timeout=20, check=False)
        assert r.returncode == 1 and "without write permission" in r.stderr, r


if not sys.argv[1:]:
    tap.run(strange_servers)
tap.end()
