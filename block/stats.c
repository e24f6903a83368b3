/*
 * stats.c - log-linear latency histograms.
 *
 * Buckets 0..7 hold 0..7 ns each; from there every power of two is cut into
 * eight, so a value is known to 12.5 %.  The highest used index is 495 of the
 * 512 in struct blk_stats.
 */
#include "block/stats.h"

#define BUCKETS (64 * 8)

static unsigned bucket_of(uint64_t ns)
{
    if (ns < 8)
        return (unsigned)ns;
    unsigned exp = 63 - (unsigned)__builtin_clzll(ns);
    return (exp - 2) * 8 + (unsigned)(ns >> (exp - 3) & 7);
}

/* The largest value that falls into bucket i. */
static uint64_t bucket_top(unsigned i)
{
    if (i < 8)
        return i;
    unsigned exp = i / 8 + 2;
    if (exp > 63)
        return UINT64_MAX;
    return ((8 + (uint64_t)(i % 8)) << (exp - 3)) + ((1ull << (exp - 3)) - 1);
}

void blk_stats_record(struct blk_stats *s, enum blk_op op, uint64_t ns)
{
    s->latency[op][bucket_of(ns)]++;
    s->latency_sum[op] += ns;
    if (ns > s->latency_max[op])
        s->latency_max[op] = ns;
}

uint64_t blk_stats_quantile(const uint64_t *hist, double q)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < BUCKETS; i++)
        total += hist[i];
    if (!total)
        return 0;
    double want = q * (double)total;    /* this many values are at or below */
    uint64_t seen = 0;
    unsigned last = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        if (!hist[i])
            continue;
        seen += hist[i];
        last = i;
        if ((double)seen >= want)
            break;
    }
    return bucket_top(last);
}
