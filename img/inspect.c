/*
 * inspect.c - platter-img inspect: may an image from a stranger be used?
 *
 * Facts first, from the first structures alone: what it is and what it names, also where
 * it cannot be opened.  Then it is opened as its user would, without what it names, and
 * checked.  All of it happens behind the narrowest walls: no other file can be opened.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "img/inspect.h"
#include "img/sandbox.h"
#include "img/walls.h"

enum { STATUS_SAFE, STATUS_FAILED, STATUS_DAMAGED, STATUS_SUSPICIOUS, STATUS_REFUSED };
enum { OPT_MAX_SIZE = IMG_OPT_FIRST_FREE };

#define MAX_SIZE (64ull << 40)          /* larger ones are suspicious, unless told otherwise */

struct inspect {
    struct img_image image;
    bool json, no_sandbox;
    uint64_t max_size;
};

/* ---- the report ------------------------------------------------------------------------ */

static void add_line(json_t *o, const char *key, const char *fmt, va_list ap)
{
    json_t *list = json_object_get(o, key);
    char line[1400];

    vsnprintf(line, sizeof(line), fmt, ap);
    if (!list) {
        json_object_set_new(o, key, list = json_array());
    }
    if (json_array_size(list) < BLK_FACTS_MAX) {
        json_array_append_new(list, json_string_nocheck(line));
    }
}

void report_reason(struct report *r, enum verdict v, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    add_line(r->o, "reasons", fmt, ap);
    va_end(ap);
    r->verdict = BLK_MAX(r->verdict, v);
}

void report_note(struct report *r, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    add_line(r->o, "notes", fmt, ap);
    va_end(ap);
}

const char *verdict_name(enum verdict v)
{
    static const char *const names[] = { "safe", "damaged", "suspicious", "refused" };
    return names[v];
}

static void put(struct report *r, const char *key, uint64_t n)
{
    json_object_set_new(r->o, key, json_integer((json_int_t)n));
}

/* ---- facts ------------------------------------------------------------------------------- */

static void take_features(struct report *r, const struct blk_facts *f)
{
    json_t *x;
    size_t i;

    json_object_set(r->o, "features", f->features);
    json_object_set(r->o, "unknown-extensions", f->extensions);
    json_array_foreach(f->features, i, x) {
        if (!json_is_true(json_object_get(x, "known"))) {
            report_note(r, "it has a feature that is not known here (%s bit %d)",
                        json_string_value(json_object_get(x, "kind")),
                        (int)json_integer_value(json_object_get(x, "bit")));
        }
    }
    if (json_array_size(f->extensions)) {
        report_note(r, "its header has %zu extensions that are not known here",
                    json_array_size(f->extensions));
    }
}

static void take_facts(struct report *r, const struct inspect *a, const struct blk_facts *f)
{
    bool given = a->image.format || a->image.image_opts;

    json_object_set_new(r->o, "format", json_string(f->format));
    json_object_set_new(r->o, "format-source",
                        json_string(given ? "given" : f->guessed ? "nothing else fits" : "found"));
    put(r, "file-size", f->file_size);
    take_features(r, f);
    inspect_names(r, f->references);
    if (f->guessed) {
        report_note(r, "no format was recognised; raw images are to be opened with -f raw, or "
                    "their guest can turn them into another format");
    }
    if (f->elsewhere) {
        put(r, "virtual-size", f->size);
        report_note(r, "its data is in the files it names: they are not looked at");
    }
}

/* ---- the image ------------------------------------------------------------------------------ */

static void take_info(struct report *r, struct blk_node *n)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_info info = { 0 };
    struct blk_bitmap b;
    size_t bitmaps = 0;

    put(r, "virtual-size", blk_size(n));
    if (blk_get_info(n, &info, &e)) {
        report_reason(r, VERDICT_DAMAGED, "%s", e.text);
        return;
    }
    while (blk_has_bitmaps(n) && blk_bitmap_at(n, bitmaps, &b)) {
        bitmaps++;
    }
    put(r, "snapshots", json_array_size(info.snapshots));
    put(r, "bitmaps", bitmaps);
    json_object_set_new(r->o, "encrypted", json_boolean(info.encrypted));
    if (info.dirty) {
        report_reason(r, VERDICT_DAMAGED, "it was not closed cleanly (dirty bit)");
    }
    if (info.corrupt) {
        report_reason(r, VERDICT_DAMAGED, "a program that used it found it corrupt (corrupt bit)");
    }
    blk_info_free(&info);
}

static void take_contents(struct report *r, struct blk_node *n, const struct blk_open_args *args)
{
    struct blk_error e = BLK_ERROR_INIT;

    inspect_check(r, n, args);
    if (blk_file(n)) {
        inspect_bytes(r, blk_file(n), blk_format_name(n));
    }
    if (blk_close(n, &e)) {
        report_reason(r, VERDICT_DAMAGED, "%s", e.text);
    }
}

/* As a user would; what is refused then is opened once more as check does.  -errno, e
 * says why: it is not the image's fault. */
static int take_image(struct report *r, const struct blk_open_args *args, struct blk_error *e)
{
    struct blk_open_args a = *args;
    struct blk_node *n;
    int err = blk_open(img_loop(), &a, &n, e);

    if (err == -EAGAIN || err == -ENOMEM) {     /* locked by its user; no memory */
        return err;
    }
    if (!err) {
        take_info(r, n);
    } else {
        report_reason(r, VERDICT_REFUSED, "it cannot be opened: %s", e->text);
        a.flags |= BLK_O_CHECK;
        err = blk_open(img_loop(), &a, &n, NULL);
    }
    if (!err) {
        take_contents(r, n, &a);
    }
    return 0;
}

