/*
 * qcow2.h - the on-disk structures of qcow2 (docs/interop/qcow2.txt of QEMU is
 * the specification), the open image's state, and what its files offer each
 * other.  All on-disk integers are big-endian; they are converted once, in the
 * file named beside each structure.
 *
 * header.c    header, extensions: parsing, checking, rewriting
 * corrupt.c   damage found in use: what is said, and the corrupt bit
 * open.c      driver table, open, close, info
 * facts.c     what a header says, in order or not
 * cache.c     L2 slices and refcount blocks in memory
 * l2.c        guest offset -> L2 entry; making L2 tables
 * alloc.c     the allocator
 * refcount.c  counts, freeing
 * flush.c     the order in which metadata reaches the disk
 * read.c, write.c, zero.c   guest requests
 * bitmap*.c   persistent dirty bitmaps (bitmap.h)
 * datafile.c  guest data in a file of its own
 * crypt.c     encrypted guest data
 * compress.c, deflate.c      reading compressed clusters, writing them
 * create.c, stream.c, resize.c, prealloc.c, amend*.c, check*.c, snapshot.c, compact*.c   image operations
 *
 * Crash order (bad-input.md E), kept by flush.c alone: nothing but flush.c, the
 * header's own updates and the initialisation of unreferenced clusters writes
 * metadata to the file.
 */
#ifndef PLATTER_QCOW2_H
#define PLATTER_QCOW2_H

#include "block/driver.h"
#include "formats/qcow2/bitmap.h"

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_MIN_CLUSTER_BITS 9u
#define QCOW2_MAX_CLUSTER_BITS 21u
#define QCOW2_MAX_L1_BYTES (32u << 20)
#define QCOW2_MAX_REFTABLE_BYTES (8u << 20)
#define QCOW2_MAX_SNAPSHOTS 65536u
#define QCOW2_MAX_SNAPTABLE_BYTES (64u << 20)
#define QCOW2_MAX_SNAPEXTRA 1024u       /* bytes of a snapshot's extra data */
#define QCOW2_MIN_SNAPEXTRA 16u         /* of version 3: the 64-bit sizes */
#define QCOW2_MAX_CRYPTO_BYTES (64u << 20)  /* encryption header with its key material */
#define QCOW2_MAX_EXTENSIONS 4096u          /* header extensions read */
#define QCOW2_LOAD_BITS 5u                  /* 32 loads of L2 slices at once */

/* L1 and L2 entries */
#define QCOW2_COPIED (1ull << 63)           /* refcount is exactly one */
#define QCOW2_COMPRESSED (1ull << 62)
#define QCOW2_ZERO 1ull
#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_L1_RESERVED 0x7f000000000001ffull
#define QCOW2_L2_RESERVED 0x3f000000000001feull
#define QCOW2_REFT_RESERVED 0x1ffull

/* The second word of an extended L2 entry: bit i of the low half: subcluster i is
 * allocated; of the high half: it reads as zeros. */
#define QCOW2_SUB_BITS 5u
#define QCOW2_MAP_ZEROS 0xffffffff00000000ull

enum {                                      /* incompatible features */
    QCOW2_INC_DIRTY = 1u << 0,
    QCOW2_INC_CORRUPT = 1u << 1,
    QCOW2_INC_DATA_FILE = 1u << 2,
    QCOW2_INC_COMPRESSION = 1u << 3,
    QCOW2_INC_EXTL2 = 1u << 4,
};
#define QCOW2_INC_KNOWN \
    (QCOW2_INC_DIRTY | QCOW2_INC_CORRUPT | QCOW2_INC_DATA_FILE | QCOW2_INC_COMPRESSION | \
     QCOW2_INC_EXTL2)
enum { QCOW2_COMPAT_LAZY = 1u << 0 };       /* compatible features */
enum {                                      /* autoclear features */
    QCOW2_AUTO_BITMAPS = 1u << 0,
    QCOW2_AUTO_RAW = 1u << 1,               /* data_file_raw */
};
enum {                                      /* header extensions */
    QCOW2_EXT_END = 0,
    QCOW2_EXT_BACKING_FORMAT = 0xe2792aca,
    QCOW2_EXT_FEATURES = 0x6803f857,
    QCOW2_EXT_BITMAPS = 0x23852875,
    QCOW2_EXT_CRYPTO = 0x0537be77,
    QCOW2_EXT_DATA_FILE = 0x44415441,
};

enum { QCOW2_CRYPT_NONE, QCOW2_CRYPT_AES, QCOW2_CRYPT_LUKS };   /* crypt_method */

