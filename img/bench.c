/*
 * bench.c - platter-img bench: how fast are requests of one size?
 *
 * Requests and buffers are made before the clock starts; each completion submits
 * the next request from its callback, so that what is measured is the image's
 * path and no fiber or allocation of the measuring program.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img/img.h"

enum {
    OPT_PATTERN = IMG_OPT_FIRST_FREE,
    OPT_FLUSH_INTERVAL,
    OPT_NO_DRAIN,
};

struct bench {
    /* Set by options. */
    const char *filename, *format, *aio;
    bool image_opts, write, no_drain, json;
    unsigned flags;
    uint64_t count, depth, offset, size, step, flush_interval, pattern;

    struct blk_node *node;
    uint64_t image_size;
    uint64_t left;                  /* not yet completed */
    uint64_t in_flight;
    bool in_flush;                  /* drained, and flushing */
    unsigned flushes;               /* flushes under way */
    int err;
    bool flush_failed;
    struct blk_req *reqs;
    struct iovec *iov;
    uint8_t *bufs;
    struct blk_req **idle;          /* stack of requests not in flight */
    uint64_t nidle;
    struct co *waiter;
};

/* ---- the loop --------------------------------------------------------------- */

static void request_done(struct blk_req *req);

static bool ended(const struct bench *b)
{
    return (b->left == 0 || b->err) && b->in_flight == 0 && b->flushes == 0;
}

static void wake_if_ended(struct bench *b)
{
    if (b->waiter && ended(b)) {
        co_wake(b->waiter);
        b->waiter = NULL;
    }
}

static void submit_next(struct bench *b, struct blk_req *req)
{
    /* The library reads zeros past the end; here it is a mistake in -o or -s. */
    if (b->offset > b->image_size || b->size > b->image_size - b->offset) {
        b->err = -EIO;
        b->idle[b->nidle++] = req;
        return;
    }
    req->offset = b->offset;
    b->offset += b->step;
    if (b->offset >= b->image_size) {
        b->offset %= b->image_size;
    }
    b->in_flight++;
    blk_submit(b->node, req);
}

static void submit_idle(struct bench *b)
{
    while (!b->err && b->nidle && b->left > b->in_flight && b->in_flight < b->depth) {
        submit_next(b, b->idle[--b->nidle]);
    }
}

static void flush_done(struct blk_req *req)
{
    struct bench *b = req->arg;

    b->flushes--;
    if (req->result < 0 && !b->err) {
        b->err = req->result;
        b->flush_failed = !b->in_flush;
    }
    if (b->in_flush) {
        b->in_flush = false;
        submit_idle(b);
    }
    free(req);
    wake_if_ended(b);
}

static void submit_flush(struct bench *b)
{
    struct blk_req *req = calloc(1, sizeof(*req));

    if (!req) {
        b->err = -ENOMEM;
        return;
    }
    *req = (struct blk_req) { .op = BLK_FLUSH, .done = flush_done, .arg = b };
    b->in_flush = !b->no_drain;
    b->flushes++;
    blk_submit(b->node, req);
}

/* After a completion: is it time to flush?  True: nothing may be submitted now. */
static bool flush_if_due(struct bench *b)
{
    uint64_t unsubmitted = b->left - b->in_flight;

    if (unsubmitted % b->flush_interval) {
        return false;
    }
    if (!b->in_flight || b->no_drain) {
        submit_flush(b);
    }
    return !b->no_drain;
}

static void request_done(struct blk_req *req)
{
    struct bench *b = req->arg;

    b->in_flight--;
    b->left--;
    if (req->result < 0 && !b->err) {
        b->err = req->result;
    }
    if (b->err || b->flush_interval || b->left <= b->in_flight) {
        b->idle[b->nidle++] = req;
        if (!b->err && !(b->flush_interval && flush_if_due(b))) {
            submit_idle(b);
        }
        wake_if_ended(b);
        return;
    }
    submit_next(b, req);
    wake_if_ended(b);
}

/* ---- setting up ------------------------------------------------------------- */

static int make_requests(struct bench *b)
{
    uint64_t n = BLK_MIN(b->depth, BLK_MAX(b->count, 1)), bytes;

    if (__builtin_mul_overflow(n, b->size, &bytes) || bytes > SIZE_MAX / 2) {
        return -ENOMEM;
    }
    b->reqs = calloc(n, sizeof(*b->reqs));
    b->iov = calloc(n, sizeof(*b->iov));
    b->idle = calloc(n, sizeof(*b->idle));
    b->bufs = blk_buf_alloc(bytes);
    if (!b->reqs || !b->iov || !b->idle || !b->bufs) {
        return -ENOMEM;
    }
    memset(b->bufs, (int)b->pattern, bytes);
    for (uint64_t i = 0; i < n; i++) {
        b->iov[i] = (struct iovec) { b->bufs + i * b->size, b->size };
        b->reqs[i] = (struct blk_req) { .op = b->write ? BLK_WRITE : BLK_READ,
                                        .length = b->size, .iov = &b->iov[i], .iovcnt = 1,
                                        .done = request_done, .arg = b };
        b->idle[b->nidle++] = &b->reqs[n - 1 - i];
    }
    return 0;
}

