/*
 * config.c - which export, by which way: from a URL, from QEMU's names and options.
 *
 *   nbd://host[:port]/[export][?arguments]      nbds:// the same over TLS
 *   nbd+unix:///[export]?socket=PATH            nbds+unix://
 *   nbd:host:port[:exportname=NAME]             nbd:unix:PATH[:exportname=NAME]
 *   driver=nbd,server.type=inet,server.host=H,server.port=P,export=NAME
 *   driver=nbd,server.type=unix,server.path=PATH
 *
 * Options win over the URL.
 *
 * libnbd checks a server's certificate only if it has both a folder with a ca-cert.pem
 * and the name of a host, and lets everything pass without a word else (CVE-2024-7383).
 * So TLS with certificates that could not be checked is refused here.
 */
#include "protocols/nbd/nbd_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NBDC_PORT   "10809"
#define EXPORT_MAX  4096            /* bytes of a name, says the protocol */

static int config_set(char *dst, size_t room, const char *what, const char *value,
                      struct blk_error *e)
{
    if (!value)
        return 0;
    if (strlen(value) >= room)
        return blk_err(e, ENAMETOOLONG, "The NBD %s is longer than %zu bytes", what, room - 1);
    memcpy(dst, value, strlen(value) + 1);
    return 0;
}

#define SET(field, what, value) config_set(field, sizeof(field), what, value, e)

/* ---- names ---------------------------------------------------------------------- */

static int config_port(struct nbdc_config *c, unsigned port)
{
    if (port)
        snprintf(c->port, sizeof(c->port), "%u", port);
    return 0;
}

/* What a URL's query may say; the rest of the options may stand there, too. */
static int config_url_args(struct nbdc_config *c, struct blk_opts *params, struct blk_opts *o,
                           struct blk_error *e)
{
    static const char *const passed_on[] = {
        "tls-certificates", "tls-psk-file", "tls-username", "tls-verify-peer", "tls-hostname",
        "timeout", "reconnect", "connections",
    };
    int r = SET(c->path, "socket path", blk_opts_get(params, "socket"));

    for (size_t i = 0; i < BLK_ARRAY_SIZE(passed_on); i++) {
        const char *v = blk_opts_get(params, passed_on[i]);
        if (v && !blk_opts_has(o, passed_on[i]))
            blk_opts_set(o, passed_on[i], v);
    }
    return r ? r : blk_opts_unused(params) ? blk_err(e, EINVAL, "No valid URL specified") : 0;
}

static int config_url(struct nbdc_config *c, const char *name, struct blk_opts *o,
                      struct blk_error *e)
{
    struct blk_url u;
    int r = blk_url_parse(name, &u, NULL);

    if (r)
        return blk_err(e, -r, "No valid URL specified");
    bool local = u.transport && !strcmp(u.transport, "unix");
    c->tls = !strcmp(u.scheme, "nbds");
    r = config_url_args(c, u.params, o, e);
    if (!r && (local ? u.host || !c->path[0] : !u.host || c->path[0]))
        r = blk_err(e, EINVAL, "No valid URL specified");
    r = r ? r : SET(c->host, "host name", u.host);
    r = r ? r : config_port(c, u.port);
    r = r ? r : SET(c->tls_username, "user name", u.user);
    r = r ? r : SET(c->export, "export name", u.path && *u.path ? u.path + 1 : NULL);
    blk_url_free(&u);
    return r;
}

/* "host:port[:exportname=NAME]", "[v6]:port", "unix:PATH". */
static int config_old_name(struct nbdc_config *c, const char *name, struct blk_error *e)
{
    const char *s = name + strlen("nbd:"), *mark = strstr(s, ":exportname=");
    char *address = strndup(s, mark ? (size_t)(mark - s) : strlen(s)), *host = address, *port;
    int r = mark ? SET(c->export, "export name", mark + strlen(":exportname=")) : 0;

    if (!address)
        return -ENOMEM;
    if (!r && !strncmp(address, "unix:", 5)) {
        r = SET(c->path, "socket path", address + 5);
    } else if (!r) {
        port = strrchr(address, ':');
        size_t len = port ? (size_t)(port - address) : 0;
        if (len && *host == '[' && address[len - 1] == ']') {
            host++;
            len -= 2;
        }
        if (!len || !port[1])
            r = blk_err(e, EINVAL, "error parsing address '%s'", address);
        else
            host[len] = 0;
        r = r ? r : SET(c->host, "host name", host);
        r = r ? r : SET(c->port, "port", port + 1);
    }
    free(address);
    return r;
}

/* ---- options -------------------------------------------------------------------- */

static int config_server(struct nbdc_config *c, struct blk_opts *o, struct blk_error *e)
{
    const char *type = blk_opts_get(o, "server.type");
    const char *host = blk_opts_get(o, "server.host"), *port = blk_opts_get(o, "server.port");
    const char *path = blk_opts_get(o, "server.path");

    if (type && strcmp(type, "inet") && strcmp(type, "unix"))
        return blk_err(e, EINVAL, "Parameter 'type' does not accept value '%s'", type);
    if (type && !strcmp(type, "inet") && (!host || !port))
        return blk_err(e, EINVAL, "Parameter 'server.%s' is missing", host ? "port" : "host");
    if (type && !strcmp(type, "unix") && !path)
        return blk_err(e, EINVAL, "Parameter 'server.path' is missing");
    host = host ? host : blk_opts_get(o, "host");
    port = port ? port : blk_opts_get(o, "port");
    path = path ? path : blk_opts_get(o, "path");
    if (host && path)
        return blk_err(e, EINVAL, "path and host may not be used at the same time");
    int r = SET(c->host, "host name", host);
    r = r ? r : SET(c->port, "port", port);
    return r ? r : SET(c->path, "socket path", path);
}

