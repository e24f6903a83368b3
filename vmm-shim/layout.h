/*
 * layout.h - where everything is in the guest: memory, ports, interrupts.  The
 * DSDT (dsdt.asl) and docs/runner.md say the same numbers; change them together.
 */
#ifndef PLATTER_LAYOUT_H
#define PLATTER_LAYOUT_H

/* Physical memory. RAM is [0, LOW_MAX) and what is left at HIGH_BASE and up. */
#define LAYOUT_GDT          0x00000500ull
#define LAYOUT_ZERO_PAGE    0x00007000ull
#define LAYOUT_STACK        0x00008ff0ull
#define LAYOUT_PAGE_TABLES  0x00009000ull   /* PML4, PDPT, 4 page directories */
#define LAYOUT_CMDLINE      0x00020000ull
#define LAYOUT_CMDLINE_MAX  0x00010000ull   /* bytes, the final NUL included */
#define LAYOUT_EBDA         0x0009fc00ull   /* end of conventional memory */
#define LAYOUT_ACPI         0x000e0000ull   /* RSDP first; up to 1 MiB */
#define LAYOUT_ACPI_MAX     0x00020000ull
#define LAYOUT_KERNEL_MIN   0x00100000ull
#define LAYOUT_LOW_MAX      0xc0000000ull
#define LAYOUT_HIGH_BASE    0x100000000ull
#define LAYOUT_MEM_END      0x8000000000ull /* 39 bits: what every KVM host can address */

#define LAYOUT_PCI_BASE     0xc0000000ull   /* [base, end): BARs */
#define LAYOUT_PCI_END      0xfe000000ull
#define LAYOUT_IOAPIC       0xfec00000u
#define LAYOUT_LAPIC        0xfee00000u

/* Ports */
#define PORT_A20            0x0092u         /* bit 0: reset */
#define PORT_KBC_DATA       0x0060u
#define PORT_KBC_COMMAND    0x0064u         /* 0xfe: reset */
#define PORT_COM1           0x03f8u
#define PORT_PM1_EVENT      0x0600u         /* status 2 bytes, enable 2 bytes */
#define PORT_PM1_CONTROL    0x0604u         /* 2 bytes */
#define PORT_PM_TIMER       0x0608u         /* 4 bytes */
#define PORT_PCI_ADDRESS    0x0cf8u
#define PORT_RESET          0x0cf9u
#define PORT_PCI_DATA       0x0cfcu

#define RESET_VALUE         0x06u           /* full reset */
#define PM1_SCI_EN          0x0001u
#define PM1_SLP_EN          0x2000u
#define PM1_SLP_TYP_SHIFT   10
#define SLP_TYP_S5          5u              /* as in the DSDT's _S5 */
#define PM_TIMER_HZ         3579545u

#define IRQ_COM1            4u
#define IRQ_SCI             9u

#endif
