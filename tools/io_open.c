/*
 * io_open.c - platter-io: opening an image, for the command line and for the open
 * command alike.
 */
#include "tools/io.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool io_failed(const struct blk_error *e)
{
    fprintf(stderr, "%s: %s\n", blk_program, e->text);
    if (*e->hint)
        fprintf(stderr, "%s\n", e->hint);
    return false;
}

static bool io_cache_flags(const char *mode, unsigned *flags)
{
    static const struct { const char *name; unsigned flags; } modes[] = {
        { "none", BLK_O_DIRECT }, { "off", BLK_O_DIRECT },
        { "directsync", BLK_O_DIRECT | BLK_O_WRITETHROUGH },
        { "writeback", 0 }, { "writethrough", BLK_O_WRITETHROUGH }, { "unsafe", BLK_O_NO_FLUSH },
    };

    *flags &= ~(unsigned)(BLK_O_DIRECT | BLK_O_WRITETHROUGH | BLK_O_NO_FLUSH);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(modes); i++) {
        if (!strcmp(mode, modes[i].name)) {
            *flags |= modes[i].flags;
            return true;
        }
    }
    fprintf(stderr, "%s: Invalid cache option: %s\n", blk_program, mode);
    return false;
}

bool io_open_flag(struct io_open *o, int letter, const char *value)
{
    switch (letter) {
    case 'r': o->flags &= ~(unsigned)BLK_O_RDWR; return true;
    case 'n': o->flags |= BLK_O_DIRECT; return true;
    case 'U': o->flags |= BLK_O_SHARE; return true;
    case 't': return io_cache_flags(value, &o->flags);
    default:
        if (!strcmp(value, "ignore") || !strcmp(value, "off")) {
            o->flags &= ~(unsigned)BLK_O_UNMAP;
        } else if (strcmp(value, "unmap") && strcmp(value, "on")) {
            fprintf(stderr, "%s: Invalid discard option: %s\n", blk_program, value);
            return false;
        }
        return true;
    }
}

bool io_open_options(struct io_open *o, const char *text)
{
    struct blk_error e = BLK_ERROR_INIT;

    o->opts = o->opts ? o->opts : blk_opts_new();
    return blk_opts_parse(o->opts, text, NULL, &e) == 0 || io_failed(&e);
}

bool io_open(struct blk_loop *l, const struct io_open *o, const char *backing_urls,
             struct blk_node **out)
{
    struct blk_open_args a = { .filename = o->filename, .format = o->format, .opts = o->opts,
                               .flags = o->flags, .backing_urls = backing_urls };
    struct blk_error e = BLK_ERROR_INIT;

    if (*out) {
        fprintf(stderr, "%s: file open already, try 'help close'\n", blk_program);
        return false;
    }
    if (blk_open(l, &a, out, &e) == 0)
        return true;
    char *shown = o->filename ? blk_redact(o->filename) : NULL;
    fprintf(stderr, "%s: can't open%s%s: %s\n", blk_program, shown ? " device " : "",
            shown ? shown : "", e.text);
    if (*e.hint)
        fprintf(stderr, "%s\n", e.hint);
    free(shown);
    return false;
}
