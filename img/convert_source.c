/*
 * convert_source.c - what there is to copy: the sources' extents, cut into
 * chunks of one buffer's worth of data.
 *
 * Neighbouring extents of one kind are joined, so that a fragmented map does not
 * make small requests; one chunk may hold several pieces of data with holes
 * between them, and holes of any size cost one segment.
 */
#include <errno.h>
#include <string.h>

#include "img/convert.h"
#include "img/img.h"

static const struct convert_source *source_at(const struct convert *c, uint64_t pos)
{
    const struct convert_source *s = c->src;

    while (pos >= s->start + s->length) {
        s++;
    }
    return s;
}

static enum convert_kind kind_of(const struct convert *c, unsigned flags, uint64_t pos)
{
    if (flags & (BLK_ST_ZERO | BLK_ST_READS_ZERO)) {
        /* Past the end of its backing file the target reads as zeros unwritten. */
        return c->has_backing && pos >= c->backing_size ? CONVERT_BACKING : CONVERT_ZERO;
    }
    if (flags & BLK_ST_DATA) {
        return CONVERT_DATA;
    }
    return c->has_backing ? CONVERT_BACKING : CONVERT_DATA;
}

static int status_at(const struct convert *c, struct blk_node *node, uint64_t off, uint64_t len,
                     struct blk_status *st)
{
    struct blk_node *below = blk_backing(node);
    int ret = c->has_backing ? co_status(node, off, len, st)
                             : co_status_above(node, NULL, off, len, st);

    if (!ret && c->has_backing && below && off >= blk_size(below) && !(st->flags & BLK_ST_ALLOCATED)) {
        st->flags |= BLK_ST_ZERO;
    }
    return ret;
}

/* Like status_at(), but an unreadable map becomes data to be tried, in ever
 * smaller pieces, when salvaging. */
static int status_or_salvage(const struct convert *c, struct blk_node *node, uint64_t off,
                             uint64_t len, struct blk_status *st)
{
    int ret;

    while ((ret = status_at(c, node, off, len, st)) < 0 && c->salvage) {
        if (len > CONVERT_SECTOR) {
            len = BLK_MAX((len / 4 + CONVERT_SECTOR - 1) & ~(CONVERT_SECTOR - 1ull),
                          CONVERT_SECTOR);
            continue;
        }
        if (!c->quiet) {
            img_warning("error while reading block status at offset %llu: %s",
                        (unsigned long long)off, strerror(-ret));
        }
        st->flags = BLK_ST_DATA;
        st->length = len;
        return 0;
    }
    return ret;
}

/* As QEMU: an extent ends at a whole cluster of its source if it reaches one. */
static void cut_tail(const struct convert_source *s, uint64_t off, struct blk_status *st)
{
    uint64_t tail = s->align ? (off + st->length) % s->align : 0;

    st->length -= st->length > tail ? tail : 0;
}

/* What needs no data may end within a sector, as a file does: is the rest of that the same? */
static void fill_sector(const struct convert *c, struct blk_node *node, uint64_t off,
                        enum convert_kind kind, struct blk_status *st)
{
    uint64_t at = off + st->length, in = at & (CONVERT_SECTOR - 1ull);
    uint64_t rest = in ? BLK_MIN(CONVERT_SECTOR - in, blk_size(node) - at) : 0;
    struct blk_status next;

    if (kind != CONVERT_DATA && rest && status_at(c, node, at, rest, &next) == 0 &&
        next.length == rest && kind_of(c, next.flags, c->pos) == kind) {
        st->length += rest;
    }
}

/* Ends stay on sectors: one that is partly data is copied whole. */
static void set_extent(struct convert *c, enum convert_kind kind, uint64_t len, uint64_t limit,
                       bool at_end)
{
    uint64_t whole = len & ~(CONVERT_SECTOR - 1ull);

    if (whole != len && (at_end || kind == CONVERT_DATA)) {
        whole += CONVERT_SECTOR;
    } else if (!whole) {
        kind = CONVERT_DATA;
        whole = CONVERT_SECTOR;
    }
    c->ext_kind = kind;
    c->ext_end = BLK_MIN(c->pos + whole, limit);
}

