#!/usr/bin/env python3
"""amend.t - the machine dies in the middle of an amend: at every write and flush, with
what was not yet durable lost, kept or torn.  Whatever is left is a clean image of the
old kind or the new one, reads the same to the guest, and the same amend then ends
well.  Key slots: some password opens the image at every moment."""
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "qcow2")]
from checklib import content, create, ours, theirs              # noqa: E402
from tap import IMG, QEMU_IMG, QEMU_IO, enter_place, finish, must, ok, run  # noqa: E402
from replay import Host, read_log                               # noqa: E402

enter_place("amend", memory=True)
PER_POINT = ("none", "all", "random")


def states(path, start):
    """Every file that a crash may have left, once each."""
    events, seen = read_log("log"), set()
    host, rng = Host(events, start), random.Random(1)
    for point in range(len(events) + 1):
        host.advance(point)
        for how in PER_POINT:
            state = bytes(host.crash(rng, how).buf)
            if state not in seen:
                seen.add(state)
                with open(path, "wb") as f:
                    f.write(state)
                yield "before record %d of %d, %s: " % (point, len(events), how)


def amend(path, options, logged=False, driver="qcow2", secret=(), more=""):
    below = "file.driver=logwrites,file.log=log,file.file.filename=" if logged else "file.filename="
    return run(IMG, "amend", *secret, "--image-opts", "driver=%s,%s%s" % (driver, below + path, more),
               "-o", options)


def logged(path, *args, **kw):
    """The image before, and what an amend says whose writes go into the log."""
    open("log", "wb").close()
    with open(path, "rb") as f:
        start = f.read()
    return start, amend(path, *args, logged=True, **kw)


def survives(name, path, options):
    before = content(path)
    start, p = logged(path, options)
    bad, n = ([p.stderr] if p.returncode else []), 0
    if content(path) != before:
        bad.append("the guest's bytes changed")
    for where in states(path, start):
        n += 1
        if content(path) != before:
            bad.append(where + "guest bytes changed")
        for who, c in (("ours", ours(path)), ("qemu-img", theirs(path))):
            if c.rc not in (0, 3):
                bad.append(where + "%s: %s" % (who, c))
        p = amend(path, options)
        if p.returncode or theirs(path).rc not in (0, 3) or content(path) != before:
            bad.append(where + "the same amend again: %s %s" % (p.stderr, theirs(path)))
        if len(bad) > 6:
            break
    ok(not bad, "%s: %d states" % (name, n), *bad[:6])


def image(*more, **kw):
    create("a.qcow2", "2M", "write -P 1 0 256k", "write -P 2 512k 64k", *more, **kw)
    return "a.qcow2"


survives("refcount_bits=64", image(), "refcount_bits=64")
survives("refcount_bits=1", image(cluster_size=4096), "refcount_bits=1")
survives("compat=1.1", image(compat="0.10"), "compat=1.1")
survives("compat=0.10 with zero clusters", image("write -z 1M 256k", "write -z 64k 64k"), "compat=0.10")
path = image("write -z 1M 128k", cluster_size=4096)
must(QEMU_IMG, "snapshot", "-c", "one", path)
survives("compat=0.10 with zero clusters in a snapshot", path, "compat=0.10")
must(QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "base.qcow2", "2M")
path = "b.qcow2"
must(QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "base.qcow2", "-F",
     "qcow2", path)
must(QEMU_IO, "-c", "write -z 0 64k", "-c", "write -P 3 64k 8k", path)
survives("compat=0.10 with a backing file", path, "compat=0.10")
survives("lazy_refcounts=on", image(), "lazy_refcounts=on")

# Key slots: abc stays valid, whatever happens to def.
SECRETS = ["--object", "secret,id=s,data=abc", "--object", "secret,id=t,data=def"]
path = "x.luks"


def opens():
    return run(IMG, "map", *SECRETS, "--output=json", "--image-opts",
               "driver=luks,file.filename=%s,key-secret=s" % path).returncode == 0


must(IMG, "create", "-q", *SECRETS, "-f", "luks", "-o", "key-secret=s,iter-time=1", path, "64k")
for options in ("state=active,new-secret=t,iter-time=1", "state=inactive,old-secret=t"):
    start, p = logged(path, options, driver="luks", secret=SECRETS, more=",key-secret=s")
    with open(path, "rb") as f:
        end = f.read()
    bad = [p.stderr] if p.returncode else []
    bad += [where + "the password that stays does not open it"
            for where in states(path, start) if not opens()]
    ok(not bad, "key slots: " + options, *bad[:6])
    with open(path, "wb") as f:
        f.write(end)
finish()
