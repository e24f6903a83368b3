/*
 * vhdx.c - the driver: opening, the map of blocks, closing, check.
 *
 * Invariants
 *  - Before the first write reaches the file, both headers say that this session
 *    writes (FileWriteGuid, DataWriteGuid).
 *  - The table changes through the log only (log.c); after a clean close it is empty.
 */
#include "formats/vhdx/vhdx.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SCAN_BYTES (64u << 10)

static struct vhdx *vhdx_of(const struct blockmap *m)
{
    return blk_container_of(m, struct vhdx, map);
}

/* ---- the table -------------------------------------------------------------------------- */

static uint64_t vhdx_decode(const struct blockmap *m, const uint8_t *raw)
{
    uint64_t entry = le64(raw);
    switch (entry & VHDX_STATE) {
    case VB_FULL:
        return BLK_MIN(entry & VHDX_OFFSET, BM_SPECIAL - 1);
    case VB_NOT_PRESENT:
    case VB_UNDEFINED:
    case VB_ZERO:
    case VB_UNMAPPED_095:
    case VB_UNMAPPED:
        return BM_ZERO;
    default:
        return BM_BAD;              /* partly present: only with a parent */
    }
}

static void vhdx_encode(const struct blockmap *m, uint64_t v, uint8_t *raw)
{
    put_le64(raw, bm_is_data(v) ? v | VB_FULL : VB_ZERO);
}

/* An entry for a bitmap of sectors follows each chunk of blocks. */
static uint64_t vhdx_slot(const struct blockmap *m, uint64_t block)
{
    return block + block / vhdx_of(m)->chunk_ratio;
}

static int vhdx_store(struct blockmap *m, const struct bm_piece *p, size_t n)
{
    return vhdx_log_store(vhdx_of(m), p, n);
}

static const struct blockmap_ops vhdx_map_ops = {
    .decode = vhdx_decode,
    .encode = vhdx_encode,
    .slot = vhdx_slot,
    .store = vhdx_store,
};

/* ---- is the table sane? ------------------------------------------------------------------- */

/* What is wrong with the entry at index (of a block that is all there); 0: nothing. */
static int entry_check(const struct vhdx *v, uint64_t index, uint64_t entry, struct blk_error *e)
{
    uint64_t at = entry & VHDX_OFFSET, have = v->file->size;
    uint64_t block = index - index / (v->chunk_ratio + 1);
    /* QEMU made images with a partial last block. */
    uint64_t len = BLK_MIN((uint64_t)v->block_size, v->size - block * v->block_size);
    unsigned long long i = index;

    if (at > (uint64_t)INT64_MAX - v->block_size) {
        return blk_err(e, EINVAL, "VHDX BAT entry %llu offset overflow.", i);
    }
    if (at >= have) {
        return blk_err(e, EINVAL, "VHDX BAT entry %llu start offset %llu points after end of file "
                       "(%llu). Image has probably been truncated.", i, (unsigned long long)at,
                       (unsigned long long)have);
    }
    if (at + len > have) {
        return blk_err(e, EINVAL, "VHDX BAT entry %llu end offset %llu points after end of file "
                       "(%llu). Image has probably been truncated.", i,
                       (unsigned long long)(at + len - 1), (unsigned long long)have);
    }
    const struct vhdx_region *r = vhdx_region_at(v, at, at + v->block_size);
    if (r || at < VHDX_SECTION_END) {
        return blk_err(e, EINVAL, "VHDX region %llu-%llu overlaps with region %llu-%llu.",
                       (unsigned long long)at, (unsigned long long)(at + v->block_size),
                       r ? (unsigned long long)r->start : 0,
                       r ? (unsigned long long)r->end : VHDX_SECTION_END);
    }
    return 0;
}

static int scan_piece(const struct vhdx *v, const uint8_t *buf, uint64_t first, uint64_t n,
                      struct blk_check *c, struct blk_error *e)
{
    for (uint64_t i = first; i < first + n; i++) {
        uint64_t entry = le64(buf + (i - first) * 8);
        struct blk_error found = BLK_ERROR_INIT;
        if ((entry & VHDX_STATE) != VB_FULL ||
            i % (v->chunk_ratio + 1) == v->chunk_ratio || !entry_check(v, i, entry, &found)) {
            continue;
        }
        if (!c) {
            return blk_err(e, EINVAL, "%s", found.text);
        }
        blk_report("%s", found.text);
        c->corruptions++;
    }
    return 0;
}

