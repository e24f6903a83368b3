/*
 * iscsi.c - the driver: a LUN as a node.  Opening, closing, requests, and the timer and
 * hook that drive what the other files do.  iscsi_int.h tells who does what.
 */
#include "protocols/iscsi/iscsi_int.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define ISCSI_LOGOUT_NS 2000000000ull

/* ---- requests ------------------------------------------------------------------- */

static void iscsi_request_done(struct iscsi_op *op, int result)
{
    struct blk_req *req = op->arg;
    struct blk_node *n = req->node;
    struct iscsi_lun *lun = n->state;

    if (result == -ENOTSUP && op->kind == ISCSI_ZERO && !(req->flags & BLK_REQ_MAY_UNMAP))
        n->can_zero = BLK_CAP_EMULATED;
    if (result == -ENOTSUP && op->kind == ISCSI_UNMAP)
        n->can_discard = BLK_CAP_NONE;
    if (op->kind == ISCSI_SYNC && !result)
        result = lun->lost;
    op->next = lun->spare;
    lun->spare = op;
    blk_complete(req, result);
}

static struct iscsi_op *iscsi_op_new(struct iscsi_lun *lun)
{
    struct iscsi_op *op = lun->spare;

    if (op)
        lun->spare = op->next;
    else
        op = malloc(sizeof(*op));
    if (op)
        memset(op, 0, sizeof(*op));
    return op;
}

static void iscsi_submit(struct blk_node *n, struct blk_req *req)
{
    static const enum iscsi_kind kinds[] = {
        [BLK_READ] = ISCSI_READ, [BLK_WRITE] = ISCSI_WRITE, [BLK_WRITE_ZEROES] = ISCSI_ZERO,
        [BLK_DISCARD] = ISCSI_UNMAP, [BLK_FLUSH] = ISCSI_SYNC,
    };
    struct iscsi_lun *lun = n->state;
    struct iscsi_op *op = iscsi_op_new(lun);

    if (!op) {
        blk_complete(req, -ENOMEM);
        return;
    }
    op->kind = kinds[req->op];
    op->offset = req->offset;
    op->length = req->length;
    op->iov = req->iov;
    op->iovcnt = req->iovcnt;
    op->fua = req->flags & BLK_REQ_FUA && op->kind == ISCSI_WRITE;
    op->unmap = req->flags & BLK_REQ_MAY_UNMAP && lun->can_ws_unmap && lun->zero_unmapped;
    op->done = iscsi_request_done;
    op->arg = req;
    if (op->kind == ISCSI_SYNC && lun->lost)
        iscsi_request_done(op, lun->lost);
    else
        iscsi_op_start(lun, op);
}

/* ---- the loop's calls ----------------------------------------------------------- */

/* Never from inside libiscsi: here sessions may be destroyed. */
static bool iscsi_before_wait(void *arg)
{
    struct iscsi_lun *lun = arg;

    for (unsigned i = 0; i < lun->cfg.sessions; i++)
        if (lun->s[i].dead && lun->s[i].ctx)
            iscsi_session_destroy(&lun->s[i]);
    if (lun->replay && !lun->recovering)
        iscsi_recover(lun);
    iscsi_dispatch(lun);
    return false;
}

static void iscsi_tick(void *arg)
{
    struct iscsi_lun *lun = arg;
    uint64_t now = blk_now_ns();

    blk_timer_set(lun->loop, &lun->timer, now + ISCSI_TICK_NS);
    for (unsigned i = 0; i < lun->cfg.sessions; i++)
        iscsi_session_tick(&lun->s[i], now);
    iscsi_wake_delayed(lun, now);
    iscsi_recover_missing(lun, now);
}

/* ---- open and close ------------------------------------------------------------- */

static struct iscsi_lun *iscsi_lun_new(struct blk_loop *l)
{
    struct iscsi_lun *lun = calloc(1, sizeof(*lun));
    uint32_t isid = 0;

