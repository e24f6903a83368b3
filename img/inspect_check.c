/*
 * inspect_check.c - check, and the repair that is tried: on the image with a layer of
 * memory over it (the filter "scratch"), so that what is said is what would happen.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include "img/inspect.h"

/* Lines of check go into a list, the first ones. */
static void take_line(void *arg, bool is_error, const char *line)
{
    json_t *list = arg;

    if (json_array_size(list) < INSPECT_LINES) {
        json_array_append_new(list, json_string_nocheck(line));
    }
}

static void take_report(void *arg, const char *line)
{
    take_line(arg, true, line);
}

/* What a repair does, among what it finds. */
static void take_repair(void *arg, bool is_error, const char *line)
{
    if (!strncmp(line, "Repairing", 9) || !strncmp(line, "Rebuilding", 10)) {
        take_line(arg, is_error, line);
    }
}

static void ignore_line(void *arg, bool is_error, const char *line)
{
}

static void put(json_t *o, const char *key, uint64_t n)
{
    json_object_set_new(o, key, json_integer((json_int_t)n));
}

/* ---- trying a repair ------------------------------------------------------------------ */

/* Only what a path names is opened once more. */
static bool is_plain(const struct blk_open_args *args)
{
    return args->filename &&
           (!blk_has_protocol(args->filename) || !strncmp(args->filename, "file:", 5));
}

/* The image over memory, writable; NULL: not this one. */
static struct blk_node *open_scratch(const struct blk_open_args *args, const char *format)
{
    const char *name = args->filename;
    struct blk_opts *o = blk_opts_new();
    struct blk_open_args a = {
        .opts = o, .flags = (args->flags & ~BLK_O_SHARE) | BLK_O_RDWR | BLK_O_CHECK,
    };
    struct blk_node *n = NULL;

    blk_opts_set(o, "driver", format);
    blk_opts_set(o, "file.driver", "scratch");
    blk_opts_set(o, "file.file.filename", name + (strncmp(name, "file:", 5) ? 0 : 5));
    blk_opts_set(o, "file.file.read-only", "on");
    if (args->flags & BLK_O_SHARE) {
        blk_opts_set(o, "file.file.force-share", "on");
    }
    if (blk_open(img_loop(), &a, &n, NULL)) {
        n = NULL;
    }
    blk_opts_free(o);
    return n;
}

static void try_repair(struct report *r, const struct blk_open_args *args, const char *format)
{
    json_t *lines = json_array();
    struct blk_check first = { .message = take_repair, .arg = lines };
    struct blk_check left = { .message = ignore_line };
    struct blk_node *n = open_scratch(args, format);
    json_t *o;
    int err = n ? blk_check(n, &first, BLK_FIX_LEAKS | BLK_FIX_ERRORS, NULL) : -ENOTSUP;

    err = err ? err : blk_check(n, &left, 0, NULL);
    blk_close(n, NULL);
    if (err) {
        report_note(r, "check -r all cannot repair it: %s", strerror(-err));
        json_decref(lines);
        return;
    }
    o = json_object();
    put(o, "leaks-freed", first.leaks_fixed);
    put(o, "corruptions-fixed", first.corruptions_fixed);
    put(o, "corruptions-left", left.corruptions + left.check_errors);
    put(o, "leaks-left", left.leaks);
    json_object_set_new(o, "messages", lines);
    json_object_set_new(r->o, "repair", o);
}

/* ---- check ------------------------------------------------------------------------------- */

static void put_findings(struct report *r, const struct blk_check *c, json_t *lines)
{
    json_t *o = json_object();

    put(o, "corruptions", c->corruptions);
    put(o, "leaks", c->leaks);
    put(o, "check-errors", c->check_errors);
    if (c->image_end_offset) {
        put(o, "image-end-offset", c->image_end_offset);
    }
    if (json_array_size(lines)) {
        json_object_set(o, "messages", lines);
    }
    json_object_set_new(r->o, "check", o);
    if (c->corruptions || c->check_errors) {
        report_reason(r, VERDICT_DAMAGED, "check finds %" PRIu64 " errors",
                      c->corruptions + c->check_errors);
    }
    if (c->leaks) {
        report_note(r, "%" PRIu64 " leaked clusters: space is wasted, nothing else", c->leaks);
    }
}

void inspect_check(struct report *r, struct blk_node *n, const struct blk_open_args *args)
{
    json_t *lines = json_array();
    struct blk_check c = { .message = take_line, .arg = lines };
    struct blk_error e = BLK_ERROR_INIT;
    int err;

    blk_set_report(take_report, lines);
    err = blk_check(n, &c, 0, &e);
    if (!err || c.corruptions) {
        put_findings(r, &c, lines);
    } else if (err != -ENOTSUP) {
        report_reason(r, VERDICT_DAMAGED, "check failed: %s", *e.text ? e.text : strerror(-err));
    }
    if ((c.corruptions || c.leaks) && is_plain(args)) {
        try_repair(r, args, blk_format_name(n));
    }
    blk_set_report(NULL, NULL);
    json_decref(lines);
}
