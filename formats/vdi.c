/*
 * vdi.c - VirtualBox disk images, version 1.1: a header, a block map of 32-bit block
 * numbers, blocks of 1 MiB.  Little endian.
 *
 * Invariants
 *  - The header's count of blocks is what others allocate after: it goes to disk before
 *    the entries do, and is never lower than the highest entry in use.
 */
#include "formats/blockmap.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define VDI_SIGNATURE   0xbeda107fu
#define VDI_VERSION     0x00010001u
#define VDI_DYNAMIC     1u
#define VDI_STATIC      2u
#define VDI_BLOCK       (1u << 20)
#define VDI_ABSENT      0xffffffffu
#define VDI_DISCARDED   0xfffffffeu     /* was data, reads zeros */
#define VDI_BLOCKS_MAX  0x1fffff80u
#define VDI_SIZE_MAX    ((uint64_t)VDI_BLOCKS_MAX * VDI_BLOCK)
#define VDI_SCAN_MAX    (1u << 26)      /* blocks for which gaps are looked for */

/* The header, 512 bytes. */
enum {
    VH_TEXT = 0, VH_SIGNATURE = 64, VH_VERSION = 68, VH_HEADER_SIZE = 72, VH_TYPE = 76,
    VH_MAP = 340, VH_DATA = 344, VH_SECTOR = 360, VH_SIZE = 368, VH_BLOCK = 376,
    VH_BLOCKS = 384, VH_ALLOCATED = 388, VH_UUID = 392, VH_UUID_SNAP = 408,
    VH_UUID_LINK = 424, VH_UUID_PARENT = 440, VH_BYTES = 512,
};

struct vdi {
    struct blockmap map;            /* first: see bm_of() */
    uint8_t header[VH_BYTES];
    uint64_t data;                  /* where block 0 is */
};

static struct vdi *vdi_of(const struct blockmap *m)
{
    return blk_container_of(m, struct vdi, map);
}

/* ---- the block map -------------------------------------------------------------------- */

static uint64_t vdi_decode(const struct blockmap *m, const uint8_t *raw)
{
    uint32_t e = le32(raw);
    if (e >= VDI_DISCARDED) {
        return BM_ABSENT;
    }
    return e < m->blocks ? vdi_of(m)->data + (uint64_t)e * VDI_BLOCK : BM_BAD;
}

static void vdi_encode(const struct blockmap *m, uint64_t v, uint8_t *raw)
{
    put_le32(raw, bm_is_data(v) ? (uint32_t)((v - vdi_of(m)->data) / VDI_BLOCK) : VDI_ABSENT);
}

static int vdi_settle(struct blockmap *m)
{
    struct vdi *d = vdi_of(m);
    uint32_t allocated = (uint32_t)((m->next - d->data) / VDI_BLOCK);
    if (le32(d->header + VH_ALLOCATED) == allocated) {
        return 0;
    }
    put_le32(d->header + VH_ALLOCATED, allocated);
    return co_write(m->file, 0, d->header, VH_BYTES, 0);
}

static const struct blockmap_ops vdi_map_ops = {
    .decode = vdi_decode,
    .encode = vdi_encode,
    .settle = vdi_settle,
};

/* ---- open ------------------------------------------------------------------------------- */

static int vdi_probe(const uint8_t *buf, size_t len)
{
    return len >= VH_BYTES && le32(buf + VH_SIGNATURE) == VDI_SIGNATURE ? 100 : 0;
}

static int check_version(const uint8_t *h, struct blk_error *e)
{
    uint32_t version = le32(h + VH_VERSION);
    if (le64(h + VH_SIZE) > VDI_SIZE_MAX) {
        return blk_err(e, ENOTSUP, "Unsupported VDI image size (size is 0x%llx, max supported is "
                       "0x%llx)", (unsigned long long)le64(h + VH_SIZE),
                       (unsigned long long)VDI_SIZE_MAX);
    }
    if (le32(h + VH_SIGNATURE) != VDI_SIGNATURE) {
        return blk_err(e, EINVAL, "Image not in VDI format (bad signature %08x)",
                       le32(h + VH_SIGNATURE));
    }
    if (version != VDI_VERSION) {
        return blk_err(e, ENOTSUP, "unsupported VDI image (version %u.%u)", version >> 16,
                       version & 0xffff);
    }
    return 0;
}

