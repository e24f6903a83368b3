#!/usr/bin/env python3
"""convert ... -: a complete image through a pipe, never seeking."""
import os
import pty
import random
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, IO, QEMU_IMG, enter_place, finish, img, must, ok, run  # noqa: E402

enter_place('convert-stdout')
rnd = random.Random(11)
MiB = 1 << 20


def piped(name, *words):
    """Through cat, so that neither end can be anything but a pipe."""
    with open(name, 'wb') as f:
        cat = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=f)
        p = subprocess.run([IMG, 'convert', *words, '-'], stdout=cat.stdin, stderr=subprocess.PIPE)
        cat.stdin.close()
        cat.wait()
    return p


with open('src.raw', 'wb') as f:
    f.truncate(40 * MiB + 512)
    for _ in range(60):
        f.seek(rnd.randrange(40 * MiB // 4096) * 4096)
        f.write(rnd.randbytes(rnd.randrange(1, 200000)))
    f.truncate(40 * MiB + 512)
want = img('digest', '-f', 'raw', 'src.raw').stdout.split()[0]

for options in ('cluster_size=64k', 'cluster_size=512', 'cluster_size=2M', 'compat=0.10',
                'refcount_bits=1', 'refcount_bits=64,cluster_size=4k', 'compression_type=zstd'):
    p = piped('out.qcow2', '-f', 'raw', '-O', 'qcow2', '-o', options, 'src.raw')
    ok(p.returncode == 0 and p.stderr == b'', 'qcow2 with %s' % options, p)
    ok(run(QEMU_IMG, 'check', '-f', 'qcow2', 'out.qcow2').returncode == 0,
       '... qemu-img check finds nothing')
    ok(img('digest', 'out.qcow2').stdout.split()[0] == want and
       run(QEMU_IMG, 'compare', '-f', 'raw', 'src.raw', 'out.qcow2').returncode == 0,
       '... and the content is right')
img('convert', '-O', 'qcow2', 'src.raw', 'file.qcow2')
piped('out.qcow2', '-f', 'raw', '-O', 'qcow2', 'src.raw')
ok(os.path.getsize('out.qcow2') <= os.path.getsize('file.qcow2') + 2 * 65536,
   'it is no larger than one written to a file',
   os.path.getsize('out.qcow2'), os.path.getsize('file.qcow2'))
must(IO, '-c', 'write -P 5 1M 3M', 'out.qcow2')
ok(run(QEMU_IMG, 'check', 'out.qcow2').returncode == 0, 'it can be written to')

for options, source in (('subformat=streamOptimized', 'src.raw'),
                        ('subformat=streamOptimized,adapter_type=lsilogic', 'file.qcow2')):
    p = piped('out.vmdk', '-O', 'vmdk', '-o', options, source)
    ok(p.returncode == 0 and p.stderr == b'', 'vmdk with %s from %s' % (options, source), p)
    ok(run(QEMU_IMG, 'check', 'out.vmdk').returncode == 0 and
       run(QEMU_IMG, 'compare', '-f', 'raw', 'src.raw', 'out.vmdk').returncode == 0 and
       run(IMG, 'compare', '-f', 'raw', 'src.raw', 'out.vmdk').returncode == 0,
       '... and the content is right')
p = img('convert', '-O', 'vmdk', 'src.raw', '-', status=1)
ok('Only subformat=streamOptimized' in p.stderr and p.stdout == '', 'vmdk otherwise: refused', p)

p = piped('out.raw', '-O', 'raw', 'file.qcow2')
ok(p.returncode == 0 and open('out.raw', 'rb').read() == open('src.raw', 'rb').read(), 'raw', p)
img('create', '-q', '-f', 'qcow2', '-b', 'file.qcow2', '-F', 'qcow2', 'top.qcow2')
must(IO, '-c', 'write -P 5 0 100k', 'top.qcow2')
p = piped('out.qcow2', '-O', 'qcow2', 'top.qcow2')
ok(p.returncode == 0 and run(IMG, 'compare', 'top.qcow2', 'out.qcow2').returncode == 0,
   'an overlay with what lies below it', p)
p = piped('out.qcow2', '-O', 'qcow2', 'src.raw', 'file.qcow2')
ok(p.returncode == 0 and run(QEMU_IMG, 'check', 'out.qcow2').returncode == 0,
   'several sources', p)
for size in ('0', '512', '1T'):
    img('create', '-q', '-f', 'qcow2', 'empty.qcow2', size)
    p = piped('out.qcow2', '-O', 'qcow2', 'empty.qcow2')
    ok(p.returncode == 0 and run(QEMU_IMG, 'check', 'out.qcow2').returncode == 0 and
       run(IMG, 'compare', '-s', 'empty.qcow2', 'out.qcow2').returncode == 0, 'nothing, of size ' + size, p)

p = piped('out', '-p', '-O', 'raw', 'src.raw')
ok(b'(100.00/100%)' in p.stderr and os.path.getsize('out') == 40 * MiB + 512,
   '-p goes to standard error', p)
for words, why in ((['-c'], '-c'), (['-n'], '-n'), (['--verify'], '--verify'),
                   (['--resume'], '--resume'), (['--output=json'], '--output=json'),
                   (['-B', 'file.qcow2', '-F', 'qcow2'], '-B')):
    p = img('convert', '-O', 'qcow2', *words, 'src.raw', '-', status=1)
    ok(why + ' cannot be used' in p.stderr and p.stdout == '', why + ': refused by name', p)
p = img('convert', '-O', 'qcow2', '-o', 'preallocation=full', 'src.raw', '-', status=1)
ok('preallocated' in p.stderr and p.stdout == '', 'preallocation: refused by name', p)
p = img('convert', '-O', 'vdi', 'src.raw', '-', status=1)
ok("Format 'vdi' cannot be written to a pipe" in p.stderr, 'a format that cannot', p)
p = img('convert', '-O', 'nonsense', 'src.raw', '-', status=1)
ok("Unknown file format 'nonsense'" in p.stderr, 'a format there is not', p)
ok(not os.path.exists('-'), 'no file of that name is made')
ours, theirs = pty.openpty()
p = subprocess.run([IMG, 'convert', '-O', 'raw', 'src.raw', '-'], stdout=theirs,
                   stderr=subprocess.PIPE)
ok(p.returncode == 1 and b'Not writing an image to a terminal' in p.stderr, 'a terminal', p)
r, w = os.pipe()
os.close(r)
p = subprocess.run([IMG, 'convert', '-O', 'raw', 'src.raw', '-'], stdout=w, stderr=subprocess.PIPE)
ok(p.returncode == 1 and b'Could not write to standard output: Broken pipe' in p.stderr,
   'a reader that left', p)
finish()
