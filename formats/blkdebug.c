/*
 * blkdebug.c - a filter that makes requests fail or wait when something happens above it,
 * with QEMU's names for the options, the events and what happens at them:
 *
 *   driver=blkdebug,inject-error.0.event=read_aio,inject-error.0.errno=5,image.filename=a
 *   blkdebug:RULES:a.img       RULES: a file of [inject-error] and [set-state] sections
 *
 * A rule waits for its event (in its state, if it names one).  An injected error is then
 * in force for all requests (of its iotype, over its sector) until it has struck, if it is
 * "once", or until another event puts other errors in force.  Events are told by the format
 * above through blk_event(); pwritev and its kind are the filter's own.
 *
 * The filter also has limits of its own (align, max-transfer, ...), so that the format
 * above can be tested with them.  Rules are in blkdebug_rules.c.
 *
 * That a request waits or goes on is said on stdout: scripts that set breakpoints read it
 * there.
 */
#include "formats/blkdebug.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A request that waits under a tag, or the promise that the next one will (req NULL).  It
 * may wait under several, and goes on when it waits under none. */
struct held {
    struct blk_req *req;
    struct held *next;
    char tag[];
};

/* ---- events --------------------------------------------------------------------------- */

static void hold_next(struct dbg *d, struct dbg_rule *r)
{
    struct held *h = malloc(sizeof(*h) + strlen(r->tag) + 1), **last = &d->held;

    if (h) {
        memcpy(h->tag, r->tag, strlen(r->tag) + 1);
        h->req = NULL;
        h->next = NULL;
        while (*last)
            last = &(*last)->next;
        *last = h;
    }
    dbg_rule_remove(d, r);
}

static void dbg_event(struct blk_node *n, const char *name)
{
    struct dbg *d = n->state;
    int event = dbg_event_find(name);
    uint64_t state = d->state;
    bool first = true;

    /* The newest rule first; one that goes away takes only itself out of the list. */
    for (struct dbg_rule *r = d->rules, *next; r; r = next) {
        next = r->next;
        if (r->event != event || (r->state && r->state != d->state))
            continue;
        if (r->action == DBG_SET_STATE) {
            state = r->new_state;
        } else if (r->action == DBG_SUSPEND) {
            hold_next(d, r);
        } else {
            for (struct dbg_rule *o = d->rules; first && o; o = o->next)
                o->active = 0;
            first = false;
            r->active = ++d->serial;
        }
    }
    d->state = state;
}

/* ---- requests ------------------------------------------------------------------------- */

/* -errno if an error that is in force strikes [off, off + len), of a flush nothing; the latest
 * first. */
static int check_rules(struct dbg *d, unsigned iotype, uint64_t off, uint64_t len)
{
    struct dbg_rule *hit = NULL;

    for (struct dbg_rule *r = d->rules; r; r = r->next) {
        bool covers = r->offset == UINT64_MAX || (r->offset >= off && r->offset - off < len);

        if (r->active && r->iotypes & iotype && covers && (!hit || r->active > hit->active))
            hit = r;
    }
    if (!hit || !hit->error)
        return 0;
    int err = hit->error > 0 ? -hit->error : 0;     /* QEMU takes a negative one for success */
    if (hit->once)
        dbg_rule_remove(d, hit);
    return err;
}

static int dbg_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    int err = check_rules(n->state, DBG_STATUS, off, len);

    return err ? err : blk_filter_status(n, off, len, st);
}

static void write_done(struct blk_req *req)
{
    dbg_event(req->node, "pwritev_done");
}

static void flush_done(struct blk_req *req)
{
    struct dbg *d = req->node->state;

    if (!req->result)
        d->flushed = BLK_MAX(d->flushed, req->offset);
}

