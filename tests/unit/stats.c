/*
 * Latency histograms: error bound, extremes, quantiles.
 */
#include "block/stats.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct blk_stats s;

static int clear(void **state)
{
    memset(&s, 0, sizeof(s));
    return 0;
}

static void a_value_is_known_to_an_eighth(void **state)
{
    for (unsigned bit = 0; bit < 64; bit++) {
        for (int d = -1; d <= 1; d++) {
            uint64_t ns = (1ull << bit) + (uint64_t)d;
            clear(NULL);
            blk_stats_record(&s, BLK_WRITE, ns);
            uint64_t v = blk_stats_quantile(s.latency[BLK_WRITE], 0.5);
            assert_true(v >= ns);
            assert_true(v - ns <= ns / 8);
        }
    }
    blk_stats_record(&s, BLK_WRITE, UINT64_MAX);
    assert_true(blk_stats_quantile(s.latency[BLK_WRITE], 1) == UINT64_MAX);
}

static void empty_histogram_is_zero(void **state)
{
    assert_int_equal(blk_stats_quantile(s.latency[BLK_READ], 0.5), 0);
}

static void quantiles_split_where_they_should(void **state)
{
    for (uint64_t i = 1; i <= 1000; i++)
        blk_stats_record(&s, BLK_READ, i * 1000);
    static const double q[] = { 0, 0.01, 0.5, 0.9, 0.99, 1 };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(q); i++) {
        double want = q[i] < 0.001 ? 1000 : q[i] * 1e6;
        double v = (double)blk_stats_quantile(s.latency[BLK_READ], q[i]);
        assert_true(v >= want && v <= want * 1.13);
    }
    assert_int_equal(s.latency_max[BLK_READ], 1000000);
    assert_int_equal(s.latency_sum[BLK_READ], 1000 * 1001 / 2 * 1000);
    assert_int_equal(blk_stats_quantile(s.latency[BLK_FLUSH], 0.5), 0);
}

static void small_values_are_exact(void **state)
{
    for (uint64_t ns = 0; ns < 16; ns++) {
        clear(NULL);
        blk_stats_record(&s, BLK_FLUSH, ns);
        assert_int_equal(blk_stats_quantile(s.latency[BLK_FLUSH], 0.5), ns);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_value_is_known_to_an_eighth, clear),
        cmocka_unit_test_setup(empty_histogram_is_zero, clear),
        cmocka_unit_test_setup(quantiles_split_where_they_should, clear),
        cmocka_unit_test_setup(small_values_are_exact, clear),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
