#!/usr/bin/env python3
"""vmdk.t - VMDK images with damaged headers, descriptors, directories, tables and
grains: one clear line, no change to the file, bounded memory and time."""
import os
import struct
import subprocess
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from badinput import IMG, IO, Test, case, file_hash, main       # noqa: E402

Test.fmt = "vmdk"
SIZE = 8 << 20
# Offsets in the header, see formats/vmdk/vmdk.h.
VERSION, FLAGS, CAPACITY, GRAIN, DESC, DESC_SIZE = 4, 8, 12, 20, 28, 36
PER_TABLE, RGD, GD, DATA, COMPRESSION = 44, 48, 56, 64, 77


class Image:
    def __init__(self, t, options="subformat=monolithicSparse", size=SIZE, written=True):
        self.path = t.path("test.vmdk")
        subprocess.run([IMG, "create", "-q", "-f", "vmdk", "-o", options, self.path, str(size)],
                       check=True)
        if written:
            subprocess.run([IO, "-f", "vmdk", "-c", "write -q -P 1 0 192k", self.path],
                           check=True)

    def get(self, at, n):
        with open(self.path, "rb") as f:
            f.seek(at)
            return f.read(n)

    def put(self, at, data):
        with open(self.path, "r+b") as f:
            f.seek(at)
            f.write(data)
        return self

    def u32(self, at, n):
        return self.put(at, struct.pack("<I", n))

    def u64(self, at, n):
        return self.put(at, struct.pack("<Q", n))

    def truncate(self, n):
        os.truncate(self.path, n)
        return self

    def subst(self, old, new):
        with open(self.path, "rb") as f:
            data = f.read()
        assert old in data
        with open(self.path, "wb") as f:
            f.write(data.replace(old, new, 1))
        return self

    def number(self, at, fmt="<Q"):
        return struct.unpack(fmt, self.get(at, struct.calcsize(fmt)))[0]

    def table(self, second=False):
        """Where the first grain table is."""
        return self.number(self.number(RGD if second else GD) * 512, "<I") * 512


def refused(name, damage, reason, options="subformat=monolithicSparse", **kw):
    @case(name)
    def run_case(t):
        img = Image(t, options, written="stream" not in options)
        damage(img)
        t.refused(img.path, reason, **kw)


# ---- the header of a sparse extent
refused("VMDK: three bytes", lambda i: i.truncate(3), "too small")
refused("VMDK: the magic only", lambda i: i.truncate(4), "L1|truncated|descriptor")
refused("VMDK: cut behind the descriptor", lambda i: i.truncate(0x2a00), "truncated")
for n in (4, 99, 0xffffffff):
    refused("VMDK: version %d" % n, lambda i, n=n: i.u32(VERSION, n), "Unsupported VMDK version")
refused("VMDK: tables of 513 entries", lambda i: i.u32(PER_TABLE, 513), "L2 table size too big")
refused("VMDK: tables of 2^32 - 1 entries", lambda i: i.u32(PER_TABLE, 0xffffffff),
        "L2 table size too big")
refused("VMDK: tables of no entries", lambda i: i.u32(PER_TABLE, 0), "L1 entry size is invalid")
refused("VMDK: grains of no sectors", lambda i: i.u64(GRAIN, 0), "L1 entry size is invalid")
refused("VMDK: grains of 2^64 - 1 sectors", lambda i: i.u64(GRAIN, 2**64 - 1),
        "Invalid granularity")
refused("VMDK: grains of 2^21 + 1 sectors", lambda i: i.u64(GRAIN, 0x200001),
        "Invalid granularity")
for n in (2**64 - 1, 1 << 62, 1 << 50):
    refused("VMDK: a capacity of %d sectors" % n, lambda i, n=n: i.u64(CAPACITY, n), "L1 size|large")
refused("VMDK: a directory of 2^25 tables of one entry",
        lambda i: i.u64(CAPACITY, 0xffffffff).u32(PER_TABLE, 1), "L1 size too big")
refused("VMDK: no capacity and a descriptor of another type",
        lambda i: i.u64(CAPACITY, 0), "Unsupported image type 'monolithicSparse'")
refused("VMDK: no capacity and a descriptor near 2^64",
        lambda i: i.u64(CAPACITY, 0).u64(DESC, 2**64 - 1), "outside of the file")
refused("VMDK: the first grain far behind the end", lambda i: i.u64(DATA, 1 << 40),
        "File truncated, expecting at least")
refused("VMDK: a directory far behind the end", lambda i: i.u64(GD, 1 << 60),
        "outside of the file")
refused("VMDK: a second directory near 2^64", lambda i: i.u64(RGD, 2**64 - 2),
        "outside of the file")
refused("VMDK: a directory at the end of the stream, no footer",
        lambda i: i.u64(GD, 2**64 - 1), "Invalid footer")
refused("VMDK: compressed grains of 1 GiB",
        lambda i: i.u64(GRAIN, 0x200000), "too large", options="subformat=streamOptimized")


