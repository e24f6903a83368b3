#!/usr/bin/env python3
"""arguments.t - command lines of random words, sensible and not, each through qemu-img/qemu-io
and through ours on fresh copies of the same images: of most formats, with and without backing
files, snapshots, bitmaps, keys and damage.  Compared is what random.t compares.

    tests/img/arguments.t               the lines that are always tried
    tests/img/arguments.t FIRST LAST    those of the seeds FIRST to LAST: to look for more
"""
import os
import random
import re
import shlex
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import QEMU_IMG, QEMU_IO, finish, ok, own_place            # noqa: E402
from alike import MASKS, PROGRAMS, compared, difference, execute, masked   # noqa: E402

ALWAYS = range(1, 401)
UNLIKE = [(r"^qcow2: Image is corrupt: Compressed cluster at .*\n", ""),           # `more-detail`
          (r"^qcow2_free_clusters failed: .*\n", ""),                             # `damage`
          (r"(does not|doesn't) support the option '.*'", r"\1 support the option X")]     # which of several
TOGETHER = 40                           # lines that are one test
STOCK = r"""
I create -q -f raw base.raw 1M; O -f raw -c 'write -P 1 0 128k' -c 'write -P 2 600k 5000' base.raw
I create -q -f qcow2 base 2M; O -c 'write -P 3 64k 300k' -c 'write -P 4 1M 64k' base
I create -q -f qcow2 -b base -F qcow2 mid; O -c 'write -P 5 100k 70k' -c 'write -z 1M 64k' mid
I create -q -f qcow2 -b mid -F qcow2 top 3M; O -c 'write -P 6 0 1k' -c 'write -P 7 2M 100k' -c 'write -c -P 8 256k 64k' top
I create -q -f qcow2 -b base.raw -F raw -o extended_l2=on ext 1M; O -c 'write -P 9 3k 9k' -c 'write -z 128k 2k' -c 'discard 512k 64k' ext
I create -q -f qcow2 -o compat=0.10,cluster_size=4k v2 1000k; O -c 'write -P 10 10k 20k' -c 'write -c -P 11 40k 4k' v2
I create -q -f qcow2 snap 1M; O -c 'write -P 12 0 200k' snap; I snapshot -c s1 snap
O -c 'write -P 13 100k 200k' snap; I snapshot -c s2 snap; O -c 'write -P 14 0 64k' snap
I create -q -f qcow2 bitmaps 2M; I bitmap --add -g 64k bitmaps b0; O -c 'write -P 15 0 100k' bitmaps
I bitmap --add --disable bitmaps b1; O -c 'write -P 16 1M 100k' bitmaps
I create -q -f qcow2 -o data_file=data.raw,data_file_raw=on data 1M; O -c 'write -P 17 5k 90k' data
I create -q -f qcow2 -o lazy_refcounts=on,refcount_bits=1 lazy 512k; O -c 'write -P 18 64k 64k' lazy
I create -q -f qcow2 -o preallocation=metadata,compression_type=zstd full 1M; O -c 'write -P 19 0 128k' full
I create -q -f qcow2 --object secret,id=k,data=pass -o encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10 secret 1M
I create -q -f luks --object secret,id=k,data=pass -o key-secret=k,iter-time=10 luks 512k
I create -q -f qcow2 leaky 1M; O -c 'write -P 20 0 128k' leaky; P leaky 131088 '\0\1'
I create -q -f qcow2 broken 1M; O -c 'write -P 21 0 128k' broken; P broken 262144 '\xff\xff\xff\xff\xff\xff\xff\xff'
I create -q -f qcow2 dirty 1M; O -c 'write -P 22 0 64k' dirty; P dirty 79 '\1'
I create -q -f qcow2 corrupt 1M; O -c 'write -P 23 0 64k' corrupt; P corrupt 79 '\2'
I create -q -f qcow2 future 1M; P future 79 '\x20'
I create -q -f qcow2 orphan 1M; O -c 'write -P 24 0 64k' orphan; I rebase -u -b gone -F raw orphan
I create -q -f vmdk vmdk 1M; O -c 'write -P 25 64k 100k' vmdk
I convert -O vmdk -o subformat=streamOptimized base.raw stream
I create -q -f vmdk -o subformat=twoGbMaxExtentFlat flat.vmdk 1M
I create -q -f vdi vdi 2M; O -c 'write -P 26 64k 100k' vdi
I create -q -f vpc vpc 2M; O -c 'write -P 27 64k 100k' vpc
I create -q -f vhdx vhdx 2M; O -c 'write -P 28 64k 100k' vhdx
I create -q -f parallels parallels 2M; O -c 'write -P 29 64k 100k' parallels
I create -q -f qcow qcow 1M; O -c 'write -P 30 64k 100k' qcow
: > empty; printf 'some words\n' > text; mkdir folder; head -c 60 base > short; truncate -s 1M zeros
"""
K, M = 1 << 10, 1 << 20

