#!/usr/bin/env python3
"""What convert, dd, compare and bench do when storage fails, and how long they take."""
import hashlib
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, enter_place, finish, ok, run               # noqa: E402

MIB = 1 << 20


def digest(path):
    with open(path, 'rb') as f:
        return hashlib.sha256(f.read()).hexdigest()


def data(path, size, seed=1):
    with open(path, 'wb') as f:
        f.write(random.Random(seed).randbytes(size))


def fault(path, **options):
    """The image as seen through the fault filter."""
    return 'driver=raw,file.driver=fault,%s,file.file.filename=%s' % (
        ','.join('file.%s=%s' % kv for kv in options.items()), path)


def text(p):
    return 'exit status %d\n%s%s' % (p.returncode, p.stdout, p.stderr)


def test_full_disk():
    if os.geteuid() != 0 or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'none', 'small'],
                                           stderr=subprocess.DEVNULL).returncode:
        ok(True, 'a full target disk # SKIP no small file system can be mounted')
        return
    try:
        for fmt in 'raw', 'qcow2':
            before = digest('src.img')
            p = run(IMG, 'convert', '-f', 'raw', '-O', fmt, 'src.img', 'small/out')
            ok(p.returncode == 1 and 'error while writing at byte' in p.stderr
               and 'No space left on device' in p.stderr and p.stderr.count('\n') == 1,
               'a full disk is one error and exit status 1: ' + fmt, text(p))
            ok(digest('src.img') == before, 'a full disk leaves the source alone: ' + fmt)
            if os.path.exists('small/out'):
                os.unlink('small/out')
        p = run(IMG, 'dd', '-f', 'raw', 'if=src.img', 'of=small/out', 'bs=1M')
        ok(p.returncode == 1 and 'error while writing to output image file: No space left'
           in p.stderr, 'dd onto a full disk fails in the same way', text(p))
    finally:
        subprocess.run(['umount', 'small'], check=True)


def test_read_errors():
    bad = fault('src.img', op='read', offset=5 * MIB + 4096, length=512, sticky='on')
    p = run(IMG, 'convert', '--image-opts', '-O', 'raw', bad, 'out.img')
    ok(p.returncode == 1 and p.stderr.startswith('platter-img: error while reading at byte 4194304:'
                                                 ' Input/output error')
       and p.stderr.count('\n') == 1,
       'a read error is reported once, with the offset of its piece', text(p))
    p = run(IMG, 'convert', '--salvage', '--image-opts', '-O', 'raw', bad, 'out.img')
    ok(p.returncode == 0 and p.stderr ==
       'platter-img: warning: error while reading offset 5246976: Input/output error\n',
       '--salvage goes on, with a warning for the one sector', text(p))
    with open('src.img', 'rb') as a, open('out.img', 'rb') as b:
        want, have = bytearray(a.read()), b.read()
    want[5246976:5246976 + 512] = bytes(512)
    ok(bytes(want) == have, '--salvage loses that sector only')
    p = run(IMG, 'convert', '-q', '--salvage', '--image-opts', '-O', 'raw', bad, 'out.img')
    ok(p.returncode == 0 and p.stderr == '', '-q --salvage says nothing', text(p))
    p = run(IMG, 'dd', '--image-opts', 'if=' + bad, 'of=out.img')
    ok(p.returncode == 1 and 'error while reading from input image file: Input/output error'
       in p.stderr, 'dd reports a read error', text(p))
    p = run(IMG, 'compare', '--image-opts', bad, 'driver=raw,file.filename=src.img')
    ok(p.returncode == 4 and 'Error while reading offset 4194304 of ' in p.stderr
       and 'identical' not in p.stdout, 'compare: a read error is exit status 4', text(p))
    p = run(IMG, 'bench', '--image-opts', '-c', '3000', bad)
    ok(p.returncode == 1 and 'Failed request: Input/output error' in p.stderr
       and 'completed' not in p.stdout, 'bench: a read error ends it', text(p))


def test_order_of_findings():
    """What is at the lowest offset counts, whoever is first to see it."""
    data('late.img', 16 * MIB)
    with open('late.img', 'r+b') as f:
        for at in 15 * MIB + 77, 2 * MIB + 600:
            f.seek(at)
            f.write(b'different')
    slow = 'driver=raw,file.driver=delay,file.us=2000,file.file.filename=src.img'
    p = run(IMG, 'compare', '--image-opts', slow, 'driver=raw,file.filename=late.img')
    ok(p.returncode == 1 and p.stdout == 'Content mismatch at offset %d!\n' % (2 * MIB + 512),
       'compare reports the first difference', text(p))
    bad = fault('src.img', op='read', offset=MIB + 1, length=1, sticky='on')
    p = run(IMG, 'compare', '--image-opts', bad, 'driver=raw,file.filename=late.img')
    ok(p.returncode == 4, 'compare: a read error before the first difference wins', text(p))
    bad = fault('src.img', op='read', offset=12 * MIB, length=1, sticky='on')
    p = run(IMG, 'compare', '--image-opts', bad, 'driver=raw,file.filename=late.img')
    ok(p.returncode == 1, 'compare: a difference before a read error wins', text(p))


