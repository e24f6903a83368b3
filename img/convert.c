/*
 * convert.c - platter-img convert: options, opening the sources, making or
 * opening the target.  convert_copy.c moves the data.
 *
 * Checks come in qemu-img's order, so that of several mistakes the same one is
 * reported.  The target is created only when everything that can be checked
 * before has been.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "img/convert.h"
#include "img/convert_bitmaps.h"
#include "img/convert_resume.h"
#include "img/convert_target.h"
#include "img/convert_verify.h"
#include "img/img.h"

enum {
    OPT_TARGET_IMAGE_OPTS = IMG_OPT_FIRST_FREE,
    OPT_SALVAGE,
    OPT_TARGET_IS_ZERO,
    OPT_BITMAPS,
    OPT_SKIP_BROKEN,
    OPT_VERIFY,
    OPT_RESUME,
    OPT_JOURNAL,
    OPT_CHECKPOINT,
};

struct args {
    const char *format, *cache, *src_cache, *snapshot;
    bool image_opts, target_image_opts, no_create, progress, quiet, share;
    bool copy_range, target_is_zero, bitmaps, skip_broken, sparse_given;
    bool verify, resume, json, to_stdout;
    const char *journal;            /* --journal, or NULL */
    char digest[CONVERT_DIGEST_HEX];    /* of what was verified */
    char *options;                  /* -o */
    char **sources;
    struct convert_target target;
    struct convert c;
};

