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
#include <limits.h>
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

/* Most are accepted: our behaviour fits both values. */
static int read_flags(struct qcow2 *q, struct blk_opts *o, bool *lazy, struct blk_error *e)
{
    static const char *const flags[] = {
        "pass-discard-request", "pass-discard-snapshot", "pass-discard-other",
        "overlap-check.main-header", "overlap-check.active-l1", "overlap-check.active-l2",
        "overlap-check.refcount-table", "overlap-check.refcount-block",
        "overlap-check.snapshot-table", "overlap-check.inactive-l1", "overlap-check.inactive-l2",
        "overlap-check.bitmap-directory",
    };
    bool b;

    *lazy = q->h.compatible & QCOW2_COMPAT_LAZY;
    int err = blk_opts_get_bool(o, "lazy-refcounts", lazy, e);
    err = err ? err : blk_opts_get_bool(o, "discard-no-unref", &q->no_unref, e);
    for (size_t i = 0; !err && i < BLK_ARRAY_SIZE(flags); i++) {
        err = blk_opts_get_bool(o, flags[i], &b, e);
    }
    if (!err && *lazy && q->h.version < 3) {
        err = blk_err(e, EINVAL, "Lazy refcounts require a qcow2 image with at least qemu 1.1 "
                      "compatibility level");
    }
    if (!err && q->no_unref && q->h.version < 3) {
        err = blk_err(e, EINVAL, "discard-no-unref is only supported since qcow2 version 3");
    }
    return err;
}

/* It is always on here, and cheap. */
static int read_overlap(struct blk_opts *o, struct blk_error *e)
{
    static const char *const words[] = { "none", "constant", "cached", "all" };
    const char *check = blk_opts_get(o, "overlap-check");
    const char *template = blk_opts_get(o, "overlap-check.template");

    if (check && template && strcmp(check, template)) {
        return blk_err(e, EINVAL, "Conflicting values for qcow2 options 'overlap-check' ('%s') "
                       "and 'overlap-check.template' ('%s')", check, template);
    }
    check = check ? check : template ? template : "cached";
    for (size_t i = 0; i < BLK_ARRAY_SIZE(words); i++) {
        if (!strcmp(check, words[i])) {
            return 0;
        }
    }
    return blk_err(e, EINVAL, "Unsupported value '%s' for qcow2 option 'overlap-check'. Allowed "
                   "are any of the following: none, constant, cached, all", check);
}

static int read_cache_sizes(struct qcow2 *q, struct blk_opts *o, uint64_t *l2, uint64_t *refs,
                            struct blk_error *e)
{
    bool has_all = blk_opts_has(o, "cache-size"), has_l2 = blk_opts_has(o, "l2-cache-size");
    bool has_refs = blk_opts_has(o, "refcount-cache-size");
    uint64_t total = 0, entry = q->cluster_size, interval = 0;
    int err = blk_opts_get_size(o, "cache-size", &total, e);

    err = err ? err : blk_opts_get_size(o, "l2-cache-size", l2, e);
    err = err ? err : blk_opts_get_size(o, "refcount-cache-size", refs, e);
    err = err ? err : blk_opts_get_size(o, "l2-cache-entry-size", &entry, e);
    err = err ? err : blk_opts_get_u64(o, "cache-clean-interval", &interval, e);
    if (err) {
        return err;
    }
    if (has_all && has_l2 && has_refs) {
        return blk_err(e, EINVAL, "cache-size, l2-cache-size and refcount-cache-size may not be "
                       "set at the same time");
    }
    if (has_all && ((has_l2 && *l2 > total) || (has_refs && *refs > total))) {
        return blk_err(e, EINVAL, "%s-cache-size may not exceed cache-size",
                       has_l2 && *l2 > total ? "l2" : "refcount");
    }
    if (entry < 512 || entry > q->cluster_size || entry & (entry - 1)) {
        return blk_err(e, EINVAL, "L2 cache entry size must be a power of two between 512 and the "
                       "cluster size (%u)", q->cluster_size);
    }
    if (interval > UINT32_MAX) {
        return blk_err(e, EINVAL, "Cache clean interval too big");
    }
    if (has_all && !has_l2 && !has_refs) {
        uint64_t all = blk_align_up(qcow2_clusters(q, q->h.size) * qcow2_entry_bytes(q),
                                    q->cluster_size);
        *refs = total >= all ? total - all : BLK_MIN(total, 4ull * q->cluster_size);
        *l2 = BLK_MIN(total, all);
    } else if (has_all) {
        *l2 = has_l2 ? *l2 : total - *refs;
        *refs = has_refs ? *refs : total - *l2;
    }
    if (*refs / q->cluster_size > INT_MAX) {
        return blk_err(e, EINVAL, "Refcount cache size too big");
    }
    return 0;
}

static int read_options(struct qcow2 *q, struct blk_opts *o, uint64_t *l2, uint64_t *refs,
                        bool *lazy, struct blk_error *e)
{
    uint64_t all = qcow2_clusters(q, q->h.size) * qcow2_entry_bytes(q), level = 0;

    *l2 = BLK_MIN(BLK_MAX(all, 1ull << 20), L2_CACHE_MAX);
    *refs = BLK_MAX(REFCOUNT_CACHE, 4ull * q->cluster_size);
    int err = read_cache_sizes(q, o, l2, refs, e);
    err = err ? err : read_flags(q, o, lazy, e);
    err = err ? err : read_overlap(o, e);
    if (!err && blk_opts_has(o, "compression-level")) {     /* ours */
        err = blk_opts_get_u64(o, "compression-level", &level, e);
        err = err ? err : qcow2_set_compression_level(q, level, e);
    }
    return err;
}

