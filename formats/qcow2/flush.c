/*
 * flush.c - the order in which metadata reaches the disk.
 *
 * A flush takes a copy of everything that is dirty at its start and writes
 *
 *   1. refcount blocks (counts only ever went up, or down for pointers whose
 *      removal an earlier flush made durable); new entries of the refcount table
 *      follow a sync of the blocks they point at
 *        -- sync: guest data, COW data, L2 table bodies, counts are durable --
 *   2. L2 slices and the L1 table: the pointers
 *        -- sync: the guest's writes are durable --
 *   3. then counts of clusters that lost their pointer go down in memory and
 *      their space is punched; that is written by the next flush.
 *
 * Invariants
 *  - Requests go on during a flush: what they change is dirty again and belongs
 *    to the next one; the copies hold only pointers whose data was complete.
 *  - Pieces being written stay pinned: dropping and re-reading one would bring
 *    back its old content.
 *  - When a step fails everything taken is dirty again; nothing is lost.
 *  - Without allocations a flush is one sync, with them two.
 *
 * Lazy refcounts: the first flush after guest clusters got places marks the image dirty,
 * durably.  From then on step 1 is left out, and with it a sync, until qcow2_settle() writes
 * the counts and then clears the bit.  After a crash the counts are made anew from the pointers
 * (open.c), which are durable as ever.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct piece {                          /* one write of metadata */
    struct blk_req req;
    struct iovec iov;
};

struct flush {
    struct qcow2 *q;
    struct qcow2_block **blocks;
    struct qcow2_slice **slices;
    bool counts;                        /* refcount blocks and table are written, too */
    size_t nblocks, nslices, nl1, nreft;
    uint64_t *l1_at, *reft_at;          /* first entry of each 512-byte piece */
    uint8_t *copy;                      /* blocks, slices, L1, reft: in this order */
    struct qcow2_run *to_free;
};

/* ---- taking the copy ------------------------------------------------------------- */

static uint64_t l1_pieces(const struct qcow2 *q)
{
    return q->l1_any_dirty ? (q->h.l1_size * 8ull + 511) / 512 : 0;
}

static int flush_reserve(struct flush *f)
{
    struct qcow2 *q = f->q;
    uint64_t reft = f->counts && q->reft_dirty_first < q->reft_dirty_end
                        ? (q->reft_dirty_end - 1) / 64 - q->reft_dirty_first / 64 + 1 : 0;
    uint64_t blocks = f->counts ? q->ndirty_blocks : 0;
    size_t bytes = blocks * q->cluster_size + q->ndirty_slices * qcow2_slice_bytes(q);
    uint64_t l1 = 0;

    for (uint64_t i = 0, n = l1_pieces(q); i < n; i++) {
        l1 += q->l1_dirty[i];
    }
    f->blocks = calloc(blocks + 1, sizeof(*f->blocks));
    f->slices = calloc(q->ndirty_slices + 1, sizeof(*f->slices));
    f->l1_at = calloc(l1 + 1, sizeof(*f->l1_at));
    f->reft_at = calloc(reft + 1, sizeof(*f->reft_at));
    f->copy = blk_buf_alloc(bytes + (l1 + reft) * 512 + 512);
    return f->blocks && f->slices && f->l1_at && f->reft_at && f->copy ? 0 : -ENOMEM;
}

/* 64 table entries from first on, big-endian, zeros past len. */
static void encode_entries(uint8_t *dst, const uint64_t *table, uint64_t first, uint64_t len)
{
    for (uint64_t i = 0; i < 64; i++) {
        put_be64(dst + i * 8, first + i < len ? table[first + i] : 0);
    }
}

static uint8_t *take_blocks(struct flush *f)
{
    struct qcow2 *q = f->q;
    uint8_t *at = f->copy;

    for (struct qcow2_block *b = q->dirty_blocks; b; b = b->dirty_next) {
        memcpy(at, b->data, q->cluster_size);
        at += q->cluster_size;
        b->dirty = false;
        b->pins++;
        f->blocks[f->nblocks++] = b;
    }
    q->dirty_blocks = NULL;
    q->ndirty_blocks = 0;
    return at;
}

static void take_reft(struct flush *f, uint8_t *at)
{
    struct qcow2 *q = f->q;

    for (uint64_t i = q->reft_dirty_first & ~63ull; i < q->reft_dirty_end; i += 64, at += 512) {
        encode_entries(at, q->reft, i, q->reft_len);
        f->reft_at[f->nreft++] = i;
    }
    q->reft_dirty_first = UINT64_MAX;
    q->reft_dirty_end = 0;
}

