/*
 * acpi.c - see acpi.h.  Structures and field names as in the ACPI specification
 * 6.4, chapter 5.  Not hardware-reduced: the in-kernel PIC and PIT are there,
 * and a guest can calibrate its clocks with the PM timer.
 */
#include "vmm-shim/acpi.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "vmm-shim/dsdt.h"
#include "vmm-shim/layout.h"

#define PACKED __attribute__((packed))

struct rsdp {
    char signature[8];
    uint8_t checksum;
    char oem_id[6];
    uint8_t revision;
    uint32_t rsdt;
    uint32_t length;
    uint64_t xsdt;
    uint8_t extended_checksum;
    uint8_t reserved[3];
} PACKED;

struct sdt {
    char signature[4];
    uint32_t length;
    uint8_t revision;
    uint8_t checksum;
    char oem_id[6];
    char oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} PACKED;

struct gas {
    uint8_t space, bits, offset, access;
    uint64_t address;
} PACKED;

struct xsdt {
    struct sdt head;
    uint64_t entry[2];
} PACKED;

struct fadt {
    struct sdt head;
    uint32_t firmware_ctrl, dsdt;
    uint8_t reserved0, preferred_profile;
    uint16_t sci_int;
    uint32_t smi_cmd;
    uint8_t acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
    uint32_t pm1a_evt, pm1b_evt, pm1a_cnt, pm1b_cnt, pm2_cnt, pm_tmr, gpe0, gpe1;
    uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_len, gpe1_len, gpe1_base;
    uint8_t cst_cnt;
    uint16_t p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
    uint8_t duty_offset, duty_width, day_alrm, mon_alrm, century;
    uint16_t iapc_boot_arch;
    uint8_t reserved1;
    uint32_t flags;
    struct gas reset_reg;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor_version;
    uint64_t x_firmware_ctrl, x_dsdt;
    struct gas x_pm1a_evt, x_pm1b_evt, x_pm1a_cnt, x_pm1b_cnt, x_pm2_cnt, x_pm_tmr;
    struct gas x_gpe0, x_gpe1, sleep_control, sleep_status;
    uint64_t hypervisor_vendor;
} PACKED;
_Static_assert(sizeof(struct fadt) == 276, "FADT of ACPI 6");

struct facs {
    char signature[4];
    uint32_t length, hardware_signature, waking_vector, global_lock, flags;
    uint64_t x_waking_vector;
    uint8_t version, reserved[31];
} PACKED;
_Static_assert(sizeof(struct facs) == 64, "FACS");

struct madt {
    struct sdt head;
    uint32_t lapic_address, flags;
} PACKED;

struct madt_lapic {
    uint8_t type, length, processor, apic_id;
    uint32_t flags;
} PACKED;

struct madt_ioapic {
    uint8_t type, length, id, reserved;
    uint32_t address, gsi_base;
} PACKED;

struct madt_override {
    uint8_t type, length, bus, source;
    uint32_t gsi;
    uint16_t flags;
} PACKED;

struct madt_nmi {
    uint8_t type, length, processor;
    uint16_t flags;
    uint8_t lint;
} PACKED;

enum { GAS_IO = 1, GAS_BYTE = 1, GAS_WORD = 2, GAS_DWORD = 3 };

#define FADT_WBINVD         (1u << 0)
#define FADT_PWR_BUTTON     (1u << 4)   /* no such fixed button */
#define FADT_SLP_BUTTON     (1u << 5)   /* no such fixed button */
#define FADT_TMR_VAL_EXT    (1u << 8)   /* the timer has 32 bits */
#define FADT_RESET_REG_SUP  (1u << 10)
#define BOOT_NO_VGA         (1u << 2)
#define BOOT_NO_ASPM        (1u << 4)
#define BOOT_NO_CMOS_RTC    (1u << 5)
#define MADT_PCAT_COMPAT    1u
#define MADT_ENABLED        1u
#define MPS_LEVEL_HIGH      0x0du       /* level-triggered, active high */

/* Tables go one after the other into this image of the area at LAYOUT_ACPI. */
struct builder {
    uint8_t *base;
    uint32_t used;
};

static uint8_t negated_sum(const void *data, size_t len)
{
    const uint8_t *p = data;
    uint8_t sum = 0;

    while (len--)
        sum = (uint8_t)(sum + *p++);
    return (uint8_t)-sum;
}

/* Guest address of a copy of the table, 64-byte aligned; 0: no room. */
static uint64_t append(struct builder *b, const void *table, size_t len)
{
    uint32_t at = (b->used + 63) & ~63u;

    if (at > LAYOUT_ACPI_MAX || len > LAYOUT_ACPI_MAX - at)
        return 0;
    memcpy(b->base + at, table, len);
    b->used = at + (uint32_t)len;
    return LAYOUT_ACPI + at;
}

static struct sdt head(const char *signature, size_t len, uint8_t revision)
{
    struct sdt h = {
        .length = (uint32_t)len,
        .revision = revision,
        .oem_revision = 1,
        .creator_revision = 1,
    };

    memcpy(h.signature, signature, 4);
    memcpy(h.oem_id, "PLATTR", 6);
    memcpy(h.oem_table_id, "PLATTER ", 8);
    memcpy(h.creator_id, "PLAT", 4);
    return h;
}

static struct gas io_register(unsigned port, unsigned bytes)
{
    return (struct gas){
        .space = GAS_IO,
        .bits = (uint8_t)(bytes * 8),
        .access = bytes == 4 ? GAS_DWORD : bytes == 2 ? GAS_WORD : GAS_BYTE,
        .address = port,
    };
}

