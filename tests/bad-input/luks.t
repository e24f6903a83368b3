#!/usr/bin/env python3
"""luks.t - LUKS headers that are damaged or made up, in a file of their own and in a qcow2
image: one clear line, no change to the file, bounded memory and time."""
import os
import re
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from badinput import IMG, IO, case, file_hash, main, run        # noqa: E402

SECRET = ("--object", "secret,id=s,data=abc")
SLOT, SLOT_BYTES = 208, 48              # where slots are in the header
ACTIVE = 0x00ac71f3
KEYS = {}                               # the one image of each kind all cases start from


def fresh(t, kind):
    if kind not in KEYS:
        path = t.path("start")
        options = "key-secret=s,iter-time=1" if kind == "luks" else \
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1"
        r = run(IMG, "create", "-q", *SECRET, "-f", kind, "-o", options, path, "64k")
        t.expect(r.rc == 0, "create: %s" % r)
        with open(path, "rb") as f:
            KEYS[kind] = f.read()
    return bytearray(KEYS[kind])


def spec(kind, path):
    key = "key-secret=s" if kind == "luks" else "encrypt.key-secret=s"
    return (*SECRET, "--image-opts", "driver=%s,file.filename=%s,%s" % (kind, path, key))


def refused(t, data, kind, reason, info=True):
    """Neither with the password nor without it does it open; the file stays."""
    path = t.path("test." + kind)
    with open(path, "wb") as f:
        f.write(data)
    before = file_hash(path)
    runs = [t.img("convert", *spec(kind, path), "-O", "raw", t.path("out.raw"))]
    if info:
        runs.append(t.img("info", "-f", kind, path))
    for r in runs:
        t.one_line(r, path, reason)
    # In qemu-io's words, which do not name what options describe.
    r = t.run(IO, "-c", "write 0 512", *spec(kind, path))
    t.expect(r.rc and len(r.lines) == 1 and re.search(reason, r.err), "writing: %s" % r)
    t.expect(file_hash(path) == before, "the file was changed")


def header_at(data, kind):
    if kind == "luks":
        return 0
    at = 104
    while True:                         # the extension says where
        magic, length = struct.unpack_from(">II", data, at)
        if magic == 0x0537be77:
            return struct.unpack_from(">Q", data, at + 8)[0]
        at += 8 + (length + 7) // 8 * 8


def bad(name, reason, *changes, kinds=("luks", "qcow2")):
    """changes: (place in the header, bytes)."""
    for kind in kinds:
        @case("LUKS in %s: %s" % (kind, name))
        def run_case(t, kind=kind):
            data = fresh(t, kind)
            for at, new in changes:
                at += header_at(data, kind)
                data[at:at + len(new)] = new
            refused(t, data, kind, reason)


def slot(i, field, value):
    at = {"active": 0, "iterations": 4, "sector": 40, "stripes": 44}[field]
    return SLOT + i * SLOT_BYTES + at, struct.pack(">I", value)


bad("bad magic", "not in LUKS format", (0, b"LUKSxx"))
for version in (0, 2, 65535):
    bad("version %d" % version, "version %d is not supported" % version,
        (6, struct.pack(">H", version)))
for what, at in (("cipher name", 8), ("cipher mode", 40), ("hash spec", 72)):
    bad("%s not terminated" % what, "%s is not NUL terminated" % what, (at, b"a" * 32))
bad("unknown cipher", "'foo' with key size", (8, b"foo\0"))
bad("a cipher's name of format directives", "%n%s", (8, b"%n%s\0"))
bad("unknown mode", "Cipher mode 'foo' not supported", (40, b"foo-plain\0"))
bad("mode without an IV generator", "mode string format", (40, b"xts\0"))
bad("unknown IV generator", "IV generator 'foo'", (40, b"xts-foo\0"))
bad("essiv without a hash", "Missing IV generator hash", (40, b"xts-essiv\0"))
bad("essiv with an unknown hash", "Hash algorithm 'foo'", (40, b"xts-essiv:foo\0"))
bad("unknown hash", "Hash algorithm 'foo' not supported", (72, b"foo\0"))
bad("master key iterations 0", "iteration count is zero", (164, bytes(4)))
bad("payload over the header", "payload is overlapping", (104, struct.pack(">I", 1)))
bad("payload over a key slot", "overlapping with the encrypted payload",
    (104, struct.pack(">I", 9)))
