/*
 * block.h - what users of libplatter see: errors, options, the loop, fibers,
 * nodes and requests.  What drivers implement is in driver.h.
 *
 * Conventions
 *  - Offsets and lengths are bytes in uint64_t, everywhere.
 *  - Functions return 0 or -errno.  The human text of an error is made once,
 *    where it arises, in a struct blk_error; only main() prints and exits.
 *  - A graph of nodes belongs to one loop and one thread, the loop's owner.
 *    Unless a function says "any thread", it must be called on that thread.
 *  - "Fiber" functions (prefix co_, and those that say so) wait; called
 *    outside a fiber, the control operations (open, close, create, ...) start
 *    one and run the loop until it ends.
 */
#ifndef PLATTER_BLOCK_H
#define PLATTER_BLOCK_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define BLK_PRINTF(a, b) __attribute__((format(printf, a, b)))
#define blk_container_of(ptr, type, member) \
    ((type *)((char *)(ptr) - offsetof(type, member)))
#define BLK_MIN(a, b) ((a) < (b) ? (a) : (b))
#define BLK_MAX(a, b) ((a) > (b) ? (a) : (b))
#define BLK_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* ---- limits: every count that comes from outside is capped here ---------- */

#define BLK_CHAIN_MAX      512u          /* nodes in one backing chain */
#define BLK_NAME_MAX       1023u         /* bytes of a name inside an image */
#define BLK_SIZE_MAX       (INT64_MAX & ~511ull) /* largest virtual size */
#define BLK_LENGTH_MAX     (INT64_MAX & ~((1ll << 30) - 1))   /* largest that can be asked for */
#define BLK_JSON_MAX       (1u << 20)    /* bytes of a json: pseudo name */
#define BLK_FACTS_MAX      2048u         /* names, features, extensions that are listed */
#define BLK_HOPS           8             /* nodes one request may pass through
                                            without a fiber */

/* ---- errors --------------------------------------------------------------- */

/* Owned by the caller, zero-initialised by BLK_ERROR_INIT.  The first text set
 * stays; blk_error_prefix() is how callers add context on the way up. */
struct blk_error {
    int err;              /* positive errno, 0: none */
    char text[4096];      /* no trailing newline; room for long file names */
    char hint[512];       /* optional second line(s) for the person */
};
#define BLK_ERROR_INIT { 0, "", "" }

/* Set the text (unless one is set) and return -err.  e may be NULL. */
int blk_err(struct blk_error *e, int err, const char *fmt, ...) BLK_PRINTF(3, 4);
/* As blk_err(), with ": strerror(err)" appended. */
int blk_err_errno(struct blk_error *e, int err, const char *fmt, ...) BLK_PRINTF(3, 4);
/* Put "fmt" in front of the text that is already there. */
void blk_error_prefix(struct blk_error *e, const char *fmt, ...) BLK_PRINTF(2, 3);
void blk_error_hint(struct blk_error *e, const char *fmt, ...) BLK_PRINTF(2, 3);
void blk_error_clear(struct blk_error *e);

/* Out-of-band reports (an image marked corrupt, a lost connection): one line,
 * no newline, any thread.  Default: "PROGRAM: line" on stderr. */
void blk_report(const char *fmt, ...) BLK_PRINTF(1, 2);
void blk_set_report(void (*fn)(void *arg, const char *line), void *arg);
/* The same for what QEMU says without naming itself or the image: by default the line alone,
 * and with "NAME: " in front for fn or, set once, in programs that have many images open. */
void blk_report_bare(const char *name, const char *fmt, ...) BLK_PRINTF(2, 3);
extern bool blk_report_names;
/* The name in front of messages; default "platter". Not copied. */
extern const char *blk_program;

/* ---- options -------------------------------------------------------------- */

/* An ordered list of dotted keys and string values: "file.filename" -> "a.img".
 * Later settings of a key replace earlier ones.  JSON objects and arrays are
 * flattened ("a.b", "a.0").  Each get marks the key as used. */
struct blk_opts;
typedef struct json_t json_t;       /* jansson's */
struct blk_opts *blk_opts_new(void);
struct blk_opts *blk_opts_dup(const struct blk_opts *o);   /* NULL -> empty */
void blk_opts_free(struct blk_opts *o);                    /* NULL is fine */
void blk_opts_set(struct blk_opts *o, const char *key, const char *value);
void blk_opts_setf(struct blk_opts *o, const char *key, const char *fmt, ...) BLK_PRINTF(3, 4);
void blk_opts_del(struct blk_opts *o, const char *key);
/* "k=v,k2=v2": ",," is a comma, "flag" alone means flag=on, "noflag" flag=off.
 * implied: key for a first word without "=", or NULL. */
