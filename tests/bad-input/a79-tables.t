#!/usr/bin/env python3
"""a79-tables.t - A79..A99: L1 and L2 tables that point where they must not.

Reads of nonsense get EIO and change nothing.  Writes that would land on metadata
set the corrupt bit, get EIO and change no other byte.  check counts what the
oracle counts."""
import os
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from badinput import q, case, file_hash, main                   # noqa: E402

CS = 65536
L2_SPAN = CS * (CS // 8)


def image(clusters=3, **kw):
    """Clusters 0..n-1 of data, each full of its number plus one."""
    kw.setdefault("size", 4 << 20)
    img = q.Image(**kw)
    for i in range(clusters):
        img.write(i * img.cs, bytes([i + 1]) * img.cs)
    return img


def v2(**kw):
    return image(version=2, **kw)


# ---- L1 ------------------------------------------------------------------------------

@case("A79 L1 entry unaligned: EIO, corrupt bit only when writable")
def a79(t):
    img = image()
    img.poke64(img.l1_entry(0), (img.l2_table(0) + 512) | q.COPIED)
    path = t.save(img)
    t.read_fails(path, reason=r"L2 table|unaligned|L1")
    t.check_finds(path)
    t.expect(t.write_marks_corrupt(path) == [], "other bytes changed")


@case("A80 reserved bits set in an L1 entry: check counts it, reads as with the oracle")
def a80(t):
    img = image()
    img.poke64(img.l1_entry(0), img.l2_table(0) | q.COPIED | 1 << 60 | 0x15)
    path = t.save(img)
    t.check_alike(path)
    r = t.io(path, "read -P 1 0 4096", ro=True)
    t.expect(r.rc == 0 or "Input/output error" in r.out, "%s" % r)


@case("A81 L2 table past the end of the file: EIO, not zeros")
def a81(t):
    img = image()
    img.poke64(img.l1_entry(0), (1 << 30) | q.COPIED)
    path = t.save(img)
    t.read_fails(path, reason=r"L2 table")
    t.check_finds(path)


@case("A81 L2 table at 2^55: EIO, not zeros")
def a81_far(t):
    img = image()
    img.poke64(img.l1_entry(0), (1 << 55) | q.COPIED)
    path = t.save(img)
    t.read_fails(path, reason=r"L2 table")
    t.check_finds(path)


def l1_points_at(label, where):
    @case("%s: a write gets EIO and the corrupt bit, nothing else changes" % label)
    def run_case(t):
        img = image()
        img.l2_table(0)
        img._grow_refblocks()
        target = where(img)
        img.poke64(img.l1_entry(0), target | q.COPIED)
        path = t.save(img)
        before = file_hash(path)
        t.check_finds(path)
        for cmd in ("read 0 512", "read 128k 64k"):
            t.io(path, cmd, ro=True)
        t.expect(file_hash(path) == before, "a read-only open changed the file")
        # Entry 9 of the "table" is not written yet in any of these clusters.
        diff = t.write_marks_corrupt(path, guest=9 * CS)
        t.expect(diff == [], "metadata changed at %s" % [hex(d) for d in diff[:5]])


# An entry of 0 with COPIED names the header's cluster and means "not allocated".

@case("A82 L1 entry points at the header: reads and writes leave the header alone")
def a82(t):
    img = image()
    img.poke64(img.l1_entry(0), q.COPIED)
    header_survives(t, t.save(img), "write -P 0xaa 576k 512")


def header_survives(t, path, cmd):
    with open(path, "rb") as f:
        before = f.read(104)
    hashed = file_hash(path)
    t.io(path, "read 0 512", "read 64k 512", ro=True)
    t.img("check", "-f", "qcow2", path)
    t.expect(file_hash(path) == hashed, "a read-only open changed the file")
    r = t.io(path, cmd)
    t.expect(r.rc == 0 or "failed: Input/output error" in r.out, "%s" % r)
    with open(path, "rb") as f:
        after = f.read(104)
    t.expect(after[:72] == before[:72] and after[80:] == before[80:], "the header changed")
    t.expect(r.rc == 0 or t.corrupt_bit(path), "failed without the corrupt bit")


l1_points_at("A83 L1 entry points at the L1 table", lambda i: i.l1)
l1_points_at("A84 L1 entry points at a refcount block", lambda i: i.refblocks[0])
l1_points_at("A84 L1 entry points at the refcount table", lambda i: i.reftable)


def snapshot_image():
    """One internal snapshot, empty, with an L1 table and a snapshot table."""
    img = image()
    img.snap_l1 = img.alloc()
    img.snap_table = img.alloc()
    entry = struct.pack(">QIHHIIQII", img.snap_l1, img.l1_size, 1, 1, 0, 0, 0, 0, 16)
    entry += struct.pack(">QQ", 0, img.size) + b"1" + b"s"
    img.buf[img.snap_table:img.snap_table + len(entry)] = entry
    img.header["nb_snapshots"] = 1
    img.header["snapshots_offset"] = img.snap_table
    return img


@case("A84 L1 entry points at the snapshot table: a write gets EIO and the corrupt bit")
def a84_snapshot(t):
    img = snapshot_image()
    img.poke64(img.l1_entry(0), img.snap_table | q.COPIED)
    path = t.save(img)
    t.check_finds(path)
    diff = t.write_marks_corrupt(path, guest=9 * CS)
    t.expect(diff == [], "metadata changed at %s" % [hex(d) for d in diff[:5]])


@case("A85 two L1 entries share an L2 table with COPIED: check counts it")
def a85(t):
    img = image(size=2 * L2_SPAN)
    img.poke64(img.l1_entry(L2_SPAN), img.l2_table(0) | q.COPIED)
    path = t.save(img)
    t.check_alike(path)
    t.expect(t.io(path, "read -P 1 %d 64k" % L2_SPAN, ro=True).rc == 0, "cannot be read")
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc in (0, 2, 3), "%s" % r)
    t.expect(t.io(path, "read -P 1 0 64k", "read -P 1 %d 64k" % L2_SPAN, ro=True).rc == 0,
             "the repair changed guest data")


