/*
 * kept.c - data of completed writes that the server may still lose, and COMMIT.
 *
 * A server answers an UNSTABLE write before the data is on its disk, with a verifier
 * that changes when it loses such data (it restarts, or its write-back fails).  So the
 * bytes are kept here until a COMMIT that was sent after the answer brings the same
 * verifier; if it brings another one they are written again.
 *
 * Invariants
 *  - Kept pieces do not overlap: a newer write cuts out what it covers when it is done.
 *    So they can be written again in any order, and put over what a read brings.
 *  - While they are written again no other write is in flight (d->replaying).
 *  - A piece leaves only when it is on the server's disk, when it is superseded, or when
 *    d->lost is set: then every later flush fails.
 *  - With cache=unsafe nothing is kept: nobody flushes.  But the verifiers are compared
 *    all the same, and a loss is the error of close.
 *  - NFS_KEPT_MAX bounds the memory, writes in flight included (io.c).
 */
#include "protocols/nfs/nfs.h"

#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

#define REPLAY_WINDOW 16u           /* WRITEs in flight while writing again */
#define REPLAY_ROUNDS 20u           /* verifiers that change again meanwhile */

/* ---- buffers ------------------------------------------------------------------------- */

/* Large ones come from a pool: fresh memory of that size costs a page fault per page. */
struct nfs_buf *nfs_buf_get(struct nfs_disk *d, uint32_t len)
{
    struct nfs_buf *b = d->pool;
    bool large = len > d->max_transfer / 4;

    if (large && b) {
        d->pool = b->next;
        d->npool--;
    } else {
        b = malloc(sizeof(*b));
        if (!b)
            return NULL;
        b->size = large ? BLK_MAX(d->max_transfer, len) : len;
        b->data = malloc(b->size);
        if (!b->data) {
            free(b);
            return NULL;
        }
    }
    b->refs = 1;
    b->next = NULL;
    return b;
}

void nfs_buf_put(struct nfs_disk *d, struct nfs_buf *b)
{
    if (!b || --b->refs)
        return;
    if (b->size >= d->max_transfer && (uint64_t)d->npool * d->max_transfer < NFS_KEPT_COMMIT) {
        b->next = d->pool;
        d->pool = b;
        d->npool++;
        return;
    }
    free(b->data);
    free(b);
}

/* ---- the pieces ---------------------------------------------------------------------- */

/* Pieces that overlap are equal: among kept ones none do. */
static int kept_compare(const void *pa, const void *pb)
{
    const struct nfs_kept *a = pa, *b = pb;
    return a->end <= b->start ? -1 : a->start >= b->end;
}

static struct nfs_kept *kept_find(struct nfs_disk *d, uint64_t start, uint64_t end)
{
    struct nfs_kept key = { .start = start, .end = end };
    void *node = d->tree ? tfind(&key, &d->tree, kept_compare) : NULL;
    return node ? *(struct nfs_kept **)node : NULL;
}

static void kept_lost(struct nfs_disk *d, int err)
{
    if (!d->lost)
        d->lost = err;
}

/* Takes over k and its buffer reference. */
static void kept_insert(struct nfs_disk *d, struct nfs_kept *k)
{
    if (!tsearch(k, &d->tree, kept_compare)) {
        kept_lost(d, -ENOMEM);
        nfs_buf_put(d, k->buf);
        free(k);
        return;
    }
    if (!d->kept_last)
        d->kept_last = &d->kept;
    k->next = NULL;
    k->prev = d->kept_last;
    *d->kept_last = k;
    d->kept_last = &k->next;
    d->kept_bytes += k->end - k->start;
}

static void kept_remove(struct nfs_disk *d, struct nfs_kept *k)
{
    tdelete(k, &d->tree, kept_compare);
    *k->prev = k->next;
    if (k->next)
        k->next->prev = k->prev;
    else
        d->kept_last = k->prev;
    d->kept_bytes -= k->end - k->start;
}