static int check_geometry(const uint8_t *h, uint64_t size, struct blk_error *e)
{
    uint64_t room = (uint64_t)le32(h + VH_BLOCKS) * le32(h + VH_BLOCK);
    if (le32(h + VH_MAP) % 512) {
        return blk_err(e, ENOTSUP, "unsupported VDI image (unaligned block map offset 0x%x)",
                       le32(h + VH_MAP));
    }
    if (le32(h + VH_DATA) % 512) {
        return blk_err(e, ENOTSUP, "unsupported VDI image (unaligned data offset 0x%x)",
                       le32(h + VH_DATA));
    }
    if (le32(h + VH_SECTOR) != 512) {
        return blk_err(e, ENOTSUP, "unsupported VDI image (sector size %u is not 512)",
                       le32(h + VH_SECTOR));
    }
    if (le32(h + VH_BLOCK) != VDI_BLOCK) {
        return blk_err(e, ENOTSUP, "unsupported VDI image (block size %u is not %u)",
                       le32(h + VH_BLOCK), VDI_BLOCK);
    }
    if (size > room) {
        return blk_err(e, ENOTSUP, "unsupported VDI image (disk size %llu, image bitmap has room "
                       "for %llu)", (unsigned long long)size, (unsigned long long)room);
    }
    return 0;
}

static int check_links(const uint8_t *h, struct blk_error *e)
{
    if (!blk_is_zero(h + VH_UUID_LINK, 16)) {
        return blk_err(e, ENOTSUP, "unsupported VDI image (non-NULL link UUID)");
    }
    if (!blk_is_zero(h + VH_UUID_PARENT, 16)) {
        return blk_err(e, ENOTSUP, "unsupported VDI image (non-NULL parent UUID)");
    }
    if (le32(h + VH_BLOCKS) > VDI_BLOCKS_MAX) {
        return blk_err(e, ENOTSUP, "unsupported VDI image (too many blocks %u, max is %u)",
                       le32(h + VH_BLOCKS), VDI_BLOCKS_MAX);
    }
    return 0;
}

/* Header, block map and blocks do not overlap, and the map is there. */
static int check_layout(const uint8_t *h, uint64_t file_size, struct blk_error *e)
{
    uint64_t map = le32(h + VH_MAP), end = map + (uint64_t)le32(h + VH_BLOCKS) * 4;
    if (!le32(h + VH_BLOCKS)) {
        return 0;
    }
    if (map < VH_BYTES || end > file_size) {
        return blk_err(e, EINVAL, "unsupported VDI image (block map at offset 0x%llx, %llu bytes, "
                       "is not within the file)", (unsigned long long)map,
                       (unsigned long long)(end - map));
    }
    if (le32(h + VH_DATA) < end) {
        return blk_err(e, EINVAL, "unsupported VDI image (data offset 0x%x lies within the block "
                       "map)", le32(h + VH_DATA));
    }
    return 0;
}

static void set_map(struct blk_node *n, struct vdi *d)
{
    d->data = le32(d->header + VH_DATA);
    d->map = (struct blockmap){
        .n = n, .file = n->file, .ops = &vdi_map_ops,
        .blocks = le32(d->header + VH_BLOCKS), .block_size = VDI_BLOCK, .entry_size = 4,
        .table_offset = le32(d->header + VH_MAP),
        .data_start = d->data,
        .data_end = d->data + le32(d->header + VH_BLOCKS) * (uint64_t)VDI_BLOCK,
        .absent_is_zero = true,
        .holes = le32(d->header + VH_TYPE) == VDI_STATIC,
    };
}

/* Highest place in use, and how many are. */
static int scan(struct vdi *d, uint64_t *end, uint64_t *used)
{
    int err = 0;
    *end = *used = 0;
    for (uint64_t i = 0; !err && i < d->map.blocks; i++) {
        uint64_t v;
        err = blockmap_get(&d->map, i, &v);
        if (!err && bm_is_data(v)) {
            *end = BLK_MAX(*end, (v - d->data) / VDI_BLOCK + 1);
            ++*used;
        }
    }
    return err;
}

