/*
 * virtio.c - the device's state machine and the hand-over between the vCPUs and
 * the loop thread.  The rules are at the top of virtio.h.
 */
#include "vmm-shim/virtio.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define RING_FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX)

/* What the driver may set: NEEDS_RESET is the device's own. */
#define STATUS_DRIVER_BITS (VIRTIO_S_ACKNOWLEDGE | VIRTIO_S_DRIVER | VIRTIO_S_DRIVER_OK | \
                            VIRTIO_S_FEATURES_OK | VIRTIO_S_FAILED)

/* ---- interrupts: any thread ----------------------------------------------------- */

static void interrupt(struct virtio_dev *d, unsigned vector, unsigned isr)
{
    if (atomic_load(&d->pci.msix_enabled))
        pci_msix_signal(&d->pci, vector);
    else
        atomic_fetch_or(&d->isr, isr);      /* no INTx pin: such a driver polls */
}

static void interrupt_config(struct virtio_dev *d)
{
    interrupt(d, atomic_load(&d->config_vector), VIRTIO_ISR_CONFIG);
}

static void report(struct virtio_dev *d, unsigned qi, const char *why)
{
    unsigned nth = atomic_fetch_add(&d->reports, 1) + 1;

    if (nth > VIRTIO_REPORTS)
        return;
    blk_report("%s %02x.%x queue %u: %s; the device needs a reset%s", d->type->name,
               d->pci.devfn >> 3, d->pci.devfn & 7, qi, why,
               nth == VIRTIO_REPORTS ? " (no more such reports)" : "");
}

/* ---- the loop's side --------------------------------------------------------------- */

bool virtio_may_take(const struct virtio_queue *q)
{
    return q->live && !q->stopped && !q->vq.broken;
}

void virtio_broken(struct virtio_dev *d, unsigned qi)
{
    struct virtio_queue *q = &d->queue[qi];

    if (q->live && !q->stopped) {
        q->stopped = true;
        blk_watch_del(d->loop, &q->watch);
    }
    d->broken++;
    report(d, qi, q->vq.why);
    pthread_mutex_lock(&d->pci.lock);
    d->status |= VIRTIO_S_NEEDS_RESET;
    pthread_mutex_unlock(&d->pci.lock);
    interrupt_config(d);
}

/* Once a turn: publish what the turn's completions pushed, one interrupt each. */
static bool publish(void *arg)
{
    struct virtio_dev *d = arg;

    while (d->dirty) {
        unsigned qi = (unsigned)__builtin_ctzll(d->dirty);

        d->dirty &= d->dirty - 1;
        if (virtqueue_flush(&d->queue[qi].vq)) {
            d->interrupts++;
            interrupt(d, atomic_load_explicit(&d->regs[qi].vector, memory_order_relaxed),
                      VIRTIO_ISR_QUEUE);
        }
    }
    return false;
}

static void kicked(void *arg, uint32_t events)
{
    struct virtio_queue *q = arg;

    q->dev->kicks++;
    if (virtio_may_take(q))
        q->dev->type->serve(q->dev, q->index);
}

static void queues_stop(struct virtio_dev *d)
{
    publish(d);
    for (unsigned i = 0; i < d->queues; i++) {
        struct virtio_queue *q = &d->queue[i];

        if (q->live && !q->stopped) {
            q->stopped = true;
            blk_watch_del(d->loop, &q->watch);
        }
    }
}

static int queue_start(struct virtio_dev *d, unsigned qi, const struct virtq_config *c)
{
    struct virtio_queue *q = &d->queue[qi];
    int r;

    virtqueue_start(&q->vq, d->mem, c);
    /* Edge-triggered: each write to the eventfd is an event, nobody has to read it. */
    q->watch = (struct blk_watch){ .fd = q->kick_fd, .events = EPOLLIN | EPOLLET, .fn = kicked,
                                   .arg = q };
    r = blk_watch_add(d->loop, &q->watch);
    if (r < 0)
        return r;
    q->live = true;
    q->stopped = false;
    return 0;
}

