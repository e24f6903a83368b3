"""
checklib.py - real images, damaged byte by byte, and two checkers to compare.

Images are made by qemu-img 10 (build/oracle), so that they are what users have;
Disk then finds the tables in the file and changes entries.  ours() and theirs()
run the two checkers and bring what they say into one form.
"""
import json
import os
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, QEMU_IMG, QEMU_IO, must, run               # noqa: E402

COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
OFFSET = 0x00FFFFFFFFFFFE00
STATUS = {0: "clean", 1: "failed", 2: "corrupt", 3: "leaks"}


def create(path, size, *cmds, **opts):
    """An image by qemu-img, then qemu-io commands on it."""
    o = ",".join("%s=%s" % kv for kv in opts.items())
    must(QEMU_IMG, "create", "-q", "-f", "qcow2", *(["-o", o] if o else []), path, str(size))
    if cmds:
        args = [a for c in cmds for a in ("-c", c)]
        must(QEMU_IO, "-f", "qcow2", *args, path)
    return Disk(path)


class Disk:
    """The bytes of an image file and where its tables are."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as f:
            self.b = bytearray(f.read())
        self.version, self.bits = self.u32(4), self.u32(20)
        self.cs = 1 << self.bits
        self.l1, self.l1_size = self.u64(40), self.u32(36)
        self.reft, self.reft_clusters = self.u64(48), self.u32(56)
        self.order = self.u32(96) if self.version > 2 else 4
        self.wide = self.version > 2 and bool(self.u64(72) & 1 << 4)    # extended L2

    def u32(self, at):
        return struct.unpack_from(">I", self.b, at)[0]

    def u64(self, at):
        return struct.unpack_from(">Q", self.b, at)[0]

    def put32(self, at, v):
        struct.pack_into(">I", self.b, at, v)

    def put64(self, at, v):
        struct.pack_into(">Q", self.b, at, v & (1 << 64) - 1)

    def clusters(self):
        return len(self.b) // self.cs

    def l1_entries(self):
        """Places in the file of the L1 entries in use."""
        return [a for a in range(self.l1, self.l1 + 8 * self.l1_size, 8) if self.u64(a)]

    def l2_entries(self):
        """Places in the file of the L2 entries in use."""
        out = []
        for a in self.l1_entries():
            t = self.u64(a) & OFFSET
            if not t % self.cs and t + self.cs <= len(self.b):
                out += [p for p in range(t, t + self.cs, 16 if self.wide else 8) if self.u64(p)]
        return out

    def blocks(self):
        """Places in the file of the refcount table entries in use."""
        end = self.reft + self.reft_clusters * self.cs
        return [a for a in range(self.reft, end, 8) if self.u64(a)]

    def put_refcount(self, cluster, value):
        """16-bit refcounts only; the first block."""
        assert self.order == 4
        struct.pack_into(">H", self.b, (self.u64(self.reft) & OFFSET) + cluster * 2, value)

    def save(self):
        with open(self.path, "wb") as f:
            f.write(self.b)


class Result:
    def __init__(self, p):
        self.rc, self.err = p.returncode, p.stderr
        try:
            self.json = json.loads(p.stdout)
            self.json.pop("filename", None)
            self.json.pop("format", None)
        except ValueError:
            self.json = None
        # The overflow's second line is advice, worded for each program.
        self.lines = sorted(line for line in p.stderr.splitlines()
                            if line and not line.startswith("Use ") and "Check failed" not in line)

    def get(self, key):
        return (self.json or {}).get(key, 0)

    def __str__(self):
        return "exit %s, %s\n%s" % (self.rc, self.json, self.err[-1500:])


def ours(path, fix=None):
    args = ["-r", fix] if fix else []
    return Result(run(IMG, "check", "-f", "qcow2", "--output", "json", *args, path))


def theirs(path, fix=None):
    args = ["-r", fix] if fix else []
    return Result(run(QEMU_IMG, "check", "-f", "qcow2", "--output", "json", *args, path))


def differences(a, b):
    """What the two said differently, as lines; [] if they agree."""
    out = []
    if a.json != b.json:
        out += ["counts: ours %s" % a.json, "      theirs %s" % b.json]
    if a.rc != b.rc:
        out.append("exit: ours %s, theirs %s" % (a.rc, b.rc))
    out += ["only ours: " + x for x in a.lines if x not in b.lines][:8]
    out += ["only theirs: " + x for x in b.lines if x not in a.lines][:8]
    if not out and a.lines != b.lines:
        out.append("the same lines, but not as often")
    return out


def content(path):
    """The guest's bytes, or None where qemu-img cannot read them."""
    raw = path + ".raw"
    if run(QEMU_IMG, "convert", "-U", "-f", "qcow2", "-O", "raw", path, raw).returncode:
        return None
    with open(raw, "rb") as f:
        data = f.read()
    os.unlink(raw)
    return data
