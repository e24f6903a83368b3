/*
 * ops.c - commands: waiting for their turn, sent, answered, taken back when their
 * connection breaks; and the fiber that brings connection and acknowledged changes back.
 */
#include "protocols/nbd/nbd_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- lists ---------------------------------------------------------------------- */

void nbdc_list_init(struct nbdc_list *l)
{
    l->first = NULL;
    l->last = &l->first;
}

static void list_append(struct nbdc_list *l, struct nbdc_op *op)
{
    op->next = NULL;
    op->prev = l->last;
    *l->last = op;
    l->last = &op->next;
}

static void list_remove(struct nbdc_list *l, struct nbdc_op *op)
{
    *op->prev = op->next;
    if (op->next)
        op->next->prev = op->prev;
    else
        l->last = op->prev;
}

static void list_prepend(struct nbdc_list *l, struct nbdc_op *op)
{
    op->next = l->first;
    op->prev = &l->first;
    if (op->next)
        op->next->prev = &op->next;
    else
        l->last = &op->next;
    l->first = op;
}

/* ---- the journal ---------------------------------------------------------------- */

static bool op_changes(const struct nbdc_op *op)
{
    return op->op == BLK_WRITE || op->op == BLK_WRITE_ZEROES || op->op == BLK_DISCARD;
}

static void journal_lose(struct nbdc_disk *d, int err)
{
    if (!d->lost)
        d->lost = err;
    blk_journal_trim(&d->journal, UINT64_MAX);
}

static void journal_relieved(struct nbdc_op *op, int result)
{
    struct nbdc_disk *d = op->arg;

    d->syncing = false;
    co_wake_all(&d->settled);
}

/* Flush on our own before there is no room. */
static void journal_relieve(struct nbdc_disk *d)
{
    if (d->syncing || d->closing)
        return;
    d->syncing = true;
    d->sync_op = (struct nbdc_op){ .op = BLK_FLUSH, .done = journal_relieved, .arg = d,
                                   .first_ns = blk_now_ns() };
    list_prepend(&d->queue, &d->sync_op);
}

static int journal_add(struct nbdc_disk *d, const struct nbdc_op *op)
{
    d->unsafe_dirty |= d->unsafe;
    if (!d->flush || d->unsafe || d->lost)
        return 0;
    /* A durable write need not be kept, unless playing an older one would undo it. */
    if (op->flags & BLK_REQ_FUA && d->fua && !d->journal.first)
        return 0;
    int r = blk_journal_add(&d->journal, op->op, op->flags & BLK_REQ_MAY_UNMAP, op->offset,
                            op->length, op->iov, op->iovcnt);
    if (!r && d->journal.bytes >= NBDC_JOURNAL_MAX / 2)
        journal_relieve(d);
    return r;
}

/* ---- the end of a command ------------------------------------------------------- */

static void op_end(struct nbdc_disk *d, struct nbdc_op *op, int result)
{
    if (!result && op->op == BLK_READ && op->bounce)
        blk_iov_from_buf(op->iov, op->iovcnt, 0, op->bounce, op->length);
    if (!result && !op->recovery && op_changes(op))
        result = journal_add(d, op);
    if (!result && op->op == BLK_FLUSH) {
        blk_journal_trim(&d->journal, op->sync_seq);
        d->unsafe_dirty = false;
    }
    if (op->op == BLK_FLUSH && !result)
        result = d->lost;
    free(op->bounce);
    op->bounce = NULL;
    op->done(op, result);
}

static void op_again(struct nbdc_disk *d, struct nbdc_op *op)
{
    if (op->recovery)
        op_end(d, op, -ENOTCONN);
    else if (d->net.given_up || blk_net_expired(&d->net, op->first_ns, blk_now_ns()))
        op_end(d, op, -EIO);
    else
        list_prepend(&d->queue, op);
}

