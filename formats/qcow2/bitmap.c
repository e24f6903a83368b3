/*
 * bitmap.c - persistent bitmaps: the header extension, the directory, bits in
 * memory, and what guest writes do to them.
 *
 * Bits live in chunks of a cluster, like the file's: chunk i belongs to entry i of
 * the table; byte 0, bit 0 is the first granule.  Rules and names: bitmap.h.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- the header extension ------------------------------------------------------------ */

static void warn_lost(const struct qcow2 *q)
{
    blk_report("warning: %s", q->h.version < 3
               ? "This qcow2 v2 image contains bitmaps, but they may have been modified by a "
                 "program without persistent bitmap support; so now they must all be considered "
                 "inconsistent"
               : "a program lacking bitmap support modified this file, so all bitmaps are now "
                 "considered inconsistent");
    blk_report("Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.");
}

int qcow2_bitmaps_extension(struct qcow2 *q, const uint8_t *data, uint32_t len,
                            struct blk_error *e)
{
    struct qcow2_bitmaps *m = &q->bm;

    if (len != QX_BYTES) {
        return blk_err(e, EINVAL, "bitmaps_ext: Invalid extension length");
    }
    if (!(q->h.autoclear & QCOW2_AUTO_BITMAPS)) {
        warn_lost(q);
        m->lost = true;
        return 0;
    }
    m->count = be32(data + QX_COUNT);
    m->dir_size = be64(data + QX_DIR_SIZE);
    m->dir_offset = be64(data + QX_DIR_OFFSET);
    if (be32(data + QX_RESERVED)) {
        return blk_err(e, EINVAL, "bitmaps_ext: Reserved field is not zero");
    }
    if (m->count > QCOW2_BM_MAX) {
        return blk_err(e, EINVAL, "bitmaps_ext: Image has %u bitmaps, exceeding the QEMU "
                       "supported maximum of %u", m->count, QCOW2_BM_MAX);
    }
    if (!m->count) {
        return blk_err(e, EINVAL, "found bitmaps extension with zero bitmaps");
    }
    if (m->dir_offset & (q->cluster_size - 1) || m->dir_offset < q->cluster_size ||
        m->dir_offset > INT64_MAX) {
        return blk_err(e, EINVAL, "bitmaps_ext: invalid bitmap directory offset (%#llx)",
                       (unsigned long long)m->dir_offset);
    }
    if (m->dir_size > QCOW2_BM_MAX_DIR) {
        return blk_err(e, EINVAL, "bitmaps_ext: bitmap directory size (%llu) exceeds the maximum "
                       "supported size (%llu)", (unsigned long long)m->dir_size, QCOW2_BM_MAX_DIR);
    }
    return 0;
}

/* ---- the directory -------------------------------------------------------------------- */

uint64_t qcow2_bitmap_chunks(const struct qcow2 *q, uint64_t size, uint32_t granularity)
{
    uint64_t bits = (size >> granularity) + !!(size & ((1ull << granularity) - 1));
    uint64_t bytes = blk_align_up(bits / 8 + !!(bits % 8), 8);
    return qcow2_clusters(q, bytes);
}

/* Does an entry say what can be?  Bits of one IN_USE are never looked at. */
static bool entry_sane(const struct qcow2 *q, const uint8_t *p)
{
    uint64_t offset = be64(p + QB_TABLE_OFFSET), entries = be32(p + QB_TABLE_SIZE);
    uint32_t flags = be32(p + QB_FLAGS), granularity = p[QB_GRANULARITY];

    if (!entries || !offset || offset & (q->cluster_size - 1) || offset > INT64_MAX ||
        entries > QCOW2_BM_MAX_TABLE || entries * q->cluster_size > QCOW2_BM_MAX_BYTES ||
        granularity < QCOW2_BM_MIN_GRANULARITY || granularity > QCOW2_BM_MAX_GRANULARITY ||
        flags & ~(uint32_t)QCOW2_BM_FLAGS || p[QB_TYPE] != 1 || !be16(p + QB_NAME_SIZE) ||
        be16(p + QB_NAME_SIZE) > QCOW2_BM_MAX_NAME) {
        return false;
    }
    return flags & QCOW2_BM_IN_USE ||
           qcow2_bitmap_chunks(q, q->n->size, granularity) <= entries;
}

