"""fixtures.py - the images the differential tests run on, made by qemu-img 10.

ALL maps a file name to (needs, recipe).  needs: other files that must lie beside
it.  A recipe is a list of steps: "img ARGS" and "io FILE COMMAND; COMMAND" run
qemu-img and qemu-io; "poke FILE OFFSET HEX" changes bytes; other steps are the
small functions below.  Files are made in the order of the table.
"""
import os
import random
import re
import shlex
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                                'qcow2'))
import bitmaps

ALL = {
    # raw
    'raw.img':      ([], ['img create -q raw.img 1M', 'io raw.img write -P 1 64k 128k']),
    'odd.img':      ([], ['text odd.img 1000001 odd']),
    'empty.img':    ([], ['text empty.img 0 -']),
    'tiny.img':     ([], ['text tiny.img 100 tiny']),
    'mixed.img':    ([], ['mixed mixed.img 5000000']),
    'like.qcow2':   (['raw.img'], ['img convert -O qcow2 raw.img like.qcow2']),
    'late.img':     (['raw.img'], ['img convert raw.img late.img',
                                   'io late.img write -P 1 900001 1']),
    'longer.img':   (['raw.img'], ['img convert raw.img longer.img',
                                   'img resize -q -f raw longer.img 1500k']),
    'more.img':     (['longer.img'], ['img convert longer.img more.img',
                                      'io more.img write -P 1 1200001 1']),
    'base.raw':     ([], ['img create -q base.raw 256k', 'io base.raw write -P 7 0 64k']),
    # qcow2, by feature
    'a.qcow2':      ([], ['img create -q -f qcow2 a.qcow2 1M', 'io a.qcow2 write -P 2 0 128k']),
    'b.qcow2':      (['a.qcow2'], ['img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 4M',
                                   'io b.qcow2 write -P 3 64k 64k; write -z 256k 128k; '
                                   'write -P 4 2M 192k']),
    'c.qcow2':      (['b.qcow2', 'a.qcow2'],
                     ['img create -q -f qcow2 -b b.qcow2 -F qcow2 c.qcow2',
                      'io c.qcow2 write -P 5 96k 64k; discard 2M 64k']),
    'onraw.qcow2':  (['base.raw'], ['img create -q -f qcow2 -b base.raw -F raw onraw.qcow2 1M',
                                    'io onraw.qcow2 write -P 6 128k 64k']),
    'short.qcow2':  (['a.qcow2'], ['img create -q -f qcow2 -b a.qcow2 -F qcow2 short.qcow2 96k']),
    'new.qcow2':    ([], ['img create -q -f qcow2 new.qcow2 64M']),
    'zero.qcow2':   ([], ['img create -q -f qcow2 zero.qcow2 0']),
    'v2.qcow2':     ([], ['img create -q -f qcow2 -o compat=0.10 v2.qcow2 1M',
                          'io v2.qcow2 write -P 8 0 300k']),
    'c512.qcow2':   ([], ['img create -q -f qcow2 -o cluster_size=512 c512.qcow2 256k',
                          'io c512.qcow2 write -P 9 1000 5000; write -P 9 100k 4k']),
    'c2m.qcow2':    ([], ['img create -q -f qcow2 -o cluster_size=2M c2m.qcow2 16M',
                          'io c2m.qcow2 write -P 9 3M 64k']),
    'rc1.qcow2':    ([], ['img create -q -f qcow2 -o refcount_bits=1 rc1.qcow2 1M',
                          'io rc1.qcow2 write -P 1 0 64k']),
    'rc64.qcow2':   ([], ['img create -q -f qcow2 -o refcount_bits=64 rc64.qcow2 1M',
                          'io rc64.qcow2 write -P 1 0 64k']),
    'lazy.qcow2':   ([], ['img create -q -f qcow2 -o lazy_refcounts=on lazy.qcow2 1M',
                          'io lazy.qcow2 write -P 1 0 64k']),
    'meta.qcow2':   ([], ['img create -q -f qcow2 -o preallocation=metadata meta.qcow2 1M']),
    'full.qcow2':   ([], ['img create -q -f qcow2 -o preallocation=full full.qcow2 1M']),
    'comp.qcow2':   (['raw.img'], ['img convert -c -O qcow2 raw.img comp.qcow2']),
    'zstd.qcow2':   (['raw.img'], ['img convert -c -o compression_type=zstd -O qcow2 raw.img '
                                   'zstd.qcow2']),
    'snap.qcow2':   ([], ['img create -q -f qcow2 snap.qcow2 1M', 'io snap.qcow2 write 0 64k',
                          'img snapshot -c first snap.qcow2', 'io snap.qcow2 write 64k 64k',
                          'img snapshot -c another snap.qcow2']),
    'nul.qcow2':    ([], ['img create -q -f qcow2 nul.qcow2 1M', 'io nul.qcow2 write -z 64k 64k; '
                          'write 0 64k; write -z -u 192k 64k']),
    # encrypted: the password is abc, the second one def
    'x.luks':       (['raw.img'], ['img convert --object secret,id=s,data=abc -O luks -o '
                                   'key-secret=s,iter-time=10 raw.img x.luks']),
    'cbc.luks':     (['raw.img'], ['img convert --object secret,id=s,data=abc -O luks -o '
                                   'key-secret=s,iter-time=10,cipher-alg=twofish-128,'
                                   'cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5,'
                                   'hash-alg=sha512 raw.img cbc.luks']),
    'two.luks':     ([], ['img create -q --object secret,id=s,data=abc -f luks -o '
                          'key-secret=s,iter-time=10 two.luks 1M',
                          'img amend --object secret,id=s,data=abc --object secret,id=t,data=def '
                          '--image-opts driver=luks,file.filename=two.luks,key-secret=s '
                          '-o state=active,new-secret=t,keyslot=5,iter-time=10']),
    'l.qcow2':      (['raw.img'], ['img convert --object secret,id=s,data=abc -O qcow2 -o '
                                   'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 '
                                   'raw.img l.qcow2']),
    'aes.qcow2':    (['raw.img'], ['img convert --object secret,id=s,data=abc -O qcow2 -o '
                                   'encrypt.format=aes,encrypt.key-secret=s raw.img aes.qcow2']),
    'onl.qcow2':    (['l.qcow2', 'raw.img'], ['img create -q -f qcow2 -b l.qcow2 -F qcow2 onl.qcow2']),
    # overlays to commit, rebase and take snapshots of
    'snapbase.qcow2': ([], ['img create -q -f qcow2 snapbase.qcow2 1M',
                            'io snapbase.qcow2 write -P 1 0 300k', 'img snapshot -c small snapbase.qcow2',
                            'img resize -q snapbase.qcow2 1G',
                            'io snapbase.qcow2 write -P 2 100k 64k; write -P 3 900M 200k',
                            'img snapshot -c large snapbase.qcow2',
                            'io snapbase.qcow2 write -P 4 600M 100k; write -P 5 0 4k']),
    'snapcomp.qcow2': ([], ['img create -q -f qcow2 snapcomp.qcow2 1M',
                            'io snapcomp.qcow2 write -c -P 3 0 64k; write -c -P 9 64k 64k; '
                            'write -c -P 8 128k 64k', 'img snapshot -c packed snapcomp.qcow2',
                            'io snapcomp.qcow2 write -P 1 64k 4k']),
    'v2top.qcow2':  (['v2.qcow2'], ['img create -q -f qcow2 -o compat=0.10 -b v2.qcow2 -F qcow2 '
                                    'v2top.qcow2 3M', 'io v2top.qcow2 write -P 2 100k 300k; '
                                    'write -z 1M 100k']),
    'snaptop.qcow2': (['a.qcow2'], ['img create -q -f qcow2 -b a.qcow2 -F qcow2 snaptop.qcow2',
                                    'io snaptop.qcow2 write -P 3 0 200k',
                                    'img snapshot -c one snaptop.qcow2',
                                    'io snaptop.qcow2 write -P 4 100k 64k; write -P 5 800k 4k']),
    'comptop.qcow2': (['a.qcow2'], ['img create -q -f qcow2 -b a.qcow2 -F qcow2 comptop.qcow2',
                                    'io comptop.qcow2 write -c -P 3 0 64k; '
                                    'write -c -P 9 512k 64k']),
    'zerotop.qcow2': (['base.raw'], ['img create -q -f qcow2 -b base.raw -F raw zerotop.qcow2',
                                     'io zerotop.qcow2 write -z 0 32k; write -z 64k 64k']),
    'c512top.qcow2': (['a.qcow2'], ['img create -q -f qcow2 -o cluster_size=512 -b a.qcow2 '
                                    '-F qcow2 c512top.qcow2',
                                    'io c512top.qcow2 write -P 3 1000 5000; discard 64k 8k; '
                                    'write -P 7 1000k 1k']),
    'onodd.qcow2':  (['odd.img'], ['img create -q -f qcow2 -b odd.img -F raw onodd.qcow2',
                                   'io onodd.qcow2 write -P 3 900k 70k']),
    # qcow2, damaged or strange
    'leak.qcow2':   ([], ['img create -q -f qcow2 leak.qcow2 1M', 'io leak.qcow2 write 0 64k',
                          'poke leak.qcow2 0x2000e 0001']),
    'leaks.qcow2':  ([], ['img create -q -f qcow2 leaks.qcow2 1M', 'io leaks.qcow2 write 0 64k',
                          'poke leaks.qcow2 0x2000a 0003', 'poke leaks.qcow2 0x20010 00010001']),
    'zeroref.qcow2': ([], ['img create -q -f qcow2 zeroref.qcow2 1M',
                           'io zeroref.qcow2 write 0 128k', 'poke zeroref.qcow2 0x2000a 0000']),
    'bothbad.qcow2': ([], ['img create -q -f qcow2 bothbad.qcow2 1M',
                           'io bothbad.qcow2 write 0 128k', 'poke bothbad.qcow2 0x2000a 0000',
                           'poke bothbad.qcow2 0x20010 0001']),
    'dirty.qcow2':  ([], ['img create -q -f qcow2 -o lazy_refcounts=on dirty.qcow2 1M',
                          'io dirty.qcow2 write 0 64k', 'poke dirty.qcow2 0x4f 01']),
    'corrupt.qcow2': ([], ['img create -q -f qcow2 corrupt.qcow2 1M', 'io corrupt.qcow2 write 0 64k',
                           'poke corrupt.qcow2 0x4f 02']),
    'version.qcow2': ([], ['img create -q -f qcow2 version.qcow2 1M', 'poke version.qcow2 4 00000004']),
    'feature.qcow2': ([], ['img create -q -f qcow2 feature.qcow2 1M',
                           'poke feature.qcow2 0x48 4000000000000000']),
    'trunc.qcow2':  ([], ['img create -q -f qcow2 trunc.qcow2 1M', 'cut trunc.qcow2 60']),
    'bits.qcow2':   ([], ['img create -q -f qcow2 bits.qcow2 1M', 'poke bits.qcow2 0x14 00000008']),
    'l1.qcow2':     ([], ['img create -q -f qcow2 l1.qcow2 1M', 'poke l1.qcow2 0x28 0000000000030001']),
    'extl2.qcow2':  ([], ['img create -q -f qcow2 -o extended_l2=on extl2.qcow2 1M']),
    'luks.qcow2':   ([], ['img create -q -f qcow2 --object secret,id=s,data=x '
                          '-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 '
                          'luks.qcow2 1M']),
    'dataf.qcow2':  (['dataf.raw'], ['img create -q -f qcow2 -o data_file=dataf.raw '
                                     'dataf.qcow2 1M']),
    'dataf.raw':    ([], []),           # made with dataf.qcow2
    'ext.qcow2':    (['ext.raw'], ['img create -q -f qcow2 -o data_file=ext.raw ext.qcow2 1M',
                                   'io ext.qcow2 write -P 1 0 100k; write -P 2 300k 64k; '
                                   'write -z 320k 128k; write -P 3 900k 1k']),
    'ext.raw':      ([], []),           # made with ext.qcow2
    'extraw.qcow2': (['extraw.raw'], ['img create -q -f qcow2 -o data_file=extraw.raw,'
                                      'data_file_raw=on extraw.qcow2 1000k',
                                      'io extraw.qcow2 write -P 1 0 100k; write -P 2 300k 64k; '
                                      'write -z 320k 128k; write -P 3 900k 1k']),
    'extraw.raw':   ([], []),           # made with extraw.qcow2
    'exttop.qcow2': (['exttop.raw', 'a.qcow2'],
                     ['img create -q -f qcow2 -o data_file=exttop.raw -b a.qcow2 -F qcow2 '
                      'exttop.qcow2', 'io exttop.qcow2 write -P 4 70k 10k; write -P 5 800k 64k']),
    'exttop.raw':   ([], []),           # made with exttop.qcow2
    'onext.qcow2':  (['ext.qcow2'], ['img create -q -f qcow2 -b ext.qcow2 -F qcow2 onext.qcow2',
                                     'io onext.qcow2 write -P 7 50k 64k; write -z 256k 64k']),
    'bitmap.qcow2': ([], ['img create -q -f qcow2 bitmap.qcow2 1M',
                          'img bitmap --add bitmap.qcow2 changes']),
    'bm.qcow2':      ([], ['img create -q -f qcow2 bm.qcow2 10000k',
                          'img bitmap --add bm.qcow2 first',
                          'io bm.qcow2 write 0 100k; write -P 2 3M 300k; discard 5M 1M; '
                          'write -z 7M 64k',
                          'img bitmap --add -g 4k bm.qcow2 fine',
                          'img bitmap --add --disable bm.qcow2 off',
                          'io bm.qcow2 write 9990k 1k; write 200k 1; write 4M 70k']),
    'bmv2.qcow2':    ([], ['img create -q -f qcow2 -o compat=0.10 bmv2.qcow2 1M']),
    'bmsmall.qcow2':     ([], ['img create -q -f qcow2 -o cluster_size=512 bmsmall.qcow2 3M',
                          'img bitmap --add -g 512 bmsmall.qcow2 tiny',
                          'io bmsmall.qcow2 write 0 100k; write 1M 300k']),
    'bmused.qcow2':      (['bm.qcow2'], ['img convert -q --bitmaps -O qcow2 bm.qcow2 bmused.qcow2', 'inuse bmused.qcow2']),
    'bmlost.qcow2':      (['bm.qcow2'], ['img convert -q --bitmaps -O qcow2 bm.qcow2 bmlost.qcow2',
                                   'poke bmlost.qcow2 0x5f 00']),
    'bmtop.qcow2':   (['bm.qcow2'], ['img create -q -f qcow2 -b bm.qcow2 -F qcow2 bmtop.qcow2',
                                   'img bitmap --add bmtop.qcow2 top',
                                   'io bmtop.qcow2 write 6M 100k']),
    'bmsnap.qcow2':  (['bm.qcow2'], ['img convert -q --bitmaps -O qcow2 bm.qcow2 bmsnap.qcow2',
                                   'img snapshot -c one bmsnap.qcow2']),
    # qcow2, backing names
    'nobase.qcow2': ([], ['img create -q -u -f qcow2 -b gone.raw -F raw nobase.qcow2 1M']),
    'nofmt.qcow2':  (['a.qcow2'], ['img create -q -u -f qcow2 -o compat=0.10 -b a.qcow2 -F qcow2 '
                                   'nofmt.qcow2 1M', 'noformat nofmt.qcow2']),
    'badfmt.qcow2': (['base.raw'], ['img create -q -u -f qcow2 -b base.raw -F raw badfmt.qcow2 1M',
                                    'subst badfmt.qcow2 raw rax']),
    'loop.qcow2':   ([], ['img create -q -u -f qcow2 -b loop.qcow2 -F qcow2 x.qcow2 1M',
                          'rename x.qcow2 loop.qcow2']),
    'loop1.qcow2':  (['loop2.qcow2'], ['img create -q -u -f qcow2 -b loop2.qcow2 -F qcow2 '
                                       'loop1.qcow2 1M']),
    'loop2.qcow2':  (['loop1.qcow2'], ['img create -q -u -f qcow2 -b loop1.qcow2 -F qcow2 '
                                       'loop2.qcow2 1M']),
    'sub/up.qcow2': (['a.qcow2'], ['img create -q -u -f qcow2 -b ../a.qcow2 -F qcow2 '
                                   'sub/up.qcow2 1M']),
    'names.qcow2':  ([], ['img create -q -u -f qcow2 -b \'é"\\x\' -F raw names.qcow2 1M']),
    'bytes.qcow2':  ([], ['img create -q -u -f qcow2 -b backing.x -F raw bytes.qcow2 1M',
                          'bytes bytes.qcow2 backing.x ff41c3a9e282c0af42']),
    'nbdbase.qcow2': ([], ['img create -q -u -f qcow2 -b nbd://localhost:1/x -F raw '
                           'nbdbase.qcow2 1M']),
    'jsonbase.qcow2': (['a.qcow2'], [
        'img create -q -u -f qcow2 -b \'json:{"driver":"qcow2","file.filename":"a.qcow2"}\' '
        '-F qcow2 jsonbase.qcow2 1M']),
    # other formats
    'sparse.vmdk':  ([], ['img create -q -f vmdk sparse.vmdk 3M', 'io sparse.vmdk write -P 1 0 70k; '
                          'write -P 2 1M 300k; write -z 2M 64k']),
    'zeros.vmdk':   ([], ['img create -q -f vmdk -o zeroed_grain=on zeros.vmdk 3M',
                          'io zeros.vmdk write -P 1 0 200k; write -z 64k 64k']),
    'flat.vmdk':    (['flat-flat.vmdk'], ['img create -q -f vmdk -o subformat=monolithicFlat '
                                          'flat.vmdk 3M', 'io flat.vmdk write -P 1 1M 64k']),
    'flat-flat.vmdk': ([], []),         # made with flat.vmdk
    'split.vmdk':   (['split-s001.vmdk', 'split-s002.vmdk'],
                     ['img create -q -f vmdk -o subformat=twoGbMaxExtentSparse split.vmdk 3G',
                      'io split.vmdk write -P 1 0 64k; write -P 2 2047M 2M']),
    'split-s001.vmdk': ([], []),        # made with split.vmdk
    'split-s002.vmdk': ([], []),
    'stream.vmdk':  (['raw.img'], ['img convert -O vmdk -o subformat=streamOptimized raw.img '
                                   'stream.vmdk']),
    'top.vmdk':     (['sparse.vmdk'], ['img create -q -f vmdk -b sparse.vmdk -F vmdk top.vmdk',
                                       'io top.vmdk write -P 3 64k 64k']),
    'dynamic.vhdx': ([], ['img create -q -f vhdx -o block_size=1M dynamic.vhdx 5M',
                          'io dynamic.vhdx write -P 1 0 70k; write -P 2 3M 1M']),
    'fixed.vhdx':   ([], ['img create -q -f vhdx -o subformat=fixed,block_state_zero=off '
                          'fixed.vhdx 3M', 'io fixed.vhdx write -P 1 1M 64k']),
    # not images
    'text.txt':     ([], ['text text.txt 33 hello']),
    'folder/x':     ([], ['text folder/x 3 x']),
    'fifo':         ([], ['fifo fifo']),
    'link.qcow2':   (['a.qcow2'], ['link link.qcow2 a.qcow2']),
    'dangling':     ([], ['link dangling nowhere']),
    'readonly.img': ([], ['text readonly.img 65536 ro', 'mode readonly.img 444']),
    'readonly.qcow2': ([], ['img create -q -f qcow2 readonly.qcow2 1M',
                            'mode readonly.qcow2 444']),
    'onreadonly.qcow2': (['readonly.qcow2'],
                         ['img create -q -f qcow2 -b readonly.qcow2 -F qcow2 onreadonly.qcow2']),
    'secret.img':   ([], ['text secret.img 65536 sec', 'mode secret.img 0']),
}