QCOW2 = ["base", "mid", "top", "ext", "v2", "snap", "bitmaps", "data", "lazy", "full", "leaky", "broken", "dirty",
         "corrupt", "future", "orphan", "secret"]
OTHERS = ["base.raw", "vmdk", "stream", "flat.vmdk", "vdi", "vpc", "vhdx", "parallels", "qcow", "luks"]
ODD = ["empty", "text", "folder", "short", "zeros", "data.raw", "gone", "", "folder/x", "no/x", "base/", "json:{}", "a:b", "file:base",
       "json:{\"driver\":\"qcow2\",\"file.filename\":\"base\"}", "json:{\"driver\":\"raw\",\"file\":\"base\"}",
       "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"snap\"},\"read-only\":true}"]
FORMATS = ["qcow2", "raw", "qcow2", "raw", "vmdk", "vdi", "vpc", "vhdx", "parallels", "qcow", "luks", "file", "nosuch", ""]
CACHES = ["none", "writeback", "unsafe", "directsync", "writethrough", "off", "bad", ""]
NUMBERS = ["0", "1", "512", "4k", "64k", "65536", "1M", "1.5k", "1G", "1T", "2M", "3M", "-1", "+1", "+1M", "-64k", "1x", "0x200", "", "  7",
           "9223372036854775807", "18446744073709551615", "1e3", "1kk", "1b", "7E", "8E", "1000k", "600000", "513"]
SECRET = ["--object", "secret,id=k,data=pass"]
OPTIONS = {
    "qcow2": ["size=N", "compat=0.10", "compat=1.1", "compat=v3", "compat=x", "backing_file=base", "backing_fmt=qcow2", "backing_file=base.raw",
              "backing_fmt=raw", "backing_fmt=x", "data_file=d", "data_file=data.raw", "data_file_raw=on", "data_file_raw=off", "extended_l2=on",
              "extended_l2=off", "encryption=on", "encryption=off", "encrypt.format=luks", "encrypt.format=aes", "encrypt.key-secret=k",
              "encrypt.iter-time=10", "cluster_size=N", "cluster_size=64k", "cluster_size=4096", "cluster_size=2M", "cluster_size=512",
              "preallocation=off", "preallocation=metadata", "preallocation=falloc", "preallocation=full", "preallocation=x",
              "lazy_refcounts=on", "lazy_refcounts=x", "refcount_bits=1", "refcount_bits=8", "refcount_bits=64", "refcount_bits=N",
              "compression_type=zlib", "compression_type=zstd", "compression_type=x", "nocow=on", "extent_size_hint=N", "nosuch=1",
              "help", "?", "encrypt.cipher-alg=aes-128", "encrypt.slot=1", "encrypt.state=active", "encrypt.new-secret=k", "encrypt.state=inactive"],
    "raw": ["size=N", "preallocation=off", "preallocation=falloc", "preallocation=full", "preallocation=metadata", "nocow=on", "extent_size_hint=N",
            "nosuch=1", "help"],
    "vmdk": ["size=N", "adapter_type=ide", "adapter_type=lsilogic", "adapter_type=x", "backing_file=vmdk", "backing_file=base", "backing_fmt=vmdk",
             "compat6=on", "hwversion=4", "hwversion=x", "toolsversion=99", "subformat=monolithicFlat", "subformat=monolithicSparse",
             "subformat=streamOptimized", "subformat=twoGbMaxExtentSparse", "subformat=x", "zeroed_grain=on", "help"],
    "vdi": ["size=N", "static=on", "static=off", "static=x", "preallocation=metadata", "preallocation=full", "help"],
    "vpc": ["size=N", "subformat=fixed", "subformat=dynamic", "subformat=x", "force_size=on", "help"],
    "vhdx": ["size=N", "subformat=fixed", "subformat=dynamic", "block_size=1M", "block_size=N", "log_size=1M", "log_size=N",
             "block_state_zero=off", "help"],
    "parallels": ["size=N", "cluster_size=64k", "cluster_size=N", "help"],
    "qcow": ["size=N", "backing_file=base", "backing_fmt=qcow2", "help"],
    "luks": ["size=N", "key-secret=k", "key-secret=z", "cipher-alg=aes-256", "cipher-alg=x", "cipher-mode=xts", "cipher-mode=cbc", "ivgen-alg=plain64",
             "ivgen-alg=essiv", "ivgen-hash-alg=sha256", "hash-alg=sha1", "iter-time=10", "iter-time=0", "detached-header=on", "help",
             "preallocation=full", "slot=1", "state=active", "new-secret=k", "old-secret=k", "slot=N"],
}
IMAGE_OPTS = ["driver=qcow2", "driver=raw", "driver=luks", "driver=vdi", "driver=nosuch", "file.filename=", "filename=", "file.driver=file",
              "file.driver=x", "read-only=on", "read-only=off", "auto-read-only=on", "cache.direct=on", "cache.no-flush=on", 
              "discard=unmap", "discard=x", "detect-zeroes=off", "force-share=on", "lazy-refcounts=on", "overlap-check=all", "overlap-check=x",
              "l2-cache-size=64k", "l2-cache-size=N", "cache-size=N", "refcount-cache-size=N", "cache-clean-interval=5", "backing=", "backing.file.filename=base", "file.locking=off", "file.aio=threads", "file.aio=x", "key-secret=k", "encrypt.key-secret=k",
              "encrypt.format=luks", "offset=N", "size=N", "nosuch=1", "file.nosuch=1", "pass-discard-request=on", "l2-cache-entry-size=4k",
              "file.read-only=on", "node-name=a", "node-name=1", "file=base", "x"]