static void go_on(struct blk_node *n, struct blk_req *req)
{
    struct dbg *d = n->state;
    bool writes = req->op == BLK_WRITE || req->op == BLK_WRITE_ZEROES;

    if (req->op == BLK_FLUSH && (d->flushed == d->changes || n->oflags & BLK_O_NO_FLUSH)) {
        blk_complete(req, 0);           /* as in QEMU, where it would not get here */
        return;
    }
    d->changes += req->op != BLK_READ && req->op != BLK_FLUSH;
    int err = check_rules(d, 1u << req->op, req->offset, req->op == BLK_FLUSH ? 0 : req->length);

    if (req->op == BLK_FLUSH)
        req->offset = d->changes;       /* means nothing to a flush: comes back */
    if (err)
        blk_complete(req, err);
    else
        blk_forward(req, n->file, req->offset,
                    writes ? write_done : req->op == BLK_FLUSH ? flush_done : NULL);
}

static void dbg_submit(struct blk_node *n, struct blk_req *req)
{
    struct dbg *d = n->state;
    bool waits = false;

    if (req->op == BLK_WRITE)
        dbg_event(n, "pwritev");
    else if (req->op == BLK_WRITE_ZEROES)
        dbg_event(n, "pwritev_zero");
    for (struct held *h = d->held; h; h = h->next) {
        if (!h->req) {
            printf("blkdebug: Suspended request '%s'\n", h->tag);
            h->req = req;
            waits = true;
        }
    }
    if (!waits)
        go_on(n, req);
}

/* ---- breakpoints ----------------------------------------------------------------------- */

static int add_break(struct dbg *d, const char *event, const char *tag)
{
    struct dbg_rule *r = dbg_event_find(event) < 0 ? NULL : dbg_rule_add(d);

    if (!r)
        return dbg_event_find(event) < 0 ? -ENOENT : -ENOMEM;
    r->event = dbg_event_find(event);
    r->action = DBG_SUSPEND;
    r->tag = strdup(tag);
    if (!r->tag) {
        dbg_rule_remove(d, r);
        return -ENOMEM;
    }
    return 0;
}

/* The first that waits under tag goes on; -ENOENT: none does. */
static int resume(struct blk_node *n, const char *tag)
{
    struct dbg *d = n->state;

    for (struct held **p = &d->held; *p; p = &(*p)->next) {
        struct held *h = *p;

        if (!h->req || strcmp(h->tag, tag))
            continue;
        struct blk_req *req = h->req;
        printf("blkdebug: Resuming request '%s'\n", tag);
        *p = h->next;
        free(h);
        for (h = d->held; h && h->req != req; h = h->next)
            ;
        if (!h)
            go_on(n, req);
        return 0;
    }
    return -ENOENT;
}

/* -ENOENT: no request would wait under tag any more; those that do go on all the same. */
static int remove_break(struct blk_node *n, const char *tag)
{
    struct dbg *d = n->state;
    int err = -ENOENT;

    for (struct dbg_rule *r = d->rules, *next; r; r = next) {
        next = r->next;
        if (r->action == DBG_SUSPEND && !strcmp(r->tag, tag)) {
            dbg_rule_remove(d, r);
            err = 0;
        }
    }
    while (resume(n, tag) == 0)
        ;
    return err;
}

static int dbg_debug(struct blk_node *n, enum blk_debug_op op, const char *event, const char *tag)
{
    const struct dbg *d = n->state;
    bool waits = false;

    switch (op) {
    case BLK_DEBUG_BREAK:
        return add_break(n->state, event, tag);
    case BLK_DEBUG_REMOVE:
        return remove_break(n, tag);
    case BLK_DEBUG_RESUME:
        return resume(n, tag);
    default:
        for (const struct held *h = d->held; h; h = h->next)
            waits |= h->req && !strcmp(h->tag, tag);
        return waits;
    }
}

/* ---- open and close ---------------------------------------------------------------------- */

struct dbg_limits { uint64_t align, max_transfer, opt_zero, max_zero, opt_discard, max_discard; };

/* A limit of the user's: a multiple of unit below 2 GiB. */
static int take_limit(struct blk_opts *o, const char *key, uint64_t unit, uint64_t *out,
                      struct blk_error *e)
{
    int err = blk_opts_get_size(o, key, out, e);

    if (!err && *out && (*out >= INT_MAX || *out % unit))
        err = blk_err(e, EINVAL, "Cannot meet constraints with %s %llu", key,
                      (unsigned long long)*out);
    return err;
}

