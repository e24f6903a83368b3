/*
 * mem.c - the map of guest memory.  Invariant: regions are sorted, disjoint and
 * none of them wraps, so mem_at() needs one subtraction to be right.
 */
#include "vmm-shim/mem.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

int mem_add(struct mem *m, uint64_t gpa, uint64_t size, void *hva)
{
    uint64_t end;
    unsigned at = 0;

    if (!size || !hva || __builtin_add_overflow(gpa, size - 1, &end))
        return -EINVAL;
    if (m->count == MEM_REGIONS)
        return -ENOSPC;
    while (at < m->count && m->region[at].gpa < gpa)
        at++;
    if (at > 0 && gpa - m->region[at - 1].gpa < m->region[at - 1].size)
        return -EINVAL;
    if (at < m->count && m->region[at].gpa <= end)
        return -EINVAL;
    memmove(&m->region[at + 1], &m->region[at], (m->count - at) * sizeof(m->region[0]));
    m->region[at] = (struct mem_region){ .gpa = gpa, .size = size, .hva = hva };
    m->count++;
    return 0;
}

int mem_add_anon(struct mem *m, uint64_t gpa, uint64_t size, bool hugepages)
{
    void *p;
    int r;

    if (size > SIZE_MAX)
        return -EINVAL;
    p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
             -1, 0);
    if (p == MAP_FAILED)
        return -errno;
    if (hugepages)
        madvise(p, size, MADV_HUGEPAGE);
    r = mem_add(m, gpa, size, p);
    if (r < 0) {
        munmap(p, size);
        return r;
    }
    for (unsigned i = 0; i < m->count; i++) {
        if (m->region[i].hva == p)
            m->region[i].owned = true;
    }
    return 0;
}

void mem_free(struct mem *m)
{
    for (unsigned i = 0; i < m->count; i++) {
        if (m->region[i].owned)
            munmap(m->region[i].hva, m->region[i].size);
    }
    m->count = 0;
}

uint64_t mem_total(const struct mem *m)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < m->count; i++)
        sum += m->region[i].size;
    return sum;
}

int mem_read(const struct mem *m, uint64_t gpa, void *dst, size_t len)
{
    const void *p = mem_at(m, gpa, len);

    if (!p)
        return -EFAULT;
    memcpy(dst, p, len);
    return 0;
}

int mem_write(const struct mem *m, uint64_t gpa, const void *src, size_t len)
{
    void *p = mem_at(m, gpa, len);

    if (!p)
        return -EFAULT;
    memcpy(p, src, len);
    return 0;
}
