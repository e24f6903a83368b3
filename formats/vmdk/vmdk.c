/*
 * vmdk.c - the driver: opening an image with its extents, requests, info, check.
 *
 * Invariants
 *  - A request that reaches a driver of one extent lies in that extent; one that
 *    crosses an end is cut and comes again, piece by piece.
 *  - Before the first write the content ID changes, so that overlays on this image
 *    are seen to be out of date.
 */
#include "formats/vmdk/vmdk.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- probing ------------------------------------------------------------------------------- */

static bool is_version_line(const char *p, const char *end)
{
    return end - p >= 10 && !strncmp(p, "version=", 8) && p[8] >= '1' && p[8] <= '3' &&
           (p[9] == '\n' || (end - p >= 11 && p[9] == '\r' && p[10] == '\n'));
}

/* Comments and blank lines (of spaces) may stand before a descriptor's version. */
static int probe_text(const char *p, const char *end)
{
    while (p < end && (*p == '#' || *p == ' ')) {
        if (*p == '#') {
            while (p < end && *p != '\n') {
                p++;
            }
        } else {
            while (p < end && *p == ' ') {
                p++;
            }
            p += p < end && *p == '\r';
            if (p >= end || *p != '\n') {
                return 0;
            }
        }
        p++;
    }
    return p < end && is_version_line(p, end) ? 100 : 0;
}

static int vmdk_probe(const uint8_t *buf, size_t len)
{
    if (len < 4) {
        return 0;
    }
    return !memcmp(buf, "KDMV", 4) || !memcmp(buf, "COWD", 4)
               ? 100 : probe_text((const char *)buf, (const char *)buf + len);
}

/* ---- opening ------------------------------------------------------------------------------- */

static void vmdk_free(struct vmdk *v)
{
    for (unsigned i = 0; i < v->nextents; i++) {
        vmdk_extent_free(v->extents[i]);
    }
    free(v->extents);
    free(v->create_type);
    free(v);
}

/* x is the image's from here on, or gone. */
static int take_extent(struct vmdk *v, struct vmdk_extent *x, int err)
{
    if (err && (!v->nextents || v->extents[v->nextents - 1] != x)) {
        vmdk_extent_free(x);
    }
    return err;
}

static int open_sparse(struct vmdk *v, struct blk_node *file, const uint8_t *header,
                       const char *type, struct blk_error *e)
{
    struct vmdk_extent *x = vmdk_extent_new(v, file);
    if (!x || (type && !(x->type = strdup(type)))) {
        vmdk_extent_free(x);
        return -ENOMEM;
    }
    return take_extent(v, x, type && !strcmp(type, "SESPARSE")
                                 ? vmdk_extent_se_sparse(x, e) : vmdk_extent_sparse(x, header, e));
}

static int open_flat(struct vmdk *v, struct blk_node *file, const struct vmdk_line *l,
                     struct blk_error *e)
{
    struct vmdk_extent *x = vmdk_extent_new(v, file);
    if (!x || !(x->type = strdup(l->type))) {
        vmdk_extent_free(x);
        return -ENOMEM;
    }
    x->flat = true;
    x->flat_offset = l->offset * VMDK_SECTOR;
    return take_extent(v, x, vmdk_extent_add(x, l->sectors, e));
}

/* An extent's file holds no descriptor that counts. */
static int open_described_sparse(struct vmdk *v, struct blk_node *file, const struct vmdk_line *l,
                                 struct blk_error *e)
{
    uint8_t header[VMDK_SECTOR];
    int err = file->size < 4 ? blk_err(e, EINVAL, "File is too small, not a valid image")
                             : co_read(file, 0, header, sizeof(header));
    if (err) {
        return blk_err_errno(e, -err, "Could not read header from file '%s'", file->shown);
    }
    if (!memcmp(header, "KDMV", 4) && !le64(header + VK_CAPACITY) && le64(header + VK_DESC)) {
        return blk_err(e, EINVAL, "The extent '%s' holds a descriptor again", file->shown);
    }
    return open_sparse(v, file, header, l->type, e);
}

static int open_line(struct vmdk *v, const struct vmdk_line *l, struct blk_opts *o,
                     struct blk_error *e)
{
    struct blk_node *n = v->n;
    char prefix[32];

    snprintf(prefix, sizeof(prefix), "extents.%u.", v->nextents);
    struct blk_opts *eo = blk_opts_take(o, prefix);
    int err = blk_open_more(n, "extents", l->name, eo, e);
    blk_opts_free(eo);
    if (err) {
        return err;
    }
    struct blk_node *file = n->more[n->nmore - 1].node;
    return !strcmp(l->type, "FLAT") || !strcmp(l->type, "VMFS")
               ? open_flat(v, file, l, e) : open_described_sparse(v, file, l, e);
}

