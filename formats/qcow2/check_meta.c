/*
 * check_meta.c - the checker's own reading of the header, the snapshot table and
 * the bitmap directory.  Every count is capped before it sizes anything.
 */
#include "formats/qcow2/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SNAPSHOT_FIXED  40u     /* bytes of a snapshot entry before its extra data */
#define BITMAP_FIXED    24u

/* Extensions that name clusters; the rest have no say here. */
static void geometry_extension(struct check_geom *g, uint32_t type, const uint8_t *p, uint32_t len)
{
    if (type == QCOW2_EXT_CRYPTO && len == 16) {
        g->crypto_offset = be64(p);
        g->crypto_length = be64(p + 8);
    } else if (type == QCOW2_EXT_BITMAPS && len == 24 && g->autoclear & QCOW2_AUTO_BITMAPS) {
        g->nb_bitmaps = be32(p);
        g->bitmaps_size = be64(p + 8);
        g->bitmaps_offset = be64(p + 16);
    }
}

static void geometry_extensions(struct check_geom *g, const uint8_t *h, uint64_t at, uint64_t end)
{
    while (at + 8 <= end) {
        uint32_t type = be32(h + at), len = be32(h + at + 4);
        at += 8;
        if (!type || len > end - at)
            return;
        geometry_extension(g, type, h + at, len);
        at += blk_align_up(len, 8);
    }
}

static int geometry_limits(const struct check_geom *g, struct blk_error *e)
{
    if (g->cluster_bits < 9 || g->cluster_bits > 21 || g->refcount_order > 6)
        return blk_err(e, EINVAL, "Unsupported cluster size or refcount width");
    if ((uint64_t)g->l1_size * 8 > QCOW2_MAX_L1_BYTES)
        return blk_err(e, EFBIG, "Active L1 table too large");
    if ((uint64_t)g->reftable_clusters << g->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
        return blk_err(e, EINVAL, "Reference count table too large");
    if (g->nb_bitmaps > CHECK_MAX_BITMAPS || g->bitmaps_size > CHECK_MAX_BM_DIR)
        return blk_err(e, EINVAL, "Bitmap directory is too large");
    if (g->crypto_length > CHECK_MAX_CRYPTO)
        return blk_err(e, EINVAL, "Encryption header is too large");
    return 0;
}

int ck_geometry(struct check *k, struct blk_error *e)
{
    struct check_geom *g = &k->g;
    uint8_t h[QH_V3_END];
    int r = ck_read(k, 0, h, sizeof(h));
    if (r)
        return blk_err_errno(e, -r, "Could not read qcow2 header");
    g->version = be32(h + QH_VERSION);
    if (be32(h) != QCOW2_MAGIC || g->version < 2 || g->version > 3)
        return blk_err(e, EINVAL, "Image is not in qcow2 format");
    g->cluster_bits = be32(h + QH_CLUSTER_BITS);
    g->size = be64(h + QH_SIZE);
    g->l1_size = be32(h + QH_L1_SIZE);
    g->l1_offset = be64(h + QH_L1_OFFSET);
    g->reftable_offset = be64(h + QH_REFT_OFFSET);
    g->reftable_clusters = be32(h + QH_REFT_CLUSTERS);
    g->nb_snapshots = be32(h + QH_NB_SNAPSHOTS);
    g->snapshots_offset = be64(h + QH_SNAP_OFFSET);
    g->refcount_order = g->version >= 3 ? be32(h + QH_REFCOUNT_ORDER) : 4;
    g->incompat = g->version >= 3 ? be64(h + QH_INCOMPATIBLE) : 0;
    g->autoclear = g->version >= 3 ? be64(h + QH_AUTOCLEAR) : 0;
    g->data_file = g->incompat & QCOW2_INC_DATA_FILE;
    g->extl2 = g->incompat & QCOW2_INC_EXTL2;
    r = geometry_limits(g, e);
    if (r)
        return r;
    g->cluster_size = 1ull << g->cluster_bits;
    g->block_bits = g->cluster_bits + 3 - g->refcount_order;
    g->refcount_max = g->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << g->refcount_order)) - 1;

    uint64_t at = g->version >= 3 ? be32(h + QH_HEADER_LENGTH) : QH_V2_END;
    k->table = blk_buf_alloc(g->cluster_size);
    if (!k->table || ck_ahead_init(k))
        return -ENOMEM;
    r = ck_read(k, 0, k->table, g->cluster_size);
    uint64_t backing = be64(h + QH_BACKING_OFFSET), end = g->cluster_size;
    if (backing && backing < end)
        end = backing;
    if (!r)
        geometry_extensions(g, k->table, at, end);
    return r ? r : geometry_limits(g, e);
}

