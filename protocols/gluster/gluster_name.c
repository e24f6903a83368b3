/*
 * gluster_name.c - what names an image on Gluster: QEMU's URL
 * gluster[+tcp|+unix]://host[:port]/volume/path[?socket=path&...] or its options
 * (volume, path, server.N.type, server.N.host, server.N.port, server.N.path).
 */
#include "protocols/gluster/gluster_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void gluster_name_free(struct gluster_name *name)
{
    for (unsigned i = 0; i < name->nservers; i++) {
        free(name->server[i].transport);
        free(name->server[i].host);
    }
    free(name->volume);
    free(name->path);
    free(name->logfile);
    *name = (struct gluster_name){ 0 };
}

static int name_add_server(struct gluster_name *name, const char *transport, const char *host,
                           unsigned port)
{
    struct gluster_server *s = &name->server[name->nservers++];

    s->transport = strdup(transport);
    s->host = strdup(host);
    s->port = port;
    return s->transport && s->host ? 0 : -ENOMEM;
}

int gluster_name_copy(struct gluster_name *dst, const struct gluster_name *src)
{
    int r = 0;

    *dst = (struct gluster_name){ .debug = src->debug };
    for (unsigned i = 0; !r && i < src->nservers; i++)
        r = name_add_server(dst, src->server[i].transport, src->server[i].host,
                            src->server[i].port);
    dst->volume = strdup(src->volume);
    dst->path = strdup(src->path);
    dst->logfile = strdup(src->logfile);
    return dst->volume && dst->path && dst->logfile ? r : -ENOMEM;
}

static void name_encode(FILE *out, const char *s, const char *also)
{
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        bool plain = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') ||
                     strchr("-._~/", c) || strchr(also, c);
        fprintf(out, plain ? "%c" : "%%%02X", c);
    }
}

char *gluster_name_url(const struct gluster_name *name)
{
    const struct gluster_server *s = &name->server[0];
    bool is_unix = !strcmp(s->transport, "unix"), v6 = !is_unix && strchr(s->host, ':');
    char *url = NULL;
    size_t len;
    FILE *out = open_memstream(&url, &len);

    if (!out)
        return NULL;
    fprintf(out, "gluster%s://%s", is_unix ? "+unix" : "", v6 ? "[" : "");
    if (!is_unix)
        name_encode(out, s->host, ":");
    fprintf(out, "%s", v6 ? "]" : "");
    if (s->port && s->port != GLUSTER_PORT)
        fprintf(out, ":%u", s->port);
    fputc('/', out);
    name_encode(out, name->volume, "");
    fputc('/', out);
    name_encode(out, name->path + strspn(name->path, "/"), "");
    if (is_unix) {
        fprintf(out, "?socket=");
        name_encode(out, s->host, "");
    }
    if (!fclose(out))
        return url;
    free(url);
    return NULL;
}

/* ---- options ------------------------------------------------------------------------ */

static int name_port(const char *s, unsigned *out, struct blk_error *e)
{
    char *end;
    unsigned long v = strtoul(s, &end, 10);

    if (!*s || *end || v == 0 || v > 65535 || *s < '0' || *s > '9')
        return blk_err(e, EINVAL, "'%.64s' is not a valid port number", s);
    *out = (unsigned)v;
    return 0;
}

/* One server.N of the options, its prefix cut off. */
static int name_server(struct gluster_name *name, struct blk_opts *o, unsigned i,
                       struct blk_error *e)
{
    const char *type = blk_opts_get(o, "type"), *host = blk_opts_get(o, "host");
    const char *port = blk_opts_get(o, "port"), *path = blk_opts_get(o, "path");
    const char *unused;
    unsigned p = GLUSTER_PORT;
    int r = 0;

    path = path ? path : blk_opts_get(o, "socket");
    unused = blk_opts_unused(o);
    if (unused)
        return blk_err(e, EINVAL, "Invalid parameter 'server.%u.%s'", i, unused);
    if (!type)
        return blk_err(e, EINVAL, "Parameter 'type' is missing");
    if (strcmp(type, "inet") && strcmp(type, "tcp") && strcmp(type, "unix"))
        return blk_err(e, EINVAL, "Parameter 'type' may be 'inet' or 'unix'");
    if (!strcmp(type, "unix"))
        return path ? name_add_server(name, "unix", path, 0)
                    : blk_err(e, EINVAL, "Parameter 'path' is missing");
    if (!host || !*host)
        return blk_err(e, EINVAL, "Parameter 'host' is missing");
    if (port)
        r = name_port(port, &p, e);
    return r ? r : name_add_server(name, "tcp", host, p);
}

static const char usage[] = "Usage: -drive driver=qcow2,"
    "file.driver=gluster,file.volume=testvol,file.path=/path/a.qcow2"
    "[,file.debug=9][,file.logfile=/path/filename.log],file.server.0.type=inet,"
    "file.server.0.host=1.2.3.4,file.server.0.port=24007,"
    "file.server.1.transport=unix,file.server.1.path=/var/run/glusterd.socket ...";

