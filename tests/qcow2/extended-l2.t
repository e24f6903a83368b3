#!/usr/bin/env python3
"""extended-l2.t - subclusters together with everything else a qcow2 image can have: each
image that platter-io or qemu-io writes at odd offsets (data, zeros, discards, compressed
clusters) is clean for qemu-img check, reads as written by both and is mapped alike by
both; then the other program goes on with it, and the first again.  A bitmap knows of
every change, snapshots keep their bytes, a raw data file holds what the guest sees."""
import json
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import bitmaps                                                  # noqa: E402
from tap import Bad, IMG, IO, QEMU_IMG, QEMU_IO, enter_place, finish, must, ok, run  # noqa: E402

enter_place("extended-l2", memory=True)
TOOLS = {("ours", "img"): IMG, ("ours", "io"): IO,
         ("theirs", "img"): QEMU_IMG, ("theirs", "io"): QEMU_IO}
GRAIN = 4096                            # of bitmaps
OTHER = {"ours": "theirs", "theirs": "ours"}
SECRET = ["--object", "secret,id=s,data=abc"]


class Kind:
    def __init__(self, name, cluster, options="", backing=None, then=None, compressed=False,
                 noise=False, odd=1536):
        self.name, self.cluster, self.backing, self.then = name, cluster, backing, then
        self.options = ",".join(filter(None, ["extended_l2=on", "cluster_size=%d" % cluster,
                                              options]))
        self.crypt = "encrypt" in options
        self.compressed, self.noise = compressed, noise     # noise: what is not written
        self.size = 11 * cluster + odd


LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
KINDS = [
    Kind("64k clusters", 65536),
    Kind("16k clusters", 16384, odd=512),
    Kind("over raw", 16384, backing="raw"),
    Kind("over extended L2, preallocated", 65536, "preallocation=metadata", backing="qcow2"),
    Kind("luks", 65536, LUKS),
    Kind("luks, a snapshot", 16384, LUKS, then="snapshot"),
    Kind("luks, preallocation=metadata", 16384, LUKS + ",preallocation=metadata", noise=True),
    Kind("aes", 16384, "encrypt.format=aes,encrypt.key-secret=s", backing="raw"),
    Kind("a data file", 65536, "data_file=@.raw"),
    Kind("a raw data file", 65536, "data_file=@.raw,data_file_raw=on"),
    Kind("a raw data file, a bitmap", 16384, "data_file=@.raw,data_file_raw=on", then="bitmap"),
    Kind("a data file, preallocation=full", 16384, "data_file=@.raw,preallocation=full"),
    Kind("a snapshot over raw", 16384, backing="raw", then="snapshot"),
    Kind("a bitmap", 65536, then="bitmap"),
    Kind("compressed clusters over raw, a snapshot", 16384, backing="raw", compressed=True,
         then="snapshot"),
    Kind("compressed by zstd, a bitmap", 16384, "compression_type=zstd", compressed=True,
         then="bitmap"),
    Kind("preallocation=full", 16384, "preallocation=full", then="snapshot"),
]