static const struct option longs[] = {
    {"help", no_argument, NULL, 'h'},
    {"source-image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
    {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
    {"source-format", required_argument, NULL, 'f'},
    {"source-cache", required_argument, NULL, 'T'},
    {"snapshot", required_argument, NULL, 'l'},
    {"source-snapshot", required_argument, NULL, 'l'},
    {"bitmaps", no_argument, NULL, OPT_BITMAPS},
    {"skip-broken-bitmaps", no_argument, NULL, OPT_SKIP_BROKEN},
    {"salvage", no_argument, NULL, OPT_SALVAGE},
    {"target-image-opts", no_argument, NULL, OPT_TARGET_IMAGE_OPTS},
    {"output-format", required_argument, NULL, 'O'},
    {"target-format", required_argument, NULL, 'O'},
    {"options", required_argument, NULL, 'o'},
    {"target-options", required_argument, NULL, 'o'},
    {"output-cache", required_argument, NULL, 't'},
    {"target-cache", required_argument, NULL, 't'},
    {"compress", no_argument, NULL, 'c'},
    {"backing", required_argument, NULL, 'B'},
    {"backing-format", required_argument, NULL, 'F'},
    {"no-create", no_argument, NULL, 'n'},
    {"target-is-zero", no_argument, NULL, OPT_TARGET_IS_ZERO},
    {"sparse-size", required_argument, NULL, 'S'},
    {"force-share", no_argument, NULL, 'U'},
    {"rate", required_argument, NULL, 'r'},
    {"parallel", required_argument, NULL, 'm'},
    {"copy-range-offloading", no_argument, NULL, 'C'},
    {"oob-writes", no_argument, NULL, 'W'},
    {"progress", optional_argument, NULL, 'p'},
    {"quiet", no_argument, NULL, 'q'},
    {"object", required_argument, NULL, IMG_OPT_OBJECT},
    {"output", required_argument, NULL, IMG_OPT_OUTPUT},
    {"verify", no_argument, NULL, OPT_VERIFY},
    {"resume", no_argument, NULL, OPT_RESUME},
    {"journal", required_argument, NULL, OPT_JOURNAL},
    {"checkpoint", required_argument, NULL, OPT_CHECKPOINT},
    {NULL, 0, NULL, 0},
};

/* ---- options ---------------------------------------------------------------- */

static int parse_sparse(struct args *a, const char *s)
{
    uint64_t v;

    if (img_parse_size("buffer size for sparse output", s, &v)) {
        return 1;
    }
    if (v % CONVERT_SECTOR || v > CONVERT_BUF_MAX) {
        img_error("Invalid buffer size for sparse output specified. Valid sizes are multiples of "
                  "%u up to %u. Select 0 to disable sparse detection (fully allocates output).",
                  CONVERT_SECTOR, CONVERT_BUF_MAX);
        return 1;
    }
    a->c.sparse = (uint32_t)v;
    a->sparse_given = true;
    return 0;
}

static int parse_workers(struct args *a, const char *s)
{
    uint64_t v;

    if (img_parse_number("number of coroutines", s, 1, CONVERT_WORKERS_MAX, &v)) {
        return 1;
    }
    a->c.workers = (unsigned)v;
    return 0;
}

/* Options without a value. */
static bool set_flag(struct args *a, int c)
{
    switch (c) {
    case 'C': a->copy_range = true; return true;
    case 'c': a->c.compress = true; return true;
    case 'n': a->no_create = true; return true;
    case 'q': a->quiet = true; return true;
    case 'U': a->share = true; return true;
    case 'W': a->c.out_of_order = true; return true;
    case IMG_OPT_IMAGE_OPTS: a->image_opts = true; return true;
    case OPT_TARGET_IMAGE_OPTS: a->target_image_opts = true; return true;
    case OPT_SALVAGE: a->c.salvage = true; return true;
    case OPT_TARGET_IS_ZERO: a->target_is_zero = true; return true;
    case OPT_BITMAPS: a->bitmaps = true; return true;
    case OPT_SKIP_BROKEN: a->skip_broken = true; return true;
    case OPT_VERIFY: a->verify = true; return true;
    case OPT_RESUME: a->resume = true; return true;
    default: return false;
    }
}

/* Options with a value. 0, or the exit status. */
static int set_value(struct args *a, int c, const char *argv0)
{
    switch (c) {
    case 'p': return img_parse_progress(optarg, &a->progress) ? 1 : 0;
    case 'f': a->format = optarg; return 0;
    case 'O': a->target.format = optarg; return 0;
    case 'B': a->target.backing = optarg; return 0;
    case 'F': a->target.backing_format = optarg; return 0;
    case 't': a->cache = optarg; return 0;
    case 'T': a->src_cache = optarg; return 0;
    case 'o': return img_add_options(&a->options, optarg) ? 1 : 0;
    case 'l': a->snapshot = optarg;
        return img_check_snapshot(optarg) ? 1 : 0;
    case 'S': return parse_sparse(a, optarg);
    case 'm': return parse_workers(a, optarg);
    case 'r': return img_parse_size("rate limit", optarg, &a->c.rate) ? 1 : 0;
    case OPT_JOURNAL: a->journal = optarg; return 0;
    case OPT_CHECKPOINT:
        return img_parse_size_in("checkpoint interval", optarg, 1, INT64_MAX, &a->c.checkpoint)
                   ? 1 : 0;
    case IMG_OPT_OUTPUT: return img_parse_output(argv0, optarg, &a->json) ? 1 : 0;
    case IMG_OPT_OBJECT: return img_add_object(optarg) ? 1 : 0;
    default: return img_try_help(argv0);
    }
}

/* Options that exclude or need each other. 0 or 1. */
static int check_options(const struct args *a)
{
    static const char no_offload[] = "Cannot enable copy offloading when %s is used";

    if (a->skip_broken && !a->bitmaps) {
        img_error("Use of --skip-broken-bitmaps requires --bitmaps");
    } else if (a->c.compress && a->copy_range) {
        img_error(no_offload, "-c");
    } else if (a->sparse_given && a->copy_range) {
        img_error(no_offload, "-S");
    } else if (a->copy_range && a->c.salvage) {
        img_error("Cannot use copy offloading in salvaging mode");
    } else if (a->target_image_opts && !a->no_create) {
        img_error("--target-image-opts requires use of -n flag");
    } else if (a->no_create && a->options) {
        img_error("-o has no effect when skipping image creation");
    } else if (a->target_is_zero && !a->no_create) {
        img_error("--target-is-zero requires use of -n flag");
    } else if (a->resume && a->cache && !strcmp(a->cache, "unsafe")) {
        img_error("--resume needs a target cache mode that flushes, not '%s'", a->cache);
    } else if (a->journal && !a->resume) {
        img_error("--journal requires --resume");
    } else if (a->resume && a->target_image_opts) {
        img_error("--resume needs the target's name, not --target-image-opts");
    } else {
        return 0;
    }
    return 1;
}

/* Standard output is written once, forward, and only the image goes there. */
static int check_stdout(const struct args *a)
{
    const struct { bool given; const char *option; } not_here[] = {
        { a->no_create, "-n" }, { a->target.backing, "-B" }, { a->c.compress, "-c" },
        { a->copy_range, "-C" }, { a->c.rate, "-r" }, { a->c.salvage, "--salvage" },
        { a->verify, "--verify" }, { a->resume, "--resume" }, { a->bitmaps, "--bitmaps" },
        { a->json, "--output=json" },
    };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(not_here); i++) {
        if (not_here[i].given) {
            img_error("%s cannot be used when the target is standard output", not_here[i].option);
            return 1;
        }
    }
    img_progress_to_stderr();
    return 0;
}

/* ---- sources ---------------------------------------------------------------- */

static int open_sources(struct args *a)
{
    struct img_image im = { .format = a->format, .image_opts = a->image_opts,
                            .quiet = a->quiet,
                            .flags = BLK_O_NO_SHARE | (a->share ? BLK_O_SHARE : 0) };
    struct convert *c = &a->c;

    if (img_parse_cache("source ", a->src_cache, &im.flags)) {
        return -EINVAL;
    }
    c->src = calloc(c->nsrc, sizeof(*c->src));
    if (!c->src) {
        img_error("%s", strerror(ENOMEM));
        return -ENOMEM;
    }
    for (size_t i = 0; i < c->nsrc; i++) {
        im.filename = a->sources[i];
        c->src[i].node = img_open(&im);
        if (!c->src[i].node) {
            return -EIO;
        }
    }
    return 0;
}

static int load_snapshot(struct args *a)
{
    if (a->c.nsrc > 1 && strncmp(a->snapshot, "snapshot.", 9)) {
        img_error("No support for concatenating multiple snapshot");
        return -EINVAL;
    }
    return img_load_snapshot(a->c.src[0].node, a->snapshot);
}

/* Where each source lies in the space of all. */
static int place_sources(struct args *a)
{
    struct convert *c = &a->c;

    for (size_t i = 0; i < c->nsrc; i++) {
        struct convert_source *s = &c->src[i];
        struct blk_info info = { 0 };

        s->align = blk_get_info(s->node, &info, NULL) ? 0 : info.cluster_size;
        blk_info_free(&info);
        s->start = c->total;
        s->length = (blk_size(s->node) + CONVERT_SECTOR - 1) & ~(CONVERT_SECTOR - 1ull);
        if (__builtin_add_overflow(c->total, s->length, &c->total) || c->total > BLK_SIZE_MAX) {
            img_error("%s: the inputs together are too large", a->sources[i]);
            return -EFBIG;
        }
    }
    return 0;
}

/* ---- the target ------------------------------------------------------------- */

static int check_compression(struct args *a)
{
    struct blk_opts *o = a->target.opts;
    const char *prealloc = o ? blk_opts_get(o, "preallocation") : NULL;
    bool encryption = false;

    if (!a->no_create && a->target.format && !blk_driver_compresses(a->target.format)) {
        img_error("Compression not supported for this file format");
        return -ENOTSUP;
    }
    if (o) {
        blk_opts_get_bool(o, "encryption", &encryption, NULL);
    }
    if (encryption || (o && blk_opts_has(o, "encrypt.format"))) {
        img_error("Compression and encryption not supported at the same time");
    } else if (prealloc && strcmp(prealloc, "off")) {
        img_error("Compression and preallocation not supported at the same time");
    } else {
        return 0;
    }
    return -ENOTSUP;
}

/* The rules for -B and -o backing_file, once t->backing is known. */
static int check_backing(const struct args *a)
{
    const struct convert_target *t = &a->target;

    if (!t->backing) {
        return 0;
    }
    if (a->target_is_zero) {
        img_error("Cannot use --target-is-zero when the destination image has a backing file");
    } else if (a->c.nsrc > 1) {
        img_error("Having a backing file for the target makes no sense when concatenating "
                  "multiple input images");
    } else if (!a->no_create && !t->backing_format) {
        img_error("Use of backing file requires explicit backing format");
    } else {
        return 0;
    }
    return -EINVAL;
}

static int create_target(struct args *a)
{
    struct blk_error e = BLK_ERROR_INIT;

    if (convert_target_create(&a->target, &e)) {
        char *shown = blk_redact(a->target.filename);
        img_report_prefixed(&e, "%s: error while converting %s: ", shown ? shown : "",
                            a->target.format);
        free(shown);
        return -EIO;
    }
    return 0;
}

static int prepare_target(struct args *a)
{
    struct blk_error e = BLK_ERROR_INIT;
    int ret = 0;

    if (!a->no_create) {
        a->target.size = a->c.total;
        a->target.compress = a->c.compress;
        if (convert_target_prepare(&a->target, &e)) {
            img_report(&e);
            return -EINVAL;
        }
    }
    ret = check_backing(a);
    if (ret == 0 && a->c.compress) {
        ret = check_compression(a);
    }
    if (ret == 0 && a->bitmaps) {
        ret = convert_check_bitmaps(&a->c, a->skip_broken);
    }
    return ret;
}

static int open_target(struct args *a)
{
    struct img_image im = { .filename = a->target.filename, .format = a->target.format,
                            .image_opts = a->target_image_opts, .quiet = a->quiet,
                            .flags = BLK_O_RDWR | (a->c.sparse ? BLK_O_UNMAP : 0) };

    if (img_parse_cache("", a->cache, &im.flags)) {
        return -EINVAL;
    }
    if (a->c.journal && journal_resumes(a->c.journal)) {
        /* What was counted but not yet pointed at when it was left. */
        struct img_image left = { .filename = a->target.filename, .format = a->target.format };
        uint64_t leaks;

        if (img_mend(&left, &leaks)) {
            return -EIO;
        }
    } else if (!a->no_create && create_target(a)) {
        return -EIO;
    }
    im.opts = a->target.open_opts;
    a->c.dst = img_open(&im);
    if (!a->c.dst) {
        return -EIO;
    }
    if (a->c.compress && !blk_driver_compresses(blk_format_name(a->c.dst))) {
        img_error("Compression not supported for this file format");
        return -ENOTSUP;
    }
    if (a->bitmaps && !blk_has_bitmaps(a->c.dst)) {
        img_error("Format driver '%s' does not support bitmaps", blk_format_name(a->c.dst));
        return -ENOTSUP;
    }
    if (a->no_create && blk_size(a->c.dst) < a->c.total) {
        img_error("output file is smaller than input file");
        return -EFBIG;
    }
    return 0;
}

/* ---- the command ------------------------------------------------------------ */

/* Everything that has to be the same for a convert to go on. */
static json_t *identity(const struct args *a)
{
    const struct convert_target *t = &a->target;
    json_t *sources = json_array();

    for (size_t i = 0; i < a->c.nsrc; i++) {
        json_array_append_new(sources, journal_describe(a->c.src[i].node));
    }
    return json_pack("{s:o, s:o*, s:o, s:s*, s:o*, s:o*, s:s*, s:b, s:b, s:b, s:b, s:i, s:b, s:b}",
                     "sources", sources, "snapshot", img_json_string(a->snapshot),
                     "target", img_json_string(t->filename), "format", t->format,
                     "options", img_json_string(t->options), "backing", img_json_string(t->backing),
                     "backing-format", t->backing_format, "no-create", a->no_create,
                     "target-is-zero", a->target_is_zero, "compress", a->c.compress,
                     "salvage", a->c.salvage, "sparse", (int)a->c.sparse,
                     "bitmaps", a->bitmaps, "skip-broken-bitmaps", a->skip_broken);
}

static int open_journal(struct args *a)
{
    struct blk_error e = BLK_ERROR_INIT;

    a->c.journal = journal_open(a->journal, a->target.filename, identity(a), &e);
    if (!a->c.journal) {
        img_report(&e);
        return -EINVAL;
    }
    return 0;
}

/* The target is open: where to begin. */
static int begin(struct args *a)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct convert *c = &a->c;
    int ret = 0;

    if (c->journal) {
        ret = journal_start(c->journal, c->dst, &e);
        if (ret == 0 && journal_at(c->journal) > c->total) {
            ret = blk_err(&e, EINVAL, "The journal is that of a larger image");
        }
        c->pos = c->done = c->saved = journal_at(c->journal);
    }
    if (ret < 0) {
        img_report(&e);
    } else if (a->verify) {
        ret = convert_verify_start(c, c->pos == 0);
        if (ret == -ENOMEM) {
            img_error("%s", strerror(ENOMEM));
        }
    }
    return ret;
}

