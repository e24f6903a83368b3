"""vmdkimg.py - small VMDK images, byte by byte: seeds for the fuzz harness."""
import struct
import zlib

TEXT = """# Disk DescriptorFile
version=1
CID=deadbeef
parentCID=ffffffff
createType="%s"
%s
# Extent description
%s
"""


def sector(data):
    return data + bytes(-len(data) % 512)


def grain(number, data, packed):
    """A grain of the disk as it lies in the file."""
    if not packed:
        return data
    z = zlib.compress(data)
    return sector(struct.pack("<QI", number, len(z)) + z)


def sparse(capacity=2048, size=16, per_table=8, flags=3, version=1, packed=False, grains=(0, 3, 17),
           zeroed=(), parent="", footer=False, kind="monolithicSparse"):
    """Grains of size sectors, some of them written."""
    tables = -(-capacity // (size * per_table))
    gd_at = 21
    first_table = gd_at + -(-tables * 4 // 512)
    data_at = first_table + tables
    entries, body = [0] * (tables * per_table), b""
    for g in grains:
        entries[g] = data_at + len(body) // 512
        body += grain(g * size, bytes([g + 1]) * (size * 512), packed)
    for g in zeroed:
        entries[g] = 1
    head = struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", version, flags, capacity, size, 1, 20,
                       per_table, gd_at if flags & 2 else 0, 2**64 - 1 if footer else gd_at, data_at,
                       0, b"\n \r\n", packed)
    text = (TEXT % (kind, parent and 'parentFileNameHint="%s"' % parent,
                    'RW %d SPARSE "x.vmdk"' % capacity)).encode()
    out = sector(head) + text.ljust(20 * 512, b"\0")
    out += sector(struct.pack("<%dI" % tables, *range(first_table, data_at)))
    for t in range(tables):
        out += sector(struct.pack("<%dI" % per_table,
                                  *entries[t * per_table:(t + 1) * per_table]))
    out += body
    if footer:
        out += sector(struct.pack("<QII", 1, 0, 3))
        out += sector(head[:56] + struct.pack("<Q", gd_at) + head[64:]) + bytes(512)
    return out


def cowd(capacity=4096, size=1, grains=(0, 5, 4095)):
    entries, body = [0] * 4096, b""
    data_at = 6 + 32
    for g in grains:
        entries[g] = data_at + len(body) // 512
        body += bytes([g % 250 + 1]) * (size * 512)
    head = struct.pack("<4s9I", b"COWD", 1, 3, capacity, size, 5, 1, 0, 1, 1)
    text = (TEXT % ("vmfsSparse", "", 'RW %d VMFSSPARSE "x.vmdk"' % capacity)).encode()
    out = head.ljust(512, b"\0") + text.ljust(4 * 512, b"\0")
    out += sector(struct.pack("<I", 6)) + struct.pack("<4096I", *entries)
    return out + body


def seeds():
    yield "sparse", sparse()
    yield "zeroed", sparse(flags=7, version=2, zeroed=(1, 2))
    yield "packed", sparse(flags=0x30003, version=3, packed=True, kind="streamOptimized")
    yield "footer", sparse(flags=0x30001, version=3, packed=True, footer=True,
                           kind="streamOptimized")
    yield "overlay", sparse(parent="base.vmdk")
    yield "cowd", cowd()
    yield "text", (TEXT % ("twoGbMaxExtentSparse", "", 'RW 2048 SPARSE "x-s001.vmdk"\n'
                           'RW 7 FLAT "x-f001.vmdk" 3')).encode()
