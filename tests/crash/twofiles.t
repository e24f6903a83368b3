#!/usr/bin/env python3
"""twofiles.t - power fails while two files change that belong together: an image and its
data file under a guest's work; an overlay and its base in a commit; an overlay in a rebase
onto another backing file.  The files are rebuilt as crashes may have left them, each with
its own choice of what was not durable; a flush of one says nothing of the other.  Then
 - check finds no corruption in either (leaks may be), and its repair ends clean,
 - the guest sees what it had flushed, of everything else old or new data,
 - through a commit or a rebase: exactly what it saw before; the base holds old data or the
   overlay's, in the end all of it.
CRASH_SEED and CRASH_STATES override; with sanitizers a quarter of the states."""
import os
import random
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import replay                                                   # noqa: E402
from tap import BUILD, Bad, IMG, IO, SAN, attempt, finish, must  # noqa: E402

WORKLOAD = os.path.join(BUILD, "tests/crash/workload")
STATES = int(os.environ.get("CRASH_STATES", "6" if SAN else "20"))
SEED = int(os.environ.get("CRASH_SEED", "20261124"))
SIZE = 2 << 20
SECTOR = 512


def logged(prefix, name, tag):
    return "%sdriver=logwrites,%slog=log,%stag=%d,%sfile.filename=%s" % (
        prefix, prefix, prefix, tag, prefix, name)


