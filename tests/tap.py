"""tap.py - what script tests share: where the programs are, TAP on stdout, running a
program, a directory of one's own."""
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, os.environ.get("B", "build"))
ORACLE = os.path.abspath(os.environ.get("ORACLE", os.path.join(ROOT, "build/oracle/bin")))
IMG, IO = (os.path.join(BUILD, "platter-" + n) for n in ("img", "io"))
QEMU_IMG, QEMU_IO = (os.path.join(ORACLE, "qemu-" + n) for n in ("img", "io"))
SAN = bool(os.environ.get("SAN")) or "san" in os.path.basename(BUILD.rstrip("/"))
count = failed = 0


class Bad(Exception):
    """Why a test cannot go on."""


def ok(good, name, *why):
    """One line of TAP; below it why, when it is not good."""
    global count, failed
    count += 1
    failed += not good
    print("%sok %d - %s" % ("" if good else "not ", count, name))
    for line in () if good else "\n".join(map(str, why)).splitlines():
        print("#   " + line)
    sys.stdout.flush()
    return bool(good)


def skip(name, why):
    ok(True, "%s # SKIP %s" % (name, why))


def attempt(name, case):
    """A case of a test passes unless it raises; what it returns adds to its name."""
    try:
        more = case()
    except Exception as e:                      # pylint: disable=broad-except
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename.endswith(".t")]
        return ok(False, name, "%s: %s\nin lines %s" % (type(e).__name__, e, lines))
    return ok(True, name if more is None else "%s: %s" % (name, more))


def attempt_all(*cases):
    """Functions that their docstrings name: those that the command line asks for, or all."""
    for case in cases:
        if case.__name__ in sys.argv[1:] or not sys.argv[1:]:
            attempt(case.__doc__, case)


def finish():
    """The end of the test, and its exit status."""
    print("1..%d" % count)
    sys.exit(1 if failed or not count else 0)


def own_place(name, memory=False):
    """A new directory that goes with the test; memory: rather there than on a disk."""
    where = "/dev/shm" if memory and os.path.isdir("/dev/shm") else None
    where = tempfile.mkdtemp(prefix="platter-%s." % name, dir=os.environ.get("TMPDIR") or where)
    atexit.register(shutil.rmtree, where, True)
    return where


def enter_place(name, memory=False):
    """The same as the working directory."""
    os.chdir(own_place(name, memory))


def run(*argv, timeout=120, text=True, **more):
    """A program to its end: its status and both streams."""
    if "input" not in more:
        more.setdefault("stdin", subprocess.DEVNULL)
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.PIPE)
    return subprocess.run([str(a) for a in argv], text=text, errors="replace" if text else None,
                          timeout=timeout, **more)


def must(*argv, codes=(0,), **more):
    """The same, of which another status or a sanitizer's finding is the end of the case."""
    r = run(*argv, **more)
    if r.returncode not in codes or "Sanitizer" in str(r.stderr):
        raise Bad("%s: exit %d\n%s\n%s" % (" ".join(map(str, argv)), r.returncode,
                                           str(r.stdout)[:1500], str(r.stderr)[:1500]))
    return r


def img(*words, status=0, **more):
    """platter-img, which must end so."""
    return must(IMG, *words, codes=(status,), **more)
