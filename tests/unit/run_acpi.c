/*
 * run_acpi.c - the ACPI tables as a guest finds them: reachable from the RSDP,
 * with lengths and checksums that are right, for every number of CPUs.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "vmm-shim/acpi.h"
#include "vmm-shim/layout.h"

static struct mem mem;

static int setup(void **state)
{
    memset(&mem, 0, sizeof(mem));
    return mem_add_anon(&mem, 0, 1 << 20, false);
}

static int teardown(void **state)
{
    mem_free(&mem);
    return 0;
}

static uint8_t sum(const uint8_t *p, size_t len)
{
    uint8_t s = 0;

    while (len--)
        s = (uint8_t)(s + *p++);
    return s;
}

static uint32_t le32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static uint64_t le64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

/* The table at gpa, inside the area, with a good checksum. */
static const uint8_t *table(uint64_t gpa, const char *signature)
{
    const uint8_t *p = mem_at(&mem, gpa, 36);
    uint32_t len;

    assert_non_null(p);
    assert_memory_equal(p, signature, 4);
    len = le32(p + 4);
    assert_in_range(gpa, LAYOUT_ACPI, LAYOUT_ACPI + LAYOUT_ACPI_MAX - len);
    assert_int_equal(sum(p, len), 0);
    return p;
}

static const uint8_t *rsdp(void)
{
    const uint8_t *p = mem_at(&mem, LAYOUT_ACPI, 36);

    assert_memory_equal(p, "RSD PTR ", 8);
    assert_int_equal(sum(p, 20), 0);
    assert_int_equal(sum(p, 36), 0);
    assert_int_equal(p[15], 2);
    return p;
}

static void every_table_is_reachable_and_sums_to_zero(void **state)
{
    const uint8_t *xsdt, *fadt;

    assert_int_equal(acpi_build(&mem, 2), 0);
    xsdt = table(le64(rsdp() + 24), "XSDT");
    assert_int_equal(le32(xsdt + 4), 36 + 2 * 8);
    fadt = table(le64(xsdt + 36), "FACP");
    table(le64(xsdt + 44), "APIC");
    table(le32(fadt + 40), "DSDT");
    assert_int_equal(le64(fadt + 140), le32(fadt + 40));
    assert_memory_equal(mem_at(&mem, le32(fadt + 36), 64), "FACS", 4);
    assert_int_equal(le32(fadt + 36) % 64, 0);
}

static void fadt_names_the_registers_of_the_platform(void **state)
{
    const uint8_t *fadt;

    assert_int_equal(acpi_build(&mem, 1), 0);
    fadt = table(le64(table(le64(rsdp() + 24), "XSDT") + 36), "FACP");
    assert_int_equal(le32(fadt + 4), 276);
    assert_int_equal(le32(fadt + 56), PORT_PM1_EVENT);
    assert_int_equal(le32(fadt + 64), PORT_PM1_CONTROL);
    assert_int_equal(le32(fadt + 76), PORT_PM_TIMER);
    assert_int_equal(fadt[116], 1);                     /* reset register: I/O space */
    assert_int_equal(le64(fadt + 120), PORT_RESET);
    assert_int_equal(fadt[128], RESET_VALUE);
    assert_true(le32(fadt + 112) & 1u << 10);           /* and it is supported */
    assert_false(le32(fadt + 112) & 1u << 20);          /* not hardware-reduced */
}

/* Local APIC entries with ids 0..cpus-1, then exactly one IO-APIC. */
static void check_madt(unsigned cpus)
{
    const uint8_t *madt = table(le64(table(le64(rsdp() + 24), "XSDT") + 44), "APIC");
    uint32_t len = le32(madt + 4), at = 44;
    unsigned lapics = 0, ioapics = 0;

    while (at < len) {
        assert_true(madt[at + 1] >= 2 && at + madt[at + 1] <= len);
        if (madt[at] == 0) {
            assert_int_equal(madt[at + 3], lapics);
            assert_int_equal(le32(madt + at + 4), 1);
            lapics++;
        } else if (madt[at] == 1) {
            assert_int_equal(le32(madt + at + 4), LAYOUT_IOAPIC);
            assert_int_equal(le32(madt + at + 8), 0);
            ioapics++;
        }
        at += madt[at + 1];
    }
    assert_int_equal(at, len);
    assert_int_equal(lapics, cpus);
    assert_int_equal(ioapics, 1);
}

static void madt_lists_every_cpu(void **state)
{
    for (unsigned cpus = 1; cpus <= ACPI_CPUS_MAX; cpus++) {
        assert_int_equal(acpi_build(&mem, cpus), 0);
        check_madt(cpus);
    }
}

static void too_many_cpus_are_refused(void **state)
{
    assert_int_equal(acpi_build(&mem, ACPI_CPUS_MAX + 1), -E2BIG);
}

static void no_memory_there_is_an_error(void **state)
{
    struct mem small = { 0 };

    assert_int_equal(mem_add_anon(&small, 0, 0x90000, false), 0);
    assert_int_equal(acpi_build(&small, 1), -EFAULT);
    mem_free(&small);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(every_table_is_reachable_and_sums_to_zero),
        CASE(fadt_names_the_registers_of_the_platform),
        CASE(madt_lists_every_cpu),
        CASE(too_many_cpus_are_refused),
        CASE(no_memory_there_is_an_error),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
