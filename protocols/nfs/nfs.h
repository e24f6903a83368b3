/*
 * nfs.h - what the files of protocols/nfs/ share.
 *
 *   nfs.c      names and options, open, create, truncate: what runs in fibers
 *   io.c       the requests of a disk: READ, WRITE, FLUSH as RPCs
 *   kept.c     written data that the server may still lose, and how it gets there again
 *   conn.c     connections: made, watched, lost, made again; calls sent again
 *   stale.c    connections that are given up while the server may still execute writes
 *   errand.c   short-lived contexts: MOUNT, and what only libnfs's upper half can do
 *   v3.c v4.c  calls as NFSv3 procedures and NFSv4.0 compounds
 *
 * libnfs is used for RPC and XDR only (its lower half): the upper half turns the
 * server's errors into EFAULT, writes UNSTABLE without ever comparing verifiers, and
 * forgets what was in flight when a connection breaks.  NFSv4 is spoken without OPEN,
 * with the anonymous state id: nothing on the server has to be renewed or reclaimed,
 * and every call can be sent again on another connection, as in NFSv3.
 */
#ifndef PLATTER_NFS_H
#define PLATTER_NFS_H

#include "block/driver.h"
#include "block/net.h"

#include <nfsc/libnfs.h>
#include <nfsc/libnfs-raw.h>
#include <sys/queue.h>

#define NFS_FH_MAX        128u              /* NFS4_FHSIZE; NFSv3: 64 */
#define NFS_XFER_MIN      1024u             /* what FSINFO says is clamped to these */
#define NFS_XFER_MAX      (1u << 20)        /* libnfs refuses longer replies */
#define NFS_XFER_DEFAULT  (64u << 10)       /* FSINFO says 0 */
#define NFS_CONNECTIONS   2u                /* default, and most */
#define NFS_CONNECTIONS_MAX 16u
#define NFS_KEPT_COMMIT   (64ull << 20)     /* bytes unflushed: COMMIT in the background */
#define NFS_KEPT_MAX      (128ull << 20)    /* bytes unflushed: writes wait */
#define NFS_SYMLINKS_MAX  8u
#define NFS_EMPTY_MAX     8u                /* answers without a byte before it is an error */

/* Not an errno: the server asks to come back later. */
#define NFS_LATER         (-100000)

struct nfs_fhandle {
    uint32_t len;                           /* NFSv4: 0 is the root */
    char data[NFS_FH_MAX];
};

struct nfs_attrs {
    bool valid, regular, directory, symlink;
    uint64_t size, used, fsid[2], fileid;
};

enum nfs_op {
    NFS_LOOKUP, NFS_READLINK, NFS_GETATTR, NFS_FSINFO, NFS_SETSIZE, NFS_MAKE, NFS_UNLINK,
    NFS_READ, NFS_WRITE, NFS_COMMIT,
};

/* Does the server change something when it executes it? */
static inline bool nfs_op_changes(enum nfs_op op)
{
    return op == NFS_WRITE || op == NFS_SETSIZE || op == NFS_MAKE || op == NFS_UNLINK;
}

/* One RPC, sent again until the server has answered or the policy says EIO.
 * Everything it points to stays the caller's and valid until done(). */
struct nfs_call {
    enum nfs_op op;
    const struct nfs_fhandle *fh;
    const char *name;                       /* LOOKUP, MAKE, UNLINK */
    uint64_t offset;                        /* SETSIZE: the size */
    uint32_t count;
    char *data;                             /* WRITE */
    bool stable;                            /* WRITE: on disk when answered */
    const struct iovec *iov;                /* READ: where from iov_at on */
    int iovcnt;
    uint64_t iov_at;
    void (*done)(struct nfs_call *call);    /* owner thread, from the loop */
    void *arg;

    int err;                                /* 0 or -errno */
    struct nfs_attrs attrs;
    struct nfs_fhandle out_fh;
    char *link;                             /* READLINK: malloc'd, the caller's */
    uint32_t got;                           /* READ, WRITE: bytes */
    bool eof, committed;
    char verf[8];
    uint32_t rtmax, wtmax;                  /* FSINFO */

    /* conn.c's own */
    struct nfs_disk *d;
    uint64_t start;
    unsigned later;                         /* times the server asked to wait */
    struct nfs_sent *sent;                  /* it is in flight as this, or NULL */
    TAILQ_ENTRY(nfs_call) entry;
    struct blk_timer timer;
};
TAILQ_HEAD(nfs_calls, nfs_call);

