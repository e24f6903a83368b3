/*
 * deflate.c - compressed grains: each is a zlib stream, behind a marker that says whose
 * sector it is and how long.
 *
 * Invariants
 *  - A grain is written once, as a whole; another write to it is refused.
 *  - Grains lie in the file in the order in which requests came, although they are
 *    compressed side by side on the workers.
 */
#include "formats/vmdk/vmdk.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#ifdef HAVE_DEFLATE
#include <libdeflate.h>
#endif

#define MARKER 12u                  /* sector (8), bytes (4) */
#define LEVEL 6                     /* zlib's default, which QEMU uses */

/* ---- on a worker --------------------------------------------------------------------------- */

struct inflate {
    const uint8_t *in;
    size_t len, room;
    uint8_t *out;
    size_t got;
    int err;
};

static void inflate_run(void *arg)
{
    struct inflate *z = arg;
#ifdef HAVE_DEFLATE
    static __thread struct libdeflate_decompressor *d;
    size_t used;
    d = d ? d : libdeflate_alloc_decompressor();
    z->err = !d ? -ENOMEM
           : libdeflate_zlib_decompress_ex(d, z->in, z->len, z->out, z->room, &used, &z->got)
                 == LIBDEFLATE_SUCCESS ? 0 : -EINVAL;
#else
    uLongf got = z->room;
    z->err = uncompress(z->out, &got, z->in, z->len) == Z_OK ? 0 : -EINVAL;
    z->got = got;
#endif
}

/* Length of the stream, or -errno. */
static long pack(const uint8_t *in, size_t len, uint8_t *out, size_t room)
{
#ifdef HAVE_DEFLATE
    static __thread struct libdeflate_compressor *c;
    c = c ? c : libdeflate_alloc_compressor(LEVEL);
    size_t n = c ? libdeflate_zlib_compress(c, in, len, out, room) : 0;
    return n ? (long)n : -ENOMEM;
#else
    uLongf n = room;
    return compress2(out, &n, in, len, LEVEL) == Z_OK ? (long)n : -ENOMEM;
#endif
}

/* ---- reading ---------------------------------------------------------------------------------- */

/* The stream of the grain at `at`, with what may stand in front of it. */
static int stream_read(struct vmdk_extent *x, uint64_t at, uint8_t **buf, struct inflate *z)
{
    size_t grain = x->map.block_size, room = 2 * grain, len = grain;
    uint8_t marker[MARKER];
    int err = x->markers ? co_read(x->file, at, marker, MARKER) : 0;

    if (err) {
        return err;
    }
    if (x->markers) {
        len = le32(marker + 8);
        at += MARKER;
    }
    if (!len || len > room) {
        return -EINVAL;
    }
    *buf = malloc(len);
    z->in = *buf;
    z->len = len;
    return *buf ? co_read(x->file, at, *buf, len) : -ENOMEM;
}

static int grain_inflate(struct vmdk_extent *x, uint64_t at, struct inflate *z)
{
    uint8_t *buf = NULL;
    int err = stream_read(x, at, &buf, z);

    z->room = x->map.block_size;
    z->out = err ? NULL : malloc(z->room);
    err = err ? err : z->out ? 0 : -ENOMEM;
    if (!err) {
        co_work(inflate_run, z);
        err = z->err;
    }
    free(buf);
    if (err) {
        free(z->out);
        z->out = NULL;
    }
    return err;
}

static const struct vmdk_inflated *inflated_find(const struct vmdk_extent *x, uint64_t block)
{
    for (unsigned i = 0; i < VMDK_INFLATED; i++) {
        if (x->inflated[i].data && x->inflated[i].block == block) {
            return &x->inflated[i];
        }
    }
    return NULL;
}

static const struct vmdk_inflated *inflated_keep(struct vmdk_extent *x, uint64_t block,
                                                 const struct inflate *z)
{
    struct vmdk_inflated *k = &x->inflated[x->inflated_next++ % VMDK_INFLATED];
    free(k->data);
    *k = (struct vmdk_inflated){ block, z->out, z->got };
    return k;
}

int vmdk_read_grain(struct blockmap *m, uint64_t block, uint64_t v, uint64_t in,
                    const struct iovec *iov, int cnt, uint64_t pos, uint64_t len)
{
    struct vmdk_extent *x = vmdk_extent_of(m);
    const struct vmdk_inflated *k = inflated_find(x, block);

    if (!k) {
        struct inflate z = { 0 };
        int err = grain_inflate(x, v & ~BM_SPECIAL, &z);
        if (err) {
            return err;
        }
        k = inflated_keep(x, block, &z);
    }
    if (in > k->len || len > k->len - in) {
        return -EINVAL;
    }
    blk_iov_from_buf(iov, cnt, pos, k->data + in, len);
    return 0;
}

/* ---- writing ------------------------------------------------------------------------------------ */

struct packing { unsigned pending; struct co *waiter; };

static void grain_run(struct blk_work *w)
{
    struct vmdk_grain *g = blk_container_of(w, struct vmdk_grain, work);
    size_t room = g->len + g->len / 1000 + 64;      /* what cannot be compressed grows */
    long n;

    g->out = malloc(MARKER + room + VMDK_SECTOR);
    n = g->out ? pack(g->in, g->len, g->out + MARKER, room) : -ENOMEM;
    if (n < 0) {
        g->err = (int)n;
        return;
    }
    put_le64(g->out, g->sector);
    put_le32(g->out + 8, (uint32_t)n);
    g->out_len = blk_align_up(MARKER + (uint64_t)n, VMDK_SECTOR);
    memset(g->out + MARKER + n, 0, g->out_len - MARKER - (size_t)n);
}

