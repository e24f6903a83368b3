/*
 * inspect_print.c - a report for people.  Names and lines from the image are printed
 * without control characters: they are somebody else's.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "img/inspect.h"

static void print_text(const char *s)
{
    for (; *s; s++) {
        putchar((unsigned char)*s < 0x20 || *s == 0x7f ? '?' : *s);
    }
}

static const char *text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static uint64_t number(const json_t *o, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(o, key));
}

static void print_size(const json_t *o, const char *key, const char *title)
{
    char size[32];

    if (json_object_get(o, key)) {
        printf("%s: %s (%" PRIu64 " bytes)\n", title,
               img_human_size(number(o, key), size, sizeof(size)), number(o, key));
    }
}

/* A list of texts, one a line. */
static void print_lines(const json_t *list, const char *title)
{
    json_t *line;
    size_t i;

    json_array_foreach((json_t *)list, i, line) {
        printf("%s: ", title);
        print_text(json_string_value(line));
        putchar('\n');
    }
}

static void print_head(const json_t *o)
{
    printf("image: ");
    print_text(text(o, "filename"));
    printf("\nformat: %s (%s)\n", text(o, "format"), text(o, "format-source"));
    print_size(o, "virtual-size", "virtual size");
    print_size(o, "file-size", "file size");
    if (json_object_get(o, "encrypted")) {
        printf("encrypted: %s\n", json_is_true(json_object_get(o, "encrypted")) ? "yes" : "no");
        printf("snapshots: %" PRIu64 "\nbitmaps: %" PRIu64 "\n", number(o, "snapshots"),
               number(o, "bitmaps"));
    }
}

static void print_features(const json_t *o)
{
    json_t *list = json_object_get(o, "features"), *f;
    size_t i;

    json_array_foreach(list, i, f) {
        printf("feature: %s bit %" PRIu64, text(f, "kind"), number(f, "bit"));
        if (json_object_get(f, "name")) {
            printf(" '");
            print_text(text(f, "name"));
            putchar('\'');
        }
        printf("%s\n", json_is_true(json_object_get(f, "known")) ? "" : ", unknown");
    }
    list = json_object_get(o, "unknown-extensions");
    json_array_foreach(list, i, f) {
        printf("unknown header extension: 0x%08" PRIx64 ", %" PRIu64 " bytes\n", number(f, "type"),
               number(f, "length"));
    }
}

static void print_references(const json_t *o)
{
    json_t *list = json_object_get(o, "references"), *ref;
    size_t i;

    if (!json_array_size(list)) {
        printf("names: no other file\n");
    }
    json_array_foreach(list, i, ref) {
        printf("names: %s '", text(ref, "kind"));
        print_text(text(ref, "name"));
        putchar('\'');
        if (json_object_get(ref, "format")) {
            printf(" (");
            print_text(text(ref, "format"));
            putchar(')');
        }
        putchar('\n');
    }
}

static void print_check(const json_t *o)
{
    const json_t *c = json_object_get(o, "check"), *repair = json_object_get(o, "repair");

    if (c) {
        printf("check: %" PRIu64 " errors, %" PRIu64 " leaked clusters\n",
               number(c, "corruptions") + number(c, "check-errors"), number(c, "leaks"));
        print_lines(json_object_get(c, "messages"), "check says");
    }
    if (repair) {
        printf("check -r all: would repair %" PRIu64 " errors (%" PRIu64 " left), free %" PRIu64
               " leaked clusters (%" PRIu64 " left)\n", number(repair, "corruptions-fixed"),
               number(repair, "corruptions-left"), number(repair, "leaks-freed"),
               number(repair, "leaks-left"));
        print_lines(json_object_get(repair, "messages"), "check -r says");
    }
}

static void print_sandbox(const json_t *o)
{
    json_t *list = json_object_get(o, "sandbox"), *word;
    size_t i;

    printf("read behind: ");
    json_array_foreach(list, i, word) {
        printf("%s%s", i ? ", " : "", json_string_value(word));
    }
    printf("%s\n", json_array_size(list) ? "" : "nothing");
}

void inspect_print(const json_t *o)
{
    print_head(o);
    print_features(o);
    print_references(o);
    print_check(o);
    print_sandbox(o);
    print_lines(json_object_get(o, "notes"), "note");
    print_lines(json_object_get(o, "reasons"), "reason");
    printf("verdict: %s\n", text(o, "verdict"));
}
