/*
 * bitmap.h - persistent dirty bitmaps of an open image.
 *
 * bitmap.c         extension, directory, bits in memory, tracking guest writes
 * bitmap_store.c   the IN_USE flag, writing changed bitmaps back
 * bitmap_ops.c     what users do with bitmaps: the driver's ops
 *
 * Rules
 *  - Before the first guest write each enabled bitmap gets IN_USE in the file,
 *    durably: if we die, nobody believes it.  Closing writes what changed.
 *  - A bitmap that came with IN_USE is inconsistent: kept, never read, only removed.
 *  - Bitmaps are replaced by one write of the header: new data, tables and
 *    directory are durable and counted before, old ones are freed after.
 */
#ifndef PLATTER_QCOW2_BITMAP_H
#define PLATTER_QCOW2_BITMAP_H

#include "block/driver.h"

struct qcow2;

#define QCOW2_BM_MAX 65535u
#define QCOW2_BM_MAX_DIR (1024ull * QCOW2_BM_MAX)
#define QCOW2_BM_MAX_BYTES (512ull << 20)       /* of one bitmap; and of all in memory */
#define QCOW2_BM_MAX_NAME 1023u
#define QCOW2_BM_MIN_GRANULARITY 9u             /* bits */
#define QCOW2_BM_MAX_GRANULARITY 31u
#define QCOW2_BM_MAX_TABLE 0x8000000u           /* entries */

enum {                                          /* flags of a directory entry */
    QCOW2_BM_IN_USE = 1u << 0,
    QCOW2_BM_AUTO = 1u << 1,                    /* enabled: it tracks writes */
};
#define QCOW2_BM_FLAGS (QCOW2_BM_IN_USE | QCOW2_BM_AUTO)

/* Byte positions in the extension and in a directory entry. */
enum { QX_COUNT = 0, QX_RESERVED = 4, QX_DIR_SIZE = 8, QX_DIR_OFFSET = 16, QX_BYTES = 24 };
enum {
    QB_TABLE_OFFSET = 0, QB_TABLE_SIZE = 8, QB_FLAGS = 12, QB_TYPE = 16, QB_GRANULARITY = 17,
    QB_NAME_SIZE = 18, QB_EXTRA_SIZE = 20, QB_FIXED = 24,
};
/* Entries of a bitmap's table. */
#define QB_ENTRY_RESERVED 0xff000000000001feull
#define QB_ENTRY_ONES 1ull                      /* no cluster: all bits are set */

struct qcow2_bitmap {
    struct qcow2_bitmap *next;
    char *name;
    uint32_t flags;                             /* as in the file */
    uint32_t granularity;                       /* bits */
    uint64_t table_offset;                      /* in the file; 0: not there yet */
    uint32_t table_size;                        /* entries there */
    uint64_t dir_at;                            /* its entry's place in the directory, or
                                                   UINT64_MAX */
    bool enabled, inconsistent;
    bool marked;                                /* IN_USE in the file by us */
    bool changed;                               /* the bits differ from the file's */
    bool loaded;
    bool foreign;                               /* its table lies over other metadata */
    uint8_t **chunk;                            /* loaded: a cluster of bits each, NULL: zeros */
    uint32_t chunks;
};

struct qcow2_bitmaps {
    struct qcow2_bitmap *first;                 /* in the directory's order */
    uint32_t count;
    uint64_t dir_offset, dir_size;              /* in the file; 0: none */
    struct qcow2_bitmap *removed;               /* to be freed when the rest is stored */
    bool foreign;                               /* the directory lies over other metadata */
    bool lost;                                  /* an extension that must go */
    bool listed;                                /* the directory is to be written */
    bool touched;                               /* something of the image was written */
    bool tracking;                              /* guest writes have to be recorded */
    bool paused;                                /* the writes are our own */
    struct co_mutex lock;                       /* marking */
    uint64_t bytes;                             /* of chunks in memory */
};

