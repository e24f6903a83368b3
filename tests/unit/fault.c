/*
 * fault.c (test) - the fault and delay filters over "mem": the N-th operation fails
 * and no other, what is cut stays cut, and held back requests wait side by side.
 */
#include "block/driver.h"
#include <errno.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct blk_loop *loop;

static int open_filter(const char *opts, struct blk_node **n, struct blk_error *e)
{
    struct blk_opts *o = blk_opts_new();
    struct blk_open_args a = { .opts = o, .flags = BLK_O_RDWR | BLK_O_UNMAP };
    int ret;

    assert_int_equal(blk_opts_parse(o, opts, "driver", e), 0);
    blk_opts_set(o, "file.driver", "mem");
    blk_opts_set(o, "file.size", "1M");
    ret = blk_open(loop, &a, n, e);
    blk_opts_free(o);
    return ret;
}

static struct blk_node *filter(const char *opts)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n;

    if (open_filter(opts, &n, &e) < 0)
        fail_msg("%s: %s", opts, e.text);
    return n;
}

/* "r", "w", "z", "d", "f", "t" (truncate) in turn; what each returned. */
struct script {
    struct blk_node *n;
    const char *ops;
    uint64_t off;
    int got[16];
};

static int script_body(void *arg)
{
    struct script *s = arg;
    char b[512] = "x";

    for (size_t i = 0; s->ops[i]; i++) {
        switch (s->ops[i]) {
        case 'r': s->got[i] = co_read(s->n, s->off, b, sizeof(b)); break;
        case 'w': s->got[i] = co_write(s->n, s->off, b, sizeof(b), 0); break;
        case 'z': s->got[i] = co_write_zeroes(s->n, s->off, 4096, 0); break;
        case 'd': s->got[i] = co_discard(s->n, s->off, 65536); break;
        case 'f': s->got[i] = co_flush(s->n); break;
        case 't': s->got[i] = blk_truncate(s->n, 1 << 20, true, BLK_PREALLOC_OFF, NULL); break;
        default: fail();
        }
    }
    return 0;
}

/* want: one letter an operation, '.' fine, 'E' fails with err. */
static void check_script(struct blk_node *n, const char *ops, const char *want, int err)
{
    struct script s = { .n = n, .ops = ops };

    assert_int_equal(blk_run(loop, script_body, &s), 0);
    for (size_t i = 0; ops[i]; i++)
        assert_int_equal(s.got[i], want[i] == 'E' ? -err : 0);
}

static void run_script(const char *opts, const char *ops, const char *want, int err)
{
    struct blk_node *n = filter(opts);

    check_script(n, ops, want, err);
    blk_close(n, NULL);
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

static void the_nth_operation_fails_and_no_other(void **state)
{
    run_script("fault", "rwr", "E..", EIO);
    run_script("fault,op=write,nth=3", "wwwwrw", "..E...", EIO);
    run_script("fault,op=read,nth=2,errno=ENOSPC", "rwrr", "..E.", ENOSPC);
    run_script("fault,op=zero,errno=28", "wzz", ".E.", 28);
    run_script("fault,op=discard,nth=1,errno=EROFS", "zdd", ".E.", EROFS);
    run_script("fault,op=truncate,errno=EFBIG", "wtt", ".E.", EFBIG);
    run_script("fault,nth=0", "rwzdft", "......", EIO);
    run_script("fault,op=any,nth=4", "rwzdf", "...E.", EIO);
}

static void sticky_faults_stay(void **state)
{
    run_script("fault,op=write,nth=2,sticky=on,errno=ENOSPC", "wwrwrw", ".E.E.E", ENOSPC);
}

static void a_failed_flush_passes_up(void **state)
{
    run_script("fault,op=flush,nth=2", "fwfw", "..E.", EIO);
}

static void after_the_cut_nothing_gets_through(void **state)
{
    struct blk_node *n = filter("fault,op=write,nth=2,cut=on");
    struct script under = { .ops = "r" };

    check_script(n, "wwrwz", ".EEEE", EIO);
    /* Below, nothing of it has arrived. */
    under.n = blk_file(n);
    assert_int_equal(blk_allocated_size(n), 65536);
    assert_int_equal(blk_run(loop, script_body, &under), 0);
    assert_int_equal(under.got[0], 0);
    blk_close(n, NULL);
}

static void a_range_limits_what_counts(void **state)
{
    struct blk_node *n = filter("fault,op=write,offset=4k,length=1k");
    struct script s = { .n = n, .ops = "w" };
    static const struct { uint64_t off; int want; } at[] = {
        { 0, 0 }, { 4096 - 512, 0 }, { 5120, 0 }, { 5119, -EIO }, { 4096, 0 },
    };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(at); i++) {
        s.off = at[i].off;
        assert_int_equal(blk_run(loop, script_body, &s), 0);
        assert_int_equal(s.got[0], at[i].want);
    }
    blk_close(n, NULL);
}

