/*
 * store.c - a node whose completions a test holds and releases, with a memory as
 * its content.
 */
#include "tests/unit/virtio/guest.h"

#include <stdlib.h>
#include <string.h>

static void store_do(struct store *s, struct blk_req *req)
{
    int err = s->fail[req->op];

    if (err) {
        __atomic_sub_fetch(&s->inflight, 1, __ATOMIC_SEQ_CST);
        blk_complete(req, -err);
        return;
    }
    switch (req->op) {
    case BLK_READ:
        blk_iov_from_buf(req->iov, req->iovcnt, 0, s->data + req->offset, req->length);
        break;
    case BLK_WRITE:
        blk_iov_to_buf(req->iov, req->iovcnt, 0, s->data + req->offset, req->length);
        s->durable = req->flags & BLK_REQ_FUA;
        break;
    case BLK_WRITE_ZEROES:
    case BLK_DISCARD:
        memset(s->data + req->offset, 0, req->length);
        break;
    default:
        s->durable = true;
        break;
    }
    __atomic_sub_fetch(&s->inflight, 1, __ATOMIC_SEQ_CST);
    blk_complete(req, 0);
}

static void store_submit(struct blk_node *n, struct blk_req *req)
{
    struct store *s = blk_container_of(n, struct store, node);

    s->ops[req->op]++;
    s->fua += (req->flags & BLK_REQ_FUA) != 0;
    s->unmap += (req->flags & BLK_REQ_MAY_UNMAP) != 0;
    __atomic_add_fetch(&s->inflight, 1, __ATOMIC_SEQ_CST);
    if (s->hold) {
        req->next = s->held;
        s->held = req;
    } else {
        store_do(s, req);
    }
}

unsigned store_release(struct store *s, unsigned n)
{
    unsigned done = 0;

    while (s->held && done < n) {
        struct blk_req *req = s->held;

        s->held = req->next;
        req->next = NULL;
        store_do(s, req);
        done++;
    }
    return done;
}

static const struct blk_driver store_driver = {
    .name = "store",
    .protocol = true,
    .submit = store_submit,
};

struct store *store_new(struct blk_loop *l, uint64_t size)
{
    struct store *s = calloc(1, sizeof(*s));

    s->data = calloc(1, size);
    s->node = (struct blk_node){
        .drv = &store_driver, .state = s, .loop = l, .filename = "store", .shown = "store",
        .oflags = BLK_O_RDWR | BLK_O_UNMAP, .size = size,
        .can_zero = BLK_CAP_NATIVE, .can_discard = BLK_CAP_NATIVE, .can_fua = BLK_CAP_NATIVE,
        .limits = { .req_align = 1, .mem_align = 1, .opt_transfer = 65536 },
    };
    return s;
}

void store_free(struct store *s)
{
    free(s->node.stats);
    free(s->data);
    free(s);
}
