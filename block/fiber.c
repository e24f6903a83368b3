/*
 * fiber.c - stackful fibers on a loop's thread, and what they wait on.
 *
 * Invariants
 *  - A fiber is entered only by blk_fiber_run_ready() and returns there; fibers
 *    never enter each other and never change threads.
 *  - A yielded fiber is woken exactly once: co_wake() puts it on the runnable
 *    list, which holds it at most once.
 *  - Stacks are pooled per loop; the lowest page is a guard.
 */
#include "block/internal.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/asan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#define FIBER_STACK (1024u * 1024)      /* instrumented frames are larger */
#else
#define FIBER_STACK (256u * 1024)
#endif
#define FIBER_GUARD 4096u
#define FIBER_POOL_MAX 256u

static __thread struct co *fiber_current;

/* ---- switching --------------------------------------------------------------- */

#if defined(__x86_64__)
/* Save callee-saved registers and the stack pointer in *save, continue at to. */
void blk_fiber_switch(void **save, void *to);
__asm__(".text\n"
        ".globl blk_fiber_switch\n"
        ".hidden blk_fiber_switch\n"
        ".type blk_fiber_switch,@function\n"
        "blk_fiber_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n"
        "  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp,(%rdi)\n"
        "  movq %rsi,%rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n"
        "  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  ret\n"
        ".size blk_fiber_switch,.-blk_fiber_switch\n");

static void *fiber_prepare(struct co *c, void (*entry)(void))
{
    uint64_t *sp = (uint64_t *)((char *)c->stack + c->stack_len);
    *--sp = 0;                  /* entry's "return address": it never returns */
    *--sp = (uint64_t)(uintptr_t)entry;
    for (int i = 0; i < 6; i++) {
        *--sp = 0;
    }
    return sp;
}
#else
static void blk_fiber_switch(void **save, void *to)
{
    ucontext_t here;
    *save = &here;
    swapcontext(&here, to);
}

static void *fiber_prepare(struct co *c, void (*entry)(void))
{
    ucontext_t *u = (ucontext_t *)((char *)c->stack + FIBER_GUARD);
    getcontext(u);
    u->uc_stack.ss_sp = (char *)(u + 1);
    u->uc_stack.ss_size = c->stack_len - FIBER_GUARD - sizeof(*u);
    u->uc_link = NULL;
    makecontext(u, entry, 0);
    return u;
}
#endif

static void fiber_to_loop(struct co *c)
{
    struct blk_loop *l = c->loop;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(c->ended ? NULL : &c->fake_stack, l->stack_bottom, l->stack_size);
#endif
    blk_fiber_switch(&c->sp, l->sp);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(c->fake_stack, NULL, NULL);
#endif
}

static void loop_to_fiber(struct blk_loop *l, struct co *c)
{
    l->current = fiber_current = c;
    l->count.fiber_switches++;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&l->fake_stack, (char *)c->stack + FIBER_GUARD,
                                   c->stack_len - FIBER_GUARD);
#endif
    blk_fiber_switch(&l->sp, c->sp);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(l->fake_stack, NULL, NULL);
#endif
    l->current = fiber_current = NULL;
}

static void fiber_main(void)
{
    struct co *c = fiber_current;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    c->fn(c->arg);
    c->ended = true;
    fiber_to_loop(c);
    __builtin_unreachable();
}

/* ---- life --------------------------------------------------------------------- */

