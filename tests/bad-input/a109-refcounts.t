#!/usr/bin/env python3
"""a109-refcounts.t - A109..A118: refcount structures that lie.  Whatever they
say, live data and metadata are never handed out again, and check sizes its work
by the file, not by what the image claims."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from badinput import q, case, file_hash, main                   # noqa: E402

CS = 65536
DATA = b"\1" * CS + b"\2" * CS + b"\3" * CS
READS = ("read -P 1 0 64k", "read -P 2 64k 64k", "read -P 3 128k 64k")


def image(**kw):
    img = q.Image(size=kw.pop("size", 4 << 20), **kw)
    for i in range(3):
        img.write(i * img.cs, bytes([i + 1]) * img.cs)
    return img


def keeps_data(t, path, write="write -P 0x99 1M 256k"):
    """An allocating write works or fails, but no live cluster is taken."""
    r = t.io(path, write)
    t.expect(r.rc == 0 or "failed: Input/output error" in r.out or "corrupt" in r.err.lower(),
             "neither done nor an error: %s" % r)
    t.expect(q.field(path, "magic") == q.MAGIC and q.field(path, "cluster_bits") == 16,
             "the header was overwritten")
    r = t.io(path, *READS, ro=True)
    t.expect(r.rc == 0, "live data was overwritten: %s" % r)
    return r


def repairs(t, path):
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc == 0, "repair: %s" % r)
    t.sound(path)
    ours = t.content(path)
    t.expect(ours is None or ours[:3 * CS] == DATA, "the repair changed guest data")


def eio_on_allocation(t, path):
    before = file_hash(path)
    t.check_finds(path)
    t.reads_alike(path)
    t.expect(file_hash(path) == before, "changed")
    t.io_fails(path, "write -P 0x99 1M 64k", r"refcount|refblock|reference count|corrupt")
    t.expect(t.io(path, *READS, ro=True).rc == 0, "live data was overwritten")


@case("A109 refcount table entry unaligned: allocation gets EIO; -r all repairs")
def a109(t):
    img = image()
    img.poke64(img.reftable, img.refblocks[0] + 512)
    path = t.save(img)
    eio_on_allocation(t, path)
    repairs(t, path)


@case("A109 reserved bits in a refcount table entry: check finds it; -r all repairs")
def a109_reserved(t):
    img = image()
    img.poke64(img.reftable, img.refblocks[0] | 3)
    path = t.save(img)
    t.check_finds(path)
    repairs(t, path)


@case("A110 refcount block beyond the end of the file: no live data taken; -r all repairs")
def a110(t):
    for far in (1 << 30, 1 << 55, (1 << 63) | (1 << 40)):
        img = image()
        img.poke64(img.reftable, far)
        path = t.save(img)
        size = os.path.getsize(path)
        t.check_finds(path)
        keeps_data(t, path)
        t.expect(os.path.getsize(path) < size + (64 << 20), "the file grew to %d" %
                 os.path.getsize(path))
        path = t.save(img)
        repairs(t, path)


@case("A111 refcount table entry 0 empty, with live data: never overwritten")
def a111(t):
    img = image()
    img.poke64(img.reftable, 0)
    path = t.save(img)
    t.check_alike(path)
    keeps_data(t, path)
    path = t.save(img)
    repairs(t, path)
    t.expect(t.io(path, "write -P 0x99 1M 256k", *READS).rc == 0, "unusable after the repair")
    t.sound(path)


@case("A111 refcount table entry 0 empty: discards and zeroes do no harm either")
def a111_discard(t):
    img = image()
    img.poke64(img.reftable, 0)
    path = t.save(img)
    r = t.io(path, "discard 64k 64k", "write -z -u 64k 64k")
    t.expect(r.rc in (0, 1), "%s" % r)
    r = t.io(path, READS[0], READS[2], ro=True)
    t.expect(r.rc == 0, "live data was lost: %s" % r)


for label, where in (("itself", lambda i: i.refblocks[0]), ("the header", lambda i: 0),
                     ("the refcount table", lambda i: i.reftable),
                     ("the L1 table", lambda i: i.l1), ("an L2 table", lambda i: i.l2_table(0))):
    @case("A112 refcount block is %s: check finds it, a write harms nothing" % label)
    def a112(t, where=where, label=label):
        img = image()
        if label == "itself":
            # refcount 0 for its own cluster: it could be handed out.
            img.set_refcount(img.refblocks[0], 0)
            img.set_refcount(img.reftable, 0)
        else:
            img.poke64(img.reftable, where(img))
        path = t.save(img)
        before = file_hash(path)
        t.check_finds(path)
        t.reads_alike(path)
        t.expect(file_hash(path) == before, "changed")
        keeps_data(t, path)
        path = t.save(img)
        repairs(t, path)


@case("A113 two refcount table entries share a block: check finds it, a write harms nothing")
def a113(t):
    img = image()
    img.poke64(img.reftable + 8, img.refblocks[0])
    path = t.save(img)
    t.check_finds(path)
    keeps_data(t, path)
    path = t.save(img)
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc in (0, 2, 3), "%s" % r)
    t.expect(t.io(path, *READS, ro=True).rc == 0, "the repair changed guest data")


for label, where in (("the header", lambda i: 0), ("the L1 table", lambda i: i.l1),
                     ("the L2 table", lambda i: i.l2_table(0)),
                     ("a refcount block", lambda i: i.refblocks[0]),
                     ("the refcount table", lambda i: i.reftable),
                     ("data", lambda i: i.data(CS))):
    @case("A114 refcount 0 for %s: check as the oracle, never overwritten, repaired" % label)
    def a114(t, where=where):
        img = image()
        img.set_refcount(where(img), 0)
        path = t.save(img)
        t.check_alike(path)
        keeps_data(t, path)
        path = t.save(img)
        keeps_data(t, path, "write -P 0x99 1M 3000k")
        path = t.save(img)
        repairs(t, path)


@case("A115 all refcounts 0xFFFF: writes allocate, check as the oracle, repaired")
def a115(t):
    img = image()
    img._grow_refblocks()
    for i in range(len(img.refs)):
        img.refs[i] = 0xFFFF
    path = t.save(img)
    t.check_alike(path)
    keeps_data(t, path)
    path = t.save(img)
    repairs(t, path)


@case("A115 a whole refcount block of 0xFFFF: allocation goes on behind it")
def a115_block(t):
    img = image(cluster_bits=9, size=1 << 20)
    img.l2_table(512 << 3)
    img._grow_refblocks()
    img.poke(img.refblocks[0], b"\xff" * 512)
    path = t.save(img)
    r = t.io(path, "write -P 0x99 64k 64k", "read -P 0x99 64k 64k", "read -P 1 0 512")
    t.expect(r.rc == 0, "%s" % r)


@case("A116 1-bit refcounts: an image with a snapshot needs more, and check says so")
def a116(t):
    img = image(refcount_order=0)
    path = t.save(img)
    r = t.io(path, "write -P 0x99 1M 256k", *READS)
    t.expect(r.rc == 0, "%s" % r)
    t.sound(path)
    # Two references to one cluster cannot be counted in one bit.
    img = image(refcount_order=0)
    img.set_entry(5 * CS, img.data(CS))
    path = t.save(img)
    t.check_alike(path)
    before = file_hash(path)
    t.expect(t.io(path, "read -P 2 %d 64k" % (5 * CS), ro=True).rc == 0, "cannot be read")
    t.expect(file_hash(path) == before, "changed")
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc in (1, 2, 3), "claims to have repaired what cannot be: %s" % r)
    t.expect(t.io(path, *READS, ro=True).rc == 0, "the repair changed guest data")


for shift in (40, 50, 55):
    @case("A117 an L2 entry near 2^%d: check and repair stay within their memory" % shift)
    def a117(t, shift=shift):
        img = image()
        img.set_entry(5 * CS, (1 << shift) | q.COPIED)
        path = t.save(img)
        t.check_finds(path)
        size = os.path.getsize(path)
        r = t.img("check", "-f", "qcow2", "-r", "all", path)
        t.expect(r.rc in (0, 1, 2, 3), "%s" % r)
        t.expect(os.path.getsize(path) < size + (64 << 20), "the file grew to %d" %
                 os.path.getsize(path))
        t.expect(t.io(path, *READS, ro=True).rc == 0, "the repair changed guest data")


@case("A117 the L1 table claims L2 tables near 2^56: check and repair stay within their memory")
def a117_l1(t):
    img = image(size=64 << 30)
    for i in range(1, 100):
        img.poke64(img.l1 + 8 * i, ((1 << 56) - i * CS) & ~0xFFFF | q.COPIED)
    path = t.save(img)
    t.check_finds(path)
    size = os.path.getsize(path)
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc in (0, 1, 2, 3), "%s" % r)
    t.expect(os.path.getsize(path) < size + (64 << 20), "the file grew")
    t.expect(t.io(path, *READS, ro=True).rc == 0, "the repair changed guest data")


@case("A118 a refcount table of 8 MiB claimed, lost blocks: the rebuild is sized by the file")
def a118(t):
    img = image()
    table = img.alloc(128)
    img.header["refcount_table_offset"] = table
    img.header["refcount_table_clusters"] = 128
    img._grow_refblocks()
    # Each entry claims a block far outside of the file.
    for i in range(0, 1 << 20, 997):
        img.poke64(table + 8 * i, (1 << 50) + i * CS)
    path = t.save(img)
    r = t.img("check", "-f", "qcow2", path)
    t.expect(r.rc == 2, "%s" % str(r)[:500])
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc == 0, "repair: %s" % str(r)[:500])
    t.expect(os.path.getsize(path) < (24 << 20), "the file grew to %d" % os.path.getsize(path))
    t.sound(path)
    t.expect(t.io(path, *READS, ro=True).rc == 0, "the repair changed guest data")


sys.exit(main())
