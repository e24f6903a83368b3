/*
 * inner.c - what may be named inside an image: an image from a stranger does not decide what
 * this machine connects to, or loads.
 */
#include "block/internal.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool blk_inner_name_allowed(const char *list, const char *name)
{
    size_t len = strcspn(name, ":+");
    /* What nobody knows leads nowhere: that is said when it is opened. */
    if (!blk_has_protocol(name) || !strncmp(name, "file:", 5) || !blk_scheme_known(name)) {
        return true;
    }
    for (const char *p = list ? list : ""; *p; p += strcspn(p, ",:"), p += *p != 0) {
        size_t plen = strcspn(p, ",:");
        if ((plen == 3 && !strncmp(p, "all", 3)) || (plen == len && !strncmp(p, name, len))) {
            return true;
        }
    }
    return false;
}

int blk_check_inner_name(const struct blk_node *n, const char *name, struct blk_error *e)
{
    if (blk_inner_name_allowed(n->backing_urls, name)) {
        return 0;
    }
    char *shown = blk_redact(name);
    blk_err(e, EACCES, "%s: file name '%.200s' inside the image is not a plain path; "
            "allow its protocol to use it", n->shown, shown ? shown : "");
    free(shown);
    return -EACCES;
}

int blk_check_inner_format(const char *format, struct blk_error *e)
{
    const struct blk_driver *d = format ? blk_driver_built_in(format) : NULL;
    if (!format || (d && !d->filter && (!d->protocol || d->identity))) {
        return 0;
    }
    return blk_err(e, EINVAL, "Unknown driver '%s'", format);
}

int blk_check_inner_storage(const struct blk_node *n, struct blk_error *e)
{
    bool device = !strcmp(n->drv->name, "host_device");
    return device && !n->size ? blk_err(e, EINVAL, "'%s' is a device without a length", n->shown)
                              : 0;
}
