/*
 * disk.h - one disk of the machine: a block node, the loop thread that serves
 * it, and the virtio-blk device in front.
 *
 * Opened by the main thread, which owns the loop until disk_start(); from then
 * on everything of the disk happens on its own thread, never on a vCPU's.
 */
#ifndef PLATTER_DISK_H
#define PLATTER_DISK_H

#include <pthread.h>
#include <stdatomic.h>

#include "block/block.h"
#include "vmm-shim/options.h"
#include "vmm-shim/virtio_blk.h"

struct disk {
    const struct disk_options *options;
    struct blk_loop *loop;
    struct blk_node *node;
    struct virtio_blk *blk;
    bool started;
    atomic_bool reporting;
    struct blk_post report;
    pthread_t thread;
    int close_result;               /* of the disk's thread */
    struct blk_error close_error;
};

/* d is zeroed; options, bus and mem outlive it.  Nothing is left on failure. */
int disk_open(struct disk *d, const struct disk_options *o, unsigned cpus, struct pci_bus *bus,
              unsigned devfn, const struct mem *mem, struct blk_error *e);
int disk_start(struct disk *d, struct blk_error *e);
/* Its thread says what the disk is doing (blk_report()).  Not twice at once: a second call
 * before that is dropped. */
void disk_report(struct disk *d);
/* No vCPU runs any more.  Drains, flushes, closes; the first error that nobody
 * has seen. */
int disk_close(struct disk *d, struct blk_error *e);

#endif
