/*
 * datafile.c - guest data in a file of its own: opening it, where clusters lie in
 * it, keeping it a raw image, its size.
 *
 * Invariants
 *  - A guest cluster's place is its own offset; refcounts know nothing of it.
 *  - With data_file_raw the data file reads as the guest does at any moment: what
 *    becomes zeros is made zeros there before the mapping changes.
 *  - A place is never punched later than the request that gives it up: the next
 *    write to the same guest cluster goes to the same place.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int check_given(const struct qcow2 *q, const char *node, struct blk_opts *given,
                       struct blk_error *e)
{
    bool external = q->h.incompatible & QCOW2_INC_DATA_FILE;
    bool any = blk_opts_at(given, 0, NULL, NULL);

    if (node) {
        return blk_refuse_node(node, any, e);
    }
    if (!external && any) {
        return blk_err(e, EINVAL,
                       "'data-file' can only be set for images with an external data file");
    }
    if (!external && q->h.autoclear & QCOW2_AUTO_RAW) {
        return blk_err(e, EINVAL, "data-file-raw requires a data file");
    }
    if (external && !any && !q->data_name) {
        return blk_err(e, EINVAL, "'data-file' is required for this image");
    }
    return 0;
}

int qcow2_data_open(struct qcow2 *q, struct blk_opts *o, struct blk_error *e)
{
    struct blk_opts *given = blk_opts_take(o, "data-file.");
    bool external = q->h.incompatible & QCOW2_INC_DATA_FILE;
    const char *node = blk_opts_get(o, "data-file");
    bool needed = !(q->n->oflags & BLK_O_NO_IO);
    int err = needed ? check_given(q, node, given, e) : 0;

    if (!err && external) {
        err = needed ? blk_open_data_file(q->n, q->data_name, given, e) : 0;
        q->data = q->n->data_file;
    }
    blk_opts_free(given);
    return err;
}

bool qcow2_external_sane(const struct qcow2 *q, uint64_t entry, uint64_t guest)
{
    enum qcow2_type t = qcow2_entry_type(q, entry);
    bool placed = t == QCOW2_NORMAL || t == QCOW2_ZERO_ALLOC;
    return t != QCOW2_DEFLATED &&
           (!placed || (entry & QCOW2_OFFSET_MASK) == blk_align_down(guest, q->cluster_size));
}

/* What of [off, off+len) the data file holds: beyond, it reads as zeros already. */
static uint64_t data_held(const struct qcow2 *q, uint64_t off, uint64_t len)
{
    return off < q->data->size ? BLK_MIN(len, q->data->size - off) : 0;
}

int qcow2_data_wipe(struct qcow2 *q, uint64_t off, uint64_t len, bool unmap)
{
    len = data_held(q, off, len);
    if (len && q->h.autoclear & QCOW2_AUTO_RAW) {
        return co_write_zeroes(q->data, off, len, unmap ? BLK_REQ_MAY_UNMAP : 0);
    }
    if (len && unmap) {
        co_discard(q->data, off, len);          /* a gift, not a duty */
    }
    return 0;
}

int qcow2_data_clear(struct qcow2 *q, uint64_t off, uint64_t len)
{
    len = data_held(q, off, len);
    return len ? co_write_zeroes(q->data, off, len, BLK_REQ_MAY_UNMAP) : 0;
}

int qcow2_data_resize(struct qcow2 *q, uint64_t size, enum blk_prealloc p, struct blk_error *e)
{
    if (q->data->size == size) {
        return 0;
    }
    return blk_truncate(q->data, size, true, p == BLK_PREALLOC_METADATA ? BLK_PREALLOC_OFF : p, e);
}

int qcow2_set_data_name(struct qcow2 *q, const char *name, struct blk_error *e)
{
    char *old = q->data_name, *new = *name ? strdup(name) : NULL;
    int err = *name && !new ? -ENOMEM : strlen(name) > BLK_NAME_MAX ? -EINVAL : 0;

    if (!err) {
        q->data_name = new;
        err = qcow2_header_rewrite(q);
    }
    if (err) {
        q->data_name = old;
        free(new);
        return blk_err_errno(e, -err, "Could not change the data file's name");
    }
    free(old);
    return 0;
}
