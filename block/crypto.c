/*
 * crypto.c - libgcrypt's hashes, key derivation and ciphers under QEMU's names,
 * and the cipher of an image's sectors: its IVs, its contexts, its work on the
 * pool.
 *
 * Invariants
 *  - A cipher context (key schedule) is used by one thread at a time: they are
 *    kept in a list and taken from it, so there are as many as there are threads
 *    at work.
 *  - Keys leave memory wiped.
 */
#include "block/crypto.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#ifdef HAVE_GCRYPT
#include <gcrypt.h>
#endif

#define JOB_BYTES (64u << 10)           /* of sectors, worth a trip to a worker */
#define PIECES 64u

const char *const crypto_mode_names[CRYPTO_MODES] = { "ecb", "cbc", "xts", "ctr" };
const char *const crypto_ivgen_names[CRYPTO_IVGENS] = { "plain", "plain64", "essiv" };

static int find_name(const char *const *names, int n, const char *name)
{
    while (--n >= 0 && strcmp(names[n], name)) {
    }
    return n;
}

int crypto_mode_find(const char *name)
{
    return find_name(crypto_mode_names, CRYPTO_MODES, name);
}

int crypto_ivgen_find(const char *name)
{
    return find_name(crypto_ivgen_names, CRYPTO_IVGENS, name);
}

void crypto_wipe(void *buf, size_t len)
{
    if (buf) {
        explicit_bzero(buf, len);
    }
}

/* ---- libgcrypt ------------------------------------------------------------------- */

#ifdef HAVE_GCRYPT

/* Its memory that cannot be swapped is not used: locking needs rights, and whole
 * images pass through memory that can. */
static void gcrypt_init(void)
{
    if (!gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P)) {
        gcry_check_version(NULL);
        gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
        gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
    }
}

static void gcrypt_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, gcrypt_init);
}

static const struct crypto_alg algs[] = {
    { "aes-128", "aes", 16, 16, GCRY_CIPHER_AES128 },
    { "aes-192", "aes", 24, 16, GCRY_CIPHER_AES192 },
    { "aes-256", "aes", 32, 16, GCRY_CIPHER_AES256 },
    { "cast5-128", "cast5", 16, 8, GCRY_CIPHER_CAST5 },
    { "serpent-128", "serpent", 16, 16, GCRY_CIPHER_SERPENT128 },
    { "serpent-192", "serpent", 24, 16, GCRY_CIPHER_SERPENT192 },
    { "serpent-256", "serpent", 32, 16, GCRY_CIPHER_SERPENT256 },
    { "twofish-128", "twofish", 16, 16, GCRY_CIPHER_TWOFISH128 },
    { "twofish-256", "twofish", 32, 16, GCRY_CIPHER_TWOFISH },
};

static const struct {
    const char *name;
    int gcrypt;
} hashes[] = {
    { "md5", GCRY_MD_MD5 },
    { "sha1", GCRY_MD_SHA1 },
    { "sha224", GCRY_MD_SHA224 },
    { "sha256", GCRY_MD_SHA256 },
    { "sha384", GCRY_MD_SHA384 },
    { "sha512", GCRY_MD_SHA512 },
    { "ripemd160", GCRY_MD_RMD160 },
    { "sm3", GCRY_MD_SM3 },
};

static int hash_id(const char *hash)
{
    for (size_t i = 0; i < BLK_ARRAY_SIZE(hashes); i++) {
        if (!strcmp(hashes[i].name, hash)) {
            return hashes[i].gcrypt;
        }
    }
    return GCRY_MD_NONE;
}

void crypto_random(void *buf, size_t len)
{
    gcrypt_start();
    gcry_randomize(buf, len, GCRY_STRONG_RANDOM);
}

size_t crypto_hash_len(const char *hash)
{
    int id = hash_id(hash);
    return id == GCRY_MD_NONE ? 0 : gcry_md_get_algo_dlen(id);
}

int crypto_hash(const char *hash, const void *data, size_t len, uint8_t *out)
{
    int id = hash_id(hash);

    gcrypt_start();
    if (id == GCRY_MD_NONE || gcry_md_test_algo(id)) {
        return -ENOTSUP;
    }
    gcry_md_hash_buffer(id, out, data, len);
    return 0;
}

int crypto_pbkdf2(const char *hash, const void *pass, size_t pass_len, const void *salt,
                  size_t salt_len, uint64_t iterations, uint8_t *out, size_t out_len)
{
    int id = hash_id(hash);

    gcrypt_start();
    if (id == GCRY_MD_NONE || iterations > UINT32_MAX) {
        return -ENOTSUP;
    }
    return gcry_kdf_derive(pass, pass_len, GCRY_KDF_PBKDF2, id, salt, salt_len,
                           (unsigned long)iterations, out_len, out) ? -EINVAL : 0;
}

