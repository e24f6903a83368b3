/*
 * merge.c - small reads that follow each other reach the storage as one, and each is
 * answered as if it had gone alone.
 */
#include "block/internal.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

#define READS 16
#define PIECE 4096u

/* A driver whose byte at offset x is x / 512, and whose byte `bad` cannot be read. */
static struct { unsigned requests; uint64_t longest, bad; int err; } seen;

static void stub_submit(struct blk_node *n, struct blk_req *req)
{
    uint64_t at = req->offset;

    seen.requests++;
    seen.longest = BLK_MAX(seen.longest, req->length);
    if (seen.err && seen.bad >= at && seen.bad < at + req->length) {
        blk_complete(req, seen.err);
        return;
    }
    for (int i = 0; i < req->iovcnt; i++) {
        for (size_t k = 0; k < req->iov[i].iov_len; k++, at++) {
            ((uint8_t *)req->iov[i].iov_base)[k] = (uint8_t)(at / 512);
        }
    }
    assert_int_equal(at, req->offset + req->length);
    blk_complete(req, 0);
}

static const struct blk_driver stub = { .name = "stub", .protocol = true, .merge = 32768,
                                        .submit = stub_submit };

static unsigned left;
static struct blk_req reqs[READS];
static struct iovec iov[READS];
static uint8_t bufs[READS][PIECE];

static void read_done(struct blk_req *req)
{
    left--;
}

/* READS reads, each step after the one before. */
static void run(uint64_t step, size_t size, uint32_t max_transfer)
{
    struct blk_loop *l = blk_loop_new(NULL);
    struct blk_node *n = blk_node_new(l, &stub, "stub", 0);

    n->size = 1 << 20;
    n->limits = (struct blk_limits) { .req_align = 1, .mem_align = 1,
                                      .max_transfer = max_transfer };
    left = READS;
    memset(bufs, 0xee, sizeof(bufs));
    for (unsigned i = 0; i < READS; i++) {
        iov[i] = (struct iovec) { bufs[i], size };
        reqs[i] = (struct blk_req) { .op = BLK_READ, .offset = i * step, .length = size,
                                     .iov = &iov[i], .iovcnt = 1, .done = read_done };
        blk_submit(n, &reqs[i]);
    }
    while (left) {
        blk_loop_turn(l, true);
    }
    assert_int_equal(n->inflight[0] + n->inflight[1], 0);
    assert_int_equal(n->stats->ops[BLK_READ], READS);
    blk_node_free(n);
    blk_loop_free(l);
}

static void assert_read(unsigned i, size_t size)
{
    assert_int_equal(reqs[i].result, 0);
    for (size_t k = 0; k < size; k++) {
        assert_int_equal(bufs[i][k], (uint8_t)((reqs[i].offset + k) / 512));
    }
}

static int forget(void **state)
{
    memset(&seen, 0, sizeof(seen));
    return 0;
}

static void neighbours_are_one_request_up_to_the_drivers_measure(void **state)
{
    run(PIECE, PIECE, 0);
    assert_int_equal(seen.requests, 2);
    assert_int_equal(seen.longest, 32768);
    for (unsigned i = 0; i < READS; i++) {
        assert_read(i, PIECE);
    }
}

static void and_up_to_what_the_storage_takes(void **state)
{
    run(PIECE, PIECE, 3 * PIECE);
    assert_int_equal(seen.longest, 3 * PIECE);
    assert_int_equal(seen.requests, (READS + 2) / 3);
    for (unsigned i = 0; i < READS; i++) {
        assert_read(i, PIECE);
    }
}

static void what_does_not_follow_goes_alone(void **state)
{
    run(2 * PIECE, 512, 0);
    assert_int_equal(seen.requests, READS);
    for (unsigned i = 0; i < READS; i++) {
        assert_read(i, 512);
    }
}

static void an_error_is_only_that_of_the_bytes_it_is_about(void **state)
{
    seen.err = -EIO;
    seen.bad = 5 * PIECE + 100;
    run(PIECE, PIECE, 0);
    for (unsigned i = 0; i < READS; i++) {
        if (i == 5) {
            assert_int_equal(reqs[i].result, -EIO);
        } else {
            assert_read(i, PIECE);
        }
    }
}

static void storage_that_is_gone_is_not_asked_again(void **state)
{
    seen.err = -ETIMEDOUT;
    run(PIECE, PIECE, 0);
    assert_int_equal(seen.requests, 2);
    assert_int_equal(reqs[0].result, -ETIMEDOUT);
    assert_int_equal(reqs[7].result, -ETIMEDOUT);
    assert_read(8, PIECE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(neighbours_are_one_request_up_to_the_drivers_measure, forget),
        cmocka_unit_test_setup(and_up_to_what_the_storage_takes, forget),
        cmocka_unit_test_setup(what_does_not_follow_goes_alone, forget),
        cmocka_unit_test_setup(an_error_is_only_that_of_the_bytes_it_is_about, forget),
        cmocka_unit_test_setup(storage_that_is_gone_is_not_asked_again, forget),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