    if (!lun)
        return NULL;
    lun->loop = l;
    lun->timer = (struct blk_timer){ .fn = iscsi_tick, .arg = lun };
    lun->hook = (struct blk_hook){ .fn = iscsi_before_wait, .arg = lun };
    blk_journal_init(&lun->journal);
    if (getrandom(&isid, sizeof(isid), 0) < 0)
        isid = (uint32_t)blk_now_ns();
    for (unsigned i = 0; i < ISCSI_SESSIONS_MAX; i++) {
        lun->s[i].lun = lun;
        lun->s[i].index = i;
        lun->s[i].isid = isid & 0xffffff;
        lun->s[i].watch.fd = lun->s[i].held = -1;
        lun->s[i].step_done = true;
    }
    return lun;
}

static void iscsi_lun_free(struct iscsi_lun *lun)
{
    struct iscsi_op *op;

    for (unsigned i = 0; i < ISCSI_SESSIONS_MAX; i++) {
        iscsi_session_destroy(&lun->s[i]);
        iscsi_session_forget(&lun->s[i]);
    }
    blk_timer_cancel(lun->loop, &lun->timer);
    blk_hook_del(lun->loop, &lun->hook);
    blk_journal_trim(&lun->journal, UINT64_MAX);
    while ((op = lun->spare)) {
        lun->spare = op->next;
        free(op);
    }
    explicit_bzero(&lun->cfg, sizeof(lun->cfg));
    free(lun);
}

/* The first session must come up, further ones may be more than the target takes. */
static int iscsi_open_sessions(struct iscsi_lun *lun, struct blk_error *e)
{
    for (unsigned i = 0; i < lun->cfg.sessions; i++) {
        struct iscsi_session *s = &lun->s[i];
        int ret = iscsi_session_connect(s);

        if (ret < 0 && i == 0)
            return blk_err(e, -ret, "Could not open '%s': iSCSI server '%s' port %u, "
                           "target '%s': %s", lun->net.shown, lun->cfg.host, lun->cfg.port,
                           lun->cfg.target, s->cause);
        if (ret == 0 && i > 0)
            ret = iscsi_probe_ready(lun, s);
        s->disabled = ret < 0;
        if (s->disabled)
            iscsi_session_destroy(s);
    }
    return 0;
}

static void iscsi_set_limits(struct blk_node *n, struct iscsi_lun *lun)
{
    uint64_t max = lun->max_transfer ? (uint64_t)lun->max_transfer * lun->block : ISCSI_TRANSFER;
    uint64_t opt = (uint64_t)lun->opt_transfer * lun->block;
    uint64_t unmap = lun->max_unmap ? (uint64_t)lun->max_unmap * lun->block : ISCSI_UNMAP_MAX;
    uint64_t same = ISCSI_ZERO_MAX;

    if (lun->max_write_same && lun->max_write_same < same / lun->block)
        same = lun->max_write_same * lun->block;
    max = BLK_MIN(max, (uint64_t)ISCSI_TRANSFER);
    n->limits = (struct blk_limits){
        .req_align = lun->block, .mem_align = 1, .max_transfer = (uint32_t)max,
        .opt_transfer = (uint32_t)(opt && opt < max ? opt : max), .max_zero = same,
        .max_discard = BLK_MIN(unmap, (uint64_t)ISCSI_UNMAP_MAX),
    };
    n->size = lun->blocks * lun->block;
    n->can_zero = BLK_CAP_NATIVE;
    n->zero_may_be_slow = !(lun->can_ws_unmap && lun->zero_unmapped);
    n->can_discard = lun->thin && (lun->can_unmap || lun->can_ws_unmap) ? BLK_CAP_NATIVE
                                                                          : BLK_CAP_NONE;
    n->can_fua = lun->dpofua ? BLK_CAP_NATIVE : BLK_CAP_EMULATED;
}

static int iscsi_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct iscsi_lun *lun = iscsi_lun_new(n->loop);
    int ret;

    if (!lun)
        return blk_err_errno(e, ENOMEM, "Could not open '%s'", n->shown);
    ret = iscsi_config_get(&lun->cfg, o, e);
    ret = ret ? ret : blk_net_init(&lun->net, o, n->shown, e);
    if (ret < 0)
        goto fail;
    blk_survive(SIGPIPE);       /* libiscsi writes to sockets that may be closed */
    blk_hook_add(lun->loop, &lun->hook);
    blk_timer_set(lun->loop, &lun->timer, blk_now_ns() + ISCSI_TICK_NS);
    ret = iscsi_open_sessions(lun, e);
    ret = ret ? ret : iscsi_probe(lun, e);
    if (!ret && n->oflags & BLK_O_RDWR && lun->write_protected)
        ret = blk_err(e, EROFS, "Could not open '%s': the LUN is write protected", n->shown);
    if (ret < 0)
        goto fail;
    iscsi_set_limits(n, lun);
    n->state = lun;
    lun->n = n;
    lun->replay = false;
    return 0;

