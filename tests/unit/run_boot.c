/*
 * run_boot.c - the bzImage loader: what a good kernel gets, and one line for
 * everything a kernel file can claim that is not so.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include <asm/bootparam.h>

#include "vmm-shim/boot_linux.h"
#include "vmm-shim/layout.h"

#define MEMORY  (32u << 20)
#define PAYLOAD 4096u
#define SETUP   1024u               /* one setup sector and the boot sector */
#define LOAD    0x1000000u

static char dir[64], kernel[96], initrd[96];
static struct mem mem;
static uint8_t image[SETUP + PAYLOAD];
static struct setup_header *hdr = (struct setup_header *)(image + 0x1f1);
static struct blk_error err;
static struct boot_entry entry;
static char cmdline[70000];

static void write_file(const char *name, const void *data, size_t len)
{
    FILE *f = fopen(name, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

static int setup(void **state)
{
    const char *tmp = getenv("TMPDIR");

    snprintf(dir, sizeof(dir), "%.40s/boot.XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    snprintf(kernel, sizeof(kernel), "%s/kernel", dir);
    snprintf(initrd, sizeof(initrd), "%s/initrd", dir);
    memset(&mem, 0, sizeof(mem));
    assert_int_equal(mem_add_anon(&mem, 0, MEMORY, false), 0);

    memset(image, 0, sizeof(image));
    memset(image + SETUP, 0x90, PAYLOAD);
    image[0x201] = 0x6a;            /* jmp over the header */
    hdr->setup_sects = 1;
    hdr->syssize = PAYLOAD / 16;
    hdr->boot_flag = 0xaa55;
    memcpy(&hdr->header, "HdrS", 4);
    hdr->version = 0x020f;
    hdr->loadflags = LOADED_HIGH;
    hdr->xloadflags = XLF_KERNEL_64;
    hdr->initrd_addr_max = 0x7fffffff;
    hdr->cmdline_size = 2047;
    hdr->pref_address = LOAD;
    hdr->init_size = 1 << 20;
    hdr->relocatable_kernel = 1;
    strcpy(cmdline, "console=ttyS0");
    blk_error_clear(&err);
    return 0;
}

static int teardown(void **state)
{
    mem_free(&mem);
    unlink(kernel);
    unlink(initrd);
    return rmdir(dir);
}

static int load_len(size_t len, bool with_initrd)
{
    struct boot_files f = { kernel, with_initrd ? initrd : NULL, cmdline };

    write_file(kernel, image, len);
    return boot_linux_load(&mem, &f, &entry, &err);
}

static int load(bool with_initrd)
{
    return load_len(sizeof(image), with_initrd);
}

/* Refused, in one line that says this. */
static void refused(int ret, int code, const char *text)
{
    assert_int_equal(ret, -code);
    assert_non_null(strstr(err.text, text));
    assert_null(strchr(err.text, '\n'));
}

static void good_kernel_is_placed_with_initrd_and_cmdline(void **state)
{
    const struct boot_params *bp;
    const char *text;
    uint8_t data[5000];

    memset(data, 0x77, sizeof(data));
    write_file(initrd, data, sizeof(data));
    assert_int_equal(load(true), 0);
    assert_int_equal(entry.rip, LOAD + 0x200);
    assert_memory_equal(mem_at(&mem, LOAD, PAYLOAD), image + SETUP, PAYLOAD);
    bp = mem_at(&mem, entry.rsi, sizeof(*bp));
    assert_int_equal(bp->hdr.type_of_loader, 0xff);
    assert_int_equal(bp->hdr.ramdisk_size, sizeof(data));
    assert_int_equal(bp->hdr.ramdisk_image % 4096, 0);
    assert_true(bp->hdr.ramdisk_image >= LOAD + hdr->init_size);
    assert_memory_equal(mem_at(&mem, bp->hdr.ramdisk_image, sizeof(data)), data, sizeof(data));
    text = mem_at(&mem, bp->hdr.cmd_line_ptr, sizeof("console=ttyS0"));
    assert_string_equal(text, "console=ttyS0");
    assert_int_equal(bp->acpi_rsdp_addr, LAYOUT_ACPI);
}

static void e820_names_ram_and_nothing_else_as_usable(void **state)
{
    const struct boot_params *bp;
    uint64_t usable = 0;

    assert_int_equal(mem_add_anon(&mem, LAYOUT_HIGH_BASE, 8 << 20, false), 0);
    assert_int_equal(load(false), 0);
    bp = mem_at(&mem, entry.rsi, sizeof(*bp));
    for (unsigned i = 0; i < bp->e820_entries; i++) {
        const struct boot_e820_entry *x = &bp->e820_table[i];

        assert_true(i == 0 || x->addr >= bp->e820_table[i - 1].addr + bp->e820_table[i - 1].size);
        if (x->type == 1) {
            assert_non_null(mem_at(&mem, x->addr, x->size));
            assert_true(x->addr + x->size <= LAYOUT_EBDA || x->addr >= LAYOUT_KERNEL_MIN);
            usable += x->size;
        }
    }
    assert_int_equal(usable, LAYOUT_EBDA + MEMORY - LAYOUT_KERNEL_MIN + (8 << 20));
}

static void page_tables_map_4_gib_one_to_one(void **state)
{
    static const uint64_t at[] = { 0, 0x7000, LOAD, 0x7fffffff, 0xffffffff };

    assert_int_equal(load(false), 0);
    for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        const uint64_t *t = mem_at(&mem, entry.cr3, 4096);
        const uint64_t mask = ~0xfffull;

        t = mem_at(&mem, t[at[i] >> 39 & 511] & mask, 4096);
        t = mem_at(&mem, t[at[i] >> 30 & 511] & mask, 4096);
        assert_int_equal(t[at[i] >> 21 & 511], (at[i] & ~0x1fffffull) | 0x83);
    }
}

static void setup_sects_zero_means_four(void **state)
{
    static uint8_t big[5 * 512 + PAYLOAD];

    memcpy(big, image, SETUP);
    memset(big + 5 * 512, 0xcc, PAYLOAD);
    big[0x1f1] = 0;
    write_file(kernel, big, sizeof(big));
    assert_int_equal(boot_linux_load(&mem, &(struct boot_files){ kernel, NULL, "" }, &entry, &err),
                     0);
    assert_int_equal(*(uint8_t *)mem_at(&mem, LOAD, 1), 0xcc);
}

static void header_ends_where_its_jump_says(void **state)
{
    image[0x201] = 0x1e;            /* after loadflags, before xloadflags */
    refused(load(false), ENOTSUP, "no 64-bit entry point");
}

static void other_files_are_named(void **state)
{
    memcpy(image, "\177ELF", 4);
    hdr->boot_flag = 0;
    refused(load(false), EINVAL, "ELF file");
    blk_error_clear(&err);
    memcpy(image, "\037\213", 2);
    refused(load(false), EINVAL, "gzip file");
    blk_error_clear(&err);
    memset(image, 0, sizeof(image));
    refused(load(false), EINVAL, "not a Linux bzImage");
}

static void every_short_length_is_refused(void **state)
{
    for (size_t len = 0; len < SETUP + PAYLOAD - 16; len += len < 700 ? 1 : 97) {
        blk_error_clear(&err);
        assert_int_equal(load_len(len, false), -EINVAL);
        assert_true(err.text[0]);
    }
}

static void old_and_32_bit_kernels_are_refused(void **state)
{
    hdr->version = 0x020b;
    refused(load(false), ENOTSUP, "boot protocol 2.11");
    blk_error_clear(&err);
    hdr->version = 0x020f;
    hdr->xloadflags = 0;
    refused(load(false), ENOTSUP, "no 64-bit entry point");
    blk_error_clear(&err);
    hdr->loadflags = 0;
    refused(load(false), ENOTSUP, "zImage");
}

static void syssize_beyond_the_file_is_truncation(void **state)
{
    hdr->syssize = PAYLOAD / 16 + 1;
    refused(load(false), EINVAL, "truncated");
    blk_error_clear(&err);
    hdr->syssize = 0xffffffff;
    refused(load(false), EINVAL, "truncated");
    blk_error_clear(&err);
    hdr->syssize = PAYLOAD / 16;
    hdr->setup_sects = 255;
    refused(load(false), EINVAL, "truncated");
}

static void load_addresses_outside_low_memory_are_refused(void **state)
{
    static const uint64_t bad[] = { 0, 0x7000, LAYOUT_ACPI, LAYOUT_KERNEL_MIN - 1, LAYOUT_LOW_MAX,
                                    LAYOUT_HIGH_BASE, UINT64_MAX, UINT64_MAX - 4095, LOAD + 1,
                                    1ull << 63 };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        blk_error_clear(&err);
        hdr->pref_address = bad[i];
        refused(load(false), EINVAL, "where it cannot be");
    }
    hdr->pref_address = MEMORY - 4096;
    blk_error_clear(&err);
    refused(load(false), ENOMEM, "MiB of memory");
}

static void init_size_beyond_memory_says_how_much_is_needed(void **state)
{
    hdr->init_size = 17 << 20;
    refused(load(false), ENOMEM, "at least 33 MiB");
    blk_error_clear(&err);
    hdr->init_size = 0xffffffff;
    refused(load(false), ENOMEM, "MiB of memory");
    blk_error_clear(&err);
    hdr->init_size = 0;             /* then the payload counts */
    assert_int_equal(load(false), 0);
}

static void payload_beyond_memory_is_refused(void **state)
{
    write_file(kernel, image, sizeof(image));
    assert_int_equal(truncate(kernel, 64ll << 30), 0);  /* sparse */
    refused(boot_linux_load(&mem, &(struct boot_files){ kernel, NULL, "" }, &entry, &err), ENOMEM,
            "MiB of memory");
}

static void initrd_that_does_not_fit_is_refused(void **state)
{
    static const off_t sizes[] = { (15 << 20) + 1, 32 << 20, 4ll << 30, 1ll << 40 };

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        blk_error_clear(&err);
        write_file(initrd, "x", 1);
        assert_int_equal(truncate(initrd, sizes[i]), 0);
        refused(load(true), ENOMEM, "does not fit");
    }
}