# ---- L2 entries onto metadata -----------------------------------------------------------

TARGETS = [("the L1 table", lambda i: i.l1),
           ("the L2 table", lambda i: i.l2_table(0)),
           ("a refcount block", lambda i: i.refblocks[0]),
           ("the refcount table", lambda i: i.reftable)]


def l2_points_at(name, where, cmd, build=image):
    @case("A86 L2 entry points at %s, %s: EIO, corrupt bit, nothing else changes" %
          (name, cmd.split()[0]))
    def a86(t):
        img = build()
        target = where(img)
        img.set_entry(CS, target | q.COPIED)
        path = t.save(img)
        before = file_hash(path)
        t.check_finds(path)
        t.io(path, "read 64k 512", ro=True)
        t.expect(file_hash(path) == before, "a read-only open changed the file")
        diff = t.write_marks_corrupt(path, cmd=cmd)
        t.expect(diff == [], "metadata changed at %s" % [hex(d) for d in diff[:5]])
        t.one_line(t.io(path, "write 0 512"), path, "corrupt")


for target_name, target in TARGETS:
    l2_points_at(target_name, target, "write -P 0xaa 70000 512")
l2_points_at("the refcount table", lambda i: i.reftable, "write -P 0xaa 64k 64k")
l2_points_at("the L1 table", lambda i: i.l1, "writev -P 0xaa 64k 4k 4k")


for words in ("write -P 0xaa 70000 512", "write -P 0xaa 64k 64k", "write -z 64k 64k"):
    @case("A86 L2 entry points at the header, %s: the header stays" % words)
    def a86_header(t, words=words):
        img = image()
        img.set_entry(CS, q.COPIED)
        path = t.save(img)
        t.check_alike(path)
        header_survives(t, path, words)
        t.expect(t.io(path, "read -P 1 0 64k", "read -P 3 128k 64k", ro=True).rc == 0, "lost data")


l2_points_at("the snapshot table", lambda i: i.snap_table, "write -P 0xaa 70000 512",
             snapshot_image)
l2_points_at("a snapshot's L1 table", lambda i: i.snap_l1, "write -P 0xaa 70000 512",
             snapshot_image)