/* Copies of the frozen registers, made under the lock. */
struct start_copy {
    uint64_t features;
    uint64_t enabled;               /* queues, by bit */
    struct virtq_config queue[VIRTIO_QUEUES];
};

static void start_copy(const struct virtio_dev *d, struct start_copy *s)
{
    s->features = d->driver_features;
    s->enabled = 0;
    for (unsigned i = 0; i < d->queues; i++) {
        const struct virtio_queue_regs *r = &d->regs[i];

        if (!r->enabled)
            continue;
        s->enabled |= 1ull << i;
        s->queue[i] = (struct virtq_config){
            .size = r->size, .desc = r->desc, .avail = r->avail, .used = r->used,
            .event_idx = s->features & VIRTIO_F_EVENT_IDX,
            .indirect = s->features & VIRTIO_F_INDIRECT_DESC };
    }
}

static void queues_start(struct virtio_dev *d, const struct start_copy *s)
{
    int r = 0;

    d->features = s->features;
    for (unsigned i = 0; i < d->queues && r == 0; i++) {
        if (s->enabled & 1ull << i)
            r = queue_start(d, i, &s->queue[i]);
    }
    if (r == 0)
        r = d->type->start(d);
    if (r < 0) {
        queues_stop(d);
        virtqueue_break(&d->queue[0].vq, "cannot start (no memory?)");
        virtio_broken(d, 0);
        return;
    }
    /* Buffers may have been there before DRIVER_OK. */
    for (unsigned i = 0; i < d->queues; i++) {
        if (virtio_may_take(&d->queue[i]))
            d->type->serve(d, i);
    }
}

static void registers_default(struct virtio_dev *d)
{
    d->status = 0;
    d->offered_select = d->driver_select = 0;
    d->driver_features = 0;
    d->driver_beyond = false;
    d->queue_select = 0;
    for (unsigned i = 0; i < d->queues; i++) {
        struct virtio_queue_regs *r = &d->regs[i];

        r->size = d->queue_size;
        r->enabled = false;
        r->desc = r->avail = r->used = 0;
        atomic_store(&r->vector, VIRTIO_NO_VECTOR);
    }
    atomic_store(&d->config_vector, VIRTIO_NO_VECTOR);
    atomic_store(&d->isr, 0);
    d->started = false;
    d->type->config_reset(d);
}

/* The last request is home: forget the queues, then tell the driver. */
static void reset_finish(struct virtio_dev *d)
{
    uint64_t n;

    d->reset_wanted = false;
    d->dirty = 0;
    d->type->stopped(d);
    for (unsigned i = 0; i < d->queues; i++) {
        d->queue[i].live = false;
        (void)!read(d->queue[i].kick_fd, &n, sizeof(n));    /* old kicks */
    }
    pthread_mutex_lock(&d->pci.lock);
    registers_default(d);
    d->resetting = false;
    pthread_cond_broadcast(&d->reset_done);
    pthread_mutex_unlock(&d->pci.lock);
}

static void mail_read(void *arg)
{
    struct virtio_dev *d = arg;
    struct start_copy s;
    unsigned mail;

    pthread_mutex_lock(&d->pci.lock);
    mail = d->mail;
    d->mail = 0;
    d->posted = false;
    if (mail & VIRTIO_MAIL_START)
        start_copy(d, &s);
    pthread_mutex_unlock(&d->pci.lock);

    if (mail & VIRTIO_MAIL_START)
        queues_start(d, &s);
    if (mail & (VIRTIO_MAIL_HALT | VIRTIO_MAIL_RESET))
        queues_stop(d);
    if (mail & VIRTIO_MAIL_RESET) {
        d->reset_wanted = true;
        if (!d->inflight)
            reset_finish(d);
    }
}

