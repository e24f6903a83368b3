#!/usr/bin/env python3
"""a119-operations.t - A119..A135: snapshot tables that lie, sizes near the end
of what can be counted, and operations in an unlucky world."""
import os
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from badinput import IMG, IO, q, case, file_hash, main          # noqa: E402

CS = 65536
MIB = 1 << 20


def image(**kw):
    img = q.Image(size=kw.pop("size", 4 * MIB), **kw)
    for i in range(3):
        img.write(i * img.cs, bytes([i + 1]) * img.cs)
    return img


def snapshot_entry(l1, l1_size, size, extra=16, extra_size=None, ident=b"1", name=b"s",
                   id_len=None, name_len=None, vm_state=0):
    body = struct.pack(">QQQ", vm_state, size, 0)[:extra] + bytes(max(0, extra - 24))
    return struct.pack(">QIHHIIQII", l1, l1_size, len(ident) if id_len is None else id_len,
                       len(name) if name_len is None else name_len, 0, 0, 0,
                       vm_state & 0xFFFFFFFF, extra if extra_size is None else extra_size) + \
        body + ident + name


def snapshotted(entry=None, nb=1, offset=None, **kw):
    """A snapshot that shares nothing: an L1 table of its own, empty."""
    img = image()
    l1 = img.alloc()
    img.l1_snap = l1
    img.table = img.alloc()
    if entry is None:
        entry = snapshot_entry(kw.pop("l1", l1), kw.pop("l1_size", img.l1_size), img.size, **kw)
    img.buf[img.table:img.table + len(entry)] = entry
    img.header["nb_snapshots"] = nb
    img.header["snapshots_offset"] = img.table if offset is None else offset
    return img


def lies(label, make):
    """Refused in one line, or (where snapshots are not looked at) data as it is;
    a write never makes it worse than refused."""
    @case(label)
    def run_case(t):
        path = t.save(make())
        before = file_hash(path)
        r = t.io(path, "read -P 1 0 64k", "read -P 3 128k 64k", ro=True)
        if r.rc:
            t.one_line(r, path, r"snapshot", lines=2)
        t.run(IMG, "info", "-f", "qcow2", path)
        t.run(IMG, "check", "-f", "qcow2", path)
        t.expect(file_hash(path) == before, "changed")
        r = t.io(path, "write -P 9 1M 64k")
        if r.rc:
            t.expect(len(r.lines) <= 2, "%s" % r)
        r = t.io(path, "read -P 1 0 64k", "read -P 3 128k 64k", ro=True)
        t.expect("Pattern" not in r.out, "data lost: %s" % r)


lies("A119 65,537 snapshots: refused", lambda: snapshotted(nb=65537))
lies("A119 2^32-1 snapshots: refused", lambda: snapshotted(nb=0xFFFFFFFF))
lies("A120 snapshot table unaligned: refused", lambda: snapshotted(offset=0x30200))
lies("A120 snapshot table past the end: refused", lambda: snapshotted(offset=1 << 40))
lies("A120 snapshot table near 2^64: refused", lambda: snapshotted(offset=(1 << 64) - CS))
lies("A121 snapshot table over 64 MiB: refused", lambda: snapshotted(nb=65000, extra_size=1024))
lies("A122 extra data of 1025 bytes: refused", lambda: snapshotted(extra_size=1025))
lies("A122 extra data of 8 bytes: refused or read", lambda: snapshotted(extra=8))
lies("A122 extra data of 2^32-1 bytes: refused", lambda: snapshotted(extra_size=0xFFFFFFFF))
lies("A123 id length past the end: refused", lambda: snapshotted(id_len=0xFFFF))
lies("A123 name length past the end: refused", lambda: snapshotted(name_len=0xFFFF))
lies("A124 snapshot L1 unaligned: refused", lambda: snapshotted(l1=0x30200))
lies("A124 snapshot L1 huge: refused", lambda: snapshotted(l1_size=1 << 31))
lies("A124 snapshot L1 is the active L1: refused or untouched", lambda: snapshotted(l1=0x30000))
lies("A125 duplicate ids: opened", lambda: snapshotted(
    entry=snapshot_entry(7 * CS, 1, 4 * MIB) + b"\0" * 6 + snapshot_entry(7 * CS, 1, 4 * MIB),
    nb=2))
lies("A127 v3 snapshot without the 64-bit size: refused or read", lambda: snapshotted(extra=0))
lies("A128 vm_state_size 2^64-1: refused or not used",
     lambda: snapshotted(vm_state=(1 << 64) - 1))


