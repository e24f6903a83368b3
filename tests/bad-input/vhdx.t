#!/usr/bin/env python3
"""vhdx.t - VHDX images with damaged headers, regions, metadata, tables and logs: one
clear line, no change to the file, bounded memory and time."""
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "formats"))
from badinput import IMG, IO, Test, case, file_hash, main       # noqa: E402
import vhdximg as v                                             # noqa: E402

Test.fmt = "vhdx"


def image(t, **kw):
    return v.Image(t.path("test.vhdx"), IMG, IO, **kw)


def u16(n):
    return struct.pack("<H", n)


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


def refused(name, damage, reason, **kw):
    @case(name)
    def run_case(t):
        img = image(t)
        damage(img)
        t.refused(img.path, reason, **kw)


def reads(name, damage):
    """Still read as the oracle reads it."""
    @case(name)
    def run_case(t):
        img = image(t)
        damage(img)
        t.reads_alike(img.path)


# ---- headers
refused("VHDX: both headers with a wrong checksum",
        lambda i: i.put(0x10100, b"x").put(0x20100, b"x"), "No valid VHDX header")
reads("VHDX: the first header is damaged, the second counts", lambda i: i.put(0x10100, b"x"))
reads("VHDX: the second header is damaged, the first counts", lambda i: i.put(0x20100, b"x"))
refused("VHDX: headers of version 2", lambda i: i.header(66, u16(2)), "No valid VHDX header")
refused("VHDX: different headers with the same sequence number",
        lambda i: i.header(8, u64(7)).header(16, b"z", which=(0,)), "No valid VHDX header")
refused("VHDX: log version 1", lambda i: i.header(64, u16(1)), "log")
refused("VHDX: log over the header", lambda i: i.header(72, u64(0)), "log")
refused("VHDX: log at an odd offset", lambda i: i.header(72, u64((1 << 20) + 512)), "log")
refused("VHDX: log offset near 2^64", lambda i: i.header(72, u64(2**64 - (1 << 20))), "log")
refused("VHDX: log of an odd length", lambda i: i.header(68, u32(4096)), "log")
refused("VHDX: signature only", lambda i: i.truncate(8), "header")
refused("VHDX: cut behind the headers", lambda i: i.truncate(0x30000), "region")
refused("VHDX: cut behind the region tables", lambda i: i.truncate(1 << 20), "metadata")

# ---- regions
refused("VHDX: both region tables with a wrong checksum",
        lambda i: i.put(0x30100, b"x").put(0x40100, b"x"), "region table")
refused("VHDX: region tables of 2048 entries", lambda i: i.regions(8, u32(2048)), "region table")
refused("VHDX: no block allocation table", lambda i: i.regions(16, b"\0" * 16).regions(44, u32(0)),
        "no block allocation table")
refused("VHDX: no metadata region", lambda i: i.regions(8, u32(1)), "no metadata")
refused("VHDX: an unknown region is required", lambda i: i.regions(8, u32(3))
        .regions(80, b"\x77" * 16 + u64(64 << 20) + u32(1 << 20) + u32(1)), "unknown kind")
reads("VHDX: an unknown region is not required", lambda i: i.regions(8, u32(3))
      .regions(80, b"\x77" * 16 + u64(64 << 20) + u32(1 << 20) + u32(0)))
refused("VHDX: the table twice", lambda i: i.regions(48, i.get(0x30010, 16)), "twice")
refused("VHDX: metadata over the table", lambda i: i.regions(48 + 16, u64(2 << 20)), "overlaps")
refused("VHDX: the table over the log", lambda i: i.regions(16 + 16, u64(1 << 20)), "overlaps")
refused("VHDX: a region over the headers", lambda i: i.regions(16 + 16, u64(0)), "invalid")
refused("VHDX: a region that wraps", lambda i: i.regions(16 + 16, u64(2**64 - (1 << 20))),
        "invalid")
refused("VHDX: a region far behind the end", lambda i: i.regions(48 + 16, u64(1 << 50)),
        "metadata")