/* ---- open ------------------------------------------------------------------------------ */

static void node_fill(struct qcow2 *q)
{
    struct blk_node *n = q->n;
    n->size = q->h.size & ~511ull;      /* whole sectors, as everybody reads it */
    n->cluster_size = q->cluster_size;
    n->can_zero = n->can_discard = BLK_CAP_NATIVE;
    n->zero_may_be_slow = q->h.version < 3;
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

/* The snapshot table, damaged so many times, is written anew: last, for it needs a place. */
static int mend_snapshots(struct qcow2 *q, struct blk_check *c, uint64_t damage,
                          struct blk_error *e)
{
    char line[128];
    int err = qcow2_snapshots_mend(q, e);

    if (err) {
        c->corruptions += damage;
        c->check_errors++;
        snprintf(line, sizeof(line), "ERROR failed to update snapshot table: %s", strerror(-err));
        if (c->message) {
            c->message(c->arg, true, line);
        }
        return err;
    }
    c->corruptions_fixed += damage;
    return 0;
}

/* The checker works from the file alone: write back, forget, and load again what
 * it may have changed. */
static int check_and_load(struct qcow2 *q, struct blk_check *c, int fix, uint64_t *table,
                          struct blk_error *e)
{
    int err = 0;

    if (q->writable) {
        err = qcow2_settle(q);
    }
    err = err ? err : ck_check(q->n, c, fix, table, e);
    if (!fix) {
        return err;
    }
    /* Also after a repair that failed: it may have got somewhere. */
    int r = qcow2_reload(q, e);
    return err ? err : r;
}

static int qcow2_check(struct blk_node *n, struct blk_check *c, int fix, struct blk_error *e)
{
    struct qcow2 *q = n->state;
    struct blk_check rest = { 0 };
    uint64_t table = 0;
    int err = check_and_load(q, c, fix, &table, e);

    if (err || !table) {
        return err;
    }
    err = mend_snapshots(q, c, table, e);
    /* The file may have grown over clusters that were counted past its end; and the image
     * is not marked clean yet. */
    err = err ? err : check_and_load(q, &rest, fix, &table, e);
    c->leaks_fixed += rest.leaks_fixed;
    return err;
}

static void say_finding(void *arg, bool is_error, const char *line)
{
    const struct qcow2 *q = arg;
    blk_report_bare(q->n->shown, "%s", line);
}

static int repair_dirty(struct qcow2 *q, struct blk_error *e)
{
    struct blk_check c = { .message = say_finding, .arg = q };
    int err = qcow2_check(q->n, &c, BLK_FIX_ERRORS | BLK_FIX_LEAKS, e);
    if (!err && (c.corruptions || c.check_errors)) {
        err = blk_err(e, EIO, "errors are left");
    }
    if (err) {
        blk_error_prefix(e, "Could not repair dirty image: ");
        return err;
    }
    q->old_end = 0;             /* every pointer was just counted: what is free holds nothing */
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
    bool lazy = false;
    int err;

    if (!q) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    q->n = n;
    q->file = q->data = n->file;        /* see qcow2_data_open() */
    n->file->oflags &= ~(unsigned)BLK_O_EXACT;      /* what is resized is the image */
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
    err = read_options(q, o, &l2, &refs, &lazy, e);
    if (!err && (err = qcow2_cache_init(q, l2, refs))) {
        blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    err = err ? err : qcow2_l1_load(q, e);
    for (uint32_t i = 0; !err && q->crypt && i < q->h.l1_size; i++) {
        n->starts_as_zeros &= !q->l1[i];        /* preallocated clusters hold noise */
    }
    err = err ? err : qcow2_snapshots_usable(q, e);
    err = err ? err : qcow2_bitmaps_open(q, e);
    if (!err && q->writable) {
        err = open_writable(q, e);
    }
    if (!err) {
        /* Not before: a repair counts at once, and who checks does not trust what is there. */
        q->lazy = lazy && q->writable && !(n->oflags & BLK_O_CHECK);
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
    int err = 0;

    if (q->writable && !q->corrupt) {
        qcow2_bitmaps_renew(q);
        err = qcow2_bitmaps_store(q, e);
    }
    if (!err && q->writable && !q->corrupt) {
        err = qcow2_settle(q);
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
        json_object_set_new(o, "name", json_string_nocheck(b->name));
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
    out->vm_state_offset = qcow2_vm_state_offset(q);
    return 0;
}

static const char *const qcow2_naming[] = { "encrypt.key-secret", NULL };

const struct blk_driver blk_qcow2 = {
    .name = "qcow2",
    .naming = qcow2_naming,
    .backing = true,
    .compresses = true,
    .create_opts = qcow2_create_opts,
    .amend_opts = qcow2_amend_opts,
    .probe = qcow2_probe,
    .open = qcow2_open,
    .close = qcow2_close,
    .submit = qcow2_submit,
    .can_copy = qcow2_can_copy,
    .zero_part = qcow2_zero_part,
    .status = qcow2_status,
    .truncate = qcow2_truncate,
    .info = qcow2_info,
    .facts = qcow2_facts,
    .check = qcow2_check,
    .snapshot = qcow2_snapshot,
    .snapshot_load = qcow2_snapshot_load,
    .vm_state = qcow2_vm_state,
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
