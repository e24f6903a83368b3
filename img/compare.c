/*
 * compare.c - platter-img compare: do two images hold the same data?
 *
 * The maps of both images are walked together and cut into pieces; fibers read
 * the pieces that need it, several at a time.  Differences and errors may turn up
 * in any order: the one at the lowest offset is what is reported, as if the
 * images had been read from the start.  Exit status: 0 same, 1 different, 2 could
 * not open, 3 no map, 4 read error.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img/img.h"

#define BUF_SIZE    (2u << 20)      /* QEMU's; a worker has one for each side */
#define EXTENTS     64u             /* of a piece */
#define WORKERS     4u
#define SECTOR      512u

struct side {
    const char *name;
    struct blk_node *node;
    uint64_t size;                  /* rounded up to sectors, as qemu-img does */
    struct blk_status st;           /* what is at... */
    uint64_t st_end;                /* ...up to here */
};

/* What decides the outcome, found at an offset. */
enum finding_kind { FOUND_NOTHING, FOUND_CONTENT, FOUND_STATUS, FOUND_READ_ERROR, FOUND_MAP_ERROR };

struct finding {
    enum finding_kind kind;
    uint64_t at;                    /* of the piece: what orders findings */
    uint64_t offset;                /* what is printed */
    int err;
    const char *name;
};

struct piece {
    uint64_t offset, length;        /* length 0: nothing is left */
    bool read[2];                   /* one only: it must be all zeros */
    unsigned n;
    uint64_t start[EXTENTS + 1];    /* of the extents in it; its end */
};

struct compare {
    struct side side[2];
    uint64_t common, total;         /* shorter and longer size */
    bool strict, quiet, json;

    struct co_mutex lock;
    uint64_t pos, end, done;        /* of what is handed out */
    struct finding found;
    unsigned running;
    struct co_queue ended;
};

struct worker {
    struct compare *c;
    struct piece p;
    uint8_t *buf[2];
    uint64_t differs;               /* offset in the piece, or its length */
};

/* ---- findings --------------------------------------------------------------- */

static void report(struct compare *c, const struct finding *f)
{
    if (c->found.kind == FOUND_NOTHING || f->at < c->found.at) {
        c->found = *f;
    }
}

/* What was found, for a program; size: the sizes differ and nothing else was looked at. */
static int print_result(const struct compare *c, bool size)
{
    const struct finding *f = &c->found;
    bool same = f->kind == FOUND_NOTHING && !size;
    json_t *v = json_pack("{s:b, s:b}", "identical", same, "size-mismatch", c->common != c->total);

    if (v && !same) {
        json_object_set_new(v, "reason", json_string(size ? "size" : f->kind == FOUND_CONTENT
                                                         ? "content" : "status"));
    }
    if (v && !same && !size) {
        json_object_set_new(v, "offset", json_integer((json_int_t)f->offset));
    }
    return img_json_result(v) ? 4 : !same;
}

/* Prints; returns the exit status. */
static int conclude(const struct compare *c)
{
    const struct finding *f = &c->found;

    if (c->json && f->kind < FOUND_READ_ERROR) {
        return print_result(c, false);
    }
    switch (f->kind) {
    case FOUND_NOTHING:
        img_print(c->quiet, "Images are identical.\n");
        return 0;
    case FOUND_CONTENT:
        img_print(c->quiet, "Content mismatch at offset %" PRIu64 "!\n", f->offset);
        return 1;
    case FOUND_STATUS:
        img_print(c->quiet, "Strict mode: Offset %" PRIu64 " block status mismatch!\n", f->offset);
        return 1;
    case FOUND_READ_ERROR:
        img_error("Error while reading offset %" PRIu64 " of %s: %s", f->offset, f->name,
                  strerror(-f->err));
        return 4;
    case FOUND_MAP_ERROR:
        break;
    }
    img_error("Sector allocation test failed for %s", f->name);
    return 3;
}

/* ---- the map of both -------------------------------------------------------- */

static int side_status(struct compare *c, struct side *s, uint64_t pos)
{
    uint64_t real = blk_size(s->node);
    int ret;

    if (pos < s->st_end) {
        return 0;
    }
    if (pos >= real) {              /* what rounding up added */
        s->st = (struct blk_status) { .flags = BLK_ST_ZERO };
        s->st_end = s->size;
        return 0;
    }
    ret = co_status_above(s->node, NULL, pos, real - pos, &s->st);
    if (ret < 0) {
        report(c, &(struct finding) { .kind = FOUND_MAP_ERROR, .at = pos, .name = s->name });
        return ret;
    }
    s->st_end = pos + s->st.length;
    if (s->st_end >= real) {        /* the last sector may be short: the rest reads as zeros */
        s->st_end = s->size;
    }
    return 0;
}

