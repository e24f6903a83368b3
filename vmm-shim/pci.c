/*
 * pci.c - the bus: configuration space with write masks, BARs that move, MMIO
 * dispatch.  MSI-X is in msix.c.
 *
 * Invariant: bus->window holds exactly the BARs with bar.mapped, and a doorbell
 * is live at the host only while its BAR is in that table.
 */
#include "vmm-shim/pci.h"
#include "vmm-shim/pci_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define COMMAND_MEMORY   0x2u
#define COMMAND_WRITABLE (COMMAND_MEMORY | 0x4u | 0x400u)   /* + bus master, INTx off */
#define STATUS_CAPS      0x10u

/* ---- the bus ----------------------------------------------------------------- */

int pci_bus_init(struct pci_bus *b, const struct pci_host *host)
{
    memset(b, 0, sizeof(*b));
    b->host = *host;
    b->mmio_end = UINT64_MAX;
    return -pthread_mutex_init(&b->lock, NULL);
}

void pci_bus_fini(struct pci_bus *b)
{
    free(b->window);
    pthread_mutex_destroy(&b->lock);
}

void pci_bus_set_window(struct pci_bus *b, uint64_t base, uint64_t end)
{
    b->mmio_base = base;
    b->mmio_end = end;
}

static int window_add(struct pci_bus *b, struct pci_dev *d, unsigned bar)
{
    int r = 0;

    pthread_mutex_lock(&b->lock);
    if (b->windows == b->windows_room) {
        unsigned room = b->windows_room ? b->windows_room * 2 : 16;
        struct pci_window *w = realloc(b->window, room * sizeof(*w));

        if (w) {
            b->window = w;
            b->windows_room = room;
        }
    }
    if (b->windows < b->windows_room)
        b->window[b->windows++] = (struct pci_window){
            .gpa = d->bar[bar].gpa, .size = d->bar[bar].size, .dev = d, .bar = bar };
    else
        r = -ENOMEM;
    pthread_mutex_unlock(&b->lock);
    return r;
}

static void window_del(struct pci_bus *b, const struct pci_dev *d, unsigned bar)
{
    pthread_mutex_lock(&b->lock);
    for (unsigned i = 0; i < b->windows; i++) {
        if (b->window[i].dev == d && b->window[i].bar == bar) {
            b->window[i] = b->window[--b->windows];
            break;
        }
    }
    pthread_mutex_unlock(&b->lock);
}

static bool window_find(struct pci_bus *b, uint64_t gpa, struct pci_window *out)
{
    bool found = false;

    pthread_mutex_lock(&b->lock);
    for (unsigned i = 0; i < b->windows && !found; i++) {
        const struct pci_window *w = &b->window[i];

        if (gpa >= w->gpa && gpa - w->gpa < w->size) {
            *out = *w;
            found = true;
        }
    }
    pthread_mutex_unlock(&b->lock);
    return found;
}

/* ---- BARs -------------------------------------------------------------------- */

static uint32_t config_get32(const struct pci_dev *d, unsigned reg)
{
    uint32_t v;

    memcpy(&v, d->config + reg, 4);
    return v;
}

static void config_put32(uint8_t *space, unsigned reg, uint32_t v)
{
    memcpy(space + reg, &v, 4);
}

static void doorbells_set(struct pci_dev *d, unsigned bar, bool on)
{
    const struct pci_host *h = &d->bus->host;

    for (unsigned i = 0; i < d->doorbells; i++) {
        struct pci_doorbell *db = &d->doorbell[i];
        uint64_t gpa = d->bar[bar].gpa + db->off;

        if (db->bar != bar || db->live == on)
            continue;
        if (on) {
            db->live = h->ops->doorbell_add(h->arg, gpa, db->len, db->fd) == 0;
        } else {
            h->ops->doorbell_del(h->arg, gpa, db->len, db->fd);
            db->live = false;
        }
    }
}

static void bar_unmap(struct pci_dev *d, unsigned bar)
{
    doorbells_set(d, bar, false);
    window_del(d->bus, d, bar);
    d->bar[bar].mapped = false;
}

