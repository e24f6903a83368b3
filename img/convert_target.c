/*
 * convert_target.c - creating the image that convert and dd write: options of
 * its format and its protocol, the size, and -B and -F, which win over -o.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img/convert.h"
#include "img/convert_target.h"
#include "img/img.h"

static bool has_option(const struct blk_option_desc *d, const char *name)
{
    for (; d->name; d++) {
        if (!strcmp(d->name, name)) {
            return true;
        }
    }
    return false;
}

static int set_backing(struct convert_target *t, const struct blk_option_desc *descs,
                       struct blk_error *e)
{
    if (t->backing) {
        if (!has_option(descs, "backing_file")) {
            return blk_err(e, ENOTSUP, "Backing file not supported for file format '%s'",
                           t->format);
        }
        blk_opts_set(t->opts, "backing_file", t->backing);
    }
    if (t->backing_format) {
        if (!has_option(descs, "backing_fmt")) {
            return blk_err(e, ENOTSUP, "Backing file format not supported for file format '%s'",
                           t->format);
        }
        blk_opts_set(t->opts, "backing_fmt", t->backing_format);
    }
    t->backing = blk_opts_get(t->opts, "backing_file");
    t->backing_format = blk_opts_get(t->opts, "backing_fmt");
    return 0;
}

/* compression_level is no property of an image: it is for the one that writes. */
static const struct blk_option_desc level_desc = {
    "compression_level", BLK_OPT_NUMBER, "Compression level", NULL,
};

static int add_level_desc(struct blk_option_desc **descs)
{
    size_t n = 0;

    while ((*descs)[n].name) {
        n++;
    }
    struct blk_option_desc *all = realloc(*descs, (n + 2) * sizeof(*all));
    if (!all) {
        return -ENOMEM;
    }
    all[n + 1] = all[n];
    all[n] = level_desc;
    *descs = all;
    return 0;
}

static int take_level(struct convert_target *t, struct blk_error *e)
{
    const char *level = t->compress ? blk_opts_get(t->opts, level_desc.name) : NULL;

    if (!level) {
        return 0;
    }
    bool zstd = blk_opts_has(t->opts, "compression_type") &&
                !strcmp(blk_opts_get(t->opts, "compression_type"), "zstd");
    uint64_t v = 0, max = zstd ? CONVERT_ZSTD_LEVELS : CONVERT_ZLIB_LEVELS;
    int err = blk_opts_get_u64(t->opts, level_desc.name, &v, e);
    if (!err && (v < 1 || v > max)) {
        err = blk_err(e, EINVAL, "compression_level must be between 1 and %" PRIu64 " for "
                      "compression type %s", max, zstd ? "zstd" : "zlib");
    }
    t->open_opts = blk_opts_new();
    blk_opts_set(t->open_opts, "compression-level", level);
    blk_opts_del(t->opts, level_desc.name);
    return err;
}

/* The secret that opens what is created with it. */
static void take_secrets(struct convert_target *t)
{
    static const char *const keys[] = { "key-secret", "encrypt.key-secret" };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(keys); i++) {
        if (blk_opts_has(t->opts, keys[i])) {
            t->open_opts = t->open_opts ? t->open_opts : blk_opts_new();
            blk_opts_set(t->open_opts, keys[i], blk_opts_get(t->opts, keys[i]));
        }
    }
}

int convert_target_prepare(struct convert_target *t, struct blk_error *e)
{
    struct blk_option_desc *descs = img_create_descs(t->format, t->filename, e);
    char size[32];
    int ret;

    if (!descs) {
        return -EINVAL;
    }
    t->opts = blk_opts_new();
    ret = t->compress && has_option(descs, "compression_type") ? add_level_desc(&descs) : 0;
    ret = ret ? ret : img_parse_create_options(t->opts, descs, t->options, e);
    ret = ret ? ret : take_level(t, e);
    if (ret == 0) {
        take_secrets(t);
    }
    if (ret == 0) {
        snprintf(size, sizeof(size), "%" PRIu64, t->size);
        ret = img_set_create_option(t->opts, descs, "size", size, e);
    }
    if (ret == 0) {
        ret = set_backing(t, descs, e);
    }
    free(descs);
    return ret;
}

int convert_target_create(struct convert_target *t, struct blk_error *e)
{
    return blk_create(img_loop(), t->format, t->filename, t->opts, e);
}

static int first_fiber(void *arg)
{
    struct blk_node *n = arg;
    struct blk_status st;

    return blk_size(n) && !co_status(n, 0, 1, &st) && st.flags & BLK_ST_ALLOCATED;
}

/* Preallocated?  Then it is there from the first byte on. */
static bool is_allocated_first(struct blk_node *n)
{
    return blk_run(img_loop(), first_fiber, n) > 0;
}

int convert_target_measure(const struct convert_target *t, struct convert *c, bool created,
                           bool is_zero)
{
    const struct blk_limits *l = blk_node_limits(c->dst);
    struct blk_info info = { 0 };
    struct blk_error e = BLK_ERROR_INIT;
    uint32_t want = BLK_MAX(l->opt_transfer, l->discard_align);

    c->has_backing = t->backing != NULL;
    c->backing_size = UINT64_MAX;
    if (c->has_backing && created && blk_backing(c->dst)) {
        c->backing_size = blk_size(blk_backing(c->dst));
    }
    c->zero_init = is_zero;
    if (created && c->sparse && !c->has_backing) {
        c->zero_init = blk_starts_as_zeros(c->dst);
    }
    if (blk_get_info(c->dst, &info, &e)) {
        img_report(&e);
        return -EIO;
    }
    if (info.cluster_size <= CONVERT_BUF_MIN && !(info.cluster_size & (info.cluster_size - 1))) {
        c->cluster = (uint32_t)info.cluster_size;
    }
    c->block = BLK_MAX(info.cluster_size, info.mapping_size);
    c->whole_clusters = created && c->cluster && info.mapping_size == info.cluster_size &&
                        !blk_data_file(c->dst) && !is_allocated_first(c->dst);
    c->compress = c->compress || info.needs_compressed;
    blk_info_free(&info);
    if (c->compress && !c->cluster) {
        img_error("invalid cluster size");
        return -EINVAL;
    }
    /* Clusters of which something is there already have to be read first: so they come to lie
     * in their order, as QEMU puts them. */
    c->one_at_a_time = (!created || blk_backing(c->dst)) && c->cluster && !c->compress &&
                       !c->out_of_order;
    c->buf_size = BLK_MIN(CONVERT_BUF_MAX, BLK_MAX(CONVERT_BUF_MIN, (want + 4095u) & ~4095u));
    return 0;
}

void convert_target_free(struct convert_target *t)
{
    blk_opts_free(t->opts);
    blk_opts_free(t->open_opts);
    t->opts = t->open_opts = NULL;
}
