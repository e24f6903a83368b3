/*
 * header.c - the header cluster: the fixed header, extensions, the backing name;
 * and the corrupt bit.
 *
 * Invariants
 *  - Nothing read from the file is used before it was checked here.
 *  - The fixed header lies within the first 512 bytes and is always changed by
 *    one aligned 512-byte write: it is never torn.
 *  - Unknown extensions are kept, in order, when the header is rebuilt.
 *  - A new backing name is written where neither the old name nor the extensions
 *    are, and the first sector, which switches to it, last: after a crash the image
 *    has one name or the other.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FEATURE_ENTRY 48u
#define FEATURE_NAME 46u

const struct qcow2_feature qcow2_feature_table[QCOW2_FEATURES] = {
    { 0, 0, "dirty bit" },
    { 0, 1, "corrupt bit" },
    { 0, 2, "external data file" },
    { 0, 3, "compression type" },
    { 0, 4, "extended L2 entries" },
    { 1, 0, "lazy refcounts" },
    { 2, 0, "bitmaps" },
    { 2, 1, "raw external data" },
};
_Static_assert(sizeof(qcow2_feature_table) == QCOW2_FEATURES * FEATURE_ENTRY, "as on disk");

/* ---- the fixed header ---------------------------------------------------------- */

void qcow2_header_decode(const uint8_t *b, struct qcow2_header *h)
{
    h->version = be32(b + QH_VERSION);
    h->backing_offset = be64(b + QH_BACKING_OFFSET);
    h->backing_size = be32(b + QH_BACKING_SIZE);
    h->cluster_bits = be32(b + QH_CLUSTER_BITS);
    h->size = be64(b + QH_SIZE);
    h->crypt_method = be32(b + QH_CRYPT);
    h->l1_size = be32(b + QH_L1_SIZE);
    h->l1_offset = be64(b + QH_L1_OFFSET);
    h->reft_offset = be64(b + QH_REFT_OFFSET);
    h->reft_clusters = be32(b + QH_REFT_CLUSTERS);
    h->nb_snapshots = be32(b + QH_NB_SNAPSHOTS);
    h->snap_offset = be64(b + QH_SNAP_OFFSET);
    h->refcount_order = 4;
    h->header_length = QH_V2_END;
    if (h->version >= 3) {
        h->incompatible = be64(b + QH_INCOMPATIBLE);
        h->compatible = be64(b + QH_COMPATIBLE);
        h->autoclear = be64(b + QH_AUTOCLEAR);
        h->refcount_order = be32(b + QH_REFCOUNT_ORDER);
        h->header_length = be32(b + QH_HEADER_LENGTH);
        h->compression = h->header_length > QH_V3_END ? b[QH_COMPRESSION] : 0;
    }
}

/* Into the first header_length bytes of b; unknown fields beyond 112 stay. */
static void header_encode(const struct qcow2_header *h, uint8_t *b)
{
    put_be32(b + QH_MAGIC, QCOW2_MAGIC);
    put_be32(b + QH_VERSION, h->version);
    put_be64(b + QH_BACKING_OFFSET, h->backing_offset);
    put_be32(b + QH_BACKING_SIZE, h->backing_size);
    put_be32(b + QH_CLUSTER_BITS, h->cluster_bits);
    put_be64(b + QH_SIZE, h->size);
    put_be32(b + QH_CRYPT, h->crypt_method);
    put_be32(b + QH_L1_SIZE, h->l1_size);
    put_be64(b + QH_L1_OFFSET, h->l1_offset);
    put_be64(b + QH_REFT_OFFSET, h->reft_offset);
    put_be32(b + QH_REFT_CLUSTERS, h->reft_clusters);
    put_be32(b + QH_NB_SNAPSHOTS, h->nb_snapshots);
    put_be64(b + QH_SNAP_OFFSET, h->snap_offset);
    if (h->version >= 3) {
        put_be64(b + QH_INCOMPATIBLE, h->incompatible);
        put_be64(b + QH_COMPATIBLE, h->compatible);
        put_be64(b + QH_AUTOCLEAR, h->autoclear);
        put_be32(b + QH_REFCOUNT_ORDER, h->refcount_order);
        put_be32(b + QH_HEADER_LENGTH, h->header_length);
        if (h->header_length > QH_V3_END) {
            b[QH_COMPRESSION] = h->compression;
        }
    }
}

