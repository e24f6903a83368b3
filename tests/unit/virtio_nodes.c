/*
 * virtio_nodes.c - the disk in front of real nodes: memory, qcow2, the delay and
 * fault filters.
 */
#include "tests/unit/virtio/guest.h"

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define MEM "mem,size=4M"
static struct guest g;

static void up(const char *options)
{
    static const struct virtio_blk_config c = { .queues = 2 };

    guest_new_on(&g, &c, options);
    guest_boot(&g, 64);
}

/* Turn until slot's status byte is there (or for 10 s). */
static uint8_t finished(unsigned slot)
{
    uint64_t until = blk_now_ns() + 10000000000u;

    while (g_status(&g, slot) == S_NONE && blk_now_ns() < until) {
        if (g.threaded)
            sched_yield();
        else
            blk_loop_turn(g.loop, false);
    }
    return g_status(&g, slot);
}

static uint8_t request(unsigned qi, uint32_t type, uint64_t sector, uint64_t gpa, uint32_t len)
{
    uint32_t id, n;
    uint8_t status;

    g_request(&g, qi, 0, type, sector, gpa, len);
    g_kick(&g, qi);
    status = finished(0);
    while (!g_used(&g, qi, &id, &n))
        g.threaded ? (void)sched_yield() : blk_loop_turn(g.loop, false);
    return status;
}

/* Random requests of any size against a copy in memory. */
static void scribble(unsigned rounds, unsigned seed)
{
    static uint8_t model[DISK_SIZE];

    memset(model, 0, sizeof(model));
    for (unsigned i = 0; i < rounds; i++) {
        unsigned a = seed = seed * 1103515245 + 12345, b = seed = seed * 1103515245 + 12345;
        uint32_t len = 512 * (1 + (b >> 16) % 200);
        uint64_t sector = (a >> 8) % (DISK_SIZE / 512 - 200), off = sector * 512;
        struct { uint64_t sector; uint32_t sectors, flags; } r = { sector, len / 512, b >> 12 & 1 };

        if ((a >> 4) % 8 < 4) {
            for (uint32_t k = 0; k < len; k += 512)
                memset(gp(&g, DATA + k), (int)(a + k / 512), 512);
            assert_int_equal(request(a & 1, T_OUT, sector, DATA, len), S_OK);
            memcpy(model + off, gp(&g, DATA), len);
        } else if ((a >> 4) % 8 == 4) {
            memcpy(gp(&g, DATA), &r, sizeof(r));
            assert_int_equal(request(a & 1, T_WRITE_ZEROES, 0, DATA, sizeof(r)), S_OK);
            memset(model + off, 0, len);
        } else if (i % 50 == 0) {
            assert_int_equal(request(a & 1, T_FLUSH, 0, 0, 0), S_OK);
        } else {
            assert_int_equal(request(a & 1, T_IN, sector, DATA, len), S_OK);
            assert_memory_equal(gp(&g, DATA), model + off, len);
        }
    }
    for (uint64_t off = 0; off < DISK_SIZE; off += 1 << 20) {
        assert_int_equal(request(0, T_IN, off / 512, DATA, 1 << 20), S_OK);
        assert_memory_equal(gp(&g, DATA), model + off, 1 << 20);
    }
}

static void scribble_over_memory_agrees_with_a_model(void **state)
{
    up(MEM);
    scribble(3000, 1);
    guest_free(&g);
}

static void scribble_from_another_thread_agrees_with_a_model(void **state)
{
    up(MEM);
    guest_thread(&g);
    scribble(1000, 2);
    guest_free(&g);
}

static void make_qcow2(const char *name, const char *options)
{
    struct blk_loop *l = blk_loop_new(NULL);
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_opts *o = blk_opts_new();

    assert_int_equal(blk_opts_parse(o, options, NULL, &e), 0);
    if (blk_create(l, "qcow2", name, o, &e) < 0)
        fail_msg("%s", e.text);
    blk_opts_free(o);
    blk_loop_free(l);
}

static void scribble_over_qcow2_agrees_with_a_model(void **state)
{
    make_qcow2("mem:virtio-nodes", "size=4M,cluster_size=4k");
    up("qcow2,file.driver=mem,file.filename=mem:virtio-nodes");
    scribble(3000, 3);
    guest_free(&g);
}

static void resets_with_a_slow_node_never_touch_memory_later(void **state)
{
    uint8_t want[512];

    up("delay,us=2000,file.driver=mem,file.size=4M");
    guest_thread(&g);
    for (unsigned round = 0; round < 40; round++) {
        guest_boot(&g, 64);
        for (unsigned i = 0; i < 16; i++)
            g_request(&g, i % 2, i, T_IN, i, DATA + 512 * i, 512);
        g_kick(&g, 0);
        g_kick(&g, 1);
        if (round % 3 == 0)
            nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
        assert_true(guest_reset(&g));
        /* All of it is the guest's again, and reads as zeros would show. */
        memset(want, (int)(round + 1), sizeof(want));
        memset(gp(&g, DATA), (int)(round + 1), 16 * 512);
        nanosleep(&(struct timespec){ 0, 3000000 }, NULL);
        for (unsigned i = 0; i < 16; i++)
            assert_memory_equal(gp(&g, DATA + 512 * i), want, 512);
    }
    guest_free(&g);
}

