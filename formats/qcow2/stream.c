/*
 * stream.c - a new image written from its start to its end, for a pipe.
 *
 * Where everything lies follows from how many clusters have data, and how many L2
 * tables that takes:
 *   header, refcount table, refcount blocks, L1 table, L2 tables, data in guest order
 * so the map of the source is walked four times: counting, for the L1 table, for the L2
 * tables, for the data.  Nothing that grows with the image is kept in memory.
 */
#include "formats/qcow2/qcow2.h"

#include <errno.h>
#include <string.h>

#define STREAM_CHUNK (2u << 20)         /* the largest cluster */
#define EXT_L2_ALL 0xffffffffull        /* all subclusters are there */

struct stream {
    const struct blk_stream *s;
    struct qcow2_header h;
    uint64_t cluster, per_l2, entry_bytes;
    uint64_t data, l2, l1, blocks, reft;    /* clusters of each */
    uint8_t *buf;                       /* STREAM_CHUNK */
    struct blk_error *e;
};

/* ---- which clusters have data -------------------------------------------------------- */

struct walk {
    uint64_t next;                      /* guest cluster to look at */
    uint64_t known;                     /* up to here there is data, as of the last extent */
};

/* The next guest cluster with data; *index UINT64_MAX: there is none. */
static int walk_next(struct stream *st, struct walk *w, uint64_t *index)
{
    uint64_t off = w->next << st->h.cluster_bits, len;
    bool data = false;
    int err = 0;

    while (off < st->s->size && off >= w->known) {
        err = st->s->map(st->s->arg, off, &data, &len);
        if (err) {
            return err;
        }
        if (data) {
            w->known = off + len;
            break;
        }
        off += len;                     /* the middle of a cluster, perhaps */
    }
    *index = off < st->s->size ? off >> st->h.cluster_bits : UINT64_MAX;
    w->next = *index + 1;
    return 0;
}

static int count(struct stream *st)
{
    struct walk w = { 0 };
    uint64_t i, table = UINT64_MAX;
    int err;

    while (!(err = walk_next(st, &w, &i)) && i != UINT64_MAX) {
        st->data++;
        st->l2 += i / st->per_l2 != table;
        table = i / st->per_l2;
    }
    return err;
}

static uint64_t div_up(uint64_t a, uint64_t b)
{
    return a / b + !!(a % b);
}

static int lay_out(struct stream *st)
{
    uint64_t per_block = st->cluster * 8 >> st->h.refcount_order, total, blocks, reft;

    st->l1 = div_up(st->h.l1_size * 8ull, st->cluster);
    st->blocks = st->reft = 1;
    for (;;) {
        total = 1 + st->reft + st->blocks + st->l1 + st->l2 + st->data;
        blocks = div_up(total, per_block);
        reft = div_up(blocks * 8, st->cluster);
        if (blocks <= st->blocks && reft <= st->reft) {
            break;
        }
        st->blocks = BLK_MAX(blocks, st->blocks);
        st->reft = BLK_MAX(reft, st->reft);
    }
    if (st->reft * st->cluster > QCOW2_MAX_REFTABLE_BYTES) {
        return blk_err(st->e, EFBIG, "The image is too large for its cluster size");
    }
    st->h.reft_offset = st->cluster;
    st->h.reft_clusters = (uint32_t)st->reft;
    st->h.l1_offset = (1 + st->reft + st->blocks) * st->cluster;
    return 0;
}

/* ---- metadata ---------------------------------------------------------------------------- */

static int put(struct stream *st, const void *buf, uint64_t len)
{
    return st->s->write(st->s->arg, buf, len);
}

static int put_header(struct stream *st)
{
    memset(st->buf, 0, st->cluster);
    int err = qcow2_create_header(&st->h, st->buf, st->e);
    return err ? err : put(st, st->buf, st->cluster);
}

static int put_refcounts(struct stream *st)
{
    uint64_t total = 1 + st->reft + st->blocks + st->l1 + st->l2 + st->data;
    uint64_t per_block = st->cluster * 8 >> st->h.refcount_order;
    struct qcow2 q = { .h = st->h };
    int err = 0;

    for (uint64_t i = 0; i < st->reft && !err; i++) {
        for (uint64_t k = 0; k < st->cluster / 8; k++) {
            uint64_t b = i * (st->cluster / 8) + k;
            put_be64(st->buf + k * 8, b < st->blocks ? (1 + st->reft + b) * st->cluster : 0);
        }
        err = put(st, st->buf, st->cluster);
    }
    for (uint64_t i = 0; i < st->blocks && !err; i++) {
        memset(st->buf, 0, st->cluster);
        for (uint64_t k = 0; k < per_block && i * per_block + k < total; k++) {
            qcow2_refcount_put(&q, st->buf, k, 1);
        }
        err = put(st, st->buf, st->cluster);
    }
    return err;
}

