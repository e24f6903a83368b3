/*
 * bitmap_store.c - bitmaps on their way to the file.
 *
 * Order when bitmaps are replaced: new bits, tables and directory are written and
 * counted; all of that is durable; one write of the header switches; then what the
 * old directory named is freed.  A crash leaves the old directory, whose enabled
 * bitmaps say IN_USE, or the new one.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- IN_USE --------------------------------------------------------------------------- */

static bool needs_mark(const struct qcow2_bitmap *b, bool all)
{
    return b->dir_at != UINT64_MAX && !b->marked && !b->inconsistent && (all || b->enabled);
}

/* The flags of the directory in place: nothing else of it changes. */
static int mark_locked(struct qcow2 *q, bool all)
{
    struct qcow2_bitmap *b = q->bm.first;
    int err = 0;

    while (b && !needs_mark(b, all)) {
        b = b->next;
    }
    if (!b) {
        return 0;
    }
    if (q->bm.foreign) {
        return qcow2_mark_corrupt(q, "Preventing invalid write on metadata (the bitmap directory at "
                                  "%#llx lies over it)", (unsigned long long)q->bm.dir_offset);
    }
    uint8_t *dir = malloc(q->bm.dir_size);
    err = dir ? co_read(q->file, q->bm.dir_offset, dir, q->bm.dir_size) : -ENOMEM;
    for (b = q->bm.first; b && !err; b = b->next) {
        if (needs_mark(b, all)) {
            put_be32(dir + b->dir_at + QB_FLAGS, b->flags | QCOW2_BM_IN_USE);
        }
    }
    err = err ? err : co_write(q->file, q->bm.dir_offset, dir, q->bm.dir_size, 0);
    err = err ? err : co_flush(q->file);
    for (b = q->bm.first; b && !err; b = b->next) {
        b->marked |= needs_mark(b, all);
    }
    free(dir);
    return err;
}

int qcow2_bitmaps_mark(struct qcow2 *q, bool all)
{
    co_lock(&q->bm.lock);
    int err = q->corrupt ? -EIO : mark_locked(q, all);
    co_unlock(&q->bm.lock);
    return err;
}

/* ---- what was there ---------------------------------------------------------------------- */

/* A piece of the old bitmaps is not needed any more.  What also is other metadata was
 * never theirs. */
static void give_up(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    qcow2_meta_del(q, offset, clusters);
    qcow2_free_later(q, offset, clusters);
}

/* The table of b in the file, and the clusters it names. */
static int give_up_table(struct qcow2 *q, uint64_t offset, uint32_t entries)
{
    uint64_t per = q->cluster_size / 8;
    uint8_t *buf = blk_buf_alloc(q->cluster_size);
    int err = buf ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < entries && !err; i += per) {
        uint64_t n = BLK_MIN(per, entries - i);
        err = co_read(q->file, offset + i * 8, buf, n * 8);
        for (uint64_t k = 0; k < n && !err; k++) {
            uint64_t at = be64(buf + k * 8) & QCOW2_OFFSET_MASK;
            if (at && !(at & (q->cluster_size - 1)) && !qcow2_meta_hit(q, at)) {
                qcow2_free_later(q, at, 1);
            }
        }
    }
    blk_buf_free(buf);
    give_up(q, offset, qcow2_clusters(q, entries * 8ull));
    return err;
}

/* ---- new ones ------------------------------------------------------------------------------- */

/* Clusters taken for the new bitmaps, to be given back if something fails. */
struct taken {
    struct qcow2_run *list;
};

static int take(struct qcow2 *q, struct taken *t, uint64_t want, bool exact,
                struct qcow2_space *out)
{
    struct qcow2_run *r = malloc(sizeof(*r));
    int err = r ? qcow2_alloc(q, want, exact, out) : -ENOMEM;

    if (err) {
        free(r);
        return err;
    }
    *r = (struct qcow2_run){ out->offset, out->clusters, t->list };
    t->list = r;
    return 0;
}

static void taken_end(struct qcow2 *q, struct taken *t, bool undo)
{
    while (t->list) {
        struct qcow2_run *r = t->list;
        t->list = r->next;
        if (undo) {
            qcow2_free_later(q, r->offset, r->clusters);
        }
        free(r);
    }
}

