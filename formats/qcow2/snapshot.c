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
#define SN_EXTRA_MAX 1024u

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
                       struct blk_error *e)
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
    uint32_t extra = be32(b + SN_EXTRA_LEN);
    s->l1_offset = be64(b + SN_L1_OFFSET);
    s->l1_size = be32(b + SN_L1_SIZE);
    s->date_sec = be32(b + SN_DATE_SEC);
    s->date_nsec = be32(b + SN_DATE_NSEC);
    s->vm_clock = be64(b + SN_VM_CLOCK);
    s->vm_state_size = be32(b + SN_VM_STATE);
    if (extra > SN_EXTRA_MAX) {
        return blk_err(e, EFBIG, "Snapshot table entry %u has %u bytes of extra data", i, extra);
    }
    if (q->h.version >= 3 && extra < SN_X_ICOUNT) {
        return blk_err(e, EINVAL, "Snapshot table entry %u lacks the 64-bit sizes", i);
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

int qcow2_snapshots_read(struct qcow2 *q, struct qcow2_snapshot **out, uint64_t *bytes,
                         struct blk_error *e)
{
    struct qcow2_snapshot *s = calloc(q->h.nb_snapshots + 1u, sizeof(*s));
    uint64_t at = q->h.snap_offset;
    int err = s ? 0 : blk_err(e, ENOMEM, "Cannot allocate memory");

    for (uint32_t i = 0; !err && i < q->h.nb_snapshots; i++) {
        err = read_record(q, &at, i, &s[i], e);
        if (!err && at - q->h.snap_offset > QCOW2_MAX_SNAPTABLE_BYTES) {
            err = blk_err(e, EFBIG, "Snapshot table is too large");
        }
    }
    if (err) {
        qcow2_snapshots_free(q, s);
        return err;
    }
    *bytes = at - q->h.snap_offset;
    *out = s;
    return 0;
}

void qcow2_snapshots_free(struct qcow2 *q, struct qcow2_snapshot *s)
{
    for (uint32_t i = 0; s && i < q->h.nb_snapshots; i++) {
        free(s[i].id);
        free(s[i].name);
    }
    free(s);
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
