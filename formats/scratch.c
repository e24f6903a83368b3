/*
 * scratch.c - a filter whose writes stay in memory and are gone when it is closed: what
 * a repair would do can be tried on an image that is not to be changed.
 *
 *   driver=qcow2,file.driver=scratch,file.file.filename=a.img,file.file.read-only=on
 *
 * Invariants
 *  - The node below is only read.
 *  - A block is either as below, or in memory as a whole; what lies behind `below_end`
 *    and is not in memory is zeros.
 */
#include "block/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SCRATCH_BLOCK   65536u
#define SCRATCH_BUCKETS 1024u
#define SCRATCH_MAX     2048u           /* blocks: 128 MiB */

struct scratch_block {
    uint64_t index;
    struct scratch_block *next;
    uint8_t data[SCRATCH_BLOCK];
};

struct scratch {
    struct scratch_block *bucket[SCRATCH_BUCKETS];
    unsigned count;
    uint64_t below_end;
    struct co_mutex lock;               /* making blocks */
};

static struct scratch_block *scratch_find(const struct scratch *s, uint64_t index)
{
    struct scratch_block *b = s->bucket[index % SCRATCH_BUCKETS];

    while (b && b->index != index)
        b = b->next;
    return b;
}

/* What lies below, zeros past its end. */
static int scratch_below(struct blk_node *n, uint64_t off, void *buf, size_t len)
{
    const struct scratch *s = n->state;
    size_t have = off >= s->below_end ? 0 : (size_t)BLK_MIN((uint64_t)len, s->below_end - off);

    memset((uint8_t *)buf + have, 0, len - have);
    return have ? co_read(n->file, off, buf, have) : 0;
}

/* A new block that holds what lies below. */
static int scratch_add(struct blk_node *n, uint64_t index, struct scratch_block **out)
{
    struct scratch *s = n->state;
    struct scratch_block *b = s->count < SCRATCH_MAX ? malloc(sizeof(*b)) : NULL;
    int err = b ? scratch_below(n, index * SCRATCH_BLOCK, b->data, SCRATCH_BLOCK)
                : s->count < SCRATCH_MAX ? -ENOMEM : -ENOSPC;

    if (err) {
        free(b);
        return err;
    }
    b->index = index;
    b->next = s->bucket[index % SCRATCH_BUCKETS];
    s->bucket[index % SCRATCH_BUCKETS] = b;
    s->count++;
    *out = b;
    return 0;
}

static int scratch_make(struct blk_node *n, uint64_t index, struct scratch_block **out)
{
    struct scratch *s = n->state;
    int err = 0;

    co_lock(&s->lock);
    *out = scratch_find(s, index);
    if (!*out)
        err = scratch_add(n, index, out);
    co_unlock(&s->lock);
    return err;
}

/* len bytes within one block. */
static int scratch_piece(struct blk_req *req, uint64_t off, size_t len)
{
    struct blk_node *n = req->node;
    uint64_t index = off / SCRATCH_BLOCK, at = off - req->offset;
    struct scratch_block *b = scratch_find(n->state, index);
    uint8_t *buf;
    int err;

    if (req->op == BLK_WRITE) {
        err = scratch_make(n, index, &b);
        if (!err)
            blk_iov_to_buf(req->iov, req->iovcnt, at, b->data + off % SCRATCH_BLOCK, len);
        return err;
    }
    if (b) {
        blk_iov_from_buf(req->iov, req->iovcnt, at, b->data + off % SCRATCH_BLOCK, len);
        return 0;
    }
    buf = blk_buf_alloc(len);
    err = buf ? scratch_below(n, off, buf, len) : -ENOMEM;
    if (!err)
        blk_iov_from_buf(req->iov, req->iovcnt, at, buf, len);
    blk_buf_free(buf);
    return err;
}

static int scratch_rw(struct blk_req *req)
{
    uint64_t off = req->offset, end = off + req->length;
    int err = 0;

    while (!err && off < end) {
        uint64_t stop = BLK_MIN(blk_align_down(off, SCRATCH_BLOCK) + SCRATCH_BLOCK, end);
        err = scratch_piece(req, off, (size_t)(stop - off));
        off = stop;
    }
    return err;
}

static void scratch_submit(struct blk_node *n, struct blk_req *req)
{
    if (req->op == BLK_FLUSH)
        blk_complete(req, 0);
    else
        blk_req_fiber(req, scratch_rw);
}

static int scratch_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    blk_status_at(st, n, off, len, BLK_ST_DATA);
    return 0;
}

/* What is cut off comes back as zeros. */
static int scratch_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                            struct blk_error *e)
{
    struct scratch *s = n->state;
    uint64_t kept = size / SCRATCH_BLOCK + !!(size % SCRATCH_BLOCK);

    for (size_t i = 0; size < n->size && i < SCRATCH_BUCKETS; i++) {
        struct scratch_block **at = &s->bucket[i];

        while (*at) {
            struct scratch_block *b = *at;
            if (b->index < kept) {
                if (b->index == size / SCRATCH_BLOCK)
                    memset(b->data + size % SCRATCH_BLOCK, 0,
                           SCRATCH_BLOCK - size % SCRATCH_BLOCK);
                at = &b->next;
                continue;
            }
            *at = b->next;
            free(b);
            s->count--;
        }
    }
    s->below_end = BLK_MIN(s->below_end, size);
    n->size = size;
    return 0;
}

static int scratch_length(struct blk_node *n, uint64_t *out)
{
    *out = n->size;
    return 0;
}

static int scratch_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct scratch *s = calloc(1, sizeof(*s));

    if (!s)
        return blk_err_errno(e, ENOMEM, "scratch");
    n->state = s;
    blk_filter_inherit(n);
    s->below_end = n->size;
    n->can_grow = true;
    n->starts_as_zeros = true;
    n->can_zero = BLK_CAP_EMULATED;
    n->can_discard = BLK_CAP_NONE;
    n->can_fua = BLK_CAP_EMULATED;
    return 0;
}

static int scratch_close(struct blk_node *n, struct blk_error *e)
{
    struct scratch *s = n->state;

    for (size_t i = 0; i < SCRATCH_BUCKETS; i++) {
        while (s->bucket[i]) {
            struct scratch_block *b = s->bucket[i];
            s->bucket[i] = b->next;
            free(b);
        }
    }
    free(s);
    n->state = NULL;
    return 0;
}

const struct blk_driver blk_scratch = {
    .name = "scratch",
    .filter = true,
    .keeps_writes = true,
    .open = scratch_open,
    .close = scratch_close,
    .submit = scratch_submit,
    .status = scratch_status,
    .truncate = scratch_truncate,
    .length = scratch_length,
};
