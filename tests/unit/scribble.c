/*
 * scribble.c - random reads, writes, zeroes and discards at odd offsets and
 * lengths on an image of any format that is written and on a model in memory agree byte
 * for byte.
 *
 * Eight requests are in flight at once.  They overlap nobody who writes, but they
 * share sectors and clusters freely, so read-modify-write, copy-on-write and
 * allocation race inside of the driver.  A discard may leave each byte as it was
 * or make it zero; which of both is read back right after it and holds from then
 * on.  The image is closed, checked and opened again now and then; at the end it
 * is read as a whole, checked, and (where qemu-img is there) checked and compared
 * by that, too.
 *
 * 100,000 operations per cluster size, fewer for the other layouts; with sanitizers,
 * which make each several times slower, a fifth of that.  SCRIBBLE_OPS and
 * SCRIBBLE_SEED override.
 *
 * SCRIBBLE_PLACE=NAME: the images are at a place of tests/net/places.sh, which says by
 * PLACE_NAME_* how it is reached; qemu-img looks at the same files here.
 */
#include "block/block.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__)
#define DEFAULT_OPS 20000u
#else
#define DEFAULT_OPS 100000u
#endif
#define SLOTS 8u

enum backing { NONE, RAW_SHORT, RAW_LONG, QCOW2_SHORT, QCOW2_LONG };

struct layout {
    unsigned version, cluster_size, refcount_bits;
    bool lazy;
    enum backing backing;
    uint64_t size;
    uint32_t max_len;
    unsigned share;                 /* of DEFAULT_OPS: one over this */
    unsigned flags;                 /* BLK_O_* to open with besides */
    const char *format, *options;   /* NULL: qcow2; more creation options */
    bool external, external_raw;    /* data in a file of its own; as a raw image */
};

struct slot {
    struct run *run;
    bool busy, reading_back;        /* the read after a discard */
    enum blk_op op;
    uint64_t offset, length;
    uint8_t *buf;
    struct iovec iov[2];
    struct blk_req req;
};

struct run {
    const struct layout *lay;
    char dir[512], image[600], base[600], data[600];
    char local_image[600], local_base[600];     /* as files of this machine */
    bool placed;
    struct blk_loop *loop;
    struct blk_node *node;
    uint8_t *model;
    struct slot slots[SLOTS];
    unsigned in_flight;
    unsigned long n;                /* operations begun */
    uint64_t seed, rng;
    bool broken;
    char why[256];
};

static uint64_t rnd(struct run *r)
{
    r->rng ^= r->rng << 13;
    r->rng ^= r->rng >> 7;
    r->rng ^= r->rng << 17;
    return r->rng * 0x2545f4914f6cdd1dull;
}

static uint64_t rnd_below(struct run *r, uint64_t n)
{
    return (rnd(r) >> 11) % n;
}

static void fill(struct run *r, uint8_t *p, uint64_t len)
{
    uint64_t v = rnd(r);

    for (uint64_t i = 0; i < len; i++) {
        if (i % 8 == 0)
            v = v * 6364136223846793005ull + 1442695040888963407ull;
        p[i] = (uint8_t)(v >> (i % 8 * 8)) | 1u;     /* never zero: zero is a claim */
    }
}

/* ---- making and opening ------------------------------------------------------- */

static const char *format_of(const struct run *r)
{
    return r->lay->format ? r->lay->format : "qcow2";
}

static void die(const struct blk_error *e, const char *what)
{
    fail_msg("%s: %s", what, e->text);
}

