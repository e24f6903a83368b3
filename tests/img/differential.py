"""differential.py - the same command lines through qemu-img 10 and platter-img.

A test file makes a Suite of images (fixtures.py), gives it tables of command
lines and runs them:

    from differential import Suite
    suite = Suite()
    suite.table('''
        # words after a '#' head a group and become part of the test's name
        info raw.img
        @nobody resize -f raw raw.img 2M
        ~help-text create --help
            out| ^Create an empty image
    ''')
    suite.run()

Each line runs twice, in two directories that hold fresh copies of the images it
names (and of what those need).  Equal must be: the exit status, stdout, stderr
(the program's own name aside), which files exist afterwards, and what is in
them: byte for byte, or, for a qcow2 image, the same guest data, the same
`qemu-img info` and the same `qemu-img check` status.  A file that qemu-img did
not touch must not be touched.

Prefixes of a line
    @nobody          run without root's power over permissions, for what they forbid
    @hold=w:FILE     meanwhile another process has FILE open, as QEMU locks it:
    @hold=r:FILE     w for writing, r for reading
    @limit=BYTES     no file may grow past this (RLIMIT_FSIZE)
    ~ID              this differs on purpose: docs/compatibility.md has a heading
                     "ID" with the reason.  Exit status and files must still
                     agree; each "out|" or "err|" line below is a regular
                     expression our stdout or stderr must match, and the streams
                     so described must really differ from qemu-img's.
                     "status| N" says what our exit status is if that differs.
                     "files|" says that the files may differ.
Words are split as a shell does; nothing is expanded.
"""
import ctypes
import fcntl
import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile

import fixtures
from fixtures import bitmaps

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
from tap import IMG as OURS, ORACLE as ORACLE_DIR               # noqa: E402
from tap import QEMU_IMG as ORACLE, ROOT, finish, ok            # noqa: E402

COMPATIBILITY = os.path.join(ROOT, 'docs/compatibility.md')
TIMEOUT = 90          # seconds: some of the oracle's amends take 11 of them on an idle machine
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
F_OFD_SETLK = 37


class Case:
    def __init__(self, group, line):
        self.group = group
        self.line = line
        self.words = shlex.split(line)
        self.why = None                 # ID of an intended difference
        self.out, self.err = [], []     # regular expressions for it
        self.status = None
        self.files_differ = False
        self.nobody = False
        self.holds = []
        self.limit = None
        while self.words and self.words[0][:1] in '@~' and len(self.words[0]) > 1:
            self.prefix(self.words.pop(0))

    def prefix(self, word):
        if word[0] == '~':
            self.why = word[1:]
        elif word == '@nobody':
            self.nobody = True
        elif word.startswith('@hold='):
            self.holds.append(word[6:].split(':', 1))
        elif word.startswith('@limit='):
            self.limit = int(word[7:])
        else:
            raise ValueError('unknown prefix ' + word)

    def named(self):
        """All words that may name an image."""
        return ' '.join(self.words + [name for _, name in self.holds])

    def expect(self, line):
        kind, _, text = line.partition('|')
        kind, text = kind.strip(), text.strip()
        if kind == 'status':
            self.status = int(text)
        elif kind == 'files':
            self.files_differ = True
        else:
            {'out': self.out, 'err': self.err}[kind].append(text)


class Result:
    """One run: exit status, streams, and what the directory holds after it."""

    def __init__(self, program, case, where):
        before = hash_files(where)
        held = [hold(os.path.join(where, name), mode) for mode, name in case.holds]
        done = subprocess.run([program] + case.words, cwd=where, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=TIMEOUT,
                              preexec_fn=lambda: drop(case), env=environment())
        for fd in held:
            os.close(fd)
        self.status = done.returncode
        self.out = own_name(done.stdout)
        self.err = own_name(done.stderr)
        self.where = where
        self.after = hash_files(where)
        self.touched = {n for n in self.after if before.get(n) != self.after[n]}
        self.removed = set(before) - set(self.after)


def environment():
    env = dict(os.environ)
    env.update(LC_ALL='C', TZ='UTC')
    return env


