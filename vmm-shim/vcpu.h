/*
 * vcpu.h - virtual CPUs: one thread each, running the guest and handing its
 * port and MMIO accesses to the machine.
 */
#ifndef PLATTER_VCPU_H
#define PLATTER_VCPU_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"
#include "vmm-shim/kvm.h"

/* Why a guest ended; the first reason counts. */
enum vm_end {
    VM_RUNNING,
    VM_POWER_OFF,
    VM_RESET,
    VM_TRIPLE_FAULT,
    VM_INTERNAL_ERROR,
};

/* The machine as a vCPU sees it.  Any vCPU thread; every address, width (1-8
 * for MMIO; 1, 2, 4 for ports) and value is the guest's and may be hostile. */
struct vcpu_bus {
    void (*port_read)(void *arg, uint16_t port, void *data, unsigned len);
    void (*port_write)(void *arg, uint16_t port, const void *data, unsigned len);
    void (*mmio_read)(void *arg, uint64_t gpa, void *data, unsigned len);
    void (*mmio_write)(void *arg, uint64_t gpa, const void *data, unsigned len);
    /* The guest cannot go on: text (may be NULL) says why. */
    void (*ended)(void *arg, enum vm_end why, const char *text);
};

struct kvm_run;
struct vcpu {
    struct vm *vm;
    const struct vcpu_bus *bus;
    void *arg;
    unsigned index;
    int fd;
    struct kvm_run *run;
    bool started;
    atomic_bool report;             /* vcpu_report_all() asks */
    uint64_t exits;                 /* its thread's */
    pthread_t thread;
};

/* vCPU index of count, with CPUID and MSRs, in its reset state: number 0 waits
 * for vcpu_set_*(), the others for the guest's INIT and SIPI. */
int vcpu_init(struct vcpu *v, struct vm *vm, unsigned index, unsigned count,
              const struct vcpu_bus *bus, void *arg, struct blk_error *e);
void vcpu_fini(struct vcpu *v);

/* 64-bit mode with paging on, flat segments from a GDT at gdt (0x10 code, 0x18
 * data), rip and rsi as given: the Linux 64-bit boot protocol. */
int vcpu_set_long_mode(struct vcpu *v, uint64_t rip, uint64_t rsi, uint64_t rsp, uint64_t cr3,
                       uint64_t gdt, struct blk_error *e);
/* Real mode at 0:ip. */
int vcpu_set_real_mode(struct vcpu *v, uint16_t ip, struct blk_error *e);

int vcpu_start(struct vcpu *v, struct blk_error *e);
/* Each says on its thread what it is doing (blk_report()), while the guest goes on.  Not
 * from a vCPU thread. */
void vcpu_report_all(struct vcpu *v, unsigned count);
/* Run on the calling thread until vm->stop is set. */
void vcpu_run(struct vcpu *v);
/* Stop and join all; those not started are skipped.  Not from a vCPU thread. */
void vcpu_stop_all(struct vcpu *v, unsigned count);

#endif
