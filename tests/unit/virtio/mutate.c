/*
 * mutate.c - bytes become a guest's next wrong step.  Values are picked near the
 * edges, and half of the steps are valid, so that the wrong ones get somewhere.
 */
#include "tests/unit/virtio/mutate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct bytes { const uint8_t *p; size_t n; };

static unsigned byte(struct bytes *b)
{
    if (!b->n)
        return 0;
    b->n--;
    return *b->p++;
}

static uint64_t number(struct bytes *b)
{
    unsigned v = byte(b), w = byte(b);

    switch (v % 8) {
    case 0: return w;
    case 1: return w << 8 | byte(b);
    case 2: return UINT64_MAX - w;
    case 3: return 1ull << w % 64;
    case 4: return (1ull << w % 64) - 1;
    case 5: return (uint64_t)w * 512;
    case 6: return (uint64_t)byte(b) << 56 | (uint64_t)w << 28 | byte(b);
    default: return w % 2 ? UINT32_MAX : DISK_SIZE / 512 - w;
    }
}

static uint64_t address(struct bytes *b, struct guest *g, unsigned qi)
{
    unsigned v = byte(b), w = byte(b);

    switch (v % 10) {
    case 0: return g->q[qi].desc + w;
    case 1: return g->q[qi].avail + w;
    case 2: return g->q[qi].used + w;
    case 3: return LOW_SIZE - w;
    case 4: return HIGH_BASE - w;
    case 5: return HIGH_BASE + w * 4096;
    case 6: return MMIO_BASE + w;
    case 7: return number(b);
    case 8: return HEADERS + w;
    default: return DATA + w * 512;
    }
}

static void step_descriptor(struct guest *g, struct bytes *b, unsigned qi)
{
    struct virtq_desc d;
    uint64_t at = g->q[qi].desc + 16 * (byte(b) % g->q[qi].size);
    unsigned what = byte(b);

    memcpy(&d, gp(g, at), sizeof(d));
    if (what & 1)
        d.addr = address(b, g, qi);
    if (what & 2)
        d.len = what & 128 ? (uint32_t)number(b) : byte(b) * 16;
    if (what & 4)
        d.flags = (uint16_t)(what & 64 ? byte(b) % 8 : byte(b) % 4);
    if (what & 8)
        d.next = (uint16_t)(byte(b) % (g->q[qi].size + 2));
    memcpy(gp(g, at), &d, sizeof(d));
}

static void step_request(struct guest *g, struct bytes *b, unsigned qi)
{
    static const uint32_t types[] = { T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES,
                                      T_IN, T_OUT };
    uint32_t type = types[byte(b) % 8];

    g_request(g, qi, byte(b) % 20, type, byte(b) % 16 ? byte(b) : number(b), DATA + byte(b) * 512,
              byte(b) % 8 ? 512u * (byte(b) % 9) : (uint32_t)number(b) % 4096);
}

static void step_ring(struct guest *g, struct bytes *b, unsigned qi)
{
    struct g_queue *q = &g->q[qi];
    unsigned v = byte(b);

    if (v < 16)
        g_put16(g, q->avail + 2, (uint16_t)number(b));
    else if (v < 64)
        g_put16(g, q->avail + 4 + 2 * (byte(b) % (q->size + 1)), (uint16_t)number(b));
    else if (v < 96)
        g_put16(g, q->avail, (uint16_t)number(b));
    else if (v < 128)
        *(uint8_t *)gp(g, q->used + byte(b)) = (uint8_t)byte(b);
    else
        g_avail(g, qi, byte(b) % q->size);
}

