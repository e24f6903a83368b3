#!/usr/bin/env python3
"""convert --resume: killed at any moment, run again, the image is right; convert
--verify: what was changed behind its back is found."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, QEMU_IMG, QEMU_IO, enter_place, finish, img, must, ok, run  # noqa: E402

enter_place('convert-resume')
rnd = random.Random(os.environ.get('SEED', 7))
MiB = 1 << 20


def make_source(name, size, pieces):
    with open(name, 'wb') as f:
        f.truncate(size)
        for _ in range(pieces):
            f.seek(rnd.randrange(size // 4096) * 4096)
            half = rnd.randbytes(rnd.randrange(1, 300000))
            f.write(half + bytes(1000) + half[:5000])
        f.truncate(size)


def wait_unlocked(name):
    """The kernel takes down a killed process's ring, and with it the locks, after its end."""
    until = time.monotonic() + 20
    while time.monotonic() < until and b'lock' in subprocess.run(
            [IMG, 'info', '-f', 'raw', name], stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE).stderr:
        time.sleep(0.01)


def killed(*words):
    """Run, kill -9 after a random moment; True: it was done before."""
    p = subprocess.Popen([IMG] + list(words), stderr=subprocess.PIPE)
    try:
        p.wait(rnd.uniform(0.002, 0.12))
    except subprocess.TimeoutExpired:
        p.send_signal(signal.SIGKILL)
    err = p.communicate()[1]
    wait_unlocked(words[-1])
    if p.returncode not in (0, -signal.SIGKILL):
        ok(False, 'a run ends in one of two ways', p.returncode, err)
    return p.returncode == 0


def clean(name):
    return run(QEMU_IMG, 'check', '-q', name).returncode == 0


# ---- kill -9 at random moments -------------------------------------------------------

make_source('src.raw', 24 * MiB, 120)
img('convert', '-f', 'raw', '-O', 'qcow2', '-o', 'cluster_size=4k', 'src.raw', 'src.qcow2')
want = img('digest', '-f', 'raw', 'src.raw').stdout.split()[0]


def junk(name, options):
    """A target that is there already, with other content."""
    make_source('junk.raw', 24 * MiB, 60)
    img('convert', '-f', 'raw', '-O', *options, 'junk.raw', name)


def resumes(name, fmt, source, options, before=None, kills=10):
    interrupted, done, target = 0, True, 'target.img'
    words = ['convert', '--resume', '--checkpoint', '1M', '-r', '120M', '-O', fmt]
    words += options + [source, target]
    while interrupted < kills:
        if done:
            for f in (target, target + '.journal', target + '.journal.new'):
                if os.path.exists(f):
                    os.unlink(f)
            if before:
                before(target)
        # Without a journal, killed at the very end, it is as done as can be told.
        done = killed(*words) or (not os.path.exists(target + '.journal') and
                                  run(IMG, 'digest', '-f', fmt, target).stdout.split()[:1] == [want])
        interrupted += not done
        if done and img('digest', '-f', fmt, target).stdout.split()[0] != want:
            break
    words[words.index('120M')] = '1G'
    img(*words)
    ok(img('digest', '-f', fmt, target).stdout.split()[0] == want,
       '%s: the right image after %d kills' % (name, kills))
    ok(not os.path.exists(target + '.journal'), '%s: no journal is left' % name)
    if fmt == 'qcow2':
        ok(clean(target), '%s: qemu-img check finds nothing' % name)
        ok(run(QEMU_IMG, 'compare', '-F', fmt, source, target).returncode == 0,
           '%s: qemu-img compare agrees' % name)


resumes('raw to raw', 'raw', 'src.raw', [])
resumes('raw to qcow2', 'qcow2', 'src.raw', ['-m', '3'])
resumes('qcow2 to qcow2, small clusters, any order', 'qcow2', 'src.qcow2',
        ['-W', '-o', 'cluster_size=4k'])
resumes('compressed', 'qcow2', 'src.raw', ['-c'])
resumes('an existing qcow2', 'qcow2', 'src.raw', ['-n'],
        lambda t: junk(t, ['qcow2', '-o', 'cluster_size=16k']))
resumes('an existing raw image', 'raw', 'src.raw', ['-n'], lambda t: junk(t, ['raw']))

# ---- with bitmaps ---------------------------------------------------------------------


def bitmaps_of(name):
    info = json.loads(must(QEMU_IMG, 'info', '-U', '--output=json', name).stdout)
    found = info['format-specific']['data'].get('bitmaps', [])
    return sorted((b['name'], b['granularity'], tuple(b['flags'])) for b in found)


