/*
 * header.c - what has a fixed place: the two headers and the two region tables; and
 * the metadata the regions lead to.
 *
 * Invariant: of the two headers one is valid and older while the other is written;
 * the one with the higher sequence number counts.
 */
#include "formats/vhdx/vhdx.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* {8b7ca206-4790-4b9a-b8fe-575f050f886e} and so on, in the order of bytes on disk. */
const struct vhdx_guid vhdx_bat_guid = {
    { 0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08 } };
const struct vhdx_guid vhdx_metadata_guid = {
    { 0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e } };
const struct vhdx_guid vhdx_params_guid = {
    { 0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b } };
const struct vhdx_guid vhdx_size_guid = {
    { 0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8 } };
const struct vhdx_guid vhdx_page83_guid = {
    { 0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46 } };
const struct vhdx_guid vhdx_logical_guid = {
    { 0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f } };
const struct vhdx_guid vhdx_physical_guid = {
    { 0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56 } };
static const struct vhdx_guid parent_guid = {
    { 0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c } };

/* ---- headers ------------------------------------------------------------------------ */

static bool header_decode(const uint8_t *buf, struct vhdx_header *h)
{
    if (!vhdx_crc_valid(buf, VHDX_HEADER_BYTES) || memcmp(buf, "head", 4) ||
        le16(buf + VH_VERSION) != 1) {
        return false;
    }
    h->sequence = le64(buf + VH_SEQUENCE);
    memcpy(&h->file_guid, buf + VH_FILE_GUID, 16);
    memcpy(&h->data_guid, buf + VH_DATA_GUID, 16);
    memcpy(&h->log_guid, buf + VH_LOG_GUID, 16);
    h->log_version = le16(buf + VH_LOG_VERSION);
    h->log_length = le32(buf + VH_LOG_LENGTH);
    h->log_offset = le64(buf + VH_LOG_OFFSET);
    return true;
}

void vhdx_header_encode(uint8_t *buf, const struct vhdx_header *h)
{
    memcpy(buf, "head", 4);
    put_le64(buf + VH_SEQUENCE, h->sequence);
    memcpy(buf + VH_FILE_GUID, &h->file_guid, 16);
    memcpy(buf + VH_DATA_GUID, &h->data_guid, 16);
    memcpy(buf + VH_LOG_GUID, &h->log_guid, 16);
    put_le16(buf + VH_LOG_VERSION, h->log_version);
    put_le16(buf + VH_VERSION, 1);
    put_le32(buf + VH_LOG_LENGTH, h->log_length);
    put_le64(buf + VH_LOG_OFFSET, h->log_offset);
    vhdx_crc_seal(buf, VHDX_HEADER_BYTES);
}

static int choose_header(struct vhdx *v, const struct vhdx_header h[2], const bool ok[2],
                         const uint8_t *buf)
{
    if (!ok[0] && !ok[1]) {
        return -EINVAL;
    }
    v->current = ok[0] && ok[1] ? h[1].sequence > h[0].sequence : !ok[0];
    v->h = h[v->current];
    /* Disk2vhd writes the same header twice. */
    return ok[0] && ok[1] && h[0].sequence == h[1].sequence &&
           memcmp(buf, buf + VHDX_HEADER_BYTES, VH_END) ? -EINVAL : 0;
}

int vhdx_header_read(struct vhdx *v, struct blk_error *e)
{
    uint8_t *buf = blk_buf_alloc(2 * VHDX_HEADER_BYTES);
    struct vhdx_header h[2] = { 0 };
    bool ok[2];
    int err = buf ? co_read(v->file, 0, buf, 8) : -ENOMEM;

    if (!err && memcmp(buf, "vhdxfile", 8)) {
        err = blk_err_errno(e, EINVAL, "Could not open '%s'", v->file->shown);      /* QEMU says no more */
    }
    for (unsigned i = 0; !err && i < 2; i++) {
        err = co_read(v->file, VHDX_HEADER_AT * (1ull + i), buf + i * VHDX_HEADER_BYTES,
                      VHDX_HEADER_BYTES);
        ok[i] = !err && header_decode(buf + i * VHDX_HEADER_BYTES, &h[i]);
    }
    if (!err && choose_header(v, h, ok, buf)) {
        err = blk_err(e, EINVAL, "No valid VHDX header found");
    }
    blk_buf_free(buf);
    if (!err && (v->h.log_offset < VHDX_SECTION_END || v->h.log_offset % VHDX_MIB ||
                 v->h.log_offset > INT64_MAX - UINT32_MAX || v->h.log_length % VHDX_MIB ||
                 v->h.log_version != 0)) {
        err = blk_err(e, EINVAL, "Invalid VHDX log: version %u, offset %llu, length %u",
                      v->h.log_version, (unsigned long long)v->h.log_offset, v->h.log_length);
    }
    return err ? blk_err_errno(e, -err, "Could not read the VHDX header") : 0;
}

