/*
 * extent.c - one extent: its header, its directory of grain tables, what their entries
 * mean and how they are changed.
 *
 * Invariants
 *  - The directory is in memory, checked against its caps before it is read.
 *  - A grain's data is durable before an entry names it (blockmap.h); of the two copies
 *    of a table the second is written first.
 */
#include "formats/vmdk/vmdk.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PLACE (1ull << 41)      /* bytes that a 32-bit sector number reaches */
#define FOOTER_BYTES 1536u
#define SE_TABLE_BYTES (64u * VMDK_SECTOR)
#define SE_TAG (0xffffffffull << 32)
#define COWD_PER_TABLE 4096u

/* ---- entries ------------------------------------------------------------------------------- */

static uint64_t sparse_decode(const struct blockmap *m, const uint8_t *raw)
{
    const struct vmdk_extent *x = vmdk_extent_of(m);
    uint64_t sector = le32(raw);
    if (!sector) {
        return BM_ABSENT;
    }
    if (sector == 1 && x->zero_grain) {
        return BM_ZERO;
    }
    return sector * VMDK_SECTOR | (x->compressed ? BM_SPECIAL : 0);
}

static void sparse_encode(const struct blockmap *m, uint64_t v, uint8_t *raw)
{
    put_le32(raw, v == BM_ABSENT ? 0 : v == BM_ZERO ? 1
                  : (uint32_t)((v & ~BM_SPECIAL) / VMDK_SECTOR));
}

static uint64_t se_decode(const struct blockmap *m, const uint8_t *raw)
{
    uint64_t e = le64(raw), grain, at;
    switch (e >> 60) {
    case 0:
        return e ? BM_BAD : BM_ABSENT;
    case 1:                         /* unmapped by the guest */
    case 2:
        return BM_ZERO;
    case 3:
        grain = (e >> 48 & 0xfff) | (e & 0xffffffffffffull) << 12;
        return blk_mul_overflow(grain, (uint64_t)m->block_size, &at) ||
               blk_add_overflow(at, vmdk_extent_of(m)->se_grains * VMDK_SECTOR, &at) ||
               at >= (uint64_t)INT64_MAX / 4 ? BM_BAD : at;
    default:
        return BM_BAD;
    }
}

static uint64_t table_at(const struct blockmap *m, uint64_t i)
{
    return vmdk_extent_of(m)->gd[i];
}

static int directory_put(struct vmdk_extent *x, uint64_t base, uint64_t i, uint64_t table)
{
    uint8_t raw[4];
    put_le32(raw, (uint32_t)(table / VMDK_SECTOR));
    return co_write(x->file, base + i * 4, raw, sizeof(raw), 0);
}

/* Tables are there from the beginning in images that QEMU or we make; COWD has none. */
static int table_make(struct blockmap *m, uint64_t i)
{
    struct vmdk_extent *x = vmdk_extent_of(m);
    uint64_t bytes = blk_align_up((uint64_t)m->per_page * m->entry_size, VMDK_SECTOR);
    uint64_t at = m->next, taken = bytes + m->block_size - 1;

    m->next += taken / m->block_size * m->block_size;
    if (m->next > MAX_PLACE) {
        return -ENOSPC;
    }
    uint8_t *zeros = calloc(1, bytes);
    int err = zeros ? co_write(x->file, at, zeros, bytes, 0) : -ENOMEM;
    free(zeros);
    err = err ? err : co_flush(x->file);
    err = err ? err : directory_put(x, x->gd_at, i, at);
    if (!err) {
        x->gd[i] = at;
    }
    return err;
}

static int tables_write(struct vmdk_extent *x, const struct bm_piece *p, size_t n, bool second)
{
    int err = 0;
    for (size_t i = 0; !err && i < n; i++) {
        uint64_t at = p[i].offset;
        if (second) {
            at = x->rgd[p[i].page] ? x->rgd[p[i].page] + (at - x->gd[p[i].page]) : 0;
        }
        err = at ? co_write(x->file, at, p[i].buf, p[i].len, 0) : 0;
    }
    return err;
}