int blk_opts_parse(struct blk_opts *o, const char *text, const char *implied,
                   struct blk_error *e);
/* The same for options of images on command lines, which QEMU takes as it always did: "flag"
 * and "noflag" with a warning on stderr, and keys of no letters. */
int blk_opts_parse_loose(struct blk_opts *o, const char *text, const char *implied,
                         struct blk_error *e);
/* The same for objects: no flags, and keys are parts of letters, digits, '-' and '_'. */
int blk_opts_parse_keyval(struct blk_opts *o, const char *text, const char *implied,
                          struct blk_error *e);
int blk_opts_parse_json(struct blk_opts *o, const char *json, struct blk_error *e);
/* Value or NULL; owned by o, valid until the key changes. */
const char *blk_opts_get(struct blk_opts *o, const char *key);
bool blk_opts_has(const struct blk_opts *o, const char *key);  /* does not mark */
/* The value as it was written, a string unless JSON said it without quotes; the caller's. */
json_t *blk_opts_json(const struct blk_opts *o, const char *key);
/* Typed gets: *out is untouched when the key is absent.  -EINVAL with QEMU's
 * words ("Parameter 'x' expects ...") when it does not parse.
 * size: bytes with optional suffix b k K M G T P E (powers of 1024). */
int blk_opts_get_bool(struct blk_opts *o, const char *key, bool *out, struct blk_error *e);
int blk_opts_get_u64(struct blk_opts *o, const char *key, uint64_t *out, struct blk_error *e);
int blk_opts_get_size(struct blk_opts *o, const char *key, uint64_t *out, struct blk_error *e);
/* All keys starting with prefix, moved out with the prefix cut off. */
struct blk_opts *blk_opts_take(struct blk_opts *o, const char *prefix);
/* i-th entry in order, false past the end.  key and value may be NULL. */
bool blk_opts_at(const struct blk_opts *o, size_t i, const char **key, const char **value);
/* First key no get has asked for, or NULL. */
const char *blk_opts_unused(const struct blk_opts *o);

/* "10G" etc. to bytes; -EINVAL, or -ERANGE beyond 2^64-1.  Whole string. */
int blk_parse_size(const char *s, uint64_t *out);
/* QEMU's name of a cache mode ("none", "writeback", ...) into BLK_O_DIRECT, BLK_O_NO_FLUSH
 * and BLK_O_WRITETHROUGH of *flags, which are cleared first; -EINVAL, and *flags is as it
 * was: the words differ by program. */
int blk_parse_cache(const char *mode, unsigned *flags);

/* Objects that the user defines and options name by their id: "secret,id=ID,data=TEXT |
 * file=NAME[,format=raw|base64][,keyid=ID,iv=BASE64]", "tls-creds-x509,id=ID,dir=FOLDER",
 * "tls-creds-psk,id=ID,dir=FOLDER[,username=NAME]", or the same as JSON with "qom-type".
 * Any thread. */
int blk_object_add(const char *text, struct blk_error *e);
/* The i-th type's name and its options, a line each, for help; false past the end. */
bool blk_object_type_at(size_t i, const char **name, const char **options);
void blk_objects_free(void);                     /* forgets them all, wipes secrets */
/* A secret's bytes, a NUL behind them; the list's, valid until blk_objects_free(). */
int blk_secret_get(const char *id, const uint8_t **data, size_t *len, struct blk_error *e);
/* The same, which must be UTF-8, as a string: passwords. */
int blk_secret_get_text(const char *id, const char **text, struct blk_error *e);

/* URL: scheme[+transport]://[user[%pass]@]host[:port]/path[?query].
 * Parts are percent-decoded copies; NULL or 0 where absent. */
struct blk_url {
    char *scheme, *transport, *user, *password, *host, *path, *query;
    unsigned port;
    struct blk_opts *params;      /* the query, decoded */
};
int blk_url_parse(const char *s, struct blk_url *u, struct blk_error *e);
void blk_url_free(struct blk_url *u);
/* A malloc'd copy of a URL, json: text or key=value list with passwords
 * replaced by "***": what may be printed. */
char *blk_redact(const char *name);
/* Does this name start with PROTOCOL: (json: included)?  Plain paths do not. */
bool blk_has_protocol(const char *name);
/* The name of the protocol driver or filter for a file name; NULL with *e set. */
const char *blk_protocol_for_name(const char *filename, struct blk_error *e);
/* May an image name this file?  list: protocols, see blk_open_args.backing_urls; any
 * thread. */
