/*
 * io_open.c - platter-io: opening an image, for the command line and for the open command
 * alike, closing it, and opening it again with other options.
 */
#include "tools/io.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool io_failed(const struct blk_error *e)
{
    fprintf(stderr, "%s: %s\n", blk_program, e->text);
    if (*e->hint)
        fprintf(stderr, "%s\n", e->hint);
    return false;
}

bool io_say(const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "%s: ", blk_program);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    return false;
}

/* ---- options ------------------------------------------------------------------------ */

static bool cache_mode(unsigned *flags, const char *mode)
{
    return blk_parse_cache(mode, flags) == 0 || io_say("Invalid cache option: %s", mode);
}

static bool aio_mode(struct io_open *o, const char *mode)
{
    if (strcmp(mode, "threads") && strcmp(mode, "native") && strcmp(mode, "io_uring"))
        return io_say("Invalid aio option: %s", mode);
    o->native_aio = !strcmp(mode, "native");
    return true;
}

static bool discard_mode(struct io_open *o, const char *mode)
{
    bool off = !strcmp(mode, "ignore") || !strcmp(mode, "off");

    if (!off && strcmp(mode, "unmap") && strcmp(mode, "on"))
        return io_say("Invalid discard option: %s", mode);
    o->flags &= ~(unsigned)BLK_O_UNMAP;
    o->flags |= off ? 0 : BLK_O_UNMAP;
    return true;
}

bool io_open_flag(struct io_open *o, int letter, const char *value)
{
    switch (letter) {
    case 'r': o->flags &= ~(unsigned)BLK_O_RDWR; return true;
    case 's': o->snapshot = true; return true;
    case 'C': o->copy_on_read = true; return true;
    case 'k': o->native_aio = true; return true;
    case 'n': return cache_mode(&o->flags, "none");
    case 'U': o->flags |= BLK_O_SHARE; return true;
    case 't': return cache_mode(&o->flags, value);
    case 'i': return aio_mode(o, value);
    default: return discard_mode(o, value);
    }
}

bool io_open_options(struct io_open *o, const char *text)
{
    struct blk_error e = BLK_ERROR_INIT;

    o->opts = o->opts ? o->opts : blk_opts_new();
    return blk_opts_parse_loose(o->opts, text, NULL, &e) == 0 || io_failed(&e);
}

void io_open_release(struct io_open *o)
{
    free(o->filename);
    free(o->format);
    blk_opts_free(o->opts);
    *o = (struct io_open){ 0 };
}

/* ---- opening ------------------------------------------------------------------------- */

static int open_as_said(struct shell *sh, const struct io_open *o, struct blk_error *e)
{
    struct blk_open_args a = { .filename = o->filename, .format = o->format, .opts = o->opts,
                               .flags = o->flags, .backing_urls = sh->backing_urls };
    bool writes = o->flags & BLK_O_RDWR;
    struct blk_node *n = NULL;
    int err;

    if (o->native_aio && !(o->flags & BLK_O_DIRECT))
        return blk_err(e, EINVAL, "aio=native was specified, but it requires cache.direct=on, "
                       "which was not specified.");
    if (o->flags & BLK_O_SHARE && o->opts && blk_opts_has(o->opts, "force-share"))
        blk_opts_del(o->opts, "force-share");
    a.flags |= (o->snapshot && writes ? BLK_O_SNAPSHOT : 0u) |
               (o->copy_on_read ? BLK_O_COPY_ON_READ : 0u);
    err = blk_open(sh->loop, &a, &n, e);
    sh->node = err ? NULL : n;
    return err;
}

static void warn_guessed(const struct shell *sh)
{
    if (blk_raw_guessed(sh->node))
        fprintf(stderr, "WARNING: Image format was not specified for '%s' and probing guessed "
                "raw.\n         Automatically detecting the format is dangerous for raw images, "
                "write operations on block 0 will be restricted.\n         Specify the 'raw' "
                "format explicitly to remove the restrictions.\n", blk_filename(sh->node));
}

