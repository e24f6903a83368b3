/*
 * The checker's sparse counters against a plain array, at the edges of pages, far
 * apart, and out of memory.
 */
#include "formats/qcow2/check_counts.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct counts_budget budget;
static struct counts c;

static int setup(void **state)
{
    budget = (struct counts_budget){ .max = 64u << 20 };
    counts_init(&c, &budget);
    return 0;
}

static int teardown(void **state)
{
    counts_free(&c);
    assert_true(counts_empty(&c));
    assert_int_equal(budget.used, 0);
    return 0;
}

#define MODEL 20000u
static uint64_t model[MODEL];

static void compare_with_model(void)
{
    static uint64_t out[COUNTS_PAGE];
    for (uint64_t k = 0; k < MODEL; k += COUNTS_PAGE) {
        size_t n = MODEL - k < COUNTS_PAGE ? MODEL - k : COUNTS_PAGE;
        memset(out, 0, sizeof(out));
        counts_read(&c, k, n, out);
        assert_memory_equal(out, model + k, n * sizeof(*out));
    }
}

/* Runs of ones, into pages of all kinds, stop at the first counter that is not zero. */
static void runs_of_ones_stop_at_what_is_counted(void **state)
{
    unsigned seed = 3;
    memset(model, 0, sizeof(model));
    for (int i = 0; i < 6000; i++) {
        uint64_t k = (uint64_t)rand_r(&seed) % MODEL, n = (uint64_t)rand_r(&seed) % (i % 9 ? 40 : 5000);
        uint64_t done = 9, want = 0;
        n = n < MODEL - k ? n + 1 : MODEL - k;
        uint64_t room = COUNTS_PAGE - k % COUNTS_PAGE;
        while (want < n && want < room && !model[k + want])
            want++;
        assert_int_equal(counts_first(&c, k, n, &done), 0);
        assert_true(done <= want && (done || !want));
        for (uint64_t j = 0; j < done; j++)
            model[k + j] = 1;
        bool ones = true;
        for (uint64_t j = 0; j < n; j++)
            ones = ones && model[k + j] == 1;
        assert_true(counts_all_one(&c, k, n) == ones);
        if (i % 3)
            continue;
        uint64_t v = i % 400 ? 0 : i % 800 ? 2 : 1000;
        assert_int_equal(counts_set(&c, k, v), 0);
        model[k] = v;
    }
    compare_with_model();
    counts_free(&c);
    uint64_t done;
    assert_int_equal(counts_first(&c, 5, 2 * COUNTS_PAGE, &done), 0);
    assert_true(done == COUNTS_PAGE - 5 && !counts_all_one(&c, 4, 2) && counts_all_one(&c, 5, done));
}

static void random_changes_match_a_plain_array(void **state)
{
    static const uint64_t steps[] = { 1, 1, 1, 2, 100, 255, 256, 1ull << 40 };
    unsigned seed = 1;
    memset(model, 0, sizeof(model));
    for (int i = 0; i < 200000; i++) {
        uint64_t k = (uint64_t)rand_r(&seed) % MODEL, v = steps[rand_r(&seed) % 8];
        if (i < 100000)
            v = 1;                      /* pages of ones first, then wider ones */
        if (rand_r(&seed) % 4) {
            uint64_t now;
            assert_int_equal(counts_add(&c, k, v, &now), 0);
            model[k] += v;
            assert_true(now == model[k]);
        } else {
            uint64_t to = i < 100000 ? (uint64_t)rand_r(&seed) % 2 : v;
            assert_int_equal(counts_set(&c, k, to), 0);
            model[k] = to;
        }
        assert_true(counts_get(&c, k) == model[k]);
    }
    compare_with_model();
}

static void full_pages_of_ones_cost_nothing(void **state)
{
    for (uint64_t k = 0; k < 1u << 24; k++)
        assert_int_equal(counts_add(&c, k, 1, NULL), 0);
    assert_true(budget.used < 256 << 10);
    assert_int_equal(counts_get(&c, 12345678), 1);
    assert_int_equal(counts_set(&c, 12345678, 0), 0);
    assert_int_equal(counts_get(&c, 12345678), 0);
    assert_int_equal(counts_get(&c, 12345679), 1);
    assert_int_equal(counts_add(&c, 12345679, 1, NULL), 0);
    assert_int_equal(counts_get(&c, 12345679), 2);
    assert_int_equal(counts_get(&c, 12345677), 1);
}

static void counters_far_apart(void **state)
{
    static const uint64_t at[] = { 0, 4095, 4096, 1ull << 31, (1ull << 54) + 7, 1ull << 62 };
    for (size_t i = 6; i-- > 0; )
        assert_int_equal(counts_set(&c, at[i], i + 1), 0);
    for (size_t i = 0; i < 6; i++)
        assert_true(counts_get(&c, at[i]) == i + 1);
    assert_true(budget.used < 1 << 20);
    uint64_t k = 0;
    for (size_t i = 0; i < 6; i++) {
        assert_true(counts_seek(&c, &k));
        assert_true(k / COUNTS_PAGE == at[i] / COUNTS_PAGE || at[i] == 4095);
        if (at[i] != 0)                 /* 0 and 4095 share a page */
            k = (at[i] / COUNTS_PAGE + 1) * COUNTS_PAGE;
    }
    assert_false(counts_seek(&c, &k));
}

static void an_addition_stops_at_the_top(void **state)
{
    uint64_t now;
    assert_int_equal(counts_set(&c, 5, UINT64_MAX - 1), 0);
    assert_int_equal(counts_add(&c, 5, 10, &now), 0);
    assert_true(now == UINT64_MAX);
}

static void past_the_budget_is_refused(void **state)
{
    budget.max = 64 << 10;
    int r = 0;
    uint64_t k = 0;
    for (; !r && k < 1000; k++)
        r = counts_add(&c, k << 20, 1, NULL);
    assert_int_equal(r, -ENOMEM);
    assert_true(budget.used <= budget.max);
    assert_int_equal(counts_get(&c, 0), 1);
    assert_int_equal(counts_get(&c, (k - 1) << 20), 0);
    assert_int_equal(counts_set(&c, 1ull << 60, 0), 0);     /* zero needs no room */
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(runs_of_ones_stop_at_what_is_counted),
        T(random_changes_match_a_plain_array), T(full_pages_of_ones_cost_nothing),
        T(counters_far_apart), T(an_addition_stops_at_the_top), T(past_the_budget_is_refused),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
