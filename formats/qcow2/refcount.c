/*
 * refcount.c - reference counts, deferred freeing, and the set of metadata clusters that
 * overlap checks ask.
 *
 * Invariant: counts go up in memory before anything points at the cluster (alloc.c), and
 * down only in qcow2_free_now(), after the pointer's removal is durable.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- counts of any width ---------------------------------------------------------- */

uint64_t qcow2_refcount_at(const struct qcow2 *q, const uint8_t *block, uint64_t i)
{
    switch (q->h.refcount_order) {
    case 0: return block[i / 8] >> (i % 8) & 1;
    case 1: return block[i / 4] >> (i % 4 * 2) & 3;
    case 2: return block[i / 2] >> (i % 2 * 4) & 15;
    case 3: return block[i];
    case 4: return be16(block + i * 2);
    case 5: return be32(block + i * 4);
    default: return be64(block + i * 8);
    }
}

static void put_bits(uint8_t *p, unsigned shift, uint8_t mask, uint64_t v)
{
    *p = (uint8_t)((*p & ~(mask << shift)) | (v & mask) << shift);
}

void qcow2_refcount_put(const struct qcow2 *q, uint8_t *block, uint64_t i, uint64_t v)
{
    switch (q->h.refcount_order) {
    case 0: put_bits(block + i / 8, i % 8, 1, v); break;
    case 1: put_bits(block + i / 4, i % 4 * 2, 3, v); break;
    case 2: put_bits(block + i / 2, i % 2 * 4, 15, v); break;
    case 3: block[i] = (uint8_t)v; break;
    case 4: put_be16(block + i * 2, (uint16_t)v); break;
    case 5: put_be32(block + i * 4, (uint32_t)v); break;
    default: put_be64(block + i * 8, v); break;
    }
}

int qcow2_reft_load(struct qcow2 *q, struct blk_error *e)
{
    uint64_t bytes = (uint64_t)q->h.reft_clusters << q->h.cluster_bits;
    /* What the file does not hold is zeros: do not allocate for a promise. */
    uint64_t have = q->h.reft_offset < q->file->size ? q->file->size - q->h.reft_offset : 0;
    uint64_t len = BLK_MIN(bytes, blk_align_up(have, 8));

    uint64_t *table = calloc(len / 8 + 1, 8);
    if (!table) {
        return blk_err(e, ENOMEM, "Could not allocate the refcount table");
    }
    blk_event(q->file, "reftable_load");
    int err = len ? co_read(q->file, q->h.reft_offset, table, len) : 0;
    if (err || q->reft) {
        free(table);                    /* or another fiber was faster */
        return err ? blk_err_errno(e, -err, "Could not read refcount table") : 0;
    }
    for (uint64_t i = 0; i < len / 8; i++) {
        table[i] = be64(&table[i]);
    }
    q->reft = table;
    q->reft_len = len / 8;
    q->reft_on_disk = bytes / 8;
    while (q->reft_len && !q->reft[q->reft_len - 1]) {
        q->reft_len--;
    }
    q->reft_dirty_first = UINT64_MAX;
    q->reft_dirty_end = 0;
    q->end_cluster = qcow2_clusters(q, q->file->size);
    q->zero_from = q->file->can_grow && q->file->starts_as_zeros
                       ? q->end_cluster << q->h.cluster_bits : UINT64_MAX;
    q->old_end = q->end_cluster;
    q->free_hint = 0;
    q->free_byte = 0;
    return 0;
}

int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *out)
{
    struct qcow2_block *b;
    *out = 0;
    if (qcow2_block_of(q, cluster) >= q->reft_len || !q->reft[qcow2_block_of(q, cluster)]) {
        return 0;
    }
    int err = qcow2_block_get(q, qcow2_block_of(q, cluster), &b);
    if (!err) {
        *out = qcow2_refcount_at(q, b->data, qcow2_in_block(q, cluster));
        qcow2_block_put(b);
    }
    return err;
}

/* ---- the metadata set ------------------------------------------------------------------ */

