#!/usr/bin/env python3
"""nfs-faults.t - an NFS server that forgets, refuses, dawdles and lies (fake_nfs.py): what
was flushed is on its disk, errors are the server's own, and nothing hangs.
N2-N9, N13, N14 of bad-input.md; the verifier cases also with qemu-io, which loses data."""
import os
import re
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import faultlib
from faultlib import Fake, Io
import tap

SIZE = 4 << 20
K = 1024
isolated = faultlib.isolate()


def pieces(content, *expected):
    """expected: (offset, length, byte) each."""
    for off, length, byte in expected:
        assert content[off:off + length] == bytes([byte]) * length, \
            "not %d at %d: %r..." % (byte, off, bytes(content[off:off + 8]))


def n2_crash():
    """N2: the server restarts and loses UNSTABLE data: written again, reads see it before"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        io.good("write -P 5 0 64k")
        io.good("write -P 6 100001 3000")
        assert s.counts()["unstable"] >= 2, "writes are not UNSTABLE: nothing is tested"
        s.do("crash")
        io.good("read -P 5 0 64k")
        io.good("read -P 6 100001 3000")
        io.good("flush")
        pieces(s.content(), (0, 64 * K, 5), (100001, 3000, 6), (64 * K, 1000, 0))
        assert "lost unflushed writes" in io.text
        assert io.end()[0] == 0


def n2_at_commit():
    """N2: the verifier changes in COMMIT itself: written again before the flush succeeds"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        io.good("write -P 5 0 1M")
        s.do("lose-at-commit")
        io.good("flush")
        pieces(s.content(), (0, K * K, 5))


def n2_overlap():
    """N2: a newer write over lost ones is not undone by writing them again"""
    with Fake(SIZE) as s, Io(s.url("connections=1")) as io:
        io.good("write -P 1 0 64k")
        io.good("write -P 2 96k 32k")
        s.do("crash")
        io.good("write -P 3 16k 16k")
        io.good("write -P 4 60k 40k")
        s.do("lose-at-commit")
        io.good("flush")
        want = ((0, 16 * K, 1), (16 * K, 16 * K, 3), (32 * K, 28 * K, 1), (60 * K, 40 * K, 4),
                (100 * K, 28 * K, 2))
        pieces(s.content(), *want)
        for off, length, byte in want:
            io.good("read -P %d %d %d" % (byte, off, length))


def n2_growth():
    """N2: growth of the file that the server lost comes back, holes read as zeros before"""
    with Fake(64 * K) as s, Io(s.url(), fmt="nfs") as io:
        io.good("write -P 5 1M 64k")
        s.do("crash")
        io.good("read -P 0 512k 64k")
        io.good("read -P 5 1M 64k")
        io.good("flush")
        pieces(s.content(), (K * K, 64 * K, 5), (64 * K, K, 0))


def n3_write_back():
    """N3: the verifier changes without a restart: the next write notices, all is on disk"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        io.good("write -P 5 0 64k")
        s.do("lose")
        io.good("write -P 6 64k 64k")
        io.good("read -P 5 0 64k")
        io.good("flush")
        pieces(s.content(), (0, 64 * K, 5), (64 * K, 64 * K, 6))


def n3_every_write():
    """N3: each WRITE loses what the others left: they end up on disk all the same"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        for i in range(5):
            io.good("write -P %d %dk 64k" % (i + 1, i * 100))
        s.do("verifier-at-write")
        io.good("flush", 30)
        pieces(s.content(), *((i * 100 * K, 64 * K, i + 1) for i in range(5)))


def n3_close():
    """N3: what nobody flushed is on the server's disk after close"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        io.good("write -P 5 0 64k")
        s.do("lose")
        assert io.end()[0] == 0
        pieces(s.content(), (0, 64 * K, 5))


def n3_unsafe():
    """N3: cache=unsafe keeps no copies, but what the server lost is the error of close"""
    for order, good in ((None, True), ("lose", False), ("lose-at-commit", False)):
        with Fake(SIZE) as s, Io(s.url(), "-t", "unsafe") as io:
            io.good("write -P 5 0 64k")
            if order:
                s.do(order)
            status, _ = io.end()
            assert (status == 0) == good, (order, status, io.text)
            assert not good or s.content()[:64 * K] == b"\5" * 64 * K


def n3_never_success():
    """N2: a server that loses everything each time: the flush fails, and for good"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        io.good("write -P 5 0 64k")
        s.do("lose-at-commit 1000")
        io.bad("flush", "Input/output error", 30)
        s.do("lose-at-commit 0")
        io.good("write -P 5 0 64k")
        io.bad("flush", "Input/output error")
        assert io.end()[0] != 0


