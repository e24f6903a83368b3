/*
 * qcow.c - the first version of QEMU's copy-on-write format: a header, an L1 table, L2
 * tables of 64-bit places, clusters that may be deflated.  Big endian.  qcow2 is a format
 * of its own.
 *
 * Invariants
 *  - A new L2 table is durable, all absent, before the L1 entry that names it is written.
 *  - No entry may name the header or the L1 table; no L1 entry a place outside the file.
 */
#include "formats/blockmap.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define QCOW_MAGIC      0x514649fbu
#define QCOW_DEFLATED   (1ull << 63)
#define QCOW_AES        1u

/* The header; the backing file's name follows. */
enum {
    QH_MAGIC = 0, QH_VERSION = 4, QH_BACKING = 8, QH_BACKING_LEN = 16, QH_SIZE = 24,
    QH_CLUSTER_BITS = 32, QH_L2_BITS = 33, QH_CRYPT = 36, QH_L1 = 40, QH_BYTES = 48,
};

struct qcow {
    struct blockmap map;            /* first: see bm_of() */
    unsigned cluster_bits, l2_bits;
    uint64_t l1_offset, l1_size;
    uint64_t *l1;                   /* host order */
    uint64_t packed;                /* behind the compressed cluster written last, 0: none */
    uint8_t *inflated;              /* one cluster, of the entry below */
    uint64_t inflated_entry;        /* 0: none */
};

static struct qcow *qcow_of(const struct blockmap *m)
{
    return blk_container_of(m, struct qcow, map);
}

/* ---- tables ------------------------------------------------------------------------------ */

/* Does [off, off+len) touch the header or the L1 table? */
static bool over_head(const struct qcow *q, uint64_t off, uint64_t len)
{
    return off < QH_BYTES || (off < q->l1_offset + q->l1_size * 8 && q->l1_offset < off + len);
}

static uint64_t qcow_decode(const struct blockmap *m, const uint8_t *raw)
{
    uint64_t e = be64(raw);
    if (!e) {
        return BM_ABSENT;
    }
    if (e & QCOW_DEFLATED) {
        return e < BM_BAD ? e : BM_BAD;     /* a special value as it is */
    }
    return e % 512 || !bm_is_data(e) || over_head(qcow_of(m), e, m->block_size) ? BM_BAD : e;
}

static void qcow_encode(const struct blockmap *m, uint64_t v, uint8_t *raw)
{
    put_be64(raw, bm_is_data(v) || bm_is_special(v) ? v : 0);
}

static uint64_t qcow_page_at(const struct blockmap *m, uint64_t i)
{
    return qcow_of(m)->l1[i];
}

static int qcow_page_make(struct blockmap *m, uint64_t i)
{
    struct qcow *q = qcow_of(m);
    size_t len = (size_t)8 << q->l2_bits;
    uint64_t at = m->next;
    uint8_t *zeros = calloc(1, len), entry[8];

    if (!zeros) {
        return -ENOMEM;
    }
    m->next = blk_align_up(at + len, m->block_size);
    int err = co_write(m->file, at, zeros, len, 0);
    err = err ? err : co_flush(m->file);
    put_be64(entry, at);
    err = err ? err : co_write(m->file, q->l1_offset + i * 8, entry, 8, 0);
    if (!err) {
        q->l1[i] = at;
    }
    free(zeros);
    return err;
}

/* ---- deflated clusters -------------------------------------------------------------------- */

/* A whole cluster of raw deflate. */
static int inflate_cluster(const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
    z_stream z = { .next_in = (uint8_t *)(uintptr_t)in, .avail_in = (uInt)in_len,
                   .next_out = out, .avail_out = (uInt)out_len };
    if (inflateInit2(&z, -15) != Z_OK) {
        return -ENOMEM;
    }
    int r = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return (r == Z_STREAM_END || r == Z_BUF_ERROR) && !z.avail_out ? 0 : -EIO;
}

