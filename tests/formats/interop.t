#!/usr/bin/env python3
"""interop.t - vdi, vpc, parallels and qcow between Platter and QEMU: each makes, fills and
reads the other's images; map, info and check say the same of them; what cannot be done
is refused in the same words."""
import json
import os
import random
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import tap                                                      # noqa: E402
from tap import IMG as OURS, IO as OUR_IO                       # noqa: E402
from tap import QEMU_IMG as THEIRS, QEMU_IO as THEIR_IO, finish, ok  # noqa: E402

MIB = 1 << 20

CASES = [
    # format, options, granularity of what is compared, size
    ("vdi", "static=off", 20 * MIB + 1536),
    ("vdi", "static=on", 5 * MIB + 512),
    ("vpc", "subformat=dynamic", 21 * MIB),
    ("vpc", "subformat=dynamic,force_size=on", 20 * MIB + 512),
    ("vpc", "subformat=fixed,force_size=on", 5 * MIB + 512),
    ("vpc", "subformat=fixed", 5 * MIB),
    ("parallels", "cluster_size=1M", 20 * MIB + 512),
    ("parallels", "cluster_size=64k", 20 * MIB + 512),
    ("qcow", "encryption=off", 10 * MIB + 512),
]
REFUSED = [
    # Words that say the same in both, nothing being left behind.
    "create -f vdi x 600T", "create -f vdi -o static=maybe x 1M", "create -f vdi x",
    "create -f vdi -o preallocation=metadata x 1M", "create -f vdi -b x -F raw y 1M",
    "create -f vpc -o subformat=sparse x 1M", "create -f vpc x 3T",
    "create -f vpc -o force_size=on x 3T", "create -f vpc -o subformat=fixed x 2041G",
    "create -f parallels -o cluster_size=0 x 1M", "create -f parallels -o cluster_size=2G x 1M",
    "create -f parallels -o cluster_size=512 x 4T", "create -f parallels -o what=1 x 1M",
    "create -f qcow x 0", "create -f qcow -o encryption=maybe x 1M", "create -f qcow -o help",
    "create -f qcow -o help x", "create -f qcow -b gone -F raw x", "info -f qcow plain",
    "create -f qcow -o backing_fmt=what x 1M", "info -f qcow empty",
    "create -f vdi -o help", "create -f vpc -o help", "create -f parallels -o help",
    "create -f vdi -o help x", "create -f vpc -o help x", "create -f parallels -o help x",
    "info --image-opts driver=vpc,force_size_calc=none,file.filename=plain",
    "info --image-opts driver=vdi,foo=1,file.filename=plain",
    "info -f vdi plain", "info -f vpc plain", "info -f parallels plain",
    "info -f vdi empty", "info -f vpc empty", "info -f parallels empty",
    "measure -O vdi plain", "measure -O vpc --size 1M", "measure -O parallels --size 1M",
    "convert -c -O vdi plain x", "convert -c -O vpc plain x", "convert -c -O parallels plain x",
]


def run(*argv):
    r = tap.run(*argv)
    name = os.path.basename(argv[0])
    return r.returncode, r.stdout.replace(name, "IMG"), r.stderr.replace(name, "IMG")


def same(name, *words):
    """Both programs answer alike."""
    ours, theirs = run(OURS, *words), run(THEIRS, *words)
    ok(ours == theirs, name, "ours   %s\ntheirs %s" % (ours, theirs))


