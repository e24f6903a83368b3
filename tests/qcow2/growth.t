#!/usr/bin/env python3
"""growth.t - an image whose last cluster is a partial one grows, with each kind of
preallocation: what the cluster holds (data, compressed data, data that a snapshot shares,
zeros, a backing file's) stays, what is new reads as zeros, snapshots keep their bytes,
and qemu-img finds the image clean.  With 4k clusters its own resize leaves the same bytes
(elsewhere it refuses, leaves noise or, with extended L2, loses compressed data)."""
import os
import random
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import (Bad, IMG, QEMU_IMG, QEMU_IO, attempt, enter_place, finish, must, ok,  # noqa: E402
                 run)

enter_place("growth", memory=True)
SECRET = ["--object", "secret,id=s,data=abc"]
TAIL = 1536                             # bytes in the last cluster

LAYOUTS = {
    # options of creation, cluster size
    "4k": ("cluster_size=4k", 4096),
    "64k, version 2": ("compat=0.10", 65536),
    "extended L2": ("cluster_size=16k,extended_l2=on", 16384),
    "data file": ("cluster_size=4k,data_file=d.raw", 4096),
    "raw data file": ("cluster_size=4k,data_file=d.raw,data_file_raw=on", 4096),
    "luks": ("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size=16k",
             16384),
}
# What the last cluster is, as qemu-io commands; @L its offset, @T its bytes.
STATES = {
    "nothing": [],
    "data": ["write -P 7 @L @T"],
    "data in part": ["write -P 7 @L 700"],
    "zeros": ["write -P 7 @L @T", "write -z -u @L @T"],
    "zeros with space": ["write -P 7 @L @T", "write -z @L @T"],
    "compressed": ["write -c -P 7 @L @T"],
    "shared": ["write -P 7 @L @T", "snapshot"],
    "shared, then zeros": ["write -P 7 @L @T", "snapshot", "write -z -u @L @T"],
    "compressed and shared": ["write -c -P 7 @L @T", "snapshot"],
    "backed": ["backing"],
    "backed, data in part": ["backing", "write -P 7 @L 700"],
    "preallocated": ["preallocated", "write -P 7 @L 700"],
}
GROWTH = [("metadata", 512), ("metadata", "far"), ("full", "cluster"), ("falloc", "far"),
          ("off", 512)]


def can_be(layout, state):
    if "data file" in layout and ("compressed" in state or "shared" in state):
        return False
    if layout == "raw data file" and "backed" in state:
        return False
    if layout == "64k, version 2" and "shared" in state:
        return False                    # cannot be resized
    if layout == "luks":
        return state in ("data", "shared", "backed", "preallocated")
    return layout in ("4k", "extended L2") or state not in ("zeros", "zeros with space",
                                                            "data in part")


def spec(layout, image, more=""):
    if layout == "luks":
        more += ",encrypt.key-secret=s"
    return [*(SECRET if layout == "luks" else []), "--image-opts",
            "driver=qcow2,file.filename=" + image + more]


def make(layout, state):
    """a.qcow2 by qemu-img; the guest's bytes, and the snapshot's or None."""
    options, cluster = LAYOUTS[layout]
    last, size, steps = 3 * cluster, 3 * cluster + TAIL, list(STATES[state])
    data, snapshot, more = bytearray(size), None, []
    if "backing" in steps:
        base = random.Random(1).randbytes(7 * cluster)
        with open("base.raw", "wb") as f:
            f.write(base)
        data[:], more = base[:size], ["-b", "base.raw", "-F", "raw"]
    if "preallocated" in steps:
        options += ",preallocation=metadata"
    # Preallocated space with nothing in it is ours to make: QEMU's LUKS leaves noise.
    maker = IMG if "preallocated" in steps else QEMU_IMG
    must(maker, "create", "-q", *(SECRET if layout == "luks" else []), "-f", "qcow2", "-o", options,
         *more, "a.qcow2", str(size))
    if state == "preallocated" and layout == "luks":
        steps.insert(1, "write -P 1 0 %d" % size)       # noise becomes something known
        data[:] = b"\1" * size
    steps.insert(steps.index("snapshot") if "snapshot" in steps else len(steps),
                 "write -P 5 100 %d" % cluster)
    for step in steps:
        if step == "snapshot":
            must(QEMU_IMG, "snapshot", "-c", "one", *spec(layout, "a.qcow2"))
            snapshot = bytes(data)
        elif step.startswith("write"):
            step = step.replace("@L", str(last)).replace("@T", str(TAIL))
            must(QEMU_IO, *spec(layout, "a.qcow2"), "-c", step)
            at, n = (int(w) for w in step.split()[-2:])
            byte = int(step.split(" -P ")[1].split()[0]) if "-P" in step else 0
            data[at:at + n] = bytes([byte]) * n
    return bytes(data), snapshot


