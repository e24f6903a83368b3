/*
 * dmg.c - Apple disk images (UDIF), read only: a trailer ("koly") at the end of the file
 * leads to tables of chunks ("mish"), in a resource fork or as base64 in a property list;
 * chunks are stored as they are, zeros, or compressed by zlib or bzip2.  Big endian.
 *
 * Invariants
 *  - Chunks are sorted and do not overlap; a place that no chunk has is an I/O error, as in
 *    QEMU.
 *  - One chunk is kept uncompressed; its size is bounded by DMG_CHUNK_MAX.
 */
#include "block/driver.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#ifdef HAVE_BZIP2
#include <bzlib.h>
#endif

#define DMG_CHUNK_MAX   (64u << 20)     /* bytes of a chunk, either way */
#define DMG_CHUNKS_MAX  (1u << 20)      /* of an image */
#define DMG_PLIST_MAX   (16u << 20)     /* bytes of the property list or resource fork */
#define DMG_MISH        0x6d697368u
#define DMG_MISH_HEAD   204u
#define DMG_MISH_CHUNK  40u

/* The trailer. */
enum {
    DK_DATA = 0x18, DK_RSRC = 0x28, DK_RSRC_LEN = 0x30, DK_PLIST = 0xd8, DK_PLIST_LEN = 0xe0,
    DK_SECTORS = 0x1ec, DK_BYTES = 512,
};
/* Chunk types: what QEMU calls UDRW, UDZE, UDIG, UDZO, UDBZ. */
enum {
    DC_ZERO = 0, DC_RAW = 1, DC_IGNORE = 2, DC_ZLIB = 0x80000005u, DC_BZIP2 = 0x80000006u,
    /* These are not read: lzfse, a comment, the end mark. */
    DC_LZFSE = 0x80000007u, DC_COMMENT = 0x7ffffffeu, DC_END = 0xffffffffu,
};

struct chunk {
    uint32_t type;
    uint64_t start, len;            /* guest bytes */
    uint64_t offset, stored;        /* in the file */
};

struct dmg {
    struct blk_node *n;
    struct chunk *chunk;
    size_t chunks, room;
    uint64_t data;                  /* where the data fork begins */
    bool told_missing, told_unknown;
    struct co_mutex lock;           /* of the chunk that is kept */
    uint8_t *kept;
    const struct chunk *kept_chunk;
};

/* ---- the tables of chunks ------------------------------------------------------------------ */

static bool known(uint32_t type)
{
#ifdef HAVE_BZIP2
    if (type == DC_BZIP2) {
        return true;
    }
#endif
    return type == DC_ZERO || type == DC_RAW || type == DC_IGNORE || type == DC_ZLIB;
}

/* Once each an image, in QEMU's words: the rest of it can be read. */
static void warn_unread(struct dmg *d, uint32_t type)
{
    const char *missing = type == DC_BZIP2 ? "bzip2" : type == DC_LZFSE ? "lzfse" : NULL;

    if (missing && !d->told_missing) {
        d->told_missing = true;
        blk_report("warning: dmg-%s module is missing, accessing %s compressed blocks will "
                   "result in I/O errors", missing, missing);
    } else if (!missing && type != DC_COMMENT && type != DC_END && !d->told_unknown) {
        d->told_unknown = true;
        blk_report("warning: Image contains chunks of unknown type %x, accessing them will "
                   "result in I/O errors", type);
    }
}

static bool is_zero(const struct chunk *c)
{
    return c->type == DC_ZERO || c->type == DC_IGNORE;
}

static int add_chunk(struct dmg *d, const struct chunk *c, struct blk_error *e)
{
    if (d->chunks == d->room) {
        size_t room = d->room ? d->room * 2 : 64;
        struct chunk *more = d->room < DMG_CHUNKS_MAX ? realloc(d->chunk, room * sizeof(*more))
                                                      : NULL;
        if (!more) {
            return blk_err(e, EFBIG, "dmg file has too many chunks");
        }
        d->chunk = more;
        d->room = room;
    }
    d->chunk[d->chunks++] = *c;
    return 0;
}

/* One entry of a table; base and data: what its numbers count from. */
static int take_chunk(struct dmg *d, const uint8_t *p, uint64_t base, uint64_t data,
                      struct blk_error *e)
{
    uint64_t sector = be64(p + 8), count = be64(p + 16), offset = be64(p + 24);
    struct chunk c = { .type = be32(p), .stored = be64(p + 32) };
    uint64_t end;

