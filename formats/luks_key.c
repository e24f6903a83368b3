/*
 * luks_key.c - key slots.  A slot holds the master key, stretched to 4000 stripes
 * (so that losing any part of them loses it) and encrypted under a key derived
 * from the slot's password.
 *
 * Invariants
 *  - Key material is durable before the header says that its slot is active; the
 *    header says that a slot is inactive before its key material goes.
 *  - What takes CPU time runs on the worker pool.  Keys are wiped.
 */
#include "formats/luks.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MEASURE_NS 30000000ll           /* CPU time that a measurement takes */
#define MEASURE_START 1024u
#define ITERATIONS_MIN 1000u
#define WIPES 3u

/* ---- anti-forensic stripes ------------------------------------------------------------ */

/* Each digest-sized piece of a key-sized block becomes the hash of its number and
 * itself. */
static int diffuse(const char *hash, uint8_t *block, size_t len)
{
    uint8_t in[4 + CRYPTO_HASH_MAX], out[CRYPTO_HASH_MAX];
    size_t digest = crypto_hash_len(hash);
    int err = 0;

    for (uint32_t i = 0; !err && (size_t)i * digest < len; i++) {
        size_t at = i * digest, n = BLK_MIN(digest, len - at);
        put_be32(in, i);
        memcpy(in + 4, block + at, n);
        err = crypto_hash(hash, in, 4 + n, out);
        memcpy(block + at, out, n);
    }
    crypto_wipe(in, sizeof(in));
    crypto_wipe(out, sizeof(out));
    return err;
}

static void xor_into(uint8_t *dst, const uint8_t *src, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        dst[i] ^= src[i];
    }
}

/* All stripes but the last folded into block. */
static int fold(const char *hash, const uint8_t *split, size_t len, uint8_t *block)
{
    int err = 0;
    memset(block, 0, len);
    for (unsigned i = 0; !err && i + 1 < LUKS_STRIPES; i++) {
        xor_into(block, split + i * len, len);
        err = diffuse(hash, block, len);
    }
    return err;
}

/* ---- work on the pool -------------------------------------------------------------------- */

struct slot_job {
    const struct luks_header *h;
    const struct luks_slot *slot;
    const char *password;
    uint8_t *split;                     /* key material, luks_slot_bytes() */
    uint8_t *key;                       /* the master key */
    bool store;
    int result;                         /* 0, -errno; opening: 1 it is the key */
};

static int digest_of(const struct luks_header *h, const uint8_t *key, uint8_t *out)
{
    return crypto_pbkdf2(h->hash, key, h->key_len, h->salt, LUKS_SALT, h->iterations, out,
                         LUKS_DIGEST);
}

static int open_stripes(struct slot_job *j)
{
    const struct luks_header *h = j->h;
    uint8_t digest[LUKS_DIGEST], differ = 0;
    int err = fold(h->hash, j->split, h->key_len, j->key);

    xor_into(j->key, j->split + (LUKS_STRIPES - 1) * (size_t)h->key_len, h->key_len);
    err = err ? err : digest_of(h, j->key, digest);
    for (unsigned i = 0; i < LUKS_DIGEST; i++) {
        differ |= digest[i] ^ h->digest[i];
    }
    return err ? err : !differ;
}

static int make_stripes(struct slot_job *j)
{
    size_t len = j->h->key_len;
    uint8_t block[CRYPTO_KEY_MAX], *last = j->split + (LUKS_STRIPES - 1) * len;

    crypto_random(j->split, (LUKS_STRIPES - 1) * len);
    int err = fold(j->h->hash, j->split, len, block);
    memcpy(last, j->key, len);
    xor_into(last, block, len);
    crypto_wipe(block, sizeof(block));
    return err;
}

static int slot_work(struct slot_job *j)
{
    const struct luks_header *h = j->h;
    struct crypto_sectors *c = NULL;
    uint8_t key[CRYPTO_KEY_MAX];
    size_t bytes = blk_align_up((uint64_t)h->key_len * LUKS_STRIPES, CRYPTO_SECTOR);
    int err = crypto_pbkdf2(h->hash, j->password, strlen(j->password), j->slot->salt, LUKS_SALT,
                            j->slot->iterations, key, h->key_len);

    err = err ? err : crypto_sectors_new(&h->how, key, &c, NULL);
    crypto_wipe(key, sizeof(key));
    if (!err && j->store) {
        err = make_stripes(j);
    }
    err = err ? err : crypto_sectors_crypt(c, 0, j->split, bytes, j->store);
    if (!err && !j->store) {
        err = open_stripes(j);
    }
    crypto_sectors_free(c);
    return err;
}

