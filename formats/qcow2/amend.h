/*
 * amend.h - the steps of amend that are files of their own.  Fibers; nothing is in
 * flight at the image, nothing of its metadata dirty when they begin.
 */
#ifndef PLATTER_QCOW2_AMEND_H
#define PLATTER_QCOW2_AMEND_H

#include "formats/qcow2/qcow2.h"

/* amend_zero.c: no L2 entry says "zeros" any more, of the disk and of its snapshots; the
 * image stays what it was. */
int qcow2_expand_zeros(struct qcow2 *q, const struct blk_amend *ctl);
/* amend_width.c: refcounts of 1 << order bits. */
int qcow2_change_width(struct qcow2 *q, uint32_t order, const struct blk_amend *ctl,
                       struct blk_error *e);

static inline void qcow2_amend_progress(const struct blk_amend *ctl, uint64_t done, uint64_t total)
{
    if (ctl->progress && total) {
        ctl->progress(ctl->arg, (double)done / (double)total);
    }
}

#endif
