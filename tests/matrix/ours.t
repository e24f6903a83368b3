#!/usr/bin/python3
"""Images that Platter makes, in every layout: they have the layout asked for,
pass qemu-img check, and qemu-img reads the same content from them.  Here, or where
tests/net/matrix-*.t have servers."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from matrix import *

tap.enter_place("matrix", memory=True)


def ours(*argv):
    must(OURS, *argv)


def create(layout, image, size, *options):
    ours("create", "-q", "-f", "qcow2", "-o", layout_options(layout), *options, image, size)


def from_picture(layout, image, picture, *options):
    write_file("picture.raw", picture)
    ours("convert", "-f", "raw", "-O", "qcow2", "-o", layout_options(layout), *options,
         "picture.raw", image)


def onto(image, picture):
    """Write a whole picture into an image that is there already."""
    write_file("picture.raw", picture)
    ours("convert", "-n", "-f", "raw", "-O", "qcow2", "picture.raw", image)


def changed(picture, seed):
    """The picture with odd pieces overwritten, some by zeros."""
    s = Scribbler(picture, seed)
    s.random_writes(8, len(picture) // 16)
    return bytes(s.data)


# Each maker leaves t.qcow2 (and what it stands on) and returns its picture.
def empty(layout, size):
    create(layout, "t.qcow2", size)
    return bytes(size)


def sparse(layout, size):
    picture = sparse_picture(size, 11)
    from_picture(layout, "t.qcow2", picture)
    return picture


def full(layout, size):
    picture = full_picture(size, 12)
    from_picture(layout, "t.qcow2", picture)
    return picture


def rewritten(layout, size):
    """Overwrites of allocated clusters, zeros where data was, data where none was."""
    from_picture(layout, "t.qcow2", sparse_picture(size, 13))
    picture = sparse_picture(size, 14)
    onto("t.qcow2", picture)
    return picture


def overlay(layout, size):
    base = sparse_picture(size, 15)
    from_picture(layout, "base.qcow2", base)
    create(layout, "t.qcow2", size, "-b", "base.qcow2", "-F", "qcow2")
    picture = changed(base, 16)
    onto("t.qcow2", picture)
    return picture


def bare_overlay(layout, size):
    base = full_picture(size, 17)
    from_picture(layout, "base.qcow2", base)
    create(layout, "t.qcow2", size, "-b", "base.qcow2", "-F", "qcow2")
    return base


def converted_overlay(layout, size):
    base = sparse_picture(size, 18)
    from_picture(layout, "base.qcow2", base)
    picture = changed(base, 19)
    from_picture(layout, "t.qcow2", picture, "-B", "base.qcow2", "-F", "qcow2")
    return picture


def longer_overlay(layout, size):
    short = size // 2 // 512 * 512 + 512
    base = full_picture(short, 20)
    from_picture(layout, "base.qcow2", base)
    create(layout, "t.qcow2", size, "-b", "base.qcow2", "-F", "qcow2")
    picture = changed(base + bytes(size - short), 21)
    onto("t.qcow2", picture)
    return picture


def written_overlay(layout, size):
    """Pieces at odd places: copy on write at both ends of a cluster."""
    base = sparse_picture(size, 25)
    from_picture(layout, "base.qcow2", base)
    create(layout, "t.qcow2", size, "-b", "base.qcow2", "-F", "qcow2")
    s = Scribbler(base, 26)
    s.random_writes(12, size // 16)
    return s.apply("t.qcow2", OUR_IO)


def written_longer_overlay(layout, size):
    short = size // 2 // 512 * 512 + 512
    base = full_picture(short, 27)
    from_picture(layout, "base.qcow2", base)
    create(layout, "t.qcow2", size, "-b", "base.qcow2", "-F", "qcow2")
    s = Scribbler(base + bytes(size - short), 28)
    s.write(short - 100, 300)       # copy on write across the base's end
    s.write(short + 1000, 700)
    s.zero(short - 2000, 1500, True)
    return s.apply("t.qcow2", OUR_IO)


def written_compressed(layout, size):
    """QEMU's compressed clusters, written over by us."""
    picture = squeezable_picture(size, 29)
    write_file("picture.raw", picture)
    theirs_here("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", layout_options(layout),
                "picture.raw", "t.qcow2")
    Where.place.put("t.qcow2")
    s = Scribbler(picture, 30)
    s.random_writes(6, size // 16)
    return s.apply("t.qcow2", OUR_IO)


def bare_longer_overlay(layout, size):
    short = size // 2 // 512 * 512 + 512
    base = full_picture(short, 22)
    from_picture(layout, "base.qcow2", base)
    create(layout, "t.qcow2", size, "-b", "base.qcow2", "-F", "qcow2")
    return base + bytes(size - short)


def from_compressed(layout, size, method):
    """The source is a compressed image of QEMU's with the same cluster size."""
    picture = squeezable_picture(size, 23)
    write_file("picture.raw", picture)
    theirs_here("convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
                "cluster_size=%d,compression_type=%s" % (layout[1], method), "picture.raw",
                "source.qcow2")
    Where.place.put("source.qcow2")
    ours("convert", "-f", "qcow2", "-O", "qcow2", "-o", layout_options(layout),
         "source.qcow2", "t.qcow2")
    return picture


def has_layout(layout, size):
    info = json.loads(must(THEIRS, "info", "--output=json", "-f", "qcow2", "t.qcow2"))
    data = info["format-specific"]["data"]
    return ("0.10" if layout[0] == "v2" else "1.1", layout[0] == "extended L2", layout[1],
            layout[2], size) == (
        data["compat"], data.get("extended-l2", False), info["cluster-size"],
        data["refcount-bits"], info["virtual-size"])


def judge(layout, kind, make):
    name = "%s%s, %s: " % (Where.place.title, layout_name(layout), kind)
    Where.place.new()
    try:
        picture = make(layout, picture_size(layout[1]))
    except Failed as e:
        tap.ok(False, name + "is made", e)
        return
    tap.ok(has_layout(layout, len(picture)), name + "has the layout asked for")
    rc, result = check_json(THEIRS, "t.qcow2")
    tap.ok(rc == 0, name + "passes qemu-img check", "status %d: %s" % (rc, result))
    write_file("picture.raw", picture)
    r = run(THEIRS, "compare", "-f", "raw", "-F", "qcow2", "picture.raw", "t.qcow2")
    tap.ok(r[0] == 0, name + "is what was written, as qemu-img compares it", said(r))
    rc, again = check_json(OURS, "t.qcow2")
    tap.ok((rc, again) == (0, result), name + "our check says what QEMU's says",
           "ours   %s\ntheirs %s" % (again, result))
    remove_files()


KINDS = [
    ("empty", empty),
    ("sparse", sparse),
    ("full", full),
    ("written twice", rewritten),
    ("overlay", overlay),
    ("overlay with nothing of its own", bare_overlay),
    ("overlay made by convert -B", converted_overlay),
    ("overlay longer than its base", longer_overlay),
    ("overlay written in pieces", written_overlay),
    ("longer overlay written in pieces", written_longer_overlay),
    ("compressed, written over in pieces", written_compressed),
    ("longer overlay with nothing of its own", bare_longer_overlay),
    ("from compressed zlib", lambda l, s: from_compressed(l, s, "zlib")),
    ("from compressed zstd", lambda l, s: from_compressed(l, s, "zstd")),
]
for place in all_places():
    for layout in place.layouts(LAYOUTS, 0):
        for kind, make in KINDS:
            judge(layout, kind, make)

    # dd knows no layout; its blocks need not be clusters.
    for bs in (512, 4096, 100000, 1 << 20):
        place.new()
        name = "%sdd with bs=%d: " % (place.title, bs)
        picture = sparse_picture(picture_size(65536), 24)
        write_file("picture.raw", picture)
        r = run(OURS, "dd", "-f", "raw", "-O", "qcow2", "bs=%d" % bs, "if=picture.raw",
                "of=" + place.ours("t.qcow2"))
        tap.ok(r[0] == 0, name + "copies a picture", said(r))
        r = run(THEIRS, "compare", "-f", "raw", "-F", "qcow2", "picture.raw", "t.qcow2")
        tap.ok(r[0] == 0, name + "qemu-img compares it equal", said(r))
        rc, result = check_json(THEIRS, "t.qcow2")
        tap.ok(rc == 0, name + "passes qemu-img check", result)
        remove_files()
tap.finish()