static bool has_bits(const struct qcow2 *q, const struct qcow2_bitmap *b, uint32_t i)
{
    return b->chunk[i] && !blk_is_zero(b->chunk[i], q->cluster_size);
}

/* The chunks with set bits of b, into clusters of their own; the table's entries. */
static int write_chunks(struct qcow2 *q, struct taken *t, const struct qcow2_bitmap *b,
                        uint8_t *table)
{
    uint64_t left = 0;
    struct qcow2_space at = { 0 };
    int err = 0;

    for (uint32_t i = 0; i < b->chunks; i++) {
        left += has_bits(q, b, i);
    }
    for (uint32_t i = 0; i < b->chunks && !err; i++) {
        put_be64(table + i * 8ull, 0);
        if (!has_bits(q, b, i)) {
            continue;
        }
        if (!at.clusters) {
            err = take(q, t, left, false, &at);
        }
        err = err ? err : co_write(q->file, at.offset, b->chunk[i], q->cluster_size, 0);
        if (!err) {
            put_be64(table + i * 8ull, at.offset);
            at.offset += q->cluster_size;
            at.clusters--;
            left--;
        }
    }
    return err;
}

/* Bits and table of b; where the table is. */
static int write_bitmap(struct qcow2 *q, struct taken *t, const struct qcow2_bitmap *b,
                        uint64_t *offset, uint32_t *entries)
{
    uint32_t n = BLK_MAX(b->chunks, 1u);
    uint64_t clusters = qcow2_clusters(q, n * 8ull), bytes = clusters << q->h.cluster_bits;
    uint8_t *table = blk_buf_alloc(bytes);
    struct qcow2_space at = { 0 };
    int err = table ? 0 : -ENOMEM;

    if (!err) {
        memset(table, 0, bytes);
        err = write_chunks(q, t, b, table);
    }
    err = err ? err : take(q, t, clusters, true, &at);
    err = err ? err : co_write(q->file, at.offset, table, n * 8ull, 0);
    if (!err) {
        *offset = at.offset;
        *entries = n;
    }
    blk_buf_free(table);
    return err;
}

uint64_t qcow2_bitmap_entry_bytes(const char *name)
{
    return blk_align_up(QB_FIXED + strlen(name), 8);
}

/* A bitmap as it will be in the new directory. */
struct stored {
    struct qcow2_bitmap *b;
    uint64_t table_offset, dir_at;
    uint32_t table_size, flags;
};

static void encode_entry(const struct stored *s, uint8_t *p)
{
    size_t name = strlen(s->b->name);

    put_be64(p + QB_TABLE_OFFSET, s->table_offset);
    put_be32(p + QB_TABLE_SIZE, s->table_size);
    put_be32(p + QB_FLAGS, s->flags);
    p[QB_TYPE] = 1;
    p[QB_GRANULARITY] = (uint8_t)s->b->granularity;
    put_be16(p + QB_NAME_SIZE, (uint16_t)name);
    put_be32(p + QB_EXTRA_SIZE, 0);
    memcpy(p + QB_FIXED, s->b->name, name);
}

/* Everything but the header; *dir is where the new directory is. */
static int write_all(struct qcow2 *q, struct taken *t, struct stored *v, struct qcow2_space *dir,
                     uint64_t *bytes)
{
    uint32_t n = 0;
    int err = 0;

    *bytes = 0;
    for (struct qcow2_bitmap *b = q->bm.first; b && !err; b = b->next, n++) {
        v[n] = (struct stored){ b, b->table_offset, *bytes, b->table_size, b->flags };
        if (!b->inconsistent) {
            v[n].flags = b->enabled ? QCOW2_BM_AUTO : 0;
        }
        if (b->changed && !b->inconsistent) {
            err = write_bitmap(q, t, b, &v[n].table_offset, &v[n].table_size);
        }
        *bytes += qcow2_bitmap_entry_bytes(b->name);
    }
    if (err || !n) {
        return err;
    }
    uint64_t clusters = qcow2_clusters(q, *bytes);
    uint8_t *buf = blk_buf_alloc(clusters << q->h.cluster_bits);
    err = *bytes > QCOW2_BM_MAX_DIR ? -EFBIG : buf ? take(q, t, clusters, true, dir) : -ENOMEM;
    if (!err) {
        memset(buf, 0, clusters << q->h.cluster_bits);
        for (uint32_t i = 0; i < n; i++) {
            encode_entry(&v[i], buf + v[i].dir_at);
        }
        err = co_write(q->file, dir->offset, buf, *bytes, 0);
    }
    blk_buf_free(buf);
    return err;
}