typedef gcry_cipher_hd_t handle;

static int handle_new(const struct crypto_alg *alg, enum crypto_mode mode, const void *key,
                      size_t key_len, handle *out)
{
    static const int modes[CRYPTO_MODES] = { GCRY_CIPHER_MODE_ECB, GCRY_CIPHER_MODE_CBC,
                                             GCRY_CIPHER_MODE_XTS, GCRY_CIPHER_MODE_CTR };
    gcrypt_start();
    if (gcry_cipher_open(out, alg->gcrypt, modes[mode], 0)) {
        return -ENOTSUP;
    }
    /* A weak key is set all the same; it is what the image has. */
    gcry_error_t err = gcry_cipher_setkey(*out, key, key_len);
    if (err && gcry_err_code(err) != GPG_ERR_WEAK_KEY) {
        gcry_cipher_close(*out);
        return -EINVAL;
    }
    return 0;
}

static void handle_free(handle h)
{
    gcry_cipher_close(h);
}

static int handle_crypt(handle h, enum crypto_mode mode, const void *iv, size_t iv_len, void *buf,
                        size_t len, bool encrypt)
{
    if (mode == CRYPTO_CTR) {
        gcry_cipher_setctr(h, iv, iv_len);
    } else if (mode != CRYPTO_ECB) {
        gcry_cipher_setiv(h, iv, iv_len);
    }
    return (encrypt ? gcry_cipher_encrypt(h, buf, len, NULL, 0)
                    : gcry_cipher_decrypt(h, buf, len, NULL, 0)) ? -EINVAL : 0;
}

const struct crypto_alg *crypto_alg_find(const char *name)
{
    for (size_t i = 0; i < BLK_ARRAY_SIZE(algs); i++) {
        if (!strcmp(algs[i].name, name)) {
            return &algs[i];
        }
    }
    return NULL;
}

const struct crypto_alg *crypto_alg_luks(const char *luks, uint32_t key_len)
{
    for (size_t i = 0; i < BLK_ARRAY_SIZE(algs); i++) {
        if (!strcmp(algs[i].luks, luks) && algs[i].key_len == key_len) {
            return &algs[i];
        }
    }
    return NULL;
}

#else   /* ---- nothing there ------------------------------------------------------------- */

typedef int handle;

void crypto_random(void *buf, size_t len)
{
    memset(buf, 0, len);                /* nobody gets here: there is no cipher */
}

size_t crypto_hash_len(const char *hash)
{
    return 0;
}

int crypto_hash(const char *hash, const void *data, size_t len, uint8_t *out)
{
    return -ENOTSUP;
}

int crypto_pbkdf2(const char *hash, const void *pass, size_t pass_len, const void *salt,
                  size_t salt_len, uint64_t iterations, uint8_t *out, size_t out_len)
{
    return -ENOTSUP;
}

static int handle_new(const struct crypto_alg *alg, enum crypto_mode mode, const void *key,
                      size_t key_len, handle *out)
{
    return -ENOTSUP;
}

static void handle_free(handle h)
{
}

static int handle_crypt(handle h, enum crypto_mode mode, const void *iv, size_t iv_len, void *buf,
                        size_t len, bool encrypt)
{
    return -ENOTSUP;
}

const struct crypto_alg *crypto_alg_find(const char *name)
{
    return NULL;
}

const struct crypto_alg *crypto_alg_luks(const char *luks, uint32_t key_len)
{
    return NULL;
}

#endif

int crypto_cbc(const struct crypto_alg *alg, const void *key, const void *iv, void *buf,
               size_t len, bool encrypt)
{
    handle h;
    int err = handle_new(alg, CRYPTO_CBC, key, alg->key_len, &h);

    if (!err) {
        err = handle_crypt(h, CRYPTO_CBC, iv, alg->block_len, buf, len, encrypt);
        handle_free(h);
    }
    return err;
}

/* ---- the cipher of an image's sectors ----------------------------------------------- */

struct context {
    handle data, essiv;
    struct context *next;
};

struct crypto_sectors {
    struct crypto_how how;
    const struct crypto_alg *essiv;     /* the IVs' cipher, or NULL */
    uint8_t key[CRYPTO_KEY_MAX], salt[CRYPTO_HASH_MAX];
    pthread_mutex_t lock;
    struct context *idle;
};

