/*
 * guest.c - the driver side: finds the device as Linux does (capabilities), and
 * touches it only through registers, doorbells and guest memory.
 */
#include "tests/unit/virtio/guest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- the PCI host: records, and keeps what KVM would keep ------------------------ */

static void host_collect(struct g_host *h, unsigned i)
{
    uint64_t n;

    if (h->bind[i].bound && read(h->bind[i].fd, &n, sizeof(n)) == sizeof(n))
        h->bind[i].raised += n;
}

static int host_bind(void *arg, int fd, uint64_t addr, uint32_t data, int *route)
{
    struct g_host *h = arg;

    pthread_mutex_lock(&h->lock);
    if (*route < 0)
        *route = (int)h->binds++;
    host_collect(h, (unsigned)*route);
    h->bind[*route].fd = fd;
    h->bind[*route].addr = addr;
    h->bind[*route].data = data;
    h->bind[*route].bound = true;
    host_collect(h, (unsigned)*route);      /* what was pending is delivered */
    pthread_mutex_unlock(&h->lock);
    return 0;
}

static void host_unbind(void *arg, int fd, int route)
{
    struct g_host *h = arg;

    pthread_mutex_lock(&h->lock);
    assert_int_equal(h->bind[route].fd, fd);
    host_collect(h, (unsigned)route);
    h->bind[route].bound = false;
    pthread_mutex_unlock(&h->lock);
}

static int host_bell_add(void *arg, uint64_t gpa, unsigned len, int fd)
{
    struct g_host *h = arg;
    int r = 0;

    pthread_mutex_lock(&h->lock);
    for (unsigned i = 0; i < h->bells; i++) {
        if (h->bell[i].gpa == gpa)
            r = -EEXIST;
    }
    if (r == 0 && h->bells == G_DOORBELLS)
        r = -ENOSPC;
    if (r == 0) {
        h->bell[h->bells].gpa = gpa;
        h->bell[h->bells].len = len;
        h->bell[h->bells++].fd = fd;
    }
    pthread_mutex_unlock(&h->lock);
    return r;
}

static void host_bell_del(void *arg, uint64_t gpa, unsigned len, int fd)
{
    struct g_host *h = arg;

    pthread_mutex_lock(&h->lock);
    for (unsigned i = 0; i < h->bells; i++) {
        if (h->bell[i].gpa == gpa && h->bell[i].fd == fd) {
            h->bell[i] = h->bell[--h->bells];
            break;
        }
    }
    pthread_mutex_unlock(&h->lock);
}

static const struct pci_host_ops host_ops = {
    .msi_bind = host_bind,
    .msi_unbind = host_unbind,
    .doorbell_add = host_bell_add,
    .doorbell_del = host_bell_del,
};

uint64_t guest_raised(struct guest *g, unsigned vector)
{
    uint64_t n = 0;

    pthread_mutex_lock(&g->host.lock);
    for (unsigned i = 0; i < g->host.binds; i++) {
        host_collect(&g->host, i);
        if (g->host.bind[i].data == 0x4000 + vector) {
            n += g->host.bind[i].raised;
            g->host.bind[i].raised = 0;
        }
    }
    pthread_mutex_unlock(&g->host.lock);
    return n;
}

/* ---- registers ---------------------------------------------------------------------- */

uint64_t guest_in(struct guest *g, uint64_t gpa, unsigned len)
{
    uint64_t v = 0;

    pci_mmio_read(&g->bus, gpa, &v, len);
    return v;
}

void guest_out(struct guest *g, uint64_t gpa, unsigned len, uint64_t v)
{
    int fd = -1;
    uint64_t one = 1;

    pthread_mutex_lock(&g->host.lock);
    for (unsigned i = 0; i < g->host.bells; i++) {
        if (g->host.bell[i].gpa == gpa)
            fd = g->host.bell[i].fd;
    }
    pthread_mutex_unlock(&g->host.lock);
    if (fd >= 0)
        assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
    else
        pci_mmio_write(&g->bus, gpa, &v, len);
}

