/*
 * log.c - the log of changes to the block allocation table.
 *
 * An entry is a header, descriptors, and a 4 KiB sector for each descriptor that
 * brings data (its first 8 and last 4 bytes stand in the descriptor, whose place the
 * sequence number takes).  A checksum covers all of it, so an entry is there as a
 * whole or not at all.  Replaying one twice does no harm.
 *
 * Ours are written to two places in turn, so that the one before stays valid until
 * the new one is:
 *   entry -- sync -- (first one: headers name the log, each synced) -- in place -- sync
 * Each is complete on its own (its tail is itself), for when the next is written what
 * this one changed is in place and durable.
 *
 * Invariants
 *  - Reading an unknown log: what is checksummed in all is bounded, whatever its
 *    entries claim to be.
 *  - Nothing is replayed before all of it was found valid.
 */
#include "formats/vhdx/vhdx.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 4096u
#define ENTRY_HEADER 64u
#define DESC_BYTES 32u
#define STORE_MAX ((SECTOR - ENTRY_HEADER) / DESC_BYTES)    /* table sectors in one entry */
#define HEADS_MAX 16u               /* ends of a sequence that are tried */
#define LAST_OFFSET_MAX (2 * VHDX_SIZE_MAX)

enum { LE_LENGTH = 8, LE_TAIL = 12, LE_SEQUENCE = 16, LE_DESCS = 24, LE_GUID = 32,
       LE_FLUSHED = 48, LE_LAST = 56 };
enum { LD_TRAILING = 4, LD_LEADING = 8, LD_ZERO_LENGTH = 8, LD_OFFSET = 16, LD_SEQUENCE = 24 };
enum { LS_HIGH = 4, LS_DATA = 8, LS_LOW = 4092, LS_DATA_BYTES = 4084 };

struct entry { uint64_t sequence; uint32_t at, length, tail; };

/* ---- finding what is to be replayed -------------------------------------------------- */

struct search {
    struct vhdx *v;
    struct entry *found;            /* ascending at */
    size_t n, room;
    uint64_t work;                  /* bytes that may still be checksummed */
    uint8_t *buf;                   /* an entry */
    size_t buf_len;
};

/* The log is a ring. */
static int ring_read(struct vhdx *v, uint32_t at, void *buf, uint32_t len)
{
    uint32_t first = BLK_MIN(len, v->h.log_length - at);
    int err = co_read(v->file, v->h.log_offset + at, buf, first);
    return err || first == len
               ? err : co_read(v->file, v->h.log_offset, (uint8_t *)buf + first, len - first);
}

static uint32_t desc_sectors(uint32_t descs)
{
    return (descs + ENTRY_HEADER / DESC_BYTES + SECTOR / DESC_BYTES - 1) / (SECTOR / DESC_BYTES);
}

static bool head_sane(const struct vhdx *v, const uint8_t *h)
{
    uint32_t length = le32(h + LE_LENGTH), descs = le32(h + LE_DESCS), tail = le32(h + LE_TAIL);
    return !memcmp(h, "loge", 4) && length && length <= v->h.log_length &&
           length <= VHDX_ENTRY_MAX && !(length % SECTOR) &&
           tail < v->h.log_length && !(tail % SECTOR) && le64(h + LE_SEQUENCE) &&
           vhdx_guid_is(h + LE_GUID, &v->h.log_guid) &&
           descs <= length / DESC_BYTES && desc_sectors(descs) <= length / SECTOR;
}

/* Are the descriptors of the entry in buf right, and are their sectors there? */
static bool descs_sane(const uint8_t *buf)
{
    uint32_t descs = le32(buf + LE_DESCS), sector = desc_sectors(descs);
    uint64_t sequence = le64(buf + LE_SEQUENCE);

    for (uint32_t i = 0; i < descs; i++) {
        const uint8_t *d = buf + ENTRY_HEADER + (size_t)i * DESC_BYTES;
        const uint8_t *s = buf + (size_t)sector * SECTOR;
        if (le64(d + LD_SEQUENCE) != sequence || le64(d + LD_OFFSET) % SECTOR) {
            return false;
        }
        if (!memcmp(d, "zero", 4)) {
            if (le64(d + LD_ZERO_LENGTH) % SECTOR) {
                return false;
            }
        } else if (memcmp(d, "desc", 4) || ++sector > le32(buf + LE_LENGTH) / SECTOR ||
                   memcmp(s, "data", 4) || le32(s + LS_HIGH) != sequence >> 32 ||
                   le32(s + LS_LOW) != (uint32_t)sequence) {
            return false;
        }
    }
    return true;
}