bool ck_take_table(struct check *k, uint64_t bytes)
{
    if (bytes > k->tables_left)
        return false;
    k->tables_left -= bytes;
    return true;
}

/* ---- snapshots --------------------------------------------------------------------- */

static void copy_name(char *dst, size_t room, const uint8_t *src, uint32_t len)
{
    size_t n = BLK_MIN(len, room - 1);
    memcpy(dst, src, n);
    dst[n] = 0;
}

/* The entry at *at of a table of len bytes; -EINVAL: it does not fit. */
static int parse_snapshot(struct check *k, const uint8_t *t, uint64_t len, uint64_t *at,
                          struct check_snapshot *s)
{
    if (len - *at < SNAPSHOT_FIXED)
        return -EINVAL;
    const uint8_t *p = t + *at;
    uint32_t id_len = be16(p + 12), name_len = be16(p + 14), extra = be32(p + 36);
    uint64_t used = SNAPSHOT_FIXED + (uint64_t)extra + id_len + name_len;
    s->extra = extra;
    if (extra > QCOW2_MAX_SNAPEXTRA && !(k->fix & BLK_FIX_ERRORS))
        return -EFBIG;                  /* refused, wherever it ends */
    if (used > len - *at)
        return -EINVAL;
    s->l1_offset = be64(p);
    s->l1_size = be32(p + 8);
    copy_name(s->id, sizeof(s->id), p + SNAPSHOT_FIXED + extra, id_len);
    copy_name(s->name, sizeof(s->name), p + SNAPSHOT_FIXED + extra + id_len, name_len);
    /* The last entry may end at the end of the file, its padding missing. */
    *at = BLK_MIN(len, *at + blk_align_up(used, 8));
    return 0;
}

/* All n entries out of the len bytes at the table's offset. */
static int parse_snapshots(struct check *k, struct check_snapshots *s, uint32_t n, uint64_t len)
{
    uint8_t *t = malloc(len);
    if (!t)
        return -ENOMEM;
    int r = ck_read(k, k->g.snapshots_offset, t, len);
    s->size = s->n = 0;
    while (!r && s->n < n) {
        r = parse_snapshot(k, t, len, &s->size, &s->v[s->n]);
        s->n += !r;
    }
    free(t);
    return r;
}

/* How many of them to read: a repair leaves what is too much. */
static int snapshots_wanted(struct check *k, struct check_snapshots *s, uint32_t *n,
                            struct blk_error *e)
{
    *n = k->g.nb_snapshots;
    if (*n > QCOW2_MAX_SNAPSHOTS) {
        uint32_t over = *n - QCOW2_MAX_SNAPSHOTS;
        if (!(k->fix & BLK_FIX_ERRORS))
            return qcow2_snapshots_over(e, "ERROR snapshot table too large", over);
        ck_say(k, "Discarding %u overhanging snapshots", over);
        s->damage += over;
        *n -= over;
    }
    if (k->g.snapshots_offset & (k->g.cluster_size - 1) || !k->g.snapshots_offset)
        return blk_err(e, EINVAL, "ERROR snapshot table offset invalid");
    if (k->g.snapshots_offset >= k->file_len)
        return blk_err(e, EINVAL, "ERROR snapshot table is past the end of the file");
    return 0;
}

static int read_table(struct check *k, struct check_snapshots *s, uint32_t n, bool *too_big)
{
    uint64_t left = k->file_len - k->g.snapshots_offset;
    /* Entries are rarely over 256 bytes: read so much, all of it if needed. */
    uint64_t max = BLK_MIN(left, QCOW2_MAX_SNAPTABLE_BYTES);
    uint64_t len = BLK_MIN(max, (uint64_t)n * 256 + 4096);
    int r = parse_snapshots(k, s, n, len);
    if (r == -EINVAL && len < max)
        r = parse_snapshots(k, s, n, max);
    *too_big = r == -EINVAL && max < left;
    s->n += r == -EFBIG;                /* judge_entries() says why */
    return *too_big || r == -EFBIG ? 0 : r;
}

