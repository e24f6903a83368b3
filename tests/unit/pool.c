/*
 * The worker pool on a real loop: every work runs once, off the loop's thread,
 * and comes back on it; threads are made lazily, bounded, with signals blocked.
 */
#include "block/block.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define WORKS 500

struct job {
    struct blk_work work;
    atomic_int ran;
    int done;
    pthread_t on;
    bool signals_blocked;
};

static struct blk_loop *loop;
static pthread_t owner;
static int left;
static atomic_int inside, most;

static void job_fn(struct blk_work *w)
{
    struct job *j = blk_container_of(w, struct job, work);
    int now = atomic_fetch_add(&inside, 1) + 1, m = atomic_load(&most);
    while (now > m && !atomic_compare_exchange_weak(&most, &m, now)) { }
    atomic_fetch_add(&j->ran, 1);
    j->on = pthread_self();
    sigset_t set;
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    j->signals_blocked = sigismember(&set, SIGTERM) && sigismember(&set, SIGUSR1);
    usleep(100);
    atomic_fetch_sub(&inside, 1);
}

static void job_done(struct blk_work *w)
{
    struct job *j = blk_container_of(w, struct job, work);
    assert_true(pthread_equal(pthread_self(), owner));
    j->done++;
    left--;
}

static void run_jobs(struct blk_pool *p, struct job *j, int n)
{
    left = n;
    for (int i = 0; i < n; i++) {
        j[i] = (struct job){ .work = { .fn = job_fn, .done = job_done, .loop = loop } };
        blk_pool_submit(p, &j[i].work);
    }
    while (left)
        blk_loop_turn(loop, true);
}

static int setup(void **state)
{
    loop = blk_loop_new(NULL);
    owner = pthread_self();
    most = 0;
    return !loop;
}

static int teardown(void **state)
{
    blk_loop_free(loop);
    return 0;
}

static void each_work_runs_once_and_comes_home(void **state)
{
    struct job *j = calloc(WORKS, sizeof(*j));
    struct blk_pool *p = blk_pool_new(3);
    run_jobs(p, j, WORKS);
    for (int i = 0; i < WORKS; i++) {
        assert_int_equal(j[i].ran, 1);
        assert_int_equal(j[i].done, 1);
        assert_false(pthread_equal(j[i].on, owner));
        assert_true(j[i].signals_blocked);
    }
    assert_true(atomic_load(&most) <= 3);
    blk_pool_free(p);
    free(j);
}

static void an_idle_thread_is_reused(void **state)
{
    struct blk_pool *p = blk_pool_new(8);
    struct job first, next;
    run_jobs(p, &first, 1);
    for (int i = 0; i < 20; i++) {
        usleep(2000);                   /* let it reach its wait */
        run_jobs(p, &next, 1);
        assert_true(pthread_equal(first.on, next.on));
    }
    blk_pool_free(p);
}

static void free_finishes_what_is_queued(void **state)
{
    struct job *j = calloc(50, sizeof(*j));
    struct blk_pool *p = blk_pool_new(1);
    left = 50;
    for (int i = 0; i < 50; i++) {
        j[i] = (struct job){ .work = { .fn = job_fn, .done = job_done, .loop = loop } };
        blk_pool_submit(p, &j[i].work);
    }
    blk_pool_free(p);
    for (int i = 0; i < 50; i++)
        assert_int_equal(j[i].ran, 1);
    while (left)
        blk_loop_turn(loop, true);
    free(j);
    blk_pool_free(NULL);
    blk_pool_free(blk_pool_new(4));     /* no thread was ever made */
}

static void the_cpu_pool_is_one(void **state)
{
    assert_ptr_equal(blk_pool_cpu(), blk_pool_cpu());
    struct job j;
    run_jobs(blk_pool_cpu(), &j, 1);
    assert_int_equal(j.done, 1);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(each_work_runs_once_and_comes_home), T(an_idle_thread_is_reused),
        T(free_finishes_what_is_queued), T(the_cpu_pool_is_one),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
