"""qcow2patch.py - find and change single fields of a qcow2 image, to damage it
on purpose.  Knows the header, L1 and L2 entries and refcounts of any width;
offsets and cluster numbers are the file's own."""
import struct

COPIED = 1 << 63
COMPRESSED = 1 << 62
OFFSET = 0x00fffffffffffe00


class Image:
    def __init__(self, name):
        self.f = open(name, "r+b")
        (magic, self.version, _, _, self.cluster_bits, self.size, _, self.l1_size, self.l1_offset,
         self.rt_offset, self.rt_clusters, _, _) = struct.unpack(">IIQIIQIIQQIIQ", self.at(0, 72))
        assert magic == 0x514649fb
        self.cluster = 1 << self.cluster_bits
        order = struct.unpack(">I", self.at(96, 4))[0] if self.version >= 3 else 4
        self.refcount_bits = 1 << order
        extended = self.version >= 3 and self.get64(72) & 1 << 4
        self.l2_entry = 16 if extended else 8       # bytes; a bitmap follows the entry

    def close(self):
        self.f.close()

    def at(self, offset, length):
        self.f.seek(offset)
        return self.f.read(length)

    def put(self, offset, data):
        self.f.seek(offset)
        self.f.write(data)

    def get64(self, offset):
        return struct.unpack(">Q", self.at(offset, 8))[0]

    def set64(self, offset, value):
        self.put(offset, struct.pack(">Q", value))

    def l1_entries(self):
        """(where the entry is, entry) of each L2 table there is."""
        for i in range(self.l1_size):
            entry = self.get64(self.l1_offset + 8 * i)
            if entry & OFFSET:
                yield self.l1_offset + 8 * i, entry

    def l2_entries(self):
        """(where the entry is, entry) of each cluster with data of its own, not compressed."""
        for _, l1 in self.l1_entries():
            table = l1 & OFFSET
            for at in range(table, table + self.cluster, self.l2_entry):
                entry = self.get64(at)
                if entry & OFFSET and not entry & COMPRESSED:
                    yield at, entry

    def refcount_place(self, cluster):
        """(byte offset, bit shift) of a cluster's refcount; the block must be there."""
        per_block = self.cluster * 8 // self.refcount_bits
        block = self.get64(self.rt_offset + 8 * (cluster // per_block)) & OFFSET
        assert block, "no refcount block for cluster %d" % cluster
        bit = cluster % per_block * self.refcount_bits
        return block + bit // 8, bit % 8

    def get_refcount(self, offset):
        at, shift = self.refcount_place(offset >> self.cluster_bits)
        n = max(self.refcount_bits // 8, 1)
        value = int.from_bytes(self.at(at, n), "big")
        return (value >> shift) & ((1 << self.refcount_bits) - 1)

    def set_refcount(self, offset, count):
        at, shift = self.refcount_place(offset >> self.cluster_bits)
        n = max(self.refcount_bits // 8, 1)
        mask = (1 << self.refcount_bits) - 1
        assert count <= mask
        value = int.from_bytes(self.at(at, n), "big") & ~(mask << shift)
        self.put(at, (value | count << shift).to_bytes(n, "big"))

    def append_cluster(self):
        """A new cluster at the end of the file; its offset."""
        self.f.seek(0, 2)
        offset = (self.f.tell() + self.cluster - 1) // self.cluster * self.cluster
        self.put(offset, b"\xa5" * self.cluster)
        return offset
