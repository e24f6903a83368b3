/*
 * blkdebug_rules.c - the rules of a blkdebug node, from options or from a file.
 */
#include "formats/blkdebug.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RULES_MAX 1024u
#define RULES_FILE_MAX (1u << 20)

/* All that QEMU knows.  Not all of them happen here: metadata that QEMU writes at once is
 * written by a flush (formats/qcow2/flush.c), and some steps do not exist. */
static const char *const events[] = {
    "l1_update", "l1_grow_alloc_table", "l1_grow_write_table", "l1_grow_activate_table",
    "l2_load", "l2_update", "l2_update_compressed", "l2_alloc_cow_read", "l2_alloc_write",
    "read_aio", "read_backing_aio", "read_compressed", "write_aio", "write_compressed",
    "vmstate_load", "vmstate_save", "cow_read", "cow_write", "reftable_load", "reftable_grow",
    "reftable_update", "refblock_load", "refblock_update", "refblock_update_part",
    "refblock_alloc", "refblock_alloc_hookup", "refblock_alloc_write",
    "refblock_alloc_write_blocks", "refblock_alloc_write_table", "refblock_alloc_switch_table",
    "cluster_alloc", "cluster_alloc_bytes", "cluster_free", "flush_to_os", "flush_to_disk",
    "pwritev_rmw_head", "pwritev_rmw_after_head", "pwritev_rmw_tail", "pwritev_rmw_after_tail",
    "pwritev", "pwritev_zero", "pwritev_done", "empty_image_prepare", "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters", "cor_write", "cluster_alloc_space", "none",
};

int dbg_event_find(const char *name)
{
    for (size_t i = 0; i < BLK_ARRAY_SIZE(events); i++)
        if (!strcmp(name, events[i]))
            return (int)i;
    return -1;
}

struct dbg_rule *dbg_rule_add(struct dbg *d)
{
    struct dbg_rule *r = calloc(1, sizeof(*r));

    if (r) {
        r->next = d->rules;
        r->prev = &d->rules;
        if (r->next)
            r->next->prev = &r->next;
        d->rules = r;
    }
    return r;
}

void dbg_rule_remove(struct dbg *d, struct dbg_rule *r)
{
    *r->prev = r->next;
    if (r->next)
        r->next->prev = r->prev;
    free(r->tag);
    free(r);
}

/* ---- one rule's options ------------------------------------------------------------------ */

static int take_event(struct dbg_rule *r, struct blk_opts *o, struct blk_error *e)
{
    const char *event = blk_opts_get(o, "event");

    if (!event)
        return blk_err(e, EINVAL, "Missing event name for rule");
    r->event = dbg_event_find(event);
    return r->event < 0 ? blk_err(e, EINVAL, "invalid parameter value: %s", event) : 0;
}

static int take_iotype(struct dbg_rule *r, struct blk_opts *o, struct blk_error *e)
{
    static const struct { const char *name; unsigned types; } iotypes[] = {
        { "read", 1u << BLK_READ }, { "write", 1u << BLK_WRITE },
        { "write-zeroes", 1u << BLK_WRITE_ZEROES }, { "discard", 1u << BLK_DISCARD },
        { "flush", 1u << BLK_FLUSH }, { "block-status", DBG_STATUS },
    };
    const char *s = blk_opts_get(o, "iotype");

    r->iotypes = (1u << BLK_OPS) - 1;
    for (size_t i = 0; s && i < BLK_ARRAY_SIZE(iotypes); i++) {
        if (!strcmp(s, iotypes[i].name)) {
            r->iotypes = iotypes[i].types;
            return 0;
        }
    }
    return s ? blk_err(e, EINVAL, "invalid parameter value: %s", s) : 0;
}

static int take_inject(struct dbg *d, struct dbg_rule *r, struct blk_opts *o, struct blk_error *e)
{
    uint64_t error = EIO, sector = UINT64_MAX;
    bool immediately;
    int err = blk_opts_get_u64(o, "errno", &error, e);

    err = err ? err : blk_opts_get_u64(o, "sector", &sector, e);
    err = err ? err : blk_opts_get_bool(o, "once", &r->once, e);
    err = err ? err : blk_opts_get_bool(o, "immediately", &immediately, e);
    err = err ? err : take_iotype(r, o, e);
    r->error = (int)error;
    r->offset = sector > UINT64_MAX / 512 ? UINT64_MAX : sector * 512;
    if (r->event == dbg_event_find("none"))
        r->active = ++d->serial;            /* always in force */
    return err;
}

/* By enum dbg_action. */
static const struct { const char *name; enum dbg_action action; } groups[] = {
    { "inject-error", DBG_INJECT }, { "set-state", DBG_SET_STATE },
};

static int add_rule(struct dbg *d, enum dbg_action action, struct blk_opts *o,
                    struct blk_error *e)
{
    struct dbg_rule *r = dbg_rule_add(d);

