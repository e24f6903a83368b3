/*
 * check.c - is a qcow2 image consistent, and repair.
 *
 * What is counted, what is said and in which order is as in qemu-img check, so
 * that the two can be compared.  The order of a repair keeps a crash harmless:
 *   1. COPIED flags of shared clusters are cleared; bad zero entries lose their
 *      place; flush
 *   2. refcounts are corrected (or built anew and switched to); flush
 *   3. COPIED flags are set where a refcount is 1; flush
 *   4. the dirty and corrupt bits are cleared, only if nothing is left; flush
 */
#include "formats/qcow2/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- messages ------------------------------------------------------------------------- */

static void BLK_PRINTF(2, 0) ck_vsay(struct check *k, const char *fmt, va_list ap)
{
    char line[512] = "(further messages are not shown)";
    if (!k->out->message || k->lines > CHECK_MAX_LINES)
        return;
    if (k->lines++ < CHECK_MAX_LINES)
        vsnprintf(line, sizeof(line), fmt, ap);
    if (k->held)
        fprintf(k->held, "%s\n", line);
    else
        k->out->message(k->out->arg, !strncmp(line, "ERROR", 5), line);
}

/* Say what was held back; text may be NULL. */
static void say_held(struct check *k, char *text)
{
    for (char *at = text, *end; at && (end = strchr(at, '\n')); at = end + 1) {
        *end = 0;
        k->out->message(k->out->arg, !strncmp(at, "ERROR", 5), at);
    }
    free(text);
}

void ck_say(struct check *k, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    ck_vsay(k, fmt, ap);
    va_end(ap);
}

void ck_error(struct check *k, uint64_t times, const char *fmt, ...)
{
    k->out->corruptions += times;
    for (uint64_t i = 0; i < BLK_MIN(times, CHECK_REPEAT); i++) {
        va_list ap;
        va_start(ap, fmt);
        ck_vsay(k, fmt, ap);
        va_end(ap);
    }
}

void ck_phase(struct check *k, double start, double span)
{
    k->phase = (struct check_phase){ start, span };
    ck_progress(k, 0, 1);
}

void ck_progress(struct check *k, uint64_t done, uint64_t total)
{
    if (k->out->progress && total)
        k->out->progress(k->out->arg, k->phase.start + k->phase.span * (double)done / (double)total);
}

/* ---- the file --------------------------------------------------------------------------- */

static bool range_holds(struct check_range r, uint64_t off, uint64_t end)
{
    return off >= r.start && end <= r.end;
}

/* A table of zeros was read at off: is it part of a hole, and how long is that?
 * Asked only then, for on data the question is slow (tmpfs looks at every page). */
void ck_learn_hole(struct check *k, uint64_t off, const void *buf, uint64_t len)
{
    struct blk_status st;
    if (len < 512 || !blk_is_zero(buf, len) || off >= k->file_len)
        return;
    if (range_holds(k->data, off, off + 1) || co_status(k->file, off, k->file_len - off, &st))
        return;
    struct check_range r = { off, off + st.length };
    *(st.flags & BLK_ST_ZERO ? &k->hole : &k->data) = r;
}

bool ck_is_hole(struct check *k, uint64_t off, uint64_t len)
{
    return off >= k->file_len || range_holds(k->hole, off, BLK_MIN(len, k->file_len - off) + off);
}

int ck_read(struct check *k, uint64_t off, void *buf, uint64_t len)
{
    if (!len || ck_is_hole(k, off, len)) {
        memset(buf, 0, len);
        return 0;
    }
    int r = co_read(k->file, off, buf, len);
    if (!r)
        ck_learn_hole(k, off, buf, len);
    return r;
}

int ck_write(struct check *k, uint64_t off, const void *buf, uint64_t len)
{
    k->hole = k->data = (struct check_range){ 0, 0 };
    ck_ahead_forget(k, off, len);
    return co_write(k->file, off, buf, len, 0);
}

/* ---- references --------------------------------------------------------------------------- */