    if (!known(c.type)) {
        warn_unread(d, c.type);
        return 0;
    }
    if (!count) {
        return 0;
    }
    if (!is_zero(&c) && count > DMG_CHUNK_MAX / 512) {
        return blk_err(e, EINVAL, "sector count %llu for chunk %zu is larger than max (%u)",
                       (unsigned long long)count, d->chunks, DMG_CHUNK_MAX / 512);
    }
    if (!is_zero(&c) && c.stored > DMG_CHUNK_MAX) {
        return blk_err(e, EINVAL, "length %llu for chunk %zu is larger than max (%u)",
                       (unsigned long long)c.stored, d->chunks, DMG_CHUNK_MAX);
    }
    if (blk_add_overflow(sector, base, &sector) || blk_add_overflow(sector, count, &end) ||
        end > BLK_SIZE_MAX / 512 || blk_add_overflow(offset, data, &c.offset) ||
        (!is_zero(&c) && (blk_add_overflow(c.offset, c.stored, &end) ||
                          end > d->n->file->size))) {
        return blk_err(e, EINVAL, "chunk %zu is not within the dmg file", d->chunks);
    }
    c.start = sector * 512;
    c.len = count * 512;
    return add_chunk(d, &c, e);
}

static int take_mish(struct dmg *d, const uint8_t *p, size_t len, struct blk_error *e)
{
    uint64_t data;
    int err = 0;
    if (len < DMG_MISH_HEAD + DMG_MISH_CHUNK || be32(p) != DMG_MISH) {
        return 0;                   /* another kind of resource */
    }
    if (blk_add_overflow(be64(p + 0x18), d->data, &data)) {
        return blk_err(e, EINVAL, "a table of the dmg file has its data at an impossible place");
    }
    for (size_t at = DMG_MISH_HEAD; !err && len - at >= DMG_MISH_CHUNK; at += DMG_MISH_CHUNK) {
        err = take_chunk(d, p + at, be64(p + 8), data, e);
    }
    return err;
}

/* Resources follow each other, each with its length in front. */
static int take_resources(struct dmg *d, const uint8_t *p, size_t len, struct blk_error *e)
{
    uint64_t at, end;
    if (len < 16) {
        return blk_err(e, EINVAL, "the resource fork of the dmg file is cut");
    }
    at = be32(p);
    end = at + be32(p + 8);
    if (at > len || !be32(p + 8) || end > len) {
        return blk_err(e, EINVAL, "the resource fork of the dmg file is damaged");
    }
    while (at < end) {
        uint32_t n = end - at >= 4 ? be32(p + at) : 0;
        if (!n || n > end - at - 4) {
            return blk_err(e, EINVAL, "a resource of the dmg file is damaged (offset %#llx of "
                           "the fork)", (unsigned long long)at);
        }
        int err = take_mish(d, p + at + 4, n, e);
        if (err) {
            return err;
        }
        at += 4ull + n;
    }
    return 0;
}

static int base64_value(char c)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* In place; whatever is not a digit is passed over. */
static size_t base64_decode(char *text, size_t len)
{
    uint8_t *out = (uint8_t *)text;
    uint32_t bits = 0;
    unsigned have = 0;
    size_t n = 0;
    for (size_t i = 0; i < len && text[i] != '='; i++) {
        int v = base64_value(text[i]);
        if (v < 0) {
            continue;
        }
        bits = bits << 6 | (uint32_t)v;
        have += 6;
        if (have >= 8) {
            have -= 8;
            out[n++] = (uint8_t)(bits >> have);
        }
    }
    return n;
}

/* The tables are the <data> elements. p has a 0 behind its end. */
static int take_plist(struct dmg *d, char *p, struct blk_error *e)
{
    char *end;
    int err = 0;
    while (!err && (p = strstr(p, "<data>"))) {
        p += 6;
        end = strstr(p, "</data>");
        if (!end) {
            return blk_err(e, EINVAL, "the property list of the dmg file is cut");
        }
        size_t n = base64_decode(p, (size_t)(end - p));
        err = take_mish(d, (const uint8_t *)p, n, e);
        p = end;
    }
    return err;
}

/* ---- open ------------------------------------------------------------------------------------ */