def discard_of_metadata(label, cmd):
    @case("A86 %s of a cluster that is the header: the header keeps its bytes" % label)
    def run_case(t):
        img = image()
        img.set_entry(CS, q.COPIED)
        img.set_entry(2 * CS, img.l1 | q.COPIED)
        path = t.save(img)
        with open(path, "rb") as f:
            before = f.read(4 * CS)
        r = t.io(path, cmd)
        t.expect(r.rc in (0, 1), "%s" % r)
        with open(path, "rb") as f:
            after = f.read(4 * CS)
        t.expect(after[:72] == before[:72] and after[80:CS] == before[80:CS], "header changed")
        t.expect(after[3 * CS + 8:] == before[3 * CS + 8:], "L1 changed")
    

discard_of_metadata("discard", "discard 64k 128k")
discard_of_metadata("write -z -u", "write -z -u 64k 128k")


# ---- odd L2 entries ------------------------------------------------------------------------

@case("A87 L2 entry unaligned: EIO, corrupt bit only when writable")
def a87(t):
    img = image()
    img.set_entry(CS, (img.data(CS) + 512) | q.COPIED)
    path = t.save(img)
    t.read_fails(path, CS, reason=r"unaligned|offset")
    t.check_finds(path)
    t.expect(t.write_marks_corrupt(path, guest=CS) == [], "other bytes changed")


@case("A87 the other clusters of an image with an unaligned entry still read")
def a87_rest(t):
    img = image()
    img.set_entry(CS, (img.data(CS) + 512) | q.COPIED)
    path = t.save(img)
    r = t.io(path, "read -P 1 0 64k", "read -P 3 128k 64k", ro=True)
    t.expect(r.rc == 0, "%s" % r)


for shift in (56, 57, 61):
    @case("A88 L2 entry with offset bit %d: no crash, no growth, check counts it" % shift)
    def a88(t, shift=shift):
        img = image()
        img.set_entry(CS, (1 << shift) | q.COPIED)
        path = t.save(img)
        size = os.path.getsize(path)
        t.check_alike(path)
        r = t.io(path, "read 64k 4k", ro=True)
        t.expect(r.rc == 0 or "Input/output error" in r.out, "%s" % r)
        r = t.io(path, "write 64k 4k")
        t.expect(r.rc in (0, 1), "%s" % r)
        t.expect(os.path.getsize(path) <= size + 16 * CS, "the file grew")


@case("A88 L2 entry at 2^56 - 64 KiB: no crash; a write there fails or reads back")
def a88_edge(t):
    img = image()
    img.set_entry(CS, ((1 << 56) - CS) | q.COPIED)
    path = t.save(img)
    t.check_finds(path)
    r = t.io(path, "read 64k 4k", ro=True)
    t.expect(r.rc == 0 or "Input/output error" in r.out, "%s" % r)
    r = t.io(path, "write -P 9 64k 4k", "read -P 9 64k 4k")
    t.expect(r.rc == 0 or "write failed" in r.out, "%s" % r)


@case("A89 reserved bits in an L2 entry: check counts it, the data reads or EIO")
def a89(t):
    img = image()
    img.set_entry(CS, img.data(CS) | q.COPIED | 0x14)
    path = t.save(img)
    t.check_alike(path)
    r = t.io(path, "read -P 2 64k 64k", ro=True)
    t.expect(r.rc == 0 or "Input/output error" in r.out, "%s" % r)


for count, name in ((0, "refcount 0"), (2, "refcount 2")):
    @case("A90 COPIED with %s: check counts it, -r all repairs it" % name)
    def a90(t, count=count):
        img = image()
        img.set_refcount(img.data(CS), count)
        path = t.save(img)
        t.check_alike(path)
        t.reads_alike(path)
        r = t.img("check", "-f", "qcow2", "-r", "all", path)
        t.expect(r.rc == 0, "%s" % r)
        t.sound(path)
        t.expect(t.content(path)[:3 * CS] == b"\1" * CS + b"\2" * CS + b"\3" * CS, "data changed")


@case("A90 COPIED with refcount 0: an allocation does not take the cluster, repaired or not")
def a90_write(t):
    for repair in (False, True):
        a90_allocate(t, repair)


