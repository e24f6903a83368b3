/*
 * nbd_int.h - what the files of the NBD driver share.  (Its functions are nbdc_*, the
 * client's: nbd_* are libnbd's.)
 *
 *   nbd.c       the driver: open, close, limits, requests, block status
 *   config.c    names and options
 *   conn.c      one connection: a libnbd handle, made and watched
 *   ops.c       commands: queued, sent, answered, sent again; coming back after a loss
 *
 * What NBD can promise when a connection breaks
 *  The protocol has no sign by which a client could tell a broken connection from a
 *  server that was restarted and lost its cache.  So after every loss the changes that
 *  were acknowledged since the last flush are made again, in order, before anything else
 *  (disk->journal), and a flush that was under way is sent anew after them.  Where that
 *  cannot be done every later flush fails.
 *
 * Invariants
 *  - A command is in exactly one list: the disk's queue, a connection's flight, or none
 *    when it is done.  libnbd's callbacks only note the answer (op->answer) and move the
 *    command to the connection's list of answers: libnbd must not be called from them.
 *  - A handle is closed before its commands are sent elsewhere, so that no late answer
 *    finds a buffer.
 *  - A connection with unanswered changes is not closed before the server has ended it
 *    (block/net.h): a server that is only slow could execute them after newer ones.  Until
 *    then their answers are waited for, by nbdc_tick() and, when another connection has
 *    broken, by the recovering fiber.  When the policy is at its end they fail, but there is
 *    no new connection, and all fails, before the server has ended that one (conn->left).
 *  - One broken connection breaks all of the disk's: they lead to the same server.
 *  - While disk->recovering only the recovering fiber sends commands.
 *
 * All of it runs on the node's owner thread.
 */
#ifndef PLATTER_NBD_INT_H
#define PLATTER_NBD_INT_H

#include "block/driver.h"
#include "block/journal.h"
#include "block/net.h"

#include <libnbd.h>

#define NBDC_CONNECTIONS     2u             /* default, and most */
#define NBDC_CONNECTIONS_MAX 16u
#define NBDC_DEPTH           64u            /* commands in flight on one connection */
#define NBDC_BUSY            8u             /* so many: time for another connection */
#define NBDC_TRANSFER        (2u << 20)     /* bytes of one READ or WRITE */
#define NBDC_ZERO_MAX        (64u << 20)    /* bytes of one WRITE_ZEROES */
#define NBDC_TRIM_MAX        (1u << 30)
#define NBDC_STATUS_MAX      (1u << 30)
#define NBDC_ALIGN_MAX       (64u << 10)    /* largest minimum block size (protocol) */
#define NBDC_JOURNAL_MAX     (64u << 20)    /* bytes of copies kept */
#define NBDC_TICK_NS         250000000ull
#define NBDC_LOOK_NS         20000000ull    /* is an old connection at its end? */

struct nbdc_config {
    char host[256], port[32];               /* TCP, or: */
    char path[108];                         /* of a Unix socket, or: */
    bool vsock;
    uint32_t cid, vsock_port;
    char export[4097];
    bool tls, tls_verify;
    char tls_certificates[1024], tls_psk_file[1024], tls_username[256], tls_hostname[256];
    char dirty_bitmap[1024];                /* x-dirty-bitmap: the context to ask for */
    unsigned connections;
    uint64_t open_timeout_ns;               /* how long to go on trying at open */
};

/* enum blk_op, and: */
#define NBDC_STATUS BLK_OPS

struct nbdc_disk;
struct nbdc_conn;

/* One command, until done() is called, through any number of attempts.  The owner zeroes
 * it and fills the first part. */
struct nbdc_op {
    unsigned op;                            /* enum blk_op or NBDC_STATUS */
    unsigned flags;                         /* BLK_REQ_* */
    uint64_t offset, length;
    const struct iovec *iov;
    int iovcnt;
    void (*done)(struct nbdc_op *op, int result);   /* 0 or -errno; may free op */
    void *arg;
    bool recovery;                          /* the recovering fiber's own */

    uint64_t ext_length;                    /* STATUS: of the first extent */
    uint32_t ext_flags;

