#!/usr/bin/env python3
"""dmg.t - Apple disk images with damaged trailers and tables of chunks: one clear line, no
change to the file, bounded memory and time."""
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "formats"))
from badinput import IMG, ORACLE_IMG, Test, case, file_hash, main, run    # noqa: E402
from smallimg import (DMG_BZIP2, DMG_COMMENT, DMG_IGNORE, DMG_LZFSE, DMG_RAW,       # noqa: E402
                      DMG_ZERO, DMG_ZLIB, dmg)

Test.fmt = "dmg"
SIMPLE = ((DMG_ZLIB, 8), (DMG_ZERO, 16), (DMG_RAW, 4))


def save(t, data, cut=None, name="test.dmg"):
    with open(t.path(name), "wb") as f:
        f.write(data if cut is None else data[:cut])
    return t.path(name)


def reads(name, oracle=True, **fields):
    @case("dmg: " + name)
    def run_case(t):
        data, guest = dmg(**fields)
        path = save(t, data)
        got = t.reads_alike(path) if oracle else t.content(path)
        t.expect(got == guest, "other bytes than were put in")


def refused(name, reason, **fields):
    for fork in (False, True):
        @case("dmg: %s, %s" % ("resource fork" if fork else "property list", name))
        def run_case(t, fork=fork):
            path = save(t, dmg(fork=fork, **fields)[0])
            t.refused(path, reason, check=False, write=False)


reads("zlib, zeros and stored chunks")
reads("a resource fork", fork=True)
reads("a trailer at an odd offset", odd=77)
reads("bzip2 and ignored chunks", oracle=False, chunks=((DMG_BZIP2, 8), (DMG_IGNORE, 4)))
reads("a chunk of 4 MiB", chunks=((DMG_ZLIB, 8192), (DMG_RAW, 8)))
reads("no chunks and no sectors", chunks=())
refused("a data fork behind the trailer", "trailer", data=1 << 40)
refused("2^64 - 1 sectors", "trailer", sectors=2**64 - 1)
refused("tables past the end", "not within the file", rsrc=1 << 40, plist=1 << 40)
refused("tables of 2^64 - 1 bytes", "not within the file", rsrc_len=2**64 - 1, plist_len=2**64 - 1)
refused("a chunk of 2^63 sectors", "larger than max", patch={0: {"count": 1 << 63}})
refused("a chunk of 128 MiB", "larger than max", patch={2: {"count": 1 << 18}})
refused("a chunk stored in 2^63 bytes", "larger than max", patch={0: {"length": 1 << 63}})
refused("a chunk past the end of the file", "not within", patch={0: {"offset": 1 << 40}})
refused("a chunk at 2^64 - 1", "not within", patch={0: {"offset": 2**64 - 1}})
refused("a chunk at sector 2^64 - 1", "not within", patch={2: {"sector": 2**64 - 1}})
refused("zeros that wrap around", "not within", patch={1: {"count": 2**64 - 8}})
refused("chunks that overlap", "overlap", patch={2: {"sector": 0}})


@case("dmg: no tables at all")
def none(t):
    t.refused(save(t, dmg(plist_len=0)[0]), "not within the file", check=False, write=False)


@case("dmg: a resource fork whose resource is longer than it")
def resource(t):
    data, _ = dmg(fork=True)
    at = data.index(b"mish") - 4
    for n in (0, 0xffffffff, 100000):
        data[at:at + 4] = struct.pack(">I", n)
        t.refused(save(t, data), "resource of the dmg", check=False, write=False)


@case("dmg: a property list that is cut within its data")
def plist(t):
    data, _ = dmg()
    at = data.index(b"</data>")
    data[at:at + 7] = b"<xdata>"
    t.refused(save(t, data), "property list", check=False, write=False)


@case("dmg: base64 with rubbish in it leads nowhere")
def rubbish(t):
    data, _ = dmg()
    at = data.index(b"<data>") + 20
    data[at:at + 40] = bytes(range(200, 240))
    r = t.img("info", "-f", "dmg", save(t, data))
    t.expect(r.rc in (0, 1), "%s" % r)


def unreadable(name, damage, chunks=SIMPLE):
    @case("dmg: %s is an I/O error, other chunks are read" % name)
    def run_case(t):
        data, _ = dmg(chunks=chunks)
        damage(data)
        path = save(t, data)
        t.read_fails(path, 0, "cannot be uncompressed")
        r = t.io(path, "read -P 0 4k 8k", "read -P 3 12k 2k", ro=True)
        t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)


def spoil(data):
    data[8:14] = b"\xff" * 6


unreadable("a damaged zlib chunk", spoil)
unreadable("a damaged bzip2 chunk", spoil, ((DMG_BZIP2, 8),) + SIMPLE[1:])


@case("dmg: chunks of a kind that cannot be read are named, the others are read")
def unread(t):
    chunks = ((DMG_LZFSE, 8), (DMG_COMMENT, 0), (DMG_RAW, 4), (0x80000004, 4), (0x80000008, 4),
              (DMG_LZFSE, 8))
    path = save(t, dmg(chunks)[0])
    words = ("convert", "-f", "dmg", "-O", "raw", path, t.path("out.raw"))
    ours, theirs = t.run(IMG, *words), run(ORACLE_IMG, *words) if ORACLE_IMG else None
    t.expect(ours.rc == 1 and "dmg-lzfse module is missing" in ours.err and
             "unknown type 80000004" in ours.err and len(ours.lines) == 3, "%s" % ours)
    t.expect(not theirs or theirs.err.replace("qemu-img:", "platter-img:") == ours.err,
             "ours: %s\ntheirs: %s" % (ours, theirs))
    r = t.io(path, "read -P 3 4k 2k", ro=True)
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)


def shorter(kind):
    @case("dmg: a chunk that gives less than it says is an I/O error (%#x)" % kind)
    def run_case(t):
        path = save(t, dmg(((kind, 8), (DMG_ZERO, 8)), patch={0: {"count": 7}})[0])
        t.io_fails(path, "read 0 512", "cannot be uncompressed", ro=True)
        path = save(t, dmg(((kind, 8),), patch={0: {"count": 9}}, sectors=9)[0])
        t.io_fails(path, "read 0 512", "cannot be uncompressed", ro=True)


shorter(DMG_ZLIB)
shorter(DMG_BZIP2)


@case("dmg: a place that no chunk has is an I/O error")
def hole(t):
    path = save(t, dmg(sectors=100)[0])
    t.io_fails(path, "read 14k 512", ro=True)


@case("dmg: it cannot be opened for writing")
def write(t):
    path = save(t, dmg()[0])
    before = file_hash(path)
    t.one_line(t.io(path, "write 0 512"), path, "read-only")
    t.expect(file_hash(path) == before, "the file was changed")


@case("dmg: cut anywhere it is none")
def cut(t):
    data, _ = dmg()
    for end in (0, 1, 511, 512, len(data) - 512, len(data) - 511, len(data) - 508):
        path = save(t, data, end, "cut%d.dmg" % end)
        r = t.img("info", "-f", "dmg", path)
        t.one_line(r, path, "dmg file")


if __name__ == "__main__":
    sys.exit(main())
