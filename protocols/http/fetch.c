/*
 * fetch.c - ranges of the file on their way.
 *
 * libcurl's multi interface runs in the loop: its sockets are watched, its one timer is a
 * loop timer.  An attempt ends in one of three ways: the fetch goes on where it broke off
 * (a short answer, a busy server), the server is away (the fetch goes back to the queue
 * and the probe finds out when to go on), or the fetch fails.
 */
#include "protocols/http/http_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>

static void dispatch(struct http_disk *d);
static void attempt_end(struct http_fetch *f, CURLcode code);

/* ---- lists ---------------------------------------------------------------------- */

static void fetches_init(struct http_fetches *l)
{
    l->first = NULL;
    l->last = &l->first;
}

static void fetches_append(struct http_fetches *l, struct http_fetch *f)
{
    f->next = NULL;
    f->prev = l->last;
    *l->last = f;
    l->last = &f->next;
}

static void fetches_remove(struct http_fetches *l, struct http_fetch *f)
{
    *f->prev = f->next;
    if (f->next)
        f->next->prev = f->prev;
    else
        l->last = f->prev;
}

/* ---- libcurl in the loop -------------------------------------------------------- */

struct http_socket { struct http_disk *d; struct blk_watch watch; };

static void curl_finished(struct http_disk *d)
{
    CURLMsg *m;
    int left;

    while ((m = curl_multi_info_read(d->multi, &left))) {
        CURLcode code = m->data.result;
        struct http_fetch *f = NULL;
        if (m->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&f);
        attempt_end(f, code);
    }
    dispatch(d);
}

static void socket_event(void *arg, uint32_t events)
{
    struct http_socket *s = arg;
    struct http_disk *d = s->d;
    int running, mask = (events & EPOLLIN ? CURL_CSELECT_IN : 0) |
                        (events & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                        (events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0);

    curl_multi_socket_action(d->multi, s->watch.fd, mask, &running);   /* s may be gone now */
    curl_finished(d);
}

static int curl_socket_cb(CURL *easy, curl_socket_t fd, int what, void *arg, void *sock)
{
    struct http_disk *d = arg;
    struct http_socket *s = sock;
    uint32_t events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);

    if (what == CURL_POLL_REMOVE) {
        if (s)
            blk_watch_del(d->loop, &s->watch);
        free(s);
        curl_multi_assign(d->multi, fd, NULL);
        return 0;
    }
    if (s)
        return blk_watch_mod(d->loop, &s->watch, events) ? -1 : 0;
    s = calloc(1, sizeof(*s));
    if (!s)
        return -1;
    s->d = d;
    s->watch = (struct blk_watch){ .fd = fd, .events = events, .fn = socket_event, .arg = s };
    if (blk_watch_add(d->loop, &s->watch) < 0) {
        free(s);
        return -1;
    }
    curl_multi_assign(d->multi, fd, s);
    return 0;
}

