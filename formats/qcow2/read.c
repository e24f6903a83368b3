/*
 * read.c - where a guest request enters: the fast path (a cached mapping, one
 * place: forwarded as it is, no fiber, no allocation), reads that need more, and
 * block status.
 *
 * Invariant: between looking up a host offset and submitting a request for it
 * nothing waits, so the request is in the file's epoch before the cluster could
 * be freed and used again (refcount.c waits for that epoch).
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- one lookup -------------------------------------------------------------------- */

/* Consecutive subclusters of one slice that one request can serve. */
struct extent {
    enum qcow2_type type;
    uint64_t host;                  /* NORMAL: offset of the first byte asked for */
    uint64_t entry, map;            /* of the first cluster, host order */
    uint64_t len;                   /* bytes */
    bool copied;                    /* NORMAL: every cluster may be overwritten */
};

static bool entry_sane(const struct qcow2 *q, uint64_t e)
{
    return e & QCOW2_COMPRESSED ||
           !(e & ((QCOW2_OFFSET_MASK & (q->cluster_size - 1)) |
                  (q->h.version < 3 ? QCOW2_ZERO : 0)));
}

/* s NULL: no L2 table.  -EIO with nothing said: the caller reports. */
static int extent_at(const struct qcow2 *q, const struct qcow2_slice *s, uint64_t off,
                     uint64_t len, struct extent *x)
{
    unsigned i = qcow2_entry_index(q, off), end = 1u << q->slice_bits;
    unsigned sc = qcow2_sub_index(q, off), run;

    *x = (struct extent){ .type = QCOW2_UNALLOCATED };
    if (!s) {
        uint64_t span = (uint64_t)q->cluster_size << q->l2_bits;
        x->len = BLK_MIN(len, span - (off & (span - 1)));
        return 0;
    }
    x->entry = qcow2_entry_get(q, s->word, i);
    x->map = qcow2_bitmap_get(q, s->word, i);
    x->type = qcow2_sub_type(q, x->entry, x->map, sc, &run);
    if (!entry_sane(q, x->entry) || x->type == QCOW2_INVALID) {
        return -EIO;
    }
    x->host = (x->entry & QCOW2_OFFSET_MASK) + (off & (q->cluster_size - 1));
    if (qcow2_external(q) && !qcow2_external_sane(q, x->entry, off)) {
        return -EIO;
    }
    x->copied = x->entry & QCOW2_COPIED;
    uint64_t next = x->entry & QCOW2_OFFSET_MASK;
    uint64_t got = ((uint64_t)run << q->sub_shift) - (off & (q->sub_size - 1));
    /* On while the run reaches the end of its cluster. */
    while (got < len && sc + run == 1u << q->sub_bits && ++i < end && x->type != QCOW2_DEFLATED) {
        uint64_t e = qcow2_entry_get(q, s->word, i);
        enum qcow2_type t = qcow2_sub_type(q, e, qcow2_bitmap_get(q, s->word, i), sc = 0, &run);
        next += q->cluster_size;
        if (t != x->type || !entry_sane(q, e) ||
            ((t == QCOW2_NORMAL || t == QCOW2_ZERO_ALLOC || t == QCOW2_UNALLOC_HOST) &&
             ((e & QCOW2_OFFSET_MASK) != next || !(e & QCOW2_COPIED) != !x->copied))) {
            break;
        }
        got += (uint64_t)run << q->sub_shift;
    }
    x->len = BLK_MIN(len, got);
    return 0;
}

/* ---- the fast path ------------------------------------------------------------------------ */

/* The whole request in one slice that is in memory (or in a hole of the L1). */
static bool fast_extent(struct qcow2 *q, const struct blk_req *req, struct extent *x)
{
    uint64_t slice = qcow2_slice_index(q, req->offset);
    if (slice != qcow2_slice_index(q, req->offset + req->length - 1)) {
        return false;
    }
    struct qcow2_slice *s = qcow2_slice_peek(q, slice);
    if (!s && q->l1[qcow2_l1_index(q, slice)] & QCOW2_OFFSET_MASK) {
        return false;
    }
    return !extent_at(q, s, req->offset, req->length, x) && x->len == req->length;
}

