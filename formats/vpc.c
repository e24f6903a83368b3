/*
 * vpc.c - Virtual PC and Hyper-V disks (VHD): fixed (the data, then a footer) and
 * dynamic (a copy of the footer, a header, a table of blocks; each block led by a bitmap
 * of its sectors; the footer behind the last).  Big endian.
 *
 * Invariants
 *  - As QEMU, the sector bitmaps are not looked at: they are set to all ones before a
 *    block is written, so that other readers see what we see.
 *  - The footer lies where the next block would go.  A new block covers it; a flush writes
 *    it again behind the block before any entry points there.
 */
#include "formats/blockmap.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define VPC_FIXED         2u
#define VPC_DYNAMIC       3u
#define VPC_DIFFERENCING  4u
#define VPC_ABSENT        0xffffffffu
#define VPC_EPOCH         946684800     /* 2000-01-01 00:00 UTC */
#define VPC_SECTORS_MAX   0xff000000u   /* 2040 GiB */
#define VPC_CYLS_MAX      65535u
#define VPC_HEADS_MAX     16u
#define VPC_TRACK_MAX     255u
#define VPC_GEOMETRY_MAX  ((uint64_t)VPC_CYLS_MAX * VPC_HEADS_MAX * VPC_TRACK_MAX)
#define VPC_BLOCK         (2u << 20)    /* of images we make */
#define VPC_ENTRIES_MAX   (16u << 20)   /* of a table we read: 2 TiB in blocks of 128 KiB */

/* The footer, 512 bytes. */
enum {
    VF_COOKIE = 0, VF_FEATURES = 8, VF_VERSION = 12, VF_DATA_OFFSET = 16, VF_TIMESTAMP = 24,
    VF_CREATOR = 28, VF_MAJOR = 32, VF_MINOR = 34, VF_OS = 36, VF_ORIG_SIZE = 40, VF_SIZE = 48,
    VF_CYLS = 56, VF_HEADS = 58, VF_TRACK = 59, VF_TYPE = 60, VF_CHECKSUM = 64, VF_UUID = 68,
    VF_BYTES = 512,
};
/* The header of dynamic disks, 1024 bytes. */
enum {
    VD_COOKIE = 0, VD_DATA_OFFSET = 8, VD_TABLE = 16, VD_VERSION = 24, VD_ENTRIES = 28,
    VD_BLOCK = 32, VD_CHECKSUM = 36, VD_PARENT = 64, VD_LOCATORS = 576, VD_BYTES = 1024,
};

struct vpc {
    struct blockmap map;            /* first: see bm_of(); dynamic disks */
    bool fixed;
    uint8_t footer[VF_BYTES];
    uint64_t header, table, table_end;  /* dynamic: what no block may lie on */
    uint8_t *touched;               /* blocks whose bitmap is known to be all ones */
};

static struct vpc *vpc_of(const struct blockmap *m)
{
    return blk_container_of(m, struct vpc, map);
}

static uint32_t vpc_checksum(const uint8_t *p, size_t len, size_t at)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i++) {
        sum += i >= at && i < at + 4 ? 0u : p[i];
    }
    return ~sum;
}

/* ---- the table ------------------------------------------------------------------------ */

static bool overlaps(uint64_t a, uint64_t a_end, uint64_t b, uint64_t b_end)
{
    return a < b_end && b < a_end;
}

static uint64_t vpc_decode(const struct blockmap *m, const uint8_t *raw)
{
    const struct vpc *v = vpc_of(m);
    uint32_t e = be32(raw);
    uint64_t at = e * 512ull, end = at + m->lead + m->block_size;
    if (e == VPC_ABSENT) {
        return BM_ABSENT;
    }
    if (at < VF_BYTES || overlaps(at, end, v->header, v->header + VD_BYTES) ||
        overlaps(at, end, v->table, v->table_end)) {
        return BM_BAD;
    }
    return at + m->lead;
}