static int read_deflated(struct qcow *q, uint64_t entry, uint8_t *out)
{
    unsigned shift = 63 - q->cluster_bits;
    uint64_t off = entry & ((1ull << shift) - 1);
    size_t len = (size_t)(entry >> shift & (q->map.block_size - 1));
    uint8_t *in = malloc(len ? len : 1);
    int err = in ? 0 : -ENOMEM;

    err = err || !len ? err : co_read(q->map.file, off, in, len);
    err = err ? err : inflate_cluster(in, len, out, q->map.block_size);
    free(in);
    if (err == -EIO) {
        blk_report("%s: the compressed cluster at offset %#llx cannot be inflated",
                   q->map.n->shown, (unsigned long long)off);
    }
    return err;
}

static int qcow_read_special(struct blockmap *m, uint64_t block, uint64_t v, uint64_t in,
                             const struct iovec *iov, int cnt, uint64_t pos, uint64_t len)
{
    struct qcow *q = qcow_of(m);
    if (q->inflated_entry != v) {
        uint8_t *fresh = malloc(m->block_size);
        int err = fresh ? read_deflated(q, v, fresh) : -ENOMEM;
        if (err) {
            free(fresh);
            return err;
        }
        free(q->inflated);
        q->inflated = fresh;
        q->inflated_entry = v;
    }
    blk_iov_from_buf(iov, cnt, pos, q->inflated + in, len);
    return 0;
}

struct deflating {
    const uint8_t *in;
    uint8_t *out;                   /* as long */
    size_t len, out_len;            /* out_len 0: does not get shorter */
    int err;
};

/* A window of 4 KiB, as QEMU has it: other readers may know no larger one. */
static void deflate_run(void *arg)
{
    struct deflating *d = arg;
    z_stream z = { .next_in = (uint8_t *)(uintptr_t)d->in, .avail_in = (uInt)d->len,
                   .next_out = d->out, .avail_out = (uInt)d->len - 1 };

    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK) {
        d->err = -ENOMEM;
        return;
    }
    d->out_len = deflate(&z, Z_FINISH) == Z_STREAM_END ? z.total_out : 0;
    deflateEnd(&z);
}

/* Compressed clusters follow each other in sectors of their own, as long as nothing else
 * took the space behind. */
static int qcow_write_special(struct blockmap *m, const uint8_t *buf, uint64_t *v)
{
    struct qcow *q = qcow_of(m);
    unsigned shift = 63 - q->cluster_bits;
    struct deflating d = { .in = buf, .len = m->block_size, .out = malloc(m->block_size) };

    if (!d.out) {
        return -ENOMEM;
    }
    co_work(deflate_run, &d);
    int err = d.err;
    if (!err && d.out_len) {
        uint64_t at = q->packed && blk_align_up(q->packed, m->block_size) == m->next ? q->packed
                                                                                       : m->next;
        if ((at + d.out_len) >> (shift - 1)) {      /* a special value as it is, see decode */
            err = -EFBIG;
        }
        q->packed = blk_align_up(at + d.out_len, 512);
        m->next = blk_align_up(q->packed, m->block_size);
        err = err ? err : co_write(m->file, at, d.out, d.out_len, 0);
        *v = QCOW_DEFLATED | (uint64_t)d.out_len << shift | at;
    }
    free(d.out);
    return err;
}

static const struct blockmap_ops qcow_map_ops = {
    .decode = qcow_decode,
    .encode = qcow_encode,
    .page_at = qcow_page_at,
    .page_make = qcow_page_make,
    .read_special = qcow_read_special,
    .write_special = qcow_write_special,
};

/* ---- open ------------------------------------------------------------------------------------ */

static int qcow_probe(const uint8_t *buf, size_t len)
{
    return len >= QH_BYTES && be32(buf) == QCOW_MAGIC && be32(buf + QH_VERSION) == 1 ? 100 : 0;
}

