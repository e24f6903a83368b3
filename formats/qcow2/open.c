/*
 * open.c - the driver: opening, closing, what info shows.
 *
 * Invariants
 *  - A read-only open changes nothing.  A writable one clears autoclear bits we
 *    do not maintain, and repairs a dirty image before it is used.
 *  - Only what is needed is loaded: refcounts only for writers.
 */
#include "formats/qcow2/check.h"
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define SLICE_BYTES_MAX 16384u
#define L2_CACHE_MAX (32ull << 20)
#define REFCOUNT_CACHE (4ull << 20)

static int qcow2_probe(const uint8_t *buf, size_t len)
{
    return len >= 8 && be32(buf) == QCOW2_MAGIC && be32(buf + 4) >= 2 ? 100 : 0;
}

/* ---- options: QEMU's names ---------------------------------------------------------- */

static int read_options(struct qcow2 *q, struct blk_opts *o, uint64_t *l2, uint64_t *refs,
                        struct blk_error *e)
{
    static const char *const flags[] = {    /* accepted; our behaviour fits both values */
        "lazy-refcounts", "pass-discard-request", "pass-discard-snapshot", "pass-discard-other",
        "discard-no-unref",
    };
    uint64_t all = qcow2_clusters(q, q->h.size) * qcow2_entry_bytes(q), total = 0;
    bool b;
    int err;

    *l2 = BLK_MIN(BLK_MAX(all, 1ull << 20), L2_CACHE_MAX);
    *refs = BLK_MAX(REFCOUNT_CACHE, 4ull * q->cluster_size);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(flags); i++) {
        if ((err = blk_opts_get_bool(o, flags[i], &b, e))) {
            return err;
        }
    }
    if ((err = blk_opts_get_size(o, "l2-cache-size", l2, e)) ||
        (err = blk_opts_get_size(o, "refcount-cache-size", refs, e)) ||
        (err = blk_opts_get_size(o, "l2-cache-entry-size", &total, e)) ||
        (err = blk_opts_get_u64(o, "cache-clean-interval", &total, e))) {
        return err;
    }
    total = 0;
    if ((err = blk_opts_get_size(o, "cache-size", &total, e))) {
        return err;
    }
    if (total) {
        *l2 = total;
    }
    if (blk_opts_has(o, "compression-level")) {     /* ours */
        if ((err = blk_opts_get_u64(o, "compression-level", &total, e)) ||
            (err = qcow2_set_compression_level(q, total, e))) {
            return err;
        }
    }
    (void)blk_opts_get(o, "overlap-check");         /* always on, and cheap */
    (void)blk_opts_get(o, "overlap-check.template");
    return 0;
}

/* ---- open ------------------------------------------------------------------------------ */

static void node_fill(struct qcow2 *q)
{
    struct blk_node *n = q->n;
    n->size = q->h.size & ~511ull;      /* whole sectors, as everybody reads it */
    n->cluster_size = q->cluster_size;
    n->can_zero = n->can_discard = BLK_CAP_NATIVE;
    n->starts_as_zeros = !n->backing_name;
    n->mapping_size = q->sub_size;
    n->limits.zero_align = q->sub_size;
    n->limits.discard_align = q->cluster_size;
    n->limits.opt_transfer = q->cluster_size;
}

/* Autoclear bits whose data we do not keep up to date. */
static int clear_autoclear(struct qcow2 *q, struct blk_error *e)
{
    uint64_t kept = q->h.autoclear & (QCOW2_AUTO_RAW | QCOW2_AUTO_BITMAPS);
    if (q->bm.lost) {
        q->h.autoclear = kept;
        int r = qcow2_header_rewrite(q);        /* without the extension */
        q->bm.lost = r;
        return r ? blk_err_errno(e, -r, "Could not update qcow2 header") : 0;
    }
    if (q->h.autoclear == kept) {
        return 0;
    }
    q->h.autoclear = kept;
    int err = qcow2_header_update(q);
    return err ? blk_err_errno(e, -err, "Could not update qcow2 header") : 0;
}

int qcow2_reload(struct qcow2 *q, struct blk_error *e)
{
    qcow2_cache_drop(q);
    free(q->l1);
    free(q->l1_dirty);
    free(q->l1_bad);
    free(q->reft);
    qcow2_sets_free(q);
    q->l1 = q->reft = NULL;
    q->l1_dirty = q->l1_bad = NULL;
    q->reft_bad = 0;
    int r = qcow2_header_reload(q);
    r = r ? r : qcow2_l1_load(q, e);
    r = r ? r : qcow2_reft_load(q, e);
    r = r ? r : qcow2_meta_init(q);
    return r ? r : qcow2_bitmaps_mark_meta(q);
}