static void create(struct run *r, const char *format, const char *file, uint64_t size,
                   const char *backing, const char *backing_fmt)
{
    const struct layout *lay = r->lay;
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_opts *o = blk_opts_new();

    blk_opts_setf(o, "size", "%" PRIu64, size);
    if (!strcmp(format, "qcow2")) {
        blk_opts_setf(o, "cluster_size", "%u", lay->cluster_size);
        blk_opts_set(o, "compat", lay->version == 2 ? "0.10" : "1.1");
        if (lay->version == 3) {
            blk_opts_setf(o, "refcount_bits", "%u", lay->refcount_bits);
            blk_opts_set(o, "lazy_refcounts", lay->lazy ? "on" : "off");
        }
    }
    if (lay->options && !strcmp(format, format_of(r)) &&
        blk_opts_parse(o, lay->options, NULL, &e) < 0)
        die(&e, "options");
    if (lay->external && !strcmp(file, r->image)) {
        blk_opts_set(o, "data_file", r->data);
        blk_opts_set(o, "data_file_raw", lay->external_raw ? "on" : "off");
    }
    if (backing) {
        blk_opts_set(o, "backing_file", backing);
        blk_opts_set(o, "backing_fmt", backing_fmt);
    }
    if (blk_create(r->loop, format, file, o, &e) < 0)
        die(&e, "create");
    blk_opts_free(o);
}

static bool encrypted(const struct run *r)
{
    return r->lay->options && strstr(r->lay->options, "encrypt.");
}

static struct blk_node *open_image(struct run *r, const char *file, const char *format,
                                   unsigned flags)
{
    struct blk_open_args a = { .filename = file, .format = format, .flags = flags,
                               .backing_urls = r->placed ? "all" : NULL };
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n = NULL;
    struct blk_opts *o = encrypted(r) && file == r->image ? blk_opts_new() : NULL;

    if (o)
        blk_opts_set(o, "encrypt.key-secret", "s");
    a.opts = o;
    if (blk_open(r->loop, &a, &n, &e) < 0)
        die(&e, "open");
    blk_opts_free(o);
    return n;
}

static void close_image(struct blk_node *n)
{
    struct blk_error e = BLK_ERROR_INIT;

    if (blk_close(n, &e) < 0)
        die(&e, "close");
}

struct fill_args { struct blk_node *n; const uint8_t *data; uint64_t len; };

static int fill_fiber(void *arg)
{
    struct fill_args *f = arg;

    for (uint64_t off = 0; off < f->len; off += 1u << 20) {
        size_t len = (size_t)BLK_MIN((uint64_t)1 << 20, f->len - off);
        int ret = blk_is_zero(f->data + off, len) ? 0 : co_write(f->n, off, f->data + off, len, 0);

        if (ret < 0)
            return ret;
    }
    return 0;
}

/* The backing file, random with holes; what of it shows goes into the model. */
static void make_backing(struct run *r)
{
    const struct layout *lay = r->lay;
    bool qcow2 = lay->backing == QCOW2_SHORT || lay->backing == QCOW2_LONG;
    bool shorter = lay->backing == RAW_SHORT || lay->backing == QCOW2_SHORT;
    uint64_t size = shorter ? lay->size / 3 * 2 / 512 * 512 + 512 : lay->size + (1u << 20);
    uint8_t *data = calloc(1, size);

    assert_non_null(data);
    for (uint64_t off = 0; off < size; off += 100000) {
        if (rnd_below(r, 3))
            fill(r, data + off, BLK_MIN((uint64_t)100000, size - off));
    }
    create(r, qcow2 ? "qcow2" : "raw", r->base, size, NULL, NULL);
    struct fill_args f = { NULL, data, size };
    f.n = open_image(r, r->base, qcow2 ? "qcow2" : "raw", BLK_O_RDWR);
    assert_int_equal(blk_run(r->loop, fill_fiber, &f), 0);
    close_image(f.n);
    memcpy(r->model, data, BLK_MIN(size, lay->size));
    free(data);
}

/* ---- one operation -------------------------------------------------------------- */

static void broken(struct run *r, const struct slot *s, const char *what, uint64_t at)
{
    static const char *const name[] = { "read", "write", "write zeroes", "discard", "flush" };

    if (!r->broken)
        snprintf(r->why, sizeof(r->why),
                 "%s %" PRIu64 "+%" PRIu64 " %s at %" PRIu64 " (operation %lu, seed %" PRIu64 ")",
                 name[s->op], s->offset, s->length, what, at, r->n, r->seed);
    r->broken = true;
}

static void compare(struct run *r, const struct slot *s)
{
    for (uint64_t i = 0; i < s->length; i++) {
        if (s->buf[i] != r->model[s->offset + i]) {
            broken(r, s, "differs", s->offset + i);
            return;
        }
    }
}