static struct qcow2_bitmap *entry_take(const uint8_t *p, uint64_t at)
{
    struct qcow2_bitmap *b = calloc(1, sizeof(*b));

    if (b) {
        b->name = strndup((const char *)p + QB_FIXED, be16(p + QB_NAME_SIZE));
    }
    if (!b || !b->name) {
        free(b);
        return NULL;
    }
    b->flags = be32(p + QB_FLAGS);
    b->granularity = p[QB_GRANULARITY];
    b->table_offset = be64(p + QB_TABLE_OFFSET);
    b->table_size = be32(p + QB_TABLE_SIZE);
    b->dir_at = at;
    b->enabled = b->flags & QCOW2_BM_AUTO;
    b->inconsistent = b->flags & QCOW2_BM_IN_USE;
    return b;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct qcow2_bitmap *const *)a)->name,
                  (*(struct qcow2_bitmap *const *)b)->name);
}

static int check_names(const struct qcow2 *q, struct blk_error *e)
{
    struct qcow2_bitmap **v = calloc(q->bm.count, sizeof(struct qcow2_bitmap *));
    uint32_t n = 0;
    int err = 0;

    if (!v) {
        return -ENOMEM;
    }
    for (struct qcow2_bitmap *b = q->bm.first; b; b = b->next) {
        v[n++] = b;
    }
    qsort(v, n, sizeof(*v), by_name);
    for (uint32_t i = 1; i < n && !err; i++) {
        if (!strcmp(v[i - 1]->name, v[i]->name)) {
            err = blk_err(e, EINVAL, "Bitmap already exists: %s", v[i]->name);
        }
    }
    free(v);
    return err;
}

static int parse_directory(struct qcow2 *q, const uint8_t *dir, struct blk_error *e)
{
    struct qcow2_bitmap **last = &q->bm.first;
    uint64_t at = 0, size = q->bm.dir_size;
    uint32_t n = 0;

    for (; at < size; n++) {
        const uint8_t *p = dir + at;
        if (size - at < QB_FIXED) {
            return blk_err(e, EINVAL, "Broken bitmap directory");
        }
        uint64_t extra = be32(p + QB_EXTRA_SIZE), name = be16(p + QB_NAME_SIZE);
        uint64_t used = blk_align_up(QB_FIXED + extra + name, 8);
        if (n == q->bm.count) {
            return blk_err(e, EINVAL, "More bitmaps found than specified in header extension");
        }
        if (used > size - at) {
            return blk_err(e, EINVAL, "Broken bitmap directory");
        }
        if (extra) {
            return blk_err(e, ENOTSUP, "Bitmap extra data is not supported");
        }
        if (!entry_sane(q, p) || memchr(p + QB_FIXED, 0, name)) {
            return blk_err(e, EINVAL, "Bitmap '%.*s' doesn't satisfy the constraints",
                           (int)BLK_MIN(name, 255u), (const char *)p + QB_FIXED);
        }
        *last = entry_take(p, at);
        if (!*last) {
            return -ENOMEM;
        }
        last = &(*last)->next;
        at += used;
    }
    if (n < q->bm.count) {
        return blk_err(e, EINVAL, "Less bitmaps found than specified in header extension");
    }
    return check_names(q, e);
}

static int read_directory(struct qcow2 *q, struct blk_error *e)
{
    uint64_t size = q->bm.dir_size;

    if (!size) {
        return blk_err(e, EINVAL, "Requested bitmap directory size is zero");
    }
    if (q->bm.dir_offset >= q->file->size ||
        q->file->size - q->bm.dir_offset < size - BLK_MIN(size, 7u)) {
        return blk_err(e, EINVAL, "Bitmap directory at %#llx is past the end of the file",
                       (unsigned long long)q->bm.dir_offset);
    }
    uint8_t *dir = malloc(size);
    int err = dir ? co_read(q->file, q->bm.dir_offset, dir, size)
                  : blk_err(e, ENOMEM, "Could not allocate space for bitmap directory");
    if (err) {
        blk_err_errno(e, -err, "Failed to read bitmap directory");
    }
    err = err ? err : parse_directory(q, dir, e);
    free(dir);
    return err;
}

