/*
 * alloc.c - the allocator.
 *
 * Places are QEMU's, so that maps and sizes are: the first run of free clusters behind the
 * last one given out, a refcount block that it needs behind it.
 *
 * Invariants
 *  - A cluster is handed out only if its count is 0 in a block that exists, or
 *    past everything the file holds; never cluster 0, never metadata.  Space
 *    below the file's end without a refcount block counts as used: somebody
 *    lost the block, not the data.  Not so where the file has a fixed size (a LUN):
 *    what is behind the image is all the space there is.
 *  - A new refcount block is counted by itself or by another one, of the same flush at the
 *    latest.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void reft_mark(struct qcow2 *q, uint64_t i)
{
    q->reft_dirty_first = BLK_MIN(q->reft_dirty_first, i);
    q->reft_dirty_end = BLK_MAX(q->reft_dirty_end, i + 1);
}

static bool has_block(const struct qcow2 *q, uint64_t bi)
{
    return bi < q->reft_len && q->reft[bi];
}

/* Cluster c is counted as free, yet holds metadata: if it was so before this session and
 * is something QEMU looks after, the counts are not to be trusted. */
static int free_metadata(struct qcow2 *q, uint64_t c, const char *what)
{
    uint64_t offset = c << q->h.cluster_bits;
    if (c >= q->old_end || !qcow2_meta_kind(q, offset, true)) {
        return 0;
    }
    return offset || !what ? qcow2_write_prevented(q, offset, true)
         : qcow2_mark_corrupt(q, "Preventing invalid allocation of %s at offset 0", what);
}

/* From cluster c on, the first run of free clusters, at most want long, within one
 * refcount block.  *run 0: none in c's block, go on at *next. */
static int scan_block(struct qcow2 *q, uint64_t c, uint64_t want, const char *what,
                      uint64_t *start, uint64_t *run, uint64_t *next)
{
    struct qcow2_block *b;
    uint64_t end = (qcow2_block_of(q, c) + 1) << q->refblock_bits;
    int err = qcow2_block_get(q, qcow2_block_of(q, c), &b);

    *run = 0;
    if (err) {
        return err;
    }
    for (; !err && c < end && *run < want; c++) {
        bool is_free = !qcow2_refcount_at(q, b->data, qcow2_in_block(q, c)) &&
                       !qcow2_set_has(&q->doubtful, c);
        if (is_free && qcow2_set_has(&q->meta, c)) {
            err = free_metadata(q, c, what);
            is_free = false;
        }
        if (is_free && !*run) {
            *start = c;
        }
        if (is_free) {
            ++*run;
        } else if (*run) {
            break;
        }
    }
    *next = c;
    qcow2_block_put(b);
    return err;
}

/* The block that counts the header is gone: QEMU would put it behind what it allocates at
 * the file's start. */
static int lost_first_block(struct qcow2 *q, uint64_t want, const char *what)
{
    return what && !strcmp(what, "compressed cluster") ? free_metadata(q, 0, what)
                                                       : free_metadata(q, want, NULL);
}

/* The same where no block counts: all of it is free. */
static void scan_uncounted(struct qcow2 *q, uint64_t c, uint64_t want, uint64_t *start,
                           uint64_t *run, uint64_t *next)
{
    uint64_t end = (qcow2_block_of(q, c) + 1) << q->refblock_bits;

    *run = 0;
    for (; c < end && *run < want; c++) {
        if (!qcow2_set_has(&q->meta, c)) {
            *start = *run ? *start : c;
            ++*run;
        } else if (*run) {
            break;
        }
    }
    *next = c;
}

/* A run of up to want free clusters at or after c; a run may cross blocks, and areas that
 * have none yet. */