/* Compressed clusters are written whole: an extent shorter than one makes it all data, a longer
 * one ends at the last boundary it reaches.  As in QEMU also where the image ends. */
static void set_whole_clusters(struct convert *c, uint64_t source_end)
{
    uint64_t in = c->pos & (c->cluster - 1ull), len = c->ext_end - c->pos;

    if (!in && len >= c->cluster) {
        c->ext_end = c->pos + (len & ~(c->cluster - 1ull));
        return;
    }
    c->ext_kind = CONVERT_DATA;         /* read through the whole chain */
    c->ext_end = BLK_MIN(c->pos - in + c->cluster, source_end);
}

/* May the storage copy the extent?  Whole sectors that are there. */
static void set_host(struct convert *c, const struct blk_status *st)
{
    const unsigned place = BLK_ST_DATA | BLK_ST_OFFSET;
    uint64_t size, len;

    if (!c->offload || c->ext_kind != CONVERT_DATA ||
        (st->flags & (place | BLK_ST_COMPRESSED)) != place || !blk_is_protocol(st->host) ||
        !blk_can_copy(c->dst, st->host)) {
        return;
    }
    size = blk_size(st->host);
    len = size > st->host_offset ? BLK_MIN(size - st->host_offset, st->length) : 0;
    len &= ~(CONVERT_SECTOR - 1ull);
    if (len) {
        c->ext_host = st->host;
        c->ext_shift = st->host_offset - c->pos;
        c->ext_end = BLK_MIN(c->ext_end, c->pos + len);
    }
}

/* Learn the extent at c->pos. */
static int find_extent(struct convert *c)
{
    const struct convert_source *s = source_at(c, c->pos);
    uint64_t off = c->pos - s->start + s->skip, size = blk_size(s->node);
    uint64_t limit = s->start + s->length;
    struct blk_status st = { 0 };
    enum convert_kind kind;
    int ret;

    c->ext_src = s;
    c->ext_host = NULL;
    if (off >= size) {                  /* what rounding up to sectors added */
        c->ext_kind = kind_of(c, BLK_ST_ZERO, c->pos);
        c->ext_end = limit;
        if (c->compress) {
            set_whole_clusters(c, limit);
        }
        return 0;
    }
    if (c->has_backing && c->pos < c->backing_size) {
        limit = BLK_MIN(limit, c->backing_size);
    }
    ret = status_or_salvage(c, s->node, off, BLK_MIN(size - off, limit - c->pos), &st);
    if (ret < 0) {
        return convert_fail(c, ret, CONVERT_MAP, off);
    }
    cut_tail(s, off, &st);
    kind = kind_of(c, st.flags, c->pos);
    fill_sector(c, s->node, off, kind, &st);
    set_extent(c, kind, st.length, limit,
               off + st.length >= size || c->pos + st.length >= limit);
    set_host(c, &st);
    if (c->compress) {
        set_whole_clusters(c, s->start + s->length);
    }
    return 0;
}

/* How much of len bytes of data at c->pos goes into room bytes: all, or in an empty buffer up
 * to a cluster boundary of the target so that no two chunks write one cluster.  So writes are
 * those of QEMU, which takes one extent at a time, and so is the layout.  With compress, where
 * QEMU takes a cluster at a time, and where holes are data, too, the buffer is filled up. */
static uint64_t cut(const struct convert *c, uint64_t len, uint64_t room)
{
    uint64_t end;

    if (len <= room) {
        return len;
    }
    if (room < c->buf_size && !c->compress && c->sparse) {
        return 0;
    }
    if (!c->cluster) {
        return room;
    }
    end = (c->pos + room) & ~(c->cluster - 1ull);
    if (end > c->pos) {
        return end - c->pos;
    }
    return room == c->buf_size ? room : 0;
}

