/*
 * virtio_queue.c - bad-input.md B1 to B24: rings that no driver would write.
 * A queue with a broken structure stops and says why; what merely looks odd is
 * served.
 */
#include "tests/unit/virtio/guest.h"

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = VIRTQ_DESC_NEXT, W = VIRTQ_DESC_WRITE, I = VIRTQ_DESC_INDIRECT };
#define QSIZE 64u
#define TABLE 0x200000ull           /* indirect tables */

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

/* Header 0 asks to read sector 3; make head available and kick. */
static void offer(unsigned head)
{
    g_header(&g, 0, T_IN, 3);
    *(uint8_t *)gp(&g, STATUSES) = S_NONE;
    g_avail(&g, 0, head);
    g_kick(&g, 0);
}

static void good_head(unsigned next)
{
    g_desc(&g, 0, 0, HEADERS, 16, N, next);
}

static void assert_done(uint8_t status)
{
    uint32_t id, len;

    guest_settle(&g);
    assert_true(g_used(&g, 0, &id, &len));
    assert_int_equal(g_status(&g, 0), status);
}

/* ---- B1 to B7: indices ---------------------------------------------------------- */

static void b01_next_loop_stops_queue(void **state)
{
    good_head(1);
    g_desc(&g, 0, 1, DATA, 512, W | N, 2);
    g_desc(&g, 0, 2, DATA, 512, W | N, 1);
    offer(0);
    assert_stops(&g, "a chain loops");
}

static void b02_self_loop_stops_queue(void **state)
{
    good_head(0);
    offer(0);
    assert_stops(&g, "a chain loops");
}

/* A header, n - 2 buffers and a status. */
static void long_chain(unsigned n, bool end)
{
    for (unsigned i = 1; i < n - 1; i++)
        g_desc(&g, 0, i, DATA + 512 * i, 512, W | N, i + 1);
    good_head(1);
    g_desc(&g, 0, n - 1, STATUSES, 1, end ? W : W | N, 1);
}

static void b03_chain_of_queue_size_is_served(void **state)
{
    long_chain(QSIZE, true);
    offer(0);
    assert_done(S_OK);
    assert_int_equal(g.store->ops[BLK_READ], 1);
    assert_serves(&g);
}

static void b03_chain_of_queue_size_plus_one_stops_queue(void **state)
{
    long_chain(QSIZE, false);           /* its last goes on to the second */
    offer(0);
    assert_stops(&g, "a chain loops");
    assert_int_equal(g.store->ops[BLK_READ], 1);    /* the check's own */
}

static void b04_next_past_queue_size_stops_queue(void **state)
{
    static const unsigned bad[] = { QSIZE, QSIZE + 1, 256, 32768, 65535 };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        good_head(bad[i]);
        offer(0);
        assert_stops(&g, "a next index is past its table");
    }
}

static void b05_head_past_queue_size_stops_queue(void **state)
{
    static const unsigned bad[] = { QSIZE, QSIZE + 1, 32768, 65535 };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        offer(bad[i]);
        assert_stops(&g, "a head is past the queue size");
    }
}

static void b06_avail_index_jump_or_retreat_stops_queue(void **state)
{
    static const int jump[] = { QSIZE + 1, 1000, 32768, 65535, -1, -2, -64 };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(jump); i++) {
        g_put16(&g, g.q[0].avail + 2, (uint16_t)(g.q[0].avail_idx + jump[i]));
        g_kick(&g, 0);
        assert_stops(&g, "the available index jumped");
    }
}

static void b06_avail_index_wraps_at_65535(void **state)
{
    uint32_t id, len;

    for (unsigned i = 0; i < 70000; i++) {
        g_request(&g, 0, i % 20, T_IN, i % 1000, DATA, 512);
        if (i % 20 == 19) {
            g_kick(&g, 0);
            guest_settle(&g);
            for (unsigned n = 0; n < 20; n++)
                assert_true(g_used(&g, 0, &id, &len));
        }
    }
    assert_int_equal(g.store->ops[BLK_READ], 70000);
    assert_serves(&g);
}

