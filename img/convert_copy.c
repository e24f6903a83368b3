/*
 * convert_copy.c - moving chunks: N fibers that each read one, look for zeros in
 * it, and write it when its turn has come.
 *
 * A fiber keeps its turn only while it submits: the next chunk's writes follow
 * at once, and wait for completion side by side.  Reads of all fibers run ahead
 * of the turn.  What the storage copies is not read here, nor looked at; if it will not
 * after all, the chunk is done once more, by reading.  The first error stops the hand-out
 * of chunks; what is in flight ends first.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "img/convert.h"
#include "img/convert_resume.h"
#include "img/digest.h"
#include "img/img.h"

#define WORKERS_DEFAULT 8
#define PROBE_BYTES 64u                 /* what decides most pieces that hold data */

struct worker {
    struct convert *c;
    unsigned number;
    bool offload;                       /* for this chunk */
    uint8_t *buf;                       /* made when there is data */
    uint8_t *zeros;                     /* one byte a grain: is it all zeros */
    struct digest_chunk *digest;        /* with c->digest */
    unsigned nreqs;
    struct convert_chunk chunk;
    struct co_batch batch;
    struct blk_req reqs[CONVERT_SEGS];
    struct iovec iov[CONVERT_SEGS];
};

/* ---- one batch of requests -------------------------------------------------- */

static void batch_add(struct worker *w, struct blk_node *n, const struct blk_req *tmpl, void *buf)
{
    unsigned i = w->nreqs++;

    w->reqs[i] = *tmpl;
    if (buf) {
        w->iov[i] = (struct iovec) { buf, (size_t)tmpl->length };
        w->reqs[i].iov = &w->iov[i];
        w->reqs[i].iovcnt = 1;
    }
    co_batch_add(&w->batch, n, &w->reqs[i]);
}

/* Index of the first request that failed, or -1. */
static int batch_wait(struct worker *w)
{
    unsigned n = w->nreqs;

    w->nreqs = 0;
    if (co_batch_wait(&w->batch) == 0) {
        return -1;
    }
    for (unsigned i = 0; i < n; i++) {
        if (w->reqs[i].result < 0) {
            return (int)i;
        }
    }
    return 0;
}

/* ---- reading ---------------------------------------------------------------- */

/* Does its data pass through the buffer? */
static bool buffered(const struct worker *w, const struct convert_seg *s)
{
    return s->kind == CONVERT_DATA && !(w->offload && s->host);
}

static bool any_buffered(const struct worker *w)
{
    for (unsigned i = 0; i < w->chunk.nsegs; i++) {
        if (buffered(w, &w->chunk.segs[i])) {
            return true;
        }
    }
    return false;
}

/* Sector by sector; what cannot be read becomes zeros and a warning. */
static void salvage_seg(struct worker *w, const struct convert_seg *s)
{
    for (uint64_t done = 0; done < s->length; done += CONVERT_SECTOR) {
        uint64_t off = convert_src_offset(s) + done;
        size_t len = (size_t)BLK_MIN(CONVERT_SECTOR, s->length - done);
        uint8_t *p = w->buf + s->buf + done;
        int ret = co_read(s->src->node, off, p, len);

        if (ret < 0) {
            if (!w->c->quiet) {
                img_warning("error while reading offset %" PRIu64 ": %s", off, strerror(-ret));
            }
            memset(p, 0, len);
        }
    }
}

static void submit_reads(struct worker *w)
{
    for (unsigned i = 0; i < w->chunk.nsegs; i++) {
        struct convert_seg *s = &w->chunk.segs[i];

        if (!buffered(w, s)) {
            continue;
        }
        if (s->fill) {
            memset(w->buf + s->buf, 0, (size_t)s->length);
            continue;
        }
        batch_add(w, s->src->node,
                  &(struct blk_req) { .op = BLK_READ, .offset = convert_src_offset(s),
                                      .length = s->length },
                  w->buf + s->buf);
    }
}

/* The reads of a chunk's segments went out in order: find those that failed. */
static int check_reads(struct worker *w, unsigned failed)
{
    unsigned nreq = 0;

    for (unsigned i = 0; i < w->chunk.nsegs; i++) {
        struct convert_seg *s = &w->chunk.segs[i];

        if (!buffered(w, s) || s->fill || nreq++ < failed ||
            w->reqs[nreq - 1].result == 0) {
            continue;
        }
        if (!w->c->salvage) {
            return convert_fail(w->c, w->reqs[nreq - 1].result, CONVERT_READ, s->offset);
        }
        salvage_seg(w, s);
    }
    return 0;
}

