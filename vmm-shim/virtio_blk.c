/*
 * virtio_blk.c - requests of a guest's disk (virtio 1.2, 5.2.6): a chain becomes
 * one blk_req whose iovecs are the guest's own pages.
 *
 * Invariants
 *  - Loop thread only, but for the configuration space (pci.lock) and wce.
 *  - The request of head h of a queue lives in pool[queue][h]: nothing is
 *    allocated per request, and there are never more than the queue has entries.
 *  - The header, discard ranges and all lengths are private copies before they
 *    are checked.  The data is the guest's own to spoil.
 *  - What is malformed as a chain (no header, no status) breaks the queue; what
 *    is a well-formed chain with a bad request in it gets an error status.
 *  - With the write cache off, or without FLUSH negotiated, each write is FUA.
 */
#include "vmm-shim/virtio_blk.h"
#include "vmm-shim/virtio.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR          512u
#define RANGES_MAX      32u
#define RANGE_SECTORS   (1u << 21)  /* 1 GiB in one range */

enum {
    F_SEG_MAX = 1 << 2, F_RO = 1 << 5, F_BLK_SIZE = 1 << 6, F_FLUSH = 1 << 9,
    F_TOPOLOGY = 1 << 10, F_CONFIG_WCE = 1 << 11, F_MQ = 1 << 12, F_DISCARD = 1 << 13,
    F_WRITE_ZEROES = 1 << 14,
};
enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };
enum { RANGE_UNMAP = 1 };

struct header {
    uint32_t type, reserved;
    uint64_t sector;
};

struct range {
    uint64_t sector;
    uint32_t sectors, flags;
};

/* Device configuration, 5.2.4 */
struct layout {
    uint64_t capacity;
    uint32_t size_max, seg_max;
    uint16_t cylinders;
    uint8_t heads, sectors;
    uint32_t blk_size;
    uint8_t physical_block_exp, alignment_offset;
    uint16_t min_io_size;
    uint32_t opt_io_size;
    uint8_t writeback, unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
    uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));
_Static_assert(sizeof(struct layout) == 60, "layout of the disk's configuration");

struct request {
    struct blk_req req;             /* first */
    struct virtio_blk *disk;
    uint8_t *status;                /* in guest memory */
    uint32_t in_len;                /* writable bytes, the status included */
    uint16_t head, queue;
    uint16_t range, ranges;         /* DISCARD, WRITE_ZEROES: at which of how many */
    union {
        struct iovec iov[VIRTQ_SEGS];
        struct range r[RANGES_MAX];
    };
};

struct virtio_blk {
    struct virtio_dev dev;          /* first */
    struct blk_node *node;
    uint64_t size;                  /* bytes, whole sectors */
    bool read_only, wce_default;
    atomic_bool wce;                /* write cache on; read by the loop */
    char serial[VIRTIO_BLK_ID_BYTES];
    struct layout config;           /* all but writeback */
    uint64_t told;                  /* errnos reported already, by bit */
    uint64_t requests;
    struct virtio_blk_stats stats;
    struct request *pool[VIRTIO_QUEUES];
};

static struct virtio_blk *disk_of(struct virtio_dev *d)
{
    return blk_container_of(d, struct virtio_blk, dev);
}

/* ---- completion ------------------------------------------------------------------ */

/* written must be true of the whole writable part: a status behind data that was
 * not written counts as nothing. */
static void request_finish(struct request *v, uint8_t status, bool wrote_data)
{
    uint32_t written = wrote_data || v->in_len == 1 ? v->in_len : 0;

    __atomic_store_n(v->status, status, __ATOMIC_RELAXED);
    virtio_finish(&v->disk->dev, v->queue, v->head, written);
}

static void report_error(struct virtio_blk *b, const struct blk_req *req)
{
    static const char *const verb[BLK_OPS] = { "read", "write", "write zeroes", "discard",
                                               "flush" };
    int err = -req->result;
    char where[64] = "";

    if (err == ENOTSUP || b->told & 1ull << err % 64)
        return;
    b->told |= 1ull << err % 64;
    if (req->op != BLK_FLUSH)
        snprintf(where, sizeof(where), " of %llu bytes at %llu", (unsigned long long)req->length,
                 (unsigned long long)req->offset);
    blk_report("virtio-blk %02x.%x: %s: %s%s: %s (more errors like this one go to the guest only)",
               b->dev.pci.devfn >> 3, b->dev.pci.devfn & 7, blk_filename(b->node), verb[req->op],
               where, strerror(err));
}

static bool range_next(struct request *v);

static void request_done(struct blk_req *req)
{
    struct request *v = blk_container_of(req, struct request, req);

    if (req->result == 0) {
        if (v->range < v->ranges && range_next(v))
            return;
        request_finish(v, S_OK, req->op == BLK_READ);
        return;
    }
    report_error(v->disk, req);
    request_finish(v, req->result == -ENOTSUP ? S_UNSUPP : S_IOERR, false);
}

