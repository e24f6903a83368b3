/*
 * gluster.c - requests on Gluster images.
 *
 * A request is handed to libgfapi in submit() and completes on one of its threads,
 * which pushes it on the node's list; the first one of a batch wakes the loop, and the
 * loop takes the whole list.  Short transfers go on where they ended.
 *
 * Outages.  Gluster's own replication and reconnecting work below us; what reaches us
 * as ENOTCONN (or EBADFD: a brick came back and does not know the descriptor) means that
 * the volume cannot serve the file now: its brick is gone, or a replica has lost its
 * quorum.  Such requests wait and are sent again by the policy of block/net.h; reads,
 * writes, zeroes, discards and flushes can all be repeated.  Writes are not cached on
 * this side (gluster_volume.c bypasses write-behind), so an acknowledged one has
 * reached the bricks, and a flush asks all of them.  Everything else the volume says
 * is the request's result, exactly.
 */
#include "protocols/gluster/gluster_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void gluster_finish(struct blk_req *req, int result);

/* ---- handing over ---------------------------------------------------------------------- */

/* Any thread. */
static void gluster_cb(glfs_fd_t *fd, ssize_t ret, struct glfs_stat *pre, struct glfs_stat *post,
                       void *data)
{
    int err = errno;
    struct blk_req *req = data;
    struct gluster_state *g = req->node->state;
    struct blk_req *head = atomic_load_explicit(&g->done, memory_order_relaxed);

    (void)fd, (void)pre, (void)post;
    gluster_tail(req)->ret = ret < 0 ? -(err > 0 ? err : EIO) : ret;
    do {
        req->next = head;
    } while (!atomic_compare_exchange_weak_explicit(&g->done, &head, req, memory_order_release,
                                                    memory_order_relaxed));
    if (!head)
        blk_loop_post(g->node->loop, &g->done_post);
}

/* Call preadv or pwritev with the rest of the request's buffers; 0 or -1 with errno. */
static int gluster_send_rw(struct gluster_state *g, struct blk_req *req)
{
    struct gluster_tail *t = gluster_tail(req);
    const struct iovec *iov = req->iov;
    struct iovec *rest = NULL;
    int cnt = req->iovcnt, r;

    if (t->done) {
        rest = malloc((size_t)cnt * sizeof(*rest));
        if (!rest) {
            errno = ENOMEM;
            return -1;
        }
        cnt = blk_iov_slice(iov, cnt, t->done, req->length - t->done, rest, cnt);
        iov = rest;
    }
    /* libgfapi copies the array, and of writes the data too. */
    if (req->op == BLK_READ)
        r = glfs_preadv_async(g->fd, iov, cnt, (off_t)(req->offset + t->done), 0, gluster_cb, req);
    else
        r = glfs_pwritev_async(g->fd, iov, cnt, (off_t)(req->offset + t->done), 0, gluster_cb,
                               req);
    free(rest);
    return r;
}

static void gluster_send(struct blk_req *req)
{
    struct gluster_state *g = req->node->state;
    struct gluster_tail *t = gluster_tail(req);
    int r;

    g->inflight++;
    errno = 0;
    switch (req->op) {
    case BLK_READ:
    case BLK_WRITE:
        r = gluster_send_rw(g, req);
        break;
    case BLK_FLUSH:
        r = glfs_fdatasync_async(g->fd, gluster_cb, req);
        break;
    case BLK_WRITE_ZEROES:
        t->as_discard = req->flags & BLK_REQ_MAY_UNMAP &&
                        req->node->can_discard == BLK_CAP_NATIVE;
        r = t->as_discard
            ? glfs_discard_async(g->fd, (off_t)req->offset, req->length, gluster_cb, req)
            : glfs_zerofill_async(g->fd, (off_t)req->offset, (off_t)req->length, gluster_cb, req);
        break;
    case BLK_DISCARD:
        r = glfs_discard_async(g->fd, (off_t)req->offset, req->length, gluster_cb, req);
        break;
    default:
        errno = ENOTSUP;
        r = -1;
        break;
    }
    if (r < 0) {
        errno = errno > 0 ? errno : EIO;
        gluster_cb(g->fd, -1, NULL, NULL, req);
    }
}