static int read_chunk(struct worker *w)
{
    int failed;

    if (!any_buffered(w)) {
        return 0;
    }
    if (!w->buf && !(w->buf = blk_buf_alloc(w->c->buf_size))) {
        return convert_fail(w->c, -ENOMEM, CONVERT_READ, w->chunk.offset);
    }
    submit_reads(w);
    failed = batch_wait(w);
    return failed < 0 ? 0 : check_reads(w, (unsigned)failed);
}

/* ---- zero detection --------------------------------------------------------- */

/* The piece of s that starts at from: ends at a multiple of the grain. */
static uint64_t grain_len(const struct convert *c, const struct convert_seg *s, uint64_t from)
{
    uint64_t end = ((s->offset + from) & ~(c->grain - 1ull)) + c->grain - s->offset;

    return BLK_MIN(end, s->length) - from;
}

/* Mark the grains of a segment in zeros[]; quick: only look at their first bytes.
 * Returns how many marks were used, and whether any may be zero. */
static size_t mark_seg(struct worker *w, const struct convert_seg *s, uint8_t *zeros, bool quick,
                       bool *any)
{
    const uint8_t *p = w->buf + s->buf;
    size_t n = 0;

    for (uint64_t at = 0, len; at < s->length; at += len, n++) {
        len = grain_len(w->c, s, at);
        zeros[n] = blk_is_zero(p + at, quick ? BLK_MIN(len, PROBE_BYTES) : (size_t)len);
        *any |= zeros[n];
    }
    return n;
}

static bool mark_chunk(struct worker *w, bool quick)
{
    uint8_t *zeros = w->zeros;
    bool any = false;

    for (unsigned i = 0; i < w->chunk.nsegs; i++) {
        if (buffered(w, &w->chunk.segs[i])) {
            zeros += mark_seg(w, &w->chunk.segs[i], zeros, quick, &any);
        }
    }
    return any;
}

static void mark_on_worker(void *arg)
{
    mark_chunk(arg, false);
}

/* Most data shows in its first bytes: only what might be zeros is worth a trip to
 * a worker thread. */
static int find_zeros(struct worker *w)
{
    struct convert *c = w->c;

    if (!c->sparse || c->compress || !any_buffered(w) || !c->dst) {
        return 0;
    }
    if (!w->zeros) {
        w->zeros = malloc(c->buf_size / c->grain + 2 * CONVERT_SEGS);
        if (!w->zeros) {
            return convert_fail(c, -ENOMEM, CONVERT_READ, w->chunk.offset);
        }
    }
    if (mark_chunk(w, true)) {
        co_work(mark_on_worker, w);
    }
    return 0;
}

/* ---- writing ---------------------------------------------------------------- */

static int write_wait(struct worker *w)
{
    const struct convert_seg *s = w->chunk.segs;
    int failed;

    if (!w->nreqs) {
        return 0;
    }
    failed = batch_wait(w);
    if (failed < 0) {
        return 0;
    }
    if (w->reqs[failed].op == BLK_COPY) {
        w->offload = false;
        return -EAGAIN;
    }
    while (s + 1 < w->chunk.segs + w->chunk.nsegs && s[1].offset <= w->reqs[failed].offset) {
        s++;
    }
    return convert_fail(w->c, w->reqs[failed].result, CONVERT_WRITE, s->offset);
}

/* A write that begins in a block that another may be allocating waits for that one: if it
 * goes on beyond the block, later ones would overtake it. */
static bool may_be_late(const struct convert *c, const struct blk_req *req)
{
    uint64_t in = c->block ? req->offset % c->block : 0;

    return in && in + req->length > c->block;
}

static int add_write(struct worker *w, const struct blk_req *req, uint8_t *data)
{
    if (w->nreqs == CONVERT_SEGS || may_be_late(w->c, req)) {
        int ret = write_wait(w);
        if (ret < 0) {
            return ret;
        }
    }
    batch_add(w, w->c->dst, req, data);
    return w->c->one_at_a_time ? write_wait(w) : 0;
}

static int write_run(struct worker *w, uint64_t off, uint64_t len, uint8_t *data)
{
    struct blk_req req = { .op = BLK_WRITE, .offset = off, .length = len,
                           .flags = w->c->compress ? BLK_REQ_COMPRESSED : 0 };

    if (!data) {
        if (w->c->zero_init) {
            return 0;
        }
        req.op = BLK_WRITE_ZEROES;
        req.flags = BLK_REQ_MAY_UNMAP;
    }
    return add_write(w, &req, data);
}

