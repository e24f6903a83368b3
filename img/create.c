/*
 * create.c - platter-img create: make an empty image, on top of a backing file
 * or not.
 *
 * All that can be known to be wrong is refused before the target is touched,
 * and "Formatting ..." is printed just before it is.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

struct create {
    const char *filename, *format;
    const char *backing, *backing_format;   /* -b, -F */
    char *options;                          /* all -o, joined */
    bool quiet, unsafe, json;               /* -q, -u, --output */
    bool has_size;
    uint64_t size;
};

static const char *take_backing_name(struct blk_opts *o, const struct create *c,
                                     struct blk_error *e)
{
    const char *name = blk_opts_get(o, "backing_file");

    if (name && !strcmp(name, c->filename)) {
        blk_err(e, EINVAL, "Error: Trying to create an image with the same filename as the "
                "backing file");
    } else if (name && !*name) {
        blk_err(e, EINVAL, "Expected backing file name, got empty string");
    }
    return name;
}

/* Open the backing image to see that it is one, and for its size when none was
 * given. */
static int look_at_backing(struct blk_opts *o, const char *name, const struct create *c,
                           struct blk_error *e)
{
    char *full = blk_resolve_name(c->filename, name);
    const char *format = blk_opts_get(o, "backing_fmt");
    struct blk_open_args args = { .filename = full, .format = format, .flags = BLK_O_SHARE | BLK_O_NO_IO,
                                  .backing_urls = img_backing_urls };
    struct blk_node *n = NULL;

    if (!full) {
        return blk_err(e, EINVAL, "Cannot use relative backing file names for '%s'", c->filename);
    }
    int err = blk_open(img_loop(), &args, &n, e);
    free(full);
    if (err) {
        blk_error_hint(e, "Could not open backing image.");
        return err;
    }
    if (!format) {
        err = blk_err(e, EINVAL, "Backing file specified without backing format");
        blk_error_hint(e, "Detected format of %s.", blk_format_name(n));
    } else if (!blk_opts_has(o, "size")) {
        blk_opts_setf(o, "size", "%" PRIu64, blk_size(n));
    }
    blk_close(n, NULL);
    return err;
}

static int settle_backing(struct blk_opts *o, const struct create *c, struct blk_error *e)
{
    const char *name = take_backing_name(o, c, e);

    if (e->err) {
        return -e->err;
    }
    if (name && !c->unsafe) {
        return look_at_backing(o, name, c, e);
    }
    if (name && !blk_opts_has(o, "backing_fmt")) {
        return blk_err(e, EINVAL, "Backing file specified without backing format");
    }
    return 0;
}

/* -o, then the size argument, then -b and -F, each against what the format has. */
static int gather_options(struct blk_opts *o, const struct blk_option_desc *descs,
                          const struct create *c, struct blk_error *e)
{
    int err = img_parse_create_options(o, descs, c->options, e);

    if (err) {
        return err;
    }
    if (c->has_size && blk_opts_has(o, "size")) {
        return blk_err(e, EINVAL, "The image size must be specified only once");
    }
    if (c->has_size) {
        blk_opts_setf(o, "size", "%" PRIu64, c->size);
    }
    if (c->backing && img_set_create_option(o, descs, "backing_file", c->backing, NULL)) {
        return blk_err(e, EINVAL, "Backing file not supported for file format '%s'", c->format);
    }
    if (c->backing_format &&
        img_set_create_option(o, descs, "backing_fmt", c->backing_format, NULL)) {
        return blk_err(e, EINVAL, "Backing file format not supported for file format '%s'",
                       c->format);
    }
    return settle_backing(o, c, e);
}

/* In an option list a comma is doubled. */
static void print_escaped(const char *s)
{
    for (; *s; s++) {
        fputs(*s == ',' ? ",," : (char[]){*s, '\0'}, stdout);
    }
}

static void print_option(struct blk_opts *o, const struct blk_option_desc *d)
{
    const char *value = blk_opts_get(o, d->name);
    uint64_t number = 0;

    if (value && d->type == BLK_OPT_SIZE && !blk_opts_get_size(o, d->name, &number, NULL)) {
        printf(" %s=%" PRId64, d->name, (int64_t)number);
    } else if (value && d->type == BLK_OPT_NUMBER &&
               !blk_opts_get_u64(o, d->name, &number, NULL)) {
        printf(" %s=%" PRId64, d->name, (int64_t)number);
    } else if (value || d->def) {
        char *shown = blk_redact(value ? value : d->def);

        printf(" %s=", d->name);
        print_escaped(shown ? shown : "");
        free(shown);
    }
}

static void print_formatting(struct blk_opts *o, const struct blk_option_desc *descs,
                             const struct create *c)
{
    char *shown = blk_redact(c->filename);

    printf("Formatting '%s', fmt=%s", shown ? shown : "", c->format);
    for (; descs->name; descs++) {
        print_option(o, descs);
    }
    putchar('\n');
    fflush(stdout);
    free(shown);
}

/* The same for a program: what is set, or is so by default. */
static json_t *describe(struct blk_opts *given, const struct blk_option_desc *d,
                        const struct create *c)
{
    struct blk_opts *o = blk_opts_dup(given);
    char *shown = blk_redact(c->filename);

    for (const struct blk_option_desc *i = d; i->name; i++) {
        if (i->def && !blk_opts_has(o, i->name)) {
            blk_opts_set(o, i->name, i->def);
        }
    }
    json_t *v = json_pack("{s:o, s:s, s:o}", "filename", img_json_string(shown ? shown : ""),
                          "format", c->format, "options", img_options_json(o, d));
    blk_opts_free(o);
    free(shown);
    return v;
}

