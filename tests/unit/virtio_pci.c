/*
 * virtio_pci.c - guest memory, the PCI bus, MSI-X and the configuration window.
 */
#include "tests/unit/virtio/guest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define QSIZE 64u

static struct guest g;

static int up(void **state)
{
    guest_new(&g, NULL);
    guest_boot(&g, QSIZE);
    return 0;
}

static int down(void **state)
{
    guest_free(&g);
    return 0;
}

/* ---- memory --------------------------------------------------------------------- */

static void regions_that_overlap_wrap_or_are_empty_are_refused(void **state)
{
    static uint8_t ram[4096];
    struct mem m = { 0 };

    assert_int_equal(mem_add(&m, 0x1000, 0x1000, ram), 0);
    assert_int_equal(mem_add(&m, 0x1fff, 0x10, ram), -EINVAL);
    assert_int_equal(mem_add(&m, 0xff0, 0x11, ram), -EINVAL);
    assert_int_equal(mem_add(&m, 0x0, 0x10000, ram), -EINVAL);
    assert_int_equal(mem_add(&m, 0x5000, 0, ram), -EINVAL);
    assert_int_equal(mem_add(&m, UINT64_MAX - 0xfff, 0x1001, ram), -EINVAL);
    assert_int_equal(mem_add(&m, 0xff0, 0x10, ram), 0);
    assert_int_equal(mem_add(&m, 0x2000, 0x10, ram), 0);
    assert_int_equal(mem_add(&m, UINT64_MAX - 0xfff, 0x1000, ram), 0);
    assert_int_equal(mem_total(&m), 0x2020);
    for (unsigned i = m.count; i < MEM_REGIONS; i++)
        assert_int_equal(mem_add(&m, 0x100000ull * i, 1, ram), 0);
    assert_int_equal(mem_add(&m, 0x90000000, 1, ram), -ENOSPC);
}

static void pointers_exist_only_for_ranges_inside_one_region(void **state)
{
    static uint8_t a[4096], b[4096];
    struct mem m = { 0 };
    uint32_t v = 0;

    assert_int_equal(mem_add(&m, 0x2000, sizeof(b), b), 0);
    assert_int_equal(mem_add(&m, 0x1000, sizeof(a), a), 0);
    assert_ptr_equal(mem_at(&m, 0x1000, 4096), a);
    assert_ptr_equal(mem_at(&m, 0x1fff, 1), a + 4095);
    assert_ptr_equal(mem_at(&m, 0x2000, 1), b);
    assert_null(mem_at(&m, 0x1fff, 2));         /* neighbours, but not one piece */
    assert_null(mem_at(&m, 0xfff, 1));
    assert_null(mem_at(&m, 0x3000, 1));
    assert_null(mem_at(&m, 0x1000, 0));
    assert_null(mem_at(&m, 0x1001, UINT64_MAX));
    assert_null(mem_at(&m, UINT64_MAX, 2));
    assert_int_equal(mem_write(&m, 0x2ffc, &v, 4), 0);
    assert_int_equal(mem_write(&m, 0x2ffd, &v, 4), -EFAULT);
    assert_int_equal(mem_read(&m, 0x2ffd, &v, 4), -EFAULT);
}

/* ---- configuration space ----------------------------------------------------------- */

static void functions_that_do_not_exist_read_as_ones(void **state)
{
    assert_int_equal(pci_config_read(&g.bus, 0, 9, 0, 0, 4), 0xffffffff);
    assert_int_equal(pci_config_read(&g.bus, 1, DEVFN >> 3, 0, 0, 2), 0xffff);
    assert_int_equal(pci_config_read(&g.bus, 0, DEVFN >> 3, 1, 0, 1), 0xff);
    assert_int_equal(pci_config_read(&g.bus, 0, 32, 0, 0, 4), 0xffffffff);
    assert_int_equal(pci_config_read(&g.bus, 0, 0, 8, 0, 4), 0xffffffff);
    assert_int_equal(pci_config_read(&g.bus, 0, 0, 0, 256, 4), 0xffffffff);
    assert_int_equal(pci_config_read(&g.bus, 0, 0, 0, 1, 4), 0xffffffff);
    assert_int_equal(pci_config_read(&g.bus, 0, 0, 0, 0, 3), 0xffffffff);
    assert_int_equal(pci_config_read(&g.bus, 0, 0, 0, 0, 0), 0xffffffff);
    pci_config_write(&g.bus, 0, 9, 0, 4, 4, 2);
    assert_int_equal(pci_config_read(&g.bus, 0, 0, 0, 8, 4) >> 8, 0x060000);
}

