/*
 * config.c - where the LUN is and who we are: from a URL, from QEMU's option names,
 * from files and from the environment.
 *
 *   iscsi://[user[%password]@]host[:port]/target/lun[?name=value...]
 *
 * Options win over the URL, the URL over the environment (LIBISCSI_CHAP_USERNAME,
 * _PASSWORD, _TARGET_USERNAME, _TARGET_PASSWORD).  Secrets never appear in messages.
 */
#include "protocols/iscsi/iscsi_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ISCSI_PORT      3260u
#define ISCSI_LUN_MAX   16383u
#define ISCSI_INITIATOR "iqn.2008-11.org.linux-kvm"     /* QEMU's */

static int config_set(char *dst, size_t room, const char *what, const char *value,
                      struct blk_error *e)
{
    if (!value)
        return 0;
    if (strlen(value) >= room)
        return blk_err(e, ENAMETOOLONG, "The iSCSI %s is longer than %zu bytes", what, room - 1);
    memcpy(dst, value, strlen(value) + 1);
    return 0;
}

/* Decimal, the whole text. */
static int config_number(const char *text, const char *what, unsigned max, unsigned *out,
                         struct blk_error *e)
{
    uint64_t v;

    if (!*text || strspn(text, "0123456789") != strlen(text) || strlen(text) > 9)
        return blk_err(e, EINVAL, "'%s' is not an iSCSI %s", text, what);
    v = strtoull(text, NULL, 10);
    if (v > max)
        return blk_err(e, EINVAL, "iSCSI %s %s is larger than %u", what, text, max);
    *out = (unsigned)v;
    return 0;
}

/* A password is the first line of a file. */
static int config_secret_file(char *dst, size_t room, const char *path, struct blk_error *e)
{
    char line[1024];
    FILE *f = fopen(path, "re");
    int ret = 0;

    if (!f)
        return blk_err_errno(e, errno, "Could not open password file '%s'", path);
    if (!fgets(line, sizeof(line), f))
        ret = blk_err(e, EINVAL, "Password file '%s' is empty", path);
    fclose(f);
    if (!ret) {
        line[strcspn(line, "\r\n")] = 0;
        ret = config_set(dst, room, "password", line, e);
    }
    explicit_bzero(line, sizeof(line));
    return ret;
}

/* "host", "host:port", "[v6]:port" */
static int config_portal(struct iscsi_config *c, const char *portal, struct blk_error *e)
{
    const char *host = portal, *end, *rest;

    if (*portal == '[' && (end = strchr(portal, ']'))) {
        host = portal + 1;
        rest = end + 1;
    } else {
        end = rest = portal + strcspn(portal, ":");
    }
    if (end == host || (size_t)(end - host) >= sizeof(c->host) || (*rest && *rest != ':'))
        return blk_err(e, EINVAL, "'%s' is not an iSCSI portal", portal);
    memcpy(c->host, host, (size_t)(end - host));
    c->host[end - host] = 0;
    return *rest ? config_number(rest + 1, "port", 65535, &c->port, e) : 0;
}

/* An option, by either spelling, from o. */
static const char *config_get(struct blk_opts *o, const char *key)
{
    char other[64];
    const char *v = blk_opts_get(o, key);

    snprintf(other, sizeof(other), "%s", key);
    for (char *p = other; *p; p++)
        *p = *p == '-' ? '_' : *p;
    return v || !strcmp(other, key) ? v : blk_opts_get(o, other);
}

static int config_digest(struct iscsi_config *c, const char *s, struct blk_error *e)
{
    static const struct { const char *name; enum iscsi_header_digest digest; } words[] = {
        { "crc32c", ISCSI_HEADER_DIGEST_CRC32C },
        { "none", ISCSI_HEADER_DIGEST_NONE },
        { "crc32c-none", ISCSI_HEADER_DIGEST_CRC32C_NONE },
        { "none-crc32c", ISCSI_HEADER_DIGEST_NONE_CRC32C },
    };
    for (size_t i = 0; s && i < BLK_ARRAY_SIZE(words); i++) {
        if (!strcmp(s, words[i].name)) {
            c->digest = words[i].digest;
            return 0;
        }
    }
    return s ? blk_err(e, EINVAL, "Invalid header-digest setting : %s", s) : 0;
}

/* What may be said by option or in a URL's query. */
static int config_common(struct iscsi_config *c, struct blk_opts *o, struct blk_error *e)
{
    const struct { const char *key; char *dst; size_t room; bool file; } fields[] = {
        { "initiator-name", c->initiator, sizeof(c->initiator), false },
        { "target-user", c->target_user, sizeof(c->target_user), false },
        { "target-password", c->target_password, sizeof(c->target_password), false },
        { "target-password-file", c->target_password, sizeof(c->target_password), true },
        { "password-file", c->password, sizeof(c->password), true },
    };
    int ret = 0;

    for (size_t i = 0; !ret && i < BLK_ARRAY_SIZE(fields); i++) {
        const char *v = config_get(o, fields[i].key);
        if (v && fields[i].file)
            ret = config_secret_file(fields[i].dst, fields[i].room, v, e);
        else
            ret = config_set(fields[i].dst, fields[i].room, fields[i].key, v, e);
    }
    const char *sessions = config_get(o, "sessions");
    if (!ret && sessions)
        ret = config_number(sessions, "session count", ISCSI_SESSIONS_MAX, &c->sessions, e);
    if (!ret && !c->sessions)
        ret = blk_err(e, EINVAL, "Parameter 'sessions' must be at least one");
    return ret ? ret : config_digest(c, config_get(o, "header-digest"), e);
}