static bool needs_reading(const struct side *s)
{
    return (s->st.flags & BLK_ST_ALLOCATED) &&
           !(s->st.flags & (BLK_ST_ZERO | BLK_ST_READS_ZERO));
}

static bool strict_mismatch(const struct compare *c)
{
    const unsigned what = BLK_ST_DATA | BLK_ST_ZERO | BLK_ST_ALLOCATED;

    return (c->side[0].st.flags ^ c->side[1].st.flags) & what;
}

/* Where both images reach: a piece of one kind on both sides. */
static int common_piece(struct compare *c, struct piece *p)
{
    struct side *a = &c->side[0], *b = &c->side[1];

    if (side_status(c, a, c->pos) < 0 || side_status(c, b, c->pos) < 0) {
        return -EIO;
    }
    if (c->strict && strict_mismatch(c)) {
        report(c, &(struct finding) { .kind = FOUND_STATUS, .at = c->pos, .offset = c->pos });
        return -EIO;
    }
    p->offset = c->pos;
    p->length = BLK_MIN(c->common, BLK_MIN(a->st_end, b->st_end)) - c->pos;
    p->read[0] = needs_reading(a);
    p->read[1] = needs_reading(b);
    return 0;
}

/* Where only the longer one reaches: it must be all zeros. */
static int tail_piece(struct compare *c, struct piece *p)
{
    unsigned longer = c->side[1].size > c->side[0].size;
    struct side *s = &c->side[longer];

    if (side_status(c, s, c->pos) < 0) {
        return -EIO;
    }
    p->offset = c->pos;
    p->length = s->st_end - c->pos;
    p->read[longer] = needs_reading(s);
    return 0;
}

/* Same treatment for both: joined pieces make larger requests. */
static bool alike(const struct piece *a, const struct piece *b)
{
    return a->read[0] == b->read[0] && a->read[1] == b->read[1];
}

static int find_piece(struct compare *c, struct piece *p)
{
    *p = (struct piece) { 0 };
    if (c->pos < c->common) {
        return common_piece(c, p);
    }
    return c->pos < c->end ? tail_piece(c, p) : 0;
}

static void advance(struct compare *c, uint64_t bytes)
{
    c->done += bytes;
    img_progress_set(c->done, c->total, true);
}

/* The next piece; what needs no reading is passed over at once. */
static void next_piece(struct compare *c, struct piece *p)
{
    struct piece more;

    co_lock(&c->lock);
    p->length = 0;
    while (c->found.kind == FOUND_NOTHING && find_piece(c, &more) == 0 && more.length) {
        bool skip = !more.read[0] && !more.read[1];

        if (p->length && (skip || !alike(p, &more))) {
            break;
        }
        if (skip) {
            c->pos += more.length;
            advance(c, more.length);
            continue;
        }
        more.length = BLK_MIN(more.length, BUF_SIZE);
        if (!p->length) {
            *p = more;
        } else if (more.length > BUF_SIZE - p->length) {
            break;
        } else {
            p->length += more.length;
        }
        p->start[p->n++] = c->pos;
        c->pos += more.length;
        p->start[p->n] = c->pos;
        if (p->n == EXTENTS || c->pos == c->common) {
            break;
        }
    }
    co_unlock(&c->lock);
}

/* ---- comparing one piece ---------------------------------------------------- */

/* The first sector that is not all zeros. */
static uint64_t first_nonzero(const uint8_t *p, uint64_t len)
{
    uint64_t at = 0;

    if (blk_is_zero(p, len)) {
        return len;
    }
    while (blk_is_zero(p + at, BLK_MIN(SECTOR, len - at))) {
        at += SECTOR;
    }
    return at;
}

/* The first sector that differs. */
static uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t len)
{
    uint64_t at = 0;

    if (memcmp(a, b, len) == 0) {
        return len;
    }
    while (memcmp(a + at, b + at, BLK_MIN(SECTOR, len - at)) == 0) {
        at += SECTOR;
    }
    return at;
}

static void compare_bufs(void *arg)
{
    struct worker *w = arg;
    struct piece *p = &w->p;

    if (p->read[0] && p->read[1]) {
        w->differs = first_difference(w->buf[0], w->buf[1], p->length);
        return;
    }
    w->differs = first_nonzero(w->buf[p->read[0] ? 0 : 1], p->length);
}

