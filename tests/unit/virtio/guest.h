/*
 * guest.h - a guest without a CPU: memory, a PCI host that records instead of
 * KVM, a driver that finds and programs one virtio-blk device through its
 * registers only, and a storage node that does what a test tells it.
 *
 * Memory: RAM at 0 (8 MiB), nothing above it up to HIGH_BASE, RAM there (4 GiB
 * of address space, hardly any of it touched).
 * The loop is turned by the test (guest_settle()) or runs in a thread of its own
 * (guest_thread()).
 */
#ifndef PLATTER_TEST_GUEST_H
#define PLATTER_TEST_GUEST_H

#include "block/block.h"
#include "block/driver.h"
#include "vmm-shim/mem.h"
#include "vmm-shim/pci.h"
#include "vmm-shim/virtio.h"
#include "vmm-shim/virtio_blk.h"

#include <pthread.h>

#define LOW_SIZE    (8ull << 20)
#define HIGH_BASE   (1ull << 32)
#define HIGH_SIZE   (4ull << 30)
#define MMIO_BASE   0xc0000000ull
#define MMIO_END    0xd0000000ull
#define DATA        0x400000ull     /* where tests put buffers */
#define HEADERS     0x300000ull     /* 16 bytes each */
#define STATUSES    0x380000ull     /* one byte each */
#define DEVFN       (3u << 3)
#define DISK_SIZE   (4ull << 20)

/* ---- storage ------------------------------------------------------------------ */

struct store {
    struct blk_node node;           /* first */
    uint8_t *data;
    bool hold;                      /* keep requests until store_release() */
    int fail[BLK_OPS];              /* errno to complete with, 0: do it */
    struct blk_req *held;           /* newest first */
    unsigned inflight;              /* submitted and not completed; atomic use */
    uint64_t ops[BLK_OPS], fua, unmap;
    bool durable;                   /* nothing written since the last flush or FUA */
};
/* A node on loop l with size bytes of zeros.  No core involved in making it. */
struct store *store_new(struct blk_loop *l, uint64_t size);
void store_free(struct store *s);
unsigned store_release(struct store *s, unsigned n);    /* newest first; how many were */

/* ---- the machine ----------------------------------------------------------------- */

#define G_DOORBELLS 256
#define G_BINDS     256
struct g_host {
    struct { uint64_t gpa; unsigned len; int fd; } bell[G_DOORBELLS];
    unsigned bells;
    struct { int fd; uint64_t addr; uint32_t data; bool bound; uint64_t raised; } bind[G_BINDS];
    unsigned binds;
    pthread_mutex_t lock;
};

struct g_queue {
    unsigned size;
    uint64_t desc, avail, used, bell;
    uint16_t avail_idx, used_seen;
};

struct guest {
    struct mem mem;
    struct g_host host;
    struct pci_bus bus;
    struct pci_dev bridge;
    struct blk_loop *loop;
    struct store *store;
    struct blk_node *node;
    struct virtio_blk *disk;
    uint64_t common, isr, device, notify;   /* found in the capabilities */
    uint32_t notify_stride;
    unsigned cfg_cap, msix_cap;
    uint64_t msix_table, msix_pba;
    struct g_queue q[VIRTIO_QUEUES];
    unsigned queues;
    uint64_t features;                      /* what the driver will ask for */
    pthread_t thread;
    bool threaded;
    char said[4096];                        /* reports */
};

/* A guest with this disk (c->node is ignored; c NULL: defaults), device found,
 * nothing negotiated. */
void guest_new(struct guest *g, const struct virtio_blk_config *c);
/* The same in front of a node opened with these options (blk_opts_parse()), on
 * storage of DISK_SIZE; g->store is NULL. */
void guest_new_on(struct guest *g, const struct virtio_blk_config *c, const char *options);
void guest_free(struct guest *g);
/* The usual way up: reset, features, queues of the given size, DRIVER_OK. */
void guest_boot(struct guest *g, unsigned queue_size);
void guest_negotiate(struct guest *g);      /* up to FEATURES_OK */
void guest_queue(struct guest *g, unsigned qi, unsigned size);  /* place and enable */
void guest_go(struct guest *g);             /* DRIVER_OK */
void guest_msix_on(struct guest *g);         /* vector i sends 0x4000 + i */
bool guest_reset(struct guest *g);          /* write 0, wait for 0; false: 5 s passed */
void guest_thread(struct guest *g);         /* loop into a thread of its own */
void guest_join(struct guest *g);           /* and back */
void guest_settle(struct guest *g);         /* turn until nothing happens any more */

/* ---- registers and memory ----------------------------------------------------------- */

uint64_t guest_in(struct guest *g, uint64_t gpa, unsigned len);
void guest_out(struct guest *g, uint64_t gpa, unsigned len, uint64_t v);
uint8_t guest_status(struct guest *g);
void guest_set_status(struct guest *g, uint8_t v);
uint32_t guest_config(struct guest *g, unsigned reg, unsigned len);
void guest_config_out(struct guest *g, unsigned reg, unsigned len, uint32_t v);
uint64_t guest_raised(struct guest *g, unsigned vector);    /* MSIs since the last call */
static inline void *gp(struct guest *g, uint64_t gpa)
{
    return mem_at(&g->mem, gpa, 1);
}

/* Offsets in the common configuration. */
enum {
    C_DFSEL = 0, C_DF = 4, C_GFSEL = 8, C_GF = 12, C_MSIX = 16, C_NUMQ = 18, C_STATUS = 20,
    C_GEN = 21, C_QSEL = 22, C_QSIZE = 24, C_QMSIX = 26, C_QENABLE = 28, C_QNOFF = 30,
    C_QDESC = 32, C_QAVAIL = 40, C_QUSED = 48,
};

/* ---- rings ---------------------------------------------------------------------------- */

struct seg { uint64_t gpa; uint32_t len; bool write; };

void g_desc(struct guest *g, unsigned qi, unsigned i, uint64_t addr, uint32_t len,
            unsigned flags, unsigned next);
/* Descriptors first, first + 1, ... */
void g_chain(struct guest *g, unsigned qi, unsigned first, const struct seg *s, unsigned n);
void g_avail(struct guest *g, unsigned qi, unsigned head);
void g_kick(struct guest *g, unsigned qi);
uint16_t g_used_idx(struct guest *g, unsigned qi);
/* Next used element the driver has not seen: false if none. */
bool g_used(struct guest *g, unsigned qi, uint32_t *id, uint32_t *len);
void g_header(struct guest *g, unsigned slot, uint32_t type, uint64_t sector);
uint8_t g_status(struct guest *g, unsigned slot);
void g_put16(struct guest *g, uint64_t gpa, uint16_t v);

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2, S_NONE = 0xee };

/* Make a request of up to three descriptors at 3*slot available: header slot,
 * len bytes of data at gpa (0: none), status slot (set to S_NONE). */
void g_request(struct guest *g, unsigned qi, unsigned slot, uint32_t type, uint64_t sector,
               uint64_t gpa, uint32_t len);
/* g_request, kick, settle; returns the status byte, asserts one used entry. */
uint8_t g_do(struct guest *g, unsigned qi, uint32_t type, uint64_t sector, uint64_t gpa,
             uint32_t len);

/* The device stopped as it must: NEEDS_RESET with a config interrupt and a
 * report, nothing given back; and after a reset it serves again. */
void assert_stops(struct guest *g, const char *why);
/* It still serves, and never needed a reset. */
void assert_serves(struct guest *g);

#endif
