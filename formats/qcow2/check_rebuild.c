/*
 * check_rebuild.c - a new refcount structure for an image whose own is unusable.
 *
 * Invariants
 *  - New blocks and the new table go into clusters nothing points at, then past
 *    the end of the file; never over the old structure, never where an L2 entry
 *    points past the end: until the header names the new table, the image is what
 *    it was.
 *  - The size follows from the clusters in use in the file, not from the header.
 */
#include "formats/qcow2/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct rebuild {
    struct check *k;
    uint64_t first_free, limit;         /* for single clusters; end of what can be had */
    uint64_t *block;                    /* offset by block index, 0: none */
    uint64_t blocks, room;              /* indices in use; entries in block */
    uint64_t table, table_clusters;     /* first cluster */
};

/* From here on refs are the references without the old structure's. */
static int forget_old_structure(struct check *k)
{
    for (uint64_t i = 0; counts_seek(&k->rc, &i); i++) {
        uint64_t old = counts_get(&k->rc, i);
        int r = old ? counts_set(&k->refs, i, counts_get(&k->refs, i) - old) : 0;
        if (r)
            return r;
    }
    return 0;
}

/* May this cluster be taken?  One that something past the end points at becomes
 * part of the file when the file grows over it: it is counted then. */
static int rebuild_take(struct rebuild *b, uint64_t cluster, bool *free)
{
    struct check *k = b->k;
    uint64_t beyond = counts_get(&k->beyond, cluster);
    *free = !beyond && !counts_get(&k->refs, cluster) && !counts_get(&k->rc, cluster);
    if (!beyond)
        return 0;
    counts_set(&k->beyond, cluster, 0);
    k->grown_over = true;
    return counts_add(&k->refs, cluster, beyond, NULL);
}

/* The first n clusters in a row that are free, at or after from. */
static int rebuild_alloc(struct rebuild *b, uint64_t from, uint64_t n, uint64_t *first)
{
    uint64_t run = 0, at = from;
    while (run < n) {
        bool free;
        if (at >= b->limit)
            return -ENOSPC;
        int r = rebuild_take(b, at++, &free);
        if (r)
            return r;
        run = free ? run + 1 : 0;
    }
    *first = at - n;
    for (uint64_t i = 0; i < n; i++) {
        int r = counts_set(&b->k->refs, *first + i, 1);
        if (r)
            return r;
    }
    return 0;
}

/* Room for block index i in the list. */
static int rebuild_room(struct rebuild *b, uint64_t i)
{
    if (i >= QCOW2_MAX_REFTABLE_BYTES / 8)
        return -EFBIG;
    if (i >= b->room) {
        uint64_t room = BLK_MAX(i + 1, b->room * 2);
        uint64_t *p = realloc(b->block, room * sizeof(*p));
        if (!p)
            return -ENOMEM;
        memset(p + b->room, 0, (room - b->room) * sizeof(*p));
        b->block = p;
        b->room = room;
    }
    if (i >= b->blocks)
        b->blocks = i + 1;
    return 0;
}

/* First counter at or after *at that is not zero. */
static bool next_used(struct check *k, uint64_t *at)
{
    while (counts_seek(&k->refs, at)) {
        uint64_t n = COUNTS_PAGE - *at % COUNTS_PAGE;
        counts_read(&k->refs, *at, (size_t)n, k->run_refs);
        for (uint64_t i = 0; i < n; i++) {
            if (k->run_refs[i]) {
                *at += i;
                return true;
            }
        }
        *at += n;
    }
    return false;
}

/* A block for every used part of the file that has none. *added: how many. */
static int place_blocks(struct rebuild *b, uint64_t *added)
{
    struct check *k = b->k;
    *added = 0;
    for (uint64_t at = 0; next_used(k, &at); ) {
        uint64_t i = at >> k->g.block_bits, cluster;
        int r = rebuild_room(b, i);
        if (!r && !b->block[i]) {
            /* Not where a block placed before would have to count it: as QEMU. */
            b->first_free = BLK_MAX(b->first_free, i << k->g.block_bits);
            r = rebuild_alloc(b, b->first_free, 1, &cluster);
        }
        if (r)
            return r;
        if (!b->block[i]) {
            b->first_free = cluster + 1;
            b->block[i] = cluster << k->g.cluster_bits;
            ++*added;
        }
        at = (i + 1) << k->g.block_bits;
    }
    return 0;
}

/* Clusters of a table for the blocks so far. */
static uint64_t table_need(const struct rebuild *b)
{
    return (b->blocks * 8 + b->k->g.cluster_size - 1) >> b->k->g.cluster_bits;
}

