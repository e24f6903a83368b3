/*
 * info.c - platter-img info: what an image says about itself.
 *
 * Everything is first gathered as the JSON object QEMU's schema describes
 * (ImageInfo); the text for people is printed from that, so the two cannot
 * disagree.  Nothing is printed before the whole chain has been read.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "img/img.h"
#include "img/sandbox.h"

struct info {
    struct img_image image;
    bool json, chain, no_sandbox;
};

/* ---- gathering ---------------------------------------------------------------- */

static json_t *gather(struct blk_node *n, struct blk_error *e);

/* Names are bytes, not text: jansson is not to check them. */
static void set_string(json_t *o, const char *key, const char *value)
{
    char *shown = value ? blk_redact(value) : NULL;

    if (shown) {
        json_object_set_new(o, key, json_string_nocheck(shown));
    }
    free(shown);
}

static void set_info(json_t *o, const char *format, const struct blk_info *i)
{
    if (i->cluster_size) {
        json_object_set_new(o, "cluster-size", json_integer((json_int_t)i->cluster_size));
    }
    if (i->encrypted) {
        json_object_set_new(o, "encrypted", json_true());
    }
    if (i->compressed) {
        json_object_set_new(o, "compressed", json_true());
    }
    if (!i->bare) {
        json_object_set_new(o, "dirty-flag", json_boolean(i->dirty));
    }
    set_string(o, "backing-filename", i->backing_name);
    set_string(o, "full-backing-filename", i->backing_full);
    set_string(o, "backing-filename-format", i->backing_format);
    if (i->snapshots && json_array_size(i->snapshots)) {
        json_object_set(o, "snapshots", i->snapshots);
    }
    if (i->specific) {          /* a device has what a file has */
        const char *type = strcmp(format, "host_device") ? format : "file";
        json_object_set_new(o, "format-specific",
                            json_pack("{ss, sO}", "type", type, "data", i->specific));
    }
}

static int add_child(json_t *children, const char *name, struct blk_node *n, struct blk_error *e)
{
    json_t *info;

    if (!n) {
        return 0;
    }
    info = gather(n, e);
    if (!info) {
        return -e->err;
    }
    json_array_append_new(children, json_pack("{ss, so}", "name", name, "info", info));
    return 0;
}

/* Last to first, as QEMU lists its children. */
static int add_more_files(json_t *children, struct blk_node *n, struct blk_error *e)
{
    const char *name;
    unsigned count = 0;
    int err = 0;

    while (blk_more_file(n, count, &name)) {
        count++;
    }
    while (count && !err) {
        struct blk_node *file = blk_more_file(n, --count, &name);
        err = add_child(children, name, file, e);
    }
    return err;
}

/* A new object, or NULL with e set. */
static json_t *gather(struct blk_node *n, struct blk_error *e)
{
    struct blk_info info = { 0 };
    int64_t allocated = blk_allocated_size(n);
    json_t *o, *children;

    if (blk_get_info(n, &info, e)) {
        return NULL;
    }
    o = json_object();
    /* In whole sectors, as QEMU counts. */
    json_object_set_new(o, "virtual-size",
                        json_integer((json_int_t)((blk_size(n) + 511) & ~511ull)));
    json_object_set_new(o, "filename", json_string_nocheck(blk_filename(n)));
    json_object_set_new(o, "format", json_string(blk_format_name(n)));
    if (allocated >= 0) {
        json_object_set_new(o, "actual-size", json_integer(allocated));
    }
    set_info(o, blk_format_name(n), &info);
    blk_info_free(&info);

    children = json_array();
    json_object_set_new(o, "children", children);
    json_object_set_new(o, "protocol", json_boolean(blk_is_protocol(n)));
    if (add_more_files(children, n, e) || add_child(children, blk_file_role(n), blk_file(n), e) ||
        add_child(children, "data-file", blk_data_file(n), e)) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static json_t *gather_image(const struct img_image *im)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n = img_open(im);
    json_t *o;

    if (!n) {
        return NULL;
    }
    o = gather(n, &e);
    if (!o) {
        img_report(&e);
    }
    if (img_close(n) && o) {
        json_decref(o);
        o = NULL;
    }
    return o;
}

/* The next image down, named as the one above names it: 1, 0 at the end, -EACCES
 * for a name that only its user, not an image, may give (said so).  The strings
 * belong to info. */
