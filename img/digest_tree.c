/*
 * digest_tree.c - the tree of a digest, built from the left: one partly filled node
 * for each level is all there is in memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "img/digest.h"

struct kept {
    uint64_t node;
    uint8_t digest[HASH_MAX];
};

struct digest_tree {
    const struct hash_algorithm *a;
    uint64_t leaves;                            /* so far */
    uint8_t zero[DIGEST_LEVELS][HASH_MAX];      /* of zeros alone; level 0: a leaf */
    struct level {
        unsigned n;                             /* digests in buf */
        uint8_t buf[DIGEST_ARITY * HASH_MAX];
    } level[DIGEST_LEVELS];                     /* [k] gathers digests of level k */
    bool keep;
    int err;
    struct kept *kept;
    size_t nkept, room;
};

/* Leaves below a node of this level. */
static uint64_t leaves_below(unsigned level)
{
    return 1ull << (8 * level);
}

static int know_zeros(struct digest_tree *t)
{
    uint8_t *segment = calloc(1, DIGEST_SEGMENT);

    if (!segment) {
        return -ENOMEM;
    }
    hash_of(t->a, segment, DIGEST_SEGMENT, t->zero[0]);
    for (unsigned k = 1; k < DIGEST_LEVELS; k++) {
        for (unsigned i = 0; i < DIGEST_ARITY; i++) {
            memcpy(segment + i * t->a->length, t->zero[k - 1], t->a->length);
        }
        hash_of(t->a, segment, DIGEST_ARITY * t->a->length, t->zero[k]);
    }
    free(segment);
    return 0;
}

struct digest_tree *digest_tree_new(const struct hash_algorithm *a)
{
    struct digest_tree *t = calloc(1, sizeof(*t));

    if (t) {
        t->a = a;
        if (know_zeros(t)) {
            free(t);
            t = NULL;
        }
    }
    return t;
}

void digest_tree_free(struct digest_tree *t)
{
    if (t) {
        free(t->kept);
        free(t);
    }
}

void digest_tree_keep(struct digest_tree *t)
{
    t->keep = true;
}

static void keep_node(struct digest_tree *t, uint64_t node, const uint8_t *digest)
{
    if (!t->keep || !memcmp(digest, t->zero[1], t->a->length)) {
        return;
    }
    if (t->nkept == t->room) {
        size_t room = t->room ? t->room * 2 : 64;
        struct kept *kept = realloc(t->kept, room * sizeof(*kept));

        if (!kept) {
            t->err = -ENOMEM;
            return;
        }
        t->kept = kept;
        t->room = room;
    }
    t->kept[t->nkept].node = node;
    memcpy(t->kept[t->nkept++].digest, digest, t->a->length);
}

/* A digest of level k; nodes above it that become full are closed. */
static void put(struct digest_tree *t, unsigned k, const uint8_t *digest)
{
    uint8_t node[HASH_MAX];

    for (;; k++) {
        struct level *l = &t->level[k];

        memcpy(l->buf + l->n++ * t->a->length, digest, t->a->length);
        if (l->n < DIGEST_ARITY || k + 1 == DIGEST_LEVELS) {
            return;
        }
        hash_of(t->a, l->buf, DIGEST_ARITY * t->a->length, node);
        l->n = 0;
        if (k == 0) {
            keep_node(t, t->leaves / DIGEST_ARITY - 1, node);
        }
        digest = node;
    }
}

void digest_tree_add(struct digest_tree *t, const uint8_t *leaf)
{
    t->leaves++;
    put(t, 0, leaf);
}

void digest_tree_zeros(struct digest_tree *t, uint64_t n)
{
    while (n) {
        unsigned k = 0;                 /* the largest node that starts here and fits */

        while (k + 1 < DIGEST_LEVELS && !t->level[k].n && n >= leaves_below(k + 1)) {
            k++;
        }
        n -= leaves_below(k);
        t->leaves += leaves_below(k);
        put(t, k, t->zero[k]);
    }
}

int digest_tree_end(struct digest_tree *t, uint64_t size, uint8_t *out)
{
    uint8_t top[8 + HASH_MAX];
    unsigned height = 1;

    while (height + 1 < DIGEST_LEVELS && leaves_below(height) < t->leaves) {
        height++;
    }
    if (!t->level[height].n) {
        digest_tree_zeros(t, leaves_below(height) - t->leaves);
    }
    for (unsigned i = 0; i < 8; i++) {
        top[i] = (uint8_t)(size >> (56 - 8 * i));
    }
    memcpy(top + 8, t->level[height].buf, t->a->length);
    hash_of(t->a, top, 8 + t->a->length, out);
    return t->err;
}

uint64_t digest_tree_differ(const struct digest_tree *a, const struct digest_tree *b)
{
    uint64_t node = UINT64_MAX;
    size_t i = 0;

    while (i < a->nkept && i < b->nkept && a->kept[i].node == b->kept[i].node &&
           !memcmp(a->kept[i].digest, b->kept[i].digest, a->a->length)) {
        i++;
    }
    if (i < a->nkept) {
        node = a->kept[i].node;
    }
    if (i < b->nkept) {
        node = BLK_MIN(node, b->kept[i].node);
    }
    return node == UINT64_MAX ? node : node * DIGEST_NODE;
}
