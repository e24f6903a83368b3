/*
 * cache.c - blocks of the file: so that a format's small reads cost one request per block
 * and not one each, and a sequential reader finds the next ones on their way.
 *
 * A block is complete (filled == its length), or a fetch fills it; readers wait at it and
 * get their bytes when it is complete, so nothing has to be kept from being dropped.
 */
#include "protocols/http/http_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct block_wait { struct http_read *read; struct block_wait *next; };

struct http_block {
    uint64_t index;
    uint32_t length, filled;
    struct block_wait *waiters;
    struct http_block *chain;               /* of its bucket */
    struct http_block *lru_next, *lru_prev; /* only when complete */
    char *data;
};

/* ---- blocks --------------------------------------------------------------------- */

static struct http_block **bucket(struct http_disk *d, uint64_t index)
{
    return &d->buckets[index % HTTP_BLOCKS_MAX];
}

static struct http_block *block_find(struct http_disk *d, uint64_t index)
{
    struct http_block *b = *bucket(d, index);

    while (b && b->index != index)
        b = b->chain;
    return b;
}

static void lru_add(struct http_disk *d, struct http_block *b)
{
    b->lru_next = NULL;
    b->lru_prev = d->lru_last;
    if (d->lru_last)
        d->lru_last->lru_next = b;
    else
        d->lru_first = b;
    d->lru_last = b;
}

static void lru_remove(struct http_disk *d, struct http_block *b)
{
    if (b->lru_prev)
        b->lru_prev->lru_next = b->lru_next;
    else
        d->lru_first = b->lru_next;
    if (b->lru_next)
        b->lru_next->lru_prev = b->lru_prev;
    else
        d->lru_last = b->lru_prev;
}

static void block_free(struct http_disk *d, struct http_block *b)
{
    struct http_block **at = bucket(d, b->index);

    while (*at != b)
        at = &(*at)->chain;
    *at = b->chain;
    d->nblocks--;
    free(b->data);
    free(b);
}

static struct http_block *block_new(struct http_disk *d, uint64_t index)
{
    struct http_block *b = calloc(1, sizeof(*b)), *old;

    if (!b)
        return NULL;
    while (d->nblocks >= HTTP_BLOCKS_MAX && (old = d->lru_first)) {
        lru_remove(d, old);
        block_free(d, old);
    }
    b->index = index;
    b->length = (uint32_t)BLK_MIN((uint64_t)HTTP_BLOCK, d->version.size - index * HTTP_BLOCK);
    b->data = malloc(b->length);
    if (!b->data) {
        free(b);
        return NULL;
    }
    b->chain = *bucket(d, index);
    *bucket(d, index) = b;
    d->nblocks++;
    return b;
}

/* ---- readers -------------------------------------------------------------------- */

static void read_part_done(struct http_disk *d, struct http_read *rd, int err)
{
    if (err && !rd->err)
        rd->err = err;
    if (--rd->left)
        return;
    rd->next = d->spare;
    d->spare = rd;
    blk_complete(rd->req, rd->err);
}

static void read_copy(const struct http_block *b, const struct blk_req *req)
{
    uint64_t at = b->index * HTTP_BLOCK;
    uint64_t from = BLK_MAX(at, req->offset);
    uint64_t to = BLK_MIN(at + b->length, req->offset + req->length);

    blk_iov_from_buf(req->iov, req->iovcnt, from - req->offset, b->data + (from - at), to - from);
}

static void block_settle(struct http_disk *d, struct http_block *b, int err)
{
    struct block_wait *w;

    while ((w = b->waiters)) {
        b->waiters = w->next;
        if (!err)
            read_copy(b, w->read->req);
        read_part_done(d, w->read, err);
        free(w);
    }
    if (err)
        block_free(d, b);
    else
        lru_add(d, b);
}

static int block_wait(struct http_block *b, struct http_read *rd)
{
    struct block_wait *w = malloc(sizeof(*w));

    if (!w)
        return -ENOMEM;
    *w = (struct block_wait){ rd, b->waiters };
    b->waiters = w;
    return 0;
}

/* ---- fetching blocks ------------------------------------------------------------ */

static void run_data(struct http_fetch *f, const char *bytes, size_t len)
{
    uint64_t at = f->start + f->got;

    while (len) {
        struct http_block *b = block_find(f->d, at / HTTP_BLOCK);
        size_t part = BLK_MIN(len, (size_t)(b->length - b->filled));
        memcpy(b->data + b->filled, bytes, part);
        b->filled += (uint32_t)part;
        if (b->filled == b->length)
            block_settle(f->d, b, 0);
        bytes += part;
        len -= part;
        at += part;
    }
}

