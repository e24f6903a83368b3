/*
 * conn.c - the connections of a disk, and the calls on them.
 *
 * Invariants
 *  - A call is in exactly one place: waiting for a connection, in flight on one, in its
 *    timer after the server asked for time, or done.  Whoever takes it from there owns it.
 *  - What libnfs holds is a struct nfs_sent: a call can be taken back from it (sent->call
 *    NULL), so a late answer finds no call that is somebody else's by now.
 *  - A context is never destroyed inside one of its own callbacks: they mark it failed.
 *  - One connection at a time tries to reach a server that is gone; when it is up, the
 *    others follow.
 *
 * What is in flight on a connection that breaks is sent again on another one.  For calls
 * that change nothing that is always safe.  A WRITE (or SETSIZE, MAKE, UNLINK) is sent
 * again only when the server has ended the old connection and so will not execute what is
 * left in its socket; until then it stays in flight there, see stale.c.
 */
#include "protocols/nfs/nfs.h"

#include <errno.h>
#include <nfsc/libnfs-raw-nfs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define NFS_TICK_NS 250000000ull

static void conn_lost(struct nfs_conn *c, const char *cause, bool alive);
static int conn_start(struct nfs_disk *d, unsigned i);

/* ---- calls --------------------------------------------------------------------------- */

void nfs_call_done(struct nfs_disk *d, struct nfs_call *call, int err)
{
    d->ncalls--;
    call->err = err;
    call->done(call);
}

/* Fail all that wait for a connection. */
static void waiting_fail(struct nfs_disk *d, int err)
{
    struct nfs_call *call;
    while ((call = TAILQ_FIRST(&d->waiting))) {
        TAILQ_REMOVE(&d->waiting, call, entry);
        nfs_call_done(d, call, err);
    }
}

/* Older changes may still be made: newer ones would be in danger. */
static bool call_barred(const struct nfs_disk *d, const struct nfs_call *call)
{
    return d->unaccounted && nfs_op_changes(call->op);
}

static void call_wait_more(void *arg)
{
    struct nfs_call *call = arg;
    struct nfs_disk *d = call->d;
    if (blk_net_over(&d->net, "no connection")) {
        nfs_call_done(d, call, -EIO);
        return;
    }
    TAILQ_INSERT_TAIL(&d->waiting, call, entry);
    nfs_dispatch(d);
}

/* The server is busy (JUKEBOX, DELAY, grace period): the same steps as reconnecting. */
static void call_later(struct nfs_disk *d, struct nfs_call *call)
{
    uint64_t now = blk_now_ns();
    if (blk_net_expired(&d->net, call->start, now)) {
        blk_report("%s: the server asks to wait for too long", d->net.shown);
        nfs_call_done(d, call, -EIO);
        return;
    }
    call->timer.fn = call_wait_more;
    call->timer.arg = call;
    blk_timer_set(d->loop, &call->timer, now + blk_net_step(call->later++));
}

static void call_answered(struct rpc_context *rpc, int status, void *data, void *arg)
{
    struct nfs_sent *s = arg;
    struct nfs_conn *c = s->conn;
    struct nfs_disk *d = c->d;
    struct nfs_call *call = s->call;

    if (c->ending)
        return;                 /* the context is being destroyed */
    if (s == TAILQ_FIRST(&c->inflight) && TAILQ_NEXT(s, link))
        c->moved = blk_now_ns();
    TAILQ_REMOVE(&c->inflight, s, link);
    c->ninflight--;
    if (status != RPC_STATUS_SUCCESS) {
        if (!c->failed && status == RPC_STATUS_ERROR && data)
            snprintf(c->cause, sizeof(c->cause), "%s", (const char *)data);
        TAILQ_INSERT_TAIL(&c->odd, s, link);
        return;
    }
    c->heard = blk_now_ns();
    blk_net_progress(&d->net);
    nfs_sent_gone(c, s);
    if (!call)
        return;
    call->sent = NULL;
    int r = d->where.version->receive(call, data);
    if (r == NFS_LATER)
        call_later(d, call);
    else
        nfs_call_done(d, call, r);
}

