/*
 * blockmap.h - the part that formats with one table have in common: guest block ->
 * place in the file.  vdi, vpc, parallels, qcow (and whoever comes) describe their
 * table in a struct blockmap; reads, writes, discards, flushes and block status of
 * what the table maps are done here.
 *
 * A value says what an entry means, whatever it looks like on disk:
 *   less than BM_SPECIAL     the block's data is at this offset of the file
 *   BM_SPECIAL | payload     only the format can read it (compressed); written to, it
 *                            becomes a normal block
 *   BM_ZERO                  reads as zeros
 *   BM_ABSENT                not in this layer: the backing file, or zeros
 *   BM_BAD                   damaged: I/O error, reported once
 *
 * The table is read in pages (of per_page entries) when they are first needed and
 * kept, raw, up to BM_CACHE bytes.  With page_at, pages may lie anywhere (grain tables,
 * L2 tables); without, they are a flat array at table_offset.
 *
 * Fast path: a request whose blocks lie in one run and whose page is in memory is
 * forwarded, without a fiber or an allocation.
 *
 * Crash order.  A new block's data (and prepare()'s part) is written first; then the
 * entry changes in memory.  A flush calls settle(), syncs the file, writes the changed
 * pieces of the table, syncs again.  So an entry on disk never points at space that
 * is not there or not written.  A block that lost its entry is used again only after
 * the flush that made that durable and when nobody reads it any more.  A failed write
 * leaves the entry as it was and gives its space back.
 *
 * All on the owner thread; what may wait says "Fiber".
 */
#ifndef PLATTER_FORMATS_BLOCKMAP_H
#define PLATTER_FORMATS_BLOCKMAP_H

#include "block/driver.h"

#define BM_SPECIAL   (1ull << 62)
#define BM_ABSENT    (~0ull)
#define BM_ZERO      (~1ull)
#define BM_BAD       (~2ull)

#define BM_CACHE     (32u << 20)    /* bytes of table in memory; dirty ones are flushed
                                       when they reach half of it */
#define BM_PAGES_MAX (4u << 20)     /* pages a table may have */
#define BM_PAGE_BYTES (64u << 10)   /* of a flat table; the default */

struct blockmap;
struct bm_page;

static inline bool bm_is_data(uint64_t v) { return v < BM_SPECIAL; }
static inline bool bm_is_special(uint64_t v) { return v >= BM_SPECIAL && v < BM_BAD; }

/* A changed piece of the table on its way to disk. */
struct bm_piece {
    uint64_t offset;                /* in the file */
    const void *buf;
    size_t len;
    uint64_t page;                  /* which one it is of */
};

struct blockmap_ops {
    /* What raw (entry_size bytes as on disk) means; must not wait. Offsets outside of
     * [data_start, data_end - block_size] are made BM_BAD by the caller. */
    uint64_t (*decode)(const struct blockmap *m, const uint8_t *raw);
    /* Change raw, which holds the old entry, to mean v (data, BM_ZERO or BM_ABSENT; what
     * write_special() made). */
    void (*encode)(const struct blockmap *m, uint64_t v, uint8_t *raw);

    /* ---- all below may be NULL ------------------------------------------------ */

    /* Where page i of the table is, 0: nowhere yet, all its blocks are absent. Must not
     * wait (keep the directory in memory).  NULL: flat, at table_offset. */
    uint64_t (*page_at)(const struct blockmap *m, uint64_t i);
    /* Fiber.  Give page i a place with all entries absent, durable before anything
     * points at it; page_at() then knows it.  Never called for the same page twice at
     * once.  NULL: page_at() is never 0 for a block that is written. */
    int (*page_make)(struct blockmap *m, uint64_t i);
    /* Entry of a block in the table, where they are not one to one (vhdx); monotonic. */
    uint64_t (*slot)(const struct blockmap *m, uint64_t block);