/* The side that cannot be read, or -1. */
static int read_extents(struct worker *w, uint64_t from, uint64_t end, int *err)
{
    struct piece *p = &w->p;
    struct co_batch batch = { 0 };
    struct blk_req req[2];
    struct iovec iov[2];

    for (unsigned i = 0; i < 2; i++) {
        if (p->read[i]) {
            iov[i] = (struct iovec) { w->buf[i], end - from };
            req[i] = (struct blk_req) { .op = BLK_READ, .offset = from, .length = end - from,
                                        .iov = &iov[i], .iovcnt = 1 };
            co_batch_add(&batch, w->c->side[i].node, &req[i]);
        }
    }
    if (co_batch_wait(&batch) == 0) {
        return -1;
    }
    int side = p->read[0] && req[0].result < 0 ? 0 : 1;

    *err = req[side].result;
    return side;
}

/* As QEMU the extent is named that cannot be read. */
static int read_piece(struct worker *w)
{
    const struct piece *p = &w->p;
    int err, side = read_extents(w, p->offset, p->offset + p->length, &err), again = -1;
    unsigned i = 0;

    if (side < 0) {
        return 0;
    }
    while (p->n > 1 && i < p->n &&
           (again = read_extents(w, p->start[i], p->start[i + 1], &err)) < 0) {
        i++;
    }
    report(w->c, &(struct finding) { .kind = FOUND_READ_ERROR, .at = p->offset,
                                     .offset = p->start[i % p->n], .err = err,
                                     .name = w->c->side[again < 0 ? side : again].name });
    return -EIO;
}

static void worker_run(void *arg)
{
    struct worker *w = arg;
    struct compare *c = w->c;

    for (next_piece(c, &w->p); w->p.length; next_piece(c, &w->p)) {
        if (read_piece(w) < 0) {
            break;
        }
        co_work(compare_bufs, w);
        if (w->differs < w->p.length) {
            report(c, &(struct finding) { .kind = FOUND_CONTENT, .at = w->p.offset,
                                          .offset = w->p.offset + w->differs });
            break;
        }
        advance(c, w->p.length);
    }
    c->running--;
    co_wake_one(&c->ended);
}

static int make_worker(struct worker *w, struct compare *c)
{
    int ret = -ENOMEM;

    w->c = c;
    w->buf[0] = blk_buf_alloc(BUF_SIZE);
    w->buf[1] = blk_buf_alloc(BUF_SIZE);
    if (w->buf[0] && w->buf[1]) {
        ret = co_start(img_loop(), worker_run, w);
    }
    return ret;
}

/* From where it is up to end. */
static int compare_up_to(struct compare *c, uint64_t end)
{
    struct worker workers[WORKERS] = { 0 };
    uint64_t needed = (end - c->pos) / BUF_SIZE + 1;

    c->end = end;
    for (unsigned i = 0; i < BLK_MIN(WORKERS, needed); i++) {
        if (make_worker(&workers[i], c) == 0) {
            c->running++;
        }
    }
    if (!c->running) {
        img_error("%s", strerror(ENOMEM));
        return 4;
    }
    while (c->running) {
        co_wait_on(&c->ended);
    }
    for (unsigned i = 0; i < WORKERS; i++) {
        blk_buf_free(workers[i].buf[0]);
        blk_buf_free(workers[i].buf[1]);
    }
    return 0;
}

static int compare_images(struct compare *c)
{
    int status = compare_up_to(c, c->common);

    if (!status && c->common != c->total && c->found.kind == FOUND_NOTHING) {
        if (!c->json) {
            img_print(c->quiet, "Warning: Image size mismatch!\n");
        }
        status = compare_up_to(c, c->total);
    }
    return status ? status : conclude(c);
}

/* ---- the command ------------------------------------------------------------ */

struct args {
    const char *name[2], *format[2], *cache;
    bool image_opts, progress, quiet, strict, share, json;
};

static int open_sides(const struct args *a, struct compare *c)
{
    struct img_image im = { .image_opts = a->image_opts, .quiet = a->quiet,
                            .flags = a->share ? BLK_O_SHARE : 0 };

    if (img_parse_cache("source ", a->cache, &im.flags)) {
        return -EINVAL;
    }
    for (unsigned i = 0; i < 2; i++) {
        struct side *s = &c->side[i];

        im.filename = a->name[i];
        im.format = a->format[i];
        s->node = img_open(&im);
        if (!s->node) {
            return -EIO;
        }
        s->name = a->name[i];
        s->size = (blk_size(s->node) + SECTOR - 1) & ~(SECTOR - 1ull);
    }
    return 0;
}

