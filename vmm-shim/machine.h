/*
 * machine.h - the whole guest: memory, board, vCPUs, disks; made, run and taken
 * apart once per boot.
 */
#ifndef PLATTER_MACHINE_H
#define PLATTER_MACHINE_H

#include "block/block.h"
#include "vmm-shim/options.h"

/* Boot one guest and wait for its end.  The exit code; one line in e for every
 * code that is an error, except disks' errors at the end: those are reported one
 * by one (blk_report).  Main thread. */
enum run_exit machine_run(const struct run_options *o, struct blk_error *e);

#endif
