/*
 * disk.c - see disk.h.
 */
#include "vmm-shim/disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUEUES_DEFAULT_MAX 8u

/* What messages call the disk. malloc'd, or NULL. */
static char *disk_name(const struct disk_options *o)
{
    return o->id ? strdup(o->id) : o->file ? blk_redact(o->file) : NULL;
}

static int name_error(const struct disk_options *o, int ret, struct blk_error *e)
{
    char *name = disk_name(o);

    if (ret < 0)
        blk_error_prefix(e, "disk %s: ", name ? name : "(without a name)");
    free(name);
    return ret;
}

/* On the thread that owns the loop. */
static int close_node(struct disk *d, struct blk_error *e)
{
    int ret;

    virtio_blk_free(d->blk);
    d->blk = NULL;
    ret = blk_close(d->node, e);
    d->node = NULL;
    return ret;
}

static void free_loop(struct disk *d)
{
    blk_loop_free(d->loop);
    d->loop = NULL;
}

static int open_device(struct disk *d, unsigned cpus, struct pci_bus *bus, unsigned devfn,
                       const struct mem *mem, struct blk_error *e)
{
    const struct disk_options *o = d->options;
    struct virtio_blk_config c = {
        .node = d->node,
        .serial = o->serial,
        .queues = o->queues ? o->queues : BLK_MIN(cpus, QUEUES_DEFAULT_MAX),
        .queue_size = o->queue_size,
        .block_size = o->block_size,
        .read_only = o->read_only,
        .writethrough = o->writethrough,
    };

    return virtio_blk_new(bus, devfn, mem, &c, &d->blk, e);
}

int disk_open(struct disk *d, const struct disk_options *o, unsigned cpus, struct pci_bus *bus,
              unsigned devfn, const struct mem *mem, struct blk_error *e)
{
    struct blk_open_args a = {
        .filename = o->file,
        .format = o->format,
        .opts = o->node,
        .flags = o->flags,
        .backing_urls = o->backing_urls,
    };
    int ret;

    d->options = o;
    d->loop = blk_loop_new(e);
    if (!d->loop)
        return name_error(o, blk_err(e, ENOMEM, "no loop"), e);
    ret = blk_open(d->loop, &a, &d->node, e);
    if (ret == 0)
        ret = open_device(d, cpus, bus, devfn, mem, e);
    if (ret < 0) {
        close_node(d, NULL);
        free_loop(d);
    }
    return name_error(o, ret, e);
}

static void *thread_main(void *arg)
{
    struct disk *d = arg;

    pthread_setname_np(pthread_self(), "disk");
    blk_loop_adopt(d->loop);
    blk_loop_run(d->loop);
    d->close_result = close_node(d, &d->close_error);
    return NULL;
}

int disk_start(struct disk *d, struct blk_error *e)
{
    int err = pthread_create(&d->thread, NULL, thread_main, d);

    if (err)
        return name_error(d->options, blk_err_errno(e, err, "Could not start a thread"), e);
    d->started = true;
    return 0;
}

static void report(void *arg)
{
    struct disk *d = arg;
    const struct virtio_blk_stats *s;
    char *name;

    if (!d->blk)
        return;                         /* it is being closed */
    s = virtio_blk_stats(d->blk);
    name = disk_name(d->options);
    blk_report("disk %s: %u requests in flight, %llu taken, %llu kicks, %llu interrupts",
               name ? name : "(without a name)", s->inflight, (unsigned long long)s->requests,
               (unsigned long long)s->kicks, (unsigned long long)s->interrupts);
    free(name);
    atomic_store(&d->reporting, false);
}

void disk_report(struct disk *d)
{
    if (!d->started || atomic_exchange(&d->reporting, true))
        return;
    d->report = (struct blk_post){ .fn = report, .arg = d };
    blk_loop_post(d->loop, &d->report);
}

/* The loop is freed here: its thread could do so while blk_loop_stop() still runs. */
static int stop_thread(struct disk *d, struct blk_error *e)
{
    blk_loop_stop(d->loop);
    pthread_join(d->thread, NULL);
    d->started = false;
    blk_loop_adopt(d->loop);
    if (d->close_result < 0)
        blk_err(e, -d->close_result, "%s", d->close_error.text);
    return d->close_result;
}

int disk_close(struct disk *d, struct blk_error *e)
{
    int ret;

    if (!d->loop)
        return 0;
    ret = d->started ? stop_thread(d, e) : close_node(d, e);
    free_loop(d);
    return name_error(d->options, ret, e);
}
