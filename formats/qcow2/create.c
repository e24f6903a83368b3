/*
 * create.c - a new image, and what one would need (measure).
 *
 * Layout: header, refcount table, refcount blocks, L1 table: all of it is known from the
 * size, so it is computed once and written front to back.  With preallocation or encryption,
 * or more than one refcount block, that is an image of no bytes, which then grows as any other
 * does and gets its LUKS header last: so everything comes to lie where QEMU puts it.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* In QEMU's order: "Formatting ..." prints them so. */
const struct blk_option_desc qcow2_create_opts[] = {
    { "encryption", BLK_OPT_BOOL,
      "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)", NULL },
    { "encrypt.format", BLK_OPT_STRING, "Encrypt the image, format choices: 'aes', 'luks'", NULL },
    { "encrypt.key-secret", BLK_OPT_STRING,
      "ID of secret providing qcow AES key or LUKS passphrase", NULL },
    { "encrypt.cipher-alg", BLK_OPT_STRING, "Name of encryption cipher algorithm", NULL },
    { "encrypt.cipher-mode", BLK_OPT_STRING, "Name of encryption cipher mode", NULL },
    { "encrypt.ivgen-alg", BLK_OPT_STRING, "Name of IV generator algorithm", NULL },
    { "encrypt.ivgen-hash-alg", BLK_OPT_STRING, "Name of IV generator hash algorithm", NULL },
    { "encrypt.hash-alg", BLK_OPT_STRING, "Name of encryption hash algorithm", NULL },
    { "encrypt.iter-time", BLK_OPT_NUMBER, "Time to spend in PBKDF in milliseconds", NULL },
    { "cluster_size", BLK_OPT_SIZE, "qcow2 cluster size", "65536" },
    { "extended_l2", BLK_OPT_BOOL, "Extended L2 tables", "off" },
    { "preallocation", BLK_OPT_STRING,
      "Preallocation mode (allowed values: off, metadata, falloc, full)", NULL },
    { "compression_type", BLK_OPT_STRING, "Compression method used for image cluster compression",
      "zlib" },
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "compat", BLK_OPT_STRING, "Compatibility level (v2 [0.10] or v3 [1.1])", NULL },
    { "backing_file", BLK_OPT_STRING, "File name of a base image", NULL },
    { "backing_fmt", BLK_OPT_STRING, "Image format of the base image", NULL },
    { "data_file", BLK_OPT_STRING, "File name of an external data file", NULL },
    { "data_file_raw", BLK_OPT_BOOL,
      "The external data file must stay valid as a raw image", NULL },
    { "lazy_refcounts", BLK_OPT_BOOL, "Postpone refcount updates", "off" },
    { "refcount_bits", BLK_OPT_NUMBER, "Width of a reference count entry in bits", "16" },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

struct create {
    struct qcow2_header h;
    const char *backing, *backing_fmt, *data_file;
    struct qcow2_crypt_create *crypt;       /* LUKS */
    enum blk_prealloc prealloc;
    bool measure;                           /* QEMU checks less then: so does this */
    uint64_t cluster, per_block;            /* bytes, counts */
    uint64_t l1, blocks, reft, total;       /* in clusters */
};

/* ---- options ---------------------------------------------------------------------------- */

static int take_compat(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    const char *v = blk_opts_get(o, "compat");
    if (!v || !strcmp(v, "1.1") || !strcmp(v, "v3")) {
        c->h.version = 3;
    } else if (!strcmp(v, "0.10") || !strcmp(v, "v2")) {
        c->h.version = 2;
    } else {
        return blk_err(e, EINVAL, c->measure ? "Invalid compatibility level: '%s'"
                                             : "Parameter 'version' does not accept value '%s'", v);
    }
    c->h.header_length = c->h.version < 3 ? QH_V2_END : QH_FULL;
    return 0;
}

