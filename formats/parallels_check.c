/*
 * parallels_check.c - the places of a Parallels image: which are in use, which are free,
 * and whether that is consistent.  Findings and counts are QEMU's.
 */
#include "formats/parallels.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* One bit a cluster of the file, from data_start on. */
struct places {
    uint8_t *bit;
    uint64_t n;
};

static int places_new(struct places *p, uint64_t n)
{
    p->n = n;
    p->bit = n <= PRL_SEEN_MAX ? calloc(n / 8 + 1, 1) : NULL;
    return p->bit ? 0 : n <= PRL_SEEN_MAX ? -ENOMEM : -EFBIG;
}

/* Was it set before?  Clusters of the old kind may lie anywhere: as QEMU, where they
 * begin counts. */
static bool places_mark(struct places *p, const struct parallels *s, uint64_t v)
{
    uint64_t at = (v - s->map.data_start) / s->map.block_size;
    bool had = p->bit[at / 8] >> at % 8 & 1;
    p->bit[at / 8] |= (uint8_t)(1u << at % 8);
    return had;
}

static bool places_used(const struct places *p, uint64_t at)
{
    return p->bit[at / 8] >> at % 8 & 1;
}

static uint64_t clusters_of(const struct parallels *s, uint64_t bytes)
{
    return bytes / s->map.block_size + !!(bytes % s->map.block_size);
}

/* In whole sectors, as QEMU counts. */
static uint64_t prl_file_size(const struct parallels *s)
{
    return blk_align_up(s->map.file->size, 512);
}

/* ---- before writing --------------------------------------------------------------------- */

/* The end of the last cluster; entries that cannot be are damage. */
static int scan(struct parallels *s, uint64_t *end)
{
    int err = 0;
    *end = s->map.data_start;
    for (uint64_t i = 0; !err && i < s->map.blocks; i++) {
        uint64_t v;
        err = blockmap_get(&s->map, i, &v);
        if (err || v == BM_ABSENT) {
            continue;
        }
        if (!bm_is_data(v) || v + s->map.block_size > prl_file_size(s)) {
            s->damaged = true;
        } else {
            *end = BLK_MAX(*end, v + s->map.block_size);
        }
    }
    return err;
}

/* Sets *odd when a cluster does not lie at a whole number of clusters. */
static int mark_all(struct parallels *s, struct places *p, uint64_t end, bool *odd)
{
    int err = 0;
    *odd = false;
    for (uint64_t i = 0; !err && i < s->map.blocks; i++) {
        uint64_t v;
        err = blockmap_get(&s->map, i, &v);
        if (err || !bm_is_data(v) || v + s->map.block_size > end) {
            continue;
        }
        s->damaged = places_mark(p, s, v) || s->damaged;
        *odd = *odd || (v - s->map.data_start) % s->map.block_size;
    }
    return err;
}

/* Gaps: lowest first, as they are taken from the end of the list. */
static int add_gaps(struct parallels *s, const struct places *p, uint64_t end)
{
    int err = 0;
    for (uint64_t at = p->n; !err && at--;) {
        uint64_t host = s->map.data_start + at * s->map.block_size;
        if (!places_used(p, at) && host % s->unit == 0 && host + s->map.block_size <= end) {
            err = blockmap_add_free(&s->map, host);
        }
    }
    return err;
}

int prl_find_room(struct parallels *s)
{
    struct places p;
    uint64_t end;
    bool odd;
    int err = scan(s, &end);

    s->map.free.n = 0;
    if (err) {
        return err;
    }
    s->map.next = (end + s->unit - 1) / s->unit * s->unit;
    /* Of more clusters than that only the end is used. */
    if (clusters_of(s, end - s->map.data_start) > PRL_SEEN_MAX) {
        return 0;
    }
    err = places_new(&p, clusters_of(s, end - s->map.data_start));
    err = err ? err : mark_all(s, &p, end, &odd);
    /* Which clusters are free is known once the image is right. */
    err = err || odd || s->damaged || s->unclean ? err : add_gaps(s, &p, end);
    free(p.bit);
    return err;
}

/* ---- check ---------------------------------------------------------------------------------- */

static const char *verb(int fix, int what)
{
    return fix & what ? "Repairing" : "ERROR";
}

static void found(struct blk_check *c, int fix)
{
    c->corruptions++;
    c->corruptions_fixed += fix & BLK_FIX_ERRORS ? 1 : 0;
}

static void check_header(struct parallels *s, struct blk_check *c, int fix)
{
    uint32_t data;
    if (s->unclean) {
        blk_check_say(c, true, "%s image was not closed correctly", verb(fix, BLK_FIX_ERRORS));
        found(c, fix);
        s->unclean = s->unclean && !(fix & BLK_FIX_ERRORS);
    }
    if (!prl_data_offset(s, &data)) {
        found(c, fix);
        if (fix & BLK_FIX_ERRORS) {
            put_le32(s->header + PH_DATA, data);
        }
        blk_check_say(c, true, "%s data_off field has incorrect value",
                      verb(fix, BLK_FIX_ERRORS));
    }
}