/* Byte positions in the on-disk header (header.c). */
enum {
    QH_MAGIC = 0, QH_VERSION = 4, QH_BACKING_OFFSET = 8, QH_BACKING_SIZE = 16,
    QH_CLUSTER_BITS = 20, QH_SIZE = 24, QH_CRYPT = 32, QH_L1_SIZE = 36, QH_L1_OFFSET = 40,
    QH_REFT_OFFSET = 48, QH_REFT_CLUSTERS = 56, QH_NB_SNAPSHOTS = 60, QH_SNAP_OFFSET = 64,
    QH_V2_END = 72,
    QH_INCOMPATIBLE = 72, QH_COMPATIBLE = 80, QH_AUTOCLEAR = 88, QH_REFCOUNT_ORDER = 96,
    QH_HEADER_LENGTH = 100, QH_V3_END = 104, QH_COMPRESSION = 104, QH_FULL = 112,
};

/* The header in host order. */
struct qcow2_header {
    uint32_t version, cluster_bits, crypt_method, l1_size, reft_clusters, nb_snapshots;
    uint64_t backing_offset, size, l1_offset, reft_offset, snap_offset;
    uint32_t backing_size;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order, header_length;
    uint8_t compression;                    /* 0 zlib, 1 zstd */
};

struct qcow2_ext {                          /* unknown header extensions, kept */
    uint32_t magic, len;
    struct qcow2_ext *next;
    uint8_t data[];
};

/* A piece of an L2 table in memory: entries as on disk, of one word or (extended L2) of
 * two; l2.c's accessors know which. */
struct qcow2_slice {
    uint64_t index;                         /* guest offset / bytes a slice maps */
    struct qcow2_slice *hash_next, *dirty_next;
    uint32_t pins;                          /* fibers that must not lose it */
    bool dirty, used;                       /* used: the clock's bit */
    uint64_t word[];
};

struct qcow2_block {                        /* a refcount block in memory */
    uint64_t index;                         /* in the refcount table */
    struct qcow2_block *hash_next, *dirty_next;
    uint32_t pins;
    bool dirty, used;
    uint8_t data[];                         /* cluster_size bytes, as on disk */
};

struct qcow2_run {                          /* host clusters to free */
    uint64_t offset, clusters;
    struct qcow2_run *next;
};

/* A hash set of host clusters, as cluster + 1 (0: empty slot). */
struct qcow2_set {
    uint64_t *slot;
    uint32_t bits;
    uint64_t count;
};

/* Guest subclusters some fiber is allocating, zeroing or discarding. */
struct qcow2_busy {
    uint64_t first, end;                    /* guest subcluster numbers */
    struct qcow2_busy *next;
};

struct qcow2_space {
    uint64_t offset, clusters;
    bool fresh;                             /* reads as zeros: never written */
    const char *what;                       /* the caller's or NULL: what is said to be
                                               allocated where the header is free */
};

struct qcow2 {
    struct blk_node *n, *file;
    struct blk_node *data;                  /* of guest clusters: file, or an external data file;
                                               metadata and compressed data are in file. NULL: an
                                               external one that only info does not need */
    struct qcow2_crypt *crypt;              /* NULL: not encrypted; LUKS: data is its node */
    char *data_name;                        /* as the image names it, or NULL */
    struct qcow2_header h;
    uint32_t cluster_size, l2_bits, slice_bits; /* entries: 1 << bits */
    unsigned wide;                          /* 1: extended L2, an entry is two words */
    bool no_unref;                          /* what is discarded keeps its cluster */
    bool lazy;                              /* lazy refcounts are in force (flush.c) */
    /* A cluster is 1 << sub_bits subclusters, each allocated or not by itself; without
     * extended L2 it is one. */
    uint32_t sub_bits, sub_shift, sub_size; /* log2 of their bytes, and these */
    uint32_t refcount_bits, refblock_bits;  /* counts a block: 1 << refblock_bits */
    uint64_t *l1;                           /* host order, h.l1_size entries */
    struct qcow2_ext *exts;                 /* unknown ones, in order */
    uint8_t *features;                      /* feature name table, as on disk */
    uint32_t features_len;

    /* cache.c */
    struct qcow2_slice **slice_hash;
    struct qcow2_block **block_hash;
    uint32_t slice_hash_bits, block_hash_bits;
    uint64_t nslices, max_slices, nblocks, max_blocks, slice_clock, block_clock;
    struct qcow2_slice *dirty_slices;
    struct qcow2_block *dirty_blocks;
    uint64_t ndirty_slices, ndirty_blocks;
    struct co_mutex slice_load[1u << QCOW2_LOAD_BITS];  /* held while one of a slice's is read */
    struct co_mutex block_load;

    /* refcount.c */
    uint64_t *reft;                         /* host order */
    uint64_t reft_len;                      /* entries in memory */
    uint64_t reft_on_disk;                  /* entries the table on disk has room for */
    uint64_t reft_dirty_first, reft_dirty_end;  /* entries to write, [first, end) */
    struct qcow2_space reft_place;          /* the next flush moves the table there, if not empty */
    uint64_t free_hint;                     /* the search for free clusters starts here */
    uint64_t free_byte;                     /* packed clusters go on here, inside a host
                                               cluster that holds some; 0: nowhere */
    uint64_t end_cluster;                   /* first cluster past everything known */
    uint64_t zero_from;                     /* file bytes from here on read as zeros */
    struct co_mutex alloc_lock;
    struct qcow2_run *to_free;              /* pointers gone in memory, not yet on disk */
    struct qcow2_set meta;                  /* host clusters of all metadata */
    struct qcow2_set doubtful;              /* refcount 0, yet they hold data: left alone */
    uint64_t old_end;                       /* end_cluster when opened */
    uint64_t reft_bad;                      /* where refcount structures hit metadata, or 0 */
    uint8_t *l1_bad;                        /* L1 entries that hit other metadata, or NULL */

