/*
 * stream.c - a streamOptimized image written from its first byte to its last.
 *
 * The header says that the directory is at the end; then descriptor, grains in
 * ascending order, each table (behind a marker) after its grains, the directory, the
 * header again with the directory's place (the footer), and an end marker.
 */
#include "formats/vmdk/vmdk.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define GRAIN_BYTES (VMDK_GRAIN * VMDK_SECTOR)
#define WINDOW 32u                  /* grains compressed side by side */
#define DATA_AT VMDK_GRAIN          /* first sector behind the descriptor */

enum { MARKER_TABLE = 1, MARKER_DIRECTORY, MARKER_FOOTER };

struct stream {
    const struct blk_stream *s;
    uint64_t at;                    /* sectors written */
    uint32_t *directory, *table;
    uint64_t tables;
    bool table_used;
    uint8_t *in;                    /* WINDOW grains */
    struct vmdk_grain grains[WINDOW];
    size_t n;
};

static int put(struct stream *t, const void *buf, size_t len)
{
    int err = t->s->write(t->s->arg, buf, len);
    t->at += len / VMDK_SECTOR;
    return err ? err : t->at > UINT32_MAX ? -EFBIG : 0;
}

static int put_marker(struct stream *t, uint64_t sectors, uint32_t type)
{
    uint8_t m[VMDK_SECTOR] = { 0 };
    put_le64(m, sectors);
    put_le32(m + 12, type);
    return put(t, m, sizeof(m));
}

static int put_head(struct stream *t, struct vmdk_create *c, uint8_t *header, struct blk_error *e)
{
    struct vmdk_layout l = { .data = DATA_AT };
    size_t len = DATA_AT * VMDK_SECTOR;
    uint8_t *buf = calloc(1, len);
    int err = buf ? vmdk_add_line(c, c->size, "disk.vmdk", 9) : -ENOMEM;
    char *text = err ? NULL : vmdk_describe(c);

    err = err ? err : text ? 0 : -ENOMEM;
    if (!err && strlen(text) > VMDK_DESC_BYTES) {
        err = blk_err(e, EINVAL, "The description is longer than %u bytes", VMDK_DESC_BYTES);
    }
    if (!err) {
        vmdk_header_build(c, &l, c->size, header);
        put_le32(header + VK_FLAGS, le32(header + VK_FLAGS) & ~(uint32_t)VMDK_RGD);
        put_le64(header + VK_GD, UINT64_MAX);
        memcpy(buf, header, VMDK_SECTOR);
        memcpy(buf + VMDK_EMBEDDED_AT, text, strlen(text));
        err = put(t, buf, len);
    }
    free(text);
    free(buf);
    return err;
}

/* The grain at off into buf: its data, zeros where the map has none. */
static int read_grain(struct stream *t, uint64_t off, uint64_t len, uint8_t *buf)
{
    uint64_t pos = 0;
    int err = 0;

    memset(buf, 0, GRAIN_BYTES);
    while (!err && pos < len) {
        uint64_t run = 0;
        bool data = false;
        err = t->s->map(t->s->arg, off + pos, &data, &run);
        run = BLK_MIN(BLK_MAX(run, 1u), len - pos);
        if (!err && data) {
            err = t->s->read(t->s->arg, off + pos, buf + pos, run);
        }
        pos += run;
    }
    return err;
}

/* Grains that are kept go out; the tables learn where. */
static int put_window(struct stream *t)
{
    int err = vmdk_pack(t->grains, t->n);
    for (size_t i = 0; i < t->n; i++) {
        struct vmdk_grain *g = &t->grains[i];
        if (!err) {
            put_le32(&t->table[g->sector / VMDK_GRAIN % VMDK_PER_TABLE], (uint32_t)t->at);
            t->table_used = true;
            err = put(t, g->out, g->out_len);
        }
        free(g->out);
    }
    t->n = 0;
    return err;
}

