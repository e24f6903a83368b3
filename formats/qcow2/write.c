/*
 * write.c - guest writes that the fast path does not take: several places, or
 * clusters that have to be allocated or un-shared first.
 *
 * One allocation: register the guest clusters as busy, get the slice, reserve
 * host clusters, read what the write does not cover of the first and last
 * cluster, write head + data + tail as one vectored write, then publish the L2
 * entries in memory.  flush.c keeps the order on disk.
 *
 * Invariants
 *  - Two fibers never change the same guest cluster's entry at once: busy ranges
 *    do not overlap.  Distinct clusters go on in parallel.
 *  - A failure before publishing gives the host clusters back and leaves the old
 *    mapping as it was.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* ---- busy ranges --------------------------------------------------------------------- */

bool qcow2_busy_hit(const struct qcow2 *q, uint64_t first, uint64_t end)
{
    for (const struct qcow2_busy *b = q->busy; b; b = b->next) {
        if (first < b->end && b->first < end) {
            return true;
        }
    }
    return false;
}

void qcow2_busy_enter(struct qcow2 *q, struct qcow2_busy *b)
{
    while (qcow2_busy_hit(q, b->first, b->end)) {
        co_wait_on(&q->busy_q);
    }
    b->next = q->busy;
    q->busy = b;
}

void qcow2_busy_leave(struct qcow2 *q, struct qcow2_busy *b)
{
    struct qcow2_busy **p = &q->busy;
    while (*p != b) {
        p = &(*p)->next;
    }
    *p = b->next;
    co_wake_all(&q->busy_q);
}

/* ---- one allocation ---------------------------------------------------------------------- */

/* A run of guest clusters in one slice that gets host clusters in one run. */
struct alloc {
    struct qcow2 *q;
    struct qcow2_slice *s;
    unsigned index;                 /* of the first entry */
    uint64_t guest;                 /* of the first cluster */
    uint64_t clusters;
    struct qcow2_space space;
    bool in_place;                  /* ZERO_ALLOC: the host clusters are there already */
};

static bool overwritable(const struct qcow2 *q, uint64_t e)
{
    return qcow2_entry_type(q, e) == QCOW2_NORMAL && e & QCOW2_COPIED;
}

static bool reusable(const struct qcow2 *q, uint64_t e)
{
    return qcow2_entry_type(q, e) == QCOW2_ZERO_ALLOC && e & QCOW2_COPIED;
}

int qcow2_entry_check(struct qcow2 *q, uint64_t e, uint64_t guest)
{
    if (qcow2_external(q) && !qcow2_external_sane(q, e, guest)) {
        return qcow2_external_bad(q, e, guest);
    }
    if (e & QCOW2_COMPRESSED) {
        return 0;
    }
    if (e & (QCOW2_L2_RESERVED | (QCOW2_OFFSET_MASK & (q->cluster_size - 1)) |
             (q->h.version < 3 ? QCOW2_ZERO : 0))) {
        return qcow2_mark_corrupt(q, "Cluster allocation offset %#llx unaligned or with reserved "
                                  "bits (guest offset: %#llx)", (unsigned long long)e,
                                  (unsigned long long)guest);
    }
    if (!qcow2_external(q) && e & QCOW2_COPIED && e & QCOW2_OFFSET_MASK &&
        qcow2_meta_hit(q, e & QCOW2_OFFSET_MASK)) {
        return qcow2_mark_corrupt(q, "Preventing invalid write on metadata (guest offset %#llx is "
                                  "mapped to %#llx)", (unsigned long long)guest,
                                  (unsigned long long)(e & QCOW2_OFFSET_MASK));
    }
    return 0;
}

/* How many clusters from the first on take the same treatment; 0: the first can
 * simply be overwritten (somebody else allocated it). */
