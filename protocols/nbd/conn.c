/*
 * conn.c - one connection to the server: a libnbd handle made, negotiated, watched in the
 * loop, and closed.
 *
 * nbd_aio_connect_tcp() asks the name server before it returns, so it is called on a pool
 * thread; the handle is nobody else's until then.
 */
#include "protocols/nbd/nbd_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

/* "nbd_aio_notify_read: connect: server:1: Connection refused" without the first part. */
void nbdc_error_text(char *buf, size_t len)
{
    const char *text = nbd_get_error(), *colon = text ? strstr(text, ": ") : NULL;

    if (colon && !strncmp(text, "nbd_", 4) && !memchr(text, ' ', (size_t)(colon - text)))
        text = colon + 2;
    snprintf(buf, len, "%s", text && *text ? text : "connection lost");
    buf[strcspn(buf, "\r\n")] = 0;
}

/* ---- events --------------------------------------------------------------------- */

static void conn_unwatch(struct nbdc_conn *c)
{
    if (c->watch.fd >= 0)
        blk_watch_del(c->d->loop, &c->watch);
    c->watch.fd = -1;
}

static void conn_arm(struct nbdc_conn *c)
{
    int fd = c->fd >= 0 ? c->fd : nbd_aio_get_fd(c->h);
    unsigned way = nbd_aio_get_direction(c->h);
    uint32_t events = (way & LIBNBD_AIO_DIRECTION_READ ? EPOLLIN : 0) |
                      (way & LIBNBD_AIO_DIRECTION_WRITE ? EPOLLOUT : 0);

    /* While it connects libnbd may have opened another socket with the same number. */
    if (c->connecting || fd != c->watch.fd)
        conn_unwatch(c);
    if (fd < 0)
        return;
    if (c->watch.fd == fd) {
        if (c->watch.events != events)
            blk_watch_mod(c->d->loop, &c->watch, events);
        return;
    }
    c->watch.fd = fd;
    c->watch.events = events;
    if (blk_watch_add(c->d->loop, &c->watch) < 0) {
        c->watch.fd = -1;
        nbdc_conn_kill(c, "cannot watch its socket");
    }
}

static void conn_wake(struct nbdc_conn *c)
{
    struct co *w = c->waiter;

    c->waiter = NULL;
    if (w)
        co_wake(w);
}

void nbdc_conn_look(struct nbdc_conn *c)
{
    if (!c->h || c->dead)
        return;
    /* Back at its creation: no address of the host could be connected to. */
    if (nbd_aio_is_dead(c->h) || nbd_aio_is_closed(c->h) || nbd_aio_is_created(c->h))
        nbdc_conn_kill(c, NULL);
    else
        conn_arm(c);
    if (!c->dead && c->connecting && nbd_aio_is_ready(c->h) > 0)
        conn_wake(c);
}

/* What libnbd said, for the case that it turns out to be the end.  QEMU's words where
 * the server could not be reached. */
static void conn_note(struct nbdc_conn *c, int err, const char *text)
{
    bool reaching = !strncmp(text, "connect: ", 9);
    char address[400];

    nbdc_config_address(&c->d->cfg, address, sizeof(address));
    if (!strncmp(text, "getaddrinfo: ", 13))
        snprintf(c->cause, sizeof(c->cause), "address resolution failed for %.160s:%s", address,
                 strrchr(text, ':') + 1);
    else if (reaching && err)
        snprintf(c->cause, sizeof(c->cause), "Failed to connect to '%.200s': %s", address,
                 strerror(err));
    else
        snprintf(c->cause, sizeof(c->cause), "%s", text);
}

static void conn_event(void *arg, uint32_t events)
{
    struct nbdc_conn *c = arg;
    unsigned way = nbd_aio_get_direction(c->h);
    bool broken = events & (EPOLLHUP | EPOLLERR);
    char text[256];
    int r = 0;

    if (way & LIBNBD_AIO_DIRECTION_READ && (events & EPOLLIN || broken))
        r = nbd_aio_notify_read(c->h);
    else if (way & LIBNBD_AIO_DIRECTION_WRITE && (events & EPOLLOUT || broken))
        r = nbd_aio_notify_write(c->h);
    if (r < 0) {
        int err = nbd_get_errno();
        nbdc_error_text(text, sizeof(text));
        conn_note(c, err, text);
    }
    nbdc_answers(c);
    nbdc_conn_look(c);
}

/* ---- connecting ----------------------------------------------------------------- */

struct connecting {
    struct nbd_handle *h;
    const struct nbdc_config *cfg;
    int ret, err;
    char text[256];
};

/* On a pool thread. */
static void conn_begin(void *arg)
{
    struct connecting *k = arg;

    if (k->cfg->vsock)
        k->ret = nbd_aio_connect_vsock(k->h, k->cfg->cid, k->cfg->vsock_port);
    else if (k->cfg->path[0])
        k->ret = nbd_aio_connect_unix(k->h, k->cfg->path);
    else
        k->ret = nbd_aio_connect_tcp(k->h, k->cfg->host, k->cfg->port);
    if (k->ret < 0) {
        k->err = nbd_get_errno();
        nbdc_error_text(k->text, sizeof(k->text));
    }
}

