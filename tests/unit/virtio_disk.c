/*
 * virtio_disk.c - bad-input.md B33 to B43: what a guest may ask of its disk, and
 * what the disk answers; and the ordinary requests.
 */
#include "tests/unit/virtio/guest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SECTORS (DISK_SIZE / 512)
enum { CONFIG_WCE = 1 << 11, FLUSH = 1 << 9 };

static struct guest g;

static int up(void **state)
{
    static const struct virtio_blk_config c = {
        .queues = 2, .serial = "serial-0123456789-too-long" };

    guest_new(&g, &c);
    guest_boot(&g, 64);
    return 0;
}

static int down(void **state)
{
    guest_free(&g);
    return 0;
}

static void fill(uint64_t gpa, size_t len, unsigned seed)
{
    uint8_t *p = gp(&g, gpa);

    for (size_t i = 0; i < len; i++)
        p[i] = (uint8_t)(seed + i * 7 + (i >> 9));
}

/* ---- the ordinary ------------------------------------------------------------- */

static void a_write_then_a_read_gives_the_same_bytes(void **state)
{
    fill(DATA, 65536, 1);
    assert_int_equal(g_do(&g, 0, T_OUT, 100, DATA, 65536), S_OK);
    assert_memory_equal(g.store->data + 100 * 512, gp(&g, DATA), 65536);
    assert_int_equal(g_do(&g, 1, T_IN, 100, DATA + 65536, 65536), S_OK);
    assert_memory_equal(gp(&g, DATA), gp(&g, DATA + 65536), 65536);
    assert_int_equal(g.store->fua, 0);
}

static void used_length_is_what_was_written(void **state)
{
    uint32_t id, len;

    g_request(&g, 0, 0, T_IN, 0, DATA, 4096);
    g_request(&g, 0, 1, T_OUT, 0, DATA, 4096);
    g_request(&g, 0, 2, T_IN, SECTORS, DATA, 4096);
    g_kick(&g, 0);
    guest_settle(&g);
    for (unsigned i = 0; i < 3; i++) {
        assert_true(g_used(&g, 0, &id, &len));
        assert_int_equal(len, id == 0 ? 4097 : id == 3 ? 1 : 0);
    }
    assert_int_equal(g_status(&g, 2), S_IOERR);
}

static void flush_reaches_the_node(void **state)
{
    assert_int_equal(g_do(&g, 0, T_FLUSH, 0, 0, 0), S_OK);
    assert_int_equal(g.store->ops[BLK_FLUSH], 1);
    g.store->fail[BLK_FLUSH] = EIO;
    assert_int_equal(g_do(&g, 0, T_FLUSH, 0, 0, 0), S_IOERR);
}

static void writes_are_fua_with_the_cache_off(void **state)
{
    guest_out(&g, g.device + 32, 1, 0);
    assert_int_equal(guest_in(&g, g.device + 32, 1), 0);
    assert_int_equal(g_do(&g, 0, T_OUT, 0, DATA, 512), S_OK);
    assert_int_equal(g.store->fua, 1);
    guest_out(&g, g.device + 32, 1, 1);
    assert_int_equal(g_do(&g, 0, T_OUT, 0, DATA, 512), S_OK);
    assert_int_equal(g.store->fua, 1);
    guest_out(&g, g.device + 32, 1, 7);             /* not a boolean: dropped */
    assert_int_equal(guest_in(&g, g.device + 32, 1), 1);
    guest_out(&g, g.device + 32, 1, 0);
    guest_boot(&g, 64);                             /* a reset turns it on again */
    assert_int_equal(guest_in(&g, g.device + 32, 1), 1);
}

static void writes_are_fua_without_the_flush_feature(void **state)
{
    g.features &= ~(uint64_t)(FLUSH | CONFIG_WCE);
    guest_boot(&g, 64);
    guest_out(&g, g.device + 32, 1, 1);
    assert_int_equal(g_do(&g, 0, T_OUT, 0, DATA, 512), S_OK);
    assert_int_equal(g.store->fua, 1);
}

