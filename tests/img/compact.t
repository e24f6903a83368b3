#!/usr/bin/env python3
"""platter-img compact: the command around it (tests/crash/compact.t has the rest)."""
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IO, QEMU_IMG, enter_place, finish, img, must, ok, run  # noqa: E402

enter_place('compact')
MiB = 1 << 20


def io(name, *commands):
    must(IO, *[w for c in commands for w in ('-c', c)], name)


def digest(name, *options):
    return img('digest', *options, name).stdout.split()[0]


def result(*words):
    return json.loads(img('compact', '--output=json', *words).stdout)


def make(name, *options):
    img('create', '-q', '-f', 'qcow2', *options, name, '16M')
    io(name, 'write -P 1 0 8M', 'write -P 0 8M 4M', 'write -P 2 12M 1M', 'discard 1M 5M')


make('a.qcow2')
want, length = digest('a.qcow2'), os.path.getsize('a.qcow2')
p = img('compact', 'a.qcow2')
ok(p.stdout.startswith('Image compacted: file length ') and p.stderr == '', 'says what it did', p)
ok(os.path.getsize('a.qcow2') < length - 4 * MiB and digest('a.qcow2') == want,
   'the file is shorter, its content the same', length, os.path.getsize('a.qcow2'))
r = result('a.qcow2')
ok(r['moved-bytes'] == 0 and r['length'] == r['length-before'], 'nothing more to do', r)
r = result('-z', 'a.qcow2')
ok(r['zeroed-bytes'] == 4 * MiB and r['length'] < r['length-before'] - 3 * MiB and
   digest('a.qcow2') == want, '-z: clusters of zeros become holes', r)
ok(img('compact', '-q', 'a.qcow2').stdout == '', '-q')
make('p.qcow2')
p = img('compact', '--progress=json', 'p.qcow2')
lines = [json.loads(line) for line in p.stderr.splitlines()]
ok(lines[0]['percent'] == 0 and lines[-1]['percent'] == 100, '--progress=json', lines)
p = img('compact', '-p', 'p.qcow2')
ok('(100.00/100%)' in p.stdout, '-p', p)

make('over.qcow2', '-b', 'a.qcow2', '-F', 'qcow2')
want = digest('over.qcow2')
r = result('-z', 'over.qcow2')
ok(digest('over.qcow2') == want and r['zeroed-bytes'] == 4 * MiB,
   'an overlay: zeros that hide the backing file stay zeros', r)
make('v2.qcow2', '-o', 'compat=0.10', '-b', 'a.qcow2', '-F', 'qcow2')
want = digest('v2.qcow2')
r = result('-z', 'v2.qcow2')
ok(digest('v2.qcow2') == want and r['zeroed-bytes'] == 0,
   'version 2 over a backing file has no holes of zeros', r)

with open('r.raw', 'wb') as f:
    f.write(b'x' * MiB + bytes(2 * MiB) + b'y' * 5000 + bytes(MiB - 5000))
want = digest('r.raw', '-f', 'raw')
before = os.stat('r.raw').st_blocks
r = result('-f', 'raw', 'r.raw')
after = os.stat('r.raw')
ok(digest('r.raw', '-f', 'raw') == want and after.st_size == 4 * MiB and
   after.st_blocks * 512 <= MiB + 2 * 65536 < before * 512, 'raw: zeros become holes', r, after)

make('leak.qcow2')
img('check', '-q', 'leak.qcow2')
header = open('leak.qcow2', 'rb').read(72)
table = int.from_bytes(header[48:56], 'big')
with open('leak.qcow2', 'r+b') as f:
    f.seek(table)
    block = int.from_bytes(f.read(8), 'big')
    end = os.path.getsize('leak.qcow2') // 65536
    f.truncate((end + 3) * 65536)
    f.seek(block + 2 * (end + 2))
    f.write(b'\0\1')
r = result('leak.qcow2')
ok(r['leaks-fixed'] == 1 and run(QEMU_IMG, 'check', 'leak.qcow2').returncode == 0,
   'leaked clusters are given back first', r)

make('bad.qcow2')
with open('bad.qcow2', 'r+b') as f:
    f.seek(int.from_bytes(header[40:48], 'big'))
    l2 = int.from_bytes(f.read(8), 'big') & 0x00fffffffffffe00
    f.seek(l2)
    f.write((1 << 63 | l2).to_bytes(8, 'big'))
before = open('bad.qcow2', 'rb').read()
p = img('compact', 'bad.qcow2', status=1)
ok('the image is damaged' in p.stderr and open('bad.qcow2', 'rb').read() == before,
   'a damaged image is refused and left as it is', p)

secret = ['--object', 'secret,id=s,data=x']
opts = ['--image-opts', 'driver=qcow2,file.filename=luks.qcow2,encrypt.key-secret=s']
img('create', '-q', *secret, '-f', 'qcow2', '-o',
    'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10', 'luks.qcow2', '4M')
p = must(QEMU_IMG, 'check', *secret, *opts)
ok(p.stderr == '', 'a new encrypted image is sound: unused key slots are in the file', p)
p = img('compact', *secret, *opts, status=1)
ok('Encrypted images cannot be compacted' in p.stderr, 'and is refused by name', p)

p = img('compact', status=1)
ok('Expecting one image file name' in p.stderr, 'no image', p)
p = img('compact', 'gone', status=1)
ok("Could not open 'gone'" in p.stderr, 'an image that is not there', p)
finish()
