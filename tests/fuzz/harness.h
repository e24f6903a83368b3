/*
 * harness.h - fuzz harness: any bytes as an image of FUZZ_FORMAT, which the file that
 * includes this defines.  It is asked, opened, walked, read, checked, written, discarded
 * and repaired; nothing of that may crash, hang, leak or read out of bounds.  What any of
 * it answers does not matter here.
 *
 * FUZZ_HEADER: bytes of the header, which is changed more often than the rest.
 * FUZZ_LITTLE: numbers are little endian.
 * FUZZ_LOAD(node, data, size), FUZZ_SIZE: how the bytes become an image of that size, where
 * they are not that themselves.  Fiber.
 *
 * FUZZ_START(loop): called once, before all.
 * FUZZ_OPTIONS: with which it is opened, "key=value,...".
 *
 * With clang's libFuzzer (make fuzz) LLVMFuzzerTestOneInput is called by that.  On
 * its own (tests/fuzz/corpus.t) it runs files once, and mutations of them:
 *   NAME [-n MUTATIONS] [-s SEED] FILE...
 * When a run dies, the input is in the file FUZZ_LAST names, if set.
 */
#include "block/block.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef FUZZ_LITTLE
#define FUZZ_LITTLE 0
#endif
#define READ_MAX (1u << 20)         /* guest bytes looked at */
#define INPUT_MAX (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct ctx {
    struct blk_loop *loop;
    struct blk_node *node;
    const uint8_t *data;
    size_t size;
};

static void quiet(void *arg, const char *line)
{
}

static void on_message(void *arg, bool is_error, const char *line)
{
}

static struct blk_node *open_as(struct ctx *c, const char *format, unsigned flags)
{
    struct blk_open_args a = { .filename = "mem:fuzz", .format = format,
                               .flags = flags | BLK_O_NO_BACKING };
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n = NULL;

#ifdef FUZZ_OPTIONS
    struct blk_opts *o = blk_opts_new();
    if (strcmp(format, "raw")) {
        blk_opts_parse(o, FUZZ_OPTIONS, NULL, NULL);
        a.opts = o;
    }
    int ret = blk_open(c->loop, &a, &n, &e);
    blk_opts_free(o);
#else
    int ret = blk_open(c->loop, &a, &n, &e);
#endif
    return ret < 0 ? NULL : n;
}

static int load_fiber(void *arg)
{
    struct ctx *c = arg;

#ifdef FUZZ_LOAD
    return FUZZ_LOAD(c->node, c->data, c->size);
#else
    return co_write(c->node, 0, c->data, c->size, 0);
#endif
}

static bool load(struct ctx *c)
{
    struct blk_opts *o = blk_opts_new();
    struct blk_error e = BLK_ERROR_INIT;

#ifdef FUZZ_SIZE
    blk_opts_setf(o, "size", "%u", FUZZ_SIZE);
#else
    blk_opts_setf(o, "size", "%zu", c->size);
#endif
    int ret = blk_create(c->loop, "raw", "mem:fuzz", o, &e);
    blk_opts_free(o);
    if (ret < 0 || !(c->node = open_as(c, "raw", BLK_O_RDWR)))
        return false;
    ret = blk_run(c->loop, load_fiber, c);
    blk_close(c->node, NULL);
    return ret == 0;
}

static void check(struct ctx *c, int fix)
{
    struct blk_check k = { .message = on_message };
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n = open_as(c, FUZZ_FORMAT, BLK_O_CHECK | (fix ? BLK_O_RDWR : 0));

    if (n)
        blk_check(n, &k, fix, &e);
    blk_close(n, NULL);
}

/* Where the interesting parts of a disk of this size are. */
static uint64_t place(uint64_t size, int i)
{
    const uint64_t at[] = { 0, 512, 4096, 65536, size / 2, size > 4096 ? size - 4096 : 0 };

    return at[i] < size ? at[i] : 0;
}

static int look_fiber(void *arg)
{
    struct ctx *c = arg;
    uint64_t size = blk_size(c->node), off = 0;
    uint8_t *buf = malloc(READ_MAX);
    struct blk_status st;

    for (int i = 0; i < 200 && off < size; i++) {
        if (co_status(c->node, off, size - off, &st) < 0 || !st.length)
            break;
        off += st.length;
    }
    for (int i = 0; buf && i < 6; i++) {
        uint64_t at = place(size, i), len = size - at;

        co_read(c->node, at, buf, (size_t)BLK_MIN(len, i == 0 ? READ_MAX : 8192u));
    }
    free(buf);
    return 0;
}

static int write_fiber(void *arg)
{
    struct ctx *c = arg;
    uint64_t size = blk_size(c->node);
    uint8_t buf[3000];

    memset(buf, 0x5a, sizeof(buf));
    for (int i = 0; i < 6; i++) {
        uint64_t at = place(size, i), len = size - at;

        co_write(c->node, at, buf, (size_t)BLK_MIN(len, sizeof(buf)), 0);
        if (i % 2)
            co_discard(c->node, at, BLK_MIN(len, 70000u));
        else
            co_write_zeroes(c->node, at, BLK_MIN(len, 5000u), BLK_REQ_MAY_UNMAP);
    }
    return co_flush(c->node);
}

