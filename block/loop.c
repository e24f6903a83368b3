/*
 * loop.c - one thread's event loop: ready requests, runnable fibers, timers,
 * descriptors, and what other threads post.
 *
 * Invariants
 *  - Everything but blk_loop_post() and blk_loop_stop() happens on the owner.
 *  - done() callbacks and fibers run only from blk_loop_turn(), never inside the
 *    frame that made them ready: no recursion, however deep a graph is.
 *  - A turn that made work ready does not sleep.
 */
#include "block/internal.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define LOOP_EVENTS 64
/* While work is ready, look at descriptors only every so many turns. */
#define LOOP_BUSY_TURNS 4

uint64_t blk_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void blk_survive(int sig)
{
    struct sigaction sa;

    if (sigaction(sig, NULL, &sa) == 0 && sa.sa_handler == SIG_DFL)
        signal(sig, SIG_IGN);
}

struct blk_loop *blk_loop_new(struct blk_error *e)
{
    struct blk_loop *l = calloc(1, sizeof(*l));
    if (!l) {
        blk_err(e, ENOMEM, "Cannot allocate memory");
        return NULL;
    }
    l->ready_last = &l->ready;
    l->runnable_last = &l->runnable;
    l->posts_last = &l->posts;
    pthread_mutex_init(&l->post_lock, NULL);
    blk_loop_adopt(l);
    l->epfd = epoll_create1(EPOLL_CLOEXEC);
    l->evfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL };
    if (l->epfd < 0 || l->evfd < 0 || epoll_ctl(l->epfd, EPOLL_CTL_ADD, l->evfd, &ev)) {
        blk_err_errno(e, errno, "Could not create an event loop");
        blk_loop_free(l);
        return NULL;
    }
    return l;
}

void blk_loop_free(struct blk_loop *l)
{
    if (!l) {
        return;
    }
    blk_fiber_pool_free(l);
    blk_merge_free(l);
    if (l->epfd >= 0) {
        close(l->epfd);
    }
    if (l->evfd >= 0) {
        close(l->evfd);
    }
    pthread_mutex_destroy(&l->post_lock);
    free(l);
}

void blk_loop_adopt(struct blk_loop *l)
{
    l->owner = pthread_self();
#ifdef __SANITIZE_ADDRESS__
    pthread_attr_t attr;
    void *addr;
    if (!pthread_getattr_np(l->owner, &attr)) {
        pthread_attr_getstack(&attr, &addr, &l->stack_size);
        l->stack_bottom = addr;
        pthread_attr_destroy(&attr);
    }
#endif
}

/* ---- posts from other threads ---------------------------------------------- */

static void loop_kick(struct blk_loop *l)
{
    if (atomic_exchange(&l->sleeping, false)) {
        uint64_t one = 1;
        ssize_t r = write(l->evfd, &one, sizeof(one));
        (void)r;                /* full counter: it wakes all the same */
    }
}

void blk_loop_post(struct blk_loop *l, struct blk_post *p)
{
    p->next = NULL;
    pthread_mutex_lock(&l->post_lock);
    *l->posts_last = p;
    l->posts_last = &p->next;
    atomic_store(&l->posted, true);
    /* Kick under the lock: once fn ran, the loop may be freed. */
    loop_kick(l);
    pthread_mutex_unlock(&l->post_lock);
}

static bool loop_run_posts(struct blk_loop *l)
{
    if (!atomic_load_explicit(&l->posted, memory_order_acquire)) {
        return false;
    }
    pthread_mutex_lock(&l->post_lock);
    struct blk_post *p = l->posts;
    l->posts = NULL;
    l->posts_last = &l->posts;
    atomic_store(&l->posted, false);
    pthread_mutex_unlock(&l->post_lock);
    while (p) {
        struct blk_post *next = p->next;        /* fn may free p */
        p->fn(p->arg);
        p = next;
    }
    return true;
}

void blk_loop_stop(struct blk_loop *l)
{
    pthread_mutex_lock(&l->post_lock);
    atomic_store(&l->stop, true);
    loop_kick(l);
    pthread_mutex_unlock(&l->post_lock);
}

void blk_loop_run(struct blk_loop *l)
{
    BLK_ASSERT_OWNER(l);
    while (!atomic_exchange(&l->stop, false)) {
        blk_loop_turn(l, true);
    }
}

/* ---- timers ------------------------------------------------------------------ */

void blk_timer_cancel(struct blk_loop *l, struct blk_timer *t)
{
    (void)l;
    if (!t->at) {
        return;
    }
    *t->prev = t->next;
    if (t->next) {
        t->next->prev = t->prev;
    }
    t->at = 0;
}

