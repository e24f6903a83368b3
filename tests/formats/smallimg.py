"""smallimg.py - small VDI, VHD, Parallels, qcow and dmg images, byte by byte, with any field
damaged: what the bad-input tests and the fuzzers' corpora are made of.

Each maker takes fields by name and returns a bytearray; data blocks hold a byte that
says which block they are."""
import base64
import bz2
import struct
import zlib

ABSENT = 0xffffffff
VDI_FIELDS = {"signature": (64, "<I"), "version": (68, "<I"), "header_size": (72, "<I"),
              "type": (76, "<I"), "map": (340, "<I"), "data": (344, "<I"), "sector": (360, "<I"),
              "size": (368, "<Q"), "block": (376, "<I"), "blocks": (384, "<I"),
              "allocated": (388, "<I"), "link": (424, "16s"), "parent": (440, "16s")}
VPC_FOOTER = {"features": (8, ">I"), "version": (12, ">I"), "data_offset": (16, ">Q"),
              "creator": (28, "4s"), "orig_size": (40, ">Q"), "size": (48, ">Q"),
              "cyls": (56, ">H"), "heads": (58, ">B"), "track": (59, ">B"), "type": (60, ">I")}
VPC_HEADER = {"magic": (0, "8s"), "table": (16, ">Q"), "entries": (28, ">I"),
              "block": (32, ">I")}
PRL_FIELDS = {"magic": (0, "16s"), "version": (16, "<I"), "tracks": (28, "<I"),
              "entries": (32, "<I"), "sectors": (36, "<Q"), "inuse": (44, "<I"),
              "data": (48, "<I"), "ext": (56, "<Q")}
QCOW_FIELDS = {"magic": (0, ">I"), "version": (4, ">I"), "backing_offset": (8, ">Q"),
               "backing_size": (16, ">I"), "mtime": (20, ">I"), "size": (24, ">Q"),
               "cluster_bits": (32, ">B"), "l2_bits": (33, ">B"), "crypt": (36, ">I"),
               "l1": (40, ">Q")}


def put(buf, fields, values):
    for name, value in values.items():
        at, kind = fields[name]
        if isinstance(value, int):
            value &= (1 << 8 * struct.calcsize(kind)) - 1
        struct.pack_into(kind, buf, at, value)


def room(buf, end):
    buf.extend(bytes(max(0, end - len(buf))))


def vdi(entries=(1, ABSENT, 0), full=True, **fields):
    """Blocks of 1 MiB; full: the data is there, otherwise the file ends with the map."""
    buf = bytearray(512)
    buf[:35] = b"<<< QEMU VM Virtual Disk Image >>>\n"
    data = 512 + (len(entries) * 4 + 511) // 512 * 512
    used = [e for e in entries if e < 0xfffffffe]
    values = dict(signature=0xbeda107f, version=0x10001, header_size=0x180, type=1, map=512,
                  data=data, sector=512, size=len(entries) << 20, block=1 << 20,
                  blocks=len(entries), allocated=len(used))
    values.update(fields)
    put(buf, VDI_FIELDS, values)
    buf[392:408] = bytes(range(16))
    room(buf, data)
    struct.pack_into("<%dI" % len(entries), buf, 512, *entries)
    for i, e in enumerate(entries if full else ()):
        if e < len(entries):
            at = data + (e << 20)
            room(buf, at + (1 << 20))
            buf[at:at + (1 << 20)] = bytes([i + 1]) * (1 << 20)
    return buf


def vpc_sum(buf, at, size, where):
    buf[at + where:at + where + 4] = bytes(4)
    struct.pack_into(">I", buf, at + where, ~sum(buf[at:at + size]) & 0xffffffff)


def vpc_footer(size, kind, fields):
    foot = bytearray(512)
    foot[:8] = b"conectix"
    values = dict(features=2, version=0x10000, data_offset=512 if kind == 3 else 2**64 - 1,
                  creator=b"win ", orig_size=size, size=size, cyls=1, heads=4, track=17,
                  type=kind)
    values.update({k: v for k, v in fields.items() if k in VPC_FOOTER})
    put(foot, VPC_FOOTER, values)
    foot[36:40] = b"Wi2k"
    vpc_sum(foot, 0, 512, 64)
    return foot


