/*
 * conn.c - the connections of a disk, and the calls on them.
 *
 * Invariants
 *  - A call is in exactly one place: waiting for a connection, in flight on one, in its
 *    timer after the server asked for time, or done.  Whoever takes it from there owns it.
 *  - call->conn is set only while libnfs holds the call.  Before a context is destroyed
 *    its calls are taken back (conn NULL), so what libnfs says about them then is ignored,
 *    and a late answer has nowhere to arrive: the socket is closed.
 *  - A context is never destroyed inside one of its own callbacks: they mark it failed.
 *  - One connection at a time tries to reach a server that is gone; when it is up, the
 *    others follow.
 *
 * Sending a call again is safe for all of them: READ, COMMIT, GETATTR, SETSIZE and a
 * WRITE of the same bytes to the same place have the same effect twice.  That a WRITE
 * lingering in a server that was taken for dead is executed after its own repetition and
 * after a newer WRITE of the same place cannot be excluded in NFSv3 and v4.0 (any client
 * has this); closing the connection first makes the window small.
 */
#include "protocols/nfs/nfs.h"

#include <errno.h>
#include <nfsc/libnfs-raw-nfs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define NFS_TICK_NS 250000000ull

static void conn_lost(struct nfs_conn *c, const char *cause);
static void disk_dispatch(struct nfs_disk *d);
static int conn_start(struct nfs_conn *c);

/* ---- lists --------------------------------------------------------------------------- */

void nfs_calls_init(struct nfs_calls *q)
{
    q->first = NULL;
    q->last = &q->first;
}

static void calls_append(struct nfs_calls *q, struct nfs_call *call)
{
    call->next = NULL;
    call->prev = q->last;
    *q->last = call;
    q->last = &call->next;
}

static void calls_remove(struct nfs_calls *q, struct nfs_call *call)
{
    *call->prev = call->next;
    if (call->next)
        call->next->prev = call->prev;
    else
        q->last = call->prev;
}

static struct nfs_call *calls_pop(struct nfs_calls *q)
{
    struct nfs_call *call = q->first;
    if (call)
        calls_remove(q, call);
    return call;
}

/* ---- calls --------------------------------------------------------------------------- */

static void call_done(struct nfs_disk *d, struct nfs_call *call, int err)
{
    d->ncalls--;
    call->err = err;
    call->done(call);
}

/* Fail all that wait for a connection. */
static void waiting_fail(struct nfs_disk *d, int err)
{
    struct nfs_call *call;
    while ((call = calls_pop(&d->waiting)))
        call_done(d, call, err);
}

static void call_wait_more(void *arg)
{
    struct nfs_call *call = arg;
    struct nfs_disk *d = call->conn->d;
    call->conn = NULL;
    if (blk_net_over(&d->net, "no connection")) {
        call_done(d, call, -EIO);
        return;
    }
    calls_append(&d->waiting, call);
    disk_dispatch(d);
}

/* The server is busy (JUKEBOX, DELAY, grace period): the same steps as reconnecting. */
static void call_later(struct nfs_conn *c, struct nfs_call *call)
{
    struct nfs_disk *d = c->d;
    uint64_t now = blk_now_ns();
    if (blk_net_expired(&d->net, call->start, now)) {
        blk_report("%s: the server asks to wait for too long", d->net.shown);
        call_done(d, call, -EIO);
        return;
    }
    call->conn = c;             /* only to find the disk; libnfs is done with it */
    call->timer.fn = call_wait_more;
    call->timer.arg = call;
    blk_timer_set(d->loop, &call->timer, now + blk_net_step(call->later++));
}