static int check_kind(const uint8_t *h, struct blk_error *e)
{
    uint32_t version = be32(h + QH_VERSION);
    if (be32(h) != QCOW_MAGIC) {
        return blk_err(e, EINVAL, "Image not in qcow format");
    }
    if (version != 1) {
        blk_err(e, ENOTSUP, "qcow (v1) does not support qcow version %u", version);
        if (version == 2 || version == 3) {
            blk_error_hint(e, "Try the 'qcow2' driver instead.");
        }
        return -ENOTSUP;
    }
    return 0;
}

static int check_header(const uint8_t *h, struct blk_error *e)
{
    int err = check_kind(h, e);
    if (err) {
        return err;
    }
    if (be64(h + QH_SIZE) <= 1) {
        return blk_err(e, EINVAL, "Image size is too small (must be at least 2 bytes)");
    }
    if (h[QH_CLUSTER_BITS] < 9 || h[QH_CLUSTER_BITS] > 16) {
        return blk_err(e, EINVAL, "Cluster size must be between 512 and 64k");
    }
    if (h[QH_L2_BITS] < 6 || h[QH_L2_BITS] > 13) {
        return blk_err(e, EINVAL, "L2 table size must be between 512 and 64k");
    }
    if (be32(h + QH_CRYPT) == QCOW_AES) {
        return blk_err(e, ENOTSUP, "Encrypted qcow images are not supported");
    }
    if (be32(h + QH_CRYPT)) {
        return blk_err(e, EINVAL, "invalid encryption method in qcow header");
    }
    return 0;
}

static int check_l1(const struct qcow *q, struct blk_error *e)
{
    uint64_t len = 8ull << q->l2_bits, end = q->map.file->size;
    for (uint64_t i = 0; i < q->l1_size; i++) {
        uint64_t at = q->l1[i];
        if (at && (at > end || end - at < len || over_head(q, at, len))) {
            return blk_err(e, EINVAL, "L1 entry %llu names an L2 table at offset %#llx, which is "
                           "not within the file or over its header", (unsigned long long)i,
                           (unsigned long long)at);
        }
    }
    return 0;
}

static int read_l1(struct qcow *q, const struct blk_node *n, struct blk_error *e)
{
    uint64_t size = q->map.blocks, end;
    q->l1_size = (size + (1ull << q->l2_bits) - 1) >> q->l2_bits;
    if (q->l1_size > BM_PAGES_MAX) {
        return blk_err(e, EINVAL, "Image too large");
    }
    if (blk_add_overflow(q->l1_offset, q->l1_size * 8, &end) || end > n->file->size ||
        q->l1_offset < QH_BYTES) {
        return blk_err(e, EINVAL, "L1 table (%llu entries at offset %#llx) is not within the file",
                       (unsigned long long)q->l1_size, (unsigned long long)q->l1_offset);
    }
    q->l1 = malloc(q->l1_size * 8);
    if (!q->l1) {
        return blk_err(e, ENOMEM, "Could not allocate memory for L1 table");
    }
    int err = co_read(n->file, q->l1_offset, q->l1, q->l1_size * 8);
    if (err) {
        return blk_err_errno(e, -err, "Could not read the L1 table");
    }
    for (uint64_t i = 0; i < q->l1_size; i++) {
        q->l1[i] = be64(&q->l1[i]);
    }
    return check_l1(q, e);
}

static int read_backing(struct blk_node *n, const uint8_t *h, struct blk_error *e)
{
    uint64_t at = be64(h + QH_BACKING), end;
    uint32_t len = be32(h + QH_BACKING_LEN);
    if (!at) {
        return 0;
    }
    if (len > BLK_NAME_MAX) {
        return blk_err(e, EINVAL, "Backing file name too long");
    }
    if (blk_add_overflow(at, len, &end) || end > n->file->size) {
        return blk_err(e, EINVAL, "Backing file name is not within the file");
    }
    char *name = calloc(1, len + 1u);
    int err = name ? co_read(n->file, at, name, len) : -ENOMEM;
    if (err || !*name) {
        free(name);
        return err ? blk_err_errno(e, -err, "Could not read the backing file's name") : 0;
    }
    n->backing_name = name;
    return 0;
}

