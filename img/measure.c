/*
 * measure.c - platter-img measure: how large a file would be after a convert.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

struct measure {
    struct img_image image;     /* filename NULL: measure a size */
    const char *target_format, *snapshot;
    char *options;
    bool json, has_size;
    uint64_t size;
};

static void print_human(const struct blk_measure *m)
{
    printf("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n",
           m->required, m->fully_allocated);
    if (m->has_bitmaps) {
        printf("bitmaps size: %" PRIu64 "\n", m->bitmaps);
    }
}

static void print_json(const struct blk_measure *m)
{
    json_t *o = json_pack("{sI, sI}", "required", (json_int_t)m->required,
                          "fully-allocated", (json_int_t)m->fully_allocated);

    if (m->has_bitmaps) {
        json_object_set_new(o, "bitmaps", json_integer((json_int_t)m->bitmaps));
    }
    img_json_print(o);
    json_decref(o);
}

static int target_options(const struct measure *m, struct blk_opts *o, struct blk_error *e)
{
    struct blk_option_desc *descs = img_create_descs(m->target_format, "", e);
    int err;

    if (!descs) {
        return -e->err;
    }
    err = img_parse_create_options(o, descs, m->options, e);
    free(descs);
    if (err) {
        img_report(e);
        blk_error_clear(e);
        return blk_err(e, EINVAL, "Invalid options for file format '%s'", m->target_format);
    }
    if (m->has_size) {
        blk_opts_setf(o, "size", "%" PRIu64, m->size);
    }
    return 0;
}

static int measure_target(const struct measure *m, struct blk_node *src)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_measure result = { 0 };
    struct blk_opts *o = blk_opts_new();
    int err = target_options(m, o, &e);

    if (!err) {
        err = blk_measure(img_loop(), m->target_format, src, o, &result, &e);
    }
    blk_opts_free(o);
    if (err) {
        blk_err(&e, -err, "%s", strerror(-err));        /* if it has no words yet */
        img_report(&e);
        return 1;
    }
    if (m->json) {
        print_json(&result);
    } else {
        print_human(&result);
    }
    return 0;
}

static int measure_run(void *arg)
{
    const struct measure *m = arg;
    struct blk_node *src = NULL;
    int status;

    if (m->image.filename && !(src = img_open(&m->image))) {
        return 1;
    }
    status = m->snapshot && img_load_snapshot(src, m->snapshot) ? 1 : measure_target(m, src);
    return img_close(src) ? 1 : status;
}

static int check_arguments(struct measure *m, int argc, char **argv)
{
    if (argc - optind > 1) {
        img_error("At most one filename argument is allowed.");
        return 1;
    }
    m->image.filename = argc > optind ? argv[optind] : NULL;
    if (!m->image.filename && (m->image.image_opts || m->image.format || m->snapshot)) {
        img_error("--image-opts, -f, and -l require a filename argument.");
        return 1;
    }
    if (!m->image.filename && !m->has_size) {
        img_error("Either --size N or one filename must be specified.");
        return 1;
    }
    if (m->image.filename && m->has_size) {
        img_error("--size N cannot be used together with a filename.");
        return 1;
    }
    return 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct measure *m, int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"source-format", required_argument, NULL, 'f'},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"snapshot", required_argument, NULL, 'l'},
        {"target-format", required_argument, NULL, 'O'},
        {"options", required_argument, NULL, 'o'},
        {"size", required_argument, NULL, 's'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {"force-share", no_argument, NULL, 'U'},
        {NULL, 0, NULL, 0},
    };
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hf:l:O:o:U", longs, NULL)) != -1) {
        switch (ch) {
        case 'l':
            m->snapshot = optarg;
            if (img_check_snapshot(optarg)) {
                return 1;
            }
            break;
        case 'O':
            m->target_format = optarg;
            break;
        case 'o':
            if (img_add_options(&m->options, optarg)) {
                return 1;
            }
            break;
        case 's':
            if (img_parse_size("image size", optarg, &m->size)) {
                return 1;
            }
            m->has_size = true;
            break;
        default:
            status = img_common_option(&img_measure, ch, argv[0], &m->image, &m->json);
            break;
        }
    }
    return status;
}

static int measure_main(int argc, char **argv)
{
    struct measure m = { .target_format = "raw" };
    int status = parse_options(&m, argc, argv);

    if (status < 0) {
        status = check_arguments(&m, argc, argv);
        if (!status) {
            status = img_run(measure_run, &m);
        }
    }
    free(m.options);
    return status;
}

const struct img_command img_measure = {
    .name = "measure",
    .summary = "Calculate the file size a new image needs",
    .synopsis = "[-f FMT | --image-opts] [-O FMT] [-o OPTIONS] [--output human|json]\n"
                "        [-l SNAPSHOT] [-U] (--size SIZE | FILENAME)",
    .arguments =
        "  -O, --target-format FMT\n     format of the new image (default raw)\n"
        "  -o, --options KEY=VALUE,...\n     its creation options\n"
        "  --size SIZE\n     measure an empty image of this size\n"
        "  -f, --format FMT\n     format of FILENAME (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  -l, --snapshot SNAPSHOT\n     measure an internal snapshot of FILENAME: its id or name, or\n"
        "     snapshot.id=ID,snapshot.name=NAME\n"
        "  --output human|json\n     how to print\n"
        "  -U, --force-share\n     take no locks on FILENAME\n"
        "  --object OBJDEF\n     an object such as a secret\n"
        "  FILENAME\n     measure what converting this image would need\n",
    .main = measure_main,
};