static int alloc_plan(struct alloc *a, uint64_t max)
{
    struct qcow2 *q = a->q;
    uint64_t first = qcow2_entry_get(q, a->s->word, a->index);
    max = BLK_MIN(max, (1ull << q->slice_bits) - a->index);

    a->clusters = 0;
    a->in_place = reusable(q, first);
    for (uint64_t i = 0; i < max; i++) {
        uint64_t e = qcow2_entry_get(q, a->s->word, a->index + (unsigned)i);
        int err = qcow2_entry_check(q, e, a->guest + (i << q->h.cluster_bits));
        if (err) {
            return err;
        }
        if (overwritable(q, e) || reusable(q, e) != a->in_place) {
            break;
        }
        if (a->in_place &&
            (e & QCOW2_OFFSET_MASK) != (first & QCOW2_OFFSET_MASK) + (i << q->h.cluster_bits)) {
            break;
        }
        a->clusters++;
    }
    if (a->in_place) {
        a->space = (struct qcow2_space){ first & QCOW2_OFFSET_MASK, a->clusters, false };
    }
    return 0;
}

/* Host clusters for the plan's; in an external data file they have their place. */
static int alloc_place(struct alloc *a)
{
    if (qcow2_external(a->q)) {
        a->space = (struct qcow2_space){ a->guest, a->clusters, false };
        return 0;
    }
    return qcow2_alloc(a->q, a->clusters, false, &a->space);
}

static void alloc_undo(struct alloc *a)
{
    if (!a->in_place && !qcow2_external(a->q)) {
        qcow2_unalloc(a->q, a->space.offset, a->space.clusters);
    }
}

/* Old content of part of one cluster into buf; *zero when it is all zeros. */
static int cow_read(struct alloc *a, uint64_t cluster, uint64_t in, uint64_t len, uint8_t *buf,
                    bool *zero)
{
    struct qcow2 *q = a->q;
    uint64_t e = qcow2_entry_get(q, a->s->word, a->index + (unsigned)cluster);
    uint64_t guest = a->guest + (cluster << q->h.cluster_bits) + in;
    uint64_t have = guest < q->n->size ? BLK_MIN(len, q->n->size - guest) : 0;
    struct iovec iov = { buf, len };
    int err = 0;

    *zero = false;
    switch (qcow2_entry_type(q, e)) {
    case QCOW2_NORMAL:
        return co_read(q->data, (e & QCOW2_OFFSET_MASK) + in, buf, len);
    case QCOW2_DEFLATED:
        return qcow2_read_compressed(q, e, in, &iov, 1, 0, len);
    case QCOW2_UNALLOCATED:
        if (q->n->backing && guest < q->n->backing->size && have) {
            memset(buf + have, 0, len - have);
            iov.iov_len = have;
            err = co_read_backing(q->n, guest, &iov, 1, have);
            *zero = !err && blk_is_zero(buf, len);
            return err;
        }
        break;
    default:
        break;
    }
    memset(buf, 0, len);
    *zero = true;
    return 0;
}

struct cow {                        /* what surrounds the data in its clusters */
    uint8_t *buf;                   /* head, then tail */
    uint64_t head, tail;            /* bytes */
    bool head_zero, tail_zero;
};

static int cow_prepare(struct alloc *a, uint64_t off, uint64_t len, struct cow *c)
{
    struct qcow2 *q = a->q;
    uint64_t end = a->guest + (a->clusters << q->h.cluster_bits);
    int err = 0;

    c->head = off - a->guest;
    c->tail = end - (off + len);
    if (!c->head && !c->tail) {
        return 0;
    }
    c->buf = blk_buf_alloc(c->head + c->tail);
    if (!c->buf) {
        return -ENOMEM;
    }
    if (c->head) {
        err = cow_read(a, 0, 0, c->head, c->buf, &c->head_zero);
    }
    if (!err && c->tail) {
        err = cow_read(a, a->clusters - 1, q->cluster_size - c->tail, c->tail, c->buf + c->head,
                       &c->tail_zero);
    }
    /* Space that was never written reads as zeros already. */
    if (!err && a->space.fresh && c->head_zero) {
        c->head = 0;
    }
    if (!err && a->space.fresh && c->tail_zero) {
        c->tail = 0;
    }
    return err;
}

