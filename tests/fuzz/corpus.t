#!/usr/bin/env python3
"""corpus.t - each format's fuzz harness over its seeds, over mutations of them (always the
same ones; FUZZ_SEED changes that), and over everything fuzzing ever found.  With
sanitizers this is where they matter; without, crashes and hangs are found."""
import glob
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import corpus                                                   # noqa: E402
from tap import BUILD, Bad, attempt, finish, own_place, run     # noqa: E402

FORMATS = ("qcow2", "vdi", "vpc", "parallels", "vmdk", "vhdx", "qcow", "dmg", "luks")
MUTATIONS = os.environ.get("FUZZ_MUTATIONS", "400")
SEED = os.environ.get("FUZZ_SEED", "1")


def harness(last, words):
    r = run(*words, timeout=300, env=dict(os.environ, FUZZ_LAST=last))
    if r.returncode:
        raise Bad("exit %d\n%s" % (r.returncode, r.stderr[:3000]))


def main():
    tmp = own_place("fuzz")
    last = os.path.join(tmp, "last")
    for fmt in FORMATS:
        program = os.path.join(BUILD, "tests/fuzz", fmt)
        runs = [("%s and %s mutations" % (os.path.basename(p), MUTATIONS),
                 [program, "-s", SEED, "-n", MUTATIONS, p]) for p in corpus.make(fmt, tmp)]
        runs += [("found: %s" % os.path.basename(p), [program, p])
                 for p in sorted(glob.glob(os.path.join(HERE, "found", fmt, "*")))]
        for name, words in runs:
            if not attempt(name, lambda: harness(last, words)):
                kept = os.path.join(tempfile.gettempdir(), "fuzz-failed." + os.path.basename(words[-1]))
                shutil.copyfile(last, kept)
                print("# input: " + kept)
    finish()


main()