static uint64_t add_facs(struct builder *b)
{
    struct facs f = { .length = sizeof(f), .version = 2 };

    memcpy(f.signature, "FACS", 4);
    return append(b, &f, sizeof(f));
}

static uint64_t add_fadt(struct builder *b, uint64_t dsdt, uint64_t facs)
{
    struct fadt f = {
        .head = head("FACP", sizeof(f), 6),
        .firmware_ctrl = (uint32_t)facs,
        .dsdt = (uint32_t)dsdt,
        .sci_int = IRQ_SCI,
        .pm1a_evt = PORT_PM1_EVENT,
        .pm1a_cnt = PORT_PM1_CONTROL,
        .pm_tmr = PORT_PM_TIMER,
        .pm1_evt_len = 4,
        .pm1_cnt_len = 2,
        .pm_tmr_len = 4,
        .p_lvl2_lat = 0xffff,       /* no C2, C3 */
        .p_lvl3_lat = 0xffff,
        .iapc_boot_arch = BOOT_NO_VGA | BOOT_NO_ASPM | BOOT_NO_CMOS_RTC,
        .flags = FADT_WBINVD | FADT_PWR_BUTTON | FADT_SLP_BUTTON | FADT_TMR_VAL_EXT |
                 FADT_RESET_REG_SUP,
        .reset_reg = io_register(PORT_RESET, 1),
        .reset_value = RESET_VALUE,
        .minor_version = 4,
        .x_dsdt = dsdt,
        .x_pm1a_evt = io_register(PORT_PM1_EVENT, 4),
        .x_pm1a_cnt = io_register(PORT_PM1_CONTROL, 2),
        .x_pm_tmr = io_register(PORT_PM_TIMER, 4),
    };

    memcpy(&f.hypervisor_vendor, "PLATTER ", 8);
    f.head.checksum = negated_sum(&f, sizeof(f));
    return append(b, &f, sizeof(f));
}

static uint64_t add_madt(struct builder *b, unsigned cpus)
{
    uint8_t buf[sizeof(struct madt) + ACPI_CPUS_MAX * sizeof(struct madt_lapic) +
                sizeof(struct madt_ioapic) + sizeof(struct madt_override) +
                sizeof(struct madt_nmi)];
    struct madt m = { .lapic_address = LAYOUT_LAPIC, .flags = MADT_PCAT_COMPAT };
    struct madt_ioapic io = { .type = 1, .length = sizeof(io), .address = LAYOUT_IOAPIC };
    struct madt_override sci = { .type = 2, .length = sizeof(sci), .source = IRQ_SCI,
                                 .gsi = IRQ_SCI, .flags = MPS_LEVEL_HIGH };
    struct madt_nmi nmi = { .type = 4, .length = sizeof(nmi), .processor = 0xff, .lint = 1 };
    uint8_t *p = buf + sizeof(m);

    for (unsigned i = 0; i < cpus; i++) {
        struct madt_lapic cpu = { .type = 0, .length = sizeof(cpu), .processor = (uint8_t)i,
                                  .apic_id = (uint8_t)i, .flags = MADT_ENABLED };

        p = (uint8_t *)memcpy(p, &cpu, sizeof(cpu)) + sizeof(cpu);
    }
    p = (uint8_t *)memcpy(p, &io, sizeof(io)) + sizeof(io);
    p = (uint8_t *)memcpy(p, &sci, sizeof(sci)) + sizeof(sci);
    p = (uint8_t *)memcpy(p, &nmi, sizeof(nmi)) + sizeof(nmi);
    m.head = head("APIC", (size_t)(p - buf), 5);
    memcpy(buf, &m, sizeof(m));
    buf[offsetof(struct sdt, checksum)] = negated_sum(buf, (size_t)(p - buf));
    return append(b, buf, (size_t)(p - buf));
}

static uint64_t add_xsdt(struct builder *b, uint64_t fadt, uint64_t madt)
{
    struct xsdt x = { .head = head("XSDT", sizeof(x), 1), .entry = { fadt, madt } };

    x.head.checksum = negated_sum(&x, sizeof(x));
    return append(b, &x, sizeof(x));
}

static void put_rsdp(struct builder *b, uint64_t xsdt)
{
    struct rsdp r = { .revision = 2, .length = sizeof(r), .xsdt = xsdt };

    memcpy(r.signature, "RSD PTR ", 8);
    memcpy(r.oem_id, "PLATTR", 6);
    r.checksum = negated_sum(&r, offsetof(struct rsdp, length));
    r.extended_checksum = negated_sum(&r, sizeof(r));
    memcpy(b->base, &r, sizeof(r));
}

int acpi_build(const struct mem *m, unsigned cpus)
{
    struct builder b = { .base = mem_at(m, LAYOUT_ACPI, LAYOUT_ACPI_MAX),
                         .used = sizeof(struct rsdp) };
    uint64_t facs, dsdt, fadt, madt, xsdt;

    if (cpus > ACPI_CPUS_MAX)
        return -E2BIG;
    if (!b.base)
        return -EFAULT;
    facs = add_facs(&b);
    dsdt = append(&b, dsdt_aml_code, sizeof(dsdt_aml_code));
    fadt = add_fadt(&b, dsdt, facs);
    madt = add_madt(&b, cpus);
    xsdt = add_xsdt(&b, fadt, madt);
    if (!facs || !dsdt || !fadt || !madt || !xsdt)
        return -ENOSPC;             /* the largest MADT fits many times over */
    put_rsdp(&b, xsdt);
    return 0;
}
