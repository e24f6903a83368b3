/*
 * null.c - storage that is not there, for tests and for measuring what the layers above
 * cost: what is written is forgotten, what is read is whatever was in the buffer, or
 * zeros.  QEMU's null-co and null-aio, which here are one.
 *
 *   driver=null-co[,size=1G][,latency-ns=N][,read-zeroes=on]
 */
#include "block/driver.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NULL_SIZE (1ull << 30)

struct null_state {
    uint64_t latency_ns;
    bool zeroes;
};

static struct blk_timer *null_timer(struct blk_req *req)
{
    _Static_assert(sizeof(struct blk_timer) <= sizeof(req->drv), "tail does not fit");
    return (struct blk_timer *)req->drv;
}

static void null_over(void *arg)
{
    blk_complete(arg, 0);
}

static void null_submit(struct blk_node *n, struct blk_req *req)
{
    const struct null_state *s = n->state;

    if (req->op == BLK_READ && s->zeroes)
        blk_iov_zero(req->iov, req->iovcnt, 0, req->length);
    if (!s->latency_ns) {
        blk_complete(req, 0);
        return;
    }
    struct blk_timer *t = null_timer(req);
    *t = (struct blk_timer){ .fn = null_over, .arg = req };
    blk_timer_set(n->loop, t, blk_now_ns() + s->latency_ns);
}

static int null_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    const struct null_state *s = n->state;

    blk_status_at(st, n, off, len, s->zeroes ? BLK_ST_ZERO : 0);
    return 0;
}

/* "null-co://" and nothing else. */
static int null_check_name(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    const char *name = blk_opts_get(o, "filename");
    size_t len = strlen(n->drv->name);

    if (!name || (!strncmp(name, n->drv->name, len) && !strcmp(name + len, "://")))
        return 0;
    return blk_err(e, EINVAL, "The only allowed filename for this driver is '%s://'",
                   n->drv->name);
}

/* What it is called: by its options, or without any by its scheme. */
static int null_name(struct blk_node *n, struct blk_opts *o)
{
    char *name;

    if (blk_opts_has(o, "size") || blk_opts_has(o, "read-zeroes")) {
        blk_node_rename_json(n, json_pack("{s:o*, s:s, s:o*}",
                                          "read-zeroes", blk_opts_json(o, "read-zeroes"),
                                          "driver", n->drv->name,
                                          "size", blk_opts_json(o, "size")));
        return 0;
    }
    return asprintf(&name, "%s://", n->drv->name) < 0 ? -ENOMEM : blk_node_rename(n, name);
}

static int null_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct null_state *s = calloc(1, sizeof(*s));
    uint64_t size = NULL_SIZE;
    int err = s ? null_check_name(n, o, e) : -ENOMEM;

    err = err ? err : blk_opts_get_size(o, "size", &size, e);
    err = err ? err : blk_opts_get_u64(o, "latency-ns", &s->latency_ns, e);
    err = err ? err : blk_opts_get_bool(o, "read-zeroes", &s->zeroes, e);
    if (!err && size > BLK_SIZE_MAX)
        err = blk_err(e, EINVAL, "size is invalid");
    if (!err && s->latency_ns > INT64_MAX)
        err = blk_err(e, EINVAL, "latency-ns is invalid");
    n->state = s;
    n->size = blk_align_up(size, 512);      /* whole sectors, as QEMU counts */
    err = err ? err : null_name(n, o);
    if (err) {
        free(s);
        return err;
    }
    n->can_zero = n->can_discard = n->can_fua = BLK_CAP_NATIVE;
    return 0;
}

static int null_close(struct blk_node *n, struct blk_error *e)
{
    free(n->state);
    n->state = NULL;
    return 0;
}

static int64_t null_allocated_size(struct blk_node *n)
{
    return 0;
}

static const char *const null_co_schemes[] = { "null-co", NULL };
static const char *const null_aio_schemes[] = { "null-aio", NULL };

#define NULL_OPS \
    .protocol = true, \
    .open = null_open, \
    .close = null_close, \
    .submit = null_submit, \
    .status = null_status, \
    .allocated_size = null_allocated_size,

const struct blk_driver blk_null_co = { .name = "null-co", .schemes = null_co_schemes, NULL_OPS };
const struct blk_driver blk_null_aio = { .name = "null-aio", .schemes = null_aio_schemes,
                                         NULL_OPS };