/* Which L2 table of those there are, for each that has data. */
static int put_l1(struct stream *st)
{
    uint64_t l2_at = 1 + st->reft + st->blocks + st->l1, n = 0, i, per_cluster = st->cluster / 8;
    uint64_t entries = st->l1 * per_cluster, at = 0;
    struct walk w = { 0 };
    int err = walk_next(st, &w, &i);

    for (; at < entries && !err; at++) {
        bool has = i != UINT64_MAX && i / st->per_l2 == at;

        put_be64(st->buf + at % per_cluster * 8,
                 has ? (l2_at + n++) * st->cluster | QCOW2_COPIED : 0);
        if (has) {
            w.next = (at + 1) * st->per_l2;
            err = walk_next(st, &w, &i);
        }
        if (!err && at % per_cluster == per_cluster - 1) {
            err = put(st, st->buf, st->cluster);
        }
    }
    return err ? err : n == st->l2 ? 0 : -ESTALE;
}

static int put_l2(struct stream *st)
{
    uint64_t data_at = 1 + st->reft + st->blocks + st->l1 + st->l2, n = 0, tables = 0, i;
    struct walk w = { 0 };
    int err = walk_next(st, &w, &i);

    while (!err && i != UINT64_MAX) {
        uint64_t table = i / st->per_l2;

        memset(st->buf, 0, st->cluster);
        while (!err && i != UINT64_MAX && i / st->per_l2 == table) {
            uint8_t *entry = st->buf + i % st->per_l2 * st->entry_bytes;

            put_be64(entry, (data_at + n++) * st->cluster | QCOW2_COPIED);
            if (st->entry_bytes > 8) {
                put_be64(entry + 8, EXT_L2_ALL);
            }
            err = walk_next(st, &w, &i);
        }
        err = err ? err : put(st, st->buf, st->cluster);
        tables++;
    }
    return err ? err : n == st->data && tables == st->l2 ? 0 : -ESTALE;
}

/* ---- data ----------------------------------------------------------------------------------- */

/* Guest clusters [first, first + n), which fit the buffer. */
static int put_clusters(struct stream *st, uint64_t first, uint64_t n)
{
    uint64_t off = first << st->h.cluster_bits, len = n << st->h.cluster_bits;
    uint64_t have = BLK_MIN(len, st->s->size - off);
    int err;

    memset(st->buf + have, 0, len - have);
    err = st->s->read(st->s->arg, off, st->buf, have);
    return err ? err : put(st, st->buf, len);
}

static int put_data(struct stream *st)
{
    uint64_t most = STREAM_CHUNK / st->cluster, first = 0, n = 0, total = 0, i;
    struct walk w = { 0 };
    int err;

    do {
        err = walk_next(st, &w, &i);
        if (!err && n && (i != first + n || n == most)) {
            err = put_clusters(st, first, n);
            n = 0;
        }
        first = n ? first : i;
        n += i != UINT64_MAX;
        total += i != UINT64_MAX;
    } while (!err && i != UINT64_MAX);
    return err ? err : total == st->data ? 0 : -ESTALE;
}

int qcow2_stream(struct blk_opts *o, const struct blk_stream *s, struct blk_error *e)
{
    struct stream st = { .s = s, .e = e };
    int err = qcow2_create_plan(o, &st.h, e);

    if (err) {
        return err;
    }
    st.cluster = 1ull << st.h.cluster_bits;
    st.entry_bytes = st.h.incompatible & QCOW2_INC_EXTL2 ? 16 : 8;
    st.per_l2 = st.cluster / st.entry_bytes;
    st.buf = blk_buf_alloc(STREAM_CHUNK);
    err = st.buf ? count(&st) : -ENOMEM;
    err = err ? err : lay_out(&st);
    err = err ? err : put_header(&st);
    err = err ? err : put_refcounts(&st);
    err = err ? err : put_l1(&st);
    err = err ? err : put_l2(&st);
    err = err ? err : put_data(&st);
    blk_buf_free(st.buf);
    if (err == -ESTALE) {
        return blk_err(e, ESTALE, "The source changed while it was read");
    }
    return err ? blk_err_errno(e, -err, "Could not write the image") : 0;
}