/* The whole entry at `at` into s->buf: 1 valid, 0 not, -errno. */
static int entry_read(struct search *s, uint32_t at)
{
    uint8_t head[ENTRY_HEADER];
    int err = ring_read(s->v, at, head, sizeof(head));
    uint32_t length = le32(head + LE_LENGTH);

    if (err || !head_sane(s->v, head)) {
        return err;
    }
    if (s->work < length) {
        return -EFBIG;
    }
    s->work -= length;
    if (s->buf_len < length) {
        blk_buf_free(s->buf);
        s->buf = blk_buf_alloc(length);
        s->buf_len = s->buf ? length : 0;
    }
    err = s->buf ? ring_read(s->v, at, s->buf, length) : -ENOMEM;
    return err ? err : vhdx_crc_valid(s->buf, length) && head_sane(s->v, s->buf) &&
                       le32(s->buf + LE_LENGTH) == length && descs_sane(s->buf);
}

static int entry_keep(struct search *s, uint32_t at)
{
    if (s->n == s->room) {
        size_t room = s->room ? s->room * 2 : 16;
        struct entry *more = realloc(s->found, room * sizeof(*more));
        if (!more) {
            return -ENOMEM;
        }
        s->found = more;
        s->room = room;
    }
    s->found[s->n++] = (struct entry){ le64(s->buf + LE_SEQUENCE), at, le32(s->buf + LE_LENGTH),
                                       le32(s->buf + LE_TAIL) };
    return 0;
}

/* Every valid entry of the log; holes of the file have none. */
static int entries_find(struct search *s)
{
    const struct vhdx *v = s->v;
    uint64_t at = 0, data_end = 0;

    while (at < v->h.log_length && v->h.log_offset + at < s->v->file->size) {
        if (at >= data_end) {
            struct blk_status st;
            int err = co_status(s->v->file, v->h.log_offset + at, v->h.log_length - at, &st);
            if (err) {
                return err;
            }
            data_end = at + st.length;
            if (st.flags & BLK_ST_ZERO && st.length >= SECTOR) {
                at = blk_align_down(data_end, SECTOR);
                continue;
            }
            data_end = blk_align_up(data_end, SECTOR);
        }
        int ok = entry_read(s, (uint32_t)at);
        ok = ok == 1 ? (entry_keep(s, (uint32_t)at) ? -ENOMEM : 1) : ok;
        if (ok < 0) {
            return ok;
        }
        at += ok ? s->found[s->n - 1].length : SECTOR;
    }
    return 0;
}

static const struct entry *entry_at(const struct search *s, uint32_t at)
{
    size_t lo = 0, hi = s->n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (s->found[mid].at < at) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo < s->n && s->found[lo].at == at ? &s->found[lo] : NULL;
}

/* Does an unbroken sequence lead from head's tail to head?  Its first entry. */
static const struct entry *sequence_start(const struct search *s, const struct entry *head)
{
    const struct entry *first = entry_at(s, head->tail), *x = first;
    for (size_t i = 0; x && x != head && i < s->n; i++) {
        const struct entry *next = entry_at(s, (x->at + x->length) % s->v->h.log_length);
        x = next && next->sequence == x->sequence + 1 ? next : NULL;
    }
    return x == head ? first : NULL;
}

/* The newest sequence; *head NULL: there is none. */
static const struct entry *sequence_find(const struct search *s, const struct entry **head)
{
    uint64_t below = UINT64_MAX;
    for (unsigned tries = 0; tries < HEADS_MAX; tries++) {
        *head = NULL;
        for (size_t i = 0; i < s->n; i++) {
            const struct entry *x = &s->found[i];
            if (x->sequence < below && (!*head || x->sequence > (*head)->sequence)) {
                *head = x;
            }
        }
        const struct entry *first = *head ? sequence_start(s, *head) : NULL;
        if (first || !*head) {
            return first;
        }
        below = (*head)->sequence;
    }
    *head = NULL;
    return NULL;
}

/* ---- replaying ------------------------------------------------------------------------ */

/* Do all places lie in the file, as long as the entry says it is to become? */
static bool places_sane(const uint8_t *buf, uint64_t size)
{
    for (uint32_t i = 0, n = le32(buf + LE_DESCS); i < n; i++) {
        const uint8_t *d = buf + ENTRY_HEADER + (size_t)i * DESC_BYTES;
        uint64_t len = memcmp(d, "zero", 4) ? SECTOR : le64(d + LD_ZERO_LENGTH), end;
        if (blk_add_overflow(le64(d + LD_OFFSET), len, &end) || end > size) {
            return false;
        }
    }
    return true;
}

static int desc_apply(struct vhdx *v, const uint8_t *d, const uint8_t *s, uint8_t *sector)
{
    uint64_t at = le64(d + LD_OFFSET);
    if (!memcmp(d, "zero", 4)) {
        return co_write_zeroes(v->file, at, le64(d + LD_ZERO_LENGTH), 0);
    }
    memcpy(sector, d + LD_LEADING, 8);
    memcpy(sector + 8, s + LS_DATA, LS_DATA_BYTES);
    memcpy(sector + 8 + LS_DATA_BYTES, d + LD_TRAILING, 4);
    return co_write(v->file, at, sector, SECTOR, 0);
}

