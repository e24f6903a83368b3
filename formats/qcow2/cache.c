/*
 * cache.c - L2 slices and refcount blocks in memory.
 *
 * Invariants
 *  - A slice is found by its guest slice number, a block by its index in the
 *    refcount table; both through hash tables sized at open.
 *  - Only clean, unpinned pieces are dropped, so what is dirty leaves memory
 *    only through flush.c.
 *  - A load happens under a lock that the piece has, so it is never in memory twice.  Slices
 *    share a few locks by their number: storage that takes its time is asked for many at once.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static inline uint32_t hash_of(uint64_t index, uint32_t bits)
{
    return (uint32_t)((index * 0x9e3779b97f4a7c15ull) >> (64 - bits));
}

static uint32_t bits_for(uint64_t n)
{
    uint32_t bits = 4;
    while (bits < 16 && 1ull << bits < n) {
        bits++;
    }
    return bits;
}

int qcow2_cache_init(struct qcow2 *q, uint64_t l2_bytes, uint64_t refcount_bytes)
{
    uint64_t all = q->h.size / ((uint64_t)q->cluster_size << q->slice_bits) + 1;
    q->max_slices = BLK_MAX(l2_bytes / qcow2_slice_bytes(q), 8u);
    q->max_blocks = BLK_MAX(refcount_bytes / q->cluster_size, 8u);
    q->slice_hash_bits = bits_for(BLK_MIN(all, q->max_slices));
    q->block_hash_bits = bits_for(BLK_MIN(q->reft_len, q->max_blocks));
    q->slice_hash = calloc(1ull << q->slice_hash_bits, sizeof(*q->slice_hash));
    q->block_hash = calloc(1ull << q->block_hash_bits, sizeof(*q->block_hash));
    return q->slice_hash && q->block_hash ? 0 : -ENOMEM;
}

void qcow2_cache_drop(struct qcow2 *q)
{
    for (uint64_t i = 0; q->slice_hash && i < 1ull << q->slice_hash_bits; i++) {
        while (q->slice_hash[i]) {
            struct qcow2_slice *s = q->slice_hash[i];
            q->slice_hash[i] = s->hash_next;
            free(s);
        }
    }
    for (uint64_t i = 0; q->block_hash && i < 1ull << q->block_hash_bits; i++) {
        while (q->block_hash[i]) {
            struct qcow2_block *b = q->block_hash[i];
            q->block_hash[i] = b->hash_next;
            free(b);
        }
    }
    q->nslices = q->nblocks = 0;
    q->dirty_slices = NULL;
    q->dirty_blocks = NULL;
    q->ndirty_slices = q->ndirty_blocks = 0;
}

void qcow2_cache_free(struct qcow2 *q)
{
    qcow2_cache_drop(q);
    free(q->slice_hash);
    free(q->block_hash);
    q->slice_hash = NULL;
    q->block_hash = NULL;
}

/* ---- L2 slices ------------------------------------------------------------------ */

struct qcow2_slice *qcow2_slice_peek(struct qcow2 *q, uint64_t index)
{
    struct qcow2_slice *s = q->slice_hash[hash_of(index, q->slice_hash_bits)];
    while (s && s->index != index) {
        s = s->hash_next;
    }
    if (s) {
        s->used = true;
    }
    return s;
}

/* Drop slices nobody needs until there is room for one more.  Two rounds of the
 * clock clear every used bit; what is left then is dirty or pinned. */
static void slices_evict(struct qcow2 *q)
{
    uint64_t buckets = 1ull << q->slice_hash_bits;
    for (uint64_t tries = 0; q->nslices >= q->max_slices && tries < 2 * buckets; tries++) {
        struct qcow2_slice **p = &q->slice_hash[q->slice_clock++ & (buckets - 1)];
        while (*p) {
            struct qcow2_slice *s = *p;
            if (s->dirty || s->pins || s->used) {
                s->used = false;
                p = &s->hash_next;
                continue;
            }
            *p = s->hash_next;
            free(s);
            q->nslices--;
        }
    }
}

static int slice_load(struct qcow2 *q, uint64_t index, struct qcow2_slice **out)
{
    uint64_t l1 = q->l1[qcow2_l1_index(q, index)];
    uint64_t table = l1 & QCOW2_OFFSET_MASK;
    uint64_t in_table = (index & ((1ull << (q->l2_bits - q->slice_bits)) - 1)) * qcow2_slice_bytes(q);

    if (table & (q->cluster_size - 1)) {
        return qcow2_l1_bad(q, qcow2_l1_index(q, index));
    }
    if (table >= q->file->size) {
        return qcow2_report_corrupt(q, "L2 table offset %#llx is past the end of the file "
                                    "(L1 index: %#llx)", (unsigned long long)table,
                                    (unsigned long long)qcow2_l1_index(q, index));
    }
    slices_evict(q);
    struct qcow2_slice *s = malloc(sizeof(*s) + qcow2_slice_bytes(q));
    if (!s) {
        return -ENOMEM;
    }
    blk_event(q->file, "l2_load");
    int err = co_read(q->file, table + in_table, s->word, qcow2_slice_bytes(q));
    if (err) {
        free(s);
        return err;
    }
    uint32_t h = hash_of(index, q->slice_hash_bits);
    s->index = index;
    s->pins = 0;
    s->dirty = false;
    s->used = true;
    s->hash_next = q->slice_hash[h];
    q->slice_hash[h] = s;
    q->nslices++;
    *out = s;
    return 0;
}