static void ports_cf8_and_cfc_reach_configuration_space(void **state)
{
    pci_port_write(&g.bus, 0xcf8, 4, 0x80000000 | DEVFN << 8);
    assert_int_equal(pci_port_read(&g.bus, 0xcf8, 4), 0x80000000 | DEVFN << 8);
    assert_int_equal(pci_port_read(&g.bus, 0xcfc, 4), 0x10421af4);
    assert_int_equal(pci_port_read(&g.bus, 0xcfe, 2), 0x1042);
    assert_int_equal(pci_port_read(&g.bus, 0xcff, 1), 0x10);
    assert_int_equal(pci_port_read(&g.bus, 0xcfd, 4), 0xffffffff);     /* across the end */
    pci_port_write(&g.bus, 0xcf8, 4, 0x80000000 | DEVFN << 8 | 0x3c);
    pci_port_write(&g.bus, 0xcfc, 1, 0x2a);
    assert_int_equal(guest_config(&g, 0x3c, 1), 0x2a);
    pci_port_write(&g.bus, 0xcf8, 4, DEVFN << 8);                       /* not enabled */
    assert_int_equal(pci_port_read(&g.bus, 0xcfc, 4), 0xffffffff);
}

static void read_only_configuration_stays_as_it_is(void **state)
{
    uint32_t before[64];

    for (unsigned reg = 0; reg < 256; reg += 4)
        before[reg / 4] = guest_config(&g, reg, 4);
    for (unsigned reg = 0; reg < 256; reg++) {
        /* Not the command, BARs, interrupt line, MSI-X control, the window. */
        if ((reg >= 4 && reg < 6) || (reg >= 0x10 && reg < 0x28) || reg == 0x0c || reg == 0x3c ||
            reg == g.msix_cap + 3 || (reg >= g.cfg_cap + 4 && reg < g.cfg_cap + 20))
            continue;
        guest_config_out(&g, reg, 1, 0xff);
        guest_config_out(&g, reg, 1, 0);
    }
    for (unsigned reg = 0; reg < 256; reg += 4)
        assert_int_equal(guest_config(&g, reg, 4), before[reg / 4]);
    assert_serves(&g);
}

static void bars_tell_their_size(void **state)
{
    uint32_t lo = guest_config(&g, 0x10, 4), hi = guest_config(&g, 0x14, 4);

    guest_config_out(&g, 4, 2, 0);
    guest_config_out(&g, 0x10, 4, 0xffffffff);
    guest_config_out(&g, 0x14, 4, 0xffffffff);
    assert_int_equal(guest_config(&g, 0x10, 4), 0xffffc004);
    assert_int_equal(guest_config(&g, 0x14, 4), 0xffffffff);
    guest_config_out(&g, 0x24, 4, 0xffffffff);
    assert_int_equal(guest_config(&g, 0x24, 4), 0);                     /* no such BAR */
    guest_config_out(&g, 0x10, 4, lo);
    guest_config_out(&g, 0x14, 4, hi);
    guest_config_out(&g, 4, 2, 2);
    assert_serves(&g);
}

/* ---- BARs ---------------------------------------------------------------------------- */

static unsigned bells_at(uint64_t gpa)
{
    unsigned n = 0;

    for (unsigned i = 0; i < g.host.bells; i++)
        n += g.host.bell[i].gpa == gpa;
    return n;
}

static void move(uint64_t to)
{
    guest_config_out(&g, 0x10, 4, (uint32_t)to);
    guest_config_out(&g, 0x14, 4, (uint32_t)(to >> 32));
}

static void a_moved_bar_takes_registers_and_doorbells_along(void **state)
{
    uint64_t old = g.common, off = MMIO_BASE + 0x1000000 - old;

    assert_int_equal(bells_at(g.q[0].bell), 1);
    move(MMIO_BASE + 0x1000000);
    assert_int_equal(guest_in(&g, old + C_STATUS, 1), 0xff);
    assert_int_equal(bells_at(g.q[0].bell), 0);
    g.common += off;
    g.notify += off;
    g.device += off;
    g.isr += off;
    g.q[0].bell += off;
    assert_int_equal(bells_at(g.q[0].bell), 1);
    assert_int_equal(guest_status(&g), 15);
    assert_serves(&g);
}

