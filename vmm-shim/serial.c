/*
 * serial.c - see serial.h.  Registers as in National's PC16550D data sheet.
 */
#include "vmm-shim/serial.h"

#include <string.h>

enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };

#define IER_RX       0x01u
#define IER_THR      0x02u
#define IER_LINE     0x04u
#define IER_ALL      0x0fu
#define IIR_NONE     0x01u
#define IIR_THR      0x02u
#define IIR_RX       0x04u
#define IIR_LINE     0x06u
#define IIR_TIMEOUT  0x0cu
#define IIR_FIFO     0xc0u
#define FCR_ENABLE   0x01u
#define FCR_CLEAR_RX 0x02u
#define FCR_KEPT     0xc9u          /* enable, DMA mode, trigger level */
#define LCR_DLAB     0x80u
#define MCR_DTR      0x01u
#define MCR_RTS      0x02u
#define MCR_OUT1     0x04u
#define MCR_OUT2     0x08u
#define MCR_LOOP     0x10u
#define MCR_ALL      0x1fu
#define LSR_DATA     0x01u
#define LSR_OVERRUN  0x02u
#define LSR_THR      0x20u
#define LSR_IDLE     0x40u
#define MSR_CTS      0x10u
#define MSR_DSR      0x20u
#define MSR_RI       0x40u
#define MSR_DCD      0x80u

static unsigned trigger_level(const struct serial *s)
{
    static const uint8_t level[4] = { 1, 4, 8, 14 };

    return s->fcr & FCR_ENABLE ? level[s->fcr >> 6] : 1;
}

static unsigned fifo_room(const struct serial *s)
{
    return (s->fcr & FCR_ENABLE ? SERIAL_FIFO : 1) - s->count;
}

/* The interrupt with the highest priority, or IIR_NONE. */
static uint8_t pending(const struct serial *s)
{
    if ((s->ier & IER_LINE) && s->overrun)
        return IIR_LINE;
    if ((s->ier & IER_RX) && s->count >= trigger_level(s))
        return IIR_RX;
    /* Below the trigger level: the character timeout, without the wait. */
    if ((s->ier & IER_RX) && s->count > 0)
        return IIR_TIMEOUT;
    if ((s->ier & IER_THR) && s->thr_pending)
        return IIR_THR;
    return IIR_NONE;
}

static void update_irq(struct serial *s)
{
    bool level = pending(s) != IIR_NONE;

    if (level == s->level)
        return;
    s->level = level;
    s->ops->irq(s->arg, level);
}

static void fifo_put(struct serial *s, uint8_t byte)
{
    if (s->fcr & FCR_ENABLE ? s->count == SERIAL_FIFO : s->count == 1) {
        s->overrun = true;
        return;
    }
    s->fifo[(s->head + s->count) % SERIAL_FIFO] = byte;
    s->count++;
}

static uint8_t fifo_get(struct serial *s)
{
    uint8_t byte;

    if (s->count == 0)
        return 0;
    byte = s->fifo[s->head];
    s->head = (s->head + 1) % SERIAL_FIFO;
    s->count--;
    return byte;
}

static uint8_t modem_status(const struct serial *s)
{
    uint8_t v = 0;

    if (!(s->mcr & MCR_LOOP))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    v |= s->mcr & MCR_RTS ? MSR_CTS : 0;
    v |= s->mcr & MCR_DTR ? MSR_DSR : 0;
    v |= s->mcr & MCR_OUT1 ? MSR_RI : 0;
    v |= s->mcr & MCR_OUT2 ? MSR_DCD : 0;
    return v;
}

static uint8_t read_lsr(struct serial *s)
{
    uint8_t v = LSR_THR | LSR_IDLE;

    v |= s->count ? LSR_DATA : 0;
    v |= s->overrun ? LSR_OVERRUN : 0;
    s->overrun = false;
    return v;
}

