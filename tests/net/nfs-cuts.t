#!/usr/bin/env python3
"""nfs-cuts.t - NFS over a network that cuts, stalls, refuses, repeats and reorders
(proxy.py): the same bytes arrive, or EIO when the policy's time is over.  N9-N12."""
import os
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import faultlib
import outages
from faultlib import Fake, proxied
import tap

SIZE = 4 << 20
K = 1024
faultlib.isolate()


def disk(*commands):
    return Fake(SIZE, *commands)


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


n10_late.args = ("timeout=1", "reconnect=20")


tap.attempt_all(*(proxied(disk, fn, *args) for args, cases in (
    (("connections=1",), (n11_up, n11_down, n10_duplicate, n10_swapped, n10_late)),
    (("connections=2",), (n11_two,) + outages.CASES)) for fn in cases))
tap.finish()
