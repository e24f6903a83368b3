/*
 * blockmap.c - requests through one table: the fast path, reads and writes in parts,
 * new blocks, zeroes and discards, block status.  The table itself is in
 * blockmap_table.c.
 *
 * Invariants
 *  - Between looking an entry up and submitting a request for the place it names
 *    nothing waits, so the request is in the file's epoch before the place could be
 *    freed and used again.
 *  - Two fibers never change the same block's entry at once (busy ranges).
 */
#include "formats/blockmap_int.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ALLOC_MAX (64u << 20)       /* bytes of new blocks in one write */
#define FILL_CHUNK (1u << 20)       /* bytes copied from the backing file at a time */
#define END_MARK 4096u              /* bytes written to make the file reach a block's end */

/* ---- busy ranges ---------------------------------------------------------------------- */

static bool busy_hit(const struct blockmap *m, uint64_t first, uint64_t end)
{
    for (const struct bm_busy *b = m->busy; b; b = b->next) {
        if (first < b->end && b->first < end) {
            return true;
        }
    }
    return false;
}

static void busy_enter(struct blockmap *m, struct bm_busy *b)
{
    while (busy_hit(m, b->first, b->end)) {
        co_wait_on(&m->busy_q);
    }
    b->next = m->busy;
    m->busy = b;
}

static void busy_leave(struct blockmap *m, struct bm_busy *b)
{
    struct bm_busy **p = &m->busy;
    while (*p != b) {
        p = &(*p)->next;
    }
    *p = b->next;
    co_wake_all(&m->busy_q);
}

/* ---- one lookup ------------------------------------------------------------------------ */

/* Consecutive blocks of one page that one request can serve. */
struct extent {
    uint64_t v;                     /* of the first block; data: of the first byte asked for */
    uint64_t len;                   /* bytes from the offset asked for */
    uint64_t blocks;
};

static void extent_at(const struct blockmap *m, const struct bm_page *p, uint64_t off,
                      uint64_t len, struct extent *x)
{
    uint64_t block = bm_block(m, off), in = bm_in_block(m, off);
    uint64_t page = bm_page_of(m, block), got = m->block_size - in, next;

    x->v = bm_value(m, p, block);
    x->blocks = 1;
    next = x->v + m->block_size;
    while (got < len && !bm_is_special(x->v) && x->v != BM_BAD && ++block < m->blocks &&
           bm_page_of(m, block) == page) {
        uint64_t v = bm_value(m, p, block);
        if (v != (bm_is_data(x->v) ? next : x->v)) {
            break;
        }
        next += m->block_size;
        got += m->block_size;
        x->blocks++;
    }
    x->v += bm_is_data(x->v) ? in : 0;
    x->len = BLK_MIN(got, len);
}

static int bad_entry(struct blockmap *m, uint64_t off)
{
    if (!m->reported) {
        m->reported = true;
        blk_report("%s: block map entry %llu is invalid (guest offset %#llx); further such "
                   "errors are not reported", m->n->shown,
                   (unsigned long long)(bm_block(m, off)), (unsigned long long)off);
    }
    return -EIO;
}

/* ---- the fast path ----------------------------------------------------------------------- */

static bool fast_read(struct blockmap *m, struct blk_req *req)
{
    struct bm_page *p;
    struct extent x;
    if (!bm_page_peek(m, bm_block(m, req->offset), &p)) {
        return false;
    }
    extent_at(m, p, req->offset, req->length, &x);
    if (x.len < req->length || bm_is_special(x.v) || x.v == BM_BAD ||
        (x.v == BM_ABSENT && m->absent_err)) {
        return false;
    }
    if (bm_is_data(x.v)) {
        blk_forward(req, m->file, x.v, NULL);
    } else if (x.v == BM_ABSENT && m->n->backing) {
        blk_forward_backing(req);
    } else {
        blk_iov_zero(req->iov, req->iovcnt, 0, req->length);
        blk_complete(req, 0);
    }
    return true;
}

static bool all_touched(const struct blockmap *m, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; m->ops->touched && i < n; i++) {
        if (!m->ops->touched(m, first + i)) {
            return false;
        }
    }
    return true;
}

