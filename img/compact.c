/*
 * compact.c - platter-img compact: free space inside an image is returned, in place.
 *
 * Three steps, each safe to interrupt: leaked clusters are given back; clusters that hold
 * nothing but zeros are turned into holes (asked for with -z, and all there is to do for
 * raw images); clusters move down so that the file ends where what it holds ends
 * (blk_compact()).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img/img.h"

#define CHUNK (2u << 20)                /* the largest cluster, too */

struct args {
    struct img_image image;
    const char *cache;
    bool progress, json, zeros;

    struct blk_node *node;
    uint32_t grain;                     /* what can become a hole */
    uint64_t leaks, zeroed, moved;      /* leaks: clusters; bytes */
    uint64_t length[2];                 /* of the file, before and after */
    int64_t allocated[2];
};

static void look(struct args *a, unsigned when)
{
    struct blk_node *file = blk_file(a->node) ? blk_file(a->node) : a->node;

    if (blk_storage_length(file, &a->length[when])) {
        a->length[when] = 0;
    }
    a->allocated[when] = blk_allocated_size(a->node);
}

/* ---- zeros ------------------------------------------------------------------------------ */

/* Runs of whole grains of zeros in buf become holes. */
static int zero_runs(struct args *a, uint64_t off, const uint8_t *buf, uint64_t len)
{
    uint64_t run = 0;
    int err = 0;

    for (uint64_t at = 0; at <= len && !err; ) {
        uint64_t now = BLK_MIN(a->grain - (off + at) % a->grain, len - at);
        bool whole = now == a->grain || off + at + now == blk_size(a->node);

        if (now && whole && blk_is_zero(buf + at, now)) {
            run += now;
            at += now;
            continue;
        }
        if (run) {
            err = co_write_zeroes(a->node, off + at - run, run,
                                  BLK_REQ_MAY_UNMAP | BLK_REQ_FAST_ZERO);
            a->zeroed += err ? 0 : run;
            run = 0;
        }
        if (!now) {
            break;
        }
        at += now;
    }
    return err == -ENOTSUP ? 0 : err;   /* it would cost space, not save it */
}

/* Only what this layer holds itself is looked at. */
static int dig_holes(struct args *a)
{
    uint64_t size = blk_size(a->node), off = 0;
    uint8_t *buf = blk_buf_alloc(CHUNK);
    int err = buf ? 0 : -ENOMEM;

    while (!err && off < size) {
        struct blk_status st;
        uint64_t len = BLK_MIN(size - off, CHUNK - off % CHUNK);

        err = co_status(a->node, off, size - off, &st);
        if (!err && (!(st.flags & BLK_ST_DATA) || st.flags & BLK_ST_ZERO)) {
            len = st.length;
        } else if (!err) {
            len = BLK_MIN(len, st.length);
            err = co_read(a->node, off, buf, len);
            err = err ? err : zero_runs(a, off, buf, len);
        }
        off += len;
        img_progress_set(off / 2, size, true);
    }
    blk_buf_free(buf);
    return err;
}

/* ---- the command ---------------------------------------------------------------------------- */

static void on_progress(void *arg, uint64_t done, uint64_t total)
{
    img_progress_set(total + done, 2 * total, false);
}

static int compact_node(struct args *a)
{
    struct blk_compact c = { .progress = on_progress };
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_info info;
    int err = blk_get_info(a->node, &info, &e);
    bool raw = !strcmp(blk_format_name(a->node), "raw");

    a->grain = !err && info.cluster_size ? (uint32_t)info.cluster_size : 4096;
    blk_info_free(&info);
    look(a, 0);
    if (!err && (a->zeros || raw)) {
        err = dig_holes(a);
        err = err ? err : co_flush(a->node);
        if (err) {
            blk_err_errno(&e, -err, "%s: error while looking for zeros",
                          blk_filename(a->node));
        }
    }
    if (!err && !raw) {
        err = blk_compact(a->node, &c, &e);
    }
    a->moved = c.moved;
    if (err) {
        img_report(&e);
    } else {
        look(a, 1);
    }
    return err;
}

