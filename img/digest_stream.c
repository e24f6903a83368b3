/*
 * digest_stream.c - digests of what passes through a convert.
 *
 * A chunk is a range of the guest's disk with data in a buffer and holes of any
 * length.  Its whole segments are hashed by its own worker, side by side with other
 * chunks; the result is a list of leaves with runs of zero leaves between them.
 * Segments that a chunk only has a part of are gathered in the stream, in order.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img/digest.h"

struct leaf {
    uint64_t zeros;                     /* leaves of zeros before it */
    uint8_t digest[HASH_MAX];
};

struct digest_chunk {
    const struct hash_algorithm *a;
    const struct convert_chunk *ch;     /* while hashing */
    const uint8_t *buf;
    uint8_t *scratch;                   /* a segment put together from pieces */
    size_t n, room;
    uint64_t tail;                      /* leaves of zeros after the last */
    struct leaf leaf[];
};

struct digest_stream {
    const struct hash_algorithm *a;
    struct digest_tree *tree;
    uint8_t *part;                      /* a segment that is not complete */
    size_t part_len;
};

/* ---- whole segments of a chunk ------------------------------------------------------ */

struct digest_chunk *digest_chunk_new(const struct convert *c)
{
    /* A segment with data in it holds some of the buffer, or an end of a piece. */
    size_t room = c->buf_size / DIGEST_SEGMENT + 2 * CONVERT_SEGS + 2;
    struct digest_chunk *d = calloc(1, sizeof(*d) + room * sizeof(d->leaf[0]));

    if (d) {
        d->room = room;
        d->scratch = malloc(DIGEST_SEGMENT);
    }
    if (d && !d->scratch) {
        free(d);
        d = NULL;
    }
    return d;
}

void digest_chunk_free(struct digest_chunk *d)
{
    if (d) {
        free(d->scratch);
        free(d);
    }
}

/* The chunk's bytes [off, off + len) into dst; seg: where to start looking. */
static void gather(const struct convert_chunk *ch, const uint8_t *buf, const struct convert_seg *seg,
                   uint64_t off, size_t len, uint8_t *dst)
{
    const struct convert_seg *end = ch->segs + ch->nsegs;

    memset(dst, 0, len);
    for (; seg < end && seg->offset < off + len; seg++) {
        uint64_t from = BLK_MAX(off, seg->offset);
        uint64_t to = BLK_MIN(off + len, seg->offset + seg->length);

        if (seg->kind == CONVERT_DATA && from < to) {
            memcpy(dst + (from - off), buf + seg->buf + (from - seg->offset), (size_t)(to - from));
        }
    }
}

static void add_leaf(struct digest_chunk *d, const uint8_t *segment)
{
    if (blk_is_zero(segment, DIGEST_SEGMENT)) {
        d->tail++;
        return;
    }
    d->leaf[d->n].zeros = d->tail;
    hash_of(d->a, segment, DIGEST_SEGMENT, d->leaf[d->n++].digest);
    d->tail = 0;
}

/* One segment at off, or as many as lie in one piece of zeros.  Returns where the
 * next one starts. */
static uint64_t hash_at(struct digest_chunk *d, const struct convert_seg *seg, uint64_t off,
                        uint64_t end)
{
    uint64_t seg_end = seg->offset + seg->length;

    if (seg_end >= off + DIGEST_SEGMENT && seg->kind == CONVERT_DATA) {
        add_leaf(d, d->buf + seg->buf + (off - seg->offset));
    } else if (seg_end >= off + DIGEST_SEGMENT) {
        uint64_t n = (BLK_MIN(seg_end, end) - off) / DIGEST_SEGMENT;

        d->tail += n;
        return off + n * DIGEST_SEGMENT;
    } else {
        gather(d->ch, d->buf, seg, off, DIGEST_SEGMENT, d->scratch);
        add_leaf(d, d->scratch);
    }
    return off + DIGEST_SEGMENT;
}

/* The whole segments of a chunk: [first, end). */
static void whole_range(const struct convert_chunk *ch, uint64_t *first, uint64_t *end)
{
    *first = (ch->offset + DIGEST_SEGMENT - 1) & ~(DIGEST_SEGMENT - 1ull);
    *end = (ch->offset + ch->length) & ~(DIGEST_SEGMENT - 1ull);
}