static void kept_drop(struct nfs_disk *d, struct nfs_kept *k)
{
    kept_remove(d, k);
    nfs_buf_put(d, k->buf);
    free(k);
}

/* Another piece of k's write. */
static void kept_split(struct nfs_disk *d, const struct nfs_kept *k, uint64_t start, uint64_t end)
{
    struct nfs_kept *part = malloc(sizeof(*part));
    if (!part) {
        kept_lost(d, -ENOMEM);
        return;
    }
    *part = *k;
    part->start = start;
    part->end = end;
    part->data = k->data + (start - k->start);
    part->buf->refs++;
    kept_insert(d, part);
}

static void kept_cut(struct nfs_disk *d, uint64_t start, uint64_t end)
{
    struct nfs_kept *k;
    while ((k = kept_find(d, start, end))) {
        kept_remove(d, k);
        if (k->start < start)
            kept_split(d, k, k->start, start);
        if (k->end > end)
            kept_split(d, k, end, k->end);
        nfs_buf_put(d, k->buf);
        free(k);
    }
}

/* A verifier that changes says that the server has lost data: look soon. */
static void kept_see_verifier(struct nfs_disk *d, const char *verf)
{
    bool changed = d->have_verf && memcmp(d->last_verf, verf, sizeof(d->last_verf));
    memcpy(d->last_verf, verf, sizeof(d->last_verf));
    d->have_verf = true;
    if (changed && d->kept)
        nfs_commit_soon(d);
}

void nfs_kept_add(struct nfs_disk *d, uint64_t start, uint64_t end, struct nfs_buf *b,
                  const char *verf, bool mixed)
{
    kept_cut(d, start, end);
    if (b && !d->lost) {
        struct nfs_kept *k = malloc(sizeof(*k));
        if (k) {
            *k = (struct nfs_kept){ .start = start, .end = end, .buf = b, .data = b->data,
                                    .mixed = mixed, .seq = ++d->seq };
            memcpy(k->verf, verf, sizeof(k->verf));
            b->refs++;
            kept_insert(d, k);
        } else {
            kept_lost(d, -ENOMEM);
        }
    }
    kept_see_verifier(d, verf);
    if (d->kept_bytes > NFS_KEPT_COMMIT)
        nfs_commit_soon(d);
}

void nfs_kept_overlay(struct nfs_disk *d, const struct iovec *iov, int cnt, uint64_t off,
                      uint64_t len)
{
    uint64_t at = off, end = off + len;
    struct nfs_kept *k;

    /* The tree answers "any piece in this range": go left first, then on to the right. */
    while (at < end && (k = kept_find(d, at, end))) {
        struct nfs_kept *left;
        while (k->start > at && (left = kept_find(d, at, k->start)))
            k = left;
        uint64_t from = BLK_MAX(k->start, at), to = BLK_MIN(k->end, end);
        blk_iov_from_buf(iov, cnt, from - off, k->data + (from - k->start), to - from);
        at = to;
    }
}

bool nfs_kept_beyond(struct nfs_disk *d, uint64_t off)
{
    return kept_find(d, off, UINT64_MAX) != NULL;
}

/* ---- without copies ---------------------------------------------------------------------- */

static void unsafe_see(struct nfs_disk *d, const char *verf, bool mixed)
{
    bool changed = d->have_verf && memcmp(d->last_verf, verf, sizeof(d->last_verf));
    if (d->unsafe_dirty && (changed || mixed) && !d->lost) {
        blk_report("%s: the server has lost written data (its verifier has changed), and "
                   "cache=unsafe keeps no copy", d->net.shown);
        kept_lost(d, -EIO);
    }
    memcpy(d->last_verf, verf, sizeof(d->last_verf));
    d->have_verf = true;
}

