/*
 * file_place.h - what the tests of the "file" driver share: a place (loop, directory,
 * image) to test in, and faults.
 *
 * What a disk does only on a bad day (short counts, EINTR, ENOSPC, a failed sync) is
 * injected by wrapping libc's calls (-Wl,--wrap, see the Makefile); each program that
 * includes this gets its own.  Not every program uses all of it.
 */
#ifndef PLATTER_TESTS_FILE_PLACE_H
#define PLATTER_TESTS_FILE_PLACE_H

#pragma GCC diagnostic ignored "-Wunused-function"

#include "block/driver.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/un.h>
#include <dirent.h>
#include <signal.h>
#include <unistd.h>
#include <cmocka.h>
#ifdef HAVE_URING
#include <liburing.h>
#endif

/* ---- faults ---------------------------------------------------------------------- */

static struct {
    int short_by;               /* reads and writes move at most this much */
    int eintr;                  /* every so many calls one is interrupted */
    int write_errno, sync_errno, close_errno, fallocate_errno, seek_errno;
    int prealloc_errno, direct_errno, nowait_errno, ring_errno;
    int calls, syncs, seeks, rings;
} fault;

ssize_t __real_preadv(int, const struct iovec *, int, off_t);
ssize_t __real_pwritev(int, const struct iovec *, int, off_t);
ssize_t __real_preadv2(int, const struct iovec *, int, off_t, int);
int __real_fdatasync(int);
int __real_close(int);
int __real_fallocate(int, int, off_t, off_t);
int __real_posix_fallocate(int, off_t, off_t);
off_t __real_lseek(int, off_t, int);
int __real_open(const char *, int, ...);
ssize_t __wrap_preadv(int, const struct iovec *, int, off_t);
ssize_t __wrap_pwritev(int, const struct iovec *, int, off_t);
ssize_t __wrap_preadv2(int, const struct iovec *, int, off_t, int);
int __wrap_fdatasync(int);
int __wrap_close(int);
int __wrap_fallocate(int, int, off_t, off_t);
int __wrap_posix_fallocate(int, off_t, off_t);
off_t __wrap_lseek(int, off_t, int);
int __wrap_open(const char *, int, ...);

static bool interrupted(void)
{
    int n = __atomic_add_fetch(&fault.calls, 1, __ATOMIC_RELAXED);
    return fault.eintr && n % fault.eintr == 0;
}

static int shorten(const struct iovec *iov, struct iovec *one)
{
    one->iov_base = iov->iov_base;
    one->iov_len = BLK_MIN(iov->iov_len, (size_t)fault.short_by);
    return 1;
}

#define FAIL(e) do { errno = (e); return -1; } while (0)

ssize_t __wrap_preadv(int fd, const struct iovec *iov, int cnt, off_t off)
{
    struct iovec one;
    if (interrupted())
        FAIL(EINTR);
    if (fault.short_by)
        return __real_preadv(fd, &one, shorten(iov, &one), off);
    return __real_preadv(fd, iov, cnt, off);
}

ssize_t __wrap_preadv2(int fd, const struct iovec *iov, int cnt, off_t off, int flags)
{
    struct iovec one;
    if (interrupted())
        FAIL(EINTR);
    if (fault.nowait_errno && flags)
        FAIL(fault.nowait_errno);
    if (fault.short_by)
        return __real_preadv2(fd, &one, shorten(iov, &one), off, flags);
    return __real_preadv2(fd, iov, cnt, off, flags);
}

ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int cnt, off_t off)
{
    struct iovec one;
    if (interrupted())
        FAIL(EINTR);
    if (fault.write_errno)
        FAIL(fault.write_errno);
    if (fault.short_by)
        return __real_pwritev(fd, &one, shorten(iov, &one), off);
    return __real_pwritev(fd, iov, cnt, off);
}

int __wrap_fdatasync(int fd)
{
    __atomic_add_fetch(&fault.syncs, 1, __ATOMIC_RELAXED);
    if (fault.sync_errno)
        FAIL(fault.sync_errno);
    return __real_fdatasync(fd);
}

int __wrap_close(int fd)
{
    int ret = __real_close(fd);
    if (fault.close_errno)
        FAIL(fault.close_errno);
    return ret;
}

int __wrap_fallocate(int fd, int mode, off_t off, off_t len)
{
    if (fault.fallocate_errno)
        FAIL(fault.fallocate_errno);
    return __real_fallocate(fd, mode, off, len);
}

int __wrap_posix_fallocate(int fd, off_t off, off_t len)
{
    if (fault.prealloc_errno) {
        /* As a full disk does: some of it is there already. */
        (void)!ftruncate(fd, off + len / 2);
        return fault.prealloc_errno;
    }
    return __real_posix_fallocate(fd, off, len);
}

off_t __wrap_lseek(int fd, off_t off, int whence)
{
    if (whence == SEEK_DATA || whence == SEEK_HOLE)
        fault.seeks++;
    if (fault.seek_errno && (whence == SEEK_DATA || whence == SEEK_HOLE))
        FAIL(fault.seek_errno);
    return __real_lseek(fd, off, whence);
}

int __wrap_open(const char *path, int flags, ...)
{
    va_list ap;
    mode_t mode;
    va_start(ap, flags);
    mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    if (fault.direct_errno && flags & O_DIRECT)
        FAIL(fault.direct_errno);
    return __real_open(path, flags, mode);
}

#ifdef HAVE_URING
int __real_io_uring_queue_init_params(unsigned, struct io_uring *, struct io_uring_params *);
int __wrap_io_uring_queue_init_params(unsigned, struct io_uring *, struct io_uring_params *);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *p)
{
    fault.rings++;
    return fault.ring_errno ? -fault.ring_errno
                            : __real_io_uring_queue_init_params(entries, ring, p);
}
#endif