static int take_cluster_size(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    uint64_t cs = 65536, min = 1u << (QCOW2_MIN_CLUSTER_BITS + QCOW2_SUB_BITS);
    bool wide = false;
    int err = blk_opts_get_size(o, "cluster_size", &cs, e);
    err = err ? err : blk_opts_get_bool(o, "extended_l2", &wide, e);
    if (err) {
        return err;
    }
    if (wide && c->h.version < 3 && !c->measure) {
        return blk_err(e, EINVAL, "Extended L2 entries are only supported with compatibility "
                       "level 1.1 and above (use version=v3 or greater)");
    }
    if (cs & (cs - 1) || cs < 1u << QCOW2_MIN_CLUSTER_BITS || cs > 1u << QCOW2_MAX_CLUSTER_BITS) {
        return blk_err(e, EINVAL, "Cluster size must be a power of two between %d and %dk",
                       1 << QCOW2_MIN_CLUSTER_BITS, 1 << (QCOW2_MAX_CLUSTER_BITS - 10));
    }
    if (wide && cs < min) {
        return blk_err(e, EINVAL, "Extended L2 entries are only supported with cluster sizes of "
                       "at least %u bytes", (unsigned)min);
    }
    c->h.incompatible |= wide ? QCOW2_INC_EXTL2 : 0;
    c->cluster = cs;
    c->h.cluster_bits = (uint32_t)__builtin_ctzll(cs);
    return 0;
}

static int take_refcounts(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    uint64_t bits = 16;
    bool lazy = false;
    int err = blk_opts_get_u64(o, "refcount_bits", &bits, e);
    err = err ? err : blk_opts_get_bool(o, "lazy_refcounts", &lazy, e);
    if (err) {
        return err;
    }
    if (!bits || bits > 64 || bits & (bits - 1)) {
        return blk_err(e, EINVAL,
                       "Refcount width must be a power of two and may not exceed 64 bits");
    }
    if (c->h.version < 3 && bits != 16) {
        return blk_err(e, EINVAL, "Different refcount widths than 16 bits require compatibility "
                       "level 1.1 or above (use %s or greater)",
                       c->measure ? "compat=1.1" : "version=v3");
    }
    if (c->h.version < 3 && lazy && !c->measure) {
        return blk_err(e, EINVAL, "Lazy refcounts only supported with compatibility level 1.1 "
                       "and above (use version=v3 or greater)");
    }
    c->h.refcount_order = (uint32_t)__builtin_ctzll(bits);
    c->h.compatible |= lazy ? QCOW2_COMPAT_LAZY : 0;
    return 0;
}

static int take_compression(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    const char *v = blk_opts_get(o, "compression_type");
    if (!v || !strcmp(v, "zlib") || c->measure) {
        return 0;
    }
    if (c->h.version < 3) {
        return blk_err(e, EINVAL, "Non-zlib compression type is only supported with "
                       "compatibility level 1.1 and above (use version=v3 or greater)");
    }
    c->h.compression = 1;
    c->h.incompatible |= QCOW2_INC_COMPRESSION;
    return 0;
}

static int not_assigned(const struct create *c, int err, struct blk_error *e)
{
    return blk_err_errno(e, err, "Could not assign backing file '%s' with format '%s'",
                         c->backing, c->backing_fmt ? c->backing_fmt : "");
}

static int take_backing(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    c->backing = blk_opts_get(o, "backing_file");
    c->backing_fmt = blk_opts_get(o, "backing_fmt");
    if (c->backing && !*c->backing) {
        c->backing = NULL;
    }
    if (c->measure) {
        return 0;
    }
    if (c->backing_fmt && !c->backing) {
        return blk_err(e, EINVAL, "Backing format cannot be used without backing file");
    }
    if (c->backing && c->prealloc != BLK_PREALLOC_OFF &&
        !(c->h.incompatible & QCOW2_INC_EXTL2)) {
        return blk_err(e, EINVAL, "Backing file and preallocation can only be used at the same "
                       "time if extended_l2 is on");
    }
    if ((c->backing && strlen(c->backing) > BLK_NAME_MAX) ||
        (c->backing_fmt && strlen(c->backing_fmt) > 15)) {
        return not_assigned(c, EINVAL, e);
    }
    return 0;
}

