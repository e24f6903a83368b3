/*
 * resize.c - a new virtual size.
 *
 * Invariants
 *  - Growing: the longer L1 table is durable before the header that names it and
 *    the size; one header write switches both.
 *  - Shrinking: the smaller size is durable before what lies beyond is unmapped.
 *  - L1 entries are dropped only when no slice of their table is in memory.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The L1 table on disk, at offset, with entries from q->l1 and zeros up to size. */
static int l1_write(struct qcow2 *q, uint64_t offset, uint32_t size)
{
    size_t bytes = size * 8ull;
    uint8_t *buf = blk_buf_alloc(bytes);
    if (!buf) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < size; i++) {
        put_be64(buf + i * 8ull, i < q->h.l1_size ? q->l1[i] : 0);
    }
    int err = co_write(q->file, offset, buf, bytes, 0);
    blk_buf_free(buf);
    return err ? err : co_flush(q->file);
}

static int l1_arrays_grow(struct qcow2 *q, uint32_t size)
{
    uint64_t *l1 = realloc(q->l1, size * 8ull + 8);
    if (!l1) {
        return -ENOMEM;
    }
    q->l1 = l1;
    memset(l1 + q->h.l1_size, 0, (size - q->h.l1_size) * 8ull);
    uint8_t *dirty = realloc(q->l1_dirty, size * 8ull / 512 + 1);
    if (!dirty) {
        return -ENOMEM;
    }
    q->l1_dirty = dirty;
    memset(dirty, 0, size * 8ull / 512 + 1);
    if (q->l1_bad) {
        uint8_t *bad = realloc(q->l1_bad, size);
        if (!bad) {
            return -ENOMEM;
        }
        memset(bad + q->h.l1_size, 0, size - q->h.l1_size);
        q->l1_bad = bad;
    }
    return 0;
}

int qcow2_l1_grow(struct qcow2 *q, uint32_t l1_size)
{
    struct qcow2_header old = q->h;
    uint64_t have = qcow2_clusters(q, old.l1_size * 8ull), need = qcow2_clusters(q, l1_size * 8ull);
    struct qcow2_space at;
    int err = l1_arrays_grow(q, l1_size);

    if (!err) {
        blk_event(q->file, "l1_grow_alloc_table");
        err = qcow2_alloc(q, need, true, &at);
    }
    err = err ? err : qcow2_meta_add(q, at.offset, need);
    /* The new table's count is durable before the header names it. */
    err = err ? err : qcow2_flush(q);
    blk_event(q->file, "l1_grow_write_table");
    err = err ? err : l1_write(q, at.offset, l1_size);
    if (!err) {
        blk_event(q->file, "l1_grow_activate_table");
        q->h.l1_offset = at.offset;
        q->h.l1_size = l1_size;
        err = qcow2_header_update(q);
    }
    if (err) {
        q->h.l1_offset = old.l1_offset;
        q->h.l1_size = old.l1_size;
        return err;
    }
    if (have) {
        qcow2_meta_del(q, old.l1_offset, have);
        qcow2_free_later(q, old.l1_offset, have);
    }
    return 0;
}

int qcow2_used_end(struct qcow2 *q, uint64_t *c)
{
    uint64_t count = 0;
    int err = 0;

    for (*c = qcow2_clusters(q, q->file->size); *c && !err && !count; *c -= !count) {
        err = qcow2_refcount_get(q, *c - 1, &count);
    }
    return err;
}

int qcow2_cut_file(struct qcow2 *q)
{
    uint64_t c;
    int err = qcow2_used_end(q, &c);
    uint64_t end = c << q->h.cluster_bits;

    if (err || !c || end >= q->file->size) {
        return err;
    }
    err = blk_truncate(q->file, end, true, BLK_PREALLOC_OFF, NULL);
    if (!err) {
        q->end_cluster = c;
        q->free_hint = BLK_MIN(q->free_hint, c);
        if (q->zero_from != UINT64_MAX) {
            q->zero_from = end;
        }
    }
    return err == -ENOTSUP ? 0 : err;
}

