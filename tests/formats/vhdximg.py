"""vhdximg.py - VHDX images to damage: made by platter-img or qemu-img, their structures
patched with the checksums right again."""
import os
import struct
import subprocess

SECTION, BAT_AT, BLOCK = 1 << 20, 2 << 20, 1 << 20
HEADERS, REGIONS = (0x10000, 0x20000), (0x30000, 0x40000)
META_AT = 3 << 20
LOG_AT, LOG_LEN = 1 << 20, 1 << 20
GUID = {name: bytes.fromhex(h) for name, h in {
    "params": "3767a1ca36fa434db3b633f0aa44e76b", "size": "2442a52f1bcd7648b2115dbed83bf4b8",
    "page83": "ab12cabee6b2234593efc309e000c746", "logical": "1dbf41816fa90947ba47f233a8faab5f",
    "physical": "c748a3cd5d4471449cc9e9885251c556"}.items()}


def crc32c(data):
    crc = 0xffffffff
    for b in data:
        crc = TABLE[(crc ^ b) & 255] ^ crc >> 8
    return crc ^ 0xffffffff


def _table():
    out = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (0x82f63b78 if i & 1 else 0)
        out.append(i)
    return out


TABLE = _table()


def sealed(data):
    data = bytearray(data)
    data[4:8] = bytes(4)
    data[4:8] = struct.pack("<I", crc32c(data))
    return bytes(data)


class Image:
    """1 MiB blocks; the first `written` of them hold data."""

    def __init__(self, path, img, io, size=8 << 20, written=3, options="block_size=1M"):
        self.path = path
        subprocess.run([img, "create", "-q", "-f", "vhdx", "-o", options, path, str(size)],
                       check=True)
        if written:
            subprocess.run([io, "-f", "vhdx", "-c", "write -q -P 1 0 %dM" % written, path],
                           check=True)

    def get(self, at, n):
        with open(self.path, "rb") as f:
            f.seek(at)
            return f.read(n)

    def put(self, at, data):
        with open(self.path, "r+b") as f:
            f.seek(at)
            f.write(data)
        return self

    def patch(self, base, length, off, data):
        """Inside a checksummed structure."""
        old = bytearray(self.get(base, length))
        old[off:off + len(data)] = data
        return self.put(base, sealed(old))

    def header(self, off, data, which=(0, 1)):
        for i in which:
            self.patch(HEADERS[i], 4096, off, data)
        return self

    def regions(self, off, data, which=(0, 1)):
        for i in which:
            self.patch(REGIONS[i], 65536, off, data)
        return self

    def item(self, name, data):
        table = self.get(META_AT, 65536)
        at = table.index(GUID[name])
        return self.put(META_AT + struct.unpack_from("<I", table, at + 16)[0], data)

    def bat(self, index, value):
        return self.put(BAT_AT + index * 8, struct.pack("<Q", value))

    def log(self, guid=b"\x11" * 16):
        """The headers say that there is a log."""
        return self.header(48, guid)

    def truncate(self, length):
        os.truncate(self.path, length)
        return self


def entry(descs, sequence=1, tail=0, guid=b"\x11" * 16, flushed=0, last=0, length=None):
    """A log entry.  descs: (offset, 4096 bytes) or (offset, length of zeros)."""
    count = (len(descs) + 2 + 127) // 128
    head = bytearray(count * 4096)
    data = b""
    for i, (off, what) in enumerate(descs):
        at = 64 + i * 32
        if isinstance(what, int):
            struct.pack_into("<4sIQQQ", head, at, b"zero", 0, what, off, sequence)
        else:
            struct.pack_into("<4s4s8sQQ", head, at, b"desc", what[4092:], what[:8], off, sequence)
            data += b"data" + struct.pack("<I", sequence >> 32) + what[8:4092] + \
                struct.pack("<I", sequence & 0xffffffff)
    struct.pack_into("<4sIIIQII16sQQ", head, 0, b"loge", 0,
                     len(head) + len(data) if length is None else length, tail, sequence,
                     len(descs), 0, guid, flushed, last)
    return sealed(bytes(head) + data)


# Where each 4 KiB page of the fuzz harness's input lies in the image (tests/fuzz/vhdx.c).
PAGES = (0x10000, 0x20000, 0x30000, BAT_AT, META_AT, META_AT + 0x10000, LOG_AT, LOG_AT + 0x1000,
         LOG_AT + 0x2000, LOG_AT + 0x80000, LOG_AT + 0x81000, LOG_AT + 0x82000)


def packed(bat=(), log=(), guid=bytes(16), size=8 << 20, flags=0):
    """The pages of a small image; checksums of headers and regions are the harness's."""
    page = {at: bytearray(4096) for at in PAGES}
    for i in (0, 1):
        struct.pack_into("<4sIQ16s16s16sHHIQ", page[HEADERS[i]], 0, b"head", 0, 5 + i, b"f" * 16,
                         b"d" * 16, guid, 0, 1, LOG_LEN, LOG_AT)
    struct.pack_into("<4sIII16sQII16sQII", page[REGIONS[0]], 0, b"regi", 0, 2, 0,
                     bytes.fromhex("6677c22d23f600429d64115e9bfd4a08"), BAT_AT, 1 << 20, 1,
                     bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e"), META_AT, 1 << 20, 1)
    struct.pack_into("<8sHH", page[META_AT], 0, b"metadata", 0, 5)
    at = 0x10000
    for i, (name, value) in enumerate((
            ("params", struct.pack("<II", BLOCK, flags)), ("size", struct.pack("<Q", size)),
            ("page83", b"p" * 16), ("logical", struct.pack("<I", 512)),
            ("physical", struct.pack("<I", 512)))):
        struct.pack_into("<16sIII", page[META_AT], 32 + 32 * i, GUID[name], at, len(value), 4)
        page[META_AT + 0x10000][at - 0x10000:at - 0x10000 + len(value)] = value
        at += len(value)
    struct.pack_into("<%dQ" % len(bat), page[BAT_AT], 0, *bat)
    for at, data in log:
        for k in range(0, len(data), 4096):
            page[LOG_AT + at + k][:] = data[k:k + 4096]
    return b"".join(bytes(page[at]) for at in PAGES)


def seeds():
    yield "empty", packed()
    yield "blocks", packed(bat=((4 << 20) | 6, 2, (5 << 20) | 6, 5, 1))
    yield "states", packed(bat=(0, 1, 2, 3, 4, 5, 7, (4 << 20) | 7))
    log = entry([(BAT_AT, struct.pack("<Q", (4 << 20) | 6).ljust(4096, b"\0"))], flushed=4 << 20,
                last=6 << 20)
    zero = entry([(BAT_AT, 8192), (META_AT + 0x20000, bytes(4096))], sequence=2, tail=0x80000)
    yield "log", packed(log=((0, log),), guid=b"\x11" * 16)
    yield "logs", packed(log=((0, log), (0x80000, zero)), guid=b"\x11" * 16)
