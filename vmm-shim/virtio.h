/*
 * virtio.h - a virtio 1.2 device behind PCI, whatever its type: status,
 * features, queue registers, and the hand-over between vCPUs and a loop.
 *
 * Who owns what
 *  - The registers (everything under "registers" below) belong to whoever holds
 *    d->pci.lock.  vCPU threads hold it for each access.  The loop thread takes
 *    it only to start, stop and reset queues and to set NEEDS_RESET, for a few
 *    instructions, and never waits for anything while holding it.
 *  - The live queues (everything under "the loop's") belong to the loop's owner
 *    thread.  A vCPU never touches them: it leaves a word in d->mail and posts.
 *  - Requests in flight are counted in d->inflight, on the loop thread.
 *
 * Life
 *  DRIVER_OK: the registers freeze (later writes to them are dropped) and START
 *  is mailed; the loop copies them, starts the queues and watches their doorbells.
 *  FAILED: HALT is mailed; no more is taken from the queues.
 *  Reset (0 written to the status): RESET is mailed.  The loop stops the queues,
 *  takes nothing more and gives nothing back, waits until the last request has
 *  completed, and only then sets the status to 0.  Until that moment the status
 *  still reads as before (the driver must wait for the 0: virtio 1.2, 4.1.4.3.2)
 *  and writes are dropped.  The vCPU that wrote waits at most VIRTIO_RESET_WAIT
 *  for it, in a condition variable, with the lock released: long enough for
 *  firmware that does not poll, and nothing a dead server could turn into a hang.
 *  So nobody ever waits for the loop while holding the lock the loop needs.
 */
#ifndef PLATTER_VIRTIO_H
#define PLATTER_VIRTIO_H

#include "block/block.h"
#include "vmm-shim/mem.h"
#include "vmm-shim/pci.h"
#include "vmm-shim/virtqueue.h"

#define VIRTIO_QUEUES      64u
#define VIRTIO_NO_VECTOR   0xffffu
#define VIRTIO_RESET_WAIT  (20 * 1000 * 1000ull)    /* ns */
#define VIRTIO_REPORTS     16u      /* broken queues told about, per device */

enum {
    VIRTIO_S_ACKNOWLEDGE = 1, VIRTIO_S_DRIVER = 2, VIRTIO_S_DRIVER_OK = 4,
    VIRTIO_S_FEATURES_OK = 8, VIRTIO_S_NEEDS_RESET = 64, VIRTIO_S_FAILED = 128,
};

#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX     (1ull << 29)
#define VIRTIO_F_VERSION_1     (1ull << 32)

enum { VIRTIO_ISR_QUEUE = 1, VIRTIO_ISR_CONFIG = 2 };

struct virtio_dev;

/* What a device type implements. */
struct virtio_type {
    const char *name;               /* "virtio-blk", for reports */
    uint16_t id;                    /* virtio device type */
    uint32_t class_code;
    uint32_t config_size;           /* bytes of device configuration */
    /* Device configuration, under pci.lock; off + len <= config_size. */
    void (*config_read)(struct virtio_dev *d, unsigned off, void *data, unsigned len);
    void (*config_write)(struct virtio_dev *d, unsigned off, const void *data, unsigned len);
    /* The registers went back to their defaults (under pci.lock, any thread). */
    void (*config_reset)(struct virtio_dev *d);
    /* Loop thread.  start: d->features are known and queues are live; a failure
     * (-errno) makes the device need a reset.  serve: take what queue qi has.
     * stopped: nothing is in flight any more; free what start made. */
    int (*start)(struct virtio_dev *d);
    void (*serve)(struct virtio_dev *d, unsigned qi);
    void (*stopped)(struct virtio_dev *d);
};

struct virtio_queue_regs {
    uint16_t size;
    bool enabled;
    atomic_uint vector;             /* the loop reads it without the lock */
    uint64_t desc, avail, used;
};

