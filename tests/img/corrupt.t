#!/usr/bin/env python3
"""corrupt.t - damaged qcow2 images through qemu-img and qemu-io, and through ours: the same
lines, the same exit status, the same feature bits afterwards and the same result of check.

Each damage is done to a copy of one of a few images that QEMU made, whose layout is known:
the refcount table at 0x10000, its block at 0x20000, the L1 table at 0x30000, the L2 table at
0x40000, data from 0x50000 on.
"""
import difflib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, IO as OUR_IO, QEMU_IMG, QEMU_IO, finish, ok  # noqa: E402

OURS = {"img": IMG, "io": OUR_IO}
THEIRS = {"img": QEMU_IMG, "io": QEMU_IO}

COPIED = 1 << 63
RT, RB, L1, L2, DATA = 0x10000, 0x20000, 0x30000, 0x40000, 0x50000
EOF = 0x10000000


def tool(tools, words, cwd):
    env = dict(os.environ, LC_ALL="C", TZ="UTC")
    p = subprocess.run([tools[words[0]]] + words[1:], cwd=cwd, env=env, timeout=60,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = p.stdout.decode(errors="replace")
    text = re.sub(r"[0-9]+ ops; .*", "N ops; T", text)
    text = re.sub(r"^(\S*/)?(qemu|platter)-(img|io): ", r"qemu-\3: ", text, flags=re.M)
    return text.splitlines() + ["status %d" % p.returncode]


def make(work):
    def q(*words):
        lines = tool(THEIRS, list(words), work)
        assert lines[-1] == "status 0", lines
    for name in ("plain", "snap"):
        q("img", "create", "-q", "-f", "qcow2", name, "64M")
        q("io", "-c", "write -P 1 0 192k", "-c", "write -c -P 2 1M 64k", "-c", "write -z 2M 64k",
          name)
    # 0x40000 L2, three of data, one compressed; then the snapshot's L1, its table
    q("img", "snapshot", "-c", "one", "snap")
    q("io", "-c", "write -P 3 64k 64k", "snap")


# name: image, [(offset, format, value)...]
DAMAGE = {}


def damage(name, image, *pokes):
    DAMAGE[name] = (image, pokes)


def entries():
    for to, where in (("header", 0), ("reftable", RT), ("refblock", RB), ("L1", L1),
                      ("unaligned", 0x42a00), ("eof", EOF), ("far", 1 << 55)):
        damage("l1 " + to, "plain", (L1, ">Q", where | COPIED))
    damage("l1 not copied", "plain", (L1, ">Q", L2))
    damage("l1 reftable not copied", "plain", (L1, ">Q", RT))
    damage("l1 reserved", "plain", (L1, ">Q", L2 | COPIED | 1 << 60 | 3))
    for to, where in (("header", 0), ("reftable", RT), ("refblock", RB), ("L1", L1), ("L2", L2),
                      ("unaligned", 0x50200), ("eof", EOF), ("far", (1 << 56) - 0x10000),
                      ("other data", 0x70000)):
        damage("l2 " + to, "plain", (L2 + 8, ">Q", where | COPIED))
    for to, where in (("reftable", RT), ("L1", L1), ("L2", L2), ("data", 0x60000)):
        damage("l2 %s not copied" % to, "plain", (L2 + 8, ">Q", where))
    damage("l2 unaligned zero", "plain", (L2 + 8, ">Q", 0x50200 | COPIED | 1))
    damage("l2 reserved", "plain", (L2 + 8, ">Q", 0x60000 | COPIED | 0x14))
    damage("l2 compressed in header", "plain", (L2 + 8, ">Q", 1 << 62))
    damage("l2 compressed eof", "plain", (L2 + 8, ">Q", 1 << 62 | EOF))
    damage("l2 compressed copied", "plain", (L2 + 16 * 8, ">Q", 1 << 62 | COPIED | 0x80000))
    damage("compressed rubbish", "plain", (0x80000, ">Q", 0xffffffffffffffff))


def refcounts():
    for i, what in enumerate(("header", "reftable", "refblock", "L1", "L2", "data")):
        damage("refcount 0 of " + what, "plain", (RB + 2 * i, ">H", 0))
        damage("refcount 2 of " + what, "plain", (RB + 2 * i, ">H", 2))
    damage("refcount 0 of all", "plain", *[(RB + 2 * i, ">H", 0) for i in range(9)])
    damage("refcount 0xffff of data", "plain", (RB + 10, ">H", 0xffff))
    damage("leak", "plain", (RB + 2 * 20, ">H", 1))
    damage("two leaks", "plain", (RB + 2 * 20, ">H", 1), (RB + 2 * 22, ">H", 3))
    for to, where in (("0", 0), ("header", 0x100), ("itself", RT), ("L1", L1), ("L2", L2),
                      ("data", DATA), ("unaligned", 0x2a00), ("unaligned bits", RB | 1),
                      ("eof", EOF), ("far", 1 << 60)):
        damage("reftable " + to, "plain", (RT, ">Q", where))
    damage("reftable second bad", "plain", (RT + 8, ">Q", 0x2a000))
    damage("reftable twice", "plain", (RT + 8, ">Q", RB))


def headers():
    damage("L1 offset unaligned", "plain", (40, ">Q", 0x30200))
    damage("L1 offset eof", "plain", (40, ">Q", EOF))
    damage("L1 offset reftable", "plain", (40, ">Q", RT))
    damage("reftable offset unaligned", "plain", (48, ">Q", 0x10200))
    damage("reftable offset eof", "plain", (48, ">Q", EOF))
    damage("reftable offset L1", "plain", (48, ">Q", L1))
    damage("reftable no clusters", "plain", (56, ">I", 0))
    damage("corrupt", "plain", (72, ">Q", 2))
    damage("dirty", "plain", (72, ">Q", 1), (80, ">Q", 1))
    damage("dirty leak", "plain", (72, ">Q", 1), (80, ">Q", 1), (RB + 2 * 20, ">H", 1))
    damage("dirty corrupt", "plain", (72, ">Q", 3))


def snapshots():
    damage("snapshot count", "snap", (60, ">I", 0))
    damage("snapshot too many", "snap", (60, ">I", 65537))
    damage("snapshot table unaligned", "snap", (64, ">Q", 0x200))
    damage("snapshot table eof", "snap", (64, ">Q", EOF))
    for to, where in (("unaligned", 0x200), ("eof", EOF), ("active L1", L1), ("reftable", RT)):
        damage("snapshot L1 " + to, "snap", ("table", ">Q", where))
    damage("snapshot L1 size", "snap", ("table8", ">I", 0x7fffffff))
    damage("snapshot extra", "snap", ("table36", ">I", 2000))
    damage("snapshot l2 unaligned", "snap", ("snapl1", ">Q", 0x40200))
    damage("snapshot l2 eof", "snap", ("snapl1", ">Q", EOF))
    damage("snapshot l2 reftable", "snap", ("snapl1", ">Q", RT))
    damage("active l2 to inactive l2", "snap", ("l2_8", ">Q", L2 | COPIED))
    damage("active l2 to snapshot table", "snap", ("l2_8", ">Q", "table"))
    damage("active l2 to inactive L1", "snap", ("l2_8", ">Q", "snapl1"))
    damage("snapshot data unaligned", "snap", (L2 + 16, ">Q", 0x50200))


IO = {
    "readonly": [["io", "-r", "-c", "read 0 64k", "-c", "read 64k 64k", "-c", "read 1M 4k", "x"]],
    "write": [["io", "-c", "write 68k 4k", "-c", "read 68k 4k", "-c", "flush", "x"],
              ["io", "-c", "write 64k 64k", "x"]],
    "new": [["io", "-c", "write 4M 1k", "x"]],
    "snapshot": [["img", "snapshot", "-c", "two", "x"]],
    "check": [["img", "check", "x"]],
}

# Not compared.  QEMU aborts (l1 header), reads and writes beyond the file's end (eof, far),
# stops at a write that it has already done half of, so that clusters leak; it frees, and so
# gives to others, metadata that a damaged entry names, and where what should be a refcount
# block is something else believes the counts in it.  We say why a compressed cluster cannot
# be read, and open what has a damaged snapshot table only when check is to repair it.
OTHERWISE = {
    "l1 header": "write new snapshot",
    "l1 reftable": "write new",
    "l1 refblock": "write snapshot",
    "l1 L1": "write new snapshot",
    "l1 eof": "readonly write new snapshot",
    "l1 far": "readonly write new snapshot",
    "l1 not copied": "write new",
    "l1 reftable not copied": "write new",
    "l2 reftable": "discard",
    "l2 refblock": "discard",
    "l2 L1": "discard",
    "l2 L2": "discard",
    "l2 eof": "discard snapshot",
    "l2 far": "discard snapshot",
    "l2 reftable not copied": "discard",
    "l2 L1 not copied": "discard",
    "l2 L2 not copied": "write",
    "l2 compressed in header": "readonly write",
    "l2 compressed eof": "readonly write snapshot",
    "compressed rubbish": "readonly",
    "refcount 0 of L2": "snapshot",
    "refcount 0 of data": "new snapshot",
    "refcount 0 of all": "discard snapshot",
    "reftable 0": "discard snapshot",
    "reftable header": "new snapshot",
    "reftable itself": "new snapshot",
    "reftable L1": "new snapshot",
    "reftable L2": "new snapshot",
    "reftable unaligned": "discard",
    "reftable unaligned bits": "new snapshot",
    "reftable eof": "new snapshot",
    "reftable far": "new snapshot",
    "reftable twice": "new snapshot",
    "L1 offset eof": "readonly write new snapshot check",
    "L1 offset reftable": "snapshot",
    "reftable offset eof": "readonly write new snapshot check",
    "reftable offset L1": "new snapshot",
    "snapshot too many": "check",
    "snapshot table unaligned": "check",
    "snapshot table eof": "readonly write new snapshot check",
    "snapshot L1 size": "write new snapshot check",
    "snapshot extra": "check",
    "active l2 to snapshot table": "discard",
    "active l2 to inactive L1": "discard",
}


def poke(path, pokes):
    with open(path, "r+b") as f:
        def at(off, fmt=">Q"):
            f.seek(off)
            return struct.unpack(fmt, f.read(struct.calcsize(fmt)))[0]
        table = at(64)
        places = {"table": table, "snapl1": at(table) if table else 0,
                  "l2_8": (at(L1) & ~COPIED) + 8}
        for off, fmt, value in pokes:
            if isinstance(off, str):
                m = re.fullmatch(r"(table)(\d+)", off)
                off = table + int(m.group(2)) if m else places[off]
            if isinstance(value, str):
                value = places[value] | COPIED
            f.seek(off)
            f.write(struct.pack(fmt, value))


def flags(path):
    with open(path, "rb") as f:
        return "features %r" % (struct.unpack(">QQQ", f.read(96)[72:]),)


def run(tools, image, pokes, lines, work):
    place = os.path.join(work, "run")
    shutil.rmtree(place, ignore_errors=True)
    os.mkdir(place)
    path = os.path.join(place, "x")
    shutil.copy(os.path.join(work, image), path)
    poke(path, pokes)
    out = []
    for words in lines:
        out += ["$ " + " ".join(words)] + tool(tools, words, place)
    out.append(flags(path))
    if len(lines) > 1 and lines[0][0] == "io":
        out += tool(THEIRS, ["img", "check", "x"], place)
    return out


def main():
    entries()
    refcounts()
    headers()
    snapshots()
    only = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as work:
        make(work)
        todo = [(d, c) for d in DAMAGE for c in IO
                if (d in only or c in only if only else
                    c not in OTHERWISE.get(d, "").split())]
        for d, c in todo:
            image, pokes = DAMAGE[d]
            theirs = run(THEIRS, image, pokes, IO[c], work)
            ours = run(OURS, image, pokes, IO[c], work)
            diff = list(difflib.unified_diff(theirs, ours, "qemu", "ours", lineterm="", n=1))[2:]
            ok(not diff, "%s: %s" % (d, c), *diff[:40])
    finish()


if __name__ == "__main__":
    main()
