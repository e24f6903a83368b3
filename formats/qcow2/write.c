/*
 * write.c - guest writes that the fast path does not take: several places, or
 * clusters that have to be allocated or un-shared first.
 *
 * One allocation: register the guest clusters as busy, get the slice, reserve
 * host clusters, read what the write does not cover of the first and last
 * subcluster, write head + data + tail as one vectored write, then publish the L2
 * entries in memory.  flush.c keeps the order on disk.
 *
 * With extended L2 a new host cluster takes over only the subclusters that are
 * written to (and those its predecessor held); the others go on being read from
 * below.  Without it a cluster is its only subcluster.
 *
 * Invariants
 *  - Two fibers never change the same guest subcluster's state at once: busy ranges
 *    do not overlap.  Distinct ones go on in parallel, in one cluster too once it
 *    has its host cluster; whoever gives it one takes all of it.
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
    uint64_t from, to;              /* bytes behind guest that are written: whole subclusters,
                                       or up to what can be overwritten */
    struct qcow2_space space;
    bool in_place;                  /* the host clusters are there already, ours alone */
};

static enum qcow2_type alloc_type(const struct alloc *a, uint64_t cluster, unsigned sc,
                                  unsigned *run)
{
    unsigned at = a->index + (unsigned)cluster;
    return qcow2_sub_type(a->q, qcow2_entry_get(a->q, a->s->word, at),
                          qcow2_bitmap_get(a->q, a->s->word, at), sc, run);
}

/* Has the cluster a host cluster of its own? */
static bool reusable(const struct qcow2 *q, uint64_t e)
{
    return qcow2_has_host(q, e) && e & QCOW2_COPIED;
}

int qcow2_entry_check(struct qcow2 *q, uint64_t e, uint64_t map, uint64_t guest)
{
    uint64_t host = e & QCOW2_OFFSET_MASK;
    unsigned run;
    if ((qcow2_external(q) && !qcow2_external_sane(q, e, guest)) ||
        qcow2_sub_type(q, e, map, 0, &run) == QCOW2_INVALID) {
        return qcow2_entry_bad(q, e, map, guest, true);
    }
    if (e & QCOW2_COMPRESSED) {
        return 0;
    }
    if (host & (q->cluster_size - 1) || (q->h.version < 3 && e & QCOW2_ZERO)) {
        return qcow2_entry_bad(q, e, map, guest, true);
    }
    if (!qcow2_external(q) && e & QCOW2_COPIED && host && qcow2_meta_hit(q, host)) {
        return qcow2_write_prevented(q, host, true);
    }
    return 0;
}

/* How many clusters from the first on take the same treatment; 0: the first can
 * simply be overwritten at sc (somebody else allocated it). */
static int alloc_plan(struct alloc *a, unsigned sc, uint64_t max)
{
    struct qcow2 *q = a->q;
    uint64_t first = qcow2_entry_get(q, a->s->word, a->index);
    unsigned run;
    max = BLK_MIN(max, (1ull << q->slice_bits) - a->index);

    a->clusters = 0;
    a->in_place = reusable(q, first);
    for (uint64_t i = 0; i < max; i++, sc = 0) {
        unsigned at = a->index + (unsigned)i;
        uint64_t e = qcow2_entry_get(q, a->s->word, at);
        int err = qcow2_entry_check(q, e, qcow2_bitmap_get(q, a->s->word, at),
                                    a->guest + (i << q->h.cluster_bits));
        if (err) {
            return err;
        }
        if (reusable(q, e) != a->in_place ||
            (a->in_place && alloc_type(a, i, sc, &run) == QCOW2_NORMAL)) {
            break;
        }
        if (a->in_place &&
            (e & QCOW2_OFFSET_MASK) != (first & QCOW2_OFFSET_MASK) + (i << q->h.cluster_bits)) {
            break;
        }
        a->clusters++;
    }
    if (a->in_place) {
        a->space = (struct qcow2_space){ .offset = first & QCOW2_OFFSET_MASK, .clusters = a->clusters };
    }
    return 0;
}

/* Host clusters for the plan's; in an external data file they have their place. */
static int alloc_place(struct alloc *a)
{
    if (qcow2_external(a->q)) {
        a->space = (struct qcow2_space){ .offset = a->guest, .clusters = a->clusters };
        return 0;
    }
    /* All of them in one run, as QEMU; where there is only so much space, any of it. */
    return qcow2_alloc(a->q, a->clusters, a->q->file->can_grow, &a->space);
}

