/*
 * digest.h - a hash of what a guest would read, whatever the image's format.
 *
 * Construction (also in platter-img-digest(1); never to change)
 *  - The guest's bytes, with zeros up to whole segments of 64 KiB, are the leaves:
 *    H(segment).
 *  - A node is H(the digests of its 256 children).  Children past the end are those
 *    of segments of zeros.  The tree has the least height of 1 or more at which one
 *    node covers everything.
 *  - The digest is H(size in bytes, rounded up to 512, as 8 bytes big-endian, and
 *    the top node's digest).  The three kinds of input differ in length, so none
 *    can be taken for another.
 * Nodes over zeros alone are known beforehand, so a hole costs nothing however
 * large; leaves are hashed on the worker pool.
 */
#ifndef PLATTER_IMG_DIGEST_H
#define PLATTER_IMG_DIGEST_H

#include "img/convert.h"
#include "img/hash.h"

#define DIGEST_SEGMENT  65536u
#define DIGEST_ARITY    256u
#define DIGEST_NODE     ((uint64_t)DIGEST_SEGMENT * DIGEST_ARITY)  /* bytes a lowest node covers */
#define DIGEST_LEVELS   8u

/* ---- the tree (digest_tree.c) --------------------------------------------------- */

struct digest_tree;
/* NULL: no memory. */
struct digest_tree *digest_tree_new(const struct hash_algorithm *a);
void digest_tree_free(struct digest_tree *t);
/* The next leaf, or n leaves of zeros. */
void digest_tree_add(struct digest_tree *t, const uint8_t *leaf);
void digest_tree_zeros(struct digest_tree *t, uint64_t n);
/* Keep the digests of the lowest nodes, those over zeros alone aside, for
 * digest_tree_differ(); -ENOMEM shows in digest_tree_end(). */
void digest_tree_keep(struct digest_tree *t);
/* size: of the guest's disk, a multiple of 512.  0 or -ENOMEM. */
int digest_tree_end(struct digest_tree *t, uint64_t size, uint8_t *out);
/* The first lowest node in which two ended trees, both kept, differ: where its
 * DIGEST_NODE bytes start; UINT64_MAX: nowhere. */
uint64_t digest_tree_differ(const struct digest_tree *a, const struct digest_tree *b);

/* ---- chunks of a convert (digest_stream.c) ---------------------------------------- */

/* Each worker hashes the whole segments of its chunk on the pool, then hands them over
 * in the order of chunks; what segments share with their neighbours' chunks is put
 * together there. */
struct digest_chunk;
struct digest_chunk *digest_chunk_new(const struct convert *c);    /* NULL: no memory */
void digest_chunk_free(struct digest_chunk *d);
/* Fiber; the chunk's data is in buf. */
void digest_chunk_hash(struct digest_stream *s, struct digest_chunk *d,
                       const struct convert_chunk *ch, const uint8_t *buf);
/* Fiber; in order of tickets. */
void digest_chunk_feed(struct digest_stream *s, const struct digest_chunk *d,
                       const struct convert_chunk *ch, const uint8_t *buf);

struct digest_stream *digest_stream_new(const struct hash_algorithm *a, bool keep);
void digest_stream_free(struct digest_stream *s);
const struct digest_tree *digest_stream_tree(const struct digest_stream *s);
/* After the last chunk.  0 or -ENOMEM. */
int digest_stream_end(struct digest_stream *s, uint64_t size, uint8_t *out);

/* Read all of c's sources through such a stream; src, nsrc, total, workers, salvage,
 * quiet, done and work are set by the caller, the failure is in c->failure.  Fiber. */
int digest_read(struct convert *c, struct digest_stream *s);

/* Lower-case hexadecimal, len * 2 + 1 bytes. */
void digest_hex(const uint8_t *digest, unsigned len, char *out);

#endif
