/*
 * virtio_regs.c - bad-input.md B25 to B32: registers written in every wrong order,
 * width and value, and resets with requests in flight.
 */
#include "tests/unit/virtio/guest.h"

#include <errno.h>
#include <sched.h>
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
    return 0;
}

static int down(void **state)
{
    guest_free(&g);
    return 0;
}

static uint64_t in(unsigned field, unsigned len)
{
    return guest_in(&g, g.common + field, len);
}

static void out(unsigned field, unsigned len, uint64_t v)
{
    guest_out(&g, g.common + field, len, v);
}

/* ---- B25, B26 ------------------------------------------------------------------- */

static void b25_bad_queue_sizes_are_dropped(void **state)
{
    static const unsigned bad[] = { 0, 3, 63, 65, 255, 257, 512, 32768, 65535 };

    guest_negotiate(&g);
    out(C_QSEL, 2, 0);
    assert_int_equal(in(C_QSIZE, 2), 256);
    out(C_QSIZE, 2, 64);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        out(C_QSIZE, 2, bad[i]);
        assert_int_equal(in(C_QSIZE, 2), 64);
    }
    for (unsigned size = 1; size <= 256; size *= 2) {
        out(C_QSIZE, 2, size);
        assert_int_equal(in(C_QSIZE, 2), size);
    }
}

static void b25_smallest_queues_are_served(void **state)
{
    for (unsigned size = 4; size <= 256; size *= 2) {
        guest_boot(&g, size);
        assert_serves(&g);
    }
}

static void b25_queue_registers_are_frozen_after_driver_ok(void **state)
{
    guest_boot(&g, QSIZE);
    out(C_QSEL, 2, 0);
    out(C_QSIZE, 2, 16);
    out(C_QDESC, 4, 0x999990);
    out(C_QAVAIL, 8, 0x999990);
    out(C_QUSED, 8, UINT64_MAX);
    out(C_QENABLE, 2, 0);
    assert_int_equal(in(C_QSIZE, 2), QSIZE);
    assert_int_equal(in(C_QDESC, 8), g.q[0].desc);
    assert_int_equal(in(C_QAVAIL, 8), g.q[0].avail);
    assert_int_equal(in(C_QUSED, 8), g.q[0].used);
    assert_int_equal(in(C_QENABLE, 2), 1);
    assert_serves(&g);
}

static void b25_no_queue_can_be_added_after_driver_ok(void **state)
{
    static const struct virtio_blk_config c = { .queues = 4 };

    guest_free(&g);
    guest_new(&g, &c);
    guest_negotiate(&g);
    guest_queue(&g, 0, QSIZE);
    guest_go(&g);
    guest_queue(&g, 1, QSIZE);
    assert_int_equal(in(C_QSIZE, 2), 256);
    assert_int_equal(in(C_QDESC, 8), 0);
    assert_int_equal(in(C_QENABLE, 2), 0);
    assert_serves(&g);
}

static void b26_enabling_before_the_addresses_is_refused(void **state)
{
    /* All rings at 0: they overlap. */
    guest_negotiate(&g);
    out(C_QSEL, 2, 0);
    out(C_QENABLE, 2, 1);
    assert_int_equal(in(C_QENABLE, 2), 0);
    assert_int_equal(guest_status(&g) & VIRTIO_S_NEEDS_RESET, VIRTIO_S_NEEDS_RESET);
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

static void b26_enabling_twice_changes_nothing(void **state)
{
    guest_negotiate(&g);
    guest_queue(&g, 0, QSIZE);
    out(C_QUSED, 4, 0x12344);
    out(C_QENABLE, 2, 1);
    assert_int_equal(in(C_QENABLE, 2), 1);
    assert_int_equal(in(C_QUSED, 8), g.q[0].used);
    guest_go(&g);
    assert_serves(&g);
}

static void b26_enabling_with_anything_but_1_is_dropped(void **state)
{
    static const unsigned bad[] = { 0, 2, 3, 255, 256, 0x8001, 0xffff };

    guest_negotiate(&g);
    guest_queue(&g, 0, QSIZE);
    out(C_QENABLE, 2, 0);
    assert_int_equal(in(C_QENABLE, 2), 1);
    guest_negotiate(&g);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        out(C_QENABLE, 2, bad[i]);
        assert_int_equal(in(C_QENABLE, 2), 0);
    }
    assert_int_equal(guest_status(&g) & VIRTIO_S_NEEDS_RESET, 0);
}