static void set_geometry(struct qcow2 *q)
{
    q->cluster_size = 1u << q->h.cluster_bits;
    q->wide = q->h.incompatible & QCOW2_INC_EXTL2 ? 1 : 0;
    q->l2_bits = q->h.cluster_bits - 3 - q->wide;
    q->sub_bits = q->wide ? QCOW2_SUB_BITS : 0;
    q->sub_shift = q->h.cluster_bits - q->sub_bits;
    q->sub_size = 1u << q->sub_shift;
    q->refcount_bits = 1u << q->h.refcount_order;
    q->refblock_bits = q->h.cluster_bits + 3 - q->h.refcount_order;
}

int qcow2_header_reload(struct qcow2 *q)
{
    uint8_t fixed[QH_FULL];
    int err = co_read(q->file, 0, fixed, sizeof(fixed));
    if (!err) {
        qcow2_header_decode(fixed, &q->h);
        set_geometry(q);
    }
    return err;
}

int qcow2_header_update(struct qcow2 *q)
{
    uint8_t sector[512];
    int err = co_read(q->file, 0, sector, sizeof(sector));
    if (err) {
        return err;
    }
    header_encode(&q->h, sector);
    err = co_write(q->file, 0, sector, sizeof(sector), 0);
    return err ? err : co_flush(q->file);
}

/* ---- building a whole header area ------------------------------------------------ */

struct header_out {
    uint8_t *buf;
    size_t len, at;
};

static int out_extension(struct header_out *o, uint32_t magic, const void *data, size_t len)
{
    size_t need = 8 + blk_align_up(len, 8);
    if (need > o->len - o->at) {
        return -ENOSPC;
    }
    put_be32(o->buf + o->at, magic);
    put_be32(o->buf + o->at + 4, (uint32_t)len);
    if (len) {
        memcpy(o->buf + o->at + 8, data, len);
    }
    o->at += need;
    return 0;
}

/* Where a name of n bytes goes: behind the extensions, which end at `from`, and off
 * the bytes [q->h.backing_offset, + backing_size) if there is room for that. */
static size_t name_place(const struct qcow2 *q, size_t from, size_t n, size_t len)
{
    uint64_t old = q->h.backing_offset, old_end = blk_align_up(old + q->h.backing_size, 8);

    if (old && from < old_end && from + n > old && old_end <= len && n <= len - old_end) {
        return BLK_MAX(from, (size_t)old_end);
    }
    return from;
}

int qcow2_header_build(struct qcow2 *q, uint8_t *buf, size_t len)
{
    const char *fmt = q->n->backing_format, *name = q->n->backing_name;
    struct header_out o = { buf, len, q->h.header_length };
    int err = 0;

    memset(buf, 0, len);
    if (fmt) {
        err = out_extension(&o, QCOW2_EXT_BACKING_FORMAT, fmt, strlen(fmt));
    }
    if (!err && q->bm.count) {
        uint8_t bitmaps[QX_BYTES];
        qcow2_bitmaps_encode(q, bitmaps);
        err = out_extension(&o, QCOW2_EXT_BITMAPS, bitmaps, sizeof(bitmaps));
    }
    if (!err && q->data_name) {
        err = out_extension(&o, QCOW2_EXT_DATA_FILE, q->data_name, strlen(q->data_name));
    }
    for (const struct qcow2_ext *x = q->exts; !err && x; x = x->next) {
        err = out_extension(&o, x->magic, x->data, x->len);
    }
    /* Last: what changes in an image's life is to lie in the first sector. */
    if (!err && q->features) {
        err = out_extension(&o, QCOW2_EXT_FEATURES, q->features, q->features_len);
    }
    if (!err) {
        err = out_extension(&o, QCOW2_EXT_END, NULL, 0);
    }
    if (err) {
        return err;
    }
    if (name) {
        size_t n = strlen(name), at = name_place(q, o.at, n, len);
        if (n > len - at) {
            return -ENOSPC;
        }
        memcpy(buf + at, name, n);
        q->h.backing_offset = at;
        q->h.backing_size = (uint32_t)n;
    } else {
        q->h.backing_offset = 0;
        q->h.backing_size = 0;
    }
    header_encode(&q->h, buf);
    return 0;
}

