/*
 * delay.c - a filter that holds requests back before passing them on, to measure
 * and test what latency does: driver=delay,us=500[,op=read],file.filename=a.img
 *
 * Each request waits on its own timer, which lives in the request's tail until the
 * request is forwarded; so any number wait at the same time.
 */
#include "block/driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct delay_state {
    uint64_t ns[BLK_OPS];           /* 0: not held back */
};

static const char *const delay_ops[] = { "read", "write", "zero", "discard", "flush" };

static struct blk_timer *delay_timer(struct blk_req *req)
{
    _Static_assert(sizeof(struct blk_timer) <= sizeof(req->drv), "tail does not fit");
    return (struct blk_timer *)req->drv;
}

static void delay_over(void *arg)
{
    struct blk_req *req = arg;

    blk_forward(req, req->node->file, req->offset, NULL);
}

static void delay_submit(struct blk_node *n, struct blk_req *req)
{
    const struct delay_state *d = n->state;
    struct blk_timer *t = delay_timer(req);

    if (!d->ns[req->op]) {
        blk_forward(req, n->file, req->offset, NULL);
        return;
    }
    *t = (struct blk_timer){ .fn = delay_over, .arg = req };
    blk_timer_set(n->loop, t, blk_now_ns() + d->ns[req->op]);
}

static int delay_parse(struct blk_opts *o, struct delay_state *d, struct blk_error *e)
{
    const char *op = blk_opts_get(o, "op");
    uint64_t us = 1000;
    bool known = !op;
    int ret = blk_opts_get_u64(o, "us", &us, e);

    if (ret < 0)
        return ret;
    if (us > 3600u * 1000000u)
        return blk_err(e, EINVAL, "Parameter 'us' expects at most an hour");
    for (size_t i = 0; i < BLK_ARRAY_SIZE(delay_ops); i++) {
        if (op && strcmp(op, delay_ops[i]))
            continue;
        d->ns[i] = us * 1000;
        known = true;
    }
    return known ? 0 : blk_err(e, EINVAL, "Parameter 'op' does not accept value '%s'", op);
}

static int delay_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct delay_state *d = calloc(1, sizeof(*d));
    int ret;

    if (!d)
        return blk_err_errno(e, ENOMEM, "delay");
    ret = delay_parse(o, d, e);
    if (ret < 0) {
        free(d);
        return ret;
    }
    n->state = d;
    blk_filter_inherit(n);
    return 0;
}

static int delay_close(struct blk_node *n, struct blk_error *e)
{
    free(n->state);
    n->state = NULL;
    return 0;
}

const struct blk_driver blk_delay = {
    .name = "delay",
    .filter = true,
    .open = delay_open,
    .close = delay_close,
    .submit = delay_submit,
};
