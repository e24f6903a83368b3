/*
 * create.c - a new image, laid out as QEMU does: identifier, headers, region tables;
 * log, table, metadata; 4 MiB that stay free; payload.
 */
#include "formats/vhdx/vhdx.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u
#define DATA_GAP (5u * VHDX_MIB)    /* the metadata and room behind them */
#define ITEMS_AT 0x10000u           /* in the metadata region, behind their table */
#define ITEMS_BYTES 40u

const struct blk_option_desc vhdx_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size; max of 64TB.", NULL },
    { "log_size", BLK_OPT_SIZE, "Log size; min 1MB.", "1048576" },
    { "block_size", BLK_OPT_SIZE, "Block Size; min 1MB, max 256MB. 0 means auto-calculate based "
      "on image size.", "0" },
    { "subformat", BLK_OPT_STRING, "VHDX format type, can be either 'dynamic' or 'fixed'. "
      "Default is 'dynamic'.", NULL },
    { "block_state_zero", BLK_OPT_BOOL, "Force use of payload blocks of type 'ZERO'. "
      "Non-standard, but default.  Do not set to 'off' when using 'qemu-img convert' with "
      "subformat=dynamic.", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

struct create {
    uint64_t size, blocks, chunk_ratio;
    uint32_t log_length, block_size;
    bool fixed, zero_state;
    uint64_t bat_at, bat_length, metadata_at, data_at;
};

/* ---- options ------------------------------------------------------------------------ */

static uint32_t block_size_for(uint64_t size)
{
    return (size > 32ull << 40 ? 64 : size > 100ull << 30 ? 32 : size > 1ull << 30 ? 16 : 8)
           * VHDX_MIB;
}

static int check_sizes(struct create *c, uint64_t log, uint64_t block, struct blk_error *e)
{
    if (c->size > VHDX_SIZE_MAX) {
        return blk_err(e, EINVAL, "Image size too large; max of 64TB");
    }
    if (log > UINT32_MAX) {
        return blk_err(e, EINVAL, "Log size must be smaller than 4 GB");
    }
    if (!log) {
        return blk_err(e, EINVAL, "Log size must be a multiple of 1 MB");
    }
    if (block & (block - 1)) {
        return blk_err(e, EINVAL, "Block size must be a power of two");
    }
    c->log_length = (uint32_t)log;
    c->block_size = block ? (uint32_t)block : block_size_for(c->size);
    return 0;
}

static int take_options(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    const char *sub = blk_opts_get(o, "subformat");
    uint64_t log = VHDX_MIB, block = 0;
    int err = blk_opts_get_size(o, "size", &c->size, e);

    c->zero_state = true;
    err = err ? err : blk_opts_get_size(o, "log_size", &log, e);
    err = err ? err : blk_opts_get_size(o, "block_size", &block, e);
    err = err ? err : blk_opts_get_bool(o, "block_state_zero", &c->zero_state, e);
    if (err) {
        return err;
    }
    if (sub && strcmp(sub, "dynamic") && strcmp(sub, "fixed")) {
        return blk_err(e, EINVAL, "Parameter 'subformat' does not accept value '%s'", sub);
    }
    c->fixed = sub && !strcmp(sub, "fixed");
    c->size = BLK_MIN(c->size, BLK_SIZE_MAX);
    c->size = blk_align_up(c->size, SECTOR);
    log = BLK_MIN(log, (uint64_t)INT64_MAX / 2);
    return check_sizes(c, blk_align_up(log, VHDX_MIB),
                       blk_align_up(BLK_MIN(block, (uint64_t)VHDX_BLOCK_MAX), VHDX_MIB), e);
}

int vhdx_create_check(struct blk_opts *o, struct blk_error *e)
{
    struct create c = { 0 };
    return take_options(&c, o, e);
}

static void lay_out(struct create *c)
{
    c->blocks = (c->size + c->block_size - 1) / c->block_size;
    c->chunk_ratio = ((uint64_t)SECTOR << 23) / c->block_size;
    /* QEMU takes the table of an empty disk for this long, and wants it there. */
    uint64_t entries = c->blocks ? vhdx_bat_entries(c->blocks, c->chunk_ratio)
                                 : UINT32_MAX / c->chunk_ratio;
    c->bat_at = blk_align_up(VHDX_SECTION_END + (uint64_t)c->log_length, VHDX_MIB);
    c->bat_length = blk_align_up(entries * 8, VHDX_MIB);
    c->metadata_at = c->bat_at + c->bat_length;
    c->data_at = c->metadata_at + DATA_GAP;
}

/* ---- writing ------------------------------------------------------------------------ */

static int write_identifier(struct blk_node *file, uint8_t *buf)
{
    static const char creator[] = "Platter v" PLATTER_VERSION;

    memset(buf, 0, SECTOR * 2);
    memcpy(buf, "vhdxfile", 8);
    for (size_t i = 0; i < sizeof(creator) - 1; i++) {
        buf[8 + 2 * i] = (uint8_t)creator[i];       /* UTF-16 */
    }
    return co_write(file, 0, buf, SECTOR * 2, 0);
}

static int write_headers(const struct create *c, struct blk_node *file, uint8_t *buf)
{
    struct vhdx_header h = { .log_length = c->log_length, .log_offset = VHDX_SECTION_END };
    uint8_t random[16];
    int err = 0;

    blk_uuid_generate(random);
    h.sequence = le32(random);
    blk_uuid_generate(h.file_guid.b);
    blk_uuid_generate(h.data_guid.b);
    for (unsigned i = 0; !err && i < 2; i++, h.sequence++) {
        memset(buf, 0, VHDX_HEADER_BYTES);
        vhdx_header_encode(buf, &h);
        err = co_write(file, VHDX_HEADER_AT * (1ull + i), buf, VHDX_HEADER_BYTES, 0);
    }
    return err;
}

static void region_put(uint8_t *entry, const struct vhdx_guid *guid, uint64_t at, uint64_t len)
{
    memcpy(entry, guid, 16);
    put_le64(entry + 16, at);
    put_le32(entry + 24, (uint32_t)len);
    put_le32(entry + 28, 1);        /* required */
}

static int write_regions(const struct create *c, struct blk_node *file, uint8_t *buf)
{
    memset(buf, 0, VHDX_REGIONS_BYTES);
    memcpy(buf, "regi", 4);
    put_le32(buf + 8, 2);
    region_put(buf + 16, &vhdx_bat_guid, c->bat_at, c->bat_length);
    region_put(buf + 48, &vhdx_metadata_guid, c->metadata_at, VHDX_MIB);
    vhdx_crc_seal(buf, VHDX_REGIONS_BYTES);
    int err = co_write(file, VHDX_REGIONS_AT, buf, VHDX_REGIONS_BYTES, 0);
    return err ? err : co_write(file, VHDX_REGIONS_AT + VHDX_REGIONS_BYTES, buf,
                                VHDX_REGIONS_BYTES, 0);
}

static uint64_t bat_entry(const struct create *c, uint64_t index)
{
    uint64_t block = index - index / (c->chunk_ratio + 1);
    if (index % (c->chunk_ratio + 1) == c->chunk_ratio || block >= c->blocks) {
        return 0;                   /* a sector bitmap's, or past the end */
    }
    return c->zero_state ? VB_ZERO : c->data_at + block * c->block_size + VB_FULL;
}

static int write_bat(const struct create *c, struct blk_node *file)
{
    uint8_t *buf = blk_buf_alloc(VHDX_MIB);
    int err = buf ? 0 : -ENOMEM;

    for (uint64_t off = 0; !err && c->blocks && off < c->bat_length; off += VHDX_MIB) {
        for (uint64_t i = 0; i < VHDX_MIB / 8; i++) {
            put_le64(buf + i * 8, bat_entry(c, off / 8 + i));
        }
        err = co_write(file, c->bat_at + off, buf, VHDX_MIB, 0);
    }
    blk_buf_free(buf);
    return err;
}

static int write_metadata(const struct create *c, struct blk_node *file, uint8_t *buf)
{
    static const struct { const struct vhdx_guid *guid; uint32_t len, flags; } item[] = {
        { &vhdx_params_guid, 8, 4 }, { &vhdx_size_guid, 8, 6 }, { &vhdx_page83_guid, 16, 6 },
        { &vhdx_logical_guid, 4, 6 }, { &vhdx_physical_guid, 4, 6 },
    };
    uint8_t value[ITEMS_BYTES] = { 0 };
    uint32_t at = ITEMS_AT;

    memset(buf, 0, VHDX_REGIONS_BYTES);
    memcpy(buf, "metadata", 8);
    put_le16(buf + 10, BLK_ARRAY_SIZE(item));
    for (size_t i = 0; i < BLK_ARRAY_SIZE(item); i++) {
        uint8_t *entry = buf + 32 + i * 32;
        memcpy(entry, item[i].guid, 16);
        put_le32(entry + 16, at);
        put_le32(entry + 20, item[i].len);
        put_le32(entry + 24, item[i].flags);
        at += item[i].len;
    }
    put_le32(value, c->block_size);
    put_le32(value + 4, c->fixed ? VHDX_PARAM_FIXED : 0);
    put_le64(value + 8, c->size);
    blk_uuid_generate(value + 16);
    put_le32(value + 32, SECTOR);
    put_le32(value + 36, SECTOR);
    int err = co_write(file, c->metadata_at, buf, VHDX_REGIONS_BYTES, 0);
    return err ? err : co_write(file, c->metadata_at + ITEMS_AT, value, sizeof(value), 0);
}

int vhdx_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                struct blk_error *e)
{
    struct create c = { 0 };
    uint8_t *buf = blk_buf_alloc(VHDX_REGIONS_BYTES);
    int err = buf ? take_options(&c, o, e) : -ENOMEM;

    if (!err) {
        lay_out(&c);
        err = blk_truncate(file, c.data_at + (c.fixed ? c.size : 0), false, BLK_PREALLOC_OFF, e);
    }
    if (!err && (c.fixed || c.zero_state || !file->starts_as_zeros)) {
        err = write_bat(&c, file);
    }
    err = err ? err : write_metadata(&c, file, buf);
    err = err ? err : write_regions(&c, file, buf);
    err = err ? err : write_headers(&c, file, buf);
    err = err ? err : write_identifier(file, buf);
    blk_buf_free(buf);
    return err ? blk_err_errno(e, -err, "Could not write the VHDX image") : 0;
}
