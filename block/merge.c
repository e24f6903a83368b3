/*
 * merge.c - small reads of storage that follow each other go down as one.
 *
 * A read that enters a protocol node whose driver asks for it (drv->merge) is held
 * until the loop has run everything that is ready; reads that start where it ends
 * join it.  What then is more than one becomes one request of the core's own, so that
 * the storage sees one system call or one message where there would be many.
 *
 * Invariants
 *  - One run is held at a time, of one node; what does not continue it sends it off.
 *  - Members keep their hops and their place in inflight[]: the core's own request
 *    has none, and counts nowhere.
 *  - A run that fails with EIO is read again one by one: bad bytes are only their own
 *    read's error.  Any other error is the storage's, and all members'.
 */
#include "block/internal.h"
#include <errno.h>
#include <stdlib.h>

#define MERGE_IOV 64

struct blk_merged {
    struct blk_req req;                 /* arg: the first member */
    struct blk_merged *next;            /* not in use */
    struct iovec iov[MERGE_IOV];
};

static void merged_put(struct blk_loop *l, struct blk_merged *m)
{
    m->next = l->merged;
    l->merged = m;
}

static struct blk_merged *merged_get(struct blk_loop *l)
{
    struct blk_merged *m = l->merged;

    if (m) {
        l->merged = m->next;
    } else {
        m = malloc(sizeof(*m));
        l->count.allocations++;
    }
    return m;
}

static void submit_each(struct blk_req *first)
{
    for (struct blk_req *r = first, *next; r; r = next) {
        next = r->next;
        r->node->drv->submit(r->node, r);
    }
}

static void merged_done(struct blk_req *req)
{
    struct blk_merged *m = blk_container_of(req, struct blk_merged, req);
    struct blk_req *first = req->arg;
    int result = req->result;

    merged_put(req->node->loop, m);
    if (result == -EIO) {
        submit_each(first);
        return;
    }
    for (struct blk_req *r = first, *next; r; r = next) {
        next = r->next;
        r->result = result;
        blk_req_finish(r);
    }
}

static bool merged_submit(struct blk_loop *l, const struct blk_held *h)
{
    struct blk_merged *m = merged_get(l);
    struct blk_node *n = h->first->node;
    int cnt = 0;

    if (!m) {
        return false;
    }
    for (const struct blk_req *r = h->first; r; r = r->next) {
        for (int i = 0; i < r->iovcnt; i++) {
            m->iov[cnt++] = r->iov[i];
        }
    }
    m->req = (struct blk_req) { .op = BLK_READ, .offset = h->first->offset, .length = h->length,
                                .iov = m->iov, .iovcnt = cnt, .done = merged_done,
                                .arg = h->first, .node = n };
    n->drv->submit(n, &m->req);
    return true;
}

bool blk_merge_flush(struct blk_loop *l)
{
    struct blk_held h = l->held;

    if (!h.first) {
        return false;
    }
    l->held.first = NULL;
    if (!h.first->next || !merged_submit(l, &h)) {
        submit_each(h.first);
    }
    return true;
}

static int iov_max(const struct blk_node *n)
{
    return n->limits.max_iov ? (int)BLK_MIN(n->limits.max_iov, MERGE_IOV) : MERGE_IOV;
}

static bool continues(const struct blk_held *h, const struct blk_node *n,
                      const struct blk_req *req, uint32_t max)
{
    return h->first->node == n && h->first->offset + h->length == req->offset &&
           h->length + req->length <= max && h->iovcnt + req->iovcnt <= iov_max(n);
}

bool blk_merge_read(struct blk_node *n, struct blk_req *req)
{
    struct blk_loop *l = n->loop;
    struct blk_held *h = &l->held;
    uint32_t max = n->limits.max_transfer;

    max = max ? BLK_MIN(max, n->drv->merge) : n->drv->merge;
    if (req->length > max / 2 || req->iovcnt > MERGE_IOV / 2) {
        return false;
    }
    if (h->first && !continues(h, n, req, max)) {
        blk_merge_flush(l);
    }
    req->next = NULL;
    if (h->first) {
        h->last->next = req;
        h->length += req->length;
        h->iovcnt += req->iovcnt;
    } else {
        *h = (struct blk_held) { .first = req, .length = req->length, .iovcnt = req->iovcnt };
    }
    h->last = req;
    if (h->length == max) {
        blk_merge_flush(l);             /* the storage may begin */
    }
    return true;
}

void blk_merge_free(struct blk_loop *l)
{
    while (l->merged) {
        struct blk_merged *m = l->merged;

        l->merged = m->next;
        free(m);
    }
}