static bool fast_write(struct blockmap *m, struct blk_req *req)
{
    uint64_t first = bm_block(m, req->offset);
    struct bm_page *p;
    struct extent x;
    if (!bm_page_peek(m, first, &p)) {
        return false;
    }
    extent_at(m, p, req->offset, req->length, &x);
    if (x.len < req->length || !bm_is_data(x.v) ||
        (m->busy && busy_hit(m, first, first + x.blocks)) || !all_touched(m, first, x.blocks)) {
        return false;
    }
    blk_forward(req, m->file, x.v, NULL);
    return true;
}

/* ---- reads in parts ------------------------------------------------------------------------- */

static int read_backing(struct blockmap *m, const struct iovec *iov, int cnt, uint64_t off,
                        uint64_t pos, uint64_t len)
{
    if (m->absent_err) {
        return m->absent_err;
    }
    if (!m->n->backing || off >= m->n->backing->size) {
        blk_iov_zero(iov, cnt, pos, len);
        return 0;
    }
    struct iovec *part = malloc(sizeof(*part) * (size_t)(cnt + 1));
    if (!part) {
        return -ENOMEM;
    }
    int n = blk_iov_slice(iov, cnt, pos, len, part, cnt + 1);
    int err = co_read_backing(m->n, off, part, n, len);
    free(part);
    return err;
}

static int read_piece(struct blockmap *m, struct blk_parts *parts, const struct blk_req *req,
                      uint64_t pos, uint64_t *done)
{
    uint64_t off = req->offset + pos;
    struct bm_page *p;
    struct extent x;
    int err = bm_page_get(m, bm_block(m, off), &p);

    if (err) {
        return err;
    }
    extent_at(m, p, off, req->length - pos, &x);
    *done = x.len;
    if (bm_is_data(x.v)) {
        return blk_parts_add(parts, m->file, BLK_READ, x.v, pos, x.len);
    }
    if (x.v == BM_BAD) {
        return bad_entry(m, off);
    }
    if (bm_is_special(x.v)) {
        return m->ops->read_special(m, bm_block(m, off), x.v, bm_in_block(m, off), req->iov,
                                    req->iovcnt, pos, x.len);
    }
    if (x.v == BM_ABSENT) {
        return read_backing(m, req->iov, req->iovcnt, off, pos, x.len);
    }
    blk_iov_zero(req->iov, req->iovcnt, pos, x.len);
    return 0;
}

static int read_fiber(struct blk_req *req)
{
    struct blockmap *m = bm_of(req);
    struct blk_parts *parts = blk_parts_new(req->iov, req->iovcnt);
    uint64_t pos = 0;
    int err = parts ? 0 : -ENOMEM;

    while (!err && pos < req->length) {
        uint64_t done = 0;
        err = blk_parts_room(parts);
        if (!err) {
            err = read_piece(m, parts, req, pos, &done);
        }
        pos += done;
    }
    int end = blk_parts_end(parts);
    return err ? err : end;
}

/* ---- new blocks -------------------------------------------------------------------------------- */

/* n blocks that take the same treatment, written by one request from off on. */
struct alloc {
    struct blockmap *m;
    struct bm_busy busy;
    uint64_t old;                   /* value of the first */
    uint64_t host;                  /* of the first block's data */
    bool fresh;                     /* the place was never written: reads zeros */
};

/* Guest bytes [off, off+len) of new blocks that the request does not write. */
static int fill_copy(struct alloc *a, uint64_t off, uint64_t host, uint64_t len)
{
    struct blockmap *m = a->m;
    uint8_t *buf = blk_buf_alloc(BLK_MIN(len, FILL_CHUNK));
    int err = buf ? 0 : -ENOMEM;

    while (!err && len) {
        uint64_t now = BLK_MIN(len, FILL_CHUNK);
        struct iovec iov = { buf, now };
        err = bm_is_special(a->old)
                  ? m->ops->read_special(m, bm_block(m, off), a->old, bm_in_block(m, off),
                                         &iov, 1, 0, now)
                  : read_backing(m, &iov, 1, off, 0, now);
        if (!err && !(a->fresh && blk_is_zero(buf, now))) {
            err = co_write(m->file, host, buf, now, 0);
        }
        off += now;
        host += now;
        len -= now;
    }
    blk_buf_free(buf);
    return err;
}