uint8_t guest_status(struct guest *g)
{
    return (uint8_t)guest_in(g, g->common + C_STATUS, 1);
}

void guest_set_status(struct guest *g, uint8_t v)
{
    guest_out(g, g->common + C_STATUS, 1, v);
}

uint32_t guest_config(struct guest *g, unsigned reg, unsigned len)
{
    return pci_config_read(&g->bus, 0, DEVFN >> 3, 0, reg, len);
}

void guest_config_out(struct guest *g, unsigned reg, unsigned len, uint32_t v)
{
    pci_config_write(&g->bus, 0, DEVFN >> 3, 0, reg, len, v);
}

static uint64_t bar_gpa(struct guest *g, unsigned bar)
{
    return (guest_config(g, 0x10 + 4 * bar, 4) & ~0xfu) |
           (uint64_t)guest_config(g, 0x14 + 4 * bar, 4) << 32;
}

static void found_virtio_cap(struct guest *g, unsigned at)
{
    uint64_t where = bar_gpa(g, guest_config(g, at + 4, 1)) + guest_config(g, at + 8, 4);

    switch (guest_config(g, at + 3, 1)) {
    case 1: g->common = where; break;
    case 2: g->notify = where; g->notify_stride = guest_config(g, at + 16, 4); break;
    case 3: g->isr = where; break;
    case 4: g->device = where; break;
    case 5: g->cfg_cap = at; break;
    }
}

static void find_device(struct guest *g)
{
    unsigned at = guest_config(g, 0x34, 1);

    assert_int_equal(guest_config(g, 0, 4), 0x10421af4);
    for (; at; at = guest_config(g, at + 1, 1)) {
        uint32_t id = guest_config(g, at, 1);

        if (id == 9) {
            found_virtio_cap(g, at);
        } else if (id == 0x11) {
            g->msix_cap = at;
            g->msix_table = bar_gpa(g, guest_config(g, at + 4, 4) & 7) +
                            (guest_config(g, at + 4, 4) & ~7u);
            g->msix_pba = bar_gpa(g, guest_config(g, at + 8, 4) & 7) +
                          (guest_config(g, at + 8, 4) & ~7u);
        }
    }
    assert_true(g->common && g->isr && g->device && g->notify && g->cfg_cap && g->msix_cap);
}

void guest_msix_on(struct guest *g)
{
    unsigned n = (guest_config(g, g->msix_cap + 2, 2) & 0x7ff) + 1;

    guest_config_out(g, g->msix_cap + 2, 2, 0xc000);
    for (unsigned i = 0; i < n; i++) {
        guest_out(g, g->msix_table + 16 * i, 4, 0xfee00000);
        guest_out(g, g->msix_table + 16 * i + 4, 4, 0);
        guest_out(g, g->msix_table + 16 * i + 8, 4, 0x4000 + i);
        guest_out(g, g->msix_table + 16 * i + 12, 4, 0);
    }
    guest_config_out(g, g->msix_cap + 2, 2, 0x8000);
}

/* ---- life ------------------------------------------------------------------------------- */

static void hear(void *arg, const char *line)
{
    struct guest *g = arg;
    size_t at = strlen(g->said);

    snprintf(g->said + at, sizeof(g->said) - at, "%s\n", line);
}

/* Turning the loop itself, the test would only wait for itself. */
static void wait_for_resets(struct guest *g, bool on)
{
    struct virtio_dev *d = blk_container_of(g->bus.slot[DEVFN], struct virtio_dev, pci);

    d->reset_wait = on ? VIRTIO_RESET_WAIT : 0;
}

static struct blk_node *node_open(struct guest *g, const char *options)
{
    struct blk_opts *o = blk_opts_new();
    struct blk_open_args a = { .opts = o, .flags = BLK_O_RDWR | BLK_O_UNMAP };
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n = NULL;

