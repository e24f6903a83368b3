/*
 * copyread.c - copy-on-read: what is read from below an image is written into it, so that
 * the next read finds it there.
 *
 *   driver=copy-on-read,file.driver=qcow2,file.file.filename=a.qcow2[,bottom=...]
 *
 * Whole clusters are copied.  What cannot be written (no room, say) is read all the same,
 * but the read fails, as in QEMU: whoever asked for copies wants to know.
 */
#include "block/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define COR_CHUNK (1u << 20)

/* What of [at, at+len), which is in buf, req wants.  Returns how many bytes that was. */
static uint64_t hand_over(struct blk_req *req, uint64_t at, uint64_t len, const uint8_t *buf)
{
    uint64_t from = BLK_MAX(at, req->offset), to = BLK_MIN(at + len, req->offset + req->length);

    if (from >= to)
        return 0;
    blk_iov_from_buf(req->iov, req->iovcnt, from - req->offset, buf + (from - at), to - from);
    return to - from;
}

/* Clusters around [off, off+len) that the image does not have itself, a chunk at a time.
 * *have: bytes of req that were among them. */
static int copy_range(struct blk_req *req, uint64_t off, uint64_t len, uint8_t *buf, uint64_t *have)
{
    struct blk_node *image = req->node->file;
    int err = 0;

    for (uint64_t at = off, n; !err && at < off + len; at += n) {
        n = BLK_MIN(off + len - at, (uint64_t)COR_CHUNK);
        err = co_read(image, at, buf, n);
        if (!err && blk_is_zero(buf, n))
            err = co_write_zeroes(image, at, n, BLK_REQ_EXPLICIT);
        else if (!err)
            err = co_write(image, at, buf, n, 0);
        *have += err ? 0 : hand_over(req, at, n, buf);
    }
    return err;
}

static int copy_missing(struct blk_req *req, uint64_t *have)
{
    struct blk_node *image = req->node->file;
    uint64_t off, end = req->offset + req->length;
    uint64_t cluster = image->mapping_size ? image->mapping_size
                       : image->cluster_size ? image->cluster_size : 1;
    uint8_t *buf = NULL;
    struct blk_status st;
    int err = 0;

    end = BLK_MIN(blk_align_up(end, cluster), image->size);
    for (off = blk_align_down(req->offset, cluster); !err && off < end; off += st.length) {
        err = co_status(image, off, end - off, &st);
        if (err || st.flags & BLK_ST_ALLOCATED)
            continue;
        buf = buf ? buf : blk_buf_alloc(COR_CHUNK);
        err = buf ? copy_range(req, off, st.length, buf, have) : -ENOMEM;
    }
    blk_buf_free(buf);
    return err;
}

/* Copies and what else is written exclude each other: a copy must not undo a write. */
struct cor_state { struct co_mutex lock; };

static int read_fiber(struct blk_req *req)
{
    struct blk_node *image = req->node->file;
    struct cor_state *s = req->node->state;
    uint64_t have = 0;

    co_lock(&s->lock);
    int err = copy_missing(req, &have);
    co_unlock(&s->lock);
    if (err || have == req->length)
        return err;
    return co_readv(image, req->offset, req->iov, req->iovcnt, req->length);
}

static int change_fiber(struct blk_req *req)
{
    struct blk_node *image = req->node->file;
    struct cor_state *s = req->node->state;
    int err;

    co_lock(&s->lock);
    err = req->op == BLK_WRITE ? co_writev(image, req->offset, req->iov, req->iovcnt,
                                           req->length, req->flags)
          : req->op == BLK_DISCARD ? co_discard(image, req->offset, req->length)
          : co_write_zeroes(image, req->offset, req->length, req->flags);
    co_unlock(&s->lock);
    return err;
}

static void cor_submit(struct blk_node *n, struct blk_req *req)
{
    if (req->op == BLK_FLUSH || n->file->read_only)
        blk_forward(req, n->file, req->offset, NULL);
    else
        blk_req_fiber(req, req->op == BLK_READ ? read_fiber : change_fiber);
}

static int cor_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    const char *bottom = blk_opts_get(o, "bottom");

    if (bottom)
        return blk_err(e, EINVAL, "Bottom node '%s' not found", bottom);
    if (n->read_only)
        return blk_err(e, EACCES, "Block node is read-only");
    n->state = calloc(1, sizeof(struct cor_state));
    blk_filter_inherit(n);
    return n->state ? 0 : -ENOMEM;
}

static int cor_close(struct blk_node *n, struct blk_error *e)
{
    free(n->state);
    n->state = NULL;
    return 0;
}

const struct blk_driver blk_copy_on_read = {
    .name = "copy-on-read",
    .filter = true,
    .over_images = true,
    .open = cor_open,
    .close = cor_close,
    .submit = cor_submit,
};