/* ---- another backing file ------------------------------------------------------------ */

#define SECTOR 512u

/* Like qcow2_header_build(), giving up the feature names when they are in the way. */
static int build_fitting(struct qcow2 *q, uint8_t *buf, size_t len)
{
    int err = qcow2_header_build(q, buf, len);
    uint32_t names = q->features_len;

    if (err == -ENOSPC && q->features) {
        q->features_len = 0;
        err = qcow2_header_build(q, buf, len);
        q->features_len = names;
    }
    return err;
}

/* The length of the fixed header in a header area: its version need not be q's. */
static size_t length_in(const uint8_t *buf)
{
    return be32(buf + QH_VERSION) < 3 ? QH_V2_END : be32(buf + QH_HEADER_LENGTH);
}

/* Where the extensions in a header area end (after their end mark). */
static size_t extensions_end(const struct qcow2 *q, const uint8_t *buf)
{
    size_t at = length_in(buf), end = q->cluster_size;
    while (end - at >= 8 && be32(buf + at) != QCOW2_EXT_END &&
           blk_align_up(be32(buf + at + 4), 8) <= end - at - 8) {
        at += 8 + blk_align_up(be32(buf + at + 4), 8);
    }
    return BLK_MIN(at + 8, end);
}

/* The first sector of the header that is there, its extensions squeezed into that
 * sector (without the feature names), so that what follows may change.  false: they
 * do not fit. */
static bool squeeze_first(const struct qcow2 *q, const uint8_t *old, uint8_t *first)
{
    struct header_out o = { first, SECTOR, length_in(old) };
    size_t at = length_in(old), end = extensions_end(q, old);
    uint64_t name = be64(old + QH_BACKING_OFFSET);
    int err = 0;

    memset(first, 0, SECTOR);
    memcpy(first, old, length_in(old));
    while (!err && end - at > 8) {
        uint32_t magic = be32(old + at), len = be32(old + at + 4);
        if (magic != QCOW2_EXT_FEATURES) {
            err = out_extension(&o, magic, old + at + 8, len);
        }
        at += 8 + blk_align_up(len, 8);
    }
    err = err ? err : out_extension(&o, QCOW2_EXT_END, NULL, 0);
    /* A name that begins in this sector is not to be moved. */
    return !err && !(name && name < SECTOR);
}

