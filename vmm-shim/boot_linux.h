/*
 * boot_linux.h - put a bzImage, its command line and initrd into guest memory as
 * Linux's 64-bit boot protocol wants it (Documentation/arch/x86/boot.rst).
 *
 * Kernel and initrd files are not trusted: whatever their headers claim, nothing
 * is written outside guest memory, and what cannot boot is refused in one line.
 */
#ifndef PLATTER_BOOT_LINUX_H
#define PLATTER_BOOT_LINUX_H

#include <stdint.h>

#include "block/block.h"
#include "vmm-shim/mem.h"

struct boot_files {
    const char *kernel;
    const char *initrd;             /* or NULL */
    const char *cmdline;            /* never NULL */
};

/* How the first vCPU starts: arguments of vcpu_set_long_mode(). */
struct boot_entry {
    uint64_t rip, rsi, rsp, cr3, gdt;
};

/* m's first region must start at 0. */
int boot_linux_load(const struct mem *m, const struct boot_files *f, struct boot_entry *out,
                    struct blk_error *e);

#endif