    void *bounce;                           /* libnbd wants one piece */
    struct nbdc_conn *conn;                 /* in flight there, or NULL */
    int answer;
    uint64_t first_ns, sent_ns, sync_seq;   /* FLUSH: covers journal entries up to here */
    struct nbdc_op *next, **prev;
};

struct nbdc_list { struct nbdc_op *first, **last; };

struct nbdc_conn {
    struct nbdc_disk *d;
    struct nbd_handle *h;                   /* NULL: none */
    int fd;                                 /* blk_net_hold() while there is h, or -1 */
    int left;                               /* the same of one closed before its end, or -1 */
    struct blk_watch watch;                 /* fd -1: not watched */
    bool up, dead, dirty, connecting;
    bool refused;                           /* an extra one that the server does not want */
    char cause[320];                        /* why it is dead */
    struct nbdc_list flight, answered;      /* oldest first */
    unsigned nflight, nchanges;             /* nchanges: sent, the server said nothing yet */
    uint64_t began_ns;                      /* of connecting */
    uint64_t moved_ns;                      /* the oldest in flight was answered, others wait */
    struct co *waiter;                      /* connects */
};

struct nbdc_disk {
    struct blk_node *n;                     /* NULL until open() is through */
    struct blk_loop *loop;
    struct nbdc_config cfg;
    struct blk_net net;
    struct nbdc_conn c[NBDC_CONNECTIONS_MAX];
    struct nbdc_list queue;
    struct blk_timer timer;
    struct blk_hook hook;

    /* The export, as the first connection found it. */
    uint64_t size;
    uint32_t min_block, opt_block, max_block;
    bool read_only, flush, fua, trim, zero, fast_zero, multi, status;

    struct blk_journal journal;
    struct nbdc_op sync_op;                 /* the journal's own flush */
    bool syncing;
    bool unsafe, unsafe_dirty;              /* cache=unsafe: no copies, a look at close */
    int lost;                               /* -errno: acknowledged changes are gone */

    bool recovering, closing;
    unsigned helpers;                       /* fibers that make further connections */
    struct co *sleeper;                     /* between attempts, or NULL */
    struct co_queue settled;                /* recovering, syncing, helpers: any has ended */
    struct nbdc_op *spare;
};

/* ---- config.c */
int nbdc_config_get(struct nbdc_config *c, struct blk_opts *o, struct blk_error *e);
/* malloc'd: the URL of the export, but for TLS, or NULL if there is none (vsock, a
 * bitmap). */
char *nbdc_config_url(const struct nbdc_config *c);
/* "host:port" or the socket's path. */
void nbdc_config_address(const struct nbdc_config *c, char *buf, size_t len);

/* ---- conn.c */
/* Fiber: connect and negotiate.  0, or -errno with a text in c->cause. */
int nbdc_conn_connect(struct nbdc_conn *c);
/* End it soon: its commands are taken back by the recovering fiber. */
void nbdc_conn_kill(struct nbdc_conn *c, const char *cause);
void nbdc_conn_close(struct nbdc_conn *c);
/* Is there a connection that was closed before its end, and the server is not there yet? */
bool nbdc_conn_has_left(struct nbdc_conn *c);
/* May the server still make changes that it has not answered? */
bool nbdc_conn_lingers(const struct nbdc_conn *c);
/* After libnbd was called: has it died, which events does it wait for? */
void nbdc_conn_look(struct nbdc_conn *c);
/* Fiber: say good-bye. */
void nbdc_conn_disconnect(struct nbdc_conn *c);
/* What libnbd says about its last error, without its function names. */
void nbdc_error_text(char *buf, size_t len);

/* ---- ops.c */
void nbdc_list_init(struct nbdc_list *l);
void nbdc_op_start(struct nbdc_disk *d, struct nbdc_op *op);
/* Fiber: start, wait.  c: there and nowhere else, for the recovering fiber. */
int nbdc_op_run(struct nbdc_disk *d, struct nbdc_conn *c, struct nbdc_op *op);
void nbdc_answers(struct nbdc_conn *c);     /* finish what was answered */
void nbdc_dispatch(struct nbdc_disk *d);
void nbdc_tick(struct nbdc_disk *d, uint64_t now);
void nbdc_recover(struct nbdc_disk *d);     /* a connection has died */
void nbdc_take_back(struct nbdc_conn *c);   /* its commands to the queue */

#endif