static void flush_take(struct flush *f)
{
    struct qcow2 *q = f->q;
    uint8_t *at = f->counts ? take_blocks(f) : f->copy;

    for (struct qcow2_slice *s = q->dirty_slices; s; s = s->dirty_next) {
        memcpy(at, s->word, qcow2_slice_bytes(q));
        at += qcow2_slice_bytes(q);
        s->dirty = false;
        s->pins++;
        f->slices[f->nslices++] = s;
    }
    for (uint64_t i = 0, n = l1_pieces(q); i < n; i++) {
        if (q->l1_dirty[i]) {
            encode_entries(at, q->l1, i * 64, q->h.l1_size);
            at += 512;
            q->l1_dirty[i] = 0;
            f->l1_at[f->nl1++] = i * 64;
        }
    }
    if (f->counts) {
        take_reft(f, at);
    }
    q->dirty_slices = NULL;
    q->ndirty_slices = 0;
    q->l1_any_dirty = false;
    f->to_free = q->to_free;
    q->to_free = NULL;
}

static void flush_untake(struct flush *f)
{
    struct qcow2 *q = f->q;
    for (size_t i = 0; i < f->nblocks; i++) {
        qcow2_block_dirty(q, f->blocks[i]);
    }
    for (size_t i = 0; i < f->nslices; i++) {
        qcow2_slice_dirty(q, f->slices[i]);
    }
    for (size_t i = 0; i < f->nl1; i++) {
        qcow2_l1_set(q, f->l1_at[i], q->l1[f->l1_at[i]]);
    }
    for (size_t i = 0; i < f->nreft; i++) {
        q->reft_dirty_first = BLK_MIN(q->reft_dirty_first, f->reft_at[i]);
        q->reft_dirty_end = BLK_MAX(q->reft_dirty_end, BLK_MIN(f->reft_at[i] + 64, q->reft_len));
    }
    struct qcow2_run **last = &q->to_free;
    while (*last) {
        last = &(*last)->next;
    }
    *last = f->to_free;
    f->to_free = NULL;
}

static void flush_release(struct flush *f)
{
    for (size_t i = 0; i < f->nblocks; i++) {
        qcow2_block_put(f->blocks[i]);
    }
    for (size_t i = 0; i < f->nslices; i++) {
        qcow2_slice_put(f->slices[i]);
    }
    free(f->blocks);
    free(f->slices);
    free(f->l1_at);
    free(f->reft_at);
    blk_buf_free(f->copy);
}

/* ---- writing ------------------------------------------------------------------------ */

static void piece_set(struct piece *p, uint64_t off, uint8_t *buf, size_t len)
{
    p->iov = (struct iovec){ buf, len };
    p->req = (struct blk_req){ .op = BLK_WRITE, .offset = off, .length = len, .iovcnt = 1 };
}

static int by_offset(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    return x->req.offset < y->req.offset ? -1 : x->req.offset > y->req.offset;
}

/* All in flight at once, in the order of the file. */
static int pieces_write(struct qcow2 *q, struct piece *p, size_t n)
{
    struct co_batch b = { 0 };
    qsort(p, n, sizeof(*p), by_offset);
    for (size_t i = 0; i < n; i++) {
        p[i].req.iov = &p[i].iov;
        co_batch_add(&b, q->file, &p[i].req);
    }
    return co_batch_wait(&b);
}

static int write_blocks(struct flush *f)
{
    struct qcow2 *q = f->q;
    struct piece *p = calloc(f->nblocks + 1, sizeof(*p));
    if (!p) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < f->nblocks; i++) {
        piece_set(&p[i], q->reft[f->blocks[i]->index], f->copy + i * q->cluster_size,
                  q->cluster_size);
    }
    if (f->nblocks) {
        blk_event(q->file, "refblock_update_part");
    }
    int err = pieces_write(q, p, f->nblocks);
    free(p);
    return err;
}

static uint64_t slice_offset(const struct qcow2 *q, const struct qcow2_slice *s)
{
    uint64_t in_table = s->index & ((1ull << (q->l2_bits - q->slice_bits)) - 1);
    return (q->l1[qcow2_l1_index(q, s->index)] & QCOW2_OFFSET_MASK) + in_table * qcow2_slice_bytes(q);
}

