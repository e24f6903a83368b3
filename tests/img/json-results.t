#!/usr/bin/env python3
"""Results in JSON where qemu-img has none, and progress as lines of JSON."""
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, enter_place, finish, img, ok, run          # noqa: E402

enter_place('json-results')


def result(*words, status=0):
    return json.loads(img(words[0], '--output=json', *words[1:], status=status).stdout)


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


r = result('create', '-f', 'qcow2', '-o', 'cluster_size=4k,lazy_refcounts=on', 'a.qcow2', '10M')
ok(r['filename'] == 'a.qcow2' and r['format'] == 'qcow2' and
   r['options'].items() >= {'size': 10 << 20, 'cluster_size': 4096, 'lazy_refcounts': True,
                            'refcount_bits': 16}.items(),
   'create: name, format and typed options, defaults too', r)
p = img('create', '--output=json', '-f', 'qcow2', 'x', status=1)
ok(p.stdout == '' and 'needs a size' in p.stderr, 'create: no result when it fails', p)

odd, bitmap = os.fsdecode(b'n\xc3\xa4me \xff'), os.fsdecode(b'b\xfe')
os.rename('a.qcow2', odd)
r = result('bitmap', '--add', odd, bitmap)
ok(r['filename'] == 'n\u00e4me \ufffd' and r['bitmap'] == 'b\ufffd' and r['exists'],
   'names that are no UTF-8', r)
img('bitmap', '--remove', odd, bitmap)
os.rename(odd, 'a.qcow2')

r = result('resize', 'a.qcow2', '+10M')
ok(r == {'filename': 'a.qcow2', 'previous-virtual-size': 10 << 20, 'virtual-size': 20 << 20},
   'resize: the size before and after', r)

img('create', '-q', '-f', 'raw', 'one.raw', '1M')
with open('one.raw', 'r+b') as f:
    f.seek(5 * 4096)
    f.write(b'x')
img('create', '-q', '-f', 'raw', 'two.raw', '1M')
r = result('compare', '-f', 'raw', '-F', 'raw', 'one.raw', 'one.raw')
ok(r == {'identical': True, 'size-mismatch': False}, 'compare: the same', r)
r = result('compare', '-f', 'raw', '-F', 'raw', 'one.raw', 'two.raw', status=1)
ok(r == {'identical': False, 'size-mismatch': False, 'reason': 'content', 'offset': 20480},
   'compare: where the content differs', r)
r = result('compare', 'a.qcow2', 'two.raw')
ok(r == {'identical': True, 'size-mismatch': True}, 'compare: only the size differs', r)
r = result('compare', '-s', 'a.qcow2', 'two.raw', status=1)
ok(r == {'identical': False, 'size-mismatch': True, 'reason': 'size'}, 'compare -s: the size', r)
p = img('compare', '--output=json', 'a.qcow2', 'gone', status=2)
ok(p.stdout == '', 'compare: no result when it fails', p)

img('create', '-q', '-f', 'qcow2', '-b', 'one.raw', '-F', 'raw', 'top.qcow2')
img('create', '-q', '-f', 'qcow2', '-b', 'two.raw', '-F', 'raw', 'other.qcow2')
r = result('rebase', '-b', 'two.raw', '-F', 'raw', 'top.qcow2')
ok(r == {'filename': 'top.qcow2', 'backing-filename': 'two.raw', 'copied-bytes': 65536},
   'rebase: the backing file and what had to be copied', r)
r = result('commit', 'top.qcow2')
ok(r == {'filename': 'top.qcow2', 'base': 'two.raw', 'committed-bytes': 65536, 'emptied': True},
   'commit: where to, how much, emptied or not', r)
ok(run(IMG, 'compare', 'one.raw', 'two.raw').returncode == 0, 'commit --output=json commits')

r = result('snapshot', '-c', 'first', 'a.qcow2')
ok(r == {'filename': 'a.qcow2', 'action': 'create', 'snapshot': 'first'}, 'snapshot -c', r)
r = result('snapshot', '-l', 'a.qcow2')
ok([s['name'] for s in r] == ['first'] and r[0].keys() >= {'id', 'vm-state-size', 'date-sec'},
   'snapshot -l: as info has it', r)
ok(r == json.loads(img('info', '--output=json', 'a.qcow2').stdout)['snapshots'],
   'snapshot -l: the same as in info')
