#!/usr/bin/env python3
"""platter-img rebase against qemu-img rebase: the guest's data stays (safe), or only
the name changes (-u)."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # unsafe: the name
    rebase -u b.qcow2
    rebase -u -b "" b.qcow2
    rebase -u -b base.raw -F raw b.qcow2
    rebase -u -b ./a.qcow2 -F qcow2 b.qcow2
    rebase -u -b ././././././base.raw -F raw b.qcow2
    rebase -u -b a.qcow2 -F qcow2 new.qcow2
    rebase -u -b a.qcow2 b.qcow2
    rebase -u -b a.qcow2 -F nosuch b.qcow2
    rebase -u -b base.raw -F raw nobase.qcow2
    rebase -u -b base.raw -F raw v2.qcow2
    rebase -u -b "" v2top.qcow2
    rebase -u -b a.qcow2 -F qcow2 nofmt.qcow2
    rebase -u -b "" loop.qcow2
    rebase -u -b base.raw -F raw c512.qcow2
    rebase -u -b base.raw -F raw c2m.qcow2
    rebase -u -b base.raw -F raw snap.qcow2
    rebase -u -q -p -b base.raw -F raw a.qcow2
    rebase -u -p -b base.raw -F raw a.qcow2
    rebase -u -c -b base.raw -F raw a.qcow2
    rebase -u -F raw b.qcow2

    # safe: the data
    rebase -b "" b.qcow2
    rebase -b "" c.qcow2
    rebase -b a.qcow2 -F qcow2 c.qcow2
    rebase -b a.qcow2 -F qcow2 b.qcow2
    rebase -b base.raw -F raw b.qcow2
    rebase -b raw.img -F raw b.qcow2
    rebase -b longer.img -F raw c.qcow2
    rebase -b v2.qcow2 -F qcow2 onraw.qcow2
    rebase -b a.qcow2 -F qcow2 short.qcow2
    rebase -b raw.img -F raw short.qcow2
    rebase -b odd.img -F raw onodd.qcow2
    rebase -b raw.img -F raw onodd.qcow2
    rebase -b odd.img -F raw b.qcow2
    rebase -b "" v2top.qcow2
    rebase -b raw.img -F raw v2top.qcow2
    rebase -b raw.img -F raw c512top.qcow2
    rebase -b "" c512top.qcow2
    rebase -b "" snaptop.qcow2
    rebase -b "" zerotop.qcow2
    rebase -b raw.img -F raw comptop.qcow2
    rebase -c -b "" b.qcow2
    rebase -c -b raw.img -F raw c.qcow2
    rebase -b raw.img -F raw a.qcow2
    rebase -b raw.img -F raw new.qcow2
    rebase -t none -T none -b raw.img -F raw b.qcow2
    rebase -U -b raw.img -F raw b.qcow2
    rebase -b a.qcow2 -F qcow2 sub/up.qcow2
    rebase -b ../a.qcow2 -F qcow2 sub/up.qcow2
    rebase -f qcow2 -b "" b.qcow2
    rebase --image-opts -b "" driver=qcow2,file.filename=b.qcow2

    # refusals
    rebase
    rebase b.qcow2
    rebase -b a.qcow2 b.qcow2
    rebase -b
    rebase -b raw.img -F nosuch b.qcow2
    rebase -b gone -F raw b.qcow2
    rebase -b b.qcow2 -F qcow2 a.qcow2
    rebase -b x -F raw gone.qcow2
    rebase -t bad -b "" b.qcow2
    rebase -T bad -b "" b.qcow2
    rebase -u -b x -F raw -f raw raw.img
    rebase -b base.raw -F raw -f raw raw.img
    rebase -c -b base.raw -F raw -f raw raw.img
    rebase -u -b x -f raw raw.img
    rebase -u -f raw raw.img
    rebase -b "" nobase.qcow2
    rebase -b raw.img -F qcow2 b.qcow2
    @hold=w:b.qcow2 rebase -u -b "" b.qcow2
    @hold=w:base.raw rebase -b base.raw -F raw b.qcow2
    @limit=327680 rebase -b "" c.qcow2

    # help
    ~help-text rebase --help
        out| ^Change backing file of the image
''')
suite.run()
