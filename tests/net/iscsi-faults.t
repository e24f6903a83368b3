#!/usr/bin/env python3
"""iscsi-faults.t - a target that loses its cache, lies, changes and refuses: N15, N16 and
N19-N22 of the fault list, against fakeiscsi.py."""
import os
import random
import sys
import time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import fakeiscsi as fake
from fakeiscsi import READ, SYNC, WRITE, Target
from iscsilib import SLACK, failed, io, main, ok, on_medium, test


@test
def n15():
    """N15: a reset in the middle of Data-Out: the write is issued again, once"""
    t = Target()
    t.on(WRITE, fake.cut_data_out(200000))
    ok(io(t.url(), 'write -P 8 0 512k', 'flush'))
    on_medium(t, 0, 8, 512 << 10)
    assert t.count[WRITE] == 2, t.count


@test
def n15_order():
    """N15: an older acknowledged write, replayed, never overwrites a newer one"""
    t = Target()

    def lose(t, c, cmd):
        t.lose_cache()
        c.data_out(cmd, stop_at=200000)
    t.on(WRITE, lambda *a: False)
    t.on(WRITE, lose)
    ok(io(t.url(), 'write -P 1 0 512k', 'write -P 2 0 256k', 'read -P 2 0 256k', 'flush'))
    on_medium(t, 0, 2, 256 << 10)
    on_medium(t, 256 << 10, 1, 256 << 10)
    assert [n for op, _, n in t.log if op == WRITE] == [1024, 512, 1024, 512], t.log


@test
def n16():
    """N16: the cache is lost, UNIT ATTENTION 29/00 at the flush: replayed before it succeeds"""
    t = Target()
    t.on(SYNC, fake.power_loss)
    ok(io(t.url(), 'write -P 1 0 64k', 'write -P 2 32k 64k', 'write -z 128k 64k', 'flush'))
    on_medium(t, 0, 1, 32 << 10)
    on_medium(t, 32 << 10, 2, 64 << 10)


@test
def n16_read():
    """N16: the attention comes at a read: it sees the replayed writes"""
    t = Target()
    t.on(READ, fake.power_loss)
    ok(io(t.url(), 'write -P 1 0 64k', 'read -P 1 0 64k', 'flush'))
    on_medium(t, 0, 1, 64 << 10)


@test
def n16_behind():
    """N16: a read is told, and the flush right behind it is not: that one is asked again"""
    t = Target()

    def lose(t, c, cmd):
        time.sleep(1)                   # until the flush has arrived
        t.lose_cache()
        return False
    t.on(READ, lose)
    ok(io(t.url(), 'write -P 1 0 64k', 'aio_read -q 4M 4k', 'flush'))
    on_medium(t, 0, 1, 64 << 10)
    assert t.count[SYNC] >= 2, t.count


@test
def n16_restart():
    """N16: the target restarts without its cache, in the flush, then again in the replay"""
    t = Target()
    t.on(SYNC, fake.restart)
    ok(io(t.url(), 'write -P 1 0 512k', 'write -P 2 512k 512k', 'flush'))
    on_medium(t, 0, 1, 512 << 10)
    on_medium(t, 512 << 10, 2, 512 << 10)
    t = Target()
    t.on(WRITE, lambda *a: False, 3)
    t.on(WRITE, fake.restart)
    t.on(SYNC, fake.restart)
    ok(io(t.url(), 'write -P 1 0 512k', 'write -P 2 512k 512k', 'flush'))
    on_medium(t, 0, 1, 512 << 10)
    on_medium(t, 512 << 10, 2, 512 << 10)


@test
def n16_sessions():
    """N16: the same with two sessions"""
    t = Target()
    t.on(SYNC, fake.restart)
    ok(io(t.url('?sessions=2'), 'write -P 1 0 4M', 'flush'))
    on_medium(t, 0, 1, 4 << 20)


