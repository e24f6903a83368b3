/*
 * fault.c - a filter that makes requests fail on purpose, for tests and drills.
 *
 *   driver=fault,op=write,nth=3,errno=ENOSPC,sticky=on,file.filename=a.img
 *
 *  op      read, write, zero, discard, flush, truncate, close or any (default any;
 *          "any" does not include close)
 *  offset, length   only requests that touch this range count (default: all;
 *          flush, truncate and close have no range and count only without one)
 *  nth     which of the matching operations fails, from 1 (default 1); 0: none
 *  errno   what it fails with, a number or a name (default EIO)
 *  sticky  every matching one after it fails as well
 *  cut     from then on nothing at all gets through, as if the cable were pulled:
 *          what fails this way has changed nothing below
 *
 * A failed operation is never passed on, except close, which releases what it has
 * to and reports the error.
 */
#include "block/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum fault_op {
    FAULT_READ, FAULT_WRITE, FAULT_ZERO, FAULT_DISCARD, FAULT_FLUSH, FAULT_TRUNCATE,
    FAULT_CLOSE, FAULT_ANY,
};

static const char *const fault_ops[] = {
    "read", "write", "zero", "discard", "flush", "truncate", "close", "any",
};

/* enum blk_op to enum fault_op. */
static const enum fault_op fault_of_op[BLK_OPS] = {
    [BLK_READ] = FAULT_READ, [BLK_WRITE] = FAULT_WRITE, [BLK_WRITE_ZEROES] = FAULT_ZERO,
    [BLK_DISCARD] = FAULT_DISCARD, [BLK_FLUSH] = FAULT_FLUSH,
};

static const struct { const char *name; int err; } fault_errnos[] = {
    { "EIO", EIO }, { "ENOSPC", ENOSPC }, { "EROFS", EROFS }, { "ENOMEM", ENOMEM },
    { "EDQUOT", EDQUOT }, { "EPERM", EPERM }, { "EACCES", EACCES }, { "EFBIG", EFBIG },
    { "ETIMEDOUT", ETIMEDOUT }, { "ENOTSUP", ENOTSUP }, { "EINVAL", EINVAL },
};

struct fault_state {
    enum fault_op op;
    uint64_t offset, length;        /* length 0: everywhere */
    uint64_t nth, seen;
    int err;
    bool sticky, cut;
    bool is_cut;                    /* nothing passes any more */
};

/* Should this operation fail?  -errno or 0. */
static int fault_hit(struct fault_state *f, enum fault_op op, uint64_t off, uint64_t len)
{
    if (f->is_cut)
        return -f->err;
    if (op != f->op && (f->op != FAULT_ANY || op == FAULT_CLOSE))
        return 0;
    /* Differences, not sums: ranges may end at 2^64. */
    if (f->length && (off >= f->offset ? off - f->offset >= f->length
                                       : f->offset - off >= len))
        return 0;
    f->seen++;
    if (!f->nth || (f->sticky ? f->seen < f->nth : f->seen != f->nth))
        return 0;
    f->is_cut = f->cut;
    return -f->err;
}

static void fault_submit(struct blk_node *n, struct blk_req *req)
{
    bool flush = req->op == BLK_FLUSH;
    int ret = fault_hit(n->state, fault_of_op[req->op], req->offset, flush ? 0 : req->length);

    if (ret < 0)
        blk_complete(req, ret);
    else
        blk_forward(req, n->file, req->offset, NULL);
}

static int fault_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                          struct blk_error *e)
{
    int ret = fault_hit(n->state, FAULT_TRUNCATE, 0, 0);

    if (ret < 0)
        return blk_err_errno(e, -ret, "Could not resize file");
    ret = blk_truncate(n->file, size, shrink, p, e);
    n->size = n->file->size;
    return ret;
}

static int fault_parse_errno(struct blk_opts *o, int *out, struct blk_error *e)
{
    const char *s = blk_opts_get(o, "errno");
    char *end;
    long v;

    if (!s)
        return 0;
    for (size_t i = 0; i < BLK_ARRAY_SIZE(fault_errnos); i++) {
        if (!strcmp(s, fault_errnos[i].name)) {
            *out = fault_errnos[i].err;
            return 0;
        }
    }
    v = strtol(s, &end, 10);
    if (end == s || *end || v < 1 || v > 4095)
        return blk_err(e, EINVAL, "Parameter 'errno' expects an error number or name");
    *out = (int)v;
    return 0;
}

static int fault_parse_op(struct blk_opts *o, enum fault_op *out, struct blk_error *e)
{
    const char *s = blk_opts_get(o, "op");

    if (!s)
        return 0;
    for (size_t i = 0; i < BLK_ARRAY_SIZE(fault_ops); i++) {
        if (!strcmp(s, fault_ops[i])) {
            *out = (enum fault_op)i;
            return 0;
        }
    }
    return blk_err(e, EINVAL, "Parameter 'op' does not accept value '%s'", s);
}

static int fault_parse(struct blk_opts *o, struct fault_state *f, struct blk_error *e)
{
    int ret = fault_parse_op(o, &f->op, e);

    if (ret == 0)
        ret = fault_parse_errno(o, &f->err, e);
    if (ret == 0)
        ret = blk_opts_get_u64(o, "nth", &f->nth, e);
    if (ret == 0)
        ret = blk_opts_get_size(o, "offset", &f->offset, e);
    if (ret == 0)
        ret = blk_opts_get_size(o, "length", &f->length, e);
    if (ret == 0)
        ret = blk_opts_get_bool(o, "sticky", &f->sticky, e);
    if (ret == 0)
        ret = blk_opts_get_bool(o, "cut", &f->cut, e);
    return ret;
}

static int fault_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct fault_state *f = malloc(sizeof(*f));
    int ret;

    if (!f)
        return blk_err_errno(e, ENOMEM, "fault");
    *f = (struct fault_state){ .op = FAULT_ANY, .nth = 1, .err = EIO };
    ret = fault_parse(o, f, e);
    if (ret < 0) {
        free(f);
        return ret;
    }
    n->state = f;
    blk_filter_inherit(n);
    return 0;
}

static int fault_close(struct blk_node *n, struct blk_error *e)
{
    struct fault_state *f = n->state;
    int ret = f->op == FAULT_CLOSE ? fault_hit(f, FAULT_CLOSE, 0, 0) : 0;

    free(f);
    n->state = NULL;
    return ret < 0 ? blk_err_errno(e, -ret, "Could not close '%s'", n->shown) : 0;
}

const struct blk_driver blk_fault = {
    .name = "fault",
    .filter = true,
    .open = fault_open,
    .close = fault_close,
    .submit = fault_submit,
    .truncate = fault_truncate,
};
