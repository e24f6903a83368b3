/*
 * file_engine.c - the per-loop engine registry and the thread engine.
 *
 * A loop's file nodes share one engine: a chain of hundreds of files has one ring
 * and one pool, and a command that needs neither pays for neither.
 *
 * Pool threads touch of a request only its description, its buffers and its tail;
 * the result travels in tail->done and is acted upon by the owner thread.
 */
#include "protocols/file_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FILE_POOL_THREADS 16u
#define FILE_IOV_PART 64

/* ---- registry ------------------------------------------------------------------- */

static pthread_mutex_t engines_lock = PTHREAD_MUTEX_INITIALIZER;
static struct file_engine *engines;

struct file_engine *file_engine_get(struct blk_loop *l)
{
    struct file_engine *e;

    pthread_mutex_lock(&engines_lock);
    for (e = engines; e && e->loop != l; e = e->next)
        ;
    if (!e && (e = calloc(1, sizeof(*e)))) {
        e->loop = l;
        pthread_mutex_init(&e->write_lock, NULL);
        e->next = engines;
        engines = e;
    }
    if (e)
        e->refs++;
    pthread_mutex_unlock(&engines_lock);
    return e;
}

void file_engine_put(struct file_engine *e)
{
    bool last;

    pthread_mutex_lock(&engines_lock);
    last = --e->refs == 0;
    if (last) {
        struct file_engine **p = &engines;

        while (*p != e)
            p = &(*p)->next;
        *p = e->next;
    }
    pthread_mutex_unlock(&engines_lock);
    if (!last)
        return;
    if (e->ring)
        file_ring_free(e->ring);
    if (e->pool)
        blk_pool_free(e->pool);
    pthread_mutex_destroy(&e->write_lock);
    free(e);
}

void file_engine_submit(struct file_state *f, struct blk_req *req)
{
    /* The ring copies page-cached data on this thread, which is cheaper than waking
     * another while it is little; much is better copied beside it. */
    bool ring = f->aio == FILE_AIO_URING ||
                (f->aio == FILE_AIO_AUTO && (f->direct || req->length <= FILE_INLINE_MAX));

    if (ring && file_ring_submit(f->engine, f, req) == 0)
        return;
    file_threads_submit(f->engine, req);
}

/* ---- blocking operations: pool threads, or inline where nothing sleeps ------------ */

