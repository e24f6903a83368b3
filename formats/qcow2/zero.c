/*
 * zero.c - subclusters that become zeros or nothing: WRITE_ZEROES, DISCARD, and
 * unmapping for resize.
 *
 * What ends up in the tables is what QEMU puts there.
 *
 * Invariants
 *  - The core hands over whole clusters to discard and whole subclusters to zero (the
 *    image's last one may be partial); less than that goes through zero_part.
 *  - Host clusters are freed through qcow2_free_entry_later(): counted down and
 *    punched only when the removal of their pointer is durable.  With discard-no-unref they
 *    are kept, and punched at once: what a crash brings back of them may be zeros.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <string.h>

enum wipe {
    WIPE_ZERO_KEEP,     /* reads as zeros, allocated clusters stay allocated */
    WIPE_ZERO,          /* reads as zeros, host clusters are freed */
    WIPE_DISCARD,       /* the same; what has no mapping at all stays so without a
                           backing file */
    WIPE_UNMAP,         /* no mapping at all: beyond a shrunk image's end */
};

struct wiping {
    struct qcow2 *q;
    enum wipe how;
    bool explicit;      /* as if a backing file held data everywhere */
    struct qcow2_slice *s;
    uint64_t hole, hole_len;    /* in q->file: kept, to be punched */
};

struct l2_entry {
    uint64_t entry, map;
};

static bool backed(const struct wiping *w)
{
    return w->explicit || w->q->n->backing;
}

/* A whole cluster: what its entry becomes. */
static int wiped_cluster(const struct wiping *w, struct l2_entry *x)
{
    const struct qcow2 *q = w->q;
    bool host = qcow2_has_host(q, x->entry), there = host || x->entry & QCOW2_COMPRESSED;

    if (w->how == WIPE_UNMAP) {
        *x = (struct l2_entry){ 0, 0 };
        return 0;
    }
    if (q->h.version < 3) {
        if (backed(w)) {
            /* No way to say "zeros" over a backing file. */
            return w->how == WIPE_DISCARD ? 0 : -ENOTSUP;
        }
        x->entry = 0;
        return 0;
    }
    if (w->how == WIPE_DISCARD && !there && !q->n->backing) {
        return 0;
    }
    uint64_t keep = (w->how == WIPE_ZERO_KEEP || q->no_unref) && host ? x->entry : 0;
    x->entry = q->wide ? keep : keep | QCOW2_ZERO;
    x->map = q->wide ? QCOW2_MAP_ZEROS : 0;
    return 0;
}

/* Subclusters [first, end) of a cluster, not all of them. */
static int wiped_part(struct l2_entry *x, unsigned first, unsigned end)
{
    uint64_t mask = ((1ull << end) - 1) & ~((1ull << first) - 1);
    if (x->entry & QCOW2_COMPRESSED) {
        return -ENOTSUP;
    }
    x->map = (x->map & ~mask) | mask << 32;
    return 0;
}

static void punch(struct wiping *w)
{
    if (w->hole_len) {
        co_discard(w->q->file, w->hole, w->hole_len);       /* a gift, not a duty */
    }
    w->hole_len = 0;
}

/* The cluster of an entry that stays is this image's alone and holds nothing any more. */
static void punch_kept(struct wiping *w, uint64_t entry)
{
    uint64_t at = entry & QCOW2_OFFSET_MASK;

    if (!(entry & QCOW2_COPIED) || qcow2_external(w->q)) {
        return;
    }
    if (at != w->hole + w->hole_len) {
        punch(w);
        w->hole = at;
    }
    w->hole_len += w->q->cluster_size;
}

/* Guest bytes [off, end) of one cluster, whole subclusters; its entry is in w->s. */
static int wipe_entry(struct wiping *w, uint64_t off, uint64_t end)
{
    struct qcow2 *q = w->q;
    unsigned i = qcow2_entry_index(q, off), per = 1u << q->sub_bits;
    unsigned first = qcow2_sub_index(q, off), n = (unsigned)((end - off) >> q->sub_shift);
    struct l2_entry old = { qcow2_entry_get(q, w->s->word, i), qcow2_bitmap_get(q, w->s->word, i) };
    struct l2_entry new = old;
    int err = n == per ? wiped_cluster(w, &new) : wiped_part(&new, first, first + n);

    if (err || (new.entry == old.entry && new.map == old.map)) {
        return err;
    }
    qcow2_entry_put(q, w->s->word, i, new.entry);
    qcow2_bitmap_put(q, w->s->word, i, new.map);
    qcow2_slice_dirty(q, w->s);
    if ((new.entry ^ old.entry) & QCOW2_OFFSET_MASK || old.entry & QCOW2_COMPRESSED) {
        qcow2_free_entry_later(q, old.entry);
    } else if (q->no_unref && w->how != WIPE_ZERO_KEEP && n == per) {
        punch_kept(w, new.entry);
    }
    return 0;
}

