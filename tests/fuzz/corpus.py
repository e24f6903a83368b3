"""corpus.py FORMAT DIR - small images of every kind as seeds for the fuzzers; the cases
that fuzzing found are files in tests/fuzz/found/FORMAT/."""
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "qcow2"))
sys.path.insert(0, os.path.join(HERE, "..", "formats"))
import bitmaps                                                  # noqa: E402
import qcow2img as q                                            # noqa: E402
import smallimg                                                 # noqa: E402
import vhdximg                                                  # noqa: E402
import vmdkimg                                                  # noqa: E402


def seeds():
    for version in (2, 3):
        img = q.Image(size=64 << 10, version=version, cluster_bits=9)
        img.write(0, b"\1" * 2048)
        img.write_compressed(8192, q.raw_deflate(b"\7" * 512))
        yield "v%d" % version, img
    for order in (0, 3, 6):
        img = q.Image(size=64 << 10, cluster_bits=9, refcount_order=order)
        img.write(1024, b"\1" * 512)
        img.zero(4096)
        img.zero(4608, prealloc=True)
        yield "order%d" % order, img
    img = q.Image(size=64 << 10, cluster_bits=9, incompatible=1, compatible=1)
    img.set_refcount(img.write(0, b"\1" * 512), 0)
    yield "dirty", img
    img = q.Image(size=64 << 10, cluster_bits=12, backing=b"base.img", backing_format=b"raw",
                  extensions=[(q.EXT_FEATURE_TABLE, q.feature_entry(0, 0, b"dirty bit"))])
    img.write(4096, b"\1" * 4096)
    yield "overlay", img
    img = q.Image(size=64 << 10, cluster_bits=9, incompatible=8, compression_type=1)
    img.write_compressed(0, b"\x28\xb5\x2f\xfd\x00\x30\x03\x10\x00\x01\xfc\x01\x00")
    yield "zstd", img
    yield "snapshot", with_snapshot()
    yield "bitmap", with_bitmap()


def with_snapshot():
    """One snapshot of when nothing was written yet."""
    img = q.Image(size=64 << 10, cluster_bits=9)
    l1, table = img.alloc(), img.alloc()
    img.write(0, b"\1" * 512)
    img.header.update(nb_snapshots=1, snapshots_offset=table)
    img.poke(table, struct.pack(">QIHHIIQIIQQQ2s", l1, img.l1_size, 1, 1, 0, 0, 0, 0, 24, 0,
                                img.size, 0, b"1a"))
    return img


def with_bitmap():
    """One bitmap that records, with some bits set."""
    img = q.Image(size=64 << 10, cluster_bits=9, autoclear=1)
    directory, table, bits = img.alloc(), img.alloc(), img.alloc()
    img.write(0, b"\1" * 512)
    entry = struct.pack(">QIIBBHI1s7x", table, 1, 2, 1, 9, 1, 0, b"b")
    img.extensions.append((bitmaps.EXT, struct.pack(">IIQQ", 1, 0, len(entry), directory)))
    img.poke(directory, entry)
    img.poke64(table, bits)
    img.poke(bits, b"\x81\1")
    return img


def luks_seeds():
    """Headers of tests/fuzz/luks.c's image: zeros and 1 where it has digests, salts and
    iterations of its own.  The first is opened by its password."""
    for name, cipher, mode, digest, key, other in (
            ("own", b"aes", b"cbc-plain64", b"sha1", 16, False),
            ("two", b"aes", b"cbc-plain64", b"sha1", 16, True),
            ("xts", b"aes", b"xts-plain64", b"sha256", 32, False),
            ("essiv", b"aes", b"cbc-essiv:sha256", b"sha256", 16, False)):
        room = -(-key * 4000 // 4096) * 8
        head = struct.pack(">6sH32s32s32sII52xI40s", b"LUKS\xba\xbe", 1, cipher, mode, digest,
                           8 + 8 * room, key, 1, b"6b3a5c61-7a38-4b4f-8e0e-3f0d2f6c9a10")
        for i in range(8):
            active = i == 0 or (other and i == 1)
            head += struct.pack(">II32sII", 0x00ac71f3 if active else 0xdead, int(active),
                                bytes(32), 8 + i * room, 4000)
        yield name, head


def make(fmt, directory):
    """Writes the seeds of a format; their paths."""
    if fmt == "qcow2":
        return [img.save(os.path.join(directory, name + ".qcow2")) for name, img in seeds()]
    paths = []
    own = {"vmdk": vmdkimg.seeds, "vhdx": vhdximg.seeds, "luks": luks_seeds}.get(fmt)
    for name, data in own() if own else smallimg.seeds(fmt):
        paths.append(os.path.join(directory, "%s.%s" % (name, fmt)))
        with open(paths[-1], "wb") as f:
            f.write(data)
    return paths


if __name__ == "__main__":
    os.makedirs(sys.argv[2], exist_ok=True)
    print("\n".join(make(sys.argv[1], sys.argv[2])))
