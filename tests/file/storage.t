#!/usr/bin/env python3
"""Local storage as it is met outside: full and read-only file systems, file systems
without O_DIRECT, block devices, strange files.  Where QEMU has words, its words.

What needs mounts or loop devices is skipped where they cannot be had.
"""
import atexit
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import tap                                                      # noqa: E402
from tap import IMG, IO, QEMU_IMG, QEMU_IO                      # noqa: E402

work = tap.own_place('file')
mounts, loops = [], []


def cleanup():
    for m in reversed(mounts):
        subprocess.run(['umount', '-l', m], stderr=subprocess.DEVNULL)
    for dev in loops:
        subprocess.run(['losetup', '-d', dev], stderr=subprocess.DEVNULL)


atexit.register(cleanup)


def run(*argv):
    """Exit status and everything said, without the program's name."""
    r = tap.run(*argv, stderr=subprocess.STDOUT)
    out = re.sub(r'^(qemu|platter)-(img|io): ', '', r.stdout, flags=re.M)
    return r.returncode, out


def alike(name, *args, tool='img', must_fail=True):
    """Both programs, the same arguments: same status, same words."""
    want = run(QEMU_IMG if tool == 'img' else QEMU_IO, *args)
    got = run(IMG if tool == 'img' else IO, *args)
    tap.ok(got == want and (want[0] != 0) == must_fail, name, 'QEMU:', want, 'here:', got)


def path(*names):
    return os.path.join(work, *names)


def mount(kind, name, options='defaults'):
    at = path(name)
    os.makedirs(at, exist_ok=True)
    r = subprocess.run(['mount', '-t', kind, '-o', options, kind, at],
                       stderr=subprocess.DEVNULL)
    if r.returncode:
        return None
    mounts.append(at)
    return at


def random_file(name, size):
    with open(name, 'wb') as f:
        f.write(os.urandom(size))
    return name


def digest(name):
    with open(name, 'rb') as f:
        return hashlib.sha256(f.read()).hexdigest()


# ---- full file systems ---------------------------------------------------------------

def full():
    at = mount('tmpfs', 'full', 'size=3m')
    if not at:
        return tap.skip('full file systems', 'no mounts here')
    src = random_file(path('src'), 4 << 20)
    for fmt in ('raw', 'qcow2'):
        out = os.path.join(at, 'out')
        status, said = run(IMG, 'convert', '-f', 'raw', '-O', fmt, src, out)
        tap.ok(status == 1 and 'No space left on device' in said,
               f'convert to {fmt} on a full file system fails with ENOSPC', status, said)
        if os.path.exists(out):
            os.unlink(out)
    disk, filler = os.path.join(at, 'disk'), os.path.join(at, 'filler')
    run(IMG, 'create', '-f', 'qcow2', disk, '16M')
    run(IO, '-f', 'qcow2', '-c', 'write -P 1 0 1M', disk)
    random_file(filler, 1 << 20)
    status, said = run(IO, '-f', 'qcow2', '-c', 'write -P 2 1M 4M', disk)
    tap.ok(status == 1 and 'No space left on device' in said,
           'D: a write to an image on a full file system fails with ENOSPC', status, said)
    status, said = run(QEMU_IMG, 'check', '-f', 'qcow2', disk)
    tap.ok(status in (0, 3), 'D: after ENOSPC the image is clean, or leaks only', status, said)
    status, said = run(QEMU_IO, '-r', '-f', 'qcow2', '-c', 'read -P 1 0 1M', disk)
    tap.ok(status == 0 and 'verification failed' not in said, 'D: old data are unharmed', said)
    os.unlink(filler)
    subprocess.run(['mount', '-o', 'remount,size=20m', at], check=True)
    status, said = run(IO, '-f', 'qcow2', '-c', 'write -P 2 1M 4M', '-c', 'read -P 2 1M 4M',
                       '-c', 'read -P 1 0 1M', disk)
    tap.ok(status == 0 and 'fail' not in said, 'D: with room the image works again', said)
    alike('preallocation that does not fit', 'create', '-q', '-f', 'raw', '-o',
          'preallocation=falloc', os.path.join(at, 'big'), '100M')


# ---- read-only and direct ---------------------------------------------------------------