static int call_queue(struct nfs_conn *c, struct nfs_call *call)
{
    struct nfs_sent *s = malloc(sizeof(*s));

    if (!s)
        return -ENOMEM;
    *s = (struct nfs_sent){ .call = call, .conn = c, .at = blk_now_ns(),
                            .changes = nfs_op_changes(call->op) };
    call->sent = s;
    TAILQ_INSERT_TAIL(&c->inflight, s, link);
    c->ninflight++;
    c->nchanges += s->changes;
    c->dirty = true;
    int r = c->d->where.version->send(c->rpc, call, call_answered);
    if (!r)
        return 0;
    TAILQ_REMOVE(&c->inflight, s, link);
    c->ninflight--;
    nfs_sent_gone(c, s);
    call->sent = NULL;
    return r;
}

static void call_send(struct nfs_conn *c, struct nfs_call *call)
{
    struct nfs_disk *d = c->d;
    if (!d->tick.at)
        blk_timer_set(d->loop, &d->tick, blk_now_ns() + NFS_TICK_NS);
    int r = call_queue(c, call);
    if (r)
        nfs_call_done(d, call, r);
}

static struct nfs_conn *disk_pick(struct nfs_disk *d)
{
    struct nfs_conn *best = NULL;
    for (unsigned i = 0; i < d->where.connections; i++) {
        struct nfs_conn *c = d->conns[i];
        if (c && c->state == NFS_READY && !c->failed && (!best || c->ninflight < best->ninflight))
            best = c;
    }
    return best;
}

void nfs_dispatch(struct nfs_disk *d)
{
    struct nfs_conn *c;
    struct nfs_call *call;
    while ((call = TAILQ_FIRST(&d->waiting)) && (c = disk_pick(d))) {
        TAILQ_REMOVE(&d->waiting, call, entry);
        if (call_barred(d, call))
            nfs_call_done(d, call, -EIO);
        else
            call_send(c, call);
    }
}

void nfs_call_start(struct nfs_disk *d, struct nfs_call *call)
{
    struct nfs_conn *c = disk_pick(d);

    bool fails = d->net.given_up || call_barred(d, call);

    d->ncalls++;
    call->d = d;
    call->start = blk_now_ns();
    call->sent = NULL;
    call->later = 0;
    if (c && TAILQ_EMPTY(&d->waiting) && !call_barred(d, call)) {
        call_send(c, call);
        return;
    }
    TAILQ_INSERT_TAIL(&d->waiting, call, entry);
    /* Where nothing helps it fails in the next turn: not inside the caller. */
    if (fails || !d->tick.at)
        blk_timer_set(d->loop, &d->tick, call->start + (fails ? 0 : NFS_TICK_NS));
}

static void call_wake(struct nfs_call *call)
{
    co_wake(call->arg);
}

int nfs_call_wait(struct nfs_disk *d, struct nfs_call *call)
{
    call->done = call_wake;
    call->arg = co_self();
    nfs_call_start(d, call);
    co_yield();
    return call->err;
}

int nfs_take_data(struct nfs_call *call, const char *data, uint32_t len)
{
    if (len > call->count)
        return -EPROTO;         /* more than was asked for */
    uint64_t skip = call->iov_at;
    call->got = len;
    for (int i = 0; i < call->iovcnt && len; i++) {
        const struct iovec *v = &call->iov[i];
        if (skip >= v->iov_len) {
            skip -= v->iov_len;
            continue;
        }
        size_t part = BLK_MIN((size_t)len, v->iov_len - (size_t)skip);
        memcpy((char *)v->iov_base + skip, data, part);
        data += part;
        len -= (uint32_t)part;
        skip = 0;
    }
    return 0;
}

/* ---- deadlines ------------------------------------------------------------------------ */

/* A call without an answer for too long, from the answer to the one before it on: its
 * connection is dead, and so are those on which nothing was heard since it was sent. */
static void disk_timeout(struct nfs_disk *d, struct nfs_conn *dead, uint64_t sent)
{
    char cause[96];
    snprintf(cause, sizeof(cause), "no answer from %.48s for %u s", d->where.host,
             (unsigned)(d->net.timeout_ns / 1000000000u));
    for (unsigned i = 0; i < d->where.connections; i++) {
        struct nfs_conn *c = d->conns[i];
        if (c && (c == dead || (c->state == NFS_READY && c->heard <= sent)))
            conn_lost(c, cause, true);
    }
}

