/*
 * deflate.c - compressed writes: clusters are compressed side by side on the
 * workers, packed one behind the other into host clusters, written, and then
 * published in the L2 tables.
 *
 * Invariants
 *  - A cluster that does not become smaller is written as a normal one.
 *  - Requests find their place in the file in the order in which they came,
 *    although they are compressed in parallel: ->deflate_turn.  A request holds
 *    the turn from its first allocation to its last, not while it writes the
 *    last of its data.  Nobody waits for the turn while holding a busy range.
 *  - Entries are published after their data is written; flush.c keeps that order
 *    on disk.  A failure before gives the space back and leaves the old mapping.
 *  - One compressor a thread, kept for the next cluster.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>
#ifdef HAVE_DEFLATE
#include <libdeflate.h>
#else
#include <zlib.h>
#endif

#define WINDOW_BYTES (4u << 20)         /* of a request in memory twice */
#define JOB_BYTES (64u << 10)           /* worth a trip to a worker */

/* As fast as gives files no larger than QEMU's, which uses zlib's level 6 with a
 * 4 KiB window, and zstd's default, 3: of clusters zstd's 4, which looks for shorter
 * matches, is faster by a quarter and leaves less. */
#define ZLIB_LEVEL 1
#define ZSTD_LEVEL 4
#ifdef HAVE_DEFLATE
#define ZLIB_LEVEL_MAX 12u
#else
#define ZLIB_LEVEL_MAX 9u
#endif

int qcow2_set_compression_level(struct qcow2 *q, uint64_t level, struct blk_error *e)
{
    unsigned max = q->h.compression ? (unsigned)ZSTD_maxCLevel() : ZLIB_LEVEL_MAX;

    if (level < 1 || level > max) {
        return blk_err(e, EINVAL, "compression-level must be between 1 and %u for compression "
                       "type %s", max, q->h.compression ? "zstd" : "zlib");
    }
    q->level = (int)level;
    return 0;
}

/* ---- compressing, on a worker ------------------------------------------------------ */

#ifdef HAVE_DEFLATE
/* Length, 0: does not fit, -errno. */
static long deflate_zlib(int level, const uint8_t *in, size_t len, uint8_t *out, size_t room)
{
    static __thread struct libdeflate_compressor *c;
    static __thread int made_for;

    if (c && made_for != level) {
        libdeflate_free_compressor(c);
        c = NULL;
    }
    if (!c && !(c = libdeflate_alloc_compressor(level))) {
        return -ENOMEM;
    }
    made_for = level;
    return (long)libdeflate_deflate_compress(c, in, len, out, room);
}
#else
static long deflate_zlib(int level, const uint8_t *in, size_t len, uint8_t *out, size_t room)
{
    static __thread z_stream *z;
    static __thread int made_for;

    if (z && made_for != level) {
        deflateEnd(z);
        free(z);
        z = NULL;
    }
    if (!z) {
        z = calloc(1, sizeof(*z));
        if (!z || deflateInit2(z, level, Z_DEFLATED, -15, 9, Z_DEFAULT_STRATEGY) != Z_OK) {
            free(z);
            z = NULL;
            return -ENOMEM;
        }
        made_for = level;
    }
    deflateReset(z);
    z->next_in = (uint8_t *)(uintptr_t)in;
    z->avail_in = (uInt)len;
    z->next_out = out;
    z->avail_out = (uInt)room;
    return deflate(z, Z_FINISH) == Z_STREAM_END ? (long)(room - z->avail_out) : 0;
}
#endif

static long deflate_zstd(int level, const uint8_t *in, size_t len, uint8_t *out, size_t room)
{
    static __thread ZSTD_CCtx *c;

    if (!c && !(c = ZSTD_createCCtx())) {
        return -ENOMEM;
    }
    ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, level);
    size_t r = ZSTD_compress2(c, out, room, in, len);
    if (ZSTD_isError(r)) {
        return ZSTD_getErrorCode(r) == ZSTD_error_memory_allocation ? -ENOMEM : 0;
    }
    return (long)r;
}

struct deflate {                        /* a window of one request */
    struct qcow2 *q;
    uint64_t first, n;                  /* guest clusters */
    uint64_t length;                    /* bytes; the last cluster may be partial */
    uint8_t *in, *out;                  /* n clusters each; in ends in zeros */
    uint8_t *own_in;                    /* in, where it is a copy */
    struct qcow2_packed *piece;         /* n: len 0 does not compress */
    unsigned pending;
    int err;
    struct co *waiter;
    uint64_t ticket;
    bool *turn;                         /* is this request's turn still to be ended */
    bool last;                          /* window of the request */
};

struct job {                            /* neighbouring clusters of a window */
    struct blk_work work;
    struct deflate *d;
    uint64_t first, n;                  /* in the window */
    int err;
};

