/*
 * command.c - one SCSI command: waiting for its turn, built and sent, its answer
 * judged; sent again where that is right, and never without bound.
 */
#include "protocols/iscsi/iscsi_int.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t zero_block[65536];

/* ---- lists ---------------------------------------------------------------------- */

static void list_append(struct iscsi_list *l, struct iscsi_op *op)
{
    op->next = NULL;
    op->prev = l->first ? &l->last->next : &l->first;
    *op->prev = op;
    l->last = op;
}

static void list_prepend(struct iscsi_list *l, struct iscsi_op *op)
{
    op->next = l->first;
    op->prev = &l->first;
    if (l->first)
        l->first->prev = &op->next;
    else
        l->last = op;
    l->first = op;
}

static void list_remove(struct iscsi_list *l, struct iscsi_op *op)
{
    *op->prev = op->next;
    if (op->next)
        op->next->prev = op->prev;
    else
        l->last = l->first ? blk_container_of(op->prev, struct iscsi_op, next) : NULL;
}

/* ---- the end of a command ------------------------------------------------------- */

static bool op_changes(const struct iscsi_op *op)
{
    return op->kind == ISCSI_WRITE || op->kind == ISCSI_ZERO || op->kind == ISCSI_UNMAP;
}

static void op_free_task(struct iscsi_op *op)
{
    if (op->task)
        scsi_free_scsi_task(op->task);
    op->task = NULL;
}

static void op_end(struct iscsi_lun *lun, struct iscsi_op *op, int result)
{
    if (!result && !op->recovery && op_changes(op))
        result = iscsi_journal_add(lun, op);
    if (!result && op->kind == ISCSI_SYNC)
        blk_journal_trim(&lun->journal, op->sync_seq);
    if (op->kind != ISCSI_ASK)
        op_free_task(op);
    op->done(op, result);
}

static void op_requeue(struct iscsi_lun *lun, struct iscsi_op *op)
{
    op_free_task(op);
    if (blk_net_expired(&lun->net, op->first_ns, blk_now_ns()) || lun->net.given_up)
        op_end(lun, op, -EIO);
    else
        list_append(&lun->queue, op);
}

static void op_delay(struct iscsi_lun *lun, struct iscsi_op *op)
{
    uint64_t now = blk_now_ns();

    if (blk_net_expired(&lun->net, op->first_ns, now)) {
        op_end(lun, op, -EBUSY);
        return;
    }
    op_free_task(op);
    op->not_before_ns = now + blk_net_step(op->busy++);
    list_append(&lun->delayed, op);
    if (!lun->timer.at || lun->timer.at > op->not_before_ns)
        blk_timer_set(lun->loop, &lun->timer, op->not_before_ns);
}

/* ---- judging an answer ---------------------------------------------------------- */

enum verdict { DONE, AGAIN, LATER, RECOVER };

static int illegal_request(struct iscsi_lun *lun, const struct iscsi_op *op, int ascq)
{
    bool optional = op->kind == ISCSI_ZERO || op->kind == ISCSI_UNMAP || op->kind == ISCSI_ASK;

    if (ascq == SCSI_SENSE_ASCQ_LBA_OUT_OF_RANGE) {
        /* News only if we thought it had that block. */
        if (op->offset + op->length <= lun->blocks * lun->block)
            lun->capacity_changed = true;
        return op_changes(op) ? -ENOSPC : -EIO;
    }
    if (ascq == SCSI_SENSE_ASCQ_INVALID_OPERATION_CODE && op->kind == ISCSI_SYNC)
        return lun->volatile_cache ? -EIO : 0;
    return optional && ascq != SCSI_SENSE_ASCQ_LOGICAL_UNIT_NOT_SUPPORTED ? -ENOTSUP : -EIO;
}

static enum verdict unit_attention(struct iscsi_lun *lun, struct iscsi_op *op, int ascq, int *err)
{
    *err = op->recovery ? -EAGAIN : -EIO;
    if (ascq >> 8 == 0x29)              /* reset: whatever the cache held may be gone */
        lun->replay = true;
    if (ascq == 0x2a09)
        lun->capacity_changed = true;
    if (op->recovery || ++op->attentions > ISCSI_ATTENTIONS_MAX)
        return DONE;
    return lun->replay || lun->capacity_changed ? RECOVER : AGAIN;
}

