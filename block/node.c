/*
 * node.c - a node's life and what can be asked of it.
 *
 * Invariants
 *  - A node owns its children; closing walks the backing chain in a loop.
 *  - close is flush, drain, driver's close, children; the first error is kept
 *    and the node is gone either way.
 */
#include "block/internal.h"
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t blk_size(const struct blk_node *n) { return n->size; }
bool blk_read_only(const struct blk_node *n) { return n->read_only; }
const char *blk_format_name(const struct blk_node *n) { return n->drv->name; }
const char *blk_filename(const struct blk_node *n) { return n->shown; }
struct blk_node *blk_file(const struct blk_node *n) { return n->file; }
struct blk_node *blk_data_file(const struct blk_node *n) { return n->data_file; }
struct blk_node *blk_backing(struct blk_node *n) { return blk_unfiltered(n)->backing; }

struct blk_node *blk_unfiltered(struct blk_node *n)
{
    while (n->drv->over_images) {
        n = n->file;
    }
    return n;
}

struct blk_node *blk_more_file(const struct blk_node *n, unsigned i, const char **name)
{
    if (i >= n->nmore) {
        return NULL;
    }
    *name = n->more[i].name;
    return n->more[i].node;
}

struct blk_loop *blk_node_loop(const struct blk_node *n) { return n->loop; }
const struct blk_limits *blk_node_limits(const struct blk_node *n) { return &n->limits; }
enum blk_cap blk_can_zero(const struct blk_node *n) { return n->can_zero; }
enum blk_cap blk_can_discard(const struct blk_node *n) { return n->can_discard; }
bool blk_starts_as_zeros(const struct blk_node *n) { return n->starts_as_zeros; }
bool blk_is_protocol(const struct blk_node *n) { return n->drv->protocol; }
bool blk_is_scheme(const struct blk_node *n) { return n->drv->protocol || n->drv->schemes; }
const char *blk_file_role(const struct blk_node *n)
{
    return n->drv->child ? n->drv->child : "file";
}

bool blk_raw_guessed(const struct blk_node *n)
{
    while (n->drv->filter && n->file) {
        n = n->file;
    }
    return n->guessed_raw;
}

const struct blk_stats *blk_node_stats(const struct blk_node *n)
{
    static const struct blk_stats none;
    return n->stats ? n->stats : &none;
}

struct blk_node *blk_node_new(struct blk_loop *l, const struct blk_driver *drv,
                              const char *filename, unsigned oflags)
{
    struct blk_node *n = calloc(1, sizeof(*n));
    if (!n) {
        return NULL;
    }
    n->loop = l;
    n->drv = drv;
    n->oflags = oflags;
    n->read_only = !(oflags & BLK_O_RDWR);
    n->filename = strdup(filename);
    n->shown = blk_redact(filename);
    n->limits.req_align = n->limits.mem_align = 1;
    if (!n->filename || !n->shown) {
        blk_node_free(n);
        return NULL;
    }
    return n;
}

int blk_node_rename(struct blk_node *n, char *filename)
{
    char *shown = filename ? blk_redact(filename) : NULL;

    if (!shown) {
        free(filename);
        return -ENOMEM;
    }
    free(n->filename);
    free(n->shown);
    n->filename = filename;
    n->shown = shown;
    return 0;
}

void blk_node_rename_json(struct blk_node *n, json_t *v)
{
    char *text = v ? json_dumps(v, 0) : NULL, *name = NULL;

    if (text && asprintf(&name, "json:%s", text) < 0) {
        name = NULL;
    }
    free(text);
    json_decref(v);
    if (name) {
        blk_node_rename(n, name);
    }
}

json_t *blk_node_json(const struct blk_node *n)
{
    if (!strncmp(n->filename, "json:", 5)) {
        return json_loads(n->filename + 5, 0, NULL);
    }
    const char *driver = n->drv->name;
    size_t len = strlen(driver);
    bool bare = !strncmp(n->filename, driver, len) && !strcmp(n->filename + len, "://");

    return n->file ? json_pack("{s:s, s:o}", "driver", driver, "file", blk_node_json(n->file))
                   : json_pack("{s:s, s:s*}", "driver", driver,
                               "filename", bare ? NULL : n->filename);
}

static bool is_naming(const struct blk_driver *drv, const char *key)
{
    for (const char *const *k = drv->naming; k && *k; k++) {
        if (!strcmp(*k, key)) {
            return true;
        }
    }
    return false;
}

