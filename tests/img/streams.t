#!/usr/bin/env python3
"""platter-img's streams: progress on a pipe and on a terminal, SIGUSR1, an
output that cannot be written, secrets kept out of messages."""
import os
import pty
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import tap                                                      # noqa: E402
from tap import IMG, QEMU_IMG, enter_place, finish, ok          # noqa: E402

MIB = 1 << 20


def run(program, *words):
    """Streams as they are: text mode would make line ends of returns."""
    p = tap.run(program, *words, text=False)
    p.stdout, p.stderr = p.stdout.decode(), p.stderr.decode()
    return p


def percentages(text):
    return [float(x) for x in re.findall(r'    \((\d+\.\d\d)/100%\)\r', text)]


def slow(us):
    """The source through a filter that holds each read back."""
    return ('driver=raw,file.driver=delay,file.us=%d,file.op=read,file.file.filename=src.img' % us)


def test_pipe():
    ours = run(IMG, 'convert', '-p', '-f', 'raw', '-O', 'raw', 'src.img', 'out.img')
    theirs = run(QEMU_IMG, 'convert', '-p', '-f', 'raw', '-O', 'raw', 'src.img', 'out2.img')
    ok(re.fullmatch(r'(    \(\d+\.\d\d/100%\)\r)+\n', ours.stdout), 'a pipe gets percentages',
       ours.stdout)
    mine, other = percentages(ours.stdout), percentages(theirs.stdout)
    ok(mine and mine[0] == other[0] == 0 and mine[-1] == other[-1] == 100,
       'the first and the last are what qemu-img prints', (mine, other))
    ok(mine == sorted(mine), 'they never go back', mine)
    ok(ours.stderr == '', 'and nothing goes to stderr', ours.stderr)
    ours = run(IMG, 'convert', '-f', 'raw', '-O', 'raw', 'src.img', 'out.img')
    ok(ours.stdout == ours.stderr == '', 'without -p there is no output at all', ours)
    ours = run(IMG, 'convert', '-q', '-p', '-f', 'raw', '-O', 'raw', 'src.img', 'out.img')
    ok(ours.stdout == '', '-q wins over -p', ours)


def read_terminal(words):
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(IMG, [IMG] + words)
    text = b''
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:
            break
        if not data:
            break
        text += data
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), text.decode()


def test_terminal():
    status, text = read_terminal(['convert', '-p', '--image-opts', '-O', 'raw', slow(20000),
                                  'out.img'])
    ok(status == 0, 'convert on a terminal succeeds', (status, text))
    ok(re.search(r'\r\[#*\.*\] +\d+\.\d\d%', text), 'a terminal gets a bar', repr(text[-400:]))
    ok(re.search(r'[\d.]+ [KMG]iB/s  \d+:\d\d left', text), 'with rate and time left',
       repr(text[-400:]))
    ok(re.search(r'\[#+\] 100\.00%  [\d.]+ [KMG]iB/s  \d+:\d\d taken\x1b\[K\r\n$', text),
       'that ends full, with the time taken and a line end', repr(text[-400:]))


def start_slow(*words):
    return subprocess.Popen([IMG, 'convert'] + list(words) +
                            ['--image-opts', '-O', 'raw', slow(40000), 'out.img'],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def takes_usr1(p):
    """Waits until the program's handler is there."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with open('/proc/%d/status' % p.pid, encoding='ascii') as f:
            caught = int(re.search(r'SigCgt:\s*(\w+)', f.read())[1], 16)
        if caught & 1 << signal.SIGUSR1 - 1:
            return
        time.sleep(0.02)


def test_usr1():
    for words, name in (((), 'without -p'), (('-p',), 'with -p')):
        p = start_slow(*words)
        takes_usr1(p)
        for _ in range(3):
            time.sleep(0.15)
            p.send_signal(signal.SIGUSR1)
        out, err = p.communicate(timeout=120)
        ok(p.returncode == 0, 'SIGUSR1 %s does not end a command' % name, p.returncode)
        ok(re.fullmatch(r'(    \(\d+\.\d\d/100%\)\n)+', err),
           'SIGUSR1 %s prints where it is, on stderr' % name, repr(err))


def test_full():
    for words in (['info', 'src.img'], ['map', '--output=json', 'src.img'], ['--help'],
                  ['measure', '--size', '1G']):
        with open('/dev/full', 'w') as full:
            p = subprocess.run([IMG] + words, stdout=full, stderr=subprocess.PIPE, text=True)
        ok(p.returncode == 1 and 'No space left on device' in p.stderr,
           '%s: output that cannot be written is an error' % ' '.join(words),
           (p.returncode, p.stderr))


def test_secrets():
    for words in (['info', 'iscsi://me%hunter2@localhost:1/iqn/1'],
                  ['info', 'json:{"driver":"raw","file":{"driver":"nope","password":"hunter2"}}'],
                  ['info', '--image-opts', 'driver=raw,file.driver=nope,file.password=hunter2'],
                  ['create', '-f', 'qcow2', '-u', '-b', 'iscsi://me%hunter2@h/iqn/1', '-F', 'raw',
                   'x.qcow2', '1M'],
                  ['create', 'http://me:hunter2@localhost:1/x', '1M']):
        p = run(IMG, *words)
        ok(p.stdout + p.stderr and 'hunter2' not in p.stdout + p.stderr,
           'no password in what "%s ..." prints' % ' '.join(words[:2])[:20], p.stdout + p.stderr)


def main():
    enter_place('streams')
    with open('src.img', 'wb') as f:
        for i in range(64):
            f.write(bytes([i + 1]) * MIB)
    for test in (test_pipe, test_terminal, test_usr1, test_full, test_secrets):
        test()
    finish()


main()
