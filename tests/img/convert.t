#!/usr/bin/env python3
"""platter-img convert against qemu-img convert."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # raw to raw
    convert raw.img out.img
    convert -f raw -O raw raw.img out.img
    convert -f raw mixed.img out.img
    convert -f raw -S 512 mixed.img out.img
    convert -f raw -S 64k mixed.img out.img
    convert -f raw -S 12k mixed.img out.img
    convert -f raw -S 16M mixed.img out.img
    convert -f raw -S 0 mixed.img out.img
    convert -f raw -W -m 16 mixed.img out.img
    convert -f raw -m 1 mixed.img out.img
    convert -f raw -r 100M mixed.img out.img
    convert -f raw -C mixed.img out.img
    convert -f raw --salvage mixed.img out.img
    convert -f raw tiny.img out.img
    convert -f raw odd.img out.img
    convert -f raw empty.img out.img
    convert -f raw -T none raw.img out.img
    convert -f raw -t none raw.img out.img
    convert -f raw -t writeback raw.img out.img
    convert -f raw -t writethrough raw.img out.img
    convert -f raw -t directsync -T directsync mixed.img out.img
    convert -f raw -o preallocation=falloc raw.img out.img
    convert -f raw -o preallocation=full mixed.img out.img
    convert -f raw -o preallocation=bad raw.img out.img
    convert -f raw -o size=8M raw.img out.img
    convert -f raw -o size=1k raw.img out.img
    convert --image-opts driver=raw,file.filename=raw.img out.img
    convert --source-image-opts driver=raw,file.driver=file,file.filename=raw.img out.img
    convert --image-opts -f raw raw.img out.img
    convert -q -p -f raw raw.img out.img
    convert -U -f raw raw.img out.img
    @hold=w:raw.img convert -f raw raw.img out.img
    @hold=w:raw.img convert -U -f raw raw.img out.img
    @hold=r:raw.img convert -f raw raw.img out.img
    @hold=r:raw.img convert -f raw mixed.img raw.img

    # onto what exists
    convert -f raw mixed.img raw.img
    convert -f raw raw.img mixed.img
    convert -f raw -O qcow2 raw.img a.qcow2
    convert -f raw raw.img text.txt
    convert -f raw raw.img folder
    convert -f raw raw.img folder/new
    convert -f raw raw.img missing/out.img
    convert -O qcow2 raw.img missing/out.qcow2
    convert raw.img raw.img
    convert -f raw -O raw raw.img raw.img
    convert -O qcow2 a.qcow2 a.qcow2
    convert -n -O qcow2 a.qcow2 a.qcow2
    convert -n raw.img raw.img
    @nobody convert raw.img readonly.img
    @nobody convert secret.img out.img
    @nobody convert raw.img out.img

    # raw to qcow2
    convert -O qcow2 raw.img out.qcow2
    convert -f raw -O qcow2 mixed.img out.qcow2
    convert -f raw -O qcow2 -S 0 mixed.img out.qcow2
    convert -f raw -O qcow2 -W -m 3 mixed.img out.qcow2
    convert -f raw -O qcow2 -o cluster_size=512 mixed.img out.qcow2
    convert -f raw -O qcow2 -o cluster_size=2M mixed.img out.qcow2
    convert -f raw -O qcow2 -o compat=0.10 mixed.img out.qcow2
    convert -f raw -O qcow2 -o refcount_bits=1 mixed.img out.qcow2
    convert -f raw -O qcow2 -o refcount_bits=64,cluster_size=4k mixed.img out.qcow2
    convert -f raw -O qcow2 -o lazy_refcounts=on mixed.img out.qcow2
    convert -f raw -O qcow2 -o preallocation=metadata mixed.img out.qcow2
    convert -f raw -O qcow2 -o preallocation=falloc mixed.img out.qcow2
    convert -f raw -O qcow2 -o cluster_size=3 raw.img out.qcow2
    convert -f raw -O qcow2 -o compat=0.12 raw.img out.qcow2
    convert -f raw -O qcow2 odd.img out.qcow2
    convert -f raw -O qcow2 empty.img out.qcow2
    convert -f raw -O qcow2 tiny.img out.qcow2

    # from qcow2
    convert a.qcow2 out.img
    convert -f qcow2 -O raw b.qcow2 out.img
    convert c.qcow2 out.img
    convert -O qcow2 c.qcow2 out.qcow2
    convert -O qcow2 onraw.qcow2 out.qcow2
    convert short.qcow2 out.img
    convert -O qcow2 new.qcow2 out.qcow2
    convert zero.qcow2 out.img
    convert -O qcow2 zero.qcow2 out.qcow2
    convert v2.qcow2 out.img
    convert c512.qcow2 out.img
    convert -O qcow2 c512.qcow2 out.qcow2
    convert c2m.qcow2 out.img
    convert -O qcow2 -o cluster_size=4k c2m.qcow2 out.qcow2
    convert rc1.qcow2 out.img
    convert lazy.qcow2 out.img
    convert -S 0 meta.qcow2 out.img
    convert full.qcow2 out.img
    convert comp.qcow2 out.img
    convert -O qcow2 comp.qcow2 out.qcow2
    convert zstd.qcow2 out.img
    convert nul.qcow2 out.img
    convert -O qcow2 nul.qcow2 out.qcow2
    convert -f raw a.qcow2 out.img
    convert -f qcow2 raw.img out.img
    convert nobase.qcow2 out.img
    convert corrupt.qcow2 out.img
    convert version.qcow2 out.img
    convert sub/up.qcow2 out.img
    convert link.qcow2 out.img

    # overlays
    convert -O qcow2 -B a.qcow2 -F qcow2 b.qcow2 out.qcow2
    convert -O qcow2 -B b.qcow2 -F qcow2 c.qcow2 out.qcow2
    convert -O qcow2 -B base.raw -F raw onraw.qcow2 out.qcow2
    convert -O qcow2 -o backing_file=a.qcow2,backing_fmt=qcow2 short.qcow2 out.qcow2
    convert -O qcow2 -o backing_file=raw.img -B a.qcow2 -F qcow2 b.qcow2 out.qcow2
    convert -f raw -O qcow2 -B raw.img -F raw late.img out.qcow2
    convert -f raw -O qcow2 -B base.raw -F raw longer.img out.qcow2
    convert -O qcow2 -B a.qcow2 b.qcow2 out.qcow2
    convert -O qcow2 -o backing_file=a.qcow2 b.qcow2 out.qcow2
    convert -O qcow2 -F qcow2 b.qcow2 out.qcow2
    convert -O qcow2 -B gone -F raw b.qcow2 out.qcow2
    convert -O qcow2 -B a.qcow2 -F bad b.qcow2 out.qcow2
    ~backing-name convert -O qcow2 -B base.raw -F qcow2 b.qcow2 out.qcow2
        err| Could not open backing file: Could not open 'base.raw': Image is not in qcow2 format$
    convert -B a.qcow2 b.qcow2 out.img
    convert -F qcow2 b.qcow2 out.img
    convert -O qcow2 -B a.qcow2 -F qcow2 raw.img raw.img out.qcow2

    # several sources
    convert -f raw raw.img mixed.img out.img
    convert -f raw tiny.img odd.img empty.img raw.img out.img
    convert -O qcow2 a.qcow2 b.qcow2 c.qcow2 out.qcow2
    convert raw.img gone out.img
    convert -O qcow2 raw.img a.qcow2 raw.img out.qcow2

    # existing target
    convert -n -f raw raw.img longer.img
    convert -n -f raw raw.img more.img
    convert -n -f raw mixed.img raw.img
    convert -n -f raw raw.img gone
    convert -n -f raw -O qcow2 raw.img b.qcow2
    convert -n -f raw -O qcow2 raw.img new.qcow2
    convert -n --target-is-zero -f raw -O qcow2 raw.img new.qcow2
    convert -n --target-is-zero -f raw raw.img longer.img
    convert -n -S 0 -f raw raw.img more.img
    convert -n -O raw -f raw raw.img a.qcow2
    convert -n --target-image-opts -f raw raw.img driver=qcow2,file.filename=new.qcow2
    convert -n --target-image-opts -f raw raw.img driver=raw,file.filename=longer.img
    convert -n --target-image-opts -O raw -f raw raw.img driver=raw,file.filename=longer.img
    convert -n -B a.qcow2 -O qcow2 short.qcow2 b.qcow2
    ~refused-target-is-zero convert -n --target-is-zero -B a.qcow2 -O qcow2 short.qcow2 b.qcow2
        status| 1
    convert -n -o size=1M raw.img longer.img
    convert --target-is-zero raw.img out.img
    convert --target-image-opts raw.img driver=raw,file.filename=out.img

    # words
    convert
    convert raw.img
    convert gone out.img
    convert --bad raw.img out.img
    convert -Z
    convert -O
    convert -S 1 raw.img out.img
    convert -S 32M raw.img out.img
    convert -S x raw.img out.img
    convert -S -1 raw.img out.img
    convert -m 0 raw.img out.img
    convert -m 17 raw.img out.img
    convert -m x raw.img out.img
    convert -r x raw.img out.img
    convert -t bad raw.img out.img
        files|
    convert -T bad raw.img out.img
    convert -f bad raw.img out.img
    convert -O bad raw.img out.img
    convert -o bad=1 raw.img out.img
    convert -o size=x raw.img out.img
    convert -o ,, raw.img out.img
    convert -o help
    convert -O bad -o help
    convert raw.img nosuch:file
    convert nosuch:file out.img
    convert -c -C raw.img out.img
    convert -S 4k -C raw.img out.img
    convert --salvage -C raw.img out.img
    convert --skip-broken-bitmaps raw.img out.img
    convert -c raw.img out.img
    convert -c -O qcow2 -o preallocation=full raw.img out.img
    convert -c -O qcow2 -o encryption=on raw.img out.img
    convert --bitmaps raw.img out.img
    convert --bitmaps -O qcow2 v2.qcow2 out.img
    convert --bitmaps -O qcow2 a.qcow2 out.img
    convert --bitmaps a.qcow2 out.img
    convert --bitmaps -O qcow2 a.qcow2 b.qcow2 out.img
    convert -l first snap.qcow2 out.img
    convert -l another -O qcow2 snap.qcow2 out.qcow2
    convert -l 1 -O qcow2 snap.qcow2 out.qcow2
    convert -l snapshot.id=2 snap.qcow2 out.img
    convert -l snapshot.id=2,snapshot.name=first snap.qcow2 out.img
    convert -l snapshot.name=first snap.qcow2 out.img
    convert -l one snaptop.qcow2 out.img
    convert -l packed snapcomp.qcow2 out.img
    convert -l first -n snap.qcow2 raw.img
    ~snapshot-size convert -l small snapbase.qcow2 out.img
        files|
    convert -l large -O qcow2 snapbase.qcow2 out.qcow2
    convert -l first raw.img out.img
    convert -l gone snap.qcow2 out.img
    convert -l first a.qcow2 snap.qcow2 out.img
    convert -l snapshot.bad=1 snap.qcow2 out.img
    convert -l snapshot.name=gone snap.qcow2 out.img
    convert --object foo raw.img out.img
    ~help-text convert --help
        out| ^Copy one image to another
''')
suite.run()
