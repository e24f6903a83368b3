/*
 * request.c - a request's way through the graph: validated once, forwarded from
 * node to node in place, completed once from the loop.
 *
 * Invariants
 *  - req->hops[] holds the nodes the request is inside of, top first; each hop
 *    counts in its node's inflight[epoch parity] until it is popped, and so does
 *    a request that request_slow.c works on.
 *  - Whatever needs waiting (alignment, splitting, emulation) leaves through
 *    blk_req_slow(); everything else costs no allocation and no fiber switch.
 */
#include "block/internal.h"
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>

static bool writes_data(const struct blk_req *req)
{
    return req->op == BLK_WRITE || req->op == BLK_COPY;
}

/* ---- completion --------------------------------------------------------------- */

void blk_complete(struct blk_req *req, int result)
{
    struct blk_loop *l = req->node->loop;
    req->result = result;
    req->next = NULL;
    *l->ready_last = req;
    l->ready_last = &req->next;
}

static void complete_posted(void *arg)
{
    struct blk_req *req = arg;
    blk_complete(req, req->result);
}

void blk_complete_remote(struct blk_req *req, int result)
{
    struct blk_post *p = (struct blk_post *)&req->drv[5];
    _Static_assert(sizeof(struct blk_post) <= 3 * sizeof(uint64_t), "post fits the tail");
    req->result = result;
    p->fn = complete_posted;
    p->arg = req;
    blk_loop_post(req->node->loop, p);
}

static struct blk_stats *node_stats(struct blk_node *n)
{
    if (!n->stats) {
        n->stats = calloc(1, sizeof(*n->stats));
        n->loop->count.allocations++;
    }
    return n->stats;
}

static void hop_leave(const struct blk_req *req, struct blk_hop *h)
{
    struct blk_node *n = h->node;
    if (writes_data(req) && n->can_grow && !req->result &&
        req->offset + req->length > n->size) {
        n->size = req->offset + req->length;
    }
    if (req->op == BLK_FLUSH && req->result < 0 && n->drv->protocol) {
        /* After a failed sync nobody knows what is on the disk: never again
         * claim success. */
        n->flush_error = req->result;
    }
    struct blk_stats *s = node_stats(n);
    if (s) {
        s->ops[req->op]++;
        s->bytes[req->op] += req->length;
        s->errors[req->op] += req->result < 0;
        if (__builtin_expect(h->t_ns != 0, 0)) {
            blk_stats_record(s, req->op, blk_now_ns() - h->t_ns);
        }
    }
    if (h->w_prev) {
        *h->w_prev = h->w_next;
        if (h->w_next) {
            h->w_next->w_prev = h->w_prev;
        }
        if (n->serial_q.first) {
            co_wake_all(&n->serial_q);
        }
    }
    blk_epoch_leave(n, h->epoch);
}

unsigned blk_epoch_enter(struct blk_node *n)
{
    n->inflight[n->epoch & 1]++;
    return n->epoch;
}

void blk_epoch_leave(struct blk_node *n, unsigned epoch)
{
    if (--n->inflight[epoch & 1]) {
        return;
    }
    if ((n->epoch & 1) != (epoch & 1)) {
        n->drained = n->epoch;
    }
    if (n->idle.first) {
        co_wake_all(&n->idle);
    }
}

void blk_req_finish(struct blk_req *req)
{
    while (req->nhops) {
        struct blk_hop *h = &req->hops[req->nhops - 1];
        req->node = h->node;
        req->offset = h->offset;
        if (h->done) {
            h->done(req);
        }
        hop_leave(req, h);
        req->nhops--;
    }
    req->done(req);
}

bool blk_req_run_ready(struct blk_loop *l)
{
    struct blk_req *req = l->ready;
    bool ran = req != NULL;
    l->ready = NULL;
    l->ready_last = &l->ready;
    while (req) {
        struct blk_req *next = req->next;
        blk_req_finish(req);
        req = next;
    }
    return ran;
}

/* ---- entering a node ------------------------------------------------------------ */

static bool iov_aligned(const struct blk_req *req, uint32_t align)
{
    for (int i = 0; i < req->iovcnt; i++) {
        if (((uintptr_t)req->iov[i].iov_base | req->iov[i].iov_len) & (align - 1)) {
            return false;
        }
    }
    return true;
}

