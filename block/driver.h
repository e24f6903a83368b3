/*
 * driver.h - what formats and protocols implement, and what the core gives them.
 * Only block/, formats/ and protocols/ include this.
 *
 * What the core promises a driver's submit()
 *  - called on the owner thread; the request is valid: op supported (NATIVE),
 *    writable if it writes, length > 0 (except FLUSH), aligned to
 *    limits.req_align and its buffers to mem_align, not larger than the limits,
 *    READ within size, WRITE within size unless can_grow, DISCARD/WRITE_ZEROES
 *    within size.  Drivers assert, they do not re-check.
 *  - COPY only if can_copy() says so; from_offset is aligned as offset is, and the
 *    range lies within from.  Nobody changes it meanwhile.
 *  - FUA only if caps say NATIVE (else the core flushes after the write).
 * What submit() promises the core
 *  - it never blocks and completes the request exactly once, by blk_complete(),
 *    blk_complete_remote(), blk_forward() or blk_req_fiber().
 */
#ifndef PLATTER_DRIVER_H
#define PLATTER_DRIVER_H

#include "block/block.h"

struct blk_driver;

/* What a locked file is to the format above: the data of a raw image, which others may
 * write; guest data that a format places; a format's own metadata. */
enum blk_lock_use { BLK_LOCK_RAW, BLK_LOCK_DATA, BLK_LOCK_FORMAT };

/* Further storage of an image that is more than one file: an extent. */
struct blk_child {
    char name[24];                  /* as QEMU calls it: "extents.0" */
    struct blk_node *node;
};

struct blk_node {
    const struct blk_driver *drv;
    void *state;                    /* driver's, allocated in open, freed in close */
    struct blk_loop *loop;
    char *filename;                 /* to open it again; may hold secrets */
    char *shown;                    /* redacted, for messages */
    unsigned oflags;                /* BLK_O_* */
    bool read_only;

    /* Filled by open(). */
    uint64_t size;                  /* bytes; protocols that grow: the core raises it */
    bool can_grow;                  /* writes past size extend it */
    bool starts_as_zeros;           /* space past size reads as zeros once grown */
    enum blk_cap can_zero, can_discard, can_fua;
    bool zero_may_be_slow;          /* NATIVE zeroes write data: FAST_ZERO -> -ENOTSUP */
    struct blk_limits limits;

    /* Children, owned; closed by the core after the driver's close(). */
    struct blk_node *file, *data_file, *backing;
    struct blk_child *more;         /* nmore of them, see blk_open_more() */
    unsigned nmore;
    struct blk_chainmap *chainmap;  /* merged map of n's own chain, or NULL */
    char *backing_urls;             /* protocols names inside images may use */

    /* Formats: clusters, and the granularity of the mapping (cluster_size if it is 0);
     * 0 if there are none. */
    uint32_t cluster_size, mapping_size;
    /* Formats: the backing file named in the image; the core opens it after
     * open() returns (a loop, not a recursion).  malloc'd, NULL: none. */
    char *backing_name, *backing_format;

    /* The core's own. */
    char *identity;                 /* of the storage, once asked for */
    struct blk_node *parent;        /* overlay this is the backing of, or NULL */
    struct blk_opts *given;         /* a backing node's options from the user, or NULL */
    bool below_writable;            /* a node further down the chain is written to */
    bool guessed_raw;               /* format probing found nothing */
    uint64_t inflight[2];           /* by epoch parity, see blk_epoch_wait() */
    unsigned epoch, drained;
    struct co_queue idle;
    struct blk_serial *serial;      /* read-modify-writes in progress */
    struct blk_hop *writes;         /* in flight, where limits.req_align > 1 */
    struct co_queue serial_q;
    int flush_error;                /* sticky */
    struct blk_stats *stats;        /* NULL until first use */
};

