/*
 * file_ops.c - control operations of the "file" driver: where holes are, resizing,
 * creating.  The words of the errors are QEMU's, since scripts read them.
 */
#include "protocols/file_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_FULL_CHUNK (1u << 20)

const char *file_path(const struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    const char *s = blk_opts_get(o, "filename");

    if (!s || !*s) {
        blk_err(e, EINVAL, "The '%s' block driver requires a file name", n->drv->name);
        return NULL;
    }
    return s;
}

/* ---- status -------------------------------------------------------------------------- */

/* Fill f->extent with what is at off.  lseek works on what the file system has in
 * memory, so this is not handed to a thread. */
static int ops_find_extent(struct file_state *f, uint64_t off, uint64_t size)
{
    off_t data, hole;

    f->extent.start = f->extent.end = 0;
    data = lseek(f->fd, (off_t)off, SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
        /* A hole to the end, or the file ends before off: reads as zeros too. */
        f->extent.data = false;
        f->extent.start = off;
        f->extent.end = size;
        return 0;
    }
    if (data < 0 || (uint64_t)data < off)
        return -ENOTSUP;
    if ((uint64_t)data > off) {
        f->extent.data = false;
        f->extent.start = off;
        f->extent.end = (uint64_t)data;
        return 0;
    }
    hole = lseek(f->fd, (off_t)off, SEEK_HOLE);
    /* Truncated under our feet if off is no longer data: then call it data. */
    if (hole < 0 || (uint64_t)hole <= off)
        return -ENOTSUP;
    f->extent.data = true;
    f->extent.start = off;
    f->extent.end = (uint64_t)hole;
    return 0;
}

int file_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    struct file_state *f = n->state;
    uint64_t end = off + len;
    bool data = true;

    if (f->kind == FILE_REGULAR && !f->no_seek) {
        bool known = off >= f->extent.start && off < f->extent.end;

        if (!known && ops_find_extent(f, off, BLK_MAX(n->size, end)) < 0) {
            f->no_seek = true;
        } else {
            data = f->extent.data;
            end = BLK_MIN(end, f->extent.end);
        }
    }
    blk_status_at(st, n, off, end - off, data ? BLK_ST_DATA : BLK_ST_ZERO);
    return 0;
}

/* ---- truncate -------------------------------------------------------------------------- */

struct ops_resize {
    int fd;
    uint64_t from, to;
    enum blk_prealloc prealloc;
    struct blk_error *e;
};

static int ops_write_zeros(int fd, uint64_t off, uint64_t end, struct blk_error *e)
{
    char *buf = calloc(1, FILE_FULL_CHUNK);

    if (!buf)
        return blk_err_errno(e, ENOMEM, "Could not write zeros for preallocation");
    while (off < end) {
        ssize_t r = pwrite(fd, buf, BLK_MIN(end - off, FILE_FULL_CHUNK), (off_t)off);

        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0) {
            int err = r < 0 ? errno : ENOSPC;

            free(buf);
            return blk_err_errno(e, err, "Could not write zeros for preallocation");
        }
        off += (uint64_t)r;
    }
    free(buf);
    if (fsync(fd) < 0)
        return blk_err_errno(e, errno, "Could not flush file to disk");
    return 0;
}

