/*
 * snapshot_ops.c - creating, applying and deleting internal snapshots.
 *
 * A snapshot is a copy of the L1 table; what hangs below it (L2 tables, clusters) is
 * shared and counted once for each L1 table that leads there.
 *
 * Crash order
 *  - Create: counts go up and COPIED is cleared, durable; then the snapshot's L1 table
 *    and the new snapshot table, durable; then the header, which names the table.
 *  - Delete: the new snapshot table, durable; the header; only then counts go down.
 *  - Apply: counts of what the snapshot holds go up, durable; a new active L1 table,
 *    durable; the header, which switches to it and to the snapshot's size (the same once
 *    more, back to the old place); only then the counts of what was active go down.
 * So a crash leaves clusters that are counted too often, never too seldom.
 *
 * Invariants
 *  - Nothing is dirty when an operation starts, so L2 tables are read from the file.
 *  - An operation that fails before its header write takes its counts back.  One whose
 *    header write fails takes them back only when the old header is durable again;
 *    otherwise nothing more is written: the disk has one header or the other, and the
 *    counts are enough for both.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#define SN_RECORD_FIXED 40u
#define SN_RECORD_EXTRA 24u
#define SN_NAME_MAX 255u            /* bytes, as QEMU cuts it */
#define FREE_BATCH 65536u           /* entries between flushes while freeing */

/* ---- what hangs below an L1 table ---------------------------------------------------- */

struct tree {
    const uint64_t *l1;             /* host order */
    uint64_t len;
};

/* fn for each L2 table and each L2 entry that has host clusters, always in the same
 * order, until it returns non-zero.  entry: 0 for a table. */
typedef int tree_fn(struct qcow2 *q, uint64_t offset, uint64_t clusters, uint64_t entry,
                    void *arg);

static int walk_entry(struct qcow2 *q, uint64_t entry, uint64_t table, unsigned k, tree_fn *fn,
                      void *arg)
{
    uint64_t off = entry & QCOW2_OFFSET_MASK, len;

    if (entry & QCOW2_COMPRESSED) {
        qcow2_compressed_span(q, entry, &off, &len);
        uint64_t first = off >> q->h.cluster_bits, last = (off + len - 1) >> q->h.cluster_bits;
        return fn(q, first << q->h.cluster_bits, last - first + 1, entry, arg);
    }
    if (off & (q->cluster_size - 1)) {
        return qcow2_mark_corrupt(q, "Cluster allocation offset %#llx unaligned (L2 offset: %#llx, "
                                  "L2 index: %#x)", (unsigned long long)off,
                                  (unsigned long long)table, k);
    }
    return off ? fn(q, off, 1, entry, arg) : 0;
}

static int walk(struct qcow2 *q, const struct tree *t, tree_fn *fn, void *arg)
{
    uint8_t *table = blk_buf_alloc(q->cluster_size);
    int err = table ? 0 : -ENOMEM;

    for (uint64_t i = 0; !err && i < t->len; i++) {
        uint64_t off = t->l1[i] & QCOW2_OFFSET_MASK;
        if (!off) {
            continue;
        }
        if (off & (q->cluster_size - 1)) {
            err = qcow2_mark_corrupt(q, "L2 table offset %#llx unaligned (L1 index: %#llx)",
                                     (unsigned long long)off, (unsigned long long)i);
            break;
        }
        err = co_read(q->file, off, table, q->cluster_size);
        err = err ? err : fn(q, off, 1, 0, arg);
        for (unsigned k = 0; !err && k < 1u << q->l2_bits; k++) {
            err = walk_entry(q, qcow2_entry_get(q, table, k), off, k, fn, arg);
        }
    }
    blk_buf_free(table);
    return err;
}

struct counting {
    uint64_t steps;                 /* clusters counted up so far, or left to undo */
};

static int count_up(struct qcow2 *q, uint64_t offset, uint64_t clusters, uint64_t entry, void *arg)
{
    struct counting *c = arg;
    for (uint64_t i = 0; i < clusters; i++) {
        int err = qcow2_count_shift(q, offset + (i << q->h.cluster_bits), 1, true);
        if (err) {
            return err;
        }
        c->steps++;
    }
    return qcow2_flush_if_much(q);
}