void blk_req_enter(struct blk_node *n, struct blk_req *req)
{
    struct blk_hop *h = &req->hops[req->nhops++];
    h->node = req->node = n;
    h->offset = req->offset;
    h->t_ns = n->loop->tracing ? blk_now_ns() : 0;
    h->done = NULL;
    h->epoch = blk_epoch_enter(n);
    h->w_prev = NULL;
    if (writes_data(req) && n->limits.req_align > 1) {
        h->w_length = req->length;
        h->w_next = n->writes;
        h->w_prev = &n->writes;
        if (h->w_next) {
            h->w_next->w_prev = &h->w_next;
        }
        n->writes = h;
    }
    if (!(n->drv->merge && req->op == BLK_READ && blk_merge_read(n, req))) {
        n->drv->submit(n, req);
    }
}

/* Does the core have to do something (wait, split, emulate) first? */
static bool needs_core(const struct blk_node *n, const struct blk_req *req, uint64_t end)
{
    const struct blk_limits *lim = &n->limits;
    uint32_t max_iov = lim->max_iov ? lim->max_iov : IOV_MAX;

    if (((req->offset | req->length) & (lim->req_align - 1)) || req->nhops == BLK_HOPS) {
        return true;
    }
    switch (req->op) {
    case BLK_READ:
        return end > n->size || (lim->max_transfer && req->length > lim->max_transfer) ||
               (uint32_t)req->iovcnt > max_iov ||
               (lim->mem_align > 1 && !iov_aligned(req, lim->mem_align));
    case BLK_WRITE:
        return (lim->max_transfer && req->length > lim->max_transfer) ||
               (uint32_t)req->iovcnt > max_iov ||
               blk_may_be_zeros(n, req) ||
               ((req->flags & BLK_REQ_FUA) && n->can_fua != BLK_CAP_NATIVE) ||
               (lim->mem_align > 1 && !iov_aligned(req, lim->mem_align)) ||
               blk_serial_conflict(n, req);
    case BLK_WRITE_ZEROES:
    case BLK_DISCARD:
        return true;            /* rare, and always some rule to apply */
    default:
        return false;
    }
}

static int check_write(const struct blk_node *n, const struct blk_req *req, uint64_t end)
{
    if (n->read_only) {
        return -EPERM;
    }
    if (end > n->size && !n->can_grow) {
        return writes_data(req) ? -ENOSPC : -EINVAL;
    }
    if (req->flags & BLK_REQ_COMPRESSED && !n->drv->compresses && !n->drv->filter) {
        return -ENOTSUP;
    }
    return 0;
}

bool blk_can_copy(const struct blk_node *n, const struct blk_node *from)
{
    return n->drv->can_copy && n->drv->can_copy(n, from) && !n->read_only &&
           !(n->oflags & BLK_O_WRITETHROUGH);
}

/* A copy is made by the driver as it is, or not at all: it can be read and written. */
static bool copy_fits(const struct blk_node *n, const struct blk_req *req)
{
    uint64_t end;

    return blk_can_copy(n, req->from) && !blk_serial_conflict(n, req) &&
           !blk_add_overflow(req->from_offset, req->length, &end) && end <= req->from->size &&
           !(req->from_offset & (n->limits.req_align - 1));
}

/* Validate and route.  node->size may be raised by a write that grows. */
static void req_submit_at(struct blk_node *n, struct blk_req *req)
{
    uint64_t end;

    BLK_ASSERT_OWNER(n->loop);
    req->node = n;
    if (req->op == BLK_FLUSH) {
        if (n->flush_error) {
            blk_complete(req, n->flush_error);
        } else if (n->read_only || (n->oflags & BLK_O_NO_FLUSH && n->drv->protocol)) {
            blk_complete(req, 0);
        } else if (req->nhops == BLK_HOPS) {
            blk_req_slow(n, req);
        } else {
            blk_req_enter(n, req);
        }
        return;
    }
    if (blk_add_overflow(req->offset, req->length, &end) || end > INT64_MAX) {
        blk_complete(req, -EIO);
        return;
    }
    if (req->op != BLK_READ) {
        int err = check_write(n, req, end);
        if (err) {
            blk_complete(req, err);
            return;
        }
        if (!(n->oflags & BLK_O_UNMAP)) {
            if (req->op == BLK_DISCARD) {
                blk_complete(req, 0);       /* advisory, and not wanted */
                return;
            }
            req->flags &= ~(unsigned)BLK_REQ_MAY_UNMAP;
        }
        if (n->oflags & BLK_O_WRITETHROUGH && req->op != BLK_DISCARD) {
            req->flags |= BLK_REQ_FUA;
        }
    }
    if (req->length == 0) {
        blk_complete(req, 0);
    } else if (req->op == BLK_COPY && (needs_core(n, req, end) || !copy_fits(n, req))) {
        blk_complete(req, -ENOTSUP);
    } else if (__builtin_expect(needs_core(n, req, end), 0)) {
        blk_req_slow(n, req);
    } else {
        blk_req_enter(n, req);
    }
}