static int compare_chunks(const void *a, const void *b)
{
    const struct chunk *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

static int order_chunks(struct dmg *d, struct blk_error *e)
{
    if (d->chunks) {
        qsort(d->chunk, d->chunks, sizeof(*d->chunk), compare_chunks);
    }
    for (size_t i = 1; i < d->chunks; i++) {
        if (d->chunk[i].start < d->chunk[i - 1].start + d->chunk[i - 1].len) {
            return blk_err(e, EINVAL, "chunks of the dmg file overlap at guest offset %#llx",
                           (unsigned long long)d->chunk[i].start);
        }
    }
    return 0;
}

/* In the last 1023 bytes, on any byte. */
static int find_trailer(struct blk_node *file, uint8_t *trailer, uint64_t *at,
                        struct blk_error *e)
{
    uint8_t buf[1024 + DK_BYTES] = { 0 };
    uint64_t size = blk_align_up(file->size, 512);
    uint64_t from = size > 1023 ? size - 1023 : 0;

    if (size < 512) {
        return blk_err(e, EINVAL, "dmg file must be at least 512 bytes long");
    }
    int err = co_read(file, from, buf, (size_t)(size - from));
    if (err) {
        return blk_err_errno(e, -err, "Failed while reading UDIF trailer");
    }
    for (size_t i = 0; i < BLK_MIN(size, 515u) - 3; i++) {
        if (!memcmp(buf + i, "koly", 4)) {
            memcpy(trailer, buf + i, DK_BYTES);
            *at = from + i;
            return 0;
        }
    }
    return blk_err(e, EINVAL, "Could not locate UDIF trailer in dmg file");
}

static int read_tables(struct dmg *d, const uint8_t *t, uint64_t trailer, struct blk_error *e)
{
    bool fork = be64(t + DK_RSRC_LEN) != 0;
    uint64_t off = be64(t + (fork ? DK_RSRC : DK_PLIST));
    uint64_t len = be64(t + (fork ? DK_RSRC_LEN : DK_PLIST_LEN));
    if (off >= trailer || len > trailer - off || !len || len > DMG_PLIST_MAX) {
        return blk_err(e, EINVAL, "the %s of the dmg file (%llu bytes at offset %#llx) is not "
                       "within the file or too large", fork ? "resource fork" : "property list",
                       (unsigned long long)len, (unsigned long long)off);
    }
    char *p = malloc((size_t)len + 1);
    int err = p ? co_read(d->n->file, off, p, (size_t)len) : -ENOMEM;
    if (err) {
        blk_err_errno(e, -err, "Could not read the tables of the dmg file");
    } else {
        p[len] = 0;
        err = fork ? take_resources(d, (const uint8_t *)p, (size_t)len, e) : take_plist(d, p, e);
    }
    free(p);
    return err ? err : order_chunks(d, e);
}

static void dmg_free(struct dmg *d)
{
    if (d) {
        free(d->chunk);
        free(d->kept);
        free(d);
    }
}

static int dmg_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct dmg *d = calloc(1, sizeof(*d));
    uint8_t t[DK_BYTES] = { 0 };
    uint64_t trailer = 0;
    int err = d ? 0 : -ENOMEM;

    if (!err && !n->read_only) {
        err = blk_err(e, EACCES, "Image is read-only");
    }
    err = err ? err : find_trailer(n->file, t, &trailer, e);
    if (!err) {
        d->n = n;
        d->data = be64(t + DK_DATA);
        if (d->data > trailer || be64(t + DK_SECTORS) > BLK_SIZE_MAX / 512) {
            err = blk_err(e, EINVAL, "the trailer of the dmg file is damaged");
        }
    }
    err = err ? err : read_tables(d, t, trailer, e);
    if (err) {
        dmg_free(d);
        return err;
    }
    n->size = be64(t + DK_SECTORS) * 512;
    n->state = d;
    return 0;
}

static int dmg_close(struct blk_node *n, struct blk_error *e)
{
    dmg_free(n->state);
    return 0;
}

/* ---- reading ------------------------------------------------------------------------------------ */

struct inflate_job {
    const struct chunk *c;
    uint8_t *in, *out;
    bool ok;
};

static void inflate_chunk(void *arg)
{
    struct inflate_job *j = arg;
    uLongf len = (uLongf)j->c->len;
    if (j->c->type == DC_ZLIB) {
        j->ok = uncompress(j->out, &len, j->in, (uLong)j->c->stored) == Z_OK && len == j->c->len;
    }
#ifdef HAVE_BZIP2
    if (j->c->type == DC_BZIP2) {
        unsigned n = (unsigned)j->c->len;
        j->ok = BZ2_bzBuffToBuffDecompress((char *)j->out, &n, (char *)j->in,
                                           (unsigned)j->c->stored, 0, 0) == BZ_OK &&
                n == j->c->len;
    }
#endif
}