static void b07_one_head_twice_in_flight_stops_queue(void **state)
{
    g.store->hold = true;
    g_request(&g, 0, 0, T_IN, 0, DATA, 512);
    g_avail(&g, 0, 0);
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(g.store->inflight, 1);
    g.store->hold = false;
    store_release(g.store, 1);          /* completes into a stopped queue: dropped */
    assert_stops(&g, "a head was made available twice");
}

static void b07_one_head_twice_one_after_the_other_is_served(void **state)
{
    for (unsigned i = 0; i < 3; i++) {
        g_request(&g, 0, 0, T_IN, 0, DATA, 512);
        g_kick(&g, 0);
        assert_done(S_OK);
    }
    assert_serves(&g);
}

/* ---- B8 to B15: buffers ------------------------------------------------------------ */

static void one_buffer(uint64_t addr, uint32_t len)
{
    good_head(1);
    g_desc(&g, 0, 1, addr, len, W | N, 2);
    g_desc(&g, 0, 2, STATUSES, 1, W, 0);
    offer(0);
}

static void b08_address_zero_is_ram_like_any_other(void **state)
{
    memset(g.store->data + 3 * 512, 0xa5, 512);
    one_buffer(0, 512);
    assert_done(S_OK);
    assert_memory_equal(gp(&g, 0), g.store->data + 3 * 512, 512);
    assert_serves(&g);
}

static void b08_address_zero_without_ram_there_is_no_pointer(void **state)
{
    struct mem m = { 0 };
    uint8_t ram[64];

    assert_int_equal(mem_add(&m, 4096, sizeof(ram), ram), 0);
    assert_null(mem_at(&m, 0, 16));
    assert_null(mem_at(&m, 0, 8192));
    assert_ptr_equal(mem_at(&m, 4096, 64), ram);
    one_buffer(MMIO_BASE, 512);
    assert_stops(&g, "a buffer is not in RAM");
}

static void b09_address_past_ram_stops_queue(void **state)
{
    static const uint64_t bad[] = { LOW_SIZE, HIGH_BASE - 512, HIGH_BASE + HIGH_SIZE,
                                    1ull << 52, 1ull << 63, UINT64_MAX - 4095 };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        one_buffer(bad[i], 512);
        assert_stops(&g, "a buffer is not in RAM");
    }
}

static void b10_buffer_across_an_end_a_hole_or_mmio_stops_queue(void **state)
{
    static const uint64_t bad[][2] = {
        { LOW_SIZE - 511, 512 }, { LOW_SIZE - 1, 1024 }, { HIGH_BASE - 256, 512 },
        { HIGH_BASE + HIGH_SIZE - 511, 512 }, { 0, 0xf0000000 }, { MMIO_BASE, 512 },
        { MMIO_BASE - 256, 512 }, { 0xfee00000, 512 },
    };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        one_buffer(bad[i][0], (uint32_t)bad[i][1]);
        assert_stops(&g, "a buffer is not in RAM");
    }
}

static void b11_address_plus_length_wraps_stops_queue(void **state)
{
    static const uint64_t bad[] = { UINT64_MAX, UINT64_MAX - 510, UINT64_MAX - 511 };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        one_buffer(bad[i], 512);
        assert_stops(&g, "a buffer is not in RAM");
        one_buffer(bad[i], 0xf0000000);
        assert_stops(&g, "a buffer is not in RAM");
    }
}

static void b12_length_zero_in_each_position_stops_queue(void **state)
{
    for (unsigned at = 0; at < 4; at++) {
        struct seg s[4] = { { HEADERS, 16, false }, { DATA, 512, true }, { DATA, 512, true },
                            { STATUSES, 1, true } };

        s[at].len = 0;
        g_chain(&g, 0, 0, s, 4);
        offer(0);
        assert_stops(&g, "a buffer of length 0");
    }
}

static void b13_total_over_4_gib_stops_queue(void **state)
{
    struct seg s[7] = { { HEADERS, 16, false }, { HEADERS, 16, false } };

    for (unsigned i = 2; i < 6; i++)
        s[i] = (struct seg){ HIGH_BASE, 1u << 30, true };
    s[6] = (struct seg){ STATUSES, 1, true };
    g_chain(&g, 0, 0, s, 7);
    offer(0);
    assert_stops(&g, "a chain of more than 2^32 bytes");
}