void blk_submit(struct blk_node *n, struct blk_req *req)
{
    req->nhops = 0;
    req->result = 0;
    req_submit_at(n, req);
}

void blk_forward(struct blk_req *req, struct blk_node *child, uint64_t offset,
                 void (*done)(struct blk_req *req))
{
    assert(req->nhops > 0);
    req->hops[req->nhops - 1].done = done;
    req->offset = offset;
    child->loop->count.forwards++;
    req_submit_at(child, req);
}

/* ---- requests served by a fiber ---------------------------------------------------- */

static void req_fiber_main(void *arg)
{
    struct blk_req *req = arg;
    int (*fn)(struct blk_req *);
    __builtin_memcpy(&fn, &req->drv[7], sizeof(fn));
    blk_complete(req, fn(req));
}

void blk_req_fiber(struct blk_req *req, int (*fn)(struct blk_req *req))
{
    __builtin_memcpy(&req->drv[7], &fn, sizeof(fn));
    if (co_start(req->node->loop, req_fiber_main, req)) {
        blk_complete(req, -ENOMEM);
    }
}

/* ---- waiting for nodes ---------------------------------------------------------------- */

void blk_epoch_wait(struct blk_node *n)
{
    while (n->inflight[(n->epoch + 1) & 1]) {
        co_wait_on(&n->idle);           /* an earlier epoch is still draining */
    }
    unsigned old = n->epoch++;
    if (n->inflight[old & 1] == 0) {
        n->drained = n->epoch;
    }
    while ((int)(n->drained - (old + 1)) < 0) {
        co_wait_on(&n->idle);
    }
}

void co_drain(struct blk_node *n)
{
    while (n->inflight[0] || n->inflight[1]) {
        co_wait_on(&n->idle);
    }
}

/* ---- fibers' calls ---------------------------------------------------------------------- */

static void co_req_done(struct blk_req *req)
{
    co_wake(req->arg);
}

static int co_req(struct blk_node *n, enum blk_op op, uint64_t off, uint64_t len,
                  const struct iovec *iov, int cnt, unsigned flags)
{
    struct blk_req req;
    req.op = op;
    req.flags = flags;
    req.offset = off;
    req.length = len;
    req.iov = iov;
    req.iovcnt = cnt;
    req.done = co_req_done;
    req.arg = co_self();
    blk_submit(n, &req);
    co_yield();
    return req.result;
}

int co_readv(struct blk_node *n, uint64_t off, const struct iovec *iov, int cnt, uint64_t len)
{
    return co_req(n, BLK_READ, off, len, iov, cnt, 0);
}

int co_writev(struct blk_node *n, uint64_t off, const struct iovec *iov, int cnt,
              uint64_t len, unsigned flags)
{
    return co_req(n, BLK_WRITE, off, len, iov, cnt, flags);
}

int co_read(struct blk_node *n, uint64_t off, void *buf, size_t len)
{
    struct iovec iov = { buf, len };
    return co_readv(n, off, &iov, 1, len);
}

int co_write(struct blk_node *n, uint64_t off, const void *buf, size_t len, unsigned flags)
{
    struct iovec iov = { (void *)(uintptr_t)buf, len };
    return co_writev(n, off, &iov, 1, len, flags);
}

int co_write_zeroes(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags)
{
    return co_req(n, BLK_WRITE_ZEROES, off, len, NULL, 0, flags);
}

int co_discard(struct blk_node *n, uint64_t off, uint64_t len)
{
    return co_req(n, BLK_DISCARD, off, len, NULL, 0, 0);
}

int co_flush(struct blk_node *n)
{
    return co_req(n, BLK_FLUSH, 0, 0, NULL, 0, 0);
}

int co_copy(struct blk_node *n, uint64_t off, struct blk_node *from, uint64_t from_offset,
            uint64_t len)
{
    struct blk_req req = { .op = BLK_COPY, .offset = off, .length = len, .from = from,
                           .from_offset = from_offset };
    struct co_batch b = { 0 };

    co_batch_add(&b, n, &req);
    return co_batch_wait(&b);
}

static void batch_done(struct blk_req *req)
{
    struct co_batch *b = req->arg;
    if (req->result < 0 && !b->err) {
        b->err = req->result;
    }
    if (--b->pending == 0 && b->waiter) {
        co_wake(b->waiter);
        b->waiter = NULL;
    }
}

void co_batch_add(struct co_batch *b, struct blk_node *n, struct blk_req *req)
{
    b->pending++;
    req->done = batch_done;
    req->arg = b;
    blk_submit(n, req);
}

int co_batch_wait(struct co_batch *b)
{
    if (b->pending) {
        b->waiter = co_self();
        co_yield();
    }
    int err = b->err;
    b->err = 0;
    return err;
}