static int tables_store(struct blockmap *m, const struct bm_piece *p, size_t n)
{
    struct vmdk_extent *x = vmdk_extent_of(m);
    int err = x->rgd ? tables_write(x, p, n, true) : 0;
    return err ? err : tables_write(x, p, n, false);
}

static const struct blockmap_ops sparse_ops = {
    .decode = sparse_decode,
    .encode = sparse_encode,
    .page_at = table_at,
    .page_make = table_make,
    .read_special = vmdk_read_grain,
    .store = tables_store,
};

static const struct blockmap_ops se_ops = {
    .decode = se_decode,
    .page_at = table_at,
};

/* ---- life ------------------------------------------------------------------------------------ */

struct vmdk_extent *vmdk_extent_new(struct vmdk *v, struct blk_node *file)
{
    struct vmdk_extent *x = calloc(1, sizeof(*x));
    if (x) {
        x->v = v;
        x->file = file;
    }
    return x;
}

void vmdk_extent_free(struct vmdk_extent *x)
{
    if (!x) {
        return;
    }
    blockmap_free(&x->map);
    for (unsigned i = 0; i < VMDK_INFLATED; i++) {
        free(x->inflated[i].data);
    }
    free(x->type);
    free(x->gd);
    free(x->rgd);
    free(x);
}

int vmdk_extent_add(struct vmdk_extent *x, uint64_t sectors, struct blk_error *e)
{
    struct vmdk *v = x->v;
    uint64_t bytes;

    x->start = v->nextents ? v->extents[v->nextents - 1]->end : 0;
    if (blk_mul_overflow(sectors, (uint64_t)VMDK_SECTOR, &bytes) ||
        blk_add_overflow(x->start, bytes, &x->end) || x->end > BLK_SIZE_MAX) {
        return blk_err(e, EFBIG, "The extents of %llu sectors and before are too large",
                       (unsigned long long)sectors);
    }
    struct vmdk_extent **more = realloc(v->extents, (v->nextents + 1) * sizeof(*more));
    if (!more) {
        return -ENOMEM;
    }
    v->extents = more;
    v->extents[v->nextents++] = x;
    return 0;
}

/* ---- the directory ----------------------------------------------------------------------------- */

struct directory {
    uint64_t at, second;            /* bytes; 0: no second one */
    uint64_t len;                   /* entries */
    uint32_t per_table, entry_size;
    uint64_t grain;                 /* sectors */
    uint64_t se_tables;             /* seSparse: first sector of its tables */
};

/* Places of tables in bytes.  seSparse: numbers of tables, tagged. */
static int entry_place(const struct directory *d, const uint8_t *raw, uint64_t *out)
{
    if (d->entry_size == 4) {
        *out = (uint64_t)le32(raw) * VMDK_SECTOR;
        return 0;
    }
    uint64_t e = le64(raw);
    *out = e ? (d->se_tables + (e & UINT32_MAX) * (SE_TABLE_BYTES / VMDK_SECTOR)) * VMDK_SECTOR : 0;
    return e && ((e & SE_TAG) != 1ull << 60 || *out / VMDK_SECTOR > UINT32_MAX) ? -EINVAL : 0;
}

static int directory_load(struct vmdk_extent *x, const struct directory *d, uint64_t at,
                          uint64_t **out, const char *what, struct blk_error *e)
{
    size_t bytes = (size_t)(d->len * d->entry_size);
    uint8_t *raw = malloc(bytes + 1);
    int err = raw && (*out = calloc(d->len + 1, sizeof(**out))) ? 0 : -ENOMEM;

    err = err || !bytes ? err : co_read(x->file, at, raw, bytes);
    for (uint64_t i = 0; !err && i < d->len; i++) {
        err = entry_place(d, raw + i * d->entry_size, *out + i);
        if (err) {
            blk_err(e, EINVAL, "Invalid entry %llu of the grain directory at offset %llu",
                    (unsigned long long)i, (unsigned long long)at);
        }
    }
    free(raw);
    return err ? blk_err_errno(e, -err, "Could not read l1 %stable from extent '%s'", what,
                               x->file->shown) : 0;
}

