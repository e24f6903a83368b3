/*
 * open.c - from a name and options to a graph: protocol node, format probing,
 * format node, then the backing chain one layer after the other.
 *
 * Invariants
 *  - Names found inside an image are plain paths unless the user allowed their
 *    protocol; the check is blk_check_inner_name(), the only place.
 *  - The chain is opened in a loop with a limit and a check against every node
 *    above: no recursion, no endless chain.
 *  - Options nobody asked for are an error.
 */
#include "block/internal.h"
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROBE_BYTES 4096
#define DEPTH_SAID  16u
#define NODE_NAME_CHARS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._"

#define ON_TOP_FLAGS (BLK_O_SNAPSHOT | BLK_O_COPY_ON_READ)
/* Flags that only the root of a graph has. */
#define ROOT_FLAGS (BLK_O_WRITETHROUGH | BLK_O_DETECT_ZEROES | BLK_O_DETECT_UNMAP | ON_TOP_FLAGS)

/* ---- options ---------------------------------------------------------------------- */

static int check_unused(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    const char *key = blk_opts_unused(o);
    if (key) {
        return blk_err(e, EINVAL, "Block %s '%s' %s support the option '%s'",
                       blk_is_scheme(n) ? "protocol" : "format", n->drv->name,
                       blk_is_scheme(n) ? "doesn't" : "does not", key);
    }
    return 0;
}

static bool is_node_name(const char *s)
{
    size_t len = strspn(s, NODE_NAME_CHARS);
    return !s[len] && len && !strspn(s, "0123456789-._");
}

/* Options every node accepts and the core itself reads.  A value of the first few that is
 * none is complained of at once, the rest, which goes to *later, when what the node lies on
 * is open. */
static int take_common(struct blk_opts *o, unsigned *flags, struct blk_error *e,
                       struct blk_error *later)
{
    bool ro = !(*flags & BLK_O_RDWR), direct = *flags & BLK_O_DIRECT;
    bool no_flush = *flags & BLK_O_NO_FLUSH, share = *flags & BLK_O_SHARE;
    bool auto_ro = false;
    int err = 0;

    if ((err = blk_opts_get_bool(o, "read-only", &ro, e)) ||
        (err = blk_opts_get_bool(o, "auto-read-only", &auto_ro, e)) ||
        (err = blk_opts_get_bool(o, "cache.direct", &direct, e)) ||
        (err = blk_opts_get_bool(o, "cache.no-flush", &no_flush, e)) ||
        (err = blk_opts_get_bool(o, "force-share", &share, e))) {
        return err;
    }
    e = later;
    if (share && !ro) {
        return blk_err(e, EINVAL, "force-share=on can only be used with read-only images");
    }
    const char *discard = blk_opts_get(o, "discard");
    const char *detect = blk_opts_get(o, "detect-zeroes");
    if (discard && strcmp(discard, "ignore") && strcmp(discard, "off") &&
        strcmp(discard, "unmap") && strcmp(discard, "on")) {
        return blk_err(e, EINVAL, "Invalid discard option");
    }
    if (detect && strcmp(detect, "on") && strcmp(detect, "off") && strcmp(detect, "unmap")) {
        return blk_err(e, EINVAL, "invalid parameter value: %s", detect);
    }
    bool unmap = discard ? !strcmp(discard, "unmap") || !strcmp(discard, "on")
                         : (*flags & BLK_O_UNMAP) != 0;
    if (detect && !strcmp(detect, "unmap") && !unmap) {
        return blk_err(e, EINVAL, "setting detect-zeroes to unmap is not allowed without setting "
                       "discard operation to unmap");
    }
    const char *node = blk_opts_get(o, "node-name");
    if (node && !is_node_name(node)) {
        return blk_err(e, EINVAL, "Invalid node-name: '%s'", node);
    }
    if (node && strlen(node) > 31) {
        return blk_err(e, EINVAL, "Node name too long");
    }
    *flags &= ~(unsigned)(BLK_O_RDWR | BLK_O_DIRECT | BLK_O_NO_FLUSH | BLK_O_SHARE | BLK_O_UNMAP |
                          BLK_O_DETECT_ZEROES | BLK_O_DETECT_UNMAP);
    *flags |= unmap ? BLK_O_UNMAP : 0;
    if (detect && strcmp(detect, "off")) {
        *flags |= BLK_O_DETECT_ZEROES | (strcmp(detect, "on") ? BLK_O_DETECT_UNMAP : 0);
    }
    *flags |= (ro ? 0 : BLK_O_RDWR) | (direct ? BLK_O_DIRECT : 0) |
              (no_flush ? BLK_O_NO_FLUSH : 0) | (share ? BLK_O_SHARE : 0);
    return 0;
}

