#!/usr/bin/env python3
"""io.t - platter-io takes qemu-io's commands and answers in its words: both run the
same commands on files of their own; output (times aside), exit status and file must
be the same."""
import os
import re
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IO, QEMU_IMG, QEMU_IO, enter_place, finish, must, ok, run  # noqa: E402

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


def content(path):
    with open(path, "rb") as f:
        return f.read()


def said(program, path, cmds):
    words = [w for c in cmds for w in ("-c", c)]
    r = run(program, "-f", "raw", *words, path)
    return r.returncode, re.sub(r"^.* ops; .*\n", "RATE\n", r.stdout, flags=re.M), r.stderr


def compare(name, cmds):
    results = []
    for program, path in ((IO, "ours.raw"), (QEMU_IO, "theirs.raw")):
        with open(path, "wb") as f:
            f.truncate(1 << 20)
        results.append(said(program, path, cmds) + (content(path),))
    ours, other = results
    # What is wrong with an option is said in other words.
    ok(ours[0] == other[0] and ours[3] == other[3] and
       (ours[1] == other[1] or "do not go together" in name), name, *(r[:3] for r in results))


def own():
    """What qemu-io cannot be asked side by side."""
    path = "own.raw"
    with open(path, "wb") as f:
        f.truncate(1 << 20)
    rc, _, _ = said(IO, path, ["write -P 5 0 512", "sigraise 9", "write -P 6 0 512"])
    ok(rc == -signal.SIGKILL and content(path)[:512] == b"\5" * 512, "sigraise", rc)
    rc, out, _ = said(IO, path, ["write 1M 512"])
    ok(rc == 1 and "write failed" in out, "a write past the end", rc, out)
    rc, _, err = said(IO, path, ["frobnicate"])
    ok(rc == 1 and err == 'command "frobnicate" not found\n', "an unknown command", rc, err)
    rc, _, err = said(IO, "none", [])
    ok(rc == 1 and "can't open" in err and err.count("\n") == 1, "a missing file", rc, err)
    r = run(IO, "-f", "raw", "-r", path, input="read -P 5 0 512\nlength\nq\nlength\n")
    ok(r.returncode == 0 and r.stdout.count("platter-io> 1 MiB\n") == 1, "commands on stdin", r)
    r = run(IO, "-f", "raw", "-r", "-c", "write 0 512", path)
    ok(r.returncode == 1 and content(path)[:512] == b"\5" * 512, "a write to a read-only node", r)


def copied_once():
    """The copy of what lies below goes to the reader, too: nobody reads it back."""
    must(QEMU_IMG, "create", "-q", "-f", "raw", "base.raw", "1M")
    must(QEMU_IO, "-f", "raw", "-c", "write -P 5 0 1M", "base.raw")
    must(QEMU_IMG, "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2")
    data = 5 * 65536                # after the header, two refcount tables, L1 and L2
    r = run(IO, "--image-opts", "-c", "read -P 5 130k 300", "-c", "read -P 5 190k 100k",
            "driver=copy-on-read,file.driver=qcow2,file.file.driver=fault,file.file.op=read,"
            "file.file.offset=%d,file.file.length=1G,file.file.sticky=on,"
            "file.file.file.filename=top.qcow2" % data)
    ok(r.returncode == 1 and r.stdout.count("read 300/300") == 1 and "read failed" in r.stdout,
       "copy-on-read reads back only what was there before", r)
    rest = run(QEMU_IO, "-f", "qcow2", "-c", "read -P 5 0 1M", "top.qcow2")
    ok(rest.returncode == 0, "and the copies are right", rest)


def kept_clusters():
    """discard-no-unref makes holes of clusters that it keeps; a snapshot's stay (QEMU's do not)."""
    must(QEMU_IMG, "create", "-q", "-f", "qcow2", "kept.qcow2", "1M")
    must(QEMU_IO, "-f", "qcow2", "-c", "write -P 7 0 512k", "kept.qcow2")
    must(QEMU_IMG, "snapshot", "-c", "s", "kept.qcow2")
    must(QEMU_IO, "-f", "qcow2", "-c", "write -P 8 256k 256k", "kept.qcow2")
    full = os.stat("kept.qcow2").st_blocks
    must(IO, "--image-opts", "-c", "discard 0 512k",
         "driver=qcow2,discard-no-unref=on,file.filename=kept.qcow2")
    ok(full - os.stat("kept.qcow2").st_blocks == 512, "discard-no-unref: what is nobody else's "
       "becomes a hole", full, os.stat("kept.qcow2").st_blocks)
    now = run(QEMU_IO, "-f", "qcow2", "-c", "read -P 0 0 1M", "kept.qcow2")
    must(QEMU_IMG, "snapshot", "-a", "s", "kept.qcow2")
    then = run(QEMU_IO, "-f", "qcow2", "-c", "read -P 7 0 512k", "kept.qcow2")
    ok(now.returncode == then.returncode == 0 and "failed" not in now.stdout + then.stdout and
       run(QEMU_IMG, "check", "kept.qcow2").returncode == 0,
       "and the snapshot has its data", now, then)


enter_place("io")
for title, commands in SCRIPTS:
    compare(title, commands)
own()
copied_once()
kept_clusters()
finish()