/* Blocks need a table, both need refcounts, those need blocks: until it closes. */
static int place_all(struct rebuild *b)
{
    uint64_t added;
    do {
        int r = place_blocks(b, &added);
        if (r)
            return r;
        if (table_need(b) <= b->table_clusters)
            continue;
        for (uint64_t i = 0; i < b->table_clusters; i++)
            counts_set(&b->k->refs, b->table + i, 0);
        b->table_clusters = table_need(b);
        r = rebuild_alloc(b, 1, b->table_clusters, &b->table);
        if (r)
            return r;
        added = 1;
    } while (added);
    return 0;
}

static int write_block(struct rebuild *b, uint64_t index)
{
    struct check *k = b->k;
    uint64_t per = 1ull << k->g.block_bits, first = index << k->g.block_bits;
    memset(k->table, 0, k->g.cluster_size);
    for (uint64_t i = 0; i < per; ) {
        uint64_t n = BLK_MIN(per - i, COUNTS_PAGE - (first + i) % COUNTS_PAGE);
        if (counts_read(&k->refs, first + i, (size_t)n, k->run_refs))
            for (uint64_t j = 0; j < n; j++)
                qcow2_refcount_put(k->q, k->table, i + j, ck_storable(k, k->run_refs[j]));
        i += n;
    }
    return ck_write(k, b->block[index], k->table, k->g.cluster_size);
}

static int write_table(struct rebuild *b)
{
    struct check *k = b->k;
    uint64_t bytes = b->table_clusters << k->g.cluster_bits;
    uint8_t *t = blk_buf_alloc(bytes);
    if (!t)
        return -ENOMEM;
    memset(t, 0, bytes);
    for (uint64_t i = 0; i < b->blocks; i++)
        put_be64(t + i * 8, b->block[i]);
    int r = ck_write(k, b->table << k->g.cluster_bits, t, bytes);
    blk_buf_free(t);
    return r;
}

/* The header's two fields lie in one sector: the switch is atomic. */
static int switch_header(struct rebuild *b)
{
    struct check *k = b->k;
    uint8_t be[12];
    put_be64(be, b->table << k->g.cluster_bits);
    put_be32(be + 8, (uint32_t)b->table_clusters);
    int r = ck_write(k, QH_REFT_OFFSET, be, sizeof(be));
    if (!r)
        r = co_flush(k->file);
    if (r)
        return r;
    k->g.reftable_offset = b->table << k->g.cluster_bits;
    k->g.reftable_clusters = (uint32_t)b->table_clusters;
    return 0;
}

/* The old structure was left out of the new refcounts; QEMU frees it afterwards
 * and says so. */
static void say_old_structure(struct check *k)
{
    for (uint64_t i = 0; counts_seek(&k->rc, &i); i++) {
        uint64_t old = counts_get(&k->rc, i), refs = counts_get(&k->refs, i);
        if (old)
            ck_say(k, "Repairing cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64, i,
                   ck_storable(k, refs + old), ck_storable(k, refs));
    }
}

/* What the checker knows about the file and its refcounts is new. */
static int adopt_new_structure(struct check *k)
{
    uint64_t len;
    int r = blk_storage_length(k->file, &len);
    if (r)
        return r;
    k->file_len = BLK_MAX(len, k->file_len);
    k->nb_clusters = (k->file_len + k->g.cluster_size - 1) >> k->g.cluster_bits;
    say_old_structure(k);
    counts_free(&k->rc);
    return ck_read_reftable(k);
}

int ck_rebuild(struct check *k)
{
    struct rebuild b = { .k = k, .limit = k->nb_clusters };
    if (k->file->can_grow)
        b.limit = (uint64_t)INT64_MAX >> k->g.cluster_bits;
    const char *step = "allocating refblock";
    int r = forget_old_structure(k);
    if (!r)
        r = place_all(&b);
    if (!r)
        step = "writing refblock";
    for (uint64_t i = 0; i < b.blocks && !r; i++)
        if (b.block[i])
            r = write_block(&b, i);
    if (!r) {
        step = "writing reftable";
        r = write_table(&b);
    }
    if (!r)
        r = co_flush(k->file);
    if (!r) {
        step = "setting reftable";
        r = switch_header(&b);
    }
    if (!r)
        r = adopt_new_structure(k);
    if (r) {
        ck_say(k, "ERROR %s: %s", step, strerror(-r));
        k->out->check_errors++;
    }
    free(b.block);
    return r;
}
