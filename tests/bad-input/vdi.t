#!/usr/bin/env python3
"""vdi.t - VDI images with damaged headers and block maps: one clear line, no change to
the file, bounded memory and time."""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "formats"))
from badinput import IO, Test, case, file_hash, main           # noqa: E402
from smallimg import ABSENT, vdi                                # noqa: E402

Test.fmt = "vdi"
MIB = 1 << 20


def save(t, data, cut=None, name="test.vdi"):
    with open(t.path(name), "wb") as f:
        f.write(data if cut is None else data[:cut])
    return t.path(name)


def refused(name, reason, check=True, **fields):
    @case("VDI: " + name)
    def run_case(t):
        t.refused(save(t, vdi(full=False, **fields)), reason, check=check)


refused("bad signature", "bad signature", signature=0xbeda107e)
refused("version 1.0", r"version 1\.0", version=0x10000)
refused("version 65535.65535", r"version 65535\.65535", version=0xffffffff)
refused("block map at an odd offset", "unaligned block map", map=513)
refused("block map over the header", "not within the file", map=0)
refused("block map past the end of the file", "not within the file", map=1 << 30)
refused("block map at 2^32 - 512", "not within the file", map=2**32 - 512)
refused("data at an odd offset", "unaligned data", data=1023)
refused("data over the block map", "within the block map", data=512)
refused("sectors of 4096 bytes", "sector size 4096", sector=4096)
refused("blocks of 0 bytes", "block size 0", block=0, size=0)
refused("blocks of 512 bytes", "block size 512", block=512)
refused("blocks of 2^31 bytes", "block size 2147483648", block=2**31)
refused("a size of 2^64 - 1", "image size", size=2**64 - 1)
refused("a size of 2^63", "image size", size=2**63)
refused("more bytes than blocks", "room for", size=4 * MIB)
refused("no blocks for a size", "room for", blocks=0)
refused("2^32 - 1 blocks", "too many blocks", blocks=0xffffffff)
refused("one block more than there may be", "too many blocks", blocks=0x1fffff81)
refused("as many blocks as there may be, no table", "not within the file", blocks=0x1fffff80)
refused("a link to another image", "link UUID", link=b"\1" * 16)
refused("a parent", "parent UUID", parent=b"\1" * 16)


@case("VDI: cut at each field")
def cut(t):
    data = vdi((1, ABSENT, 0))
    for end in [0, 1, 3, 63, 64, 67, 68, 76, 340, 343, 344, 368, 375, 376, 384, 388, 391, 392,
                424, 440, 511, 512, 513, 523]:
        path = save(t, data, end, "cut%d.vdi" % end)
        before = file_hash(path)
        t.one_line(t.img("info", "-f", "vdi", path), path, "VDI")
        t.one_line(t.io(path, "write 0 512"), path, "VDI")
        t.expect(file_hash(path) == before, "the file was changed")


@case("VDI: cut within the data, which reads as zeros there")
def cut_data(t):
    path = save(t, vdi((1, ABSENT, 0)), 1024 + MIB // 2)
    t.reads_alike(path)


@case("VDI: a discarded block reads as zeros")
def discarded(t):
    content = t.reads_alike(save(t, vdi((0, 0xfffffffe))))
    t.expect(content and content[MIB:] == bytes(MIB), "not zeros")


@case("VDI: an entry beyond the count of blocks is an I/O error, not another place")
def beyond(t):
    path = save(t, vdi((0, 3, ABSENT)))
    t.read_fails(path, MIB, "block map entry 1")
    t.io_fails(path, "write %d 512" % MIB, "block map entry 1")
    r = t.io(path, "read -P 1 0 1M", ro=True)
    t.expect(r.rc == 0, "block 0 is lost, too: %s" % r)
    t.check_alike(path)


@case("VDI: two entries for one place are read, and found by check")
def alias(t):
    path = save(t, vdi((0, 0, 1)))
    t.reads_alike(path)
    t.check_alike(path)


@case("VDI: a count of blocks that is too low does not make a new block cover another")
def count_low(t):
    path = save(t, vdi((1, ABSENT, 0), allocated=0))
    r = t.io(path, "write -P 9 1M 1M", "read -P 1 0 1M", "read -P 9 1M 1M", "read -P 3 2M 1M")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    t.sound(path)


@case("VDI: a count of blocks that is too high leads nowhere outside")
def count_high(t):
    path = save(t, vdi((1, ABSENT, 0), allocated=0xffffffff))
    r = t.io(path, "write -P 9 1M 1M", "read -P 1 0 1M", "read -P 9 1M 1M", "read -P 3 2M 1M")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    t.expect(os.path.getsize(path) == 1024 + 3 * MIB, "the file grew beyond its blocks")
    t.sound(path)


@case("VDI: a place that nothing points at is used")
def gap(t):
    path = save(t, vdi((2, ABSENT, 0)))
    r = t.io(path, "write -P 9 1M 64k", "read -P 0 1088k 100k", "read -P 9 1M 64k")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    t.sound(path)


@case("VDI: half a petabyte with all its map (2 GiB, sparse): info and reads stay small")
def huge(t):
    path = save(t, vdi((), full=False, blocks=0x1fffff80, size=0x1fffff80 << 20,
                       data=2**31))
    os.truncate(path, 2**31 + MIB)
    t.expect(t.img("info", path).rc == 0, "info fails")
    r = t.io(path, "read 0 512", "read %d 512" % (0x1fffff7f << 20), ro=True)
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)


@case("VDI: a write that finds no room leaves what was, and the image works afterwards")
def no_room(t):
    path = save(t, vdi((0, ABSENT, ABSENT)))
    fault = "driver=vdi,file.driver=fault,file.op=write,file.errno=ENOSPC,file.file.filename=" + path
    with open(path, "rb") as f:
        before = f.read()
    r = t.run(IO, "--image-opts", "-c", "write -P 9 1M 1M", fault)
    t.expect("No space left" in r.out + r.err, "%s" % r)
    with open(path, "rb") as f:
        t.expect(f.read()[:len(before)] == before, "something was changed")
    r = t.io(path, "write -P 9 1M 1M", "read -P 1 0 1M", "read -P 9 1M 1M")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    t.sound(path)


if __name__ == "__main__":
    sys.exit(main())
