/*
 * check_walk.c - L1 and L2 tables: references, damage, COPIED flags.
 *
 * An L2 table is looked into once however many L1 entries share it, its findings
 * counting once per entry; so a hostile image cannot make us read one table a
 * million times.  A first walk over the L1 tables finds out who shares.  A table in
 * which nothing is to be said is counted by its digest (check_ahead.h).
 */
#include "formats/qcow2/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int (*l1_fn)(struct check *k, uint64_t index, uint64_t entry, bool active);

/* A walk over an L1 table of so many entries; tables: fn looks into L2 tables. */
struct l1_walk {
    uint64_t off;
    uint32_t entries;
    bool active, tables;
    l1_fn fn;
};

static bool l2_usable(struct check *k, uint64_t off)
{
    return !(off & (k->g.cluster_size - 1)) && off < k->file_len;
}

/* Start reading the L2 tables that the entries of an L1 table name, from *next on. */
static void read_ahead(struct check *k, const uint8_t *chunk, uint64_t len, uint64_t *next)
{
    for (; *next < len && ck_ahead_room(k); *next += 8) {
        uint64_t off = be64(chunk + *next) & QCOW2_OFFSET_MASK;
        if (off && l2_usable(k, off) && !counts_get(&k->seen, off >> k->g.cluster_bits))
            ck_ahead_add(k, off, true);
    }
}

/* A part of an L1 table: fn for each entry that is not zero. */
static int walk_chunk(struct check *k, const struct l1_walk *w, const uint8_t *chunk, uint64_t at,
                      uint64_t len)
{
    uint64_t next = 0;
    int r = 0;
    for (uint64_t i = 0; i < len && !r; i += 8) {
        if (!be64(chunk + i))
            continue;
        if (w->tables) {
            next = BLK_MAX(next, i);
            read_ahead(k, chunk, len, &next);
            if (w->active)
                ck_progress(k, (at + i) / 8, w->entries);
        }
        r = w->fn(k, (at + i) / 8, be64(chunk + i), w->active);
    }
    return r;
}

/* Calls fn for each entry of an L1 table that is not zero. */
static int walk_l1(struct check *k, const struct l1_walk *w)
{
    uint8_t *chunk = malloc(CHECK_CHUNK);
    if (!chunk)
        return -ENOMEM;
    int r = 0;
    uint64_t bytes = (uint64_t)w->entries * 8;
    for (uint64_t at = 0; at < bytes && !r; at += CHECK_CHUNK) {
        uint64_t len = BLK_MIN(bytes - at, CHECK_CHUNK);
        if (ck_is_hole(k, w->off + at, len))
            continue;
        r = ck_read(k, w->off + at, chunk, len);
        if (r) {
            ck_say(k, "ERROR: I/O error in check_refcounts_l1");
            k->out->check_errors++;
        } else {
            r = walk_chunk(k, w, chunk, at, len);
        }
    }
    free(chunk);
    return r;
}

static bool snapshot_usable(struct check *k, const struct check_snapshot *s)
{
    return !(s->l1_offset & (k->g.cluster_size - 1)) && s->l1_size <= QCOW2_MAX_L1_BYTES / 8 &&
           !s->skip;
}

static int walk_active(struct check *k, bool tables, l1_fn fn)
{
    return walk_l1(k, &(struct l1_walk){ k->g.l1_offset, k->g.l1_size, true, tables, fn });
}

static int walk_snapshot(struct check *k, const struct check_snapshot *s, bool tables, l1_fn fn)
{
    return walk_l1(k, &(struct l1_walk){ s->l1_offset, s->l1_size, false, tables, fn });
}

static int walk_snapshots(struct check *k, const struct check_snapshots *s, bool tables, l1_fn fn)
{
    for (uint32_t i = 0; i < s->n; i++) {
        if (!snapshot_usable(k, &s->v[i]))
            continue;
        int r = walk_snapshot(k, &s->v[i], tables, fn);
        if (r)
            return r;
    }
    return 0;
}

/* ---- who shares L2 tables ----------------------------------------------------------- */