def n3_reads_own_writes_synced():
    """FILE_SYNC answers need no COMMIT and no copy"""
    with Fake(SIZE, "sync") as s, Io(s.url()) as io:
        io.good("write -P 5 0 64k")
        s.do("crash")
        io.good("read -P 5 0 64k")
        io.good("flush")
        assert "commit" not in s.counts(), s.counts()


def fua():
    """FUA writes are FILE_SYNC: on disk when done"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        io.good("write -f -P 5 4096 8192")
        pieces(s.content(), (4096, 8192, 5))


def qemu_io_loses():
    """the same N3 and N2 with qemu-io: its flush succeeds and the data is gone"""
    os.environ["FAKE_PORTMAP"] = "1"
    lost = 0
    for order in ("lose", "lose-at-commit"):
        with Fake(SIZE) as s, Io("nfs://127.0.0.1/export/disk", "-t", "writeback",
                                 program=tap.QEMU_IO) as io:
            io.good("write -P 5 0 64k")
            s.do(order)
            assert "commit" not in s.counts(), "it has flushed already: nothing is shown"
            io.good("flush")
            assert s.counts()["commit"] == 1, s.counts()
            lost += s.content()[:64 * K] != b"\5" * (64 * K)
    del os.environ["FAKE_PORTMAP"]
    assert lost == 2, "qemu-io lost data in %d of 2" % lost


def ours_by_portmapper():
    """the same by platter-io, found through the portmapper: nothing is lost"""
    os.environ["FAKE_PORTMAP"] = "1"
    for order in ("lose", "lose-at-commit"):
        with Fake(SIZE) as s, Io("nfs://127.0.0.1/export/disk") as io:
            io.good("write -P 5 0 64k")
            s.do(order)
            io.good("flush")
            pieces(s.content(), (0, 64 * K, 5))
    del os.environ["FAKE_PORTMAP"]


def n4_stale():
    """N4: ESTALE is an I/O error, and the name is not looked up again"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        before = s.counts()["lookup"]
        s.do("status read 70 1")
        s.do("status write 70 1")
        io.bad("read 0 4k", "Input/output error")
        io.bad("write 0 4k", "Input/output error")
        assert s.counts()["lookup"] == before
        io.good("read 0 4k")


def n5_jukebox():
    """N5: JUKEBOX backs off (0.1, 0.2, 0.4 s) and tries again: READ, WRITE, COMMIT"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        for op, command in (("write", "write -P 5 0 4k"), ("read", "read -P 5 0 4k"),
                            ("commit", "flush")):
            before = s.counts().get(op, 0)
            s.do("status %s 10008 3" % op)
            t = time.monotonic()
            io.good(command)
            took, calls = time.monotonic() - t, s.counts()[op] - before
            assert calls == 4 and took >= 0.65, "%s: %d calls in %.2f s" % (op, calls, took)


def n5_for_ever():
    """N5: JUKEBOX for ever ends with EIO at the deadline"""
    with Fake(SIZE) as s, Io(s.url("timeout=1", "reconnect=1")) as io:
        s.do("status read 10008 100000")
        io.bad("read 0 4k", "Input/output error", 10)
        assert s.counts()["read"] < 12, s.counts()


def n6_errno():
    """N6: NOSPC, DQUOT, ROFS, FBIG, ACCES reach the user as they are"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        for code, words in ((28, "No space left on device"), (69, "Disk quota exceeded"),
                            (30, "Read-only file system"), (27, "File too large"),
                            (13, "Permission denied"), (5, "Input/output error")):
            s.do("status write %d 1" % code)
            io.bad("write 0 4k", words)
        io.good("write -P 1 0 4k")