static int ops_set_size(int fd, uint64_t size, struct blk_error *e)
{
    int ret;

    if (size > INT64_MAX)
        return blk_err_errno(e, EINVAL, "Could not resize file");
    do {
        ret = ftruncate(fd, (off_t)size);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? blk_err_errno(e, errno, "Could not resize file") : 0;
}

/* As QEMU: a file's first block is never a hole, so that probing the alignment of direct
 * I/O has something to read.  Best effort. */
static void ops_allocate_first(const struct ops_resize *r)
{
    static const char zeros[4096];

    if (r->from == 0 && r->to > 0)
        (void)!pwrite(r->fd, zeros, r->to < sizeof(zeros) ? 512 : sizeof(zeros), 0);
}

static int ops_preallocate(const struct ops_resize *r)
{
    int ret;

    if (r->prealloc == BLK_PREALLOC_FULL) {
        /* The final size first: the file system can plan for it. */
        ret = ops_set_size(r->fd, r->to, r->e);
        return ret < 0 ? ret : ops_write_zeros(r->fd, r->from, r->to, r->e);
    }
    if (r->to == r->from)
        return 0;
    do {
        ret = posix_fallocate(r->fd, (off_t)r->from, (off_t)(r->to - r->from));
    } while (ret == EINTR);
    if (ret == 0)
        ops_allocate_first(r);
    return ret ? blk_err_errno(r->e, ret, "Could not preallocate new data") : 0;
}

/* Blocking. A failure leaves the old length. */
static int ops_resize(void *arg)
{
    const struct ops_resize *r = arg;
    int ret;

    if (r->prealloc == BLK_PREALLOC_OFF) {
        ret = ops_set_size(r->fd, r->to, r->e);
        if (ret == 0)
            ops_allocate_first(r);
        return ret;
    }
    if (r->to < r->from)
        return blk_err(r->e, ENOTSUP, "Cannot use preallocation for shrinking files");
    if (r->prealloc == BLK_PREALLOC_METADATA)
        return blk_err(r->e, ENOTSUP, "Unsupported preallocation mode: metadata");
    if (r->to > INT64_MAX)
        return blk_err_errno(r->e, EFBIG, "Could not resize file");
    ret = ops_preallocate(r);
    if (ret < 0 && ftruncate(r->fd, (off_t)r->from) < 0)
        blk_report("Failed to restore old file length: %s", strerror(errno));
    return ret;
}

struct ops_range {
    int fd;
    uint64_t off, len;
};

static int ops_reserve(void *arg)
{
    const struct ops_range *r = arg;
    int ret;

    do {
        ret = fallocate(r->fd, 0, (off_t)r->off, (off_t)r->len);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

void file_reserve(struct blk_node *n, uint64_t off, uint64_t len)
{
    struct file_state *f = n->state;
    struct ops_range r = { f->fd, off, len };
    int ret;

    if (f->kind != FILE_REGULAR)
        return;
    f->extent.start = f->extent.end = 0;
    ret = f->memory_fs ? ops_reserve(&r) : file_co_work(f->engine, ops_reserve, &r);
    if (ret == 0)
        n->size = BLK_MAX(n->size, off + len);
}

/* A format that needs less than the device has is content: 0, and the node's size
 * stays what the device's is. */
static int ops_truncate_device(struct blk_node *n, uint64_t size, enum blk_prealloc p,
                               struct blk_error *e)
{
    struct file_state *f = n->state;
    uint64_t now;
    int ret;

    if (p != BLK_PREALLOC_OFF)
        return blk_err(e, ENOTSUP, "Preallocation mode '%s' unsupported for this non-regular file",
                       p == BLK_PREALLOC_FALLOC ? "falloc" :
                       p == BLK_PREALLOC_FULL ? "full" : "metadata");
    ret = file_probe_length(f, &now);
    if (ret < 0)
        return blk_err_errno(e, -ret, "Could not get the length of the device");
    if (size != now && n->oflags & BLK_O_EXACT)
        return blk_err(e, ENOTSUP, "Cannot resize device files");
    if (size > now)
        return blk_err(e, EINVAL, "Cannot grow device files");
    return 0;
}

int file_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                  struct blk_error *e)
{
    struct file_state *f = n->state;
    struct ops_resize r = { .fd = f->fd, .to = size, .prealloc = p, .e = e };
    int ret;

    f->extent.start = f->extent.end = 0;
    if (f->kind != FILE_REGULAR)
        return ops_truncate_device(n, size, p, e);
    ret = file_probe_length(f, &r.from);
    if (ret < 0)
        return blk_err_errno(e, -ret, "Could not get the length of '%s'", n->shown);
    /* Setting a size is quick; freeing or filling much is not. */
    if (p == BLK_PREALLOC_OFF && size >= r.from)
        ret = ops_resize(&r);
    else
        ret = file_co_work(f->engine, ops_resize, &r);
    f->extent.start = f->extent.end = 0;
    if (ret == 0)
        n->size = size;
    return ret;
}

/* ---- create ------------------------------------------------------------------------------ */

const struct blk_option_desc file_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "nocow", BLK_OPT_BOOL, "Turn off copy-on-write (valid only on btrfs)", NULL },
    { "preallocation", BLK_OPT_STRING, "Preallocation mode (allowed values: off, falloc, full)",
      NULL },
    { "extent_size_hint", BLK_OPT_SIZE,
      "Extent size hint for the image file, 0 to disable", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

struct ops_create_opts {
    uint64_t size, extent_hint;
    bool hint_asked;
    bool nocow;
    enum blk_prealloc prealloc;
};

static int ops_parse_create(struct blk_opts *o, struct ops_create_opts *c, struct blk_error *e)
{
    const char *p = blk_opts_get(o, "preallocation");
    int ret;

    *c = (struct ops_create_opts){ .extent_hint = 1u << 20 };
    ret = blk_opts_get_size(o, "size", &c->size, e);
    if (ret == 0)
        ret = blk_opts_get_size(o, "extent_size_hint", &c->extent_hint, e);
    c->hint_asked = blk_opts_has(o, "extent_size_hint");
    if (ret == 0)
        ret = blk_opts_get_bool(o, "nocow", &c->nocow, e);
    if (ret == 0 && p && blk_parse_prealloc(p, &c->prealloc, NULL) < 0)
        ret = blk_err(e, EINVAL, "invalid parameter value: %s", p);
    if (ret == 0 && c->extent_hint > UINT32_MAX)
        ret = blk_err(e, EINVAL, "Extent size hint is too large");
    /* Whole sectors; what does not fit a file is refused by the resize. */
    c->size = blk_align_up(c->size, 512);
    return ret;
}

/* Wishes only: file systems that do not know them go without. */
static void ops_apply_hints(int fd, const struct ops_create_opts *c)
{
    struct fsxattr x = { 0 };
    int attr;

    if (c->extent_hint) {
        int r = ioctl(fd, FS_IOC_FSGETXATTR, &x);

        x.fsx_xflags |= FS_XFLAG_EXTSIZE;
        x.fsx_extsize = (uint32_t)c->extent_hint;
        if ((r < 0 || ioctl(fd, FS_IOC_FSSETXATTR, &x) < 0) && c->hint_asked)
            blk_report("warning: Failed to set extent size hint: %s", strerror(errno));
    }
    if (c->nocow && ioctl(fd, FS_IOC_GETFLAGS, &attr) == 0) {
        attr |= FS_NOCOW_FL;
        (void)!ioctl(fd, FS_IOC_SETFLAGS, &attr);
    }
}

/* O_NONBLOCK: a FIFO in the way is an error, not a wait. */
static int ops_create_fd(const char *path, struct blk_error *e)
{
    int fd;

    do {
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0644);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? blk_err_errno(e, errno, "Could not create '%s'", path) : fd;
}

/* What has no size to set, a device, is refused. */
static int ops_create_sized(struct blk_loop *l, int fd, const char *path,
                            const struct ops_create_opts *c, struct blk_error *e)
{
    struct ops_resize r = { .fd = fd, .from = 0, .to = c->size, .prealloc = c->prealloc, .e = e };
    struct file_engine *engine;
    int ret;

    if (file_lock_supported()) {
        ret = file_lock(fd, path, FILE_PERM_WRITE | FILE_PERM_RESIZE, FILE_PERM_RESIZE, e);
        if (ret < 0)
            return ret;
    }
    ret = ops_set_size(fd, 0, e);
    if (ret < 0)
        return ret;
    ops_apply_hints(fd, c);
    if (c->prealloc == BLK_PREALLOC_OFF)
        return ops_resize(&r);
    engine = file_engine_get(l);
    if (!engine)
        return blk_err_errno(e, ENOMEM, "Could not create '%s'", path);
    ret = file_co_work(engine, ops_resize, &r);
    file_engine_put(engine);
    return ret;
}

/* Only what create() could have made: never a FIFO. */
void file_uncreate(struct blk_opts *o)
{
    const char *path = blk_opts_get(o, "filename");
    struct stat st;

    if (path && stat(path, &st) == 0 && S_ISREG(st.st_mode))
        unlink(path);
}

int file_may_create(struct blk_opts *o, struct blk_error *e)
{
    const char *path = blk_opts_get(o, "filename");
    struct stat st;
    bool there = path && stat(path, &st) == 0;
    int fd = there && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)
             ? 0 : ops_create_fd(path ? path : "", e);

    if (fd > 0) {
        close(fd);
        if (!there)
            unlink(path);
    }
    return BLK_MIN(fd, 0);
}

int file_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                struct blk_error *e)
{
    const char *path = blk_opts_get(o, "filename");
    struct ops_create_opts c;
    int fd, ret;

    if (!path)
        path = "";              /* open() has the words for it */
    ret = ops_parse_create(o, &c, e);
    if (ret < 0)
        return ret;
    blk_survive(SIGXFSZ);
    fd = ops_create_fd(path, e);
    if (fd < 0)
        return fd;
    ret = ops_create_sized(l, fd, path, &c, e);
    if (close(fd) < 0 && ret == 0)
        ret = blk_err_errno(e, errno, "Could not close the new file");
    return ret;
}
