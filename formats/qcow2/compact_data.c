/*
 * compact_data.c - moving guest clusters and L2 tables down: see compact.h.
 *
 * L2 tables are read from the file and changed there, in place: when this starts
 * nothing is dirty and no slice is in memory.
 */
#include "formats/qcow2/compact.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct table {                          /* an L2 table with new pointers */
    uint64_t offset;
    uint8_t *data;
};

struct batch {
    struct table tables[COMPACT_BATCH];
    size_t ntables;
    uint64_t *old;                      /* entries that lost their place */
    size_t nold, room;
};

/* ---- places ---------------------------------------------------------------------- */

int compact_place(struct compact *k, uint64_t count, uint64_t *to)
{
    uint64_t c = 0;
    int err = k->full ? 0 : qcow2_take_free(k->q, &k->hint, k->limit, 1, count, &c);

    k->full |= !err && !c;
    *to = c << k->q->h.cluster_bits;
    return err;
}

int compact_move(struct compact *k, uint64_t off, uint64_t count, uint64_t *to, bool *fresh)
{
    int err;

    *fresh = false;
    if (count > 1 && compact_map_get(&k->shared, off, to)) {
        return 0;
    }
    err = compact_place(k, count, to);
    if (err || !*to) {
        return err;
    }
    *fresh = true;
    k->moved++;
    err = count > 1 ? compact_map_put(&k->shared, off, *to) : 0;
    return err ? err : compact_copy_add(k, off, *to, k->q->cluster_size);
}

/* ---- copying ----------------------------------------------------------------------- */

int compact_copy_all(struct compact *k)
{
    struct blk_req req[COMPACT_COPIES];
    struct iovec iov[COMPACT_COPIES];
    struct co_batch b = { 0 };
    int err = 0;

    for (unsigned write = 0; write < 2 && !err; write++) {
        for (unsigned i = 0; i < k->ncopies; i++) {
            const struct compact_copy *c = &k->copy[i];

            iov[i] = (struct iovec){ k->buf + i * k->buf_step, c->len };
            req[i] = (struct blk_req){ .op = write ? BLK_WRITE : BLK_READ, .length = c->len,
                                       .offset = write ? c->to : c->from, .iov = &iov[i],
                                       .iovcnt = 1 };
            co_batch_add(&b, k->q->file, &req[i]);
        }
        err = co_batch_wait(&b);
    }
    k->ncopies = 0;
    if (k->out->progress) {
        k->out->progress(k->out->arg, k->moved, BLK_MAX(k->moved, k->total));
    }
    return err;
}

int compact_copy_add(struct compact *k, uint64_t from, uint64_t to, uint64_t len)
{
    k->copy[k->ncopies++] = (struct compact_copy){ from, to, len };
    k->out->moved += len;
    return k->ncopies == k->max_copies ? compact_copy_all(k) : 0;
}

/* ---- entries -------------------------------------------------------------------------- */

static int remember_old(struct batch *b, uint64_t entry)
{
    if (b->nold == b->room) {
        size_t room = b->room ? b->room * 2 : 1024;
        uint64_t *old = realloc(b->old, room * sizeof(*old));

        if (!old) {
            return -ENOMEM;
        }
        b->old = old;
        b->room = room;
    }
    b->old[b->nold++] = entry;
    return 0;
}

/* A guest cluster of its own. */
static int move_normal(struct compact *k, struct batch *b, uint64_t *entry)
{
    uint64_t off = *entry & QCOW2_OFFSET_MASK, count, to;
    bool fresh;
    int err = qcow2_refcount_get(k->q, off >> k->q->h.cluster_bits, &count);

    if (!err && !count) {
        err = -EIO;                     /* the check before should have found it */
    }
    err = err ? err : compact_move(k, off, count, &to, &fresh);
    if (err || !to) {
        return err;
    }
    if (count == 1) {
        err = remember_old(b, *entry);
    }
    *entry = (*entry & ~QCOW2_OFFSET_MASK) | to;
    return err;
}

/* A place for len bytes behind those before, as qcow2_alloc_packed() has it, but below
 * the limit.  *at 0: none. */