    assert_int_equal(blk_opts_parse(o, options, "driver", &e), 0);
    if (blk_open(g->loop, &a, &n, &e) < 0)
        fail_msg("%s", e.text);
    blk_opts_free(o);
    return n;
}

void guest_new(struct guest *g, const struct virtio_blk_config *config)
{
    guest_new_on(g, config, NULL);
}

void guest_new_on(struct guest *g, const struct virtio_blk_config *config, const char *options)
{
    struct virtio_blk_config c = { .serial = "serial-0123456789-too-long" };
    struct pci_host host = { &host_ops, &g->host };
    struct blk_error e = BLK_ERROR_INIT;

    memset(g, 0, sizeof(*g));
    pthread_mutex_init(&g->host.lock, NULL);
    blk_set_report(hear, g);
    if (config)
        c = *config;
    g->loop = blk_loop_new(&e);
    assert_non_null(g->loop);
    if (!options)
        g->store = store_new(g->loop, DISK_SIZE);
    g->node = options ? node_open(g, options) : &g->store->node;
    c.node = g->node;
    assert_int_equal(mem_add_anon(&g->mem, 0, LOW_SIZE, false), 0);
    assert_int_equal(mem_add_anon(&g->mem, HIGH_BASE, HIGH_SIZE, false), 0);
    assert_int_equal(pci_bus_init(&g->bus, &host), 0);
    pci_bus_set_window(&g->bus, MMIO_BASE, MMIO_END);
    assert_int_equal(pci_host_bridge_init(&g->bridge, &g->bus, 0), 0);
    assert_int_equal(virtio_blk_new(&g->bus, DEVFN, &g->mem, &c, &g->disk, &e), 0);
    assert_int_equal(pci_bus_assign(&g->bus), 0);
    wait_for_resets(g, false);
    find_device(g);
    guest_msix_on(g);
    g->queues = (unsigned)guest_in(g, g->common + C_NUMQ, 2);
    g->features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | 0x7fffff;
}

void guest_free(struct guest *g)
{
    guest_join(g);
    if (g->store && g->store->hold) {
        g->store->hold = false;
        store_release(g->store, UINT32_MAX);
    }
    virtio_blk_free(g->disk);
    pci_dev_fini(&g->bridge);
    pci_bus_fini(&g->bus);
    if (g->store)
        store_free(g->store);
    else
        assert_int_equal(blk_close(g->node, NULL), 0);
    blk_loop_free(g->loop);
    mem_free(&g->mem);
    blk_set_report(NULL, NULL);
    pthread_mutex_destroy(&g->host.lock);
}

static void *loop_main(void *arg)
{
    struct guest *g = arg;

    blk_loop_adopt(g->loop);
    blk_loop_run(g->loop);
    return NULL;
}

void guest_thread(struct guest *g)
{
    wait_for_resets(g, true);
    assert_int_equal(pthread_create(&g->thread, NULL, loop_main, g), 0);
    g->threaded = true;
}

void guest_join(struct guest *g)
{
    if (!g->threaded)
        return;
    blk_loop_stop(g->loop);
    pthread_join(g->thread, NULL);
    g->threaded = false;
    wait_for_resets(g, false);
    blk_loop_adopt(g->loop);
}

void guest_settle(struct guest *g)
{
    struct timespec t = { 0, 1000000 };

    if (g->threaded) {
        /* Quiet for 5 ms. */
        for (unsigned i = 0; i < 5; i++)
            nanosleep(&t, NULL);
        return;
    }
    for (unsigned i = 0; i < 160; i++)
        blk_loop_turn(g->loop, false);
}

static uint64_t now_ms(void)
{
    return blk_now_ns() / 1000000;
}

bool guest_reset(struct guest *g)
{
    uint64_t until = now_ms() + 5000;
    struct timespec t = { 0, 100000 };

    guest_set_status(g, 0);
    while (guest_status(g) != 0) {
        if (now_ms() > until)
            return false;
        if (g->threaded)
            nanosleep(&t, NULL);
        else
            guest_settle(g);
    }
    return true;
}