static int write_pointers(struct flush *f)
{
    struct qcow2 *q = f->q;
    uint8_t *at = f->copy + f->nblocks * q->cluster_size;
    struct piece *p = calloc(f->nslices + f->nl1 + 1, sizeof(*p));
    size_t n = 0;
    if (!p) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < f->nslices; i++, at += qcow2_slice_bytes(q)) {
        piece_set(&p[n++], slice_offset(q, f->slices[i]), at, qcow2_slice_bytes(q));
    }
    for (size_t i = 0; i < f->nl1; i++, at += 512) {
        uint64_t left = (q->h.l1_size - f->l1_at[i]) * 8;
        piece_set(&p[n++], q->h.l1_offset + f->l1_at[i] * 8, at, (size_t)BLK_MIN(left, 512u));
    }
    if (f->nl1) {
        blk_event(q->file, "l1_update");
    }
    if (f->nslices) {
        blk_event(q->file, "l2_update");
    }
    int err = pieces_write(q, p, n);
    free(p);
    return err;
}

/* Refcount table entries in place; the blocks they point at are durable. */
static int write_reft(struct flush *f)
{
    struct qcow2 *q = f->q;
    uint8_t *at = f->copy + f->nblocks * q->cluster_size + f->nslices * qcow2_slice_bytes(q) +
                  f->nl1 * 512;
    struct piece *p = calloc(f->nreft + 1, sizeof(*p));
    if (!p) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < f->nreft; i++, at += 512) {
        piece_set(&p[i], q->h.reft_offset + f->reft_at[i] * 8, at, 512);
    }
    if (f->nreft) {
        blk_event(q->file, "refblock_alloc_hookup");
    }
    int err = pieces_write(q, p, f->nreft);
    free(p);
    return err;
}

/* ---- a refcount table that became too small ------------------------------------------- */

/* The new table's place is allocated before the copy is taken (it may need blocks
 * of its own, which may need a longer table: repeat). */
static int reft_make_room(struct qcow2 *q, struct qcow2_space *at)
{
    uint64_t entries_per_cluster = q->cluster_size / 8;
    *at = q->reft_place;
    q->reft_place.clusters = 0;
    while (q->reft_len > BLK_MAX(q->reft_on_disk, at->clusters * entries_per_cluster)) {
        uint64_t want = q->reft_len + q->reft_len / 2;
        uint64_t clusters = (want + entries_per_cluster - 1) / entries_per_cluster;
        if (clusters * q->cluster_size > QCOW2_MAX_REFTABLE_BYTES) {
            clusters = QCOW2_MAX_REFTABLE_BYTES / q->cluster_size;
        }
        if (at->clusters) {
            int err = qcow2_unalloc(q, at->offset, at->clusters);
            if (err) {
                return err;
            }
        }
        int err = qcow2_alloc(q, clusters, true, at);
        if (err) {
            return err;
        }
    }
    return 0;
}

static int reft_write_moved(struct flush *f, const struct qcow2_space *at)
{
    struct qcow2 *q = f->q;
    uint64_t bytes = at->clusters << q->h.cluster_bits;
    const uint8_t *copy = f->copy + f->nblocks * q->cluster_size + f->nslices * qcow2_slice_bytes(q) +
                          f->nl1 * 512;
    uint8_t *buf = blk_buf_alloc(bytes);
    struct qcow2_header old = q->h;
    int err = buf ? 0 : -ENOMEM;

    if (!err) {
        memset(buf, 0, bytes);
        memcpy(buf, copy, f->nreft * 512);
    }
    blk_event(q->file, "refblock_alloc_write_table");
    err = err ? err : co_write(q->file, at->offset, buf, bytes, 0);
    err = err ? err : co_flush(q->file);
    blk_buf_free(buf);
    err = err ? err : qcow2_meta_add(q, at->offset, at->clusters);
    if (err) {
        return err;
    }
    q->h.reft_offset = at->offset;
    q->h.reft_clusters = (uint32_t)at->clusters;
    err = qcow2_header_update(q);
    if (err) {
        q->h = old;
        qcow2_meta_del(q, at->offset, at->clusters);
        return err;
    }
    q->reft_on_disk = bytes / 8;
    qcow2_meta_del(q, old.reft_offset, old.reft_clusters);
    qcow2_free_later(q, old.reft_offset, old.reft_clusters);
    return 0;
}

