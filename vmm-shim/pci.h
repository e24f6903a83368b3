/*
 * pci.h - one conventional PCI bus: type-0 functions with 256 bytes of
 * configuration space, BARs, capabilities and MSI-X, and the dispatch of
 * configuration and MMIO accesses to them.  Knows no KVM: what reaches the
 * hypervisor goes through struct pci_host.
 *
 * Threads.  Accesses come from any vCPU thread.  bus->lock guards the table of
 * decoded BARs and is never held while a device runs; dev->lock is held around
 * each access to one function, its handlers included (they may release it in a
 * condition wait).  Order: dev->lock, then bus->lock, then the host's own.
 * Devices are added before the first vCPU runs and stay until the last ended.
 *
 * Interrupts.  Each MSI-X vector is an eventfd.  pci_msix_signal() writes it,
 * from any thread and without a lock; while the vector can deliver, the host
 * has it bound as an irqfd; while it is masked or disabled it is not bound, and
 * its count is the pending bit.  Binding delivers what is pending.
 */
#ifndef PLATTER_PCI_H
#define PLATTER_PCI_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PCI_BARS          6u
#define PCI_DOORBELLS     64u       /* per function */
#define PCI_VECTORS_MAX   65u       /* per function */
#define PCI_CONFIG_SIZE   256u

/* What the machine implements over KVM (tests: in memory).  Any thread, under
 * dev->lock.  0 or -errno where an int is returned. */
struct pci_host_ops {
    /* From now on a write to eventfd fd raises the MSI (addr, data); if fd is
     * readable already it is raised at once (what KVM_IRQFD does).  *route: -1
     * the first time, then the host's handle of this vector (a GSI), which is
     * kept across unbinds.  Called for a bound fd too: the message changed. */
    int (*msi_bind)(void *arg, int fd, uint64_t addr, uint32_t data, int *route);
    /* Writes to fd only count again.  Must have taken effect on return. */
    void (*msi_unbind)(void *arg, int fd, int route);
    /* A guest write of any width (1, 2, 4, 8) at gpa signals eventfd fd and
     * makes no MMIO exit (KVM_IOEVENTFD with len 0 where the kernel can, else
     * with len).  If this fails the access arrives as an ordinary MMIO write,
     * which works too. */
    int (*doorbell_add)(void *arg, uint64_t gpa, unsigned len, int fd);
    void (*doorbell_del)(void *arg, uint64_t gpa, unsigned len, int fd);
};

struct pci_host {
    const struct pci_host_ops *ops;
    void *arg;
};

struct pci_dev;
struct pci_dev_ops {
    /* Access inside a BAR: off + len <= its size, len 1, 2, 4 or 8 (or another
     * small number a guest managed to produce).  data is little-endian bytes.
     * Under d->lock, on the accessing thread. */
    void (*bar_read)(struct pci_dev *d, unsigned bar, uint64_t off, void *data, unsigned len);
    void (*bar_write)(struct pci_dev *d, unsigned bar, uint64_t off, const void *data,
                      unsigned len);
    /* Both may be NULL: before a read of, after a write to configuration space. */
    void (*config_read)(struct pci_dev *d, unsigned reg, unsigned len);
    void (*config_written)(struct pci_dev *d, unsigned reg, unsigned len);
};

struct pci_bar {
    uint64_t size;                  /* power of two; 0: none */
    bool is64, prefetch;
    uint64_t gpa;                   /* as written by the guest */
    bool mapped;                    /* decoded now: COMMAND.MEMORY and in the table */
};

struct pci_doorbell {
    unsigned bar, len;
    uint64_t off;
    int fd;
    bool live;                      /* the host has it */
};

struct pci_vector {
    uint64_t addr;
    uint32_t data, control;         /* control bit 0: masked */
    int fd;                         /* eventfd, nonblocking */
    int route;                      /* host's handle, -1: none yet */
    bool bound;
};

struct pci_bus;
struct pci_dev {
    struct pci_bus *bus;
    const struct pci_dev_ops *ops;
    pthread_mutex_t lock;
    unsigned devfn;
    uint8_t config[PCI_CONFIG_SIZE], wmask[PCI_CONFIG_SIZE];
    unsigned cap_end;               /* first free byte for capabilities */
    unsigned cap_last;              /* last capability, 0: none */
    struct pci_bar bar[PCI_BARS];

    unsigned vectors;               /* 0: no MSI-X */
    unsigned msix_cap, msix_bar;
    atomic_bool msix_enabled;       /* also read by loop threads */
    struct pci_vector vector[PCI_VECTORS_MAX];