static void curl_timeout(void *arg)
{
    struct http_disk *d = arg;
    int running;

    curl_multi_socket_action(d->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    curl_finished(d);
}

static int curl_timer_cb(CURLM *multi, long ms, void *arg)
{
    struct http_disk *d = arg;

    blk_timer_cancel(d->loop, &d->curl_timer);
    if (ms >= 0)
        blk_timer_set(d->loop, &d->curl_timer, blk_now_ns() + (uint64_t)ms * 1000000u);
    return 0;
}

/* ---- an answer ------------------------------------------------------------------ */

static int refuse(struct http_fetch *f, int err, const char *cause)
{
    f->err = err;
    snprintf(f->cause, sizeof(f->cause), "%s", cause);
    return 0;                               /* what the write callback says to stop */
}

/* The value of "name: value" in a header line, without blanks around it. */
static bool header_value(const char *line, size_t len, const char *name, char *buf, size_t room)
{
    size_t n = strlen(name);

    if (len <= n || strncasecmp(line, name, n) || line[n] != ':')
        return false;
    line += n + 1;
    len -= n + 1;
    while (len && (*line == ' ' || *line == '\t'))
        line++, len--;
    while (len && strchr("\r\n \t", line[len - 1]))
        len--;
    snprintf(buf, room, "%.*s", (int)BLK_MIN(len, room - 1), line);
    return true;
}

/* "bytes 0-99/1000", "bytes * /1000" (without the blank) */
static void header_range(struct http_fetch *f, const char *value)
{
    unsigned long long from, to, size;

    if (sscanf(value, "bytes %llu-%llu/%llu", &from, &to, &size) == 3 && to >= from && to < size) {
        f->range_start = from;
        f->version.size = size;
        f->has_range = true;
    } else if (sscanf(value, "bytes */%llu", &size) == 1) {
        f->version.size = size;
        f->unsatisfied = true;
    }
}

/* FTP: "213 19991231235959" to MDTM, which libcurl reads, then "213 4096" to SIZE. */
static size_t reply_cb(char *line, size_t size, size_t n, void *arg)
{
    struct http_fetch *f = arg;
    size_t len = size * n;
    char text[32];

    f->heard_ns = blk_now_ns();
    f->header_whole = true;
    snprintf(text, sizeof(text), "%.*s", (int)BLK_MIN(len, sizeof(text) - 1), line);
    if (!strncmp(text, "213 ", 4)) {
        f->replies++;
        f->version.size = strtoull(text + 4, NULL, 10);
    }
    return len;
}

static size_t header_cb(char *line, size_t size, size_t n, void *arg)
{
    struct http_fetch *f = arg;
    char value[HTTP_TAG_MAX];
    size_t len = size * n;

    f->heard_ns = blk_now_ns();
    if (len > 5 && !strncmp(line, "HTTP/", 5)) {        /* another answer: a redirect's end */
        f->version = (struct http_version){ 0 };
        f->has_range = f->encoded = f->unsatisfied = f->header_whole = false;
    } else if (len && strchr("\r\n", *line)) {
        f->header_whole = true;
    } else if (header_value(line, len, "content-range", value, sizeof(value))) {
        header_range(f, value);
    } else if (header_value(line, len, "content-encoding", value, sizeof(value))) {
        f->encoded = strcasecmp(value, "identity");
    } else if (!header_value(line, len, "etag", f->version.etag, HTTP_TAG_MAX)) {
        header_value(line, len, "last-modified", f->version.modified, HTTP_TAG_MAX);
    }
    return len;
}

static bool same_tag(const char *a, const char *b)
{
    return !*a || !*b || !strcmp(a, b);
}

/* Another size or version than before: for good. */
static int note_change(struct http_fetch *f)
{
    struct http_disk *d = f->d;

    if (!d->changed)
        blk_report("%s: the file has changed on the server; reads fail from now on", d->net.shown);
    d->changed = -EIO;
    return refuse(f, -EIO, "the file has changed on the server");
}

static int judge_ftp(struct http_fetch *f)
{
    curl_off_t when = -1;

    curl_easy_getinfo(f->easy, CURLINFO_FILETIME_T, &when);
    if (when >= 0)
        snprintf(f->version.modified, HTTP_TAG_MAX, "%lld", (long long)when);
    if (f->replies > (when >= 0))
        return 1;
    return refuse(f, -ENOTSUP, "Server didn't report file size.");
}

static int judge_http(struct http_fetch *f)
{
    struct http_disk *d = f->d;
    long status = 0;

    curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &status);
    if (f->encoded)
        return refuse(f, -EPROTO, "the server sends the file encoded");
    if (status == 200 && d->known)
        return note_change(f);
    if (status != 206 || !f->has_range)
        return refuse(f, -ENOTSUP, "Server does not support 'range' (byte ranges).");
    if (f->range_start != f->start + f->got)
        return refuse(f, -EPROTO, "the server sends another range than it was asked for");
    return 1;
}

