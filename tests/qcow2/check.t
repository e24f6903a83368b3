#!/usr/bin/env python3
"""check.t - platter-img check: named damage.  Agreement with qemu-img on each; what
a repair must do where qemu-img's does it otherwise; bounds of time and memory."""
import os
import resource
import struct
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from checklib import COPIED, OFFSET, Disk, content, create, differences, ours, theirs  # noqa: E402
from tap import IMG, QEMU_IMG, SAN, enter_place, finish, must, ok  # noqa: E402

enter_place("check", memory=True)
CS = 65536


def image(name="a.qcow2", size="8M", **kw):
    """Data in clusters 0..15, zeros in 16..19, 20 and 21 compressed."""
    return create(name, size, "write -P 1 0 512k", "write -P 2 512k 512k",
                  "write -z 1M 256k", "write -c -P 3 1280k 64k", "write -c -P 4 1344k 64k", **kw)


def agrees(name, d):
    d.save()
    a, b = ours(d.path), theirs(d.path)
    why = differences(a, b)
    ok(not why, name + ": the same findings", *why)
    return a


def repaired(name, d, clean=True):
    """-r all: guest bytes stay, nothing is left to repair, and qemu-img agrees."""
    d.save()
    before = content(d.path)
    r = ours(d.path, "all")
    why = [] if r.rc == (0 if clean else 2) else ["first repair: %s" % r]
    if before is not None and content(d.path) != before:
        why.append("guest bytes changed")
    again = ours(d.path, "all")
    if again.get("corruptions-fixed") or again.get("leaks-fixed"):
        why.append("second repair: %s" % again)
    why += differences(ours(d.path), theirs(d.path))
    ok(not why, name + ": repaired in one pass, no guest byte changed", *why)
    return Disk(d.path)


def l2(d, i=0):
    return d.l2_entries()[i]


# ---- entries ------------------------------------------------------------------------

def entry(name, at, value, clean=False):
    d = image()
    d.put64(at(d), value(d))
    agrees(name, d)
    repaired(name, d, clean)


entry("A79 L1 entry unaligned", lambda d: d.l1, lambda d: d.u64(d.l1) + 512)
entry("A80 L1 reserved bits", lambda d: d.l1, lambda d: d.u64(d.l1) | 1 << 60)
entry("A81 L2 past the end of the file", lambda d: d.l1, lambda d: len(d.b) + 8 * CS | COPIED)
entry("A83 L1 entry names the L1 table", lambda d: d.l1, lambda d: d.l1 | COPIED)
entry("A86 data in the refcount block", l2, lambda d: d.u64(d.reft) | COPIED, clean=True)
entry("A86 data in the L1 table", l2, lambda d: d.l1 | COPIED, clean=True)
entry("A87 L2 entry unaligned", l2, lambda d: d.u64(l2(d)) + 512)
entry("A88 offset at 2^56", l2, lambda d: (1 << 56) - CS | COPIED)
entry("A89 L2 reserved bits", l2, lambda d: d.u64(l2(d)) | 1 << 59 | 4)
entry("A91 data past the end of the file", l2, lambda d: len(d.b) + 4 * CS | COPIED)
entry("A94 zero, preallocated, unaligned", l2, lambda d: d.u64(l2(d)) + 512 | 1, clean=True)
entry("A98 compressed and COPIED", lambda d: l2(d, -1), lambda d: d.u64(l2(d, -1)) | COPIED)
entry("A99 an L2 table that names itself", l2, lambda d: d.u64(d.l1))
entry("two entries share a cluster", l2, lambda d: d.u64(l2(d, 1)), clean=True)
entry("an entry is gone", l2, lambda d: 0, clean=True)

d = image()
d.put64(l2(d), d.u64(l2(d)) & ~COPIED)
agrees("A90 COPIED missing", d)
repaired("A90 COPIED missing", d)

