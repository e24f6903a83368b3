/*
 * progress.c - how far a long command is.
 *
 * Four ways to say it: a bar on a terminal, qemu-img's percentages when -p
 * goes to a pipe (scripts parse them), a line on stderr for SIGUSR1, lines of
 * JSON for programs (--progress=FD|json).  The signal handler only sets a flag;
 * the next img_progress_set() prints, so updates should come every few MiB.
 * Where the result is JSON it has stdout for itself: bar and percentages then go
 * to stderr.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "img/img.h"

#define REDRAW_NS   100000000ull    /* the bar moves at most ten times a second */
#define BAR_MAX     40

static struct {
    bool enabled, terminal, drawn;
    double min_skip;                /* percent */
    double percent, printed;        /* now, and when last printed */
    uint64_t start_ns, drawn_ns;
    uint64_t bytes;                 /* done so far, as last heard; 0: not counted */
    int json_fd;                    /* lines of JSON go there; 0: nowhere */
    double json_percent;            /* the last line's; what ends it repeats nothing */
    bool to_stderr;
} progress;

static FILE *out(void)
{
    return progress.to_stderr ? stderr : stdout;
}

static volatile sig_atomic_t asked;

static void on_usr1(int sig)
{
    asked = 1;
}

void img_progress_to_stderr(void)
{
    progress.to_stderr = true;
}

int img_parse_progress(const char *s, bool *on)
{
    char *end;
    long fd;

    if (!s) {
        *on = true;
        return 0;
    }
    errno = 0;
    fd = !strcmp(s, "json") ? STDERR_FILENO : strtol(s, &end, 10);
    if (strcmp(s, "json") && (errno || end == s || *end || fd < 1 || fd > INT32_MAX)) {
        img_error("--progress expects 'json' or the number of a file descriptor, not '%s'", s);
        return -EINVAL;
    }
    if (fcntl((int)fd, F_GETFL) < 0 || (fcntl((int)fd, F_GETFL) & O_ACCMODE) == O_RDONLY) {
        img_error("--progress: file descriptor %ld is not open for writing", fd);
        return -EBADF;
    }
    progress.json_fd = (int)fd;
    signal(SIGPIPE, SIG_IGN);       /* a reader that leaves must not end the work */
    return 0;
}

void img_progress_start(bool enabled, double min_skip)
{
    struct sigaction sa = { .sa_handler = on_usr1, .sa_flags = SA_RESTART };

    progress.enabled = enabled && !progress.json_fd;
    progress.terminal = progress.enabled && isatty(fileno(out()));
    progress.min_skip = min_skip;
    progress.percent = 0;
    progress.printed = -1000;
    progress.json_percent = -1;
    progress.start_ns = blk_now_ns();
    progress.drawn = false;
    progress.bytes = 0;
    sigaction(SIGUSR1, &sa, NULL);
}

/* "1.2 GiB/s  0:42 left", or the time taken once all is done. */
static void describe(char *buf, size_t len, uint64_t done, uint64_t total)
{
    double s = (double)(blk_now_ns() - progress.start_ns) / 1e9;
    double rate = s > 0 ? (double)done / s : 0;
    uint64_t left = done < total && rate > 0 ? (uint64_t)((double)(total - done) / rate)
                                             : (uint64_t)s;
    char size[32];
    int n = 0;

    if (progress.bytes && s > 0) {
        n = snprintf(buf, len, "  %s/s",
                     img_human_size((uint64_t)((double)progress.bytes / s), size, sizeof(size)));
    }
    if (done < total && rate <= 0) {
        snprintf(buf + n, len - (size_t)n, "  --:-- left");
    } else {
        snprintf(buf + n, len - (size_t)n, "  %" PRIu64 ":%02u %s", left / 60,
                 (unsigned)(left % 60), done < total ? "left" : "taken");
    }
}

static int bar_width(void)
{
    struct winsize w;
    int columns = ioctl(fileno(out()), TIOCGWINSZ, &w) || !w.ws_col ? 80 : w.ws_col;

    return BLK_MAX(0, BLK_MIN(BAR_MAX, columns - 40));
}

static void draw_bar(uint64_t done, uint64_t total)
{
    uint64_t now = blk_now_ns();
    int width = bar_width(), full = (int)(progress.percent / 100 * width);
    char bar[BAR_MAX + 1], text[80];

    if (progress.drawn && done < total && now - progress.drawn_ns < REDRAW_NS) {
        return;
    }
    progress.drawn = true;
    progress.drawn_ns = now;
    memset(bar, '.', sizeof(bar));
    memset(bar, '#', (size_t)full);
    describe(text, sizeof(text), done, total);
    fprintf(out(), "\r[%.*s] %6.2f%%%s\033[K", width, bar, progress.percent, text);
    fflush(out());
}

static void print_percent(void)
{
    double moved = progress.percent - progress.printed;

    if (moved > progress.min_skip || moved < -progress.min_skip ||
        progress.percent <= 0 || progress.percent >= 100) {
        progress.printed = progress.percent;
        progress.drawn = true;
        fprintf(out(), "    (%3.2f/100%%)\r", progress.percent);
        fflush(out());
    }
}

/* One line, ten times a second at most, and always the first and the last. */
static void print_json(uint64_t done, uint64_t total, bool bytes)
{
    uint64_t now = blk_now_ns();
    bool edge = progress.json_percent < 0 || progress.percent >= 100;

    if (progress.percent == progress.json_percent ||
        (!edge && now - progress.drawn_ns < REDRAW_NS)) {
        return;
    }
    progress.drawn_ns = now;
    progress.json_percent = progress.percent;
    fflush(stderr);
    if (dprintf(progress.json_fd, "{\"percent\": %.2f, \"done\": %" PRIu64 ", \"total\": %" PRIu64
                ", \"unit\": \"%s\", \"seconds\": %.3f}\n", progress.percent, done, total,
                bytes ? "bytes" : "steps", (double)(now - progress.start_ns) / 1e9) < 0) {
        progress.json_fd = 0;
    }
}

void img_progress_set(uint64_t done, uint64_t total, bool bytes)
{
    progress.percent = total ? BLK_MIN(100.0, 100.0 * (double)done / (double)total) : 100.0;
    if (bytes) {
        progress.bytes = done;
    }
    if (asked) {
        asked = 0;
        fprintf(stderr, "    (%3.2f/100%%)\n", progress.percent);
    }
    if (progress.json_fd) {
        print_json(done, total, bytes);
    } else if (progress.terminal) {
        draw_bar(done, total);
    } else if (progress.enabled) {
        print_percent();
    }
}

void img_progress_end(void)
{
    if (progress.enabled && (progress.drawn || !progress.terminal)) {
        fputc('\n', out());
        fflush(out());
    }
    progress.enabled = progress.terminal = false;
    signal(SIGUSR1, SIG_DFL);
}