def dirty_of(name, bitmap):
    """What a bitmap says: the map of the disk as a backup would see it."""
    uri = 'nbd+unix:///?socket=nbd.sock'
    p = subprocess.Popen([QEMU_IMG.replace('qemu-img', 'qemu-nbd'), '-r', '-t', '-k',
                          os.path.abspath('nbd.sock'), '-f', 'qcow2', '-B', bitmap, name])
    while not os.path.exists('nbd.sock'):
        time.sleep(0.01)
    out = must(QEMU_IMG, 'map', '--output=json', '--image-opts', 'driver=nbd,server.type=unix,server.path='
               + os.path.abspath('nbd.sock') + ',x-dirty-bitmap=qemu:dirty-bitmap:' + bitmap)
    p.terminate()
    p.wait()
    if os.path.exists('nbd.sock'):
        os.unlink('nbd.sock')
    runs = []
    for x in json.loads(out.stdout):        # as runs of dirty or clean
        if runs and runs[-1][1] == x['data']:
            runs[-1][0] += x['length']
        else:
            runs.append([x['length'], x['data']])
    return runs


shutil.copy('src.qcow2', 'maps.qcow2')
for name, granularity in (('fine', '4k'), ('coarse', '1M'), ('stopped', '64k')):
    must(QEMU_IMG, 'bitmap', '--add', '-g', granularity, 'maps.qcow2', name)
    f = [word for _ in range(12) for word in
         ('-c', 'write -P 77 %dk 5k' % (rnd.randrange(24 * 1024 // 8) * 8))]
    must(QEMU_IO, *f, 'maps.qcow2')
must(QEMU_IMG, 'bitmap', '--disable', 'maps.qcow2', 'stopped')
have = bitmaps_of('maps.qcow2')
says = {b[0]: dirty_of('maps.qcow2', b[0]) for b in have}
plain, want = want, img('digest', 'maps.qcow2').stdout.split()[0]


def right_bitmaps(name, what):
    ok(bitmaps_of(name) == have, what + ': the bitmaps are there', bitmaps_of(name), have)
    ok({b: dirty_of(name, b) for b in says} == says, what + ': and say what they said')


resumes('with bitmaps', 'qcow2', 'maps.qcow2', ['--bitmaps', '-m', '3'])
right_bitmaps('target.img', 'killed while data is copied')
resumes('with bitmaps, an existing qcow2', 'qcow2', 'maps.qcow2', ['--bitmaps', '-n'],
        lambda t: junk(t, ['qcow2', '-o', 'cluster_size=16k']), kills=5)
right_bitmaps('target.img', 'killed, an existing qcow2')

# Killed when the bitmaps were stored, and the journal not yet removed: going on means
# that data is copied under bitmaps that record.
for f in ('target.img', 'target.img.journal'):
    if os.path.exists(f):
        os.unlink(f)
p = subprocess.Popen([IMG, 'convert', '--resume', '--checkpoint', '1M', '--bitmaps', '-r', '30M', '-m', '1',
                      '--progress=json', '-O', 'qcow2', 'maps.qcow2', 'target.img'],
                     stderr=subprocess.PIPE, text=True)
for line in p.stderr:
    if json.loads(line)['done'] >= 12 * MiB:
        break
shutil.copy('target.img.journal', 'early.journal')
p.communicate()
shutil.copy('early.journal', 'target.img.journal')
ok(bitmaps_of('target.img') == have, 'a run that was done but for its journal')
img('convert', '--resume', '--bitmaps', '-O', 'qcow2', 'maps.qcow2', 'target.img')
right_bitmaps('target.img', 'resumed where all was there')
ok(clean('target.img') and img('digest', 'target.img').stdout.split()[0] == want,
   'resumed where all was there: the right image')

# A bitmap of the user's own is never taken for a copy.
junk('own.qcow2', ['qcow2'])
must(QEMU_IMG, 'bitmap', '--add', 'own.qcow2', 'fine')
before = open('own.qcow2', 'rb').read()
for _ in range(2):
    p = img('convert', '--resume', '--bitmaps', '-n', '-O', 'qcow2', 'maps.qcow2', 'own.qcow2', status=1)
ok('fine' in p.stderr and open('own.qcow2', 'rb').read() == before and
   not os.path.exists('own.qcow2.journal'), 'a bitmap of that name in the target: refused at once', p)
want = plain

# ---- what it refuses ------------------------------------------------------------------


def interrupted(*options, target='t.qcow2', at=6 * MiB):
    """A convert that is killed once it said that so much is done."""
    for f in (target, target + '.journal'):
        if os.path.exists(f):
            os.unlink(f)
    p = subprocess.Popen([IMG, 'convert', '--resume', '--checkpoint', '1M', '-r', '30M', '-m', '1',
                          '--progress=json', '-O', 'qcow2', *options, 'src.raw', target],
                         stderr=subprocess.PIPE, text=True)
    for line in p.stderr:
        if json.loads(line)['done'] >= at:
            break
    p.kill()
    p.communicate()


def again(*words, status=0):
    return img('convert', '--resume', '-O', 'qcow2', *words, status=status)


interrupted()
where = json.load(open('t.qcow2.journal'))['copied']
ok(where >= MiB, 'the journal says how far it came', where)
p = again('-c', 'src.raw', 't.qcow2', status=1)
ok('belongs to another convert: compress changed' in p.stderr and 'Remove it' in p.stderr,
   'other options: refused', p)
p = again('-o', 'cluster_size=4k', 'src.raw', 't.qcow2', status=1)
ok('options changed' in p.stderr, 'other creation options: refused', p)
p = again('src.qcow2', 't.qcow2', status=1)
ok('sources changed' in p.stderr, 'another source: refused', p)
before = os.stat('src.raw')
os.utime('src.raw', ns=(before.st_atime_ns, before.st_mtime_ns + 1))
p = again('src.raw', 't.qcow2', status=1)
ok('sources changed' in p.stderr, 'a source that was written since: refused', p)
os.utime('src.raw', ns=(before.st_atime_ns, before.st_mtime_ns))
shutil.copy('t.qcow2', 'copy')
os.rename('copy', 't.qcow2')
p = again('src.raw', 't.qcow2', status=1)
ok('the target was replaced' in p.stderr, 'another target of that name: refused', p)
interrupted()
r = json.loads(again('--verify', '--output=json', 'src.raw', 't.qcow2').stdout)
ok(r['resumed-at'] >= MiB and r['sha256-tree'] == want, 'with --verify: all of it is compared', r)
with open('t.qcow2.journal', 'w') as f:
    f.write('what is this?')
p = again('src.raw', 't.qcow2', status=1)
ok("Could not read journal 't.qcow2.journal'" in p.stderr, 'a damaged journal: refused', p)
os.unlink('t.qcow2.journal')
p = again('-t', 'unsafe', 'src.raw', 't.qcow2', status=1)
ok('cache mode that flushes' in p.stderr, 'without flushes there is nothing to go on from', p)
p = img('convert', '--journal', 'x', 'src.raw', 't.raw', status=1)
ok('--journal requires --resume' in p.stderr, '--journal alone', p)
p = again('--journal', 'elsewhere', 'src.raw', 't.qcow2')
ok(not os.path.exists('elsewhere') and clean('t.qcow2'), '--journal: removed when done', p)

# ---- verify ------------------------------------------------------------------------------

for options in (['-O', 'raw'], ['-O', 'qcow2'], ['-O', 'qcow2', '-c'], ['-O', 'qcow2', '-W', '-m', '5'],
                ['-O', 'raw', '-S', '0'], ['-n', '-O', 'raw']):
    if '-n' in options:
        junk('v.img', ['raw'])
    p = img('convert', '--verify', '--output=json', *options, 'src.raw', 'v.img')
    ok(json.loads(p.stdout)['sha256-tree'] == want, 'verify: ' + ' '.join(options), p)
p = img('convert', '--verify', '-O', 'qcow2', '-B', 'src.qcow2', '-F', 'qcow2', 'src.raw', 'v.img')
ok(p.stdout == p.stderr == '', 'verify: an overlay', p)
p = img('convert', '--verify', '-O', 'qcow2', 'src.raw', 'src.qcow2', 'v.img')
ok(p.stdout == p.stderr == '', 'verify: several sources', p)

p = subprocess.Popen([IMG, 'convert', '--verify', '-r', '30M', '-m', '1', '--progress=json', '-f', 'raw',
                      '-O', 'raw', 'src.raw', 'bad.raw'], stderr=subprocess.PIPE, text=True)
for line in p.stderr:
    if json.loads(line)['done'] >= 6 * MiB:
        break
with open('bad.raw', 'r+b') as f:
    f.seek(3 * MiB + 5)
    old = f.read(1)
    f.seek(3 * MiB + 5)
    f.write(bytes([old[0] ^ 1]))
err = p.communicate()[1]
ok(p.returncode == 1 and 'platter-img: bad.raw: verification failed: differs from the source at '
   'byte %d\n' % (3 * MiB) in err, 'verify: names the first sector that differs', p.returncode, err)
finish()