d = image()
d.put_refcount((d.u64(l2(d)) & OFFSET) // CS, 2)
agrees("A90 COPIED with refcount 2", d)
repaired("A90 COPIED with refcount 2", d)

d = create("a.qcow2", "1G", "write -P 1 0 1M", "write -P 2 600M 1M")
first, second = d.l1_entries()[:2]
d.put64(second, d.u64(first))
agrees("A85 two L1 entries share an L2 table", d)
d = repaired("A85 two L1 entries share an L2 table", d)
ok(not any(d.u64(a) & COPIED for a in d.l1_entries() + d.l2_entries()),
   "A85: nothing that is shared is COPIED after the repair")

# ---- refcounts ------------------------------------------------------------------------


def refcounts(name, change, clean=True, same=True):
    d = image()
    change(d)
    if same:
        agrees(name, d)
    repaired(name, d, clean)


def header_dies(d):
    d.put_refcount(0, 0)


refcounts("A109 refcount block unaligned", lambda d: d.put64(d.reft, d.u64(d.reft) + 512))
refcounts("A110 refcount block past the end", lambda d: d.put64(d.reft, len(d.b) + 16 * CS))
refcounts("A112 refcount block is the header", lambda d: d.put64(d.reft, CS * 0 + 1))
refcounts("A112 refcount block counts itself out",
          lambda d: d.put_refcount((d.u64(d.reft) & OFFSET) // CS, 0))
refcounts("A113 two entries, one block", lambda d: d.put64(d.reft + 8, d.u64(d.reft)))
refcounts("A114 refcount 0 of the header", header_dies)
refcounts("A114 refcount 0 of the L1 table", lambda d: d.put_refcount(d.l1 // CS, 0))
refcounts("A114 refcount 0 of an L2 table",
          lambda d: d.put_refcount((d.u64(d.l1) & OFFSET) // CS, 0))
refcounts("A114 refcount 0 of data", lambda d: d.put_refcount((d.u64(l2(d)) & OFFSET) // CS, 0))
refcounts("A115 every refcount 0xffff",
          lambda d: [d.put_refcount(i, 0xFFFF) for i in range(d.clusters())])
refcounts("A117 a block near 2^56", lambda d: d.put64(d.reft + 8, (1 << 56) - CS))
refcounts("reserved bits in the refcount table", lambda d: d.put64(d.reft, d.u64(d.reft) | 2))
refcounts("leaks", lambda d: [d.put_refcount(i, 2) for i in range(d.clusters() - 4)])

# A111: the block is gone although everything is in use
d = image()
d.put64(d.reft, 0)
agrees("A111 no refcount block, data alive", d)
was = {d.u64(a) & OFFSET for a in d.l1_entries() + d.l2_entries()} | {0, d.l1}
d = repaired("A111 no refcount block, data alive", d)
ok(not ({d.reft} | {d.u64(b) & OFFSET for b in d.blocks()}) & was, "A111: the new structure lies "
   "nowhere in what was in use", "table at %#x" % d.reft)

# A35
d = image()
d.put32(56, 0)
d.save()
before = open(d.path, "rb").read()
r = ours(d.path, "all")
ok(r.rc == 0 and not differences(ours(d.path), theirs(d.path)),
   "A35 a refcount table of 0 clusters is rebuilt by -r all", r)
after = open(d.path, "rb").read()
used = {d.u64(a) & OFFSET for a in d.l1_entries() + d.l2_entries()[:16]} | {d.l1}
ok(all(before[a:a + CS] == after[a:a + CS] for a in used),
   "A35: and every cluster in use stays as it was")

# A92: one entry names the place where a rebuild would like to put its table
d = image()
end = (len(d.b) + CS - 1) // CS * CS
d.b += bytes(end - len(d.b))
victim = l2(d)
d.put64(victim, end | COPIED)
d.put64(d.reft, 0)
d.save()
before = content(d.path)
ours(d.path, "all")
d = Disk(d.path)
used = [d.reft] + [d.u64(b) & OFFSET for b in d.blocks()]
ok(end not in used and d.reft != end, "A92 a rebuild does not take a cluster at the end that "
   "an entry names", "named: %#x, structures at %s" % (end, [hex(u) for u in used]))
ok(content(d.path) == before, "A92: and the guest reads what it read")
ok(not differences(ours(d.path), theirs(d.path)), "A92: qemu-img finds what we find afterwards",
   *differences(ours(d.path), theirs(d.path)))

# ... and when the new structure makes the file grow over that place
d = create("a.qcow2", "1M", "write -P 1 0 1M", cluster_size=512, refcount_bits=64)
d.b += bytes(-len(d.b) % 512)
end = len(d.b)
d.put64(d.l2_entries()[9], end + 512 | COPIED)
d.put64(d.u64(d.reft) & OFFSET, 0)
d.put64(72, 2)
d = repaired("A92 a rebuild that grows over such a place", d)
used = {d.reft} | {d.u64(b) & OFFSET for b in d.blocks()}
ok(len(d.b) > end + 1024 and end + 512 not in used and not d.u64(72),
   "A92: goes round it, and clears the corrupt bit", "file %#x -> %#x" % (end, len(d.b)))

# A116
d = create("a.qcow2", "8M", "write -P 1 0 512k", refcount_bits=1)
d.put64(l2(d), d.u64(l2(d, 1)))
agrees("A116 1-bit refcounts, a cluster used twice", d)
r = ours(d.path, "all")
ok(r.rc == 2 and ours(d.path, "all").get("corruptions-fixed") == 0,
   "A116: what cannot be counted stays an error, and is not repaired over and over", r)

# ---- header bits --------------------------------------------------------------------


def bits(name, value, change, left):
    d = image()
    d.put64(72, value)
    change(d)
    d.save()
    ours(d.path, "all")
    got = Disk(d.path).u64(72)
    ok(got == left, "%s: incompatible bits %d become %d" % (name, value, left), "got %d" % got)


bits("dirty and right", 1, lambda d: None, 0)
bits("dirty, a refcount wrong", 1, lambda d: d.put_refcount(7, 3), 0)
bits("corrupt, repairable", 2, lambda d: d.put_refcount(7, 0), 0)
bits("dirty and corrupt", 3, lambda d: None, 0)
bits("corrupt, not repairable", 2, lambda d: d.put64(l2(d), (1 << 56) - CS | COPIED), 2)

d = image()
d.put64(72, 1)
d.put_refcount(7, 3)
d.save()
before = open(d.path, "rb").read()
ours(d.path)
ok(open(d.path, "rb").read() == before, "a check without -r changes no byte")

# -r leaks
d = image()
d.put64(l2(d), 0)
d.save()
used = os.stat(d.path).st_blocks
r = ours(d.path, "leaks")
ok(r.rc == 0 and r.get("leaks-fixed") == 1, "-r leaks frees a leaked cluster", r)
ok(os.stat(d.path).st_blocks < used, "and gives its space back to the file system")
d = image()
d.put_refcount(0, 0)
d.save()
before = open(d.path, "rb").read()
r = ours(d.path, "leaks")
ok(r.rc == 1 and open(d.path, "rb").read() == before,
   "-r leaks refuses what needs new refcounts, and changes nothing", r)

# ---- bounds ---------------------------------------------------------------------------


def cpu_seconds():
    u = resource.getrusage(resource.RUSAGE_CHILDREN)
    return u.ru_utime + u.ru_stime


def bounded(name, path, seconds, mib, statuses, *args):
    """Run our check under a cap of memory; its CPU time (others may be busy too) and
    exit status."""
    def cap():
        if not SAN:
            resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))
    start = cpu_seconds()
    p = subprocess.run([IMG, "check", "-f", "qcow2", *args, path], stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, preexec_fn=cap)
    took = cpu_seconds() - start
    ok(p.returncode in statuses and took < seconds * (10 if SAN else 1), name,
       "exit %d after %.1f s" % (p.returncode, took), p.stdout[-500:])


# The limits are on address space: programs, libraries and thread stacks are in it.
d = create("big.qcow2", "128T")
os.truncate(d.path, 128 << 40)
bounded("A130 a sparse image and file of 2^31 clusters", d.path, 3, 256, [0])
os.unlink(d.path)

d = create("claims.qcow2", "8M", "write -P 1 0 512k")
d.put64(d.reft, 0)
d.put64(24, 1 << 45)                    # claims 32 TiB; the L1 table is too short for it
d.save()
must(QEMU_IMG, "create", "-q", "-f", "qcow2", "claims.qcow2", "32T")
d = Disk("claims.qcow2")
d.put64(d.reft, 0)
d.save()
size = len(d.b)
bounded("A118 a rebuild for a claimed 32 TiB", d.path, 3, 256, [0], "-r", "all")
ok(os.path.getsize(d.path) < size + 8 * CS, "A118: and it is as large as the file needs",
   "%d -> %d" % (size, os.path.getsize(d.path)))

# 4 million L1 entries, one L2 table
d = create("shared.qcow2", "2T", cluster_size=512 << 2, refcount_bits=64)
table = len(d.b)
d.b += bytes(d.cs)
for i in range(d.cs // 8):
    d.put64(table + 8 * i, (1 << 55) + 512 * i)
start = d.l1
d.b[start:start + 8 * d.l1_size] = struct.pack(">Q", table) * d.l1_size
d.save()
bounded("%d L1 entries share one L2 table of garbage" % d.l1_size, d.path, 10, 256, [2])
os.unlink(d.path)

# 65536 snapshots, all with the same L1 table of 32 MiB
d = create("snapshots.qcow2", "2T", cluster_size=2048)
d.b += bytes(-len(d.b) % d.cs)
l1 = len(d.b)
d.b += struct.pack(">Q", d.cs * 3 | COPIED) * (4 << 20)
d.put32(60, 65536)
d.put64(64, len(d.b))
for i in range(65536):
    d.b += struct.pack(">QIHHIIQII", l1, (4 << 20) - i % 7, 1, 1, 0, 0, 0, 0, 24) + bytes(24) + b"1s"
    d.b += bytes(-len(d.b) % 8)
d.save()
bounded("65536 snapshots share an L1 table of 32 MiB", d.path, 10, 256, [2])
os.unlink(d.path)

# a refcount table full of blocks, in the holes of a file of 4 TiB
d = create("blocks.qcow2", "1G", cluster_size="2M", refcount_bits=1)
d.b += bytes(-len(d.b) % d.cs)
table = len(d.b)
d.b += b"".join(struct.pack(">Q", (64 + i) << 21) for i in range(1 << 20))
d.put64(48, table)
d.put32(56, 4)
d.save()
os.truncate(d.path, 4 << 40)
bounded("a million refcount blocks in holes", d.path, 10, 256, [2])
bounded("and their repair", d.path, 10, 256, [0], "-r", "all")
finish()
