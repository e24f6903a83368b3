#!/usr/bin/env python3
"""platter-img measure against qemu-img measure."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # a size
    measure --size 1G
    measure --size=0
    measure --size 1000
    measure -s 1M
    measure --size 1G -O raw
    measure --size 1G -O qcow2
    measure --size 0 -O qcow2
    measure --size 1 -O qcow2
    measure --size 1T -O qcow2
    measure --size 1G -O qcow2 --output=json
    measure --size 1G --output json
    measure --size 1G --output human
    measure --size 1G -O qcow2 -o cluster_size=4k
    measure --size 1G -O qcow2 -o cluster_size=512
    measure --size 1G -O qcow2 -o cluster_size=2M
    measure --size 1G -O qcow2 -o refcount_bits=1
    measure --size 1G -O qcow2 -o refcount_bits=64
    measure --size 1G -O qcow2 -o preallocation=metadata
    measure --size 1G -O qcow2 -o preallocation=falloc
    measure --size 1G -O qcow2 -o preallocation=full
    measure --size 1G -O qcow2 -o cluster_size=4k -o preallocation=full
    measure --size 1G -O qcow2 -o backing_file=x,backing_fmt=raw
    measure --size 1G -O qcow2 -o compat=0.10
    measure --size 1G -O qcow2 -o compat=0.10,extended_l2=on
    measure --size 1G -O qcow2 -o compat=0.10,lazy_refcounts=on
    measure --size 1G -O qcow2 -o compat=0.10,refcount_bits=1
    measure --size 1G -O qcow2 -o compat=0.10,compression_type=zstd
    measure --size 1G -O qcow2 -o compat=0.9
    measure --size 1G -O qcow2 -o compression_type=foo
    measure --size 1G -O qcow2 -o encrypt.format=foo
    measure --size 1G -O qcow2 -o backing_fmt=foo
    measure --size 1G -O qcow2 -o backing_file=foo,preallocation=full
    measure -U --size 1G

    # an image
    measure raw.img
    measure -O raw a.qcow2
    measure -O qcow2 raw.img
    measure -O qcow2 -f raw a.qcow2
    measure -O qcow2 odd.img
    measure -O qcow2 empty.img
    measure -O qcow2 a.qcow2
    measure -O qcow2 b.qcow2
    measure -O qcow2 c.qcow2
    measure -O qcow2 short.qcow2
    measure -O qcow2 nul.qcow2
    measure -O qcow2 comp.qcow2
    measure -O qcow2 v2.qcow2
    measure -O qcow2 --output=json b.qcow2
    measure -O raw --output=json b.qcow2
    measure -O qcow2 -o cluster_size=512 c.qcow2
    measure -O qcow2 -o cluster_size=2M c.qcow2
    measure -O qcow2 -o preallocation=full b.qcow2
    measure -O qcow2 -o preallocation=metadata b.qcow2
    measure -O qcow2 -o preallocation=metadata,extended_l2=on b.qcow2
    measure -O qcow2 -o preallocation=falloc b.qcow2
    measure -O qcow2 --image-opts driver=qcow2,file.filename=b.qcow2
    measure -O qcow2 -U b.qcow2
    @hold=w:b.qcow2 measure -O qcow2 b.qcow2
    @hold=w:b.qcow2 measure -U -O qcow2 b.qcow2

    # what cannot be
    measure
    measure -O qcow2
    measure --size 1G b.qcow2
    measure a.qcow2 b.qcow2
    measure --size foo
    measure --size=-1
    measure --size 8E
    measure --size 9223372036854775807 -O qcow2
    measure --size 1E -O qcow2
    measure --size 1G -O bogus
    measure --size 1G -O ''
    measure --size 1G -O qcow2 -o foo=1
    measure --size 1G -O qcow2 -o help
    measure --size 1G -O qcow2 -o cluster_size=3
    measure --size 1G -O qcow2 -o cluster_size=foo
    measure --size 1G -O qcow2 -o refcount_bits=3
    measure --size 1G -O qcow2 -o preallocation=foo
    measure --size 1G -O qcow2 -o ,
    measure --size 1G -O qcow2 -o size=2G
    measure -f qcow2 --size 1G
    measure --image-opts --size 1G
    measure -O qcow2 gone
    measure -O qcow2 folder
    measure -O qcow2 nobase.qcow2
    measure -f qcow2 raw.img
    measure -f bogus raw.img
    measure --output=xml --size 1G
    measure --zzz
    measure --object bogus,id=x --size 1G
    measure --image-opts -f raw raw.img

    # not yet
    measure -O qcow2 bitmap.qcow2
    measure -l first snap.qcow2
    measure -O qcow2 -l first snap.qcow2
    measure -O qcow2 -l 2 snap.qcow2
    measure -O qcow2 -l gone snap.qcow2
    measure -O qcow2 -l first raw.img
    measure -O qcow2 -l snapshot.bad=1 snap.qcow2
    measure -l first --size 1M
    measure -l first

    # what differs on purpose
    ~help-text measure --help
        out| ^Calculate the file size a new image needs\.  Usage:
''')
suite.run()
