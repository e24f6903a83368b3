/*
 * common.c - what every subcommand needs: messages, the loop its body runs on,
 * and the values of options all of them share.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

/* ---- messages -------------------------------------------------------------- */

static void message(const char *kind, const char *fmt, va_list ap)
{
    fprintf(stderr, "%s: %s", blk_program, kind);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
}

void img_error(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    message("", fmt, ap);
    va_end(ap);
}

void img_warning(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    message("warning: ", fmt, ap);
    va_end(ap);
}

static void print_hint(const struct blk_error *e)
{
    size_t len = strlen(e->hint);

    if (len) {
        fprintf(stderr, "%s%s", e->hint, e->hint[len - 1] == '\n' ? "" : "\n");
    }
}

void img_report(const struct blk_error *e)
{
    img_error("%s", e->text);
    print_hint(e);
}

void img_report_prefixed(const struct blk_error *e, const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "%s: ", blk_program);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "%s\n", e->text);
    print_hint(e);
}

int img_try_help(const char *argv0)
{
    fprintf(stderr, "Try '%s --help' for more info\n", argv0);
    return 1;
}

int img_usage_error(const char *argv0, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    message("", fmt, ap);
    va_end(ap);
    return img_try_help(argv0);
}

void img_print(bool quiet, const char *fmt, ...)
{
    va_list ap;

    if (quiet) {
        return;
    }
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
}

int img_help(const struct img_command *c)
{
    printf("%s.  Usage:\n\n  platter-img %s %s\n\nArguments:\n"
           "  -h, --help\n     print this help and exit\n%s\n",
           c->summary, c->name, c->synopsis, c->arguments);
    return 0;
}

/* ---- running --------------------------------------------------------------- */

static struct blk_loop *the_loop;

const char *img_backing_urls;

struct blk_loop *img_loop(void)
{
    return the_loop;
}

int img_run(int (*fn)(void *arg), void *arg)
{
    struct blk_error e = BLK_ERROR_INIT;
    int status;

    the_loop = blk_loop_new(&e);
    if (!the_loop) {
        img_report(&e);
        return 1;
    }
    status = blk_run(the_loop, fn, arg);
    blk_loop_free(the_loop);
    the_loop = NULL;
    if (status < 0) {           /* no memory for the fiber: fn never ran */
        img_error("%s", strerror(-status));
        return 1;
    }
    return status;
}

/* ---- option values --------------------------------------------------------- */

int img_parse_size_in(const char *what, const char *s, uint64_t min, uint64_t max, uint64_t *out)
{
    uint64_t v = 0;
    int err = blk_parse_size(s, &v);

    if (err < 0 && err != -ERANGE) {
        img_error("Invalid %s specified: '%s'.", what, s);
        return -EINVAL;
    }
    if (err || v < min || v > max) {
        img_error("Invalid %s specified. Must be between %" PRIu64 " and %" PRIu64 ".",
                  what, min, max);
        return -EINVAL;
    }
    *out = v;
    return 0;
}

int img_parse_size(const char *what, const char *s, uint64_t *out)
{
    return img_parse_size_in(what, s, 0, INT64_MAX, out);
}

int img_parse_number(const char *what, const char *s, uint64_t min, uint64_t max, uint64_t *out)
{
    char *end;
    long long v;

    errno = 0;
    v = strtoll(s, &end, 0);
    if (end == s || *end) {
        img_error("Invalid %s specified: '%s'.", what, s);
        return -EINVAL;
    }
    if (errno || v < 0 || (uint64_t)v < min || (uint64_t)v > max) {
        img_error("Invalid %s specified. Must be between %" PRIu64 " and %" PRIu64 ".",
                  what, min, max);
        return -EINVAL;
    }
    *out = (uint64_t)v;
    return 0;
}

int img_parse_output(const char *argv0, const char *s, bool *json)
{
    if (!strcmp(s, "json")) {
        *json = true;
        img_progress_to_stderr();
    } else if (!strcmp(s, "human")) {
        *json = false;
    } else {
        img_usage_error(argv0, "--output expects 'human' or 'json' not '%s'", s);
        return -EINVAL;
    }
    return 0;
}

int img_parse_cache(const char *whose, const char *mode, unsigned *flags)
{
    int err = blk_parse_cache(mode, flags);

    if (err) {
        img_error("Invalid %scache option: %s", whose, mode);
    }
    return err;
}

int img_common_option(const struct img_command *c, int ch, const char *argv0,
                      struct img_image *im, bool *json)
{
    switch (ch) {
    case 'h': return img_help(c);
    case 'f': im->format = optarg; return -1;
    case 'q': im->quiet = true; return -1;
    case 'U': im->flags |= BLK_O_SHARE; return -1;
    case IMG_OPT_IMAGE_OPTS: im->image_opts = true; return -1;
    case IMG_OPT_OBJECT: return img_add_object(optarg) ? 1 : -1;
    case IMG_OPT_OUTPUT: return img_parse_output(argv0, optarg, json) ? 1 : -1;
    default: return img_try_help(argv0);
    }
}

/* An element may be empty nowhere: not at the start, not at the end; ",," is a
 * comma inside a value. */
static bool option_list_valid(const char *s)
{
    size_t len = strlen(s), commas = 0;

    if (!len || s[0] == ',') {
        return false;
    }
    while (commas < len && s[len - 1 - commas] == ',') {
        commas++;
    }
    return commas % 2 == 0;
}

int img_add_options(char **all, const char *more)
{
    char *joined;

    if (!option_list_valid(more)) {
        img_error("Invalid option list: %s", more);
        return -EINVAL;
    }
    if (!*all) {
        *all = strdup(more);
        return *all ? 0 : -ENOMEM;
    }
    if (asprintf(&joined, "%s,%s", *all, more) < 0) {
        return -ENOMEM;
    }
    free(*all);
    *all = joined;
    return 0;
}

bool img_options_want_help(const char *options)
{
    for (const char *p = options; p && *p; ) {
        size_t len = strcspn(p, "=,");

        if (p[len] != '=' && ((len == 4 && !memcmp(p, "help", 4)) || (len == 1 && *p == '?'))) {
            return true;
        }
        /* Only a value may have commas in it. */
        while (p[len] && (p[len] != ',' || (p[len + 1] == ',' && memchr(p, '=', len)))) {
            len += p[len] == ',' ? 2 : 1;
        }
        p += len + (p[len] == ',');
    }
    return false;
}

/* "help", "TYPE,help": prints and ends the program. */
static void object_help(const char *text)
{
    size_t len = strcspn(text, ",");
    const char *name, *options, *word = text[len] ? text + len + 1 : text;
    bool listing = word == text;

    if (strcmp(word, "help") && strcmp(word, "?")) {
        return;
    }
    if (listing) {
        printf("List of user creatable objects:\n");
    }
    for (size_t i = 0; blk_object_type_at(i, &name, &options); i++) {
        if (listing) {
            printf("  %s\n", name);
        } else if (strlen(name) == len && !memcmp(name, text, len)) {
            printf("%s options:\n%s", name, options);
            exit(0);
        }
    }
    if (listing) {
        exit(0);
    }
}

int img_add_object(const char *text)
{
    struct blk_error e = BLK_ERROR_INIT;

    object_help(text);
    if (blk_object_add(text, &e)) {
        img_report(&e);
        return -EINVAL;
    }
    return 0;
}
