#!/usr/bin/env python3
"""a01-header.t - A1..A50: qcow2 headers that lie, are cut short or want what we
do not have."""
import os
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from badinput import q, case, file_hash, main                   # noqa: E402

NOT_QCOW2 = r"not in qcow2 format|too short|truncated|incomplete"


def plain(**kw):
    """1 MiB with data in the first and a zero cluster in the third cluster."""
    kw.setdefault("cluster_bits", 12)
    img = q.Image(**kw)
    img.write(0, b"\x11" * img.cs)
    return img


def refused(name, reason, header=None, check=True, **kw):
    """A case in which header fields (or Image arguments) alone are wrong."""
    @case(name)
    def run(t):
        img = plain(**kw)
        img.header.update(header or {})
        t.refused(t.save(img), reason, check=check)


@case("A1 empty file: refused")
def a1(t):
    path = t.path("empty.qcow2")
    open(path, "wb").close()
    t.refused(path, NOT_QCOW2)


@case("A2 three bytes: refused")
def a2(t):
    path = t.path("three.qcow2")
    with open(path, "wb") as f:
        f.write(b"QFI")
    t.refused(path, NOT_QCOW2)


@case("A3 truncated at each byte 0..111: refused")
def a3(t):
    full = plain().build()
    path = t.path("cut.qcow2")
    cut = r"qcow2|header|truncated|short|end of|past|beyond|L1|refcount"
    for n in range(112):
        with open(path, "wb") as f:
            f.write(full[:n])
        if n % 16 == 8:
            t.refused(path, cut, check="damage" if n >= 104 else True)
        else:
            t.one_line(t.img("info", "-f", "qcow2", path), path, cut)
        t.expect(os.path.getsize(path) == n, "the file grew at %d" % n)


refused("A4 bad magic: refused", NOT_QCOW2, {"magic": 0x514649FC})
refused("A5 version 0: refused", r"version", {"version": 0})
refused("A6 version 1: refused", r"version", {"version": 1})
refused("A7 version 4: refused", r"version", {"version": 4})
refused("A8 version 0xFFFFFFFF: refused", r"version", {"version": 0xFFFFFFFF})
for a_id, bits in (("A9", 0), ("A10", 8), ("A11", 22), ("A12", 31), ("A12", 32), ("A12", 63),
                   ("A12", 255), ("A12", 0xFFFFFFFF)):
    refused("%s cluster_bits %d: refused" % (a_id, bits), r"cluster size|cluster_bits",
            {"cluster_bits": bits})
for a_id, length in (("A13", 0), ("A14", 72), ("A15", 103), ("A16", 4104), ("A17", 0xFFFFFFFF),
                     ("A18", 108)):
    refused("%s v3 header_length %d: refused" % (a_id, length), r"header",
            {"header_length": length})
refused("A19 refcount_order 7: refused", r"refcount|reference count", {"refcount_order": 7})
refused("A20 refcount_order 255: refused", r"refcount|reference count", {"refcount_order": 255})


@case("A21 refcount orders 0..6: all accepted, read, checked and written")
def a21(t):
    for order in range(7):
        img = plain(refcount_order=order)
        img.zero(2 * img.cs)
        path = t.save(img)
        t.reads_alike(path)
        t.check_alike(path)
        r = t.io(path, "write -P 0x33 300000 70000", "read -P 0x33 300000 70000",
                 "read -P 0x11 0 4096")
        t.expect(r.rc == 0, "order %d: %s" % (order, r))
        t.reads_alike(path)
        t.sound(path)


@case("A22 virtual size 0: valid")
def a22(t):
    path = t.save(q.Image(size=0))
    r = t.img("info", "-f", "qcow2", path)
    t.expect(r.rc == 0 and "virtual size: 0 B" in r.out, "info: %s" % r)
    t.check_alike(path)
    t.expect(t.reads_alike(path) == b"", "not empty")
    r = t.io(path, "read 0 512")
    t.expect(r.rc == 1 and "read failed" in r.out, "a read past the end worked: %s" % r)


