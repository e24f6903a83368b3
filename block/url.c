/*
 * url.c - names: URLs taken apart, relative names resolved.
 * What may be printed of a name is in redact.c.
 *
 * Parsing rules
 *  - Every part is percent-decoded once; a decoded NUL is an error, for it would
 *    cut the name that a library then opens.
 *  - The user part: "user:password", both decoded; iscsi and iser write
 *    "user%password", of which nothing is decoded, as libiscsi does it.
 *  - u->query is the text after '?' as it stands; u->params is it decoded.
 *  - '#' is a plain character: none of our protocols has fragments.
 */
#include "block/driver.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define URL_MAX         8192u   /* bytes of a URL */
#define URL_PARAMS_MAX  256u    /* parameters in a query */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* s[0..len) percent-decoded into *out.  *out is NULL on failure. */
static int url_decode(const char *s, size_t len, char **out)
{
    char *d = *out = malloc(len + 1);
    if (!d)
        return -ENOMEM;
    for (size_t i = 0; i < len; i++) {
        if (s[i] != '%') {
            *d++ = s[i];
            continue;
        }
        int hi = len - i > 2 ? hex_digit(s[i + 1]) : -1;
        int lo = hi < 0 ? -1 : hex_digit(s[i + 2]);
        if (lo < 0 || !(hi | lo)) {
            free(*out);
            *out = NULL;
            return -EINVAL;
        }
        *d++ = (char)(hi << 4 | lo);
        i += 2;
    }
    *d = 0;
    return 0;
}

static int url_copy(const char *s, size_t len, char **out)
{
    *out = strndup(s, len);
    return *out ? 0 : -ENOMEM;
}

/* "nfs" or "gluster+unix" in s[0..len). */
static int url_scheme(struct blk_url *u, const char *s, size_t len)
{
    if (!len || !isalpha((unsigned char)*s))
        return -EINVAL;
    for (size_t i = 0; i < len; i++)
        if (!isalnum((unsigned char)s[i]) && !strchr("+-.", s[i]))
            return -EINVAL;
    const char *plus = memchr(s, '+', len);
    size_t n = plus ? (size_t)(plus - s) : len;
    int r = url_copy(s, n, &u->scheme);
    if (!r && plus)
        r = url_copy(plus + 1, len - n - 1, &u->transport);
    return r;
}

static int url_userinfo(struct blk_url *u, const char *s, size_t len)
{
    bool raw = !strcmp(u->scheme, "iscsi") || !strcmp(u->scheme, "iser");
    const char *sep = raw ? memchr(s, '%', len) : NULL;
    if (!sep)
        sep = memchr(s, ':', len);
    int (*get)(const char *, size_t, char **) = raw ? url_copy : url_decode;
    size_t n = sep ? (size_t)(sep - s) : len;
    int r = get(s, n, &u->user);
    if (!r && sep)
        r = get(sep + 1, len - n - 1, &u->password);
    return r;
}

static int url_port(struct blk_url *u, const char *s, size_t len)
{
    unsigned port = 0;
    if (len > 5)
        return -EINVAL;
    for (size_t i = 0; i < len; i++) {
        if (!isdigit((unsigned char)s[i]))
            return -EINVAL;
        port = port * 10 + (unsigned)(s[i] - '0');
    }
    if (port > 65535 || (len && !port))
        return -EINVAL;
    u->port = port;
    return 0;
}

/* "host", "host:port", "[v6]:port" or nothing. */
static int url_host(struct blk_url *u, const char *s, size_t len)
{
    const char *end = s + len, *host = s, *host_end, *rest;
    if (len && *s == '[') {
        host = s + 1;
        host_end = memchr(s, ']', len);
        if (!host_end || host_end == host)
            return -EINVAL;
        rest = host_end + 1;
    } else {
        const char *colon = memchr(s, ':', len);
        host_end = rest = colon ? colon : end;
    }
    if (rest < end && *rest != ':')
        return -EINVAL;
    if (host_end == host)
        return rest < end ? -EINVAL : 0;
    int r = url_decode(host, (size_t)(host_end - host), &u->host);
    return r || rest == end ? r : url_port(u, rest + 1, (size_t)(end - rest - 1));
}

