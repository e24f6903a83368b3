#!/usr/bin/env python3
"""platter-img inspect: what it says of images from strangers, as text and as JSON, and
its exit status.  Damaged ones by the hundred: tests/bad-input, each case of which is
inspected, too."""
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, IO, ROOT, SAN, enter_place, finish, img, ok, run  # noqa: E402

sys.path.insert(0, os.path.join(ROOT, 'tests/qcow2'))
import qcow2img as q                                            # noqa: E402

enter_place('inspect')
SAFE, FAILED, DAMAGED, SUSPICIOUS, REFUSED = range(5)
VERDICTS = ['safe', None, 'damaged', 'suspicious', 'refused']


def make(name, *words):
    img('create', '-q', *words)
    return name


def inspect(name, status, path, *options, human=(), **members):
    """Status, verdict, lines of the text and members of the JSON; the file stays."""
    with open(path, 'rb') as f:
        before = hashlib.sha256(f.read()).digest()
    text, data = run(IMG, 'inspect', *options, path), run(IMG, 'inspect', '--output=json', *options, path)
    r = json.loads(data.stdout or '{}')
    lines = text.stdout.splitlines()
    why = ['%s %r is not %r' % (k, r.get(k), v) for k, v in members.items()
           if r.get(k.replace('_', '-')) != v]
    why += ['no line %r' % line for line in human if line not in lines]
    with open(path, 'rb') as f:
        if hashlib.sha256(f.read()).digest() != before:
            why.append('the file was changed')
    ok(not why and text.returncode == data.returncode == status and
       r.get('verdict') == VERDICTS[status] and not text.stderr and not data.stderr and
       lines[-1] == 'verdict: ' + VERDICTS[status], name, *why, text, r)
    return r


def qcow2(name, **kw):
    image = q.Image(**kw)
    image.write(0, b'\x11' * image.cs)
    image.save(name)
    return name


def ref(kind, name, *dangers, **more):
    return [dict(kind=kind, name=name, dangers=list(dangers), **more)]


# ---- nothing wrong
make('a.qcow2', '-f', 'qcow2', 'a.qcow2', '1M')
subprocess.run([IO, '-f', 'qcow2', '-c', 'write -q -P 1 0 256k', 'a.qcow2'])
r = inspect('a plain image is safe', SAFE, 'a.qcow2', format='qcow2', format_source='found',
            virtual_size=1 << 20, file_size=os.path.getsize('a.qcow2'), encrypted=False, snapshots=0,
            bitmaps=0, references=[], features=[],
            human=['image: a.qcow2', 'format: qcow2 (found)', 'names: no other file',
                   'virtual size: 1 MiB (1048576 bytes)',
                   'check: 0 errors, 0 leaked clusters'])
ok(SAN or r['sandbox'][-2:] == ['memory limit', 'time limit'], 'it says which walls stand', r)
inspect('the format given', SAFE, 'a.qcow2', '-f', 'qcow2', format_source='given')
r = inspect('without walls', SAFE, 'a.qcow2', '--no-sandbox', sandbox=[], human=['read behind: nothing'])
inspect('--image-opts', SAFE, 'a.qcow2', '-U', format='qcow2')
p = run(IMG, 'inspect', '--image-opts', 'driver=qcow2,file.filename=a.qcow2')
ok(p.returncode == 0 and 'format: qcow2 (given)' in p.stdout, 'an option list', p)
inspect('a qcow2 file as raw', SAFE, 'a.qcow2', '-f', 'raw', format='raw', format_source='given',
        virtual_size=os.path.getsize('a.qcow2'))
subprocess.run([IMG, 'snapshot', '-c', 's', 'a.qcow2'])
subprocess.run([IMG, 'bitmap', '--add', 'a.qcow2', 'b'])
inspect('snapshots and bitmaps are counted', SAFE, 'a.qcow2', snapshots=1, bitmaps=1,
        human=['snapshots: 1', 'bitmaps: 1', "feature: autoclear bit 0 'bitmaps'"])
