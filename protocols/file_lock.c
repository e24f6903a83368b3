/*
 * file_lock.c - image locks that QEMU understands.
 *
 * QEMU turns its permission system into byte-range OFD locks: a read lock on byte
 * 100+bit says "I use this permission", one on byte 200+bit says "I do not let
 * others use it".  Locks are shared ones, so any number of processes can state the
 * same thing; a conflict is found by asking whether a write lock on the opposite
 * byte would be refused.  First state, then ask: two that come at the same time
 * may both be refused, never both be let in.
 */
#include "protocols/file_int.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define LOCK_USED_BASE   100
#define LOCK_UNSHARED_BASE 200
#define LOCK_BITS 4

static const char *const lock_names[LOCK_BITS] = {
    "consistent read", "write", "write unchanged", "resize",
};

static int lock_fcntl(int fd, int cmd, short type, off_t at, struct flock *fl)
{
    int ret;

    *fl = (struct flock){ .l_whence = SEEK_SET, .l_start = at, .l_len = 1, .l_type = type };
    do {
        ret = fcntl(fd, cmd, fl);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

bool file_lock_supported(void)
{
    static int known = -1;
    int v = __atomic_load_n(&known, __ATOMIC_RELAXED);

    if (v < 0) {
        int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        struct flock fl;

        v = fd >= 0 && lock_fcntl(fd, F_OFD_GETLK, F_WRLCK, 0, &fl) == 0;
        if (fd >= 0)
            close(fd);
        __atomic_store_n(&known, v, __ATOMIC_RELAXED);
    }
    return v;
}

/* Does anybody else hold this byte?  1, 0 or -errno. */
static int lock_held(int fd, off_t at)
{
    struct flock fl;
    int ret = lock_fcntl(fd, F_OFD_GETLK, F_WRLCK, at, &fl);

    return ret < 0 ? ret : fl.l_type != F_UNLCK;
}

static int lock_state(int fd, off_t base, unsigned bits, struct blk_error *e)
{
    struct flock fl;

    for (int i = 0; i < LOCK_BITS; i++) {
        int ret;

        if (!(bits & (1u << i)))
            continue;
        ret = lock_fcntl(fd, F_OFD_SETLK, F_RDLCK, base + i, &fl);
        if (ret < 0)
            return blk_err_errno(e, -ret, "Failed to lock byte %d", (int)base + i);
    }
    return 0;
}

static int lock_ask(int fd, off_t base, unsigned bits, const char *fmt_shared,
                    const char *path, struct blk_error *e)
{
    for (int i = 0; i < LOCK_BITS; i++) {
        int ret;

        if (!(bits & (1u << i)))
            continue;
        ret = lock_held(fd, base + i);
        if (ret < 0)
            return blk_err_errno(e, -ret, "Failed to check byte %d", (int)base + i);
        if (ret > 0) {
            blk_err(e, EAGAIN, "Failed to get %s\"%s\" lock", fmt_shared, lock_names[i]);
            blk_error_hint(e, "Is another process using the image [%s]?", path);
            return -EAGAIN;
        }
    }
    return 0;
}

void file_unlock(int fd)
{
    struct flock fl;

    for (int i = 0; i < LOCK_BITS; i++) {
        lock_fcntl(fd, F_OFD_SETLK, F_UNLCK, LOCK_USED_BASE + i, &fl);
        lock_fcntl(fd, F_OFD_SETLK, F_UNLCK, LOCK_UNSHARED_BASE + i, &fl);
    }
}

int file_lock(int fd, const char *path, unsigned used, unsigned unshared, struct blk_error *e)
{
    int ret;

    ret = lock_state(fd, LOCK_USED_BASE, used, e);
    if (ret == 0)
        ret = lock_state(fd, LOCK_UNSHARED_BASE, unshared, e);
    if (ret == 0)
        ret = lock_ask(fd, LOCK_UNSHARED_BASE, used, "", path, e);
    if (ret == 0)
        ret = lock_ask(fd, LOCK_USED_BASE, unshared, "shared ", path, e);
    if (ret < 0)
        file_unlock(fd);
    return ret;
}
