#!/usr/bin/env python3
"""convert-random.t - random images converted by qemu-img and by ours: what is said, the map of
the result and its content must be the same, and for raw and qcow2 all bytes of the file.  Now and
then the same images are compared, measured or copied by dd.

    tests/img/convert-random.t              the seeds that are always tried
    tests/img/convert-random.t FIRST LAST   those from FIRST to LAST: to look for more
Left out is what docs/compatibility.md tells of (`layout`, `convert-pieces`).
"""
import filecmp
import json
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, QEMU_IMG, QEMU_IO, enter_place, finish, must, ok, run  # noqa: E402

K = 1024
PLAIN, ONTO = range(1, 61), range(1001, 1061)


def writes(r, size, most, units, kinds):
    """Commands for qemu-io: up to most writes of one of these kinds."""
    words = []
    for _ in range(r.randrange(1, most)):
        unit = r.choice(units)
        at = r.randrange(size // unit) * unit
        n = min(r.choice((1, 1, 2, 5, 16, 40)) * unit, size - at)
        words += ["-c", "%s %d %d" % (r.choice(kinds).replace("N", str(r.randrange(1, 256))), at, n)]
    return words


def create(name, form, size, options=(), backing=None):
    words = ["-o", ",".join(options)] if options else []
    words += ["-b", backing[0], "-F", backing[1]] if backing else []
    must(QEMU_IMG, "create", "-q", "-f", form, *words, name, size)


def both(words):
    """The command by both: the targets are theirs and ours.  What they said, if it differs."""
    said = []
    for program, name in ((QEMU_IMG, "theirs"), (IMG, "ours")):
        p = run(program, *(w.replace("TARGET", name) for w in words))
        said.append((p.returncode, p.stdout.replace(name, "TARGET"),
                     p.stderr.replace("platter-img", "qemu-img").replace(name, "TARGET")))
    return [] if said[0] == said[1] else said


def mapped(form, name, places):
    """The map of an image; without places neighbours that only those tell apart are one."""
    out = []
    for e in json.loads(must(QEMU_IMG, "map", "--output=json", "-f", form, name).stdout):
        if places:
            out.append(e)
            continue
        kind = [e[k] for k in ("depth", "present", "zero", "data", "compressed")]
        if out and out[-1][0] == kind:
            out[-1][1] += e["length"]
        else:
            out.append([kind, e["length"]])
    return out


def judge(form, places, whole):
    """What is wrong with ours."""
    if not os.path.exists("theirs") and not os.path.exists("ours"):
        return []
    bad = []
    if mapped(form, "theirs", places) != mapped(form, "ours", places):
        bad.append("another map")
    if run(QEMU_IMG, "compare", "-f", form, "-F", form, "theirs", "ours").returncode:
        bad.append("ANOTHER CONTENT")
    if form == "qcow2" and run(QEMU_IMG, "check", "ours").returncode:
        bad.append("qemu-img check finds something")
    if whole and not filecmp.cmp("theirs", "ours", False):
        bad.append("other bytes in the file")
    return bad


def plain(r):
    """One image into a new one."""
    size = r.choice((1, 3, 5, 9, 20)) * K * K
    form = r.choice(("raw", "qcow2", "qcow2", "vmdk", "qcow2"))
    clusters = ("cluster_size=" + r.choice(("4k", "16k", "64k", "64k", "256k", "2M")),)
    create("src", form, size, clusters if form == "qcow2" else ())
    must(QEMU_IO, "-f", form, *writes(r, size, 25, (4 * K, 64 * K, 64 * K),
                                      ("write -P N", "write -P N", "write -P 0", "write -z")), "src")
    to, options, words = r.choice(("qcow2",) * 5 + ("raw", "vhdx", "vpc")), [], []
    if to == "qcow2":
        options += ["cluster_size=" + r.choice(("4k", "16k", "64k", "256k", "2M"))] if r.random() < .4 else []
        options += ["compat=0.10"] if r.random() < .2 else []
        options += [r.choice(("preallocation=metadata", "extended_l2=on"))] \
            if r.random() < .2 and "compat=0.10" not in options and \
            "cluster_size=4k" not in options else []
        words += ["-c"] if r.random() < .3 and len(options) < 2 else []
    if r.random() < .2 and not words and form != "vmdk":
        words += ["-S", r.choice(("0", "64k", "1M", "8k"))]
    words += ["-o", ",".join(options)] if options else []
    words = ["convert", "-f", form, "-O", to, *words, "src", "TARGET"]
    bad = both(words) + both(["measure", "-f", form, "-O", "qcow2", "src"])
    return words, bad + judge(to, True, to in ("qcow2", "raw") and "-c" not in words)


def chain(r, size):
    """One to three images, each on the one before it."""
    names = []
    for name in "abc"[:r.randrange(1, 4)]:
        form = "qcow2" if names else r.choice(("qcow2", "qcow2", "raw", "vmdk"))
        options = ["cluster_size=" + r.choice(("4k", "16k", "64k", "64k", "256k"))]
        options = ["extended_l2=on"] if r.random() < .2 else options
        n = size()
        create(name, form, n, options if form == "qcow2" else (), names[-1] if names else None)
        must(QEMU_IO, "-f", form, *writes(r, n, 14, (4 * K, 64 * K, 64 * K, 512), CHANGES), name)
        names.append((name, form))
    return names


CHANGES = ("write -P N", "write -P N", "write -P 0", "write -z", "write -z -u")


def onto(r):
    """A chain: onto a backing file, into what is there; compared, measured, cut out by dd."""
    def size():
        return r.choice((1, 2, 3, 5, 7)) * K * K + r.choice((0, 0, 0, 512, 4096, 65536, 300 * K))

    names = chain(r, size)
    src, base, to = names[-1][0], r.choice(names), "qcow2"
    kind = r.random()
    sparse = ["-S", r.choice(("0", "4k"))] if r.random() < .2 else []
    if kind < .4:
        words = ["convert", "-O", "qcow2", "-B", base[0], "-F", base[1], *sparse,
                 *(["-c"] if r.random() < .3 else []), src, "TARGET"]
    elif kind < .7:
        to, there = r.choice(("qcow2", "qcow2", "qcow2", "raw")), size()
        options = ["cluster_size=" + r.choice(("4k", "64k", "64k"))]
        more = writes(r, there, 6, (4 * K, 64 * K, 64 * K, 512), CHANGES)
        for name in ("theirs", "ours"):
            create(name, to, there, options if to == "qcow2" else ())
            must(QEMU_IO, "-f", to, *more, name)
        words = ["convert", "-n", "-O", to, *sparse, src, "TARGET"]
    elif kind < .8:
        words = ["compare", src, base[0]]
    elif kind < .9:
        words = ["measure", "-O", "qcow2", src]
    else:
        to = r.choice(("raw", "qcow2"))
        words = ["dd", "bs=%d" % r.choice((512, 1000, 4096, 65536)), "skip=%d" % r.randrange(200),
                 "count=%d" % r.randrange(3000), "if=" + src, "of=TARGET", "-O", to]
    return words, both(words) + judge(to, False, False)


def main():
    enter_place("convert-random", memory=True)
    seeds = sys.argv[1:] and range(int(sys.argv[1]), int(sys.argv[2]) + 1)
    for kind, always in ((plain, PLAIN), (onto, ONTO)):
        for seed in seeds or always:
            words, bad = kind(random.Random(seed))
            ok(not bad, "%s %d: %s" % (kind.__name__, seed, " ".join(words)), *bad)
            for name in os.listdir():
                os.unlink(name)
    finish()


main()
