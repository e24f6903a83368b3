#!/usr/bin/env python3
"""a51-backing.t - A51..A78: header extensions, features we do not have, and
backing files: what names inside an image may and may not do."""
import os
import socket
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from badinput import IMG, IO, q, case, file_hash, main, run     # noqa: E402
import bitmaps      # noqa: E402

MIB = 1 << 20


def plain(**kw):
    kw.setdefault("cluster_bits", 12)
    img = q.Image(**kw)
    img.write(0, b"\x11" * img.cs)
    return img


def overlay(backing, **kw):
    """An image that has data in its second cluster, nothing in the first."""
    kw.setdefault("cluster_bits", 12)
    img = q.Image(backing=backing, **kw)
    img.write(img.cs, b"\x22" * img.cs)
    return img


# ---- extensions ------------------------------------------------------------------

@case("A51 extension of 0xFFFFFFFF bytes: refused")
def a51(t):
    img = plain()
    img.poke(112, struct.pack(">II", 0x12345678, 0xFFFFFFFF))
    t.refused(t.save(img), r"extension")


@case("A51 backing format extension of 0xFFFFFFFF bytes: refused")
def a51_format(t):
    img = plain()
    img.poke(112, struct.pack(">II", q.EXT_BACKING_FORMAT, 0xFFFFFFFF))
    t.refused(t.save(img), r"extension|format")


@case("A52 extension past the first cluster: refused")
def a52(t):
    img = plain()
    img.poke(112, struct.pack(">II", 0x12345678, 4096 - 112))
    t.refused(t.save(img), r"extension")


