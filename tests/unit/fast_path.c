/*
 * fast_path.c - a read or overwrite of an allocated, cached qcow2 cluster or of a
 * block of a block map, and a read through a deep chain, cost no fiber switch and no allocation: both are
 * counted, the core's own counters and malloc itself.
 */
#include "block/block.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define REQUESTS 1000
#define DEPTH 20

static unsigned long mallocs;
#ifndef __SANITIZE_ADDRESS__
/* Every allocation of the process comes through here. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t m);
void *__libc_realloc(void *p, size_t n);
void *malloc(size_t n) { mallocs++; return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { mallocs++; return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { mallocs++; return __libc_realloc(p, n); }
#endif

static char dir[64];

static char *path(int i)
{
    static char buf[128];
    snprintf(buf, sizeof(buf), "%s/%d.qcow2", dir, i);
    return buf;
}

static const char *format = "qcow2", *extended_l2 = "off";

static struct blk_node *open_image(struct blk_loop *l, int i, unsigned flags)
{
    struct blk_open_args a = { .filename = path(i), .format = format, .flags = flags };
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n;
    if (blk_open(l, &a, &n, &e)) {
        fail_msg("%s", e.text);
    }
    return n;
}

static void create_image(struct blk_loop *l, int i, bool backed)
{
    struct blk_opts *o = blk_opts_new();
    struct blk_error e = BLK_ERROR_INIT;
    char name[32];
    blk_opts_set(o, "size", "4M");
    if (!strcmp(format, "qcow2")) {
        blk_opts_set(o, "extended_l2", extended_l2);
    }
    if (backed) {
        snprintf(name, sizeof(name), "%d.qcow2", i - 1);
        blk_opts_set(o, "backing_file", name);
        blk_opts_set(o, "backing_fmt", "qcow2");
    }
    if (blk_create(l, format, path(i), o, &e)) {
        fail_msg("%s", e.text);
    }
    blk_opts_free(o);
}

static int fill(void *arg)
{
    struct blk_node *n = arg;
    char *buf = calloc(1, 1 << 20);
    memset(buf, 0x77, 1 << 20);
    int err = co_write(n, 0, buf, 1 << 20, 0);
    free(buf);
    return err ? err : co_flush(n);
}

struct run {
    struct blk_req req;
    struct blk_node *n;
    struct iovec iov;
    char buf[4096];
    int left;
};

static void next(struct blk_req *req)
{
    struct run *r = req->arg;
    assert_int_equal(req->result, 0);
    if (r->left-- > 0) {
        req->offset = (uint64_t)(r->left % 250) * 4096;
        blk_submit(r->n, req);
    }
}

static void drive(struct blk_loop *l, struct run *r, enum blk_op op, int count)
{
    r->left = count;
    r->iov = (struct iovec){ r->buf, sizeof(r->buf) };
    r->req = (struct blk_req){ .op = op, .length = sizeof(r->buf), .iov = &r->iov, .iovcnt = 1,
                               .done = next, .arg = r };
    blk_submit(r->n, &r->req);
    while (r->left >= 0) {
        blk_loop_turn(l, true);
    }
}

/* Warm up, then count. */
static void measure(struct blk_loop *l, struct blk_node *n, enum blk_op op)
{
    struct run *r = calloc(1, sizeof(*r));
    r->n = n;
    drive(l, r, op, 300);
    struct blk_counters before = *blk_loop_counters(l);
    unsigned long mallocs_before = mallocs;
    drive(l, r, op, REQUESTS);
    const struct blk_counters *after = blk_loop_counters(l);
    assert_int_equal(mallocs, mallocs_before);
    assert_int_equal(after->fiber_switches, before.fiber_switches);
    assert_int_equal(after->fibers_started, before.fibers_started);
    assert_int_equal(after->allocations, before.allocations);
    assert_int_equal(after->forwards - before.forwards, REQUESTS + 1);
    free(r);
}

static void reads_and_overwrites_switch_and_allocate_nothing(void **state)
{
    struct blk_loop *l = blk_loop_new(NULL);
    create_image(l, 0, false);
    struct blk_node *n = open_image(l, 0, BLK_O_RDWR);
    assert_int_equal(blk_run(l, fill, n), 0);
    measure(l, n, BLK_READ);
    measure(l, n, BLK_WRITE);
    assert_int_equal(blk_close(n, NULL), 0);
    blk_loop_free(l);
}