class Line:
    """The words that one seed makes."""

    def __init__(self, seed):
        r = self.r = random.Random(seed)
        self.objects = []
        kinds = [k for k in dir(self) if k.startswith("do_")]
        kind = r.choice(kinds)
        words = getattr(self, kind)()
        if not words:
            words = ["info", "base"]
        program = "qemu-io" if kind == "do_io" else "qemu-img"
        if any("secret=k" in str(w) for w in words) and not self.some(.1):
            words[0 if program == "qemu-io" else 1:0] = SECRET
        if self.some(.02) and program == "qemu-img":
            words.insert(r.randrange(1, len(words) + 1), r.choice(["-x", "--nosuch", "extra", "--", "-q", "-U", "--object", "-f"]))
        if "create" in words and not {"qcow2", "raw"} & set(words):     # what QEMU makes then is no image
            words = [re.sub(r"\b([78]E|9223372036854775807|18446744073709551615)\b", "5M", str(w)) for w in words]
        if "resize" in words or any("preallocation=" in str(w) for w in words):   # the disk has other users
            words = [re.sub(r"\b1[GT]\b", "3M", str(w)) for w in words]
        self.words = [program, *map(str, words)]

    def some(self, chance):
        return self.r.random() < chance

    def any(self, *odds):
        """Some of these options: (chance, words)."""
        out = [(w if isinstance(w, list) else [w]) for c, w in odds if self.some(c)]
        self.r.shuffle(out)
        return [x for ws in out for x in ws]

    def number(self):
        return self.r.choice(NUMBERS)

    def format(self):
        return self.r.choice(FORMATS)

    def image(self):
        return self.r.choices([QCOW2, OTHERS, ODD], [8, 4, 1])[0][self.r.randrange(10 ** 6) % 10] if self.some(.3) else \
            self.r.choice(self.r.choices([QCOW2, OTHERS, ODD], [8, 4, 1])[0])

    def with_format(self, name, flag="-f"):
        """The image's own format, another, or none."""
        own = "qcow2" if name in QCOW2 else name.split(".")[-1] if name in OTHERS and name != "stream" else "raw"
        return [] if self.some(.5) else [flag, own if self.some(.75) else self.format()]

    def filled(self, option):
        return option.replace("=N", "=" + self.number())

    def options(self, fmt, chance=.6, flag="-o"):
        out = []
        while self.some(chance):
            some = [self.filled(self.r.choice(OPTIONS.get(fmt, OPTIONS["raw"]))) for _ in range(self.r.choice([1, 1, 2, 3]))]
            out += [flag, ",".join({s.split("=")[0]: s for s in some}.values())]
            chance = .15
        return out

    def image_opts(self, name):
        own = self.r.choice(["driver=" + ("qcow2" if name in QCOW2 else name if name in OPTIONS else "raw") + ",", ""])
        more = "".join("," + self.filled(self.r.choice(IMAGE_OPTS)) for _ in range(self.r.choice([0, 1, 1, 2, 3])))
        if name == "secret":
            more += ",encrypt.key-secret=k"
        if name == "luks":
            more += ",key-secret=k"
        return own + "file.filename=" + name + more

    def source(self, flag="-f"):
        """An image to be opened: format and name, or a description."""
        name = self.image()
        if self.some(.25):
            return ["--image-opts"], self.image_opts(name)
        return self.with_format(name, flag), name

    def output(self):
        return ["--output=" + self.r.choice(["json", "json", "human", "x"])] if self.some(.4) else []

    def do_info(self):
        fmt, name = self.source()
        return ["info", *fmt, *self.any((.2, "-U"), (.3, "--backing-chain")), *self.output(), name]

    def do_check(self):
        fmt, name = self.source()
        return ["check", *fmt, *self.any((.1, "-U"), (.1, "-q"), (.3, ["-r", self.r.choice(["leaks", "all", "x"])]),
                                         (.1, ["-T", self.r.choice(CACHES)])), *self.output(), name]

    def do_map(self):
        fmt, name = self.source()
        return ["map", *fmt, *self.any((.1, "-U"), (.2, "--start-offset=" + self.number()), (.2, "--max-length=" + self.number())),
                *self.output(), name]

    def do_measure(self):
        to = self.format()
        fmt, name = self.source()
        what = ["--size", self.number()] if self.some(.3) else [*fmt, name]
        return ["measure", *self.any((.8, ["-O", to]), (.05, "-U"), (.1, ["-l", self.r.choice(["s1", "s2", "3", "snapshot.id=1", "snapshot.name=s2", ""])])),
                *self.options(to, .3), *self.output(), *what]

    def do_create(self):
        to = self.format()
        back = self.any((.25, ["-b", self.image()]), (.3, ["-F", self.format()]), (.1, "-u"))
        return ["create", *self.any((.9, ["-f", to]), (.15, "-q")), *back, *self.options(to),
                self.r.choice(["new", "new", "new", "base", "folder", "no/new", "", "text"]), *([self.number()] if self.some(.8) else [])]

    def do_resize(self):
        fmt, name = self.source()
        words = [*fmt, *self.any((.1, "-q"), (.4, "--shrink"), (.3, "--preallocation=" + self.r.choice(
            ["off", "metadata", "falloc", "full", "x"])))]
        if name == "dirty":
            name = "lazy"                   # whether what was preallocated is called data is the file system's affair
        return ["resize", *words, name, self.number()]

    def do_snapshot(self):
        fmt, name = self.source()
        if name not in QCOW2 or name in ("lazy", "broken") or self.some(.4):
            name = "snap"                   # `one-warning`, `refused-snapshot`
        return ["snapshot", *self.any((.1, "-q"), (.05, "-U")), *(fmt if "--image-opts" not in fmt else []),
                *self.r.choice([["-l"], ["-c", "s1"], ["-c", "new"], ["-a", "s1"], ["-a", "2"], ["-d", "s2"], ["-d", "1"], ["-a", "none"],
                                ["-d", "none"], ["-c", ""], [], ["-l", "-c", "x"], ["-a", ""]]), name]

    def do_amend(self):
        fmt, name = self.source()
        kind = name if name in OPTIONS else "qcow2"
        if name in ("leaky", "broken"):
            name = "base"                   # `layout`
        return ["amend", *fmt, *self.any((.05, "-q"), (.1, "--force"), (.05, ["-t", self.r.choice(CACHES)])),
                *self.options(kind, .95), name]

    def do_rebase(self):
        name = self.r.choice(["top", "mid", "ext", "orphan", "base", self.image()])
        to = self.r.choice(["", "base", "mid", "base.raw", "zeros", "gone", "top", "v2", self.image()])
        unsafe = ["-u"] * self.some(.3)
        if unsafe and to in ("top", "mid", name):
            to = "v2"                       # `backing-loops`
        if not unsafe:                      # `rebase-format`
            form = ["-F", "raw" if to == "base.raw" else "qcow2"] if to in ("top", "mid", "base", "base.raw") else self.with_format(to, "-F")
        else:
            form = self.with_format(to, "-F")
        return ["rebase", *unsafe, *self.any((.1, "-q"), (.1, "-c"), (.05, "-U"), (.1, ["-t", self.r.choice(CACHES)]),
                                    (.1, ["-T", self.r.choice(CACHES)])),
                *(["-b", to] if self.some(.9) else []), *form, *self.with_format(name), name]

    def do_commit(self):
        name = self.r.choice(["top", "mid", "ext", "orphan", "base", self.image()])
        if name == "parallels":
            name = "vdi"                    # QEMU leaves it "not closed"
        return ["commit", *self.any((.2, "-d"), (.2, ["-b", self.r.choice(["base", "mid", "gone", "top", "base.raw"])]), (.1, "-q"),
                                    (.1, ["-r", self.r.choice(["1G", "x", "-1", "0", "100M"])]), (.1, ["-t", self.r.choice(CACHES)])),
                *self.with_format(name), name]

    def do_compare(self):
        a, b = self.image(), self.image()
        if self.some(.3):
            return ["compare", "--image-opts", self.image_opts(a), self.image_opts(b)]
        return ["compare", *self.with_format(a), *self.with_format(b, "-F"), *self.any((.05, "-U"), (.1, "-q"), (.05, ["-T", self.r.choice(CACHES)])), a, b]

    def do_convert(self):
        to = self.format()
        fmt, name = self.source()
        words = self.any((.85, ["-O", to]), (.12, "-c"), (.1, ["-n"]), (.05, "--target-is-zero"), (.15, ["-S", self.number()]), (.05, "-U"),
                         (.1, ["-B", self.r.choice(["base", "base.raw", "gone"])]), (.1, ["-F", self.r.choice(["raw", "qcow2", "x"])]),
                         (.08, "--bitmaps"), (.04, "--skip-broken-bitmaps"), (.1, ["-l", self.r.choice(["s1", "2", "x", "snapshot.name=s1"])]),
                         (.05, "-q"), (.05, ["-t", self.r.choice(CACHES[:6])]), (.05, ["-T", self.r.choice(CACHES)]), (.05, ["-m", self.number()]),
                         (.05, ["-r", self.r.choice(["1G", "x", "-1", "0", "100M"])]), (.05, "--salvage"), (.03, "-C"))
        return ["convert", *words, *fmt, *self.options(to, .3), name, *([self.image()] if self.some(.05) else []),
                self.r.choice(["new", "new", "new", "new", "zeros", "text", "no/x", "folder"])]

    def do_dd(self):
        fmt, name = self.source()
        return ["dd", *fmt, *self.any((.6, ["-O", self.format()]), (.05, "-U"), (.6, "bs=" + self.number()), (.5, "count=" + self.number()),
                                      (.3, "skip=" + self.number()), (.95, "if=" + name), (.95, "of=" + self.r.choice(["new", "new", "zeros", "no/x"])),
                                      (.03, "oflag=x"))]

    def do_bitmap(self):
        name = self.r.choice(["bitmaps", "bitmaps", "base", "v2", "snap", self.image()])
        what = self.r.choice([["--add"], ["--remove"], ["--clear"], ["--enable"], ["--disable"], ["--merge", self.r.choice(["b0", "b1", "none"])]])
        what += self.r.choice([[], [], [], ["--enable"], ["--clear"], ["--merge", "b0"], ["--remove"], ["--add"]])
        return ["bitmap", *what, *self.any((.3, ["-g", self.number()]), (.1, ["-b", "bitmaps"]), (.1, ["-F", "qcow2"])), *self.with_format(name),
                *([name] if self.some(.97) else []), *([self.r.choice(["b0", "b1", "new", ""])] if self.some(.95) else [])]

    def do_io(self):
        fmt, name = self.source()
        commands = []
        for _ in range(self.r.choice([1, 1, 2, 3])):
            at, length = self.number(), self.number()
            if at in ("7E", "8E", "1T", "1G", "9223372036854775807") or length in ("1G", "1T", "7E", "8E", "9223372036854775807"):
                at, length = "64k", "1000"
            kind = self.r.choice(["read -P 0", "read", "write -P 9", "write -z", "write -z -u", "write -c", "discard", "aio_read", "aio_write", "readv", "writev",
                                  "alloc", "read -v -l 16", "write -f", "read -b", "aio_write -z", "aio_write -u", "write -s text", "write -n", "truncate", "map",
                                  "length", "flush", "info", "write -i", "aio_flush", "read -q", "write -q", "nosuch", "sleep 1", "quit"])
            single = ("map", "length", "flush", "info", "aio_flush", "nosuch", "sleep 1", "quit")
            if kind.startswith("aio") and kind != "aio_flush":
                # When it ends is not said.
                commands += ["-c", "%s %s %s" % (kind, at, length)]
                kind = "aio_flush"
            commands += ["-c", kind if kind in single else "%s %s" % (kind, at) if kind == "truncate" else "%s %s %s" % (kind, at, length)]
        return [*fmt, *self.any((.1, "-r"), (.05, "-U"), (.05, "-s"), (.05, "-n"), (.05, ["-t", self.r.choice(CACHES)]), (.05, ["-d", self.r.choice(["unmap", "off", "x"])]),
                                (.1, "-C")), *commands, name]


