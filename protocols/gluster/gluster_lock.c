/*
 * gluster_lock.c - image locks on Gluster: the scheme of file_lock.c with the volume's
 * POSIX locks.  A read lock on byte 100+bit says "I use this permission", one on byte
 * 200+bit "I do not let others use it"; a conflict is found by asking whether a write
 * lock on the opposite byte would be refused.
 *
 * The bricks hold the locks and give them up when a connection ends: so they end with
 * the process, but a brick that is restarted or out of reach loses them too, which need
 * not be noticed here.  So they are taken again all the time (GLUSTER_LOCK_NS), and when
 * somebody else turns out to have the image by then, this node writes no more.
 * QEMU takes no locks on Gluster, so it does not see these.
 */
#include "protocols/gluster/gluster_int.h"

#include <errno.h>
#include <unistd.h>

#define LOCK_USED_BASE     100
#define LOCK_UNSHARED_BASE 200
#define LOCK_BITS          4

static const char *const lock_names[LOCK_BITS] = {
    "consistent read", "write", "write unchanged", "resize",
};

static int lock_call(glfs_fd_t *fd, int cmd, short type, off_t at, struct flock *fl)
{
    *fl = (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1 };
    errno = 0;
    return glfs_posix_lock(fd, cmd, fl) ? gluster_errno(EIO) : 0;
}

/* Locks belong to an owner; ours is this descriptor, in whatever process. */
static int lock_set_owner(glfs_fd_t *fd)
{
    static _Atomic uint64_t count;
    struct { uint64_t pid, n; } owner = { (uint64_t)getpid(), ++count };

    return glfs_fd_set_lkowner(fd, &owner, sizeof(owner)) ? gluster_errno(EINVAL) : 0;
}

static int lock_state(glfs_fd_t *fd, off_t base, unsigned bits, struct blk_error *e)
{
    struct flock fl;

    for (int i = 0; i < LOCK_BITS; i++) {
        int r = bits & (1u << i) ? lock_call(fd, F_SETLK, F_RDLCK, base + i, &fl) : 0;

        if (r)
            return blk_err_errno(e, -r, "Failed to lock byte %d", (int)base + i);
    }
    return 0;
}

static int lock_ask(glfs_fd_t *fd, off_t base, unsigned bits, const char *shared,
                    const char *shown, struct blk_error *e)
{
    struct flock fl;

    for (int i = 0; i < LOCK_BITS; i++) {
        int r = bits & (1u << i) ? lock_call(fd, F_GETLK, F_WRLCK, base + i, &fl) : 0;

        if (r)
            return blk_err_errno(e, -r, "Failed to check byte %d", (int)base + i);
        if (bits & (1u << i) && fl.l_type != F_UNLCK) {
            blk_err(e, EAGAIN, "Failed to get %s\"%s\" lock", shared, lock_names[i]);
            blk_error_hint(e, "Is another process using the image [%s]?", shown);
            return -EAGAIN;
        }
    }
    return 0;
}

static void lock_drop(glfs_fd_t *fd)
{
    struct flock fl;

    for (int i = 0; i < LOCK_BITS; i++) {
        lock_call(fd, F_SETLK, F_UNLCK, LOCK_USED_BASE + i, &fl);
        lock_call(fd, F_SETLK, F_UNLCK, LOCK_UNSHARED_BASE + i, &fl);
    }
}

/* Blocking.  State, then ask: two that come at the same time may both be refused. */
static int lock_take(glfs_fd_t *fd, const char *shown, unsigned used, unsigned unshared,
                     struct blk_error *e)
{
    int r = lock_state(fd, LOCK_USED_BASE, used, e);

    r = r ? r : lock_state(fd, LOCK_UNSHARED_BASE, unshared, e);
    r = r ? r : lock_ask(fd, LOCK_UNSHARED_BASE, used, "", shown, e);
    return r ? r : lock_ask(fd, LOCK_USED_BASE, unshared, "shared ", shown, e);
}