struct blk_driver {
    const char *name;
    bool protocol;
    uint32_t merge;                 /* protocols: reads of at most half of this that follow
                                       each other come as one of up to this many bytes (and
                                       max_transfer); 0: not.  See block/merge.c */
    bool compresses;                /* takes BLK_REQ_COMPRESSED; filters pass it on */
    bool filter;                    /* passes n->file through: status, truncate and length
                                       need not be there; see blk_filter_inherit() */
    bool keeps_writes;              /* filters: n->file is not written, it may be read-only */
    bool over_images;               /* filters: below may be an image of any format, with a
                                       backing chain, if its driver is said */
    const char *child;              /* filters: what options call n->file; NULL: "file" */
    const char *const *naming;      /* formats: options without which the image is another one,
                                       and so part of its name; NULL-terminated */
    bool backing;                   /* formats: an image may have a backing file */
    bool bitmaps;                   /* formats: QEMU keeps bitmaps there; see bitmap_has() */
    const char *const *schemes;     /* protocols and filters: URL schemes, NULL-terminated */
    bool paths;                     /* protocols: names are paths; "NAME:" may be in front */
    /* Filters with a scheme: what the name says, as options; the name of the child CHILD
     * as "x-CHILD", of the second one as "x-image". */
    int (*parse_name)(const char *name, struct blk_opts *o, struct blk_error *e);
    const struct blk_option_desc *create_opts;  /* NULL: cannot create */
    const struct blk_option_desc *amend_opts;   /* NULL: cannot amend */

    /* Score 0..100 for the first len (<= 4096) bytes of a file. Formats. */
    int (*probe)(const uint8_t *buf, size_t len);
    const char *suffix;             /* of file names, where no probe() finds anything */

    /* Fiber.  Formats find n->file open (same flags).  Take what you know from
     * o (blk_opts_get*); the core rejects what is left.  Protocols find the name
     * in o's "filename" (URL or path) or in their own keys.  On failure free
     * what you made; the core closes children. */
    int (*open)(struct blk_node *n, struct blk_opts *o, struct blk_error *e);
    /* Fiber; protocols; NULL: no locks there.  Take the image locks that n->oflags
     * ask for.  The core calls it after the probe and before the open() of the format
     * above, once more for each layer of filters; a format's metadata others must not
     * write even if the user does not mind. */
    int (*lock)(struct blk_node *n, enum blk_lock_use use, struct blk_error *e);
    /* Fiber; after a drain.  Write back, release. Error: what was lost. */
    int (*close)(struct blk_node *n, struct blk_error *e);

    void (*submit)(struct blk_node *n, struct blk_req *req);
    /* Takes COPY of bytes of this protocol node (formats ask blk_can_copy() of their
     * storage).  NULL: of none. */
    bool (*can_copy)(const struct blk_node *n, const struct blk_node *from);