static void fail_queued(struct nbdc_disk *d, int err)
{
    struct nbdc_op *op;

    while ((op = d->queue.first)) {
        list_remove(&d->queue, op);
        op_end(d, op, err);
    }
}

/* What waited behind a slow command has its time from that one's answer on: it is no sign of
 * a dead server that those come one after the other. */
static bool conn_late(const struct nbdc_conn *c, uint64_t now)
{
    uint64_t since = c->connecting ? c->began_ns : c->flight.first ? c->flight.first->sent_ns : now;

    if (!c->connecting && since < c->moved_ns)
        since = c->moved_ns;
    return c->h && now - since >= c->d->net.timeout_ns;
}

static bool any_late(const struct nbdc_disk *d)
{
    uint64_t now = blk_now_ns();

    for (unsigned i = 0; i < d->cfg.connections; i++)
        if (conn_late(&d->c[i], now))
            return true;
    return false;
}

/* What a server may answer is EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP,
 * ESHUTDOWN; libnbd says ENOTCONN for what it could not send or hear about. */
static void op_judge(struct nbdc_conn *c, struct nbdc_op *op)
{
    struct nbdc_disk *d = c->d;

    if (op->answer == ESHUTDOWN)
        nbdc_conn_kill(c, "the server is shutting down");
    if (op->answer == ENOTCONN || op->answer == ESHUTDOWN) {
        op_again(d, op);
        return;
    }
    blk_net_progress(&d->net);
    if (d->net.down_since && !d->recovering && !any_late(d))
        blk_net_up(&d->net);                /* it was only slow, see nbdc_tick() */
    /* The server itself says that its cache did not reach the disk. */
    if (op->op == BLK_FLUSH && op->answer)
        journal_lose(d, -op->answer);
    op_end(d, op, -op->answer);
}

void nbdc_answers(struct nbdc_conn *c)
{
    struct nbdc_list lost;
    struct nbdc_op *op;

    /* What goes back to the queue does so newest first: it goes to its front. */
    nbdc_list_init(&lost);
    while ((op = c->answered.first)) {
        list_remove(&c->answered, op);
        if (op->answer == ENOTCONN || op->answer == ESHUTDOWN)
            list_prepend(&lost, op);
        else
            op_judge(c, op);
    }
    while ((op = lost.first)) {
        list_remove(&lost, op);
        op_judge(c, op);
    }
}

void nbdc_take_back(struct nbdc_conn *c)
{
    struct nbdc_list back;
    struct nbdc_op *op;

    nbdc_answers(c);
    nbdc_list_init(&back);
    while ((op = c->flight.first)) {
        list_remove(&c->flight, op);
        op->conn = NULL;
        list_prepend(&back, op);
    }
    c->nflight = 0;
    while ((op = back.first)) {
        list_remove(&back, op);
        op_again(c->d, op);
    }
}

/* ---- sending -------------------------------------------------------------------- */

/* libnbd's callback: its lock is held. */
static int op_answered(void *arg, int *error)
{
    struct nbdc_op *op = arg;
    struct nbdc_conn *c = op->conn;

    if (c->flight.first == op && op->next)
        c->moved_ns = blk_now_ns();
    list_remove(&c->flight, op);
    c->nflight--;
    c->nchanges -= op_changes(op) && *error != ENOTCONN;
    c->dirty = true;
    op->conn = NULL;
    op->answer = *error;
    list_append(&c->answered, op);
    return 1;
}

static int op_extents(void *arg, const char *context, uint64_t offset, uint32_t *entries,
                      size_t n, int *error)
{
    struct nbdc_op *op = arg;

    for (size_t i = 0; i + 1 < n && op->ext_length < op->length; i += 2) {
        if (op->ext_length && entries[i + 1] != op->ext_flags)
            break;
        op->ext_length += entries[i];
        op->ext_flags = entries[i + 1];
    }
    return 0;
}