static int directory_open(struct vmdk_extent *x, const struct directory *d, uint64_t sectors,
                          const struct blockmap_ops *ops, struct blk_error *e)
{
    struct vmdk *v = x->v;
    uint64_t blocks = (sectors + d->grain - 1) / d->grain;
    uint64_t tables = (blocks + d->per_table - 1) / d->per_table;

    if (d->len < tables || d->len > VMDK_DIRECTORY_MAX - v->directory) {
        return blk_err(e, EFBIG, d->len < tables ? "L1 size too small" : "L1 size too big");
    }
    v->directory += d->len;
    x->tables = d->len;
    x->gd_at = d->at;
    x->rgd_at = d->second;
    int err = directory_load(x, d, d->at, &x->gd, "", e);
    if (!err && d->second) {
        err = directory_load(x, d, d->second, &x->rgd, "backup ", e);
    }
    err = err ? err : vmdk_extent_add(x, sectors, e);
    if (err) {
        return err;
    }
    uint64_t grain = d->grain * VMDK_SECTOR, end = blk_align_up(x->file->size, VMDK_SECTOR);
    x->map = (struct blockmap){
        .n = v->n, .file = x->file, .ops = ops, .base = x->start, .blocks = blocks,
        .block_size = (uint32_t)grain, .entry_size = d->entry_size, .per_page = d->per_table,
        .data_start = VMDK_SECTOR,
        .data_end = d->entry_size == 4 ? MAX_PLACE - VMDK_SECTOR + grain : 0,
        .next = x->compressed ? end : (end + grain - 1) / grain * grain,
        .zero_marks = x->zero_grain,
    };
    return blockmap_init(&x->map, e);
}

/* ---- headers ------------------------------------------------------------------------------------- */

/* The header that counts: a stream that was written forward has it again at its end. */
static int footer_read(struct vmdk_extent *x, uint8_t *header, struct blk_error *e)
{
    uint8_t buf[FOOTER_BYTES], *marker = buf, *copy = buf + 512, *eos = buf + 1024;
    uint64_t end = blk_align_down(x->file->size + 511, VMDK_SECTOR);
    int err = end >= FOOTER_BYTES ? co_read(x->file, end - FOOTER_BYTES, buf, FOOTER_BYTES)
                                  : -EINVAL;
    if (err) {
        return blk_err_errno(e, -err, "Failed to read footer");
    }
    if (memcmp(copy, "KDMV", 4) || le32(marker + 8) || le32(marker + 12) != 3 || le64(eos) ||
        le32(eos + 8) || le32(eos + 12)) {
        return blk_err(e, EINVAL, "Invalid footer");
    }
    memcpy(header, copy, VMDK_SECTOR);
    return 0;
}

static int version_check(const struct vmdk_extent *x, const uint8_t *h, struct blk_error *e)
{
    uint32_t version = le32(h + VK_VERSION);
    if (version > 3) {
        return blk_err(e, ENOTSUP, "Unsupported VMDK version %u", version);
    }
    if (version == 3 && !x->v->n->read_only && !x->compressed) {
        return blk_err(e, EINVAL, "VMDK version 3 must be read only");
    }
    return 0;
}

/* QEMU's checks in QEMU's order, its 32-bit arithmetic included. */
static int geometry_check(const struct vmdk_extent *x, const uint8_t *h, struct directory *d,
                          struct blk_error *e)
{
    uint64_t capacity = le64(h + VK_CAPACITY), data = le64(h + VK_DATA), per;

