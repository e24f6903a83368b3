/*
 * nbd.c - exports of NBD servers as disks: the driver.  nbd_int.h tells who does what.
 */
#include "protocols/nbd/nbd_int.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDC_BASE_HOLE  1u                  /* base:allocation */
#define NBDC_BASE_ZERO  2u

/* ---- requests ------------------------------------------------------------------- */

static void request_done(struct nbdc_op *op, int result)
{
    struct blk_req *req = op->arg;
    struct nbdc_disk *d = req->node->state;

    op->next = d->spare;
    d->spare = op;
    blk_complete(req, result);
}

static struct nbdc_op *op_new(struct nbdc_disk *d)
{
    struct nbdc_op *op = d->spare;

    if (op)
        d->spare = op->next;
    else
        op = malloc(sizeof(*op));
    if (op)
        memset(op, 0, sizeof(*op));
    return op;
}

static void nbdc_submit(struct blk_node *n, struct blk_req *req)
{
    struct nbdc_disk *d = n->state;

    if (req->op == BLK_FLUSH && (!d->flush || d->lost)) {
        blk_complete(req, d->lost);
        return;
    }
    struct nbdc_op *op = op_new(d);
    if (!op) {
        blk_complete(req, -ENOMEM);
        return;
    }
    op->op = req->op;
    op->flags = req->flags;
    op->offset = req->offset;
    op->length = req->length;
    op->iov = req->iov;
    op->iovcnt = req->iovcnt;
    op->done = request_done;
    op->arg = req;
    nbdc_op_start(d, op);
}

/* QEMU's reading of a bitmap's context: "dirty" is the bit that means "hole" elsewhere. */
static unsigned status_flags(const struct nbdc_disk *d, uint32_t flags)
{
    if (d->cfg.dirty_bitmap[0])
        return (flags & NBDC_BASE_HOLE ? 0 : BLK_ST_DATA) |
               (flags & NBDC_BASE_ZERO ? BLK_ST_ZERO : 0);
    if (!(flags & NBDC_BASE_ZERO))
        return BLK_ST_DATA;                 /* a hole of unknown content, too */
    return BLK_ST_ZERO | (flags & NBDC_BASE_HOLE ? 0 : BLK_ST_DATA);
}

static int nbdc_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    struct nbdc_disk *d = n->state;
    uint32_t align = n->limits.req_align;
    uint64_t start = blk_align_down(off, align), end = blk_align_up(off + len, align);
    struct nbdc_op op = { .op = NBDC_STATUS, .offset = start };

    blk_status_at(st, n, off, len, 0);
    op.length = BLK_MIN(BLK_MIN(end, d->size) - start, (uint64_t)NBDC_STATUS_MAX);
    int r = d->status ? nbdc_op_run(d, NULL, &op) : -ENOTSUP;
    if (r && r != -ENOTSUP && r != -EINVAL)
        return r;
    /* An answer about less than a block, or none, is of no use: it may be anything. */
    uint64_t got = r ? 0 : BLK_MIN(op.ext_length, op.length);
    if (start + got < d->size)
        got = blk_align_down(got, align);
    if (got) {
        st->flags |= status_flags(d, op.ext_flags);
        st->length = BLK_MIN(len, start + got - off);
    } else {
        st->flags |= BLK_ST_DATA;
        st->length = r ? len : BLK_MIN(len, start + align - off);
    }
    return 0;
}

/* ---- the loop's calls ----------------------------------------------------------- */

static bool nbdc_before_wait(void *arg)
{
    struct nbdc_disk *d = arg;
    bool ready = false;

    nbdc_dispatch(d);
    for (unsigned i = 0; i < d->cfg.connections; i++) {
        struct nbdc_conn *c = &d->c[i];
        if (!c->dirty)
            continue;
        c->dirty = false;
        ready |= c->answered.first != NULL;
        nbdc_answers(c);
        nbdc_conn_look(c);
    }
    return ready;
}

static void nbdc_timer(void *arg)
{
    struct nbdc_disk *d = arg;
    uint64_t now = blk_now_ns();

    blk_timer_set(d->loop, &d->timer, now + NBDC_TICK_NS);
    nbdc_tick(d, now);
    for (unsigned i = 0; i < d->cfg.connections; i++)
        if (d->c[i].h && d->c[i].dead && !d->c[i].connecting)
            nbdc_recover(d);
}

/* ---- open and close ------------------------------------------------------------- */

static struct nbdc_disk *disk_new(struct blk_loop *l)
{
    struct nbdc_disk *d = calloc(1, sizeof(*d));