static bool may_open(const struct shell *sh, const struct io_open *o)
{
    const char *key, *value;

    if (sh->node)
        return io_say("file open already, try 'help close'");
    for (size_t i = 0; o->flags & BLK_O_SHARE && o->opts && blk_opts_at(o->opts, i, &key, &value);
         i++)
        if (!strcmp(key, "force-share") && strcmp(value, "on"))
            return io_say("-U conflicts with image options");
    return true;
}

bool io_open_file(struct shell *sh, struct io_open *o)
{
    struct blk_error e = BLK_ERROR_INIT;

    if (!may_open(sh, o)) {
        io_open_release(o);
        return false;
    }
    io_open_release(&sh->opened);
    sh->opened = *o;
    *o = (struct io_open){ 0 };
    if (open_as_said(sh, &sh->opened, &e) == 0) {
        warn_guessed(sh);
        return true;
    }
    char *shown = sh->opened.filename ? blk_redact(sh->opened.filename) : NULL;
    blk_error_prefix(&e, "can't open%s%s: ", shown ? " device " : "", shown ? shown : "");
    free(shown);
    return io_failed(&e);
}

bool io_cmd_open(struct shell *sh, int argc, char **argv)
{
    struct io_open o = { .flags = IO_OPEN_FLAGS };
    bool ok = true;
    int c;

    optind = 0;
    while (ok && (c = getopt(argc, argv, "snCro:ki:t:d:U")) != -1) {
        if (c == 'o')
            ok = io_open_options(&o, optarg);
        else if (c == '?')
            ok = io_bad_usage(argv[0]);
        else
            ok = io_open_flag(&o, c, optarg);
    }
    if (ok && optind < argc - 1)
        ok = io_bad_usage(argv[0]);
    if (!ok) {
        io_open_release(&o);
        return false;
    }
    o.filename = optind < argc ? strdup(argv[optind]) : NULL;
    return io_open_file(sh, &o);
}

bool io_cmd_close(struct shell *sh, int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n = sh->node;

    io_cmd_aio_flush(sh, 0, NULL);
    sh->node = NULL;
    return blk_close(n, &e) == 0 || io_failed(&e);
}

/* ---- reopen -------------------------------------------------------------------------- */

/* What QEMU can change of an open image. */
static bool can_change(const char *format, const char *key)
{
    static const char *const any[] = {
        "read-only", "auto-read-only", "cache.direct", "cache.no-flush", "discard",
        "detect-zeroes",
    };
    static const char *const qcow2[] = {
        "lazy-refcounts", "pass-discard-request", "pass-discard-snapshot", "pass-discard-other",
        "discard-no-unref", "cache-size", "l2-cache-size", "l2-cache-entry-size",
        "refcount-cache-size", "cache-clean-interval", "overlap-check",
    };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(any); i++)
        if (!strcmp(key, any[i]))
            return true;
    for (size_t i = 0; !strcmp(format, "qcow2") && i < BLK_ARRAY_SIZE(qcow2); i++)
        if (!strcmp(key, qcow2[i]))
            return true;
    return (!strcmp(format, "qcow2") && !strncmp(key, "overlap-check.", 14)) ||
           (!strcmp(format, "raw") && (!strcmp(key, "size") || !strcmp(key, "offset")));
}

static bool may_change(const struct shell *sh, const char *key, const char *value)
{
    const char *format = blk_format_name(io_image(sh)), *full = key;
    const struct blk_opts *old = sh->opened.opts;
    const char *k, *v;

    if (!strcmp(key, "backing") || !strcmp(key, "file"))
        return *value ? io_say("Cannot find device='' nor node-name='%s'", value)
                      : io_say("Cannot change the option '%s'", key);
    while (!strncmp(key, "file.", 5) || !strncmp(key, "backing.", 8)) {
        key += *key == 'f' ? 5 : 8;
        format = "";
    }
    for (size_t i = 0; old && blk_opts_at(old, i, &k, &v); i++)
        if (!strcmp(k, full) && !strcmp(v, value))
            return true;
    if (can_change(format, key) || (key == full && !strcmp(key, "driver") && !strcmp(value, format)))
        return true;
    return io_say("Cannot change the option '%s'", key);
}

