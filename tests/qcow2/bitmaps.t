#!/usr/bin/env python3
"""Persistent bitmaps over guest writes: platter-io and qemu-io leave the same bits, and
each can go on with the other's."""
import os
import random
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import bitmaps                                                  # noqa: E402
from tap import IMG, IO, QEMU_IMG, QEMU_IO, finish, must, ok, run  # noqa: E402

TOOLS = {('ours', 'img'): IMG, ('ours', 'io'): IO,
         ('theirs', 'img'): QEMU_IMG, ('theirs', 'io'): QEMU_IO}


def by(who, tool, *words, status=0):
    program = TOOLS[who, tool]
    p = run(program, *words) if status is None else must(program, *words, codes=(status,))
    return p.stdout + p.stderr


def io(who, path, commands, status=0):
    words = ['-f', 'qcow2', '-d', 'unmap']
    for command in commands:
        words += ['-c', command]
    return by(who, 'io', *words, path, status=status)


def checked(path):
    return ''.join(by(who, 'img', 'check', path, status=None) for who in ('ours', 'theirs')
                   if 'No errors' not in by(who, 'img', 'check', path, status=None))


def make(who, path, cluster, size, granularity):
    by(who, 'img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=%d' % cluster, path,
        str(size))
    by(who, 'img', 'bitmap', '--add', '-g', str(granularity), path, 'one')
    by(who, 'img', 'bitmap', '--add', '--disable', path, 'off')


def commands(rng, size, n):
    for _ in range(n):
        length = rng.choice([512, 4096, 10240, 65536, 300032])
        at = rng.randrange(0, size - length) // 512 * 512
        yield rng.choice(['write -P 3 %d %d', 'write -z %d %d', 'write -z -u %d %d',
                          'write -P 5 %d %d']) % (at, length)


def tracking(top, cluster, granularity, size, seed):
    name = 'clusters of %d, granularity %d' % (cluster, granularity)
    rng = random.Random(seed)
    paths = {who: os.path.join(top, who) for who in ('ours', 'theirs')}
    for who, path in paths.items():
        make(who, path, cluster, size, granularity)
    for i in range(4):
        steps = list(commands(rng, size, 6))
        for who, path in paths.items():
            io(who, path, steps)
        ours, theirs = (bitmaps.read(paths[who]) for who in ('ours', 'theirs'))
        ok(ours == theirs, '%s: the same bits after round %d' % (name, i),
           'ours %s\ntheirs %s' % (ours, theirs))
        paths['ours'], paths['theirs'] = paths['theirs'], paths['ours']     # go on with each other's
    for path in paths.values():
        detail = checked(path)
        ok(not detail, '%s: check finds nothing' % name, detail)


def discards(top):
    """Discards change what is read: they are recorded."""
    path = os.path.join(top, 'discards')
    make('ours', path, 65536, 4 << 20, 65536)
    io('ours', path, ['write 0 2M'])
    by('ours', 'img', 'bitmap', '--clear', path, 'one')
    io('ours', path, ['discard 1M 256k'])
    ok(bitmaps.dirty(path, 'one') == [(1 << 20, 256 << 10)], 'a discard is recorded')


def killed(top):
    path = os.path.join(top, 'killed')
    make('ours', path, 65536, 4 << 20, 65536)
    before = bitmaps.read(path)
    io('ours', path, ['read 0 1M', 'flush', 'abort'], status=None)
    ok(bitmaps.read(path) == before, 'killed after reads only: the bitmaps are what they were')
    io('ours', path, ['write 0 64k', 'abort'], status=None)
    flags = {name: b[0] for name, b in bitmaps.read(path).items()}
    ok(flags == {'one': 3, 'off': 0}, 'killed after a write: the enabled bitmap is in use, '
       'the disabled one stays valid', str(flags))
    ok('in-use' in by('theirs', 'img', 'info', path), 'qemu-img sees that')
    done = by('ours', 'img', 'bitmap', '--clear', path, 'one', status=1)
    ok('is inconsistent and cannot be used' in done, 'it can only be removed', done)
    io('ours', path, ['write 1M 64k'])
    ok(bitmaps.read(path)['one'][0] == 3, 'a later session leaves it in use')
    by('ours', 'img', 'bitmap', '--remove', path, 'one')
    detail = checked(path)
    ok(not detail and list(bitmaps.read(path)) == ['off'], 'removing it frees its clusters', detail)


def unaware(top):
    """A program without bitmaps clears the autoclear bit: the bitmaps go at the next write."""
    path = os.path.join(top, 'unaware')
    make('ours', path, 65536, 4 << 20, 65536)
    with open(path, 'r+b') as f:
        f.seek(95)
        f.write(b'\0')
    with open(path, 'rb') as f:
        before = f.read()
    by('ours', 'img', 'info', path)
    with open(path, 'rb') as f:
        ok(f.read() == before, 'looking at an image with stale bitmaps changes nothing')
    io('ours', path, ['write 0 64k'])
    ok(bitmaps.read(path) == {}, 'writing to it drops them')
    out = by('theirs', 'img', 'check', '-r', 'all', path, status=0)
    ok('No errors' in out or 'leaks' in out, 'what they used is a leak that check mends', out)


def no_change(top):
    path = os.path.join(top, 'same')
    make('theirs', path, 65536, 4 << 20, 65536)
    with open(path, 'rb') as f:
        before = f.read()
    io('ours', path, ['read 0 64k', 'flush'])
    with open(path, 'rb') as f:
        ok(f.read() == before, 'opened for writing and not written to: not a byte changes')


def full(top):
    """No room for the bitmaps at the end: data is safe, the bitmap says that it is not."""
    path = os.path.join(top, 'compacted')
    make('ours', path, 4096, 8 << 20, 4096)
    io('ours', path, ['write 0 4M', 'write 5M 1M', 'discard 0 3M'])
    before = bitmaps.read(path)
    by('ours', 'img', 'compact', path)
    detail = checked(path)
    ok(not detail and bitmaps.read(path) == before, 'compact keeps bitmaps', detail)


def main():
    with tempfile.TemporaryDirectory(prefix='bitmaps.') as top:
        for args in ((65536, 65536, 10 << 20, 1), (512, 4096, (3 << 20) + 512 * 7, 2),
                     (4096, 512, 9 << 20, 3), (2 << 20, 1 << 20, 50 << 20, 4)):
            tracking(top, *args)
            for name in os.listdir(top):
                os.unlink(os.path.join(top, name))
        for test in (discards, killed, unaware, no_change, full):
            test(top)
    finish()


main()
