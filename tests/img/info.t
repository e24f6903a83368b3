#!/usr/bin/env python3
"""platter-img info against qemu-img info."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

suite = Suite()
suite.table(r'''
    # people's output
    info raw.img
    info odd.img
    info empty.img
    info tiny.img
    info text.txt
    info a.qcow2
    info b.qcow2
    info c.qcow2
    info onraw.qcow2
    info new.qcow2
    info zero.qcow2
    info v2.qcow2
    info c512.qcow2
    info c2m.qcow2
    info rc1.qcow2
    info rc64.qcow2
    info lazy.qcow2
    info meta.qcow2
    info comp.qcow2
    info zstd.qcow2
    info snap.qcow2
    info sub/up.qcow2
    info link.qcow2
    info ./a.qcow2
    info file:a.qcow2
    info jsonbase.qcow2
    info nbdbase.qcow2
    info nobase.qcow2
    info nofmt.qcow2
    info badfmt.qcow2
    info names.qcow2
    info bytes.qcow2
    info loop1.qcow2
    info dirty.qcow2
    info corrupt.qcow2

    # programs' output
    info --output=json raw.img
    info --output json a.qcow2
    info --output=json b.qcow2
    info --output=json v2.qcow2
    info --output=json zstd.qcow2
    info --output=json snap.qcow2
    info --output=json dirty.qcow2
    info --output=json corrupt.qcow2
    info --output=json empty.img
    info --output=json names.qcow2
    info --output=json bytes.qcow2
    info --output=json jsonbase.qcow2
    info --output=json sub/up.qcow2
    info --output=human a.qcow2
    info --outp=json a.qcow2

    # chains
    info --backing-chain a.qcow2
    info --backing-chain c.qcow2
    info -b c.qcow2
    info --backing-chain --output=json c.qcow2
    info --backing-chain --output=json raw.img
    info --backing-chain onraw.qcow2
    info --backing-chain sub/up.qcow2
    info --backing-chain nofmt.qcow2
    info --backing-chain nobase.qcow2
    info --backing-chain --output=json nobase.qcow2
    info --backing-chain badfmt.qcow2
    info --backing-chain loop.qcow2
    info --backing-chain loop1.qcow2
    info --backing-chain --output=json loop2.qcow2

    # how an image is named
    info -f qcow2 a.qcow2
    info -f raw a.qcow2
    info --format=raw a.qcow2
    info -f file a.qcow2
    info -f qcow2 raw.img
    info -f qcow2 text.txt
    info -f bogus raw.img
    info -f '' raw.img
    info --image-opts driver=qcow2,file.filename=a.qcow2
    info --image-opts driver=qcow2,file.driver=file,file.filename=b.qcow2
    info --image-opts driver=raw,file.filename=raw.img
    info --image-opts driver=raw,file.filename=raw.img,foo=1
    info --image-opts driver=raw,offset=64k,file.filename=raw.img
    info --image-opts driver=raw,size=4096,file.filename=raw.img
    info --output=json --image-opts driver=raw,offset=512,size=4096,file.filename=raw.img
    info --image-opts driver=raw,offset=64k,file.driver=raw,file.size=128k,file.file.filename=raw.img
    info --image-opts driver=raw,file.driver=null-co,file.size=1M,file.read-zeroes=on
    info --image-opts driver=raw,offset=512,file.driver=null-co
    info --image-opts driver=null-co,read-zeroes=off
    info --image-opts driver=null-co,latency-ns=5
    info 'json:{"driver":"raw","offset":65536,"size":"64k","file":{"driver":"file","filename":"raw.img"}}'
    info 'json:{"driver":"raw","file":{"driver":"null-co","size":1048576,"read-zeroes":true}}'
    info --image-opts driver=raw,file.filename=raw.img,file.foo=1
    info --image-opts driver=bogus,file.filename=raw.img
    info --image-opts driver=raw
    info --image-opts file.filename=a.qcow2
    info --image-opts a.qcow2
    info --image-opts -f raw driver=raw,file.filename=raw.img
    info --image-opts driver=qcow2,file.filename=a.qcow2,force-share=on
    info -U --image-opts driver=qcow2,file.filename=a.qcow2,force-share=off
    info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"b.qcow2"}}'
    info 'json:{"driver":"raw","file.filename":"raw.img"}'
    info 'json:{"driver":"raw","file.filename":"raw.img","foo":1}'
    info 'json:{"file.filename":"a.qcow2"}'
    info 'json:[]'

    # locks
    info -U raw.img
    info --force-share a.qcow2
    @hold=w:a.qcow2 info a.qcow2
    @hold=w:a.qcow2 info -U a.qcow2
    @hold=r:a.qcow2 info a.qcow2
    @hold=w:a.qcow2 info b.qcow2
    @hold=w:a.qcow2 info --backing-chain b.qcow2
    @hold=w:raw.img info raw.img

    # what cannot be
    info
    info raw.img a.qcow2
    info gone
    info ''
    info folder
    info dangling
    info gone/x
    info raw.img/x
    info -t none raw.img
    info --cache=none raw.img
    info --limits raw.img
    info --output raw.img
    info --output=xml raw.img
    info --output= raw.img
    info -f
    info --object bogus,id=x raw.img
    info bogus:x
    info version.qcow2
    info feature.qcow2
    info trunc.qcow2
    info bits.qcow2
    info -f raw trunc.qcow2
    @nobody info secret.img
    @nobody info readonly.qcow2

    info extl2.qcow2
    info --output=json extl2.qcow2

    # not yet
    info luks.qcow2
    info dataf.qcow2
    info bitmap.qcow2

    # what differs on purpose
    ~filename-option info --image-opts filename=a.qcow2
        out| ^image: a.qcow2$
        err| ^$
        status| 0
    info l1.qcow2
    ~inner-names info --backing-chain jsonbase.qcow2
        out| ^$
        err| ^IMG: .*jsonbase.qcow2.*inside the image is not a plain path
        status| 1
    ~inner-names info --backing-chain nbdbase.qcow2
        err| ^IMG: .*nbd://localhost:1/x.*inside the image is not a plain path
    ~json-errors info json:
        err| ^IMG: Could not open 'json:\*\*\*': Could not parse the JSON options: JSON parse error, unexpected
    ~json-errors info json:{
        err| ^IMG: Could not open 'json:\*\*\*': Could not parse the JSON options: JSON parse error, string or '}' expected
    ~json-errors info 'json:{"driver":"raw","file.filename":1}'
        err| ^IMG: Could not open .*: Could not open '1': No such file or directory$
    ~help-text info --help
        out| ^Show what is known about an image\.  Usage:
''')
suite.run()