static int verify_target(struct args *a)
{
    struct img_image im = { .filename = a->target.filename, .format = a->target.format,
                            .image_opts = a->target_image_opts, .quiet = true };
    struct blk_node *n;
    int ret;

    blk_parse_cache(a->cache, &im.flags);
    im.flags &= ~(unsigned)BLK_O_NO_FLUSH;
    n = img_open(&im);
    if (!n) {
        return -EIO;
    }
    ret = convert_verify(&a->c, n, a->digest);
    return img_close(n) ? -EIO : ret;
}

/* The target is closed. */
static int finish(struct args *a, int ret)
{
    struct blk_error e = BLK_ERROR_INIT;
    bool complete = ret == 0;

    if (complete && a->verify) {
        ret = verify_target(a);
    }
    /* Also of one that did not verify: going on would not make it any better. */
    if (complete && a->c.journal && journal_remove(a->c.journal, &e)) {
        img_report(&e);
        ret = -EIO;
    }
    return ret;
}

static int print_result(const struct args *a)
{
    json_t *sources = json_array();

    for (size_t i = 0; i < a->c.nsrc; i++) {
        json_array_append_new(sources, img_json_string(blk_filename(a->c.src[i].node)));
    }
    return img_json_result(json_pack(
        "{s:o, s:o, s:s*, s:I, s:s*, s:I}", "sources", sources,
        "target", img_json_string(a->target.filename), "format", a->target.format,
        "virtual-size", (json_int_t)a->c.total,
        "sha256-tree", *a->digest ? a->digest : NULL,
        "resumed-at", (json_int_t)(a->c.journal ? journal_at(a->c.journal) : 0)));
}