static void step_register(struct guest *g, struct bytes *b)
{
    static const uint8_t field[] = { 0, 4, 8, 12, 16, 18, 20, 20, 21, 22, 22, 24, 26, 28, 28, 30,
                                     32, 36, 40, 44, 48, 52 };
    static const uint8_t width[] = { 4, 4, 4, 4, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2,
                                     4, 4, 4, 4, 4, 4 };
    unsigned i = byte(b) % BLK_ARRAY_SIZE(field), v = byte(b);
    uint64_t value = v % 4 ? number(b) : address(b, g, 0);

    /* A reset waits up to 20 ms for this very thread: not too often. */
    if (field[i] == 20 && !(value & 0xff) && byte(b) % 64)
        value = 1u << v % 8;
    if (v < 200)
        guest_out(g, g->common + field[i], width[i], value);
    else
        guest_out(g, g->common + byte(b), 1u << v % 4, value | 1);
    guest_in(g, g->common + byte(b), 1u << v % 4);
}

static void step_pci(struct guest *g, struct bytes *b)
{
    unsigned v = byte(b), reg = byte(b) & ~3u;

    if (v < 64)
        guest_config_out(g, reg, 4, (uint32_t)number(b));
    else if (v < 96)
        guest_config_out(g, g->msix_cap + 2, 2, byte(b) << 8);
    else if (v < 160)
        guest_out(g, g->msix_table + 4 * (byte(b) % 64), 4, number(b));
    else if (v < 200)
        guest_config_out(g, g->cfg_cap + 4 + 4 * (byte(b) % 4), 4, (uint32_t)number(b));
    else if (v < 220)
        guest_in(g, g->msix_pba + (byte(b) & ~7u), 8);
    else
        guest_out(g, g->device + byte(b), 1u << v % 4, number(b));
    guest_config(g, reg, 4);
}

static void step(struct guest *g, struct bytes *b)
{
    unsigned qi = byte(b) % g->queues, what = byte(b);

    if (what < 70)
        step_request(g, b, qi);
    else if (what < 120)
        step_descriptor(g, b, qi);
    else if (what < 150)
        step_ring(g, b, qi);
    else if (what < 160)
        memset(gp(g, HEADERS + 16 * (byte(b) % 20) + byte(b) % 16), (int)byte(b), 1);
    else if (what < 175)
        step_register(g, b);
    else if (what < 185)
        step_pci(g, b);
    else if (what < 215)
        g_kick(g, qi);
    else if (what < 245)
        blk_loop_turn(g->loop, false);
    else if (what < 250)
        g->store->hold = !g->store->hold;
    else
        store_release(g->store, byte(b));
}

/* What firmware gave the device, to be put back. */
struct placed { uint32_t bar[6], command; };

static void note_place(struct guest *g, struct placed *p)
{
    for (unsigned i = 0; i < 6; i++)
        p->bar[i] = guest_config(g, 0x10 + 4 * i, 4);
    p->command = guest_config(g, 4, 2);
}

/* Firmware, MSI-X, then the driver. */
static void start_over(struct guest *g, const struct placed *p)
{
    for (unsigned i = 0; i < 6; i++)
        guest_config_out(g, 0x10 + 4 * i, 4, p->bar[i]);
    guest_config_out(g, 4, 2, p->command);
    g->store->hold = false;
    store_release(g->store, UINT32_MAX);
    guest_msix_on(g);
    guest_boot(g, 64);
    assert_int_equal(g->store->inflight, 0);
    g->said[0] = 0;
}

static bool stuck(struct guest *g)
{
    uint8_t s = guest_status(g);

    return s == 0xff || !(s & VIRTIO_S_DRIVER_OK) || (s & VIRTIO_S_NEEDS_RESET);
}

unsigned mutate_run(struct guest *g, const uint8_t *data, size_t len)
{
    struct bytes b = { data, len };
    struct placed p;
    unsigned steps = 0;

    note_place(g, &p);
    for (; b.n; steps++) {
        step(g, &b);
        assert_true(g->store->inflight <= 256 * g->queues);
        if (steps % 32 == 31 && stuck(g))
            start_over(g, &p);
    }
    start_over(g, &p);
    assert_serves(g);
    return steps;
}