static void facts(struct ctx *c)
{
    struct blk_open_args a = { .filename = "mem:fuzz", .format = FUZZ_FORMAT };
    struct blk_facts f;

    if (blk_read_facts(c->loop, &a, &f, NULL) == 0)
        blk_facts_free(&f);
}

static void use(struct ctx *c)
{
    struct blk_info info = { 0 };

    c->node = open_as(c, FUZZ_FORMAT, 0);
    if (!c->node)
        return;
    if (blk_get_info(c->node, &info, NULL) == 0)
        blk_info_free(&info);
    blk_run(c->loop, look_fiber, c);
    blk_close(c->node, NULL);
    c->node = open_as(c, FUZZ_FORMAT, BLK_O_RDWR | BLK_O_UNMAP);
    if (c->node)
        blk_run(c->loop, write_fiber, c);
    blk_close(c->node, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct blk_loop *loop;
    struct ctx c = { .data = data, .size = size };

    if (!loop) {
        blk_set_report(quiet, NULL);
        loop = blk_loop_new(NULL);
#ifdef FUZZ_START
        FUZZ_START(loop);
#endif
    }
    c.loop = loop;
    if (!loop || !size || size > INPUT_MAX || !load(&c))
        return 0;
    facts(&c);
    check(&c, 0);
    use(&c);
    check(&c, 0);
    if (load(&c))
        check(&c, BLK_FIX_LEAKS | BLK_FIX_ERRORS);
    return 0;
}

#ifndef FUZZ_LIBFUZZER
static uint64_t rng;

static uint64_t rnd_below(uint64_t n)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (rng * 0x2545f4914f6cdd1dull >> 11) % n;
}

/* Mostly whole fields become values that matter; some single bits; some cuts. */
static size_t mutate(uint8_t *p, size_t size)
{
    static const uint64_t value[] = {
        0, 1, 0xff, 0x200, 0x400, 0x10000, 0xffffffff, 0x80000000, 1ull << 40, 1ull << 55,
        1ull << 56, 1ull << 62, 1ull << 63, ~0ull, 0x8000000000000200ull, 0x4000000000000400ull,
    };
    unsigned changes = 1 + (unsigned)rnd_below(4);

    while (changes--) {
        bool header = !rnd_below(3);
        size_t at = (size_t)rnd_below(header && size > FUZZ_HEADER ? FUZZ_HEADER : size);
        uint64_t v = rnd_below(2) ? value[rnd_below(BLK_ARRAY_SIZE(value))]
                                  : rnd_below(size / 512 + 2) * 512 | rnd_below(4) << 62;
        uint8_t raw[8], *low = raw + (FUZZ_LITTLE ? 0 : 4);

        for (int i = 0; i < 8; i++)
            raw[i] = (uint8_t)(v >> (FUZZ_LITTLE ? 8 * i : 56 - 8 * i));
        switch (rnd_below(6)) {
        case 0: p[at] ^= (uint8_t)(1u << rnd_below(8)); break;
        case 1: p[at] = (uint8_t)v; break;
        case 2: at = at / 4 * 4; memcpy(p + at, low, BLK_MIN((size_t)4, size - at)); break;
        default: at = at / 8 * 8; memcpy(p + at, raw, BLK_MIN((size_t)8, size - at)); break;
        }
    }
    return rnd_below(20) ? size : (size_t)rnd_below(size);
}

static void keep(const uint8_t *p, size_t size)
{
    const char *name = getenv("FUZZ_LAST");
    int fd = name ? open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;

    if (fd >= 0) {
        if (write(fd, p, size) != (ssize_t)size)
            perror(name);
        close(fd);
    }
}

static int run_file(const char *name, unsigned long mutations)
{
    FILE *f = fopen(name, "rb");
    uint8_t *orig = malloc(INPUT_MAX), *p = malloc(INPUT_MAX);

    if (!f || !orig || !p) {
        perror(name);
        exit(2);
    }
    size_t size = fread(orig, 1, INPUT_MAX, f);
    fclose(f);
    keep(orig, size);
    LLVMFuzzerTestOneInput(orig, size);
    for (unsigned long i = 0; size && i < mutations; i++) {
        memcpy(p, orig, size);
        size_t n = mutate(p, size);
        keep(p, n);
        LLVMFuzzerTestOneInput(p, n);
    }
    free(orig);
    free(p);
    return 0;
}

int main(int argc, char **argv)
{
    unsigned long mutations = 0;
    int c;

    rng = 88172645463325252ull;
    while ((c = getopt(argc, argv, "n:s:")) != -1) {
        if (c == 'n')
            mutations = strtoul(optarg, NULL, 0);
        else if (c == 's')
            rng ^= strtoull(optarg, NULL, 0) * 0x9e3779b97f4a7c15ull;
        else
            return 2;
    }
    for (int i = optind; i < argc; i++)
        run_file(argv[i], mutations);
    return 0;
}
#endif