static int fill(struct alloc *a, uint64_t off, uint64_t host, uint64_t len)
{
    if (!len) {
        return 0;
    }
    if (bm_is_special(a->old) || (a->old == BM_ABSENT && (a->m->n->backing || a->m->absent_err))) {
        return fill_copy(a, off, host, len);
    }
    return a->fresh ? 0 : co_write_zeroes(a->m->file, host, len, 0);
}

/* Make the file reach to end: zeros in the last of the tail bytes before it, which the
 * request does not write. */
static int reach(struct alloc *a, uint64_t end, uint64_t tail)
{
    static const uint8_t zeros[END_MARK];
    size_t len = (size_t)BLK_MIN(tail, (uint64_t)END_MARK);
    return end <= a->m->file->size ? 0 : co_write(a->m->file, end - len, zeros, len, 0);
}

static int write_data(struct alloc *a, const struct blk_req *req, uint64_t pos, uint64_t host,
                      uint64_t len)
{
    struct blk_parts *parts = blk_parts_new(req->iov, req->iovcnt);
    int err = parts ? blk_parts_add(parts, a->m->file, BLK_WRITE, host, pos, len) : 0;
    int end = blk_parts_end(parts);
    return err ? err : end;
}

static int alloc_write(struct alloc *a, const struct blk_req *req, uint64_t pos, uint64_t len)
{
    struct blockmap *m = a->m;
    uint64_t off = req->offset + pos, start = m->base + a->busy.first * m->block_size;
    uint64_t bytes = (a->busy.end - a->busy.first) * m->block_size;
    uint64_t head = off - start, tail = bytes - head - len;
    int err = m->ops->prepare ? m->ops->prepare(m, a->busy.first, a->host) : 0;

    err = err ? err : fill(a, start, a->host, head);
    err = err || !tail ? err : fill(a, off + len, a->host + head + len, tail);
    err = err ? err : write_data(a, req, pos, a->host + head, len);
    return err || !tail ? err : reach(a, a->host + bytes, tail);
}

static int alloc_publish(struct alloc *a)
{
    struct blockmap *m = a->m;
    struct bm_page *p;
    int err = bm_page_get(m, a->busy.first, &p);

    for (uint64_t i = 0; !err && i < a->busy.end - a->busy.first; i++) {
        bm_page_set(m, p, a->busy.first + i, a->host + i * m->block_size);
    }
    return err;
}

/* Write to blocks that have no place of their own: some of them, *done bytes. */
static int write_allocating(struct blockmap *m, const struct blk_req *req, uint64_t pos,
                            const struct extent *x, uint64_t *done)
{
    uint64_t off = req->offset + pos, first = bm_block(m, off);
    uint64_t n = m->lead || m->ops->prepare ? 1 : BLK_MIN(x->blocks, ALLOC_MAX / m->block_size);
    struct alloc a = { .m = m, .old = x->v };
    int err;

    n = BLK_MAX(n, 1u);

    a.busy.first = first;
    a.busy.end = first + n;
    busy_enter(m, &a.busy);         /* does not wait: the caller looked */
    err = bm_page_make(m, first);
    if (!err) {
        n = bm_reserve(m, n, &a.host, &a.fresh);
        err = n ? 0 : -ENOSPC;
    }
    if (!err) {
        a.busy.end = first + n;
        *done = BLK_MIN(x->len, m->base + (first + n) * m->block_size - off);
        err = alloc_write(&a, req, pos, *done);
        err = err ? err : alloc_publish(&a);
        if (err) {
            bm_unreserve(m, a.host, n);
        }
    }
    busy_leave(m, &a.busy);
    return err;
}

/* ---- writes ------------------------------------------------------------------------------------- */

static int touch_block(struct blockmap *m, uint64_t block, uint64_t host)
{
    struct bm_busy busy = { block, block + 1, NULL };
    busy_enter(m, &busy);
    int err = m->ops->touched(m, block) ? 0 : m->ops->touch(m, block, host);
    busy_leave(m, &busy);
    return err;
}

