/*
 * hostcheck.h - platter-run --check-host: tells a person whether this host can
 * run guests, and what to do if it cannot.
 */
#ifndef PLATTER_HOSTCHECK_H
#define PLATTER_HOSTCHECK_H

#include <stdbool.h>

/* Prints on stdout, the verdict on the first line.  True: guests run, and on
 * hardware (or a virtual machine's). */
bool hostcheck_run(void);

#endif