static void alloc_undo(struct alloc *a)
{
    if (!a->in_place && !qcow2_external(a->q)) {
        qcow2_unalloc(a->q, a->space.offset, a->space.clusters);
    }
}

/* What is written of the host clusters for [off, off+len), and so allocated by it. */
static void alloc_span(struct alloc *a, uint64_t off, uint64_t len)
{
    struct qcow2 *q = a->q;
    uint64_t last = a->clusters - 1, begin = off - a->guest, end = begin + len;
    unsigned first_at = a->index, last_at = a->index + (unsigned)last, run;

    a->from = blk_align_down(begin, q->sub_size);
    a->to = blk_align_up(end, q->sub_size);
    if (!q->wide) {
        return;
    }
    if (a->in_place) {
        /* What may be overwritten is not copied: others may be writing to it. */
        if (alloc_type(a, 0, qcow2_sub_index(q, begin), &run) == QCOW2_NORMAL) {
            a->from = begin;
        }
        if (alloc_type(a, last, qcow2_sub_index(q, end - 1), &run) == QCOW2_NORMAL) {
            a->to = end;
        }
        return;
    }
    uint64_t old = qcow2_bitmap_get(q, a->s->word, first_at);
    if (qcow2_entry_get(q, a->s->word, first_at) & QCOW2_COMPRESSED) {
        a->from = 0;
    } else if ((uint32_t)old) {
        a->from = BLK_MIN(a->from, (uint64_t)__builtin_ctz((uint32_t)old) << q->sub_shift);
    }
    old = qcow2_bitmap_get(q, a->s->word, last_at);
    if (qcow2_entry_get(q, a->s->word, last_at) & QCOW2_COMPRESSED) {
        a->to = a->clusters << q->h.cluster_bits;
    } else if ((uint32_t)old) {
        uint64_t held = 32 - (unsigned)__builtin_clz((uint32_t)old);
        a->to = BLK_MAX(a->to, (last << q->h.cluster_bits) + (held << q->sub_shift));
    }
}

/* Old content of subclusters alike of one cluster into buf; *zero when it is all zeros and, as
 * QEMU has it, none of it lies beyond the end of the image. */
static int cow_read_run(struct alloc *a, uint64_t cluster, uint64_t in, uint64_t len,
                        enum qcow2_type type, uint8_t *buf, bool *zero)
{
    struct qcow2 *q = a->q;
    uint64_t e = qcow2_entry_get(q, a->s->word, a->index + (unsigned)cluster);
    uint64_t guest = a->guest + (cluster << q->h.cluster_bits) + in;
    uint64_t have = guest < q->n->size ? BLK_MIN(len, q->n->size - guest) : 0;
    struct iovec iov = { buf, len };
    int err = 0;

    *zero = false;
    switch (type) {
    case QCOW2_NORMAL:
        blk_event(q->file, "cow_read");
        return co_read(q->data, (e & QCOW2_OFFSET_MASK) + in, buf, len);
    case QCOW2_DEFLATED:
        return qcow2_read_compressed(q, e, in, &iov, 1, 0, len);
    case QCOW2_UNALLOCATED:
    case QCOW2_UNALLOC_HOST:
        if (q->n->backing && guest < q->n->backing->size && have) {
            memset(buf + have, 0, len - have);
            iov.iov_len = have;
            err = co_read_backing(q->n, guest, &iov, 1, have);
            *zero = !err && have == len && blk_is_zero(buf, len);
            return err;
        }
        break;
    default:
        break;
    }
    memset(buf, 0, len);
    *zero = have == len;
    return 0;
}

/* Old content of [pos, pos+len) behind a->guest, in one cluster. */
static int cow_read(struct alloc *a, uint64_t pos, uint64_t len, uint8_t *buf, bool *zero)
{
    struct qcow2 *q = a->q;
    int err = 0;

    *zero = true;
    while (len && !err) {
        uint64_t in = pos & (q->cluster_size - 1), cluster = pos >> q->h.cluster_bits;
        unsigned run;
        enum qcow2_type t = alloc_type(a, cluster, qcow2_sub_index(q, pos), &run);
        uint64_t now = BLK_MIN(len, ((uint64_t)run << q->sub_shift) - (in & (q->sub_size - 1)));
        bool z;
        err = cow_read_run(a, cluster, in, now, t, buf, &z);
        *zero &= z;
        pos += now;
        buf += now;
        len -= now;
    }
    return err;
}

