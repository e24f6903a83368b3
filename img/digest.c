/*
 * digest.c - platter-img digest: a hash of what a guest would read (digest.h), the
 * same for every format, cluster size and layout of holes.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img/digest.h"
#include "img/img.h"

struct args {
    struct img_image image;
    char **names;
    size_t nnames;
    const char *cache, *snapshot;
    const struct hash_algorithm *algorithm;
    bool progress, json;
    json_t *results;
};

static int print_one(struct args *a, const char *name, uint64_t size, const uint8_t *digest)
{
    char hex[2 * HASH_MAX + 1], *shown = blk_redact(name);
    int err = 0;

    digest_hex(digest, a->algorithm->length, hex);
    if (!a->json) {
        printf("%s  %s\n", hex, shown ? shown : "");
    } else {
        json_t *v = json_pack("{s:o, s:s, s:I, s:s, s:i}",
                              "filename", img_json_string(shown ? shown : ""), "digest", hex,
                              "virtual-size", (json_int_t)size, "algorithm", a->algorithm->name,
                              "segment-size", DIGEST_SEGMENT);
        err = json_array_append_new(a->results, v) ? -ENOMEM : 0;
    }
    free(shown);
    return err;
}

static void report_failure(const struct convert_failure *f, const char *name)
{
    const char *what = f->step == CONVERT_MAP ? "reading the map" : "reading";

    img_error("%s: error while %s at byte %" PRIu64 ": %s", name, what, f->at, strerror(-f->err));
}

static int digest_node(struct args *a, struct blk_node *n, uint64_t done, uint64_t work)
{
    uint64_t size = (blk_size(n) + CONVERT_SECTOR - 1) & ~(CONVERT_SECTOR - 1ull);
    struct digest_stream *s = digest_stream_new(a->algorithm, false);
    struct convert_source src = { .node = n, .length = size };
    struct convert c = { .src = &src, .nsrc = 1, .total = size, .done = done,
                         .work = work };
    uint8_t digest[HASH_MAX];
    int err = s ? digest_read(&c, s) : -ENOMEM;

    if (c.failure.err) {
        report_failure(&c.failure, blk_filename(n));
    } else {
        err = err ? err : digest_stream_end(s, size, digest);
        err = err ? err : print_one(a, blk_filename(n), size, digest);
        if (err) {
            img_error("%s", strerror(-err));
        }
    }
    digest_stream_free(s);
    return err;
}

/* All are opened first, so that a name with a mistake in it costs no time. */
static int digest_all(struct args *a, struct blk_node **nodes)
{
    uint64_t work = 0, done = 0;
    int err = 0;

    for (size_t i = 0; i < a->nnames; i++) {
        a->image.filename = a->names[i];
        if (!(nodes[i] = img_open(&a->image))) {
            return -EIO;
        }
        if (a->snapshot && img_load_snapshot(nodes[i], a->snapshot)) {
            return -ENOENT;
        }
        work += blk_size(nodes[i]);
    }
    for (size_t i = 0; i < a->nnames && !err; i++) {
        err = digest_node(a, nodes[i], done, work);
        done += blk_size(nodes[i]);
    }
    return err;
}

static int run(void *arg)
{
    struct args *a = arg;
    struct blk_node **nodes = calloc(a->nnames, sizeof(*nodes));
    struct blk_error e = BLK_ERROR_INIT;
    int err = hash_start(&e);

    a->results = json_array();
    if (err) {
        img_report(&e);
    } else if (!nodes) {
        img_error("%s", strerror(ENOMEM));
        err = -ENOMEM;
    } else {
        img_progress_start(a->progress, 1.0);
        err = digest_all(a, nodes);
        img_progress_end();
    }
    for (size_t i = 0; nodes && i < a->nnames; i++) {
        err = img_close(nodes[i]) ? -EIO : err;
    }
    free(nodes);
    if (!err && a->json) {
        return img_json_result(a->results);
    }
    json_decref(a->results);
    return err ? 1 : 0;
}

