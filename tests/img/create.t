#!/usr/bin/env python3
"""platter-img create against qemu-img create."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # a raw image
    create x.img 1M
    create -f raw x.img 1000
    create -q x.img 1M
    create --quiet -f raw x.img 1M
    create raw.img 3M
    create x.img 0
    create file:x.img 1M
    create -f file x.img 1M
    create -o preallocation=off x.img 64k
    create -o preallocation=falloc x.img 64k
    create -o preallocation=full x.img 64k
    create -o preallocation=metadata x.img 64k
    create -o preallocation=other x.img 64k
    create -o nocow=on x.img 64k
    create 'x y.img' 1M

    # sizes
    create x.img 1k
    create x.img 1.5G
    create x.img .5M
    create x.img 1.
    create x.img 0.1k
    create x.img 0x100
    create x.img 0x1M
    create x.img 010
    create x.img ' 1M'
    create x.img +1M
    create x.img 1b
    create x.img 1B
    create x.img 2P
    create x.img 7E
    create x.img 8E
    create x.img 16E
    create x.img 99999999999999999999
    create x.img 1Z
    create x.img 1.5
    create x.img 1e3
    create x.img ''
    create x.img 12foo
    create x.img 1kb
    create x.img 1KiB
    create x.img inf
    create x.img -- -1
    create x.img -- -1M
    create x.img -1
    create -o size=1M x.img
    create -o size=1M x.img 2M
    create -o size=1M,size=2M x.img
    create -o size= x.img
    create -o size=-1 x.img
    create -o size=-1M x.img
    create -o size=17E x.img
    create -o size x.img

    # qcow2
    create -f qcow2 x.qcow2 1M
    create -f qcow2 -q x.qcow2 1M
    create -f qcow2 x.qcow2 0
    create -f qcow2 x.qcow2 1000
    create -f qcow2 x.qcow2 100G
    create -f qcow2 x.qcow2 1E
    create -f qcow2 -o cluster_size=2M x.qcow2 1E
    create -f qcow2 raw.img 1M
    create -f qcow2 b.qcow2 1M
    create -f qcow2 -o compat=0.10 x.qcow2 1M
    create -f qcow2 -o compat=1.1 x.qcow2 1M
    create -f qcow2 -o compat=v2 x.qcow2 1M
    create -f qcow2 -o compat=v3 x.qcow2 1M
    create -f qcow2 -o compat=3 x.qcow2 1M
    create -f qcow2 -o cluster_size=512 x.qcow2 1M
    create -f qcow2 -o cluster_size=4k x.qcow2 1M
    create -f qcow2 -o cluster_size=2M x.qcow2 1M
    create -f qcow2 -o cluster_size=4M x.qcow2 1M
    create -f qcow2 -o cluster_size=3 x.qcow2 1M
    create -f qcow2 -o cluster_size=0 x.qcow2 1M
    create -f qcow2 -o cluster_size=1.5M x.qcow2 1M
    create -f qcow2 -o cluster_size=foo x.qcow2 1M
    create -f qcow2 -o cluster_size=-1 x.qcow2 1M
    create -f qcow2 -o refcount_bits=1 x.qcow2 1M
    create -f qcow2 -o refcount_bits=64 x.qcow2 1M
    create -f qcow2 -o refcount_bits=3 x.qcow2 1M
    create -f qcow2 -o refcount_bits=128 x.qcow2 1M
    create -f qcow2 -o refcount_bits=-1 x.qcow2 1M
    create -f qcow2 -o refcount_bits=0x10 x.qcow2 1M
    create -f qcow2 -o refcount_bits=x x.qcow2 1M
    create -f qcow2 -o refcount_bits= x.qcow2 1M
    create -f qcow2 -o refcount_bits=1.5 x.qcow2 1M
    create -f qcow2 -o refcount_bits=99999999999999999999 x.qcow2 1M
    create -f qcow2 -o compat=v2,refcount_bits=8 x.qcow2 1M
    create -f qcow2 -o lazy_refcounts=on x.qcow2 1M
    create -f qcow2 -o lazy_refcounts x.qcow2 1M
    create -f qcow2 -o nolazy_refcounts x.qcow2 1M
    create -f qcow2 -o lazy_refcounts=yes x.qcow2 1M
    create -f qcow2 -o lazy_refcounts=maybe x.qcow2 1M
    create -f qcow2 -o compat=v2,lazy_refcounts=on x.qcow2 1M
    create -f qcow2 -o compression_type=zstd x.qcow2 1M
    create -f qcow2 -o compression_type=foo x.qcow2 1M
    create -f qcow2 -o compat=v2,compression_type=zstd x.qcow2 1M
    create -f qcow2 -o preallocation=metadata x.qcow2 1M
    create -f qcow2 -o preallocation=falloc x.qcow2 1M
    create -f qcow2 -o preallocation=full x.qcow2 1M
    create -f qcow2 -o preallocation=foo x.qcow2 1M
    create -f qcow2 -o preallocation=metadata,cluster_size=512 x.qcow2 1M
    create -f qcow2 -o cluster_size=4k -o refcount_bits=8 x.qcow2 1M
    create -f qcow2 -o preallocation=metadata -b a.qcow2 -F qcow2 x.qcow2

    # qcow2 on a backing file
    create -f qcow2 -b a.qcow2 -F qcow2 x.qcow2
    create -f qcow2 -b a.qcow2 -F qcow2 x.qcow2 8M
    create -f qcow2 -b a.qcow2 -F qcow2 x.qcow2 512k
    create -f qcow2 --backing a.qcow2 --backing-format qcow2 x.qcow2
    create -f qcow2 -b c.qcow2 -F qcow2 x.qcow2
    create -f qcow2 -b base.raw -F raw x.qcow2
    create -f qcow2 -b odd.img -F raw x.qcow2
    create -f qcow2 -b a.qcow2 x.qcow2
    create -f qcow2 -b base.raw x.qcow2 1M
    create -f qcow2 -b a.qcow2 -F bogus x.qcow2
    create -f qcow2 -b a.qcow2 -F raw x.qcow2 1M
    create -f qcow2 -b gone -F raw x.qcow2
    create -f qcow2 -b gone -F raw x.qcow2 1M
    create -f qcow2 -b nobase.qcow2 -F qcow2 x.qcow2
    create -f qcow2 -b folder -F raw x.qcow2
    create -f qcow2 -b text.txt -F qcow2 x.qcow2
    create -f qcow2 -b x.qcow2 -F qcow2 x.qcow2 1M
    create -f qcow2 -b '' x.qcow2 1M
    create -f qcow2 -F qcow2 x.qcow2 1M
    create -f qcow2 -o backing_file=a.qcow2,backing_fmt=qcow2 x.qcow2
    create -f qcow2 -o backing_file=a.qcow2 x.qcow2
    create -f qcow2 -o backing_file=x.qcow2 x.qcow2 1M
    create -f qcow2 -b a.qcow2 -F qcow2 -o backing_file=b.qcow2 x.qcow2
    create -f qcow2 -u -b gone -F raw x.qcow2 1M
    create -f qcow2 -u -b gone -F raw x.qcow2
    create -f qcow2 -u -b gone x.qcow2 1M
    create -f qcow2 -u -b gone -F bogus x.qcow2 1M
    create -f qcow2 -u -b a,b -F raw x.qcow2 1M
    create -f qcow2 -u -o backing_file=a,,b,backing_fmt=raw x.qcow2 1M
    create -f qcow2 -b ../a.qcow2 -F qcow2 sub/up.qcow2
    create -f raw -b a.qcow2 -F qcow2 x.img
    create -f raw -b a.qcow2 x.img 1M
    create -f raw -F qcow2 x.img 1M

    # what cannot be
    create
    create -f qcow2
    create x.img
    create -f qcow2 x.qcow2
    create -u x.qcow2
    create x.img 1M 2M
    create -f bogus x.img 1M
    create -f '' x.img 1M
    create -Z x.img 1M
    create --zzz x.img 1M
    create x.img --size 1M
    create -f
    create gone/x.img 1M
    create -f qcow2 gone/x.qcow2 1M
    create folder 1M
    create -f qcow2 folder 1M
    create '' 1M
    create -f qcow2 '' 1M
    create /dev/null 1M
    create bogus:x 1M
    create -f qcow2 bogus:x 1M
    create 'json:{"driver":"file","filename":"x"}' 1M
    create dangling 1M
    create link.qcow2 1M
    @nobody create readonly.img 1M
    @nobody create -f qcow2 readonly.qcow2 1M
    @nobody create -f qcow2 -b secret.img -F raw x.qcow2
    @hold=w:a.qcow2 create a.qcow2 1M
    @hold=r:a.qcow2 create -f qcow2 a.qcow2 1M
    @hold=w:a.qcow2 create -f qcow2 -b a.qcow2 -F qcow2 x.qcow2
    @limit=131072 create -f qcow2 x.qcow2 1M
    @limit=131072 create x.img 1M

    # option lists
    create -f qcow2 -o foo=1 x.qcow2 1M
    create -f qcow2 -o foo x.qcow2 1M
    create -f qcow2 -o =1 x.qcow2 1M
    create -f qcow2 -o cluster_size=4k,foo x.qcow2 1M
    create -o ,size=1M x.img
    create -o , x.img 1M
    create -o '' x.img 1M
    create -o size=1M, x.img
    create -o size=1M,, x.img
    create -o a,,,b x.img 1M
    create -o help
    create -f raw -o help
    create -o '?'
    create -o list
    create -f qcow2 -o help
    create -f qcow2 -o '?' x.qcow2
    create -f qcow2 -o cluster_size=4k,help x.qcow2 1M
    create -f file -o help
    create -f raw -o help x.img
    create -f bogus -o help
    create -f qcow2 -o help bogus:x
    create --object foo x.img 1M
    create --object bogus,id=x x.img 1M
    create --object secret x.img 1M
    create --object secret,id=x x.img 1M

    # extended L2
    create -f qcow2 -o extended_l2=on x.qcow2 1M
    create -f qcow2 -o extended_l2=on,cluster_size=16k x.qcow2 1M
    create -f qcow2 -o extended_l2=on,cluster_size=8k x.qcow2 1M
    create -f qcow2 -o extended_l2=on,cluster_size=512 x.qcow2 1M
    create -f qcow2 -o extended_l2=on,cluster_size=12k x.qcow2 1M
    create -f qcow2 -o extended_l2=on,compat=0.10 x.qcow2 1M
    create -f qcow2 -o extended_l2=on,compat=0.10,cluster_size=512 x.qcow2 1M
    create -f qcow2 -o extended_l2=maybe x.qcow2 1M
    create -f qcow2 -o extended_l2=on,preallocation=metadata x.qcow2 1M
    create -f qcow2 -o extended_l2=on,preallocation=falloc x.qcow2 1M
    create -f qcow2 -o extended_l2=on,preallocation=full x.qcow2 1M
    create -f qcow2 -o extended_l2=on,preallocation=metadata -b a.qcow2 -F qcow2 x.qcow2
    create -f qcow2 -o extended_l2=on,cluster_size=16k x.qcow2 64T
    create -f qcow2 -o extended_l2=on,cluster_size=2M x.qcow2 64T

    # not yet
    create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s x.qcow2 1M
    create -f qcow2 -o encryption=on x.qcow2 1M
    create --object secret,id=s,data=x x.img 1M

    # the largest sizes
    create x.img 9223372036854775807
    create x.img 9223372036854775296
    create x.img 9223372035781033984
    create -f qcow2 x.img 9223372036854775807
    create -f qcow2 x.img 9223372036854775296
    create -f qcow2 x.img 9223372035781034496
    create -f qcow2 x.img 9223372035781033984

    # what differs on purpose
    ~help-text create --help
        out| ^Create an empty image\.  Usage:
    ~help-text create -h
        out| -b, --backing BACKING
''')
suite.run()