/* After a discard each byte is old or zero; what it is now is what it stays. */
static void adopt(struct run *r, const struct slot *s)
{
    for (uint64_t i = 0; i < s->length; i++) {
        if (s->buf[i] != r->model[s->offset + i] && s->buf[i] != 0) {
            broken(r, s, "shows other data", s->offset + i);
            return;
        }
    }
    memcpy(r->model + s->offset, s->buf, s->length);
}

static void slot_submit(struct slot *s, enum blk_op op, unsigned flags);

static void slot_done(struct blk_req *req)
{
    struct slot *s = req->arg;
    struct run *r = s->run;

    if (req->result < 0) {
        broken(r, s, strerror(-req->result), s->offset);
    } else if (s->reading_back) {
        adopt(r, s);
    } else if (s->op == BLK_READ) {
        compare(r, s);
    } else if (s->op == BLK_WRITE) {
        memcpy(r->model + s->offset, s->buf, s->length);
    } else if (s->op == BLK_WRITE_ZEROES) {
        memset(r->model + s->offset, 0, s->length);
    } else if (s->op == BLK_DISCARD && !r->broken) {
        s->reading_back = true;
        memset(s->buf, 0xcd, s->length);
        slot_submit(s, BLK_READ, 0);
        return;
    }
    s->busy = false;
    r->in_flight--;
}

static void slot_submit(struct slot *s, enum blk_op op, unsigned flags)
{
    uint64_t cut = s->length > 1 ? s->length * 2 / 5 : 0;
    bool data = op == BLK_READ || op == BLK_WRITE;

    s->iov[0] = (struct iovec){ s->buf, cut ? cut : s->length };
    s->iov[1] = (struct iovec){ s->buf + cut, s->length - cut };
    s->req = (struct blk_req){
        .op = op, .flags = flags, .offset = s->offset, .length = s->length,
        .iov = data ? s->iov : NULL, .iovcnt = data ? (cut ? 2 : 1) : 0,
        .done = slot_done, .arg = s,
    };
    blk_submit(s->run->node, &s->req);
}

/* A range that no writer in flight touches (nor, for a writer, any reader). */
static bool pick_range(struct run *r, struct slot *s)
{
    const struct layout *lay = r->lay;
    uint64_t span = rnd_below(r, 8) ? 9000 : lay->max_len;

    s->length = 1 + rnd_below(r, span);
    s->offset = rnd_below(r, lay->size);
    if (!rnd_below(r, 4))               /* around a cluster border, or whole clusters */
        s->offset = s->offset / lay->cluster_size * lay->cluster_size;
    if (!rnd_below(r, 6) && lay->cluster_size <= lay->max_len)
        s->length = lay->cluster_size * (1 + rnd_below(r, lay->max_len / lay->cluster_size));
    s->length = BLK_MIN(s->length, lay->size - s->offset);
    for (unsigned i = 0; i < SLOTS; i++) {
        const struct slot *o = &r->slots[i];

        if (o != s && o->busy && o->op != BLK_FLUSH && !(o->op == BLK_READ && s->op == BLK_READ) &&
            s->offset < o->offset + o->length && o->offset < s->offset + s->length)
            return false;
    }
    return true;
}

static void slot_start(struct run *r, struct slot *s)
{
    static const enum blk_op mix[] = {
        BLK_READ, BLK_READ, BLK_READ, BLK_WRITE, BLK_WRITE, BLK_WRITE, BLK_WRITE, BLK_WRITE,
        BLK_WRITE_ZEROES, BLK_WRITE_ZEROES, BLK_DISCARD, BLK_DISCARD,
    };
    unsigned flags = 0;

    s->op = mix[rnd_below(r, BLK_ARRAY_SIZE(mix))];
    s->reading_back = false;
    while (!pick_range(r, s))
        ;
    if (!rnd_below(r, 60)) {
        s->op = BLK_FLUSH;
        s->offset = s->length = 0;
    }
    if (s->op == BLK_WRITE)
        fill(r, s->buf, s->length);
    else
        memset(s->buf, 0xcd, s->length);
    if (s->op == BLK_WRITE_ZEROES && rnd_below(r, 2))
        flags |= BLK_REQ_MAY_UNMAP;
    if ((s->op == BLK_WRITE || s->op == BLK_WRITE_ZEROES) && !rnd_below(r, 50))
        flags |= BLK_REQ_FUA;
    s->busy = true;
    r->in_flight++;
    r->n++;
    slot_submit(s, s->op, flags);
}