    /* l2.c */
    uint8_t *l1_dirty;                      /* byte per 512-byte block of the L1 table */
    bool l1_any_dirty;
    struct co_mutex l2_lock;                /* making L2 tables */

    /* write.c */
    struct qcow2_busy *busy;
    struct co_queue busy_q;
    struct co_mutex place_lock;             /* requests get places in the order they came in */

    /* flush.c */
    struct co_mutex flush_lock;
    uint64_t flush_asked, flush_done;       /* tickets: callers, callers served */
    int flush_result;
    bool linked;                            /* guest clusters got places since nothing was dirty:
                                               the next flush marks the image */
    unsigned settling;                      /* fibers in qcow2_settle() */

    struct qcow2_inflated *inflated;        /* compress.c */

    /* deflate.c */
    int level;                              /* 0: the type's default */
    uint64_t deflate_tickets, deflate_turn;
    struct co_queue deflate_q;

    struct qcow2_bitmaps bm;

    bool corrupt;                           /* found in this session: no more writes */
    bool corrupt_reported;
    bool writable;
    bool prealloc_known, preallocated;      /* read.c: many mapped, unwritten clusters */
};

enum qcow2_type {
    QCOW2_UNALLOCATED,      /* ask the backing file */
    QCOW2_UNALLOC_HOST,     /* the same, in a cluster that has its host cluster */
    QCOW2_NORMAL,
    QCOW2_ZERO_PLAIN,       /* reads as zeros, no host cluster */
    QCOW2_ZERO_ALLOC,       /* reads as zeros, host cluster kept */
    QCOW2_DEFLATED,         /* compressed, either type */
    QCOW2_INVALID,          /* the bitmap contradicts itself, or the entry */
};

static inline bool qcow2_external(const struct qcow2 *q)
{
    return q->h.incompatible & QCOW2_INC_DATA_FILE;
}

static inline enum qcow2_type qcow2_entry_type(const struct qcow2 *q, uint64_t entry)
{
    if (entry & QCOW2_COMPRESSED) {
        return QCOW2_DEFLATED;
    }
    if (entry & QCOW2_ZERO && q->h.version >= 3 && !q->wide) {
        return entry & QCOW2_OFFSET_MASK ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
    }
    /* Offset 0 is a place like any other in an external data file. */
    return entry & QCOW2_OFFSET_MASK || (qcow2_external(q) && entry & QCOW2_COPIED)
               ? QCOW2_NORMAL : QCOW2_UNALLOCATED;
}

/* Is there a host cluster that holds plain data? */
static inline bool qcow2_has_host(const struct qcow2 *q, uint64_t entry)
{
    enum qcow2_type t = qcow2_entry_type(q, entry);
    return t == QCOW2_NORMAL || t == QCOW2_ZERO_ALLOC;
}

enum qcow2_type qcow2_sub_type_wide(const struct qcow2 *q, uint64_t entry, uint64_t map,
                                    unsigned sc, unsigned *run);
/* What subcluster sc of a cluster is; *run: how many from it on are. */
static inline enum qcow2_type qcow2_sub_type(const struct qcow2 *q, uint64_t entry, uint64_t map,
                                             unsigned sc, unsigned *run)
{
    if (__builtin_expect(q->wide, 0)) {
        return qcow2_sub_type_wide(q, entry, map, sc, run);
    }
    *run = 1;
    return qcow2_entry_type(q, entry);
}

static inline uint64_t qcow2_clusters(const struct qcow2 *q, uint64_t bytes)
{
    return (bytes >> q->h.cluster_bits) + !!(bytes & (q->cluster_size - 1));
}

/* The refcount block that counts a host cluster, and where in it. */
static inline uint64_t qcow2_block_of(const struct qcow2 *q, uint64_t cluster)
{
    return cluster >> q->refblock_bits;
}

static inline uint64_t qcow2_in_block(const struct qcow2 *q, uint64_t cluster)
{
    return cluster & ((1ull << q->refblock_bits) - 1);
}

/* Offset and length in the file of a compressed cluster's data (up to the end of
 * its last 512-byte sector, which may lie past the end of the file). */
static inline void qcow2_compressed_span(const struct qcow2 *q, uint64_t entry, uint64_t *off,
                                         uint64_t *len)
{
    unsigned shift = 62 - (q->h.cluster_bits - 8);
    *off = entry & ((1ull << shift) - 1);
    uint64_t sectors = ((entry & (QCOW2_COMPRESSED - 1)) >> shift) + 1;
    *len = sectors * 512 - (*off & 511);
}

