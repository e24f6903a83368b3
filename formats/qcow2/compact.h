/*
 * compact.h - moving clusters down inside the file, so that it can end where what it
 * holds ends: compact.c goes through the kinds of clusters, compact_data.c moves guest
 * data and L2 tables.
 *
 * What may move: guest clusters, compressed ones too, L2 tables, L1 tables, refcount
 * blocks and table, the snapshot table.  Everything else that is counted (bitmaps, what
 * a later version of the format may bring) stays where it is.
 *
 * Crash order: for everything that moves
 *   1. the copy and the count of its new place are durable,
 *   2. then the pointers to it, in place: both places are right meanwhile,
 *   3. then the count of its old place goes down.
 * A new place has the whole count at once and an old one loses it only when all
 * pointers are changed, so that no count is ever 1 where COPIED is not set.  A crash
 * leaves leaks, at most.
 */
#ifndef PLATTER_QCOW2_COMPACT_H
#define PLATTER_QCOW2_COMPACT_H

#include "formats/qcow2/qcow2.h"

#define COMPACT_COPIES  64u             /* copies in flight */
#define COMPACT_BATCH   256u            /* pointers changed between two rounds of syncs */

#define COMPACT_BATCH_BYTES (16u << 20) /* of L2 tables in memory */
#define COMPACT_ROUNDS  4u

/* A map from places to places; keys are not 0. */
struct compact_map {
    uint64_t *slot;                     /* key, value */
    uint32_t bits;
    uint64_t count;
};
int compact_map_put(struct compact_map *m, uint64_t key, uint64_t value);
bool compact_map_get(const struct compact_map *m, uint64_t key, uint64_t *value);
void compact_map_free(struct compact_map *m);

struct compact {
    struct qcow2 *q;
    struct blk_compact *out;
    uint64_t limit;                     /* clusters from here on are to move below it */
    uint64_t hint;                      /* no free cluster below this one */
    bool full;                          /* no free cluster is left */
    uint64_t moved, total;              /* clusters: done, and to be done, for progress */
    struct compact_map shared;          /* counted more than once: old place to new */

    /* compact_data.c's own. */
    struct compact_copy {
        uint64_t from, to, len;
    } copy[COMPACT_COPIES];
    unsigned ncopies, max_copies;
    uint8_t *buf;                       /* max_copies clusters and a sector each */
    size_t buf_step;
    uint64_t pack_at;                   /* where compressed data goes on; 0: nowhere */
    struct compact_map packed;          /* compressed entries: old to new */
    struct compact_map seen;            /* L2 tables that were gone through */
};

/* A place for one cluster below the limit, counted count times; 0: none is left. */
int compact_place(struct compact *k, uint64_t count, uint64_t *to);
/* Where a cluster at off, counted count times, is to be: a new place that is being
 * copied to, or one it got before; 0: it stays.  *fresh: it was not moved before. */
int compact_move(struct compact *k, uint64_t off, uint64_t count, uint64_t *to, bool *fresh);
/* Copy later, in parallel; compact_copy_all() waits. */
int compact_copy_add(struct compact *k, uint64_t from, uint64_t to, uint64_t len);
int compact_copy_all(struct compact *k);
/* The old places in k->shared are given up. */
int compact_free_shared(struct compact *k);

/* fn for the active L1 table and each snapshot's (index UINT32_MAX: active); an L1 table
 * is in host order.  Stops at the first error. */
typedef int compact_l1_fn(struct compact *k, uint64_t *l1, uint64_t len, uint64_t offset,
                          bool active);
int compact_each_l1(struct compact *k, compact_l1_fn *fn);

/* Guest data and compressed clusters; L2 tables. */
int compact_data(struct compact *k);
int compact_l2_tables(struct compact *k);

#endif
