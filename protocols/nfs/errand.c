/*
 * errand.c - what needs a connection of its own for a moment: MOUNT, and making a file
 * in NFSv4, for which libnfs's upper half knows OPEN.  And resolving the host's name.
 *
 * All in a fiber: it waits, the loop goes on.  An errand has one deadline, the disk's
 * timeout, and is not sent again.
 */
#include "protocols/nfs/nfs.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <nfsc/libnfs-raw-mount.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct errand {
    struct nfs_disk *d;
    struct nfs_context *nfs;
    struct blk_watch watch;
    bool watched, answered, dead;
    struct blk_timer timer;
    struct co *waiter;
    int err;
    char text[200];
    void *result;
    struct nfs_fhandle root;
};

static void errand_wake(struct errand *x)
{
    struct co *c = x->waiter;
    x->waiter = NULL;
    if (c)
        co_wake(c);
}

static void errand_rearm(struct errand *x)
{
    int fd = nfs_get_fd(x->nfs);
    if (x->watched)
        blk_watch_del(x->d->loop, &x->watch);   /* libnfs may have made a new socket */
    x->watch.fd = fd;
    x->watch.events = (uint32_t)nfs_which_events(x->nfs);
    x->watched = fd >= 0 && !blk_watch_add(x->d->loop, &x->watch);
}

static void errand_event(void *arg, uint32_t events)
{
    struct errand *x = arg;
    if (nfs_service(x->nfs, (int)events) < 0)
        x->dead = true;
    if (!x->dead)
        errand_rearm(x);
    if (x->dead || x->answered)
        errand_wake(x);
}

static void errand_too_slow(void *arg)
{
    struct errand *x = arg;
    x->dead = true;
    snprintf(x->text, sizeof(x->text), "no answer for %u s",
             (unsigned)(x->d->net.timeout_ns / 1000000000u));
    errand_wake(x);
}

static int errand_begin(struct errand *x, struct nfs_disk *d)
{
    *x = (struct errand){ .d = d, .nfs = nfs_context_new(&d->where) };
    if (!x->nfs)
        return -ENOMEM;
    x->watch.fn = errand_event;
    x->timer.fn = errand_too_slow;
    x->watch.arg = x->timer.arg = x;
    blk_timer_set(d->loop, &x->timer, blk_now_ns() + d->net.timeout_ns);
    return 0;
}

/* Until the callback has answered.  started: what the libnfs function returned. */
static int errand_wait(struct errand *x, int started)
{
    x->answered &= started >= 0;
    if (started >= 0 && !x->answered) {
        errand_rearm(x);
        while (!x->answered && !x->dead) {
            x->waiter = co_self();
            co_yield();
        }
    }
    if (!x->answered && !x->text[0])
        snprintf(x->text, sizeof(x->text), "%s", nfs_get_error(x->nfs));
    if (!x->answered)
        x->err = -EIO;
    x->answered = false;
    return x->err;
}

static void errand_end(struct errand *x)
{
    blk_timer_cancel(x->d->loop, &x->timer);
    if (x->watched)
        blk_watch_del(x->d->loop, &x->watch);
    x->waiter = NULL;
    nfs_destroy_context(x->nfs);
}

static void errand_failed(struct errand *x, int err, const char *text)
{
    x->err = err;
    x->answered = true;
    snprintf(x->text, sizeof(x->text), "%s", text && *text ? text : "connection lost");
}

/* ---- MOUNT (RFC 1813, appendix I) -------------------------------------------------------- */

static void mount_connected(struct rpc_context *rpc, int status, void *data, void *arg)
{
    struct errand *x = arg;
    if (status == RPC_STATUS_SUCCESS)
        x->answered = true;
    else
        errand_failed(x, -EIO, status == RPC_STATUS_ERROR ? data : NULL);
}

static void mount_answered(struct rpc_context *rpc, int status, void *data, void *arg)
{
    struct errand *x = arg;
    if (status != RPC_STATUS_SUCCESS) {
        errand_failed(x, -EIO, status == RPC_STATUS_ERROR ? data : NULL);
        return;
    }
    const mountres3 *res = data;
    int r = nfs3_errno((int)res->fhs_status);
    if (r) {
        r = r == NFS_LATER ? -EIO : r;
        errand_failed(x, r, strerror(-r));
        return;
    }
    const fhandle3 *fh = &res->mountres3_u.mountinfo.fhandle;
    x->answered = true;
    if (!fh->fhandle3_len || fh->fhandle3_len > FHSIZE3) {
        errand_failed(x, -EPROTO, "the file handle has a bad length");
        return;
    }
    x->root.len = fh->fhandle3_len;
    memcpy(x->root.data, fh->fhandle3_val, fh->fhandle3_len);
}

