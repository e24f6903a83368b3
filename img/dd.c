/*
 * dd.c - platter-img dd: a range of an image into a new one.
 *
 * bs, count and skip only say which bytes; they are moved by convert's engine in
 * large requests.  As in qemu-img every byte is written, zeros too.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "img/convert.h"
#include "img/convert_target.h"
#include "img/img.h"

struct args {
    const char *format, *input;
    bool image_opts, share, has_count, json;
    bool beyond;                        /* all of the input is skipped, and more */
    uint64_t bs, count, skip;           /* count, skip: blocks of bs */
    struct convert_target target;
    struct convert c;
    struct convert_source src;
};

/* ---- operands --------------------------------------------------------------- */

static int parse_operand(struct args *a, const char *arg)
{
    const char *eq = strchr(arg, '=');
    int len = eq ? (int)(eq - arg) : (int)strlen(arg);

    if (eq && !strncmp(arg, "bs=", 3)) {
        return img_parse_size_in("bs", eq + 1, 1, INT_MAX, &a->bs);
    }
    if (eq && !strncmp(arg, "count=", 6)) {
        a->has_count = true;
        return img_parse_number("count", eq + 1, 0, INT64_MAX, &a->count);
    }
    if (eq && !strncmp(arg, "skip=", 5)) {
        return img_parse_number("skip", eq + 1, 0, INT64_MAX, &a->skip);
    }
    if (eq && !strncmp(arg, "if=", 3)) {
        a->input = eq + 1;
        return 0;
    }
    if (eq && !strncmp(arg, "of=", 3)) {
        a->target.filename = eq + 1;
        return 0;
    }
    img_error("unrecognized operand %.*s", len, arg);
    return -EINVAL;
}

/* ---- copying ---------------------------------------------------------------- */

/* Which bytes of the input: from skip blocks on, to its end or count blocks.
 * count includes what is skipped, as in qemu-img. */
static void choose_range(struct args *a)
{
    uint64_t size = (blk_size(a->src.node) + CONVERT_SECTOR - 1) & ~(CONVERT_SECTOR - 1ull);
    uint64_t end, start;

    if (a->has_count && !__builtin_mul_overflow(a->count, a->bs, &end)) {
        size = BLK_MIN(size, end);
    }
    if (__builtin_mul_overflow(a->skip, a->bs, &start) || start > size) {
        a->beyond = true;
        start = size;
    }
    a->src.skip = start;
    a->src.length = size - start;
    a->c.total = size - start;
}

static int open_input(struct args *a)
{
    struct img_image im = { .filename = a->input, .format = a->format,
                            .image_opts = a->image_opts, .flags = a->share ? BLK_O_SHARE : 0 };

    a->src.node = img_open(&im);
    if (!a->src.node) {
        return -EIO;
    }
    choose_range(a);
    return 0;
}

static int make_output(struct args *a)
{
    struct img_image im = { .filename = a->target.filename, .format = a->target.format,
                            .flags = BLK_O_RDWR };
    struct blk_error e = BLK_ERROR_INIT;

    a->target.size = a->c.total;
    if (!blk_driver_known(a->target.format)) {
        img_error("Unknown file format");
        return -EINVAL;
    }
    if (convert_target_prepare(&a->target, &e)) {
        img_report(&e);
        return -EINVAL;
    }
    if (convert_target_create(&a->target, &e)) {
        char *shown = blk_redact(a->target.filename);
        img_report_prefixed(&e, "%s: error while creating output image: ", shown ? shown : "");
        free(shown);
        return -EIO;
    }
    a->c.dst = img_open(&im);
    if (a->c.dst && a->beyond) {
        img_error("%s: cannot skip to specified offset", a->input);
    }
    return a->c.dst ? 0 : -EIO;
}

#define COPY_MAX    (2u << 20)      /* bytes in memory, however large bs is */

/* Reads [at, at + len) of the output's bytes by way of buf (COPY_MAX bytes) and, if so told,
 * writes them. */
static int copy_range(struct args *a, uint8_t *buf, uint64_t at, uint64_t len, bool write)
{
    int ret = 0;

    for (uint64_t n; ret == 0 && len; at += n, len -= n) {
        n = BLK_MIN(len, (uint64_t)COPY_MAX);
        ret = co_read(a->src.node, a->src.skip + at, buf, n);
        if (ret == 0 && write) {
            ret = co_write(a->c.dst, at, buf, n, 0);
        }
    }
    return ret;
}

/* Of a disk that is failing all that can be read counts: as in qemu-img the blocks before the
 * first that cannot are in the output, and nothing of that one: what is larger than the buffer
 * is read before it is copied.  What is done is done from the start on. */
