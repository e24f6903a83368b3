#!/usr/bin/python3
"""Images with LUKS encryption, with a data file of their own and with bitmaps, in a few
layouts each: what one program makes and writes the other reads and checks,
writes to in turn, and the first reads again; Platter first, then QEMU first."""
import os
import sys
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "qcow2")]
import bitmaps
from matrix import *

tap.enter_place("matrix", memory=True)
SECRET = ("--object", "secret,id=s,data=abc")
LUKS = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1"
GRANULARITY = 4096


class Side:
    def __init__(self, who, img, io):
        self.who, self.img, self.io = who, img, io


US, QEMU = Side("Platter", OURS, OUR_IO), Side("QEMU", THEIRS, QEMU_IO)


class Feature:
    """Images as they are; the others change what differs."""
    secret = ()

    def options(self):
        return ""

    def layouts(self):
        return [("v3", 4096, 16), ("v3", 65536, 1), ("extended L2", 16384, 16)]

    def create(self, side, layout, size):
        must(side.img, "create", "-q", *self.secret, "-f", "qcow2", "-o",
             layout_options(layout, self.options()), "t.qcow2", size)

    def spec(self):
        return "driver=qcow2,file.filename=t.qcow2"

    def write(self, side, picture, seed):
        s = Scribbler(picture, seed)
        s.random_writes(10, len(picture) // 16)
        must(side.io, *self.secret, *s.commands, "--image-opts", self.spec())
        return bytes(s.data)

    def more(self, name, before, after):
        """What else has to hold once somebody has written."""

    def extra(self, name):
        """What else the two programs must say alike."""
        ours, theirs = map_json(OURS, "t.qcow2"), map_json(THEIRS, "t.qcow2")
        tap.ok(ours == theirs, name + "mapped alike", "ours   %s\ntheirs %s" % (ours, theirs))


class Luks(Feature):
    name, secret = "LUKS", SECRET

    def layouts(self):
        return [("v2", 65536, 16), ("v3", 512, 16), ("v3", 2 << 20, 64), ("extended L2", 65536, 16)]

    def options(self):
        return LUKS

    def spec(self):
        return super().spec() + ",encrypt.key-secret=s"

    def extra(self, name):
        picture = read_file("picture.raw")
        sector = next(s for s in (picture[at:at + 512] for at in range(0, len(picture), 512)) if all(s))
        tap.ok(sector not in read_file("t.qcow2"), name + "not in the clear")


class DataFile(Feature):
    def __init__(self, raw):
        self.raw, self.name = raw, "raw data file" if raw else "data file"

    def options(self):
        return "data_file=t.data" + (",data_file_raw=on" if self.raw else "")

    def extra(self, name):
        super().extra(name)
        if self.raw:
            tap.ok(read_file("t.data")[:os.path.getsize("picture.raw")] == read_file("picture.raw"),
                   name + "the data file is the disk")


class Bitmaps(Feature):
    name = "bitmaps"

    def create(self, side, layout, size):
        super().create(side, layout, size)
        must(side.img, "bitmap", "--add", "-g", GRANULARITY, "t.qcow2", "records")
        must(side.img, "bitmap", "--add", "--disable", "-g", 65536, "t.qcow2", "rests")
        self.dirty = set()

    def more(self, name, before, after):
        """Every change is recorded, nothing else is but what was before."""
        found = bitmaps.read("t.qcow2")
        bits = lambda which: {i for i in range(8 * len(found[which][2]))
                              if found[which][2][i // 8] >> i % 8 & 1}
        changed = {i for i in range(-(-len(after) // GRANULARITY))
                   if before[i * GRANULARITY:][:GRANULARITY] != after[i * GRANULARITY:][:GRANULARITY]}
        self.dirty |= changed
        tap.ok(self.dirty <= bits("records") and not bits("rests") and
               not (found["records"][0] | found["rests"][0]) & bitmaps.IN_USE,
               name + "the bitmap knows of every change", "%s without %s" %
               (sorted(self.dirty), sorted(bits("records"))))


def check(feature, side):
    rc, out, err = run(side.img, "check", "--output=json", *feature.secret, "--image-opts", feature.spec())
    return rc, {k: v for k, v in json.loads(out).items() if k != "filename"} if out else err


def reads(name, feature, side, picture):
    write_file("picture.raw", picture)
    r = run(side.img, "compare", *feature.secret, "--image-opts",
            "driver=raw,file.filename=picture.raw", feature.spec())
    tap.ok(r[0] == 0, name + "%s reads what was written" % side.who, said(r))
    results = [check(feature, s) for s in (US, QEMU)]
    tap.ok(results[0] == results[1] and results[0][0] == 0, name + "checked clean, alike", results)
    feature.extra(name)


def judge(layout, feature, first, second):
    name = "%s, %s, %s first: " % (layout_name(layout), feature.name, first.who)
    size = min(picture_size(layout[1]), 3 << 20)
    try:
        feature.create(first, layout, size)
        picture = bytes(size)
        for i, (writer, reader) in enumerate(((first, second), (second, first))):
            before, picture = picture, feature.write(writer, picture, 40 + i)
            feature.more(name, before, picture)
            reads(name, feature, reader, picture)
    except Failed as e:
        tap.ok(False, name + "is made and written", e)
    remove_files()


for feature in (Luks(), DataFile(False), DataFile(True), Bitmaps()):
    for layout in feature.layouts():
        judge(layout, feature, US, QEMU)
        judge(layout, feature, QEMU, US)
tap.finish()