static int write_piece(struct blockmap *m, struct blk_parts *parts, const struct blk_req *req,
                       uint64_t pos, uint64_t *done)
{
    uint64_t off = req->offset + pos, first = bm_block(m, off);
    struct bm_page *p;
    struct extent x;
    int err = bm_page_get(m, first, &p);

    if (err) {
        return err;
    }
    extent_at(m, p, off, req->length - pos, &x);
    if (busy_hit(m, first, first + x.blocks)) {
        co_wait_on(&m->busy_q);     /* entries may be changing: look again */
        return 0;
    }
    if (x.v == BM_BAD) {
        return bad_entry(m, off);
    }
    if (!bm_is_data(x.v)) {
        return write_allocating(m, req, pos, &x, done);
    }
    if (!all_touched(m, first, 1)) {
        return touch_block(m, first, x.v - bm_in_block(m, off));
    }
    if (!all_touched(m, first, x.blocks)) {
        x.len = BLK_MIN(x.len, m->block_size - bm_in_block(m, off));
    }
    *done = x.len;
    return blk_parts_add(parts, m->file, BLK_WRITE, x.v, pos, x.len);
}

static int write_fiber(struct blk_req *req)
{
    struct blockmap *m = bm_of(req);
    struct blk_parts *parts;
    uint64_t pos = 0;
    int err;

    parts = blk_parts_new(req->iov, req->iovcnt);
    err = parts ? 0 : -ENOMEM;
    if (m->lead) {
        co_lock(&m->order);         /* its blocks find places one by one, and all of them first */
    }
    while (!err && pos < req->length) {
        uint64_t done = 0;
        err = blk_parts_room(parts);
        if (!err) {
            err = write_piece(m, parts, req, pos, &done);
        }
        pos += done;
    }
    if (m->lead) {
        co_unlock(&m->order);
    }
    int end = blk_parts_end(parts);
    err = err ? err : end;
    return err || m->dirty_bytes <= m->cache / 2 ? err : blockmap_flush(m);
}

/* ---- compressed writes ------------------------------------------------------------------------- */

/* One block, whatever it was before; a new place for it, as its old one may be read. */
static int write_special(struct blockmap *m, uint64_t block, const uint8_t *buf)
{
    struct bm_busy busy = { block, block + 1, NULL };
    struct bm_page *p;
    uint64_t v = BM_ABSENT, host, old;
    bool fresh;

    busy_enter(m, &busy);
    int err = bm_page_make(m, block);
    err = err ? err : m->ops->write_special(m, buf, &v);
    bool plain = !err && v == BM_ABSENT;
    if (plain && !bm_reserve(m, 1, &host, &fresh)) {
        plain = false;
        err = -ENOSPC;
    }
    if (plain) {
        v = host;
        err = co_write(m->file, host, buf, m->block_size, 0);
    }
    err = err ? err : bm_page_get(m, block, &p);
    if (!err) {
        old = bm_value(m, p, block);
        err = bm_is_data(old) ? bm_free_later(m, old) : 0;
    }
    if (!err) {
        bm_page_set(m, p, block, v);
    } else if (plain) {
        bm_unreserve(m, host, 1);
    }
    busy_leave(m, &busy);
    return err;
}

/* Whole blocks; the last one may be cut short by the end of the node. */
static int special_fiber(struct blk_req *req)
{
    struct blockmap *m = bm_of(req);
    uint64_t end = req->offset + req->length, size = m->block_size;
    bool whole = !bm_in_block(m, req->offset) && (!bm_in_block(m, end) || end == m->n->size);
    uint8_t *buf = blk_buf_alloc(size);
    int err = !whole ? -EINVAL : buf ? 0 : -ENOMEM;

    for (uint64_t pos = 0; !err && pos < req->length; pos += size) {
        uint64_t now = BLK_MIN(size, req->length - pos);
        blk_iov_to_buf(req->iov, req->iovcnt, pos, buf, now);
        memset(buf + now, 0, size - now);
        err = write_special(m, bm_block(m, req->offset + pos), buf);
    }
    blk_buf_free(buf);
    return err || m->dirty_bytes <= m->cache / 2 ? err : blockmap_flush(m);
}

/* ---- zeroes and discards ---------------------------------------------------------------------------- */

/* Give whole blocks [first, end) of one page the value v. */
static int clear_blocks(struct blockmap *m, uint64_t first, uint64_t end, uint64_t v)
{
    struct bm_page *p;
    int err = v == BM_ABSENT ? 0 : bm_page_make(m, first);

    err = err ? err : bm_page_get(m, first, &p);
    for (uint64_t b = first; !err && p && b < end; b++) {
        uint64_t old = bm_value(m, p, b);
        if (old == v || (v == BM_ABSENT && old == BM_ZERO && !m->n->backing)) {
            continue;
        }
        err = bm_is_data(old) ? bm_free_later(m, old) : 0;
        if (!err) {
            bm_page_set(m, p, b, v);
        }
    }
    return err;
}

