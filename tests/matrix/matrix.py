"""matrix.py - what the matrix tests share: the layouts, the contents, running
platter-img and the oracle (qemu-img 10).

A layout is (version, cluster size, refcount bits); version 2 knows 16-bit
refcounts only, "extended L2" is version 3 with subclusters.  A picture is the content a guest would see, as bytes; images
are made from it one way and judged against it the other way.
"""
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from place import Here, places

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import tap                                                      # noqa: E402
from tap import IMG as OURS, IO as OUR_IO, QEMU_IMG as THEIRS, QEMU_IO  # noqa: E402

CLUSTERS = (512, 4096, 65536, 2 << 20)
LAYOUTS = [("v2", c, 16) for c in CLUSTERS] + [
    ("v3", c, r) for c, r in itertools.product(CLUSTERS, (1, 16, 64))] + [
    ("extended L2", c, 16) for c in (16384, 65536)]


def layout_name(layout):
    return "%s cluster %d refcount %d" % layout


def layout_options(layout, extra=""):
    version, cluster, bits = layout
    text = "compat=%s,cluster_size=%d" % ("0.10" if version == "v2" else "1.1", cluster)
    if version != "v2":
        text += ",refcount_bits=%d" % bits
    if version == "extended L2":
        text += ",extended_l2=on"
    return text + ("," + extra if extra else "")


def picture_size(cluster):
    """Several L2 tables where that is cheap, never a whole number of clusters."""
    return {512: 200 << 10, 4096: 3 << 20, 16384: 4 << 20, 65536: 4 << 20,
            2 << 20: 9 << 20}[cluster] + 1536


class Failed(Exception):
    """A step on the way to an image did not work."""


class Where:
    """The place that image names in what is run mean now."""
    place = Here()


def named(tool, *args):
    """The command line, with images as the tool calls them."""
    place = Where.place
    if tool in (OURS, OUR_IO):
        return [tool, *place.options, *(place.ours(str(a)) for a in args)]
    return [tool, *(place.theirs(str(a), args[0]) for a in args)]


def run_here(*argv):
    """run() with names that mean local files, whatever the place."""
    place, Where.place = Where.place, Here()
    try:
        return run(*argv)
    finally:
        Where.place = place


def run(*argv):
    """(status, output, error output) of a program that must end within 2 minutes."""
    p = subprocess.run(named(*argv), stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    return p.returncode, p.stdout.decode(errors="replace"), p.stderr.decode(errors="replace")


def must(*argv, runner=run):
    """Output of something that has to work for the test to go on."""
    rc, out, err = runner(*argv)
    if rc:
        raise Failed("%s: status %d: %s" % (" ".join(map(str, argv)), rc, err.strip()))
    return out


def theirs_here(*argv):
    """Have the oracle make local files; Where.place.put() takes them to their place."""
    must(THEIRS, *argv, runner=run_here)


def all_places():
    """Each place, the one that names mean while it is looped over."""
    for place in places(lambda *argv: subprocess.run([OURS, *argv], check=True)):
        Where.place = place
        yield place


def said(result):
    rc, out, err = result
    return "status %d\n%s%s" % (rc, out, err)


def write_file(name, data):
    """Sparse where the data is zero, so that holes are holes."""
    step = 4096
    with open(name, "wb") as f:
        f.truncate(len(data))
        for at in range(0, len(data), step):
            part = data[at:at + step]
            if part.strip(b"\0"):
                f.seek(at)
                f.write(part)


def remove_files():
    for name in os.listdir():
        os.unlink(name)


def read_file(name):
    with open(name, "rb") as f:
        return f.read()


def full_picture(size, seed):
    return random.Random(seed).randbytes(size)


def sparse_picture(size, seed):
    """Mostly zeros; data at odd places, at the start and in the last sector."""
    rng = random.Random(seed)
    data = bytearray(size)
    data[0:512] = rng.randbytes(512)
    data[size - 512:size] = rng.randbytes(512)
    for _ in range(6):
        at = rng.randrange(size)
        part = rng.randbytes(min(rng.randrange(1, size // 16), size - at))
        data[at:at + len(part)] = part
    return bytes(data)


def squeezable_picture(size, seed):
    """Compresses well, but no two clusters alike."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randrange(3, 40)) for _ in range(200)]
    data = bytearray()
    while len(data) < size:
        data += rng.choice(words) * rng.randrange(1, 4)
    del data[size:]
    quarter = size // 4 // 65536 * 65536
    data[quarter:quarter + size // 8] = bytes(size // 8)
    return bytes(data)


class Scribbler:
    """Commands for one run of qemu-io or platter-io and the picture they make."""

    def __init__(self, picture, seed):
        self.data = bytearray(picture)
        self.rng = random.Random(seed)
        self.commands = []

    def write(self, at, length):
        byte = self.rng.randrange(1, 256)
        self.data[at:at + length] = bytes([byte]) * length
        self.commands += ["-c", "write -P %d %d %d" % (byte, at, length)]

    def zero(self, at, length, unmap):
        self.data[at:at + length] = bytes(length)
        self.commands += ["-c", "write -z %s %d %d" % ("-u" if unmap else "", at, length)]

    def random_writes(self, count, largest):
        size = len(self.data)
        for i in range(count):
            at = self.rng.randrange(size)
            length = min(self.rng.randrange(1, largest), size - at)
            if i % 4 == 3:
                self.zero(at, length, i % 8 == 3)
            else:
                self.write(at, length)
        self.write(size - 1, 1)

    def apply(self, image, tool=QEMU_IO):
        """The oracle's images are made here, whatever the place."""
        command = (tool, "-f", "qcow2", *self.commands, image)
        rc, out, err = run(*command) if tool == OUR_IO else run_here(*command)
        if rc or "failed" in out + err:
            raise Failed("%s on %s: status %d: %s" % (tool, image, rc, (out + err).strip()))
        return bytes(self.data)


def check_json(tool, image, *options):
    """(status, what check --output=json says without the file's name)."""
    rc, out, err = run(tool, "check", "--output=json", "-f", "qcow2", *options, image)
    try:
        said_json = json.loads(out)
    except ValueError:
        return rc, {"not json": (out + err).replace(os.path.basename(tool) + ": ", "")}
    said_json.pop("filename", None)
    return rc, said_json


def map_json(tool, image):
    rc, out, err = run(tool, "map", "--output=json", "-f", "qcow2", image)
    return Where.place.map((rc, json.loads(out)) if rc == 0 else (rc, err))