make('raw.img', '-f', 'raw', 'raw.img', '1M')
inspect('nothing recognised: raw, with a note', SAFE, 'raw.img', format='raw',
        format_source='nothing else fits')
for fmt in 'vdi', 'vpc', 'vhdx', 'parallels', 'qcow', 'vmdk':
    make(fmt, '-f', fmt, 'x.' + fmt, '4M')
    inspect(fmt, SAFE, 'x.' + fmt, format=fmt, references=[])
if run(IMG, 'create', '-q', '--object', 'secret,id=s,data=x', '-f', 'luks', '-o',
       'key-secret=s,iter-time=10', 'x.luks', '1M').returncode == 0:
    inspect('luks, without its secret', SAFE, 'x.luks', format='luks', encrypted=True,
            human=['encrypted: yes'])

# ---- what it names; none of it is there, none of it is opened
for word, name in (('protocol', 'nbd://host/export'), ('protocol', 'json:{"driver":"nbd"}'),
                   ('absolute', '/etc/passwd'), ('device', '/dev/sda'), ('device', '/proc/self/mem'),
                   ('climbing', '../../x'), ('climbing', 'a/../../x'),
                   ('control-characters', 'a\x1b[2Jb'), ('absolute', 'file:/etc/passwd')):
    path = qcow2('ref.qcow2', backing=name, backing_format='raw')
    inspect('backing file %r' % name, SUSPICIOUS, path,
            references=ref('backing file', name, word, format='raw'))
inspect('a control character is not printed', SUSPICIOUS,
        qcow2('ref.qcow2', backing='a\x07b', backing_format='raw'),
        human=["names: backing file 'a?b' (raw)"])
r = inspect('a name beside the image is nothing bad', SAFE,
            qcow2('ref.qcow2', backing='base.raw', backing_format='raw'),
            references=ref('backing file', 'base.raw', format='raw'))
r = inspect('without a format there is a note', SAFE, qcow2('ref.qcow2', backing='base.raw'),
            references=ref('backing file', 'base.raw'))
ok('would be guessed' in r.get('notes', [''])[0], 'which says so', r)
inspect('a password is not shown', SUSPICIOUS,
        qcow2('ref.qcow2', backing='nbd://u:geheim@host/x', backing_format='raw'),
        references=ref('backing file', 'nbd://u:***@host/x', 'protocol', format='raw'))
inspect('a data file', SAFE, qcow2('data.qcow2', data_file='data.raw'),
        references=ref('data file', 'data.raw'))
inspect('a data file of the system', SUSPICIOUS, qcow2('data.qcow2', data_file='/etc/shadow'),
        references=ref('data file', '/etc/shadow', 'absolute'))
os.mkfifo('fifo')
inspect('a FIFO is not opened either', SAFE, qcow2('ref.qcow2', backing='fifo', backing_format='raw'))
make('vmdk', '-f', 'vmdk', '-o', 'subformat=monolithicFlat', 'flat.vmdk', '3M')
os.unlink('flat-flat.vmdk')
inspect('extents are named, not opened', SAFE, 'flat.vmdk', virtual_size=3 << 20,
        references=ref('extent', 'flat-flat.vmdk', format='FLAT'))
with open('flat.vmdk') as f:
    text = f.read()
with open('evil.vmdk', 'w') as f:
    f.write(text.replace('flat-flat.vmdk', '/etc/shadow'))
inspect('an extent elsewhere', SUSPICIOUS, 'evil.vmdk',
        references=ref('extent', '/etc/shadow', 'absolute', format='FLAT'))
make('vmdk', '-f', 'vmdk', '-b', 'x.vmdk', '-F', 'vmdk', 'over.vmdk')
inspect("a VMDK's parent", SAFE, 'over.vmdk', references=ref('backing file', 'x.vmdk', format='vmdk'))
make('qcow', '-f', 'qcow', '-b', 'raw.img', '-F', 'raw', 'over.qcow')
inspect("a QCOW's backing file", SAFE, 'over.qcow', references=ref('backing file', 'raw.img'))

