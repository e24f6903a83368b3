/*
 * journal.h - copies of what a server has acknowledged but may still lose: the changes
 * since the last flush, oldest first, to be made again after a server came back.
 * A data structure only; when to flush, play or give up is the driver's.
 *
 * Owner thread of the node.
 */
#ifndef PLATTER_JOURNAL_H
#define PLATTER_JOURNAL_H

#include "block/driver.h"

struct blk_journal_entry {
    struct blk_journal_entry *next;
    uint64_t seq, offset, length, bytes;    /* bytes: of memory */
    enum blk_op op;                         /* WRITE, WRITE_ZEROES or DISCARD */
    unsigned flags;                         /* BLK_REQ_* */
    uint8_t data[];                         /* WRITE: length bytes */
};

struct blk_journal {
    struct blk_journal_entry *first, **last;
    uint64_t bytes;
    uint64_t seq;                           /* of the newest entry there was */
};

void blk_journal_init(struct blk_journal *j);
/* Append a change; iov: a WRITE's data.  -ENOMEM: then let the write count as failed,
 * so that nobody relies on it. */
int blk_journal_add(struct blk_journal *j, enum blk_op op, unsigned flags, uint64_t offset,
                    uint64_t length, const struct iovec *iov, int iovcnt);
/* Drop what is not newer than seq. */
void blk_journal_trim(struct blk_journal *j, uint64_t seq);

#endif
