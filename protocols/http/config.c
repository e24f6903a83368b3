/*
 * config.c - which file, and who we are: URLs, QEMU's options, files, the environment.
 *
 * A URL's query is the server's, so our options can only be said as options.  User and
 * password come from the URL, from options, or from PLATTER_HTTP_USERNAME and
 * PLATTER_HTTP_PASSWORD; without a user libcurl looks into ~/.netrc, which knows hosts.
 */
#include "protocols/http/http_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SECRET_MAX 4096

static void replace(char **dst, const char *value)
{
    if (*dst)
        explicit_bzero(*dst, strlen(*dst));
    free(*dst);
    *dst = value ? strdup(value) : NULL;
}

void http_config_free(struct http_config *c)
{
    char **all[] = { &c->url, &c->user, &c->password, &c->proxy_user, &c->proxy_password,
                     &c->cookie, &c->cacert };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(all); i++)
        replace(all[i], NULL);
}

/* A secret is the first line of a file. */
static int secret_file(char **dst, const char *path, struct blk_error *e)
{
    char line[SECRET_MAX];
    FILE *f = fopen(path, "re");

    if (!f)
        return blk_err_errno(e, errno, "Could not open '%s'", path);
    bool got = fgets(line, sizeof(line), f);
    fclose(f);
    if (!got)
        return blk_err(e, EINVAL, "'%s' is empty", path);
    line[strcspn(line, "\r\n")] = 0;
    replace(dst, line);
    explicit_bzero(line, sizeof(line));
    return 0;
}

/* "KEY", "KEY-file" or, as in QEMU, "KEY-secret", which names an object. */
static int config_secret(char **dst, struct blk_opts *o, const char *key, bool plain,
                         struct blk_error *e)
{
    char file[64], secret[64];

    snprintf(file, sizeof(file), "%s-file", key);
    snprintf(secret, sizeof(secret), "%s-secret", key);
    const char *text, *id = blk_opts_get(o, secret);
    int r = id ? blk_secret_get_text(id, &text, e) : 0;
    if (r)
        return r;
    if (id)
        replace(dst, text);
    if (plain && blk_opts_has(o, key))
        replace(dst, blk_opts_get(o, key));
    return blk_opts_has(o, file) ? secret_file(dst, blk_opts_get(o, file), e) : 0;
}

/* The URL without what must not be shown, and that. */
static int config_url(struct http_config *c, const char *scheme, const char *url,
                      struct blk_error *e)
{
    size_t len = strlen(scheme);
    struct blk_url u;
    CURLU *h;
    char *plain = NULL;

    if (strncasecmp(url, scheme, len) || strncmp(url + len, "://", 3)) {
        char *shown = blk_redact(url);
        blk_err(e, EINVAL, "%s curl driver cannot handle the URL '%s' (does not start with "
                "'%s://')", scheme, shown ? shown : "", scheme);
        free(shown);
        return -EINVAL;
    }
    int r = blk_url_parse(url, &u, e);
    if (r)
        return r;
    replace(&c->user, u.user);
    replace(&c->password, u.password);
    blk_url_free(&u);
    h = curl_url();
    if (!h || curl_url_set(h, CURLUPART_URL, url, 0) ||
        curl_url_set(h, CURLUPART_USER, NULL, 0) || curl_url_set(h, CURLUPART_PASSWORD, NULL, 0) ||
        curl_url_set(h, CURLUPART_FRAGMENT, NULL, 0) || curl_url_get(h, CURLUPART_URL, &plain, 0))
        r = blk_err(e, EINVAL, "it is not a valid URL");
    replace(&c->url, plain);
    curl_free(plain);
    curl_url_cleanup(h);
    return r;
}

static int config_numbers(struct http_config *c, struct blk_opts *o, struct blk_error *e)
{
    uint64_t readahead = HTTP_READAHEAD, connections = HTTP_CONNECTIONS, timeout = 0;
    bool force_range;                       /* the answers show what the server can */
    int r = blk_opts_get_size(o, "readahead", &readahead, e);

    r = r ? r : blk_opts_get_u64(o, "connections", &connections, e);
    r = r ? r : blk_opts_get_u64(o, "timeout", &timeout, e);
    if (!r && timeout > HTTP_TIMEOUT_MAX)
        r = blk_err(e, EINVAL, "timeout parameter is too large or negative");
    r = r ? r : blk_opts_get_bool(o, "sslverify", &c->sslverify, e);
    r = r ? r : blk_opts_get_bool(o, "force-range", &force_range, e);
    if (!r && readahead % 512)
        r = blk_err(e, EINVAL, "HTTP_READAHEAD_SIZE %llu is not a multiple of 512",
                    (unsigned long long)readahead);
    if (!r && (!connections || connections > HTTP_CONNECTIONS_MAX))
        r = blk_err(e, EINVAL, "Parameter 'connections' expects a number from 1 to %u",
                    HTTP_CONNECTIONS_MAX);
    c->readahead = (unsigned)BLK_MIN(readahead, (uint64_t)HTTP_READAHEAD_MAX);
    c->connections = (unsigned)connections;
    return r;
}

int http_config_get(struct http_config *c, const char *scheme, struct blk_opts *o,
                    struct blk_error *e)
{
    const char *url = blk_opts_get(o, "url"), *name = blk_opts_get(o, "filename");
    const char *bundle = getenv("CURL_CA_BUNDLE") ? getenv("CURL_CA_BUNDLE")
                                                  : getenv("SSL_CERT_FILE");
    *c = (struct http_config){ .sslverify = true, .ftp = !strncmp(scheme, "ftp", 3) };
    if (!url && !name)
        return blk_err(e, EINVAL, "curl block driver requires an 'url' option");
    int r = config_url(c, scheme, url ? url : name, e);
    if (blk_opts_has(o, "username"))
        replace(&c->user, blk_opts_get(o, "username"));
    else if (!c->user)
        replace(&c->user, getenv("PLATTER_HTTP_USERNAME"));
    r = r ? r : config_secret(&c->password, o, "password", true, e);
    if (c->user && !c->password)
        replace(&c->password, getenv("PLATTER_HTTP_PASSWORD"));
    replace(&c->proxy_user, blk_opts_get(o, "proxy-username"));
    r = r ? r : config_secret(&c->proxy_password, o, "proxy-password", true, e);
    if (!r && blk_opts_has(o, "cookie") && blk_opts_has(o, "cookie-secret"))
        r = blk_err(e, EINVAL, "curl driver cannot handle both cookie and cookie secret");
    r = r ? r : config_secret(&c->cookie, o, "cookie", true, e);
    replace(&c->cacert, blk_opts_has(o, "cacert") ? blk_opts_get(o, "cacert") : bundle);
    return r ? r : config_numbers(c, o, e);
}

static char *url_part(const char *url, CURLUPart part)
{
    CURLU *h = curl_url();
    char *out = NULL;

    if (h && !curl_url_set(h, CURLUPART_URL, url, 0))
        (void)curl_url_get(h, part, &out, CURLU_DEFAULT_PORT);
    curl_url_cleanup(h);
    return out;
}

bool http_same_origin(const char *a, const char *b)
{
    static const CURLUPart parts[] = { CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT };
    bool same = true;

    for (size_t i = 0; same && i < BLK_ARRAY_SIZE(parts); i++) {
        char *pa = url_part(a, parts[i]), *pb = url_part(b, parts[i]);
        same = pa && pb && !strcasecmp(pa, pb);
        curl_free(pa);
        curl_free(pb);
    }
    return same;
}