/* Before the first byte of an answer is taken: is it what was asked for?  0 if not. */
static int judge(struct http_fetch *f)
{
    struct http_disk *d = f->d;

    if (!(d->cfg.ftp ? judge_ftp(f) : judge_http(f)))
        return 0;
    if (d->known && (f->version.size != d->version.size ||
                     !same_tag(f->version.etag, d->version.etag) ||
                     !same_tag(f->version.modified, d->version.modified)))
        return note_change(f);
    if (f->probing)
        f->length = BLK_MIN(f->length, f->version.size);
    f->judged = true;
    return 1;
}

static size_t write_cb(char *bytes, size_t size, size_t n, void *arg)
{
    struct http_fetch *f = arg;
    size_t len = size * n;

    f->heard_ns = blk_now_ns();
    if (f->err || (!f->judged && !judge(f)))
        return 0;
    uint64_t take = BLK_MIN(len, f->length - f->got);
    if (take && f->data)
        f->data(f, bytes, take);
    f->got += take;
    f->attempt_got += take;
    /* What was asked for is good, however the pieces arrive; the rest is not looked at. */
    if (take < len)
        return (size_t)refuse(f, -EPROTO, "the server sends more than it was asked for");
    return len;
}

/* ---- attempts ------------------------------------------------------------------- */

#define OPT(name, value) ok &= curl_easy_setopt(h, CURLOPT_##name, value) == CURLE_OK

/* What stays the same for all transfers of the disk. */
static CURL *easy_new(struct http_disk *d)
{
    const struct http_config *c = &d->cfg;
    CURL *h = curl_easy_init();
    bool ok = h;

    if (!h)
        return NULL;
    OPT(NOSIGNAL, 1l);
    OPT(FAILONERROR, 1l);
    OPT(FOLLOWLOCATION, 1l);
    OPT(MAXREDIRS, (long)HTTP_REDIRECTS_MAX);
    OPT(PROTOCOLS_STR, c->ftp ? "ftp,ftps" : "http,https");
    OPT(REDIR_PROTOCOLS_STR, "http,https");
    OPT(FILETIME, (long)c->ftp);
    OPT(HTTPPROXYTUNNEL, (long)c->ftp);     /* FTP it is behind a proxy, too */
    OPT(CONNECTTIMEOUT, (long)(d->net.timeout_ns / 1000000000u));
    OPT(QUICK_EXIT, 1l);                    /* close() does not wait for the name server */
    OPT(SSL_VERIFYPEER, (long)c->sslverify);
    OPT(SSL_VERIFYHOST, c->sslverify ? 2l : 0l);
    OPT(USERAGENT, "platter/" PLATTER_VERSION);
    OPT(WRITEFUNCTION, write_cb);
    OPT(HEADERFUNCTION, c->ftp ? reply_cb : header_cb);
    OPT(BUFFERSIZE, 256l << 10);
    if (c->cacert)
        OPT(CAINFO, c->cacert);
    if (c->proxy_user)
        OPT(PROXYUSERNAME, c->proxy_user);
    if (c->proxy_password)
        OPT(PROXYPASSWORD, c->proxy_password);
    if (!ok) {
        curl_easy_cleanup(h);
        return NULL;
    }
    return h;
}

/* Credentials go to the origin they were given for. */
static bool easy_set_identity(struct http_disk *d, CURL *h)
{
    const struct http_config *c = &d->cfg;
    bool ok = true, mine = !d->other_origin;

    OPT(URL, d->effective ? d->effective : c->url);
    OPT(USERNAME, mine ? c->user : NULL);
    OPT(PASSWORD, mine ? c->password : NULL);
    OPT(COOKIE, mine ? c->cookie : NULL);
    OPT(NETRC, (long)(c->user ? CURL_NETRC_IGNORED : CURL_NETRC_OPTIONAL));
    OPT(HTTPAUTH, d->auth);
    return ok;
}

static bool easy_set_fetch(struct http_fetch *f, CURL *h)
{
    char range[64];
    bool ok = easy_set_identity(f->d, h);

    snprintf(range, sizeof(range), "%llu-%llu", (unsigned long long)(f->start + f->got),
             (unsigned long long)(f->start + f->length - 1));
    OPT(RANGE, range);
    OPT(WRITEDATA, f);
    OPT(HEADERDATA, f);
    OPT(ERRORBUFFER, f->curl_error);
    OPT(PRIVATE, f);
    return ok;
}