static void vpc_encode(const struct blockmap *m, uint64_t v, uint8_t *raw)
{
    put_be32(raw, bm_is_data(v) ? (uint32_t)((v - m->lead) / 512) : VPC_ABSENT);
}

static bool vpc_touched(const struct blockmap *m, uint64_t block)
{
    return vpc_of(m)->touched[block / 8] >> block % 8 & 1;
}

static int vpc_prepare(struct blockmap *m, uint64_t block, uint64_t host)
{
    uint8_t *ones = malloc(m->lead);
    if (!ones) {
        return -ENOMEM;
    }
    memset(ones, 0xff, m->lead);
    int err = co_write(m->file, host - m->lead, ones, m->lead, 0);
    free(ones);
    if (!err) {
        vpc_of(m)->touched[block / 8] |= (uint8_t)(1u << block % 8);
    }
    return err;
}

static int vpc_settle(struct blockmap *m)
{
    return co_write(m->file, m->next, vpc_of(m)->footer, VF_BYTES, 0);
}

static const struct blockmap_ops vpc_map_ops = {
    .decode = vpc_decode,
    .encode = vpc_encode,
    .prepare = vpc_prepare,
    .touched = vpc_touched,
    .touch = vpc_prepare,
    .settle = vpc_settle,
};

/* ---- open: the footer ------------------------------------------------------------------- */

static int vpc_probe(const uint8_t *buf, size_t len)
{
    return len >= 8 && !memcmp(buf, "conectix", 8) ? 100 : 0;
}

static int read_footer(struct blk_node *n, struct vpc *v, struct blk_error *e)
{
    struct blk_node *file = n->file;
    int err = co_read(file, 0, v->footer, VF_BYTES);
    if (err) {
        return blk_err(e, -err, "Unable to read VHD header");
    }
    if (!memcmp(v->footer, "conectix", 8)) {
        return 0;
    }
    v->fixed = true;
    if (!file->size) {
        return blk_err(e, EINVAL, "File too small for a VHD header");
    }
    /* Old programs left the footer's last byte out: the last sector, whole or not. */
    err = co_read(file, (file->size - 1) & ~(VF_BYTES - 1ull), v->footer, VF_BYTES);
    if (err) {
        return blk_err_errno(e, -err, "Unable to read VHD footer");
    }
    return memcmp(v->footer, "conectix", 8) ? blk_err(e, EINVAL, "invalid VPC image") : 0;
}

static int check_footer(const struct vpc *v, struct blk_error *e)
{
    uint32_t type = be32(v->footer + VF_TYPE);
    if (vpc_checksum(v->footer, VF_BYTES, VF_CHECKSUM) != be32(v->footer + VF_CHECKSUM)) {
        return blk_err(e, EINVAL, "Incorrect header checksum");
    }
    if (type == VPC_DIFFERENCING) {
        return blk_err(e, ENOTSUP, "Differencing VHD images are not supported");
    }
    if (type != (v->fixed ? VPC_FIXED : VPC_DYNAMIC)) {
        return blk_err(e, EINVAL, "Unsupported VHD disk type %u in a %s", type,
                       v->fixed ? "footer at the end of the file" : "header");
    }
    return 0;
}

/* Where the parent's names are: 8 locators of platform, space, length, reserved, offset. */
#define VPC_LOCATORS 8u
enum { VL_PLATFORM = 0, VL_LENGTH = 8, VL_OFFSET = 16, VL_BYTES = 24 };

static void locator_facts(struct blk_node *file, const uint8_t *l, struct blk_facts *f)
{
    uint8_t name[2 * BLK_NAME_MAX];
    size_t len = BLK_MIN(be32(l + VL_LENGTH), (uint32_t)sizeof(name));
    uint64_t at = be64(l + VL_OFFSET);

    if (!len || at >= file->size || co_read(file, at, name, len)) {
        return;
    }
    if (l[VL_PLATFORM] == 'W') {                /* W2ru, W2ku */
        blk_facts_utf16(f, "parent", name, len, false);
    } else if (!memcmp(l + VL_PLATFORM, "MacX", 4)) {
        blk_facts_name(f, "parent", name, len, NULL);
    }
}