class Guest:
    """What was done to a disk, and what is on it."""

    def __init__(self, kind):
        self.k, self.rng = kind, random.Random(kind.name)
        self.base = self.rng.randbytes(kind.size - 3 * kind.cluster) if kind.backing else b""
        self.data = bytearray(self.base.ljust(kind.size, b"\0"))

    def put(self, at, n, byte):
        self.data[at:at + n] = bytes([byte]) * n

    def place(self):
        """Odd places, some on the borders of subclusters or clusters."""
        size, sub, c = self.k.size, self.k.cluster // 32, self.k.cluster
        unit = self.rng.choice((1, 1, 512, sub, sub, c))
        at = self.rng.randrange(size) // unit * unit
        n = self.rng.choice((self.rng.randrange(1, sub * 2), self.rng.randrange(1, c * 3)))
        return at, min(max(n // unit * unit, unit), size - at)

    def op(self):
        kind, (at, n) = self.rng.randrange(10), self.place()
        if kind < 5:
            byte = self.rng.randrange(1, 256)
            self.put(at, n, byte)
            return "write -P %d %d %d" % (byte, at, n)
        if kind < 8:
            self.put(at, n, 0)
            return "write -z %s%d %d" % ("-u " if kind > 5 else "", at, n)
        first, end = -(-at // self.k.cluster) * self.k.cluster, at + n
        end = end if end == self.k.size else end // self.k.cluster * self.k.cluster
        if first < end:
            self.put(first, end - first, 0)
        return "discard %d %d" % (at, n)

    def pack(self):
        """Compressed clusters where nothing is yet."""
        c, out = self.k.cluster, []
        for i in self.rng.sample(range(self.k.size // c), 5) + [self.k.size // c]:
            byte, n = self.rng.randrange(1, 256), min(c, self.k.size - i * c)
            self.put(i * c, n, byte)
            out.append("write -c -P %d %d %d" % (byte, i * c, n))
        return out

    def fill(self):
        self.put(0, self.k.size, 9)
        return ["write -P 9 0 %d" % self.k.size]

    def work(self, count, first=False):
        out = self.pack() if first and self.k.compressed else []
        out += self.fill() if first and self.k.noise else []
        return out + [self.op() for _ in range(count)]


def by(who, tool, *words):
    return must(TOOLS[who, tool], *words).stdout


def spec(k, image):
    more = ",encrypt.key-secret=s" if k.crypt else ""
    return [*(SECRET if k.crypt else []), "--image-opts",
            "driver=qcow2,file.filename=" + image + more]


def make(k, who, g):
    more = []
    if k.backing:
        base = who + ".base"
        with open(base, "wb") as f:
            f.write(g.base)
        if k.backing == "qcow2":
            by(who, "img", "convert", "-f", "raw", "-O", "qcow2", "-o", "extended_l2=on", base,
               base + ".qcow2")
            base += ".qcow2"
        more = ["-b", base, "-F", k.backing]
    by(who, "img", "create", "-q", *(SECRET if k.crypt else []), "-f", "qcow2", "-o",
       k.options.replace("@", who), *more, who + ".qcow2", str(k.size))


def write(k, who, image, commands):
    words = [w for c in commands for w in ("-c", c)]
    by(who, "io", "-d", "unmap", *words, *spec(k, image))


def content(k, who, image, *more):
    by(who, "img", "convert", *spec(k, image), "-O", "raw", *more, "out")
    with open("out", "rb") as f:
        return f.read()


def mapped(k, who, image):
    return json.loads(by(who, "img", "map", "--output=json", *spec(k, image)))


def differs(a, b):
    """Where, in words; "" if nowhere."""
    if a == b:
        return ""
    return "byte %d (lengths %d, %d)" % (
        next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b))), len(a),
        len(b))


def judge(k, image, g, old):
    p = run(QEMU_IMG, "check", *spec(k, image))
    if p.returncode:
        yield "qemu-img check: %d\n%s%s" % (p.returncode, p.stdout[:600], p.stderr[:600])
    for who in ("ours", "theirs"):
        d = differs(content(k, who, image), bytes(g.data))
        if d:
            yield "%s reads something else: %s" % (who, d)
        d = old is not None and differs(content(k, who, image, "-l", "one"), old)
        if d:
            yield "%s reads something else in the snapshot: %s" % (who, d)
    maps = [mapped(k, who, image) for who in ("ours", "theirs")]
    if maps[0] != maps[1]:
        yield "mapped differently\nours   %s\ntheirs %s" % tuple(
            [e for e in m if e not in other] for m, other in (maps, maps[::-1]))
    if "data_file_raw" in k.options:
        with open(image.replace("qcow2", "raw"), "rb") as f:
            d = differs(f.read()[:k.size], bytes(g.data))
        if d:
            yield "the raw data file: %s" % d


def start(k, who, g):
    """An image by one program; what was on it when it got its snapshot or bitmap."""
    image = who + ".qcow2"
    make(k, who, g)
    write(k, who, image, g.work(14, True))
    old = bytes(g.data)
    if k.then == "snapshot":
        by(who, "img", "snapshot", "-c", "one", *spec(k, image))
    elif k.then == "bitmap":
        by(who, "img", "bitmap", "--add", "-g", str(GRAIN), image, "one")
    if k.then:
        write(k, who, image, g.work(14))
    return old


def unrecorded(image, old, new):
    """The first change that the bitmap does not know of."""
    known = {at // GRAIN for start, n in bitmaps.dirty(image, "one")
             for at in range(start, start + n, GRAIN)}
    for at in range(0, len(new), GRAIN):
        if old[at:at + GRAIN] != new[at:at + GRAIN] and at // GRAIN not in known:
            return "the bitmap does not know of the change at %d" % at
    return None


def run_kind(k):
    bad = []
    for who in ("ours", "theirs"):
        g, image = Guest(k), who + ".qcow2"
        old = start(k, who, g)
        snapshot = old if k.then == "snapshot" else None
        bad += ["written by %s: %s" % (who, x) for x in judge(k, image, g, snapshot)]
        write(k, OTHER[who], image, g.work(14))
        write(k, who, image, g.work(8))
        bad += ["by %s, the other, and again: %s" % (who, x) for x in judge(k, image, g, snapshot)]
        if k.then == "bitmap":
            bad += filter(None, [unrecorded(image, old, g.data)])
    return bad


for kind in KINDS:
    if len(sys.argv) > 1 and kind.name not in sys.argv[1:]:
        continue
    try:
        problems = run_kind(kind)
    except Bad as e:
        problems = [e]
    ok(not problems, kind.name, *problems)
    for name in os.listdir():
        os.unlink(name)
finish()