static void job_run(struct blk_work *w)
{
    struct job *j = blk_container_of(w, struct job, work);
    const struct qcow2 *q = j->d->q;
    size_t cs = q->cluster_size;

    for (uint64_t i = j->first; i < j->first + j->n && !j->err; i++) {
        const uint8_t *in = j->d->in + i * cs;
        uint8_t *out = j->d->out + i * cs;
        long len = q->h.compression
                       ? deflate_zstd(q->level ? q->level : ZSTD_LEVEL, in, cs, out, cs - 1)
                       : deflate_zlib(q->level ? q->level : ZLIB_LEVEL, in, cs, out, cs - 1);
        j->err = len < 0 ? (int)len : 0;
        j->d->piece[i].len = len > 0 ? (uint64_t)len : 0;
    }
}

static void job_done(struct blk_work *w)
{
    struct job *j = blk_container_of(w, struct job, work);

    j->d->err = j->d->err ? j->d->err : j->err;
    if (!--j->d->pending) {
        co_wake(j->d->waiter);
    }
}

static int window_compress(struct deflate *d)
{
    uint64_t per = BLK_MAX(JOB_BYTES / d->q->cluster_size, 1u), n = (d->n + per - 1) / per;
    struct job *jobs = calloc(n, sizeof(*jobs));

    if (!jobs) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < n; i++) {
        jobs[i] = (struct job){ .work = { .fn = job_run, .done = job_done, .loop = co_loop() },
                                .d = d, .first = i * per, .n = BLK_MIN(per, d->n - i * per) };
        d->pending++;
        blk_pool_submit(blk_pool_cpu(), &jobs[i].work);
    }
    d->waiter = co_self();
    co_yield();                         /* job_done() runs from the loop only */
    free(jobs);
    return d->err;
}

/* ---- the turn -------------------------------------------------------------------------- */

static void turn_wait(struct qcow2 *q, uint64_t ticket)
{
    while (q->deflate_turn != ticket) {
        co_wait_on(&q->deflate_q);
    }
}

static void turn_end(struct qcow2 *q, bool *held)
{
    if (*held) {
        q->deflate_turn++;
        *held = false;
        co_wake_all(&q->deflate_q);
    }
}

/* ---- placing ----------------------------------------------------------------------------- */

/* Clusters [i, i+n) of the window, one piece of the file after the other. */
static int run_write(struct deflate *d, uint64_t i, uint64_t n)
{
    size_t cs = d->q->cluster_size;
    int err = 0;

    for (uint64_t end = i + n; i < end && !err;) {
        uint8_t *start = d->out + i * cs;
        uint64_t at = d->piece[i].offset, len = 0;
        while (i < end && d->piece[i].offset == at + len) {
            memmove(start + len, d->out + i * cs, d->piece[i].len);
            len += d->piece[i++].len;
        }
        blk_event(d->q->file, "write_compressed");
        err = co_write(d->q->file, at, start, len, 0);
    }
    return err;
}

static uint64_t packed_entry(const struct qcow2 *q, const struct qcow2_packed *p)
{
    unsigned shift = 62 - (q->h.cluster_bits - 8);
    uint64_t more = (p->offset + p->len - 1) / 512 - p->offset / 512;
    return QCOW2_COMPRESSED | more << shift | p->offset;
}

/* *i: the first cluster of the window that is not published. */
static int run_publish(struct deflate *d, uint64_t *i, uint64_t end)
{
    struct qcow2 *q = d->q;
    struct qcow2_slice *s;

    while (*i < end) {
        uint64_t guest = (d->first + *i) << q->h.cluster_bits;
        unsigned k = qcow2_entry_index(q, guest);
        int err = qcow2_l2_write(q, guest, &s);
        for (; !err && *i < end && k < 1u << q->slice_bits; k++) {
            uint64_t old = qcow2_entry_get(q, s->word, k);
            err = qcow2_entry_check(q, old, qcow2_bitmap_get(q, s->word, k),
                                    (d->first + *i) << q->h.cluster_bits);
            if (err) {
                qcow2_slice_put(s);
                return err;
            }
            qcow2_free_entry_later(q, old);
            qcow2_entry_put(q, s->word, k, packed_entry(q, &d->piece[*i]));
            qcow2_bitmap_put(q, s->word, k, 0);
            qcow2_slice_dirty(q, s);
            ++*i;
        }
        if (err) {
            return err;
        }
        qcow2_slice_put(s);
    }
    return 0;
}

/* L2 tables first: one made between two pieces would end the run of the file. */
static int run_tables(struct deflate *d, uint64_t i, uint64_t end)
{
    struct qcow2 *q = d->q;
    struct qcow2_slice *s;

    while (i < end) {
        int err = qcow2_l2_write(q, (d->first + i) << q->h.cluster_bits, &s);
        if (err) {
            return err;
        }
        qcow2_slice_put(s);
        i = ((((d->first + i) >> q->slice_bits) + 1) << q->slice_bits) - d->first;
    }
    return 0;
}