for n in (0, 31, 33, 65, 0x10000, 0xffffffff):
    bad("key of %d bytes" % n, "key size %d bytes|overlapping" % n, (108, struct.pack(">I", n)))
bad("slot neither active nor disabled", "Keyslot 0 state", slot(0, "active", 0x12345678))
bad("slot's iterations 0", "Keyslot 0 iteration count is zero", slot(0, "iterations", 0))
for n in (0, 1, 3999, 0xffffffff):
    bad("%d stripes" % n, r"Keyslot 7 is corrupted \(stripes %d" % n, slot(7, "stripes", n))
bad("slot over the header", "Keyslot 3 is overlapping with the LUKS header", slot(3, "sector", 1))
bad("slots over each other", "Keyslots 0 and 1 are overlapping", slot(1, "sector", 9))
bad("slot beyond the payload", "Keyslot 7 is overlapping with the encrypted payload",
    slot(7, "sector", 0xffffffff))


@case("LUKS: truncated at every kind of place")
def truncated(t):
    data = fresh(t, "luks")
    for n in (6, 7, 8, 111, 207, 591):
        refused(t, data[:n], "luks", "LUKS|Keyslot")


@case("LUKS: cut within the key material and before the payload")
def cut(t):
    data = fresh(t, "luks")
    for n in (1024, 5000, 100000):
        refused(t, data[:n], "luks", ".", info=False)


@case("LUKS: payload beyond the end of the file")
def far_payload(t):
    data = fresh(t, "luks")
    struct.pack_into(">I", data, 104, 0xffffffff)
    refused(t, data, "luks", ".", info=False)


def costly(name, reason, *changes):
    """What would take hours is refused before it begins; what the header says is shown."""
    for kind in ("luks", "qcow2"):
        @case("LUKS in %s: %s" % (kind, name))
        def run_case(t, kind=kind):
            data = fresh(t, kind)
            start = header_at(data, kind)
            for at, new in changes:
                data[start + at:start + at + len(new)] = new
            refused(t, data, kind, reason % start, info=False)
            r = t.img("info", "-f", kind, t.path("test." + kind))
            t.expect(r.rc == 0, "info: %s" % r)


for n in (100000001, 0xffffffff):
    costly("a slot of %d iterations" % n, r"Keyslot 0 asks for %d iterations \(LUKS header at "
           r"%%#x\), more than 100000000" % n, slot(0, "iterations", n))
    costly("a master key of %d iterations" % n, r"LUKS header at %%#x asks for %d iterations of the "
           r"master key" % n, (164, struct.pack(">I", n)))


def extension(name, offset, length, reason):
    @case("LUKS in qcow2: the extension's " + name)
    def run_case(t):
        data = fresh(t, "qcow2")
        at = data.index(struct.pack(">II", 0x0537be77, 16)) + 8
        old = struct.unpack_from(">QQ", data, at)
        struct.pack_into(">QQ", data, at, old[0] if offset is None else offset,
                         old[1] if length is None else length)
        refused(t, data, "qcow2", reason)


extension("offset 2^63", 1 << 63, None, ".")
extension("offset 2^64-65536", (1 << 64) - 65536, None, ".")
extension("offset not on a cluster", 512, None, "multiple of cluster size")
extension("offset past the end of the file", 1 << 40, None, ".")
extension("length 0", None, 0, ".")
extension("length 2^64-1", None, (1 << 64) - 1, ".")
extension("place over the qcow2 header", 0, None, ".")
sys.exit(main())