/* What points just past the end of the file: where a rebuild would allocate. */
static int note_beyond(struct check *k, uint64_t off, uint64_t len, uint64_t times)
{
    uint64_t last = (off + len - 1) >> k->g.cluster_bits;
    for (uint64_t i = off >> k->g.cluster_bits; i <= last && i < k->beyond_end; i++) {
        int r = counts_add(&k->beyond, i, times, NULL);
        if (r)
            return r;
    }
    return 0;
}

/* Counts in full; what the image's own refcounts cannot hold is an error. */
static int ref_cluster(struct check *k, uint64_t cluster, uint64_t times)
{
    uint64_t max = k->g.refcount_max, now;
    int r = counts_add(&k->refs, cluster, times, &now);
    if (r)
        return r;
    k->suspect |= now > 1;
    if (now > max) {
        ck_error(k, BLK_MIN(times, now - max), "ERROR: overflow cluster offset=0x%" PRIx64,
                 cluster << k->g.cluster_bits);
        ck_say(k, "Use qemu-img amend to increase the refcount entry width or qemu-img convert to "
               "create a clean copy if the image cannot be opened for writing");
    }
    return 0;
}

int ck_ref_run(struct check *k, uint64_t first, uint64_t n, uint64_t times)
{
    while (n) {
        uint64_t done = 0;
        int r = times == 1 ? counts_first(&k->refs, first, n, &done) : 0;
        if (!r && !done) {
            r = ref_cluster(k, first, times);
            done = 1;
        }
        if (r)
            return r;
        first += done;
        n -= done;
    }
    return 0;
}

int ck_ref(struct check *k, uint64_t off, uint64_t len, uint64_t times)
{
    if (!len || !times)
        return 0;
    uint64_t end;
    bool wraps = blk_add_overflow(off, len, &end);
    if (wraps || (end > k->file_len && end - k->file_len >= k->g.cluster_size)) {
        ck_error(k, times, "ERROR: counting reference for region exceeding the end of the file by "
                 "one cluster or more: offset 0x%" PRIx64 " size 0x%" PRIx64, off, len);
        return wraps ? 0 : note_beyond(k, off, len, times);
    }
    uint64_t last = (end - 1) >> k->g.cluster_bits;
    uint64_t first = off >> k->g.cluster_bits;
    int r = ck_ref_run(k, first, last - first + 1, times);
    if (r)
        return r;
    if (last >= k->nb_clusters)
        k->nb_clusters = last + 1;
    return 0;
}

uint64_t ck_claims(struct check *k, uint64_t cluster)
{
    uint64_t refs = counts_get(&k->refs, cluster);
    return k->rebuild ? refs - counts_get(&k->rc, cluster) : refs;
}

/* Everything but the refcount blocks. */
static int count_references(struct check *k, const struct check_snapshots *s)
{
    int r = ck_ref(k, 0, k->g.cluster_size, 1);
    if (!r)
        r = ck_walk_tables(k, s);
    if (!r)
        r = ck_ref(k, k->g.snapshots_offset, s->size, 1);
    if (!r)
        r = ck_ref(k, k->g.reftable_offset,
                   (uint64_t)k->g.reftable_clusters << k->g.cluster_bits, 1);
    if (!r)
        r = ck_ref(k, k->g.crypto_offset, k->g.crypto_length, 1);
    if (!r)
        r = ck_count_bitmaps(k);
    return r;
}

/* The refcount table's own clusters, as far as they were counted. */
static int note_reftable(struct check *k)
{
    uint64_t off = k->g.reftable_offset;
    uint64_t len = (uint64_t)k->g.reftable_clusters << k->g.cluster_bits;
    if (off >= k->file_len || len > k->file_len - off + k->g.cluster_size - 1)
        return 0;
    for (uint64_t at = 0; at < len; at += k->g.cluster_size) {
        uint64_t cluster = (off + at) >> k->g.cluster_bits;
        int r = counts_add(&k->rc, cluster, 1, NULL);
        if (r)
            return r;
    }
    return 0;
}

/* ---- the flow ------------------------------------------------------------------------------- */