static bool fast_read(struct qcow2 *q, struct blk_req *req)
{
    struct extent x;
    if (!fast_extent(q, req, &x)) {
        return false;
    }
    switch (x.type) {
    case QCOW2_NORMAL:
        blk_event(q->file, "read_aio");
        blk_forward(req, q->data, x.host, NULL);
        return true;
    case QCOW2_UNALLOCATED:
    case QCOW2_UNALLOC_HOST:
        blk_event(q->file, "read_backing_aio");
        blk_forward_backing(req);
        return true;
    case QCOW2_DEFLATED: {
        const uint8_t *data = qcow2_inflated_peek(q, x.entry);
        if (!data) {
            return false;
        }
        blk_iov_from_buf(req->iov, req->iovcnt, 0, data + (req->offset & (q->cluster_size - 1)),
                         req->length);
        break;
    }
    default:
        blk_iov_zero(req->iov, req->iovcnt, 0, req->length);
        break;
    }
    blk_complete(req, 0);
    return true;
}

static bool hits_metadata(const struct qcow2 *q, uint64_t host, uint64_t len)
{
    uint64_t end = host + len;
    if (qcow2_external(q)) {
        return false;
    }
    for (uint64_t c = blk_align_down(host, q->cluster_size); c < end; c += q->cluster_size) {
        if (qcow2_meta_hit(q, c)) {
            return true;
        }
    }
    return false;
}

static bool fast_write(struct qcow2 *q, struct blk_req *req)
{
    struct extent x;
    struct qcow2_busy b = qcow2_busy_range(q, req->offset, req->length);
    if (q->corrupt || req->flags & BLK_REQ_COMPRESSED ||
        (q->busy && qcow2_busy_hit(q, b.first, b.end)) ||
        !fast_extent(q, req, &x) || x.type != QCOW2_NORMAL || !x.copied ||
        hits_metadata(q, x.host, x.len)) {
        return false;
    }
    blk_event(q->file, "write_aio");
    blk_forward(req, q->data, x.host, NULL);
    return true;
}

static int flush_fiber(struct blk_req *req)
{
    return qcow2_flush(req->node->state);
}

/* The first change since the bitmaps are up to date in the file. */
static int first_change_fiber(struct blk_req *req)
{
    struct qcow2 *q = req->node->state;
    int err = qcow2_bitmaps_mark(q, false);

    if (err) {
        return err;
    }
    qcow2_bitmaps_touch(q, req->offset, req->length);
    if (q->crypt && qcow2_crypt_own(q)) {
        return qcow2_aes_fiber(req);
    }
    return req->op == BLK_WRITE || req->op == BLK_COPY ? qcow2_write_fiber(req)
         : req->op == BLK_DISCARD ? qcow2_discard_fiber(req) : qcow2_zero_fiber(req);
}

void qcow2_submit(struct blk_node *n, struct blk_req *req)
{
    struct qcow2 *q = n->state;
    if (!q->data) {
        blk_complete(req, -EIO);        /* opened for its metadata only */
        return;
    }
    if (__builtin_expect(q->corrupt, 0)) {
        blk_complete(req, -ENOMEDIUM);
        return;
    }
    if (q->bm.tracking && req->op != BLK_READ && req->op != BLK_FLUSH &&
        !qcow2_bitmaps_touch(q, req->offset, req->length)) {
        blk_req_fiber(req, first_change_fiber);
        return;
    }
    if (q->crypt && qcow2_crypt_submit(q, req)) {
        return;
    }
    switch (req->op) {
    case BLK_READ:
        if (!fast_read(q, req)) {
            blk_req_fiber(req, qcow2_read_fiber);
        }
        break;
    case BLK_WRITE:
        if (!fast_write(q, req)) {
            blk_req_fiber(req, qcow2_write_fiber);
        }
        break;
    case BLK_COPY:
        blk_req_fiber(req, qcow2_write_fiber);
        break;
    case BLK_WRITE_ZEROES:
        blk_req_fiber(req, qcow2_zero_fiber);
        break;
    case BLK_DISCARD:
        blk_req_fiber(req, qcow2_discard_fiber);
        break;
    default:
        blk_event(q->file, "flush_to_os");
        if (qcow2_clean(q) && !q->flush_lock.held && !q->corrupt) {
            blk_event(q->file, "flush_to_disk");
            blk_forward(req, q->data, 0, NULL);      /* of q->file all is durable */
        } else {
            blk_req_fiber(req, flush_fiber);
        }
    }
}

/* ---- reads in pieces ------------------------------------------------------------------------- */

