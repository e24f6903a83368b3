#!/usr/bin/env python3
"""platter-img compare against qemu-img compare."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # the same
    compare raw.img raw.img
    compare -f raw -F qcow2 raw.img like.qcow2
    compare raw.img comp.qcow2
    compare comp.qcow2 zstd.qcow2
    compare mixed.img mixed.img
    compare empty.img zero.qcow2
    compare tiny.img tiny.img
    compare -p raw.img raw.img
    compare -q raw.img like.qcow2
    compare -s raw.img raw.img
    compare -s a.qcow2 link.qcow2
    compare -s comp.qcow2 zstd.qcow2
    compare -U raw.img like.qcow2
    compare -T none raw.img like.qcow2
    compare --image-opts driver=raw,file.filename=raw.img driver=qcow2,file.filename=like.qcow2
    compare --left-format raw --right-format qcow2 raw.img like.qcow2
    compare --a-format=raw --b-format=qcow2 --strict --quiet --progress raw.img like.qcow2
    compare a.qcow2 sub/up.qcow2
    compare v2.qcow2 v2.qcow2
    compare meta.qcow2 rc1.qcow2

    # different
    compare raw.img late.img
    compare late.img raw.img
    compare like.qcow2 late.img
    compare late.img like.qcow2
    compare -f raw -F raw raw.img like.qcow2
    compare a.qcow2 raw.img
    compare a.qcow2 b.qcow2
    compare b.qcow2 c.qcow2
    compare meta.qcow2 raw.img
    compare raw.img meta.qcow2
    compare nul.qcow2 a.qcow2
    compare -q raw.img late.img
    ~strict-extents compare -s raw.img late.img
        out| ^Strict mode: Offset 897024 block status mismatch!$
    compare c512.qcow2 base.raw
    compare new.qcow2 mixed.img

    # sizes
    compare raw.img longer.img
    compare longer.img raw.img
    compare raw.img more.img
    compare more.img raw.img
    compare -q raw.img more.img
    compare -s raw.img longer.img
    compare -q -s raw.img longer.img
    compare late.img more.img
    compare new.qcow2 zero.qcow2
    compare empty.img raw.img
    compare empty.img new.qcow2
    compare -f raw -F raw tiny.img odd.img

    # strict
    compare -s raw.img meta.qcow2
    compare -s new.qcow2 new.qcow2
    compare -s nul.qcow2 a.qcow2

    # words
    compare
    compare raw.img
    compare raw.img raw.img raw.img
    compare gone raw.img
    compare raw.img gone
    compare -f qcow2 raw.img raw.img
    compare -F bad raw.img raw.img
    compare -T bad raw.img raw.img
    compare --image-opts -f raw raw.img raw.img
    compare --object foo raw.img raw.img
    compare -Z raw.img raw.img
    compare raw.img nobase.qcow2
    @hold=w:raw.img compare raw.img late.img
    @hold=w:a.qcow2 compare a.qcow2 late.img
    @hold=w:a.qcow2 compare -U a.qcow2 a.qcow2
    @nobody compare raw.img secret.img
    ~help-text compare --help
        out| ^Check if two images
''')
suite.run()