static int pack(struct compact *k, uint64_t len, uint64_t *at)
{
    struct qcow2 *q = k->q;
    uint64_t here = k->pack_at, in = here & (q->cluster_size - 1), count = 0, to = 0;
    int err = here ? qcow2_refcount_get(q, here >> q->h.cluster_bits, &count) : 0;

    *at = 0;
    if (!err && count >= qcow2_refcount_max(q)) {
        here = 0;
    }
    if (!err && (!here || len > q->cluster_size - in)) {
        err = compact_place(k, 1, &to);
        if (err || !to) {
            return err;
        }
        here = here && to == here - in + q->cluster_size ? here : 0;
    }
    if (!err && here) {
        err = qcow2_count_shift(q, here & ~(q->cluster_size - 1ull), 1, true);
    }
    *at = here ? here : to;
    k->pack_at = (*at + len) & (q->cluster_size - 1) ? *at + len : 0;
    return err;
}

/* Does the whole span lie below the limit? */
static bool span_is_low(const struct compact *k, uint64_t off, uint64_t len)
{
    return (off + len - 1) >> k->q->h.cluster_bits < k->limit;
}

static int move_compressed(struct compact *k, struct batch *b, uint64_t *entry)
{
    struct qcow2 *q = k->q;
    unsigned shift = 62 - (q->h.cluster_bits - 8);
    uint64_t off, len, to, new, sectors;
    int err;

    qcow2_compressed_span(q, *entry, &off, &len);
    if (span_is_low(k, off, len) || len > q->cluster_size) {
        return 0;
    }
    if (compact_map_get(&k->packed, *entry, &new)) {
        uint64_t new_off, new_len;

        qcow2_compressed_span(q, new, &new_off, &new_len);
        uint64_t first = new_off >> q->h.cluster_bits;
        uint64_t n = ((new_off + new_len - 1) >> q->h.cluster_bits) - first + 1;
        err = qcow2_count_shift(q, first << q->h.cluster_bits, n, true);
    } else {
        err = pack(k, len, &to);
        if (err || !to) {
            return err;
        }
        k->moved++;
        sectors = ((to & 511) + len + 511) / 512;
        new = QCOW2_COMPRESSED | (sectors - 1) << shift | to;
        err = compact_copy_add(k, off, to, len);
        err = err || !q->h.nb_snapshots ? err : compact_map_put(&k->packed, *entry, new);
    }
    err = err ? err : remember_old(b, *entry);
    *entry = new;
    return err;
}

static int move_entry(struct compact *k, struct batch *b, uint64_t *entry)
{
    struct qcow2 *q = k->q;

    if (*entry & QCOW2_COMPRESSED) {
        return move_compressed(k, b, entry);
    }
    if (qcow2_external(q) ||
        (*entry & QCOW2_OFFSET_MASK) >> q->h.cluster_bits < k->limit) {
        return 0;
    }
    return move_normal(k, b, entry);
}

/* ---- L2 tables in place ------------------------------------------------------------------- */

static void batch_free(struct batch *b)
{
    for (size_t i = 0; i < b->ntables; i++) {
        blk_buf_free(b->tables[i].data);
    }
    free(b->old);
    b->ntables = b->nold = b->room = 0;
    b->old = NULL;
}

/* Copies and counts, pointers, counts of what was left: each durable before the next. */
static int batch_commit(struct compact *k, struct batch *b)
{
    struct qcow2 *q = k->q;
    int err = compact_copy_all(k);

    err = err || !b->ntables ? err : qcow2_settle(q);
    for (size_t i = 0; i < b->ntables && !err; i++) {
        err = co_write(q->file, b->tables[i].offset, b->tables[i].data, q->cluster_size, 0);
    }
    err = err || !b->ntables ? err : co_flush(q->file);
    for (size_t i = 0; i < b->nold && !err; i++) {
        qcow2_free_entry_later(q, b->old[i]);
    }
    err = err ? err : qcow2_settle(q);
    batch_free(b);
    return err;
}

