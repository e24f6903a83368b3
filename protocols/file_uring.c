/*
 * file_uring.c - the io_uring engine: one ring a loop.
 *
 * Requests become SQEs in submit() and are handed to the kernel in one call by the
 * loop's before-wait hook.  With DEFER_TASKRUN the kernel completes requests only
 * when this thread enters it (liburing's peek does when TASKRUN_FLAG says so), and
 * work waiting for that does not make the ring's own fd readable to a thread that
 * sleeps in epoll_wait: it is an eventfd registered with the ring that sits in the
 * loop's epoll set.  Edge-triggered, so it never needs to be read.
 *
 * SINGLE_ISSUER binds the ring to the thread that made it.  When a loop changes
 * owner (blk_loop_adopt) the ring is made anew by the new owner once it is idle;
 * until then requests go to the threads.
 *
 * What the kernel leaves unfinished (short counts, EAGAIN) is finished by a pool
 * thread: rare, and it keeps one place that knows how to continue.
 */
#include "protocols/file_int.h"

#include <errno.h>

#ifdef HAVE_URING
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RING_ENTRIES 256u

struct file_ring {
    struct io_uring ring;
    struct file_engine *engine;
    struct blk_watch watch;         /* on the eventfd */
    struct blk_hook hook;
    pthread_t owner;
    unsigned queued;                /* SQEs not yet given to the kernel */
    unsigned inflight;              /* given to the kernel or queued */
};

/* ---- completion ------------------------------------------------------------------- */

static void ring_complete(struct file_ring *r, struct blk_req *req, int res)
{
    struct file_tail *t = file_tail(req);

    if (req->op == BLK_FLUSH) {
        if (res == -EINTR || res == -EAGAIN)
            file_threads_submit(r->engine, req);
        else
            file_finish(req, res);
        return;
    }
    if (res < 0 && res != -EINTR && res != -EAGAIN) {
        file_finish(req, res);
        return;
    }
    if (res > 0)
        t->done += res;
    if ((uint64_t)t->done == req->length)
        file_finish(req, 0);
    else
        file_threads_submit(r->engine, req);
}

/* Returns whether anything was completed. */
static bool ring_reap(struct file_ring *r)
{
    struct io_uring_cqe *cqe;
    bool any = false;

    while (r->inflight > r->queued && io_uring_peek_cqe(&r->ring, &cqe) == 0) {
        struct blk_req *req = io_uring_cqe_get_data(cqe);
        int res = cqe->res;

        io_uring_cqe_seen(&r->ring, cqe);
        r->inflight--;
        ring_complete(r, req, res);
        any = true;
    }
    return any;
}

static void ring_event(void *arg, uint32_t events)
{
    ring_reap(arg);
}

/* ---- submission ------------------------------------------------------------------- */

static void ring_flush(struct file_ring *r)
{
    int n = io_uring_submit(&r->ring);

    if (n > 0)
        r->queued -= BLK_MIN((unsigned)n, r->queued);
}

static bool ring_hook(void *arg)
{
    struct file_ring *r = arg;

    if (!r->inflight)
        return false;
    if (r->queued)
        ring_flush(r);
    /* What the kernel did not take (no memory just now) is tried again at the next
     * turn, which must therefore come. */
    return ring_reap(r) || r->queued;
}

static bool ring_prep(struct file_ring *r, struct file_state *f, struct blk_req *req)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);

    if (!sqe) {
        ring_flush(r);
        sqe = io_uring_get_sqe(&r->ring);
        if (!sqe)
            return false;
    }
    if (req->op == BLK_READ)
        io_uring_prep_readv(sqe, f->fd, req->iov, (unsigned)req->iovcnt, req->offset);
    else if (req->op == BLK_WRITE)
        io_uring_prep_writev(sqe, f->fd, req->iov, (unsigned)req->iovcnt, req->offset);
    else
        io_uring_prep_fsync(sqe, f->fd, IORING_FSYNC_DATASYNC);
    io_uring_sqe_set_data(sqe, req);
    r->queued++;
    r->inflight++;
    return true;
}

/* ---- the ring's life ---------------------------------------------------------------- */

static int ring_init(struct io_uring *ring)
{
    static const unsigned wishes[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CQSIZE,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CQSIZE,
        IORING_SETUP_CQSIZE,
        0,
    };
    int ret = -EINVAL;

    for (size_t i = 0; i < BLK_ARRAY_SIZE(wishes) && ret == -EINVAL; i++) {
        struct io_uring_params p = { .flags = wishes[i], .cq_entries = 4 * RING_ENTRIES };

        ret = io_uring_queue_init_params(RING_ENTRIES, ring, &p);
        /* Without NODROP completions could be lost. */
        if (ret == 0 && !(p.features & IORING_FEAT_NODROP)) {
            io_uring_queue_exit(ring);
            return -ENOSYS;
        }
    }
    return ret;
}

static int ring_watch(struct file_ring *r)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int ret;

    if (fd < 0)
        return -errno;
    r->watch = (struct blk_watch){ .fd = fd, .events = EPOLLIN | (uint32_t)EPOLLET,
                                   .fn = ring_event, .arg = r };
    ret = io_uring_register_eventfd(&r->ring, fd);
    if (ret == 0)
        ret = blk_watch_add(r->engine->loop, &r->watch);
    if (ret < 0)
        close(fd);
    return ret;
}

static struct file_ring *ring_new(struct file_engine *e)
{
    struct file_ring *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    if (ring_init(&r->ring) < 0)
        goto fail;
    r->engine = e;
    r->owner = pthread_self();
    if (ring_watch(r) < 0) {
        io_uring_queue_exit(&r->ring);
        goto fail;
    }
    r->hook = (struct blk_hook){ .fn = ring_hook, .arg = r };
    blk_hook_add(e->loop, &r->hook);
    return r;

fail:
    free(r);
    return NULL;
}

void file_ring_free(struct file_ring *r)
{
    blk_hook_del(r->engine->loop, &r->hook);
    blk_watch_del(r->engine->loop, &r->watch);
    io_uring_queue_exit(&r->ring);
    close(r->watch.fd);
    free(r);
}

int file_ring_submit(struct file_engine *e, struct file_state *f, struct blk_req *req)
{
    bool rw = req->op == BLK_READ || req->op == BLK_WRITE;

    /* Zeroing and discarding need a chain of fallbacks; partly done requests
     * need their buffers cut: both are a thread's. */
    if ((!rw && req->op != BLK_FLUSH) || file_tail(req)->done || req->iovcnt > FILE_IOV_MAX)
        return -ENOTSUP;
    if (e->ring && !pthread_equal(e->ring->owner, pthread_self())) {
        if (e->ring->inflight)
            return -EBUSY;
        file_ring_free(e->ring);
        e->ring = NULL;
    }
    if (!e->ring && !e->ring_refused) {
        e->ring = ring_new(e);
        e->ring_refused = !e->ring;
    }
    if (!e->ring)
        return -ENOSYS;
    return ring_prep(e->ring, f, req) ? 0 : -EBUSY;
}

#else

int file_ring_submit(struct file_engine *e, struct file_state *f, struct blk_req *req)
{
    return -ENOSYS;
}

void file_ring_free(struct file_ring *r)
{
}

#endif