static int next_image(const json_t *info, struct img_image *im)
{
    const char *name = json_string_value(json_object_get(info, "backing-filename"));

    if (name && !blk_inner_name_allowed(img_backing_urls, name)) {
        img_error("Could not open '%s': file name '%.200s' inside the image is not a plain path; "
                  "allow its protocol to use it", im->filename, name);
        return -EACCES;
    }
    im->filename = json_string_value(json_object_get(info, "full-backing-filename"));
    im->format = json_string_value(json_object_get(info, "backing-filename-format"));
    im->image_opts = false;
    return im->filename ? 1 : 0;
}

/* An array of ImageInfo, or NULL: said why. */
static json_t *gather_chain(const struct info *arg)
{
    struct img_image im = arg->image;
    json_t *list = json_array(), *seen = json_object(), *info;
    int more = 1;

    while (more) {
        if (json_object_get(seen, im.filename)) {
            img_error("Backing file '%s' creates an infinite loop.", im.filename);
            goto fail;
        }
        if (json_array_size(list) >= BLK_CHAIN_MAX) {
            img_error("The backing chain is longer than %u images", BLK_CHAIN_MAX);
            goto fail;
        }
        json_object_set_new_nocheck(seen, im.filename, json_true());
        info = gather_image(&im);
        if (!info) {
            goto fail;
        }
        json_array_append_new(list, info);
        more = arg->chain ? next_image(info, &im) : 0;
        if (more < 0) {
            goto fail;
        }
    }
    json_decref(seen);
    return list;
fail:
    json_decref(seen);
    json_decref(list);
    return NULL;
}

/* ---- for people ------------------------------------------------------------------ */

static const char *get_string(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

static uint64_t get_number(const json_t *o, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(o, key));
}

static void print_snapshot(const json_t *s)
{
    char size[32], date[32] = "", clock[48], icount[24] = "--";
    time_t when = (time_t)get_number(s, "date-sec");
    uint64_t seconds = get_number(s, "vm-clock-sec");
    struct tm tm;

    if (localtime_r(&when, &tm)) {
        strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
    }
    snprintf(clock, sizeof(clock), "%04" PRIu64 ":%02u:%02u.%03u", seconds / 3600,
             (unsigned)(seconds / 60 % 60), (unsigned)(seconds % 60),
             (unsigned)(get_number(s, "vm-clock-nsec") / 1000000));
    if (json_object_get(s, "icount")) {
        snprintf(icount, sizeof(icount), "%" PRId64, (int64_t)get_number(s, "icount"));
    }
    printf("%-7s %-16s %8s %19s %15s %10s\n", get_string(s, "id"), get_string(s, "name"),
           img_human_size(get_number(s, "vm-state-size"), size, sizeof(size)), date, clock,
           icount);
}