static void b13_three_gib_is_only_too_much_for_the_disk(void **state)
{
    one_buffer(HIGH_BASE, 3u << 30);
    assert_done(S_IOERR);
    assert_serves(&g);
}

static void b14_buffer_over_the_rings_is_the_guests_own_loss(void **state)
{
    uint64_t place[] = { g.q[0].desc, g.q[0].avail, g.q[0].used };

    for (unsigned i = 0; i < 3; i++) {
        for (unsigned byte = 0; byte < 256; byte += 51) {
            memset(g.store->data + 3 * 512, (int)byte, 4096);
            one_buffer(place[i], 4096);
            guest_settle(&g);
            guest_boot(&g, QSIZE);          /* whatever became of it */
            assert_serves(&g);
        }
    }
}

static void b15_status_over_data_or_header_is_written_last(void **state)
{
    memset(g.store->data + 3 * 512, 0x77, 512);
    good_head(1);
    g_desc(&g, 0, 1, DATA, 512, W | N, 2);
    g_desc(&g, 0, 2, DATA + 511, 1, W, 0);
    offer(0);
    guest_settle(&g);
    assert_int_equal(*(uint8_t *)gp(&g, DATA + 510), 0x77);
    assert_int_equal(*(uint8_t *)gp(&g, DATA + 511), S_OK);
    g_desc(&g, 0, 2, HEADERS + 3, 1, W, 0);     /* the type's high byte */
    offer(0);
    guest_settle(&g);
    assert_int_equal(g_used_idx(&g, 0), 2);
    assert_int_equal(*(uint8_t *)gp(&g, HEADERS + 3), S_OK);
    assert_serves(&g);
}

/* ---- B16 to B19: the request's shape --------------------------------------------------- */

static void b16_readable_after_writable_stops_queue(void **state)
{
    good_head(1);
    g_desc(&g, 0, 1, STATUSES, 1, W | N, 2);
    g_desc(&g, 0, 2, DATA, 512, 0, 0);
    offer(0);
    assert_stops(&g, "a readable buffer after a writable one");
}

static void b17_header_shorter_than_16_bytes_stops_queue(void **state)
{
    for (uint32_t len = 1; len < 16; len++) {
        g_desc(&g, 0, 0, HEADERS, len, N, 1);
        g_desc(&g, 0, 1, STATUSES, 1, W, 0);
        offer(0);
        assert_stops(&g, "a request header shorter than 16 bytes");
    }
}

static void b17_header_in_16_descriptors_is_served(void **state)
{
    struct seg s[18];

    for (unsigned i = 0; i < 16; i++)
        s[i] = (struct seg){ HEADERS + i, 1, false };
    s[16] = (struct seg){ DATA, 512, true };
    s[17] = (struct seg){ STATUSES, 1, true };
    memset(g.store->data + 3 * 512, 0x31, 512);
    g_chain(&g, 0, 0, s, 18);
    offer(0);
    assert_done(S_OK);
    assert_memory_equal(gp(&g, DATA), g.store->data + 3 * 512, 512);
    assert_serves(&g);
}

static void b17_header_longer_than_16_bytes_begins_the_data(void **state)
{
    struct seg s[] = { { HEADERS, 16 + 512, false }, { STATUSES, 1, true } };

    memset(gp(&g, HEADERS + 16), 0x42, 512);
    g_chain(&g, 0, 0, s, 2);
    g_header(&g, 0, T_OUT, 9);
    g_avail(&g, 0, 0);
    g_kick(&g, 0);
    assert_done(S_OK);
    assert_int_equal(g.store->data[9 * 512], 0x42);
    assert_int_equal(g.store->data[10 * 512 - 1], 0x42);
    s[0].len = 16 + 511;
    g_chain(&g, 0, 0, s, 2);
    g_avail(&g, 0, 0);
    g_kick(&g, 0);
    assert_done(S_IOERR);
    assert_serves(&g);
}