static int take_limits(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct dbg_limits l = { 0 };
    struct blk_limits *out = &n->limits;
    int err = blk_opts_get_size(o, "align", &l.align, e);

    if (!err && (l.align >= INT_MAX || l.align & (l.align - 1)))
        err = blk_err(e, EINVAL, "Cannot meet constraints with align %llu",
                      (unsigned long long)l.align);
    uint64_t unit = BLK_MAX(l.align, (uint64_t)n->file->limits.req_align);
    err = err ? err : take_limit(o, "max-transfer", unit, &l.max_transfer, e);
    err = err ? err : take_limit(o, "opt-write-zero", unit, &l.opt_zero, e);
    err = err ? err : take_limit(o, "max-write-zero", BLK_MAX(l.opt_zero, unit), &l.max_zero, e);
    err = err ? err : take_limit(o, "opt-discard", unit, &l.opt_discard, e);
    err = err ? err : take_limit(o, "max-discard", BLK_MAX(l.opt_discard, unit), &l.max_discard, e);
    if (err)
        return err;
    out->req_align = (uint32_t)unit;
    out->max_transfer = l.max_transfer ? (uint32_t)l.max_transfer : out->max_transfer;
    out->zero_align = l.opt_zero ? (uint32_t)l.opt_zero : out->zero_align;
    out->max_zero = l.max_zero ? l.max_zero : out->max_zero;
    out->discard_align = l.opt_discard ? (uint32_t)l.opt_discard : out->discard_align;
    out->max_discard = l.max_discard ? l.max_discard : out->max_discard;
    return 0;
}

static void dbg_free(struct dbg *d)
{
    while (d->rules)
        dbg_rule_remove(d, d->rules);
    while (d->held) {
        struct held *h = d->held;

        d->held = h->next;
        free(h);
    }
    free(d);
}

/* As QEMU calls it. */
static int show_name(struct blk_node *n, struct blk_opts *o)
{
    const char *rules = blk_opts_get(o, "config");
    char *shown;

    if (asprintf(&shown, "blkdebug:%s:%s", rules ? rules : "", n->file->shown) < 0)
        return -ENOMEM;
    free(n->shown);
    n->shown = shown;
    return 0;
}

static int dbg_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct dbg *d = calloc(1, sizeof(*d));
    int err = d ? 0 : -ENOMEM;

    blk_filter_inherit(n);
    if (d)
        d->state = 1;
    err = err ? err : dbg_rules_read(d, o, e);
    err = err ? err : take_limits(n, o, e);
    err = err ? err : show_name(n, o);
    if (err) {
        if (d)
            dbg_free(d);
        return err;
    }
    n->state = d;
    return 0;
}

static int dbg_close(struct blk_node *n, struct blk_error *e)
{
    dbg_free(n->state);
    n->state = NULL;
    return 0;
}

/* "blkdebug:RULES:IMAGE"; no RULES: none. */
static int dbg_parse_name(const char *name, struct blk_opts *o, struct blk_error *e)
{
    const char *rules = strncmp(name, "blkdebug:", 9) ? NULL : name + 9;
    const char *image = rules ? strchr(rules, ':') : NULL;

    if (!rules) {
        blk_opts_set(o, "x-image", name);
        return 0;
    }
    if (!image)
        return blk_err(e, EINVAL, "blkdebug requires both config file and image path");
    if (image > rules)
        blk_opts_setf(o, "config", "%.*s", (int)(image - rules), rules);
    blk_opts_set(o, "x-image", image + 1);
    return 0;
}

static const char *const dbg_schemes[] = { "blkdebug", NULL };

const struct blk_driver blk_blkdebug = {
    .name = "blkdebug",
    .filter = true,
    .over_images = true,
    .child = "image",
    .schemes = dbg_schemes,
    .parse_name = dbg_parse_name,
    .open = dbg_open,
    .close = dbg_close,
    .submit = dbg_submit,
    .status = dbg_status,
    .debug = dbg_debug,
    .event = dbg_event,
};
