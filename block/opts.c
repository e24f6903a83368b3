/*
 * opts.c - the ordered list of dotted keys and string values.
 *
 * Invariants
 *  - A key appears once; setting it again keeps its place and clears its mark.
 *  - Text from outside is capped: OPTS_MAX entries from one parse, so that the
 *    linear searches here stay cheap whatever somebody sends.
 *  - Setting cannot fail: running out of memory for a few bytes ends the program.
 * JSON is in opts_json.c, the typed values in opts_value.c.
 */
#include "block/opts.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    char *key, *value;
    bool used, literal;
};

struct blk_opts {
    struct entry *v;
    size_t n, room;
};

static void *must(void *p)
{
    if (!p) {
        blk_report("out of memory");
        abort();
    }
    return p;
}

struct blk_opts *blk_opts_new(void)
{
    return must(calloc(1, sizeof(struct blk_opts)));
}

struct blk_opts *blk_opts_dup(const struct blk_opts *o)
{
    struct blk_opts *d = blk_opts_new();
    for (size_t i = 0; o && i < o->n; i++) {
        blk_opts_set(d, o->v[i].key, o->v[i].value);
        d->v[d->n - 1].literal = o->v[i].literal;
    }
    return d;
}

static void entry_free(struct entry *x)
{
    free(x->key);
    free(x->value);
}

void blk_opts_free(struct blk_opts *o)
{
    if (!o)
        return;
    for (size_t i = 0; i < o->n; i++)
        entry_free(&o->v[i]);
    free(o->v);
    free(o);
}

static struct entry *opts_find(const struct blk_opts *o, const char *key)
{
    for (size_t i = 0; i < o->n; i++)
        if (!strcmp(o->v[i].key, key))
            return &o->v[i];
    return NULL;
}

/* Takes both strings. */
static void opts_put(struct blk_opts *o, char *key, char *value)
{
    struct entry *x = opts_find(o, key);
    if (x) {
        entry_free(x);
    } else {
        if (o->n == o->room) {
            o->room = o->room ? o->room * 2 : 8;
            o->v = must(reallocarray(o->v, o->room, sizeof(*o->v)));
        }
        x = &o->v[o->n++];
    }
    *x = (struct entry){ key, value, false, false };
}

void blk_opts_set(struct blk_opts *o, const char *key, const char *value)
{
    opts_put(o, must(strdup(key)), must(strdup(value)));
}

void blk_opts_setf(struct blk_opts *o, const char *key, const char *fmt, ...)
{
    char *value;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&value, fmt, ap);
    va_end(ap);
    opts_put(o, must(strdup(key)), must(n < 0 ? NULL : value));
}

void opts_set_literal(struct blk_opts *o, const char *key, const char *value)
{
    blk_opts_set(o, key, value);
    opts_find(o, key)->literal = true;
}

json_t *blk_opts_json(const struct blk_opts *o, const char *key)
{
    const struct entry *x = opts_find(o, key);
    if (!x)
        return NULL;
    if (!x->literal)
        return json_string(x->value);
    if (!strcmp(x->value, "on") || !strcmp(x->value, "off"))
        return json_boolean(x->value[1] == 'n');
    if (!*x->value)
        return json_null();
    return json_integer(strtoll(x->value, NULL, 10));
}

static void opts_remove(struct blk_opts *o, struct entry *x)
{
    entry_free(x);
    memmove(x, x + 1, (size_t)(o->v + o->n - (x + 1)) * sizeof(*x));
    o->n--;
}

void blk_opts_del(struct blk_opts *o, const char *key)
{
    struct entry *x = opts_find(o, key);
    if (x)
        opts_remove(o, x);
}

const char *blk_opts_get(struct blk_opts *o, const char *key)
{
    struct entry *x = opts_find(o, key);
    if (!x)
        return NULL;
    x->used = true;
    return x->value;
}

bool blk_opts_has(const struct blk_opts *o, const char *key)
{
    return opts_find(o, key) != NULL;
}

bool blk_opts_at(const struct blk_opts *o, size_t i, const char **key, const char **value)
{
    if (i >= o->n)
        return false;
    if (key)
        *key = o->v[i].key;
    if (value)
        *value = o->v[i].value;
    return true;
}

const char *blk_opts_unused(const struct blk_opts *o)
{
    for (size_t i = 0; i < o->n; i++)
        if (!o->v[i].used)
            return o->v[i].key;
    return NULL;
}

