/*
 * object.c - objects that the user defines by "--object TYPE,id=ID,...": which types there
 * are, that ids are taken once; and TLS credentials, where they are and what for.
 * Secrets are secret.c's.
 *
 * TLS credentials are only looked at here, for what can be said at once; they are loaded
 * by who connects.
 */
#include "block/driver.h"
#include "block/crypto.h"
#include "block/internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct creds {
    struct creds *next;
    char *id, *dir, *username;
    struct blk_tls_creds pub;
};

static struct creds *creds;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct creds *creds_find(const char *id)
{
    pthread_mutex_lock(&lock);
    struct creds *c = creds;
    while (c && strcmp(c->id, id))
        c = c->next;
    pthread_mutex_unlock(&lock);
    return c;
}

static void creds_free(struct creds *c)
{
    free(c->id);
    free(c->dir);
    free(c->username);
    free(c);
}

bool object_is_tls_creds(const char *id)
{
    return creds_find(id);
}

int blk_tls_creds_get(const char *id, struct blk_tls_creds *out, struct blk_error *e)
{
    const struct creds *c = creds_find(id);

    if (!c && secret_exists(id))
        return blk_err(e, EINVAL, "Object with id '%s' is not TLS credentials", id);
    if (!c)
        return blk_err(e, EINVAL, "No TLS credentials with id '%s'", id);
    if (c->pub.server)
        return blk_err(e, EINVAL, "Expected TLS credentials for a client endpoint");
    *out = c->pub;
    return 0;
}

/* ---- TLS credentials ------------------------------------------------------------------ */

/* Has a file of lines "user:key" one for this user? */
static int psk_check(const char *file, const char *user, struct blk_error *e)
{
    size_t room = 0, len = strlen(user);
    char *line = NULL;
    bool found = false;
    FILE *f = fopen(file, "re");

    if (!f)
        return blk_err(e, errno, "Cannot read PSK file %s: %s", file, strerror(errno));
    while (!found && getline(&line, &room, f) > 0)
        found = !strncmp(line, user, len) && line[len] == ':';
    fclose(f);
    if (line)
        explicit_bzero(line, room);
    free(line);
    return found ? 0 : blk_err(e, EINVAL, "Username %s not found in PSK file %s", user, file);
}

static int creds_check(const struct creds *c, struct blk_error *e)
{
    char *file = NULL;
    int r;

    if (!c->dir)
        return blk_err(e, EINVAL, "Missing 'dir' property value");
    if (asprintf(&file, "%s/%s", c->dir, c->pub.psk ? "keys.psk" : "ca-cert.pem") < 0)
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    if (access(file, R_OK))
        r = blk_err(e, errno, "Unable to access credentials %s: %s", file, strerror(errno));
    else
        r = c->pub.psk && !c->pub.server ? psk_check(file, c->pub.username, e) : 0;
    free(file);
    return r;
}

static int creds_load(struct creds *c, struct blk_opts *o, struct blk_error *e)
{
    const char *endpoint = blk_opts_get(o, "endpoint"), *dir = blk_opts_get(o, "dir");
    const char *username = c->pub.psk ? blk_opts_get(o, "username") : NULL, *unknown;
    bool sanity = true, named = !c->pub.psk && blk_opts_get(o, "passwordid");
    const char *priority = blk_opts_get(o, "priority");
    int r = blk_opts_get_bool(o, "verify-peer", &c->pub.verify_peer, e);

    r = r || c->pub.psk ? r : blk_opts_get_bool(o, "sanity-check", &sanity, e);
    if (!r && endpoint && strcmp(endpoint, "client") && strcmp(endpoint, "server"))
        r = blk_err(e, EINVAL, "Parameter 'endpoint' does not accept value '%s'", endpoint);
    if (!r && (unknown = blk_opts_unused(o)))
        r = blk_err(e, EINVAL, "Parameter '%s' is unexpected", unknown);
    if (!r && (named || priority))
        r = blk_err(e, ENOTSUP, "Parameter '%s' is not supported (libnbd)",
                    named ? "passwordid" : "priority");
    if (r)
        return r;
    c->pub.server = endpoint && !strcmp(endpoint, "server");
    c->dir = dir ? strdup(dir) : NULL;
    c->username = strdup(username ? username : c->pub.psk ? "qemu" : "");
    if ((dir && !c->dir) || !c->username)
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    c->pub.dir = c->dir;
    c->pub.username = c->username;
    return creds_check(c, e);
}

