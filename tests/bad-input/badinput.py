"""
badinput.py - what the hostile-image tests share: a runner that
puts every program under limits, and the outcomes that a case may have.

Every run of ours is held to: no signal, bounded CPU time, bounded memory, a
bounded address space (without sanitizers), and no core.  CPU time is what is
limited to about a second, because wall clock time depends on the machine's
other work; wall clock time only finds hangs.

B names the build directory.  IMG and IO name other programs to run instead of
platter-img and platter-io (qemu-img and qemu-io understand the same commands),
ORACLE_IMG and ORACLE_IO the programs that settle what a valid image holds.
"""
import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(HERE), os.path.join(os.path.dirname(HERE), "qcow2")]
import qcow2img as q                                            # noqa: E402
import tap                                                      # noqa: E402
from tap import SAN                                             # noqa: E402

IMG = os.path.abspath(os.environ.get("IMG", tap.IMG))
IO = os.path.abspath(os.environ.get("IO", tap.IO))
IS_QEMU = "qemu" in os.path.basename(IMG)

CPU_LIMIT = 5.0 if SAN else 1.0             # seconds
WALL_LIMIT = 60 if SAN else 20              # a hang
RSS_LIMIT = (400 if SAN else 112) << 10     # KiB: 64 MiB + L1 (32) + tables (16)
AS_LIMIT = 2 << 30


ORACLE_IMG = os.environ.get("ORACLE_IMG", tap.QEMU_IMG)
ORACLE_IO = os.environ.get("ORACLE_IO", tap.QEMU_IO)

_cases = []


def case(name):
    """Registers fn(t) as the test "name"."""
    def add(fn):
        _cases.append((name, fn))
        return fn
    return add


class Failed(Exception):
    pass


class Result:
    def __init__(self, argv, rc, out, err, cpu, rss, hung):
        self.argv, self.rc, self.out, self.err = argv, rc, out, err
        self.cpu, self.rss, self.hung = cpu, rss, hung

    @property
    def lines(self):
        return [line for line in self.err.split("\n") if line.strip()]

    def __str__(self):
        return "%s\n  exit %d, %.2f s CPU, %d KiB\n  out: %s\n  err: %s" % (
            " ".join(self.argv), self.rc, self.cpu, self.rss,
            self.out.strip()[:600], self.err.strip()[:1200])


def _limits(seconds=None):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    if not SAN:
        resource.setrlimit(resource.RLIMIT_AS, (AS_LIMIT, AS_LIMIT))