/* Replace the header area old by new. */
static int switch_header(struct qcow2 *q, const uint8_t *old, const uint8_t *new)
{
    size_t end = BLK_MAX(extensions_end(q, old), extensions_end(q, new));
    uint8_t first[SECTOR];
    int err = 0;

    if (q->cluster_size > SECTOR) {
        if (end > SECTOR && memcmp(old + SECTOR, new + SECTOR, end - SECTOR) &&
            squeeze_first(q, old, first)) {
            err = co_write(q->file, 0, first, SECTOR, 0);
            err = err ? err : co_flush(q->file);
        }
        uint64_t name = be64(old + QH_BACKING_OFFSET), len = be32(old + QH_BACKING_SIZE);
        uint8_t *body = blk_buf_alloc(q->cluster_size);
        if (!body) {
            return -ENOMEM;
        }
        memcpy(body, new, q->cluster_size);
        uint64_t at = be64(new + QH_BACKING_OFFSET), n = be32(new + QH_BACKING_SIZE);
        if (name >= extensions_end(q, new) && (!at || at >= name + len || at + n <= name)) {
            memcpy(body + name, old + name, len);       /* still in use until the switch */
        }
        err = err ? err : co_write(q->file, SECTOR, body + SECTOR, q->cluster_size - SECTOR, 0);
        err = err ? err : co_flush(q->file);
        blk_buf_free(body);
    }
    err = err ? err : co_write(q->file, 0, new, SECTOR, 0);
    return err ? err : co_flush(q->file);
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

int qcow2_header_rewrite(struct qcow2 *q)
{
    struct qcow2_header was = q->h;
    uint8_t *old = blk_buf_alloc(q->cluster_size), *new = blk_buf_alloc(q->cluster_size);
    int err = old && new ? 0 : -ENOMEM;

    q->bm.touched = true;
    err = err ? err : co_read(q->file, 0, old, q->cluster_size);
    if (!err) {
        memset(new, 0, q->cluster_size);
        err = build_fitting(q, new, q->cluster_size);
    }
    if (!err && q->h.header_length > QH_FULL) {
        /* Fields younger than we are stay. */
        memcpy(new + QH_FULL, old + QH_FULL, q->h.header_length - QH_FULL);
    }
    err = err ? err : switch_header(q, old, new);
    blk_buf_free(old);
    blk_buf_free(new);
    if (err) {
        q->h.backing_offset = was.backing_offset;
        q->h.backing_size = was.backing_size;
    }
    return err;
}

int qcow2_change_backing(struct blk_node *n, const char *name, const char *format,
                         struct blk_error *e)
{
    struct qcow2 *q = n->state;
    char *old_name = n->backing_name, *old_format = n->backing_format;

    if (same_text(name, old_name) && same_text(format, old_format)) {
        return 0;
    }
    int err = 0;

    if (name && (!*name || strlen(name) > BLK_NAME_MAX || strchr(name, '\n'))) {
        err = -EINVAL;
    } else if (format && strlen(format) >= 16) {
        err = -EINVAL;
    } else if (name && q->h.autoclear & QCOW2_AUTO_RAW) {   /* the data file alone is the content */
        err = -EINVAL;
    }
    n->backing_name = name ? strdup(name) : NULL;
    n->backing_format = format ? strdup(format) : NULL;
    if ((name && !n->backing_name) || (format && !n->backing_format)) {
        err = -ENOMEM;
    }
    err = err ? err : qcow2_header_rewrite(q);
    if (err) {
        free(n->backing_name);
        free(n->backing_format);
        n->backing_name = old_name;
        n->backing_format = old_format;
        return blk_err_errno(e, -err, "Could not change the backing file");
    }
    free(old_name);
    free(old_format);
    return 0;
}

/* ---- checking ------------------------------------------------------------------------ */

/* A name from the image made fit to print. */
static void printable(char *dst, const uint8_t *src, size_t max)
{
    size_t i;
    for (i = 0; i < max && src[i]; i++) {
        dst[i] = src[i] >= 0x20 && src[i] < 0x7f ? (char)src[i] : '?';
    }
    dst[i] = 0;
}

/* Those that the image's own table names, in its order, and the rest as a number. */
static int unknown_features(struct qcow2 *q, uint64_t unknown, struct blk_error *e)
{
    char list[512] = "", name[FEATURE_NAME + 1];
    size_t at = 0;
    for (uint32_t i = 0; i + FEATURE_ENTRY <= q->features_len; i += FEATURE_ENTRY) {
        const uint8_t *f = q->features + i;
        if (f[0] || f[1] > 63 || !(unknown >> f[1] & 1)) {
            continue;
        }
        unknown &= ~(1ull << f[1]);
        printable(name, f + 2, FEATURE_NAME);
        if (at + strlen(name) + 64 < sizeof(list)) {
            at += (size_t)sprintf(list + at, "%s%s", at ? ", " : "", name);
        }
    }
    if (unknown) {
        sprintf(list + at, "%sUnknown incompatible feature: %llx", at ? ", " : "",
                (unsigned long long)unknown);
    }
    return blk_err(e, ENOTSUP, "Unsupported qcow2 feature(s): %s", list);
}

static int check_geometry(const struct qcow2_header *h, struct blk_error *e)
{
    if (h->version < 2 || h->version > 3) {
        return blk_err(e, ENOTSUP, "Unsupported qcow2 version %u", h->version);
    }
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS || h->cluster_bits > QCOW2_MAX_CLUSTER_BITS) {
        return blk_err(e, EINVAL, "Unsupported cluster size: 2^%u", h->cluster_bits);
    }
    if (h->version >= 3 && h->header_length < QH_V3_END) {
        return blk_err(e, EINVAL, "qcow2 header too short");
    }
    if (h->header_length > 1u << h->cluster_bits) {
        return blk_err(e, EINVAL, "qcow2 header exceeds cluster size");
    }
    if (h->header_length % 8) {
        return blk_err(e, EINVAL, "qcow2 header length %u is not a multiple of 8",
                       h->header_length);
    }
    if (h->refcount_order > 6) {
        return blk_err(e, EINVAL,
                       "Reference count entry width too large; may not exceed 64 bits");
    }
    return 0;
}