class Stock:
    """The images, and two copies of them that a line may change."""

    def __init__(self):
        self.stock = own_place("stock")
        script = "set -e\nI() { '%s' \"$@\" >/dev/null; }\nO() { '%s' \"$@\" >/dev/null; }\n" % (QEMU_IMG, QEMU_IO) + \
            "P() { printf \"$3\" | dd of=$1 bs=1 seek=$2 conv=notrunc status=none; }\n" + STOCK
        subprocess.run(["bash", "-c", script], cwd=self.stock, check=True)
        self.dirs = {who: own_place("arguments") for who in PROGRAMS}
        self.known = {who: {} for who in PROGRAMS}
        self.reset()

    @staticmethod
    def state(path):
        s = os.lstat(path)
        return s.st_ino, s.st_size, s.st_mtime_ns, s.st_mode

    def reset(self):
        """Whatever is not as it was is copied again."""
        for who, where in self.dirs.items():
            known = self.known[who]
            for name in os.listdir(where):
                path = os.path.join(where, name)
                if known.get(name) != self.state(path):
                    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
            for name in os.listdir(self.stock):
                path = os.path.join(where, name)
                if not os.path.lexists(path):
                    subprocess.run(["cp", "-a", "--sparse=always", os.path.join(self.stock, name), path], check=True)
                    known[name] = self.state(path)
        self.seen = {}