static void initrd_addr_max_is_obeyed(void **state)
{
    const struct boot_params *bp;

    write_file(initrd, "abc", 3);
    hdr->initrd_addr_max = LOAD + (2 << 20);
    assert_int_equal(load(true), 0);
    bp = mem_at(&mem, entry.rsi, sizeof(*bp));
    assert_true(bp->hdr.ramdisk_image + 2 <= hdr->initrd_addr_max);
    hdr->initrd_addr_max = 0;
    refused(load(true), ENOMEM, "does not fit");
}

static void empty_missing_and_odd_files_are_refused(void **state)
{
    struct boot_files f = { kernel, initrd, "" };

    refused(boot_linux_load(&mem, &f, &entry, &err), ENOENT, "Could not open kernel");
    blk_error_clear(&err);
    refused(load(true), ENOENT, "Could not open initrd");
    blk_error_clear(&err);
    write_file(initrd, "", 0);
    refused(load(true), EINVAL, "is empty");
    blk_error_clear(&err);
    f.kernel = dir;
    refused(boot_linux_load(&mem, &f, &entry, &err), EINVAL, "not a regular file");
    blk_error_clear(&err);
    unlink(kernel);
    assert_int_equal(mkfifo(kernel, 0600), 0);
    f.kernel = kernel;
    refused(boot_linux_load(&mem, &f, &entry, &err), EINVAL, "not a regular file");
}

