/*
 * blockmap_table.c - the table of a block map: pages of it in memory, the order in
 * which changes reach the disk, and the places new blocks get.
 *
 * Invariants
 *  - A page with changes, or with pieces being written, is never dropped: reading it
 *    again would bring back old entries.
 *  - What a flush writes was copied before its first sync, so it holds only entries
 *    whose data that sync covers.
 */
#include "formats/blockmap_int.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STORE_WINDOW 32             /* pieces in flight */
#define PIECE_ALIGN 512u            /* of what is written of a page */

/* ---- life -------------------------------------------------------------------------------- */

static void set_caps(struct blockmap *m)
{
    struct blk_node *n = m->n;
    bool pow2 = !(m->block_size & (m->block_size - 1));
    n->cluster_size = m->block_size;
    if (pow2 && (m->zero_marks || m->frees)) {
        n->can_zero = n->can_discard = BLK_CAP_NATIVE;
        n->limits.zero_align = n->limits.discard_align = m->block_size;
    }
}

int blockmap_init(struct blockmap *m, struct blk_error *e)
{
    assert(m->block_size && m->block_size % 512 == 0 && (m->entry_size == 4 || m->entry_size == 8));
    m->per_page = m->per_page ? m->per_page : BM_PAGE_BYTES / m->entry_size;
    m->slots = m->slots ? m->slots : m->blocks;
    m->cache = m->cache ? m->cache : BM_CACHE;
    m->npages = m->slots / m->per_page + !!(m->slots % m->per_page);
    m->fresh_from = m->file->starts_as_zeros ? m->file->size : UINT64_MAX;
    if (m->npages > BM_PAGES_MAX) {
        return blk_err(e, EFBIG, "Block map too large (%llu entries)",
                       (unsigned long long)m->slots);
    }
    m->pages = calloc(m->npages ? m->npages : 1, sizeof(struct bm_page *));
    if (!m->pages) {
        return blk_err(e, ENOMEM, "Could not allocate block map");
    }
    set_caps(m);
    return 0;
}

void blockmap_free(struct blockmap *m)
{
    for (size_t i = 0; i < m->ncached; i++) {
        free(m->cached[i]);
    }
    free(m->cached);
    free(m->pages);
    free(m->free.at);
    free(m->freed.at);
}

/* ---- pages ----------------------------------------------------------------------------------- */

static uint64_t page_offset(const struct blockmap *m, uint64_t i)
{
    return m->ops->page_at ? m->ops->page_at(m, i)
                           : m->table_offset + i * m->per_page * m->entry_size;
}

static bool peek_page(struct blockmap *m, uint64_t i, struct bm_page **p)
{
    *p = m->pages[i];
    if (*p) {
        (*p)->used = true;
        return !(*p)->loading;
    }
    return !page_offset(m, i);
}

bool bm_page_peek(struct blockmap *m, uint64_t block, struct bm_page **p)
{
    return peek_page(m, bm_page_of(m, block), p);
}

static void drop_page(struct blockmap *m, size_t at)
{
    struct bm_page *p = m->cached[at];
    m->cached[at] = m->cached[--m->ncached];
    m->cached_bytes -= p->len;
    m->pages[p->index] = NULL;
    free(p);
}

/* The clock: what was not used since the hand came by goes. */
static void make_room(struct blockmap *m, size_t len)
{
    for (size_t n = 2 * m->ncached; n && m->ncached && m->cached_bytes + len > m->cache; n--) {
        m->hand = m->hand < m->ncached ? m->hand : 0;
        struct bm_page *p = m->cached[m->hand];
        if (p->loading || p->pins || p->dirty_end || p->used) {
            p->used = false;
            m->hand++;
        } else {
            drop_page(m, m->hand);
        }
    }
}

static struct bm_page *add_page(struct blockmap *m, uint64_t i)
{
    uint64_t entries = BLK_MIN((uint64_t)m->per_page, m->slots - i * m->per_page);
    uint32_t len = (uint32_t)(entries * m->entry_size);
    make_room(m, len);
    if (m->ncached == m->cached_room) {
        size_t room = m->cached_room ? m->cached_room * 2 : 16;
        struct bm_page **more = realloc(m->cached, room * sizeof(*more));
        if (!more) {
            return NULL;
        }
        m->cached = more;
        m->cached_room = room;
    }
    struct bm_page *p = malloc(sizeof(*p) + len);
    if (p) {
        *p = (struct bm_page){ .index = i, .len = len, .used = true, .loading = true,
                               .offset = page_offset(m, i) };
        m->pages[i] = m->cached[m->ncached++] = p;
        m->cached_bytes += len;
    }
    return p;
}

static int load_page(struct blockmap *m, uint64_t i)
{
    struct bm_page *p = add_page(m, i);
    if (!p) {
        return -ENOMEM;
    }
    int err = co_read(m->file, p->offset, p->raw, p->len);
    p->loading = false;
    if (err) {
        size_t at = 0;
        while (m->cached[at] != p) {
            at++;
        }
        drop_page(m, at);
    }
    while (co_wake_one(&m->load_q)) {
        m->resuming++;
    }
    return err;
}