@case("A23 size not a multiple of 512: the whole sectors read as with QEMU")
def a23(t):
    img = q.Image(size=10000, cluster_bits=12)
    img.write(0, bytes(range(256)) * 48)
    path = t.save(img)
    before = file_hash(path)
    ours, theirs = t.content(path), t.content(path, "oracle")
    t.expect(len(ours) // 512 == 10000 // 512 or len(ours) == 10240, "size %d" % len(ours))
    t.expect(ours[:9728] == theirs[:9728], "reads differently")
    t.expect(file_hash(path) == before, "changed")


# A bigger size needs the bigger L1 table that the header does not promise, too:
# whichever is noticed first, the image is refused.
SIZE = r"size|too (small|large|big)|L1"
refused("A24 size 2^63: refused", SIZE, {"size": 1 << 63})
refused("A25 size 2^64-1: refused", SIZE, {"size": (1 << 64) - 1})
refused("A26 size + cluster wraps: refused", SIZE, {"size": (1 << 64) - 4096 + 512})
refused("A26 size 2^63-512 with the largest L1: refused", SIZE,
        {"size": (1 << 63) - 512, "l1_size": 1 << 22})
refused("A27 l1_size too small for the size: refused", r"L1", {"l1_size": 0})
refused("A27 l1_size one entry short: refused", r"L1", {"size": (2 << 20) + 512, "l1_size": 1})
refused("A28 l1_size 2^31: refused", r"L1", {"l1_size": 1 << 31})
refused("A28 l1_size 2^32-1: refused", r"L1", {"l1_size": 0xFFFFFFFF})
refused("A29 L1 table over 32 MiB: refused", r"L1", {"l1_size": (32 << 17) + 1})
refused("A30 L1 offset 0 with l1_size > 0: refused", r"L1", {"l1_table_offset": 0}, "damage")
refused("A31 L1 unaligned: refused", r"L1", {"l1_table_offset": 4096 * 3 + 512}, "damage")
refused("A31 L1 unaligned by 8: refused", r"L1", {"l1_table_offset": 4096 * 3 + 8}, "damage")
refused("A32 L1 past the end of the file: refused", r"L1", {"l1_table_offset": 1 << 30}, "damage")
for off in (1 << 63, (1 << 64) - 4096, (1 << 64) - 8):
    refused("A33 L1 offset %#x: refused" % off, r"L1", {"l1_table_offset": off}, "damage")
REFT = r"ref(erence )?count"
refused("A34 refcount table unaligned: refused", REFT, {"refcount_table_offset": 4096 + 512},
        "damage")
refused("A36 refcount table over 8 MiB: refused", REFT, {"refcount_table_clusters": 2049}, "damage")
refused("A36 refcount table of 2^32-1 clusters: refused", REFT,
        {"refcount_table_clusters": 0xFFFFFFFF}, "damage")
refused("A37 refcount table past the end of the file: refused", REFT,
        {"refcount_table_offset": 1 << 30})
refused("A37 refcount table near 2^64: refused", REFT,
        {"refcount_table_offset": (1 << 64) - 4096}, "damage")
refused("A38 refcount table over the header: refused", REFT, {"refcount_table_offset": 0}, "damage")


@case("A35 refcount table of 0 clusters: refused, but check -r rebuilds it")
def a35(t):
    img = plain()
    img.header["refcount_table_clusters"] = 0
    path = t.save(img)
    t.refused(path, REFT, check=False)
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc == 0, "check -r all: %s" % r)
    t.sound(path)
    t.expect(t.content(path, "oracle") == b"\x11" * 4096 + bytes((1 << 20) - 4096), "data lost")


refused("A39 crypt_method 3: refused", r"encrypt|crypt", {"crypt_method": 3})
refused("A39 crypt_method 2^32-1: refused", r"encrypt|crypt", {"crypt_method": 0xFFFFFFFF})


@case("A40 crypt_method 2 without its extension: refused")
def a40(t):
    img = plain()
    img.header["crypt_method"] = 2
    path = t.save(img)
    before = file_hash(path)
    for r in (t.io(path, "read 0 512", ro=True), t.io(path, "write 0 512")):
        t.one_line(r, path, r"encrypt|crypt|LUKS")
    t.expect(file_hash(path) == before, "changed")


refused("A41 unknown incompatible bit: refused, by number", r"incompatible|feature",
        incompatible=1 << 40)
refused("A41 unknown incompatible bit: refused, by the name in its table",
        r"frobnicated sectors", incompatible=1 << 40,
        extensions=[(q.EXT_FEATURE_TABLE, q.feature_entry(0, 40, b"frobnicated sectors") +
                     q.feature_entry(1, 40, b"the compatible one"))])