static void close_can_fail(void **state)
{
    struct blk_error e = BLK_ERROR_INIT;

    assert_int_equal(blk_close(filter("fault,op=close,errno=EDQUOT"), &e), -EDQUOT);
    assert_non_null(strstr(e.text, "Could not close"));
}

static void holes_shine_through(void **state)
{
    struct blk_node *n = filter("fault,nth=0");
    struct blk_status st;
    struct script s = { .n = n, .ops = "w", .off = 131072 };
    uint64_t len;

    assert_int_equal(blk_run(loop, script_body, &s), 0);
    assert_int_equal(blk_storage_length(n, &len), 0);
    assert_int_equal(len, 1 << 20);
    assert_int_equal(blk_size(n), 1 << 20);
    assert_int_equal(co_status_above(n, NULL, 0, 1 << 20, &st), 0);
    assert_true(st.flags & BLK_ST_ZERO);
    assert_int_equal(st.length, 131072);
    blk_close(n, NULL);
}

static void unknown_words_are_refused(void **state)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n;

    assert_true(open_filter("fault,op=sneeze", &n, &e) < 0);
    assert_non_null(strstr(e.text, "sneeze"));
    assert_true(open_filter("fault,errno=ENOPE", &n, NULL) < 0);
    assert_true(open_filter("fault,errno=0", &n, NULL) < 0);
    assert_true(open_filter("fault,colour=red", &n, NULL) < 0);
    assert_true(open_filter("delay,op=sneeze", &n, NULL) < 0);
    assert_true(open_filter("delay,us=99999999999999", &n, NULL) < 0);
}

/* ---- delay -------------------------------------------------------------------------- */

static int eight_reads(void *arg)
{
    static char b[8][512];
    static struct iovec iov[8];
    static struct blk_req req[8];
    struct co_batch batch = { 0 };

    for (int i = 0; i < 8; i++) {
        iov[i] = (struct iovec){ b[i], 512 };
        req[i] = (struct blk_req){ .op = BLK_READ, .offset = 512u * (unsigned)i, .length = 512,
                                   .iov = &iov[i], .iovcnt = 1 };
        co_batch_add(&batch, arg, &req[i]);
    }
    return co_batch_wait(&batch);
}

static void held_back_requests_wait_side_by_side(void **state)
{
    struct blk_node *n = filter("delay,us=50000,op=read");
    uint64_t t = blk_now_ns();

    check_script(n, "wzf", "...", 0);
    assert_true(blk_now_ns() - t < 40000000);
    t = blk_now_ns();
    assert_int_equal(blk_run(loop, eight_reads, n), 0);
    t = blk_now_ns() - t;
    assert_true(t >= 50000000);
    assert_true(t < 8 * 50000000ull);
    blk_close(n, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_nth_operation_fails_and_no_other),
        cmocka_unit_test(sticky_faults_stay),
        cmocka_unit_test(a_failed_flush_passes_up),
        cmocka_unit_test(after_the_cut_nothing_gets_through),
        cmocka_unit_test(a_range_limits_what_counts),
        cmocka_unit_test(close_can_fail),
        cmocka_unit_test(holes_shine_through),
        cmocka_unit_test(unknown_words_are_refused),
        cmocka_unit_test(held_back_requests_wait_side_by_side),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, setup, teardown);
}
