#!/usr/bin/env python3
"""formats.t - crashes of formats other than qcow2: whatever a crash leaves, both we and
QEMU open it (after replaying its log), find no corruption, and read what was flushed.

A guest writes, zeroes, discards and flushes (workload.c) on an image whose file is
logged; files that a crash may have left are rebuilt from the log (replay.py): at and
around the ends of flushes and anywhere, with none, all or some of what was not synced.
CRASH_SEED and CRASH_STATES override."""
import os
import random
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import replay                                                   # noqa: E402

B = os.environ.get("B", "build")
IMG = os.path.abspath(os.path.join(B, "platter-img"))
WORKLOAD = os.path.abspath(os.path.join(B, "tests/crash/workload"))
ORACLE = os.path.join(os.environ.get("ORACLE", "build/oracle/bin"), "qemu-img")
SAN = bool(os.environ.get("SAN")) or "san" in os.path.basename(B.rstrip("/"))
STATES = int(os.environ.get("CRASH_STATES", "8" if SAN else "20"))
SEED = int(os.environ.get("CRASH_SEED", "20260802"))

CASES = [
    # name, format, options, size, operations
    ("vhdx, 1 MiB blocks", "vhdx", "block_size=1M", 12 << 20, 150),
    ("vhdx, 1 MiB blocks not marked as zeros", "vhdx", "block_size=1M,block_state_zero=off",
     12 << 20, 150),
    ("vmdk, sparse", "vmdk", "subformat=monolithicSparse", 4 << 20, 300),
    ("vmdk, sparse with zero grains", "vmdk", "zeroed_grain=on", 4 << 20, 300),
    ("vdi", "vdi", "static=off", 12 << 20, 150),
    ("vpc", "vpc", "force_size=on", 12 << 20, 150),
    ("qcow", "qcow", "encryption=off", 3 << 20, 200),
    ("parallels, 64 KiB clusters", "parallels", "cluster_size=64k", 4 << 20, 200),
]
REPAIRED = ("vhdx", "parallels")        # formats whose check has -r


class Bad(Exception):
    pass


def must(*argv, codes=(0,)):
    r = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=120)
    if r.returncode not in codes:
        raise Bad("%s: exit %d\n%s\n%s" % (" ".join(map(str, argv)), r.returncode,
                                           r.stdout[:1000], r.stderr[:1000]))
    return r


def content(img, fmt, image, out):
    must(img, "convert", "-f", fmt, "-O", "raw", image, out)
    with open(out, "rb") as f:
        return f.read()


def points(rng, events):
    flushes = [i for i, e in enumerate(events) if e.type == "F" and e.over is not None]
    near = [events[i].over + d for i in flushes for d in (0, 1)] + flushes
    pick = rng.sample(near, min(len(near), STATES * 2 // 3))
    pick += [rng.randrange(1, len(events)) for _ in range(STATES - len(pick) - 1)]
    return sorted(pick) + [len(events)]


def verify(fmt, image, may, before, out, n):
    """By us or by QEMU: repaired (which replays a log), clean, and right."""
    first, second = (IMG, ORACLE) if n % 2 else (ORACLE, IMG)
    repair = ["-r", "all"] if fmt in REPAIRED else []
    for img, words in ((first, repair), (first, []), (second, [])):
        r = must(img, "check", "-f", fmt, *words, image, codes=(0, 2, 63))
        said = [line for line in r.stderr.split("\n") if line]
        # vdi: places that were counted but got no entry, QEMU's order has that, too.
        if r.returncode == 2 and not (fmt == "vdi" and len(said) == 1 and
                                      said[0].startswith("ERROR: allocated blocks mismatch")):
            raise Bad("check finds %s" % r.stderr)
    seen = content(first, fmt, image, out)
    at = replay.wrong_sector(seen, may, before)
    if at is not None:
        raise Bad("guest sector %d holds neither its old nor a new value: may be %s, has %s" %
                  (at, sorted(may[at]), seen[at * 512:at * 512 + 16].hex()))
    return seen


def run_case(tmp, fmt, options, size, ops):
    image, log, out = (os.path.join(tmp, x) for x in ("image", "log", "out"))
    must(IMG, "create", "-q", "-f", fmt, "-o", options, image, size)
    with open(image, "rb") as f:
        start = f.read()
    must(WORKLOAD, SEED, ops, fmt, image, log)
    events, rng, before = replay.read_log(log), random.Random(SEED + 1), bytes(size)
    host = replay.Host(events, start)
    for n, point in enumerate(points(rng, events)):
        host.advance(point)
        how = ("none", "all", "random", "random", "random")[n % 5]
        with open(image, "wb") as f:
            f.write(host.crash(rng, how).buf)
        try:
            verify(fmt, image, replay.guest_view(events, point, before), before, out, n)
        except Bad as ex:
            kept = os.path.join(os.environ.get("TMPDIR", "/tmp"), "crash-failed." + fmt)
            with open(kept, "wb") as f:
                f.write(host.crash(random.Random(0), "none").buf)
            raise Bad("state %d: crash at record %d of %d, %s of %d in doubt (seed %d)\n%s" % (
                n, point, len(events), how, len(host.doubt), SEED, ex)) from None


def main():
    print("1..%d" % len(CASES))
    failed = False
    for i, (name, *what) in enumerate(CASES, 1):
        tmp = tempfile.mkdtemp(prefix="platter-crash.", dir=os.environ.get("TMPDIR", "/tmp"))
        try:
            run_case(tmp, *what)
            print("ok %d - %s: %d crash states" % (i, name, STATES))
        except (Bad, subprocess.TimeoutExpired, AssertionError, KeyError) as ex:
            failed = True
            print("not ok %d - %s" % (i, name))
            print("\n".join("# " + line for line in
                            ("%s: %s" % (type(ex).__name__, ex)).split("\n")))
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
        sys.stdout.flush()
    return 1 if failed else 0


sys.exit(main())
