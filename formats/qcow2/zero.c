/*
 * zero.c - whole clusters that become zeros or nothing: WRITE_ZEROES, DISCARD, and
 * unmapping for resize.
 *
 * Invariants
 *  - The core hands over whole clusters (the image's last one may be partial).
 *  - Host clusters are freed through qcow2_free_entry_later(): counted down and
 *    punched only when the removal of their pointer is durable.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>

enum wipe {
    WIPE_ZERO_KEEP,     /* reads as zeros, allocated clusters stay allocated */
    WIPE_ZERO,          /* reads as zeros, host clusters are freed */
    WIPE_DISCARD,       /* the same; what has no mapping at all stays so without a
                           backing file */
    WIPE_UNMAP,         /* no mapping at all: beyond a shrunk image's end */
};

/* The entry that replaces old, which may be old itself. */
static int wiped_entry(const struct qcow2 *q, enum wipe how, uint64_t old, bool backed,
                       uint64_t *out)
{
    enum qcow2_type t = qcow2_entry_type(q, old);

    *out = old;
    if (how == WIPE_UNMAP) {
        *out = 0;
        return 0;
    }
    if (t == QCOW2_ZERO_PLAIN || (t == QCOW2_ZERO_ALLOC && how == WIPE_ZERO_KEEP)) {
        return 0;
    }
    if (q->h.version < 3) {
        if (backed) {
            /* No way to say "zeros" over a backing file. */
            return how == WIPE_DISCARD ? 0 : -ENOTSUP;
        }
        *out = 0;
    } else if (how == WIPE_ZERO_KEEP && t == QCOW2_NORMAL && old & QCOW2_COPIED) {
        *out = old | QCOW2_ZERO;
    } else if (how != WIPE_DISCARD || t != QCOW2_UNALLOCATED || q->n->backing) {
        *out = QCOW2_ZERO;
    }
    return 0;
}

/* Entries [i, i+n) of a pinned slice. */
static int wipe_entries(struct qcow2 *q, struct qcow2_slice *s, unsigned i, uint64_t n,
                        enum wipe how, bool explicit)
{
    for (uint64_t k = 0; k < n; k++) {
        uint64_t old = qcow2_entry_get(q, s->word, i + (unsigned)k), new;
        bool backed = explicit || q->n->backing;
        int err = wiped_entry(q, how, old, backed, &new);
        if (err) {
            return err;
        }
        if (new == old) {
            continue;
        }
        qcow2_entry_put(q, s->word, i + (unsigned)k, new);
        qcow2_slice_dirty(q, s);
        if ((new & QCOW2_OFFSET_MASK) != (old & QCOW2_OFFSET_MASK) || old & QCOW2_COMPRESSED) {
            qcow2_free_entry_later(q, old);
        }
    }
    return 0;
}

/* Is there anything to do where there is no L2 table? */
static bool hole_needs_work(const struct qcow2 *q, enum wipe how)
{
    if (q->h.version < 3) {
        return how != WIPE_UNMAP && how != WIPE_DISCARD && q->n->backing;
    }
    return how != WIPE_UNMAP && (how != WIPE_DISCARD || q->n->backing);
}

/* Guest clusters [first, stop) of one L2 slice, registered as busy. */
static int wipe_busy(struct qcow2 *q, uint64_t first, uint64_t stop, enum wipe how, bool explicit)
{
    uint64_t guest = first << q->h.cluster_bits;
    struct qcow2_slice *s;
    int err = qcow2_external(q) ? qcow2_data_wipe(q, guest, (stop - first) << q->h.cluster_bits,
                                                  how != WIPE_ZERO_KEEP) : 0;

    err = err ? err : qcow2_l2_write(q, guest, &s);
    if (!err) {
        err = wipe_entries(q, s, qcow2_entry_index(q, guest), stop - first, how, explicit);
        qcow2_slice_put(s);
    }
    return err;
}

/* Guest clusters [first, end), one L2 slice after the other.  explicit: as if a
 * backing file held data there. */
static int wipe(struct qcow2 *q, uint64_t first, uint64_t end, enum wipe how, bool explicit)
{
    int err = q->corrupt ? -EIO : 0;

    while (!err && first < end) {
        uint64_t slice = qcow2_slice_index(q, first << q->h.cluster_bits);
        uint64_t l1 = qcow2_l1_index(q, slice), stop = BLK_MIN(end, (slice + 1) << q->slice_bits);
        if (!(q->l1[l1] & QCOW2_OFFSET_MASK) && !explicit && !hole_needs_work(q, how)) {
            first = BLK_MIN(end, (l1 + 1) << q->l2_bits);
            continue;
        }
        if (!(q->l1[l1] & QCOW2_OFFSET_MASK) && q->h.version < 3) {
            return -ENOTSUP;
        }
        struct qcow2_busy busy = { first, stop, NULL };
        qcow2_busy_enter(q, &busy);
        err = wipe_busy(q, first, stop, how, explicit);
        qcow2_busy_leave(q, &busy);
        if (!err) {
            err = qcow2_flush_if_much(q);
        }
        first = stop;
    }
    return err;
}

/* ---- parts of clusters --------------------------------------------------------------- */

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

/* Does the cluster of [off, end) read as zeros outside of it, without data of its own? */
static bool rest_reads_zero(struct qcow2 *q, uint64_t off, uint64_t end)
{
    uint64_t from = blk_align_down(off, q->cluster_size);
    struct qcow2_slice *s;
    enum qcow2_type t = QCOW2_UNALLOCATED;

    if (qcow2_l2_read(q, off, &s)) {
        return false;
    }
    if (s) {
        t = qcow2_entry_type(q, qcow2_entry_get(q, s->word, qcow2_entry_index(q, off)));
        qcow2_slice_put(s);
    }
    return t == QCOW2_ZERO_PLAIN || t == QCOW2_ZERO_ALLOC ||
           (t == QCOW2_UNALLOCATED && backing_reads_zero(q->n, from, off) &&
            backing_reads_zero(q->n, end, from + q->cluster_size));
}

int qcow2_zero_part(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct qcow2 *q = n->state;
    struct qcow2_busy busy = { off >> q->h.cluster_bits, (off >> q->h.cluster_bits) + 1, NULL };
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
        err = q->h.version < 3 ? 0      /* not allocated: zeros already */
              : wipe_busy(q, busy.first, busy.end,
                          flags & BLK_REQ_MAY_UNMAP ? WIPE_ZERO : WIPE_ZERO_KEEP, false);
    }
    qcow2_busy_leave(q, &busy);
    return err;
}

/* ---- requests -------------------------------------------------------------------------- */

static int wipe_request(struct blk_req *req, enum wipe how)
{
    struct qcow2 *q = req->node->state;
    return wipe(q, req->offset >> q->h.cluster_bits,
                qcow2_clusters(q, req->offset + req->length), how,
                req->flags & BLK_REQ_EXPLICIT);
}

int qcow2_zero_fiber(struct blk_req *req)
{
    return wipe_request(req, req->flags & BLK_REQ_MAY_UNMAP ? WIPE_ZERO : WIPE_ZERO_KEEP);
}

int qcow2_discard_fiber(struct blk_req *req)
{
    return wipe_request(req, WIPE_DISCARD);
}

int qcow2_unmap(struct qcow2 *q, uint64_t first, uint64_t end)
{
    return wipe(q, first, end, WIPE_UNMAP, false);
}
