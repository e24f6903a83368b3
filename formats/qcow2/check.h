/*
 * check.h - what the checker's files share.
 *
 * The checker trusts nothing the driver holds in memory: it reads the header,
 * the tables and the refcounts again from n->file.  Whoever calls it has written
 * back and dropped the caches, and reloads them after a repair.
 *
 * Flow (check.c): geometry -> count every reference into refs (check_walk.c)
 * -> compare with the refcounts on disk (check_refcounts.c) -> repair those, or
 * build new ones (check_repair.c, check_rebuild.c) -> COPIED flags
 * (check_walk.c) -> header bits.
 *
 * Invariants
 *  - refs counts clusters of the file only; what points past its end is in
 *    beyond (near the end), so that a rebuild never hands such a cluster out.
 *  - No repair writes a guest cluster, and every repair step leaves an image
 *    that reads the same if the next step never happens.
 *  - One fiber counts, repairs and speaks, in the order of the tables; what is done
 *    beside it (check_ahead.h) only has tables ready for it.
 *
 * Memory: counters up to CHECK_MEM_BASE plus 2 bytes for each cluster that the file
 * takes on disk (128 KiB of counters see 4 GiB of data; an image whose references need
 * more is refused with "... need more than N bytes to count"); tables in flight,
 * CHECK_AHEAD_BYTES; the refcount table, snapshots' names and one bitmap directory, by
 * the caps below.  What the header claims sizes nothing.
 */
#ifndef PLATTER_QCOW2_CHECK_H
#define PLATTER_QCOW2_CHECK_H

#include "formats/qcow2/check_ahead.h"
#include "formats/qcow2/check_counts.h"
#include "formats/qcow2/qcow2.h"

#include <stdio.h>

#define CHECK_MEM_BASE      (48u << 20) /* counters, plus 2 bytes per cluster in use */
#define CHECK_MAX_LINES     100000u     /* messages; counting goes on */
#define CHECK_MAX_STRAY     64u         /* unaligned L2 tables looked into */
#define CHECK_MAX_SHARED    16u         /* refcount blocks claimed twice, compared */
#define CHECK_TABLES        (64ull << 20) /* bytes of snapshots' and bitmaps' tables, plus
                                           what the file takes on disk */
#define CHECK_REPEAT        16u         /* lines for one finding in a shared table */
#define CHECK_CHUNK         65536u      /* bytes of an L1 table read at a time */
#define CHECK_MAX_BITMAPS   65535u
#define CHECK_MAX_BM_DIR    (64u << 20) /* 65535 entries of 1 KiB */
#define CHECK_MAX_BM_TABLE  (8u << 20)  /* entries of one bitmap's table */
#define CHECK_MAX_CRYPTO    (64u << 20) /* bytes of an encryption header */
#define CHECK_BEYOND        65536u      /* clusters past the end kept track of */

/* Bits of refcount table and bitmap table entries; the rest is in qcow2.h. */
#define CK_REFT_OFFSET      0xfffffffffffffe00ull
#define CK_BM_OFFSET        0x00fffffffffffe00ull
#define CK_BM_RESERVED      0xff000000000001feull
#define CK_BM_ALL_ONES      1ull

struct check_range { uint64_t start, end; };

/* From the header, bounded. */
struct check_geom {
    unsigned version, cluster_bits, refcount_order, block_bits;
    uint64_t cluster_size, size, refcount_max;
    uint64_t l1_offset, reftable_offset, snapshots_offset, incompat, autoclear;
    uint64_t crypto_offset, crypto_length, bitmaps_offset, bitmaps_size;
    uint32_t l1_size, reftable_clusters, nb_snapshots, nb_bitmaps;
    bool data_file, extl2;
};

enum l2_type { L2_UNALLOCATED, L2_ZERO, L2_ZERO_ALLOC, L2_NORMAL, L2_COMPRESSED };

/* How far it is: a phase goes from start to start + span of the whole. */
struct check_phase { double start, span; };

struct check {
    const struct qcow2 *q;              /* for its refcount width */
    struct blk_node *file;
    struct blk_check *out;
    int fix;
    struct check_geom g;
    uint64_t file_len, nb_clusters, beyond_end;
    unsigned lines;
    unsigned stray, shared;             /* unaligned L2 tables, shared blocks seen */
    uint64_t tables_left;               /* of CHECK_TABLES: more must overlap */

    struct counts_budget budget;
    struct counts refs;                 /* references found, not capped */
    struct counts rc;                   /* of these: refcount table and blocks */
    struct counts beyond;               /* just past the end of the file */
    struct counts l2_all, l2_active;    /* L1 entries per L2 table */
    struct counts seen;                 /* L2 tables done in this pass */
    struct counts disk;                 /* on-disk refcount + 1 where it differs */
    struct counts freed;                /* clusters whose refcount became 0 */