/* Under the lock: c uncompressed in d->kept. */
static int keep_chunk(struct dmg *d, const struct chunk *c)
{
    struct inflate_job j = { .c = c, .in = malloc(c->stored ? c->stored : 1),
                             .out = malloc(c->len) };
    int err = j.in && j.out ? 0 : -ENOMEM;

    err = err ? err : co_read(d->n->file, c->offset, j.in, (size_t)c->stored);
    if (!err) {
        co_work(inflate_chunk, &j);
        err = j.ok ? 0 : -EIO;
    }
    free(j.in);
    if (err) {
        free(j.out);
        if (err == -EIO) {
            blk_report("%s: the chunk at offset %#llx cannot be uncompressed", d->n->shown,
                       (unsigned long long)c->offset);
        }
        return err;
    }
    free(d->kept);
    d->kept = j.out;
    d->kept_chunk = c;
    return 0;
}

/* The chunk that holds off, or NULL. */
static const struct chunk *find_chunk(const struct dmg *d, uint64_t off)
{
    size_t lo = 0, hi = d->chunks;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const struct chunk *c = &d->chunk[mid];
        if (off < c->start) {
            hi = mid;
        } else if (off - c->start >= c->len) {
            lo = mid + 1;
        } else {
            return c;
        }
    }
    return NULL;
}

/* Stored as it is: what is shorter than the chunk is followed by zeros. */
static int read_stored(struct dmg *d, const struct chunk *c, const struct blk_req *req,
                       uint64_t pos, uint64_t in, uint64_t len)
{
    uint64_t have = in < c->stored ? BLK_MIN(len, c->stored - in) : 0;
    struct blk_parts *parts;
    blk_iov_zero(req->iov, req->iovcnt, pos + have, len - have);
    if (!have) {
        return 0;
    }
    parts = blk_parts_new(req->iov, req->iovcnt);
    int err = parts ? blk_parts_add(parts, d->n->file, BLK_READ, c->offset + in, pos, have) : 0;
    int end = blk_parts_end(parts);
    return err ? err : end;
}

static int read_piece(struct dmg *d, const struct blk_req *req, uint64_t pos, uint64_t *done)
{
    uint64_t off = req->offset + pos;
    const struct chunk *c = find_chunk(d, off);
    int err = 0;
    if (!c) {
        return -EIO;
    }
    *done = BLK_MIN(req->length - pos, c->len - (off - c->start));
    if (is_zero(c)) {
        blk_iov_zero(req->iov, req->iovcnt, pos, *done);
        return 0;
    }
    if (c->type == DC_RAW) {
        return read_stored(d, c, req, pos, off - c->start, *done);
    }
    co_lock(&d->lock);
    err = d->kept_chunk == c ? 0 : keep_chunk(d, c);
    if (!err) {
        blk_iov_from_buf(req->iov, req->iovcnt, pos, d->kept + (off - c->start), *done);
    }
    co_unlock(&d->lock);
    return err;
}

static int read_fiber(struct blk_req *req)
{
    struct dmg *d = req->node->state;
    uint64_t pos = 0;
    int err = 0;
    while (!err && pos < req->length) {
        uint64_t done = 0;
        err = read_piece(d, req, pos, &done);
        pos += done;
    }
    return err;
}

static void dmg_submit(struct blk_node *n, struct blk_req *req)
{
    if (req->op == BLK_READ) {
        blk_req_fiber(req, read_fiber);
    } else {
        blk_complete(req, req->op == BLK_FLUSH ? 0 : -EPERM);
    }
}

/* QEMU says DATA of everything and tells no more. */
static int dmg_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    st->flags = BLK_ST_DATA | BLK_ST_ALLOCATED;
    st->length = len;
    return 0;
}

static int dmg_info(struct blk_node *n, struct blk_info *out, struct blk_error *e)
{
    out->bare = true;
    return 0;
}

const struct blk_driver blk_dmg = {
    .name = "dmg",
    .suffix = ".dmg",              /* the mark is at the end */
    .open = dmg_open,
    .close = dmg_close,
    .submit = dmg_submit,
    .status = dmg_status,
    .info = dmg_info,
};