json_t *blk_name_by_options(const struct blk_node *file, const struct blk_driver *drv,
                            const struct blk_opts *o)
{
    static const char *const keys[] = { "offset", "encrypt.key-secret", "driver", "size", "file",
                                        "key-secret" };
    bool any = !strncmp(file->filename, "json:", 5) ||
               !(drv->filter || file->drv->protocol || file->drv->filter);
    json_t *v = json_object();

    for (size_t i = 0; i < BLK_ARRAY_SIZE(keys); i++) {
        if (!strcmp(keys[i], "driver")) {
            json_object_set_new(v, "driver", json_string(drv->name));
        } else if (!strcmp(keys[i], "file")) {
            json_object_set_new(v, "file", blk_node_json(file));
        } else if (is_naming(drv, keys[i]) && blk_opts_has(o, keys[i])) {
            json_object_set_new(v, keys[i], blk_opts_json(o, keys[i]));
            any = true;
        }
    }
    if (!any) {
        json_decref(v);
    }
    return any ? v : NULL;
}

char *blk_resolve_beside(const struct blk_node *n, const char *name)
{
    while (n->file && !strncmp(n->filename, "json:", 5)) {
        n = n->file;
    }
    return blk_resolve_name(n->filename, name);
}

void blk_node_free(struct blk_node *n)
{
    blk_chainmap_free(n->chainmap);
    free(n->filename);
    free(n->shown);
    free(n->backing_name);
    free(n->backing_format);
    free(n->backing_urls);
    blk_opts_free(n->given);
    free(n->identity);
    free(n->more);
    free(n->stats);
    free(n);
}

void blk_filter_inherit(struct blk_node *n)
{
    const struct blk_node *c = n->file;
    n->size = c->size;
    n->can_grow = c->can_grow;
    n->starts_as_zeros = c->starts_as_zeros;
    n->limits = c->limits;
    n->limits.zero_align = n->limits.discard_align = 0;     /* c sees to those itself */
    n->can_zero = c->can_zero;
    n->can_discard = c->can_discard;
    n->can_fua = c->can_fua;
    n->zero_may_be_slow = c->zero_may_be_slow;
}

struct blk_node *blk_between_new(struct blk_node *file, const struct blk_driver *drv, void *state)
{
    struct blk_node *n = blk_node_new(file->loop, drv, file->filename, file->oflags);
    if (n) {
        n->file = file;
        n->state = state;
        n->read_only = file->read_only;
        blk_filter_inherit(n);
    }
    return n;
}

void blk_between_free(struct blk_node *n)
{
    if (n) {
        n->file = NULL;
        blk_node_free(n);
    }
}

/* ---- closing ------------------------------------------------------------------- */

/* The i-th storage of a layer, NULL where there is none, up to 2 + n->nmore. */
static struct blk_node *storage_at(const struct blk_node *n, unsigned i)
{
    return i == 0 ? n->file : i == 1 ? n->data_file : n->more[i - 2].node;
}

static int chain_close(struct blk_node *n, struct blk_error *e);

/* Driver and storage of one layer; the backing node is the caller's. */
static int layer_close(struct blk_node *n, struct blk_error *e)
{
    int err = 0, r;

    co_drain(n);
    if (!n->read_only && !n->flush_error) {
        err = co_flush(n);
        if (err == -ENOMEDIUM) {
            err = 0;            /* given up as damaged, which was said and has failed before */
        } else if (err) {
            blk_err_errno(e, -err, "Could not flush '%s'", n->shown);
        }
    }
    if (n->drv->close) {
        r = n->drv->close(n, e);
        err = err ? err : r;
    }
    for (unsigned i = 0; i < 2 + n->nmore; i++) {
        struct blk_node *child = storage_at(n, i);
        if (child) {
            r = chain_close(child, e);
            err = err ? err : r;
        }
    }
    if (!err && n->flush_error) {
        err = blk_err_errno(e, -n->flush_error, "Could not flush '%s'", n->shown);
    }
    blk_node_free(n);
    return err;
}

static int chain_close(struct blk_node *n, struct blk_error *e)
{
    int err = 0;
    while (n) {
        struct blk_node *below = n->backing;
        int r = layer_close(n, e);
        err = err ? err : r;
        n = below;
    }
    return err;
}

struct close_args {
    struct blk_node *n;
    struct blk_error *e;
};

static int close_fiber(void *arg)
{
    struct close_args *a = arg;
    return chain_close(a->n, a->e);
}

int blk_close(struct blk_node *n, struct blk_error *e)
{
    struct close_args a = { n, e };
    return n ? blk_run(n->loop, close_fiber, &a) : 0;
}

