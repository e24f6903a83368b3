/*
 * inspect_tail.c - bytes that no structure of the image accounts for: what lies behind
 * its end, and marks of other formats, for which a program that probes in another order
 * would take the file.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "img/inspect.h"

#define TAIL_SCAN   (16u << 20)         /* bytes behind the end that are looked at */
#define TAIL_CHUNK  (1u << 20)
#define ISO_AT      0x8001u
#define ZIP_TAIL    1024u               /* where its last record is looked for */

/* Is there anything but zeros in [off, end)?  What cannot be read is nothing. */
static bool holds_data(struct blk_node *file, uint64_t off, uint64_t end)
{
    uint8_t *buf = blk_buf_alloc(TAIL_CHUNK);
    bool found = false;

    end = BLK_MIN(end, off + TAIL_SCAN);
    while (buf && !found && off < end) {
        size_t len = (size_t)BLK_MIN((uint64_t)TAIL_CHUNK, end - off);
        found = !co_read(file, off, buf, len) && !blk_is_zero(buf, len);
        off += len;
    }
    blk_buf_free(buf);
    return found;
}

static void look_behind(struct report *r, struct blk_node *file)
{
    const json_t *check = json_object_get(r->o, "check");
    uint64_t end = (uint64_t)json_integer_value(json_object_get(check, "image-end-offset"));
    uint64_t size = blk_size(file);

    if (!end || end >= size || json_integer_value(json_object_get(check, "corruptions"))) {
        return;
    }
    json_object_set_new(r->o, "trailing-bytes", json_integer((json_int_t)(size - end)));
    if (holds_data(file, end, size)) {
        report_reason(r, VERDICT_SUSPICIOUS, "%" PRIu64 " bytes behind the image's end, at offset %"
                      PRIu64 ", are not part of it", size - end, end);
    }
}

static bool has(struct blk_node *file, uint64_t at, const char *mark)
{
    uint8_t buf[16];
    size_t len = strlen(mark);

    return at < blk_size(file) && len <= blk_size(file) - at && !co_read(file, at, buf, len) &&
           !memcmp(buf, mark, len);
}

static bool ends_as_zip(struct blk_node *file)
{
    uint64_t size = blk_size(file);
    size_t len = (size_t)BLK_MIN(size, (uint64_t)ZIP_TAIL);
    uint8_t buf[ZIP_TAIL];

    return !co_read(file, size - len, buf, len) && memmem(buf, len, "PK\5\6", 4);
}

static void also(struct report *r, const char *what)
{
    report_reason(r, VERDICT_SUSPICIOUS, "other programs may take it for %s", what);
}

/* Formats that begin with a header of their own, so that nothing else has business there. */
static bool has_head(const char *format)
{
    static const char *const names[] = { "qcow2", "qcow", "vdi", "vhdx", "vmdk", "parallels" };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(names); i++) {
        if (!strcmp(format, names[i])) {
            return true;
        }
    }
    return false;
}

void inspect_bytes(struct report *r, struct blk_node *file, const char *format)
{
    uint64_t size = blk_size(file);

    look_behind(r, file);
    if (has_head(format)) {
        if (has(file, ISO_AT, "CD001")) {
            also(r, "an ISO 9660 file system");
        }
        if (has(file, 510, "\x55\xaa")) {
            also(r, "a disk with a boot sector");
        }
        if (ends_as_zip(file)) {
            also(r, "a zip archive");
        }
    }
    if (size >= 512 && strcmp(format, "vpc") && has(file, size - 512, "conectix")) {
        also(r, "a fixed VHD image: it ends as one");
    }
    if (size >= 512 && strcmp(format, "dmg") && has(file, size - 512, "koly")) {
        also(r, "an Apple disk image: it ends as one");
    }
}
