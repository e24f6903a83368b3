/*
 * crypto.h - cryptographic primitives, and the cipher an image's sectors go
 * through.  Everything is libgcrypt's; names are QEMU's.  Built without it, the
 * same calls fail with -ENOTSUP and say so.
 *
 * Any thread, unless a function says "Fiber".
 */
#ifndef PLATTER_CRYPTO_H
#define PLATTER_CRYPTO_H

#include "block/block.h"

#define CRYPTO_SECTOR 512u
#define CRYPTO_KEY_MAX 64u              /* bytes of a key: two of 256 bits for xts */
#define CRYPTO_HASH_MAX 64u

/* Overwritten in a way the compiler keeps.  NULL is fine. */
void crypto_wipe(void *buf, size_t len);
void crypto_random(void *buf, size_t len);

/* ---- hashes ------------------------------------------------------------------- */

/* Bytes of a digest; 0: there is no such hash ("sha256", "ripemd160", ...). */
size_t crypto_hash_len(const char *hash);
int crypto_hash(const char *hash, const void *data, size_t len, uint8_t *out);
int crypto_pbkdf2(const char *hash, const void *pass, size_t pass_len, const void *salt,
                  size_t salt_len, uint64_t iterations, uint8_t *out, size_t out_len);

/* ---- ciphers ------------------------------------------------------------------ */

struct crypto_alg {
    const char *name;                   /* "aes-256" */
    const char *luks;                   /* in a LUKS header: "aes" */
    uint32_t key_len, block_len;        /* bytes; xts takes two keys */
    int gcrypt;
};
/* NULL: there is no such cipher here. */
const struct crypto_alg *crypto_alg_find(const char *name);
const struct crypto_alg *crypto_alg_luks(const char *luks, uint32_t key_len);
enum crypto_mode { CRYPTO_ECB, CRYPTO_CBC, CRYPTO_XTS, CRYPTO_CTR, CRYPTO_MODES };
extern const char *const crypto_mode_names[CRYPTO_MODES];
enum crypto_ivgen { CRYPTO_PLAIN, CRYPTO_PLAIN64, CRYPTO_ESSIV, CRYPTO_IVGENS };
extern const char *const crypto_ivgen_names[CRYPTO_IVGENS];
/* -1: none of these. */
int crypto_mode_find(const char *name);
int crypto_ivgen_find(const char *name);

/* cbc with an iv of the block's length, in place, len a multiple of that. */
int crypto_cbc(const struct crypto_alg *alg, const void *key, const void *iv, void *buf,
               size_t len, bool encrypt);

/* ---- the cipher of an image's sectors -------------------------------------------- */

struct crypto_how {
    const struct crypto_alg *alg;
    enum crypto_mode mode;
    enum crypto_ivgen ivgen;
    const char *essiv_hash;             /* a name of a hash; ESSIV only */
};
/* Bytes of the key this needs. */
static inline size_t crypto_how_key_len(const struct crypto_how *h)
{
    return h->alg->key_len * (h->mode == CRYPTO_XTS ? 2u : 1u);
}
struct crypto_sectors;
/* key has crypto_how_key_len() bytes; how's strings must be static. */
int crypto_sectors_new(const struct crypto_how *how, const uint8_t *key,
                       struct crypto_sectors **out, struct blk_error *e);
void crypto_sectors_free(struct crypto_sectors *c);     /* NULL is fine */
/* In place; off (whose sector numbers make the IVs) and len multiples of 512.  On the
 * calling thread. */
int crypto_sectors_crypt(struct crypto_sectors *c, uint64_t off, void *buf, size_t len,
                         bool encrypt);
/* Fibers.  Large ranges go to the worker pool and wait; up to CRYPTO_INLINE bytes they
 * do not wait.  off, len: multiples of 512; entries of iov may have any length.
 * decrypt: bytes [pos, pos+len) of iov in place.  encrypt: from there into buf. */
#define CRYPTO_INLINE (16u << 10)
int co_sectors_decrypt(struct crypto_sectors *c, uint64_t off, const struct iovec *iov, int cnt,
                       uint64_t pos, uint64_t len);
int co_sectors_encrypt(struct crypto_sectors *c, uint64_t off, const struct iovec *iov, int cnt,
                       uint64_t pos, uint64_t len, uint8_t *buf);

#endif
