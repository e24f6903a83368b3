/*
 * check_ahead.c - the window of tables in flight.
 *
 * A ring: slots [first, first + used) in the order they were added.  A slot goes
 * READING -> (DIGESTING, on a worker) -> READY; buffers are swapped, not copied, when a
 * table is taken.
 */
#include "formats/qcow2/check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum slot_state { SLOT_READY, SLOT_READING, SLOT_DIGESTING };

struct slot {
    struct blk_req req;
    struct iovec iov;
    struct blk_work work;
    struct check *k;
    uint8_t *buf;
    struct check_digest digest;
    uint64_t off;
    enum slot_state state;
    bool l2, stale;
};

struct check_ahead {
    unsigned slots, first, used;
    struct co *waiter;                  /* for any slot to become ready */
    struct slot slot[];
};

static struct slot *slot_at(struct check_ahead *a, unsigned i)
{
    return &a->slot[(a->first + i) % a->slots];
}

static uint64_t digest_bytes(const struct check *k)
{
    return k->g.cluster_size / (k->g.extl2 ? 16 : 8) * sizeof(struct check_run);
}

/* ---- memory ------------------------------------------------------------------------- */

int ck_ahead_init(struct check *k)
{
    uint64_t n = CHECK_AHEAD_BYTES / (k->g.cluster_size + digest_bytes(k));
    n = BLK_MAX(2, BLK_MIN(n, CHECK_AHEAD_MAX));
    struct check_ahead *a = k->ahead = calloc(1, sizeof(*a) + n * sizeof(a->slot[0]));
    k->digest.run = malloc(digest_bytes(k));
    if (!a || !k->digest.run)
        return -ENOMEM;
    for (; a->slots < n; a->slots++) {
        struct slot *s = &a->slot[a->slots];
        s->k = k;
        s->buf = blk_buf_alloc(k->g.cluster_size);
        s->digest.run = malloc(digest_bytes(k));
        if (!s->buf || !s->digest.run) {
            a->slots++;
            return -ENOMEM;
        }
    }
    return 0;
}

static void slot_wait(struct check_ahead *a, const struct slot *s)
{
    while (s->state != SLOT_READY) {
        a->waiter = co_self();
        co_yield();
    }
}

void ck_ahead_free(struct check *k)
{
    struct check_ahead *a = k->ahead;
    free(k->digest.run);
    for (unsigned i = 0; a && i < a->slots; i++) {
        slot_wait(a, &a->slot[i]);
        blk_buf_free(a->slot[i].buf);
        free(a->slot[i].digest.run);
    }
    free(a);
}

/* ---- reading --------------------------------------------------------------------------- */

static void slot_ready(struct slot *s)
{
    struct check_ahead *a = s->k->ahead;
    struct co *waiter = a->waiter;
    s->state = SLOT_READY;
    a->waiter = NULL;
    if (waiter)
        co_wake(waiter);
}

static void digest_work(struct blk_work *w)
{
    struct slot *s = blk_container_of(w, struct slot, work);
    ck_digest(s->k, s->buf, &s->digest);
}

static void digest_done(struct blk_work *w)
{
    slot_ready(blk_container_of(w, struct slot, work));
}

static void read_done(struct blk_req *req)
{
    struct slot *s = req->arg;
    if (!s->l2 || req->result) {
        slot_ready(s);
    } else if (s->k->g.cluster_size < CHECK_POOL_TABLE) {
        digest_work(&s->work);
        slot_ready(s);
    } else {
        s->state = SLOT_DIGESTING;
        s->work = (struct blk_work){ .fn = digest_work, .done = digest_done,
                                     .loop = blk_node_loop(s->k->file) };
        blk_pool_submit(blk_pool_cpu(), &s->work);
    }
}

bool ck_ahead_room(const struct check *k)
{
    return k->ahead->used < k->ahead->slots;
}

/* Position in the ring, or used. */
static unsigned ahead_find(struct check_ahead *a, uint64_t off, bool l2)
{
    unsigned i = 0;
    while (i < a->used && (slot_at(a, i)->off != off || slot_at(a, i)->l2 != l2 ||
                           slot_at(a, i)->stale))
        i++;
    return i;
}

void ck_ahead_add(struct check *k, uint64_t off, bool l2)
{
    struct check_ahead *a = k->ahead;
    if (ck_is_hole(k, off, k->g.cluster_size) || ahead_find(a, off, l2) < a->used)
        return;
    struct slot *s = slot_at(a, a->used);
    if (s->state != SLOT_READY)         /* dropped a moment ago, and still on its way */
        return;
    a->used++;
    s->off = off;
    s->l2 = l2;
    s->stale = false;
    s->state = SLOT_READING;
    s->iov = (struct iovec){ s->buf, k->g.cluster_size };
    s->req = (struct blk_req){ .op = BLK_READ, .offset = off, .length = k->g.cluster_size,
                               .iov = &s->iov, .iovcnt = 1, .done = read_done, .arg = s };
    blk_submit(k->file, &s->req);
}

