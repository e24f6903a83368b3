/*
 * prealloc.c - host clusters for a guest range that nobody has written to yet.
 *
 * metadata: as writes would get them, one L2 table after the other.  falloc and full: one run
 * behind everything in use, with the refcount structures for it in front; the space is there,
 * durably, before L2 entries lead to it.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What follows the image's end in its last cluster is written, as QEMU does. */
static int zero_tail(struct qcow2 *q, uint64_t tail, uint64_t len)
{
    uint8_t *buf = len ? blk_buf_alloc(len) : NULL;
    int err = len && !buf ? -ENOMEM : 0;

    if (buf) {
        memset(buf, 0, len);
        err = co_write(q->data, tail, buf, len, 0);
    }
    blk_buf_free(buf);
    return err;
}

/* The last cluster so far, used from guest up to from, has its own host cluster, or gets one like
 * the others; or it is rewritten: encrypted with zeros behind, else what it holds. */
static int take_last(struct qcow2 *q, uint64_t guest, uint64_t from, uint64_t end)
{
    struct qcow2_slice *s;
    int err = from > guest ? qcow2_l2_write(q, guest, &s) : 0;

    if (err || from == guest) {
        return err;
    }
    uint64_t entry = qcow2_entry_get(q, s->word, qcow2_entry_index(q, guest));
    qcow2_slice_put(s);
    if (q->crypt) {
        return qcow2_write_zeros(q, from, end);
    }
    if (entry & QCOW2_COPIED || (q->wide && !(entry & (QCOW2_COMPRESSED | QCOW2_OFFSET_MASK)))) {
        return 0;
    }
    uint8_t *buf = blk_buf_alloc(from - guest);
    err = buf ? co_read(q->n, guest, buf, from - guest) : -ENOMEM;
    err = err ? err : co_write(q->n, guest, buf, from - guest, 0);
    blk_buf_free(buf);
    return err;
}

static int resize_data(struct qcow2 *q, uint64_t size, enum blk_prealloc p, struct blk_error *e)
{
    bool mapped = p == BLK_PREALLOC_METADATA;
    int err = blk_truncate(q->data, size, false, mapped ? BLK_PREALLOC_OFF : p, e);

    if (err && !mapped && !qcow2_external(q)) {
        blk_error_prefix(e, "Failed to resize underlying file: ");
    }
    return err;
}

static int prealloc_mapped(struct qcow2 *q, uint64_t from, uint64_t to, enum blk_prealloc p,
                           struct blk_error *e)
{
    uint64_t host_end, tail, first = blk_align_down(from, q->cluster_size);
    int err = take_last(q, first, from, BLK_MIN(to, first + q->cluster_size));

    err = err ? err : qcow2_map_range(q, first, to, &host_end, &tail);
    if (!err && tail) {
        uint64_t used = blk_align_up(tail, q->sub_size);
        if (!q->crypt) {
            err = zero_tail(q, tail, used - tail);
        }
        if (host_end == blk_align_up(tail, q->cluster_size)) {
            host_end = used;    /* subclusters that no guest byte lies in need not be there */
        }
    }
    if (qcow2_external(q)) {
        host_end = blk_align_up(to, q->cluster_size);
    }
    if (!err && host_end > q->data->size) {
        err = resize_data(q, host_end, p, e);
    }
    return err;
}

/* Guest clusters from `guest` on lie at host from now on.  Over a longer backing file all
 * subclusters count as written: they are zeros, as new space in a file is. */
static int link_run(struct qcow2 *q, uint64_t guest, uint64_t host, uint64_t clusters, bool over)
{
    int err = 0;

    while (clusters && !err) {
        struct qcow2_slice *s;
        unsigned i = qcow2_entry_index(q, guest);
        uint64_t now = BLK_MIN(clusters, (1ull << q->slice_bits) - i);

        err = qcow2_l2_write(q, guest, &s);
        for (uint64_t k = 0; !err && k < now; k++) {
            uint64_t old = qcow2_entry_get(q, s->word, i + (unsigned)k);
            uint64_t map = old & QCOW2_COMPRESSED ? UINT32_MAX : qcow2_bitmap_get(q, s->word, i + (unsigned)k);
            qcow2_free_entry_later(q, old);
            qcow2_bitmap_put(q, s->word, i + (unsigned)k, over ? UINT32_MAX : map);
            qcow2_entry_put(q, s->word, i + (unsigned)k,
                            (host + (k << q->h.cluster_bits)) | QCOW2_COPIED);
        }
        if (!err) {
            qcow2_slice_dirty(q, s);
            qcow2_slice_put(s);
            err = qcow2_flush_if_much(q);
        }
        guest += now << q->h.cluster_bits;
        host += now << q->h.cluster_bits;
        clusters -= now;
    }
    return err;
}

/* What the last cluster so far holds, [guest, guest + len), also holds at its new place. */
static int copy_part(struct qcow2 *q, uint64_t guest, uint64_t host, uint64_t len)
{
    uint8_t *buf = len ? blk_buf_alloc(len) : NULL;
    int err = len && !buf ? -ENOMEM : 0;

    err = err || !len ? err : co_read(q->n, guest, buf, len);
    err = err || !len ? err : co_write(q->data, host, buf, len, 0);
    blk_buf_free(buf);
    return err;
}

static int prealloc_area(struct qcow2 *q, uint64_t from, uint64_t to, enum blk_prealloc p,
                         struct blk_error *e)
{
    uint64_t first = blk_align_down(from, q->cluster_size), n = qcow2_clusters(q, to - first), host;
    int err = qcow2_alloc_area(q, n, (n + (1ull << q->l2_bits) - 1) >> q->l2_bits, &host);

    if (err) {
        return err;
    }
    err = qcow2_settle(q);
    if (!err) {
        err = resize_data(q, host + (n << q->h.cluster_bits), p, e);
    }
    err = err ? err : copy_part(q, first, host, from - first);
    if (err) {
        qcow2_unalloc(q, host, n);
        qcow2_settle(q);
        return err;
    }
    return link_run(q, first, host, n, q->n->backing && q->n->backing->size > from);
}

/* Encrypted zeros are written. */
bool qcow2_preallocates_area(const struct qcow2 *q, enum blk_prealloc p)
{
    return (p == BLK_PREALLOC_FALLOC || p == BLK_PREALLOC_FULL) && !qcow2_external(q) && !q->crypt &&
           q->file->can_grow;
}

int qcow2_preallocate(struct qcow2 *q, uint64_t from, uint64_t to, enum blk_prealloc p,
                      struct blk_error *e)
{
    bool area = qcow2_preallocates_area(q, p);
    /* Storage that cannot grow has its space already, but may not know of preallocation. */
    bool asked = !q->file->can_grow && !qcow2_external(q);
    int err = asked ? resize_data(q, q->data->size, p, e) : 0;

    err = err ? err : area ? prealloc_area(q, from, to, p, e) : prealloc_mapped(q, from, to, p, e);
    return err ? blk_err_errno(e, -err, "Could not preallocate clusters") : 0;
}
