/*
 * virtio_blk.h - a disk for a guest: virtio-blk (virtio 1.2, 5.2) over PCI in
 * front of a block node.
 */
#ifndef PLATTER_VIRTIO_BLK_H
#define PLATTER_VIRTIO_BLK_H

#include "block/block.h"
#include "vmm-shim/mem.h"
#include "vmm-shim/pci.h"

#define VIRTIO_BLK_QUEUES_MAX 64u
#define VIRTIO_BLK_ID_BYTES   20u

struct virtio_blk_config {
    struct blk_node *node;          /* stays the caller's; outlives the disk */
    const char *serial;             /* copied, cut at 20 bytes; NULL: none */
    unsigned queues;                /* 0: 1 */
    unsigned queue_size;            /* entries, power of two <= 256; 0: 256 */
    unsigned block_size;            /* logical, power of two 512..4096; 0: 512 */
    bool read_only;                 /* also when the node is */
    bool writethrough;              /* start with the write cache off */
};

struct virtio_blk;
/* Puts the disk on the bus.  On the thread that owns the node's loop (before it
 * is handed to the disk's thread), while no vCPU runs.  Requests are served on
 * the loop's owner thread.  mem and the bus outlive the disk. */
int virtio_blk_new(struct pci_bus *bus, unsigned devfn, const struct mem *mem,
                   const struct virtio_blk_config *c, struct virtio_blk **out,
                   struct blk_error *e);
/* The loop's owner thread, after the last vCPU thread ended.  Turns the loop
 * until nothing is in flight.  NULL is fine. */
void virtio_blk_free(struct virtio_blk *b);

struct virtio_blk_stats {
    uint64_t kicks, requests, interrupts, broken;
    unsigned inflight;
};
/* Loop thread. */
const struct virtio_blk_stats *virtio_blk_stats(struct virtio_blk *b);

#endif