static const struct option longs[] = {
    {"help", no_argument, NULL, 'h'},
    {"algorithm", required_argument, NULL, 'a'},
    {"cache", required_argument, NULL, 'T'},
    {"force-share", no_argument, NULL, 'U'},
    {"format", required_argument, NULL, 'f'},
    {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
    {"object", required_argument, NULL, IMG_OPT_OBJECT},
    {"output", required_argument, NULL, IMG_OPT_OUTPUT},
    {"snapshot", required_argument, NULL, 'l'},
    {"progress", optional_argument, NULL, 'p'},
    {NULL, 0, NULL, 0},
};

static int parse_algorithm(struct args *a, const char *name)
{
    a->algorithm = hash_find(name);
    if (!a->algorithm) {
        img_error("Unknown algorithm '%s'; there are %s", name, hash_names());
        return -EINVAL;
    }
    return 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_option(struct args *a, int c, const char *argv0)
{
    switch (c) {
    case 'a': return parse_algorithm(a, optarg) ? 1 : -1;
    case 'l':
        a->snapshot = optarg;
        return img_check_snapshot(optarg) ? 1 : -1;
    case 'p':
        /* Digests go to stdout, percentages do not belong among them. */
        img_progress_to_stderr();
        return img_parse_progress(optarg, &a->progress) ? 1 : -1;
    case 'T': a->cache = optarg; return -1;
    default: return img_common_option(&img_digest, c, argv0, &a->image, &a->json);
    }
}

static int digest_main(int argc, char **argv)
{
    struct args a = { .cache = "writeback", .algorithm = hash_find("sha256") };
    int c, status;

    while ((c = getopt_long(argc, argv, "hf:a:l:T:pU", longs, NULL)) != -1) {
        if ((status = parse_option(&a, c, argv[0])) >= 0) {
            return status;
        }
    }
    if (optind >= argc) {
        return img_usage_error(argv[0], "Expecting image file names");
    }
    a.names = argv + optind;
    a.nnames = (size_t)(argc - optind);
    if (img_parse_cache("source ", a.cache, &a.image.flags)) {
        return 1;
    }
    return img_run(run, &a);
}

const struct img_command img_digest = {
    .name = "digest",
    .summary = "Print a hash of what a guest would read",
    .synopsis = "[-f FMT | --image-opts] [-a ALGORITHM] [-l SNAPSHOT] [-T CACHE] [-U]\n"
                "        [-p] [--progress=FD|json] [--output human|json] FILENAME...",
    .arguments =
        "  -f, --format FMT\n     format of the images (default: found out)\n"
        "  --image-opts\n     each FILENAME is a list of options, KEY=VALUE,...\n"
        "  -a, --algorithm ALGORITHM\n"
        "     sha256 (default), sha512, sha3-256, blake2b-256 or blake2b-512\n"
        "  -l, --snapshot SNAPSHOT\n     of an internal snapshot: its id or name, or snapshot.id=ID,snapshot.name=NAME\n"
        "  -T, --cache MODE\n     none, writeback (default), writethrough, directsync, unsafe\n"
        "  -U, --force-share\n     take no locks\n"
        "  -p, --progress\n     show how far it is, on standard error\n"
        "  --progress=FD|json\n     lines of JSON about it, to file descriptor FD or standard error\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     an object such as a secret\n"
        "\nThe digest is that of the guest's bytes: images of any format, cluster size and\n"
        "layout of holes, compressed or not, with or without backing files, have the same\n"
        "one if a guest would read the same from disks of the same size.\n"
        "\n"
        "Construction, with H the algorithm: the bytes are cut into segments of 64 KiB, the\n"
        "last one filled with zeros; H of each segment is a leaf. A node is H of the digests\n"
        "of its 256 children, one after the other; children past the end are those of\n"
        "segments of zeros. There are as many levels of nodes as are needed for one node at\n"
        "the top, at least one. The result is H of the size of the disk in bytes (rounded up\n"
        "to 512), as a big-endian number of 8 bytes, and the digest of the top node.\n",
    .main = digest_main,
};
