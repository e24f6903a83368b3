/*
 * rewrite.c - makes changes to a qcow2 image one after the other: compressed writes over
 * what is allocated too, which qemu-io's commands (and so platter-io's) refuse.
 *
 *   rewrite IMAGE CHANGE,PATTERN,OFFSET,LENGTH...
 *
 * CHANGE: write, compress, zero, unmap (zeroes that may be a hole), discard or flush.
 * The exit status is 1 when anything failed, and stderr says what.
 */
#include "block/block.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct change { const char *name; enum blk_op op; unsigned flags; } changes[] = {
    { "write", BLK_WRITE, 0 },
    { "compress", BLK_WRITE, BLK_REQ_COMPRESSED },
    { "zero", BLK_WRITE_ZEROES, 0 },
    { "unmap", BLK_WRITE_ZEROES, BLK_REQ_MAY_UNMAP },
    { "discard", BLK_DISCARD, 0 },
    { "flush", BLK_FLUSH, 0 },
};

struct run {
    struct blk_node *node;
    char **words;                       /* up to NULL */
};

static int make(struct blk_node *n, const struct change *c, int pattern, uint64_t off,
                uint64_t len)
{
    if (c->op == BLK_FLUSH)
        return co_flush(n);
    if (c->op == BLK_DISCARD)
        return co_discard(n, off, len);
    if (c->op == BLK_WRITE_ZEROES)
        return co_write_zeroes(n, off, len, c->flags);

    struct iovec iov = { blk_buf_alloc(len), len };
    memset(iov.iov_base, pattern, len);
    int err = co_writev(n, off, &iov, 1, len, c->flags);
    blk_buf_free(iov.iov_base);
    return err;
}

static int run(void *arg)
{
    struct run *r = arg;

    for (char **w = r->words; *w; w++) {
        const struct change *c = NULL;
        char name[16];
        uint64_t off, len;
        int pattern, err = -EINVAL;

        if (sscanf(*w, "%15[a-z],%d,%" SCNu64 ",%" SCNu64, name, &pattern, &off, &len) == 4)
            for (size_t i = 0; !c && i < BLK_ARRAY_SIZE(changes); i++)
                c = strcmp(name, changes[i].name) ? NULL : &changes[i];
        if (c)
            err = make(r->node, c, pattern, off, len);
        if (err) {
            fprintf(stderr, "rewrite: %s: %s\n", *w, strerror(-err));
            return err;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct run r = { .words = argv + 2 };
    struct blk_open_args a = { .format = "qcow2", .flags = BLK_O_RDWR | BLK_O_UNMAP };

    blk_program = "rewrite";
    if (argc < 2)
        return 2;
    a.filename = argv[1];
    struct blk_loop *loop = blk_loop_new(&e);
    if (!loop || blk_open(loop, &a, &r.node, &e)) {
        fprintf(stderr, "rewrite: %s\n", e.text);
        return 1;
    }
    int err = blk_run(loop, run, &r);
    if (blk_close(r.node, &e)) {
        fprintf(stderr, "rewrite: %s\n", e.text);
        err = -EIO;
    }
    blk_loop_free(loop);
    return err ? 1 : 0;
}
