/*
 * convert_verify.c - convert --verify: is what the target holds what was copied?
 *
 * While copying, a digest tree is built of what is read (digest.h), its lowest nodes
 * kept: 32 bytes for each 16 MiB.  The target, closed and opened anew, is read back
 * through another one.  Where a copy is not of everything (an overlay, a resumed
 * convert) the sources are read a second time instead.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "img/convert_verify.h"
#include "img/digest.h"
#include "img/img.h"

#define PIECE 65536u

int convert_verify_start(struct convert *c, bool whole)
{
    struct blk_error e = BLK_ERROR_INIT;

    if (hash_start(&e)) {
        img_report(&e);
        return -ENOTSUP;
    }
    c->work = 2 * c->total;
    if (whole && !c->has_backing) {
        c->digest = digest_stream_new(hash_find("sha256"), true);
        return c->digest ? 0 : -ENOMEM;
    }
    return 0;
}

/* Where a and b differ first in [at, at + DIGEST_NODE), by sectors; a read error on
 * either side ends the search. */
static uint64_t find_difference(const struct convert *c, struct blk_node *target, uint64_t at)
{
    uint8_t *a = malloc(PIECE), *b = malloc(PIECE);
    uint64_t end = BLK_MIN(at + DIGEST_NODE, c->total), found = UINT64_MAX;

    while (a && b && at < end && found == UINT64_MAX) {
        size_t len = (size_t)BLK_MIN(PIECE, end - at), i = 0;

        if (convert_read_sources(c, at, a, len) || co_read(target, at, b, len)) {
            break;
        }
        while (i < len && !memcmp(a + i, b + i, BLK_MIN(CONVERT_SECTOR, len - i))) {
            i += CONVERT_SECTOR;
        }
        found = i < len ? at + i : found;
        at += len;
    }
    free(a);
    free(b);
    return found;
}

static int report_difference(const struct convert *c, struct blk_node *target, uint64_t node)
{
    uint64_t at = find_difference(c, target, node);

    if (at != UINT64_MAX) {
        img_error("%s: verification failed: differs from the source at byte %" PRIu64,
                  blk_filename(target), at);
    } else {
        img_error("%s: verification failed: not what was copied, in the %u MiB at byte %" PRIu64,
                  blk_filename(target), (unsigned)(DIGEST_NODE >> 20), node);
    }
    return -EIO;
}

static int read_all(const struct convert *c, struct convert_source *src, size_t nsrc,
                    uint64_t done, struct digest_stream *s, const char *whose)
{
    struct convert r = { .src = src, .nsrc = nsrc, .total = c->total, .workers = c->workers,
                         .salvage = c->salvage && nsrc == c->nsrc && src == c->src,
                         .quiet = true, .done = done, .work = c->work };
    int err = digest_read(&r, s);

    if (err) {
        img_error("%s: error while reading back at byte %" PRIu64 ": %s", whose, r.failure.at,
                  strerror(-err));
    }
    return err;
}

int convert_verify(struct convert *c, struct blk_node *target, char *hex)
{
    struct convert_source back = { .node = target, .length = c->total };
    const struct hash_algorithm *a = hash_find("sha256");
    struct digest_stream *want = c->digest, *have = digest_stream_new(a, true);
    uint8_t want_digest[HASH_MAX], have_digest[HASH_MAX];
    int err = have ? 0 : -ENOMEM;

    if (!want && !err) {
        want = c->digest = digest_stream_new(a, true);
        err = want ? read_all(c, c->src, c->nsrc, c->total, want, "source") : -ENOMEM;
    }
    err = err ? err : read_all(c, &back, 1, c->total, have, blk_filename(target));
    err = err ? err : digest_stream_end(want, c->total, want_digest);
    err = err ? err : digest_stream_end(have, c->total, have_digest);
    if (!err && memcmp(want_digest, have_digest, a->length)) {
        err = report_difference(c, target, digest_tree_differ(digest_stream_tree(want),
                                                              digest_stream_tree(have)));
    }
    if (!err) {
        digest_hex(have_digest, a->length, hex);
    }
    digest_stream_free(have);
    return err;
}

void convert_verify_free(struct convert *c)
{
    digest_stream_free(c->digest);
    c->digest = NULL;
}