/* Build new refcounts.  before: what had been found in everything else. */
static int repair_by_rebuild(struct check *k, const struct blk_check *before)
{
    struct blk_check *c = k->out, found = *c;
    ck_say(k, "Rebuilding refcount structure");
    int r = ck_rebuild(k);
    if (r)
        return r;
    k->rebuild = false;
    c->corruptions = before->corruptions;
    c->leaks = 0;
    c->check_errors -= k->compare_errors;
    k->compare_errors = 0;
    counts_free(&k->disk);
    r = ck_compare(k, 0);
    if (k->rebuild)
        ck_say(k, "ERROR rebuilt refcount structure is still broken");
    c->corruptions_fixed += found.corruptions - BLK_MIN(found.corruptions, c->corruptions);
    c->leaks_fixed += found.leaks - BLK_MIN(found.leaks, c->leaks);
    return r;
}

/* Correct single refcounts.  before: what had been found before comparing. */
static int repair_in_place(struct check *k, const struct blk_check *before)
{
    struct blk_check *c = k->out;
    c->corruptions = before->corruptions;
    c->leaks = before->leaks;
    c->check_errors -= k->compare_errors;
    k->compare_errors = 0;
    return ck_compare(k, k->fix);
}

static int repair(struct check *k, const struct check_snapshots *s,
                  const struct blk_check *before_blocks, const struct blk_check *before_compare)
{
    struct blk_check *c = k->out;
    char *held = NULL;
    size_t held_len;
    int r = 0;
    if (k->rebuild && !(k->fix & BLK_FIX_ERRORS)) {
        ck_say(k, "ERROR need to rebuild refcount structures");
        return -EIO;
    }
    bool differs = c->corruptions != before_compare->corruptions || c->leaks;
    if (k->fix & BLK_FIX_ERRORS && (differs || k->rebuild || k->zeroed)) {
        k->held = open_memstream(&held, &held_len);     /* QEMU does this last */
        r = ck_walk_before_repair(k, s);
        if (k->held)
            fclose(k->held);
        k->held = NULL;
        if (!r)
            r = co_flush(k->file);
    }
    if (!r && k->rebuild)
        r = repair_by_rebuild(k, before_blocks);
    else if (!r && differs)
        r = repair_in_place(k, before_compare);
    say_held(k, held);
    return r ? r : co_flush(k->file);
}

/* Give freed clusters back to the file system: after the flush that freed them,
 * and not when something was wrong, for then they may be all that is left of it. */
static void discard_freed(struct check *k)
{
    uint64_t at = 0;
    while (counts_seek(&k->freed, &at)) {
        uint64_t end = at;
        while (counts_get(&k->freed, end))
            end++;
        if (end > at)
            co_discard(k->file, at << k->g.cluster_bits,
                       BLK_MIN(end << k->g.cluster_bits, k->file_len) - (at << k->g.cluster_bits));
        at = end + 1;
    }
}

/* Nothing is wrong any more: say so in the header. */
static int mark_clean(struct check *k)
{
    uint64_t bits = k->g.incompat & ~(uint64_t)(QCOW2_INC_DIRTY | QCOW2_INC_CORRUPT);
    if (bits == k->g.incompat)
        return 0;
    uint8_t be[8];
    put_be64(be, bits);
    int r = ck_write(k, QH_INCOMPATIBLE, be, sizeof(be));
    return r ? r : co_flush(k->file);
}

static int check_run(struct check *k, struct check_snapshots *s, struct blk_error *e)
{
    struct blk_check *c = k->out;
    int r = ck_read_snapshots(k, s, e);
    if (!r)
        r = ck_read_reftable(k);
    ck_phase(k, 0, 0.7);
    if (!r)
        r = count_references(k, s);
    if (!r)
        r = note_reftable(k);
    struct blk_check before_blocks = *c;
    if (!r)
        r = ck_count_blocks(k);
    struct blk_check before_compare = *c;
    ck_phase(k, 0.7, 0.2);
    if (!r)
        r = ck_compare(k, 0);
    if (!r && k->fix)
        r = repair(k, s, &before_blocks, &before_compare);
    ck_phase(k, 0.9, 0.1);
    if (!r)
        r = ck_walk_copied(k);
    if (!r && k->fix)
        r = co_flush(k->file);
    if (!r && k->fix && !c->check_errors && !c->corruptions && !s->damage) {
        if (!c->corruptions_fixed)
            discard_freed(k);
        r = mark_clean(k);
    }
    c->image_end_offset = (k->highest + 1) << k->g.cluster_bits;
    ck_progress(k, 1, 1);
    return r;
}

