/*
 * request_slow.c - what the core does to a request before a driver may see it:
 * zero-fill past the end, align (read-modify-write), split to the node's limits,
 * emulate FUA and zeroes.  Each such request gets a fiber.
 *
 * Invariants
 *  - A read-modify-write excludes every other overlapping write of the node: it
 *    registers its aligned range first (new overlapping writes then come here
 *    and wait), then waits for the overlapping writes that are already below.
 *  - Sub-requests satisfy the driver's contract; they carry BLK_REQ_INTERNAL so
 *    that they do not wait for their own range.
 */
#include "block/internal.h"
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define SLOW_BOUNCE (1024u * 1024)      /* bytes bounced at a time */
#define SLOW_WINDOW 8                   /* sub-requests in flight */

struct blk_serial {
    uint64_t off, end;
    struct blk_serial *next;
};

bool blk_serial_conflict(const struct blk_node *n, const struct blk_req *req)
{
    if (!n->serial || req->flags & BLK_REQ_INTERNAL) {
        return false;
    }
    for (const struct blk_serial *s = n->serial; s; s = s->next) {
        if (req->offset < s->end && s->off < req->offset + req->length) {
            return true;
        }
    }
    return false;
}

static bool write_below(const struct blk_node *n, const struct blk_serial *s)
{
    for (const struct blk_hop *h = n->writes; h; h = h->w_next) {
        if (h->offset < s->end && s->off < h->offset + h->w_length) {
            return true;
        }
    }
    return false;
}

static void serial_enter(struct blk_node *n, struct blk_serial *s)
{
    struct blk_req probe = { .offset = s->off, .length = s->end - s->off };
    while (blk_serial_conflict(n, &probe)) {
        co_wait_on(&n->serial_q);
    }
    s->next = n->serial;
    n->serial = s;
    while (write_below(n, s)) {
        co_wait_on(&n->serial_q);
    }
}

static void serial_leave(struct blk_node *n, struct blk_serial *s)
{
    struct blk_serial **p = &n->serial;
    while (*p != s) {
        p = &(*p)->next;
    }
    *p = s->next;
    co_wake_all(&n->serial_q);
}

/* ---- one contract-abiding piece ----------------------------------------------- */

/* Submit a piece straight to the node: aligned, within limits, no FUA. */
static void sub_done(struct blk_req *req)
{
    struct co_batch *b = req->arg;
    if (req->result < 0 && !b->err) {
        b->err = req->result;
    }
    b->pending--;
    if (b->waiter) {
        co_wake(b->waiter);
        b->waiter = NULL;
    }
}

static void sub_submit(struct co_batch *b, struct blk_node *n, struct blk_req *sub)
{
    b->pending++;
    sub->done = sub_done;
    sub->arg = b;
    sub->nhops = 0;
    sub->result = 0;
    sub->flags |= BLK_REQ_INTERNAL;
    blk_req_enter(n, sub);
}

static void sub_wait(struct co_batch *b, unsigned at_most)
{
    while (b->pending > at_most) {
        b->waiter = co_self();
        co_yield();
    }
}

static int sub_one(struct blk_node *n, enum blk_op op, uint64_t off, uint64_t len, void *buf,
                   unsigned flags)
{
    struct co_batch b = { 0 };
    struct iovec iov = { buf, len };
    struct blk_req sub = { .op = op, .flags = flags, .offset = off, .length = len,
                           .iov = buf ? &iov : NULL, .iovcnt = buf ? 1 : 0 };
    sub_submit(&b, n, &sub);
    sub_wait(&b, 0);
    return b.err;
}

struct slow_part {
    struct blk_req req;
    struct iovec *iov;
};

/* Aligned READ/WRITE of [off, off+len) with the buffers at pos of req's iov, in
 * pieces within the node's limits. */