/* What lies below an image has its flags, and does the discards that the image passes on. */
static unsigned below_flags(unsigned flags)
{
    return (flags & ~(unsigned)ROOT_FLAGS) | BLK_O_UNMAP;
}

/* ---- protocol nodes -------------------------------------------------------------------- */

/* The option "filename" from a name: a path that was behind drv's own name is not to look as
 * if it had another's in front. */
static void set_filename(struct blk_opts *o, const char *filename, const struct blk_driver *drv)
{
    const char *name = blk_driver_path(drv, filename);
    bool odd = name != filename && blk_has_protocol(name);

    blk_opts_setf(o, "filename", "%s%s", odd ? "./" : "", name);
}

int blk_open_protocol(struct blk_loop *l, const char *filename, const struct blk_driver *drv,
                      struct blk_opts *o, unsigned flags, struct blk_node **out,
                      struct blk_error *e)
{
    const char *drvname = blk_opts_get(o, "driver"), *path = blk_opts_get(o, "filename");
    int err;

    if (!drv && !drvname && filename) {
        if (!(drv = blk_driver_for_name(filename, e))) {
            return -EINVAL;
        }
    } else if (!drv) {
        drv = drvname ? blk_driver_find(drvname) : blk_driver_for_path(path ? path : "");
    }
    if (!drv || !drv->protocol) {
        return blk_err(e, EINVAL, "Unknown driver '%s'", drvname);
    }
    if ((err = take_common(o, &flags, e, e))) {
        return err;
    }
    if (filename && !path) {
        set_filename(o, filename, drv);
    }
    const char *name = blk_opts_get(o, "filename");
    struct blk_node *n = blk_node_new(l, drv, name ? name : drv->name, flags);
    if (!n) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    err = drv->open(n, o, e);
    if (err) {
        blk_node_free(n);
        return err;
    }
    err = check_unused(n, o, e);
    if (err) {
        blk_close(n, NULL);
        return err;
    }
    *out = n;
    return 0;
}

int blk_lock_storage(struct blk_node *n, enum blk_lock_use use, struct blk_error *e)
{
    while (n->file && !n->drv->protocol) {
        n = n->file;
    }
    return n->drv->lock ? n->drv->lock(n, use, e) : 0;
}

/* Where a layer goes: below which overlay, and what names inside it may say. */
struct layer_place {
    struct blk_node *above;
    const char *backing_urls;
    bool storage;                   /* of a format: not an image of its own */
    bool json;                      /* "filename" is not short for "file.filename" */
};

/* What tells two names of one storage apart from two storages. */
static const char *node_identity(struct blk_node *n)
{
    char buf[512];
    while (n->file) {
        n = n->file;
    }
    if (!n->identity) {
        bool known = n->drv->identity && !n->drv->identity(n, buf, sizeof(buf));
        n->identity = strdup(known ? buf : n->filename);
    }
    return n->identity ? n->identity : "";
}

static int check_loop(struct blk_node *above, struct blk_node *below, struct blk_error *e)
{
    const char *mine = node_identity(below);
    for (struct blk_node *at = above; at; at = at->parent) {
        if (!strcmp(mine, node_identity(at))) {
            return blk_err(e, ELOOP, "The backing chain loops: '%.300s' is its own backing file",
                           at->shown);
        }
    }
    return 0;
}

/* ---- format nodes ------------------------------------------------------------------------ */

static bool has_suffix(const char *name, const char *suffix)
{
    size_t len = strlen(name), n = suffix ? strlen(suffix) : 0;
    return n && len > n && !strcmp(name + len - n, suffix);
}

int blk_probe_format(struct blk_node *file, const struct blk_driver **drv, bool *guessed,
                     struct blk_error *e)
{
    uint8_t *buf = blk_buf_alloc(PROBE_BYTES);
    int best = 0, err;

