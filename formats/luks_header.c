/*
 * luks_header.c - the LUKS header: parsing, checking, writing.
 *
 * Invariants
 *  - Nothing read from the file is used before it was checked here.
 *  - The header lies in the first two 512-byte sectors of its place and is always
 *    written as those, in one request.
 */
#include "formats/luks.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define ACTIVE 0x00ac71f3u
#define DISABLED 0x0000deadu
#define HEADER_BYTES 1024u              /* whole sectors; 592 are used */

enum {                                  /* byte positions */
    LH_VERSION = 6, LH_CIPHER = 8, LH_MODE = 40, LH_HASH = 72, LH_PAYLOAD = 104, LH_KEY_LEN = 108,
    LH_DIGEST = 112, LH_SALT = 132, LH_ITERATIONS = 164, LH_UUID = 168, LH_SLOTS = 208,
    LH_SLOT_BYTES = 48, LH_END = LH_SLOTS + 8 * LH_SLOT_BYTES,
    LS_ACTIVE = 0, LS_ITERATIONS = 4, LS_SALT = 8, LS_SECTOR = 40, LS_STRIPES = 44,
};
_Static_assert(LH_END <= HEADER_BYTES, "the header");

static const uint8_t magic[6] = { 'L', 'U', 'K', 'S', 0xba, 0xbe };

bool luks_magic(const uint8_t *buf, size_t len)
{
    return len >= LH_CIPHER && !memcmp(buf, magic, sizeof(magic)) && buf[LH_VERSION] == 0 &&
           buf[LH_VERSION + 1] == 1;
}

uint64_t luks_slot_bytes(const struct luks_header *h)
{
    return blk_align_up((uint64_t)h->key_len * LUKS_STRIPES, LUKS_SLOT_AT);
}

uint64_t luks_header_bytes(const struct luks_header *h)
{
    return LUKS_SLOT_AT + LUKS_SLOTS * luks_slot_bytes(h);
}

/* ---- parsing -------------------------------------------------------------------------- */

/* A text of up to 31 bytes with its NUL in a field of 32. */
static int take_text(const uint8_t *b, char *out, const char *what, struct blk_error *e)
{
    if (!memchr(b, 0, 32)) {
        return blk_err(e, EINVAL, "LUKS header %s is not NUL terminated", what);
    }
    memcpy(out, b, 32);
    out[32] = 0;
    return 0;
}

static int check_slot(const struct luks_header *h, const uint8_t *b, unsigned i,
                      struct blk_error *e)
{
    uint32_t active = be32(b + LS_ACTIVE), stripes = be32(b + LS_STRIPES);
    const struct luks_slot *s = &h->slot[i];

    if (stripes != LUKS_STRIPES) {
        return blk_err(e, EINVAL, "Keyslot %u is corrupted (stripes %u != %u)", i, stripes,
                       LUKS_STRIPES);
    }
    if (active != ACTIVE && active != DISABLED) {
        return blk_err(e, EINVAL, "Keyslot %u state (active/disable) is corrupted", i);
    }
    if (s->active && !s->iterations) {
        return blk_err(e, EINVAL, "Keyslot %u iteration count is zero", i);
    }
    if (s->sector < LUKS_SLOT_AT / CRYPTO_SECTOR) {
        return blk_err(e, EINVAL, "Keyslot %u is overlapping with the LUKS header", i);
    }
    uint64_t end = s->sector + luks_slot_bytes(h) / CRYPTO_SECTOR;
    if (h->payload_sector && end > h->payload_sector) {
        return blk_err(e, EINVAL, "Keyslot %u is overlapping with the encrypted payload", i);
    }
    for (unsigned k = 0; k < i; k++) {
        uint64_t other = h->slot[k].sector, other_end = other + end - s->sector;
        if (s->sector < other_end && other < end) {
            return blk_err(e, EINVAL, "Keyslots %u and %u are overlapping in the header", k, i);
        }
    }
    return 0;
}