static void b18_writable_header_stops_queue(void **state)
{
    g_desc(&g, 0, 0, HEADERS, 16, W | N, 1);
    g_desc(&g, 0, 1, STATUSES, 1, W, 0);
    offer(0);
    assert_stops(&g, "a request header shorter than 16 bytes");
}

static void b19_missing_or_read_only_status_stops_queue(void **state)
{
    g_desc(&g, 0, 0, HEADERS, 16, 0, 0);
    offer(0);
    assert_stops(&g, "without room for its status");
    good_head(1);
    g_desc(&g, 0, 1, STATUSES, 1, 0, 0);
    offer(0);
    assert_stops(&g, "without room for its status");
}

static void b19_empty_status_stops_queue(void **state)
{
    good_head(1);
    g_desc(&g, 0, 1, STATUSES, 0, W, 0);
    offer(0);
    assert_stops(&g, "a buffer of length 0");
}

static void b19_the_status_is_the_last_writable_byte(void **state)
{
    struct seg s[] = { { HEADERS, 16, false }, { DATA, 513, true } };

    memset(g.store->data + 3 * 512, 0x66, 512);
    memset(gp(&g, DATA), S_NONE, 513);
    g_chain(&g, 0, 0, s, 2);
    offer(0);
    guest_settle(&g);
    assert_memory_equal(gp(&g, DATA), g.store->data + 3 * 512, 512);
    assert_int_equal(*(uint8_t *)gp(&g, DATA + 512), S_OK);
    assert_serves(&g);
}

/* ---- B20: indirect -------------------------------------------------------------------------- */

static void table_put(unsigned i, uint64_t addr, uint32_t len, unsigned flags, unsigned next)
{
    struct virtq_desc d = { addr, len, (uint16_t)flags, (uint16_t)next };

    memcpy(gp(&g, TABLE + 16ull * i), &d, sizeof(d));
}

static void table_good(void)
{
    table_put(0, HEADERS, 16, N, 1);
    table_put(1, DATA, 512, W | N, 2);
    table_put(2, STATUSES, 1, W, 0);
}

static void offer_table(uint64_t addr, uint32_t len, unsigned flags)
{
    g_desc(&g, 0, 0, addr, len, I | flags, 0);
    offer(0);
}

static void b20_indirect_tables_are_served(void **state)
{
    table_good();
    offer_table(TABLE, 48, 0);
    assert_done(S_OK);
    offer_table(TABLE, 48, W);                  /* WRITE means nothing here */
    assert_done(S_OK);
    offer_table(TABLE, 65536 * 16, 0);          /* longer than what is used of it */
    assert_done(S_OK);
    good_head(1);                               /* direct first, then a table */
    g_desc(&g, 0, 1, TABLE + 16, 32, I, 0);
    table_put(1, DATA, 512, W | N, 1);          /* index 0 of the shifted table */
    table_put(2, STATUSES, 1, W, 0);
    offer(0);
    assert_done(S_OK);
    assert_int_equal(g.store->ops[BLK_READ], 4);
    assert_serves(&g);
}

static void b20_indirect_chain_longer_than_the_queue_is_served(void **state)
{
    table_put(0, HEADERS, 16, N, 1);
    for (unsigned i = 1; i <= 254; i++)
        table_put(i, DATA + 512 * i, 512, W | N, i + 1);
    table_put(255, STATUSES, 1, W, 0);
    offer_table(TABLE, 256 * 16, 0);
    assert_done(S_OK);
    assert_serves(&g);
}

static void b20_indirect_chain_with_too_many_segments_stops_queue(void **state)
{
    table_put(0, HEADERS, 16, N, 1);
    for (unsigned i = 1; i < 1000; i++)
        table_put(i, DATA, 512, W | N, i + 1);
    table_put(1000, STATUSES, 1, W, 0);
    offer_table(TABLE, 1001 * 16, 0);
    assert_stops(&g, "a chain with too many segments");
}

static void b20_indirect_without_the_feature_stops_queue(void **state)
{
    g.features &= ~VIRTIO_F_INDIRECT_DESC;
    guest_boot(&g, QSIZE);
    table_good();
    offer_table(TABLE, 48, 0);
    assert_stops(&g, "an indirect descriptor without the feature");
}

