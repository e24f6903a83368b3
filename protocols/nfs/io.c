/*
 * io.c - a disk's requests as RPCs.
 *
 * The core splits at max_transfer, so a request is one RPC, and more where the server
 * answers for less than it was asked (which it may).  A write's bytes are copied once:
 * libnfs wants them in one piece, and unless the server says that they are on its disk
 * the copy is kept until they are (kept.c).
 */
#include "protocols/nfs/nfs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct nfs_io {
    struct nfs_call call;
    struct nfs_disk *d;
    struct blk_req *req;
    uint64_t done;
    struct nfs_buf *buf;
    unsigned empty;
    bool stable, mixed, first, looked_again;
    char verf[8];
    struct nfs_io *next;            /* free, or held */
};

static struct nfs_io *io_new(struct nfs_disk *d, struct blk_req *req)
{
    struct nfs_io *io = d->free_ios;
    if (io)
        d->free_ios = io->next;
    else
        io = malloc(sizeof(*io));
    if (!io)
        return NULL;
    memset(io, 0, sizeof(*io));
    io->d = d;
    io->req = req;
    io->call.fh = &d->fh;
    io->call.offset = req->offset;
    io->call.count = (uint32_t)req->length;
    return io;
}

static void io_finish(struct nfs_io *io, int err)
{
    struct nfs_disk *d = io->d;
    struct blk_req *req = io->req;

    nfs_buf_put(d, io->buf);
    io->next = d->free_ios;
    d->free_ios = io;
    blk_complete(req, err);
}

/* The server did nothing, and said so: ask again, but not for ever. */
static bool io_stuck(struct nfs_io *io)
{
    return io->call.got ? (io->empty = 0) : ++io->empty >= NFS_EMPTY_MAX;
}

static void io_go_on(struct nfs_io *io)
{
    io->call.offset = io->req->offset + io->done;
    io->call.count = (uint32_t)(io->req->length - io->done);
    nfs_call_start(io->d, &io->call);
}

/* ---- READ ------------------------------------------------------------------------------- */

/* The file ends before the disk does.  Fine while unflushed writes have yet to make it
 * longer again after a server lost them; else somebody has truncated it. */
static int read_past_end(struct nfs_io *io)
{
    struct nfs_disk *d = io->d;
    uint64_t end = io->req->offset + io->done;

    if (nfs_kept_beyond(d, end))
        return 0;
    if (!d->told_short)
        blk_report("%s: the file ends at %llu, it has been truncated by somebody else (the disk "
                   "has %llu bytes)", d->net.shown, (unsigned long long)end,
                   (unsigned long long)d->node->size);
    d->told_short = true;
    return -EIO;
}

static void read_finish(struct nfs_io *io)
{
    struct blk_req *req = io->req;
    if (io->done < req->length)
        blk_iov_zero(req->iov, req->iovcnt, io->done, req->length - io->done);
    if (io->d->tree)
        nfs_kept_overlay(io->d, req->iov, req->iovcnt, req->offset, req->length);
    io_finish(io, 0);
}

static void read_answered(struct nfs_call *call)
{
    struct nfs_io *io = blk_container_of(call, struct nfs_io, call);
    int r = call->err;

    if (r) {
        io_finish(io, r);
        return;
    }
    io->done += call->got;
    call->iov_at = io->done;
    if (io->done == io->req->length) {
        read_finish(io);
    } else if (call->eof && !io->looked_again && !nfs_kept_beyond(io->d, call->offset)) {
        io->looked_again = true;    /* it may have grown since */
        io_go_on(io);
    } else if (call->eof) {
        r = read_past_end(io);
        if (r)
            io_finish(io, r);
        else
            read_finish(io);
    } else if (io_stuck(io)) {
        io_finish(io, -EIO);
    } else {
        io_go_on(io);
    }
}

static void read_start(struct nfs_disk *d, struct blk_req *req)
{
    struct nfs_io *io = io_new(d, req);
    if (!io) {
        blk_complete(req, -ENOMEM);
        return;
    }
    io->call.op = NFS_READ;
    io->call.iov = req->iov;
    io->call.iovcnt = req->iovcnt;
    io->call.done = read_answered;
    nfs_call_start(d, &io->call);
}

/* ---- WRITE ------------------------------------------------------------------------------- */

