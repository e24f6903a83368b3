/*
 * run_serial.c - the 16550A as its drivers probe and use it, and as nobody
 * should.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "vmm-shim/serial.h"

enum { DATA, IER, FCR, LCR, MCR, LSR, MSR, SCR, IIR = FCR };

static struct wire {
    char sent[64];
    unsigned count;
    bool irq;
    unsigned rooms;
} wire;

static void on_irq(void *arg, bool level)
{
    wire.irq = level;
}

static void on_output(void *arg, uint8_t byte)
{
    wire.sent[wire.count++ % sizeof(wire.sent)] = (char)byte;
}

static void on_room(void *arg)
{
    wire.rooms++;
}

static const struct serial_ops ops = { .irq = on_irq, .output = on_output, .room = on_room };
static struct serial uart;

static int setup(void **state)
{
    memset(&wire, 0, sizeof(wire));
    serial_init(&uart, &ops, NULL);
    return 0;
}

static int teardown(void **state)
{
    serial_fini(&uart);
    return 0;
}

static void bytes_leave_at_once(void **state)
{
    serial_write(&uart, DATA, 'h');
    serial_write(&uart, DATA, 'i');
    assert_int_equal(wire.count, 2);
    assert_memory_equal(wire.sent, "hi", 2);
    assert_int_equal(serial_read(&uart, LSR), 0x60);
}

static void divisor_latch_is_not_sent(void **state)
{
    serial_write(&uart, LCR, 0x83);
    serial_write(&uart, DATA, 0x0c);
    serial_write(&uart, IER, 0x01);
    assert_int_equal(serial_read(&uart, DATA), 0x0c);
    assert_int_equal(serial_read(&uart, IER), 0x01);
    serial_write(&uart, LCR, 0x03);
    assert_int_equal(serial_read(&uart, IER), 0);
    assert_int_equal(wire.count, 0);
}

static void probes_as_16550a(void **state)
{
    serial_write(&uart, FCR, 0x01);
    assert_int_equal(serial_read(&uart, IIR), 0xc1);
    serial_write(&uart, FCR, 0x00);
    assert_int_equal(serial_read(&uart, IIR), 0x01);
    serial_write(&uart, SCR, 0xa5);
    assert_int_equal(serial_read(&uart, SCR), 0xa5);
    /* Only four interrupt enables exist. */
    serial_write(&uart, IER, 0xff);
    assert_int_equal(serial_read(&uart, IER), 0x0f);
}

static void loopback_returns_modem_lines_and_data(void **state)
{
    serial_write(&uart, MCR, 0x1a);     /* loop, OUT2, RTS */
    assert_int_equal(serial_read(&uart, MSR) & 0xf0, 0x90);
    serial_write(&uart, DATA, 'x');
    assert_int_equal(serial_read(&uart, LSR) & 1, 1);
    assert_int_equal(serial_read(&uart, DATA), 'x');
    assert_int_equal(wire.count, 0);
    /* The line is cut off meanwhile. */
    assert_int_equal(serial_input(&uart, (const uint8_t *)"y", 1), 0);
}

static void thr_interrupt_is_acknowledged_by_iir(void **state)
{
    assert_false(wire.irq);
    serial_write(&uart, IER, 0x02);
    assert_true(wire.irq);
    assert_int_equal(serial_read(&uart, IIR), 0x02);
    assert_false(wire.irq);
    assert_int_equal(serial_read(&uart, IIR), 0x01);
    serial_write(&uart, DATA, 'a');
    assert_true(wire.irq);
    /* Writing IER again with the bit set does not raise it anew. */
    serial_read(&uart, IIR);
    serial_write(&uart, IER, 0x02);
    assert_false(wire.irq);
    /* Off and on does. */
    serial_write(&uart, IER, 0x00);
    serial_write(&uart, IER, 0x02);
    assert_true(wire.irq);
}

static void receive_interrupt_until_fifo_is_empty(void **state)
{
    serial_write(&uart, FCR, 0xc1);     /* FIFO, trigger at 14 */
    serial_write(&uart, IER, 0x01);
    assert_int_equal(serial_input(&uart, (const uint8_t *)"abc", 3), 3);
    assert_true(wire.irq);
    assert_int_equal(serial_read(&uart, IIR), 0xcc);    /* timeout: below the trigger */
    assert_int_equal(serial_input(&uart, (const uint8_t *)"defghijklmn", 11), 11);
    assert_int_equal(serial_read(&uart, IIR), 0xc4);
    for (int c = 'a'; c <= 'n'; c++) {
        assert_true(wire.irq);
        assert_int_equal(serial_read(&uart, DATA), c);
    }
    assert_false(wire.irq);
    assert_int_equal(serial_read(&uart, DATA), 0);
}

static void input_beyond_the_fifo_waits_and_is_called_for(void **state)
{
    uint8_t data[40];

    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)i;
    serial_write(&uart, FCR, 0x01);
    assert_int_equal(serial_input(&uart, data, sizeof(data)), SERIAL_FIFO);
    assert_int_equal(serial_input(&uart, data, 1), 0);
    assert_int_equal(wire.rooms, 0);
    assert_int_equal(serial_read(&uart, DATA), 0);
    assert_int_equal(wire.rooms, 1);
    assert_int_equal(serial_read(&uart, DATA), 1);
    assert_int_equal(wire.rooms, 1);
    /* No overrun: the bytes were never taken. */
    assert_int_equal(serial_read(&uart, LSR) & 2, 0);
}

static void without_fifo_one_byte_fits(void **state)
{
    assert_int_equal(serial_input(&uart, (const uint8_t *)"ab", 2), 1);
    serial_write(&uart, FCR, 0x01);     /* switching empties */
    assert_int_equal(wire.rooms, 1);
    assert_int_equal(serial_read(&uart, LSR) & 1, 0);
}

static void loopback_overrun_sets_lsr_once(void **state)
{
    serial_write(&uart, FCR, 0x01);
    serial_write(&uart, MCR, 0x10);
    serial_write(&uart, IER, 0x04);
    for (int i = 0; i < 100; i++)
        serial_write(&uart, DATA, 'z');
    assert_true(wire.irq);
    assert_int_equal(serial_read(&uart, IIR), 0xc6);
    assert_int_equal(serial_read(&uart, LSR) & 2, 2);
    assert_int_equal(serial_read(&uart, LSR) & 2, 0);
    assert_false(wire.irq);
}

/* Every register, every value, in a pseudo-random order, with input going on. */
static void any_access_is_survived(void **state)
{
    uint32_t x = 12345;

    for (int i = 0; i < 500000; i++) {
        x = x * 1664525u + 1013904223u;
        if (x >> 31)
            serial_write(&uart, x >> 8 & 15, (uint8_t)(x >> 16));
        else
            serial_read(&uart, x >> 8 & 15);
        if (i % 7 == 0)
            serial_input(&uart, (const uint8_t *)"0123456789abcdefghij", x >> 12 & 15);
        assert_true(uart.count <= SERIAL_FIFO);
        assert_true(uart.head < SERIAL_FIFO);
        assert_int_equal(uart.level, wire.irq);
    }
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(bytes_leave_at_once),
        CASE(divisor_latch_is_not_sent),
        CASE(probes_as_16550a),
        CASE(loopback_returns_modem_lines_and_data),
        CASE(thr_interrupt_is_acknowledged_by_iir),
        CASE(receive_interrupt_until_fifo_is_empty),
        CASE(input_beyond_the_fifo_waits_and_is_called_for),
        CASE(without_fifo_one_byte_fits),
        CASE(loopback_overrun_sets_lsr_once),
        CASE(any_access_is_survived),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