def test_write_and_close_errors():
    subprocess.run(['truncate', '-s', '16M', 'dst.img'], check=True)
    bad = fault('dst.img', op='write', offset=6 * MIB, length=1, errno='EDQUOT')
    p = run(IMG, 'convert', '-n', '-f', 'raw', '--target-image-opts', 'src.img', bad)
    ok(p.returncode == 1 and 'error while writing at byte 6291456: Disk quota exceeded' in p.stderr,
       'a write error is reported with its offset', text(p))
    bad = fault('dst.img', op='flush', sticky='on')
    p = run(IMG, 'convert', '-n', '-t', 'writeback', '-f', 'raw', '--target-image-opts', 'src.img', bad)
    ok(p.returncode == 1 and 'Input/output error' in p.stderr,
       'a flush that fails at the end is a failure', text(p))
    p = run(IMG, 'bench', '-w', '--flush-interval', '64', '-c', '640', '--image-opts', bad)
    ok(p.returncode == 1 and 'Failed request: Input/output error' in p.stderr,
       'bench: a flush that fails ends it', text(p))
    p = run(IMG, 'bench', '-w', '--no-drain', '--flush-interval', '64', '-c', '640', '--image-opts', bad)
    ok(p.returncode == 1 and 'Failed flush request: Input/output error' in p.stderr,
       'bench --no-drain: a flush that fails ends it', text(p))


def test_delays_and_order():
    slow = 'driver=raw,file.driver=delay,file.us=3000,file.op=%s,file.file.filename=%s'
    for words in [], ['-W'], ['-m', '16'], ['-m', '1']:
        subprocess.run(['truncate', '-s', '0', 'dst.img'], check=True)
        subprocess.run(['truncate', '-s', '16M', 'dst.img'], check=True)
        p = run(IMG, 'convert', '-n', *words, '--image-opts', '--target-image-opts',
                slow % ('read', 'src.img'), slow % ('write', 'dst.img'))
        ok(p.returncode == 0 and digest('src.img') == digest('dst.img'),
           'slow storage on both sides: right data ' + ' '.join(words), text(p))


def test_interrupt():
    p = subprocess.Popen([IMG, 'convert', '-r', '1M', '-f', 'raw', 'src.img', 'out.img'])
    time.sleep(0.5)
    running = p.poll() is None
    p.send_signal(signal.SIGINT)
    ok(running and p.wait(timeout=10) != 0, 'interrupted: the exit status is not 0', p.returncode)


def test_time():
    start = time.monotonic()
    p = run(IMG, 'convert', '-r', '16M', '-f', 'raw', 'src.img', 'out.img')
    took = time.monotonic() - start
    ok(p.returncode == 0 and took > 0.6, '-r: 16 MiB at 16 MiB a second take their time',
       '%f s' % took)
    run(IMG, 'create', '-q', '-f', 'raw', 'huge.img', '64G')
    for fmt in 'raw', 'qcow2':
        start = time.monotonic()
        p = run(IMG, 'convert', '-f', 'raw', '-O', fmt, 'huge.img', 'huge.out')
        took = time.monotonic() - start
        used = os.stat('huge.out').st_blocks * 512
        ok(p.returncode == 0 and took < 2 and used < MIB,
           '64 GiB of nothing cost next to nothing: ' + fmt, '%f s, %d bytes' % (took, used))
    start = time.monotonic()
    p = run(IMG, 'compare', 'huge.img', 'huge.img')
    took = time.monotonic() - start
    ok(p.returncode == 0 and took < 2, '64 GiB of nothing are compared at once', '%f s' % took)


def peak_memory(*args):
    """Exit status and the most memory the process had, in KiB."""
    p = subprocess.Popen([IMG] + list(args))
    peak = 0
    while p.poll() is None:
        try:
            with open('/proc/%d/status' % p.pid) as f:
                peak = max([peak] + [int(line.split()[1]) for line in f if line.startswith('VmHWM')])
        except OSError:
            pass
        time.sleep(0.01)
    return p.returncode, peak


def test_memory():
    """Eight buffers of 2 MiB, whatever the size; the rate makes it last long enough to look."""
    status, peak = peak_memory('convert', '-r', '128M', '-f', 'raw', *['src.img'] * 8, 'out.img')
    with open(IMG, 'rb') as f:
        if b'__asan_init' in f.read():
            ok(True, 'memory does not grow with the image # SKIP sanitizers need more')
            return
    ok(status == 0 and os.path.getsize('out.img') == 128 * MIB and 1024 < peak < 40 * 1024,
       'memory does not grow with the image', 'status %d, %d KiB' % (status, peak))


def main():
    enter_place('convert-faults')
    os.mkdir('small')
    data('src.img', 16 * MIB)
    test_full_disk()
    test_read_errors()
    test_order_of_findings()
    test_write_and_close_errors()
    test_delays_and_order()
    test_interrupt()
    test_time()
    test_memory()
    finish()


main()