static int take_data_file(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    bool raw = false;
    int err = blk_opts_get_bool(o, "data_file_raw", &raw, e);

    c->data_file = blk_opts_get(o, "data_file");
    if (err) {
        return err;
    }
    if (raw && !c->data_file) {
        return blk_err(e, EINVAL, "data-file-raw requires data-file");
    }
    if (raw && c->backing) {
        return blk_err(e, EINVAL,
                       "Backing file and data-file-raw cannot be used at the same time");
    }
    if (c->data_file && c->h.version < 3) {
        return blk_err(e, EINVAL, "External data files are only supported with compatibility "
                       "level 1.1 and above (use version=v3 or greater)");
    }
    if (c->data_file && strlen(c->data_file) > BLK_NAME_MAX) {
        return blk_err(e, EINVAL, "Data file name too long");
    }
    c->h.incompatible |= c->data_file ? QCOW2_INC_DATA_FILE : 0;
    c->h.autoclear |= raw ? QCOW2_AUTO_RAW : 0;
    if (raw && c->prealloc == BLK_PREALLOC_OFF) {
        c->prealloc = BLK_PREALLOC_METADATA;        /* all of it counts */
    }
    return 0;
}

static uint64_t div_up(uint64_t a, uint64_t b)
{
    return a / b + !!(a % b);
}

static uint64_t per_l2(const struct create *c)
{
    return c->cluster / (c->h.incompatible & QCOW2_INC_EXTL2 ? 16 : 8);
}

/* Sizes of everything in the image as it is written at first: of h.size, nothing mapped. */
static void lay_out(struct create *c)
{
    c->per_block = c->cluster * 8 >> c->h.refcount_order;
    c->h.l1_size = (uint32_t)div_up(c->h.size, c->cluster * per_l2(c));
    c->l1 = div_up(c->h.l1_size * 8ull, c->cluster);
    c->reft = c->blocks = 1;
    for (;;) {
        c->total = 1 + c->reft + c->blocks + c->l1;
        uint64_t blocks = div_up(c->total, c->per_block), reft = div_up(blocks * 8, c->cluster);
        if (blocks <= c->blocks && reft <= c->reft) {
            break;
        }
        c->blocks = BLK_MAX(blocks, c->blocks);
        c->reft = BLK_MAX(reft, c->reft);
    }
    c->h.reft_offset = c->cluster;
    c->h.reft_clusters = (uint32_t)c->reft;
    c->h.l1_offset = c->l1 ? (1 + c->reft + c->blocks) * c->cluster : 0;
}

static int take_size(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    uint64_t size = 0;
    int err = blk_opts_get_size(o, "size", &size, e);
    if (err) {
        return err;
    }
    if (!c->measure && size > BLK_SIZE_MAX) {
        return blk_err(e, EIO, "Could not resize image: Image size cannot be negative");
    }
    if (!c->measure && blk_align_up(size, 512) > BLK_LENGTH_MAX) {
        return blk_err(e, EIO, "Could not resize image: offset(%llu) exceeds maximum(%lld)",
                       (unsigned long long)blk_align_up(size, 512), BLK_LENGTH_MAX);
    }
    if (size > BLK_SIZE_MAX ||
        div_up(size, c->cluster * per_l2(c)) * 8 > QCOW2_MAX_L1_BYTES) {
        err = blk_err(e, EFBIG, "Could not resize image: Image is too big");
        blk_error_hint(e, "A larger cluster_size allows larger images");
        return err;
    }
    c->h.size = blk_align_up(size, 512);
    return 0;
}

/* In QEMU's order: what is one of a few words is looked at before what it means. */
static int take_created(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    const char *fmt = blk_opts_get(o, "backing_fmt"), *p = blk_opts_get(o, "preallocation");
    const char *crypt = blk_opts_get(o, "encrypt.format");
    const char *type = blk_opts_get(o, "compression_type");
    int err = take_compat(c, o, e);

    if (!err && fmt && !blk_driver_known(fmt)) {
        err = blk_err(e, EINVAL, "Parameter 'backing-fmt' does not accept value '%s'", fmt);
    }
    if (!err && crypt && strcmp(crypt, "luks") && strcmp(crypt, "aes") && strcmp(crypt, "qcow")) {
        err = blk_err(e, EINVAL, "Parameter 'format' does not accept value '%s'", crypt);
    }
    err = err || !p ? err : blk_parse_prealloc(p, &c->prealloc, e);
    if (!err && type && strcmp(type, "zlib") && strcmp(type, "zstd")) {
        err = blk_err(e, EINVAL, "Parameter 'compression-type' does not accept value '%s'", type);
    }
    err = err ? err : take_cluster_size(c, o, e);
    err = err ? err : take_backing(c, o, e);
    return err ? err : take_refcounts(c, o, e);
}

