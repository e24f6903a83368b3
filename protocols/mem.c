/*
 * mem.c - storage in this process's memory, for tests and for measuring what the
 * layers above cost.
 *
 * Content is kept in 64 KiB chunks, made by the first write and freed by zeroes
 * and discards that cover them, under a radix tree that grows in height with the
 * highest chunk: any size up to 2^63 costs only what was written.
 *
 * A store created under a name ("mem:NAME") stays until it is created again or the
 * process ends, so that it can be opened again; one opened without a name lives
 * with its node.  A store's lock makes it usable from several loops.
 */
#include "block/driver.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MEM_CHUNK_BITS 16
#define MEM_CHUNK (1u << MEM_CHUNK_BITS)
#define MEM_NODE_BITS 9
#define MEM_FANOUT (1u << MEM_NODE_BITS)

struct mem_store {
    pthread_mutex_t lock;
    char *name;                 /* NULL: anonymous */
    unsigned refs;
    uint64_t size;
    uint64_t chunks;            /* allocated */
    unsigned height;            /* levels above the chunks; 0: root is chunk 0 */
    void *root;
    struct mem_store *next;
};

static pthread_mutex_t stores_lock = PTHREAD_MUTEX_INITIALIZER;
static struct mem_store *stores;

/* ---- the tree ------------------------------------------------------------------------ */

/* Chunk numbers below this are reachable with the given height. */
static uint64_t mem_reach(unsigned height)
{
    unsigned bits = height * MEM_NODE_BITS;

    return bits >= 64 ? UINT64_MAX : 1ull << bits;
}

static size_t mem_index(uint64_t chunk, unsigned level)
{
    unsigned shift = (level - 1) * MEM_NODE_BITS;

    return shift >= 64 ? 0 : (chunk >> shift) & (MEM_FANOUT - 1);
}

static uint8_t *mem_find(const struct mem_store *s, uint64_t chunk)
{
    void *p = s->root;

    if (chunk >= mem_reach(s->height))
        return NULL;
    for (unsigned level = s->height; p && level > 0; level--)
        p = ((void **)p)[mem_index(chunk, level)];
    return p;
}

/* Find or make. NULL: no memory. */
static uint8_t *mem_get(struct mem_store *s, uint64_t chunk)
{
    void **slot;

    while (chunk >= mem_reach(s->height)) {
        if (s->root) {
            void **up = calloc(MEM_FANOUT, sizeof(void *));

            if (!up)
                return NULL;
            up[0] = s->root;
            s->root = up;
        }
        s->height++;
    }
    slot = &s->root;
    for (unsigned level = s->height; level > 0; level--) {
        if (!*slot && !(*slot = calloc(MEM_FANOUT, sizeof(void *))))
            return NULL;
        slot = &((void **)*slot)[mem_index(chunk, level)];
    }
    if (!*slot && (*slot = calloc(1, MEM_CHUNK)))
        s->chunks++;
    return *slot;
}

static void mem_drop(struct mem_store *s, uint64_t chunk)
{
    void **slot = &s->root;

    if (chunk >= mem_reach(s->height))
        return;
    for (unsigned level = s->height; *slot && level > 0; level--)
        slot = &((void **)*slot)[mem_index(chunk, level)];
    if (*slot) {
        free(*slot);
        *slot = NULL;
        s->chunks--;
    }
}

/* Depth is bounded by the tree's height, at most 6. */
static void mem_free_tree(void *p, unsigned level)
{
    if (p && level > 0)
        for (size_t i = 0; i < MEM_FANOUT; i++)
            mem_free_tree(((void **)p)[i], level - 1);
    free(p);
}

/* First chunk >= from (and < end) that is there (want) or is not; end if none. */
static uint64_t mem_seek(const struct mem_store *s, uint64_t from, uint64_t end, bool want)
{
    while (from < end) {
        void *p = s->root;
        unsigned level = s->height;
        uint64_t span;

        if (from >= mem_reach(s->height))
            return want ? end : from;
        while (p && level > 0) {
            p = ((void **)p)[mem_index(from, level)];
            level--;
        }
        if (!!p == want)
            return from;
        /* Step over the whole absent subtree. */
        span = p ? 1 : mem_reach(level);
        if (span > UINT64_MAX - from)
            return end;
        from = (from & ~(span - 1)) + span;
    }
    return end;
}