static int name_from_options(struct gluster_name *name, struct blk_opts *o, struct blk_error *e)
{
    const char *volume = blk_opts_get(o, "volume"), *path = blk_opts_get(o, "path");
    struct blk_opts *all = blk_opts_take(o, "server.");
    int r = 0;

    if (!blk_opts_has(all, "0.type") && !blk_opts_has(all, "0.host"))
        r = blk_err(e, EINVAL, "Parameter 'server' is missing");
    else if (!volume || !*volume)
        r = blk_err(e, EINVAL, "Parameter 'volume' is missing");
    else if (!path || !*path)
        r = blk_err(e, EINVAL, "Parameter 'path' is missing");
    for (unsigned i = 0; !r && blk_opts_at(all, 0, NULL, NULL); i++) {
        char prefix[16];
        snprintf(prefix, sizeof(prefix), "%u.", i);
        struct blk_opts *one = blk_opts_take(all, prefix);
        if (i == GLUSTER_SERVERS_MAX)
            r = blk_err(e, E2BIG, "More than %u Gluster servers", GLUSTER_SERVERS_MAX);
        else if (!blk_opts_at(one, 0, NULL, NULL))
            r = blk_err(e, EINVAL, "Parameter 'server.%u' is missing", i);
        else if ((r = name_server(name, one, i, e)))
            blk_error_hint(e, "hint: check in 'server' array index '%u'", i);
        blk_opts_free(one);
    }
    blk_opts_free(all);
    if (r) {
        blk_error_hint(e, "%s", usage);         /* QEMU's */
        return r;
    }
    name->volume = strdup(volume);
    name->path = strdup(path);
    return name->volume && name->path ? 0 : -ENOMEM;
}

/* ---- URLs ------------------------------------------------------------------------------- */

/* The path of the URL: /volume/path/in/it. */
static int name_volume(struct gluster_name *name, const char *path, struct blk_error *e)
{
    size_t len;

    path += path ? strspn(path, "/") : 0;
    len = path ? strcspn(path, "/") : 0;
    if (!len || !path[len + strspn(path + len, "/")])
        return blk_err(e, EINVAL, "Gluster URL needs a volume and a path: "
                       "gluster[+transport]://[host[:port]]/volume/path[?socket=...]");
    name->volume = strndup(path, len);
    name->path = strdup(path + len + strspn(path + len, "/"));
    return name->volume && name->path ? 0 : -ENOMEM;
}

/* What the query says are options; those given outside of the URL count more. */
static int name_query(struct blk_url *u, struct blk_opts *o, const char **socket,
                      struct blk_error *e)
{
    const char *key, *value;

    for (size_t i = 0; u->params && blk_opts_at(u->params, i, &key, &value); i++) {
        if (!strcmp(key, "socket"))
            *socket = value;
        else if (strcmp(key, "debug") && strcmp(key, "logfile") && strcmp(key, "timeout") &&
                 strcmp(key, "reconnect"))
            return blk_err(e, EINVAL, "Gluster URL has an unknown parameter '%.64s'", key);
        else if (!blk_opts_has(o, key))
            blk_opts_set(o, key, value);
    }
    return 0;
}

static int name_from_url(struct gluster_name *name, const char *url, struct blk_opts *o,
                         struct blk_error *e)
{
    const char *socket = NULL;
    struct blk_url u = { 0 };
    int r = blk_url_parse(url, &u, e);

    if (!r)
        r = name_query(&u, o, &socket, e);
    if (!r)
        r = name_volume(name, u.path, e);
    if (!r && u.user)
        r = blk_err(e, EINVAL, "Gluster URL must not name a user");
    if (r)
        goto out;
    if (u.transport && !strcmp(u.transport, "unix")) {
        if (u.host || u.port || !socket)
            r = blk_err(e, EINVAL, "gluster+unix URL needs ?socket=PATH and no host");
        else
            r = name_add_server(name, "unix", socket, 0);
    } else if (u.transport && strcmp(u.transport, "tcp")) {
        r = blk_err(e, EINVAL, "Gluster transport '%.32s' is not supported", u.transport);
    } else if (socket) {
        r = blk_err(e, EINVAL, "Only gluster+unix URLs have a socket");
    } else {
        r = name_add_server(name, "tcp", u.host ? u.host : "localhost",
                            u.port ? u.port : GLUSTER_PORT);
    }
out:
    blk_url_free(&u);
    return r;
}

int gluster_name_parse(struct gluster_name *name, struct blk_opts *o, struct blk_error *e)
{
    const char *url = blk_opts_get(o, "filename"), *log;
    uint64_t debug = 4;         /* errors, QEMU's default */
    int r = url ? name_from_url(name, url, o, e) : name_from_options(name, o, e);

    if (!r)
        r = blk_opts_get_u64(o, "debug", &debug, e);
    if (r)
        return r == -ENOMEM ? blk_err_errno(e, ENOMEM, "Could not name the image") : r;
    name->debug = (unsigned)BLK_MIN(debug, 9u);
    log = blk_opts_get(o, "logfile");
    name->logfile = strdup(log ? log : "/dev/null");
    return name->logfile ? 0 : blk_err_errno(e, ENOMEM, "Could not name the image");
}
