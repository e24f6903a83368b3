/*
 * check_counts.c - the sparse counters of the checker.
 *
 * The tree has 64 slots a node; leaves hold pages inline.  Its height grows when
 * a higher counter is touched.  Invariant: a page's set says how many of its
 * one-bit counters are one, so that a full page can drop its bits.
 */
#include "formats/qcow2/check_counts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_BITS  12u
#define NODE_BITS  6u
#define NODE_SLOTS (1u << NODE_BITS)

enum page_kind { PAGE_NONE, PAGE_BITMAP, PAGE_ONES, PAGE_BYTES, PAGE_WORDS };

struct counts_page {
    void *data;
    uint16_t set;
    uint8_t kind;
};

struct leaf { struct counts_page page[NODE_SLOTS]; };
struct inner { void *slot[NODE_SLOTS]; };

static const size_t kind_bytes[] = {
    [PAGE_NONE] = 0, [PAGE_BITMAP] = COUNTS_PAGE / 8, [PAGE_ONES] = 0,
    [PAGE_BYTES] = COUNTS_PAGE, [PAGE_WORDS] = COUNTS_PAGE * 8,
};

static void *counts_alloc(struct counts *c, size_t size)
{
    if (size > c->budget->max - c->budget->used)
        return NULL;
    void *p = calloc(1, size);
    if (p)
        c->budget->used += size;
    return p;
}

static void counts_release(struct counts *c, void *p, size_t size)
{
    if (p)
        c->budget->used -= size;
    free(p);
}

/* ---- the tree ------------------------------------------------------------------- */

/* Page numbers below this fit a tree of that height. */
static bool tree_covers(unsigned height, uint64_t no)
{
    return height * NODE_BITS >= 64 || !(no >> (height * NODE_BITS));
}

static int tree_grow(struct counts *c, uint64_t no)
{
    if (!c->height) {
        c->root = counts_alloc(c, sizeof(struct leaf));
        if (!c->root)
            return -ENOMEM;
        c->height = 1;
    }
    while (!tree_covers(c->height, no)) {
        struct inner *top = counts_alloc(c, sizeof(*top));
        if (!top)
            return -ENOMEM;
        top->slot[0] = c->root;
        c->root = top;
        c->height++;
    }
    return 0;
}

static unsigned tree_slot(uint64_t no, unsigned level)
{
    return (unsigned)(no >> (level * NODE_BITS)) & (NODE_SLOTS - 1);
}

/* The page, or NULL if it is not there. */
static struct counts_page *page_find(struct counts *c, uint64_t no)
{
    if (c->last_no == no + 1)
        return c->last;
    if (!tree_covers(c->height, no) || !c->height)
        return NULL;
    void *node = c->root;
    for (unsigned level = c->height - 1; level && node; level--)
        node = ((struct inner *)node)->slot[tree_slot(no, level)];
    if (!node)
        return NULL;
    struct counts_page *p = &((struct leaf *)node)->page[tree_slot(no, 0)];
    if (p->kind == PAGE_NONE)
        return NULL;
    c->last_no = no + 1;
    c->last = p;
    return p;
}

static struct counts_page *page_make(struct counts *c, uint64_t no)
{
    struct counts_page *p = page_find(c, no);
    if (p || tree_grow(c, no))
        return p;
    void **at = &c->root;
    for (unsigned level = c->height - 1; level; level--) {
        at = &((struct inner *)*at)->slot[tree_slot(no, level)];
        if (!*at)
            *at = counts_alloc(c, level > 1 ? sizeof(struct inner) : sizeof(struct leaf));
        if (!*at)
            return NULL;
    }
    p = &((struct leaf *)*at)->page[tree_slot(no, 0)];
    p->data = counts_alloc(c, kind_bytes[PAGE_BITMAP]);
    if (!p->data)
        return NULL;
    p->kind = PAGE_BITMAP;
    c->last_no = no + 1;
    c->last = p;
    return p;
}