static int check_features(struct qcow2 *q, struct blk_error *e)
{
    const struct qcow2_header *h = &q->h;
    uint64_t unknown = h->incompatible & ~(uint64_t)QCOW2_INC_KNOWN;
    if (h->compression > 1) {
        return blk_err(e, ENOTSUP, "qcow2: unknown compression type: %u", h->compression);
    }
    if (h->compression && !(h->incompatible & QCOW2_INC_COMPRESSION)) {
        return blk_err(e, EINVAL, "qcow2: Compression type incompatible feature bit must be set");
    }
    if (!h->compression && h->incompatible & QCOW2_INC_COMPRESSION) {
        return blk_err(e, EINVAL,
                       "qcow2: Compression type incompatible feature bit must not be set");
    }
    if (unknown) {
        return unknown_features(q, unknown, e);
    }
    if (q->sub_shift < QCOW2_MIN_CLUSTER_BITS) {
        return blk_err(e, EINVAL, "Unsupported subcluster size: %u", q->sub_size);
    }
    if (h->crypt_method > QCOW2_CRYPT_LUKS) {
        return blk_err(e, EINVAL, "Unsupported encryption method %d", (int)h->crypt_method);
    }
    if (h->incompatible & QCOW2_INC_CORRUPT && q->writable && !(q->n->oflags & BLK_O_CHECK)) {
        return blk_err(e, EACCES, "qcow2: Image is corrupt; cannot be opened read/write");
    }
    return 0;
}

/* A table of bytes at offset: aligned, not in cluster 0, not past the end. */
static int check_table(const struct qcow2 *q, uint64_t offset, uint64_t bytes, uint64_t max,
                       const char *what, struct blk_error *e)
{
    uint64_t end;
    if (bytes > max) {
        return blk_err(e, EFBIG, "%s too large", what);
    }
    if (bytes && (offset & (q->cluster_size - 1) || offset < q->cluster_size ||
                  blk_add_overflow(offset, bytes, &end) || end > INT64_MAX ||
                  offset >= q->file->size)) {
        return blk_err(e, EINVAL, "%s offset invalid", what);
    }
    return 0;
}

