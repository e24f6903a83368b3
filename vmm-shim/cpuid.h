/*
 * cpuid.h - the CPUID a vCPU shows: what KVM supports on this host, with one
 * socket of single-threaded cores whose APIC ids are 0..count-1.
 */
#ifndef PLATTER_CPUID_H
#define PLATTER_CPUID_H

#include <linux/kvm.h>
#include <stdbool.h>

#include "block/block.h"

#define CPUID_ENTRIES 256u

struct cpuid_table {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entry[CPUID_ENTRIES];   /* head.entries follow it in memory */
};

/* Ask KVM (descriptor of /dev/kvm) for what it supports. */
int cpuid_supported(int kvm, struct cpuid_table *t, struct blk_error *e);
/* Make t, as from cpuid_supported(), the table of vCPU index of count. */
void cpuid_adjust(struct cpuid_table *t, unsigned index, unsigned count, bool tsc_deadline);

#endif
