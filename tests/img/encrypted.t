#!/usr/bin/env python3
"""Encrypted qcow2 against qemu-img: the same words, refusals, info and sizes."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from differential import Suite

S = '--object secret,id=s,data=abc'
L = '--image-opts driver=qcow2,file.filename=l.qcow2,encrypt.key-secret=s'
A = '--image-opts driver=qcow2,file.filename=aes.qcow2,encrypt.key-secret=s'

suite = Suite()
suite.table(r'''
    # create, refused
    create @S@ -f qcow2 -o encryption=on out.qcow2 1M
    create @S@ -f qcow2 -o encryption=on,encrypt.format=luks,encrypt.key-secret=s out.qcow2 1M
    create @S@ -f qcow2 -o encrypt.format=luks out.qcow2 1M
    create @S@ -f qcow2 -o encrypt.format=foo out.qcow2 1M
    create @S@ -f qcow2 -o encrypt.key-secret=s out.qcow2 1M
    create @S@ -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s,encrypt.cipher-alg=aes-128 out.qcow2 1M
    create @S@ -f qcow2 -o encrypt.format=aes,encrypt.key-secret=zz out.qcow2 1M
    create @S@ -f qcow2 -o encrypt.format=luks,encrypt.key-secret=zz out.qcow2 1M
    create @S@ -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=zz out.qcow2 1M
    create @S@ -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=sm4 out.qcow2 1M
    convert @S@ -c -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s raw.img out.qcow2

    # the old method has nothing random: the files are alike
    create @S@ -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s out.qcow2 1M
    create @S@ -f qcow2 -o encryption=on,encrypt.key-secret=s out.qcow2 1M
    create @S@ -f qcow2 -o encryption=off out.qcow2 1M
    create -f qcow2 -b l.qcow2 -F qcow2 out.qcow2

    # info
    info l.qcow2
    info --output=json l.qcow2
    info aes.qcow2
    info --output=json aes.qcow2
    info --image-opts driver=qcow2,file.filename=l.qcow2,encrypt.format=luks
    info --image-opts driver=qcow2,file.filename=l.qcow2,encrypt.format=aes
    info --image-opts driver=qcow2,file.filename=aes.qcow2,encrypt.format=luks
    info --image-opts driver=qcow2,file.filename=l.qcow2,encrypt.foo=bar
    info --image-opts driver=qcow2,file.filename=a.qcow2,encrypt.format=aes

    # opened
    map l.qcow2
    map @S@ @L@
    map @S@ --output=json @L@
    map @S@ --output=json @A@
    map --object secret,id=s,data=wrong @L@
    check l.qcow2
    check @S@ @L@
    check @S@ @A@
    check aes.qcow2
    compare raw.img l.qcow2
    compare @S@ --image-opts driver=raw,file.filename=raw.img driver=qcow2,file.filename=l.qcow2,encrypt.key-secret=s
    compare @S@ --image-opts driver=raw,file.filename=raw.img driver=qcow2,file.filename=aes.qcow2,encrypt.key-secret=s
    compare @S@ --image-opts driver=raw,file.filename=raw.img driver=qcow2,file.filename=onl.qcow2,backing.driver=qcow2,backing.file.filename=l.qcow2,backing.encrypt.key-secret=s
    convert @S@ @L@ -O raw out.img
    convert @S@ @L@ -O qcow2 out.qcow2
    convert @S@ @A@ -O raw out.img
    ~backing-name map onl.qcow2
        err| Could not open 'l.qcow2': Parameter 'encrypt.key-secret' is required for cipher
    snapshot -l l.qcow2
    snapshot -l @S@ @L@
    resize l.qcow2 2M

    # measure
    measure -O qcow2 @S@ -o encrypt.format=luks,encrypt.key-secret=s --size 10M
    measure -O qcow2 @S@ -o encrypt.format=luks --size 10M
    measure -O qcow2 @S@ -o encrypt.format=aes --size 10M
    measure -O qcow2 @S@ -o encrypt.format=luks,encrypt.key-secret=s,cluster_size=4k raw.img
    measure -O qcow2 @S@ @L@
'''.replace('@S@', S).replace('@L@', L).replace('@A@', A))
suite.run()
