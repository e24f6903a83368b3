#!/usr/bin/env python3
"""compress.t - compressed clusters that we write: packed, read back alike by the
oracle, written over, discarded and compressed again.

For each cluster size and type: a picture with holes, text, noise and zeros at odd
places is converted with -c and compared; the image is no larger than the oracle's
and has as many compressed clusters; random compressed and normal writes, zeroes
and discards go through platter-io onto it, with the expected content in a raw
file beside it; then check (the oracle's and ours), compare, and a conversion of
the result.  COMPRESS_SEED overrides the seed."""
import json
import os
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from checklib import IMG, QEMU_IMG, QEMU_IO, Tap                # noqa: E402

IMG, QEMU_IMG, QEMU_IO = map(os.path.abspath, (IMG, QEMU_IMG, QEMU_IO))
IO = os.path.join(os.path.dirname(IMG), "platter-io")
SEED = int(os.environ.get("COMPRESS_SEED", "20261122"))
MIB = 1 << 20


def run(*argv, status=0):
    p = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=120)
    if p.returncode != status:
        raise AssertionError("%s: exit %d\n%s%s" % (" ".join(map(str, argv)), p.returncode,
                                                    p.stdout[-800:], p.stderr[-800:]))
    return p.stdout


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
    return json.loads(run(QEMU_IMG, "check", "--output=json", path)).get("compressed-clusters", 0)


def alike(raw, image):
    run(QEMU_IMG, "check", "-q", image)
    run(IMG, "check", "-q", image)
    run(QEMU_IMG, "compare", "-f", "raw", "-F", "qcow2", raw, image)
    run(IMG, "compare", "-f", "raw", "-F", "qcow2", raw, image)