static int read_backing_part(struct blk_node *n, const struct blk_req *req, uint64_t off,
                             uint64_t pos, uint64_t len)
{
    if (!n->backing || off >= n->backing->size) {
        blk_iov_zero(req->iov, req->iovcnt, pos, len);
        return 0;
    }
    struct iovec *part = malloc(sizeof(*part) * (size_t)(req->iovcnt + 1));
    if (!part) {
        return -ENOMEM;
    }
    int cnt = blk_iov_slice(req->iov, req->iovcnt, pos, len, part, req->iovcnt + 1);
    int err = co_read_backing(n, off, part, cnt, len);
    free(part);
    return err;
}

#define RUN_MAX 128u                    /* compressed clusters read at once */
#define RUN_BYTES (4u << 20)
#define RUN_ALONE (512u << 10)          /* a cluster of this size is a run, too large to keep */

/* The whole compressed clusters from off on that one buffer takes; 0: not worth it.
 * Nothing may wait between this and their use. */
static uint64_t compressed_run(struct qcow2 *q, const struct qcow2_slice *s,
                               const struct blk_req *req, uint64_t off, uint64_t pos, uint64_t len,
                               uint64_t *entry, void **buf)
{
    unsigned i = qcow2_entry_index(q, off), end = 1u << q->slice_bits;
    const struct iovec *v = req->iov;
    uint64_t n = 0, max;

    while (pos >= v->iov_len) {
        pos -= v++->iov_len;
    }
    *buf = (char *)v->iov_base + pos;
    len = BLK_MIN(BLK_MIN(len, v->iov_len - pos), RUN_BYTES);
    max = off & (q->cluster_size - 1) ? 0 : BLK_MIN(len >> q->h.cluster_bits, RUN_MAX);
    for (; n < max && i < end; i++, n++) {
        entry[n] = qcow2_entry_get(q, s->word, i) & ~QCOW2_COPIED;
        if (!(entry[n] & QCOW2_COMPRESSED) || qcow2_bitmap_get(q, s->word, i)) {
            break;
        }
    }
    return n > 1 || q->cluster_size >= RUN_ALONE ? n : 0;
}

static int read_piece(struct qcow2 *q, struct blk_parts *parts, const struct blk_req *req,
                      uint64_t off, uint64_t pos, uint64_t len, uint64_t *done)
{
    uint64_t run = 0, entry[RUN_MAX];
    struct qcow2_slice *s;
    struct extent x;
    void *buf;
    int err = qcow2_l2_read(q, off, &s);

    if (err) {
        return err;
    }
    err = extent_at(q, s, off, len, &x);
    if (!err && x.type == QCOW2_DEFLATED) {
        run = compressed_run(q, s, req, off, pos, len, entry, &buf);
    }
    if (s) {
        qcow2_slice_put(s);
    }
    if (err) {
        return qcow2_entry_bad(q, x.entry, x.map, off, false);
    }
    if (run) {
        blk_event(q->file, "read_compressed");
        *done = run << q->h.cluster_bits;
        return qcow2_read_compressed_run(q, entry, run, buf);
    }
    *done = x.len;
    switch (x.type) {
    case QCOW2_NORMAL:
        blk_event(q->file, "read_aio");
        return blk_parts_add(parts, q->data, BLK_READ, x.host, pos, x.len);
    case QCOW2_UNALLOCATED:
    case QCOW2_UNALLOC_HOST:
        blk_event(q->file, "read_backing_aio");
        return read_backing_part(q->n, req, off, pos, x.len);
    case QCOW2_DEFLATED:
        blk_event(q->file, "read_compressed");
        return qcow2_read_compressed(q, x.entry, off & (q->cluster_size - 1), req->iov,
                                     req->iovcnt, pos, x.len);
    default:
        blk_iov_zero(req->iov, req->iovcnt, pos, x.len);
        return 0;
    }
}

int qcow2_read_fiber(struct blk_req *req)
{
    struct qcow2 *q = req->node->state;
    struct blk_parts *parts = blk_parts_new(req->iov, req->iovcnt);
    uint64_t pos = 0;
    int err = parts ? 0 : -ENOMEM;

    while (!err && pos < req->length) {
        uint64_t done = 0;
        err = blk_parts_room(parts);
        if (!err) {
            err = read_piece(q, parts, req, req->offset + pos, pos, req->length - pos, &done);
        }
        pos += done;
    }
    int end = blk_parts_end(parts);
    return err ? err : end;
}