void nfs_unsafe_add(struct nfs_disk *d, const char *verf, bool stable, bool mixed)
{
    d->unsafe_dirty |= !stable;
    unsafe_see(d, verf, mixed);
}

int nfs_unsafe_end(struct nfs_disk *d)
{
    struct nfs_call call = { .op = NFS_COMMIT, .fh = &d->fh };
    int r = d->unsafe_dirty ? nfs_call_wait(d, &call) : 0;
    if (!r && d->unsafe_dirty)
        unsafe_see(d, call.verf, false);
    return d->lost ? d->lost : r;
}

/* ---- writing again ----------------------------------------------------------------------- */

struct replay { unsigned inflight; int err; struct co *waiter; };

struct replay_call {
    struct nfs_call call;
    struct replay *all;
    struct nfs_disk *d;
    uint64_t end;
    struct nfs_buf *buf;
    bool stable, mixed, first;
    unsigned empty;
    uint64_t start;
    char verf[8];
};

/* Replaces its pieces, now with the verifier of their new answer. */
static void replay_finish(struct replay_call *c, int err)
{
    struct replay *all = c->all;
    if (err) {
        all->err = all->err ? all->err : err;
    } else {
        struct nfs_kept *k = kept_find(c->d, c->start, c->end);
        if (k && c->stable) {
            kept_drop(c->d, k);
        } else if (k) {
            memcpy(k->verf, c->verf, sizeof(k->verf));
            k->mixed = c->mixed;
            k->seq = ++c->d->seq;
        }
    }
    nfs_buf_put(c->d, c->buf);
    free(c);
    all->inflight--;
    if (all->waiter) {
        struct co *w = all->waiter;
        all->waiter = NULL;
        co_wake(w);
    }
}

static void replay_answered(struct nfs_call *call)
{
    struct replay_call *c = blk_container_of(call, struct replay_call, call);

    c->empty = call->got ? 0 : c->empty + 1;
    if (call->err || c->empty >= NFS_EMPTY_MAX) {
        replay_finish(c, call->err ? call->err : -EIO);
        return;
    }
    if (!call->got) {
        nfs_call_start(c->d, call);
        return;
    }
    c->mixed |= !c->first && memcmp(c->verf, call->verf, sizeof(c->verf));
    c->first = false;
    c->stable &= call->committed;
    memcpy(c->verf, call->verf, sizeof(c->verf));
    call->offset += call->got;
    call->data += call->got;
    call->count -= call->got;
    if (call->count)
        nfs_call_start(c->d, call);
    else
        replay_finish(c, 0);
}

static int replay_start(struct nfs_disk *d, struct replay *all, const struct nfs_kept *k)
{
    struct replay_call *c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    c->all = all;
    c->d = d;
    c->start = k->start;
    c->end = k->end;
    c->buf = k->buf;
    c->buf->refs++;
    c->stable = c->first = true;
    c->call.op = NFS_WRITE;
    c->call.fh = &d->fh;
    c->call.offset = k->start;
    c->call.count = (uint32_t)(k->end - k->start);
    c->call.data = k->data;
    c->call.done = replay_answered;
    all->inflight++;
    nfs_call_start(d, &c->call);
    return 0;
}

static void replay_wait(struct replay *all, unsigned below)
{
    while (all->inflight >= below && all->inflight) {
        all->waiter = co_self();
        co_yield();
    }
}

static bool kept_is_lost(const struct nfs_kept *k, uint64_t upto, const char *verf)
{
    return k->seq <= upto && (k->mixed || memcmp(k->verf, verf, sizeof(k->verf)));
}