/* ---- switching -------------------------------------------------------------------------------- */

void qcow2_bitmaps_encode(const struct qcow2 *q, uint8_t *out)
{
    put_be32(out + QX_COUNT, q->bm.count);
    put_be32(out + QX_RESERVED, 0);
    put_be64(out + QX_DIR_SIZE, q->bm.dir_size);
    put_be64(out + QX_DIR_OFFSET, q->bm.dir_offset);
}

/* The header names the new directory from here on. */
static int switch_directory(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    uint64_t old_offset = q->bm.dir_offset, old_size = q->bm.dir_size, was = q->h.autoclear;

    q->bm.dir_offset = offset;
    q->bm.dir_size = bytes;
    q->h.autoclear &= ~(uint64_t)QCOW2_AUTO_BITMAPS;
    q->h.autoclear |= q->bm.count ? QCOW2_AUTO_BITMAPS : 0;
    int err = qcow2_header_rewrite(q);
    if (err) {
        q->bm.dir_offset = old_offset;
        q->bm.dir_size = old_size;
        q->h.autoclear = was;
        return err;
    }
    if (old_size && !q->bm.foreign) {
        give_up(q, old_offset, qcow2_clusters(q, old_size));
    }
    q->bm.foreign = false;
    return qcow2_meta_add(q, offset, qcow2_clusters(q, bytes));
}

/* What v says is true now. */
static int adopt(struct qcow2 *q, struct stored *v)
{
    int err = 0;

    for (uint32_t i = 0; i < q->bm.count; i++) {
        struct qcow2_bitmap *b = v[i].b;
        if (v[i].table_offset != b->table_offset) {
            int r = b->table_offset && !b->foreign
                        ? give_up_table(q, b->table_offset, b->table_size) : 0;
            err = err ? err : r;
            r = qcow2_meta_add(q, v[i].table_offset, qcow2_clusters(q, v[i].table_size * 8ull));
            err = err ? err : r;
            b->foreign = false;
        }
        b->table_offset = v[i].table_offset;
        b->table_size = v[i].table_size;
        b->flags = v[i].flags;
        b->dir_at = v[i].dir_at;
        b->marked = b->changed = false;
    }
    while (q->bm.removed) {
        struct qcow2_bitmap *b = q->bm.removed;
        q->bm.removed = b->next;
        int r = b->table_offset && !b->foreign
                    ? give_up_table(q, b->table_offset, b->table_size) : 0;
        err = err ? err : r;
        qcow2_bitmap_free(q, b);
    }
    q->bm.listed = false;
    return err;
}

static bool nothing_to_store(const struct qcow2 *q)
{
    const struct qcow2_bitmap *b = q->bm.first;

    while (b && !b->changed && !b->marked) {
        b = b->next;
    }
    return !b && !q->bm.listed;
}

void qcow2_bitmaps_renew(struct qcow2 *q)
{
    bool idle = nothing_to_store(q) && !q->bm.touched;

    for (struct qcow2_bitmap *b = q->bm.first; b && !idle; b = b->next) {
        b->changed |= !b->inconsistent && !qcow2_bitmap_load(q, b, NULL);
    }
}

int qcow2_bitmaps_store(struct qcow2 *q, struct blk_error *e)
{
    struct taken t = { NULL };
    struct qcow2_space dir = { 0 };
    uint64_t bytes = 0;

    if (nothing_to_store(q)) {
        return 0;
    }
    struct stored *v = calloc(q->bm.count + 1, sizeof(*v));
    int err = v ? write_all(q, &t, v, &dir, &bytes) : -ENOMEM;

    err = err ? err : qcow2_settle(q);          /* all of it is counted and durable */
    taken_end(q, &t, err != 0);
    /* From here on the header may name the new ones even if the write fails. */
    err = err ? err : switch_directory(q, dir.offset, bytes);
    err = err ? err : adopt(q, v);
    free(v);
    return err ? blk_err_errno(e, -err, "Lost persistent bitmaps of '%s'", q->n->shown) : 0;
}
