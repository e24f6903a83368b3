/*
 * blkdebug.h - what the filter blkdebug and its rules share.
 */
#ifndef PLATTER_BLKDEBUG_H
#define PLATTER_BLKDEBUG_H

#include "block/driver.h"

enum dbg_action { DBG_INJECT, DBG_SET_STATE, DBG_SUSPEND };

#define DBG_STATUS (1u << BLK_OPS)

struct dbg_rule {
    int event;                      /* dbg_event_find()'s */
    enum dbg_action action;
    uint64_t state;                 /* 0: any */
    uint64_t new_state;             /* set-state */
    int error;                      /* inject-error: positive errno, 0: none */
    uint64_t offset;                /* ... only over this byte; UINT64_MAX: anywhere */
    unsigned iotypes;               /* ... 1 << enum blk_op, or DBG_STATUS */
    bool once;
    uint64_t active;                /* in force; the larger the later; 0: not */
    char *tag;                      /* suspend */
    struct dbg_rule *next, **prev;
};

struct dbg {
    struct dbg_rule *rules;         /* the newest first */
    uint64_t state, serial;
    uint64_t changes, flushed;      /* requests that change something: all, those before the last
                                       flush that succeeded */
    struct held *held;
};

/* What QEMU calls an event, as a number; -1: there is no such event. */
int dbg_event_find(const char *name);
/* A new rule before all others; NULL: no memory. */
struct dbg_rule *dbg_rule_add(struct dbg *d);
void dbg_rule_remove(struct dbg *d, struct dbg_rule *r);
/* Those of o's "inject-error.*" and "set-state.*", and of the file that "config" names. */
int dbg_rules_read(struct dbg *d, struct blk_opts *o, struct blk_error *e);

#endif
