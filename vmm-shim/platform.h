/*
 * platform.h - the board: which device answers at which port and address, the
 * ACPI power registers, and every way a guest has to ask for a reset.
 *
 * Knows no KVM.  Any vCPU thread; all values are the guest's: what no device
 * has reads as ones, writes to it are dropped.
 */
#ifndef PLATTER_PLATFORM_H
#define PLATTER_PLATFORM_H

#include <stdatomic.h>
#include <stdint.h>

#include "vmm-shim/pci.h"
#include "vmm-shim/serial.h"
#include "vmm-shim/vcpu.h"

struct platform {
    struct serial *com1;
    struct pci_bus *pci;
    void (*ended)(void *arg, enum vm_end why, const char *text);
    void *arg;
    _Atomic uint8_t pm1_enable[2], pm1_control[2];
};

void platform_init(struct platform *p, struct serial *com1, struct pci_bus *pci,
                   void (*on_end)(void *arg, enum vm_end why, const char *text), void *arg);

/* For vcpu_init() with a struct platform as its arg. */
extern const struct vcpu_bus platform_bus;

#endif