/* The cipher that makes ESSIV's IVs: its key is the hash of the master key. */
static int essiv_setup(struct crypto_sectors *c, struct blk_error *e)
{
    const struct crypto_alg *alg = c->how.alg;
    size_t len = crypto_hash_len(c->how.essiv_hash), key_len = crypto_how_key_len(&c->how);

    if (!len) {
        return blk_err(e, ENOTSUP, "Hash algorithm '%s' not supported", c->how.essiv_hash);
    }
    if (alg->block_len != 16) {
        return blk_err(e, ENOTSUP, "Cipher %s not supported with essiv", alg->name);
    }
    c->essiv = crypto_alg_luks(alg->luks, (uint32_t)len);
    if (!c->essiv) {
        return blk_err(e, ENOTSUP, "No %s cipher with key size %zu available",
                       !strcmp(alg->luks, "aes") ? "AES" :
                       !strcmp(alg->luks, "serpent") ? "Serpent" : "Twofish", len);
    }
    return crypto_hash(c->how.essiv_hash, c->key, key_len, c->salt);
}

static int context_new(struct crypto_sectors *c, struct context **out)
{
    struct context *x = calloc(1, sizeof(*x));
    int err = x ? handle_new(c->how.alg, c->how.mode, c->key, crypto_how_key_len(&c->how),
                             &x->data) : -ENOMEM;

    if (!err && c->essiv) {
        err = handle_new(c->essiv, CRYPTO_ECB, c->salt, c->essiv->key_len, &x->essiv);
        if (err) {
            handle_free(x->data);
        }
    }
    if (err) {
        free(x);
        return err;
    }
    *out = x;
    return 0;
}

static int context_take(struct crypto_sectors *c, struct context **out)
{
    pthread_mutex_lock(&c->lock);
    struct context *x = c->idle;
    if (x) {
        c->idle = x->next;
    }
    pthread_mutex_unlock(&c->lock);
    *out = x;
    return x ? 0 : context_new(c, out);
}

static void context_give(struct crypto_sectors *c, struct context *x)
{
    pthread_mutex_lock(&c->lock);
    x->next = c->idle;
    c->idle = x;
    pthread_mutex_unlock(&c->lock);
}

int crypto_sectors_new(const struct crypto_how *how, const uint8_t *key,
                       struct crypto_sectors **out, struct blk_error *e)
{
    struct crypto_sectors *c = calloc(1, sizeof(*c));
    struct context *first;
    int err = c ? 0 : -ENOMEM;

    if (err) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    c->how = *how;
    memcpy(c->key, key, crypto_how_key_len(how));
    pthread_mutex_init(&c->lock, NULL);
    if (how->mode == CRYPTO_XTS && how->alg->block_len != 16) {
        err = blk_err(e, ENOTSUP, "Unsupported cipher mode xts");
    } else if (how->ivgen == CRYPTO_ESSIV) {
        err = essiv_setup(c, e);
    }
    err = err ? err : context_take(c, &first);
    if (err) {
        crypto_sectors_free(c);
        return blk_err(e, -err, "Cipher %s in mode %s could not be set up", how->alg->name,
                       crypto_mode_names[how->mode]);
    }
    context_give(c, first);
    *out = c;
    return 0;
}

void crypto_sectors_free(struct crypto_sectors *c)
{
    if (!c) {
        return;
    }
    while (c->idle) {
        struct context *x = c->idle;
        c->idle = x->next;
        handle_free(x->data);
        if (c->essiv) {
            handle_free(x->essiv);
        }
        free(x);
    }
    pthread_mutex_destroy(&c->lock);
    crypto_wipe(c, sizeof(*c));
    free(c);
}

/* The IV of a sector: its number, little-endian; ESSIV encrypts that. */
static int sector_iv(const struct crypto_sectors *c, const struct context *x, uint64_t sector,
                     uint8_t *iv)
{
    memset(iv, 0, 16);
    for (unsigned i = 0; i < (c->how.ivgen == CRYPTO_PLAIN ? 4u : 8u); i++) {
        iv[i] = (uint8_t)(sector >> (8 * i));
    }
    return c->essiv ? handle_crypt(x->essiv, CRYPTO_ECB, NULL, 0, iv, 16, true) : 0;
}

static int crypt_run(struct crypto_sectors *c, struct context *x, uint64_t off, uint8_t *buf,
                     size_t len, bool encrypt)
{
    uint8_t iv[16];
    int err = 0;

    for (size_t at = 0; !err && at < len; at += CRYPTO_SECTOR) {
        err = sector_iv(c, x, (off + at) / CRYPTO_SECTOR, iv);
        err = err ? err : handle_crypt(x->data, c->how.mode, iv, c->how.alg->block_len, buf + at,
                                       CRYPTO_SECTOR, encrypt);
    }
    return err;
}

