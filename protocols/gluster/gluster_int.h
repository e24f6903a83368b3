/*
 * gluster_int.h - shared by the files of the "gluster" driver (libgfapi).
 *
 * gluster.c         requests: handing them over, completing them, outages
 * gluster_name.c    URLs and options -> servers, volume, path
 * gluster_volume.c  connections (one a volume and process), jobs with a deadline
 * gluster_open.c    open, close, create
 * gluster_ops.c     status, truncate, length: what control operations need
 * gluster_lock.c    image locks
 *
 * Threads: libgfapi calls back on threads of its own.  Such a callback touches of a
 * request only its tail and pushes it on gluster_state.done; everything else is the
 * owner thread's.  Blocking calls of libgfapi are made on the pool's threads or, where
 * a server that does not answer must not keep the caller, in a job.
 */
#ifndef PLATTER_GLUSTER_INT_H
#define PLATTER_GLUSTER_INT_H

#include "block/net.h"

#include <errno.h>
#include <glusterfs/api/glfs.h>
#include <stdatomic.h>

#define GLUSTER_SERVERS_MAX 32u
#define GLUSTER_PORT        24007u

struct gluster_server {
    char *transport;            /* "tcp" or "unix" */
    char *host;                 /* name or address; unix: path of the socket */
    unsigned port;              /* unix: 0 */
};

/* Where an image is. */
struct gluster_name {
    struct gluster_server server[GLUSTER_SERVERS_MAX];
    unsigned nservers;
    char *volume, *path;
    char *logfile;
    unsigned debug;             /* libgfapi's log level, 0..9 */
};

struct gluster_volume;

struct gluster_old_fd {
    glfs_fd_t *fd;
    struct gluster_old_fd *next;
};

struct gluster_state {
    struct gluster_volume *vol;
    struct gluster_name name;   /* to open it again */
    glfs_fd_t *fd;
    struct gluster_old_fd *old_fds;     /* replaced after outages */
    struct blk_node *node;
    bool writable;
    unsigned inflight;          /* at libgfapi */

    _Atomic(struct blk_req *) done;     /* pushed by callbacks, taken by done_post */
    struct blk_post done_post;

    struct blk_net net;
    struct blk_req *waiting, **waiting_last;    /* for the end of an outage */
    struct blk_timer retry;
    unsigned retried;           /* in flight again since the last retry */
    uint64_t probed_ns;         /* given up: when a request was last let through */
    bool fd_bad;                /* the bricks do not know the descriptor any more */
    bool reopening;

    /* Image locks taken, for taking them again: see gluster_lock.c. */
    unsigned lock_used, lock_unshared, lock_conflicts;
    struct blk_timer lock_timer;
    bool locking;               /* a fiber is at it */
    bool fenced;                /* somebody else has the image: no writes any more */

    /* Last extent SEEK_DATA/SEEK_HOLE found; empty when start == end. */
    struct { uint64_t start, end; bool data; } extent;
    bool no_seek;
};

/* The driver's part of a request. */
struct gluster_tail {
    uint64_t start_ns;
    uint64_t done;              /* bytes moved so far */
    int64_t ret;                /* from the callback: bytes or -errno */
    bool retried;
    bool as_discard;            /* WRITE_ZEROES sent as a discard */
};
static inline struct gluster_tail *gluster_tail(struct blk_req *req)
{
    _Static_assert(sizeof(struct gluster_tail) <= sizeof(req->drv), "tail does not fit");
    return (struct gluster_tail *)req->drv;
}

/* -errno of the libgfapi call that has just failed; some of them set none. */
static inline int gluster_errno(int otherwise)
{
    return errno > 0 ? -errno : -otherwise;
}

/* ---- gluster_name.c --------------------------------------------------------- */

/* Read URL ("filename") or options of o.  name: zeroed by the caller, freed by it
 * also on failure. */
int gluster_name_parse(struct gluster_name *name, struct blk_opts *o, struct blk_error *e);
void gluster_name_free(struct gluster_name *name);
/* malloc'd, or NULL: a URL of the image at its first server. */
char *gluster_name_url(const struct gluster_name *name);
int gluster_name_copy(struct gluster_name *dst, const struct gluster_name *src);

/* ---- gluster_volume.c ------------------------------------------------------- */

enum gluster_job_op { GLUSTER_OPEN, GLUSTER_CREATE, GLUSTER_UNLINK };

struct gluster_opened {
    struct gluster_volume *vol;
    glfs_fd_t *fd;              /* NULL after GLUSTER_UNLINK */
    struct stat st;
};

/* Fiber.  Connect to the volume, unless this process is, and open, create or delete
 * the file; -ETIMEDOUT after timeout_ns, whatever libgfapi may still be doing then. */
int gluster_job(struct blk_loop *l, const struct gluster_name *name, enum gluster_job_op op,
                int flags, uint64_t timeout_ns, struct gluster_opened *out, struct blk_error *e);
/* Fiber: run fn(arg) on a pool thread and wait for it. */
int gluster_co_work(struct blk_loop *l, int (*fn)(void *arg), void *arg);

/* ---- gluster_open.c ----------------------------------------------------------- */

extern const struct blk_option_desc gluster_create_opts[];
int gluster_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e);
int gluster_close(struct blk_node *n, struct blk_error *e);
int gluster_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                   struct blk_error *e);
void gluster_uncreate(struct blk_opts *o);

/* ---- gluster.c -------------------------------------------------------------------- */

void gluster_submit(struct blk_node *n, struct blk_req *req);
/* Prepare what requests need. */
void gluster_requests_init(struct gluster_state *g, struct blk_node *n);

/* ---- gluster_ops.c ------------------------------------------------------------ */

int gluster_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st);
int gluster_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                     struct blk_error *e);
int gluster_length(struct blk_node *n, uint64_t *out);
int64_t gluster_allocated_size(struct blk_node *n);
int gluster_identity(struct blk_node *n, char *buf, size_t len);
/* Blocking.  Set the size of fd from `from` to `to`, filling as p says. */
int gluster_resize(glfs_fd_t *fd, uint64_t from, uint64_t to, enum blk_prealloc p,
                   struct blk_error *e);

/* ---- gluster_lock.c ------------------------------------------------------------- */

#define GLUSTER_LOCK_NS 2000000000ull

enum {
    GLUSTER_PERM_READ   = 1u << 0,
    GLUSTER_PERM_WRITE  = 1u << 1,
    GLUSTER_PERM_RESIZE = 1u << 3,
};
int gluster_lock(struct blk_node *n, enum blk_lock_use use, struct blk_error *e);
/* Blocking.  Take the locks and check those of others; on failure none is held. */
int gluster_lock_fd(glfs_fd_t *fd, const char *shown, unsigned used, unsigned unshared,
                    struct blk_error *e);
/* Fiber.  g->fd gets the locks that the old descriptor had. */
void gluster_relock(struct gluster_state *g, glfs_fd_t *old);
/* Timer: take the locks again. */
void gluster_lock_keep(void *arg);

#endif
