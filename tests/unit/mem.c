/*
 * mem.c (test) - the "mem" driver: sparse content at any offset, names that outlive
 * their nodes, and a random walk against a model.
 */
#include "block/driver.h"
#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define CHUNK 65536u

static struct blk_loop *loop;

static int open_mem(const char *name, const char *size, unsigned flags, struct blk_node **n)
{
    struct blk_opts *o = blk_opts_new();
    struct blk_open_args a = { .opts = o, .flags = flags };
    int ret;

    blk_opts_set(o, "driver", "mem");
    if (name)
        blk_opts_set(o, "filename", name);
    if (size)
        blk_opts_set(o, "size", size);
    ret = blk_open(loop, &a, n, NULL);
    blk_opts_free(o);
    return ret;
}

static int create_mem(const char *name, const char *size)
{
    struct blk_opts *o = blk_opts_new();
    int ret;

    blk_opts_set(o, "size", size);
    ret = blk_create(loop, "raw", name, o, NULL);
    blk_opts_free(o);
    return ret;
}

static int setup(void **state)
{
    loop = blk_loop_new(NULL);
    return loop ? 0 : -1;
}

static int teardown(void **state)
{
    blk_loop_free(loop);
    return 0;
}

static int far_body(void *arg)
{
    static const uint64_t at[] = { 0, CHUNK - 3, 1ull << 30, (1ull << 43) + 7, 1ull << 61 };
    struct blk_node *n = arg;
    char b[100], back[100];

    for (size_t i = 0; i < BLK_ARRAY_SIZE(at); i++) {
        memset(b, (int)i + 1, sizeof(b));
        assert_int_equal(co_write(n, at[i], b, sizeof(b), 0), 0);
    }
    for (size_t i = 0; i < BLK_ARRAY_SIZE(at); i++) {
        memset(b, (int)i + 1, sizeof(b));
        assert_int_equal(co_read(n, at[i], back, sizeof(back)), 0);
        assert_memory_equal(b, back, sizeof(b));
    }
    return 0;
}

static void content_at_any_offset_costs_what_was_written(void **state)
{
    struct blk_node *n;

    assert_int_equal(open_mem(NULL, "4E", BLK_O_RDWR, &n), 0);
    assert_int_equal(blk_size(n), 1ull << 62);
    assert_int_equal(blk_run(loop, far_body, n), 0);
    assert_int_equal(blk_allocated_size(n), 5 * CHUNK);
    assert_int_equal(blk_close(n, NULL), 0);
}

static int status_body(void *arg)
{
    struct blk_node *n = arg;
    struct blk_status st;
    char b[10] = "data";

    assert_int_equal(co_status(n, 0, 1ull << 40, &st), 0);
    assert_int_equal(st.length, 1ull << 40);
    assert_int_equal(st.flags & (BLK_ST_DATA | BLK_ST_ZERO), BLK_ST_ZERO);
    assert_int_equal(co_write(n, 1ull << 35, b, sizeof(b), 0), 0);
    assert_int_equal(co_status(n, 5, (1ull << 40) - 5, &st), 0);
    assert_int_equal(st.length, (1ull << 35) - 5);
    assert_int_equal(co_status(n, 1ull << 35, 1ull << 39, &st), 0);
    assert_int_equal(st.length, CHUNK);
    assert_true(st.flags & BLK_ST_DATA);
    assert_int_equal(co_status(n, (1ull << 35) + CHUNK, 1ull << 39, &st), 0);
    assert_int_equal(st.length, 1ull << 39);
    assert_true(st.flags & BLK_ST_ZERO);
    assert_int_equal(co_write_zeroes(n, 0, 1ull << 40, BLK_REQ_MAY_UNMAP), 0);
    assert_int_equal(blk_allocated_size(n), 0);
    return 0;
}

static void status_skips_what_was_never_written(void **state)
{
    struct blk_node *n;

    assert_int_equal(open_mem(NULL, "1T", BLK_O_RDWR, &n), 0);
    assert_int_equal(blk_run(loop, status_body, n), 0);
    assert_int_equal(blk_close(n, NULL), 0);
}

static int write_hello(void *arg) { return co_write(arg, 1000, "hello", 5, 0); }
static int read_hello(void *arg)
{
    char b[5];
    int ret = co_read(arg, 1000, b, 5);
    return ret ? ret : memcmp(b, "hello", 5);
}