void img_print_snapshots(const json_t *list, int margin)
{
    printf("%*sSnapshot list:\n%*s%-7s %-16s %8s %19s %15s %10s\n", margin, "", margin, "",
           "ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
    for (size_t i = 0; i < json_array_size(list); i++) {
        printf("%*s", margin, "");
        print_snapshot(json_array_get(list, i));
    }
}

static void print_backing(const json_t *o, int margin)
{
    const char *name = get_string(o, "backing-filename");
    const char *full = get_string(o, "full-backing-filename");
    const char *format = get_string(o, "backing-filename-format");

    if (!name) {
        return;
    }
    printf("%*sbacking file: %s", margin, "", name);
    if (!full) {
        printf(" (cannot determine actual path)");
    } else if (strcmp(name, full)) {
        printf(" (actual path: %s)", full);
    }
    putchar('\n');
    if (format) {
        printf("%*sbacking file format: %s\n", margin, "", format);
    }
}

static void print_sizes(const json_t *o, int margin, bool protocol)
{
    char allocated[32] = "unavailable", size[32];
    uint64_t bytes = get_number(o, "virtual-size");

    if (json_object_get(o, "actual-size")) {
        img_human_size(get_number(o, "actual-size"), allocated, sizeof(allocated));
    }
    printf("%*s%s: %s (%" PRIu64 " bytes)\n%*sdisk size: %s\n", margin, "",
           protocol ? "file length" : "virtual size",
           img_human_size(bytes, size, sizeof(size)), bytes, margin, "", allocated);
}

/* The lines of one node, its children's not. */
static void print_node(const json_t *o, int level)
{
    /* The file an image lies in is described as a file; the image itself, even
     * if it was opened as a bare file, as an image. */
    bool protocol = level && json_is_true(json_object_get(o, "protocol"));
    int margin = level * 4;
    const json_t *specific = json_object_get(json_object_get(o, "format-specific"), "data");
    const json_t *snapshots = json_object_get(o, "snapshots");

    printf("%*s%s: %s\n%*s%s: %s\n", margin, "", protocol ? "filename" : "image",
           get_string(o, "filename"), margin, "", protocol ? "protocol type" : "file format",
           get_string(o, "format"));
    print_sizes(o, margin, protocol);
    if (json_object_get(o, "encrypted")) {
        printf("%*sencrypted: yes\n", margin, "");
    }
    if (json_object_get(o, "cluster-size")) {
        printf("%*scluster_size: %" PRIu64 "\n", margin, "", get_number(o, "cluster-size"));
    }
    if (json_is_true(json_object_get(o, "dirty-flag"))) {
        printf("%*scleanly shut down: no\n", margin, "");
    }
    print_backing(o, margin);
    if (snapshots) {
        img_print_snapshots(snapshots, margin);
    }
    if (json_object_size(specific)) {
        printf("%*sFormat specific information:\n", margin, "");
        img_print_human_json(level + 1, specific);
    }
}

/* path: of the parent, "" at the top. */
static void print_human(const json_t *o, int level, const char *path)
{
    const json_t *children = json_object_get(o, "children");
    char below[256];

    print_node(o, level);
    for (size_t i = 0; i < json_array_size(children); i++) {
        const json_t *child = json_array_get(children, i);

        snprintf(below, sizeof(below), "%s/%s", path, get_string(child, "name"));
        printf("%*sChild node '%s':\n", level * 4, "", below);
        print_human(json_object_get(child, "info"), level + 1, below);
    }
}

/* ---- the command ------------------------------------------------------------------- */

/* "protocol" is ours, for print_node(); QEMU's schema does not have it. */
static void drop_private_keys(json_t *o)
{
    json_t *children = json_object_get(o, "children");

    json_object_del(o, "protocol");
    for (size_t i = 0; i < json_array_size(children); i++) {
        drop_private_keys(json_object_get(json_array_get(children, i), "info"));
    }
}

static void print_list(const struct info *arg, json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *o = json_array_get(list, i);

        if (arg->json) {
            drop_private_keys(o);
        } else {
            fputs(i ? "\n" : "", stdout);
            print_human(o, 0, "");
        }
    }
    if (arg->json) {
        img_json_print(arg->chain ? list : json_array_get(list, 0));
    }
}

static int info_run(void *arg)
{
    json_t *list = gather_chain(arg);

    if (!list) {
        return 1;
    }
    print_list(arg, list);
    json_decref(list);
    return 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct info *a, int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"backing-chain", no_argument, NULL, 'b'},
        {"force-share", no_argument, NULL, 'U'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {"no-sandbox", no_argument, NULL, IMG_OPT_NO_SANDBOX},
        {NULL, 0, NULL, 0},
    };
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hf:bU", longs, NULL)) != -1) {
        switch (ch) {
        case 'b':
            a->chain = true;
            break;
        case IMG_OPT_NO_SANDBOX:
            a->no_sandbox = true;
            break;
        default:
            status = img_common_option(&img_info, ch, argv[0], &a->image, &a->json);
            break;
        }
    }
    return status;
}

static int info_main(int argc, char **argv)
{
    struct info a = { .image.flags = BLK_O_NO_BACKING | BLK_O_NO_IO };
    int status = parse_options(&a, argc, argv);

    if (status >= 0) {
        return status;
    }
    if (optind != argc - 1) {
        return img_usage_error(argv[0], "Expecting one image file name");
    }
    a.image.filename = argv[optind];
    struct sandbox box = { .off = a.no_sandbox, .chain = a.chain, .cpu_seconds = 60 };
    return sandbox_run(&box, &a.image, info_run, &a);
}

const struct img_command img_info = {
    .name = "info",
    .summary = "Show what is known about an image",
    .synopsis = "[-f FMT | --image-opts] [-b] [-U] [--output human|json]\n"
                "        [--no-sandbox] FILENAME",
    .arguments =
        "  -f, --format FMT\n     format of the image (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  -b, --backing-chain\n     also the images below it\n"
        "  -U, --force-share\n     take no locks: another program may be writing to it\n"
        "  --output human|json\n     how to print\n"
        "  --object OBJDEF\n     an object such as a secret\n"
        SANDBOX_HELP,
    .main = info_main,
};