/* ---- data ----------------------------------------------------------------------------- */

static void mem_read(struct mem_store *s, struct blk_req *req)
{
    uint64_t done = 0;

    while (done < req->length) {
        uint64_t at = req->offset + done;
        uint64_t in = at & (MEM_CHUNK - 1);
        uint64_t n = BLK_MIN(MEM_CHUNK - in, req->length - done);
        const uint8_t *c = mem_find(s, at >> MEM_CHUNK_BITS);

        if (c)
            blk_iov_from_buf(req->iov, req->iovcnt, done, c + in, n);
        else
            blk_iov_zero(req->iov, req->iovcnt, done, n);
        done += n;
    }
}

static int mem_write(struct mem_store *s, struct blk_req *req)
{
    uint64_t done = 0;

    while (done < req->length) {
        uint64_t at = req->offset + done;
        uint64_t in = at & (MEM_CHUNK - 1);
        uint64_t n = BLK_MIN(MEM_CHUNK - in, req->length - done);
        uint8_t *c = mem_get(s, at >> MEM_CHUNK_BITS);

        if (!c)
            return -ENOSPC;
        blk_iov_to_buf(req->iov, req->iovcnt, done, c + in, n);
        done += n;
    }
    s->size = BLK_MAX(s->size, req->offset + req->length);
    return 0;
}

static void mem_zero(struct mem_store *s, uint64_t off, uint64_t len)
{
    uint64_t end = off + len;
    uint64_t last = (end + MEM_CHUNK - 1) >> MEM_CHUNK_BITS;
    uint64_t i = off >> MEM_CHUNK_BITS;

    for (i = mem_seek(s, i, last, true); i < last; i = mem_seek(s, i + 1, last, true)) {
        uint64_t from = BLK_MAX(off, i << MEM_CHUNK_BITS);
        uint64_t to = BLK_MIN(end, (i + 1) << MEM_CHUNK_BITS);

        if (to - from == MEM_CHUNK)
            mem_drop(s, i);
        else
            memset(mem_find(s, i) + (from & (MEM_CHUNK - 1)), 0, to - from);
    }
}

static void mem_submit(struct blk_node *n, struct blk_req *req)
{
    struct mem_store *s = n->state;
    int ret = 0;

    pthread_mutex_lock(&s->lock);
    switch (req->op) {
    case BLK_READ:
        mem_read(s, req);
        break;
    case BLK_WRITE:
        ret = mem_write(s, req);
        break;
    case BLK_WRITE_ZEROES:
    case BLK_DISCARD:
        mem_zero(s, req->offset, req->length);
        break;
    default:
        break;
    }
    pthread_mutex_unlock(&s->lock);
    blk_complete(req, ret);
}

static int mem_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    struct mem_store *s = n->state;
    uint64_t last = (off + len + MEM_CHUNK - 1) >> MEM_CHUNK_BITS;
    uint64_t chunk = off >> MEM_CHUNK_BITS;
    uint64_t end;
    bool data;

    pthread_mutex_lock(&s->lock);
    data = mem_find(s, chunk);
    end = BLK_MIN(mem_seek(s, chunk, last, !data) << MEM_CHUNK_BITS, off + len);
    pthread_mutex_unlock(&s->lock);
    blk_status_at(st, n, off, end - off, data ? BLK_ST_DATA : BLK_ST_ZERO);
    return 0;
}

static int mem_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                        struct blk_error *e)
{
    struct mem_store *s = n->state;

    if (p == BLK_PREALLOC_METADATA)
        return blk_err(e, ENOTSUP, "Unsupported preallocation mode: metadata");
    if (size > BLK_SIZE_MAX)
        return blk_err_errno(e, EFBIG, "Could not resize memory");
    pthread_mutex_lock(&s->lock);
    if (size < s->size)
        mem_zero(s, size, s->size - size);
    s->size = n->size = size;
    pthread_mutex_unlock(&s->lock);
    return 0;
}

/* ---- stores ------------------------------------------------------------------------------ */

static struct mem_store *mem_store_new(const char *name, uint64_t size)
{
    struct mem_store *s = calloc(1, sizeof(*s));

