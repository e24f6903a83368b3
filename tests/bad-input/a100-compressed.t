#!/usr/bin/env python3
"""a100-compressed.t - A100..A108: compressed clusters that are cut, lie about
their size or decompress to something else.  EIO, never other data."""
import os
import struct
import sys
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from badinput import SAN, q, case, main                         # noqa: E402

CS = 65536
TEXT = (b"All work and no play. " * 4000)[:CS]


def image(stream, nbytes=None, **kw):
    """Cluster 0 is plain, cluster 1 the stream (said to be of nbytes)."""
    img = q.Image(size=4 << 20, **kw)
    img.write(0, b"\1" * img.cs)
    host = img.write_compressed(CS, stream)
    if nbytes is not None:
        img.set_entry(CS, img.compressed_entry(host, nbytes), bitmap=0)
    img.host = host
    return img


def eio(label, make):
    @case(label)
    def run_case(t):
        path = t.save(make())
        t.read_fails(path, CS)
        t.expect(t.io(path, "read -P 1 0 64k", ro=True).rc == 0, "the others do not read")
        r = t.io(path, "write -P 9 %d 512" % (CS + 512))
        t.expect(r.rc == 1 and "Input/output error" in r.out,
                 "copied from a cluster that cannot be read: %s" % r)
        t.expect(t.io(path, "read -P 1 0 64k", ro=True).rc == 0, "the others do not read")
        r = t.io(path, "write -P 9 64k 64k", "read -P 9 64k 64k")
        t.expect(r.rc == 0, "cannot be overwritten as a whole: %s" % r)


def moved(offset):
    img = image(q.raw_deflate(TEXT))
    img.set_entry(CS, img.compressed_entry(offset, 4096), bitmap=0)
    return img


@case("A100 sectors past the end of the file, stream complete: reads as with the oracle")
def a100_fine(t):
    stream = q.raw_deflate(TEXT)
    img = image(stream, nbytes=len(stream) + 4096)
    path = t.save(img, length=img.host + len(stream))
    ours = t.reads_alike(path)
    t.expect(ours is None or ours[CS:2 * CS] == TEXT, "wrong data")