/* The length of a text in the header: some writers count the NULs behind it. */
static inline uint32_t qcow2_text_length(const uint8_t *text, uint32_t len)
{
    while (len && !text[len - 1]) {
        len--;
    }
    return len;
}

/* ---- header.c ------------------------------------------------------------------ */

/* The fixed header, QH_FULL bytes, as it is: nothing is checked. */
void qcow2_header_decode(const uint8_t *b, struct qcow2_header *h);
/* Read and check the header of q->file into q->h, backing names into q->n. Fiber. */
int qcow2_header_read(struct qcow2 *q, struct blk_error *e);
/* Change fields of the fixed header from q->h and make it durable: one aligned
 * 512-byte write.  Extensions and names stay. Fiber. */
int qcow2_header_update(struct qcow2 *q);
/* The fixed header's fields again, after check changed them (they were checked). */
int qcow2_header_reload(struct qcow2 *q);
/* Build the complete header area (fixed header, extensions, backing name) into buf
 * of len bytes, setting q->h.backing_offset; -ENOSPC if it does not fit. */
int qcow2_header_build(struct qcow2 *q, uint8_t *buf, size_t len);
/* The feature name table of images we make: what other programs print when they
 * lack a feature. */
struct qcow2_feature {
    uint8_t type, bit;
    char name[46];
};
#define QCOW2_FEATURES 8
extern const struct qcow2_feature qcow2_feature_table[QCOW2_FEATURES];
/* Small clusters have no room for it beside a backing file's name. */
static inline bool qcow2_names_features(const struct qcow2_header *h)
{
    return h->version >= 3 && h->cluster_bits > 12;
}

/* Make the header area what q holds now (extensions, names, fields), durably and so
 * that after a crash the image has the old one or the new one. -ENOSPC. Fiber. */
int qcow2_header_rewrite(struct qcow2 *q);

/* ---- facts.c ------------------------------------------------------------------- */

void qcow2_facts(struct blk_node *file, struct blk_facts *f);

/* ---- corrupt.c ------------------------------------------------------------------- */

/* Found damage that a write would make worse: report once, set the corrupt bit
 * durably (writable images), refuse further requests.  Returns -EIO. Fiber. */
int qcow2_mark_corrupt(struct qcow2 *q, const char *fmt, ...) BLK_PRINTF(2, 3);
/* Found damage that can be lived with: report once, change nothing.  Returns -EIO. */
int qcow2_report_corrupt(struct qcow2 *q, const char *fmt, ...) BLK_PRINTF(2, 3);
/* Which metadata QEMU says lies at a place (not all that is known here), or NULL; l2: also
 * active L2 tables. Fiber. */
const char *qcow2_meta_kind(struct qcow2 *q, uint64_t offset, bool l2);
/* Mark corrupt: a write or an allocation would have hit that metadata; the L1 entry's offset
 * is unaligned; an L2 entry is nonsense, found when reading or writing at guest. Fiber. */
int qcow2_write_prevented(struct qcow2 *q, uint64_t offset, bool l2);
int qcow2_l1_bad(struct qcow2 *q, uint64_t l1);
int qcow2_entry_bad(struct qcow2 *q, uint64_t entry, uint64_t map, uint64_t guest, bool write);

/* ---- cache.c ---------------------------------------------------------------------- */

int qcow2_cache_init(struct qcow2 *q, uint64_t l2_bytes, uint64_t refcount_bytes);
void qcow2_cache_free(struct qcow2 *q);
/* Forget everything (nothing may be dirty or pinned). */
void qcow2_cache_drop(struct qcow2 *q);
/* The slice with this guest slice number if it is in memory. */
struct qcow2_slice *qcow2_slice_peek(struct qcow2 *q, uint64_t index);
/* Load (or find) and pin. The L1 entry must be non-zero. Fiber. */
int qcow2_slice_get(struct qcow2 *q, uint64_t index, struct qcow2_slice **out);
static inline void qcow2_slice_put(struct qcow2_slice *s) { s->pins--; }
void qcow2_slice_dirty(struct qcow2 *q, struct qcow2_slice *s);
/* Refcount block number index (reft[index] != 0), pinned. Fiber. */
int qcow2_block_get(struct qcow2 *q, uint64_t index, struct qcow2_block **out);
/* A new, zeroed block in memory for reft[index], pinned and dirty. */
int qcow2_block_new(struct qcow2 *q, uint64_t index, struct qcow2_block **out);
static inline void qcow2_block_put(struct qcow2_block *b) { b->pins--; }
void qcow2_block_dirty(struct qcow2 *q, struct qcow2_block *b);

/* ---- l2.c --------------------------------------------------------------------------- */