bool blk_inner_name_allowed(const char *list, const char *name);
/* malloc'd: name resolved against base's directory; URLs and absolute paths stay. */
char *blk_resolve_name(const char *base, const char *name);

/* ---- the loop ------------------------------------------------------------- */

struct blk_loop;
/* The creating thread owns it until blk_loop_adopt(). */
struct blk_loop *blk_loop_new(struct blk_error *e);
void blk_loop_free(struct blk_loop *l);          /* no node may be left on it */
void blk_loop_adopt(struct blk_loop *l);         /* calling thread becomes owner */
void blk_loop_run(struct blk_loop *l);           /* turns until blk_loop_stop() */
void blk_loop_stop(struct blk_loop *l);          /* any thread */
/* One turn: ready work, hooks, then events; sleeps only if wait is true and
 * nothing is ready.  Not from a fiber. */
void blk_loop_turn(struct blk_loop *l, bool wait);
uint64_t blk_now_ns(void);                       /* CLOCK_MONOTONIC; any thread */

/* fd events.  Embedded in the caller's structure, which must outlive it. */
struct blk_watch {
    int fd;
    uint32_t events;                             /* EPOLLIN, EPOLLOUT, ... */
    void (*fn)(void *arg, uint32_t events);
    void *arg;
};
int blk_watch_add(struct blk_loop *l, struct blk_watch *w);
int blk_watch_mod(struct blk_loop *l, struct blk_watch *w, uint32_t events);
/* After this returns fn is not called again. */
void blk_watch_del(struct blk_loop *l, struct blk_watch *w);

struct blk_timer {
    uint64_t at;                                 /* blk_now_ns() scale; 0: idle */
    void (*fn)(void *arg);
    void *arg;
    struct blk_timer *next, **prev;
};
void blk_timer_set(struct blk_loop *l, struct blk_timer *t, uint64_t at_ns);
void blk_timer_cancel(struct blk_loop *l, struct blk_timer *t);

/* Hand fn to the loop's thread.  Any thread; p must live until fn runs and may
 * be reused or freed by fn. */
struct blk_post {
    void (*fn)(void *arg);
    void *arg;
    struct blk_post *next;
};
void blk_loop_post(struct blk_loop *l, struct blk_post *p);

/* fn runs each time before the loop would look for events: where drivers submit
 * their batches.  Returns true if it made work ready (the loop then won't sleep). */
struct blk_hook {
    bool (*fn)(void *arg);
    void *arg;
    struct blk_hook *next;
};
void blk_hook_add(struct blk_loop *l, struct blk_hook *h);
void blk_hook_del(struct blk_loop *l, struct blk_hook *h);

/* ---- fibers --------------------------------------------------------------- */

/* Stackful, pooled, never migrate.  Stacks are 256 KiB with a guard page: no
 * large arrays, no VLA.  A fiber runs only from the loop (never nested inside
 * the frame that made it ready). */
struct co;
/* fn(arg) runs at the loop's next turn. 0 or -ENOMEM. */
int co_start(struct blk_loop *l, void (*fn)(void *arg), void *arg);
struct co *co_self(void);                        /* NULL outside a fiber */
struct blk_loop *co_loop(void);                  /* loop of the running fiber */
void co_yield(void);                             /* until somebody co_wake()s it */
void co_wake(struct co *c);                      /* owner thread; at most once a yield */
void co_pass(void);                              /* let everything ready go first */
void co_sleep(uint64_t ns);
/* Run fn(arg) in a fiber and the loop until it ends; inside a fiber, call it. */
int blk_run(struct blk_loop *l, int (*fn)(void *arg), void *arg);

struct co_queue { struct co_wait *first, **last; };   /* zero-initialised */
void co_wait_on(struct co_queue *q);
bool co_wake_one(struct co_queue *q);
void co_wake_all(struct co_queue *q);
struct co_mutex { bool held; struct co_queue q; };    /* fair, not recursive */
void co_lock(struct co_mutex *m);
void co_unlock(struct co_mutex *m);

/* Threads for what would block or burn CPU. */
struct blk_pool;
struct blk_work {
    void (*fn)(struct blk_work *w);              /* on a pool thread */
    void (*done)(struct blk_work *w);            /* on the loop's thread, after fn */
    struct blk_loop *loop;
    struct blk_work *next;
    struct blk_post post;
};
struct blk_pool *blk_pool_new(unsigned max_threads);
void blk_pool_free(struct blk_pool *p);          /* waits for its threads */
struct blk_pool *blk_pool_cpu(void);             /* shared, one thread a CPU */
void blk_pool_submit(struct blk_pool *p, struct blk_work *w);   /* any thread */
void co_work(void (*fn)(void *arg), void *arg);  /* on the CPU pool; fiber waits */

