/*
 * session.c - one connection to the target: connecting and logging in step by step,
 * events, the keep-alive, and its end.
 *
 * libiscsi calls back from iscsi_service() and iscsi_destroy_context(); the callbacks
 * here only note what happened and wake the fiber that connects.
 */
#include "protocols/iscsi/iscsi_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* ---- events ------------------------------------------------------------------------ */

static void session_unwatch(struct iscsi_session *s)
{
    if (s->watch.fd >= 0)
        blk_watch_del(s->lun->loop, &s->watch);
    s->watch.fd = -1;
}

static void session_event(void *arg, uint32_t events)
{
    struct iscsi_session *s = arg;

    if (!s->dead && iscsi_service(s->ctx, (int)events) < 0)
        iscsi_session_kill(s, iscsi_get_error(s->ctx));
    iscsi_session_arm(s);
}

void iscsi_session_arm(struct iscsi_session *s)
{
    int fd = s->ctx && !s->dead ? iscsi_get_fd(s->ctx) : -1;
    uint32_t events;

    if (fd != s->watch.fd)
        session_unwatch(s);
    if (fd < 0)
        return;
    events = (uint32_t)iscsi_which_events(s->ctx);
    if (s->watch.fd == fd) {
        blk_watch_mod(s->lun->loop, &s->watch, events);
        return;
    }
    s->watch = (struct blk_watch){ .fd = fd, .events = events, .fn = session_event, .arg = s };
    if (blk_watch_add(s->lun->loop, &s->watch) < 0) {
        s->watch.fd = -1;
        iscsi_session_kill(s, "cannot watch its socket");
    }
}

void iscsi_session_push(struct iscsi_session *s)
{
    if (s->ctx && !s->dead && s->watch.fd >= 0 && iscsi_which_events(s->ctx) & POLLOUT &&
        iscsi_service(s->ctx, POLLOUT) < 0)
        iscsi_session_kill(s, iscsi_get_error(s->ctx));
    iscsi_session_arm(s);
}

/* libiscsi's last text, for people. */
static void session_set_cause(struct iscsi_session *s, const char *text)
{
    if (s->cause[0])
        return;                     /* the first is the true one */
    if (!text || !*text || strstr(text, "reconnect"))
        text = "connection lost";
    snprintf(s->cause, sizeof(s->cause), "%s", text);
    s->cause[strcspn(s->cause, "\r\n")] = 0;
}

/* ---- steps -------------------------------------------------------------------------- */

static void session_step_end(struct iscsi_session *s, int status)
{
    struct co *c = s->waiter;

    s->step_done = true;
    s->step_status = status;
    s->waiter = NULL;
    if (c)
        co_wake(c);
}

static void session_step_cb(struct iscsi_context *ctx, int status, void *data, void *arg)
{
    struct iscsi_session *s = arg;

    /* The callback of a connection comes a second time when it breaks. */
    if (s->ctx != ctx || s->step_done)
        return;
    if (status != SCSI_STATUS_GOOD && status != SCSI_STATUS_REDIRECT)
        session_set_cause(s, iscsi_get_error(ctx));
    session_step_end(s, status);
}

static void session_step_begin(struct iscsi_session *s)
{
    s->step_done = false;
    s->step_status = SCSI_STATUS_ERROR;
    s->nop_ns = blk_now_ns();
}

static int session_step_wait(struct iscsi_session *s)
{
    iscsi_session_arm(s);
    while (!s->step_done && !s->dead) {
        s->waiter = co_self();
        co_yield();
    }
    s->waiter = NULL;
    s->step_done = true;
    return s->dead ? SCSI_STATUS_ERROR : s->step_status;
}

void iscsi_session_kill(struct iscsi_session *s, const char *cause)
{
    if (s->dead)
        return;
    s->dead = true;
    s->lun->replay = true;
    session_set_cause(s, cause);
    if (!s->step_done)
        session_step_end(s, SCSI_STATUS_ERROR);
    if (s->up)
        iscsi_recover(s->lun);
}

/* Answers late, keep-alive unanswered, steps that take too long.  What waited behind a slow
 * command has its time from that one's answer on. */
void iscsi_session_tick(struct iscsi_session *s, uint64_t now)
{
    const struct iscsi_op *oldest = s->flight.first;
    uint64_t timeout = s->lun->net.timeout_ns;
    char text[64];

    if (!s->ctx || s->dead)
        return;
    snprintf(text, sizeof(text), "no answer for %u s", (unsigned)(timeout / 1000000000u));
    if (oldest && now - BLK_MAX(oldest->sent_ns, s->moved_ns) >= timeout) {
        iscsi_session_kill(s, text);
    } else if (!s->up) {
        if (!s->step_done && now - s->nop_ns >= timeout)
            iscsi_session_kill(s, text);
    } else if (now - s->nop_ns >= ISCSI_NOP_NS) {
        s->nop_ns = now;
        if (iscsi_get_nops_in_flight(s->ctx) >= ISCSI_NOPS_LOST)
            iscsi_session_kill(s, "keep-alive unanswered");
        else if (iscsi_nop_out_async(s->ctx, NULL, NULL, 0, NULL) < 0)
            iscsi_session_kill(s, iscsi_get_error(s->ctx));
        else
            iscsi_session_push(s);
    }
}

/* ---- connecting ------------------------------------------------------------------------ */

struct resolve {
    const char *host;
    char numeric[INET6_ADDRSTRLEN];
    bool v6;
    int err;
};

