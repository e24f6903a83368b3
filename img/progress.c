/*
 * progress.c - how far a long command is.
 *
 * Three ways to say it: a bar on a terminal, qemu-img's percentages when -p
 * goes to a pipe (scripts parse them), a line on stderr for SIGUSR1.  The signal
 * handler only sets a flag; the next img_progress_set() prints, so updates
 * should come every few MiB.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
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
} progress;

static volatile sig_atomic_t asked;

static void on_usr1(int sig)
{
    asked = 1;
}

void img_progress_start(bool enabled, double min_skip)
{
    struct sigaction sa = { .sa_handler = on_usr1, .sa_flags = SA_RESTART };

    progress.enabled = enabled;
    progress.terminal = enabled && isatty(STDOUT_FILENO);
    progress.min_skip = min_skip;
    progress.percent = 0;
    progress.printed = -1000;
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
    int columns = ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) || !w.ws_col ? 80 : w.ws_col;

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
    printf("\r[%.*s] %6.2f%%%s\033[K", width, bar, progress.percent, text);
    fflush(stdout);
}

static void print_percent(void)
{
    double moved = progress.percent - progress.printed;

    if (moved > progress.min_skip || moved < -progress.min_skip ||
        progress.percent <= 0 || progress.percent >= 100) {
        progress.printed = progress.percent;
        progress.drawn = true;
        printf("    (%3.2f/100%%)\r", progress.percent);
        fflush(stdout);
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
    if (progress.terminal) {
        draw_bar(done, total);
    } else if (progress.enabled) {
        print_percent();
    }
}

void img_progress_end(void)
{
    if (progress.enabled && (progress.drawn || !progress.terminal)) {
        putchar('\n');
        fflush(stdout);
    }
    progress.enabled = progress.terminal = false;
    signal(SIGUSR1, SIG_DFL);
}