static int copy_seg(struct worker *w, const struct convert_seg *s)
{
    return add_write(w, &(struct blk_req) { .op = BLK_COPY, .offset = s->offset,
                                            .length = s->length, .from = s->host,
                                            .from_offset = s->host_offset }, NULL);
}

/* Bytes from `at` on that are alike, zero or not. */
static uint64_t run_len(const struct convert *c, const struct convert_seg *s,
                        const uint8_t **zeros, uint64_t at, bool *zero)
{
    uint64_t len = grain_len(c, s, at);

    *zero = *(*zeros)++;
    while (at + len < s->length && **zeros == *zero) {
        len += grain_len(c, s, at + len);
        (*zeros)++;
    }
    return len;
}

/* Write a segment's data, leaving out zeros of c->sparse bytes or more, and those at its ends,
 * however few.  Pieces of data gather in [from, at) until such a run ends them. */
static int write_sparse(struct worker *w, const struct convert_seg *s, const uint8_t **zeros)
{
    struct convert *c = w->c;
    uint8_t *p = w->buf + s->buf;
    uint64_t from = 0, at = 0;
    int ret = 0;

    while (at < s->length && ret == 0) {
        bool zero;
        uint64_t len = run_len(c, s, zeros, at, &zero);

        if (zero && (len >= c->sparse || !at || at + len == s->length)) {
            if (at > from) {
                ret = write_run(w, s->offset + from, at - from, p + from);
            }
            if (ret == 0) {
                ret = write_run(w, s->offset + at, len, NULL);
            }
            from = at + len;
        }
        at += len;
    }
    if (ret == 0 && at > from) {
        ret = write_run(w, s->offset + from, at - from, p + from);
    }
    return ret;
}

/* A run of clusters, all zeros or none, each a piece of its own. */
static uint64_t cluster_run(const struct convert *c, const uint8_t *p, uint64_t len, bool *zero)
{
    uint64_t at = 0;

    while (at < len) {
        uint64_t now = BLK_MIN(c->cluster, len - at);
        bool z = c->sparse && blk_is_zero(p + at, now);

        if (at && z != *zero) {
            break;
        }
        *zero = z;
        at += now;
    }
    return at;
}

/* Data at off, whole clusters but for the image's last one, which only the end of
 * the target makes whole. */
static int write_clusters(struct worker *w, uint64_t off, uint64_t len, uint8_t *p)
{
    uint64_t part = len & (w->c->cluster - 1ull);
    int ret = 0;

    part = part && off + len < blk_size(w->c->dst) ? part : 0;
    for (uint64_t at = 0, run; at < len - part && ret == 0; at += run) {
        bool zero = false;

        run = cluster_run(w->c, p + at, len - part - at, &zero);
        ret = write_run(w, off + at, run, zero ? NULL : p + at);
    }
    if (part && ret == 0) {
        ret = co_write(w->c->dst, off + len - part, p + len - part, part, 0);
        ret = ret ? convert_fail(w->c, ret, CONVERT_WRITE, off + len - part) : 0;
    }
    return ret;
}

/* With compress: neighbouring pieces of data, from whatever source, are one. */
static int submit_clusters(struct worker *w)
{
    const struct convert_seg *s = w->chunk.segs, *end = s + w->chunk.nsegs;
    int ret = 0;

    while (s < end && ret == 0) {
        const struct convert_seg *first = s++;
        uint64_t len = first->length;

        if (first->kind == CONVERT_ZERO) {
            ret = write_run(w, first->offset, len, NULL);
        } else if (first->kind == CONVERT_DATA) {
            for (; s < end && s->kind == CONVERT_DATA; s++) {
                len += s->length;
            }
            ret = write_clusters(w, first->offset, len, w->buf + first->buf);
        }
    }
    return ret;
}

static int submit_writes(struct worker *w)
{
    const uint8_t *zeros = w->zeros;
    int ret = 0;

    if (w->c->compress) {
        return submit_clusters(w);
    }

    for (unsigned i = 0; i < w->chunk.nsegs && ret == 0; i++) {
        const struct convert_seg *s = &w->chunk.segs[i];
        uint64_t len = s->length;

        if (s->kind == CONVERT_ZERO) {
            ret = write_run(w, s->offset, len, NULL);
        } else if (s->kind == CONVERT_DATA && !buffered(w, s)) {
            ret = copy_seg(w, s);
        } else if (s->kind == CONVERT_DATA && w->c->sparse) {
            ret = write_sparse(w, s, &zeros);
        } else if (s->kind == CONVERT_DATA) {
            /* Two writes to one cluster would wait for each other, and later ones overtake. */
            while (i + 1 < w->chunk.nsegs && s->buf + len == w->chunk.segs[i + 1].buf &&
                   w->chunk.segs[i + 1].kind == CONVERT_DATA && buffered(w, &w->chunk.segs[i + 1])) {
                len += w->chunk.segs[++i].length;
            }
            ret = write_run(w, s->offset, len, w->buf + s->buf);
        }
    }
    return ret;
}