/* ---- control operations ------------------------------------------------------------ */

struct truncate_args {
    struct blk_node *n;
    uint64_t size;
    bool shrink;
    enum blk_prealloc p;
    struct blk_error *e;
};

static int truncate_fiber(void *arg)
{
    struct truncate_args *a = arg;
    struct blk_node *n = a->n;

    if (n->read_only) {
        return blk_err(a->e, EACCES, "Image is read-only");
    }
    if (a->size > BLK_LENGTH_MAX) {
        return blk_err(a->e, EIO, "offset(%llu) exceeds maximum(%lld)",
                       (unsigned long long)a->size, BLK_LENGTH_MAX);
    }
    if (!n->drv->truncate && !n->drv->filter) {
        return blk_err(a->e, ENOTSUP, "Image format driver does not support resize");
    }
    if (a->size < n->size && !a->shrink && (n->can_grow || !n->drv->protocol)) {
        return blk_err(a->e, EINVAL, "Shrinking '%s' would lose data", n->shown);
    }
    co_drain(n);
    if (n->drv->truncate) {
        return n->drv->truncate(n, a->size, a->shrink, a->p, a->e);
    }
    int err = blk_truncate(n->file, a->size, a->shrink, a->p, a->e);
    n->size = n->file->size;
    return err;
}

int blk_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                 struct blk_error *e)
{
    struct truncate_args a = { n, size, shrink, p, e };
    return blk_run(n->loop, truncate_fiber, &a);
}

struct layer_args {
    struct blk_node *n;
    const char *name, *format;
    struct blk_error *e;
};

/* What all changes to a layer need before them. */
static int settle_layer(struct blk_node *n, struct blk_error *e)
{
    if (n->read_only) {
        return blk_err(e, EACCES, "Image is read-only");
    }
    co_drain(n);
    int err = co_flush(n);
    return err ? blk_err_errno(e, -err, "Could not flush '%s'", n->shown) : 0;
}

static int empty_fiber(void *arg)
{
    struct layer_args *a = arg;
    int err = settle_layer(a->n, a->e);
    return err ? err : a->n->drv->make_empty(a->n, a->e);
}

int blk_make_empty(struct blk_node *n, struct blk_error *e)
{
    struct layer_args a = { n, NULL, NULL, e };
    if (!n->drv->make_empty) {
        return blk_err(e, ENOTSUP, "Format '%s' cannot be emptied", n->drv->name);
    }
    return blk_run(n->loop, empty_fiber, &a);
}

struct compact_args {
    struct blk_node *n;
    struct blk_compact *c;
    struct blk_error *e;
};

static int compact_fiber(void *arg)
{
    struct compact_args *a = arg;
    int err = settle_layer(a->n, a->e);
    return err ? err : a->n->drv->compact(a->n, a->c, a->e);
}

int blk_compact(struct blk_node *n, struct blk_compact *c, struct blk_error *e)
{
    struct compact_args a = { n, c, e };
    if (!n->drv->compact) {
        return blk_err(e, ENOTSUP, "Format '%s' cannot be compacted", n->drv->name);
    }
    return blk_run(n->loop, compact_fiber, &a);
}

static int change_backing_fiber(void *arg)
{
    struct layer_args *a = arg;
    int err = settle_layer(a->n, a->e);
    return err ? err : a->n->drv->change_backing(a->n, a->name, a->format, a->e);
}

int blk_change_backing(struct blk_node *n, const char *name, const char *format,
                       struct blk_error *e)
{
    n = blk_unfiltered(n);
    struct layer_args a = { n, name, format, e };
    if (!n->drv->change_backing) {
        return blk_err(e, ENOTSUP, "Operation not supported");
    }
    return blk_run(n->loop, change_backing_fiber, &a);
}

struct amend_args {
    struct blk_node *n;
    struct blk_opts *o;
    const struct blk_amend *a;
    struct blk_error *e;
};

static int amend_fiber(void *arg)
{
    struct amend_args *a = arg;
    co_drain(a->n);
    return a->n->drv->amend(a->n, a->o, a->a, a->e);
}

int blk_amend(struct blk_node *n, struct blk_opts *o, const struct blk_amend *a,
              struct blk_error *e)
{
    struct amend_args args = { n, o, a, e };
    if (!n->drv->amend) {
        return blk_err(e, ENOTSUP, "Block driver '%s' does not support option amendment",
                       n->drv->name);
    }
    if (n->read_only) {
        return blk_err(e, EACCES, "Image is read-only");
    }
    return blk_run(n->loop, amend_fiber, &args);
}

