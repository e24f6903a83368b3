/*
 * image.c - opening and closing an image as the command line names it: a file
 * name, URL or json: text with -f, or an option list with --image-opts.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

/* What messages call the image: never with a password in it. */
static void report_open(const struct img_image *im, const struct blk_error *e)
{
    char *shown = blk_redact(im->filename);

    img_report_prefixed(e, "Could not open '%s': ", shown ? shown : "");
    free(shown);
}

/* -U against force-share=off in the list is a contradiction, not a default. */
static int take_force_share(struct blk_opts *o, unsigned *flags)
{
    bool asked = *flags & BLK_O_SHARE, share = asked;

    if (!blk_opts_has(o, "force-share")) {
        return 0;
    }
    if (blk_opts_get_bool(o, "force-share", &share, NULL)) {
        return 0;                       /* refused when the image is opened */
    }
    if (asked && !share) {
        img_error("--force-share/-U conflicts with image options");
        return -EINVAL;
    }
    blk_opts_del(o, "force-share");
    *flags |= share ? BLK_O_SHARE : 0;
    return 0;
}

static void warn_guessed(struct blk_node *n)
{
    if (!blk_raw_guessed(n)) {
        return;
    }
    fprintf(stderr, "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, write "
            "operations on block 0 will be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.\n",
            blk_filename(blk_file(n)));
}

struct blk_opts *img_image_options(const struct img_image *im, unsigned *flags)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_opts *o = blk_opts_new();

    if (im->image_opts && im->format) {
        img_error("--image-opts and --format are mutually exclusive");
    } else if (im->image_opts && blk_opts_parse_loose(o, im->filename, "file", &e)) {
        img_report(&e);
    } else if (!im->image_opts || !take_force_share(o, flags)) {
        return o;
    }
    blk_opts_free(o);
    return NULL;
}

static struct blk_node *open_opts(const struct img_image *im)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_open_args args = { .flags = im->flags, .backing_urls = img_backing_urls };
    struct blk_opts *o = img_image_options(im, &args.flags);
    struct blk_node *n = NULL;

    args.opts = o;
    if (o && blk_open(img_loop(), &args, &n, &e)) {
        report_open(im, &e);
        n = NULL;
    }
    blk_opts_free(o);
    return n;
}

static struct blk_node *open_name(const struct img_image *im)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_open_args args = {
        .filename = im->filename, .format = im->format, .flags = im->flags, .opts = im->opts,
        .backing_urls = img_backing_urls,
    };
    struct blk_node *n;

    if (blk_open(img_loop(), &args, &n, &e)) {
        report_open(im, &e);
        return NULL;
    }
    return n;
}

struct blk_node *img_open(const struct img_image *im)
{
    struct blk_node *n;

    n = im->image_opts ? open_opts(im) : open_name(im);
    if (n) {
        warn_guessed(n);
    }
    return n;
}

int img_close(struct blk_node *n)
{
    struct blk_error e = BLK_ERROR_INIT;
    int err = blk_close(n, &e);

    if (err) {
        img_report(&e);
    }
    return err;
}

/* ---- snapshots as sources ------------------------------------------------------ */

#define SNAPSHOT_KEYS "snapshot."

int img_check_snapshot(const char *text)
{
    struct blk_opts *o;
    struct blk_error e = BLK_ERROR_INIT;
    const char *key;

    if (strncmp(text, SNAPSHOT_KEYS, strlen(SNAPSHOT_KEYS))) {
        return 0;
    }
    o = blk_opts_new();
    if (blk_opts_parse_loose(o, text, NULL, &e) == 0) {
        blk_opts_get(o, "snapshot.id");
        blk_opts_get(o, "snapshot.name");
        if ((key = blk_opts_unused(o))) {
            blk_err(&e, EINVAL, "Invalid parameter '%s'", key);
        }
    }
    blk_opts_free(o);
    if (e.err) {
        img_report(&e);
        img_error("Failed in parsing snapshot param '%s'", text);
        return -EINVAL;
    }
    return 0;
}

int img_load_snapshot(struct blk_node *n, const char *text)
{
    struct blk_error e = BLK_ERROR_INIT;
    int err;

    if (!strncmp(text, SNAPSHOT_KEYS, strlen(SNAPSHOT_KEYS))) {
        struct blk_opts *o = blk_opts_new();
        blk_opts_parse(o, text, NULL, NULL);
        err = blk_snapshot_load(n, blk_opts_get(o, "snapshot.id"),
                                blk_opts_get(o, "snapshot.name"), &e);
        blk_opts_free(o);
    } else if ((err = blk_snapshot_load(n, text, NULL, &e)) == -ENOENT) {
        blk_error_clear(&e);
        err = blk_snapshot_load(n, NULL, text, &e);
    }
    if (err) {
        img_report_prefixed(&e, "Failed to load snapshot: ");
    }
    return err;
}