/* A call as libnfs holds it: from sending to the answer, or the end of the connection. */
struct nfs_sent {
    struct nfs_call *call;                  /* NULL: it is no longer waited for here */
    struct nfs_conn *conn;
    uint64_t at;
    bool changes;                           /* nfs_op_changes() */
    bool given_up;                          /* counted in d->unaccounted */
    TAILQ_ENTRY(nfs_sent) link;
};
TAILQ_HEAD(nfs_sents, nfs_sent);

/* A version of the protocol. */
struct nfs_version {
    int number;
    unsigned port;                          /* 0: the portmapper knows */
    /* Encode and queue, with call->sent for cb; libnfs copies all it needs.  -ENOMEM. */
    int (*send)(struct rpc_context *rpc, struct nfs_call *call, rpc_cb cb);
    /* data: the decoded reply, valid only now.  0, -errno or NFS_LATER. */
    int (*receive)(struct nfs_call *call, void *data);
};
extern const struct nfs_version nfs_v3, nfs_v4;
int nfs3_errno(int status);                 /* NFSv3 and MOUNT status to 0, -errno, NFS_LATER */
/* A reply's bytes into call's iov; -EPROTO when there are more than were asked for. */
int nfs_take_data(struct nfs_call *call, const char *data, uint32_t len);

enum nfs_conn_state { NFS_CONNECTING, NFS_READY, NFS_STALE };
struct nfs_conn {
    struct nfs_disk *d;
    enum nfs_conn_state state;
    struct nfs_context *nfs;                /* NULL: stale, and libnfs is done with it */
    struct rpc_context *rpc;
    int fd;                                 /* blk_net_hold(), or -1: connecting */
    int error;                              /* the socket's, or 0 */
    struct blk_watch watch;
    bool watched, in_service, failed, dirty, ending;
    struct blk_timer timer;                 /* of an attempt to connect */
    uint64_t heard;                         /* last reply */
    uint64_t moved;                         /* the oldest in flight had its reply, others wait */
    struct nfs_sents inflight;              /* oldest first */
    struct nfs_sents odd;                   /* libnfs gave an error instead of a reply */
    unsigned ninflight, nchanges;           /* nchanges: those that change, odd ones too */
    LIST_ENTRY(nfs_conn) link;              /* in d->stale */
    char cause[160];
};

/* Names and options of one disk: enough to reach the server. */
struct nfs_where {
    char *host, *dir, *file;                /* dir: "/export/dir", file: its last part */
    char *address;                          /* host, numeric */
    unsigned nfs_port, mount_port;          /* 0: ask */
    int uid, gid, syncnt, debug;            /* -1: libnfs's */
    unsigned connections;
    const struct nfs_version *version;
};

/* Data of a write, shared by the kept pieces of it. */
struct nfs_buf {
    unsigned refs;
    uint32_t size;
    struct nfs_buf *next;                   /* in the disk's pool */
    char *data;
};

/* Part of a completed write that is not known to be on the server's disk. */
struct nfs_kept {
    uint64_t start, end;
    struct nfs_buf *buf;
    char *data;
    char verf[8];
    bool mixed;                             /* verf changed within the write */
    uint64_t seq;
    struct nfs_kept *next, **prev;          /* oldest first */
};

struct nfs_disk {
    struct blk_node *node;                  /* NULL while creating */
    struct blk_loop *loop;
    struct nfs_where where;
    struct blk_net net;
    struct nfs_conn *conns[NFS_CONNECTIONS_MAX];    /* NULL: down */
    LIST_HEAD(nfs_stale, nfs_conn) stale;   /* see stale.c */
    unsigned unaccounted;                   /* changes whose calls have failed, and that the
                                               server may still make */
    struct co_queue accounted;              /* close: for unaccounted == 0 */
    struct nfs_fhandle fh, dir;
    struct nfs_attrs attrs;                 /* at open */
    uint32_t max_transfer;
    bool opening;                           /* the first failure is final */
    bool closing;
    struct co *opener;                      /* waits for the first connection */
    char cause[160];                        /* why opening failed */

    struct nfs_calls waiting;               /* for a connection */
    unsigned ncalls;                        /* not done yet */
    struct blk_timer tick, retry;
    struct blk_hook hook;

    /* io.c */
    struct nfs_io *free_ios, *held, **held_last;    /* writes that wait for room */
    unsigned writing, replaying;            /* WRITEs in flight; exclusive phase */
    uint64_t writing_bytes;
    struct co_queue quiet;                  /* for writing == 0 */
    bool told_short;