/* "/target/lun" */
static int config_path(struct iscsi_config *c, const char *path, struct blk_error *e)
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    char target[sizeof(c->target)];

    if (!slash || slash == path || (size_t)(slash - path - 1) >= sizeof(target))
        return blk_err(e, EINVAL, "An iSCSI URL is "
                       "iscsi://[user[%%password]@]host[:port]/target/lun");
    memcpy(target, path + 1, (size_t)(slash - path - 1));
    target[slash - path - 1] = 0;
    int ret = config_set(c->target, sizeof(c->target), "target name", target, e);
    return ret ? ret : config_number(slash + 1, "LUN", ISCSI_LUN_MAX, &c->lun, e);
}

static int config_url(struct iscsi_config *c, struct blk_opts *o, const char *url,
                      struct blk_error *e)
{
    static const char *const passed_on[] = { "timeout", "reconnect" };
    struct blk_url u;
    int ret = blk_url_parse(url, &u, e);

    if (ret)
        return ret;
    ret = u.host ? config_set(c->host, sizeof(c->host), "host name", u.host, e)
                 : blk_err(e, EINVAL, "An iSCSI URL needs a host");
    if (u.port)
        c->port = u.port;
    ret = ret ? ret : config_path(c, u.path, e);
    ret = ret ? ret : config_set(c->user, sizeof(c->user), "user name", u.user, e);
    ret = ret ? ret : config_set(c->password, sizeof(c->password), "password", u.password, e);
    ret = ret ? ret : config_common(c, u.params, e);
    for (size_t i = 0; !ret && i < BLK_ARRAY_SIZE(passed_on); i++) {
        const char *v = blk_opts_get(u.params, passed_on[i]);
        if (v && !blk_opts_has(o, passed_on[i]))
            blk_opts_set(o, passed_on[i], v);
    }
    const char *unknown = ret ? NULL : blk_opts_unused(u.params);
    if (unknown)
        ret = blk_err(e, EINVAL, "An iSCSI URL has no parameter '%s'", unknown);
    blk_url_free(&u);
    return ret;
}

static int config_environment(struct iscsi_config *c, struct blk_error *e)
{
    const struct { const char *name; char *dst; size_t room; } vars[] = {
        { "LIBISCSI_CHAP_USERNAME", c->user, sizeof(c->user) },
        { "LIBISCSI_CHAP_PASSWORD", c->password, sizeof(c->password) },
        { "LIBISCSI_CHAP_TARGET_USERNAME", c->target_user, sizeof(c->target_user) },
        { "LIBISCSI_CHAP_TARGET_PASSWORD", c->target_password, sizeof(c->target_password) },
    };
    int ret = 0;

    for (size_t i = 0; !ret && i < BLK_ARRAY_SIZE(vars); i++)
        ret = config_set(vars[i].dst, vars[i].room, vars[i].name, getenv(vars[i].name), e);
    return ret;
}

/* As QEMU has it, a secret without a user is not looked at. */
static int config_password(struct iscsi_config *c, struct blk_opts *o, struct blk_error *e)
{
    const char *id = blk_opts_get(o, "password-secret"), *plain = blk_opts_get(o, "password");
    const char *text;
    int ret = config_set(c->user, sizeof(c->user), "user name", blk_opts_get(o, "user"), e);

    if (ret || !c->user[0])
        return ret;
    if (id && plain)
        return blk_err(e, EINVAL, "'password' and 'password-secret' properties are mutually "
                       "exclusive");
    ret = id ? blk_secret_get_text(id, &text, e) : 0;
    return ret ? ret : config_set(c->password, sizeof(c->password), "password",
                                  id ? text : plain, e);
}

static int config_options(struct iscsi_config *c, struct blk_opts *o, struct blk_error *e)
{
    const char *transport = blk_opts_get(o, "transport");
    const char *portal = blk_opts_get(o, "portal"), *target = blk_opts_get(o, "target");
    uint64_t lun = c->lun;
    int ret = 0;

    if (!c->host[0] && (!transport || !portal || !target))
        return blk_err(e, EINVAL, "Need all of transport, portal and target options");
    if (transport && strcmp(transport, "tcp"))
        return blk_err(e, EINVAL, "Unknown transport: %s", transport);
    if (portal)
        ret = config_portal(c, portal, e);
    ret = ret ? ret : config_set(c->target, sizeof(c->target), "target name", target, e);
    ret = ret ? ret : blk_opts_get_u64(o, "lun", &lun, e);
    if (!ret && lun > ISCSI_LUN_MAX)
        ret = blk_err(e, EINVAL, "iSCSI LUN %llu is larger than %u", (unsigned long long)lun,
                      ISCSI_LUN_MAX);
    c->lun = (unsigned)lun;
    ret = ret ? ret : config_password(c, o, e);
    return ret ? ret : config_common(c, o, e);
}

int iscsi_config_get(struct iscsi_config *c, struct blk_opts *o, struct blk_error *e)
{
    const char *url = blk_opts_get(o, "filename");
    int ret;

    *c = (struct iscsi_config){ .port = ISCSI_PORT, .sessions = 1, .initiator = ISCSI_INITIATOR,
                                .digest = ISCSI_HEADER_DIGEST_NONE_CRC32C };
    ret = config_environment(c, e);
    if (!ret && url)
        ret = config_url(c, o, url, e);
    ret = ret ? ret : config_options(c, o, e);
    if (!ret && c->user[0] && !c->password[0])
        ret = blk_err(e, EINVAL, "CHAP username specified but no password was given");
    if (!ret && c->target_user[0] && !c->user[0])
        ret = blk_err(e, EINVAL, "Mutual CHAP needs a user of one's own as well");
    return ret;
}
