/*
 * hash.h - the cryptographic hashes that digest and convert --verify can use;
 * libgcrypt's, none of our own.
 */
#ifndef PLATTER_IMG_HASH_H
#define PLATTER_IMG_HASH_H

#include "block/block.h"

#define HASH_MAX 64u                    /* bytes of the longest */

struct hash_algorithm {
    const char *name;
    unsigned length;                    /* bytes */
    int id;                             /* the library's */
};

/* NULL: no such algorithm. */
const struct hash_algorithm *hash_find(const char *name);
/* "sha256, sha512, ...", static. */
const char *hash_names(void);
/* Before the first hash_of(). -ENOTSUP: built without the library. */
int hash_start(struct blk_error *e);
/* Any thread. */
void hash_of(const struct hash_algorithm *a, const void *buf, size_t len, uint8_t *out);

#endif