static int find_run(struct qcow2 *q, uint64_t c, uint64_t want, bool exact, const char *what,
                    uint64_t *start, uint64_t *run)
{
    *run = 0;
    while (*run < want) {
        uint64_t bi = qcow2_block_of(q, c), s = 0, n = 0, next = 0;
        int err = 0;
        if (has_block(q, bi)) {
            err = scan_block(q, c, want - *run, what, &s, &n, &next);
        } else if (c < q->end_cluster && q->file->can_grow) {
            err = bi ? 0 : lost_first_block(q, want, what);
            next = (bi + 1) << q->refblock_bits;        /* a lost block: all used */
        } else {
            scan_uncounted(q, c, want - *run, &s, &n, &next);
        }
        if (err) {
            return err;
        }
        if (*run && n && s == *start + *run) {
            *run += n;
        } else if (*run && !exact) {
            return 0;
        } else {
            *start = s;
            *run = n;
        }
        if (*run < want && next & ((1ull << q->refblock_bits) - 1)) {
            if (*run && !exact) {
                return 0;
            }
            *run = 0;           /* ended before the area did: too short */
        }
        c = next;
    }
    return 0;
}

static int count_range(struct qcow2 *q, uint64_t c, uint64_t n, uint64_t value)
{
    while (n) {
        struct qcow2_block *b;
        int err = qcow2_block_get(q, qcow2_block_of(q, c), &b);
        if (err) {
            return err;
        }
        uint64_t at = qcow2_in_block(q, c), now = BLK_MIN(n, (1ull << q->refblock_bits) - at);
        for (uint64_t i = 0; i < now; i++) {
            qcow2_refcount_put(q, b->data, at + i, value);
        }
        qcow2_block_dirty(q, b);
        qcow2_block_put(b);
        c += now;
        n -= now;
    }
    return 0;
}

/* Does cluster c hold anything?  A hole does not, nor what was punched in units smaller than
 * the file system's. */
static int holds_data(struct qcow2 *q, uint64_t c, bool *data)
{
    struct blk_status st;
    uint64_t at = c << q->h.cluster_bits, len = BLK_MIN(q->cluster_size, q->file->size - at);
    int err = co_status(q->file, at, len, &st);

    *data = !err && !(st.flags & BLK_ST_ZERO && st.length >= len);
    if (!*data) {
        return err;
    }
    uint8_t *buf = blk_buf_alloc(len);
    err = buf ? co_read(q->file, at, buf, len) : -ENOMEM;
    *data = !err && !blk_is_zero(buf, len);
    blk_buf_free(buf);
    return err;
}

/* Space that was free before this session and is not empty may hold data whose
 * count was lost.  Where the file can grow, growing is safer than guessing. */
static int sort_out_doubtful(struct qcow2 *q, uint64_t start, uint64_t run, bool *doubtful)
{
    uint64_t end = BLK_MIN(start + run, q->old_end), size = q->file->size;

    *doubtful = false;
    if (!q->file->can_grow || q->file->can_discard != BLK_CAP_NATIVE) {
        return 0;
    }
    for (uint64_t c = start; c < end && c << q->h.cluster_bits < size; c++) {
        bool data;
        int err = holds_data(q, c, &data);
        err = err || !data ? err : qcow2_set_add(&q->doubtful, c);
        if (err) {
            return err;
        }
        *doubtful |= data;
    }
    return 0;
}

/* A run that does not hold what somebody lost. */
static int find_safe(struct qcow2 *q, uint64_t from, uint64_t want, bool exact, const char *what,
                     uint64_t *start, uint64_t *run)
{
    bool doubtful = false;
    int err;

    do {
        err = find_run(q, from, want, exact, what, start, run);
        err = err || *start >= q->old_end ? err : sort_out_doubtful(q, *start, *run, &doubtful);
    } while (!err && doubtful && *start < q->old_end);
    return err;
}

static int reft_reserve(struct qcow2 *q, uint64_t bi)
{
    if ((bi + 1) * 8 > QCOW2_MAX_REFTABLE_BYTES) {
        return -EFBIG;
    }
    if (bi >= q->reft_len) {
        uint64_t len = BLK_MAX(bi + 1, q->reft_len + q->reft_len / 4);
        uint64_t *t = realloc(q->reft, (len + 1) * 8);
        if (!t) {
            return -ENOMEM;
        }
        memset(t + q->reft_len, 0, (len + 1 - q->reft_len) * 8);
        q->reft = t;
        q->reft_len = len;
    }
    return 0;
}