/* ---- the flush --------------------------------------------------------------------------- */

static int flush_write(struct flush *f, const struct qcow2_space *moved)
{
    struct qcow2 *q = f->q;
    int err = qcow2_external(q) ? co_flush(q->data) : 0;

    err = err ? err : write_blocks(f);
    if (!err && (f->nreft || moved->clusters)) {
        err = co_flush(q->file);
        if (!err) {
            err = moved->clusters ? reft_write_moved(f, moved) : write_reft(f);
        }
    }
    if (!err && (f->nslices || f->nl1)) {
        err = co_flush(q->file);
        err = err ? err : write_pointers(f);
    }
    blk_event(q->file, "flush_to_disk");
    return err ? err : co_flush(q->file);
}

/* Before the first pointer is written whose cluster is counted late. */
static int mark_dirty(struct qcow2 *q)
{
    int err;

    if (!q->linked || q->h.incompatible & QCOW2_INC_DIRTY) {
        return 0;
    }
    q->h.incompatible |= QCOW2_INC_DIRTY;
    err = qcow2_header_update(q);
    if (err) {
        q->h.incompatible &= ~(uint64_t)QCOW2_INC_DIRTY;
    }
    return err;
}

static int flush_once(struct qcow2 *q)
{
    struct flush f = { .q = q };
    struct qcow2_space moved = { 0 };
    int err = mark_dirty(q);

    f.counts = !qcow2_counts_wait(q);
    if (!err && f.counts) {
        err = reft_make_room(q, &moved);
    }
    if (err) {
        return err;
    }
    if (moved.clusters) {
        q->reft_dirty_first = 0;        /* the whole table goes to its new place */
        q->reft_dirty_end = q->reft_len;
    }
    err = flush_reserve(&f);
    if (!err) {
        flush_take(&f);
        err = flush_write(&f, &moved);
        if (err) {
            flush_untake(&f);
        }
    }
    if (err && moved.clusters && q->h.reft_offset != moved.offset) {
        qcow2_unalloc(q, moved.offset, moved.clusters);
    }
    flush_release(&f);
    return err ? err : qcow2_free_now(q, f.to_free);
}

int qcow2_flush(struct qcow2 *q)
{
    uint64_t ticket = ++q->flush_asked;

    if (q->corrupt) {
        /* What is in memory must not reach a damaged image. */
        return q->writable ? -EIO : 0;
    }
    co_lock(&q->flush_lock);
    if (q->flush_done < ticket) {
        /* Everybody who asked by now is served by this one. */
        uint64_t served = q->flush_asked;
        q->flush_result = qcow2_clean(q) ? co_flush(q->data) : flush_once(q);
        q->flush_done = served;
    }
    int err = q->flush_result;
    co_unlock(&q->flush_lock);
    return err;
}

/* All that was counted late is durable. */
static int mark_clean(struct qcow2 *q)
{
    int err = 0;

    co_lock(&q->flush_lock);
    if (q->lazy && q->h.incompatible & QCOW2_INC_DIRTY && qcow2_clean(q)) {
        q->linked = false;
        q->h.incompatible &= ~(uint64_t)QCOW2_INC_DIRTY;
        err = qcow2_header_update(q);
        if (err) {
            q->h.incompatible |= QCOW2_INC_DIRTY;
        }
    }
    co_unlock(&q->flush_lock);
    return err;
}

int qcow2_settle(struct qcow2 *q)
{
    int err = 0;

    q->settling++;
    /* A flush frees clusters, whose counts the next one writes. */
    for (int i = 0; i < 4 && !err && !qcow2_clean(q); i++) {
        err = qcow2_flush(q);
    }
    err = err ? err : mark_clean(q);
    q->settling--;
    return err;
}

int qcow2_counts_write(struct qcow2 *q)
{
    struct flush f = { .q = q, .counts = true };
    int err;

    co_lock(&q->flush_lock);
    err = flush_reserve(&f);
    if (!err) {
        take_blocks(&f);
        err = write_blocks(&f);
        if (err) {
            flush_untake(&f);
        }
    }
    flush_release(&f);
    co_unlock(&q->flush_lock);
    return err;
}

int qcow2_flush_if_much(struct qcow2 *q)
{
    if (q->ndirty_slices < q->max_slices / 2 && q->ndirty_blocks < q->max_blocks / 2) {
        return 0;
    }
    return qcow2_flush(q);
}
