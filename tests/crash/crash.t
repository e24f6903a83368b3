#!/usr/bin/env python3
"""crash.t - power fails in the middle of a guest's work (bad-input.md, E).

A guest writes, zeroes, discards and flushes through a qcow2 image whose file is
logged.  From the log the file is rebuilt as crashes may have left it: at each
flush boundary and at random points, with none, all, and random torn subsets of
what was not durable.  For each such state:
 - check finds no corruption (leaks may be; with the dirty bit, after its repair),
 - what the guest had flushed is there, everything else is old or new,
 - check -r all ends clean in one pass and changes no guest byte,
 - so does the oracle's where lazy refcounts left the image dirty,
 - a bitmap that is not marked IN_USE knows of every change,
 - now and then: a writable open works and leaves the image sound, and the oracle's
   check agrees.
With sanitizers a quarter of the states.  CRASH_SEED and CRASH_STATES override."""
import os
import random
import shutil
import sys
import tempfile

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [TESTS, os.path.join(TESTS, "qcow2")]
import bitmaps                                                  # noqa: E402
import qcow2img as q                                            # noqa: E402
import replay                                                   # noqa: E402
from tap import BUILD, Bad, IMG, IO, QEMU_IMG, SAN, attempt, finish, must  # noqa: E402

WORKLOAD = os.path.join(BUILD, "tests/crash/workload")
STATES = int(os.environ.get("CRASH_STATES", "20" if SAN else "80"))
SEED = int(os.environ.get("CRASH_SEED", "20260801"))
SIZE = 3 << 20