    if (!d)
        return NULL;
    d->loop = l;
    d->timer = (struct blk_timer){ .fn = nbdc_timer, .arg = d };
    d->hook = (struct blk_hook){ .fn = nbdc_before_wait, .arg = d };
    blk_journal_init(&d->journal);
    nbdc_list_init(&d->queue);
    for (unsigned i = 0; i < NBDC_CONNECTIONS_MAX; i++) {
        d->c[i].d = d;
        d->c[i].watch.fd = d->c[i].fd = d->c[i].left = -1;
        nbdc_list_init(&d->c[i].flight);
        nbdc_list_init(&d->c[i].answered);
    }
    blk_hook_add(l, &d->hook);
    blk_timer_set(l, &d->timer, blk_now_ns() + NBDC_TICK_NS);
    return d;
}

static void disk_free(struct nbdc_disk *d)
{
    struct nbdc_op *op;

    d->closing = true;
    for (unsigned i = 0; i < NBDC_CONNECTIONS_MAX; i++) {
        nbdc_conn_disconnect(&d->c[i]);
        (void)nbdc_conn_has_left(&d->c[i]);
    }
    blk_timer_cancel(d->loop, &d->timer);
    blk_hook_del(d->loop, &d->hook);
    blk_journal_trim(&d->journal, UINT64_MAX);
    while ((op = d->spare)) {
        d->spare = op->next;
        free(op);
    }
    free(d);
}

static uint32_t block_size(struct nbd_handle *h, int which, uint32_t def)
{
    int64_t v = nbd_get_block_size(h, which);
    return v > 0 && v <= UINT32_MAX ? (uint32_t)v : def;
}

/* What the server says about the export; what makes no sense is refused. */
static int disk_learn(struct nbdc_disk *d, struct blk_error *e)
{
    struct nbd_handle *h = d->c[0].h;
    const char *context = d->cfg.dirty_bitmap[0] ? d->cfg.dirty_bitmap
                                                 : LIBNBD_CONTEXT_BASE_ALLOCATION;
    int64_t size = nbd_get_size(h);

    if (size < 0 || (uint64_t)size > BLK_SIZE_MAX)
        return blk_err(e, EFBIG, "the export's size makes no sense");
    d->size = (uint64_t)size;
    d->min_block = block_size(h, LIBNBD_SIZE_MINIMUM, 1);
    d->opt_block = block_size(h, LIBNBD_SIZE_PREFERRED, 0);
    d->max_block = block_size(h, LIBNBD_SIZE_MAXIMUM, NBDC_TRANSFER);
    if (d->min_block & (d->min_block - 1) || d->min_block > NBDC_ALIGN_MAX ||
        d->max_block < d->min_block)
        return blk_err(e, EPROTO, "the server's block sizes make no sense: %u to %u", d->min_block,
                       d->max_block);
    if (d->size & (d->min_block - 1))
        return blk_err(e, EINVAL, "export length %llu is not multiple of minimum block size %u",
                       (unsigned long long)d->size, d->min_block);
    d->read_only = nbd_is_read_only(h) > 0;
    d->flush = nbd_can_flush(h) > 0;
    d->fua = nbd_can_fua(h) > 0;
    d->trim = nbd_can_trim(h) > 0;
    d->zero = nbd_can_zero(h) > 0;
    d->fast_zero = nbd_can_fast_zero(h) > 0;
    d->multi = nbd_can_multi_conn(h) > 0;
    d->status = nbd_can_meta_context(h, context) > 0;
    if (d->cfg.dirty_bitmap[0] && !d->status)
        return blk_err(e, EINVAL, "requested x-dirty-bitmap %s not found", d->cfg.dirty_bitmap);
    return 0;
}

static void disk_set_limits(struct blk_node *n, const struct nbdc_disk *d)
{
    uint32_t align = d->min_block, max = BLK_MIN(d->max_block, NBDC_TRANSFER) & ~(align - 1);

    n->size = d->size;
    n->can_zero = d->zero ? BLK_CAP_NATIVE : BLK_CAP_EMULATED;
    n->zero_may_be_slow = !d->fast_zero;
    n->can_discard = d->trim ? BLK_CAP_NATIVE : BLK_CAP_NONE;
    n->can_fua = d->fua ? BLK_CAP_NATIVE : BLK_CAP_EMULATED;
    n->limits = (struct blk_limits){
        .req_align = align, .mem_align = 1, .max_transfer = max,
        .opt_transfer = BLK_MAX(BLK_MIN(d->opt_block, max), align), .max_zero = NBDC_ZERO_MAX,
        .max_discard = NBDC_TRIM_MAX,
    };
}

