#!/usr/bin/env python3
"""platter-img dd against qemu-img dd."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # ranges
    dd if=raw.img of=out.img
    dd if=mixed.img of=out.img bs=1M
    dd if=mixed.img of=out.img bs=1M count=2
    dd if=mixed.img of=out.img bs=1M count=2 skip=1
    dd if=mixed.img of=out.img bs=7 count=30000 skip=11111
    dd if=mixed.img of=out.img bs=513 skip=3
    dd if=mixed.img of=out.img count=0
    dd if=mixed.img of=out.img count=1
    dd if=mixed.img of=out.img bs=1000 count=1
    dd if=raw.img of=out.img bs=1M skip=1
    dd if=raw.img of=out.img bs=1M skip=2
    dd if=raw.img of=out.img bs=64k skip=2 count=1
    dd if=raw.img of=out.img bs=1G count=9999999999999999
    dd if=raw.img of=out.img bs=1G skip=9999999999999999
    dd if=empty.img of=out.img
    dd if=tiny.img of=out.img
    dd if=odd.img of=out.img bs=100k

    # formats
    dd -f raw -O qcow2 if=mixed.img of=out.qcow2 bs=1M
    dd -f raw -O qcow2 if=mixed.img of=out.qcow2 bs=700 count=3 skip=1
    dd -O qcow2 if=c.qcow2 of=out.qcow2 bs=64k
    dd if=c.qcow2 of=out.img bs=64k skip=1
    dd -f qcow2 --output-format=raw if=a.qcow2 of=out.img
    dd --image-opts if=driver=qcow2,file.filename=a.qcow2 of=out.img
    dd if=mixed.img of=raw.img bs=1M
    dd -U if=a.qcow2 of=out.img
    @hold=w:a.qcow2 dd if=a.qcow2 of=out.img
    @hold=w:a.qcow2 dd -U if=a.qcow2 of=out.img
    dd -O qcow2 if=a.qcow2 of=a.qcow2

    # words
    dd
    dd if=raw.img
    dd of=out.img
    dd raw.img out.img
    dd if=raw.img of=out.img bs=0
    dd if=raw.img of=out.img bs=x
    dd if=raw.img of=out.img bs=4G
    dd if=raw.img of=out.img bs=-1
    dd if=raw.img of=out.img count=x
    dd if=raw.img of=out.img count=-1
    dd if=raw.img of=out.img skip=x
    dd if=raw.img of=out.img seek=1
    dd if=raw.img of=out.img conv=notrunc
    dd if=raw.img of=out.img bs
    dd if=gone of=out.img
    dd if=raw.img of=missing/out.img
    dd -f bad if=raw.img of=out.img
    dd -O bad if=raw.img of=out.img
    dd -n if=raw.img of=out.img
    dd --object foo if=raw.img of=out.img
    dd if=raw.img of=nosuch:out
    ~help-text dd --help
        out| ^Copy input to output
''')
suite.run()
