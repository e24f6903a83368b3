#!/usr/bin/env python3
"""platter-img amend against qemu-img amend: the same words, the same image after it."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

S = '--object secret,id=s,data=abc --object secret,id=t,data=def --object secret,id=u,data=zzz'
X = '--image-opts driver=luks,file.filename=x.luks,key-secret=s'
T = '--image-opts driver=luks,file.filename=two.luks,key-secret=s'
L = '--image-opts driver=qcow2,file.filename=l.qcow2,encrypt.key-secret=s'

suite = Suite()
suite.table(r'''
    # usage
    amend
    amend a.qcow2
    amend -o lazy_refcounts=on
    amend -o lazy_refcounts=on a.qcow2 b.qcow2
    amend -o "" a.qcow2
    amend -f qcow2 -o help
    amend -f luks -o help
    amend -f raw -o help
    amend -f nosuch -o help
    amend -o help a.qcow2
    amend -o help raw.img
    amend -o size=2M -f raw raw.img
    amend -t foo -o lazy_refcounts=on a.qcow2
    amend -o foo=bar a.qcow2
    amend -o cluster_size=64k a.qcow2
    amend -o preallocation=full a.qcow2
    amend -o lazy_refcounts=maybe a.qcow2
    amend -o lazy_refcounts=on gone.qcow2
    amend -f qcow2 -o lazy_refcounts=on --image-opts a.qcow2
    amend -o lazy_refcounts=on corrupt.qcow2

    # lazy refcounts
    amend -o lazy_refcounts=on a.qcow2
    amend -o lazy_refcounts=off a.qcow2
    amend -o lazy_refcounts=off lazy.qcow2
    amend -o lazy_refcounts=on v2.qcow2
    amend -o compat=1.1,lazy_refcounts=on v2.qcow2
    amend -o compat=0.10,lazy_refcounts=on v2.qcow2
    amend -o compat=0.10,lazy_refcounts=on lazy.qcow2
    amend -q -o lazy_refcounts=on -t none a.qcow2
    amend -o lazy_refcounts=on --image-opts driver=qcow2,file.filename=a.qcow2

    # up and down
    amend -o compat=1.1 v2.qcow2
    amend -o compat=v3 v2.qcow2
    amend -o compat=0.10 v2.qcow2
    amend -o compat=0.10 a.qcow2
    amend -o compat=v2 b.qcow2
    amend -o compat=0.10 lazy.qcow2
    amend -o compat=0.10 snap.qcow2
    amend -o compat=0.10 snapbase.qcow2
    amend -o compat=0.10 nul.qcow2
    amend -o compat=0.10 onraw.qcow2
    amend -o compat=0.10 c.qcow2
    amend -o compat=0.10 meta.qcow2
    amend -o compat=0.10 c512.qcow2
    amend -o compat=0.10 c2m.qcow2
    amend -o compat=0.10 comp.qcow2
    amend -o compat=0.10 zstd.qcow2
    amend -o compat=0.10 rc64.qcow2
    amend -o compat=0.10,refcount_bits=16 rc64.qcow2
    amend -o compat=1.1 v2top.qcow2
    amend -o compat=0.10,size=8M v2.qcow2
    amend -o compat=0.42 a.qcow2
    amend -o compat= a.qcow2

    # refcount width
    amend -o refcount_bits=1 a.qcow2
    amend -o refcount_bits=64 a.qcow2
    amend -o refcount_bits=8 c512.qcow2
    amend -o refcount_bits=64 c512.qcow2
    amend -o refcount_bits=16 rc1.qcow2
    amend -o refcount_bits=2 rc64.qcow2
    amend -o refcount_bits=1 snap.qcow2
    amend -o refcount_bits=2 snap.qcow2
    amend -o refcount_bits=4 comp.qcow2
    amend -o refcount_bits=1 comp.qcow2
    amend -o refcount_bits=64 v2.qcow2
    amend -o compat=1.1,refcount_bits=64 v2.qcow2
    amend -o compat=0.10,refcount_bits=64 a.qcow2
    amend -o refcount_bits=7 a.qcow2
    amend -o refcount_bits=128 a.qcow2
    amend -o refcount_bits=0 a.qcow2
    amend -o refcount_bits=16 a.qcow2

    # size, names
    amend -o size=2M a.qcow2
    amend -o size=512k a.qcow2
    amend -o size=1000000000 b.qcow2
    amend -o backing_file=a.qcow2,backing_fmt=qcow2 b.qcow2
    amend -o backing_file=raw.img b.qcow2
    amend -o backing_file=raw.img,backing_fmt=raw a.qcow2
    amend -o backing_fmt=raw b.qcow2
    amend -o data_file=x a.qcow2
    amend -o data_file_raw=on a.qcow2
    amend -o data_file_raw=off a.qcow2
    amend -o data_file=other ext.qcow2
    amend -o data_file= ext.qcow2
    amend -o data_file_raw=on ext.qcow2
    amend -o data_file_raw=off extraw.qcow2
    amend -o compat=0.10 ext.qcow2
    amend -o refcount_bits=8 ext.qcow2

    # key slots, refused
    amend -o encrypt.state=active,encrypt.new-secret=t a.qcow2
    amend @S@ @L@ -o encrypt.new-secret=t
    amend @S@ @L@ -o encrypt.state=foo
    amend @S@ @L@ -o encrypt.state=active
    amend @S@ -o state=active,new-secret=t x.luks
    amend @S@ @X@ -o new-secret=t
    amend @S@ @X@ -o state=foo
    amend @S@ @X@ -o state=active
    amend @S@ @X@ -o state=active,new-secret=nosuch
    amend @S@ @X@ -o state=active,new-secret=t,old-secret=s
    amend @S@ @X@ -o state=active,new-secret=t,keyslot=8
    amend @S@ @X@ -o state=active,new-secret=t,keyslot=-1
    amend @S@ @X@ -o state=active,new-secret=t,keyslot=0
    amend @S@ @X@ -o state=inactive
    amend @S@ @X@ -o state=inactive,new-secret=t
    amend @S@ @X@ -o state=inactive,iter-time=10
    amend @S@ @X@ -o state=inactive,keyslot=9
    amend @S@ @X@ -o state=inactive,keyslot=0
    amend @S@ @X@ -o state=inactive,keyslot=3
    amend @S@ @X@ -o state=inactive,old-secret=s
    amend @S@ @X@ -o state=inactive,old-secret=u
    amend @S@ @X@ -o state=inactive,old-secret=nosuch
    amend @S@ @T@ -o state=inactive,old-secret=t,keyslot=0
    amend @S@ @X@ -o key-secret=t
    amend @S@ @X@ -o cipher-alg=aes-128
    amend @S@ @X@ -o foo=bar

    # what differs on purpose
    ~help-text amend --help
        out| ^Change properties of an image in place
'''.replace('@S@', S).replace('@X@', X).replace('@T@', T).replace('@L@', L))
suite.run()