static int convert_images(struct args *a)
{
    int ret;

    ret = open_sources(a);
    if (ret == 0 && a->snapshot) {
        ret = load_snapshot(a);
    }
    if (ret == 0) {
        ret = place_sources(a);
    }
    if (ret == 0 && a->to_stdout) {
        ret = convert_stream(&a->c, a->target.format, a->options);
        if (a->c.failure.err) {
            convert_report(&a->c.failure);
        }
        return ret;
    }
    if (ret == 0) {
        ret = prepare_target(a);
    }
    if (ret == 0 && a->resume) {
        ret = open_journal(a);
    }
    if (ret == 0) {
        ret = open_target(a);
    }
    if (ret == 0) {
        ret = convert_target_measure(&a->target, &a->c, !a->no_create, a->target_is_zero);
    }
    bool goes_on = a->c.journal && journal_resumes(a->c.journal);
    if (ret == 0 && a->c.journal && a->bitmaps && !goes_on) {
        ret = convert_clear_way_for_bitmaps(&a->c);
    }
    if (ret == 0) {
        ret = begin(a);
    }
    if (ret == 0 && a->bitmaps && goes_on) {
        ret = convert_clear_way_for_bitmaps(&a->c);
    }
    if (ret == 0) {
        /* A digest wants to see what is copied. */
        a->c.offload = a->copy_range && !a->c.digest;
        ret = convert_copy(&a->c);
        if (ret < 0) {
            convert_report(&a->c.failure);
        }
    }
    if (ret == 0 && a->bitmaps) {
        ret = convert_copy_bitmaps(&a->c);
    }
    return ret;
}