/* The checker works from the file alone: write back, forget, and load again what
 * it may have changed. */
static int qcow2_check(struct blk_node *n, struct blk_check *c, int fix, struct blk_error *e)
{
    struct qcow2 *q = n->state;
    int err = 0;

    for (int i = 0; i < 4 && q->writable && !err && !qcow2_clean(q); i++) {
        err = qcow2_flush(q);
    }
    err = err ? err : ck_check(n, c, fix, e);
    if (!fix) {
        return err;
    }
    /* Also after a repair that failed: it may have got somewhere. */
    int r = qcow2_reload(q, e);
    return err ? err : r;
}

static int repair_dirty(struct qcow2 *q, struct blk_error *e)
{
    struct blk_check c = { 0 };
    int err = qcow2_check(q->n, &c, BLK_FIX_ERRORS | BLK_FIX_LEAKS, e);
    if (!err && (c.corruptions || c.check_errors)) {
        err = blk_err(e, EIO, "errors are left");
    }
    if (err) {
        blk_error_prefix(e, "Could not repair dirty image: ");
        return err;
    }
    q->h.incompatible &= ~(uint64_t)QCOW2_INC_DIRTY;
    err = qcow2_header_update(q);
    return err ? blk_err_errno(e, -err, "Could not update qcow2 header") : 0;
}

