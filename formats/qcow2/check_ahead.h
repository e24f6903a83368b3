/*
 * check_ahead.h - tables of the checker read before their turn, and what is in them
 * worked out on the worker pool.
 *
 * Whoever walks tables adds the ones that come next; reads of many are in flight at
 * once.  They are handed out in that order, each to be dealt with by the one fiber that
 * counts and speaks: results do not depend on what was done at the same time.
 */
#ifndef PLATTER_QCOW2_CHECK_AHEAD_H
#define PLATTER_QCOW2_CHECK_AHEAD_H

#include <stdbool.h>
#include <stdint.h>

#define CHECK_AHEAD_MAX     64u         /* tables in flight, at most */
#define CHECK_AHEAD_BYTES   (8u << 20)  /* of tables and digests, but never fewer than two */
#define CHECK_POOL_TABLE    32768u      /* smaller tables are not worth a thread's wake */

struct check;

/* Host clusters in a row that an L2 table names: of standard clusters, all with COPIED
 * or all without, or of one compressed cluster. */
struct check_run {
    uint64_t first;
    uint32_t n;
    bool copied, compressed;
};

/* What an L2 table says, if it is as it should be.  odd: something in it is to be said,
 * or names what is not in the file; then the rest is not valid. */
struct check_digest {
    bool odd, bare;                     /* bare: data entries without COPIED */
    uint32_t allocated, fragmented, compressed, nruns;
    struct check_run *run;              /* room for each entry of a table */
};

int ck_ahead_init(struct check *k);     /* knows the geometry. 0 or -ENOMEM */
void ck_ahead_free(struct check *k);    /* waits for what is in flight */

/* Can another table be read ahead? */
bool ck_ahead_room(const struct check *k);
/* Start to read the cluster at off; l2: it is an L2 table, to be digested. */
void ck_ahead_add(struct check *k, uint64_t off, bool l2);
/* Fiber.  The cluster at off in k->table, and for an L2 table its digest in k->digest:
 * read now, or long ago.  What was added before it and not taken is dropped. */
int ck_take(struct check *k, uint64_t off, bool l2);
/* Fiber.  [off, off+len) is about to change. */
void ck_ahead_forget(struct check *k, uint64_t off, uint64_t len);

/* Any thread: fill d from a table; reads nothing of k that changes while tables are
 * walked. */
void ck_digest(const struct check *k, const uint8_t *table, struct check_digest *d);

#endif