def picture(size, seed):
    """Random data with holes of all sizes."""
    rng = random.Random(seed)
    with open("raw", "wb") as f:
        for _ in range(24):
            f.seek(rng.randrange(size // 512) * 512)
            f.write(rng.randbytes(min(rng.choice([512, 4096, 70000, 600000]), size - f.tell())))
        f.truncate(size)


def random_writes(seed, size):
    rng, words = random.Random(seed), []
    for i in range(14):
        at, kind = rng.randrange(size // 512) * 512, rng.randrange(8)
        length = min(size - at, rng.choice([512, 1024, 9216, 65536, 300032]))
        words += ["-c", "%s %d %d" % ("write -z" if kind == 0 else "write -P %d" % (i + 1),
                                      at, length)]
    return words


def look_alike(what, fmt, image):
    same(what + ": map", "map", "-f", fmt, "--output=json", image)
    same(what + ": info", "info", "-f", fmt, image)
    same(what + ": info as JSON", "info", "-f", fmt, "--output=json", image)
    same(what + ": check", "check", "-f", fmt, image)
    same(what + ": check as JSON", "check", "-f", fmt, "--output=json", image)
    same(what + ": resize", "resize", "-f", fmt, image, "+1M")
    same(what + ": measure", "measure", "-f", fmt, "-O", "qcow2", image)
    if fmt != "vpc":
        same(what + ": found without -f", "info", image)


def exchange(fmt, options, size):
    what = "%s, %s" % (fmt, options)
    picture(size, size)
    for maker, other, word in ((OURS, THEIRS, "ours"), (THEIRS, OURS, "theirs")):
        r = run(maker, "convert", "-f", "raw", "-O", fmt, "-o", options, "raw", "image")
        ok(r[0] == 0, "%s: %s is made from raw" % (what, word), r)
        for img in (maker, other):
            r = run(img, "compare", "-f", "raw", "-F", fmt, "raw", "image")
            ok(r[0] == 0, "%s: %s compares equal" % (what, word), r)
        look_alike("%s, %s" % (what, word), fmt, "image")
        # Back to raw, through qcow2.
        r = run(other, "convert", "-f", fmt, "-O", "qcow2", "image", "q")
        r2 = run(THEIRS, "compare", "-f", "raw", "-F", "qcow2", "raw", "q")
        ok(r[0] == 0 and r2[0] == 0, "%s: %s converts to qcow2" % (what, word), (r, r2))


def write_both(fmt, options, size):
    """The same writes by both programs, one after the other, into a raw image, too."""
    what = "%s, %s" % (fmt, options)
    run(THEIRS, "create", "-f", fmt, "-o", options, "image", size)
    size = json.loads(run(THEIRS, "info", "-f", fmt, "--output=json", "image")[1])["virtual-size"]
    run(THEIRS, "create", "-f", "raw", "raw", size)
    for seed, io in enumerate((OUR_IO, THEIR_IO, OUR_IO)):
        words = random_writes(seed, size)
        r = run(io, "-f", fmt, *words, "image")
        ok(r[0] == 0 and "failed" not in r[1], "%s: writes by %s" % (what, os.path.basename(io)), r)
        run(THEIR_IO, "-f", "raw", *words, "raw")
        for img in (OURS, THEIRS):
            r = run(img, "compare", "-f", "raw", "-F", fmt, "raw", "image")
            ok(r[0] == 0, "%s: they are there for %s" % (what, os.path.basename(img)), r)
        same("%s: check after them" % what, "check", "-f", fmt, "image")
        same("%s: map after them" % what, "map", "-f", fmt, "--output=json", "image")


def made_alike(fmt, options, size):
    """create: the same file, UUIDs and time aside; the same places after the same writes."""
    made = []
    for img, io in ((OURS, OUR_IO), (THEIRS, THEIR_IO)):
        if os.path.exists("image"):
            os.unlink("image")
        made.append([run(img, "create", "-f", fmt, "-o", options, "image", size),
                     os.path.getsize("image")])
        run(io, "-f", fmt, "-c", "write -P 1 3M 100k", "-c", "write -P 2 1M 512", "image")
        made[-1] += [run(THEIRS, "map", "-f", fmt, "--output=json", "image"),
                     os.path.getsize("image")]
    ok(made[0] == made[1], "%s, %s: create and first writes make the same layout" % (fmt, options),
       "ours   %s\ntheirs %s" % tuple(made))


def deflated():
    """Compressed clusters, which either writes, are read and overwritten."""
    for maker, reader in ((OURS, THEIRS), (THEIRS, OURS)):
        picture(3 * MIB, 5)
        r = run(maker, "convert", "-c", "-f", "raw", "-O", "qcow", "raw", "image")
        ok(r[0] == 0 or maker == THEIRS and not r[2], "qcow: compressed clusters are written", r)
        r = run(reader, "compare", "-f", "raw", "-F", "qcow", "raw", "image")
        ok(r[0] == 0, "qcow: compressed clusters are read", r)
        same("qcow: compressed clusters: map", "map", "--output=json", "image")
    words = [w for at in (0, 64, 1028, 3068) for w in ("-c", "write -c -P 9 %dk 4k" % at)]
    run(OUR_IO, "-f", "qcow", *words, "image")
    run(THEIR_IO, "-f", "raw", *[w.replace(" -c", "") for w in words], "raw")
    words = random_writes(7, 3 * MIB)
    run(OUR_IO, "-f", "qcow", *words, "image")
    run(THEIR_IO, "-f", "raw", *words, "raw")
    for img in (OURS, THEIRS):
        r = run(img, "compare", "-f", "raw", "-F", "qcow", "raw", "image")
        ok(r[0] == 0, "qcow: compressed clusters are overwritten", r)


def overlay():
    for maker in (OURS, THEIRS):
        picture(3 * MIB, 6)
        run(THEIRS, "convert", "-f", "raw", "-O", "raw", "raw", "base")
        r = run(maker, "create", "-f", "qcow", "-b", "base", "-F", "raw", "top", 4 * MIB)
        ok(r[0] == 0, "qcow: an overlay is made", r)
        run(THEIRS, "resize", "-q", "-f", "raw", "raw", 4 * MIB)
        same("qcow: an overlay: info", "info", "-U", "top")
        for seed, io in enumerate((OUR_IO, THEIR_IO)):
            words = random_writes(seed + 20, 4 * MIB)
            run(io, "-f", "qcow", *words, "top")
            run(THEIR_IO, "-f", "raw", *words, "raw")
        for img in (OURS, THEIRS):
            r = run(img, "compare", "-f", "raw", "-F", "qcow", "raw", "top")
            ok(r[0] == 0, "qcow: an overlay's copies on write are right", r)
        same("qcow: an overlay: map", "map", "--output=json", "top")
        os.unlink("top")


def refusals():
    for line in REFUSED:
        results = []
        for img in (OURS, THEIRS):
            with open("plain", "wb") as f:
                f.write(b"plain text\n" * 1000)
            open("empty", "wb").close()
            results.append(run(img, *line.split()))
            if os.path.exists("x"):
                os.unlink("x")
        ok(results[0] == results[1], line, "ours   %s\ntheirs %s" % tuple(results))


def main():
    with tempfile.TemporaryDirectory(prefix="interop.") as tmp:
        os.chdir(tmp)
        for case in CASES:
            exchange(*case)
            write_both(*case)
            made_alike(*case)
        deflated()
        overlay()
        refusals()
        os.chdir("/")
    finish()


main()
