/*
 * check.c - platter-img check: is an image consistent, and repair.
 *
 * Exit status: 0 clean (or repaired), 1 the check could not be done, 2 the image
 * is corrupt, 3 it has leaked clusters, 63 its format has no check.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "img/img.h"
#include "img/sandbox.h"

enum { STATUS_FAILED = 1, STATUS_CORRUPT = 2, STATUS_LEAKS = 3, STATUS_UNSUPPORTED = 63 };

struct check {
    struct img_image image;
    bool json, progress, no_sandbox;
    int fix;                    /* BLK_FIX_* */
};

/* Findings go to stderr as they come, whatever the output format. */
static void on_message(void *arg, bool is_error, const char *line)
{
    fprintf(stderr, "%s\n", line);
}

static void on_progress(void *arg, double fraction)
{
    img_progress_set((uint64_t)(fraction * 10000), 10000, false);
}

static void print_findings(const struct blk_check *r)
{
    if (!r->corruptions && !r->leaks && !r->check_errors) {
        printf("No errors were found on the image.\n");
    }
    if (r->corruptions) {
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               r->corruptions);
    }
    if (r->leaks) {
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n", r->leaks);
    }
    if (r->check_errors) {
        printf("\n%" PRIu64 " internal errors have occurred during the check.\n",
               r->check_errors);
    }
}

static void print_human(const struct blk_check *r)
{
    double total = (double)r->total_clusters, allocated = (double)r->allocated_clusters;

    print_findings(r);
    if (r->total_clusters && r->allocated_clusters) {
        printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, "
               "%0.2f%% compressed clusters\n", r->allocated_clusters, r->total_clusters,
               allocated * 100 / total, (double)r->fragmented_clusters * 100 / allocated,
               (double)r->compressed_clusters * 100 / allocated);
    }
    if (r->image_end_offset) {
        printf("Image end offset: %" PRIu64 "\n", r->image_end_offset);
    }
}

static void put_count(json_t *o, const char *key, uint64_t n)
{
    if (n) {
        json_object_set_new(o, key, json_integer((json_int_t)n));
    }
}

static void print_json(const struct blk_check *r, const char *filename, const char *format)
{
    json_t *o = json_object();

    json_object_set_new(o, "filename", json_string_nocheck(filename));
    json_object_set_new(o, "format", json_string(format));
    json_object_set_new(o, "check-errors", json_integer((json_int_t)r->check_errors));
    put_count(o, "image-end-offset", r->image_end_offset);
    put_count(o, "corruptions", r->corruptions);
    put_count(o, "leaks", r->leaks);
    put_count(o, "corruptions-fixed", r->corruptions_fixed);
    put_count(o, "leaks-fixed", r->leaks_fixed);
    put_count(o, "total-clusters", r->total_clusters);
    put_count(o, "allocated-clusters", r->allocated_clusters);
    put_count(o, "fragmented-clusters", r->fragmented_clusters);
    put_count(o, "compressed-clusters", r->compressed_clusters);
    img_json_print(o);
    json_decref(o);
}

static int check_once(const struct check *c, struct blk_node *n, struct blk_check *r, int fix,
                      struct blk_error *e)
{
    *r = (struct blk_check){ .message = on_message, .progress = on_progress };
    img_progress_start(c->progress && !c->image.quiet, 1.0);
    on_progress(NULL, 0);
    int err = blk_check(n, r, fix, e);
    if (!err)
        on_progress(NULL, 1);
    img_progress_end();
    return err;
}

/* After a repair the image is checked again; what was repaired stays counted. */
static int check_again(const struct check *c, struct blk_node *n, struct blk_check *r,
                       struct blk_error *e)
{
    uint64_t leaks = r->leaks_fixed, corruptions = r->corruptions_fixed;
    int err;

    if (!c->json) {
        img_print(c->image.quiet, "The following inconsistencies were found and repaired:\n\n"
                  "    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions\n\n"
                  "Double checking the fixed image now...\n", leaks, corruptions);
    }
    err = check_once(c, n, r, 0, e);
    r->leaks_fixed = leaks;
    r->corruptions_fixed = corruptions;
    return err;
}

static int report_failure(int err, const struct blk_error *e)
{
    if (e->err && strcmp(e->text, strerror(-err))) {
        img_report(e);
    }
    img_error("Check failed: %s", strerror(-err));
    return STATUS_FAILED;
}