/* Make refcount block bi at cluster c, which is counted already, or by this block. */
static int block_put_at(struct qcow2 *q, uint64_t bi, uint64_t c)
{
    struct qcow2_block *b;
    int err = reft_reserve(q, bi);

    err = err ? err : qcow2_meta_add(q, c << q->h.cluster_bits, 1);
    err = err ? err : qcow2_block_new(q, bi, &b);
    if (err) {
        return err;
    }
    if (qcow2_block_of(q, c) == bi) {
        qcow2_refcount_put(q, b->data, qcow2_in_block(q, c), 1);
    }
    qcow2_block_put(b);
    q->reft[bi] = c << q->h.cluster_bits;
    reft_mark(q, bi);
    q->end_cluster = BLK_MAX(q->end_cluster, c + 1);
    return 0;
}

/* Blocks that count the clusters [start, start + run), which are still free, placed behind
 * them.  A block may lie where another one is missing: then that one comes first. */
static int blocks_make(struct qcow2 *q, uint64_t start, uint64_t run)
{
    uint64_t last = qcow2_block_of(q, start + run - 1), bi = qcow2_block_of(q, start), from, c, n;
    int err = start + run > (uint64_t)INT64_MAX >> q->h.cluster_bits ? -EFBIG : 0;

    for (from = start + run; !err && bi <= last;) {
        if (has_block(q, bi)) {
            bi++;
            continue;
        }
        err = find_safe(q, from, 1, true, NULL, &c, &n);
        from = c + 1;
        uint64_t outer = qcow2_block_of(q, c);
        if (!err && outer != bi && !has_block(q, outer)) {
            err = block_put_at(q, outer, c);    /* it counts itself; bi gets the next place */
        } else if (!err) {
            err = outer != bi ? count_range(q, c, 1, 1) : 0;
            err = err ? err : block_put_at(q, bi, c);
        }
    }
    return err;
}

/* With the lock held. */
static int alloc_locked(struct qcow2 *q, uint64_t want, bool exact, struct qcow2_space *out)
{
    uint64_t start = 0, run = 0;
    int err = find_safe(q, q->free_hint, want, exact, out->what, &start, &run);

    err = err ? err : blocks_make(q, start, run);
    err = err ? err : count_range(q, start, run, 1);
    if (!err) {
        q->free_hint = start + run;
        q->end_cluster = BLK_MAX(q->end_cluster, start + run);
        out->offset = start << q->h.cluster_bits;
        out->clusters = run;
        out->fresh = out->offset >= q->zero_from;
        if (q->zero_from != UINT64_MAX) {
            q->zero_from = BLK_MAX(q->zero_from, q->end_cluster << q->h.cluster_bits);
        }
        out->fresh &= !q->crypt;            /* zeros there are noise to the guest */
    }
    return err;
}

static int alloc_allowed(struct qcow2 *q)
{
    if (q->corrupt) {
        return -EIO;
    }
    if (q->reft_bad) {
        return qcow2_write_prevented(q, q->reft_bad, true);
    }
    return 0;
}

int qcow2_alloc(struct qcow2 *q, uint64_t want, bool exact, struct qcow2_space *out)
{
    int err = alloc_allowed(q);

    if (err) {
        return err;
    }
    q->bm.touched = true;
    co_lock(&q->alloc_lock);
    err = alloc_locked(q, want, exact, out);
    co_unlock(&q->alloc_lock);
    return err;
}

int qcow2_find_free(struct qcow2 *q, uint64_t n, uint64_t *start)
{
    uint64_t run;

    co_lock(&q->alloc_lock);
    int err = find_safe(q, q->free_hint, n, true, NULL, start, &run);
    co_unlock(&q->alloc_lock);
    return err;
}

/* Blocks from `at` on for all of [at, *end), which includes them and the table behind them;
 * *end: what comes next. */