static int conn_configure(struct nbd_handle *h, const struct nbdc_config *cfg)
{
    const char *context = cfg->dirty_bitmap[0] ? cfg->dirty_bitmap : LIBNBD_CONTEXT_BASE_ALLOCATION;
    int r = nbd_set_export_name(h, cfg->export);

    r = r ? r : nbd_add_meta_context(h, context);
    if (!r && cfg->tls)
        r = nbd_set_tls(h, LIBNBD_TLS_REQUIRE);
    if (!r && cfg->tls)
        r = nbd_set_tls_verify_peer(h, cfg->tls_verify);
    if (!r && cfg->tls_certificates[0])
        r = nbd_set_tls_certificates(h, cfg->tls_certificates);
    if (!r && cfg->tls_psk_file[0])
        r = nbd_set_tls_psk_file(h, cfg->tls_psk_file);
    if (!r && cfg->tls_username[0])
        r = nbd_set_tls_username(h, cfg->tls_username);
    return r;
}

/* libnbd tells the cause of a refusal as text. */
static int conn_errno(const struct nbdc_conn *c)
{
    if (strstr(c->cause, "no export named") || strstr(c->cause, "No such file"))
        return -ENOENT;
    return strstr(c->cause, "refused") ? -ECONNREFUSED : -EIO;
}

static int conn_wait(struct nbdc_conn *c)
{
    struct connecting k = { .h = c->h, .cfg = &c->d->cfg };

    co_work(conn_begin, &k);
    if (k.ret < 0)
        conn_note(c, k.err, k.text);
    nbdc_conn_look(c);
    while (!c->dead && nbd_aio_is_ready(c->h) <= 0) {
        c->waiter = co_self();
        co_yield();
    }
    return c->dead ? -EIO : 0;
}

int nbdc_conn_connect(struct nbdc_conn *c)
{
    c->dead = c->up = c->dirty = false;
    c->connecting = true;
    c->cause[0] = 0;
    c->began_ns = blk_now_ns();
    c->watch = (struct blk_watch){ .fd = -1, .fn = conn_event, .arg = c };
    c->h = nbd_create();
    int r = c->h ? conn_configure(c->h, &c->d->cfg) : -1;
    if (r < 0) {
        nbdc_error_text(c->cause, sizeof(c->cause));
        c->dead = true;
    }
    r = r < 0 ? -EINVAL : conn_wait(c);
    c->connecting = false;
    if (!r && (c->fd = blk_net_hold(nbd_aio_get_fd(c->h))) < 0) {
        snprintf(c->cause, sizeof(c->cause), "%s", strerror(-c->fd));
        r = -EIO;
    }
    if (!r && !c->d->closing) {
        c->up = true;
        c->cause[0] = 0;
        nbdc_conn_look(c);
        return 0;
    }
    r = conn_errno(c);
    nbdc_conn_close(c);
    return r;
}

/* ---- the end -------------------------------------------------------------------- */

void nbdc_conn_kill(struct nbdc_conn *c, const char *cause)
{
    bool was_up = c->up;

    if (c->dead || !c->h)
        return;
    c->dead = true;
    c->up = false;
    if (cause)
        snprintf(c->cause, sizeof(c->cause), "%s", cause);
    if (!c->cause[0])
        snprintf(c->cause, sizeof(c->cause), "connection lost");
    conn_unwatch(c);
    conn_wake(c);
    if (was_up)
        nbdc_recover(c->d);
}

void nbdc_conn_close(struct nbdc_conn *c)
{
    struct nbd_handle *h = c->h;

    if (!h)
        return;
    conn_unwatch(c);
    c->h = NULL;
    c->up = false;
    c->dead = true;
    nbdc_take_back(c);
    nbd_close(h);
    if (c->fd >= 0 && c->nchanges && !c->d->closing && !blk_net_ended(c->fd, 0)) {
        c->left = c->fd;
        blk_net_leave(c->left);
    } else if (c->fd >= 0) {
        close(c->fd);
    }
    c->fd = -1;
    c->nchanges = 0;
}

bool nbdc_conn_has_left(struct nbdc_conn *c)
{
    if (c->left >= 0 && (c->d->closing || blk_net_left(c->left))) {
        close(c->left);
        c->left = -1;
    }
    return c->left >= 0;
}

bool nbdc_conn_lingers(const struct nbdc_conn *c)
{
    return c->h && c->nchanges && !blk_net_ended(c->fd, 0);
}

void nbdc_conn_disconnect(struct nbdc_conn *c)
{
    /* Sent at once if the socket takes it, as it does when nothing is in flight. */
    if (c->up)
        nbd_aio_disconnect(c->h, 0);
    c->up = false;
    nbdc_conn_close(c);
}
