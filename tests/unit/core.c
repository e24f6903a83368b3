/*
 * core.c - the block core over "mem": requests of any offset and length, growth,
 * zero-fill past the end, fibers and queues.
 */
#include "block/driver.h"
#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct blk_node *open_mem(struct blk_loop *l, const char *size)
{
    struct blk_opts *o = blk_opts_new();
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n;
    blk_opts_set(o, "driver", "raw");
    blk_opts_set(o, "file.driver", "mem");
    blk_opts_set(o, "file.size", size);
    struct blk_open_args a = { .opts = o, .flags = BLK_O_RDWR };
    int err = blk_open(l, &a, &n, &e);
    if (err) {
        fail_msg("%s", e.text);
    }
    blk_opts_free(o);
    return n;
}

static int rw_body(void *arg)
{
    struct blk_node *n = arg;
    char buf[3000], back[3000];
    memset(buf, 0x5a, sizeof(buf));
    assert_int_equal(co_write(n, 777, buf, sizeof(buf), 0), 0);
    assert_int_equal(co_read(n, 777, back, sizeof(back)), 0);
    assert_memory_equal(buf, back, sizeof(buf));
    assert_int_equal(co_write_zeroes(n, 1000, 500, 0), 0);
    assert_int_equal(co_read(n, 1000, back, 500), 0);
    assert_true(blk_is_zero(back, 500));
    assert_int_equal(co_read(n, 999, back, 1), 0);
    assert_int_equal(back[0], 0x5a);
    assert_int_equal(co_flush(n), 0);
    return 0;
}

static void reads_and_writes_at_odd_offsets(void **state)
{
    struct blk_loop *l = blk_loop_new(NULL);
    struct blk_node *n = open_mem(l, "1M");
    assert_int_equal(blk_run(l, rw_body, n), 0);
    assert_int_equal(blk_close(n, NULL), 0);
    blk_loop_free(l);
}

static int past_end_body(void *arg)
{
    struct blk_node *n = arg;
    char buf[1024];
    memset(buf, 1, sizeof(buf));
    assert_int_equal(co_read(n, blk_size(n) - 100, buf, sizeof(buf)), 0);
    assert_true(blk_is_zero(buf, sizeof(buf)));
    assert_int_equal(co_write(n, UINT64_MAX - 10, buf, 100, 0), -EIO);
    assert_int_equal(co_write(n, blk_size(n), buf, 512, 0), -ENOSPC);
    return 0;
}

static void reads_past_the_end_are_zeros_and_writes_refused(void **state)
{
    struct blk_loop *l = blk_loop_new(NULL);
    struct blk_node *n = open_mem(l, "4096");
    assert_int_equal(blk_run(l, past_end_body, n), 0);
    assert_int_equal(blk_close(n, NULL), 0);
    blk_loop_free(l);
}

static int traced_body(void *arg)
{
    struct blk_node *n = arg;
    char buf[512] = { 0 };
    for (int i = 0; i < 10; i++) {
        assert_int_equal(co_write(n, 0, buf, sizeof(buf), 0), 0);
    }
    blk_set_tracing(blk_node_loop(n), true);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(co_read(n, 0, buf, sizeof(buf)), 0);
    }
    return 0;
}

static void each_layer_counts_and_times_its_requests(void **state)
{
    struct blk_loop *l = blk_loop_new(NULL);
    struct blk_node *n = open_mem(l, "1M");
    assert_int_equal(blk_run(l, traced_body, n), 0);
    for (struct blk_node *at = n; at; at = blk_file(at)) {
        const struct blk_stats *s = blk_node_stats(at);
        uint64_t timed[2] = { 0 };
        for (size_t i = 0; i < BLK_ARRAY_SIZE(s->latency[0]); i++) {
            timed[0] += s->latency[BLK_WRITE][i];
            timed[1] += s->latency[BLK_READ][i];
        }
        assert_int_equal(s->ops[BLK_WRITE], 10);
        assert_int_equal(s->ops[BLK_READ], 20);
        assert_int_equal(s->bytes[BLK_READ], 20 * 512);
        assert_int_equal(timed[0], 0);              /* tracing was off */
        assert_int_equal(timed[1], 20);
        assert_true(s->latency_max[BLK_READ] >= blk_stats_quantile(s->latency[BLK_READ], 0) / 2);
    }
    assert_int_equal(blk_close(n, NULL), 0);
    blk_loop_free(l);
}

static struct co_mutex lock;
static int order[3], at;

static void locker(void *arg)
{
    co_lock(&lock);
    co_sleep(1000000);
    order[at++] = (int)(intptr_t)arg;
    co_unlock(&lock);
}

static int wait_three(void *arg)
{
    while (at < 3) {
        co_pass();
    }
    return 0;
}

static void mutexes_are_fair(void **state)
{
    struct blk_loop *l = blk_loop_new(NULL);
    for (intptr_t i = 0; i < 3; i++) {
        assert_int_equal(co_start(l, locker, (void *)i), 0);
    }
    blk_run(l, wait_three, NULL);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(order[i], i);
    }
    blk_loop_free(l);
}

static void square(void *arg)
{
    *(int *)arg *= *(int *)arg;
}

static int work_body(void *arg)
{
    int v = 7;
    co_work(square, &v);
    return v;
}

static void work_runs_on_the_pool_and_returns_to_its_fiber(void **state)
{
    struct blk_loop *l = blk_loop_new(NULL);
    assert_int_equal(blk_run(l, work_body, NULL), 49);
    blk_loop_free(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_and_writes_at_odd_offsets),
        cmocka_unit_test(reads_past_the_end_are_zeros_and_writes_refused),
        cmocka_unit_test(each_layer_counts_and_times_its_requests),
        cmocka_unit_test(mutexes_are_fair),
        cmocka_unit_test(work_runs_on_the_pool_and_returns_to_its_fiber),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