/* The same for "measure", which has an order of its own. */
static int take_measured(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    const char *p = blk_opts_get(o, "preallocation"), *crypt = blk_opts_get(o, "encrypt.format");

    blk_opts_del(o, "encryption");
    if (!crypt || strcmp(crypt, "luks")) {
        blk_opts_free(blk_opts_take(o, "encrypt."));    /* it would have no header */
    }
    int err = take_cluster_size(c, o, e);
    err = err ? err : take_compat(c, o, e);
    err = err ? err : take_refcounts(c, o, e);
    if (!err && p && blk_parse_prealloc(p, &c->prealloc, NULL)) {
        err = blk_err(e, EINVAL, "invalid parameter value: %s", p);
    }
    return err ? err : take_backing(c, o, e);
}

static int take_options(struct create *c, struct blk_opts *o, bool measure, struct blk_error *e)
{
    c->measure = measure;
    int err = measure ? take_measured(c, o, e) : take_created(c, o, e);
    err = err ? err : take_data_file(c, o, e);
    err = err ? err : take_compression(c, o, e);
    err = err ? err : take_size(c, o, e);
    return err ? err
               : qcow2_crypt_create_options(o, !measure, &c->h.crypt_method, &c->crypt, e);
}

/* ---- writing ------------------------------------------------------------------------------- */

static int build_header(struct create *c, uint8_t *buf, struct blk_error *e)
{
    struct blk_node names = { .backing_name = (char *)(uintptr_t)c->backing,
                              .backing_format = (char *)(uintptr_t)c->backing_fmt };
    struct qcow2 q = { .n = &names, .h = c->h, .data_name = (char *)(uintptr_t)c->data_file };
    if (qcow2_names_features(&c->h)) {
        q.features = (uint8_t *)(uintptr_t)qcow2_feature_table;
        q.features_len = sizeof(qcow2_feature_table);
    }
    int err = qcow2_header_build(&q, buf, c->cluster);
    if (err == -ENOSPC && c->backing) {
        return not_assigned(c, ENOSPC, e);
    }
    if (err == -ENOSPC) {
        return blk_err_errno(e, ENOSPC, "Could not update qcow2 header");
    }
    return err;
}

static int write_reft(const struct create *c, struct blk_node *file, uint8_t *buf)
{
    int err = 0;
    for (uint64_t i = 0; !err && i < c->reft; i++) {
        memset(buf, 0, c->cluster);
        for (uint64_t k = 0; k < c->cluster / 8; k++) {
            uint64_t b = i * (c->cluster / 8) + k;
            put_be64(buf + k * 8, b < c->blocks ? (1 + c->reft + b) * c->cluster : 0);
        }
        err = co_write(file, (1 + i) * c->cluster, buf, c->cluster, 0);
    }
    return err;
}

static int write_blocks(const struct create *c, struct blk_node *file, uint8_t *buf)
{
    struct qcow2 q = { .h = c->h };
    int err = 0;
    for (uint64_t i = 0; !err && i < c->blocks; i++) {
        memset(buf, 0, c->cluster);
        for (uint64_t k = 0; k < c->per_block && i * c->per_block + k < c->total; k++) {
            qcow2_refcount_put(&q, buf, k, 1);
        }
        err = co_write(file, (1 + c->reft + i) * c->cluster, buf, c->cluster, 0);
    }
    return err;
}

static int write_l1(const struct create *c, struct blk_node *file, uint8_t *buf)
{
    uint64_t at = c->h.l1_offset, left = c->h.l1_size * 8ull;
    int err = 0;

    memset(buf, 0, c->cluster);
    for (uint64_t n; !err && left; left -= n, at += n) {
        n = BLK_MIN(left, c->cluster);
        err = co_write(file, at, buf, n, 0);
    }
    return err;
}

static int create_write(struct create *c, struct blk_node *file, const uint8_t *header,
                        struct blk_error *e)
{
    uint8_t *buf = blk_buf_alloc(c->cluster);
    int err = buf ? 0 : -ENOMEM;

    err = err ? err : write_reft(c, file, buf);
    err = err ? err : write_blocks(c, file, buf);
    err = err ? err : write_l1(c, file, buf);
    /* The header last: until then it is no image. */
    err = err ? err : co_flush(file);
    err = err ? err : co_write(file, 0, header, c->cluster, 0);
    blk_buf_free(buf);
    return err ? blk_err_errno(e, -err, "Could not write qcow2 metadata") : 0;
}