/* One write: [head] data [tail]. */
static int alloc_write(struct alloc *a, const struct blk_req *req, uint64_t off, uint64_t pos,
                       uint64_t len)
{
    struct qcow2 *q = a->q;
    struct cow c = { 0 };
    int err = cow_prepare(a, off, len, &c), cnt = 0;
    struct iovec *iov = malloc(sizeof(*iov) * (size_t)(req->iovcnt + 3));
    uint64_t head = off - a->guest, base = head - c.head;

    err = err ? err : iov ? 0 : -ENOMEM;
    if (!err) {
        if (c.head) {
            iov[cnt++] = (struct iovec){ c.buf, c.head };
        }
        cnt += blk_iov_slice(req->iov, req->iovcnt, pos, len, iov + cnt, req->iovcnt + 1);
        if (c.tail) {
            iov[cnt++] = (struct iovec){ c.buf + head, c.tail };
        }
        err = co_writev(q->data, a->space.offset + base, iov, cnt, c.head + len + c.tail, 0);
    }
    free(iov);
    blk_buf_free(c.buf);
    return err;
}

static void alloc_publish(struct alloc *a)
{
    struct qcow2 *q = a->q;
    for (uint64_t i = 0; i < a->clusters; i++) {
        unsigned at = a->index + (unsigned)i;
        uint64_t old = qcow2_entry_get(q, a->s->word, at);
        if (!a->in_place) {
            qcow2_free_entry_later(q, old);
        }
        qcow2_entry_put(q, a->s->word, at,
                        (a->space.offset + (i << q->h.cluster_bits)) | QCOW2_COPIED);
    }
    qcow2_slice_dirty(q, a->s);
}

/* Allocate for the front of [off, off+len): *done bytes of it, 0 when it turned out
 * to be allocated by now. */
static int write_allocating(struct qcow2 *q, const struct blk_req *req, uint64_t off, uint64_t pos,
                            uint64_t len, uint64_t *done)
{
    uint64_t slice_end = (qcow2_slice_index(q, off) + 1) << q->slice_bits;
    struct qcow2_busy busy = { off >> q->h.cluster_bits,
                               BLK_MIN(((off + len - 1) >> q->h.cluster_bits) + 1, slice_end), NULL };
    struct alloc a = { .q = q, .index = qcow2_entry_index(q, off),
                       .guest = blk_align_down(off, q->cluster_size) };
    int err;

    *done = 0;
    qcow2_busy_enter(q, &busy);
    err = qcow2_l2_write(q, off, &a.s);
    if (err) {
        goto leave;
    }
    err = alloc_plan(&a, busy.end - busy.first);
    if (err || !a.clusters) {
        goto put;
    }
    if (!a.in_place) {
        err = alloc_place(&a);
    }
    if (err) {
        goto put;
    }
    a.clusters = a.space.clusters;
    *done = BLK_MIN(len, a.guest + (a.clusters << q->h.cluster_bits) - off);
    err = alloc_write(&a, req, off, pos, *done);
    if (!err) {
        alloc_publish(&a);
    } else {
        alloc_undo(&a);
    }
put:
    qcow2_slice_put(a.s);
leave:
    qcow2_busy_leave(q, &busy);
    return err;
}

/* ---- the request ---------------------------------------------------------------------------- */

/* Bytes from off on that overwrite one run of host clusters; 0: allocation needed. */
static int overwrite_run(struct qcow2 *q, uint64_t off, uint64_t len, uint64_t *host,
                         uint64_t *run)
{
    struct qcow2_slice *s;
    int err = qcow2_l2_read(q, off, &s);
    *run = 0;
    if (err || !s) {
        return err;
    }
    unsigned end = 1u << q->slice_bits;
    uint64_t in = off & (q->cluster_size - 1), want = 0;
    for (unsigned i = qcow2_entry_index(q, off); i < end && *run < len; i++) {
        uint64_t e = qcow2_entry_get(q, s->word, i);
        err = qcow2_entry_check(q, e, off + *run);
        if (err || !overwritable(q, e) || (*run && (e & QCOW2_OFFSET_MASK) != want)) {
            break;
        }
        *host = *run ? *host : (e & QCOW2_OFFSET_MASK) + in;
        want = (e & QCOW2_OFFSET_MASK) + q->cluster_size;
        *run += q->cluster_size - (*run ? 0 : in);
    }
    *run = BLK_MIN(*run, len);
    qcow2_slice_put(s);
    return err;
}