static int clear_range(struct blockmap *m, const struct blk_req *req, uint64_t v)
{
    uint64_t b = bm_block(m, req->offset);
    uint64_t end = bm_block(m, req->offset + req->length - 1) + 1;
    int err = 0;

    while (!err && b < end) {
        struct bm_busy busy = { b, b + 1, NULL };
        uint64_t page = bm_page_of(m, b);
        while (busy.end < end && bm_page_of(m, busy.end) == page) {
            busy.end++;
        }
        busy_enter(m, &busy);
        err = clear_blocks(m, busy.first, busy.end, v);
        busy_leave(m, &busy);
        b = busy.end;
    }
    return err || m->dirty_bytes <= m->cache / 2 ? err : blockmap_flush(m);
}

/* The core cuts at whole blocks; only at the node's end is one partial. */
static int zero_fiber(struct blk_req *req)
{
    struct blockmap *m = bm_of(req);
    if (m->zero_marks) {
        return clear_range(m, req, BM_ZERO);
    }
    return m->n->backing ? -ENOTSUP : clear_range(m, req, BM_ABSENT);
}

static int discard_fiber(struct blk_req *req)
{
    struct blockmap *m = bm_of(req);
    if (m->n->backing && !m->zero_marks) {
        return 0;                   /* what lies below must not show */
    }
    return clear_range(m, req, m->n->backing ? BM_ZERO : BM_ABSENT);
}

static int flush_fiber(struct blk_req *req)
{
    return blockmap_flush(bm_of(req));
}

void blockmap_submit(struct blockmap *m, struct blk_req *req)
{
    req->drv[0] = (uint64_t)(uintptr_t)m;
    switch (req->op) {
    case BLK_READ:
        if (!fast_read(m, req)) {
            blk_req_fiber(req, read_fiber);
        }
        break;
    case BLK_WRITE:
        if (req->flags & BLK_REQ_COMPRESSED) {
            blk_req_fiber(req, special_fiber);
        } else if (!fast_write(m, req)) {
            blk_req_fiber(req, write_fiber);
        }
        break;
    case BLK_WRITE_ZEROES:
        blk_req_fiber(req, zero_fiber);
        break;
    case BLK_DISCARD:
        blk_req_fiber(req, discard_fiber);
        break;
    default:
        if (bm_clean(m)) {
            blk_forward(req, m->file, 0, NULL);
        } else {
            blk_req_fiber(req, flush_fiber);
        }
    }
}

/* ---- status ------------------------------------------------------------------------------------------- */

static unsigned status_flags(const struct blockmap *m, uint64_t v)
{
    if (bm_is_data(v)) {
        return BLK_ST_DATA | BLK_ST_ALLOCATED | BLK_ST_OFFSET | (m->holes ? BLK_ST_RECURSE : 0);
    }
    if (bm_is_special(v)) {
        return BLK_ST_DATA | BLK_ST_ALLOCATED | BLK_ST_COMPRESSED;
    }
    return v == BM_ZERO || m->absent_is_zero ? BLK_ST_ZERO | BLK_ST_ALLOCATED : 0;
}

int blockmap_status(struct blockmap *m, uint64_t off, uint64_t len, struct blk_status *st)
{
    uint64_t at = off, end = off + len;

    st->flags = 0;
    while (at < end) {
        struct bm_page *p;
        struct extent x;
        int err = bm_page_get(m, bm_block(m, at), &p);
        if (!err) {
            extent_at(m, p, at, end - at, &x);
            err = x.v == BM_BAD ? bad_entry(m, at) : 0;
        }
        if (err) {
            return at == off ? err : 0;
        }
        unsigned flags = status_flags(m, x.v);
        if (at == off) {
            st->flags = flags;
            st->host = m->file;
            st->host_offset = bm_is_data(x.v) ? x.v : 0;
            st->length = 0;
        } else if (flags != st->flags ||
                   (flags & BLK_ST_OFFSET && st->host_offset + st->length != x.v)) {
            break;
        }
        st->length += x.len;
        at += x.len;
    }
    return 0;
}