static bool to_zeros(const struct wiping *w)
{
    return w->how == WIPE_ZERO || w->how == WIPE_ZERO_KEEP;
}

/* Is there anything to do where there is no L2 table? */
static bool hole_needs_work(const struct wiping *w)
{
    if (w->explicit) {
        return true;
    }
    if (w->q->h.version < 3) {
        return to_zeros(w);         /* a table, as in QEMU */
    }
    return w->how != WIPE_UNMAP && (w->how != WIPE_DISCARD || backed(w));
}

/* Guest bytes [off, end), whole subclusters of one slice, registered as busy. */
static int wipe_slice(struct wiping *w, uint64_t off, uint64_t end)
{
    struct qcow2 *q = w->q;
    int err = qcow2_external(q) ? qcow2_data_wipe(q, off, end - off, w->how != WIPE_ZERO_KEEP) : 0;

    err = err ? err : qcow2_l2_write(q, off, &w->s);
    if (err) {
        return err;
    }
    while (off < end && !err) {
        uint64_t stop = BLK_MIN(end, blk_align_down(off, q->cluster_size) + q->cluster_size);
        err = wipe_entry(w, off, stop);
        off = stop;
    }
    qcow2_slice_put(w->s);
    punch(w);
    return err;
}

/* Guest bytes [off, end), whole subclusters, one L2 slice after the other. */
static int wipe(struct wiping *w, uint64_t off, uint64_t end)
{
    struct qcow2 *q = w->q;
    uint64_t span = (uint64_t)q->cluster_size << q->slice_bits;
    uint64_t table = (uint64_t)q->cluster_size << q->l2_bits;
    int err = q->corrupt ? -EIO : 0;

    while (!err && off < end) {
        uint64_t stop = BLK_MIN(end, blk_align_down(off, span) + span);
        bool empty = !(q->l1[qcow2_l1_index(q, qcow2_slice_index(q, off))] & QCOW2_OFFSET_MASK);
        if (empty && !hole_needs_work(w)) {
            off = BLK_MIN(end, blk_align_down(off, table) + table);
            continue;
        }
        if (empty && q->h.version < 3 && to_zeros(w) && backed(w)) {
            return -ENOTSUP;
        }
        struct qcow2_busy busy = qcow2_busy_range(q, off, stop - off);
        qcow2_busy_enter(q, &busy);
        err = wipe_slice(w, off, stop);
        qcow2_busy_leave(q, &busy);
        err = err ? err : qcow2_flush_if_much(q);
        off = stop;
    }
    return err;
}

/* ---- parts of subclusters ------------------------------------------------------------ */

static bool backing_reads_zero(struct blk_node *n, uint64_t off, uint64_t end)
{
    struct blk_status st;

    end = n->backing ? BLK_MIN(end, n->backing->size) : off;
    for (; off < end; off += st.length) {
        if (co_status_above(n->backing, NULL, off, end - off, &st) || !(st.flags & BLK_ST_ZERO)) {
            return false;
        }
    }
    return true;
}

/* Does the subcluster of [off, end) read as zeros outside of it, without data of its own? */
static bool rest_reads_zero(struct qcow2 *q, uint64_t off, uint64_t end)
{
    uint64_t from = blk_align_down(off, q->sub_size);
    struct qcow2_slice *s;
    enum qcow2_type t = QCOW2_UNALLOCATED;
    unsigned run, i = qcow2_entry_index(q, off);

    if (qcow2_l2_read(q, off, &s)) {
        return false;
    }
    if (s) {
        t = qcow2_sub_type(q, qcow2_entry_get(q, s->word, i), qcow2_bitmap_get(q, s->word, i),
                           qcow2_sub_index(q, off), &run);
        qcow2_slice_put(s);
    }
    return t == QCOW2_ZERO_PLAIN || t == QCOW2_ZERO_ALLOC ||
           ((t == QCOW2_UNALLOCATED || t == QCOW2_UNALLOC_HOST) &&
            backing_reads_zero(q->n, from, off) &&
            backing_reads_zero(q->n, end, from + q->sub_size));
}

