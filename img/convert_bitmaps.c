/*
 * convert_bitmaps.c - platter-img convert --bitmaps: from the one source to the target,
 * after the data.
 */
#include <errno.h>
#include <string.h>

#include "img/convert_bitmaps.h"
#include "img/convert_resume.h"
#include "img/img.h"

int convert_check_bitmaps(struct convert *c, bool skip_broken)
{
    struct blk_node *n = c->src[0].node;
    struct blk_bitmap b;
    size_t count = 0;

    if (c->nsrc > 1) {
        img_error("Copying bitmaps only possible with single source");
        return -EINVAL;
    }
    if (!blk_has_bitmaps(n)) {
        img_error("Source lacks bitmap support");
        return -ENOTSUP;
    }
    while (blk_bitmap_at(n, count, &b)) {
        count++;
    }
    /* QEMU's list has the last one first. */
    while (count-- && blk_bitmap_at(n, count, &b)) {
        if (b.inconsistent && !skip_broken) {
            struct blk_error e = BLK_ERROR_INIT;
            blk_err(&e, EINVAL, "Cannot copy inconsistent bitmap '%s'", b.name);
            blk_error_hint(&e, "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' "
                           "to delete it");
            img_report(&e);
            return -EINVAL;
        }
    }
    return 0;
}

static int copy_bitmap(struct blk_node *src, struct blk_node *dst, const struct blk_bitmap *b)
{
    struct blk_error e = BLK_ERROR_INIT;
    const char *what = "create";
    int err = blk_bitmap_change(dst, BLK_BITMAP_ADD, b->name, b->granularity, &e);

    if (!err) {
        what = "populate";
        err = blk_bitmap_merge(dst, b->name, src, b->name, &e);
        err = err || b->enabled ? err
              : blk_bitmap_change(dst, BLK_BITMAP_DISABLE, b->name, 0, &e);
        if (err) {
            blk_bitmap_change(dst, BLK_BITMAP_REMOVE, b->name, 0, NULL);
        }
    }
    if (err) {
        img_report_prefixed(&e, "Failed to %s bitmap %s: ", what, b->name);
    }
    return err;
}

static bool has_bitmap(struct blk_node *n, const char *name)
{
    struct blk_bitmap b;
    size_t i = 0;

    while (blk_bitmap_at(n, i, &b) && strcmp(b.name, name)) {
        i++;
    }
    return blk_bitmap_at(n, i, &b);
}

static size_t count_bitmaps(struct blk_node *n)
{
    struct blk_bitmap b;
    size_t count = 0;

    while (blk_bitmap_at(n, count, &b)) {
        count++;
    }
    return count;
}

int convert_clear_way_for_bitmaps(struct convert *c)
{
    struct blk_node *src = c->src[0].node;
    size_t count = count_bitmaps(src);
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_bitmap b;
    int err = 0;

    for (size_t i = 0; i < count && !err && blk_bitmap_at(src, i, &b); i++) {
        if (b.inconsistent || !has_bitmap(c->dst, b.name)) {
            continue;
        } else if (!journal_resumes(c->journal)) {
            err = copy_bitmap(src, c->dst, &b);       /* says why that cannot be */
        } else {
            err = blk_bitmap_change(c->dst, BLK_BITMAP_REMOVE, b.name, 0, &e);
        }
    }
    if (e.err) {
        img_report(&e);
    }
    return err;
}

int convert_copy_bitmaps(struct convert *c)
{
    struct blk_node *src = c->src[0].node;
    size_t count = count_bitmaps(src);
    bool fits = blk_size(src) == blk_size(c->dst), bad = false;
    struct blk_bitmap b;
    size_t first = count;
    int err = 0;

    /* QEMU goes from the last to the first that cannot be copied; then they are listed in their
     * old order. */
    while (!bad && first && blk_bitmap_at(src, first - 1, &b)) {
        if (b.inconsistent) {
            img_warning("Skipping inconsistent bitmap '%s'", b.name);
        }
        bad = !b.inconsistent && (!fits || has_bitmap(c->dst, b.name));
        first -= !bad;
    }
    for (size_t i = first; i < count && !err && blk_bitmap_at(src, i, &b); i++) {
        err = b.inconsistent ? 0 : copy_bitmap(src, c->dst, &b);
    }
    while (first && !err && blk_bitmap_at(src, --first, &b)) {
        err = b.inconsistent ? 0 : copy_bitmap(src, c->dst, &b);    /* says why that cannot be */
    }
    return err;
}