static void disk_expire_waiting(struct nfs_disk *d, uint64_t now)
{
    struct nfs_call *call, *next;
    if (d->net.given_up) {
        waiting_fail(d, -EIO);
        return;
    }
    for (call = TAILQ_FIRST(&d->waiting); call; call = next) {
        next = TAILQ_NEXT(call, entry);
        if (call_barred(d, call) || blk_net_expired(&d->net, call->start, now)) {
            TAILQ_REMOVE(&d->waiting, call, entry);
            nfs_call_done(d, call, -EIO);
            next = TAILQ_FIRST(&d->waiting);    /* done() may have changed the list */
        }
    }
}

static void disk_tick(void *arg)
{
    struct nfs_disk *d = arg;
    uint64_t now = blk_now_ns();

    for (unsigned i = 0; i < d->where.connections; i++) {
        struct nfs_conn *c = d->conns[i];
        struct nfs_sent *oldest = c ? TAILQ_FIRST(&c->inflight) : NULL;
        if (oldest && now - BLK_MAX(oldest->at, c->moved) >= d->net.timeout_ns)
            disk_timeout(d, c, oldest->at);
    }
    nfs_stale_expire(d, now);
    disk_expire_waiting(d, now);
    if (d->ncalls && !d->tick.at)
        blk_timer_set(d->loop, &d->tick, now + NFS_TICK_NS);
}

/* ---- one connection --------------------------------------------------------------------- */

struct nfs_context *nfs_context_new(const struct nfs_where *w)
{
    struct nfs_context *nfs = nfs_init_context();
    if (!nfs)
        return NULL;
    nfs_set_autoreconnect(nfs, 0);      /* that is done here, */
    nfs_set_timeout(nfs, -1);           /* and so is this */
    if (w->uid >= 0)
        nfs_set_uid(nfs, w->uid);
    if (w->gid >= 0)
        nfs_set_gid(nfs, w->gid);
    if (w->syncnt > 0)
        nfs_set_tcp_syncnt(nfs, w->syncnt);
    if (w->debug > 0)
        nfs_set_debug(nfs, w->debug);
    return nfs;
}

void nfs_conn_watch(struct nfs_conn *c, int fd, uint32_t events)
{
    /* While it connects libnfs may have closed its socket and opened another one with
     * the same number, so epoll is told anew each time. */
    if (c->watched && (c->state == NFS_CONNECTING || fd != c->watch.fd)) {
        blk_watch_del(c->d->loop, &c->watch);
        c->watched = false;
    }
    if (c->watched) {
        blk_watch_mod(c->d->loop, &c->watch, events);
    } else if (fd >= 0) {
        c->watch.fd = fd;
        c->watch.events = events;
        c->watched = !blk_watch_add(c->d->loop, &c->watch);
    }
}

void nfs_conn_rearm(struct nfs_conn *c)
{
    int fd = c->fd >= 0 ? c->fd : nfs_get_fd(c->nfs);
    nfs_conn_watch(c, fd, (uint32_t)nfs_which_events(c->nfs));
}

static void conn_broken(struct nfs_conn *c)
{
    const char *why = c->failed && c->cause[0] ? c->cause : c->error ? strerror(c->error) :
                      nfs_get_error(c->nfs);
    if (c->state == NFS_STALE)
        nfs_stale_broken(c);
    else
        conn_lost(c, why && *why ? why : "connection lost", false);
}

static void conn_service(struct nfs_conn *c, int revents)
{
    struct nfs_sent *s;

    c->in_service = true;
    c->dirty = false;
    c->cause[0] = 0;
    int r = nfs_service(c->nfs, revents);
    c->in_service = false;
    if (r < 0 || c->failed || nfs_get_fd(c->nfs) < 0) {
        conn_broken(c);
        return;
    }
    nfs_conn_rearm(c);
    /* The connection works and this is no answer: it cannot be understood, or the
     * server refuses the caller. */
    while ((s = TAILQ_FIRST(&c->odd))) {
        struct nfs_call *call = s->call;
        TAILQ_REMOVE(&c->odd, s, link);
        nfs_sent_gone(c, s);
        if (!call)
            continue;
        call->sent = NULL;
        blk_report("%s: the server's answer is of no use: %s", c->d->net.shown, c->cause);
        nfs_call_done(c->d, call, -EPROTO);
    }
    if (c->state == NFS_STALE)
        nfs_stale_look(c);
}

static void conn_event(void *arg, uint32_t events)
{
    struct nfs_conn *c = arg;
    socklen_t len = sizeof(c->error);

    if (events & EPOLLERR && c->fd >= 0)
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &c->error, &len);
    conn_service(c, (int)(events & (EPOLLIN | EPOLLOUT | EPOLLHUP | EPOLLERR)));
}

