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
#include <stdlib.h>
#include <string.h>

struct iscsi_entry {
    struct iscsi_entry *next;
    uint64_t seq, offset, length, bytes;
    enum iscsi_kind kind;
    bool unmap;
    uint8_t data[];                 /* WRITE: length bytes */
};

void iscsi_journal_init(struct iscsi_journal *j)
{
    *j = (struct iscsi_journal){ .last = &j->first };
}

static void journal_drop_first(struct iscsi_journal *j)
{
    struct iscsi_entry *en = j->first;

    j->first = en->next;
    if (!j->first)
        j->last = &j->first;
    j->bytes -= en->bytes;
    free(en);
}

void iscsi_journal_trim(struct iscsi_journal *j, uint64_t seq)
{
    while (j->first && j->first->seq <= seq)
        journal_drop_first(j);
}

bool iscsi_journal_full(const struct iscsi_lun *lun)
{
    return lun->journal.bytes >= ISCSI_JOURNAL_MAX;
}

void iscsi_journal_lose(struct iscsi_lun *lun, int err)
{
    if (!lun->lost)
        lun->lost = err;
    iscsi_journal_trim(&lun->journal, UINT64_MAX);
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
    struct iscsi_journal *j = &lun->journal;
    uint64_t data = op->kind == ISCSI_WRITE ? op->length : 0;
    struct iscsi_entry *en;

    if (!lun->volatile_cache || lun->lost || lun->n->oflags & BLK_O_NO_FLUSH)
        return 0;
    /* A durable write need not be kept, unless replaying an older one would undo it. */
    if (op->fua && !j->first)
        return 0;
    en = malloc(sizeof(*en) + data);
    if (!en)
        return -ENOMEM;             /* the write counts as failed: nobody relies on it */
    *en = (struct iscsi_entry){ .seq = ++j->seq, .offset = op->offset, .length = op->length,
                                .bytes = sizeof(*en) + data, .kind = op->kind,
                                .unmap = op->unmap };
    if (data)
        blk_iov_to_buf(op->iov, op->iovcnt, 0, en->data, data);
    *j->last = en;
    j->last = &en->next;
    j->bytes += en->bytes;
    if (j->bytes >= ISCSI_JOURNAL_MAX / 2)
        iscsi_journal_relieve(lun);
    return 0;
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
    for (struct iscsi_entry *en = lun->journal.first; en; en = en->next) {
        struct iovec iov = { en->data, en->length };
        struct iscsi_op op = { .kind = en->kind, .offset = en->offset, .length = en->length,
                               .unmap = en->unmap, .iov = &iov, .iovcnt = 1 };
        struct iscsi_session *s = journal_session(lun);
        int ret = s ? iscsi_op_run(lun, s, &op, NULL) : -ENOTCONN;

        if (ret < 0)
            return ret;
    }
    return 0;
}