r = result('snapshot', 'other.qcow2')
ok(r == [], 'snapshot -l: none is an empty list', r)

r = result('dd', 'bs=4096', 'skip=4', 'count=16', '-f', 'raw', 'if=one.raw', 'of=part.raw')
ok(r == {'input': 'one.raw', 'output': 'part.raw', 'skipped-bytes': 16384, 'copied-bytes': 49152},
   'dd: how much', r)
r = result('bench', '-c', '100', '-s', '512', 'a.qcow2')
ok(r.items() >= {'operation': 'read', 'requests': 100, 'request-size': 512, 'depth': 64}.items() and
   r['seconds'] > 0 and r['bytes-per-second'] > 0, 'bench: what was done and how fast', r)

r = result('amend', '-o', 'lazy_refcounts=off,refcount_bits=64', 'a.qcow2')
ok(r == {'filename': 'a.qcow2', 'format': 'qcow2',
         'options': {'lazy_refcounts': False, 'refcount_bits': 64}}, 'amend: what was changed', r)
p = img('amend', '--output=json', '-o', 'nonsense=1', 'a.qcow2', status=1)
ok(p.stdout == '', 'amend: no result when it fails', p)
r = result('bitmap', '--add', '--disable', '-g', '32k', 'a.qcow2', 'b0')
ok(r == {'filename': 'a.qcow2', 'bitmap': 'b0', 'actions': ['add', 'disable'], 'exists': True,
         'granularity': 32768, 'recording': False}, 'bitmap: what was done and what there is', r)
p = img('bitmap', '--output=json', '--add', 'a.qcow2', 'b0', status=1)
ok(p.stdout == '', 'bitmap: no result when it fails', p)
r = result('bitmap', '--enable', '--merge', 'b0', '--remove', 'a.qcow2', 'b0')
ok(r == {'filename': 'a.qcow2', 'bitmap': 'b0', 'actions': ['enable', 'merge', 'remove'],
         'exists': False}, 'bitmap: removed', r)

p = img('compare', '--progress=json', '-f', 'raw', 'one.raw', 'two.raw')
r = lines(p.stderr)
ok(r[0]['percent'] == 0 and r[-1].items() >= {'percent': 100, 'done': 1 << 20, 'total': 1 << 20,
                                             'unit': 'bytes'}.items() and
   p.stdout == 'Images are identical.\n', '--progress=json: lines on standard error', p)
fd = os.open('lines', os.O_CREAT | os.O_WRONLY)
p = img('convert', '--progress=%d' % fd, '-f', 'raw', '-O', 'qcow2', 'one.raw', 'c.qcow2',
        pass_fds=[fd])
r = lines(open('lines').read())
ok(r[-1]['percent'] == 100 and p.stdout == p.stderr == '', '--progress=FD: lines there', r, p)
p = img('compare', '--output=json', '-p', 'one.raw', 'two.raw')
ok(json.loads(p.stdout)['identical'] and '100.00/100%' in p.stderr,
   '-p with a result in JSON: percentages on standard error', p)
p = img('compare', '--progress=77', 'one.raw', 'two.raw', status=2)
ok('77 is not open for writing' in p.stderr, '--progress: a descriptor that is not open', p)
p = img('compare', '--progress=x', 'one.raw', 'two.raw', status=2)
ok("expects 'json' or the number" in p.stderr, '--progress: nonsense', p)
img('create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata,cluster_size=4k', 'meta.qcow2', '2G')
p = img('check', '-p', 'meta.qcow2')
r = [float(x) for x in re.findall(r'\((\S+)/100%\)', p.stdout)]
ok(len(r) > 50 and r == sorted(r) and r[0] == 0 and r[-1] == 100 and
   max(b - a for a, b in zip(r, r[1:])) < 11, 'check -p: steadily from 0 to 100', r)
p = img('check', '--output=json', '--progress=json', 'meta.qcow2')
r = lines(p.stderr)
ok(r[0]['percent'] == 0 and r[-1]['percent'] == 100 and
   json.loads(p.stdout)['allocated-clusters'] == 524288, 'check --progress=json', p)
read_end, write_end = os.pipe()
os.close(read_end)
p = img('convert', '--progress=%d' % write_end, 'one.raw', 'd.raw', pass_fds=[write_end])
ok(open('d.raw', 'rb').read() == open('one.raw', 'rb').read(),
   '--progress: a reader that left does not end the work', p)
finish()