/* Differencing disks are refused, but whom they name is known. */
static void vpc_facts(struct blk_node *file, struct blk_facts *f)
{
    uint8_t footer[VF_BYTES], h[VD_BYTES];
    uint64_t at;

    if (co_read(file, 0, footer, VF_BYTES) || memcmp(footer, "conectix", 8) ||
        be32(footer + VF_TYPE) != VPC_DIFFERENCING) {
        return;
    }
    at = be64(footer + VF_DATA_OFFSET);
    if (at >= file->size || co_read(file, at, h, VD_BYTES)) {
        return;
    }
    blk_facts_utf16(f, "parent", h + VD_PARENT, VD_LOCATORS - VD_PARENT, true);
    for (unsigned i = 0; i < VPC_LOCATORS; i++) {
        locator_facts(file, h + VD_LOCATORS + i * VL_BYTES, f);
    }
}

enum size_calc { BY_CREATOR, BY_GEOMETRY, BY_SIZE };

static int take_size_calc(struct blk_opts *o, enum size_calc *calc, struct blk_error *e)
{
    const char *how = blk_opts_get(o, "force_size_calc");
    *calc = !how ? BY_CREATOR : !strcmp(how, "chs") ? BY_GEOMETRY : BY_SIZE;
    if (*calc == BY_SIZE && strcmp(how, "current_size")) {
        return blk_err(e, EINVAL, "Invalid size calculation mode: '%s'", how);
    }
    return 0;
}

/* Virtual PC and QEMU count by geometry, everybody else by the size in the footer. */
static int take_size(struct blk_node *n, const struct vpc *v, enum size_calc calc,
                     struct blk_error *e)
{
    const uint8_t *f = v->footer;
    bool by_size = calc == BY_SIZE, by_chs = calc == BY_GEOMETRY;
    uint64_t sectors = (uint64_t)be16(f + VF_CYLS) * f[VF_HEADS] * f[VF_TRACK];

    by_chs = by_chs || !memcmp(f + VF_CREATOR, "vpc ", 4) || !memcmp(f + VF_CREATOR, "qemu", 4);
    if (!by_chs || sectors == VPC_GEOMETRY_MAX || by_size) {
        sectors = be64(f + VF_SIZE) / 512;
    }
    if (sectors > VPC_SECTORS_MAX) {
        return blk_err(e, EFBIG, "%s", strerror(EFBIG));
    }
    n->size = sectors * 512;
    if (v->fixed && n->size > ((n->file->size - 1) & ~(VF_BYTES - 1ull))) {
        return blk_err(e, EINVAL, "Disk size %llu does not fit into the file",
                       (unsigned long long)n->size);
    }
    return 0;
}

/* ---- open: dynamic disks ------------------------------------------------------------------- */

static int check_table(const struct blk_node *n, const struct vpc *v, uint32_t entries,
                       struct blk_error *e)
{
    uint64_t end;
    if (n->size / v->map.block_size > 0xffffffffu) {
        return blk_err(e, EINVAL, "Too many blocks");
    }
    if ((uint64_t)entries * v->map.block_size < n->size) {
        return blk_err(e, EINVAL, "Page table too small");
    }
    if (entries > VPC_ENTRIES_MAX) {
        return blk_err(e, EINVAL, "Max Table Entries too large (%d)", (int32_t)entries);
    }
    if (blk_add_overflow(v->table, entries * 4ull, &end) || end > n->file->size) {
        return blk_err(e, EINVAL, "Error reading pagetable (%llu bytes at offset %#llx)",
                       entries * 4ull, (unsigned long long)v->table);
    }
    return 0;
}

