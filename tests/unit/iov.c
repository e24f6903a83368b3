/*
 * Buffers, iovec arithmetic, zero detection.
 */
#include "block/block.h"

#include <errno.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void buffers_are_page_aligned(void **state)
{
    for (size_t len = 0; len < 100000; len = len * 3 + 1) {
        char *p = blk_buf_alloc(len);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % 4096, 0);
        memset(p, 1, len);
        blk_buf_free(p);
    }
    assert_null(blk_buf_alloc(SIZE_MAX - 10));
    blk_buf_free(NULL);
}

/* Every length and misalignment around the vector widths, every place. */
static void one_bit_anywhere_is_seen(void **state)
{
    unsigned char *p = blk_buf_alloc(2048);
    memset(p, 0, 2048);
    for (size_t shift = 0; shift < 40; shift += 3) {
        for (size_t len = 0; len < 900; len += len < 300 ? 1 : 37) {
            unsigned char *s = p + 64 + shift;
            s[-1] = s[len] = 0xff;          /* outside: must not count */
            assert_true(blk_is_zero(s, len));
            for (size_t i = 0; i < len; i++) {
                s[i] = 0x10;
                assert_false(blk_is_zero(s, len));
                s[i] = 0;
            }
            s[-1] = s[len] = 0;
        }
    }
    blk_buf_free(p);
}

static void big_buffers(void **state)
{
    size_t len = 2 << 20;
    unsigned char *p = blk_buf_alloc(len);
    memset(p, 0, len);
    assert_true(blk_is_zero(p, len));
    for (size_t i = 12345; i < len; i += 99991) {
        p[i] = 1;
        assert_false(blk_is_zero(p, len));
        p[i] = 0;
    }
    blk_buf_free(p);
}

static char data[64];
static const struct iovec vec[] = {
    { data, 5 }, { data + 10, 0 }, { data + 20, 7 }, { data + 30, 0 }, { data + 40, 8 },
};
#define VECS ((int)BLK_ARRAY_SIZE(vec))

static void slices_name_the_same_bytes(void **state)
{
    assert_int_equal(blk_iov_size(vec, VECS), 20);
    assert_int_equal(blk_iov_size(vec, 0), 0);
    char *at[20];
    int n = 0;
    for (int i = 0; i < VECS; i++)
        for (size_t j = 0; j < vec[i].iov_len; j++)
            at[n++] = (char *)vec[i].iov_base + j;
    for (uint64_t off = 0; off <= 20; off++) {
        for (uint64_t len = 0; off + len <= 20; len++) {
            struct iovec d[VECS];
            int cnt = blk_iov_slice(vec, VECS, off, len, d, VECS);
            assert_true(cnt >= 0);
            assert_int_equal(blk_iov_size(d, cnt), len);
            uint64_t k = off;
            for (int i = 0; i < cnt; i++)
                for (size_t j = 0; j < d[i].iov_len; j++)
                    assert_ptr_equal((char *)d[i].iov_base + j, at[k++]);
        }
    }
}

static void slice_without_room_says_so(void **state)
{
    struct iovec d[2];
    assert_int_equal(blk_iov_slice(vec, VECS, 0, 20, d, 2), -E2BIG);
    assert_int_equal(blk_iov_slice(vec, VECS, 0, 12, d, 2), 2);
    assert_int_equal(blk_iov_slice(vec, VECS, 3, 0, d, 0), 0);
}

static void copies_agree_both_ways(void **state)
{
    char in[20], out[20];
    for (int i = 0; i < 20; i++)
        in[i] = (char)('a' + i);
    for (uint64_t off = 0; off <= 20; off++) {
        for (uint64_t len = 0; off + len <= 20; len++) {
            memset(data, '.', sizeof(data));
            blk_iov_from_buf(vec, VECS, off, in + off, len);
            memset(out, '.', sizeof(out));
            blk_iov_to_buf(vec, VECS, off, out, len);
            assert_memory_equal(out, in + off, len);
            size_t dots = 0;
            for (size_t i = 0; i < sizeof(data); i++)
                dots += data[i] == '.';
            assert_int_equal(dots, sizeof(data) - len);
            blk_iov_zero(vec, VECS, off, len);
            size_t zeros = 0;
            for (size_t i = 0; i < sizeof(data); i++)
                zeros += data[i] == 0;
            assert_int_equal(zeros, len);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buffers_are_page_aligned),
        cmocka_unit_test(one_bit_anywhere_is_seen),
        cmocka_unit_test(big_buffers),
        cmocka_unit_test(slices_name_the_same_bytes),
        cmocka_unit_test(slice_without_room_says_so),
        cmocka_unit_test(copies_agree_both_ways),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