static struct counts *check_counts(struct check *k, size_t i)
{
    struct counts *all[] = { &k->refs, &k->rc, &k->beyond, &k->l2_all, &k->l2_active, &k->seen,
                             &k->disk, &k->freed };
    return i < BLK_ARRAY_SIZE(all) ? all[i] : NULL;
}

/* Sizes that follow from the file's length, never from what the header claims. */
static int check_init(struct check *k, struct blk_error *e)
{
    for (size_t i = 0; check_counts(k, i); i++)
        counts_init(check_counts(k, i), &k->budget);
    int r = blk_storage_length(k->file, &k->file_len);
    if (r)
        return blk_err_errno(e, -r, "Could not get the length of the image file");
    r = ck_geometry(k, e);
    if (r)
        return r;
    k->nb_clusters = (k->file_len + k->g.cluster_size - 1) >> k->g.cluster_bits;
    k->nb_clusters = BLK_MAX(1, k->nb_clusters);
    k->beyond_end = k->nb_clusters + k->nb_clusters / 32 + CHECK_BEYOND;
    int64_t used = blk_allocated_size(k->file);
    uint64_t bytes = used < 0 ? k->file_len : (uint64_t)used;
    k->tables_left = bytes > INT64_MAX - CHECK_TABLES ? INT64_MAX : bytes + CHECK_TABLES;
    k->budget.max = CHECK_MEM_BASE + (size_t)((bytes >> k->g.cluster_bits) * 2);
    k->out->has_bfi = true;
    uint64_t size = k->g.size & ~511ull;        /* whole sectors, as QEMU counts */
    k->out->total_clusters = (size >> k->g.cluster_bits) +
                             ((size & (k->g.cluster_size - 1)) != 0);
    return 0;
}

static void check_free(struct check *k, struct check_snapshots *s)
{
    for (size_t i = 0; check_counts(k, i); i++)
        counts_free(check_counts(k, i));
    ck_ahead_free(k);
    blk_buf_free(k->table);
    free(k->reftable);
    free(s->v);
    free(k);
}

static int check_once(struct blk_node *n, struct blk_check *c, int fix, bool *grown_over,
                      uint64_t *table, struct blk_error *e)
{
    struct check *k = calloc(1, sizeof(*k));
    struct check_snapshots s = { 0 };
    if (!k)
        return blk_err_errno(e, ENOMEM, "Check");
    k->q = n->state;
    k->file = n->file;
    k->out = c;
    k->fix = fix;
    int r = check_init(k, e);
    if (!r)
        r = check_run(k, &s, e);
    if (r == -ENOMEM)
        blk_err(e, ENOMEM, "The references in this image need more than %zu bytes to count",
                k->budget.max);
    else if (r)
        blk_err(e, -r, "%s", strerror(-r));
    *grown_over = k->grown_over;
    *table = fix & BLK_FIX_ERRORS ? s.damage : 0;
    check_free(k, &s);
    return r;
}

int ck_check(struct blk_node *n, struct blk_check *c, int fix, uint64_t *table,
             struct blk_error *e)
{
    bool grown_over;
    int r = check_once(n, c, fix, &grown_over, table, e);
    if (r || !grown_over)
        return r;
    /* Clusters that were past the end of the file are inside it now: what was found
     * wrong with them is gone.  Look again, quietly, and finish. */
    struct blk_check rest = { 0 };
    r = check_once(n, &rest, fix, &grown_over, table, e);
    if (r)
        return r;
    c->corruptions_fixed += c->corruptions - BLK_MIN(c->corruptions, rest.corruptions);
    c->corruptions = rest.corruptions;
    c->leaks = rest.leaks;
    c->check_errors = rest.check_errors;
    c->image_end_offset = rest.image_end_offset;
    return 0;
}