static int count_back(struct qcow2 *q, uint64_t offset, uint64_t clusters, uint64_t entry,
                      void *arg)
{
    struct counting *c = arg;
    for (uint64_t i = 0; i < clusters; i++) {
        if (!c->steps) {
            return -ECANCELED;      /* all undone */
        }
        int err = qcow2_count_shift(q, offset + (i << q->h.cluster_bits), 1, false);
        if (err) {
            return err;
        }
        c->steps--;
    }
    return 0;
}

static int free_step(struct qcow2 *q, uint64_t offset, uint64_t clusters, uint64_t entry,
                     void *arg)
{
    struct counting *c = arg;
    qcow2_free_later(q, offset, clusters);
    return ++c->steps % FREE_BATCH ? 0 : qcow2_settle(q);
}

/* COPIED in the active tables as the counts say.  The bit is the one thing that
 * changes in shared tables, too. */
static int fix_copied_slice(struct qcow2 *q, struct qcow2_slice *s)
{
    for (unsigned k = 0; k < 1u << q->slice_bits; k++) {
        uint64_t old = qcow2_entry_get(q, s->word, k), new = old & ~QCOW2_COPIED, count;
        if (old & QCOW2_COMPRESSED || !(old & QCOW2_OFFSET_MASK)) {
            continue;
        }
        int err = qcow2_refcount_get(q, (old & QCOW2_OFFSET_MASK) >> q->h.cluster_bits, &count);
        if (err) {
            return err;
        }
        new |= count == 1 ? QCOW2_COPIED : 0;
        if (new != old) {
            qcow2_entry_put(q, s->word, k, new);
            qcow2_slice_dirty(q, s);
        }
    }
    return 0;
}

static int fix_copied(struct qcow2 *q)
{
    uint64_t per_table = 1ull << (q->l2_bits - q->slice_bits), count;
    int err = 0;

    for (uint64_t i = 0; !err && i < q->h.l1_size; i++) {
        uint64_t off = q->l1[i] & QCOW2_OFFSET_MASK;
        if (!off) {
            continue;
        }
        err = qcow2_refcount_get(q, off >> q->h.cluster_bits, &count);
        uint64_t entry = off | (count == 1 ? QCOW2_COPIED : 0);
        if (!err && entry != q->l1[i]) {
            qcow2_l1_set(q, i, entry);
        }
        for (uint64_t k = 0; !err && k < per_table; k++) {
            struct qcow2_slice *s;
            err = qcow2_slice_get(q, i * per_table + k, &s);
            if (!err) {
                err = fix_copied_slice(q, s);
                qcow2_slice_put(s);
            }
            err = err ? err : qcow2_flush_if_much(q);
        }
    }
    return err;
}

/* Take back what count_up() did; COPIED as before.  Best effort: what cannot be
 * undone is a leak. */
static void undo(struct qcow2 *q, const struct tree *t, struct counting *c)
{
    if (c->steps && !q->corrupt) {
        walk(q, t, count_back, c);
        fix_copied(q);
        qcow2_settle(q);
    }
}

/* Lower the counts of everything below t, of which nothing durable leads there. */
static int free_tree(struct qcow2 *q, const struct tree *t)
{
    struct counting c = { 0 };
    int err = walk(q, t, free_step, &c);
    return err ? err : qcow2_settle(q);
}

/* ---- writing tables --------------------------------------------------------------------- */

/* Allocated, counted durably, and written: buf, bytes long. */
static int put_table(struct qcow2 *q, const uint8_t *buf, uint64_t bytes, struct qcow2_space *at)
{
    uint64_t want = qcow2_clusters(q, bytes);
    *at = (struct qcow2_space){ 0 };
    if (!bytes) {
        return 0;
    }
    int err = qcow2_alloc(q, want, true, at);
    if (err) {
        at->clusters = 0;
        return err;
    }
    err = qcow2_meta_add(q, at->offset, at->clusters);
    err = err ? err : qcow2_settle(q);
    err = err ? err : co_write(q->file, at->offset, buf, bytes, 0);
    return err ? err : co_flush(q->file);
}