/* Every line before the first file is opened: 0, or e says what is wrong. */
static int check_lines(const char *text, struct vmdk_line *l, struct blk_error *e)
{
    unsigned count = 0;
    int more;

    while ((more = vmdk_line_next(&text, l, e)) > 0) {
        if (++count > VMDK_EXTENTS_MAX) {
            return blk_err(e, EFBIG, "More than %u extents", VMDK_EXTENTS_MAX);
        }
    }
    return more;
}

static int open_descriptor(struct vmdk *v, const char *text, struct blk_opts *o,
                           struct blk_error *e)
{
    static const char *const known[] = { "monolithicFlat", "vmfs", "vmfsSparse", "seSparse",
                                         "twoGbMaxExtentSparse", "twoGbMaxExtentFlat" };
    struct vmdk_line *l;
    char type[128];
    size_t i = 0;
    int err;

    if (!vmdk_text_value(text, "createType", type, sizeof(type))) {
        return blk_err(e, EINVAL, "invalid VMDK image descriptor");
    }
    while (i < BLK_ARRAY_SIZE(known) && strcmp(type, known[i])) {
        i++;
    }
    if (i == BLK_ARRAY_SIZE(known)) {
        return blk_err(e, ENOTSUP, "Unsupported image type '%s'", type);
    }
    v->create_type = strdup(type);
    l = malloc(sizeof(*l));
    err = l && v->create_type ? check_lines(text, l, e) : -ENOMEM;
    for (err = err ? err : 1; err > 0;) {
        err = vmdk_line_next(&text, l, e);
        err = err > 0 && (err = open_line(v, l, o, e)) == 0 ? 1 : err;
    }
    free(l);
    return err;
}

/* A sparse file that is the whole image, or holds nothing but a descriptor. */
static int open_single(struct vmdk *v, const uint8_t *header, struct blk_opts *o,
                       struct blk_error *e)
{
    uint64_t desc = le64(header + VK_DESC);

    if (!memcmp(header, "KDMV", 4) && !le64(header + VK_CAPACITY) && desc) {
        char *text = desc <= INT64_MAX / 1024
                         ? vmdk_text_read(v->n->file, desc * VMDK_SECTOR, e)
                         : (blk_err(e, EINVAL, "Descriptor at sector %llu is outside of the file",
                                    (unsigned long long)desc), NULL);
        int err = text ? open_descriptor(v, text, o, e) : -EINVAL;
        free(text);
        return err;
    }
    int err = open_sparse(v, v->n->file, header, NULL, e);
    if (!err && !memcmp(header, "KDMV", 4)) {
        v->create_type = strdup(v->extents[0]->compressed ? "streamOptimized"
                                                          : "monolithicSparse");
        err = v->create_type ? 0 : -ENOMEM;
    }
    return err;
}

static int open_image(struct vmdk *v, struct blk_opts *o, struct blk_error *e)
{
    char *text = vmdk_text_read(v->n->file, 0, e);
    uint8_t header[VMDK_SECTOR] = { 0 };
    bool sparse;
    int err;

    if (!text) {
        return -EINVAL;
    }
    memcpy(header, text, BLK_MIN(v->n->file->size, (uint64_t)sizeof(header)));
    sparse = !memcmp(header, "KDMV", 4) || !memcmp(header, "COWD", 4);
    err = sparse ? open_single(v, header, o, e) : open_descriptor(v, text, o, e);
    free(text);
    v->desc_at = sparse ? VMDK_EMBEDDED_AT : 0;
    err = err ? err : vmdk_parent_read(v, e);
    for (int parent = 0; !err && parent < 2; parent++) {
        err = vmdk_id_read(v->n->file, v->desc_at, parent, parent ? &v->parent_cid : &v->cid);
        if (err) {
            blk_err(e, -err, "The descriptor has no valid %s", parent ? "parentCID" : "CID");
        }
    }
    return err;
}

/* Of different kinds of extents nothing can be said in common. */
static bool alike(const struct vmdk_extent *a, const struct vmdk_extent *b)
{
    return a->flat == b->flat && a->compressed == b->compressed &&
           (a->flat || a->map.block_size == b->map.block_size);
}

static void node_fill(struct vmdk *v)
{
    struct blk_node *n = v->n;
    bool all_alike = v->nextents, marks = v->nextents;

    n->starts_as_zeros = !n->backing_name;
    for (unsigned i = 0; i < v->nextents; i++) {
        const struct vmdk_extent *x = v->extents[i];
        all_alike = all_alike && alike(x, v->extents[0]);
        marks = marks && all_alike && x->zero_grain && !x->compressed &&
                x->start % x->map.block_size == 0;
        n->starts_as_zeros = n->starts_as_zeros && (!x->flat || x->file->starts_as_zeros);
    }
    n->size = v->nextents ? v->extents[v->nextents - 1]->end : 0;
    n->cluster_size = all_alike && !v->extents[0]->flat ? v->extents[0]->map.block_size : 0;
    n->can_zero = marks ? BLK_CAP_NATIVE : BLK_CAP_EMULATED;
    n->can_discard = BLK_CAP_NONE;
    for (unsigned i = 0; i < v->nextents; i++) {
        v->extents[i]->map.cache = BLK_MAX(BM_CACHE / v->nextents, 64u << 10);
    }
}

