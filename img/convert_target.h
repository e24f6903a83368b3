/*
 * convert_target.h - creating the image that convert and dd write.
 */
#ifndef PLATTER_IMG_CONVERT_TARGET_H
#define PLATTER_IMG_CONVERT_TARGET_H

#include "block/block.h"

/* Levels of -o compression_level, from 1 on. */
#define CONVERT_ZLIB_LEVELS 12u
#define CONVERT_ZSTD_LEVELS 22u

struct convert_target {
    const char *filename, *format;
    const char *options;            /* -o, or NULL */
    const char *backing, *backing_format;   /* -B, -F, or NULL */
    uint64_t size;
    bool compress;                  /* compression_level is an option then */
    /* Made by convert_target_prepare(): for creating it, and for opening it then. */
    struct blk_opts *opts, *open_opts;
};

/* Check the creation options; fills t->opts and takes a backing file that
 * t->options names into t->backing (owned by t->opts).  0 or -errno with the
 * message in e. */
int convert_target_prepare(struct convert_target *t, struct blk_error *e);
/* Write the empty image. Fiber. */
int convert_target_create(struct convert_target *t, struct blk_error *e);
/* What the open target c->dst is like decides how it is written: fills c's side of that.
 * created: it is new; is_zero: it is known to read as zeros.  0 or -errno, printed. */
struct convert;
int convert_target_measure(const struct convert_target *t, struct convert *c, bool created,
                           bool is_zero);
void convert_target_free(struct convert_target *t);

#endif
