/*
 * logwrites.c - a filter that records what a format sends to its file, so that a
 * test can rebuild the file as any crash might have left it:
 *
 *   driver=qcow2,file.driver=logwrites,file.log=LOG,file.file.filename=a.img
 *
 * The log (not QEMU's blklogwrites) is a sequence of struct log_record, each in one
 * append of its own, so that a test program can add marks to the same file, and that
 * several nodes can write to it, each with a "tag" (a number, 0) that its records carry:
 *   W  a write was submitted; flag 1: FUA; the data follows
 *   Z  a zero write was submitted; flag 2: may unmap
 *   D  a discard was submitted          F  a flush was submitted
 *   T  a truncation to "length" begins; it is over with its C record
 *   C  what has this id is over; offset holds -result
 * A write is durable once a flush was submitted after its C, and that flush's own C
 * is there with result 0; or, with FUA, at its C.  Ids are unique among what is in
 * flight.  Appending to the log blocks: this is for tests.
 */
#include "block/driver.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOG_MAGIC 0x474f4c50u       /* "PLOG" */

struct log_record {
    uint32_t magic;
    uint8_t type, flags;
    uint16_t tag;
    uint64_t id, offset, length;    /* host byte order */
};

struct log_state {
    int fd;
    uint16_t tag;
    int err;                        /* sticky: the log is not complete any more */
};

static int log_append(struct log_state *s, char type, uint8_t flags, uint64_t id,
                      uint64_t offset, uint64_t length, const struct blk_req *data)
{
    uint64_t size = data ? data->length : 0;
    struct log_record *r = malloc(sizeof(*r) + size);
    ssize_t n;

    if (!r)
        return s->err = -ENOMEM;
    *r = (struct log_record){ LOG_MAGIC, (uint8_t)type, flags, s->tag, id, offset,
                              length };
    if (data)
        blk_iov_to_buf(data->iov, data->iovcnt, 0, r + 1, size);
    n = write(s->fd, r, sizeof(*r) + size);
    if (n < 0)
        s->err = -errno;
    else if ((size_t)n != sizeof(*r) + size)
        s->err = -ENOSPC;
    free(r);
    return s->err;
}

static uint64_t log_id(const struct blk_req *req)
{
    return (uint64_t)(uintptr_t)req;
}

static void log_done(struct blk_req *req)
{
    struct log_state *s = req->node->state;

    log_append(s, 'C', 0, log_id(req), (uint64_t)-(int64_t)req->result, 0, NULL);
}

static void log_submit(struct blk_node *n, struct blk_req *req)
{
    static const char type[BLK_OPS] = {
        [BLK_WRITE] = 'W', [BLK_WRITE_ZEROES] = 'Z', [BLK_DISCARD] = 'D', [BLK_FLUSH] = 'F',
    };
    struct log_state *s = n->state;
    uint8_t flags = (uint8_t)((req->flags & BLK_REQ_FUA ? 1 : 0) |
                              (req->flags & BLK_REQ_MAY_UNMAP ? 2 : 0));

    if (req->op == BLK_READ) {
        blk_forward(req, n->file, req->offset, NULL);
        return;
    }
    if (s->err < 0 ||
        log_append(s, type[req->op], flags, log_id(req), req->offset, req->length,
                   req->op == BLK_WRITE ? req : NULL) < 0) {
        blk_complete(req, s->err);
        return;
    }
    blk_forward(req, n->file, req->offset, log_done);
}

static int log_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                        struct blk_error *e)
{
    struct log_state *s = n->state;
    int ret;

    if (log_append(s, 'T', 0, 1, 0, size, NULL) < 0)
        return blk_err_errno(e, -s->err, "Could not write the log");
    ret = blk_truncate(n->file, size, shrink, p, e);
    log_append(s, 'C', 0, 1, (uint64_t)-(int64_t)ret, 0, NULL);
    n->size = n->file->size;
    return ret;
}

static int log_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    const char *name = blk_opts_get(o, "log");
    struct log_state *s;
    uint64_t tag = 0;
    int ret = blk_opts_get_u64(o, "tag", &tag, e);

    if (!name)
        return blk_err(e, EINVAL, "Parameter 'log' is missing");
    if (ret < 0 || tag > UINT16_MAX)
        return ret < 0 ? ret : blk_err(e, EINVAL, "Parameter 'tag' is too large");
    s = calloc(1, sizeof(*s));
    if (!s)
        return blk_err_errno(e, ENOMEM, "logwrites");
    s->tag = (uint16_t)tag;
    s->fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (s->fd < 0) {
        int err = errno;

        free(s);
        return blk_err_errno(e, err, "Could not open '%s'", name);
    }
    n->state = s;
    blk_filter_inherit(n);
    return 0;
}

static int log_close(struct blk_node *n, struct blk_error *e)
{
    struct log_state *s = n->state;
    int err = s->err;

    close(s->fd);
    free(s);
    n->state = NULL;
    return err < 0 ? blk_err_errno(e, -err, "The log is not complete") : 0;
}

const struct blk_driver blk_logwrites = {
    .name = "logwrites",
    .filter = true,
    .open = log_open,
    .close = log_close,
    .submit = log_submit,
    .truncate = log_truncate,
};
