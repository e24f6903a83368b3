#!/usr/bin/env python3
"""platter-img commit against qemu-img commit: the overlay's data is in the base, the
overlay is empty (or as it was), the chain reads the same."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # one layer
    commit b.qcow2
    commit -d b.qcow2
    commit -q b.qcow2
    commit -f qcow2 b.qcow2
    commit onraw.qcow2
    commit -t none onraw.qcow2
    commit -t unsafe onraw.qcow2
    commit -t writethrough -d onraw.qcow2
    commit -r 1G onraw.qcow2
    commit short.qcow2
    commit v2top.qcow2
    commit snaptop.qcow2
    commit comptop.qcow2
    commit zerotop.qcow2
    commit c512top.qcow2
    commit onodd.qcow2
    commit --image-opts driver=qcow2,file.filename=b.qcow2

    # a chain
    commit c.qcow2
    commit -d c.qcow2
    commit -b b.qcow2 c.qcow2
    commit -b a.qcow2 c.qcow2
    commit -b ./a.qcow2 c.qcow2
    commit -b c.qcow2 c.qcow2
    commit -b nothing c.qcow2
    commit sub/up.qcow2
    commit -b ../a.qcow2 sub/up.qcow2
    commit -b a.qcow2 sub/up.qcow2

    # refusals
    commit
    commit a b
    commit gone.qcow2
    commit a.qcow2
    commit raw.img
    commit -f raw raw.img
    commit -t bad b.qcow2
    commit -r x b.qcow2
    commit -r -1 b.qcow2
    commit --nosuch b.qcow2
    commit -b
    commit nobase.qcow2
    commit -f qcow2 --image-opts b.qcow2
    @hold=r:base.raw commit onraw.qcow2
    @hold=w:a.qcow2 commit b.qcow2
    @hold=r:a.qcow2 commit b.qcow2
    @nobody commit onreadonly.qcow2
    @limit=262144 commit onraw.qcow2
    @limit=327680 commit -d b.qcow2

    # help
    ~help-text commit --help
        out| ^Commit image to its backing file
''')
suite.run()
