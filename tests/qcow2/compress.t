#!/usr/bin/env python3
"""compress.t - compressed clusters that we write: packed, read back alike by the
oracle, written over, discarded and compressed again.

For each cluster size and type: a picture with holes, text, noise and zeros at odd
places is converted with -c and compared; the image is no larger than the oracle's
and has as many compressed clusters; random compressed and normal writes, zeroes
and discards go through rewrite (a program beside this one) onto it, with the expected
content in a raw file beside it; then check (the oracle's and ours), compare, and a conversion of
the result.  COMPRESS_SEED overrides the seed."""
import json
import os
import random
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import BUILD, IMG, IO, QEMU_IMG, QEMU_IO, attempt, finish, must  # noqa: E402

REWRITE = os.path.join(BUILD, "tests/qcow2/rewrite")
SEED = int(os.environ.get("COMPRESS_SEED", "20261122"))
MIB = 1 << 20


def picture(path, size, rnd):
    with open(path, "wb") as f:
        f.truncate(size)
        for _ in range(40):
            f.seek(rnd.randrange(size // 512) * 512)
            n = min(rnd.randrange(1, 400) * 512, size - f.tell())
            kind = rnd.random()
            text = b"cluster %d of text; " % rnd.randrange(1000)
            f.write(rnd.randbytes(n) if kind < 0.3 else bytes(n) if kind < 0.4
                    else (text * (n // len(text) + 1))[:n])


def compressed_clusters(path):
    return json.loads(must(QEMU_IMG, "check", "--output=json", path).stdout).get("compressed-clusters", 0)


def alike(raw, image):
    must(QEMU_IMG, "check", "-q", image)
    must(IMG, "check", "-q", image)
    must(QEMU_IMG, "compare", "-f", "raw", "-F", "qcow2", raw, image)
    must(IMG, "compare", "-f", "raw", "-F", "qcow2", raw, image)


def changes(rnd, size, cluster, count):
    """Changes as rewrite knows them: (what, pattern, offset, length)."""
    out = []
    for _ in range(count):
        kind = rnd.randrange(5)
        if kind < 2:                                # compressed, whole clusters
            off = rnd.randrange(-(-size // cluster)) * cluster
            length = min(rnd.randrange(1, max(2, MIB // cluster)) * cluster, size - off)
            out.append(("compress", rnd.randrange(1, 255), off, length))
            continue
        off = rnd.randrange(size // 512) * 512
        length = min(rnd.randrange(1, 300) * 512, size - off)
        if kind == 2:
            out.append(("write", rnd.randrange(1, 255), off, length))
        elif kind == 3:
            out.append((rnd.choice(["zero", "unmap"]), 0, off, length))
        else:
            off = off // cluster * cluster
            length = min(max(length // cluster, 1) * cluster, size - off)
            out.append(("discard", 0, off, length))
        if rnd.random() < 0.15:
            out.append(("flush", 0, 0, 0))
    return out


def rewrite(image, raw, todo):
    """The changes, and what a reader must find after them."""
    must(REWRITE, image, *(",".join(map(str, c)) for c in todo))
    expect(raw, todo)


def expect(raw, todo):
    with open(raw, "r+b") as f:
        for _, pattern, off, length in todo:
            f.seek(off)
            f.write(bytes([pattern]) * length)


def oracle(image, raw, todo):
    """All but the compressed writes by qemu-io, which compresses only what is not there."""
    commands = {"write": "write -q -P {0}", "zero": "write -q -z", "unmap": "write -q -z -u",
                "discard": "discard -q"}
    todo = [c for c in todo if c[0] in commands]
    words = [(commands[what] + " {1} {2}").format(*rest) for what, *rest in todo]
    must(QEMU_IO, "-f", "qcow2", "-d", "unmap", *(a for w in words for a in ("-c", w)), image)
    expect(raw, todo)


def whole_life(cluster, kind, rnd, extra=""):
    bytes_ = int(cluster[:-1]) * {"k": 1024, "M": MIB}[cluster[-1]] if not cluster.isdigit() \
        else int(cluster)
    size = (3 * MIB if bytes_ < 65536 else 9 * MIB) + 3 * 512
    options = "cluster_size=%s,compression_type=%s%s" % (cluster, kind, extra)
    picture("raw", size, rnd)
    must(IMG, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "ours")
    alike("raw", "ours")
    must(QEMU_IMG, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "theirs")
    ours, theirs = os.path.getsize("ours"), os.path.getsize("theirs")
    # At 512 bytes a window makes no difference: each choice of the compressor does.
    assert ours <= theirs * (1.005 if bytes_ < 65536 else 1), "%d > %d bytes" % (ours, theirs)
    assert ours % 512 == 0, "ends inside a sector"
    a, b = compressed_clusters("ours"), compressed_clusters("theirs")
    assert abs(a - b) <= b // 50, "%d compressed clusters, theirs has %d" % (a, b)
    for _ in range(3):
        rewrite("ours", "raw", changes(rnd, size, bytes_, 25))
        alike("raw", "ours")
    oracle("ours", "raw", changes(rnd, size, bytes_, 8))
    alike("raw", "ours")
    must(IMG, "convert", "-c", "-O", "qcow2", "-o", options, "ours", "again")
    alike("raw", "again")
    must(IMG, "convert", "-O", "raw", "again", "back")
    assert open("back", "rb").read() == open("raw", "rb").read(), "not the same after all"


def freed(cluster):
    """All compressed clusters discarded: their host clusters are free, and used again."""
    must(QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", "cluster_size=%d" % cluster, "f", "8M")
    for byte in (1, 2, 3):
        must(IO, "-f", "qcow2", "-c", "write -q -c -P %d 0 8M" % byte, "f")
        must(IO, "-f", "qcow2", "-c", "discard -q 0 8M", "f")
    must(QEMU_IMG, "check", "-q", "f")
    assert compressed_clusters("f") == 0
    used = os.path.getsize("f")
    assert used < 8 * cluster + MIB, "the file grew to %d bytes" % used


def refused():
    """What QEMU refuses, too."""
    must(QEMU_IMG, "create", "-q", "-f", "qcow2", "r", "1M")
    def write(what, why):
        p = must(IO, "-f", "qcow2", "-c", "write -q -c " + what, "r", codes=(1,))
        assert why in p.stdout + p.stderr, p

    for what in ("512 64k", "0 512", "64k 65k"):
        write(what, "Invalid argument")
    must(IO, "-f", "qcow2", "-c", "write -q -c 0 64k", "r")
    write("0 64k", "Input/output error")
    must(QEMU_IMG, "check", "-q", "r")


def in_one_session():
    """Written over, freed and packed again before anything is flushed."""
    rnd = random.Random(SEED + 1)
    must(QEMU_IMG, "create", "-q", "-f", "qcow2", "s", "4M")
    must(QEMU_IMG, "create", "-q", "-f", "raw", "raw", "4M")
    rewrite("s", "raw", [c for c in changes(rnd, 4 * MIB, 65536, 200) if c[0] != "flush"])
    alike("raw", "s")


def narrow(bits):
    """Few or no pieces may share a host cluster."""
    rnd = random.Random(SEED + bits)
    picture("raw", 5 * MIB, rnd)
    options = "cluster_size=4k,refcount_bits=%d" % bits
    must(IMG, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "ours")
    alike("raw", "ours")
    rewrite("ours", "raw", changes(rnd, 5 * MIB, 4096, 40))
    alike("raw", "ours")


CASES = [("clusters of %s, %s" % (c, k),
          lambda c=c, k=k: whole_life(c, k, random.Random("%d %s %s" % (SEED, c, k))))
         for c in ("512", "4k", "64k", "2M") for k in ("zlib", "zstd")]
CASES += [("refcounts of %d bits" % b, lambda b=b: narrow(b)) for b in (1, 2)]
CASES += [("refcounts of %d bits" % b, lambda b=b: whole_life(
    "64k", "zlib", random.Random(SEED + b), ",refcount_bits=%d" % b)) for b in (8, 64)]
CASES += [("discarded: the space is used again", lambda: freed(65536)),
          ("misaligned, or written before: platter-io refuses", refused),
          ("one session without a flush", in_one_session)]
for case, steps in CASES:
    with tempfile.TemporaryDirectory(prefix="platter-compress-") as place:
        os.chdir(place)
        attempt(case, steps)
        os.chdir("/")
finish()
