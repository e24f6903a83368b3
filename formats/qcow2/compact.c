/*
 * compact.c - making the file as short as what it holds: see compact.h.
 *
 * As many clusters as are in use fit below the limit, so whatever lies behind it has a
 * free place before it; tables of several clusters need a run of them and move first.
 */
#include "formats/qcow2/compact.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- a map ------------------------------------------------------------------------- */

static uint64_t *map_slot(const struct compact_map *m, uint64_t key)
{
    uint64_t mask = (1ull << m->bits) - 1;
    uint64_t at = (key * 0x9e3779b97f4a7c15ull) >> (64 - m->bits);

    while (m->slot[2 * at] && m->slot[2 * at] != key) {
        at = (at + 1) & mask;
    }
    return m->slot + 2 * at;
}

static int map_grow(struct compact_map *m)
{
    struct compact_map new = { .bits = m->slot ? m->bits + 1 : 8 };
    uint64_t n = m->slot ? 1ull << m->bits : 0;

    new.slot = calloc(2ull << new.bits, sizeof(*new.slot));
    if (!new.slot) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < n; i++) {
        if (m->slot[2 * i]) {
            memcpy(map_slot(&new, m->slot[2 * i]), m->slot + 2 * i, 2 * sizeof(*m->slot));
        }
    }
    new.count = m->count;
    free(m->slot);
    *m = new;
    return 0;
}

int compact_map_put(struct compact_map *m, uint64_t key, uint64_t value)
{
    if (m->count * 2 >= (m->slot ? 1ull << m->bits : 0) && map_grow(m)) {
        return -ENOMEM;
    }
    uint64_t *slot = map_slot(m, key);
    m->count += !slot[0];
    slot[0] = key;
    slot[1] = value;
    return 0;
}

bool compact_map_get(const struct compact_map *m, uint64_t key, uint64_t *value)
{
    const uint64_t *slot = m->slot ? map_slot(m, key) : NULL;

    if (slot && slot[0]) {
        *value = slot[1];
    }
    return slot && slot[0];
}

void compact_map_free(struct compact_map *m)
{
    free(m->slot);
    *m = (struct compact_map){ 0 };
}

int compact_free_shared(struct compact *k)
{
    struct qcow2 *q = k->q;
    uint64_t n = k->shared.slot ? 1ull << k->shared.bits : 0, count;
    int err = 0;

    for (uint64_t i = 0; i < n && !err; i++) {
        uint64_t old = k->shared.slot[2 * i];

        if (old) {
            err = qcow2_refcount_get(q, old >> q->h.cluster_bits, &count);
            while (!err && count--) {
                qcow2_free_later(q, old, 1);
            }
        }
    }
    compact_map_free(&k->shared);
    return err ? err : qcow2_settle(q);
}

/* ---- L1 tables ------------------------------------------------------------------------ */

static int snapshot_l1(struct compact *k, const struct qcow2_snapshot *s, compact_l1_fn *fn)
{
    uint64_t *l1;
    int err;

    if (s->l1_size > QCOW2_MAX_L1_BYTES / 8) {
        return -EFBIG;
    }
    l1 = calloc(s->l1_size + 1u, 8);
    err = l1 ? 0 : -ENOMEM;
    err = err || !s->l1_size ? err : co_read(k->q->file, s->l1_offset, l1, s->l1_size * 8ull);
    for (uint64_t i = 0; i < s->l1_size && !err; i++) {
        l1[i] = be64(&l1[i]);
    }
    err = err ? err : fn(k, l1, s->l1_size, s->l1_offset, false);
    free(l1);
    return err;
}

int compact_each_l1(struct compact *k, compact_l1_fn *fn)
{
    struct qcow2 *q = k->q;
    struct qcow2_snapshot *s = NULL;
    uint64_t bytes;
    int err = fn(k, q->l1, q->h.l1_size, q->h.l1_offset, true);

    if (!err && q->h.nb_snapshots) {
        err = qcow2_snapshots_read(q, &s, &bytes, NULL);
        for (uint32_t i = 0; i < q->h.nb_snapshots && !err; i++) {
            err = snapshot_l1(k, &s[i], fn);
        }
        qcow2_snapshots_free(q, s);
    }
    return err;
}

