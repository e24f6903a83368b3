"""
qcow2img.py - qcow2 images written field by field, for tests that need an image
no sane program would write.

An Image is laid out in memory with consistent refcounts and COPIED flags; its
header fields can be overridden before save(), and any byte can be patched with
poke() before or after.  Nothing here is clever: what the specification calls a
field is an attribute or a keyword of the same name.

    img = Image(size=1 << 20, cluster_bits=16)
    img.write(0, b"x" * 65536)
    img.header["l1_size"] = 0x80000000
    img.poke64(img.l2_entry(0), 0x1234)
    img.save("test.qcow2")
"""
import os
import struct
import zlib

MAGIC = 0x514649FB
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET_MASK = 0x00FFFFFFFFFFFE00

# (name, offset, struct format)
FIELDS = [
    ("magic", 0, ">I"), ("version", 4, ">I"), ("backing_file_offset", 8, ">Q"),
    ("backing_file_size", 16, ">I"), ("cluster_bits", 20, ">I"), ("size", 24, ">Q"),
    ("crypt_method", 32, ">I"), ("l1_size", 36, ">I"), ("l1_table_offset", 40, ">Q"),
    ("refcount_table_offset", 48, ">Q"), ("refcount_table_clusters", 56, ">I"),
    ("nb_snapshots", 60, ">I"), ("snapshots_offset", 64, ">Q"),
    ("incompatible_features", 72, ">Q"), ("compatible_features", 80, ">Q"),
    ("autoclear_features", 88, ">Q"), ("refcount_order", 96, ">I"),
    ("header_length", 100, ">I"), ("compression_type", 104, ">B"),
]
OFFSET_OF = {name: offset for name, offset, _ in FIELDS}
FORMAT_OF = {name: fmt for name, _, fmt in FIELDS}

EXT_END = 0
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_TABLE = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537BE77
EXT_DATA_FILE = 0x44415441

INCOMPAT_DIRTY, INCOMPAT_CORRUPT, INCOMPAT_DATA_FILE = 1, 2, 4
INCOMPAT_COMPRESSION, INCOMPAT_EXTL2 = 8, 16


def raw_deflate(data, level=6):
    """The deflate stream qcow2 stores: raw, a window of 4 KiB."""
    c = zlib.compressobj(level, zlib.DEFLATED, -12)
    return c.compress(data) + c.flush()


def feature_entry(kind, bit, name):
    """One 48-byte entry of the feature name table."""
    return struct.pack(">BB46s", kind, bit, name)


