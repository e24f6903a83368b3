/*
 * virtio_pci.c - the modern virtio-pci transport (virtio 1.2, 4.1): where the
 * registers are and which accesses to them mean something.
 *
 * BAR 0: common configuration, ISR, device configuration and one doorbell of 4
 * bytes for each queue, a page each.  BAR 2: MSI-X, one vector for each queue
 * and one for the configuration.  Reads of any width see the registers as bytes;
 * writes count only with a field's own width (64-bit fields: also as two halves),
 * everything else is dropped.
 */
#include "vmm-shim/virtio.h"

#include <errno.h>
#include <string.h>

enum {
    REGS_BAR = 0, MSIX_BAR = 2,
    REGS_SIZE = 0x4000, COMMON = 0x0000, ISR = 0x1000, DEVICE = 0x2000, NOTIFY = 0x3000,
    NOTIFY_STRIDE = 4,
};

enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_PCI = 5 };

/* struct virtio_pci_common_cfg, 4.1.4.3 */
struct common_cfg {
    uint32_t device_feature_select, device_feature;
    uint32_t driver_feature_select, driver_feature;
    uint16_t config_msix_vector, num_queues;
    uint8_t device_status, config_generation;
    uint16_t queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
    uint64_t queue_desc, queue_driver, queue_device;
};
_Static_assert(sizeof(struct common_cfg) == 56, "layout of the common configuration");

#define FIELD(name) offsetof(struct common_cfg, name)

/* ---- common configuration --------------------------------------------------------- */

static void common_fill(struct virtio_dev *d, struct common_cfg *c)
{
    const struct virtio_queue_regs *r = virtio_selected(d, false);

    memset(c, 0, sizeof(*c));
    c->device_feature_select = d->offered_select;
    c->device_feature = virtio_get_features(d, d->offered_select);
    c->driver_feature_select = d->driver_select;
    if (d->driver_select < 2)
        c->driver_feature = (uint32_t)(d->driver_features >> 32 * d->driver_select);
    c->config_msix_vector = (uint16_t)atomic_load(&d->config_vector);
    c->num_queues = (uint16_t)d->queues;
    c->device_status = d->status;
    c->config_generation = d->generation;
    c->queue_select = d->queue_select;
    if (!r)
        return;                     /* size 0: there is no such queue */
    c->queue_size = r->size;
    c->queue_msix_vector = (uint16_t)atomic_load(&r->vector);
    c->queue_enable = r->enabled;
    c->queue_notify_off = d->queue_select;
    c->queue_desc = r->desc;
    c->queue_driver = r->avail;
    c->queue_device = r->used;
}

static unsigned valid_vector(const struct virtio_dev *d, uint64_t v)
{
    return v < d->pci.vectors ? (unsigned)v : VIRTIO_NO_VECTOR;
}

/* A queue's address: whole, or the half at off. */
static void address_write(uint64_t *field, uint64_t off, unsigned len, uint64_t v)
{
    if (len == 8 && off == 0)
        *field = v;
    else if (len == 4 && off == 0)
        *field = (*field & ~0xffffffffull) | v;
    else if (len == 4 && off == 4)
        *field = (*field & 0xffffffffull) | v << 32;
}

static void queue_write(struct virtio_dev *d, uint64_t off, unsigned len, uint64_t v)
{
    struct virtio_queue_regs *r = virtio_selected(d, false);

    if (r && off == FIELD(queue_msix_vector) && len == 2)
        atomic_store(&r->vector, valid_vector(d, v));   /* at any time */
    r = virtio_selected(d, true);
    if (!r)
        return;
    if (off == FIELD(queue_enable) && len == 2 && v == 1) {
        virtio_enable_queue(d);
        return;
    }
    if (r->enabled)
        return;                     /* frozen from here on, until a reset */
    if (off == FIELD(queue_size) && len == 2) {
        if (v && v <= d->queue_size && !(v & (v - 1)))
            r->size = (uint16_t)v;
    } else if (off >= FIELD(queue_desc)) {
        uint64_t *field[] = { &r->desc, &r->avail, &r->used };

        address_write(field[(off - FIELD(queue_desc)) / 8], off % 8, len, v);
    }
}