static int note_shared(struct check *k, uint64_t index, uint64_t entry, bool active)
{
    uint64_t off = entry & QCOW2_OFFSET_MASK;
    if (!l2_usable(k, off))
        return 0;
    int r = counts_add(&k->l2_all, off >> k->g.cluster_bits, 1, NULL);
    if (!r && active)
        r = counts_add(&k->l2_active, off >> k->g.cluster_bits, 1, NULL);
    return r;
}

/* ---- L2 entries ---------------------------------------------------------------------- */

struct l2_view {
    uint64_t off;               /* of the table */
    unsigned width, entries;    /* bytes of an entry; entries in the table */
    uint64_t times, active;     /* L1 entries that name it; those of the active L1 */
};

static struct l2_view l2_view(struct check *k, uint64_t off)
{
    unsigned width = k->g.extl2 ? 16 : 8;
    uint64_t cluster = off >> k->g.cluster_bits;
    return (struct l2_view){
        .off = off, .width = width, .entries = (unsigned)(k->g.cluster_size / width),
        .times = counts_get(&k->l2_all, cluster), .active = counts_get(&k->l2_active, cluster),
    };
}

enum l2_type ck_l2_type(const struct check *k, uint64_t entry)
{
    uint64_t off = entry & QCOW2_OFFSET_MASK;
    if (entry & QCOW2_COMPRESSED)
        return L2_COMPRESSED;
    if (!k->g.extl2 && (entry & QCOW2_ZERO))
        return off ? L2_ZERO_ALLOC : L2_ZERO;
    /* Offset 0 of an external data file is a cluster like others, once COPIED. */
    return off || (k->g.data_file && (entry & QCOW2_COPIED)) ? L2_NORMAL : L2_UNALLOCATED;
}

static uint64_t l2_bitmap(const struct check *k, const uint8_t *entry)
{
    return k->g.extl2 ? be64(entry + 8) : 0;
}

static unsigned compressed_size_shift(const struct check *k)
{
    return 62 - (k->g.cluster_bits - 8);
}

void ck_compressed_place(const struct check *k, uint64_t entry, uint64_t *off, uint64_t *len)
{
    unsigned shift = compressed_size_shift(k);
    *off = entry & ((1ull << shift) - 1);
    uint64_t sectors = ((entry & ~(QCOW2_COMPRESSED | QCOW2_COPIED)) >> shift) + 1;
    *len = sectors * 512 - (*off & 511);
}

static int check_compressed(struct check *k, const struct l2_view *v, unsigned i, uint64_t entry,
                            uint64_t bitmap)
{
    uint64_t off, len;
    ck_compressed_place(k, entry, &off, &len);
    if (entry & QCOW2_COPIED) {
        ck_error(k, v->times, "ERROR: coffset=0x%" PRIx64 ": copied flag must never be set for "
                 "compressed clusters", off);
        entry &= ~QCOW2_COPIED;
    }
    if (k->g.data_file) {
        ck_error(k, v->times, "ERROR compressed cluster %u with data file, entry=0x%" PRIx64,
                 i, entry);
        return 0;
    }
    if (bitmap) {
        ck_error(k, v->times, "ERROR compressed cluster %u with non-zero subcluster allocation "
                 "bitmap, entry=0x%" PRIx64, i, entry);
        return 0;
    }
    k->out->allocated_clusters += v->active;
    k->out->compressed_clusters += v->active;
    k->out->fragmented_clusters += v->active;
    return ck_ref(k, off, len, v->times);
}

/* An allocated cluster that is not aligned.  True: it is dealt with. */
static bool check_unaligned(struct check *k, const struct l2_view *v, uint64_t off, bool has_data)
{
    if (has_data) {
        ck_error(k, v->times, "ERROR offset=%" PRIx64 ": Data cluster is not properly aligned; "
                 "L2 entry corrupted.", off);
        return false;
    }
    bool fixing = k->fix & BLK_FIX_ERRORS && k->g.version >= 3 &&
                  !(v->off & (k->g.cluster_size - 1));
    if (fixing) {
        ck_say(k, "Repairing offset=%" PRIx64 ": Preallocated cluster is not properly aligned; L2 "
               "entry corrupted.", off);
        k->out->corruptions_fixed++;
        k->zeroed = true;
    } else {
        ck_error(k, v->times, "ERROR offset=%" PRIx64 ": Preallocated cluster is not properly "
                 "aligned; L2 entry corrupted.", off);
    }
    return fixing;
}