@case("A129 convert of a 2^60-byte virtual size, sparse, to raw: refused or quick, no hang")
def a129(t):
    img = q.Image(size=1 << 60, cluster_bits=21)
    path = t.save(img)
    r = t.img("info", "-f", "qcow2", path)
    t.expect(r.rc == 0 and "1 EiB" in r.out, "%s" % r)
    r = t.io(path, "read 0 4k", "read %d 4k" % ((1 << 60) - 4096), "write -P 5 %d 4k" %
             ((1 << 60) - 4096), "read -P 5 %d 4k" % ((1 << 60) - 4096))
    t.expect(r.rc == 0, "%s" % r)


@case("A130 check of a sparse image of 2^31 clusters: within the memory cap")
def a130(t):
    img = q.Image(size=1 << 47)
    img.write(0, b"\1" * CS)
    path = t.save(img)
    r = t.img("check", "-f", "qcow2", path, cpu=10 if os.environ.get("SAN") else 2)
    t.expect(r.rc == 0, "%s" % r)
    t.check_alike(path)


@case("A131 shrink below a snapshot: refused or sound, the file still checks")
def a131(t):
    path = t.save(snapshotted())
    r = t.img("resize", "-f", "qcow2", "--shrink", path, "64k")
    t.expect(r.rc in (0, 1), "%s" % r)
    t.expect(t.img("check", "-f", "qcow2", path).rc in (0, 3), "damaged")


@case("A132 create onto a symlink: what it points at is the image, the link stays")
def a132(t):
    os.symlink("real.qcow2", t.path("link.qcow2"))
    r = t.img("create", "-q", "-f", "qcow2", t.path("link.qcow2"), "1M")
    t.expect(r.rc == 0, "%s" % r)
    t.expect(os.path.islink(t.path("link.qcow2")), "the link was replaced")
    t.sound(t.path("real.qcow2"))


@case("A132 create onto a directory, a FIFO, a missing directory: refused in one line")
def a132_odd(t):
    os.mkfifo(t.path("fifo"))
    os.mkdir(t.path("dir"))
    for name in ("fifo", "dir", "none/x.qcow2"):
        r = t.img("create", "-q", "-f", "qcow2", t.path(name), "1M")
        t.expect(r.rc == 1 and len(r.lines) == 1, "%s" % r)


@case("A134 the file is cut short while it is open: EIO or zeros, no crash")
def a134(t):
    import subprocess
    import time
    path = t.save(image())
    p = subprocess.Popen([IO, "-f", "qcow2", "-r", path], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    p.stdin.write(b"read 0 512\n")
    p.stdin.flush()
    time.sleep(0.2)
    os.truncate(path, 4096)
    out, _ = p.communicate(b"read 64k 64k\nread 128k 64k\nread 3M 64k\n", timeout=20)
    t.expect(p.returncode in (0, 1), "exit %d: %s" % (p.returncode, out))
    t.expect(b"Sanitizer" not in out, out.decode(errors="replace"))


@case("A135 every command that opens read-only leaves the file's hash as it was")
def a135(t):
    for kw in ({}, {"version": 2}, {"compatible": 1, "incompatible": 1}, {"autoclear": 1 << 7}):
        path = t.save(image(**kw))
        other = t.save(image(**kw), "other.qcow2")
        before = file_hash(path)
        for words in (("info", path), ("info", "--output=json", path),
                      ("map", "-f", "qcow2", path), ("check", "-f", "qcow2", path),
                      ("compare", "-f", "qcow2", "-F", "qcow2", path, other),
                      ("measure", "-f", "qcow2", "-O", "qcow2", path),
                      ("convert", "-f", "qcow2", "-O", "raw", path, t.path("o.raw")),
                      ("convert", "-f", "qcow2", "-O", "qcow2", path, t.path("o.qcow2")),
                      ("dd", "-f", "qcow2", "-O", "raw", "if=%s" % path,
                       "of=%s" % t.path("dd.raw"))):
            r = t.img(*words)
            t.expect(r.rc == 0 or words[0] == "check", "%s" % r)
            t.expect(file_hash(path) == before, "%s changed the file" % words[0])


@case("A135 read-only files (mode 0444, not owned) open read-only")
def a135_mode(t):
    path = t.save(image())
    os.chmod(path, 0o444)
    t.reads_alike(path)


sys.exit(main())
