/*
 * opts_json.c - JSON objects flattened into options.
 *
 * {"a": {"b": 1}, "c": ["x"]} becomes a.b=1, c.0=x.  true and false become on
 * and off; null becomes an empty string that is no string, which for
 * "backing" means none.
 * Text, depth, key length and number of options are capped before anything is
 * built from them; strings cannot hold NUL (jansson refuses \u0000).
 */
#include "block/opts.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct flatten {
    struct blk_opts *o;
    struct blk_error *e;
    char key[OPTS_KEY_MAX + 1];
    unsigned count;
};

static int flatten_value(struct flatten *f, size_t used, json_t *v);

/* Append "[.]name" to the key, flatten v under it, cut the key back. */
static int flatten_member(struct flatten *f, size_t used, const char *name, json_t *v)
{
    int n = snprintf(f->key + used, sizeof(f->key) - used, "%s%s", used ? "." : "", name);
    if (n < 0 || (size_t)n >= sizeof(f->key) - used)
        return blk_err(f->e, E2BIG, "A JSON option's name is longer than %d bytes", OPTS_KEY_MAX);
    int r = *name ? flatten_value(f, used + (size_t)n, v)
                  : blk_err(f->e, EINVAL, "Invalid parameter ''");
    f->key[used] = 0;
    return r;
}

static int flatten_nested(struct flatten *f, size_t used, json_t *v)
{
    size_t n = json_is_object(v) ? json_object_size(v) : json_array_size(v);
    if (!n && used)
        return blk_err(f->e, EINVAL, "JSON option '%s' is empty", f->key);
    int r = 0;
    if (json_is_object(v)) {
        const char *name;
        json_t *member;
        json_object_foreach(v, name, member) {
            r = flatten_member(f, used, name, member);
            if (r)
                break;
        }
    } else {
        for (size_t i = 0; i < n && !r; i++) {
            char name[24];
            snprintf(name, sizeof(name), "%zu", i);
            r = flatten_member(f, used, name, json_array_get(v, i));
        }
    }
    return r;
}

static int flatten_value(struct flatten *f, size_t used, json_t *v)
{
    if (json_is_object(v) || json_is_array(v))
        return flatten_nested(f, used, v);
    if (++f->count > OPTS_MAX)
        return blk_err(f->e, E2BIG, "More than %d JSON options", OPTS_MAX);
    char number[32];
    switch (json_typeof(v)) {
    case JSON_STRING:
        blk_opts_set(f->o, f->key, json_string_value(v));
        break;
    case JSON_INTEGER:
        snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        opts_set_literal(f->o, f->key, number);
        break;
    case JSON_REAL:
        snprintf(number, sizeof(number), "%.17g", json_real_value(v));
        opts_set_literal(f->o, f->key, number);
        break;
    case JSON_NULL:
        opts_set_literal(f->o, f->key, "");
        break;
    default:
        opts_set_literal(f->o, f->key, json_is_true(v) ? "on" : "off");
    }
    return 0;
}

/* QEMU's JSON knows 'strings' as well, and \' in both kinds; jansson does not.  NULL: no memory. */
static char *double_quoted(const char *s, size_t len)
{
    char *out = malloc(2 * len + 1), *p = out, quote = 0;
    for (size_t i = 0; out && i < len; i++) {
        if (quote && s[i] == '\\' && i + 1 < len) {
            if (s[++i] != '\'')
                *p++ = '\\';
            *p++ = s[i];
        } else if (quote ? s[i] == quote : s[i] == '"' || s[i] == '\'') {
            quote = quote ? 0 : s[i];
            *p++ = '"';
        } else {
            if (s[i] == '"')
                *p++ = '\\';
            *p++ = s[i];
        }
    }
    if (out)
        *p = 0;
    return out;
}

/* Nesting of the text, counted before jansson recurses into it: fibers have
 * small stacks. */
static bool json_too_deep(const char *s)
{
    unsigned depth = 0;
    bool quoted = false;
    for (; *s; s++) {
        if (quoted && *s == '\\' && s[1])
            s++;
        else if (*s == '"')
            quoted = !quoted;
        else if (!quoted && (*s == '{' || *s == '['))
            depth++;
        else if (!quoted && depth && (*s == '}' || *s == ']'))
            depth--;
        if (depth > OPTS_DEPTH_MAX)
            return true;
    }
    return false;
}

json_t *opts_json_load(const char *json, struct blk_error *e)
{
    if (!strncmp(json, "json:", 5))
        json += 5;
    size_t len = strnlen(json, BLK_JSON_MAX + 1);
    if (len > BLK_JSON_MAX) {
        blk_err(e, E2BIG, "Could not parse the JSON options: longer than %u bytes", BLK_JSON_MAX);
        return NULL;
    }
    char *text = double_quoted(json, len);
    if (!text) {
        blk_err_errno(e, ENOMEM, "Could not parse the JSON options");
        return NULL;
    }
    json_error_t why;
    json_t *root = NULL;
    if (json_too_deep(text))
        blk_err(e, E2BIG, "Could not parse the JSON options: nested deeper than %d",
                OPTS_DEPTH_MAX);
    else if (!(root = json_loads(text, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why)))
        blk_err(e, EINVAL, "Could not parse the JSON options: JSON parse error, %s", why.text);
    free(text);
    return root;
}

int blk_opts_parse_json(struct blk_opts *o, const char *json, struct blk_error *e)
{
    struct blk_error why = BLK_ERROR_INIT;
    json_t *root = opts_json_load(json, &why);
    if (!root)
        return blk_err(e, why.err, "%s", why.text);
    int r;
    struct flatten *f = calloc(1, sizeof(*f));
    if (!json_is_object(root)) {
        r = blk_err(e, EINVAL, "Invalid JSON object given");
    } else if (!f) {
        r = blk_err_errno(e, ENOMEM, "Could not parse the JSON options");
    } else {
        f->o = o;
        f->e = e;
        r = flatten_value(f, 0, root);
    }
    free(f);
    json_decref(root);
    return r;
}
