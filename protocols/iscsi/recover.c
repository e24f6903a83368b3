/*
 * recover.c - after a session broke, or the target said that it was reset: one fiber
 * that waits until nothing is in flight, connects again, looks whether it is still the
 * same LUN, plays the journal, and lets the queue go on.  The policy is block/net.h's.
 */
#include "protocols/iscsi/iscsi_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void recover_bury(struct iscsi_lun *lun)
{
    for (unsigned i = 0; i < lun->cfg.sessions; i++)
        if (lun->s[i].dead)
            iscsi_session_destroy(&lun->s[i]);
}

static unsigned recover_flying(const struct iscsi_lun *lun)
{
    unsigned n = 0;

    for (unsigned i = 0; i < lun->cfg.sessions; i++)
        n += lun->s[i].nflight;
    return n;
}

/* Sessions that live finish what they have, or die of their deadline. */
static void recover_quiet(struct iscsi_lun *lun)
{
    recover_bury(lun);
    while (recover_flying(lun)) {
        lun->quiet = co_self();
        co_yield();
        lun->quiet = NULL;
        recover_bury(lun);
    }
}

static void recover_wake(void *arg)
{
    struct co *c = arg;

    co_wake(c);
}

/* Sleep that close() can end. */
static void recover_sleep(struct iscsi_lun *lun, uint64_t ns)
{
    struct blk_timer t = { .fn = recover_wake, .arg = co_self() };

    if (lun->closing)
        return;
    blk_timer_set(lun->loop, &t, blk_now_ns() + ns);
    lun->recoverer = co_self();
    co_yield();
    lun->recoverer = NULL;
    blk_timer_cancel(lun->loop, &t);
}

static int recover_connect(struct iscsi_lun *lun, char *cause, size_t len)
{
    unsigned up = 0;
    int ret = 0;

    for (unsigned i = 0; i < lun->cfg.sessions && !lun->closing; i++) {
        struct iscsi_session *s = &lun->s[i];
        int r;

        if (s->disabled || (s->up && !s->dead)) {
            up += s->up;
            continue;
        }
        r = iscsi_session_connect(s);
        if (!r) {
            up++;
        } else {
            snprintf(cause, len, "%s", s->cause);
            ret = r;
            if (!up)
                break;              /* the server is away: do not ask it again for each */
        }
    }
    return up ? 0 : ret ? ret : -ENOTCONN;
}

/* The same LUN, and how large is it now? */
static int recover_look(struct iscsi_lun *lun, struct iscsi_session *s, char *cause, size_t len)
{
    char serial[sizeof(lun->serial)];
    uint64_t blocks;
    uint32_t block;
    int ret = iscsi_probe_ready(lun, s);

    if (!ret)
        ret = iscsi_probe_capacity(lun, s, &block, &blocks);
    if (ret < 0) {
        snprintf(cause, len, "the LUN does not answer: %s", strerror(-ret));
        return ret;
    }
    if (lun->serial[0] && !iscsi_probe_serial(lun, s, serial, sizeof(serial)) &&
        strcmp(serial, lun->serial)) {
        snprintf(cause, len, "there is another LUN at its place");
        return -ENXIO;
    }
    if (block != lun->block) {
        snprintf(cause, len, "the block size changed from %u to %u", lun->block, block);
        return -ENXIO;
    }
    if (blocks != lun->blocks)
        blk_report("%s: the LUN's size changed from %llu to %llu bytes", lun->net.shown,
                   (unsigned long long)(lun->blocks * block), (unsigned long long)(blocks * block));
    lun->blocks = blocks;
    /* A node that shrank would read as zeros past its end; the target says EIO. */
    lun->n->size = BLK_MAX(lun->n->size, blocks * block);
    lun->capacity_changed = false;
    return 0;
}

