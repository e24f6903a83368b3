/*
 * chainmap.c - the merged map of a backing chain: granule -> (node, offset),
 * built a page at a time when first touched, so that a read below an overlay
 * costs the same at depth 1 and at depth 100.
 *
 * Invariants
 *  - A map belongs to a backing node; everything from there down is open
 *    read-only, so entries never change once filled.
 *  - An entry that one (node, offset) cannot express (mixed content, compressed
 *    clusters) is SLOW: it names the layer that decides and is read through it,
 *    or is read extent by extent when the granule is mixed.
 *  - Memory is bounded by MAP_BYTES_MAX; the oldest page goes first.
 */
#include "block/internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAP_PAGE_SHIFT 10
#define MAP_PAGE (1u << MAP_PAGE_SHIFT)         /* entries a page */
#define MAP_BYTES_MAX (64u << 20)
#define MAP_PAGES_MAX (1u << 22)                /* beyond: read layer by layer */
#define MAP_GRANULE_MIN 12u
#define MAP_GRANULE_MAX 16u

/* entry: offset>>9 << 14 | node index << 2 | kind */
enum { MAP_UNKNOWN, MAP_HOST, MAP_ZERO, MAP_SLOW };
#define ENTRY_NODE_BITS 12
#define ENTRY_MIXED ((1u << ENTRY_NODE_BITS) - 1)

struct map_page {
    uint64_t entry[MAP_PAGE];
};

struct blk_chainmap {
    struct blk_node *top;
    unsigned shift;
    uint64_t npages;
    struct map_page **pages;
    uint64_t in_memory, max_in_memory, clock;
    struct co_mutex fill_lock;
    unsigned nnodes;
    struct blk_node *nodes[2 * BLK_CHAIN_MAX];
};

/* 0: a filter is in the chain, which wants to see the reads. */
static unsigned map_shift(const struct blk_node *top)
{
    unsigned shift = MAP_GRANULE_MAX;
    for (const struct blk_node *n = top; n; n = n->backing) {
        if (n->drv->filter) {
            return 0;
        }
        uint32_t size = n->mapping_size ? n->mapping_size : n->cluster_size;
        if (size) {
            unsigned bits = (unsigned)__builtin_ctz(size);
            shift = BLK_MIN(shift, BLK_MAX(bits, MAP_GRANULE_MIN));
        }
    }
    return shift;
}

static struct blk_chainmap *map_new(struct blk_node *top)
{
    unsigned shift = map_shift(top);
    uint64_t npages = (top->size >> (shift + MAP_PAGE_SHIFT)) + 1;
    struct blk_chainmap *m = shift && npages <= MAP_PAGES_MAX ? calloc(1, sizeof(*m)) : NULL;
    if (!m) {
        return NULL;
    }
    m->top = top;
    m->shift = shift;
    m->npages = npages;
    m->max_in_memory = BLK_MAX(MAP_BYTES_MAX / sizeof(struct map_page), 4u);
    m->pages = calloc(m->npages, sizeof(*m->pages));
    if (!m->pages) {
        free(m);
        return NULL;
    }
    top->loop->count.allocations += 2;
    return m;
}

void blk_chainmap_free(struct blk_chainmap *m)
{
    if (!m) {
        return;
    }
    for (uint64_t i = 0; i < m->npages; i++) {
        free(m->pages[i]);
    }
    free(m->pages);
    free(m);
}

static unsigned map_node_index(struct blk_chainmap *m, struct blk_node *n)
{
    for (unsigned i = m->nnodes; i-- > 0;) {
        if (m->nodes[i] == n) {
            return i;
        }
    }
    if (m->nnodes == BLK_ARRAY_SIZE(m->nodes)) {
        return ENTRY_MIXED;
    }
    m->nodes[m->nnodes] = n;
    return m->nnodes++;
}

static uint64_t entry_make(struct blk_chainmap *m, const struct blk_status *st, uint64_t skip)
{
    if (st->flags & BLK_ST_ZERO) {
        return MAP_ZERO;
    }
    bool host = (st->flags & (BLK_ST_OFFSET | BLK_ST_COMPRESSED)) == BLK_ST_OFFSET;
    unsigned node = map_node_index(m, host ? st->host : st->layer);
    uint64_t off = host ? st->host_offset + skip : 0;
    if (node == ENTRY_MIXED || off & 511) {
        return (uint64_t)ENTRY_MIXED << 2 | MAP_SLOW;
    }
    return off << 5 | (uint64_t)node << 2 | (host ? MAP_HOST : MAP_SLOW);
}