static void scribble(struct run *r, unsigned long ops)
{
    unsigned long end = r->n + ops;

    while (r->in_flight || (r->n < end && !r->broken)) {
        for (unsigned i = 0; i < SLOTS && r->n < end && !r->broken; i++) {
            if (!r->slots[i].busy)
                slot_start(r, &r->slots[i]);
        }
        blk_loop_turn(r->loop, true);
    }
    if (r->broken)
        fail_msg("%s", r->why);
}

/* ---- looking at the whole ---------------------------------------------------------- */

static void on_message(void *arg, bool is_error, const char *line)
{
    print_message("# check: %s\n", line);
}

static void check_image(struct run *r)
{
    struct blk_check c = { .message = on_message };
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n = open_image(r, r->image, format_of(r), BLK_O_CHECK);
    int ret = blk_check(n, &c, 0, &e);

    if (ret < 0 && ret != -ENOTSUP)
        die(&e, "check");
    assert_int_equal(c.corruptions, 0);
    assert_int_equal(c.leaks, 0);
    assert_int_equal(c.check_errors, 0);
    close_image(n);
}

static int read_all_fiber(void *arg)
{
    struct run *r = arg;
    size_t chunk = 777777;
    uint8_t *buf = malloc(chunk);
    int ret = buf ? 0 : -ENOMEM;

    for (uint64_t off = 0; ret == 0 && off < r->lay->size; off += chunk) {
        size_t len = (size_t)BLK_MIN((uint64_t)chunk, r->lay->size - off);

        ret = co_read(r->node, off, buf, len);
        if (ret == 0 && memcmp(buf, r->model + off, len))
            ret = -EILSEQ;
    }
    free(buf);
    return ret;
}

static const char *oracle(char *out, size_t size)
{
    const char *dir = getenv("ORACLE");

    snprintf(out, size, "%s/qemu-img", dir ? dir : "build/oracle/bin");
    if (access(out, X_OK) == 0)
        return out;
    return system("qemu-img --version >/dev/null 2>&1") == 0 ? "qemu-img" : NULL;
}

/* The image names its base by a URL, so qemu-img is told where both are here. */
static void placed_command(const struct run *r, const char *img, const char *raw, char *cmd,
                           size_t size)
{
    bool qcow2 = r->lay->backing == QCOW2_SHORT || r->lay->backing == QCOW2_LONG;
    char base[800] = "null";

    if (r->lay->backing != NONE)
        snprintf(base, sizeof(base), "{\"driver\":\"%s\",\"file\":{\"driver\":\"file\","
                 "\"filename\":\"%s\"}}", qcow2 ? "qcow2" : "raw", r->local_base);
    snprintf(cmd, size, "%s check -q -f qcow2 'json:{\"file\":{\"driver\":\"file\","
             "\"filename\":\"%s\"},\"backing\":null}' && %s compare -q -f qcow2 -F raw "
             "'json:{\"file\":{\"driver\":\"file\",\"filename\":\"%s\"},\"backing\":%s}' %s",
             img, r->local_image, img, r->local_image, base, raw);
}

