/*
 * commit.c - platter-img commit: what an overlay holds goes into an image of its
 * backing chain.
 *
 * Invariants
 *  - The chain keeps its content at every moment: the overlay is emptied only when
 *    everything is durable in the base.
 *  - Ranges are read from the layer that holds them, never through the chain: the
 *    base below changes meanwhile.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

#define COMMIT_CHUNK (2u << 20)

struct commit {
    struct img_image image;
    const char *base;           /* -b, or NULL: the overlay's own backing file */
    bool drop, progress, json;
    uint64_t rate;              /* bytes a second; 0: no limit */
    uint64_t rate_at;           /* when what is written may have been */
    uint64_t copied;            /* bytes that went down */
    bool emptied;
};

/* The overlay whose backing file is the base, or NULL with the message printed. */
static struct blk_node *find_overlay(const struct commit *c, struct blk_node *top)
{
    if (!c->base) {
        if (!blk_backing(top)) {
            img_error("Image does not have a backing file");
            return NULL;
        }
        return top;
    }
    struct blk_node *n = img_find_backing(top, c->base);
    if (!n) {
        img_error("Did not find '%s' in the backing chain of '%s'", c->base,
                  blk_filename(top));
    }
    return n;
}

/* After bytes were written from `began` on: data, zeros cost nothing. */
static void keep_rate(struct commit *c, uint64_t began, uint64_t bytes)
{
    uint64_t now = blk_now_ns();

    if (!c->rate) {
        return;
    }
    c->rate_at = BLK_MAX(began, c->rate_at) + (uint64_t)((double)bytes * 1e9 / (double)c->rate);
    if (c->rate_at > now) {
        co_sleep(c->rate_at - now);
    }
}

/* One range that the layers above the base hold. */
static int commit_range(struct commit *c, struct blk_node *base, const struct blk_status *st,
                        uint64_t off, uint64_t len, void *buf)
{
    if (st->flags & BLK_ST_ZERO) {
        return co_write_zeroes(base, off, len, BLK_REQ_MAY_UNMAP);
    }
    uint64_t began = blk_now_ns();
    int err = co_read(st->layer, off, buf, len);
    err = err ? err : co_write(base, off, buf, len, 0);
    keep_rate(c, began, len);
    return err;
}

static int copy_down(struct commit *c, struct blk_node *top, struct blk_node *base)
{
    uint64_t size = blk_size(top), off = 0;
    void *buf = blk_buf_alloc(COMMIT_CHUNK);
    int err = buf ? 0 : -ENOMEM;

    while (!err && off < size) {
        struct blk_status st;
        err = co_status_above(top, base, off, size - off, &st);
        if (err) {
            break;
        }
        uint64_t len = st.length;
        if (st.flags & BLK_ST_ALLOCATED) {
            len = st.flags & BLK_ST_ZERO ? len : BLK_MIN(len, COMMIT_CHUNK);
            err = commit_range(c, base, &st, off, len, buf);
            c->copied += len;
        }
        off += len;
        img_progress_set(off, size, true);
    }
    blk_buf_free(buf);
    return err ? err : co_flush(base);
}

static int commit_chain(struct commit *c, struct blk_node *top)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *overlay = find_overlay(c, top);
    int err = overlay ? 0 : -EINVAL;

    if (err) {
        return err;
    }
    err = blk_backing_reopen_rw(overlay, &e);
    struct blk_node *base = blk_backing(overlay);
    if (!err && blk_size(base) < blk_size(top)) {
        err = blk_truncate(base, blk_size(top), false, BLK_PREALLOC_OFF, NULL);
    }
    err = err || *e.text ? err : copy_down(c, top, base);
    if (err && !*e.text) {
        blk_err(&e, -err, "Block job failed: %s", strerror(-err));
    }
    if (!err && !c->drop) {
        err = blk_make_empty(top, &e);
        c->emptied = !err;
        err = err == -ENOTSUP ? 0 : err;
    }
    if (err) {
        img_report(&e);
    }
    return err;
}

