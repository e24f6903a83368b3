#!/usr/bin/env python3
"""iscsi-stalls.t - a target that stalls, is busy, goes away: N9-N12, N17, N18 and N23 of
the fault list, against fakeiscsi.py."""
import os
import signal
import subprocess
import sys
import threading
import time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import fakeiscsi as fake
from fakeiscsi import READ, WRITE, Target
from iscsilib import IO, SLACK, failed, io, main, ok, on_medium, test


@test
def plain():
    """reads, writes, FUA and flush; an acknowledged write is on the medium after the flush"""
    t = Target()
    ok(io(t.url(), 'write -P 7 0 1M', 'read -P 7 0 1M', 'write -P 5 1000 777', 'flush',
          'read -P 5 1000 777', 'write -f -P 9 2M 4k'))
    on_medium(t, 4096, 7, 4096)
    on_medium(t, 2 << 20, 9, 4096)


@test
def n9():
    """N9: a server that never answers again: EIO at the deadline"""
    t = Target()
    t.on(READ, lambda t, c, cmd: setattr(t, 'silent', True) or t.stop_listening() or
         fake.hang(t, c, cmd))
    r = failed(io(t.url('?timeout=2&reconnect=2'), 'read 0 4k'), 'Input/output error')
    assert 2 <= r.took < 8 + SLACK, r.took


@test
def n9_in_turn():
    """N9: a target that takes its time for each command, one after the other, is not dead"""
    t = Target()
    t.on(READ, lambda t, c, cmd: time.sleep(0.3), 8)
    r = ok(io(t.url('?timeout=1&sessions=1'), *['aio_read -P 0 %dM 4k' % i for i in range(8)],
              'aio_flush'))
    assert t.count[READ] == 8 and t.logins == 1, (t.count, t.logins, r.stdout)


@test
def n9_stopped():
    """N9: a process waiting for a server that is gone can be stopped"""
    t = Target()
    t.on(READ, fake.hang)
    p = subprocess.Popen([IO, '-f', 'raw', '-c', 'read 0 4k', t.url()], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
    for _ in range(200):
        if t.count.get(READ):
            break
        time.sleep(0.05)
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=10)
    assert p.returncode != 0


@test
def n9_survives():
    """N9: a server that stalls longer than the deadline: asked again on a new connection"""
    t = Target()
    t.on(READ, fake.hang)
    r = ok(io(t.url('?timeout=2'), 'write -P 3 0 4k', 'read -P 3 0 4k'))
    assert t.logins == 2 and r.took < 5 + SLACK, (t.logins, r.took)


@test
def n10():
    """N10: the late reply to a request that was asked again does no harm"""
    t = Target()

    def late(t, c, cmd):
        time.sleep(3)
        return False
    t.on(READ, late)
    ok(io(t.url('?timeout=2'), 'write -P 3 0 64k', 'read -P 3 0 64k', 'read -P 3 0 64k',
          'sleep 1500', 'read -P 3 0 64k'))


@test
def n11():
    """N11: the connection is cut after each byte of a PDU: reads go on"""
    t = Target()
    cuts = list(range(0, 53)) + [559, 560]
    for n in cuts:
        t.on(READ, fake.cut_reply(n))
    ok(io(t.url(), 'write -P 6 0 4k', *['read -P 6 0 512'] * 5, limit=120))
    assert not t.faults[READ]
    assert t.logins == len(cuts) + 1, t.logins


@test
def n12():
    """N12: reconnects refused: EIO after the stated time, at once later on; then it works again"""
    t = Target()

    def gone(t, c, cmd):
        t.stop_listening()
        threading.Timer(6, t.listen).start()
        raise fake.Gone
    t.on(READ, gone)
    r = failed(io(t.url('?timeout=2&reconnect=2'), 'write -P 4 0 4k', 'flush', 'read 0 4k',
                  'read 0 4k', 'sleep 9000', 'read -P 4 0 4k'), 'given up after 2 s')
    assert r.stdout.count('Input/output error') == 2, r.stdout
    assert r.stdout.count('read 4096/4096') == 1, r.stdout


@test
def n17():
    """N17: BUSY and TASK SET FULL: back-off, then success"""
    t = Target()
    t.on(READ, fake.status(0x08), 2)
    t.on(READ, fake.status(0x28), 2)
    r = ok(io(t.url(), 'read -P 0 0 4k'))
    assert t.count[READ] == 5 and r.took >= 1.4, (t.count, r.took)


@test
def n17_bounded():
    """N17: BUSY for ever: bounded in time and number"""
    t = Target()
    t.on(READ, fake.status(0x08), 1000)
    r = failed(io(t.url('?timeout=1&reconnect=2'), 'read 0 4k'), 'busy')
    assert t.count[READ] < 12 and r.took < 8 + SLACK, (t.count, r.took)


@test
def n18():
    """N18: keep-alives unanswered: a new connection, long before the request's deadline"""
    t = Target()
    t.on(READ, fake.hang)
    r = ok(io(t.url('?timeout=600'), 'read -P 0 0 4k'))
    assert t.logins == 2 and r.took < 30 + SLACK, (t.logins, r.took)


@test
def n23():
    """N23: CHAP refused on reconnect: bounded, and no secret is printed"""
    t = Target(secret='verysecret12')
    env = {'LIBISCSI_CHAP_USERNAME': 'joe', 'LIBISCSI_CHAP_PASSWORD': 'verysecret12'}
    ok(io(t.url(), 'write -P 1 0 4k', 'flush', 'read -P 1 0 4k', env=env))

    def change(t, c, cmd):
        t.secret = 'another12345'
        raise fake.Gone
    t.on(READ, change)
    logins = t.logins
    r = failed(io(t.url('?timeout=2&reconnect=2'), 'read 0 4k', env=env), 'Input/output error')
    assert 'verysecret12' not in r.stdout + r.stderr
    assert t.logins - logins < 12 and r.took < 6 + SLACK, (t.logins - logins, r.took)
    url = t.url().replace('//', '//joe%verysecret12@')
    r = failed(io(url, 'read 0 4k'), '***')
    assert 'verysecret12' not in r.stdout + r.stderr, r.stderr


main()
