/*
 * iscsi_int.h - what the files of the iSCSI driver share.
 *
 * Layers: iscsi.c (driver table, requests) -> command.c (one SCSI command: built,
 * sent, its answer judged, sent again) -> session.c (a connection to the target).
 * journal.c keeps what the target has acknowledged but may still lose; recover.c
 * brings sessions back and plays the journal; probe.c asks the LUN what it can do.
 *
 * Invariants
 *  - libiscsi's own reconnect is off.  A session that breaks is destroyed as a whole:
 *    that calls back every command in flight on it, once, as cancelled, so that no
 *    late answer can reach a request.
 *  - A command's callback never destroys its session; it marks it and wakes recover.c.
 *  - A change that a session left unanswered may still be executed, until the target has
 *    ended the session: a new login has reinstated it (with its ISID the target aborts what
 *    is left of it), or the target has closed the connection (block/net.h).  Before that
 *    nothing is sent on other sessions either: it could be overtaken by its older copy.
 *  - While lun->recovering nothing but recover.c sends commands.
 *  - Until a flush (or FUA, or a target without volatile cache) makes them durable,
 *    acknowledged writes are in the journal.  After any doubt about the target's cache
 *    (new session, UNIT ATTENTION 29h) the journal is played, in the order of
 *    acknowledgement, before any other command; a flush answered meanwhile is asked
 *    again.  So an older write never overwrites a newer one, and no flush succeeds over
 *    lost writes.
 *
 * All of it runs on the node's owner thread.
 */
#ifndef PLATTER_ISCSI_INT_H
#define PLATTER_ISCSI_INT_H

#include "block/driver.h"
#include "block/journal.h"
#include "block/net.h"

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#define ISCSI_SESSIONS_MAX   8u
#define ISCSI_TRANSFER       (512u << 10)    /* bytes of one READ or WRITE command */
#define ISCSI_ZERO_MAX       (64u << 20)     /* bytes of one WRITE SAME */
#define ISCSI_UNMAP_MAX      (1u << 30)
#define ISCSI_JOURNAL_MAX    (64u << 20)     /* bytes of copies kept */
#define ISCSI_DEPTH          128u            /* commands in flight in one session */
#define ISCSI_NOP_NS         5000000000ull   /* keep-alive interval */
#define ISCSI_NOPS_LOST      3               /* unanswered ones that end a session */
#define ISCSI_TICK_NS        1000000000ull
#define ISCSI_ATTENTIONS_MAX 30u             /* unit attentions, aborts of one command */
#define ISCSI_REDIRECTS_MAX  4u
#define ISCSI_MISSING_NS     10000000000ull  /* a missing session is tried again */

struct iscsi_lun;

struct iscsi_config {
    char host[256], target[256], initiator[256];
    unsigned port, lun, sessions;
    char user[256], password[256], target_user[256], target_password[256];
    enum iscsi_header_digest digest;
};

enum iscsi_kind {
    ISCSI_READ, ISCSI_WRITE, ISCSI_ZERO, ISCSI_UNMAP, ISCSI_SYNC, ISCSI_ASK,
};

struct iscsi_session;

/* One SCSI command, from its start until done() is called, through any number of
 * attempts.  The owner zeroes it and fills the first part. */
struct iscsi_op {
    enum iscsi_kind kind;
    bool fua, unmap;                /* ZERO: the target may deallocate */
    uint64_t offset, length;        /* bytes */
    const struct iovec *iov;
    int iovcnt;
    /* ISCSI_ASK: sends what it wants to know; done() finds the answer in op->task. */
    struct scsi_task *(*ask)(struct iscsi_op *op, struct iscsi_context *ctx);
    unsigned ask_arg;               /* for ask() */
    void (*done)(struct iscsi_op *op, int result);   /* 0 or -errno; may free op */
    void *arg;

    struct scsi_task *task;         /* of the attempt that ended, during done() */
    struct iscsi_session *session;  /* in flight there, or NULL */
    uint64_t first_ns, sent_ns, not_before_ns;
    uint64_t sync_seq;              /* SYNC: covers journal entries up to here */
    unsigned attentions, busy;
    bool recovery;                  /* recover.c's own: goes past the queue */
    struct iscsi_op *next, **prev;
};

struct iscsi_list { struct iscsi_op *first, *last; };

struct iscsi_session {
    struct iscsi_lun *lun;
    unsigned index;
    uint32_t isid;                  /* the same for every connection: the target then ends
                                       what the old one had in flight */
    struct iscsi_context *ctx;      /* NULL: none */
    struct blk_watch watch;         /* fd -1: not watched */
    bool up;                        /* logged in and taking commands */
    bool dead;                      /* to be destroyed */
    bool disabled;                  /* the target takes fewer sessions than asked for */
    char cause[256];                /* why it is dead */
    int held;                       /* blk_net_hold() of its latest connection, or -1 */
    bool unanswered;                /* that one left changes behind */
    uint64_t nop_ns;
    struct iscsi_list flight;       /* oldest first */
    unsigned nflight;
    uint64_t moved_ns;              /* the oldest in flight was answered, others wait */
    /* Connecting, step by step: */
    struct co *waiter;
    bool step_done;
    int step_status;
};