    if (!buf) {
        return -ENOMEM;
    }
    err = co_read(file, 0, buf, PROBE_BYTES);       /* zeros past the end */
    if (err) {
        blk_buf_free(buf);
        return blk_err_errno(e, -err, "Could not read image for determining its format");
    }
    *drv = blk_driver_find("raw");
    *guessed = true;
    size_t len = (size_t)BLK_MIN(blk_align_up(file->size, 512), (uint64_t)PROBE_BYTES);
    for (size_t i = 0; len && blk_drivers[i]; i++) {
        int score = blk_drivers[i]->probe ? blk_drivers[i]->probe(buf, len)
                    : has_suffix(file->filename, blk_drivers[i]->suffix);
        if (score > best) {
            best = score;
            *drv = blk_drivers[i];
            *guessed = false;
        }
    }
    blk_buf_free(buf);
    return *drv ? 0 : blk_err(e, EINVAL, "Could not determine image format: no format drivers");
}

static int open_format(struct blk_node *file, const struct blk_driver *drv, bool guessed,
                       struct blk_opts *o, unsigned flags, const char *backing_urls,
                       struct blk_node **out, struct blk_error *e)
{
    struct blk_node *n = blk_node_new(file->loop, drv, file->filename, flags);
    int err;

    if (!n) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    n->file = file;
    char *shown = strdup(file->shown);
    if (shown) {
        free(n->shown);
        n->shown = shown;
    }
    n->guessed_raw = guessed && !n->read_only;
    n->backing_urls = backing_urls ? strdup(backing_urls) : NULL;
    json_t *name = blk_name_by_options(file, drv, o);
    err = drv->open(n, o, e);
    if (!err) {
        err = flags & BLK_O_RDWR && !(file->oflags & BLK_O_RDWR) && !drv->keeps_writes
              ? blk_err(e, EACCES, "Block node is read-only") : 0;
        if (!err && name && !strcmp(n->filename, file->filename)) {
            blk_node_rename_json(n, name);
            name = NULL;
        }
        if (err && drv->close) {
            drv->close(n, NULL);
        }
    }
    json_decref(name);
    if (err) {
        n->file = NULL;
        if (n->data_file) {
            blk_close(n->data_file, NULL);
        }
        while (n->nmore) {
            blk_close(n->more[--n->nmore].node, NULL);
        }
        blk_node_free(n);
        return err;
    }
    *out = n;
    return 0;
}

static int open_image(struct blk_loop *l, const char *filename, const char *format,
                      struct blk_opts *o, unsigned flags, const struct layer_place *place,
                      struct blk_node **out, struct blk_error *e);

/* What a format lies on.  A filter may stand between:
 * "file.driver=fault,file.file.filename=x". */
static int open_storage(struct blk_loop *l, const char *filename, struct blk_opts *o,
                        unsigned flags, const struct layer_place *place, struct blk_node **out,
                        struct blk_error *e)
{
    const char *below = blk_opts_get(o, "driver");
    const char *name = filename || place->json ? filename : blk_opts_get(o, "filename");
    const struct blk_driver *d = below ? blk_driver_find(below) : blk_driver_filter_for(filename);
    struct layer_place under = { place->above, place->backing_urls, true, place->json };

    return d && !d->protocol
           ? open_image(l, name, below ? NULL : d->name, o, flags, &under, out, e)
           : blk_open_protocol(l, filename, NULL, o, flags, out, e);
}

int blk_refuse_node(const char *node, bool more, struct blk_error *e)
{
    return more ? blk_err(e, EINVAL, "Cannot reference an existing block device with additional "
                          "options or a new filename")
                : blk_err(e, EINVAL, "Cannot find device='%s' nor node-name='%s'", node, node);
}

/* What drv (NULL: not known yet) lies on, from its options "file.*", or what it calls that.
 * A filter's parse_name() leaves the name of that in "x-file", or what it calls that. */
static int open_below(struct blk_loop *l, const char *filename, const struct blk_driver *drv,
                      struct blk_opts *o, unsigned flags, const struct layer_place *place,
                      struct blk_node **out, struct blk_error *e)
{
    const char *child = drv && drv->child ? drv->child : "file";
    bool named = filename && drv && drv->parse_name && !blk_opts_has(o, "filename");
    int err = named ? drv->parse_name(filename, o, e) : 0;
    char prefix[32], x_child[32];

