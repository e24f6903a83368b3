#!/usr/bin/env python3
"""nfs-random.t - random overlapping writes, reads and flushes while the server loses its
unflushed data, restarts, takes and gives short counts and asks to wait: every read is what
was written last, and after each flush the server's disk holds exactly that.  N2, N3, N5, N7."""
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import faultlib
from faultlib import Fake, Io
import tap

SIZE = 1 << 20
faultlib.isolate()


def mishap(rng, s):
    what = rng.choice(["lose", "crash", "lose-at-commit", "short-write %d" % rng.randrange(1, 9000),
                       "short-write -1", "short-read %d" % rng.randrange(500, 9000),
                       "short-read -1", "status write 10008 1", "status read 10008 1",
                       "empty-write 1", "empty-read 1"])
    s.do(what)
    return what


def read_back(io, model, off, end):
    """Runs of one byte at a time: platter-io knows no other patterns."""
    while off < end:
        stop = off
        while stop < end and model[stop] == model[off]:
            stop += 1
        io.good("read -q -P %d %d %d" % (model[off], off, stop - off))
        assert "verification failed" not in io.text, (off, stop)
        off = stop


def scribble(seed, count):
    rng = random.Random(seed)
    model = bytearray(SIZE)
    log = []
    with Fake(SIZE) as s, Io(s.url("connections=%d" % rng.randrange(1, 4))) as io:
        try:
            for _ in range(count):
                what = rng.random()
                off = rng.randrange(SIZE - 1)
                length = min(rng.choice((1, 511, 4096, 40000, 300000)), SIZE - off)
                if what < 0.5:
                    byte = rng.randrange(1, 256)
                    log.append("write %d %d %d" % (byte, off, length))
                    fua = "" if rng.random() < 0.9 else " -f"
                    io.good("write -q%s -P %d %d %d" % (fua, byte, off, length))
                    model[off:off + length] = bytes([byte]) * length
                elif what < 0.65:
                    log.append("read %d %d" % (off, length))
                    read_back(io, model, off, off + min(length, 8192))
                elif what < 0.9:
                    log.append(mishap(rng, s))
                else:
                    log.append("flush")
                    io.good("flush", 30)
                    assert s.content() == model, "the disk differs after a flush"
            io.good("flush", 30)
            assert s.content() == model, "the disk differs at the end"
            assert io.end()[0] == 0, "exit status"
        except AssertionError as e:
            raise AssertionError("%s\nseed %d:\n%s" % (e, seed, "\n".join(log[-15:]))) from e


def case(seed):
    def run():
        scribble(seed, 150)
    run.__doc__ = "150 random steps with mishaps, seed %d" % seed
    tap.attempt(run.__doc__, run)


for n in range(int(os.environ.get("NFS_RANDOM", "6"))):
    case(1000 + n)
tap.finish()