int qcow2_bitmaps_open(struct qcow2 *q, struct blk_error *e)
{
    int err = q->bm.count ? read_directory(q, e) : 0;

    for (struct qcow2_bitmap *b = q->bm.first; b && !err && q->writable; b = b->next) {
        if (b->enabled && !b->inconsistent && !(q->n->oflags & BLK_O_CHECK)) {
            err = qcow2_bitmap_load(q, b, e);
        }
    }
    qcow2_bitmaps_settle(q);
    return err;
}

/* ---- in memory ----------------------------------------------------------------------------- */

static void drop_chunk(struct qcow2 *q, struct qcow2_bitmap *b, uint32_t i)
{
    if (b->chunk[i]) {
        free(b->chunk[i]);
        b->chunk[i] = NULL;
        q->bm.bytes -= q->cluster_size;
    }
}

/* Room for so many chunks; new ones are zeros. */
static int resize_chunks(struct qcow2 *q, struct qcow2_bitmap *b, uint64_t chunks)
{
    for (uint64_t i = chunks; i < b->chunks; i++) {
        drop_chunk(q, b, (uint32_t)i);
    }
    if (chunks > b->chunks && q->bm.bytes + chunks * sizeof(*b->chunk) > QCOW2_BM_MAX_BYTES) {
        return -ENOMEM;
    }
    uint8_t **v = realloc(b->chunk, (chunks + 1) * sizeof(*v));
    if (!v) {
        return -ENOMEM;
    }
    for (uint64_t i = b->chunks; i < chunks; i++) {
        v[i] = NULL;
    }
    q->bm.bytes += (chunks - b->chunks) * sizeof(*v);
    b->chunk = v;
    b->chunks = (uint32_t)chunks;
    return 0;
}

void qcow2_bitmap_free(struct qcow2 *q, struct qcow2_bitmap *b)
{
    for (uint32_t i = 0; i < b->chunks; i++) {
        drop_chunk(q, b, i);
    }
    q->bm.bytes -= b->chunks * sizeof(*b->chunk);
    free(b->chunk);
    free(b->name);
    free(b);
}

void qcow2_bitmaps_free(struct qcow2 *q)
{
    struct qcow2_bitmap **lists[] = { &q->bm.first, &q->bm.removed };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(lists); i++) {
        while (*lists[i]) {
            struct qcow2_bitmap *b = *lists[i];
            *lists[i] = b->next;
            qcow2_bitmap_free(q, b);
        }
    }
}

struct qcow2_bitmap *qcow2_bitmap_find(struct qcow2 *q, const char *name)
{
    struct qcow2_bitmap *b = q->bm.first;
    while (b && strcmp(b->name, name)) {
        b = b->next;
    }
    return b;
}

int qcow2_bitmap_refuse(const struct qcow2_bitmap *b, struct blk_error *e)
{
    blk_err(e, EINVAL, "Bitmap '%s' is inconsistent and cannot be used", b->name);
    blk_error_hint(e, "Try block-dirty-bitmap-remove to delete this bitmap from disk");
    return -EINVAL;
}

int qcow2_bitmaps_mark_meta(struct qcow2 *q)
{
    uint64_t n = qcow2_clusters(q, q->bm.dir_size);
    int err = 0;

    for (uint64_t i = 0; i < n; i++) {
        uint64_t at = q->bm.dir_offset + (i << q->h.cluster_bits);
        q->bm.foreign |= qcow2_meta_hit(q, at);
    }
    err = q->bm.foreign ? 0 : qcow2_meta_add(q, q->bm.dir_offset, n);
    for (struct qcow2_bitmap *b = q->bm.first; b && !err; b = b->next) {
        n = qcow2_clusters(q, b->table_size * 8ull);
        for (uint64_t i = 0; i < n; i++) {
            b->foreign |= qcow2_meta_hit(q, b->table_offset + (i << q->h.cluster_bits));
        }
        err = b->foreign ? 0 : qcow2_meta_add(q, b->table_offset, n);
    }
    return err;
}

/* Chunk i, there to be written to; NULL: no memory, or too much of it. */
static uint8_t *need_chunk(struct qcow2 *q, struct qcow2_bitmap *b, uint32_t i)
{
    if (!b->chunk[i] && q->bm.bytes + q->cluster_size <= QCOW2_BM_MAX_BYTES) {
        b->chunk[i] = calloc(1, q->cluster_size);
        q->bm.bytes += b->chunk[i] ? q->cluster_size : 0;
    }
    return b->chunk[i];
}