with open('x.vpc', 'rb') as f:                                  # a differencing VHD
    vhd = bytearray(f.read())
vhd[60:64] = struct.pack('>I', 4)
name = 'C:\\vm\\parent.vhd'
vhd[512 + 64:512 + 64 + 2 * len(name)] = name.encode('utf-16-be')
at = len(vhd)
vhd[512 + 576:512 + 600] = b'W2ku' + struct.pack('>IIIQ', 1, 2 * len(name), 0, at)
vhd += name.encode('utf-16-le')
vhd[64:68] = struct.pack('>I', ~(sum(vhd[:64]) + sum(vhd[68:512])) & 0xffffffff)
with open('diff.vhd', 'wb') as f:
    f.write(vhd)
inspect("a VHD's parent, by both names", REFUSED, 'diff.vhd',
        references=ref('parent', name, 'absolute') * 2)

with open('x.vhdx', 'rb') as f:                                 # a parent locator in a VHDX
    vhdx = bytearray(f.read())
meta = vhdx.index(b'metadata', 1 << 20)
n, = struct.unpack_from('<H', vhdx, meta + 10)
guid = bytes.fromhex('2d5fd3a80bb34d45abf7d3d84834ab0c')
struct.pack_into('<16sIII', vhdx, meta + 32 + 32 * n, guid, 0x20000, 200, 4)
struct.pack_into('<H', vhdx, meta + 10, n + 1)
key, value = 'relative_path'.encode('utf-16-le'), '..\\base.vhdx'.encode('utf-16-le')
locator = struct.pack('<16sHHIIHH', b'', 0, 1, 32, 64, len(key), len(value)).ljust(32, b'\0')
locator += key.ljust(32, b'\0') + value
vhdx[meta + 0x20000:meta + 0x20000 + len(locator)] = locator
with open('diff.vhdx', 'wb') as f:
    f.write(vhdx)
inspect("a VHDX's parent locator", SUSPICIOUS, 'diff.vhdx',
        references=ref('parent', '..\\base.vhdx', 'climbing'))

# ---- features
path = qcow2('f.qcow2', incompatible=1 << 41, extensions=[
    (q.EXT_FEATURE_TABLE, q.feature_entry(0, 41, b'time travel'))])
r = inspect('an unknown incompatible feature is refused by its name', REFUSED, path,
            features=[{'kind': 'incompatible', 'bit': 41, 'name': 'time travel', 'known': False}],
            human=["feature: incompatible bit 41 'time travel', unknown"])
ok(any('time travel' in x for x in r.get('reasons', [])), 'the reason names it', r)
path = qcow2('f.qcow2', autoclear=1 << 20, compatible=1 << 3, extensions=[(0x7e570001, b'12345')])
inspect('other unknown features and extensions are listed', SAFE, path,
        features=[{'kind': 'compatible', 'bit': 3, 'known': False},
                  {'kind': 'autoclear', 'bit': 20, 'known': False}],
        unknown_extensions=[{'type': 0x7e570001, 'length': 5}],
        human=['unknown header extension: 0x7e570001, 5 bytes'])

# ---- damage, and what a repair would do
inspect('the dirty bit', DAMAGED, qcow2('d.qcow2', incompatible=q.INCOMPAT_DIRTY))
inspect('the corrupt bit', DAMAGED, qcow2('d.qcow2', incompatible=q.INCOMPAT_CORRUPT))


def poke(path, at, data):
    with open(path, 'r+b') as f:
        f.seek(at)
        f.write(data)


im = q.Image()
im.write(0, b'\x11' * im.cs)
im.write(im.cs, b'\x11' * im.cs)
im.save('leak.qcow2')
poke('leak.qcow2', im.l2_entry(1), bytes(8))
r = inspect('a leaked cluster is no danger', SAFE, 'leak.qcow2',
            human=['check: 0 errors, 1 leaked clusters',
                   'check -r all: would repair 0 errors (0 left), free 1 leaked clusters (0 left)'])
