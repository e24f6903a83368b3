/*
 * file.c - local files and devices.
 *
 * A request takes one of three ways:
 *  - inline in submit(), when its data is in memory and copying it is cheaper
 *    than handing it over: small reads that the page cache can answer
 *    (RWF_NOWAIT says so without sleeping), and small reads and writes on memory
 *    file systems, which have no disk to sleep on;
 *  - the loop's io_uring, which the before-wait hook submits in one batch;
 *  - a thread of the loop's pool, where there is no io_uring and for what
 *    io_uring would give to a thread anyway.
 * Whichever way, it completes through file_finish() on the owner thread.
 */
#include "protocols/file_int.h"

#include <assert.h>
#include <errno.h>
#include <jansson.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- completion -------------------------------------------------------------- */

static void file_forget_extent(struct file_state *f)
{
    f->extent.start = f->extent.end = 0;
}

void file_finish(struct blk_req *req, int result)
{
    struct blk_node *n = req->node;
    struct file_state *f = n->state;

    if (result == -EOPNOTSUPP)
        result = -ENOTSUP;
    switch (req->op) {
    case BLK_FLUSH:
        if (result == -EINVAL && f->kind == FILE_CHAR)
            result = 0;         /* /dev/null and the like keep nothing */
        /* After a failed sync the kernel drops the dirty pages and forgets: only
         * we can keep later flushes from claiming success. */
        if (result < 0 && !f->flush_err)
            f->flush_err = result;
        break;
    case BLK_WRITE_ZEROES:
        file_forget_extent(f);
        if (result == -ENOTSUP && !(req->flags & BLK_REQ_MAY_UNMAP))
            n->can_zero = BLK_CAP_EMULATED;
        break;
    case BLK_DISCARD:
        file_forget_extent(f);
        if (result == -ENOTSUP)
            n->can_discard = BLK_CAP_NONE;
        break;
    case BLK_WRITE:
    case BLK_COPY:
        file_forget_extent(f);
        break;
    default:
        break;
    }
    blk_complete(req, result);
}

int file_iov_rest(const struct blk_req *req, uint64_t done, struct iovec *dst, int max)
{
    int cnt = 0;

    for (int i = 0; i < req->iovcnt && cnt < max; i++) {
        const struct iovec *v = &req->iov[i];

        if (done >= v->iov_len) {
            done -= v->iov_len;
            continue;
        }
        dst[cnt].iov_base = (char *)v->iov_base + done;
        dst[cnt].iov_len = v->iov_len - done;
        done = 0;
        cnt++;
    }
    return cnt;
}

/* ---- the inline way ------------------------------------------------------------ */

/* Returns true when req is complete; otherwise tail->done says how far it got. */
static bool file_inline_rw(struct file_state *f, struct blk_req *req)
{
    int flags = f->memory_fs ? 0 : RWF_NOWAIT;
    ssize_t r;

    do {
        if (req->op == BLK_READ)
            r = preadv2(f->fd, req->iov, req->iovcnt, (off_t)req->offset, flags);
        else
            r = pwritev(f->fd, req->iov, req->iovcnt, (off_t)req->offset);
    } while (r < 0 && errno == EINTR);

    if (r == (ssize_t)req->length) {
        file_finish(req, 0);
        return true;
    }
    if (r < 0 && errno == EOPNOTSUPP && flags)
        f->nowait = false;
    else if (r < 0 && errno != EAGAIN) {
        file_finish(req, -errno);
        return true;
    }
    /* A short count may mean "the rest is not cached" or the end of the file;
     * the engine finds out. */
    if (r > 0)
        file_tail(req)->done = r;
    return false;
}

static bool file_inline(struct file_state *f, struct blk_req *req)
{
    bool small = req->length <= FILE_INLINE_MAX && req->iovcnt <= FILE_IOV_MAX;

    switch (req->op) {
    case BLK_READ:
        return small && (f->memory_fs || f->nowait) && file_inline_rw(f, req);
    case BLK_WRITE:
        return small && f->memory_fs && file_inline_rw(f, req);
    case BLK_FLUSH:
        if (f->flush_err) {
            file_finish(req, f->flush_err);
            return true;
        }
        if (f->no_flush || !f->writable) {
            file_finish(req, 0);
            return true;
        }
        if (!f->memory_fs)
            return false;
        file_finish(req, fdatasync(f->fd) < 0 ? -errno : 0);
        return true;
    case BLK_WRITE_ZEROES:
        if (!f->memory_fs || req->length > FILE_INLINE_PUNCH_MAX)
            return false;
        file_finish(req, file_zero_blocking(f, req->offset, req->length,
                                            req->flags & BLK_REQ_MAY_UNMAP));
        return true;
    case BLK_DISCARD:
        if (!f->memory_fs || req->length > FILE_INLINE_PUNCH_MAX)
            return false;
        file_finish(req, file_discard_blocking(f, req->offset, req->length));
        return true;
    default:
        return false;
    }
}