static void formats_with_a_block_map_do_neither(void **state)
{
    static const char *const formats[] = { "vdi", "vpc", "parallels", "qcow" };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(formats); i++) {
        format = formats[i];
        reads_and_overwrites_switch_and_allocate_nothing(state);
        unlink(path(0));
    }
    format = "qcow2";
}

static void subclusters_do_neither(void **state)
{
    extended_l2 = "on";
    reads_and_overwrites_switch_and_allocate_nothing(state);
    unlink(path(0));
    extended_l2 = "off";
}

static void a_read_through_a_deep_chain_costs_the_same(void **state)
{
    struct blk_loop *l = blk_loop_new(NULL);
    for (int i = 1; i < DEPTH; i++) {
        create_image(l, i, true);
    }
    struct blk_node *n = open_image(l, DEPTH - 1, 0);
    measure(l, n, BLK_READ);
    assert_int_equal(blk_close(n, NULL), 0);
    blk_loop_free(l);
}

static void an_allocating_write_does_use_a_fiber(void **state)
{
    /* The counters count: what must wait is seen by them. */
    struct blk_loop *l = blk_loop_new(NULL);
    create_image(l, DEPTH, false);
    struct blk_node *n = open_image(l, DEPTH, BLK_O_RDWR);
    struct run *r = calloc(1, sizeof(*r));
    r->n = n;
    struct blk_counters before = *blk_loop_counters(l);
    drive(l, r, BLK_WRITE, 0);
    assert_true(blk_loop_counters(l)->fibers_started > before.fibers_started);
    assert_true(blk_loop_counters(l)->fiber_switches > before.fiber_switches);
    free(r);
    assert_int_equal(blk_close(n, NULL), 0);
    blk_loop_free(l);
}

#define TABLES 32
#define TABLE_MS 50

static void count_down(struct blk_req *req)
{
    assert_int_equal(req->result, 0);
    --*(int *)req->arg;
}

/* Of reads and overwrites, on storage that takes its time. */
static void l2_tables_are_read_side_by_side(void **state)
{
    struct blk_opts *create = blk_opts_new(), *o = blk_opts_new();
    struct blk_loop *l = blk_loop_new(NULL);
    static struct blk_req req[TABLES];
    static char buf[4096];
    struct iovec iov = { buf, sizeof(buf) };
    struct blk_node *n;

    blk_opts_set(create, "size", "64M");
    blk_opts_set(create, "cluster_size", "4k");
    blk_opts_set(create, "preallocation", "metadata");
    assert_int_equal(blk_create(l, "qcow2", path(0), create, NULL), 0);
    blk_opts_set(o, "driver", "qcow2");
    blk_opts_set(o, "file.driver", "delay");
    blk_opts_set(o, "file.op", "read");
    blk_opts_setf(o, "file.us", "%d", TABLE_MS * 1000);
    blk_opts_set(o, "file.file.filename", path(0));
    for (enum blk_op op = BLK_READ; op <= BLK_WRITE; op++) {
        int left = TABLES;
        assert_int_equal(blk_open(l, &(struct blk_open_args){ .opts = o, .flags = BLK_O_RDWR },
                                  &n, NULL), 0);
        uint64_t start = blk_now_ns();
        for (int i = 0; i < TABLES; i++) {
            req[i] = (struct blk_req){ .op = op, .offset = (uint64_t)i << 21, .length = 4096,
                                       .iov = &iov, .iovcnt = 1, .done = count_down,
                                       .arg = &left };
            blk_submit(n, &req[i]);
        }
        while (left) {
            blk_loop_turn(l, true);
        }
        assert_true(blk_now_ns() - start < TABLES * TABLE_MS * 1000000ull / 2);
        assert_int_equal(blk_close(n, NULL), 0);
    }
    blk_opts_free(create);
    blk_opts_free(o);
    blk_loop_free(l);
    unlink(path(0));
}

static int make_dir(void **state)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof(dir), "%s/platter-fast.XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    for (int i = 0; i <= DEPTH; i++) {
        unlink(path(i));
    }
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(formats_with_a_block_map_do_neither),
        cmocka_unit_test(subclusters_do_neither),
        cmocka_unit_test(reads_and_overwrites_switch_and_allocate_nothing),
        cmocka_unit_test(a_read_through_a_deep_chain_costs_the_same),
        cmocka_unit_test(an_allocating_write_does_use_a_fiber),
        cmocka_unit_test(l2_tables_are_read_side_by_side),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
