#!/usr/bin/python3
"""Leaks and corruptions in every layout: platter-img check reports what
qemu-img check reports (counts and exit status), repairs what it repairs, and
leaves an image as clean as QEMU's own repair does, with the guest's data in it,
after one run."""
import os
import sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from matrix import *
from qcow2patch import *

tap.enter_place("matrix", memory=True)


# Each damage changes the image, or returns False where the layout cannot have it.
def leaked_cluster(q):
    q.set_refcount(q.append_cluster(), 1)


def two_leaked_clusters(q):
    for _ in range(2):
        q.set_refcount(q.append_cluster(), 1)


def refcount_too_high(q):
    if q.refcount_bits == 1:
        return False
    q.set_refcount(list(q.l2_entries())[1][1] & OFFSET, 2)


def refcount_zero_of_data(q):
    q.set_refcount(list(q.l2_entries())[0][1] & OFFSET, 0)


def refcount_zero_of_l2_table(q):
    q.set_refcount(next(q.l1_entries())[1] & OFFSET, 0)


def refcount_zero_of_header(q):
    q.set_refcount(0, 0)


def two_entries_one_cluster(q):
    (_, first), (where, _) = list(q.l2_entries())[:2]
    q.set64(where, first)


def copied_flag_missing_in_l2(q):
    where, entry = next(q.l2_entries())
    q.set64(where, entry & ~COPIED)


def copied_flag_missing_in_l1(q):
    where, entry = next(q.l1_entries())
    q.set64(where, entry & ~COPIED)


def l2_entry_unaligned(q):
    if q.cluster == 512:
        return False            # every offset an entry can hold is aligned
    where, entry = next(q.l2_entries())
    q.set64(where, entry + 512)


def leak_and_corruption(q):
    q.set_refcount(q.append_cluster(), 1)
    q.set_refcount(list(q.l2_entries())[2][1] & OFFSET, 0)


DAMAGES = [leaked_cluster, two_leaked_clusters, refcount_too_high, refcount_zero_of_data,
           refcount_zero_of_l2_table, refcount_zero_of_header, two_entries_one_cluster,
           copied_flag_missing_in_l2, copied_flag_missing_in_l1, l2_entry_unaligned,
           leak_and_corruption]
# What a damage takes away from the guest, no repair brings back.
LOSES_DATA = [two_entries_one_cluster, l2_entry_unaligned]
# Not even before a repair can it be read.
UNREADABLE = [l2_entry_unaligned]
# A rebuild of ours leaves leaked clusters alone until the new structure is in
# place (a stop in between costs nothing), so the file may end a little later.
ENDS_LATER = [leak_and_corruption]


def same_repair(damage, ours, theirs, cluster):
    """Do both say the same, but for an end that may come up to two clusters later?"""
    if damage in ENDS_LATER and "image-end-offset" in theirs[1]:
        later = ours[1].get("image-end-offset", 0) - theirs[1]["image-end-offset"]
        if later not in (0, cluster, 2 * cluster):
            return False
        ours = (ours[0], dict(ours[1], **{"image-end-offset": theirs[1]["image-end-offset"]}))
    return ours == theirs


def repaired(tool, options):
    """What a tool's repair of a copy of the damaged image says."""
    shutil.copyfile("damaged.qcow2", "t.qcow2")
    return check_json(tool, "t.qcow2", *options)


def judge(layout, damage, picture):
    name = "%s, %s: " % (layout_name(layout), damage.__name__.replace("_", " "))
    shutil.copyfile("good.qcow2", "damaged.qcow2")
    q = Image("damaged.qcow2")
    possible = damage(q) is not False
    q.close()
    if not possible:
        return
    before = read_file("damaged.qcow2")
    theirs = check_json(THEIRS, "damaged.qcow2")
    ours = check_json(OURS, "damaged.qcow2")
    tap.ok(theirs[0] in (2, 3) and ours == theirs, name + "check agrees with QEMU's",
           "ours   %s\ntheirs %s" % (ours, theirs))
    tap.ok(read_file("damaged.qcow2") == before, name + "check without -r writes nothing")
    theirs = repaired(THEIRS, ["-r", "leaks"])
    ours = repaired(OURS, ["-r", "leaks"])
    tap.ok(ours == theirs, name + "check -r leaks agrees with QEMU's",
           "ours   %s\ntheirs %s" % (ours, theirs))
    theirs = repaired(THEIRS, ["-r", "all"])
    verdict = check_json(THEIRS, "t.qcow2")     # some damage is beyond QEMU's repair
    ours = repaired(OURS, ["-r", "all"])
    tap.ok(same_repair(damage, ours, theirs, layout[1]), name + "check -r all agrees with QEMU's",
           "ours   %s\ntheirs %s" % (ours, theirs))
    result = check_json(THEIRS, "t.qcow2")
    tap.ok(same_repair(damage, result, verdict, layout[1]), name + "QEMU finds our repair as good as its own (status %d)" % verdict[0],
           "of ours %s\nof its  %s" % (result, verdict))
    if damage in LOSES_DATA and damage not in UNREADABLE:
        r = run(THEIRS, "compare", "-f", "qcow2", "-F", "qcow2", "damaged.qcow2", "t.qcow2")
        tap.ok(r[0] == 0, name + "the guest reads what it read before the repair", said(r))
    once = read_file("t.qcow2")
    again = check_json(OURS, "t.qcow2", "-r", "all")
    tap.ok(read_file("t.qcow2") == once and not again[1].keys() & {"corruptions-fixed", "leaks-fixed"},
           name + "one repair is all: a second has nothing to do", "%s %s" % again)
    if damage not in LOSES_DATA:
        r = run(THEIRS, "compare", "-f", "raw", "-F", "qcow2", "picture.raw", "t.qcow2")
        tap.ok(r[0] == 0, name + "the repair changes no guest byte", said(r))


for layout in LAYOUTS:
    picture = full_picture(picture_size(layout[1]) // 2 // 512 * 512, 31)
    write_file("picture.raw", picture)
    must(THEIRS, "convert", "-f", "raw", "-O", "qcow2", "-o", layout_options(layout),
         "picture.raw", "good.qcow2")
    for damage in DAMAGES:
        judge(layout, damage, picture)
tap.finish()