/* On a pool thread: asking a name server may take long. */
static void session_resolve(void *arg)
{
    struct resolve *r = arg;
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *ai;

    r->err = getaddrinfo(r->host, NULL, &hints, &ai);
    if (r->err)
        return;
    r->v6 = ai->ai_family == AF_INET6;
    r->err = getnameinfo(ai->ai_addr, ai->ai_addrlen, r->numeric, sizeof(r->numeric), NULL, 0,
                         NI_NUMERICHOST);
    freeaddrinfo(ai);
}

static int session_portal(struct iscsi_session *s, char *buf, size_t len)
{
    const struct iscsi_config *c = &s->lun->cfg;
    struct resolve r = { .host = c->host };
    struct in_addr v4;

    if (inet_pton(AF_INET, c->host, &v4) == 1) {
        snprintf(buf, len, "%s:%u", c->host, c->port);
        return 0;
    }
    co_work(session_resolve, &r);
    if (r.err) {
        snprintf(s->cause, sizeof(s->cause), "host '%.200s': %s", c->host, gai_strerror(r.err));
        return -EHOSTUNREACH;
    }
    snprintf(buf, len, r.v6 ? "[%s]:%u" : "%s:%u", r.numeric, c->port);
    return 0;
}

static int session_create(struct iscsi_session *s)
{
    const struct iscsi_config *c = &s->lun->cfg;

    s->ctx = iscsi_create_context(c->initiator);
    if (!s->ctx)
        return -ENOMEM;
    iscsi_set_noautoreconnect(s->ctx, 1);
    iscsi_set_reconnect_max_retries(s->ctx, 0);
    iscsi_set_isid_random(s->ctx, s->isid, s->index);
    if (iscsi_set_targetname(s->ctx, c->target) < 0 ||
        iscsi_set_session_type(s->ctx, ISCSI_SESSION_NORMAL) < 0 ||
        iscsi_set_header_digest(s->ctx, c->digest) < 0 ||
        (c->user[0] && iscsi_set_initiator_username_pwd(s->ctx, c->user, c->password) < 0) ||
        (c->target_user[0] &&
         iscsi_set_target_username_pwd(s->ctx, c->target_user, c->target_password) < 0))
        return -EINVAL;
    return 0;
}

static int session_tcp(struct iscsi_session *s, const char *portal)
{
    session_step_begin(s);
    if (iscsi_connect_async(s->ctx, portal, session_step_cb, s) < 0)
        return -ECONNREFUSED;
    return session_step_wait(s) == SCSI_STATUS_GOOD ? 0 : -ECONNREFUSED;
}

static int session_login(struct iscsi_session *s, const char *first)
{
    char portal[320];

    snprintf(portal, sizeof(portal), "%s", first);
    for (unsigned i = 0; i <= ISCSI_REDIRECTS_MAX; i++) {
        int status, ret = session_tcp(s, portal);

        if (ret < 0)
            return ret;
        session_step_begin(s);
        if (iscsi_login_async(s->ctx, session_step_cb, s) < 0)
            return -EIO;
        status = session_step_wait(s);
        if (status == SCSI_STATUS_GOOD)
            return 0;
        if (status != SCSI_STATUS_REDIRECT || !iscsi_get_target_address(s->ctx)[0])
            return -EIO;
        snprintf(portal, sizeof(portal), "%s", iscsi_get_target_address(s->ctx));
        session_unwatch(s);
        iscsi_disconnect(s->ctx);
    }
    snprintf(s->cause, sizeof(s->cause), "the target redirects without end");
    return -ELOOP;
}

/* libiscsi tells causes as text only. */
static int session_errno(const char *cause, int ret)
{
    if (strcasestr(cause, "authentication") || strcasestr(cause, "authorization") ||
        strcasestr(cause, "CHAP"))
        return -EACCES;
    if (strcasestr(cause, "target not found"))
        return -ENOENT;
    return ret;
}

int iscsi_session_connect(struct iscsi_session *s)
{
    char portal[320];
    int ret;

    iscsi_session_destroy(s);
    s->dead = false;
    s->step_done = true;
    s->cause[0] = 0;
    ret = session_portal(s, portal, sizeof(portal));
    if (ret < 0)
        return ret;
    ret = session_create(s);
    if (!ret)
        ret = session_login(s, portal);
    if (!ret) {
        iscsi_session_forget(s);        /* reinstated: the old one is over */
        s->held = blk_net_hold(iscsi_get_fd(s->ctx));
        ret = s->held < 0 ? s->held : 0;
    }
    if (!ret) {
        s->up = true;
        s->nop_ns = blk_now_ns();
        return 0;
    }
    session_set_cause(s, s->ctx ? iscsi_get_error(s->ctx) : NULL);
    ret = session_errno(s->cause, ret);
    iscsi_session_destroy(s);
    return ret;
}

void iscsi_session_destroy(struct iscsi_session *s)
{
    struct iscsi_context *ctx = s->ctx;

    session_unwatch(s);
    s->up = false;
    s->dead = true;
    s->step_done = true;
    if (!ctx)
        return;
    iscsi_destroy_context(ctx);         /* calls back all that is in flight */
    s->ctx = NULL;
    if (iscsi_session_lingers(s))
        blk_net_leave(s->held);
    else
        iscsi_session_forget(s);
}

bool iscsi_session_lingers(const struct iscsi_session *s)
{
    return s->unanswered && s->held >= 0 && !blk_net_left(s->held);
}

void iscsi_session_forget(struct iscsi_session *s)
{
    if (s->held >= 0)
        close(s->held);
    s->held = -1;
    s->unanswered = false;
}

void iscsi_session_logout(struct iscsi_session *s)
{
    if (!s->up || s->dead)
        return;
    s->up = false;                      /* its end is no outage */
    session_step_begin(s);
    if (iscsi_logout_async(s->ctx, session_step_cb, s) < 0)
        return;
    iscsi_session_push(s);
    session_step_wait(s);
}