/* ---- requests ------------------------------------------------------------- */

enum blk_op { BLK_READ, BLK_WRITE, BLK_WRITE_ZEROES, BLK_DISCARD, BLK_FLUSH, BLK_COPY, BLK_OPS };

enum {
    BLK_REQ_FUA        = 1u << 0,   /* durable when done */
    BLK_REQ_MAY_UNMAP  = 1u << 1,   /* WRITE_ZEROES may deallocate */
    BLK_REQ_FAST_ZERO  = 1u << 2,   /* WRITE_ZEROES: -ENOTSUP rather than writing zeros */
    BLK_REQ_COMPRESSED = 1u << 3,   /* WRITE: store compressed (whole clusters) */
    BLK_REQ_EXPLICIT   = 1u << 5,   /* WRITE_ZEROES: zeros of this layer's own, even where
                                       nothing lies below now: it will */
};

struct blk_node;

/* One structure from ring to storage.  Allocated by the submitter (embedded in
 * its own structure or on a fiber's stack), untouched by it between blk_submit()
 * and done().  The iov array and its buffers stay valid as long. */
struct blk_req {
    enum blk_op op;
    unsigned flags;
    uint64_t offset, length;
    const struct iovec *iov;        /* READ, WRITE: covers exactly length bytes */
    int iovcnt;
    struct blk_node *from;          /* COPY: storage whose bytes at from_offset are written, */
    uint64_t from_offset;           /* as blk_can_copy() says they can be */
    int result;                     /* 0 or -errno, set before done() */
    void (*done)(struct blk_req *req);
    void *arg;

    /* Below: the core's and the drivers' own. */
    struct blk_node *node;          /* whose driver has it now */
    struct blk_req *next;           /* in a ready list, or a driver's queue */
    unsigned nhops;
    struct blk_hop {
        struct blk_node *node;
        uint64_t offset;            /* restored on the way up */
        uint64_t t_ns;              /* submit time while tracing, else 0 */
        void (*done)(struct blk_req *req);  /* driver's, may be NULL */
        unsigned epoch;
        /* Writes on nodes with an alignment: what read-modify-write waits for. */
        uint64_t w_length;
        struct blk_hop *w_next, **w_prev;
    } hops[BLK_HOPS];
    uint64_t drv[8];                /* the current holder's tail */
};

/* Owner thread, fiber or not.  done() is called from the loop, exactly once,
 * never inside blk_submit().  Reads past the node's end give zeros; writes past
 * it fail with -ENOSPC unless the node can grow.  FLUSH ignores offset, length.
 * COPY: -ENOTSUP, and any other error, may leave part of it done. */
void blk_submit(struct blk_node *n, struct blk_req *req);

/* The same for fibers. */
int co_read(struct blk_node *n, uint64_t off, void *buf, size_t len);
int co_write(struct blk_node *n, uint64_t off, const void *buf, size_t len, unsigned flags);
int co_readv(struct blk_node *n, uint64_t off, const struct iovec *iov, int cnt, uint64_t len);
int co_writev(struct blk_node *n, uint64_t off, const struct iovec *iov, int cnt,
              uint64_t len, unsigned flags);
int co_write_zeroes(struct blk_node *n, uint64_t off, uint64_t len, unsigned flags);
int co_discard(struct blk_node *n, uint64_t off, uint64_t len);
int co_flush(struct blk_node *n);

/* Could a COPY from this protocol node to n succeed, as far as is known without trying? */
bool blk_can_copy(const struct blk_node *n, const struct blk_node *from);

/* Several requests in flight from one fiber.  Zero-initialise; add; wait. */
struct co_batch { unsigned pending; int err; struct co *waiter; };
void co_batch_add(struct co_batch *b, struct blk_node *n, struct blk_req *req);
int co_batch_wait(struct co_batch *b);           /* first error; empties the batch */

/* What is at a place.  ALLOCATED: this layer decides the content (for format
 * nodes; protocols always do).  !ALLOCATED: look at the backing node, or zeros.
 * DATA/ZERO as in qemu-img map. */