static int vmdk_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct vmdk *v = calloc(1, sizeof(*v));
    if (!v) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    v->n = n;
    int err = open_image(v, o, e);
    if (err) {
        vmdk_free(v);
        return err == -ENOMEM ? blk_err(e, ENOMEM, "Cannot allocate memory") : err;
    }
    node_fill(v);
    n->state = v;
    return 0;
}

static int vmdk_close(struct blk_node *n, struct blk_error *e)
{
    vmdk_free(n->state);
    n->state = NULL;
    return 0;
}

/* ---- requests -------------------------------------------------------------------------------- */

static struct vmdk_extent *extent_at(const struct vmdk *v, uint64_t off)
{
    unsigned lo = 0, hi = v->nextents - 1;
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        if (v->extents[mid]->end <= off) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return v->extents[lo];
}

/* One piece of a request that crosses the end of an extent, as a request of its own. */
static int piece_run(const struct blk_req *req, uint64_t off, uint64_t len, struct iovec *part)
{
    struct co_batch b = { 0 };
    struct blk_req piece = { .op = req->op, .flags = req->flags, .offset = off, .length = len };
    if (req->iov) {
        piece.iov = part;
        piece.iovcnt = blk_iov_slice(req->iov, req->iovcnt, off - req->offset, len, part,
                                     req->iovcnt + 1);
    }
    co_batch_add(&b, req->node, &piece);
    return co_batch_wait(&b);
}

static int cut_fiber(struct blk_req *req)
{
    struct vmdk *v = req->node->state;
    uint64_t off = req->offset, end = off + req->length;
    struct iovec *part = malloc(sizeof(*part) * (size_t)(req->iovcnt + 1));
    int err = part ? 0 : -ENOMEM;

    while (!err && off < end) {
        uint64_t stop = BLK_MIN(extent_at(v, off)->end, end);
        err = piece_run(req, off, stop - off, part);
        off = stop;
    }
    free(part);
    return err;
}

static int packed_fiber(struct blk_req *req)
{
    struct vmdk *v = req->node->state;
    return vmdk_write_packed(extent_at(v, req->offset), req);
}

static int flush_fiber(struct blk_req *req)
{
    struct vmdk *v = req->node->state;
    int err = 0;
    for (unsigned i = 0; !err && i < v->nextents; i++) {
        struct vmdk_extent *x = v->extents[i];
        err = x->flat ? co_flush(x->file) : blockmap_flush(&x->map);
    }
    return err;
}

static void route(struct vmdk *v, struct blk_req *req)
{
    struct vmdk_extent *x = extent_at(v, req->offset);

    if (req->offset + req->length > x->end) {
        blk_req_fiber(req, cut_fiber);
    } else if (x->compressed && req->op == BLK_WRITE) {
        blk_req_fiber(req, packed_fiber);
    } else {
        req->flags &= ~(unsigned)BLK_REQ_COMPRESSED;    /* as QEMU: written as it is */
        if (x->flat) {
            blk_forward(req, x->file, x->flat_offset + (req->offset - x->start), NULL);
        } else {
            blockmap_submit(&x->map, req);
        }
    }
}

/* Is the backing file the one this overlay was made for? */
static bool parent_valid(const struct vmdk *v)
{
    const struct blk_node *b = v->n->backing;
    const struct vmdk *parent = b && b->drv == &blk_vmdk ? b->state : NULL;
    uint32_t cid;
    return !b || (parent && !vmdk_id_read(b->file, parent->desc_at, false, &cid) &&
                  cid == v->parent_cid);
}

/* What has to happen once, before the first request, and before the first write. */
static int settle(struct vmdk *v, bool write)
{
    int err = 0;

    co_lock(&v->settle_lock);
    if (!v->settled) {
        int absent = parent_valid(v) ? 0 : -EINVAL;
        for (unsigned i = 0; i < v->nextents; i++) {
            v->extents[i]->map.absent_err = absent;
        }
        v->settled = true;
    }
    if (write && !v->id_changed) {
        err = vmdk_id_change(v);
        v->id_changed = !err;
    }
    co_unlock(&v->settle_lock);
    return err;
}

static void settle_main(void *arg)
{
    struct blk_req *req = arg;
    struct vmdk *v = req->node->state;
    int err = settle(v, req->op != BLK_READ);
    if (err) {
        blk_complete(req, err);
    } else {
        route(v, req);
    }
}