OTHER_FORMATS = ('vmdk', 'vhdx')


def step_text(path, size, pattern):
    """size bytes of a repeated pattern."""
    size = int(size)
    with open(path, 'wb') as f:
        f.write((pattern.encode() * (size // len(pattern) + 1))[:size])


def step_mixed(path, size):
    """Data, zeros that were written and holes, of all lengths and alignments."""
    size = int(size)
    rng = random.Random(size)
    with open(path, 'wb') as f:
        f.truncate(size)
        while f.tell() < size - 200000:
            length = rng.choice([1, 511, 512, 4095, 4096, 20000, 65536, 131072])
            kind = rng.randrange(3)
            if kind == 2:
                f.seek(length, os.SEEK_CUR)
            else:
                f.write(rng.randbytes(length) if kind else bytes(length))


def step_poke(path, offset, data):
    with open(path, 'r+b') as f:
        f.seek(int(offset, 0))
        f.write(bytes.fromhex(data))


def step_inuse(path):
    """As a QEMU that died with the image open leaves its bitmaps."""
    for _, at in bitmaps.entries(path):
        with open(path, 'r+b') as f:
            f.seek(at + 15)
            flags = f.read(1)[0]
            f.seek(at + 15)
            f.write(bytes([flags | bitmaps.IN_USE]))


def step_cut(path, size):
    os.truncate(path, int(size))


def step_subst(path, old, new):
    with open(path, 'r+b') as f:
        data = f.read().replace(old.encode(), new.encode(), 1)
        f.seek(0)
        f.write(data)


def step_bytes(path, old, data):
    """Replace a name by bytes that are no text."""
    with open(path, 'r+b') as f:
        f.seek(f.read().index(old.encode()))
        f.write(bytes.fromhex(data))


def step_noformat(path):
    """Take away the backing format: its header extension becomes an unknown one."""
    with open(path, 'r+b') as f:
        data = f.read()
        at = data.index(bytes.fromhex('e2792aca'))
        f.seek(at)
        f.write(bytes.fromhex('00000000'))
        f.write(bytes(4))


def step_rename(old, new):
    os.rename(old, new)


def step_link(path, target):
    os.symlink(target, path)


def step_fifo(path):
    os.mkfifo(path)


def step_mode(path, mode):
    os.chmod(path, int(mode, 8))


STEPS = {name[5:]: fn for name, fn in list(globals().items()) if name.startswith('step_')}


def run_tool(program, words):
    done = subprocess.run([program] + words, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError('%s %s: %s' % (program, words, done.stdout + done.stderr))


def run_step(step, tools):
    kind, _, rest = step.partition(' ')
    if kind == 'img':
        run_tool(os.path.join(tools, 'qemu-img'), shlex.split(rest))
    elif kind == 'io':
        path, _, commands = rest.partition(' ')
        words = []
        for command in commands.split('; '):
            words += ['-c', command]
        ending = path.rsplit('.', 1)[-1]
        form = 'qcow2' if 'qcow2' in path else ending if ending in OTHER_FORMATS else 'raw'
        run_tool(os.path.join(tools, 'qemu-io'), ['-f', form] + words + [path])
    else:
        STEPS[kind](*shlex.split(rest))


def make(where, line, tools):
    """Make the files that line names, in where, with the programs in tools."""
    wanted = mentioned(line)
    home = os.getcwd()
    os.chdir(where)
    try:
        for name, (_, recipe) in ALL.items():
            if name not in wanted:
                continue
            folder = os.path.dirname(name)
            if folder:
                os.makedirs(folder, exist_ok=True)
            for step in recipe:
                run_step(step, tools)
    finally:
        os.chdir(home)


def mentioned(line):
    """The fixtures a command line names, with what they need, first needs last."""
    todo, found = [], []
    for name in ALL:
        pattern = r'(?<![\w.])' + re.escape(name.split('/')[0] if name == 'folder/x' else name) \
            + r'(?![\w.])'
        if re.search(pattern, line):
            todo.append(name)
    while todo:
        name = todo.pop()
        if name not in found:
            found.append(name)
            todo += ALL[name][0]
    return found


def copy(stock, where, line):
    for name in mentioned(line):
        source, target = os.path.join(stock, name), os.path.join(where, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif name == 'fifo':
            os.mkfifo(target)
        elif os.path.exists(source):
            subprocess.run(['cp', '--sparse=always', '-p', source, target], check=True)
            if os.geteuid() == 0:
                os.chown(target, 65534, 65534)
