/*
 * parallels.c - Parallels expandable disks (.hds), of both kinds: "WithoutFreeSpace"
 * (places in sectors) and "WithouFreSpacExt" (places in clusters).  A header of 64 bytes,
 * a table of 32-bit places (BAT), clusters.  Little endian.
 *
 * Invariants
 *  - While an image is open for writing its header says so, from before the first change
 *    until everything is written; one that was not closed is checked and repaired first.
 *  - What lies behind the last cluster in use is cut off at close.
 */
#include "formats/parallels.h"
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* ---- the table ------------------------------------------------------------------------ */

static uint64_t prl_decode(const struct blockmap *m, const uint8_t *raw)
{
    uint32_t e = le32(raw);
    return e ? e * (uint64_t)prl_of(m)->unit : BM_ABSENT;
}

static void prl_encode(const struct blockmap *m, uint64_t v, uint8_t *raw)
{
    put_le32(raw, bm_is_data(v) ? (uint32_t)(v / prl_of(m)->unit) : 0);
}

static const struct blockmap_ops prl_map_ops = {
    .decode = prl_decode,
    .encode = prl_encode,
};

/* ---- open -------------------------------------------------------------------------------- */

static bool magic_known(const uint8_t *h)
{
    return !memcmp(h, PRL_MAGIC, 16) || !memcmp(h, PRL_MAGIC_EXT, 16);
}

static int prl_probe(const uint8_t *buf, size_t len)
{
    return len >= PH_BYTES && magic_known(buf) && le32(buf + PH_VERSION) == 2 ? 100 : 0;
}

bool prl_data_offset(const struct parallels *s, uint32_t *sectors)
{
    bool ext = !memcmp(s->header, PRL_MAGIC_EXT, 16);
    uint64_t min = blk_align_up(PH_BYTES + s->map.blocks * 4, 512) / 512;
    uint32_t given = le32(s->header + PH_DATA), tracks = le32(s->header + PH_TRACKS);

    min = ext ? (min + tracks - 1) / tracks * tracks : min;
    *sectors = (uint32_t)min;
    if (!given && !ext) {
        return true;
    }
    if (given < min || given > s->map.file->size / 512) {
        return false;
    }
    *sectors = given;
    return true;
}

static int check_header(struct blk_node *n, struct parallels *s, struct blk_error *e)
{
    const uint8_t *h = s->header;
    bool ext = !memcmp(h, PRL_MAGIC_EXT, 16);
    uint64_t sectors = ext ? le64(h + PH_SECTORS) : le32(h + PH_SECTORS);
    uint32_t tracks = le32(h + PH_TRACKS), entries = le32(h + PH_ENTRIES);

    if (le32(h + PH_VERSION) != 2 || !magic_known(h)) {
        return blk_err(e, EINVAL, "Image not in Parallels format");
    }
    if (!tracks) {
        return blk_err(e, EINVAL, "Invalid image: Zero sectors per track");
    }
    if (tracks > INT32_MAX / 513) {
        return blk_err(e, EFBIG, "Invalid image: Too big cluster");
    }
    if (entries > INT_MAX / 4) {
        return blk_err(e, EFBIG, "Catalog too large");
    }
    if (PH_BYTES + entries * 4ull > n->file->size) {
        return blk_err(e, EINVAL, "Invalid image: Catalog of %u entries is not within the file",
                       entries);
    }
    if (sectors > BLK_SIZE_MAX / 512 || sectors > (uint64_t)entries * tracks) {
        return blk_err(e, EINVAL, "Invalid image: Size of %llu sectors is more than the catalog "
                       "maps", (unsigned long long)sectors);
    }
    n->size = sectors * 512;
    s->unit = ext ? tracks * 512 : 512;
    return 0;
}

/* As QEMU's options; new space is never preallocated here. */
static int take_options(struct blk_opts *o, struct blk_error *e)
{
    const char *mode = blk_opts_get(o, "prealloc-mode");
    uint64_t size;
    if (mode && strcmp(mode, "falloc") && strcmp(mode, "truncate")) {
        return blk_err(e, EINVAL, "invalid parameter value: %s", mode);
    }
    return blk_opts_get_size(o, "prealloc-size", &size, e);
}

static int open_table(struct blk_node *n, struct parallels *s, struct blk_error *e)
{
    uint32_t data;
    s->map = (struct blockmap){
        .n = n, .file = n->file, .ops = &prl_map_ops, .blocks = le32(s->header + PH_ENTRIES),
        .block_size = le32(s->header + PH_TRACKS) * 512, .entry_size = 4,
        .table_offset = PH_BYTES, .frees = true,
    };
    s->damaged = !prl_data_offset(s, &data);
    s->map.data_start = data * 512ull;
    s->unclean = le32(s->header + PH_INUSE) == PRL_INUSE;
    /* An entry holds 32 bits. */
    s->map.data_end = BLK_MIN((uint64_t)UINT32_MAX * s->unit, (uint64_t)INT64_MAX / 2);
    int err = blockmap_init(&s->map, e);
    n->cluster_size = 0;            /* QEMU does not tell */
    n->mapping_size = s->map.block_size;
    return err;
}

static int write_header(struct parallels *s)
{
    int err = co_write(s->map.file, 0, s->header, PH_BYTES, 0);
    return err ? err : co_flush(s->map.file);
}

static void report_line(void *arg, bool is_error, const char *line)
{
    blk_report("%s: %s", ((struct blk_node *)arg)->shown, line);
}