enum {
    BLK_ST_DATA       = 1u << 0,
    BLK_ST_ZERO       = 1u << 1,
    BLK_ST_ALLOCATED  = 1u << 2,
    BLK_ST_OFFSET     = 1u << 3,    /* host and host_offset are valid */
    BLK_ST_COMPRESSED = 1u << 4,
    BLK_ST_EOF        = 1u << 5,    /* the extent ends at the node's end */
    BLK_ST_RECURSE    = 1u << 6,    /* driver to core: add host's DATA and ZERO */
    BLK_ST_READS_ZERO = 1u << 7,    /* DATA to whoever asks for a map, as QEMU has it, but
                                       known to be zeros: need not be read */
};
struct blk_status {
    unsigned flags;
    uint64_t length;                /* bytes for which this holds, >= 1 */
    struct blk_node *host;          /* whose offsets host_offset counts */
    uint64_t host_offset;
    int depth;                      /* co_status_above: 0 is n itself */
    struct blk_node *layer;         /* co_status_above: the deciding node */
};
/* This node's own layer only. len > 0, off < size. */
int co_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st);
/* Walk n and its backing nodes, stopping before base (NULL: the whole chain).
 * A range no layer has is ZERO without ALLOCATED. */
int co_status_above(struct blk_node *n, struct blk_node *base, uint64_t off,
                    uint64_t len, struct blk_status *st);

/* ---- nodes ---------------------------------------------------------------- */

enum {
    BLK_O_RDWR        = 1u << 0,
    BLK_O_DIRECT      = 1u << 1,    /* O_DIRECT at the protocol */
    BLK_O_NO_FLUSH    = 1u << 2,    /* cache=unsafe: flushes do nothing */
    BLK_O_WRITETHROUGH= 1u << 3,    /* every write is FUA */
    BLK_O_NO_BACKING  = 1u << 4,    /* do not open backing files */
    BLK_O_SHARE       = 1u << 5,    /* -U: take no locks */
    BLK_O_CHECK       = 1u << 6,    /* for check/repair: open what is damaged */
    BLK_O_UNMAP       = 1u << 7,    /* discards are done, zeros may deallocate; what an image
                                       lies on has it unless its options say otherwise */
    BLK_O_NO_IO       = 1u << 8,    /* metadata only (info): guest data is not read */
    BLK_O_NO_PROBE    = 1u << 9,    /* format given is required, never guessed */
    BLK_O_RESIZE      = 1u << 10,   /* internal: will truncate */
    BLK_O_NO_SHARE    = 1u << 11,   /* nobody else may write meanwhile, not even to raw
                                       images: a guest's disk, the source of a convert */
    BLK_O_SNAPSHOT    = 1u << 12,   /* what is written is gone when the image is closed */
    BLK_O_COPY_ON_READ= 1u << 13,   /* what is read from backing files is kept in the image */
    BLK_O_DETECT_ZEROES = 1u << 14, /* writes of nothing but zeros are WRITE_ZEROES */
    BLK_O_DETECT_UNMAP  = 1u << 15, /* with that: they may deallocate */
    BLK_O_EXACT       = 1u << 16,   /* with BLK_O_RESIZE: what cannot get that very size is not
                                       to be taken for large enough */
};

enum blk_cap { BLK_CAP_NONE, BLK_CAP_EMULATED, BLK_CAP_NATIVE };

/* Filled by the driver's open(); what the core splits and aligns to. */
struct blk_limits {
    uint32_t req_align;             /* power of 2, offset and length; >= 1 */
    uint32_t mem_align;             /* power of 2, buffers; >= 1 */
    uint32_t opt_transfer;          /* 0: no preference */
    uint32_t max_transfer;          /* 0: none; multiple of req_align */
    uint32_t max_iov;               /* 0: IOV_MAX */
    uint32_t zero_align, discard_align;  /* 0: req_align */
    uint64_t max_zero, max_discard; /* 0: none */
};

/* filename: a path, PROTOCOL:..., URL or json:{...}; may be NULL when opts name
 * the file ("driver", "file.filename", "filename").
 * format: NULL probes, which is refused with BLK_O_RDWR only for raw guesses on
 * write (see docs/architecture.md).
 * backing_urls: protocols that names inside images may use, "nfs,iscsi" or "all";
 * NULL: plain paths only.
 * opts: not consumed; keys nobody knows are an error. */
struct blk_open_args {
    const char *filename;
    const char *format;
    const struct blk_opts *opts;
    unsigned flags;
    const char *backing_urls;
};
int blk_open(struct blk_loop *l, const struct blk_open_args *a,
             struct blk_node **out, struct blk_error *e);
/* Flushes, closes and frees; reports the first error of the node's life that no
 * caller has seen.  The node is gone either way.  NULL is fine. */
int blk_close(struct blk_node *n, struct blk_error *e);