static int entry_apply(struct search *s, const struct entry *x, bool only_check,
                       struct blk_error *e)
{
    struct vhdx *v = s->v;
    int err = entry_read(s, x->at);
    uint64_t last = err == 1 ? le64(s->buf + LE_LAST) : 0;
    uint64_t flushed = err == 1 ? le64(s->buf + LE_FLUSHED) : 0;

    if (err != 1) {
        return err ? err : -EIO;
    }
    if (flushed > v->file->size || last > LAST_OFFSET_MAX ||
        !places_sane(s->buf, BLK_MAX(v->file->size, last))) {
        return blk_err(e, EINVAL, "VHDX log entry at offset %llu does not fit the file "
                       "(%llu bytes); it has probably been truncated",
                       (unsigned long long)(v->h.log_offset + x->at),
                       (unsigned long long)v->file->size);
    }
    if (only_check) {
        return 0;
    }
    err = last > v->file->size
              ? blk_truncate(v->file, blk_align_up(last, VHDX_MIB), false, BLK_PREALLOC_OFF, e) : 0;
    uint8_t *sector = err ? NULL : blk_buf_alloc(SECTOR);
    uint32_t descs = le32(s->buf + LE_DESCS), data = desc_sectors(descs);
    err = err ? err : sector ? 0 : -ENOMEM;
    for (uint32_t i = 0; !err && i < descs; i++) {
        const uint8_t *d = s->buf + ENTRY_HEADER + (size_t)i * DESC_BYTES;
        err = desc_apply(v, d, s->buf + (size_t)data * SECTOR, sector);
        data += memcmp(d, "zero", 4) != 0;
    }
    blk_buf_free(sector);
    return err;
}

static int sequence_apply(struct search *s, const struct entry *first, const struct entry *head,
                          struct blk_error *e)
{
    int err = 0;
    for (int pass = 0; !err && pass < 2; pass++) {
        s->work = VHDX_LOG_WORK;
        for (const struct entry *x = first; !err;
             x = entry_at(s, (x->at + x->length) % s->v->h.log_length)) {
            err = entry_apply(s, x, pass == 0, e);
            if (x == head) {
                break;
            }
        }
    }
    return err ? err : co_flush(s->v->file);
}

static int refuse_read_only(const struct vhdx *v, struct blk_error *e)
{
    blk_err(e, EPERM, "VHDX image file '%s' opened read-only, but contains a log that needs to "
            "be replayed", v->file->shown);
    blk_error_hint(e, "To replay the log, run:\n%s check -r all '%s'", blk_program,
                   v->file->shown);
    return -EPERM;
}

int vhdx_log_replay(struct vhdx *v, struct blk_error *e)
{
    struct search s = { .v = v, .work = VHDX_LOG_WORK };
    const struct entry *head = NULL;
    int err;

    if (blk_is_zero(&v->h.log_guid, 16) || !v->h.log_length) {
        return 0;
    }
    err = entries_find(&s);
    const struct entry *first = err ? NULL : sequence_find(&s, &head);
    if (first) {
        v->log_sequence = head->sequence;
        err = v->n->read_only ? refuse_read_only(v, e) : sequence_apply(&s, first, head, e);
        v->replayed = !err;
    }
    if (!err && !v->n->read_only) {
        struct vhdx_header h = v->h;
        h.log_guid = (struct vhdx_guid){ { 0 } };
        err = vhdx_header_update(v, &h);
    }
    free(s.found);
    blk_buf_free(s.buf);
    return err ? blk_err_errno(e, -err, "Could not replay the VHDX log") : 0;
}

/* ---- writing -------------------------------------------------------------------------- */

struct store {                      /* sectors of the table, ascending */
    struct vhdx *v;
    uint64_t *at;
    size_t n;
    uint8_t *sectors;               /* STORE_MAX of them: as they will be */
    uint8_t *entry;
};

static int by_offset(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* The sectors that the pieces touch. */
static int store_plan(struct store *s, const struct bm_piece *p, size_t n)
{
    size_t room = 0, kept = 0;
    for (size_t i = 0; i < n; i++) {
        room += p[i].len / SECTOR + 2;
    }
    s->at = malloc(room * sizeof(*s->at));
    s->sectors = blk_buf_alloc(STORE_MAX * SECTOR);
    s->entry = blk_buf_alloc((1 + STORE_MAX) * SECTOR);
    if (!s->at || !s->sectors || !s->entry) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < n; i++) {
        for (uint64_t a = blk_align_down(p[i].offset, SECTOR); a < p[i].offset + p[i].len;
             a += SECTOR) {
            s->at[s->n++] = a;
        }
    }
    qsort(s->at, s->n, sizeof(*s->at), by_offset);
    for (size_t i = 0; i < s->n; i++) {
        if (!kept || s->at[kept - 1] != s->at[i]) {
            s->at[kept++] = s->at[i];
        }
    }
    s->n = kept;
    return 0;
}