static void slot_run(void *arg)
{
    struct slot_job *j = arg;
    j->result = slot_work(j);
}

static uint64_t slot_offset(const struct luks_place *at, const struct luks_slot *s)
{
    return at->offset + (uint64_t)s->sector * CRYPTO_SECTOR;
}

static int check_room(const struct luks_place *at, const struct luks_header *h, unsigned i,
                      struct blk_error *e)
{
    uint64_t start = (uint64_t)h->slot[i].sector * CRYPTO_SECTOR;
    if (start + luks_slot_bytes(h) > at->len) {
        return blk_err(e, EINVAL, "Keyslot %u is past the end of the LUKS header (at %#llx)", i,
                       (unsigned long long)start);
    }
    return 0;
}

/* Opening a slot must end some day, whoever made the header. */
static int check_cost(const struct luks_place *at, const struct luks_header *h, unsigned slot,
                      struct blk_error *e)
{
    if (h->slot[slot].iterations > LUKS_ITERATIONS_MAX) {
        return blk_err(e, EINVAL, "Keyslot %u asks for %u iterations (LUKS header at 0x%llx), more "
                       "than %u", slot, h->slot[slot].iterations, (unsigned long long)at->offset,
                       LUKS_ITERATIONS_MAX);
    }
    if (h->iterations > LUKS_ITERATIONS_MAX) {
        return blk_err(e, EINVAL, "The LUKS header at 0x%llx asks for %u iterations of the master "
                       "key, more than %u", (unsigned long long)at->offset, h->iterations,
                       LUKS_ITERATIONS_MAX);
    }
    return 0;
}

int luks_slot_open(const struct luks_place *at, const struct luks_header *h, unsigned slot,
                   const char *password, uint8_t *key, struct blk_error *e)
{
    uint64_t bytes = luks_slot_bytes(h);
    struct slot_job j = { .h = h, .slot = &h->slot[slot], .password = password, .key = key };
    int err;

    if (!j.slot->active) {
        return 0;
    }
    if ((err = check_room(at, h, slot, e)) || (err = check_cost(at, h, slot, e))) {
        return err;
    }
    j.split = blk_buf_alloc(bytes);
    if (!j.split) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    err = co_read(at->node, slot_offset(at, j.slot), j.split, bytes);
    if (err) {
        blk_err_errno(e, -err, "Failed to read key material");
    } else {
        co_work(slot_run, &j);
        err = j.result;
        if (err < 0) {
            blk_err_errno(e, -err, "Failed to open keyslot %u", slot);
        }
    }
    crypto_wipe(j.split, bytes);
    blk_buf_free(j.split);
    if (err != 1) {
        crypto_wipe(key, h->key_len);
    }
    return err;
}

int luks_unlock(const struct luks_place *at, const struct luks_header *h, const char *password,
                uint8_t *key, struct blk_error *e)
{
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        int r = luks_slot_open(at, h, i, password, key, e);
        if (r) {
            return r < 0 ? r : 0;
        }
    }
    return blk_err(e, EINVAL, "Invalid password, cannot unlock any keyslot");
}

int luks_password(const char *secret, const char *prefix, const char **password,
                  struct blk_error *e)
{
    return secret ? blk_secret_get_text(secret, password, e)
                  : blk_err(e, EINVAL, "Parameter '%skey-secret' is required for cipher", prefix);
}

int luks_open(const struct luks_place *at, const struct luks_header *h, const char *secret,
              const char *prefix, struct crypto_sectors **out, struct blk_error *e)
{
    uint8_t key[CRYPTO_KEY_MAX];
    const char *password;
    int err = luks_password(secret, prefix, &password, e);

    err = err ? err : luks_unlock(at, h, password, key, e);
    err = err ? err : crypto_sectors_new(&h->how, key, out, e);
    crypto_wipe(key, sizeof(key));
    return err;
}