def run(*argv, limits=True, wall=WALL_LIMIT, seconds=None):
    """Run a program to its end or its limits; seconds: of CPU, its own affair."""
    argv = [str(a) for a in argv]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                             preexec_fn=(lambda: _limits(seconds)) if limits else None, start_new_session=True)
        end = time.monotonic() + wall
        hung, pid, nap = False, 0, 0.0005
        while not pid:
            pid, status, ru = os.wait4(p.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                hung = True
                os.killpg(p.pid, signal.SIGKILL)
                pid, status, ru = os.wait4(p.pid, 0)
                break
            time.sleep(nap)
            nap = min(nap * 1.5, 0.02)
        p.returncode = rc = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Result(argv, rc, out.read().decode(errors="replace"),
                      err.read().decode(errors="replace"),
                      ru.ru_utime + ru.ru_stime, ru.ru_maxrss, hung)


def file_hash(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


class Test:
    """One case: its directory, its problems."""

    fmt = "qcow2"                   # what the images are; a case may say otherwise

    def __init__(self, tmp):
        self.tmp = tmp
        self.n = 0
        self.problems = []
        self.skipped = None

    def path(self, name):
        return os.path.join(self.tmp, name)

    def save(self, img, name="test.qcow2", length=None):
        return img.save(self.path(name), length)

    def bad(self, text):
        self.problems.append(text)

    def expect(self, ok, text):
        if not ok:
            self.bad(text)
        return ok

    def skip(self, why):
        self.skipped = why

    # ---- running ---------------------------------------------------------------

    def run(self, *argv, cpu=CPU_LIMIT, rss=RSS_LIMIT, seconds=None):
        """Our program: whatever it answers, it stays within the limits."""
        r = run(*argv, seconds=seconds)
        if r.hung:
            self.bad("hung: %s" % r)
        elif r.rc < 0 or r.rc > 125 or "AddressSanitizer" in r.err or "runtime error:" in r.err:
            self.bad("crashed: %s" % r)
        elif r.cpu > cpu:
            self.bad("took longer than %.1f s: %s" % (cpu, r))
        elif r.rss > rss:
            self.bad("took more than %d KiB: %s" % (rss, r))
        return r

    def img(self, *args, **kw):
        return self.run(IMG, *args, **kw)

    def io(self, path, *cmds, ro=False, opts=(), **kw):
        words = ["-r"] if ro else []
        for c in cmds:
            words += ["-c", c]
        return self.run(IO, "-f", self.fmt, *words, *opts, path, **kw)

    def oracle(self, *args):
        return run(ORACLE_IMG, *args, limits=False)

    def oracle_io(self, path, *cmds, ro=False):
        words = ["-r"] if ro else []
        for c in cmds:
            words += ["-c", c]
        return run(ORACLE_IO, "-f", self.fmt, *words, path, limits=False)

    # ---- outcomes ----------------------------------------------------------------

    def one_line(self, r, path, reason, lines=1):
        """r failed with at most so many lines, which name the file and the reason."""
        name = os.path.basename(path)
        if r.hung or r.rc < 0:
            return
        text = r.err if r.err.strip() else r.out
        got = [line for line in text.split("\n") if line.strip()]
        _ = (self.expect(r.rc != 0, "did not fail: %s" % r) and
             self.expect(1 <= len(got) <= lines, "not %d line(s) of reason: %s" % (lines, r)) and
             self.expect(name in text, "the file is not named: %s" % r) and
             self.expect(re.search(reason, text, re.I), "reason /%s/ missing: %s" % (reason, r)) and
             self.expect(not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text),
                         "control characters in the text: %r" % text))

    def refused(self, path, reason, info=True, check=True, write=True):
        """No command opens it, whatever it is to be opened for; the file stays.
        check="damage": check, which opens what is damaged, may also report
        corruptions."""
        before = file_hash(path)
        runs = [("convert", "-f", self.fmt, "-O", "raw", path, self.path("out.raw")),
                ("dd", "-f", self.fmt, "-O", "raw", "bs=64k", "count=1",
                 "if=%s" % path, "of=%s" % self.path("dd.raw"))]
        if info:
            runs.append(("info", "-f", self.fmt, path))
        if check == "damage":
            r = self.img("check", "-f", self.fmt, path)
            if r.rc != 2:
                self.one_line(r, path, reason)
        elif check:
            runs.append(("check", "-f", self.fmt, path))
        for words in runs:
            self.one_line(self.img(*words), path, reason)
        self.one_line(self.io(path, "read 0 512", ro=True), path, reason)
        if write:
            self.one_line(self.io(path, "write 0 512"), path, reason)
        self.expect(file_hash(path) == before, "the file was changed")

    def io_fails(self, path, cmd, reason=None, ro=False, offset=True):
        """The image opens, but cmd ends in an I/O error; what the report on
        stderr says about the image names an offset."""
        r = self.io(path, cmd, ro=ro)
        if r.hung or r.rc < 0:
            return r
        self.expect(r.rc == 1, "did not fail: %s" % r)
        self.expect("failed: Input/output error" in r.out, "not EIO: %s" % r)
        if reason:
            self.expect(re.search(reason, r.err, re.I), "reason /%s/ missing: %s" % (reason, r))
            # QEMU's line about metadata has none, and is ours.
            self.expect(not offset or "(overlaps with " in r.err or
                        re.search(r"0x[0-9a-f]+|\b\d+\b", r.err), "no offset: %s" % r)
        self.expect(len(r.lines) <= 2, "too many lines: %s" % r)
        return r

    def read_fails(self, path, guest=0, reason=None, length=512):
        """A read gets EIO; opened read-only, the file stays as it is."""
        before = file_hash(path)
        self.io_fails(path, "read %d %d" % (guest, length), reason, ro=True)
        r = self.img("convert", "-f", self.fmt, "-O", "raw", path, self.path("out.raw"))
        self.expect(r.hung or r.rc == 1, "convert did not fail: %s" % r)
        self.expect(file_hash(path) == before, "a read-only open changed the file")

    def content(self, path, program="ours", fmt=None):
        """The guest's bytes, by our program or the oracle."""
        out = self.path("content.raw")
        if os.path.exists(out):
            os.unlink(out)
        words = ("convert", "-f", fmt or self.fmt, "-O", "raw", path, out)
        r = self.img(*words) if program == "ours" else self.oracle(*words)
        if r.rc != 0:
            self.bad("cannot be read: %s" % r)
            return None
        with open(out, "rb") as f:
            return f.read()

    def reads_alike(self, path):
        """We and the oracle read the same bytes; the file stays as it is."""
        before = file_hash(path)
        ours, theirs = self.content(path), self.content(path, "oracle")
        self.expect(ours is None or theirs is None or ours == theirs,
                    "reads differently from the oracle")
        self.expect(file_hash(path) == before, "a read-only open changed the file")
        return ours

    def check_counts(self, path, program="ours"):
        """(exit code, corruptions, leaks) of check."""
        words = ("check", "-f", self.fmt, "--output=json", path)
        r = self.img(*words) if program == "ours" else self.oracle(*words)

        def number(key):
            m = re.search(r'"%s":\s*(\d+)' % key, r.out)
            return int(m.group(1)) if m else 0
        return r.rc, number("corruptions"), number("leaks"), r

    def check_alike(self, path):
        """check finds what the oracle finds, and writes nothing."""
        before = file_hash(path)
        ours, theirs = self.check_counts(path), self.check_counts(path, "oracle")
        self.expect(ours[:3] == theirs[:3],
                    "check says %s, the oracle %s\n%s\noracle: %s" %
                    (ours[:3], theirs[:3], ours[3], theirs[3]))
        self.expect(file_hash(path) == before, "check changed the file")
        return ours

    def check_finds(self, path, corruptions=True):
        """check reports damage of a kind, without changing the file."""
        before = file_hash(path)
        rc, bad, leaks, r = self.check_counts(path)
        self.expect(rc in (1, 2, 3) and (bad > 0 or rc == 1) if corruptions else leaks > 0,
                    "check does not see it: %s" % r)
        self.expect(file_hash(path) == before, "check changed the file")

    def sound(self, path):
        """Both checkers call it free of corruptions and leaks."""
        r = self.oracle("check", "-f", self.fmt, path)
        self.expect(r.rc == 0, "the oracle's check: %s" % r)
        r = self.img("check", "-f", self.fmt, path)
        self.expect(r.rc == 0, "our check: %s" % r)

    def corrupt_bit(self, path):
        return bool(q.field(path, "incompatible_features") & q.INCOMPAT_CORRUPT)

    def write_marks_corrupt(self, path, guest=0, length=512, cmd=None):
        """A write that would land on metadata: EIO, the corrupt bit set, and no
        other byte that was there changed."""
        with open(path, "rb") as f:
            before = bytearray(f.read())
        self.io_fails(path, cmd or "write -P 0xaa %d %d" % (guest, length), "corrupt")
        with open(path, "rb") as f:
            after = f.read()
        self.expect(self.corrupt_bit(path), "the corrupt bit is not set")
        at = q.OFFSET_OF["incompatible_features"]
        before[at:at + 8] = after[at:at + 8]
        diff = [i for i in range(len(before)) if i < len(after) and before[i] != after[i]]
        self.expect(len(after) >= len(before), "the file shrank")
        return diff

    def inspected(self):
        """inspect judges (and may warn), or says why it cannot in a line, whatever the
        case has left behind, be it that its time is up; it changes nothing."""
        if IS_QEMU:
            return
        for name in sorted(os.listdir(self.tmp))[:16]:      # chains have thousands
            path = self.path(name)
            if not os.path.isfile(path) or name in ("out.raw", "dd.raw", "content.raw"):
                continue
            small = os.path.getsize(path) < 64 << 20
            before = file_hash(path) if small else None
            r = self.img("inspect", path, cpu=CPU_LIMIT + 3, rss=3 * RSS_LIMIT,
                         seconds=int(CPU_LIMIT) + 1)
            unasked = [line for line in r.err.splitlines() if ": warning: " not in line]
            judged = re.search(r"^verdict: (safe|damaged|suspicious|refused)$", r.out, re.M)
            self.expect(r.hung or r.rc < 0 or
                        (not unasked and r.rc in (0, 2, 3, 4) if judged
                         else r.rc == 1 and len(r.lines) == 1),
                        "inspect neither judges nor says why not: %s" % r)
            self.expect(not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", r.out),
                        "control characters from inspect: %r" % r.out)
            self.expect(not small or file_hash(path) == before, "inspect changed the file")

    def close(self):
        shutil.rmtree(self.tmp, ignore_errors=True)


def main(only=None):
    """Runs the registered cases (or those whose names start with a word given
    on the command line), prints TAP."""
    only = only or sys.argv[1:]
    cases = [c for c in _cases if not only or any(c[0].startswith(o) for o in only)]
    if not (os.access(IMG, os.X_OK) and os.access(IO, os.X_OK)):
        print("Bail out! %s or %s is missing" % (IMG, IO))
        return 1
    for name, fn in cases:
        t = Test(tempfile.mkdtemp(prefix="platter-bad.", dir=os.environ.get("TMPDIR", "/tmp")))
        try:
            fn(t)
            t.inspected()
        except Exception as ex:                     # noqa: BLE001: a broken case is a failed case
            t.bad("the test itself: %s: %s" % (type(ex).__name__, ex))
        t.close()
        if t.skipped and not t.problems:
            tap.skip(name, t.skipped)
        else:
            tap.ok(not t.problems, name, *t.problems[:8], "%d problems" % len(t.problems))
    tap.finish()