static int get_page(struct blockmap *m, uint64_t i, struct bm_page **p)
{
    if (m->resuming) {              /* those that waited go first: their writes came first */
        co_pass();
    }
    while (!peek_page(m, i, p)) {
        int err = 0;
        if (*p) {
            co_wait_on(&m->load_q);
            m->resuming--;
        } else {
            err = load_page(m, i);
        }
        if (err) {
            return err;
        }
    }
    return 0;
}

int bm_page_get(struct blockmap *m, uint64_t block, struct bm_page **p)
{
    return get_page(m, bm_page_of(m, block), p);
}

int bm_page_make(struct blockmap *m, uint64_t block)
{
    uint64_t i = bm_page_of(m, block);
    int err = 0;
    if (page_offset(m, i)) {
        return 0;
    }
    co_lock(&m->make_lock);
    if (!page_offset(m, i)) {
        err = m->ops->page_make ? m->ops->page_make(m, i) : -EIO;
    }
    co_unlock(&m->make_lock);
    return err;
}

/* ---- entries ----------------------------------------------------------------------------------- */

static size_t raw_at(const struct blockmap *m, uint64_t slot)
{
    return (size_t)(slot % m->per_page) * m->entry_size;
}

uint64_t bm_value(const struct blockmap *m, const struct bm_page *p, uint64_t block)
{
    if (!p) {
        return BM_ABSENT;
    }
    uint64_t v = m->ops->decode(m, p->raw + raw_at(m, bm_slot(m, block)));
    if (bm_is_data(v) && (v < m->data_start || (m->data_end && (v > m->data_end ||
                          m->data_end - v < m->block_size)))) {
        return BM_BAD;
    }
    return v;
}

static void mark_dirty(struct blockmap *m, struct bm_page *p, size_t from, size_t end)
{
    if (!p->dirty_end) {
        p->next_dirty = m->dirty;
        m->dirty = p;
        m->dirty_bytes += p->len;
        p->dirty_from = (uint32_t)from;
    }
    p->dirty_from = BLK_MIN(p->dirty_from, (uint32_t)from);
    p->dirty_end = BLK_MAX(p->dirty_end, (uint32_t)end);
    m->settle_due = true;
}

void bm_page_set(struct blockmap *m, struct bm_page *p, uint64_t block, uint64_t v)
{
    size_t at = raw_at(m, bm_slot(m, block));
    m->ops->encode(m, v, p->raw + at);
    mark_dirty(m, p, at, at + m->entry_size);
}

int blockmap_get(struct blockmap *m, uint64_t block, uint64_t *v)
{
    struct bm_page *p;
    int err = bm_page_get(m, block, &p);
    if (!err) {
        *v = bm_value(m, p, block);
    }
    return err;
}

int blockmap_get_raw(struct blockmap *m, uint64_t slot, uint8_t *raw)
{
    struct bm_page *p;
    int err = get_page(m, slot / m->per_page, &p);
    if (!err && p) {
        memcpy(raw, p->raw + raw_at(m, slot), m->entry_size);
    } else if (!err) {
        memset(raw, 0, m->entry_size);
    }
    return err;
}

int blockmap_set(struct blockmap *m, uint64_t block, uint64_t v)
{
    struct bm_page *p;
    int err = bm_page_make(m, block);
    err = err ? err : bm_page_get(m, block, &p);
    if (!err) {
        bm_page_set(m, p, block, v);
    }
    return err;
}

/* ---- places --------------------------------------------------------------------------------------- */

static int places_add(struct bm_freed *f, uint64_t at)
{
    if (f->n == f->room) {
        size_t room = f->room ? f->room * 2 : 64;
        uint64_t *more = realloc(f->at, room * sizeof(*more));
        if (!more) {
            return -ENOMEM;
        }
        f->at = more;
        f->room = room;
    }
    f->at[f->n++] = at;
    return 0;
}

uint64_t bm_reserve(struct blockmap *m, uint64_t n, uint64_t *host, bool *fresh)
{
    uint64_t each = (uint64_t)m->lead + m->block_size;
    m->settle_due = true;
    if (m->free.n) {
        *host = m->free.at[--m->free.n] + m->lead;
        *fresh = false;
        return 1;
    }
    if (m->data_end) {
        n = m->next > m->data_end ? 0 : BLK_MIN(n, (m->data_end - m->next) / each);
    }
    *host = m->next + m->lead;
    *fresh = m->next >= m->fresh_from;
    m->next += n * each;
    return n;
}

void bm_unreserve(struct blockmap *m, uint64_t host, uint64_t n)
{
    uint64_t each = (uint64_t)m->lead + m->block_size, at = host - m->lead;
    if (m->fresh_from < at + n * each) {
        m->fresh_from = at + n * each;
    }
    if (at + n * each == m->next) {
        m->next = at;
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        (void)places_add(&m->free, at + i * each);  /* no memory: the place is lost */
    }
}

int bm_free_later(struct blockmap *m, uint64_t host)
{
    return places_add(&m->freed, host - m->lead);
}

