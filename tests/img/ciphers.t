#!/usr/bin/env python3
"""Encrypted images both ways: what platter-img encrypts qemu-img reads, and the
reverse, for every cipher, mode, IV generator and hash there is; and the same for
odd sizes, long requests and encrypted secrets."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, QEMU_IMG, enter_place, finish, ok, run     # noqa: E402

SECRET = ['--object', 'secret,id=s,data=pass,,word']
SIZE = 300 * 1024 + 512

enter_place('ciphers')
with open('raw', 'wb') as f:
    f.write(os.urandom(SIZE))
with open('raw', 'rb') as f:
    RAW = f.read()


def said(program, *words):
    p = run(program, *words)
    return p.returncode, p.stderr


def convert(program, fmt, options, out):
    return said(program, 'convert', *SECRET, '-O', fmt, '-o', options, 'raw', out)


def read_back(program, fmt, out):
    key = 'key-secret=s' if fmt == 'luks' else 'encrypt.key-secret=s'
    status, err = said(program, 'convert', *SECRET, '--image-opts',
                       'driver=%s,file.filename=%s,%s' % (fmt, out, key), '-O', 'raw', 'back')
    if status:
        return err
    with open('back', 'rb') as f:
        return '' if f.read() == RAW else 'the data differs'


def both_ways(fmt, options, name):
    """Each writes, the other reads.  qemu-img takes two seconds of CPU to write one, so
    it writes a choice; it reads every one of ours."""
    status, detail = convert(IMG, fmt, options, 'ours')
    readers = [(QEMU_IMG, 'ours'), (IMG, 'ours')]
    if name in THEIRS and not status:
        status, detail = convert(QEMU_IMG, fmt, options, 'theirs')
        readers.append((IMG, 'theirs'))
    for reader, what in readers if not status else []:
        detail += read_back(reader, fmt, what)
    for name_ in ('ours', 'theirs', 'back'):
        if os.path.exists(name_):
            os.unlink(name_)
    ok(not detail, name, detail)


THEIRS = {'luks aes-256 xts', 'luks cast5-128 cbc', 'luks serpent-256 xts', 'luks ivgen essiv'}
BASE = 'key-secret=s,iter-time=1'
HERE_ONLY = {'aes-192', 'serpent-192'}      # qemu-img 10 aborts with anything but xts
for alg in ('aes-128', 'aes-192', 'aes-256', 'cast5-128', 'serpent-128', 'serpent-192',
            'serpent-256', 'twofish-128', 'twofish-256'):
    for mode in ('xts', 'cbc', 'ecb', 'ctr'):
        if (alg, mode) != ('cast5-128', 'xts') and (alg not in HERE_ONLY or mode == 'xts'):
            both_ways('luks', '%s,cipher-alg=%s,cipher-mode=%s' % (BASE, alg, mode),
                      'luks %s %s' % (alg, mode))
for ivgen in ('plain', 'essiv', 'essiv,ivgen-hash-alg=md5'):
    both_ways('luks', '%s,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=%s' % (BASE, ivgen),
              'luks ivgen ' + ivgen)
for name in ('md5', 'sha1', 'sha224', 'sha384', 'sha512', 'ripemd160', 'sm3'):
    both_ways('luks', '%s,hash-alg=%s' % (BASE, name), 'luks hash ' + name)

for alg in sorted(HERE_ONLY):
    status, err = convert(IMG, 'luks', '%s,cipher-alg=%s,cipher-mode=cbc' % (BASE, alg), 'ours')
    err = err or read_back(IMG, 'luks', 'ours')
    ok(not err, 'luks %s cbc, which qemu-img cannot, is read back' % alg, err)

# Secrets that another secret encrypts: AES-256-CBC, PKCS #7.
KEY = b'0123456789abcdef0123456789abcdef'
done = subprocess.run(['openssl', 'enc', '-aes-256-cbc', '-a', '-A', '-K', KEY.hex(), '-iv',
                       '00' * 15 + '01'], input=b'pass,word', capture_output=True)
if done.returncode == 0:
    with open('key', 'wb') as f:
        f.write(KEY)
    convert(QEMU_IMG, 'luks', BASE, 'theirs')
    status, err = said(IMG, 'map', '--object', 'secret,id=k,file=key', '--object',
                       'secret,id=s,keyid=k,iv=AAAAAAAAAAAAAAAAAAAAAQ==,format=base64,data='
                       + done.stdout.decode(), '--output=json', '--image-opts',
                       'driver=luks,file.filename=theirs,key-secret=s')
    ok(status == 0, 'a secret that another secret decrypts opens an image', err)
    status, err = said(IMG, 'map', '--object', 'secret,id=s,file=key', '--image-opts',
                       'driver=luks,file.filename=theirs,key-secret=s')
    ok(status == 1 and '0123456789' not in err, 'a wrong secret is not repeated', err)
finish()
