/*
 * snapshot.c - the table of internal snapshots.
 *
 * Invariant: every length in the table is checked against the caps and the file
 * before it is used; the table is read record by record.
 */
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* Fixed part of a record (specification, "Snapshots"). */
enum {
    SN_L1_OFFSET = 0, SN_L1_SIZE = 8, SN_ID_LEN = 12, SN_NAME_LEN = 14, SN_DATE_SEC = 16,
    SN_DATE_NSEC = 20, SN_VM_CLOCK = 24, SN_VM_STATE = 32, SN_EXTRA_LEN = 36, SN_FIXED = 40,
    /* Extra data: 64-bit VM state size, virtual size, icount. */
    SN_X_VM_STATE = 0, SN_X_SIZE = 8, SN_X_ICOUNT = 16, SN_X_FULL = 24,
};

static int read_text(struct qcow2 *q, uint64_t at, uint32_t len, char **out)
{
    char *s = calloc(1, len + 1u);
    int err = s ? 0 : -ENOMEM;
    if (!err && len) {
        err = co_read(q->file, at, s, len);
    }
    if (err) {
        free(s);
        return err;
    }
    *out = s;
    return 0;
}

static int read_extra(struct qcow2 *q, uint64_t at, uint32_t len, struct qcow2_snapshot *s)
{
    uint8_t x[SN_X_FULL] = { 0 };
    uint32_t have = BLK_MIN(len, (uint32_t)sizeof(x));
    int err = have ? co_read(q->file, at, x, have) : 0;
    if (err) {
        return err;
    }
    if (have >= SN_X_SIZE) {
        s->vm_state_size = be64(x + SN_X_VM_STATE);
    }
    s->size = have >= SN_X_ICOUNT ? be64(x + SN_X_SIZE) : q->h.size;
    s->icount = have >= SN_X_FULL ? be64(x + SN_X_ICOUNT) : UINT64_MAX;
    return 0;
}

/* One record at *at. */
static int read_record(struct qcow2 *q, uint64_t *at, uint32_t i, struct qcow2_snapshot *s,
                       bool salvage, struct blk_error *e)
{
    uint8_t b[SN_FIXED];
    int err;

    if (*at + SN_FIXED > q->file->size) {
        return blk_err(e, EINVAL, "Snapshot table entry %u lies past the end of the file "
                       "(offset %#llx)", i, (unsigned long long)*at);
    }
    err = co_read(q->file, *at, b, sizeof(b));
    if (err) {
        return blk_err_errno(e, -err, "Could not read snapshot table entry %u", i);
    }
    uint32_t id_len = be16(b + SN_ID_LEN), name_len = be16(b + SN_NAME_LEN);
    uint32_t extra = s->extra = be32(b + SN_EXTRA_LEN);
    s->l1_offset = be64(b + SN_L1_OFFSET);
    s->l1_size = be32(b + SN_L1_SIZE);
    s->date_sec = be32(b + SN_DATE_SEC);
    s->date_nsec = be32(b + SN_DATE_NSEC);
    s->vm_clock = be64(b + SN_VM_CLOCK);
    s->vm_state_size = be32(b + SN_VM_STATE);
    if (extra > QCOW2_MAX_SNAPEXTRA && !salvage) {
        blk_err(e, EFBIG, "Too much extra metadata in snapshot table entry %u", i);
        blk_error_hint(e, "You can force-remove this extra metadata with qemu-img check -r all");
        return -EFBIG;
    }
    s->at = *at;
    *at += SN_FIXED;
    err = read_extra(q, *at, extra, s);
    err = err ? err : read_text(q, *at + extra, id_len, &s->id);
    err = err ? err : read_text(q, *at + extra + id_len, name_len, &s->name);
    if (err) {
        return blk_err_errno(e, -err, "Could not read snapshot table entry %u", i);
    }
    *at = blk_align_up(*at + extra + id_len + name_len, 8);
    s->len = *at - s->at;
    return 0;
}

static void free_records(struct qcow2_snapshot *s, uint32_t count)
{
    for (uint32_t i = 0; s && i < count; i++) {
        free(s[i].id);
        free(s[i].name);
    }
    free(s);
}

int qcow2_snapshots_over(struct blk_error *e, const char *what, uint32_t over)
{
    blk_err(e, EFBIG, "%s", what);
    blk_error_hint(e, "You can force-remove all %u overhanging snapshots with qemu-img check -r all",
                   over);
    return -EFBIG;
}

/* count records, or with salvage as many of them as the table may hold: *have. */
static int read_records(struct qcow2 *q, struct qcow2_snapshot *s, uint32_t count, bool salvage,
                        uint32_t *have, uint64_t *bytes, struct blk_error *e)
{
    uint64_t at = q->h.snap_offset;
    int err = 0;

    *have = 0;
    *bytes = 0;
    while (!err && *have < count) {
        err = read_record(q, &at, *have, &s[*have], salvage, e);
        if (!err && at - q->h.snap_offset > QCOW2_MAX_SNAPTABLE_BYTES) {
            return salvage ? 0 : qcow2_snapshots_over(e, "Snapshot table is too big", count - *have);
        }
        if (!err) {
            *bytes = at - q->h.snap_offset;
            ++*have;
        }
    }
    return err;
}