int blockmap_add_free(struct blockmap *m, uint64_t host)
{
    return places_add(&m->free, host - m->lead);
}

/* ---- flush ------------------------------------------------------------------------------------------ */

struct batch {                      /* what one flush writes */
    struct bm_piece *piece;
    struct bm_page **page;
    size_t n;
    struct bm_freed freed;
};

bool bm_clean(const struct blockmap *m)
{
    return !m->dirty && !m->settle_due && !m->freed.n && !m->flush_lock.held;
}

/* Copy the changed part of p, cut at sectors of the file. */
static int take_page(struct batch *b, struct bm_page *p)
{
    uint64_t from = blk_align_down(p->offset + p->dirty_from, PIECE_ALIGN);
    uint64_t end = blk_align_up(p->offset + p->dirty_end, PIECE_ALIGN);
    from = BLK_MAX(from, p->offset);
    end = BLK_MIN(end, p->offset + p->len);
    void *copy = malloc((size_t)(end - from));
    if (!copy) {
        return -ENOMEM;
    }
    memcpy(copy, p->raw + (from - p->offset), (size_t)(end - from));
    b->piece[b->n] = (struct bm_piece){ from, copy, (size_t)(end - from), p->index };
    b->page[b->n++] = p;
    p->pins++;
    return 0;
}

static int take(struct blockmap *m, struct batch *b)
{
    size_t n = 0;
    int err = 0;
    for (struct bm_page *p = m->dirty; p; p = p->next_dirty) {
        n++;
    }
    b->piece = calloc(n ? n : 1, sizeof(*b->piece));
    b->page = calloc(n ? n : 1, sizeof(struct bm_page *));
    if (!b->piece || !b->page) {
        return -ENOMEM;
    }
    for (struct bm_page *p = m->dirty; !err && p; p = p->next_dirty) {
        err = take_page(b, p);
    }
    if (err) {
        return err;
    }
    while (m->dirty) {
        struct bm_page *p = m->dirty;
        m->dirty = p->next_dirty;
        p->dirty_end = 0;
        m->dirty_bytes -= p->len;
    }
    b->freed = m->freed;
    m->freed = (struct bm_freed){ 0 };
    return 0;
}

static int store_plain(struct blockmap *m, const struct bm_piece *p, size_t n)
{
    struct blk_req *req = calloc(STORE_WINDOW, sizeof(*req));
    struct iovec iov[STORE_WINDOW];
    int err = req ? 0 : -ENOMEM;
    for (size_t i = 0; !err && i < n; i += STORE_WINDOW) {
        struct co_batch b = { 0 };
        for (size_t k = 0; k < STORE_WINDOW && i + k < n; k++) {
            iov[k] = (struct iovec){ (void *)(uintptr_t)p[i + k].buf, p[i + k].len };
            req[k] = (struct blk_req){ .op = BLK_WRITE, .offset = p[i + k].offset,
                                       .length = p[i + k].len, .iov = &iov[k], .iovcnt = 1 };
            co_batch_add(&b, m->file, &req[k]);
        }
        err = co_batch_wait(&b);
    }
    free(req);
    return err;
}

/* Everything taken is due again. */
static void take_back(struct blockmap *m, struct batch *b)
{
    for (size_t i = 0; i < b->n; i++) {
        size_t at = (size_t)(b->piece[i].offset - b->page[i]->offset);
        mark_dirty(m, b->page[i], at, at + b->piece[i].len);
    }
    for (size_t i = 0; i < b->freed.n; i++) {
        (void)places_add(&m->freed, b->freed.at[i]);
    }
    m->settle_due = true;
}

/* The places of blocks whose entries are gone from the disk, too. */
static void release(struct blockmap *m, const struct bm_freed *f)
{
    if (!f->n) {
        return;
    }
    blk_epoch_wait(m->file);        /* reads that looked up before are through */
    for (size_t i = 0; i < f->n; i++) {
        (void)co_discard(m->file, f->at[i], (uint64_t)m->lead + m->block_size);
        (void)places_add(&m->free, f->at[i]);
    }
}

static void batch_free(struct batch *b)
{
    for (size_t i = 0; i < b->n; i++) {
        b->page[i]->pins--;
        free((void *)(uintptr_t)b->piece[i].buf);
    }
    free(b->piece);
    free(b->page);
    free(b->freed.at);
}

static int flush_once(struct blockmap *m)
{
    struct batch b = { 0 };
    bool settle = m->settle_due;
    int err;

    m->settle_due = false;
    err = take(m, &b);
    err = err || !settle || !m->ops->settle ? err : m->ops->settle(m);
    err = err ? err : co_flush(m->file);
    if (!err && b.n) {
        err = m->ops->store ? m->ops->store(m, b.piece, b.n) : store_plain(m, b.piece, b.n);
        err = err ? err : co_flush(m->file);
    }
    if (err) {
        take_back(m, &b);
    } else {
        release(m, &b.freed);
    }
    batch_free(&b);
    return err;
}

int blockmap_flush(struct blockmap *m)
{
    co_lock(&m->flush_lock);
    int err = flush_once(m);
    co_unlock(&m->flush_lock);
    return err;
}
