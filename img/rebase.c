/*
 * rebase.c - platter-img rebase: another backing file, or none.
 *
 * Unsafe (-u) changes the name in the header.  Safe first copies into the image
 * what it has from the old backing chain and would read differently from the new
 * one.
 *
 * Invariants
 *  - The image reads the same at every moment with the backing file it names: what
 *    is copied is durable before the header changes.
 *  - Copying goes by whole clusters of the image, or subclusters: writing a part of one
 *    takes all of it out of the backing file anyway.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

#define REBASE_CHUNK (2u << 20)     /* the largest cluster, too */
#define REBASE_GRAIN (64u << 10)    /* for formats without clusters */

struct rebase {
    struct img_image image;
    const char *base, *base_format; /* -b and -F, or NULL; base "": none */
    unsigned base_flags;
    bool unsafe, compress, progress, json;

    struct blk_node *top, *new;     /* new: NULL if there is to be no backing file */
    struct blk_node *shared;        /* node of top's chain that is the new base, or NULL */
    uint32_t grain;
    uint64_t copied;                /* bytes that differed */
    uint8_t *old_buf, *new_buf;
};

/* ---- copying what differs --------------------------------------------------------- */

/* One side of the comparison: how far it is known to be all zeros, or data. */
static int side_look(struct blk_node *n, uint64_t off, uint64_t *len, bool *zero)
{
    struct blk_status st;

    *zero = true;
    if (!n || off >= blk_size(n)) {
        return 0;
    }
    int err = co_status_above(n, NULL, off, *len, &st);
    if (!err) {
        *zero = st.flags & BLK_ST_ZERO;
        *len = BLK_MIN(*len, st.length);
    }
    return err;
}

static int side_read(struct blk_node *n, bool zero, uint64_t off, uint64_t len, uint8_t *buf)
{
    if (!n || zero) {
        memset(buf, 0, len);
        return 0;
    }
    return co_read(n, off, buf, len);
}

/* What is no whole cluster, as some of its subclusters are there, is not compressed. */
static unsigned write_flags(const struct rebase *r, uint64_t off, uint64_t len)
{
    bool whole = off % r->grain == 0 &&
                 (len == r->grain || off + len == blk_size(r->top));

    return r->compress && whole ? BLK_REQ_COMPRESSED : 0;
}

/* Clusters [off, off + len) of the image from the old backing file where the new one
 * differs.  The buffers hold both. */
static int write_differing(struct rebase *r, uint64_t off, uint64_t len)
{
    for (uint64_t at = 0; at < len;) {
        uint64_t now = BLK_MIN(r->grain - (off + at) % r->grain, len - at), run;
        if (!memcmp(r->old_buf + at, r->new_buf + at, now)) {
            at += now;
            continue;
        }
        bool zero = blk_is_zero(r->old_buf + at, now);
        for (run = now; !r->compress && at + run < len; run += now) {
            now = BLK_MIN(r->grain, len - at - run);
            if (!memcmp(r->old_buf + at + run, r->new_buf + at + run, now) ||
                blk_is_zero(r->old_buf + at + run, now) != zero) {
                break;
            }
        }
        int err = zero ? co_write_zeroes(r->top, off + at, run, BLK_REQ_EXPLICIT)
                       : co_write(r->top, off + at, r->old_buf + at, run,
                                  write_flags(r, off + at, run));
        if (err) {
            img_error("Error while writing to COW image: %s", strerror(-err));
            return err;
        }
        r->copied += run;
        at += run;
    }
    return 0;
}

/* The range [off, off + *len) that the image does not hold itself; *len may become
 * smaller. */
static int rebase_range(struct rebase *r, uint64_t off, uint64_t *len)
{
    struct blk_node *old = blk_backing(r->top);
    uint64_t old_len = *len, new_len = *len;
    bool old_zero, new_zero;
    int err = side_look(old, off, &old_len, &old_zero);

    err = err ? err : side_look(r->new, off, &new_len, &new_zero);
    if (err) {
        img_error("error while reading image metadata: %s", strerror(-err));
        return err;
    }
    if (old_zero && new_zero && BLK_MIN(old_len, new_len) >= BLK_MIN(*len, r->grain)) {
        uint64_t known = BLK_MIN(old_len, new_len);
        *len = known < *len ? known - known % r->grain : known;
        return 0;
    }
    *len = BLK_MIN(*len, REBASE_CHUNK);
    err = side_read(old, old_zero && old_len >= *len, off, *len, r->old_buf);
    if (err) {
        img_error("error while reading from old backing file");
        return err;
    }
    err = side_read(r->new, new_zero && new_len >= *len, off, *len, r->new_buf);
    if (err) {
        img_error("error while reading from new backing file");
        return err;
    }
    return write_differing(r, off, *len);
}