static int split_rw(struct blk_node *n, const struct blk_req *req, uint64_t off, uint64_t pos,
                    uint64_t len)
{
    const struct blk_limits *lim = &n->limits;
    uint64_t max = lim->max_transfer ? lim->max_transfer : (uint64_t)1 << 30;
    int max_iov = (int)BLK_MIN(lim->max_iov ? lim->max_iov : IOV_MAX, (uint32_t)IOV_MAX);
    max = BLK_MAX(blk_align_down(max, lim->req_align), lim->req_align);
    struct co_batch b = { 0 };
    struct slow_part *parts = calloc(SLOW_WINDOW, sizeof(*parts));
    int err = parts ? 0 : -ENOMEM;
    unsigned at = 0;

    while (len && !err && !b.err) {
        if (at == SLOW_WINDOW) {
            sub_wait(&b, 0);            /* window used up: start a new one */
            at = 0;
        }
        struct slow_part *p = &parts[at++];
        uint64_t now = BLK_MIN(len, max);
        if (!p->iov && !(p->iov = malloc(sizeof(struct iovec) * (size_t)max_iov))) {
            err = -ENOMEM;
            break;
        }
        int cnt = blk_iov_slice(req->iov, req->iovcnt, pos, now, p->iov, max_iov);
        while (cnt < 0 && now > lim->req_align) {
            now = blk_align_up(now / 2, lim->req_align);
            cnt = blk_iov_slice(req->iov, req->iovcnt, pos, now, p->iov, max_iov);
        }
        if (cnt < 0) {
            err = -EINVAL;
            break;
        }
        p->req = (struct blk_req){ .op = req->op, .flags = req->flags & ~BLK_REQ_FUA,
                                   .offset = off, .length = now, .iov = p->iov, .iovcnt = cnt };
        sub_submit(&b, n, &p->req);
        off += now;
        pos += now;
        len -= now;
    }
    sub_wait(&b, 0);
    for (unsigned i = 0; parts && i < SLOW_WINDOW; i++) {
        free(parts[i].iov);
    }
    free(parts);
    return err ? err : b.err;
}

static bool part_mem_aligned(const struct blk_node *n, const struct blk_req *req)
{
    uint32_t a = n->limits.mem_align;
    if (a <= 1) {
        return true;
    }
    for (int i = 0; i < req->iovcnt; i++) {
        if (((uintptr_t)req->iov[i].iov_base | req->iov[i].iov_len) & (a - 1)) {
            return false;
        }
    }
    return true;
}

/* ---- reads ------------------------------------------------------------------------ */

static int bounce_read(struct blk_node *n, const struct blk_req *req, uint64_t len)
{
    uint32_t a = n->limits.req_align;
    uint64_t pos = 0;
    void *buf = blk_buf_alloc(SLOW_BOUNCE);
    int err = buf ? 0 : -ENOMEM;

    while (!err && pos < len) {
        uint64_t from = blk_align_down(req->offset + pos, a);
        uint64_t skip = req->offset + pos - from;
        uint64_t now = BLK_MIN(len - pos, SLOW_BOUNCE - skip);
        if (n->limits.max_transfer) {
            now = BLK_MIN(now, n->limits.max_transfer - skip);
        }
        err = sub_one(n, BLK_READ, from, blk_align_up(skip + now, a), buf, 0);
        if (!err) {
            blk_iov_from_buf(req->iov, req->iovcnt, pos, (char *)buf + skip, now);
        }
        pos += now;
    }
    blk_buf_free(buf);
    return err;
}

static int slow_read(struct blk_node *n, const struct blk_req *req)
{
    uint64_t len = req->length;
    if (req->offset >= n->size) {
        len = 0;
    } else if (len > n->size - req->offset) {
        len = n->size - req->offset;
    }
    if (len < req->length) {
        blk_iov_zero(req->iov, req->iovcnt, len, req->length - len);
    }
    if (!len) {
        return 0;
    }
    if (((req->offset | len) & (n->limits.req_align - 1)) || !part_mem_aligned(n, req)) {
        return bounce_read(n, req, len);
    }
    return split_rw(n, req, req->offset, 0, len);
}

/* ---- writes ----------------------------------------------------------------------- */

/* The old content of one block; zeros past the end. */
static int rmw_old(struct blk_node *n, uint64_t at, void *buf)
{
    uint32_t a = n->limits.req_align;
    if (at >= blk_align_up(n->size, a)) {
        memset(buf, 0, a);
        return 0;
    }
    return sub_one(n, BLK_READ, at, a, buf, 0);
}

/* Write len bytes at off that touch only whole or partial blocks: aligned range
 * read where it is partial, patched, written.  Data at pos of req's iov, or zeros
 * when req has none. */