/* ---- the place of a test ------------------------------------------------------------ */

/* One of each is run for every combination that a test asks for. */
struct place {
    struct blk_loop *loop;
    struct blk_node *node;
    const char *aio;            /* NULL: the driver's choice */
    char dir[200], path[256];
    struct blk_error e;
};

/* Memory has no sectors: where TMPDIR is a tmpfs, "not memory" is elsewhere. */
static const char *place_root(bool memory)
{
    const char *tmp = getenv("TMPDIR");
    struct statfs fs;

    if (memory)
        return "/dev/shm";
    return tmp && !statfs(tmp, &fs) && fs.f_type != TMPFS_MAGIC ? tmp : "/var/tmp";
}

/* A test that fails leaves its place through longjmp: what is left then goes here. */
static char place_left[200];

static void place_sweep(void)
{
    char path[512];
    struct dirent *d;
    DIR *dir = *place_left ? opendir(place_left) : NULL;

    while (dir && (d = readdir(dir))) {
        snprintf(path, sizeof(path), "%s/%s", place_left, d->d_name);
        unlink(path);
    }
    if (dir)
        closedir(dir);
    rmdir(place_left);
    *place_left = 0;
}

static void place_make(struct place *p, bool memory, const char *aio)
{
    static bool registered;
    int fd;

    if (!registered)
        registered = atexit(place_sweep) == 0;
    if (*place_left)
        place_sweep();

    memset(p, 0, sizeof(*p));
    memset(&fault, 0, sizeof(fault));
    snprintf(p->dir, sizeof(p->dir), "%s/platter-file-XXXXXX", place_root(memory));
    assert_non_null(mkdtemp(p->dir));
    memcpy(place_left, p->dir, sizeof(place_left));
    snprintf(p->path, sizeof(p->path), "%s/a.img", p->dir);
    fd = __real_open(p->path, O_CREAT | O_RDWR, 0600);
    assert_true(fd >= 0);
    __real_close(fd);
    p->aio = aio;
    p->loop = blk_loop_new(NULL);
    assert_non_null(p->loop);
}

static int place_open_opts(struct place *p, unsigned flags, const char *text)
{
    struct blk_opts *o = blk_opts_new();
    struct blk_open_args a = { .opts = o, .flags = flags };
    int ret;

    blk_error_clear(&p->e);
    assert_int_equal(blk_opts_parse(o, text, NULL, &p->e), 0);
    blk_opts_set(o, "driver", "file");
    blk_opts_set(o, "filename", p->path);
    if (p->aio)
        blk_opts_set(o, "aio", p->aio);
    ret = blk_open(p->loop, &a, &p->node, &p->e);
    blk_opts_free(o);
    return ret;
}

static void place_open(struct place *p, unsigned flags)
{
    if (place_open_opts(p, flags, "") < 0)
        fail_msg("%s", p->e.text);
}

static int place_close(struct place *p)
{
    int ret = blk_close(p->node, &p->e);
    p->node = NULL;
    return ret;
}

static void place_end(struct place *p)
{
    memset(&fault, 0, sizeof(fault));
    if (p->node)
        assert_int_equal(place_close(p), 0);
    blk_loop_free(p->loop);
    unlink(p->path);
    assert_int_equal(rmdir(p->dir), 0);
    *place_left = 0;
}

static void place_size(struct place *p, uint64_t size)
{
    assert_int_equal(truncate(p->path, (off_t)size), 0);
}

/* Calls from outside fibers, so that tests read straight. */
struct call {
    struct blk_node *n;
    uint64_t off, len;
    void *buf;
    unsigned flags;
    struct blk_status st;
};
static int call_read(void *a) { struct call *c = a; return co_read(c->n, c->off, c->buf, c->len); }
static int call_write(void *a)
{
    struct call *c = a;
    return co_write(c->n, c->off, c->buf, c->len, c->flags);
}
static int call_zero(void *a)
{
    struct call *c = a;
    return co_write_zeroes(c->n, c->off, c->len, c->flags);
}
static int call_discard(void *a) { struct call *c = a; return co_discard(c->n, c->off, c->len); }
static int call_flush(void *a) { struct call *c = a; return co_flush(c->n); }
static int call_status(void *a)
{
    struct call *c = a;
    return co_status(c->n, c->off, c->len, &c->st);
}

static int do_read(struct place *p, uint64_t off, void *buf, size_t len)
{
    struct call c = { .n = p->node, .off = off, .buf = buf, .len = len };
    return blk_run(p->loop, call_read, &c);
}
static int do_write(struct place *p, uint64_t off, void *buf, size_t len)
{
    struct call c = { .n = p->node, .off = off, .buf = buf, .len = len };
    return blk_run(p->loop, call_write, &c);
}
static int do_zero(struct place *p, uint64_t off, uint64_t len, unsigned flags)
{
    struct call c = { .n = p->node, .off = off, .len = len, .flags = flags };
    return blk_run(p->loop, call_zero, &c);
}
static int do_discard(struct place *p, uint64_t off, uint64_t len)
{
    struct call c = { .n = p->node, .off = off, .len = len };
    return blk_run(p->loop, call_discard, &c);
}
static int do_flush(struct place *p)
{
    struct call c = { .n = p->node };
    return blk_run(p->loop, call_flush, &c);
}
static struct blk_status do_status(struct place *p, uint64_t off, uint64_t len)
{
    struct call c = { .n = p->node, .off = off, .len = len };
    assert_int_equal(blk_run(p->loop, call_status, &c), 0);
    return c.st;
}

static int64_t blocks_of(const struct place *p)
{
    struct stat st;
    assert_int_equal(stat(p->path, &st), 0);
    return st.st_blocks * 512;
}

#endif