static void command_lines_are_limited_by_the_kernel(void **state)
{
    memset(cmdline, 'x', 2048);
    cmdline[2048] = 0;
    refused(load(false), E2BIG, "takes 2047");
    cmdline[2047] = 0;
    assert_int_equal(load(false), 0);
    memset(cmdline, 'x', sizeof(cmdline) - 1);
    hdr->cmdline_size = 0xffffffff;
    blk_error_clear(&err);
    refused(load(false), E2BIG, "command line");
    hdr->cmdline_size = 0;
    cmdline[256] = 0;
    blk_error_clear(&err);
    refused(load(false), E2BIG, "takes 255");
}

static void tiny_memory_is_refused(void **state)
{
    struct mem small = { 0 };

    write_file(kernel, image, sizeof(image));
    refused(boot_linux_load(&small, &(struct boot_files){ kernel, NULL, "" }, &entry, &err),
            ENOMEM, "MiB of memory");
    assert_int_equal(mem_add_anon(&small, 0, 4096, false), 0);
    blk_error_clear(&err);
    refused(boot_linux_load(&small, &(struct boot_files){ kernel, NULL, "" }, &entry, &err),
            ENOMEM, "MiB of memory");
    mem_free(&small);
}

/* Random headers either load or are refused with a text; nothing else. */
static void random_headers_never_crash(void **state)
{
    uint32_t x = 99;
    unsigned loaded = 0;

    write_file(initrd, "initrd", 6);
    for (int i = 0; i < 3000; i++) {
        uint8_t saved[sizeof(*hdr)];

        memcpy(saved, hdr, sizeof(saved));
        for (int n = 0; n < 4; n++) {
            x = x * 1664525u + 1013904223u;
            ((uint8_t *)hdr)[(x >> 8) % sizeof(*hdr)] = (uint8_t)(x >> 20);
        }
        blk_error_clear(&err);
        if (load(i & 1) == 0)
            loaded++;
        else
            assert_true(err.text[0]);
        memcpy(hdr, saved, sizeof(saved));
    }
    assert_in_range(loaded, 1, 2999);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(good_kernel_is_placed_with_initrd_and_cmdline),
        CASE(e820_names_ram_and_nothing_else_as_usable),
        CASE(page_tables_map_4_gib_one_to_one),
        CASE(setup_sects_zero_means_four),
        CASE(header_ends_where_its_jump_says),
        CASE(other_files_are_named),
        CASE(every_short_length_is_refused),
        CASE(old_and_32_bit_kernels_are_refused),
        CASE(syssize_beyond_the_file_is_truncation),
        CASE(load_addresses_outside_low_memory_are_refused),
        CASE(init_size_beyond_memory_says_how_much_is_needed),
        CASE(payload_beyond_memory_is_refused),
        CASE(initrd_that_does_not_fit_is_refused),
        CASE(initrd_addr_max_is_obeyed),
        CASE(empty_missing_and_odd_files_are_refused),
        CASE(command_lines_are_limited_by_the_kernel),
        CASE(tiny_memory_is_refused),
        CASE(random_headers_never_crash),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
