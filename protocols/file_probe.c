/*
 * file_probe.c - what was opened, and what it wants.
 *
 * open() comes first and questions after, so that nothing can change in between;
 * O_NONBLOCK keeps a FIFO or a device without medium from hanging it.  Reading to
 * probe happens only for O_DIRECT where no interface tells the alignment.
 */
#include "protocols/file_int.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/stat.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#define FILE_ALIGN_MAX 65536u
#ifndef RAMFS_MAGIC
#define RAMFS_MAGIC 0x858458f6
#endif

/* ---- open ------------------------------------------------------------------------ */

static int probe_open_fd(const char *path, int flags, struct blk_error *e)
{
    int fd;

    do {
        fd = open(path, flags);
    } while (fd < 0 && errno == EINTR);
    if (fd >= 0)
        return fd;
    if (errno == EINVAL && (flags & O_DIRECT)) {
        fd = open(path, flags & ~O_DIRECT);
        if (fd >= 0) {
            close(fd);
            return blk_err(e, EINVAL, "Could not open '%s': filesystem does not support O_DIRECT",
                           path);
        }
        errno = EINVAL;
    }
    /* What O_NONBLOCK makes of a FIFO nobody reads, and open() of a socket. */
    if (errno == ENXIO) {
        struct stat st;

        if (stat(path, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)))
            return blk_err(e, EINVAL, "'file' driver requires '%s' to be a regular file", path);
        errno = ENXIO;
    }
    return blk_err_errno(e, errno, "Could not open '%s'", path);
}

static int probe_kind(struct file_state *f, const struct stat *st, const char *path,
                      const char *driver, struct blk_error *e)
{
    bool host = !strcmp(driver, "host_device");

    if (S_ISREG(st->st_mode) && !host)
        f->kind = FILE_REGULAR;
    else if (S_ISBLK(st->st_mode) && host)
        f->kind = FILE_BLOCK;
    else if (S_ISCHR(st->st_mode) && host)
        f->kind = FILE_CHAR;
    else
        return blk_err(e, EINVAL, "'%s' driver requires '%s' to be %s", driver, path,
                       host ? "either a character or block device" : "a regular file");
    return 0;
}

int file_probe_open(struct file_state *f, const char *path, unsigned oflags,
                    const char *driver, struct blk_error *e)
{
    int flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    struct statfs fs;
    struct stat st;
    int ret;

    flags |= oflags & BLK_O_RDWR ? O_RDWR : O_RDONLY;
    flags |= oflags & BLK_O_DIRECT ? O_DIRECT : 0;
    ret = probe_open_fd(path, flags, e);
    if (ret < 0)
        return ret;
    f->fd = ret;
    if (fstat(f->fd, &st) < 0) {
        ret = blk_err_errno(e, errno, "Could not stat file '%s'", path);
        goto fail;
    }
    ret = probe_kind(f, &st, path, driver, e);
    if (ret < 0)
        goto fail;
    /* io_uring would take O_NONBLOCK as "fail rather than wait". */
    if (fcntl(f->fd, F_SETFL, flags & O_DIRECT) < 0) {
        ret = blk_err_errno(e, errno, "Could not open '%s'", path);
        goto fail;
    }
    f->direct = flags & O_DIRECT;
    f->nowait = !f->direct;
    if (f->kind == FILE_REGULAR && fstatfs(f->fd, &fs) == 0)
        f->memory_fs = fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
    return 0;

fail:
    close(f->fd);
    f->fd = -1;
    return ret;
}

int file_probe_length(const struct file_state *f, uint64_t *out)
{
    struct stat st;
    off_t end;

    if (f->kind == FILE_BLOCK)
        return ioctl(f->fd, BLKGETSIZE64, out) < 0 ? -errno : 0;
    if (f->kind == FILE_CHAR) {
        end = lseek(f->fd, 0, SEEK_END);
        if (end < 0)
            return -errno;
        *out = (uint64_t)end;
        return 0;
    }
    if (fstat(f->fd, &st) < 0)
        return -errno;
    *out = (uint64_t)st.st_size;
    return 0;
}