static inline uint64_t qcow2_slice_index(const struct qcow2 *q, uint64_t guest)
{
    return guest >> (q->h.cluster_bits + q->slice_bits);
}
static inline unsigned qcow2_sub_index(const struct qcow2 *q, uint64_t guest)
{
    return (unsigned)(guest >> q->sub_shift) & ((1u << q->sub_bits) - 1);
}
static inline unsigned qcow2_entry_index(const struct qcow2 *q, uint64_t guest)
{
    return (unsigned)(guest >> q->h.cluster_bits) & ((1u << q->slice_bits) - 1);
}
/* An L2 entry in a table as on disk: its bytes, its first word, and its second, the
 * subclusters' bitmap (0 without extended L2). Host order. */
static inline unsigned qcow2_entry_bytes(const struct qcow2 *q)
{
    return 8u << q->wide;
}
static inline uint64_t qcow2_entry_get(const struct qcow2 *q, const void *table, unsigned i)
{
    return be64((const uint64_t *)table + ((size_t)i << q->wide));
}
static inline void qcow2_entry_put(const struct qcow2 *q, void *table, unsigned i, uint64_t entry)
{
    put_be64((uint64_t *)table + ((size_t)i << q->wide), entry);
}
static inline uint64_t qcow2_bitmap_get(const struct qcow2 *q, const void *table, unsigned i)
{
    return q->wide ? be64((const uint64_t *)table + 2 * (size_t)i + 1) : 0;
}
static inline void qcow2_bitmap_put(const struct qcow2 *q, void *table, unsigned i, uint64_t map)
{
    if (q->wide) {
        put_be64((uint64_t *)table + 2 * (size_t)i + 1, map);
    }
}
static inline size_t qcow2_slice_bytes(const struct qcow2 *q)
{
    return (size_t)qcow2_entry_bytes(q) << q->slice_bits;
}
/* L1 index of a guest slice number. */
static inline uint64_t qcow2_l1_index(const struct qcow2 *q, uint64_t slice)
{
    return slice >> (q->l2_bits - q->slice_bits);
}
/* Load and check the L1 table. Fiber. */
int qcow2_l1_load(struct qcow2 *q, struct blk_error *e);
/* Slice for reading: *out NULL when there is no L2 table. Pinned. Fiber. */
int qcow2_l2_read(struct qcow2 *q, uint64_t guest, struct qcow2_slice **out);
/* Slice for changing: makes or un-shares the L2 table. Pinned. Fiber. */
int qcow2_l2_write(struct qcow2 *q, uint64_t guest, struct qcow2_slice **out);
void qcow2_l1_set(struct qcow2 *q, uint64_t index, uint64_t entry);

/* ---- refcount.c ----------------------------------------------------------------------- */

int qcow2_reft_load(struct qcow2 *q, struct blk_error *e);
uint64_t qcow2_refcount_at(const struct qcow2 *q, const uint8_t *block, uint64_t i);
void qcow2_refcount_put(const struct qcow2 *q, uint8_t *block, uint64_t i, uint64_t v);
static inline uint64_t qcow2_refcount_max(const struct qcow2 *q)
{
    return q->refcount_bits == 64 ? UINT64_MAX : (1ull << q->refcount_bits) - 1;
}
int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *out);
/* Up to want clusters in one run, counted once each in memory.  exact: all of
 * them, whatever the run's place.  Fiber. */
int qcow2_alloc(struct qcow2 *q, uint64_t want, bool exact, struct qcow2_space *out);
/* The first cluster of the n in one run that it would give; nothing is counted. Fiber. */
int qcow2_find_free(struct qcow2 *q, uint64_t n, uint64_t *start);
/* One more, or at once one fewer (undoing that), reference to each; -EINVAL: the count
 * has no room, -EIO: it was 0. Counted in memory, durable with the next flush. Fiber. */
int qcow2_count_shift(struct qcow2 *q, uint64_t offset, uint64_t clusters, bool up);
/* n clusters in one run behind everything in use, counted; refcount structures that reach over
 * them and `more` clusters lie in front, the table too: it moves with the next flush. Fiber. */
int qcow2_alloc_area(struct qcow2 *q, uint64_t n, uint64_t more, uint64_t *offset);
/* Give back what qcow2_alloc() gave and nothing points at yet. Fiber. */
int qcow2_unalloc(struct qcow2 *q, uint64_t offset, uint64_t clusters);
/* The first run of n free clusters that ends at or before below, counted count times each
 * in memory; *out 0: there is none.  *hint: no single free cluster is below.  Space that
 * is free is taken at its word: only after a check. Fiber. */
int qcow2_take_free(struct qcow2 *q, uint64_t *hint, uint64_t below, uint64_t n, uint64_t count,
                    uint64_t *out);
/* The next flush writes refcount block number index at this place, then the table's
 * entry; 0: there is no such block any more (all its counts are 0).  The old place keeps
 * its count. Fiber. */
