/*
 * parts.c - one guest request as several sub-requests in flight.
 *
 * Invariant: a slot's iovec slice lives until the window is waited for.
 */
#include "block/internal.h"
#include <errno.h>
#include <stdlib.h>

#define PARTS_WINDOW 32

struct blk_parts {
    const struct iovec *iov;
    int cnt;
    unsigned n;
    struct co_batch batch;
    struct blk_req req[PARTS_WINDOW];
    struct iovec *slice[PARTS_WINDOW];
};

struct blk_parts *blk_parts_new(const struct iovec *iov, int cnt)
{
    struct blk_parts *p = malloc(sizeof(*p));
    if (p) {
        p->iov = iov;
        p->cnt = cnt;
        p->n = 0;
        p->batch = (struct co_batch){ 0 };
    }
    return p;
}

static int parts_wait(struct blk_parts *p)
{
    int err = co_batch_wait(&p->batch);
    while (p->n) {
        free(p->slice[--p->n]);
    }
    return err;
}

int blk_parts_room(struct blk_parts *p)
{
    return p->n < PARTS_WINDOW ? 0 : parts_wait(p);
}

int blk_parts_add(struct blk_parts *p, struct blk_node *n, enum blk_op op, uint64_t off,
                  uint64_t pos, uint64_t len)
{
    struct iovec *slice = malloc(sizeof(*slice) * (size_t)(p->cnt + 1));
    if (!slice) {
        return -ENOMEM;
    }
    struct blk_req *r = &p->req[p->n];
    p->slice[p->n++] = slice;
    *r = (struct blk_req){ .op = op, .offset = off, .length = len, .iov = slice,
                           .iovcnt = blk_iov_slice(p->iov, p->cnt, pos, len, slice,
                                                   p->cnt + 1) };
    co_batch_add(&p->batch, n, r);
    return 0;
}

int blk_parts_copy(struct blk_parts *p, struct blk_node *n, uint64_t off, struct blk_node *from,
                   uint64_t from_offset, uint64_t len)
{
    struct blk_req *r = &p->req[p->n];

    p->slice[p->n++] = NULL;
    *r = (struct blk_req){ .op = BLK_COPY, .offset = off, .length = len, .from = from,
                           .from_offset = from_offset };
    co_batch_add(&p->batch, n, r);
    return 0;
}

int blk_parts_end(struct blk_parts *p)
{
    if (!p) {
        return -ENOMEM;
    }
    int err = parts_wait(p);
    free(p);
    return err;
}