    unsigned doorbells;
    struct pci_doorbell doorbell[PCI_DOORBELLS];
};

/* One decoded BAR. */
struct pci_window {
    uint64_t gpa, size;
    struct pci_dev *dev;
    unsigned bar;
};

struct pci_bus {
    struct pci_host host;
    pthread_mutex_t lock;
    struct pci_dev *slot[256];      /* by devfn */
    struct pci_window *window;      /* decoded BARs */
    unsigned windows, windows_room;
    uint32_t cf8;                   /* CONFIG_ADDRESS */
    uint64_t mmio_base, mmio_end;   /* see pci_bus_set_window() */
};

/* ---- the machine's side ---------------------------------------------------- */

int pci_bus_init(struct pci_bus *b, const struct pci_host *host);
/* The devices must be gone (pci_dev_fini). */
void pci_bus_fini(struct pci_bus *b);
/* Guest-physical range BARs may decode in, [base, end): the bridge's _CRS.  BARs
 * moved elsewhere (onto RAM, the APICs) are not decoded. */
void pci_bus_set_window(struct pci_bus *b, uint64_t base, uint64_t end);
/* Give every BAR an address from the window and turn decoding on, as firmware
 * would.  Before the first vCPU runs.  -ENOSPC: the window is too small. */
int pci_bus_assign(struct pci_bus *b);

/* A guest's access to configuration space: all ones (nothing) where no function
 * is.  len 1, 2 or 4 and naturally aligned, anything else reads as ones and is
 * dropped.  Only bus number 0 exists. */
uint32_t pci_config_read(struct pci_bus *b, unsigned bus, unsigned dev, unsigned fn,
                         unsigned reg, unsigned len);
void pci_config_write(struct pci_bus *b, unsigned bus, unsigned dev, unsigned fn,
                      unsigned reg, unsigned len, uint32_t value);
/* Ports 0xcf8-0xcff (configuration mechanism #1). */
uint32_t pci_port_read(struct pci_bus *b, uint16_t port, unsigned len);
void pci_port_write(struct pci_bus *b, uint16_t port, unsigned len, uint32_t value);

/* MMIO by guest-physical address.  false: no BAR there (reads gave all ones). */
bool pci_mmio_read(struct pci_bus *b, uint64_t gpa, void *data, unsigned len);
bool pci_mmio_write(struct pci_bus *b, uint64_t gpa, const void *data, unsigned len);

/* A bare host bridge (class 06 00 00) for 00:00.0. */
int pci_host_bridge_init(struct pci_dev *d, struct pci_bus *b, unsigned devfn);

/* ---- the devices' side ------------------------------------------------------ */

struct pci_id {
    uint16_t vendor, device, sub_vendor, sub_device;
    uint8_t revision;
    uint32_t class_code;            /* 24 bits: class, subclass, interface */
};
/* d is the caller's storage.  -EBUSY: the slot is taken. */
int pci_dev_init(struct pci_dev *d, struct pci_bus *b, unsigned devfn,
                 const struct pci_id *id, const struct pci_dev_ops *ops);
/* No access may be running any more. Unbinds vectors, removes doorbells. */
void pci_dev_fini(struct pci_dev *d);
/* size: power of two >= 16. 64-bit BARs take two numbers. Before any access. */
void pci_dev_add_bar(struct pci_dev *d, unsigned bar, uint64_t size, bool is64);
/* Append a capability: body follows the id and next bytes, len bytes of it;
 * wmask (or NULL: read-only) says which of its bits a guest may write.  Returns
 * the capability's offset in configuration space, or -ENOSPC. */
int pci_dev_add_cap(struct pci_dev *d, uint8_t id, const void *body, const void *wmask,
                    unsigned len);
/* MSI-X with table and PBA filling BAR bar, which this adds; makes the eventfds.
 * All vectors start masked. */
int pci_dev_add_msix(struct pci_dev *d, unsigned bar, unsigned vectors);
/* Raise a vector: any thread, no lock.  Out of range: nothing. */
void pci_msix_signal(struct pci_dev *d, unsigned vector);
/* Writes at off of bar become signals of fd while the BAR is decoded. */
int pci_dev_add_doorbell(struct pci_dev *d, unsigned bar, uint64_t off, unsigned len, int fd);

/* BAR access as the bus does it, for windows inside configuration space. Under
 * d->lock.  Out of range: reads give ones, writes nothing. */
void pci_bar_read(struct pci_dev *d, unsigned bar, uint64_t off, void *data, unsigned len);
void pci_bar_write(struct pci_dev *d, unsigned bar, uint64_t off, const void *data,
                   unsigned len);

#endif
