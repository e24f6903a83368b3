/*
 * bitmap_ops.c - what users do with persistent bitmaps.
 *
 * Everything happens in memory; closing the image stores it.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int not_found(const char *name, struct blk_error *e)
{
    return blk_err(e, ENOENT, "Dirty bitmap '%s' not found", name);
}

/* Found and consistent, its bits in memory. */
static int get(struct qcow2 *q, const char *name, struct qcow2_bitmap **out, struct blk_error *e)
{
    struct qcow2_bitmap *b = qcow2_bitmap_find(q, name);

    *out = b;
    if (!b) {
        return not_found(name, e);
    }
    return b->inconsistent ? qcow2_bitmap_refuse(b, e) : qcow2_bitmap_load(q, b, e);
}

/* ---- add and remove ------------------------------------------------------------------- */

static uint64_t default_granularity(const struct qcow2 *q)
{
    return BLK_MIN(BLK_MAX(q->cluster_size, 4096u), 65536u);
}

/* QEMU names the node; it makes such names up where the user gave none. */
#define NODE "#block100"

static int check_new(struct qcow2 *q, const char *name, uint32_t bits, struct blk_error *e)
{
    uint64_t dir = qcow2_bitmap_entry_bytes(name);
    int err = 0;

    for (const struct qcow2_bitmap *b = q->bm.first; b; b = b->next) {
        dir += qcow2_bitmap_entry_bytes(b->name);
    }
    if (q->h.version < 3) {
        err = blk_err(e, ENOTSUP, "Cannot store dirty bitmaps in qcow2 v2 files");
    } else if (bits > QCOW2_BM_MAX_GRANULARITY) {
        err = blk_err(e, EINVAL, "Granularity exceeds maximum (%llu bytes)",
                      1ull << QCOW2_BM_MAX_GRANULARITY);
    } else if (strlen(name) > QCOW2_BM_MAX_NAME) {
        err = blk_err(e, EINVAL, "Name length exceeds maximum (%u characters)", QCOW2_BM_MAX_NAME);
    } else if (qcow2_bitmap_chunks(q, q->n->size, bits) > QCOW2_BM_MAX_BYTES / q->cluster_size) {
        err = blk_err(e, EINVAL, "Too much space will be occupied by the bitmap. Use larger "
                      "granularity");
    } else if (q->bm.count >= QCOW2_BM_MAX) {
        err = blk_err(e, EINVAL, "Maximum number of persistent bitmaps is already reached");
    } else if (dir > QCOW2_BM_MAX_DIR) {
        err = blk_err(e, EINVAL, "Not enough space in the bitmap directory");
    }
    if (err) {
        blk_error_prefix(e, "Can't make bitmap '%s' persistent in '%s': ", name, NODE);
    }
    return err;
}