static int end_table(struct stream *t, uint64_t i)
{
    int err = put_window(t);
    if (err || !t->table_used) {
        return err;
    }
    err = put_marker(t, VMDK_TABLE_SECTORS, MARKER_TABLE);
    put_le32(&t->directory[i], (uint32_t)t->at);
    err = err ? err : put(t, t->table, VMDK_TABLE_SECTORS * VMDK_SECTOR);
    memset(t->table, 0, VMDK_TABLE_SECTORS * VMDK_SECTOR);
    t->table_used = false;
    return err;
}

static int add_grain(struct stream *t, uint64_t off)
{
    uint64_t len = BLK_MIN((uint64_t)GRAIN_BYTES, t->s->size - off);
    uint8_t *buf = t->in + t->n * GRAIN_BYTES;
    int err = read_grain(t, off, len, buf);

    if (err || blk_is_zero(buf, GRAIN_BYTES)) {
        return err;
    }
    t->grains[t->n++] = (struct vmdk_grain){ .sector = off / VMDK_SECTOR, .in = buf,
                                             .len = GRAIN_BYTES };
    return t->n < WINDOW ? 0 : put_window(t);
}

/* Whole tables without data are passed over at once. */
static int put_grains(struct stream *t)
{
    const uint64_t span = (uint64_t)GRAIN_BYTES * VMDK_PER_TABLE;
    int err = 0;

    for (uint64_t off = 0; !err && off < t->s->size;) {
        uint64_t run = 0, next = off + GRAIN_BYTES;
        bool data = false;
        err = t->s->map(t->s->arg, off, &data, &run);
        if (!err && (data || run < GRAIN_BYTES)) {
            err = add_grain(t, off);
        } else if (!err) {
            next = off + run / GRAIN_BYTES * GRAIN_BYTES;
        }
        if (!err && (next / span != off / span || next >= t->s->size)) {
            err = end_table(t, off / span);
        }
        off = next;
    }
    return err;
}

static int put_end(struct stream *t, uint8_t *header)
{
    static const uint8_t end[VMDK_SECTOR];
    uint64_t sectors = (t->tables * 4 + VMDK_SECTOR - 1) / VMDK_SECTOR;
    int err = put_marker(t, sectors, MARKER_DIRECTORY);

    put_le64(header + VK_GD, t->at);
    err = err || !sectors ? err : put(t, t->directory, sectors * VMDK_SECTOR);
    err = err ? err : put_marker(t, 1, MARKER_FOOTER);
    err = err ? err : put(t, header, VMDK_SECTOR);
    return err ? err : put(t, end, sizeof(end));
}

int vmdk_stream(struct blk_opts *o, const struct blk_stream *s, struct blk_error *e)
{
    struct vmdk_create c = { .parent_cid = UINT32_MAX };
    struct stream *t = calloc(1, sizeof(*t));
    uint8_t header[VMDK_SECTOR];
    int err = t ? vmdk_take_options(&c, o, e) : -ENOMEM;

    if (!err && (!c.packed || c.backing)) {
        err = blk_err(e, ENOTSUP, c.backing ? "An overlay cannot be written to a pipe"
                      : "Only subformat=streamOptimized can be written to a pipe");
    }
    if (!err) {
        t->s = s;
        t->tables = (s->size + (uint64_t)GRAIN_BYTES * VMDK_PER_TABLE - 1) /
                    ((uint64_t)GRAIN_BYTES * VMDK_PER_TABLE);
        t->directory = calloc(1, blk_align_up(t->tables * 4 + 1, VMDK_SECTOR));
        t->table = calloc(VMDK_TABLE_SECTORS, VMDK_SECTOR);
        t->in = blk_buf_alloc((size_t)WINDOW * GRAIN_BYTES);
        err = t->directory && t->table && t->in ? put_head(t, &c, header, e) : -ENOMEM;
    }
    err = err ? err : put_grains(t);
    err = err ? err : put_end(t, header);
    if (t) {
        free(t->directory);
        free(t->table);
        blk_buf_free(t->in);
    }
    free(t);
    free(c.lines);
    return err ? blk_err_errno(e, -err, "Could not write the image") : 0;
}
