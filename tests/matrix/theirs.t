#!/usr/bin/python3
"""Images that QEMU made, in every layout: Platter reads the same content from
them, maps them alike, and its check agrees that they are clean.  Here, or where
tests/net/matrix-*.t have servers."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from matrix import *

tap.enter_place("matrix", memory=True)


def create(layout, image, size, *options, extra=""):
    theirs_here("create", "-q", "-f", "qcow2", "-o", layout_options(layout, extra), *options,
                image, size)


def from_picture(layout, image, picture, *options, extra=""):
    write_file("picture.raw", picture)
    theirs_here("convert", "-f", "raw", "-O", "qcow2", "-o", layout_options(layout, extra),
                *options, "picture.raw", image)


# Each maker leaves t.qcow2 (and what it stands on) and returns its picture.
def empty(layout, size):
    create(layout, "t.qcow2", size)
    return bytes(size)


def sparse(layout, size):
    create(layout, "t.qcow2", size)
    s = Scribbler(bytes(size), 1)
    s.random_writes(12, size // 16)
    return s.apply("t.qcow2")


def full(layout, size):
    picture = full_picture(size, 2)
    from_picture(layout, "t.qcow2", picture)
    return picture


def overlay(layout, size):
    base = sparse_picture(size, 3)
    from_picture(layout, "base.qcow2", base)
    create(layout, "t.qcow2", size, "-b", "base.qcow2", "-F", "qcow2")
    s = Scribbler(base, 4)
    s.random_writes(12, size // 16)
    return s.apply("t.qcow2")


def longer_overlay(layout, size):
    short = size // 2 // 512 * 512 + 512
    base = full_picture(short, 5)
    from_picture(layout, "base.qcow2", base)
    create(layout, "t.qcow2", size, "-b", "base.qcow2", "-F", "qcow2")
    s = Scribbler(base + bytes(size - short), 6)
    s.write(short - 100, 300)       # copy on write across the base's end
    s.write(short + 70000 if short + 80000 < size else short + 1000, 700)
    return s.apply("t.qcow2")


def compressed(layout, size, method):
    picture = squeezable_picture(size, 7)
    extra = "compression_type=zstd" if method == "zstd" else ""
    from_picture(layout, "t.qcow2", picture, "-c", extra=extra)
    s = Scribbler(picture, 8)
    s.write(size // 3, 1000)        # over compressed clusters
    return s.apply("t.qcow2")


def judge(layout, kind, make, *args):
    place = Where.place
    name = "%s%s, %s: " % (place.title, layout_name(layout), kind)
    place.new()
    picture = make(layout, picture_size(layout[1]), *args)
    place.put(*(f for f in ("t.qcow2", "base.qcow2") if os.path.exists(f)))
    write_file("picture.raw", picture)
    r = run(OURS, "compare", "-f", "raw", "-F", "qcow2", "picture.raw", "t.qcow2")
    tap.ok(r[0] == 0, name + "compares equal to what was written", said(r))
    r = run(OURS, "convert", "-f", "qcow2", "-O", "raw", "t.qcow2", "out.raw")
    tap.ok(r[0] == 0 and read_file("out.raw") == picture, name + "converts to the same bytes", said(r))
    ours, theirs = map_json(OURS, "t.qcow2"), map_json(THEIRS, "t.qcow2")
    tap.ok(ours == theirs, name + "maps as QEMU maps it", "ours   %s\ntheirs %s" % (ours, theirs))
    ours, theirs = check_json(OURS, "t.qcow2"), check_json(THEIRS, "t.qcow2")
    tap.ok(ours == theirs and ours[0] == 0, name + "checks clean, with QEMU's numbers",
           "ours   %s\ntheirs %s" % (ours, theirs))
    remove_files()


for place in all_places():
    for layout in place.layouts(LAYOUTS, 1):
        judge(layout, "empty", empty)
        judge(layout, "sparse", sparse)
        judge(layout, "full", full)
        judge(layout, "overlay", overlay)
        judge(layout, "overlay longer than its base", longer_overlay)
        judge(layout, "compressed zlib", compressed, "zlib")
        if layout[0] == "v3":
            judge(layout, "compressed zstd", compressed, "zstd")
tap.finish()