def a90_allocate(t, repair):
    img = image()
    img.set_refcount(img.data(CS), 0)
    path = t.save(img)
    if repair:
        r = t.img("check", "-f", "qcow2", "-r", "all", path)
        t.expect(r.rc == 0, "%s" % r)
    t.io(path, "write -P 0x99 1M 256k")
    r = t.io(path, "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 3 128k 64k", ro=True)
    t.expect(r.rc == 0, "guest data overwritten: %s" % r)


@case("A91 data past the end of the file: reads zeros, is written, stays sound")
def a91(t):
    img = image()
    path = t.save(img, length=img.data(2 * CS))
    ours = t.reads_alike(path)
    t.expect(ours is None or ours[2 * CS:3 * CS] == bytes(CS), "not zeros")
    r = t.io(path, "write -P 7 %d 4k" % (2 * CS + 8192), "read -P 0 128k 8k",
             "read -P 7 %d 4k" % (2 * CS + 8192), "read -P 0 %d 4k" % (2 * CS + 12288))
    t.expect(r.rc == 0, "%s" % r)
    t.reads_alike(path)


@case("A91 data past the end, file cut inside the cluster: the rest reads zeros")
def a91_cut(t):
    img = image()
    path = t.save(img, length=img.data(2 * CS) + 1000)
    ours = t.reads_alike(path)
    t.expect(ours is None or ours[2 * CS:3 * CS] == b"\3" * 1000 + bytes(CS - 1000), "not zeros")


@case("A92 an entry exactly at the end of the file, then a rebuild: not handed out")
def a92(t):
    img = image()
    img._grow_refblocks()
    end = img.end
    img.set_entry(5 * CS, end | q.COPIED)
    img.poke64(img.reftable, 0x200)                 # refcounts are lost
    path = t.save(img)
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc == 0, "repair: %s" % r)
    l2e = q.entries(path, 5 * CS)[1] & q.OFFSET_MASK
    for name in ("refcount_table_offset", "l1_table_offset"):
        t.expect(q.field(path, name) != l2e, "%s was put on guest data" % name)
    t.expect(l2e != q.peek(path, q.field(path, "refcount_table_offset"), ">Q"),
             "a refcount block was put on guest data")
    t.sound(path)
    want = b"\1" * CS + b"\2" * CS + b"\3" * CS + bytes((4 << 20) - 3 * CS)
    t.expect(t.content(path) == want, "the guest's data changed")
    t.io(path, "write -P 9 320k 64k", "write -P 8 1M 512k")
    t.sound(path)
    t.expect(t.io(path, "read -P 9 320k 64k", "read -P 8 1M 512k", "read -P 1 0 64k").rc == 0,
             "data overlaps after the repair")


@case("A93 ZERO flag in a v2 image: EIO")
def a93(t):
    img = v2()
    img.set_entry(CS, img.data(CS) | q.COPIED | q.ZERO)
    img.set_entry(2 * CS, q.ZERO)
    path = t.save(img)
    t.read_fails(path, CS, reason=r"zero cluster|version|v2|reserved|pre-v3")
    t.read_fails(path, 2 * CS, reason=r"zero cluster|version|v2|reserved|pre-v3")
    t.expect(t.io(path, "read -P 1 0 64k", ro=True).rc == 0, "the others do not read")


@case("A94 zero + preallocated, unaligned: EIO on a write, corrupt bit")
def a94(t):
    img = image()
    img.set_entry(CS, (img.data(CS) + 512) | q.COPIED | q.ZERO)
    path = t.save(img)
    before = file_hash(path)
    t.check_finds(path)
    r = t.io(path, "read -P 0 64k 4k", ro=True)
    t.expect(r.rc == 0 or "Input/output error" in r.out, "%s" % r)
    t.expect(file_hash(path) == before, "changed")
    t.expect(t.write_marks_corrupt(path, guest=CS) == [], "other bytes changed")


def wide(t, entry, bitmap):
    """An image with subclusters; the second cluster's entry as given."""
    img = q.Image(size=4 << 20, extended_l2=True)
    img.write(0, b"\1" * CS)
    img.write(2 * CS, b"\3" * CS)
    img.set_entry(CS, entry(img), bitmap=bitmap)
    return t.save(img)