void guest_negotiate(struct guest *g)
{
    uint64_t offered;

    assert_true(guest_reset(g));
    guest_set_status(g, 1);
    guest_set_status(g, 3);
    guest_out(g, g->common + C_DFSEL, 4, 0);
    offered = guest_in(g, g->common + C_DF, 4);
    guest_out(g, g->common + C_DFSEL, 4, 1);
    offered |= guest_in(g, g->common + C_DF, 4) << 32;
    offered &= g->features;
    guest_out(g, g->common + C_GFSEL, 4, 0);
    guest_out(g, g->common + C_GF, 4, offered & 0xffffffff);
    guest_out(g, g->common + C_GFSEL, 4, 1);
    guest_out(g, g->common + C_GF, 4, offered >> 32);
    guest_set_status(g, 3 | 8);
    assert_int_equal(guest_status(g), 3 | 8);
    guest_out(g, g->common + C_MSIX, 2, 0);
}

static void put_addr(struct guest *g, unsigned field, uint64_t v)
{
    guest_out(g, g->common + field, 4, v & 0xffffffff);
    guest_out(g, g->common + field + 4, 4, v >> 32);
}

void guest_queue(struct guest *g, unsigned qi, unsigned size)
{
    struct g_queue *q = &g->q[qi];
    uint64_t base = 0x10000 + 0x8000ull * qi;

    *q = (struct g_queue){ .size = size, .desc = base, .avail = base + 0x2000,
                           .used = base + 0x4000 };
    memset(gp(g, base), 0, 0x8000);
    guest_out(g, g->common + C_QSEL, 2, qi);
    q->bell = g->notify + guest_in(g, g->common + C_QNOFF, 2) * g->notify_stride;
    guest_out(g, g->common + C_QSIZE, 2, size);
    guest_out(g, g->common + C_QMSIX, 2, qi + 1);
    put_addr(g, C_QDESC, q->desc);
    put_addr(g, C_QAVAIL, q->avail);
    put_addr(g, C_QUSED, q->used);
    guest_out(g, g->common + C_QENABLE, 2, 1);
}

void guest_go(struct guest *g)
{
    guest_set_status(g, 3 | 8 | 4);
    guest_settle(g);
}

void guest_boot(struct guest *g, unsigned queue_size)
{
    guest_negotiate(g);
    for (unsigned i = 0; i < g->queues; i++) {
        guest_queue(g, i, queue_size);
        assert_int_equal(guest_in(g, g->common + C_QENABLE, 2), 1);
    }
    guest_go(g);
    for (unsigned i = 0; i <= g->queues; i++)
        guest_raised(g, i);
}

/* ---- rings -------------------------------------------------------------------------------- */

void g_put16(struct guest *g, uint64_t gpa, uint16_t v)
{
    __atomic_store_n((uint16_t *)gp(g, gpa), v, __ATOMIC_RELEASE);
}

void g_desc(struct guest *g, unsigned qi, unsigned i, uint64_t addr, uint32_t len,
            unsigned flags, unsigned next)
{
    struct virtq_desc d = { addr, len, (uint16_t)flags, (uint16_t)next };

    memcpy(gp(g, g->q[qi].desc + 16ull * i), &d, sizeof(d));
}

void g_chain(struct guest *g, unsigned qi, unsigned first, const struct seg *s, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        g_desc(g, qi, first + i, s[i].gpa, s[i].len,
               (s[i].write ? VIRTQ_DESC_WRITE : 0u) | (i + 1 < n ? VIRTQ_DESC_NEXT : 0u),
               i + 1 < n ? first + i + 1 : 0);
}

void g_avail(struct guest *g, unsigned qi, unsigned head)
{
    struct g_queue *q = &g->q[qi];

    g_put16(g, q->avail + 4 + 2ull * (q->avail_idx % q->size), (uint16_t)head);
    g_put16(g, q->avail + 2, ++q->avail_idx);
}

void g_kick(struct guest *g, unsigned qi)
{
    guest_out(g, g->q[qi].bell, 2, qi);
}