static void drop_table(struct qcow2 *q, const struct qcow2_space *at)
{
    if (at->clusters && !q->corrupt) {
        qcow2_meta_del(q, at->offset, at->clusters);
        co_discard(q->file, at->offset, at->clusters << q->h.cluster_bits);
        qcow2_unalloc(q, at->offset, at->clusters);
        qcow2_settle(q);
    }
}

static void free_table(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    if (bytes) {
        qcow2_meta_del(q, offset, qcow2_clusters(q, bytes));
        qcow2_free_later(q, offset, qcow2_clusters(q, bytes));
    }
}

/* An L1 table as on disk, COPIED cleared, entries past len zero. */
static uint8_t *encode_l1(const uint64_t *l1, uint64_t len, uint64_t size)
{
    uint8_t *buf = blk_buf_alloc(size * 8 + 8);
    for (uint64_t i = 0; buf && i < size; i++) {
        put_be64(buf + i * 8, i < len ? l1[i] & QCOW2_OFFSET_MASK : 0);
    }
    return buf;
}

/* Make q->h durable.  On failure q->h is old again, on the disk as well or nothing is
 * written in this session any more. */
static int header_switch(struct qcow2 *q, const struct qcow2_header *old)
{
    int err = qcow2_header_update(q);
    if (err) {
        q->h = *old;
        if (qcow2_header_update(q)) {
            q->corrupt = true;
        }
    }
    return err;
}

/* ---- the snapshot table ------------------------------------------------------------------- */

struct table {
    struct qcow2_snapshot *s;
    uint64_t bytes;                 /* on disk now */
    uint8_t *raw;                   /* room for one more record behind it */
};

static void table_free(struct qcow2 *q, struct table *t, uint32_t count)
{
    for (uint32_t i = 0; t->s && i < count; i++) {
        free(t->s[i].id);
        free(t->s[i].name);
    }
    free(t->s);
    blk_buf_free(t->raw);
}

static int raw_read(struct qcow2 *q, struct table *t)
{
    t->raw = blk_buf_alloc(t->bytes + 1024);
    int err = t->raw ? 0 : -ENOMEM;
    return err || !t->bytes ? err : co_read(q->file, q->h.snap_offset, t->raw, t->bytes);
}

static int table_read(struct qcow2 *q, struct table *t, struct blk_error *e)
{
    *t = (struct table){ 0 };
    int err = qcow2_snapshots_read(q, &t->s, &t->bytes, e);
    return err ? err : raw_read(q, t);
}

/* Bytes of a table: only what a record follows is padded. */
static uint64_t table_bytes(const uint8_t *b, uint32_t count)
{
    uint64_t end = 0;
    while (count--) {
        const uint8_t *r = b + (end = blk_align_up(end, 8));
        end += SN_RECORD_FIXED + (uint64_t)be32(r + 36) + be16(r + 12) + be16(r + 14);
    }
    return end;
}

/* Write buf as the table of count snapshots and make the header say so; frees the old
 * table's place later. */
static int table_switch(struct qcow2 *q, const struct table *t, const uint8_t *buf, uint32_t count)
{
    struct qcow2_header old = q->h;
    struct qcow2_space at = { 0 };
    int err = put_table(q, buf, table_bytes(buf, count), &at);

    if (!err) {
        q->h.snap_offset = at.offset;
        q->h.nb_snapshots = count;
        old.reft_offset = q->h.reft_offset;     /* put_table() may have moved it */
        old.reft_clusters = q->h.reft_clusters;
        err = header_switch(q, &old);
    }
    if (err) {
        drop_table(q, &at);
        return err;
    }
    free_table(q, old.snap_offset, t->bytes);
    return 0;
}

static uint64_t next_id(const struct table *t, uint32_t count)
{
    uint64_t max = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t id = strtoull(t->s[i].id, NULL, 10);
        max = BLK_MAX(max, id);
    }
    return max + 1;
}

