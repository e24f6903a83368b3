/*
 * serial.h - a 16550A UART whose line is somebody else's: bytes the guest sends
 * go to ops->output, bytes for it come in through serial_input().
 *
 * The wire is infinitely fast: a byte written has left at once.  Any thread;
 * ops->output is called without s->lock held, so that a full terminal never
 * blocks input; ops->irq is called with it held.
 */
#ifndef PLATTER_SERIAL_H
#define PLATTER_SERIAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SERIAL_PORTS  8u
#define SERIAL_FIFO   16u

struct serial_ops {
    void (*irq)(void *arg, bool level);
    void (*output)(void *arg, uint8_t byte);
    /* There is room for input again after serial_input() took less than given. */
    void (*room)(void *arg);
};

struct serial {
    const struct serial_ops *ops;
    void *arg;
    pthread_mutex_t lock;
    uint8_t ier, fcr, lcr, mcr, scr, dll, dlm;
    bool thr_pending;               /* "transmitter empty" not yet seen in IIR */
    bool overrun;
    bool level;                     /* of the interrupt line */
    bool starved;                   /* input is waiting for room */
    unsigned head, count;           /* receive FIFO */
    uint8_t fifo[SERIAL_FIFO];
};

void serial_init(struct serial *s, const struct serial_ops *ops, void *arg);
void serial_fini(struct serial *s);
/* reg 0-7, one byte. */
uint8_t serial_read(struct serial *s, unsigned reg);
void serial_write(struct serial *s, unsigned reg, uint8_t value);
/* Bytes taken, 0..len. */
size_t serial_input(struct serial *s, const uint8_t *data, size_t len);

#endif