static int load_chunk(struct qcow2 *q, struct qcow2_bitmap *b, uint32_t i, uint64_t entry)
{
    uint64_t from = entry & QCOW2_OFFSET_MASK;

    if (entry & QB_ENTRY_RESERVED || from & (q->cluster_size - 1) ||
        (from && entry & QB_ENTRY_ONES)) {
        return -EINVAL;
    }
    if (!entry) {
        return 0;
    }
    uint8_t *to = need_chunk(q, b, i);
    if (!to) {
        return -ENOMEM;
    }
    if (!from) {
        memset(to, 0xff, q->cluster_size);
        return 0;
    }
    return co_read(q->file, from, to, q->cluster_size);
}

/* Bits past the image's end are not meant. */
static void cut_bits(struct qcow2 *q, struct qcow2_bitmap *b)
{
    uint64_t size = q->n->size;
    uint64_t bits = (size >> b->granularity) + !!(size & ((1ull << b->granularity) - 1));
    uint64_t per_chunk = 8ull << q->h.cluster_bits, in = bits & (per_chunk - 1);
    uint8_t *last = b->chunks && in ? b->chunk[b->chunks - 1] : NULL;

    if (last) {
        last[in / 8] = (uint8_t)(last[in / 8] & ((1u << in % 8) - 1));
        memset(last + in / 8 + 1, 0, q->cluster_size - in / 8 - 1);
    }
}

int qcow2_bitmap_load(struct qcow2 *q, struct qcow2_bitmap *b, struct blk_error *e)
{
    uint64_t chunks = qcow2_bitmap_chunks(q, q->n->size, b->granularity);
    uint8_t *table = NULL;
    int err = 0;

    if (b->loaded) {
        return 0;
    }
    if (resize_chunks(q, b, chunks)) {
        return blk_err_errno(e, ENOMEM, "Could not read bitmap '%s' from image", b->name);
    }
    if (b->table_offset) {
        table = malloc(chunks * 8 + 8);
    }
    if (b->table_offset && !table) {
        err = -ENOMEM;
    } else if (table) {
        err = co_read(q->file, b->table_offset, table, chunks * 8);
        for (uint32_t i = 0; i < chunks && !err; i++) {
            err = load_chunk(q, b, i, be64(table + i * 8ull));
        }
        cut_bits(q, b);
    }
    free(table);
    b->loaded = !err;
    return err ? blk_err_errno(e, -err, "Could not read bitmap '%s' from image", b->name) : 0;
}

static void set_bits(uint8_t *p, uint64_t from, uint64_t end)
{
    for (; from < end && from % 8; from++) {
        p[from / 8] = (uint8_t)(p[from / 8] | 1u << from % 8);
    }
    if (end - from >= 8) {
        memset(p + from / 8, 0xff, (end - from) / 8);
        from = end & ~7ull;
    }
    for (; from < end; from++) {
        p[from / 8] = (uint8_t)(p[from / 8] | 1u << from % 8);
    }
}

int qcow2_bitmap_set(struct qcow2 *q, struct qcow2_bitmap *b, uint64_t off, uint64_t len)
{
    uint64_t from = off >> b->granularity, end = ((off + len - 1) >> b->granularity) + 1;
    uint64_t per_chunk = 8ull << q->h.cluster_bits;

    b->changed = true;
    while (len && from < end) {
        uint64_t first = from & ~(per_chunk - 1), stop = BLK_MIN(end, first + per_chunk);
        uint8_t *p = need_chunk(q, b, (uint32_t)(from / per_chunk));
        if (!p) {
            return -ENOMEM;
        }
        set_bits(p, from - first, stop - first);
        from = stop;
    }
    return 0;
}

void qcow2_bitmap_clear(struct qcow2 *q, struct qcow2_bitmap *b)
{
    b->changed = true;
    for (uint32_t i = 0; i < b->chunks; i++) {
        drop_chunk(q, b, i);
    }
}