/* ---- the kinds of request --------------------------------------------------------- */

static bool writes_through(const struct virtio_blk *b)
{
    return !(b->dev.features & F_FLUSH) ||
           !atomic_load_explicit(&b->wce, memory_order_relaxed);
}

/* Is [sector, sector + len bytes) on the disk?  Its place in *off. */
static bool on_disk(const struct virtio_blk *b, uint64_t sector, uint64_t len, uint64_t *off)
{
    if (__builtin_mul_overflow(sector, (uint64_t)SECTOR, off))
        return false;
    return *off <= b->size && len <= b->size - *off;
}

static void submit(struct request *v, enum blk_op op, unsigned flags, uint64_t off, uint64_t len)
{
    v->req.op = op;
    v->req.flags = flags;
    v->req.offset = off;
    v->req.length = len;
    v->req.done = request_done;
    blk_submit(v->disk->node, &v->req);
}

static void do_rw(struct request *v, enum blk_op op, uint64_t sector, struct iovec *iov,
                  unsigned cnt, uint32_t len)
{
    struct virtio_blk *b = v->disk;
    uint64_t off;

    if (!len || len % SECTOR || !on_disk(b, sector, len, &off) ||
        (op == BLK_WRITE && b->read_only)) {
        request_finish(v, S_IOERR, false);
        return;
    }
    v->req.iov = iov;
    v->req.iovcnt = (int)cnt;
    submit(v, op, op == BLK_WRITE && writes_through(b) ? BLK_REQ_FUA : 0, off, len);
}

static void do_flush(struct request *v)
{
    v->req.iov = NULL;
    v->req.iovcnt = 0;
    submit(v, BLK_FLUSH, 0, 0, 0);
}

static void do_get_id(struct request *v, const struct iovec *iov, unsigned cnt, uint32_t len)
{
    uint32_t n = BLK_MIN(len, VIRTIO_BLK_ID_BYTES);

    blk_iov_from_buf(iov, (int)cnt, 0, v->disk->serial, n);
    if (len > n)
        blk_iov_zero(iov, (int)cnt, n, len - n);
    request_finish(v, S_OK, true);
}

/* Submit the next range that is not empty; false: there is none. */
static bool range_next(struct request *v)
{
    struct virtio_blk *b = v->disk;

    while (v->range < v->ranges) {
        struct range *r = &v->r[v->range++];
        unsigned flags = 0;

        if (!r->sectors)
            continue;
        if (b->dev.reset_wanted)
            return false;
        if (v->req.op == BLK_WRITE_ZEROES)
            flags = (r->flags & RANGE_UNMAP ? BLK_REQ_MAY_UNMAP : 0) |
                    (writes_through(b) ? BLK_REQ_FUA : 0);
        submit(v, v->req.op, flags, r->sector * SECTOR, (uint64_t)r->sectors * SECTOR);
        return true;
    }
    return false;
}

/* S_OK, or the status for a bad list of ranges. */
static uint8_t ranges_check(const struct virtio_blk *b, enum blk_op op, const struct range *r,
                            unsigned n)
{
    unsigned allowed = op == BLK_WRITE_ZEROES ? RANGE_UNMAP : 0;
    uint64_t off;

    for (unsigned i = 0; i < n; i++) {
        if (r[i].flags & ~allowed)
            return S_UNSUPP;
    }
    for (unsigned i = 0; i < n; i++) {
        if (r[i].sectors > RANGE_SECTORS ||
            !on_disk(b, r[i].sector, (uint64_t)r[i].sectors * SECTOR, &off))
            return S_IOERR;
    }
    return S_OK;
}

static void do_ranges(struct request *v, enum blk_op op, const struct iovec *iov, unsigned cnt,
                      uint32_t len)
{
    struct virtio_blk *b = v->disk;
    uint64_t feature = op == BLK_DISCARD ? F_DISCARD : F_WRITE_ZEROES;
    struct range copy[RANGES_MAX];
    uint8_t status = S_OK;

    if (!(b->dev.features & feature))
        status = S_UNSUPP;
    else if (b->read_only || !len || len % sizeof(copy[0]) || len > sizeof(copy))
        status = S_IOERR;
    if (status == S_OK) {
        v->ranges = (uint16_t)(len / sizeof(copy[0]));
        blk_iov_to_buf(iov, (int)cnt, 0, copy, len);
        memcpy(v->r, copy, len);            /* over the iovecs */
        status = ranges_check(b, op, v->r, v->ranges);
    }
    v->req.op = op;
    v->req.iov = NULL;
    v->req.iovcnt = 0;
    if (status != S_OK || !range_next(v))
        request_finish(v, status, false);
}

/* ---- from the ring ------------------------------------------------------------------ */