static int read_header(struct blk_node *n, struct vpc *v, uint32_t *entries, struct blk_error *e)
{
    uint8_t h[VD_BYTES];
    uint64_t end;

    v->header = be64(v->footer + VF_DATA_OFFSET);
    if (blk_add_overflow(v->header, VD_BYTES, &end) || end > n->file->size ||
        co_read(n->file, v->header, h, VD_BYTES)) {
        return blk_err(e, EINVAL, "Error reading dynamic VHD header");
    }
    if (memcmp(h, "cxsparse", 8)) {
        return blk_err(e, EINVAL, "Invalid header magic");
    }
    v->map.block_size = be32(h + VD_BLOCK);
    if (v->map.block_size < 512 || v->map.block_size & (v->map.block_size - 1)) {
        return blk_err(e, EINVAL, "Invalid block size %u", v->map.block_size);
    }
    v->map.lead = (uint32_t)blk_align_up(v->map.block_size / (8 * 512), 512);
    v->table = be64(h + VD_TABLE);
    *entries = be32(h + VD_ENTRIES);
    int err = check_table(n, v, *entries, e);
    v->table_end = v->table + *entries * 4ull;
    return err;
}

/* Where the next block goes: behind the table and every block.  Blocks that are not in
 * the file are the mark of a truncated image. */
static int find_end(struct vpc *v, struct blk_error *e)
{
    struct blockmap *m = &v->map;
    m->next = blk_align_up(v->table_end, 512);
    for (uint64_t i = 0; i < m->slots; i++) {
        uint8_t raw[4];
        int err = blockmap_get_raw(m, i, raw);
        if (err) {
            return blk_err(e, -err, "Error reading pagetable");
        }
        if (be32(raw) != VPC_ABSENT) {
            m->next = BLK_MAX(m->next, be32(raw) * 512ull + m->lead + m->block_size);
        }
    }
    if (m->next > m->file->size) {
        return blk_err(e, EINVAL, "block-vpc: free_data_block_offset points after the end of "
                       "file. The image has been truncated.");
    }
    return 0;
}

static int open_dynamic(struct blk_node *n, struct vpc *v, struct blk_error *e)
{
    uint32_t entries;
    int err = read_header(n, v, &entries, e);
    if (err) {
        return err;
    }
    v->map.n = n;
    v->map.file = n->file;
    v->map.ops = &vpc_map_ops;
    v->map.slots = entries;
    v->map.blocks = n->size / v->map.block_size + !!(n->size % v->map.block_size);
    v->map.entry_size = 4;
    v->map.table_offset = v->table;
    v->map.data_end = (VPC_ABSENT - 1ull) * 512;
    v->map.absent_is_zero = true;
    err = blockmap_init(&v->map, e);
    err = err ? err : find_end(v, e);
    if (!err && !n->read_only) {
        v->touched = calloc(v->map.blocks / 8 + 1, 1);
        err = v->touched ? 0 : -ENOMEM;
    }
    n->starts_as_zeros = true;
    return err;
}

static void vpc_free(struct vpc *v)
{
    if (v) {
        blockmap_free(&v->map);
        free(v->touched);
        free(v);
    }
}

static int vpc_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct vpc *v = calloc(1, sizeof(*v));
    enum size_calc calc;
    int err = v ? take_size_calc(o, &calc, e) : -ENOMEM;

    err = err ? err : read_footer(n, v, e);
    err = err ? err : check_footer(v, e);
    err = err ? err : take_size(n, v, calc, e);
    if (!err && v->fixed) {
        n->starts_as_zeros = n->file->starts_as_zeros;
    } else if (!err) {
        err = open_dynamic(n, v, e);
    }
    if (err) {
        vpc_free(v);
        return err;
    }
    n->state = v;
    return 0;
}

static int vpc_close(struct blk_node *n, struct blk_error *e)
{
    vpc_free(n->state);
    return 0;
}