    /* Fiber; NULL: -ENOTSUP.  Zeroes for [off, off+len) inside one block of
     * limits.zero_align: if the rest of the block reads as zeros and no data has to be
     * written for it, all of it becomes zeros; else -ENOTSUP.  flags: the request's. */
    int (*zero_part)(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
    /* Fiber; protocols; NULL: nothing to do.  Best effort: space for [off, off+len), of which
     * nothing was ever written; it goes on reading as zeros.  The node may grow up to there. */
    void (*reserve)(struct blk_node *n, uint64_t off, uint64_t len);
    /* Fiber; NULL: everything is DATA at the same offset of n->file.  On entry
     * st->flags has BLK_ST_RECURSE if the caller wants to know about holes in the
     * storage of what is allocated; without it nothing need be found out for that. */
    int (*status)(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st);
    /* Fiber; NULL: -ENOTSUP.  Sets n->size. */
    int (*truncate)(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                    struct blk_error *e);
    int (*info)(struct blk_node *n, struct blk_info *out, struct blk_error *e);
    /* Fiber; formats that name other files or have features: add what the image in file
     * says.  What cannot be read is left out; open() is there to complain. */
    void (*facts)(struct blk_node *file, struct blk_facts *f);
    int (*check)(struct blk_node *n, struct blk_check *c, int fix, struct blk_error *e);
    int (*measure)(struct blk_loop *l, struct blk_node *src, struct blk_opts *o,
                   struct blk_measure *out, struct blk_error *e);
    /* Fiber; after a drain and a flush, the node is writable.  Formats that have
     * backing files: see blk_make_empty(), blk_change_backing(). */
    int (*make_empty)(struct blk_node *n, struct blk_error *e);
    int (*compact)(struct blk_node *n, struct blk_compact *c, struct blk_error *e);
    int (*change_backing)(struct blk_node *n, const char *name, const char *format,
                          struct blk_error *e);
    /* Fiber; after a drain, the node is writable: see blk_amend(). */
    int (*amend)(struct blk_node *n, struct blk_opts *o, const struct blk_amend *a,
                 struct blk_error *e);
    int (*snapshot)(struct blk_node *n, enum blk_snapshot_op op, const char *name,
                    struct blk_error *e);
    /* Fiber; n is read-only: see blk_snapshot_load(). */
    int (*snapshot_load)(struct blk_node *n, const char *id, const char *name,
                         struct blk_error *e);
    /* Fiber; n is drained: see blk_vm_state().  NULL: n->file is asked. */
    int (*vm_state)(struct blk_node *n, bool write, uint64_t off, const struct iovec *iov,
                    int cnt, uint64_t len);
    /* See blk_debug(); and what happened above, as QEMU's blkdebug calls it: blk_event(). */
    int (*debug)(struct blk_node *n, enum blk_debug_op op, const char *event, const char *tag);
    void (*event)(struct blk_node *n, const char *name);
    /* Formats that may have bitmaps, all or none: see blk_bitmap_change(), ..._merge(),
     * ..._at().  Fiber.  has: can this image?  NULL: all can. */
    bool (*bitmap_has)(struct blk_node *n);
    int (*bitmap_change)(struct blk_node *n, enum blk_bitmap_op op, const char *name,
                         uint64_t granularity, struct blk_error *e);
    int (*bitmap_merge)(struct blk_node *n, const char *name, struct blk_node *src,
                        const char *from, struct blk_error *e);
    bool (*bitmap_at)(struct blk_node *n, size_t i, struct blk_bitmap *out);
    int64_t (*allocated_size)(struct blk_node *n);
    int (*length)(struct blk_node *n, uint64_t *out);   /* protocols: fresh length */
    /* Protocols: a text that is equal for two nodes on the same storage
     * ("dev:ino"); what finds backing loops. NULL: the file name is compared. */
    int (*identity)(struct blk_node *n, char *buf, size_t len);

    bool preallocates;              /* "preallocation" is its own, with the storage's words */
    /* Formats; optional: refuse options before anything is touched.  Fiber. */
    int (*create_check)(struct blk_opts *o, struct blk_error *e);
    bool create_check_first;        /* even before the storage's name */
    /* Formats: write an empty image into file (open read-write, empty).
     * Protocols: create the storage ("size", "preallocation", ...), file NULL,
     * the name in o's "filename". Fiber. */
    int (*create)(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                  struct blk_error *e);
    /* Fiber; formats; NULL: cannot be written forward only.  See blk_stream(). */
    int (*stream)(struct blk_opts *o, const struct blk_stream *s, struct blk_error *e);
    /* Protocols: delete what create() has just made, when the format could not
     * be written into it; best effort.  NULL: it stays.  Fiber. */
    void (*uncreate)(struct blk_opts *o);
    /* Protocols; optional: fails as create() would for a name that cannot be made or
     * written; changes nothing.  Fiber. */
    int (*may_create)(struct blk_opts *o, struct blk_error *e);
};

/* The table (block/drivers.c): NULL-terminated. */
extern const struct blk_driver *const blk_drivers[];
const struct blk_driver *blk_driver_find(const char *name);

/* ---- completing and passing on ---------------------------------------------- */

/* Owner thread: queue for completion (done() runs later, from the loop). */
void blk_complete(struct blk_req *req, int result);
/* Any thread, once; uses req->drv[6..7]. */
void blk_complete_remote(struct blk_req *req, int result);
/* Hand the same request to child at another offset; no allocation, no switch.
 * done (may be NULL) sees it on the way up, before the submitter, with node and
 * offset restored; it must not wait. */
void blk_forward(struct blk_req *req, struct blk_node *child, uint64_t offset,
                 void (*done)(struct blk_req *req));
/* Run fn in a fiber; its return value completes req. */
void blk_req_fiber(struct blk_req *req, int (*fn)(struct blk_req *req));

/* status()'s answer where it is an offset: length bytes lie there in host, which is the
 * node itself where it is storage.  flags: what they are, BLK_ST_DATA or the like.  The
 * core cuts it to what was asked and knows the node's end. */
static inline void blk_status_at(struct blk_status *st, struct blk_node *host, uint64_t offset,
                                 uint64_t length, unsigned flags)
{
    st->flags = flags | BLK_ST_ALLOCATED | BLK_ST_OFFSET;
    st->length = length;
    st->host = host;
    st->host_offset = offset;
}

/* status() of a filter over images that has no more to say. */
int blk_filter_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st);

