#!/usr/bin/env python3
"""convert -C: the storage copies what lies in local files, and the target is what convert
without -C makes.  A file system that refuses, copies little at a time or stops in the
middle costs nothing but the offload."""
import errno
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, QEMU_IMG, QEMU_IO, enter_place, finish, must, ok, run  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
enter_place('copy-offload', memory=True)
rnd = random.Random(int(os.environ.get('SEED', 11)))
KiB = 1024
SIZE = 5 * 1024 * KiB + 3 * KiB + 512
HOOK = os.path.abspath('refuse_copy.so')


def offloading(*words, plan=None):
    """platter-img with the hook; also what each copy_file_range() returned."""
    env = dict(os.environ, LD_PRELOAD=HOOK, COPY_LOG='log',
               ASAN_OPTIONS=os.environ.get('ASAN_OPTIONS', '') + ':verify_asan_link_order=0')
    if plan:
        env['COPY_PLAN'] = plan
    if os.path.exists('log'):
        os.unlink('log')
    p = run(IMG, *words, env=env)
    with open('log') if os.path.exists('log') else open(os.devnull) as f:
        return p, [int(line) for line in f]


def scatter(name, fmt, writes, sizes=(512, 4 * KiB, 40 * KiB, 64 * KiB, 200 * KiB, 700 * KiB)):
    words = []
    for i in range(writes):
        n = rnd.choice(sizes)
        at = rnd.randrange((SIZE - n) // 512) * 512
        kind = rnd.choice(('write -P %d' % (1 + i % 250),) * 5 + ('write -z', 'write -z -u'))
        words += ['-c', '%s %d %d' % (kind, at, n)]
    must(QEMU_IO, '-f', fmt, '-d', 'unmap', *words, name)


def make(name, fmt='qcow2', options=None, backing=None, writes=40):
    words = ['-o', options] if options else []
    words += ['-b', backing, '-F', 'raw' if backing.endswith('.raw') else 'qcow2'] if backing else []
    must(QEMU_IMG, 'create', '-q', '-f', fmt, *words, name, str(SIZE))
    scatter(name, fmt, writes)


def check(name, words, source, source_fmt, target, target_fmt, offloads=True, plan=None):
    """One conversion with -C; its target holds what the source does."""
    p, copied = offloading('convert', '-C', *words, target, plan=plan)
    why = [p.stdout + p.stderr, copied]
    good = p.returncode == 0 and not p.stdout + p.stderr
    c = run(QEMU_IMG, 'compare', '-f', source_fmt, '-F', target_fmt, source, target)
    good = good and c.returncode == 0
    why.append(c.stdout + c.stderr)
    if target_fmt == 'qcow2' and good:
        c = run(QEMU_IMG, 'check', '-f', 'qcow2', target)
        good = c.returncode == 0
        why.append(c.stdout)
    if offloads is not None and (sum(n for n in copied if n > 0) > 0) != offloads:
        good = False
        why.append('copied by the file system: %s' % (copied,))
    ok(good, name, *why)
    return copied


SOURCES = (
    ('plain.raw', 'raw', None, None), ('plain.qcow2', 'qcow2', None, None),
    ('small.qcow2', 'qcow2', 'cluster_size=4k', None), ('large.qcow2', 'qcow2', 'cluster_size=2M', None),
    ('wide.qcow2', 'qcow2', 'extended_l2=on', 'plain.qcow2'),
    ('top.qcow2', 'qcow2', None, 'wide.qcow2'), ('onraw.qcow2', 'qcow2', None, 'plain.raw'),
    ('data.qcow2', 'qcow2', 'data_file=data.bin', None), ('disk.vdi', 'vdi', None, None),
    ('disk.vmdk', 'vmdk', None, None))
TARGETS = (
    ('raw', None), ('qcow2', None), ('qcow2', 'cluster_size=2M'), ('qcow2', 'cluster_size=512'),
    ('qcow2', 'extended_l2=on,cluster_size=128k'), ('qcow2', 'data_file=out.data'),
    ('qcow2', 'preallocation=metadata'))


def sources():
    for name, fmt, options, backing in SOURCES:
        make(name, fmt, options, backing)


def every_pair():
    for i, (source, fmt, _, _) in enumerate(SOURCES):
        for j, (to, options) in enumerate(TARGETS):
            if i > 1 and (i + j) % 3:
                continue
            words = ['-f', fmt, '-O', to, *(['-o', options] if options else []), source]
            check('%s to %s %s' % (source, to, options or ''), words, source, fmt, 'out', to)


def takes_direct():
    try:
        os.close(os.open('plain.raw', os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False                    # a tmpfs of an older kernel
    return True


def how_opened():
    p, copied = offloading('convert', '-O', 'qcow2', 'plain.qcow2', 'out')
    ok(p.returncode == 0 and not copied, 'without -C the file system is not asked')
    direct = (['-t', 'none'], ['-T', 'none']) if takes_direct() else ()
    for words in (['-W', '-m', '16'], ['-m', '1'], *direct, ['-r', '1G'], ['-t', 'writethrough'],
                  ['-t', 'writeback']):
        check('convert -C ' + ' '.join(words), [*words, '-O', 'qcow2', 'top.qcow2'], 'top.qcow2',
              'qcow2', 'out', 'qcow2', None)
    must(QEMU_IMG, 'create', '-q', '-f', 'qcow2', 'old', str(SIZE))
    scatter('old', 'qcow2', 60)
    check('onto what is there', ['-n', '-O', 'qcow2', 'top.qcow2'], 'top.qcow2', 'qcow2', 'old', 'qcow2')
    check('an overlay onto its own backing file',
          ['-O', 'qcow2', '-B', 'wide.qcow2', '-F', 'qcow2', 'top.qcow2'],
          'top.qcow2', 'qcow2', 'out', 'qcow2')
    check('two images, end to end, each copied', ['-f', 'raw', '-O', 'qcow2', 'plain.raw', 'plain.raw'],
          'twice.raw', 'raw', 'out', 'qcow2')
    check('what is verified is read', ['--verify', '-O', 'qcow2', 'plain.qcow2'], 'plain.qcow2',
          'qcow2', 'out', 'qcow2', False)
    must(QEMU_IMG, 'bitmap', '--add', 'old', 'seen')
    check('an image whose bitmap records', ['-n', '-O', 'qcow2', 'plain.qcow2'], 'plain.qcow2',
          'qcow2', 'old', 'qcow2')
    p = run(QEMU_IMG, 'info', '--output=json', 'old')
    ok('"in-use"' not in p.stdout and '"seen"' in p.stdout, 'its bitmap is consistent', p.stdout)


def not_for_the_storage():
    must(QEMU_IMG, 'convert', '-c', '-O', 'qcow2', 'plain.qcow2', 'comp.qcow2')
    check('compressed clusters are read', ['-O', 'raw', 'comp.qcow2'], 'comp.qcow2', 'qcow2', 'out',
          'raw', False)
    secret = ['--object', 'secret,id=s,data=x']
    luks = ['encrypt.format=luks', 'encrypt.key-secret=s', 'encrypt.iter-time=10']
    p, copied = offloading('convert', '-C', *secret, '-O', 'qcow2', '-o', ','.join(luks), 'plain.qcow2',
                           'luks.qcow2')
    c = run(QEMU_IMG, 'compare', *secret, '--image-opts', 'driver=qcow2,file.filename=plain.qcow2',
            'driver=qcow2,encrypt.key-secret=s,file.filename=luks.qcow2')
    ok(p.returncode == 0 and c.returncode == 0 and not copied, 'what is encrypted is written',
       p.stderr, c.stdout + c.stderr)
    p, copied = offloading('convert', '-C', *secret, '--image-opts', '-O', 'raw',
                           'driver=qcow2,encrypt.key-secret=s,file.filename=luks.qcow2', 'out')
    c = run(QEMU_IMG, 'compare', '-F', 'raw', 'plain.qcow2', 'out')
    ok(p.returncode == 0 and c.returncode == 0 and not copied, 'what is encrypted is read',
       p.stderr, c.stdout + c.stderr)
    p, copied = offloading('convert', '-C', '--image-opts', '-O', 'qcow2',
                           'driver=qcow2,file.driver=delay,file.us=1,file.file.filename=plain.qcow2', 'out')
    c = run(QEMU_IMG, 'compare', 'plain.qcow2', 'out')
    ok(p.returncode == 0 and c.returncode == 0 and not copied, 'a filter sees what is read',
       p.stderr, c.stdout + c.stderr)


def refused():
    for mode in [str(n) for n in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS,
                                  errno.EIO, errno.ETXTBSY)] + ['none', 'half', 'short']:
        for source, target, options in (('plain.raw', 'raw', ''), ('top.qcow2', 'qcow2', 'cluster_size=4k'),
                                        ('small.qcow2', 'qcow2', 'extended_l2=on')):
            for k in (1, 5):
                fmt = 'raw' if source.endswith('raw') else 'qcow2'
                words = ['-f', fmt, '-O', target, *(['-o', options] if options else []), source]
                copied = check('%s to %s, copy %d: %s' % (source, target, k, mode), words, source, fmt,
                               'out', target, None, '%s:%d' % (mode, k))
                if mode != 'short' and len([n for n in copied if n <= 0]) > 64 * 17:
                    ok(False, 'it is not tried again and again', len(copied))
    must(QEMU_IMG, 'create', '-q', '-f', 'qcow2', 'old', str(SIZE))
    scatter('old', 'qcow2', 60)
    check('refused in the middle of an old image', ['-n', '-O', 'qcow2', 'top.qcow2'], 'top.qcow2',
          'qcow2', 'old', 'qcow2', None, '18:4')


must('cc', '-shared', '-fPIC', '-D_GNU_SOURCE', '-O1', '-o', HOOK, os.path.join(HERE, 'refuse_copy.c'),
     '-ldl')
sources()
with open('twice.raw', 'wb') as f, open('plain.raw', 'rb') as g:
    f.write(g.read() * 2)
every_pair()
how_opened()
not_for_the_storage()
refused()
finish()