@test
def n16_scribble():
    """N15, N16: many writes at once, resets and restarts at random: what was flushed is there"""
    for seed in range(4):
        rnd = random.Random(seed)
        t = Target()
        model = bytearray(t.size)
        cmds = []
        for _ in range(12):
            places = rnd.sample(range(32), 10)          # at once, so not over each other
            for place in places:
                off = (place << 19) + 4096 * rnd.randrange(64)
                n = rnd.choice([512, 4096, 70000 // 512 * 512, 256 << 10])
                pattern = rnd.randrange(1, 256)
                model[off:off + n] = bytes([pattern]) * n
                cmds.append('aio_write -q -P %d %d %d' % (pattern, off, n))
            cmds.append('aio_flush')
            if rnd.random() < 0.4:
                cmds.append('flush')
        for _ in range(130):
            t.on(WRITE, rnd.choice([fake.restart, fake.power_loss, fake.cut_data_out(70000)])
                 if rnd.random() < 0.08 else lambda *a: False)
        t.on(SYNC, fake.restart if seed & 1 else fake.power_loss)
        ok(io(t.url('?sessions=%d' % (1 + seed)), *cmds, 'flush'))
        t.lose_cache()
        assert t.live == model, 'seed %d: lost or overwritten' % seed
        assert t.logins > 2


@test
def n16_flushed():
    """N16: what was flushed before is not sent again"""
    t = Target()
    t.on(READ, fake.restart)
    ok(io(t.url(), 'write -P 1 0 64k', 'flush', 'read -P 1 0 64k'))
    assert t.count[WRITE] == 1, t.count


@test
def n16_lost():
    """N16: writes that cannot be replayed: no later flush succeeds"""
    t = Target()
    t.on(SYNC, fake.power_loss)
    t.on(WRITE, lambda *a: False)
    t.on(WRITE, fake.sense(3, 0x0c00))
    r = failed(io(t.url(), 'write -P 1 0 64k', 'flush', 'flush', 'read 0 4k'),
               'could not be sent again')
    assert r.stdout.count('Input/output error') >= 2, r.stdout


@test
def n16_bounded():
    """N16: more writes than the journal holds: the target is flushed in between"""
    t = Target(size=128 << 20)
    t.on(SYNC, lambda *a: False, 2)
    t.on(SYNC, fake.restart)
    ok(io(t.url(), 'write -P 1 0 100M', 'flush'))
    assert not t.faults[SYNC], 'flushed %d times only' % t.count[SYNC]
    on_medium(t, 0, 1, 100 << 20)


@test
def n19():
    """N19: the LUN grows and shrinks (2A/09): said, and EIO beyond its end, never zeros"""
    t = Target()

    def resize(size):
        def f(t, c, cmd):
            t.size = size
            t.live.extend(bytes(max(0, size - len(t.live))))
            t.attention(6, 0x2a09)
            return False
        return f
    t.on(READ, resize(32 << 20))
    r = ok(io(t.url(), 'read 0 4k', 'read -P 0 15M 4k'))
    assert 'changed from 16777216 to 33554432' in r.stderr, r.stderr
    ok(io(t.url(), 'read -P 0 31M 4k'))
    t.on(READ, resize(8 << 20))
    r = failed(io(t.url(), 'read 0 4k', 'read 10M 4k', 'read 10M 4k', 'write 10M 4k',
                  'read 4M 4k'), 'changed from 33554432 to 8388608')
    assert r.stdout.count('Input/output error') == 2, r.stdout
    assert r.stdout.count('No space left') == 1, r.stdout
    assert r.stdout.count('read 4096/4096') == 2, r.stdout


@test
def n19_removed():
    """N19: the LUN is removed: EIO"""
    t = Target()
    t.on(READ, fake.sense(5, 0x2500), 9)
    failed(io(t.url(), 'read 0 4k'), 'Input/output error')
    assert t.count[READ] == 1


@test
def n19_other():
    """N19: another LUN at the same place after a restart: nothing is written to it"""
    t = Target()

    def swap(t, c, cmd):
        fake.Conn.inquiry = lambda c, cmd: c.data_in(
            cmd, b'\0\x80\0\x04ELSE' if cmd.cdb[1] & 1 else
            bytes([0, 0, 5, 2, 31, 0, 0, 2]) + b'PLATTER FAKE            0001')
        fake.restart(t, c, cmd)
    was = fake.Conn.inquiry
    try:
        t.on(SYNC, swap)
        failed(io(t.url('?timeout=1&reconnect=1'), 'write -P 1 0 64k', 'flush'), 'another LUN')
    finally:
        fake.Conn.inquiry = was
    assert t.count[WRITE] == 1 and not any(t.live), t.count


@test
def n20():
    """N20: reservation conflict: an error, asked once"""
    t = Target()
    t.on(WRITE, fake.status(0x18), 9)
    r = failed(io(t.url(), 'write 0 4k'), 'reserved by another initiator')
    assert t.count[WRITE] == 1 and r.took < 3 + SLACK


@test
def n21_itt():
    """N21: an answer with a wrong task tag: the session is dropped, the request asked again"""
    t = Target()

    def wrong(t, c, cmd):
        c.data_in(cmd, bytes(cmd.edtl), itt=b'\x12\x34\x56\x78')
        return True
    t.on(READ, wrong)
    ok(io(t.url('?timeout=2'), 'read -P 0 0 4k'))
    assert t.logins == 2, t.logins


@test
def n21_oversize():
    """N21: more Data-In than was asked for: nothing beyond the buffer, asked again"""
    t = Target()

    def big(t, c, cmd):
        h = c.head(0x25, 0x81, cmd.itt)
        h[20:24] = b'\xff' * 4
        c.send(h, b'\x55' * (cmd.edtl + 65536))
        c.statsn += 1
        return True
    t.on(READ, big)
    ok(io(t.url('?timeout=2'), 'read -P 0 0 4k'))

    def far(t, c, cmd):
        h = c.head(0x25, 0x81, cmd.itt)
        h[20:24] = b'\xff' * 4
        h[40:44] = b'\x7f\xff\xf0\x00'
        c.send(h, b'\x55' * cmd.edtl)
        c.statsn += 1
        return True
    t.on(READ, far)
    ok(io(t.url('?timeout=2'), 'read -P 0 0 4k'))


@test
def n21_r2t():
    """N21: a target that wants more data than the command has: nothing beyond it is sent"""
    t = Target()
    got = []

    def greedy(t, c, cmd):
        c.r2t(cmd, len(cmd.data), cmd.edtl + 65536)
        while True:
            bhs, data = c.pdu()
            got.append(len(data))
    t.on(WRITE, greedy)
    ok(io(t.url('?timeout=2'), 'write -P 3 0 128k', 'flush'))
    assert sum(got) <= 128 << 10, got
    on_medium(t, 0, 3, 128 << 10)


@test
def n21_short():
    """N21: GOOD with less data than asked for is an error"""
    t = Target()
    t.on(READ, lambda t, c, cmd: c.data_in(cmd, bytes(512)) or True, 9)
    failed(io(t.url(), 'read 0 4k'), 'Input/output error')


@test
def n21_digest():
    """N21: bad header digests: the open fails, bounded"""
    t = Target()
    t.digest = True
    r = failed(io(t.url('?timeout=2&reconnect=2&header-digest=crc32c'), 'read 0 4k'))
    assert r.took < 6 + SLACK, r.took


@test
def n21_redirect():
    """N21: redirected for ever: the open fails after a few"""
    t = Target()
    t.login_fault = ((1, 1), [('TargetAddress', '127.0.0.1:%d,1' % t.port)])
    r = failed(io(t.url('?timeout=3'), 'read 0 4k'))
    assert t.logins <= 6 and r.took < 5 + SLACK, (t.logins, r.took)


@test
def n22():
    """N22: a failed SYNCHRONIZE CACHE is sticky"""
    t = Target()
    t.on(SYNC, fake.sense(3, 0x0c00))
    r = failed(io(t.url(), 'write -P 1 0 4k', 'flush', 'flush'))
    assert r.stdout.count('Input/output error') >= 2, r.stdout


@test
def n22_own():
    """N22: so is one of the flushes that we make ourselves"""
    t = Target(size=128 << 20)
    t.on(SYNC, fake.sense(3, 0x0c00))
    r = failed(io(t.url(), 'write -P 1 0 100M', 'flush'))
    ops = [op for op, _, _ in t.log]
    assert ops.index(SYNC) < len(ops) - 1 - ops[::-1].index(WRITE), 'not flushed in between'
    assert 'Input/output error' in r.stdout, r.stdout


main()