class As:
    """What alike.difference() asks of a story."""
    def __init__(self, words):
        self.places = not {"bitmap", "bitmaps", "commit", "rebase", "--bitmaps", "-c", "discard", "-W", "-m"} & set(words)
        self.loose = {"top", "mid", "base", "ext", "orphan", "base.raw"} if {"commit", "rebase"} & set(words) else set()


def tell(stock, seed):
    words = Line(seed).words
    try:
        said = {w: masked(execute(stock.dirs[w], w, words), MASKS + UNLIKE) for w in PROGRAMS}
    except subprocess.TimeoutExpired as e:
        return "seed %d: %s" % (seed, e)
    if "bitmaps" in " ".join(words) and said["ours"] == said["theirs"] and "exit status 1" in said["ours"]:
        stock.reset()                       # `layout`: QEMU writes bitmaps anew though nothing was changed
        return None
    if "Assertion" in said["theirs"]:
        said["ours"] = said["theirs"]
    if "Sanitizer" in said["ours"] or said["ours"] != said["theirs"]:
        why = compared(said["ours"], said["theirs"])
    else:
        why = difference(stock.dirs, As(words), stock.seen)
    stock.reset()
    return why and "seed %d: %s\n%s" % (seed, shlex.join(words), why)


def main():
    seeds = list(range(int(sys.argv[1]), int(sys.argv[2]) + 1) if sys.argv[2:] else ALWAYS)
    stock = Stock()
    for at in range(0, len(seeds), TOGETHER):
        part = seeds[at:at + TOGETHER]
        found = list(filter(None, (tell(stock, seed) for seed in part)))
        ok(not found, "seeds %d to %d" % (part[0], part[-1]), *found)
    finish()


if __name__ == "__main__":
    main()