void blk_timer_set(struct blk_loop *l, struct blk_timer *t, uint64_t at_ns)
{
    blk_timer_cancel(l, t);
    struct blk_timer **at = &l->timers;
    while (*at && (*at)->at <= at_ns) {
        at = &(*at)->next;
    }
    t->at = at_ns ? at_ns : 1;
    t->next = *at;
    t->prev = at;
    if (t->next) {
        t->next->prev = &t->next;
    }
    *at = t;
}

static bool loop_run_timers(struct blk_loop *l)
{
    if (!l->timers) {
        return false;
    }
    uint64_t now = blk_now_ns();
    bool ran = false;
    while (l->timers && l->timers->at <= now) {
        struct blk_timer *t = l->timers;
        blk_timer_cancel(l, t);
        t->fn(t->arg);
        ran = true;
    }
    return ran;
}

/* Milliseconds for epoll_wait, rounded up so that it does not spin. */
static int loop_timeout(const struct blk_loop *l)
{
    if (!l->timers) {
        return -1;
    }
    uint64_t now = blk_now_ns();
    if (l->timers->at <= now) {
        return 0;
    }
    uint64_t ms = (l->timers->at - now + 999999) / 1000000;
    return ms > 60000 ? 60000 : (int)ms;
}

/* ---- hooks and descriptors ----------------------------------------------------- */

void blk_hook_add(struct blk_loop *l, struct blk_hook *h)
{
    h->next = l->hooks;
    l->hooks = h;
}

void blk_hook_del(struct blk_loop *l, struct blk_hook *h)
{
    for (struct blk_hook **p = &l->hooks; *p; p = &(*p)->next) {
        if (*p == h) {
            *p = h->next;
            return;
        }
    }
}

static bool loop_run_hooks(struct blk_loop *l)
{
    bool work = false;
    struct blk_hook *next;
    for (struct blk_hook *h = l->hooks; h; h = next) {
        next = h->next;
        work |= h->fn(h->arg);
    }
    return work;
}

int blk_watch_add(struct blk_loop *l, struct blk_watch *w)
{
    struct epoll_event ev = { .events = w->events, .data.ptr = w };
    return epoll_ctl(l->epfd, EPOLL_CTL_ADD, w->fd, &ev) ? -errno : 0;
}

int blk_watch_mod(struct blk_loop *l, struct blk_watch *w, uint32_t events)
{
    if (w->events == events) {
        return 0;
    }
    struct epoll_event ev = { .events = events, .data.ptr = w };
    w->events = events;
    return epoll_ctl(l->epfd, EPOLL_CTL_MOD, w->fd, &ev) ? -errno : 0;
}

void blk_watch_del(struct blk_loop *l, struct blk_watch *w)
{
    epoll_ctl(l->epfd, EPOLL_CTL_DEL, w->fd, NULL);
    /* It may be among the events that are being dispatched right now. */
    for (int i = l->event_at; i < l->nevents; i++) {
        if (l->events[i].data.ptr == w) {
            l->events[i].events = 0;
        }
    }
}

static void loop_dispatch(struct blk_loop *l, int timeout)
{
    struct epoll_event events[LOOP_EVENTS];
    int n = epoll_wait(l->epfd, events, LOOP_EVENTS, timeout);
    atomic_store(&l->sleeping, false);
    l->events = events;
    l->nevents = n > 0 ? n : 0;
    for (l->event_at = 0; l->event_at < l->nevents;) {
        struct epoll_event *ev = &events[l->event_at++];
        struct blk_watch *w = ev->data.ptr;
        if (!ev->events) {
            continue;
        }
        if (w) {
            w->fn(w->arg, ev->events);
        } else {
            uint64_t v;
            ssize_t r = read(l->evfd, &v, sizeof(v));
            (void)r;
        }
    }
    l->events = NULL;
    l->nevents = l->event_at = 0;
}

static bool loop_has_ready(const struct blk_loop *l)
{
    return l->ready || l->runnable || l->held.first || atomic_load(&l->posted) || atomic_load(&l->stop);
}

void blk_loop_turn(struct blk_loop *l, bool wait)
{
    BLK_ASSERT_OWNER(l);
    /* Whatever ran may have been what the caller waits for: do not sleep then. */
    bool busy = blk_req_run_ready(l) | blk_fiber_run_ready(l) | loop_run_posts(l) |
                loop_run_timers(l);
    busy |= blk_merge_flush(l);
    busy |= loop_run_hooks(l) | loop_has_ready(l);
    if (busy && ++l->busy_turns % LOOP_BUSY_TURNS) {
        return;
    }
    int timeout = 0;
    if (!busy && wait) {
        timeout = loop_timeout(l);
        atomic_store(&l->sleeping, true);
        /* A post between the look above and the store would not have kicked. */
        if (loop_has_ready(l)) {
            timeout = 0;
        }
    }
    loop_dispatch(l, timeout);
}

const struct blk_counters *blk_loop_counters(const struct blk_loop *l)
{
    return &l->count;
}

void blk_set_tracing(struct blk_loop *l, bool on)
{
    l->tracing = on;
}