static void tree_free(struct counts *c, void *node, unsigned level)
{
    if (!node)
        return;
    for (unsigned i = 0; i < NODE_SLOTS; i++) {
        if (level) {
            tree_free(c, ((struct inner *)node)->slot[i], level - 1);
        } else {
            struct counts_page *p = &((struct leaf *)node)->page[i];
            counts_release(c, p->data, kind_bytes[p->kind]);
        }
    }
    counts_release(c, node, level ? sizeof(struct inner) : sizeof(struct leaf));
}

void counts_init(struct counts *c, struct counts_budget *budget)
{
    *c = (struct counts){ .budget = budget };
}

void counts_free(struct counts *c)
{
    if (c->height)
        tree_free(c, c->root, c->height - 1);
    counts_init(c, c->budget);
}

/* ---- pages ---------------------------------------------------------------------------- */

static uint64_t page_get(const struct counts_page *p, unsigned i)
{
    switch (p->kind) {
    case PAGE_BITMAP:
        return ((const uint8_t *)p->data)[i / 8] >> (i % 8) & 1;
    case PAGE_ONES:
        return 1;
    case PAGE_BYTES:
        return ((const uint8_t *)p->data)[i];
    default:
        return ((const uint64_t *)p->data)[i];
    }
}

/* Rewrite the page in a wider kind. */
static int page_widen(struct counts *c, struct counts_page *p, enum page_kind kind)
{
    void *data = counts_alloc(c, kind_bytes[kind]);
    if (!data)
        return -ENOMEM;
    for (unsigned i = 0; i < COUNTS_PAGE; i++) {
        uint64_t v = page_get(p, i);
        if (kind == PAGE_BITMAP)
            ((uint8_t *)data)[i / 8] |= (uint8_t)(v << (i % 8));
        else if (kind == PAGE_BYTES)
            ((uint8_t *)data)[i] = (uint8_t)v;
        else
            ((uint64_t *)data)[i] = v;
    }
    counts_release(c, p->data, kind_bytes[p->kind]);
    p->data = data;
    p->kind = (uint8_t)kind;
    return 0;
}

static void page_put_bit(struct counts *c, struct counts_page *p, unsigned i, uint64_t value)
{
    uint8_t *byte = (uint8_t *)p->data + i / 8, bit = (uint8_t)(1u << (i % 8));
    if (value && !(*byte & bit)) {
        *byte |= bit;
        p->set++;
    } else if (!value && (*byte & bit)) {
        *byte &= (uint8_t)~bit;
        p->set--;
    }
    if (p->set == COUNTS_PAGE) {
        counts_release(c, p->data, kind_bytes[PAGE_BITMAP]);
        p->data = NULL;
        p->kind = PAGE_ONES;
    }
}

static int page_put(struct counts *c, struct counts_page *p, unsigned i, uint64_t value)
{
    enum page_kind need = value > 255 ? PAGE_WORDS : value > 1 ? PAGE_BYTES : PAGE_BITMAP;
    if (p->kind == PAGE_ONES && value == 1)
        return 0;
    if (need > p->kind || p->kind == PAGE_ONES) {
        int r = page_widen(c, p, need);
        if (r)
            return r;
    }
    if (p->kind == PAGE_BITMAP)
        page_put_bit(c, p, i, value);
    else if (p->kind == PAGE_BYTES)
        ((uint8_t *)p->data)[i] = (uint8_t)value;
    else
        ((uint64_t *)p->data)[i] = value;
    return 0;
}

/* ---- counters ------------------------------------------------------------------------- */

uint64_t counts_get(struct counts *c, uint64_t k)
{
    const struct counts_page *p = page_find(c, k >> PAGE_BITS);
    return p ? page_get(p, (unsigned)k & (COUNTS_PAGE - 1)) : 0;
}

int counts_set(struct counts *c, uint64_t k, uint64_t value)
{
    struct counts_page *p = value ? page_make(c, k >> PAGE_BITS) : page_find(c, k >> PAGE_BITS);
    if (!p)
        return value ? -ENOMEM : 0;
    return page_put(c, p, (unsigned)k & (COUNTS_PAGE - 1), value);
}