def bad_subclusters(t, path, at=CS):
    t.expect(t.io(path, "read -P 1 0 64k", ro=True).rc == 0, "the cluster before does not read")
    t.expect(t.io(path, "read -P 3 128k 64k", ro=True).rc == 0, "the one behind does not read")
    t.read_fails(path, at, reason="Invalid cluster entry")
    t.check_finds(path)
    t.expect(t.write_marks_corrupt(path, guest=at) == [], "other bytes changed")


def data(img):
    return img.write(CS, b"\2" * CS) | q.COPIED


def compressed(img):
    stream = q.raw_deflate(b"\2" * CS)
    return img.compressed_entry(img.write_compressed(CS, stream), len(stream))


@case("A95 subcluster allocated and zero at once: EIO, corrupt bit on a write")
def a95(t):
    bad_subclusters(t, wide(t, data, 1 | 1 << 32))


@case("A95 another subcluster of the cluster allocated and zero at once: the same")
def a95_other(t):
    bad_subclusters(t, wide(t, data, 1 | 1 << 40 | 1 << 8), CS + 512)


@case("A95 subclusters allocated in no cluster: the same")
def a95_nowhere(t):
    bad_subclusters(t, wide(t, lambda img: 0, 4))


@case("A96 compressed with a non-zero subcluster bitmap: EIO, corrupt bit on a write")
def a96(t):
    bad_subclusters(t, wide(t, compressed, 1))


@case("A96 compressed with subclusters that are zero: the same")
def a96_zero(t):
    bad_subclusters(t, wide(t, compressed, 1 << 63))


@case("A97 compressed with a data file: refused by name, or EIO")
def a97(t):
    img = q.Image(size=4 << 20, data_file=t.path("data.raw").encode())
    with open(t.path("data.raw"), "wb") as f:
        f.truncate(4 << 20)
    img.write_compressed(CS, q.raw_deflate(b"\2" * CS))
    path = t.save(img)
    r = t.io(path, "read -P 0 0 64k", ro=True)
    if r.rc:
        t.refused(path, r"data.file", check=False, info=False)
    else:
        t.read_fails(path, CS)


@case("A97 a data cluster elsewhere than the guest sees it: EIO, marked corrupt by a write")
def a97_place(t):
    img = q.Image(size=4 << 20, data_file=t.path("data.raw").encode())
    with open(t.path("data.raw"), "wb") as f:
        f.truncate(4 << 20)
    img.set_entry(CS, 3 * CS | q.COPIED)
    path = t.save(img)
    t.read_fails(path, CS)
    r = t.io(path, "write %d 512" % CS)
    t.expect("Input/output error" in r.err + r.out, "%s" % r)


@case("A98 compressed and COPIED: check counts it, reads as with the oracle")
def a98(t):
    img = image()
    stream = q.raw_deflate(b"\7" * CS)
    host = img.write_compressed(5 * CS, stream)
    img.set_entry(5 * CS, img.compressed_entry(host, len(stream)) | q.COPIED)
    path = t.save(img)
    t.check_alike(path)
    t.reads_alike(path)
    r = t.io(path, "write -P 8 5M 0", "write -P 8 %d 512" % (5 * CS),
             "read -P 8 %d 512" % (5 * CS), "read -P 7 %d 512" % (5 * CS + 512))
    t.expect("Pattern" not in r.out, "%s" % r)


@case("A99 an L2 table that points to itself: a write gets EIO and the corrupt bit")
def a99(t):
    img = image()
    img.set_entry(9 * CS, img.l2_table(0) | q.COPIED)
    path = t.save(img)
    t.check_finds(path)
    before = file_hash(path)
    r = t.io(path, "read %d 64k" % (9 * CS), ro=True)
    t.expect(r.rc in (0, 1), "%s" % r)
    t.expect(file_hash(path) == before, "changed")
    diff = t.write_marks_corrupt(path, guest=9 * CS)
    t.expect(diff == [], "the L2 table changed")


sys.exit(main())