class Image:
    def __init__(self, size=1 << 20, version=3, cluster_bits=16, refcount_order=4,
                 backing=None, backing_format=None, extensions=(), incompatible=0,
                 compatible=0, autoclear=0, compression_type=0, header_length=None,
                 data_file=None, extended_l2=False, l1_size=None):
        self.size, self.version = size, version
        self.cluster_bits, self.cs = cluster_bits, 1 << cluster_bits
        self.refcount_order = refcount_order
        self.extended_l2 = extended_l2
        self.entry_size = 16 if extended_l2 else 8
        self.l2_entries = self.cs // self.entry_size
        self.buf = bytearray(self.cs)
        self.refs = [1]                     # refcount of every host cluster
        self.l2_tables = {}                 # L1 index -> host offset
        self.patches = []                   # applied by save(), in order
        if extended_l2:
            incompatible |= INCOMPAT_EXTL2
        if data_file is not None:
            incompatible |= INCOMPAT_DATA_FILE

        self.reftable_clusters = 1
        self.reftable = self.alloc()
        self.refblocks = [self.alloc()]
        need = -(-size // (self.cs * self.l2_entries)) if size else 0
        self.l1_size = need if l1_size is None else l1_size
        self.l1 = self.alloc(max(1, -(-self.l1_size * 8 // self.cs)))

        self.extensions = list(extensions)
        if backing_format is not None:
            self.extensions.insert(0, (EXT_BACKING_FORMAT, _bytes(backing_format)))
        if data_file is not None:
            self.extensions.insert(0, (EXT_DATA_FILE, _bytes(data_file)))
        self.backing = _bytes(backing) if backing is not None else None
        if header_length is None:
            header_length = 112 if version >= 3 else 72
        self.header = {
            "magic": MAGIC, "version": version, "backing_file_offset": 0,
            "backing_file_size": 0, "cluster_bits": cluster_bits, "size": size,
            "crypt_method": 0, "l1_size": self.l1_size, "l1_table_offset": self.l1,
            "refcount_table_offset": self.reftable,
            "refcount_table_clusters": self.reftable_clusters, "nb_snapshots": 0,
            "snapshots_offset": 0,
        }
        if version >= 3:
            self.header.update({
                "incompatible_features": incompatible, "compatible_features": compatible,
                "autoclear_features": autoclear, "refcount_order": refcount_order,
                "header_length": header_length, "compression_type": compression_type,
            })

    # ---- space ----------------------------------------------------------------

    def alloc(self, clusters=1):
        """Append clusters with refcount 1; their host offset."""
        off = len(self.refs) * self.cs
        self.refs += [1] * clusters
        self.buf += bytes(clusters * self.cs)
        return off

    def set_refcount(self, offset, count):
        """What save() writes as the refcount of the cluster at offset."""
        self.refs[offset >> self.cluster_bits] = count

    @property
    def end(self):
        return len(self.buf)

    # ---- guest data -----------------------------------------------------------

    def l2_table(self, guest):
        """Host offset of the L2 table for a guest offset, made when missing."""
        index = guest // (self.cs * self.l2_entries)
        if index not in self.l2_tables:
            off = self.alloc()
            self.l2_tables[index] = off
            struct.pack_into(">Q", self.buf, self.l1 + 8 * index, off | COPIED)
        return self.l2_tables[index]

    def l1_entry(self, guest):
        return self.l1 + 8 * (guest // (self.cs * self.l2_entries))

    def l2_entry(self, guest):
        """Host offset of the L2 entry of a guest offset."""
        table = self.l2_table(guest)
        return table + self.entry_size * ((guest >> self.cluster_bits) % self.l2_entries)

    def set_entry(self, guest, value, bitmap=None):
        at = self.l2_entry(guest)
        struct.pack_into(">Q", self.buf, at, value)
        if self.extended_l2:
            struct.pack_into(">Q", self.buf, at + 8, 0xFFFFFFFF if bitmap is None else bitmap)

    def write(self, guest, data):
        """Whole clusters of data at an aligned guest offset, freshly allocated."""
        assert guest % self.cs == 0
        first = None
        for pos in range(0, len(data), self.cs):
            off = self.alloc()
            chunk = data[pos:pos + self.cs]
            self.buf[off:off + len(chunk)] = chunk
            self.set_entry(guest + pos, off | COPIED)
            first = off if first is None else first
        return first

    def zero(self, guest, prealloc=False):
        off = (self.alloc() | COPIED) if prealloc else 0
        self.set_entry(guest, off | ZERO)
        return off & OFFSET_MASK

    def compressed_entry(self, host, nbytes):
        """The descriptor of nbytes of compressed data at host."""
        x = 62 - (self.cluster_bits - 8)
        sectors = ((host & 511) + nbytes + 511) // 512 - 1
        return COMPRESSED | host | (sectors << x)

    def write_compressed(self, guest, stream, host=None):
        """Store a stream that is compressed already; host offset of the stream."""
        if host is None:
            host = self.alloc(max(1, -(-len(stream) // self.cs)))
        self.buf[host:host + len(stream)] = stream
        self.set_entry(guest, self.compressed_entry(host, len(stream)), bitmap=0)
        return host

    def data(self, guest):
        """Host offset the L2 entry of guest points at."""
        return struct.unpack_from(">Q", self.buf, self.l2_entry(guest))[0] & OFFSET_MASK

    # ---- refcounts --------------------------------------------------------------

    def refs_per_block(self):
        return (self.cs * 8) >> self.refcount_order

    def _grow_refblocks(self):
        while len(self.refblocks) * self.refs_per_block() < len(self.refs):
            self.refblocks.append(self.alloc())
        assert len(self.refblocks) * 8 <= self.reftable_clusters * self.cs

    def _write_refcounts(self):
        bits, per = 1 << self.refcount_order, self.refs_per_block()
        for i, block in enumerate(self.refblocks):
            struct.pack_into(">Q", self.buf, self.reftable + 8 * i, block)
            for j, count in enumerate(self.refs[i * per:(i + 1) * per]):
                if bits >= 8:
                    n = bits // 8
                    self.buf[block + n * j:block + n * (j + 1)] = count.to_bytes(n, "big")
                else:
                    at, shift = block + j * bits // 8, j * bits % 8
                    self.buf[at] = (self.buf[at] & ~(((1 << bits) - 1) << shift)) | count << shift

    def refcount_at(self, offset):
        """Host offset of the refcount (8 bits and more) of the cluster at offset."""
        block, index = divmod(offset >> self.cluster_bits, self.refs_per_block())
        return self.refblocks[block] + (index << self.refcount_order) // 8

    # ---- the header ---------------------------------------------------------------

    def _write_header(self):
        h = self.header
        pos = h.get("header_length", 72) if self.version >= 3 else 72
        pos = pos if 72 <= pos <= 4096 and pos % 8 == 0 else 112
        for kind, body in self.extensions:
            piece = struct.pack(">II", kind, len(body)) + body + bytes(-len(body) % 8)
            self.buf[pos:pos + len(piece)] = piece
            pos += len(piece)
        pos += 8                                  # the end marker, zero already
        if self.backing is not None:
            if not h["backing_file_offset"]:
                h["backing_file_offset"] = pos
            if not h["backing_file_size"]:
                h["backing_file_size"] = len(self.backing)
            at = h["backing_file_offset"]
            if at + len(self.backing) <= len(self.buf):
                self.buf[at:at + len(self.backing)] = self.backing
        for name, offset, fmt in FIELDS:
            if name in h:
                struct.pack_into(fmt, self.buf, offset, h[name])

    # ---- patches and the file -------------------------------------------------------

    def poke(self, offset, data):
        """Bytes to lay over the finished image (beyond the end: it grows)."""
        self.patches.append((offset, bytes(data)))

    def poke16(self, offset, value):
        self.poke(offset, struct.pack(">H", value))

    def poke32(self, offset, value):
        self.poke(offset, struct.pack(">I", value))

    def poke64(self, offset, value):
        self.poke(offset, struct.pack(">Q", value))

    def build(self):
        self._grow_refblocks()
        self._write_refcounts()
        self._write_header()
        out = bytearray(self.buf)
        for offset, data in self.patches:
            if offset + len(data) > len(out):
                out += bytes(offset + len(data) - len(out))
            out[offset:offset + len(data)] = data
        return bytes(out)

    def save(self, path, length=None):
        """Write the file; length cuts it short or makes it longer (sparse)."""
        data = self.build()
        with open(path, "wb") as f:
            f.write(data if length is None else data[:length])
            if length is not None:
                f.truncate(length)
        return path


def _bytes(value):
    return value.encode() if isinstance(value, str) else bytes(value)


def patch(path, offset, data):
    """Overwrite bytes of an existing file."""
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def patch_field(path, name, value):
    """Overwrite one header field of an existing file."""
    patch(path, OFFSET_OF[name], struct.pack(FORMAT_OF[name], value))


def peek(path, offset, fmt):
    with open(path, "rb") as f:
        f.seek(offset)
        data = f.read(struct.calcsize(fmt))
    return struct.unpack(fmt, data)[0]


def field(path, name):
    """One header field of an existing file."""
    return peek(path, OFFSET_OF[name], FORMAT_OF[name])


def entries(path, guest=0):
    """(L1 entry, L2 entry) of a guest offset in an existing, sane image."""
    cs = 1 << field(path, "cluster_bits")
    extl2 = field(path, "version") >= 3 and field(path, "incompatible_features") & INCOMPAT_EXTL2
    size = 16 if extl2 else 8
    per = cs // size
    l1e = peek(path, field(path, "l1_table_offset") + 8 * (guest // (cs * per)), ">Q")
    l2 = l1e & OFFSET_MASK
    if not l2 or l2 + cs > os.path.getsize(path):
        return l1e, 0
    return l1e, peek(path, l2 + size * ((guest // cs) % per), ">Q")
