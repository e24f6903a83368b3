/*
 * luks.h - LUKS version 1 headers: what the luks format and encrypted qcow2
 * images share.  All on-disk integers are big-endian; they are converted once, in
 * luks_header.c.
 *
 * luks_header.c   the header: parsing, checking, writing, what info shows
 * luks_key.c      key slots: opening, storing, erasing them
 * luks_create.c   options of creation; a new header
 * luks_amend.c    adding and removing passwords
 * luks.c          the format of its own
 */
#ifndef PLATTER_LUKS_H
#define PLATTER_LUKS_H

#include "block/crypto.h"
#include "block/driver.h"

#define LUKS_SLOTS 8u
#define LUKS_STRIPES 4000u
#define LUKS_SLOT_AT 4096u              /* first slot's key material */
#define LUKS_DIGEST 20u
#define LUKS_SALT 32u
/* What a header may ask of PBKDF2, for a password or the master key: minutes on a slow
 * machine.  cryptsetup asks for two seconds' worth, a few millions; its --iter-time 10000
 * on a fast one for some tens of millions. */
#define LUKS_ITERATIONS_MAX 100000000u

struct luks_slot {
    bool active;
    uint32_t iterations, sector;        /* of its key material */
    uint8_t salt[LUKS_SALT];
};

struct luks_header {
    char cipher[33], mode[33], hash[33], uuid[41];
    uint32_t payload_sector;            /* 0: a detached header */
    uint32_t key_len, iterations;       /* master key: bytes, of its digest */
    uint8_t digest[LUKS_DIGEST], salt[LUKS_SALT];
    struct luks_slot slot[LUKS_SLOTS];
    char essiv_hash[33];                /* part of mode; how.essiv_hash points here */
    struct crypto_how how;
};

/* Where a header lies: len bytes of a node from offset on. */
struct luks_place {
    struct blk_node *node;
    uint64_t offset, len;
    bool detached;                      /* the payload lies in another file */
};

/* ---- luks_header.c ------------------------------------------------------------- */

bool luks_magic(const uint8_t *buf, size_t len);
/* Read and check.  h must not move afterwards.  Fiber. */
int luks_header_read(const struct luks_place *at, struct luks_header *h, struct blk_error *e);
/* Write it in one piece and make it durable.  Fiber. */
int luks_header_write(const struct luks_place *at, const struct luks_header *h);
/* QEMU's QCryptoBlockInfoLUKS, a new object. */
json_t *luks_info(const struct luks_header *h);
/* Bytes of a slot's key material, and of the header with all of them. */
uint64_t luks_slot_bytes(const struct luks_header *h);
uint64_t luks_header_bytes(const struct luks_header *h);

/* ---- luks_key.c: fibers ------------------------------------------------------------ */

/* Does the slot's password open it?  1 with the master key, 0, or -errno. */
int luks_slot_open(const struct luks_place *at, const struct luks_header *h, unsigned slot,
                   const char *password, uint8_t *key, struct blk_error *e);
/* The master key by any slot. */
int luks_unlock(const struct luks_place *at, const struct luks_header *h, const char *password,
                uint8_t *key, struct blk_error *e);
/* A password into a slot: key material, then the header. */
int luks_slot_store(const struct luks_place *at, struct luks_header *h, unsigned slot,
                    const char *password, const uint8_t *key, uint64_t iter_ms,
                    struct blk_error *e);
/* The header without it first, then its key material. */
int luks_slot_erase(const struct luks_place *at, struct luks_header *h, unsigned slot,
                    struct blk_error *e);
/* How often to iterate for out_len bytes to take ms milliseconds here. */
int luks_count_iterations(const char *hash, size_t out_len, uint64_t ms, uint64_t *out,
                          struct blk_error *e);
/* The password that the secret of this name is (borrowed).  prefix: of option names in messages
 * ("encrypt.").  secret NULL is an error. */
int luks_password(const char *secret, const char *prefix, const char **password,
                  struct blk_error *e);
/* The payload's cipher by that password. */
int luks_open(const struct luks_place *at, const struct luks_header *h, const char *secret,
              const char *prefix, struct crypto_sectors **out, struct blk_error *e);

/* ---- luks_create.c ------------------------------------------------------------------- */

struct luks_create {
    struct luks_header h;
    const char *password;               /* the secret list's */
    uint64_t iter_ms;
};
/* Take the options of a new header, "PREFIXkey-secret" and so on, out of o and fill
 * c->h but for keys; all checks are done here.  c must not move afterwards. */
int luks_create_options(struct luks_create *c, struct blk_opts *o, const char *prefix,
                        struct blk_error *e);
/* Make keys, write slot 0 and the header. *sectors (may be NULL): the payload's cipher.
 * Fiber. */
int luks_create_write(struct luks_create *c, const struct luks_place *at,
                      struct crypto_sectors **sectors, struct blk_error *e);
/* Option descriptors, for every prefix the same texts. */
#define LUKS_CREATE_OPTS(prefix) \
    { prefix "cipher-alg", BLK_OPT_STRING, "Name of encryption cipher algorithm", NULL }, \
    { prefix "cipher-mode", BLK_OPT_STRING, "Name of encryption cipher mode", NULL }, \
    { prefix "ivgen-alg", BLK_OPT_STRING, "Name of IV generator algorithm", NULL }, \
    { prefix "ivgen-hash-alg", BLK_OPT_STRING, "Name of IV generator hash algorithm", NULL }, \
    { prefix "hash-alg", BLK_OPT_STRING, "Name of encryption hash algorithm", NULL }, \
    { prefix "iter-time", BLK_OPT_NUMBER, "Time to spend in PBKDF in milliseconds", NULL }

/* ---- luks_amend.c ---------------------------------------------------------------------- */

/* In alphabetical order, as help prints them. */
#define LUKS_AMEND_OPTS(prefix) \
    { prefix "iter-time", BLK_OPT_NUMBER, "Time to spend in PBKDF in milliseconds", NULL }, \
    { prefix "keyslot", BLK_OPT_NUMBER, "Select a single keyslot to modify explicitly", NULL }, \
    { prefix "new-secret", BLK_OPT_STRING, \
      "New secret to set in the matching keyslots. Empty string to erase", NULL }, \
    { prefix "old-secret", BLK_OPT_STRING, \
      "Select all keyslots that match this password", NULL }, \
    { prefix "state", BLK_OPT_STRING, \
      "Select new state of affected keyslots (active/inactive)", NULL }
/* Change the key slots as o ("PREFIXstate", ...) says.  secret: the one the image was
 * opened with.  Fiber. */
int luks_amend(const struct luks_place *at, struct luks_header *h, struct blk_opts *o,
               const char *prefix, const char *secret, bool force, struct blk_error *e);

#endif