/* ---- what the image does itself ----------------------------------------------------------- */

/* The LUKS header in clusters of its own; key slots that are not used are not written, but
 * counted. */
static int add_crypt_header(struct create *c, struct qcow2 *q, struct blk_error *e)
{
    uint64_t clusters = div_up(qcow2_crypt_create_bytes(c->crypt), c->cluster);
    struct qcow2_space at;
    int err = qcow2_alloc(q, clusters, true, &at);

    err = err ? err : qcow2_flush(q);
    if (!err && at.offset + clusters * c->cluster > q->file->size) {
        err = blk_truncate(q->file, at.offset + clusters * c->cluster, false, BLK_PREALLOC_OFF, e);
    }
    return err ? err : qcow2_crypt_create_write(c->crypt, q->file, at.offset, &q->exts, e);
}

static int finish(struct create *c, struct blk_node *n, uint64_t size, uint32_t crypt_method,
                  struct blk_error *e)
{
    struct qcow2 *q = n->state;
    int err = qcow2_truncate(n, size, false, c->prealloc, e);

    if (err) {
        blk_error_prefix(e, "Could not resize image: ");
    } else if (crypt_method) {
        err = c->crypt ? add_crypt_header(c, q, e) : 0;
        q->h.crypt_method = crypt_method;
        err = err ? err : qcow2_header_rewrite(q);
    }
    co_drain(n);
    int r = blk_qcow2.close(n, err ? NULL : e);
    return err ? err : r;
}

/* Opens the image, of no bytes and not encrypted yet, and makes of it what it is to be. */
static int grow_up(struct create *c, struct blk_node *file, uint64_t size, uint32_t crypt_method,
                   struct blk_error *e)
{
    struct blk_node *n = blk_between_new(file, &blk_qcow2, NULL);
    struct blk_opts *o = blk_opts_new();
    int err;

    if (c->data_file) {
        blk_opts_set(o, "data-file.filename", c->data_file);
    }
    err = n ? blk_qcow2.open(n, o, e) : -ENOMEM;
    err = err ? err : finish(c, n, size, crypt_method, e);
    int r = n ? blk_close(n->data_file, err ? NULL : e) : 0;
    blk_between_free(n);
    blk_opts_free(o);
    return err ? blk_err_errno(e, -err, "Could not make the image") : r;
}

/* An empty data file; of the image's size where nothing is mapped to it. */
static int create_data_file(struct create *c, struct blk_loop *l, struct blk_opts *o,
                            struct blk_error *e)
{
    struct blk_node *data;
    int err = blk_create_file(l, c->data_file, o, &data, e);

    if (err) {
        return err;
    }
    err = blk_truncate(data, c->h.size, true, BLK_PREALLOC_OFF, e);
    if (err) {
        blk_error_prefix(e, "Could not resize image: ");
    }
    int r = blk_close(data, err ? NULL : e);
    return err ? err : r;
}

static void create_free(struct create *c)
{
    free(c->crypt);
}

static int create_all(struct create *c, struct blk_loop *l, struct blk_node *file,
                      struct blk_opts *o, struct blk_error *e)
{
    int err = take_options(c, o, false, e);
    uint64_t size = c->h.size;
    uint32_t crypt_method = c->h.crypt_method;

    if (err) {
        return err;
    }
    lay_out(c);
    bool more = c->prealloc != BLK_PREALLOC_OFF || crypt_method || c->blocks > 1;
    if (more) {
        c->h.size = c->h.crypt_method = 0;
        lay_out(c);
    }
    uint8_t *header = blk_buf_alloc(c->cluster);
    /* It may have no room for the names: seen before a data file is touched. */
    err = header ? build_header(c, header, e) : -ENOMEM;
    err = err || !c->data_file ? err : create_data_file(c, l, o, e);
    err = err ? err : create_write(c, file, header, e);
    blk_buf_free(header);
    return err || !more ? err : grow_up(c, file, size, crypt_method, e);
}

int qcow2_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                 struct blk_error *e)
{
    struct create c = { 0 };
    int err = create_all(&c, l, file, o, e);
    create_free(&c);
    return err;
}

/* ---- for an image that is written forward (stream.c) ------------------------------------------- */