/* ---- bitmap.c ---- */

/* The header extension; header fields are known. */
int qcow2_bitmaps_extension(struct qcow2 *q, const uint8_t *data, uint32_t len,
                            struct blk_error *e);
/* Read and check the directory; enabled bitmaps of a writable image are loaded. Fiber. */
int qcow2_bitmaps_open(struct qcow2 *q, struct blk_error *e);
void qcow2_bitmaps_free(struct qcow2 *q);
struct qcow2_bitmap *qcow2_bitmap_find(struct qcow2 *q, const char *name);
void qcow2_bitmap_free(struct qcow2 *q, struct qcow2_bitmap *b);
/* The directory and the tables are metadata. */
int qcow2_bitmaps_mark_meta(struct qcow2 *q);
/* -EINVAL: it is inconsistent, in QEMU's words. */
int qcow2_bitmap_refuse(const struct qcow2_bitmap *b, struct blk_error *e);
/* Bits into memory, if they are not there. Fiber. */
int qcow2_bitmap_load(struct qcow2 *q, struct qcow2_bitmap *b, struct blk_error *e);
/* Set the bits of a byte range; -ENOMEM: more is set than was asked for. */
int qcow2_bitmap_set(struct qcow2 *q, struct qcow2_bitmap *b, uint64_t off, uint64_t len);
void qcow2_bitmap_clear(struct qcow2 *q, struct qcow2_bitmap *b);
/* The first run of set bits at or after *off, as bytes within the image; false: none. */
bool qcow2_bitmap_next(struct qcow2 *q, const struct qcow2_bitmap *b, uint64_t *off,
                       uint64_t *len);
/* Clusters of bits that a disk of so many bytes needs. */
uint64_t qcow2_bitmap_chunks(const struct qcow2 *q, uint64_t size, uint32_t granularity);
/* After a change of what is enabled. */
void qcow2_bitmaps_settle(struct qcow2 *q);
/* A guest write, zeroing or discard that enabled bitmaps have to know of.  false: a
 * fiber has to call qcow2_bitmaps_mark() first. */
bool qcow2_bitmaps_touch(struct qcow2 *q, uint64_t off, uint64_t len);
/* Around a new size: before (may refuse), and after, when n->size is the new one. Fiber. */
int qcow2_bitmaps_resize_begin(struct qcow2 *q, uint64_t size, struct blk_error *e);
int qcow2_bitmaps_resize_end(struct qcow2 *q);

/* ---- bitmap_store.c ---- */

/* IN_USE, durably, for bitmaps that are about to differ from the file: the enabled
 * ones, or all. Fiber. */
int qcow2_bitmaps_mark(struct qcow2 *q, bool all);
/* When something of the image was written, all bitmaps are, as QEMU does when an image is
 * closed: clusters come to lie at the same places.  What cannot be read stays.  Fiber. */
void qcow2_bitmaps_renew(struct qcow2 *q);
/* Write what changed. Fiber; nothing in flight. */
int qcow2_bitmaps_store(struct qcow2 *q, struct blk_error *e);
/* The header extension, QX_BYTES of it. */
void qcow2_bitmaps_encode(const struct qcow2 *q, uint8_t *out);
/* Bytes of a directory entry. */
uint64_t qcow2_bitmap_entry_bytes(const char *name);

/* ---- bitmap_ops.c ---- */

int qcow2_bitmap_change(struct blk_node *n, enum blk_bitmap_op op, const char *name,
                        uint64_t granularity, struct blk_error *e);
bool qcow2_bitmap_at(struct blk_node *n, size_t i, struct blk_bitmap *out);
int qcow2_bitmap_copy(struct blk_node *n, const char *name, struct blk_node *src,
                      const char *from, struct blk_error *e);
/* What the bitmaps of src would take in clusters of this size (measure). */
uint64_t qcow2_bitmaps_measure(struct blk_node *src, uint64_t cluster);

#endif