struct blk_opts *blk_opts_take(struct blk_opts *o, const char *prefix)
{
    struct blk_opts *d = blk_opts_new();
    size_t len = strlen(prefix), kept = 0;
    for (size_t i = 0; i < o->n; i++) {
        struct entry *x = &o->v[i];
        if (strncmp(x->key, prefix, len)) {
            o->v[kept++] = *x;
            continue;
        }
        opts_put(d, must(strdup(x->key + len)), x->value);
        opts_find(d, x->key + len)->literal = x->literal;
        free(x->key);
    }
    o->n = kept;
    return d;
}

/* ---- "k=v,k2=v2" ---------------------------------------------------------------- */

/* A value up to a single comma, with ",," made ",".  Moves *s past that comma. */
static char *list_value(const char **s)
{
    char *value = must(malloc(strlen(*s) + 1));
    size_t n = 0;
    const char *p = *s;
    for (; *p; p++) {
        if (*p == ',' && *++p != ',')
            break;
        value[n++] = *p;
    }
    value[n] = 0;
    *s = p;
    return value;
}

/* A word without "=": WORD=on, or without a "no" in front =off. */
static void flag(char **key, char **value, bool warn)
{
    bool off = !strncmp(*key, "no", 2);

    if (off) {
        memmove(*key, *key + 2, strlen(*key + 2) + 1);
        free(*value);
        *value = must(strdup("off"));
    }
    if (warn) {
        fprintf(stderr, "%s: warning: short-form boolean option '%s%s' deprecated\n"
                "Please use %s=%s instead\n", blk_program, off ? "no" : "", *key, *key, *value);
    }
}

/* Parts of letters, digits, '-' and '_' that begin with a letter; a number but in front. */
static bool is_key_name(const char *key)
{
    static const char digits[] = "0123456789";

    for (const char *p = key;; p++) {
        size_t n = p > key ? strspn(p, digits) : 0;

        if (!n && ((*p | 0x20) < 'a' || (*p | 0x20) > 'z')) {
            return false;
        }
        while (!n && (isalnum((unsigned char)*p) || *p == '-' || *p == '_')) {
            p++;
        }
        p += n;
        if (*p != '.') {
            return !*p;
        }
    }
}

enum opts_kind {
    OPTS_LIST,                          /* as "-o" */
    OPTS_LOOSE,                         /* as "--image-opts": words are warned of */
    OPTS_KEYVAL,                        /* as "--object": no words, and names are checked */
};

static int opts_parse(struct blk_opts *o, const char *text, const char *implied,
                      enum opts_kind kind, struct blk_error *e)
{
    bool loose = kind == OPTS_LOOSE;
    const char *p = text;
    for (size_t count = 0; *p; count++) {
        if (count == OPTS_MAX)
            return blk_err(e, E2BIG, "More than %d options in one list", OPTS_MAX);
        size_t len = strcspn(p, "=,");
        char *key, *value;
        if (p[len] == '=') {
            key = must(strndup(p, len));
            p += len + 1;
            value = list_value(&p);
        } else if (p == text && implied) {
            key = must(strdup(implied));
            value = list_value(&p);
        } else if (kind == OPTS_KEYVAL && len) {
            return blk_err(e, EINVAL, "Expected '=' after parameter '%.*s'", (int)len, p);
        } else {
            key = must(strndup(p, len));
            value = must(strdup("on"));
            p += p[len] ? len + 1 : len;
            flag(&key, &value, loose);
        }
        if ((!*key && !loose) || (kind == OPTS_KEYVAL && !is_key_name(key))) {
            int r = blk_err(e, EINVAL, "Invalid parameter '%s'", key);
            free(key);
            free(value);
            return r;
        }
        opts_put(o, key, value);
    }
    return 0;
}

int blk_opts_parse(struct blk_opts *o, const char *text, const char *implied, struct blk_error *e)
{
    return opts_parse(o, text, implied, OPTS_LIST, e);
}

int blk_opts_parse_keyval(struct blk_opts *o, const char *text, const char *implied,
                          struct blk_error *e)
{
    return opts_parse(o, text, implied, OPTS_KEYVAL, e);
}

int blk_opts_parse_loose(struct blk_opts *o, const char *text, const char *implied,
                         struct blk_error *e)
{
    return opts_parse(o, text, implied, OPTS_LOOSE, e);
}