@case("A53 no end marker: refused or read to the cluster's end")
def a53(t):
    img = plain()
    body = b"".join(struct.pack(">II", 0x11110000 + i, 0) for i in range((4096 - 112) // 8))
    img.poke(112, body)
    path = t.save(img)
    r = t.img("info", "-f", "qcow2", path)
    if r.rc:
        t.refused(path, r"extension")
    else:
        t.reads_alike(path)


@case("A54 the same extension twice: refused, or one of them counts")
def a54(t):
    path = t.save(overlay(b"absent.img", extensions=[
        (q.EXT_BACKING_FORMAT, b"raw"), (q.EXT_BACKING_FORMAT, b"qcow2")]))
    r = t.img("info", "-f", "qcow2", path)
    if r.rc:
        t.one_line(r, path, r"extension|format")
    else:
        t.expect("backing file format: raw" in r.out or "backing file format: qcow2" in r.out,
                 "no format: %s" % r)


@case("A55 100,000 unknown extensions of zero length: kept, or refused at a stated limit")
def a55(t):
    img = q.Image(size=64 * MIB, cluster_bits=21,
                  extensions=[(0x7E570000 + i % 7, b"") for i in range(100000)])
    img.write(0, b"\x11" * 4096)
    path = t.save(img)
    r = t.img("info", "-f", "qcow2", path)
    if r.rc:
        return t.refused(path, r"extension")
    with open(path, "rb") as f:
        exts = f.read(112 + 800000)[112:]
    r = t.io(path, "read -P 0x11 0 4096", "write -P 0x22 4M 4096", "read -P 0x22 4M 4096")
    t.expect(r.rc == 0, "%s" % r)
    with open(path, "rb") as f:
        t.expect(f.read(112 + 800000)[112:] == exts, "the extensions changed")
    t.sound(path)


@case("A55 an unknown extension with data is kept by a write and a resize")
def a55_kept(t):
    body = b"kept for ever and ever"
    path = t.save(plain(extensions=[(0x7E570001, body)], autoclear=1 << 20))
    r = t.io(path, "write -P 0x22 64k 4096")
    t.expect(r.rc == 0, "%s" % r)
    r = t.img("resize", "-f", "qcow2", path, "2M")
    t.expect(r.rc == 0, "%s" % r)
    with open(path, "rb") as f:
        t.expect(struct.pack(">II", 0x7E570001, len(body)) + body in f.read(4096), "lost")
    t.sound(path)


for label, text in (("16 bytes", b"q" * 16), ("200 bytes", b"q" * 200)):
    @case("A56 backing format of %s: refused" % label)
    def a56(t, text=text):
        t.refused(t.save(overlay(b"base.img", backing_format=text)), r"format|extension")


@case("A56 backing format holding NUL: never another format than was written")
def a56_nul(t):
    with open(t.path("base.img"), "wb") as f:
        f.write(b"\x33" * MIB)
    path = t.save(overlay(b"base.img", backing_format=b"raw\0qcow2"))
    r = t.io(path, "read -P 0x33 0 4096", ro=True)
    if r.rc:
        t.one_line(r, path, r"format|NUL")


@case("A57 feature table with an odd length, unterminated names and %s: text, nothing else")
def a57(t):
    evil = b"%s%n%s%n" + b"A" * 38
    table = (q.feature_entry(0, 41, evil) + q.feature_entry(0, 42, b"B" * 46) +
             b"\x00\x2bcut")
    path = t.save(plain(extensions=[(q.EXT_FEATURE_TABLE, table)], incompatible=1 << 41))
    t.refused(path, r"%s%n%s%n")
    path = t.save(plain(extensions=[(q.EXT_FEATURE_TABLE, table)]), "fine.qcow2")
    t.reads_alike(path)


@case("A57 control characters in a feature name: not printed")
def a57_control(t):
    table = q.feature_entry(0, 41, b"a\x1b[2Jb\nc\x07")
    path = t.save(plain(extensions=[(q.EXT_FEATURE_TABLE, table)], incompatible=1 << 41))
    t.refused(path, r"feature|incompatible")


def bitmaps_ext(count=1, reserved=0, size=32, offset=0x1000):
    return (q.EXT_BITMAPS, struct.pack(">IIQQ", count, reserved, size, offset))


for label, args in (("count 0", {"count": 0}), ("count 65536", {"count": 65536}),
                    ("count 2^32-1", {"count": 0xFFFFFFFF}), ("reserved set", {"reserved": 1}),
                    ("directory unaligned", {"offset": 0x1200}),
                    ("directory past the end", {"offset": 1 << 40}),
                    ("directory of 2^63 bytes", {"size": 1 << 63})):
    @case("A58 bitmaps extension, %s: refused, or data as the oracle reads it" % label)
    def a58(t, args=args):
        for autoclear in (0, 1):
            path = t.save(plain(extensions=[bitmaps_ext(**args)], autoclear=autoclear))
            before = file_hash(path)
            r = t.io(path, "read -P 0x11 0 4096", ro=True)
            if r.rc:
                t.one_line(r, path, r"bitmap")
            t.expect(file_hash(path) == before, "changed")


def bitmap_image(t, name="bitmaps.qcow2"):
    """An image with one enabled bitmap; where its directory entry is."""
    path = t.path(name)
    t.img("create", "-q", "-f", "qcow2", path, "4M")
    t.img("bitmap", "--add", path, "bm")
    t.io(path, "write -P 0x11 0 64k")
    return path, bitmaps.entries(path)[0][1]


for label, at, data in (("a table unaligned", 0, struct.pack(">Q", 0x10200)),
                        ("a table at 0", 0, struct.pack(">Q", 0)),
                        ("a table of 2^32-1 entries", 8, b"\xff" * 4),
                        ("a table of no entries", 8, bytes(4)),
                        ("a reserved flag", 12, struct.pack(">I", 4)),
                        ("an unknown type", 16, b"\2"),
                        ("granularity of 8 bits", 17, b"\x08"),
                        ("granularity of 32 bits", 17, b"\x20"),
                        ("a name of 1024 bytes", 18, struct.pack(">H", 1024)),
                        ("a name past the directory", 18, struct.pack(">H", 1023)),
                        ("no name", 18, bytes(2)),
                        ("a NUL in the name", 24, b"b\0"),
                        ("extra data", 20, struct.pack(">I", 8)),
                        ("extra data of 2^32-1 bytes", 20, b"\xff" * 4)):
    @case("A58 bitmap directory, %s: refused in one line, not a byte changed" % label)
    def a58_entry(t, at=at, data=data):
        path, entry = bitmap_image(t)
        with open(path, "r+b") as f:
            f.seek(entry + at)
            f.write(data)
        before = file_hash(path)
        for r in (t.io(path, "read 0 512", ro=True), t.io(path, "write 0 512"),
                  t.img("bitmap", "--clear", path, "bm")):
            t.one_line(r, path, r"[Bb]itmap")
        t.expect(file_hash(path) == before, "changed")


@case("A58 two bitmaps of one name: refused")
def a58_twice(t):
    path, entry = bitmap_image(t)
    t.img("bitmap", "--add", path, "bn")
    with open(path, "r+b") as f:
        f.seek(bitmaps.entries(path)[1][1] + 24)
        f.write(b"bm")
    t.one_line(t.io(path, "read 0 512", ro=True), path, r"[Bb]itmap")


@case("A58 IN_USE: the bitmap is kept, never used, and can only be removed")
def a58_in_use(t):
    path, entry = bitmap_image(t)
    with open(path, "r+b") as f:
        f.seek(entry + 12)
        f.write(struct.pack(">I", 3))
    t.expect(t.io(path, "write -P 7 0 64k").rc == 0, "cannot be written")
    for action in ("--clear", "--enable", "--disable"):
        r = t.img("bitmap", action, path, "bm")
        t.expect(r.rc == 1 and "inconsistent" in r.err, "%s" % r)
    t.expect(bitmaps.read(path)["bm"][0] == 3, "the flag is gone")
    t.expect(t.img("bitmap", "--remove", path, "bm").rc == 0, "not removed")
    t.check_alike(path)


for label, entry_value in (("a reserved bit", 1 << 60), ("an unaligned cluster", 0x10200),
                           ("a cluster and all ones", 0x10001)):
    @case("A58 bitmap table, %s: not opened for writing, not a byte changed" % label)
    def a58_table(t, entry_value=entry_value):
        path, entry = bitmap_image(t)
        with open(path, "r+b") as f:
            f.seek(entry)
            table = struct.unpack(">Q", f.read(8))[0]
            f.seek(table)
            f.write(struct.pack(">Q", entry_value))
        before = file_hash(path)
        t.one_line(t.io(path, "write 0 512"), path, r"[Bb]itmap")
        t.expect(file_hash(path) == before, "changed")


for label, where in (("its own L1 table", 40), ("its refcount table", 48)):
    @case("A58 a bitmap's table over %s: nothing of it is written or freed" % label)
    def a58_over(t, where=where):
        path, entry = bitmap_image(t)
        with open(path, "r+b") as f:
            f.seek(where)
            target = f.read(8)
            f.seek(entry)
            f.write(target)
            f.seek(entry + 12)
            f.write(struct.pack(">I", 1))          # in use: its bits are not looked at
        t.img("bitmap", "--remove", path, "bm")
        t.reads_alike(path)
        t.expect(t.io(path, "write -P 9 1M 64k", "read -P 0x11 0 64k").rc == 0, "broken")


@case("A59 encryption header of a wrong length: refused by name")
def a59(t):
    img = plain(extensions=[(q.EXT_CRYPTO, b"\0" * 8)])
    img.header["crypt_method"] = 2
    path = t.save(img)
    t.one_line(t.io(path, "read 0 512", ro=True), path, r"encrypt|crypt|LUKS")


@case("A59 encryption header unaligned: refused by name")
def a59_unaligned(t):
    img = plain(extensions=[(q.EXT_CRYPTO, struct.pack(">QQ", 0x1200, 512))])
    img.header["crypt_method"] = 2
    path = t.save(img)
    t.one_line(t.io(path, "read 0 512", ro=True), path, r"encrypt|crypt|LUKS")


DATA = r"data.file"


@case("A60 data-file bit without a name: refused by name")
def a60(t):
    path = t.save(plain(incompatible=q.INCOMPAT_DATA_FILE))
    before = file_hash(path)
    for r in (t.io(path, "read 0 512", ro=True), t.io(path, "write 0 512")):
        t.one_line(r, path, DATA)
    t.expect(file_hash(path) == before, "changed")


@case("A61 data-file name without the bit: not used")
def a61(t):
    os.mkfifo(t.path("trap"))
    path = t.save(plain(extensions=[(q.EXT_DATA_FILE, b"trap")]))
    r = t.io(path, "read -P 0x11 0 4096", ro=True)
    if r.rc:
        t.one_line(r, path, DATA)


@case("A62 data_file_raw without a data file: no guest data is misread")
def a62(t):
    path = t.save(plain(autoclear=2))
    r = t.io(path, "read -P 0x11 0 4096", ro=True)
    if r.rc:
        t.one_line(r, path, DATA)


for name in (b'json:{"driver":"file","filename":"/etc/passwd"}', b"nbd://127.0.0.1:9/x",
             b"nfs://127.0.0.1/x", b"fat:/etc"):
    @case("A63 data file named %s: refused, nothing of the kind is opened" % name.decode())
    def a63(t, name=name):
        path = t.save(plain(data_file=name))
        before = file_hash(path)
        for r in (t.io(path, "read 0 512", ro=True), t.io(path, "write 0 512")):
            t.one_line(r, path, DATA + "|Unknown protocol 'fat'")
        t.expect(file_hash(path) == before, "changed")


# ---- the backing name ---------------------------------------------------------------

@case("A64 backing offset with size 0: no backing file")
def a64(t):
    img = plain()
    img.header["backing_file_offset"] = 1024
    path = t.save(img)
    r = t.img("info", "-f", "qcow2", path)
    if r.rc:
        t.refused(path, r"backing")
    else:
        t.expect("backing file:" not in r.out, "%s" % r)
        t.reads_alike(path)


@case("A64 backing size with offset 0: no backing file")
def a64_reverse(t):
    img = plain()
    img.header["backing_file_size"] = 8
    path = t.save(img)
    r = t.img("info", "-f", "qcow2", path)
    if r.rc:
        t.refused(path, r"backing")
    else:
        t.expect("backing file:" not in r.out, "%s" % r)
        t.reads_alike(path)


def name_refused(label, reason=r"backing", **header):
    @case(label)
    def run_case(t):
        img = overlay(b"base.img", cluster_bits=16)
        img.header.update(header)
        t.refused(t.save(img), reason)


name_refused("A65 backing name of 1024 bytes: refused", backing_file_size=1024)
name_refused("A65 backing name of 2^32-1 bytes: refused", backing_file_size=0xFFFFFFFF)
name_refused("A66 backing name crossing the first cluster: refused",
             backing_file_offset=65536 - 4, backing_file_size=8)
name_refused("A66 backing name in another cluster: refused", backing_file_offset=65536 * 3)
name_refused("A67 backing name over the header: refused", backing_file_offset=8)
name_refused("A67 backing name over the header's last field: refused", backing_file_offset=104)
name_refused("A68 backing offset 2^64-4: refused", backing_file_offset=(1 << 64) - 4)
name_refused("A68 backing offset 2^63: refused", backing_file_offset=1 << 63)


@case("A69 backing name with an embedded NUL: refused")
def a69_nul(t):
    with open(t.path("base"), "wb") as f:
        f.write(b"\x33" * MIB)
    t.refused(t.save(overlay(b"base\0.img")), r"backing", check=False, info=False)


@case("A69 backing name with a newline: one line of text")
def a69(t):
    path = t.save(overlay(b"no\nsuch\x1b[2Jfile"))
    before = file_hash(path)
    for r in (t.io(path, "read 0 512", ro=True), t.io(path, "write 0 512"),
              t.img("convert", "-f", "qcow2", "-O", "raw", path, t.path("out"))):
        t.one_line(r, path, r"backing|no")
    r = t.img("info", "-f", "qcow2", path)
    t.expect("\x1b" not in r.out + r.err, "escape sequences reach the terminal: %r" % r.out)
    t.expect(file_hash(path) == before, "changed")


PROTOCOLS = (b'json:{"driver":"raw","file":{"driver":"file","filename":"secret"}}', b"fat:rw:.",
             b"nfs://127.0.0.1/a", b"nbd://127.0.0.1:9/a", b"http://127.0.0.1:9/a",
             b"file:secret")
for name in PROTOCOLS:
    @case("A70 backing %s: refused; info shows it and opens nothing" % name.decode()[:24])
    def a70(t, name=name):
        with open(t.path("secret"), "wb") as f:
            f.write(b"\x77" * MIB)
        path = t.save(overlay(name))
        t.refused(path, r"backing|protocol|plain path|not allowed", info=False, check=False)
        r = t.img("info", "-f", "qcow2", path)
        t.expect(r.rc == 0 and "backing file:" in r.out, "info: %s" % r)


@case("A70 a writable image is never made to use a protocol by its backing's backing")
def a70_deep(t):
    t.save(overlay(b"nbd://127.0.0.1:9/a"), "mid.qcow2")
    path = t.save(overlay(b"mid.qcow2", backing_format=b"qcow2"), "top.qcow2")
    t.refused(path, r"backing|protocol|plain path|not allowed", info=False, check=False)


# ---- loops and depth -------------------------------------------------------------------

LOOP = r"loop|itself|circular|too (deep|long|many)|more than|chain"


@case("A71 an image that is its own backing file: refused")
def a71(t):
    path = t.save(overlay(b"test.qcow2", backing_format=b"qcow2"))
    t.refused(path, LOOP, info=False, check=False)
    t.one_line(t.img("info", "-f", "qcow2", "--backing-chain", path), path, LOOP)


def loop_case(label, link):
    @case(label)
    def a72(t):
        t.save(overlay(b"b.qcow2", backing_format=b"qcow2"), "a.qcow2")
        t.save(overlay(link(t), backing_format=b"qcow2"), "b.qcow2")
        for name in ("a.qcow2", "b.qcow2"):
            t.refused(t.path(name), LOOP, info=False, check=False)


def by_symlink(t):
    os.symlink("a.qcow2", t.path("s.qcow2"))
    return b"s.qcow2"


def by_hardlink(t):
    os.link(t.path("a.qcow2"), t.path("h.qcow2"))
    return b"h.qcow2"


def by_dots(t):
    return ("../%s/./a.qcow2" % os.path.basename(t.tmp)).encode()


loop_case("A72 A -> B -> A by path: refused", lambda t: b"a.qcow2")
loop_case("A72 A -> B -> A by a symbolic link: refused", by_symlink)
loop_case("A72 A -> B -> A by a hard link: refused", by_hardlink)
loop_case("A72 A -> B -> A by ../: refused", by_dots)
loop_case("A72 A -> B -> A by an absolute path: refused", lambda t: t.path("a.qcow2").encode())


def chain(t, depth):
    """c0 is raw data; each layer has one cluster of its own."""
    with open(t.path("c0"), "wb") as f:
        f.write(b"\x01" * 65536)
    for i in range(1, depth):
        img = q.Image(size=65536, cluster_bits=9, backing=b"c%d" % (i - 1),
                      backing_format=b"raw" if i == 1 else b"qcow2")
        if i < 128:
            img.write(512 * i, bytes([i]) * 512)
        img.save(t.path("c%d" % i))
    return t.path("c%d" % (depth - 1))


@case("A73 a chain of 200: works")
def a73(t):
    top = chain(t, 200)
    ours = t.content(top)
    want = b"".join(bytes([max(i, 1)]) * 512 for i in range(128))
    t.expect(ours == want, "reads differently")
    r = t.io(top, "write -P 0xee 0 512", "read -P 0xee 0 512", "read -P 0x7f 65024 512")
    t.expect(r.rc == 0, "%s" % r)


@case("A73 a chain of 10,000: refused at the stated limit")
def a73_deep(t):
    top = chain(t, 10000)
    r = t.io(top, "read 0 512", ro=True, cpu=10 if os.environ.get("SAN") else 2)
    t.one_line(r, top, LOOP)
    t.expect("512" in r.err, "the limit is not stated: %s" % r)


# ---- what a backing name may lead to ------------------------------------------------------

@case("A74 ../../etc/shadow: info opens nothing")
def a74(t):
    os.makedirs(t.path("x/y"))
    os.makedirs(t.path("etc"))
    os.mkfifo(t.path("etc/shadow"))
    path = t.save(overlay(b"../../etc/shadow"), "x/y/test.qcow2")
    r = t.img("info", "-f", "qcow2", path)
    t.expect(r.rc == 0 and "../../etc/shadow" in r.out, "info: %s" % r)


@case("A74 a backing file that is not there: refused, naming it; info works")
def a74_absent(t):
    path = t.save(overlay(b"../absent.img", backing_format=b"raw"))
    t.refused(path, r"absent\.img.*No such file", info=False, check=False)
    r = t.img("info", "-f", "qcow2", path)
    t.expect(r.rc == 0, "info: %s" % r)


def a75(label, make, fmt):
    @case("A75 backing is %s (%s): refused, no hang" % (label, fmt or "no format"))
    def run_case(t):
        name = make(t)
        path = t.save(overlay(name, backing_format=fmt))
        t.refused(path, r".", info=False, check=False)


def make_fifo(t):
    os.mkfifo(t.path("fifo"))
    return b"fifo"


def make_socket(t):
    cwd = os.getcwd()
    os.chdir(t.tmp)
    s = socket.socket(socket.AF_UNIX)
    s.bind("sock")
    os.chdir(cwd)
    return b"sock"


def make_directory(t):
    os.mkdir(t.path("dir"))
    return b"dir"


for fmt in (b"raw", b"qcow2", None):
    a75("a FIFO", make_fifo, fmt)
    a75("a socket", make_socket, fmt)
    a75("/dev/zero", lambda t: b"/dev/zero", fmt)
    a75("a directory", make_directory, fmt)


@case("A75 the image itself is a FIFO, /dev/zero (no bytes), a directory: an error, no hang")
def a75_itself(t):
    os.mkfifo(t.path("fifo"))
    for path in (t.path("fifo"), "/dev/zero", t.tmp):
        for ro in (True, False):
            for fmt in ("qcow2", "raw"):
                words = ["-f", fmt] + (["-r"] if ro else []) + ["-c", "read 0 512", path]
                r = t.run(IO, *words)
                t.expect(r.rc == 1 and (os.path.basename(path) in r.err or
                                        "read failed" in r.out), "%s" % r)


for size, label in ((300000 // 512 * 512, "shorter"), (4 * MIB, "longer"),
                    (300001, "not a multiple of 512"), (0, "empty"), (1, "one byte long")):
    @case("A76 backing %s: reads as with the oracle, and writes" % label)
    def a76(t, size=size):
        with open(t.path("base.img"), "wb") as f:
            f.write((bytes(range(1, 252)) * (size // 251 + 1))[:size])
        path = t.save(overlay(b"base.img", backing_format=b"raw"))
        base = file_hash(t.path("base.img"))
        before = t.reads_alike(path)
        off = max(0, min(size, MIB) // 4096 * 4096 - 1024) + 100
        r = t.io(path, "write -P 0x99 %d 700" % off)
        t.expect(r.rc == 0, "%s" % r)
        after = t.reads_alike(path)
        t.expect(before is None or after == before[:off] + b"\x99" * 700 + before[off + 700:],
                 "copy-on-write took wrong bytes")
        t.expect(file_hash(t.path("base.img")) == base, "the backing file changed")
        t.sound(path)


@case("A77 raw backing whose bytes look like qcow2: stays raw")
def a77(t):
    inner = plain()
    data = inner.build()
    with open(t.path("base.img"), "wb") as f:
        f.write(data + bytes(MIB - len(data)))
    path = t.save(overlay(b"base.img", backing_format=b"raw"))
    ours = t.reads_alike(path)
    t.expect(ours is None or ours[:4] == b"QFI\xfb", "the backing file was probed")


@case("A78 backing format says qcow2, content is raw: refused")
def a78(t):
    with open(t.path("base.img"), "wb") as f:
        f.write(b"\x33" * MIB)
    path = t.save(overlay(b"base.img", backing_format=b"qcow2"))
    t.refused(path, r"base\.img.*not in qcow2 format|not in qcow2 format.*base\.img",
              info=False, check=False)


@case("A78 backing format nobody knows: refused, naming it")
def a78_unknown(t):
    with open(t.path("base.img"), "wb") as f:
        f.write(b"\x33" * MIB)
    path = t.save(overlay(b"base.img", backing_format=b"frob"))
    t.refused(path, r"frob", info=False, check=False)


@case("A78 backing format that is a protocol or a filter: refused or plain bytes")
def a78_protocol(t):
    with open(t.path("base.img"), "wb") as f:
        f.write(b"\x33" * MIB)
    for fmt in (b"nbd", b"nfs", b"http"):
        path = t.save(overlay(b"base.img", backing_format=fmt))
        t.refused(path, fmt.decode(), info=False, check=False)


# ---- the rules at the head ----------------------------------------------------------------

@case("rule: info opens nothing but the file it was given (FIFO as backing and data file)")
def rule_info(t):
    os.mkfifo(t.path("trap"))
    for fmt in (b"raw", b"qcow2", None):
        path = t.save(overlay(b"trap", backing_format=fmt))
        for words in (("info",), ("info", "-f", "qcow2"), ("info", "--output=json")):
            r = t.img(*words, path)
            t.expect(r.rc == 0 and "trap" in r.out, "%s" % r)


@case("rule: info opens nothing but the file it was given (strace)")
def rule_strace(t):
    with open(t.path("base.img"), "wb") as f:
        f.write(b"\x33" * MIB)
    path = t.save(overlay(b"base.img", backing_format=b"raw"))
    log = t.path("strace.log")
    r = run("strace", "-f", "-e", "trace=open,openat,openat2,execve,connect,stat,newfstatat,access",
            "-o", log, IMG, "info", path, limits=False)
    if r.rc in (1, 127) and not os.path.exists(log):
        return t.skip("no strace here")
    with open(log) as f:
        text = f.read()
    if "test.qcow2" not in text:
        return t.skip("strace does not work here")
    t.expect("base.img" not in text, "info touched the backing file:\n%s" %
             "\n".join(line for line in text.split("\n") if "base.img" in line))


@case("rule: a writable image is never probed (guest-written qcow2 header in a raw image)")
def rule_probe(t):
    os.mkfifo(t.path("trap"))
    evil = overlay(b"trap", backing_format=b"raw").build()
    path = t.path("guest.raw")
    with open(path, "wb") as f:
        f.write(bytes(MIB))
    # Opened for writing without a format it is a guess: writing a header to
    # sector 0 must be refused, whatever else is allowed.
    with open(t.path("sector"), "wb") as f:
        f.write(evil[:512])
    r = t.run(IO, "-c", "write -s %s 0 512" % t.path("sector"), path)
    with open(path, "rb") as f:
        t.expect(f.read(4) != b"QFI\xfb", "a guessed raw image took a qcow2 header: %s" % r)
    t.expect(r.rc != 0, "the write was not refused: %s" % r)


@case("rule: names inside images are plain paths: a path with a colon is a path")
def rule_colon(t):
    os.mkdir(t.path("a:b"))
    with open(t.path("a:b/base.img"), "wb") as f:
        f.write(b"\x33" * MIB)
    path = t.save(overlay(b"./a:b/base.img", backing_format=b"raw"))
    r = t.io(path, "read -P 0x33 0 4096", ro=True)
    t.expect(r.rc == 0, "%s" % r)


sys.exit(main())