void virtio_finish(struct virtio_dev *d, unsigned qi, uint16_t head, uint32_t written)
{
    if (!d->reset_wanted) {
        virtqueue_push(&d->queue[qi].vq, head, written);
        d->dirty |= 1ull << qi;
    }
    if (--d->inflight == 0 && d->reset_wanted)
        reset_finish(d);
}

/* ---- the vCPUs' side: under pci.lock ------------------------------------------------- */

static void mail_send(struct virtio_dev *d, unsigned what)
{
    d->mail |= what;
    if (!d->posted) {
        d->posted = true;
        blk_loop_post(d->loop, &d->post);
    }
}

static void reset(struct virtio_dev *d)
{
    struct timespec until;
    uint64_t ns;

    if (!d->started) {              /* the loop knows nothing of it yet */
        registers_default(d);
        return;
    }
    d->resetting = true;
    d->mail &= ~(unsigned)VIRTIO_MAIL_START;
    mail_send(d, VIRTIO_MAIL_RESET);
    ns = blk_now_ns() + d->reset_wait;
    until.tv_sec = (time_t)(ns / 1000000000u);
    until.tv_nsec = (long)(ns % 1000000000u);
    while (d->resetting && pthread_cond_timedwait(&d->reset_done, &d->pci.lock, &until) == 0)
        ;
}

static bool features_acceptable(const struct virtio_dev *d)
{
    return !d->driver_beyond && !(d->driver_features & ~d->offered) &&
           (d->driver_features & VIRTIO_F_VERSION_1);
}

/* Bits are only ever added; 0 resets. */
void virtio_set_status(struct virtio_dev *d, uint8_t value)
{
    uint8_t added;

    if (d->resetting)
        return;
    if (!value) {
        reset(d);
        return;
    }
    added = value & STATUS_DRIVER_BITS & (uint8_t)~d->status;
    if ((added & VIRTIO_S_FEATURES_OK) && !features_acceptable(d))
        added &= (uint8_t)~VIRTIO_S_FEATURES_OK;
    if ((added & VIRTIO_S_DRIVER_OK) && !((d->status | added) & VIRTIO_S_FEATURES_OK))
        added &= (uint8_t)~VIRTIO_S_DRIVER_OK;
    if ((d->status | added) & VIRTIO_S_FAILED)
        added &= (uint8_t)~VIRTIO_S_DRIVER_OK;
    d->status |= added;
    if (added & VIRTIO_S_DRIVER_OK) {
        d->started = true;
        mail_send(d, VIRTIO_MAIL_START);
    }
    if ((added & VIRTIO_S_FAILED) && d->started)
        mail_send(d, VIRTIO_MAIL_HALT);
}

uint32_t virtio_get_features(const struct virtio_dev *d, uint32_t select)
{
    return select < 2 ? (uint32_t)(d->offered >> 32 * select) : 0;
}

void virtio_set_features(struct virtio_dev *d, uint32_t select, uint32_t value)
{
    unsigned shift = 32 * (select & 1);

    if (d->resetting || (d->status & VIRTIO_S_FEATURES_OK))
        return;
    if (select < 2)
        d->driver_features = (d->driver_features & ~(0xffffffffull << shift)) |
                             (uint64_t)value << shift;
    else if (value)                 /* bits nobody can have offered */
        d->driver_beyond = true;
}

struct virtio_queue_regs *virtio_selected(struct virtio_dev *d, bool writable)
{
    if (d->queue_select >= d->queues)
        return NULL;
    if (writable && (d->resetting || (d->status & VIRTIO_S_DRIVER_OK)))
        return NULL;
    return &d->regs[d->queue_select];
}

void virtio_enable_queue(struct virtio_dev *d)
{
    struct virtio_queue_regs *r = virtio_selected(d, true);
    struct virtq_config c;
    const char *why;

    if (!r || r->enabled)
        return;
    c = (struct virtq_config){ .size = r->size, .desc = r->desc, .avail = r->avail,
                               .used = r->used };
    why = virtqueue_check(d->mem, &c);
    if (why) {
        report(d, d->queue_select, why);
        d->status |= VIRTIO_S_NEEDS_RESET;
        interrupt_config(d);
        return;
    }
    r->enabled = true;
}