/* ---- changing slots ---------------------------------------------------------------------- */

struct measure {
    const char *hash;
    size_t out_len;
    uint64_t per_second;
    int result;
};

static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void measure_run(void *arg)
{
    struct measure *m = arg;
    uint8_t out[CRYPTO_KEY_MAX], salt[LUKS_SALT] = { 0 };
    int64_t took = 0;

    for (uint64_t n = MEASURE_START; !m->result && took < MEASURE_NS; n *= 4) {
        int64_t start = cpu_ns();
        m->result = crypto_pbkdf2(m->hash, "password", 8, salt, sizeof(salt), n, out, m->out_len);
        took = cpu_ns() - start;
        m->per_second = (uint64_t)((double)n * 1e9 / (double)BLK_MAX(took, 1));
    }
}

int luks_count_iterations(const char *hash, size_t out_len, uint64_t ms, uint64_t *out,
                          struct blk_error *e)
{
    struct measure m = { .hash = hash, .out_len = out_len };
    uint64_t n;

    co_work(measure_run, &m);
    if (m.result) {
        return blk_err_errno(e, -m.result, "Hash %s cannot be used for keys", hash);
    }
    if (blk_mul_overflow(m.per_second, ms, &n)) {
        return blk_err_errno(e, ERANGE, "PBKDF iterations %llu too large to scale",
                             (unsigned long long)m.per_second);
    }
    *out = n / 1000;
    return 0;
}

int luks_slot_store(const struct luks_place *at, struct luks_header *h, unsigned slot,
                    const char *password, const uint8_t *key, uint64_t iter_ms,
                    struct blk_error *e)
{
    uint64_t bytes = luks_slot_bytes(h), n = 0;
    struct luks_slot *s = &h->slot[slot], was = *s;
    struct slot_job j = { .h = h, .slot = s, .password = password, .store = true,
                          .key = (uint8_t *)(uintptr_t)key };
    int err = check_room(at, h, slot, e);

    err = err ? err : luks_count_iterations(h->hash, h->key_len, iter_ms, &n, e);
    if (!err && n > LUKS_ITERATIONS_MAX) {
        err = blk_err_errno(e, ERANGE, "PBKDF iterations %llu larger than %u",
                            (unsigned long long)n, LUKS_ITERATIONS_MAX);
    }
    if (err) {
        return err;
    }
    s->iterations = (uint32_t)BLK_MAX(n, ITERATIONS_MIN);
    s->active = true;
    crypto_random(s->salt, sizeof(s->salt));
    if (!(j.split = blk_buf_alloc(bytes))) {
        err = -ENOMEM;
    } else {
        memset(j.split, 0, bytes);
        co_work(slot_run, &j);
        err = j.result;
    }
    err = err ? err : co_write(at->node, slot_offset(at, s), j.split, bytes, 0);
    err = err ? err : co_flush(at->node);
    err = err ? err : luks_header_write(at, h);
    crypto_wipe(j.split, bytes);
    blk_buf_free(j.split);
    if (err) {
        *s = was;
        blk_err_errno(e, -err, "Failed to write to keyslot %u", slot);
    }
    return err;
}

int luks_slot_erase(const struct luks_place *at, struct luks_header *h, unsigned slot,
                    struct blk_error *e)
{
    uint64_t bytes = luks_slot_bytes(h);
    struct luks_slot *s = &h->slot[slot], was = *s;
    uint8_t *noise = blk_buf_alloc(bytes);
    int err = noise ? check_room(at, h, slot, e) : -ENOMEM;

    if (!err) {
        s->active = false;
        s->iterations = 0;
        memset(s->salt, 0, sizeof(s->salt));
        err = luks_header_write(at, h);
        if (err) {
            *s = was;
        }
    }
    for (unsigned i = 0; !err && i < WIPES; i++) {
        crypto_random(noise, bytes);
        err = co_write(at->node, slot_offset(at, s), noise, bytes, 0);
        err = err ? err : co_flush(at->node);
    }
    blk_buf_free(noise);
    return err ? blk_err_errno(e, -err, "Failed to erase keyslot %u", slot) : 0;
}