static int print_result(const struct args *a)
{
    char text[4][32];
    uint64_t sizes[4] = { a->length[1], a->length[0], (uint64_t)BLK_MAX(a->allocated[1], 0),
                          (uint64_t)BLK_MAX(a->allocated[0], 0) };

    if (a->json) {
        return img_json_result(json_pack(
            "{s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
            "filename", img_json_string(a->image.filename),
            "length-before", (json_int_t)a->length[0], "length", (json_int_t)a->length[1],
            "actual-size-before", (json_int_t)a->allocated[0],
            "actual-size", (json_int_t)a->allocated[1], "moved-bytes", (json_int_t)a->moved,
            "zeroed-bytes", (json_int_t)a->zeroed, "leaks-fixed", (json_int_t)a->leaks));
    }
    for (unsigned i = 0; i < 4; i++) {
        img_human_size(sizes[i], text[i], sizeof(text[i]));
    }
    img_print(a->image.quiet, "Image compacted: file length %s, was %s; disk size %s, was %s.\n",
              text[0], text[1], text[2], text[3]);
    return 0;
}

static int run(void *arg)
{
    struct args *a = arg;
    int err, close_err;

    if (img_mend(&a->image, &a->leaks)) {
        return 1;
    }
    a->image.flags |= BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP;
    a->node = img_open(&a->image);
    if (!a->node) {
        return 1;
    }
    img_progress_start(a->progress && !a->image.quiet, 1.0);
    img_progress_set(0, 100, false);
    err = compact_node(a);
    if (!err) {
        img_progress_set(100, 100, false);
    }
    img_progress_end();
    close_err = img_close(a->node);
    return err || close_err ? 1 : print_result(a);
}

static const struct option longs[] = {
    {"help", no_argument, NULL, 'h'},
    {"cache", required_argument, NULL, 't'},
    {"detect-zeroes", no_argument, NULL, 'z'},
    {"format", required_argument, NULL, 'f'},
    {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
    {"object", required_argument, NULL, IMG_OPT_OBJECT},
    {"output", required_argument, NULL, IMG_OPT_OUTPUT},
    {"progress", optional_argument, NULL, 'p'},
    {"quiet", no_argument, NULL, 'q'},
    {NULL, 0, NULL, 0},
};

static int compact_main(int argc, char **argv)
{
    struct args a = { .cache = "writeback" };
    int c, status = -1;

    while (status < 0 && (c = getopt_long(argc, argv, "hf:t:zpq", longs, NULL)) != -1) {
        switch (c) {
        case 't': a.cache = optarg; break;
        case 'z': a.zeros = true; break;
        case 'p':
            if (img_parse_progress(optarg, &a.progress)) {
                return 1;
            }
            break;
        default:
            status = img_common_option(&img_compact, c, argv[0], &a.image, &a.json);
            break;
        }
    }
    if (status >= 0) {
        return status;
    }
    if (optind != argc - 1) {
        return img_usage_error(argv[0], "Expecting one image file name");
    }
    a.image.filename = argv[optind];
    if (img_parse_cache("", a.cache, &a.image.flags)) {
        return 1;
    }
    return img_run(run, &a);
}

const struct img_command img_compact = {
    .name = "compact",
    .summary = "Return an image's free space, in place",
    .synopsis = "[-f FMT | --image-opts] [-t CACHE] [-z]\n"
                "        [-p] [--progress=FD|json] [-q] [--output human|json] FILENAME",
    .arguments =
        "  -q, --quiet\n     say nothing unless it fails\n"
        "  -p, --progress\n     show how far it is\n"
        "  --progress=FD|json\n     lines of JSON about it, to file descriptor FD or standard error\n"
        "  -f, --format FMT\n     format of the image (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  -t, --cache MODE\n     none, writeback (default), writethrough, directsync, unsafe\n"
        "  -z, --detect-zeroes\n     read what the image holds and turn clusters of zeros into holes; raw images\n"
        "     are always looked through\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     an object such as a secret\n"
        "\nLeaked clusters are given back, clusters move from the end of the file into free ones\n"
        "further ahead, and the file ends where what it holds ends. What guests see, snapshots\n"
        "and backing files stay as they are. It may be interrupted at any moment, by kill -9 or\n"
        "a power failure: the image has the same content then, and leaked clusters at most.\n"
        "Persistent bitmaps stay where they are. Encrypted images are refused.\n",
    .main = compact_main,
};