/* ---- outages ---------------------------------------------------------------------------- */

static bool gluster_is_outage(int64_t ret)
{
    return ret == -ENOTCONN || ret == -EBADFD;
}

static void gluster_wait(struct gluster_state *g, struct blk_req *req)
{
    req->next = NULL;
    *g->waiting_last = req;
    g->waiting_last = &req->next;
    if (!g->retry.at && !g->reopening)
        blk_timer_set(g->node->loop, &g->retry, blk_now_ns() + blk_net_next(&g->net));
}

static struct blk_req *gluster_take_waiting(struct gluster_state *g)
{
    struct blk_req *req = g->waiting;

    g->waiting = NULL;
    g->waiting_last = &g->waiting;
    return req;
}

static void gluster_resend(struct gluster_state *g)
{
    uint64_t now = blk_now_ns();
    struct blk_req *next;

    g->probed_ns = now;
    for (struct blk_req *req = gluster_take_waiting(g); req; req = next) {
        next = req->next;
        if (blk_net_expired(&g->net, gluster_tail(req)->start_ns, now)) {
            gluster_finish(req, -EIO);
            continue;
        }
        if (!gluster_tail(req)->retried)
            g->retried++;
        gluster_tail(req)->retried = true;
        gluster_send(req);
    }
}

/* Fiber: a descriptor the bricks know, in place of one they do not.  The old one may
 * still be in use on the pool's threads, so it is kept until the node is closed. */
static void gluster_reopen(void *arg)
{
    struct gluster_state *g = arg;
    struct gluster_old_fd *old = malloc(sizeof(*old));
    struct gluster_opened now;
    int flags = (g->writable ? O_RDWR : O_RDONLY) |
                (g->node->oflags & BLK_O_DIRECT ? O_DIRECT : 0);

    if (old && !gluster_job(g->node->loop, &g->name, GLUSTER_OPEN, flags, g->net.timeout_ns, &now,
                            NULL)) {
        *old = (struct gluster_old_fd){ g->fd, g->old_fds };
        g->old_fds = old;
        g->fd = now.fd;
        g->fd_bad = false;
        gluster_relock(g, old->fd);
        old = NULL;
    }
    free(old);
    g->reopening = false;
    gluster_resend(g);
}

static void gluster_retry(void *arg)
{
    struct gluster_state *g = arg;

    if (g->fd_bad && !g->reopening && !co_start(g->node->loop, gluster_reopen, g))
        g->reopening = true;
    else if (!g->reopening)
        gluster_resend(g);
}

static void gluster_fail_waiting(struct gluster_state *g)
{
    struct blk_req *next;

    for (struct blk_req *req = gluster_take_waiting(g); req; req = next) {
        next = req->next;
        gluster_finish(req, -EIO);
    }
}

static void gluster_lost(struct gluster_state *g, struct blk_req *req, int err)
{
    g->fd_bad = g->fd_bad || err == -EBADFD;
    blk_net_lost(&g->net, strerror(-err));
    if (blk_net_over(&g->net, strerror(-err))) {
        gluster_finish(req, -EIO);
        gluster_fail_waiting(g);
    } else {
        gluster_wait(g, req);
    }
}

void gluster_submit(struct blk_node *n, struct blk_req *req)
{
    struct gluster_state *g = n->state;
    struct gluster_tail *t = gluster_tail(req);
    uint64_t now = blk_now_ns();

    *t = (struct gluster_tail){ .start_ns = now };
    if (g->fenced && req->op != BLK_READ) {
        gluster_finish(req, -EIO);
    } else if (!g->net.down_since) {
        gluster_send(req);
    } else if (!g->net.given_up) {
        gluster_wait(g, req);
    } else if (now - g->probed_ns >= BLK_NET_STEP_MAX_NS) {
        /* One attempt every few seconds: through the same way, for a new descriptor. */
        t->retried = false;
        g->probed_ns = now;
        req->next = NULL;
        *g->waiting_last = req;
        g->waiting_last = &req->next;
        gluster_retry(g);
    } else {
        gluster_finish(req, -EIO);
    }
}

/* ---- completing ---------------------------------------------------------------------------- */