/* How much from off on needs a look: what the image does not hold, and the layers
 * between it and the new base have changed.  *len: until where the answer holds. */
static int needs_look(struct rebase *r, uint64_t off, uint64_t *len, bool *look)
{
    struct blk_node *old = blk_backing(r->top);
    struct blk_status st;
    int err = co_status(r->top, off, *len, &st);

    if (err) {
        return err;
    }
    *len = st.length;
    *look = !(st.flags & BLK_ST_ALLOCATED);
    if (*look && r->shared && old != r->shared && off < blk_size(old)) {
        err = co_status_above(old, r->shared, off, *len, &st);
        if (err) {
            return err;
        }
        if (!(st.flags & BLK_ST_ALLOCATED) && st.length >= BLK_MIN(*len, r->grain)) {
            *look = false;
            *len = st.length < *len ? st.length - st.length % r->grain : *len;
        }
    }
    return 0;
}

static int copy_differing(struct rebase *r)
{
    uint64_t size = blk_size(r->top), off = 0;
    int err = 0;

    r->old_buf = blk_buf_alloc(REBASE_CHUNK);
    r->new_buf = blk_buf_alloc(REBASE_CHUNK);
    if (!r->old_buf || !r->new_buf) {
        img_error("%s", strerror(ENOMEM));
        err = -ENOMEM;
    }
    while (!err && off < size) {
        uint64_t len = size - off;
        bool look;
        err = needs_look(r, off, &len, &look);
        if (err) {
            img_error("error while reading image metadata: %s", strerror(-err));
        } else if (look) {
            err = rebase_range(r, off, &len);
        }
        off += len;
        img_progress_set(off, size, true);
    }
    blk_buf_free(r->old_buf);
    blk_buf_free(r->new_buf);
    return err;
}

/* ---- the new backing file ------------------------------------------------------------ */

static int open_new(struct rebase *r)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *file = blk_file(r->top);
    char *name = blk_resolve_name(blk_filename(file ? file : r->top), r->base);
    struct blk_open_args args = {
        .filename = name, .format = r->base_format, .flags = r->base_flags,
        .backing_urls = img_backing_urls,
    };
    int err = name ? blk_open(img_loop(), &args, &r->new, &e)
                   : blk_err(&e, ENOMEM, "Cannot allocate memory");

    if (err) {
        img_report_prefixed(&e, "Could not open new backing file '%s': ", r->base);
    } else {
        struct blk_node *above = img_find_backing(r->top, name);
        r->shared = above ? blk_backing(above) : NULL;
    }
    free(name);
    return err;
}

static int change_header(struct rebase *r)
{
    struct blk_error e = BLK_ERROR_INIT;
    const char *name = r->base && *r->base ? r->base : NULL;
    int err = name && !r->base_format
                  ? -EINVAL : blk_change_backing(r->top, name, name ? r->base_format : NULL, &e);
    const char *shown = r->base ? r->base : "(null)";

    if (err == -ENOSPC && !*e.hint) {
        img_error("Could not change the backing file to '%s': No space left in the file header",
                  shown);
    } else if (err == -EINVAL && name && !r->base_format) {
        img_error("Could not change the backing file to '%s': backing format must be specified",
                  shown);
    } else if (err) {
        img_error("Could not change the backing file to '%s': %s", shown, strerror(-err));
    }
    img_progress_set(100, 100, false);
    return err;
}

static int rebase_image(struct rebase *r)
{
    struct blk_info info;
    int err = blk_get_info(r->top, &info, NULL);
    uint64_t grain = err ? 0 : r->compress ? info.cluster_size : info.mapping_size;
    r->grain = grain ? (uint32_t)grain : REBASE_GRAIN;
    blk_info_free(&info);

    if (r->compress && !blk_driver_compresses(blk_format_name(r->top))) {
        img_error("Compression not supported for this file format");
        return -ENOTSUP;
    }
    if (r->base_format && !blk_driver_known(r->base_format)) {
        img_error("Invalid format name: '%s'", r->base_format);
        return -EINVAL;
    }
    if (!strcmp(blk_format_name(r->top), "parallels")) {
        img_error("could not get block driver info");   /* has no backing files, says QEMU so */
        return -ENOTSUP;
    }
    if (r->unsafe) {
        return change_header(r);
    }
    err = *r->base ? open_new(r) : 0;
    err = err ? err : copy_differing(r);
    int close_err = img_close(r->new);
    return err ? err : close_err ? close_err : change_header(r);
}