struct snapshot_args {
    struct blk_node *n;
    enum blk_snapshot_op op;
    const char *name;
    struct blk_error *e;
};

static int snapshot_fiber(void *arg)
{
    struct snapshot_args *a = arg;
    int err = settle_layer(a->n, a->e);
    return err ? err : a->n->drv->snapshot(a->n, a->op, a->name, a->e);
}

int blk_snapshot(struct blk_node *n, enum blk_snapshot_op op, const char *name,
                 struct blk_error *e)
{
    struct snapshot_args a = { n, op, name, e };
    if (!n->drv->snapshot) {
        return blk_err(e, ENOTSUP, "Block driver does not support snapshots");
    }
    return blk_run(n->loop, snapshot_fiber, &a);
}

struct snapshot_load_args {
    struct blk_node *n;
    const char *id, *name;
    struct blk_error *e;
};

static int snapshot_load_fiber(void *arg)
{
    struct snapshot_load_args *a = arg;
    return a->n->drv->snapshot_load(a->n, a->id, a->name, a->e);
}

int blk_snapshot_load(struct blk_node *n, const char *id, const char *name, struct blk_error *e)
{
    struct snapshot_load_args a = { n, id, name, e };
    if (!n->drv->snapshot_load) {
        return blk_err(e, ENOTSUP, "Block format '%s' used by device '' does not support "
                       "temporarily loading internal snapshots", n->drv->name);
    }
    if (!n->read_only) {
        return blk_err(e, EINVAL, "Device is not readonly");
    }
    return blk_run(n->loop, snapshot_load_fiber, &a);
}

int blk_vm_state(struct blk_node *n, bool write, uint64_t off, const struct iovec *iov, int cnt,
                 uint64_t len)
{
    while (n && !n->drv->vm_state) {
        n = n->file;
    }
    if (!n) {
        return -ENOTSUP;
    }
    if (write && n->read_only) {
        return -EROFS;
    }
    co_drain(n);
    return n->drv->vm_state(n, write, off, iov, cnt, len);
}

int blk_debug(struct blk_node *n, enum blk_debug_op op, const char *event, const char *tag)
{
    while (n && !n->drv->debug) {
        n = n->file;
    }
    return n ? n->drv->debug(n, op, event, tag) : -ENOTSUP;
}

struct bitmap_args {
    struct blk_node *n, *src;
    enum blk_bitmap_op op;
    const char *name, *from;
    uint64_t granularity;
    struct blk_error *e;
};

static int bitmap_fiber(void *arg)
{
    struct bitmap_args *a = arg;

    if (a->n->read_only) {
        return blk_err(a->e, EACCES, "Image is read-only");
    }
    co_drain(a->n);
    return a->src ? a->n->drv->bitmap_merge(a->n, a->name, a->src, a->from, a->e)
                  : a->n->drv->bitmap_change(a->n, a->op, a->name, a->granularity, a->e);
}

static int no_bitmap(const char *name, struct blk_error *e)
{
    return blk_err(e, ENOENT, "Dirty bitmap '%s' not found", name);
}

int blk_bitmap_change(struct blk_node *n, enum blk_bitmap_op op, const char *name,
                      uint64_t granularity, struct blk_error *e)
{
    struct bitmap_args a = { .n = n, .op = op, .name = name, .granularity = granularity, .e = e };

    if (!n->drv->bitmap_change && op != BLK_BITMAP_ADD) {
        return no_bitmap(name, e);
    }
    if (!n->drv->bitmap_change) {
        /* QEMU names the node, and makes such names up. */
        return blk_err_errno(e, ENOTSUP, "Can't store persistent bitmaps to #block100");
    }
    return blk_run(n->loop, bitmap_fiber, &a);
}

int blk_bitmap_merge(struct blk_node *n, const char *name, struct blk_node *src,
                     const char *from, struct blk_error *e)
{
    struct bitmap_args a = { .n = n, .src = src, .name = name, .from = from, .e = e };

    return n->drv->bitmap_merge ? blk_run(n->loop, bitmap_fiber, &a) : no_bitmap(name, e);
}

bool blk_has_bitmaps(struct blk_node *n)
{
    return n->drv->bitmaps && (!n->drv->bitmap_has || n->drv->bitmap_has(n));
}

bool blk_bitmap_at(struct blk_node *n, size_t i, struct blk_bitmap *out)
{
    return n->drv->bitmap_at && n->drv->bitmap_at(n, i, out);
}