static void page_evict(struct blk_chainmap *m)
{
    while (m->in_memory >= m->max_in_memory) {
        uint64_t i = m->clock++ % m->npages;
        if (m->pages[i]) {
            free(m->pages[i]);
            m->pages[i] = NULL;
            m->in_memory--;
        }
    }
}

struct page_range {
    uint64_t start, end;                        /* guest bytes; start on a granule */
    struct map_page *page;
};

/* What one status of a layer says, for whole granules from off (on a granule) to
 * stop; one it covers in part only is MIXED.  Returns where to go on. */
static uint64_t fill_run(struct blk_chainmap *m, const struct page_range *r, uint64_t off,
                         const struct blk_status *st)
{
    uint64_t gran = 1ull << m->shift, stop = off + st->length;
    for (uint64_t g = off; g < stop; g += gran) {
        uint64_t *entry = &r->page->entry[(g - r->start) >> m->shift];
        if (BLK_MIN(g + gran, r->end) > stop) {
            *entry = (uint64_t)ENTRY_MIXED << 2 | MAP_SLOW;
        } else if (st->flags & BLK_ST_ALLOCATED) {
            *entry = entry_make(m, st, g - off);
        }
    }
    return blk_align_up(stop, gran);
}

/* What layer decides of the granules no layer above it did. */
static int fill_from_layer(struct blk_chainmap *m, struct blk_node *layer,
                           const struct page_range *r)
{
    uint64_t gran = 1ull << m->shift;
    for (uint64_t off = r->start; off < r->end;) {
        const uint64_t *entry = &r->page->entry[(off - r->start) >> m->shift];
        uint64_t stop = off;
        for (; stop < r->end && !*entry; entry++) {
            stop += gran;
        }
        if (stop == off) {
            off += gran;
            continue;
        }
        stop = BLK_MIN(stop, r->end);
        /* Past a layer's end an overlay reads zeros, whatever deeper layers hold. */
        struct blk_status st = { .flags = BLK_ST_ZERO | BLK_ST_ALLOCATED, .length = stop - off };
        if (off < layer->size) {
            int err = blk_status_layer(layer, off, BLK_MIN(stop, layer->size) - off, &st);
            if (err) {
                return err;
            }
        }
        off = fill_run(m, r, off, &st);
    }
    return 0;
}

/* Fill page pi, layer by layer: each is walked once, over what is still open. */
static int page_fill(struct blk_chainmap *m, uint64_t pi)
{
    uint64_t bytes = 1ull << (m->shift + MAP_PAGE_SHIFT);
    struct page_range r = { .start = pi * bytes, .page = calloc(1, sizeof(*r.page)) };
    int err = r.page ? 0 : -ENOMEM;

    r.end = BLK_MIN(r.start + bytes, m->top->size);
    for (struct blk_node *n = m->top; !err && n; n = n->backing) {
        err = fill_from_layer(m, n, &r);
    }
    if (err) {
        free(r.page);
        return err;
    }
    for (unsigned i = 0; i < MAP_PAGE; i++) {
        if (r.page->entry[i] == MAP_UNKNOWN) {
            r.page->entry[i] = MAP_ZERO;        /* no layer has it */
        }
    }
    page_evict(m);
    m->pages[pi] = r.page;
    m->in_memory++;
    m->top->loop->count.allocations++;
    return 0;
}

/* The run at off: same kind, contiguous. Page must be there. Returns its kind. */
static int map_run(struct blk_chainmap *m, uint64_t off, uint64_t len, struct blk_node **node,
                   uint64_t *host, uint64_t *run)
{
    uint64_t gran = 1ull << m->shift, g = off >> m->shift;
    const struct map_page *p = m->pages[g >> MAP_PAGE_SHIFT];
    uint64_t first = p->entry[g & (MAP_PAGE - 1)], e = first;
    uint64_t got = gran - (off & (gran - 1));

    for (g++; got < len; g++, got += gran) {
        p = m->pages[g >> MAP_PAGE_SHIFT];
        if (!p) {
            break;
        }
        uint64_t next = p->entry[g & (MAP_PAGE - 1)];
        uint64_t want = (first & 3) == MAP_HOST ? e + (gran << 5) : first;
        if (next != want) {
            break;
        }
        e = next;
    }
    unsigned idx = (unsigned)(first >> 2) & ENTRY_MIXED;
    *node = idx == ENTRY_MIXED ? NULL : m->nodes[idx];
    *host = (first >> 14 << 9) + (off & (gran - 1));
    *run = BLK_MIN(got, len);
    return (int)(first & 3);
}

/* ---- reads ------------------------------------------------------------------------- */