    if (!r)
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    r->action = action;
    int err = take_event(r, o, e);
    err = err ? err : blk_opts_get_u64(o, "state", &r->state, e);
    if (action == DBG_SET_STATE)
        err = err ? err : blk_opts_get_u64(o, "new_state", &r->new_state, e);
    else
        err = err ? err : take_inject(d, r, o, e);
    if (!err && blk_opts_unused(o))
        err = blk_err(e, EINVAL, "[%s] section doesn't support the option '%s'",
                      groups[action].name, blk_opts_unused(o));
    return err;
}

/* ---- from options ------------------------------------------------------------------------ */

/* "GROUP.0.event", "GROUP.1.event", ... or, of a single one, "GROUP.event". */
static int read_group(struct dbg *d, size_t g, struct blk_opts *o, struct blk_error *e)
{
    char prefix[48];
    int err = 0;

    snprintf(prefix, sizeof(prefix), "%s.", groups[g].name);
    struct blk_opts *all = blk_opts_take(o, prefix);
    bool single = blk_opts_has(all, "event");
    for (unsigned i = 0; !err && blk_opts_at(all, 0, NULL, NULL) && i < RULES_MAX; i++) {
        snprintf(prefix, sizeof(prefix), "%u.", i);
        struct blk_opts *one = single ? blk_opts_dup(all) : blk_opts_take(all, prefix);
        err = blk_opts_at(one, 0, NULL, NULL) ? add_rule(d, groups[g].action, one, e)
              : blk_err(e, EINVAL, "Unused option '%s.%s'", groups[g].name, blk_opts_unused(all));
        blk_opts_free(one);
        if (single)
            break;
    }
    blk_opts_free(all);
    return err;
}

/* ---- from a file --------------------------------------------------------------------------- */

struct section {
    int group;                      /* -1: none yet */
    struct blk_opts *o;
};

static bool is_option(const char *name)
{
    static const char *const names[] = {
        "event", "state", "new_state", "iotype", "errno", "sector", "once", "immediately",
    };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(names); i++)
        if (!strcmp(name, names[i]))
            return true;
    return false;
}

static int section_end(struct dbg *d, struct section *s, struct blk_error *e)
{
    int err = s->group < 0 ? 0 : add_rule(d, groups[s->group].action, s->o, e);

    blk_opts_free(s->o);
    s->o = blk_opts_new();
    s->group = -1;
    return err;
}

static int section_begin(struct dbg *d, struct section *s, const char *name, struct blk_error *e)
{
    int err = section_end(d, s, e);

    for (size_t i = 0; i < BLK_ARRAY_SIZE(groups); i++)
        s->group = strcmp(name, groups[i].name) ? s->group : (int)i;
    return err || s->group >= 0 ? err : blk_err(e, EINVAL, "There is no option group '%s'", name);
}

/* "[GROUP]", "[GROUP "ID"]", "key = "value"", a comment or nothing.  As in QEMU a word is a key
 * whatever follows it, and its value empty if that is none. */
static int take_line(struct dbg *d, struct section *s, char *line, struct blk_error *e)
{
    char name[64], value[1024] = "";

    if (*line == '#' || *line == '\n' || !*line)
        return 0;
    if (sscanf(line, "[%63[^] \"]", name) == 1)
        return section_begin(d, s, name, e);
    if (s->group < 0)
        return blk_err(e, EINVAL, "no group defined");
    if (sscanf(line, " %63s = \"%1023[^\"]\"", name, value) < 1)
        return blk_err(e, EINVAL, "parse error");
    if (!is_option(name))
        return blk_err(e, EINVAL, "Invalid parameter '%s'", name);
    blk_opts_set(s->o, name, value);
    return 0;
}

static int read_file(struct dbg *d, const char *path, struct blk_error *e)
{
    struct section s = { -1, blk_opts_new() };
    FILE *f = fopen(path, "r");
    char line[2048];
    size_t total = 0;
    int err = f ? 0 : blk_err_errno(e, errno, "Could not read blkdebug config file");

    while (f && !err && fgets(line, sizeof(line), f)) {
        total += strlen(line);
        err = total > RULES_FILE_MAX ? blk_err(e, E2BIG, "Could not parse blkdebug config file")
              : take_line(d, &s, line, e);
    }
    if (f)
        fclose(f);
    err = err ? err : section_end(d, &s, e);
    blk_opts_free(s.o);
    return err;
}

int dbg_rules_read(struct dbg *d, struct blk_opts *o, struct blk_error *e)
{
    const char *file = blk_opts_get(o, "config");
    int err = file && *file ? read_file(d, file, e) : 0;

    for (size_t g = 0; !err && g < BLK_ARRAY_SIZE(groups); g++)
        err = read_group(d, g, o, e);
    return err;
}