struct iscsi_lun {
    struct blk_node *n;             /* NULL until open() is through */
    struct blk_loop *loop;
    struct iscsi_config cfg;
    struct blk_net net;
    struct iscsi_session s[ISCSI_SESSIONS_MAX];
    struct iscsi_list queue;        /* to be sent, in order */
    struct iscsi_list delayed;      /* told BUSY: wait for not_before_ns */
    struct blk_timer timer;
    struct blk_hook hook;

    /* The LUN, from probe.c. */
    uint32_t block;                 /* bytes */
    uint64_t blocks;
    bool write_protected, volatile_cache, dpofua, no_sync;
    bool thin, can_unmap, can_ws_unmap, zero_unmapped;
    uint32_t max_transfer, opt_transfer, max_unmap;     /* blocks, 0: not said */
    uint64_t max_write_same;
    char serial[256];               /* "naa...", hex; tells it from another LUN */

    struct blk_journal journal;
    struct iscsi_op sync_op;        /* the journal's own flush */
    bool syncing;
    bool replay;                    /* the target may have lost what is in the journal */
    bool capacity_changed;
    int lost;                       /* -errno: acknowledged writes could not be replayed */

    bool recovering, closing;
    bool conflict_told;
    struct co *recoverer;           /* sleeping between attempts, or NULL */
    struct co *quiet;               /* waits until nothing is in flight */
    struct co_queue recovered;
    uint64_t missing_ns;            /* when sessions that did not come back are tried again */
    struct iscsi_op *spare;         /* free list */
};

/* ---- config.c */
int iscsi_config_get(struct iscsi_config *c, struct blk_opts *o, struct blk_error *e);

/* ---- session.c */
/* Fiber: connect and log in. 0 or -errno with a text in s->cause. */
int iscsi_session_connect(struct iscsi_session *s);
void iscsi_session_destroy(struct iscsi_session *s);
/* After destroy: may the target still make changes that it has not answered? */
bool iscsi_session_lingers(const struct iscsi_session *s);
/* After destroy, when the disk is closed. */
void iscsi_session_forget(struct iscsi_session *s);
/* End it soon: recover.c destroys it.  Any time, also from callbacks. */
void iscsi_session_kill(struct iscsi_session *s, const char *cause);
void iscsi_session_arm(struct iscsi_session *s);
void iscsi_session_push(struct iscsi_session *s);    /* send what is queued, now */
void iscsi_session_tick(struct iscsi_session *s, uint64_t now);
/* Fiber: say good-bye; short. */
void iscsi_session_logout(struct iscsi_session *s);

/* ---- command.c */
void iscsi_op_start(struct iscsi_lun *lun, struct iscsi_op *op);
void iscsi_op_start_first(struct iscsi_lun *lun, struct iscsi_op *op);
/* Fiber: run one, wait. op->done and arg are used. On success the task is the
 * caller's to free (scsi_free_scsi_task). s: that session, or NULL. */
int iscsi_op_run(struct iscsi_lun *lun, struct iscsi_session *s, struct iscsi_op *op,
                 struct scsi_task **task);
/* libiscsi's callback for every command; arg: the op. */
void iscsi_answered(struct iscsi_context *ctx, int status, void *data, void *arg);
void iscsi_dispatch(struct iscsi_lun *lun);
void iscsi_fail_queued(struct iscsi_lun *lun, int err);
void iscsi_wake_delayed(struct iscsi_lun *lun, uint64_t now);

/* ---- journal.c */
/* An acknowledged write, zero or unmap. 0 or -ENOMEM. */
int iscsi_journal_add(struct iscsi_lun *lun, const struct iscsi_op *op);
bool iscsi_journal_full(const struct iscsi_lun *lun);
/* Flush on our own before it gets full. */
void iscsi_journal_relieve(struct iscsi_lun *lun);
/* Acknowledged writes are gone for good: every later flush fails with err. */
void iscsi_journal_lose(struct iscsi_lun *lun, int err);
/* Fiber: send all of it again, oldest first. */
int iscsi_journal_replay(struct iscsi_lun *lun);

/* ---- recover.c */
void iscsi_recover(struct iscsi_lun *lun);
void iscsi_recover_missing(struct iscsi_lun *lun, uint64_t now);

/* ---- probe.c */
/* Fiber: fills the LUN's part of lun. */
int iscsi_probe(struct iscsi_lun *lun, struct blk_error *e);
int iscsi_probe_capacity(struct iscsi_lun *lun, struct iscsi_session *s, uint32_t *block,
                         uint64_t *blocks);
int iscsi_probe_serial(struct iscsi_lun *lun, struct iscsi_session *s, char *buf, size_t len);
/* Fiber: clear pending unit attentions. */
int iscsi_probe_ready(struct iscsi_lun *lun, struct iscsi_session *s);
int iscsi_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st);

#endif