/* ---- alignment ---------------------------------------------------------------------- */

/* Would a read of len bytes into buf be refused for its alignment?  Reading
 * nothing, because the file is short, does not count as refused. */
static bool probe_read_ok(int fd, void *buf, size_t len)
{
    return pread(fd, buf, len, 0) >= 0 || errno != EINVAL;
}

/* Smallest request and memory alignments that reads get through with. */
static void probe_by_reading(int fd, uint32_t *req, uint32_t *mem)
{
    char *buf;
    uint32_t a;

    *req = *mem = 4096;
    if (posix_memalign((void **)&buf, 2 * FILE_ALIGN_MAX, 3 * FILE_ALIGN_MAX))
        return;
    /* A buffer at offset a, not at 2a, so that exactly alignment a is tried. */
    for (a = 512; a < FILE_ALIGN_MAX; a *= 2)
        if (probe_read_ok(fd, buf + a, FILE_ALIGN_MAX))
            break;
    *mem = a;
    /* Alignment 1 getting through means that reads of empty files say nothing. */
    if (!probe_read_ok(fd, buf, 1)) {
        for (a = 512; a < FILE_ALIGN_MAX; a *= 2)
            if (probe_read_ok(fd, buf, a))
                break;
        *req = a;
    }
    free(buf);
}

static bool probe_pow2(uint32_t v)
{
    return v && !(v & (v - 1)) && v <= FILE_ALIGN_MAX;
}

static bool probe_statx(int fd, uint32_t *req, uint32_t *mem)
{
#ifdef STATX_DIOALIGN
    struct statx sx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) < 0 ||
        !(sx.stx_mask & STATX_DIOALIGN) || !probe_pow2(sx.stx_dio_offset_align) ||
        !probe_pow2(sx.stx_dio_mem_align))
        return false;
    *req = sx.stx_dio_offset_align;
    *mem = sx.stx_dio_mem_align;
    return true;
#else
    return false;
#endif
}

/* Of a block device; 0: not known. */
static uint32_t probe_sector(const struct file_state *f)
{
    int ssz = 0;
    bool known = f->kind == FILE_BLOCK && ioctl(f->fd, BLKSSZGET, &ssz) == 0 && ssz > 0 &&
                 probe_pow2((uint32_t)ssz);

    return known ? (uint32_t)ssz : 0;
}

static void probe_direct(const struct file_state *f, uint32_t *req, uint32_t *mem)
{
    if (probe_statx(f->fd, req, mem))
        return;
    *req = *mem = probe_sector(f);
    if (!*req)
        probe_by_reading(f->fd, req, mem);
}

/* ---- limits ---------------------------------------------------------------------------- */

int file_probe_limits(struct blk_node *n, struct file_state *f, const char *path,
                      struct blk_error *e)
{
    int ret = file_probe_length(f, &n->size);

    if (ret < 0)
        return blk_err_errno(e, -ret, "Could not get the length of '%s'", path);
    n->limits = (struct blk_limits){ .req_align = 1, .mem_align = 1 };
    /* tmpfs takes O_DIRECT and copies all the same: no alignment to keep. */
    if (f->direct && !f->memory_fs)
        probe_direct(f, &n->limits.req_align, &n->limits.mem_align);
    f->align = n->limits.req_align;
    n->limits.max_transfer = 1u << 30;
    n->can_grow = f->writable && f->kind == FILE_REGULAR;
    n->starts_as_zeros = f->kind == FILE_REGULAR;
    n->can_zero = f->kind == FILE_CHAR ? BLK_CAP_EMULATED : BLK_CAP_NATIVE;
    n->can_discard = f->kind == FILE_CHAR ? BLK_CAP_NONE : BLK_CAP_NATIVE;
    n->can_fua = BLK_CAP_EMULATED;
    if (f->kind == FILE_BLOCK) {
        n->limits.discard_align = 512;
        n->limits.zero_align = BLK_MAX(probe_sector(f), 512u);
    }
    return 0;
}