static int decode_slots(const uint8_t *b, struct luks_header *h, struct blk_error *e)
{
    int err = 0;
    for (unsigned i = 0; !err && i < LUKS_SLOTS; i++) {
        const uint8_t *at = b + LH_SLOTS + i * LH_SLOT_BYTES;
        struct luks_slot *s = &h->slot[i];
        s->active = be32(at + LS_ACTIVE) == ACTIVE;
        s->iterations = be32(at + LS_ITERATIONS);
        s->sector = be32(at + LS_SECTOR);
        memcpy(s->salt, at + LS_SALT, LUKS_SALT);
        err = check_slot(h, at, i, e);
    }
    return err;
}

static int unsupported(const char *what, const char *name, struct blk_error *e)
{
    return blk_err(e, ENOTSUP, "%s '%s' not supported", what, name);
}

/* "xts-plain64", "cbc-essiv:sha256" and the cipher's name into h->how. */
static int decode_names(struct luks_header *h, struct blk_error *e)
{
    char mode[33];
    memcpy(mode, h->mode, sizeof(mode));
    char *ivgen = strchr(mode, '-'), *hash = ivgen ? strchr(ivgen, ':') : NULL;

    if (!ivgen) {
        return blk_err(e, EINVAL, "Unexpected cipher mode string format '%s'", h->mode);
    }
    *ivgen++ = 0;
    if (hash) {
        *hash++ = 0;
        memcpy(h->essiv_hash, hash, strlen(hash) + 1);
    }
    int m = crypto_mode_find(mode), g = crypto_ivgen_find(ivgen);
    if (!crypto_hash_len(h->hash)) {
        return unsupported("Hash algorithm", h->hash, e);
    }
    if (m < 0) {
        return unsupported("Cipher mode", mode, e);
    }
    bool two_keys = m == CRYPTO_XTS;
    h->how.alg = h->key_len % 2 && two_keys ? NULL :
                 crypto_alg_luks(h->cipher, h->key_len / (two_keys ? 2 : 1));
    if (!h->how.alg) {
        return blk_err(e, ENOTSUP, "Algorithm '%s' with key size %u bytes not supported",
                       h->cipher, h->key_len);
    }
    if (g < 0) {
        return unsupported("IV generator", ivgen, e);
    }
    h->how.mode = (enum crypto_mode)m;
    h->how.ivgen = (enum crypto_ivgen)g;
    h->how.essiv_hash = h->essiv_hash;
    if (g == CRYPTO_ESSIV && !hash) {
        return blk_err(e, EINVAL, "Missing IV generator hash specification");
    }
    return g == CRYPTO_ESSIV && !crypto_hash_len(hash) ? unsupported("Hash algorithm", hash, e) : 0;
}

static int decode(const uint8_t *b, bool detached, struct luks_header *h, struct blk_error *e)
{
    int err = 0;

    if (memcmp(b, magic, sizeof(magic))) {
        return blk_err(e, EINVAL, "Volume is not in LUKS format");
    }
    if (be16(b + LH_VERSION) != 1) {
        return blk_err(e, ENOTSUP, "LUKS version %u is not supported", be16(b + LH_VERSION));
    }
    if ((err = take_text(b + LH_CIPHER, h->cipher, "cipher name", e)) ||
        (err = take_text(b + LH_MODE, h->mode, "cipher mode", e)) ||
        (err = take_text(b + LH_HASH, h->hash, "hash spec", e))) {
        return err;
    }
    h->payload_sector = be32(b + LH_PAYLOAD);
    h->key_len = be32(b + LH_KEY_LEN);
    h->iterations = be32(b + LH_ITERATIONS);
    memcpy(h->digest, b + LH_DIGEST, LUKS_DIGEST);
    memcpy(h->salt, b + LH_SALT, LUKS_SALT);
    memcpy(h->uuid, b + LH_UUID, 40);
    h->uuid[40] = 0;
    if (!(detached && !h->payload_sector) && h->payload_sector < LUKS_SLOT_AT / CRYPTO_SECTOR) {
        return blk_err(e, EINVAL, "LUKS payload is overlapping with the header");
    }
    if (!h->iterations) {
        return blk_err(e, EINVAL, "LUKS key iteration count is zero");
    }
    if (h->key_len > CRYPTO_KEY_MAX) {
        return blk_err(e, ENOTSUP, "Algorithm '%s' with key size %u bytes not supported",
                       h->cipher, h->key_len);
    }
    err = decode_slots(b, h, e);
    return err ? err : decode_names(h, e);
}

