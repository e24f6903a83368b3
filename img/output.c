/*
 * output.c - text as qemu-img writes it: sizes for people, JSON for programs.
 *
 * QEMU's dictionaries are hash tables of 512 chains printed in chain order, so
 * the order of keys in its JSON follows from the keys alone.  Programs should
 * not care, but people diff outputs: keys are put in that order here.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

/* ---- sizes ------------------------------------------------------------------ */

char *img_human_size(uint64_t bytes, char *buf, size_t len)
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    double v = (double)bytes;
    size_t u = 0;

    /* Three significant digits, so 1000 and up moves to the next unit. */
    while (v >= 1000 && u + 1 < BLK_ARRAY_SIZE(units)) {
        v /= 1024;
        u++;
    }
    snprintf(buf, len, "%0.3g %s", v, units[u]);
    return buf;
}

/* ---- the order of keys -------------------------------------------------------- */

struct keyed {
    const char *key;
    unsigned chain;
    size_t at;                  /* place in the object */
};

/* The hash of the old trivial database, as QEMU's dictionaries use it. */
static unsigned key_chain(const char *key)
{
    size_t len = strlen(key);
    unsigned v = 0x238F13AFu * (unsigned)len;

    for (size_t i = 0; i < len; i++) {
        v += (unsigned)(unsigned char)key[i] << (i * 5 % 24);
    }
    return (1103515243u * v + 12345u) % 512u;
}

/* Within one chain the newest comes first. */
static int compare_keyed(const void *pa, const void *pb)
{
    const struct keyed *a = pa, *b = pb;

    if (a->chain != b->chain) {
        return a->chain < b->chain ? -1 : 1;
    }
    return a->at > b->at ? -1 : a->at < b->at;
}

const char **img_json_keys(const json_t *v, size_t *n)
{
    size_t count = json_object_size(v), i = 0;
    struct keyed *k = count ? calloc(count, sizeof(*k)) : NULL;
    const char **keys = count ? calloc(count, sizeof(*keys)) : NULL, *key;
    json_t *object = (json_t *)v, *value;

    *n = 0;
    if (k && keys) {
        json_object_foreach(object, key, value) {
            k[i] = (struct keyed){ .key = key, .chain = key_chain(key), .at = i };
            i++;
        }
        qsort(k, i, sizeof(*k), compare_keyed);
        for (*n = 0; *n < i; ++*n) {
            keys[*n] = k[*n].key;
        }
    } else {
        free(keys);
        keys = NULL;
    }
    free(k);
    return keys;
}

/* ---- JSON -------------------------------------------------------------------- */

static void put_indent(FILE *f, int level)
{
    fprintf(f, "\n%*s", level * 4, "");
}

#define REPLACEMENT 0xFFFDu

/* The next character; names are bytes, so what is no UTF-8 becomes U+FFFD.  A zero may be
 * written as two bytes. */
static unsigned next_char(const unsigned char **p)
{
    static const unsigned least[] = { 0, 0x80, 0x800, 0x10000 };
    const unsigned char *s = *p;
    unsigned c = *s++;
    unsigned more = c < 0x80 ? 0 : c < 0xC0 ? 4 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : c < 0xF8 ? 3 : 4;

    *p = s;
    if (more > 3) {
        return REPLACEMENT;             /* nothing starts like this */
    }
    c &= more ? 0x3Fu >> more : 0x7Fu;
    for (unsigned i = 0; i < more; i++, (*p)++) {
        if ((**p & 0xC0) != 0x80) {
            return REPLACEMENT;
        }
        c = c << 6 | (**p & 0x3Fu);
    }
    return (c && c < least[more]) || c > 0x10FFFF || (c & 0xFFFFF800) == 0xD800 ? REPLACEMENT : c;
}

json_t *img_json_string(const char *s)
{
    const unsigned char *p = (const unsigned char *)s;
    json_t *v = s ? json_string(s) : NULL;
    char *text = s && !v ? malloc(3 * strlen(s) + 1) : NULL, *at = text;

    while (text && *p) {
        const unsigned char *from = p;
        unsigned c = next_char(&p);
        bool good = c && c != REPLACEMENT;
        size_t len = good ? (size_t)(p - from) : 3;

        memcpy(at, good ? (const char *)from : "\xef\xbf\xbd", len);
        at += len;
    }
    if (text) {
        *at = 0;
        v = json_string(text);
        free(text);
    }
    return v;
}

