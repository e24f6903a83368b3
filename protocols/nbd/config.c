/*
 * config.c - which export, by which way: from a URL, from QEMU's names and options.
 *
 *   nbd://host[:port]/[export][?arguments]      nbds:// the same over TLS
 *   nbd+unix:///[export]?socket=PATH            nbds+unix://
 *   nbd:host:port[:exportname=NAME]             nbd:unix:PATH[:exportname=NAME]
 *   driver=nbd,server.type=inet,server.host=H,server.port=P,export=NAME
 *   driver=nbd,server.type=unix,server.path=PATH
 *   driver=nbd,server.type=vsock,server.cid=CID,server.port=P
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

static int config_bools(struct blk_opts *o, const char *const *keys, size_t n, bool def, bool *all,
                        struct blk_error *e)
{
    int r = 0;

    *all = true;
    for (size_t i = 0; !r && i < n; i++) {
        bool v = def;
        r = blk_opts_get_bool(o, keys[i], &v, e);
        *all = *all && v == def;
    }
    return r;
}

static int config_inet(struct nbdc_config *c, struct blk_opts *o, struct blk_error *e)
{
    /* What has no meaning for a client, or would be noticed only by the kernel. */
    static const char *const flags[] = { "numeric", "keep-alive", "mptcp" };
    static const char *const families[] = { "ipv4", "ipv6" };
    const char *host = blk_opts_get(o, "host"), *port = blk_opts_get(o, "port");
    uint64_t to;
    bool any, both = true;

    if (!host || !port)
        return blk_err(e, EINVAL, "Parameter '%s' is missing", host ? "port" : "host");
    int r = config_bools(o, flags, BLK_ARRAY_SIZE(flags), false, &any, e);
    r = r ? r : blk_opts_get_u64(o, "to", &to, e);
    r = r ? r : config_bools(o, families, BLK_ARRAY_SIZE(families), true, &both, e);
    if (!r && (!both || blk_opts_has(o, "ipv4") != blk_opts_has(o, "ipv6")))
        r = blk_err(e, ENOTSUP, "ipv4= and ipv6= cannot choose how the server is reached "
                    "(libnbd): give its address as the host");
    r = r ? r : SET(c->host, "host name", host);
    return r ? r : SET(c->port, "port", port);
}

static int config_unix(struct nbdc_config *c, struct blk_opts *o, struct blk_error *e)
{
    const char *path = blk_opts_get(o, "path");
    bool abstract = false, tight = true;

    if (!path)
        return blk_err(e, EINVAL, "Parameter 'path' is missing");
    int r = blk_opts_get_bool(o, "abstract", &abstract, e);
    r = r ? r : blk_opts_get_bool(o, "tight", &tight, e);
    if (!r && abstract)
        r = blk_err(e, ENOTSUP, "Abstract Unix sockets are not supported (libnbd)");
    return r ? r : SET(c->path, "socket path", path);
}

static int config_vsock(struct nbdc_config *c, struct blk_opts *o, struct blk_error *e)
{
    const char *cid = blk_opts_get(o, "cid"), *port = blk_opts_get(o, "port");
    uint64_t n = 0, p = 0;

    if (!cid || !port)
        return blk_err(e, EINVAL, "Parameter '%s' is missing", cid ? "port" : "cid");
    int r = blk_opts_get_u64(o, "cid", &n, e);
    r = r ? r : blk_opts_get_u64(o, "port", &p, e);
    if (!r && (n > UINT32_MAX || p > UINT32_MAX))
        r = blk_err(e, EINVAL, "Value '%s' is too large for parameter '%s'",
                    n > UINT32_MAX ? cid : port, n > UINT32_MAX ? "cid" : "port");
    c->vsock = true;
    c->cid = (uint32_t)n;
    c->vsock_port = (uint32_t)p;
    return r;
}

/* QEMU's SocketAddress. */
static int config_socket(struct nbdc_config *c, struct blk_opts *o, struct blk_error *e)
{
    const char *type = blk_opts_get(o, "type"), *unknown;
    int r;

    if (!type)
        return blk_err(e, EINVAL, "Parameter 'type' is missing");
    if (!strcmp(type, "inet"))
        r = config_inet(c, o, e);
    else if (!strcmp(type, "unix"))
        r = config_unix(c, o, e);
    else if (!strcmp(type, "vsock"))
        r = config_vsock(c, o, e);
    else
        return blk_err(e, EINVAL, "Parameter 'type' does not accept value '%s'", type);
    if (!r && (unknown = blk_opts_unused(o)))
        r = blk_err(e, EINVAL, "Parameter '%s' is unexpected", unknown);
    return r;
}