/* Zero clusters that name an unaligned place lose the place. */
static bool wants_zeroing(const struct check *k, uint64_t entry, uint64_t bitmap)
{
    enum l2_type type = ck_l2_type(k, entry);
    bool has_data = k->g.extl2 ? (uint32_t)bitmap != 0 : type == L2_NORMAL;
    return (type == L2_NORMAL || type == L2_ZERO_ALLOC) && !has_data &&
           (entry & QCOW2_OFFSET_MASK & (k->g.cluster_size - 1));
}

static int check_standard(struct check *k, const struct l2_view *v, uint64_t entry,
                          uint64_t bitmap, uint64_t *next)
{
    uint64_t off = entry & QCOW2_OFFSET_MASK;
    if (bitmap >> 32 & bitmap & UINT32_MAX)
        ck_error(k, v->times, "ERROR offset=%" PRIx64 ": Allocated cluster has corrupted "
                 "subcluster allocation bitmap", off);
    if (off & (k->g.cluster_size - 1) &&
        check_unaligned(k, v, off, !wants_zeroing(k, entry, bitmap)))
        return 0;
    k->out->allocated_clusters += v->active;
    if (*next && off != *next)
        k->out->fragmented_clusters += v->active;
    *next = off + k->g.cluster_size;
    return k->g.data_file ? 0 : ck_ref(k, off, k->g.cluster_size, v->times);
}

/* A table in which there is nothing to say but what its clusters' counters do. */
static int check_digested(struct check *k, const struct l2_view *v)
{
    const struct check_digest *d = &k->digest;
    int r = 0;
    k->suspect |= d->bare;
    k->out->allocated_clusters += d->allocated * v->active;
    k->out->fragmented_clusters += d->fragmented * v->active;
    k->out->compressed_clusters += d->compressed * v->active;
    for (uint32_t i = 0; i < d->nruns && !r; i++)
        r = ck_ref_run(k, d->run[i].first, d->run[i].n, v->times);
    return r;
}

static int check_l2(struct check *k, const struct l2_view *v)
{
    if (ck_is_hole(k, v->off, k->g.cluster_size))
        return 0;
    int r = ck_take(k, v->off, true);
    if (r) {
        ck_say(k, "ERROR: I/O error in check_refcounts_l2");
        k->out->check_errors++;
        return r;
    }
    if (!k->digest.odd)
        return check_digested(k, v);
    k->suspect = true;
    uint64_t next = 0;
    for (unsigned i = 0; i < v->entries && !r; i++) {
        const uint8_t *at = k->table + i * v->width;
        uint64_t entry = be64(at), bitmap = l2_bitmap(k, at);
        if (!(entry | bitmap))
            continue;
        enum l2_type type = ck_l2_type(k, entry);
        if (type != L2_COMPRESSED && (entry & QCOW2_L2_RESERVED))
            ck_error(k, v->times, "ERROR found l2 entry with reserved bits set: %" PRIx64, entry);
        if (type == L2_COMPRESSED)
            r = check_compressed(k, v, i, entry, bitmap);
        else if (type == L2_NORMAL || type == L2_ZERO_ALLOC)
            r = check_standard(k, v, entry, bitmap, &next);
        else if (type == L2_UNALLOCATED && (uint32_t)bitmap)
            ck_error(k, v->times, "ERROR: Unallocated cluster has non-zero subcluster allocation "
                     "map");
    }
    return r;
}