static uint64_t bar_address(const struct pci_dev *d, unsigned bar)
{
    uint64_t gpa = config_get32(d, 0x10 + 4 * bar) & ~0xfu;

    if (d->bar[bar].is64)
        gpa |= (uint64_t)config_get32(d, 0x14 + 4 * bar) << 32;
    return gpa;
}

/* Does this BAR decode at gpa, given the command register and the window? */
static bool bar_decodes(const struct pci_dev *d, const struct pci_bar *bar, uint64_t gpa)
{
    const struct pci_bus *b = d->bus;

    return (d->config[4] & COMMAND_MEMORY) && gpa && gpa >= b->mmio_base && gpa < b->mmio_end &&
           bar->size <= b->mmio_end - gpa;
}

/* Bring the decoded BARs in line with what configuration space says. */
static void bars_update(struct pci_dev *d)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        struct pci_bar *bar = &d->bar[i];
        uint64_t gpa;
        bool on;

        if (!bar->size)
            continue;
        gpa = bar_address(d, i);
        on = bar_decodes(d, bar, gpa);
        if (on == bar->mapped && gpa == bar->gpa)
            continue;
        if (bar->mapped)
            bar_unmap(d, i);
        bar->gpa = gpa;
        if (on && window_add(d->bus, d, i) == 0) {
            bar->mapped = true;
            doorbells_set(d, i, true);
        }
    }
}

void pci_dev_add_bar(struct pci_dev *d, unsigned bar, uint64_t size, bool is64)
{
    uint64_t mask = ~(size - 1);

    d->bar[bar] = (struct pci_bar){ .size = size, .is64 = is64 };
    config_put32(d->config, 0x10 + 4 * bar, is64 ? 0x4 : 0);
    config_put32(d->wmask, 0x10 + 4 * bar, (uint32_t)mask);
    if (is64)
        config_put32(d->wmask, 0x14 + 4 * bar, (uint32_t)(mask >> 32));
}

int pci_dev_add_doorbell(struct pci_dev *d, unsigned bar, uint64_t off, unsigned len, int fd)
{
    if (d->doorbells == PCI_DOORBELLS)
        return -ENOSPC;
    d->doorbell[d->doorbells++] =
        (struct pci_doorbell){ .bar = bar, .len = len, .off = off, .fd = fd };
    return 0;
}

/* Largest first, so that natural alignment wastes nothing. */
static struct pci_bar *largest_unassigned(struct pci_bus *b, struct pci_dev **dev, unsigned *nr)
{
    struct pci_bar *best = NULL;

    for (unsigned s = 0; s < 256; s++) {
        for (unsigned i = 0; b->slot[s] && i < PCI_BARS; i++) {
            struct pci_bar *bar = &b->slot[s]->bar[i];

            if (bar->size && !bar->gpa && (!best || bar->size > best->size)) {
                best = bar;
                *dev = b->slot[s];
                *nr = i;
            }
        }
    }
    return best;
}

int pci_bus_assign(struct pci_bus *b)
{
    uint64_t next = b->mmio_base ? b->mmio_base : 0x1000;
    struct pci_dev *d = NULL;
    struct pci_bar *bar;
    unsigned nr = 0;

    while ((bar = largest_unassigned(b, &d, &nr))) {
        uint64_t gpa = (next + bar->size - 1) & ~(bar->size - 1);

        if (gpa < next || gpa >= b->mmio_end || bar->size > b->mmio_end - gpa ||
            (!bar->is64 && gpa + bar->size - 1 > UINT32_MAX))
            return -ENOSPC;
        bar->gpa = gpa;
        config_put32(d->config, 0x10 + 4 * nr,
                     (uint32_t)gpa | (config_get32(d, 0x10 + 4 * nr) & 0xf));
        if (bar->is64)
            config_put32(d->config, 0x14 + 4 * nr, (uint32_t)(gpa >> 32));
        next = gpa + bar->size;
    }
    for (unsigned s = 0; s < 256; s++) {
        d = b->slot[s];
        if (!d)
            continue;
        pthread_mutex_lock(&d->lock);
        d->config[4] |= COMMAND_MEMORY & d->wmask[4];
        bars_update(d);
        pthread_mutex_unlock(&d->lock);
    }
    return 0;
}

/* ---- configuration space ------------------------------------------------------ */