    if (!s)
        return NULL;
    if (name && !(s->name = strdup(name))) {
        free(s);
        return NULL;
    }
    pthread_mutex_init(&s->lock, NULL);
    s->size = size;
    s->refs = 1;
    return s;
}

static void mem_store_put(struct mem_store *s)
{
    bool last;

    pthread_mutex_lock(&stores_lock);
    last = --s->refs == 0;
    pthread_mutex_unlock(&stores_lock);
    if (!last)
        return;
    mem_free_tree(s->root, s->height);
    pthread_mutex_destroy(&s->lock);
    free(s->name);
    free(s);
}

/* With a reference for the caller, or NULL. */
static struct mem_store *mem_store_find(const char *name)
{
    struct mem_store *s;

    pthread_mutex_lock(&stores_lock);
    for (s = stores; s && strcmp(s->name, name); s = s->next)
        ;
    if (s)
        s->refs++;
    pthread_mutex_unlock(&stores_lock);
    return s;
}

static const char *mem_name(struct blk_opts *o)
{
    const char *s = blk_opts_get(o, "filename");

    if (s && !strncmp(s, "mem:", 4))
        s += 4;
    return s && *s ? s : NULL;
}

static int mem_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    const char *name = mem_name(o);
    struct mem_store *s;
    uint64_t size = 0;
    int ret = blk_opts_get_size(o, "size", &size, e);

    if (ret < 0)
        return ret;
    if (size > BLK_SIZE_MAX)
        return blk_err(e, EFBIG, "Size is too large for memory");
    s = name ? mem_store_find(name) : mem_store_new(NULL, size);
    if (!s)
        return blk_err_errno(e, name ? ENOENT : ENOMEM, "Could not open 'mem:%s'",
                             name ? name : "");
    n->state = s;
    n->size = s->size;
    n->can_grow = n->oflags & BLK_O_RDWR;
    n->starts_as_zeros = true;
    n->limits = (struct blk_limits){ .req_align = 1, .mem_align = 1 };
    n->can_zero = n->can_discard = n->can_fua = BLK_CAP_NATIVE;
    return 0;
}

static int mem_close(struct blk_node *n, struct blk_error *e)
{
    mem_store_put(n->state);
    n->state = NULL;
    return 0;
}

static int mem_length(struct blk_node *n, uint64_t *out)
{
    struct mem_store *s = n->state;

    pthread_mutex_lock(&s->lock);
    *out = s->size;
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static int64_t mem_allocated_size(struct blk_node *n)
{
    const struct mem_store *s = n->state;

    return (int64_t)(s->chunks << MEM_CHUNK_BITS);
}

/* A store of that name which is open elsewhere lives on without its name. */
static int mem_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                      struct blk_error *e)
{
    const char *name = mem_name(o);
    struct mem_store *s, *old = NULL, **p;
    uint64_t size = 0;
    int ret = blk_opts_get_size(o, "size", &size, e);

    if (ret < 0)
        return ret;
    if (!name)
        return blk_err(e, EINVAL, "Memory needs a name to be created");
    s = size <= BLK_SIZE_MAX ? mem_store_new(name, size) : NULL;
    if (!s)
        return blk_err_errno(e, size > BLK_SIZE_MAX ? EFBIG : ENOMEM,
                             "Could not create 'mem:%s'", name);
    pthread_mutex_lock(&stores_lock);
    for (p = &stores; *p && strcmp((*p)->name, name); p = &(*p)->next)
        ;
    if (*p) {
        old = *p;
        *p = old->next;
    }
    s->next = stores;
    stores = s;
    pthread_mutex_unlock(&stores_lock);
    if (old)
        mem_store_put(old);
    return 0;
}

static const struct blk_option_desc mem_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

static const char *const mem_schemes[] = { "mem", NULL };

const struct blk_driver blk_mem = {
    .name = "mem",
    .protocol = true,
    .schemes = mem_schemes,
    .create_opts = mem_create_opts,
    .open = mem_open,
    .close = mem_close,
    .submit = mem_submit,
    .status = mem_status,
    .truncate = mem_truncate,
    .allocated_size = mem_allocated_size,
    .length = mem_length,
    .create = mem_create,
};
