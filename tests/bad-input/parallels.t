#!/usr/bin/env python3
"""parallels.t - Parallels images with damaged headers and catalogs: one clear line, no change
to the file, bounded memory and time; what check finds and repairs."""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "formats"))
from badinput import IO, Test, case, file_hash, main, run      # noqa: E402
from smallimg import PRL_FIELDS, parallels, put                 # noqa: E402

Test.fmt = "parallels"
INUSE = 0x746f6e59


def save(t, data, cut=None, name="test.hds"):
    with open(t.path(name), "wb") as f:
        f.write(data if cut is None else data[:cut])
    return t.path(name)


def refused(name, reason, **fields):
    for kind, ext in (("new", True), ("old", False)):
        @case("Parallels, %s kind: %s" % (kind, name))
        def run_case(t, ext=ext):
            data = parallels(ext=ext)
            put(data, PRL_FIELDS, fields)
            t.refused(save(t, data), reason)


def reads(name, *entries, **fields):
    @case("Parallels: " + name)
    def run_case(t):
        t.reads_alike(save(t, parallels(*entries, **fields)))


def finds(name, *entries, alike=True, **fields):
    """check finds what QEMU's finds (alike: where that does not stumble over it); repaired,
    both find nothing, and what was there still is."""
    @case("Parallels: " + name)
    def run_case(t):
        path = save(t, parallels(*entries, **fields))
        found = t.check_alike(path) if alike else t.check_counts(path)
        t.expect(found[0] == 2, "not found: %s" % (found[:3],))
        before = t.content(path)
        r = t.img("check", "-r", "all", path)
        t.expect(r.rc == 0, "not repaired: %s" % r)
        t.sound(path)
        t.expect(t.content(path) == before, "the repair changed guest data")


refused("another magic", "not in Parallels format", magic=b"WithoutFreeSpacf")
refused("version 3", "not in Parallels format", version=3)


refused("clusters of 0 sectors", "Zero sectors per track", tracks=0)
refused("clusters of 2^32 - 1 sectors", "Too big cluster", tracks=2**32 - 1)
refused("2^32 - 1 entries", "Catalog too large", entries=2**32 - 1)
refused("2^29 entries", "Catalog too large|not within the file", entries=2**29 - 1)
refused("a catalog past the end of the file", "not within the file", entries=100000)
refused("a catalog too small for the size", "more than the catalog maps", entries=1)
refused("a size of 2^32 - 1 sectors", "more than the catalog maps", sectors=2**32 - 1)


@case("Parallels: a size of 2^64 - 1 sectors")
def size(t):
    t.refused(save(t, parallels(sectors=2**64 - 1)), "more than the catalog maps")


@case("Parallels: cut at each field")
def cut(t):
    data = parallels()
    for end in [0, 1, 15, 16, 20, 28, 31, 32, 36, 43, 44, 48, 56, 63, 64, 68, 75]:
        path = save(t, data, end, "cut%d.hds" % end)
        before = file_hash(path)
        t.one_line(t.img("info", "-f", "parallels", path), path, "Parallels|Invalid image")
        t.one_line(t.io(path, "write 0 512"), path, "Parallels|Invalid image")
        t.expect(file_hash(path) == before, "the file was changed")


@case("Parallels: cut within the data, which reads as zeros there")
def cut_data(t):
    t.reads_alike(save(t, parallels(), 4096 + 5000))


reads("clusters of 63 sectors, old kind", (1, 0, 2), tracks=63, ext=False)
reads("not closed", inuse=INUSE)
reads("two entries for one place", (1, 1, 2))
finds("check: not closed", inuse=INUSE)
finds("check: two entries for one place", (1, 1, 2))
finds("check: three entries for one place", (1, 1, 1), alike=False)
finds("check: a place past the end of the file", (1, 500, 2), alike=False)
finds("check: clusters begin in the catalog", data=0)
finds("check: clusters begin past the end", data=2**32 - 1)


@case("Parallels: check finds and repairs what makes QEMU's abort")
def outside_and_twice(t):
    path = save(t, parallels((1, 1, 700, 2)))
    rc, bad, leaks, _ = t.check_counts(path)
    t.expect((rc, bad, leaks) == (2, 2, 0), "check says %s" % ((rc, bad, leaks),))
    before = t.content(path)
    t.expect(t.img("check", "-r", "all", path).rc == 0, "not repaired")
    t.sound(path)
    t.expect(t.content(path) == before, "the repair changed guest data")


@case("Parallels: space behind the last cluster is a leak, and cut off")
def leak(t):
    path = save(t, parallels() + b"x" * 9000)
    t.expect(t.check_alike(path)[0] == 3, "not found")
    before = t.content(path)
    t.expect(t.img("check", "-r", "leaks", path).rc == 0, "not repaired")
    t.sound(path)
    t.expect(t.content(path) == before, "the repair changed guest data")


@case("Parallels: a place within the catalog is an I/O error; nothing is written there")
def in_catalog(t):
    small = parallels((1, 0, 2))
    small[48:52] = (16).to_bytes(4, "little")       # clusters begin at the second
    path = save(t, small)
    before = file_hash(path)
    t.read_fails(path, 0, "block map entry 0")
    t.expect(file_hash(path) == before, "a read-only open changed the file")


@case("Parallels: an image that was not closed is repaired before it is written")
def unclean(t):
    path = save(t, parallels((1, 1, 2), inuse=INUSE) + b"x" * 9000)
    r = t.io(path, "read -P 2 0 4k", "read -P 2 4k 4k", "write -P 9 0 4k", "read -P 2 4k 4k")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    t.sound(path)


@case("Parallels: a format extension is passed over, with a warning when writing")
def extension(t):
    path = save(t, parallels(ext=True) + bytes(4096))
    with open(path, "r+b") as f:
        f.seek(56)
        f.write((32).to_bytes(8, "little"))
    r = t.io(path, "write -P 9 0 4k")
    t.expect("Format Extension ignored in RW mode" in r.err, "no warning: %s" % r)


@case("Parallels: open for writing it says so, closed it does not")
def inuse(t):
    path = save(t, parallels())
    run(IO, "-f", "parallels", "-c", "write -P 9 4k 4k", "-c", "abort", path)
    with open(path, "rb") as f:
        t.expect(f.read()[44:48] == INUSE.to_bytes(4, "little"), "not marked")
    r = t.io(path, "read -P 1 0 4k")
    with open(path, "rb") as f:
        t.expect(f.read()[44:48] == bytes(4), "still marked: %s" % r)
    t.sound(path)


@case("Parallels: a write that finds no room leaves what was, and the image works afterwards")
def no_room(t):
    path = save(t, parallels())
    for nth in range(2, 5):
        fault = "driver=parallels,file.driver=fault,file.op=write,file.errno=ENOSPC,file.nth=%d," \
            "file.sticky=on,file.file.filename=%s" % (nth, path)
        t.run(IO, "--image-opts", "-c", "write -P 9 4k 4k", fault)
        r = t.io(path, "read -P 1 0 4k", "read -P 3 8k 4k", ro=True)
        t.expect(r.rc == 0 and "failed" not in r.out, "write %d: %s" % (nth, r))
    r = t.io(path, "write -P 9 4k 4k", "read -P 1 0 4k", "read -P 9 4k 4k")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    t.sound(path)


if __name__ == "__main__":
    sys.exit(main())
