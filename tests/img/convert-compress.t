#!/usr/bin/env python3
"""platter-img convert -c against qemu-img convert -c."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # to qcow2
    convert -c -f raw -O qcow2 raw.img out.qcow2
    convert -c -f raw -O qcow2 mixed.img out.qcow2
    convert -c -f raw -O qcow2 odd.img out.qcow2
    convert -c -f raw -O qcow2 tiny.img out.qcow2
    convert -c -f raw -O qcow2 empty.img out.qcow2
    convert -c -f raw -O qcow2 -S 0 raw.img out.qcow2
    convert -c -f raw -O qcow2 -S 64k mixed.img out.qcow2
    convert -c -f raw -O qcow2 -S 512 mixed.img out.qcow2
    convert -c -f raw -O qcow2 -W mixed.img out.qcow2
    convert -c -f raw -O qcow2 -m 1 mixed.img out.qcow2
    convert -c -f raw -O qcow2 -r 100M mixed.img out.qcow2
    convert -c -f raw -O qcow2 -t none mixed.img out.qcow2
    convert -c -f raw -O qcow2 -t writethrough mixed.img out.qcow2
    convert -c -f raw -O qcow2 -o compat=0.10 mixed.img out.qcow2
    convert -c -f raw -O qcow2 -o compression_type=zstd mixed.img out.qcow2
    convert -c -f raw -O qcow2 -o cluster_size=512 mixed.img out.qcow2
    convert -c -f raw -O qcow2 -o cluster_size=2M mixed.img out.qcow2
    convert -c -f raw -O qcow2 -o refcount_bits=1 mixed.img out.qcow2
    convert -c -f raw -O qcow2 -o refcount_bits=64,cluster_size=4k mixed.img out.qcow2
    convert -c -f raw -O qcow2 -o lazy_refcounts=on mixed.img out.qcow2
    convert -c -f raw -O qcow2 -o preallocation=off raw.img out.qcow2
    convert -c -f raw -O qcow2 raw.img odd.img mixed.img out.qcow2
    convert -c -f raw -O qcow2 -o cluster_size=2M tiny.img raw.img odd.img tiny.img out.qcow2
    convert -c -O qcow2 c.qcow2 out.qcow2
    convert -c -O qcow2 nul.qcow2 out.qcow2
    convert -c -O qcow2 comp.qcow2 out.qcow2
    convert -c -O qcow2 -o compression_type=zstd comp.qcow2 out.qcow2
    convert -c -O qcow2 -o cluster_size=4k zstd.qcow2 out.qcow2
    convert -O qcow2 comp.qcow2 out.qcow2
    convert -O raw zstd.qcow2 out.img
    # onto a backing file
    convert -c -O qcow2 -B a.qcow2 -F qcow2 b.qcow2 out.qcow2
    convert -c -O qcow2 -B b.qcow2 -F qcow2 c.qcow2 out.qcow2
    convert -c -O qcow2 -B b.qcow2 -F qcow2 -o cluster_size=512 c.qcow2 out.qcow2
    convert -c -O qcow2 -B b.qcow2 -F qcow2 -o cluster_size=2M c.qcow2 out.qcow2
    convert -c -O qcow2 -B base.raw -F raw onraw.qcow2 out.qcow2
    # onto what exists
    convert -c -n -O qcow2 raw.img new.qcow2
    convert -c -n --target-is-zero -O qcow2 raw.img new.qcow2
    convert -c -n -f raw --target-image-opts raw.img driver=qcow2,file.filename=new.qcow2
    # refusals
    convert -c raw.img out.img
    convert -c -O raw raw.img out.img
    convert -c -n raw.img odd.img
    convert -c -n --target-image-opts raw.img driver=raw,file.filename=mixed.img
    convert -c -C -O qcow2 raw.img out.qcow2
    convert -c -O qcow2 -o preallocation=metadata raw.img out.qcow2
    convert -c -O qcow2 -o preallocation=falloc raw.img out.qcow2
    convert -c -O qcow2 -o preallocation=full raw.img out.qcow2
    convert -c -O qcow2 -o encryption=on raw.img out.qcow2
    convert -c -O qcow2 -o encrypt.format=luks raw.img out.qcow2
    convert -c -O qcow2 -o compression_type=lzma raw.img out.qcow2
    convert -c -O qcow2 -o compat=0.10,compression_type=zstd raw.img out.qcow2
    convert -O qcow2 -o compression_level=1 raw.img out.qcow2
    # ours
    ~compression-level convert -c -O qcow2 -o compression_level=9 mixed.img out.qcow2
        status| 0
        err| ^$
        files|
    ~compression-level convert -c -O qcow2 -o compression_level=0 mixed.img out.qcow2
        err| compression_level must be between 1 and 12 for compression type zlib
    ~compression-level convert -c -O qcow2 -o compression_type=zstd,compression_level=23 raw.img o
        err| compression_level must be between 1 and 22 for compression type zstd
    ~compression-level convert -c -O qcow2 -o compression_level=x mixed.img out.qcow2
        err| 'compression_level' expects
''')
suite.run()
