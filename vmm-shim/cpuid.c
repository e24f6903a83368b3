/*
 * cpuid.c - see cpuid.h.
 */
#include "vmm-shim/cpuid.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#define BIT(n) (1u << (n))

/* Leaf 1 */
#define ECX1_VMX          BIT(5)
#define ECX1_TSC_DEADLINE BIT(24)
#define ECX1_HYPERVISOR   BIT(31)
#define EDX1_HTT          BIT(28)
/* Leaf 0x80000001, ECX */
#define ECX_CMP_LEGACY    BIT(1)
#define ECX_SVM           BIT(2)
/* Leaf 0xb, ECX: level types in bits 8-15 */
#define LEVEL_SMT         (1u << 8)
#define LEVEL_CORE        (2u << 8)

int cpuid_supported(int kvm, struct cpuid_table *t, struct blk_error *e)
{
    memset(t, 0, sizeof(*t));
    t->head.nent = CPUID_ENTRIES;
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &t->head) < 0)
        return blk_err_errno(e, errno, "KVM_GET_SUPPORTED_CPUID failed");
    return 0;
}

/* Bits of an APIC id that number count cores. */
static unsigned core_bits(unsigned count)
{
    unsigned bits = 0;

    while ((1u << bits) < count)
        bits++;
    return bits;
}

static void remove_leaf(struct cpuid_table *t, uint32_t function)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < t->head.nent; i++) {
        if (t->entry[i].function != function)
            t->entry[n++] = t->entry[i];
    }
    t->head.nent = n;
}

static void add_topology(struct cpuid_table *t, uint32_t sub, uint32_t shift, uint32_t count,
                         uint32_t type, uint32_t apic_id)
{
    if (t->head.nent == CPUID_ENTRIES)
        return;
    t->entry[t->head.nent++] = (struct kvm_cpuid_entry2){
        .function = 0xb,
        .index = sub,
        .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        .eax = shift,
        .ebx = count,
        .ecx = sub | type,
        .edx = apic_id,
    };
}

/* Leaves 4 and 0x8000001d describe caches alike: who shares one is in EAX 14-25. */
static void adjust_cache(struct kvm_cpuid_entry2 *c, unsigned count, bool intel)
{
    unsigned level = c->eax >> 5 & 7;
    uint32_t sharing = level >= 3 ? (1u << core_bits(count)) - 1 : 0;

    if ((c->eax & 31) == 0)
        return;                     /* no more caches */
    c->eax &= ~(0xfffu << 14);
    c->eax |= sharing << 14;
    if (intel) {
        c->eax &= ~(0x3fu << 26);
        c->eax |= BLK_MIN((1u << core_bits(count)) - 1, 0x3fu) << 26;
    }
}

static void adjust_leaf(struct kvm_cpuid_entry2 *c, unsigned index, unsigned count,
                        bool tsc_deadline)
{
    switch (c->function) {
    case 1:
        c->ebx &= 0x0000ffffu;
        c->ebx |= index << 24 | BLK_MIN(1u << core_bits(count), 255u) << 16;
        c->edx &= ~EDX1_HTT;
        c->edx |= count > 1 ? EDX1_HTT : 0;
        /* Guests of this guest are not offered: less surface. */
        c->ecx &= ~(ECX1_VMX | ECX1_TSC_DEADLINE);
        c->ecx |= ECX1_HYPERVISOR | (tsc_deadline ? ECX1_TSC_DEADLINE : 0);
        break;
    case 4:
        adjust_cache(c, count, true);
        break;
    case 0x8000001d:
        adjust_cache(c, count, false);
        break;
    case 0x80000001:
        c->ecx &= ~(ECX_SVM | ECX_CMP_LEGACY);
        break;
    case 0x80000008:
        c->ecx = count > 1 ? core_bits(count) << 12 | (count - 1) : 0;
        break;
    case 0x8000001e:
        c->eax = index;
        c->ebx = index & 0xffu;     /* core id, one thread each */
        c->ecx = 0;                 /* one node */
        c->edx = 0;
        break;
    default:
        break;
    }
}

void cpuid_adjust(struct cpuid_table *t, unsigned index, unsigned count, bool tsc_deadline)
{
    uint32_t max_leaf = 0;

    for (uint32_t i = 0; i < t->head.nent; i++) {
        if (t->entry[i].function == 0)
            max_leaf = t->entry[i].eax;
        adjust_leaf(&t->entry[i], index, count, tsc_deadline);
    }
    remove_leaf(t, 0x8000000a);     /* SVM's details */
    remove_leaf(t, 0x1f);
    remove_leaf(t, 0xb);
    if (max_leaf < 0xb)
        return;
    add_topology(t, 0, 0, 1, LEVEL_SMT, index);
    add_topology(t, 1, core_bits(count), count, LEVEL_CORE, index);
    add_topology(t, 2, 0, 0, 0, index);
}
