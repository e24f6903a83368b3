/*
 * platform.c - see platform.h.
 *
 * Ports are bytes: a wider access is that many byte accesses, as on an ISA bus.
 * Two things are not: PCI configuration (0xcf8-0xcff) and the PM timer, whose
 * bytes must come from one reading.
 */
#include "vmm-shim/platform.h"

#include <string.h>
#include <time.h>

#include "vmm-shim/layout.h"

#define KBC_PULSE_MASK  0xf1u       /* command 0xfX, bit 0 clear: pulse reset */
#define KBC_PULSE_RESET 0xf0u
#define A20_ON          0x02u
#define A20_RESET       0x01u
#define RST_CPU         0x04u       /* of the register at 0xcf9 */
#define PCI_PORTS       8u

static uint32_t pm_timer(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint32_t)((uint64_t)t.tv_sec * PM_TIMER_HZ +
                      (uint64_t)t.tv_nsec * PM_TIMER_HZ / 1000000000u);
}

static bool in(uint16_t port, unsigned base, unsigned count)
{
    return port >= base && port - base < count;
}

/* ---- ports, byte by byte ------------------------------------------------------------ */

static uint8_t byte_read(struct platform *p, uint16_t port)
{
    if (in(port, PORT_COM1, SERIAL_PORTS))
        return serial_read(p->com1, port - PORT_COM1);
    switch (port) {
    case PORT_KBC_COMMAND:
        return 0;                   /* ready for a command, nothing to read */
    case PORT_A20:
        return A20_ON;
    case PORT_PM1_EVENT:
    case PORT_PM1_EVENT + 1:
        return 0;                   /* no event ever happens */
    case PORT_PM1_EVENT + 2:
    case PORT_PM1_EVENT + 3:
        return p->pm1_enable[port - PORT_PM1_EVENT - 2];
    case PORT_PM1_CONTROL:
        return (uint8_t)(p->pm1_control[0] | PM1_SCI_EN);
    case PORT_PM1_CONTROL + 1:
        return p->pm1_control[1];
    default:
        return 0xff;
    }
}

static void pm1_control_high(struct platform *p, uint8_t value)
{
    unsigned v = (unsigned)value << 8;

    p->pm1_control[1] = (uint8_t)(value & ~(PM1_SLP_EN >> 8));
    if ((v & PM1_SLP_EN) && (v >> PM1_SLP_TYP_SHIFT & 7) == SLP_TYP_S5)
        p->ended(p->arg, VM_POWER_OFF, NULL);
}

static void byte_write(struct platform *p, uint16_t port, uint8_t value)
{
    if (in(port, PORT_COM1, SERIAL_PORTS)) {
        serial_write(p->com1, port - PORT_COM1, value);
        return;
    }
    switch (port) {
    case PORT_KBC_COMMAND:
        if ((value & KBC_PULSE_MASK) == KBC_PULSE_RESET)
            p->ended(p->arg, VM_RESET, NULL);
        break;
    case PORT_A20:
        if (value & A20_RESET)
            p->ended(p->arg, VM_RESET, NULL);
        break;
    case PORT_PM1_EVENT + 2:
    case PORT_PM1_EVENT + 3:
        p->pm1_enable[port - PORT_PM1_EVENT - 2] = value;
        break;
    case PORT_PM1_CONTROL:
        p->pm1_control[0] = value;
        break;
    case PORT_PM1_CONTROL + 1:
        pm1_control_high(p, value);
        break;
    default:
        break;
    }
}

/* ---- what a vCPU calls ---------------------------------------------------------------- */

static void port_read(void *arg, uint16_t port, void *data, unsigned len)
{
    struct platform *p = arg;
    uint32_t v = 0xffffffffu;

    if (in(port, PORT_PCI_ADDRESS, PCI_PORTS)) {
        if (port != PORT_RESET || len != 1)
            v = pci_port_read(p->pci, port, len);
        memset(data, 0xff, len);
        memcpy(data, &v, len < sizeof(v) ? len : sizeof(v));
    } else if (port >= PORT_PM_TIMER && port + len <= PORT_PM_TIMER + 4) {
        v = pm_timer() >> (8 * (port - PORT_PM_TIMER));
        memcpy(data, &v, len);
    } else {
        for (unsigned i = 0; i < len; i++)
            ((uint8_t *)data)[i] = byte_read(p, (uint16_t)(port + i));
    }
}

static void port_write(void *arg, uint16_t port, const void *data, unsigned len)
{
    struct platform *p = arg;
    const uint8_t *b = data;
    uint32_t v = 0;

    if (port == PORT_RESET && len == 1) {
        if (b[0] & RST_CPU)
            p->ended(p->arg, VM_RESET, NULL);
    } else if (in(port, PORT_PCI_ADDRESS, PCI_PORTS)) {
        memcpy(&v, data, len < sizeof(v) ? len : sizeof(v));
        pci_port_write(p->pci, port, len, v);
    } else {
        for (unsigned i = 0; i < len; i++)
            byte_write(p, (uint16_t)(port + i), b[i]);
    }
}

static void mmio_read(void *arg, uint64_t gpa, void *data, unsigned len)
{
    struct platform *p = arg;

    pci_mmio_read(p->pci, gpa, data, len);
}

static void mmio_write(void *arg, uint64_t gpa, const void *data, unsigned len)
{
    struct platform *p = arg;

    pci_mmio_write(p->pci, gpa, data, len);
}

static void ended(void *arg, enum vm_end why, const char *text)
{
    struct platform *p = arg;

    p->ended(p->arg, why, text);
}

void platform_init(struct platform *p, struct serial *com1, struct pci_bus *pci,
                   void (*on_end)(void *arg, enum vm_end why, const char *text), void *arg)
{
    memset(p, 0, sizeof(*p));
    p->com1 = com1;
    p->pci = pci;
    p->ended = on_end;
    p->arg = arg;
}

const struct vcpu_bus platform_bus = {
    .port_read = port_read,
    .port_write = port_write,
    .mmio_read = mmio_read,
    .mmio_write = mmio_write,
    .ended = ended,
};
