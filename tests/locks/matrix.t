#!/usr/bin/env python3
"""Image locks: whoever holds an image, QEMU or Platter, and whoever wants it then,
QEMU or Platter, the outcome is that of QEMU and QEMU, to the words of the refusal.

A holder is qemu-io or platter-io with an image open; who wants it runs one command.
The reference for each pair of roles is what the two QEMU programs do.
"""
import os
import re
import signal
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import tap                                                      # noqa: E402
from tap import IMG, IO, QEMU_IMG, QEMU_IO                      # noqa: E402

TOOLS = {
    'qemu': {'io': QEMU_IO, 'img': QEMU_IMG},
    'ours': {'io': IO, 'img': IMG},
}
work = tap.own_place('locks')
image = os.path.join(work, 'disk.img')

HOLDERS = {(fmt, mode): ['-f', fmt] + (['-r'] if mode == 'ro' else [])
           for fmt in ('raw', 'qcow2') for mode in ('ro', 'rw')}

# name: tool, arguments; FMT is the image's format, IMG its name, OUT another name.
WANTS = {
    'reader':          ('io', '-r -f FMT -c READ IMG'),
    'writer':          ('io', '-f FMT -c WRITE IMG'),
    'reader -U':       ('io', '-r -U -f FMT -c READ IMG'),
    'info':            ('img', 'info IMG'),
    'info -U':         ('img', 'info -U IMG'),
    'map':             ('img', 'map -f FMT IMG'),
    'convert from':    ('img', 'convert -f FMT -O raw IMG OUT'),
    'convert -U from': ('img', 'convert -U -f FMT -O raw IMG OUT'),
    'convert to':      ('img', 'convert -f raw -O FMT SRC IMG'),
    'convert -n to':   ('img', 'convert -n -f raw -O FMT SRC IMG'),
    'compare':         ('img', 'compare -f FMT -F raw IMG SRC'),
    'create':          ('img', 'create -f FMT IMG 1M'),
    'resize':          ('img', 'resize -f FMT IMG 2M'),
    'check':           ('img', 'check -f FMT IMG'),
}


def fresh(fmt):
    """The image anew, and a source to convert from, by QEMU."""
    for path in (image, os.path.join(work, 'out')):
        if os.path.exists(path):
            os.unlink(path)
    subprocess.run([TOOLS['qemu']['img'], 'create', '-q', '-f', fmt, image, '1M'], check=True)
    with open(os.path.join(work, 'src'), 'wb') as f:
        f.truncate(1 << 20)


class Holder:
    """A program that has the image open until it is ended."""

    def __init__(self, who, role):
        self.p = subprocess.Popen([TOOLS[who]['io']] + HOLDERS[role] + [image],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, bufsize=1)
        self.p.stdin.write('read 0 512\n')
        self.p.stdin.flush()
        self.first = ''
        while 'read 512/512' not in self.first:
            line = self.p.stdout.readline()
            if not line:
                break
            self.first += line

    def locks(self):
        """The bytes locked on the image."""
        inode = os.stat(image).st_ino
        held = set()
        with open('/proc/locks') as f:
            for line in f:
                m = re.search(rf'OFDLCK .*:{inode} (\d+) (\d+)$', line)
                if m:
                    held.update(range(int(m[1]), int(m[2]) + 1))
        return held

    def end(self):
        self.p.stdin.close()
        self.p.stdout.read()
        return self.p.wait(timeout=60)

    def kill(self):
        os.kill(self.p.pid, signal.SIGKILL)
        self.p.communicate()


def want(who, name, fmt):
    """Exit status and the lines about locks of one command."""
    tool, text = WANTS[name]
    words = {'FMT': fmt, 'IMG': image, 'OUT': os.path.join(work, 'out'),
             'SRC': os.path.join(work, 'src'), 'READ': 'read 0 512', 'WRITE': 'write 0 512'}
    argv = [TOOLS[who][tool]] + [words.get(w, w) for w in text.split()]
    r = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       timeout=60, stdin=subprocess.DEVNULL)
    about = [re.sub(r'^.*(Failed to get )', r'\1', line) for line in r.stdout.splitlines()
             if 'lock' in line and 'Failed to get' in line or 'Is another process' in line]
    return r.returncode, about, r.stdout


def outcome(holder_who, role, want_who, name):
    fresh(role[0])
    h = Holder(holder_who, role)
    try:
        return want(want_who, name, role[0])
    finally:
        h.end()


def pairs():
    known = subprocess.run([TOOLS['ours']['img'], '--help'], stdout=subprocess.PIPE, text=True)
    formats = re.search(r'^Image formats:(.*)', known.stdout, re.M)[1].split()
    for role in HOLDERS:
        for name in WANTS:
            if role[0] not in formats:
                tap.skip(f'{role[0]} {role[1]}, {name}', 'not built in')
                continue
            if name == 'check' and role[0] == 'raw':
                continue
            ref = outcome('qemu', role, 'qemu', name)
            for hold, wants in (('qemu', 'ours'), ('ours', 'qemu'), ('ours', 'ours')):
                got = outcome(hold, role, wants, name)
                tap.ok(got[:2] == ref[:2],
                       f'{hold} holds {role[0]} {role[1]}, {wants} wants {name}: '
                       f'{"refused" if ref[0] else "let in"}',
                       f'QEMU and QEMU: {ref[0]} {ref[2]}', f'here: {got[0]} {got[2]}')


def bytes_held():
    for role in HOLDERS:
        held = {}
        for who in TOOLS:
            fresh(role[0])
            h = Holder(who, role)
            held[who] = h.locks()
            h.end()
        tap.ok(held['qemu'] and held['ours'] == held['qemu'],
               f'{role[0]} {role[1]}: the bytes QEMU locks', held)


def lock_dies_with_its_process():
    fresh('qcow2')
    h = Holder('ours', ('qcow2', 'rw'))
    before = want('qemu', 'writer', 'qcow2')
    h.kill()
    after = want('qemu', 'writer', 'qcow2')
    tap.ok(before[0] != 0 and after[0] == 0, 'the lock dies with its process',
           before, after)


bytes_held()
pairs()
lock_dies_with_its_process()
tap.finish()
