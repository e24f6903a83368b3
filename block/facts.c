/*
 * facts.c - what an image says of itself, without opening it: its storage is opened as
 * raw, its format found, and the format's facts() reads the first structures.
 */
#include "block/internal.h"
#include <errno.h>
#include <jansson.h>
#include <string.h>

/* ---- what formats add -------------------------------------------------------------- */

static void add(json_t *list, json_t *o)
{
    if (json_array_size(list) < BLK_FACTS_MAX) {
        json_array_append_new(list, o);
    } else {
        json_decref(o);
    }
}

void blk_facts_name(struct blk_facts *f, const char *kind, const void *name, size_t len,
                    const char *format)
{
    json_t *o = json_pack("{ss}", "kind", kind);

    json_object_set_new(o, "name", json_stringn_nocheck(name, strnlen(name, len)));
    if (format) {
        json_object_set_new(o, "format", json_string_nocheck(format));
    }
    add(f->references, o);
}

static size_t put_utf8(char *dst, uint32_t c)
{
    if (c < 0x80) {
        dst[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        dst[0] = (char)(0xc0 | c >> 6);
        dst[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    c = c >= 0xd800 && c < 0xe000 ? 0xfffd : c;     /* no pairs: no name needs them here */
    dst[0] = (char)(0xe0 | c >> 12);
    dst[1] = (char)(0x80 | (c >> 6 & 0x3f));
    dst[2] = (char)(0x80 | (c & 0x3f));
    return 3;
}

void blk_facts_utf16(struct blk_facts *f, const char *kind, const uint8_t *name, size_t bytes,
                     bool big_endian)
{
    char text[3 * (BLK_NAME_MAX + 1)];
    size_t at = 0;

    for (size_t i = 0; i + 2 <= bytes && i < 2 * BLK_NAME_MAX; i += 2) {
        uint16_t c = big_endian ? be16(name + i) : le16(name + i);
        if (!c) {
            break;
        }
        at += put_utf8(text + at, c);
    }
    if (at) {
        blk_facts_name(f, kind, text, at, NULL);
    }
}

void blk_facts_feature(struct blk_facts *f, const char *kind, unsigned bit, const char *name,
                       bool known)
{
    json_t *o = json_pack("{ss, si, sb}", "kind", kind, "bit", (int)bit, "known", (int)known);

    if (name) {
        json_object_set_new(o, "name", json_string_nocheck(name));
    }
    add(f->features, o);
}

void blk_facts_extension(struct blk_facts *f, uint32_t type, uint32_t length)
{
    add(f->extensions, json_pack("{sI, sI}", "type", (json_int_t)type, "length",
                                 (json_int_t)length));
}

/* ---- asking ------------------------------------------------------------------------- */

struct facts_args {
    struct blk_node *file;
    const struct blk_driver *drv;       /* NULL: find out */
    struct blk_facts *out;
    struct blk_error *e;
};

static int facts_fiber(void *arg)
{
    struct facts_args *a = arg;
    int err = a->drv ? 0 : blk_probe_format(a->file, &a->drv, &a->out->guessed, a->e);

    if (!err) {
        a->out->format = a->drv->name;
        a->out->file_size = a->file->size;
    }
    if (!err && a->drv->facts) {
        a->drv->facts(a->file, a->out);
    }
    return err;
}

int blk_read_facts(struct blk_loop *l, const struct blk_open_args *args, struct blk_facts *out,
                   struct blk_error *e)
{
    struct blk_opts *o = blk_opts_dup(args->opts);
    struct blk_open_args raw = *args;
    struct facts_args a = { .out = out, .e = e };
    struct blk_node *n = NULL;
    const char *format = blk_opts_get(o, "driver");
    int err = 0;

    format = format ? format : args->format;
    if (format && !(a.drv = blk_driver_find(format))) {
        err = blk_err(e, EINVAL, "Unknown driver '%s'", format);
    }
    blk_opts_set(o, "driver", "raw");
    raw.format = NULL;
    raw.opts = o;
    err = err ? err : blk_open(l, &raw, &n, e);
    blk_opts_free(o);
    if (err) {
        return err;
    }
    *out = (struct blk_facts){ .references = json_array(), .features = json_array(),
                               .extensions = json_array() };
    a.file = n->file;
    err = blk_run(l, facts_fiber, &a);
    blk_close(n, NULL);
    if (err) {
        blk_facts_free(out);
    }
    return err;
}

void blk_facts_free(struct blk_facts *f)
{
    json_decref(f->references);
    json_decref(f->features);
    json_decref(f->extensions);
}
