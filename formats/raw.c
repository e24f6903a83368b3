/*
 * raw.c - the storage's bytes as they are, optionally a window of them (offset=,
 * size=).
 *
 * Invariant: when the format was only guessed, a write that would make block 0
 * look like another format is refused: a guest must not be able to choose how
 * its image is read next time.
 */
#include "block/driver.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RAW_STREAM_CHUNK (1u << 20)

struct raw_state {
    uint64_t offset;
    bool windowed, has_size;
};

/* [offset, offset+*size) of have bytes, QEMU's words when it does not fit. */
static int raw_window(struct blk_node *n, struct raw_state *s, struct blk_opts *o, uint64_t have,
                      struct blk_error *e)
{
    uint64_t size = 0, end;
    bool has_size = s->has_size = blk_opts_has(o, "size");
    s->windowed = has_size || blk_opts_has(o, "offset");
    int err = blk_opts_get_size(o, "offset", &s->offset, e);
    err = err ? err : blk_opts_get_size(o, "size", &size, e);
    if (err) {
        return err;
    }
    have = s->windowed ? blk_align_up(have, 512) : have;    /* QEMU counts sectors */
    if (s->offset > have) {
        return blk_err(e, EINVAL, "Offset (%llu) cannot be greater than size of the containing "
                       "file (%llu)", (unsigned long long)s->offset, (unsigned long long)have);
    }
    if (has_size && (blk_add_overflow(s->offset, size, &end) || end > have)) {
        return blk_err(e, EINVAL, "The sum of offset (%llu) and size (%llu) has to be smaller or "
                       "equal to the  actual size of the containing file (%llu)",
                       (unsigned long long)s->offset, (unsigned long long)size,
                       (unsigned long long)have);
    }
    if (has_size && size % 512) {
        return blk_err(e, EINVAL, "Specified size is not multiple of 512");
    }
    if (s->offset & (n->file->limits.req_align - 1)) {
        return blk_err(e, EINVAL, "Offset must be a multiple of the storage's %u-byte alignment",
                       n->file->limits.req_align);
    }
    /* Reads past the end are zeros. */
    n->size = has_size ? size : blk_align_up(have - s->offset, 512);
    return 0;
}

static int raw_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct raw_state *s = calloc(1, sizeof(*s));
    if (!s) {
        return -ENOMEM;
    }
    int err = raw_window(n, s, o, n->file->size, e);
    if (err) {
        free(s);
        return err;
    }
    n->limits = n->file->limits;
    n->can_grow = n->file->can_grow && !s->has_size;
    n->can_zero = n->file->can_zero;
    n->can_discard = n->file->can_discard;
    n->can_fua = n->file->can_fua;
    n->starts_as_zeros = n->file->starts_as_zeros;
    n->state = s;
    return 0;
}

static int raw_close(struct blk_node *n, struct blk_error *e)
{
    free(n->state);
    return 0;
}

/* ---- the guard for guessed images ------------------------------------------------ */

static int guarded_write(struct blk_req *req)
{
    struct blk_node *n = req->node;
    uint8_t head[512];
    uint64_t have = BLK_MIN(req->length, sizeof(head) - req->offset);
    int err = have < sizeof(head) ? co_read(n->file, 0, head, sizeof(head)) : 0;

    blk_iov_to_buf(req->iov, req->iovcnt, 0, head + req->offset, have);
    for (size_t i = 0; !err && blk_drivers[i]; i++) {
        if (blk_drivers[i]->probe && blk_drivers[i]->probe(head, sizeof(head)) > 0) {
            err = -EPERM;
        }
    }
    return err ? err : co_writev(n->file, req->offset, req->iov, req->iovcnt, req->length,
                                 req->flags);
}

/* What is copied is not looked at: see guarded_write(). */
static bool raw_can_copy(const struct blk_node *n, const struct blk_node *from)
{
    return !n->guessed_raw && blk_can_copy(n->file, from);
}

static void raw_submit(struct blk_node *n, struct blk_req *req)
{
    const struct raw_state *s = n->state;
    if (req->op == BLK_WRITE && n->guessed_raw && req->offset < 512) {
        blk_req_fiber(req, guarded_write);
        return;
    }
    blk_forward(req, n->file, req->offset + s->offset, NULL);
}

static int raw_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    const struct raw_state *s = n->state;
    if (n->file->drv->filter && off + s->offset < n->file->size) {
        return co_status(n->file, off + s->offset, len, st);    /* where that has it */
    }
    if (!n->file->drv->protocol && !n->file->drv->filter) {     /* an image, with a chain */
        int err = co_status_above(n->file, NULL, off + s->offset, len, st);
        st->layer = n;
        return err;
    }
    blk_status_at(st, n->file, off + s->offset, len, BLK_ST_RECURSE);
    return 0;
}

static int raw_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                        struct blk_error *e)
{
    const struct raw_state *s = n->state;
    uint64_t end;
    if (s->has_size) {
        return blk_err(e, ENOTSUP, "Cannot resize fixed-size raw disks");
    }
    if (blk_add_overflow(size, s->offset, &end) || end > INT64_MAX) {
        return blk_err(e, EINVAL, "Disk size too large for the chosen offset");
    }
    int err = blk_truncate(n->file, end, shrink, p, e);
    if (!err) {
        n->size = n->file->size - s->offset;        /* a device keeps its own */
    }
    return err;
}

static int raw_measure(struct blk_loop *l, struct blk_node *src, struct blk_opts *o,
                       struct blk_measure *out, struct blk_error *e)
{
    uint64_t size = 0;
    int err = blk_opts_get_size(o, "size", &size, e);
    if (err) {
        return err;
    }
    out->required = blk_align_up(src ? src->size : size, 512);
    out->fully_allocated = out->required;
    return 0;
}

/* Storage of the right size is already a raw image; see block/create.c. */
static int raw_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                      struct blk_error *e)
{
    return 0;
}

static const struct blk_option_desc raw_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

/* All of it, zeros too: a pipe has no holes. */
static int raw_stream(struct blk_opts *o, const struct blk_stream *s, struct blk_error *e)
{
    uint8_t *buf = blk_buf_alloc(RAW_STREAM_CHUNK);
    int err = buf ? 0 : -ENOMEM;

    for (uint64_t off = 0, len; !err && off < s->size; off += len) {
        bool data = true;

        err = s->map(s->arg, off, &data, &len);
        len = BLK_MIN(len, RAW_STREAM_CHUNK);
        if (err || !data) {
            memset(buf, 0, BLK_MIN(len, RAW_STREAM_CHUNK));
        } else {
            err = s->read(s->arg, off, buf, len);
        }
        err = err ? err : s->write(s->arg, buf, len);
    }
    blk_buf_free(buf);
    return err ? blk_err_errno(e, -err, "Could not write the image") : 0;
}

static const char *const raw_naming[] = { "offset", "size", NULL };

const struct blk_driver blk_raw = {
    .name = "raw",
    .naming = raw_naming,
    .create_opts = raw_create_opts,
    .open = raw_open,
    .close = raw_close,
    .submit = raw_submit,
    .can_copy = raw_can_copy,
    .status = raw_status,
    .truncate = raw_truncate,
    .measure = raw_measure,
    .stream = raw_stream,
    .create = raw_create,
};