/* What is not in an extent, the descriptor, is synced when it is written. */
static void submit_flush(struct vmdk *v, struct blk_req *req)
{
    if (v->nextents != 1) {
        blk_req_fiber(req, flush_fiber);
    } else if (v->extents[0]->flat) {
        blk_forward(req, v->extents[0]->file, 0, NULL);
    } else {
        blockmap_submit(&v->extents[0]->map, req);
    }
}

static void vmdk_submit(struct blk_node *n, struct blk_req *req)
{
    struct vmdk *v = n->state;
    if (req->op == BLK_FLUSH) {
        submit_flush(v, req);
    } else if (v->settled && (req->op == BLK_READ || v->id_changed)) {
        route(v, req);
    } else if (co_start(n->loop, settle_main, req)) {
        blk_complete(req, -ENOMEM);
    }
}

static int vmdk_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    const struct vmdk *v = n->state;
    struct vmdk_extent *x = extent_at(v, off);

    len = BLK_MIN(len, x->end - off);
    if (!x->flat) {
        return blockmap_status(&x->map, off, len, st);
    }
    st->flags = BLK_ST_DATA | BLK_ST_ALLOCATED | BLK_ST_OFFSET | BLK_ST_RECURSE;
    st->host = x->file;
    st->host_offset = x->flat_offset + (off - x->start);
    st->length = len;
    return 0;
}

/* ---- info and check ---------------------------------------------------------------------------- */

static json_t *extent_info(const struct vmdk_extent *x)
{
    json_t *j = json_object();
    if (x->compressed) {
        json_object_set_new(j, "compressed", json_true());
    }
    json_object_set_new(j, "virtual-size", json_integer((json_int_t)(x->end - x->start)));
    json_object_set_new(j, "filename", json_string_nocheck(x->file->shown));
    if (!x->flat) {
        json_object_set_new(j, "cluster-size", json_integer(x->map.block_size));
    }
    json_object_set_new(j, "format", json_string_nocheck(x->type ? x->type : ""));
    return j;
}

static int vmdk_info(struct blk_node *n, struct blk_info *out, struct blk_error *e)
{
    const struct vmdk *v = n->state;
    json_t *extents = json_array();

    for (unsigned i = 0; i < v->nextents; i++) {
        json_array_append_new(extents, extent_info(v->extents[i]));
    }
    out->specific = json_pack("{sI, sI, ss, so}", "cid", (json_int_t)v->cid, "parent-cid",
                              (json_int_t)v->parent_cid, "create-type",
                              v->create_type ? v->create_type : "", "extents", extents);
    out->needs_compressed = v->nextents && n->cluster_size && v->extents[0]->compressed;
    return 0;
}

/* The first grain that is not right ends the check, as in QEMU. */
static int check_extent(struct vmdk_extent *x, struct blk_check *c)
{
    struct blockmap *m = &x->map;

    for (uint64_t block = 0; block < m->blocks; block++) {
        uint64_t v, sector = (x->start + block * m->block_size) / VMDK_SECTOR;
        if (!x->gd[block / m->per_page]) {
            block += m->per_page - block % m->per_page - 1;
            continue;
        }
        int err = blockmap_get(m, block, &v);
        if (err || v == BM_BAD) {
            blk_check_say(c, true, "ERROR: could not get cluster_offset for sector %llu",
                          (unsigned long long)sector);
            return err ? err : -EPERM;      /* QEMU's own code shows as this */
        }
        uint64_t at = bm_is_special(v) ? v & ~BM_SPECIAL : v;
        if ((bm_is_data(v) || bm_is_special(v)) && at >= x->file->size) {
            blk_check_say(c, true, "ERROR: cluster offset for sector %llu points after EOF",
                          (unsigned long long)sector);
            return -EINVAL;
        }
    }
    return 0;
}

static int vmdk_check(struct blk_node *n, struct blk_check *c, int fix, struct blk_error *e)
{
    struct vmdk *v = n->state;
    int err = 0;

    if (fix) {
        return -ENOTSUP;
    }
    for (unsigned i = 0; !err && i < v->nextents; i++) {
        err = v->extents[i]->flat ? 0 : check_extent(v->extents[i], c);
    }
    c->corruptions += err != 0;
    return err;
}

const struct blk_driver blk_vmdk = {
    .name = "vmdk",
    .backing = true,
    .create_opts = vmdk_create_opts,
    .compresses = true,
    .probe = vmdk_probe,
    .open = vmdk_open,
    .close = vmdk_close,
    .submit = vmdk_submit,
    .status = vmdk_status,
    .info = vmdk_info,
    .facts = vmdk_facts,
    .check = vmdk_check,
    .create_check = vmdk_create_check,
    .create_check_first = true,
    .create = vmdk_create,
    .stream = vmdk_stream,
};