static int check_node(const struct check *c, struct blk_node *n)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_check r;
    int err = check_once(c, n, &r, c->fix, &e);

    if (err == -ENOTSUP) {
        img_error("This image format does not support checks");
        return STATUS_UNSUPPORTED;
    }
    if (!err && (r.corruptions_fixed || r.leaks_fixed)) {
        err = check_again(c, n, &r, &e);
    }
    if (err) {
        return report_failure(err, &e);
    }
    if (!c->image.quiet && c->json) {
        print_json(&r, c->image.filename, blk_format_name(n));
    } else if (!c->image.quiet) {
        print_human(&r);
    }
    if (r.check_errors) {
        img_error("Check failed");
        return STATUS_FAILED;
    }
    return r.corruptions ? STATUS_CORRUPT : r.leaks ? STATUS_LEAKS : 0;
}

static int check_run(void *arg)
{
    const struct check *c = arg;
    struct blk_node *n = img_open(&c->image);
    int status;

    if (!n) {
        return STATUS_FAILED;
    }
    sandbox_shut();
    status = check_node(c, n);
    return img_close(n) ? STATUS_FAILED : status;
}

static int parse_repair(struct check *c, const char *argv0, const char *what)
{
    if (!strcmp(what, "leaks")) {
        c->fix = BLK_FIX_LEAKS;
    } else if (!strcmp(what, "all")) {
        c->fix = BLK_FIX_LEAKS | BLK_FIX_ERRORS;
    } else {
        img_usage_error(argv0, "--repair (-r) expects 'leaks' or 'all' not '%s'", what);
        return -EINVAL;
    }
    c->image.flags |= BLK_O_RDWR;
    return 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct check *c, const char **cache, int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"quiet", no_argument, NULL, 'q'},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"cache", required_argument, NULL, 'T'},
        {"repair", required_argument, NULL, 'r'},
        {"force-share", no_argument, NULL, 'U'},
        {"progress", optional_argument, NULL, 'p'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {"no-sandbox", no_argument, NULL, IMG_OPT_NO_SANDBOX},
        {NULL, 0, NULL, 0},
    };
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hf:r:T:qUp", longs, NULL)) != -1) {
        switch (ch) {
        case 'T':
            *cache = optarg;
            break;
        case 'r':
            if (parse_repair(c, argv[0], optarg)) {
                return STATUS_FAILED;
            }
            break;
        case 'p':
            if (img_parse_progress(optarg, &c->progress)) {
                return STATUS_FAILED;
            }
            break;
        case IMG_OPT_NO_SANDBOX:
            c->no_sandbox = true;
            break;
        default:
            status = img_common_option(&img_check, ch, argv[0], &c->image, &c->json);
            break;
        }
    }
    return status;
}

static int check_main(int argc, char **argv)
{
    struct check c = { .image.flags = BLK_O_CHECK };
    const char *cache = "writeback";
    int status = parse_options(&c, &cache, argc, argv);

    if (status >= 0) {
        return status;
    }
    if (optind != argc - 1) {
        return img_usage_error(argv[0], "Expecting one image file name");
    }
    c.image.filename = argv[optind];
    if (img_parse_cache("source ", cache, &c.image.flags)) {
        return STATUS_FAILED;
    }
    struct sandbox box = { .off = c.no_sandbox, .writable = c.fix, .chain = true,
                           .cpu_seconds = 3600 };
    return sandbox_run(&box, &c.image, check_run, &c);
}

const struct img_command img_check = {
    .name = "check",
    .summary = "Check an image for consistency and repair it",
    .synopsis = "[-f FMT | --image-opts] [-T CACHE] [-r leaks|all] [-U]\n"
                "        [-p] [--progress=FD|json] [--output human|json] [--no-sandbox] [-q]\n"
                "        FILENAME",
    .arguments =
        "  -q, --quiet\n     print only what was found, on standard error\n"
        "  -f, --format FMT\n     format of the image (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  -T, --cache MODE\n     none, writeback (default), writethrough, directsync, unsafe\n"
        "  -r, --repair leaks|all\n     repair leaked clusters, or all that can be repaired\n"
        "  -U, --force-share\n     take no locks (not together with -r)\n"
        "  -p, --progress\n     show how far it is\n"
        "  --progress=FD|json\n     lines of JSON about it, to file descriptor FD or standard error\n"
        "  --output human|json\n     how to print\n"
        "  --object OBJDEF\n     an object such as a secret\n"
        SANDBOX_HELP
        "\nExit status: 0 clean or repaired, 1 check failed, 2 corrupt, 3 leaked clusters,\n"
        "63 the format has no check.\n",
    .main = check_main,
};
