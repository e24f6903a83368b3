/*
 * msix.c - MSI-X of one function (PCI Local Bus 3.0, 6.8.2).
 *
 * A vector is an eventfd.  Invariant: it is bound at the host exactly while
 * MSI-X is enabled, the function is not masked and the vector is not masked;
 * unbound, what was signalled stays in its count, which is the pending bit, and
 * binding delivers it.  So signalling needs no lock and loses nothing.
 */
#include "vmm-shim/pci.h"
#include "vmm-shim/pci_internal.h"

#include "block/block.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MSIX_BAR_SIZE 4096u
#define MSIX_PBA      2048u         /* after PCI_VECTORS_MAX entries of 16 bytes */
#define MSIX_ENABLE   0x8000u
#define MSIX_MASKALL  0x4000u
#define VECTOR_MASKED 1u

static unsigned msix_control(const struct pci_dev *d)
{
    return d->config[d->msix_cap + 2] | (unsigned)d->config[d->msix_cap + 3] << 8;
}

/* Bring one vector's binding in line with its masks; again: its message changed. */
static void vector_update(struct pci_dev *d, struct pci_vector *v, bool again)
{
    const struct pci_host *h = &d->bus->host;
    unsigned control = msix_control(d);
    bool deliver = (control & MSIX_ENABLE) && !(control & MSIX_MASKALL) &&
                   !(v->control & VECTOR_MASKED);
    int r;

    if (deliver && (!v->bound || again)) {
        r = h->ops->msi_bind(h->arg, v->fd, v->addr, v->data, &v->route);
        v->bound = r == 0;
        if (r < 0)
            blk_report("PCI %02x.%x: cannot bind an MSI-X vector: %s", d->devfn >> 3,
                       d->devfn & 7, strerror(-r));
    } else if (!deliver && v->bound) {
        h->ops->msi_unbind(h->arg, v->fd, v->route);
        v->bound = false;
    }
}

void pci_msix_update(struct pci_dev *d)
{
    atomic_store(&d->msix_enabled, (msix_control(d) & MSIX_ENABLE) != 0);
    for (unsigned i = 0; i < d->vectors; i++)
        vector_update(d, &d->vector[i], false);
}

static bool vector_pending(const struct pci_vector *v)
{
    struct pollfd p = { .fd = v->fd, .events = POLLIN };

    return !v->bound && poll(&p, 1, 0) == 1;
}

static void table_get(const struct pci_vector *v, uint8_t entry[16])
{
    memcpy(entry, &v->addr, 8);
    memcpy(entry + 8, &v->data, 4);
    memcpy(entry + 12, &v->control, 4);
}

/* The specification allows aligned 4 and 8 byte accesses only. */
static bool msix_access_ok(uint64_t off, unsigned len)
{
    return (len == 4 || len == 8) && off % len == 0;
}

void pci_msix_read(struct pci_dev *d, uint64_t off, void *data, unsigned len)
{
    uint8_t entry[16];

    memset(data, 0, len);
    if (!msix_access_ok(off, len))
        return;
    if (off < d->vectors * 16ull) {
        table_get(&d->vector[off / 16], entry);
        memcpy(data, entry + off % 16, len);
    } else if (off >= MSIX_PBA) {
        unsigned first = (unsigned)(off - MSIX_PBA) * 8;

        for (unsigned i = first; i < d->vectors && i < first + len * 8; i++) {
            if (vector_pending(&d->vector[i]))
                ((uint8_t *)data)[(i - first) / 8] |= (uint8_t)(1u << i % 8);
        }
    }
}

void pci_msix_write(struct pci_dev *d, uint64_t off, const void *data, unsigned len)
{
    struct pci_vector *v;
    uint8_t entry[16];

    if (!msix_access_ok(off, len) || off >= d->vectors * 16ull)
        return;
    v = &d->vector[off / 16];
    table_get(v, entry);
    memcpy(entry + off % 16, data, len);
    memcpy(&v->addr, entry, 8);
    memcpy(&v->data, entry + 8, 4);
    memcpy(&v->control, entry + 12, 4);
    v->control &= VECTOR_MASKED;
    vector_update(d, v, off % 16 < 12);
}

int pci_dev_add_msix(struct pci_dev *d, unsigned bar, unsigned vectors)
{
    uint8_t body[10] = { 0 }, wmask[10] = { 0, 0xc0 };
    uint32_t table = bar, pba = MSIX_PBA | bar;
    int cap;

    if (!vectors || vectors > PCI_VECTORS_MAX)
        return -EINVAL;
    for (unsigned i = 0; i < vectors; i++) {
        struct pci_vector *v = &d->vector[i];

        *v = (struct pci_vector){ .control = VECTOR_MASKED, .route = -1 };
        v->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (v->fd < 0) {
            int err = errno;

            while (i--)
                close(d->vector[i].fd);
            return -err;
        }
    }
    body[0] = (uint8_t)(vectors - 1);
    memcpy(body + 2, &table, 4);
    memcpy(body + 6, &pba, 4);
    cap = pci_dev_add_cap(d, 0x11, body, wmask, sizeof(body));
    d->vectors = vectors;
    if (cap < 0) {
        pci_msix_fini(d);
        return cap;
    }
    d->msix_cap = (unsigned)cap;
    d->msix_bar = bar;
    pci_dev_add_bar(d, bar, MSIX_BAR_SIZE, true);
    return 0;
}

void pci_msix_signal(struct pci_dev *d, unsigned vector)
{
    uint64_t one = 1;

    if (vector < d->vectors)
        (void)!write(d->vector[vector].fd, &one, sizeof(one));
}

void pci_msix_fini(struct pci_dev *d)
{
    const struct pci_host *h = &d->bus->host;

    for (unsigned i = 0; i < d->vectors; i++) {
        if (d->vector[i].bound)
            h->ops->msi_unbind(h->arg, d->vector[i].fd, d->vector[i].route);
        close(d->vector[i].fd);
    }
    d->vectors = 0;
}
