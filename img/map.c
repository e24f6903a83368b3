/*
 * map.c - platter-img map: which layer of a backing chain holds what, where.
 *
 * The layers are walked here, one own-layer status at a time, because the output
 * names the depth at which a range was decided: a range that nobody holds
 * belongs to the layer below which nothing reaches that far.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "img/img.h"

struct map {
    struct img_image image;
    bool json;
    uint64_t start;
    uint64_t max_length;        /* UINT64_MAX: to the end */
};

struct extent {
    uint64_t start, length;
    unsigned flags;             /* BLK_ST_* */
    int depth;
    uint64_t offset;            /* with BLK_ST_OFFSET */
    const char *filename;       /* of the file offset counts in, or NULL */
};

#define MERGE_FLAGS (BLK_ST_DATA | BLK_ST_ZERO | BLK_ST_ALLOCATED | BLK_ST_OFFSET | \
                     BLK_ST_COMPRESSED)

static int extent_at(struct blk_node *n, uint64_t start, uint64_t length, struct extent *x)
{
    struct blk_status st;
    struct blk_node *below;
    int err;

    *x = (struct extent){ .start = start, .length = length };
    for (;;) {
        err = co_status(n, start, x->length, &st);
        if (err) {
            return err;
        }
        x->length = BLK_MIN(x->length, st.length);
        if (st.flags & (BLK_ST_DATA | BLK_ST_ZERO)) {
            break;
        }
        below = blk_backing(n);
        if (!below) {           /* of an NBD bitmap's context: no more is known */
            st.flags = 0;
            break;
        }
        if (start >= blk_size(below)) {
            st.flags |= BLK_ST_ZERO;
            break;
        }
        x->length = BLK_MIN(x->length, blk_size(below) - start);
        x->depth++;
        n = below;
    }
    x->flags = st.flags & MERGE_FLAGS;
    if (st.flags & BLK_ST_OFFSET) {
        x->offset = st.host_offset;
        x->filename = st.host ? blk_filename(st.host) : NULL;
    }
    return 0;
}

static bool mergeable(const struct extent *a, const struct extent *b)
{
    if (!a->length || a->flags != b->flags || a->depth != b->depth ||
        !a->filename != !b->filename) {
        return false;
    }
    if (a->filename && strcmp(a->filename, b->filename)) {
        return false;
    }
    return !(a->flags & BLK_ST_OFFSET) || a->offset + a->length == b->offset;
}

static int print_human(const struct extent *x)
{
    if (!(x->flags & BLK_ST_DATA)) {
        return 0;
    }
    if (!(x->flags & BLK_ST_OFFSET)) {
        img_error("File contains external, encrypted or compressed clusters.");
        return -EINVAL;
    }
    if (!(x->flags & BLK_ST_ZERO)) {
        printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", x->start, x->length,
               x->offset, x->filename ? x->filename : "");
    }
    return 0;
}

static const char *truth(unsigned flags)
{
    return flags ? "true" : "false";
}

static void print_json(const struct extent *x, bool last)
{
    printf("{ \"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"depth\": %d, \"present\": %s, "
           "\"zero\": %s, \"data\": %s, \"compressed\": %s", x->start, x->length, x->depth,
           truth(x->flags & BLK_ST_ALLOCATED), truth(x->flags & BLK_ST_ZERO),
           truth(x->flags & BLK_ST_DATA), truth(x->flags & BLK_ST_COMPRESSED));
    if (x->flags & BLK_ST_OFFSET) {
        printf(", \"offset\": %" PRIu64, x->offset);
    }
    printf("}%s\n", last ? "]" : ",");
}

static int print_extent(const struct map *m, const struct extent *x, bool last)
{
    if (m->json) {
        print_json(x, last);
        return 0;
    }
    return print_human(x);
}

static int map_node(const struct map *m, struct blk_node *n)
{
    uint64_t end = blk_size(n);
    struct extent cur = { .start = m->start }, next;
    int err;

    if (m->max_length < UINT64_MAX - m->start) {
        end = BLK_MIN(end, m->start + m->max_length);
    }
    while (cur.start + cur.length < end) {
        uint64_t at = cur.start + cur.length;

        err = extent_at(n, at, end - at, &next);
        if (err) {
            img_error("Could not read file metadata: %s", strerror(-err));
            return err;
        }
        if (mergeable(&cur, &next)) {
            cur.length += next.length;
            continue;
        }
        if (cur.length && (err = print_extent(m, &cur, false))) {
            return err;
        }
        cur = next;
    }
    return print_extent(m, &cur, true);
}

static int map_run(void *arg)
{
    const struct map *m = arg;
    struct blk_node *n = img_open(&m->image);
    int err;

    if (!n) {
        return 1;
    }
    if (m->json) {
        putchar('[');
    } else {
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    }
    err = map_node(m, n);
    return img_close(n) || err ? 1 : 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct map *m, int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"start-offset", required_argument, NULL, 's'},
        {"max-length", required_argument, NULL, 'l'},
        {"force-share", no_argument, NULL, 'U'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {NULL, 0, NULL, 0},
    };
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hf:s:l:U", longs, NULL)) != -1) {
        switch (ch) {
        case 's':
            if (img_parse_size("start offset", optarg, &m->start)) {
                return 1;
            }
            break;
        case 'l':
            if (img_parse_size("max length", optarg, &m->max_length)) {
                return 1;
            }
            break;
        default:
            status = img_common_option(&img_map, ch, argv[0], &m->image, &m->json);
            break;
        }
    }
    return status;
}

static int map_main(int argc, char **argv)
{
    struct map m = { .max_length = UINT64_MAX };
    int status = parse_options(&m, argc, argv);

    if (status >= 0) {
        return status;
    }
    if (optind != argc - 1) {
        return img_usage_error(argv[0], "Expecting one image file name");
    }
    m.image.filename = argv[optind];
    return img_run(map_run, &m);
}

const struct img_command img_map = {
    .name = "map",
    .summary = "Show which file of a chain holds which data, and where",
    .synopsis = "[-f FMT | --image-opts] [--start-offset OFFSET] [--max-length LENGTH]\n"
                "        [--output human|json] [-U] FILENAME",
    .arguments =
        "  -f, --format FMT\n     format of the image (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  -s, --start-offset OFFSET\n     begin there (default 0)\n"
        "  -l, --max-length LENGTH\n     and go so far (default: to the end)\n"
        "  --output human|json\n     how to print; human leaves out what reads as zeros\n"
        "  -U, --force-share\n     take no locks\n"
        "  --object OBJDEF\n     an object such as a secret\n",
    .main = map_main,
};
