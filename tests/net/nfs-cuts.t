#!/usr/bin/env python3
"""nfs-cuts.t - NFS over a network that cuts, stalls, refuses, repeats and reorders
(proxy.py): the same bytes arrive, or EIO when the policy's time is over.  N9-N12."""
import os
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import faultlib
from faultlib import Fake, Io, Proxy, Tap

SIZE = 4 << 20
K = 1024
faultlib.isolate()
tap = Tap()


def both(fn):
    """With a server, a proxy before it, and a disk through them; mount goes directly."""
    def test():
        args = getattr(fn, "args", ("connections=1",))
        with Fake(SIZE) as s, Proxy(s.port) as p:
            with Io(s.url(*args, port=p.port)) as io:
                fn(s, p, io)
    test.__doc__ = fn.__doc__
    tap.run(test)


def exchange(s, p, io, direction, command):
    """Cut a connection a little later each time, through the command's call and reply."""
    io.good("read 0 512")
    for at in range(0, 400, 11):
        # The NULL call and its reply come first on each connection: 44 and 28 bytes; the
        # one after the cut is left alone.
        before = p.connections()
        p.do("cut-next %s %d -" % (direction, at))
        p.do("cut")
        io.good(command)
        assert p.connections() > before


def n11_up(s, p, io):
    """N11: cut after every few bytes of the connection's first calls: a write resumes"""
    exchange(s, p, io, "up", "write -P 7 8k 64")
    assert s.content("save-all")[8 * K:8 * K + 64] == b"\7" * 64


def n11_down(s, p, io):
    """N11: cut after every few bytes of the replies: a read resumes, with the right bytes"""
    io.good("write -P 7 8k 64")
    exchange(s, p, io, "down", "read -P 7 8k 64")


def n11_two(s, p, io):
    """N11: cuts in the middle of large writes and reads on two connections"""
    for i in range(4):
        p.do("cut-next up %d - %d" % (300000 * i + 77, 200001))
        p.do("cut")
        io.good("write -P %d 0 3M" % (i + 1), 30)
        p.do("cut-next down %d - %d" % (500000 * i + 99, 123457))
        p.do("cut")
        io.good("read -P %d 0 3M" % (i + 1), 30)
    io.good("flush")
    assert s.content()[:3 << 20] == b"\4" * (3 << 20)


n11_two.args = ("connections=2",)


def n10_duplicate(s, p, io):
    """N10: replies that come twice do no harm"""
    io.good("write -P 3 0 64k")
    p.do("duplicate 3")
    for _ in range(6):
        io.good("read -P 3 0 4k")
    io.good("flush")


def n10_swapped(s, p, io):
    """N10: replies in another order belong to their own calls"""
    for i in range(8):
        io.good("write -P %d %dk 4k" % (i + 1, 4 * i))
    p.do("swap 4")
    for i in range(8):
        io.good("aio_read -P %d %dk 4k" % (i + 1, 4 * i))
    io.good("aio_flush")
    assert "verification failed" not in io.text, io.text


def n10_late(s, p, io):
    """N10: a reply after the timeout finds its connection closed; the call was made again"""
    io.good("write -P 3 0 64k")
    t = time.monotonic()
    p.do("stall")
    # The stalled connection is given up after a second; what it held comes late.
    threading.Timer(1.5, lambda: p.do("go")).start()
    io.good("read -P 3 0 4k", 10)
    assert time.monotonic() - t > 0.9
    io.good("read -P 3 0 4k")


n10_late.args = ("connections=1", "timeout=1", "reconnect=20")


def n9_stall(s, p, io):
    """N9: a black hole for 2 s, shorter than the timeout: only slow"""
    p.do("stall")
    threading.Timer(2, lambda: p.do("go")).start()
    io.good("write -P 3 0 64k", 10)
    io.good("read -P 3 0 64k")


def n9_for_ever(s, p, io):
    """N9: a black hole for ever: EIO after timeout + reconnect, and the program ends"""
    p.do("stall")
    t = time.monotonic()
    io.bad("write -P 3 0 64k", "Input/output error", 15)
    took = time.monotonic() - t
    assert 1 <= took < 8, took
    t = time.monotonic()
    status, _ = io.end(20)
    assert time.monotonic() - t < 10
    assert status, "an error must not be forgotten"


n9_for_ever.args = ("connections=2", "timeout=1", "reconnect=2")


def n12_refused(s, p, io):
    """N12: refused for 3 s: tried again with growing pauses, then everything goes on"""
    io.good("write -P 3 0 64k")
    p.do("down")
    threading.Timer(3, lambda: p.do("up")).start()
    t = time.monotonic()
    io.good("read -P 3 0 64k", 20)
    assert 2.5 < time.monotonic() - t < 10
    io.good("flush")
    assert s.content()[:64 * K] == b"\3" * 64 * K
    assert "reconnecting" in io.text and "connected again" in io.text, io.text


def n12_over(s, p, io):
    """N12: refused for longer than reconnect=: EIO, at once for later requests, then back"""
    io.good("write -P 3 0 64k")
    io.good("flush")
    p.do("down")
    t = time.monotonic()
    io.bad("read 0 4k", "Input/output error", 20)
    assert 1.5 < time.monotonic() - t < 8, time.monotonic() - t
    t = time.monotonic()
    io.bad("read 0 4k", "Input/output error", 20)
    assert time.monotonic() - t < 2, time.monotonic() - t      # not timeout + reconnect
    assert "given up after 2 s" in io.text, io.text
    p.do("up")
    for _ in range(12):
        if "failed" not in io.do("read -P 3 0 4k"):
            break
        io.do("sleep 1000")
    io.good("read -P 3 0 64k")


n12_over.args = ("connections=2", "timeout=2", "reconnect=2")


def n12_count(s, p, io):
    """N12: the number of attempts is bounded by the steps 0.1, 0.2, 0.4 ... s"""
    before = p.connections()
    p.do("refuse 1000")
    p.do("cut")
    io.bad("read 0 4k", "Input/output error", 20)
    tries = p.connections() - before
    assert 3 <= tries <= 8, tries


n12_count.args = ("connections=2", "timeout=2", "reconnect=3")


for case in (n11_up, n11_down, n11_two, n10_duplicate, n10_swapped, n10_late, n9_stall,
             n9_for_ever, n12_refused, n12_over, n12_count):
    both(case)
tap.end()
