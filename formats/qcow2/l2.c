/*
 * l2.c - from a guest offset to its L2 entry; making and un-sharing L2 tables.
 *
 * Invariants
 *  - An L2 table's body is written (zeros, or the copy of the shared table)
 *    before any L1 entry in memory points at it; flush.c makes it durable before
 *    the L1 table is written.
 *  - Entries change only in tables whose L1 entry has COPIED set.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int qcow2_l1_load(struct qcow2 *q, struct blk_error *e)
{
    size_t n = q->h.l1_size, bytes = n * 8;

    q->l1 = malloc(bytes + 8);
    q->l1_dirty = calloc(1, bytes / 512 + 1);
    if (!q->l1 || !q->l1_dirty) {
        return blk_err(e, ENOMEM, "Could not allocate the L1 table");
    }
    int err = n ? co_read(q->file, q->h.l1_offset, q->l1, bytes) : 0;
    if (err) {
        return blk_err_errno(e, -err, "Could not read L1 table");
    }
    for (size_t i = 0; i < n; i++) {
        q->l1[i] = be64(&q->l1[i]);
    }
    return 0;
}

void qcow2_l1_set(struct qcow2 *q, uint64_t index, uint64_t entry)
{
    q->l1[index] = entry;
    q->l1_dirty[index * 8 / 512] = 1;
    q->l1_any_dirty = true;
}

int qcow2_l2_read(struct qcow2 *q, uint64_t guest, struct qcow2_slice **out)
{
    uint64_t slice = qcow2_slice_index(q, guest), l1 = qcow2_l1_index(q, slice);
    *out = NULL;
    if (l1 >= q->h.l1_size || !(q->l1[l1] & QCOW2_OFFSET_MASK)) {
        return 0;
    }
    return qcow2_slice_get(q, slice, out);
}

enum qcow2_type qcow2_sub_type_wide(const struct qcow2 *q, uint64_t entry, uint64_t map,
                                    unsigned sc, unsigned *run)
{
    uint32_t allocated = (uint32_t)map, zeros = (uint32_t)(map >> 32), alike;
    bool host = qcow2_has_host(q, entry);
    enum qcow2_type type;

    *run = (1u << q->sub_bits) - sc;
    if (entry & QCOW2_COMPRESSED) {
        return map ? QCOW2_INVALID : QCOW2_DEFLATED;
    }
    if (allocated & zeros || (allocated && !host)) {
        return QCOW2_INVALID;
    }
    if (allocated >> sc & 1) {
        type = QCOW2_NORMAL;
        alike = allocated;
    } else if (zeros >> sc & 1) {
        type = host ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
        alike = zeros;
    } else {
        type = host ? QCOW2_UNALLOC_HOST : QCOW2_UNALLOCATED;
        alike = ~(allocated | zeros);
    }
    uint32_t others = ~alike >> sc;
    *run = others ? (unsigned)__builtin_ctz(others) : *run;
    return type;
}

/* Copy one cluster of the file, or zero the target. */
static int fill_cluster(struct qcow2 *q, uint64_t from, uint64_t to)
{
    uint8_t *buf = blk_buf_alloc(q->cluster_size);
    int err = buf ? 0 : -ENOMEM;
    if (!err && from) {
        blk_event(q->file, "l2_alloc_cow_read");
        err = co_read(q->file, from, buf, q->cluster_size);
    } else if (!err) {
        memset(buf, 0, q->cluster_size);
    }
    if (!err) {
        blk_event(q->file, "l2_alloc_write");
        err = co_write(q->file, to, buf, q->cluster_size, 0);
    }
    blk_buf_free(buf);
    return err;
}

/* Slices of a shared table that are in memory hold the same entries as its copy;
 * they are clean (shared tables are never changed), so they stay valid. */
static int table_make(struct qcow2 *q, uint64_t l1)
{
    uint64_t old = q->l1[l1] & QCOW2_OFFSET_MASK;
    struct qcow2_space at = { .what = "L2 table" };
    int err = qcow2_alloc(q, 1, true, &at);

    if (err) {
        return err;
    }
    err = q->lazy ? qcow2_counts_write(q) : 0;  /* as QEMU: only data clusters are counted late */
    err = err ? err : fill_cluster(q, old, at.offset);
    if (!err) {
        err = qcow2_meta_add(q, at.offset, 1);
    }
    if (err) {
        qcow2_unalloc(q, at.offset, 1);
        return err;
    }
    qcow2_l1_set(q, l1, at.offset | QCOW2_COPIED);
    if (old) {
        qcow2_free_later(q, old, 1);
    }
    return 0;
}

int qcow2_l2_write(struct qcow2 *q, uint64_t guest, struct qcow2_slice **out)
{
    uint64_t slice = qcow2_slice_index(q, guest), l1 = qcow2_l1_index(q, slice);
    int err = 0;

    if (q->corrupt) {
        return -EIO;
    }
    if (q->l1_bad && q->l1_bad[l1]) {
        /* QEMU stumbles over a refcount block when it counts. */
        uint64_t at = q->l1[l1] & QCOW2_OFFSET_MASK;
        const char *kind = qcow2_meta_kind(q, at, false);
        return qcow2_write_prevented(q, at, !kind || !strcmp(kind, "refcount block"));
    }
    if (q->l1[l1] & QCOW2_OFFSET_MASK & (q->cluster_size - 1)) {
        return qcow2_l1_bad(q, l1);
    }
    if (!(q->l1[l1] & QCOW2_COPIED) || !(q->l1[l1] & QCOW2_OFFSET_MASK)) {
        co_lock(&q->l2_lock);
        if (!(q->l1[l1] & QCOW2_COPIED) || !(q->l1[l1] & QCOW2_OFFSET_MASK)) {
            err = table_make(q, l1);
        }
        co_unlock(&q->l2_lock);
    }
    return err ? err : qcow2_slice_get(q, slice, out);
}