static void write_finish(struct nfs_io *io, int err)
{
    struct nfs_disk *d = io->d;
    struct blk_req *req = io->req;

    if (!err && req->flags & BLK_REQ_FUA && !io->stable)
        err = -EIO;                 /* asked for FILE_SYNC, got less */
    if (!err && d->unsafe)
        nfs_unsafe_add(d, io->verf, io->stable, io->mixed);
    else if (!err)
        nfs_kept_add(d, req->offset, req->offset + req->length, io->stable ? NULL : io->buf,
                     io->verf, io->mixed);
    d->writing--;
    d->writing_bytes -= req->length;
    io_finish(io, err);
    if (!d->writing)
        co_wake_all(&d->quiet);
    if (d->held)
        nfs_io_resume(d);
}

static void write_answered(struct nfs_call *call)
{
    struct nfs_io *io = blk_container_of(call, struct nfs_io, call);

    if (call->err || io_stuck(io)) {
        write_finish(io, call->err ? call->err : -EIO);
        return;
    }
    if (call->got) {
        io->mixed |= !io->first && memcmp(io->verf, call->verf, sizeof(io->verf));
        io->first = false;
        io->stable &= call->committed;
        memcpy(io->verf, call->verf, sizeof(io->verf));
    }
    io->done += call->got;
    call->data += call->got;
    if (io->done < io->req->length)
        io_go_on(io);
    else
        write_finish(io, 0);
}

static void write_send(struct nfs_io *io)
{
    struct nfs_disk *d = io->d;
    struct blk_req *req = io->req;

    d->writing++;
    d->writing_bytes += req->length;
    if (d->unsafe && req->iovcnt == 1) {
        io->call.data = req->iov[0].iov_base;
        nfs_call_start(d, &io->call);
        return;
    }
    io->buf = nfs_buf_get(d, (uint32_t)req->length);
    if (!io->buf) {
        write_finish(io, -ENOMEM);
        return;
    }
    blk_iov_to_buf(req->iov, req->iovcnt, 0, io->buf->data, req->length);
    io->call.data = io->buf->data;
    nfs_call_start(d, &io->call);
}

/* While lost writes are written again, and when too much is unflushed. */
static bool write_must_wait(struct nfs_disk *d, const struct blk_req *req)
{
    uint64_t used = d->kept_bytes + d->writing_bytes;
    if (d->replaying)
        return true;
    return used && used + req->length > NFS_KEPT_MAX && !nfs_changes_fail(d);
}

static void write_start(struct nfs_disk *d, struct blk_req *req)
{
    struct nfs_io *io = io_new(d, req);
    if (!io) {
        blk_complete(req, -ENOMEM);
        return;
    }
    io->call.op = NFS_WRITE;
    io->call.stable = req->flags & BLK_REQ_FUA;
    io->call.done = write_answered;
    io->stable = io->first = true;
    if (!d->held && !write_must_wait(d, req)) {
        write_send(io);
        return;
    }
    if (!d->held)
        d->held_last = &d->held;
    *d->held_last = io;
    d->held_last = &io->next;
    if (d->kept)
        nfs_commit_soon(d);
}

void nfs_io_resume(struct nfs_disk *d)
{
    struct nfs_io *io;
    while ((io = d->held) && !write_must_wait(d, io->req)) {
        d->held = io->next;
        io->next = NULL;
        write_send(io);
    }
    if (d->held && d->kept)
        nfs_commit_soon(d);
}

/* ---- FLUSH -------------------------------------------------------------------------------- */

static int flush_fiber(struct blk_req *req)
{
    return nfs_commit(req->node->state);
}

void nfs_submit(struct blk_node *n, struct blk_req *req)
{
    struct nfs_disk *d = n->state;

    switch (req->op) {
    case BLK_READ:
        read_start(d, req);
        break;
    case BLK_WRITE:
        write_start(d, req);
        break;
    case BLK_FLUSH:
        if (d->kept && !d->lost)
            blk_req_fiber(req, flush_fiber);
        else
            blk_complete(req, d->lost);
        break;
    default:
        blk_complete(req, -ENOTSUP);
    }
}

void nfs_io_free(struct nfs_disk *d)
{
    while (d->free_ios) {
        struct nfs_io *io = d->free_ios;
        d->free_ios = io->next;
        free(io);
    }
}