def resize(program, layout, mode, new, tag):
    """A copy of a.qcow2 grows."""
    image, more = tag + ".qcow2", ""
    shutil.copyfile("a.qcow2", image)
    if "data file" in layout:
        shutil.copyfile("d.raw", tag + ".raw")
        more = ",data-file.driver=file,data-file.filename=%s.raw" % tag
    words = spec(layout, image, more)
    must(program, "resize", "-q", "--preallocation=" + mode, *words, str(new))
    return words


def content(words, *more):
    must(QEMU_IMG, "convert", *words, "-O", "raw", *more, "out")
    with open("out", "rb") as f:
        return f.read()


def judge(layout, words, mode, new, data, snapshot):
    """What is wrong with our.qcow2."""
    p = run(QEMU_IMG, "check", *words)
    if p.returncode:
        yield "qemu-img check: %d\n%s%s" % (p.returncode, p.stdout, p.stderr)
    have, want = content(words), data.ljust(new, b"\0")
    if have != want:
        yield "byte %d is wrong, of %d (%d before)" % (
            next((i for i, (a, b) in enumerate(zip(have, want)) if a != b), len(have)), new,
            len(data))
    if snapshot is not None and content(words, "-l", "one")[:len(snapshot)] != snapshot:
        yield "the snapshot's bytes changed"
    if mode == "metadata" and layout == "4k":
        there = content(resize(QEMU_IMG, layout, mode, new, "their"))
        if there != have:
            yield "qemu-img resize leaves other bytes"


for layout, (_, cluster) in LAYOUTS.items():
    for state in STATES:
        if not can_be(layout, state):
            continue
        data, snapshot = make(layout, state)
        bad = []
        # All of them where the data lies as usual and where there are subclusters.
        for mode, to in GROWTH if layout in ("4k", "extended L2") else GROWTH[:2]:
            new = {"far": 6 * cluster + 512, "cluster": 4 * cluster}.get(to) or len(data) + to
            try:
                words = resize(IMG, layout, mode, new, "our")
                bad += ["%s, %d bytes: %s" % (mode, new, x)
                        for x in judge(layout, words, mode, new, data, snapshot)]
            except Bad as e:
                bad.append("%s, %d bytes: %s" % (mode, new, e))
        ok(not bad, "%s, the last cluster: %s" % (layout, state), *bad)


def freed_tail(cluster, mode, held):
    """Free clusters at the file's end that still hold what they held."""
    must(QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", "cluster_size=%d" % cluster, "our.qcow2",
         "8M")
    must(QEMU_IO, "-f", "qcow2", "-c", "write -P 170 0 %d" % held, "our.qcow2")
    must(QEMU_IO, "--image-opts", "-c", "discard 0 %d" % held,
         "driver=qcow2,file.filename=our.qcow2,discard=unmap,pass-discard-request=off,"
         "pass-discard-other=off")
    with open("our.qcow2", "rb") as f:
        if bytes([170]) * cluster not in f.read():
            raise Bad("the tail does not hold anything")
    must(IMG, "resize", "-q", "-f", "qcow2", "--preallocation=" + mode, "our.qcow2", "+1M")
    must(QEMU_IMG, "check", "our.qcow2")
    if content(["-f", "qcow2", "our.qcow2"]).strip(b"\0"):
        raise Bad("the guest sees what was there")


for cluster in (4096, 65536):
    for mode in ("metadata", "falloc", "full"):
        for held in (512 << 10, 4 << 20):
            attempt("%d byte clusters, %s, %d bytes of freed clusters at the end" %
                    (cluster, mode, held), lambda: freed_tail(cluster, mode, held))
finish()