/* Whether the file system does is only known when it is tried. */
static bool file_can_copy(const struct blk_node *n, const struct blk_node *from)
{
    const struct file_state *f = n->state, *src;

    if (from->drv != n->drv)
        return false;
    src = from->state;
    return f->kind == FILE_REGULAR && src->kind == FILE_REGULAR;
}

static void file_submit(struct blk_node *n, struct blk_req *req)
{
    struct file_state *f = n->state;

    file_tail(req)->done = 0;
    if (!file_inline(f, req))
        file_engine_submit(f, req);
}

/* ---- open and close --------------------------------------------------------------- */

static int file_parse_aio(struct blk_opts *o, enum file_aio *out, struct blk_error *e)
{
    const char *s = blk_opts_get(o, "aio");

    if (!s)
        s = getenv("PLATTER_AIO");
    if (!s || !*s)
        *out = FILE_AIO_AUTO;
    else if (!strcmp(s, "threads"))
        *out = FILE_AIO_THREADS;
    else if (!strcmp(s, "io_uring") || !strcmp(s, "native"))
        *out = FILE_AIO_URING;
    else
        return blk_err(e, EINVAL, "invalid parameter value: %s", s);
    return 0;
}

/* QEMU's auto: lock wherever the kernel has OFD locks. */
static int file_parse_locking(struct blk_opts *o, bool *out, struct blk_error *e)
{
    const char *s = blk_opts_get(o, "locking");

    if (!s || !strcmp(s, "auto"))
        *out = file_lock_supported();
    else if (!strcmp(s, "on") || !strcmp(s, "off"))
        *out = !strcmp(s, "on");
    else
        return blk_err(e, EINVAL, "invalid parameter value: %s", s);
    return 0;
}

/* As QEMU does it: raw lets others write unless the user of the image objects,
 * formats do not, nor change the size of what they lie on; who only wants to know
 * the size uses nothing. */
static int file_take_locks(struct blk_node *n, enum blk_lock_use use, struct blk_error *e)
{
    const struct file_state *f = n->state;
    unsigned used = 0, unshared = 0;

    if (!f->locking || n->oflags & BLK_O_SHARE)
        return 0;
    if (!(n->oflags & BLK_O_NO_IO)) {
        used |= FILE_PERM_READ;
        used |= f->writable ? FILE_PERM_WRITE : 0;
    }
    if (f->writable && (use != BLK_LOCK_RAW || n->oflags & BLK_O_RESIZE))
        used |= FILE_PERM_RESIZE;
    if (use == BLK_LOCK_FORMAT || n->oflags & BLK_O_NO_SHARE)
        unshared |= FILE_PERM_WRITE;
    if (use != BLK_LOCK_RAW || n->oflags & BLK_O_NO_SHARE)
        unshared |= FILE_PERM_RESIZE;
    /* A process that was killed lets go of its locks only when the kernel has taken
     * its io_uring down, a moment after it is gone: ask again before refusing. */
    for (int tries = 1;; tries++) {
        struct blk_error le = BLK_ERROR_INIT;
        int ret = file_lock(f->fd, n->shown, used, unshared, &le);

        if (ret != -EAGAIN || tries == FILE_LOCK_TRIES) {
            if (ret < 0 && e && !e->err)
                *e = le;
            return ret;
        }
        co_sleep(FILE_LOCK_PAUSE_NS);
    }
}

/* What only the kernel's asynchronous I/O of direct files could do. */
static int file_check_aio(const struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    const char *aio = blk_opts_get(o, "aio");

    return !aio || strcmp(aio, "native") || n->oflags & BLK_O_DIRECT ? 0
           : blk_err(e, EINVAL, "aio=native was specified, but it requires cache.direct=on, which "
                     "was not specified.");
}

