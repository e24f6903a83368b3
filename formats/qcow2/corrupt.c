/*
 * corrupt.c - damage found while an image is in use: what is said of it, in QEMU's words, and
 * what becomes of the image.
 *
 * Invariants
 *  - One line for an image, and one more if after a harmless one it is marked corrupt.
 *  - Of what else changed in memory nothing is written any more: only the bit.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

static void report(struct qcow2 *q, bool marking, const char *fmt, va_list ap)
{
    char text[512];
    vsnprintf(text, sizeof(text), fmt, ap);
    if (!q->corrupt_reported || marking) {
        blk_report_bare(q->n->shown, "qcow2: %s: %s; further %scorruption events will be suppressed",
                        marking ? "Marking image as corrupt" : "Image is corrupt", text,
                        marking ? "" : "non-fatal ");
    }
    q->corrupt_reported = true;
}

int qcow2_report_corrupt(struct qcow2 *q, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    report(q, false, fmt, ap);
    va_end(ap);
    return -EIO;
}

int qcow2_mark_corrupt(struct qcow2 *q, const char *fmt, ...)
{
    va_list ap;
    if (q->corrupt) {
        return -EIO;
    }
    va_start(ap, fmt);
    report(q, q->writable, fmt, ap);
    va_end(ap);
    if (q->writable) {
        q->corrupt = true;
        if (q->h.version >= 3) {
            q->h.incompatible |= QCOW2_INC_CORRUPT;
            int err = qcow2_header_update(q);
            if (err) {
                blk_report("%s: qcow2: the corrupt bit could not be written: %s", q->n->shown,
                           strerror(-err));
            }
        }
    }
    return -EIO;
}

/* ---- what lies where ------------------------------------------------------------------------ */

static bool within(const struct qcow2 *q, uint64_t offset, uint64_t table, uint64_t bytes)
{
    return bytes && offset >= table &&
           offset - table < qcow2_clusters(q, bytes) << q->h.cluster_bits;
}

static bool is_entry(uint64_t offset, const uint64_t *table, uint64_t len)
{
    for (uint64_t i = 0; i < len; i++) {
        if ((table[i] & QCOW2_OFFSET_MASK) == offset) {
            return true;
        }
    }
    return false;
}

static const char *snapshot_kind(struct qcow2 *q, uint64_t offset)
{
    struct qcow2_snapshot *s;
    uint64_t bytes;
    const char *kind = NULL;

    if (!q->h.nb_snapshots || qcow2_snapshots_read(q, &s, &bytes, NULL)) {
        return q->h.nb_snapshots && within(q, offset, q->h.snap_offset, 1) ? "snapshot table"
                                                                         : NULL;
    }
    if (within(q, offset, q->h.snap_offset, bytes)) {
        kind = "snapshot table";
    }
    for (uint32_t i = 0; !kind && i < q->h.nb_snapshots; i++) {
        if (within(q, offset, s[i].l1_offset, s[i].l1_size * 8ull)) {
            kind = "inactive L1 table";
        }
    }
    qcow2_snapshots_free(q, s);
    return kind;
}

const char *qcow2_meta_kind(struct qcow2 *q, uint64_t offset, bool l2)
{
    offset = blk_align_down(offset, q->cluster_size);
    return !offset                                               ? "qcow2_header"
           : within(q, offset, q->h.l1_offset, q->h.l1_size * 8ull) ? "active L1 table"
           : l2 && is_entry(offset, q->l1, q->h.l1_size)          ? "active L2 table"
           : within(q, offset, q->h.reft_offset,
                    (uint64_t)q->h.reft_clusters << q->h.cluster_bits) ? "refcount table"
           : is_entry(offset, q->reft, q->reft_len)               ? "refcount block"
           : snapshot_kind(q, offset);
}

int qcow2_write_prevented(struct qcow2 *q, uint64_t offset, bool l2)
{
    const char *kind = qcow2_meta_kind(q, offset, l2);
    return qcow2_mark_corrupt(q, "Preventing invalid write on metadata (overlaps with %s)",
                              kind ? kind : "other metadata");
}

/* ---- entries ----------------------------------------------------------------------------------- */

int qcow2_l1_bad(struct qcow2 *q, uint64_t l1)
{
    return qcow2_mark_corrupt(q, "L2 table offset %#llx unaligned (L1 index: %#llx)",
                              (unsigned long long)(q->l1[l1] & QCOW2_OFFSET_MASK),
                              (unsigned long long)l1);
}

int qcow2_entry_bad(struct qcow2 *q, uint64_t entry, uint64_t map, uint64_t guest, bool write)
{
    uint64_t l1 = qcow2_l1_index(q, qcow2_slice_index(q, guest));
    unsigned i = (unsigned)(guest >> q->h.cluster_bits) & ((1u << q->l2_bits) - 1), run;
    unsigned long long off = entry & QCOW2_OFFSET_MASK;
    char at[80];

    snprintf(at, sizeof(at), "(L2 offset: %#llx, L2 index: %#x)",
             (unsigned long long)(q->l1[l1] & QCOW2_OFFSET_MASK), i);
    if (qcow2_external(q) && entry & QCOW2_COMPRESSED) {
        return qcow2_mark_corrupt(q, "Compressed cluster entry found in image with external data "
                                  "file %s", at);
    }
    if (qcow2_external(q) && !qcow2_external_sane(q, entry, guest)) {
        return qcow2_mark_corrupt(q, "External data file host cluster offset %#llx does not match "
                                  "guest cluster offset: %#llx, L2 index: %#x)", off,
                                  (unsigned long long)blk_align_down(guest, q->cluster_size), i);
    }
    if (qcow2_sub_type(q, entry, map, 0, &run) == QCOW2_INVALID) {
        return qcow2_mark_corrupt(q, "Invalid cluster entry found %s%s", write ? "" : " ", at);
    }
    if (q->h.version < 3 && entry & QCOW2_ZERO) {
        return qcow2_mark_corrupt(q, "Zero cluster entry found in pre-v3 image %s", at);
    }
    if (write) {
        bool zero = qcow2_entry_type(q, entry) == QCOW2_ZERO_ALLOC;
        return qcow2_mark_corrupt(q, "%s cluster offset %#llx unaligned (guest offset: %#llx)",
                                  zero ? "Preallocated zero" : "Data", off,
                                  (unsigned long long)guest);
    }
    return qcow2_mark_corrupt(q, "Cluster allocation offset %#llx unaligned %s", off, at);
}
