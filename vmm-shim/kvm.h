/*
 * kvm.h - one KVM virtual machine: its memory slots, in-kernel interrupt
 * controllers and timer, interrupt routes, irqfds and ioeventfds.  Knows no
 * device and no vCPU.
 */
#ifndef PLATTER_KVM_H
#define PLATTER_KVM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/block.h"
#include "vmm-shim/mem.h"
#include "vmm-shim/pci.h"

#define VM_IOAPIC_PINS  24u
#define VM_MSI_ROUTES   2048u       /* vectors of all devices together */

/* What this program needs of the kernel; name NULL ends the list. */
struct kvm_need {
    int cap;
    const char *name, *use;
};
extern const struct kvm_need kvm_needs[];

struct vm_msi {
    uint64_t addr;
    uint32_t data;
    bool bound;                     /* an irqfd is assigned */
};

struct vm {
    int kvm, fd;                    /* /dev/kvm and the VM */
    size_t run_size;                /* bytes of a vCPU's shared page(s) */
    unsigned vcpus_max;
    bool doorbell_any_len;          /* KVM_IOEVENTFD takes len 0 */
    atomic_bool stop;               /* vCPUs leave their threads; any thread sets it */
    pthread_mutex_t lock;           /* guards msi[], msis; innermost */
    unsigned msis;
    struct vm_msi *msi;             /* GSI VM_IOAPIC_PINS + index */
};

/* Open /dev/kvm, check version and capabilities.  The descriptor, or -errno with
 * a text that says what to do. */
int kvm_open(struct blk_error *e);

/* A VM with irqchip and PIT, no memory, no vCPU. */
int vm_init(struct vm *vm, struct blk_error *e);
/* Every vCPU and device of it must be gone. Nothing when kvm is -1 (vm_init() failed). */
void vm_fini(struct vm *vm);
/* Make every region of m a memory slot. */
int vm_map(struct vm *vm, const struct mem *m, struct blk_error *e);
/* Set the level of an ISA interrupt line (= IO-APIC pin).  Any thread. */
void vm_irq_line(struct vm *vm, unsigned irq, bool level);

/* struct pci_host for a bus of this VM; arg is the struct vm. */
extern const struct pci_host_ops vm_pci_ops;

#endif
