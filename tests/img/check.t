#!/usr/bin/env python3
"""platter-img check against qemu-img check."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # good images
    check a.qcow2
    check b.qcow2
    check c.qcow2
    check new.qcow2
    check zero.qcow2
    check v2.qcow2
    check c512.qcow2
    check c2m.qcow2
    check rc1.qcow2
    check rc64.qcow2
    check lazy.qcow2
    check meta.qcow2
    check full.qcow2
    check nul.qcow2
    check comp.qcow2
    check zstd.qcow2
    check snap.qcow2
    check -q a.qcow2
    check --output=json a.qcow2
    check --output=json new.qcow2
    check --output=json comp.qcow2
    check --output=json c.qcow2
    check --output=human a.qcow2
    check -q --output=json a.qcow2
    check -r leaks a.qcow2
    check -r all b.qcow2
    check --repair=all --output=json a.qcow2

    # bad images
    check leak.qcow2
    check -q leak.qcow2
    check --output=json leak.qcow2
    check -r leaks leak.qcow2
    check -r all leak.qcow2
    check -r all --output=json leak.qcow2
    check -q -r all leak.qcow2
    check leaks.qcow2
    check -r leaks leaks.qcow2
    check zeroref.qcow2
    check --output=json zeroref.qcow2
    check -r leaks zeroref.qcow2
    check -r all zeroref.qcow2
    check -r all --output=json zeroref.qcow2
    check bothbad.qcow2
    check -r leaks bothbad.qcow2
    check -r all bothbad.qcow2
    check dirty.qcow2
    check -r leaks dirty.qcow2
    check -r all dirty.qcow2
    check corrupt.qcow2
    check -r all corrupt.qcow2

    # how an image is named
    check -f qcow2 a.qcow2
    check --image-opts driver=qcow2,file.filename=a.qcow2
    check -T none a.qcow2
    check -T writethrough a.qcow2
    check -T directsync a.qcow2
    check --cache=unsafe a.qcow2
    check -U a.qcow2
    @hold=w:a.qcow2 check a.qcow2
    @hold=w:a.qcow2 check -U a.qcow2
    @hold=r:a.qcow2 check -r all a.qcow2
    @hold=w:a.qcow2 check b.qcow2

    # what cannot be
    check
    check a.qcow2 b.qcow2
    check gone
    check folder
    check raw.img
    check -f raw raw.img
    check --output=json raw.img
    check -r all raw.img
    check -q raw.img
    check -r foo a.qcow2
    check -r
    check -T foo a.qcow2
    check --output=xml a.qcow2
    check -U -r all a.qcow2
    check --image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2
    check -f bogus a.qcow2
    check -f qcow2 raw.img
    check nobase.qcow2
    check version.qcow2
    check trunc.qcow2
    @nobody check -r all readonly.qcow2

    # what differs on purpose
    ~json-everywhere check -p a.qcow2
        status| 0
        out| No errors were found
        err| ^$
    ~help-text check --help
        out| ^Exit status: 0 clean or repaired
''')
suite.run()
