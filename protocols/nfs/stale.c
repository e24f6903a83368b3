/*
 * stale.c - connections that are given up while the server may still execute changes that
 * were sent on them.
 *
 * A server that does not answer may be dead, or only slow: stopped, or waiting for its
 * disk.  Closing the connection takes nothing back that is in its socket or in its hands.
 * Were a WRITE sent again then and acknowledged, the server could execute the old copy
 * after a newer WRITE of the same place, and that would be lost.  So:
 *
 *  - A change (nfs_op_changes()) is never in flight twice.  It stays on its connection
 *    until it is answered there, which is as good as an answer elsewhere, or until the
 *    server has ended the connection; only then it is sent again.  Newer changes of the
 *    same place cannot overtake it, for it is not acknowledged yet.
 *  - Its connection is serviced meanwhile, but gets no new calls.  What changes nothing was
 *    sent again elsewhere; answers to it are dropped.
 *  - What is a sign of the end: block/net.h.  Nothing that another connection tells is.
 *  - When the policy (block/net.h) says EIO, the call fails but the copy is not forgotten:
 *    while there are such (d->unaccounted) every change fails at once.
 *  - Closing the disk waits for them, for `timeout` at most, and says so if that was not
 *    enough.
 */
#include "protocols/nfs/nfs.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

static void stale_event(void *arg, uint32_t events)
{
    nfs_stale_look(arg);
}

/* Only its end is of interest now. */
static void stale_mute(struct nfs_conn *c)
{
    nfs_conn_end_context(c);
    c->watch.fn = stale_event;
    if (!c->error)
        nfs_conn_watch(c, c->fd, EPOLLRDHUP);
}

void nfs_stale_add(struct nfs_conn *c, bool alive)
{
    c->state = NFS_STALE;
    LIST_INSERT_HEAD(&c->d->stale, c, link);
    nfs_conn_take_back(c, false);
    if (alive)
        nfs_conn_rearm(c);                  /* what is not sent yet still has to be */
    else
        stale_mute(c);
}

void nfs_stale_broken(struct nfs_conn *c)
{
    stale_mute(c);
    nfs_stale_look(c);
}

void nfs_stale_look(struct nfs_conn *c)
{
    struct nfs_disk *d = c->d;

    if (c->nchanges && !blk_net_ended(c->fd, c->error))
        return;
    LIST_REMOVE(c, link);
    nfs_conn_take_back(c, true);
    nfs_conn_free(c);
    if (!d->closing)
        nfs_dispatch(d);
}

static void stale_give_up(struct nfs_disk *d, struct nfs_sent *s)
{
    struct nfs_call *call = s->call;

    if (!d->unaccounted++ && !d->opening)
        blk_report("%s: the server may still execute a write that it did not answer; writes "
                   "fail until it answers or closes that connection", d->net.shown);
    s->given_up = true;
    s->call = NULL;
    call->sent = NULL;
    nfs_call_done(d, call, -EIO);
}

void nfs_stale_expire(struct nfs_disk *d, uint64_t now)
{
    struct nfs_conn *c;
    struct nfs_sent *s;

    LIST_FOREACH(c, &d->stale, link)
        TAILQ_FOREACH(s, &c->inflight, link)
            if (s->call && (d->net.given_up || d->opening ||
                            blk_net_expired(&d->net, s->call->start, now)))
                stale_give_up(d, s);
}

void nfs_sent_gone(struct nfs_conn *c, struct nfs_sent *s)
{
    struct nfs_disk *d = c->d;

    c->nchanges -= s->changes;
    if (s->given_up && !--d->unaccounted && d->closing)
        co_wake_all(&d->accounted);
    else if (s->given_up && !d->unaccounted)
        blk_report("%s: no old write is left with the server, writes are possible again",
                   d->net.shown);
    free(s);
}

static void stale_waited(void *arg)
{
    struct nfs_disk *d = arg;

    co_wake_all(&d->accounted);
}

void nfs_stale_end(struct nfs_disk *d)
{
    struct blk_timer t = { .fn = stale_waited, .arg = d };
    struct nfs_conn *c;

    if (d->unaccounted) {
        blk_timer_set(d->loop, &t, blk_now_ns() + d->net.timeout_ns);
        co_wait_on(&d->accounted);
        blk_timer_cancel(d->loop, &t);
    }
    if (d->unaccounted)
        blk_report("%s: closed, but the server may still execute %u old write%s: do not use the "
                   "file before it has", d->net.shown, d->unaccounted,
                   d->unaccounted > 1 ? "s" : "");
    while ((c = LIST_FIRST(&d->stale))) {
        LIST_REMOVE(c, link);
        nfs_conn_free(c);
    }
}