def read_only():
    at = mount('tmpfs', 'ro', 'size=8m')
    if not at:
        return tap.skip('read-only file systems', 'no mounts here')
    raw = random_file(os.path.join(at, 'raw'), 1 << 20)
    q = os.path.join(at, 'q')
    run(QEMU_IMG, 'convert', '-f', 'raw', '-O', 'qcow2', raw, q)
    before = digest(q)
    subprocess.run(['mount', '-o', 'remount,ro', at], check=True)
    for args in (('info', q), ('map', '-f', 'raw', raw), ('check', q),
                 ('compare', '-f', 'raw', '-F', 'qcow2', raw, q)):
        status, said = run(IMG, *args)
        tap.ok(status == 0, f'{args[0]} works on read-only media', status, said)
    alike('writing to read-only media', 'resize', '-f', 'raw', raw, '2M')
    alike('creating on read-only media', 'create', '-q', '-f', 'raw',
          os.path.join(at, 'new'), '1M')
    tap.ok(digest(q) == before, 'A135: the image is unchanged')


def direct():
    at = mount('ramfs', 'ramfs')
    if not at:
        return tap.skip('file systems without O_DIRECT', 'no mounts here')
    raw = random_file(os.path.join(at, 'raw'), 1 << 20)
    for mode in ('none', 'directsync'):
        alike(f'cache={mode} where O_DIRECT is refused', 'convert', '-f', 'raw', '-T', mode,
              '-O', 'raw', raw, path('out'))


def cache_modes():
    for where in ('/dev/shm', os.environ.get('TMPDIR') or '/var/tmp'):
        d = tempfile.mkdtemp(prefix='platter-file-', dir=where)
        try:
            src = random_file(os.path.join(d, 'src'), (1 << 20) + 512 * 3)
            for mode in ('none', 'writeback', 'writethrough', 'directsync', 'unsafe'):
                out = os.path.join(d, 'out')
                status, said = run(IMG, 'convert', '-f', 'raw', '-T', mode, '-t', mode, '-O',
                                   'raw', src, out)
                tap.ok(status == 0 and digest(out) == digest(src), f'{where}: cache={mode}', said)
        finally:
            shutil.rmtree(d)


# ---- strange names ------------------------------------------------------------------------

def strange():
    os.mkdir(path('dir'))
    os.mkfifo(path('fifo'))
    for name in ('dir', 'absent'):
        alike(f'info of {name}', 'info', path(name))
        alike(f'create over {name}' if name == 'dir' else 'create in an absent directory',
              'create', '-q', '-f', 'raw', path(name) if name == 'dir' else path(name, 'x'), '1M')
    for args in (('info', path('fifo')), ('check', '-f', 'qcow2', path('fifo')),
                 ('create', '-q', '-f', 'raw', path('fifo'), '1M'),
                 ('convert', '-f', 'raw', '-O', 'raw', path('fifo'), path('out'))):
        status, said = run(IMG, *args)
        tap.ok(status == 1 and 'fifo' in said and said.count('\n') == 1,
               f'A75: {args[0]} of a FIFO is refused', status, said)
    for name in ('/dev/zero', '/dev/full'):
        alike(f'A75: check of {name}', 'check', '-f', 'qcow2', name)
        alike(f'A75: create over {name}', 'create', '-q', '-f', 'raw', name, '1M')
        alike(f'A75: convert of {name}', 'convert', '-f', 'raw', '-O', 'raw', name, path('out'),
              must_fail=False)
    long = 'x' * 300
    alike('a name that is too long', 'info', path(long))
    with open(path('with:colon'), 'wb') as f:
        f.truncate(1 << 20)
    status, said = run(IMG, 'info', 'file:' + path('with:colon'))
    tap.ok(status == 0 and 'virtual size: 1 MiB' in said, 'file: in front of a name', said)


# ---- block devices --------------------------------------------------------------------------

def loop_device(name, size, sector=None):
    with open(path(name), 'wb') as f:
        f.truncate(size)
    argv = ['losetup', '-f', '--show'] + (['-b', str(sector)] if sector else []) + [path(name)]
    r = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if r.returncode:
        return None
    loops.append(r.stdout.strip())
    return loops[-1]


