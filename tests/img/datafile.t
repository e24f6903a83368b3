#!/usr/bin/env python3
"""qcow2 images whose data lies in another file, through every command of qemu-img."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # create
    create -f qcow2 -o data_file=d.raw x.qcow2 1M
    create -f qcow2 -o data_file=d.raw,data_file_raw=on x.qcow2 1M
    create -f qcow2 -o data_file=d.raw,data_file_raw=off x.qcow2 1000k
    create -f qcow2 -o data_file=d.raw,data_file_raw=on x.qcow2 1000k
    create -f qcow2 -o data_file=d.raw,preallocation=metadata x.qcow2 1000k
    create -f qcow2 -o data_file=d.raw,preallocation=falloc x.qcow2 1000k
    create -f qcow2 -o data_file=d.raw,preallocation=full x.qcow2 1000k
    create -f qcow2 -o data_file=d.raw,data_file_raw=on,preallocation=metadata x.qcow2 1M
    create -f qcow2 -o data_file=d.raw,data_file_raw=on,preallocation=full x.qcow2 1M
    create -f qcow2 -o data_file=d.raw,cluster_size=512,preallocation=metadata x.qcow2 300000
    create -f qcow2 -o data_file=d.raw,cluster_size=2M,data_file_raw=on x.qcow2 5M
    create -f qcow2 -o data_file=d.raw,refcount_bits=1 x.qcow2 5M
    create -f qcow2 -o data_file=d.raw -b base.raw -F raw x.qcow2
    create -f qcow2 -o data_file=d.raw x.qcow2 10T
    create -f qcow2 -o data_file_raw=on x.qcow2 1M
    create -f qcow2 -o data_file=d.raw,compat=0.10 x.qcow2 1M
    create -f qcow2 -o data_file=d.raw,data_file_raw=on -b base.raw -F raw x.qcow2
    create -f qcow2 -o data_file=nodir/d.raw x.qcow2 1M
    create -f qcow2 -o data_file= x.qcow2 1M
    create -f qcow2 -o data_file=d.raw,data_file_raw=maybe x.qcow2 1M

    # info, map, check, measure
    info ext.qcow2
    info --output=json ext.qcow2
    info extraw.qcow2
    info --output=json extraw.qcow2
    info --backing-chain onext.qcow2
    info sub/gone.qcow2
    map ext.qcow2
    map --output=json ext.qcow2
    map --output=json extraw.qcow2
    map --output=json exttop.qcow2
    map exttop.qcow2
    map --output=json onext.qcow2
    check ext.qcow2
    check --output=json ext.qcow2
    check -r all ext.qcow2
    check extraw.qcow2
    measure -O qcow2 ext.qcow2
    measure -O raw extraw.qcow2
    measure -O qcow2 -o data_file=d.raw --size 1M
    measure -O qcow2 -o data_file_raw=on --size 1M

    # a data file given by options
    info --image-opts driver=qcow2,file.filename=ext.qcow2,data-file.filename=ext.raw
    map --output=json --image-opts driver=qcow2,file.filename=ext.qcow2,data-file.filename=extraw.raw
    map --output=json --image-opts driver=qcow2,file.filename=ext.qcow2,data-file.driver=file,data-file.filename=ext.raw
    map --image-opts driver=qcow2,file.filename=a.qcow2,data-file.filename=ext.raw
    map --image-opts driver=qcow2,file.filename=ext.qcow2,data-file.filename=gone.raw
    compare 'json:{"driver":"qcow2","file":{"filename":"ext.qcow2"},"data-file":{"driver":"file","filename":"ext.raw"}}' ext.raw

    # convert, compare, dd
    convert -O raw ext.qcow2 o.raw
    convert -O qcow2 ext.qcow2 o.qcow2
    convert -O qcow2 -o data_file=d.raw a.qcow2 o.qcow2
    convert -O qcow2 -o data_file=d.raw,data_file_raw=on a.qcow2 o.qcow2
    convert -O qcow2 -o data_file=d.raw,preallocation=full ext.qcow2 o.qcow2
    convert -c -O qcow2 -o data_file=d.raw a.qcow2 o.qcow2
        files|
    convert -n -O qcow2 a.qcow2 ext.qcow2
    convert -n -O qcow2 base.raw extraw.qcow2
    convert -O raw extraw.qcow2 o.raw
    convert -O qcow2 -B a.qcow2 -F qcow2 -o data_file=d.raw exttop.qcow2 o.qcow2
    compare extraw.qcow2 extraw.raw
    compare -s extraw.qcow2 extraw.raw
    compare ext.qcow2 a.qcow2
    dd -O raw bs=64k count=3 skip=1 if=ext.qcow2 of=o.raw

    # resize
    resize ext.qcow2 2M
    resize ext.qcow2 1100k
    resize --shrink ext.qcow2 512k
    resize --shrink ext.qcow2 300k
    resize --preallocation=metadata ext.qcow2 2M
    resize --preallocation=falloc ext.qcow2 2M
    resize --preallocation=full ext.qcow2 2M
    resize extraw.qcow2 2M
    resize --shrink extraw.qcow2 512k
    resize --preallocation=full extraw.qcow2 2M
    resize exttop.qcow2 2M

    # snapshots
    snapshot -c one ext.qcow2
    snapshot -l ext.qcow2
    snapshot -a one ext.qcow2
    snapshot -d one ext.qcow2

    # commit, rebase
    commit exttop.qcow2
    commit -d exttop.qcow2
    commit onext.qcow2
    rebase -b '' exttop.qcow2
    rebase -u -b '' exttop.qcow2
    rebase -b base.raw -F raw exttop.qcow2
    rebase -u -b base.raw -F raw ext.qcow2
    rebase -b '' onext.qcow2

    # locks
    @hold=w:ext.raw map ext.qcow2
    @hold=r:ext.raw map ext.qcow2
    @hold=r:ext.raw resize ext.qcow2 2M
    @hold=w:ext.raw info ext.qcow2
    @hold=w:ext.raw map -U ext.qcow2
''')
suite.run()