static uint8_t read_iir(struct serial *s)
{
    uint8_t v = pending(s);

    if (v == IIR_THR)
        s->thr_pending = false;
    return v | (s->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint8_t read_locked(struct serial *s, unsigned reg)
{
    bool dlab = s->lcr & LCR_DLAB;

    switch (reg) {
    case REG_DATA:    return dlab ? s->dll : fifo_get(s);
    case REG_IER:     return dlab ? s->dlm : s->ier;
    case REG_IIR_FCR: return read_iir(s);
    case REG_LCR:     return s->lcr;
    case REG_MCR:     return s->mcr;
    case REG_LSR:     return read_lsr(s);
    case REG_MSR:     return modem_status(s);
    case REG_SCR:     return s->scr;
    default:          return 0xff;
    }
}

uint8_t serial_read(struct serial *s, unsigned reg)
{
    bool room;
    uint8_t v;

    pthread_mutex_lock(&s->lock);
    v = read_locked(s, reg);
    update_irq(s);
    room = s->starved && fifo_room(s) > 0;
    if (room)
        s->starved = false;
    pthread_mutex_unlock(&s->lock);
    if (room && s->ops->room)
        s->ops->room(s->arg);
    return v;
}

static void write_fcr(struct serial *s, uint8_t v)
{
    /* Switching the FIFOs on or off empties them. */
    if ((v & FCR_CLEAR_RX) || ((v ^ s->fcr) & FCR_ENABLE)) {
        s->head = s->count = 0;
        s->overrun = false;
    }
    s->fcr = v & FCR_ENABLE ? v & FCR_KEPT : 0;
}

static void write_ier(struct serial *s, uint8_t v)
{
    /* Enabling the interrupt while the transmitter is empty raises it. */
    if ((v & IER_THR) && !(s->ier & IER_THR))
        s->thr_pending = true;
    s->ier = v & IER_ALL;
}

/* True when value is to leave on the wire. */
static bool write_data(struct serial *s, uint8_t value)
{
    if (s->lcr & LCR_DLAB) {
        s->dll = value;
        return false;
    }
    s->thr_pending = true;
    if (s->mcr & MCR_LOOP) {
        fifo_put(s, value);
        return false;
    }
    return true;
}

void serial_write(struct serial *s, unsigned reg, uint8_t value)
{
    bool room, send = false;

    pthread_mutex_lock(&s->lock);
    switch (reg) {
    case REG_DATA:
        send = write_data(s, value);
        break;
    case REG_IER:
        if (s->lcr & LCR_DLAB)
            s->dlm = value;
        else
            write_ier(s, value);
        break;
    case REG_IIR_FCR:
        write_fcr(s, value);
        break;
    case REG_LCR:
        s->lcr = value;
        break;
    case REG_MCR:
        s->mcr = value & MCR_ALL;
        break;
    case REG_SCR:
        s->scr = value;
        break;
    default:                        /* LSR and MSR are read-only */
        break;
    }
    update_irq(s);
    room = s->starved && !(s->mcr & MCR_LOOP) && fifo_room(s) > 0;
    if (room)
        s->starved = false;
    pthread_mutex_unlock(&s->lock);
    if (send)
        s->ops->output(s->arg, value);
    if (room && s->ops->room)
        s->ops->room(s->arg);
}

size_t serial_input(struct serial *s, const uint8_t *data, size_t len)
{
    size_t n = 0;

    pthread_mutex_lock(&s->lock);
    /* In loopback the receiver is cut off from the line. */
    while (n < len && !(s->mcr & MCR_LOOP) && fifo_room(s) > 0)
        fifo_put(s, data[n++]);
    s->starved = n < len;
    update_irq(s);
    pthread_mutex_unlock(&s->lock);
    return n;
}

void serial_init(struct serial *s, const struct serial_ops *ops, void *arg)
{
    memset(s, 0, sizeof(*s));
    s->ops = ops;
    s->arg = arg;
    s->dll = 1;                     /* 115200 baud, for those who look */
    s->lcr = 0x03;
    pthread_mutex_init(&s->lock, NULL);
}

void serial_fini(struct serial *s)
{
    pthread_mutex_destroy(&s->lock);
}