static int rmw(struct blk_node *n, const struct blk_req *req, uint64_t off, uint64_t pos,
               uint64_t len, void *buf)
{
    uint32_t a = n->limits.req_align;
    uint64_t from = blk_align_down(off, a), to = blk_align_up(off + len, a);
    int err = 0;

    if (from != off) {
        err = rmw_old(n, from, buf);
    }
    if (!err && to != off + len && (from == off || to - from > a)) {
        err = rmw_old(n, to - a, (char *)buf + (to - a - from));
    }
    if (err) {
        return err;
    }
    if (req->iov) {
        blk_iov_to_buf(req->iov, req->iovcnt, pos, (char *)buf + (off - from), len);
    } else {
        memset((char *)buf + (off - from), 0, len);
    }
    return sub_one(n, BLK_WRITE, from, to - from, buf, 0);
}

static int bounce_write(struct blk_node *n, const struct blk_req *req, uint64_t off, uint64_t pos,
                        uint64_t len)
{
    uint32_t a = n->limits.req_align;
    uint64_t chunk = n->limits.max_transfer ? BLK_MIN(n->limits.max_transfer, SLOW_BOUNCE)
                                            : SLOW_BOUNCE;
    void *buf = blk_buf_alloc(SLOW_BOUNCE);
    int err = buf ? 0 : -ENOMEM;

    while (!err && len) {
        uint64_t skip = off & (a - 1);
        uint64_t now = BLK_MIN(len, chunk - skip);
        err = rmw(n, req, off, pos, now, buf);
        off += now;
        pos += now;
        len -= now;
    }
    blk_buf_free(buf);
    return err;
}

static int slow_write_body(struct blk_node *n, const struct blk_req *req)
{
    uint32_t a = n->limits.req_align;
    bool unaligned = (req->offset | req->length) & (a - 1);
    struct blk_serial s = { blk_align_down(req->offset, a),
                            blk_align_up(req->offset + req->length, a), NULL };
    int err;

    if (unaligned) {
        serial_enter(n, &s);
        err = bounce_write(n, req, req->offset, 0, req->length);
        serial_leave(n, &s);
        return err;
    }
    while (blk_serial_conflict(n, req)) {
        co_wait_on(&n->serial_q);
    }
    if (!part_mem_aligned(n, req)) {
        return bounce_write(n, req, req->offset, 0, req->length);
    }
    return split_rw(n, req, req->offset, 0, req->length);
}

/* ---- zeroes and discards ------------------------------------------------------------ */

/* Zeroes by writing them. */
static int write_zeros(struct blk_node *n, uint64_t off, uint64_t len)
{
    uint64_t chunk = BLK_MIN(len, (uint64_t)SLOW_BOUNCE);
    void *buf = blk_buf_alloc(chunk);
    int err = buf ? 0 : -ENOMEM;
    if (buf) {
        memset(buf, 0, chunk);
    }
    while (!err && len) {
        struct iovec iov = { buf, BLK_MIN(len, chunk) };
        struct blk_req w = { .op = BLK_WRITE, .offset = off, .length = iov.iov_len,
                             .iov = &iov, .iovcnt = 1, .flags = BLK_REQ_INTERNAL };
        err = slow_write_body(n, &w);
        off += iov.iov_len;
        len -= iov.iov_len;
    }
    blk_buf_free(buf);
    return err;
}

static int zero_aligned(struct blk_node *n, const struct blk_req *req, uint64_t off, uint64_t len)
{
    uint64_t max = n->limits.max_zero ? n->limits.max_zero : len;
    int err = 0;

    while (!err && len) {
        uint64_t now = BLK_MIN(len, max);
        struct blk_req probe = { .offset = off, .length = now };
        while (blk_serial_conflict(n, &probe)) {
            co_wait_on(&n->serial_q);
        }
        err = n->can_zero == BLK_CAP_NATIVE
                  ? sub_one(n, BLK_WRITE_ZEROES, off, now, NULL, req->flags & ~BLK_REQ_FUA)
                  : -ENOTSUP;
        if (err == -ENOTSUP && !(req->flags & BLK_REQ_FAST_ZERO)) {
            err = write_zeros(n, off, now);
        }
        off += now;
        len -= now;
    }
    return err;
}

static int slow_zeroes(struct blk_node *n, const struct blk_req *req);

/* Drivers zero within their size; what grows the node is written. */
static int zeroes_that_grow(struct blk_node *n, const struct blk_req *req, uint64_t end)
{
    uint64_t size = n->size, from = BLK_MAX(size, req->offset);
    int err = 0;
    if (req->offset < size) {
        struct blk_req inside = *req;
        inside.length = size - req->offset;
        err = slow_zeroes(n, &inside);
    }
    return err ? err : write_zeros(n, from, end - from);
}