static enum verdict judge_sense(struct iscsi_lun *lun, struct iscsi_op *op, int *err)
{
    const struct scsi_sense *sense = &op->task->sense;

    *err = -EIO;
    switch ((int)sense->key) {
    case SCSI_SENSE_NO_SENSE:
    case SCSI_SENSE_RECOVERED_ERROR:
        *err = 0;
        return DONE;
    case SCSI_SENSE_UNIT_ATTENTION:
        return unit_attention(lun, op, sense->ascq, err);
    case SCSI_SENSE_COMMAND_ABORTED:
        return op->recovery || ++op->attentions > ISCSI_ATTENTIONS_MAX ? DONE : LATER;
    case SCSI_SENSE_NOT_READY:
        if (sense->ascq >> 8 == 0x3a)
            *err = -ENOMEDIUM;
        return sense->ascq >> 8 == 0x04 ? LATER : DONE;
    case SCSI_SENSE_ILLEGAL_REQUEST:
        *err = illegal_request(lun, op, sense->ascq);
        return lun->capacity_changed && !op->recovery ? RECOVER : DONE;
    case SCSI_SENSE_DATA_PROTECTION:
        *err = sense->ascq == 0x2707 ? -ENOSPC : -EROFS;
        return DONE;
    default:
        return DONE;
    }
}

static enum verdict judge_good(struct iscsi_lun *lun, struct iscsi_op *op, int *err)
{
    *err = 0;
    if (op->kind == ISCSI_SYNC && !op->recovery && (lun->replay || lun->recovering))
        return AGAIN;                   /* it may not have seen what is replayed */
    /* A target that moved less, or says it had more, has not done what was asked. */
    if ((op->kind == ISCSI_READ || op->kind == ISCSI_WRITE) &&
        op->task->residual_status != SCSI_RESIDUAL_NO_RESIDUAL)
        *err = -EIO;
    return DONE;
}

static enum verdict judge(struct iscsi_lun *lun, struct iscsi_op *op, int status, int *err)
{
    switch (status) {
    case SCSI_STATUS_GOOD:
    case SCSI_STATUS_CONDITION_MET:
        return judge_good(lun, op, err);
    case SCSI_STATUS_CHECK_CONDITION:
        return judge_sense(lun, op, err);
    case SCSI_STATUS_BUSY:
    case SCSI_STATUS_TASK_SET_FULL:
    case SCSI_STATUS_TASK_ABORTED:
    case SCSI_STATUS_ACA_ACTIVE:
        *err = -EBUSY;
        return LATER;
    case SCSI_STATUS_RESERVATION_CONFLICT:
        *err = -EBUSY;
        if (!lun->conflict_told)
            blk_report("%s: reserved by another initiator", lun->net.shown);
        lun->conflict_told = true;
        return DONE;
    default:
        *err = -EIO;
        return DONE;
    }
}

void iscsi_answered(struct iscsi_context *ctx, int status, void *data, void *arg)
{
    struct iscsi_op *op = arg;
    struct iscsi_session *s = op->session;
    struct iscsi_lun *lun = s->lun;
    int err;

    assert(s->ctx == ctx);
    if (s->flight.first == op && op->next)
        s->moved_ns = blk_now_ns();
    list_remove(&s->flight, op);
    s->nflight--;
    op->session = NULL;
    op->task = data;
    if (status == SCSI_STATUS_CANCELLED || status == SCSI_STATUS_ERROR ||
        status == SCSI_STATUS_TIMEOUT) {
        iscsi_session_kill(s, iscsi_get_error(ctx));
        s->unanswered |= op_changes(op);
        if (op->recovery)
            op_end(lun, op, -ENOTCONN);
        else
            op_requeue(lun, op);
    } else {
        enum verdict v = judge(lun, op, status, &err);

        /* The target itself says that its cache did not reach the medium. */
        if (v == DONE && err < 0 && op->kind == ISCSI_SYNC)
            iscsi_journal_lose(lun, err);
        if (op->recovery || v == DONE)
            op_end(lun, op, err);
        else if (v == LATER)
            op_delay(lun, op);
        else
            op_requeue(lun, op);
        if (v == RECOVER || (lun->capacity_changed && !lun->recovering))
            iscsi_recover(lun);
        blk_net_progress(&lun->net);
    }
    if (lun->quiet && !s->nflight) {
        struct co *c = lun->quiet;
        lun->quiet = NULL;
        co_wake(c);
    }
}

