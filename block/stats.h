/*
 * stats.h - the writing side of struct blk_stats, for the core.
 */
#ifndef PLATTER_STATS_H
#define PLATTER_STATS_H

#include "block/block.h"

/* Add one request that took ns to op's latency histogram, sum and maximum.
 * The counts of operations and bytes are the caller's.  Owner thread. */
void blk_stats_record(struct blk_stats *s, enum blk_op op, uint64_t ns);

#endif