static void record_make(struct qcow2 *q, uint8_t *b, uint64_t id, const char *name,
                        uint64_t l1_offset)
{
    char text[24];
    size_t id_len = (size_t)snprintf(text, sizeof(text), "%llu", (unsigned long long)id);
    size_t name_len = strnlen(name, SN_NAME_MAX);
    uint64_t len = blk_align_up(SN_RECORD_FIXED + SN_RECORD_EXTRA + id_len + name_len, 8);
    struct timeval now;

    gettimeofday(&now, NULL);
    memset(b, 0, len);
    put_be64(b, l1_offset);
    put_be32(b + 8, q->h.l1_size);
    put_be16(b + 12, (uint16_t)id_len);
    put_be16(b + 14, (uint16_t)name_len);
    put_be32(b + 16, (uint32_t)now.tv_sec);
    put_be32(b + 20, (uint32_t)now.tv_usec * 1000);
    put_be32(b + 36, SN_RECORD_EXTRA);
    put_be64(b + SN_RECORD_FIXED + 8, q->h.size);
    memcpy(b + SN_RECORD_FIXED + SN_RECORD_EXTRA, text, id_len);
    memcpy(b + SN_RECORD_FIXED + SN_RECORD_EXTRA + id_len, name, name_len);
}

/* ---- mending ----------------------------------------------------------------------------------- */

/* s, its record in the file at raw, as it should be. Returns the length: a multiple of 8. */
static uint64_t record_mend(uint8_t *b, const uint8_t *raw, const struct qcow2_snapshot *s)
{
    uint32_t kept = BLK_MIN(s->extra, QCOW2_MAX_SNAPEXTRA), extra = BLK_MAX(kept, SN_RECORD_EXTRA);
    uint64_t names = (uint64_t)be16(raw + 12) + be16(raw + 14);
    uint64_t used = SN_RECORD_FIXED + extra + names, len = blk_align_up(used, 8);

    memcpy(b, raw, SN_RECORD_FIXED);
    put_be32(b + 32, s->vm_state_size <= UINT32_MAX ? (uint32_t)s->vm_state_size : 0);
    put_be32(b + 36, extra);
    memcpy(b + SN_RECORD_FIXED, raw + SN_RECORD_FIXED, kept);
    put_be64(b + SN_RECORD_FIXED, s->vm_state_size);
    put_be64(b + SN_RECORD_FIXED + 8, s->size);
    put_be64(b + SN_RECORD_FIXED + 16, s->icount);
    memcpy(b + SN_RECORD_FIXED + extra, raw + SN_RECORD_FIXED + s->extra, names);
    memset(b + used, 0, len - used);
    return len;
}

static bool is_whole(const struct qcow2 *q, const struct qcow2_snapshot *s)
{
    return s->extra <= QCOW2_MAX_SNAPEXTRA && (q->h.version < 3 || s->extra >= QCOW2_MIN_SNAPEXTRA);
}

int qcow2_snapshots_mend(struct qcow2 *q, struct blk_error *e)
{
    struct table t = { 0 };
    uint32_t count = 0;
    uint8_t *buf = NULL;
    uint64_t len = 0;
    bool same = true;
    int err = q->corrupt ? -EIO : qcow2_settle(q);

    err = err ? err : qcow2_snapshots_salvage(q, &t.s, &count, &t.bytes, e);
    err = err ? err : raw_read(q, &t);
    if (!err) {
        buf = blk_buf_alloc(t.bytes + count * (SN_RECORD_EXTRA + 8ull) + 8);
        err = buf ? 0 : -ENOMEM;
    }
    for (uint32_t i = 0; !err && i < count; i++) {
        same = same && is_whole(q, &t.s[i]);
        len += record_mend(buf + len, t.raw + (t.s[i].at - q->h.snap_offset), &t.s[i]);
    }
    if (!err && same) {                 /* there are too many, that is all */
        q->h.nb_snapshots = count;
        err = qcow2_header_update(q);
    } else if (!err) {
        qcow2_cache_drop(q);
        err = table_switch(q, &t, buf, count);
        err = err ? err : qcow2_settle(q);
    }
    blk_buf_free(buf);
    table_free(q, &t, count);
    return err ? blk_err_errno(e, -err, "Could not write the snapshot table") : 0;
}

/* ---- create --------------------------------------------------------------------------------- */