static void b25_a_queue_that_does_not_exist_reads_as_size_0(void **state)
{
    static const unsigned bad[] = { 1, 2, 63, 64, 65, 255, 65535 };

    guest_negotiate(&g);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        out(C_QSEL, 2, bad[i]);
        out(C_QSIZE, 2, 64);
        out(C_QDESC, 8, 0x10000);
        out(C_QENABLE, 2, 1);
        out(C_QMSIX, 2, 0);
        assert_int_equal(in(C_QSIZE, 2), 0);
        assert_int_equal(in(C_QENABLE, 2), 0);
        assert_int_equal(in(C_QDESC, 8), 0);
    }
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

/* ---- B27 ---------------------------------------------------------------------------- */

static void b27_kick_before_driver_ok_is_served_only_after_it(void **state)
{
    guest_negotiate(&g);
    guest_queue(&g, 0, QSIZE);
    g_request(&g, 0, 0, T_IN, 0, DATA, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(g.store->ops[BLK_READ], 0);
    assert_int_equal(g_used_idx(&g, 0), 0);
    guest_go(&g);
    assert_int_equal(g_used_idx(&g, 0), 1);
    g.q[0].used_seen = 1;
    assert_serves(&g);
}

static void b27_kick_after_failed_is_not_served(void **state)
{
    guest_boot(&g, QSIZE);
    guest_set_status(&g, 15 | 128);
    guest_settle(&g);
    g_request(&g, 0, 0, T_IN, 0, DATA, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(g.store->ops[BLK_READ], 0);
    guest_set_status(&g, 15);                       /* no way back but a reset */
    guest_settle(&g);
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(g.store->ops[BLK_READ], 0);
    assert_int_equal(guest_status(&g), 15 | 128);
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

static void b27_driver_ok_after_failed_does_not_start(void **state)
{
    guest_negotiate(&g);
    guest_queue(&g, 0, QSIZE);
    guest_set_status(&g, 11 | 128);
    guest_set_status(&g, 15 | 128);
    assert_int_equal(guest_status(&g) & 4, 0);
    g_request(&g, 0, 0, T_IN, 0, DATA, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(g_used_idx(&g, 0), 0);
}

static void b27_kick_of_a_queue_out_of_range_does_nothing(void **state)
{
    guest_boot(&g, QSIZE);
    for (uint64_t at = g.notify; at < g.notify + 0x1000; at += 2) {
        for (unsigned len = 1; len <= 8; len *= 2)
            guest_out(&g, at, len, 0xffff);
    }
    assert_serves(&g);
}

static void b27_kick_of_a_queue_never_enabled_does_nothing(void **state)
{
    static const struct virtio_blk_config c = { .queues = 4 };

    guest_free(&g);
    guest_new(&g, &c);
    guest_negotiate(&g);
    guest_queue(&g, 0, QSIZE);
    guest_queue(&g, 2, QSIZE);
    guest_go(&g);
    for (unsigned i = 0; i < 4; i++)
        guest_out(&g, g.notify + i * g.notify_stride, 2, i);
    guest_settle(&g);
    g_request(&g, 2, 0, T_IN, 0, DATA, 512);
    g_kick(&g, 2);
    guest_settle(&g);
    assert_int_equal(g_used_idx(&g, 2), 1);
    assert_serves(&g);
}

/* ---- B28: resets with requests in flight ------------------------------------------------ */

static void b28_reset_is_not_done_before_the_last_request_is_home(void **state)
{
    uint8_t *data = gp(&g, DATA);
    uint8_t before[512];

    guest_boot(&g, QSIZE);
    memset(g.store->data, 0x99, DISK_SIZE);
    g.store->hold = true;
    for (unsigned i = 0; i < 8; i++)
        g_request(&g, 0, i, T_IN, i, DATA + 512 * i, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(g.store->inflight, 8);
    guest_set_status(&g, 0);
    for (unsigned left = 8; left > 0; left--) {
        guest_settle(&g);
        assert_int_not_equal(guest_status(&g), 0);      /* still the guest's duty to wait */
        assert_int_equal(g.store->inflight, left);
        store_release(g.store, 1);
    }
    guest_settle(&g);
    assert_int_equal(guest_status(&g), 0);
    assert_int_equal(g_used_idx(&g, 0), 0);             /* nothing given back */
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(guest_raised(&g, 1), 0);
    /* The memory is the guest's again: nothing may touch it now. */
    memset(data, 0x11, 4096);
    memset(before, 0x11, sizeof(before));
    memset(gp(&g, g.q[0].used), 0x22, 256);
    guest_settle(&g);
    assert_memory_equal(data, before, 512);
    assert_int_equal(*(uint8_t *)gp(&g, g.q[0].used + 2), 0x22);
    g.store->hold = false;
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

static void b28_registers_are_dropped_while_a_reset_is_pending(void **state)
{
    guest_boot(&g, QSIZE);
    g.store->hold = true;
    g_request(&g, 0, 0, T_IN, 0, DATA, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    guest_set_status(&g, 0);
    assert_int_equal(guest_status(&g), 15);
    guest_set_status(&g, 1);
    guest_set_status(&g, 0);
    out(C_QSEL, 2, 0);
    out(C_QDESC, 8, 0x77770);
    out(C_GF, 4, 0xffffffff);
    guest_out(&g, g.device + 32, 1, 0);
    assert_int_equal(guest_status(&g), 15);
    assert_int_equal(in(C_QDESC, 8), g.q[0].desc);
    assert_int_equal(guest_in(&g, g.device + 32, 1), 1);
    g.store->hold = false;
    store_release(g.store, 1);
    guest_settle(&g);
    assert_int_equal(guest_status(&g), 0);
    assert_int_equal(in(C_QDESC, 8), 0);
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

static void b28_reset_returns_every_register_to_its_default(void **state)
{
    guest_boot(&g, QSIZE);
    assert_true(guest_reset(&g));
    out(C_QSEL, 2, 0);
    assert_int_equal(in(C_QSIZE, 2), 256);
    assert_int_equal(in(C_QENABLE, 2), 0);
    assert_int_equal(in(C_QMSIX, 2), 0xffff);
    assert_int_equal(in(C_MSIX, 2), 0xffff);
    assert_int_equal(in(C_QDESC, 8) | in(C_QAVAIL, 8) | in(C_QUSED, 8), 0);
    assert_int_equal(in(C_GF, 4), 0);
    assert_int_equal(in(C_STATUS, 1), 0);
}

static atomic_bool releasing;

static void post_release(void *arg)
{
    store_release(g.store, 1 + g.store->inflight / 3);
    atomic_store(&releasing, false);
}

static void b28_resets_under_load_never_hang(void **state)
{
    struct blk_post p = { .fn = post_release };

    guest_thread(&g);
    for (unsigned round = 0; round < 150; round++) {
        guest_boot(&g, QSIZE);
        __atomic_store_n(&g.store->hold, round % 3 != 0, __ATOMIC_SEQ_CST);
        for (unsigned i = 0; i < 20; i++)
            g_request(&g, 0, i, i % 3 ? T_IN : T_OUT, i, DATA + 512 * i, 512);
        g_kick(&g, 0);
        if (round % 2)
            sched_yield();
        guest_set_status(&g, 0);
        g_kick(&g, 0);
        while (guest_status(&g)) {
            if (!atomic_exchange(&releasing, true))
                blk_loop_post(g.loop, &p);
            sched_yield();
        }
        assert_int_equal(__atomic_load_n(&g.store->inflight, __ATOMIC_SEQ_CST), 0);
        memset(gp(&g, DATA), 0, 20 * 512);
    }
    __atomic_store_n(&g.store->hold, false, __ATOMIC_SEQ_CST);
    guest_join(&g);
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

static void b28_a_vcpu_does_not_wait_long_for_dead_storage(void **state)
{
    uint64_t before;

    guest_thread(&g);
    guest_boot(&g, QSIZE);
    g.store->hold = true;
    g_request(&g, 0, 0, T_IN, 0, DATA, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    before = blk_now_ns();
    guest_set_status(&g, 0);
    assert_true(blk_now_ns() - before < 1000000000u);
    assert_int_equal(guest_status(&g), 15);
}

/* ---- B29, B30 ----------------------------------------------------------------------------- */

static void b29_status_bits_are_never_taken_back(void **state)
{
    guest_boot(&g, QSIZE);
    guest_set_status(&g, 8);
    assert_int_equal(guest_status(&g), 15);
    guest_set_status(&g, 1);
    assert_int_equal(guest_status(&g), 15);
    guest_set_status(&g, 64);                           /* the device's own bit */
    assert_int_equal(guest_status(&g), 15);
    assert_serves(&g);
}

static void b29_features_are_frozen_after_features_ok(void **state)
{
    uint64_t had;

    guest_negotiate(&g);
    out(C_GFSEL, 4, 0);
    had = in(C_GF, 4);
    out(C_GF, 4, 0);
    assert_int_equal(in(C_GF, 4), had);
    out(C_GF, 4, 0xffffffff);
    assert_int_equal(in(C_GF, 4), had);
    guest_queue(&g, 0, QSIZE);
    guest_go(&g);
    assert_serves(&g);
}

static void b29_driver_ok_without_features_ok_does_not_start(void **state)
{
    assert_true(guest_reset(&g));
    guest_set_status(&g, 1 | 2 | 4);
    assert_int_equal(guest_status(&g), 3);
    guest_set_status(&g, 4);
    assert_int_equal(guest_status(&g), 3);
}

static void try_features(uint64_t f, bool accepted)
{
    assert_true(guest_reset(&g));
    guest_set_status(&g, 3);
    for (unsigned i = 0; i < 2; i++) {
        out(C_GFSEL, 4, i);
        out(C_GF, 4, f >> 32 * i & 0xffffffff);
    }
    guest_set_status(&g, 11);
    assert_int_equal(guest_status(&g), accepted ? 11 : 3);
}

static void b30_features_that_were_not_offered_are_refused(void **state)
{
    uint64_t offered;

    out(C_DFSEL, 4, 0);
    offered = in(C_DF, 4);
    out(C_DFSEL, 4, 1);
    offered |= in(C_DF, 4) << 32;
    out(C_DFSEL, 4, 2);
    assert_int_equal(in(C_DF, 4), 0);
    try_features(offered, true);
    try_features(VIRTIO_F_VERSION_1, true);
    try_features(offered & ~VIRTIO_F_VERSION_1, false);     /* legacy driver */
    try_features(0, false);
    for (unsigned i = 0; i < 64; i++) {
        if (!(offered & 1ull << i))
            try_features(VIRTIO_F_VERSION_1 | 1ull << i, false);
    }
    assert_true(guest_reset(&g));
    guest_set_status(&g, 3);
    out(C_GFSEL, 4, 1);
    out(C_GF, 4, 1);
    out(C_GFSEL, 4, 2);
    out(C_GF, 4, 1);                                        /* bit 64 */
    guest_set_status(&g, 11);
    assert_int_equal(guest_status(&g), 3);
}

/* ---- B31, B32 ------------------------------------------------------------------------------- */

static void b31_reads_of_any_width_see_the_same_registers(void **state)
{
    uint8_t bytes[56];

    guest_negotiate(&g);
    guest_queue(&g, 0, QSIZE);
    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)in(i, 1);
    for (unsigned len = 2; len <= 8; len *= 2) {
        for (unsigned at = 0; at + len <= sizeof(bytes); at++) {
            uint64_t want = 0;

            memcpy(&want, bytes + at, len);
            assert_int_equal(in(at, len), want);
        }
    }
}

static void b31_writes_of_a_wrong_width_are_dropped(void **state)
{
    guest_negotiate(&g);
    out(C_QSEL, 2, 0);
    out(C_QSIZE, 1, 32);
    out(C_QSIZE, 4, 32);
    assert_int_equal(in(C_QSIZE, 2), 256);
    out(C_QENABLE, 1, 1);
    out(C_QENABLE, 4, 1);
    assert_int_equal(in(C_QENABLE, 2), 0);
    out(C_STATUS, 2, 0);
    out(C_STATUS, 4, 0);
    assert_int_equal(guest_status(&g), 11);
    out(C_QDESC, 1, 0x10);
    out(C_QDESC, 2, 0x10);
    out(C_QDESC + 2, 4, 0x10);
    out(C_QDESC + 4, 8, 0x10);
    assert_int_equal(in(C_QDESC, 8), 0);
    assert_int_equal(in(C_QAVAIL, 8), 0);
    out(C_QDESC, 8, 0x1122334455667780);
    assert_int_equal(in(C_QDESC, 8), 0x1122334455667780);
    out(C_QDESC + 4, 4, 1);
    assert_int_equal(in(C_QDESC, 8), 0x155667780);
}

static void b31_undefined_offsets_read_as_0_and_swallow_writes(void **state)
{
    static const unsigned at[] = { 56, 57, 60, 64, 0x100, 0xff8, 0xfff };

    guest_boot(&g, QSIZE);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(at); i++) {
        for (unsigned len = 1; len <= 8; len *= 2) {
            out(at[i], len, UINT64_MAX);
            assert_int_equal(in(at[i], len), 0);
        }
    }
    out(52, 8, UINT64_MAX);                     /* across the end */
    assert_serves(&g);
}

static void b31_read_only_registers_swallow_writes(void **state)
{
    guest_boot(&g, QSIZE);
    out(C_DF, 4, 0);
    out(C_NUMQ, 2, 99);
    out(C_GEN, 1, 99);
    out(C_QNOFF, 2, 99);
    assert_int_equal(in(C_NUMQ, 2), 1);
    assert_int_equal(in(C_QNOFF, 2), 0);
    for (unsigned i = 0; i < 60; i++) {
        if (i != 32)
            guest_out(&g, g.device + i, 1, 0xff);
    }
    assert_int_equal(guest_in(&g, g.device, 8), DISK_SIZE / 512);
    assert_serves(&g);
}

static void b31_isr_reads_once_and_only_without_msix(void **state)
{
    guest_boot(&g, QSIZE);
    assert_serves(&g);
    assert_int_equal(guest_in(&g, g.isr, 1), 0);
    guest_config_out(&g, g.msix_cap + 2, 2, 0);
    assert_serves(&g);
    assert_int_equal(guest_in(&g, g.isr, 1), 1);
    assert_int_equal(guest_in(&g, g.isr, 1), 0);
}

static void b31_vectors_out_of_range_read_as_none(void **state)
{
    guest_negotiate(&g);
    out(C_MSIX, 2, 2);
    assert_int_equal(in(C_MSIX, 2), 0xffff);
    out(C_MSIX, 2, 1);
    assert_int_equal(in(C_MSIX, 2), 1);
    guest_queue(&g, 0, QSIZE);
    out(C_QMSIX, 2, 77);
    assert_int_equal(in(C_QMSIX, 2), 0xffff);
    guest_go(&g);
    assert_serves(&g);                          /* without any interrupt */
    assert_int_equal(guest_raised(&g, 1), 0);
}

static void b32_configuration_past_its_end_reads_as_0(void **state)
{
    for (unsigned at = 60; at < 0x1000; at += 4)
        assert_int_equal(guest_in(&g, g.device + at, 4), 0);
    assert_int_equal(guest_in(&g, g.device + 56, 8) >> 32, 0);
    assert_int_equal(guest_in(&g, g.device + 0xffc, 8), 0);
    guest_out(&g, g.device + 58, 4, UINT32_MAX);
    guest_out(&g, g.device + 0xfff, 8, UINT64_MAX);
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

#define T(test) cmocka_unit_test_setup_teardown(test, up, down)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        T(b25_bad_queue_sizes_are_dropped),
        T(b25_smallest_queues_are_served),
        T(b25_queue_registers_are_frozen_after_driver_ok),
        T(b25_no_queue_can_be_added_after_driver_ok),
        T(b26_enabling_before_the_addresses_is_refused),
        T(b26_enabling_twice_changes_nothing),
        T(b26_enabling_with_anything_but_1_is_dropped),
        T(b25_a_queue_that_does_not_exist_reads_as_size_0),
        T(b27_kick_before_driver_ok_is_served_only_after_it),
        T(b27_kick_after_failed_is_not_served),
        T(b27_driver_ok_after_failed_does_not_start),
        T(b27_kick_of_a_queue_out_of_range_does_nothing),
        T(b27_kick_of_a_queue_never_enabled_does_nothing),
        T(b28_reset_is_not_done_before_the_last_request_is_home),
        T(b28_registers_are_dropped_while_a_reset_is_pending),
        T(b28_reset_returns_every_register_to_its_default),
        T(b28_resets_under_load_never_hang),
        T(b28_a_vcpu_does_not_wait_long_for_dead_storage),
        T(b29_status_bits_are_never_taken_back),
        T(b29_features_are_frozen_after_features_ok),
        T(b29_driver_ok_without_features_ok_does_not_start),
        T(b30_features_that_were_not_offered_are_refused),
        T(b31_reads_of_any_width_see_the_same_registers),
        T(b31_writes_of_a_wrong_width_are_dropped),
        T(b31_undefined_offsets_read_as_0_and_swallow_writes),
        T(b31_read_only_registers_swallow_writes),
        T(b31_isr_reads_once_and_only_without_msix),
        T(b31_vectors_out_of_range_read_as_none),
        T(b32_configuration_past_its_end_reads_as_0),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