static void qcow_facts(struct blk_node *file, struct blk_facts *f)
{
    uint8_t h[QH_BYTES];
    char name[BLK_NAME_MAX + 1];
    size_t len;

    if (!co_read(file, 0, h, sizeof(h)) && be64(h + QH_BACKING)) {
        len = BLK_MIN(be32(h + QH_BACKING_LEN), BLK_NAME_MAX);
        if (be64(h + QH_BACKING) < file->size && !co_read(file, be64(h + QH_BACKING), name, len)) {
            blk_facts_name(f, "backing file", name, len, NULL);
        }
    }
}

static int open_tables(struct blk_node *n, struct qcow *q, const uint8_t *h, struct blk_error *e)
{
    uint64_t size = be64(h + QH_SIZE);
    if (size > BLK_SIZE_MAX) {
        return blk_err(e, EINVAL, "Image too large");
    }
    q->cluster_bits = h[QH_CLUSTER_BITS];
    q->l2_bits = h[QH_L2_BITS];
    q->l1_offset = be64(h + QH_L1);
    n->size = blk_align_down(size, 512);    /* as QEMU */
    q->map = (struct blockmap){
        .n = n, .file = n->file, .ops = &qcow_map_ops, .block_size = 1u << q->cluster_bits,
        .blocks = (size + (1ull << q->cluster_bits) - 1) >> q->cluster_bits,
        .entry_size = 8, .per_page = 1u << q->l2_bits,
        .next = blk_align_up(n->file->size, 1ull << q->cluster_bits),
    };
    int err = read_l1(q, n, e);
    err = err ? err : blockmap_init(&q->map, e);
    return err ? err : read_backing(n, h, e);
}

static void qcow_free(struct qcow *q)
{
    if (q) {
        blockmap_free(&q->map);
        free(q->l1);
        free(q->inflated);
        free(q);
    }
}

static int qcow_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct qcow *q = calloc(1, sizeof(*q));
    uint8_t h[QH_BYTES];
    int err = q ? co_read(n->file, 0, h, QH_BYTES) : -ENOMEM;

    if (err) {
        blk_err_errno(e, -err, "Could not read the qcow header");
    }
    struct blk_opts *crypt = blk_opts_take(o, "encrypt.");
    const char *format = blk_opts_get(crypt, "format");
    err = err ? err : check_header(h, e);
    if (!err && format) {
        err = blk_err(e, EINVAL, "No encryption in image header, but options specified format "
                      "'%s'", format);
    }
    blk_opts_free(crypt);
    err = err ? err : open_tables(n, q, h, e);
    if (err) {
        qcow_free(q);
        return err;
    }
    n->starts_as_zeros = !n->backing_name;
    n->state = q;
    return 0;
}

static int qcow_close(struct blk_node *n, struct blk_error *e)
{
    qcow_free(n->state);
    return 0;
}

static void qcow_submit(struct blk_node *n, struct blk_req *req)
{
    blockmap_submit(n->state, req);
}

static int qcow_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    return blockmap_status(n->state, off, len, st);
}

/* ---- create ------------------------------------------------------------------------------------- */

static int take_create(struct blk_opts *o, uint64_t *size, const char **backing,
                       struct blk_error *e)
{
    const char *fmt = blk_opts_get(o, "backing_fmt");
    bool encrypt = false;