struct reopen {
    unsigned flags;
    bool has_rw, has_cache;
    struct blk_opts *opts;          /* of -o */
};

/* 'r' or 'w'. */
static bool reopen_rw(struct reopen *r, int letter)
{
    if (r->has_rw)
        return io_say("Only one -r/-w option may be given");
    r->has_rw = true;
    r->flags &= ~(unsigned)BLK_O_RDWR;
    r->flags |= letter == 'w' ? BLK_O_RDWR : 0;
    return true;
}

static bool reopen_parse(struct reopen *r, int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    bool ok = true;
    int c;

    optind = 0;
    while (ok && (c = getopt(argc, argv, "c:o:rw")) != -1) {
        switch (c) {
        case 'c':
            ok = cache_mode(&r->flags, optarg);
            r->has_cache = true;
            break;
        case 'o':
            ok = blk_opts_parse_loose(r->opts, optarg, NULL, &e) == 0 || io_failed(&e);
            break;
        case 'r': case 'w':
            ok = reopen_rw(r, c);
            break;
        default:
            return io_bad_usage(argv[0]);
        }
    }
    if (ok && optind != argc)
        return io_bad_usage(argv[0]);
    if (ok && r->has_rw && blk_opts_has(r->opts, "read-only"))
        return io_say("Cannot set both -r/-w and 'read-only'");
    if (ok && r->has_cache && (blk_opts_has(r->opts, "cache.direct") ||
                               blk_opts_has(r->opts, "cache.no-flush")))
        return io_say("Cannot set both -c and the cache options");
    return ok;
}

/* The options so far, those of -r, -w and -c out of them, and what -o adds. */
static struct blk_opts *reopen_merge(const struct shell *sh, const struct reopen *r)
{
    struct blk_opts *o = blk_opts_dup(sh->opened.opts);
    const char *key, *value;

    if (r->has_rw)
        blk_opts_del(o, "read-only");
    if (r->has_cache) {
        blk_opts_del(o, "cache.direct");
        blk_opts_del(o, "cache.no-flush");
    }
    for (size_t i = 0; blk_opts_at(r->opts, i, &key, &value); i++)
        if (strcmp(key, "driver"))
            blk_opts_set(o, key, value);
    return o;
}

/* Closed, and opened with the new options; with the old ones if that fails. */
static bool reopen_swap(struct shell *sh, const struct reopen *r)
{
    struct blk_error e = BLK_ERROR_INIT, again = BLK_ERROR_INIT;
    struct io_open old = sh->opened, now = old;

    now.opts = reopen_merge(sh, r);
    now.flags = r->flags;
    if (r->opts && blk_opts_has(r->opts, "read-only")) {
        bool ro = false;

        blk_opts_get_bool(now.opts, "read-only", &ro, NULL);
        now.flags = ro ? now.flags & ~(unsigned)BLK_O_RDWR : now.flags | BLK_O_RDWR;
    }
    int err = blk_close(sh->node, &e);
    sh->node = NULL;
    err = err ? err : open_as_said(sh, &now, &e);
    if (err && open_as_said(sh, &old, &again))
        io_failed(&again);
    blk_opts_free(err ? now.opts : old.opts);
    sh->opened = err ? old : now;
    return err == 0 || io_failed(&e);
}

bool io_cmd_reopen(struct shell *sh, int argc, char **argv)
{
    struct reopen r = { .flags = sh->opened.flags, .opts = blk_opts_new() };
    bool ok = reopen_parse(&r, argc, argv);
    const char *key, *value;

    io_cmd_aio_flush(sh, 0, NULL);
    for (size_t i = 0; ok && blk_opts_at(r.opts, i, &key, &value); i++)
        ok = may_change(sh, key, value);
    if (ok && sh->opened.snapshot)
        ok = io_say("An image opened with -s cannot be opened again");
    ok = ok && reopen_swap(sh, &r);
    blk_opts_free(r.opts);
    return ok;
}
