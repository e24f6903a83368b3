/*
 * journal.c - copies of what the target has acknowledged but may keep in a volatile
 * cache only, in the order of the acknowledgements.
 *
 * A flush that succeeds makes durable what was acknowledged before it was sent, and
 * those entries go.  The journal is bounded: at half of its room it flushes the target
 * on its own, when it is full changes wait for that flush.
 */
#include "protocols/iscsi/iscsi_int.h"

#include <errno.h>
#include <string.h>

bool iscsi_journal_full(const struct iscsi_lun *lun)
{
    return lun->journal.bytes >= ISCSI_JOURNAL_MAX;
}

void iscsi_journal_lose(struct iscsi_lun *lun, int err)
{
    if (!lun->lost)
        lun->lost = err;
    blk_journal_trim(&lun->journal, UINT64_MAX);
}

static void journal_relieved(struct iscsi_op *op, int result)
{
    struct iscsi_lun *lun = op->arg;

    lun->syncing = false;
    co_wake_all(&lun->recovered);
    if (result < 0)
        blk_report("%s: the target could not flush its cache: %s", lun->net.shown,
                   strerror(-result));
}

void iscsi_journal_relieve(struct iscsi_lun *lun)
{
    if (lun->syncing)
        return;
    lun->syncing = true;
    lun->sync_op = (struct iscsi_op){ .kind = ISCSI_SYNC, .done = journal_relieved, .arg = lun };
    iscsi_op_start_first(lun, &lun->sync_op);
}

int iscsi_journal_add(struct iscsi_lun *lun, const struct iscsi_op *op)
{
    static const enum blk_op ops[] = {
        [ISCSI_WRITE] = BLK_WRITE, [ISCSI_ZERO] = BLK_WRITE_ZEROES, [ISCSI_UNMAP] = BLK_DISCARD,
    };
    struct blk_journal *j = &lun->journal;

    if (!lun->volatile_cache || lun->lost || lun->n->oflags & BLK_O_NO_FLUSH)
        return 0;
    /* A durable write need not be kept, unless replaying an older one would undo it. */
    if (op->fua && !j->first)
        return 0;
    int ret = blk_journal_add(j, ops[op->kind], op->unmap ? BLK_REQ_MAY_UNMAP : 0, op->offset,
                              op->length, op->iov, op->iovcnt);
    if (!ret && j->bytes >= ISCSI_JOURNAL_MAX / 2)
        iscsi_journal_relieve(lun);
    return ret;
}

static struct iscsi_session *journal_session(struct iscsi_lun *lun)
{
    for (unsigned i = 0; i < lun->cfg.sessions; i++)
        if (lun->s[i].up && !lun->s[i].dead)
            return &lun->s[i];
    return NULL;
}

/* Nothing else is sent or ended meanwhile, so the entries stay. */
int iscsi_journal_replay(struct iscsi_lun *lun)
{
    static const enum iscsi_kind kinds[] = {
        [BLK_WRITE] = ISCSI_WRITE, [BLK_WRITE_ZEROES] = ISCSI_ZERO, [BLK_DISCARD] = ISCSI_UNMAP,
    };
    for (struct blk_journal_entry *en = lun->journal.first; en; en = en->next) {
        struct iovec iov = { en->data, en->length };
        struct iscsi_op op = { .kind = kinds[en->op], .offset = en->offset, .length = en->length,
                               .unmap = en->flags & BLK_REQ_MAY_UNMAP, .iov = &iov,
                               .iovcnt = 1 };
        struct iscsi_session *s = journal_session(lun);
        int ret = s ? iscsi_op_run(lun, s, &op, NULL) : -ENOTCONN;

        if (ret < 0)
            return ret;
    }
    return 0;
}
