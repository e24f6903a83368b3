/*
 * blockmap_int.h - what blockmap.c and blockmap_table.c share.
 */
#ifndef PLATTER_FORMATS_BLOCKMAP_INT_H
#define PLATTER_FORMATS_BLOCKMAP_INT_H

#include "formats/blockmap.h"

/* A page in memory.  Pointers to one are good until something waits. */
struct bm_page {
    uint64_t index, offset;         /* offset: in the file */
    uint32_t len;                   /* bytes */
    uint32_t dirty_from, dirty_end; /* of raw; nothing: end 0 */
    unsigned pins;                  /* pieces of it are being written */
    bool loading, used;
    struct bm_page *next_dirty;
    uint8_t raw[];
};

/* The map that blockmap_submit() was called for. */
static inline struct blockmap *bm_of(const struct blk_req *req)
{
    return (struct blockmap *)(uintptr_t)req->drv[0];
}

static inline uint64_t bm_block(const struct blockmap *m, uint64_t off)
{
    return (off - m->base) / m->block_size;
}

static inline uint64_t bm_in_block(const struct blockmap *m, uint64_t off)
{
    return (off - m->base) % m->block_size;
}

static inline uint64_t bm_slot(const struct blockmap *m, uint64_t block)
{
    return m->ops->slot ? m->ops->slot(m, block) : block;
}

static inline uint64_t bm_page_of(const struct blockmap *m, uint64_t block)
{
    return bm_slot(m, block) / m->per_page;
}

/* The block's page if it is in memory, p NULL if the page has no place: true. */
bool bm_page_peek(struct blockmap *m, uint64_t block, struct bm_page **p);
/* Fiber.  The same, read if need be. */
int bm_page_get(struct blockmap *m, uint64_t block, struct bm_page **p);
/* Fiber.  The block's page has a place. */
int bm_page_make(struct blockmap *m, uint64_t block);
uint64_t bm_value(const struct blockmap *m, const struct bm_page *p, uint64_t block);
void bm_page_set(struct blockmap *m, struct bm_page *p, uint64_t block, uint64_t v);
/* Is there nothing for a flush to do but to sync the file? */
bool bm_clean(const struct blockmap *m);

/* Places for up to n blocks in a row: how many (0: none before data_end), where the
 * first one's data goes, and whether that was never written. */
uint64_t bm_reserve(struct blockmap *m, uint64_t n, uint64_t *host, bool *fresh);
/* They were not used after all; something may have been written there. */
void bm_unreserve(struct blockmap *m, uint64_t host, uint64_t n);
/* A block's place lost its entry. */
int bm_free_later(struct blockmap *m, uint64_t host);

#endif