static int config_server(struct nbdc_config *c, struct blk_opts *o, struct blk_error *e)
{
    const char *host = blk_opts_get(o, "host"), *port = blk_opts_get(o, "port");
    const char *path = blk_opts_get(o, "path");
    struct blk_opts *server = blk_opts_take(o, "server.");
    bool given = blk_opts_at(server, 0, NULL, NULL);
    int r = 0;

    if (given && (host || port || path))
        r = blk_err(e, EINVAL, "Cannot use 'server' and path/host/port at the same time");
    else if (host && path)
        r = blk_err(e, EINVAL, "path and host may not be used at the same time");
    else if (path && port)
        r = blk_err(e, EINVAL, "port may not be used without host");
    else if (given)
        r = config_socket(c, server, e);
    blk_opts_free(server);
    r = r ? r : SET(c->host, "host name", host);
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

/* QEMU's way: an object says where they are. */
static int config_tls_creds(struct nbdc_config *c, const char *id, struct blk_error *e)
{
    struct blk_tls_creds creds;
    int r = blk_tls_creds_get(id, &creds, e);

    if (r)
        return r;
    c->tls_verify = creds.verify_peer;
    if (!creds.psk)
        return SET(c->tls_certificates, "certificate folder", creds.dir);
    r = SET(c->tls_username, "user name", creds.username);
    if (!r && snprintf(c->tls_psk_file, sizeof(c->tls_psk_file), "%s/keys.psk", creds.dir) >=
              (int)sizeof(c->tls_psk_file))
        r = blk_err(e, ENAMETOOLONG, "The NBD key file's name is too long");
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
        r = config_tls_creds(c, blk_opts_get(o, "tls-creds"), e);
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
        return blk_err(e, EINVAL, "NBD over TLS needs tls-creds=ID, tls-certificates=DIR (with a "
                       "ca-cert.pem) or tls-psk-file=FILE, or tls-verify-peer=off");
    snprintf(ca, sizeof(ca), "%s/ca-cert.pem", c->tls_certificates);
    if (access(ca, R_OK))
        return blk_err_errno(e, errno, "Could not read '%s'", ca);
    if (!c->host[0])
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
    uint64_t connections = NBDC_CONNECTIONS, open_timeout = 0, seconds = 0;
    int r = config_server(c, o, e);

    /* QEMU's name for it. */
    r = r ? r : config_seconds(o, "reconnect-delay", &seconds, e);
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
    bool option = blk_opts_has(o, "driver");    /* that is what says NBD, not the name */
    int r = 0;

    *c = (struct nbdc_config){ .port = NBDC_PORT, .tls_verify = true };
    if (name && strstr(name, "://"))
        r = config_url(c, name, o, e);
    else if (name && !strncmp(name, "nbd:", 4))
        r = config_old_name(c, name, e);
    else if (name && !option)
        r = blk_err(e, EINVAL, "File name string for NBD must start with 'nbd:'");
    r = r ? r : config_options(c, o, e);
    if (!r && !c->host[0] && !c->path[0] && !c->vsock)
        r = blk_err(e, EINVAL, "NBD server address missing");
    if (!r && strlen(c->export) > EXPORT_MAX)
        r = blk_err(e, EINVAL, "export name too long to send to server");
    return r ? r : config_check_tls(c, e);
}

/* ---- and back ------------------------------------------------------------------- */

void nbdc_config_address(const struct nbdc_config *c, char *buf, size_t len)
{
    if (c->vsock)
        snprintf(buf, len, "%u:%u", c->cid, c->vsock_port);
    else if (c->path[0])
        snprintf(buf, len, "%s", c->path);
    else
        snprintf(buf, len, "%s:%s", c->host, c->port);
}

/* As QEMU writes it: no escapes; "v6" in brackets; nothing of TLS. */
char *nbdc_config_url(const struct nbdc_config *c)
{
    char *url = NULL;
    const char *slash = c->export[0] || c->path[0] ? "/" : "";
    bool v6 = strchr(c->host, ':');
    int n;

    if (c->vsock || c->dirty_bitmap[0])
        return NULL;
    if (c->path[0])
        n = asprintf(&url, "nbd+unix://%s%s?socket=%s", slash, c->export, c->path);
    else
        n = asprintf(&url, "nbd://%s%s%s:%s%s%s", v6 ? "[" : "", c->host, v6 ? "]" : "", c->port,
                     slash, c->export);
    return n < 0 ? NULL : url;
}