static int rebase_run(void *arg)
{
    struct rebase *r = arg;
    int err, close_err;

    img_progress_start(r->progress && !r->image.quiet, 1.0);
    img_progress_set(0, 100, false);
    r->top = img_open(&r->image);
    if (!r->top) {
        img_progress_end();
        return 1;
    }
    err = rebase_image(r);
    img_progress_end();
    close_err = img_close(r->top);
    if (err || close_err) {
        return 1;
    }
    return r->json ? img_json_result(json_pack(
        "{s:o, s:o*, s:I}", "filename", img_json_string(r->image.filename), "backing-filename",
        img_json_string(r->base && *r->base ? r->base : NULL),
        "copied-bytes", (json_int_t)r->copied)) : 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct rebase *r, const char **cache, const char **base_cache, int argc,
                         char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"quiet", no_argument, NULL, 'q'},
        {"progress", optional_argument, NULL, 'p'},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"cache", required_argument, NULL, 't'},
        {"compress", no_argument, NULL, 'c'},
        {"backing", required_argument, NULL, 'b'},
        {"backing-format", required_argument, NULL, 'F'},
        {"backing-cache", required_argument, NULL, 'T'},
        {"backing-unsafe", no_argument, NULL, 'u'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"force-share", no_argument, NULL, 'U'},
        {NULL, 0, NULL, 0},
    };
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hf:F:b:upt:T:qUc", longs, NULL)) != -1) {
        switch (ch) {
        case 'p':
            if (img_parse_progress(optarg, &r->progress)) {
                return 1;
            }
            break;
        case 't': *cache = optarg; break;
        case 'c': r->compress = true; break;
        case 'b': r->base = optarg; break;
        case 'F': r->base_format = optarg; break;
        case 'T': *base_cache = optarg; break;
        case 'u': r->unsafe = true; break;
        case 'U': r->base_flags |= BLK_O_SHARE; break;
        default:
            status = img_common_option(&img_rebase, ch, argv[0], &r->image, &r->json);
            break;
        }
    }
    return status;
}

static int rebase_main(int argc, char **argv)
{
    struct rebase r = { 0 };
    const char *cache = "writeback", *base_cache = "writeback";
    int status = parse_options(&r, &cache, &base_cache, argc, argv);
    unsigned share = r.base_flags;

    if (status >= 0) {
        return status;
    }
    if (optind != argc - 1) {
        return img_usage_error(argv[0], "Expecting one image file name");
    }
    if (!r.unsafe && !r.base) {
        return img_usage_error(argv[0],
                               "Must specify backing file (-b) or use unsafe mode (-u)");
    }
    r.image.filename = argv[optind];
    if (img_parse_cache("", cache, &r.image.flags)) {
        return 1;
    }
    if (img_parse_cache("source ", base_cache, &r.base_flags)) {
        return 1;
    }
    r.base_flags |= share;
    r.image.flags |= BLK_O_RDWR | (r.unsafe ? BLK_O_NO_BACKING : 0u);
    return img_run(rebase_run, &r);
}

const struct img_command img_rebase = {
    .name = "rebase",
    .summary = "Change backing file of the image",
    .synopsis = "[-f FMT | --image-opts] [-t CACHE] [-q] [-U] [-p]\n"
                "        [--progress=FD|json] [--output human|json]\n"
                "        [-b BACKING_FILENAME [-F BACKING_FMT] [-T BACKING_CACHE]] [-u] [-c] FILENAME",
    .arguments =
        "  -q, --quiet\n     say nothing unless it fails\n"
        "  -p, --progress\n     show how far it is\n"
        "  --progress=FD|json\n     lines of JSON about it, to file descriptor FD or standard error\n"
        "  -f, --format FMT\n     format of the image (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  -t, --cache MODE\n     none, writeback (default), writethrough, directsync, unsafe\n"
        "  -b, --backing NAME\n     the new backing file; \"\": none, the image stands alone\n"
        "  -F, --backing-format FMT\n     its format\n"
        "  -T, --backing-cache MODE\n     how it is opened, as with -t\n"
        "  -u, --backing-unsafe\n     change the name only; the new file need not even be there\n"
        "  -c, --compress\n     store compressed what has to be copied\n"
        "  -U, --force-share\n     take no locks on the new backing file\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     an object such as a secret\n",
    .main = rebase_main,
};
