/*
 * secret.c - secrets that options name: "--object secret,id=ID,data=...", the
 * list of them, and how they are read, decoded and decrypted.
 *
 * Invariants
 *  - A secret's bytes are wiped before their memory is given back, and stand in
 *    no message.
 *  - The list only grows until blk_objects_free(): what blk_secret_get() gave
 *    stays valid.
 */
#include "block/crypto.h"
#include "block/internal.h"
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECRET_MAX (1u << 20)           /* bytes of a secret's file */
#define KEY_LEN 32u                     /* of the secret that encrypts another */
#define BLOCK_LEN 16u

struct secret {
    struct secret *next;
    char *id;
    size_t len;
    uint8_t data[];
};

static struct secret *secrets;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct secret *secret_new(size_t len)
{
    struct secret *s = calloc(1, sizeof(*s) + len + 1);
    if (s) {
        s->len = len;
    }
    return s;
}

static void secret_free(struct secret *s)
{
    if (s) {
        crypto_wipe(s->data, s->len);
        free(s->id);
        free(s);
    }
}

static struct secret *secret_find(const char *id)
{
    pthread_mutex_lock(&lock);
    struct secret *s = secrets;
    while (s && strcmp(s->id, id)) {
        s = s->next;
    }
    pthread_mutex_unlock(&lock);
    return s;
}

bool secret_exists(const char *id)
{
    return secret_find(id);
}

int blk_secret_get(const char *id, const uint8_t **data, size_t *len, struct blk_error *e)
{
    const struct secret *s = secret_find(id);
    if (!s && object_is_tls_creds(id)) {
        return blk_err(e, EINVAL, "Object with id '%s' is not a secret", id);
    }
    if (!s) {
        return blk_err(e, EINVAL, "No secret with id '%s'", id);
    }
    *data = s->data;
    *len = s->len;
    return 0;
}

/* No overlong forms, no surrogates, nothing past U+10FFFF. */
static bool utf8_valid(const uint8_t *s, size_t len)
{
    for (size_t i = 0; i < len;) {
        unsigned n = s[i] < 0x80 ? 0 : (s[i] & 0xe0) == 0xc0 ? 1 : (s[i] & 0xf0) == 0xe0 ? 2 :
                     (s[i] & 0xf8) == 0xf0 ? 3 : 4;
        static const uint32_t least[4] = { 0, 0x80, 0x800, 0x10000 };
        uint32_t c = n ? s[i] & (0x3fu >> n) : s[i];
        if (n > 3 || len - i <= n) {
            return false;
        }
        for (unsigned k = 1; k <= n; k++) {
            if ((s[i + k] & 0xc0) != 0x80) {
                return false;
            }
            c = c << 6 | (s[i + k] & 0x3f);
        }
        if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) {
            return false;
        }
        i += n + 1;
    }
    return true;
}

int blk_secret_get_text(const char *id, const char **text, struct blk_error *e)
{
    const uint8_t *data;
    size_t len;
    int err = blk_secret_get(id, &data, &len, e);
    if (!err && (memchr(data, 0, len) || !utf8_valid(data, len))) {
        err = blk_err(e, EINVAL, "Data from secret %s is not valid UTF-8", id);
    }
    if (!err) {
        *text = (const char *)data;
    }
    return err;
}

void secrets_free(void)
{
    pthread_mutex_lock(&lock);
    while (secrets) {
        struct secret *s = secrets;
        secrets = s->next;
        secret_free(s);
    }
    pthread_mutex_unlock(&lock);
}

/* ---- where a secret comes from ------------------------------------------------------ */

static int read_file(const char *name, struct secret **out, struct blk_error *e)
{
    uint8_t buf[4096];
    size_t n;
    struct secret *s = NULL;
    FILE *f = fopen(name, "rb");

    if (!f) {
        int err = errno;
        return blk_err(e, err, "Unable to read %s: Failed to open file \u201c%s\u201d: %s", name,
                       name, strerror(err));
    }
    setvbuf(f, NULL, _IONBF, 0);        /* no copy of it stays in a buffer */
    errno = 0;
    s = secret_new(0);
    while (s && (n = fread(buf, 1, sizeof(buf), f)) > 0 && s->len <= SECRET_MAX) {
        struct secret *more = secret_new(s->len + n);
        if (more) {
            memcpy(more->data, s->data, s->len);
            memcpy(more->data + s->len, buf, n);
        }
        secret_free(s);
        s = more;
    }
    int err = !s ? ENOMEM : ferror(f) ? errno : s->len > SECRET_MAX ? EFBIG : 0;
    crypto_wipe(buf, sizeof(buf));
    fclose(f);
    if (err) {
        secret_free(s);
        return blk_err(e, err, "Unable to read %s: Error reading file \u201c%s\u201d: %s", name,
                       name, strerror(err));
    }
    *out = s;
    return 0;
}

static int digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *p = c ? strchr(digits, c) : NULL;
    return p ? (int)(p - digits) : c == '=' ? 0 : -1;
}