/* Old changes that could come after what is sent from now on? */
static int recover_lingering(const struct iscsi_lun *lun, char *cause, size_t len)
{
    for (unsigned i = 0; i < lun->cfg.sessions; i++) {
        const struct iscsi_session *s = &lun->s[i];

        if ((!s->up || s->dead) && iscsi_session_lingers(s)) {
            snprintf(cause, len, "the target has not ended a session with unanswered writes: %.150s",
                     s->cause);
            return -ENOTCONN;
        }
    }
    return 0;
}

static int recover_settle(struct iscsi_lun *lun, char *cause, size_t len)
{
    int ret = 0;

    for (unsigned i = 0; !ret && i < lun->cfg.sessions; i++)
        if (lun->s[i].up && !lun->s[i].dead)
            ret = recover_look(lun, &lun->s[i], cause, len);
    ret = ret ? ret : recover_lingering(lun, cause, len);
    if (ret < 0 || !lun->replay)
        return ret;
    lun->replay = false;            /* a session that breaks or a reset sets it again */
    ret = iscsi_journal_replay(lun);
    if (!ret && lun->replay)
        ret = -EAGAIN;
    if (ret == -ENOTCONN || ret == -EAGAIN || ret == -EBUSY) {
        lun->replay = true;
        snprintf(cause, len, "interrupted while sending writes again");
        return ret;
    }
    if (ret < 0) {
        blk_report("%s: acknowledged writes could not be sent again: %s", lun->net.shown,
                   strerror(-ret));
        iscsi_journal_lose(lun, ret);
    }
    return 0;
}

static bool recover_once(struct iscsi_lun *lun)
{
    char cause[256] = "connection lost";
    int ret;

    recover_quiet(lun);
    ret = lun->closing ? -ESHUTDOWN : recover_connect(lun, cause, sizeof(cause));
    if (!ret)
        ret = recover_settle(lun, cause, sizeof(cause));
    for (unsigned i = 0; !ret && i < lun->cfg.sessions; i++)
        if (lun->s[i].dead && !lun->s[i].disabled && lun->s[i].ctx)
            ret = -ENOTCONN;
    if (!ret && !lun->replay)
        return true;
    if (lun->closing)
        return true;
    blk_net_lost(&lun->net, cause);     /* unless it was a lost connection to begin with */
    if (blk_net_over(&lun->net, cause))
        iscsi_fail_queued(lun, -EIO);
    recover_sleep(lun, blk_net_next(&lun->net));
    return false;
}

static bool recover_is_missing(const struct iscsi_session *s)
{
    return s->dead && !s->disabled && !s->ctx;
}

/* The disk goes on without sessions that did not come back: trying them is no outage. */
static void recover_without(struct iscsi_lun *lun)
{
    for (unsigned i = 0; i < lun->cfg.sessions; i++)
        if (recover_is_missing(&lun->s[i]))
            lun->s[i].cause[0] = 0;
    lun->missing_ns = blk_now_ns() + ISCSI_MISSING_NS;
}

void iscsi_recover_missing(struct iscsi_lun *lun, uint64_t now)
{
    for (unsigned i = 0; now >= lun->missing_ns && i < lun->cfg.sessions; i++)
        if (recover_is_missing(&lun->s[i]))
            iscsi_recover(lun);
}

static void recover_main(void *arg)
{
    struct iscsi_lun *lun = arg;

    while (!recover_once(lun))
        ;
    recover_without(lun);
    if (lun->closing)
        iscsi_fail_queued(lun, -EIO);
    else
        blk_net_up(&lun->net);
    lun->recovering = false;
    co_wake_all(&lun->recovered);
    iscsi_dispatch(lun);
}

void iscsi_recover(struct iscsi_lun *lun)
{
    const char *cause = NULL;

    if (!lun->n || lun->recovering || lun->closing)
        return;
    for (unsigned i = 0; i < lun->cfg.sessions && !cause; i++)
        if (lun->s[i].dead && !lun->s[i].disabled && lun->s[i].cause[0])
            cause = lun->s[i].cause;
    if (cause)
        blk_net_lost(&lun->net, cause);
    lun->recovering = true;
    if (co_start(lun->loop, recover_main, lun) < 0) {
        lun->recovering = false;        /* the tick tries again */
    }
}