static void oracle_agrees(struct run *r)
{
    char path[512], raw[620], cmd[4096];
    const char *img = oracle(path, sizeof(path));

    if (!img) {
        print_message("# no qemu-img: not compared\n");
        return;
    }
    snprintf(raw, sizeof(raw), "%s/model.raw", r->dir);
    FILE *f = fopen(raw, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(r->model, 1, r->lay->size, f), r->lay->size);
    assert_int_equal(fclose(f), 0);
    /* 63: the format has no check. */
    snprintf(cmd, sizeof(cmd), "{ %s check -q -f %s %s 2>/dev/null || test $? = 63; } && "
             "%s compare -q -f %s -F raw %s %s", img, format_of(r), r->local_image, img,
             format_of(r), r->local_image, raw);
    if (r->placed)
        placed_command(r, img, raw, cmd, sizeof(cmd));
    if (encrypted(r))
        snprintf(cmd, sizeof(cmd), "%s compare -q --object secret,id=s,data=abc --image-opts "
                 "driver=qcow2,file.filename=%s,encrypt.key-secret=s driver=raw,file.filename=%s",
                 img, r->image, raw);
    assert_int_equal(system(cmd), 0);
    unlink(raw);
}

/* ---- the tests ---------------------------------------------------------------------- */

static uint64_t env_number(const char *name, uint64_t otherwise)
{
    const char *s = getenv(name);

    return s && *s ? strtoull(s, NULL, 0) : otherwise;
}

static const char *place_env(const char *place, const char *key)
{
    char name[80];

    snprintf(name, sizeof(name), "PLACE_%s_%s", place, key);
    const char *value = getenv(name);
    if (!value)
        fail_msg("%s is not set", name);
    return value;
}

/* name at the place: its URL, with %s where the name belongs, and the file here. */
static void place_names(const char *place, const char *name, char *url, char *local, size_t size)
{
    const char *pattern = place_env(place, "URL"), *at = strstr(pattern, "%s");

    assert_non_null(at);
    snprintf(url, size, "%.*s%s%s", (int)(at - pattern), pattern, name, at + 2);
    snprintf(local, size, "%s/%s", place_env(place, "DIR"), name);
}

static void set_names(struct run *r)
{
    const char *place = getenv("SCRIBBLE_PLACE");
    static unsigned serial;
    char top[32] = "1", base[32] = "2";     /* all that a place of fixed sizes has */

    snprintf(r->local_image, sizeof(r->local_image), "%s/top.qcow2", r->dir);
    snprintf(r->local_base, sizeof(r->local_base), "%s/base.img", r->dir);
    r->placed = place;
    if (place) {
        if (!*place_env(place, "FIXED")) {
            snprintf(top, sizeof(top), "scribble%u.qcow2", ++serial);
            snprintf(base, sizeof(base), "scribble%u.base", serial);
        }
        place_names(place, top, r->image, r->local_image, sizeof(r->image));
        place_names(place, base, r->base, r->local_base, sizeof(r->base));
    } else {
        memcpy(r->image, r->local_image, sizeof(r->image));
        memcpy(r->base, r->local_base, sizeof(r->base));
    }
}