/* Blocks that are complete stay. */
static void run_done(struct http_fetch *f, int result)
{
    struct http_disk *d = f->d;

    for (uint64_t at = f->start + f->got; result && at < f->start + f->length; ) {
        struct http_block *b = block_find(d, at / HTTP_BLOCK);
        at = (at / HTTP_BLOCK + 1) * HTTP_BLOCK;
        block_settle(d, b, result);
    }
    free(f);
}

/* Make missing blocks from index on, at most up to end, and send for them.  0: none
 * is missing at index, or no memory. */
static uint64_t run_start(struct http_disk *d, uint64_t index, uint64_t end)
{
    struct http_fetch *f = calloc(1, sizeof(*f));
    uint64_t last = index;

    while (f && last < end && !block_find(d, last) && block_new(d, last))
        last++;
    if (!f || last == index) {
        free(f);
        return 0;
    }
    f->start = index * HTTP_BLOCK;
    f->length = BLK_MIN(last * HTTP_BLOCK, d->version.size) - f->start;
    f->data = run_data;
    f->done = run_done;
    http_fetch_start(d, f);
    return last - index;
}

/* A sequential reader: have the next ones sent for, in pieces that are worth it. */
static void read_ahead(struct http_disk *d, uint64_t end)
{
    uint64_t first = (end + HTTP_BLOCK - 1) / HTTP_BLOCK;
    uint64_t blocks = (d->version.size + HTTP_BLOCK - 1) / HTTP_BLOCK;
    uint64_t last = BLK_MIN(first + d->cfg.readahead / HTTP_BLOCK, blocks);
    uint64_t missing = first;

    while (missing < last && block_find(d, missing))
        missing++;
    if (missing < last && (missing - first) * 2 <= last - first)
        run_start(d, missing, last);
}

void http_read_cached(struct http_disk *d, struct blk_req *req)
{
    uint64_t first = req->offset / HTTP_BLOCK, end = req->offset + req->length;
    uint64_t last = (end + HTTP_BLOCK - 1) / HTTP_BLOCK;
    bool sequential = req->offset == d->next_offset && req->offset;
    struct http_read *rd = d->spare;

    if (rd)
        d->spare = rd->next;
    else
        rd = malloc(sizeof(*rd));
    if (!rd) {
        blk_complete(req, -ENOMEM);
        return;
    }
    *rd = (struct http_read){ .req = req, .left = 1 };
    for (uint64_t i = first; i < last; i++) {
        struct http_block *b = block_find(d, i);
        if (!b && run_start(d, i, last))
            b = block_find(d, i);
        rd->left++;
        if (b && b->filled == b->length) {
            lru_remove(d, b);
            lru_add(d, b);
            read_copy(b, req);
            read_part_done(d, rd, 0);
        } else if (!b || block_wait(b, rd)) {
            read_part_done(d, rd, -ENOMEM);
        }
    }
    d->next_offset = end;
    read_part_done(d, rd, 0);
    if (sequential)
        read_ahead(d, end);
}

/* ---- large reads ---------------------------------------------------------------- */

static void direct_data(struct http_fetch *f, const char *bytes, size_t len)
{
    const struct blk_req *req = f->arg;
    blk_iov_from_buf(req->iov, req->iovcnt, f->got, bytes, len);
}

static void direct_done(struct http_fetch *f, int result)
{
    struct blk_req *req = f->arg;
    free(f);
    blk_complete(req, result);
}

void http_read_direct(struct http_disk *d, struct blk_req *req)
{
    struct http_fetch *f = calloc(1, sizeof(*f));

    if (!f) {
        blk_complete(req, -ENOMEM);
        return;
    }
    d->next_offset = req->offset + req->length;
    f->start = req->offset;
    f->length = req->length;
    f->data = direct_data;
    f->done = direct_done;
    f->arg = req;
    http_fetch_start(d, f);
}

void http_cache_free(struct http_disk *d)
{
    struct http_read *rd;

    for (unsigned i = 0; i < HTTP_BLOCKS_MAX; i++)
        while (d->buckets[i])
            block_free(d, d->buckets[i]);
    while ((rd = d->spare)) {
        d->spare = rd->next;
        free(rd);
    }
}
