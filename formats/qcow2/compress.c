/*
 * compress.c - reading compressed clusters: one read of the compressed span, the
 * inflation on a worker, and the last inflated clusters kept, so that reading a
 * cluster in small pieces inflates it once.  Runs of whole clusters are read in
 * few requests and inflated side by side into the reader's own buffer.
 *
 * Invariants
 *  - A slot is found by the L2 entry (place and length in the file).  Freeing
 *    the entry drops its slot, also while it is being filled.
 *  - Output is bounded by one cluster whatever the input says; anything but
 *    exactly one cluster is damage.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#ifdef HAVE_DEFLATE
#include <libdeflate.h>
#else
#include <zlib.h>
#endif

#define INFLATED_BYTES (8u << 20)       /* kept per image */
#define INFLATED_MIN 2u
#define INFLATED_MAX 64u

enum slot_state { SLOT_EMPTY, SLOT_FILLING, SLOT_READY };

struct slot {
    uint64_t entry;
    enum slot_state state;
    bool dropped;                       /* freed while it was filled */
    unsigned users;                     /* fibers that wait for or copy from it */
    uint64_t used;                      /* last use, for eviction */
    uint8_t *data;
};

struct qcow2_inflated {
    unsigned n;
    uint64_t tick;
    struct co_queue wait;
    struct slot slot[];
};

struct qcow2_inflated *qcow2_inflated_new(const struct qcow2 *q)
{
    unsigned n = INFLATED_BYTES / q->cluster_size;
    n = BLK_MIN(BLK_MAX(n, INFLATED_MIN), INFLATED_MAX);
    struct qcow2_inflated *c = calloc(1, sizeof(*c) + n * sizeof(c->slot[0]));
    if (c) {
        c->n = n;
    }
    return c;
}

void qcow2_inflated_free(struct qcow2_inflated *c)
{
    for (unsigned i = 0; c && i < c->n; i++) {
        blk_buf_free(c->slot[i].data);
    }
    free(c);
}

static struct slot *slot_find(struct qcow2_inflated *c, uint64_t entry)
{
    for (unsigned i = 0; i < c->n; i++) {
        struct slot *s = &c->slot[i];
        if (s->state != SLOT_EMPTY && s->entry == entry && !s->dropped) {
            s->used = ++c->tick;
            return s;
        }
    }
    return NULL;
}

const uint8_t *qcow2_inflated_peek(struct qcow2 *q, uint64_t entry)
{
    struct slot *s = q->inflated ? slot_find(q->inflated, entry & ~QCOW2_COPIED) : NULL;
    return s && s->state == SLOT_READY ? s->data : NULL;
}

void qcow2_inflated_drop(struct qcow2 *q, uint64_t entry)
{
    struct slot *s = q->inflated ? slot_find(q->inflated, entry & ~QCOW2_COPIED) : NULL;
    if (s && s->state == SLOT_READY && !s->users) {
        s->state = SLOT_EMPTY;
    } else if (s) {
        s->dropped = true;
    }
}

static struct slot *slot_take(struct qcow2_inflated *c)
{
    struct slot *best = NULL;
    for (unsigned i = 0; i < c->n; i++) {
        struct slot *s = &c->slot[i];
        if (s->users || s->state == SLOT_FILLING) {
            continue;
        }
        if (s->state == SLOT_EMPTY) {
            return s;
        }
        if (!best || s->used < best->used) {
            best = s;
        }
    }
    return best;
}

/* ---- inflating, on a worker -------------------------------------------------------- */

struct inflate_job {
    const uint8_t *in;
    size_t in_len;
    uint8_t *out;
    size_t out_len;
    bool zstd;
    int result;
};

#ifdef HAVE_DEFLATE
static __thread struct libdeflate_decompressor *inflater;

static int inflate_deflate(const struct inflate_job *j)
{
    size_t in_used, out_used;
    if (!inflater && !(inflater = libdeflate_alloc_decompressor())) {
        return -ENOMEM;
    }
    /* The span is whole sectors: what follows the stream is not ours to judge. */
    if (libdeflate_deflate_decompress_ex(inflater, j->in, j->in_len, j->out, j->out_len, &in_used,
                                         &out_used) != LIBDEFLATE_SUCCESS) {
        return -EIO;
    }
    return out_used == j->out_len ? 0 : -EIO;
}
#else
static int inflate_deflate(const struct inflate_job *j)
{
    z_stream z = { .next_in = (uint8_t *)(uintptr_t)j->in, .avail_in = (uInt)j->in_len,
                   .next_out = j->out, .avail_out = (uInt)j->out_len };
    if (inflateInit2(&z, -15) != Z_OK) {
        return -ENOMEM;
    }
    int r = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return r == Z_STREAM_END && !z.avail_out ? 0 : -EIO;
}
#endif