static int attempt_start(struct http_disk *d, struct http_fetch *f)
{
    CURL *h = d->nidle ? d->idle[--d->nidle] : easy_new(d);

    if (!h)
        return -ENOMEM;
    f->curl_error[0] = f->cause[0] = 0;
    f->err = 0;
    f->judged = f->header_whole = false;
    f->replies = 0;
    f->attempt_got = 0;
    f->heard_ns = blk_now_ns();
    if (!easy_set_fetch(f, h) || curl_multi_add_handle(d->multi, h) != CURLM_OK) {
        curl_easy_cleanup(h);
        return -ENOMEM;
    }
    f->easy = h;
    fetches_append(&d->active, f);
    d->nactive++;
    if (!d->tick.at)
        blk_timer_set(d->loop, &d->tick, f->heard_ns + HTTP_TICK_NS);
    return 0;
}

/* Its easy handle goes back; what redirects and authentication taught us stays. */
static void attempt_release(struct http_fetch *f)
{
    struct http_disk *d = f->d;

    fetches_remove(&d->active, f);
    d->nactive--;
    curl_multi_remove_handle(d->multi, f->easy);
    d->idle[d->nidle++] = f->easy;
    f->easy = NULL;
}

static void fetch_end(struct http_fetch *f, int result)
{
    struct http_disk *d = f->d;

    if (result && !d->opening && !f->is_probe && !d->told_error && !d->changed &&
        !d->net.given_up) {
        blk_report("%s: %s", d->net.shown, f->cause[0] ? f->cause : strerror(-result));
        d->told_error = true;
    }
    f->done(f, result);
}

/* Once more: after a pause that the server asks for, or at once. */
static void fetch_again(struct http_fetch *f, bool later)
{
    struct http_disk *d = f->d;
    uint64_t now = blk_now_ns();

    if (blk_net_expired(&d->net, f->first_ns, now)) {
        fetch_end(f, -EIO);
        return;
    }
    f->not_before_ns = later ? now + blk_net_step(f->later++) : 0;
    fetches_append(&d->queue, f);
}

/* ---- the server is away --------------------------------------------------------- */

static void fail_queued(struct http_disk *d)
{
    struct http_fetch *f;

    while ((f = d->queue.first)) {
        fetches_remove(&d->queue, f);
        fetch_end(f, -EIO);
    }
}

static void server_away(struct http_disk *d, const char *cause)
{
    blk_net_lost(&d->net, cause);
    if (blk_net_over(&d->net, cause))
        fail_queued(d);
    if (!d->retry.at && !d->probe.easy)
        blk_timer_set(d->loop, &d->retry, blk_now_ns() + blk_net_next(&d->net));
}

static void probe_start(void *arg)
{
    struct http_disk *d = arg;
    struct http_fetch *f = &d->probe;

    *f = (struct http_fetch){ .d = d, .length = 1, .is_probe = true, .first_ns = blk_now_ns() };
    if (attempt_start(d, f) < 0)
        blk_timer_set(d->loop, &d->retry, blk_now_ns() + blk_net_next(&d->net));
}

static void probe_end(struct http_disk *d, bool up, const char *cause)
{
    if (!up) {
        server_away(d, cause);
        return;
    }
    blk_net_up(&d->net);
    d->net.tries = 0;
}

/* ---- how an attempt ended ------------------------------------------------------- */

enum verdict { FINISHED, GO_ON, LATER, AWAY, FAILED };

static enum verdict judge_status(struct http_fetch *f, long status)
{
    struct http_disk *d = f->d;

    if (status == 408 || status == 425 || status == 429 || status == 500 ||
        (status >= 502 && status <= 504))
        return d->opening ? FAILED : LATER;
    if (status == 416 && d->known) {
        note_change(f);
        return FAILED;
    }
    /* Where a redirect had led to may not be good for ever: ask the first address. */
    if (d->effective && d->known && !f->is_probe && f->empty++ < HTTP_EMPTY_MAX) {
        free(d->effective);
        d->effective = NULL;
        d->other_origin = false;
        return GO_ON;
    }
    f->err = status == 401 || status == 403 || status == 407 ? -EACCES :
             status == 404 || status == 410 ? -ENOENT : -EIO;
    return FAILED;
}