static int check_l1_entry(struct check *k, uint64_t index, uint64_t entry, bool active)
{
    uint64_t off = entry & QCOW2_OFFSET_MASK, cluster = off >> k->g.cluster_bits;
    if (entry & QCOW2_L1_RESERVED)
        ck_error(k, 1, "ERROR found L1 entry with reserved bits set: %" PRIx64, entry);
    int r = ck_ref(k, off, k->g.cluster_size, 1);
    if (r)
        return r;
    if (off & (k->g.cluster_size - 1)) {
        ck_error(k, 1, "ERROR l2_offset=%" PRIx64 ": Table is not cluster aligned; L1 entry "
                 "corrupted", off);
        if (k->stray++ >= CHECK_MAX_STRAY)
            return 0;
        struct l2_view v = l2_view(k, off);
        v.times = 1;
        v.active = active;
        return check_l2(k, &v);
    }
    if (!l2_usable(k, off) || counts_get(&k->seen, cluster))
        return 0;
    r = counts_set(&k->seen, cluster, 1);
    struct l2_view v = l2_view(k, off);
    return r ? r : check_l2(k, &v);
}

int ck_walk_tables(struct check *k, const struct check_snapshots *s)
{
    counts_free(&k->l2_all);
    counts_free(&k->l2_active);
    counts_free(&k->seen);
    k->stray = 0;
    k->suspect = false;
    int r = walk_active(k, false, note_shared);
    if (!r)
        r = walk_snapshots(k, s, false, note_shared);
    if (!r)
        r = ck_ref(k, k->g.l1_offset, (uint64_t)k->g.l1_size * 8, 1);
    if (!r)
        r = walk_active(k, true, check_l1_entry);
    if (!r && k->g.data_file && s->n)
        ck_error(k, 1, "ERROR %u snapshots in image with data file", s->n);
    for (uint32_t i = 0; i < s->n && !r; i++) {
        const struct check_snapshot *sn = &s->v[i];
        if (sn->l1_offset & (k->g.cluster_size - 1)) {
            ck_error(k, 1, "ERROR snapshot %s (%s) l1_offset=%#" PRIx64 ": L1 table is not cluster "
                     "aligned; snapshot table entry corrupted", sn->id, sn->name, sn->l1_offset);
        } else if (sn->skip) {
            ck_error(k, 1, "ERROR snapshot %s (%s) l1_offset=%#" PRIx64 ": more L1 tables than the "
                     "file can hold; not looked into", sn->id, sn->name, sn->l1_offset);
        } else if (!snapshot_usable(k, sn)) {
            ck_error(k, 1, "ERROR snapshot %s (%s) l1_size=%#x: L1 table is too large; snapshot "
                     "table entry corrupted", sn->id, sn->name, sn->l1_size);
        } else {
            r = ck_ref(k, sn->l1_offset, (uint64_t)sn->l1_size * 8, 1);
            if (!r)
                r = walk_snapshot(k, sn, true, check_l1_entry);
        }
    }
    return r;
}

/* ---- COPIED --------------------------------------------------------------------------- */

/* May this L2 table be written?  Not if anything else claims its cluster. */
static bool l2_writable(struct check *k, const struct l2_view *v)
{
    return !(v->off & (k->g.cluster_size - 1)) &&
           ck_claims(k, v->off >> k->g.cluster_bits) == v->times;
}

static bool l1_writable(struct check *k, uint64_t index)
{
    uint64_t cluster = (k->g.l1_offset + index * 8) >> k->g.cluster_bits;
    return ck_claims(k, cluster) == 1;
}

/* Write changed entries of the table in k->table back: whole sectors. */
static int l2_write(struct check *k, const struct l2_view *v)
{
    if (!l2_writable(k, v)) {
        ck_say(k, "ERROR: Could not write L2 table; metadata overlap check failed: %s",
               strerror(EIO));
        k->out->check_errors++;
        return -EEXIST;
    }
    int r = ck_write(k, v->off, k->table, k->g.cluster_size);
    if (r) {
        ck_say(k, "ERROR: Could not write L2 table: %s", strerror(-r));
        k->out->check_errors++;
    }
    return r;
}

static int l1_write(struct check *k, uint64_t index, uint64_t entry)
{
    uint8_t be[8];
    put_be64(be, entry);
    if (!l1_writable(k, index)) {
        k->out->check_errors++;
        return -EEXIST;
    }
    return ck_write(k, k->g.l1_offset + index * 8, be, 8);
}

/* COPIED means: mine alone.  A 1 on disk, and no more references that could have
 * been stored.  (What overflows a 1-bit refcount keeps its flag: without it a
 * write would free the cluster under its other user.) */