/* ---- status -------------------------------------------------------------------------------------- */

/* As QEMU: clusters that are mapped but were never written (preallocation=metadata
 * and the like) are only worth a look at the file when there seem to be many. */
static int detect_preallocation(struct qcow2 *q, bool *out)
{
    int64_t real = blk_allocated_size(q->file);
    *out = false;
    if (q->prealloc_known || real < 0) {
        *out = q->preallocated;
        return 0;
    }
    if (!q->reft) {
        int err = qcow2_reft_load(q, NULL);
        if (err) {
            return err;
        }
    }
    for (uint64_t i = 0; i < q->reft_len; i++) {
        if (q->reft[i] & (q->cluster_size - 1) || q->reft[i] >= q->file->size) {
            q->prealloc_known = true;   /* damaged: reading does not depend on it */
            return 0;
        }
    }
    uint64_t clusters = qcow2_clusters(q, q->file->size), used = 0;
    uint64_t have = (uint64_t)real >> q->h.cluster_bits;
    uint64_t many = BLK_MAX(have * 10 / 9, have + 2);
    for (uint64_t c = 0; c < clusters && !*out; c++) {
        uint64_t count;
        if (!(c & ((1ull << q->refblock_bits) - 1)) &&
            (c >> q->refblock_bits >= q->reft_len || !q->reft[c >> q->refblock_bits])) {
            c += (1ull << q->refblock_bits) - 1;
            continue;
        }
        int err = qcow2_refcount_get(q, c, &count);
        if (err) {
            return err;
        }
        used += count > 0;
        *out = used >= many;
    }
    q->prealloc_known = true;
    q->preallocated = *out;
    return 0;
}

static void status_set(struct qcow2 *q, const struct extent *x, struct blk_status *st)
{
    st->host = q->data;
    st->host_offset = x->host;
    switch (x->type) {
    case QCOW2_NORMAL:
        st->flags = BLK_ST_DATA | BLK_ST_ALLOCATED | BLK_ST_OFFSET;
        break;
    case QCOW2_DEFLATED:
        st->flags = BLK_ST_DATA | BLK_ST_ALLOCATED | BLK_ST_COMPRESSED;
        break;
    case QCOW2_ZERO_ALLOC:
        st->flags = BLK_ST_ZERO | BLK_ST_ALLOCATED | BLK_ST_OFFSET;
        break;
    case QCOW2_ZERO_PLAIN:
        st->flags = BLK_ST_ZERO | BLK_ST_ALLOCATED;
        break;
    case QCOW2_UNALLOC_HOST:
        st->flags = BLK_ST_OFFSET;
        break;
    default:
        st->flags = 0;
        break;
    }
    if (q->crypt) {
        st->flags &= ~(unsigned)BLK_ST_OFFSET;      /* what lies there is nobody's to read */
    }
}

/* Does x, found right behind st, continue it? */
static bool status_continues(const struct blk_status *st, const struct blk_status *next)
{
    return st->flags == next->flags &&
           (!(st->flags & BLK_ST_OFFSET) || st->host_offset + st->length == next->host_offset);
}

int qcow2_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    struct qcow2 *q = n->state;
    uint64_t at = off, end = off + len;
    bool first = true, preallocated, holes = st->flags & BLK_ST_RECURSE;

    while (at < end) {
        struct qcow2_slice *s;
        struct extent x;
        struct blk_status next = { 0 };
        int err = qcow2_l2_read(q, at, &s);
        if (err) {
            return first ? err : 0;
        }
        err = extent_at(q, s, at, end - at, &x);
        if (s) {
            qcow2_slice_put(s);
        }
        if (err) {
            return first ? qcow2_entry_bad(q, x.entry, x.map, at, false) : 0;
        }
        status_set(q, &x, &next);
        if (first) {
            next.layer = st->layer;
            *st = next;
            st->length = 0;
        } else if (!status_continues(st, &next)) {
            break;
        }
        first = false;
        st->length += x.len;
        at += x.len;
    }
    if (holes && st->flags & BLK_ST_DATA && st->flags & BLK_ST_OFFSET) {
        int err = detect_preallocation(q, &preallocated);
        if (err) {
            return err;
        }
        st->flags |= preallocated ? BLK_ST_RECURSE : 0;
    }
    return 0;
}
