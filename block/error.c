/*
 * error.c - the texts of errors and out-of-band reports.
 *
 * Invariants
 *  - The first text set in a struct blk_error stays; prefixes go in front.
 *  - Text is one line: it often quotes names from images and the network, so
 *    control characters become '?' and cannot forge lines or drive a terminal.
 *    Hints are ours and may hold newlines, but do not end in one.
 *  - What does not fit ends in "..."; nothing is ever lost silently.
 */
#include "block/block.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

bool blk_report_names;
const char *blk_program = "platter";

static struct {
    pthread_mutex_t lock;
    void (*fn)(void *arg, const char *line);
    void *arg;
} reporter = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* Replace what a terminal would act on.  UTF-8 passes. */
static void text_sanitise(char *s)
{
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c < 0x20 || c == 0x7f)
            *s = '?';
    }
}

/* Mark a text of which only the first size - 1 bytes were kept. */
static void text_mark_cut(char *s, size_t size)
{
    size_t end = size - 4;
    while (end > 0 && ((unsigned char)s[end] & 0xc0) == 0x80)
        end--;                          /* not inside a UTF-8 sequence */
    memcpy(s + end, "...", 4);
}

/* Format at s + used; returns the new length. */
static size_t BLK_PRINTF(4, 0) text_vadd(char *s, size_t size, size_t used,
                                         const char *fmt, va_list ap)
{
    int n = vsnprintf(s + used, size - used, fmt, ap);
    if (n < 0) {
        s[used] = 0;
        return used;
    }
    if ((size_t)n >= size - used) {
        text_mark_cut(s, size);
        return strlen(s);
    }
    return used + (size_t)n;
}

static size_t BLK_PRINTF(4, 5) text_add(char *s, size_t size, size_t used, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    used = text_vadd(s, size, used, fmt, ap);
    va_end(ap);
    return used;
}

int blk_err(struct blk_error *e, int err, const char *fmt, ...)
{
    if (!e || e->err)
        return -err;
    e->err = err;
    va_list ap;
    va_start(ap, fmt);
    text_vadd(e->text, sizeof(e->text), 0, fmt, ap);
    va_end(ap);
    text_sanitise(e->text);
    return -err;
}

int blk_err_errno(struct blk_error *e, int err, const char *fmt, ...)
{
    if (!e || e->err)
        return -err;
    e->err = err;
    va_list ap;
    va_start(ap, fmt);
    size_t used = text_vadd(e->text, sizeof(e->text), 0, fmt, ap);
    va_end(ap);
    char buf[128];
    text_add(e->text, sizeof(e->text), used, ": %s", strerror_r(err, buf, sizeof(buf)));
    text_sanitise(e->text);
    return -err;
}

void blk_error_prefix(struct blk_error *e, const char *fmt, ...)
{
    if (!e || !e->err)
        return;
    char old[sizeof(e->text)];
    memcpy(old, e->text, sizeof(old));
    va_list ap;
    va_start(ap, fmt);
    size_t used = text_vadd(e->text, sizeof(e->text), 0, fmt, ap);
    va_end(ap);
    text_add(e->text, sizeof(e->text), used, "%s", old);
    text_sanitise(e->text);
}

void blk_error_hint(struct blk_error *e, const char *fmt, ...)
{
    if (!e)
        return;
    size_t used = strlen(e->hint);
    if (used)
        used = text_add(e->hint, sizeof(e->hint), used, "\n");
    va_list ap;
    va_start(ap, fmt);
    used = text_vadd(e->hint, sizeof(e->hint), used, fmt, ap);
    va_end(ap);
    while (used && e->hint[used - 1] == '\n')
        e->hint[--used] = 0;
}

void blk_error_clear(struct blk_error *e)
{
    if (e)
        *e = (struct blk_error)BLK_ERROR_INIT;
}

void blk_set_report(void (*fn)(void *arg, const char *line), void *arg)
{
    pthread_mutex_lock(&reporter.lock);
    reporter.fn = fn;
    reporter.arg = arg;
    pthread_mutex_unlock(&reporter.lock);
}

/* name NULL: the program's goes in front. */
static void deliver(const char *name, const char *fmt, va_list ap)
{
    char line[1024];
    size_t used = 0;

    /* Called without the lock: fn may report itself. */
    pthread_mutex_lock(&reporter.lock);
    void (*fn)(void *, const char *) = reporter.fn;
    void *arg = reporter.arg;
    pthread_mutex_unlock(&reporter.lock);
    bool bare = name && !fn && !blk_report_names;
    if (name && !bare)
        used = (size_t)BLK_MIN(snprintf(line, sizeof(line), "%s: ", name), (int)sizeof(line) - 1);
    text_vadd(line, sizeof(line), used, fmt, ap);
    text_sanitise(line);
    if (fn)
        fn(arg, line);
    else if (bare)
        fprintf(stderr, "%s\n", line);
    else
        fprintf(stderr, "%s: %s\n", blk_program, line);
}

void blk_report(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    deliver(NULL, fmt, ap);
    va_end(ap);
}

void blk_report_bare(const char *name, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    deliver(name, fmt, ap);
    va_end(ap);
}