static struct pci_dev *config_target(struct pci_bus *b, unsigned bus, unsigned dev, unsigned fn,
                                     unsigned reg, unsigned len)
{
    if (bus != 0 || dev > 31 || fn > 7 || reg >= PCI_CONFIG_SIZE ||
        (len != 1 && len != 2 && len != 4) || reg % len)
        return NULL;
    return b->slot[dev << 3 | fn];
}

uint32_t pci_config_read(struct pci_bus *b, unsigned bus, unsigned dev, unsigned fn,
                         unsigned reg, unsigned len)
{
    struct pci_dev *d = config_target(b, bus, dev, fn, reg, len);
    uint32_t v = 0;

    if (!d)
        return len == 1 ? 0xff : len == 2 ? 0xffff : 0xffffffff;
    pthread_mutex_lock(&d->lock);
    if (d->ops && d->ops->config_read)
        d->ops->config_read(d, reg, len);
    memcpy(&v, d->config + reg, len);
    pthread_mutex_unlock(&d->lock);
    return v;
}

void pci_config_write(struct pci_bus *b, unsigned bus, unsigned dev, unsigned fn,
                      unsigned reg, unsigned len, uint32_t value)
{
    struct pci_dev *d = config_target(b, bus, dev, fn, reg, len);

    if (!d)
        return;
    pthread_mutex_lock(&d->lock);
    for (unsigned i = 0; i < len; i++) {
        uint8_t mask = d->wmask[reg + i], in = (uint8_t)(value >> 8 * i);

        d->config[reg + i] = (uint8_t)((d->config[reg + i] & ~mask) | (in & mask));
    }
    if (reg < 0x28)
        bars_update(d);
    if (d->vectors && reg <= d->msix_cap + 3 && reg + len > d->msix_cap + 2)
        pci_msix_update(d);
    if (d->ops && d->ops->config_written)
        d->ops->config_written(d, reg, len);
    pthread_mutex_unlock(&d->lock);
}

static void cf8_target(uint32_t cf8, uint16_t port, unsigned t[4])
{
    t[0] = cf8 >> 16 & 0xff;
    t[1] = cf8 >> 11 & 0x1f;
    t[2] = cf8 >> 8 & 7;
    t[3] = (cf8 & 0xfc) + (port & 3u);
}

uint32_t pci_port_read(struct pci_bus *b, uint16_t port, unsigned len)
{
    uint32_t cf8;
    unsigned t[4];

    pthread_mutex_lock(&b->lock);
    cf8 = b->cf8;
    pthread_mutex_unlock(&b->lock);
    if (port == 0xcf8 && len == 4)
        return cf8;
    if (port < 0xcfc || port > 0xcff || !(cf8 & 0x80000000))
        return UINT32_MAX;
    cf8_target(cf8, port, t);
    return pci_config_read(b, t[0], t[1], t[2], t[3], len);
}

void pci_port_write(struct pci_bus *b, uint16_t port, unsigned len, uint32_t value)
{
    uint32_t cf8;
    unsigned t[4];

    pthread_mutex_lock(&b->lock);
    if (port == 0xcf8 && len == 4)
        b->cf8 = value;
    cf8 = b->cf8;
    pthread_mutex_unlock(&b->lock);
    if (port < 0xcfc || port > 0xcff || !(cf8 & 0x80000000))
        return;
    cf8_target(cf8, port, t);
    pci_config_write(b, t[0], t[1], t[2], t[3], len, value);
}

/* ---- MMIO ---------------------------------------------------------------------- */

void pci_bar_read(struct pci_dev *d, unsigned bar, uint64_t off, void *data, unsigned len)
{
    memset(data, 0xff, len);
    if (bar >= PCI_BARS || off >= d->bar[bar].size || len > d->bar[bar].size - off)
        return;
    if (d->vectors && bar == d->msix_bar)
        pci_msix_read(d, off, data, len);
    else if (d->ops && d->ops->bar_read)
        d->ops->bar_read(d, bar, off, data, len);
}

void pci_bar_write(struct pci_dev *d, unsigned bar, uint64_t off, const void *data, unsigned len)
{
    if (bar >= PCI_BARS || off >= d->bar[bar].size || len > d->bar[bar].size - off)
        return;
    if (d->vectors && bar == d->msix_bar)
        pci_msix_write(d, off, data, len);
    else if (d->ops && d->ops->bar_write)
        d->ops->bar_write(d, bar, off, data, len);
}