/* Reads below an overlay: like a READ of n->backing at req->offset, but through
 * the chain's merged map, so that depth does not matter; zeros past the end of
 * the backing node or without one. */
void blk_forward_backing(struct blk_req *req);
/* A COPY for fibers. */
int co_copy(struct blk_node *n, uint64_t off, struct blk_node *from, uint64_t from_offset,
            uint64_t len);
int co_read_backing(struct blk_node *n, uint64_t off, const struct iovec *iov, int cnt, uint64_t len);

/* Wait until every request that was at n when called has completed: what makes
 * it safe to reuse storage that forwarded requests may still touch. Fiber. */
void blk_epoch_wait(struct blk_node *n);

/* Parts of one guest request in flight at different places: a window of
 * sub-requests, each with its slice of the request's iov.  Look up a place, then
 * add: blk_parts_add() does not wait, blk_parts_room() does, so that a host
 * offset cannot become stale in between.  Fiber. */
struct blk_parts;
struct blk_parts *blk_parts_new(const struct iovec *iov, int cnt);
int blk_parts_room(struct blk_parts *p);
int blk_parts_add(struct blk_parts *p, struct blk_node *n, enum blk_op op, uint64_t off,
                  uint64_t pos, uint64_t len);
/* The same for len bytes that the storage copies. */
int blk_parts_copy(struct blk_parts *p, struct blk_node *n, uint64_t off, struct blk_node *from,
                   uint64_t from_offset, uint64_t len);
int blk_parts_end(struct blk_parts *p);        /* wait, free; first error. NULL: -ENOMEM */

/* A format, before it sends the request that the event is about to n, its storage. */
static inline void blk_event(struct blk_node *n, const char *name)
{
    if (__builtin_expect(n->drv->event != NULL, 0)) {
        n->drv->event(n, name);
    }
}

/* Filters, in open(): size, capabilities and limits of n->file. */
void blk_filter_inherit(struct blk_node *n);
/* A node of a format's own between it and file, which stays the caller's: a filter that
 * is in no graph.  Free it when nothing is in flight. NULL: no memory. */
struct blk_node *blk_between_new(struct blk_node *file, const struct blk_driver *drv, void *state);
void blk_between_free(struct blk_node *n);      /* NULL is fine */

/* ---- opening children ------------------------------------------------------- */

/* The name by which n is opened again and told of is this one, malloc'd or NULL; n's from
 * now on.  -ENOMEM: it keeps the one it has. */
int blk_node_rename(struct blk_node *n, char *filename);
/* The same to json:{...}, for a node that no path and no URL describes: QEMU's full name.
 * Takes v; NULL (a path that is no UTF-8, say): n keeps the name it has. */
void blk_node_rename_json(struct blk_node *n, json_t *v);
/* What such a name says of a node below: its own json:, or driver and file or file name;
 * the caller's.  NULL where JSON cannot say it. */
json_t *blk_node_json(const struct blk_node *n);
/* Refuse a child that an option names as a node, which nobody can; more: with options besides. */
int blk_refuse_node(const char *node, bool more, struct blk_error *e);
/* Fiber. Open a file named inside n's image (external data file): plain paths
 * only unless allowed, as they are (QEMU resolves them against the working
 * directory, not against n's own file); raw, n's own flags.  Not n's own storage. */
int blk_open_data_file(struct blk_node *n, const char *name, struct blk_opts *o,
                       struct blk_error *e);
/* Fiber. The same for one more file of the image, its name resolved against n's own,
 * added to n->more as "PREFIX.I"; o: what the user said about it, or empty. */
int blk_open_more(struct blk_node *n, const char *prefix, const char *name, struct blk_opts *o,
                  struct blk_error *e);
/* Fiber, in open(): the image that o's "PREFIX.*" describe or "x-image" names, with its
 * backing chain, as n->more[0]. */
int blk_open_second(struct blk_node *n, const char *prefix, struct blk_opts *o,
                    struct blk_error *e);
/* Fiber, in create(): make one more file of the image that lies in file: name is
 * resolved against file's own, o is what create() was given.  Empty, open for
 * writing, the caller's to blk_close(). */
int blk_create_more(struct blk_node *file, const char *name, struct blk_opts *o,
                    struct blk_node **out, struct blk_error *e);
/* Fiber, in create(): the same for a file whose name the user gave. */
int blk_create_file(struct blk_loop *l, const char *name, struct blk_opts *o,
                    struct blk_node **out, struct blk_error *e);