int64_t blk_allocated_size(struct blk_node *n)
{
    int64_t sum = 0;
    if (n->drv->allocated_size) {
        return n->drv->allocated_size(n);
    }
    if (n->drv->filter && blk_is_scheme(n)) {
        return -1;                      /* in QEMU a protocol that does not know */
    }
    for (unsigned i = 0; i < 2 + n->nmore; i++) {
        struct blk_node *child = storage_at(n, i);
        int64_t v = child ? blk_allocated_size(child) : 0;
        if (v < 0) {
            return v;
        }
        sum += v;
    }
    return n->file ? sum : -1;
}

struct length_args {
    struct blk_node *n;
    uint64_t *out;
};

static int length_fiber(void *arg)
{
    struct length_args *a = arg;
    return a->n->drv->length(a->n, a->out);
}

int blk_storage_length(struct blk_node *n, uint64_t *out)
{
    while (n->drv->filter && !n->drv->length) {
        n = n->file;
    }
    struct length_args a = { n, out };
    if (!n->drv->length) {
        *out = n->size;
        return 0;
    }
    return blk_run(n->loop, length_fiber, &a);
}

/* ---- information, check, measure ------------------------------------------------------ */

struct info_args {
    struct blk_node *n;
    struct blk_info *out;
    struct blk_error *e;
};

static int info_fiber(void *arg)
{
    struct info_args *a = arg;
    struct blk_node *n = a->n;
    if (n->backing_name) {
        a->out->backing_name = strdup(n->backing_name);
        a->out->backing_full = blk_resolve_beside(n, n->backing_name);
    }
    if (n->backing_format) {
        a->out->backing_format = strdup(n->backing_format);
    }
    struct blk_node *at = n;
    while (!at->drv->info && at->file && (at->drv->filter || !at->file->drv->protocol)) {
        at = at->file;
    }
    a->out->cluster_size = at->cluster_size;
    a->out->mapping_size = at->mapping_size ? at->mapping_size : at->cluster_size;
    int err = at->drv->info ? at->drv->info(at, a->out, a->e) : 0;
    if (at != n) {                  /* what only that format has is not the filter's */
        json_decref(a->out->specific);
        a->out->specific = NULL;
    }
    while (!at->drv->info && at->file) {
        at = at->file;
    }
    a->out->bare |= !at->drv->info;
    return err;
}

int blk_get_info(struct blk_node *n, struct blk_info *out, struct blk_error *e)
{
    *out = (struct blk_info){ 0 };
    struct info_args a = { n, out, e };
    return blk_run(n->loop, info_fiber, &a);
}

struct check_args {
    struct blk_node *n;
    struct blk_check *c;
    int fix;
    struct blk_error *e;
};

static int check_fiber(void *arg)
{
    struct check_args *a = arg;
    co_drain(a->n);
    return a->n->drv->check(a->n, a->c, a->fix, a->e);
}

int blk_check(struct blk_node *n, struct blk_check *c, int fix, struct blk_error *e)
{
    struct check_args a = { n, c, fix, e };
    if (!n->drv->check) {
        return blk_err(e, ENOTSUP, "This image format does not support checks");
    }
    return blk_run(n->loop, check_fiber, &a);
}

void blk_check_say(struct blk_check *c, bool is_error, const char *fmt, ...)
{
    char line[512];
    va_list ap;
    if (c->message) {
        va_start(ap, fmt);
        vsnprintf(line, sizeof(line), fmt, ap);
        va_end(ap);
        c->message(c->arg, is_error, line);
    }
}

struct measure_args {
    struct blk_loop *l;
    const struct blk_driver *drv;
    struct blk_node *src;
    struct blk_opts *o;
    struct blk_measure *out;
    struct blk_error *e;
};

static int measure_fiber(void *arg)
{
    struct measure_args *a = arg;
    return a->drv->measure(a->l, a->src, a->o, a->out, a->e);
}

int blk_measure(struct blk_loop *l, const char *format, struct blk_node *src,
                const struct blk_opts *opts, struct blk_measure *out, struct blk_error *e)
{
    const struct blk_driver *drv = blk_driver_find(format);
    *out = (struct blk_measure){ 0 };
    if (!drv) {
        return blk_err(e, EINVAL, "Unknown file format '%s'", format);
    }
    if (!drv->measure) {
        return blk_err(e, ENOTSUP, "Block driver '%s' does not support size measurement", format);
    }
    struct blk_opts *o = blk_opts_dup(opts);
    struct measure_args a = { l, drv, src, o, out, e };
    int err = blk_run(l, measure_fiber, &a);
    blk_opts_free(o);
    return err;
}
