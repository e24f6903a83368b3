/*
 * net.c - deadlines, reconnecting and back-off of the network protocols: the state of
 * an outage and its reports.  The policy is stated in net.h; connections and requests
 * are the drivers'.
 */
#include "block/net.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>

#define NET_PROBE_S 10              /* seconds between keepalive probes */
#define NET_DROPS   64              /* reads of what comes too late, at once */
#define NET_GONE_MS 1000000000      /* the kernel must not give up before we do */

static int net_seconds(struct blk_opts *o, const char *key, uint64_t *ns, uint64_t def,
                       struct blk_error *e)
{
    uint64_t s = def;
    int r = blk_opts_get_u64(o, key, &s, e);
    if (r)
        return r;
    if (s > BLK_NET_SECONDS_MAX)
        return blk_err(e, EINVAL, "Parameter '%s' is larger than %u seconds", key,
                       BLK_NET_SECONDS_MAX);
    *ns = s * 1000000000u;
    return 0;
}

int blk_net_init(struct blk_net *net, struct blk_opts *o, const char *shown,
                 struct blk_error *e)
{
    *net = (struct blk_net){ 0 };
    snprintf(net->shown, sizeof(net->shown), "%s", shown);
    int r = net_seconds(o, "timeout", &net->timeout_ns, BLK_NET_TIMEOUT, e);
    if (!net->timeout_ns)
        net->timeout_ns = BLK_NET_SECONDS_MAX * 1000000000ull;
    return r ? r : net_seconds(o, "reconnect", &net->reconnect_ns, BLK_NET_RECONNECT, e);
}

uint64_t blk_net_step(unsigned tries)
{
    return tries > 5 ? BLK_NET_STEP_MAX_NS : BLK_MIN(BLK_NET_STEP_NS << tries,
                                                     BLK_NET_STEP_MAX_NS);
}

void blk_net_lost(struct blk_net *net, const char *cause)
{
    if (net->down_since)
        return;
    net->down_since = blk_now_ns();
    if (net->reconnect_ns)
        blk_report("%s: %s; reconnecting", net->shown, cause);
}

uint64_t blk_net_next(struct blk_net *net)
{
    if (net->given_up)
        return BLK_NET_STEP_MAX_NS;
    return blk_net_step(net->tries++);
}

bool blk_net_over(struct blk_net *net, const char *cause)
{
    if (net->given_up)
        return true;
    if (!net->down_since || blk_now_ns() - net->down_since < net->reconnect_ns)
        return false;
    net->given_up = true;
    blk_report("%s: %s; given up after %u s, requests fail until the server is back",
               net->shown, cause, (unsigned)(net->reconnect_ns / 1000000000u));
    return true;
}

void blk_net_up(struct blk_net *net)
{
    if (!net->down_since)
        return;
    uint64_t ms = (blk_now_ns() - net->down_since) / 1000000u;
    blk_report("%s: connected again after %u.%u s", net->shown, (unsigned)(ms / 1000),
               (unsigned)(ms % 1000 / 100));
    net->down_since = 0;
    net->given_up = false;
}

bool blk_net_expired(const struct blk_net *net, uint64_t start_ns, uint64_t now_ns)
{
    return now_ns - start_ns >= net->timeout_ns + net->reconnect_ns;
}

static void hold_option(int fd, int level, int option, int value)
{
    (void)setsockopt(fd, level, option, &value, sizeof(value));     /* TCP's, if it is TCP */
}

int blk_net_hold(int fd)
{
    int held = fcntl(fd, F_DUPFD_CLOEXEC, 0);

    if (held < 0)
        return -errno;
    hold_option(held, IPPROTO_TCP, TCP_USER_TIMEOUT, NET_GONE_MS);
    hold_option(held, IPPROTO_TCP, TCP_KEEPIDLE, NET_PROBE_S);
    hold_option(held, IPPROTO_TCP, TCP_KEEPINTVL, NET_PROBE_S);
    hold_option(held, SOL_SOCKET, SO_KEEPALIVE, 1);
    return held;
}

bool blk_net_ended(int held, int error)
{
    struct pollfd p = { .fd = held, .events = POLLRDHUP };

    return poll(&p, 1, 0) > 0 && p.revents & (POLLRDHUP | POLLHUP) &&
           (!error || error == ECONNRESET || error == EPIPE);
}

void blk_net_leave(int held)
{
    shutdown(held, SHUT_WR);
}

bool blk_net_left(int held)
{
    char drop[16384];

    /* A server whose answers nobody takes would wait with them for ever. */
    for (unsigned i = 0; i < NET_DROPS && recv(held, drop, sizeof(drop), MSG_DONTWAIT) > 0; i++)
        ;
    return blk_net_ended(held, 0);
}
