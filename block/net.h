/*
 * net.h - the one policy of the network protocols for deadlines, reconnecting,
 * back-off and what becomes of requests in flight; and its words.
 *
 * The policy
 *  - timeout (option "timeout", seconds, default 30, 0: a day): a request the server leaves
 *    unanswered that long makes its connection suspect, and what was in flight on it is
 *    sent again on a fresh one where that is safe; see blk_net_ended().
 *    One attempt to connect may last as long.
 *  - Attempts to connect follow each other after 0.1, 0.2, 0.4 ... 5 s.  The same
 *    steps are used when a server says that it is busy.
 *  - reconnect (option "reconnect", seconds, default 60, 0: never): when the server
 *    has been gone that long, whatever waits for it fails with EIO, and so does what
 *    comes later, at once, while one attempt every 5 s goes on.  When one of them
 *    succeeds the disk works again.
 *  - So no request lasts longer than timeout + reconnect: a request older than that
 *    fails with EIO also if connections come up but break again under it.
 *  - An outage is reported once when it begins, once when it is given up, and once
 *    when it ends; each line names the disk and the cause.
 *
 * Owner thread of the node; nothing here waits or allocates once set up.
 */
#ifndef PLATTER_NET_H
#define PLATTER_NET_H

#include "block/driver.h"

#define BLK_NET_TIMEOUT     30u         /* seconds, defaults */
#define BLK_NET_RECONNECT   60u
#define BLK_NET_SECONDS_MAX 86400u      /* largest value of either option */
#define BLK_NET_STEP_NS     100000000ull
#define BLK_NET_STEP_MAX_NS 5000000000ull

struct blk_net {
    uint64_t timeout_ns, reconnect_ns;
    uint64_t down_since;        /* blk_now_ns() at which the outage began, 0: none */
    unsigned tries;             /* attempts to connect since something worked */
    bool given_up;              /* the outage has outlasted reconnect */
    char shown[512];            /* the disk in messages: no credentials */
};

/* Take "timeout" and "reconnect" from o (seconds).  shown: as blk_node.shown. */
int blk_net_init(struct blk_net *net, struct blk_opts *o, const char *shown,
                 struct blk_error *e);

/* The steps: 0.1 s for tries 0, twice as much for each further one, at most 5 s. */
uint64_t blk_net_step(unsigned tries);

/* The server is gone (connection lost, timeout, refused).  Begins an outage unless
 * one is on, and reports it then. */
void blk_net_lost(struct blk_net *net, const char *cause);

/* Nanoseconds to wait before the next attempt to connect, counting it. */
uint64_t blk_net_next(struct blk_net *net);

/* Has the outage outlasted "reconnect"?  Then fail what waits with -EIO.  Reports
 * the first time.  Ask after each failed attempt, and before queueing a request. */
bool blk_net_over(struct blk_net *net, const char *cause);

/* A connection is there: ends the outage, and reports that. */
void blk_net_up(struct blk_net *net);
/* The server has answered a real request: back-off starts anew. */
static inline void blk_net_progress(struct blk_net *net) { net->tries = 0; }

/* A request made at start_ns: is it too old to be sent again? */
bool blk_net_expired(const struct blk_net *net, uint64_t start_ns, uint64_t now_ns);

/* Has the server ended a connection, so that it executes nothing more of what was sent on
 * it?  Closing it here takes nothing back from a server that is only slow: it may execute
 * an old write after newer ones.  Signs of the end are the server's FIN or RST: its process
 * has died or has closed the socket, or its host has started anew and knows no such
 * connection (for that it is probed).  The kernel's own giving up is no sign.
 *
 * blk_net_hold(): fd's connected socket once more, so that it stays open when a library
 * closes its own; the caller's to close. -errno.
 * blk_net_ended(): error: what SO_ERROR brought, if it was asked, or 0.
 * blk_net_leave(): nothing more is sent on it, nor read by the library: its copy is closed.
 * The server comes to the end of what it has; blk_net_left() asks whether it has. */
int blk_net_hold(int fd);
bool blk_net_ended(int held, int error);
void blk_net_leave(int held);
bool blk_net_left(int held);

#endif