eio("A100 stream past the end of the file: EIO", lambda: moved(1 << 30))
eio("A100 stream near 2^54: EIO", lambda: moved((1 << 54) - 512 - CS))
eio("A101 stream inside the header: EIO", lambda: moved(8))
eio("A102 truncated deflate: EIO",
    lambda: image(q.raw_deflate(os.urandom(CS // 2) * 2)[:20000], nbytes=20000))
eio("A104 expands to less than a cluster: EIO", lambda: image(q.raw_deflate(TEXT[:CS - 1])))
eio("A104 expands to nothing: EIO", lambda: image(q.raw_deflate(b"")))
eio("A105 bad Huffman code: EIO", lambda: image(b"\x05" + b"\xff" * 4000))
eio("A105 zlib header instead of raw deflate: EIO", lambda: image(zlib.compress(TEXT)))
eio("A105 a distance before the start: EIO", lambda: image(b"\x4b\x04\xe1\xff" * 300))


@case("A103 expands to more than a cluster: EIO or its first cluster, never more")
def a103(t):
    path = t.save(image(q.raw_deflate(TEXT + b"more" * 100000)))
    r = t.io(path, "read 64k 64k", ro=True)
    if r.rc == 0:
        t.reads_alike(path)
    else:
        t.expect("Input/output error" in r.out, "%s" % r)


ZSTD = dict(incompatible=q.INCOMPAT_COMPRESSION, compression_type=1)
FRAME = struct.pack("<I", 0xFD2FB528)


def zstd_raw(data):
    """A frame of raw blocks, no content size, a window of 64 KiB."""
    out = FRAME + b"\x00" + b"\x30"
    for pos in range(0, len(data), 32768):
        chunk = data[pos:pos + 32768]
        last = pos + len(chunk) == len(data)
        out += struct.pack("<I", last | len(chunk) << 3)[:3] + chunk
    return out


@case("A106 zstd, two frames for one cluster: reads as with the oracle, or EIO")
def a106_frames(t):
    path = t.save(image(zstd_raw(TEXT[:30000]) + zstd_raw(TEXT[30000:])[:CS], **ZSTD))
    r = t.io(path, "read 64k 64k", ro=True)
    if r.rc == 0:
        t.reads_alike(path)


eio("A106 zstd, window of 2^31: EIO, memory bounded",
    lambda: image(FRAME + b"\x00" + b"\xa8" + b"\x01\x00\x08" + b"x" * 4000, **ZSTD))
eio("A106 zstd, window of 2^41: EIO, memory bounded",
    lambda: image(FRAME + b"\x00" + b"\xf8" + b"\x01\x00\x08" + b"x" * 4000, **ZSTD))
eio("A106 zstd, a dictionary nobody has: EIO",
    lambda: image(FRAME + b"\x03" + b"\x30" + b"\xde\xad\xbe\xef" + b"\x01\x00\x08" +
                  b"x" * 4000, **ZSTD))
eio("A106 zstd, skippable frame only: EIO",
    lambda: image(struct.pack("<II", 0x184D2A50, 4000) + b"x" * 4000, **ZSTD))
eio("A106 zstd, garbage: EIO", lambda: image(b"\xff" * 4096, **ZSTD))
eio("A106 zstd, less than a cluster: EIO", lambda: image(zstd_raw(TEXT[:1000]), **ZSTD))


@case("A107 300,000 L2 entries to one bomb: linear time, bounded memory")
def a107(t):
    cs, count = 4096, 300000
    img = q.Image(size=count * cs, cluster_bits=12)
    host = img.write_compressed(0, q.raw_deflate(bytes(cs)))
    entry = img.compressed_entry(host, 64)
    per = cs // 8
    for table in range(0, count, per):
        at = img.l2_table(table * cs)
        n = min(per, count - table)
        img.buf[at:at + 8 * n] = struct.pack(">Q", entry) * n
    path = t.save(img)
    r = t.img("convert", "-f", "qcow2", "-O", "raw", path, t.path("out.raw"),
              cpu=60 if SAN else 8)
    t.expect(r.rc == 0, "%s" % r)
    t.expect(os.path.getsize(t.path("out.raw")) == count * cs, "size")
    with open(t.path("out.raw"), "rb") as f:
        t.expect(not any(f.read(64 << 20)), "not zeros")
    os.unlink(t.path("out.raw"))


@case("A108 a stream across two host clusters: read, and both are counted")
def a108(t):
    img = q.Image(size=4 << 20)
    img.write(0, b"\1" * CS)
    host = img.alloc(2)
    data = os.urandom(30000) + bytes(CS - 30000)
    stream = q.raw_deflate(data)
    img.write_compressed(CS, stream, host + CS - 10000)
    path = t.save(img)
    ours = t.reads_alike(path)
    t.expect(ours is None or ours[CS:2 * CS] == data, "wrong data")
    t.check_alike(path)
    img.set_refcount(host + CS, 0)
    path = t.save(img)
    t.check_alike(path)
    t.check_finds(path)
    r = t.img("check", "-f", "qcow2", "-r", "all", path)
    t.expect(r.rc == 0, "%s" % r)
    t.sound(path)
    t.io(path, "write -P 9 1M 256k")
    r = t.content(path)
    t.expect(r is None or r[CS:2 * CS] == data, "the stream's second cluster was overwritten")


@case("A108 compressed clusters sharing a host cluster: freed only when all are gone")
def a108_shared(t):
    img = q.Image(size=4 << 20)
    host = img.alloc()
    stream = q.raw_deflate(TEXT)
    for i in range(4):
        img.write_compressed(i * CS, stream, host + 4096 * i)
    img.set_refcount(host, 4)
    path = t.save(img)
    t.check_alike(path)
    r = t.io(path, "write -P 9 0 64k", "discard 64k 64k", "write -z 128k 64k",
             "write -P 8 1M 256k")
    t.expect(r.rc == 0, "%s" % r)
    ours = t.reads_alike(path)
    t.expect(ours is None or ours[3 * CS:4 * CS] == TEXT, "the last one was lost")
    t.sound(path)


sys.exit(main())