static int create(struct qcow2 *q, struct table *t, const char *name, struct blk_error *e)
{
    struct tree active = { q->l1, q->h.l1_size };
    struct counting c = { 0 };
    struct qcow2_space l1 = { 0 };
    uint32_t count = q->h.nb_snapshots;

    if (count >= QCOW2_MAX_SNAPSHOTS || t->bytes + 1024 > QCOW2_MAX_SNAPTABLE_BYTES) {
        return blk_err(e, EFBIG, "Too many snapshots");
    }
    uint8_t *copy = encode_l1(q->l1, q->h.l1_size, q->h.l1_size);
    int err = copy ? 0 : -ENOMEM;
    err = err ? err : walk(q, &active, count_up, &c);
    if (err == -EINVAL) {
        blk_err(e, EINVAL, "A refcount of %u bits has no room for one more reference",
                q->refcount_bits);
    }
    err = err ? err : fix_copied(q);
    err = err ? err : qcow2_settle(q);
    err = err ? err : put_table(q, copy, q->h.l1_size * 8ull, &l1);
    if (!err) {
        record_make(q, t->raw + t->bytes, next_id(t, count), name, l1.offset);
        err = table_switch(q, t, t->raw, count + 1);
    }
    blk_buf_free(copy);
    if (err) {
        drop_table(q, &l1);
        undo(q, &active, &c);
        return err;
    }
    return qcow2_settle(q);
}

/* ---- the L1 table of a snapshot ------------------------------------------------------------- */

static int load_l1(struct qcow2 *q, const struct qcow2_snapshot *s, uint64_t **out,
                   struct blk_error *e)
{
    uint64_t bytes = s->l1_size * 8ull;

    if (bytes > QCOW2_MAX_L1_BYTES) {
        return blk_err(e, EFBIG, "Snapshot L1 table too large");
    }
    if (bytes && (s->l1_offset & (q->cluster_size - 1) || s->l1_offset < q->cluster_size ||
                  s->l1_offset >= q->file->size)) {
        return blk_err(e, EINVAL, "Snapshot L1 table offset invalid");
    }
    uint64_t *l1 = malloc(bytes + 8);
    int err = l1 ? 0 : -ENOMEM;
    err = err || !bytes ? err : co_read(q->file, s->l1_offset, l1, bytes);
    for (uint32_t i = 0; !err && i < s->l1_size; i++) {
        l1[i] = be64(&l1[i]);
    }
    if (err) {
        free(l1);
        return blk_err_errno(e, -err, "Could not read the snapshot's L1 table");
    }
    *out = l1;
    return 0;
}

/* ---- delete --------------------------------------------------------------------------------- */

static int delete(struct qcow2 *q, struct table *t, uint32_t i, struct blk_error *e)
{
    struct qcow2_snapshot s = t->s[i];
    uint64_t *l1, at = s.at - q->h.snap_offset;
    int err = load_l1(q, &s, &l1, e);

    if (err) {
        return err;
    }
    memmove(t->raw + at, t->raw + at + s.len, t->bytes - at - s.len);
    err = table_switch(q, t, t->raw, q->h.nb_snapshots - 1);
    if (!err) {
        struct tree old = { l1, s.l1_size };
        free_table(q, s.l1_offset, s.l1_size * 8ull);
        err = free_tree(q, &old);
        err = err ? err : fix_copied(q);
        err = err ? err : qcow2_settle(q);
    }
    free(l1);
    return err;
}

/* ---- apply ----------------------------------------------------------------------------------- */

/* Everything in memory again from what the header now names. */
static int reload(struct qcow2 *q, struct blk_error *e)
{
    qcow2_cache_drop(q);
    qcow2_sets_free(q);
    free(q->l1);
    free(q->l1_dirty);
    free(q->l1_bad);
    q->l1 = NULL;
    q->l1_dirty = q->l1_bad = NULL;
    q->l1_any_dirty = false;
    int err = qcow2_l1_load(q, e);
    err = err ? err : qcow2_meta_init(q);
    q->n->size = q->h.size & ~511ull;
    return err;
}

