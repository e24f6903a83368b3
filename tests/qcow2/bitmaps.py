"""bitmaps.py - the persistent bitmaps of a qcow2 file, read from its bytes.

    bitmaps.read(path) -> {name: (flags, granularity, bytes of bits without zeros at the end)}
    bitmaps.entries(path) -> [(name, offset of the directory entry in the file)]
    bitmaps.dirty(path, name) -> [(offset, length)] as the bits say
"""
import struct

EXT = 0x23852875
IN_USE, AUTO = 1, 2


def extension(f):
    """(count, directory size, directory offset, cluster bits), or None."""
    f.seek(0)
    head = f.read(104)
    version, cluster_bits = struct.unpack('>I', head[4:8])[0], struct.unpack('>I', head[20:24])[0]
    at = struct.unpack('>I', head[100:104])[0] if version >= 3 else 72
    while True:
        f.seek(at)
        magic, length = struct.unpack('>II', f.read(8))
        if magic == 0:
            return None
        if magic == EXT:
            count, _, size, offset = struct.unpack('>IIQQ', f.read(24))
            return count, size, offset, cluster_bits
        at += 8 + (length + 7) // 8 * 8


def directory(f):
    ext = extension(f)
    if not ext:
        return
    count, _, at, cluster_bits = ext
    for _ in range(count):
        f.seek(at)
        table, entries, flags, _, gran, name, extra = struct.unpack('>QIIBBHI', f.read(24))
        f.seek(extra, 1)
        yield f.read(name).decode(), at, flags, gran, table, entries, cluster_bits
        at += (24 + extra + name + 7) // 8 * 8


def entries(path):
    with open(path, 'rb') as f:
        return [(name, at) for name, at, *_ in directory(f)]


def bits(f, table, count, cluster_bits):
    size = 1 << cluster_bits
    out = b''
    for i in range(count):
        f.seek(table + i * 8)
        entry = struct.unpack('>Q', f.read(8))[0]
        f.seek(entry & ~0x1ff)
        chunk = f.read(size) if entry & ~0x1ff else (b'\xff' if entry & 1 else b'\0') * size
        out += chunk.ljust(size, b'\0')
    return out.rstrip(b'\0')


def read(path):
    with open(path, 'rb') as f:
        return {name: (flags, 1 << gran, bits(f, table, count, cb) if not flags & IN_USE else None)
                for name, _, flags, gran, table, count, cb in list(directory(f))}


def dirty(path, name):
    _, gran, data = read(path)[name]
    out = []
    for i in range(len(data) * 8):
        if data[i // 8] >> i % 8 & 1:
            if out and sum(out[-1]) == i * gran:
                out[-1] = (out[-1][0], out[-1][1] + gran)
            else:
                out.append((i * gran, gran))
    return out