struct virtio_queue {
    struct virtqueue vq;
    struct blk_watch watch;
    struct virtio_dev *dev;
    unsigned index;
    int kick_fd;                    /* the doorbell; made with the device */
    bool live;                      /* started */
    bool stopped;                   /* live, but nothing more is taken */
};

enum { VIRTIO_MAIL_START = 1, VIRTIO_MAIL_HALT = 2, VIRTIO_MAIL_RESET = 4 };

struct virtio_dev {
    struct pci_dev pci;             /* first */
    const struct virtio_type *type;
    const struct mem *mem;
    struct blk_loop *loop;
    unsigned queues;
    uint16_t queue_size;            /* largest, and the default */
    uint64_t offered;               /* features */
    unsigned pci_cfg_cap;           /* offset of the access window's capability */

    /* registers: pci.lock */
    uint8_t status;
    uint8_t generation;
    uint32_t offered_select, driver_select;
    uint64_t driver_features;
    bool driver_beyond;             /* a bit above 63 was written */
    uint16_t queue_select;
    struct virtio_queue_regs regs[VIRTIO_QUEUES];
    atomic_uint config_vector;      /* the loop reads it without the lock */
    atomic_uint isr;                /* used while MSI-X is off */
    atomic_uint reports;            /* any thread */
    unsigned mail;                  /* VIRTIO_MAIL_* */
    bool posted;                    /* d->post is on its way */
    bool started;                   /* START was mailed since the last reset */
    bool resetting;                 /* RESET was mailed and is not done */
    pthread_cond_t reset_done;
    uint64_t reset_wait;            /* ns; VIRTIO_RESET_WAIT */
    struct blk_post post;

    /* the loop's */
    uint64_t features;              /* negotiated */
    bool reset_wanted;
    unsigned inflight;
    uint64_t dirty;                 /* queues with pushes to publish, by bit */
    struct blk_hook hook;           /* publishes once a turn */
    uint64_t kicks, interrupts, broken;
    struct virtio_queue queue[VIRTIO_QUEUES];
};

/* ---- for device types ---------------------------------------------------------- */

/* The loop's owner thread while no vCPU runs.  d is zeroed and the caller's; features: the
 * type's own (the ring's are added). */
int virtio_init(struct virtio_dev *d, const struct virtio_type *type, struct pci_bus *bus,
                unsigned devfn, const struct mem *mem, struct blk_loop *loop, unsigned queues,
                unsigned queue_size, uint64_t features, struct blk_error *e);
/* Loop thread, vCPUs ended: stops, turns the loop until all is quiet, frees. */
void virtio_fini(struct virtio_dev *d);

/* Loop thread.  A request was taken (virtqueue_take gave 1) / is given back:
 * finish pushes, marks the queue for this turn's publication, and may complete a
 * reset (so touch nothing of the request's afterwards). */
static inline void virtio_begin(struct virtio_dev *d)
{
    d->inflight++;
}
void virtio_finish(struct virtio_dev *d, unsigned qi, uint16_t head, uint32_t written);
/* Has this queue something to give (live, not stopped, not broken)? */
bool virtio_may_take(const struct virtio_queue *q);
/* Queue qi is broken (q->vq.why): stop it, NEEDS_RESET, report. */
void virtio_broken(struct virtio_dev *d, unsigned qi);

/* ---- registers, for the transport: under pci.lock --------------------------------- */

void virtio_set_status(struct virtio_dev *d, uint8_t value);
uint32_t virtio_get_features(const struct virtio_dev *d, uint32_t select);
void virtio_set_features(struct virtio_dev *d, uint32_t select, uint32_t value);
/* The selected queue's registers, or NULL; writable: NULL too once frozen. */
struct virtio_queue_regs *virtio_selected(struct virtio_dev *d, bool writable);
void virtio_enable_queue(struct virtio_dev *d);
/* A doorbell that came as an MMIO write. */
void virtio_kick(struct virtio_dev *d, unsigned qi);

/* Between virtio.c and virtio_pci.c: the PCI half of virtio_init(). */
int virtio_pci_init(struct virtio_dev *d, struct pci_bus *bus, unsigned devfn);

#endif
