#!/usr/bin/env python3
"""rebase and commit where images have extended L2 entries: partly allocated clusters,
backing files shorter and longer than the overlay.  The guest's data afterwards is what
qemu-img leaves, and qemu-img check finds nothing in the images."""
import filecmp
import os
import random
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, QEMU_IMG, QEMU_IO, enter_place, finish, must, ok, run  # noqa: E402

enter_place('subclusters', memory=True)
rnd = random.Random(int(os.environ.get('SEED', 5)))
KiB = 1024
SIZE = 700 * KiB + 1536                 # the last cluster is a part, the last subcluster too


def scatter(name, size, cluster, writes):
    """Data, zeros and discards, smaller than clusters and across their edges."""
    words = []
    for i in range(writes):
        at = rnd.randrange(size // 512) * 512
        n = min(rnd.choice((512, cluster // 32, cluster // 16, cluster // 2, cluster + 512)), size - at)
        kind = rnd.choice(('write -P %d' % (1 + i % 250),) * 4 + ('write -z', 'write -z -u', 'discard'))
        words += ['-c', '%s %d %d' % (kind, at, n)]
    must(QEMU_IO, '-f', 'qcow2', '-d', 'unmap', *words, name)


def create(name, size, options, backing=None):
    words = ['-b', backing, '-F', 'qcow2'] if backing else []
    must(QEMU_IMG, 'create', '-q', '-f', 'qcow2', '-o', options, *words, name, str(size))


def content(folder, name):
    must(QEMU_IMG, 'convert', '-f', 'qcow2', '-O', 'raw', name, 'guest.raw', cwd=folder)
    with open(os.path.join(folder, 'guest.raw'), 'rb') as f:
        return f.read()


def attempt(program, folder, words):
    """The command on a copy of all images: its result, and what guests see then."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree('images', folder)
    p = run(program, *words, cwd=folder)
    changed = [n for n in sorted(os.listdir('images'))
               if not filecmp.cmp(os.path.join('images', n), os.path.join(folder, n), False)]
    bad = [n for n in changed if run(QEMU_IMG, 'check', '-q', n, cwd=folder).returncode]
    return p, {n: content(folder, n) for n in changed}, bad


def same(layout, same_for_guest, *words):
    theirs = attempt(QEMU_IMG, 'theirs', words)
    ours = attempt(IMG, 'ours', words)
    name = '%s: %s' % (layout, ' '.join(words))
    ok((ours[0].returncode, ours[0].stdout, ours[0].stderr.replace('platter-img', 'qemu-img')) ==
       (theirs[0].returncode, theirs[0].stdout, theirs[0].stderr), name + ': says the same',
       ours[0], theirs[0])
    differ = [n for n in {**ours[1], **theirs[1]} if ours[1].get(n) != theirs[1].get(n)]
    ok(not differ, name + ': the same images are changed, and their data is the same', differ)
    if same_for_guest:
        ok(content('ours', 'top.qcow2') == before, name + ': the guest sees what it saw')
    ok(not ours[2], name + ': qemu-img check finds nothing', ours[2])


def compressed(name, *words):
    """rebase -c, where qemu-img aborts when some subclusters of a cluster are there."""
    shutil.rmtree('packed', ignore_errors=True)
    shutil.copytree('images', 'packed')
    os.chdir('packed')
    must(IMG, 'rebase', '-c', *words, 'top.qcow2')
    check = run(QEMU_IMG, 'check', 'top.qcow2')
    os.chdir('..')
    ok(not check.returncode and content('packed', 'top.qcow2') == before,
       '%s: rebase -c %s: the guest sees what it saw' % (name, words[1]), check)


LAYOUTS = {                             # of base, other, middle, top
    '16k, extended everywhere': ('16k,on', '16k,on', '16k,on', '16k,on'),
    '64k, extended overlays only': ('64k,off', '4k,off', '64k,on', '64k,on'),
    '32k on 64k, extended base only': ('32k,on', '32k,on', '64k,off', '64k,off'),
}
SIZES = {'equal': (SIZE, SIZE, SIZE), 'backing shorter': (400 * KiB + 512, 300 * KiB, 500 * KiB + 512),
         'backing longer': (900 * KiB, 1000 * KiB + 512, 800 * KiB + 512)}

for i, (label, layout) in enumerate(LAYOUTS.items()):
    for length, sizes in list(SIZES.items())[i:i + 1 if i else None]:
        shutil.rmtree('images', ignore_errors=True)
        os.mkdir('images')
        os.chdir('images')
        options = ['cluster_size=%s,extended_l2=%s' % tuple(x.split(',')) for x in layout]
        create('base.qcow2', sizes[0], options[0])
        create('other.qcow2', sizes[1], options[1])
        create('middle.qcow2', sizes[2], options[2], 'base.qcow2')
        create('top.qcow2', SIZE, options[3], 'middle.qcow2')
        for n, size, writes in (('base', sizes[0], 25), ('other', sizes[1], 25),
                                ('middle', sizes[2], 12), ('top', SIZE, 12)):
            scatter(n + '.qcow2', size, int(layout[0].split('k')[0]) * KiB, writes)
        os.chdir('..')
        before = content('images', 'top.qcow2')
        name = '%s, %s' % (label, length)
        same(name, True, 'rebase', '-b', 'other.qcow2', '-F', 'qcow2', 'top.qcow2')
        same(name, True, 'rebase', '-b', 'base.qcow2', '-F', 'qcow2', 'top.qcow2')
        same(name, True, 'rebase', '-b', '', 'top.qcow2')
        for words in (('-b', 'other.qcow2', '-F', 'qcow2'), ('-b', '')):
            compressed(name, *words)
        same(name, False, 'rebase', '-u', '-b', 'other.qcow2', '-F', 'qcow2', 'top.qcow2')
        same(name, True, 'commit', 'top.qcow2')
        same(name, False, 'commit', '-d', 'middle.qcow2')
        same(name, True, 'commit', '-b', 'base.qcow2', 'top.qcow2')
finish()