uint16_t g_used_idx(struct guest *g, unsigned qi)
{
    return __atomic_load_n((uint16_t *)gp(g, g->q[qi].used + 2), __ATOMIC_ACQUIRE);
}

bool g_used(struct guest *g, unsigned qi, uint32_t *id, uint32_t *len)
{
    struct g_queue *q = &g->q[qi];
    uint32_t *e = gp(g, q->used + 4 + 8ull * (q->used_seen % q->size));

    if (g_used_idx(g, qi) == q->used_seen)
        return false;
    *id = e[0];
    *len = e[1];
    q->used_seen++;
    /* As Linux does with EVENT_IDX: an interrupt for the next one, please. */
    g_put16(g, q->avail + 4 + 2ull * q->size, q->used_seen);
    return true;
}

void g_header(struct guest *g, unsigned slot, uint32_t type, uint64_t sector)
{
    struct { uint32_t type, reserved; uint64_t sector; } h = { type, 0, sector };

    memcpy(gp(g, HEADERS + 16ull * slot), &h, sizeof(h));
}

uint8_t g_status(struct guest *g, unsigned slot)
{
    return __atomic_load_n((uint8_t *)gp(g, STATUSES + slot), __ATOMIC_ACQUIRE);
}

static bool reads_into_guest(uint32_t type)
{
    return type == T_IN || type == T_GET_ID;
}

void g_request(struct guest *g, unsigned qi, unsigned slot, uint32_t type, uint64_t sector,
               uint64_t gpa, uint32_t len)
{
    struct seg s[3] = { { HEADERS + 16ull * slot, 16, false } };
    unsigned n = 1;

    g_header(g, slot, type, sector);
    *(uint8_t *)gp(g, STATUSES + slot) = S_NONE;
    if (len)
        s[n++] = (struct seg){ gpa, len, reads_into_guest(type) };
    s[n++] = (struct seg){ STATUSES + slot, 1, true };
    g_chain(g, qi, 3 * slot, s, n);
    g_avail(g, qi, 3 * slot);
}

uint8_t g_do(struct guest *g, unsigned qi, uint32_t type, uint64_t sector, uint64_t gpa,
             uint32_t len)
{
    uint32_t id, n;

    g_request(g, qi, 0, type, sector, gpa, len);
    g_kick(g, qi);
    guest_settle(g);
    assert_true(g_used(g, qi, &id, &n));
    assert_int_equal(id, 0);
    return g_status(g, 0);
}

/* ---- verdicts ------------------------------------------------------------------------------- */

static void assert_works(struct guest *g)
{
    memset(g->store->data + 512 * 7, 0x5a, 512);
    memset(gp(g, DATA), 0, 512);
    assert_int_equal(g_do(g, 0, T_IN, 7, DATA, 512), S_OK);
    assert_memory_equal(gp(g, DATA), g->store->data + 512 * 7, 512);
}

void assert_serves(struct guest *g)
{
    guest_settle(g);
    assert_int_equal(guest_status(g) & VIRTIO_S_NEEDS_RESET, 0);
    g->q[0].used_seen = g_used_idx(g, 0);
    assert_works(g);
}

void assert_stops(struct guest *g, const char *why)
{
    unsigned size = g->q[0].size;

    guest_settle(g);
    assert_int_equal(guest_status(g) & VIRTIO_S_NEEDS_RESET, VIRTIO_S_NEEDS_RESET);
    assert_true(guest_raised(g, 0) > 0);
    assert_non_null(strstr(g->said, why));
    assert_int_equal(g_used_idx(g, 0), g->q[0].used_seen);
    /* Stopped means stopped. */
    g_request(g, 0, 0, T_IN, 0, DATA, 512);
    g_kick(g, 0);
    guest_settle(g);
    assert_int_equal(g_used_idx(g, 0), g->q[0].used_seen);
    guest_boot(g, size);
    assert_works(g);
    g->said[0] = 0;
}
