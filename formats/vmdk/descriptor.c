/*
 * descriptor.c - the text that describes an image: extents, content IDs, the parent.
 * Read as QEMU reads it: by searching for names, line by line for extents.
 *
 * Invariant: nothing of a descriptor is opened here; names go through
 * blk_open_more(), which takes plain paths only.
 */
#include "formats/vmdk/vmdk.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define LINE_MAX_BYTES 640u         /* the longest that can be an extent's */

char *vmdk_text_read(struct blk_node *file, uint64_t at, struct blk_error *e)
{
    uint64_t size = BLK_MIN(file->size, (uint64_t)VMDK_DESC_MAX);
    char *text;
    int err;

    if (size < 4) {
        blk_err(e, EINVAL, "File is too small, not a valid image");
        return NULL;
    }
    text = malloc(size + 1);
    err = text ? co_read(file, at, text, size) : -ENOMEM;
    if (err) {
        blk_err_errno(e, -err, "Could not read from file");
        free(text);
        return NULL;
    }
    text[size] = 0;
    return text;
}

bool vmdk_text_value(const char *text, const char *key, char *buf, size_t len)
{
    const char *p = strstr(text, key), *end;
    if (!p || strlen(p) <= strlen(key) + 2) {
        return false;
    }
    p += strlen(key) + 2;           /* =" */
    end = strchr(p, '"');
    if (!end || (size_t)(end - p) >= len) {
        return false;
    }
    memcpy(buf, p, (size_t)(end - p));
    buf[end - p] = 0;
    return true;
}

/* ---- extents ------------------------------------------------------------------------- */

/* 1: an extent's line, 0: another one, -EINVAL. */
static int line_parse(const char *line, struct vmdk_line *l)
{
    char access[11];
    int64_t sectors = 0, offset = -1;
    int n = sscanf(line, "%10s %" SCNd64 " %10s \"%511[^\n\r\"]\" %" SCNd64, access, &sectors,
                   l->type, l->name, &offset);

    if (n < 4 || strcmp(access, "RW")) {
        return 0;
    }
    if (!strcmp(l->type, "FLAT") ? n != 5 || offset < 0 || offset > INT64_MAX / VMDK_SECTOR
                                 : n != 4) {
        return -EINVAL;
    }
    l->sectors = sectors > 0 ? (uint64_t)sectors : 0;
    l->offset = n == 5 ? (uint64_t)offset : 0;
    return sectors > 0 && (!strcmp(l->type, "FLAT") || !strcmp(l->type, "SPARSE") ||
                           !strcmp(l->type, "VMFS") || !strcmp(l->type, "VMFSSPARSE") ||
                           !strcmp(l->type, "SESPARSE"));
}

int vmdk_line_next(const char **text, struct vmdk_line *l, struct blk_error *e)
{
    char line[LINE_MAX_BYTES];
    int found = 0;

    while (!found && **text) {
        size_t len = strcspn(*text, "\n"), keep = BLK_MIN(len, sizeof(line) - 1);
        memcpy(line, *text, keep);
        line[keep] = 0;
        found = line_parse(line, l);
        if (found < 0) {
            return blk_err(e, EINVAL, "Invalid extent line: %s", line);
        }
        *text += len + ((*text)[len] == '\n');
    }
    return found;
}

/* ---- IDs and the parent ----------------------------------------------------------------- */

/* The part of the descriptor that holds them, NUL-terminated. */
static int head_read(struct blk_node *file, uint64_t at, char **out)
{
    char *text = malloc(VMDK_DESC_BYTES + 1);
    int err = text ? co_read(file, at, text, VMDK_DESC_BYTES) : -ENOMEM;
    if (err) {
        free(text);
        return err;
    }
    text[VMDK_DESC_BYTES] = 0;
    *out = text;
    return 0;
}

int vmdk_id_read(struct blk_node *file, uint64_t at, bool parent, uint32_t *out)
{
    const char *key = parent ? "parentCID" : "CID", *p;
    char *text;
    int err = head_read(file, at, &text);

    if (err) {
        return err;
    }
    text[VMDK_DESC_BYTES - 1] = 0;
    p = strstr(text, key);
    err = p && strlen(p) > strlen(key) && sscanf(p + strlen(key) + 1, "%" SCNx32, out) == 1
              ? 0 : -EINVAL;
    free(text);
    return err;
}