/* What is reserved in a header is kept. */
static int header_write(struct vhdx *v, unsigned i, const struct vhdx_header *h, uint8_t *buf)
{
    uint64_t at = VHDX_HEADER_AT * (1ull + i);
    int err = co_read(v->file, at, buf, VHDX_HEADER_BYTES);

    if (!err) {
        vhdx_header_encode(buf, h);
        err = co_write(v->file, at, buf, VHDX_HEADER_BYTES, 0);
    }
    return err ? err : co_flush(v->file);
}

int vhdx_header_update(struct vhdx *v, const struct vhdx_header *h)
{
    struct vhdx_header next = *h;
    uint8_t *buf = blk_buf_alloc(VHDX_HEADER_BYTES);
    int err = buf ? 0 : -ENOMEM;

    for (int i = 0; !err && i < 2; i++) {
        next.sequence = v->h.sequence + 1;
        err = header_write(v, !v->current, &next, buf);
        if (!err) {
            v->current = !v->current;
            v->h = next;
        }
    }
    blk_buf_free(buf);
    return err;
}

/* ---- regions ------------------------------------------------------------------------ */

static int by_start(const void *a, const void *b)
{
    const struct vhdx_region *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

const struct vhdx_region *vhdx_region_at(const struct vhdx *v, uint64_t start, uint64_t end)
{
    size_t lo = 0, hi = v->nregions;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (v->regions[mid].end <= start) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo < v->nregions && v->regions[lo].start < end ? &v->regions[lo] : NULL;
}

static int regions_settle(struct vhdx *v, struct blk_error *e)
{
    qsort(v->regions, v->nregions, sizeof(*v->regions), by_start);
    for (size_t i = 1; i < v->nregions; i++) {
        const struct vhdx_region *a = &v->regions[i - 1], *b = &v->regions[i];
        if (a->end > b->start) {
            return blk_err(e, EINVAL, "VHDX region %llu-%llu overlaps with region %llu-%llu",
                           (unsigned long long)b->start, (unsigned long long)b->end,
                           (unsigned long long)a->start, (unsigned long long)a->end);
        }
    }
    if (!v->bat.end || !v->metadata.end) {
        return blk_err(e, EINVAL, "The VHDX region table has no %s",
                       v->bat.end ? "metadata region" : "block allocation table");
    }
    return 0;
}

static int region_add(struct vhdx *v, const uint8_t *entry, unsigned i, struct blk_error *e)
{
    struct vhdx_region r = { le64(entry + 16), 0 };
    struct vhdx_region *known = vhdx_guid_is(entry, &vhdx_bat_guid) ? &v->bat
                              : vhdx_guid_is(entry, &vhdx_metadata_guid) ? &v->metadata : NULL;

    if (blk_add_overflow(r.start, le32(entry + 24), &r.end) || r.end > INT64_MAX ||
        r.start < VHDX_SECTION_END || r.start % VHDX_MIB) {
        return blk_err(e, EINVAL, "VHDX region %u at offset %llu with length %u is invalid", i,
                       (unsigned long long)r.start, le32(entry + 24));
    }
    if (known && known->end) {
        return blk_err(e, EINVAL, "VHDX region %u is there twice", i);
    }
    if (!known && le32(entry + 28) & 1) {
        return blk_err(e, ENOTSUP, "VHDX region %u is of an unknown kind, but required", i);
    }
    if (known) {
        *known = r;
    }
    if (r.end > r.start) {
        v->regions[v->nregions++] = r;
    }
    return 0;
}

static bool regions_valid(const uint8_t *buf)
{
    return vhdx_crc_valid(buf, VHDX_REGIONS_BYTES) && !memcmp(buf, "regi", 4) &&
           le32(buf + 8) <= VHDX_REGIONS_MAX;
}

int vhdx_regions_read(struct vhdx *v, struct blk_error *e)
{
    uint8_t *buf = blk_buf_alloc(VHDX_REGIONS_BYTES);
    int err = buf ? 0 : -ENOMEM;

    v->regions = calloc(VHDX_REGIONS_MAX + 1, sizeof(*v->regions));
    err = v->regions ? err : -ENOMEM;
    err = err ? err : co_read(v->file, VHDX_REGIONS_AT, buf, VHDX_REGIONS_BYTES);
    if (!err && !regions_valid(buf)) {
        err = co_read(v->file, VHDX_REGIONS_AT + VHDX_REGIONS_BYTES, buf, VHDX_REGIONS_BYTES);
        if (!err && !regions_valid(buf)) {
            err = blk_err(e, EINVAL, "Neither VHDX region table (offsets 0x%x, 0x%x) is valid",
                          VHDX_REGIONS_AT, VHDX_REGIONS_AT + VHDX_REGIONS_BYTES);
        }
    }
    if (!err && v->h.log_length) {
        v->regions[v->nregions++] = (struct vhdx_region){
            v->h.log_offset, v->h.log_offset + v->h.log_length };
    }
    for (unsigned i = 0, count = err ? 0 : le32(buf + 8); !err && i < count; i++) {
        err = region_add(v, buf + 16 + i * 32, i, e);
    }
    err = err ? err : regions_settle(v, e);
    blk_buf_free(buf);
    return err ? blk_err_errno(e, -err, "Could not read the VHDX region table") : 0;
}

/* ---- metadata ----------------------------------------------------------------------- */

enum { PARAMS, SIZE, PAGE83, LOGICAL, PHYSICAL, PARENT, ITEMS };

static const struct { const struct vhdx_guid *guid; uint32_t len; } items[ITEMS] = {
    { &vhdx_params_guid, 8 }, { &vhdx_size_guid, 8 }, { &vhdx_page83_guid, 16 },
    { &vhdx_logical_guid, 4 }, { &vhdx_physical_guid, 4 }, { &parent_guid, 20 },
};

/* Where each item is in the metadata region, 0: not there. */
static int table_parse(const struct vhdx *v, const uint8_t *buf, uint32_t at[ITEMS],
                       struct blk_error *e)
{
    unsigned count = le16(buf + 10);
    uint64_t room = v->metadata.end - v->metadata.start;

    if (memcmp(buf, "metadata", 8) || count > VHDX_REGIONS_MAX) {
        return blk_err(e, EINVAL, "The VHDX metadata table at offset %llu is invalid",
                       (unsigned long long)v->metadata.start);
    }
    for (unsigned i = 0; i < count; i++) {
        const uint8_t *entry = buf + 32 + i * 32;
        uint32_t off = le32(entry + 16), k = 0;
        while (k < ITEMS && !vhdx_guid_is(entry, items[k].guid)) {
            k++;
        }
        if (k == ITEMS && le32(entry + 24) & 4) {
            return blk_err(e, ENOTSUP, "VHDX metadata item %u is unknown, but required", i);
        }
        if (k < ITEMS && (at[k] || off < VHDX_REGIONS_BYTES || (uint64_t)off + items[k].len > room)) {
            return blk_err(e, EINVAL, "VHDX metadata item %u at offset %u is %s", i, off,
                           at[k] ? "there twice" : "outside of the region");
        }
        if (k < ITEMS) {
            at[k] = off;
        }
    }
    for (unsigned k = 0; k < PARENT; k++) {
        if (!at[k]) {
            return blk_err(e, ENOTSUP, "The VHDX metadata lack a required item");
        }
    }
    return 0;
}

static int read_item(struct vhdx *v, uint32_t at, uint64_t *out, uint32_t len)
{
    uint8_t buf[8] = { 0 };
    int err = co_read(v->file, v->metadata.start + at, buf, len);
    *out = le64(buf);
    return err;
}

static int geometry_check(struct vhdx *v, uint64_t params, uint64_t logical, uint64_t physical,
                          struct blk_error *e)
{
    uint32_t block = (uint32_t)params;

    if (params >> 32 & VHDX_PARAM_PARENT) {
        return blk_err(e, ENOTSUP, "Differencing VHDX images are not supported");
    }
    if (block < VHDX_BLOCK_MIN || block > VHDX_BLOCK_MAX || block & (block - 1)) {
        return blk_err(e, EINVAL, "Invalid VHDX block size %u", block);
    }
    if ((logical != 512 && logical != 4096) || (physical != 512 && physical != 4096)) {
        return blk_err(e, EINVAL, "Invalid VHDX sector sizes %llu, %llu",
                       (unsigned long long)logical, (unsigned long long)physical);
    }
    if (v->size > VHDX_SIZE_MAX || v->size % logical) {
        return blk_err(e, EINVAL, "Invalid VHDX disk size %llu", (unsigned long long)v->size);
    }
    v->block_size = block;
    v->sector_size = (uint32_t)logical;
    v->blocks = (v->size + block - 1) / block;
    v->chunk_ratio = (logical << 23) / block;
    if (vhdx_bat_entries(v->blocks, v->chunk_ratio) * 8 > v->bat.end - v->bat.start) {
        return blk_err(e, EINVAL, "The VHDX block allocation table is too short for %llu blocks",
                       (unsigned long long)v->blocks);
    }
    return 0;
}

uint64_t vhdx_bat_entries(uint64_t blocks, uint64_t chunk_ratio)
{
    return blocks ? blocks + (blocks - 1) / chunk_ratio : 0;
}

int vhdx_metadata_read(struct vhdx *v, struct blk_error *e)
{
    uint8_t *buf = blk_buf_alloc(VHDX_REGIONS_BYTES);
    uint32_t at[ITEMS] = { 0 };
    uint64_t params = 0, logical = 0, physical = 0;
    int err = buf ? co_read(v->file, v->metadata.start, buf, VHDX_REGIONS_BYTES) : -ENOMEM;

    err = err ? err : table_parse(v, buf, at, e);
    err = err ? err : read_item(v, at[PARAMS], &params, 8);
    err = err ? err : read_item(v, at[SIZE], &v->size, 8);
    err = err ? err : read_item(v, at[LOGICAL], &logical, 4);
    err = err ? err : read_item(v, at[PHYSICAL], &physical, 4);
    err = err ? err : geometry_check(v, params, logical, physical, e);
    blk_buf_free(buf);
    return err ? blk_err_errno(e, -err, "Could not read the VHDX metadata") : 0;
}

/* ---- facts ------------------------------------------------------------------------------ */

/* A parent's locator: a GUID, a count, entries of where key and value are and their
 * lengths, the texts. */
enum { VP_COUNT = 18, VP_ENTRIES = 20, VP_ENTRY = 12, VP_BYTES = 65536 };

static bool is_path_key(const uint8_t *key, size_t len)
{
    static const char end[] = "path";           /* relative_path, absolute_win32_path, ... */

    for (size_t i = 0; i < 4 && len >= 8; i++) {
        if (le16(key + len - 8 + 2 * i) != (uint8_t)end[i]) {
            return false;
        }
    }
    return len >= 8;
}

static void locator_facts(const uint8_t *p, size_t len, struct blk_facts *f)
{
    for (unsigned i = 0, n = le16(p + VP_COUNT); i < n; i++) {
        const uint8_t *entry = p + VP_ENTRIES + (size_t)i * VP_ENTRY;
        if ((size_t)(entry - p) + VP_ENTRY > len) {
            return;
        }
        uint32_t key = le32(entry), value = le32(entry + 4);
        uint32_t key_len = le16(entry + 8), value_len = le16(entry + 10);
        if (key < len && value < len && key_len <= len - key && value_len <= len - value &&
            is_path_key(p + key, key_len)) {
            blk_facts_utf16(f, "parent", p + value, value_len, false);
        }
    }
}

static void metadata_facts(struct vhdx *v, uint8_t *buf, struct blk_facts *f)
{
    if (co_read(v->file, v->metadata.start, buf, VHDX_REGIONS_BYTES) ||
        memcmp(buf, "metadata", 8)) {
        return;
    }
    for (unsigned i = 0, n = le16(buf + 10); i < n && i < VHDX_REGIONS_MAX; i++) {
        const uint8_t *entry = buf + 32 + i * 32;
        if (vhdx_guid_is(entry, &parent_guid)) {
            uint64_t at = v->metadata.start + le32(entry + 16);
            if (at < v->file->size && !co_read(v->file, at, buf, VP_BYTES)) {
                locator_facts(buf, VP_BYTES, f);
            }
            return;
        }
    }
}

void vhdx_facts(struct blk_node *file, struct blk_facts *f)
{
    struct vhdx v = { .file = file };
    uint8_t *buf = blk_buf_alloc(BLK_MAX(VHDX_REGIONS_BYTES, (uint32_t)VP_BYTES));

    if (buf && !vhdx_regions_read(&v, NULL)) {
        metadata_facts(&v, buf, f);
    }
    free(v.regions);
    blk_buf_free(buf);
}