static int add(struct qcow2 *q, const char *name, uint64_t granularity, struct blk_error *e)
{
    struct qcow2_bitmap *b, **last = &q->bm.first;
    int err;

    if (!*name) {
        return blk_err(e, EINVAL, "Bitmap name cannot be empty");
    }
    granularity = granularity ? granularity : default_granularity(q);
    if (granularity < 512 || granularity > UINT32_MAX || granularity & (granularity - 1)) {
        return blk_err(e, EINVAL, "Granularity must be power of 2 and at least 512");
    }
    if (qcow2_bitmap_find(q, name)) {
        return blk_err(e, EEXIST, "Bitmap already exists: %s", name);
    }
    err = check_new(q, name, (uint32_t)__builtin_ctzll(granularity), e);
    if (err) {
        return err;
    }
    b = calloc(1, sizeof(*b));
    if (!b || !(b->name = strdup(name))) {
        free(b);
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    b->granularity = (uint32_t)__builtin_ctzll(granularity);
    b->enabled = b->changed = true;
    b->dir_at = UINT64_MAX;
    err = qcow2_bitmap_load(q, b, e);
    if (err) {
        qcow2_bitmap_free(q, b);
        return err;
    }
    while (*last) {
        last = &(*last)->next;
    }
    *last = b;
    q->bm.count++;
    q->bm.listed = true;
    return 0;
}

static int drop(struct qcow2 *q, const char *name, struct blk_error *e)
{
    struct qcow2_bitmap *b = qcow2_bitmap_find(q, name), **at = &q->bm.first;

    if (!b) {
        return not_found(name, e);
    }
    while (*at != b) {
        at = &(*at)->next;
    }
    *at = b->next;
    b->next = q->bm.removed;
    q->bm.removed = b;
    q->bm.count--;
    q->bm.listed = true;
    return 0;
}

/* ---- the ops ----------------------------------------------------------------------------- */

int qcow2_bitmap_change(struct blk_node *n, enum blk_bitmap_op op, const char *name,
                        uint64_t granularity, struct blk_error *e)
{
    struct qcow2 *q = n->state;
    struct qcow2_bitmap *b;
    int err;

    if (op == BLK_BITMAP_ADD) {
        err = add(q, name, granularity, e);
    } else if (op == BLK_BITMAP_REMOVE) {
        err = drop(q, name, e);
        /* At once, and the rest when the image is closed: as QEMU does. */
        err = err ? err : qcow2_bitmaps_store(q, e);
        err = err ? err : qcow2_flush(q);
    } else if (!(err = get(q, name, &b, e))) {
        if (op == BLK_BITMAP_CLEAR) {
            qcow2_bitmap_clear(q, b);
        } else {
            b->enabled = op == BLK_BITMAP_ENABLE;
            q->bm.listed = true;
        }
    }
    qcow2_bitmaps_settle(q);
    return err;
}

bool qcow2_bitmap_at(struct blk_node *n, size_t i, struct blk_bitmap *out)
{
    const struct qcow2 *q = n->state;
    const struct qcow2_bitmap *b = q->bm.first;

    while (b && i--) {
        b = b->next;
    }
    if (b) {
        *out = (struct blk_bitmap){ b->name, 1ull << b->granularity, b->enabled, b->inconsistent };
    }
    return b;
}

int qcow2_bitmap_copy(struct blk_node *n, const char *name, struct blk_node *src,
                      const char *from, struct blk_error *e)
{
    struct qcow2 *q = n->state, *s = src->state;
    struct qcow2_bitmap *to = qcow2_bitmap_find(q, name), *b = NULL;
    uint64_t off = 0, len;
    int err = to ? 0 : not_found(name, e);

    b = err || src->drv != n->drv ? NULL : qcow2_bitmap_find(s, from);
    if (!err && !b) {
        err = not_found(from, e);
    }
    err = err ? err : get(q, name, &to, e);
    err = err ? err : get(s, from, &b, e);
    if (!err && n->size != src->size) {
        err = blk_err(e, EINVAL, "Bitmaps are of different sizes (destination size is %llu, "
                      "source size is %llu) and can't be merged", (unsigned long long)n->size,
                      (unsigned long long)src->size);
    }
    for (; !err && qcow2_bitmap_next(s, b, &off, &len); off += len) {
        if (qcow2_bitmap_set(q, to, off, len)) {
            err = blk_err(e, ENOMEM, "Cannot allocate memory");
        }
    }
    return err;
}

uint64_t qcow2_bitmaps_measure(struct blk_node *src, uint64_t cluster)
{
    const struct qcow2 *q = src->state;
    uint64_t sum = 0, dir = 0;

    for (const struct qcow2_bitmap *b = q->bm.first; b; b = b->next) {
        uint64_t bits = (src->size >> b->granularity) +
                        !!(src->size & ((1ull << b->granularity) - 1));
        uint64_t bytes = blk_align_up(bits / 8 + !!(bits % 8), 8);
        uint64_t clusters = bytes / cluster + !!(bytes % cluster);
        sum += clusters * cluster + blk_align_up(clusters * 8, cluster);
        dir += qcow2_bitmap_entry_bytes(b->name);
    }
    return sum + blk_align_up(dir, cluster);
}