int qcow2_slice_get(struct qcow2 *q, uint64_t index, struct qcow2_slice **out)
{
    struct qcow2_slice *s = qcow2_slice_peek(q, index);
    struct co_mutex *lock = &q->slice_load[hash_of(index, QCOW2_LOAD_BITS)];
    int err = 0;

    /* Who has waited for it and not run yet comes first: writes find places in their order. */
    if (!s || lock->held) {
        co_lock(lock);
        s = qcow2_slice_peek(q, index);
        if (!s) {
            err = slice_load(q, index, &s);
        }
        co_unlock(lock);
    }
    if (!err) {
        s->pins++;
        *out = s;
    }
    return err;
}

void qcow2_slice_dirty(struct qcow2 *q, struct qcow2_slice *s)
{
    if (!s->dirty) {
        s->dirty = true;
        s->dirty_next = q->dirty_slices;
        q->dirty_slices = s;
        q->ndirty_slices++;
    }
}

/* ---- refcount blocks ---------------------------------------------------------------- */

static struct qcow2_block *block_peek(struct qcow2 *q, uint64_t index)
{
    struct qcow2_block *b = q->block_hash[hash_of(index, q->block_hash_bits)];
    while (b && b->index != index) {
        b = b->hash_next;
    }
    if (b) {
        b->used = true;
    }
    return b;
}

static void blocks_evict(struct qcow2 *q)
{
    uint64_t buckets = 1ull << q->block_hash_bits;
    for (uint64_t tries = 0; q->nblocks >= q->max_blocks && tries < 2 * buckets; tries++) {
        struct qcow2_block **p = &q->block_hash[q->block_clock++ & (buckets - 1)];
        while (*p) {
            struct qcow2_block *b = *p;
            if (b->dirty || b->pins || b->used) {
                b->used = false;
                p = &b->hash_next;
                continue;
            }
            *p = b->hash_next;
            free(b);
            q->nblocks--;
        }
    }
}

static struct qcow2_block *block_insert(struct qcow2 *q, uint64_t index)
{
    blocks_evict(q);
    struct qcow2_block *b = malloc(sizeof(*b) + q->cluster_size);
    if (b) {
        b->index = index;
        b->pins = 0;
        b->dirty = false;
        b->used = true;
        b->hash_next = NULL;
        b->dirty_next = NULL;
    }
    return b;
}

static void block_link(struct qcow2 *q, struct qcow2_block *b)
{
    uint32_t h = hash_of(b->index, q->block_hash_bits);
    b->hash_next = q->block_hash[h];
    q->block_hash[h] = b;
    q->nblocks++;
}

static int block_load(struct qcow2 *q, uint64_t index, struct qcow2_block **out)
{
    uint64_t off = q->reft[index];
    if (off & (QCOW2_REFT_RESERVED | (q->cluster_size - 1))) {
        return qcow2_mark_corrupt(q, "Refblock offset %#llx unaligned (reftable index: %#llx)",
                                  (unsigned long long)off, (unsigned long long)index);
    }
    if (off >= q->file->size || off < q->cluster_size) {
        return qcow2_mark_corrupt(q, "Refblock offset %#llx is outside the file (reftable index: "
                                  "%#llx)", (unsigned long long)off, (unsigned long long)index);
    }
    struct qcow2_block *b = block_insert(q, index);
    if (!b) {
        return -ENOMEM;
    }
    blk_event(q->file, "refblock_load");
    int err = co_read(q->file, off, b->data, q->cluster_size);
    if (err) {
        free(b);
        return err;
    }
    block_link(q, b);
    *out = b;
    return 0;
}

int qcow2_block_get(struct qcow2 *q, uint64_t index, struct qcow2_block **out)
{
    struct qcow2_block *b = block_peek(q, index);
    int err = 0;

    if (!b) {
        co_lock(&q->block_load);
        b = block_peek(q, index);
        if (!b) {
            err = block_load(q, index, &b);
        }
        co_unlock(&q->block_load);
    }
    if (!err) {
        b->pins++;
        *out = b;
    }
    return err;
}

int qcow2_block_new(struct qcow2 *q, uint64_t index, struct qcow2_block **out)
{
    struct qcow2_block *b = block_insert(q, index);
    if (!b) {
        return -ENOMEM;
    }
    memset(b->data, 0, q->cluster_size);
    block_link(q, b);
    qcow2_block_dirty(q, b);
    b->pins++;
    *out = b;
    return 0;
}

void qcow2_block_dirty(struct qcow2 *q, struct qcow2_block *b)
{
    if (!b->dirty) {
        b->dirty = true;
        b->dirty_next = q->dirty_blocks;
        q->dirty_blocks = b;
        q->ndirty_blocks++;
    }
}