    if (err) {
        return err;
    }
    snprintf(x_child, sizeof(x_child), "x-%s", child);
    filename = named || (!filename && drv && drv->parse_name) ? blk_opts_get(o, x_child) : filename;
    snprintf(prefix, sizeof(prefix), "%s.", child);
    struct blk_opts *fo = blk_opts_take(o, prefix);
    if (blk_opts_has(o, child)) {
        err = blk_refuse_node(blk_opts_get(o, child),
                              filename || blk_opts_at(fo, 0, NULL, NULL), e);
        blk_opts_free(fo);
        return err;
    }
    if (!filename && !place->json && blk_opts_has(o, "filename") &&
        !blk_opts_has(fo, "filename")) {
        blk_opts_set(fo, "filename", blk_opts_get(o, "filename"));
    }
    if (!filename && !blk_opts_at(fo, 0, NULL, NULL)) {
        err = drv ? blk_err(e, EINVAL, "A block device must be specified for \"%s\"", child)
                  : blk_err(e, EINVAL, "Must specify either driver or file");
    } else if (drv && drv->over_images && !place->storage && blk_opts_has(fo, "driver")) {
        err = open_image(l, filename, NULL, fo, below_flags(flags), place, out, e);
    } else {
        err = open_storage(l, filename, fo, below_flags(flags), place, out, e);
    }
    blk_opts_free(fo);
    return err;
}

/* One layer without its backing file.  What is left of o nobody knows. */
static int open_layer(struct blk_loop *l, const char *filename, const char *format,
                      struct blk_opts *o, unsigned flags, const struct layer_place *place,
                      struct blk_node **out, struct blk_error *e)
{
    const struct blk_driver *drv = NULL;
    bool guessed = false;
    struct blk_node *file = NULL;
    const char *want = blk_opts_get(o, "driver");
    int err;

    want = format ? format : want;      /* what -f says goes before what json: says */
    if (want && !(drv = blk_driver_find(want))) {
        return blk_err(e, EINVAL, "Unknown driver '%s'", want);
    }
    if (drv && drv->protocol) {
        err = blk_open_protocol(l, filename, drv, o, flags, out, e);
        if (!err) {
            err = blk_lock_storage(*out, BLK_LOCK_RAW, e);
            if (err) {
                blk_close(*out, NULL);
                *out = NULL;
            }
        }
        return err;
    }
    struct blk_error later = BLK_ERROR_INIT;
    int common = take_common(o, &flags, e, &later);
    if (common && !later.err) {
        return common;
    }
    err = open_below(l, filename, drv, o, flags, place, &file, e);
    if (err) {
        return err;
    }
    if (!drv) {
        err = blk_probe_format(file, &drv, &guessed, e);
        if (!err && guessed && flags & BLK_O_RDWR && flags & BLK_O_NO_PROBE) {
            err = blk_err(e, EINVAL, "Image format was not specified for '%s' and probing "
                          "guessed raw: name the format (format=raw) to write to it", file->shown);
        }
    }
    if (!err && common) {
        err = blk_err(e, -common, "%s", later.text);
    }
    if (!err && place->above) {
        err = blk_check_inner_storage(file, e);
        err = err ? err : check_loop(place->above, file, e);
    }
    if (!err && (file->drv->protocol || file->drv->filter)) {       /* an image has its locks */
        err = blk_lock_storage(file, drv->filter || !strcmp(drv->name, "raw") ? BLK_LOCK_RAW
                                     : BLK_LOCK_FORMAT, e);
    }
    if (!err) {
        err = open_format(file, drv, guessed, o, flags, place->backing_urls, out, e);
    }
    if (err) {
        blk_close(file, NULL);
    } else if (!place->storage) {
        (*out)->can_grow = false;       /* only what an image lies on grows */
    }
    return err;
}

static int open_whole_layer(struct blk_loop *l, const char *filename, const char *format,
                            struct blk_opts *o, unsigned flags, const struct layer_place *place,
                            struct blk_node **out, struct blk_error *e)
{
    int err = open_layer(l, filename, format, o, flags, place, out, e);

    if (!err && (err = check_unused(*out, o, e))) {
        blk_close(*out, NULL);
        *out = NULL;
    }
    return err;
}