/* The whole table; its holes have no blocks.  c: count what is wrong. */
static int scan_bat(struct vhdx *v, struct blk_check *c, struct blk_error *e)
{
    uint64_t bytes = vhdx_bat_entries(v->blocks, v->chunk_ratio) * 8, off = 0;
    uint8_t *buf = blk_buf_alloc(SCAN_BYTES);
    int err = buf ? 0 : -ENOMEM;

    while (!err && off < bytes && v->bat.start + off < v->file->size) {
        struct blk_status st;
        uint64_t len = BLK_MIN(bytes - off, (uint64_t)SCAN_BYTES);
        err = co_status(v->file, v->bat.start + off, bytes - off, &st);
        if (!err && st.flags & BLK_ST_ZERO && st.length >= len) {
            off += blk_align_down(st.length, 8);
            continue;
        }
        err = err ? err : co_read(v->file, v->bat.start + off, buf, len);
        err = err ? err : scan_piece(v, buf, off / 8, len / 8, c, e);
        off += len;
    }
    blk_buf_free(buf);
    return err ? blk_err_errno(e, -err, "Could not read the VHDX block allocation table") : 0;
}

static int vhdx_check(struct blk_node *n, struct blk_check *c, int fix, struct blk_error *e)
{
    struct vhdx *v = n->state;
    if (v->replayed) {
        c->corruptions_fixed++;
        v->replayed = false;
    }
    return scan_bat(v, c, e);
}

/* ---- open and close -------------------------------------------------------------------------- */

static int vhdx_probe(const uint8_t *buf, size_t len)
{
    return len >= 8 && !memcmp(buf, "vhdxfile", 8) ? 100 : 0;
}

static int set_map(struct vhdx *v, struct blk_error *e)
{
    v->map = (struct blockmap){
        .n = v->n, .file = v->file, .ops = &vhdx_map_ops, .blocks = v->blocks,
        .block_size = v->block_size, .entry_size = 8, .table_offset = v->bat.start,
        .slots = vhdx_bat_entries(v->blocks, v->chunk_ratio), .data_start = VHDX_SECTION_END,
        .next = blk_align_up(v->file->size, VHDX_MIB),
        .absent_is_zero = true,
    };
    return blockmap_init(&v->map, e);
}

static void vhdx_free(struct vhdx *v)
{
    blockmap_free(&v->map);
    free(v->regions);
    free(v);
}

static int vhdx_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct vhdx *v = calloc(1, sizeof(*v));
    if (!v) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    v->n = n;
    v->file = n->file;
    blk_uuid_generate(v->session.b);
    int err = vhdx_header_read(v, e);
    err = err ? err : vhdx_log_replay(v, e);
    err = err ? err : vhdx_regions_read(v, e);
    err = err ? err : vhdx_metadata_read(v, e);
    err = err || n->oflags & BLK_O_CHECK ? err : scan_bat(v, NULL, e);
    err = err ? err : set_map(v, e);
    if (err) {
        vhdx_free(v);
        return err;
    }
    n->state = v;
    n->size = v->size & ~511ull;
    n->starts_as_zeros = n->file->starts_as_zeros;
    return 0;
}

static int vhdx_close(struct blk_node *n, struct blk_error *e)
{
    struct vhdx *v = n->state;
    int err = n->read_only ? 0 : blockmap_flush(&v->map);

    err = err || n->read_only ? err : vhdx_log_end(v);
    if (err) {
        blk_err_errno(e, -err, "Could not write the metadata of '%s'", n->shown);
    }
    vhdx_free(v);
    n->state = NULL;
    return err;
}

/* ---- requests -------------------------------------------------------------------------------- */

static int announce(struct vhdx *v)
{
    struct vhdx_header h;
    int err = 0;

    co_lock(&v->announce_lock);
    if (!v->announced) {
        h = v->h;
        h.file_guid = v->session;
        blk_uuid_generate(h.data_guid.b);
        err = vhdx_header_update(v, &h);
        v->announced = !err;
    }
    co_unlock(&v->announce_lock);
    return err;
}

static void announce_main(void *arg)
{
    struct blk_req *req = arg;
    struct vhdx *v = req->node->state;
    int err = announce(v);
    if (err) {
        blk_complete(req, err);
    } else {
        blockmap_submit(&v->map, req);
    }
}

static void vhdx_submit(struct blk_node *n, struct blk_req *req)
{
    struct vhdx *v = n->state;
    if (req->op != BLK_WRITE || v->announced) {
        blockmap_submit(&v->map, req);
    } else if (co_start(n->loop, announce_main, req)) {
        blk_complete(req, -ENOMEM);
    }
}

/* QEMU's map does not tell blocks apart: all of it is data somewhere. */
static int vhdx_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    struct vhdx *v = n->state;
    int err = blockmap_status(&v->map, off, len, st);
    st->flags = BLK_ST_DATA | BLK_ST_ALLOCATED |
                (st->flags & BLK_ST_ZERO ? BLK_ST_READS_ZERO : 0);
    st->host = NULL;
    return err;
}

const struct blk_driver blk_vhdx = {
    .name = "vhdx",
    .create_opts = vhdx_create_opts,
    .probe = vhdx_probe,
    .open = vhdx_open,
    .close = vhdx_close,
    .submit = vhdx_submit,
    .status = vhdx_status,
    .facts = vhdx_facts,
    .check = vhdx_check,
    .create_check = vhdx_create_check,
    .create = vhdx_create,
};
