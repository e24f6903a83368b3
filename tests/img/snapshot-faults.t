#!/usr/bin/env python3
"""snapshot, rebase and commit when storage fails at every single operation: nothing is
lost, no cluster is counted too seldom, the image stays usable."""
import hashlib
import os
import shutil
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, QEMU_IMG, QEMU_IO, enter_place, finish, must, ok, run  # noqa: E402


def digest(path, *options):
    """Of what a guest sees, or None."""
    done = run(QEMU_IMG, 'convert', '-O', 'raw', *options, path, 'out.raw')
    if done.returncode:
        return None
    with open('out.raw', 'rb') as f:
        return hashlib.sha256(f.read()).hexdigest()


def snapshots(path):
    lines = must(QEMU_IMG, 'snapshot', '-l', path).stdout.splitlines()[2:]
    return [line.split()[1] for line in lines]


def contents(path):
    found = {name: digest(path, '-l', 'snapshot.name=' + name) for name in snapshots(path)}
    found[''] = digest(path)
    return found


def make(path):
    must(QEMU_IMG, 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', path, '3M')
    must(QEMU_IO, '-c', 'write -P 1 0 200k', '-c', 'write -P 2 2500k 100k', path)
    must(QEMU_IMG, 'snapshot', '-c', 'old', path)
    must(QEMU_IO, '-c', 'write -P 3 100k 300k', '-c', 'write -z 0 8k', path)
    must(QEMU_IMG, 'snapshot', '-c', 'new', path)
    must(QEMU_IO, '-c', 'write -P 4 50k 20k', path)


def unsound(path, *known):
    """What check complains about, beside counts that are too high, and what is known."""
    done = run(QEMU_IMG, 'check', path)
    if done.returncode in (0, 3):
        return ''
    lines = [l for l in (done.stdout + done.stderr).splitlines()
             if l.startswith('ERROR') and not any(k in l for k in ('OFLAG_COPIED', *known))]
    return '\n'.join(lines) if done.returncode == 2 else done.stdout + done.stderr


def sweep(title, words, before, after, *known, **fault):
    """Fail the nth matching operation for n = 1, 2, ... until nothing fails."""
    bad, n, done = [], 0, None
    while n < 400 and (done is None or done.returncode):
        n += 1
        shutil.copy('s.qcow2', 't.qcow2')
        options = ','.join('file.%s=%s' % kv for kv in dict(fault, nth=n).items())
        done = run(IMG, *words, '--image-opts',
                   'driver=qcow2,file.driver=fault,%s,file.file.filename=t.qcow2' % options)
        now, trouble = contents('t.qcow2'), unsound('t.qcow2', *known)
        if trouble or now not in (before, after) or (not done.returncode and now != after):
            bad.append('nth=%d status %d %s\n%s\n%s' % (n, done.returncode, done.stderr, now,
                                                         trouble))
        repaired = run(IMG, 'check', '-q', '-r', 'all', 't.qcow2').returncode
        if repaired or contents('t.qcow2') != now:
            bad.append('nth=%d: repair ended with %d' % (n, repaired))
    ok(not bad and n > 2 and not done.returncode, '%s (%d points)' % (title, n),
       '\n'.join(bad[:4]) or 'never without a fault: %s' % done.stderr)


def after_all(words):
    shutil.copy('s.qcow2', 't.qcow2')
    must(QEMU_IMG, *words, 't.qcow2')
    return contents('t.qcow2')


def test_snapshots():
    make('s.qcow2')
    before = contents('s.qcow2')
    for words in (['snapshot', '-c', 'third'], ['snapshot', '-a', 'old'],
                  ['snapshot', '-d', 'old']):
        after = after_all(words)
        name = ' '.join(words)
        sweep(name + ': ENOSPC at any one write', words, before, after, op='write',
              errno='ENOSPC')
        sweep(name + ': the cable is pulled at any write', words, before, after, op='write',
              errno='EIO', cut='on')
        sweep(name + ': any one flush fails', words, before, after, op='flush', errno='EIO')


def cut_extra(path):
    """The first snapshot's record without its 64-bit fields."""
    with open(path, 'r+b') as f:
        f.seek(64)
        at, = struct.unpack('>Q', f.read(8))
        f.seek(at)
        table = f.read(256)
        assert table[36:40] == bytes((0, 0, 0, 24)) and table[64:68] == b'1old', table
        f.seek(at)
        f.write(table[:36] + bytes(4) + b'1old' + bytes(4) + table[72:])


def test_repair():
    """The table is written anew: the snapshots are there before, after and in between."""
    make('s.qcow2')
    cut_extra('s.qcow2')
    before = contents('s.qcow2')
    words = ['check', '-r', 'all']
    ok(len(before) == 3 and 'entry 0 is incomplete' in unsound('s.qcow2'),
       'the first record lacks its 64-bit fields', str(before))
    for title, fault in (('ENOSPC at any one write', dict(op='write', errno='ENOSPC')),
                         ('the cable is pulled at any write',
                          dict(op='write', errno='EIO', cut='on')),
                         ('any one flush fails', dict(op='flush', errno='EIO'))):
        sweep('check -r all of a damaged table: ' + title, words, before, before,
              'is incomplete', **fault)
    for bit, name in ((1, 'dirty'), (2, 'corrupt')):
        shutil.copy('s.qcow2', 't.qcow2')
        with open('t.qcow2', 'r+b') as f:
            f.seek(79)
            f.write(bytes([bit]))
        done = run(IMG, 'check', '-r', 'all', 't.qcow2')
        with open('t.qcow2', 'rb') as f:
            left = f.read(80)[79]
        ok(done.returncode == 0 and left == 0 and contents('t.qcow2') == before,
           'the table mended, the image is not %s any more' % name, '%s %d' % (done, left))


def test_too_many():
    """One more than there may be: the header's count is all that changes."""
    must(QEMU_IMG, 'create', '-q', '-f', 'qcow2', 'm.qcow2', '1M')
    at, most = 7 << 16, 65536
    with open('m.qcow2', 'r+b') as f:
        f.seek(at)
        for i in range(most + 1):
            f.write(struct.pack('>QIHHIIQIIQQQ', 0, 0, 5, 8, 1, 0, 0, 0, 24, 0, 1 << 20, 0) +
                    b'%05dn%07d\0\0\0' % (i, i))
        f.seek(60)
        f.write(struct.pack('>IQ', most, at))
    run(IMG, 'check', '-q', '-r', 'all', 'm.qcow2')         # counts the table
    with open('m.qcow2', 'r+b') as f:
        f.seek(60)
        f.write(struct.pack('>I', most + 1))
        f.seek(0)
        before = f.read()
    check = run(IMG, 'check', 'm.qcow2')
    repair = run(IMG, 'check', '-r', 'all', 'm.qcow2')
    with open('m.qcow2', 'rb') as f:
        after = f.read()
    oracle = run(QEMU_IMG, 'check', 'm.qcow2')
    ok(check.returncode == 1 and 'force-remove all 1 overhanging snapshots' in check.stderr and
       repair.returncode == 0 and 'Discarding 1 overhanging snapshots' in repair.stderr and
       '1 corruptions' in repair.stdout and oracle.returncode == 0 and
       after == before[:60] + struct.pack('>I', most) + before[64:],
       'a snapshot too many is discarded, and nothing else changes',
       check.stderr + repair.stdout + repair.stderr + oracle.stdout)


def test_overflow():
    """A count that has no room refuses the snapshot and leaves the image clean."""
    for bits in (1, 2):
        must(QEMU_IMG, 'create', '-q', '-f', 'qcow2', '-o', 'refcount_bits=%d' % bits,
             'o.qcow2', '1M')
        must(QEMU_IO, '-c', 'write -P 1 0 300k', 'o.qcow2')
        for i in range((1 << bits) - 2):
            must(QEMU_IMG, 'snapshot', '-c', 's%d' % i, 'o.qcow2')
        before = contents('o.qcow2')
        done = run(IMG, 'snapshot', '-c', 'x', 'o.qcow2')
        check = run(QEMU_IMG, 'check', 'o.qcow2')
        ok(done.returncode == 1 and 'Could not create snapshot' in done.stderr and
           check.returncode == 0 and contents('o.qcow2') == before,
           'refcount_bits=%d: one snapshot too many is refused, the image stays clean' % bits,
           done.stderr + check.stdout)


def backing(path):
    done = run(QEMU_IMG, 'info', path)
    lines = [l for l in done.stdout.splitlines() if l.startswith('backing file')]
    return done.returncode, [l.split(' (')[0] for l in lines]


def test_header():
    """rebase -u: after a cut at any write the header says one thing or the other."""
    states = [('base.raw', 'raw'), ('./another/../base.raw', 'raw'), ('', ''),
              ('like.qcow2', 'qcow2'), ('./' * 200 + 'base.raw', 'raw')]
    must(QEMU_IMG, 'create', '-q', 'base.raw', '1M')
    bad, points = [], 0
    for cluster in ('512', '4k', '64k'):
        for old in states:
            for new in states:
                if cluster == '512' and max(len(old[0]), len(new[0])) > 300:
                    continue
                must(QEMU_IMG, 'create', '-q', '-u', '-f', 'qcow2', '-o',
                     'cluster_size=' + cluster, *(['-b', old[0], '-F', old[1]] if old[0] else []),
                     'h.qcow2', '1M')
                expect = [backing('h.qcow2')]
                for n in (1, 2, 3, 4):
                    shutil.copy('h.qcow2', 'i.qcow2')
                    done = run(IMG, 'rebase', '-u', '-b', new[0],
                               *(['-F', new[1]] if new[0] else []), '--image-opts',
                               'driver=qcow2,file.driver=fault,file.op=write,file.nth=%d,'
                               'file.cut=on,file.file.filename=i.qcow2' % n)
                    points += 1
                    want = (0, ['backing file: ' + new[0], 'backing file format: ' + new[1]]
                            if new[0] else [])
                    got = backing('i.qcow2')
                    if got not in expect + [want] or (not done.returncode and got != want):
                        bad.append('%s %s -> %s nth %d: %d %s %s' % (
                            cluster, old, new, n, done.returncode, done.stderr, got))
                    if not done.returncode:
                        break
    ok(not bad, 'rebase -u: the old name or the new one, whenever it is cut (%d points)' % points,
       '\n'.join(bad[:5]))


def test_full_blocks():
    """However full the last refcount block is, a new one that applying needs stays."""
    bad = []
    for clusters in range(1, 71):
        must(IMG, 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512,refcount_bits=64',
             'i.qcow2', '1M')
        must(QEMU_IO, '-f', 'qcow2', '-c', 'write 0 %d' % (clusters * 512), 'i.qcow2')
        must(IMG, 'snapshot', '-c', 's', 'i.qcow2')
        before = digest('i.qcow2')
        must(QEMU_IO, '-f', 'qcow2', '-c', 'write -P 3 0 1k', 'i.qcow2')
        must(IMG, 'snapshot', '-a', 's', 'i.qcow2')
        check = run(QEMU_IMG, 'check', 'i.qcow2')
        if check.returncode or digest('i.qcow2') != before:
            bad.append('%d clusters: %s' % (clusters, check.stdout))
    ok(not bad, 'a snapshot is applied however full the refcount blocks are', '\n'.join(bad[:5]))


def main():
    enter_place('snapshot-faults')
    test_overflow()
    test_header()
    test_snapshots()
    test_repair()
    test_too_many()
    test_full_blocks()
    finish()


main()