static void print_plan(const struct bench *b)
{
    printf("Sending %" PRIu64 " %s requests, %" PRIu64 " bytes each, %" PRIu64 " in parallel "
           "(starting at offset %" PRIu64 ", step size %" PRIu64 ")\n",
           b->count, b->write ? "write" : "read", b->size, b->depth, b->offset, b->step);
    if (b->flush_interval) {
        printf("Sending flush every %" PRIu64 " requests\n", b->flush_interval);
    }
}

static int conclude(const struct bench *b, uint64_t first, double seconds)
{
    double per_second = seconds > 0 ? (double)b->count / seconds : 0;

    if (!b->json) {
        printf("Run completed in %3.3f seconds.\n", seconds);
        return 0;
    }
    return img_json_result(json_pack(
        "{s:o, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "filename",
        img_json_string(b->filename), "operation", b->write ? "write" : "read",
        "requests", (json_int_t)b->count, "request-size", (json_int_t)b->size,
        "depth", (json_int_t)b->depth,
        "offset", (json_int_t)first, "step-size", (json_int_t)b->step,
        "flush-interval", (json_int_t)b->flush_interval, "seconds", seconds,
        "requests-per-second", per_second, "bytes-per-second", per_second * (double)b->size));
}

static int measure(struct bench *b)
{
    uint64_t start, first = b->offset;

    b->image_size = (blk_size(b->node) + 511) & ~511ull;
    b->left = b->count;
    b->step = b->step ? b->step : b->size;
    if (!b->json) {
        print_plan(b);
    }
    if (make_requests(b) < 0) {
        img_error("Could not allocate buffers: %s", strerror(ENOMEM));
        return 1;
    }
    start = blk_now_ns();
    submit_idle(b);
    if (!ended(b)) {
        b->waiter = co_self();
        co_yield();
    }
    if (b->err) {
        img_error(b->flush_failed ? "Failed flush request: %s" : "Failed request: %s",
                  strerror(-b->err));
        return 1;
    }
    return conclude(b, first, (double)(blk_now_ns() - start) / 1e9);
}

static int run(void *arg)
{
    struct bench *b = arg;
    struct img_image im = { .filename = b->filename, .format = b->format,
                            .image_opts = b->image_opts, .flags = b->flags };
    int status = 1;

    b->node = img_open(&im);
    if (b->node) {
        status = measure(b);
    }
    if (img_close(b->node) < 0) {
        status = 1;
    }
    free(b->reqs);
    free(b->iov);
    free(b->idle);
    blk_buf_free(b->bufs);
    return status;
}

/* ---- options ---------------------------------------------------------------- */

