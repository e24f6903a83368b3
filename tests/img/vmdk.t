#!/usr/bin/env python3
"""vmdk.t - VMDK images through every command that knows them, against qemu-img 10."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite          # noqa: E402

suite = Suite()
suite.table(r'''
    # create
    create -f vmdk -o help
    create -f vmdk x.vmdk 5M
    create -f vmdk -o subformat=monolithicFlat x.vmdk 5M
    create -f vmdk -o subformat=monolithicFlat x 5M
    create -f vmdk -o subformat=twoGbMaxExtentSparse x.y.vmdk 5G
    create -f vmdk -o subformat=twoGbMaxExtentFlat x.vmdk 2G
    create -f vmdk -o subformat=streamOptimized x.vmdk 5M
    create -f vmdk -o zeroed_grain=on,adapter_type=lsilogic,hwversion=7,toolsversion=9 x.vmdk 5M
    create -f vmdk -o compat6=on x.vmdk 1000k
    create -f vmdk -b sparse.vmdk -F vmdk x.vmdk
    create -f vmdk -b sparse.vmdk -F vmdk -o subformat=twoGbMaxExtentSparse x.vmdk 8M

    # create: refused
    create -f vmdk -o subformat=vmfs x.vmdk 5M
    create -f vmdk -o adapter_type=sata x.vmdk 5M
    create -f vmdk -o compat6=on,hwversion=4 x.vmdk 5M
    create -f vmdk -o subformat=monolithicFlat,zeroed_grain=on x.vmdk 5M
    create -f vmdk -o subformat=monolithicFlat -b sparse.vmdk -F vmdk x.vmdk 5M
    create -f vmdk -b raw.img -F raw x.vmdk
    create -f vmdk -o zeroed_grain=maybe x.vmdk 5M
    create -f vmdk -o cluster_size=4k x.vmdk 5M
    create -f vmdk x.vmdk

    # info
    info sparse.vmdk
    info zeros.vmdk
    info flat.vmdk
    info split.vmdk
    info stream.vmdk
    info --output=json split.vmdk
    info --output=json stream.vmdk
    info --backing-chain top.vmdk
    info -f raw flat.vmdk
    info -f vmdk raw.img
    info -f vmdk empty.img
    ~more-detail info split-s001.vmdk
        err| no valid CID

    # map
    map sparse.vmdk
    map zeros.vmdk
    map flat.vmdk
    map split.vmdk
    map top.vmdk
    map --output=json sparse.vmdk
    map --output=json zeros.vmdk
    map --output=json flat.vmdk
    map --output=json split.vmdk
    map --output=json stream.vmdk
    map --output=json top.vmdk

    # check
    check sparse.vmdk
    check split.vmdk
    check --output=json stream.vmdk
    check -r all sparse.vmdk

    # convert
    convert -O raw sparse.vmdk x.raw
    convert -O raw split.vmdk x.raw
    convert -O qcow2 stream.vmdk x.qcow2
    convert -O raw top.vmdk x.raw
    convert -O vmdk raw.img x.vmdk
    convert -O vmdk -o subformat=streamOptimized raw.img x.vmdk
    convert -O vmdk -o subformat=twoGbMaxExtentSparse odd.img x.vmdk
    convert -O vmdk -o subformat=monolithicFlat mixed.img x.vmdk
    convert -c -O vmdk raw.img x.vmdk
    convert -O vmdk -B sparse.vmdk -F vmdk top.vmdk x.vmdk
    convert -n -O vmdk raw.img sparse.vmdk
    convert -n -O vmdk raw.img stream.vmdk

    # others
    compare sparse.vmdk sparse.vmdk
    compare top.vmdk sparse.vmdk
    resize sparse.vmdk 8M
    measure -O vmdk sparse.vmdk
    measure -O qcow2 sparse.vmdk
    snapshot -l sparse.vmdk
    snapshot -c a sparse.vmdk
    commit top.vmdk
    rebase -u -b zeros.vmdk -F vmdk top.vmdk
    dd -O vmdk bs=64k count=2 if=sparse.vmdk of=x.vmdk
    bench -c 1 -t none sparse.vmdk
''')
suite.run()