/* Does the block count nothing, but for itself? */
static int block_is_empty(struct qcow2 *q, uint64_t index, bool *empty)
{
    struct qcow2_block *b;
    uint64_t first = index << q->refblock_bits, self = q->reft[index] >> q->h.cluster_bits;
    int err = qcow2_block_get(q, index, &b);

    if (err) {
        return err;
    }
    *empty = true;
    for (uint64_t i = 0; *empty && i < 1ull << q->refblock_bits; i++) {
        *empty = first + i == self || !qcow2_refcount_at(q, b->data, i);
    }
    qcow2_block_put(b);
    return 0;
}

int qcow2_drop_empty_blocks(struct qcow2 *q)
{
    bool empty = true;
    int err = 0;

    while (q->reft_len && !err && empty) {
        uint64_t i = q->reft_len - 1, old = q->reft[i];

        if (!old) {
            q->reft_len--;
            continue;
        }
        err = block_is_empty(q, i, &empty);
        if (err || !empty) {
            break;
        }
        err = qcow2_block_move(q, i, 0);
        err = err ? err : qcow2_settle(q);
        if (qcow2_block_of(q, old >> q->h.cluster_bits) != i) {
            qcow2_free_later(q, old, 1);
        }
        err = err ? err : qcow2_settle(q);
        qcow2_cache_drop(q);
    }
    return err;
}

/* Unmap what lies beyond size, which ended at old, with its L2 tables. */
static int drop_from(struct qcow2 *q, uint64_t size, uint64_t old)
{
    uint64_t per_l2 = (uint64_t)q->cluster_size << q->l2_bits;
    int err = qcow2_unmap(q, qcow2_clusters(q, size), qcow2_clusters(q, old), false);

    err = err ? err : qcow2_settle(q);
    if (err) {
        return err;
    }
    qcow2_cache_drop(q);
    for (uint64_t i = size / per_l2 + !!(size % per_l2); i < q->h.l1_size; i++) {
        uint64_t table = q->l1[i] & QCOW2_OFFSET_MASK;
        if (table) {
            bool shared = !(q->l1[i] & QCOW2_COPIED);
            qcow2_l1_set(q, i, 0);
            if (!shared) {
                qcow2_meta_del(q, table, 1);
            }
            qcow2_free_later(q, table, 1);
        }
    }
    err = qcow2_settle(q);
    err = err ? err : qcow2_drop_empty_blocks(q);
    return err ? err : qcow2_cut_file(q);
}

/* QEMU makes the L2 table that the cut goes through, should there be none: so that clusters
 * come to lie where it puts them. */
static int keep_table(struct qcow2 *q, uint64_t first, uint64_t old)
{
    uint64_t per_l2 = (uint64_t)q->cluster_size << q->l2_bits;
    struct qcow2_slice *s;

    if (first >= old || first % per_l2 == 0) {
        return 0;
    }
    int err = qcow2_l2_write(q, first, &s);
    if (!err) {
        qcow2_slice_put(s);
    }
    return err;
}

/* What is cut off of the last cluster must not come back with a later growth.  What is not in
 * this image cannot: growth writes zeros over a longer backing file. */
static int zero_tail(struct qcow2 *q, uint64_t size)
{
    uint64_t end = BLK_MIN(blk_align_up(size, q->cluster_size), q->n->size);
    struct blk_status st;
    int err = 0;

    for (uint64_t at = size; !err && at < end; at += st.length) {
        err = co_status(q->n, at, end - at, &st);
        if (!err && st.flags & BLK_ST_ALLOCATED && !(st.flags & BLK_ST_ZERO)) {
            err = co_write_zeroes(q->n, at, st.length, 0);
        }
    }
    return err;
}

static int shrink(struct qcow2 *q, uint64_t size)
{
    uint64_t old = q->h.size;
    int err = zero_tail(q, size);

    err = err ? err : keep_table(q, blk_align_up(size, q->cluster_size), old);
    err = err ? err : qcow2_settle(q);
    if (err) {
        return err;
    }
    q->h.size = size;
    err = qcow2_header_update(q);
    if (err) {
        q->h.size = old;
        return err;
    }
    q->n->size = size;
    err = drop_from(q, size, old);
    return err || !qcow2_external(q) ? err : qcow2_data_resize(q, size, BLK_PREALLOC_OFF, NULL);
}

/* QEMU empties such an image by a discard of all of it, which leaves every L2 table. */
static bool keeps_tables(const struct qcow2 *q)
{
    return q->h.version < 3 || q->h.nb_snapshots || q->bm.count ||
           q->h.crypt_method == QCOW2_CRYPT_LUKS || qcow2_external(q);
}