static void a_failed_flush_stays_failed(void **state)
{
    up("fault,op=flush,errno=EIO,file.driver=mem,file.size=4M");
    assert_int_equal(request(0, T_OUT, 0, DATA, 4096), S_OK);
    assert_int_equal(request(0, T_FLUSH, 0, 0, 0), S_IOERR);
    assert_int_equal(request(0, T_IN, 0, DATA, 4096), S_OK);
    assert_non_null(strstr(g.said, ": flush: Input/output error"));
    guest_free(&g);
}

static void no_space_fails_the_write_and_nothing_else(void **state)
{
    up("fault,op=write,nth=2,errno=ENOSPC,file.driver=mem,file.size=4M");
    memset(gp(&g, DATA), 0x11, 4096);
    assert_int_equal(request(0, T_OUT, 0, DATA, 4096), S_OK);
    memset(gp(&g, DATA), 0x22, 4096);
    assert_int_equal(request(0, T_OUT, 0, DATA, 4096), S_IOERR);
    assert_int_equal(request(0, T_IN, 0, DATA, 512), S_OK);
    assert_int_equal(*(uint8_t *)gp(&g, DATA), 0x11);
    assert_int_equal(request(0, T_OUT, 0, DATA, 4096), S_OK);
    assert_non_null(strstr(g.said, "No space left on device"));
    guest_free(&g);
}

static void b37_a_range_over_the_advertised_maximum_is_an_error(void **state)
{
    struct { uint64_t sector; uint32_t sectors, flags; } r = { 0 };
    uint32_t max[2];

    up("mem,size=8G");
    max[0] = (uint32_t)guest_in(&g, g.device + 36, 4);
    max[1] = (uint32_t)guest_in(&g, g.device + 48, 4);
    for (unsigned i = 0; i < 2; i++) {
        uint32_t type = i ? T_WRITE_ZEROES : T_DISCARD;

        r.sectors = max[i];
        memcpy(gp(&g, DATA), &r, sizeof(r));
        assert_int_equal(request(0, type, 0, DATA, sizeof(r)), S_OK);
        r.sectors = max[i] + 1;
        memcpy(gp(&g, DATA), &r, sizeof(r));
        assert_int_equal(request(0, type, 0, DATA, sizeof(r)), S_IOERR);
    }
    guest_free(&g);
}

/* Design: no fiber and no allocation on the way of a plain read or write. */
static void plain_requests_start_no_fiber_and_allocate_nothing(void **state)
{
    struct blk_counters before;

    up(MEM);
    assert_int_equal(request(0, T_OUT, 0, DATA, 4096), S_OK);
    before = *blk_loop_counters(g.loop);
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(request(i % 2, i % 3 ? T_IN : T_OUT, 0, DATA, 4096), S_OK);
    assert_int_equal(blk_loop_counters(g.loop)->fibers_started, before.fibers_started);
    assert_int_equal(blk_loop_counters(g.loop)->fiber_switches, before.fiber_switches);
    assert_int_equal(blk_loop_counters(g.loop)->allocations, before.allocations);
    guest_free(&g);
}

/* ---- a number to watch, not a bar ------------------------------------------------- */

static uint64_t cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* One kick for depth requests, turns until all are back; CPU time a request. */
static uint64_t cost_at(unsigned depth, uint64_t ms)
{
    uint64_t start = cpu_ns(), done = 0;
    uint32_t id, len;

    for (unsigned i = 0; i < depth; i++)
        g_request(&g, 0, i, T_IN, 8 * i, DATA + 4096 * i, 4096);
    while (cpu_ns() - start < ms * 1000000) {
        unsigned back = 0;

        g_kick(&g, 0);
        while (back < depth) {
            blk_loop_turn(g.loop, false);
            while (g_used(&g, 0, &id, &len))
                back++;
        }
        done += depth;
        for (unsigned i = 0; i < depth; i++)
            g_avail(&g, 0, 3 * i);
    }
    start = cpu_ns() - start;
    g_kick(&g, 0);
    guest_settle(&g);
    while (g_used(&g, 0, &id, &len))
        ;
    assert_true(done > 0);
    return start / done;
}

/* From the driver's descriptors through ring, device, core and a memory node and
 * back, the doorbell's and the interrupt's system calls included.
 * PLATTER_BENCH_MS=2000 for a steady number. */
static void cost_of_4_kib_reads(void **state)
{
    static const unsigned depth[] = { 1, 4, 20 };
    const char *env = getenv("PLATTER_BENCH_MS");

    up(MEM);
    request(0, T_OUT, 0, DATA, 1 << 20);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(depth); i++) {
        uint64_t ns = cost_at(depth[i], env ? strtoul(env, NULL, 0) : 20);

        print_message("# 4 KiB reads, %u a kick: %llu ns of CPU each, %llu a second\n", depth[i],
                      (unsigned long long)ns, (unsigned long long)(1000000000 / ns));
    }
    guest_free(&g);
}

#define T(test) cmocka_unit_test(test)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        T(scribble_over_memory_agrees_with_a_model),
        T(scribble_from_another_thread_agrees_with_a_model),
        T(scribble_over_qcow2_agrees_with_a_model),
        T(resets_with_a_slow_node_never_touch_memory_later),
        T(a_failed_flush_stays_failed),
        T(no_space_fails_the_write_and_nothing_else),
        T(b37_a_range_over_the_advertised_maximum_is_an_error),
        T(plain_requests_start_no_fiber_and_allocate_nothing),
        T(cost_of_4_kib_reads),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
