#!/usr/bin/env python3
"""io.t - platter-io takes qemu-io's commands and answers in its words: both run the
same commands on files of their own; output (times aside), exit status and file must
be the same."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

B = os.environ.get("B", "build")
IO = os.path.abspath(os.path.join(B, "platter-io"))
SCRIPTS = [
    ("write and read a pattern", ["write -P 0x55 4k 64k", "read -P 0x55 4k 64k"]),
    ("a wrong pattern fails", ["write -P 1 0 4k", "read -P 2 0 4k"]),
    ("part of a read is verified", ["write -P 1 0 4k", "write -P 2 1k 1k",
                                    "read -P 2 -s 1k -l 1k 0 4k", "read -P 1 -l 1k 0 4k"]),
    ("odd offsets and lengths", ["write -P 7 1001 77", "read -v -P 7 1001 77", "read -P 0 0 1001"]),
    ("vectors", ["writev -P 7 512 1k 512 2k", "readv -P 7 512 3584", "readv -v 600 16 16"]),
    ("zeroes", ["write -P 7 0 64k", "write -z 4k 8k", "read -P 0 4k 8k", "write -z -u 16k 4k",
                "read -P 0 16k 4k"]),
    ("quiet", ["write -q -P 7 0 64k", "read -q -P 7 0 64k"]),
    ("flags that do not go together", ["write -z -P 1 0 4k", "write -u 0 4k"]),
    ("discard, flush, length, alloc", ["write -P 7 0 64k", "discard 0 64k", "flush", "length",
                                       "alloc 0 64k"]),
    ("asynchronous", ["aio_write -P 9 64k 8k", "aio_flush", "aio_read -P 9 64k 8k", "aio_flush"]),
    ("FUA", ["write -f -P 3 0 512", "read -P 3 0 512"]),
    ("sleep and quit", ["sleep 5", "quit", "write 0 512"]),
]


def run(program, path, cmds):
    words = [w for c in cmds for w in ("-c", c)]
    r = subprocess.run([program, "-f", "raw"] + words + [path], capture_output=True, text=True,
                       timeout=60)
    text = re.sub(r"^.* ops; .*\n", "RATE\n", r.stdout, flags=re.M)
    return r.returncode, text, r.stderr


def content(path):
    with open(path, "rb") as f:
        return f.read()


def oracle():
    for base in (os.environ.get("ORACLE", ""), os.path.join(B, "oracle/bin"), "build/oracle/bin"):
        path = os.path.join(base, "qemu-io")
        if base and os.access(path, os.X_OK):
            return os.path.abspath(path)
    return shutil.which("qemu-io")


def compare(tmp, theirs, name, cmds):
    results = []
    for program, path in ((IO, "ours.raw"), (theirs, "theirs.raw")):
        path = os.path.join(tmp, path)
        with open(path, "wb") as f:
            f.truncate(1 << 20)
        results.append(run(program, path, cmds) + (content(path),))
    ours, other = results
    if ours[3] != other[3]:
        return "the files differ"
    if ours[0] != other[0]:
        return "exit %d, qemu-io %d" % (ours[0], other[0])
    # What is wrong with an option is said in other words.
    if ours[1] != other[1] and "do not go together" not in name:
        return "output differs:\n%s---\n%s" % (ours[1], other[1])
    return None


def own(tmp):
    """What qemu-io cannot be asked side by side."""
    path = os.path.join(tmp, "own.raw")
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    rc, _, _ = run(IO, path, ["write -P 5 0 512", "sigraise 9", "write -P 6 0 512"])
    if rc != -signal.SIGKILL or content(path)[:512] != b"\5" * 512:
        return "sigraise: exit %d" % rc
    rc, out, _ = run(IO, path, ["write 1M 512"])
    if rc != 1 or "write failed" not in out:
        return "a write past the end: exit %d, %s" % (rc, out)
    rc, _, err = run(IO, path, ["frobnicate"])
    if rc != 1 or err != 'command "frobnicate" not found\n':
        return "an unknown command: exit %d, %s" % (rc, err)
    rc, _, err = run(IO, os.path.join(tmp, "none"), [])
    if rc != 1 or "can't open" not in err or err.count("\n") != 1:
        return "a missing file: exit %d, %s" % (rc, err)
    r = subprocess.run([IO, "-f", "raw", "-r", path], input="read -P 5 0 512\nlength\nq\nlength\n",
                       capture_output=True, text=True, timeout=60)
    if r.returncode != 0 or r.stdout.split("\n").count("1 MiB") != 1:
        return "commands on stdin: %s" % r
    r = subprocess.run([IO, "-f", "raw", "-r", "-c", "write 0 512", path], capture_output=True,
                       text=True, timeout=60)
    if r.returncode != 1 or content(path)[:512] != b"\5" * 512:
        return "a write to a read-only node: %s" % r
    return None


def main():
    tmp = tempfile.mkdtemp(prefix="platter-io.", dir=os.environ.get("TMPDIR", "/tmp"))
    theirs = oracle()
    print("1..%d" % (len(SCRIPTS) + 1))
    failed = False
    for i, (name, cmds) in enumerate(SCRIPTS + [("signals, errors, stdin, read-only", None)], 1):
        skip = "" if theirs or not cmds else " # SKIP no qemu-io"
        why = own(tmp) if not cmds else None if skip else compare(tmp, theirs, name, cmds)
        failed |= why is not None
        print("%s %d - %s%s" % ("ok" if why is None else "not ok", i, name, skip))
        if why:
            print("\n".join("# " + line for line in why.split("\n")))
    shutil.rmtree(tmp)
    return 1 if failed else 0


sys.exit(main())