/* ---- sending -------------------------------------------------------------------- */

static struct scsi_task *send_rw(struct iscsi_lun *lun, struct iscsi_session *s,
                                 struct iscsi_op *op)
{
    /* The same layout, says scsi-lowlevel.h; entries are restored when it moves in them. */
    struct scsi_iovec *iov = (struct scsi_iovec *)(uintptr_t)op->iov;
    uint64_t lba = op->offset / lun->block;
    uint32_t len = (uint32_t)op->length;
    int block = (int)lun->block, id = (int)lun->cfg.lun;
    bool wide = lun->blocks > UINT32_MAX || op->length / lun->block > UINT16_MAX;

    if (op->kind == ISCSI_READ && wide)
        return iscsi_read16_iov_task(s->ctx, id, lba, len, block, 0, 0, 0, 0, 0, iscsi_answered, op,
                                     iov, op->iovcnt);
    if (op->kind == ISCSI_READ)
        return iscsi_read10_iov_task(s->ctx, id, (uint32_t)lba, len, block, 0, 0, 0, 0, 0,
                                     iscsi_answered, op, iov, op->iovcnt);
    if (wide)
        return iscsi_write16_iov_task(s->ctx, id, lba, NULL, len, block, 0, 0, op->fua, 0, 0,
                                      iscsi_answered, op, iov, op->iovcnt);
    return iscsi_write10_iov_task(s->ctx, id, (uint32_t)lba, NULL, len, block, 0, 0, op->fua, 0,
                                  0, iscsi_answered, op, iov, op->iovcnt);
}

static struct scsi_task *send_same(struct iscsi_lun *lun, struct iscsi_session *s,
                                   struct iscsi_op *op)
{
    uint64_t lba = op->offset / lun->block;
    uint32_t count = (uint32_t)(op->length / lun->block);
    int id = (int)lun->cfg.lun;

    if (op->kind == ISCSI_UNMAP && lun->can_unmap) {
        struct unmap_list list = { .lba = lba, .num = count };

        return iscsi_unmap_task(s->ctx, id, 0, 0, &list, 1, iscsi_answered, op);
    }
    return iscsi_writesame16_task(s->ctx, id, lba, (unsigned char *)(uintptr_t)zero_block,
                                  lun->block, count, 0, op->kind == ISCSI_UNMAP || op->unmap, 0,
                                  0, iscsi_answered, op);
}

static struct scsi_task *send_sync(struct iscsi_lun *lun, struct iscsi_session *s,
                                   struct iscsi_op *op)
{
    int id = (int)lun->cfg.lun;

    op->sync_seq = lun->journal.seq;
    if (lun->blocks > UINT32_MAX)
        return iscsi_synchronizecache16_task(s->ctx, id, 0, 0, 0, 0, iscsi_answered, op);
    return iscsi_synchronizecache10_task(s->ctx, id, 0, 0, 0, 0, iscsi_answered, op);
}

static int op_send(struct iscsi_lun *lun, struct iscsi_session *s, struct iscsi_op *op)
{
    struct scsi_task *t;

    op->session = s;
    op->sent_ns = blk_now_ns();
    list_append(&s->flight, op);
    s->nflight++;
    switch (op->kind) {
    case ISCSI_READ:
    case ISCSI_WRITE:
        t = send_rw(lun, s, op);
        break;
    case ISCSI_ZERO:
    case ISCSI_UNMAP:
        t = send_same(lun, s, op);
        break;
    case ISCSI_SYNC:
        t = send_sync(lun, s, op);
        break;
    default:
        t = op->ask(op, s->ctx);
        break;
    }
    if (t)
        return 0;
    list_remove(&s->flight, op);
    s->nflight--;
    op->session = NULL;
    return -ENOMEM;
}