int gluster_lock_fd(glfs_fd_t *fd, const char *shown, unsigned used, unsigned unshared,
                    struct blk_error *e)
{
    int r = lock_set_owner(fd);

    if (r)
        return blk_err_errno(e, -r, "Failed to lock '%s'", shown);
    r = lock_take(fd, shown, used, unshared, e);
    if (r)
        lock_drop(fd);
    return r;
}

struct lock_args {
    struct blk_node *n;
    struct gluster_state *g;
    struct blk_error *e;
    glfs_fd_t *old;
};

static int lock_blocking(void *arg)
{
    struct lock_args *a = arg;

    return gluster_lock_fd(a->g->fd, a->n->shown, a->g->lock_used, a->g->lock_unshared, a->e);
}

/* Who uses and shares what: as the "file" driver has it. */
int gluster_lock(struct blk_node *n, enum blk_lock_use use, struct blk_error *e)
{
    struct gluster_state *g = n->state;
    struct lock_args a = { n, g, e, NULL };
    unsigned used = 0, unshared = 0;

    if (n->oflags & BLK_O_SHARE)
        return 0;
    if (!(n->oflags & BLK_O_NO_IO))
        used |= GLUSTER_PERM_READ | (g->writable ? GLUSTER_PERM_WRITE : 0u);
    if (g->writable && (use != BLK_LOCK_RAW || n->oflags & BLK_O_RESIZE))
        used |= GLUSTER_PERM_RESIZE;
    if (use == BLK_LOCK_FORMAT || n->oflags & BLK_O_NO_SHARE)
        unshared |= GLUSTER_PERM_WRITE;
    if (use != BLK_LOCK_RAW || n->oflags & BLK_O_NO_SHARE)
        unshared |= GLUSTER_PERM_RESIZE;
    g->lock_used = used;
    g->lock_unshared = unshared;
    int r = used | unshared ? gluster_co_work(n->loop, lock_blocking, &a) : 0;

    if (!r && used | unshared && !g->lock_timer.at)
        blk_timer_set(n->loop, &g->lock_timer, blk_now_ns() + GLUSTER_LOCK_NS);
    return r;
}

static int lock_again_blocking(void *arg)
{
    struct lock_args *a = arg;

    return lock_take(a->g->fd, a->n->shown, a->g->lock_used, a->g->lock_unshared, NULL);
}

/* Somebody who is being refused looks like a conflict for a moment: ask thrice. */
#define LOCK_CONFLICTS 3u

static void lock_keep_fiber(void *arg)
{
    struct gluster_state *g = arg;
    struct lock_args a = { g->node, g, NULL, NULL };
    int r = gluster_co_work(g->node->loop, lock_again_blocking, &a);

    g->lock_conflicts = r == -EAGAIN ? g->lock_conflicts + 1 : 0;
    if (g->lock_conflicts == LOCK_CONFLICTS && !g->fenced) {
        g->fenced = true;
        blk_report("%s: the image locks were lost with a connection, and somebody else has "
                   "them now; writes fail", g->net.shown);
    }
    g->locking = false;
    blk_timer_set(g->node->loop, &g->lock_timer, blk_now_ns() + GLUSTER_LOCK_NS);
}

void gluster_lock_keep(void *arg)
{
    struct gluster_state *g = arg;

    if (!g->net.down_since && !g->reopening && !co_start(g->node->loop, lock_keep_fiber, g))
        g->locking = true;
    else
        blk_timer_set(g->node->loop, &g->lock_timer, blk_now_ns() + GLUSTER_LOCK_NS);
}

static int lock_move_blocking(void *arg)
{
    struct lock_args *a = arg;

    lock_drop(a->old);
    return lock_blocking(a);
}

/* Should it fail, lock_keep_fiber() tries again, and finds out why. */
void gluster_relock(struct gluster_state *g, glfs_fd_t *old)
{
    struct lock_args a = { g->node, g, NULL, old };

    if (g->lock_used | g->lock_unshared)
        gluster_co_work(g->node->loop, lock_move_blocking, &a);
}