static int run(void *arg)
{
    struct args *a = arg;
    int ret;

    img_progress_start(a->progress && !a->quiet, 1.0);
    img_progress_set(0, 100, false);
    ret = convert_images(a);
    /* What could not be written back in the end is a failure like any other. */
    if (img_close(a->c.dst) < 0) {
        ret = -EIO;
    }
    ret = finish(a, ret);
    if (ret == 0) {
        img_progress_set(100, 100, false);
    }
    img_progress_end();
    if (ret == 0 && a->json) {
        ret = print_result(a);
    }
    convert_verify_free(&a->c);
    journal_free(a->c.journal);
    for (size_t i = 0; a->c.src && i < a->c.nsrc; i++) {
        img_close(a->c.src[i].node);
    }
    free(a->c.src);
    convert_target_free(&a->target);
    return ret ? 1 : 0;
}

static int run_or_help(struct args *a, int argc, char **argv)
{
    struct convert_target *t = &a->target;
    int ret = check_options(a);

    if (ret) {
        return ret;
    }
    if (!a->cache) {
        a->cache = a->resume ? "writeback" : "unsafe";
    }
    if (!t->format && !a->target_image_opts) {
        t->format = "raw";
    }
    a->c.nsrc = argc - optind > 1 ? (size_t)(argc - optind - 1) : 0;
    a->sources = argv + optind;
    t->filename = a->c.nsrc ? argv[argc - 1] : NULL;
    t->options = a->options;
    if (img_options_want_help(a->options)) {
        if (!t->format) {
            img_error("Option help requires a format be specified");
            return 1;
        }
        return img_print_create_options(t->format, t->filename);
    }
    if (!a->c.nsrc) {
        img_error("Must specify image file name");
        return 1;
    }
    a->c.quiet = a->quiet;
    a->to_stdout = !strcmp(t->filename, "-") && !a->target_image_opts;
    if (a->to_stdout && check_stdout(a)) {
        return 1;
    }
    return img_run(run, a);
}