    uint64_t *reftable;                 /* host order, as on disk */
    uint64_t reftable_entries;
    bool rebuild;                       /* the refcount structure is unusable */
    bool grown_over;                    /* a rebuild made the file reach such a cluster */
    FILE *held;                         /* where what is said goes meanwhile, or NULL */
    bool fix_copied;                    /* COPIED flags are repaired */
    bool zeroed;                        /* L2 entries are to be made zero */
    uint64_t compare_errors;            /* check_errors made by comparing */
    uint64_t highest;                   /* last cluster in use */

    bool suspect;                       /* COPIED flags may be wrong: see ck_walk_copied() */
    struct check_phase phase;
    struct check_ahead *ahead;
    uint8_t *table;                     /* a cluster: what was read last */
    struct check_digest digest;         /* of table, if that is an L2 table */
    uint64_t run_disk[COUNTS_PAGE], run_refs[COUNTS_PAGE];
    struct check_range hole, data;      /* what the file was last known to be */
};

/* ---- check.c ---- */

/* One line to the user; ck_error() also counts corruptions (times), printing the
 * line as often as QEMU, which visits shared tables again and again. */
void ck_say(struct check *k, const char *fmt, ...) BLK_PRINTF(2, 3);
void ck_error(struct check *k, uint64_t times, const char *fmt, ...) BLK_PRINTF(3, 4);
/* A new phase of the check, and how far it is. */
void ck_phase(struct check *k, double start, double span);
void ck_progress(struct check *k, uint64_t done, uint64_t total);
/* Reads past the end give zeros. */
int ck_read(struct check *k, uint64_t off, void *buf, uint64_t len);
int ck_write(struct check *k, uint64_t off, const void *buf, uint64_t len);
/* Is the range known to be zeros? (Reading zeros is how one gets to know.) */
bool ck_is_hole(struct check *k, uint64_t off, uint64_t len);
/* buf was read from there: if it is zeros, get to know the hole. */
void ck_learn_hole(struct check *k, uint64_t off, const void *buf, uint64_t len);
/* Count a reference, times over, to every cluster of a range.  A range that
 * leaves the file by a cluster or more is an error and not counted. */
int ck_ref(struct check *k, uint64_t off, uint64_t len, uint64_t times);
/* The same for n clusters that lie in the file. */
int ck_ref_run(struct check *k, uint64_t first, uint64_t n, uint64_t times);
/* References that stay when the refcount structure is built anew. */
uint64_t ck_claims(struct check *k, uint64_t cluster);

/* A number of references as the image's refcounts can hold it. */
static inline uint64_t ck_storable(const struct check *k, uint64_t refs)
{
    return BLK_MIN(refs, k->g.refcount_max);
}

/* The whole check of n (whose file child it reads), results into c; fix: what to
 * repair (BLK_FIX_*).  *table: corruptions of the snapshot table that fix asks to be
 * mended, the caller's to write and to count; the image is not marked clean before.
 * 0, also for a broken image; -errno: it could not be done. */
int ck_check(struct blk_node *n, struct blk_check *c, int fix, uint64_t *table,
             struct blk_error *e);

/* ---- check_meta.c ---- */

int ck_geometry(struct check *k, struct blk_error *e);
/* Snapshots, in table order. */
struct check_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
    uint32_t extra;                     /* bytes of extra data */
    bool skip;                          /* too much: its tables must overlap others */
    char id[64], name[64];              /* cut, for messages */
};
struct check_snapshots {
    struct check_snapshot *v;
    uint32_t n;                         /* those that are kept */
    uint64_t size;                      /* bytes of the table */
    uint64_t damage;                    /* what writing it anew mends; counted as corruptions
                                         * here unless that is to be done */
};
int ck_read_snapshots(struct check *k, struct check_snapshots *s, struct blk_error *e);
int ck_count_bitmaps(struct check *k);
/* Take bytes from what tables may need in all; false: they cannot all be real. */
bool ck_take_table(struct check *k, uint64_t bytes);

/* ---- check_walk.c ---- */

enum l2_type ck_l2_type(const struct check *k, uint64_t entry);
/* Bytes of the file that a compressed cluster's entry names. */
void ck_compressed_place(const struct check *k, uint64_t entry, uint64_t *off, uint64_t *len);
int ck_walk_tables(struct check *k, const struct check_snapshots *s);
/* Clear COPIED where it is wrong and dangerous, and zero the entries marked for
 * it, before refcounts change. */
int ck_walk_before_repair(struct check *k, const struct check_snapshots *s);
int ck_walk_copied(struct check *k);

/* ---- check_refcounts.c ---- */

int ck_read_reftable(struct check *k);
int ck_count_blocks(struct check *k);
/* fix: BLK_FIX_* of what to change, 0 to look. */
int ck_compare(struct check *k, int fix);
/* Refcount of a cluster as it is on disk now; valid after ck_compare(), which has
 * reported what makes this fail. */
int ck_disk_refcount(struct check *k, uint64_t cluster, uint64_t *out);

/* ---- check_rebuild.c ---- */

/* New refcount table and blocks from the references, switched to by one write of
 * the header.  Places nothing where anything points. */
int ck_rebuild(struct check *k);

#endif