uint64_t blk_size(const struct blk_node *n);             /* virtual size */
bool blk_read_only(const struct blk_node *n);
const char *blk_format_name(const struct blk_node *n);   /* "qcow2", "file" */
const char *blk_filename(const struct blk_node *n);      /* as given, redacted */
struct blk_node *blk_file(const struct blk_node *n);     /* protocol child or NULL */
const char *blk_file_role(const struct blk_node *n);     /* how QEMU calls it: "file" */
struct blk_node *blk_data_file(const struct blk_node *n);/* external data file or NULL */
struct blk_node *blk_backing(struct blk_node *n);    /* of the image, if n is a filter; or NULL */
/* i-th further file of an image that has several, or NULL; *name is how QEMU calls it. */
struct blk_node *blk_more_file(const struct blk_node *n, unsigned i, const char **name);
/* Writable, and raw only because no other format was recognised. */
bool blk_raw_guessed(const struct blk_node *n);
struct blk_loop *blk_node_loop(const struct blk_node *n);
const struct blk_limits *blk_node_limits(const struct blk_node *n);
enum blk_cap blk_can_zero(const struct blk_node *n);
enum blk_cap blk_can_discard(const struct blk_node *n);
bool blk_starts_as_zeros(const struct blk_node *n);      /* new space reads as zeros */
bool blk_is_protocol(const struct blk_node *n);
bool blk_is_scheme(const struct blk_node *n);           /* names can ask for it: "blkdebug:..." */
/* Wait until nothing is in flight at n. Fiber. */
void co_drain(struct blk_node *n);

enum blk_prealloc { BLK_PREALLOC_OFF, BLK_PREALLOC_METADATA, BLK_PREALLOC_FALLOC, BLK_PREALLOC_FULL };
int blk_parse_prealloc(const char *s, enum blk_prealloc *out, struct blk_error *e);
/* New virtual size.  shrink must be true to lose data.  */
int blk_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                 struct blk_error *e);

/* Forget everything this layer holds: all of it comes from the backing file again.
 * -ENOTSUP: the format cannot (then nothing is changed). */
int blk_make_empty(struct blk_node *n, struct blk_error *e);
/* Move what n's file holds down, clusters from its end into free ones further ahead, and
 * end the file where that ends.  Guest data, snapshots and sizes stay as they are, at
 * every moment; a crash leaves leaked clusters, at most.  n has been checked: no
 * corruptions, no leaks.  -ENOTSUP: the format has nothing to move. */
struct blk_compact {
    uint64_t moved;                 /* bytes; filled in */
    void (*progress)(void *arg, uint64_t done, uint64_t total);    /* or NULL */
    void *arg;
};
int blk_compact(struct blk_node *n, struct blk_compact *c, struct blk_error *e);
/* Rewrite the name (as it is to stand in the image) and format (NULL: none) of the
 * backing file in n's header; name NULL: no backing file any more.  The nodes that
 * are open stay as they are.  -ENOSPC: no room in the header; -ENOTSUP. */
int blk_change_backing(struct blk_node *n, const char *name, const char *format,
                       struct blk_error *e);
/* Close n's backing chain and open it again with the backing node itself writable
 * (and resizable); what n has as backing node changes.  Nothing may be in flight at
 * n or above.  On error n has no backing node and may only be closed. */
int blk_backing_reopen_rw(struct blk_node *n, struct blk_error *e);

/* Internal snapshots.  CREATE: name may be taken already; ids are the format's.
 * APPLY: name is an id or, if no snapshot has that id, a name; the disk gets the
 * snapshot's content and size.  DELETE: the first with that name.  All durable when
 * done; an error before that leaves disk and snapshots as they were.  -ENOTSUP;
 * -ENOENT: no such snapshot. */
enum blk_snapshot_op { BLK_SNAPSHOT_CREATE, BLK_SNAPSHOT_APPLY, BLK_SNAPSHOT_DELETE };
int blk_snapshot(struct blk_node *n, enum blk_snapshot_op op, const char *name,
                 struct blk_error *e);
/* From now on n, which is read-only and has nothing in flight, reads as the snapshot
 * does and has its size; the image is not changed.  id and name: both must match,
 * NULL matches all.  -ENOTSUP; -ENOENT: no such snapshot; -EINVAL: n is writable. */
int blk_snapshot_load(struct blk_node *n, const char *id, const char *name,
                      struct blk_error *e);

/* Fiber.  Read or write the state of a virtual machine that is saved beside the disk, off
 * bytes from its start; iov covers len.  It is no snapshot's yet.  -ENOTSUP. */
int blk_vm_state(struct blk_node *n, bool write, uint64_t off, const struct iovec *iov, int cnt,
                 uint64_t len);