static void node_errors_become_ioerr_and_are_told_once(void **state)
{
    g.store->fail[BLK_WRITE] = ENOSPC;
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(g_do(&g, 0, T_OUT, 8, DATA, 512), S_IOERR);
    assert_non_null(strstr(g.said, "write of 512 bytes at 4096: No space left on device"));
    assert_ptr_equal(strstr(g.said, "No space"), strrchr(g.said, 'N'));
    g.store->fail[BLK_READ] = EIO;
    assert_int_equal(g_do(&g, 0, T_IN, 8, DATA, 512), S_IOERR);
    assert_non_null(strstr(g.said, "Input/output error"));
    assert_int_equal(guest_status(&g) & VIRTIO_S_NEEDS_RESET, 0);
}

static void configuration_describes_the_disk(void **state)
{
    assert_int_equal(guest_in(&g, g.device, 8), SECTORS);
    assert_int_equal(guest_in(&g, g.device + 12, 4), 254);      /* seg_max */
    assert_int_equal(guest_in(&g, g.device + 20, 4), 512);      /* blk_size */
    assert_int_equal(guest_in(&g, g.device + 24, 1), 3);        /* 4 KiB physical */
    assert_int_equal(guest_in(&g, g.device + 34, 2), 2);        /* queues */
    assert_true(guest_in(&g, g.device + 36, 4) > 0);            /* discard */
    assert_true(guest_in(&g, g.device + 48, 4) > 0);            /* write zeroes */
}

/* ---- B33 to B36 ------------------------------------------------------------------ */

static void b33_sector_past_the_end_or_wrapping_is_an_error(void **state)
{
    static const uint64_t bad[] = { SECTORS, SECTORS - 7, SECTORS + 1, 1ull << 55,
                                    (1ull << 55) - 1, (1ull << 63) / 512, UINT64_MAX / 512,
                                    UINT64_MAX - 7, UINT64_MAX };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        assert_int_equal(g_do(&g, 0, T_IN, bad[i], DATA, 4096), S_IOERR);
        assert_int_equal(g_do(&g, 0, T_OUT, bad[i], DATA, 4096), S_IOERR);
    }
    assert_int_equal(g.store->ops[BLK_READ] + g.store->ops[BLK_WRITE], 0);
    assert_int_equal(g_do(&g, 0, T_IN, SECTORS - 8, DATA, 4096), S_OK);
    assert_serves(&g);
}

static void b34_data_not_a_multiple_of_512_is_an_error(void **state)
{
    static const uint32_t bad[] = { 1, 511, 513, 1023, 4095 };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        assert_int_equal(g_do(&g, 0, T_IN, 0, DATA, bad[i]), S_IOERR);
        assert_int_equal(g_do(&g, 0, T_OUT, 0, DATA, bad[i]), S_IOERR);
    }
    assert_int_equal(g_do(&g, 0, T_OUT, 0, 0, 0), S_IOERR);     /* no data at all */
    assert_int_equal(g.store->ops[BLK_READ] + g.store->ops[BLK_WRITE], 0);
    assert_serves(&g);
}

static void b34_odd_pieces_that_add_up_are_fine(void **state)
{
    struct seg s[] = { { HEADERS, 16, false }, { DATA + 1, 1, false }, { DATA + 3000, 510, false },
                       { DATA + 9, 513, false }, { STATUSES, 1, true } };
    uint32_t id, len;

    fill(DATA, 8192, 3);
    g_header(&g, 0, T_OUT, 5);
    g_chain(&g, 0, 0, s, 5);
    g_avail(&g, 0, 0);
    g_kick(&g, 0);
    guest_settle(&g);
    assert_true(g_used(&g, 0, &id, &len));
    assert_int_equal(g_status(&g, 0), S_OK);
    assert_memory_equal(g.store->data + 5 * 512 + 511, gp(&g, DATA + 9), 513);
}

