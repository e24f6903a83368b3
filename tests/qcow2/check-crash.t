#!/usr/bin/env python3
"""check-crash.t - the machine dies in the middle of check -r all: at every write and
flush of the repair, with what was not yet durable lost, kept or torn.  Whatever is
left reads the same to the guest, and the next repair ends with a clean image."""
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "crash")]
from checklib import OFFSET, content, create, ours, theirs      # noqa: E402
from tap import IMG, enter_place, finish, ok, run               # noqa: E402
from replay import Host, read_log                               # noqa: E402

enter_place("check-crash", memory=True)
CS = 65536


def image(**kw):
    return create("a.qcow2", "8M", "write -P 1 0 512k", "write -P 2 512k 512k",
                  "write -z 1M 256k", **kw)


def survives(name, d):
    d.save()
    with open(d.path, "rb") as f:
        start = f.read()
    before = content(d.path)
    open("log", "wb").close()
    p = run(IMG, "check", "-r", "all", "--image-opts", "driver=qcow2,file.driver="
            "logwrites,file.log=log,file.file.filename=" + d.path)
    # Damage that qemu-img will not read past: then what it reads after the repair.
    wanted = content(d.path)
    events = read_log("log")
    writes = sum(e.type in "WZDT" for e in events)
    host, rng, bad, states = Host(events, start), random.Random(1), [], set()
    for point in range(len(events) + 1):
        host.advance(point)
        for how in ("none", "all", "random"):
            state = bytes(host.crash(rng, how).buf)
            if state in states:
                continue
            states.add(state)
            with open(d.path, "wb") as f:
                f.write(state)
            where = "before record %d of %d, %s: " % (point, len(events), how)
            if content(d.path) not in (before, wanted):
                bad.append(where + "guest bytes changed")
            r = ours(d.path, "all")
            if r.rc:
                bad.append(where + "the next repair: %s" % r)
            if content(d.path) != wanted:
                bad.append(where + "guest bytes changed by the next repair")
            if theirs(d.path).rc:
                bad.append(where + "qemu-img: %s" % theirs(d.path))
    os.unlink("log")
    ok(p.returncode == 0 and writes and not bad and before in (None, wanted),
       "%s: %d states of %d writes" % (name, len(states), writes),
       *([p.stderr] if p.returncode else []), *bad[:6])


d = image()
for i in (6, 8, 9):
    d.put_refcount(i, 3)
survives("refcounts too high", d)

d = image()
e = d.l2_entries()
d.put64(e[0], d.u64(e[1]))
d.put64(e[2], d.u64(e[3]))
survives("clusters used twice, flags and counts wrong", d)

d = create("a.qcow2", "1G", "write -P 1 0 1M", "write -P 2 600M 1M")
first, second = d.l1_entries()[:2]
d.put64(second, d.u64(first))
survives("an L2 table used twice", d)

d = image()
d.put64(d.reft, 0)
survives("no refcount block", d)

d = image()
d.put64(d.reft, d.u64(d.l1) & OFFSET)
survives("a refcount block that is an L2 table", d)

d = image(lazy_refcounts="on")
d.put64(72, 1)
for i in range(6, 14):
    d.put_refcount(i, 0)
survives("dirty, counts not written", d)

d = image()
e = d.l2_entries()
d.put64(e[4], d.u64(e[4]) + 512 | 1)
d.put64(72, 3)
survives("a zero cluster in a bad place, dirty and corrupt", d)

d = create("a.qcow2", "1M", "write -P 1 0 300k", cluster_size=512, refcount_bits=64)
for b in d.blocks()[2:]:
    d.put64(b, 0)
survives("small clusters, most refcount blocks gone", d)
finish()