    *size = 0;
    *backing = blk_opts_get(o, "backing_file");
    if (fmt && !blk_driver_known(fmt)) {
        return blk_err(e, EINVAL, "unrecognized backing format '%s'", fmt);
    }
    int err = blk_opts_get_size(o, "size", size, e);
    err = err ? err : blk_opts_get_bool(o, "encryption", &encrypt, e);
    if (err) {
        return err;
    }
    *size = blk_align_up(BLK_MIN(*size, BLK_SIZE_MAX), 512);
    if (!*size) {
        return blk_err(e, EINVAL, "Image size is too small, cannot be zero length");
    }
    if (*backing && strlen(*backing) > BLK_NAME_MAX) {
        return blk_err(e, EINVAL, "Backing file name too long");
    }
    if (*size >> 21 >= BM_PAGES_MAX) {
        return blk_err(e, EINVAL, "Image too large");
    }
    const char *format = blk_opts_get(o, "encrypt.format");
    const char *secret = blk_opts_get(o, "encrypt.key-secret");
    if (secret && !encrypt && !format) {
        return blk_err(e, EINVAL, "Parameter 'encrypt.format' is missing");
    }
    if (format && strcmp(format, "aes")) {
        return strcmp(format, "luks") && strcmp(format, "qcow")
               ? blk_err(e, EINVAL, "Parameter 'format' does not accept value '%s'", format)
               : blk_err(e, EINVAL, "Unsupported encryption format");
    }
    if ((encrypt || format) && !secret) {
        return blk_err(e, EINVAL, "Parameter 'encrypt.key-secret' is required for cipher");
    }
    if (encrypt || format || secret) {
        return blk_err(e, ENOTSUP, "Encrypted qcow images are not supported");
    }
    return 0;
}

static int qcow_create_check(struct blk_opts *o, struct blk_error *e)
{
    const char *backing;
    uint64_t size;
    return take_create(o, &size, &backing, e);
}

/* 4 KiB clusters; over a backing file 512 bytes, so that little has to be copied. */
static int qcow_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                       struct blk_error *e)
{
    uint8_t h[QH_BYTES] = { 0 };
    const char *backing;
    uint64_t size;
    int err = take_create(o, &size, &backing, e);

    if (err) {
        return err;
    }
    size_t name = backing ? strlen(backing) : 0;
    uint64_t l1 = blk_align_up(QH_BYTES + name, 8), entries = (size + (1u << 21) - 1) >> 21;
    put_be32(h, QCOW_MAGIC);
    put_be32(h + QH_VERSION, 1);
    put_be64(h + QH_BACKING, name ? QH_BYTES : 0);
    put_be32(h + QH_BACKING_LEN, (uint32_t)name);
    put_be64(h + QH_SIZE, size);
    h[QH_CLUSTER_BITS] = backing ? 9 : 12;
    h[QH_L2_BITS] = backing ? 12 : 9;
    put_be64(h + QH_L1, l1);
    err = co_write_zeroes(file, l1, blk_align_up(entries * 8, 512), 0);
    err = err || !name ? err : co_write(file, QH_BYTES, backing, name, 0);
    err = err ? err : co_write(file, 0, h, QH_BYTES, 0);
    return err ? blk_err_errno(e, -err, "Could not write the qcow image") : 0;
}

static const struct blk_option_desc qcow_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "backing_file", BLK_OPT_STRING, "File name of a base image", NULL },
    { "backing_fmt", BLK_OPT_STRING, "Format of the backing image", NULL },
    { "encryption", BLK_OPT_BOOL,
      "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)", NULL },
    { "encrypt.format", BLK_OPT_STRING, "Encrypt the image, format choices: 'aes'", NULL },
    { "encrypt.key-secret", BLK_OPT_STRING,
      "ID of the secret that provides the AES encryption key", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

static const char *const qcow_naming[] = { "encrypt.key-secret", NULL };

const struct blk_driver blk_qcow = {
    .name = "qcow",
    .naming = qcow_naming,
    .backing = true,
    .facts = qcow_facts,
    .create_opts = qcow_create_opts,
    .probe = qcow_probe,
    .open = qcow_open,
    .close = qcow_close,
    .submit = qcow_submit,
    .status = qcow_status,
    .create_check = qcow_create_check,
    .create = qcow_create,
    .compresses = true,
};