class Case:
    def __init__(self, name, options, backing=None, ops=400, compressed=False,
                 compress=None, bitmap=None):
        self.name, self.options, self.backing, self.ops = name, options, backing, ops
        self.compressed = compressed            # starts full of compressed clusters
        self.compress = compress                # the guest writes compressed clusters, too
        self.bitmap = bitmap                    # granularity of one that records
        self.seed = SEED

    def start(self):
        """The image before the guest, its file's bytes and what the guest sees."""
        self.image, self.log = self.path("top.qcow2"), self.path("log")
        options = ",".join(self.options)
        words = ["create", "-q", "-f", "qcow2", "-o", options]
        if self.backing:
            rng = random.Random(self.seed)
            with open(self.path("base.raw"), "wb") as f:
                # Shorter than the overlay, with holes.
                for i in range(0, SIZE // 3 * 2, 65536):
                    f.write(rng.randbytes(65536) if rng.random() < 0.7 else bytes(65536))
            base = "base.raw"
            if self.backing == "qcow2":
                must(IMG, "convert", "-f", "raw", "-O", "qcow2", self.path("base.raw"),
                     self.path("base.qcow2"))
                base = "base.qcow2"
            words += ["-b", base, "-F", self.backing]
        must(IMG, *words, self.image, SIZE)
        if self.compressed:
            self.make_compressed(options)
        if self.bitmap:
            must(IMG, "bitmap", "--add", "-g", self.bitmap, self.image, "seen")
        with open(self.image, "rb") as f:
            self.file = f.read()
        self.before = self.content(self.image)
        must(WORKLOAD, self.seed, self.ops, "qcow2", self.image, self.log,
             *([self.compress] if self.compress else []))
        self.events = replay.read_log(self.log)

    def make_compressed(self, options):
        """Written by the oracle: several streams share a host cluster, some cross."""
        rng, raw = random.Random(self.seed), self.path("full.raw")
        with open(raw, "wb") as f:
            for _ in range(SIZE // 4096):
                n = rng.randrange(200, 3800)
                f.write(rng.randbytes(n) + bytes(4096 - n))
        must(QEMU_IMG, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw,
             self.image)

    def path(self, name):
        return os.path.join(self.dir, name)

    def content(self, image):
        out = self.path("out.raw")
        must(IMG, "convert", "-f", "qcow2", "-O", "raw", image, out)
        with open(out, "rb") as f:
            return f.read()

    def run(self):
        self.start()
        rng = random.Random(self.seed + 1)
        host = replay.Host(self.events, self.file)
        self.leaked = self.dirty = self.believed = 0
        for n, point in enumerate(replay.crash_points(rng, self.events, STATES)):
            host.advance(point)
            how = ("none", "all", "random", "random", "random")[n % 5]
            disk = host.crash(rng, how)
            may = replay.guest_view(self.events, point, self.before)
            try:
                self.verify(n, disk, may)
            except Bad as ex:
                kept = os.path.join(os.environ.get("TMPDIR", "/tmp"), "crash-failed.qcow2")
                with open(kept, "wb") as f:
                    f.write(disk.buf)
                raise Bad("state %d: crash at record %d of %d, %s of %d in doubt (seed %d; file "
                          "kept as %s)\n%s" % (n, point, len(self.events), how, len(host.doubt),
                                               self.seed, kept, ex)) from None
        if "lazy_refcounts=on" in self.options and not self.dirty:
            raise Bad("lazy refcounts never left the image dirty")
        return "%d crash states (%d leaked, %d dirty)" % (STATES, self.leaked, self.dirty)

    def verify(self, n, disk, may):
        image = self.path("crash.qcow2")
        with open(image, "wb") as f:
            f.write(disk.buf)
        dirty = bool(self.version3() and q.field(image, "incompatible_features") & 1)
        self.dirty += dirty
        if not dirty:
            r = must(IMG, "check", "-f", "qcow2", image, codes=(0, 3))
            self.leaked += r.returncode == 3
        seen = self.content(image)
        at = replay.wrong_sector(seen, may, self.before)
        if at is not None:
            raise Bad("guest sector %d holds neither its old nor a new value: expected %s, has %s" %
                      (at, sorted(may[at]), seen[at * 512:at * 512 + 16].hex()))
        if self.bitmap:
            self.recorded(image, seen)
        if n % 4 == 3:
            self.reopened(image, seen)
        if dirty and n % 5 == 1:
            self.repaired_by_others(image, seen)
        self.repaired(image, seen, n)

    def recorded(self, image, seen):
        """A bitmap that is not in use says where the guest's data has changed."""
        flags, granularity, bits = bitmaps.read(image)["seen"]
        if flags & bitmaps.IN_USE:
            return
        self.believed += 1
        for at in range(0, SIZE, granularity):
            i = at // granularity
            if seen[at:at + granularity] != self.before[at:at + granularity] and \
                    not (i // 8 < len(bits) and bits[i // 8] >> i % 8 & 1):
                raise Bad("a valid bitmap does not know of the change at %#x" % at)

    def repaired_by_others(self, image, seen):
        """The oracle makes the counts anew that ours had left for later."""
        copy = self.path("copy.qcow2")
        shutil.copyfile(image, copy)
        must(QEMU_IMG, "check", "-f", "qcow2", "-r", "all", copy)
        must(IMG, "check", "-f", "qcow2", copy)
        if self.content(copy) != seen:
            raise Bad("the oracle's repair changed guest data")

    def version3(self):
        return "compat=0.10" not in self.options

    def reopened(self, image, seen):
        """A writable open (which repairs a dirty image) harms nothing."""
        copy = self.path("copy.qcow2")
        shutil.copyfile(image, copy)
        must(IO, "-f", "qcow2", "-c", "write -P 0x5a 100k 70k", "-c", "discard 400k 256k", copy)
        must(IMG, "check", "-f", "qcow2", copy, codes=(0, 3))
        now = self.content(copy)
        if now[:102400] != seen[:102400] or now[700 << 10:] != seen[700 << 10:]:
            raise Bad("writing to the crashed image changed other guest data")

    def repaired(self, image, seen, n):
        must(IMG, "check", "-f", "qcow2", "-r", "all", image)
        must(IMG, "check", "-f", "qcow2", image)
        if self.content(image) != seen:
            raise Bad("the repair changed guest data")
        if n % 10 == 0:
            must(QEMU_IMG, "check", "-f", "qcow2", image)


class Harness(Case):
    """The harness itself, on a raw file: a state that keeps what was flushed is
    accepted, and one that lost a flush is noticed."""

    def run(self):
        self.image, self.log = self.path("raw.img"), self.path("log")
        base = bytes(SIZE)
        with open(self.image, "wb") as f:
            f.write(base)
        must(WORKLOAD, self.seed, self.ops, "raw", self.image, self.log)
        self.events = replay.read_log(self.log)
        rng = random.Random(self.seed + 1)
        points = replay.crash_points(rng, self.events, STATES)
        if self.violations(points, rng, base):
            raise Bad("a correct state was taken for a wrong one")
        for e in self.events:
            if e.type == "F":
                e.ok = False                    # as if no flush had reached the disk
        if not self.violations(points, rng, base):
            raise Bad("lost flushes went unnoticed")

    def violations(self, points, rng, base):
        host, bad = replay.Host(self.events, base), 0
        for point in points:
            host.advance(point)
            disk = host.crash(rng, "random")
            disk.put(SIZE - 1, disk.buf[SIZE - 1:SIZE] or b"\0")
            may = replay.guest_view(self.events, point, base)
            bad += replay.wrong_sector(disk.buf, may, base) is not None
        return bad


CASES = [
    Harness("the harness: a lost flush on a raw file is noticed", []),
    Case("64k clusters", ["cluster_size=64k"]),
    Case("64k clusters over raw", ["cluster_size=64k"], "raw"),
    Case("64k clusters over qcow2, lazy refcounts", ["cluster_size=64k", "lazy_refcounts=on"],
         "qcow2"),
    Case("4k clusters over raw", ["cluster_size=4k"], "raw"),
    Case("4k clusters over raw, lazy refcounts", ["cluster_size=4k", "lazy_refcounts=on"], "raw"),
    Case("512 byte clusters", ["cluster_size=512"]),
    Case("512 byte clusters over raw, lazy refcounts", ["cluster_size=512", "lazy_refcounts=on"],
         "raw"),
    Case("version 2, 4k clusters over raw", ["cluster_size=4k", "compat=0.10"], "raw"),
    Case("subclusters of 2k over qcow2", ["cluster_size=64k", "extended_l2=on"], "qcow2"),
    Case("subclusters of 512 bytes over raw, compressed writes",
         ["cluster_size=16k", "extended_l2=on"], "raw", compress=16384),
    Case("1-bit refcounts, 4k clusters", ["cluster_size=4k", "refcount_bits=1"]),
    Case("a bitmap, 64k clusters over raw", ["cluster_size=64k"], "raw", ops=150, bitmap=4096),
    Case("a bitmap, 512 byte clusters", ["cluster_size=512"], ops=150, bitmap=512),
    Case("compressed writes, 4k clusters over raw", ["cluster_size=4k"], "raw", compress=4096),
    Case("compressed writes, 64k clusters, zstd",
         ["cluster_size=64k", "compression_type=zstd"], compress=65536),
    Case("compressed clusters", ["cluster_size=4k"], compressed=True),
]


for case in CASES:
    if case.name in sys.argv[1:] or not sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix="platter-crash.") as case.dir:
            attempt(case.name, case.run)
finish()
