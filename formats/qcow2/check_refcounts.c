/*
 * check_refcounts.c - the refcounts on disk against the references found.
 *
 * Blocks are read whole and compared in runs; a run that agrees costs a memcmp.
 * Parts of the cluster space that have neither a block nor a reference are
 * jumped over, so the time is that of what exists, not of the file's length.
 */
#include "formats/qcow2/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int ck_read_reftable(struct check *k)
{
    uint64_t bytes = (uint64_t)k->g.reftable_clusters << k->g.cluster_bits;
    free(k->reftable);
    k->reftable_entries = bytes / 8;
    k->reftable = calloc(k->reftable_entries ? k->reftable_entries : 1, 8);
    if (!k->reftable)
        return -ENOMEM;
    int r = ck_read(k, k->g.reftable_offset, k->reftable, bytes);
    for (uint64_t i = 0; !r && i < k->reftable_entries; i++)
        k->reftable[i] = be64(&k->reftable[i]);
    return r;
}

/* Offset of refcount block i; 0: there is none. -EIO: the entry is unusable. */
static int block_offset(const struct check *k, uint64_t i, uint64_t *off)
{
    *off = i < k->reftable_entries ? k->reftable[i] & CK_REFT_OFFSET : 0;
    return *off & (k->g.cluster_size - 1) || *off > INT64_MAX ? -EIO : 0;
}

static int count_block(struct check *k, uint64_t i)
{
    uint64_t entry = k->reftable[i], off = entry & CK_REFT_OFFSET;
    if (entry & QCOW2_REFT_RESERVED) {
        ck_error(k, 1, "ERROR refcount table entry %" PRIu64 " has reserved bits set", i);
        k->rebuild = true;
        return 0;
    }
    if (off & (k->g.cluster_size - 1)) {
        ck_error(k, 1, "ERROR refcount block %" PRIu64 " is not cluster aligned; refcount table "
                 "entry corrupted", i);
        k->rebuild = true;
        return 0;
    }
    uint64_t cluster = off >> k->g.cluster_bits;
    if (cluster >= k->nb_clusters) {
        /* QEMU would make the file that long; we build a new structure instead. */
        ck_error(k, 1, "ERROR refcount block %" PRIu64 " is outside image", i);
        if (k->fix & BLK_FIX_ERRORS)
            k->rebuild = true;
        return 0;
    }
    if (!off)
        return 0;
    int r = ck_ref(k, off, k->g.cluster_size, 1);
    if (!r)
        r = counts_add(&k->rc, cluster, 1, NULL);
    uint64_t refs = counts_get(&k->refs, cluster);
    /* More than can be stored was said already, as an overflow; but such a block
     * must not be written to. */
    k->rebuild |= refs != 1 && k->fix & BLK_FIX_ERRORS;
    refs = ck_storable(k, refs);
    k->rebuild |= refs != 1;
    if (!r && refs != 1)
        ck_error(k, 1, "ERROR refcount block %" PRIu64 " refcount=%" PRIu64, i, refs);
    return r;
}

int ck_count_blocks(struct check *k)
{
    for (uint64_t i = 0; i < k->reftable_entries; i++) {
        if (!k->reftable[i])
            continue;
        int r = count_block(k, i);
        if (r)
            return r;
    }
    return 0;
}

/* ---- comparing ------------------------------------------------------------------- */

/* One cluster that differs. Returns true if its refcount is to become refs. */
static bool compare_one(struct check *k, uint64_t cluster, uint64_t disk, uint64_t refs, int fix)
{
    bool leak = disk > refs;
    bool fixing = disk && (fix & (leak ? BLK_FIX_LEAKS : BLK_FIX_ERRORS));
    if (!disk)
        k->rebuild = true;
    ck_say(k, "%s cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
           fixing ? "Repairing" : leak ? "Leaked" : "ERROR", cluster, disk, refs);
    if (fixing && leak)
        k->out->leaks_fixed++;
    else if (fixing)
        k->out->corruptions_fixed++;
    else if (leak)
        k->out->leaks++;
    else
        k->out->corruptions++;
    return fixing;
}

/* Remember what the disk says of a cluster that is in use. */
static int note_disk(struct check *k, uint64_t cluster, uint64_t disk, uint64_t refs)
{
    if (disk == refs)
        return counts_set(&k->disk, cluster, 0);
    if (!refs)
        return 0;
    return counts_set(&k->disk, cluster, disk == UINT64_MAX ? disk : disk + 1);
}

/* Does the block have 1 for each of n clusters from its index at on? */
static bool block_all_one(const struct check *k, const uint8_t *block, uint64_t at, size_t n)
{
    if (!block || k->g.refcount_order < 3 || qcow2_refcount_at(k->q, block, at) != 1)
        return false;
    size_t width = 1u << (k->g.refcount_order - 3);
    const uint8_t *p = block + at * width;
    return !memcmp(p, p + width, (n - 1) * width);
}

/* The part [first, first+n) of a block; block NULL: all refcounts are 0. */
static int compare_run(struct check *k, uint8_t *block, uint64_t first, size_t n, int fix,
                       bool *dirty)
{
    uint64_t *disk = k->run_disk, *refs = k->run_refs;
    uint64_t at = first & ((1ull << k->g.block_bits) - 1);
    if (block_all_one(k, block, at, n) && counts_all_one(&k->refs, first, n)) {
        k->highest = first + n - 1;
        return 0;
    }
    for (size_t i = 0; i < n; i++)
        disk[i] = block ? qcow2_refcount_at(k->q, block, at + i) : 0;
    if (!counts_read(&k->refs, first, n, refs))
        memset(refs, 0, n * sizeof(*refs));

    size_t used = n;
    while (used && !disk[used - 1] && !refs[used - 1])
        used--;
    if (used)
        k->highest = first + used - 1;
    if (!memcmp(disk, refs, n * sizeof(*refs)))
        return 0;
    for (size_t i = 0; i < used; i++) {
        uint64_t want = ck_storable(k, refs[i]);
        if (disk[i] == want)
            continue;
        if (compare_one(k, first + i, disk[i], want, fix)) {
            qcow2_refcount_put(k->q, block, at + i, want);
            *dirty = true;
            disk[i] = want;
        }
        int r = note_disk(k, first + i, disk[i], want);
        if (!r && *dirty && !disk[i] && !want)
            r = counts_set(&k->freed, first + i, 1);
        if (r)
            return r;
    }
    return 0;
}