int qcow2_zero_part(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct qcow2 *q = n->state;
    struct qcow2_busy busy = qcow2_busy_range(q, off, len);
    struct wiping w = { .q = q, .how = flags & BLK_REQ_MAY_UNMAP ? WIPE_ZERO : WIPE_ZERO_KEEP };
    uint64_t sub = blk_align_down(off, q->sub_size);
    int err = -ENOTSUP;

    if (q->corrupt || (q->h.version < 3 && n->backing)) {
        return -ENOTSUP;
    }
    if (q->bm.tracking && !qcow2_bitmaps_touch(q, off, len)) {
        err = qcow2_bitmaps_mark(q, false);
        if (err) {
            return err;
        }
        qcow2_bitmaps_touch(q, off, len);
        err = -ENOTSUP;
    }
    qcow2_busy_enter(q, &busy);
    if (rest_reads_zero(q, off, off + len)) {
        err = wipe_slice(&w, sub, sub + q->sub_size);
    }
    qcow2_busy_leave(q, &busy);
    return err;
}

/* ---- requests -------------------------------------------------------------------------- */

int qcow2_write_zeros(struct qcow2 *q, uint64_t off, uint64_t end)
{
    void *buf = blk_buf_alloc(end - off);
    if (!buf) {
        return -ENOMEM;
    }
    memset(buf, 0, end - off);
    int err = co_write(q->n, off, buf, end - off, 0);
    blk_buf_free(buf);
    return err;
}

/* [off, end), whole subclusters of one cluster, which has more. */
static int wipe_in_cluster(struct wiping *w, uint64_t off, uint64_t end, bool fast)
{
    int err = wipe(w, off, end);
    if (err == -ENOTSUP && !fast) {             /* compressed: it has to be taken apart */
        err = qcow2_write_zeros(w->q, off, BLK_MIN(end, w->q->n->size));
    }
    return err;
}

int qcow2_zero_fiber(struct blk_req *req)
{
    struct qcow2 *q = req->node->state;
    /* Version 2 has no zero clusters: over nothing, nothing stands for zeros. */
    bool explicit = req->flags & BLK_REQ_EXPLICIT && (q->h.version >= 3 || q->n->backing);
    struct wiping w = { .q = q, .explicit = explicit,
                        .how = req->flags & BLK_REQ_MAY_UNMAP ? WIPE_ZERO : WIPE_ZERO_KEEP };
    uint64_t off = req->offset, end = blk_align_up(off + req->length, q->sub_size);
    bool fast = req->flags & BLK_REQ_FAST_ZERO;

    /* All that is left of the image's last cluster counts as all of it. */
    if (off + req->length == q->n->size && off <= blk_align_down(end - 1, q->cluster_size)) {
        end = blk_align_up(end, q->cluster_size);
    }
    uint64_t first = blk_align_up(off, q->cluster_size), last = blk_align_down(end, q->cluster_size);
    if (first > last) {
        return wipe_in_cluster(&w, off, end, fast);
    }
    int err = off < first ? wipe_in_cluster(&w, off, first, fast) : 0;
    err = err ? err : wipe(&w, first, last);
    return err || last == end ? err : wipe_in_cluster(&w, last, end, fast);
}

int qcow2_discard_fiber(struct blk_req *req)
{
    struct qcow2 *q = req->node->state;
    struct wiping w = { .q = q, .how = WIPE_DISCARD, .explicit = req->flags & BLK_REQ_EXPLICIT };
    return wipe(&w, req->offset, blk_align_up(req->offset + req->length, q->cluster_size));
}

int qcow2_unmap(struct qcow2 *q, uint64_t first, uint64_t end, bool tables)
{
    struct wiping w = { .q = q, .how = WIPE_UNMAP, .explicit = tables };
    return wipe(&w, first << q->h.cluster_bits, end << q->h.cluster_bits);
}