static struct iscsi_session *pick_session(struct iscsi_lun *lun)
{
    struct iscsi_session *best = NULL;

    for (unsigned i = 0; i < lun->cfg.sessions; i++) {
        struct iscsi_session *s = &lun->s[i];

        if (s->up && !s->dead && s->nflight < ISCSI_DEPTH && (!best || s->nflight < best->nflight))
            best = s;
    }
    return best;
}

void iscsi_dispatch(struct iscsi_lun *lun)
{
    struct iscsi_session *s;
    struct iscsi_op *op;

    while (!lun->recovering && !lun->replay && (op = lun->queue.first) &&
           (s = pick_session(lun))) {
        if (op_changes(op) && iscsi_journal_full(lun)) {
            iscsi_journal_relieve(lun);     /* its flush goes to the front */
            if (lun->queue.first == op)
                break;
            op = lun->queue.first;
        }
        list_remove(&lun->queue, op);
        if (op_send(lun, s, op) < 0) {
            iscsi_session_kill(s, iscsi_get_error(s->ctx));
            op_requeue(lun, op);
        }
    }
    for (unsigned i = 0; i < lun->cfg.sessions; i++)
        if (lun->s[i].up)
            iscsi_session_push(&lun->s[i]);
}

void iscsi_op_start(struct iscsi_lun *lun, struct iscsi_op *op)
{
    op->first_ns = blk_now_ns();
    if (lun->net.given_up)
        op_end(lun, op, -EIO);
    else
        list_append(&lun->queue, op);
}

void iscsi_op_start_first(struct iscsi_lun *lun, struct iscsi_op *op)
{
    op->first_ns = blk_now_ns();
    list_prepend(&lun->queue, op);
}

void iscsi_fail_queued(struct iscsi_lun *lun, int err)
{
    struct iscsi_list *lists[] = { &lun->queue, &lun->delayed };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(lists); i++) {
        struct iscsi_op *op;

        while ((op = lists[i]->first)) {
            list_remove(lists[i], op);
            op_end(lun, op, err);
        }
    }
}

/* Delayed commands whose time has come go back to the queue. */
void iscsi_wake_delayed(struct iscsi_lun *lun, uint64_t now)
{
    struct iscsi_op *op, *next;

    for (op = lun->delayed.first; op; op = next) {
        next = op->next;
        if (op->not_before_ns <= now) {
            list_remove(&lun->delayed, op);
            list_append(&lun->queue, op);
        } else if (lun->timer.at > op->not_before_ns) {
            blk_timer_set(lun->loop, &lun->timer, op->not_before_ns);
        }
    }
}

/* ---- for fibers ----------------------------------------------------------------- */

struct run { struct co *waiter; bool ended; int result; };

static void run_done(struct iscsi_op *op, int result)
{
    struct run *r = op->arg;

    r->ended = true;
    r->result = result;
    if (r->waiter)
        co_wake(r->waiter);
}

int iscsi_op_run(struct iscsi_lun *lun, struct iscsi_session *s, struct iscsi_op *op,
                 struct scsi_task **task)
{
    struct run r = { 0 };

    op->done = run_done;
    op->arg = &r;
    op->recovery = s != NULL;
    op->first_ns = blk_now_ns();
    if (!s) {
        iscsi_op_start(lun, op);
    } else if (op_send(lun, s, op) < 0) {
        iscsi_session_kill(s, iscsi_get_error(s->ctx));
        return -ENOTCONN;
    } else {
        iscsi_session_push(s);
    }
    if (!r.ended) {
        r.waiter = co_self();
        co_yield();
    }
    if (task && !r.result)
        *task = op->task;
    else
        op_free_task(op);
    op->task = NULL;
    return r.result;
}