/* As QEMU has it; libnbd knows no more than that the name was refused. */
static int disk_connect_error(struct nbdc_disk *d, int err, struct blk_error *e)
{
    struct nbdc_conn *c = &d->c[0];

    if (strstr(c->cause, "no export named")) {
        blk_err(e, EINVAL, "Requested export not available");
        blk_error_hint(e, "server reported: export '%s' not present", d->cfg.export);
        return -EINVAL;
    }
    return blk_err(e, -err, "%s", c->cause);
}

static int disk_connect(struct nbdc_disk *d, struct blk_error *e)
{
    uint64_t until = blk_now_ns() + d->cfg.open_timeout_ns;
    int r;

    while ((r = nbdc_conn_connect(&d->c[0])) && blk_now_ns() < until)
        co_sleep(blk_net_next(&d->net));
    d->net.tries = 0;
    return r ? disk_connect_error(d, r, e) : disk_learn(d, e);
}

static int nbdc_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct nbdc_disk *d = disk_new(n->loop);

    if (!d)
        return blk_err_errno(e, ENOMEM, "no memory for the connection");
    blk_survive(SIGPIPE);       /* libnbd writes to sockets that may be closed */
    int r = nbdc_config_get(&d->cfg, o, e);
    if (!r && !(d->cfg.tls && blk_opts_has(o, "filename")))
        (void)blk_node_rename(n, nbdc_config_url(&d->cfg));      /* as QEMU prints it */
    r = r ? r : blk_net_init(&d->net, o, n->shown, e);
    r = r ? r : disk_connect(d, e);
    if (!r && d->read_only && n->oflags & BLK_O_RDWR)
        r = blk_err(e, EACCES, "request on write denied without write permission");
    if (r < 0) {
        d->closing = true;
        disk_free(d);
        return r;
    }
    disk_set_limits(n, d);
    d->unsafe = n->oflags & BLK_O_NO_FLUSH && d->flush;
    n->state = d;
    d->n = n;
    return 0;
}

static int nbdc_close(struct blk_node *n, struct blk_error *e)
{
    struct nbdc_disk *d = n->state;
    struct nbdc_op op = { .op = BLK_FLUSH };
    int r = 0;

    if (d->unsafe && (d->unsafe_dirty || d->lost))
        r = d->lost ? d->lost : nbdc_op_run(d, NULL, &op);
    d->closing = true;
    if (d->sleeper)
        co_wake(d->sleeper);
    for (unsigned i = 0; i < d->cfg.connections; i++)
        if (d->c[i].connecting)
            nbdc_conn_kill(&d->c[i], "closed");
    while (d->recovering || d->syncing || d->helpers)
        co_wait_on(&d->settled);
    n->state = NULL;
    if (r)
        blk_err_errno(e, -r, "Could not close '%s'", n->shown);
    disk_free(d);
    return r;
}

/* ---- the rest ------------------------------------------------------------------- */

static int nbdc_length(struct blk_node *n, uint64_t *out)
{
    *out = n->size;
    return 0;
}

/* An export has the size it has; what needs less fits. */
static int nbdc_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                         struct blk_error *e)
{
    if (size != n->size && n->oflags & BLK_O_EXACT)
        return blk_err(e, ENOTSUP, "Cannot resize NBD nodes");
    return size > n->size ? blk_err(e, EINVAL, "Cannot grow NBD nodes") : 0;
}

static int nbdc_identity(struct blk_node *n, char *buf, size_t len)
{
    const struct nbdc_disk *d = n->state;
    char address[400];

    nbdc_config_address(&d->cfg, address, sizeof(address));
    return snprintf(buf, len, "nbd:%s/%s", address, d->cfg.export) < (int)len ? 0 : -E2BIG;
}

extern const struct blk_driver blk_nbd;

static int nbdc_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                       struct blk_error *e)
{
    return blk_create_in_place(l, &blk_nbd, o, e);
}

static const char *const nbdc_schemes[] = { "nbd", "nbds", "nbd+unix", "nbds+unix", NULL };

const struct blk_driver blk_nbd = {
    .name = "nbd",
    .protocol = true,
    .merge = 32768,
    .schemes = nbdc_schemes,
    .create_opts = blk_in_place_opts,
    .open = nbdc_open,
    .close = nbdc_close,
    .submit = nbdc_submit,
    .status = nbdc_status,
    .truncate = nbdc_truncate,
    .length = nbdc_length,
    .identity = nbdc_identity,
    .create = nbdc_create,
};
