/*
 * boot_linux.c - see boot_linux.h.
 *
 * Placement: the kernel at its preferred address (16 MiB for distribution
 * kernels) with init_size bytes of its own to unpack in, the initrd as high in
 * low memory as initrd_addr_max allows; the rest as in layout.h.
 */
#include "vmm-shim/boot_linux.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm-shim/layout.h"

#define HEADER_OFFSET   0x1f1u      /* of struct setup_header in the file */
#define JUMP_END        0x201u      /* its length is counted from 0x202 */
#define BOOT_FLAG       0xaa55u
#define PROTOCOL_MIN    0x020cu     /* xloadflags; Linux 3.8 */
#define ENTRY64_OFFSET  0x200u
#define SECTOR          512u
#define LOADER_OTHER    0xffu
#define VIDEO_NORMAL    0xffffu
#define CMDLINE_OLD_MAX 255u
#define E820_RAM        1u
#define E820_RESERVED   2u
#define PAGE            4096ull
#define PTE_TABLE       0x03ull     /* present, writable */
#define PTE_LARGE       0x83ull     /* and 2 MiB */

/* A kernel file after its header was checked. */
struct bzimage {
    const char *name;
    int fd;
    uint64_t size;                  /* of the file */
    uint64_t setup_size;            /* what precedes the protected-mode part */
    uint64_t load, span;            /* guest range the kernel needs */
    struct setup_header hdr;
};

/* ---- files ----------------------------------------------------------------------- */

static int open_regular(const char *name, const char *what, uint64_t *size, struct blk_error *e)
{
    /* O_NONBLOCK: a fifo must not make the open wait. */
    int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;

    if (fd < 0)
        return blk_err_errno(e, errno, "Could not open %s '%s'", what, name);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return blk_err(e, EINVAL, "%s '%s' is not a regular file", what, name);
    }
    *size = (uint64_t)st.st_size;
    return fd;
}

static int read_exact(int fd, const char *name, void *dst, uint64_t len, uint64_t off,
                      struct blk_error *e)
{
    uint8_t *p = dst;

    while (len > 0) {
        ssize_t n = pread(fd, p, len, (off_t)off);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return blk_err_errno(e, errno, "Could not read '%s' at offset %llu", name,
                                 (unsigned long long)off);
        if (n == 0)
            return blk_err(e, EIO, "'%s' ended at offset %llu while it was read", name,
                           (unsigned long long)off);
        p += n;
        len -= (uint64_t)n;
        off += (uint64_t)n;
    }
    return 0;
}

/* ---- the header --------------------------------------------------------------------- */

static const char *other_kind(const uint8_t *b)
{
    if (memcmp(b, "\177ELF", 4) == 0)
        return " (an ELF file: give the bzImage, usually called vmlinuz)";
    if (memcmp(b, "\037\213", 2) == 0)
        return " (a gzip file: unpack it first)";
    if (memcmp(b, "\x28\xb5\x2f\xfd", 4) == 0)
        return " (a zstd file: unpack it first)";
    return "";
}

static int check_kind(const struct bzimage *k, const uint8_t *first, struct blk_error *e)
{
    const struct setup_header *h = &k->hdr;

    if (h->boot_flag != BOOT_FLAG || memcmp(&h->header, "HdrS", 4) != 0)
        return blk_err(e, EINVAL, "kernel '%s' is not a Linux bzImage%s", k->name,
                       other_kind(first));
    if (h->version < PROTOCOL_MIN)
        return blk_err(e, ENOTSUP, "kernel '%s' speaks boot protocol %u.%02u; 2.12 (Linux 3.8) "
                       "or newer is needed", k->name, h->version >> 8, h->version & 0xffu);
    if (!(h->loadflags & LOADED_HIGH))
        return blk_err(e, ENOTSUP, "kernel '%s' is a zImage; a bzImage is needed", k->name);
    if (!(h->xloadflags & XLF_KERNEL_64))
        return blk_err(e, ENOTSUP, "kernel '%s' has no 64-bit entry point", k->name);
    return 0;
}