/* The request leaves the driver. */
static void gluster_finish(struct blk_req *req, int result)
{
    struct gluster_state *g = req->node->state;

    if (gluster_tail(req)->retried && --g->retried == 0 && !g->waiting && result != -EIO)
        blk_net_up(&g->net);
    if (req->op != BLK_READ && req->op != BLK_FLUSH)
        g->extent.start = g->extent.end = 0;
    blk_complete(req, result);
}

/* Bytes moved: is there more to do?  Then it is on its way, and false comes back. */
static bool gluster_moved(struct blk_req *req, int *result)
{
    struct gluster_tail *t = gluster_tail(req);
    uint64_t left = req->length - t->done;

    if ((uint64_t)t->ret > left) {
        *result = -EPROTO;
        return true;
    }
    t->done += (uint64_t)t->ret;
    *result = 0;
    if ((uint64_t)t->ret == left)
        return true;
    if (t->ret == 0 && req->op == BLK_READ) {
        /* The end of the file, which somebody else may have moved. */
        blk_iov_zero(req->iov, req->iovcnt, t->done, left);
        return true;
    }
    if (t->ret == 0) {
        *result = -ENOSPC;
        return true;
    }
    gluster_send(req);
    return false;
}

/* What the volume cannot do is learnt once. */
static bool gluster_unsupported(struct blk_req *req, int *result)
{
    struct blk_node *n = req->node;
    struct gluster_tail *t = gluster_tail(req);

    if (*result != -EOPNOTSUPP && *result != -ENOSYS)
        return false;
    *result = -ENOTSUP;
    if (req->op == BLK_DISCARD || t->as_discard)
        n->can_discard = BLK_CAP_NONE;
    else if (req->op == BLK_WRITE_ZEROES)
        n->can_zero = BLK_CAP_EMULATED;
    if (!t->as_discard)
        return false;
    gluster_send(req);
    return true;
}

static void gluster_returned(struct blk_req *req)
{
    struct gluster_state *g = req->node->state;
    struct gluster_tail *t = gluster_tail(req);
    int result = t->ret < 0 ? (int)t->ret : 0;

    g->inflight--;
    if (gluster_is_outage(t->ret)) {
        gluster_lost(g, req, result);
        return;
    }
    if ((req->op == BLK_READ || req->op == BLK_WRITE) && t->ret >= 0 &&
        !gluster_moved(req, &result))
        return;
    if (result < 0 && gluster_unsupported(req, &result))
        return;
    if (result >= 0)
        blk_net_progress(&g->net);
    gluster_finish(req, result);
}

static void gluster_take_done(void *arg)
{
    struct gluster_state *g = arg;
    struct blk_req *req = atomic_exchange_explicit(&g->done, NULL, memory_order_acquire);
    struct blk_req *in_order = NULL, *next;

    for (; req; req = next) {
        next = req->next;
        req->next = in_order;
        in_order = req;
    }
    for (req = in_order; req; req = next) {
        next = req->next;
        gluster_returned(req);
    }
}

void gluster_requests_init(struct gluster_state *g, struct blk_node *n)
{
    g->node = n;
    g->done_post = (struct blk_post){ .fn = gluster_take_done, .arg = g };
    g->retry = (struct blk_timer){ .fn = gluster_retry, .arg = g };
    g->lock_timer = (struct blk_timer){ .fn = gluster_lock_keep, .arg = g };
    g->waiting_last = &g->waiting;
}

static const char *const gluster_schemes[] = { "gluster", "gluster+tcp", "gluster+unix", NULL };

const struct blk_driver blk_gluster;
const struct blk_driver blk_gluster = {
    .name = "gluster",
    .protocol = true,
    .merge = 32768,
    .schemes = gluster_schemes,
    .create_opts = gluster_create_opts,
    .open = gluster_open,
    .lock = gluster_lock,
    .close = gluster_close,
    .submit = gluster_submit,
    .status = gluster_status,
    .truncate = gluster_truncate,
    .allocated_size = gluster_allocated_size,
    .length = gluster_length,
    .identity = gluster_identity,
    .create = gluster_create,
    .uncreate = gluster_uncreate,
};