/* ---- tables of several clusters ------------------------------------------------------------ */

static bool is_high(const struct compact *k, uint64_t offset, uint64_t bytes)
{
    return bytes && (offset + bytes - 1) >> k->q->h.cluster_bits >= k->limit;
}

/* A copy of the table, durable, counted and known as metadata.  *to 0: there is no run of
 * free clusters. */
static int copy_table(struct compact *k, uint64_t offset, uint64_t bytes, uint64_t *to)
{
    struct qcow2 *q = k->q;
    uint64_t n = qcow2_clusters(q, bytes), c, hint = 0;
    int err = qcow2_take_free(q, &hint, k->limit, n, 1, &c);

    *to = err ? 0 : c << q->h.cluster_bits;
    if (err || !c) {
        return err;
    }
    err = qcow2_meta_add(q, *to, n);
    err = err ? err : qcow2_settle(q);
    for (uint64_t at = 0; at < bytes && !err; at += q->cluster_size) {
        err = compact_copy_add(k, offset + at, *to + at, BLK_MIN(bytes - at, q->cluster_size));
    }
    k->moved += n;
    err = err ? err : compact_copy_all(k);
    return err ? err : co_flush(q->file);
}

static int drop_table(struct compact *k, uint64_t offset, uint64_t bytes)
{
    uint64_t n = qcow2_clusters(k->q, bytes);

    qcow2_meta_del(k->q, offset, n);
    qcow2_free_later(k->q, offset, n);
    return qcow2_settle(k->q);
}

/* A table that a field of the header names: *field becomes its new place. */
static int move_named(struct compact *k, uint64_t *field, uint64_t bytes)
{
    uint64_t old = *field, to;
    int err;

    if (!is_high(k, old, bytes)) {
        return 0;
    }
    err = copy_table(k, old, bytes, &to);
    if (err || !to) {
        return err;
    }
    *field = to;
    err = qcow2_header_update(k->q);
    if (err) {
        k->q->corrupt = true;           /* which of the two the disk has is not known */
        return err;
    }
    return drop_table(k, old, bytes);
}

static int move_snapshot_l1(struct compact *k, const struct qcow2_snapshot *s)
{
    uint8_t raw[8];
    uint64_t to;
    int err;

    if (!is_high(k, s->l1_offset, s->l1_size * 8ull)) {
        return 0;
    }
    err = copy_table(k, s->l1_offset, s->l1_size * 8ull, &to);
    if (err || !to) {
        return err;
    }
    put_be64(raw, to);                  /* the first field of the record, which is aligned */
    err = co_write(k->q->file, s->at, raw, sizeof(raw), 0);
    err = err ? err : co_flush(k->q->file);
    return err ? err : drop_table(k, s->l1_offset, s->l1_size * 8ull);
}

static int move_snapshot_tables(struct compact *k)
{
    struct qcow2 *q = k->q;
    struct qcow2_snapshot *s;
    uint64_t bytes;
    int err;

    if (!q->h.nb_snapshots) {
        return 0;
    }
    err = qcow2_snapshots_read(q, &s, &bytes, NULL);
    for (uint32_t i = 0; !err && i < q->h.nb_snapshots; i++) {
        err = move_snapshot_l1(k, &s[i]);
    }
    qcow2_snapshots_free(q, err ? NULL : s);
    /* A table that does not start with a cluster cannot be given back by itself. */
    if (!err && !(q->h.snap_offset & (q->cluster_size - 1))) {
        err = move_named(k, &q->h.snap_offset, bytes);
    }
    return err;
}

static int move_tables(struct compact *k)
{
    struct qcow2 *q = k->q;
    int err = move_named(k, &q->h.l1_offset, q->h.l1_size * 8ull);

    err = err ? err : move_named(k, &q->h.reft_offset,
                                 (uint64_t)q->h.reft_clusters << q->h.cluster_bits);
    return err ? err : move_snapshot_tables(k);
}

/* ---- refcount blocks ------------------------------------------------------------------------ */