def drop(case):
    if case.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (case.limit, case.limit))
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if case.nobody and os.geteuid() == 0:
        # Not another user: that one might not get at a build below /root.
        for cap in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, cap, 0, 0, 0)


def hold(path, mode):
    """The OFD locks of a QEMU that has the image open."""
    fd = os.open(path, os.O_RDWR)
    for byte in {'w': (100, 101, 103, 201, 203), 'r': (100, 201, 203)}[mode]:
        fcntl.fcntl(fd, F_OFD_SETLK,
                    struct.pack('hhqqi4x', fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    return fd


def own_name(data):
    """Program names (with a path in getopt's messages) are all alike, and so are
    the times that bench takes."""
    text = data.decode('utf-8', 'backslashreplace')
    text = re.sub(r'#block[0-9]{3,}', '#blockN', text)
    text = re.sub(r'Run completed in [0-9]+\.[0-9]{3} seconds', 'Run completed in N seconds', text)
    return re.sub(r"(^|'|\n)(?:/\S*/)?(?:qemu|platter)-img\b", r'\1IMG', text)


def hash_files(where):
    found = {}
    for folder, _, names in os.walk(where):
        for name in names:
            path = os.path.join(folder, name)
            rel = os.path.relpath(path, where)
            if os.path.islink(path):
                found[rel] = 'link ' + os.readlink(path)
            elif os.path.isfile(path):
                found[rel] = hash_file(path)
    return found


def hash_file(path):
    """Of length and data, skipping holes, so that sparse exabytes are fine."""
    size = os.stat(path).st_size
    h = hashlib.sha256(str(size).encode())
    fd = os.open(path, os.O_RDONLY)
    try:
        at = 0
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA) // 65536 * 65536
            except OSError:
                break
            block = os.pread(fd, 65536, at)
            if block.strip(b'\0'):
                h.update(at.to_bytes(8, 'little') + block.rstrip(b'\0'))
            at += 65536
    finally:
        os.close(fd)
    return h.hexdigest()


def oracle(where, *words):
    return subprocess.run([ORACLE] + list(words), cwd=where, capture_output=True,
                          timeout=TIMEOUT, env=environment())


def described(where, name):
    """qemu-img info without what may honestly differ: how much space is used."""
    done = oracle(where, 'info', '-U', '--output=json', name)
    if done.returncode:
        return done.stderr
    info = json.loads(done.stdout)
    for key in ('actual-size', 'children'):
        info.pop(key, None)
    info.get('format-specific', {}).get('data', {}).pop('cid', None)
    for snapshot in info.get('snapshots', []):
        for key in ('date-sec', 'date-nsec'):
            snapshot.pop(key, None)
    return info


def image_difference(ours, theirs, name):
    """Two files with different bytes: None if they are the same image."""
    a, b = (os.path.join(r.where, name) for r in (ours, theirs))
    with open(a, 'rb') as f, open(b, 'rb') as g:
        magic_a, magic_b = f.read(4), g.read(4)
    if re.search(r'-([fs]\d{3}|flat)\.vmdk$', name):
        return None                 # an extent: compared through its image
    if magic_a not in (b'QFI\xfb', b'KDMV', b'# Di', b'vhdx') or magic_b != magic_a:
        return '%s differs' % name
    one, two = described(ours.where, name), described(theirs.where, name)
    if one != two:
        return '%s: info differs\n ours   %s\n theirs %s' % (name, one, two)
    one, two = (oracle(r.where, 'check', '-q', name) for r in (ours, theirs))
    if one.returncode != two.returncode:
        return '%s: qemu-img check says %d (theirs %d)\n%s' % (
            name, one.returncode, two.returncode, one.stderr.decode())
    one, two = (bitmaps.read(x) if magic_a == b'QFI\xfb' else {} for x in (a, b))
    if one != two:
        return '%s: bitmaps differ\n ours   %s\n theirs %s' % (name, one, two)
    same = oracle(ours.where, 'compare', '-s', '-U', name, b)
    if same.returncode > 1 or same.returncode and not same_without_strict(ours, name, b):
        return '%s: qemu-img compare: %s%s' % (name, same.stdout.decode(), same.stderr.decode())
    return None


def same_without_strict(ours, name, theirs):
    return oracle(ours.where, 'compare', '-U', name, theirs).returncode == 0


def block(title, text):
    return title + '\n' + ''.join('    ' + line + '\n' for line in text.splitlines())


class Suite:
    def __init__(self):
        self.cases = []
        self.top = tempfile.mkdtemp(prefix='differential.')
        os.chmod(self.top, 0o755)
        self.stock = os.path.join(self.top, 'stock')
        os.mkdir(self.stock)

    def table(self, text):
        group, case = '', None
        for line in text.splitlines():
            line = line.strip()
            if line.startswith('#'):
                group = line[1:].strip()
            elif case and re.match(r'(out|err|status|files) *\|', line):
                case.expect(line)
            elif line:
                case = Case(group, line)
                self.cases.append(case)

    def run(self):
        try:
            self.check_reasons()
            if not os.access(ORACLE, os.X_OK):
                print('Bail out! no qemu-img 10: run tests/oracle.sh')
                sys.exit(1)
            fixtures.make(self.stock, '\n'.join(c.named() for c in self.cases), ORACLE_DIR)
            for case in self.cases:
                self.run_case(case)
        finally:
            shutil.rmtree(self.top, ignore_errors=True)
        finish()

    def report(self, good, name, detail=''):
        ok(good, name.replace('#', '\\#'), detail)

    def check_reasons(self):
        """Whatever differs on purpose is written down where users look."""
        with open(COMPATIBILITY) as f:
            known = re.findall(r'^#+ +`?([a-z0-9-]+)`?', f.read(), re.M)
        missing = {c.why for c in self.cases if c.why} - set(known)
        self.report(not missing, 'every intended difference has its reason in '
                    'docs/compatibility.md', 'without: %s' % ', '.join(missing) if missing else '')

    def copy_images(self, case, where):
        """Fresh copies of the images the command line names, and of theirs."""
        os.mkdir(where)
        os.chmod(where, 0o777 if case.nobody else 0o755)
        fixtures.copy(self.stock, where, case.named())

    def run_case(self, case):
        name = (case.group + ': ' if case.group else '') + case.line
        results = []
        for who, program in (('theirs', ORACLE), ('ours', OURS)):
            where = os.path.join(self.top, who)
            self.copy_images(case, where)
            try:
                results.append(Result(program, case, where))
            except subprocess.TimeoutExpired:
                self.report(False, name, '%s did not end within %d s' % (program, TIMEOUT))
                break
        if len(results) == 2:
            detail = self.differences(case, results[1], results[0])
            self.report(not detail, name, detail)
        for who in ('theirs', 'ours'):
            shutil.rmtree(os.path.join(self.top, who), ignore_errors=True)

    def differences(self, case, ours, theirs):
        found = []
        want = theirs.status if case.status is None else case.status
        if ours.status != want:
            found.append('exit status %d, expected %d' % (ours.status, want))
        for stream, patterns in (('out', case.out), ('err', case.err)):
            found += self.stream_differences(stream, patterns, getattr(ours, stream),
                                             getattr(theirs, stream))
        if case.why and case.status == theirs.status:
            found.append('the exit status no longer differs')
        if not case.files_differ:
            found += self.file_differences(ours, theirs)
        return '\n'.join(found)

    def stream_differences(self, stream, patterns, ours, theirs):
        if not patterns:
            if ours == theirs:
                return []
            return [block('std%s, ours:' % stream, ours) + block('theirs:', theirs)]
        found = [block('std%s does not match %s:' % (stream, p), ours)
                 for p in patterns if not re.search(p, ours, re.M)]
        if ours == theirs:
            found.append('std%s no longer differs from qemu-img' % stream)
        return found

    def file_differences(self, ours, theirs):
        found = []
        if set(ours.after) != set(theirs.after):
            found.append('files: ours %s, theirs %s' % (sorted(ours.after), sorted(theirs.after)))
        for name in sorted(set(ours.after) & set(theirs.after)):
            if ours.after[name] == theirs.after[name]:
                continue
            if name in ours.touched and name not in theirs.touched:
                found.append('%s was changed; qemu-img leaves it alone' % name)
                continue
            different = image_difference(ours, theirs, name)
            if different:
                found.append(different)
        return found