/* May a name found inside n's image be opened?  Plain paths always. */
int blk_check_inner_name(const struct blk_node *n, const char *name, struct blk_error *e);

/* ---- for protocols ---------------------------------------------------------- */

/* Where the credentials are that "--object tls-creds-..." with this id names, for a
 * client; strings until blk_objects_free(). */
struct blk_tls_creds {
    const char *dir, *username;     /* username: psk's */
    bool psk;                       /* dir/keys.psk; else certificates: dir/ca-cert.pem, ... */
    bool verify_peer;
    bool server;                    /* never seen outside */
};
int blk_tls_creds_get(const char *id, struct blk_tls_creds *out, struct blk_error *e);

/* ---- for formats ------------------------------------------------------------ */

/* A random (version 4) UUID, in the byte order it is written in. */
void blk_uuid_generate(uint8_t out[16]);
/* For facts(): a name of len bytes at most, ended by a NUL; format may be NULL.  A cap
 * (BLK_FACTS_MAX) on each list makes more of them nothing. */
void blk_facts_name(struct blk_facts *f, const char *kind, const void *name, size_t len,
                    const char *format);
/* The same for UTF-16. */
void blk_facts_utf16(struct blk_facts *f, const char *kind, const uint8_t *name, size_t bytes,
                     bool big_endian);
void blk_facts_feature(struct blk_facts *f, const char *kind, unsigned bit, const char *name,
                       bool known);
void blk_facts_extension(struct blk_facts *f, uint32_t type, uint32_t length);
/* A line of a check, as QEMU prints it; is_error: it tells of damage. */
void blk_check_say(struct blk_check *c, bool is_error, const char *fmt, ...) BLK_PRINTF(3, 4);

/* Fiber.  create() of the protocol drv for storage that is there already and has the size it
 * has (a LUN, an export, a device): see that "size" fits, and clear its start, so that what
 * is on it is no image.  The options it takes. */
int blk_create_in_place(struct blk_loop *l, const struct blk_driver *drv, struct blk_opts *o,
                        struct blk_error *e);
extern const struct blk_option_desc blk_in_place_opts[];

/* ---- checked arithmetic and byte order ---------------------------------------- */

#define blk_add_overflow(a, b, r) __builtin_add_overflow(a, b, r)
#define blk_mul_overflow(a, b, r) __builtin_mul_overflow(a, b, r)

static inline uint16_t be16(const void *p)
{ uint16_t v; __builtin_memcpy(&v, p, 2); return __builtin_bswap16(v); }
static inline uint32_t be32(const void *p)
{ uint32_t v; __builtin_memcpy(&v, p, 4); return __builtin_bswap32(v); }
static inline uint64_t be64(const void *p)
{ uint64_t v; __builtin_memcpy(&v, p, 8); return __builtin_bswap64(v); }
static inline void put_be16(void *p, uint16_t v)
{ v = __builtin_bswap16(v); __builtin_memcpy(p, &v, 2); }
static inline void put_be32(void *p, uint32_t v)
{ v = __builtin_bswap32(v); __builtin_memcpy(p, &v, 4); }
static inline void put_be64(void *p, uint64_t v)
{ v = __builtin_bswap64(v); __builtin_memcpy(p, &v, 8); }

static inline uint16_t le16(const void *p)
{ uint16_t v; __builtin_memcpy(&v, p, 2); return v; }
static inline uint32_t le32(const void *p)
{ uint32_t v; __builtin_memcpy(&v, p, 4); return v; }
static inline uint64_t le64(const void *p)
{ uint64_t v; __builtin_memcpy(&v, p, 8); return v; }
static inline void put_le16(void *p, uint16_t v) { __builtin_memcpy(p, &v, 2); }
static inline void put_le32(void *p, uint32_t v) { __builtin_memcpy(p, &v, 4); }
static inline void put_le64(void *p, uint64_t v) { __builtin_memcpy(p, &v, 8); }

static inline uint64_t blk_align_down(uint64_t v, uint64_t a) { return v & ~(a - 1); }
static inline uint64_t blk_align_up(uint64_t v, uint64_t a) { return (v + a - 1) & ~(a - 1); }

/* A signal that would end the process, of which the error that comes with it tells as well
 * (SIGPIPE, SIGXFSZ), is ignored unless the program has its own way with it. */
void blk_survive(int sig);

#endif