static void put_char(FILE *f, unsigned c)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const char *short_form = c && c < 0x80 ? strchr(plain, (int)c) : NULL;

    if (short_form) {
        fprintf(f, "\\%c", letters[short_form - plain]);
    } else if (c >= 0x20 && c < 0x7F) {
        fputc((int)c, f);
    } else if (c > 0xFFFF) {
        fprintf(f, "\\u%04X\\u%04X", 0xD800 + ((c - 0x10000) >> 10),
                0xDC00 + ((c - 0x10000) & 0x3FF));
    } else {
        fprintf(f, "\\u%04X", c);
    }
}

static void put_string(FILE *f, const char *s)
{
    const unsigned char *p = (const unsigned char *)s;

    fputc('"', f);
    while (*p) {
        put_char(f, next_char(&p));
    }
    fputc('"', f);
}

static void put_value(FILE *f, const json_t *v, int level);

static void put_object(FILE *f, const json_t *v, int level)
{
    size_t n;
    const char **keys = img_json_keys(v, &n);

    fputc('{', f);
    for (size_t i = 0; i < n; i++) {
        put_indent(f, level + 1);
        put_string(f, keys[i]);
        fputs(": ", f);
        put_value(f, json_object_get(v, keys[i]), level + 1);
        fputs(i + 1 < n ? "," : "", f);
    }
    put_indent(f, level);
    fputc('}', f);
    free(keys);
}

static void put_array(FILE *f, const json_t *v, int level)
{
    size_t n = json_array_size(v);

    fputc('[', f);
    for (size_t i = 0; i < n; i++) {
        put_indent(f, level + 1);
        put_value(f, json_array_get(v, i), level + 1);
        fputs(i + 1 < n ? "," : "", f);
    }
    put_indent(f, level);
    fputc(']', f);
}

static void put_value(FILE *f, const json_t *v, int level)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        put_object(f, v, level);
        break;
    case JSON_ARRAY:
        put_array(f, v, level);
        break;
    case JSON_STRING:
        put_string(f, json_string_value(v));
        break;
    case JSON_INTEGER:
        fprintf(f, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        break;
    case JSON_REAL:
        fprintf(f, "%.17g", json_real_value(v));
        break;
    default:
        fputs(json_is_true(v) ? "true" : json_is_false(v) ? "false" : "null", f);
        break;
    }
}

char *img_json_text(const json_t *v)
{
    char *text = NULL;
    size_t len;
    FILE *f = open_memstream(&text, &len);

    if (!f) {
        return NULL;
    }
    put_value(f, v, 0);
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

void img_json_print(const json_t *v)
{
    put_value(stdout, v, 0);
    putchar('\n');
}

int img_json_result(json_t *v)
{
    if (!v) {
        img_error("%s", strerror(ENOMEM));
        return 1;
    }
    img_json_print(v);
    json_decref(v);
    return 0;
}

/* ---- nested values for people -------------------------------------------------- */

static bool is_nested(const json_t *v)
{
    return json_is_object(v) || json_is_array(v);
}

static void human_scalar(const json_t *v)
{
    if (json_is_string(v)) {
        printf(" %s\n", json_string_value(v));
    } else if (json_is_integer(v)) {
        printf(" %" JSON_INTEGER_FORMAT "\n", json_integer_value(v));
    } else if (json_is_real(v)) {
        printf(" %g\n", json_real_value(v));
    } else {
        puts(json_is_true(v) ? " true" : json_is_false(v) ? " false" : " null");
    }
}

static void human_object(int indent, const json_t *v)
{
    size_t n;
    const char **keys = img_json_keys(v, &n);

    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_object_get(v, keys[i]);

        printf("%*s", indent * 4, "");
        for (const char *p = keys[i]; *p; p++) {
            putchar(*p == '-' ? ' ' : *p);
        }
        putchar(':');
        if (is_nested(value)) {
            putchar('\n');
            img_print_human_json(indent + 1, value);
        } else {
            human_scalar(value);
        }
    }
    free(keys);
}

void img_print_human_json(int indent, const json_t *v)
{
    if (json_is_object(v)) {
        human_object(indent, v);
        return;
    }
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *value = json_array_get(v, i);

        printf("%*s[%zu]:", indent * 4, "", i);
        if (is_nested(value)) {
            putchar('\n');
            img_print_human_json(indent + 1, value);
        } else {
            human_scalar(value);
        }
    }
}