static int move_blocks(struct compact *k)
{
    struct qcow2 *q = k->q;
    uint64_t to = 1, nold = 0, old[COMPACT_BATCH];
    int err = 0;

    for (uint64_t i = 0; i <= q->reft_len && !err; i++) {
        bool last = i == q->reft_len;

        if (!last && q->reft[i] >> q->h.cluster_bits >= k->limit && to) {
            uint64_t was = q->reft[i];
            err = compact_place(k, 1, &to);
            if (!err && to) {
                err = qcow2_block_move(q, i, to);
                old[nold++] = was;
                k->moved++;
                k->out->moved += q->cluster_size;
            }
        }
        if (!err && nold && (last || nold == COMPACT_BATCH)) {
            err = qcow2_settle(q);
            while (!err && nold) {
                qcow2_free_later(q, old[--nold], 1);
            }
            err = err ? err : qcow2_settle(q);
        }
    }
    return err;
}

/* ---- the whole --------------------------------------------------------------------------------- */

/* *used: clusters in use.  *high: those of them at or behind limit. */
static int count_used(struct qcow2 *q, uint64_t limit, uint64_t *used, uint64_t *high)
{
    uint64_t per_block = 1ull << q->refblock_bits;
    int err = 0;

    *used = *high = 0;
    for (uint64_t i = 0; i < q->reft_len && !err; i++) {
        struct qcow2_block *b;

        if (!q->reft[i] || (err = qcow2_block_get(q, i, &b))) {
            continue;
        }
        for (uint64_t j = 0; j < per_block; j++) {
            if (qcow2_refcount_at(q, b->data, j)) {
                ++*used;
                *high += (i << q->refblock_bits) + j >= limit;
            }
        }
        qcow2_block_put(b);
    }
    return err;
}

static int one_round(struct compact *k)
{
    struct qcow2 *q = k->q;
    uint64_t used, high;
    int err = count_used(q, UINT64_MAX, &used, &high);

    k->limit = used;
    k->hint = 1;
    k->full = false;
    k->pack_at = 0;
    err = err ? err : count_used(q, k->limit, &used, &high);
    k->total = BLK_MAX(k->total, k->moved + high);
    err = err || !high ? err : move_tables(k);
    err = err || !high ? err : move_blocks(k);
    err = err || !high ? err : compact_l2_tables(k);
    err = err || !high ? err : compact_data(k);
    return err ? err : qcow2_drop_empty_blocks(k->q);
}

static int all_rounds(struct compact *k)
{
    uint64_t before;
    int err = qcow2_settle(k->q);

    if (err) {
        return err;
    }
    qcow2_cache_drop(k->q);             /* L2 tables are changed in the file */
    k->q->free_byte = 0;
    for (unsigned i = 0; i < COMPACT_ROUNDS && !err; i++) {
        before = k->moved;
        err = one_round(k);
        if (k->moved == before) {
            break;
        }
    }
    err = err ? err : co_flush(k->q->file);
    k->q->bm.touched = false;           /* closing must not spread bitmaps again */
    return err ? err : qcow2_cut_file(k->q);
}

int qcow2_compact(struct blk_node *n, struct blk_compact *c, struct blk_error *e)
{
    struct qcow2 *q = n->state;
    struct compact *k;
    int err = -ENOMEM;

    c->moved = 0;
    if (q->h.crypt_method) {
        /* Where a sector lies is part of how it is encrypted. */
        return blk_err(e, ENOTSUP, "Encrypted images cannot be compacted");
    }
    k = calloc(1, sizeof(*k));
    if (k) {
        k->q = q;
        k->out = c;
        k->buf_step = q->cluster_size;
        k->max_copies = BLK_MAX(1u, BLK_MIN(COMPACT_COPIES, (4u << 20) / q->cluster_size));
        k->buf = blk_buf_alloc(k->max_copies * k->buf_step);
        err = k->buf ? all_rounds(k) : -ENOMEM;
        compact_map_free(&k->shared);
        compact_map_free(&k->packed);
        compact_map_free(&k->seen);
        blk_buf_free(k->buf);
        free(k);
    }
    return err ? blk_err_errno(e, -err, "Could not compact '%s'", n->shown) : 0;
}