static int check_tables(struct qcow2 *q, struct blk_error *e)
{
    const struct qcow2_header *h = &q->h;
    uint64_t per_l2 = (uint64_t)q->cluster_size << q->l2_bits;
    uint64_t need = h->size / per_l2 + !!(h->size % per_l2);
    bool lenient = q->n->oflags & BLK_O_CHECK;
    int err;

    if (h->size > BLK_SIZE_MAX) {
        return blk_err(e, EFBIG, "Image is too big: virtual size %llu",
                       (unsigned long long)h->size);
    }
    if (!h->reft_clusters && !lenient) {
        return blk_err(e, EINVAL, "Image does not contain a reference count table");
    }
    err = check_table(q, h->reft_offset, (uint64_t)h->reft_clusters << h->cluster_bits,
                      QCOW2_MAX_REFTABLE_BYTES, "Reference count table", e);
    if (err) {
        return err;
    }
    if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS && !lenient) {
        return blk_err(e, EFBIG, "Snapshot table too large");
    }
    /* A snapshot record has 40 bytes at least.  What a check finds it says itself. */
    err = lenient ? 0 : check_table(q, h->snap_offset, h->nb_snapshots * 40ull,
                                    QCOW2_MAX_SNAPTABLE_BYTES, "Snapshot table", e);
    if (err) {
        return err;
    }
    err = check_table(q, h->l1_offset, h->l1_size * 8ull, QCOW2_MAX_L1_BYTES, "Active L1 table",
                      e);
    if (err) {
        return err;
    }
    if (need > QCOW2_MAX_L1_BYTES / 8) {
        return blk_err(e, EFBIG, "Image is too big: its L1 table would have %llu entries",
                       (unsigned long long)need);
    }
    if (h->l1_size < need) {
        return blk_err(e, EINVAL, "L1 table is too small");
    }
    return 0;
}

/* ---- extensions and names ----------------------------------------------------------------- */

static int take_backing_format(struct qcow2 *q, const uint8_t *data, uint32_t len,
                               struct blk_error *e)
{
    if (len >= 16) {
        return blk_err(e, EINVAL, "ERROR: ext_backing_format: len=%u too large (>=16)", len);
    }
    len = qcow2_text_length(data, len);
    if (memchr(data, 0, len)) {
        return blk_err(e, EINVAL, "Backing format name holds a NUL byte");
    }
    free(q->n->backing_format);
    q->n->backing_format = len ? strndup((const char *)data, len) : NULL;
    return q->n->backing_format || !len ? 0 : -ENOMEM;
}

static int take_data_name(struct qcow2 *q, const uint8_t *data, uint32_t len, struct blk_error *e)
{
    if (len > BLK_NAME_MAX || memchr(data, 0, len) || memchr(data, '\n', len)) {
        return blk_err(e, EINVAL, len > BLK_NAME_MAX ? "Data file name too long"
                                  : "Data file name holds a NUL or newline byte");
    }
    free(q->data_name);
    q->data_name = len ? strndup((const char *)data, len) : NULL;
    return q->data_name || !len ? 0 : -ENOMEM;
}

static int take_extension(struct qcow2 *q, uint32_t magic, const uint8_t *data, uint32_t len,
                          struct qcow2_ext ***last, struct blk_error *e)
{
    if (magic == QCOW2_EXT_BACKING_FORMAT) {
        return take_backing_format(q, data, len, e);
    }
    if (magic == QCOW2_EXT_FEATURES) {
        free(q->features);
        q->features_len = len - len % FEATURE_ENTRY;
        q->features = malloc(len + 1);
        if (q->features) {
            memcpy(q->features, data, len);
        }
        return q->features ? 0 : -ENOMEM;
    }
    if (magic == QCOW2_EXT_BITMAPS) {
        return qcow2_bitmaps_extension(q, data, len, e);
    }
    if (magic == QCOW2_EXT_DATA_FILE) {
        return take_data_name(q, data, len, e);
    }
    struct qcow2_ext *x = malloc(sizeof(*x) + len);
    if (!x) {
        return -ENOMEM;
    }
    x->magic = magic;
    x->len = len;
    x->next = NULL;
    memcpy(x->data, data, len);
    **last = x;
    *last = &x->next;
    return 0;
}

