#!/usr/bin/env python3
"""amend.t - the machine dies in the middle of an amend: at every write and flush, with
what was not yet durable lost, kept or torn.  Whatever is left is a clean image of the
old kind or the new one, reads the same to the guest, and the same amend then ends
well.  Key slots: some password opens the image at every moment."""
import os
import random
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "qcow2")]
from checklib import (IMG, QEMU_IMG, Tap, content, create, must, ours, run, theirs)  # noqa: E402
from replay import Host, read_log                               # noqa: E402

t = Tap()
PER_POINT = ("none", "all", "random")


def states(path, log, start):
    """Every file that a crash may have left, once each."""
    events, seen = read_log(log), set()
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


def amend(path, options, log=None, driver="qcow2", secret=(), more=""):
    below = ("file.driver=logwrites,file.log=%s,file.file.filename=%s" % (log, path) if log
             else "file.filename=%s" % path)
    return run(IMG, "amend", *secret, "--image-opts", "driver=%s,%s%s" % (driver, below, more),
               "-o", options)


def logged(path, *args, **kw):
    """The image before, and the log of the amend."""
    log = t.path("log")
    open(log, "wb").close()
    with open(path, "rb") as f:
        start = f.read()
    return start, log, amend(path, *args, log=log, **kw)


def survives(name, path, options):
    before = content(path)
    start, log, (rc, _, err) = logged(path, options)
    bad, n = ([err] if rc else []), 0
    if content(path) != before:
        bad.append("the guest's bytes changed")
    for where in states(path, log, start):
        n += 1
        if content(path) != before:
            bad.append(where + "guest bytes changed")
        for who, c in (("ours", ours(path)), ("qemu-img", theirs(path))):
            if c.rc not in (0, 3):
                bad.append(where + "%s: %s" % (who, c))
        rc, _, err = amend(path, options)
        if rc or theirs(path).rc not in (0, 3) or content(path) != before:
            bad.append(where + "the same amend again: %s %s" % (err, theirs(path)))
        if len(bad) > 6:
            break
    t.ok(not bad, "%s: %d states" % (name, n), *bad[:6])


def image(*more, **kw):
    create(t.path("a.qcow2"), "2M", "write -P 1 0 256k", "write -P 2 512k 64k", *more, **kw)
    return t.path("a.qcow2")


survives("refcount_bits=64", image(), "refcount_bits=64")
survives("refcount_bits=1", image(cluster_size=4096), "refcount_bits=1")
survives("compat=1.1", image(compat="0.10"), "compat=1.1")
survives("compat=0.10 with zero clusters", image("write -z 1M 256k", "write -z 64k 64k"), "compat=0.10")
path = image("write -z 1M 128k", cluster_size=4096)
must(QEMU_IMG, "snapshot", "-c", "one", path)
survives("compat=0.10 with zero clusters in a snapshot", path, "compat=0.10")
must(QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", t.path("base.qcow2"), "2M")
path = t.path("b.qcow2")
must(QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "base.qcow2", "-F",
     "qcow2", path)
must(os.path.join(os.path.dirname(QEMU_IMG), "qemu-io"), "-c", "write -z 0 64k", "-c",
     "write -P 3 64k 8k", path)
survives("compat=0.10 with a backing file", path, "compat=0.10")
survives("lazy_refcounts=on", image(), "lazy_refcounts=on")

# Key slots: abc stays valid, whatever happens to def.
SECRETS = ["--object", "secret,id=s,data=abc", "--object", "secret,id=t,data=def"]
path = t.path("x.luks")


def opens():
    return subprocess.run([IMG, "map", *SECRETS, "--output=json", "--image-opts",
                           "driver=luks,file.filename=%s,key-secret=s" % path],
                          capture_output=True).returncode == 0


must(IMG, "create", "-q", *SECRETS, "-f", "luks", "-o", "key-secret=s,iter-time=1", path, "64k")
for options in ("state=active,new-secret=t,iter-time=1", "state=inactive,old-secret=t"):
    start, log, (rc, _, err) = logged(path, options, driver="luks", secret=SECRETS,
                                      more=",key-secret=s")
    with open(path, "rb") as f:
        end = f.read()
    bad = [err] if rc else []
    bad += [where + "the password that stays does not open it"
            for where in states(path, log, start) if not opens()]
    t.ok(not bad, "key slots: " + options, *bad[:6])
    with open(path, "wb") as f:
        f.write(end)
t.done()