static void copy_blocks(struct args *a)
{
    uint64_t at = a->c.done / a->bs * a->bs, len;
    uint8_t *buf = blk_buf_alloc(COPY_MAX);

    for (; buf && at < a->c.total; at += len) {
        len = BLK_MIN(a->bs, a->c.total - at);
        if ((len > COPY_MAX && copy_range(a, buf, at, len, false)) ||
            copy_range(a, buf, at, len, true)) {
            break;
        }
    }
    blk_buf_free(buf);
}

static int copy(struct args *a)
{
    const struct convert_failure *f = &a->c.failure;

    a->c.src = &a->src;
    a->c.nsrc = 1;
    if (convert_copy(&a->c) == 0) {
        return 0;
    }
    if (f->step == CONVERT_READ) {
        copy_blocks(a);
    }
    img_error(f->step == CONVERT_WRITE ? "error while writing to output image file: %s"
                                       : "error while reading from input image file: %s",
              strerror(-f->err));
    return f->err;
}

static int run(void *arg)
{
    struct args *a = arg;
    int ret = open_input(a);

    if (ret == 0) {
        ret = make_output(a);
    }
    if (ret == 0) {
        ret = copy(a);
    }
    if (img_close(a->c.dst) < 0) {
        ret = -EIO;
    }
    img_close(a->src.node);
    convert_target_free(&a->target);
    if (ret) {
        return 1;
    }
    return a->json ? img_json_result(json_pack("{s:o, s:o, s:I, s:I}", "input",
                                               img_json_string(a->input), "output",
                                               img_json_string(a->target.filename),
                                               "skipped-bytes", (json_int_t)a->src.skip,
                                               "copied-bytes", (json_int_t)a->c.total)) : 0;
}

/* ---- the command ------------------------------------------------------------ */

static const struct option longs[] = {
    {"help", no_argument, NULL, 'h'},
    {"force-share", no_argument, NULL, 'U'},
    {"format", required_argument, NULL, 'f'},
    {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
    {"object", required_argument, NULL, IMG_OPT_OBJECT},
    {"output", required_argument, NULL, IMG_OPT_OUTPUT},
    {"output-format", required_argument, NULL, 'O'},
    {NULL, 0, NULL, 0},
};

static int dd_main(int argc, char **argv)
{
    struct args a = { .bs = 512, .target.format = "raw",
                      .c = { .buf_size = CONVERT_BUF_MIN,
                             .backing_size = UINT64_MAX } };
    int c;

    while ((c = getopt_long(argc, argv, "hf:O:U", longs, NULL)) != -1) {
        switch (c) {
        case 'h': return img_help(&img_dd);
        case 'f': a.format = optarg; break;
        case 'O': a.target.format = optarg; break;
        case 'U': a.share = true; break;
        case IMG_OPT_IMAGE_OPTS: a.image_opts = true; break;
        case IMG_OPT_OUTPUT:
            if (img_parse_output(argv[0], optarg, &a.json)) {
                return 1;
            }
            break;
        case IMG_OPT_OBJECT:
            if (img_add_object(optarg)) {
                return 1;
            }
            break;
        default: return img_try_help(argv[0]);
        }
    }
    for (; optind < argc; optind++) {
        if (parse_operand(&a, argv[optind])) {
            return 1;
        }
    }
    if (!a.input || !a.target.filename) {
        img_error("Must specify both input and output files");
        return 1;
    }
    return img_run(run, &a);
}

const struct img_command img_dd = {
    .name = "dd",
    .summary = "Copy input to output with optional format conversion",
    .synopsis = "[-f FMT|--image-opts] [-O OUTPUT_FMT] [-U] [--output human|json]\n"
                "        [bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT",
    .arguments =
        "  -f, --format FMT\n     specify the format of INPUT explicitly\n"
        "  --image-opts\n     INPUT is a complete image specification instead of a file name\n"
        "     (incompatible with --format)\n"
        "  -O, --output-format OUTPUT_FMT\n     format of OUTPUT (raw)\n"
        "  -U, --force-share\n     open images in shared mode for concurrent access\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     define an object (eg encryption key)\n"
        "  bs=BLOCK_SIZE\n     size of a block (512)\n"
        "  count=BLOCKS\n     where to stop, in blocks from the start of INPUT (its end)\n"
        "  skip=BLOCKS\n     blocks of INPUT to leave out at its start (0)\n"
        "  if=INPUT\n     input file name (or image specification with --image-opts)\n"
        "  of=OUTPUT\n     output file name to create\n",
    .main = dd_main,
};