static int file_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    const char *path = file_path(n, o, e);
    struct file_state *f;
    int ret;

    if (!path)
        return -EINVAL;
    blk_survive(SIGXFSZ);
    f = calloc(1, sizeof(*f));
    if (!f)
        return blk_err_errno(e, ENOMEM, "Could not open '%s'", path);
    f->fd = -1;
    ret = file_parse_aio(o, &f->aio, e);
    if (ret == 0)
        ret = file_parse_locking(o, &f->locking, e);
    if (ret < 0)
        goto fail;
    ret = file_probe_open(f, path, n->oflags, n->drv->name, e);
    if (ret < 0)
        goto fail;
    ret = file_check_aio(n, o, e);
    if (ret < 0)
        goto fail;
    f->writable = n->oflags & BLK_O_RDWR;
    f->no_flush = n->oflags & BLK_O_NO_FLUSH;
    ret = file_probe_limits(n, f, path, e);
    if (ret < 0)
        goto fail;
    f->engine = file_engine_get(n->loop);
    if (!f->engine) {
        ret = blk_err_errno(e, ENOMEM, "Could not open '%s'", path);
        goto fail;
    }
    n->state = f;
    return 0;

fail:
    if (f->fd >= 0)
        close(f->fd);
    free(f);
    return ret;
}

static int file_close(struct blk_node *n, struct blk_error *e)
{
    struct file_state *f = n->state;
    int ret = 0;

    if (f->locking)
        file_unlock(f->fd);
    /* NFS and FUSE report lost writes here; retrying close() is wrong on Linux. */
    if (close(f->fd) < 0 && errno != EINTR)
        ret = blk_err_errno(e, errno, "Could not close '%s'", n->shown);
    file_engine_put(f->engine);
    free(f);
    n->state = NULL;
    return ret;
}

static int file_length(struct blk_node *n, uint64_t *out)
{
    return file_probe_length(n->state, out);
}

static int64_t file_allocated_size(struct blk_node *n)
{
    const struct file_state *f = n->state;
    struct stat st;

    if (fstat(f->fd, &st) < 0)
        return -1;
    return (int64_t)st.st_blocks * 512;
}

/* QEMU's schema has a place for what is specific to files, which is mostly empty. */
static int file_info(struct blk_node *n, struct blk_info *out, struct blk_error *e)
{
    const struct file_state *f = n->state;
    struct fsxattr x;

    out->specific = json_object();
    if (out->specific && ioctl(f->fd, FS_IOC_FSGETXATTR, &x) == 0 && x.fsx_extsize)
        json_object_set_new(out->specific, "extent-size-hint", json_integer(x.fsx_extsize));
    return 0;
}

static int file_identity(struct blk_node *n, char *buf, size_t len)
{
    const struct file_state *f = n->state;
    struct stat st;

    if (fstat(f->fd, &st) < 0)
        return -errno;
    snprintf(buf, len, "%llx:%llx", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
    return 0;
}

extern const struct blk_driver blk_file_driver, blk_host_device;

static int device_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                         struct blk_error *e)
{
    return blk_create_in_place(l, &blk_host_device, o, e);
}

static const char *const file_schemes[] = { "file", NULL };
static const char *const device_schemes[] = { "host_device", NULL };

/* One driver under two names, for regular files and for devices. */
#define FILE_OPS \
    .protocol = true, \
    .paths = true, \
    .merge = FILE_INLINE_MAX, \
    .open = file_open, \
    .lock = file_take_locks, \
    .close = file_close, \
    .submit = file_submit, \
    .can_copy = file_can_copy, \
    .reserve = file_reserve, \
    .status = file_status, \
    .info = file_info, \
    .truncate = file_truncate, \
    .allocated_size = file_allocated_size, \
    .length = file_length, \
    .identity = file_identity,

/* Not blk_file: block.h has a function of that name. */
const struct blk_driver blk_file_driver = {
    .name = "file",
    .schemes = file_schemes,
    .create_opts = file_create_opts,
    .create = file_create,
    .uncreate = file_uncreate,
    .may_create = file_may_create,
    FILE_OPS
};

const struct blk_driver blk_host_device = {
    .name = "host_device",
    .schemes = device_schemes,
    .create_opts = blk_in_place_opts,
    .create = device_create,
    FILE_OPS
};