    d->per_table = le32(h + VK_PER_TABLE);
    d->grain = le64(h + VK_GRAIN);
    d->entry_size = 4;
    if (d->per_table > 512) {
        return blk_err(e, EINVAL, "L2 table size too big");
    }
    if ((uint32_t)(d->per_table * d->grain) == 0) {
        return blk_err(e, EINVAL, "L1 entry size is invalid");
    }
    if ((x->file->size + 511) / VMDK_SECTOR < data) {
        return blk_err(e, EINVAL, "File truncated, expecting at least %lld bytes",
                       (long long)(data * VMDK_SECTOR));
    }
    if (d->grain > VMDK_GRAIN_MAX) {
        return blk_err(e, EFBIG, "Invalid granularity, image may be corrupt");
    }
    per = d->per_table * d->grain;
    d->len = capacity / per + !!(capacity % per);
    d->at = le64(h + VK_GD);
    d->second = le32(h + VK_FLAGS) & VMDK_RGD ? le64(h + VK_RGD) : 0;
    if (d->len > VMDK_DIRECTORY_MAX) {
        return blk_err(e, EFBIG, "L1 size too big");
    }
    if (d->at > INT64_MAX / 1024 || d->second > INT64_MAX / 1024) {
        return blk_err(e, EINVAL, "Grain directory at sector %llu is outside of the file",
                       (unsigned long long)BLK_MAX(d->at, d->second));
    }
    d->at *= VMDK_SECTOR;
    d->second *= VMDK_SECTOR;
    return 0;
}

static int sparse_open(struct vmdk_extent *x, uint8_t *h, struct blk_error *e)
{
    struct directory d = { 0 };
    int err = le64(h + VK_GD) == UINT64_MAX ? footer_read(x, h, e) : 0;

    if (err) {
        return err;
    }
    x->compressed = le16(h + VK_COMPRESSION) == 1;
    x->markers = le32(h + VK_FLAGS) & VMDK_MARKERS;
    x->zero_grain = le32(h + VK_FLAGS) & VMDK_ZERO_GRAIN;
    err = version_check(x, h, e);
    err = err ? err : geometry_check(x, h, &d, e);
    if (!err && x->compressed && d.grain * VMDK_SECTOR > VMDK_PACKED_MAX) {
        err = blk_err(e, ENOTSUP, "Compressed grains of %llu bytes are too large",
                      (unsigned long long)(d.grain * VMDK_SECTOR));
    }
    return err ? err : directory_open(x, &d, le64(h + VK_CAPACITY), &sparse_ops, e);
}

static int cowd_open(struct vmdk_extent *x, const uint8_t *h, struct blk_error *e)
{
    struct directory d = {
        .at = (uint64_t)le32(h + 20) * VMDK_SECTOR, .len = le32(h + 24),
        .per_table = COWD_PER_TABLE, .entry_size = 4, .grain = le32(h + 16),
    };
    if (!d.grain || d.grain > VMDK_GRAIN_MAX) {
        return blk_err(e, EFBIG, "Invalid granularity, image may be corrupt");
    }
    return directory_open(x, &d, le32(h + 12), &sparse_ops, e);
}

int vmdk_extent_sparse(struct vmdk_extent *x, const uint8_t *header, struct blk_error *e)
{
    uint8_t h[VMDK_SECTOR];
    memcpy(h, header, sizeof(h));
    if (!memcmp(h, "COWD", 4)) {
        return cowd_open(x, h, e);
    }
    if (!memcmp(h, "KDMV", 4)) {
        return sparse_open(x, h, e);
    }
    return blk_err(e, EINVAL, "Image not in VMDK format");
}

/* ---- seSparse ------------------------------------------------------------------------------------ */

enum { VS_VERSION = 8, VS_CAPACITY = 16, VS_GRAIN = 24, VS_TABLE = 32, VS_FLAGS = 40,
       VS_RESERVED = 48, VS_VOLATILE = 80, VS_GD = 128, VS_GD_SIZE = 136, VS_TABLES = 144,
       VS_GRAINS = 192, VS_PAD = 208 };

