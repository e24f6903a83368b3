"""place.py - where the images of a matrix test are: in its directory, or where a server
of tests/net/places.sh keeps them.

Platter's tools get URLs there, as a user would write them; the oracle reads (and makes)
the same bytes as local files, so that nothing but Platter's driver is between the two.
"""
import itertools
import json
import os

# In whose order layouts are dealt out.
PLACES = ("nfs3", "nfs4", "iscsi", "gluster", "nbd", "http", "https")
IMAGES = ("t.qcow2", "base.qcow2", "source.qcow2")


class Here:
    """Files in the current directory."""
    title = ""
    options = ()                # of Platter's tools, before the command

    def new(self):
        """Names mean other images from now on."""

    def ours(self, image):
        """What Platter's tools call it."""
        return image

    def theirs(self, image, command):
        """What the oracle calls it."""
        return image

    def map(self, said):
        """map --output=json, what cannot be known there made alike."""
        return said

    def put(self, *images):
        """Images the oracle made, the first on top of the second, get there."""

    def layouts(self, every, half):
        return every


class There(Here):
    """On a server.  Names are used once: servers believe that nobody else changes files."""

    def __init__(self, name, converter):
        get = lambda key: os.environ["PLACE_%s_%s" % (name, key)]
        self.title = name + ": "
        self.index = PLACES.index(name) if name in PLACES else 0
        self.converter = converter
        self.url, self.dir, self.fixed = get("URL"), get("DIR"), get("FIXED")
        self.read_only = os.environ.get("PLACE_%s_READONLY" % name)
        self.options = ("--backing-urls", get("SCHEME"))
        self.serial, self.used = itertools.count(), set()
        self.new()

    def new(self):
        if not self.fixed:
            for image in self.used:
                os.truncate(os.path.join(self.dir, self.name(image)), 0)    # memory
        self.round, self.used = next(self.serial), set()

    def name(self, image):
        self.used.add(image)
        if self.fixed:
            return str(1 + IMAGES.index(image))
        return "%d.%s" % (self.round, image)

    def ours(self, image):
        return self.url % self.name(image) if image in IMAGES else image

    def theirs(self, image, command):
        """Without its name for the backing image, which is a URL."""
        if image not in IMAGES:
            return image
        above = {"file": self.file(image), "backing": None}
        if image == "t.qcow2" and "base.qcow2" in self.used and command in ("compare", "map"):
            above["backing"] = {"driver": "qcow2", "file": self.file("base.qcow2")}
        return "json:" + json.dumps(above)

    def file(self, image):
        return {"driver": "file", "filename": os.path.join(self.dir, self.name(image))}

    def map(self, said):
        """Few servers tell where a file has holes: extents with data are data."""
        if said[0]:
            return said
        merged = []
        for e in said[1]:
            e = dict(e, zero=e["zero"] and not e["data"])
            last = merged[-1] if merged else {}
            to = last.get("offset", -1) + last.get("length", 0)
            if e["data"] and to == e.get("offset") and e["depth"] == last["depth"]:
                last["length"] += e["length"]
            else:
                merged.append(e)
        return 0, merged

    def put(self, *images):
        for image, below in itertools.zip_longest(images, images[1:]):
            if below:
                self.converter("rebase", "-u", "-f", "qcow2", "-b", self.ours(below), "-F",
                               "qcow2", image)
            to = self.file(image)["filename"] if self.read_only else self.ours(image)
            self.converter("convert", *(["-n"] if self.fixed else []), "-f", "raw", "-O", "raw",
                           image, to)
            os.unlink(image)

    def layouts(self, every, half):
        """Every second cluster size, the others being the other half's or the next
        place's; of each one layout, so that the places together see most."""
        if os.environ.get("PLATTER_MATRIX") == "full":
            return every
        by_cluster = [[l for l in every if l[1] == c] for c in sorted({l[1] for l in every})]
        mine = [same[(self.index + i) % len(same)] for i, same in enumerate(by_cluster)]
        return mine[(self.index + half) % 2::2]


def places(converter):
    """All there are.  converter(*argv) runs platter-img."""
    names = os.environ.get("PLATTER_PLACES", "").split()
    return [There(name, converter) for name in names] or [Here()]