/* FTP's last reply: 4xx asks to try it again. */
static enum verdict judge_reply(struct http_fetch *f, CURLcode code, long reply)
{
    struct http_disk *d = f->d;

    if (code == CURLE_BAD_DOWNLOAD_RESUME && d->known)
        note_change(f);
    else if (reply / 100 == 4 && !d->opening)
        return LATER;
    else
        f->err = code == CURLE_REMOTE_FILE_NOT_FOUND ? -ENOENT :
                 code == CURLE_LOGIN_DENIED || code == CURLE_REMOTE_ACCESS_DENIED ? -EACCES : -EIO;
    return FAILED;
}

/* An empty file has no ranges. */
static bool is_empty(const struct http_fetch *f, long status)
{
    curl_off_t len = -1;

    if (f->d->cfg.ftp)
        return false;
    curl_easy_getinfo(f->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &len);
    return (f->unsatisfied && !f->version.size) || (status == 200 && !len);
}

static enum verdict judge_end(struct http_fetch *f, CURLcode code, long status)
{
    if (f->err)
        return FAILED;
    if (f->probing && is_empty(f, status)) {
        f->length = 0;
        return FINISHED;
    }
    if (f->judged && f->got == f->length)
        return FINISHED;                    /* FTP's last word may be missing */
    switch (code) {
    case CURLE_OK:
        if (!f->header_whole)
            return AWAY;                    /* cut within it */
        if (!f->judged && !judge(f))
            return FAILED;
        f->empty = f->attempt_got ? 0 : f->empty + 1;
        return f->got == f->length ? FINISHED : f->empty < HTTP_EMPTY_MAX ? GO_ON : FAILED;
    case CURLE_HTTP_RETURNED_ERROR:
        return judge_status(f, status);
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_PARTIAL_FILE:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
        return AWAY;
    default:                                /* certificates, redirects, nonsense */
        return f->d->cfg.ftp ? judge_reply(f, code, status) : FAILED;
    }
}

/* The first answer: what every later one is compared with. */
static void learn(struct http_fetch *f)
{
    struct http_disk *d = f->d;
    char *url = NULL;
    long auth = 0;

    d->version = f->version;
    d->known = true;
    curl_easy_getinfo(f->easy, CURLINFO_HTTPAUTH_AVAIL, &auth);
    if (!(auth & ~(long)CURLAUTH_BASIC))
        d->auth = CURLAUTH_BASIC;           /* no need to be asked each time */
    curl_easy_getinfo(f->easy, CURLINFO_EFFECTIVE_URL, &url);
    if (url && strcmp(url, d->cfg.url)) {
        d->effective = strdup(url);
        d->other_origin = !http_same_origin(url, d->cfg.url);
    }
}

static void attempt_end(struct http_fetch *f, CURLcode code)
{
    struct http_disk *d = f->d;
    long status = 0;
    char cause[sizeof(f->cause)];

    curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &status);
    enum verdict v = judge_end(f, code, status);
    if (v == FINISHED && f->probing && !d->known)
        learn(f);
    attempt_release(f);
    if (!f->cause[0])
        snprintf(f->cause, sizeof(f->cause), "%s", f->curl_error[0] ? f->curl_error :
                 code ? curl_easy_strerror(code) : "the server sends nothing");
    snprintf(cause, sizeof(cause), "%s", f->cause);     /* f may be gone */
    if (f->is_probe) {
        probe_end(d, v != AWAY, cause);      /* what else is wrong others find out */
    } else if (v == FINISHED) {
        blk_net_progress(&d->net);
        fetch_end(f, 0);
    } else if (v == FAILED || d->opening) {
        fetch_end(f, f->err ? f->err : -EIO);
    } else {
        fetch_again(f, v == LATER);
        if (v == AWAY)
            server_away(d, cause);
    }
}

