/*
 * hash.c - libgcrypt behind the three calls that are needed of it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "img/hash.h"

#ifdef HAVE_GCRYPT
#include <gcrypt.h>

static const struct hash_algorithm algorithms[] = {
    { "sha256", 32, GCRY_MD_SHA256 },
    { "sha512", 64, GCRY_MD_SHA512 },
    { "sha3-256", 32, GCRY_MD_SHA3_256 },
    { "blake2b-256", 32, GCRY_MD_BLAKE2B_256 },
    { "blake2b-512", 64, GCRY_MD_BLAKE2B_512 },
};

int hash_start(struct blk_error *e)
{
    if (gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P)) {
        return 0;
    }
    if (!gcry_check_version("1.8.0")) {
        return blk_err(e, ENOTSUP, "libgcrypt is too old for digests");
    }
    gcry_control(GCRYCTL_DISABLE_SECMEM, 0);        /* nothing here is secret */
    gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
    return 0;
}

void hash_of(const struct hash_algorithm *a, const void *buf, size_t len, uint8_t *out)
{
    gcry_md_hash_buffer(a->id, out, buf, len);
}

#else

static const struct hash_algorithm algorithms[] = {
    { "sha256", 32, 0 },
};

int hash_start(struct blk_error *e)
{
    return blk_err(e, ENOTSUP, "Digests are not supported: built without libgcrypt");
}

void hash_of(const struct hash_algorithm *a, const void *buf, size_t len, uint8_t *out)
{
    abort();                            /* hash_start() has failed */
}

#endif

const struct hash_algorithm *hash_find(const char *name)
{
    for (size_t i = 0; i < BLK_ARRAY_SIZE(algorithms); i++) {
        if (!strcmp(algorithms[i].name, name)) {
            return &algorithms[i];
        }
    }
    return NULL;
}

const char *hash_names(void)
{
    static char text[128];

    if (!*text) {
        for (size_t i = 0; i < BLK_ARRAY_SIZE(algorithms); i++) {
            strcat(text, i ? ", " : "");
            strcat(text, algorithms[i].name);
        }
    }
    return text;
}
