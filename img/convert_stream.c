/*
 * convert_stream.c - convert ... -: the image goes to standard output, from its first
 * byte to its last (blk_stream()).
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "img/convert.h"
#include "img/convert_target.h"
#include "img/img.h"

struct streaming {
    struct convert *c;
    bool broken;                    /* the reader is the one to blame */
};

static int stream_map(void *arg, uint64_t off, bool *data, uint64_t *len)
{
    struct convert *c = ((struct streaming *)arg)->c;
    int err = convert_map_sources(c, off, data, len);

    return err ? convert_fail(c, err, CONVERT_MAP, off) : 0;
}

static int stream_read(void *arg, uint64_t off, void *buf, size_t len)
{
    struct convert *c = ((struct streaming *)arg)->c;
    int err = convert_read_sources(c, off, buf, len);

    img_progress_set(off + len, c->total, true);
    return err ? convert_fail(c, err, CONVERT_READ, off) : 0;
}

struct piece {
    const uint8_t *buf;
    size_t len;
    int err;
};

static void write_on_worker(void *arg)
{
    struct piece *p = arg;

    while (p->len && !p->err) {
        ssize_t n = write(STDOUT_FILENO, p->buf, p->len);

        if (n < 0 && errno != EINTR) {
            p->err = -errno;
        } else if (n > 0) {
            p->buf += n;
            p->len -= (size_t)n;
        }
    }
}

static int stream_write(void *arg, const void *buf, size_t len)
{
    struct streaming *s = arg;
    struct piece p = { buf, len, 0 };

    co_work(write_on_worker, &p);
    s->broken |= p.err < 0;
    return p.err;
}

int convert_stream(struct convert *c, const char *format, const char *options)
{
    struct convert_target t = { .format = format, .filename = NULL, .options = options,
                                .size = c->total };
    struct streaming s = { .c = c };
    struct blk_stream stream = { c->total, stream_map, stream_read, stream_write, &s };
    struct blk_error e = BLK_ERROR_INIT;
    int err;

    if (isatty(STDOUT_FILENO)) {
        img_error("Not writing an image to a terminal");
        return -EINVAL;
    }
    signal(SIGPIPE, SIG_IGN);           /* an error with a message like any other */
    err = convert_target_prepare(&t, &e);
    if (!err) {
        blk_opts_del(t.opts, "size");
        err = blk_stream(img_loop(), format, t.opts, &stream, &e);
    }
    convert_target_free(&t);
    if (s.broken) {
        img_error("Could not write to standard output: %s", strerror(-err));
    } else if (err && !c->failure.err) {
        img_report(&e);
    }
    return err;
}