int counts_add(struct counts *c, uint64_t k, uint64_t n, uint64_t *now)
{
    struct counts_page *p = page_make(c, k >> PAGE_BITS);
    if (!p)
        return -ENOMEM;
    unsigned i = (unsigned)k & (COUNTS_PAGE - 1);
    uint64_t value = page_get(p, i);
    value = n > UINT64_MAX - value ? UINT64_MAX : value + n;
    if (now)
        *now = value;
    return page_put(c, p, i, value);
}

/* Bits [i, i+n) of a page of bits: set those that are clear, until one is not. */
static unsigned page_set_bits(struct counts *c, struct counts_page *p, unsigned i, unsigned n)
{
    uint8_t *bits = p->data;
    unsigned at = i, end = i + n;
    while (at < end) {
        bool whole = !(at % 8) && end - at >= 8 && !bits[at / 8];
        if (!whole && bits[at / 8] >> (at % 8) & 1)
            break;
        bits[at / 8] |= (uint8_t)(whole ? 0xff : 1u << (at % 8));
        at += whole ? 8 : 1;
    }
    p->set = (uint16_t)(p->set + (at - i));
    if (p->set == COUNTS_PAGE) {
        counts_release(c, p->data, kind_bytes[PAGE_BITMAP]);
        p->data = NULL;
        p->kind = PAGE_ONES;
    }
    return at - i;
}

int counts_first(struct counts *c, uint64_t k, uint64_t n, uint64_t *done)
{
    struct counts_page *p = page_make(c, k >> PAGE_BITS);
    *done = 0;
    if (!p)
        return -ENOMEM;
    unsigned i = (unsigned)k & (COUNTS_PAGE - 1), room = COUNTS_PAGE - i;
    unsigned most = n < room ? (unsigned)n : room;
    if (p->kind == PAGE_BITMAP)
        *done = page_set_bits(c, p, i, most);
    else if (p->kind != PAGE_ONES && !page_get(p, i))
        *done = !page_put(c, p, i, 1);  /* as wide as it has to be already */
    return 0;
}

bool counts_all_one(struct counts *c, uint64_t k, uint64_t n)
{
    while (n) {
        const struct counts_page *p = page_find(c, k >> PAGE_BITS);
        unsigned i = (unsigned)k & (COUNTS_PAGE - 1), room = COUNTS_PAGE - i;
        unsigned end = i + (n < room ? (unsigned)n : room);
        if (!p)
            return false;
        k += end - i;
        n -= end - i;
        for (; p->kind != PAGE_ONES && i < end; i++)
            if (page_get(p, i) != 1)
                return false;
    }
    return true;
}

bool counts_read(struct counts *c, uint64_t k, size_t n, uint64_t *out)
{
    const struct counts_page *p = page_find(c, k >> PAGE_BITS);
    if (!p)
        return false;
    unsigned at = (unsigned)k & (COUNTS_PAGE - 1);
    for (unsigned i = 0; i < n; i++)
        out[i] = page_get(p, at + i);
    return true;
}

/* First existing page at or after *no below node, which covers pages from base. */
static bool tree_seek(const void *node, unsigned level, uint64_t base, uint64_t *no)
{
    unsigned shift = level * NODE_BITS;
    unsigned from = *no > base ? (unsigned)((*no - base) >> shift) : 0;
    for (unsigned i = from; node && i < NODE_SLOTS; i++) {
        uint64_t first = base + ((uint64_t)i << shift);
        if (!level) {
            if (((const struct leaf *)node)->page[i].kind != PAGE_NONE) {
                *no = first;
                return true;
            }
        } else if (tree_seek(((const struct inner *)node)->slot[i], level - 1, first, no)) {
            return true;
        }
    }
    return false;
}

bool counts_seek(struct counts *c, uint64_t *k)
{
    uint64_t no = *k >> PAGE_BITS;
    if (!c->height || !tree_covers(c->height, no))
        return false;
    if (!tree_seek(c->root, c->height - 1, 0, &no))
        return false;
    if (no << PAGE_BITS > *k)
        *k = no << PAGE_BITS;
    return true;
}