static void grain_done(struct blk_work *w)
{
    struct packing *p = blk_container_of(w, struct vmdk_grain, work)->packing;
    if (!--p->pending) {
        co_wake(p->waiter);
    }
}

int vmdk_pack(struct vmdk_grain *g, size_t n)
{
    struct packing p = { (unsigned)n, co_self() };
    int err = 0;

    for (size_t i = 0; i < n; i++) {
        g[i].work = (struct blk_work){ .fn = grain_run, .done = grain_done, .loop = co_loop() };
        g[i].packing = &p;
        blk_pool_submit(blk_pool_cpu(), &g[i].work);
    }
    if (n) {
        co_yield();                 /* grain_done() runs from the loop only */
    }
    for (size_t i = 0; !err && i < n; i++) {
        err = g[i].err;
    }
    return err;
}

struct packed {                     /* a request */
    struct vmdk_extent *x;
    struct vmdk_grain *grains;
    size_t n;
    uint64_t first;                 /* block */
    uint8_t *copy;                  /* the request's data in one piece */
};

/* One write; then the entries. */
static int place_all(struct packed *p, uint64_t at)
{
    struct iovec *iov = calloc(p->n, sizeof(*iov));
    uint64_t len = 0;
    int err = iov ? 0 : -ENOMEM;

    for (size_t i = 0; !err && i < p->n; i++) {
        iov[i] = (struct iovec){ p->grains[i].out, p->grains[i].out_len };
        len += p->grains[i].out_len;
    }
    err = err ? err : co_writev(p->x->file, at, iov, (int)p->n, len, 0);
    for (size_t i = 0; !err && i < p->n; i++) {
        err = blockmap_set(&p->x->map, p->first + i, at | BM_SPECIAL);
        at += p->grains[i].out_len;
    }
    free(iov);
    return err;
}

static int refuse_rewrite(void)
{
    blk_report("Could not write to allocated cluster for streamOptimized");
    return -EIO;
}

/* In the request's turn: none of its grains has a place; reserve one for all. */
static int reserve_all(struct packed *p, uint64_t *at)
{
    struct blockmap *m = &p->x->map;
    uint64_t len = 0;

    for (size_t i = 0; i < p->n; i++) {
        uint64_t v;
        int err = blockmap_get(m, p->first + i, &v);
        if (err) {
            return err;
        }
        if (v != BM_ABSENT && v != BM_ZERO) {
            return refuse_rewrite();
        }
        len += p->grains[i].out_len;
    }
    *at = m->next;
    if (m->next + len > m->data_end - m->block_size) {
        return -ENOSPC;
    }
    m->next += len;
    return 0;
}

static void turn_wait(struct vmdk_extent *x, uint64_t ticket)
{
    while (x->turn != ticket) {
        co_wait_on(&x->turn_q);
    }
}

static int packed_init(struct packed *p, const struct blk_req *req)
{
    size_t grain = p->x->map.block_size;

    p->first = (req->offset - p->x->start) / grain;
    p->n = (size_t)((req->length + grain - 1) / grain);
    p->grains = calloc(p->n, sizeof(*p->grains));
    p->copy = req->iovcnt == 1 ? NULL : blk_buf_alloc(req->length);
    if (!p->grains || (req->iovcnt != 1 && !p->copy)) {
        return -ENOMEM;
    }
    const uint8_t *in = p->copy ? p->copy : req->iov[0].iov_base;
    if (p->copy) {
        blk_iov_to_buf(req->iov, req->iovcnt, 0, p->copy, req->length);
    }
    for (size_t i = 0; i < p->n; i++) {
        p->grains[i] = (struct vmdk_grain){
            .sector = (req->offset + i * grain) / VMDK_SECTOR, .in = in + i * grain,
            .len = BLK_MIN(grain, (size_t)(req->length - i * grain)),
        };
    }
    return 0;
}

/* The request lies within x. */
int vmdk_write_packed(struct vmdk_extent *x, struct blk_req *req)
{
    struct packed p = { .x = x };
    uint64_t in = req->offset - x->start, end = req->offset + req->length, at = 0, v = BM_ABSENT;

    if (!x->markers || in % x->map.block_size ||
        (req->length % x->map.block_size && end != x->end)) {
        int looked = blockmap_get(&x->map, in / x->map.block_size, &v);
        return looked ? looked : v != BM_ABSENT && v != BM_ZERO ? refuse_rewrite() : -EINVAL;
    }
    uint64_t ticket = x->tickets++;
    int err = packed_init(&p, req);
    err = err ? err : vmdk_pack(p.grains, p.n);
    turn_wait(x, ticket);
    err = err ? err : reserve_all(&p, &at);
    x->turn++;
    co_wake_all(&x->turn_q);
    err = err ? err : place_all(&p, at);
    for (size_t i = 0; p.grains && i < p.n; i++) {
        free(p.grains[i].out);
    }
    free(p.grains);
    blk_buf_free(p.copy);
    return err;
}
