/*
 * pool.c - threads for what would block a loop or burn CPU.
 *
 * Threads are made when work finds none idle, up to the pool's limit, and then
 * stay.  They block all signals: signals are for the threads that expect them, but for
 * SIGSYS, which says what a thread itself did.
 * Work is taken in order of submission; done() is handed to the work's own loop
 * and runs there, after which the pool does not touch the work again.
 */
#include "block/block.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

struct blk_pool {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct blk_work *first, **last;
    unsigned queued, idle, threads, max;
    bool stop;
    pthread_t thread[];
};

static void pool_done(void *arg)
{
    struct blk_work *w = arg;
    w->done(w);
}

static void pool_run(struct blk_work *w)
{
    w->fn(w);
    w->post.fn = pool_done;
    w->post.arg = w;
    blk_loop_post(w->loop, &w->post);
}

static struct blk_work *pool_take(struct blk_pool *p)
{
    struct blk_work *w = p->first;
    p->first = w->next;
    if (!p->first)
        p->last = &p->first;
    p->queued--;
    w->next = NULL;
    return w;
}

static void *pool_thread(void *arg)
{
    struct blk_pool *p = arg;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        if (p->first) {
            struct blk_work *w = pool_take(p);
            pthread_mutex_unlock(&p->lock);
            pool_run(w);
            pthread_mutex_lock(&p->lock);
        } else if (p->stop) {
            break;
        } else {
            p->idle++;
            pthread_cond_wait(&p->more, &p->lock);
            p->idle--;
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* With the lock held.  False: no thread could be made. */
static bool pool_grow(struct blk_pool *p)
{
    sigset_t all, old;
    sigfillset(&all);
    sigdelset(&all, SIGSYS);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&p->thread[p->threads], NULL, pool_thread, p);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r)
        return false;
    pthread_setname_np(p->thread[p->threads], "platter-pool");
    p->threads++;
    return true;
}

struct blk_pool *blk_pool_new(unsigned max_threads)
{
    unsigned max = max_threads ? max_threads : 1;
    struct blk_pool *p = calloc(1, sizeof(*p) + max * sizeof(p->thread[0]));
    if (!p)
        return NULL;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->more, NULL);
    p->last = &p->first;
    p->max = max;
    return p;
}

void blk_pool_free(struct blk_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->more);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->threads; i++)
        pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->more);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

void blk_pool_submit(struct blk_pool *p, struct blk_work *w)
{
    w->next = NULL;
    pthread_mutex_lock(&p->lock);
    /* A signalled thread counts as idle until it runs: compare with the queue. */
    bool grow = p->queued >= p->idle && p->threads < p->max;
    if (grow && !pool_grow(p) && !p->threads) {
        pthread_mutex_unlock(&p->lock);
        pool_run(w);                    /* no threads at all: slow, but it gets done */
        return;
    }
    *p->last = w;
    p->last = &w->next;
    p->queued++;
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->lock);
}

static struct blk_pool *cpu_pool;

static void cpu_pool_make(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
    cpu_pool = blk_pool_new((unsigned)n);
    if (!cpu_pool)
        abort();                        /* a few hundred bytes at start-up */
}

struct blk_pool *blk_pool_cpu(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, cpu_pool_make);
    return cpu_pool;
}
