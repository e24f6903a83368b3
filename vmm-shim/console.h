/*
 * console.h - the host's end of the guest's serial line: the terminal in raw
 * mode, a file, or nothing.
 *
 * On a terminal Ctrl-a is the escape: Ctrl-a x leaves, Ctrl-a Ctrl-a (or
 * Ctrl-a a) sends one, Ctrl-a h shows help.  The terminal's modes are restored
 * by console_close(), at exit() and when a signal kills the process.
 */
#ifndef PLATTER_CONSOLE_H
#define PLATTER_CONSOLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"

enum console_kind { CONSOLE_STDIO, CONSOLE_NONE, CONSOLE_FILE };

#define CONSOLE_INPUT 256u

struct console {
    int in, out;                    /* -1: none */
    bool owns_out;
    bool tty;                       /* escapes are looked for, modes were changed */
    bool escaped;                   /* the last byte was Ctrl-a */
    unsigned have;                  /* bytes in pend[] the UART has not taken */
    uint8_t pend[CONSOLE_INPUT];
    int room_fd;                    /* eventfd: the UART has room again */
    pthread_mutex_t out_lock;
    atomic_bool closing;            /* writers give up instead of waiting */
};

/* path: for CONSOLE_FILE. */
int console_open(struct console *c, enum console_kind kind, const char *path,
                 struct blk_error *e);
void console_close(struct console *c);
/* One byte from the guest.  Any thread; waits for a slow reader until closing
 * is set and the thread gets a signal. */
void console_put(struct console *c, uint8_t byte);
/* The terminal is raw again after the process was stopped and continued. */
void console_resume(struct console *c);
/* Restore the terminal's modes: idempotent, async-signal-safe. */
void console_restore(void);

/* Descriptor to poll for input, or -1 while there is none to read or no room. */
int console_poll_fd(const struct console *c);
/* Read what there is into pend[]; true: the escape to leave was typed. */
bool console_read(struct console *c);
/* The first n bytes of pend[] have been taken. */
void console_taken(struct console *c, size_t n);

#endif