int qcow2_create_plan(struct blk_opts *o, struct qcow2_header *h, struct blk_error *e)
{
    struct create c = { 0 };
    int err = take_options(&c, o, false, e);

    if (!err && c.backing) {
        err = blk_err(e, ENOTSUP, "An image that is written to a pipe cannot have a backing file");
    } else if (!err && (c.prealloc != BLK_PREALLOC_OFF ||
                        c.h.incompatible & QCOW2_INC_DATA_FILE || c.h.crypt_method)) {
        err = blk_err(e, ENOTSUP, "An image that is written to a pipe cannot be preallocated, "
                      "encrypted or have a data file");
    }
    if (!err) {
        lay_out(&c);
    }
    *h = c.h;
    create_free(&c);
    return err;
}

int qcow2_create_header(const struct qcow2_header *h, uint8_t *buf, struct blk_error *e)
{
    struct create c = { .h = *h, .cluster = 1ull << h->cluster_bits };
    return build_header(&c, buf, e);
}

/* ---- measure ---------------------------------------------------------------------------------- */

/* Guest clusters of src that need a host cluster. */
static int count_allocated(struct blk_node *src, uint64_t cluster, uint64_t size, uint64_t *out)
{
    uint64_t off = 0, next = 0;
    *out = 0;
    while (off < BLK_MIN(src->size, size)) {
        struct blk_status st;
        int err = co_status_above(src, NULL, off, BLK_MIN(src->size, size) - off, &st);
        if (err) {
            return err;
        }
        if (!(st.flags & BLK_ST_ZERO) && st.flags & BLK_ST_ALLOCATED) {
            uint64_t first = BLK_MAX(off / cluster, next), end = div_up(off + st.length, cluster);
            *out += end > first ? end - first : 0;
            next = BLK_MAX(next, end);
        }
        off += st.length;
    }
    return 0;
}

/* QEMU's estimate for a full image: header, tables for every cluster, data. */
static uint64_t measure_file(struct create *c, uint64_t data)
{
    uint64_t all = div_up(c->h.size, c->cluster), entries = c->cluster / 8;
    uint64_t l2 = div_up(all, per_l2(c)), l1 = div_up(l2 * 8, c->cluster);
    uint64_t meta = 1 + l2 + l1, n = meta + all, blocks = 0, reft = 0, last;
    c->per_block = c->cluster * 8 >> c->h.refcount_order;
    do {
        last = blocks + reft;
        blocks = div_up(n + last, c->per_block);
        reft = div_up(blocks, entries);
    } while (blocks + reft != last);
    return (meta + blocks + reft + data) * c->cluster;
}

int qcow2_measure(struct blk_loop *l, struct blk_node *src, struct blk_opts *o,
                  struct blk_measure *out, struct blk_error *e)
{
    struct create c = { 0 };
    uint64_t data = 0;

    blk_opts_del(o, "data_file");               /* data takes its space anywhere */
    blk_opts_del(o, "data_file_raw");
    if (src) {
        blk_opts_setf(o, "size", "%llu", (unsigned long long)src->size);
    }
    int err = take_options(&c, o, true, e);
    uint64_t header = err ? 0 : blk_align_up(qcow2_crypt_create_bytes(c.crypt), c.cluster);
    bool overlay = c.backing;               /* what zeros stand for then is not known: all */
    create_free(&c);
    if (err == -EFBIG) {
        blk_error_clear(e);
        blk_err(e, EFBIG, "The image size is too large (try using a larger cluster size)");
    }
    if (!err && src) {
        data = div_up(c.h.size, c.cluster);
        int r = overlay ? 0 : count_allocated(src, c.cluster, c.h.size, &data);
        err = r ? blk_err_errno(e, -r, "Unable to get block status") : 0;
    }
    if (err) {
        return err;
    }
    out->has_bitmaps = c.h.version >= 3 && src && blk_has_bitmaps(src);
    out->bitmaps = out->has_bitmaps && src->drv == &blk_qcow2
                       ? qcow2_bitmaps_measure(src, c.cluster) : 0;
    out->fully_allocated = measure_file(&c, div_up(c.h.size, c.cluster));
    bool all = c.prealloc == BLK_PREALLOC_FULL || c.prealloc == BLK_PREALLOC_FALLOC;
    out->required = all ? out->fully_allocated : measure_file(&c, data);
    out->fully_allocated += header;
    out->required += header;
    return 0;
}
