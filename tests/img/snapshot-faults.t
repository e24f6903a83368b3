#!/usr/bin/env python3
"""snapshot, rebase and commit when storage fails at every single operation: nothing is
lost, no cluster is counted too seldom, the image stays usable."""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
IMG = os.path.join(ROOT, os.environ.get('B', 'build'), 'platter-img')
TOOLS = os.environ.get('ORACLE', os.path.join(ROOT, 'build/oracle/bin'))
count = failed = 0


def ok(good, name, detail=''):
    global count, failed
    count += 1
    failed += not good
    print('%sok %d - %s' % ('' if good else 'not ', count, name))
    if not good:
        for line in str(detail).splitlines():
            print('# ' + line)
    sys.stdout.flush()


def run(program, *args):
    return subprocess.run([program] + list(args), capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL)


def must(tool, *args):
    done = run(os.path.join(TOOLS, tool), *args)
    if done.returncode:
        raise RuntimeError('%s %s: %s' % (tool, args, done.stderr))
    return done.stdout


def digest(path, *options):
    """Of what a guest sees, or None."""
    done = run(os.path.join(TOOLS, 'qemu-img'), 'convert', '-O', 'raw', *options, path, 'out.raw')
    if done.returncode:
        return None
    with open('out.raw', 'rb') as f:
        return hashlib.sha256(f.read()).hexdigest()


def snapshots(path):
    lines = must('qemu-img', 'snapshot', '-l', path).splitlines()[2:]
    return [line.split()[1] for line in lines]


def contents(path):
    found = {name: digest(path, '-l', 'snapshot.name=' + name) for name in snapshots(path)}
    found[''] = digest(path)
    return found


def make(path):
    must('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', path, '3M')
    must('qemu-io', '-c', 'write -P 1 0 200k', '-c', 'write -P 2 2500k 100k', path)
    must('qemu-img', 'snapshot', '-c', 'old', path)
    must('qemu-io', '-c', 'write -P 3 100k 300k', '-c', 'write -z 0 8k', path)
    must('qemu-img', 'snapshot', '-c', 'new', path)
    must('qemu-io', '-c', 'write -P 4 50k 20k', path)


def unsound(path):
    """What check complains about, beside counts that are too high."""
    done = run(os.path.join(TOOLS, 'qemu-img'), 'check', path)
    if done.returncode in (0, 3):
        return ''
    lines = [l for l in (done.stdout + done.stderr).splitlines()
             if l.startswith('ERROR') and 'OFLAG_COPIED' not in l]
    return '\n'.join(lines) if done.returncode == 2 else done.stdout + done.stderr


def sweep(title, words, before, after, **fault):
    """Fail the nth matching operation for n = 1, 2, ... until nothing fails."""
    bad, n, done = [], 0, None
    while n < 400 and (done is None or done.returncode):
        n += 1
        shutil.copy('s.qcow2', 't.qcow2')
        options = ','.join('file.%s=%s' % kv for kv in dict(fault, nth=n).items())
        done = run(IMG, *words, '--image-opts',
                   'driver=qcow2,file.driver=fault,%s,file.file.filename=t.qcow2' % options)
        now, trouble = contents('t.qcow2'), unsound('t.qcow2')
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
    must('qemu-img', *words, 't.qcow2')
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


def test_overflow():
    """A count that has no room refuses the snapshot and leaves the image clean."""
    for bits in (1, 2):
        must('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'refcount_bits=%d' % bits,
             'o.qcow2', '1M')
        must('qemu-io', '-c', 'write -P 1 0 300k', 'o.qcow2')
        for i in range((1 << bits) - 2):
            must('qemu-img', 'snapshot', '-c', 's%d' % i, 'o.qcow2')
        before = contents('o.qcow2')
        done = run(IMG, 'snapshot', '-c', 'x', 'o.qcow2')
        check = run(os.path.join(TOOLS, 'qemu-img'), 'check', 'o.qcow2')
        ok(done.returncode == 1 and 'Could not create snapshot' in done.stderr and
           check.returncode == 0 and contents('o.qcow2') == before,
           'refcount_bits=%d: one snapshot too many is refused, the image stays clean' % bits,
           done.stderr + check.stdout)


def backing(path):
    done = run(os.path.join(TOOLS, 'qemu-img'), 'info', path)
    lines = [l for l in done.stdout.splitlines() if l.startswith('backing file')]
    return done.returncode, [l.split(' (')[0] for l in lines]


def test_header():
    """rebase -u: after a cut at any write the header says one thing or the other."""
    states = [('base.raw', 'raw'), ('./another/../base.raw', 'raw'), ('', ''),
              ('like.qcow2', 'qcow2'), ('./' * 200 + 'base.raw', 'raw')]
    must('qemu-img', 'create', '-q', 'base.raw', '1M')
    bad, points = [], 0
    for cluster in ('512', '4k', '64k'):
        for old in states:
            for new in states:
                if cluster == '512' and max(len(old[0]), len(new[0])) > 300:
                    continue
                must('qemu-img', 'create', '-q', '-u', '-f', 'qcow2', '-o',
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


def main():
    where = tempfile.mkdtemp(prefix='snapshot-faults.')
    os.chdir(where)
    try:
        test_overflow()
        test_header()
        test_snapshots()
        print('1..%d' % count)
    finally:
        os.chdir('/')
        shutil.rmtree(where, ignore_errors=True)
    sys.exit(1 if failed else 0)


main()