    /* kept.c */
    struct nfs_buf *pool;
    unsigned npool;
    void *tree;                             /* tsearch(): kept pieces do not overlap */
    struct nfs_kept *kept, **kept_last;
    uint64_t kept_bytes, seq;
    struct co_mutex commit_lock;
    unsigned committers;
    bool background;
    struct co_queue settled;                /* for the background fiber's end */
    int lost;                               /* unflushed data is gone: every flush says so */
    char last_verf[8];
    bool have_verf;
    bool unsafe, unsafe_dirty;              /* cache=unsafe: no copies, a look at close */
};

/* conn.c */
int nfs_conns_start(struct nfs_disk *d, struct blk_error *e);   /* fiber; first one is up */
void nfs_conns_more(struct nfs_disk *d);                        /* the others too */
void nfs_conns_stop(struct nfs_disk *d);                        /* nothing is in flight */
void nfs_call_start(struct nfs_disk *d, struct nfs_call *call);
int nfs_call_wait(struct nfs_disk *d, struct nfs_call *call);   /* fiber: start, wait */
struct nfs_context *nfs_context_new(const struct nfs_where *w);
void nfs_call_done(struct nfs_disk *d, struct nfs_call *call, int err);
void nfs_dispatch(struct nfs_disk *d);      /* send what waits */
/* Calls in flight wait for a connection again, before the others; all, or those that
 * change nothing. */
void nfs_conn_take_back(struct nfs_conn *c, bool all);
void nfs_conn_watch(struct nfs_conn *c, int fd, uint32_t events);   /* fd -1: nothing */
/* Frees libnfs's part, or all: no call is in flight any more. */
void nfs_conn_end_context(struct nfs_conn *c);
void nfs_conn_free(struct nfs_conn *c);
void nfs_conn_rearm(struct nfs_conn *c);    /* watch what libnfs waits for */

/* stale.c */
/* Instead of freeing it: changes are in flight.  alive: libnfs may go on with it. */
void nfs_stale_add(struct nfs_conn *c, bool alive);
void nfs_stale_broken(struct nfs_conn *c);  /* libnfs cannot go on; may free it */
void nfs_stale_look(struct nfs_conn *c);    /* something has happened; may free it */
void nfs_stale_expire(struct nfs_disk *d, uint64_t now);
void nfs_sent_gone(struct nfs_conn *c, struct nfs_sent *s);     /* accounted for: frees it */
void nfs_stale_end(struct nfs_disk *d);     /* fiber: wait, but not for ever; free them */
/* Changes fail now, whether or not they could be sent. */
static inline bool nfs_changes_fail(const struct nfs_disk *d)
{
    return d->net.given_up || d->unaccounted;
}

/* errand.c; fiber */
int nfs_resolve(struct nfs_where *w, struct blk_error *e);
int nfs_mount_dir(struct nfs_disk *d, struct nfs_fhandle *root, struct blk_error *e);
int nfs_make_v4(struct nfs_disk *d, struct blk_error *e);

/* kept.c */
struct nfs_buf *nfs_buf_get(struct nfs_disk *d, uint32_t len);
void nfs_buf_put(struct nfs_disk *d, struct nfs_buf *b);
/* A write of [start, end) is done: newer than all kept.  b NULL: it is on disk. */
void nfs_kept_add(struct nfs_disk *d, uint64_t start, uint64_t end, struct nfs_buf *b,
                  const char *verf, bool mixed);
/* Put what was written and not yet flushed over what a READ at off brought. */
void nfs_kept_overlay(struct nfs_disk *d, const struct iovec *iov, int cnt, uint64_t off,
                      uint64_t len);
bool nfs_kept_beyond(struct nfs_disk *d, uint64_t off); /* does kept data reach past off? */
/* cache=unsafe: a write is done; its verifier must stay what it is until close. */
void nfs_unsafe_add(struct nfs_disk *d, const char *verf, bool stable, bool mixed);
int nfs_unsafe_end(struct nfs_disk *d);     /* fiber: COMMIT; -EIO if anything was lost */
int nfs_commit(struct nfs_disk *d);         /* fiber: all writes done so far are on disk */
void nfs_commit_soon(struct nfs_disk *d);   /* in the background */
void nfs_kept_free(struct nfs_disk *d);

/* io.c */
void nfs_submit(struct blk_node *n, struct blk_req *req);
void nfs_io_resume(struct nfs_disk *d);     /* there may be room for writes */
void nfs_io_free(struct nfs_disk *d);

#endif
