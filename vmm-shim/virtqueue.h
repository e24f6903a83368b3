/*
 * virtqueue.h - one split virtqueue (virtio 1.2, 2.7) as the device sees it.
 * Used only by the loop thread that owns the device.
 *
 * Everything in the rings may be hostile and may change while we look: each
 * descriptor and each index is read once into private memory, checked there and
 * used from there.  What is structurally wrong (an index out of range, a loop,
 * an address that is no RAM, ...) breaks the queue: it stays broken until the
 * device is reset, and q->why says what it was.
 */
#ifndef PLATTER_VIRTQUEUE_H
#define PLATTER_VIRTQUEUE_H

#include "vmm-shim/mem.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define VIRTQ_SIZE_MAX 256u
/* Segments in one chain, direct and indirect together: the 254 data segments
 * that virtio-blk advertises, and room for a header and a status cut in pieces. */
#define VIRTQ_SEGS     288u

enum { VIRTQ_DESC_NEXT = 1, VIRTQ_DESC_WRITE = 2, VIRTQ_DESC_INDIRECT = 4 };

struct virtq_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

struct virtq_used_elem { uint32_t id, len; };

/* Where the guest put a queue, and what it negotiated. */
struct virtq_config {
    uint16_t size;                  /* entries, power of two */
    uint64_t desc, avail, used;     /* guest-physical */
    bool event_idx, indirect;
};

struct virtqueue {
    const struct mem *mem;
    uint16_t size;
    bool event_idx, indirect;
    bool broken;
    const char *why;                /* static text, once broken */

    /* In guest memory. */
    const struct virtq_desc *desc;
    const uint16_t *avail;          /* flags, idx, ring[size], used_event */
    uint16_t *used;                 /* flags, idx, elem[size], avail_event */

    uint16_t last_avail;            /* next to take */
    uint16_t used_next;             /* next to fill; published by flush */
    uint16_t used_published;
    uint64_t busy[VIRTQ_SIZE_MAX / 64];   /* heads the device holds */
};

/* A chain in private memory: out readable segments, then in writable ones. */
struct virtq_chain {
    struct iovec *iov;              /* caller's, VIRTQ_SEGS entries */
    unsigned out, in;
    uint32_t out_len, in_len;       /* bytes */
};

/* NULL, or what is wrong with a queue's place and size (static text). */
const char *virtqueue_check(const struct mem *m, const struct virtq_config *c);
/* c must have passed virtqueue_check() on the same map. */
void virtqueue_start(struct virtqueue *q, const struct mem *m, const struct virtq_config *c);

/* Take the next available head: 1, 0 (none), or -EPROTO: broken now. The head is
 * the device's until virtqueue_push(). */
int virtqueue_take(struct virtqueue *q, uint16_t *head);
/* Copy and check the chain at head into c (c->iov set by the caller). 0, -EPROTO. */
int virtqueue_map(struct virtqueue *q, uint16_t head, struct virtq_chain *c);
/* Give head back with written bytes in its writable part. Not visible to the
 * guest before virtqueue_flush().  Does nothing on a broken queue. */
void virtqueue_push(struct virtqueue *q, uint16_t head, uint32_t written);
/* Publish what was pushed; true if the guest wants an interrupt for it. */
bool virtqueue_flush(struct virtqueue *q);

/* Ask the guest not to kick while we work; then ask for kicks again, true if
 * buffers came meanwhile (go on working). */
void virtqueue_suppress(struct virtqueue *q);
bool virtqueue_wait(struct virtqueue *q);

/* Break the queue by hand; returns -EPROTO. */
int virtqueue_break(struct virtqueue *q, const char *why);

#endif