static void b35_write_to_a_read_only_disk_is_an_error(void **state)
{
    static const struct virtio_blk_config c = { .read_only = true };

    guest_free(&g);
    guest_new(&g, &c);
    guest_boot(&g, 64);
    guest_out(&g, g.common + C_DFSEL, 4, 0);
    assert_int_equal(guest_in(&g, g.common + C_DF, 4) & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    assert_int_equal(g_do(&g, 0, T_OUT, 0, DATA, 512), S_IOERR);
    assert_int_not_equal(g_do(&g, 0, T_DISCARD, 0, DATA, 16), S_OK);
    assert_int_not_equal(g_do(&g, 0, T_WRITE_ZEROES, 0, DATA, 16), S_OK);
    assert_int_equal(g.store->ops[BLK_WRITE] + g.store->ops[BLK_DISCARD] +
                     g.store->ops[BLK_WRITE_ZEROES], 0);
    assert_int_equal(g_do(&g, 0, T_FLUSH, 0, 0, 0), S_OK);
    assert_serves(&g);
}

static void b36_unknown_scsi_and_barrier_types_are_unsupported(void **state)
{
    static const uint32_t bad[] = { 2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 255, 0x80000000,
                                    0x80000001, 0xffffffff };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        assert_int_equal(g_do(&g, 0, bad[i], 0, DATA, 512), S_UNSUPP);
        assert_int_equal(g_do(&g, 0, bad[i], 0, 0, 0), S_UNSUPP);
    }
    assert_serves(&g);
}

/* ---- B37 --------------------------------------------------------------------------- */

struct range { uint64_t sector; uint32_t sectors, flags; };

static uint8_t ranges(uint32_t type, const struct range *r, unsigned n)
{
    memcpy(gp(&g, DATA), r, n * sizeof(*r));
    return g_do(&g, 0, type, 0, DATA, n * (uint32_t)sizeof(*r));
}

static void b37_good_ranges_are_carried_out_in_one_request(void **state)
{
    struct range r[32] = { { 8, 8, 0 }, { 100, 1, 0 }, { 50, 0, 0 }, { SECTORS - 1, 1, 0 } };

    memset(g.store->data, 0xff, DISK_SIZE);
    assert_int_equal(ranges(T_WRITE_ZEROES, r, 4), S_OK);
    assert_int_equal(g.store->ops[BLK_WRITE_ZEROES], 3);
    assert_int_equal(g.store->unmap, 0);
    assert_true(blk_is_zero(g.store->data + 8 * 512, 8 * 512));
    assert_int_equal(g.store->data[8 * 512 - 1], 0xff);
    assert_int_equal(g.store->data[16 * 512], 0xff);
    assert_true(blk_is_zero(g.store->data + DISK_SIZE - 512, 512));
    r[0].flags = 1;
    assert_int_equal(ranges(T_WRITE_ZEROES, r, 1), S_OK);
    assert_int_equal(g.store->unmap, 1);
    for (unsigned i = 0; i < 32; i++)
        r[i] = (struct range){ i * 2, 1, 0 };
    assert_int_equal(ranges(T_DISCARD, r, 32), S_OK);
    assert_int_equal(g.store->ops[BLK_DISCARD], 32);
}

static void b37_no_ranges_or_too_many_are_an_error(void **state)
{
    struct range r[33] = { { 0, 1, 0 } };

    for (uint32_t type = T_DISCARD; type <= T_WRITE_ZEROES; type += 2) {
        assert_int_equal(ranges(type, r, 0), S_IOERR);
        assert_int_equal(ranges(type, r, 33), S_IOERR);
        assert_int_equal(g_do(&g, 0, type, 0, DATA, 1 << 20), S_IOERR);
        for (uint32_t len = 1; len < 64; len++) {
            if (len % 16)
                assert_int_equal(g_do(&g, 0, type, 0, DATA, len), S_IOERR);
        }
    }
    assert_int_equal(g.store->ops[BLK_DISCARD] + g.store->ops[BLK_WRITE_ZEROES], 0);
    assert_serves(&g);
}

static void b37_reserved_flags_are_unsupported(void **state)
{
    struct range r[2] = { { 0, 1, 0 }, { 8, 1, 1 } };

    assert_int_equal(ranges(T_DISCARD, r, 2), S_UNSUPP);        /* unmap: not for discard */
    r[1].flags = 2;
    assert_int_equal(ranges(T_DISCARD, r, 2), S_UNSUPP);
    assert_int_equal(ranges(T_WRITE_ZEROES, r, 2), S_UNSUPP);
    r[1].flags = 0x80000001;
    assert_int_equal(ranges(T_WRITE_ZEROES, r, 2), S_UNSUPP);
    /* All or nothing: the good first range was not carried out. */
    assert_int_equal(g.store->ops[BLK_DISCARD] + g.store->ops[BLK_WRITE_ZEROES], 0);
}

