/*
 * options.h - platter-run's command line.
 */
#ifndef PLATTER_RUN_OPTIONS_H
#define PLATTER_RUN_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"
#include "vmm-shim/console.h"

#define RUN_DISKS_MAX 31u           /* slots of the PCI bus without the bridge */

/* Exit codes; --help says them in words. */
enum run_exit {
    RUN_POWER_OFF    = 0,
    RUN_NOT_STARTED  = 1,
    RUN_USAGE        = 2,
    RUN_RESET        = 3,
    RUN_TRIPLE_FAULT = 4,
    RUN_INTERNAL     = 5,
    RUN_DISK_ERROR   = 6,
    RUN_ESCAPE       = 7,
    RUN_SIGNAL       = 128,         /* plus the signal's number */
};

enum run_action { RUN_GUEST, RUN_CHECK_HOST, RUN_SHOW_HELP, RUN_SHOW_VERSION };

struct disk_options {
    char *file;                     /* path or URL; NULL: node says it */
    char *format, *serial, *id, *backing_urls;   /* NULL: not given */
    unsigned flags;                 /* BLK_O_* */
    unsigned queues;                /* 0: not given */
    unsigned queue_size, block_size;
    bool read_only, writethrough;
    struct blk_opts *node;          /* every other key, for blk_open() */
};

struct run_options {
    enum run_action action;
    const char *kernel, *initrd, *append;        /* argv's; append never NULL */
    struct disk_options disk[RUN_DISKS_MAX];
    unsigned disks;
    uint64_t memory;                /* bytes */
    unsigned cpus;
    enum console_kind console;
    const char *console_path;
    bool reboot;
};

/* -EINVAL with one line in e when something does not parse.  o must be freed
 * either way. */
int run_options_parse(struct run_options *o, int argc, char **argv, struct blk_error *e);
void run_options_free(struct run_options *o);
void run_options_help(void);        /* on stdout */

#endif