static int move_table_entries(struct compact *k, struct batch *b, uint64_t offset)
{
    struct qcow2 *q = k->q;
    size_t step = qcow2_entry_bytes(q);
    uint8_t *data = blk_buf_alloc(q->cluster_size);
    bool changed = false;
    int err = data ? co_read(q->file, offset, data, q->cluster_size) : -ENOMEM;

    for (size_t at = 0; at < q->cluster_size && !err; at += step) {
        uint64_t old = be64(data + at), entry = old;

        err = move_entry(k, b, &entry);
        if (entry != old) {
            put_be64(data + at, entry);
            changed = true;
        }
    }
    if (err || !changed) {
        blk_buf_free(data);
        return err;
    }
    b->tables[b->ntables++] = (struct table){ offset, data };
    bool much = b->ntables == COMPACT_BATCH || b->nold >= 16 * COMPACT_BATCH ||
                b->ntables * q->cluster_size >= COMPACT_BATCH_BYTES;
    return much ? batch_commit(k, b) : 0;
}

static int move_l1_data(struct compact *k, uint64_t *l1, uint64_t len, uint64_t offset, bool active)
{
    struct batch *b = calloc(1, sizeof(*b));
    uint64_t was;
    int err = b ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < len && !err; i++) {
        uint64_t table = l1[i] & QCOW2_OFFSET_MASK;

        if (!table || compact_map_get(&k->seen, table, &was)) {
            continue;
        }
        err = move_table_entries(k, b, table);
        err = err || !k->q->h.nb_snapshots ? err : compact_map_put(&k->seen, table, 1);
    }
    err = err ? err : batch_commit(k, b);
    if (b) {
        batch_free(b);
    }
    free(b);
    return err;
}

int compact_data(struct compact *k)
{
    int err = compact_each_l1(k, move_l1_data);

    err = err ? err : compact_free_shared(k);
    compact_map_free(&k->seen);
    compact_map_free(&k->packed);
    return err;
}

/* ---- L2 tables to other places -------------------------------------------------------------- */

struct pointer {
    uint64_t index, old, new;           /* in an L1 table */
    bool shared;
};

/* Pointers to copies whose counts are durable. */
static int change_pointers(struct compact *k, const struct pointer *p, size_t n, uint64_t *l1,
                           uint64_t offset, bool active)
{
    struct qcow2 *q = k->q;
    uint8_t raw[8];
    int err = compact_copy_all(k);

    err = err ? err : qcow2_settle(q);
    for (size_t i = 0; i < n && !err; i++) {
        uint64_t entry = (l1[p[i].index] & ~QCOW2_OFFSET_MASK) | p[i].new;

        if (active) {
            err = qcow2_meta_add(q, p[i].new, 1);
            qcow2_l1_set(q, p[i].index, entry);
        } else {
            put_be64(raw, entry);
            err = co_write(q->file, offset + p[i].index * 8, raw, sizeof(raw), 0);
        }
    }
    err = err ? err : active ? qcow2_settle(q) : co_flush(q->file);
    for (size_t i = 0; i < n && !err; i++) {
        if (active) {
            qcow2_meta_del(q, p[i].old, 1);
        }
        if (!p[i].shared) {
            qcow2_free_later(q, p[i].old, 1);
        }
    }
    return err ? err : qcow2_settle(q);
}

static int move_l1_tables(struct compact *k, uint64_t *l1, uint64_t len, uint64_t offset,
                          bool active)
{
    struct qcow2 *q = k->q;
    struct pointer *p = calloc(COMPACT_BATCH, sizeof(*p));
    size_t n = 0;
    int err = p ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < len && !err; i++) {
        uint64_t old = l1[i] & QCOW2_OFFSET_MASK, new, count;
        bool fresh;

        if (old >> q->h.cluster_bits < k->limit) {
            continue;
        }
        err = qcow2_refcount_get(q, old >> q->h.cluster_bits, &count);
        err = err ? err : count ? compact_move(k, old, count, &new, &fresh) : -EIO;
        if (err || !new) {
            continue;
        }
        p[n++] = (struct pointer){ i, old, new, count > 1 };
        if (n == COMPACT_BATCH) {
            err = change_pointers(k, p, n, l1, offset, active);
            n = 0;
        }
    }
    err = err || !n ? err : change_pointers(k, p, n, l1, offset, active);
    free(p);
    return err;
}

int compact_l2_tables(struct compact *k)
{
    int err = compact_each_l1(k, move_l1_tables);
    return err ? err : compact_free_shared(k);
}