# ---- metadata
refused("VHDX: metadata without signature", lambda i: i.put(v.META_AT, b"x"), "metadata")
refused("VHDX: 2048 metadata items", lambda i: i.put(v.META_AT + 10, u16(2048)), "metadata")
refused("VHDX: a metadata item is missing", lambda i: i.put(v.META_AT + 10, u16(4)), "required")
refused("VHDX: a metadata item twice",
        lambda i: i.put(v.META_AT + 64, v.GUID["params"]), "twice")
refused("VHDX: an unknown metadata item is required",
        lambda i: i.put(v.META_AT + 10, u16(6)).put(v.META_AT + 192, b"\x77" * 16 + u32(70000)
                                                    + u32(4) + u32(4)), "unknown")
refused("VHDX: a metadata item in the table", lambda i: i.put(v.META_AT + 48, u32(64)), "outside")
refused("VHDX: a metadata item behind the region",
        lambda i: i.put(v.META_AT + 48, u32(0xfffffffe)), "outside")
for size in (0, 4096, 3 << 20, 512 << 20, 0xffffffff):
    refused("VHDX: block size %d" % size, lambda i, size=size: i.item("params", u32(size)),
            "block size")
refused("VHDX: a parent", lambda i: i.item("params", u32(1 << 20) + u32(2)), "Differencing")
for size in (0, 256, 1024, 0xffffffff):
    refused("VHDX: sectors of %d bytes" % size, lambda i, size=size: i.item("logical", u32(size)),
            "sector size")
for size in (2**64 - 512, 1 << 63, (64 << 40) + 512, (8 << 20) + 1):
    refused("VHDX: a disk of %d bytes" % size, lambda i, size=size: i.item("size", u64(size)),
            "disk size")
refused("VHDX: the table is too short for the disk", lambda i: i.item("size", u64(8 << 40)),
        "too short")

# ---- the table
refused("VHDX: a block behind the end of the file", lambda i: i.bat(1, (1 << 40) | 6),
        "BAT entry 1 start offset", check="damage")
refused("VHDX: a block that is cut", lambda i: i.truncate(os.path.getsize(i.path) - 4096),
        "BAT entry 2 end offset", check="damage")
refused("VHDX: a block near 2^64", lambda i: i.bat(1, (2**64 - (1 << 20)) | 6),
        "BAT entry 1 offset overflow", check="damage")
for name, at in (("headers", 0), ("log", 1), ("table", 2), ("metadata", 3)):
    refused("VHDX: a block over the %s" % name, lambda i, at=at: i.bat(1, (at << 20) | 6),
            "overlaps", check="damage")


@case("VHDX: a block of a reserved state, or partly present: EIO, others read")
def bad_state(t):
    for state in (4, 7):
        img = image(t)
        img.bat(1, (struct.unpack("<Q", img.get(v.BAT_AT + 8, 8))[0] & ~7) | state)
        t.read_fails(img.path, 1 << 20, "entry")
        t.expect(t.io(img.path, "read -P 1 0 1M", ro=True).rc == 0, "the others do not read")


@case("VHDX: all states without data read as zeros")
def zero_states(t):
    img = image(t)
    for state in (0, 1, 2, 3, 5):
        img.bat(1, state)
        data = t.reads_alike(img.path)
        t.expect(data is None or not any(data[1 << 20:2 << 20]), "state %d is not zeros" % state)


# ---- the log
def block_entry(i, **kw):
    """Maps block 5 onto block 0's place."""
    page = bytearray(i.get(v.BAT_AT, 4096))
    page[40:48] = page[0:8]
    return v.entry([(v.BAT_AT, bytes(page))], flushed=os.path.getsize(i.path),
                   last=os.path.getsize(i.path), **kw)


@case("VHDX: a log to replay: refused read-only, replayed by check -r all and by writers")
def replayed(t):
    for how in ("check", "io", "oracle"):
        img = image(t)
        img.log().put(v.LOG_AT, block_entry(img))
        before = file_hash(img.path)
        r = t.img("info", img.path)
        t.one_line(r, img.path, "needs to be replayed", lines=3)
        t.one_line(t.img("check", img.path), img.path, "needs to be replayed", lines=3)
        t.one_line(t.io(img.path, "read 0 512", ro=True), img.path, "replayed", lines=3)
        t.expect(file_hash(img.path) == before, "the file was changed")
        if how == "check":
            r = t.img("check", "-r", "all", img.path)
            t.expect(r.rc == 0 and "1 corruptions" in r.out, "%s" % r)
        elif how == "io":
            t.expect(t.io(img.path, "write -P 2 7M 4k").rc == 0, "cannot be written")
        else:
            t.oracle("check", "-r", "all", img.path)
        r = t.io(img.path, "read -P 1 5M 1M", ro=True)
        t.expect(r.rc == 0 and "failed" not in r.out, "%s: not replayed: %s" % (how, r))
        t.reads_alike(img.path)