/* Is the space not what a crash may bring back?  Places in an external data file never change. */
static bool space_is_new(const struct alloc *a)
{
    bool new = !a->in_place;

    for (uint64_t i = 0; new && qcow2_external(a->q) && i < a->clusters; i++) {
        new = !qcow2_has_host(a->q, qcow2_entry_get(a->q, a->s->word, a->index + (unsigned)i));
    }
    return new;
}

struct cow {                        /* what surrounds the data in its subclusters */
    uint8_t *buf;                   /* head, then tail */
    uint64_t head, tail;            /* bytes */
    bool head_zero, tail_zero;
};

static int cow_prepare(struct alloc *a, uint64_t off, uint64_t len, struct cow *c)
{
    uint64_t begin = off - a->guest, end = begin + len;
    int err = 0;

    c->head = begin - a->from;
    c->tail = a->to - end;
    if (!c->head && !c->tail) {
        return 0;
    }
    c->buf = blk_buf_alloc(c->head + c->tail);
    if (!c->buf) {
        return -ENOMEM;
    }
    if (c->head) {
        err = cow_read(a, a->from, c->head, c->buf, &c->head_zero);
    }
    if (!err && c->tail) {
        err = cow_read(a, end, c->tail, c->buf + c->head, &c->tail_zero);
    }
    if (err || (c->head && !c->head_zero) || (c->tail && !c->tail_zero)) {
        return err;
    }
    /* As QEMU: zeros around the data are space that reads as zeros, as it does where nothing
     * was ever written.  A cluster in use has its space, or the image looks preallocated to
     * a map. */
    uint64_t at = a->space.offset + a->from;
    struct blk_node *data = a->q->data;
    /* Where a crash may still find the old content there must be no zeros in between. */
    bool ours = space_is_new(a) && !a->q->crypt;
    if (a->space.fresh) {
        c->head = c->tail = 0;
        if (data->drv->reserve) {
            data->drv->reserve(data, at, a->to - a->from);
        }
    } else if (ours && !co_write_zeroes(data, at, a->to - a->from, BLK_REQ_FAST_ZERO)) {
        c->head = c->tail = 0;
    }
    return 0;
}

