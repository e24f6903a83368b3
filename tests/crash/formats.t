#!/usr/bin/env python3
"""formats.t - crashes of formats other than qcow2: whatever a crash leaves, both we and
QEMU open it (after replaying its log), find no corruption, and read what was flushed.

A guest writes, zeroes, discards and flushes (workload.c) on an image whose file is
logged; files that a crash may have left are rebuilt from the log (replay.py): at and
around the ends of flushes and anywhere, with none, all or some of what was not synced.
CRASH_SEED and CRASH_STATES override."""
import os
import random
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import replay                                                   # noqa: E402
from tap import BUILD, Bad, IMG, QEMU_IMG, SAN, attempt, finish, must  # noqa: E402

WORKLOAD = os.path.join(BUILD, "tests/crash/workload")
STATES = int(os.environ.get("CRASH_STATES", "8" if SAN else "20"))
SEED = int(os.environ.get("CRASH_SEED", "20260802"))

CASES = [
    # name, format, options, size, operations, with compressed clusters of so many bytes
    ("vhdx, 1 MiB blocks", "vhdx", "block_size=1M", 12 << 20, 150),
    ("vhdx, 1 MiB blocks not marked as zeros", "vhdx", "block_size=1M,block_state_zero=off",
     12 << 20, 150),
    ("vmdk, sparse", "vmdk", "subformat=monolithicSparse", 4 << 20, 300),
    ("vmdk, sparse with zero grains", "vmdk", "zeroed_grain=on", 4 << 20, 300),
    ("vdi", "vdi", "static=off", 12 << 20, 150),
    ("vpc", "vpc", "force_size=on", 12 << 20, 150),
    ("qcow", "qcow", "encryption=off", 3 << 20, 200),
    ("qcow, compressed writes", "qcow", "encryption=off", 3 << 20, 200, 4096),
    ("parallels, 64 KiB clusters", "parallels", "cluster_size=64k", 4 << 20, 200),
]
REPAIRED = ("vhdx", "parallels")        # formats whose check has -r


def content(img, fmt, image, out):
    must(img, "convert", "-f", fmt, "-O", "raw", image, out)
    with open(out, "rb") as f:
        return f.read()


def verify(fmt, image, may, before, out, n):
    """By us or by QEMU: repaired (which replays a log), clean, and right."""
    first, second = (IMG, QEMU_IMG) if n % 2 else (QEMU_IMG, IMG)
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


def run_case(tmp, fmt, options, size, ops, cluster=0):
    image, log, out = (os.path.join(tmp, x) for x in ("image", "log", "out"))
    must(IMG, "create", "-q", "-f", fmt, "-o", options, image, size)
    with open(image, "rb") as f:
        start = f.read()
    must(WORKLOAD, SEED, ops, fmt, image, log, cluster)
    events, rng, before = replay.read_log(log), random.Random(SEED + 1), bytes(size)
    host = replay.Host(events, start)
    for n, point in enumerate(replay.crash_points(rng, events, STATES)):
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
    return "%d crash states" % STATES


for case, *args in CASES:
    with tempfile.TemporaryDirectory(prefix="platter-crash.") as place:
        attempt(case, lambda: run_case(place, *args))
finish()
