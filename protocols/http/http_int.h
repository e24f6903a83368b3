/*
 * http_int.h - what the files of the HTTP driver share; it does FTP, too.
 *
 *   http.c     the driver: open, close, requests
 *   config.c   names, options, credentials
 *   cache.c    blocks of the file that were read, and read ahead
 *   fetch.c    ranges on their way: queued, transferred by libcurl, judged, tried again
 *
 * Invariants
 *  - All bytes of a disk come from one version of the file: what the first answer says
 *    (size, ETag, Last-Modified) every later one must say.  If one does not, all reads
 *    fail from then on.
 *  - A fetch is in one list: queued, or active with an easy handle of its own.
 *  - libcurl is never called from its callbacks.
 *  - FTP says size and time (SIZE, MDTM) before each range, and that is the version.
 *  - While the server is away (net.down_since) only the probe, one byte, is sent.
 *
 * All of it runs on the node's owner thread.
 */
#ifndef PLATTER_HTTP_INT_H
#define PLATTER_HTTP_INT_H

#include "block/driver.h"
#include "block/net.h"

#include <curl/curl.h>

#define HTTP_BLOCK           (64u << 10)    /* bytes of a cached block */
#define HTTP_BLOCKS_MAX      256u           /* cached */
#define HTTP_DIRECT          (128u << 10)   /* reads from here on go past the cache */
#define HTTP_TRANSFER        (1u << 20)     /* bytes of one request */
#define HTTP_READAHEAD       (256u << 10)   /* default */
#define HTTP_READAHEAD_MAX   (4u << 20)
#define HTTP_CONNECTIONS     4u             /* transfers at once: default, most */
#define HTTP_CONNECTIONS_MAX 16u
#define HTTP_REDIRECTS_MAX   5
#define HTTP_EMPTY_MAX       8u             /* answers without a byte before it is an error */
#define HTTP_TAG_MAX         256            /* bytes of an ETag or date that are kept */
#define HTTP_TIMEOUT_MAX     10000u         /* seconds: QEMU's */
#define HTTP_TICK_NS         250000000ull

struct http_config {
    char *url;                              /* without credentials */
    char *user, *password, *proxy_user, *proxy_password, *cookie, *cacert;
    bool sslverify, ftp;                    /* ftp: or ftps */
    unsigned readahead, connections;
};

/* Which version of the file an answer is about. */
struct http_version {
    uint64_t size;
    char etag[HTTP_TAG_MAX], modified[HTTP_TAG_MAX];
};

struct http_disk;
struct http_block;

/* One range, until done() is called, through any number of attempts. */
struct http_fetch {
    struct http_disk *d;
    uint64_t start, length, got;
    /* Bytes that came: len of them belong at start + got. */
    void (*data)(struct http_fetch *f, const char *bytes, size_t len);
    void (*done)(struct http_fetch *f, int result);     /* 0 or -errno; may free f */
    void *arg;
    bool probing;                           /* length and version are to be found out */
    bool is_probe;                          /* of the disk's, while the server is away */

    CURL *easy;                             /* active, or NULL */
    char curl_error[CURL_ERROR_SIZE];
    uint64_t first_ns, heard_ns, not_before_ns;
    unsigned empty, later;
    uint64_t attempt_got;                   /* bytes of this attempt */
    int err;                                /* this attempt is over for good: -errno */
    char cause[300];
    /* The answer's header so far. */
    struct http_version version;
    uint64_t range_start;
    bool has_range, encoded, judged, unsatisfied, header_whole;
    unsigned replies;                       /* FTP: of a time or a size */
    struct http_fetch *next, **prev;
};

struct http_fetches { struct http_fetch *first, **last; };

/* A reading request that waits for blocks. */
struct http_read { struct blk_req *req; unsigned left; int err; struct http_read *next; };

struct http_disk {
    struct blk_node *n;                     /* NULL until open() is through */
    struct blk_loop *loop;
    struct http_config cfg;
    struct blk_net net;
    struct http_version version;
    bool known;                             /* version is the file's */
    int changed;                            /* -errno: it is not the same file any more */
    char *effective;                        /* where redirects led to, or NULL */
    bool other_origin;                      /* and that is somebody else: no credentials */
    long auth;                              /* CURLAUTH_* to offer */
    bool opening, told_error;

    /* fetch.c */
    CURLM *multi;
    struct blk_timer curl_timer, tick, retry;
    struct http_fetches queue, active;
    unsigned nactive;
    CURL *idle[HTTP_CONNECTIONS_MAX + 1];      /* easy handles to be used again */
    unsigned nidle;
    struct http_fetch probe;

    /* cache.c */
    struct http_block *buckets[HTTP_BLOCKS_MAX];
    struct http_block *lru_first, *lru_last;
    unsigned nblocks;
    uint64_t next_offset;                   /* where a sequential reader goes on */
    struct http_read *spare;
};

/* ---- config.c */
int http_config_get(struct http_config *c, const char *scheme, struct blk_opts *o,
                    struct blk_error *e);
void http_config_free(struct http_config *c);
/* Do two URLs name the same scheme, host and port? */
bool http_same_origin(const char *a, const char *b);

/* ---- fetch.c */
int http_fetches_init(struct http_disk *d);
void http_fetches_free(struct http_disk *d);    /* nobody waits for one any more */
void http_fetch_start(struct http_disk *d, struct http_fetch *f);

/* ---- cache.c */
void http_read_cached(struct http_disk *d, struct blk_req *req);
void http_read_direct(struct http_disk *d, struct blk_req *req);
void http_cache_free(struct http_disk *d);

#endif