/* Clusters [first, end) all have the refcount block at off (0: none). */
static int compare_block(struct check *k, uint64_t off, uint64_t first, uint64_t end, int fix)
{
    bool dirty = false;
    /* A block that something else claims too is not ours to write, nor to compare
     * for ever: a rebuild replaces it. */
    if (off && counts_get(&k->refs, off >> k->g.cluster_bits) != 1) {
        fix = 0;
        if (k->shared++ >= CHECK_MAX_SHARED)
            return 0;
    }
    if (off && ck_is_hole(k, off, k->g.cluster_size))
        off = 0;
    int r = off ? ck_take(k, off, false) : 0;
    uint8_t *block = off ? k->table : NULL;
    if (r)
        return r;
    while (first < end && !r) {
        if (!block && (!counts_seek(&k->refs, &first) || first >= end))
            break;
        uint64_t n = BLK_MIN(end - first, COUNTS_PAGE - first % COUNTS_PAGE);
        r = compare_run(k, block, first, (size_t)n, fix, &dirty);
        first += n;
    }
    if (!r && dirty)
        r = ck_write(k, off, block, k->g.cluster_size);
    return r;
}

/* A refcount that cannot be had: as often as QEMU tries. */
static void cannot_compare(struct check *k, uint64_t first, uint64_t end, int err)
{
    uint64_t i0 = first >> k->g.block_bits, off;
    if (block_offset(k, i0, &off) && off & (k->g.cluster_size - 1) && !k->compare_errors)
        ck_say(k, "qcow2: Image is corrupt: Refblock offset %#" PRIx64 " unaligned (reftable "
               "index: %#" PRIx64 "); further non-fatal corruption events will be suppressed",
               off, i0);
    for (uint64_t i = first; i < end && k->lines < CHECK_MAX_LINES; i++)
        ck_say(k, "Can't get refcount for cluster %" PRIu64 ": %s", i, strerror(-err));
    k->out->check_errors += end - first;
    k->compare_errors += end - first;
}

/* First block at or after i that holds or ought to hold refcounts. */
static uint64_t next_block(struct check *k, uint64_t i)
{
    uint64_t first = i << k->g.block_bits, by_refs = UINT64_MAX;
    if (counts_seek(&k->refs, &first))
        by_refs = first >> k->g.block_bits;
    while (i < k->reftable_entries && i < by_refs && !(k->reftable[i] & CK_REFT_OFFSET))
        i++;
    return i < k->reftable_entries ? BLK_MIN(i, by_refs) : by_refs;
}

/* Start reading the blocks that come next, from index *next on. */
static void read_ahead(struct check *k, uint64_t *next, uint64_t blocks)
{
    while (*next < blocks && ck_ahead_room(k)) {
        uint64_t off;
        if (!block_offset(k, *next, &off) && off && off < k->file_len)
            ck_ahead_add(k, off, false);
        *next = next_block(k, *next + 1);
    }
}

int ck_compare(struct check *k, int fix)
{
    uint64_t blocks = ((k->nb_clusters - 1) >> k->g.block_bits) + 1;
    k->highest = 0;
    k->shared = 0;
    uint64_t next = next_block(k, 0);
    for (uint64_t i = next; i < blocks; i = next_block(k, i + 1)) {
        uint64_t first = i << k->g.block_bits, off;
        next = BLK_MAX(next, i);
        read_ahead(k, &next, blocks);
        ck_progress(k, i, blocks);
        uint64_t end = BLK_MIN(first + (1ull << k->g.block_bits), k->nb_clusters);
        int r = block_offset(k, i, &off);
        if (!r)
            r = compare_block(k, off, first, end, fix);
        if (r == -ENOMEM)
            return r;
        if (r)
            cannot_compare(k, first, end, r);
    }
    return 0;
}

/* Past the end of the file there may still be a refcount; read just that one. */
static int refcount_beyond(struct check *k, uint64_t cluster, uint64_t block, uint64_t *out)
{
    uint64_t i = cluster & ((1ull << k->g.block_bits) - 1), bit = i << k->g.refcount_order;
    uint64_t width = k->g.refcount_order > 3 ? (1ull << k->g.refcount_order) / 8 : 1;
    uint64_t per = k->g.refcount_order < 3 ? 8u >> k->g.refcount_order : 1;
    uint8_t word[8];
    int r = ck_read(k, block + bit / 8, word, width);
    *out = r ? 0 : qcow2_refcount_at(k->q, word, i % per);
    return r;
}

int ck_disk_refcount(struct check *k, uint64_t cluster, uint64_t *out)
{
    uint64_t block;
    int r = block_offset(k, cluster >> k->g.block_bits, &block);
    *out = 0;
    if (r || !block)
        return r;
    if (cluster >= k->nb_clusters)
        return refcount_beyond(k, cluster, block, out);
    uint64_t differs = counts_get(&k->disk, cluster);
    *out = differs ? differs - 1 : ck_storable(k, counts_get(&k->refs, cluster));
    return 0;
}