static void common_write(struct virtio_dev *d, uint64_t off, unsigned len, uint64_t v)
{
    if (off == FIELD(device_status) && len == 1)
        virtio_set_status(d, (uint8_t)v);
    else if (d->resetting)
        return;
    else if (off == FIELD(device_feature_select) && len == 4)
        d->offered_select = (uint32_t)v;
    else if (off == FIELD(driver_feature_select) && len == 4)
        d->driver_select = (uint32_t)v;
    else if (off == FIELD(driver_feature) && len == 4)
        virtio_set_features(d, d->driver_select, (uint32_t)v);
    else if (off == FIELD(config_msix_vector) && len == 2)
        atomic_store(&d->config_vector, valid_vector(d, v));
    else if (off == FIELD(queue_select) && len == 2)
        d->queue_select = (uint16_t)v;
    else if (off > FIELD(queue_select))
        queue_write(d, off, len, v);
}

/* ---- BAR 0 -------------------------------------------------------------------------- */

/* Bytes [off, off + len) of a structure of size bytes; zeros past its end. */
static void read_part(const void *from, unsigned size, uint64_t off, void *data, unsigned len)
{
    memset(data, 0, len);
    if (off < size)
        memcpy(data, (const uint8_t *)from + off, BLK_MIN(len, size - off));
}

static void regs_read(struct pci_dev *p, unsigned bar, uint64_t off, void *data, unsigned len)
{
    struct virtio_dev *d = blk_container_of(p, struct virtio_dev, pci);
    struct common_cfg c;
    uint8_t isr;

    if (off < ISR) {
        common_fill(d, &c);
        read_part(&c, sizeof(c), off - COMMON, data, len);
    } else if (off < DEVICE) {
        isr = off == ISR ? (uint8_t)atomic_exchange(&d->isr, 0) : 0;
        read_part(&isr, 1, 0, data, len);
    } else if (off < NOTIFY) {
        unsigned at = (unsigned)(off - DEVICE), size = d->type->config_size;

        memset(data, 0, len);
        if (at < size)
            d->type->config_read(d, at, data, BLK_MIN(len, size - at));
    } else {
        memset(data, 0, len);
    }
}

static void regs_write(struct pci_dev *p, unsigned bar, uint64_t off, const void *data,
                       unsigned len)
{
    struct virtio_dev *d = blk_container_of(p, struct virtio_dev, pci);
    uint64_t v = 0;

    if (len > sizeof(v))
        return;
    memcpy(&v, data, len);
    if (off < ISR) {
        if (off + len <= sizeof(struct common_cfg))
            common_write(d, off - COMMON, len, v);
    } else if (off >= DEVICE && off < NOTIFY) {
        unsigned at = (unsigned)(off - DEVICE);

        if (!d->resetting && at + len <= d->type->config_size)
            d->type->config_write(d, at, data, len);
    } else if (off >= NOTIFY) {
        if ((off - NOTIFY) % NOTIFY_STRIDE == 0)
            virtio_kick(d, (unsigned)(off - NOTIFY) / NOTIFY_STRIDE);
    }
}

/* ---- the window in configuration space (4.1.4.9) ------------------------------------- */

/* Where in the capability: bar at 4, offset at 8, length at 12, data at 16. */
static bool window_get(const struct virtio_dev *d, unsigned reg, unsigned *bar, uint32_t *off,
                       uint32_t *len)
{
    const uint8_t *cap = d->pci.config + d->pci_cfg_cap;

    if (reg < d->pci_cfg_cap + 16 || reg >= d->pci_cfg_cap + 20)
        return false;
    *bar = cap[4];
    memcpy(off, cap + 8, 4);
    memcpy(len, cap + 12, 4);
    return (*len == 1 || *len == 2 || *len == 4) && *off % *len == 0;
}