static void take_back(struct nfs_disk *d, struct nfs_sents *q, bool all)
{
    struct nfs_sent *s;
    TAILQ_FOREACH_REVERSE(s, q, nfs_sents, link) {
        if (!s->call || (s->changes && !all))
            continue;
        TAILQ_INSERT_HEAD(&d->waiting, s->call, entry);
        s->call->sent = NULL;
        s->call = NULL;
    }
}

void nfs_conn_take_back(struct nfs_conn *c, bool all)
{
    take_back(c->d, &c->odd, all);
    take_back(c->d, &c->inflight, all);
}

void nfs_conn_end_context(struct nfs_conn *c)
{
    nfs_conn_watch(c, -1, 0);
    c->ending = true;
    if (c->nfs)
        nfs_destroy_context(c->nfs);
    c->ending = false;
    c->nfs = NULL;
    c->rpc = NULL;
    TAILQ_CONCAT(&c->inflight, &c->odd, link);
}

void nfs_conn_free(struct nfs_conn *c)
{
    struct nfs_sent *s;

    blk_timer_cancel(c->d->loop, &c->timer);
    nfs_conn_end_context(c);
    while ((s = TAILQ_FIRST(&c->inflight))) {
        TAILQ_REMOVE(&c->inflight, s, link);
        nfs_sent_gone(c, s);
    }
    if (c->fd >= 0)
        close(c->fd);
    free(c);
}

static bool disk_has_ready(const struct nfs_disk *d)
{
    for (unsigned i = 0; i < d->where.connections; i++)
        if (d->conns[i] && d->conns[i]->state == NFS_READY)
            return true;
    return false;
}

/* Try again soon, unless that is under way. */
static void disk_retry(struct nfs_disk *d)
{
    if (!d->retry.at)
        blk_timer_set(d->loop, &d->retry, blk_now_ns() + blk_net_next(&d->net));
}

static void disk_wake_opener(struct nfs_disk *d)
{
    struct co *opener = d->opener;
    d->opener = NULL;
    if (opener)
        co_wake(opener);
}

/* The slot is free; what can be sent elsewhere waits. */
static void conn_leave(struct nfs_conn *c, bool alive)
{
    struct nfs_disk *d = c->d;

    for (unsigned i = 0; i < d->where.connections; i++)
        if (d->conns[i] == c)
            d->conns[i] = NULL;
    if (c->state == NFS_READY && c->nchanges && !blk_net_ended(c->fd, c->error)) {
        nfs_stale_add(c, alive);
    } else {
        nfs_conn_take_back(c, true);
        nfs_conn_free(c);
    }
}

/* alive: only the server does not answer; else libnfs has no more use for it. */
static void conn_lost(struct nfs_conn *c, const char *cause, bool alive)
{
    struct nfs_disk *d = c->d;
    char why[256];

    snprintf(why, sizeof(why), "%s", cause);
    why[strcspn(why, "\n")] = 0;
    conn_leave(c, alive);
    if (d->closing)
        return;
    if (d->opening) {
        snprintf(d->cause, sizeof(d->cause), "%.150s", why);
        waiting_fail(d, -EIO);
        nfs_stale_expire(d, blk_now_ns());
        disk_wake_opener(d);
        return;
    }
    if (!disk_has_ready(d)) {
        blk_net_lost(&d->net, why);
        if (blk_net_over(&d->net, why))
            waiting_fail(d, -EIO);
    }
    disk_retry(d);
    nfs_dispatch(d);
}

static void conn_up(struct rpc_context *rpc, int status, void *data, void *arg)
{
    struct nfs_conn *c = arg;
    if (!c->nfs || c->state != NFS_CONNECTING)
        return;
    int r = status == RPC_STATUS_SUCCESS ? blk_net_hold(nfs_get_fd(c->nfs)) : -1;
    c->fd = r < 0 ? -1 : r;
    if (r < 0) {
        const char *why = status == RPC_STATUS_SUCCESS ? strerror(-r) : nfs_get_error(c->nfs);
        c->failed = true;
        snprintf(c->cause, sizeof(c->cause), "%s", why && *why ? why : "cannot connect");
        return;
    }
    c->state = NFS_READY;
    nfs_conn_rearm(c);          /* by our fd, before libnfs may close its own */
    c->heard = blk_now_ns();
    blk_timer_cancel(c->d->loop, &c->timer);
    blk_net_up(&c->d->net);
    nfs_dispatch(c->d);
    disk_wake_opener(c->d);
    if (!c->d->opening)
        nfs_conns_more(c->d);
}