int crypto_sectors_crypt(struct crypto_sectors *c, uint64_t off, void *buf, size_t len,
                         bool encrypt)
{
    struct context *x;
    int err = context_take(c, &x);

    if (!err) {
        err = crypt_run(c, x, off, buf, len, encrypt);
        context_give(c, x);
    }
    return err;
}

/* Decrypt [pos, pos+len) of iov in place: straight where a sector lies in one entry,
 * through a copy where it does not. */
static int decrypt_iov(struct crypto_sectors *c, uint64_t off, const struct iovec *iov, int cnt,
                       uint64_t pos, uint64_t len)
{
    uint8_t sector[CRYPTO_SECTOR];
    uint64_t start = 0, end = pos + len;    /* start: of the entry, in iov's bytes */
    struct context *x;
    int err = context_take(c, &x);

    if (err) {
        return err;
    }
    for (int i = 0; i < cnt && pos < end && !err; start += iov[i].iov_len, i++) {
        uint64_t stop = BLK_MIN(start + iov[i].iov_len, end);
        if (pos >= stop) {
            continue;
        }
        uint64_t whole = (stop - pos) & ~(uint64_t)(CRYPTO_SECTOR - 1);
        err = crypt_run(c, x, off, (uint8_t *)iov[i].iov_base + (pos - start), whole, false);
        pos += whole;
        off += whole;
        if (!err && pos < stop) {           /* goes on in the next entry */
            blk_iov_to_buf(iov, cnt, pos, sector, CRYPTO_SECTOR);
            err = crypt_run(c, x, off, sector, CRYPTO_SECTOR, false);
            blk_iov_from_buf(iov, cnt, pos, sector, CRYPTO_SECTOR);
            pos += CRYPTO_SECTOR;
            off += CRYPTO_SECTOR;
        }
    }
    context_give(c, x);
    return err;
}

struct range {                          /* a request's range, in pieces on the pool */
    struct crypto_sectors *c;
    uint64_t off;
    const struct iovec *iov;
    int cnt;
    uint64_t pos, len;
    uint8_t *buf;                       /* encrypt: into this; NULL: decrypt in place */
    unsigned pending;
    int err;
    struct co *waiter;
};

struct piece {
    struct blk_work work;
    struct range *r;
    uint64_t at, len;                   /* in the range */
    int err;
};

static int crypt_piece(const struct range *r, uint64_t at, uint64_t len)
{
    if (!r->buf) {
        return decrypt_iov(r->c, r->off + at, r->iov, r->cnt, r->pos + at, len);
    }
    blk_iov_to_buf(r->iov, r->cnt, r->pos + at, r->buf + at, len);
    return crypto_sectors_crypt(r->c, r->off + at, r->buf + at, len, true);
}

static void piece_run(struct blk_work *w)
{
    struct piece *p = blk_container_of(w, struct piece, work);
    p->err = crypt_piece(p->r, p->at, p->len);
}

static void piece_done(struct blk_work *w)
{
    struct piece *p = blk_container_of(w, struct piece, work);

    p->r->err = p->r->err ? p->r->err : p->err;
    if (!--p->r->pending) {
        co_wake(p->r->waiter);
    }
}

static int crypt_range(struct range *r)
{
    struct piece piece[PIECES];
    uint64_t size = JOB_BYTES;

    if (r->len <= CRYPTO_INLINE) {
        return crypt_piece(r, 0, r->len);
    }
    while (r->len > size * PIECES) {
        size *= 2;
    }
    for (uint64_t at = 0, i = 0; at < r->len; at += size, i++) {
        piece[i] = (struct piece){ .work = { .fn = piece_run, .done = piece_done,
                                             .loop = co_loop() },
                                   .r = r, .at = at, .len = BLK_MIN(size, r->len - at) };
        r->pending++;
        blk_pool_submit(blk_pool_cpu(), &piece[i].work);
    }
    r->waiter = co_self();
    co_yield();                         /* piece_done() runs from the loop only */
    return r->err;
}

int co_sectors_decrypt(struct crypto_sectors *c, uint64_t off, const struct iovec *iov, int cnt,
                       uint64_t pos, uint64_t len)
{
    struct range r = { .c = c, .off = off, .iov = iov, .cnt = cnt, .pos = pos, .len = len };
    return crypt_range(&r);
}

int co_sectors_encrypt(struct crypto_sectors *c, uint64_t off, const struct iovec *iov, int cnt,
                       uint64_t pos, uint64_t len, uint8_t *buf)
{
    struct range r = { .c = c, .off = off, .iov = iov, .cnt = cnt, .pos = pos, .len = len,
                       .buf = buf };
    return crypt_range(&r);
}
