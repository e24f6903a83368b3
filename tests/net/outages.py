"""outages.py - what block/net.h's policy promises, the same for each protocol with a server of
faultlib.py: black holes and refused connections, N9 and N12."""
import threading
import time

K = 1024
KNOWN = 128 * K                 # holds threes, 64 KiB of them


def known(s, io):
    if s.writes:
        io.good("write -P 3 %d 64k" % KNOWN)


def reads_well(io, timeout=20):
    io.good("read -P 3 %d 64k" % KNOWN, timeout)
    assert "verification failed" not in io.text, io.text


def is_kept(s, io):
    """What was written before the outage is durable after a flush."""
    if s.writes:
        io.good("flush")
        assert s.content()[KNOWN:KNOWN + 64 * K] == b"\3" * 64 * K


def n9_stall(s, p, io):
    """N9: a black hole for 2 s, shorter than the timeout: only slow"""
    p.do("stall")
    threading.Timer(2, lambda: p.do("go")).start()
    known(s, io)
    reads_well(io, 10)
    assert "reconnecting" not in io.text


def n9_for_ever(s, p, io):
    """N9: a black hole for ever: EIO after timeout + reconnect, and the program ends"""
    p.do("stall")
    t = time.monotonic()
    io.bad("write -P 3 0 64k" if s.writes else "read 128k 4k", "Input/output error", 15)
    assert 1 <= time.monotonic() - t < 8, time.monotonic() - t
    status, _ = io.end(20)
    assert time.monotonic() - t < 15
    assert status, "an error must not be forgotten"


n9_for_ever.args = ("timeout=1", "reconnect=2")


def n12_refused(s, p, io):
    """N12: refused for 2 s: tried again with growing pauses, then everything goes on"""
    known(s, io)
    p.do("down")
    threading.Timer(2, lambda: p.do("up")).start()
    t = time.monotonic()
    reads_well(io)
    assert 1.5 < time.monotonic() - t < 10, time.monotonic() - t
    is_kept(s, io)
    assert "reconnecting" in io.text and "connected again" in io.text, io.text


def n12_over(s, p, io):
    """N12: refused for longer than reconnect=: EIO, at once for later requests, then back"""
    known(s, io)
    p.do("down")
    t = time.monotonic()
    io.bad("read 0 4k", "Input/output error", 20)
    assert 1.5 < time.monotonic() - t < 8, time.monotonic() - t
    t = time.monotonic()
    io.bad("read 0 4k", "Input/output error", 20)
    assert time.monotonic() - t < 1
    assert "given up after 2 s" in io.text, io.text
    p.do("up")
    for _ in range(12):
        if "failed" not in io.do("read -P 3 %d 4k" % KNOWN):
            break
        io.do("sleep 1000")
    reads_well(io)
    is_kept(s, io)


n12_over.args = ("timeout=2", "reconnect=2")


def n12_count(s, p, io):
    """N12: the number of attempts is bounded by the steps 0.1, 0.2, 0.4 ... s"""
    before = p.connections()
    p.do("refuse 1000")
    p.do("cut")
    io.bad("read 0 4k", "Input/output error", 20)
    tries = p.connections() - before
    assert 3 <= tries <= s.tries, tries


n12_count.args = ("timeout=2", "reconnect=3")

CASES = (n9_stall, n9_for_ever, n12_refused, n12_over, n12_count)
