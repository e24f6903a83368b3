/*
 * mem.h - guest memory: a few regions of guest-physical addresses and where
 * they are in this process.  Every address that comes from a guest becomes a
 * pointer here and nowhere else.
 *
 * Regions are added before the first vCPU or loop thread uses the map and stay
 * as they are afterwards, so lookups take no lock (any thread).
 */
#ifndef PLATTER_MEM_H
#define PLATTER_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MEM_REGIONS 8u

struct mem_region {
    uint64_t gpa, size;             /* bytes; gpa + size does not wrap */
    uint8_t *hva;
    bool owned;                     /* mapped by mem_add_anon() */
};

/* Zero-initialise.  Sorted by gpa, regions never overlap. */
struct mem {
    struct mem_region region[MEM_REGIONS];
    unsigned count;
};

/* hva stays the caller's. -EINVAL: empty, wraps or overlaps; -ENOSPC: too many. */
int mem_add(struct mem *m, uint64_t gpa, uint64_t size, void *hva);
/* Anonymous zeroed memory, not reserved; hugepages: madvise for them. */
int mem_add_anon(struct mem *m, uint64_t gpa, uint64_t size, bool hugepages);
/* Unmaps what mem_add_anon() mapped; the map is empty afterwards. */
void mem_free(struct mem *m);
uint64_t mem_total(const struct mem *m);

/* Pointer to guest bytes [gpa, gpa + len), or NULL unless all of them lie in
 * one region: no wrap, no hole, no end crossed.  len 0 is NULL too. */
static inline void *mem_at(const struct mem *m, uint64_t gpa, uint64_t len)
{
    for (unsigned i = 0; i < m->count; i++) {
        const struct mem_region *r = &m->region[i];
        uint64_t off = gpa - r->gpa;

        if (gpa >= r->gpa && off < r->size)
            return len && len <= r->size - off ? r->hva + off : NULL;
    }
    return NULL;
}

/* Copies; 0 or -EFAULT (nothing copied). */
int mem_read(const struct mem *m, uint64_t gpa, void *dst, size_t len);
int mem_write(const struct mem *m, uint64_t gpa, const void *src, size_t len);

#endif