static void judge_size(struct report *r, uint64_t max)
{
    uint64_t size = (uint64_t)json_integer_value(json_object_get(r->o, "virtual-size"));

    if (size > max) {
        report_reason(r, VERDICT_SUSPICIOUS, "a disk of %" PRIu64 " bytes is larger than %" PRIu64,
                      size, max);
    }
}

static json_t *sandbox_words(void)
{
    static const struct { unsigned wall; const char *word; } words[] = {
        { WALL_LANDLOCK, "landlock" }, { WALL_SECCOMP, "seccomp" },
        { WALL_MEMORY, "memory limit" }, { WALL_CPU, "time limit" },
    };
    json_t *list = json_array();

    for (size_t i = 0; i < BLK_ARRAY_SIZE(words); i++) {
        if (walls_standing() & words[i].wall) {
            json_array_append_new(list, json_string(words[i].word));
        }
    }
    return list;
}

/* ---- the command ------------------------------------------------------------------------------ */

static int finish(const struct inspect *a, struct report *r)
{
    static const int status[] = { STATUS_SAFE, STATUS_DAMAGED, STATUS_SUSPICIOUS, STATUS_REFUSED };

    json_object_set_new(r->o, "sandbox", sandbox_words());
    json_object_set_new(r->o, "verdict", json_string(verdict_name(r->verdict)));
    if (a->json) {
        img_json_print(r->o);
    } else {
        inspect_print(r->o);
    }
    return status[r->verdict];
}

static int inspect_with(const struct inspect *a, struct blk_opts *o, unsigned flags)
{
    struct blk_open_args args = {
        .filename = a->image.image_opts ? NULL : a->image.filename, .format = a->image.format,
        .opts = o, .flags = flags,
    };
    char *shown = blk_redact(a->image.filename);
    struct report r = { .o = json_object() };
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_facts f;
    int status = STATUS_FAILED;

    if (!shown || blk_read_facts(img_loop(), &args, &f, &e)) {
        goto failed;
    }
    json_object_set_new(r.o, "filename", json_string_nocheck(shown));
    take_facts(&r, a, &f);
    if (!args.format && !blk_opts_has(o, "driver")) {
        args.format = f.format;
    }
    int err = f.elsewhere ? 0 : take_image(&r, &args, &e);
    blk_facts_free(&f);
    if (err) {
        goto failed;
    }
    judge_size(&r, a->max_size);
    status = finish(a, &r);
    goto out;
failed:
    img_report_prefixed(&e, "Could not open '%s': ", shown ? shown : "");
out:
    json_decref(r.o);
    free(shown);
    return status;
}

static int inspect_run(void *arg)
{
    const struct inspect *a = arg;
    unsigned flags = a->image.flags;
    struct blk_opts *o = img_image_options(&a->image, &flags);
    int status = o ? inspect_with(a, o, flags) : STATUS_FAILED;

    blk_opts_free(o);
    return status;
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct inspect *a, int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"force-share", no_argument, NULL, 'U'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {"max-size", required_argument, NULL, OPT_MAX_SIZE},
        {"no-sandbox", no_argument, NULL, IMG_OPT_NO_SANDBOX},
        {NULL, 0, NULL, 0},
    };
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hf:U", longs, NULL)) != -1) {
        switch (ch) {
        case OPT_MAX_SIZE:
            if (img_parse_size("maximal size", optarg, &a->max_size)) {
                return STATUS_FAILED;
            }
            break;
        case IMG_OPT_NO_SANDBOX:
            a->no_sandbox = true;
            break;
        default:
            status = img_common_option(&img_inspect, ch, argv[0], &a->image, &a->json);
            break;
        }
    }
    return status;
}

static int inspect_main(int argc, char **argv)
{
    struct inspect a = { .image.flags = BLK_O_NO_BACKING | BLK_O_NO_IO, .max_size = MAX_SIZE };
    int status = parse_options(&a, argc, argv);

    if (status >= 0) {
        return status;
    }
    if (optind != argc - 1) {
        return img_usage_error(argv[0], "Expecting one image file name");
    }
    a.image.filename = argv[optind];
    struct sandbox box = { .off = a.no_sandbox, .alone = true, .cpu_seconds = 60 };
    return sandbox_run(&box, &a.image, inspect_run, &a);
}

const struct img_command img_inspect = {
    .name = "inspect",
    .summary = "Judge an image from a stranger before it is used",
    .synopsis = "[-f FMT | --image-opts] [-U] [--output human|json]\n"
                "        [--max-size SIZE] [--no-sandbox] FILENAME",
    .arguments =
        "  -f, --format FMT\n     format of the image (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  -U, --force-share\n     take no locks: another program may be writing to it\n"
        "  --output human|json\n     how to print\n"
        "  --object OBJDEF\n     an object such as a secret\n"
        "  --max-size SIZE\n     a larger disk is suspicious (default: 64T)\n"
        SANDBOX_HELP
        "\nNo file that the image names is opened. What is wrong with it is listed, then what\n"
        "follows from that, the worst of: safe; damaged (check finds errors); suspicious (it\n"
        "names files by protocol, by an absolute path or out of its directory, holds bytes\n"
        "that are not its own, or is too large); refused (it cannot be opened).\n"
        "\nExit status: 0 safe, 1 it cannot be judged, 2 damaged, 3 suspicious, 4 refused.\n",
    .main = inspect_main,
};