/* As QEMU reads it: an incomplete group at the end gives nothing. */
static int base64_decode(const uint8_t *in, size_t len, struct secret **out, struct blk_error *e)
{
    struct secret *s = secret_new(len);
    uint32_t v = 0;
    unsigned n = 0;
    size_t at = 0;
    char last[2] = "";

    if (!s) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    for (size_t i = 0; i < len; i++) {
        if (in[i] == '\n') {
            continue;
        }
        if (digit((char)in[i]) < 0) {
            secret_free(s);
            return blk_err(e, EINVAL, in[i] ? "Base64 data contains invalid characters"
                                            : "Base64 data contains embedded NUL characters");
        }
        last[1] = last[0];
        last[0] = (char)in[i];
        v = v << 6 | (uint32_t)digit((char)in[i]);
        if (++n % 4 == 0) {
            s->data[at++] = (uint8_t)(v >> 16);
            at += last[1] != '=' ? (s->data[at] = (uint8_t)(v >> 8), 1u) : 0;
            at += last[0] != '=' ? (s->data[at] = (uint8_t)v, 1u) : 0;
        }
    }
    memset(s->data + at, 0, len - at);
    s->len = at;
    *out = s;
    return 0;
}

/* AES-256-CBC under another secret, padded as in PKCS #7. */
static int decrypt(struct secret *s, const char *keyid, const char *iv_text, struct blk_error *e)
{
    const struct crypto_alg *alg = crypto_alg_find("aes-256");
    const uint8_t *key;
    size_t key_len;
    struct secret *iv = NULL;
    int err = blk_secret_get(keyid, &key, &key_len, e);

    if (!err && key_len != KEY_LEN) {
        err = blk_err(e, EINVAL, "Key should be %u bytes in length", KEY_LEN);
    } else if (!err && !iv_text) {
        err = blk_err(e, EINVAL, "IV is required to decrypt secret");
    }
    err = err ? err : base64_decode((const uint8_t *)iv_text, strlen(iv_text), &iv, e);
    if (!err && iv->len != BLOCK_LEN) {
        err = blk_err(e, EINVAL, "IV should be %u bytes in length not %zu", BLOCK_LEN, iv->len);
    } else if (!err && s->len % BLOCK_LEN) {
        err = blk_err(e, EINVAL, "Length %zu must be a multiple of block size %u", s->len,
                      BLOCK_LEN);
    } else if (!err && (!alg || crypto_cbc(alg, key, iv->data, s->data, s->len, false))) {
        err = blk_err(e, ENOTSUP, "Encrypted secrets are not supported: built without libgcrypt");
    }
    if (!err) {
        unsigned pad = s->len ? s->data[s->len - 1] : 0;
        if (!s->len || pad > BLOCK_LEN || pad > s->len) {
            err = blk_err(e, EINVAL, "Incorrect number of padding bytes (%u) found on decrypted "
                          "data", pad);
        } else {
            s->len -= pad;
            s->data[s->len] = 0;
        }
    }
    secret_free(iv);
    return err;
}

/* ---- the object ------------------------------------------------------------------------- */

static int load(struct blk_opts *o, struct secret **out, struct blk_error *e)
{
    const char *file = blk_opts_get(o, "file"), *data = blk_opts_get(o, "data");
    const char *format = blk_opts_get(o, "format"), *keyid = blk_opts_get(o, "keyid");
    const char *iv = blk_opts_get(o, "iv"), *unknown;
    bool base64 = format && !strcmp(format, "base64");
    struct secret *s = NULL, *plain = NULL;
    int err = 0;

    if ((unknown = blk_opts_unused(o))) {
        return blk_err(e, EINVAL, "Parameter '%s' is unexpected", unknown);
    }
    if (format && !base64 && strcmp(format, "raw")) {
        return blk_err(e, EINVAL, "Parameter 'format' does not accept value '%s'", format);
    }
    if (!file == !data) {
        return blk_err(e, EINVAL, file ? "'file' and 'data' are mutually exclusive"
                                       : "Either 'file' or 'data' must be provided");
    }
    if (file) {
        err = read_file(file, &s, e);
    } else if (!(s = secret_new(strlen(data)))) {
        err = blk_err(e, ENOMEM, "Cannot allocate memory");
    } else {
        memcpy(s->data, data, s->len);
    }
    if (!err && base64) {
        err = base64_decode(s->data, s->len, &plain, e);
        secret_free(s);
        s = plain;
    }
    if (!err && keyid) {
        err = decrypt(s, keyid, iv, e);
    }
    if (err) {
        secret_free(s);
        return err;
    }
    *out = s;
    return 0;
}

int secret_add(struct blk_opts *o, const char *id, struct blk_error *e)
{
    struct secret *s = NULL;
    int err;

    err = load(o, &s, e);
    if (!err && !(s->id = strdup(id))) {
        err = blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    if (err) {
        secret_free(s);
        return err;
    }
    pthread_mutex_lock(&lock);
    s->next = secrets;
    secrets = s;
    pthread_mutex_unlock(&lock);
    return 0;
}