static void wait_turn(struct worker *w)
{
    while (!w->c->out_of_order && w->c->turn != w->chunk.ticket) {
        co_wait_on(&w->c->turns);
    }
}

static void end_turn(struct worker *w)
{
    if (!w->c->out_of_order) {
        w->c->turn++;
        co_wake_all(&w->c->turns);
    }
}

static void keep_rate(struct convert *c, uint64_t bytes)
{
    uint64_t now = blk_now_ns(), at = BLK_MAX(now, c->rate_at);

    if (!c->rate || !bytes) {
        return;
    }
    c->rate_at = at + (uint64_t)((double)bytes * 1e9 / (double)c->rate);
    if (at > now) {
        co_sleep(at - now);
    }
}

static int hash_chunk(struct worker *w)
{
    struct convert *c = w->c;

    if (!w->digest && !(w->digest = digest_chunk_new(c))) {
        return convert_fail(c, -ENOMEM, CONVERT_READ, w->chunk.offset);
    }
    digest_chunk_hash(c->digest, w->digest, &w->chunk, w->buf);
    return 0;
}

/* The digest takes chunks in their order, whatever the writes do. */
static void feed_chunk(struct worker *w, int ret)
{
    struct convert *c = w->c;

    while (c->fed != w->chunk.ticket) {
        co_wait_on(&c->feeds);
    }
    if (ret == 0 && !c->failure.err) {
        digest_chunk_feed(c->digest, w->digest, &w->chunk, w->buf);
    }
    c->fed++;
    co_wake_all(&c->feeds);
}

/* The storage would not copy: the whole chunk by hand, what it has copied as well. */
static int write_instead(struct worker *w)
{
    int ret, waited;

    w->c->offload = false;
    ret = read_chunk(w);
    ret = ret ? ret : find_zeros(w);
    ret = ret ? ret : submit_writes(w);
    waited = write_wait(w);
    return ret ? ret : waited;
}

/* Every chunk takes its turn, also after an error: others wait for it. */
static void write_chunk(struct worker *w, int ret)
{
    struct convert *c = w->c;
    bool offload = w->offload;
    int waited;

    wait_turn(w);
    if (ret == 0 && !c->failure.err) {
        keep_rate(c, w->chunk.data);
        ret = c->dst ? submit_writes(w) : 0;
    }
    end_turn(w);                /* what is submitted ends by itself */
    waited = write_wait(w);
    ret = ret ? ret : waited;
    if (offload && !w->offload && !c->failure.err) {
        ret = write_instead(w);
    }
    if (ret == 0 && !c->failure.err) {
        c->done += w->chunk.length;
        img_progress_set(c->done, c->work ? c->work : c->total, true);
    }
}

/* ---- checkpoints ------------------------------------------------------------- */

/* No chunk below this one is in anybody's hands. */
static uint64_t all_done_before(const struct convert *c)
{
    uint64_t at = c->pos;

    for (unsigned i = 0; i < c->workers; i++) {
        at = BLK_MIN(at, c->in_hand[i]);
    }
    return at;
}

/* When enough is done since the last: one worker sees to it, others go on. */
static void save_checkpoint(struct convert *c)
{
    uint64_t at = all_done_before(c);
    int err;

    if (!c->journal || c->saving || c->failure.err || at < c->saved + c->checkpoint) {
        return;
    }
    c->saving = true;
    err = co_flush(c->dst);
    if (err) {
        convert_fail(c, err, CONVERT_WRITE, at);
    } else if (!c->failure.err && (err = journal_save(c->journal, at))) {
        convert_fail(c, err, CONVERT_JOURNAL, at);
    } else {
        c->saved = at;
    }
    c->saving = false;
}

/* ---- workers ---------------------------------------------------------------- */

