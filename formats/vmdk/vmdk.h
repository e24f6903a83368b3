/*
 * vmdk.h - VMware disk images: what their parts share.
 *
 * An image is a descriptor (text: a list of extents, a content ID, the parent) and its
 * extents: flat files, or sparse ones of grains that a directory of grain tables maps.
 * A sparse extent that is the whole image holds its descriptor itself.  Numbers are
 * little-endian, places are sectors of 512 bytes.
 */
#ifndef PLATTER_FORMATS_VMDK_H
#define PLATTER_FORMATS_VMDK_H

#include "formats/blockmap.h"

#define VMDK_SECTOR         512u
#define VMDK_DESC_MAX       ((1u << 20) - 1)    /* bytes of a descriptor that are read */
#define VMDK_DESC_BYTES     (20u * VMDK_SECTOR) /* of one in a sparse file; where IDs are */
#define VMDK_EMBEDDED_AT    VMDK_SECTOR         /* where that one is */
#define VMDK_EXTENTS_MAX    1024u
#define VMDK_GRAIN_MAX      0x200000u           /* sectors */
#define VMDK_DIRECTORY_MAX  (2u << 20)          /* entries, of all extents together */
#define VMDK_PACKED_MAX     (16u << 20)         /* bytes of a grain that is compressed */
#define VMDK_SPLIT          (1ull << 31)        /* bytes in an extent of a split image */
#define VMDK_INFLATED       4u                  /* grains kept inflated, an extent */

enum { VMDK_RGD = 1u << 1, VMDK_ZERO_GRAIN = 1u << 2, VMDK_COMPRESSED = 1u << 16,
       VMDK_MARKERS = 1u << 17 };

/* Offsets in the header of a sparse extent ("KDMV"). */
enum { VK_VERSION = 4, VK_FLAGS = 8, VK_CAPACITY = 12, VK_GRAIN = 20, VK_DESC = 28,
       VK_DESC_SIZE = 36, VK_PER_TABLE = 44, VK_RGD = 48, VK_GD = 56, VK_DATA = 64,
       VK_NEWLINES = 73, VK_COMPRESSION = 77 };

struct vmdk_inflated { uint64_t block; uint8_t *data; size_t len; };

struct vmdk_extent {
    struct blockmap map;                /* not of flat ones */
    struct vmdk *v;
    struct blk_node *file;
    char *type;                         /* as the descriptor has it, or NULL */
    uint64_t start, end;                /* guest bytes */
    bool flat, compressed, markers, zero_grain;
    uint64_t flat_offset;
    uint64_t gd_at, rgd_at;             /* bytes; rgd_at 0: no second directory */
    uint64_t *gd, *rgd;                 /* entries: places of tables in bytes, 0: none */
    uint64_t tables;
    uint64_t se_grains;                 /* seSparse: first sector of the grains */
    /* Compressed grains are written in the order of requests. */
    uint64_t tickets, turn;
    struct co_queue turn_q;
    struct vmdk_inflated inflated[VMDK_INFLATED];
    unsigned inflated_next;
};

struct vmdk {
    struct blk_node *n;
    char *create_type;
    uint64_t desc_at;                   /* of the descriptor in n->file */
    uint32_t cid, parent_cid;
    struct vmdk_extent **extents;       /* ascending, without gaps */
    unsigned nextents;
    uint64_t directory;                 /* entries of all so far */
    bool settled;                       /* the parent's ID has been looked at */
    bool id_changed;                    /* the content ID, by this session's writes */
    struct co_mutex settle_lock;
};

/* descriptor.c.  All fibers. */
/* The text at `at` of file, malloc'd, NUL-terminated.  NULL: e says why. */
char *vmdk_text_read(struct blk_node *file, uint64_t at, struct blk_error *e);
/* The value of KEY="..." into buf; false: not there or too long. */
bool vmdk_text_value(const char *text, const char *key, char *buf, size_t len);
struct vmdk_line {                      /* of an extent */
    uint64_t sectors, offset;           /* offset: sectors, of flat ones */
    char type[11], name[512];
};
/* The next extent's line from *text on: 1, 0 at the end, -EINVAL with e set. */
int vmdk_line_next(const char **text, struct vmdk_line *l, struct blk_error *e);
/* Content ID (or parent's) from the descriptor at `at` of file. */
int vmdk_id_read(struct blk_node *file, uint64_t at, bool parent, uint32_t *out);
/* Extents in other files, and the parent. */
void vmdk_facts(struct blk_node *file, struct blk_facts *f);
/* The name of the parent into n->backing_name. */
int vmdk_parent_read(struct vmdk *v, struct blk_error *e);
/* A new content ID, durable. */
int vmdk_id_change(struct vmdk *v);

/* extent.c.  All fibers. */
struct vmdk_extent *vmdk_extent_new(struct vmdk *v, struct blk_node *file);
void vmdk_extent_free(struct vmdk_extent *x);
/* Append x to the image, of so many sectors. */
int vmdk_extent_add(struct vmdk_extent *x, uint64_t sectors, struct blk_error *e);
/* Read the header of x->file and its directory, and add it; magic: its first bytes. */
int vmdk_extent_sparse(struct vmdk_extent *x, const uint8_t *header, struct blk_error *e);
int vmdk_extent_se_sparse(struct vmdk_extent *x, struct blk_error *e);

/* deflate.c.  All fibers. */
int vmdk_read_grain(struct blockmap *m, uint64_t block, uint64_t v, uint64_t in,
                    const struct iovec *iov, int cnt, uint64_t pos, uint64_t len);
int vmdk_write_packed(struct vmdk_extent *x, struct blk_req *req);
/* Compress n grains on the workers: out (the caller's to free()) is the marker, the
 * stream, and zeros to a whole sector. */
struct vmdk_grain {
    uint64_t sector;                    /* of the guest's disk */
    const uint8_t *in;
    size_t len;
    uint8_t *out;
    size_t out_len;
    int err;
    struct packing *packing;            /* deflate.c's own, from here */
    struct blk_work work;
};
int vmdk_pack(struct vmdk_grain *g, size_t n);

/* create.c, and stream.c, which writes an image front to back. */
struct vmdk_create {
    uint64_t size;
    const char *subformat, *adapter, *backing, *hw, *tools;
    bool flat, split, packed, zero_grain;
    uint32_t parent_cid;
    char *lines;                        /* of extents, in the descriptor; free() */
    size_t lines_len;
};
#define VMDK_GRAIN          128u        /* sectors, in what we make */
#define VMDK_PER_TABLE      512u
#define VMDK_TABLE_SECTORS  4u
struct vmdk_layout { uint64_t tables, gd_sectors, rgd, gd, data; };     /* sectors */
extern const struct blk_driver blk_vmdk;
extern const struct blk_option_desc vmdk_create_opts[];
int vmdk_take_options(struct vmdk_create *c, struct blk_opts *o, struct blk_error *e);
void vmdk_header_build(const struct vmdk_create *c, const struct vmdk_layout *l, uint64_t size,
                       uint8_t *h);
int vmdk_add_line(struct vmdk_create *c, uint64_t size, const char *name, size_t len);
char *vmdk_describe(const struct vmdk_create *c);      /* malloc'd; NULL: no memory */
int vmdk_stream(struct blk_opts *o, const struct blk_stream *s, struct blk_error *e);
int vmdk_create_check(struct blk_opts *o, struct blk_error *e);
int vmdk_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                struct blk_error *e);

static inline struct vmdk_extent *vmdk_extent_of(const struct blockmap *m)
{
    return blk_container_of(m, struct vmdk_extent, map);
}

#endif