@case("VHDX: of several sequences the newest is replayed, over the ring's end")
def newest(t):
    img = image(t)
    old = v.entry([(v.BAT_AT, bytes(4096))], sequence=4, tail=64 << 10)
    new = block_entry(img, sequence=9, tail=v.LOG_LEN - 4096)
    img.log().put(v.LOG_AT + (64 << 10), old)
    img.put(v.LOG_AT + v.LOG_LEN - 4096, new[:4096]).put(v.LOG_AT, new[4096:])
    t.expect(t.img("check", "-r", "all", img.path).rc == 0, "not repaired")
    t.expect(t.io(img.path, "read -P 1 5M 1M", ro=True).rc == 0, "the newest was not replayed")
    t.expect(t.io(img.path, "read -P 1 0 3M", ro=True).rc == 0, "the older one was replayed")


def ignored(name, make):
    """An entry that is not valid is none: nothing to replay."""
    @case(name)
    def run_case(t):
        img = image(t)
        img.log()
        make(img)
        data = t.reads_alike(img.path)
        t.expect(data is None or not any(data[5 << 20:6 << 20]), "an invalid entry was replayed")


ignored("VHDX: log entry with a wrong checksum",
        lambda i: i.put(v.LOG_AT, block_entry(i)[:-4] + b"\1\1\1\1"))
ignored("VHDX: log entry of another log",
        lambda i: i.put(v.LOG_AT, block_entry(i, guid=b"\x12" * 16)))
ignored("VHDX: log entry with sequence number 0",
        lambda i: i.put(v.LOG_AT, block_entry(i, sequence=0)))
for length in (0, 64, 4096 + 512, 2 << 20, 0xfffff000):
    ignored("VHDX: log entry of %d bytes" % length,
            lambda i, length=length: i.put(v.LOG_AT, block_entry(i, length=length)))
ignored("VHDX: log entry with more descriptors than it has room for",
        lambda i: i.put(v.LOG_AT, v.sealed(block_entry(i)[:24] + u32(0xffffffff)
                                           + block_entry(i)[28:])))


def bad_log(name, descs, reason, **kw):
    @case(name)
    def run_case(t):
        img = image(t)
        kw.setdefault("flushed", 0)
        img.log().put(v.LOG_AT, v.entry(descs, **kw))
        before = file_hash(img.path)
        t.one_line(t.io(img.path, "write 0 512"), img.path, reason)
        t.one_line(t.img("check", "-r", "all", img.path), img.path, reason)
        t.expect(file_hash(img.path) == before, "the file was changed")


bad_log("VHDX: log entry from a longer file", [(v.BAT_AT, bytes(4096))], "truncated",
        flushed=1 << 40)
bad_log("VHDX: log entry that writes far behind the end", [(1 << 60, bytes(4096))], "truncated")
bad_log("VHDX: log entry that wraps", [(2**64 - 4096, bytes(4096))], "truncated")
bad_log("VHDX: log entry that zeroes 2^62 bytes", [(0, 1 << 62)], "truncated")
bad_log("VHDX: log entry that makes the file 2^62 bytes long", [(v.BAT_AT, bytes(4096))],
        "truncated", last=1 << 62)


@case("VHDX: a log full of entries that all claim to be long: bounded time")
def entangled(t):
    img = image(t, options="block_size=1M,log_size=64M", written=0)
    img.log()
    guid = b"\x11" * 16
    with open(img.path, "r+b") as f:
        for at in range(0, 32 << 20, 4096):
            f.seek(v.LOG_AT + at)
            f.write(struct.pack("<4sIIIQII16s", b"loge", 0, 32 << 20, 0, at + 1, 0, 0, guid))
    r = t.img("info", img.path, cpu=3)
    t.one_line(r, img.path, "log")


if __name__ == "__main__":
    sys.exit(main())