/* Sectors first .. first + n as they are now, with the pieces' bytes. */
static int store_fill(struct store *s, size_t first, size_t n, const struct bm_piece *p, size_t np)
{
    int err = 0;
    for (size_t i = 0; !err && i < n; i++) {
        err = co_read(s->v->file, s->at[first + i], s->sectors + i * SECTOR, SECTOR);
    }
    for (size_t k = 0; !err && k < np; k++) {
        uint64_t end = p[k].offset + p[k].len;
        for (size_t i = 0; i < n; i++) {
            uint64_t at = s->at[first + i], from = BLK_MAX(at, p[k].offset);
            uint64_t to = BLK_MIN(at + SECTOR, end);
            if (from < to) {
                memcpy(s->sectors + i * SECTOR + (from - at),
                       (const uint8_t *)p[k].buf + (from - p[k].offset), to - from);
            }
        }
    }
    return err;
}

static size_t entry_build(struct store *s, size_t first, size_t n, uint32_t at,
                          const struct vhdx_guid *guid)
{
    uint8_t *b = s->entry;
    uint64_t sequence = ++s->v->log_sequence, size = s->v->file->size;
    size_t length = (1 + n) * SECTOR;

    memset(b, 0, length);
    memcpy(b, "loge", 4);
    put_le32(b + LE_LENGTH, (uint32_t)length);
    put_le32(b + LE_TAIL, at);
    put_le64(b + LE_SEQUENCE, sequence);
    put_le32(b + LE_DESCS, (uint32_t)n);
    memcpy(b + LE_GUID, guid, 16);
    put_le64(b + LE_FLUSHED, size);
    put_le64(b + LE_LAST, size);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *data = s->sectors + i * SECTOR;
        uint8_t *d = b + ENTRY_HEADER + i * DESC_BYTES, *sector = b + (1 + i) * SECTOR;
        memcpy(d, "desc", 4);
        memcpy(d + LD_LEADING, data, 8);
        memcpy(d + LD_TRAILING, data + SECTOR - 4, 4);
        put_le64(d + LD_OFFSET, s->at[first + i]);
        put_le64(d + LD_SEQUENCE, sequence);
        memcpy(sector, "data", 4);
        put_le32(sector + LS_HIGH, (uint32_t)(sequence >> 32));
        memcpy(sector + LS_DATA, data + 8, LS_DATA_BYTES);
        put_le32(sector + LS_LOW, (uint32_t)sequence);
    }
    vhdx_crc_seal(b, length);
    return length;
}

/* One entry's worth: logged, durable, in place. */
static int store_some(struct store *s, size_t first, size_t n)
{
    struct vhdx *v = s->v;
    struct vhdx_header h = v->h;
    bool begins = blk_is_zero(&h.log_guid, 16);
    uint32_t at = v->log_sequence & 1 ? v->h.log_length / 2 : 0;

    if (begins) {
        blk_uuid_generate(h.log_guid.b);
    }
    size_t length = entry_build(s, first, n, at, &h.log_guid);
    int err = co_write(v->file, v->h.log_offset + at, s->entry, length, 0);
    err = err ? err : co_flush(v->file);
    if (!err && begins) {
        err = vhdx_header_update(v, &h);
    }
    for (size_t i = 0; !err && i < n; i++) {
        err = co_write(v->file, s->at[first + i], s->sectors + i * SECTOR, SECTOR, 0);
    }
    return err;
}

int vhdx_log_store(struct vhdx *v, const struct bm_piece *p, size_t n)
{
    struct store s = { .v = v };
    int err = v->h.log_length ? store_plan(&s, p, n) : -EINVAL;

    for (size_t done = 0; !err && done < s.n;) {
        size_t some = BLK_MIN(s.n - done, (size_t)STORE_MAX);
        /* What the entry before last changed has to be durable before its place is used. */
        err = done ? co_flush(v->file) : 0;
        err = err ? err : store_fill(&s, done, some, p, n);
        err = err ? err : store_some(&s, done, some);
        done += some;
    }
    free(s.at);
    blk_buf_free(s.sectors);
    blk_buf_free(s.entry);
    return err;
}

int vhdx_log_end(struct vhdx *v)
{
    struct vhdx_header h = v->h;
    if (blk_is_zero(&h.log_guid, 16)) {
        return 0;
    }
    h.log_guid = (struct vhdx_guid){ { 0 } };
    return vhdx_header_update(v, &h);
}