static int run(void *arg)
{
    const struct args *a = arg;
    struct compare c = { .strict = a->strict, .quiet = a->quiet, .json = a->json };
    int status = 2;

    img_progress_start(a->progress && !a->quiet, 2.0);
    if (open_sides(a, &c) == 0) {
        c.common = BLK_MIN(c.side[0].size, c.side[1].size);
        c.total = BLK_MAX(c.side[0].size, c.side[1].size);
        img_progress_set(0, 100, false);
        if (a->strict && c.common != c.total) {
            if (a->json) {
                status = print_result(&c, true);
            } else {
                img_print(a->quiet, "Strict mode: Image size mismatch!\n");
                status = 1;
            }
        } else {
            status = compare_images(&c);
        }
    }
    img_progress_end();
    img_close(c.side[1].node);
    img_close(c.side[0].node);
    return status;
}

static const struct option longs[] = {
    {"help", no_argument, NULL, 'h'},
    {"a-format", required_argument, NULL, 'f'},
    {"left-format", required_argument, NULL, 'f'},
    {"b-format", required_argument, NULL, 'F'},
    {"right-format", required_argument, NULL, 'F'},
    {"cache", required_argument, NULL, 'T'},
    {"force-share", no_argument, NULL, 'U'},
    {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
    {"object", required_argument, NULL, IMG_OPT_OBJECT},
    {"output", required_argument, NULL, IMG_OPT_OUTPUT},
    {"progress", optional_argument, NULL, 'p'},
    {"quiet", no_argument, NULL, 'q'},
    {"strict", no_argument, NULL, 's'},
    {NULL, 0, NULL, 0},
};

static int compare_main(int argc, char **argv)
{
    struct args a = { .cache = "writeback" };
    int c;

    while ((c = getopt_long(argc, argv, "hf:F:T:pqsU", longs, NULL)) != -1) {
        switch (c) {
        case 'h': return img_help(&img_compare);
        case 'f': a.format[0] = optarg; break;
        case 'F': a.format[1] = optarg; break;
        case 'T': a.cache = optarg; break;
        case 'p':
            if (img_parse_progress(optarg, &a.progress)) {
                return 2;
            }
            break;
        case 'q': a.quiet = true; break;
        case 's': a.strict = true; break;
        case 'U': a.share = true; break;
        case IMG_OPT_IMAGE_OPTS: a.image_opts = true; break;
        case IMG_OPT_OUTPUT:
            if (img_parse_output(argv[0], optarg, &a.json)) {
                return 2;
            }
            break;
        case IMG_OPT_OBJECT:
            if (img_add_object(optarg)) {
                return 2;
            }
            break;
        default: return img_try_help(argv[0]);
        }
    }
    if (optind != argc - 2) {
        return img_usage_error(argv[0], "Expecting two image file names");
    }
    a.name[0] = argv[optind];
    a.name[1] = argv[optind + 1];
    return img_run(run, &a);
}

const struct img_command img_compare = {
    .name = "compare",
    .summary = "Check if two images have the same contents",
    .synopsis = "[--image-opts | [-f FMT] [-F FMT]] [-s]\n"
                "        [-p] [--progress=FD|json] [-q] [--output human|json]\n"
                "        [-T CACHE] [-U] [--object OBJDEF] FILENAME1 FILENAME2",
    .arguments =
        "  -q, --quiet\n     quiet operation\n"
        "  -p, --progress\n     show operation progress\n"
        "  --progress=FD|json\n     lines of JSON about it, to file descriptor FD or standard error\n"
        "  -f, --a-format FMT\n     specify the format of FILENAME1 explicitly\n"
        "  -F, --b-format FMT\n     specify the format of FILENAME2 explicitly\n"
        "  --image-opts\n     the FILENAMEs are complete image specifications instead of file\n"
        "     names (incompatible with --a-format and --b-format)\n"
        "  -s, --strict\n     also check that sizes and allocation are equal\n"
        "  -T, --cache CACHE_MODE\n     cache mode of the images (writeback)\n"
        "  -U, --force-share\n     open images in shared mode for concurrent access\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     define an object (eg encryption key)\n"
        "  FILENAME1, FILENAME2\n     image files (or specifications) to compare\n",
    .main = compare_main,
};
