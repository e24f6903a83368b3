/*
 * blkverify.c - a filter that does everything twice, to storage that is known to be right
 * and to an image under test, and fails a request where the two differ.
 *
 *   driver=blkverify,raw.filename=a.raw,test.driver=qcow2,test.file.filename=a.qcow2
 *   blkverify:a.raw:a.qcow2
 */
#include "block/driver.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct blk_node *test_node(const struct blk_node *n)
{
    return n->more[0].node;
}

/* The first byte in which iov differs from buf; len if none does. */
static uint64_t first_difference(const struct blk_req *req, const uint8_t *buf)
{
    uint64_t at = 0;

    for (int i = 0; i < req->iovcnt; i++) {
        const uint8_t *p = req->iov[i].iov_base;

        for (size_t k = 0; k < req->iov[i].iov_len; k++, at++)
            if (p[k] != buf[at])
                return at;
    }
    return at;
}

static int read_both(struct blk_req *req)
{
    struct blk_node *n = req->node;
    uint8_t *buf = blk_buf_alloc(req->length);
    int raw, test = -ENOMEM;

    raw = co_readv(n->file, req->offset, req->iov, req->iovcnt, req->length);
    if (buf)
        test = co_read(test_node(n), req->offset, buf, req->length);
    uint64_t same = raw || test ? 0 : first_difference(req, buf);
    if (raw != test) {
        blk_report("blkverify: read offset=%llu bytes=%llu return value mismatch %d != %d",
                   (unsigned long long)req->offset, (unsigned long long)req->length, test, raw);
    } else if (!raw && same < req->length) {
        blk_report("blkverify: read offset=%llu bytes=%llu contents mismatch at offset %llu",
                   (unsigned long long)req->offset, (unsigned long long)req->length,
                   (unsigned long long)(req->offset + same));
        raw = -EIO;
    }
    blk_buf_free(buf);
    return raw ? raw : test;
}

static int change(struct blk_node *n, const struct blk_req *req)
{
    switch (req->op) {
    case BLK_WRITE:
        return co_writev(n, req->offset, req->iov, req->iovcnt, req->length, req->flags);
    case BLK_WRITE_ZEROES:
        return co_write_zeroes(n, req->offset, req->length, req->flags);
    case BLK_DISCARD:
        return co_discard(n, req->offset, req->length);
    default:
        return co_flush(n);
    }
}

static int change_both(struct blk_req *req)
{
    struct blk_node *n = req->node;
    int test = change(test_node(n), req), raw = change(n->file, req);

    if (raw != test && req->op == BLK_WRITE)
        blk_report("blkverify: write offset=%llu bytes=%llu return value mismatch %d != %d",
                   (unsigned long long)req->offset, (unsigned long long)req->length, test, raw);
    return raw ? raw : test;
}

static void verify_submit(struct blk_node *n, struct blk_req *req)
{
    blk_req_fiber(req, req->op == BLK_READ ? read_both : change_both);
}

static int verify_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    int err = blk_open_second(n, "test", o, e);

    if (err)
        return err;
    char *shown;
    if (asprintf(&shown, "blkverify:%s:%s", n->file->shown, test_node(n)->shown) < 0)
        return -ENOMEM;
    free(n->shown);
    n->shown = shown;
    blk_filter_inherit(n);
    n->size = test_node(n)->size;
    n->can_grow = false;
    n->can_fua = BLK_CAP_NONE;
    return 0;
}

/* "blkverify:RAW:IMAGE" */
static int verify_parse_name(const char *name, struct blk_opts *o, struct blk_error *e)
{
    const char *raw = strncmp(name, "blkverify:", 10) ? NULL : name + 10;
    const char *image = raw ? strchr(raw, ':') : NULL;

    if (!raw) {
        blk_opts_set(o, "x-image", name);
        return 0;
    }
    if (!image)
        return blk_err(e, EINVAL, "blkverify requires raw copy and original image path");
    blk_opts_setf(o, "x-raw", "%.*s", (int)(image - raw), raw);
    blk_opts_set(o, "x-image", image + 1);
    return 0;
}

static const char *const verify_schemes[] = { "blkverify", NULL };

const struct blk_driver blk_blkverify = {
    .name = "blkverify",
    .filter = true,
    .child = "raw",
    .schemes = verify_schemes,
    .parse_name = verify_parse_name,
    .open = verify_open,
    .submit = verify_submit,
};
