/*
 * luks.c - fuzz harness: a LUKS header, behind it the key material and payload of an image
 * made at the start, whose password opens what the input leaves as it was.  Fields that
 * belong to its key (digest, salts) stand in the input as zeros; see luks_seeds() in
 * corpus.py.
 */
#include "block/driver.h"
#include <string.h>

#define FUZZ_FORMAT "luks"
#define FUZZ_HEADER 400             /* two slots and all before them */
#define FUZZ_OPTIONS "key-secret=s"
#define FUZZ_SIZE (576u << 10)
#define FUZZ_START make_base
#define FUZZ_LOAD load_header

#define HEAD 1024u
/* Or a run takes as long as it is asked to; above 100 millions it must not begin. */
#define DEAR 2000u
#define REFUSED 100000000u

static uint8_t base[FUZZ_SIZE];

static int read_base(void *arg)
{
    return co_read(arg, 0, base, sizeof(base));
}

static void make_base(struct blk_loop *l)
{
    struct blk_open_args a = { .filename = "mem:base", .format = "raw" };
    struct blk_opts *o = blk_opts_new();
    struct blk_node *n = NULL;
    struct blk_error e = BLK_ERROR_INIT;

    blk_opts_parse(o, "size=32k,key-secret=s,iter-time=1,cipher-alg=aes-128,cipher-mode=cbc,"
                   "ivgen-alg=plain64,hash-alg=sha1", NULL, NULL);
    if (blk_object_add("secret,id=s,data=abc", &e) || blk_create(l, "luks", "mem:base", o, &e) ||
        blk_open(l, &a, &n, &e) || blk_run(l, read_base, n))
        __builtin_trap();
    blk_close(n, NULL);
    blk_opts_free(o);
}

static void take(uint8_t *head, size_t at, size_t len)
{
    static const uint8_t zeros[32];

    if (!memcmp(head + at, zeros, len))
        memcpy(head + at, base + at, len);
}

static void iterations(uint8_t *head, size_t at)
{
    uint32_t n = be32(head + at);

    if (n == 1 && be32(base + at))
        memcpy(head + at, base + at, 4);
    else if (n > DEAR && n <= REFUSED)
        put_be32(head + at, DEAR);
}

static int load_header(struct blk_node *n, const uint8_t *data, size_t size)
{
    uint8_t head[HEAD] = { 0 };
    int err = co_write(n, 0, base, sizeof(base), 0);

    memcpy(head, data, BLK_MIN(size, HEAD));
    take(head, 112, 20);
    take(head, 132, 32);
    take(head, 208 + 8, 32);
    iterations(head, 164);
    for (size_t i = 0; i < 8; i++)
        iterations(head, 208 + 48 * i + 4);
    return err ? err : co_write(n, 0, head, HEAD, 0);
}

#include "tests/fuzz/harness.h"