void virtio_kick(struct virtio_dev *d, unsigned qi)
{
    uint64_t one = 1;

    if (qi < d->queues)
        (void)!write(d->queue[qi].kick_fd, &one, sizeof(one));
}

/* ---- life ------------------------------------------------------------------------------ */

static void kick_fds_close(struct virtio_dev *d)
{
    for (unsigned i = 0; i < d->queues; i++) {
        if (d->queue[i].kick_fd >= 0)
            close(d->queue[i].kick_fd);
    }
}

static int kick_fds_open(struct virtio_dev *d)
{
    for (unsigned i = 0; i < d->queues; i++) {
        d->queue[i].dev = d;
        d->queue[i].index = i;
        d->queue[i].kick_fd = -1;
    }
    for (unsigned i = 0; i < d->queues; i++) {
        d->queue[i].kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (d->queue[i].kick_fd < 0) {
            int err = errno;

            kick_fds_close(d);
            return -err;
        }
    }
    return 0;
}

static void cond_init_monotonic(pthread_cond_t *c)
{
    pthread_condattr_t a;

    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(c, &a);
    pthread_condattr_destroy(&a);
}

int virtio_init(struct virtio_dev *d, const struct virtio_type *type, struct pci_bus *bus,
                unsigned devfn, const struct mem *mem, struct blk_loop *loop, unsigned queues,
                unsigned queue_size, uint64_t features, struct blk_error *e)
{
    int r;

    if (!queues || queues > VIRTIO_QUEUES)
        return blk_err(e, EINVAL, "%s: the number of queues must be 1 to %u", type->name,
                       VIRTIO_QUEUES);
    if (!queue_size || queue_size > VIRTQ_SIZE_MAX || (queue_size & (queue_size - 1)))
        return blk_err(e, EINVAL, "%s: the queue size must be a power of two up to %u",
                       type->name, VIRTQ_SIZE_MAX);
    d->type = type;
    d->mem = mem;
    d->loop = loop;
    d->queues = queues;
    d->queue_size = (uint16_t)queue_size;
    d->reset_wait = VIRTIO_RESET_WAIT;
    d->offered = features | RING_FEATURES;
    d->post = (struct blk_post){ .fn = mail_read, .arg = d };
    d->hook = (struct blk_hook){ .fn = publish, .arg = d };
    r = kick_fds_open(d);
    if (r < 0)
        return blk_err(e, -r, "%s: cannot make an eventfd: %s", type->name, strerror(-r));
    r = virtio_pci_init(d, bus, devfn);
    if (r < 0) {
        kick_fds_close(d);
        return blk_err(e, -r, "%s: cannot put it at PCI %02x.%x: %s", type->name, devfn >> 3,
                       devfn & 7, strerror(-r));
    }
    cond_init_monotonic(&d->reset_done);
    registers_default(d);
    blk_hook_add(loop, &d->hook);
    return 0;
}

void virtio_fini(struct virtio_dev *d)
{
    bool busy;

    pthread_mutex_lock(&d->pci.lock);
    if (d->started && !d->resetting) {
        d->resetting = true;
        d->mail &= ~(unsigned)VIRTIO_MAIL_START;
        mail_send(d, VIRTIO_MAIL_RESET);
    }
    busy = d->resetting || d->posted;
    pthread_mutex_unlock(&d->pci.lock);
    while (busy) {
        blk_loop_turn(d->loop, true);
        pthread_mutex_lock(&d->pci.lock);
        busy = d->resetting || d->posted;
        pthread_mutex_unlock(&d->pci.lock);
    }
    blk_hook_del(d->loop, &d->hook);
    pci_dev_fini(&d->pci);
    kick_fds_close(d);
    pthread_cond_destroy(&d->reset_done);
}