static int area_blocks(struct qcow2 *q, uint64_t at, uint64_t clusters, uint64_t *end,
                       struct qcow2_space *table)
{
    uint64_t per_table = q->cluster_size / 8, c = at, have, blocks = 0, bi;
    int err = 0;

    do {                                /* they count themselves: until it is enough */
        have = blocks;
        table->clusters = BLK_MAX((qcow2_block_of(q, at) + have + per_table) / per_table,
                                  (uint64_t)q->h.reft_clusters);
        blocks = qcow2_block_of(q, at + have + table->clusters + clusters) + 1;
        blocks -= BLK_MIN(blocks, has_block(q, qcow2_block_of(q, at)) ? qcow2_block_of(q, at) + 1
                                                                    : qcow2_block_of(q, at));
    } while (blocks > have);
    if (at + have + table->clusters + clusters > (uint64_t)INT64_MAX >> q->h.cluster_bits) {
        return -EFBIG;
    }
    for (bi = qcow2_block_of(q, at); have && !err; bi++) {
        if (has_block(q, bi)) {
            continue;
        }
        uint64_t outer = qcow2_block_of(q, c);
        err = outer != bi ? count_range(q, c, 1, 1) : 0;
        err = err ? err : block_put_at(q, bi, c);
        c++;
        have--;
    }
    table->offset = c << q->h.cluster_bits;
    *end = c + table->clusters;
    return err;
}

/* Where n new clusters may begin: behind everything in use.  What is there already must be
 * zeros, for nobody writes to them; QEMU's guests see what its clusters held before. */
static int area_start(struct qcow2 *q, uint64_t n, uint64_t *at)
{
    int err = qcow2_used_end(q, at);
    uint64_t off = *at << q->h.cluster_bits, size = q->file->size;
    bool fits = off + (n << q->h.cluster_bits) >= size;
    struct blk_status st = { 0 };

    for (; !err && fits && off < size; off += st.length) {
        err = co_status(q->file, off, size - off, &st);
        fits = err || st.flags & BLK_ST_ZERO;
    }
    *at = fits ? *at : qcow2_clusters(q, size);
    return err;
}

int qcow2_alloc_area(struct qcow2 *q, uint64_t n, uint64_t more, uint64_t *offset)
{
    uint64_t at, start = 0;
    struct qcow2_space table = { 0 };
    int err = alloc_allowed(q);

    err = err ? err : area_start(q, n, &at);
    if (err) {
        return err;
    }
    co_lock(&q->alloc_lock);
    err = area_blocks(q, at, n + more, &start, &table);
    err = err ? err : count_range(q, table.offset >> q->h.cluster_bits, table.clusters, 1);
    err = err ? err : count_range(q, start, n, 1);
    if (!err) {
        q->end_cluster = BLK_MAX(q->end_cluster, start + n);
        q->reft_place = table;
        *offset = start << q->h.cluster_bits;
    }
    if (q->zero_from != UINT64_MAX) {
        q->zero_from = BLK_MAX(q->zero_from, q->end_cluster << q->h.cluster_bits);
    }
    co_unlock(&q->alloc_lock);
    return err;
}

int qcow2_take_free(struct qcow2 *q, uint64_t *hint, uint64_t below, uint64_t n, uint64_t count,
                    uint64_t *out)
{
    uint64_t c = BLK_MAX(*hint, 1u), start = 0, run = 0, next;
    int err = alloc_allowed(q);

    *out = 0;
    co_lock(&q->alloc_lock);
    while (!err && c < below && run < n) {
        uint64_t bi = qcow2_block_of(q, c);
        if (!has_block(q, bi)) {
            c = (bi + 1) << q->refblock_bits;           /* a lost block: all used */
            continue;
        }
        err = scan_block(q, c, n, NULL, &start, &run, &next);
        c = next;
    }
    if (!err && run == n && start + n <= below) {
        err = count_range(q, start, n, count);
        *out = err ? 0 : start;
        *hint = n == 1 ? start + 1 : *hint;
    }
    co_unlock(&q->alloc_lock);
    return err;
}