static int set_grow(struct qcow2_set *t)
{
    uint64_t *old = t->slot, n = old ? 1ull << t->bits : 0;
    uint32_t bits = old ? t->bits + 1 : 6;
    uint64_t *slot = calloc(1ull << bits, sizeof(*slot)), mask = (1ull << bits) - 1, at;

    if (!slot) {
        return -ENOMEM;
    }
    t->slot = slot;
    t->bits = bits;
    for (uint64_t i = 0; i < n; i++) {
        if (old[i]) {
            for (at = qcow2_set_slot(t, old[i]); slot[at]; at = (at + 1) & mask) {
            }
            slot[at] = old[i];
        }
    }
    free(old);
    return 0;
}

int qcow2_set_add(struct qcow2_set *t, uint64_t cluster)
{
    uint64_t key = cluster + 1;
    if (t->count * 2 >= (t->slot ? 1ull << t->bits : 0) && set_grow(t)) {
        return -ENOMEM;
    }
    uint64_t mask = (1ull << t->bits) - 1, at = qcow2_set_slot(t, key);
    while (t->slot[at] && t->slot[at] != key) {
        at = (at + 1) & mask;
    }
    t->count += !t->slot[at];
    t->slot[at] = key;
    return 0;
}

static void set_del(struct qcow2_set *t, uint64_t cluster)
{
    if (!qcow2_set_has(t, cluster)) {
        return;
    }
    uint64_t key = cluster + 1, mask = (1ull << t->bits) - 1, at = qcow2_set_slot(t, key), next;
    while (t->slot[at] != key) {
        at = (at + 1) & mask;
    }
    /* Linear probing: move later members of the run into the gap. */
    t->count--;
    for (next = (at + 1) & mask; t->slot[next]; next = (next + 1) & mask) {
        uint64_t home = qcow2_set_slot(t, t->slot[next]);
        if (((next - home) & mask) >= ((next - at) & mask)) {
            t->slot[at] = t->slot[next];
            at = next;
        }
    }
    t->slot[at] = 0;
}

int qcow2_meta_add(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    int err = 0;
    for (uint64_t c = offset >> q->h.cluster_bits; !err && q->writable && clusters--; c++) {
        err = qcow2_set_add(&q->meta, c);
    }
    return err;
}

void qcow2_meta_del(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    for (uint64_t c = offset >> q->h.cluster_bits; clusters--; c++) {
        set_del(&q->meta, c);
    }
}

void qcow2_sets_free(struct qcow2 *q)
{
    free(q->meta.slot);
    free(q->doubtful.slot);
    q->meta = q->doubtful = (struct qcow2_set){ 0 };
}

static int meta_add_l2(struct qcow2 *q)
{
    for (uint64_t i = 0; i < q->h.l1_size; i++) {
        uint64_t off = q->l1[i] & QCOW2_OFFSET_MASK;
        if (!off) {
            continue;
        }
        if (qcow2_meta_hit(q, off)) {
            if (!q->l1_bad && !(q->l1_bad = calloc(1, q->h.l1_size))) {
                return -ENOMEM;
            }
            q->l1_bad[i] = 1;
        } else if (qcow2_meta_add(q, off, 1)) {
            return -ENOMEM;
        }
    }
    return 0;
}

/* Add what the refcount structures need for themselves; a hit on what is there
 * already means that no count can be trusted. */
static int meta_add_own(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    for (uint64_t i = 0; i < clusters; i++) {
        uint64_t at = offset + (i << q->h.cluster_bits);
        if (qcow2_meta_hit(q, at)) {
            q->reft_bad = at;
        }
        if (qcow2_meta_add(q, at, 1)) {
            return -ENOMEM;
        }
    }
    return 0;
}

int qcow2_meta_init(struct qcow2 *q)
{
    int err = qcow2_meta_add(q, 0, 1);
    err = err ? err : meta_add_own(q, q->h.l1_offset, qcow2_clusters(q, q->h.l1_size * 8ull));
    err = err ? err : meta_add_own(q, q->h.reft_offset, q->h.reft_clusters);
    err = err ? err : qcow2_snapshots_mark(q);
    err = err ? err : qcow2_crypt_mark(q);
    for (uint64_t i = 0; !err && i < q->reft_len; i++) {
        if (q->reft[i] && !(q->reft[i] & (q->cluster_size - 1))) {
            err = meta_add_own(q, q->reft[i], 1);
        }
    }
    return err ? err : meta_add_l2(q);
}

/* ---- freeing ---------------------------------------------------------------------------------- */