/* What is wrong with the s->n entries that were read, of n. */
static int judge_entries(struct check *k, struct check_snapshots *s, uint32_t n, bool too_big,
                         struct blk_error *e)
{
    bool fix = k->fix & BLK_FIX_ERRORS;
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->v[i].extra <= QCOW2_MAX_SNAPEXTRA)
            continue;
        if (!fix) {
            blk_err(e, EFBIG, "ERROR failed to read the snapshot table: Too much extra metadata in "
                    "snapshot table entry %u", i);
            blk_error_hint(e, "You can force-remove this extra metadata with qemu-img check -r all");
            return -EFBIG;
        }
        ck_say(k, "Discarding too much extra metadata in snapshot table entry %u (%u > %u)", i,
               s->v[i].extra, QCOW2_MAX_SNAPEXTRA);
        s->damage++;
    }
    if (too_big && !fix)
        return qcow2_snapshots_over(e, "ERROR failed to read the snapshot table: Snapshot table "
                                    "is too big", n - s->n);
    if (too_big)
        ck_say(k, "Discarding %u overhanging snapshots (snapshot table is too big)", n - s->n);
    s->damage += n - s->n;
    for (uint32_t i = 0; i < s->n && k->g.version >= 3; i++) {
        if (s->v[i].extra >= QCOW2_MIN_SNAPEXTRA)
            continue;
        ck_say(k, "%s snapshot table entry %u is incomplete", fix ? "Repairing" : "ERROR", i);
        s->damage++;
    }
    return 0;
}

int ck_read_snapshots(struct check *k, struct check_snapshots *s, struct blk_error *e)
{
    uint32_t n;
    bool too_big;
    if (!k->g.nb_snapshots)
        return 0;
    int r = snapshots_wanted(k, s, &n, e);
    if (!r && !(s->v = calloc(n, sizeof(*s->v))))
        return -ENOMEM;
    if (!r) {
        r = read_table(k, s, n, &too_big);
        if (r)
            blk_err(e, -r, "ERROR failed to read the snapshot table: %s", strerror(-r));
    }
    r = r ? r : judge_entries(k, s, n, too_big, e);
    if (r) {
        k->out->check_errors++;
        return r;
    }
    if (!(k->fix & BLK_FIX_ERRORS))
        k->out->corruptions += s->damage;
    for (uint32_t i = 0; i < s->n; i++)
        s->v[i].skip = !ck_take_table(k, (uint64_t)s->v[i].l1_size * 8);
    return 0;
}

/* ---- bitmaps ---------------------------------------------------------------------------- */

/* A bitmap's table: every entry names a cluster, or none and all ones. */
static int count_bitmap(struct check *k, uint64_t off, uint32_t entries)
{
    uint64_t bytes = (uint64_t)entries * 8;
    int r = ck_ref(k, off, bytes, 1);
    for (uint64_t at = 0; at < bytes && !r; at += k->g.cluster_size) {
        uint64_t len = BLK_MIN(bytes - at, k->g.cluster_size);
        if (ck_is_hole(k, off + at, len))
            continue;
        r = ck_read(k, off + at, k->table, len);
        for (uint64_t i = 0; i < len && !r; i += 8) {
            uint64_t entry = be64(k->table + i), to = entry & CK_BM_OFFSET;
            if (entry & CK_BM_RESERVED || to & (k->g.cluster_size - 1) ||
                (to && entry & CK_BM_ALL_ONES))
                k->out->corruptions++;
            else if (to)
                r = ck_ref(k, to, k->g.cluster_size, 1);
        }
    }
    return r;
}

static int count_bitmaps(struct check *k, const uint8_t *dir)
{
    uint64_t at = 0, size = k->g.bitmaps_size;
    for (uint32_t i = 0; i < k->g.nb_bitmaps; i++) {
        if (size - at < BITMAP_FIXED)
            return -EINVAL;
        const uint8_t *p = dir + at;
        uint64_t off = be64(p), used = BITMAP_FIXED + (uint64_t)be16(p + 18) + be32(p + 20);
        uint32_t entries = be32(p + 8);
        if (used > size - at || off & (k->g.cluster_size - 1) || entries > CHECK_MAX_BM_TABLE ||
            !ck_take_table(k, (uint64_t)entries * 8))
            return -EINVAL;
        int r = count_bitmap(k, off, entries);
        if (r)
            return r;
        at = BLK_MIN(size, at + blk_align_up(used, 8));
    }
    return 0;
}

int ck_count_bitmaps(struct check *k)
{
    if (!k->g.nb_bitmaps)
        return 0;
    int r = ck_ref(k, k->g.bitmaps_offset, k->g.bitmaps_size, 1);
    uint8_t *dir = r ? NULL : malloc(k->g.bitmaps_size ? k->g.bitmaps_size : 1);
    if (!dir)
        return r ? r : -ENOMEM;
    r = ck_read(k, k->g.bitmaps_offset, dir, k->g.bitmaps_size);
    if (!r)
        r = count_bitmaps(k, dir);
    if (r == -EINVAL)
        k->out->corruptions++;
    free(dir);
    return r;
}