/* Where zeros at an extent's ends are left out each is by itself. */
static bool joins(const struct convert *c, const struct convert_seg *s,
                  const struct convert_seg *next)
{
    return (s->kind != CONVERT_DATA || c->compress || c->sparse <= CONVERT_SPARSE) &&
           s->kind == next->kind && s->src == next->src && s->fill == next->fill &&
           s->host == next->host &&
           (!s->host || s->host_offset + s->length == next->host_offset);
}

static void add_segment(struct convert *c, struct convert_chunk *ch, struct convert_seg *seg)
{
    struct convert_seg *last = ch->nsegs ? &ch->segs[ch->nsegs - 1] : NULL;

    if (last && joins(c, last, seg)) {
        last->length += seg->length;
    } else {
        ch->segs[ch->nsegs++] = *seg;
    }
    if (seg->kind == CONVERT_DATA) {
        ch->data += (size_t)seg->length;
    }
    ch->length += seg->length;
    c->pos += seg->length;
}

/* With compress: stop at this boundary, if the next cluster might not fit. */
static bool ends_clusters(const struct convert *c, const struct convert_chunk *ch)
{
    return !(c->pos & (c->cluster - 1ull)) &&
           (ch->nsegs > CONVERT_SEGS / 2 || c->buf_size - ch->data < c->cluster);
}

static int fill_chunk(struct convert *c, struct convert_chunk *ch)
{
    while (c->pos < c->total && ch->nsegs < CONVERT_SEGS) {
        struct convert_seg seg = { .offset = c->pos };
        int ret;

        if (c->compress && ch->nsegs && ends_clusters(c, ch)) {
            break;
        }
        if (c->pos >= c->ext_end && (ret = find_extent(c)) < 0) {
            return ret;
        }
        seg.kind = c->ext_kind;
        seg.src = c->ext_src;
        seg.length = c->ext_end - c->pos;
        if (seg.kind == CONVERT_ZERO && !c->sparse) {
            seg.kind = CONVERT_DATA;
            seg.fill = true;
        }
        if (seg.kind == CONVERT_DATA) {
            seg.host = c->ext_host;
            seg.host_offset = c->pos + c->ext_shift;
            seg.buf = ch->data;
            seg.length = cut(c, seg.length, c->buf_size - ch->data);
        }
        if (!seg.length) {
            break;
        }
        add_segment(c, ch, &seg);
    }
    if (c->compress && c->pos < c->total && c->pos & (c->cluster - 1ull)) {
        /* Dozens of sources in one cluster. */
        return convert_fail(c, -E2BIG, CONVERT_MAP, ch->offset);
    }
    return 0;
}

int convert_next(struct convert *c, struct convert_chunk *ch)
{
    int ret = 0;

    co_lock(&c->lock);
    ch->nsegs = 0;
    ch->data = 0;
    ch->length = 0;
    ch->offset = c->pos;
    if (!c->failure.err) {
        ret = fill_chunk(c, ch);
    }
    if (ret == 0 && ch->nsegs) {
        ch->ticket = c->next_ticket++;
    }
    co_unlock(&c->lock);
    return ret;
}

int convert_read_sources(const struct convert *c, uint64_t at, void *buf, size_t len)
{
    uint8_t *p = buf;
    int err = 0;

    while (len && !err) {
        const struct convert_source *s = source_at(c, at);
        size_t now = (size_t)BLK_MIN(len, s->start + s->length - at);

        err = co_read(s->node, at - s->start + s->skip, p, now);
        at += now;
        p += now;
        len -= now;
    }
    return err;
}

int convert_map_sources(const struct convert *c, uint64_t at, bool *data, uint64_t *len)
{
    const struct convert_source *s = source_at(c, at);
    uint64_t off = at - s->start + s->skip, left = s->start + s->length - at;
    struct blk_status st;
    int err;

    *data = false;
    *len = left;
    if (off >= blk_size(s->node)) {
        return 0;
    }
    err = co_status_above(s->node, NULL, off, BLK_MIN(left, blk_size(s->node) - off), &st);
    if (!err) {
        *data = !(st.flags & (BLK_ST_ZERO | BLK_ST_READS_ZERO));
        *len = st.length;
    }
    return err;
}
