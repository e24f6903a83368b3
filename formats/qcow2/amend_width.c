/*
 * amend_width.c - another width of refcounts, in place: new blocks and a new table
 * are written where space is free, and one write of the header switches to them.
 *
 * Invariant: the old structures count themselves and not the new ones, the new ones
 * the reverse: whichever the header names after a crash, nothing leaks.
 */
#include "formats/qcow2/amend.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct width {
    struct qcow2 *q;
    const struct blk_amend *ctl;
    struct qcow2 new;               /* its header only: for the width */
    uint32_t bits;                  /* counts a new block: 1 << bits */
    uint64_t *old;                  /* clusters of the old structures, sorted */
    uint64_t nold;
    uint8_t *need;                  /* a bit a new block */
    uint64_t nblocks, room;         /* needed ones; entries of the new table */
    uint64_t start, blocks, reft;   /* first new cluster, clusters of each */
};

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int gather_old(struct width *w)
{
    struct qcow2 *q = w->q;
    uint64_t table = q->h.reft_offset >> q->h.cluster_bits;

    w->old = malloc((q->reft_len + q->h.reft_clusters + 1) * sizeof(*w->old));
    if (!w->old) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < q->reft_len; i++) {
        if (q->reft[i]) {
            w->old[w->nold++] = q->reft[i] >> q->h.cluster_bits;
        }
    }
    for (uint64_t i = 0; i < q->h.reft_clusters; i++) {
        w->old[w->nold++] = table + i;
    }
    qsort(w->old, w->nold, sizeof(*w->old), by_value);
    return 0;
}

static bool is_old(const struct width *w, uint64_t cluster)
{
    return bsearch(&cluster, w->old, w->nold, sizeof(cluster), by_value);
}

static void mark(struct width *w, uint64_t cluster)
{
    uint64_t i = cluster >> w->bits;
    w->nblocks += !(w->need[i / 8] >> i % 8 & 1);
    w->need[i / 8] |= (uint8_t)(1u << i % 8);
}

/* Which new blocks are needed, and does every count fit? */
static int scan(struct width *w, struct blk_error *e)
{
    struct qcow2 *q = w->q;
    uint32_t order = w->new.h.refcount_order;
    uint64_t max = order == 6 ? UINT64_MAX : (1ull << (1u << order)) - 1;

    for (uint64_t b = 0; b < q->reft_len; b++) {
        for (uint64_t i = 0; q->reft[b] && i < 1ull << q->refblock_bits; i++) {
            uint64_t c = (b << q->refblock_bits) + i, count = 0;
            int err = qcow2_refcount_get(q, c, &count);
            if (err) {
                return blk_err_errno(e, -err, "Could not read a refcount block");
            }
            if (count > max) {
                return blk_err(e, EINVAL, "Cannot decrease refcount entry width to %i bits: "
                               "Cluster at offset %#llx has a refcount of %llu", 1 << order,
                               (unsigned long long)c << q->h.cluster_bits,
                               (unsigned long long)count);
            }
            if (count && !is_old(w, c)) {
                mark(w, c);
            }
        }
        qcow2_amend_progress(w->ctl, b, 2 * q->reft_len);
    }
    return 0;
}

/* The new structures count themselves, which may take more of them. */
static int place(struct width *w, struct blk_error *e)
{
    uint64_t blocks;
    do {
        blocks = w->nblocks;
        w->blocks = blocks;
        w->reft = qcow2_clusters(w->q, w->room * 8);
        int err = qcow2_find_free(w->q, blocks + w->reft, &w->start);
        if (err) {
            return blk_err_errno(e, -err, "Could not find space for refcounts");
        }
        if ((w->start + blocks + w->reft) >> w->bits >= w->room) {
            return blk_err(e, EFBIG, "The refcount table would be too large");
        }
        for (uint64_t c = w->start; c < w->start + blocks + w->reft; c++) {
            mark(w, c);
        }
    } while (w->nblocks != blocks);
    return 0;
}