fail:
    iscsi_lun_free(lun);
    return ret;
}

static void iscsi_logout_over(void *arg)
{
    struct iscsi_lun *lun = arg;

    for (unsigned i = 0; i < lun->cfg.sessions; i++)
        if (!lun->s[i].step_done)
            iscsi_session_kill(&lun->s[i], "no answer to logout");
}

static int iscsi_close(struct blk_node *n, struct blk_error *e)
{
    struct iscsi_lun *lun = n->state;
    struct blk_timer t = { .fn = iscsi_logout_over, .arg = lun };

    lun->closing = true;
    if (lun->recoverer)
        co_wake(lun->recoverer);
    for (unsigned i = 0; lun->recovering && i < lun->cfg.sessions; i++)
        if (!lun->s[i].step_done)
            iscsi_session_kill(&lun->s[i], "closed");
    while (lun->recovering || lun->syncing)
        co_wait_on(&lun->recovered);
    blk_timer_set(lun->loop, &t, blk_now_ns() + ISCSI_LOGOUT_NS);
    for (unsigned i = 0; i < lun->cfg.sessions; i++)
        iscsi_session_logout(&lun->s[i]);
    blk_timer_cancel(lun->loop, &t);
    iscsi_lun_free(lun);
    n->state = NULL;
    return 0;
}

/* ---- the rest ------------------------------------------------------------------- */

static int iscsi_length(struct blk_node *n, uint64_t *out)
{
    struct iscsi_lun *lun = n->state;
    uint64_t blocks;
    uint32_t block;
    int ret = iscsi_probe_capacity(lun, NULL, &block, &blocks);

    if (ret < 0)
        return ret;
    if (block != lun->block)
        return -EIO;
    *out = blocks * block;
    lun->blocks = blocks;
    return 0;
}

/* A LUN has the size it has; what needs less fits. */
static int iscsi_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                          struct blk_error *e)
{
    uint64_t now;
    int ret;

    if (p != BLK_PREALLOC_OFF)
        return blk_err(e, ENOTSUP, "Preallocation is not supported for iSCSI");
    ret = iscsi_length(n, &now);
    if (ret < 0)
        return blk_err_errno(e, -ret, "Could not read the capacity of '%s'", n->shown);
    n->size = now;
    if (size != now && n->oflags & BLK_O_EXACT)
        return blk_err(e, ENOTSUP, "Cannot resize iSCSI devices");
    if (size > now)
        return blk_err(e, EINVAL, "Cannot grow iSCSI devices");
    return 0;
}

static int iscsi_identity(struct blk_node *n, char *buf, size_t len)
{
    const struct iscsi_lun *lun = n->state;

    snprintf(buf, len, "iscsi:%s/%u:%s", lun->cfg.target, lun->cfg.lun, lun->serial);
    return 0;
}

/* As in QEMU there is nothing to tell but that there could be. */
static int iscsi_info(struct blk_node *n, struct blk_info *out, struct blk_error *e)
{
    return 0;
}

extern const struct blk_driver blk_iscsi;

static int iscsi_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                        struct blk_error *e)
{
    return blk_create_in_place(l, &blk_iscsi, o, e);
}

static const char *const iscsi_schemes[] = { "iscsi", NULL };

const struct blk_driver blk_iscsi = {
    .name = "iscsi",
    .protocol = true,
    .merge = 32768,
    .schemes = iscsi_schemes,
    .create_opts = blk_in_place_opts,
    .open = iscsi_open,
    .close = iscsi_close,
    .submit = iscsi_submit,
    .status = iscsi_status,
    .truncate = iscsi_truncate,
    .length = iscsi_length,
    .info = iscsi_info,
    .identity = iscsi_identity,
    .create = iscsi_create,
};
