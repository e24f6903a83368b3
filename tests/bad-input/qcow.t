#!/usr/bin/env python3
"""qcow.t - qcow images of version 1 with damaged headers and tables: one clear line, no change
to the file, bounded memory and time."""
import os
import struct
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "formats"))
from badinput import IO, Test, case, file_hash, main           # noqa: E402
from smallimg import qcow                                       # noqa: E402

Test.fmt = "qcow"


def save(t, data, cut=None, name="test.qcow"):
    with open(t.path(name), "wb") as f:
        f.write(data if cut is None else data[:cut])
    return t.path(name)


def refused(name, reason, **fields):
    @case("qcow: " + name)
    def run_case(t):
        # Without a check for the format, check's own line does not name the file.
        t.refused(save(t, qcow(**fields)), reason, check=False)


def reads(name, *clusters, **fields):
    @case("qcow: " + name)
    def run_case(t):
        t.reads_alike(save(t, qcow(*clusters, **fields)))


refused("another magic", "not in qcow format", magic=0x514649fa)
refused("version 0", "version 0", version=0)
refused("version 4", "version 4", version=4)
refused("a size of 1", "too small", size=1)
refused("clusters of 256 bytes", "Cluster size", cluster_bits=8)
refused("clusters of 128 KiB", "Cluster size", cluster_bits=17)
refused("L2 tables of 256 bytes", "L2 table size", l2_bits=5)
refused("L2 tables of 128 KiB", "L2 table size", l2_bits=14)
refused("encrypted", "Encrypted", crypt=1)
refused("encrypted in an unknown way", "encryption method", crypt=2)
refused("a size of 2^64 - 1", "too large", size=2**64 - 1)
refused("a size of 2^62", "too large", size=2**62)
refused("an L1 table larger than the file", "L1 table", size=1 << 36)
refused("an L1 table past the end of the file", "L1 table", l1=1 << 40)
refused("an L1 table at 2^64 - 8", "L1 table", l1=2**64 - 8)
refused("an L1 table over the header", "L1 table", l1=0)
refused("a backing file's name of 1024 bytes", "name too long", backing_offset=48,
        backing_size=1024)
refused("a backing file's name of 2^32 - 1 bytes", "name too long", backing_offset=48,
        backing_size=2**32 - 1)
refused("a backing file's name past the end", "not within the file", backing_offset=1 << 40,
        backing_size=8)
refused("a backing file's name at 2^64 - 1", "not within the file", backing_offset=2**64 - 1,
        backing_size=8)


@case("qcow: a backing file on the network")
def network(t):
    t.refused(save(t, qcow(backing=b"nbd://localhost/x")), "not a plain path", info=False,
              check=False)


def l1_entry(name, value):
    @case("qcow: an L1 entry that names " + name)
    def run_case(t):
        data = qcow()
        data[48:56] = struct.pack(">Q", value)
        t.refused(save(t, data), "L1 entry 0", check=False)


l1_entry("a place past the end", 1 << 40)
l1_entry("a place at 2^64 - 512", 2**64 - 512)
l1_entry("the header", 1)
l1_entry("the L1 table itself", 48)
l1_entry("a table cut by the end", 2048)


def bad_entry(name, value):
    @case("qcow: %s is an I/O error; nothing is written there" % name)
    def run_case(t):
        path = save(t, qcow((1, value, 2)))
        before = file_hash(path)
        t.read_fails(path, 512, "block map entry 1")
        t.io_fails(path, "write 512 512", "block map entry 1")
        t.expect(file_hash(path) == before, "the file was changed")
        r = t.io(path, "read -P 1 0 512", "read -P 3 1024 512", ro=True)
        t.expect(r.rc == 0 and "failed" not in r.out, "other clusters are lost: %s" % r)


bad_entry("a cluster at an odd offset", 1025)
bad_entry("a cluster at 2^62", 1 << 62)
bad_entry("an entry of all ones", 2**64 - 1)


@case("qcow: a cluster over the L1 table is an I/O error")
def over_l1(t):
    at = len(qcow())
    data = qcow((1, at, 2), l1=at)
    path = save(t, data + data[48:56] + bytes(504))
    t.io_fails(path, "read 512 512", "block map entry 1", ro=True)
    before = file_hash(path)
    t.io_fails(path, "write 512 512", "block map entry 1")
    t.expect(file_hash(path) == before, "the file was changed")


def deflated(name, stream, size=None, offset=None, fine=False):
    @case("qcow: a compressed cluster " + name)
    def run_case(t):
        data = qcow((1, 0, 2))
        at = len(data) if offset is None else offset
        data += stream
        entry = 1 << 63 | (len(stream) if size is None else size) << 54 | at
        data[512 + 8:512 + 16] = struct.pack(">Q", entry)
        path = save(t, data)
        if fine:
            t.reads_alike(path)
            return
        t.read_fails(path, 512, "cannot be inflated")


def deflate(data):
    z = zlib.compressobj(9, zlib.DEFLATED, -12)
    return z.compress(data) + z.flush()


deflated("is read", deflate(b"\7" * 512), fine=True)
deflated("of 0 bytes", b"", size=0)
deflated("past the end of the file", b"", size=100, offset=1 << 40)
deflated("that is cut", deflate(bytes(range(256)) * 2)[:40])
deflated("that gives less", deflate(b"\7" * 100))
deflated("of rubbish", b"\xff" * 100)


@case("qcow: cut at each field")
def cut(t):
    data = qcow()
    for end in [0, 1, 3, 4, 8, 16, 24, 31, 32, 33, 36, 40, 47, 48, 50, 55, 512, 513]:
        path = save(t, data, end, "cut%d.qcow" % end)
        before = file_hash(path)
        t.one_line(t.img("info", "-f", "qcow", path), path, "qcow|size|L1")
        t.one_line(t.io(path, "write 0 512"), path, "qcow|size|L1")
        t.expect(file_hash(path) == before, "the file was changed")


@case("qcow: a backing file that is the image itself")
def loop(t):
    path = save(t, qcow(backing=b"test.qcow"))
    t.one_line(t.io(path, "read 0 512", ro=True), path, "loop")


reads("two entries for one cluster", (1, 1, 2))
reads("a cluster past the end of the file", (1, 1 << 30, 2))
reads("a size that is no multiple of 512", size=1300)


@case("qcow: a write that finds no room leaves what was, and the image works afterwards")
def no_room(t):
    path = save(t, qcow((1, 0, 0), size=64 * 512 * 2 + 512))
    # The L1 table has room for one entry more.
    for nth in range(1, 6):
        fault = "driver=qcow,file.driver=fault,file.op=write,file.errno=ENOSPC,file.nth=%d," \
            "file.sticky=on,file.file.filename=%s" % (nth, path)
        t.run(IO, "--image-opts", "-c", "write -P 9 512 512", "-c", "write -P 8 40k 512", fault)
        r = t.io(path, "read -P 1 0 512", ro=True)
        t.expect(r.rc == 0 and "failed" not in r.out, "write %d: %s" % (nth, r))
    r = t.io(path, "write -P 9 512 512", "write -P 8 40k 512", "read -P 1 0 512",
             "read -P 9 512 512", "read -P 8 40k 512", "read -P 0 1k 39k")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    t.reads_alike(path)


if __name__ == "__main__":
    sys.exit(main())