/* For tests: a blkdebug node at or below n holds back what is sent to it at an event.
 * BREAK: the next request after "event" waits under this tag.  REMOVE, RESUME: the tag's
 * breakpoints go, what waits goes on.  SUSPENDED: 1 if something waits under the tag.
 * -ENOTSUP: no such node; -ENOENT: no such event or tag. */
enum blk_debug_op { BLK_DEBUG_BREAK, BLK_DEBUG_REMOVE, BLK_DEBUG_RESUME, BLK_DEBUG_SUSPENDED };
int blk_debug(struct blk_node *n, enum blk_debug_op op, const char *event, const char *tag);

/* Persistent dirty bitmaps: which parts of the disk were written to.  Changes are in
 * memory until the node is closed.  ADD makes an enabled one; granularity in bytes, 0:
 * the format's choice.  All but REMOVE need a consistent bitmap.  -ENOTSUP. */
enum blk_bitmap_op { BLK_BITMAP_ADD, BLK_BITMAP_REMOVE, BLK_BITMAP_CLEAR, BLK_BITMAP_ENABLE,
                     BLK_BITMAP_DISABLE };
int blk_bitmap_change(struct blk_node *n, enum blk_bitmap_op op, const char *name,
                      uint64_t granularity, struct blk_error *e);
/* Set in n's bitmap what src's bitmap "from" says; src may be n. */
int blk_bitmap_merge(struct blk_node *n, const char *name, struct blk_node *src,
                     const char *from, struct blk_error *e);
struct blk_bitmap {
    const char *name;               /* the node's */
    uint64_t granularity;
    bool enabled, inconsistent;
};
/* Can n's image hold bitmaps? */
bool blk_has_bitmaps(struct blk_node *n);
/* The i-th bitmap in the image's order; false past the end. */
bool blk_bitmap_at(struct blk_node *n, size_t i, struct blk_bitmap *out);

/* Disk usage in bytes of a node's own storage, or -1 where unknown. */
int64_t blk_allocated_size(struct blk_node *n);
/* Length of a protocol node's storage right now. */
int blk_storage_length(struct blk_node *n, uint64_t *out);

/* ---- image operations ------------------------------------------------------ */

/* One creation option of a format, for -o help and for validation. */
struct blk_option_desc {
    const char *name;
    enum { BLK_OPT_STRING, BLK_OPT_SIZE, BLK_OPT_BOOL, BLK_OPT_NUMBER } type;
    const char *help;
    const char *def;                /* default shown by -o help, or NULL */
};
/* Terminated by name == NULL; NULL if there is no such driver. */
const struct blk_option_desc *blk_create_options(const char *format);
/* What amend may change, the same way; NULL: nothing. */
const struct blk_option_desc *blk_amend_options(const char *format);
/* i-th driver's name in table order (NULL past the end), formats and protocols. */
const char *blk_driver_at(size_t i, bool *is_protocol, bool *can_create);
bool blk_driver_known(const char *name);
bool blk_driver_compresses(const char *name);    /* BLK_REQ_COMPRESSED works there */

/* Create filename as format; opts: the format's creation options and the
 * protocol's ("size", "backing_file", "backing_fmt", "cluster_size", ...).
 * Unknown keys are an error in QEMU's words. */
int blk_create(struct blk_loop *l, const char *format, const char *filename,
               const struct blk_opts *opts, struct blk_error *e);

/* A complete image, written from its first byte to its last to where one cannot go back:
 * a pipe.  The map is asked for several times and has to give the same answers; what it
 * calls data is read once, in order.  opts: creation options without "size".  -ENOTSUP:
 * the format, or an option, cannot be written so.  Fiber. */
struct blk_stream {
    uint64_t size;                  /* of the guest's disk, a multiple of 512 */
    /* off < size: is there data, and for how many bytes is that so. */
    int (*map)(void *arg, uint64_t off, bool *data, uint64_t *len);
    int (*read)(void *arg, uint64_t off, void *buf, size_t len);
    int (*write)(void *arg, const void *buf, size_t len);
    void *arg;
};
int blk_stream(struct blk_loop *l, const char *format, const struct blk_opts *opts,
               const struct blk_stream *s, struct blk_error *e);

struct blk_info {
    uint64_t cluster_size;          /* 0: none */
    uint64_t mapping_size;          /* of what is allocated by itself: a subcluster, a cluster */
    bool dirty, corrupt, encrypted, compressed;
    bool bare;                      /* only a size is known, not even whether it is dirty */
    bool needs_compressed;          /* can only be written in compressed clusters */
    char *backing_name;             /* as in the image; NULL: none. malloc'd */
    char *backing_full;             /* resolved against the image's own path */
    char *backing_format;
    json_t *specific;               /* QEMU's ImageInfoSpecific "data", or NULL */
    uint64_t vm_state_offset;
    json_t *snapshots;              /* array of QEMU's SnapshotInfo, or NULL */
};
int blk_get_info(struct blk_node *n, struct blk_info *out, struct blk_error *e);
void blk_info_free(struct blk_info *i);

