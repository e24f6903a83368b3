"""
replay.py - every file that a crash may have left, from a log of formats/logwrites.c
and tests/crash/workload.c.  Where several files are logged, each with a tag of its own,
there is a Host for each; flushes of one say nothing of the other.

What is certain after a crash at a point of the log: writes that were over before a
flush was submitted that is itself over by then, and FUA writes that are over.  Of
everything else that was submitted, each 512-byte sector may or may not be there.

What the guest may see is derived in the same way from its own marks: a sector holds
what the last durable operation put there, or what any later one did.
"""
import struct

RECORD = struct.Struct("<IBBHQQQ")
MAGIC = 0x474F4C50
SECTOR = 512
WRITE, ZEROES, DISCARD, FLUSH, FUA_WRITE = 1, 2, 3, 4, 5


class Event:
    __slots__ = ("type", "flags", "tag", "id", "offset", "length", "data", "over", "ok")

    def __init__(self, kind, flags, tag, ident, offset, length, data):
        self.type, self.flags, self.tag, self.id = kind, flags, tag, ident
        self.offset, self.length, self.data = offset, length, data
        self.over = None                # index of the record that ended it
        self.ok = False                 # ... without an error


def read_log(path):
    """Events in order, each with the index at which it was over."""
    with open(path, "rb") as f:
        raw = f.read()
    events, host, guest, pos = [], {}, {}, 0
    while pos < len(raw):
        magic, kind, flags, tag, ident, offset, length = RECORD.unpack_from(raw, pos)
        assert magic == MAGIC, "the log is damaged at %d" % pos
        pos += RECORD.size
        kind = chr(kind)
        data = None
        if kind == "W":
            data = raw[pos:pos + length]
            pos += length
        e = Event(kind, flags, tag, ident, offset, length, data)
        if kind in "WZDFT":
            host[tag, ident] = e
        elif kind == "g":
            guest[ident] = e
        elif kind in "Cc":
            begun = host.pop((tag, ident)) if kind == "C" else guest.pop(ident)
            begun.over, begun.ok = len(events), offset == 0
        events.append(e)
    return events


def crash_points(rng, events, n):
    """n points of the log: half of them around flushes, the others anywhere, and its end."""
    flushes = [i for i, e in enumerate(events) if e.type == "F" and e.over is not None]
    near = [events[i].over + d for i in flushes for d in (0, 1)] + flushes
    pick = rng.sample(near, min(len(near), n // 2))
    pick += [rng.randrange(1, len(events)) for _ in range(n - len(pick) - 1)]
    return sorted(pick) + [len(events)]


class Disk:
    """The bytes of a file under writes."""

    def __init__(self, content):
        self.buf = bytearray(content)

    def copy(self):
        return Disk(self.buf)

    def put(self, offset, data):
        if offset + len(data) > len(self.buf):
            self.buf += bytes(offset + len(data) - len(self.buf))
        self.buf[offset:offset + len(data)] = data

    def apply(self, e, sectors=None):
        """The whole event, or only the sectors (indices into it) given."""
        if e.type == "T":
            if e.length < len(self.buf):
                del self.buf[e.length:]
            else:
                self.buf += bytes(e.length - len(self.buf))
        elif e.type == "W":
            if sectors is None:
                self.put(e.offset, e.data)
            else:
                for s in sectors:
                    self.put(e.offset + s * SECTOR, e.data[s * SECTOR:(s + 1) * SECTOR])
        elif e.type == "Z":
            self.put(e.offset, bytes(e.length))
        elif e.type == "D":
            end = min(e.offset + e.length, len(self.buf))
            if e.offset < end:
                self.buf[e.offset:end] = bytes(end - e.offset)


class Host:
    """Walks the log forward; knows what of a file is durable and what is in doubt."""

    def __init__(self, events, content, tag=0):
        self.events, self.pos, self.tag = events, 0, tag
        self.durable = Disk(content)
        self.doubt = []                 # submitted, not durable, in order

    def advance(self, point):
        """To the crash point: records before it have happened."""
        while self.pos < point:
            e = self.events[self.pos]
            if e.type in "WZDT" and e.tag == self.tag:
                self.doubt.append((self.pos, e))
            self.pos += 1
            if e.type == "C" and e.tag == self.tag:
                self._over(self.pos - 1)

    def _over(self, at):
        begun = [(i, e) for i, e in self.doubt if e.over == at and e.ok and e.flags & 1]
        for item in begun:                            # FUA
            self.doubt.remove(item)
            self.durable.apply(item[1])
        flush = self.flushes.get(at)
        if flush is None:
            return
        keep = []
        for i, e in self.doubt:
            if e.over is not None and e.over < flush and e.ok:
                self.durable.apply(e)
            else:
                keep.append((i, e))
        self.doubt = keep

    @property
    def flushes(self):
        """Index of a successful flush's end -> index of its submission."""
        if not hasattr(self, "_flushes"):
            self._flushes = {e.over: i for i, e in enumerate(self.events)
                             if e.type == "F" and e.tag == self.tag and e.over is not None and e.ok}
        return self._flushes

    def crash(self, rng, how):
        """A file as a crash here may leave it.  how: none, all, or random."""
        disk = self.durable.copy()
        for _, e in self.doubt:
            if how == "all":
                disk.apply(e)
            elif how == "random":
                choice = rng.random()
                if choice < 0.35:
                    continue
                n = -(-e.length // SECTOR)
                if choice < 0.65 or e.type != "W" or n < 2:
                    disk.apply(e)
                elif choice < 0.85:
                    disk.apply(e, range(rng.randrange(n)))        # a torn tail
                else:
                    disk.apply(e, [s for s in range(n) if rng.random() < 0.5])
        return disk


def guest_view(events, point, base):
    """For each sector: the set of values it may have.  0: zeros, -1: what it
    was in the beginning, k: what operation k wrote."""
    flushed = 0                         # operations over before this are durable
    for i, e in enumerate(events[:point]):
        if e.type == "g" and e.flags == FLUSH and e.over is not None and e.over < point and e.ok:
            flushed = max(flushed, i)
    may = [{-1} for _ in range(len(base) // SECTOR)]
    for i, e in enumerate(events[:point]):
        if e.type != "g" or e.flags == FLUSH:
            continue
        value = e.id if e.flags in (WRITE, FUA_WRITE) else 0
        durable = e.over is not None and e.ok and (
            e.over < flushed or (e.flags == FUA_WRITE and e.over < point))
        for s in range(e.offset // SECTOR, (e.offset + e.length) // SECTOR):
            if durable and e.flags != DISCARD:
                may[s] = {value}
            else:
                may[s].add(value)
    return may


def wrong_sector(content, may, base):
    """The first sector that holds what it must not, or None."""
    for s, values in enumerate(may):
        have = content[s * SECTOR:(s + 1) * SECTOR]
        for v in values:
            if v > 0:
                want = struct.pack("<Q", v << 32 | s) * (SECTOR // 8)
            else:
                want = bytes(SECTOR) if v == 0 else base[s * SECTOR:(s + 1) * SECTOR]
            if have == want:
                break
        else:
            return s
    return None
