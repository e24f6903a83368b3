#!/usr/bin/env python3
"""platter-img snapshot against qemu-img snapshot: the same table, guest content and
clean counts."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # list
    snapshot a.qcow2
    snapshot -l a.qcow2
    snapshot -l raw.img
    snapshot -l -f qcow2 a.qcow2
    snapshot -l -q -U a.qcow2
    snapshot -l snap.qcow2
    snapshot snapbase.qcow2

    # create
    snapshot -c one a.qcow2
    snapshot -c one b.qcow2
    snapshot -c first snap.qcow2
    snapshot -c third snap.qcow2
    snapshot -c x snaptop.qcow2
    snapshot -c x comp.qcow2
    snapshot -c x comptop.qcow2
    snapshot -c x v2.qcow2
    snapshot -c x c512.qcow2
    snapshot -c x c2m.qcow2
    snapshot -c x new.qcow2
    snapshot -c x zero.qcow2
    snapshot -c x meta.qcow2
    snapshot -c x nul.qcow2
    snapshot -c x rc64.qcow2
    snapshot -c x lazy.qcow2
    snapshot -c "" a.qcow2
    snapshot -c x --image-opts driver=qcow2,file.filename=a.qcow2

    # apply
    snapshot -a first snap.qcow2
    snapshot -a another snap.qcow2
    snapshot -a 1 snap.qcow2
    snapshot -a 2 snap.qcow2
    snapshot -a one snaptop.qcow2
    snapshot -a small snapbase.qcow2
    snapshot -a large snapbase.qcow2
    snapshot -a packed snapcomp.qcow2

    # delete
    snapshot -d first snap.qcow2
    snapshot -d another snap.qcow2
    snapshot -d one snaptop.qcow2
    snapshot -d small snapbase.qcow2
    snapshot -d large snapbase.qcow2
    snapshot -d packed snapcomp.qcow2
    snapshot -d 1 snap.qcow2

    # refusals
    snapshot
    snapshot a b
    snapshot -c
    snapshot -l -c x a.qcow2
    snapshot -a x -d x a.qcow2
    snapshot -a no a.qcow2
    snapshot -d no a.qcow2
    snapshot -c x -f raw raw.img
    snapshot -a x -f raw raw.img
    snapshot -d x -f raw raw.img
    snapshot -U -c x a.qcow2
    snapshot -l gone.qcow2
    snapshot -c x corrupt.qcow2
    @hold=w:a.qcow2 snapshot -c x a.qcow2
    @hold=w:snap.qcow2 snapshot -l snap.qcow2

    # what differs on purpose
    ~refused-snapshot snapshot -c x rc1.qcow2
        files|
    ~one-warning snapshot -a x raw.img
        err| Could not apply snapshot 'x': Block driver does not support snapshots
    ~help-text snapshot --help
        out| ^List or manipulate snapshots
''')
suite.run()
