/*
 * virtqueue.c - rings in guest memory.  Invariants: no value is read from guest
 * memory twice; no pointer is made from a guest number without mem_at(); at
 * most q->size heads are the device's at a time, each of them once.
 */
#include "vmm-shim/virtqueue.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#define DESC_SIZE       16u
#define AVAIL_BYTES(n)  (6u + 2u * (n))
#define USED_BYTES(n)   (6u + 8u * (n))
#define INDIRECT_MAX    65536u      /* entries in a table */

enum { AVAIL_NO_INTERRUPT = 1, USED_NO_NOTIFY = 1 };

static uint16_t load16(const uint16_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static void store16(uint16_t *p, uint16_t v)
{
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}

/* One copy, which the compiler may not replace by a second look. */
static struct virtq_desc desc_copy(const struct virtq_desc *table, unsigned i)
{
    struct virtq_desc d;

    memcpy(&d, (const uint8_t *)table + (size_t)i * DESC_SIZE, DESC_SIZE);
    __asm__ volatile("" : "+m"(d));
    return d;
}

/* ---- set-up -------------------------------------------------------------------- */

static bool ranges_overlap(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
    return a < b + blen && b < a + alen;
}

const char *virtqueue_check(const struct mem *m, const struct virtq_config *c)
{
    unsigned n = c->size;

    if (!n || n > VIRTQ_SIZE_MAX || (n & (n - 1)))
        return "bad queue size";
    if (c->desc % 16 || c->avail % 2 || c->used % 4)
        return "a ring is not aligned";
    if (!mem_at(m, c->desc, DESC_SIZE * n))
        return "the descriptor table is not in RAM";
    if (!mem_at(m, c->avail, AVAIL_BYTES(n)))
        return "the available ring is not in RAM";
    if (!mem_at(m, c->used, USED_BYTES(n)))
        return "the used ring is not in RAM";
    if (ranges_overlap(c->desc, DESC_SIZE * n, c->avail, AVAIL_BYTES(n)) ||
        ranges_overlap(c->desc, DESC_SIZE * n, c->used, USED_BYTES(n)) ||
        ranges_overlap(c->avail, AVAIL_BYTES(n), c->used, USED_BYTES(n)))
        return "the rings overlap";
    return NULL;
}

void virtqueue_start(struct virtqueue *q, const struct mem *m, const struct virtq_config *c)
{
    memset(q, 0, sizeof(*q));
    q->mem = m;
    q->size = c->size;
    q->event_idx = c->event_idx;
    q->indirect = c->indirect;
    q->desc = mem_at(m, c->desc, DESC_SIZE * c->size);
    q->avail = mem_at(m, c->avail, AVAIL_BYTES(c->size));
    q->used = mem_at(m, c->used, USED_BYTES(c->size));
}

int virtqueue_break(struct virtqueue *q, const char *why)
{
    if (!q->broken) {
        q->broken = true;
        q->why = why;
    }
    return -EPROTO;
}

/* ---- taking ---------------------------------------------------------------------- */

int virtqueue_take(struct virtqueue *q, uint16_t *head)
{
    uint16_t ready, h;

    if (q->broken)
        return -EPROTO;
    ready = (uint16_t)(load16(&q->avail[1]) - q->last_avail);
    if (!ready)
        return 0;
    if (ready > q->size)
        return virtqueue_break(q, "the available index jumped by more than the queue size");
    h = load16(&q->avail[2 + (q->last_avail & (q->size - 1))]);
    if (h >= q->size)
        return virtqueue_break(q, "a head is past the queue size");
    if (q->busy[h / 64] & 1ull << h % 64)
        return virtqueue_break(q, "a head was made available twice");
    q->busy[h / 64] |= 1ull << h % 64;
    q->last_avail++;
    *head = h;
    return 1;
}

/* Where a walk is: in the queue's own table or in an indirect one. */
struct walk {
    const struct virtq_desc *table;
    unsigned limit;                 /* entries in table */
    unsigned left;                  /* descriptors this walk may still see */
    unsigned next;
    bool indirect;
};

static int walk_indirect(struct virtqueue *q, struct walk *w, const struct virtq_desc *d)
{
    if (!q->indirect)
        return virtqueue_break(q, "an indirect descriptor without the feature");
    if (w->indirect)
        return virtqueue_break(q, "a nested indirect descriptor");
    if (d->flags & VIRTQ_DESC_NEXT)
        return virtqueue_break(q, "an indirect descriptor with NEXT");
    if (!d->len || d->len % DESC_SIZE)
        return virtqueue_break(q, "an indirect table of a bad length");
    if (d->len / DESC_SIZE > INDIRECT_MAX)
        return virtqueue_break(q, "an indirect table with too many entries");
    w->table = mem_at(q->mem, d->addr, d->len);
    if (!w->table)
        return virtqueue_break(q, "an indirect table is not in RAM");
    w->limit = w->left = d->len / DESC_SIZE;
    w->next = 0;
    w->indirect = true;
    return 0;
}

static int chain_add(struct virtqueue *q, struct virtq_chain *c, const struct virtq_desc *d)
{
    bool write = d->flags & VIRTQ_DESC_WRITE;
    uint32_t *len = write ? &c->in_len : &c->out_len;
    uint32_t total;
    void *p;

    if (c->out + c->in == VIRTQ_SEGS)
        return virtqueue_break(q, "a chain with too many segments");
    if (!d->len)
        return virtqueue_break(q, "a buffer of length 0");
    if (!write && c->in)
        return virtqueue_break(q, "a readable buffer after a writable one");
    if (__builtin_add_overflow(c->in_len + c->out_len, d->len, &total))
        return virtqueue_break(q, "a chain of more than 2^32 bytes");
    p = mem_at(q->mem, d->addr, d->len);
    if (!p)
        return virtqueue_break(q, "a buffer is not in RAM");
    c->iov[c->out + c->in] = (struct iovec){ p, d->len };
    *len += d->len;
    if (write)
        c->in++;
    else
        c->out++;
    return 0;
}

int virtqueue_map(struct virtqueue *q, uint16_t head, struct virtq_chain *c)
{
    struct walk w = { .table = q->desc, .limit = q->size, .left = q->size, .next = head };
    struct virtq_desc d;
    int r;

    c->out = c->in = 0;
    c->out_len = c->in_len = 0;
    do {
        if (w.next >= w.limit)
            return virtqueue_break(q, "a next index is past its table");
        if (!w.left--)
            return virtqueue_break(q, "a chain loops");
        d = desc_copy(w.table, w.next);
        if (d.flags & VIRTQ_DESC_INDIRECT) {
            r = walk_indirect(q, &w, &d);
            d.flags = VIRTQ_DESC_NEXT;          /* on to entry 0 of its table */
        } else {
            r = chain_add(q, c, &d);
            w.next = d.next;
        }
        if (r < 0)
            return r;
    } while (d.flags & VIRTQ_DESC_NEXT);
    return 0;
}

/* ---- giving back ------------------------------------------------------------------ */

void virtqueue_push(struct virtqueue *q, uint16_t head, uint32_t written)
{
    struct virtq_used_elem e = { head, written };

    q->busy[head / 64] &= ~(1ull << head % 64);
    if (q->broken)
        return;
    memcpy((uint8_t *)q->used + 4 + 8u * (q->used_next & (q->size - 1)), &e, sizeof(e));
    q->used_next++;
}

bool virtqueue_flush(struct virtqueue *q)
{
    uint16_t old = q->used_published, now = q->used_next, event;

    if (old == now || q->broken)
        return false;
    store16(&q->used[1], now);
    q->used_published = now;
    /* The index must be seen before we look whether anybody waits for it. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!q->event_idx)
        return !(load16(&q->avail[0]) & AVAIL_NO_INTERRUPT);
    event = load16(&q->avail[2 + q->size]);
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

/* ---- kicks --------------------------------------------------------------------------- */

void virtqueue_suppress(struct virtqueue *q)
{
    /* With EVENT_IDX the stale avail_event suppresses all by itself. */
    if (!q->event_idx && !q->broken)
        store16(&q->used[0], USED_NO_NOTIFY);
}

bool virtqueue_wait(struct virtqueue *q)
{
    if (q->broken)
        return false;
    if (q->event_idx)
        store16(&q->used[2 + 4u * q->size], q->last_avail);
    else
        store16(&q->used[0], 0);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return load16(&q->avail[1]) != q->last_avail;
}