static int read_extensions(struct qcow2 *q, const uint8_t *buf, uint64_t end, struct blk_error *e)
{
    struct qcow2_ext **last = &q->exts;
    uint64_t at = q->h.header_length;
    unsigned count = 0;

    while (at < end) {
        if (end - at < 8) {
            return blk_err(e, EINVAL, "Header extension at %#llx: no room for its head",
                           (unsigned long long)at);
        }
        uint32_t magic = be32(buf + at), len = be32(buf + at + 4);
        at += 8;
        if (len > end - at) {
            return blk_err(e, EINVAL, "Header extension too large (at %#llx: %u bytes)",
                           (unsigned long long)at - 8, len);
        }
        if (magic == QCOW2_EXT_END) {
            return 0;
        }
        if (++count > QCOW2_MAX_EXTENSIONS) {
            return blk_err(e, EFBIG, "More than %u header extensions", QCOW2_MAX_EXTENSIONS);
        }
        int err = take_extension(q, magic, buf + at, len, &last, e);
        if (err) {
            return err;
        }
        at += blk_align_up(len, 8);
    }
    return 0;
}

static int read_backing_name(struct qcow2 *q, const uint8_t *buf, struct blk_error *e)
{
    uint64_t off = q->h.backing_offset, end;
    uint32_t len = q->h.backing_size;

    if (!off || !len) {
        return 0;
    }
    if (len > BLK_NAME_MAX || blk_add_overflow(off, len, &end) || end > q->cluster_size) {
        return blk_err(e, EINVAL, "Backing file name too long");
    }
    if (off < q->h.header_length) {
        return blk_err(e, EINVAL, "Backing file name lies over the header (at %#llx)",
                       (unsigned long long)off);
    }
    len = qcow2_text_length(buf + off, len);
    for (uint32_t i = 0; i < len; i++) {
        if (buf[off + i] == 0 || buf[off + i] == '\n') {
            return blk_err(e, EINVAL, "Backing file name holds a %s byte (at %#llx)",
                           buf[off + i] ? "newline" : "NUL", (unsigned long long)(off + i));
        }
    }
    q->n->backing_name = len ? strndup((const char *)buf + off, len) : NULL;
    return q->n->backing_name || !len ? 0 : -ENOMEM;
}

int qcow2_header_read(struct qcow2 *q, struct blk_error *e)
{
    uint8_t fixed[QH_FULL];
    int err = co_read(q->file, 0, fixed, sizeof(fixed));

    if (err) {
        return blk_err_errno(e, -err, "Could not read qcow2 header");
    }
    if (be32(fixed) != QCOW2_MAGIC) {
        return blk_err(e, EINVAL, "Image is not in qcow2 format");
    }
    qcow2_header_decode(fixed, &q->h);
    err = check_geometry(&q->h, e);
    if (err) {
        return err;
    }
    if (q->file->size < q->h.header_length) {
        return blk_err(e, EINVAL, "qcow2 header is truncated: the file has %llu bytes",
                       (unsigned long long)q->file->size);
    }
    set_geometry(q);
    if (q->h.backing_offset > q->cluster_size) {
        return blk_err(e, EINVAL, "Invalid backing file offset");
    }
    uint8_t *buf = blk_buf_alloc(q->cluster_size);
    if (!buf) {
        return -ENOMEM;
    }
    err = co_read(q->file, 0, buf, q->cluster_size);
    if (err) {
        blk_err_errno(e, -err, "Could not read qcow2 header");
    } else {
        bool named = q->h.backing_offset && q->h.backing_size;
        err = read_extensions(q, buf, named && q->h.backing_offset >= q->h.header_length
                                          ? q->h.backing_offset : q->cluster_size, e);
    }
    err = err ? err : check_features(q, e);
    err = err ? err : check_tables(q, e);
    err = err ? err : read_backing_name(q, buf, e);
    blk_buf_free(buf);
    return err;
}