/* Move the first 16 readable bytes, however they are cut, to h.  Returns the
 * index of the first segment with what is left. */
static unsigned header_take(struct virtq_chain *c, struct header *h)
{
    unsigned i = 0, have = 0;

    while (have < sizeof(*h)) {
        struct iovec *s = &c->iov[i];
        unsigned n = (unsigned)BLK_MIN(s->iov_len, sizeof(*h) - have);

        memcpy((uint8_t *)h + have, s->iov_base, n);
        have += n;
        s->iov_base = (uint8_t *)s->iov_base + n;
        s->iov_len -= n;
        if (!s->iov_len)
            i++;
    }
    __asm__ volatile("" : "+m"(*h));        /* read once */
    return i;
}

/* The last writable byte. */
static uint8_t *status_take(struct virtq_chain *c)
{
    struct iovec *s = &c->iov[c->out + c->in - 1];

    if (!--s->iov_len)
        c->in--;
    return (uint8_t *)s->iov_base + s->iov_len;
}

static void request_run(struct request *v, struct virtq_chain *c)
{
    struct header h;
    unsigned first = header_take(c, &h), out = c->out - first;
    uint32_t out_len = c->out_len - (uint32_t)sizeof(h), in_len = c->in_len - 1;
    struct iovec *readable = c->iov + first, *writable = c->iov + c->out;

    v->in_len = c->in_len;
    v->status = status_take(c);
    v->range = v->ranges = 0;
    switch (h.type) {
    case T_IN:
        do_rw(v, BLK_READ, h.sector, writable, c->in, in_len);
        break;
    case T_OUT:
        do_rw(v, BLK_WRITE, h.sector, readable, out, out_len);
        break;
    case T_FLUSH:
        do_flush(v);
        break;
    case T_GET_ID:
        do_get_id(v, writable, c->in, in_len);
        break;
    case T_DISCARD:
        do_ranges(v, BLK_DISCARD, readable, out, out_len);
        break;
    case T_WRITE_ZEROES:
        do_ranges(v, BLK_WRITE_ZEROES, readable, out, out_len);
        break;
    default:
        request_finish(v, S_UNSUPP, false);
    }
}

static int request_start(struct virtio_blk *b, unsigned qi, uint16_t head)
{
    struct virtqueue *q = &b->dev.queue[qi].vq;
    struct request *v = &b->pool[qi][head];
    struct virtq_chain c = { .iov = v->iov };
    int r = virtqueue_map(q, head, &c);

    if (r == 0 && c.out_len < sizeof(struct header))
        r = virtqueue_break(q, "a request header shorter than 16 bytes");
    if (r == 0 && !c.in_len)
        r = virtqueue_break(q, "a request without room for its status");
    if (r < 0)
        return r;
    v->disk = b;
    v->queue = (uint16_t)qi;
    v->head = head;
    virtio_begin(&b->dev);
    b->requests++;
    request_run(v, &c);
    return 0;
}

/* Take what is there, but not for ever: a guest that fills as fast as we empty
 * gets its next share after everybody else had theirs. */
static void serve(struct virtio_dev *d, unsigned qi)
{
    struct virtqueue *q = &d->queue[qi].vq;
    unsigned left = q->size;
    uint16_t head;
    int r;

    virtqueue_suppress(q);
    do {
        while ((r = virtqueue_take(q, &head)) > 0) {
            r = request_start(disk_of(d), qi, head);
            if (r < 0)
                break;
            if (!--left) {
                virtio_kick(d, qi);
                return;
            }
        }
        if (r < 0) {
            virtio_broken(d, qi);
            return;
        }
    } while (virtqueue_wait(q));
}

/* ---- the device type ------------------------------------------------------------------ */

static void pools_free(struct virtio_dev *d)
{
    struct virtio_blk *b = disk_of(d);

    for (unsigned i = 0; i < d->queues; i++) {
        free(b->pool[i]);
        b->pool[i] = NULL;
    }
}

/* Untouched entries stay untouched pages. */
static int pools_make(struct virtio_dev *d)
{
    struct virtio_blk *b = disk_of(d);

    for (unsigned i = 0; i < d->queues; i++) {
        if (!d->queue[i].live)
            continue;
        b->pool[i] = calloc(d->queue[i].vq.size, sizeof(struct request));
        if (!b->pool[i])
            return -ENOMEM;
    }
    return 0;
}

static void config_read(struct virtio_dev *d, unsigned off, void *data, unsigned len)
{
    struct virtio_blk *b = disk_of(d);
    struct layout c = b->config;

    c.writeback = atomic_load(&b->wce);
    memcpy(data, (const uint8_t *)&c + off, len);
}