static void worker_run(void *arg)
{
    struct worker *w = arg;
    struct convert *c = w->c;

    for (;;) {
        c->in_hand[w->number] = c->pos;
        int ret = convert_next(c, &w->chunk);

        if (ret < 0 || !w->chunk.nsegs) {
            break;
        }
        w->offload = c->offload;
        ret = read_chunk(w);
        if (ret == 0) {
            ret = find_zeros(w);
        }
        if (c->digest) {
            ret = ret ? ret : hash_chunk(w);
            feed_chunk(w, ret);
        }
        write_chunk(w, ret);
        c->in_hand[w->number] = UINT64_MAX;
        save_checkpoint(c);
    }
    c->in_hand[w->number] = UINT64_MAX;
    c->running--;
    co_wake_one(&c->ended);
}

static int start_workers(struct convert *c, struct worker **workers)
{
    int ret = 0;

    memset(c->in_hand, 0xFF, sizeof(c->in_hand));
    for (unsigned i = 0; i < c->workers && ret == 0; i++) {
        struct worker *w = calloc(1, sizeof(*w));

        ret = -ENOMEM;
        if (w) {
            workers[i] = w;
            w->c = c;
            w->number = i;
            ret = co_start(co_loop(), worker_run, w);
        }
        if (ret == 0) {
            c->in_hand[i] = c->pos;
            c->running++;
        }
    }
    /* Fewer than asked for will do, none will not. */
    return c->running ? 0 : ret;
}

static bool is_local(const struct blk_node *n)
{
    while (n && !blk_is_protocol(n)) {
        n = blk_file(n);
    }
    return n && (!strcmp(blk_format_name(n), "file") ||
                 !strcmp(blk_format_name(n), "host_device"));
}

/* A server is kept busy by many requests.  Between local files buffers that no processor
 * works on only push the others out of its cache. */
static unsigned choose_workers(const struct convert *c)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    bool local = !c->dst || is_local(c->dst);

    for (size_t i = 0; i < c->nsrc; i++) {
        local = local && is_local(c->src[i].node);
    }
    return local && cpus > 0 && cpus < WORKERS_DEFAULT ? (unsigned)cpus + 1 : WORKERS_DEFAULT;
}

/* QEMU's granularity of zeros.  Where clusters are allocated as a whole by the first write into
 * them smaller pieces gain nothing. */
static uint32_t choose_grain(const struct convert *c)
{
    uint32_t grain = BLK_MAX(c->sparse, CONVERT_SECTOR);

    while (grain & (grain - 1)) {
        grain &= grain - 1;
    }
    if (c->dst) {
        grain = BLK_MAX(grain, blk_node_limits(c->dst)->req_align);
    }
    return c->whole_clusters ? BLK_MAX(grain, BLK_MIN(c->cluster, 65536u)) : grain;
}

/* Compressed data may end anywhere; storage with sectors reads it more easily so. */
static int align_end(const struct convert *c)
{
    struct blk_node *file = c->compress && c->dst ? blk_file(c->dst) : NULL;
    uint64_t in = file ? blk_size(file) % CONVERT_SECTOR : 0;

    return in ? blk_truncate(file, blk_size(file) - in + CONVERT_SECTOR, false, BLK_PREALLOC_OFF,
                             NULL) : 0;
}

int convert_copy(struct convert *c)
{
    struct worker *workers[CONVERT_WORKERS_MAX] = { NULL };
    int ret;

    c->grain = choose_grain(c);
    c->workers = c->workers ? c->workers : choose_workers(c);
    ret = start_workers(c, workers);
    if (ret < 0) {
        convert_fail(c, ret, CONVERT_READ, 0);
    }
    while (c->running) {
        co_wait_on(&c->ended);
    }
    for (unsigned i = 0; i < BLK_ARRAY_SIZE(workers); i++) {
        if (workers[i]) {
            blk_buf_free(workers[i]->buf);
            free(workers[i]->zeros);
            digest_chunk_free(workers[i]->digest);
            free(workers[i]);
        }
    }
    if (!c->failure.err && (ret = align_end(c)) < 0) {
        convert_fail(c, ret, CONVERT_WRITE, c->total);
    }
    return c->failure.err;
}

void convert_report(const struct convert_failure *f)
{
    unsigned long long at = f->at;
    const char *why = strerror(-f->err);

    switch (f->step) {
    case CONVERT_MAP:
        img_error("error while reading block status at offset %llu: %s", at, why);
        break;
    case CONVERT_READ:
        img_error("error while reading at byte %llu: %s", at, why);
        break;
    case CONVERT_WRITE:
        img_error("error while writing at byte %llu: %s", at, why);
        break;
    case CONVERT_JOURNAL:
        img_error("error while writing the journal: %s", why);
        break;
    }
}