def n6_commit():
    """N6: COMMIT fails with NOSPC: the flush says so, and every later one"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        io.good("write -P 5 0 64k")
        s.do("status commit 28 1")
        io.bad("flush", "No space left on device")
        io.bad("flush", "No space left on device|Input/output error")


def n7_short():
    """N7: short WRITE and READ counts are continued"""
    with Fake(SIZE, "short-write 1000", "short-read 777") as s, Io(s.url()) as io:
        io.good("write -P 5 3 20000")
        io.good("read -P 5 3 20000")
        io.good("flush")
        pieces(s.content(), (3, 20000, 5), (0, 3, 0), (20003, 10, 0))


def n7_zero():
    """N7: a count of 0 is asked again a few times, then it is an error: no spinning"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        s.do("empty-write 2")
        s.do("empty-read 2")
        io.good("write -P 5 0 4k")
        io.good("read -P 5 0 4k")
        s.do("empty-read 1000000")
        s.do("empty-write 1000000")
        io.bad("read 0 4k", "Input/output error")
        io.bad("write 0 4k", "Input/output error")
        assert s.counts()["read"] < 30 and s.counts()["write"] < 30, s.counts()


def n8_long():
    """N8: more bytes than asked for are a protocol error"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        s.do("long-read 4")
        io.bad("read 0 4k", "Protocol error")
        s.do("long-read 0")
        s.do("long-write 1")
        io.bad("write 0 4k", "Protocol error")
        s.do("long-write 0")
        io.good("read 0 4k")


def n8_garbage():
    """N8: an answer that cannot be decoded is a protocol error, the disk goes on"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        s.do("garbage 1")
        io.bad("read 0 4k", "Protocol error")
        io.good("read 0 4k")


def n9_silent():
    """N9: an unanswered call that changes nothing is sent again on a fresh connection"""
    with Fake(SIZE) as s, Io(s.url("timeout=1")) as io:
        io.good("write -P 5 0 4k")
        for command in ("read -P 5 0 4k", "flush"):
            s.do("silent 1")
            t = time.monotonic()
            io.good(command)
            assert time.monotonic() - t > 0.9


def n9_late_write():
    """N9: a slow server's old WRITE does not undo a newer one that was acknowledged"""
    with Fake(SIZE) as s, Io(s.url("timeout=1")) as io:
        s.do("hold write 1")
        io.start("write -P 1 0 64k", "write -P 2 16k 16k", "flush")
        s.wait_for("write", 2, 3)       # of a client that sends the first one again
        s.do("release")
        out = io.finish()
        assert not re.search("fail|error", out), out
        pieces(s.content("save-all"), (0, 16 * K, 1), (16 * K, 16 * K, 2), (32 * K, 32 * K, 1))
        assert s.counts()["write"] == 2, s.counts()


def n9_late_size():
    """N9: nor does an old SETATTR of the size cut off what was written since"""
    with Fake(SIZE) as s, Io(s.url("timeout=1"), fmt="nfs") as io:
        s.do("hold setattr 1")
        io.start("truncate 1M", "write -P 2 1M 64k", "flush")
        s.wait_for("write", 1, 3)
        s.do("release")
        io.finish()
        pieces(s.content("save-all"), (K * K, 64 * K, 2))


def n9_in_turn():
    """N9: a server that takes its time for each call, one after the other, is not dead"""
    with Fake(SIZE) as s, Io(s.url("timeout=1", "connections=1")) as io:
        s.do("pace 300")
        for i in range(8):
            io.good("aio_read -q -P 0 %dk 4k" % (400 * i))
        io.good("aio_flush", 20)
        s.do("pace 0")
        assert "reconnecting" not in io.text and s.counts()["read"] == 8, (io.text, s.counts())


def n9_others_go_on():
    """N9: reads and flushes go on while a write waits"""
    with Fake(SIZE) as s, Io(s.url("timeout=1", "connections=1")) as io:
        io.good("write -P 3 1M 64k")
        s.do("hold write 1")
        io.good("aio_write -P 1 0 64k")
        s.do("hold read 1")
        io.good("read -P 3 1M 64k")
        io.good("flush")
        io.good("write -P 4 2M 64k")
        s.do("release")
        io.good("aio_flush")
        io.good("read -P 1 0 64k")
        io.good("flush")
        pieces(s.content(), (0, 64 * K, 1), (K * K, 64 * K, 3), (2 * K * K, 64 * K, 4))


def n9_slow_then_dead():
    """N9: the slow server dies without having executed it: the write is sent again"""
    with Fake(SIZE) as s, Io(s.url("timeout=1")) as io:
        s.do("hold write 1")
        io.start("write -P 1 0 64k", "flush")
        assert not s.wait_for("write", 1, 2)
        s.do("crash")
        out = io.finish()
        assert not re.search("fail|error", out), out
        pieces(s.content(), (0, 64 * K, 1))