static void b37_zero_sectors_do_nothing_and_bad_ranges_are_errors(void **state)
{
    struct range r = { 8, 0, 0 };

    assert_int_equal(ranges(T_DISCARD, &r, 1), S_OK);
    assert_int_equal(ranges(T_WRITE_ZEROES, &r, 1), S_OK);
    r = (struct range){ SECTORS, 1, 0 };
    assert_int_equal(ranges(T_DISCARD, &r, 1), S_IOERR);
    r = (struct range){ UINT64_MAX, 1, 0 };
    assert_int_equal(ranges(T_WRITE_ZEROES, &r, 1), S_IOERR);
    r = (struct range){ 0, UINT32_MAX, 0 };
    assert_int_equal(ranges(T_WRITE_ZEROES, &r, 1), S_IOERR);
    r = (struct range){ UINT64_MAX / 512, 2, 0 };
    assert_int_equal(ranges(T_DISCARD, &r, 1), S_IOERR);
    assert_int_equal(g.store->ops[BLK_DISCARD] + g.store->ops[BLK_WRITE_ZEROES], 0);
    assert_serves(&g);
}

static void b37_ranges_while_writes_there_are_in_flight_complete(void **state)
{
    struct range r = { 0, 16, 0 };
    uint32_t id, len;
    unsigned n = 0;

    g.store->hold = true;
    g_request(&g, 0, 1, T_OUT, 0, DATA + 4096, 4096);
    g_request(&g, 0, 2, T_OUT, 8, DATA + 4096, 4096);
    memcpy(gp(&g, DATA), &r, sizeof(r));
    g_request(&g, 0, 3, T_WRITE_ZEROES, 0, DATA, 16);
    g_request(&g, 1, 4, T_DISCARD, 0, DATA, 16);
    g_kick(&g, 0);
    g_kick(&g, 1);
    guest_settle(&g);
    assert_int_equal(g_used_idx(&g, 0) + g_used_idx(&g, 1), 0);
    g.store->hold = false;
    store_release(g.store, UINT32_MAX);
    guest_settle(&g);
    while (g_used(&g, 0, &id, &len) || g_used(&g, 1, &id, &len))
        n++;
    assert_int_equal(n, 4);
    for (unsigned i = 1; i <= 4; i++)
        assert_int_equal(g_status(&g, i), S_OK);
}

static void b37_ranges_without_the_features_are_unsupported(void **state)
{
    struct range r = { 0, 1, 0 };

    g.features &= ~(uint64_t)(1 << 13 | 1 << 14);
    guest_boot(&g, 64);
    assert_int_equal(ranges(T_DISCARD, &r, 1), S_UNSUPP);
    assert_int_equal(ranges(T_WRITE_ZEROES, &r, 1), S_UNSUPP);
}

/* ---- B38, B39 ------------------------------------------------------------------------ */

static void b38_get_id_fills_short_and_long_buffers(void **state)
{
    char *p = gp(&g, DATA);

    memset(p, 'x', 64);
    assert_int_equal(g_do(&g, 0, T_GET_ID, 0, DATA, 20), S_OK);
    assert_memory_equal(p, "serial-0123456789-toxx", 22);
    memset(p, 'x', 64);
    assert_int_equal(g_do(&g, 0, T_GET_ID, 0, DATA, 6), S_OK);
    assert_memory_equal(p, "serialxx", 8);
    memset(p, 'x', 64);
    assert_int_equal(g_do(&g, 0, T_GET_ID, 0, DATA, 40), S_OK);
    assert_memory_equal(p, "serial-0123456789-to\0\0\0", 23);
    assert_int_equal(p[39], 0);
    assert_int_equal(p[40], 'x');
    assert_int_equal(g_do(&g, 0, T_GET_ID, 0, 0, 0), S_OK);     /* nothing but a status */
}

