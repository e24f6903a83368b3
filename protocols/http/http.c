/*
 * http.c - files on web and FTP servers, for reading: http://, https://, ftp://, ftps://.
 * http_int.h tells who does what.
 */
#include "protocols/http/http_int.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void http_submit(struct blk_node *n, struct blk_req *req)
{
    struct http_disk *d = n->state;

    if (req->op == BLK_FLUSH)
        blk_complete(req, 0);
    else if (req->op != BLK_READ)
        blk_complete(req, -EROFS);
    else if (d->changed || d->net.given_up)
        blk_complete(req, -EIO);
    else if (req->length >= HTTP_DIRECT)
        http_read_direct(d, req);
    else
        http_read_cached(d, req);
}

/* ---- open and close ------------------------------------------------------------- */

struct first { struct co *waiter; bool ended; int result; };

static void first_done(struct http_fetch *f, int result)
{
    struct first *w = f->arg;

    w->ended = true;
    w->result = result;
    if (w->waiter)
        co_wake(w->waiter);
}

/* One byte: it says how large the file is, whether ranges work, and which version of the
 * file there is. */
static int disk_look(struct http_disk *d, struct blk_error *e)
{
    struct first w = { 0 };
    struct http_fetch f = { .length = 1, .probing = true, .done = first_done, .arg = &w };

    d->opening = true;
    http_fetch_start(d, &f);
    while (!w.ended) {
        w.waiter = co_self();
        co_yield();
    }
    d->opening = false;
    if (!w.result && d->version.size > BLK_SIZE_MAX)
        return blk_err(e, EFBIG, "CURL: Error opening file: its size makes no sense");
    return w.result ? blk_err(e, -w.result, "CURL: Error opening file: %s", f.cause) : 0;
}

static void disk_free(struct http_disk *d)
{
    http_fetches_free(d);
    http_cache_free(d);
    http_config_free(&d->cfg);
    free(d);
}

static void global_init(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static int http_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct http_disk *d = calloc(1, sizeof(*d));

    if (!d)
        return blk_err_errno(e, ENOMEM, "no memory for the connection");
    d->loop = n->loop;
    pthread_once(&once, global_init);
    int r = http_config_get(&d->cfg, n->drv->name, o, e);
    if (!r && n->oflags & BLK_O_RDWR)
        r = blk_err(e, EACCES, "curl driver does not support writes");
    if (!r && blk_opts_has(o, "url"))
        (void)blk_node_rename(n, strdup(blk_opts_get(o, "url")));
    r = r ? r : blk_net_init(&d->net, o, n->shown, e);
    if (http_fetches_init(d) < 0 && !r)
        r = blk_err_errno(e, ENOMEM, "no memory for the connection");
    r = r ? r : disk_look(d, e);
    if (r < 0) {
        disk_free(d);
        return r;
    }
    d->n = n;
    n->state = d;
    n->size = d->version.size;
    n->can_zero = n->can_discard = BLK_CAP_NONE;
    n->limits = (struct blk_limits){ .req_align = 1, .mem_align = 1,
                                     .opt_transfer = HTTP_TRANSFER,
                                     .max_transfer = HTTP_TRANSFER };
    return 0;
}

static int http_close(struct blk_node *n, struct blk_error *e)
{
    disk_free(n->state);
    n->state = NULL;
    return 0;
}

static int http_length(struct blk_node *n, uint64_t *out)
{
    *out = n->size;
    return 0;
}

static const char *const http_schemes[] = { "http", NULL };
static const char *const https_schemes[] = { "https", NULL };
static const char *const ftp_schemes[] = { "ftp", NULL };
static const char *const ftps_schemes[] = { "ftps", NULL };

#define HTTP_DRIVER(driver, list) { \
    .name = driver, \
    .protocol = true, \
    .schemes = list, \
    .open = http_open, \
    .close = http_close, \
    .submit = http_submit, \
    .length = http_length, \
}

extern const struct blk_driver blk_http, blk_https, blk_ftp, blk_ftps;
const struct blk_driver blk_http = HTTP_DRIVER("http", http_schemes);
const struct blk_driver blk_https = HTTP_DRIVER("https", https_schemes);
const struct blk_driver blk_ftp = HTTP_DRIVER("ftp", ftp_schemes);
const struct blk_driver blk_ftps = HTTP_DRIVER("ftps", ftps_schemes);