def n9_write_given_up():
    """N9: a write never answered: EIO; all writes fail until the server has dealt with it"""
    with Fake(SIZE) as s, Io(s.url("timeout=1", "reconnect=1")) as io:
        io.good("write -P 3 1M 64k")
        s.do("hold write 1")
        io.bad("write -P 1 0 64k", "Input/output error")
        t = time.monotonic()
        io.bad("write -P 2 0 64k", "Input/output error")
        assert time.monotonic() - t < 0.9, "not at once"
        io.good("read -P 3 1M 64k")
        assert "may still execute a write" in io.text, io.text
        s.do("release")
        io.good("sleep 300")
        assert "writes are possible again" in io.text, io.text
        io.good("write -P 2 16k 16k")
        io.good("flush")
        pieces(s.content(), (0, 16 * K, 1), (16 * K, 16 * K, 2), (K * K, 64 * K, 3))


def n9_close_waits():
    """N9: closing waits for what the server may still execute, but not for ever"""
    for release in (True, False):
        with Fake(SIZE) as s, Io(s.url("timeout=2", "reconnect=0")) as io:
            s.do("hold write 1")
            io.bad("write -P 1 0 64k", "Input/output error")
            io.p.stdin.close()
            time.sleep(0.3)
            assert io.p.poll() is None, "it has not waited"
            if release:
                s.do("release")
            io.p.wait(10)
            text = io.text + os.read(io.fd, 65536).decode() if not release else ""
            assert release or "closed, but the server may still execute 1 old write" in text, text


def n9_mute_server():
    """N9: a server that talks nonsense then has not ended the connection: no WRITE again"""
    with Fake(SIZE) as s, Io(s.url("timeout=5", "connections=1")) as io:
        s.do("hold write 1")
        io.good("aio_write -P 1 0 64k")
        assert s.wait_for("held", 1, 5)
        s.do("bad-record")
        io.good("sleep 500")
        assert "write" not in s.counts(), s.counts()
        io.good("read -P 0 1M 64k")
        s.do("crash")
        io.good("aio_flush")
        io.good("flush")
        pieces(s.content(), (0, 64 * K, 1))


def n9_for_ever():
    """N9: never answered: EIO at timeout + reconnect, then the disk works again"""
    with Fake(SIZE) as s, Io(s.url("timeout=1", "reconnect=2")) as io:
        s.do("silent 100000")
        t = time.monotonic()
        io.bad("read 0 4k", "Input/output error", 20)
        assert time.monotonic() - t < 8, time.monotonic() - t
        s.do("silent 0")
        io.good("read 0 4k")


def n13_fsinfo():
    """N13: FSINFO's rtmax and wtmax 0, 1, 4095 and 2^32-1 are clamped"""
    for rt, wt in ((0, 0), (1, 1), (4095, 0), (0xffffffff, 0xffffffff), (0x80000000, 1)):
        with Fake(SIZE, "fsinfo %d %d" % (rt, wt)) as s, Io(s.url()) as io:
            io.good("write -P 5 1 100k")
            io.good("read -P 5 1 100k")
            io.good("flush")
            pieces(s.content(), (1, 100 * K, 5))


def n14_truncated():
    """N14: a file truncated by another client is reported, not read as zeros"""
    with Fake(SIZE) as s, Io(s.url()) as io:
        io.good("write -P 5 0 2M")
        io.good("flush")
        s.do("truncate 1048576")
        out = io.bad("read 1M 64k", "Input/output error")
        assert re.search("truncated by somebody else", io.text), out
        io.good("read -P 5 0 1M")


for test in (n2_crash, n2_at_commit, n2_overlap, n2_growth, n3_write_back, n3_every_write, n3_close, n3_unsafe,
             n3_never_success, n3_reads_own_writes_synced, fua):
    tap.attempt(test.__doc__, test)
if isolated:
    tap.attempt(qemu_io_loses.__doc__, qemu_io_loses)
    tap.attempt(ours_by_portmapper.__doc__, ours_by_portmapper)
else:
    tap.skip(qemu_io_loses.__doc__, "needs namespaces (port 111)")
for test in (n4_stale, n5_jukebox, n5_for_ever, n6_errno, n6_commit, n7_short, n7_zero, n8_long,
             n8_garbage, n9_silent, n9_late_write, n9_late_size, n9_in_turn, n9_others_go_on,
             n9_slow_then_dead, n9_write_given_up, n9_close_waits, n9_mute_server, n9_for_ever,
             n13_fsinfo, n14_truncated):
    tap.attempt(test.__doc__, test)
tap.finish()