static int url_authority(struct blk_url *u, const char *s, size_t len)
{
    const char *at = memrchr(s, '@', len);
    if (at) {
        int r = url_userinfo(u, s, (size_t)(at - s));
        if (r)
            return r;
        len -= (size_t)(at + 1 - s);
        s = at + 1;
    }
    return url_host(u, s, len);
}

/* "a=1&b=2", ';' for '&' as QEMU has it; a name alone has an empty value. */
static int url_query(struct blk_url *u, const char *s)
{
    unsigned count = 0;
    while (*s) {
        size_t len = strcspn(s, "&;");
        const char *eq = memchr(s, '=', len);
        size_t n = eq ? (size_t)(eq - s) : len;
        char *key, *value = NULL;
        int r = url_decode(s, n, &key);
        if (!r)
            r = eq ? url_decode(eq + 1, len - n - 1, &value) : url_copy("", 0, &value);
        if (!r && ++count > URL_PARAMS_MAX)
            r = -E2BIG;
        if (!r && *key)
            blk_opts_set(u->params, key, value);
        free(key);
        free(value);
        if (r)
            return r;
        s += s[len] ? len + 1 : len;
    }
    return 0;
}

static int url_parse(const char *s, struct blk_url *u)
{
    const char *p = strstr(s, "://");
    if (!p)
        return -EINVAL;
    int r = url_scheme(u, s, (size_t)(p - s));
    if (r)
        return r;
    p += 3;
    size_t len = strcspn(p, "/?");
    r = url_authority(u, p, len);
    if (r)
        return r;
    p += len;
    len = strcspn(p, "?");
    if (len) {
        r = url_decode(p, len, &u->path);
        if (r)
            return r;
    }
    p += len;
    if (!*p)
        return 0;
    r = url_copy(p + 1, strlen(p + 1), &u->query);
    return r ? r : url_query(u, p + 1);
}

int blk_url_parse(const char *s, struct blk_url *u, struct blk_error *e)
{
    memset(u, 0, sizeof(*u));
    if (strnlen(s, URL_MAX + 1) > URL_MAX)
        return blk_err(e, E2BIG, "A URL is longer than %u bytes", URL_MAX);
    u->params = blk_opts_new();
    int r = url_parse(s, u);
    if (r) {
        char *shown = blk_redact(s);
        if (r == -EINVAL)
            blk_err(e, EINVAL, "'%s' is not a valid URL", shown);
        else
            blk_err_errno(e, -r, "'%s'", shown);
        free(shown);
        blk_url_free(u);
    }
    return r;
}

void blk_url_free(struct blk_url *u)
{
    char *parts[] = { u->scheme, u->transport, u->user, u->password, u->host, u->path, u->query };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(parts); i++)
        free(parts[i]);
    blk_opts_free(u->params);
    memset(u, 0, sizeof(*u));
}

/* ---- names ------------------------------------------------------------------------- */

bool blk_has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

/* Where in base a relative name is put: after the last '/' of its path, after
 * "proto:" at least.  A URL's query is not path, its host is no directory. */
static size_t resolve_dir_len(const char *base)
{
    const char *path = base;
    size_t end = strlen(base);
    if (blk_has_protocol(base)) {
        path = strchr(base, ':') + 1;
        if (path[0] == '/' && path[1] == '/') {
            path += 2;
            path += strcspn(path, "/?");
            end = (size_t)(path - base) + strcspn(path, "?");
        }
    }
    const char *slash = memrchr(path, '/', end - (size_t)(path - base));
    return slash ? (size_t)(slash + 1 - base) : (size_t)(path - base);
}

char *blk_resolve_name(const char *base, const char *name)
{
    if (*name == '/' || blk_has_protocol(name))
        return strdup(name);
    if (!*base || !strncmp(base, "json:", 5))
        return NULL;
    size_t dir = resolve_dir_len(base), len = strlen(name);
    /* "nfs://host" has no directory yet. */
    bool slash = dir && base[dir - 1] != '/' && base[dir - 1] != ':';
    char *out = malloc(dir + slash + len + 1);
    if (!out)
        return NULL;
    memcpy(out, base, dir);
    if (slash)
        out[dir] = '/';
    memcpy(out + dir + slash, name, len + 1);
    return out;
}