def device(sector):
    dev = loop_device(f'disk{sector}', 8 << 20, sector)
    if not dev:
        return tap.skip('no loop devices here')
    what = f'device with {sector}-byte sectors'
    src = random_file(path('src'), 8 << 20)
    for mode in ('writeback', 'none'):
        run(QEMU_IO, '-f', 'raw', '-c', 'write -P 85 0 8M', dev)
        status, said = run(IMG, 'convert', '-n', '-f', 'raw', '-O', 'raw', '-t', mode, src, dev)
        same = run(QEMU_IMG, 'compare', '-f', 'raw', '-F', 'raw', src, dev)
        tap.ok(status == 0 and same[0] == 0, f'{what}: convert to it, cache={mode}', said, same)
        status, said = run(IMG, 'convert', '-f', 'raw', '-O', 'raw', '-T', mode, dev, path('out'))
        tap.ok(status == 0 and digest(path('out')) == digest(src),
               f'{what}: convert from it, cache={mode}', said)
    script = ['write -P 1 0 8M', 'write -z 1M 1M', 'write -z -u 3M 1M', 'discard 5M 1M',
              'write -P 7 513 1000', 'read -P 0 1M 1M', 'read -P 0 3M 1M', 'read -P 7 513 1000',
              'read -P 1 2M 1M', 'read -P 1 0 513']
    argv = [a for c in script for a in ('-c', c)]
    for extra in ([], ['-t', 'none']):
        status, said = run(IO, '-f', 'raw', *extra, *argv, dev)
        tap.ok(status == 0 and 'fail' not in said, f'{what}: zeroes, discards, odd writes', said)
    status, said = run(IMG, 'create', '-f', 'qcow2', dev, '1G')
    check = run(QEMU_IMG, 'check', '-f', 'qcow2', dev)
    tap.ok(status == 0 and check[0] == 0, f'{what}: qcow2 on it', said, check)
    # Space for a cluster is where the file would grow; a device cannot.
    status, said = run(IO, '-f', 'qcow2', '-c', 'write -P 3 0 4M', '-c', 'read -P 3 0 4M', dev)
    check = run(QEMU_IMG, 'check', '-f', 'qcow2', dev)
    tap.ok(status == 0 and 'fail' not in said and check[0] == 0, f'{what}: qcow2 written', said,
           check)
    status, said = run(IO, '-f', 'qcow2', '-c', 'write -P 3 0 16M', dev)
    tap.ok(status == 1 and 'No space left on device' in said, f'{what}: qcow2 fills it', said)
    alike(f'{what}: create larger than it', 'create', '-q', '-f', 'raw', dev, '1G')
    alike(f'{what}: create on it', 'create', '-q', '-f', 'raw', dev, '8M', must_fail=False)
    alike(f'{what}: grow it', 'resize', '-f', 'raw', dev, '1G')
    alike(f'{what}: shrink it', 'resize', '--shrink', '-f', 'raw', dev, '4M')
    opts = f'driver=raw,file.driver=host_device,file.filename={dev}'
    status, said = run(IO, '--image-opts', '-c', 'write -P 9 0 4k', '-c', 'read -P 9 0 4k', opts)
    tap.ok(status == 0 and 'fail' not in said, f'{what}: driver=host_device', said)
    status, said = run(IO, '-r', '--image-opts', '-c', 'read 0 1k',
                       f'driver=raw,file.driver=host_device,file.filename={src}')
    tap.ok(status == 1 and 'either a character or block device' in said,
           'driver=host_device wants a device', said)


def direct_4k():
    """A file system on 4 KiB sectors, where 512-byte O_DIRECT is refused."""
    dev = loop_device('fs4k', 64 << 20, 4096)
    if not dev or run('mkfs.ext4', '-q', '-b', '4096', dev)[0]:
        return tap.skip('O_DIRECT on 4 KiB sectors', 'no loop devices or no mkfs.ext4 here')
    at = path('mnt4k')
    os.mkdir(at)
    if run('mount', dev, at)[0]:
        return tap.skip('O_DIRECT on 4 KiB sectors', 'no mounts here')
    mounts.append(at)
    for size in (1 << 20, (1 << 20) + 512, (1 << 20) + 4095, 100):
        src = random_file(os.path.join(at, 'src'), size)
        for aio in ('threads', 'io_uring'):
            os.environ['PLATTER_AIO'] = aio
            status, said = run(IMG, 'convert', '-f', 'raw', '-O', 'raw', '-T', 'none', src,
                               path('out'))
            with open(src, 'rb') as a, open(path('out'), 'rb') as b:
                same = b.read() == a.read().ljust((size + 511) // 512 * 512, b'\0')
            tap.ok(status == 0 and same, f'4 KiB sectors, O_DIRECT, {aio}: {size} bytes', said)
        del os.environ['PLATTER_AIO']
        status, said = run(IO, '-n', '-f', 'raw', '-c', 'write -P 5 1 98', '-c', 'read -P 5 1 98',
                           '-c', 'write -P 6 0 1', '-c', 'read -P 6 0 1', src)
        tap.ok(status == 0 and 'fail' not in said, f'4 KiB sectors, O_DIRECT: odd writes', said)


full()
read_only()
direct()
cache_modes()
strange()
device(512)
device(4096)
direct_4k()
tap.finish()