static void config_write(struct virtio_dev *d, unsigned off, const void *data, unsigned len)
{
    struct virtio_blk *b = disk_of(d);
    uint8_t v = *(const uint8_t *)data;

    if (off == offsetof(struct layout, writeback) && len == 1 && v <= 1 &&
        (d->driver_features & F_CONFIG_WCE))
        atomic_store(&b->wce, v);
}

static void config_reset(struct virtio_dev *d)
{
    struct virtio_blk *b = disk_of(d);

    atomic_store(&b->wce, b->wce_default);
}

static const struct virtio_type type = {
    .name = "virtio-blk",
    .id = 2,
    .class_code = 0x010000,
    .config_size = sizeof(struct layout),
    .config_read = config_read,
    .config_write = config_write,
    .config_reset = config_reset,
    .start = pools_make,
    .serve = serve,
    .stopped = pools_free,
};

/* ---- set-up ------------------------------------------------------------------------------ */

static uint64_t features_of(const struct virtio_blk *b, unsigned queues)
{
    uint64_t f = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE;

    if (queues > 1)
        f |= F_MQ;
    if (b->read_only)
        return f | F_RO;
    if (blk_can_discard(b->node) != BLK_CAP_NONE)
        f |= F_DISCARD;
    return f | F_WRITE_ZEROES;
}

/* SIZE_MAX is not offered: the core splits what a node cannot take whole. */
static void config_fill(struct virtio_blk *b, unsigned queues, unsigned queue_size,
                        unsigned block_size)
{
    const struct blk_limits *lim = blk_node_limits(b->node);
    uint32_t physical = BLK_MAX(BLK_MAX(lim->req_align, 4096u), block_size);
    uint32_t discard = BLK_MAX(BLK_MAX(lim->discard_align, lim->req_align), block_size);

    b->config = (struct layout){
        .capacity = b->size / SECTOR,
        .seg_max = queue_size > 2 ? queue_size - 2 : 1,
        .blk_size = block_size,
        .physical_block_exp = (uint8_t)__builtin_ctz(physical / block_size),
        .min_io_size = (uint16_t)(physical / block_size),
        .opt_io_size = lim->opt_transfer / block_size,
        .num_queues = (uint16_t)queues,
        .max_discard_sectors = RANGE_SECTORS,
        .max_discard_seg = RANGES_MAX,
        .discard_sector_alignment = discard / SECTOR,
        .max_write_zeroes_sectors = RANGE_SECTORS,
        .max_write_zeroes_seg = RANGES_MAX,
        .write_zeroes_may_unmap = 1,
    };
}

static int config_check(const struct virtio_blk_config *c, unsigned block_size,
                        struct blk_error *e)
{
    if (block_size < 512 || block_size > 4096 || (block_size & (block_size - 1)))
        return blk_err(e, EINVAL, "virtio-blk: the block size must be 512, 1024, 2048 or 4096");
    if (!c->read_only && !blk_read_only(c->node) && blk_size(c->node) % block_size)
        return blk_err(e, EINVAL, "virtio-blk: the size of '%s' is not a multiple of %u bytes",
                       blk_filename(c->node), block_size);
    return 0;
}

int virtio_blk_new(struct pci_bus *bus, unsigned devfn, const struct mem *mem,
                   const struct virtio_blk_config *c, struct virtio_blk **out,
                   struct blk_error *e)
{
    unsigned queues = c->queues ? c->queues : 1;
    unsigned queue_size = c->queue_size ? c->queue_size : VIRTQ_SIZE_MAX;
    unsigned block_size = c->block_size ? c->block_size : 512;
    struct virtio_blk *b;
    int r = config_check(c, block_size, e);

    if (r < 0)
        return r;
    b = calloc(1, sizeof(*b));
    if (!b)
        return blk_err(e, ENOMEM, "virtio-blk: no memory");
    b->node = c->node;
    b->size = blk_size(c->node) / SECTOR * SECTOR;
    b->read_only = c->read_only || blk_read_only(c->node);
    b->wce_default = !c->writethrough;
    if (c->serial)
        memcpy(b->serial, c->serial, strnlen(c->serial, sizeof(b->serial)));
    config_fill(b, queues, queue_size, block_size);
    r = virtio_init(&b->dev, &type, bus, devfn, mem, blk_node_loop(c->node), queues, queue_size,
                    features_of(b, queues), e);
    if (r < 0) {
        free(b);
        return r;
    }
    *out = b;
    return 0;
}

void virtio_blk_free(struct virtio_blk *b)
{
    if (!b)
        return;
    virtio_fini(&b->dev);
    free(b);
}

const struct virtio_blk_stats *virtio_blk_stats(struct virtio_blk *b)
{
    b->stats = (struct virtio_blk_stats){ .kicks = b->dev.kicks, .requests = b->requests,
                                          .interrupts = b->dev.interrupts,
                                          .broken = b->dev.broken,
                                          .inflight = b->dev.inflight };
    return &b->stats;
}