static bool copied_right(struct check *k, uint64_t cluster, uint64_t disk)
{
    return disk == 1 && (cluster >= k->nb_clusters ||
                         ck_storable(k, counts_get(&k->refs, cluster)) == 1);
}

/* Does this entry's flag disagree with its refcount?  Says and counts so. */
static bool copied_differs(struct check *k, const char *what, uint64_t entry, uint64_t cluster,
                           uint64_t times, uint64_t *right)
{
    uint64_t disk;
    if (ck_disk_refcount(k, cluster, &disk))
        return false;
    bool set = entry & QCOW2_COPIED, want = copied_right(k, cluster, disk);
    bool wrong = set != (disk == 1), repair = k->fix_copied && set != want;
    *right = want ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED;
    if (!wrong)
        return repair;
    if (repair) {
        ck_say(k, "Repairing OFLAG_COPIED %s%" PRIx64 " refcount=%" PRIu64, what, entry, disk);
        k->out->corruptions_fixed += times;
    } else {
        ck_error(k, times, "ERROR OFLAG_COPIED %s%" PRIx64 " refcount=%" PRIu64, what, entry, disk);
    }
    return repair;
}

/* The usual case, quickly: referenced once, so on disk, and flagged so. */
static bool copied_plainly_right(struct check *k)
{
    const struct check_digest *d = &k->digest;
    bool right = !d->odd && !d->bare && counts_empty(&k->disk);
    for (uint32_t i = 0; i < d->nruns && right; i++)
        right = d->run[i].compressed || counts_all_one(&k->refs, d->run[i].first, d->run[i].n);
    return right;
}

/* All data entries of an L2 table. */
static int copied_l2(struct check *k, const struct l2_view *v)
{
    if (ck_is_hole(k, v->off, k->g.cluster_size))
        return 0;
    int r = ck_take(k, v->off, true);
    if (r) {
        ck_say(k, "ERROR: Could not read L2 table: %s", strerror(-r));
        k->out->check_errors++;
        return r;
    }
    if (k->g.data_file || copied_plainly_right(k))
        return 0;
    bool dirty = false;
    uint64_t fixed = k->out->corruptions_fixed;
    for (unsigned i = 0; i < v->entries; i++) {
        uint8_t *at = k->table + i * v->width;
        uint64_t entry = be64(at), right;
        enum l2_type type = ck_l2_type(k, entry);
        if (type != L2_NORMAL && type != L2_ZERO_ALLOC)
            continue;
        uint64_t cluster = (entry & QCOW2_OFFSET_MASK) >> k->g.cluster_bits;
        if (copied_differs(k, "data cluster: l2_entry=", entry, cluster, v->active, &right)) {
            put_be64(at, right);
            dirty = true;
        }
    }
    r = dirty ? l2_write(k, v) : 0;
    if (r) {
        k->out->corruptions += k->out->corruptions_fixed - fixed;
        k->out->corruptions_fixed = fixed;
    }
    return r == -EEXIST ? 0 : r;
}

/* Are there L2 tables that may hold a wrong flag?  Not if every data entry has it set,
 * and every cluster is in use once, and counted so. */
static bool copied_to_see(const struct check *k)
{
    return k->suspect || !counts_empty(&k->disk);
}

static int copied_l1_entry(struct check *k, uint64_t index, uint64_t entry, bool active)
{
    uint64_t off = entry & QCOW2_OFFSET_MASK, cluster = off >> k->g.cluster_bits, right;
    char what[64];
    if (!off)
        return 0;
    snprintf(what, sizeof(what), "L2 cluster: l1_index=%" PRIu64 " l1_entry=", index);
    if (copied_differs(k, what, entry, cluster, 1, &right)) {
        int r = l1_write(k, index, right);
        if (r && r != -EEXIST)
            return r;
        k->out->corruptions += r != 0;
        k->out->corruptions_fixed -= r != 0;
    }
    if (!copied_to_see(k))
        return 0;
    if (off & (k->g.cluster_size - 1) && k->stray++ < CHECK_MAX_STRAY) {
        struct l2_view stray = l2_view(k, off);
        stray.times = stray.active = 1;
        return copied_l2(k, &stray);
    }
    if (!l2_usable(k, off) || counts_get(&k->seen, cluster))
        return 0;
    int r = counts_set(&k->seen, cluster, 1);
    struct l2_view v = l2_view(k, off);
    return r ? r : copied_l2(k, &v);
}

