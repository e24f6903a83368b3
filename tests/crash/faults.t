#!/usr/bin/env python3
"""faults.t - the N-th request to the file fails, for every N (bad-input.md, D).

A fixed guest script runs on a qcow2 image while one request of a kind fails, once
or from then on.  Whatever N is: the program ends by itself, with an error status
when a guest operation was refused; check finds no corruption (leaks may be); what
was written and flushed before the script is still there; what the script wrote
reads as old or new; repair is clean in one pass and the image can be written
again."""
import os
import shutil
import subprocess
import sys
import tempfile

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [TESTS, os.path.join(TESTS, "qcow2")]
import qcow2img as q                                            # noqa: E402
from tap import Bad, IMG, IO, SAN, attempt, finish, must        # noqa: E402

MAX_N = int(os.environ.get("FAULT_MAX", "12" if SAN else "40"))
ENOUGH = 6
SIZE = 2 << 20

# Old data: pattern 1 in [0, 256k), and a hole behind it up to 1 MiB.
SCRIPT = ["write -q -P 2 100k 20k", "write -q -P 3 300k 130k", "flush", "write -q -z 10k 30k",
          "discard -q 128k 64k", "write -q -P 4 1M 200k", "aio_write -q -P 5 600k 10k",
          "aio_write -q -P 6 650k 70k", "aio_flush", "flush", "write -q -P 7 1500k 64k"]
MAY = [(100, 120, {1, 2}), (300, 430, {0, 3}), (10, 40, {1, 0}), (128, 192, {1, 0}),
       (1024, 1224, {0, 4}), (600, 610, {0, 5}), (650, 720, {0, 6}), (1500, 1564, {0, 7})]

CASES = [
    ("a write fails with ENOSPC once", "write", "ENOSPC", False),
    ("every write from there on fails with ENOSPC", "write", "ENOSPC", True),
    ("a write fails with EIO once", "write", "EIO", False),
    ("every request from there on fails", "any", "EIO", True),
    ("a flush fails", "flush", "EIO", False),
    ("a read fails", "read", "EIO", False),
    ("a zero write fails", "zero", "EIO", False),
    ("a discard fails", "discard", "EIO", False),
]


def content(tmp, image):
    out = os.path.join(tmp, "out.raw")
    must(IMG, "convert", "-f", "qcow2", "-O", "raw", image, out)
    with open(out, "rb") as f:
        return f.read()


def verify(data):
    """Every 512-byte sector is uniform and holds what it may."""
    allowed = [{1} if s < 512 else {0} for s in range(SIZE // 512)]
    for first, end, values in MAY:
        for s in range(first * 2, end * 2):
            allowed[s] |= values
    for s, values in enumerate(allowed):
        sector = data[s * 512:(s + 1) * 512]
        if sector[0] not in values or sector.count(sector[:1]) != 512:
            raise Bad("sector %d holds %s, may hold %s" % (s, sector[:8].hex(), sorted(values)))


def one(tmp, template, op, err, sticky, nth):
    """True if the fault happened."""
    image = os.path.join(tmp, "test.qcow2")
    shutil.copyfile(template, image)
    opts = "driver=qcow2,file.driver=fault,file.op=%s,file.nth=%d,file.errno=%s%s," \
           "file.file.filename=%s" % (op, nth, err, ",file.sticky=on" if sticky else "", image)
    r = must(IO, "--image-opts", *[w for c in SCRIPT for w in ("-c", c)], opts, codes=(0, 1))
    if err == "ENOSPC" and r.returncode and "No space left" not in r.stdout + r.stderr:
        raise Bad("ENOSPC became something else: %s%s" % (r.stdout, r.stderr))
    if not q.field(image, "incompatible_features") & q.INCOMPAT_DIRTY:
        must(IMG, "check", "-f", "qcow2", image, codes=(0, 3))
    before = content(tmp, image)
    verify(before)
    must(IMG, "check", "-f", "qcow2", "-r", "all", image)
    if content(tmp, image) != before:
        raise Bad("the repair changed guest data")
    must(IO, "-f", "qcow2", "-c", "write -q -P 9 0 2M", "-c", "read -q -P 9 0 2M", image)
    must(IMG, "check", "-f", "qcow2", image)
    return r.returncode != 0


def make(tmp, options):
    path = os.path.join(tmp, "template.qcow2")
    must(IMG, "create", "-q", "-f", "qcow2", "-o", options, path, SIZE)
    must(IO, "-f", "qcow2", "-c", "write -q -P 1 0 256k", path)
    return path


def every(tmp, template, op, err, sticky):
    """One N after the other, until some are past the last request of the kind."""
    hit = missed = nth = 0
    while nth < MAX_N and missed < ENOUGH:
        nth += 1
        try:
            seen = one(tmp, template, op, err, sticky, nth)
        except (Bad, subprocess.TimeoutExpired) as ex:
            raise Bad("N = %d: %s" % (nth, ex)) from None
        hit += seen
        missed = 0 if seen else missed + 1
    return "N = 1..%d, %d seen by the guest" % (nth, hit)


for layout in ("cluster_size=64k", "cluster_size=512", "cluster_size=4k,lazy_refcounts=on"):
    with tempfile.TemporaryDirectory(prefix="platter-fault.") as place:
        image = make(place, layout)
        for case, *fault in CASES:
            attempt("%s: %s" % (layout, case), lambda: every(place, image, *fault))
finish()
