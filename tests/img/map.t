#!/usr/bin/env python3
"""platter-img map against qemu-img map."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # people's output
    map raw.img
    map odd.img
    map tiny.img
    map empty.img
    map a.qcow2
    map b.qcow2
    map c.qcow2
    map onraw.qcow2
    map short.qcow2
    map new.qcow2
    map zero.qcow2
    map v2.qcow2
    map c512.qcow2
    map c2m.qcow2
    map meta.qcow2
    map full.qcow2
    map nul.qcow2
    map snap.qcow2
    map comp.qcow2
    map sub/up.qcow2

    # programs' output
    map --output=json raw.img
    map --output=json odd.img
    map --output=json tiny.img
    map --output=json empty.img
    map --output=json a.qcow2
    map --output=json b.qcow2
    map --output=json c.qcow2
    map --output=json onraw.qcow2
    map --output=json short.qcow2
    map --output=json new.qcow2
    map --output=json zero.qcow2
    map --output=json v2.qcow2
    map --output=json c512.qcow2
    map --output=json c2m.qcow2
    map --output=json meta.qcow2
    map --output=json full.qcow2
    map --output=json nul.qcow2
    map --output=json comp.qcow2
    map --output=json zstd.qcow2
    map --output=human a.qcow2

    # a part
    map -s 64k b.qcow2
    map --start-offset=100 b.qcow2
    map -s 64k -l 64k --output=json b.qcow2
    map -l 10 -s 100 --output=json b.qcow2
    map --max-length=1000 --output=json raw.img
    map -s 2M raw.img
    map -s 2M --output=json raw.img
    map -l 0 raw.img
    map -l 0 --output=json raw.img
    map -s 7E -l 7E raw.img
    map -s 60k -l 100k --output=json c.qcow2

    # how an image is named
    map -f raw a.qcow2
    map -f file --output=json raw.img
    map -U a.qcow2
    map --image-opts driver=qcow2,file.filename=b.qcow2
    map 'json:{"driver":"qcow2","file.filename":"b.qcow2"}'
    @hold=w:b.qcow2 map b.qcow2
    @hold=w:a.qcow2 map -U b.qcow2
    @hold=w:a.qcow2 map b.qcow2

    # what cannot be
    map
    map raw.img a.qcow2
    map gone
    map folder
    map nobase.qcow2
    map -s x raw.img
    map -s -1 raw.img
    map --start-offset=-1 raw.img
    map --max-length=foo raw.img
    map --max-length=9E raw.img
    map --output=xml raw.img
    map --image-opts -f qcow2 driver=qcow2,file.filename=b.qcow2
    map -f bogus raw.img
    map -q raw.img
    map version.qcow2

    # what differs on purpose
    ~backing-name map badfmt.qcow2
        err| Could not open backing file: Could not open 'base.raw': Unknown driver 'rax'$
    ~inner-names map jsonbase.qcow2
        out| ^$
        err| ^IMG: .*jsonbase.qcow2.*inside the image is not a plain path
        status| 1
    ~help-text map --help
        out| -s, --start-offset OFFSET
''')
suite.run()
