/*
 * luks_create.c - a new LUKS header: the options of creation, fresh keys, slot 0.
 *
 * Invariant: every option is checked before anything is written.
 */
#include "formats/luks.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ITER_MS 2000u
#define ITERATIONS_MIN 1000u
#define DIGEST_SHARE 8u                 /* the digest's part of the time, as cryptsetup's */

/* prefix + name looked up in o. */
static const char *option(struct blk_opts *o, const char *prefix, const char *name)
{
    char key[64];
    snprintf(key, sizeof(key), "%s%s", prefix, name);
    return blk_opts_get(o, key);
}

static int not_accepted(const char *name, const char *value, struct blk_error *e)
{
    return blk_err(e, EINVAL, "Parameter '%s' does not accept value '%s'", name, value);
}

/* QEMU has a name for these; they are no ciphers for disks, or not to be had here. */
static bool cipher_named(const char *name)
{
    static const char *const others[] = { "des", "3des", "sm4", "twofish-192" };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(others); i++) {
        if (!strcmp(others[i], name)) {
            return true;
        }
    }
    return crypto_alg_find(name) != NULL;
}

static int check_words(const char *cipher, int mode, const char *mode_name, int ivgen,
                       const char *ivgen_name, const char *ivgen_hash, const char *hash,
                       struct blk_error *e)
{
    if (!crypto_hash_len("sha256")) {
        return blk_err(e, ENOTSUP, "Encryption is not supported: built without libgcrypt");
    }
    if (!cipher_named(cipher)) {
        return not_accepted("cipher-alg", cipher, e);
    }
    if (mode < 0) {
        return not_accepted("cipher-mode", mode_name, e);
    }
    if (ivgen < 0) {
        return not_accepted("ivgen-alg", ivgen_name, e);
    }
    if (ivgen_hash && !crypto_hash_len(ivgen_hash)) {
        return not_accepted("ivgen-hash-alg", ivgen_hash, e);
    }
    return crypto_hash_len(hash) ? 0 : not_accepted("hash-alg", hash, e);
}

/* Key material goes from slot to slot, the payload behind it. */
static void lay_out(struct luks_header *h)
{
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        h->slot[i].sector = (uint32_t)((LUKS_SLOT_AT + i * luks_slot_bytes(h)) / CRYPTO_SECTOR);
    }
    h->payload_sector = (uint32_t)(luks_header_bytes(h) / CRYPTO_SECTOR);
}

/* Can it be used at all?  ESSIV has wishes about the hash, xts about the cipher. */
static int try_cipher(const struct luks_header *h, struct blk_error *e)
{
    uint8_t key[CRYPTO_KEY_MAX];
    struct crypto_sectors *c = NULL;

    crypto_random(key, sizeof(key));
    int err = crypto_sectors_new(&h->how, key, &c, e);
    crypto_sectors_free(c);
    return err;
}

int luks_create_options(struct luks_create *c, struct blk_opts *o, const char *prefix,
                        struct blk_error *e)
{
    struct luks_header *h = &c->h;
    const char *secret = option(o, prefix, "key-secret");
    const char *cipher = option(o, prefix, "cipher-alg"), *mode = option(o, prefix, "cipher-mode");
    const char *ivgen = option(o, prefix, "ivgen-alg");
    const char *ivgen_hash = option(o, prefix, "ivgen-hash-alg");
    const char *hash = option(o, prefix, "hash-alg");
    char key[64];

    *c = (struct luks_create){ .iter_ms = ITER_MS };
    cipher = cipher ? cipher : "aes-256";
    hash = hash ? hash : "sha256";
    int m = crypto_mode_find(mode ? mode : "xts"), g = crypto_ivgen_find(ivgen ? ivgen : "plain64");
    int err = check_words(cipher, m, mode, g, ivgen, ivgen_hash, hash, e);
    snprintf(key, sizeof(key), "%siter-time", prefix);
    err = err ? err : blk_opts_get_u64(o, key, &c->iter_ms, e);
    if (!err && !secret) {
        err = blk_err(e, EINVAL, "Parameter '%skey-secret' is required for cipher", prefix);
    }
    err = err ? err : blk_secret_get_text(secret, &c->password, e);
    if (err) {
        return err;
    }
    h->how = (struct crypto_how){ crypto_alg_find(cipher), (enum crypto_mode)m,
                                  (enum crypto_ivgen)g, h->essiv_hash };
    if (!h->how.alg) {
        return blk_err(e, ENOTSUP, "Algorithm '%s' not supported", cipher);
    }
    h->key_len = (uint32_t)crypto_how_key_len(&h->how);
    snprintf(h->cipher, 32, "%s", h->how.alg->luks);
    snprintf(h->hash, 32, "%s", hash);
    if (g == CRYPTO_ESSIV) {
        snprintf(h->essiv_hash, sizeof(h->essiv_hash), "%s", ivgen_hash ? ivgen_hash : "sha256");
    }
    int n = snprintf(h->mode, 32, "%s-%s%s%s", crypto_mode_names[m], crypto_ivgen_names[g],
                     g == CRYPTO_ESSIV ? ":" : "", h->essiv_hash);
    if (n >= 32) {
        return blk_err(e, EINVAL, "Cipher mode '%s' is too long for LUKS header", h->mode);
    }
    lay_out(h);
    return try_cipher(h, e);
}

static void make_uuid(char *text)
{
    uint8_t b[16];
    crypto_random(b, sizeof(b));
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    for (unsigned i = 0, at = 0; i < 16; i++) {
        at += (unsigned)sprintf(text + at, "%s%02x",
                                i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
    }
}

struct digest {
    struct luks_header *h;
    const uint8_t *key;
    int result;
};

static void digest_run(void *arg)
{
    struct digest *d = arg;
    d->result = crypto_pbkdf2(d->h->hash, d->key, d->h->key_len, d->h->salt, LUKS_SALT,
                              d->h->iterations, d->h->digest, LUKS_DIGEST);
}

int luks_create_write(struct luks_create *c, const struct luks_place *at,
                      struct crypto_sectors **sectors, struct blk_error *e)
{
    struct luks_header *h = &c->h;
    uint8_t key[CRYPTO_KEY_MAX];
    uint64_t n = 0;
    struct digest d = { .h = h, .key = key };
    int err;

    make_uuid(h->uuid);
    crypto_random(key, sizeof(key));
    crypto_random(h->salt, sizeof(h->salt));
    err = luks_count_iterations(h->hash, LUKS_DIGEST, c->iter_ms, &n, e);
    n /= DIGEST_SHARE;
    if (!err && n > UINT32_MAX) {
        err = blk_err_errno(e, ERANGE, "PBKDF iterations %llu larger than %u",
                            (unsigned long long)n, UINT32_MAX);
    }
    if (!err) {
        h->iterations = (uint32_t)BLK_MAX(n, ITERATIONS_MIN);
        co_work(digest_run, &d);
        err = d.result;
    }
    err = err ? err : luks_slot_store(at, h, 0, c->password, key, c->iter_ms, e);
    if (!err && sectors) {
        err = crypto_sectors_new(&h->how, key, sectors, e);
    }
    crypto_wipe(key, sizeof(key));
    return err;
}