static void hash_on_worker(void *arg)
{
    struct digest_chunk *d = arg;
    const struct convert_seg *seg = d->ch->segs;
    uint64_t off, end;

    whole_range(d->ch, &off, &end);
    while (off < end) {
        while (seg->offset + seg->length <= off) {
            seg++;
        }
        off = hash_at(d, seg, off, end);
    }
}

void digest_chunk_hash(struct digest_stream *s, struct digest_chunk *d,
                       const struct convert_chunk *ch, const uint8_t *buf)
{
    d->a = s->a;
    d->ch = ch;
    d->buf = buf;
    d->n = 0;
    d->tail = 0;
    if (ch->data) {
        co_work(hash_on_worker, d);
    } else {
        hash_on_worker(d);
    }
}

/* ---- in order --------------------------------------------------------------------------- */

static void end_part(struct digest_stream *s)
{
    uint8_t leaf[HASH_MAX];

    if (blk_is_zero(s->part, DIGEST_SEGMENT)) {
        digest_tree_zeros(s->tree, 1);
    } else {
        hash_of(s->a, s->part, DIGEST_SEGMENT, leaf);
        digest_tree_add(s->tree, leaf);
    }
    s->part_len = 0;
}

static void add_part(struct digest_stream *s, const struct convert_chunk *ch, const uint8_t *buf,
                     uint64_t off, uint64_t end)
{
    if (off < end) {
        gather(ch, buf, ch->segs, off, (size_t)(end - off), s->part + s->part_len);
        s->part_len += (size_t)(end - off);
    }
    if (s->part_len == DIGEST_SEGMENT) {
        end_part(s);
    }
}

void digest_chunk_feed(struct digest_stream *s, const struct digest_chunk *d,
                       const struct convert_chunk *ch, const uint8_t *buf)
{
    uint64_t first, end, ch_end = ch->offset + ch->length;

    whole_range(ch, &first, &end);
    if (first > end) {                  /* all inside one segment */
        add_part(s, ch, buf, ch->offset, ch_end);
        return;
    }
    add_part(s, ch, buf, ch->offset, first);
    for (size_t i = 0; i < d->n; i++) {
        digest_tree_zeros(s->tree, d->leaf[i].zeros);
        digest_tree_add(s->tree, d->leaf[i].digest);
    }
    digest_tree_zeros(s->tree, d->tail);
    add_part(s, ch, buf, end, ch_end);
}

struct digest_stream *digest_stream_new(const struct hash_algorithm *a, bool keep)
{
    struct digest_stream *s = calloc(1, sizeof(*s));

    if (!s) {
        return NULL;
    }
    s->a = a;
    s->tree = digest_tree_new(a);
    s->part = malloc(DIGEST_SEGMENT);
    if (!s->tree || !s->part) {
        digest_stream_free(s);
        return NULL;
    }
    if (keep) {
        digest_tree_keep(s->tree);
    }
    return s;
}

void digest_stream_free(struct digest_stream *s)
{
    if (s) {
        digest_tree_free(s->tree);
        free(s->part);
        free(s);
    }
}

const struct digest_tree *digest_stream_tree(const struct digest_stream *s)
{
    return s->tree;
}

int digest_stream_end(struct digest_stream *s, uint64_t size, uint8_t *out)
{
    if (s->part_len) {
        memset(s->part + s->part_len, 0, DIGEST_SEGMENT - s->part_len);
        end_part(s);
    }
    return digest_tree_end(s->tree, size, out);
}

/* ---- reading an image through it ---------------------------------------------------------- */

int digest_read(struct convert *c, struct digest_stream *s)
{
    c->backing_size = UINT64_MAX;
    c->sparse = DIGEST_SEGMENT;         /* zeros need not be written out */
    c->cluster = DIGEST_SEGMENT;        /* chunks of whole segments */
    c->buf_size = CONVERT_BUF_MIN;
    c->digest = s;
    return convert_copy(c);
}

void digest_hex(const uint8_t *digest, unsigned len, char *out)
{
    for (unsigned i = 0; i < len; i++) {
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
    }
}