static int config_seconds(struct blk_opts *o, const char *key, uint64_t *out, struct blk_error *e)
{
    int r = blk_opts_get_u64(o, key, out, e);
    if (!r && *out > BLK_NET_SECONDS_MAX)
        return blk_err(e, EINVAL, "Parameter '%s' is larger than %u seconds", key,
                       BLK_NET_SECONDS_MAX);
    return r;
}

static int config_tls(struct nbdc_config *c, struct blk_opts *o, struct blk_error *e)
{
    int r = SET(c->tls_certificates, "certificate folder", blk_opts_get(o, "tls-certificates"));

    r = r ? r : SET(c->tls_psk_file, "key file", blk_opts_get(o, "tls-psk-file"));
    r = r ? r : SET(c->tls_username, "user name", blk_opts_get(o, "tls-username"));
    r = r ? r : SET(c->tls_hostname, "TLS host name", blk_opts_get(o, "tls-hostname"));
    r = r ? r : blk_opts_get_bool(o, "tls-verify-peer", &c->tls_verify, e);
    if (!r && blk_opts_has(o, "tls-creds"))
        r = blk_err(e, ENOTSUP, "tls-creds is not supported: name the folder or the file itself "
                    "(tls-certificates=DIR, tls-psk-file=FILE)");
    if (c->tls_certificates[0] || c->tls_psk_file[0])
        c->tls = true;
    return r;
}

/* See the top of this file. */
static int config_check_tls(const struct nbdc_config *c, struct blk_error *e)
{
    char ca[sizeof(c->tls_certificates) + 16];

    if (!c->tls || c->tls_psk_file[0] || !c->tls_verify)
        return 0;
    if (!c->tls_certificates[0])
        return blk_err(e, EINVAL, "NBD over TLS needs tls-certificates=DIR (with a ca-cert.pem) or "
                       "tls-psk-file=FILE, or tls-verify-peer=off");
    snprintf(ca, sizeof(ca), "%s/ca-cert.pem", c->tls_certificates);
    if (access(ca, R_OK))
        return blk_err_errno(e, errno, "Could not read '%s'", ca);
    if (c->path[0])
        return blk_err(e, ENOTSUP, "The server's certificate cannot be checked over a Unix socket "
                       "(libnbd): use tls-psk-file=FILE or tls-verify-peer=off");
    if (c->tls_hostname[0] && strcmp(c->tls_hostname, c->host))
        return blk_err(e, ENOTSUP, "The server's certificate can only be checked for the host that "
                       "is connected to (libnbd): tls-hostname must be '%s'", c->host);
    return 0;
}

static int config_options(struct nbdc_config *c, struct blk_opts *o, struct blk_error *e)
{
    const char *delay = blk_opts_get(o, "reconnect-delay");
    uint64_t connections = NBDC_CONNECTIONS, open_timeout = 0;
    int r = config_server(c, o, e);

    /* QEMU's name for it. */
    if (delay && !blk_opts_has(o, "reconnect"))
        blk_opts_set(o, "reconnect", delay);
    r = r ? r : SET(c->export, "export name", blk_opts_get(o, "export"));
    r = r ? r : SET(c->dirty_bitmap, "bitmap name", blk_opts_get(o, "x-dirty-bitmap"));
    r = r ? r : blk_opts_get_u64(o, "connections", &connections, e);
    r = r ? r : config_seconds(o, "open-timeout", &open_timeout, e);
    if (!r && (!connections || connections > NBDC_CONNECTIONS_MAX))
        r = blk_err(e, EINVAL, "Parameter 'connections' expects a number from 1 to %u",
                    NBDC_CONNECTIONS_MAX);
    c->connections = (unsigned)connections;
    c->open_timeout_ns = open_timeout * 1000000000u;
    return r ? r : config_tls(c, o, e);
}

int nbdc_config_get(struct nbdc_config *c, struct blk_opts *o, struct blk_error *e)
{
    const char *name = blk_opts_get(o, "filename");
    int r = 0;

    *c = (struct nbdc_config){ .port = NBDC_PORT, .tls_verify = true };
    if (name && strstr(name, "://"))
        r = config_url(c, name, o, e);
    else if (name && !strncmp(name, "nbd:", 4))
        r = config_old_name(c, name, e);
    r = r ? r : config_options(c, o, e);
    if (!r && !c->host[0] && !c->path[0])
        r = blk_err(e, EINVAL, "NBD server address missing");
    if (!r && strlen(c->export) > EXPORT_MAX)
        r = blk_err(e, EINVAL, "export name too long to send to server");
    return r ? r : config_check_tls(c, e);
}

/* ---- and back ------------------------------------------------------------------- */

void nbdc_config_address(const struct nbdc_config *c, char *buf, size_t len)
{
    if (c->path[0])
        snprintf(buf, len, "%s", c->path);
    else
        snprintf(buf, len, "%s:%s", c->host, c->port);
}

/* As QEMU writes it: no escapes; "v6" in brackets. */
char *nbdc_config_url(const struct nbdc_config *c)
{
    char *url = NULL;
    const char *slash = c->export[0] || c->path[0] ? "/" : "";
    bool v6 = strchr(c->host, ':');
    int n;

    if (c->tls || c->dirty_bitmap[0])
        return NULL;
    if (c->path[0])
        n = asprintf(&url, "nbd+unix://%s%s?socket=%s", slash, c->export, c->path);
    else
        n = asprintf(&url, "nbd://%s%s%s:%s%s%s", v6 ? "[" : "", c->host, v6 ? "]" : "", c->port,
                     slash, c->export);
    return n < 0 ? NULL : url;
}
