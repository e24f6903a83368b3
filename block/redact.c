/*
 * redact.c - what may be printed of a name: secrets become "***".
 *
 * Secret are the password in a URL's user part, and the value of every key,
 * query parameter or JSON member whose last component names one (is_secret()).
 * "password-secret" and its like name a secret kept elsewhere and stay.
 * Anything that cannot be understood as what it claims to be (json: that does
 * not parse) is hidden whole.  Names without secrets come back unchanged.
 */
#include "block/opts.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HIDDEN "***"

/* A string that grows; out of memory shows as s == NULL and stays so. */
struct text {
    char *s;
    size_t len, room;
    bool failed;
};

static void text_put(struct text *t, const char *s, size_t len)
{
    if (t->failed)
        return;
    if (t->len + len + 1 > t->room) {
        size_t room = (t->len + len + 1) * 2;
        char *p = realloc(t->s, room);
        if (!p) {
            t->failed = true;
            return;
        }
        t->s = p;
        t->room = room;
    }
    memcpy(t->s + t->len, s, len);
    t->len += len;
    t->s[t->len] = 0;
}

static char *text_take(struct text *t)
{
    if (t->failed) {
        free(t->s);
        return NULL;
    }
    return t->s;
}

static bool ends_with(const char *s, size_t len, const char *end)
{
    size_t n = strlen(end);
    return len >= n && !strncasecmp(s + len - n, end, n);
}

/* Is key[0..len) the name of a secret? */
static bool is_secret(const char *key, size_t len)
{
    static const char *const endings[] = {
        "password", "passwd", "passphrase", "token", "cookie", "signature",
    };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(endings); i++)
        if (ends_with(key, len, endings[i]))
            return true;
    return (len == 4 && !strncasecmp(key, "pass", 4)) || ends_with(key, len, ".pass") ||
           (len == 3 && !strncasecmp(key, "sig", 3));
}

/* ---- URLs --------------------------------------------------------------------------- */

/* "user:pass@" or "user%pass@" at s[0..len), the '@' not included. */
static void put_userinfo(struct text *t, const char *s, size_t len)
{
    size_t n = 0;
    while (n < len && s[n] != ':' && s[n] != '%')
        n++;
    text_put(t, s, n);
    if (n == len)
        return;
    text_put(t, s + n, 1);
    text_put(t, HIDDEN, strlen(HIDDEN));
}

static void put_query(struct text *t, const char *s, size_t len)
{
    while (len) {
        size_t part = 0;
        while (part < len && s[part] != '&' && s[part] != ';')
            part++;
        const char *eq = memchr(s, '=', part);
        if (eq && is_secret(s, (size_t)(eq - s))) {
            text_put(t, s, (size_t)(eq + 1 - s));
            text_put(t, HIDDEN, strlen(HIDDEN));
        } else {
            text_put(t, s, part);
        }
        if (part < len)
            text_put(t, s + part++, 1);
        s += part;
        len -= part;
    }
}

/* Any text; if it holds "://" it is taken for a URL. */
static void put_url(struct text *t, const char *s, size_t len)
{
    const char *p = memmem(s, len, "://", 3);
    if (!p) {
        text_put(t, s, len);
        return;
    }
    p += 3;
    const char *end = s + len, *auth = p;
    while (auth < end && *auth != '/' && *auth != '?')
        auth++;
    const char *at = memrchr(p, '@', (size_t)(auth - p));
    text_put(t, s, (size_t)(p - s));
    if (at) {
        put_userinfo(t, p, (size_t)(at - p));
        p = at;
    }
    const char *query = memchr(p, '?', (size_t)(end - p));
    text_put(t, p, (size_t)((query ? query + 1 : end) - p));
    if (query)
        put_query(t, query + 1, (size_t)(end - query - 1));
}

/* ---- "k=v,k=v" --------------------------------------------------------------------- */

/* Length of the item at s: up to a comma that is not doubled. */
static size_t item_len(const char *s)
{
    size_t n = 0;
    for (; s[n]; n++) {
        if (s[n] != ',')
            continue;
        if (s[n + 1] != ',')
            break;
        n++;
    }
    return n;
}

static void put_list(struct text *t, const char *s)
{
    for (;;) {
        size_t len = item_len(s), key = strcspn(s, "=");
        if (key < len && is_secret(s, key)) {
            text_put(t, s, key + 1);
            text_put(t, HIDDEN, strlen(HIDDEN));
        } else if (key < len) {
            text_put(t, s, key + 1);
            put_url(t, s + key + 1, len - key - 1);
        } else {
            put_url(t, s, len);
        }
        s += len;
        if (!*s)
            return;
        text_put(t, s++, 1);
    }
}

/* ---- json: -------------------------------------------------------------------------- */

/* A string value's replacement, or NULL when it may be shown as it is. */
static json_t *json_hidden(const char *key, json_t *v)
{
    if (is_secret(key, strlen(key)) && !json_is_object(v) && !json_is_array(v))
        return json_string(HIDDEN);
    if (!json_is_string(v))
        return NULL;
    const char *old = json_string_value(v);
    char *shown = blk_redact(old);
    json_t *r = shown && strcmp(shown, old) ? json_string(shown) : NULL;
    free(shown);
    return r;
}

/* Recursion is bounded by what opts_json_load() lets through. */
static bool json_redact(json_t *v)
{
    bool changed = false;
    const char *key;
    json_t *member;
    void *next;
    json_object_foreach_safe(v, next, key, member) {
        json_t *hidden = json_hidden(key, member);
        if (hidden) {
            json_object_set_new(v, key, hidden);
            changed = true;
        } else {
            changed |= json_redact(member);
        }
    }
    for (size_t i = 0; i < json_array_size(v); i++) {
        member = json_array_get(v, i);
        json_t *hidden = json_hidden("", member);
        if (hidden) {
            json_array_set_new(v, i, hidden);
            changed = true;
        } else {
            changed |= json_redact(member);
        }
    }
    return changed;
}

static char *redact_json(const char *name)
{
    json_t *root = opts_json_load(name, NULL);
    if (!root)
        return strdup("json:" HIDDEN);
    char *out = NULL;
    if (!json_redact(root)) {
        out = strdup(name);
    } else {
        char *text = json_dumps(root, 0);
        struct text t = { 0 };
        text_put(&t, "json:", 5);
        if (text)
            text_put(&t, text, strlen(text));
        else
            t.failed = true;
        free(text);
        out = text_take(&t);
    }
    json_decref(root);
    return out;
}

char *blk_redact(const char *name)
{
    if (!strncmp(name, "json:", 5))
        return redact_json(name);
    struct text t = { 0 };
    text_put(&t, "", 0);
    /* "proto://" before anything of a list: its commas are its own. */
    const char *url = strstr(name, "://");
    if (url && (size_t)(url - name) < strcspn(name, "=,"))
        put_url(&t, name, strlen(name));
    else
        put_list(&t, name);
    return text_take(&t);
}