int qcow2_block_move(struct qcow2 *q, uint64_t index, uint64_t offset)
{
    struct qcow2_block *b;
    uint64_t old = q->reft[index];
    int err = offset ? qcow2_meta_add(q, offset, 1) : 0;

    err = err ? err : qcow2_block_get(q, index, &b);
    if (err) {
        return err;
    }
    q->reft[index] = offset;
    reft_mark(q, index);
    if (offset) {
        qcow2_block_dirty(q, b);        /* written to its new place by the next flush */
    }
    qcow2_block_put(b);
    qcow2_meta_del(q, old, 1);
    return 0;
}

/* One more piece in the host cluster at ->free_byte, which it may leave only for
 * the one directly behind it.  With the lock held. */
static int pack_one(struct qcow2 *q, struct qcow2_packed *p)
{
    uint64_t at = q->free_byte, room = q->cluster_size - (at & (q->cluster_size - 1)), count = 0;
    unsigned shift = 62 - (q->h.cluster_bits - 8);
    struct qcow2_space new = { .what = "compressed cluster" };
    int err = at ? qcow2_refcount_get(q, at >> q->h.cluster_bits, &count) : 0;

    if (err) {
        return err;
    }
    if (!count || count >= qcow2_refcount_max(q)) {
        at = 0;
    }
    if (!at || room < p->len) {
        err = alloc_locked(q, 1, true, &new);
        if (err) {
            return err;
        }
        if (!at || new.offset != at + room) {
            at = new.offset;
            count = 0;                  /* nothing is shared */
        }
    }
    if (at + p->len > 1ull << shift) {
        err = -EFBIG;                   /* an entry has no room for the place */
    } else if (count) {
        err = count_range(q, at >> q->h.cluster_bits, 1, count + 1);
    }
    if (err) {
        if (new.offset) {
            qcow2_free_later(q, new.offset, 1);
        }
        return err;
    }
    p->offset = at;
    q->free_byte = (at + p->len) & (q->cluster_size - 1) ? at + p->len : 0;
    return 0;
}

int qcow2_alloc_packed(struct qcow2 *q, struct qcow2_packed *p, uint64_t n)
{
    uint64_t i = 0;
    int err = alloc_allowed(q);

    if (err) {
        return err;
    }
    co_lock(&q->alloc_lock);
    while (i < n && !(err = pack_one(q, &p[i]))) {
        i++;
    }
    co_unlock(&q->alloc_lock);
    while (err && i--) {
        qcow2_free_packed_later(q, &p[i]);
    }
    return err;
}

int qcow2_unalloc(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    uint64_t c = offset >> q->h.cluster_bits;
    co_lock(&q->alloc_lock);
    int err = count_range(q, c, clusters, 0);
    q->free_hint = BLK_MIN(q->free_hint, c);
    co_unlock(&q->alloc_lock);
    return err;
}

int qcow2_count_shift(struct qcow2 *q, uint64_t offset, uint64_t clusters, bool up)
{
    int err = 0;

    co_lock(&q->alloc_lock);
    for (uint64_t c = offset >> q->h.cluster_bits; !err && clusters--; c++) {
        struct qcow2_block *b;
        if (!has_block(q, qcow2_block_of(q, c))) {
            err = -EIO;
            break;
        }
        if ((err = qcow2_block_get(q, qcow2_block_of(q, c), &b))) {
            break;
        }
        uint64_t v = qcow2_refcount_at(q, b->data, qcow2_in_block(q, c));
        err = !v ? -EIO : up && v == qcow2_refcount_max(q) ? -EINVAL : 0;
        if (!err) {
            qcow2_refcount_put(q, b->data, qcow2_in_block(q, c), up ? v + 1 : v - 1);
            qcow2_block_dirty(q, b);
        }
        qcow2_block_put(b);
    }
    co_unlock(&q->alloc_lock);
    return err;
}
