/*
 * createopts.c - creation options ("-o k=v,..."): which ones a format and the
 * protocol below it take, checking them, and listing them for "-o help".
 *
 * The order of the descriptors is the drivers' and is what "Formatting ..."
 * prints in; help sorts by name.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

#define HELP_COLUMN 24          /* width of "name=<type>" before " - " */

static size_t count_descs(const struct blk_option_desc *d)
{
    size_t n = 0;

    while (d && d[n].name) {
        n++;
    }
    return n;
}

static const struct blk_option_desc *find_desc(const struct blk_option_desc *d, const char *name)
{
    for (; d && d->name; d++) {
        if (!strcmp(d->name, name)) {
            return d;
        }
    }
    return NULL;
}

struct blk_option_desc *img_create_descs(const char *format, const char *filename,
                                         struct blk_error *e)
{
    const struct blk_option_desc *f = blk_create_options(format), *p = NULL;
    struct blk_option_desc *all;
    size_t n = count_descs(f);
    const char *protocol = NULL;

    if (!blk_driver_known(format)) {
        blk_err(e, EINVAL, "Unknown file format '%s'", format);
        return NULL;
    }
    if (filename && !(protocol = blk_protocol_for_name(filename, e))) {
        return NULL;
    }
    if (!f) {
        blk_err(e, ENOTSUP, "Format driver '%s' does not support image creation", format);
        return NULL;
    }
    p = protocol ? blk_create_options(protocol) : NULL;
    if (protocol && !p) {
        blk_err(e, ENOTSUP, "Protocol driver '%s' does not support image creation", protocol);
        return NULL;
    }
    all = calloc(n + count_descs(p) + 1, sizeof(*all));
    if (!all) {
        blk_err_errno(e, ENOMEM, "Creation options");
        return NULL;
    }
    memcpy(all, f, n * sizeof(*all));
    for (; p && p->name; p++) {
        if (!find_desc(all, p->name)) {
            all[n++] = *p;
        }
    }
    return all;
}

/* Types are checked as soon as a key is seen, so that the first fault in the
 * list is the one reported. */
static int check_type(struct blk_opts *o, const struct blk_option_desc *d, struct blk_error *e)
{
    uint64_t number;
    bool flag;

    switch (d->type) {
    case BLK_OPT_BOOL:
        return blk_opts_get_bool(o, d->name, &flag, e);
    case BLK_OPT_NUMBER:
        return blk_opts_get_u64(o, d->name, &number, e);
    case BLK_OPT_SIZE:
        return blk_opts_get_size(o, d->name, &number, e);
    default:
        return 0;
    }
}

int img_set_create_option(struct blk_opts *o, const struct blk_option_desc *descs,
                          const char *key, const char *value, struct blk_error *e)
{
    const struct blk_option_desc *d = find_desc(descs, key);

    if (!d) {
        return blk_err(e, EINVAL, "Invalid parameter '%s'", key);
    }
    blk_opts_set(o, d->name, value);
    return check_type(o, d, e);
}

int img_parse_create_options(struct blk_opts *o, const struct blk_option_desc *descs,
                             const char *text, struct blk_error *e)
{
    struct blk_error syntax = BLK_ERROR_INIT;
    struct blk_opts *raw;
    const char *key, *value;
    int err = 0, bad;

    if (!text) {
        return 0;
    }
    raw = blk_opts_new();
    bad = blk_opts_parse(raw, text, NULL, &syntax);
    /* What comes before a syntax error has the first say. */
    for (size_t i = 0; !err && blk_opts_at(raw, i, &key, &value); i++) {
        err = img_set_create_option(o, descs, key, value, e);
    }
    blk_opts_free(raw);
    return err || !bad ? err : blk_err(e, -bad, "%s", syntax.text);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct blk_option_desc *)a)->name,
                  ((const struct blk_option_desc *)b)->name);
}

static void print_desc(const struct blk_option_desc *d)
{
    static const char *const types[] = {
        [BLK_OPT_STRING] = "str",
        [BLK_OPT_SIZE] = "size",
        [BLK_OPT_BOOL] = "bool (on/off)",
        [BLK_OPT_NUMBER] = "num",
    };
    int width = printf("  %s=<%s>", d->name, types[d->type]);

    if (d->help) {
        printf("%*s - %s", width < HELP_COLUMN ? HELP_COLUMN - width : 0, "", d->help);
    }
    putchar('\n');
}

void img_print_descs(const struct blk_option_desc *d)
{
    for (; d->name; d++) {
        print_desc(d);
    }
}

int img_print_create_options(const char *format, const char *filename)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_option_desc *descs = img_create_descs(format, filename, &e);
    size_t n = count_descs(descs);

    if (!descs) {
        img_report(&e);
        return 1;
    }
    qsort(descs, n, sizeof(*descs), compare_names);
    if (filename) {
        printf("Supported options:\n");
    } else {
        printf("Supported %s options:\n", format);
    }
    img_print_descs(descs);
    if (!filename) {
        printf("\nThe protocol level may support further options.\n"
               "Specify the target filename to include those options.\n");
    }
    free(descs);
    return 0;
}

/* An option's value in the type it has. */
static json_t *option_value(struct blk_opts *o, const struct blk_option_desc *d)
{
    uint64_t number = 0;
    bool on = false;

    if ((d->type == BLK_OPT_SIZE && !blk_opts_get_size(o, d->name, &number, NULL)) ||
        (d->type == BLK_OPT_NUMBER && !blk_opts_get_u64(o, d->name, &number, NULL))) {
        return json_integer((json_int_t)number);
    }
    if (d->type == BLK_OPT_BOOL && !blk_opts_get_bool(o, d->name, &on, NULL)) {
        return json_boolean(on);
    }
    char *shown = blk_redact(blk_opts_get(o, d->name));
    json_t *v = img_json_string(shown ? shown : "");
    free(shown);
    return v;
}

json_t *img_options_json(struct blk_opts *o, const struct blk_option_desc *d)
{
    json_t *options = json_object();

    for (; d->name; d++) {
        if (blk_opts_has(o, d->name)) {
            json_object_set_new(options, d->name, option_value(o, d));
        }
    }
    return options;
}