@case("A42 unknown compatible bit: accepted and kept")
def a42(t):
    path = t.save(plain(compatible=1 << 50))
    t.reads_alike(path)
    t.check_alike(path)
    r = t.io(path, "write -P 0x22 65536 4096", "read -P 0x11 0 4096")
    t.expect(r.rc == 0, "%s" % r)
    t.expect(q.field(path, "compatible_features") & 1 << 50, "the bit was lost")
    t.sound(path)


@case("A43 unknown autoclear bit: kept read-only, cleared by a writable open")
def a43(t):
    path = t.save(plain(autoclear=1 << 33))
    t.reads_alike(path)
    t.io(path, "read 0 512", ro=True)
    t.expect(q.field(path, "autoclear_features") == 1 << 33, "cleared by a read-only open")
    r = t.io(path, "write -P 0x22 65536 4096")
    t.expect(r.rc == 0, "%s" % r)
    t.expect(q.field(path, "autoclear_features") == 0, "still set after a writable open")
    t.sound(path)


def dirty_image(t, **kw):
    """Dirty, with an allocated cluster whose refcount was never written."""
    img = plain(incompatible=q.INCOMPAT_DIRTY, compatible=1, **kw)
    lost = img.write(8 * img.cs, b"\x44" * img.cs)
    img.set_refcount(lost, 0)
    return t.save(img)


@case("A44 dirty bit: read-only leaves it")
def a44_ro(t):
    path = dirty_image(t)
    ours = t.reads_alike(path)
    t.expect(ours is None or ours[8 * 4096:9 * 4096] == b"\x44" * 4096, "data not read")
    r = t.img("info", "-f", "qcow2", path)
    t.expect(r.rc == 0, "info: %s" % r)
    t.expect(q.field(path, "incompatible_features") & 1, "info or a read cleared it")


@case("A44 dirty bit: a writable open repairs first")
def a44_rw(t):
    path = dirty_image(t)
    r = t.io(path, "write -P 0x55 0x20000 4096", "read -P 0x44 0x8000 4096",
             "read -P 0x11 0 4096", "read -P 0x55 0x20000 4096")
    t.expect(r.rc == 0, "%s" % r)
    t.expect(not q.field(path, "incompatible_features") & 1, "still dirty after a clean close")
    t.sound(path)
    t.reads_alike(path)


@case("A45 corrupt bit: writable refused, read-only works")
def a45(t):
    path = t.save(plain(incompatible=q.INCOMPAT_CORRUPT))
    before = file_hash(path)
    t.one_line(t.io(path, "write 0 512"), path, r"corrupt")
    t.expect(file_hash(path) == before, "changed by the refused open")
    r = t.io(path, "read -P 0x11 0 4096", ro=True)
    t.expect(r.rc == 0, "read-only: %s" % r)
    t.reads_alike(path)
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc == 0, "repair: %s" % r)
    t.expect(not t.corrupt_bit(path), "the bit outlived the repair")
    t.sound(path)


@case("A46 dirty and corrupt: writable refused, read-only works, repair clears both")
def a46(t):
    path = dirty_image(t)
    q.patch_field(path, "incompatible_features", 3)
    before = file_hash(path)
    t.one_line(t.io(path, "write 0 512"), path, r"corrupt")
    r = t.io(path, "read -P 0x44 0x8000 4096", ro=True)
    t.expect(r.rc == 0, "read-only: %s" % r)
    t.expect(file_hash(path) == before, "changed")
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc == 0, "repair: %s" % r)
    t.expect(q.field(path, "incompatible_features") == 0, "bits outlived the repair")
    t.sound(path)


COMP = r"compression"
refused("A47 compression type 2: refused", COMP, incompatible=q.INCOMPAT_COMPRESSION,
        compression_type=2)
refused("A47 compression type 255: refused", COMP, incompatible=q.INCOMPAT_COMPRESSION,
        compression_type=255)
refused("A48 zstd type without its bit: refused", COMP, compression_type=1)
refused("A49 compression bit set with type zlib: refused", COMP,
        incompatible=q.INCOMPAT_COMPRESSION)
refused("A50 extended L2 with cluster_bits 12: refused", r"Unsupported subcluster size: 128",
        cluster_bits=12, incompatible=q.INCOMPAT_EXTL2)
refused("A50 extended L2 with cluster_bits 13: refused", r"Unsupported subcluster size: 256",
        cluster_bits=13, incompatible=q.INCOMPAT_EXTL2)

sys.exit(main())
