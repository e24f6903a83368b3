/*
 * pci_internal.h - between pci.c and msix.c.  All under d->lock.
 */
#ifndef PLATTER_PCI_INTERNAL_H
#define PLATTER_PCI_INTERNAL_H

#include "vmm-shim/pci.h"

/* The capability's control word may have changed: bind or unbind all vectors. */
void pci_msix_update(struct pci_dev *d);
/* Access to the BAR that holds table and PBA; off + len is inside it. */
void pci_msix_read(struct pci_dev *d, uint64_t off, void *data, unsigned len);
void pci_msix_write(struct pci_dev *d, uint64_t off, const void *data, unsigned len);
void pci_msix_fini(struct pci_dev *d);

#endif