/* Zeroes for less than a block: the driver may know that the rest is zero, too. */
static int zero_edge(struct blk_node *n, const struct blk_req *req, uint64_t off, uint64_t end)
{
    int err = -ENOTSUP;

    if (off == end) {
        return 0;
    }
    if (n->drv->zero_part) {
        err = n->drv->zero_part(n, off, end - off, req->flags);
    }
    return err == -ENOTSUP && !(req->flags & BLK_REQ_FAST_ZERO) ? write_zeros(n, off, end - off)
                                                                : err;
}

static int slow_zeroes(struct blk_node *n, const struct blk_req *req)
{
    uint64_t a = BLK_MAX(n->limits.zero_align, n->limits.req_align);
    uint64_t end = req->offset + req->length;
    if (end > n->size) {
        return zeroes_that_grow(n, req, end);
    }
    uint64_t head = BLK_MIN(blk_align_up(req->offset, a), end);
    /* The last, partial block counts as whole at the node's end. */
    uint64_t tail = end >= n->size && !n->can_grow && n->limits.req_align == 1
                        ? end : blk_align_down(end, a);

    if (req->flags & BLK_REQ_FAST_ZERO && n->zero_may_be_slow) {
        return -ENOTSUP;
    }
    int err = zero_edge(n, req, req->offset, head);
    if (!err && tail > head) {
        err = zero_aligned(n, req, head, tail - head);
    }
    return err ? err : zero_edge(n, req, BLK_MAX(head, tail), end);
}

static bool is_all_zeros(const struct blk_req *req)
{
    for (int i = 0; i < req->iovcnt; i++) {
        if (!blk_is_zero(req->iov[i].iov_base, req->iov[i].iov_len)) {
            return false;
        }
    }
    return true;
}

static int write_as_zeroes(struct blk_node *n, const struct blk_req *req)
{
    struct blk_req zeroes = *req;

    zeroes.op = BLK_WRITE_ZEROES;
    zeroes.flags &= ~(unsigned)BLK_REQ_COMPRESSED;
    zeroes.flags |= n->oflags & BLK_O_DETECT_UNMAP ? BLK_REQ_MAY_UNMAP : 0u;
    return slow_zeroes(n, &zeroes);
}

static int slow_discard(struct blk_node *n, const struct blk_req *req)
{
    uint64_t a = BLK_MAX(n->limits.discard_align, n->limits.req_align);
    uint64_t end = req->offset + req->length;
    uint64_t max = n->limits.max_discard ? n->limits.max_discard : UINT64_MAX;
    uint64_t off = blk_align_up(req->offset, a);
    int err = 0;

    if (n->can_discard != BLK_CAP_NATIVE) {
        return 0;               /* advisory */
    }
    end = end >= n->size ? n->size : blk_align_down(end, a);
    while (!err && off < end) {
        uint64_t now = BLK_MIN(end - off, max);
        err = sub_one(n, BLK_DISCARD, off, now, NULL, 0);
        off += now;
    }
    return err == -ENOTSUP ? 0 : err;
}

/* ---- the fiber ----------------------------------------------------------------------- */

static int slow_dispatch(struct blk_node *n, struct blk_req *req)
{
    int err;
    switch (req->op) {
    case BLK_READ:
        return slow_read(n, req);
    case BLK_WRITE:
        err = blk_may_be_zeros(n, req) && is_all_zeros(req) ? write_as_zeroes(n, req)
                                                            : slow_write_body(n, req);
        break;
    case BLK_WRITE_ZEROES:
        err = slow_zeroes(n, req);
        break;
    case BLK_DISCARD:
        return slow_discard(n, req);
    default:                    /* a FLUSH whose hops were used up */
        return co_flush(n);
    }
    if (!err && req->flags & BLK_REQ_FUA) {
        err = co_flush(n);
    }
    return err;
}

static void slow_main(void *arg)
{
    struct blk_req *req = arg;
    struct blk_node *n = req->node;
    unsigned epoch = (unsigned)req->drv[0];
    int err = slow_dispatch(n, req);
    req->node = n;
    blk_complete(req, err);
    blk_epoch_leave(n, epoch);
}

void blk_req_slow(struct blk_node *n, struct blk_req *req)
{
    req->node = n;
    req->drv[0] = blk_epoch_enter(n);
    if (co_start(n->loop, slow_main, req)) {
        blk_complete(req, -ENOMEM);
        blk_epoch_leave(n, (unsigned)req->drv[0]);
    }
}