int luks_header_read(const struct luks_place *at, struct luks_header *h, struct blk_error *e)
{
    uint8_t buf[HEADER_BYTES];
    int err;

    *h = (struct luks_header){ 0 };
    /* Of a file of its own that is shorter the rest reads as zeros. */
    if (at->offset && at->len < LH_END) {
        return blk_err(e, EINVAL, "Request for data outside of extension header");
    }
    err = co_read(at->node, at->offset, buf, sizeof(buf));
    return err ? blk_err_errno(e, -err, "Unable to read LUKS header")
               : decode(buf, at->detached, h, e);
}

/* ---- writing ---------------------------------------------------------------------------- */

int luks_header_write(const struct luks_place *at, const struct luks_header *h)
{
    uint8_t b[HEADER_BYTES] = { 0 };

    memcpy(b, magic, sizeof(magic));
    b[LH_VERSION + 1] = 1;
    memcpy(b + LH_CIPHER, h->cipher, 32);
    memcpy(b + LH_MODE, h->mode, 32);
    memcpy(b + LH_HASH, h->hash, 32);
    put_be32(b + LH_PAYLOAD, h->payload_sector);
    put_be32(b + LH_KEY_LEN, h->key_len);
    memcpy(b + LH_DIGEST, h->digest, LUKS_DIGEST);
    memcpy(b + LH_SALT, h->salt, LUKS_SALT);
    put_be32(b + LH_ITERATIONS, h->iterations);
    memcpy(b + LH_UUID, h->uuid, 40);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        uint8_t *s = b + LH_SLOTS + i * LH_SLOT_BYTES;
        put_be32(s + LS_ACTIVE, h->slot[i].active ? ACTIVE : DISABLED);
        put_be32(s + LS_ITERATIONS, h->slot[i].iterations);
        memcpy(s + LS_SALT, h->slot[i].salt, LUKS_SALT);
        put_be32(s + LS_SECTOR, h->slot[i].sector);
        put_be32(s + LS_STRIPES, LUKS_STRIPES);
    }
    int err = co_write(at->node, at->offset, b, sizeof(b), 0);
    return err ? err : co_flush(at->node);
}

/* ---- info --------------------------------------------------------------------------------- */

json_t *luks_info(const struct luks_header *h)
{
    json_t *j = json_object(), *slots = json_array();

    json_object_set_new(j, "ivgen-alg", json_string(crypto_ivgen_names[h->how.ivgen]));
    json_object_set_new(j, "detached-header", json_boolean(!h->payload_sector));
    json_object_set_new(j, "hash-alg", json_string(h->hash));
    json_object_set_new(j, "cipher-alg", json_string(h->how.alg->name));
    json_object_set_new(j, "uuid", json_string(h->uuid));
    if (h->how.ivgen == CRYPTO_ESSIV) {
        json_object_set_new(j, "ivgen-hash-alg", json_string(h->essiv_hash));
    }
    json_object_set_new(j, "cipher-mode", json_string(crypto_mode_names[h->how.mode]));
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *s = &h->slot[i];
        json_t *o = json_object();
        json_object_set_new(o, "active", json_boolean(s->active));
        if (s->active) {
            json_object_set_new(o, "iters", json_integer(s->iterations));
        }
        json_object_set_new(o, "key-offset", json_integer((json_int_t)s->sector * CRYPTO_SECTOR));
        if (s->active) {
            json_object_set_new(o, "stripes", json_integer(LUKS_STRIPES));
        }
        json_array_append_new(slots, o);
    }
    json_object_set_new(j, "slots", slots);
    json_object_set_new(j, "payload-offset",
                        json_integer((json_int_t)h->payload_sector * CRYPTO_SECTOR));
    json_object_set_new(j, "master-key-iters", json_integer(h->iterations));
    return j;
}
