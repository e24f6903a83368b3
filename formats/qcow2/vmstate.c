/*
 * vmstate.c - the state of a virtual machine, which lies behind the disk in the same
 * mapping: from the first L1 entry on that the disk does not use.
 *
 * What is written there is not counted in any size; a snapshot that is made then shares
 * it as it does the disk's clusters.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>

uint64_t qcow2_vm_state_offset(const struct qcow2 *q)
{
    return blk_align_up(q->h.size, (uint64_t)q->cluster_size << q->l2_bits);
}

/* Room in the L1 table for guest clusters up to end. */
static int make_room(struct qcow2 *q, uint64_t end)
{
    uint64_t per_l2 = (uint64_t)q->cluster_size << q->l2_bits;
    uint64_t need = end / per_l2 + !!(end % per_l2);

    if (need <= q->h.l1_size) {
        return 0;
    }
    if (need * 8 > QCOW2_MAX_L1_BYTES) {
        return -EFBIG;
    }
    int err = qcow2_settle(q);
    err = err ? err : qcow2_l1_grow(q, (uint32_t)need);
    return err ? err : qcow2_settle(q);         /* the old table's place is used again */
}

int qcow2_vm_state(struct blk_node *n, bool write, uint64_t off, const struct iovec *iov, int cnt,
                   uint64_t len)
{
    struct qcow2 *q = n->state;
    uint64_t at, end;

    if (qcow2_external(q) || (q->crypt && q->h.crypt_method == QCOW2_CRYPT_AES)) {
        return -ENOTSUP;
    }
    if (blk_add_overflow(qcow2_vm_state_offset(q), off, &at) ||
        blk_add_overflow(at, len, &end) || end > INT64_MAX) {
        return -EFBIG;
    }
    struct blk_req req = { .op = write ? BLK_WRITE : BLK_READ, .offset = at, .length = len,
                           .iov = iov, .iovcnt = cnt, .node = n };
    blk_event(q->file, write ? "vmstate_save" : "vmstate_load");
    int err = !len ? 0 : !write ? qcow2_read_fiber(&req) : make_room(q, end);
    return err || !write || !len ? err : qcow2_write_plain(&req);
}