/* The places below end that no entry names. */
static int add_gaps(struct vdi *d, uint64_t end)
{
    uint8_t *used = calloc(end / 8 + 1, 1);
    int err = used ? 0 : -ENOMEM;
    for (uint64_t i = 0; !err && i < d->map.blocks; i++) {
        uint64_t v;
        err = blockmap_get(&d->map, i, &v);
        if (!err && bm_is_data(v)) {
            uint64_t at = (v - d->data) / VDI_BLOCK;
            used[at / 8] |= (uint8_t)(1u << at % 8);
        }
    }
    for (uint64_t at = end; !err && at--;) {
        if (!(used[at / 8] >> at % 8 & 1)) {
            err = blockmap_add_free(&d->map, d->data + at * VDI_BLOCK);
        }
    }
    free(used);
    return err;
}

/* Where new blocks go.  The count in the header is only a hint: what is above the
 * highest entry was never published. */
static int find_room(struct vdi *d)
{
    uint64_t end, used;
    int err = scan(d, &end, &used);
    d->map.next = d->data + end * VDI_BLOCK;
    return err || used >= end || d->map.blocks > VDI_SCAN_MAX ? err : add_gaps(d, end);
}

static int open_header(struct blk_node *n, struct vdi *d, struct blk_error *e)
{
    int err = co_read(n->file, 0, d->header, VH_BYTES);
    if (err) {
        return blk_err_errno(e, -err, "Could not read the VDI header");
    }
    err = check_version(d->header, e);
    if (!err) {
        n->size = blk_align_up(le64(d->header + VH_SIZE), 512);
        err = check_geometry(d->header, n->size, e);
    }
    err = err ? err : check_links(d->header, e);
    return err ? err : check_layout(d->header, n->file->size, e);
}

static int vdi_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct vdi *d = calloc(1, sizeof(*d));
    int err = d ? open_header(n, d, e) : -ENOMEM;

    if (!err) {
        set_map(n, d);
        err = blockmap_init(&d->map, e);
    }
    if (!err && !n->read_only) {
        err = find_room(d);
        err = err ? blk_err_errno(e, -err, "Could not read the block map") : 0;
    }
    if (err) {
        if (d) {
            blockmap_free(&d->map);
        }
        free(d);
        return err;
    }
    n->starts_as_zeros = !d->map.holes || n->file->starts_as_zeros;
    n->state = d;
    return 0;
}

static int vdi_close(struct blk_node *n, struct blk_error *e)
{
    struct vdi *d = n->state;
    blockmap_free(&d->map);
    free(d);
    return 0;
}

static void vdi_submit(struct blk_node *n, struct blk_req *req)
{
    blockmap_submit(n->state, req);
}

static int vdi_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    return blockmap_status(n->state, off, len, st);
}

/* ---- check ---------------------------------------------------------------------------------- */

/* As QEMU: entries beyond the count of blocks, places with two entries, and a count in
 * the header that is not that of the entries. */
static int check_entries(struct vdi *d, uint8_t *seen, struct blk_check *c, uint32_t *used)
{
    int err = 0;
    for (uint64_t i = 0; !err && i < d->map.blocks; i++) {
        uint8_t raw[4];
        err = blockmap_get_raw(&d->map, i, raw);
        uint32_t at = err ? VDI_ABSENT : le32(raw);
        if (at >= VDI_DISCARDED) {
            continue;
        }
        if (at >= d->map.blocks) {
            blk_check_say(c, true, "ERROR: block index %u too large, is %u", (uint32_t)i, at);
            c->corruptions++;
            continue;
        }
        ++*used;
        if (seen[at / 8] >> at % 8 & 1) {
            blk_check_say(c, true, "ERROR: block index %u also used by %u", at, at);
            c->corruptions++;
        }
        seen[at / 8] |= (uint8_t)(1u << at % 8);
    }
    return err;
}

static int vdi_check(struct blk_node *n, struct blk_check *c, int fix, struct blk_error *e)
{
    struct vdi *d = n->state;
    uint32_t used = 0, counted = le32(d->header + VH_ALLOCATED);
    uint8_t *seen;

    if (fix) {
        return -ENOTSUP;
    }
    seen = calloc(d->map.blocks / 8 + 1, 1);
    if (!seen) {
        return -ENOMEM;
    }
    int err = check_entries(d, seen, c, &used);
    free(seen);
    if (!err && used != counted) {
        blk_check_say(c, true, "ERROR: allocated blocks mismatch, is %u, should be %u", used,
                      counted);
        c->corruptions++;
    }
    return err;
}

/* ---- create ----------------------------------------------------------------------------------- */