class Case:
    """Files of names[], logged by tag; what happens to them, and what must hold."""

    names = ()

    def __init__(self, name, *options, lose=None):
        self.name, self.options = name, ",".join(options)
        self.lose = lose                # flushes of this file never reach the disk: is it noticed?
        self.states = STATES if lose is None else max(STATES, 20)      # until it is

    def content(self, name, cwd=None):
        must(IMG, "convert", "-f", "qcow2", "-O", "raw", name, "../out.raw" if cwd else "out.raw",
             cwd=cwd)
        with open("out.raw", "rb") as f:
            return f.read()

    def fill(self, name, writes, base=0):
        """Each sector written says by whom."""
        rng, words = random.Random(SEED + base), []
        for i in range(writes):
            n = rng.choice((512, 4096, 20480, 65536, 100352))
            at = rng.randrange((SIZE - n) // SECTOR) * SECTOR
            kind = "write -z" if i % 7 == 6 else "write -P %d" % (base + i % 60)
            words += ["-c", "%s %d %d" % (kind, at, n)]
        must(IO, "-f", "qcow2", *words, name)

    def run(self):
        self.prepare()
        start = {}
        for name in self.names:
            with open(name, "rb") as f:
                start[name] = f.read()
        self.work()
        self.events = replay.read_log("log")
        if self.lose is None:
            self.walk(start)
            return "%d crash states (%d images leaked)" % (self.states, self.leaked)
        for e in self.events:
            e.ok = e.ok and not (e.type == "F" and e.tag == self.lose)
        try:
            self.walk(start)
        except Bad:
            return None
        raise Bad("lost flushes went unnoticed")

    def walk(self, start):
        rng = random.Random(SEED + 1)
        hosts = [replay.Host(self.events, start[name], tag) for tag, name in enumerate(self.names)]
        if not all(any(e.tag == tag for e in self.events) for tag in range(len(hosts))):
            raise Bad("a file was not written to")
        self.leaked = 0
        for n, point in enumerate(replay.crash_points(rng, self.events, self.states)):
            how = [rng.choice(("none", "all", "random", "random")) for _ in hosts]
            for host, name, h in zip(hosts, self.names, how):
                host.advance(point)
                with open("state/" + name, "wb") as f:
                    f.write(host.crash(rng, h).buf)
            try:
                self.verify(point)
            except Bad as ex:
                raise Bad("state %d: crash at record %d of %d, %s (seed %d)\n%s" %
                          (n, point, len(self.events), how, SEED, ex)) from None

    def sound(self, name):
        """No corruption; what is leaked can be given back, and no guest byte changes."""
        before = self.content(name, "state")
        r = must(IMG, "check", "-f", "qcow2", name, codes=(0, 3), cwd="state")
        if r.returncode == 0:
            return before
        self.leaked += 1
        must(IMG, "check", "-q", "-f", "qcow2", "-r", "all", name, cwd="state")
        if self.content(name, "state") != before:
            raise Bad("the repair of %s changed guest data" % name)
        return before


class DataFile(Case):
    names = ("top.qcow2", "data.bin")

    def prepare(self):
        must(IMG, "create", "-q", "-f", "qcow2", "-o", self.options + ",data_file=data.bin",
             "top.qcow2", SIZE)
        self.fill("top.qcow2", 20)
        self.before = self.content("top.qcow2")

    def work(self):
        must(WORKLOAD, SEED, 250, "qcow2", "top.qcow2", "log", 0, "data.bin")

    def verify(self, point):
        seen = self.sound("top.qcow2")
        may = replay.guest_view(self.events, point, self.before)
        at = replay.wrong_sector(seen, may, self.before)
        if at is not None:
            raise Bad("guest sector %d holds neither its old nor a new value: expected %s, has %s" %
                      (at, sorted(may[at]), seen[at * 512:at * 512 + 16].hex()))


class Commit(Case):
    names = ("top.qcow2", "base.qcow2")
    words = ()

    def prepare(self):
        must(IMG, "create", "-q", "-f", "qcow2", "-o", self.options, "base.qcow2", SIZE)
        self.fill("base.qcow2", 15)
        must(IMG, "create", "-q", "-f", "qcow2", "-o", self.options, "-b", "base.qcow2", "-F",
             "qcow2", "top.qcow2", SIZE)
        self.fill("top.qcow2", 25, base=100)
        self.old, self.before = self.content("base.qcow2"), self.content("top.qcow2")

    def work(self):
        must(IMG, "commit", *self.words, "--image-opts", "driver=qcow2,%s,backing.driver=qcow2,%s" %
             (logged("file.", "top.qcow2", 0), logged("backing.file.", "base.qcow2", 1)))

    def verify(self, point):
        base = self.sound("base.qcow2")
        if self.sound("top.qcow2") != self.before:
            raise Bad("the guest sees something else")
        for at in range(0, SIZE, SECTOR):
            if base[at:at + SECTOR] not in (self.old[at:at + SECTOR], self.before[at:at + SECTOR]):
                raise Bad("the base holds neither old nor new data at %d" % at)
        if point == len(self.events) and base != self.before:
            raise Bad("what was committed is not all in the base")


class CommitKeep(Commit):
    words = ("-d",)
    names = ("top.qcow2", "base.qcow2")

    def work(self):
        super().work()
        if not any(e.tag == 0 for e in replay.read_log("log")):
            # Nothing is written to the overlay: it stays as it is.
            with open("log", "ab") as f:
                f.write(replay.RECORD.pack(replay.MAGIC, ord("F"), 0, 0, 9, 0, 0))


class Rebase(Case):
    names = ("top.qcow2",)

    def prepare(self):
        for i, name in enumerate(("base.qcow2", "new.qcow2")):
            must(IMG, "create", "-q", "-f", "qcow2", "-o", self.options, name, SIZE)
            self.fill(name, 15, base=100 * i)
            shutil.copy(name, "state/" + name)
        must(IMG, "create", "-q", "-f", "qcow2", "-o", self.options, "-b", "base.qcow2", "-F",
             "qcow2", "top.qcow2", SIZE)
        self.fill("top.qcow2", 10, base=50)
        self.before = self.content("top.qcow2")

    def work(self):
        must(IMG, "rebase", "-b", "new.qcow2", "-F", "qcow2", "--image-opts",
             "driver=qcow2," + logged("file.", "top.qcow2", 0))

    def verify(self, point):
        if self.sound("top.qcow2") != self.before:
            raise Bad("the guest sees something else")
        if point == len(self.events):
            r = must(IMG, "info", "top.qcow2", cwd="state")
            if "new.qcow2" not in r.stdout:
                raise Bad("the backing file is not the new one")


CASES = [
    DataFile("the harness: lost flushes of a data file are noticed", "cluster_size=64k", lose=1),
    DataFile("the harness: lost flushes of its image are noticed", "cluster_size=64k", lose=0),
    Commit("the harness: lost flushes of a base are noticed", "cluster_size=64k", lose=1),
    DataFile("a data file, 64k clusters", "cluster_size=64k"),
    DataFile("a data file, 4k clusters", "cluster_size=4k"),
    DataFile("a data file that is raw", "cluster_size=64k,data_file_raw=on"),
    DataFile("a data file, subclusters", "cluster_size=64k,extended_l2=on"),
    Commit("commit, 64k clusters", "cluster_size=64k"),
    Commit("commit, 4k clusters", "cluster_size=4k"),
    Commit("commit, subclusters", "cluster_size=32k,extended_l2=on"),
    CommitKeep("commit -d", "cluster_size=16k"),
    Rebase("rebase, 64k clusters", "cluster_size=64k"),
    Rebase("rebase, 4k clusters", "cluster_size=4k"),
]


for case in CASES:
    if case.name in sys.argv[1:] or not sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix="platter-twofiles.",
                                         dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
            os.chdir(place)
            os.mkdir("state")
            attempt(case.name, case.run)
            os.chdir("/")
finish()