def operations(rnd, size, cluster, count):
    """The same commands for the image and for the raw file."""
    image, raw = [], []
    for _ in range(count):
        kind = rnd.randrange(5)
        if kind < 2:                                # compressed, whole clusters
            n = -(-size // cluster)
            first = rnd.randrange(n)
            off = first * cluster
            length = min(rnd.randrange(1, max(2, MIB // cluster)) * cluster, size - off)
            what = "-P %d %d %d" % (rnd.randrange(1, 255), off, length)
            image.append("write -q -c " + what)
            raw.append("write -q " + what)
            continue
        off = rnd.randrange(size // 512) * 512
        length = min(rnd.randrange(1, 300) * 512, size - off)
        if kind == 2:
            command = "write -q -P %d %d %d" % (rnd.randrange(1, 255), off, length)
        elif kind == 3:
            command = "write -q -z %s %d %d" % (rnd.choice(["", "-u"]), off, length)
        else:
            off, length = off // cluster * cluster, max(length // cluster, 1) * cluster
            length = min(length, size - off)
            image.append("discard -q %d %d" % (off, length))
            raw.append("write -q -z %d %d" % (off, length))
            continue
        image.append(command)
        raw.append(command)
        if rnd.random() < 0.15:
            image.append("flush")
    return image, raw


def commands(list_):
    return [a for c in list_ for a in ("-c", c)]


def whole_life(cluster, kind, rnd, extra=""):
    bytes_ = int(cluster[:-1]) * {"k": 1024, "M": MIB}[cluster[-1]] if not cluster.isdigit() \
        else int(cluster)
    size = (3 * MIB if bytes_ < 65536 else 9 * MIB) + 3 * 512
    options = "cluster_size=%s,compression_type=%s%s" % (cluster, kind, extra)
    picture("raw", size, rnd)
    run(IMG, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "ours")
    alike("raw", "ours")
    run(QEMU_IMG, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "theirs")
    ours, theirs = os.path.getsize("ours"), os.path.getsize("theirs")
    # At 512 bytes a window makes no difference: each choice of the compressor does.
    assert ours <= theirs * (1.005 if bytes_ < 65536 else 1), "%d > %d bytes" % (ours, theirs)
    assert ours % 512 == 0, "ends inside a sector"
    a, b = compressed_clusters("ours"), compressed_clusters("theirs")
    assert abs(a - b) <= b // 50, "%d compressed clusters, theirs has %d" % (a, b)
    for _ in range(3):
        image, raw = operations(rnd, size, bytes_, 25)
        run(IO, "-f", "qcow2", *commands(image), "ours")
        run(IO, "-f", "raw", *commands(raw), "raw")
        alike("raw", "ours")
    image, raw = operations(rnd, size, bytes_, 8)       # the oracle's turn to write
    plain = [c for c in image if "-c" not in c]
    run(QEMU_IO, "-f", "qcow2", "-d", "unmap", *commands(plain), "ours")
    run(IO, "-f", "raw", *commands([r for c, r in zip([c for c in image if c != "flush"], raw)
                                    if "-c" not in c]), "raw")
    alike("raw", "ours")
    run(IMG, "convert", "-c", "-O", "qcow2", "-o", options, "ours", "again")
    alike("raw", "again")
    run(IMG, "convert", "-O", "raw", "again", "back")
    assert open("back", "rb").read() == open("raw", "rb").read(), "not the same after all"


def freed(cluster):
    """All compressed clusters discarded: their host clusters are free, and used again."""
    run(QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", "cluster_size=%d" % cluster, "f", "8M")
    for byte in (1, 2, 3):
        run(IO, "-f", "qcow2", "-c", "write -q -c -P %d 0 8M" % byte, "f")
        run(IO, "-f", "qcow2", "-c", "discard -q 0 8M", "f")
    run(QEMU_IMG, "check", "-q", "f")
    assert compressed_clusters("f") == 0
    used = os.path.getsize("f")
    assert used < 8 * cluster + MIB, "the file grew to %d bytes" % used


def refused():
    """What QEMU refuses, too."""
    run(QEMU_IMG, "create", "-q", "-f", "qcow2", "r", "1M")
    for what in ("512 64k", "0 512", "64k 65k"):
        p = subprocess.run([IO, "-f", "qcow2", "-c", "write -q -c " + what, "r"],
                           capture_output=True, text=True)
        assert p.returncode == 1 and "Invalid argument" in p.stdout + p.stderr, p
    run(QEMU_IMG, "check", "-q", "r")


def in_one_session():
    """Written over, freed and packed again before anything is flushed."""
    rnd = random.Random(SEED + 1)
    run(QEMU_IMG, "create", "-q", "-f", "qcow2", "s", "4M")
    run(QEMU_IMG, "create", "-q", "-f", "raw", "raw", "4M")
    image, raw = operations(rnd, 4 * MIB, 65536, 200)
    run(IO, "-f", "qcow2", *commands([c for c in image if c != "flush"]), "s")
    run(IO, "-f", "raw", *commands(raw), "raw")
    alike("raw", "s")


def main():
    tap = Tap()
    cases = [("clusters of %s, %s" % (c, k), lambda c=c, k=k: whole_life(
        c, k, random.Random("%d %s %s" % (SEED, c, k)))) for c in ("512", "4k", "64k", "2M")
        for k in ("zlib", "zstd")]
    for bits in (1, 2, 8, 64):
        cases.append(("refcounts of %d bits" % bits, lambda b=bits: whole_life(
            "64k", "zlib", random.Random(SEED + b), ",refcount_bits=%d" % b)
            if b > 2 else narrow(b)))
    cases += [("discarded: the space is used again", lambda: freed(65536)),
              ("misaligned: refused", refused),
              ("one session without a flush", in_one_session)]
    for name, case in cases:
        with tempfile.TemporaryDirectory(prefix="platter-compress-") as d:
            os.chdir(d)
            try:
                case()
                tap.ok(True, name)
            except AssertionError as e:
                tap.ok(False, name, str(e))
            os.chdir("/")
    return tap.done()


def narrow(bits):
    """Few or no pieces may share a host cluster."""
    rnd = random.Random(SEED + bits)
    picture("raw", 5 * MIB, rnd)
    options = "cluster_size=4k,refcount_bits=%d" % bits
    run(IMG, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "ours")
    alike("raw", "ours")
    image, raw = operations(rnd, 5 * MIB, 4096, 40)
    run(IO, "-f", "qcow2", *commands(image), "ours")
    run(IO, "-f", "raw", *commands(raw), "raw")
    alike("raw", "ours")


sys.exit(main())
