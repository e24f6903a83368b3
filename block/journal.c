/*
 * journal.c - what is not flushed yet, in the order of acknowledgement.
 */
#include "block/journal.h"

#include <errno.h>
#include <stdlib.h>

void blk_journal_init(struct blk_journal *j)
{
    *j = (struct blk_journal){ .last = &j->first };
}

int blk_journal_add(struct blk_journal *j, enum blk_op op, unsigned flags, uint64_t offset,
                    uint64_t length, const struct iovec *iov, int iovcnt)
{
    uint64_t data = op == BLK_WRITE ? length : 0;
    struct blk_journal_entry *en = malloc(sizeof(*en) + data);

    if (!en)
        return -ENOMEM;
    *en = (struct blk_journal_entry){ .seq = ++j->seq, .offset = offset, .length = length,
                                      .bytes = sizeof(*en) + data, .op = op, .flags = flags };
    if (data)
        blk_iov_to_buf(iov, iovcnt, 0, en->data, data);
    *j->last = en;
    j->last = &en->next;
    j->bytes += en->bytes;
    return 0;
}

static void journal_drop_first(struct blk_journal *j)
{
    struct blk_journal_entry *en = j->first;

    j->first = en->next;
    if (!j->first)
        j->last = &j->first;
    j->bytes -= en->bytes;
    free(en);
}

void blk_journal_trim(struct blk_journal *j, uint64_t seq)
{
    while (j->first && j->first->seq <= seq)
        journal_drop_first(j);
}