static void vpc_submit(struct blk_node *n, struct blk_req *req)
{
    struct vpc *v = n->state;
    if (v->fixed) {
        blk_forward(req, n->file, req->offset, NULL);
    } else {
        blockmap_submit(&v->map, req);
    }
}

static int vpc_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    struct vpc *v = n->state;
    if (!v->fixed) {
        return blockmap_status(&v->map, off, len, st);
    }
    blk_status_at(st, n->file, off, len, BLK_ST_DATA | BLK_ST_RECURSE);
    return 0;
}

/* ---- create ------------------------------------------------------------------------------------ */

struct geometry {
    uint32_t cyls, heads, track;
};

static uint64_t geometry_sectors(const struct geometry *g)
{
    return (uint64_t)g->cyls * g->heads * g->track;
}

/* The specification's: 17 sectors a track, then 31, 63 and 255, at most 16 heads. */
static struct geometry geometry_of(uint64_t sectors)
{
    struct geometry g = { 0, 16, 255 };
    uint64_t tracks;

    sectors = BLK_MIN(sectors, VPC_GEOMETRY_MAX);
    tracks = sectors / g.track;
    if (sectors < 65535ull * 16 * 63) {
        g.track = 17;
        tracks = sectors / g.track;
        g.heads = (uint32_t)BLK_MAX((tracks + 1023) / 1024, 4u);
        if (tracks >= g.heads * 1024ull || g.heads > 16) {
            g.track = 31;
            g.heads = 16;
            tracks = sectors / g.track;
        }
        if (tracks >= g.heads * 1024ull) {
            g.track = 63;
            g.heads = 16;
            tracks = sectors / g.track;
        }
    }
    g.cyls = (uint32_t)(tracks / g.heads);
    return g;
}

struct create {
    uint64_t sectors;               /* virtual size, rounded as QEMU does */
    bool fixed, force;
    struct geometry g;
};

static int take_format(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    const char *sub = blk_opts_get(o, "subformat");
    c->fixed = sub && !strcmp(sub, "fixed");
    if (sub && !c->fixed && strcmp(sub, "dynamic")) {
        return blk_err(e, EINVAL, "Parameter 'subformat' does not accept value '%s'", sub);
    }
    return blk_opts_get_bool(o, "force_size", &c->force, e);
}

static int take_sectors(struct create *c, struct blk_opts *o, struct blk_error *e)
{
    uint64_t size = 0, want;
    int err = blk_opts_get_size(o, "size", &size, e);
    if (err) {
        return err;
    }
    want = BLK_MIN(size, BLK_SIZE_MAX) / 512 + !!(size % 512);
    c->sectors = want;
    want = BLK_MIN(want, VPC_GEOMETRY_MAX);
    if (c->force) {
        c->g = (struct geometry){ VPC_CYLS_MAX, VPC_HEADS_MAX, VPC_TRACK_MAX };
    }
    /* The smallest geometry that holds what was asked for. */
    for (uint64_t more = 0; !c->force && geometry_sectors(&c->g) < want; more++) {
        c->g = geometry_of(want + more);
    }
    if (geometry_sectors(&c->g) != VPC_GEOMETRY_MAX) {
        c->sectors = geometry_sectors(&c->g);
    } else if (c->sectors > VPC_SECTORS_MAX) {
        return blk_err(e, EFBIG, "Disk size is too large, max size is 2040 GiB");
    }
    return 0;
}

static int vpc_create_check(struct blk_opts *o, struct blk_error *e)
{
    struct create c = { 0 };
    int err = take_format(&c, o, e);
    return err ? err : take_sectors(&c, o, e);
}