static int check_apply(struct qcow2 *q, const struct qcow2_snapshot *s, struct blk_error *e)
{
    uint64_t per_l2 = (uint64_t)q->cluster_size << q->l2_bits;

    if (s->size > BLK_SIZE_MAX || s->size / per_l2 + !!(s->size % per_l2) >
        QCOW2_MAX_L1_BYTES / 8) {
        return blk_err(e, EFBIG, "The snapshot's disk is too large");
    }
    if (s->size != q->h.size && q->h.version < 3) {
        return blk_err(e, ENOTSUP, "Can't resize a v2 image which has snapshots");
    }
    return 0;
}

/* The header names the L1 table there, of size entries; disk: the virtual size with it. */
static int name_l1(struct qcow2 *q, const struct qcow2_space *at, uint32_t size, uint64_t disk)
{
    struct qcow2_header old = q->h;

    q->h.l1_offset = at->offset;
    q->h.l1_size = size;
    q->h.size = disk;
    return header_switch(q, &old);
}

/* The file ends where it did, unless a refcount block has come to lie behind that. */
static void cut_back(struct qcow2 *q, uint64_t end)
{
    uint64_t used;

    if (qcow2_used_end(q, &used)) {
        return;
    }
    if (used > qcow2_clusters(q, end)) {        /* the last cluster may be a part of one */
        end = used << q->h.cluster_bits;
    }
    if (end < q->file->size) {
        blk_truncate(q->file, end, true, BLK_PREALLOC_OFF, NULL);
    }
}

/* The snapshot's L1 table becomes the active one, at a new place first.  If it fits it then
 * moves to where the active one was, as that is where QEMU writes it; its first place is as it
 * was before. */
static int switch_l1(struct qcow2 *q, const struct qcow2_snapshot *s, const uint64_t *l1)
{
    uint64_t per_l2 = (uint64_t)q->cluster_size << q->l2_bits, end = q->file->size;
    uint64_t need = s->size / per_l2 + !!(s->size % per_l2);
    uint32_t size = (uint32_t)BLK_MAX(BLK_MAX(need, (uint64_t)s->l1_size),
                                      (uint64_t)q->h.l1_size);
    struct qcow2_space at = { 0 }, was = { .offset = q->h.l1_offset,
                                           .clusters = qcow2_clusters(q, q->h.l1_size * 8ull) };
    bool back = size == q->h.l1_size && was.clusters;
    uint8_t *buf = encode_l1(l1, s->l1_size, size);
    int err = buf ? put_table(q, buf, size * 8ull, &at) : -ENOMEM;

    err = err ? err : name_l1(q, &at, size, s->size);
    if (err) {
        drop_table(q, &at);
        blk_buf_free(buf);
        return err;
    }
    /* It is the active one now; going back may fail. */
    back = back && !co_write(q->file, was.offset, buf, size * 8ull, 0) && !co_flush(q->file) &&
           !name_l1(q, &was, size, s->size);
    if (back) {
        drop_table(q, &at);
    } else {
        free_table(q, was.offset, was.clusters << q->h.cluster_bits);
    }
    if (back && at.offset >= end) {
        cut_back(q, end);
    }
    blk_buf_free(buf);
    return 0;
}

static int apply(struct qcow2 *q, const struct qcow2_snapshot *s, struct blk_error *e)
{
    struct counting c = { 0 };
    uint64_t *l1;
    uint32_t was_len = q->h.l1_size;
    uint64_t *was = malloc(was_len * 8ull + 8);
    int err = check_apply(q, s, e);

    err = err ? err : was ? load_l1(q, s, &l1, e) : -ENOMEM;
    if (err) {
        free(was);
        return err;
    }
    memcpy(was, q->l1, was_len * 8ull);
    struct tree new = { l1, s->l1_size }, old = { was, was_len };
    err = walk(q, &new, count_up, &c);
    err = err ? err : qcow2_settle(q);
    err = err ? err : switch_l1(q, s, l1);
    if (err) {
        undo(q, &new, &c);
    } else {
        err = reload(q, e);
        err = err ? err : free_tree(q, &old);
        err = err ? err : fix_copied(q);
        err = err ? err : qcow2_settle(q);
    }
    free(l1);
    free(was);
    return err;
}

/* ---- the op ------------------------------------------------------------------------------------ */