/* Says more than what the driver had to say. */
static void say_too_large(const struct blk_option_desc *descs, const struct create *c,
                          struct blk_error *e)
{
    while (descs->name && strcmp(descs->name, "cluster_size")) {
        descs++;
    }
    blk_error_clear(e);
    blk_err(e, EFBIG, "The image size is too large for file format '%s'%s", c->format,
            descs->name ? " (try using a larger cluster size)" : "");
}

static int create_image(const struct create *c, struct blk_opts *o, struct blk_error *e)
{
    struct blk_option_desc *descs = img_create_descs(c->format, c->filename, e);
    int err;

    if (!descs) {
        return -e->err;
    }
    err = gather_options(o, descs, c, e);
    if (!err && !blk_opts_has(o, "size")) {
        err = blk_err(e, EINVAL, "Image creation needs a size parameter");
    }
    if (!err && !c->quiet && !c->json) {
        print_formatting(o, descs, c);
    }
    json_t *made = !err && c->json ? describe(o, descs, c) : NULL;
    if (!err) {
        err = blk_create(img_loop(), c->format, c->filename, o, e);
    }
    if (err == -EFBIG) {
        say_too_large(descs, c, e);
    }
    if (err || !c->json) {
        json_decref(made);
    } else if (img_json_result(made)) {
        err = blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    free(descs);
    return err;
}

static int create_run(void *arg)
{
    const struct create *c = arg;
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_opts *o = blk_opts_new();
    int err = create_image(c, o, &e);
    char *shown = blk_redact(c->filename);

    if (err) {
        img_report_prefixed(&e, "%s: ", shown ? shown : "");
    }
    free(shown);
    blk_opts_free(o);
    return err ? 1 : 0;
}

/* What is left after the options: FILENAME [SIZE]. */
static int parse_arguments(struct create *c, int argc, char **argv)
{
    if (optind >= argc) {
        return img_usage_error(argv[0], "Expecting image file name");
    }
    c->filename = argv[optind++];
    if (optind < argc) {
        c->has_size = true;
        if (img_parse_size("image size", argv[optind++], &c->size)) {
            return 1;
        }
    }
    if (optind < argc) {
        return img_usage_error(argv[0], "Unexpected argument: %s", argv[optind]);
    }
    return 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct create *c, int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"quiet", no_argument, NULL, 'q'},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {"format", required_argument, NULL, 'f'},
        {"backing", required_argument, NULL, 'b'},
        {"backing-format", required_argument, NULL, 'F'},
        {"backing-unsafe", no_argument, NULL, 'u'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"options", required_argument, NULL, 'o'},
        {NULL, 0, NULL, 0},
    };
    int ch;

    while ((ch = getopt_long(argc, argv, "hf:o:b:F:qu", longs, NULL)) != -1) {
        switch (ch) {
        case 'h':
            return img_help(&img_create);
        case 'f':
            c->format = optarg;
            break;
        case 'o':
            if (img_add_options(&c->options, optarg)) {
                return 1;
            }
            break;
        case 'b':
            c->backing = optarg;
            break;
        case 'F':
            c->backing_format = optarg;
            break;
        case 'q':
            c->quiet = true;
            break;
        case 'u':
            c->unsafe = true;
            break;
        case IMG_OPT_OUTPUT:
            if (img_parse_output(argv[0], optarg, &c->json)) {
                return 1;
            }
            break;
        case IMG_OPT_OBJECT:
            if (img_add_object(optarg)) {
                return 1;
            }
            break;
        default:
            return img_try_help(argv[0]);
        }
    }
    if (img_options_want_help(c->options)) {
        return img_print_create_options(c->format, optind < argc ? argv[optind] : NULL);
    }
    return -1;
}

static int create_main(int argc, char **argv)
{
    struct create c = { .format = "raw" };
    int status = parse_options(&c, argc, argv);

    if (status < 0) {
        status = parse_arguments(&c, argc, argv);
        if (!status) {
            status = img_run(create_run, &c);
        }
    }
    free(c.options);
    return status;
}

const struct img_command img_create = {
    .name = "create",
    .summary = "Create an empty image",
    .synopsis = "[-f FMT] [-o OPTIONS] [-b BACKING [-F BACKING_FMT] [-u]] [-q]\n"
                "        [--output human|json] FILENAME [SIZE]",
    .arguments =
        "  -q, --quiet\n     say nothing unless it fails\n"
        "  -f, --format FMT\n     format of the new image (default raw)\n"
        "  -o, --options KEY=VALUE,...\n     creation options; '-o help' lists them\n"
        "  -b, --backing BACKING\n     what the new image does not hold is read from BACKING\n"
        "  -F, --backing-format FMT\n     format of BACKING\n"
        "  -u, --backing-unsafe\n     do not look at BACKING (SIZE is required then)\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     an object such as a secret\n"
        "  FILENAME\n     the image to make; an existing file is replaced\n"
        "  SIZE\n     bytes, or with a suffix k, M, G, T, P, E (powers of 1024);\n"
        "     the default is the size of BACKING\n",
    .main = create_main,
};
