/*
 * run_platform.c - the board without KVM: power, reset, timer, configuration
 * ports, and any access a guest can make.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "vmm-shim/layout.h"
#include "vmm-shim/platform.h"

static struct serial uart;
static struct pci_bus bus;
static struct pci_dev bridge;
static struct platform board;
static enum vm_end end;
static unsigned sent;

static void on_irq(void *arg, bool level)
{
}

static void on_output(void *arg, uint8_t byte)
{
    sent++;
}

static const struct serial_ops serial_ops = { .irq = on_irq, .output = on_output };

static void on_end(void *arg, enum vm_end why, const char *text)
{
    end = why;
}

static int no_bind(void *arg, int fd, uint64_t addr, uint32_t data, int *route)
{
    return 0;
}

static void no_unbind(void *arg, int fd, int route)
{
}

static int no_add(void *arg, uint64_t gpa, unsigned len, int fd)
{
    return 0;
}

static void no_del(void *arg, uint64_t gpa, unsigned len, int fd)
{
}

static const struct pci_host_ops host_ops = {
    .msi_bind = no_bind,
    .msi_unbind = no_unbind,
    .doorbell_add = no_add,
    .doorbell_del = no_del,
};

static int setup(void **state)
{
    const struct pci_host host = { .ops = &host_ops };

    end = VM_RUNNING;
    sent = 0;
    memset(&bus, 0, sizeof(bus));
    memset(&bridge, 0, sizeof(bridge));
    serial_init(&uart, &serial_ops, NULL);
    assert_int_equal(pci_bus_init(&bus, &host), 0);
    pci_bus_set_window(&bus, LAYOUT_PCI_BASE, LAYOUT_PCI_END);
    assert_int_equal(pci_host_bridge_init(&bridge, &bus, 0), 0);
    platform_init(&board, &uart, &bus, on_end, NULL);
    return 0;
}

static int teardown(void **state)
{
    pci_dev_fini(&bridge);
    pci_bus_fini(&bus);
    serial_fini(&uart);
    return 0;
}

static uint32_t in(uint16_t port, unsigned len)
{
    uint32_t v = 0;

    platform_bus.port_read(&board, port, &v, len);
    return v;
}

static void out(uint16_t port, unsigned len, uint32_t v)
{
    platform_bus.port_write(&board, port, &v, len);
}

static void soft_off_powers_off(void **state)
{
    out(PORT_PM1_CONTROL, 2, SLP_TYP_S5 << PM1_SLP_TYP_SHIFT);
    assert_int_equal(end, VM_RUNNING);
    out(PORT_PM1_CONTROL, 2, SLP_TYP_S5 << PM1_SLP_TYP_SHIFT | PM1_SLP_EN);
    assert_int_equal(end, VM_POWER_OFF);
}

static void other_sleep_types_do_nothing(void **state)
{
    for (unsigned type = 0; type < 8; type++) {
        if (type != SLP_TYP_S5)
            out(PORT_PM1_CONTROL, 2, type << PM1_SLP_TYP_SHIFT | PM1_SLP_EN);
    }
    assert_int_equal(end, VM_RUNNING);
    assert_int_equal(in(PORT_PM1_CONTROL, 2) & PM1_SLP_EN, 0);
    assert_int_equal(in(PORT_PM1_CONTROL, 2) & PM1_SCI_EN, PM1_SCI_EN);
}

static void acpi_reset_register_resets(void **state)
{
    out(PORT_RESET, 1, 0x02);
    assert_int_equal(end, VM_RUNNING);
    out(PORT_RESET, 1, RESET_VALUE);
    assert_int_equal(end, VM_RESET);
}

static void keyboard_controller_pulse_resets(void **state)
{
    assert_int_equal(in(PORT_KBC_COMMAND, 1) & 2, 0);   /* ready for the command */
    out(PORT_KBC_COMMAND, 1, 0xd1);
    assert_int_equal(end, VM_RUNNING);
    out(PORT_KBC_COMMAND, 1, 0xfe);
    assert_int_equal(end, VM_RESET);
}

static void fast_a20_reset_resets(void **state)
{
    out(PORT_A20, 1, 0x02);
    assert_int_equal(end, VM_RUNNING);
    out(PORT_A20, 1, 0x03);
    assert_int_equal(end, VM_RESET);
}

static void dword_at_cf8_is_an_address_not_a_reset(void **state)
{
    out(PORT_PCI_ADDRESS, 4, 0x80000600);
    assert_int_equal(end, VM_RUNNING);
    assert_int_equal(in(PORT_PCI_ADDRESS, 4), 0x80000600);
}

static void host_bridge_is_found_by_port(void **state)
{
    out(PORT_PCI_ADDRESS, 4, 0x80000008);
    assert_int_equal(in(PORT_PCI_DATA, 4) >> 16, 0x0600);
    out(PORT_PCI_ADDRESS, 4, 0x80000800);       /* device 1: nobody */
    assert_int_equal(in(PORT_PCI_DATA, 4), 0xffffffff);
}

static void pm_timer_runs_at_its_rate(void **state)
{
    uint32_t a = in(PORT_PM_TIMER, 4), b;

    usleep(50000);
    b = in(PORT_PM_TIMER, 4) - a;
    assert_in_range(b, PM_TIMER_HZ / 20, PM_TIMER_HZ * 10);
}

static void wide_access_to_the_uart_is_byte_accesses(void **state)
{
    out(PORT_COM1, 4, 0x03000041);      /* DATA, IER, FCR, LCR */
    assert_int_equal(sent, 1);
    assert_int_equal(in(PORT_COM1 + 3, 1), 3);
    assert_int_equal(in(PORT_COM1 + 4, 2), 0x6000); /* MCR, LSR */
}

static void nobody_reads_as_ones(void **state)
{
    uint64_t v = 0;

    assert_int_equal(in(0x70, 1), 0xff);
    assert_int_equal(in(0x1f0, 2), 0xffff);
    assert_int_equal(in(0xffff, 4), 0xffffffff);
    platform_bus.mmio_read(&board, 0xa0000, &v, 8);
    assert_true(v == UINT64_MAX);
    platform_bus.mmio_write(&board, UINT64_MAX, &v, 8);
}

/* Every port at every width, then addresses all over the place. */
static void any_access_is_survived(void **state)
{
    static const unsigned widths[] = { 1, 2, 4 };
    uint64_t v = 0, x = 1;

    for (unsigned port = 0; port < 0x10000; port++) {
        for (unsigned w = 0; w < 3; w++) {
            in((uint16_t)port, widths[w]);
            out((uint16_t)port, widths[w], 0xffffffff);
            out((uint16_t)port, widths[w], port * 2654435761u);
        }
    }
    for (int i = 0; i < 100000; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        platform_bus.mmio_read(&board, i & 1 ? x : x >> 32, &v, 1 + (x >> 60) % 8);
        platform_bus.mmio_write(&board, i & 1 ? x : x >> 32, &x, 1 + (x >> 60) % 8);
    }
    assert_int_not_equal(end, VM_RUNNING);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(soft_off_powers_off),
        CASE(other_sleep_types_do_nothing),
        CASE(acpi_reset_register_resets),
        CASE(keyboard_controller_pulse_resets),
        CASE(fast_a20_reset_resets),
        CASE(dword_at_cf8_is_an_address_not_a_reset),
        CASE(host_bridge_is_found_by_port),
        CASE(pm_timer_runs_at_its_rate),
        CASE(wide_access_to_the_uart_is_byte_accesses),
        CASE(nobody_reads_as_ones),
        CASE(any_access_is_survived),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