static int file_rw_blocking(struct file_state *f, struct blk_req *req, uint64_t done)
{
    struct iovec part[FILE_IOV_PART];

    while (done < req->length) {
        int cnt = file_iov_rest(req, done, part, FILE_IOV_PART);
        off_t at = (off_t)(req->offset + done);
        ssize_t r = req->op == BLK_READ ? preadv(f->fd, part, cnt, at)
                                        : pwritev(f->fd, part, cnt, at);

        if (r < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (r < 0) {
            /* O_DIRECT cannot go on from an unaligned end of file. */
            if (errno == EINVAL && req->op == BLK_READ && done & (f->align - 1))
                r = 0;
            else
                return -errno;
        }
        if (r == 0 && req->op == BLK_WRITE)
            return -ENOSPC;
        if (r == 0) {
            blk_iov_zero(req->iov, req->iovcnt, done, req->length - done);
            return 0;
        }
        done += (uint64_t)r;
    }
    return 0;
}

/* copy_file_range() shares the blocks where the file system can, or has the server copy.
 * What it does not do, whether it refuses, fails or makes no progress, is not supported:
 * reading and writing finds out what is wrong. */
static int file_copy_blocking(struct file_state *f, const struct blk_req *req)
{
    const struct file_state *from = req->from->state;
    off64_t src = (off64_t)req->from_offset, dst = (off64_t)req->offset;
    uint64_t left = req->length;

    while (left) {
        ssize_t r = copy_file_range(from->fd, &src, f->fd, &dst, left, 0);

        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return -ENOTSUP;
        left -= (uint64_t)r;
    }
    return 0;
}

static int file_fallocate(int fd, int mode, uint64_t off, uint64_t len)
{
    int ret;

    do {
        ret = fallocate(fd, mode, (off_t)off, (off_t)len);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

static bool file_refused(int ret)
{
    return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -ENOTTY || ret == -EPERM;
}

static int file_range_ioctl(int fd, unsigned long cmd, uint64_t off, uint64_t len)
{
    uint64_t range[2] = { off, len };
    int ret;

    do {
        ret = ioctl(fd, cmd, range);
    } while (ret < 0 && errno == EINTR);
    if (ret < 0)
        return file_refused(-errno) ? -ENOTSUP : -errno;
    return 0;
}

/* -ENOTSUP once it is known not to work. */
static int file_punch(struct file_state *f, uint64_t off, uint64_t len)
{
    int ret;

    if (__atomic_load_n(&f->no_punch, __ATOMIC_RELAXED))
        return -ENOTSUP;
    ret = file_fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
    if (!file_refused(ret))
        return ret;
    __atomic_store_n(&f->no_punch, true, __ATOMIC_RELAXED);
    return -ENOTSUP;
}

int file_zero_blocking(struct file_state *f, uint64_t off, uint64_t len, bool unmap)
{
    int ret;

    if (f->kind != FILE_REGULAR)
        return file_range_ioctl(f->fd, BLKZEROOUT, off, len);
    if (unmap) {
        ret = file_punch(f, off, len);
        if (ret != -ENOTSUP)
            return ret;
    }
    if (!__atomic_load_n(&f->no_zero_range, __ATOMIC_RELAXED)) {
        ret = file_fallocate(f->fd, FALLOC_FL_ZERO_RANGE, off, len);
        if (!file_refused(ret))
            return ret;
        __atomic_store_n(&f->no_zero_range, true, __ATOMIC_RELAXED);
    }
    /* tmpfs: a hole, then the space back, since it is not to be given up. */
    ret = file_punch(f, off, len);
    if (ret == 0)
        ret = file_fallocate(f->fd, 0, off, len);
    return file_refused(ret) ? -ENOTSUP : ret;
}

int file_discard_blocking(struct file_state *f, uint64_t off, uint64_t len)
{
    if (f->kind != FILE_REGULAR)
        return file_range_ioctl(f->fd, BLKDISCARD, off, len);
    return file_punch(f, off, len);
}

/* ---- the thread engine -------------------------------------------------------------- */

/* On a memory file system all a thread does is copy: more of them than processors
 * only get in each other's way. */
static struct blk_pool *file_pool(struct file_engine *e, const struct file_state *f)
{
    if (f && f->memory_fs)
        return blk_pool_cpu();
    if (!e->pool)
        e->pool = blk_pool_new(FILE_POOL_THREADS);
    return e->pool;
}

static struct blk_req *file_work_req(struct blk_work *w)
{
    struct file_tail *t = blk_container_of(w, struct file_tail, work);

    return (struct blk_req *)((char *)t - offsetof(struct blk_req, drv));
}

/* Buffered writes to one regular file exclude each other in the kernel, and threads
 * that wait there spin: they wait here instead. */
static bool file_one_writer(const struct file_state *f, const struct blk_req *req)
{
    return req->op == BLK_WRITE && f->kind == FILE_REGULAR && !f->direct;
}

/* May req be written now?  If not, it is once those before it are. */
static bool file_write_begin(struct file_state *f, struct blk_req *req)
{
    bool now;

    pthread_mutex_lock(&f->engine->write_lock);
    now = !f->writing;
    f->writing = true;
    if (!now) {
        req->next = NULL;
        *(f->writes ? f->writes_last : &f->writes) = req;
        f->writes_last = &req->next;
    }
    pthread_mutex_unlock(&f->engine->write_lock);
    return now;
}

/* The writing thread starts the next write itself: no trip to the owner between. */
static void file_write_end(struct file_state *f)
{
    struct file_engine *e = f->engine;
    struct blk_req *next;

    pthread_mutex_lock(&e->write_lock);
    next = f->writes;
    f->writing = next != NULL;
    if (next)
        f->writes = next->next;
    pthread_mutex_unlock(&e->write_lock);
    if (next)
        blk_pool_submit(file_pool(f->engine, f), &file_tail(next)->work);
}

static void file_work_fn(struct blk_work *w)
{
    struct blk_req *req = file_work_req(w);
    struct file_state *f = req->node->state;
    struct file_tail *t = file_tail(req);

    switch (req->op) {
    case BLK_READ:
    case BLK_WRITE:
        t->done = file_rw_blocking(f, req, (uint64_t)t->done);
        if (file_one_writer(f, req))
            file_write_end(f);
        break;
    case BLK_COPY:
        t->done = file_copy_blocking(f, req);
        break;
    case BLK_FLUSH:
        t->done = fdatasync(f->fd) < 0 ? -errno : 0;
        break;
    case BLK_WRITE_ZEROES:
        t->done = file_zero_blocking(f, req->offset, req->length,
                                     req->flags & BLK_REQ_MAY_UNMAP);
        break;
    case BLK_DISCARD:
        t->done = file_discard_blocking(f, req->offset, req->length);
        break;
    default:
        t->done = -ENOTSUP;
        break;
    }
}

static void file_work_done(struct blk_work *w)
{
    struct blk_req *req = file_work_req(w);

    file_finish(req, (int)file_tail(req)->done);
}

void file_threads_submit(struct file_engine *e, struct blk_req *req)
{
    struct file_state *f = req->node->state;
    struct file_tail *t = file_tail(req);
    struct blk_pool *pool = file_pool(e, f);

    if (!pool) {
        file_finish(req, -ENOMEM);
        return;
    }
    t->work.fn = file_work_fn;
    t->work.done = file_work_done;
    t->work.loop = e->loop;
    if (!file_one_writer(f, req) || file_write_begin(f, req))
        blk_pool_submit(pool, &t->work);
}

/* ---- control operations that block ---------------------------------------------------- */

struct file_co_work {
    struct blk_work work;
    int (*fn)(void *arg);
    void *arg;
    int ret;
    struct co *co;
};

static void file_co_work_fn(struct blk_work *w)
{
    struct file_co_work *cw = blk_container_of(w, struct file_co_work, work);

    cw->ret = cw->fn(cw->arg);
}

static void file_co_work_done(struct blk_work *w)
{
    co_wake(blk_container_of(w, struct file_co_work, work)->co);
}

int file_co_work(struct file_engine *e, int (*fn)(void *arg), void *arg)
{
    struct file_co_work cw = {
        .work = { .fn = file_co_work_fn, .done = file_co_work_done, .loop = e->loop },
        .fn = fn, .arg = arg, .co = co_self(),
    };
    struct blk_pool *pool = file_pool(e, NULL);

    if (!pool)
        return -ENOMEM;
    blk_pool_submit(pool, &cw.work);
    co_yield();
    return cw.ret;
}