/* ---- the queue ------------------------------------------------------------------ */

static void dispatch(struct http_disk *d)
{
    uint64_t now = blk_now_ns();
    struct http_fetch *f, *next;

    for (f = d->queue.first; f && !d->net.down_since && d->nactive < d->cfg.connections; f = next) {
        next = f->next;
        if (f->not_before_ns > now)
            continue;
        fetches_remove(&d->queue, f);
        int r = d->changed ? d->changed : attempt_start(d, f);
        if (r < 0) {
            fetch_end(f, r);
            next = d->queue.first;          /* done() may have changed the list */
        }
    }
    if (d->queue.first && !d->tick.at)
        blk_timer_set(d->loop, &d->tick, now + HTTP_TICK_NS / 5);
}

/* Transfers without a byte for too long; requests that are too old. */
static void tick(void *arg)
{
    struct http_disk *d = arg;
    uint64_t now = blk_now_ns();
    struct http_fetch *f, *next;

    for (f = d->active.first; f; f = next) {
        next = f->next;
        if (now - f->heard_ns < d->net.timeout_ns)
            continue;
        snprintf(f->cause, sizeof(f->cause), "no answer for %u s",
                 (unsigned)(d->net.timeout_ns / 1000000000u));
        attempt_end(f, CURLE_OPERATION_TIMEDOUT);
        next = d->active.first;
    }
    for (f = d->queue.first; f; f = next) {
        next = f->next;
        if (blk_net_expired(&d->net, f->first_ns, now)) {
            fetches_remove(&d->queue, f);
            fetch_end(f, -EIO);
            next = d->queue.first;
        }
    }
    dispatch(d);
    if ((d->nactive || d->queue.first) && !d->tick.at)
        blk_timer_set(d->loop, &d->tick, now + HTTP_TICK_NS);
}

void http_fetch_start(struct http_disk *d, struct http_fetch *f)
{
    f->d = d;
    f->first_ns = blk_now_ns();
    fetches_append(&d->queue, f);
    dispatch(d);
}

/* ---- all of it ------------------------------------------------------------------ */

int http_fetches_init(struct http_disk *d)
{
    fetches_init(&d->queue);
    fetches_init(&d->active);
    d->auth = (long)CURLAUTH_ANY;
    d->curl_timer = (struct blk_timer){ .fn = curl_timeout, .arg = d };
    d->tick = (struct blk_timer){ .fn = tick, .arg = d };
    d->retry = (struct blk_timer){ .fn = probe_start, .arg = d };
    d->multi = curl_multi_init();
    if (!d->multi)
        return -ENOMEM;
    curl_multi_setopt(d->multi, CURLMOPT_SOCKETFUNCTION, curl_socket_cb);
    curl_multi_setopt(d->multi, CURLMOPT_SOCKETDATA, d);
    curl_multi_setopt(d->multi, CURLMOPT_TIMERFUNCTION, curl_timer_cb);
    curl_multi_setopt(d->multi, CURLMOPT_TIMERDATA, d);
    curl_multi_setopt(d->multi, CURLMOPT_MAXCONNECTS, (long)d->cfg.connections);
    return 0;
}

void http_fetches_free(struct http_disk *d)
{
    struct http_fetch *f;

    d->opening = true;                      /* nobody wants to hear of their ends */
    while ((f = d->active.first)) {
        attempt_release(f);
        if (!f->is_probe)
            fetch_end(f, -ECANCELED);
    }
    while ((f = d->queue.first)) {
        fetches_remove(&d->queue, f);
        fetch_end(f, -ECANCELED);
    }
    while (d->nidle)
        curl_easy_cleanup(d->idle[--d->nidle]);
    if (d->multi)
        curl_multi_cleanup(d->multi);
    blk_timer_cancel(d->loop, &d->curl_timer);
    blk_timer_cancel(d->loop, &d->tick);
    blk_timer_cancel(d->loop, &d->retry);
    free(d->effective);
}