/* ---- the backing chain --------------------------------------------------------------------- */

static bool is_backing_key(const char *key)
{
    return !strcmp(key, "backing") || !strncmp(key, "backing.", 8);
}

/* What o says of the next backing file is for open_chain() to take. */
static void leave_backing(struct blk_opts *o)
{
    const char *key;

    for (size_t i = 0; blk_opts_at(o, i, &key, NULL); i++) {
        if (is_backing_key(key)) {
            blk_opts_get(o, key);
        }
    }
}

/* Open n's backing file; o: the options given for it, may name it ("backing"); more:
 * flags beyond those that n has. */
static int open_backing(struct blk_node *n, struct blk_opts *o, unsigned more,
                        struct blk_error *e)
{
    char *name = NULL;
    const char *format = n->backing_format;
    int err = 0;

    if (!blk_opts_has(o, "filename") && !blk_opts_has(o, "file.filename") && n->backing_name) {
        err = blk_check_inner_name(n, n->backing_name, e);
        name = err ? NULL : blk_resolve_beside(n, n->backing_name);
        if (!err && !name) {
            err = blk_err(e, ENOMEM, "Cannot allocate memory");
        }
    }
    if (blk_opts_has(o, "driver")) {
        format = NULL;
    }
    unsigned flags = below_flags(n->oflags) & ~(unsigned)(BLK_O_RDWR | BLK_O_CHECK | BLK_O_RESIZE);
    struct blk_opts *given = blk_opts_at(o, 0, NULL, NULL) ? blk_opts_dup(o) : NULL;
    struct blk_node *b = NULL;
    flags |= more;
    if (!err) {
        struct layer_place place = { n, n->backing_urls, false, false };
        leave_backing(o);
        err = blk_check_inner_format(format, e);
        err = err ? err : open_whole_layer(n->loop, name, format, o, flags, &place, &b, e);
        if (err) {
            /* The name once: some texts have it, the hint of a lock has it. */
            if (name && e && !*e->hint && strncmp(e->text, "Could not open '", 16)) {
                blk_error_prefix(e, "Could not open '%s': ", name);
            }
            if (!more) {
                blk_error_prefix(e, "Could not open backing file: ");
            }
        }
    }
    if (!err) {
        n->backing = b;
        b->parent = n;
        b->given = given;
        given = NULL;
    }
    blk_opts_free(given);
    free(name);
    return err;
}

/* Backing files are not opened, so nobody takes what is said of them. */
static int refuse_backing_option(const struct blk_node *n, const char *ref,
                                 const struct blk_opts *below, struct blk_error *e)
{
    const char *key = NULL;

    blk_opts_at(below, 0, &key, NULL);
    return blk_err(e, EINVAL, "Block format '%s' does not support the option 'backing%s%s'",
                   n->drv->name, ref && *ref ? "" : ".", ref && *ref ? "" : key);
}

static int open_chain(struct blk_node *top, struct blk_opts *o, struct blk_error *e)
{
    struct blk_opts *own = NULL;    /* o below the top */
    unsigned depth = 1;
    int err = 0;

    for (struct blk_node *n = top; !err && n; n = n->backing, depth++) {
        const char *ref = blk_opts_get(o, "backing");
        struct blk_opts *bo = blk_opts_take(o, "backing.");
        bool given = blk_opts_at(bo, 0, NULL, NULL);
        bool wanted = given || (ref && *ref);
        if (n->oflags & BLK_O_NO_BACKING && wanted) {
            err = refuse_backing_option(n, ref, bo, e);
        }
        if (err || n->oflags & BLK_O_NO_BACKING || (ref && !*ref) || (!n->backing_name && !wanted)) {
            blk_opts_free(bo);
            break;
        }
        if (wanted && !n->drv->backing) {
            err = blk_err(e, EINVAL, "Driver doesn't support backing files");
        } else if (ref) {
            err = blk_err(e, EINVAL, given ? "Could not open backing file: Cannot reference an "
                          "existing block device with additional options or a new filename"
                          : "Could not open backing file: Cannot find device='%s' nor "
                          "node-name='%s'", ref, ref);
        } else if (depth >= BLK_CHAIN_MAX) {
            err = blk_err(e, ELOOP, "Backing chain of '%s' is longer than %u images", top->shown,
                          BLK_CHAIN_MAX);
        } else {
            err = open_backing(n, bo, 0, e);
            /* Each layer above says it, too, as long as there is room for the reason. */
            for (unsigned i = 1; err && i < BLK_MIN(depth, DEPTH_SAID); i++) {
                blk_error_prefix(e, "Could not open backing file: ");
            }
        }
        /* What the layer below has for its own backing file stays in bo. */
        blk_opts_free(own);
        o = own = bo;
    }
    blk_opts_free(own);
    return err;
}