static void b39_flush_with_data_or_a_sector_is_a_flush(void **state)
{
    assert_int_equal(g_do(&g, 0, T_FLUSH, 12345, 0, 0), S_OK);
    assert_int_equal(g_do(&g, 0, T_FLUSH, UINT64_MAX, DATA, 4096), S_OK);
    assert_int_equal(g_do(&g, 0, T_FLUSH, 0, DATA, 3), S_OK);
    assert_int_equal(g.store->ops[BLK_FLUSH], 3);
    assert_int_equal(g.store->ops[BLK_WRITE], 0);
}

/* ---- B40, B41, B43 ---------------------------------------------------------------------- */

static void b40_a_kick_storm_with_nothing_new_does_nothing(void **state)
{
    const struct virtio_blk_stats *st;

    g.store->hold = true;
    for (unsigned i = 0; i < 20; i++)
        g_request(&g, 0, i, T_IN, i, DATA, 512);
    for (unsigned i = 0; i < 100000; i++) {
        g_kick(&g, 0);
        if (i % 1000 == 0)
            guest_settle(&g);
    }
    guest_settle(&g);
    assert_int_equal(g.store->inflight, 20);
    st = virtio_blk_stats(g.disk);
    assert_int_equal(st->requests, 20);
    assert_true(st->kicks <= 2000);                 /* coalesced */
    assert_int_equal(guest_raised(&g, 1), 0);
    g.store->hold = false;
    store_release(g.store, UINT32_MAX);
    guest_settle(&g);
    assert_int_equal(g_used_idx(&g, 0), 20);
    g.q[0].used_seen = 20;
    assert_serves(&g);
}

static void b40_a_guest_that_never_reads_completions_is_bounded(void **state)
{
    /* The driver does not look at the used ring and reuses its descriptors. */
    for (unsigned round = 0; round < 50; round++) {
        for (unsigned i = 0; i < 20; i++)
            g_request(&g, 0, i, T_IN, i, DATA, 512);
        g_kick(&g, 0);
        guest_settle(&g);
    }
    assert_int_equal(g_used_idx(&g, 0), 1000);
    assert_serves(&g);
}

static void b40_a_full_queue_is_taken_once_and_then_others_have_their_turn(void **state)
{
    struct virtq_desc d[3] = { { HEADERS, 16, VIRTQ_DESC_NEXT, 1 },
                               { DATA, 512, VIRTQ_DESC_NEXT | VIRTQ_DESC_WRITE, 2 },
                               { STATUSES, 1, VIRTQ_DESC_WRITE, 0 } };
    uint64_t kicks;

    guest_boot(&g, 8);
    kicks = virtio_blk_stats(g.disk)->kicks;
    g_header(&g, 0, T_IN, 0);
    memcpy(gp(&g, DATA + 4096), d, sizeof(d));
    for (unsigned i = 0; i < 8; i++) {
        g_desc(&g, 0, i, DATA + 4096, sizeof(d), VIRTQ_DESC_INDIRECT, 0);
        g_avail(&g, 0, i);
    }
    g_kick(&g, 0);
    guest_settle(&g);
    assert_int_equal(g_used_idx(&g, 0), 8);
    /* The guest's kick, and the queue's own to come back behind the others. */
    assert_int_equal(virtio_blk_stats(g.disk)->kicks, kicks + 2);
}

static void b41_any_used_event_is_only_a_wrong_moment(void **state)
{
    unsigned seed = 1;

    for (unsigned i = 0; i < 3000; i++) {
        uint32_t id, len;

        seed = seed * 1103515245 + 12345;
        g_request(&g, 0, 0, T_IN, i % 100, DATA, 512);
        g_put16(&g, g.q[0].avail + 4 + 2 * 64, (uint16_t)(i % 3 ? seed >> 16 : 0xffff));
        g_kick(&g, 0);
        guest_settle(&g);
        assert_true(g_used(&g, 0, &id, &len));
        assert_int_equal(g_status(&g, 0), S_OK);
    }
    assert_serves(&g);
}

static void b43_requests_of_a_halted_guest_can_be_thrown_away(void **state)
{
    /* The guest is gone with requests at every stage; leaving must not hang. */
    g.store->hold = true;
    for (unsigned i = 0; i < 10; i++)
        g_request(&g, 0, i, i % 2 ? T_OUT : T_IN, i, DATA, 512);
    g_kick(&g, 0);
    guest_settle(&g);
    g_request(&g, 1, 0, T_IN, 0, DATA, 512);
    g_kick(&g, 1);                                  /* not seen by the loop yet */
    assert_int_equal(g.store->inflight, 10);
    /* down() frees with all of that in flight. */
}

