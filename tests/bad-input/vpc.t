#!/usr/bin/env python3
"""vpc.t - VHD images with damaged footers, headers and tables: one clear line, no change to
the file, bounded memory and time."""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "formats"))
from badinput import IO, Test, case, file_hash, main           # noqa: E402
from smallimg import vpc, vpc_fixed                             # noqa: E402

Test.fmt = "vpc"
MIB = 1 << 20


def save(t, data, cut=None, name="test.vhd"):
    with open(t.path(name), "wb") as f:
        f.write(data if cut is None else data[:cut])
    return t.path(name)


def refused(name, reason, make=vpc, **fields):
    @case("VHD: " + name)
    def run_case(t):
        # Without a check for the format, check's own line does not name the file.
        t.refused(save(t, make(**fields)), reason, check=False)


def reads(name, *blocks, make=vpc, **fields):
    @case("VHD: " + name)
    def run_case(t):
        t.reads_alike(save(t, make(*blocks, **fields)))


refused("a footer with a wrong checksum", "Incorrect header checksum", sum_ok=False)
refused("a differencing image", "Differencing", type=4)
refused("type 2 in front", "type 2", type=2)
refused("type 0", "type 0", type=0)
refused("type 3 in a footer behind the data", "type 3", make=vpc_fixed, type=3)
refused("type 2^32 - 1", "type 4294967295", make=vpc_fixed, type=2**32 - 1)
refused("more sectors than a table can name", "too large", size=(0xff000001) * 512)
refused("a size of 2^64 - 1", "too large", size=2**64 - 1)
refused("a fixed image smaller than its size", "does not fit", make=vpc_fixed, size=4 * MIB)
refused("a header at offset 2^64 - 1", "dynamic VHD header", data_offset=2**64 - 1)
refused("a header past the end", "dynamic VHD header", data_offset=1 << 40)
refused("a header cut by the end", "dynamic VHD header", data_offset=16000)
refused("a header without its magic", "header magic", h_magic=b"cxsparsx")
refused("the footer as its own header", "header magic", data_offset=0)
refused("blocks of 0 bytes", "block size 0", h_block=0)
refused("blocks of 256 bytes", "block size 256", h_block=256)
refused("blocks of 3000 bytes", "block size 3000", h_block=3000)
refused("blocks of 2^32 - 1 bytes", "block size 4294967295", h_block=2**32 - 1)
refused("a table too small", "too small", h_entries=1)
refused("an empty table", "too small", h_entries=0)
refused("2^32 - 1 entries", "Entries too large", h_entries=2**32 - 1)
refused("2^29 entries", "Entries too large", h_entries=2**29)
refused("a table past the end", "pagetable", h_table=1 << 40)
refused("a table at 2^64 - 512", "pagetable", h_table=2**64 - 512)
refused("a table cut by the end", "pagetable", h_entries=8000)
refused("a block past the end", "truncated", blocks=(0, None, 1 << 20))
refused("a block at 2 TiB", "truncated", blocks=(0, None, 0xfffffffe))
refused("a geometry of 2 TiB by chs and a small table", "too small", creator=b"vpc ",
        cyls=60000, heads=16, track=255)


@case("VHD: cut at each field")
def cut(t):
    data = vpc(end=False)
    for end in [0, 1, 7, 8, 16, 28, 40, 48, 56, 60, 64, 68, 84, 511, 512, 520, 528, 540, 543,
                544, 548, 1535, 1536, 1538, 1547, 2048, 2560, len(data) - 1]:
        path = save(t, data, end, "cut%d.vhd" % end)
        before = file_hash(path)
        t.one_line(t.img("info", "-f", "vpc", path), path, "VHD|VPC|checksum|pagetable|truncated")
        t.one_line(t.io(path, "write 0 512"), path, "VHD|VPC|checksum|pagetable|truncated")
        t.expect(file_hash(path) == before, "the file was changed")


@case("VHD: a fixed image cut anywhere is none")
def cut_fixed(t):
    data = vpc_fixed()
    for end in [0, 8, 511, 512, 8192, len(data) - 450]:
        path = save(t, data, end, "cut%d.vhd" % end)
        t.one_line(t.img("info", "-f", "vpc", path), path, "too small|invalid VPC|checksum")
    t.reads_alike(save(t, data, len(data) - 1, "511.vhd"))      # as old programs end


reads("the size by geometry for Virtual PC", creator=b"vpc ", cyls=1, heads=1, track=17)
reads("the size by geometry for QEMU", creator=b"qemu", cyls=1, heads=1, track=9)
reads("the size in the footer for QEMU's other name", creator=b"qem2", cyls=1, heads=1, track=9)
reads("the size in the footer for everybody else", creator=b"wa\0\0", cyls=1, heads=1, track=9)
reads("no geometry at all", creator=b"vpc ", cyls=0, heads=0, track=0)
reads("two entries for one block", (0, 0, 1))
reads("a table behind the blocks' usual place", (0, 1, None), table=8192)
refused("a fixed image of 0 bytes", "type 2 in a header", make=vpc_fixed, have=0)
reads("a fixed image larger than its size", make=vpc_fixed, size=4096, cyls=0)
reads("more entries than the size needs", h_entries=64)


def raw_vpc(entry):
    """vpc() takes small numbers for places: put the entry there afterwards."""
    data = vpc((0, None, None), table=65536)
    data[65536 + 4:65536 + 8] = entry.to_bytes(4, "big")
    return data


for what, entry in (("the footer in front", 0), ("the header", 1), ("the table", 120),
                    ("the end of the table", 128)):
    @case("VHD: a block over %s is an I/O error; nothing is written there" % what)
    def over(t, entry=entry):
        path = save(t, raw_vpc(entry))
        before = file_hash(path)
        t.read_fails(path, 4096, "block map entry 1")
        t.io_fails(path, "write 4096 512", "block map entry 1")
        t.expect(file_hash(path) == before, "the file was changed")


@case("VHD: a first write sets the block's whole bitmap")
def bitmap(t):
    data = vpc((0, None, None))
    data[2048:2560] = b"\x80" + bytes(511)
    path = save(t, data)
    r = t.io(path, "write -P 9 512 512", "read -P 1 0 512", "read -P 9 512 512")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    with open(path, "rb") as f:
        f.seek(2048)
        t.expect(f.read(512) == b"\xff" * 512, "the bitmap is not all ones")


@case("VHD: writing leaves a footer at the end of the file")
def footer(t):
    path = save(t, vpc((1, None, 0)))
    r = t.io(path, "write -P 9 5000 100", "write -P 8 0 100")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    with open(path, "rb") as f:
        data = f.read()
    t.expect(data[-512:] == data[:512], "no footer at the end")
    t.reads_alike(path)


@case("VHD: a write that finds no room leaves what was, and the image works afterwards")
def no_room(t):
    path = save(t, vpc((0, None, None)))
    for nth in range(1, 5):
        fault = "driver=vpc,file.driver=fault,file.op=write,file.errno=ENOSPC,file.nth=%d," \
            "file.sticky=on,file.file.filename=%s" % (nth, path)
        t.run(IO, "--image-opts", "-c", "write -P 9 4k 4k", fault)
        r = t.io(path, "read -P 1 0 4k", "read 4k 8k", ro=True)
        t.expect(r.rc == 0 and "failed" not in r.out, "write %d: %s" % (nth, r))
    r = t.io(path, "write -P 9 4k 4k", "read -P 1 0 4k", "read -P 9 4k 4k")
    t.expect(r.rc == 0 and "failed" not in r.out, "%s" % r)
    t.reads_alike(path)


if __name__ == "__main__":
    sys.exit(main())