int vmdk_parent_read(struct vmdk *v, struct blk_error *e)
{
    static const char key[] = "parentFileNameHint";
    char name[BLK_NAME_MAX + 1], *text;
    int err = head_read(v->n->file, v->desc_at, &text);

    if (err) {
        return blk_err_errno(e, -err, "Could not read the descriptor");
    }
    if (strstr(text, key)) {
        err = vmdk_text_value(text, key, name, sizeof(name))
                  ? 0 : blk_err(e, EINVAL, "The name of the parent is not complete or too long");
        v->n->backing_name = err || !*name ? NULL : strdup(name);
        v->n->backing_format = v->n->backing_name ? strdup("vmdk") : NULL;
    }
    free(text);
    return err;
}

/* ---- facts ---------------------------------------------------------------------------- */

static void extents_facts(const char *text, struct blk_facts *f)
{
    struct vmdk_line l;
    uint64_t sectors = 0;

    for (unsigned i = 0; i < VMDK_EXTENTS_MAX && vmdk_line_next(&text, &l, NULL) > 0; i++) {
        blk_facts_name(f, "extent", l.name, sizeof(l.name), l.type);
        sectors += BLK_MIN(l.sectors, (uint64_t)INT64_MAX / VMDK_SECTOR / VMDK_EXTENTS_MAX);
        f->elsewhere = true;
    }
    f->size = sectors * VMDK_SECTOR;
}

void vmdk_facts(struct blk_node *file, struct blk_facts *f)
{
    uint8_t h[VMDK_SECTOR];
    char *text = NULL, name[BLK_NAME_MAX + 1];
    bool kdmv, sparse;

    if (co_read(file, 0, h, sizeof(h))) {
        return;
    }
    kdmv = !memcmp(h, "KDMV", 4);
    sparse = kdmv || !memcmp(h, "COWD", 4);
    if (!sparse) {
        text = vmdk_text_read(file, 0, NULL);
    } else if (kdmv && le64(h + VK_DESC) && le64(h + VK_DESC) <= INT64_MAX / 1024) {
        text = vmdk_text_read(file, le64(h + VK_DESC) * VMDK_SECTOR, NULL);
    }
    /* A sparse file with data of its own is the only extent of its image. */
    if (text && (!sparse || !le64(h + VK_CAPACITY))) {
        extents_facts(text, f);
    }
    if (text && vmdk_text_value(text, "parentFileNameHint", name, sizeof(name)) && *name) {
        blk_facts_name(f, "backing file", name, sizeof(name), "vmdk");
    }
    free(text);
}

/* What stands before the ID, the new one, and from "parentCID" on what was there. */
static int id_replace(char *text, char **out)
{
    char *rest = strstr(text, "parentCID"), *id = strstr(text, "CID");
    uint32_t cid = 0;

    if (!rest || !id || strlen(id) < 5) {
        return -EINVAL;
    }
    if (getrandom(&cid, sizeof(cid), 0) != sizeof(cid)) {
        cid = (uint32_t)blk_now_ns();
    }
    *out = calloc(1, VMDK_DESC_BYTES + 32);
    if (!*out) {
        return -ENOMEM;
    }
    int n = snprintf(*out, VMDK_DESC_BYTES + 32, "%.*s%" PRIx32 "\n%s", (int)(id + 4 - text), text,
                     cid, rest);
    return (size_t)n < VMDK_DESC_BYTES ? 0 : -ENOSPC;
}

int vmdk_id_change(struct vmdk *v)
{
    char *text, *changed = NULL;
    int err = head_read(v->n->file, v->desc_at, &text);

    if (err) {
        return err;
    }
    text[VMDK_DESC_BYTES - 1] = 0;
    size_t len = strlen(text);
    err = id_replace(text, &changed);
    if (!err) {
        /* A file of its own is whole sectors after that, as with QEMU; in a sparse file
         * nothing behind the text is touched. */
        len = BLK_MAX(len, strlen(changed)) + (v->desc_at != 0);
        len = v->desc_at ? len : blk_align_up(len, VMDK_SECTOR);
        len = BLK_MIN(len, (size_t)VMDK_DESC_BYTES);
        err = co_write(v->n->file, v->desc_at, changed, len, 0);
        err = err ? err : co_flush(v->n->file);
    }
    free(text);
    free(changed);
    return err;
}