static void b20_nested_indirect_stops_queue(void **state)
{
    table_put(0, TABLE + 256, 48, I, 0);
    offer_table(TABLE, 16, 0);
    assert_stops(&g, "a nested indirect descriptor");
    table_put(0, TABLE, 16, I, 0);              /* itself */
    offer_table(TABLE, 16, 0);
    assert_stops(&g, "a nested indirect descriptor");
}

static void b20_indirect_with_next_stops_queue(void **state)
{
    table_good();
    offer_table(TABLE, 48, N);
    assert_stops(&g, "an indirect descriptor with NEXT");
}

static void b20_indirect_table_of_bad_length_stops_queue(void **state)
{
    static const uint32_t bad[] = { 0, 1, 15, 17, 47, 49, 0xffffffff };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        table_good();
        offer_table(TABLE, bad[i], 0);
        assert_stops(&g, "an indirect table of a bad length");
    }
}

static void b20_indirect_table_of_65537_entries_stops_queue(void **state)
{
    table_good();
    offer_table(TABLE, 65537 * 16, 0);
    assert_stops(&g, "an indirect table with too many entries");
}

static void b20_indirect_table_out_of_range_stops_queue(void **state)
{
    static const uint64_t bad[] = { LOW_SIZE, LOW_SIZE - 32, MMIO_BASE, UINT64_MAX - 15 };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        offer_table(bad[i], 48, 0);
        assert_stops(&g, "an indirect table is not in RAM");
    }
    table_put(0, HEADERS, 16, N, 3);
    offer_table(TABLE, 48, 0);
    assert_stops(&g, "a next index is past its table");
}

static void b20_looped_indirect_table_stops_queue(void **state)
{
    table_put(0, HEADERS, 16, N, 0);
    offer_table(TABLE, 48, 0);
    assert_stops(&g, "a chain loops");
    table_good();
    table_put(2, DATA, 512, W | N, 1);
    offer_table(TABLE, 48, 0);
    assert_stops(&g, "a chain loops");
}

/* ---- B21, B22: a guest that writes while we read ------------------------------------------ */

struct racer {
    pthread_t thread;
    bool stop;
    void (*fn)(unsigned seed);
};

static void *racer_main(void *arg)
{
    struct racer *r = arg;
    unsigned seed = 1;

    while (!__atomic_load_n(&r->stop, __ATOMIC_RELAXED))
        r->fn(seed = seed * 1103515245 + 12345);
    return NULL;
}

/* Requests while another vCPU rewrites them; the device may stop at any moment,
 * and must work after a reset each time. */