static bool is_wanted(const struct qcow2_snapshot *s, const char *id, const char *name)
{
    return (!id || !strcmp(s->id, id)) && (!name || !strcmp(s->name, name));
}

/* Reads go by the snapshot's L1 table: nothing else of a read-only image depends on
 * which one is active. */
static int load(struct qcow2 *q, const struct qcow2_snapshot *s, struct blk_error *e)
{
    uint64_t per_l2 = (uint64_t)q->cluster_size << q->l2_bits, *l1;
    int err = s->size > BLK_SIZE_MAX ? blk_err(e, EFBIG, "The snapshot's disk is too large")
                                     : load_l1(q, s, &l1, e);
    if (err) {
        return err;
    }
    if (s->size / per_l2 + !!(s->size % per_l2) > s->l1_size) {
        free(l1);
        return blk_err(e, EINVAL, "The snapshot's L1 table is too small for its disk");
    }
    qcow2_cache_drop(q);
    free(q->l1);
    q->l1 = l1;
    q->h.l1_offset = s->l1_offset;
    q->h.l1_size = s->l1_size;
    q->h.size = s->size;
    q->n->size = s->size & ~511ull;
    return 0;
}

int qcow2_snapshot_load(struct blk_node *n, const char *id, const char *name, struct blk_error *e)
{
    struct qcow2 *q = n->state;
    struct qcow2_snapshot *s;
    uint64_t bytes;
    uint32_t i = 0, count = q->h.nb_snapshots;
    int err = qcow2_snapshots_read(q, &s, &bytes, e);

    if (err) {
        return err;
    }
    while (i < count && !is_wanted(&s[i], id, name)) {
        i++;
    }
    err = i == count ? blk_err(e, ENOENT, "Can't find snapshot") : load(q, &s[i], e);
    qcow2_snapshots_free(q, s);
    return err;
}

static int find(const struct table *t, uint32_t count, const char *name, bool ids, uint32_t *out)
{
    for (int by_name = !ids; by_name < 2; by_name++) {
        for (uint32_t i = 0; i < count; i++) {
            if (!strcmp(by_name ? t->s[i].name : t->s[i].id, name)) {
                *out = i;
                return 0;
            }
        }
    }
    return -ENOENT;
}

/* QEMU says why before it says that. */
static int not_loaded(int err, struct blk_error *e)
{
    if (e && e->text[0]) {
        blk_report("%s", e->text);
        blk_error_clear(e);
    }
    return blk_err_errno(e, -err, "Failed to load snapshot");
}

int qcow2_snapshot(struct blk_node *n, enum blk_snapshot_op op, const char *name,
                   struct blk_error *e)
{
    struct qcow2 *q = n->state;
    struct table t;
    uint32_t count = q->h.nb_snapshots, i = 0;
    int err = q->corrupt ? -EIO : qcow2_settle(q);

    if (op == BLK_SNAPSHOT_APPLY && q->bm.first) {
        return blk_err(e, EBUSY, "Device has active dirty bitmaps");
    }
    if (qcow2_external(q) && op != BLK_SNAPSHOT_DELETE) {
        return op == BLK_SNAPSHOT_APPLY ? not_loaded(-ENOTSUP, e)
                                        : blk_err(e, ENOTSUP, "%s", strerror(ENOTSUP));
    }
    err = err ? err : table_read(q, &t, e);
    if (err) {
        return blk_err_errno(e, -err, "Could not read the snapshot table");
    }
    qcow2_cache_drop(q);            /* clean: shared tables are read from the file */
    if (op == BLK_SNAPSHOT_CREATE) {
        err = create(q, &t, name, e);
    } else {
        err = find(&t, count, name, op == BLK_SNAPSHOT_APPLY, &i);
        if (!err && qcow2_external(q)) {
            err = -ENOTSUP;
        } else if (!err) {
            err = op == BLK_SNAPSHOT_APPLY ? apply(q, &t.s[i], e) : delete(q, &t, i, e);
        }
    }
    table_free(q, &t, count);
    if (err && op == BLK_SNAPSHOT_APPLY) {
        return not_loaded(err, e);
    }
    return err ? blk_err(e, -err, "%s", strerror(-err)) : 0;
}