static int convert_main(int argc, char **argv)
{
    struct args a = { .src_cache = "writeback",
                      .c = { .sparse = CONVERT_SPARSE, .checkpoint = 64u << 20 } };
    int c, ret = 0;

    while (ret == 0 && (c = getopt_long(argc, argv, "hf:O:B:F:Cco:l:S:pt:T:qnm:WUr:", longs,
                                        NULL)) != -1) {
        if (c == 'h') {
            free(a.options);
            return img_help(&img_convert);
        }
        if (!set_flag(&a, c)) {
            ret = set_value(&a, c, argv[0]);
        }
    }
    if (ret == 0) {
        ret = run_or_help(&a, argc, argv);
    }
    free(a.options);
    return ret;
}

const struct img_command img_convert = {
    .name = "convert",
    .summary = "Copy one image to another with optional format conversion",
    .synopsis = "[-f SRC_FMT|--image-opts] [-T SRC_CACHE] [-U]\n"
                "        [-O TGT_FMT [-o TGT_OPTS]|--target-image-opts] [-t TGT_CACHE] [-n]\n"
                "        [-B BACKING_FILENAME -F BACKING_FMT] [-S SPARSE_SIZE] [-m N] [-W] [-r RATE]\n"
                "        [--salvage] [--verify] [--resume [--journal FILE] [--checkpoint SIZE]]\n"
                "        [-p] [--progress=FD|json] [-q] [--output human|json]\n"
                "        SRC_FILENAME [SRC_FILENAME2 [...]] TGT_FILENAME",
    .arguments =
        "  -q, --quiet\n     quiet operation\n"
        "  -p, --progress\n     show operation progress\n"
        "  --progress=FD|json\n     lines of JSON about it, to file descriptor FD or standard error\n"
        "  -f, --source-format SRC_FMT\n     specify the format of SRC_FILENAME explicitly\n"
        "  --source-image-opts, --image-opts\n"
        "     SRC_FILENAME is a complete image specification instead of a file name\n"
        "     (incompatible with --source-format)\n"
        "  -l, --source-snapshot SNAPSHOT_PARAMS\n     copy an internal snapshot: its id or name, or\n     snapshot.id=ID,snapshot.name=NAME\n"
        "  -T, --source-cache SRC_CACHE\n     cache mode of the source images (writeback)\n"
        "  -O, --target-format TGT_FMT\n     specify the format of TGT_FILENAME (raw)\n"
        "  --target-image-opts\n"
        "     TGT_FILENAME is a complete image specification instead of a file name;\n"
        "     requires -n\n"
        "  -o, --target-options TGT_OPTS\n     options of TGT_FMT; \"help\" lists them\n"
        "  -c, --compress\n     write a compressed image; -o compression_level=N: 1 is fastest (zlib 1,\n"
        "     zstd 4; at most 12 and 22)\n"
        "  -t, --target-cache TGT_CACHE\n     cache mode of the target image (unsafe)\n"
        "  -B, --backing BACKING_FILENAME\n     make the target an overlay of BACKING_FILENAME\n"
        "  -F, --backing-format BACKING_FMT\n     specify the format of BACKING_FILENAME\n"
        "  -n, --no-create\n     write to an existing image\n"
        "  --target-is-zero\n     with -n: the target is known to read as zeros\n"
        "  -S, --sparse-size SPARSE_SIZE\n"
        "     leave zeros of at least this length unwritten (4k); 0 writes everything\n"
        "  --bitmaps\n     also copy persistent bitmaps\n"
        "  --skip-broken-bitmaps\n     with --bitmaps: skip those that are inconsistent\n"
        "  -U, --force-share\n     open images in shared mode for concurrent access\n"
        "  -r, --rate RATE\n     limit writing to RATE bytes a second\n"
        "  -m, --parallel N\n     how many buffers are read and written in parallel (8; between\n     local files one more than there are processors)\n"
        "  -C, --copy-range-offloading\n"
        "     have the storage copy (blocks that are shared where the file system can) what\n"
        "     lies in local files, uncompressed and unencrypted; what it refuses is read and\n     written\n"
        "  --salvage\n     go on after read errors, with zeros in place of what is lost\n"
        "  -W, --oob-writes\n     allow writing in any order\n"
        "  --verify\n     read the target back and compare it with what was copied\n"
        "  --resume\n     go on where an earlier run of the same command was interrupted; a journal\n"
        "     beside the target, TGT_FILENAME.journal, says how far it came. The default of -t\n"
        "     is writeback then\n"
        "  --journal FILE\n     the journal's name, for targets that are not local files\n"
        "  --checkpoint SIZE\n     with --resume: flush, and note it in the journal, after this much (64M)\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     define an object (eg encryption key)\n"
        "  SRC_FILENAME\n     source image file name; several are put end to end\n"
        "  TGT_FILENAME\n     target image file name; \"-\": standard output, raw, qcow2 or\n     streamOptimized vmdk, for a pipe\n",
    .main = convert_main,
};
