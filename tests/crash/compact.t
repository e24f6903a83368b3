#!/usr/bin/env python3
"""compact.t - platter-img compact: the file becomes as short as what it holds, guests and
snapshots see the same as before, qemu-img check agrees; and at whatever moment it is
interrupted (the file rebuilt from a log of its writes, as in crash.t) the image checks
clean or with leaks only, with the same content.
CRASH_SEED and COMPACT_STATES override."""
import json
import os
import random
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import replay                                                   # noqa: E402
from tap import Bad, IMG, IO, QEMU_IMG, attempt, finish, must   # noqa: E402

STATES = int(os.environ.get("COMPACT_STATES", "6"))
SEED = int(os.environ.get("CRASH_SEED", "20260802"))


def io(name, *commands):
    words = [IO]
    for c in commands:
        words += ["-c", c]
    must(*words, name)


class Case:
    def __init__(self, name, options, size=6 << 20, snapshots=0, backing=False, compressed=False,
                 zeros=False, rounds=30, states=None):
        self.name, self.options, self.size = name, options, size
        self.snapshots, self.backing, self.compressed = snapshots, backing, compressed
        self.zeros, self.rounds = zeros, rounds
        self.states = STATES if states is None else states

    def build(self, rng):
        if self.compressed:
            with open("full.raw", "wb") as f:
                for _ in range(self.size // 4096):
                    n = rng.randrange(200, 3800)
                    f.write(rng.randbytes(n) + bytes(4096 - n))
            must(QEMU_IMG, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", self.options,
                 "full.raw", "a.qcow2")
        else:
            more = []
            if self.backing:
                with open("base.raw", "wb") as f:
                    f.write(rng.randbytes(self.size // 2))
                more = ["-b", "base.raw", "-F", "raw"]
            must(QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", self.options, *more, "a.qcow2",
                 self.size)
        for s in range(self.snapshots + 1):
            commands = []
            for _ in range(self.rounds):
                off = rng.randrange(self.size // 512) * 512
                length = min(rng.choice((512, 4096, 65536, 200000)), self.size - off) // 512 * 512
                kind = rng.random()
                if kind < 0.6:
                    commands.append("write -P %d %d %d" % (rng.randrange(1, 256), off, length))
                elif kind < 0.75:
                    commands.append("write -z -u %d %d" % (off, length))
                else:
                    commands.append("discard %d %d" % (off // 65536 * 65536, rng.choice((65536, 1 << 20))
                                    if off // 65536 * 65536 + (1 << 20) <= self.size else 65536))
            if self.zeros:
                commands.append("write -P 0 1M 2M")
            io("a.qcow2", *commands)
            if s < self.snapshots:
                must(IMG, "snapshot", "-c", "s%d" % s, "a.qcow2")
        if self.snapshots > 1:
            must(IMG, "snapshot", "-d", "s0", "a.qcow2")
        # Free space in front of what stays.
        io("a.qcow2", "discard 0 %d" % (self.size // 3 // 65536 * 65536))

    def views(self, name):
        names = [s["name"] for s in json.loads(must(IMG, "snapshot", "-l", "--output=json",
                                                    name).stdout)]
        return [must(IMG, "digest", name).stdout.split()[0]] + [
            must(IMG, "digest", "-l", s, name).stdout.split()[0] for s in names]

    def test(self):
        rng = random.Random(SEED)
        self.build(rng)
        before, length = self.views("a.qcow2"), os.path.getsize("a.qcow2")
        shutil.copyfile("a.qcow2", "b.qcow2")
        for f in ("log", "log2"):
            if os.path.exists(f):
                os.unlink(f)
        opts = "driver=qcow2,file.driver=logwrites,file.log=log,file.file.filename=b.qcow2"
        flags = ["-z"] if self.zeros else []
        r = json.loads(must(IMG, "compact", "--output=json", *flags, "--image-opts", opts).stdout)
        after = os.path.getsize("b.qcow2")
        if self.views("b.qcow2") != before:
            raise Bad("the content changed")
        must(QEMU_IMG, "check", "-f", "qcow2", "b.qcow2")
        must(IMG, "check", "-f", "qcow2", "b.qcow2")
        if r["moved-bytes"] == 0 or after >= length:
            raise Bad("nothing was gained: %s, %d -> %d" % (r, length, after))
        # As short as it can be: a second time finds nothing to do.
        again = json.loads(must(IMG, "compact", "--output=json", "b.qcow2").stdout)
        if again["length"] != after and not self.compressed:
            raise Bad("the second time found more: %s" % again)
        events = replay.read_log("log")
        with open("a.qcow2", "rb") as f:
            host = replay.Host(events, f.read())
        leaked = self.crashes(rng, host, events, before)
        return "%d -> %d bytes, %d of %d crash states leaked" % (length, after, leaked, self.states)

    def crashes(self, rng, host, events, before):
        ends = [e.over for e in events if e.type == "F" and e.over is not None]
        points = [rng.choice(ends) + rng.randrange(2) for _ in range(self.states // 2)]
        points += [rng.randrange(1, len(events)) for _ in range(self.states - len(points))]
        leaked = 0
        for n, point in enumerate(sorted(points)):
            host.advance(point)
            disk = host.crash(rng, ("none", "all", "random", "random")[n % 4])
            with open("c.qcow2", "wb") as f:
                f.write(disk.buf)
            try:
                leaked += must(QEMU_IMG, "check", "-f", "qcow2", "c.qcow2",
                               codes=(0, 3)).returncode == 3
                if self.views("c.qcow2") != before:
                    raise Bad("the content changed")
                if n % 4 == 3:          # and it may simply be run again
                    must(IMG, "compact", "-q", "c.qcow2")
                    must(QEMU_IMG, "check", "-f", "qcow2", "c.qcow2")
                    if self.views("c.qcow2") != before:
                        raise Bad("run again, it changed the content")
            except Bad as ex:
                raise Bad("state %d: crash at record %d of %d (seed %d)\n%s" %
                          (n, point, len(events), SEED, ex)) from None
        return leaked


CASES = [
    Case("64k clusters", "cluster_size=64k"),
    Case("4k clusters over a backing file", "cluster_size=4k", backing=True),
    Case("512 byte clusters", "cluster_size=512", size=2 << 20),
    Case("2M clusters", "cluster_size=2M", size=48 << 20, rounds=10, states=4),
    Case("version 2", "cluster_size=4k,compat=0.10"),
    Case("1-bit refcounts", "cluster_size=4k,refcount_bits=1"),
    Case("64-bit refcounts, 512 byte clusters", "cluster_size=512,refcount_bits=64", size=2 << 20),
    Case("snapshots", "cluster_size=4k", snapshots=3),
    Case("snapshots, 512 byte clusters", "cluster_size=512", size=1 << 20, snapshots=2),
    Case("compressed", "cluster_size=4k", compressed=True),
    Case("compressed, with snapshots", "cluster_size=4k", compressed=True, snapshots=2),
    Case("compressed, 64k clusters", "cluster_size=64k", compressed=True),
    Case("zeros become holes", "cluster_size=4k", zeros=True),
]


for case in CASES:
    if case.name in sys.argv[1:] or not sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix="platter-compact.") as place:
            os.chdir(place)
            attempt(case.name, case.test)
            os.chdir("/")
finish()
