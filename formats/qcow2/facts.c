/*
 * facts.c - what a header says: features, extensions, names; for images that are in
 * order and for those that are not.  Nothing is refused, what makes no sense ends the
 * search.
 */
#include "formats/qcow2/qcow2.h"
#include <stdio.h>
#include <string.h>

#define AREA (1u << QCOW2_MAX_CLUSTER_BITS)
#define FEATURE_BYTES 48u
#define FEATURE_NAME 46u

struct ext {                        /* a header extension */
    uint32_t type, len;
    const uint8_t *data;
};

/* The next one at *at, below end; false: no more. */
static bool ext_next(const uint8_t *area, uint64_t *at, uint64_t end, struct ext *x)
{
    if (*at > end || end - *at < 8) {
        return false;
    }
    *x = (struct ext){ be32(area + *at), be32(area + *at + 4), area + *at + 8 };
    if (x->type == QCOW2_EXT_END || x->len > end - *at - 8) {
        return false;
    }
    *at += 8 + blk_align_up(x->len, 8);
    return true;
}

static bool ext_known(uint32_t type)
{
    return type == QCOW2_EXT_BACKING_FORMAT || type == QCOW2_EXT_FEATURES ||
           type == QCOW2_EXT_BITMAPS || type == QCOW2_EXT_CRYPTO || type == QCOW2_EXT_DATA_FILE;
}

/* ---- features ------------------------------------------------------------------------ */

/* What the image's own table calls it; false: nothing. */
static bool own_name(const struct ext *table, unsigned kind, unsigned bit, char *name)
{
    for (uint32_t i = 0; i + FEATURE_BYTES <= table->len; i += FEATURE_BYTES) {
        if (table->data[i] == kind && table->data[i + 1] == bit) {
            snprintf(name, FEATURE_NAME + 1, "%.*s", (int)FEATURE_NAME,
                     (const char *)table->data + i + 2);
            return true;
        }
    }
    return false;
}

static void add_features(uint64_t bits, unsigned kind, const char *kind_name,
                         const struct ext *table, struct blk_facts *f)
{
    for (unsigned bit = 0; bit < 64; bit++) {
        char name[FEATURE_NAME + 1];
        bool known = false;

        if (!(bits >> bit & 1)) {
            continue;
        }
        for (size_t i = 0; i < QCOW2_FEATURES && !known; i++) {
            const struct qcow2_feature *q = &qcow2_feature_table[i];
            known = q->type == kind && q->bit == bit;
            if (known) {
                snprintf(name, sizeof(name), "%s", q->name);
            }
        }
        bool named = known || own_name(table, kind, bit, name);
        blk_facts_feature(f, kind_name, bit, named ? name : NULL, known);
    }
}

/* ---- the header area --------------------------------------------------------------------- */

static void add_backing(const struct qcow2_header *h, const uint8_t *area, uint64_t end,
                        const char *format, struct blk_facts *f)
{
    if (h->backing_offset && h->backing_offset < end) {
        uint64_t len = BLK_MIN(h->backing_size, BLK_NAME_MAX);
        len = BLK_MIN(len, end - h->backing_offset);
        len = qcow2_text_length(area + h->backing_offset, (uint32_t)len);
        if (len) {
            blk_facts_name(f, "backing file", area + h->backing_offset, len, format);
        }
    }
}

static void read_area(const struct qcow2_header *h, const uint8_t *area, uint64_t end,
                      struct blk_facts *f)
{
    struct ext x, table = { 0 };
    char format[256] = "";
    uint64_t at = h->header_length, stop = end;

    if (h->backing_offset >= h->header_length && h->backing_size) {
        stop = BLK_MIN(end, h->backing_offset);
    }
    for (unsigned i = 0; i < QCOW2_MAX_EXTENSIONS && ext_next(area, &at, stop, &x); i++) {
        if (x.type == QCOW2_EXT_FEATURES) {
            table = x;
        } else if (x.type == QCOW2_EXT_DATA_FILE) {
            blk_facts_name(f, "data file", x.data, BLK_MIN(x.len, BLK_NAME_MAX), NULL);
        } else if (x.type == QCOW2_EXT_BACKING_FORMAT) {
            snprintf(format, sizeof(format), "%.*s", (int)BLK_MIN(x.len, 255u),
                     (const char *)x.data);
        } else if (!ext_known(x.type)) {
            blk_facts_extension(f, x.type, x.len);
        }
    }
    add_backing(h, area, end, *format ? format : NULL, f);
    add_features(h->incompatible, 0, "incompatible", &table, f);
    add_features(h->compatible, 1, "compatible", &table, f);
    add_features(h->autoclear, 2, "autoclear", &table, f);
}

void qcow2_facts(struct blk_node *file, struct blk_facts *f)
{
    uint8_t fixed[QH_FULL], *area;
    struct qcow2_header h;
    uint64_t end = AREA;

    if (co_read(file, 0, fixed, sizeof(fixed)) || be32(fixed + QH_MAGIC) != QCOW2_MAGIC) {
        return;
    }
    qcow2_header_decode(fixed, &h);
    if (h.cluster_bits >= QCOW2_MIN_CLUSTER_BITS && h.cluster_bits <= QCOW2_MAX_CLUSTER_BITS) {
        end = 1ull << h.cluster_bits;
    }
    end = BLK_MIN(end, file->size);
    area = blk_buf_alloc(AREA);
    if (area && !co_read(file, 0, area, end)) {
        read_area(&h, area, end, f);
    }
    blk_buf_free(area);
}