static int creds_add(struct blk_opts *o, const char *id, bool psk, struct blk_error *e)
{
    struct creds *c = calloc(1, sizeof(*c));
    int r;

    if (!c || !(c->id = strdup(id))) {
        free(c);
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    c->pub.psk = psk;
    c->pub.verify_peer = true;
    r = creds_load(c, o, e);
    if (r) {
        creds_free(c);
        return r;
    }
    pthread_mutex_lock(&lock);
    c->next = creds;
    creds = c;
    pthread_mutex_unlock(&lock);
    return 0;
}

static int tls_x509_add(struct blk_opts *o, const char *id, struct blk_error *e)
{
    return creds_add(o, id, false, e);
}

static int tls_psk_add(struct blk_opts *o, const char *id, struct blk_error *e)
{
    return creds_add(o, id, true, e);
}

/* ---- objects ---------------------------------------------------------------------------- */

static const struct object_type {
    const char *name, *options;
    int (*add)(struct blk_opts *o, const char *id, struct blk_error *e);
} types[] = {
    { "secret", "  data=<string>\n  file=<string>\n  format=<QCryptoSecretFormat>\n"
      "  iv=<string>\n  keyid=<string>\n", secret_add },
    { "tls-creds-psk", "  dir=<string>\n  endpoint=<QCryptoTLSCredsEndpoint>\n"
      "  priority=<string>\n  username=<string>\n  verify-peer=<bool>\n", tls_psk_add },
    { "tls-creds-x509", "  dir=<string>\n  endpoint=<QCryptoTLSCredsEndpoint>\n"
      "  passwordid=<string>\n  priority=<string>\n  sanity-check=<bool>\n"
      "  verify-peer=<bool>\n", tls_x509_add },
};

bool blk_object_type_at(size_t i, const char **name, const char **options)
{
    if (i >= BLK_ARRAY_SIZE(types))
        return false;
    *name = types[i].name;
    *options = types[i].options;
    return true;
}

static const struct object_type *type_find(const char *name)
{
    for (size_t i = 0; i < BLK_ARRAY_SIZE(types); i++)
        if (!strcmp(types[i].name, name))
            return &types[i];
    return NULL;
}

static bool id_wellformed(const char *id)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    return *id && strchr(letters, *id) && !id[strspn(id, "abcdefghijklmnopqrstuvwxyz"
                                                     "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")];
}

static int object_add(struct blk_opts *o, struct blk_error *e)
{
    const char *name = blk_opts_get(o, "qom-type"), *id = blk_opts_get(o, "id");
    const struct object_type *type = name ? type_find(name) : NULL;

    if (!name)
        return blk_err(e, EINVAL, "Parameter 'qom-type' is missing");
    if (!type)
        return blk_err(e, EINVAL, "Parameter 'qom-type' does not accept value '%s'", name);
    if (!id)
        return blk_err(e, EINVAL, "Parameter 'id' is missing");
    if (!id_wellformed(id)) {
        blk_err(e, EINVAL, "Parameter 'id' expects an identifier");
        blk_error_hint(e, "Identifiers consist of letters, digits, '-', '.', '_', starting with "
                       "a letter.");
        return -EINVAL;
    }
    bool taken = secret_exists(id) || creds_find(id);
    int r = taken ? 0 : type->add(o, id, e);
    return taken ? blk_err(e, EINVAL, "attempt to add duplicate property '%s' to object (type "
                           "'container')", id) : r;
}

int blk_object_add(const char *text, struct blk_error *e)
{
    struct blk_opts *o = blk_opts_new();
    int r = *text == '{' ? blk_opts_parse_json(o, text, e)
                         : blk_opts_parse_keyval(o, text, "qom-type", e);
    const char *data;

    r = r ? r : object_add(o, e);
    if ((data = blk_opts_get(o, "data")))
        crypto_wipe((char *)(uintptr_t)data, strlen(data));
    blk_opts_free(o);
    return r;
}

void blk_objects_free(void)
{
    secrets_free();
    pthread_mutex_lock(&lock);
    for (struct creds *c; (c = creds); creds_free(c))
        creds = c->next;
    pthread_mutex_unlock(&lock);
}