/* ---- B42 ------------------------------------------------------------------------------------ */

/* Four queues, a loop thread; reads, writes, zeroes, discards and flushes over the
 * same few blocks.  The model knows when each request was made available and when
 * it was seen complete, on one clock.  A write is overwritten for certain once
 * another one completed that began after its end; until then it may be what a
 * read finds. */
#define BLOCKS 32u
#define KEPT   256u
struct op { bool busy; uint32_t type; unsigned block; uint8_t tag; uint64_t start;
            bool may[256]; };
struct past { uint8_t tag; uint64_t end; };
struct model {
    uint64_t clock;
    struct op op[4][16];
    struct { struct past past[KEPT]; unsigned n; uint64_t latest_start; } block[BLOCKS];
    uint64_t reads;
};

static bool changes(const struct op *o)
{
    return o->type == T_OUT || o->type == T_DISCARD || o->type == T_WRITE_ZEROES;
}

static void model_may(const struct model *m, unsigned block, bool may[256])
{
    memset(may, 0, 256);
    for (unsigned i = 0; i < m->block[block].n; i++)
        may[m->block[block].past[i].tag] = true;
    for (unsigned i = 0; i < 64; i++) {
        const struct op *o = &m->op[i / 16][i % 16];

        if (o->busy && changes(o) && o->block == block)
            may[o->tag] = true;
    }
}

static void op_start(struct model *m, unsigned qi, unsigned slot, unsigned *seed)
{
    static const uint32_t types[8] = { T_OUT, T_OUT, T_OUT, T_IN, T_IN, T_DISCARD,
                                       T_WRITE_ZEROES, T_FLUSH };
    struct op *o = &m->op[qi][slot];
    unsigned s = *seed = *seed * 1103515245 + 12345, buf = qi * 16 + slot;
    uint64_t data = DATA + 512ull * buf;
    struct range r;

    o->type = types[(s >> 8) % 8];
    o->block = (s >> 16) % BLOCKS;
    o->tag = o->type == T_OUT ? (uint8_t)(1 + (s >> 21) % 255) : 0;
    o->busy = true;
    o->start = ++m->clock;
    model_may(m, o->block, o->may);
    for (unsigned i = 0; i < 64 && changes(o); i++) {
        struct op *read = &m->op[i / 16][i % 16];

        if (read->busy && read->block == o->block)
            read->may[o->tag] = true;
    }
    r = (struct range){ o->block, 1, 0 };
    memset(gp(&g, data), o->tag, 512);
    if (o->type == T_DISCARD || o->type == T_WRITE_ZEROES)
        memcpy(gp(&g, data), &r, sizeof(r));
    g_request(&g, qi, buf, o->type, o->type == T_OUT || o->type == T_IN ? o->block : 0, data,
              o->type == T_FLUSH ? 0 : o->type == T_OUT || o->type == T_IN ? 512 : sizeof(r));
}

static void assert_one_tag(const void *block, const bool may[256])
{
    uint8_t tag = *(const uint8_t *)block, want[512];

    assert_true(may[tag]);
    memset(want, tag, sizeof(want));
    assert_memory_equal(block, want, sizeof(want));
}

static void op_end(struct model *m, unsigned qi, unsigned slot)
{
    struct op *o = &m->op[qi][slot];
    unsigned keep = 0;

    o->busy = false;
    m->clock++;
    if (o->type == T_IN) {
        assert_one_tag(gp(&g, DATA + 512ull * (qi * 16 + slot)), o->may);
        m->reads++;
    }
    if (!changes(o))
        return;
    if (o->start > m->block[o->block].latest_start)
        m->block[o->block].latest_start = o->start;
    for (unsigned i = 0; i < m->block[o->block].n; i++) {
        struct past *p = &m->block[o->block].past[i];

        if (p->end >= m->block[o->block].latest_start)
            m->block[o->block].past[keep++] = *p;
    }
    assert_true(keep < KEPT);
    m->block[o->block].past[keep++] = (struct past){ o->tag, m->clock };
    m->block[o->block].n = keep;
}