static void conn_too_slow(void *arg)
{
    struct nfs_conn *c = arg;
    char cause[96];
    snprintf(cause, sizeof(cause), "no answer from %.48s to connecting for %u s",
             c->d->where.host, (unsigned)(c->d->net.timeout_ns / 1000000000u));
    conn_lost(c, cause, false);
}

static struct nfs_conn *conn_new(struct nfs_disk *d)
{
    struct nfs_conn *c = calloc(1, sizeof(*c));

    if (!c || !(c->nfs = nfs_context_new(&d->where))) {
        free(c);
        return NULL;
    }
    c->d = d;
    c->rpc = nfs_get_rpc_context(c->nfs);
    c->fd = -1;
    TAILQ_INIT(&c->inflight);
    TAILQ_INIT(&c->odd);
    c->watch.fn = conn_event;
    c->timer.fn = conn_too_slow;
    c->watch.arg = c->timer.arg = c;
    return c;
}

static int conn_start(struct nfs_disk *d, unsigned i)
{
    const struct nfs_where *w = &d->where;
    unsigned port = w->nfs_port ? w->nfs_port : w->version->port;
    struct nfs_conn *c = conn_new(d);

    if (!c)
        return -ENOMEM;
    d->conns[i] = c;
    blk_timer_set(d->loop, &c->timer, blk_now_ns() + d->net.timeout_ns);
    int r = port ? rpc_connect_port_async(c->rpc, w->address, (int)port, NFS_PROGRAM,
                                          w->version->number, conn_up, c)
                 : rpc_connect_program_async(c->rpc, w->address, NFS_PROGRAM,
                                             w->version->number, conn_up, c);
    if (r < 0 || c->failed) {
        conn_lost(c, nfs_get_error(c->nfs), false);
        return -EIO;
    }
    nfs_conn_rearm(c);
    return 0;
}

/* ---- all of them -------------------------------------------------------------------------- */

static void disk_retry_now(void *arg)
{
    struct nfs_disk *d = arg;
    if (disk_has_ready(d)) {
        nfs_conns_more(d);
        return;
    }
    for (unsigned i = 0; i < d->where.connections; i++)
        if (d->conns[i])
            return;             /* it connects: its own end will say more */
    if (conn_start(d, 0) == -ENOMEM)
        disk_retry(d);
}

/* Submissions of one turn leave in one go, without a trip through epoll. */
static bool disk_hook(void *arg)
{
    struct nfs_disk *d = arg;
    bool work = false;
    for (unsigned i = 0; i < d->where.connections; i++) {
        struct nfs_conn *c = d->conns[i];
        if (c && c->dirty && c->state == NFS_READY && !c->in_service) {
            conn_service(c, EPOLLOUT);
            work = true;
        }
    }
    return work;
}

void nfs_conns_more(struct nfs_disk *d)
{
    for (unsigned i = 0; i < d->where.connections; i++)
        if (!d->conns[i] && conn_start(d, i))
            break;
}

int nfs_conns_start(struct nfs_disk *d, struct blk_error *e)
{
    TAILQ_INIT(&d->waiting);
    d->tick.fn = disk_tick;
    d->retry.fn = disk_retry_now;
    d->tick.arg = d->retry.arg = d->hook.arg = d;
    d->hook.fn = disk_hook;
    blk_hook_add(d->loop, &d->hook);
    d->opening = true;
    int r = conn_start(d, 0);
    if (!r) {
        d->opener = co_self();
        co_yield();
    }
    if (disk_has_ready(d))
        return 0;
    return blk_err(e, r == -ENOMEM ? ENOMEM : EIO, "%s", d->cause[0] ? d->cause :
                   "cannot connect");
}

void nfs_conns_stop(struct nfs_disk *d)
{
    d->closing = true;
    blk_timer_cancel(d->loop, &d->tick);
    blk_timer_cancel(d->loop, &d->retry);
    blk_hook_del(d->loop, &d->hook);
    for (unsigned i = 0; i < d->where.connections; i++)
        if (d->conns[i])
            nfs_conn_free(d->conns[i]);
    nfs_stale_end(d);
}