int ck_walk_copied(struct check *k)
{
    counts_free(&k->seen);
    k->stray = 0;
    /* Asked for leaks alone, flags are repaired only if nothing else is wrong: then
     * they are what lowering a refcount to 1 has left behind. */
    const struct blk_check *c = k->out;
    k->fix_copied = k->fix & BLK_FIX_ERRORS ||
                    (k->fix && !c->check_errors && !c->corruptions && !c->leaks);
    return walk_active(k, copied_to_see(k), copied_l1_entry);
}

/* ---- before refcounts change ------------------------------------------------------------- */

static void zero_entry(const struct check *k, uint8_t *at)
{
    if (!k->g.extl2) {
        put_be64(at, QCOW2_ZERO);
        return;
    }
    /* Subclusters that had a place, or were zero, are zero now. */
    uint64_t bitmap = be64(at + 8);
    put_be64(at, 0);
    put_be64(at + 8, (bitmap | bitmap << 32) & 0xffffffff00000000ull);
}

static int before_l2(struct check *k, const struct l2_view *v)
{
    if (ck_is_hole(k, v->off, k->g.cluster_size))
        return 0;
    int r = ck_take(k, v->off, true);
    if (r)
        return r;
    uint64_t cleared = 0, zeroed = 0;
    for (unsigned i = 0; i < v->entries; i++) {
        uint8_t *at = k->table + i * v->width;
        uint64_t entry = be64(at);
        enum l2_type type = ck_l2_type(k, entry);
        if (k->zeroed && wants_zeroing(k, entry, l2_bitmap(k, at))) {
            zero_entry(k, at);
            zeroed++;
            continue;
        }
        uint64_t cluster = (entry & QCOW2_OFFSET_MASK) >> k->g.cluster_bits;
        uint64_t refs = ck_claims(k, cluster);
        if (!(entry & QCOW2_COPIED) || ck_storable(k, refs) < 2 || k->g.data_file || !v->active ||
            (type != L2_NORMAL && type != L2_ZERO_ALLOC))
            continue;
        ck_say(k, "Repairing OFLAG_COPIED data cluster: l2_entry=%" PRIx64 " refcount=%" PRIu64,
               entry, refs);
        put_be64(at, entry & ~QCOW2_COPIED);
        cleared += v->active;
    }
    if (!(cleared | zeroed))
        return 0;
    r = l2_write(k, v);
    if (!r) {
        k->out->corruptions_fixed += cleared;
    } else {
        k->out->corruptions += cleared + zeroed;
        k->out->corruptions_fixed -= zeroed;
    }
    return r == -EEXIST ? 0 : r;
}

static int before_l1_entry(struct check *k, uint64_t index, uint64_t entry, bool active)
{
    uint64_t off = entry & QCOW2_OFFSET_MASK, cluster = off >> k->g.cluster_bits;
    if (!l2_usable(k, off))
        return 0;
    uint64_t refs = ck_claims(k, cluster);
    if (active && (entry & QCOW2_COPIED) && ck_storable(k, refs) > 1) {
        ck_say(k, "Repairing OFLAG_COPIED L2 cluster: l1_index=%" PRIu64 " l1_entry=%" PRIx64
               " refcount=%" PRIu64, index, entry, refs);
        int r = l1_write(k, index, entry & ~QCOW2_COPIED);
        if (r && r != -EEXIST)
            return r;
        k->out->corruptions_fixed += !r;
        k->out->corruptions += r != 0;
    }
    if (counts_get(&k->seen, cluster))
        return 0;
    int r = counts_set(&k->seen, cluster, 1);
    struct l2_view v = l2_view(k, off);
    return r ? r : before_l2(k, &v);
}

int ck_walk_before_repair(struct check *k, const struct check_snapshots *s)
{
    counts_free(&k->seen);
    int r = walk_active(k, true, before_l1_entry);
    return r ? r : walk_snapshots(k, s, true, before_l1_entry);
}
