/*
 * on_top.c - what is put above an image that was opened: an overlay for the time it is open.
 *
 * The overlay is a file without a name: it is gone with the last descriptor of it.
 */
#include "block/internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* An empty qcow2 image of size bytes, whose name goes into path. */
static int make_overlay(struct blk_loop *l, uint64_t size, char *path, size_t len,
                        struct blk_error *e)
{
    const char *dir = getenv("TMPDIR");
    struct blk_opts *o = blk_opts_new();

    snprintf(path, len, "%s/vl.XXXXXX", dir && *dir ? dir : "/var/tmp");
    int fd = mkstemp(path);
    int err = fd < 0 ? blk_err_errno(e, errno, "Could not open temporary file '%s'", path) : 0;
    if (!err) {
        close(fd);
        blk_opts_setf(o, "size", "%llu", (unsigned long long)size);
        err = blk_create(l, "qcow2", path, o, e);
        if (err) {
            unlink(path);
        }
    }
    blk_opts_free(o);
    return err;
}

int blk_put_overlay(struct blk_node **n, unsigned flags, struct blk_error *e)
{
    char path[512];
    struct blk_open_args a = { .filename = path, .format = "qcow2",
                               .flags = flags | BLK_O_RDWR | BLK_O_NO_BACKING };
    a.flags &= ~(unsigned)BLK_O_SHARE;
    struct blk_node *top = NULL;
    int err = make_overlay((*n)->loop, (*n)->size, path, sizeof(path), e);

    if (!err) {
        err = blk_open((*n)->loop, &a, &top, e);
        unlink(path);
    }
    if (!err) {
        top->backing = *n;
        (*n)->parent = top;
        *n = top;
    }
    return err;
}
