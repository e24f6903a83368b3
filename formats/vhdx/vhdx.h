/*
 * vhdx.h - Microsoft's VHDX ([MS-VHDX]): what its parts share.
 *
 * A file is: identifier (64 KiB), two headers, two region tables, then in units of
 * 1 MiB the log, the block allocation table, the metadata and the payload blocks.
 * All numbers are little-endian.  Everything but payload is protected: headers and
 * region tables by a checksum and a second copy, the table by the log.
 */
#ifndef PLATTER_FORMATS_VHDX_H
#define PLATTER_FORMATS_VHDX_H

#include "formats/blockmap.h"

#define VHDX_MIB            (1u << 20)
#define VHDX_SIZE_MAX       (64ull << 40)
#define VHDX_BLOCK_MIN      (1u << 20)
#define VHDX_BLOCK_MAX      (256u << 20)
#define VHDX_ENTRY_MAX      (64u << 20)     /* of a log, in memory */
#define VHDX_LOG_WORK       (128u << 20)    /* bytes of one that are checksummed at most */

#define VHDX_HEADER_AT      0x10000u        /* and the second 64 KiB behind it */
#define VHDX_HEADER_BYTES   4096u           /* covered by its checksum */
#define VHDX_REGIONS_AT     0x30000u
#define VHDX_REGIONS_BYTES  0x10000u
#define VHDX_REGIONS_MAX    2047u
#define VHDX_SECTION_END    (1u << 20)      /* of what has a fixed place */

/* Offsets in a header. */
enum { VH_CHECKSUM = 4, VH_SEQUENCE = 8, VH_FILE_GUID = 16, VH_DATA_GUID = 32, VH_LOG_GUID = 48,
       VH_LOG_VERSION = 64, VH_VERSION = 66, VH_LOG_LENGTH = 68, VH_LOG_OFFSET = 72, VH_END = 80 };

/* States of a block in its table entry. */
#define VHDX_STATE          7ull
#define VHDX_OFFSET         (~0ull << 20)
enum { VB_NOT_PRESENT, VB_UNDEFINED, VB_ZERO, VB_UNMAPPED_095, VB_UNMAPPED = 5, VB_FULL = 6,
       VB_PARTIAL = 7 };

#define VHDX_PARAM_FIXED    1u              /* LeaveBlocksAllocated */
#define VHDX_PARAM_PARENT   2u

struct vhdx_guid { uint8_t b[16]; };        /* as on disk */

extern const struct vhdx_guid vhdx_bat_guid, vhdx_metadata_guid, vhdx_params_guid,
    vhdx_size_guid, vhdx_page83_guid, vhdx_logical_guid, vhdx_physical_guid;

struct vhdx_region { uint64_t start, end; };

struct vhdx_header {                        /* what of a header is used */
    uint64_t sequence;
    struct vhdx_guid file_guid, data_guid, log_guid;
    uint16_t log_version;
    uint32_t log_length;
    uint64_t log_offset;
};

struct vhdx {
    struct blockmap map;
    struct blk_node *n, *file;
    struct vhdx_header h;                   /* the current one */
    unsigned current;                       /* which of the two it is */
    struct vhdx_guid session;               /* FileWriteGuid of this opening */
    struct vhdx_region *regions;            /* ascending, disjoint */
    size_t nregions;
    struct vhdx_region bat, metadata;
    uint32_t block_size, sector_size;
    uint64_t size, blocks, chunk_ratio;     /* payload blocks for each bitmap entry */
    bool replayed;                          /* the log was, when this was opened */
    bool announced;                         /* the headers know of this session's writes */
    struct co_mutex announce_lock;
    uint64_t log_sequence;                  /* of the last entry written */
};

/* header.c.  All fibers. */
uint32_t vhdx_crc(const uint8_t *buf, size_t len);          /* crc.c */
/* Is the checksum at buf + 4, itself counted as 0, right?  seal() makes it so. */
bool vhdx_crc_valid(const uint8_t *buf, size_t len);
void vhdx_crc_seal(uint8_t *buf, size_t len);
int vhdx_header_read(struct vhdx *v, struct blk_error *e);
/* Write h into both headers, the older first, each durable before the next. */
int vhdx_header_update(struct vhdx *v, const struct vhdx_header *h);
void vhdx_header_encode(uint8_t *buf, const struct vhdx_header *h);
int vhdx_regions_read(struct vhdx *v, struct blk_error *e);
/* The region that [start, end) touches, or NULL. */
const struct vhdx_region *vhdx_region_at(const struct vhdx *v, uint64_t start, uint64_t end);
int vhdx_metadata_read(struct vhdx *v, struct blk_error *e);
/* What a differencing image names as its parent. */
void vhdx_facts(struct blk_node *file, struct blk_facts *f);
/* Entries of a table without sector bitmaps. */
uint64_t vhdx_bat_entries(uint64_t blocks, uint64_t chunk_ratio);

/* log.c.  All fibers. */
/* Bring the file to where the log says it is; refused when it is read-only. */
int vhdx_log_replay(struct vhdx *v, struct blk_error *e);
/* Change parts of the table: logged, then in place (not yet synced).  The guest data
 * that entries point at must be durable. */
int vhdx_log_store(struct vhdx *v, const struct bm_piece *p, size_t n);
/* Everything is in place and synced: the log is empty. */
int vhdx_log_end(struct vhdx *v);

/* create.c */
extern const struct blk_option_desc vhdx_create_opts[];
int vhdx_create_check(struct blk_opts *o, struct blk_error *e);
int vhdx_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                struct blk_error *e);

static inline bool vhdx_guid_is(const void *p, const struct vhdx_guid *g)
{
    return !__builtin_memcmp(p, g, sizeof(*g));
}

#endif
