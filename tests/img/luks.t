#!/usr/bin/env python3
"""Secrets and the luks format against qemu-img: the same words, refusals, info and
sizes.  That the data is the same: ciphers.t."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

KEY = 'MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY='
S = '--object secret,id=s,data=abc'
X = '--image-opts driver=luks,file.filename=x.luks,key-secret=s'

suite = Suite()
suite.table(r'''
    # secret objects
    info --object secret,id=s raw.img
    info --object secret,data=x raw.img
    info --object secret raw.img
    info --object secret,id=s,data=x,file=y raw.img
    info --object secret,id=s,data=x,foo=y raw.img
    info --object secret,id=s,data=x --object secret,id=s,data=x raw.img
    info --object secret,id=s,file=/nonexistent raw.img
    info --object secret,id=s,file=/ raw.img
    info --object secret,id=s,file=raw.img raw.img
    info --object secret,id=s,format=base64,data=abc! raw.img
    info --object secret,id=s,format=base64,data=abc raw.img
    info --object secret,id=s,format=base64,data= raw.img
    info --object secret,id=s,format=foo,data=abc raw.img
    info --object secret,id=s,data=abc,keyid=k raw.img
    info --object secret,id=k,data=abc --object secret,id=s,data=abc,keyid=k raw.img
    info --object secret,id=k,data=abc --object secret,id=s,data=abc,iv=k raw.img
    info --object secret,id=k,format=base64,data=@KEY@ --object secret,id=s,data=abc,keyid=k raw.img
    info --object secret,id=k,format=base64,data=@KEY@ --object secret,id=s,data=abc,keyid=k,iv=YWJj raw.img
    info --object secret,id=k,format=base64,data=@KEY@ --object secret,id=s,data=abc,keyid=k,iv=MDEyMzQ1Njc4OWFiY2RlZg== raw.img
    info --object secret,id=k,format=base64,data=@KEY@ --object secret,id=s,format=base64,data=@KEY@,keyid=k,iv=MDEyMzQ1Njc4OWFiY2RlZg== raw.img
    info --object foo,id=s raw.img
    info --object foo raw.img
    info --object id=s raw.img
    info --object '{"qom-type":"secret","id":"s"}' raw.img
    info --object '{"id":"s","data":"x"}' raw.img
    info --object '{"qom-type":"secret","id":"s","data":"x","zzz":"1"}' raw.img
    info --object '{"qom-type":"secret","id":"s","data":"x"}' raw.img
    info --object secret,help raw.img
    info --object secret,id=1s,data=x raw.img
    info --object secret,id=s/s,data=x raw.img

    # every command takes one
    check @S@ a.qcow2
    compare @S@ a.qcow2 a.qcow2
    convert @S@ raw.img out.img
    create @S@ -f raw out.img 1M
    dd @S@ if=raw.img of=out.img
    map @S@ raw.img
    measure @S@ --size 1M
    rebase @S@ -u -b raw.img -F raw a.qcow2
    resize @S@ -f raw raw.img 2M
    snapshot @S@ -l a.qcow2
    commit @S@ b.qcow2

    # create, refused
    create -f luks out.luks 1M
    create @S@ -f luks -o key-secret=zz out.luks 1M
    create @S@ -f luks -o key-secret=s,cipher-alg=foo out.luks 1M
    create @S@ -f luks -o key-secret=s,cipher-alg=3des out.luks 1M
    create @S@ -f luks -o key-secret=s,cipher-mode=foo out.luks 1M
    create @S@ -f luks -o key-secret=s,ivgen-alg=foo out.luks 1M
    create @S@ -f luks -o key-secret=s,ivgen-hash-alg=foo out.luks 1M
    create @S@ -f luks -o key-secret=s,hash-alg=foo out.luks 1M
    create @S@ -f luks -o key-secret=s,hash-alg=foo,cipher-alg=bar out.luks 1M
    create @S@ -f luks -o key-secret=s,iter-time=10,cipher-alg=cast5-128 out.luks 1M
    create @S@ -f luks -o key-secret=s,iter-time=10,ivgen-alg=essiv,ivgen-hash-alg=sha1 out.luks 1M
    create @S@ -f luks -o key-secret=s,iter-time=10,detached-header=on out.luks 1M
    create @S@ -f luks -o key-secret=s,iter-time=10 out.luks
    create @S@ -f luks -o key-secret=s,iter-time=10 -b raw.img -F raw out.luks 1M
    create @S@ -f luks -o foo=bar out.luks 1M
    create --object secret,id=s,format=base64,data=//79 -f luks -o key-secret=s out.luks 1M
    create -f luks -o help
    create -f luks -o help out.luks

    # info
    info x.luks
    info --output=json x.luks
    info cbc.luks
    info two.luks
    info --output=json two.luks
    info -f luks raw.img
    info --image-opts driver=luks,file.filename=x.luks
    info --image-opts driver=luks,file.filename=x.luks,foo=bar

    # opened
    map x.luks
    map --image-opts driver=luks,file.filename=x.luks,key-secret=s
    map @S@ @X@
    map --output=json @S@ @X@
    map --object secret,id=s,data=wrong @X@
    map --object secret,id=s,data= @X@
    map --object secret,id=s,format=base64,data=YWJj --output=json @X@
    map --object secret,id=t,data=def --output=json --image-opts driver=luks,file.filename=two.luks,key-secret=t
    map --object secret,id=t,data=abc --output=json --image-opts driver=luks,file.filename=cbc.luks,key-secret=t
    check -f luks x.luks
    check @S@ @X@
    compare @S@ --image-opts driver=luks,file.filename=x.luks,key-secret=s driver=raw,file.filename=raw.img
    compare @S@ --image-opts driver=luks,file.filename=cbc.luks,key-secret=s driver=raw,file.filename=raw.img
    compare @S@ --image-opts driver=luks,file.filename=cbc.luks,key-secret=s driver=luks,file.filename=x.luks,key-secret=s
    convert @S@ @X@ -O raw out.img
    convert @S@ @X@ -O qcow2 out.qcow2
    convert @S@ -n -O luks raw.img x.luks
    convert @S@ -n --target-image-opts raw.img driver=luks,file.filename=x.luks,key-secret=s
    snapshot -l --image-opts driver=luks,file.filename=x.luks,key-secret=s
    snapshot -c x @S@ @X@
    commit @S@ @X@

    # resize
    resize -f luks x.luks 2M
    resize @S@ @X@ 2M
    resize @S@ @X@ 1M
    resize @S@ @X@ 1000
    resize --shrink @S@ @X@ 512k
    resize --preallocation=metadata @S@ @X@ 2M
    resize --preallocation=full @S@ @X@ 2M
    resize --preallocation=falloc @S@ @X@ 2M

    # measure
    measure -O luks @S@ --size 10M
    measure -O luks @S@ -o key-secret=s --size 10M
    measure -O luks @S@ -o key-secret=s,detached-header=on --size 10M
    measure -O luks @S@ -o key-secret=s,cipher-alg=aes-128,cipher-mode=cbc raw.img
    measure -O luks @S@ -o key-secret=s a.qcow2
    measure -O raw @S@ @X@
    measure -O qcow2 @S@ @X@
'''.replace('@KEY@', KEY).replace('@S@', S).replace('@X@', X))
suite.run()