int nfs_mount_dir(struct nfs_disk *d, struct nfs_fhandle *root, struct blk_error *e)
{
    const struct nfs_where *w = &d->where;
    struct errand x;
    int r = errand_begin(&x, d);

    if (r)
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    struct rpc_context *rpc = nfs_get_rpc_context(x.nfs);
    r = w->mount_port ? rpc_connect_port_async(rpc, w->address, (int)w->mount_port,
                                               MOUNT_PROGRAM, MOUNT_V3, mount_connected, &x)
                      : rpc_connect_program_async(rpc, w->address, MOUNT_PROGRAM, MOUNT_V3,
                                                  mount_connected, &x);
    r = errand_wait(&x, r);
    if (!r)
        r = errand_wait(&x, rpc_mount3_mnt_async(rpc, mount_answered, w->dir, &x));
    if (r)
        blk_err(e, -r, "mounting '%s': %s", w->dir, x.text);
    *root = x.root;
    errand_end(&x);
    return r;
}

/* ---- making a file in NFSv4 ------------------------------------------------------------------ */

static void upper_answered(int err, struct nfs_context *nfs, void *data, void *arg)
{
    struct errand *x = arg;
    if (err < 0) {
        errand_failed(x, err, nfs_get_error(nfs));
        return;
    }
    x->answered = true;
    x->err = 0;
    x->result = data;
}

int nfs_make_v4(struct nfs_disk *d, struct blk_error *e)
{
    const struct nfs_where *w = &d->where;
    struct errand x;
    char *path = NULL;
    int r = errand_begin(&x, d);

    if (r)
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    unsigned port = w->nfs_port ? w->nfs_port : w->version->port;
    char args[64];
    /* libnfs takes the port from nowhere but a URL. */
    snprintf(args, sizeof(args), "nfs://server/?version=4&nfsport=%u", port);
    struct nfs_url *url = nfs_parse_url_incomplete(x.nfs, args);
    if (url)
        nfs_destroy_url(url);
    nfs_set_autoreconnect(x.nfs, 0);
    r = url && asprintf(&path, "/%s", w->file) >= 0 ? 0 : -ENOMEM;
    r = r ? r : errand_wait(&x, nfs_mount_async(x.nfs, w->address, w->dir, upper_answered, &x));
    r = r ? r : errand_wait(&x, nfs_creat_async(x.nfs, path, 0644, upper_answered, &x));
    if (!r)
        r = errand_wait(&x, nfs_close_async(x.nfs, x.result, upper_answered, &x));
    if (r)
        blk_err(e, -r, "creating the file: %s", x.text);
    free(path);
    errand_end(&x);
    return r;
}

/* ---- names ------------------------------------------------------------------------------------- */

struct resolve { const char *host; char address[INET6_ADDRSTRLEN]; int err; };

static void resolve_work(void *arg)
{
    struct resolve *r = arg;
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *list;

    r->err = getaddrinfo(r->host, NULL, &hints, &list);
    if (r->err)
        return;
    r->err = getnameinfo(list->ai_addr, list->ai_addrlen, r->address, sizeof(r->address), NULL,
                         0, NI_NUMERICHOST);
    freeaddrinfo(list);
}

int nfs_resolve(struct nfs_where *w, struct blk_error *e)
{
    struct resolve r = { .host = w->host };
    struct in6_addr numeric;

    if (inet_pton(AF_INET, w->host, &numeric) == 1 || inet_pton(AF_INET6, w->host, &numeric) == 1)
        snprintf(r.address, sizeof(r.address), "%s", w->host);
    else
        co_work(resolve_work, &r);
    if (r.err)
        return blk_err(e, EHOSTUNREACH, "address of '%s': %s", w->host, gai_strerror(r.err));
    w->address = strdup(r.address);
    return w->address ? 0 : blk_err(e, ENOMEM, "Cannot allocate memory");
}
