#!/usr/bin/env python3
"""random.t - random command lines, each through qemu-img/qemu-io and through ours, in two
directories that started alike.  After each line must be equal: what was printed, the exit
status, which files there are, and of each image what `qemu-img map`, `check`, `info` and
`compare` say of it.

A story is what one seed makes: an image, what it stands on, and lines that change them.
    tests/img/random.t                  the stories that are always told
    tests/img/random.t FIRST LAST       those of the seeds FIRST to LAST: to look for more
    tests/img/random.t -v SEED          the lines of one, as a script
Where a story does what makes clusters lie elsewhere (docs/compatibility.md, `layout`), their
places are not compared, nor the text of a `map`, only its JSON.
"""
import os
import random
import shlex
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import finish, ok, own_place                           # noqa: E402
from alike import MASKS, PLACES, PROGRAMS, compared, difference, excused, execute, masked   # noqa: E402

ALWAYS = range(1, 41)
STEPS = 12
K, M = 1 << 10, 1 << 20


class Story:
    """The lines that one seed makes.  They do not depend on what the programs do."""

    def __init__(self, seed):
        self.r = random.Random(seed)
        self.places = True              # whether clusters must lie at the same places
        self.loose = set()              # images of which only the content must be equal
        self.lines = []
        self.open()
        for _ in range(STEPS):
            self.step()

    def some(self, chance):
        return self.r.random() < chance

    def img(self, *words):
        self.lines.append(["qemu-img", *[str(w) for w in words if w != ""]])

    def io(self, name, *commands, fmt=True):
        words = [w for c in commands for w in ("-c", c)]
        self.lines.append(["qemu-io", *(["-f", self.format_of(name)] if fmt else []), *words, name])

    def format_of(self, name):
        return {"base": self.base_format, "mid": "qcow2", "top": self.format}.get(name, "raw")

    def choose_size(self):
        return self.r.choice([0, 512, 64 * K, 960 * K, 1000 * K, M, 1 * M + 512, 3 * M,
                              5 * M, 8 * M, 9 * M + 4 * K, 33 * M])

    def open(self):
        """The images the story is about: top, and what it stands on."""
        r = self.r
        self.size = self.choose_size() or M
        self.cluster = r.choice([4 * K, 64 * K, 64 * K, 64 * K, 64 * K, 2 * M, 512, 2 * K, 32 * K])
        self.format = r.choice(["qcow2"] * 12 + ["raw", "vmdk", "vdi", "vpc", "vhdx", "parallels", "qcow"])
        self.base_format = r.choice(["raw", "qcow2"])
        self.v2 = self.some(.15)
        self.extended = not self.v2 and self.cluster >= 16 * K and self.some(.2)
        self.data_file = not self.v2 and self.some(.12)
        options = ["cluster_size=%d" % self.cluster]
        if self.v2:
            options.append("compat=0.10")
        else:
            options += ["extended_l2=on"] * self.extended
            options += ["data_file=data"] * self.data_file
            options += ["data_file_raw=on"] * (self.data_file and self.some(.4))
            options += ["lazy_refcounts=on"] * self.some(.15)
            if self.some(.2):
                options.append("refcount_bits=%d" % r.choice([2, 8, 32, 64]))
            options += ["compression_type=zstd"] * self.some(.2)
        if self.some(.2):
            options.append("preallocation=" + r.choice(["metadata", "falloc", "full", "off"]))
        if self.cluster < 4 * K:
            self.places = False
        self.backing = []
        if self.format != "qcow2":
            self.img("create", "-f", self.format, "top", self.size)
            return
        if self.some(.6):
            base = self.choose_size() or 2 * M
            self.img("create", "-f", self.base_format, "base", base)
            for _ in range(r.randrange(4)):
                self.write("base", base)
            self.backing = ["base"]
            if self.some(.3):
                mid = self.choose_size() or 2 * M
                self.img("create", "-f", "qcow2", "-b", "base", "-F", self.base_format, "mid", mid)
                for _ in range(r.randrange(3)):
                    self.write("mid", mid)
                self.backing.append("mid")
        backing = ["-b", self.backing[-1], "-F", self.format_of(self.backing[-1])] if self.backing else []
        size = [] if backing and self.some(.4) else [self.size]
        self.img("create", "-f", "qcow2", "-o", ",".join(options), *backing, "top", *size)
        if self.some(.3):
            self.img("create", "-f", r.choice(["qcow2", "raw"]), "other", self.choose_size())

    def span(self, size):
        """Offset and length: near the borders of clusters, seldom beyond the end."""
        unit = self.r.choice([self.cluster, self.cluster, self.cluster // 32 or 512, 512, 4 * K, 64 * K, 1])
        at = self.r.randrange(size // unit + 1) * unit
        length = self.r.choice([1, 1, 2, 3, 9, self.r.randrange(1, 20)]) * self.r.choice([unit, unit, 64 * K])
        if not self.some(.05):
            at = min(at, max(size - length, 0))
            length = min(length, size - at)
        return at, max(length, 1) if self.some(.9) else 0

    def write(self, name, size):
        at, length = self.span(size)
        kind = self.r.choice(["write", "write", "write", "write -z", "write -z -u", *["write -z -n"] * (self.format in ("raw", "qcow2", "vmdk")), "write -c",
                              *["discard"] * (not self.places or self.some(.2)), "writev", "aio_write", "write -f"])
        if kind == "discard":
            self.places = False
        if self.format == "qcow" and kind == "write -c" or self.format not in ("qcow2", "raw", "vmdk") and "-z" in kind:
            kind = "write"      # `qcow`, `zeros`
        if self.format not in ("qcow2", "raw") and kind == "discard":
            kind = "write"
        if kind == "write -c":
            at = at // self.cluster * self.cluster
            length = self.cluster * self.r.choice([1, 1, 2, 3])
        if "-z" not in kind and kind != "discard":
            kind += " -P %d" % self.r.randrange(256)
        self.io(name, "%s %d %d" % (kind, at, length))

    def several(self, name, size):
        """Several requests while the image stays open: what is freed in between lies about."""
        self.places = False
        commands = []
        for _ in range(self.r.randrange(2, 5)):
            self.write(name, size)
            commands.append(self.lines.pop()[-2].replace("aio_", ""))
            if self.some(.3):
                commands.append("flush")
        self.io(name, *commands)

    def step(self):
        actions = [(30, self.do_write), (6, self.do_several), (6, self.do_read), (8, self.do_resize), (8, self.do_snapshot),
                   (5, self.do_look), (5, self.do_convert), (3, self.do_compare), (3, self.do_dd), (3, self.do_measure)]
        if self.format == "qcow2":
            actions += [(5, self.do_amend), (6, self.do_bitmap), (4, self.do_check)]
        if self.backing:
            actions += [(8, self.do_commit), (8, self.do_rebase), (4, self.do_write_below)]
        self.r.choices([a for _, a in actions], [w for w, _ in actions])[0]()

    def do_write(self):
        self.write("top", self.size)

    def do_several(self):
        self.several("top", self.size)

    def do_write_below(self):
        self.write(self.r.choice(self.backing), 3 * M)

    def do_read(self):
        at, length = self.span(self.size)
        self.io("top", self.r.choice(["read -P 0 %d %d", "read -v %d %d", "read -P 7 -s 1 -l 3 %d %d"]) %
                (at, min(length, 512)), fmt=self.some(.7))

    def do_resize(self):
        r = self.r
        new = self.choose_size()
        if self.some(.2):
            new = r.choice(["+%d" % (64 * K), "-%d" % (64 * K), "+1M", "+1", "5000000"])
        else:
            self.size = new or self.size
        more = ["--preallocation=" + r.choice(["off", "metadata", "falloc", "full"])] if self.some(.3) else []
        more += ["--shrink"] if self.some(.6) else []
        self.img("resize", *more, "-f", self.format, "top", new)

    def do_snapshot(self):
        kind = self.r.choice(["-c", "-c", "-c", "-a", "-a", "-d", "-l"])
        name = "s%d" % self.r.randrange(3)
        if kind == "-a" and self.format == "raw":
            return              # `one-warning`
        self.img("snapshot", kind, *([] if kind == "-l" else [name]), "top")

    def do_look(self):
        what = self.r.choice([["map"], ["map", "--output=json"], ["info"], ["info", "--output=json"],
                              ["info", "--backing-chain"], ["check"], ["check", "--output=json"],
                              ["map", "--output=json", "--start-offset=%d" % self.r.randrange(M), "--max-length=300000"],
                              ["map", "-f", "raw"], ["info", "-f", "raw"]][:None if self.places else -2])
        self.img(*what, self.r.choice(["top", "top", "top", *self.backing]))

    def do_convert(self):
        r = self.r
        out = r.choice(["qcow2", "qcow2", "raw", "raw", "vmdk", "vdi", "vpc", "vhdx", "parallels", "qcow"])
        words = ["convert", *r.choice([[], [], ["-c"] if out in ("qcow2", "vmdk", "qcow") else []]),
                 *r.choice([[], [], [], ["-S", r.choice(["0", "4k", "64k", "512"])]]),
                 *r.choice([[], [], [], ["-W"], ["-m", "4"], ["-t", "none"], ["-r", "100M"]])]
        if out in ("qcow",) and "-c" in words:
            words.remove("-c")
        if self.format == "qcow2" and self.some(.1):
            words += ["-l", "s0"]
        if out == "qcow2" and self.some(.3):
            words += ["-o", r.choice(["cluster_size=4k", "compat=0.10", "extended_l2=on", "preallocation=metadata",
                                      "compression_type=zstd", "cluster_size=512", "preallocation=full"])]
        if out == "qcow2" and self.backing and self.some(.3):
            words += ["-B", self.backing[-1], "-F", self.format_of(self.backing[-1])]
        if self.some(.1):
            words += ["-n"]
            if self.some(.3):
                words += ["--target-is-zero"]
        if self.some(.15):
            words += ["--bitmaps"] + ["--skip-broken-bitmaps"] * self.some(.3)
        if "-W" in words or "-m" in words or "-c" in words:
            self.places = False
        self.img(*words, "-O", out, *(["-f", self.format] if self.some(.5) else []), "top", "copy")

    def do_compare(self):
        self.img("compare", "top", self.r.choice([*self.backing, "other", "copy", "top"]))

    def do_dd(self):
        r = self.r
        words = ["bs=%s" % r.choice(["512", "4k", "64k", "1M", "1000"])] if self.some(.8) else []
        words += ["count=%d" % r.randrange(40)] if self.some(.5) else []
        words += ["skip=%d" % r.randrange(40)] if self.some(.3) else []
        self.img("dd", "-f", self.format, "-O", r.choice(["raw", "qcow2"]), *words, "if=top", "of=dd")

    def do_measure(self):
        words = ["-O", self.r.choice(["raw", "qcow2", "qcow2"])]
        words += ["-o", self.r.choice(["cluster_size=4k", "extended_l2=on", "preallocation=full", "refcount_bits=64"])] \
            if words[1] == "qcow2" and self.some(.4) else []
        self.img("measure", *words, *["--output=json"] * self.some(.5), "top")

    def do_amend(self):
        self.img("amend", "-o", self.r.choice([
            "compat=1.1", "compat=0.10", "refcount_bits=%d" % self.r.choice([4, 16, 64]), "lazy_refcounts=on",
            "lazy_refcounts=off", "size=%d" % (self.choose_size() or M), "data_file_raw=on", "backing_fmt=raw",
            "cluster_size=4k", "compression_type=zstd", "extended_l2=on", "preallocation=full"]), "top")

    def do_bitmap(self):
        self.places = False
        name = "b%d" % self.r.randrange(2)
        what = self.r.choice([["--add"], ["--add"], ["--add", "-g", self.r.choice(["512", "64k", "1M", "1000"])],
                              ["--remove"], ["--clear"], ["--enable"], ["--disable"], ["--merge", "b1"],
                              ["--add", "--disable"], ["--add", "--merge", "b0"]])
        self.img("bitmap", *what, "top", name)

    def do_check(self):
        if any("bitmap" in words for words in self.lines):
            return              # `damage`: QEMU's takes the snapshots away
        self.img("check", "-r", self.r.choice(["leaks", "all"]), "top")

    def do_commit(self):
        self.places = False
        self.loose |= set(self.backing) | {"top"}
        self.img("commit", *["-d"] * self.some(.2), *(["-b", self.r.choice(self.backing)] if self.some(.3) else []),
                 *["-q"] * self.some(.2), "top")

    def do_rebase(self):
        to = self.r.choice(["", *self.backing, *self.backing, "other"])
        self.loose.add("top")   # `zeros`
        words = ["rebase", *["-u"] * self.some(.2), *["-c"] * self.some(.15), "-b", to]
        self.lines.append(["qemu-img", *words, *(["-F", "raw" if to == "other" else self.format_of(to)] if to and self.some(.9) else []), "top"])


def tell(seed):
    story = Story(seed)
    dirs = {w: own_place("random") for w in PROGRAMS}
    told, why, seen = [], None, {}
    for words in story.lines:
        told.append(shlex.join(words))
        said = {w: masked(execute(dirs[w], w, words), MASKS + ([] if story.places else PLACES)) for w in PROGRAMS}
        if "Sanitizer" in said["ours"] or said["ours"] != said["theirs"] and not excused(words, said, story):
            why = compared(said["ours"], said["theirs"])
        else:
            why = difference(dirs, story, seen)
        if why:
            break
    ok(not why, "seed %d: %d lines" % (seed, len(told)), *told, why or "")


def main():
    if sys.argv[1:2] == ["-v"]:
        for words in Story(int(sys.argv[2])).lines:
            print(shlex.join(words))
        return
    seeds = range(int(sys.argv[1]), int(sys.argv[2]) + 1) if sys.argv[2:] else ALWAYS
    for seed in seeds:
        tell(seed)
    finish()


if __name__ == "__main__":
    main()
