/*
 * gluster_ops.c - control operations of the "gluster" driver: where holes are, sizes.
 * Each is a call of libgfapi that waits for bricks, made on a pool thread.
 */
#include "protocols/gluster/gluster_int.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#define GLUSTER_FILL_CHUNK (64u << 20)

/* ---- status --------------------------------------------------------------------------- */

struct seek {
    glfs_fd_t *fd;
    uint64_t off, size;
    uint64_t end;               /* of the extent at off */
    bool data;
};

/* Blocking.  -ENOTSUP: nothing to be learnt (volumes without SEEK_DATA, and answers
 * that cannot be). */
static int seek_blocking(void *arg)
{
    struct seek *s = arg;
    off_t data, hole;

    errno = 0;
    data = glfs_lseek(s->fd, (off_t)s->off, SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
        s->data = false;
        s->end = s->size;
        return 0;
    }
    if (data < 0)
        return errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS ? -ENOTSUP
                                                                        : gluster_errno(EIO);
    if ((uint64_t)data < s->off)
        return -ENOTSUP;
    s->data = (uint64_t)data == s->off;
    s->end = (uint64_t)data;
    if (!s->data)
        return 0;
    hole = glfs_lseek(s->fd, (off_t)s->off, SEEK_HOLE);
    if (hole < 0 || (uint64_t)hole <= s->off)
        return -ENOTSUP;
    s->end = (uint64_t)hole;
    return 0;
}

static int status_find(struct blk_node *n, uint64_t off)
{
    struct gluster_state *g = n->state;
    struct seek s = { .fd = g->fd, .off = off, .size = n->size };
    int r = gluster_co_work(n->loop, seek_blocking, &s);

    if (r == -ENOTSUP)
        g->no_seek = true;
    if (r)
        return r;
    g->extent.start = off;
    g->extent.end = BLK_MAX(s.end, off + 1);
    g->extent.data = s.data;
    return 0;
}

int gluster_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    struct gluster_state *g = n->state;
    uint64_t end = off + len;
    bool data = true;

    if (!g->no_seek) {
        bool known = off >= g->extent.start && off < g->extent.end;

        /* Unreachable: data then, whose reading is what waits and fails. */
        if (known || !status_find(n, off)) {
            data = g->extent.data;
            end = BLK_MIN(end, g->extent.end);
        }
    }
    blk_status_at(st, n, off, end - off, data ? BLK_ST_DATA : BLK_ST_ZERO);
    return 0;
}

/* ---- sizes ------------------------------------------------------------------------------ */

struct stat_call {
    glfs_fd_t *fd;
    struct stat st;
};

static int stat_blocking(void *arg)
{
    struct stat_call *s = arg;

    errno = 0;
    return glfs_fstat(s->fd, &s->st) ? gluster_errno(EIO) : 0;
}

static int ops_stat(struct blk_node *n, struct stat *st)
{
    struct gluster_state *g = n->state;
    struct stat_call s = { .fd = g->fd };
    int r = co_self() ? gluster_co_work(n->loop, stat_blocking, &s) : stat_blocking(&s);

    *st = s.st;
    return r;
}

int gluster_length(struct blk_node *n, uint64_t *out)
{
    struct stat st;
    int r = ops_stat(n, &st);

    if (!r)
        *out = (uint64_t)st.st_size;
    return r;
}

int64_t gluster_allocated_size(struct blk_node *n)
{
    struct stat st;

    return ops_stat(n, &st) ? -1 : (int64_t)st.st_blocks * 512;
}

/* The inode number is made of the file's gfid, which is unique in the world. */
int gluster_identity(struct blk_node *n, char *buf, size_t len)
{
    const struct gluster_state *g = n->state;
    struct stat st;
    int r = ops_stat(n, &st);

    if (!r)
        snprintf(buf, len, "gluster:%s:%llx", g->name.volume, (unsigned long long)st.st_ino);
    return r;
}

/* ---- truncate ----------------------------------------------------------------------------- */

static int resize_set(glfs_fd_t *fd, uint64_t size, struct blk_error *e)
{
    if (size > INT64_MAX)
        return blk_err_errno(e, EFBIG, "Could not resize file");
    errno = 0;
    if (glfs_ftruncate(fd, (off_t)size, NULL, NULL))
        return blk_err_errno(e, -gluster_errno(EIO), "Could not resize file");
    return 0;
}

static int resize_fill(glfs_fd_t *fd, uint64_t from, uint64_t to, bool zeros, struct blk_error *e)
{
    while (from < to) {
        uint64_t len = BLK_MIN(to - from, GLUSTER_FILL_CHUNK);

        errno = 0;
        if (zeros ? glfs_zerofill(fd, (off_t)from, (off_t)len)
                  : glfs_fallocate(fd, 0, (off_t)from, len))
            return blk_err_errno(e, -gluster_errno(EIO), "Could not preallocate new data");
        from += len;
    }
    return 0;
}

int gluster_resize(glfs_fd_t *fd, uint64_t from, uint64_t to, enum blk_prealloc p,
                   struct blk_error *e)
{
    int r;

    if (p == BLK_PREALLOC_OFF)
        return resize_set(fd, to, e);
    if (to < from)
        return blk_err(e, ENOTSUP, "Cannot use preallocation for shrinking files");
    if (p == BLK_PREALLOC_METADATA)
        return blk_err(e, ENOTSUP, "Unsupported preallocation mode: metadata");
    r = resize_set(fd, to, e);
    r = r ? r : resize_fill(fd, from, to, p == BLK_PREALLOC_FULL, e);
    if (r)
        resize_set(fd, from, NULL);
    return r;
}

struct resize_call {
    glfs_fd_t *fd;
    uint64_t to;
    enum blk_prealloc p;
    struct blk_error *e;
};

static int truncate_blocking(void *arg)
{
    struct resize_call *c = arg;
    struct stat_call s = { .fd = c->fd };
    int r = stat_blocking(&s);

    if (r)
        return blk_err_errno(c->e, -r, "Could not get the length of the file");
    return gluster_resize(c->fd, (uint64_t)s.st.st_size, c->to, c->p, c->e);
}

int gluster_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                     struct blk_error *e)
{
    struct gluster_state *g = n->state;
    struct resize_call c = { .fd = g->fd, .to = size, .p = p, .e = e };
    int r;

    (void)shrink;
    r = gluster_co_work(n->loop, truncate_blocking, &c);
    g->extent.start = g->extent.end = 0;
    if (!r)
        n->size = size;
    return r;
}