static const struct option longs[] = {
    {"help", no_argument, NULL, 'h'},
    {"aio", required_argument, NULL, 'i'},
    {"buffer-size", required_argument, NULL, 's'},
    {"cache", required_argument, NULL, 't'},
    {"count", required_argument, NULL, 'c'},
    {"depth", required_argument, NULL, 'd'},
    {"flush-interval", required_argument, NULL, OPT_FLUSH_INTERVAL},
    {"force-share", no_argument, NULL, 'U'},
    {"format", required_argument, NULL, 'f'},
    {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
    {"native", no_argument, NULL, 'n'},
    {"no-drain", no_argument, NULL, OPT_NO_DRAIN},
    {"offset", required_argument, NULL, 'o'},
    {"output", required_argument, NULL, IMG_OPT_OUTPUT},
    {"pattern", required_argument, NULL, OPT_PATTERN},
    {"quiet", no_argument, NULL, 'q'},
    {"step-size", required_argument, NULL, 'S'},
    {"write", no_argument, NULL, 'w'},
    {NULL, 0, NULL, 0},
};

static int parse_number(struct bench *b, int c)
{
    switch (c) {
    case 'c': return img_parse_number("request count", optarg, 1, INT_MAX, &b->count);
    case 'd': return img_parse_number("queue depth", optarg, 1, INT_MAX, &b->depth);
    case 'o': return img_parse_size("offset", optarg, &b->offset);
    case 's': return img_parse_size_in("buffer size", optarg, 1, INT_MAX, &b->size);
    case 'S': return img_parse_size_in("step size", optarg, 0, INT_MAX, &b->step);
    case OPT_PATTERN: return img_parse_number("pattern byte", optarg, 0, 0xff, &b->pattern);
    default: return img_parse_number("flush interval", optarg, 0, INT_MAX, &b->flush_interval);
    }
}

/* How the file is read is the file driver's choice; the names are checked. */
static int parse_aio(struct bench *b, const char *s)
{
    if (strcmp(s, "threads") && strcmp(s, "native") && strcmp(s, "io_uring")) {
        img_error("Invalid aio option: %s", s);
        return -EINVAL;
    }
    b->aio = s;
    return 0;
}

static int parse_option(struct bench *b, int c)
{
    switch (c) {
    case 'f': b->format = optarg; return 0;
    case 'i': return parse_aio(b, optarg);
    case 'n': b->aio = "native"; return 0;
    case 'q': return 0;
    case 'U': b->flags |= BLK_O_SHARE; return 0;
    case 'w': b->write = true; b->flags |= BLK_O_RDWR; return 0;
    case IMG_OPT_IMAGE_OPTS: b->image_opts = true; return 0;
    case OPT_NO_DRAIN: b->no_drain = true; return 0;
    case 't':
        if (blk_parse_cache(optarg, &b->flags)) {
            img_error("Invalid cache mode");
            return -EINVAL;
        }
        return 0;
    default: return parse_number(b, c);
    }
}

static int check_options(const struct bench *b)
{
    if (!b->write && b->flush_interval) {
        img_error("--flush-interval is only available in write tests");
    } else if (b->flush_interval && b->flush_interval < b->depth) {
        img_error("Flush interval can't be smaller than depth");
    } else if (b->aio && !strcmp(b->aio, "native") && !(b->flags & BLK_O_DIRECT)) {
        img_error("Could not open '%s': aio=native was specified, but it requires "
                  "cache.direct=on, which was not specified.", b->filename);
    } else {
        return 0;
    }
    return -EINVAL;
}

static int bench_main(int argc, char **argv)
{
    struct bench b = { .count = 75000, .depth = 64, .size = 4096 };
    int c;

    while ((c = getopt_long(argc, argv, "hc:d:f:ni:o:qs:S:t:wU", longs, NULL)) != -1) {
        if (c == 'h') {
            return img_help(&img_bench);
        }
        if (c == '?') {
            return img_try_help(argv[0]);
        }
        if (c == IMG_OPT_OUTPUT ? img_parse_output(argv[0], optarg, &b.json)
                                : parse_option(&b, c)) {
            return 1;
        }
    }
    if (optind != argc - 1) {
        return img_usage_error(argv[0], "Expecting one image file name");
    }
    b.filename = argv[optind];
    return check_options(&b) ? 1 : img_run(run, &b);
}

const struct img_command img_bench = {
    .name = "bench",
    .summary = "Run simple image benchmark",
    .synopsis = "[-f FMT | --image-opts] [-t CACHE] [-c COUNT] [-d DEPTH]\n"
                "        [-o OFFSET] [-s BUFFER_SIZE] [-S STEP_SIZE] [-i AIO] [-n]\n"
                "        [-w [--pattern PATTERN] [--flush-interval INTERVAL [--no-drain]]] [-U]\n"
                "        [--output human|json] FILENAME",
    .arguments =
        "  -q, --quiet\n     accepted for scripts written for qemu-img\n"
        "  -f, --format FMT\n     specify the format of FILENAME explicitly\n"
        "  --image-opts\n     FILENAME is a complete image specification instead of a file name\n"
        "     (incompatible with --format)\n"
        "  -t, --cache CACHE\n     cache mode for FILENAME (writeback)\n"
        "  -c, --count COUNT\n     number of I/O requests to perform (75000)\n"
        "  -s, --buffer-size BUFFER_SIZE\n     size of each I/O request (4096)\n"
        "  -d, --depth DEPTH\n     number of requests to perform in parallel (64)\n"
        "  -o, --offset OFFSET\n     start the first request at this OFFSET\n"
        "  -S, --step-size STEP_SIZE\n     each next request's offset increment (BUFFER_SIZE)\n"
        "  -i, --aio AIO\n     threads, native or io_uring: checked, but the engine is chosen by\n"
        "     what the host allows\n"
        "  -n, --native\n     the same as -i native\n"
        "  -w, --write\n     perform a write test (default is read)\n"
        "  --pattern PATTERN\n     write this byte instead of zero\n"
        "  --flush-interval INTERVAL\n     issue a flush after this number of requests\n"
        "  --no-drain\n     do not wait for pending requests before flushing\n"
        "  -U, --force-share\n     open the image in shared mode for concurrent access\n"
        "  --output human|json\n     how to print the result\n"
        "  FILENAME\n     image file name, or specification with --image-opts\n",
    .main = bench_main,
};