static void a_named_store_is_there_again(void **state)
{
    struct blk_node *n, *old;

    assert_int_equal(open_mem("mem:none", NULL, 0, &n), -ENOENT);
    assert_int_equal(create_mem("mem:a", "1M"), 0);
    assert_int_equal(open_mem("mem:a", NULL, BLK_O_RDWR, &n), 0);
    assert_int_equal(blk_size(n), 1 << 20);
    assert_int_equal(blk_run(loop, write_hello, n), 0);
    assert_int_equal(blk_close(n, NULL), 0);
    assert_int_equal(open_mem("mem:a", NULL, 0, &old), 0);
    assert_int_equal(blk_run(loop, read_hello, old), 0);
    /* Made anew: who has the old one open keeps it. */
    assert_int_equal(create_mem("mem:a", "2M"), 0);
    assert_int_equal(blk_run(loop, read_hello, old), 0);
    assert_int_equal(open_mem("mem:a", NULL, 0, &n), 0);
    assert_int_equal(blk_size(n), 2 << 20);
    assert_int_not_equal(blk_run(loop, read_hello, n), 0);
    assert_int_equal(blk_close(n, NULL), 0);
    assert_int_equal(blk_close(old, NULL), 0);
}

static void shrinking_forgets_and_growing_gives_zeros(void **state)
{
    struct blk_node *n;
    uint64_t len;

    assert_int_equal(open_mem(NULL, "1M", BLK_O_RDWR, &n), 0);
    assert_int_equal(blk_run(loop, write_hello, n), 0);
    assert_int_equal(blk_truncate(n, 1002, true, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(blk_size(n), 1002);
    assert_int_equal(blk_storage_length(n, &len), 0);
    assert_int_equal(len, 1002);
    assert_int_equal(blk_truncate(n, 1 << 20, false, BLK_PREALLOC_OFF, NULL), 0);
    assert_int_not_equal(blk_run(loop, read_hello, n), 0);
    assert_int_equal(blk_close(n, NULL), 0);
}

#define WALK_SIZE (3u << 20)

static int walk_body(void *arg)
{
    struct blk_node *n = arg;
    uint8_t *model = calloc(1, WALK_SIZE), *buf = malloc(WALK_SIZE);
    unsigned rng = 7;

    for (int i = 0; i < 3000; i++) {
        uint64_t len, off;
        rng = rng * 1103515245u + 12345u;
        len = 1 + (rng >> 8) % (i % 10 ? 5000u : 300000u);
        rng = rng * 1103515245u + 12345u;
        off = (rng >> 4) % (WALK_SIZE - len);
        switch (i % 3) {
        case 0:
            memset(buf, i, len);
            memcpy(model + off, buf, len);
            assert_int_equal(co_write(n, off, buf, len, 0), 0);
            break;
        case 1:
            memset(model + off, 0, len);
            assert_int_equal(co_write_zeroes(n, off, len, 0), 0);
            break;
        default:
            assert_int_equal(co_read(n, off, buf, len), 0);
            assert_memory_equal(buf, model + off, len);
        }
    }
    assert_int_equal(co_read(n, 0, buf, WALK_SIZE), 0);
    assert_memory_equal(buf, model, WALK_SIZE);
    free(model);
    free(buf);
    return 0;
}

static void random_requests_agree_with_a_model(void **state)
{
    struct blk_node *n;

    assert_int_equal(open_mem(NULL, "3M", BLK_O_RDWR, &n), 0);
    assert_int_equal(blk_run(loop, walk_body, n), 0);
    assert_int_equal(blk_close(n, NULL), 0);
}

static void nonsense_is_refused(void **state)
{
    struct blk_node *n;

    assert_true(open_mem(NULL, "x", 0, &n) < 0);
    assert_true(open_mem(NULL, "9E", 0, &n) < 0);
    assert_true(create_mem("mem:", "1M") < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(content_at_any_offset_costs_what_was_written),
        cmocka_unit_test(status_skips_what_was_never_written),
        cmocka_unit_test(a_named_store_is_there_again),
        cmocka_unit_test(shrinking_forgets_and_growing_gives_zeros),
        cmocka_unit_test(random_requests_agree_with_a_model),
        cmocka_unit_test(nonsense_is_refused),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