/* Sizes and places that the header claims, against file and memory. */
static int check_places(struct bzimage *k, uint64_t low_end, struct blk_error *e)
{
    const struct setup_header *h = &k->hdr;
    unsigned sectors = h->setup_sects ? h->setup_sects : 4;
    uint64_t payload, claimed = (uint64_t)h->syssize * 16;

    k->setup_size = (sectors + 1ull) * SECTOR;
    if (k->size <= k->setup_size + ENTRY64_OFFSET)
        return blk_err(e, EINVAL, "kernel '%s' is truncated: %llu bytes, its header promises "
                       "more than %llu", k->name, (unsigned long long)k->size,
                       (unsigned long long)k->setup_size + ENTRY64_OFFSET);
    payload = k->size - k->setup_size;
    if (payload + 15 < claimed)     /* syssize is rounded up */
        return blk_err(e, EINVAL, "kernel '%s' is truncated: %llu bytes, its header promises "
                       "%llu", k->name, (unsigned long long)k->size,
                       (unsigned long long)(k->setup_size + claimed));
    k->load = h->pref_address;
    if (k->load < LAYOUT_KERNEL_MIN || k->load >= LAYOUT_LOW_MAX || k->load % PAGE)
        return blk_err(e, EINVAL, "kernel '%s' wants to be loaded at 0x%llx, where it cannot be",
                       k->name, (unsigned long long)k->load);
    k->span = BLK_MAX((uint64_t)h->init_size, payload);
    if (k->load + k->span > low_end)
        return blk_err(e, ENOMEM, "kernel '%s' needs at least %llu MiB of memory (--memory)",
                       k->name, (unsigned long long)((k->load + k->span + (1 << 20) - 1) >> 20));
    return 0;
}

static int open_kernel(struct bzimage *k, const char *name, uint64_t low_end, struct blk_error *e)
{
    uint8_t first[JUMP_END + 1 + 256] = { 0 };
    size_t len;
    int ret;

    k->name = name;
    k->fd = open_regular(name, "kernel", &k->size, e);
    if (k->fd < 0)
        return k->fd;
    if (k->size < sizeof(first))
        ret = blk_err(e, EINVAL, "kernel '%s' is not a Linux bzImage: it has %llu bytes", name,
                      (unsigned long long)k->size);
    else
        ret = read_exact(k->fd, name, first, sizeof(first), 0, e);
    if (ret == 0) {
        /* A jump's distance at 0x201 says where the header ends. */
        len = JUMP_END + 1 + first[JUMP_END] - HEADER_OFFSET;
        memcpy(&k->hdr, first + HEADER_OFFSET, BLK_MIN(len, sizeof(k->hdr)));
        ret = check_kind(k, first, e);
    }
    if (ret == 0)
        ret = check_places(k, low_end, e);
    if (ret < 0)
        close(k->fd);
    return ret;
}

/* ---- placing ------------------------------------------------------------------------- */

static int load_kernel(const struct mem *m, const struct bzimage *k, struct blk_error *e)
{
    uint64_t len = k->size - k->setup_size;
    void *dst = mem_at(m, k->load, len);

    if (!dst)
        return blk_err(e, ENOMEM, "no memory for kernel '%s' at 0x%llx", k->name,
                       (unsigned long long)k->load);
    return read_exact(k->fd, k->name, dst, len, k->setup_size, e);
}

static int load_initrd(const struct mem *m, const struct bzimage *k, const char *name,
                       uint64_t low_end, struct setup_header *h, struct blk_error *e)
{
    uint64_t top = BLK_MIN(low_end, k->hdr.initrd_addr_max + 1ull);
    uint64_t floor = k->load + k->span;
    uint64_t size, at = 0;
    void *dst = NULL;
    int ret, fd = open_regular(name, "initrd", &size, e);

    if (fd < 0)
        return fd;
    if (size == 0) {
        ret = blk_err(e, EINVAL, "initrd '%s' is empty", name);
        goto out;
    }
    if (size <= top) {
        at = (top - size) & ~(PAGE - 1);
        dst = at >= floor ? mem_at(m, at, size) : NULL;
    }
    if (!dst) {
        ret = blk_err(e, ENOMEM, "initrd '%s' (%llu MiB) does not fit into guest memory "
                      "(--memory)", name, (unsigned long long)((size + (1 << 20) - 1) >> 20));
        goto out;
    }
    ret = read_exact(fd, name, dst, size, 0, e);
    h->ramdisk_image = (uint32_t)at;
    h->ramdisk_size = (uint32_t)size;
out:
    close(fd);
    return ret;
}

static int place_cmdline(const struct mem *m, const struct bzimage *k, const char *text,
                         struct blk_error *e)
{
    uint64_t max = k->hdr.cmdline_size ? k->hdr.cmdline_size : CMDLINE_OLD_MAX;
    size_t len = strlen(text);

    max = BLK_MIN(max, LAYOUT_CMDLINE_MAX - 1);
    if (len > max)
        return blk_err(e, E2BIG, "the kernel command line has %zu bytes; kernel '%s' takes %llu",
                       len, k->name, (unsigned long long)max);
    return mem_write(m, LAYOUT_CMDLINE, text, len + 1);
}

