/*
 * parallels.h - what parallels.c and parallels_check.c share.
 */
#ifndef PLATTER_FORMATS_PARALLELS_H
#define PLATTER_FORMATS_PARALLELS_H

#include "formats/blockmap.h"

#define PRL_MAGIC     "WithoutFreeSpace"
#define PRL_MAGIC_EXT "WithouFreSpacExt"
#define PRL_INUSE     0x746f6e59u   /* the header says that the image is open */
#define PRL_CLUSTER   (1u << 20)    /* of images we make */
#define PRL_ZERO_MAX  (64u << 20)   /* bytes of a new table that are written */
#define PRL_SEEN_MAX  (1ull << 29)  /* clusters of a file that are told apart: 64 MiB of bits */

/* The header, 64 bytes; the table follows. */
enum {
    PH_MAGIC = 0, PH_VERSION = 16, PH_HEADS = 20, PH_CYLS = 24, PH_TRACKS = 28, PH_ENTRIES = 32,
    PH_SECTORS = 36, PH_INUSE = 44, PH_DATA = 48, PH_FLAGS = 52, PH_EXT = 56, PH_BYTES = 64,
};

struct parallels {
    struct blockmap map;            /* first: see bm_of() */
    uint8_t header[PH_BYTES];
    uint32_t unit;                  /* bytes an entry counts in */
    bool unclean;                   /* was not closed */
    bool damaged;                   /* something a check would find */
};

static inline struct parallels *prl_of(const struct blockmap *m)
{
    return blk_container_of(m, struct parallels, map);
}

/* Where clusters begin, in sectors; false: what the header says cannot be. */
bool prl_data_offset(const struct parallels *s, uint32_t *sectors);

/* Fiber.  Before writing: where new clusters go, the gaps between those in use first.
 * Sets damaged when entries are outside of the file or share a place. */
int prl_find_room(struct parallels *s);
int prl_check(struct blk_node *n, struct blk_check *c, int fix, struct blk_error *e);

#endif
