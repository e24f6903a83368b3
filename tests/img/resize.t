#!/usr/bin/env python3
"""platter-img resize against qemu-img resize."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # raw
    resize -f raw raw.img 2M
    resize -f raw raw.img +512k
    resize -f raw raw.img +0
    resize -f raw raw.img 1M
    resize -f raw --shrink raw.img 512k
    resize -f raw --shrink raw.img -- -512k
    resize -f raw --shrink raw.img -512k
    resize -f raw --shrink raw.img 1M
    resize -q -f raw raw.img 2M
    resize raw.img 2M
    resize raw.img +1M
    resize raw.img 512k
    resize --shrink raw.img 512k
    resize -f raw raw.img 1500001
    resize -f raw odd.img +1
    resize -f raw --preallocation=off raw.img 2M
    resize -f raw --preallocation=falloc raw.img 2M
    resize -f raw --preallocation=full raw.img 2M
    resize -f raw --preallocation=metadata raw.img 2M
    resize -f raw --preallocation=full raw.img 1M
    resize -f raw --preallocation=falloc --shrink raw.img 512k
    resize -f raw raw.img 7E
    resize -f raw raw.img +7E

    # qcow2
    resize a.qcow2 2M
    resize -f qcow2 a.qcow2 +64k
    resize a.qcow2 100G
    resize a.qcow2 1M
    resize a.qcow2 512k
    resize --shrink a.qcow2 512k
    resize --shrink a.qcow2 64k
    resize --shrink a.qcow2 -- -64k
    resize --shrink -q a.qcow2 512
    resize a.qcow2 1000001
    resize b.qcow2 8M
    resize --shrink b.qcow2 1M
    resize --shrink b.qcow2 2200k
    resize short.qcow2 512k
    resize short.qcow2 4M
    resize v2.qcow2 4M
    resize c512.qcow2 10M
    resize --shrink c512.qcow2 50k
    resize snap.qcow2 2M
    resize --shrink snap.qcow2 512k
    resize --preallocation=metadata a.qcow2 2M
    resize --preallocation=falloc a.qcow2 2M
    resize --preallocation=full a.qcow2 2M
    resize --preallocation=metadata b.qcow2 8M
    resize --preallocation=metadata --shrink a.qcow2 512k
    resize new.qcow2 1E

    # how an image is named
    resize --image-opts driver=raw,file.filename=raw.img 2M
    resize --image-opts driver=qcow2,file.filename=a.qcow2 2M
    resize --image-opts -f raw raw.img 2M
    @hold=w:a.qcow2 resize a.qcow2 2M
    @hold=r:a.qcow2 resize a.qcow2 2M
    @hold=r:a.qcow2 resize b.qcow2 8M
    @hold=w:a.qcow2 resize b.qcow2 8M

    # what cannot be
    resize
    resize raw.img
    resize 1M
    resize -q raw.img
    resize -f raw raw.img a b
    resize raw.img a.qcow2 1M
    resize --foo raw.img 1M
    resize '' 1M
    resize gone 1M
    resize -f qcow2 gone 1M
    resize folder 1M
    resize -f bogus raw.img 1M
    resize -f qcow2 raw.img 1M
    resize -f raw raw.img ''
    resize -f raw raw.img +
    resize -f raw raw.img foo
    resize -f raw raw.img 1x
    resize -f raw raw.img 1.5
    resize -f raw raw.img +-1M
    resize -f raw raw.img ++1M
    resize -f raw raw.img -- -1M
    resize -f raw raw.img -- -2M
    resize -f raw --shrink raw.img -- -1M
    resize -f raw --shrink raw.img -- -9M
    resize -f raw --shrink raw.img 0
    resize -f raw raw.img 8E
    resize -f raw raw.img +9E
    resize -f raw raw.img -- -17E
    resize -f raw --preallocation=foo raw.img 2M
    resize -f raw --preallocation= raw.img 2M
    resize --object bogus,id=x raw.img 2M
    resize version.qcow2 2M
    resize nobase.qcow2 2M
    @nobody resize -f raw readonly.img 2M
    @nobody resize readonly.qcow2 2M
    @limit=1048576 resize -f raw --preallocation=full raw.img 2M

    resize -f raw raw.img 9223372036854775807
    resize -f raw raw.img 9223372036854775296
    resize -f raw raw.img 9223372035781033984
    resize -f raw raw.img 9223372035781034496
    resize base.qcow2 9223372035781034496
    resize base.qcow2 9223372035781033984

    # what differs on purpose
    ~help-text resize --help
        out| ^Change the virtual size of an image\.  Usage:
    ~help-text resize -h
        out| --preallocation off
''')
suite.run()