struct reopen_args {
    struct blk_node *n;
    struct blk_error *e;
};

static int reopen_fiber(void *arg)
{
    struct reopen_args *a = arg;
    struct blk_node *n = a->n, *old = n->backing;
    struct blk_opts *o = blk_opts_dup(old->given);
    int err;

    /* Maps of the layers above name the nodes that go. */
    for (struct blk_node *up = n; up; up = up->parent) {
        co_drain(up);
        blk_chainmap_free(up->chainmap);
        up->chainmap = NULL;
        up->below_writable = true;
    }
    n->backing = NULL;
    blk_opts_del(o, "read-only");   /* as QEMU: who commits means it */
    err = blk_close(old, a->e);
    err = err ? err : open_backing(n, o, BLK_O_RDWR | BLK_O_RESIZE, a->e);
    err = err ? err : open_chain(n->backing, o, a->e);
    blk_opts_free(o);
    return err;
}

int blk_backing_reopen_rw(struct blk_node *n, struct blk_error *e)
{
    struct reopen_args a = { blk_unfiltered(n), e };
    return blk_run(n->loop, reopen_fiber, &a);
}

struct open_args {
    struct blk_loop *l;
    const struct blk_open_args *a;
    struct blk_node **out;
    struct blk_error *e;
};

/* No backing file is null in JSON; the empty string is QEMU's old word for it. */
static void warn_of_empty_backing(const struct blk_opts *o, const char *key, const char *value)
{
    const char *dot = strrchr(key, '.');

    if (!*value && !strcmp(dot ? dot + 1 : key, "backing")) {
        json_t *v = blk_opts_json(o, key);
        if (!json_is_null(v)) {
            blk_report("warning: Use of \"backing\": \"\" is deprecated; use \"backing\": null "
                       "instead");
        }
        json_decref(v);
    }
}

static int put_copy_on_read(struct blk_node **n, struct blk_error *e)
{
    if ((*n)->read_only) {
        return blk_err(e, EINVAL, "Can't use copy-on-read on read-only device");
    }
    struct blk_opts *none = blk_opts_new();
    int err = open_format(*n, blk_driver_find("copy-on-read"), false, none,
                          (*n)->oflags & ~(unsigned)BLK_O_DETECT_ZEROES, NULL, n, e);

    blk_opts_free(none);
    return err;
}

/* An image with its backing chain.  o is used up. */
static int open_image(struct blk_loop *l, const char *filename, const char *format,
                      struct blk_opts *o, unsigned flags, const struct layer_place *place,
                      struct blk_node **out, struct blk_error *e)
{
    struct blk_opts *chain = blk_opts_new();
    struct blk_node *n = NULL;
    const char *key, *value;
    int err;

    for (size_t i = 0; blk_opts_at(o, i, &key, &value);) {
        if (is_backing_key(key)) {
            warn_of_empty_backing(o, key, value);
            blk_opts_set(chain, key, value);
            blk_opts_del(o, key);
        } else {
            i++;
        }
    }
    unsigned own = flags & ~(unsigned)ON_TOP_FLAGS;
    if (flags & BLK_O_SNAPSHOT) {
        own &= ~(unsigned)(BLK_O_RDWR | ROOT_FLAGS);
    }
    err = open_layer(l, filename, format, o, own, place, &n, e);
    if (!err) {
        err = own & BLK_O_RDWR && !(n->oflags & BLK_O_RDWR)
              ? blk_err(e, EACCES, "Block node is read-only") : open_chain(n, chain, e);
        err = err ? err : check_unused(n, o, e);
    }
    if (!err && flags & BLK_O_SNAPSHOT) {
        err = blk_put_overlay(&n, flags & ~(unsigned)ON_TOP_FLAGS, e);
    }
    if (!err && flags & BLK_O_COPY_ON_READ) {
        err = put_copy_on_read(&n, e);
    }
    if (err) {
        blk_close(n, NULL);
        n = NULL;
    }
    blk_opts_free(chain);
    *out = n;
    return err;
}