@case("VMDK: the largest directory there may be, all holes: bounded memory")
def large_directory(t):
    img = Image(t, written=False)
    img.u64(CAPACITY, (2 << 20) * 512 * 128).u64(GD, 128).u64(RGD, 128 + (8 << 20) // 512)
    img.truncate(32 << 20)
    for r in (t.img("info", img.path), t.io(img.path, "read 0 1M", ro=True)):
        t.expect(r.rc == 0, "cannot be opened: %s" % r)


@case("VMDK: version 3 without compression: read, not written")
def version_3(t):
    img = Image(t)
    img.u32(VERSION, 3)
    t.reads_alike(img.path)
    before = file_hash(img.path)
    t.one_line(t.io(img.path, "write 0 512"), img.path, "must be read only")
    t.expect(file_hash(img.path) == before, "the file was changed")


# ---- tables and grains
@case("VMDK: a grain table far behind the end reads as holes")
def table_behind(t):
    img = Image(t)
    img.u32(img.number(GD) * 512, 0xffffff00)
    t.reads_alike(img.path)


@case("VMDK: a grain far behind the end reads as zeros; check says so as QEMU does")
def grain_behind(t):
    img = Image(t)
    img.u32(img.table() + 4, 0xfffffff0)
    t.reads_alike(img.path)
    ours, theirs = t.img("check", img.path), t.oracle("check", img.path)
    t.expect(ours.rc == theirs.rc and ours.err.replace("platter-img", "qemu-img") == theirs.err,
             "%s\n%s" % (ours, theirs))


@case("VMDK: a grain in the header: I/O error, the header is not written to")
def grain_header(t):
    img = Image(t)
    img.u32(img.table() + 4, 0)
    img.u32(img.table(), 0)
    r = t.io(img.path, "write -P 9 0 64k", "read -P 9 0 64k")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    t.expect(img.get(0, 4) == b"KDMV", "the header is gone")


def stream(t, data=b"All work and no play. " * 3000):
    img = Image(t, "subformat=streamOptimized", written=False)
    raw = t.path("raw")
    with open(raw, "wb") as f:
        f.write((data * 3)[:65536 * 2])
    subprocess.run([IMG, "convert", "-n", "-f", "raw", "-O", "vmdk", raw, img.path], check=True)
    return img, img.number(img.table(), "<I") * 512


def bad_grain(name, damage, length=65536):
    @case(name)
    def run_case(t):
        img, at = stream(t)
        damage(img, at)
        before = file_hash(img.path)
        r = t.io(img.path, "read 0 %d" % length, ro=True)
        t.expect(r.rc == 1 and "Invalid argument" in r.out, "%s" % r)
        r = t.io(img.path, "read 64k 64k", ro=True)
        t.expect(r.rc == 0 and "failed" not in r.out, "the others do not read: %s" % r)
        t.expect(file_hash(img.path) == before, "the file was changed")


bad_grain("VMDK: a compressed grain of no bytes", lambda i, at: i.u32(at + 8, 0))
bad_grain("VMDK: a compressed grain of 2^32 - 1 bytes", lambda i, at: i.u32(at + 8, 0xffffffff))
bad_grain("VMDK: a compressed grain that is cut", lambda i, at: i.u32(at + 8, 20))
bad_grain("VMDK: a compressed grain that is no stream", lambda i, at: i.put(at + 12, b"\xff" * 40))


def restream(i, at, data):
    z = zlib.compress(data)
    i.u32(at + 8, len(z)).put(at + 12, z)


bad_grain("VMDK: a compressed grain that is longer than a grain",
          lambda i, at: restream(i, at, bytes(80000)))
bad_grain("VMDK: a compressed grain that is shorter than what is read",
          lambda i, at: restream(i, at, bytes(65535)))


@case("VMDK: a bomb in every table entry: linear time, bounded memory")
def bombs(t):
    img, at = stream(t)
    sector = at // 512
    restream(img, at, bytes(65536))
    for k in range(128):
        img.u32(img.table() + 4 * k, sector)
    r = t.img("convert", "-f", "vmdk", "-O", "raw", img.path, t.path("out"))
    t.expect(r.rc == 0, "%s" % r)


# ---- descriptors
DESC_TEXT = """# Disk DescriptorFile
version=1
CID=deadbeef
parentCID=ffffffff
createType="%s"
%s
"""


def described(name, text, reason, binary=False, **kw):
    @case(name)
    def run_case(t):
        path = t.path("test.vmdk")
        with open(path, "wb") as f:
            f.write(text if binary else text.encode())
        with open(t.path("flat.vmdk"), "wb") as f:
            f.truncate(1 << 20)
        t.refused(path, reason, check=kw.get("check", True), write=kw.get("write", True))


described("VMDK: a descriptor without a type", "# Disk DescriptorFile\nversion=1\n",
          "invalid VMDK image descriptor")
described("VMDK: a type without an end", DESC_TEXT.replace('"%s"', '"%s') % ("vmfs", ""),
          "invalid VMDK image descriptor")
described("VMDK: an unknown type", DESC_TEXT % ("fullDevice", ""), "Unsupported image type")
described("VMDK: a type of 200 bytes", DESC_TEXT % ("x" * 200, ""),
          "invalid VMDK image descriptor")
described("VMDK: a flat extent without an offset",
          DESC_TEXT % ("monolithicFlat", 'RW 2048 FLAT "flat.vmdk"'), "Invalid extent line")
described("VMDK: a flat extent at a negative offset",
          DESC_TEXT % ("monolithicFlat", 'RW 2048 FLAT "flat.vmdk" -1'), "Invalid extent line")
described("VMDK: a flat extent at 2^62",
          DESC_TEXT % ("monolithicFlat", 'RW 2048 FLAT "flat.vmdk" %d' % (1 << 62)),
          "Invalid extent line")
described("VMDK: an extent of 2^63 - 1 sectors",
          DESC_TEXT % ("monolithicFlat", 'RW %d FLAT "flat.vmdk" 0' % (2**63 - 1)), "too large")
described("VMDK: two extents that are too large together",
          DESC_TEXT % ("monolithicFlat", ('RW %d FLAT "flat.vmdk" 0\n' % (2**53)) * 2),
          "too large", write=False)
described("VMDK: an extent that is not there",
          DESC_TEXT % ("monolithicFlat", 'RW 2048 FLAT "gone.vmdk" 0'), "gone.vmdk")
described("VMDK: a sparse extent that is none",
          DESC_TEXT % ("twoGbMaxExtentSparse", 'RW 2048 SPARSE "flat.vmdk"'), "not in VMDK format")
described("VMDK: a sparse extent that is the descriptor again",
          DESC_TEXT % ("twoGbMaxExtentSparse", 'RW 2048 SPARSE "test.vmdk"'),
          "not in VMDK format", write=False)
described("VMDK: a seSparse extent that is none",
          DESC_TEXT % ("seSparse", 'RW 2048 SESPARSE "flat.vmdk"'),
          "Bad const header magic|No write support")
described("VMDK: a parent without an end",
          (DESC_TEXT % ("monolithicFlat", 'RW 2048 FLAT "flat.vmdk" 0')) +
          'parentFileNameHint="x', "parent")
described("VMDK: no content ID", DESC_TEXT.replace("CID=deadbeef\n", "").replace("parentCID", "pid")
          % ("monolithicFlat", 'RW 2048 FLAT "flat.vmdk" 0'), "CID")
for name in ("nbd://localhost/x", "json:{\\\"driver\\\":\\\"file\\\"}", "nfs://h/x"):
    described("VMDK: an extent named %s" % name,
              DESC_TEXT % ("monolithicFlat", 'RW 2048 FLAT "%s" 0' % name.replace("\\", "")
                           .replace('"', "'")), "not a plain path")
described("VMDK: a descriptor of a million short lines",
          b"# Disk DescriptorFile\nversion=1\n" + b"RW 1\n" * 200000 + b'createType="nonsense"\n',
          "Unsupported image type", binary=True)
described("VMDK: ten thousand extents",
          DESC_TEXT % ("monolithicFlat", 'RW 1 FLAT "flat.vmdk" 0\n' * 10000),
          "More than 1024 extents")


@case("VMDK: an extent of zero sectors and lines that are no extents are passed over")
def passed_over(t):
    path = t.path("test.vmdk")
    with open(path, "w") as f:
        f.write(DESC_TEXT % ("monolithicFlat", 'RW 0 FLAT "gone" 0\nRO 8 FLAT "gone" 0\n'
                             'RW 8 NONE "gone"\nNOACCESS 7\nRW 2048 FLAT "flat.vmdk" 0\n'))
    with open(t.path("flat.vmdk"), "wb") as f:
        f.write(b"\7" * (1 << 20))
    t.reads_alike(path)


@case("VMDK: a parent with another content ID: allocated grains read, others do not")
def other_parent(t):
    base = Image(t)
    os.rename(base.path, t.path("base.vmdk"))
    top = Image(t, "backing_file=base.vmdk,backing_fmt=vmdk", written=False)
    t.io(top.path, "write -P 2 64k 64k")
    t.expect(t.io(top.path, "read -P 1 0 64k", ro=True).rc == 0, "does not read the base")
    t.io(t.path("base.vmdk"), "write -P 3 0 64k")
    t.expect(t.io(top.path, "read -P 2 64k 64k", ro=True).rc == 0, "own grains do not read")
    for cmd in ("read 0 64k", "write 256k 512"):
        r = t.io(top.path, cmd)
        t.expect(r.rc == 1 and "Invalid argument" in r.out, "%s: %s" % (cmd, r))


if __name__ == "__main__":
    sys.exit(main())
