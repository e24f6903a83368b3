#!/usr/bin/env python3
"""platter-img digest: the construction that the manual states, computed here from
the raw bytes, and the same for every format and layout."""
import hashlib
import json
import os
import random
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IO, enter_place, finish, img, ok                # noqa: E402

enter_place('digest')


def digest(name, *options):
    return img('digest', *options, name).stdout.split()[0]


ALGORITHMS = {
    'sha256': hashlib.sha256, 'sha512': hashlib.sha512, 'sha3-256': hashlib.sha3_256,
    'blake2b-512': hashlib.blake2b, 'blake2b-256': lambda d: hashlib.blake2b(d, digest_size=32),
}


def model(read, size, algorithm='sha256'):
    """read: segment number -> its bytes, None for zeros, at most 64 KiB of them."""
    h = lambda data: ALGORITHMS[algorithm](data).digest()
    size = (size + 511) // 512 * 512
    zero = h(bytes(65536))
    row = {}
    for i in read:
        row[i] = h(read[i].ljust(65536, b'\0'))
    n, levels = (size + 65535) // 65536, 0
    while n > 1 or levels < 1:
        n, levels = (n + 255) // 256, levels + 1
        row = {k: h(b''.join(row.get(k * 256 + i, zero) for i in range(256)))
               for k in {i // 256 for i in row}}
        zero = h(zero * 256)
    return h(size.to_bytes(8, 'big') + row.get(0, zero)).hex()


def segments(data):
    return {i: data[i * 65536:(i + 1) * 65536] for i in range((len(data) + 65535) // 65536)}


def put(name, data):
    with open(name, 'wb') as f:
        f.write(data)


rnd = random.Random(4)
data = bytearray(3 * 1024 * 1024 + 512 * 3)
for at, length in ((0, 1), (65535, 2), (200000, 70000), (1 << 20, 1 << 20), (len(data) - 1, 1)):
    data[at:at + length] = rnd.randbytes(length)
put('a.raw', data)
want = model(segments(data), len(data))
ok(digest('a.raw', '-f', 'raw') == want, 'the digest is what the manual says')
for name in ALGORITHMS:
    ok(digest('a.raw', '-f', 'raw', '-a', name) == model(segments(data), len(data), name), name)

for options in ('cluster_size=512', 'cluster_size=4k', 'cluster_size=2M', 'compat=0.10'):
    img('convert', '-q', '-f', 'raw', '-O', 'qcow2', '-o', options, 'a.raw', 'a.qcow2')
    ok(digest('a.qcow2') == want, 'qcow2 with %s: the same' % options)
img('convert', '-q', '-f', 'raw', '-O', 'qcow2', '-c', 'a.raw', 'c.qcow2')
ok(digest('c.qcow2') == want, 'compressed: the same')
img('convert', '-q', '-f', 'raw', '-S', '0', 'a.raw', 'full.raw')
ok(digest('full.raw', '-f', 'raw') == want, 'zeros written out: the same')
img('create', '-q', '-f', 'qcow2', '-b', 'c.qcow2', '-F', 'qcow2', 'top.qcow2')
ok(digest('top.qcow2') == want, 'an overlay: the same')
subprocess.run([IO, '-c', 'write -P 7 70000 5000', 'top.qcow2'], check=True, capture_output=True)
data[70000:75000] = b'\7' * 5000
ok(digest('top.qcow2') == model(segments(data), len(data)) != want, 'an overlay with a write')

put('odd.raw', b'x' * 1000)
ok(digest('odd.raw', '-f', 'raw') == model({0: b'x' * 1000}, 1000), 'a size of no whole sectors')
put('none.raw', b'')
ok(digest('none.raw', '-f', 'raw') == model({}, 0), 'an empty image')
put('zero.raw', bytes(1024))
put('zero2.raw', bytes(2048))
ok(digest('zero.raw', '-f', 'raw') == model({}, 1024) != digest('zero2.raw', '-f', 'raw'),
   'the size counts')

for size in (1 << 24, (1 << 24) + 512, 1 << 32, (1 << 32) + 512, 1 << 40, (1 << 60) + 4096):
    with open('big.raw', 'wb') as f:
        f.truncate(min(size, 1 << 42))
    img('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=2M', 'big.qcow2', str(min(size, 1 << 50)))
    if size <= 1 << 40:
        last = (size - 1) // 65536
        with open('big.raw', 'r+b') as f:
            f.seek(5 * 65536)
            f.write(b'five')
            f.seek(last * 65536)
            f.write(b'last')
        ok(digest('big.raw', '-f', 'raw') == model({5: b'five', last: b'last'}, size),
           'holes up to %d: whole nodes of zeros' % size)
ok(digest('big.qcow2') == model({}, 1 << 50), 'a pebibyte of nothing takes no time')

p = img('digest', '-f', 'raw', 'a.raw', 'zero.raw')
ok(p.stdout == '%s  a.raw\n%s  zero.raw\n' % (want, model({}, 1024)), 'several images', p)
r = json.loads(img('digest', '--output=json', '-U', 'c.qcow2').stdout)
ok(r == [{'filename': 'c.qcow2', 'digest': want, 'virtual-size': len(data), 'algorithm': 'sha256',
          'segment-size': 65536}], 'JSON', r)
p = img('digest', '--image-opts', 'driver=qcow2,file.filename=c.qcow2')
ok(p.stdout.split()[0] == want, '--image-opts', p)
p = img('digest', 'a.raw', 'gone', status=1)
ok(p.stdout == '' and "'gone'" in p.stderr, 'one that is not there: nothing is printed', p)
p = img('digest', '-a', 'crc32', 'a.raw', status=1)
ok("Unknown algorithm 'crc32'; there are sha256" in p.stderr, 'an unknown algorithm', p)
p = img('digest', status=1)
ok('Expecting image file names' in p.stderr, 'no image', p)
p = img('digest', '--image-opts', 'driver=raw,file.driver=fault,file.op=read,file.offset=1M,'
        'file.length=1,file.file.filename=a.raw', status=1)
ok(p.stdout == '' and 'error while reading at byte' in p.stderr and 'Input/output error' in p.stderr,
   'a read error: no digest', p)
finish()