static struct co *fiber_new(struct blk_loop *l)
{
    struct co *c = calloc(1, sizeof(*c));
    if (!c) {
        return NULL;
    }
    c->loop = l;
    c->stack_len = FIBER_STACK;
    c->stack = mmap(NULL, FIBER_STACK, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (c->stack == MAP_FAILED) {
        free(c);
        return NULL;
    }
    mprotect(c->stack, FIBER_GUARD, PROT_NONE);
    l->count.allocations++;
    return c;
}

static void fiber_free(struct co *c)
{
    munmap(c->stack, c->stack_len);
    free(c);
}

static void fiber_release(struct blk_loop *l, struct co *c)
{
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region((char *)c->stack + FIBER_GUARD, c->stack_len - FIBER_GUARD);
#endif
    if (l->npool >= FIBER_POOL_MAX) {
        fiber_free(c);
        return;
    }
    c->next = l->pool;
    l->pool = c;
    l->npool++;
}

void blk_fiber_pool_free(struct blk_loop *l)
{
    while (l->pool) {
        struct co *c = l->pool;
        l->pool = c->next;
        fiber_free(c);
    }
    l->npool = 0;
}

static void fiber_make_runnable(struct blk_loop *l, struct co *c)
{
    c->next = NULL;
    *l->runnable_last = c;
    l->runnable_last = &c->next;
}

int co_start(struct blk_loop *l, void (*fn)(void *arg), void *arg)
{
    struct co *c = l->pool;
    if (c) {
        l->pool = c->next;
        l->npool--;
    } else if (!(c = fiber_new(l))) {
        return -ENOMEM;
    }
    c->fn = fn;
    c->arg = arg;
    c->ended = false;
    c->fake_stack = NULL;
    c->sp = fiber_prepare(c, fiber_main);
    l->count.fibers_started++;
    fiber_make_runnable(l, c);
    return 0;
}

bool blk_fiber_run_ready(struct blk_loop *l)
{
    /* Only what is runnable now: fibers that keep waking each other must not
     * starve descriptors. */
    struct co *c = l->runnable;
    bool ran = c != NULL;
    l->runnable = NULL;
    l->runnable_last = &l->runnable;
    while (c) {
        struct co *next = c->next;
        loop_to_fiber(l, c);
        if (c->ended) {
            fiber_release(l, c);
        }
        c = next;
    }
    return ran;
}

struct co *co_self(void)
{
    return fiber_current;
}

struct blk_loop *co_loop(void)
{
    return fiber_current ? fiber_current->loop : NULL;
}

void co_yield(void)
{
    fiber_to_loop(fiber_current);
}

void co_wake(struct co *c)
{
    fiber_make_runnable(c->loop, c);
}

void co_pass(void)
{
    co_wake(co_self());
    co_yield();
}

/* ---- sleeping, threads, running from outside -------------------------------------- */

static void co_wake_arg(void *arg)
{
    co_wake(arg);
}

void co_sleep(uint64_t ns)
{
    struct blk_timer t = { .fn = co_wake_arg, .arg = co_self() };
    blk_timer_set(co_loop(), &t, blk_now_ns() + ns);
    co_yield();
}

struct co_work_item {
    struct blk_work work;
    void (*fn)(void *arg);
    void *arg;
    struct co *co;
};

static void co_work_fn(struct blk_work *w)
{
    struct co_work_item *i = blk_container_of(w, struct co_work_item, work);
    i->fn(i->arg);
}

static void co_work_done(struct blk_work *w)
{
    co_wake(blk_container_of(w, struct co_work_item, work)->co);
}

void co_work(void (*fn)(void *arg), void *arg)
{
    struct co_work_item i = {
        .work = { .fn = co_work_fn, .done = co_work_done, .loop = co_loop() },
        .fn = fn, .arg = arg, .co = co_self(),
    };
    blk_pool_submit(blk_pool_cpu(), &i.work);
    co_yield();
}

struct co_run {
    int (*fn)(void *arg);
    void *arg;
    int result;
    bool ended;
};

static void co_run_main(void *arg)
{
    struct co_run *r = arg;
    r->result = r->fn(r->arg);
    r->ended = true;
}

int blk_run(struct blk_loop *l, int (*fn)(void *arg), void *arg)
{
    if (co_self()) {
        return fn(arg);
    }
    struct co_run r = { .fn = fn, .arg = arg };
    int err = co_start(l, co_run_main, &r);
    if (err) {
        return err;
    }
    while (!r.ended) {
        blk_loop_turn(l, true);
    }
    return r.result;
}

/* ---- queues and mutexes -------------------------------------------------------------- */

struct co_wait {
    struct co *co;
    struct co_wait *next;
};

void co_wait_on(struct co_queue *q)
{
    struct co_wait w = { .co = co_self() };
    if (!q->first) {
        q->last = &q->first;
    }
    *q->last = &w;
    q->last = &w.next;
    co_yield();
}

bool co_wake_one(struct co_queue *q)
{
    struct co_wait *w = q->first;
    if (!w) {
        return false;
    }
    q->first = w->next;
    co_wake(w->co);
    return true;
}

void co_wake_all(struct co_queue *q)
{
    while (co_wake_one(q)) {
    }
}

void co_lock(struct co_mutex *m)
{
    if (!m->held) {
        m->held = true;
        return;
    }
    co_wait_on(&m->q);          /* the unlocker hands it over */
}

void co_unlock(struct co_mutex *m)
{
    if (!co_wake_one(&m->q)) {
        m->held = false;
    }
}
