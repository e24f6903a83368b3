/*
 * io_query.c - platter-io: the commands that ask about the open image and change nothing.
 */
#include "tools/io.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

struct io_status {
    struct shell *sh;
    uint64_t offset, length;
    struct blk_status st;
};

static int io_status_fiber(void *arg)
{
    struct io_status *s = arg;

    return co_status(io_image(s->sh), s->offset, s->length, &s->st);
}

struct blk_node *io_image(const struct shell *sh)
{
    return sh->opened.copy_on_read && !sh->opened.snapshot ? blk_file(sh->node) : sh->node;
}

bool io_cmd_length(struct shell *sh, int argc, char **argv)
{
    char text[64];

    io_size_text((double)blk_size(sh->node), text, sizeof(text));
    printf("%s\n", text);
    return true;
}

bool io_cmd_alloc(struct shell *sh, int argc, char **argv)
{
    uint64_t start, len = 512, sum = 0;
    char text[64];

    if (!io_number(argv[1], &start) || (argc == 3 && !io_number(argv[2], &len)))
        return false;
    len = start < blk_size(sh->node) ? BLK_MIN(len, blk_size(sh->node) - start) : 0;
    for (uint64_t off = start; off < start + len; ) {
        struct io_status s = { .sh = sh, .offset = off, .length = start + len - off };
        int ret = blk_run(sh->loop, io_status_fiber, &s);

        if (ret < 0) {
            printf("is_allocated failed: %s\n", strerror(-ret));
            return false;
        }
        if (s.st.flags & BLK_ST_ALLOCATED)
            sum += s.st.length;
        off += s.st.length;
    }
    io_size_text((double)start, text, sizeof(text));
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", sum, len, text);
    return true;
}

static void io_map_line(uint64_t off, uint64_t len, bool allocated)
{
    char a[64], b[64];

    io_size_text((double)len, a, sizeof(a));
    io_size_text((double)off, b, sizeof(b));
    printf("%s (0x%" PRIx64 ") bytes %s at offset %s (0x%" PRIx64 ")\n", a, len,
           allocated ? "    allocated" : "not allocated", b, off);
}

bool io_cmd_map(struct shell *sh, int argc, char **argv)
{
    uint64_t size = blk_size(sh->node), start = 0;
    bool cur = false;

    for (uint64_t off = 0; off < size; ) {
        struct io_status s = { .sh = sh, .offset = off, .length = size - off };
        int ret = blk_run(sh->loop, io_status_fiber, &s);

        if (ret < 0) {
            fprintf(stderr, "%s: Failed to get allocation status: %s\n", blk_program,
                    strerror(-ret));
            return false;
        }
        bool allocated = s.st.flags & BLK_ST_ALLOCATED;
        if (off && allocated != cur) {
            io_map_line(start, off - start, cur);
            start = off;
        }
        cur = allocated;
        off += s.st.length;
    }
    if (size)
        io_map_line(start, size - start, cur);
    return true;
}

/* What stands behind "key:"; '-' in names shown as a space. */
static void io_print_json(int indent, const json_t *v)
{
    const char *key;
    json_t *member;
    size_t i;

    if (json_is_string(v))
        printf(" %s\n", json_string_value(v));
    else if (json_is_integer(v))
        printf(" %lld\n", (long long)json_integer_value(v));
    else
        printf(json_is_boolean(v) ? " %s\n" : "\n", json_is_true(v) ? "true" : "false");
    json_object_foreach((json_t *)(uintptr_t)v, key, member) {
        printf("%*s", (indent + 1) * 4, "");
        for (const char *c = key; *c; c++)
            putchar(*c == '-' ? ' ' : *c);
        putchar(':');
        io_print_json(indent + 1, member);
    }
    json_array_foreach(v, i, member) {
        printf("%*s[%zu]:", (indent + 1) * 4, "", i);
        io_print_json(indent + 1, member);
    }
}

bool io_cmd_info(struct shell *sh, int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_info info = { 0 };
    char text[64];

    /* The name of the format, and that of the protocol. */
    for (int i = 0; i <= blk_is_scheme(io_image(sh)); i++) {
        printf("format name: %s\n", blk_format_name(io_image(sh)));
    }
    if (blk_get_info(io_image(sh), &info, &e) < 0) {
        printf("%s\n", e.text);
        return false;
    }
    if (info.bare) {                /* QEMU has no clusters to tell of, and fails */
        blk_info_free(&info);
        return false;
    }
    io_size_text((double)info.cluster_size, text, sizeof(text));
    printf("cluster size: %s\n", text);
    io_size_text((double)info.vm_state_offset, text, sizeof(text));
    printf("vm state offset: %s\n", text);
    if (info.specific) {
        printf("Format specific information:");
        io_print_json(0, info.specific);
    }
    blk_info_free(&info);
    return true;
}