int qcow2_block_move(struct qcow2 *q, uint64_t index, uint64_t offset);
/* The pointer to these was removed in memory: the count goes down once that is
 * on disk.  Never fails for lack of memory: it then leaks. */
void qcow2_free_later(struct qcow2 *q, uint64_t offset, uint64_t clusters);
/* The same for the host clusters of an L2 entry of any type. */
void qcow2_free_entry_later(struct qcow2 *q, uint64_t entry);
/* Places for compressed data, at byte granularity: each piece directly behind the
 * one before where that can be, in a host cluster counted once for each piece in
 * it.  len < cluster_size, offset is the result.  All or none.  Fiber. */
struct qcow2_packed {
    uint64_t offset, len;
};
int qcow2_alloc_packed(struct qcow2 *q, struct qcow2_packed *p, uint64_t n);
void qcow2_free_packed_later(struct qcow2 *q, const struct qcow2_packed *p);
/* flush.c: lower the counts of a list, punch the holes, free the list. Fiber. */
int qcow2_free_now(struct qcow2 *q, struct qcow2_run *list);
void qcow2_sets_free(struct qcow2 *q);
/* Metadata set for overlap checks: build (fiber), mark, test. */
int qcow2_meta_init(struct qcow2 *q);
int qcow2_meta_add(struct qcow2 *q, uint64_t offset, uint64_t clusters);
void qcow2_meta_del(struct qcow2 *q, uint64_t offset, uint64_t clusters);
static inline uint64_t qcow2_set_slot(const struct qcow2_set *t, uint64_t key)
{
    return (key * 0x9e3779b97f4a7c15ull) >> (64 - t->bits);
}
int qcow2_set_add(struct qcow2_set *t, uint64_t cluster);
static inline bool qcow2_set_has(const struct qcow2_set *t, uint64_t cluster)
{
    uint64_t key = cluster + 1, mask = (1ull << t->bits) - 1;
    if (!t->slot) {
        return false;
    }
    for (uint64_t i = qcow2_set_slot(t, key); t->slot[i]; i = (i + 1) & mask) {
        if (t->slot[i] == key) {
            return true;
        }
    }
    return false;
}
static inline bool qcow2_meta_hit(const struct qcow2 *q, uint64_t offset)
{
    return qcow2_set_has(&q->meta, offset >> q->h.cluster_bits);
}

/* ---- flush.c ----------------------------------------------------------------------------- */

/* Everything completed before the call is durable after it. Fiber. */
int qcow2_flush(struct qcow2 *q);
/* Does a flush leave the counts in memory, as the image is marked dirty? */
static inline bool qcow2_counts_wait(const struct qcow2 *q)
{
    return q->lazy && q->h.incompatible & QCOW2_INC_DIRTY && !q->settling &&
           q->ndirty_blocks < q->max_blocks / 2;
}
/* Would a flush only sync? */
static inline bool qcow2_clean(const struct qcow2 *q)
{
    return !q->dirty_slices && !q->l1_any_dirty && !q->to_free &&
           ((!q->dirty_blocks && q->reft_dirty_first >= q->reft_dirty_end) || qcow2_counts_wait(q));
}
/* Flush until nothing is left to do, counts included; then the image is marked dirty no more. */
int qcow2_settle(struct qcow2 *q);
/* Write the counts as they are now (with lazy refcounts, when an L2 table got its place). */
int qcow2_counts_write(struct qcow2 *q);
/* Flush when too much is dirty (bounds memory). Fiber. */
int qcow2_flush_if_much(struct qcow2 *q);

/* ---- snapshot.c ------------------------------------------------------------------------- */

struct qcow2_snapshot {
    uint64_t l1_offset, size, vm_state_size, vm_clock, icount;
    uint32_t l1_size, date_sec, date_nsec;
    uint32_t extra;                         /* bytes of extra data in the file */
    char *id, *name;
    uint64_t at;                            /* of the record in the file */
    uint64_t len;                           /* multiple of 8 */
};
/* Read and check the snapshot table: malloc'd array of q->h.nb_snapshots.  *bytes:
 * length of the table.  Fiber. */
int qcow2_snapshots_read(struct qcow2 *q, struct qcow2_snapshot **out, uint64_t *bytes,
                         struct blk_error *e);
/* The same, as far as the caps reach: *count snapshots, any amount of extra data. */
int qcow2_snapshots_salvage(struct qcow2 *q, struct qcow2_snapshot **out, uint32_t *count,
                            uint64_t *bytes, struct blk_error *e);
/* -EFBIG, with that text and the hint how to be rid of so many snapshots. */
int qcow2_snapshots_over(struct blk_error *e, const char *what, uint32_t over);
/* Refuse what QEMU refuses to open: too much in the snapshot table. Fiber. */
int qcow2_snapshots_usable(struct qcow2 *q, struct blk_error *e);
void qcow2_snapshots_free(struct qcow2 *q, struct qcow2_snapshot *s);
/* QEMU's SnapshotInfo of each, in order; a new array. */
int qcow2_snapshots_info(struct qcow2 *q, json_t **out, struct blk_error *e);
/* The driver's snapshot op (snapshot_ops.c). Fiber; nothing in flight, nothing dirty. */
int qcow2_snapshot(struct blk_node *n, enum blk_snapshot_op op, const char *name,
                   struct blk_error *e);