int qcow2_make_empty(struct blk_node *n, struct blk_error *e)
{
    struct qcow2 *q = n->state;
    int err = q->corrupt ? -EIO : qcow2_settle(q);

    if (!err && keeps_tables(q)) {
        err = qcow2_unmap(q, 0, qcow2_clusters(q, q->h.size), true);
        err = err ? err : qcow2_settle(q);
    } else if (!err) {
        err = drop_from(q, 0, q->h.size);
    }
    return err ? blk_err_errno(e, -err, "Could not empty '%s'", n->shown) : 0;
}

/* The image is larger when the header says so, the last thing: what fails before leaves it
 * as it was, but for a longer L1 table. */
static int grow(struct qcow2 *q, uint64_t size, enum blk_prealloc p, struct blk_error *e)
{
    uint64_t old = q->n->size, was = q->h.size, per_l2 = (uint64_t)q->cluster_size << q->l2_bits;
    uint64_t need = size / per_l2 + !!(size % per_l2);
    uint64_t data_was = q->data->size;
    struct blk_node *b = q->n->backing;
    int err = qcow2_settle(q);

    if (!err && need * 8 > QCOW2_MAX_L1_BYTES) {
        return blk_err_errno(e, EFBIG, "Failed to grow the L1 table");
    }
    if (!err && need > q->h.l1_size) {
        err = qcow2_l1_grow(q, (uint32_t)need);
    }
    if (err) {
        return blk_err_errno(e, -err, "Failed to grow the L1 table");
    }
    q->n->size = size;
    if (p == BLK_PREALLOC_OFF && q->h.autoclear & QCOW2_AUTO_RAW) {
        p = BLK_PREALLOC_METADATA;      /* all of a raw data file counts */
    }
    err = qcow2_settle(q);                      /* where the old L1 table was is free */
    if (!err && p != BLK_PREALLOC_OFF) {
        err = qcow2_preallocate(q, old, size, p, e);
    } else if (!err && qcow2_external(q)) {
        err = qcow2_data_resize(q, size, p, e);
    }
    if (!err && b && b->size > old && !qcow2_preallocates_area(q, p)) {
        /* What the longer backing file holds there was never part of this image.  Version 2
         * can only write zeros over it, where QEMU refuses. */
        uint64_t whole = BLK_MIN(blk_align_up(old, q->sub_size), size);
        uint64_t end = q->h.version < 3 ? BLK_MIN(size, b->size) : size;
        err = whole > old ? qcow2_write_zeros(q, old, whole) : 0;
        if (!err && end > whole) {
            err = co_write_zeroes(q->n, whole, end - whole, BLK_REQ_EXPLICIT);
        }
    }
    err = err ? err : qcow2_settle(q);
    if (!err) {
        q->h.size = size;
        err = qcow2_header_update(q);
    }
    if (err) {
        q->h.size = was;
        q->n->size = old;
        if (!drop_from(q, old, size) && qcow2_external(q)) {
            qcow2_data_resize(q, data_was, BLK_PREALLOC_OFF, NULL);
        }
        return blk_err_errno(e, -err, "Failed to write the new area's metadata");
    }
    return 0;
}

int qcow2_truncate(struct blk_node *n, uint64_t size, bool shrinking, enum blk_prealloc p,
                   struct blk_error *e)
{
    struct qcow2 *q = n->state;

    if (size & 511) {
        return blk_err(e, EINVAL, "The new size must be a multiple of 512");
    }
    if (q->corrupt) {
        return blk_err(e, EIO, "Image is corrupt");
    }
    if (q->h.nb_snapshots && q->h.version < 3) {
        return blk_err(e, ENOTSUP, "Can't resize a v2 image which has snapshots");
    }
    if (size == n->size) {
        return 0;
    }
    if (size < n->size && p != BLK_PREALLOC_OFF) {
        return blk_err(e, EINVAL, "Preallocation can't be used for shrinking an image");
    }
    int err = qcow2_bitmaps_resize_begin(q, size, e);
    if (err) {
        return err;
    }
    err = size > n->size ? grow(q, size, p, e) : shrink(q, size);
    int r = qcow2_bitmaps_resize_end(q);
    err = err ? err : r;
    return err ? blk_err_errno(e, -err, "Failed to %s the image", size > n->size ? "grow"
                               : "shrink") : 0;
}
