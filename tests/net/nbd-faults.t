#!/usr/bin/env python3
"""nbd-faults.t - NBD over a network that cuts, stalls and refuses, and from a server that
loses its cache, fails and lies: nothing flushed is lost, no read is wrong, EIO when the
policy's time is over.  N9-N12 and their like."""
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import faultlib
import outages
from faultlib import Nbd, proxied
import tap

SIZE = 4 << 20
K = 1024
faultlib.isolate()


def disk(*commands):
    return Nbd(SIZE, *commands)


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


def n9_late_write(s, p, io):
    """N9: a slow server's old write does not undo a newer one that was acknowledged"""
    s.do("hold 1")
    io.start("write -P 1 0 64k", "write -P 2 16k 16k", "flush")
    s.wait_for("write", 2, 3)           # of a client that sends the first one again
    s.do("release")
    out = io.finish()
    assert "failed" not in out, out
    got = s.content("save-all")
    assert got[:64 * K] == b"\1" * 16 * K + b"\2" * 16 * K + b"\1" * 32 * K, got[16 * K]
    assert "connected again" in io.text, io.text


n9_late_write.args = ("timeout=1",)


def n9_slow_then_dead(s, p, io):
    """N9: the slow server dies without having executed it: the write is made again"""
    s.do("hold 1")
    io.start("write -P 1 0 64k", "flush")
    assert not s.wait_for("write", 1, 2)
    s.do("crash")
    out = io.finish()
    assert "failed" not in out, out
    assert s.content()[:64 * K] == b"\1" * 64 * K


n9_slow_then_dead.args = ("timeout=1",)


def n9_nonsense(s, p, io):
    """N9: a reply that is nonsense is not the server's end: no write again before that"""
    s.do("hold 1")
    io.good("aio_write -P 1 0 4k")
    assert s.wait_for("held", 1, 5)
    s.do("nonsense")
    io.good("sleep 500")
    assert "reconnecting" in io.text and not s.counts().get("write"), (io.text, s.counts())
    s.do("crash")
    io.good("aio_flush")
    io.good("flush")
    assert s.content()[:4 * K] == b"\1" * 4 * K


def two(s, p, io):
    """The first of two connections has a write, of ones to the first 64 KiB, that the server
    holds, and reads behind it; the second, made for that reason, has nothing to do."""
    s.do("hold 1")
    io.good("aio_write -q -P 1 0 64k")
    for _ in range(8):
        io.good("aio_read -q 1M 4k")
    io.good("sleep 300")
    io.good("read 2M 4k")
    assert p.connections() == 2 and s.counts()["held"] == 1, s.counts()


def newer_stays(s, io):
    io.good("write -P 2 16k 16k")
    io.good("flush")
    got = s.content("save-all")
    assert got[:64 * K] == b"\1" * 16 * K + b"\2" * 16 * K + b"\1" * 32 * K, got[16 * K]


def n9_one_late(s, p, io):
    """N9: one of two connections is late: said once, the other goes on, nothing is made twice"""
    two(s, p, io)
    for i in range(12):
        io.good("write -q -P 5 2M 4k")
        io.good("read -P 5 2M 4k")
        io.good("sleep 200")
    assert io.text.count("reconnecting") == 1 and "connected again" not in io.text, io.text
    assert s.counts()["write"] == 12, s.counts()
    s.do("pace 80")             # the reads behind it are answered one after the other
    s.do("release")
    io.good("aio_flush")
    s.do("pace 0")
    assert io.text.count("connected again") == 1 and s.counts()["write"] == 13, (io.text, s.counts())
    newer_stays(s, io)
    assert p.connections() == 2


n9_one_late.commands = ("flags flush fua multi",)
n9_one_late.args = ("connections=2", "timeout=1")


def n9_one_for_ever(s, p, io):
    """N9: one of two connections is never answered: EIO when the policy's time is over"""
    two(s, p, io)
    t = time.monotonic()
    while "given up" not in io.text and time.monotonic() - t < 12:
        io.do("read -q 2M 4k")
        io.do("sleep 200")
    assert 2 <= time.monotonic() - t < 8, io.text
    io.do("aio_flush")
    assert "aio_write failed: Input/output error" in io.text, io.text
    assert io.text.count("given up") == 1, io.text
    # It is not forgotten: a newer write would come before it.
    io.bad("write -P 2 16k 16k", "Input/output error")
    s.do("release")
    while "connected again" not in io.text and time.monotonic() - t < 20:
        io.good("sleep 200")
    newer_stays(s, io)


n9_one_for_ever.commands = ("flags flush fua multi",)
n9_one_for_ever.args = ("connections=2", "timeout=1", "reconnect=2")


def n11_one_cut(s, p, io):
    """N11: one of two connections is cut while the other has an unanswered write: not made twice"""
    two(s, p, io)
    io.good("aio_read -q 2M 4k")
    p.do("cut-one 1")
    io.good("sleep 1000")
    assert "reconnecting" in io.text and not s.counts().get("write"), (io.text, s.counts())
    s.do("release")
    io.good("aio_flush")
    newer_stays(s, io)
    assert "connected again" in io.text, io.text


n11_one_cut.commands = ("flags flush fua multi",)
n11_one_cut.args = ("connections=2",)


def n16_one_cut(s, p, io):
    """N16: one of two connections is cut: what was acknowledged on either is made again"""
    two(s, p, io)
    io.good("write -q -P 3 2M 64k")
    s.do("release")
    io.good("aio_flush")
    p.do("cut-one 0")
    io.good("read -P 3 2M 64k")
    assert s.counts()["write"] == 4, s.counts()
    s.do("crash")
    io.good("read -P 3 2M 64k")
    io.good("flush")
    assert s.content()[:64 * K] == b"\1" * 64 * K and s.content()[2 << 20:][:64 * K] == b"\3" * 64 * K


n16_one_cut.commands = ("flags flush fua multi",)
n16_one_cut.args = ("connections=2",)


def strange_servers():
    """servers that make no sense are refused with a line: sizes, read-only; old style is not"""
    for commands, words, good in (
            (["size 1000", "blocks 512 4096"], "multiple of minimum block size", False),
            (["size 9223372036854775807"], "size makes no sense", False),
            (["oldstyle on"], "virtual size: 4 MiB", True)):
        with disk(*commands) as s:
            r = subprocess.run([tap.IMG, "info", s.url()], capture_output=True, text=True,
                               timeout=20, check=False)
            assert words in r.stdout + r.stderr and (r.returncode == 0) == good, (commands, r)
            if not good:
                assert r.returncode == 1 and "Could not open 'nbd://" in r.stderr, r
    with disk("flags flush read-only") as s:
        r = subprocess.run([tap.IO, "-f", "raw", "-c", "write 0 4k", s.url()],
                           capture_output=True, text=True, timeout=20, check=False)
        assert r.returncode == 1 and "without write permission" in r.stderr, r


tap.attempt_all(*(proxied(disk, fn) for fn in (
    lost_cache, lost_again, lost_fua, unsafe_lost, unsafe_flushes, replay_fails, flush_fails,
    no_flush, server_errors, journal_bounded, resized, lies, n11_up, n11_down, n11_large,
    n9_late_write, n9_slow_then_dead, n9_nonsense,
    n9_one_late, n9_one_for_ever, n11_one_cut, n16_one_cut) + outages.CASES), strange_servers)
tap.finish()