int qcow2_snapshot_load(struct blk_node *n, const char *id, const char *name,
                        struct blk_error *e);
/* Write the table anew with what can be kept of it: whole 64-bit fields, extra data and
 * snapshots within the caps.  The refcounts are right. Fiber; nothing dirty. */
int qcow2_snapshots_mend(struct qcow2 *q, struct blk_error *e);
/* The table and the snapshots' L1 tables are metadata. Fiber. */
int qcow2_snapshots_mark(struct qcow2 *q);

/* ---- requests ------------------------------------------------------------------------------ */

void qcow2_submit(struct blk_node *n, struct blk_req *req);
int qcow2_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st);
int qcow2_read_fiber(struct blk_req *req);
int qcow2_write_fiber(struct blk_req *req);
/* The same without regard to the request's flags. */
int qcow2_write_plain(struct blk_req *req);
bool qcow2_can_copy(const struct blk_node *n, const struct blk_node *from);
/* deflate.c: whole clusters, the image's last one may be partial; else -EINVAL. Fiber. */
int qcow2_write_compressed(struct blk_req *req);
int qcow2_set_compression_level(struct qcow2 *q, uint64_t level, struct blk_error *e);
/* Is an L2 entry that is to be replaced or written through sane?  Marks the image
 * corrupt if not.  Fiber. */
int qcow2_entry_check(struct qcow2 *q, uint64_t entry, uint64_t map, uint64_t guest);
/* Zeros as data in [off, end), at most a cluster. Fiber. */
int qcow2_write_zeros(struct qcow2 *q, uint64_t off, uint64_t end);
int qcow2_zero_fiber(struct blk_req *req);
int qcow2_discard_fiber(struct blk_req *req);
/* The driver's zero_part. Fiber. */
int qcow2_zero_part(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
/* Map the guest range [from, to) to host clusters without writing data; host_end: where the
 * last new one in the file ends; tail: where the guest's `to` is behind its last cluster's
 * bytes, 0 if that was mapped before. Fiber. */
int qcow2_map_range(struct qcow2 *q, uint64_t from, uint64_t to, uint64_t *host_end,
                    uint64_t *tail);
/* Are falloc and full one run of zeros behind everything, so that none need be written? */
bool qcow2_preallocates_area(const struct qcow2 *q, enum blk_prealloc p);
/* Map what is new of an image that grew from `from` to `to` bytes (preallocation). The image is
 * clean. Fiber. */
int qcow2_preallocate(struct qcow2 *q, uint64_t from, uint64_t to, enum blk_prealloc p,
                      struct blk_error *e);
/* Unmap guest clusters [first, end).  tables: make the L2 tables for them that are not there.
 * Fiber. */
int qcow2_unmap(struct qcow2 *q, uint64_t first, uint64_t end, bool tables);
/* The subclusters that the guest range touches. */
static inline struct qcow2_busy qcow2_busy_range(const struct qcow2 *q, uint64_t off, uint64_t len)
{
    return (struct qcow2_busy){ off >> q->sub_shift, ((off + len - 1) >> q->sub_shift) + 1, NULL };
}
/* Wait until no busy range overlaps, then register b. Fiber. */
void qcow2_busy_enter(struct qcow2 *q, struct qcow2_busy *b);
bool qcow2_busy_hit(const struct qcow2 *q, uint64_t first, uint64_t end);
void qcow2_busy_leave(struct qcow2 *q, struct qcow2_busy *b);
struct qcow2_inflated *qcow2_inflated_new(const struct qcow2 *q);
void qcow2_inflated_free(struct qcow2_inflated *c);
/* Content of the compressed cluster, if it is in memory. */
const uint8_t *qcow2_inflated_peek(struct qcow2 *q, uint64_t entry);
/* Forget what is in memory for clusters whose host space is freed. */
void qcow2_inflated_drop(struct qcow2 *q, uint64_t entry);
/* Copy len bytes at in_cluster of the compressed cluster into iov at pos. Fiber. */
int qcow2_read_compressed(struct qcow2 *q, uint64_t entry, uint64_t in_cluster,
                          const struct iovec *iov, int cnt, uint64_t pos, uint64_t len);

/* n whole compressed clusters in a row, straight into buf.  Waits only after it has
 * started all reads.  Fiber. */
int qcow2_read_compressed_run(struct qcow2 *q, const uint64_t *entry, uint64_t n, void *buf);

/* ---- datafile.c ------------------------------------------------------------------------------ */

/* Open what holds guest data, taking "data-file.*" from o. Fiber. */
int qcow2_data_open(struct qcow2 *q, struct blk_opts *o, struct blk_error *e);
/* With an external data file: does an entry say what it has to? */
bool qcow2_external_sane(const struct qcow2 *q, uint64_t entry, uint64_t guest);
/* External data files: before guest clusters become zeros or unmapped (unmap: their
 * space may go); and before some are mapped that must read as zeros. Fiber. */
int qcow2_data_wipe(struct qcow2 *q, uint64_t off, uint64_t len, bool unmap);
int qcow2_data_clear(struct qcow2 *q, uint64_t off, uint64_t len);
/* Give the data file the image's size. Fiber. */
int qcow2_data_resize(struct qcow2 *q, uint64_t size, enum blk_prealloc p, struct blk_error *e);
/* amend: the data file is to be opened by this name from now on; "": none. Fiber. */
int qcow2_set_data_name(struct qcow2 *q, const char *name, struct blk_error *e);

/* ---- crypt.c ----------------------------------------------------------------------------------- */

/* Read and check what the image says of encryption, take "encrypt.*" from o and, unless
 * only metadata is wanted, the key; LUKS changes q->data, which is set. Fiber. */
int qcow2_crypt_open(struct qcow2 *q, struct blk_opts *o, struct blk_error *e);
void qcow2_crypt_free(struct qcow2 *q);
/* A request of an encrypted image: false: take it as any other. */
bool qcow2_crypt_submit(struct qcow2 *q, struct blk_req *req);
/* Must all of its requests but flushes go that way, and the way itself. Fiber. */
bool qcow2_crypt_own(const struct qcow2 *q);
int qcow2_aes_fiber(struct blk_req *req);
int qcow2_crypt_mark(struct qcow2 *q);              /* its header is metadata */
void qcow2_crypt_info(struct qcow2 *q, json_t *specific);
int qcow2_crypt_amend(struct qcow2 *q, struct blk_opts *o, bool force, struct blk_error *e);
/* Creation: the header's crypt_method and, for LUKS, what makes a header of _bytes() in
 * the file at offset; *ext names it, the caller's, malloc'd.  Free *out with free(). */
struct qcow2_crypt_create;
int qcow2_crypt_create_options(struct blk_opts *o, bool need_key, uint32_t *method,
                               struct qcow2_crypt_create **out, struct blk_error *e);
uint64_t qcow2_crypt_create_bytes(const struct qcow2_crypt_create *c);
int qcow2_crypt_create_write(struct qcow2_crypt_create *c, struct blk_node *file, uint64_t offset,
                             struct qcow2_ext **ext, struct blk_error *e);

/* ---- image operations ------------------------------------------------------------------------- */

int qcow2_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o, struct blk_error *e);
/* For stream.c: the creation options, checked, as a header without places; the header's
 * cluster. */