static int open_writable(struct qcow2 *q, struct blk_error *e)
{
    int err = qcow2_reft_load(q, e);
    if (err) {
        return err;
    }
    if (q->n->oflags & BLK_O_CHECK) {
        return 0;               /* check decides what is done */
    }
    err = clear_autoclear(q, e);
    if (!err && q->h.incompatible & QCOW2_INC_DIRTY) {
        err = repair_dirty(q, e);
    }
    if (!err && !q->meta.slot && (qcow2_meta_init(q) || qcow2_bitmaps_mark_meta(q))) {
        err = blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    return err;
}

static void qcow2_free(struct qcow2 *q)
{
    qcow2_cache_free(q);
    qcow2_inflated_free(q->inflated);
    while (q->exts) {
        struct qcow2_ext *x = q->exts;
        q->exts = x->next;
        free(x);
    }
    while (q->to_free) {
        struct qcow2_run *r = q->to_free;
        q->to_free = r->next;
        free(r);
    }
    free(q->features);
    free(q->data_name);
    qcow2_crypt_free(q);
    free(q->l1);
    free(q->l1_dirty);
    free(q->l1_bad);
    free(q->reft);
    qcow2_sets_free(q);
    qcow2_bitmaps_free(q);
    free(q);
}

static int qcow2_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct qcow2 *q = calloc(1, sizeof(*q));
    uint64_t l2 = 0, refs = 0;
    int err;

    if (!q) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    q->n = n;
    q->file = q->data = n->file;        /* see qcow2_data_open() */
    q->writable = !n->read_only;
    n->state = q;
    err = qcow2_header_read(q, e);
    err = err ? err : qcow2_data_open(q, o, e);
    err = err ? err : qcow2_crypt_open(q, o, e);
    if (err) {
        goto fail;
    }
    q->slice_bits = q->l2_bits;
    while (qcow2_slice_bytes(q) > SLICE_BYTES_MAX) {
        q->slice_bits--;
    }
    node_fill(q);
    err = read_options(q, o, &l2, &refs, e);
    if (!err && (err = qcow2_cache_init(q, l2, refs))) {
        blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    err = err ? err : qcow2_l1_load(q, e);
    for (uint32_t i = 0; !err && q->crypt && i < q->h.l1_size; i++) {
        n->starts_as_zeros &= !q->l1[i];        /* preallocated clusters hold noise */
    }
    err = err ? err : qcow2_bitmaps_open(q, e);
    if (!err && q->writable) {
        err = open_writable(q, e);
    }
    if (!err) {
        return 0;
    }
fail:
    if (err == -ENOMEM) {
        blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    qcow2_free(q);
    n->state = NULL;
    return err;
}

static int qcow2_close(struct blk_node *n, struct blk_error *e)
{
    struct qcow2 *q = n->state;
    int err = q->writable && !q->corrupt ? qcow2_bitmaps_store(q, e) : 0;

    /* A flush frees clusters, whose counts the next one writes. */
    for (int i = 0; i < 4 && q->writable && !q->corrupt && !err && !qcow2_clean(q); i++) {
        err = qcow2_flush(q);
    }
    /* Packed data may end anywhere; storage with sectors reads it more easily so. */
    if (!err && q->writable && !q->corrupt && q->free_byte && q->file->size & 511) {
        err = blk_truncate(q->file, blk_align_up(q->file->size, 512), false, BLK_PREALLOC_OFF,
                           NULL);
    }
    if (err) {
        blk_err_errno(e, -err, "Could not write the metadata of '%s'", n->shown);
    }
    qcow2_free(q);
    n->state = NULL;
    return err;
}

/* ---- info --------------------------------------------------------------------------------- */

/* As they are in the file. */
static json_t *bitmaps_info(const struct qcow2 *q)
{
    json_t *list = json_array();

    for (const struct qcow2_bitmap *b = q->bm.first; b; b = b->next) {
        json_t *flags = json_array(), *o = json_object();
        if (b->flags & QCOW2_BM_IN_USE) {
            json_array_append_new(flags, json_string("in-use"));
        }
        if (b->flags & QCOW2_BM_AUTO) {
            json_array_append_new(flags, json_string("auto"));
        }
        json_object_set_new(o, "flags", flags);
        json_object_set_new(o, "name", json_string(b->name));
        json_object_set_new(o, "granularity", json_integer((json_int_t)1 << b->granularity));
        json_array_append_new(list, o);
    }
    return list;
}

static bool qcow2_bitmap_has(struct blk_node *n)
{
    const struct qcow2 *q = n->state;
    return q->h.version >= 3;
}

static int qcow2_info(struct blk_node *n, struct blk_info *out, struct blk_error *e)
{
    struct qcow2 *q = n->state;
    json_t *j;
    int err = q->h.nb_snapshots ? qcow2_snapshots_info(q, &out->snapshots, e) : 0;

    if (err) {
        return err;
    }
    j = json_object();
    if (q->h.version < 3) {
        json_object_set_new(j, "compat", json_string("0.10"));
        json_object_set_new(j, "compression-type", json_string("zlib"));
        json_object_set_new(j, "refcount-bits", json_integer(q->refcount_bits));
    } else {
        json_object_set_new(j, "compat", json_string("1.1"));
        json_object_set_new(j, "compression-type",
                            json_string(q->h.compression ? "zstd" : "zlib"));
        json_object_set_new(j, "lazy-refcounts",
                            json_boolean(q->h.compatible & QCOW2_COMPAT_LAZY));
        if (q->bm.first) {
            json_object_set_new(j, "bitmaps", bitmaps_info(q));
        }
        json_object_set_new(j, "refcount-bits", json_integer(q->refcount_bits));
        if (q->h.incompatible & QCOW2_INC_DATA_FILE) {
            if (q->data_name) {
                json_object_set_new(j, "data-file", json_string(q->data_name));
            }
            json_object_set_new(j, "data-file-raw",
                                json_boolean(q->h.autoclear & QCOW2_AUTO_RAW));
        }
        json_object_set_new(j, "corrupt", json_boolean(q->h.incompatible & QCOW2_INC_CORRUPT));
        json_object_set_new(j, "extended-l2", json_boolean(q->wide));
    }
    if (q->crypt) {
        qcow2_crypt_info(q, j);
        out->encrypted = true;
    }
    out->specific = j;
    out->dirty = q->h.incompatible & QCOW2_INC_DIRTY;
    out->corrupt = q->h.incompatible & QCOW2_INC_CORRUPT;
    out->vm_state_offset = (uint64_t)q->h.l1_size << (q->h.cluster_bits + q->l2_bits);
    return 0;
}

const struct blk_driver blk_qcow2 = {
    .name = "qcow2",
    .compresses = true,
    .create_opts = qcow2_create_opts,
    .amend_opts = qcow2_amend_opts,
    .probe = qcow2_probe,
    .open = qcow2_open,
    .close = qcow2_close,
    .submit = qcow2_submit,
    .zero_part = qcow2_zero_part,
    .status = qcow2_status,
    .truncate = qcow2_truncate,
    .info = qcow2_info,
    .facts = qcow2_facts,
    .check = qcow2_check,
    .snapshot = qcow2_snapshot,
    .snapshot_load = qcow2_snapshot_load,
    .bitmaps = true,
    .bitmap_has = qcow2_bitmap_has,
    .bitmap_change = qcow2_bitmap_change,
    .bitmap_merge = qcow2_bitmap_copy,
    .bitmap_at = qcow2_bitmap_at,
    .make_empty = qcow2_make_empty,
    .compact = qcow2_compact,
    .change_backing = qcow2_change_backing,
    .amend = qcow2_amend,
    .measure = qcow2_measure,
    .create = qcow2_create,
    .stream = qcow2_stream,
};