/* What the storage copies it does between head and tail. */
static int alloc_copy(struct alloc *a, const struct blk_req *req, uint64_t at, uint64_t pos,
                      uint64_t len, const struct cow *c)
{
    struct qcow2 *q = a->q;
    const uint8_t *tail = c->buf + (at - a->space.offset - a->from);
    int err = co_copy(q->data, at, req->from, req->from_offset + pos, len);

    if (!err && c->head) {
        err = co_write(q->data, at - c->head, c->buf, c->head, 0);
    }
    if (!err && c->tail) {
        err = co_write(q->data, at + len, tail, c->tail, 0);
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
    struct iovec *iov;
    uint64_t head = off - a->guest - a->from, base = off - a->guest - c.head;

    if (!err && req->op == BLK_COPY) {
        err = alloc_copy(a, req, a->space.offset + base + c.head, pos, len, &c);
        blk_buf_free(c.buf);
        return err;
    }
    iov = malloc(sizeof(*iov) * (size_t)(req->iovcnt + 3));
    err = err ? err : iov ? 0 : -ENOMEM;
    if (!err) {
        if (c.head) {
            iov[cnt++] = (struct iovec){ c.buf, c.head };
        }
        cnt += blk_iov_slice(req->iov, req->iovcnt, pos, len, iov + cnt, req->iovcnt + 1);
        if (c.tail) {
            iov[cnt++] = (struct iovec){ c.buf + head, c.tail };
        }
        blk_event(q->file, "write_aio");
        if (c.head || c.tail) {
            blk_event(q->file, "cow_write");
        }
        err = co_writev(q->data, a->space.offset + base, iov, cnt, c.head + len + c.tail, 0);
    }
    free(iov);
    blk_buf_free(c.buf);
    return err;
}

/* The bitmap of a cluster whose bytes [from, to) are allocated now. */
static uint64_t alloc_bitmap(const struct alloc *a, uint64_t cluster, uint64_t old)
{
    struct qcow2 *q = a->q;
    uint64_t start = cluster << q->h.cluster_bits, end = start + q->cluster_size;
    uint64_t from = BLK_MAX(a->from, start), to = BLK_MIN(a->to, end);

    if (from >= to) {
        return old;                 /* preallocation: space, and nothing in it */
    }
    uint64_t first = (from - start) >> q->sub_shift, n = ((to - 1 - start) >> q->sub_shift) + 1;
    uint64_t mask = ((1ull << n) - 1) & ~((1ull << first) - 1);
    return (old | mask) & ~(mask << 32);
}

static void alloc_publish(struct alloc *a)
{
    struct qcow2 *q = a->q;
    for (uint64_t i = 0; i < a->clusters; i++) {
        unsigned at = a->index + (unsigned)i;
        uint64_t old = qcow2_entry_get(q, a->s->word, at);
        uint64_t map = old & QCOW2_COMPRESSED ? 0 : qcow2_bitmap_get(q, a->s->word, at);
        qcow2_bitmap_put(q, a->s->word, at, alloc_bitmap(a, i, map));
        if (!a->in_place) {
            qcow2_free_entry_later(q, old);
        }
        qcow2_entry_put(q, a->s->word, at,
                        (a->space.offset + (i << q->h.cluster_bits)) | QCOW2_COPIED);
    }
    qcow2_slice_dirty(q, a->s);
    q->linked = q->lazy;
}

/* Only the subclusters written to, when their cluster has its host cluster; else whole
 * clusters, whose entry changes. */
static struct qcow2_busy alloc_busy(struct qcow2 *q, uint64_t off, uint64_t len)
{
    uint64_t slice = qcow2_slice_index(q, off), span = (uint64_t)q->cluster_size << q->slice_bits;
    struct qcow2_slice *s = q->wide ? qcow2_slice_peek(q, slice) : NULL;
    uint64_t end = BLK_MIN(off + len, (slice + 1) * span);

    if (!s || !reusable(q, qcow2_entry_get(q, s->word, qcow2_entry_index(q, off)))) {
        off = blk_align_down(off, q->cluster_size);
        end = blk_align_up(end, q->cluster_size);
    }
    return qcow2_busy_range(q, off, end - off);
}

/* Requests look for places one after the other, in the order in which they came in: the
 * layout is that of a program that waits for each, and neighbours lie side by side. */
static void turn_begin(struct qcow2 *q, bool *turn)
{
    co_lock(&q->place_lock);
    *turn = true;
}

static void turn_end(struct qcow2 *q, bool *turn)
{
    if (*turn) {
        *turn = false;
        co_unlock(&q->place_lock);
    }
}

/* Allocate for the front of [off, off+len): *done bytes of it, 0 when others changed
 * the mapping meanwhile: look again.  Called in the request's turn, which ends when all of
 * it has its place. */
static int write_allocating(struct qcow2 *q, const struct blk_req *req, uint64_t off, uint64_t pos,
                            uint64_t len, bool *turn, uint64_t *done)
{
    struct qcow2_busy busy = alloc_busy(q, off, len);
    struct alloc a = { .q = q, .index = qcow2_entry_index(q, off),
                       .guest = blk_align_down(off, q->cluster_size) };
    int err;

    *done = 0;
    qcow2_busy_enter(q, &busy);
    err = qcow2_l2_write(q, off, &a.s);
    if (err) {
        goto leave;
    }
    err = alloc_plan(&a, qcow2_sub_index(q, off),
                     ((off + len - 1) >> q->h.cluster_bits) - (off >> q->h.cluster_bits) + 1);
    bool whole = !((busy.first | busy.end) & ((1u << q->sub_bits) - 1));
    if (err || !a.clusters || (!a.in_place && !whole)) {
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
    alloc_span(&a, off, *done);
    if (*done == len) {
        turn_end(q, turn);
    }
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
    unsigned i = qcow2_entry_index(q, off), end = 1u << q->slice_bits;
    unsigned sc = qcow2_sub_index(q, off), n = 0;
    uint64_t want = 0;
    for (; i < end && *run < len && (!*run || sc + n == 1u << q->sub_bits); i++) {
        uint64_t e = qcow2_entry_get(q, s->word, i), map = qcow2_bitmap_get(q, s->word, i);
        err = qcow2_entry_check(q, e, map, off + *run);
        sc = *run ? 0 : sc;
        if (err || !(e & QCOW2_COPIED) || qcow2_sub_type(q, e, map, sc, &n) != QCOW2_NORMAL ||
            (*run && (e & QCOW2_OFFSET_MASK) != want)) {
            break;
        }
        *host = *run ? *host : (e & QCOW2_OFFSET_MASK) + (off & (q->cluster_size - 1));
        want = (e & QCOW2_OFFSET_MASK) + q->cluster_size;
        *run += ((uint64_t)n << q->sub_shift) - (*run ? 0 : off & (q->sub_size - 1));
    }
    *run = BLK_MIN(*run, len);
    qcow2_slice_put(s);
    return err;
}

static int write_piece(struct qcow2 *q, struct blk_parts *parts, const struct blk_req *req,
                       uint64_t off, uint64_t pos, uint64_t len, bool *turn, uint64_t *done)
{
    uint64_t host = 0, run;
    int err = overwrite_run(q, off, len, &host, &run);

    /* Out of turn, so that L2 tables for many requests are read side by side. */
    if (!err && !run && !*turn) {
        turn_begin(q, turn);
        err = overwrite_run(q, off, len, &host, &run);
    }
    *done = 0;
    if (err) {
        return err;
    }
    if (!run) {
        return write_allocating(q, req, off, pos, len, turn, done);
    }
    turn_end(q, turn);
    struct qcow2_busy b = qcow2_busy_range(q, off, run);
    if (qcow2_busy_hit(q, b.first, b.end)) {
        co_wait_on(&q->busy_q);         /* its mapping may be changing: look again */
        return 0;
    }
    *done = run;
    blk_event(q->file, "write_aio");
    if (req->op == BLK_COPY) {
        return blk_parts_copy(parts, q->data, host, req->from, req->from_offset + pos, run);
    }
    return blk_parts_add(parts, q->data, BLK_WRITE, host, pos, run);
}

int qcow2_write_plain(struct blk_req *req)
{
    struct qcow2 *q = req->node->state;
    struct blk_parts *parts = blk_parts_new(req->iov, req->iovcnt);
    uint64_t pos = 0;
    bool turn = false;
    int err = parts ? 0 : -ENOMEM;

    if (q->corrupt) {
        err = -EIO;
    }
    while (!err && pos < req->length) {
        uint64_t done = 0;
        err = blk_parts_room(parts);
        if (!err) {
            err = write_piece(q, parts, req, req->offset + pos, pos, req->length - pos, &turn,
                              &done);
        }
        pos += done;
    }
    turn_end(q, &turn);
    int end = blk_parts_end(parts);
    err = err ? err : end;
    return err ? err : qcow2_flush_if_much(q);
}

bool qcow2_can_copy(const struct blk_node *n, const struct blk_node *from)
{
    const struct qcow2 *q = n->state;
    return q->data && !q->crypt && blk_can_copy(q->data, from);
}

int qcow2_write_fiber(struct blk_req *req)
{
    return req->flags & BLK_REQ_COMPRESSED ? qcow2_write_compressed(req) : qcow2_write_plain(req);
}

/* ---- preallocation ------------------------------------------------------------------------------ */

static int map_run(struct qcow2 *q, uint64_t guest, uint64_t to, uint64_t *done,
                   uint64_t *host_end, uint64_t *tail)
{
    struct alloc a = { .q = q, .index = qcow2_entry_index(q, guest), .guest = guest };
    int err = qcow2_l2_write(q, guest, &a.s);

    *done = 1;
    if (err) {
        return err;
    }
    err = alloc_plan(&a, 0, qcow2_clusters(q, to - guest));
    if (!err && a.clusters && !a.in_place) {
        err = alloc_place(&a);
        bool dirty = !a.space.fresh && !q->wide;
        /* What a device does not have is not zeroed; it refuses when all is mapped. */
        if (!err && (qcow2_external(q) || (dirty && !q->data->can_grow))) {
            err = qcow2_data_clear(q, a.space.offset, a.space.clusters << q->h.cluster_bits);
        } else if (!err && dirty) {
            err = co_write_zeroes(q->data, a.space.offset,
                                  a.space.clusters << q->h.cluster_bits, BLK_REQ_MAY_UNMAP);
        }
        if (!err) {
            a.clusters = a.space.clusters;
            alloc_publish(&a);
            uint64_t bytes = a.clusters << q->h.cluster_bits;
            *host_end = BLK_MAX(*host_end, a.space.offset + bytes);
            *tail = guest + bytes >= to ? a.space.offset + (to - guest) : 0;
        }
    }
    *done = BLK_MAX(a.clusters, 1u);
    qcow2_slice_put(a.s);
    return err ? err : qcow2_flush_if_much(q);
}

int qcow2_map_range(struct qcow2 *q, uint64_t from, uint64_t to, uint64_t *host_end,
                    uint64_t *tail)
{
    int err = 0;

    *host_end = *tail = 0;
    for (uint64_t at = from; !err && at < to;) {
        uint64_t done = 0;
        err = map_run(q, at, to, &done, host_end, tail);
        at += done << q->h.cluster_bits;
    }
    return err;
}