static json_t *result(const struct commit *c, struct blk_node *top)
{
    struct blk_node *overlay = c->base ? img_find_backing(top, c->base) : top;
    struct blk_node *base = overlay ? blk_backing(overlay) : NULL;

    return json_pack("{s:o, s:o*, s:I, s:b}", "filename", img_json_string(blk_filename(top)),
                     "base", img_json_string(base ? blk_filename(base) : NULL),
                     "committed-bytes", (json_int_t)c->copied, "emptied", c->emptied);
}

static int commit_run(void *arg)
{
    struct commit *c = arg;
    struct blk_node *top = img_open(&c->image);
    int err, close_err;

    if (!top) {
        return 1;
    }
    img_progress_start(c->progress && !c->image.quiet, 1.0);
    img_progress_set(0, 100, false);
    err = commit_chain(c, top);
    img_progress_end();
    json_t *done = !err && c->json ? result(c, top) : NULL;
    close_err = img_close(top);
    if (err || close_err) {
        json_decref(done);
        return 1;
    }
    if (c->json) {
        return img_json_result(done);
    }
    img_print(c->image.quiet, "Image committed.\n");
    return 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct commit *c, const char **cache, int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"quiet", no_argument, NULL, 'q'},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"cache", required_argument, NULL, 't'},
        {"drop", no_argument, NULL, 'd'},
        {"base", required_argument, NULL, 'b'},
        {"progress", optional_argument, NULL, 'p'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"rate", required_argument, NULL, 'r'},
        {NULL, 0, NULL, 0},
    };
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hf:t:b:dpqr:", longs, NULL)) != -1) {
        switch (ch) {
        case 't': *cache = optarg; break;
        case 'b':
            c->base = optarg;
            c->drop = true;     /* what is above the base need not be the top's own */
            break;
        case 'd': c->drop = true; break;
        case 'p':
            if (img_parse_progress(optarg, &c->progress)) {
                return 1;
            }
            break;
        case 'r':
            if (img_parse_size("rate limit", optarg, &c->rate)) {
                return 1;
            }
            break;
        default:
            status = img_common_option(&img_commit, ch, argv[0], &c->image, &c->json);
            break;
        }
    }
    return status;
}

static int commit_main(int argc, char **argv)
{
    struct commit c = { .image.flags = BLK_O_RDWR | BLK_O_UNMAP };
    const char *cache = "writeback";
    int status = parse_options(&c, &cache, argc, argv);

    if (status >= 0) {
        return status;
    }
    if (optind != argc - 1) {
        return img_usage_error(argv[0], "Expecting one image file name");
    }
    c.image.filename = argv[optind];
    if (img_parse_cache("", cache, &c.image.flags)) {
        return 1;
    }
    return img_run(commit_run, &c);
}

const struct img_command img_commit = {
    .name = "commit",
    .summary = "Commit image to its backing file",
    .synopsis = "[-f FMT | --image-opts] [-t CACHE] [-b BASE] [-d] [-r RATE]\n"
                "        [-p] [-q] [--progress=FD|json] [--output human|json] FILENAME",
    .arguments =
        "  -q, --quiet\n     say nothing unless it fails\n"
        "  -p, --progress\n     show how far it is\n"
        "  --progress=FD|json\n     lines of JSON about it, to file descriptor FD or standard error\n"
        "  -f, --format FMT\n     format of the image (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  -t, --cache MODE\n     none, writeback (default), writethrough, directsync, unsafe\n"
        "  -d, --drop\n     leave FILENAME as it is instead of emptying it\n"
        "  -b, --base BASE\n     an image of the chain to commit to, instead of the one below\n"
        "     FILENAME (implies -d)\n"
        "  -r, --rate RATE\n     limit writing to RATE bytes a second\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     an object such as a secret\n",
    .main = commit_main,
};