static void build_header(uint8_t *h, uint64_t size, bool is_static)
{
    uint32_t blocks = (uint32_t)((size + VDI_BLOCK - 1) / VDI_BLOCK);
    memset(h, 0, VH_BYTES);
    strcpy((char *)h + VH_TEXT, "<<< QEMU VM Virtual Disk Image >>>\n");
    put_le32(h + VH_SIGNATURE, VDI_SIGNATURE);
    put_le32(h + VH_VERSION, VDI_VERSION);
    put_le32(h + VH_HEADER_SIZE, 0x180);
    put_le32(h + VH_TYPE, is_static ? VDI_STATIC : VDI_DYNAMIC);
    put_le32(h + VH_MAP, VH_BYTES);
    put_le32(h + VH_DATA, VH_BYTES + (uint32_t)blk_align_up(blocks * 4ull, 512));
    put_le32(h + VH_SECTOR, 512);
    put_le64(h + VH_SIZE, size);
    put_le32(h + VH_BLOCK, VDI_BLOCK);
    put_le32(h + VH_BLOCKS, blocks);
    put_le32(h + VH_ALLOCATED, is_static ? blocks : 0);
    blk_uuid_generate(h + VH_UUID);
    blk_uuid_generate(h + VH_UUID_SNAP);
}

/* The block map, with zeros up to the data. */
static int write_map(struct blk_node *file, const uint8_t *h, bool is_static)
{
    enum { CHUNK = 1 << 20 };
    uint64_t blocks = le32(h + VH_BLOCKS), end = le32(h + VH_DATA) - VH_BYTES;
    uint8_t *buf = blk_buf_alloc(CHUNK);
    int err = buf ? 0 : -ENOMEM;

    for (uint64_t off = 0; !err && off < end; off += CHUNK) {
        size_t len = (size_t)BLK_MIN(end - off, (uint64_t)CHUNK);
        for (size_t i = 0; i < len / 4; i++) {
            uint64_t b = off / 4 + i;
            put_le32(buf + i * 4, b >= blocks ? 0 : is_static ? (uint32_t)b : VDI_ABSENT);
        }
        err = co_write(file, VH_BYTES + off, buf, len, 0);
    }
    blk_buf_free(buf);
    return err;
}

static int take_create(struct blk_opts *o, uint64_t *size, bool *is_static, struct blk_error *e)
{
    *size = 0;
    *is_static = false;
    int err = blk_opts_get_size(o, "size", size, e);
    err = err ? err : blk_opts_get_bool(o, "static", is_static, e);
    *size = blk_align_up(BLK_MIN(*size, BLK_SIZE_MAX), 512);
    if (!err && *size > VDI_SIZE_MAX) {
        return blk_err(e, ENOTSUP, "Unsupported VDI image size (size is 0x%llx, max supported is "
                       "0x%llx)", (unsigned long long)*size, (unsigned long long)VDI_SIZE_MAX);
    }
    return err;
}

static int vdi_create_check(struct blk_opts *o, struct blk_error *e)
{
    uint64_t size;
    bool is_static;
    return take_create(o, &size, &is_static, e);
}

static int vdi_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                      struct blk_error *e)
{
    uint8_t h[VH_BYTES];
    uint64_t size;
    bool is_static;
    int err = take_create(o, &size, &is_static, e);

    if (err) {
        return err;
    }
    build_header(h, size, is_static);
    err = write_map(file, h, is_static);
    if (!err && is_static) {
        err = blk_truncate(file, le32(h + VH_DATA) + le32(h + VH_BLOCKS) * (uint64_t)VDI_BLOCK,
                           false, BLK_PREALLOC_OFF, e);
    }
    err = err ? err : co_write(file, 0, h, VH_BYTES, 0);
    return err ? blk_err_errno(e, -err, "Could not write the VDI image") : 0;
}

static const struct blk_option_desc vdi_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "static", BLK_OPT_BOOL, "VDI static (pre-allocated) image", "off" },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

const struct blk_driver blk_vdi = {
    .name = "vdi",
    .create_opts = vdi_create_opts,
    .probe = vdi_probe,
    .open = vdi_open,
    .close = vdi_close,
    .submit = vdi_submit,
    .status = vdi_status,
    .check = vdi_check,
    .create_check = vdi_create_check,
    .create = vdi_create,
};