/* Compressed clusters [i, i+n) of the window. */
static int run_packed(struct deflate *d, uint64_t i, uint64_t n)
{
    struct qcow2 *q = d->q;
    struct qcow2_busy busy = qcow2_busy_range(q, (d->first + i) << q->h.cluster_bits,
                                              n << q->h.cluster_bits);
    uint64_t end = i + n;
    int err;

    qcow2_busy_enter(q, &busy);
    err = run_tables(d, i, end);
    err = err ? err : qcow2_alloc_packed(q, d->piece + i, n);
    if (d->last && end == d->n) {
        turn_end(q, d->turn);
    }
    if (!err) {
        err = run_write(d, i, n);
        err = err ? err : run_publish(d, &i, end);
        for (; err && i < end; i++) {
            qcow2_free_packed_later(q, &d->piece[i]);
        }
    }
    qcow2_busy_leave(q, &busy);
    return err;
}

/* Clusters [i, i+n) of the window as they are. */
static int run_plain(struct deflate *d, uint64_t i, uint64_t n)
{
    struct qcow2 *q = d->q;
    uint64_t from = i << q->h.cluster_bits, to = BLK_MIN((i + n) << q->h.cluster_bits, d->length);
    struct iovec iov = { d->in + from, to - from };
    struct blk_req req = { .op = BLK_WRITE, .node = q->n, .length = to - from, .iov = &iov,
                           .offset = (d->first << q->h.cluster_bits) + from, .iovcnt = 1 };

    if (d->last && i + n == d->n) {
        turn_end(q, d->turn);
    }
    return qcow2_write_plain(&req);
}

static int window_place(struct deflate *d)
{
    int err = 0;

    turn_wait(d->q, d->ticket);
    for (uint64_t i = 0, n; i < d->n && !err; i += n) {
        bool packed = d->piece[i].len;
        for (n = 1; i + n < d->n && !d->piece[i + n].len == !packed; n++) {
        }
        err = packed ? run_packed(d, i, n) : run_plain(d, i, n);
    }
    return err;
}

/* ---- the request --------------------------------------------------------------------------- */

/* Whole clusters in one buffer: the request's own, or a copy that ends in zeros. */
static int window_input(struct deflate *d, const struct blk_req *req, uint64_t pos)
{
    uint64_t bytes = d->n * d->q->cluster_size;

    if (req->iovcnt == 1 && bytes == d->length) {
        d->in = (uint8_t *)req->iov[0].iov_base + pos;
        return 0;
    }
    d->in = d->own_in = blk_buf_alloc(bytes);
    if (!d->in) {
        return -ENOMEM;
    }
    blk_iov_to_buf(req->iov, req->iovcnt, pos, d->in, d->length);
    memset(d->in + d->length, 0, bytes - d->length);
    return 0;
}

static int window_run(struct deflate *d, const struct blk_req *req, uint64_t pos)
{
    int err;

    d->out = blk_buf_alloc(d->n * d->q->cluster_size);
    d->piece = calloc(d->n, sizeof(*d->piece));
    err = d->out && d->piece ? window_input(d, req, pos) : -ENOMEM;
    err = err ? err : window_compress(d);
    err = err ? err : window_place(d);
    blk_buf_free(d->own_in);
    blk_buf_free(d->out);
    free(d->piece);
    return err;
}

int qcow2_write_compressed(struct blk_req *req)
{
    struct qcow2 *q = req->node->state;
    uint64_t window = BLK_MAX(WINDOW_BYTES, q->cluster_size), end = req->offset + req->length;
    uint64_t ticket = q->deflate_tickets;
    bool turn = true;
    int err = 0;

    if (qcow2_external(q)) {
        return -ENOTSUP;
    }
    if (req->offset & (q->cluster_size - 1) ||
        (req->length & (q->cluster_size - 1) && end != q->n->size)) {
        return -EINVAL;
    }
    q->deflate_tickets++;
    for (uint64_t pos = 0, len; pos < req->length && !err; pos += len) {
        len = BLK_MIN(req->length - pos, window);
        struct deflate d = { .q = q, .first = (req->offset + pos) >> q->h.cluster_bits,
                             .n = qcow2_clusters(q, len), .length = len, .ticket = ticket,
                             .turn = &turn, .last = pos + len == req->length };
        err = window_run(&d, req, pos);
        err = err ? err : qcow2_flush_if_much(q);
    }
    if (turn) {
        turn_wait(q, ticket);
        turn_end(q, &turn);
    }
    return err;
}