/* Say in the header that it is open; repair what was not closed or does not fit. */
static int begin_writing(struct blk_node *n, struct parallels *s, struct blk_error *e)
{
    struct blk_check c = { .message = report_line, .arg = n };
    int err;

    if (le64(s->header + PH_EXT)) {
        blk_report("warning: Format Extension ignored in RW mode");
    }
    put_le32(s->header + PH_INUSE, PRL_INUSE);
    err = write_header(s);
    if (err) {
        return blk_err_errno(e, -err, "Could not write the Parallels header");
    }
    err = prl_find_room(s);
    if (err) {
        return blk_err_errno(e, -err, "Could not read the catalog");
    }
    if (n->oflags & BLK_O_CHECK || !(s->unclean || s->damaged)) {
        return 0;
    }
    err = prl_check(n, &c, BLK_FIX_ERRORS | BLK_FIX_LEAKS, e);
    return err ? blk_err_errno(e, -err, "Could not repair corrupted image") : 0;
}

static void prl_free(struct parallels *s)
{
    if (s) {
        blockmap_free(&s->map);
        free(s);
    }
}

static int prl_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct parallels *s = calloc(1, sizeof(*s));
    int err = s ? take_options(o, e) : -ENOMEM;

    if (!err) {
        err = co_read(n->file, 0, s->header, PH_BYTES);
        err = err ? blk_err_errno(e, -err, "Could not read the Parallels header") : 0;
    }
    err = err ? err : check_header(n, s, e);
    err = err ? err : open_table(n, s, e);
    n->state = s;
    err = err || n->read_only ? err : begin_writing(n, s, e);
    if (err) {
        prl_free(s);
        n->state = NULL;
        return err;
    }
    n->starts_as_zeros = true;
    return 0;
}

static int prl_close(struct blk_node *n, struct blk_error *e)
{
    struct parallels *s = n->state;
    int err = n->read_only ? 0 : blockmap_flush(&s->map);

    /* Where the last cluster still in use ends. */
    err = err || n->read_only ? err : prl_find_room(s);
    /* Not written completely: it stays marked as open. */
    if (!n->read_only && !err) {
        put_le32(s->header + PH_INUSE, 0);
        err = write_header(s);
        if (!err && n->file->size > s->map.next) {
            (void)blk_truncate(n->file, s->map.next, true, BLK_PREALLOC_OFF, NULL);
        }
    }
    if (err) {
        blk_err_errno(e, -err, "Could not close '%s'", n->shown);
    }
    prl_free(s);
    return err;
}

static void prl_submit(struct blk_node *n, struct blk_req *req)
{
    blockmap_submit(n->state, req);
}

static int prl_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    return blockmap_status(n->state, off, len, st);
}

/* QEMU tells nothing about these. */
static int prl_info(struct blk_node *n, struct blk_info *out, struct blk_error *e)
{
    out->bare = true;
    return 0;
}

/* ---- create ----------------------------------------------------------------------------------- */

static int take_create(struct blk_opts *o, uint64_t *size, uint64_t *cluster, struct blk_error *e)
{
    *size = 0;
    *cluster = PRL_CLUSTER;
    int err = blk_opts_get_size(o, "size", size, e);
    err = err ? err : blk_opts_get_size(o, "cluster_size", cluster, e);
    if (err) {
        return err;
    }
    *size = blk_align_up(BLK_MIN(*size, BLK_SIZE_MAX), 512);
    *cluster = *cluster > INT64_MAX ? *cluster : blk_align_up(*cluster, 512);
    if (*cluster >= INT32_MAX) {
        return blk_err(e, EINVAL, "Cluster size is too large");
    }
    /* QEMU makes more, and cannot open that. */
    if (*size >= *cluster << 32 || *size / BLK_MAX(*cluster, 1u) >= INT_MAX / 4) {
        return blk_err(e, E2BIG, "Image size is too large for this cluster size");
    }
    return 0;
}

static int prl_create_check(struct blk_opts *o, struct blk_error *e)
{
    uint64_t size, cluster;
    return take_create(o, &size, &cluster, e);
}

static int prl_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                      struct blk_error *e)
{
    uint8_t h[512] = { 0 };
    uint64_t size, cluster, entries, data;
    int err = take_create(o, &size, &cluster, e);

    if (err) {
        return err;
    }
    entries = size / cluster + !!(size % cluster);
    data = (PH_BYTES + entries * 4 + cluster - 1) / cluster * cluster;
    memcpy(h, PRL_MAGIC_EXT, 16);
    put_le32(h + PH_VERSION, 2);
    put_le32(h + PH_HEADS, 16);
    put_le32(h + PH_CYLS, (uint32_t)(size / 512 / 16 / 32));
    put_le32(h + PH_TRACKS, (uint32_t)(cluster / 512));
    put_le32(h + PH_ENTRIES, (uint32_t)entries);
    put_le64(h + PH_SECTORS, size / 512);
    put_le32(h + PH_DATA, (uint32_t)(data / 512));
    /* Allocated, as QEMU does, unless it is very large. */
    err = data > PRL_ZERO_MAX ? blk_truncate(file, data, false, BLK_PREALLOC_OFF, e)
          : data > 512 ? co_write_zeroes(file, 512, data - 512, 0) : 0;
    err = err ? err : co_write(file, 0, h, sizeof(h), 0);
    return err ? blk_err_errno(e, -err, "Failed to create Parallels image") : 0;
}

static const struct blk_option_desc prl_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "cluster_size", BLK_OPT_SIZE, "Parallels image cluster size", "1048576" },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

const struct blk_driver blk_parallels = {
    .name = "parallels",
    .backing = true,
    .bitmaps = true,
    .create_opts = prl_create_opts,
    .probe = prl_probe,
    .open = prl_open,
    .close = prl_close,
    .submit = prl_submit,
    .status = prl_status,
    .info = prl_info,
    .check = prl_check,
    .create_check = prl_create_check,
    .create = prl_create,
};