    /* Fiber.  Read len bytes from in of a special block to pos of iov. */
    int (*read_special)(struct blockmap *m, uint64_t block, uint64_t v, uint64_t in,
                        const struct iovec *iov, int cnt, uint64_t pos, uint64_t len);
    /* Fiber.  Write a block's worth of data (buf) compressed and say with what value it is
     * found; BM_ABSENT: written plainly it takes no more space. */
    int (*write_special)(struct blockmap *m, const uint8_t *buf, uint64_t *v);
    /* Fiber.  Block's data will be at host: write what belongs with it (a sector
     * bitmap in the lead).  Before the entry points there. */
    int (*prepare)(struct blockmap *m, uint64_t block, uint64_t host);
    /* May a block that has data be overwritten as it is?  Otherwise touch() (Fiber)
     * is called before, then it must be. */
    bool (*touched)(const struct blockmap *m, uint64_t block);
    int (*touch)(struct blockmap *m, uint64_t block, uint64_t host);
    /* Fiber.  During a flush, before its first sync: write what must be on disk before
     * the entries are (a count of blocks, a footer behind the last one).  Only called
     * when entries changed. */
    int (*settle)(struct blockmap *m);
    /* Fiber.  Write these pieces of the table, with a log if need be; all were copied,
     * guest data they point at is durable.  NULL: plain writes. */
    int (*store)(struct blockmap *m, const struct bm_piece *p, size_t n);
};

struct bm_busy {                    /* blocks whose entries somebody is changing */
    uint64_t first, end;
    struct bm_busy *next;
};

struct bm_freed {                   /* places without an entry */
    uint64_t *at;
    size_t n, room;
};

struct blockmap {
    /* Filled by the format before blockmap_init(). */
    struct blk_node *n;             /* the format's node; its backing node is used */
    struct blk_node *file;          /* where data and table are */
    const struct blockmap_ops *ops;
    uint64_t base;                  /* guest offset of block 0: a node may have several maps,
                                       then its submit() cuts requests at their ends */
    uint64_t blocks;                /* entries that map guest blocks */
    uint32_t block_size;            /* any multiple of 512 */
    uint32_t entry_size;            /* 4 or 8 */
    uint32_t per_page;              /* entries; 0: BM_PAGE_BYTES worth */
    uint64_t table_offset;          /* without page_at */
    uint64_t slots;                 /* entries in the table; 0: as many as blocks */
    uint64_t data_start, data_end;  /* where blocks may lie; data_end 0: anywhere */
    uint32_t lead;                  /* bytes in front of each new block (prepare()) */
    uint64_t next;                  /* where the next new block goes, lead included */
    size_t cache;                   /* bytes of table in memory; 0: BM_CACHE */
    int absent_err;                 /* not 0: what reading absent blocks ends in */
    bool absent_is_zero;            /* status says ZERO for absent blocks */
    bool holes;                     /* status looks for holes in the file's data */
    bool zero_marks;                /* encode() knows BM_ZERO: zeroes are marked so */
    bool frees;                     /* DISCARD and zeroes take entries away; without it
                                       (and without zero_marks) the core writes zeros */
    /* Its own from here. */
    uint64_t npages;
    struct bm_page **pages;
    struct bm_page *dirty;          /* list */
    struct bm_page **cached;        /* those in memory, in no order; hand: the clock's */
    size_t ncached, cached_room, hand;
    size_t cached_bytes, dirty_bytes;
    uint64_t fresh_from;            /* file space from here on was never written */
    struct bm_busy *busy;
    struct co_queue busy_q, load_q;
    unsigned resuming;              /* woken from load_q, not running yet */
    struct co_mutex flush_lock, make_lock, order;
    struct bm_freed free, freed;    /* to be had again; only after the next flush */
    bool reported;                  /* one line about damage is enough */
    bool settle_due;
};

/* Check the description, allocate the page directory.  -EFBIG: more pages than
 * BM_PAGES_MAX; -ENOMEM.  Sets n's cluster_size, can_zero, can_discard and their
 * alignments.  Reads nothing. */
int blockmap_init(struct blockmap *m, struct blk_error *e);
void blockmap_free(struct blockmap *m);         /* also of one never initialised */

/* The driver's submit() and status(). */
void blockmap_submit(struct blockmap *m, struct blk_req *req);
int blockmap_status(struct blockmap *m, uint64_t off, uint64_t len, struct blk_status *st);

/* Fiber.  One entry's value; for checks.  Or its raw form, of any slot. */
int blockmap_get(struct blockmap *m, uint64_t block, uint64_t *v);
int blockmap_get_raw(struct blockmap *m, uint64_t slot, uint8_t *raw);
/* Fiber.  Change one entry, written by the next flush; for repair.  The place it had
 * is not freed. */
int blockmap_set(struct blockmap *m, uint64_t block, uint64_t v);
/* Fiber.  Write everything that is due; what a FLUSH does. */
int blockmap_flush(struct blockmap *m);
/* A place that no entry points at (found by the format): new blocks go there first. */
int blockmap_add_free(struct blockmap *m, uint64_t host);

#endif