/* Write again what the verifier says is lost, while no other write is under way. */
static int kept_replay(struct nfs_disk *d, uint64_t upto, const char *verf)
{
    struct replay all = { 0 };
    int r = 0;

    d->replaying++;
    while (d->writing)
        co_wait_on(&d->quiet);
    blk_report("%s: the server has lost unflushed writes (its verifier has changed); "
               "writing them again", d->net.shown);
    /* Starting one does not change the list; its end may, so look from the front. */
    bool found = true;
    while (found && !r && !all.err) {
        found = false;
        for (struct nfs_kept *k = d->kept; k && !r; k = k->next) {
            if (!kept_is_lost(k, upto, verf))
                continue;
            found = true;
            k->seq = UINT64_MAX;        /* taken; its answer sets it anew */
            r = replay_start(d, &all, k);
            if (all.inflight >= REPLAY_WINDOW)
                break;
        }
        replay_wait(&all, REPLAY_WINDOW);
    }
    replay_wait(&all, 1);
    d->replaying--;
    r = r ? r : all.err;
    if (r)
        for (struct nfs_kept *k = d->kept; k; k = k->next)
            if (k->seq == UINT64_MAX) {
                k->seq = ++d->seq;
                k->mixed = true;        /* still to be written again */
            }
    nfs_io_resume(d);
    return r;
}

/* ---- COMMIT ---------------------------------------------------------------------------------- */

/* One COMMIT; what it proves leaves.  *again: the rest was written anew. */
static int commit_once(struct nfs_disk *d, bool *again)
{
    struct nfs_call call = { .op = NFS_COMMIT, .fh = &d->fh };
    uint64_t upto = d->seq;
    bool lost = false;
    int r = nfs_call_wait(d, &call);

    *again = false;
    if (r)
        return r;
    struct nfs_kept *k, *next;
    for (k = d->kept; k; k = next) {
        next = k->next;
        if (kept_is_lost(k, upto, call.verf))
            lost = true;
        else if (k->seq <= upto)
            kept_drop(d, k);
    }
    memcpy(d->last_verf, call.verf, sizeof(d->last_verf));
    d->have_verf = true;
    nfs_io_resume(d);
    if (lost) {
        *again = true;
        r = kept_replay(d, upto, call.verf);
    }
    return r;
}

static bool kept_any(const struct nfs_disk *d, uint64_t upto)
{
    for (const struct nfs_kept *k = d->kept; k; k = k->next)
        if (k->seq <= upto)
            return true;
    return false;
}

static void kept_give_up(struct nfs_disk *d, int err)
{
    blk_report("%s: unflushed writes could not be stored: %s; every flush fails from now on",
               d->net.shown, strerror(-err));
    kept_lost(d, err);
    while (d->kept)
        kept_drop(d, d->kept);
    nfs_io_resume(d);
}

int nfs_commit(struct nfs_disk *d)
{
    bool again = true;
    int r = 0;

    co_lock(&d->commit_lock);
    /* What replays write again counts as newer than upto was, so look for all. */
    uint64_t upto = d->seq;
    for (unsigned i = 0; !r && !d->lost && again && kept_any(d, upto); i++) {
        r = i < REPLAY_ROUNDS ? commit_once(d, &again) : -EIO;
        if (!r && again)
            upto = d->seq;
    }
    /* The server's own error is final; when it cannot be reached the data stays here. */
    if (r && !d->lost && !nfs_changes_fail(d))
        kept_give_up(d, r);
    r = d->lost ? d->lost : r;
    co_unlock(&d->commit_lock);
    return r;
}

static void commit_fiber(void *arg)
{
    struct nfs_disk *d = arg;
    nfs_commit(d);
    d->background = false;
    co_wake_all(&d->settled);
    nfs_io_resume(d);
}

void nfs_commit_soon(struct nfs_disk *d)
{
    if (d->background || d->lost || d->closing)
        return;
    d->background = !co_start(d->loop, commit_fiber, d);
}

void nfs_kept_free(struct nfs_disk *d)
{
    while (d->background)
        co_wait_on(&d->settled);
    while (d->kept)
        kept_drop(d, d->kept);
    while (d->pool) {
        struct nfs_buf *b = d->pool;
        d->pool = b->next;
        free(b->data);
        free(b);
    }
}
