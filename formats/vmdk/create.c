/*
 * create.c - a new image: its descriptor, and its extents in files of their own where
 * the subformat wants that.
 *
 * A sparse extent: header, descriptor (20 sectors), then two copies of a directory
 * followed by its tables, then grains.
 */
#include "formats/vmdk/vmdk.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define DESC_SECTORS (VMDK_DESC_BYTES / VMDK_SECTOR)
#define NO_PARENT 0xffffffffu
#define CHUNK (1u << 20)

/* In QEMU's order: "Formatting ..." prints them so. */
const struct blk_option_desc vmdk_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "adapter_type", BLK_OPT_STRING, "Virtual adapter type, can be one of ide (default), "
      "lsilogic, buslogic or legacyESX", NULL },
    { "backing_file", BLK_OPT_STRING, "File name of a base image", NULL },
    { "backing_fmt", BLK_OPT_STRING, "Must be 'vmdk' if present", NULL },
    { "compat6", BLK_OPT_BOOL, "VMDK version 6 image", "off" },
    { "hwversion", BLK_OPT_STRING, "VMDK hardware version", "undefined" },
    { "toolsversion", BLK_OPT_STRING, "VMware guest tools version", NULL },
    { "subformat", BLK_OPT_STRING, "VMDK flat extent format, can be one of {monolithicSparse "
      "(default) | monolithicFlat | twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} ",
      NULL },
    { "zeroed_grain", BLK_OPT_BOOL,
      "Enable efficient zero writes using the zeroed-grain GTE feature", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

/* ---- options --------------------------------------------------------------------------------- */

static int one_of(const char *value, const char *const *all, const char **out, struct blk_error *e)
{
    for (; value && *all; all++) {
        if (!strcmp(value, *all)) {
            *out = value;
            return 0;
        }
    }
    return value ? blk_err(e, EINVAL, "invalid parameter value: %s", value) : 0;
}

static int take_versions(struct vmdk_create *c, struct blk_opts *o, struct blk_error *e)
{
    const char *hw = blk_opts_get(o, "hwversion"), *tools = blk_opts_get(o, "toolsversion");
    bool compat6 = false;
    int err = blk_opts_get_bool(o, "compat6", &compat6, e);

    c->hw = hw && strcmp(hw, "undefined") ? hw : NULL;
    if (!err && compat6 && c->hw) {
        return blk_err(e, EINVAL, "compat6 cannot be enabled with hwversion set");
    }
    c->hw = compat6 ? "6" : c->hw ? c->hw : "4";
    c->tools = tools ? tools : "2147483647";
    return err;
}

static int take_subformat(struct vmdk_create *c, struct blk_opts *o, struct blk_error *e)
{
    static const char *const subformats[] = { "monolithicSparse", "monolithicFlat",
        "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized", NULL };
    static const char *const adapters[] = { "ide", "buslogic", "lsilogic", "legacyESX", NULL };
    int err;

    c->adapter = adapters[0];
    c->subformat = subformats[0];
    err = one_of(blk_opts_get(o, "adapter_type"), adapters, &c->adapter, e);
    err = err ? err : one_of(blk_opts_get(o, "subformat"), subformats, &c->subformat, e);
    c->split = !strncmp(c->subformat, "twoGb", 5);
    c->flat = !strcmp(c->subformat, "monolithicFlat") || !strcmp(c->subformat, "twoGbMaxExtentFlat");
    c->packed = !strcmp(c->subformat, "streamOptimized");
    return err;
}

int vmdk_take_options(struct vmdk_create *c, struct blk_opts *o, struct blk_error *e)
{
    const char *fmt = blk_opts_get(o, "backing_fmt");
    int err = blk_opts_get_size(o, "size", &c->size, e);

    err = err ? err : blk_opts_get_bool(o, "zeroed_grain", &c->zero_grain, e);
    if (!err && fmt && strcmp(fmt, "vmdk")) {
        err = blk_err(e, EINVAL, "backing_file must be a vmdk image");
    }
    c->size = blk_align_up(BLK_MIN(c->size, BLK_SIZE_MAX), VMDK_SECTOR);
    c->backing = blk_opts_get(o, "backing_file");
    err = err ? err : take_subformat(c, o, e);
    err = err ? err : take_versions(c, o, e);
    if (!err && c->flat && (c->backing || c->zero_grain)) {
        err = blk_err(e, ENOTSUP, c->backing ? "Flat image can't have backing file"
                                             : "Flat image can't enable zeroed grain");
    }
    if (!err && c->backing && strlen(c->backing) > BLK_NAME_MAX) {
        err = blk_err(e, EINVAL, "Backing file name too long");
    }
    if (!err && !c->flat && !c->split &&
        c->size > (uint64_t)VMDK_DIRECTORY_MAX * VMDK_PER_TABLE * VMDK_GRAIN * VMDK_SECTOR) {
        err = blk_err(e, EFBIG, "Image size too large; max of 64TB");
    }
    if (!err && c->split && c->size / VMDK_SPLIT >= VMDK_EXTENTS_MAX) {
        err = blk_err(e, EFBIG, "Image size too large for extents of 2 GiB");
    }
    return err;
}

int vmdk_create_check(struct blk_opts *o, struct blk_error *e)
{
    struct vmdk_create c = { .parent_cid = NO_PARENT };
    return vmdk_take_options(&c, o, e);
}

/* ---- one extent ------------------------------------------------------------------------------ */

static struct vmdk_layout lay_out(uint64_t size)
{
    uint64_t grains = (size / VMDK_SECTOR + VMDK_GRAIN - 1) / VMDK_GRAIN;
    struct vmdk_layout l = { .tables = (grains + VMDK_PER_TABLE - 1) / VMDK_PER_TABLE };
    l.gd_sectors = (l.tables * 4 + VMDK_SECTOR - 1) / VMDK_SECTOR;
    l.rgd = 1 + DESC_SECTORS;
    l.gd = l.rgd + l.gd_sectors + l.tables * VMDK_TABLE_SECTORS;
    l.data = blk_align_up(l.gd + l.gd_sectors + l.tables * VMDK_TABLE_SECTORS, VMDK_GRAIN);
    return l;
}

void vmdk_header_build(const struct vmdk_create *c, const struct vmdk_layout *l, uint64_t size, uint8_t *h)
{
    memset(h, 0, VMDK_SECTOR);
    memcpy(h, "KDMV", 4);
    put_le32(h + VK_VERSION, c->packed ? 3 : c->zero_grain ? 2 : 1);
    put_le32(h + VK_FLAGS, VMDK_RGD | 1 | (c->packed ? VMDK_COMPRESSED | VMDK_MARKERS : 0) |
                           (c->zero_grain ? VMDK_ZERO_GRAIN : 0));
    put_le64(h + VK_CAPACITY, size / VMDK_SECTOR);
    put_le64(h + VK_GRAIN, VMDK_GRAIN);
    put_le64(h + VK_DESC, 1);
    put_le64(h + VK_DESC_SIZE, DESC_SECTORS);
    put_le32(h + VK_PER_TABLE, VMDK_PER_TABLE);
    put_le64(h + VK_RGD, l->rgd);
    put_le64(h + VK_GD, l->gd);
    put_le64(h + VK_DATA, l->data);
    memcpy(h + VK_NEWLINES, "\n \r\n", 4);
    put_le16(h + VK_COMPRESSION, c->packed);
}

/* The directory at sector `at`, its tables right behind it. */
static int write_directory(struct blk_node *file, const struct vmdk_layout *l, uint64_t at)
{
    uint8_t *buf = blk_buf_alloc(CHUNK);
    int err = buf ? 0 : -ENOMEM;

    for (uint64_t first = 0; !err && first < l->tables; first += CHUNK / 4) {
        uint64_t n = BLK_MIN(l->tables - first, (uint64_t)CHUNK / 4);
        size_t bytes = (size_t)blk_align_up(n * 4, VMDK_SECTOR);
        memset(buf, 0, bytes);
        for (uint64_t i = 0; i < n; i++) {
            put_le32(buf + i * 4, (uint32_t)(at + l->gd_sectors + (first + i) * VMDK_TABLE_SECTORS));
        }
        err = co_write(file, at * VMDK_SECTOR + first * 4, buf, bytes, 0);
    }
    blk_buf_free(buf);
    return err;
}

static int write_extent(const struct vmdk_create *c, struct blk_node *file, uint64_t size,
                        struct blk_error *e)
{
    struct vmdk_layout l = lay_out(size);
    uint8_t h[VMDK_SECTOR];
    int err = blk_truncate(file, c->flat ? size : l.data * VMDK_SECTOR, false, BLK_PREALLOC_OFF, e);

    if (err || c->flat) {
        return err;
    }
    vmdk_header_build(c, &l, size, h);
    err = co_write(file, 0, h, sizeof(h), 0);
    err = err ? err : write_directory(file, &l, l.rgd);
    err = err ? err : write_directory(file, &l, l.gd);
    return err ? blk_err_errno(e, -err, "Could not write extent '%s'", file->shown) : 0;
}

/* ---- names ------------------------------------------------------------------------------------ */

/* The last part of the file's name; how much of it stands before its extension. */
static const char *base_name(const struct blk_node *file, size_t *len, size_t *stem)
{
    const char *name = file->filename, *slash = strrchr(name, '/');
    const char *base = slash ? slash + 1 : name, *dot;

    *len = blk_has_protocol(name) ? strcspn(base, "?") : strlen(base);
    for (dot = base + *len; dot > base && dot[-1] != '.'; dot--) {
    }
    *stem = dot > base ? (size_t)(dot - 1 - base) : *len;
    return base;
}

static char *extent_name(const struct vmdk_create *c, const struct blk_node *file, unsigned i)
{
    size_t len, stem, room;
    const char *base = base_name(file, &len, &stem);
    char *out = malloc(room = len + 32);

    if (out && c->split) {
        snprintf(out, room, "%.*s-%c%03u%.*s", (int)stem, base, c->flat ? 'f' : 's', i,
                 (int)(len - stem), base + stem);
    } else if (out) {
        snprintf(out, room, "%.*s-flat%.*s", (int)stem, base, (int)(len - stem), base + stem);
    }
    return out;
}

int vmdk_add_line(struct vmdk_create *c, uint64_t size, const char *name, size_t len)
{
    size_t room = c->lines_len + len + 64;
    char *more = realloc(c->lines, room);
    if (!more) {
        return -ENOMEM;
    }
    c->lines = more;
    c->lines_len += (size_t)snprintf(more + c->lines_len, room - c->lines_len,
                                     "RW %" PRIu64 " %s \"%.*s\"%s\n", size / VMDK_SECTOR,
                                     c->flat ? "FLAT" : "SPARSE", (int)len, name,
                                     c->flat ? " 0" : "");
    return 0;
}

/* ---- the image ---------------------------------------------------------------------------------- */

static int create_extents(struct vmdk_create *c, struct blk_node *file, struct blk_opts *o,
                          struct blk_error *e)
{
    uint64_t each = c->split ? VMDK_SPLIT : c->size;
    int err = 0;

    for (uint64_t done = 0, size; !err && done < c->size; done += size) {
        struct blk_node *more = NULL;
        size = BLK_MIN(c->size - done, each);
        char *name = extent_name(c, file, (unsigned)(done / each) + 1);
        err = name ? blk_create_more(file, name, o, &more, e) : -ENOMEM;
        if (!err) {
            err = write_extent(c, more, size, e);
            int r = blk_close(more, e);
            err = err ? err : r;
        }
        err = err ? err : vmdk_add_line(c, size, name, strlen(name));
        free(name);
    }
    return err;
}

static int look_at_parent(struct vmdk_create *c, struct blk_loop *l, struct blk_node *file,
                          struct blk_error *e)
{
    char *full = blk_resolve_name(file->filename, c->backing);
    struct blk_open_args a = { .filename = full, .flags = BLK_O_NO_BACKING };
    struct blk_node *n = NULL;
    int err = full ? blk_open(l, &a, &n, e) : -ENOMEM;

    free(full);
    if (err) {
        return err;
    }
    if (n->drv != &blk_vmdk) {
        err = blk_err(e, EINVAL, "Invalid backing file format: %s. Must be vmdk", n->drv->name);
    } else {
        c->parent_cid = ((const struct vmdk *)n->state)->cid;
    }
    blk_close(n, NULL);
    return err;
}

char *vmdk_describe(const struct vmdk_create *c)
{
    unsigned heads = strcmp(c->adapter, "ide") ? 255 : 16;
    size_t room = c->lines_len + 2 * BLK_NAME_MAX + 1024 + strlen(c->hw) + strlen(c->tools);
    char *text = malloc(room);
    uint32_t cid = 0;

    if (getrandom(&cid, sizeof(cid), 0) != sizeof(cid)) {
        cid = (uint32_t)blk_now_ns();
    }
    if (text) {
        snprintf(text, room, "# Disk DescriptorFile\nversion=1\nCID=%" PRIx32 "\nparentCID=%"
                 PRIx32 "\ncreateType=\"%s\"\n%s%s%s\n# Extent description\n%s\n"
                 "# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"%s\"\n"
                 "ddb.geometry.cylinders = \"%" PRIu64 "\"\nddb.geometry.heads = \"%u\"\n"
                 "ddb.geometry.sectors = \"63\"\nddb.adapterType = \"%s\"\n"
                 "ddb.toolsVersion = \"%s\"\n", cid, c->parent_cid, c->subformat,
                 c->backing ? "parentFileNameHint=\"" : "", c->backing ? c->backing : "",
                 c->backing ? "\"" : "", c->lines ? c->lines : "", c->hw,
                 c->size / (63 * (uint64_t)heads * VMDK_SECTOR), heads, c->adapter, c->tools);
    }
    return text;
}

static int write_descriptor(const struct vmdk_create *c, struct blk_node *file, struct blk_error *e)
{
    bool embedded = !c->split && !c->flat;
    char *text = vmdk_describe(c);
    int err = text ? 0 : -ENOMEM;

    if (!err && embedded && strlen(text) > VMDK_DESC_BYTES) {
        err = blk_err(e, EINVAL, "The description is longer than %u bytes", VMDK_DESC_BYTES);
    }
    if (!err && (err = co_write(file, embedded ? VMDK_EMBEDDED_AT : 0, text, strlen(text), 0))) {
        blk_err_errno(e, -err, "Could not write description");
    }
    free(text);
    return err;
}

int vmdk_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                struct blk_error *e)
{
    struct vmdk_create c = { .parent_cid = NO_PARENT };
    int err = vmdk_take_options(&c, o, e);

    if (!err && !c.split && !c.flat) {
        size_t len, stem;
        const char *base = base_name(file, &len, &stem);
        err = write_extent(&c, file, c.size, e);
        err = err ? err : vmdk_add_line(&c, c.size, base, len);
    }
    err = err || !c.backing ? err : look_at_parent(&c, l, file, e);
    if (!err && (c.split || c.flat)) {
        err = create_extents(&c, file, o, e);
    }
    err = err ? err : write_descriptor(&c, file, e);
    free(c.lines);
    return err;
}