static __thread ZSTD_DStream *zstd_stream;

static int inflate_zstd(const struct inflate_job *j)
{
    ZSTD_inBuffer in = { j->in, j->in_len, 0 };
    ZSTD_outBuffer out = { j->out, j->out_len, 0 };
    if (!zstd_stream && !(zstd_stream = ZSTD_createDStream())) {
        return -ENOMEM;
    }
    ZSTD_DCtx_reset(zstd_stream, ZSTD_reset_session_only);
    /* A cluster needs no larger window than itself; frames that ask for more
     * would make us allocate it. */
    ZSTD_DCtx_setParameter(zstd_stream, ZSTD_d_windowLogMax, 23);
    while (out.pos < out.size) {
        size_t before = in.pos, got = out.pos;
        size_t r = ZSTD_decompressStream(zstd_stream, &out, &in);
        if (ZSTD_isError(r) || (in.pos == before && out.pos == got)) {
            return -EIO;
        }
    }
    return 0;
}

static void inflate_work(void *arg)
{
    struct inflate_job *j = arg;
    j->result = j->zstd ? inflate_zstd(j) : inflate_deflate(j);
}

static int slot_fill(struct qcow2 *q, struct slot *s)
{
    uint64_t off, len;
    qcow2_compressed_span(q, s->entry, &off, &len);
    if (off < q->cluster_size || off >= q->file->size) {
        return qcow2_report_corrupt(q, "Compressed cluster at %#llx is outside the file's data",
                                    (unsigned long long)off);
    }
    if (!s->data && !(s->data = blk_buf_alloc(q->cluster_size))) {
        return -ENOMEM;
    }
    uint8_t *in = blk_buf_alloc(len);
    if (!in) {
        return -ENOMEM;
    }
    int err = co_read(q->file, off, in, len);
    if (!err) {
        struct inflate_job j = { in, len, s->data, q->cluster_size, q->h.compression == 1, 0 };
        co_work(inflate_work, &j);
        err = j.result;
        if (err == -EIO) {
            err = qcow2_report_corrupt(q, "Compressed cluster at %#llx does not inflate to one "
                                       "cluster", (unsigned long long)off);
        }
    }
    blk_buf_free(in);
    return err;
}

/* A pinned slot with the cluster's content. */
static int slot_get(struct qcow2 *q, uint64_t entry, struct slot **out)
{
    struct qcow2_inflated *c = q->inflated;
    struct slot *s;
    int err;

    for (;;) {
        s = slot_find(c, entry);
        if (s && s->state == SLOT_READY) {
            s->users++;
            *out = s;
            return 0;
        }
        if (!s && (s = slot_take(c))) {
            break;
        }
        co_wait_on(&c->wait);           /* being filled, or every slot is in use */
    }
    s->entry = entry;
    s->state = SLOT_FILLING;
    s->dropped = false;
    s->used = ++c->tick;
    s->users = 1;
    err = slot_fill(q, s);
    s->state = err ? SLOT_EMPTY : SLOT_READY;
    if (err) {
        s->users = 0;
    }
    co_wake_all(&c->wait);
    *out = s;
    return err;
}

static void slot_put(struct qcow2_inflated *c, struct slot *s)
{
    if (--s->users == 0) {
        if (s->dropped) {
            s->state = SLOT_EMPTY;
        }
        co_wake_all(&c->wait);
    }
}

int qcow2_read_compressed(struct qcow2 *q, uint64_t entry, uint64_t in_cluster,
                          const struct iovec *iov, int cnt, uint64_t pos, uint64_t len)
{
    struct slot *s;
    entry &= ~QCOW2_COPIED;
    if (!q->inflated && !(q->inflated = qcow2_inflated_new(q))) {
        return -ENOMEM;
    }
    int err = slot_get(q, entry, &s);
    if (err) {
        return err;
    }
    for (int i = 0; i < cnt && len; i++) {
        if (pos >= iov[i].iov_len) {
            pos -= iov[i].iov_len;
            continue;
        }
        size_t now = (size_t)BLK_MIN(iov[i].iov_len - pos, len);
        memcpy((char *)iov[i].iov_base + pos, s->data + in_cluster, now);
        in_cluster += now;
        len -= now;
        pos = 0;
    }
    slot_put(q->inflated, s);
    return 0;
}

/* ---- whole clusters in a row ----------------------------------------------------------- */

#define RUN_JOB_BYTES (1u << 20)      /* worth a trip to a worker */