/* The format is not documented: strict, as QEMU is. */
static int se_check(const uint8_t *h, struct blk_error *e)
{
    if (le64(h) != 0xcafebabe) {
        return blk_err(e, EINVAL, "Bad const header magic: 0x%016llx", (unsigned long long)le64(h));
    }
    if (le64(h + VS_VERSION) != 0x200000001) {
        return blk_err(e, ENOTSUP, "Unsupported version: 0x%016llx",
                       (unsigned long long)le64(h + VS_VERSION));
    }
    if (le64(h + VS_GRAIN) != 8) {
        return blk_err(e, ENOTSUP, "Unsupported grain size: %llu",
                       (unsigned long long)le64(h + VS_GRAIN));
    }
    if (le64(h + VS_TABLE) != SE_TABLE_BYTES / VMDK_SECTOR) {
        return blk_err(e, ENOTSUP, "Unsupported grain table size: %llu",
                       (unsigned long long)le64(h + VS_TABLE));
    }
    if (le64(h + VS_FLAGS)) {
        return blk_err(e, ENOTSUP, "Unsupported flags: 0x%016llx",
                       (unsigned long long)le64(h + VS_FLAGS));
    }
    if (!blk_is_zero(h + VS_RESERVED, 32)) {
        return blk_err(e, ENOTSUP, "Unsupported reserved bits: 0x%016llx 0x%016llx 0x%016llx "
                       "0x%016llx", (unsigned long long)le64(h + VS_RESERVED),
                       (unsigned long long)le64(h + VS_RESERVED + 8),
                       (unsigned long long)le64(h + VS_RESERVED + 16),
                       (unsigned long long)le64(h + VS_RESERVED + 24));
    }
    return blk_is_zero(h + VS_PAD, VMDK_SECTOR - VS_PAD)
               ? 0 : blk_err(e, ENOTSUP, "Unsupported non-zero const header padding");
}

static int se_check_volatile(const uint8_t *h, struct blk_error *e)
{
    if (le64(h) != 0xcafecafe) {
        return blk_err(e, EINVAL, "Bad volatile header magic: 0x%016llx",
                       (unsigned long long)le64(h));
    }
    if (le64(h + 24)) {
        return blk_err(e, ENOTSUP, "Image is dirty, Replaying journal not supported");
    }
    return blk_is_zero(h + 32, VMDK_SECTOR - 32)
               ? 0 : blk_err(e, ENOTSUP, "Unsupported non-zero volatile header padding");
}

int vmdk_extent_se_sparse(struct vmdk_extent *x, struct blk_error *e)
{
    uint8_t h[VMDK_SECTOR], more[VMDK_SECTOR];
    int err;

    if (!x->v->n->read_only) {
        return blk_err(e, EACCES, "No write support for seSparse images available");
    }
    err = co_read(x->file, 0, h, sizeof(h));
    if (err) {
        return blk_err_errno(e, -err, "Could not read const header from file '%s'",
                             x->file->shown);
    }
    err = se_check(h, e);
    if (!err && (le64(h + VS_VOLATILE) > INT64_MAX / 1024 || le64(h + VS_GD) > INT64_MAX / 1024 ||
                 le64(h + VS_TABLES) > UINT32_MAX || le64(h + VS_GRAINS) > INT64_MAX / 4096 ||
                 le64(h + VS_GD_SIZE) > VMDK_DIRECTORY_MAX / (VMDK_SECTOR / 8))) {
        err = blk_err(e, EFBIG, "L1 size too big, or a table is outside of the file");
    }
    if (!err && (err = co_read(x->file, le64(h + VS_VOLATILE) * VMDK_SECTOR, more, sizeof(more)))) {
        blk_err_errno(e, -err, "Could not read volatile header from file '%s'", x->file->shown);
    }
    err = err ? err : se_check_volatile(more, e);
    if (err) {
        return err;
    }
    struct directory d = {
        .at = le64(h + VS_GD) * VMDK_SECTOR, .len = le64(h + VS_GD_SIZE) * (VMDK_SECTOR / 8),
        .per_table = SE_TABLE_BYTES / 8, .entry_size = 8, .grain = le64(h + VS_GRAIN),
        .se_tables = le64(h + VS_TABLES),
    };
    x->se_grains = le64(h + VS_GRAINS);
    return directory_open(x, &d, le64(h + VS_CAPACITY), &se_ops, e);
}