static int write_piece(struct qcow2 *q, struct blk_parts *parts, const struct blk_req *req,
                       uint64_t off, uint64_t pos, uint64_t len, uint64_t *done)
{
    uint64_t host = 0, run, first = off >> q->h.cluster_bits;
    int err = overwrite_run(q, off, len, &host, &run);

    *done = 0;
    if (err) {
        return err;
    }
    if (!run) {
        return write_allocating(q, req, off, pos, len, done);
    }
    if (qcow2_busy_hit(q, first, ((off + run - 1) >> q->h.cluster_bits) + 1)) {
        co_wait_on(&q->busy_q);         /* its mapping may be changing: look again */
        return 0;
    }
    *done = run;
    return blk_parts_add(parts, q->data, BLK_WRITE, host, pos, run);
}

int qcow2_write_plain(struct blk_req *req)
{
    struct qcow2 *q = req->node->state;
    struct blk_parts *parts = blk_parts_new(req->iov, req->iovcnt);
    uint64_t pos = 0;
    int err = parts ? 0 : -ENOMEM;

    if (q->corrupt) {
        err = -EIO;
    }
    while (!err && pos < req->length) {
        uint64_t done = 0;
        err = blk_parts_room(parts);
        if (!err) {
            err = write_piece(q, parts, req, req->offset + pos, pos, req->length - pos, &done);
        }
        pos += done;
    }
    int end = blk_parts_end(parts);
    err = err ? err : end;
    return err ? err : qcow2_flush_if_much(q);
}

int qcow2_write_fiber(struct blk_req *req)
{
    return req->flags & BLK_REQ_COMPRESSED ? qcow2_write_compressed(req) : qcow2_write_plain(req);
}

/* ---- preallocation ------------------------------------------------------------------------------ */

static int map_run(struct qcow2 *q, uint64_t guest, uint64_t clusters, uint64_t *done,
                   uint64_t *host_end)
{
    struct alloc a = { .q = q, .index = qcow2_entry_index(q, guest), .guest = guest };
    int err = qcow2_l2_write(q, guest, &a.s);

    *done = 1;
    if (err) {
        return err;
    }
    err = alloc_plan(&a, clusters);
    if (!err && a.clusters && !a.in_place) {
        err = alloc_place(&a);
        if (!err && qcow2_external(q)) {
            err = qcow2_data_clear(q, a.space.offset, a.space.clusters << q->h.cluster_bits);
        } else if (!err && !a.space.fresh) {
            err = co_write_zeroes(q->data, a.space.offset,
                                  a.space.clusters << q->h.cluster_bits, BLK_REQ_MAY_UNMAP);
        }
        if (!err) {
            a.clusters = a.space.clusters;
            alloc_publish(&a);
            *host_end = BLK_MAX(*host_end, a.space.offset + (a.clusters << q->h.cluster_bits));
        }
    }
    *done = BLK_MAX(a.clusters, 1u);
    qcow2_slice_put(a.s);
    return err ? err : qcow2_flush_if_much(q);
}

int qcow2_preallocate(struct qcow2 *q, uint64_t from, uint64_t to, enum blk_prealloc p,
                      struct blk_error *e)
{
    uint64_t host_end = 0;
    int err = 0;

    for (uint64_t at = blk_align_down(from, q->cluster_size); !err && at < to;) {
        uint64_t done = 0;
        err = map_run(q, at, qcow2_clusters(q, to - at), &done, &host_end);
        at += done << q->h.cluster_bits;
    }
    if (!err && qcow2_external(q)) {
        err = qcow2_data_resize(q, blk_align_up(to, q->cluster_size), p, e);
    } else if (!err && host_end > q->data->size) {
        err = blk_truncate(q->data, host_end, false,
                           p == BLK_PREALLOC_METADATA ? BLK_PREALLOC_OFF : p, e);
    }
    if (err) {
        blk_err_errno(e, -err, "Could not preallocate clusters");
    }
    return err;
}