static void call_answered(struct rpc_context *rpc, int status, void *data, void *arg)
{
    struct nfs_call *call = arg;
    struct nfs_conn *c = call->conn;

    if (!c)
        return;                 /* taken back already */
    calls_remove(&c->inflight, call);
    c->ninflight--;
    call->conn = NULL;
    if (status != RPC_STATUS_SUCCESS) {
        if (!c->failed && status == RPC_STATUS_ERROR && data)
            snprintf(c->cause, sizeof(c->cause), "%s", (const char *)data);
        calls_append(&c->odd, call);
        return;
    }
    c->heard = blk_now_ns();
    blk_net_progress(&c->d->net);
    int r = c->d->where.version->receive(call, data);
    if (r == NFS_LATER)
        call_later(c, call);
    else
        call_done(c->d, call, r);
}

static void call_send(struct nfs_conn *c, struct nfs_call *call)
{
    struct nfs_disk *d = c->d;
    call->sent = blk_now_ns();
    call->conn = c;
    calls_append(&c->inflight, call);
    c->ninflight++;
    c->dirty = true;
    if (!d->tick.at)
        blk_timer_set(d->loop, &d->tick, call->sent + NFS_TICK_NS);
    int r = d->where.version->send(c->rpc, call, call_answered);
    if (!r)
        return;
    calls_remove(&c->inflight, call);
    c->ninflight--;
    call->conn = NULL;
    call_done(d, call, r);
}

static struct nfs_conn *disk_pick(struct nfs_disk *d)
{
    struct nfs_conn *best = NULL;
    for (unsigned i = 0; i < d->where.connections; i++) {
        struct nfs_conn *c = &d->conns[i];
        if (c->state == NFS_READY && !c->failed && (!best || c->ninflight < best->ninflight))
            best = c;
    }
    return best;
}

static void disk_dispatch(struct nfs_disk *d)
{
    struct nfs_conn *c;
    while (d->waiting.first && (c = disk_pick(d)))
        call_send(c, calls_pop(&d->waiting));
}

