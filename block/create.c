/*
 * create.c - making an image: the protocol makes empty storage, the format
 * writes itself into it.
 *
 * Invariant: options are checked against the format's and the protocol's tables
 * before anything is touched.
 */
#include "block/internal.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* Bytes at the start of a disk that a format could be recognised by. */
#define PROBE_CLEARED 512

static bool option_known(const struct blk_option_desc *d, const char *key)
{
    for (; d && d->name; d++) {
        if (!strcmp(d->name, key)) {
            return true;
        }
    }
    return false;
}

static int check_options(const struct blk_driver *fmt, const struct blk_driver *proto,
                         const struct blk_opts *o, struct blk_error *e)
{
    const char *key, *value;
    for (size_t i = 0; blk_opts_at(o, i, &key, &value); i++) {
        if (!option_known(fmt->create_opts, key) && !option_known(proto->create_opts, key)) {
            return blk_err(e, EINVAL, "Invalid parameter '%s'", key);
        }
    }
    return 0;
}

struct create_args {
    struct blk_loop *l;
    const struct blk_driver *fmt, *proto;
    const char *filename;
    struct blk_opts *o;
    struct blk_error *e;
};

static void name_storage(struct create_args *a, struct blk_opts *po)
{
    blk_opts_set(po, "filename", blk_driver_path(a->proto, a->filename));
}

/* No half-made image is left lying about. */
static void remove_storage(struct create_args *a)
{
    struct blk_opts *po = blk_opts_new();
    name_storage(a, po);
    if (a->proto->uncreate) {
        a->proto->uncreate(po);
    }
    blk_opts_free(po);
}

/* The protocol's part: an empty file, with the options it knows. */
static int create_storage(struct create_args *a, bool whole_size)
{
    struct blk_opts *po = blk_opts_new();
    const char *key, *value;
    int err;

    for (size_t i = 0; blk_opts_at(a->o, i, &key, &value); i++) {
        bool mine = !strcmp(key, "size") ||
                    (!strcmp(key, "preallocation") &&
                     (!a->fmt || a->fmt->preallocates || option_known(a->fmt->create_opts, key)));
        if ((mine && whole_size) || (!mine && option_known(a->proto->create_opts, key))) {
            blk_opts_set(po, key, value);
        }
    }
    if (!whole_size) {
        blk_opts_set(po, "size", "0");
    }
    name_storage(a, po);
    err = a->proto->create(a->l, NULL, po, a->e);
    blk_opts_free(po);
    return err;
}

/* Storage just made, open to be filled. */
static int open_storage(struct create_args *a, struct blk_node **file)
{
    struct blk_opts *fo = blk_opts_new();
    int err = blk_open_protocol(a->l, a->filename, a->proto, fo,
                                BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, file, a->e);
    blk_opts_free(fo);
    if (!err && (err = blk_lock_storage(*file, BLK_LOCK_FORMAT, a->e))) {
        blk_close(*file, NULL);
        *file = NULL;
    }
    return err;
}

int blk_create_file(struct blk_loop *l, const char *name, struct blk_opts *o,
                    struct blk_node **out, struct blk_error *e)
{
    struct create_args a = { .l = l, .proto = blk_driver_for_name(name, e), .filename = name,
                             .o = o, .e = e };
    if (!a.proto) {
        return -EINVAL;
    }
    if (!a.proto->create_opts) {
        return blk_err(e, ENOTSUP, "Protocol driver '%s' does not support image creation",
                       a.proto->name);
    }
    int err = create_storage(&a, false);
    return err ? err : open_storage(&a, out);
}

int blk_create_more(struct blk_node *file, const char *name, struct blk_opts *o,
                    struct blk_node **out, struct blk_error *e)
{
    char *full = blk_resolve_name(file->filename, name);
    int err = full ? blk_create_file(file->loop, full, o, out, e) : -ENOMEM;

    free(full);
    return err;
}

/* Whether the storage can be made, then whether the options can be met: nothing changes. */
static int check_first(struct create_args *a)
{
    struct blk_opts *po = blk_opts_new();
    int err;

    name_storage(a, po);
    err = a->proto->may_create && !a->fmt->create_check_first ? a->proto->may_create(po, a->e) : 0;
    blk_opts_free(po);
    return err ? err : a->fmt->create_check(a->o, a->e);
}

static int create_fiber(void *arg)
{
    struct create_args *a = arg;
    bool raw = !strcmp(a->fmt->name, "raw");
    struct blk_node *file = NULL;
    int err = a->fmt->create_check ? check_first(a) : 0;

    err = err ? err : create_storage(a, raw || a->fmt->protocol);
    if (err || raw || a->fmt->protocol) {
        return err;
    }
    err = open_storage(a, &file);
    if (err) {
        return err;
    }
    err = a->fmt->create(a->l, file, a->o, a->e);
    int r = blk_close(file, err ? NULL : a->e);
    err = err ? err : r;
    if (err) {
        remove_storage(a);
    }
    return err;
}

