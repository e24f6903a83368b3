/*
 * convert.h - the parts of platter-img convert (and dd): what the source looks
 * like (convert_source.c) and moving it (convert_copy.c).
 *
 * Invariants
 *  - The sources lie end to end in one space of c->total bytes; the target has
 *    the same offsets.  A source reads as zeros past its node's end.
 *  - A chunk is a run of segments in ascending order that no other chunk holds;
 *    its data fits one buffer of c->buf_size bytes.  Memory in use is at most
 *    c->workers buffers, however large the image.
 *  - Writes are submitted in ascending order unless out_of_order, so that a
 *    format that allocates as it goes lays the image out in order; they complete
 *    in any order and several are in flight.
 *  - With compress, chunks are whole clusters of the target (the last one ends with
 *    it), and neighbouring DATA segments are neighbours in the buffer.
 *  - With offload, DATA segments that lie in storage from which the target's storage can
 *    copy say where; what it refuses is read and written, from then on everything.
 *  - With a journal, everything before the lowest chunk in hand is complete when a
 *    checkpoint flushes the target, and only then the journal says so.
 *  - Everything here runs in fibers of one loop.
 */
#ifndef PLATTER_IMG_CONVERT_H
#define PLATTER_IMG_CONVERT_H

#include "block/block.h"

#define CONVERT_SECTOR      512u
#define CONVERT_SPARSE      4096u   /* -S, where it is not given */
#define CONVERT_BUF_MIN     (2u << 20)
#define CONVERT_BUF_MAX     (16u << 20)
#define CONVERT_WORKERS_MAX 16u
#define CONVERT_SEGS        64u         /* segments a chunk, requests a batch */

enum convert_kind {
    CONVERT_DATA,       /* to be read and written */
    CONVERT_ZERO,       /* reads as zeros */
    CONVERT_BACKING,    /* the target's backing file has it already */
};

struct convert_source {
    struct blk_node *node;
    uint64_t skip;              /* where in the node it starts */
    uint64_t start;             /* in the space of all sources */
    uint64_t length;
    uint64_t align;             /* of its clusters; 0: none */
};

/* Where the first error was met; at is an offset in the target's space, of the
 * segment, except MAP: in the source's node. */
struct convert_failure {
    int err;                    /* -errno; 0: none */
    enum convert_step { CONVERT_MAP, CONVERT_READ, CONVERT_WRITE, CONVERT_JOURNAL } step;
    uint64_t at;
};

struct convert_seg {
    enum convert_kind kind;
    uint64_t offset, length;    /* in the target */
    const struct convert_source *src;
    size_t buf;                 /* DATA: where in the buffer; else unused */
    bool fill;                  /* DATA without a source: zeros written out */
    struct blk_node *host;      /* DATA: the storage may copy it from here, or NULL */
    uint64_t host_offset;
};

struct convert_chunk {
    uint64_t ticket;            /* order of chunks */
    uint64_t offset, length;    /* whole range */
    size_t data;                /* bytes of the buffer in use */
    unsigned nsegs;             /* 0: no chunks are left */
    struct convert_seg segs[CONVERT_SEGS];
};

struct digest_stream;
struct journal;

struct convert {
    /* Set by the caller. */
    struct convert_source *src;
    size_t nsrc;
    struct blk_node *dst;       /* NULL: read only, for a digest */
    uint64_t total;             /* bytes */
    bool has_backing;           /* target has one: only the top layer is copied */
    uint64_t backing_size;      /* beyond it zeros need not be written; UINT64_MAX: unknown */
    bool zero_init;             /* target is known to read as zeros */
    bool out_of_order;          /* -W */
    bool one_at_a_time;         /* no write begins before the last has ended */
    bool salvage, quiet;
    bool offload;               /* -C: the storage copies, until it refuses */
    bool compress;              /* write whole clusters, compressed; cluster is known */
    uint32_t sparse;            /* zeros of this length or more are not written; 0: all are */
    uint32_t cluster;           /* target's cluster size, 0: none; a power of two */
    uint64_t block;             /* what the target allocates at once; 0: unknown */
    bool whole_clusters;        /* the first write into one allocates it, and none is there yet */
    unsigned workers;           /* -m; 0: convert_copy() chooses */
    uint64_t rate;              /* bytes a second, 0: no limit */
    size_t buf_size;            /* multiple of 4096, at least cluster */
    struct digest_stream *digest;   /* of what is copied, or NULL; not with has_backing */
    struct journal *journal;    /* of --resume, or NULL */
    uint64_t checkpoint;        /* bytes between its entries */
    uint64_t work;              /* what progress counts up to; 0: total */

    /* convert_source.c's own. */
    struct co_mutex lock;
    uint64_t pos, ext_end;      /* next byte to hand out; the extent known ends there */
    enum convert_kind ext_kind;
    const struct convert_source *ext_src;
    struct blk_node *ext_host;  /* as a segment's host ... */
    uint64_t ext_shift;         /* ... whose offsets are the target's plus this, modulo 2^64 */
    uint64_t next_ticket;

    /* convert_copy.c's own. */
    uint32_t grain;             /* zero detection looks at pieces of this size */
    struct convert_failure failure;
    unsigned running;
    uint64_t turn;              /* ticket whose writes may be submitted */
    uint64_t fed;               /* ticket that is next in the digest */
    struct co_queue turns, feeds, ended;
    uint64_t done;              /* bytes finished, for progress: starts at what came before */
    uint64_t in_hand[CONVERT_WORKERS_MAX];  /* no chunk of this worker is below; UINT64_MAX */
    uint64_t saved;             /* the journal says so */
    bool saving;
    uint64_t rate_at;           /* when the rate allows the next write, ns */
};

/* The next chunk in order, after waiting for the map of the source.  -errno: the
 * map could not be read, see c->failure.  Fiber. */
int convert_next(struct convert *c, struct convert_chunk *ch);

/* Move everything. 0 or -errno: c->failure has the first error.  Fiber. */
int convert_copy(struct convert *c);

/* Bytes [at, at + len) of the space of all sources, zeros where a source ends before its
 * length does.  Fiber. */
int convert_read_sources(const struct convert *c, uint64_t at, void *buf, size_t len);

/* What there is at `at`, and for how many bytes; backing files count.  Fiber. */
int convert_map_sources(const struct convert *c, uint64_t at, bool *data, uint64_t *len);

/* Write everything to standard output as an image of this format, strictly forward
 * (convert_stream.c).  The message is printed.  Fiber. */
int convert_stream(struct convert *c, const char *format, const char *options);

/* Say what went wrong, in qemu-img's words. */
void convert_report(const struct convert_failure *f);

/* Keep the first error. */
static inline int convert_fail(struct convert *c, int err, enum convert_step step, uint64_t at)
{
    if (!c->failure.err) {
        c->failure = (struct convert_failure) { err, step, at };
    }
    return err;
}
static inline uint64_t convert_src_offset(const struct convert_seg *s)
{
    return s->offset - s->src->start + s->src->skip;
}

#endif