void nfs_call_start(struct nfs_disk *d, struct nfs_call *call)
{
    struct nfs_conn *c = disk_pick(d);

    d->ncalls++;
    call->start = blk_now_ns();
    call->conn = NULL;
    call->later = 0;
    if (c && !d->waiting.first) {
        call_send(c, call);
        return;
    }
    calls_append(&d->waiting, call);
    /* Where nothing helps it fails in the next turn: not inside the caller. */
    if (d->net.given_up || !d->tick.at)
        blk_timer_set(d->loop, &d->tick, call->start + (d->net.given_up ? 0 : NFS_TICK_NS));
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

/* A call without an answer for too long: its connection is dead, and so are those on
 * which nothing was heard since it was sent. */
static void disk_timeout(struct nfs_disk *d, struct nfs_conn *dead, uint64_t sent)
{
    char cause[96];
    snprintf(cause, sizeof(cause), "no answer from %.48s for %u s", d->where.host,
             (unsigned)(d->net.timeout_ns / 1000000000u));
    for (unsigned i = 0; i < d->where.connections; i++) {
        struct nfs_conn *c = &d->conns[i];
        if (c == dead || (c->state == NFS_READY && c->heard <= sent))
            conn_lost(c, cause);
    }
}

static void disk_expire_waiting(struct nfs_disk *d, uint64_t now)
{
    struct nfs_call *call, *next;
    if (d->net.given_up) {
        waiting_fail(d, -EIO);
        return;
    }
    for (call = d->waiting.first; call; call = next) {
        next = call->next;
        if (blk_net_expired(&d->net, call->start, now)) {
            calls_remove(&d->waiting, call);
            call_done(d, call, -EIO);
            next = d->waiting.first;    /* done() may have changed the list */
        }
    }
}

static void disk_tick(void *arg)
{
    struct nfs_disk *d = arg;
    uint64_t now = blk_now_ns();

    for (unsigned i = 0; i < d->where.connections; i++) {
        struct nfs_call *oldest = d->conns[i].inflight.first;
        if (oldest && now - oldest->sent >= d->net.timeout_ns)
            disk_timeout(d, &d->conns[i], oldest->sent);
    }
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
    nfs_set_autoreconnect(nfs, 0);      /* that is done here */
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

/* While it connects libnfs may have closed its socket and opened another one with the
 * same number, so epoll is told anew each time. */
static void conn_rearm(struct nfs_conn *c)
{
    int fd = nfs_get_fd(c->nfs);
    uint32_t events = (uint32_t)nfs_which_events(c->nfs);

    if (c->watched && (c->state != NFS_READY || fd != c->watch.fd)) {
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

static void conn_service(struct nfs_conn *c, int revents)
{
    struct nfs_call *call;

    c->in_service = true;
    c->dirty = false;
    c->cause[0] = 0;
    int r = nfs_service(c->nfs, revents);
    c->in_service = false;
    if (r < 0 || c->failed || nfs_get_fd(c->nfs) < 0) {
        const char *why = nfs_get_error(c->nfs);
        char cause[160];
        snprintf(cause, sizeof(cause), "%s", c->failed && c->cause[0] ? c->cause :
                 why && *why ? why : "connection lost");
        conn_lost(c, cause);
        return;
    }
    conn_rearm(c);
    /* The connection works and this is no answer: it cannot be understood, or the
     * server refuses the caller. */
    while ((call = calls_pop(&c->odd))) {
        blk_report("%s: the server's answer is of no use: %s", c->d->net.shown, c->cause);
        call_done(c->d, call, -EPROTO);
    }
}

static void conn_event(void *arg, uint32_t events)
{
    conn_service(arg, (int)(events & (EPOLLIN | EPOLLOUT | EPOLLHUP | EPOLLERR)));
}

/* Frees the context; its calls go back to wait, oldest first and before the others. */
static void conn_drop(struct nfs_conn *c)
{
    struct nfs_disk *d = c->d;
    struct nfs_calls back;
    struct nfs_call *call;

    blk_timer_cancel(d->loop, &c->timer);
    if (c->watched)
        blk_watch_del(d->loop, &c->watch);
    c->watched = false;
    c->state = NFS_DOWN;
    nfs_calls_init(&back);
    while ((call = calls_pop(&c->inflight)) || (call = calls_pop(&c->odd))) {
        call->conn = NULL;
        calls_append(&back, call);
    }
    c->ninflight = 0;
    while ((call = calls_pop(&d->waiting)))
        calls_append(&back, call);
    while ((call = calls_pop(&back)))
        calls_append(&d->waiting, call);
    nfs_destroy_context(c->nfs);
    c->nfs = NULL;
    c->rpc = NULL;
    c->failed = c->dirty = false;
}

static bool disk_has_ready(const struct nfs_disk *d)
{
    for (unsigned i = 0; i < d->where.connections; i++)
        if (d->conns[i].state == NFS_READY)
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

static void conn_lost(struct nfs_conn *c, const char *cause)
{
    struct nfs_disk *d = c->d;
    char why[256];

    snprintf(why, sizeof(why), "%s", cause);
    why[strcspn(why, "\n")] = 0;
    conn_drop(c);
    if (d->closing)
        return;
    if (d->opening) {
        snprintf(c->cause, sizeof(c->cause), "%.150s", why);
        waiting_fail(d, -EIO);
        disk_wake_opener(d);
        return;
    }
    if (!disk_has_ready(d)) {
        blk_net_lost(&d->net, why);
        if (blk_net_over(&d->net, why))
            waiting_fail(d, -EIO);
    }
    disk_retry(d);
    disk_dispatch(d);
}

static void conn_up(struct rpc_context *rpc, int status, void *data, void *arg)
{
    struct nfs_conn *c = arg;
    if (!c->nfs || c->state != NFS_CONNECTING)
        return;
    if (status != RPC_STATUS_SUCCESS) {
        const char *why = nfs_get_error(c->nfs);
        c->failed = true;
        snprintf(c->cause, sizeof(c->cause), "%s", why && *why ? why : "cannot connect");
        return;
    }
    c->state = NFS_READY;
    c->heard = blk_now_ns();
    blk_timer_cancel(c->d->loop, &c->timer);
    blk_net_up(&c->d->net);
    disk_dispatch(c->d);
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
    conn_lost(c, cause);
}

static int conn_start(struct nfs_conn *c)
{
    struct nfs_disk *d = c->d;
    const struct nfs_where *w = &d->where;
    unsigned port = w->nfs_port ? w->nfs_port : w->version->port;

    c->nfs = nfs_context_new(w);
    if (!c->nfs)
        return -ENOMEM;
    c->rpc = nfs_get_rpc_context(c->nfs);
    c->state = NFS_CONNECTING;
    c->failed = c->dirty = false;
    c->cause[0] = 0;
    nfs_calls_init(&c->inflight);
    nfs_calls_init(&c->odd);
    c->watch.fn = conn_event;
    c->watch.arg = c;
    c->timer.fn = conn_too_slow;
    c->timer.arg = c;
    blk_timer_set(d->loop, &c->timer, blk_now_ns() + d->net.timeout_ns);
    int r = port ? rpc_connect_port_async(c->rpc, w->address, (int)port, NFS_PROGRAM,
                                          w->version->number, conn_up, c)
                 : rpc_connect_program_async(c->rpc, w->address, NFS_PROGRAM,
                                             w->version->number, conn_up, c);
    if (r < 0 || c->failed) {
        char cause[160];
        snprintf(cause, sizeof(cause), "%s", nfs_get_error(c->nfs));
        conn_lost(c, cause);
        return -EIO;
    }
    conn_rearm(c);
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
        if (d->conns[i].state == NFS_CONNECTING)
            return;             /* its own end will say more */
    if (conn_start(&d->conns[0]) == -ENOMEM)
        disk_retry(d);
}

/* Submissions of one turn leave in one go, without a trip through epoll. */
static bool disk_hook(void *arg)
{
    struct nfs_disk *d = arg;
    bool work = false;
    for (unsigned i = 0; i < d->where.connections; i++) {
        struct nfs_conn *c = &d->conns[i];
        if (c->dirty && c->state == NFS_READY && !c->in_service) {
            conn_service(c, EPOLLOUT);
            work = true;
        }
    }
    return work;
}

void nfs_conns_more(struct nfs_disk *d)
{
    for (unsigned i = 0; i < d->where.connections; i++)
        if (d->conns[i].state == NFS_DOWN && conn_start(&d->conns[i]))
            break;
}

int nfs_conns_start(struct nfs_disk *d, struct blk_error *e)
{
    struct nfs_conn *c = &d->conns[0];

    nfs_calls_init(&d->waiting);
    for (unsigned i = 0; i < d->where.connections; i++)
        d->conns[i].d = d;
    d->tick.fn = disk_tick;
    d->retry.fn = disk_retry_now;
    d->tick.arg = d->retry.arg = d->hook.arg = d;
    d->hook.fn = disk_hook;
    blk_hook_add(d->loop, &d->hook);
    d->opening = true;
    int r = conn_start(c);
    if (!r) {
        d->opener = co_self();
        co_yield();
    }
    if (c->state == NFS_READY)
        return 0;
    return blk_err(e, r == -ENOMEM ? ENOMEM : EIO, "%s", c->cause[0] ? c->cause :
                   "cannot connect");
}

void nfs_conns_stop(struct nfs_disk *d)
{
    d->closing = true;
    blk_timer_cancel(d->loop, &d->tick);
    blk_timer_cancel(d->loop, &d->retry);
    blk_hook_del(d->loop, &d->hook);
    for (unsigned i = 0; i < d->where.connections; i++)
        if (d->conns[i].nfs)
            conn_drop(&d->conns[i]);
}