ok(r['repair']['leaks-freed'] == 1 and r['check']['leaks'] == 1, 'the repair was tried', r)
im.save('low.qcow2')
poke('low.qcow2', im.refblocks[0] + 2 * (len(im.refs) - 1), bytes(2))
r = inspect('a refcount too low', DAMAGED, 'low.qcow2')
ok(r['repair']['corruptions-left'] == 0 and r['repair']['corruptions-fixed'] > 0 and
   any('Repairing' in x for x in r['repair']['messages']), 'what a repair would do', r)
shutil.copy('low.qcow2', 'fixed.qcow2')
p = run(IMG, 'check', '-q', '-r', 'all', '--output=json', 'fixed.qcow2')
p = run(IMG, 'check', '--output=json', 'fixed.qcow2')
ok(p.returncode == 0, 'and does', p)
im.save('cut.qcow2')
os.truncate('cut.qcow2', 100)
inspect('cut off', REFUSED, 'cut.qcow2')

# ---- bytes that are not the image's
shutil.copy('a.qcow2', 'tail.qcow2')
with open('tail.qcow2', 'ab') as f:
    f.truncate(2 << 20)
r = inspect('zeros behind the end', SAFE, 'tail.qcow2')
ok(r['trailing-bytes'] > 0, 'are mentioned', r)
with open('tail.qcow2', 'ab') as f:
    f.write(b'payload')
inspect('data behind the end', SUSPICIOUS, 'tail.qcow2')
for at, mark, what in ((0x8001, b'CD001', 'ISO 9660'), (510, b'\x55\xaa', 'boot sector')):
    shutil.copy('leak.qcow2', 'both.qcow2')
    poke('both.qcow2', at, mark)
    r = inspect('a qcow2 image that is also something else: ' + what, SUSPICIOUS, 'both.qcow2')
    ok(what in r['reasons'][0], 'it says what', r)
with open('fixed.vhd', 'wb') as f:
    f.write(bytes(1 << 20) + b'conectix'.ljust(512, b'\0'))
inspect('raw that ends as a fixed VHD', SUSPICIOUS, 'fixed.vhd')

# ---- sizes
make('big', '-f', 'qcow2', '-o', 'cluster_size=2M', 'big.qcow2', '100T')
inspect('a disk of 100 TiB', SUSPICIOUS, 'big.qcow2')
inspect('unless that is expected', SAFE, 'big.qcow2', '--max-size', '200T')
inspect('a limit of our own', SUSPICIOUS, 'a.qcow2', '--max-size', '512k')

# ---- what cannot be judged
with subprocess.Popen([IO, '-f', 'qcow2', 'a.qcow2'], stdin=subprocess.PIPE,
                      stdout=subprocess.PIPE, text=True) as writer:
    writer.stdin.write('read 0 512\n')
    writer.stdin.flush()
    writer.stdout.readline()                                    # it is open
    p = run(IMG, 'inspect', 'a.qcow2')
    ok(p.returncode == FAILED and 'Failed to get' in p.stderr and not p.stdout,
       'an image somebody writes to', p)
    p = run(IMG, 'inspect', '-U', 'a.qcow2')
    ok(p.returncode == SAFE, 'unless with -U', p)
    writer.stdin.close()
for why, words, text in (('no such file', ['nope'], "Could not open 'nope'"),
                         ('a directory', ['.'], 'regular file'),
                         ('a FIFO', ['fifo'], 'regular file'),
                         ('an unknown format', ['-f', 'nope', 'a.qcow2'], "Unknown driver 'nope'"),
                         ('--max-size', ['--max-size', 'x', 'a.qcow2'], 'Invalid maximal size'),
                         ('two files', ['a.qcow2', 'a.qcow2'], 'Expecting one image file name')):
    p = run(IMG, 'inspect', *words)
    ok(p.returncode == FAILED and text in p.stderr and not p.stdout, why, p)
finish()