static int map_ensure(struct blk_chainmap *m, uint64_t off)
{
    uint64_t pi = off >> (m->shift + MAP_PAGE_SHIFT);
    int err = 0;
    if (m->pages[pi]) {
        return 0;
    }
    co_lock(&m->fill_lock);
    if (!m->pages[pi]) {
        err = page_fill(m, pi);
    }
    co_unlock(&m->fill_lock);
    return err;
}

/* Mixed granule: ask layer by layer. */
static int read_by_status(struct blk_node *top, uint64_t off, const struct iovec *iov, int cnt,
                          uint64_t pos, uint64_t len)
{
    while (len) {
        struct blk_status st;
        int err = co_status_above(top, NULL, off, len, &st);
        if (err) {
            return err;
        }
        uint64_t now = BLK_MIN(st.length, len);
        if (st.flags & BLK_ST_ZERO) {
            blk_iov_zero(iov, cnt, pos, now);
        } else {
            struct iovec *part = malloc(sizeof(*part) * (size_t)(cnt + 1));
            if (!part) {
                return -ENOMEM;
            }
            int n = blk_iov_slice(iov, cnt, pos, now, part, cnt + 1);
            err = co_readv(st.layer, off, part, n, now);
            free(part);
            if (err) {
                return err;
            }
        }
        off += now;
        pos += now;
        len -= now;
    }
    return 0;
}

static int map_read(struct blk_chainmap *m, uint64_t off, const struct iovec *iov, int cnt,
                    uint64_t len)
{
    struct blk_parts *w = blk_parts_new(iov, cnt);
    uint64_t pos = 0;
    int err = w ? 0 : -ENOMEM;

    while (!err && pos < len) {
        struct blk_node *node;
        uint64_t host, run;
        if ((err = blk_parts_room(w)) || (err = map_ensure(m, off + pos))) {
            break;
        }
        int kind = map_run(m, off + pos, len - pos, &node, &host, &run);
        if (kind == MAP_ZERO) {
            blk_iov_zero(iov, cnt, pos, run);
        } else if (kind == MAP_HOST) {
            err = blk_parts_add(w, node, BLK_READ, host, pos, run);
        } else if (node) {
            err = blk_parts_add(w, node, BLK_READ, off + pos, pos, run);
        } else {
            err = read_by_status(m->top, off + pos, iov, cnt, pos, run);
        }
        pos += run;
    }
    int end = blk_parts_end(w);
    return err ? err : end;
}

/* The map of n's backing chain when it is worth having; NULL: read the backing
 * node itself (one layer only, or writable, or no memory). */
static struct blk_chainmap *backing_map(struct blk_node *n)
{
    struct blk_node *b = n->backing;
    if (!b->backing || !b->read_only || b->below_writable || b->oflags & BLK_O_CHECK) {
        return NULL;
    }
    if (!b->chainmap) {
        b->chainmap = map_new(b);
    }
    return b->chainmap;
}

int co_read_backing(struct blk_node *n, uint64_t off, const struct iovec *iov, int cnt,
                    uint64_t len)
{
    struct blk_node *b = n->backing;
    uint64_t have = b && off < b->size ? BLK_MIN(len, b->size - off) : 0;

    if (have < len) {
        blk_iov_zero(iov, cnt, have, len - have);
    }
    if (!have) {
        return 0;
    }
    struct blk_chainmap *m = backing_map(n);
    return m ? map_read(m, off, iov, cnt, have) : co_readv(b, off, iov, cnt, len);
}

static int forward_slow(struct blk_req *req)
{
    return co_read_backing(req->node, req->offset, req->iov, req->iovcnt, req->length);
}

void blk_forward_backing(struct blk_req *req)
{
    struct blk_node *n = req->node, *b = n->backing;
    if (!b || req->offset >= b->size) {
        blk_iov_zero(req->iov, req->iovcnt, 0, req->length);
        blk_complete(req, 0);
        return;
    }
    struct blk_chainmap *m = backing_map(n);
    if (!m) {
        blk_forward(req, b, req->offset, NULL);
        return;
    }
    struct blk_node *node;
    uint64_t host, run;
    if (req->length > b->size - req->offset ||
        !m->pages[req->offset >> (m->shift + MAP_PAGE_SHIFT)]) {
        blk_req_fiber(req, forward_slow);
        return;
    }
    int kind = map_run(m, req->offset, req->length, &node, &host, &run);
    if (run < req->length || (kind == MAP_SLOW && !node)) {
        blk_req_fiber(req, forward_slow);
    } else if (kind == MAP_ZERO) {
        blk_iov_zero(req->iov, req->iovcnt, 0, req->length);
        blk_complete(req, 0);
    } else {
        blk_forward(req, node, kind == MAP_HOST ? host : req->offset, NULL);
    }
}