static void window_read(struct pci_dev *p, unsigned reg, unsigned width)
{
    struct virtio_dev *d = blk_container_of(p, struct virtio_dev, pci);
    uint32_t off, len;
    unsigned bar;

    if (window_get(d, reg, &bar, &off, &len))
        pci_bar_read(p, bar, off, p->config + d->pci_cfg_cap + 16, len);
}

static void window_written(struct pci_dev *p, unsigned reg, unsigned width)
{
    struct virtio_dev *d = blk_container_of(p, struct virtio_dev, pci);
    uint32_t off, len;
    uint8_t data[4];
    unsigned bar;

    if (!window_get(d, reg, &bar, &off, &len))
        return;
    memcpy(data, p->config + d->pci_cfg_cap + 16, 4);
    pci_bar_write(p, bar, off, data, len);
}

/* ---- set-up ----------------------------------------------------------------------------- */

static const struct pci_dev_ops virtio_pci_ops = {
    .bar_read = regs_read,
    .bar_write = regs_write,
    .config_read = window_read,
    .config_written = window_written,
};

/* struct virtio_pci_cap without its first two bytes, then extra bytes. */
static int cap_add(struct virtio_dev *d, uint8_t type, uint32_t off, uint32_t size,
                   unsigned extra, uint32_t extra_value, const uint8_t *wmask)
{
    uint8_t body[18] = { 0 };
    unsigned len = 14 + extra;

    body[0] = (uint8_t)(len + 2);
    body[1] = type;
    body[2] = REGS_BAR;
    memcpy(body + 6, &off, 4);
    memcpy(body + 10, &size, 4);
    memcpy(body + 14, &extra_value, 4);
    return pci_dev_add_cap(&d->pci, 0x09, body, wmask, len);
}

static int caps_add(struct virtio_dev *d)
{
    static const uint8_t window_mask[18] = { [2] = 0xff, [6] = 0xff, 0xff, 0xff, 0xff,
                                             0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
    uint32_t bells = d->queues * NOTIFY_STRIDE;
    int r;

    r = pci_dev_add_msix(&d->pci, MSIX_BAR, d->queues + 1);
    if (r < 0)
        return r;
    r = cap_add(d, CAP_COMMON, COMMON, sizeof(struct common_cfg), 0, 0, NULL);
    if (r >= 0)
        r = cap_add(d, CAP_ISR, ISR, 1, 0, 0, NULL);
    if (r >= 0)
        r = cap_add(d, CAP_DEVICE, DEVICE, d->type->config_size, 0, 0, NULL);
    if (r >= 0)
        r = cap_add(d, CAP_NOTIFY, NOTIFY, bells, 4, NOTIFY_STRIDE, NULL);
    if (r >= 0)
        r = cap_add(d, CAP_PCI, 0, 0, 4, 0, window_mask);
    if (r >= 0)
        d->pci_cfg_cap = (unsigned)r;
    return r < 0 ? r : 0;
}

int virtio_pci_init(struct virtio_dev *d, struct pci_bus *bus, unsigned devfn)
{
    struct pci_id id = {
        .vendor = 0x1af4, .device = (uint16_t)(0x1040 + d->type->id),
        .sub_vendor = 0x1af4, .sub_device = 0x1100, .revision = 1,
        .class_code = d->type->class_code,
    };
    int r = pci_dev_init(&d->pci, bus, devfn, &id, &virtio_pci_ops);

    if (r < 0)
        return r;
    pci_dev_add_bar(&d->pci, REGS_BAR, REGS_SIZE, true);
    r = caps_add(d);
    for (unsigned i = 0; i < d->queues && r == 0; i++)
        r = pci_dev_add_doorbell(&d->pci, REGS_BAR, NOTIFY + i * NOTIFY_STRIDE, 2,
                                 d->queue[i].kick_fd);
    if (r < 0)
        pci_dev_fini(&d->pci);
    return r;
}
