/*
 * console.c - see console.h.
 */
#include "vmm-shim/console.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define ESCAPE 0x01u                /* Ctrl-a */

/* The terminal belongs to the process, so what must be put back does as well. */
static struct termios saved_modes;
static volatile sig_atomic_t modes_changed;

void console_restore(void)
{
    if (modes_changed) {
        modes_changed = 0;
        tcsetattr(STDIN_FILENO, TCSANOW, &saved_modes);
    }
}

static void restore_and_die(int sig)
{
    /* Installed with SA_RESETHAND: raising again kills as it should. */
    console_restore();
    raise(sig);
}

static void guard_fatal_signals(void)
{
    static const int fatal[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGQUIT };
    struct sigaction sa = { .sa_handler = restore_and_die, .sa_flags = (int)SA_RESETHAND };
    struct sigaction old;

    for (size_t i = 0; i < BLK_ARRAY_SIZE(fatal); i++) {
        /* Leave a sanitizer's handlers alone. */
        if (sigaction(fatal[i], NULL, &old) == 0 && old.sa_handler == SIG_DFL &&
            !(old.sa_flags & SA_SIGINFO))
            sigaction(fatal[i], &sa, NULL);
    }
}

static void set_raw(void)
{
    struct termios raw = saved_modes;

    cfmakeraw(&raw);
    raw.c_oflag |= OPOST;           /* our own messages keep their line ends */
    modes_changed = 1;
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

void console_resume(struct console *c)
{
    if (c->tty && modes_changed)
        set_raw();
}

static int open_stdio(struct console *c)
{
    static bool registered;

    c->in = STDIN_FILENO;
    c->out = STDOUT_FILENO;
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &saved_modes) < 0)
        return 0;
    c->tty = true;
    if (!registered) {
        registered = true;
        atexit(console_restore);
        guard_fatal_signals();
    }
    set_raw();
    return 0;
}

static int open_file(struct console *c, const char *path, struct blk_error *e)
{
    c->out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
    if (c->out < 0)
        return blk_err_errno(e, errno, "Could not open console file '%s'", path);
    c->owns_out = true;
    return 0;
}

int console_open(struct console *c, enum console_kind kind, const char *path, struct blk_error *e)
{
    int ret = 0;

    memset(c, 0, sizeof(*c));
    c->in = c->out = -1;
    c->room_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (c->room_fd < 0)
        return blk_err_errno(e, errno, "Could not make an eventfd");
    pthread_mutex_init(&c->out_lock, NULL);
    if (kind == CONSOLE_STDIO)
        ret = open_stdio(c);
    else if (kind == CONSOLE_FILE)
        ret = open_file(c, path, e);
    if (ret < 0)
        console_close(c);
    return ret;
}

void console_close(struct console *c)
{
    if (c->tty)
        console_restore();
    if (c->owns_out)
        close(c->out);
    if (c->room_fd >= 0)
        close(c->room_fd);
    c->in = c->out = c->room_fd = -1;
    c->owns_out = c->tty = false;
    pthread_mutex_destroy(&c->out_lock);
}

/* ---- output ------------------------------------------------------------------------ */

/* False: the output is gone for good. */
static bool write_out(struct console *c, const void *data, size_t len)
{
    const uint8_t *p = data;

    while (len > 0) {
        ssize_t n = write(c->out, p, len);

        if (n >= 0) {
            p += n;
            len -= (size_t)n;
        } else if (errno == EAGAIN) {
            struct pollfd pfd = { .fd = c->out, .events = POLLOUT };

            poll(&pfd, 1, 100);
        } else if (errno != EINTR) {
            return false;
        }
        if (len > 0 && atomic_load(&c->closing))
            return true;
    }
    return true;
}

void console_put(struct console *c, uint8_t byte)
{
    pthread_mutex_lock(&c->out_lock);
    if (c->out >= 0 && !write_out(c, &byte, 1)) {
        /* A reader that left does not stop the guest. */
        if (c->owns_out)
            close(c->out);
        c->out = -1;
        c->owns_out = false;
        blk_report("console output lost: %s", strerror(errno));
    }
    pthread_mutex_unlock(&c->out_lock);
}

/* ---- input -------------------------------------------------------------------------- */

static void show_help(struct console *c)
{
    static const char text[] = "\r\nCtrl-a x       leave: end the guest at once\r\n"
                               "Ctrl-a Ctrl-a  send Ctrl-a to the guest\r\n"
                               "Ctrl-a h       this help\r\n";

    struct pollfd pfd = { .fd = c->out, .events = POLLOUT };
    struct timespec until;

    /* The guest may be in the middle of a byte.  But the main thread must never wait
     * long for a terminal that takes nothing. */
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec++;
    if (pthread_mutex_clocklock(&c->out_lock, CLOCK_MONOTONIC, &until))
        return;
    if (c->out >= 0 && poll(&pfd, 1, 0) > 0)
        write_out(c, text, sizeof(text) - 1);
    pthread_mutex_unlock(&c->out_lock);
}

static void pend_byte(struct console *c, uint8_t byte)
{
    if (c->have < CONSOLE_INPUT)
        c->pend[c->have++] = byte;
}

/* True: leave. */
static bool take_byte(struct console *c, uint8_t byte)
{
    if (!c->escaped) {
        c->escaped = c->tty && byte == ESCAPE;
        if (!c->escaped)
            pend_byte(c, byte);
        return false;
    }
    c->escaped = false;
    if (byte == 'x' || byte == 'X')
        return true;
    if (byte == 'h' || byte == '?')
        show_help(c);
    else
        pend_byte(c, byte == 'a' ? (uint8_t)ESCAPE : byte);
    return false;
}

int console_poll_fd(const struct console *c)
{
    /* A terminal is read even while the guest takes nothing: the escape works,
     * other bytes are dropped when pend[] is full. */
    return c->tty || c->have == 0 ? c->in : -1;
}

bool console_read(struct console *c)
{
    uint8_t buf[CONSOLE_INPUT];
    ssize_t n = read(c->in, buf, sizeof(buf));

    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return false;
    if (n <= 0) {
        c->in = -1;                 /* end of input: the guest runs on */
        return false;
    }
    for (ssize_t i = 0; i < n; i++) {
        if (take_byte(c, buf[i]))
            return true;
    }
    return false;
}

void console_taken(struct console *c, size_t n)
{
    memmove(c->pend, c->pend + n, c->have - n);
    c->have -= (unsigned)n;
}
