/*
 * bitmap.c - platter-img bitmap: add, remove, clear, enable, disable and merge
 * persistent dirty bitmaps.
 */
#include <string.h>
#include "img/img.h"

enum {
    OPT_ADD = IMG_OPT_FIRST_FREE, OPT_REMOVE, OPT_CLEAR, OPT_ENABLE, OPT_DISABLE, OPT_MERGE,
};

#define ACTIONS_MAX 4096u

struct action {
    int what;                   /* OPT_ADD ... */
    const char *from;           /* OPT_MERGE */
};

struct bitmap {
    struct img_image image, source;
    const char *name;
    uint64_t granularity;       /* 0: the default */
    struct action actions[ACTIONS_MAX];
    unsigned n;
    bool add, merge, json;
};

static const struct { enum blk_bitmap_op op; const char *name; } ops[] = {
    { BLK_BITMAP_ADD, "add" }, { BLK_BITMAP_REMOVE, "remove" }, { BLK_BITMAP_CLEAR, "clear" },
    { BLK_BITMAP_ENABLE, "enable" }, { BLK_BITMAP_DISABLE, "disable" },
};

static const char *action_name(const struct action *a)
{
    return a->what == OPT_MERGE ? "merge" : ops[a->what - OPT_ADD].name;
}

static int act(const struct bitmap *b, const struct action *a, struct blk_node *n,
               struct blk_node *src)
{
    struct blk_error e = BLK_ERROR_INIT;
    int err;

    if (a->what == OPT_MERGE) {
        err = blk_bitmap_merge(n, b->name, src, a->from, &e);
    } else {
        err = blk_bitmap_change(n, ops[a->what - OPT_ADD].op, b->name, b->granularity, &e);
    }
    if (err) {
        img_report_prefixed(&e, "Operation %s on bitmap %s failed: ", action_name(a), b->name);
    }
    return err;
}

/* What was done, and what there is of the bitmap now. */
static json_t *describe(const struct bitmap *b, struct blk_node *n)
{
    json_t *done = json_array();
    struct blk_bitmap now;
    size_t i = 0;

    for (unsigned a = 0; a < b->n; a++) {
        json_array_append_new(done, json_string(action_name(&b->actions[a])));
    }
    json_t *v = json_pack("{s:o, s:o, s:o}", "filename", img_json_string(b->image.filename),
                          "bitmap", img_json_string(b->name), "actions", done);
    while (blk_bitmap_at(n, i, &now) && strcmp(now.name, b->name)) {
        i++;
    }
    bool there = blk_bitmap_at(n, i, &now);
    json_object_set_new(v, "exists", json_boolean(there));
    if (there) {
        json_object_set_new(v, "granularity", json_integer((json_int_t)now.granularity));
        json_object_set_new(v, "recording", json_boolean(now.enabled));
    }
    return v;
}

static int bitmap_run(void *arg)
{
    const struct bitmap *b = arg;
    struct blk_node *n = img_open(&b->image), *src = NULL;
    int err = n ? 0 : -1;

    if (n && b->source.filename && !(src = img_open(&b->source))) {
        err = -1;
    }
    for (unsigned i = 0; i < b->n && !err; i++) {
        err = act(b, &b->actions[i], n, src ? src : n);
    }
    json_t *result = b->json && !err ? describe(b, n) : NULL;
    img_close(src);
    /* What was done before a failure stays done. */
    int close_err = img_close(n);
    if (err || close_err || !b->json) {
        json_decref(result);
        return err || close_err ? 1 : 0;
    }
    return img_json_result(result);
}

static int add_action(struct bitmap *b, int what)
{
    if (b->n == ACTIONS_MAX) {
        img_error("More than %u actions", ACTIONS_MAX);
        return -1;
    }
    b->actions[b->n++] = (struct action){ what, what == OPT_MERGE ? optarg : NULL };
    b->add |= what == OPT_ADD;
    b->merge |= what == OPT_MERGE;
    return 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_option(struct bitmap *b, int ch, char **argv)
{
    switch (ch) {
    case 'b': b->source.filename = optarg; break;
    case 'F': b->source.format = optarg; break;
    case 'g':
        if (img_parse_size("granularity", optarg, &b->granularity)) {
            return 1;
        }
        break;
    case OPT_ADD: case OPT_REMOVE: case OPT_CLEAR: case OPT_ENABLE: case OPT_DISABLE: case OPT_MERGE:
        return add_action(b, ch) ? 1 : -1;
    default: return img_common_option(&img_bitmap, ch, argv[0], &b->image, &b->json);
    }
    return -1;
}

static int parse_options(struct bitmap *b, int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"add", no_argument, NULL, OPT_ADD},
        {"remove", no_argument, NULL, OPT_REMOVE},
        {"clear", no_argument, NULL, OPT_CLEAR},
        {"enable", no_argument, NULL, OPT_ENABLE},
        {"disable", no_argument, NULL, OPT_DISABLE},
        {"merge", required_argument, NULL, OPT_MERGE},
        {"granularity", required_argument, NULL, 'g'},
        {"source-file", required_argument, NULL, 'b'},
        {"source-format", required_argument, NULL, 'F'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {NULL, 0, NULL, 0},
    };
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hf:g:b:F:", longs, NULL)) != -1) {
        status = parse_option(b, ch, argv);
    }
    return status;
}

static int bitmap_main(int argc, char **argv)
{
    static struct bitmap b;     /* too large for a stack */
    int status = parse_options(&b, argc, argv);

    if (status >= 0) {
        return status;
    }
    if (!b.n) {
        img_error("Need at least one of --add, --remove, --clear, --enable, --disable, "
                  "or --merge");
        return 1;
    }
    if (b.granularity && !b.add) {
        img_error("granularity only supported with --add");
        return 1;
    }
    if (b.source.format && !b.source.filename) {
        img_error("-F only supported with -b");
        return 1;
    }
    if (b.source.filename && !b.merge) {
        img_error("Merge bitmap source file only supported with --merge");
        return 1;
    }
    if (optind != argc - 2) {
        img_error("Expecting filename and bitmap name");
        return 1;
    }
    b.image.filename = argv[optind];
    b.name = argv[optind + 1];
    b.image.flags |= BLK_O_RDWR | BLK_O_NO_BACKING;
    b.source.flags |= BLK_O_NO_BACKING;
    return img_run(bitmap_run, &b);
}

const struct img_command img_bitmap = {
    .name = "bitmap",
    .summary = "Modify bitmaps of the persistent bitmap metadata",
    .synopsis = "[--object OBJDEF] [-f FMT | --image-opts]\n"
                "        ( --add | --remove | --clear | --enable | --disable | --merge SOURCE )...\n"
                "        [-g SIZE] [-b SRC_FILE [-F SRC_FMT]] [--output human|json] FILENAME BITMAP",
    .arguments =
        "  -f, --format FMT\n     format of the image (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  --add\n     make an enabled BITMAP\n"
        "  -g, --granularity SIZE\n     bytes for which one bit stands, with --add\n"
        "  --remove\n     remove BITMAP, an inconsistent one, too\n"
        "  --clear\n     forget all changes\n"
        "  --enable, --disable\n     record changes from now on, or no longer\n"
        "  --merge SOURCE\n     add what the bitmap SOURCE says\n"
        "  -b, --source-file SRC_FILE\n     the image SOURCE is in (default: FILENAME)\n"
        "  -F, --source-format SRC_FMT\n     its format (default: found out)\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     an object such as a secret\n"
        "Actions are done in the order they are given.\n",
    .main = bitmap_main,
};
