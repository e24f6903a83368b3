/*
 * status.c - what is at a place: one layer's answer, completed by the storage
 * below it, and the walk over a backing chain (iterative: chains are long).
 */
#include "block/internal.h"
#include <assert.h>
#include <errno.h>

/* A format said "data at host_offset of host": ask the storage whether it is a
 * hole there, so that preallocated or sparse files read as zeros. */
static int status_recurse(struct blk_status *st)
{
    struct blk_node *h = st->host;
    struct blk_status in = { 0 };
    uint64_t len;

    if (st->host_offset >= h->size) {
        st->flags |= BLK_ST_ZERO;       /* the core zero-fills past the end */
        return 0;
    }
    len = BLK_MIN(st->length, h->size - st->host_offset);
    int err = co_status(h, st->host_offset, len, &in);
    if (err) {
        return st->flags & BLK_ST_DATA ? 0 : err;       /* data is known to be data */
    }
    st->length = BLK_MIN(st->length, in.length);
    /* A format's allocated cluster stays data even where its file has a hole. */
    st->flags |= in.flags & (BLK_ST_ZERO | BLK_ST_DATA);
    return 0;
}

/* One layer's answer.  holes: also say where its storage has holes, which may
 * cost a look at it. */
static int layer_status(struct blk_node *n, uint64_t off, uint64_t len, bool holes,
                        struct blk_status *st)
{
    int err = 0;
    *st = (struct blk_status){ .flags = holes ? BLK_ST_RECURSE : 0 };
    if (off >= n->size) {
        return -EINVAL;
    }
    len = BLK_MIN(len, n->size - off);
    if (n->drv->status) {
        st->length = len;
        err = n->drv->status(n, off, len, st);
    } else if (n->drv->over_images) {
        err = blk_filter_status(n, off, len, st);
    } else if (n->drv->filter) {
        blk_status_at(st, n->file, off, len, BLK_ST_RECURSE);
    } else {
        st->flags = BLK_ST_DATA | BLK_ST_ALLOCATED;
        st->length = len;
    }
    if (err) {
        return err;
    }
    assert(st->length > 0);
    st->length = BLK_MIN(st->length, len);
    st->layer = n;
    st->flags &= ~(unsigned)BLK_ST_EOF;
    if (st->flags & BLK_ST_RECURSE) {
        st->flags &= ~(unsigned)BLK_ST_RECURSE;
        err = holes || !(st->flags & BLK_ST_DATA) ? status_recurse(st) : 0;
    }
    if (!(st->flags & BLK_ST_ALLOCATED) && !n->drv->over_images &&
        (!n->backing || off >= n->backing->size)) {
        st->flags |= BLK_ST_ZERO;
    }
    if (off + st->length == n->size) {
        st->flags |= BLK_ST_EOF;
    }
    return err;
}

int co_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    return layer_status(n, off, len, true, st);
}

int co_status_above(struct blk_node *n, struct blk_node *base, uint64_t off, uint64_t len,
                    struct blk_status *st)
{
    bool short_layer = false;
    uint64_t end_of_top = n->size;

    *st = (struct blk_status){ 0 };
    if (off >= n->size) {
        return -EINVAL;
    }
    len = BLK_MIN(len, n->size - off);
    for (struct blk_node *at = n; at && at != base;
         at = at->drv->over_images ? at->file : at->backing) {
        if (off >= at->size) {
            /* Below a layer that ends here, an overlay reads zeros, whatever
             * deeper (longer) layers hold. */
            short_layer = true;
            break;
        }
        int err = layer_status(at, off, len, true, st);
        if (err) {
            return err;
        }
        len = BLK_MIN(len, st->length);
        if (st->flags & BLK_ST_ALLOCATED) {
            st->length = len;
            st->flags &= ~(unsigned)BLK_ST_EOF;
            st->flags |= off + len == end_of_top ? BLK_ST_EOF : 0;
            return 0;
        }
    }
    /* The last layer may have a place for it all the same. */
    st->flags = BLK_ST_ZERO | (short_layer ? 0 : st->flags & BLK_ST_OFFSET);
    st->length = len;
    st->layer = NULL;
    if (short_layer) {
        st->flags |= BLK_ST_ALLOCATED;
    }
    st->flags |= off + len == end_of_top ? BLK_ST_EOF : 0;
    return 0;
}

int blk_filter_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    return layer_status(n->file, off, len, st->flags & BLK_ST_RECURSE, st);
}

int blk_status_layer(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    return layer_status(n, off, len, false, st);
}
