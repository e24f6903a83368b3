/*
 * check_counts.h - one counter per cluster of a file of any size, in memory
 * that grows with what is counted and not with the file.
 *
 * Counters live in pages of 4096, found through a radix tree; a page exists once
 * a counter in it is not zero.  A page whose counters are all one costs no data,
 * a page of zeros and ones one bit each, others 8 or 64 bits each.
 */
#ifndef PLATTER_QCOW2_CHECK_COUNTS_H
#define PLATTER_QCOW2_CHECK_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COUNTS_PAGE 4096u               /* counters in a page */

struct counts_page;
/* What several counters may use together, in bytes. */
struct counts_budget { size_t used, max; };

struct counts {
    void *root;
    unsigned height;                    /* levels of the tree; 0: empty */
    struct counts_budget *budget;
    uint64_t last_no;                   /* page number + 1 of last; 0: none */
    struct counts_page *last;
};

void counts_init(struct counts *c, struct counts_budget *budget);
void counts_free(struct counts *c);     /* c is empty and usable afterwards */

static inline bool counts_empty(const struct counts *c) { return !c->height; }
uint64_t counts_get(struct counts *c, uint64_t k);
/* 0, or -ENOMEM past the budget. */
int counts_set(struct counts *c, uint64_t k, uint64_t value);
/* counter += n, at most up to UINT64_MAX; *now (may be NULL) is what it is then. */
int counts_add(struct counts *c, uint64_t k, uint64_t n, uint64_t *now);

/* Make counters 1 that are 0, from k on, up to n of them and within one page: *done, 0
 * where the first is not 0.  0, or -ENOMEM. */
int counts_first(struct counts *c, uint64_t k, uint64_t n, uint64_t *done);
/* Are the n counters from k on all 1? */
bool counts_all_one(struct counts *c, uint64_t k, uint64_t n);

/* The counters [k, k+n) of one page (n <= COUNTS_PAGE - k % COUNTS_PAGE) into
 * out.  False, with out untouched, if all are zero because there is no page. */
bool counts_read(struct counts *c, uint64_t k, size_t n, uint64_t *out);
/* Move *k up to the first counter at or after it whose page exists. False: none. */
bool counts_seek(struct counts *c, uint64_t *k);

#endif
