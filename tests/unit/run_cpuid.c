/*
 * run_cpuid.c - the CPU a guest sees: topology and APIC ids that fit the MADT,
 * whatever the host's tables say.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "vmm-shim/cpuid.h"

static struct cpuid_table t;

static void add(uint32_t function, uint32_t index, uint32_t eax, uint32_t ebx, uint32_t ecx,
                uint32_t edx)
{
    t.entry[t.head.nent++] = (struct kvm_cpuid_entry2){
        .function = function, .index = index, .eax = eax, .ebx = ebx, .ecx = ecx, .edx = edx,
    };
}

/* A host of 8 cores with 2 threads, VMX, SVM and foreign APIC ids everywhere. */
static void make_host(void)
{
    memset(&t, 0, sizeof(t));
    add(0, 0, 0x1f, 0, 0, 0);
    add(1, 0, 0x806f8, 0x7f100800, 1u << 5, 1u << 28);
    add(4, 0, 0x1c004121, 0x01c0003f, 0x3f, 0);
    add(4, 3, 0x1c03c163, 0x0280003f, 0x9fff, 4);
    add(0xb, 0, 1, 2, 0x100, 0x7f);
    add(0xb, 1, 7, 16, 0x201, 0x7f);
    add(0x1f, 0, 1, 2, 0x100, 0x7f);
    add(0x80000001, 0, 0, 0, 1u << 2 | 1u << 1, 0);
    add(0x80000008, 0, 0x3030, 0, 0x700f, 0);
    add(0x8000000a, 0, 1, 0x8000, 0, 0xffff);
    add(0x8000001d, 3, 0x0003c163, 0, 0, 0);
    add(0x8000001e, 0, 0x7f, 0x13f, 0x300, 0);
}

static const struct kvm_cpuid_entry2 *leaf(uint32_t function, uint32_t index)
{
    for (uint32_t i = 0; i < t.head.nent; i++) {
        if (t.entry[i].function == function && t.entry[i].index == index)
            return &t.entry[i];
    }
    return NULL;
}

static void apic_ids_are_the_vcpu_numbers(void **state)
{
    for (unsigned i = 0; i < 6; i++) {
        make_host();
        cpuid_adjust(&t, i, 6, true);
        assert_int_equal(leaf(1, 0)->ebx >> 24, i);
        assert_int_equal(leaf(0xb, 0)->edx, i);
        assert_int_equal(leaf(0xb, 1)->edx, i);
        assert_int_equal(leaf(0x8000001e, 0)->eax, i);
        assert_int_equal(leaf(0x8000001e, 0)->ebx, i);
        assert_int_equal(leaf(0x8000001e, 0)->ecx, 0);
    }
}

static void one_socket_of_single_threaded_cores(void **state)
{
    make_host();
    cpuid_adjust(&t, 0, 6, true);
    assert_int_equal(leaf(1, 0)->ebx >> 16 & 0xff, 8);          /* ids reserved */
    assert_int_equal(leaf(0xb, 0)->eax, 0);
    assert_int_equal(leaf(0xb, 0)->ebx, 1);
    assert_int_equal(leaf(0xb, 1)->eax, 3);                     /* bits of an id */
    assert_int_equal(leaf(0xb, 1)->ebx, 6);
    assert_int_equal(leaf(0xb, 2)->ecx >> 8, 0);                /* no third level */
    assert_int_equal(leaf(4, 0)->eax >> 26, 7);
    assert_int_equal(leaf(4, 0)->eax >> 14 & 0xfff, 0);         /* L1: one core's */
    assert_int_equal(leaf(4, 3)->eax >> 14 & 0xfff, 7);         /* L3: everybody's */
    assert_int_equal(leaf(0x8000001d, 3)->eax >> 14 & 0xfff, 7);
    assert_int_equal(leaf(0x80000008, 0)->ecx, 3u << 12 | 5);
    assert_null(leaf(0x1f, 0));
}

static void one_cpu_is_not_hyperthreaded(void **state)
{
    make_host();
    cpuid_adjust(&t, 0, 1, true);
    assert_int_equal(leaf(1, 0)->edx >> 28 & 1, 0);
    assert_int_equal(leaf(1, 0)->ebx >> 16 & 0xff, 1);
    assert_int_equal(leaf(0x80000008, 0)->ecx, 0);
}

static void nested_virtualization_is_not_offered(void **state)
{
    make_host();
    cpuid_adjust(&t, 0, 2, false);
    assert_int_equal(leaf(1, 0)->ecx & 1u << 5, 0);
    assert_int_equal(leaf(0x80000001, 0)->ecx & 1u << 2, 0);
    assert_null(leaf(0x8000000a, 0));
    assert_int_equal(leaf(1, 0)->ecx >> 31, 1);                 /* hypervisor */
    assert_int_equal(leaf(1, 0)->ecx >> 24 & 1, 0);             /* no TSC deadline asked for */
}

static void old_hosts_get_no_leaf_they_cannot_reach(void **state)
{
    make_host();
    t.entry[0].eax = 0xa;
    cpuid_adjust(&t, 0, 2, true);
    assert_null(leaf(0xb, 0));
}

static void full_table_stays_within_bounds(void **state)
{
    make_host();
    while (t.head.nent < CPUID_ENTRIES)
        add(0x4000, t.head.nent, 0, 0, 0, 0);
    cpuid_adjust(&t, 0, 254, true);
    assert_true(t.head.nent <= CPUID_ENTRIES);
    assert_int_equal(leaf(1, 0)->ebx >> 16 & 0xff, 255);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(apic_ids_are_the_vcpu_numbers),
        cmocka_unit_test(one_socket_of_single_threaded_cores),
        cmocka_unit_test(one_cpu_is_not_hyperthreaded),
        cmocka_unit_test(nested_virtualization_is_not_offered),
        cmocka_unit_test(old_hosts_get_no_leaf_they_cannot_reach),
        cmocka_unit_test(full_table_stays_within_bounds),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
