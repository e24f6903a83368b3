#!/usr/bin/env python3
"""vhdx.t - VHDX images through every command that knows them, against qemu-img 10."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite          # noqa: E402

suite = Suite()
suite.table(r'''
    # create
    create -f vhdx -o help
    create -f vhdx x.vhdx 5M
    create -f vhdx -o subformat=fixed x.vhdx 5M
    create -f vhdx -o block_size=100k,log_size=3000k x.vhdx 5M
    create -f vhdx -o block_size=1G,block_state_zero=off x.vhdx 5000k
    create -f vhdx x.vhdx 200G
    create -f vhdx x.vhdx 0

    # create: refused
    create -f vhdx -b raw.img -F raw x.vhdx
    create -f vhdx -o block_state_zero=maybe x.vhdx 5M
    create -f vhdx -o block_size=x x.vhdx 5M
    create -f vhdx -o preallocation=full x.vhdx 5M
    create -f vhdx x.vhdx

    # info, map, check
    info dynamic.vhdx
    info --output=json dynamic.vhdx
    info fixed.vhdx
    map dynamic.vhdx
    map --output=json dynamic.vhdx
    map --output=json fixed.vhdx
    check dynamic.vhdx
    check --output=json fixed.vhdx
    check -r all dynamic.vhdx

    # convert
    convert -O raw dynamic.vhdx x.raw
    convert -O qcow2 fixed.vhdx x.qcow2
    convert -O vhdx raw.img x.vhdx
    convert -O vhdx -o block_size=1M mixed.img x.vhdx
    convert -O vhdx -o subformat=fixed odd.img x.vhdx
    convert -n -O vhdx raw.img dynamic.vhdx
    convert -c -O vhdx raw.img x.vhdx
    convert -O vhdx -B dynamic.vhdx -F vhdx raw.img x.vhdx

    # others
    compare dynamic.vhdx dynamic.vhdx
    compare -s dynamic.vhdx fixed.vhdx
    resize dynamic.vhdx 8M
    measure -O vhdx raw.img
    snapshot -l dynamic.vhdx
    snapshot -c a dynamic.vhdx
    dd -O vhdx bs=64k count=2 if=dynamic.vhdx of=x.vhdx

    # create: nothing is left of an image that could not be made
    ~other-formats-create create -f vhdx -o block_size=3M x.vhdx 5M
        files|
    ~other-formats-create create -f vhdx -o subformat=differencing x.vhdx 5M
        files|
    ~other-formats-create create -f vhdx -o log_size=0 x.vhdx 5M
        files|
    ~other-formats-create create -f vhdx x.vhdx 65T
        files|
''')
suite.run()
