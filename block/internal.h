/*
 * internal.h - what the files of block/ share and nobody else sees.
 */
#ifndef PLATTER_BLOCK_INTERNAL_H
#define PLATTER_BLOCK_INTERNAL_H

#include "block/driver.h"
#include <pthread.h>
#include <stdatomic.h>

/* Core-private request flags. */
#define BLK_REQ_INTERNAL (1u << 31)   /* part of a serialised request: no overlap check */

struct co {
    void *sp;                   /* saved stack pointer while not running */
    void *stack;                /* mapping, guard page first */
    size_t stack_len;
    struct blk_loop *loop;
    void (*fn)(void *arg);
    void *arg;
    struct co *next;            /* ready list or pool */
    bool ended;
    void *fake_stack;           /* AddressSanitizer's */
};

/* Reads that follow each other, not yet given to their node's driver (merge.c). */
struct blk_held {
    struct blk_req *first, *last;             /* first NULL: none; linked by next */
    uint64_t length;
    int iovcnt;
};

struct blk_loop {
    pthread_t owner;
    int epfd, evfd;
    struct blk_req *ready, **ready_last;      /* completed, done() not yet called */
    struct co *runnable, **runnable_last;
    struct blk_held held;
    struct blk_merged *merged;                /* not in use */
    struct blk_timer *timers;                 /* sorted by time */
    struct blk_hook *hooks;
    pthread_mutex_t post_lock;
    struct blk_post *posts, **posts_last;
    atomic_bool posted;                       /* posts is not empty */
    atomic_bool sleeping;                     /* in epoll_wait: a poster must kick evfd */
    atomic_bool stop;
    struct co *pool;                          /* fibers with a stack and no work */
    unsigned npool;
    struct co *current;
    void *sp;                                 /* the loop's own context while a fiber runs */
    void *fake_stack;
    const void *stack_bottom;                 /* of the owner thread, for the sanitizer */
    size_t stack_size;
    struct epoll_event *events;               /* being dispatched */
    int nevents, event_at;
    unsigned busy_turns;
    bool tracing;
    struct blk_counters count;
};

/* fiber.c; true if anything ran */
bool blk_fiber_run_ready(struct blk_loop *l);
void blk_fiber_pool_free(struct blk_loop *l);

/* request.c; true if anything ran */
bool blk_req_run_ready(struct blk_loop *l);
/* request.c: hand req up through its hops to its submitter; from the loop only. */
void blk_req_finish(struct blk_req *req);

/* merge.c: req is in n and a read; false: give it to the driver as it is. */
bool blk_merge_read(struct blk_node *n, struct blk_req *req);
/* merge.c: what is held goes to its driver; true if anything did. */
bool blk_merge_flush(struct blk_loop *l);
void blk_merge_free(struct blk_loop *l);

/* request.c: count something as in flight at n; leave with what enter returned. */
unsigned blk_epoch_enter(struct blk_node *n);
void blk_epoch_leave(struct blk_node *n, unsigned epoch);

/* request_slow.c: split, align, emulate; runs in a fiber of its own. */
void blk_req_slow(struct blk_node *n, struct blk_req *req);
bool blk_serial_conflict(const struct blk_node *n, const struct blk_req *req);

/* request.c: enter n with a valid request that needs nothing from the core. */
void blk_req_enter(struct blk_node *n, struct blk_req *req);

/* node.c: a node without children or state; freeing needs them gone. */
struct blk_node *blk_node_new(struct blk_loop *l, const struct blk_driver *drv,
                              const char *filename, unsigned oflags);
void blk_node_free(struct blk_node *n);
/* What an image of drv in file is called that only its options o describe, with keys in QEMU's
 * order, the caller's to release; NULL: its file's name says it all. */
json_t *blk_name_by_options(const struct blk_node *file, const struct blk_driver *drv,
                            const struct blk_opts *o);
/* A file named in n's image, relative to n's own, or to what that lies on where only options
 * describe n; malloc'd, NULL: no memory, or there is no such place. */
char *blk_resolve_beside(const struct blk_node *n, const char *name);

/* Take the image locks of the protocol node at or below n. Fiber. */
int blk_lock_storage(struct blk_node *n, enum blk_lock_use use, struct blk_error *e);
/* open.c: the protocol node for a name or its options ("filename", "driver"); drv: whose
 * it is, NULL: they say so. */
int blk_open_protocol(struct blk_loop *l, const char *filename, const struct blk_driver *drv,
                      struct blk_opts *o, unsigned flags, struct blk_node **out,
                      struct blk_error *e);

/* open.c: the format of what lies in file; guessed: raw, nothing else fits. Fiber. */
int blk_probe_format(struct blk_node *file, const struct blk_driver **drv, bool *guessed,
                     struct blk_error *e);

/* Whether a write has to be looked at: what is only zeros is written as such. */
static inline bool blk_may_be_zeros(const struct blk_node *n, const struct blk_req *req)
{
    return n->oflags & BLK_O_DETECT_ZEROES && !(req->flags & BLK_REQ_INTERNAL);
}

/* on_top.c: a temporary overlay above *n, which becomes it; flags: its own. Fiber. */
int blk_put_overlay(struct blk_node **n, unsigned flags, struct blk_error *e);

/* drivers.c; built_in: never a module. */
const struct blk_driver *blk_driver_built_in(const char *name);
/* The filter whose scheme the name (may be NULL) begins with, or NULL. */
const struct blk_driver *blk_driver_filter_for(const char *name);
/* A name without the driver's own in front, "NAME:", if its names are paths. */
const char *blk_driver_path(const struct blk_driver *drv, const char *name);
/* The protocol driver for a path: "host_device" or "file"; and for a name: by scheme, else
 * for the path that it is. */
const struct blk_driver *blk_driver_for_path(const char *path);
const struct blk_driver *blk_driver_for_name(const char *filename, struct blk_error *e);
/* Is there a driver for a name "scheme:..."?  Loads nothing. */
bool blk_scheme_known(const char *name);

/* inner.c: a format that an image names: formats and plain files, nothing that it should not
 * be able to load or put in between.  And storage: no /dev/zero or its like. */
int blk_check_inner_format(const char *format, struct blk_error *e);
int blk_check_inner_storage(const struct blk_node *n, struct blk_error *e);

/* node.c: the image that filters on top of it pass on. */
struct blk_node *blk_unfiltered(struct blk_node *n);

/* status.c: as co_status(), without asking the storage for holes: where to read.
 * Fiber. */
int blk_status_layer(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st);

/* chainmap.c */
void blk_chainmap_free(struct blk_chainmap *m);

/* stats.c */
void blk_stats_record(struct blk_stats *s, enum blk_op op, uint64_t ns);

#define BLK_ASSERT_OWNER(l) \
    do { if (!pthread_equal((l)->owner, pthread_self())) __builtin_trap(); } while (0)

/* ---- secret.c, object.c */
/* An object of type "secret" from what is left of its options. */
int secret_add(struct blk_opts *o, const char *id, struct blk_error *e);
bool secret_exists(const char *id);
void secrets_free(void);
bool object_is_tls_creds(const char *id);

#endif
