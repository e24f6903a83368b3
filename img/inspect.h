/*
 * inspect.h - what the files of platter-img inspect share: a report, one JSON object that
 * grows (inspect.c says how) and is printed at the end.
 */
#ifndef PLATTER_IMG_INSPECT_H
#define PLATTER_IMG_INSPECT_H

#include "img/img.h"

/* From harmless to worst; the last one found is the verdict. */
enum verdict { VERDICT_SAFE, VERDICT_DAMAGED, VERDICT_SUSPICIOUS, VERDICT_REFUSED };

struct report {
    json_t *o;
    enum verdict verdict;
};

#define INSPECT_LINES 20u           /* of what check says */

/* The verdict is at least v, and this is why: "reasons" of o. */
void report_reason(struct report *r, enum verdict v, const char *fmt, ...) BLK_PRINTF(3, 4);
/* Good to know, nothing more: "notes" of o. */
void report_note(struct report *r, const char *fmt, ...) BLK_PRINTF(2, 3);
const char *verdict_name(enum verdict v);

/* inspect_names.c: "references" of o, each with what is dangerous about it. */
void inspect_names(struct report *r, const json_t *references);
/* inspect_check.c: "check" and "repair" of o: what check finds in n, and what is left of
 * it when a repair is tried on a copy in memory.  args: what n was opened with.  Fiber. */
void inspect_check(struct report *r, struct blk_node *n, const struct blk_open_args *args);
/* inspect_tail.c: bytes that belong to another format or to none.  Fiber. */
void inspect_bytes(struct report *r, struct blk_node *file, const char *format);

/* inspect_print.c */
void inspect_print(const json_t *o);

#endif
