#!/usr/bin/env python3
"""corpus.t - each format's fuzz harness over its seeds, over mutations of them (always the
same ones; FUZZ_SEED changes that), and over everything fuzzing ever found.  With
sanitizers this is where they matter; without, crashes and hangs are found."""
import glob
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import corpus                                                   # noqa: E402

B = os.environ.get("B", "build")
FORMATS = ("qcow2", "vdi", "vpc", "parallels", "vmdk", "vhdx", "qcow", "dmg")
MUTATIONS = os.environ.get("FUZZ_MUTATIONS", "400")
SEED = os.environ.get("FUZZ_SEED", "1")


def main():
    tmp = tempfile.mkdtemp(prefix="platter-fuzz.", dir=os.environ.get("TMPDIR", "/tmp"))
    runs = []
    for fmt in FORMATS:
        harness = os.path.abspath(os.path.join(B, "tests/fuzz", fmt))
        runs += [("%s and %s mutations" % (os.path.basename(p), MUTATIONS),
                  [harness, "-s", SEED, "-n", MUTATIONS, p]) for p in corpus.make(fmt, tmp)]
        runs += [("found: %s" % os.path.basename(p), [harness, p])
                 for p in sorted(glob.glob(os.path.join(HERE, "found", fmt, "*")))]
    print("1..%d" % len(runs))
    failed = False
    last = os.path.join(tmp, "last")
    for i, (name, words) in enumerate(runs, 1):
        try:
            r = subprocess.run(words, capture_output=True, timeout=300,
                               env=dict(os.environ, FUZZ_LAST=last))
            why = None if r.returncode == 0 else "exit %d\n%s" % (
                r.returncode, r.stderr.decode(errors="replace")[:3000])
        except subprocess.TimeoutExpired:
            why = "hangs"
        if why is None:
            print("ok %d - %s" % (i, name))
        else:
            failed = True
            kept = os.path.join(os.environ.get("TMPDIR", "/tmp"), "fuzz-failed.%d" % i)
            shutil.copyfile(last, kept)
            print("not ok %d - %s" % (i, name))
            print("\n".join("# " + line for line in ("%s\ninput: %s" % (why, kept)).split("\n")))
        sys.stdout.flush()
    shutil.rmtree(tmp, ignore_errors=True)
    return 1 if failed else 0


sys.exit(main())
