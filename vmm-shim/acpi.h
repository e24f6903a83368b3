/*
 * acpi.h - the ACPI tables: RSDP, XSDT, FADT, FACS, MADT, and the DSDT compiled
 * from dsdt.asl.
 */
#ifndef PLATTER_ACPI_H
#define PLATTER_ACPI_H

#include "vmm-shim/mem.h"

#define ACPI_CPUS_MAX 254u          /* 8-bit APIC ids; 255 is broadcast */

/* Write them to LAYOUT_ACPI, the RSDP first. 0, -E2BIG: too many CPUs, -EFAULT:
 * no memory there. */
int acpi_build(const struct mem *m, unsigned cpus);

#endif