def vpc(blocks=(1, None, 0), block=4096, table=1536, sum_ok=True, end=True, **fields):
    """Dynamic; blocks: place in order, None: absent, or an entry as it is if >= 100."""
    foot = vpc_footer(len(blocks) * block, 3, fields)
    if not sum_ok:
        foot[64] ^= 1
    lead = (block // 4096 + 511) // 512 * 512 if block >= 4096 else 512
    head = bytearray(1024)
    values = dict(magic=b"cxsparse", table=table, entries=len(blocks), block=block)
    for name in VPC_HEADER:
        if "h_" + name in fields:
            values[name] = fields["h_" + name]
    put(head, VPC_HEADER, values)
    vpc_sum(head, 0, 1024, 36)
    first = table + (len(blocks) * 4 + 511) // 512 * 512
    buf = bytearray(foot + head)
    room(buf, first)
    for i, b in enumerate(blocks):
        entry = ABSENT if b is None else b if b >= 100 else (first + b * (lead + block)) // 512
        struct.pack_into(">I", buf, table + i * 4, entry)
        if b is not None and b < 100:
            at = first + b * (lead + block)
            room(buf, at + lead + block)
            buf[at:at + lead + block] = b"\xff" * lead + bytes([i + 1]) * block
    return buf + foot if end else buf


def vpc_fixed(have=8192, **fields):
    """have: bytes of data in the file."""
    return bytearray(b"\7" * have) + vpc_footer(have, 2, fields)


def parallels(entries=(1, 0, 2), tracks=8, ext=True, full=True, **fields):
    """Clusters of tracks sectors; entries count from the first cluster behind the table."""
    cluster = tracks * 512
    first = (64 + 4 * len(entries) + cluster - 1) // cluster * cluster
    if not ext:
        first = (64 + 4 * len(entries) + 511) // 512 * 512
    unit = cluster if ext else 512
    buf = bytearray(64)
    values = dict(magic=b"WithouFreSpacExt" if ext else b"WithoutFreeSpace", version=2,
                  tracks=tracks, entries=len(entries), sectors=len(entries) * tracks, inuse=0,
                  data=first // 512 if ext else 0, ext=0)
    values.update(fields)
    put(buf, PRL_FIELDS, values)
    room(buf, first)
    for i, e in enumerate(entries):
        at = first + (e - 1) * cluster if 0 < e < 100 else 0
        struct.pack_into("<I", buf, 64 + i * 4, at // unit if e < 100 else e)
        if at and full:
            room(buf, at + cluster)
            buf[at:at + cluster] = bytes([i + 1]) * cluster
    return buf


def qcow(clusters=(1, 0, 2), cluster_bits=9, l2_bits=6, backing=b"", **fields):
    """Version 1; one L2 table; clusters: place in order from 1, 0: absent, >= 100: as is."""
    size, l1 = len(clusters) << cluster_bits, 48 + (len(backing) + 7) // 8 * 8
    buf = bytearray(48) + backing
    values = dict(magic=0x514649fb, version=1, backing_offset=48 if backing else 0,
                  backing_size=len(backing), size=size, cluster_bits=cluster_bits,
                  l2_bits=l2_bits, crypt=0, l1=l1)
    values.update(fields)
    put(buf, QCOW_FIELDS, values)
    one = 1 << cluster_bits
    table = (l1 + 8 + one - 1) // one * one
    first = (table + (8 << l2_bits) + one - 1) // one * one
    room(buf, first)
    struct.pack_into(">Q", buf, l1, table)
    for i, c in enumerate(clusters):
        at = first + (c - 1) * one if 0 < c < 100 else c
        struct.pack_into(">Q", buf, table + i * 8, at)
        if 0 < c < 100:
            room(buf, at + one)
            buf[at:at + one] = bytes([i + 1]) * one
    return buf


def seeds(fmt):
    """Of each format a few, for fuzzing: (name, bytes)."""
    if fmt == "vdi":
        yield "data", vdi((0, ABSENT, 0xfffffffe), full=False) + b"\1" * 4096
        yield "static", vdi((0, 1), full=False, type=2)
        yield "empty", vdi(())
    elif fmt == "vpc":
        yield "dynamic", vpc()
        yield "table-last", vpc((0, None), table=8192)
        yield "by-geometry", vpc(creator=b"vpc ", h_block=8192)
        yield "fixed", vpc_fixed()
    elif fmt == "parallels":
        yield "ext", parallels()
        yield "old", parallels(ext=False)
        yield "unclean", parallels((1, 1, 9), inuse=0x746f6e59)
    elif fmt == "qcow":
        yield "data", qcow()
        yield "l2-4k", qcow((1, 0, 2), cluster_bits=12, l2_bits=9)
        yield "overlay", qcow(backing=b"base.img")
    elif fmt == "dmg":
        yield "plist", dmg()[0]
        yield "fork", dmg(fork=True)[0]
        yield "bzip2", dmg(((DMG_BZIP2, 4), (DMG_IGNORE, 4), (DMG_RAW, 2)), fork=True)[0]


DMG_ZERO, DMG_RAW, DMG_IGNORE, DMG_ZLIB, DMG_BZIP2 = 0, 1, 2, 0x80000005, 0x80000006
DMG_LZFSE, DMG_COMMENT = 0x80000007, 0x7ffffffe
DMG_TRAILER = {"data": (0x18, ">Q"), "rsrc": (0x28, ">Q"), "rsrc_len": (0x30, ">Q"),
               "plist": (0xd8, ">Q"), "plist_len": (0xe0, ">Q"), "sectors": (0x1ec, ">Q")}


def dmg(chunks=((DMG_ZLIB, 8), (DMG_ZERO, 16), (DMG_RAW, 4)), fork=False, odd=0, patch=None,
        **fields):
    """chunks: type and sectors each; chunk i holds the byte i + 1.  patch: i -> a dict of
    sector, count, offset, length to say instead.  Returns the file and the guest's bytes."""
    buf, guest, sector, table = bytearray(b"data"), bytearray(), 0, bytearray()
    for i, (kind, count) in enumerate(chunks):
        data = bytes([i + 1]) * (count * 512)
        if kind == DMG_ZLIB:
            stored = zlib.compress(data)
        elif kind == DMG_BZIP2:
            stored = bz2.compress(data)
        elif kind == DMG_RAW:
            stored = data
        else:
            stored, data = b"", bytes(len(data))
        said = dict(sector=sector, count=count, offset=len(buf) - 4, length=len(stored))
        said.update((patch or {}).get(i, {}))
        table += struct.pack(">IIQQQQ", kind, 0, said["sector"], said["count"],
                             said["offset"] & (2**64 - 1), said["length"])
        buf += stored
        guest += data
        sector += count
    table += struct.pack(">IIQQQQ", 0xffffffff, 0, sector, 0, 0, 0)
    mish = struct.pack(">IIQQQ", 0x6d697368, 1, 0, sector, 0) + bytes(172) + table
    at = len(buf)
    if fork:
        body = struct.pack(">I", len(mish)) + mish
        info = struct.pack(">IIII", 16, 16 + len(body), len(body), 0) + body
    else:
        text = base64.encodebytes(mish).decode().replace("\n", "\n\t\t")
        info = ("<plist><dict><data>\n\t\t%s</data></dict></plist>\n" % text).encode()
    buf += info + bytes(odd)
    trailer = bytearray(512)
    trailer[:4] = b"koly"
    values = dict(data=4, rsrc=at if fork else 0, rsrc_len=len(info) if fork else 0,
                  plist=0 if fork else at, plist_len=0 if fork else len(info), sectors=sector)
    values.update(fields)
    put(trailer, DMG_TRAILER, values)
    return buf + trailer, bytes(guest)