static int open_fiber(void *arg)
{
    struct open_args *oa = arg;
    const struct blk_open_args *a = oa->a;
    struct blk_opts *o = blk_opts_dup(a->opts);
    const char *filename = a->filename;
    struct layer_place place = { NULL, a->backing_urls, false, false };
    int err = 0;

    if (filename && !strncmp(filename, "json:", 5)) {
        err = blk_opts_parse_json(o, filename + 5, oa->e);
        filename = NULL;
        place.json = true;
    }
    err = err ? err : open_image(oa->l, filename, a->format, o, a->flags, &place, oa->out, oa->e);
    blk_opts_free(o);
    return err;
}

int blk_open(struct blk_loop *l, const struct blk_open_args *a, struct blk_node **out,
             struct blk_error *e)
{
    struct open_args oa = { l, a, out, e };
    *out = NULL;
    return blk_run(l, open_fiber, &oa);
}

/* Storage that n's image names, opened and locked. full NULL: o names it. */
static int open_named(struct blk_node *n, const char *full, struct blk_opts *o,
                      enum blk_lock_use use, struct blk_node **out, struct blk_error *e)
{
    struct layer_place place = { NULL, n->backing_urls, false, false };
    int err = open_storage(n->loop, full, o, below_flags(n->oflags), &place, out, e);

    if (!err && ((err = blk_check_inner_storage(*out, e)) || (err = blk_lock_storage(*out, use, e)))) {
        blk_close(*out, NULL);
        *out = NULL;
    }
    return err;
}

int blk_open_data_file(struct blk_node *n, const char *name, struct blk_opts *o,
                       struct blk_error *e)
{
    bool given = blk_opts_at(o, 0, NULL, NULL);
    int err = given ? 0 : blk_check_inner_name(n, name, e);

    if (err) {
        blk_error_prefix(e, "Could not open the data file: ");
    }
    err = err ? err : open_named(n, given ? NULL : name, o, BLK_LOCK_DATA, &n->data_file, e);
    if (!err && !strcmp(node_identity(n->data_file), node_identity(n->file))) {
        err = blk_err(e, EINVAL, "'%.300s' is its own data file", n->shown);
    }
    return err;
}

int blk_open_more(struct blk_node *n, const char *prefix, const char *name, struct blk_opts *o,
                  struct blk_error *e)
{
    struct blk_child *more = realloc(n->more, (n->nmore + 1) * sizeof(*more));
    if (!more) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    n->more = more;
    more += n->nmore;
    *more = (struct blk_child){ 0 };
    snprintf(more->name, sizeof(more->name), "%.8s.%u", prefix, n->nmore);
    char *full = NULL;
    int err = 0;
    if (name && !blk_opts_has(o, "filename")) {
        err = blk_check_inner_name(n, name, e);
        full = err ? NULL : blk_resolve_beside(n, name);
        err = err || full ? err : -ENOMEM;
    }
    err = err ? err : open_named(n, full, o, BLK_LOCK_FORMAT, &more->node, e);
    free(full);
    n->nmore += !err;
    return err;
}

int blk_open_second(struct blk_node *n, const char *prefix, struct blk_opts *o,
                    struct blk_error *e)
{
    struct blk_child *more = calloc(1, sizeof(*more));
    struct layer_place place = { NULL, n->backing_urls, false, false };
    char dotted[32];

    if (!more) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    snprintf(dotted, sizeof(dotted), "%.24s.", prefix);
    struct blk_opts *so = blk_opts_take(o, dotted);
    snprintf(more->name, sizeof(more->name), "%.20s", prefix);
    const char *name = blk_opts_get(o, "x-image");
    int err = name || blk_opts_at(so, 0, NULL, NULL) ? 0
              : blk_err(e, EINVAL, "A block device must be specified for \"%s\"", prefix);
    err = err ? err : open_image(n->loop, name, NULL, so, below_flags(n->oflags), &place, &more->node, e);
    blk_opts_free(so);
    if (err) {
        free(more);
        return err;
    }
    n->more = more;
    n->nmore = 1;
    return 0;
}
