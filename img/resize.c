/*
 * resize.c - platter-img resize: change the virtual size of an image.
 *
 * The size is the last word and may begin with '-', so it is taken off before
 * getopt sees it.
 */
#include <errno.h>
#include <string.h>
#include "img/img.h"

struct resize {
    struct img_image image;
    enum blk_prealloc prealloc;
    bool shrink, json;
    int sign;                   /* of a relative size; 0: absolute */
    uint64_t amount;
    uint64_t before, after;     /* for the result */
};

/* 0 and *out, or -EINVAL: not a size an image can have. */
static int new_size(const struct resize *r, uint64_t now, uint64_t *out)
{
    if (r->sign < 0) {
        *out = now - r->amount;
        return r->amount < now ? 0 : -EINVAL;
    }
    if (__builtin_add_overflow(r->sign ? now : 0, r->amount, out)) {
        return -EINVAL;
    }
    return *out && *out <= INT64_MAX ? 0 : -EINVAL;
}

static int check_request(const struct resize *r, uint64_t now, uint64_t wanted)
{
    if (wanted <= now && r->prealloc != BLK_PREALLOC_OFF) {
        img_error("Preallocation can only be used for growing images");
        return -EINVAL;
    }
    if (wanted < now && !r->shrink) {
        img_error("Use the --shrink option to perform a shrink operation.");
        img_warning("Shrinking an image will delete all data beyond the shrunken image's end. "
                    "Before performing such an operation, make sure there is no important data "
                    "there.");
        return -EINVAL;
    }
    return 0;
}

static int resize_image(struct resize *r, struct blk_node *n)
{
    struct blk_error e = BLK_ERROR_INIT;
    uint64_t now = blk_size(n), wanted;
    int err;

    if (new_size(r, now, &wanted)) {
        img_error("New image size must be positive");
        return -EINVAL;
    }
    err = check_request(r, now, wanted);
    if (err) {
        return err;
    }
    err = blk_truncate(n, wanted, r->shrink, r->prealloc, &e);
    if (err) {
        img_report(&e);
    }
    r->before = now;
    r->after = blk_size(n);
    return err;
}

static int resize_run(void *arg)
{
    struct resize *r = arg;
    struct blk_node *n = img_open(&r->image);
    int err, close_err;

    if (!n) {
        return 1;
    }
    err = resize_image(r, n);
    close_err = img_close(n);   /* the last of the metadata is written here */
    if (err || close_err) {
        return 1;
    }
    if (r->json) {
        return img_json_result(json_pack("{s:o, s:I, s:I}", "filename",
                                         img_json_string(r->image.filename),
                                         "previous-virtual-size", (json_int_t)r->before,
                                         "virtual-size", (json_int_t)r->after));
    }
    img_print(r->image.quiet, "Image resized.\n");
    return 0;
}

static int parse_amount(struct resize *r, const char *text)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_opts *o = blk_opts_new();
    int err;

    r->sign = *text == '+' ? 1 : *text == '-' ? -1 : 0;
    blk_opts_set(o, "size", text + (r->sign != 0));
    err = blk_opts_get_size(o, "size", &r->amount, &e);
    if (err) {
        img_report(&e);
    }
    blk_opts_free(o);
    return err;
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct resize *r, int argc, char **argv)
{
    enum { OPT_PREALLOCATION = IMG_OPT_FIRST_FREE, OPT_SHRINK };
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"quiet", no_argument, NULL, 'q'},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"preallocation", required_argument, NULL, OPT_PREALLOCATION},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"shrink", no_argument, NULL, OPT_SHRINK},
        {NULL, 0, NULL, 0},
    };
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hf:q", longs, NULL)) != -1) {
        switch (ch) {
        case OPT_PREALLOCATION:
            if (blk_parse_prealloc(optarg, &r->prealloc, NULL)) {
                img_error("Invalid preallocation mode '%s'", optarg);
                return 1;
            }
            break;
        case OPT_SHRINK:
            r->shrink = true;
            break;
        default:
            status = img_common_option(&img_resize, ch, argv[0], &r->image, &r->json);
            break;
        }
    }
    return status;
}

static int resize_main(int argc, char **argv)
{
    struct resize r = { .image.flags = BLK_O_RDWR | BLK_O_RESIZE | BLK_O_EXACT };
    const char *size = NULL;
    int status;

    /* "-1M" is no option; options may follow the size all the same. */
    if (argc > 1 && argv[argc - 1][0] == '-' && strchr("0123456789.", argv[argc - 1][1]) &&
        argv[argc - 1][1]) {
        size = argv[--argc];
    }
    status = parse_options(&r, argc, argv);
    if (status >= 0) {
        return status;
    }
    if (!size && optind < argc - 1) {
        size = argv[--argc];
    }
    if (!size || optind >= argc) {
        return img_usage_error(argv[0], "Expecting image file name and size");
    }
    if (optind != argc - 1) {
        return img_usage_error(argv[0], "Extra argument(s) in command line");
    }
    r.image.filename = argv[optind];
    return parse_amount(&r, size) ? 1 : img_run(resize_run, &r);
}

const struct img_command img_resize = {
    .name = "resize",
    .summary = "Change the virtual size of an image",
    .synopsis = "[-f FMT | --image-opts] [--preallocation MODE] [--shrink] [-q]\n"
                "        [--output human|json] FILENAME [+|-]SIZE",
    .arguments =
        "  -q, --quiet\n     say nothing unless it fails\n"
        "  -f, --format FMT\n     format of the image (default: found out; say raw for raw)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  --preallocation off|metadata|falloc|full\n     for the space that is added\n"
        "  --shrink\n     needed to make an image smaller: what lies behind is lost\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     an object such as a secret\n"
        "  SIZE\n     the new size, or with + or - by how much; suffixes k, M, G, T, P, E\n",
    .main = resize_main,
};
