#!/usr/bin/env python3
"""iscsi-sessions.t - one of two sessions is stalled or cut, and comes back late or never: no
write that it left behind undoes a newer one, and the disk goes on where that is safe.  N10,
N15 and N16, with fakeiscsi.py behind proxy.py."""
import os
import sys
import time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fakeiscsi import WRITE, Target
from faultlib import Io, Proxy
from iscsilib import SLACK, main, on_medium, test


def two(t, p, args=''):
    """A disk with two sessions; the next write occupies the first of them for a second, so
    that the one after it goes to the second."""
    io = Io(t.url('?sessions=2' + args).replace(':%d/' % t.port, ':%d/' % p.port))
    t.on(WRITE, lambda t, c, cmd: time.sleep(1), session=0)
    return io


def wait_for(what, limit):
    end = time.monotonic() + limit
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# An older write on each session, then newer ones of the same places.
OLD_NEW = ('aio_write -P 1 0 4k', 'aio_write -P 1 64k 4k', 'aio_flush', 'write -P 2 0 4k',
           'write -P 2 64k 4k', 'flush')


def newer_stay(t, io):
    out = io.finish()
    assert 'failed' not in out, out
    io.good('read -P 2 0 4k')
    io.good('read -P 2 64k 4k')
    assert 'verification failed' not in io.text, io.text
    on_medium(t, 0, 2, 4096)
    on_medium(t, 64 << 10, 2, 4096)


@test
def n10_stalled():
    """N10: one session stalls and cannot log in again: its old write does not come after a newer one"""
    t = Target()
    with Proxy(t.port) as p, two(t, p, '&timeout=2') as io:
        p.do('stall-one 1')
        t.refused = {1}
        io.start(*OLD_NEW)
        # If the old one were made again on the other session, and the newer ones after it:
        wait_for(lambda: t.count.get(WRITE, 0) >= 5, 5)
        # What was stalled arrives after all; then the server has read the end of that session.
        p.do('go')
        newer_stay(t, io)
        assert t.logins == 2, t.logins


@test
def n10_reinstated():
    """N10: the same, and it logs in again: then the target has ended what was on the old connection"""
    t = Target()
    with Proxy(t.port) as p, two(t, p, '&timeout=2') as io:
        p.do('stall-one 1')
        t.refused = {1}
        io.start(*OLD_NEW)
        wait_for(lambda: t.count.get(WRITE, 0) >= 5, 4)
        t.refused = set()
        assert wait_for(lambda: t.count.get(WRITE, 0) >= 5, 6 + SLACK), t.count
        p.do('go')
        newer_stay(t, io)
        assert t.logins == 3 and t.count[WRITE] == 5, (t.logins, t.count)


@test
def n10_for_ever():
    """N10: the session with the old write never ends: EIO when the policy's time is over, no newer write"""
    t = Target()
    with Proxy(t.port) as p, two(t, p, '&timeout=1&reconnect=2') as io:
        p.do('stall-one 1')
        t.refused = {1}
        io.start(*OLD_NEW[:3])
        start = time.monotonic()
        out = io.finish(10 + SLACK)
        assert 'Input/output error' in out and time.monotonic() - start < 4 + SLACK, out
        io.bad('write -P 2 64k 4k', 'Input/output error')
        t.refused = set()
        assert wait_for(lambda: 'failed' not in io.do('write -P 2 64k 4k'), 7 + SLACK), io.text
        p.do('go')
        io.good('flush')
        on_medium(t, 64 << 10, 2, 4096)


@test
def n15_one_cut():
    """N15: one session is cut in the middle of Data-Out and stays away: the other does it all; it is tried again"""
    t = Target()
    with Proxy(t.port) as p, two(t, p) as io:
        def cut(t, c, cmd):
            t.refused = {c.session}
            c.data_out(cmd, stop_at=200000)
        t.on(WRITE, cut, session=1)
        io.start('aio_write -P 1 0 4k', 'aio_write -P 1 1M 512k', 'aio_flush', 'write -P 2 1M 256k', 'flush')
        out = io.finish()
        assert 'failed' not in out and t.refused == {1}, (out, t.refused)
        on_medium(t, 1 << 20, 2, 256 << 10)
        on_medium(t, 1280 << 10, 1, 256 << 10)
        assert t.logins == 2 and io.text.count('reconnecting') == 1, (t.logins, io.text)
        t.refused = set()
        assert wait_for(lambda: io.good('sleep 500') and t.logins == 3, 12 + SLACK), t.logins
        io.good('read -P 2 1M 256k')
        assert io.text.count('reconnecting') == 1, io.text


@test
def n16_one_back():
    """N16: the cache is lost with both sessions, one comes back: written again before a flush succeeds"""
    t = Target()
    with Proxy(t.port) as p, two(t, p) as io:
        io.good('aio_write -P 1 0 64k')
        io.good('aio_write -P 2 1M 64k')
        io.good('aio_flush')
        t.refused = {1}
        t.lose_cache()
        t.cut()
        io.good('write -P 3 32k 64k')
        io.good('flush')
        on_medium(t, 0, 1, 32 << 10)
        on_medium(t, 32 << 10, 3, 64 << 10)
        on_medium(t, 1 << 20, 2, 64 << 10)
        assert t.logins == 3, t.logins


main()