struct run {
    struct qcow2 *q;
    const uint64_t *entry;
    uint64_t n;
    uint8_t *in, *out;
    size_t *at;                         /* of each cluster's span in ->in */
    struct blk_req *req;                /* a request a group of spans */
    struct iovec *iov;
    unsigned pending;
    int err;
    uint64_t bad;                       /* with -EIO: the place in the file */
    struct co *waiter;
};

struct run_job {
    struct blk_work work;
    struct run *r;
    uint64_t first, n, bad;
    int err;
};

static void run_job_run(struct blk_work *w)
{
    struct run_job *j = blk_container_of(w, struct run_job, work);
    struct qcow2 *q = j->r->q;
    uint64_t off, len;

    for (uint64_t i = j->first; i < j->first + j->n && !j->err; i++) {
        qcow2_compressed_span(q, j->r->entry[i], &off, &len);
        struct inflate_job one = { j->r->in + j->r->at[i], len, j->r->out + i * q->cluster_size,
                                   q->cluster_size, q->h.compression == 1, 0 };
        inflate_work(&one);
        j->err = one.result;
        j->bad = off;
    }
}

static void run_job_done(struct blk_work *w)
{
    struct run_job *j = blk_container_of(w, struct run_job, work);

    if (j->err && !j->r->err) {
        j->r->err = j->err;
        j->r->bad = j->bad;
    }
    if (!--j->r->pending) {
        co_wake(j->r->waiter);
    }
}

static int run_inflate(struct run *r)
{
    uint64_t per = BLK_MAX(RUN_JOB_BYTES / r->q->cluster_size, 1u), n = (r->n + per - 1) / per;
    struct run_job *jobs = calloc(n, sizeof(*jobs));

    if (!jobs) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < n; i++) {
        jobs[i] = (struct run_job){ .work = { .fn = run_job_run, .done = run_job_done,
                                              .loop = co_loop() },
                                    .r = r, .first = i * per, .n = BLK_MIN(per, r->n - i * per) };
        r->pending++;
        blk_pool_submit(blk_pool_cpu(), &jobs[i].work);
    }
    r->waiter = co_self();
    co_yield();                         /* run_job_done() runs from the loop only */
    free(jobs);
    return r->err;
}

/* Spans that follow each other in the file are one read; packed neighbours share
 * a sector.  All reads start before the first wait: the entries hold until then. */
static int run_read(struct run *r)
{
    struct co_batch b = { 0 };
    uint64_t off, len;
    size_t used = 0;
    struct blk_req *last = NULL;

    for (uint64_t i = 0, group = 0; i < r->n; i++) {
        qcow2_compressed_span(r->q, r->entry[i], &off, &len);
        uint64_t end = last ? last->offset + last->length : 0;
        if (last && off >= last->offset && off <= end) {
            r->at[i] = used - (size_t)(end - off);
        } else {
            last = &r->req[group++];
            *last = (struct blk_req){ .op = BLK_READ, .offset = off, .iovcnt = 1 };
            r->at[i] = used;
            end = off;
        }
        if (off + len > end) {
            used += (size_t)(off + len - end);
            last->length = off + len - last->offset;
        }
    }
    used = 0;
    for (uint64_t k = 0; k < r->n && r->req[k].length; k++) {
        r->iov[k] = (struct iovec){ r->in + used, r->req[k].length };
        r->req[k].iov = &r->iov[k];
        used += r->req[k].length;
        co_batch_add(&b, r->q->file, &r->req[k]);
    }
    return co_batch_wait(&b);
}

int qcow2_read_compressed_run(struct qcow2 *q, const uint64_t *entry, uint64_t n, void *buf)
{
    struct run r = { .q = q, .entry = entry, .n = n, .out = buf };
    uint64_t off, len, total = 0;
    int err = 0;

    for (uint64_t i = 0; i < n; i++) {
        qcow2_compressed_span(q, entry[i], &off, &len);
        if (off < q->cluster_size || off >= q->file->size) {
            return qcow2_report_corrupt(q, "Compressed cluster at %#llx is outside the file's data",
                                        (unsigned long long)off);
        }
        total += len;
    }
    r.in = blk_buf_alloc(total);
    r.at = malloc(n * sizeof(*r.at));
    r.req = calloc(n, sizeof(*r.req));
    r.iov = malloc(n * sizeof(*r.iov));
    err = r.in && r.at && r.req && r.iov ? run_read(&r) : -ENOMEM;
    if (!err && (err = run_inflate(&r)) == -EIO) {
        err = qcow2_report_corrupt(q, "Compressed cluster at %#llx does not inflate to one "
                                   "cluster", (unsigned long long)r.bad);
    }
    blk_buf_free(r.in);
    free(r.at);
    free(r.req);
    free(r.iov);
    return err;
}
