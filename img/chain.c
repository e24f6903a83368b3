/*
 * chain.c - finding an image in a backing chain by the name a person gives it.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

/* Do two plain paths name one existing file? */
static bool same_path(const char *a, const char *b)
{
    char *x = realpath(a, NULL), *y = realpath(b, NULL);
    bool same = x && y && !strcmp(x, y);

    free(x);
    free(y);
    return same;
}

/* Is n's backing file the one called name?  Relative names count from n's folder, as
 * those in the image do. */
static bool backing_is(struct blk_node *n, const char *name)
{
    struct blk_info info;
    bool same = false;

    if (blk_get_info(n, &info, NULL)) {
        blk_info_free(&info);
        return false;
    }
    if (!info.backing_name) {
        same = !strcmp(name, blk_filename(blk_backing(n)));
    } else if (blk_has_protocol(name) || blk_has_protocol(info.backing_name)) {
        same = !strcmp(name, info.backing_name) ||
               (info.backing_full && !strcmp(name, info.backing_full));
    } else {
        struct blk_node *file = blk_file(n);
        char *full = blk_resolve_name(blk_filename(file ? file : n), name);
        same = full && info.backing_full && same_path(full, info.backing_full);
        free(full);
    }
    blk_info_free(&info);
    return same;
}

struct blk_node *img_find_backing(struct blk_node *top, const char *name)
{
    for (struct blk_node *n = top; blk_backing(n); n = blk_backing(n)) {
        if (backing_is(n, name)) {
            return n;
        }
    }
    return NULL;
}