bool pci_mmio_read(struct pci_bus *b, uint64_t gpa, void *data, unsigned len)
{
    struct pci_window w;

    if (!window_find(b, gpa, &w)) {
        memset(data, 0xff, len);
        return false;
    }
    pthread_mutex_lock(&w.dev->lock);
    pci_bar_read(w.dev, w.bar, gpa - w.gpa, data, len);
    pthread_mutex_unlock(&w.dev->lock);
    return true;
}

bool pci_mmio_write(struct pci_bus *b, uint64_t gpa, const void *data, unsigned len)
{
    struct pci_window w;

    if (!window_find(b, gpa, &w))
        return false;
    pthread_mutex_lock(&w.dev->lock);
    pci_bar_write(w.dev, w.bar, gpa - w.gpa, data, len);
    pthread_mutex_unlock(&w.dev->lock);
    return true;
}

/* ---- functions ------------------------------------------------------------------- */

/* Function 0 must say that there are others, or guests look no further. */
static void mark_multifunction(struct pci_bus *b, unsigned devfn)
{
    struct pci_dev *first = b->slot[devfn & ~7u];
    bool others = false;

    for (unsigned fn = 1; fn < 8; fn++)
        others |= b->slot[(devfn & ~7u) + fn] != NULL;
    if (first && others)
        first->config[0x0e] |= 0x80;
}

int pci_dev_init(struct pci_dev *d, struct pci_bus *b, unsigned devfn,
                 const struct pci_id *id, const struct pci_dev_ops *ops)
{
    if (devfn > 255)
        return -EINVAL;
    if (b->slot[devfn])
        return -EBUSY;
    memset(d, 0, sizeof(*d));
    pthread_mutex_init(&d->lock, NULL);
    d->bus = b;
    d->ops = ops;
    d->devfn = devfn;
    d->cap_end = 0x40;
    config_put32(d->config, 0x00, id->vendor | (uint32_t)id->device << 16);
    config_put32(d->config, 0x08, id->revision | id->class_code << 8);
    config_put32(d->config, 0x2c, id->sub_vendor | (uint32_t)id->sub_device << 16);
    config_put32(d->wmask, 0x04, COMMAND_WRITABLE);
    d->wmask[0x0c] = d->wmask[0x3c] = 0xff;     /* cache line size, interrupt line */
    b->slot[devfn] = d;
    mark_multifunction(b, devfn);
    return 0;
}

void pci_dev_fini(struct pci_dev *d)
{
    for (unsigned i = 0; i < PCI_BARS; i++) {
        if (d->bar[i].mapped)
            bar_unmap(d, i);
    }
    pci_msix_fini(d);
    d->bus->slot[d->devfn] = NULL;
    pthread_mutex_destroy(&d->lock);
}

int pci_dev_add_cap(struct pci_dev *d, uint8_t id, const void *body, const void *wmask,
                    unsigned len)
{
    unsigned at = (d->cap_end + 3) & ~3u;

    if (len > PCI_CONFIG_SIZE - 2 || at + 2 + len > PCI_CONFIG_SIZE)
        return -ENOSPC;
    d->config[at] = id;
    memcpy(d->config + at + 2, body, len);
    if (wmask)
        memcpy(d->wmask + at + 2, wmask, len);
    d->config[d->cap_last ? d->cap_last + 1 : 0x34] = (uint8_t)at;
    d->config[0x06] |= STATUS_CAPS;
    d->cap_last = at;
    d->cap_end = at + 2 + len;
    return (int)at;
}

int pci_host_bridge_init(struct pci_dev *d, struct pci_bus *b, unsigned devfn)
{
    /* The ids of a 440FX, which every guest knows and leaves alone. */
    static const struct pci_id id = { .vendor = 0x8086, .device = 0x1237, .revision = 2,
                                      .class_code = 0x060000 };
    int r = pci_dev_init(d, b, devfn, &id, NULL);

    if (r == 0)
        memset(d->wmask, 0, sizeof(d->wmask));
    return r;
}
