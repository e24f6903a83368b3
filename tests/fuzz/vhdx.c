/*
 * vhdx.c - fuzz harness: a VHDX image whose interesting pages are the input; they lie
 * megabytes apart, so the input is only they, one after the other (PAGES in
 * tests/formats/vhdximg.py).  Checksums are put right, or nothing would get past them.
 */
#include "formats/vhdx/vhdx.h"
#include <string.h>

#define FUZZ_FORMAT "vhdx"
#define FUZZ_HEADER 80
#define FUZZ_LITTLE 1
#define FUZZ_SIZE (8u << 20)
#define FUZZ_LOAD load_pages

#define PAGE 4096u

static void seal_entry(uint8_t *p)
{
    uint32_t len = le32(p + 8);
    if (!memcmp(p, "loge", 4) && len >= PAGE && len <= 3 * PAGE && len % PAGE == 0)
        vhdx_crc_seal(p, len);
}

static int load_pages(struct blk_node *n, const uint8_t *data, size_t size)
{
    static const uint32_t at[] = {
        0x10000, 0x20000, 0x30000, 2 << 20, 3 << 20, (3 << 20) + 0x10000, 1 << 20,
        (1 << 20) + 0x1000, (1 << 20) + 0x2000, (1 << 20) + 0x80000, (1 << 20) + 0x81000,
        (1 << 20) + 0x82000,
    };
    static uint8_t buf[VHDX_REGIONS_BYTES + BLK_ARRAY_SIZE(at) * PAGE];
    int err = co_write(n, 0, "vhdxfile", 8, 0);

    memset(buf, 0, sizeof(buf));
    memcpy(buf, data, BLK_MIN(size, BLK_ARRAY_SIZE(at) * PAGE));
    vhdx_crc_seal(buf, PAGE);
    vhdx_crc_seal(buf + PAGE, PAGE);
    seal_entry(buf + 6 * PAGE);
    seal_entry(buf + 9 * PAGE);
    for (size_t i = 0; !err && i < BLK_ARRAY_SIZE(at); i++)
        err = i == 2 ? 0 : co_write(n, at[i], buf + i * PAGE, PAGE, 0);
    /* A region table is 64 KiB, zeros here behind the page. */
    memmove(buf, buf + 2 * PAGE, PAGE);
    memset(buf + PAGE, 0, VHDX_REGIONS_BYTES - PAGE);
    vhdx_crc_seal(buf, VHDX_REGIONS_BYTES);
    return err ? err : co_write(n, at[2], buf, VHDX_REGIONS_BYTES, 0);
}

#include "tests/fuzz/harness.h"