static void build_footer(const struct create *c, uint8_t *f)
{
    memset(f, 0, VF_BYTES);
    memcpy(f + VF_COOKIE, "conectix", 8);
    put_be32(f + VF_FEATURES, 2);
    put_be32(f + VF_VERSION, 0x00010000);
    put_be64(f + VF_DATA_OFFSET, c->fixed ? UINT64_MAX : VF_BYTES);
    put_be32(f + VF_TIMESTAMP, (uint32_t)(time(NULL) - VPC_EPOCH));
    memcpy(f + VF_CREATOR, c->force ? "qem2" : "qemu", 4);
    put_be16(f + VF_MAJOR, 5);
    put_be16(f + VF_MINOR, 3);
    memcpy(f + VF_OS, "Wi2k", 4);
    put_be64(f + VF_ORIG_SIZE, c->sectors * 512);
    put_be64(f + VF_SIZE, c->sectors * 512);
    put_be16(f + VF_CYLS, (uint16_t)c->g.cyls);
    f[VF_HEADS] = (uint8_t)c->g.heads;
    f[VF_TRACK] = (uint8_t)c->g.track;
    put_be32(f + VF_TYPE, c->fixed ? VPC_FIXED : VPC_DYNAMIC);
    blk_uuid_generate(f + VF_UUID);
    put_be32(f + VF_CHECKSUM, vpc_checksum(f, VF_BYTES, VF_CHECKSUM));
}

/* An empty table, the footer behind it, the header; the footer in front comes last. */
static int write_dynamic(const struct create *c, struct blk_node *file, const uint8_t *footer)
{
    uint64_t entries = (c->sectors * 512 + VPC_BLOCK - 1) / VPC_BLOCK;
    size_t len = (size_t)blk_align_up(entries * 4, 512);
    uint64_t table = VF_BYTES + VD_BYTES;
    uint8_t h[VD_BYTES] = { 0 };
    uint8_t *ones = malloc(len ? len : 1);
    int err = ones ? 0 : -ENOMEM;

    memcpy(h + VD_COOKIE, "cxsparse", 8);
    put_be64(h + VD_DATA_OFFSET, UINT64_MAX);
    put_be64(h + VD_TABLE, table);
    put_be32(h + VD_VERSION, 0x00010000);
    put_be32(h + VD_ENTRIES, (uint32_t)entries);
    put_be32(h + VD_BLOCK, VPC_BLOCK);
    put_be32(h + VD_CHECKSUM, vpc_checksum(h, VD_BYTES, VD_CHECKSUM));
    if (!err && len) {
        memset(ones, 0xff, len);
        err = co_write(file, table, ones, len, 0);
    }
    err = err ? err : co_write(file, table + len, footer, VF_BYTES, 0);
    err = err ? err : co_write(file, VF_BYTES, h, VD_BYTES, 0);
    err = err ? err : co_write(file, 0, footer, VF_BYTES, 0);
    free(ones);
    return err;
}

static int vpc_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                      struct blk_error *e)
{
    struct create c = { 0 };
    uint8_t footer[VF_BYTES];
    int err = take_format(&c, o, e);

    err = err ? err : take_sectors(&c, o, e);
    if (err) {
        return err;
    }
    build_footer(&c, footer);
    if (c.fixed) {
        err = blk_truncate(file, c.sectors * 512 + VF_BYTES, false, BLK_PREALLOC_OFF, e);
        err = err ? err : co_write(file, c.sectors * 512, footer, VF_BYTES, 0);
    } else {
        err = write_dynamic(&c, file, footer);
    }
    return err ? blk_err_errno(e, -err, "Unable to create or write VHD header") : 0;
}

static const struct blk_option_desc vpc_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "subformat", BLK_OPT_STRING, "Type of virtual hard disk format. Supported formats are "
      "{dynamic (default) | fixed} ", NULL },
    { "force_size", BLK_OPT_BOOL, "Force disk size calculation to use the actual size specified, "
      "rather than using the nearest CHS-based calculation", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

const struct blk_driver blk_vpc = {
    .name = "vpc",
    .facts = vpc_facts,
    .create_opts = vpc_create_opts,
    .probe = vpc_probe,
    .open = vpc_open,
    .close = vpc_close,
    .submit = vpc_submit,
    .status = vpc_status,
    .create_check = vpc_create_check,
    .create = vpc_create,
};
