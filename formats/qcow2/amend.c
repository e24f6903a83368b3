/*
 * amend.c - properties of an image changed in place: version, widths, names, key
 * slots.
 *
 * Invariants
 *  - Each property is switched by one write of the header (or of a LUKS header),
 *    when all it needs is durable: a crash leaves the old or the new one.
 *  - The order is QEMU's: up first, for what needs version 3; down last, when what
 *    version 2 lacks is gone.
 */
#include "formats/qcow2/amend.h"
#include "formats/luks.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct amend {
    uint32_t version, refcount_bits;
    uint64_t size;                          /* 0: stays */
    const char *backing, *backing_fmt, *data_file;
    bool names_backing, crypt, lazy, data_raw;
};

/* In alphabetical order, as help prints them. */
const struct blk_option_desc qcow2_amend_opts[] = {
    { "backing_file", BLK_OPT_STRING, "File name of a base image", NULL },
    { "backing_fmt", BLK_OPT_STRING, "Image format of the base image", NULL },
    { "compat", BLK_OPT_STRING, "Compatibility level (v2 [0.10] or v3 [1.1])", NULL },
    { "data_file", BLK_OPT_STRING, "File name of an external data file", NULL },
    { "data_file_raw", BLK_OPT_BOOL, "The external data file must stay valid as a raw image",
      NULL },
    LUKS_AMEND_OPTS("encrypt."),
    { "lazy_refcounts", BLK_OPT_BOOL, "Postpone refcount updates", NULL },
    { "refcount_bits", BLK_OPT_NUMBER, "Width of a reference count entry in bits", NULL },
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

/* ---- options ----------------------------------------------------------------------------- */

static int take_compat(struct amend *a, struct blk_opts *o, struct blk_error *e)
{
    const char *v = blk_opts_get(o, "compat");
    if (!v) {
        return 0;
    }
    if (!strcmp(v, "0.10") || !strcmp(v, "v2")) {
        a->version = 2;
    } else if (!strcmp(v, "1.1") || !strcmp(v, "v3")) {
        a->version = 3;
    } else {
        return blk_err(e, EINVAL, "Unknown compatibility level %s", v);
    }
    return 0;
}

static int take_crypt(const struct qcow2 *q, struct amend *a, struct blk_opts *o,
                      struct blk_error *e)
{
    const char *key;
    for (size_t i = 0; blk_opts_at(o, i, &key, NULL); i++) {
        a->crypt |= !strncmp(key, "encrypt.", 8);
    }
    if (a->crypt && !q->crypt) {
        return blk_err(e, EINVAL, "Can't amend encryption options - encryption not present");
    }
    if (a->crypt && q->h.crypt_method != QCOW2_CRYPT_LUKS) {
        return blk_err(e, ENOTSUP, "Only LUKS encryption options can be amended");
    }
    return 0;
}

static int take_refcount_bits(struct amend *a, struct blk_opts *o, struct blk_error *e)
{
    uint64_t bits = a->refcount_bits;
    int err = blk_opts_get_u64(o, "refcount_bits", &bits, e);
    if (!err && (!bits || bits > 64 || bits & (bits - 1))) {
        err = blk_err(e, EINVAL,
                      "Refcount width must be a power of two and may not exceed 64 bits");
    }
    a->refcount_bits = (uint32_t)bits;
    return err;
}

static int take_data(const struct qcow2 *q, struct amend *a, struct blk_opts *o,
                     struct blk_error *e)
{
    bool have = q->h.autoclear & QCOW2_AUTO_RAW;
    int err;

    a->data_raw = have;
    a->data_file = blk_opts_get(o, "data_file");
    if (a->data_file && !qcow2_external(q)) {
        return blk_err(e, EINVAL, "data-file can only be set for images that use an external data "
                       "file");
    }
    err = blk_opts_get_bool(o, "data_file_raw", &a->data_raw, e);
    return err || !a->data_raw || have ? err
        : blk_err(e, EINVAL, "data-file-raw cannot be set on existing images");
}

static int take_options(const struct qcow2 *q, struct amend *a, struct blk_opts *o,
                        struct blk_error *e)
{
    int err;

    *a = (struct amend){ .version = q->h.version, .refcount_bits = q->refcount_bits,
                         .lazy = q->h.compatible & QCOW2_COMPAT_LAZY };
    a->backing = blk_opts_get(o, "backing_file");
    a->backing_fmt = blk_opts_get(o, "backing_fmt");
    a->names_backing = a->backing || a->backing_fmt;
    err = take_crypt(q, a, o, e);
    err = err ? err : take_compat(a, o, e);
    err = err ? err : take_data(q, a, o, e);
    err = err ? err : blk_opts_get_bool(o, "lazy_refcounts", &a->lazy, e);
    err = err ? err : take_refcount_bits(a, o, e);
    return err ? err : blk_opts_get_size(o, "size", &a->size, e);
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* The header with another version; the feature names are version 3's. */
static int switch_version(struct qcow2 *q, uint32_t version)
{
    struct qcow2_header was = q->h;
    uint8_t *features = q->features;
    uint32_t features_len = q->features_len;

    q->h.version = version;
    q->h.header_length = version < 3 ? QH_V2_END : QH_FULL;
    q->features = NULL;
    q->features_len = 0;
    if (version < 3) {
        q->h.incompatible = q->h.compatible = q->h.autoclear = 0;
        q->h.compression = 0;
    } else if (qcow2_names_features(&q->h) &&
               (q->features = malloc(sizeof(*qcow2_feature_table) * QCOW2_FEATURES))) {
        q->features_len = sizeof(*qcow2_feature_table) * QCOW2_FEATURES;
        memcpy(q->features, qcow2_feature_table, q->features_len);
    }
    int err = qcow2_header_rewrite(q);
    if (err) {
        free(q->features);
        q->features = features;
        q->features_len = features_len;
        q->h = was;
        return err;
    }
    free(features);
    q->n->zero_may_be_slow = version < 3;
    return 0;
}

static int upgrade(struct qcow2 *q, struct blk_error *e)
{
    struct qcow2_snapshot *s;
    uint64_t bytes;
    int err;

    /* Version 3 wants 64-bit sizes in each snapshot; all but ancient ones have them. */
    q->h.version = 3;
    err = qcow2_snapshots_read(q, &s, &bytes, e);
    q->h.version = 2;
    if (err) {
        blk_error_prefix(e, "Failed to update the snapshot table: ");
        return err;
    }
    qcow2_snapshots_free(q, s);
    err = switch_version(q, 3);
    return err ? blk_err_errno(e, -err, "Failed to update the image header") : 0;
}

static int check_snapshots(struct qcow2 *q, struct blk_error *e)
{
    struct qcow2_snapshot *s;
    uint64_t bytes;
    int err = q->h.nb_snapshots ? qcow2_snapshots_read(q, &s, &bytes, e) : 0;

    if (err || !q->h.nb_snapshots) {
        return err;
    }
    for (uint32_t i = 0; !err && i < q->h.nb_snapshots; i++) {
        if (s[i].vm_state_size > UINT32_MAX || s[i].size != q->h.size) {
            err = blk_err(e, ENOTSUP, "Internal snapshots prevent downgrade of image");
        }
    }
    qcow2_snapshots_free(q, s);
    return err;
}

static int has_compressed(struct qcow2 *q, bool *out)
{
    int err = 0;
    *out = false;
    for (uint64_t at = 0; !err && !*out && at < q->n->size;) {
        struct blk_status st = { 0 };
        err = qcow2_status(q->n, at, q->n->size - at, &st);
        *out = st.flags & BLK_ST_COMPRESSED;
        at += st.length;
    }
    return err;
}

static int downgrade(struct qcow2 *q, const struct blk_amend *ctl, struct blk_error *e)
{
    uint64_t others = q->h.incompatible & ~(uint64_t)QCOW2_INC_COMPRESSION;
    bool compressed = false;
    int err = 0;

    if (q->h.refcount_order != 4) {
        return blk_err(e, ENOTSUP, "compat=0.10 requires refcount_bits=16");
    }
    if (qcow2_external(q)) {
        return blk_err(e, ENOTSUP, "Cannot downgrade an image with a data file");
    }
    if ((err = check_snapshots(q, e))) {
        return err;
    }
    if (others) {
        return blk_err(e, ENOTSUP, "Cannot downgrade an image with incompatible features 0x%llx "
                       "set", (unsigned long long)others);
    }
    err = qcow2_expand_zeros(q, ctl);
    if (err) {
        return blk_err_errno(e, -err, "Failed to turn zero into data clusters");
    }
    if (q->h.incompatible & QCOW2_INC_COMPRESSION) {
        err = has_compressed(q, &compressed);
        if (err) {
            return blk_err_errno(e, -err, "Failed to check block status");
        }
        if (compressed) {
            return blk_err(e, ENOTSUP, "Cannot downgrade an image with zstd compression type and "
                           "existing compressed clusters");
        }
    }
    err = switch_version(q, 2);
    return err ? blk_err_errno(e, -err, "Failed to update the image header") : 0;
}

static int set_refcount_bits(struct qcow2 *q, const struct amend *a, const struct blk_amend *ctl,
                             struct blk_error *e)
{
    if (a->refcount_bits == q->refcount_bits) {
        return 0;
    }
    if (a->version < 3 && a->refcount_bits != 16) {
        return blk_err(e, EINVAL, "Refcount widths other than 16 bits require compatibility level "
                       "1.1 or above (use compat=1.1 or greater)");
    }
    return qcow2_change_width(q, (uint32_t)__builtin_ctz(a->refcount_bits), ctl, e);
}

/* One bit of the header. */
static int set_flag(struct qcow2 *q, uint64_t *field, uint64_t bit, bool on, struct blk_error *e)
{
    uint64_t was = *field;
    int err = 0;

    *field = on ? was | bit : was & ~bit;
    if (*field != was && (err = qcow2_header_update(q))) {
        *field = was;
        blk_err_errno(e, -err, "Failed to update the image header");
    }
    return err;
}

static bool same(const char *a, const char *b)
{
    return a && b ? !strcmp(a, b) : a == b;
}

static int check_backing(const struct qcow2 *q, const struct amend *a, struct blk_error *e)
{
    if (!a->names_backing || (same(a->backing, q->n->backing_name) &&
                              same(a->backing_fmt, q->n->backing_format))) {
        return 0;
    }
    blk_error_hint(e, "You can use 'qemu-img rebase' instead.");
    return blk_err(e, EINVAL, "Cannot amend the backing file");
}

static int set_lazy(struct qcow2 *q, const struct amend *a, struct blk_error *e)
{
    bool have = q->h.compatible & QCOW2_COMPAT_LAZY;

    if (have != a->lazy && a->lazy && a->version < 3) {
        return blk_err(e, EINVAL, "Lazy refcounts only supported with compatibility level 1.1 and "
                       "above (use compat=1.1 or greater)");
    }
    return have == a->lazy ? 0 : set_flag(q, &q->h.compatible, QCOW2_COMPAT_LAZY, a->lazy, e);
}

int qcow2_amend(struct blk_node *n, struct blk_opts *o, const struct blk_amend *ctl,
                struct blk_error *e)
{
    struct qcow2 *q = n->state;
    struct amend a;
    int err = take_options(q, &a, o, e);

    if (!err && q->corrupt) {
        err = blk_err(e, EIO, "Image is corrupt");
    }
    if (!err && (err = qcow2_settle(q))) {
        blk_err_errno(e, -err, "Could not write the metadata of '%s'", n->shown);
    }
    if (!err && a.version > q->h.version) {
        err = upgrade(q, e);
    }
    if (!err && a.crypt) {
        err = qcow2_crypt_amend(q, o, ctl->force, e);
    }
    err = err ? err : set_refcount_bits(q, &a, ctl, e);
    if (!err && qcow2_external(q)) {
        err = set_flag(q, &q->h.autoclear, QCOW2_AUTO_RAW, a.data_raw, e);
    }
    if (!err && a.data_file) {
        err = qcow2_set_data_name(q, a.data_file, e);
    }
    err = err ? err : check_backing(q, &a, e);
    err = err ? err : set_lazy(q, &a, e);
    if (!err && a.size) {
        err = qcow2_truncate(n, a.size, true, BLK_PREALLOC_OFF, e);
    }
    if (!err && a.version < q->h.version) {
        err = downgrade(q, ctl, e);
    }
    return err;
}
