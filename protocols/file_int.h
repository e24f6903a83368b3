/*
 * file_int.h - shared by the files of the "file" driver.
 *
 * file.c         open, close, submit, what is inline and what goes to an engine
 * file_ops.c     truncate, create, length, status: what control operations need
 * file_probe.c   what kind of thing was opened and which alignment it wants
 * file_engine.c  the per-loop registry and the thread engine
 * file_uring.c   the io_uring engine
 * file_lock.c    QEMU's byte-range image locks
 *
 * Invariant: everything in struct file_state is the owner thread's, except what
 * is marked atomic, which pool threads also read and set.
 */
#ifndef PLATTER_FILE_INT_H
#define PLATTER_FILE_INT_H

#include "block/driver.h"

#include <pthread.h>

enum file_kind { FILE_REGULAR, FILE_BLOCK, FILE_CHAR };
enum file_aio { FILE_AIO_AUTO, FILE_AIO_THREADS, FILE_AIO_URING };

/* Up to this many bytes a request whose data is in memory is served in submit():
 * the copy is cheaper than handing it over.  Measured on two cores: a copy of 4 KiB
 * takes 1.5 us, 64 KiB 5.5 us, 256 KiB 14-20 us, 1 MiB 60-130 us; a round trip to a
 * pool thread 10-20 us, but two threads copy side by side. */
#define FILE_INLINE_MAX 65536u
/* Holes up to this size are punched in memory file systems at once. */
#define FILE_INLINE_PUNCH_MAX (1u << 20)
/* What the kernel takes in one call (UIO_MAXIOV). */
#define FILE_IOV_MAX 1024

/* How often, and how long apart, a lock is asked for. */
#define FILE_LOCK_TRIES 5
#define FILE_LOCK_PAUSE_NS 15000000u

struct file_state {
    int fd;
    enum file_kind kind;
    enum file_aio aio;
    bool direct;                /* opened with O_DIRECT */
    uint32_t align;             /* of requests; 1 unless direct */
    bool memory_fs;             /* tmpfs and its like: no I/O ever sleeps on a disk */
    bool nowait;                /* preadv2(RWF_NOWAIT) is worth trying */
    bool no_flush;              /* cache=unsafe */
    bool writable;
    bool locking;               /* locks are wanted */
    int flush_err;              /* sticky: first failed sync, -errno */
    bool no_zero_range;         /* atomic: the file system has refused it */
    bool no_punch;              /* atomic */
    struct file_engine *engine;
    /* Last extent SEEK_DATA/SEEK_HOLE found; empty when start == end. */
    struct { uint64_t start, end; bool data; } extent;
    bool no_seek;               /* SEEK_DATA does not work here: all is data */
    /* Under engine->write_lock: a thread is writing, these wait for it. */
    bool writing;
    struct blk_req *writes, **writes_last;
};

/* The driver's part of a request: fits struct blk_req's tail. */
struct file_tail {
    struct blk_work work;       /* while a pool thread has it */
    int64_t done;               /* bytes moved so far; after work: its result */
};
static inline struct file_tail *file_tail(struct blk_req *req)
{
    _Static_assert(sizeof(struct file_tail) <= sizeof(req->drv), "tail does not fit");
    return (struct file_tail *)req->drv;
}

/* ---- file.c ---------------------------------------------------------------- */

/* Owner thread: learn from the result, then complete the request. */
void file_finish(struct blk_req *req, int result);
/* Fill dst with the part of req's buffers from byte `done` on, up to max entries;
 * returns how many. */
int file_iov_rest(const struct blk_req *req, uint64_t done, struct iovec *dst, int max);

/* ---- file_engine.c --------------------------------------------------------- */

/* One per loop, shared by its nodes; threads and ring start with the first
 * request that needs them.  NULL: no memory. */
struct file_engine {
    struct blk_loop *loop;
    unsigned refs;
    struct blk_pool *pool;      /* NULL until needed */
    struct file_ring *ring;     /* NULL until needed */
    bool ring_refused;          /* the kernel has said no */
    pthread_mutex_t write_lock;
    struct file_engine *next;
};
struct file_engine *file_engine_get(struct blk_loop *l);
void file_engine_put(struct file_engine *e);
/* Hand req to whichever engine the node uses. Owner thread. */
void file_engine_submit(struct file_state *f, struct blk_req *req);
/* Run the rest of req (from tail->done on) on a pool thread. Owner thread. */
void file_threads_submit(struct file_engine *e, struct blk_req *req);
/* Fiber: run fn(arg) on a pool thread and wait. */
int file_co_work(struct file_engine *e, int (*fn)(void *arg), void *arg);
/* Blocking zero/discard, also inline on memory file systems; 0 or -errno. */
int file_zero_blocking(struct file_state *f, uint64_t off, uint64_t len, bool unmap);
int file_discard_blocking(struct file_state *f, uint64_t off, uint64_t len);

/* ---- file_uring.c ------------------------------------------------------------ */

/* 0: the ring has taken it.  -errno: it did not; use the threads. */
int file_ring_submit(struct file_engine *e, struct file_state *f, struct blk_req *req);
void file_ring_free(struct file_ring *r);

/* ---- file_probe.c ------------------------------------------------------------ */

/* Open the path as oflags ask, find out what it is and fill f's kind, direct,
 * memory_fs.  Nothing is created, a FIFO does not hang it. */
int file_probe_open(struct file_state *f, const char *path, unsigned oflags,
                    const char *driver, struct blk_error *e);
/* Fill limits (alignments, sizes) and capabilities of n from f. */
int file_probe_limits(struct blk_node *n, struct file_state *f, const char *path,
                      struct blk_error *e);
/* Bytes in f now; 0 or -errno. */
int file_probe_length(const struct file_state *f, uint64_t *out);

/* ---- file_lock.c --------------------------------------------------------------- */

/* Permission bits as QEMU numbers them; the bytes locked are 100+bit for
 * permissions in use and 200+bit for those not shared. */
enum {
    FILE_PERM_READ            = 1u << 0,
    FILE_PERM_WRITE           = 1u << 1,
    FILE_PERM_WRITE_UNCHANGED = 1u << 2,
    FILE_PERM_RESIZE          = 1u << 3,
};
/* Take the locks and check those of others; on failure none is left held. */
int file_lock(int fd, const char *path, unsigned used, unsigned unshared, struct blk_error *e);
/* Give them back now: a ring that is taken down later would hold the file open. */
void file_unlock(int fd);
/* Are OFD locks there at all? */
bool file_lock_supported(void);

/* ---- file_ops.c ------------------------------------------------------------------ */

extern const struct blk_option_desc file_create_opts[];
int file_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st);
/* Contract: driver.h. */
void file_reserve(struct blk_node *n, uint64_t off, uint64_t len);
int file_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                  struct blk_error *e);
int file_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                struct blk_error *e);
void file_uncreate(struct blk_opts *o);
int file_may_create(struct blk_opts *o, struct blk_error *e);
/* The path in o's "filename"; NULL with *e set. */
const char *file_path(const struct blk_node *n, struct blk_opts *o, struct blk_error *e);

#endif