static void setup(struct run *r, const struct layout *lay)
{
    struct blk_error e = BLK_ERROR_INIT;
    const char *tmp = getenv("TMPDIR");

    *r = (struct run){ .lay = lay, .seed = env_number("SCRIBBLE_SEED", 20260801) };
    r->rng = r->seed * 0x9e3779b97f4a7c15ull + lay->cluster_size + lay->version;
    snprintf(r->dir, sizeof(r->dir), "%s/platter-scribble.XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(r->dir));
    set_names(r);
    snprintf(r->data, sizeof(r->data), "%s/data.raw", r->dir);
    r->loop = blk_loop_new(&e);
    assert_non_null(r->loop);
    r->model = calloc(1, lay->size);
    assert_non_null(r->model);
    for (unsigned i = 0; i < SLOTS; i++) {
        r->slots[i].run = r;
        r->slots[i].buf = malloc(BLK_MAX(lay->max_len, 9000u));
        assert_non_null(r->slots[i].buf);
    }
}

static void teardown(struct run *r)
{
    for (unsigned i = 0; i < SLOTS; i++)
        free(r->slots[i].buf);
    free(r->model);
    blk_loop_free(r->loop);
    if (!r->placed) {
        unlink(r->image);
        unlink(r->base);
        unlink(r->data);
    }
    rmdir(r->dir);
}

static void scribble_on(const struct layout *lay)
{
    unsigned long ops = env_number("SCRIBBLE_OPS", DEFAULT_OPS) / lay->share;
    bool qcow2 = lay->backing == QCOW2_SHORT || lay->backing == QCOW2_LONG;
    struct run run, *r = &run;

    setup(r, lay);
    print_message("# %s v%u, %u byte clusters, %lu operations, seed %" PRIu64 ": %s\n",
                  format_of(r), lay->version, lay->cluster_size, ops, r->seed, r->image);
    if (lay->backing != NONE)
        make_backing(r);
    create(r, format_of(r), r->image, lay->size, lay->backing != NONE ? r->base : NULL,
           qcow2 ? "qcow2" : "raw");
    for (unsigned part = 0; part < 5; part++) {
        r->node = open_image(r, r->image, format_of(r), BLK_O_RDWR | BLK_O_UNMAP | lay->flags);
        scribble(r, ops / 5);
        close_image(r->node);
        check_image(r);
    }
    r->node = open_image(r, r->image, format_of(r), 0);
    assert_int_equal(blk_run(r->loop, read_all_fiber, r), 0);
    close_image(r->node);
    if (lay->external_raw) {
        r->node = open_image(r, r->data, "raw", 0);
        assert_int_equal(blk_run(r->loop, read_all_fiber, r), 0);
        close_image(r->node);
    }
    oracle_agrees(r);
    teardown(r);
}

#define MIB ((uint64_t)1 << 20)
#define SCRIBBLE(name, ...)                                    \
    static void name(void **state)                             \
    {                                                          \
        static const struct layout lay = { __VA_ARGS__, NULL, NULL, false, false }; \
        scribble_on(&lay);                                     \
    }
/* Guest data in a file of its own. */
#define SCRIBBLE_EXTERNAL(name, raw, ...)                      \
    static void name(void **state)                             \
    {                                                          \
        static const struct layout lay = { 3, __VA_ARGS__, NULL, NULL, true, raw }; \
        scribble_on(&lay);                                     \
    }
/* qcow2 of 32 subclusters a cluster. */
#define SCRIBBLE_WIDE(name, cluster, backing, ...)             \
    static void name(void **state)                             \
    {                                                          \
        static const struct layout lay = { 3, cluster, 16, false, backing, __VA_ARGS__, NULL, \
                                           "extended_l2=on", false, false }; \
        scribble_on(&lay);                                     \
    }
/* Other formats, of blocks of block_size. */
#define SCRIBBLE_AS(name, format, options, block_size, ...)    \
    static void name(void **state)                             \
    {                                                          \
        static const struct layout lay = { 0, block_size, 0, false, NONE, __VA_ARGS__, \
                                           format, options, false, false };  \
        scribble_on(&lay);                                     \
    }

/* 8 MiB of 512 byte clusters outgrow their first refcount table, too. */
SCRIBBLE(clusters_of_512_over_a_shorter_raw_file, 3, 512, 16, false, RAW_SHORT,
         8 * MIB + 1536, 60000, 1, 0)
SCRIBBLE(clusters_of_4k_over_a_longer_qcow2, 3, 4096, 16, false, QCOW2_LONG,
         16 * MIB + 512, 200000, 1, 0)
SCRIBBLE(clusters_of_64k_over_a_shorter_qcow2, 3, 65536, 16, false, QCOW2_SHORT,
         24 * MIB + 7 * 512, 400000, 1, 0)
SCRIBBLE(clusters_of_2m_over_a_longer_raw_file, 3, 2 << 20, 16, false, RAW_LONG,
         33 * MIB + 512, 3 << 20, 1, 0)
SCRIBBLE(version_2_over_a_shorter_raw_file, 2, 4096, 16, false, RAW_SHORT,
         16 * MIB + 512, 200000, 2, 0)
SCRIBBLE(version_2_without_backing, 2, 65536, 16, false, NONE, 16 * MIB, 300000, 4, 0)
SCRIBBLE(lazy_refcounts, 3, 4096, 16, true, RAW_LONG, 16 * MIB, 200000, 2, 0)
SCRIBBLE(refcounts_of_1_bit, 3, 4096, 1, false, NONE, 16 * MIB, 200000, 4, 0)
SCRIBBLE(refcounts_of_64_bits, 3, 512, 64, false, NONE, 4 * MIB, 60000, 4, 0)
/* Direct I/O: the core reads, patches and writes what is not aligned. */
SCRIBBLE(direct_small_clusters, 3, 512, 16, false, RAW_SHORT, 4 * MIB + 512, 60000, 20,
         BLK_O_DIRECT)
SCRIBBLE(direct_64k, 3, 65536, 16, false, QCOW2_LONG, 16 * MIB + 512, 200000, 20, BLK_O_DIRECT)

SCRIBBLE_EXTERNAL(data_file, false, 4096, 16, false, RAW_SHORT, 8 * MIB + 512, 100000, 5, 0)
SCRIBBLE_EXTERNAL(data_file_raw, true, 65536, 16, false, NONE, 16 * MIB + 7 * 512, 300000, 5, 0)
SCRIBBLE_EXTERNAL(data_file_direct, true, 512, 16, false, NONE, 4 * MIB + 512, 60000, 20,
                  BLK_O_DIRECT)

SCRIBBLE_AS(luks, "qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1", 65536,
            16 * MIB + 512, 300000, 10, 0)
SCRIBBLE_AS(luks_small_clusters, "qcow2", "encrypt.format=luks,encrypt.key-secret=s,"
            "encrypt.iter-time=1,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,"
            "encrypt.ivgen-alg=essiv", 512, 4 * MIB + 512, 60000, 20, 0)
SCRIBBLE_AS(aes, "qcow2", "encrypt.format=aes,encrypt.key-secret=s", 4096, 8 * MIB + 512, 100000,
            40, 0)
SCRIBBLE_WIDE(subclusters_of_512_over_a_shorter_raw_file, 16384, RAW_SHORT, 8 * MIB + 1536, 60000,
              2, 0)
SCRIBBLE_WIDE(subclusters_of_2k_over_a_longer_qcow2, 65536, QCOW2_LONG, 24 * MIB + 512, 200000,
              2, 0)
SCRIBBLE_WIDE(subclusters_of_64k, 2 << 20, NONE, 33 * MIB + 512, 3 << 20, 10, 0)
SCRIBBLE_AS(luks_subclusters, "qcow2", "extended_l2=on,encrypt.format=luks,encrypt.key-secret=s,"
            "encrypt.iter-time=1", 16384, 8 * MIB + 512, 60000, 20, 0)
SCRIBBLE_AS(aes_subclusters, "qcow2", "extended_l2=on,encrypt.format=aes,encrypt.key-secret=s",
            16384, 8 * MIB + 512, 100000, 40, 0)
static void data_file_raw_subclusters(void **state)
{
    static const struct layout lay = { 3, 16384, 16, false, NONE, 8 * MIB + 7 * 512, 60000, 10, 0,
                                       NULL, "extended_l2=on", true, true };
    scribble_on(&lay);
}
SCRIBBLE_WIDE(direct_subclusters, 16384, QCOW2_SHORT, 6 * MIB + 512, 60000, 20, BLK_O_DIRECT)

SCRIBBLE_AS(vdi, "vdi", NULL, 1 << 20, 24 * MIB + 512, 3 << 20, 10, 0)
SCRIBBLE_AS(vdi_static, "vdi", "static=on", 1 << 20, 24 * MIB + 512, 3 << 20, 20, 0)
SCRIBBLE_AS(vhdx, "vhdx", "block_size=1M", 1 << 20, 24 * MIB + 512, 3 << 20, 10, 0)
SCRIBBLE_AS(vhdx_fixed, "vhdx", "subformat=fixed,block_size=2M,block_state_zero=off", 2 << 20,
            23 * MIB + 512, 3 << 20, 40, 0)
SCRIBBLE_AS(vhdx_direct, "vhdx", "block_size=1M", 1 << 20, 9 * MIB + 512, 2 << 20, 40, BLK_O_DIRECT)
SCRIBBLE_AS(vmdk, "vmdk", NULL, 65536, 24 * MIB + 512, 600000, 5, 0)
SCRIBBLE_AS(vmdk_zero_grains, "vmdk", "zeroed_grain=on", 65536, 24 * MIB + 512, 600000, 10, 0)
SCRIBBLE_AS(vmdk_flat, "vmdk", "subformat=monolithicFlat", 65536, 24 * MIB + 512, 600000, 40, 0)
SCRIBBLE_AS(vmdk_split, "vmdk", "subformat=twoGbMaxExtentSparse", 65536, 24 * MIB + 512, 600000, 40, 0)
SCRIBBLE_AS(vmdk_direct, "vmdk", NULL, 65536, 9 * MIB + 512, 600000, 40, BLK_O_DIRECT)
SCRIBBLE_AS(vdi_direct, "vdi", NULL, 1 << 20, 9 * MIB + 512, 2 << 20, 40, BLK_O_DIRECT)
SCRIBBLE_AS(vpc, "vpc", "force_size=on", 2 << 20, 31 * MIB + 512, 3 << 20, 25, 0)
SCRIBBLE_AS(vpc_fixed, "vpc", "force_size=on,subformat=fixed", 2 << 20, 9 * MIB + 512, 3 << 20,
            20, 0)
SCRIBBLE_AS(parallels, "parallels", NULL, 1 << 20, 24 * MIB + 512, 3 << 20, 20, 0)
SCRIBBLE_AS(parallels_small_clusters, "parallels", "cluster_size=4k", 4096, 16 * MIB + 512,
            200000, 5, 0)
SCRIBBLE_AS(qcow, "qcow", NULL, 4096, 16 * MIB + 512, 200000, 5, 0)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clusters_of_512_over_a_shorter_raw_file),
        cmocka_unit_test(clusters_of_4k_over_a_longer_qcow2),
        cmocka_unit_test(clusters_of_64k_over_a_shorter_qcow2),
        cmocka_unit_test(clusters_of_2m_over_a_longer_raw_file),
        cmocka_unit_test(version_2_over_a_shorter_raw_file),
        cmocka_unit_test(version_2_without_backing),
        cmocka_unit_test(lazy_refcounts),
        cmocka_unit_test(refcounts_of_1_bit),
        cmocka_unit_test(refcounts_of_64_bits),
        cmocka_unit_test(direct_small_clusters),
        cmocka_unit_test(direct_64k),
        cmocka_unit_test(data_file),
        cmocka_unit_test(data_file_raw),
        cmocka_unit_test(data_file_direct),
        cmocka_unit_test(luks),
        cmocka_unit_test(luks_small_clusters),
        cmocka_unit_test(aes),
        cmocka_unit_test(subclusters_of_512_over_a_shorter_raw_file),
        cmocka_unit_test(subclusters_of_2k_over_a_longer_qcow2),
        cmocka_unit_test(subclusters_of_64k),
        cmocka_unit_test(direct_subclusters),
        cmocka_unit_test(luks_subclusters),
        cmocka_unit_test(aes_subclusters),
        cmocka_unit_test(data_file_raw_subclusters),
        cmocka_unit_test(vdi),
        cmocka_unit_test(vdi_static),
        cmocka_unit_test(vdi_direct),
        cmocka_unit_test(vmdk),
        cmocka_unit_test(vmdk_zero_grains),
        cmocka_unit_test(vmdk_flat),
        cmocka_unit_test(vmdk_split),
        cmocka_unit_test(vmdk_direct),
        cmocka_unit_test(vhdx),
        cmocka_unit_test(vhdx_fixed),
        cmocka_unit_test(vhdx_direct),
        cmocka_unit_test(vpc),
        cmocka_unit_test(vpc_fixed),
        cmocka_unit_test(parallels),
        cmocka_unit_test(parallels_small_clusters),
        cmocka_unit_test(qcow),
    };

    blk_program = "scribble";
    blk_object_add("secret,id=s,data=abc", NULL);
    cmocka_set_message_output(CM_OUTPUT_TAP);
    if (getenv("SCRIBBLE_ONLY")) {
        cmocka_set_test_filter(getenv("SCRIBBLE_ONLY"));
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    blk_objects_free();
    return failed;
}