int blk_create(struct blk_loop *l, const char *format, const char *filename,
               const struct blk_opts *opts, struct blk_error *e)
{
    struct create_args a = { .l = l, .filename = filename, .e = e };
    a.fmt = blk_driver_find(format);
    if (!a.fmt) {
        return blk_err(e, EINVAL, "Unknown file format '%s'", format);
    }
    a.proto = a.fmt->protocol ? a.fmt : blk_driver_for_name(filename, e);
    if (!a.proto) {
        return -EINVAL;
    }
    if (!a.fmt->create_opts) {
        return blk_err(e, ENOTSUP, "Format driver '%s' does not support image creation", format);
    }
    if (!a.proto->create_opts) {
        return blk_err(e, ENOTSUP, "Protocol driver '%s' does not support image creation",
                       a.proto->name);
    }
    int err = check_options(a.fmt, a.proto, opts, e);
    if (err) {
        return err;
    }
    a.o = blk_opts_dup(opts);
    err = blk_run(l, create_fiber, &a);
    blk_opts_free(a.o);
    return err;
}

int blk_stream(struct blk_loop *l, const char *format, const struct blk_opts *opts,
               const struct blk_stream *s, struct blk_error *e)
{
    const struct blk_driver *fmt = blk_driver_find(format);
    struct blk_opts *o;
    int err;

    if (!fmt || !fmt->stream) {
        return blk_err(e, ENOTSUP, fmt ? "Format '%s' cannot be written to a pipe"
                                       : "Unknown file format '%s'", format);
    }
    o = blk_opts_dup(opts);
    blk_opts_setf(o, "size", "%llu", (unsigned long long)s->size);
    err = fmt->stream(o, s, e);
    blk_opts_free(o);
    return err;
}

void blk_uuid_generate(uint8_t out[16])
{
    if (getrandom(out, 16, 0) != 16) {
        memset(out, 0x5a, 16);      /* no entropy: never since Linux 3.17 for 16 bytes */
    }
    out[6] = (uint8_t)((out[6] & 0x0f) | 0x40);
    out[8] = (uint8_t)((out[8] & 0x3f) | 0x80);
}

const struct blk_option_desc blk_in_place_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "preallocation", BLK_OPT_STRING, "Preallocation mode (allowed values: off)", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

/* As large as it was, but without an image. */
static int clear_in_place(struct blk_node *n, uint64_t size, struct blk_error *e)
{
    int err = size > n->size ? blk_truncate(n, size, false, BLK_PREALLOC_OFF, e) : 0;

    if (!err && n->size) {
        err = co_write_zeroes(n, 0, BLK_MIN(n->size, (uint64_t)PROBE_CLEARED),
                              BLK_REQ_MAY_UNMAP);
        if (err) {
            blk_err_errno(e, -err, "Failed to clear the new image's first sector");
        }
    }
    return err;
}

int blk_create_in_place(struct blk_loop *l, const struct blk_driver *drv, struct blk_opts *o,
                        struct blk_error *e)
{
    struct blk_open_args a = { .filename = blk_opts_get(o, "filename"), .format = drv->name,
                               .flags = BLK_O_RDWR };
    const char *prealloc = blk_opts_get(o, "preallocation");
    enum blk_prealloc mode = BLK_PREALLOC_OFF;
    struct blk_node *n;
    uint64_t size = 0;
    int err = blk_opts_get_size(o, "size", &size, e);

    if (!err && prealloc && blk_parse_prealloc(prealloc, &mode, NULL)) {
        err = blk_err(e, EINVAL, "invalid parameter value: %s", prealloc);
    }
    if (!err && mode != BLK_PREALLOC_OFF) {
        err = blk_err(e, ENOTSUP, "Unsupported preallocation mode '%s'", prealloc);
    }
    if (err) {
        return err;
    }
    err = blk_open(l, &a, &n, e);
    if (err) {
        blk_error_prefix(e, "Protocol driver '%s' does not support creating new images, so an "
                         "existing image must be selected as the target; however, opening the "
                         "given target as an existing image failed: ", drv->name);
        return err;
    }
    err = clear_in_place(n, size, e);
    int r = blk_close(n, err ? NULL : e);
    return err ? err : r;
}

void blk_info_free(struct blk_info *i)
{
    free(i->backing_name);
    free(i->backing_full);
    free(i->backing_format);
    json_decref(i->specific);
    json_decref(i->snapshots);
    *i = (struct blk_info){ 0 };
}