static int check_outside(struct parallels *s, struct blk_check *c, int fix)
{
    uint64_t size = prl_file_size(s), end = s->map.data_start;
    int err = 0;
    for (uint64_t i = 0; !err && i < s->map.blocks; i++) {
        uint64_t v;
        err = blockmap_get(&s->map, i, &v);
        if (err || v == BM_ABSENT) {
            continue;
        }
        if (bm_is_data(v) && v + s->map.block_size <= size) {
            end = BLK_MAX(end, v + s->map.block_size);
            continue;
        }
        blk_check_say(c, true, "%s cluster %llu is outside image", verb(fix, BLK_FIX_ERRORS),
                      (unsigned long long)i);
        found(c, fix);
        err = fix & BLK_FIX_ERRORS ? blockmap_set(&s->map, i, BM_ABSENT) : 0;
    }
    c->image_end_offset = end;
    return err;
}

static int check_leak(struct parallels *s, struct blk_check *c, int fix, struct blk_error *e)
{
    uint64_t size = prl_file_size(s);
    if (size <= c->image_end_offset) {
        return 0;
    }
    uint64_t leaked = size - c->image_end_offset;
    blk_check_say(c, true, "%s space leaked at the end of the image %llu",
                  verb(fix, BLK_FIX_LEAKS), (unsigned long long)leaked);
    c->leaks += clusters_of(s, leaked);
    if (!(fix & BLK_FIX_LEAKS)) {
        return 0;
    }
    /* Entries that pointed there are gone from the disk before the space is. */
    int err = blockmap_flush(&s->map);
    err = err ? err : blk_truncate(s->map.file, c->image_end_offset, true, BLK_PREALLOC_OFF, e);
    if (!err) {
        c->leaks_fixed += clusters_of(s, leaked);
    }
    return err;
}

/* Give block i, whose place another one has, a place of its own with the same data. */
static int copy_cluster(struct parallels *s, struct blk_check *c, uint64_t i, uint64_t from)
{
    uint64_t to = (c->image_end_offset + s->unit - 1) / s->unit * s->unit;
    size_t step = BLK_MIN(s->map.block_size, 1u << 20);
    uint8_t *buf = blk_buf_alloc(step);
    int err = buf ? 0 : -ENOMEM;

    for (uint64_t at = 0; !err && at < s->map.block_size; at += step) {
        size_t len = (size_t)BLK_MIN((uint64_t)step, s->map.block_size - at);
        err = co_read(s->map.file, from + at, buf, len);
        err = err ? err : co_write(s->map.file, to + at, buf, len, 0);
    }
    blk_buf_free(buf);
    err = err ? err : blockmap_set(&s->map, i, to);
    if (!err) {
        c->image_end_offset = to + s->map.block_size;
    }
    return err;
}

static int check_duplicates(struct parallels *s, struct blk_check *c, int fix)
{
    uint64_t end = c->image_end_offset;
    struct places p;
    int err = places_new(&p, clusters_of(s, end - s->map.data_start));

    for (uint64_t i = 0; !err && i < s->map.blocks; i++) {
        uint64_t v;
        err = blockmap_get(&s->map, i, &v);
        if (err || !bm_is_data(v) || v + s->map.block_size > end || !places_mark(&p, s, v)) {
            continue;
        }
        blk_check_say(c, true, "%s duplicate offset in BAT entry %llu",
                      verb(fix, BLK_FIX_ERRORS), (unsigned long long)i);
        found(c, fix);
        err = fix & BLK_FIX_ERRORS ? copy_cluster(s, c, i, v) : 0;
    }
    free(p.bit);
    return err;
}

static int count_clusters(struct parallels *s, struct blk_check *c)
{
    uint64_t before = 0;
    int err = 0;
    c->has_bfi = true;
    c->total_clusters = s->map.blocks;
    for (uint64_t i = 0; !err && i < s->map.blocks; i++) {
        uint64_t v;
        err = blockmap_get(&s->map, i, &v);
        if (err || !bm_is_data(v) || v + s->map.block_size > c->image_end_offset) {
            before = 0;
            continue;
        }
        c->fragmented_clusters += before && before + s->map.block_size != v;
        c->allocated_clusters++;
        before = v;
    }
    return err;
}

int prl_check(struct blk_node *n, struct blk_check *c, int fix, struct blk_error *e)
{
    struct parallels *s = n->state;
    uint32_t data;
    int err;

    check_header(s, c, fix);
    (void)prl_data_offset(s, &data);
    s->map.data_start = data * 512ull;
    err = check_outside(s, c, fix);
    err = err ? err : check_leak(s, c, fix, e);
    err = err ? err : check_duplicates(s, c, fix);
    err = err ? err : count_clusters(s, c);
    if (err || !fix) {
        return err;
    }
    s->damaged = s->damaged && !(fix & BLK_FIX_ERRORS);
    err = blockmap_flush(&s->map);
    return err || s->damaged || s->unclean ? err : prl_find_room(s);
}