int qcow2_create_plan(struct blk_opts *o, struct qcow2_header *h, struct blk_error *e);
int qcow2_create_header(const struct qcow2_header *h, uint8_t *buf, struct blk_error *e);
/* stream.c: the driver's stream. */
int qcow2_stream(struct blk_opts *o, const struct blk_stream *s, struct blk_error *e);
int qcow2_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                   struct blk_error *e);
/* The driver's make_empty and (header.c's invariants) change_backing. Fiber. */
int qcow2_cut_file(struct qcow2 *q);        /* end it with the last counted cluster */
int qcow2_used_end(struct qcow2 *q, uint64_t *c);   /* c: the one behind that */
/* Refcount blocks for areas behind everything, which count nothing any more, go. The image is
 * clean. Fiber. */
int qcow2_drop_empty_blocks(struct qcow2 *q);
/* Move to a larger L1 table, of l1_size entries. The image is clean. Fiber. */
int qcow2_l1_grow(struct qcow2 *q, uint32_t l1_size);
/* vmstate.c: where it starts, as guest offsets go; the driver's vm_state. */
uint64_t qcow2_vm_state_offset(const struct qcow2 *q);
int qcow2_vm_state(struct blk_node *n, bool write, uint64_t off, const struct iovec *iov, int cnt,
                   uint64_t len);
/* compact.c: the driver's compact. */
int qcow2_compact(struct blk_node *n, struct blk_compact *c, struct blk_error *e);
int qcow2_make_empty(struct blk_node *n, struct blk_error *e);
int qcow2_change_backing(struct blk_node *n, const char *name, const char *format,
                         struct blk_error *e);
extern const struct blk_driver blk_qcow2;
int qcow2_measure(struct blk_loop *l, struct blk_node *src, struct blk_opts *o,
                  struct blk_measure *out, struct blk_error *e);
extern const struct blk_option_desc qcow2_create_opts[];
extern const struct blk_option_desc qcow2_amend_opts[];
int qcow2_amend(struct blk_node *n, struct blk_opts *o, const struct blk_amend *ctl,
                struct blk_error *e);
/* Everything of the file again, after it was changed below; nothing may be dirty. Fiber. */
int qcow2_reload(struct qcow2 *q, struct blk_error *e);

#endif