/* Its bytes in one piece. */
static void *op_buffer(struct nbdc_op *op)
{
    if (op->iovcnt == 1)
        return op->iov[0].iov_base;
    if (!op->bounce)
        op->bounce = malloc(op->length);
    return op->bounce;
}

static int64_t op_issue(struct nbdc_conn *c, struct nbdc_op *op)
{
    nbd_completion_callback done = { .callback = op_answered, .user_data = op };
    nbd_extent_callback extents = { .callback = op_extents, .user_data = op };
    uint32_t fua = op->flags & BLK_REQ_FUA && c->d->fua ? LIBNBD_CMD_FLAG_FUA : 0;
    uint32_t zero = (op->flags & BLK_REQ_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
                    (op->flags & BLK_REQ_FAST_ZERO ? LIBNBD_CMD_FLAG_FAST_ZERO : 0);
    void *buf = op->op == BLK_READ || op->op == BLK_WRITE ? op_buffer(op) : NULL;

    switch (op->op) {
    case BLK_READ:
        return nbd_aio_pread(c->h, buf, op->length, op->offset, done, 0);
    case BLK_WRITE:
        if (op->bounce)
            blk_iov_to_buf(op->iov, op->iovcnt, 0, buf, op->length);
        return nbd_aio_pwrite(c->h, buf, op->length, op->offset, done, fua);
    case BLK_WRITE_ZEROES:
        return nbd_aio_zero(c->h, op->length, op->offset, done, fua | zero);
    case BLK_DISCARD:
        return nbd_aio_trim(c->h, op->length, op->offset, done, fua);
    case BLK_FLUSH:
        op->sync_seq = c->d->journal.seq;
        return nbd_aio_flush(c->h, done, 0);
    default:
        op->ext_length = 0;
        return nbd_aio_block_status(c->h, op->length, op->offset, extents, done, 0);
    }
}

static void op_send(struct nbdc_conn *c, struct nbdc_op *op)
{
    char text[256];

    if ((op->op == BLK_READ || op->op == BLK_WRITE) && !op_buffer(op)) {
        op_end(c->d, op, -ENOMEM);
        return;
    }
    op->sent_ns = blk_now_ns();
    op->conn = c;
    list_append(&c->flight, op);
    c->nflight++;
    c->nchanges += op_changes(op);
    c->dirty = true;
    if (op_issue(c, op) >= 0)
        return;
    nbdc_error_text(text, sizeof(text));
    if (op->conn) {                     /* else it is among the answers */
        list_remove(&c->flight, op);
        c->nflight--;
        op->conn = NULL;
        op->answer = ENOTCONN;
        list_append(&c->answered, op);
    }
    nbdc_conn_kill(c, text);
}

static void more_fiber(void *arg)
{
    struct nbdc_conn *c = arg;
    struct nbdc_disk *d = c->d;

    if (nbdc_conn_connect(c) < 0)
        c->refused = true;
    else if (nbd_get_size(c->h) != (int64_t)d->size || nbd_can_multi_conn(c->h) <= 0) {
        c->refused = true;
        nbdc_conn_disconnect(c);
    }
    d->helpers--;
    co_wake_all(&d->settled);
}

/* All connections have much to do: one more, if the server allows several. */
static void more_connections(struct nbdc_disk *d)
{
    for (unsigned i = 1; i < d->cfg.connections && !d->helpers; i++) {
        if (d->c[i].h || d->c[i].refused)
            continue;
        d->helpers++;
        if (co_start(d->loop, more_fiber, &d->c[i]) < 0)
            d->helpers--;
        return;
    }
}

static struct nbdc_conn *pick_conn(struct nbdc_disk *d)
{
    struct nbdc_conn *best = NULL;

    for (unsigned i = 0; i < d->cfg.connections; i++) {
        struct nbdc_conn *c = &d->c[i];
        if (c->up && !c->dead && c->nflight < NBDC_DEPTH && (!best || c->nflight < best->nflight))
            best = c;
    }
    if (d->multi && d->n && (!best || best->nflight >= NBDC_BUSY))
        more_connections(d);
    return best;
}

void nbdc_dispatch(struct nbdc_disk *d)
{
    struct nbdc_conn *c;
    struct nbdc_op *op;

    while (!d->recovering && d->queue.first && (c = pick_conn(d))) {
        op = d->queue.first;
        if (op_changes(op) && d->journal.bytes >= NBDC_JOURNAL_MAX) {
            journal_relieve(d);             /* its flush goes to the front */
            if (d->queue.first == op)
                break;
            op = d->queue.first;
        }
        list_remove(&d->queue, op);
        op_send(c, op);
    }
}

void nbdc_op_start(struct nbdc_disk *d, struct nbdc_op *op)
{
    op->first_ns = blk_now_ns();
    if (d->net.given_up)
        op_end(d, op, -EIO);
    else
        list_append(&d->queue, op);
}

struct run { struct co *waiter; bool ended; int result; };

static void run_done(struct nbdc_op *op, int result)
{
    struct run *r = op->arg;

    r->ended = true;
    r->result = result;
    if (r->waiter)
        co_wake(r->waiter);
}

int nbdc_op_run(struct nbdc_disk *d, struct nbdc_conn *c, struct nbdc_op *op)
{
    struct run r = { 0 };

    op->done = run_done;
    op->arg = &r;
    op->recovery = c != NULL;
    if (c)
        op_send(c, op);
    else
        nbdc_op_start(d, op);
    if (!r.ended) {
        r.waiter = co_self();
        co_yield();
    }
    return r.result;
}

/* ---- deadlines ------------------------------------------------------------------ */

void nbdc_tick(struct nbdc_disk *d, uint64_t now)
{
    struct nbdc_op *op, *next;
    char text[64];

    snprintf(text, sizeof(text), "no answer for %u s",
             (unsigned)(d->net.timeout_ns / 1000000000u));
    for (unsigned i = 0; i < d->cfg.connections; i++) {
        struct nbdc_conn *c = &d->c[i];
        if (!conn_late(c, now))
            continue;
        if (c->up && nbdc_conn_lingers(c)) {
            blk_net_lost(&d->net, text);
            if (!blk_net_over(&d->net, text))
                continue;
        }
        nbdc_conn_kill(c, text);
    }
    for (op = d->queue.first; op; op = next) {
        next = op->next;
        if (blk_net_expired(&d->net, op->first_ns, now)) {
            list_remove(&d->queue, op);
            op_end(d, op, -EIO);
            next = d->queue.first;          /* done() may have changed the list */
        }
    }
}

/* ---- coming back ---------------------------------------------------------------- */

static void recover_wake(void *arg)
{
    co_wake(arg);
}

/* Sleep that close() can end. */
static void recover_sleep(struct nbdc_disk *d, uint64_t ns)
{
    struct blk_timer t = { .fn = recover_wake, .arg = co_self() };

    if (d->closing)
        return;
    blk_timer_set(d->loop, &t, blk_now_ns() + ns);
    d->sleeper = co_self();
    co_yield();
    d->sleeper = NULL;
    blk_timer_cancel(d->loop, &t);
}

/* Connections given up with unanswered changes.  A cause, or NULL. */
static const char *recover_left(struct nbdc_disk *d)
{
    bool left = false;

    for (unsigned i = 0; i < d->cfg.connections; i++)
        left |= nbdc_conn_has_left(&d->c[i]);
    return left ? "the server may still execute writes that it did not answer" : NULL;
}

static bool recover_lingers(const struct nbdc_disk *d)
{
    for (unsigned i = 0; i < d->cfg.connections; i++)
        if (nbdc_conn_lingers(&d->c[i]))
            return true;
    return false;
}

static void recover_bury(struct nbdc_disk *d)
{
    for (unsigned i = 0; i < d->cfg.connections; i++)
        if (d->c[i].connecting)
            nbdc_conn_kill(&d->c[i], "another connection was lost");
    while (d->helpers)
        co_wait_on(&d->settled);
    /* Looked at, not waited for: libnbd takes the ends of its sockets for itself, a dead
     * connection's socket is not watched, and the policy's time may be over first. */
    while (!d->closing && recover_lingers(d) &&
           !blk_net_over(&d->net, "the server has not ended a connection"))
        recover_sleep(d, NBDC_LOOK_NS);
    for (unsigned i = d->cfg.connections; i-- > 0; )
        nbdc_conn_close(&d->c[i]);
}

/* Is it the same export?  NBD has no better sign. */
static int recover_look(struct nbdc_disk *d, struct nbdc_conn *c)
{
    bool read_only = nbd_is_read_only(c->h) > 0;
    int64_t size = nbd_get_size(c->h);

    if (size != (int64_t)d->size)
        snprintf(c->cause, sizeof(c->cause), "the export's size changed from %llu to %lld bytes",
                 (unsigned long long)d->size, (long long)size);
    else if (read_only && !d->read_only)
        snprintf(c->cause, sizeof(c->cause), "the export has become read-only");
    else
        return 0;
    nbdc_conn_disconnect(c);
    return -ENXIO;
}

static int replay(struct nbdc_disk *d, struct nbdc_conn *c)
{
    for (struct blk_journal_entry *en = d->journal.first; en; en = en->next) {
        struct iovec iov = { en->data, en->length };
        struct nbdc_op op = { .op = en->op, .flags = en->flags, .offset = en->offset,
                              .length = en->length, .iov = &iov, .iovcnt = 1 };
        int r = nbdc_op_run(d, c, &op);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Make acknowledged changes again. -ENOTCONN: c has died meanwhile. */
static int recover_changes(struct nbdc_disk *d, struct nbdc_conn *c)
{
    if (d->unsafe_dirty && !d->lost) {
        blk_report("%s: the server may have lost written data, and cache=unsafe keeps no copy",
                   d->net.shown);
        journal_lose(d, -EIO);
    }
    int r = replay(d, c);
    if (r < 0 && r != -ENOTCONN) {
        blk_report("%s: acknowledged writes could not be sent again: %s", d->net.shown,
                   strerror(-r));
        journal_lose(d, r);
        r = 0;
    }
    return c->dead ? -ENOTCONN : r;
}

static bool recover_once(struct nbdc_disk *d)
{
    struct nbdc_conn *c = &d->c[0];

    recover_bury(d);
    if (d->closing)
        return true;
    const char *cause = recover_left(d);
    int r = cause ? -ENOTCONN : nbdc_conn_connect(c);
    r = r ? r : recover_look(d, c);
    r = r ? r : recover_changes(d, c);
    if (!r || d->closing)
        return true;
    cause = cause ? cause : c->cause;
    blk_net_lost(&d->net, cause);
    if (blk_net_over(&d->net, cause))
        fail_queued(d, -EIO);
    recover_sleep(d, blk_net_next(&d->net));
    return false;
}

static void recover_fiber(void *arg)
{
    struct nbdc_disk *d = arg;

    while (!recover_once(d))
        ;
    if (d->closing)
        fail_queued(d, -EIO);
    else
        blk_net_up(&d->net);
    d->recovering = false;
    co_wake_all(&d->settled);
}

void nbdc_recover(struct nbdc_disk *d)
{
    if (!d->n || d->recovering || d->closing)
        return;
    for (unsigned i = 0; i < d->cfg.connections; i++)
        if (d->c[i].h && d->c[i].dead)
            blk_net_lost(&d->net, d->c[i].cause);
    d->recovering = true;
    if (co_start(d->loop, recover_fiber, d) < 0)
        d->recovering = false;              /* the tick tries again */
}