static int new_count(const struct width *w, uint64_t c, uint64_t *out)
{
    struct qcow2 *q = w->q;

    *out = c >= w->start && c < w->start + w->blocks + w->reft;
    if (*out || c >> q->refblock_bits >= q->reft_len || is_old(w, c)) {
        return 0;
    }
    return q->reft[c >> q->refblock_bits] ? qcow2_refcount_get(q, c, out) : 0;
}

/* All new blocks, one behind the other, and the table behind them. */
static int write_all(struct width *w)
{
    struct qcow2 *q = w->q;
    uint64_t at = w->start << q->h.cluster_bits;
    uint8_t *buf = blk_buf_alloc(q->cluster_size), *table = blk_buf_alloc(w->reft << q->h.cluster_bits);
    int err = buf && table ? 0 : -ENOMEM;

    if (!err) {
        memset(table, 0, w->reft << q->h.cluster_bits);
    }
    for (uint64_t b = 0; !err && b < w->room; b++) {
        if (!(w->need[b / 8] >> b % 8 & 1)) {
            continue;
        }
        memset(buf, 0, q->cluster_size);
        for (uint64_t i = 0; !err && i < 1ull << w->bits; i++) {
            uint64_t count = 0;
            err = new_count(w, (b << w->bits) + i, &count);
            qcow2_refcount_put(&w->new, buf, i, count);
        }
        err = err ? err : co_write(q->file, at, buf, q->cluster_size, 0);
        put_be64(table + b * 8, at);
        at += q->cluster_size;
        qcow2_amend_progress(w->ctl, w->room + b, 2 * w->room);
    }
    err = err ? err : co_write(q->file, at, table, w->reft << q->h.cluster_bits, 0);
    err = err ? err : co_flush(q->file);
    blk_buf_free(buf);
    blk_buf_free(table);
    return err;
}

static int switch_over(struct width *w, struct blk_error *e)
{
    struct qcow2 *q = w->q;
    struct qcow2_header was = q->h;

    q->h.refcount_order = w->new.h.refcount_order;
    q->h.reft_offset = (w->start + w->blocks) << q->h.cluster_bits;
    q->h.reft_clusters = (uint32_t)w->reft;
    int err = qcow2_header_update(q);
    if (err) {
        q->h = was;
        return blk_err_errno(e, -err, "Failed to update the image header");
    }
    for (uint64_t i = 0; i < w->nold; i++) {
        co_discard(q->file, w->old[i] << q->h.cluster_bits, q->cluster_size);   /* a gift */
    }
    return qcow2_reload(q, e);
}

static int width_setup(struct width *w, uint32_t order)
{
    struct qcow2 *q = w->q;
    uint64_t known = q->reft_len << q->refblock_bits;
    uint64_t end = BLK_MAX(q->end_cluster, qcow2_clusters(q, q->file->size));

    w->new.h = q->h;
    w->new.h.refcount_order = order;
    w->bits = q->h.cluster_bits + 3 - order;
    /* Room for as much again: the new structures may lie behind what there is. */
    w->room = (2 * BLK_MAX(known, end) >> w->bits) + 16;
    w->room = BLK_MIN(w->room, QCOW2_MAX_REFTABLE_BYTES / 8);
    w->need = calloc(1, w->room / 8 + 1);
    return w->need ? gather_old(w) : -ENOMEM;
}

int qcow2_change_width(struct qcow2 *q, uint32_t order, const struct blk_amend *ctl,
                       struct blk_error *e)
{
    struct width w = { .q = q, .ctl = ctl };
    int err = width_setup(&w, order);

    if (err) {
        blk_err(e, -err, "Cannot allocate memory");
    }
    err = err ? err : scan(&w, e);
    err = err ? err : place(&w, e);
    if (!err && (err = write_all(&w))) {
        blk_err_errno(e, -err, "Could not write new refcount structures");
    }
    err = err ? err : switch_over(&w, e);
    free(w.old);
    free(w.need);
    return err;
}