static void bars_outside_the_window_or_switched_off_are_not_decoded(void **state)
{
    static const uint64_t bad[] = { 0, DATA & ~0x3fffull, MMIO_BASE - 0x4000, MMIO_END,
                                    0xfee00000, HIGH_BASE, 0xffffffffffffc000 };
    uint64_t old = g.common;

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        move(bad[i]);
        assert_int_equal(guest_in(&g, old + C_STATUS, 1), 0xff);
        assert_int_equal(guest_in(&g, bad[i] + C_STATUS, 1), 0xff);
        assert_int_equal(g.host.bells, 0);
    }
    move(old);
    assert_int_equal(guest_status(&g), 15);
    guest_config_out(&g, 4, 2, 0);
    assert_int_equal(guest_in(&g, old + C_STATUS, 1), 0xff);
    assert_int_equal(g.host.bells, 0);
    guest_config_out(&g, 4, 2, 2);
    assert_serves(&g);
}

static void overlapping_bars_decode_one_of_them(void **state)
{
    uint64_t msix = guest_config(&g, 0x18, 4) & ~0xfu, old = g.common;

    move(msix & ~0x3fffull);
    for (uint64_t at = msix & ~0x3fffull; at < (msix | 0x3fff); at += 8) {
        guest_in(&g, at, 8);
        guest_out(&g, at, 8, UINT64_MAX);
    }
    move(old);
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

static void accesses_across_a_bars_end_are_ones_and_dropped(void **state)
{
    uint64_t end = g.common + 0x4000;

    assert_int_equal(guest_in(&g, end - 4, 8), UINT64_MAX);
    guest_out(&g, end - 1, 2, 0);
    assert_int_equal(guest_in(&g, g.msix_table + 4096 - 2, 4), 0xffffffff);
    assert_false(pci_mmio_write(&g.bus, MMIO_END - 8, "12345678", 8));
    assert_serves(&g);
}

static void without_ioeventfd_doorbells_arrive_as_mmio(void **state)
{
    g.host.bells = 0;               /* the host could not take them */
    assert_serves(&g);
}

/* ---- MSI-X ------------------------------------------------------------------------------ */

static void mask(unsigned vector, bool on)
{
    guest_out(&g, g.msix_table + 16 * vector + 12, 4, on);
}

static uint64_t pending(void)
{
    return guest_in(&g, g.msix_pba, 8);
}

static void a_masked_vector_is_pending_and_delivered_once_unmasked(void **state)
{
    assert_serves(&g);
    assert_true(guest_raised(&g, 1) > 0);
    mask(1, true);
    assert_int_equal(pending(), 0);
    assert_serves(&g);
    assert_int_equal(guest_raised(&g, 1), 0);
    assert_int_equal(pending(), 2);
    mask(1, false);
    assert_int_equal(guest_raised(&g, 1), 1);
    assert_int_equal(pending(), 0);
}

static void the_function_mask_holds_all_vectors(void **state)
{
    guest_config_out(&g, g.msix_cap + 2, 2, 0xc000);
    assert_serves(&g);
    assert_int_equal(guest_raised(&g, 1), 0);
    assert_int_equal(pending(), 2);
    guest_config_out(&g, g.msix_cap + 2, 2, 0x8000);
    assert_int_equal(guest_raised(&g, 1), 1);
}

static void a_new_message_is_used_from_then_on(void **state)
{
    guest_out(&g, g.msix_table + 16 + 8, 4, 0x4077);
    assert_serves(&g);
    assert_int_equal(guest_raised(&g, 1), 0);
    assert_true(guest_raised(&g, 0x77) > 0);
    guest_out(&g, g.msix_table + 16 + 8, 8, 0x4078);    /* data and control in one */
    assert_serves(&g);
    assert_true(guest_raised(&g, 0x78) > 0);
}

static void the_table_takes_aligned_4_and_8_byte_accesses_only(void **state)
{
    guest_out(&g, g.msix_table, 1, 0x11);
    guest_out(&g, g.msix_table, 2, 0x1111);
    guest_out(&g, g.msix_table + 2, 4, 0x11111111);
    guest_out(&g, g.msix_table + 4, 8, UINT64_MAX);
    assert_int_equal(guest_in(&g, g.msix_table, 8), 0xfee00000);
    assert_int_equal(guest_in(&g, g.msix_table, 2), 0);
    guest_out(&g, g.msix_table + 12, 4, 0xffffffff);
    assert_int_equal(guest_in(&g, g.msix_table + 12, 4), 1);    /* reserved bits stay 0 */
    guest_out(&g, g.msix_pba, 8, UINT64_MAX);
    assert_int_equal(pending(), 0);
    for (uint64_t at = g.msix_table + 32; at < g.msix_pba; at += 8)
        assert_int_equal(guest_in(&g, at, 8), 0);
}

static void interrupts_are_one_a_batch(void **state)
{
    g.features &= ~VIRTIO_F_EVENT_IDX;
    guest_boot(&g, QSIZE);
    for (unsigned i = 0; i < 20; i++)
        g_request(&g, 0, i, T_IN, i, DATA, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(g_used_idx(&g, 0), 20);
    assert_int_equal(guest_raised(&g, 1), 1);
    g_put16(&g, g.q[0].avail, 1);                       /* NO_INTERRUPT */
    g.q[0].used_seen = 20;
    assert_serves(&g);
    assert_int_equal(guest_raised(&g, 1), 0);
}

static void event_idx_says_which_completion_interrupts(void **state)
{
    g_put16(&g, g.q[0].avail + 4 + 2 * QSIZE, 4);       /* after the fifth */
    for (unsigned i = 0; i < 4; i++)
        g_request(&g, 0, i, T_IN, i, DATA, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(guest_raised(&g, 1), 0);
    g_request(&g, 0, 4, T_IN, 0, DATA, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(guest_raised(&g, 1), 1);
    g_request(&g, 0, 5, T_IN, 0, DATA, 512);            /* that one had its interrupt */
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(guest_raised(&g, 1), 0);
    /* And the other way: where the device wants the next kick. */
    assert_int_equal(*(uint16_t *)gp(&g, g.q[0].used + 4 + 8 * QSIZE), 6);
}

/* ---- the window in configuration space ---------------------------------------------------- */

static void window(uint32_t bar, uint32_t off, uint32_t len)
{
    guest_config_out(&g, g.cfg_cap + 4, 1, bar);
    guest_config_out(&g, g.cfg_cap + 8, 4, off);
    guest_config_out(&g, g.cfg_cap + 12, 4, len);
}

static void the_configuration_window_reaches_the_registers(void **state)
{
    window(0, C_STATUS, 1);
    assert_int_equal(guest_config(&g, g.cfg_cap + 16, 1), 15);
    window(0, 0x2000, 4);
    assert_int_equal(guest_config(&g, g.cfg_cap + 16, 4), DISK_SIZE / 512);
    window(0, C_QSEL, 2);
    guest_config_out(&g, g.cfg_cap + 16, 2, 33);
    assert_int_equal(guest_in(&g, g.common + C_QSEL, 2), 33);
    g_request(&g, 0, 0, T_IN, 0, DATA, 512);
    window(0, 0x3000, 2);
    guest_config_out(&g, g.cfg_cap + 16, 2, 0);         /* a kick */
    guest_settle(&g);
    assert_int_equal(g_used_idx(&g, 0), 1);
}

static void a_bad_configuration_window_does_nothing(void **state)
{
    static const uint32_t bad[][3] = {
        { 0, 0x4000, 4 }, { 0, 0xfffffffc, 4 }, { 1, 0, 4 }, { 5, 0, 4 }, { 6, 0, 4 },
        { 255, 0, 4 }, { 0, 20, 3 }, { 0, 20, 0 }, { 0, 20, 8 }, { 0, 20, 0xffffffff },
        { 0, 21, 4 }, { 0, 0x3ffe, 4 },
    };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        window(bad[i][0], bad[i][1], bad[i][2]);
        guest_config(&g, g.cfg_cap + 16, 4);
        guest_config_out(&g, g.cfg_cap + 16, 4, 0);
    }
    assert_int_equal(guest_status(&g), 15);
    assert_serves(&g);
}

#define T(test) cmocka_unit_test_setup_teardown(test, up, down)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        T(regions_that_overlap_wrap_or_are_empty_are_refused),
        T(pointers_exist_only_for_ranges_inside_one_region),
        T(functions_that_do_not_exist_read_as_ones),
        T(ports_cf8_and_cfc_reach_configuration_space),
        T(read_only_configuration_stays_as_it_is),
        T(bars_tell_their_size),
        T(a_moved_bar_takes_registers_and_doorbells_along),
        T(bars_outside_the_window_or_switched_off_are_not_decoded),
        T(overlapping_bars_decode_one_of_them),
        T(accesses_across_a_bars_end_are_ones_and_dropped),
        T(without_ioeventfd_doorbells_arrive_as_mmio),
        T(a_masked_vector_is_pending_and_delivered_once_unmasked),
        T(the_function_mask_holds_all_vectors),
        T(a_new_message_is_used_from_then_on),
        T(the_table_takes_aligned_4_and_8_byte_accesses_only),
        T(interrupts_are_one_a_batch),
        T(event_idx_says_which_completion_interrupts),
        T(the_configuration_window_reaches_the_registers),
        T(a_bad_configuration_window_does_nothing),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