static void add_e820(struct boot_params *bp, uint64_t start, uint64_t end, uint32_t type)
{
    if (start >= end || bp->e820_entries == E820_MAX_ENTRIES_ZEROPAGE)
        return;
    bp->e820_table[bp->e820_entries++] = (struct boot_e820_entry){
        .addr = start, .size = end - start, .type = type,
    };
}

static void fill_e820(struct boot_params *bp, const struct mem *m)
{
    add_e820(bp, 0, LAYOUT_EBDA, E820_RAM);
    add_e820(bp, LAYOUT_EBDA, 0xa0000, E820_RESERVED);
    add_e820(bp, LAYOUT_ACPI, LAYOUT_ACPI + LAYOUT_ACPI_MAX, E820_RESERVED);
    for (unsigned i = 0; i < m->count; i++) {
        const struct mem_region *r = &m->region[i];

        add_e820(bp, BLK_MAX(r->gpa, LAYOUT_KERNEL_MIN), r->gpa + r->size, E820_RAM);
    }
}

/* The first 4 GiB mapped one to one in 2 MiB pages. */
static int place_page_tables(const struct mem *m)
{
    uint64_t *t = mem_at(m, LAYOUT_PAGE_TABLES, 6 * PAGE);

    if (!t)
        return -EFAULT;
    memset(t, 0, 6 * PAGE);
    t[0] = (LAYOUT_PAGE_TABLES + PAGE) | PTE_TABLE;
    for (uint64_t i = 0; i < 4; i++)
        t[512 + i] = (LAYOUT_PAGE_TABLES + (2 + i) * PAGE) | PTE_TABLE;
    for (uint64_t i = 0; i < 4 * 512; i++)
        t[1024 + i] = i << 21 | PTE_LARGE;
    return 0;
}

static int place_gdt(const struct mem *m)
{
    static const uint64_t gdt[4] = {
        0, 0,
        0x00af9b000000ffffull,      /* 0x10: 64-bit code */
        0x00cf93000000ffffull,      /* 0x18: data */
    };

    return mem_write(m, LAYOUT_GDT, gdt, sizeof(gdt));
}

static int place_zero_page(const struct mem *m, const struct setup_header *h)
{
    struct boot_params *bp = mem_at(m, LAYOUT_ZERO_PAGE, sizeof(*bp));

    if (!bp)
        return -EFAULT;
    memset(bp, 0, sizeof(*bp));
    bp->hdr = *h;
    bp->acpi_rsdp_addr = LAYOUT_ACPI;
    fill_e820(bp, m);
    return 0;
}

static int place_all(const struct mem *m, const struct bzimage *k, const struct boot_files *f,
                     uint64_t low_end, struct blk_error *e)
{
    struct setup_header h = k->hdr;
    int ret = load_kernel(m, k, e);

    h.type_of_loader = LOADER_OTHER;
    h.vid_mode = VIDEO_NORMAL;
    h.cmd_line_ptr = (uint32_t)LAYOUT_CMDLINE;
    h.code32_start = (uint32_t)k->load;
    h.ramdisk_image = h.ramdisk_size = 0;
    h.setup_data = 0;
    if (ret == 0 && f->initrd)
        ret = load_initrd(m, k, f->initrd, low_end, &h, e);
    if (ret == 0)
        ret = place_cmdline(m, k, f->cmdline, e);
    if (ret == 0)
        ret = place_page_tables(m);
    if (ret == 0)
        ret = place_gdt(m);
    if (ret == 0)
        ret = place_zero_page(m, &h);
    return ret;
}

int boot_linux_load(const struct mem *m, const struct boot_files *f, struct boot_entry *out,
                    struct blk_error *e)
{
    uint64_t low_end = m->count && m->region[0].gpa == 0 ? m->region[0].size : 0;
    struct bzimage k = { .fd = -1 };
    int ret = open_kernel(&k, f->kernel, low_end, e);

    if (ret < 0)
        return ret;
    ret = place_all(m, &k, f, low_end, e);
    close(k.fd);
    if (ret < 0)
        return blk_err(e, -ret, "kernel '%s' could not be placed in guest memory", f->kernel);
    *out = (struct boot_entry){
        .rip = k.load + ENTRY64_OFFSET,
        .rsi = LAYOUT_ZERO_PAGE,
        .rsp = LAYOUT_STACK,
        .cr3 = LAYOUT_PAGE_TABLES,
        .gdt = LAYOUT_GDT,
    };
    return 0;
}