void qcow2_free_later(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    struct qcow2_run *r = q->to_free;
    q->bm.touched = true;
    if (r && r->offset + (r->clusters << q->h.cluster_bits) == offset) {
        r->clusters += clusters;
        return;
    }
    r = malloc(sizeof(*r));
    if (r) {                    /* else: a leak, which check can mend */
        *r = (struct qcow2_run){ offset, clusters, q->to_free };
        q->to_free = r;
    }
}

void qcow2_free_packed_later(struct qcow2 *q, const struct qcow2_packed *p)
{
    uint64_t first = p->offset >> q->h.cluster_bits;
    uint64_t last = (p->offset + p->len - 1) >> q->h.cluster_bits;
    qcow2_free_later(q, first << q->h.cluster_bits, last - first + 1);
}

void qcow2_free_entry_later(struct qcow2 *q, uint64_t entry)
{
    struct qcow2_packed p;
    if (qcow2_external(q)) {
        return;                         /* its data is not counted */
    }
    if (entry & QCOW2_COMPRESSED) {
        qcow2_inflated_drop(q, entry);
        qcow2_compressed_span(q, entry, &p.offset, &p.len);
        qcow2_free_packed_later(q, &p);
    } else if (entry & QCOW2_OFFSET_MASK & (q->cluster_size - 1)) {
        qcow2_report_corrupt(q, "Cannot free unaligned cluster %#llx",
                             (unsigned long long)(entry & QCOW2_OFFSET_MASK));
    } else if (entry & QCOW2_OFFSET_MASK) {
        qcow2_free_later(q, entry & QCOW2_OFFSET_MASK, 1);
    }
}

/* Lower one cluster's count; *gone when it reached zero. */
static int count_down(struct qcow2 *q, uint64_t c, bool apply, bool *gone)
{
    struct qcow2_block *b;
    *gone = false;
    if (qcow2_block_of(q, c) >= q->reft_len || !q->reft[qcow2_block_of(q, c)]) {
        return 0;               /* lost block: nothing to lower */
    }
    int err = qcow2_block_get(q, qcow2_block_of(q, c), &b);
    if (err) {
        return err;
    }
    uint64_t v = qcow2_refcount_at(q, b->data, qcow2_in_block(q, c));
    *gone = v == 1;
    if (v && apply) {
        qcow2_refcount_put(q, b->data, qcow2_in_block(q, c), v - 1);
        qcow2_block_dirty(q, b);
    }
    qcow2_block_put(b);
    return 0;
}

/* Clusters [c, c+n) of one run: punch what will be free, then lower the counts,
 * so that a cluster is reused only once its hole is there. */
static int free_run(struct qcow2 *q, uint64_t c, uint64_t n)
{
    uint64_t start = 0, len = 0;
    bool gone;
    int err = 0;

    for (uint64_t i = 0; i <= n && !err; i++) {
        gone = false;
        if (i < n) {
            err = count_down(q, c + i, false, &gone);
        }
        if (gone && q->free_byte >> q->h.cluster_bits == c + i) {
            q->free_byte = 0;           /* nothing is packed there any more */
        }
        if (gone && !qcow2_meta_hit(q, (c + i) << q->h.cluster_bits)) {
            start = len ? start : c + i;
            len++;
        } else if (len) {
            /* A hole is a gift, not a duty. */
            co_discard(q->file, start << q->h.cluster_bits, len << q->h.cluster_bits);
            len = 0;
        }
    }
    for (uint64_t i = 0; i < n && !err; i++) {
        err = count_down(q, c + i, true, &gone);
        if (gone) {
            q->free_hint = BLK_MIN(q->free_hint, c + i);
        }
    }
    return err;
}

int qcow2_free_now(struct qcow2 *q, struct qcow2_run *list)
{
    int err = 0;
    if (list) {
        if (q->crypt && q->data) {
            blk_epoch_wait(q->data);    /* on their way to the file, and */
        }
        blk_epoch_wait(q->file);        /* requests that may still touch them */
    }
    while (list) {
        struct qcow2_run *r = list;
        list = r->next;
        if (!err) {
            co_lock(&q->alloc_lock);
            err = free_run(q, r->offset >> q->h.cluster_bits, r->clusters);
            co_unlock(&q->alloc_lock);
        }
        free(r);
    }
    return err;
}
