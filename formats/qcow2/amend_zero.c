/*
 * amend_zero.c - version 2 has no zero clusters: they become unallocated where
 * nothing lies below, and data elsewhere.
 *
 * Invariants
 *  - The disk's own entries are changed by ordinary writes.
 *  - A snapshot's L2 table is rewritten in place, and only when the clusters its new
 *    entries name are counted and written: every entry reads the same before and after.
 */
#include "formats/qcow2/amend.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE (1u << 20)

/* ---- the disk -------------------------------------------------------------------------- */

static int write_zero_data(struct qcow2 *q, uint64_t off, uint64_t len)
{
    uint8_t *zeros = blk_buf_alloc(PIECE);
    int err = zeros ? 0 : -ENOMEM;

    if (!err) {
        memset(zeros, 0, PIECE);
    }
    for (uint64_t at = 0; !err && at < len; at += PIECE) {
        err = co_write(q->n, off + at, zeros, (size_t)BLK_MIN(len - at, PIECE), 0);
    }
    blk_buf_free(zeros);
    return err;
}

static int expand_disk(struct qcow2 *q, const struct blk_amend *ctl)
{
    int err = 0;

    for (uint64_t at = 0; !err && at < q->n->size;) {
        struct blk_status st = { 0 };
        err = qcow2_status(q->n, at, q->n->size - at, &st);
        if (!err && st.flags & BLK_ST_ZERO && st.flags & BLK_ST_ALLOCATED) {
            bool data = q->n->backing_name || st.flags & BLK_ST_OFFSET;
            err = data ? write_zero_data(q, at, st.length)
                       : qcow2_unmap(q, at >> q->h.cluster_bits,
                                     qcow2_clusters(q, at + st.length), false);
        }
        at += st.length;
        qcow2_amend_progress(ctl, at, q->n->size);
    }
    return err ? err : qcow2_settle(q);
}

/* ---- snapshots ---------------------------------------------------------------------------- */

/* A cluster of zeros with one reference for each of the table's. */
static int zero_cluster(struct qcow2 *q, uint64_t refs, uint64_t *offset)
{
    struct qcow2_space at = { 0 };
    int err = qcow2_alloc(q, 1, true, &at);

    for (uint64_t i = 1; !err && i < refs; i++) {
        err = qcow2_count_shift(q, at.offset, 1, true);
    }
    *offset = err ? 0 : at.offset;
    return err;
}

static int expand_entry(struct qcow2 *q, uint8_t *table, unsigned i, uint64_t refs,
                        const uint8_t *zeros)
{
    uint64_t e = qcow2_entry_get(q, table, i), host = e & QCOW2_OFFSET_MASK;
    int err = 0;

    if (!host && !q->n->backing_name) {
        qcow2_entry_put(q, table, i, 0);
        return 0;
    }
    if (!host) {
        err = zero_cluster(q, refs, &host);
        e = host | (refs == 1 ? QCOW2_COPIED : 0);
    }
    err = err ? err : co_write(q->data, host, zeros, q->cluster_size, 0);
    qcow2_entry_put(q, table, i, e & ~QCOW2_ZERO);
    return err;
}

static int expand_table(struct qcow2 *q, uint64_t offset, uint8_t *table, const uint8_t *zeros)
{
    uint64_t refs = 0;
    bool changed = false;
    int err = co_read(q->file, offset, table, q->cluster_size);

    err = err ? err : qcow2_refcount_get(q, offset >> q->h.cluster_bits, &refs);
    for (unsigned i = 0; !err && i < 1u << q->l2_bits; i++) {
        enum qcow2_type t = qcow2_entry_type(q, qcow2_entry_get(q, table, i));
        if (t == QCOW2_ZERO_PLAIN || t == QCOW2_ZERO_ALLOC) {
            err = expand_entry(q, table, i, refs, zeros);
            changed = true;
        }
    }
    if (!err && changed) {
        err = qcow2_settle(q);          /* counts and zeros before what names them */
        err = err ? err : co_flush(q->file);
        err = err ? err : co_write(q->file, offset, table, q->cluster_size, 0);
        err = err ? err : co_flush(q->file);
    }
    return err;
}

static int expand_snapshot(struct qcow2 *q, const struct qcow2_snapshot *s, uint8_t *table,
                           const uint8_t *zeros)
{
    size_t bytes = s->l1_size * (size_t)8;
    uint64_t *l1 = malloc(bytes + 8);
    int err = l1 ? 0 : -ENOMEM;

    if (!err && (bytes > QCOW2_MAX_L1_BYTES || s->l1_offset & (q->cluster_size - 1))) {
        err = -EINVAL;
    }
    err = err || !bytes ? err : co_read(q->file, s->l1_offset, l1, bytes);
    for (uint32_t i = 0; !err && i < s->l1_size; i++) {
        uint64_t offset = be64(&l1[i]) & QCOW2_OFFSET_MASK;
        if (offset & (q->cluster_size - 1)) {
            err = -EINVAL;
        } else if (offset) {
            err = expand_table(q, offset, table, zeros);
        }
    }
    free(l1);
    return err;
}

int qcow2_expand_zeros(struct qcow2 *q, const struct blk_amend *ctl)
{
    struct qcow2_snapshot *s = NULL;
    uint64_t bytes;
    int err = expand_disk(q, ctl);

    if (err || !q->h.nb_snapshots) {
        return err;
    }
    uint8_t *table = blk_buf_alloc(q->cluster_size), *zeros = blk_buf_alloc(q->cluster_size);
    err = table && zeros ? qcow2_snapshots_read(q, &s, &bytes, NULL) : -ENOMEM;
    if (!err) {
        memset(zeros, 0, q->cluster_size);
        qcow2_cache_drop(q);            /* tables shared with the disk are changed below it */
    }
    for (uint32_t i = 0; !err && i < q->h.nb_snapshots; i++) {
        err = expand_snapshot(q, &s[i], table, zeros);
    }
    if (s) {
        qcow2_snapshots_free(q, s);
    }
    blk_buf_free(table);
    blk_buf_free(zeros);
    return err;
}