static void race(void (*fn)(unsigned seed))
{
    struct racer r = { .fn = fn };
    unsigned stops = 0;

    guest_thread(&g);
    assert_int_equal(pthread_create(&r.thread, NULL, racer_main, &r), 0);
    for (unsigned i = 0; i < 5000 && stops < 100; i++) {
        uint32_t id, len;

        for (unsigned slot = 0; slot < 8; slot++)
            g_request(&g, 0, slot, slot % 2 ? T_OUT : T_IN, slot, DATA + 8192 * slot, 512);
        g_kick(&g, 0);
        for (unsigned spin = 0; spin < 500 && g_used_idx(&g, 0) != g.q[0].avail_idx; spin++)
            sched_yield();
        while (g_used(&g, 0, &id, &len))
            assert_true(id < QSIZE);
        if (guest_status(&g) & VIRTIO_S_NEEDS_RESET) {
            stops++;
            guest_boot(&g, QSIZE);
        }
        while (g.q[0].avail_idx != g_used_idx(&g, 0) &&
               !(guest_status(&g) & VIRTIO_S_NEEDS_RESET))
            sched_yield();
    }
    __atomic_store_n(&r.stop, true, __ATOMIC_RELAXED);
    pthread_join(r.thread, NULL);
    guest_join(&g);
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

static void spoil_descriptors(unsigned seed)
{
    volatile struct virtq_desc *d = gp(&g, g.q[0].desc);

    d += (seed >> 16) % 24;
    switch ((seed >> 8) % 6) {
    case 0: d->addr = (uint64_t)seed << 40; break;
    case 1: d->len = seed % 8192; break;
    case 2: d->len = 512; break;
    case 3: d->flags = (uint16_t)(seed >> 20 & 7); break;
    case 4: d->next = (uint16_t)(seed >> 18); break;
    default: d->addr = DATA; break;
    }
}

static void b21_descriptors_changed_after_the_kick_do_no_harm(void **state)
{
    race(spoil_descriptors);
}

static void spoil_headers(unsigned seed)
{
    volatile uint32_t *type = gp(&g, HEADERS + 16 * ((seed >> 16) % 8));
    volatile uint64_t *sector = gp(&g, HEADERS + 16 * ((seed >> 16) % 8) + 8);

    *type = (seed >> 24) % 15;
    *sector = (seed >> 8) % 3 ? seed % 8000 : UINT64_MAX - seed;
}

static void b22_request_type_and_sector_changed_while_parsed_do_no_harm(void **state)
{
    race(spoil_headers);
    assert_true(g.store->ops[BLK_READ] > 0);
}

static void b22_a_request_is_what_it_was_when_it_was_taken(void **state)
{
    struct { uint64_t sector; uint32_t sectors, flags; } r = { 8, 8, 0 };

    memset(g.store->data, 0xff, DISK_SIZE);
    g.store->hold = true;
    memcpy(gp(&g, DATA), &r, sizeof(r));
    g_request(&g, 0, 0, T_WRITE_ZEROES, 0, DATA, sizeof(r));
    g_request(&g, 0, 1, T_IN, 100, DATA + 4096, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    /* Too late: the disk has its copies. */
    r.sector = 0;
    r.sectors = 1000;
    memcpy(gp(&g, DATA), &r, sizeof(r));
    g_header(&g, 1, T_OUT, 0);
    g_desc(&g, 0, 4, UINT64_MAX - 5, 1u << 31, 0, 99);
    g.store->hold = false;
    store_release(g.store, UINT32_MAX);
    guest_settle(&g);
    assert_int_equal(g_used_idx(&g, 0), 2);
    assert_int_equal(g.store->data[8 * 512 - 1], 0xff);
    assert_int_equal(g.store->data[8 * 512], 0);
    assert_int_equal(g.store->data[16 * 512], 0xff);
    assert_int_equal(*(uint8_t *)gp(&g, DATA + 4096), 0xff);
    assert_int_equal(g.store->ops[BLK_WRITE], 0);
}

/* ---- B23, B24: where the rings are ---------------------------------------------------------- */

static void put_addr(unsigned field, uint64_t v)
{
    guest_out(&g, g.common + field, 4, v & 0xffffffff);
    guest_out(&g, g.common + field + 4, 4, v >> 32);
}

/* Enabling with one ring at this address must be refused, loudly. */
static void assert_refused(unsigned field, uint64_t gpa, const char *why)
{
    g.said[0] = 0;
    guest_negotiate(&g);
    guest_raised(&g, 0);
    guest_out(&g, g.common + C_QSEL, 2, 0);
    guest_out(&g, g.common + C_QSIZE, 2, QSIZE);
    put_addr(C_QDESC, g.q[0].desc);
    put_addr(C_QAVAIL, g.q[0].avail);
    put_addr(C_QUSED, g.q[0].used);
    put_addr(field, gpa);
    guest_out(&g, g.common + C_QENABLE, 2, 1);
    assert_int_equal(guest_in(&g, g.common + C_QENABLE, 2), 0);
    assert_int_equal(guest_status(&g) & VIRTIO_S_NEEDS_RESET, VIRTIO_S_NEEDS_RESET);
    assert_true(guest_raised(&g, 0) > 0);
    assert_non_null(strstr(g.said, why));
    guest_set_status(&g, 15);                   /* goes on regardless: nothing is served */
    guest_settle(&g);
    g_kick(&g, 0);
    guest_settle(&g);
}

static void b23_rings_out_of_range_or_unaligned_are_refused(void **state)
{
    assert_refused(C_QUSED, LOW_SIZE, "the used ring is not in RAM");
    assert_refused(C_QUSED, LOW_SIZE - 512, "the used ring is not in RAM");
    assert_refused(C_QUSED, MMIO_BASE, "the used ring is not in RAM");
    assert_refused(C_QUSED, UINT64_MAX - 3, "the used ring is not in RAM");
    assert_refused(C_QAVAIL, LOW_SIZE - 130, "the available ring is not in RAM");
    assert_refused(C_QDESC, HIGH_BASE - 16, "the descriptor table is not in RAM");
    assert_refused(C_QUSED, 0x20002, "not aligned");
    assert_refused(C_QAVAIL, 0x20001, "not aligned");
    assert_refused(C_QDESC, 0x20008, "not aligned");
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

static void b24_overlapping_rings_are_refused(void **state)
{
    uint64_t desc = g.q[0].desc, avail = g.q[0].avail;

    assert_refused(C_QUSED, desc, "the rings overlap");
    assert_refused(C_QUSED, desc + 16 * QSIZE - 4, "the rings overlap");
    assert_refused(C_QUSED, avail + 4, "the rings overlap");
    assert_refused(C_QAVAIL, desc + 2, "the rings overlap");
    assert_refused(C_QDESC, g.q[0].used, "the rings overlap");
    guest_boot(&g, QSIZE);
    assert_serves(&g);
}

#define T(test) cmocka_unit_test_setup_teardown(test, up, down)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        T(b01_next_loop_stops_queue),
        T(b02_self_loop_stops_queue),
        T(b03_chain_of_queue_size_is_served),
        T(b03_chain_of_queue_size_plus_one_stops_queue),
        T(b04_next_past_queue_size_stops_queue),
        T(b05_head_past_queue_size_stops_queue),
        T(b06_avail_index_jump_or_retreat_stops_queue),
        T(b06_avail_index_wraps_at_65535),
        T(b07_one_head_twice_in_flight_stops_queue),
        T(b07_one_head_twice_one_after_the_other_is_served),
        T(b08_address_zero_is_ram_like_any_other),
        T(b08_address_zero_without_ram_there_is_no_pointer),
        T(b09_address_past_ram_stops_queue),
        T(b10_buffer_across_an_end_a_hole_or_mmio_stops_queue),
        T(b11_address_plus_length_wraps_stops_queue),
        T(b12_length_zero_in_each_position_stops_queue),
        T(b13_total_over_4_gib_stops_queue),
        T(b13_three_gib_is_only_too_much_for_the_disk),
        T(b14_buffer_over_the_rings_is_the_guests_own_loss),
        T(b15_status_over_data_or_header_is_written_last),
        T(b16_readable_after_writable_stops_queue),
        T(b17_header_shorter_than_16_bytes_stops_queue),
        T(b17_header_in_16_descriptors_is_served),
        T(b17_header_longer_than_16_bytes_begins_the_data),
        T(b18_writable_header_stops_queue),
        T(b19_missing_or_read_only_status_stops_queue),
        T(b19_empty_status_stops_queue),
        T(b19_the_status_is_the_last_writable_byte),
        T(b20_indirect_tables_are_served),
        T(b20_indirect_chain_longer_than_the_queue_is_served),
        T(b20_indirect_chain_with_too_many_segments_stops_queue),
        T(b20_indirect_without_the_feature_stops_queue),
        T(b20_nested_indirect_stops_queue),
        T(b20_indirect_with_next_stops_queue),
        T(b20_indirect_table_of_bad_length_stops_queue),
        T(b20_indirect_table_of_65537_entries_stops_queue),
        T(b20_indirect_table_out_of_range_stops_queue),
        T(b20_looped_indirect_table_stops_queue),
        T(b21_descriptors_changed_after_the_kick_do_no_harm),
        T(b22_request_type_and_sector_changed_while_parsed_do_no_harm),
        T(b22_a_request_is_what_it_was_when_it_was_taken),
        T(b23_rings_out_of_range_or_unaligned_are_refused),
        T(b24_overlapping_rings_are_refused),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
