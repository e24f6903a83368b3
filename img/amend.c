/*
 * amend.c - platter-img amend: change properties of an image in place.
 *
 * Options are the format's; one that only creation takes is told apart from one that
 * nobody knows.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

#define PROGRESS_UNITS 10000u

struct amend {
    struct img_image image;
    char *options;              /* all -o, joined */
    bool progress, force, json;
    json_t *result;             /* what was changed, for --output=json */
};

static int print_help(const char *format)
{
    const struct blk_option_desc *d = blk_amend_options(format);

    if (!blk_driver_known(format)) {
        img_error("Unknown file format '%s'", format);
        return 1;
    }
    if (!d) {
        img_error("Format driver '%s' does not support option amendment", format);
        return 1;
    }
    printf("Amend options for '%s':\n", format);
    img_print_descs(d);
    return 0;
}

/* Whether it would do if what only create takes were taken, too. */
static bool would_create(const struct amend *a, const char *format)
{
    const struct blk_option_desc *lists[] = { blk_amend_options(format),
                                              blk_create_options(format) };
    struct blk_option_desc all[64] = { 0 };
    struct blk_opts *probe = blk_opts_new();
    size_t n = 0;

    for (size_t i = 0; i < BLK_ARRAY_SIZE(lists); i++) {
        for (const struct blk_option_desc *d = lists[i]; d && d->name; d++) {
            if (n < BLK_ARRAY_SIZE(all) - 1) {
                all[n++] = *d;
            }
        }
    }
    bool good = !img_parse_create_options(probe, all, a->options, NULL);
    blk_opts_free(probe);
    return good;
}

static int parse_for(const struct amend *a, const char *format, struct blk_opts *o)
{
    struct blk_error e = BLK_ERROR_INIT;
    int err = img_parse_create_options(o, blk_amend_options(format), a->options, &e);

    if (!err) {
        return 0;
    }
    if (would_create(a, format)) {
        blk_error_hint(&e, "This option is only supported for image creation");
    }
    img_report(&e);
    return err;
}

static void on_progress(void *arg, double fraction)
{
    img_progress_set((uint64_t)(fraction * PROGRESS_UNITS), PROGRESS_UNITS, false);
}

static int amend_image(struct amend *a, struct blk_node *n)
{
    const char *format = blk_format_name(n);
    struct blk_amend how = { .force = a->force, .progress = on_progress };
    struct blk_error e = BLK_ERROR_INIT;

    if (img_options_want_help(a->options)) {
        return print_help(format) ? -EINVAL : 0;
    }
    if (!blk_amend_options(format)) {
        img_error("Format driver '%s' does not support option amendment", format);
        return -ENOTSUP;
    }
    struct blk_opts *o = blk_opts_new();
    int err = parse_for(a, format, o);
    if (!err) {
        img_progress_set(0, PROGRESS_UNITS, false);
        err = blk_amend(n, o, &how, &e);
        img_progress_set(PROGRESS_UNITS, PROGRESS_UNITS, false);
        if (err) {
            img_report(&e);
        } else if (a->json) {
            a->result = json_pack("{s:o, s:s, s:o}", "filename",
                                  img_json_string(a->image.filename), "format", format, "options",
                                  img_options_json(o, blk_amend_options(format)));
        }
    }
    blk_opts_free(o);
    return err;
}

static int amend_run(void *arg)
{
    struct amend *a = arg;
    img_progress_start(a->progress, 1.0);
    struct blk_node *n = img_open(&a->image);
    int err = n ? amend_image(a, n) : -EINVAL;

    img_progress_end();
    int close_err = img_close(n);
    if (err || close_err || !a->json || img_options_want_help(a->options)) {
        json_decref(a->result);
        return err || close_err ? 1 : 0;
    }
    return img_json_result(a->result);
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct amend *a, int argc, char **argv)
{
    enum { OPT_FORCE = IMG_OPT_FIRST_FREE };
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"quiet", no_argument, NULL, 'q'},
        {"progress", optional_argument, NULL, 'p'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"cache", required_argument, NULL, 't'},
        {"force", no_argument, NULL, OPT_FORCE},
        {"options", required_argument, NULL, 'o'},
        {NULL, 0, NULL, 0},
    };
    const char *cache = "writeback";
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hqpf:t:o:", longs, NULL)) != -1) {
        switch (ch) {
        case 'p':
            if (img_parse_progress(optarg, &a->progress)) {
                return 1;
            }
            break;
        case 't':
            cache = optarg;
            break;
        case 'o':
            if (img_add_options(&a->options, optarg)) {
                return 1;
            }
            break;
        case OPT_FORCE:
            a->force = true;
            break;
        default:
            status = img_common_option(&img_amend, ch, argv[0], &a->image, &a->json);
            break;
        }
    }
    if (status >= 0) {
        return status;
    }
    if (!a->options) {
        return img_usage_error(argv[0], "Must specify options (-o)");
    }
    if (a->image.format && img_options_want_help(a->options)) {
        return print_help(a->image.format);
    }
    if (optind != argc - 1) {
        img_error("Expecting one image file name");
        return 1;
    }
    if (img_parse_cache("", cache, &a->image.flags)) {
        return 1;
    }
    return -1;
}

static int amend_main(int argc, char **argv)
{
    struct amend a = { .image.flags = BLK_O_RDWR | BLK_O_RESIZE };
    int status = parse_options(&a, argc, argv);

    if (status < 0) {
        a.progress &= !a.image.quiet;
        a.image.filename = argv[optind];
        status = img_run(amend_run, &a);
    }
    free(a.options);
    return status;
}

const struct img_command img_amend = {
    .name = "amend",
    .summary = "Change properties of an image in place",
    .synopsis = "[-f FMT | --image-opts] [-t CACHE] [--force] [-p] [--progress=FD|json]\n"
                "        [--output human|json] [-q] -o OPTIONS FILENAME",
    .arguments =
        "  -q, --quiet\n     say nothing unless it fails\n"
        "  -p, --progress\n     show how far it is\n"
        "  --progress=FD|json\n     lines of JSON about it, to file descriptor FD or standard error\n"
        "  --output human|json\n     how to print the result\n"
        "  -f, --format FMT\n     format of the image (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  -t, --cache CACHE\n     cache mode: none, writeback (default), writethrough, directsync,\n"
        "     unsafe\n"
        "  -o, --options KEY=VALUE,...\n     what is to change; '-o help' lists it\n"
        "  --force\n     also what may lose all data, such as erasing the last password\n"
        "  --object OBJDEF\n     an object such as a secret\n",
    .main = amend_main,
};