static int read_table(struct qcow2 *q, bool salvage, struct qcow2_snapshot **out, uint32_t *have,
                      uint64_t *bytes, struct blk_error *e)
{
    uint32_t count = q->h.nb_snapshots;

    if (count > QCOW2_MAX_SNAPSHOTS && !salvage) {
        return qcow2_snapshots_over(e, "snapshot table too large", count - QCOW2_MAX_SNAPSHOTS);
    }
    count = BLK_MIN(count, QCOW2_MAX_SNAPSHOTS);
    if (count && q->h.snap_offset >= q->file->size) {
        return blk_err(e, EINVAL, "Snapshot table offset invalid");
    }
    struct qcow2_snapshot *s = calloc(count + 1u, sizeof(*s));
    int err = s ? read_records(q, s, count, salvage, have, bytes, e)
                : blk_err(e, ENOMEM, "Cannot allocate memory");
    if (err) {
        free_records(s, count);
        return err;
    }
    if (*have < count) {                /* one was read that is not kept */
        free(s[*have].id);
        free(s[*have].name);
    }
    *out = s;
    return 0;
}

int qcow2_snapshots_read(struct qcow2 *q, struct qcow2_snapshot **out, uint64_t *bytes,
                         struct blk_error *e)
{
    uint32_t have;

    return read_table(q, false, out, &have, bytes, e);
}

int qcow2_snapshots_salvage(struct qcow2 *q, struct qcow2_snapshot **out, uint32_t *count,
                            uint64_t *bytes, struct blk_error *e)
{
    return read_table(q, true, out, count, bytes, e);
}

int qcow2_snapshots_usable(struct qcow2 *q, struct blk_error *e)
{
    struct qcow2_snapshot *s;
    struct blk_error why = BLK_ERROR_INIT;
    uint64_t bytes;

    if (!q->h.nb_snapshots || q->n->oflags & BLK_O_CHECK) {
        return 0;
    }
    int err = qcow2_snapshots_read(q, &s, &bytes, &why);
    if (err == -EFBIG) {
        *e = why;
        return err;
    }
    if (!err) {
        qcow2_snapshots_free(q, s);
    }
    return 0;
}

void qcow2_snapshots_free(struct qcow2 *q, struct qcow2_snapshot *s)
{
    free_records(s, q->h.nb_snapshots);
}

/* Names are bytes, not text: jansson is not to check them. */
static json_t *record_json(const struct qcow2_snapshot *s)
{
    json_t *j = json_object();

    json_object_set_new(j, "id", json_string_nocheck(s->id));
    json_object_set_new(j, "name", json_string_nocheck(s->name));
    json_object_set_new(j, "vm-state-size", json_integer((json_int_t)s->vm_state_size));
    json_object_set_new(j, "date-sec", json_integer(s->date_sec));
    json_object_set_new(j, "date-nsec", json_integer(s->date_nsec));
    json_object_set_new(j, "vm-clock-sec", json_integer((json_int_t)(s->vm_clock / 1000000000)));
    json_object_set_new(j, "vm-clock-nsec", json_integer((json_int_t)(s->vm_clock % 1000000000)));
    if (s->icount != UINT64_MAX) {
        json_object_set_new(j, "icount", json_integer((json_int_t)s->icount));
    }
    return j;
}

int qcow2_snapshots_info(struct qcow2 *q, json_t **out, struct blk_error *e)
{
    struct qcow2_snapshot *s;
    uint64_t bytes;
    int err = qcow2_snapshots_read(q, &s, &bytes, e);

    if (err) {
        return err;
    }
    *out = json_array();
    for (uint32_t i = 0; i < q->h.nb_snapshots; i++) {
        json_array_append_new(*out, record_json(&s[i]));
    }
    qcow2_snapshots_free(q, s);
    return 0;
}

int qcow2_snapshots_mark(struct qcow2 *q)
{
    struct qcow2_snapshot *s;
    uint64_t bytes;
    if (!q->h.nb_snapshots) {
        return 0;
    }
    int err = qcow2_snapshots_read(q, &s, &bytes, NULL);
    if (err == -EINVAL || err == -EFBIG) {
        /* A damaged table is no reason to refuse the active image; keep off it. */
        return qcow2_meta_add(q, q->h.snap_offset, 1);
    }
    if (err) {
        return err;
    }
    err = qcow2_meta_add(q, q->h.snap_offset,
                         qcow2_clusters(q, bytes + (q->h.snap_offset & (q->cluster_size - 1))));
    for (uint32_t i = 0; !err && i < q->h.nb_snapshots; i++) {
        if (s[i].l1_size <= QCOW2_MAX_L1_BYTES / 8) {
            err = qcow2_meta_add(q, s[i].l1_offset, qcow2_clusters(q, s[i].l1_size * 8ull));
        }
    }
    qcow2_snapshots_free(q, s);
    return err;
}
