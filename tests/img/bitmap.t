#!/usr/bin/env python3
"""Persistent bitmaps: platter-img bitmap and what other commands do with them."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # bitmap
    bitmap --add a.qcow2 b0
    bitmap --add a.qcow2 ''
    bitmap --add -g 4k a.qcow2 b0
    bitmap --add -g 512 a.qcow2 b0
    bitmap --add -g 2G a.qcow2 b0
    bitmap --add -g 4G a.qcow2 b0
    bitmap --add -g 3k a.qcow2 b0
    bitmap --add -g 256 a.qcow2 b0
    bitmap --add -g 5x a.qcow2 b0
    bitmap --add bm.qcow2 first
    bitmap --add --disable a.qcow2 b0
    bitmap --add --remove a.qcow2 b0
    bitmap --remove --add bm.qcow2 first
    bitmap --add --disable --enable -g 8k a.qcow2 b0
    bitmap --add --merge first bm.qcow2 b0
    bitmap --add --merge first --merge fine --clear --merge fine bm.qcow2 b0
    bitmap --add -g 64k --merge fine --disable bm.qcow2 b0
    bitmap --add -g 1k --merge first bm.qcow2 b0
    bitmap --clear bm.qcow2 first
    bitmap --remove bm.qcow2 first
    bitmap --remove bm.qcow2 nope
    bitmap --enable bm.qcow2 off
    bitmap --enable bm.qcow2 nope
    bitmap --disable bm.qcow2 fine
    bitmap --merge first bm.qcow2 off
    bitmap --merge first bm.qcow2 nope
    bitmap --merge nope bm.qcow2 first
    bitmap --merge first --merge nope bm.qcow2 off
    bitmap --merge first -b bm.qcow2 -F qcow2 bmused.qcow2 first
    bitmap --merge tiny -b bmsmall.qcow2 bm.qcow2 first
    bitmap --add --merge first -b bm.qcow2 a.qcow2 b0
    bitmap --add --merge top -b bmtop.qcow2 -F qcow2 bm.qcow2 b0
    bitmap --add -f raw raw.img b0
    bitmap --remove -f raw raw.img b0
    bitmap --add -f raw bm.qcow2 b0
    bitmap --add bmv2.qcow2 b0
    bitmap --add gone.qcow2 b0
    bitmap --add --image-opts driver=qcow2,file.filename=a.qcow2 b0
    bitmap --add -f qcow2 --image-opts driver=qcow2,file.filename=a.qcow2 b0
    @hold=r:a.qcow2 bitmap --add a.qcow2 b0
    bitmap a.qcow2 b0
    bitmap --add a.qcow2
    bitmap --add a.qcow2 b0 b1
    bitmap -g 4k --remove bm.qcow2 first
    bitmap -F qcow2 --merge first bm.qcow2 off
    bitmap -b bm.qcow2 --add a.qcow2 b0
    bitmap --bogus a.qcow2 b0
    ~help-text bitmap --help
        out| ^Modify bitmaps

    # inconsistent ones
    bitmap --clear bmused.qcow2 first
    bitmap --enable bmused.qcow2 first
    bitmap --disable bmused.qcow2 first
    bitmap --add bmused.qcow2 first
    bitmap --merge first bmused.qcow2 off
    bitmap --merge off bmused.qcow2 first
    bitmap --add --merge first bmused.qcow2 b0
    bitmap --remove bmused.qcow2 first
    info bmused.qcow2
    check bmused.qcow2
    measure -O qcow2 bmused.qcow2
    resize bmused.qcow2 20M

    # modified by something that does not know bitmaps
    ~one-line-end info bmlost.qcow2
        err| so all bitmaps are now considered inconsistent$

    # info, check, measure
    info bm.qcow2
    info --output=json bm.qcow2
    info bmsmall.qcow2
    check bm.qcow2
    check --output=json bm.qcow2
    check bmsmall.qcow2
    check -r all bm.qcow2
    measure -O qcow2 bm.qcow2
    measure --output=json -O qcow2 bm.qcow2
    measure -O qcow2 -o cluster_size=4k bmsmall.qcow2
    measure -O qcow2 -o compat=0.10 bm.qcow2
    measure -O raw bm.qcow2
    measure -O qcow2 a.qcow2
    measure -O qcow2 bmv2.qcow2
    map --output=json bm.qcow2

    # convert
    convert --bitmaps -O qcow2 bm.qcow2 o.qcow2
    convert --bitmaps -O qcow2 -o cluster_size=4k bm.qcow2 o.qcow2
    convert --bitmaps -c -O qcow2 bm.qcow2 o.qcow2
    convert -O qcow2 bm.qcow2 o.qcow2
    convert --bitmaps -O qcow2 a.qcow2 o.qcow2
    convert --bitmaps -O qcow2 bmused.qcow2 o.qcow2
    convert --bitmaps --skip-broken-bitmaps -O qcow2 bmused.qcow2 o.qcow2
    convert --skip-broken-bitmaps -O qcow2 bm.qcow2 o.qcow2
    convert --bitmaps -O raw bm.qcow2 o.raw
    convert --bitmaps -O qcow2 -o compat=0.10 bm.qcow2 o.qcow2
    convert --bitmaps -f raw -O qcow2 raw.img o.qcow2
    convert --bitmaps -O qcow2 bm.qcow2 bm.qcow2 o.qcow2
    convert --bitmaps -n -O qcow2 bm.qcow2 bmsnap.qcow2
    convert --bitmaps -O qcow2 bmv2.qcow2 o.qcow2

    # others
    resize bm.qcow2 20M
    resize bm.qcow2 11M
    resize --shrink bm.qcow2 4M
    resize --shrink bm.qcow2 1000k
    resize --shrink bmsmall.qcow2 1M
    resize bmsmall.qcow2 40M
    resize --preallocation=metadata bm.qcow2 20M
    snapshot -c two bm.qcow2
    snapshot -a one bmsnap.qcow2
    snapshot -d one bmsnap.qcow2
    commit bmtop.qcow2
    commit -d bmtop.qcow2
    rebase -b '' bmtop.qcow2
    rebase -u -b a.qcow2 -F qcow2 bmtop.qcow2
''')
suite.run()