/* What an image says of itself and names, from its first structures alone: nothing that
 * it names is opened, and it need not be in order.  Bytes in names are as they are. */
struct blk_facts {
    const char *format;             /* a driver's name */
    bool guessed;                   /* raw, as nothing else was recognised */
    uint64_t file_size;
    bool elsewhere;                 /* guest data is in files it names (extents) ... */
    uint64_t size;                  /* ... and this is the disk's size then */
    json_t *references;             /* array of { "kind", "name"[, "format"] } */
    json_t *features;               /* array of { "kind", "bit", "name"|absent, "known" } */
    json_t *extensions;             /* unknown ones of the header: { "type", "length" } */
};
/* a as for blk_open(); only its storage is opened. */
int blk_read_facts(struct blk_loop *l, const struct blk_open_args *a, struct blk_facts *out,
                   struct blk_error *e);
void blk_facts_free(struct blk_facts *f);

/* Change properties of an image in place, as o says (names of blk_amend_options()).  A
 * crash leaves the image with the old properties or the new ones, of each.  -ENOTSUP:
 * the format has nothing to amend. */
struct blk_amend {
    bool force;                     /* also what may lose data for good */
    void (*progress)(void *arg, double fraction);   /* may be NULL */
    void *arg;
};
int blk_amend(struct blk_node *n, struct blk_opts *o, const struct blk_amend *a,
              struct blk_error *e);

enum { BLK_FIX_LEAKS = 1, BLK_FIX_ERRORS = 2 };
struct blk_check {
    uint64_t corruptions, leaks, check_errors;
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t image_end_offset;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
    bool has_bfi;                   /* the four counts above are filled */
    /* Human lines as QEMU prints them ("ERROR ...", "Leaked cluster ..."). */
    void (*message)(void *arg, bool is_error, const char *line);
    void (*progress)(void *arg, double fraction);
    void *arg;
};
/* -ENOTSUP: the format has no check. Open with BLK_O_CHECK. */
int blk_check(struct blk_node *n, struct blk_check *c, int fix, struct blk_error *e);

struct blk_measure { uint64_t required, fully_allocated, bitmaps; bool has_bitmaps; };
/* src NULL: opts' "size" counts. */
int blk_measure(struct blk_loop *l, const char *format, struct blk_node *src,
                const struct blk_opts *opts, struct blk_measure *out, struct blk_error *e);

/* ---- statistics ------------------------------------------------------------ */

struct blk_stats {
    uint64_t ops[BLK_OPS], bytes[BLK_OPS], errors[BLK_OPS];
    /* log-linear: bucket = 8 per power of two of nanoseconds; filled while
     * tracing is on. */
    uint64_t latency[BLK_OPS][64 * 8];
    uint64_t latency_sum[BLK_OPS], latency_max[BLK_OPS];
};
const struct blk_stats *blk_node_stats(const struct blk_node *n);
void blk_set_tracing(struct blk_loop *l, bool on);
/* Value in ns at quantile q (0..1) of one histogram. */
uint64_t blk_stats_quantile(const uint64_t *hist, double q);

/* For tests and the curious: since the loop was made. */
struct blk_counters { uint64_t fiber_switches, fibers_started, allocations, forwards; };
const struct blk_counters *blk_loop_counters(const struct blk_loop *l);

/* The version, and the list of drivers and libraries there are (main thread). */
#define PLATTER_VERSION "0.1.0"
const char *blk_build_info(void);

/* ---- buffers and iovecs ------------------------------------------------------ */

void *blk_buf_alloc(size_t len);                 /* page-aligned; NULL: no memory */
void blk_buf_free(void *buf);
bool blk_is_zero(const void *buf, size_t len);   /* vectorised */
uint64_t blk_iov_size(const struct iovec *iov, int cnt);
/* Part [off, off+len) of iov into dst (room for max); returns entries or -E2BIG. */
int blk_iov_slice(const struct iovec *iov, int cnt, uint64_t off, uint64_t len,
                  struct iovec *dst, int max);
void blk_iov_zero(const struct iovec *iov, int cnt, uint64_t off, uint64_t len);
void blk_iov_from_buf(const struct iovec *iov, int cnt, uint64_t off, const void *buf, uint64_t len);
void blk_iov_to_buf(const struct iovec *iov, int cnt, uint64_t off, void *buf, uint64_t len);

#endif