/* A random number of completions a turn, so that they come in any order. */
static unsigned hold_some(unsigned *seed)
{
    *seed = *seed * 1103515245 + 12345;
    return (*seed >> 16) % 24;
}

static void model_run(struct model *m, unsigned total, bool shuffled)
{
    unsigned seed = 42, hold_seed = 7, done = 0, started = 0;

    while (done < total) {
        for (unsigned qi = 0; qi < 4; qi++) {
            uint32_t id, len;

            for (unsigned i = 0; i < 16 && started < total; i++) {
                if (!m->op[qi][i].busy) {
                    op_start(m, qi, i, &seed);
                    started++;
                }
            }
            g_kick(&g, qi);
            if (shuffled) {
                blk_loop_turn(g.loop, false);
                store_release(g.store, hold_some(&hold_seed));
            }
            while (g_used(&g, qi, &id, &len)) {
                assert_int_equal(id / 3 / 16, qi);
                assert_int_equal(g_status(&g, id / 3), S_OK);
                op_end(m, qi, id / 3 % 16);
                done++;
            }
        }
    }
}

static void model_check(struct model *m)
{
    bool may[256];

    for (unsigned b = 0; b < BLOCKS; b++) {
        model_may(m, b, may);
        assert_one_tag(g.store->data + 512 * b, may);
    }
    assert_true(m->reads > 1000);
    assert_serves(&g);
}

static struct model *model_up(void)
{
    static const struct virtio_blk_config c = { .queues = 4 };
    static struct model m;

    memset(&m, 0, sizeof(m));
    for (unsigned b = 0; b < BLOCKS; b++) {
        m.block[b].past[0] = (struct past){ 0, 0 };
        m.block[b].n = 1;
    }
    guest_free(&g);
    guest_new(&g, &c);
    guest_boot(&g, 256);
    return &m;
}

static void b42_conflicting_requests_across_queues_agree_with_a_model(void **state)
{
    struct model *m = model_up();

    guest_thread(&g);
    model_run(m, 20000, false);
    guest_join(&g);
    model_check(m);
}

static void b42_completions_in_any_order_agree_with_a_model(void **state)
{
    struct model *m = model_up();

    g.store->hold = true;               /* carried out in the order of release */
    model_run(m, 20000, true);
    g.store->hold = false;
    model_check(m);
}

#define T(test) cmocka_unit_test_setup_teardown(test, up, down)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        T(a_write_then_a_read_gives_the_same_bytes),
        T(used_length_is_what_was_written),
        T(flush_reaches_the_node),
        T(writes_are_fua_with_the_cache_off),
        T(writes_are_fua_without_the_flush_feature),
        T(node_errors_become_ioerr_and_are_told_once),
        T(configuration_describes_the_disk),
        T(b33_sector_past_the_end_or_wrapping_is_an_error),
        T(b34_data_not_a_multiple_of_512_is_an_error),
        T(b34_odd_pieces_that_add_up_are_fine),
        T(b35_write_to_a_read_only_disk_is_an_error),
        T(b36_unknown_scsi_and_barrier_types_are_unsupported),
        T(b37_good_ranges_are_carried_out_in_one_request),
        T(b37_no_ranges_or_too_many_are_an_error),
        T(b37_reserved_flags_are_unsupported),
        T(b37_zero_sectors_do_nothing_and_bad_ranges_are_errors),
        T(b37_ranges_while_writes_there_are_in_flight_complete),
        T(b37_ranges_without_the_features_are_unsupported),
        T(b38_get_id_fills_short_and_long_buffers),
        T(b39_flush_with_data_or_a_sector_is_a_flush),
        T(b40_a_kick_storm_with_nothing_new_does_nothing),
        T(b40_a_guest_that_never_reads_completions_is_bounded),
        T(b40_a_full_queue_is_taken_once_and_then_others_have_their_turn),
        T(b41_any_used_event_is_only_a_wrong_moment),
        T(b42_conflicting_requests_across_queues_agree_with_a_model),
        T(b42_completions_in_any_order_agree_with_a_model),
        T(b43_requests_of_a_halted_guest_can_be_thrown_away),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