/* From bit *at on, the first that is (set) or is not set; at most end. */
static uint64_t seek_bit(const struct qcow2 *q, const struct qcow2_bitmap *b, uint64_t at,
                         uint64_t end, bool set)
{
    uint64_t per_chunk = 8ull << q->h.cluster_bits;

    while (at < end) {
        const uint8_t *p = b->chunk[at / per_chunk];
        uint64_t in = at & (per_chunk - 1);
        if (!p) {
            if (!set) {
                return at;
            }
            at = blk_align_down(at, per_chunk) + per_chunk;
        } else if (!(in % 8) && p[in / 8] == (set ? 0 : 0xff)) {
            at += 8;
        } else if ((p[in / 8] >> in % 8 & 1) == set) {
            return at;
        } else {
            at++;
        }
    }
    return end;
}

bool qcow2_bitmap_next(struct qcow2 *q, const struct qcow2_bitmap *b, uint64_t *off,
                       uint64_t *len)
{
    uint64_t size = q->n->size, end = (size >> b->granularity) +
                                      !!(size & ((1ull << b->granularity) - 1));
    uint64_t from = seek_bit(q, b, *off >> b->granularity, end, true);
    uint64_t stop = seek_bit(q, b, from, end, false);

    if (*off >= size || from >= end) {
        return false;
    }
    *off = BLK_MAX(*off, from << b->granularity);
    *len = BLK_MIN(stop << b->granularity, size) - *off;
    return true;
}

/* ---- tracking ------------------------------------------------------------------------------------ */

void qcow2_bitmaps_settle(struct qcow2 *q)
{
    q->bm.tracking = false;
    for (struct qcow2_bitmap *b = q->bm.first; b; b = b->next) {
        q->bm.tracking |= q->writable && b->enabled && !b->inconsistent;
    }
}

static bool recording(const struct qcow2_bitmap *b)
{
    return b->enabled && !b->inconsistent;
}

bool qcow2_bitmaps_touch(struct qcow2 *q, uint64_t off, uint64_t len)
{
    if (q->bm.paused) {
        return true;
    }
    for (const struct qcow2_bitmap *b = q->bm.first; b; b = b->next) {
        if (recording(b) && b->dir_at != UINT64_MAX && !b->marked) {
            return false;
        }
    }
    for (struct qcow2_bitmap *b = q->bm.first; b; b = b->next) {
        if (recording(b) && qcow2_bitmap_set(q, b, off, len)) {
            /* It could say too little now: nobody may believe it. */
            blk_report("%s: no memory to track writes: bitmap '%s' is inconsistent from now on",
                       q->n->shown, b->name);
            b->inconsistent = true;
            b->flags |= QCOW2_BM_IN_USE;
        }
    }
    return true;
}

/* ---- a new size ----------------------------------------------------------------------------------- */

int qcow2_bitmaps_resize_begin(struct qcow2 *q, uint64_t size, struct blk_error *e)
{
    int err = 0;

    for (struct qcow2_bitmap *b = q->bm.first; b && !err; b = b->next) {
        if (b->inconsistent) {
            err = qcow2_bitmap_refuse(b, e);
        } else if (qcow2_bitmap_chunks(q, size, b->granularity) > QCOW2_BM_MAX_BYTES /
                                                                  q->cluster_size) {
            err = blk_err(e, EFBIG, "Too much space will be occupied by the bitmap '%s'", b->name);
        }
    }
    for (struct qcow2_bitmap *b = q->bm.first; b && !err; b = b->next) {
        err = qcow2_bitmap_load(q, b, e);
        b->changed |= !err;
    }
    if (!err && q->bm.count && (err = qcow2_bitmaps_mark(q, true))) {
        blk_err_errno(e, -err, "Could not mark the bitmaps as in use");
    }
    q->bm.paused = !err;
    return err;
}

int qcow2_bitmaps_resize_end(struct qcow2 *q)
{
    int err = 0;

    q->bm.paused = false;
    for (struct qcow2_bitmap *b = q->bm.first; b; b = b->next) {
        if (resize_chunks(q, b, qcow2_bitmap_chunks(q, q->n->size, b->granularity))) {
            /* Shorter than its image: not to be used any more. */
            b->inconsistent = true;
            b->flags |= QCOW2_BM_IN_USE;
            err = -ENOMEM;
            continue;
        }
        cut_bits(q, b);
    }
    return err;
}
