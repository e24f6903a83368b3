#!/usr/bin/env python3
"""other-tools.t - images that Platter makes, read by what Debian packages beside QEMU: libqcow,
libvhdi, libvmdk and 7-Zip, which knows VirtualBox's vdi, too.  None of them writes images."""
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tap import IMG, IO, enter_place, finish, must, ok, run     # noqa: E402

READ = os.path.join(os.path.dirname(os.path.abspath(__file__)), "read_image.py")
SIZE = 9 << 20

# format, convert's options, who reads it; zstd: QEMU's alone
CASES = [
    ("qcow2", "", "libqcow 7zz"), ("qcow2", "-c", "libqcow 7zz"),
    ("qcow2", "-o compat=0.10,cluster_size=4k", "libqcow 7zz"),
    ("qcow2", "-o cluster_size=2M", "libqcow 7zz"),
    ("qcow2", "-o preallocation=metadata", "libqcow 7zz"),
    ("qcow", "", "libqcow"), ("qcow", "-c", "libqcow"),
    ("vpc", "-o force_size=on", "libvhdi 7zz"),
    ("vpc", "-o subformat=fixed,force_size=on", "libvhdi 7zz"),
    ("vhdx", "", "libvhdi 7zz"), ("vhdx", "-o subformat=fixed", "libvhdi 7zz"),
    ("vhdx", "-o block_size=2M", "libvhdi 7zz"),
    ("vmdk", "", "libvmdk 7zz"), ("vmdk", "-o subformat=monolithicFlat", "libvmdk"),
    ("vmdk", "-o subformat=streamOptimized", "libvmdk"),
    ("vmdk", "-o subformat=twoGbMaxExtentSparse", "libvmdk"),
    ("vmdk", "-o subformat=twoGbMaxExtentFlat", "libvmdk"),
    ("vdi", "", "7zz"), ("vdi", "-o static=on", "7zz"),
]
SEVEN = {"qcow2": "qcow", "vpc": "vhd"}         # what 7-Zip calls them


def source():
    r = random.Random(3)
    with open("src.raw", "wb") as f:
        for _ in range(30):
            f.seek(r.randrange(SIZE // 512 - 40) * 512)
            f.write(r.randbytes(r.randrange(1, 40) * 512))
        f.truncate(SIZE)
    with open("src.raw", "rb") as f:
        return f.read()


def read_by(who, form, name):
    if who == "7zz":
        return run("7zz", "x", "-so", "-t" + SEVEN.get(form, form), name, text=False)
    return run("/usr/bin/python3", READ, who, name, text=False)


def judge(what, form, readers, name, content):
    for who in readers.split():
        p = read_by(who, form, name)
        ok(p.returncode == 0 and p.stdout == content, "%s: read by %s" % (what, who),
           p.returncode, len(p.stdout), p.stderr[-500:])


def main():
    enter_place("other-tools")
    content = source()
    changed = bytearray(content)
    changed[:1000], changed[5 << 20:(5 << 20) + 70000] = b"\7" * 1000, b"\7" * 70000
    for form, options, readers in CASES:
        name, what = "image." + form, ("%s %s" % (form, options)).strip()
        must(IMG, "convert", "-f", "raw", "-O", form, *options.split(), "src.raw", name)
        judge(what, form, readers, name, content)
        if "streamOptimized" not in what and "-c" not in what:
            must(IO, "-f", form, "-c", "write -P 7 0 1000", "-c", "write -P 7 5M 70000", name)
            judge(what + ", written to", form, readers, name, bytes(changed))
    finish()


main()