/* The first slot's table becomes the checker's; its buffers take the slot's place. */
static int take_first(struct check *k)
{
    struct check_ahead *a = k->ahead;
    struct slot *s = slot_at(a, 0);
    slot_wait(a, s);
    uint8_t *buf = k->table;
    struct check_digest digest = k->digest;
    k->table = s->buf;
    k->digest = s->digest;
    s->buf = buf;
    s->digest = digest;
    a->first = (a->first + 1) % a->slots;
    a->used--;
    return s->req.result;
}

int ck_take(struct check *k, uint64_t off, bool l2)
{
    struct check_ahead *a = k->ahead;
    unsigned i = ahead_find(a, off, l2);
    if (i == a->used) {
        int r = ck_read(k, off, k->table, k->g.cluster_size);
        if (!r && l2)
            ck_digest(k, k->table, &k->digest);
        return r;
    }
    a->first = (a->first + i) % a->slots;
    a->used -= i;
    int r = take_first(k);
    if (!r)
        ck_learn_hole(k, off, k->table, k->g.cluster_size);
    return r;
}

void ck_ahead_forget(struct check *k, uint64_t off, uint64_t len)
{
    struct check_ahead *a = k->ahead;
    for (unsigned i = 0; a && i < a->used; i++) {
        struct slot *s = slot_at(a, i);
        s->stale |= s->off < off + len && off < s->off + k->g.cluster_size;
    }
}

/* ---- digests ---------------------------------------------------------------------------- */

static void digest_add(struct check_digest *d, uint64_t first, uint64_t n, bool copied,
                       bool compressed)
{
    struct check_run *last = d->nruns ? &d->run[d->nruns - 1] : NULL;
    if (last && !compressed && !last->compressed && last->copied == copied &&
        last->first + last->n == first)
        last->n += (uint32_t)n;
    else
        d->run[d->nruns++] = (struct check_run){ first, (uint32_t)n, copied, compressed };
}

/* A compressed cluster; false: odd. */
static bool digest_compressed(const struct check *k, struct check_digest *d, uint64_t entry,
                              uint64_t bitmap)
{
    uint64_t off, len;
    if (entry & QCOW2_COPIED || k->g.data_file || bitmap)
        return false;
    ck_compressed_place(k, entry, &off, &len);
    if (off > k->file_len || len > k->file_len - off)
        return false;
    uint64_t first = off >> k->g.cluster_bits, last = (off + len - 1) >> k->g.cluster_bits;
    digest_add(d, first, last - first + 1, false, true);
    d->allocated++;
    d->fragmented++;
    d->compressed++;
    return true;
}

static bool digest_standard(const struct check *k, struct check_digest *d, uint64_t entry,
                            uint64_t *next)
{
    uint64_t off = entry & QCOW2_OFFSET_MASK;
    if (off & (k->g.cluster_size - 1))
        return false;
    d->allocated++;
    d->fragmented += *next && off != *next;
    *next = off + k->g.cluster_size;
    if (k->g.data_file)
        return true;
    if (off > k->file_len || k->g.cluster_size > k->file_len - off)
        return false;
    d->bare |= !(entry & QCOW2_COPIED);
    digest_add(d, off >> k->g.cluster_bits, 1, entry & QCOW2_COPIED, false);
    return true;
}

static bool digest_entry(const struct check *k, struct check_digest *d, uint64_t entry,
                         uint64_t bitmap, uint64_t *next)
{
    enum l2_type type = ck_l2_type(k, entry);
    if (type == L2_COMPRESSED)
        return digest_compressed(k, d, entry, bitmap);
    if (entry & QCOW2_L2_RESERVED || bitmap >> 32 & bitmap & UINT32_MAX)
        return false;
    if (type == L2_NORMAL || type == L2_ZERO_ALLOC)
        return digest_standard(k, d, entry, next);
    return type != L2_UNALLOCATED || !(uint32_t)bitmap;
}

void ck_digest(const struct check *k, const uint8_t *table, struct check_digest *d)
{
    unsigned width = k->g.extl2 ? 16 : 8;
    uint64_t next = 0;
    *d = (struct check_digest){ .run = d->run };
    for (uint64_t at = 0; at < k->g.cluster_size && !d->odd; at += width) {
        uint64_t entry = be64(table + at), bitmap = width == 16 ? be64(table + at + 8) : 0;
        if (entry | bitmap)
            d->odd = !digest_entry(k, d, entry, bitmap, &next);
    }
}
