/*
 * io.c - platter-io: a shell that reads and writes patterns, for tests and for
 * people who want to poke at an image.  Commands, options and the words of the
 * output are qemu-io's, so that a script can run either.
 *
 * Every synchronous command runs in a fiber until it ends (blk_run); the aio_
 * commands submit a request that stays in flight until aio_flush, until the
 * loop turns for another command, or until the end.  The exit status is 1 when
 * the image cannot be opened, when any command failed, or when closing failed.
 */
#include "tools/io.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IO_ARGS_MAX 64

struct shell {
    struct blk_loop *loop;
    struct blk_node *node;
    unsigned aio_pending;
    bool failed;                  /* some command failed: exit status 1 */
    bool quit;
};

struct io_op {
    struct shell *sh;
    const char *name;                   /* "read", "aio_write", ... */
    struct io_args a;
    enum blk_op op;
    unsigned flags;
    struct blk_req req;
    uint64_t t0;
};

/* ---- synchronous commands ---------------------------------------------------- */

static int io_run_fiber(void *arg)
{
    struct io_op *op = arg;
    struct io_args *a = &op->a;

    switch (op->op) {
    case BLK_READ:
        if (a->offset > blk_size(op->sh->node) || a->length > blk_size(op->sh->node) - a->offset)
            return -EIO;            /* the core would give zeros */
        return co_readv(op->sh->node, a->offset, a->iov, a->iovcnt, a->length);
    case BLK_WRITE:
        return co_writev(op->sh->node, a->offset, a->iov, a->iovcnt, a->length, op->flags);
    case BLK_WRITE_ZEROES:
        return co_write_zeroes(op->sh->node, a->offset, a->length, op->flags);
    case BLK_DISCARD:
        return co_discard(op->sh->node, a->offset, a->length);
    default:
        return co_flush(op->sh->node);
    }
}

/* Runs the op, prints its outcome under verb ("read", "wrote", ...). */
static bool io_run(struct io_op *op, const char *verb)
{
    uint64_t t0 = blk_now_ns();
    int ret = blk_run(op->sh->loop, io_run_fiber, op);
    uint64_t ns = blk_now_ns() - t0;

    if (ret < 0) {
        printf("%s failed: %s\n", op->name, strerror(-ret));
        return false;
    }
    bool ok = op->op != BLK_READ || !op->a.has_pattern || io_verify(&op->a);

    if (op->op == BLK_READ && op->a.verbose)
        io_dump(op->a.buf, op->a.offset, op->a.length);
    if (verb)
        io_report(verb, &op->a, ns);
    return ok;
}

static bool cmd_read(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .name = "read", .op = BLK_READ };
    bool many = !strcmp(argv[0], "readv"), ok = false;
    int at = io_letters(&op.a, argc, argv, "+CP:l:qs:v", true);

    if (at < 0 || !io_extent(&op.a, argc, argv, at, many, true) || !io_check_range(&op.a))
        goto out;
    memset(op.a.buf, 0xcd, op.a.length);
    ok = io_run(&op, "read");
out:
    io_args_release(&op.a);
    return ok;
}

static bool io_write_flags(struct io_op *op)
{
    struct io_args *a = &op->a;

    if (a->zero && (a->has_pattern || a->source || a->compressed)) {
        printf("-z cannot be combined with -P, -s or -c\n");
        return false;
    }
    if ((a->unmap || a->no_fallback) && !a->zero) {
        printf("-u and -n require -z\n");
        return false;
    }
    op->op = a->zero ? BLK_WRITE_ZEROES : BLK_WRITE;
    op->flags = (a->fua ? BLK_REQ_FUA : 0u) | (a->unmap ? BLK_REQ_MAY_UNMAP : 0u) |
                (a->no_fallback ? BLK_REQ_FAST_ZERO : 0u) |
                (a->compressed ? BLK_REQ_COMPRESSED : 0u);
    return true;
}

static bool io_prepare_write(struct io_op *op, int argc, char **argv, const char *letters,
                             bool many)
{
    int at = io_letters(&op->a, argc, argv, letters, false);

    if (at < 0 || !io_write_flags(op) ||
        !io_extent(&op->a, argc, argv, at, many, op->op == BLK_WRITE))
        return false;
    if (op->op != BLK_WRITE)
        return true;
    memset(op->a.buf, op->a.has_pattern ? op->a.pattern : 0xcd, op->a.length);
    return !op->a.source || io_fill_from_file(&op->a);
}

static bool cmd_write(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .name = "write" };
    bool ok = io_prepare_write(&op, argc, argv, "+cCfnP:qs:uz", !strcmp(argv[0], "writev")) &&
              io_run(&op, "wrote");

    io_args_release(&op.a);
    return ok;
}

static bool cmd_discard(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .name = "discard", .op = BLK_DISCARD };
    int at = io_letters(&op.a, argc, argv, "+Cq", false);
    bool ok = at >= 0 && io_extent(&op.a, argc, argv, at, false, false) && io_run(&op, "discard");

    io_args_release(&op.a);
    return ok;
}

static bool cmd_flush(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .name = "flush", .op = BLK_FLUSH };

    return io_run(&op, NULL);
}

/* ---- asynchronous commands ---------------------------------------------------- */

static void io_aio_done(struct blk_req *req)
{
    struct io_op *op = req->arg;
    bool is_read = op->op == BLK_READ;
    bool ok = true;

    op->sh->aio_pending--;
    if (req->result < 0) {
        printf("%s failed: %s\n", op->name, strerror(-req->result));
        ok = op->a.ignore_error;
    } else if (is_read && op->a.has_pattern) {
        ok = io_verify(&op->a);
    }
    if (req->result >= 0) {
        if (is_read && op->a.verbose)
            io_dump(op->a.buf, op->a.offset, op->a.length);
        io_report(is_read ? "read" : "wrote", &op->a, blk_now_ns() - op->t0);
    }
    if (!ok)
        op->sh->failed = true;
    io_args_release(&op->a);
    free(op);
}

static void io_aio_submit(struct io_op *op)
{
    op->req = (struct blk_req) {
        .op = op->op, .flags = op->flags, .offset = op->a.offset, .length = op->a.length,
        .iov = op->op == BLK_WRITE_ZEROES ? NULL : op->a.iov,
        .iovcnt = op->op == BLK_WRITE_ZEROES ? 0 : op->a.iovcnt,
        .done = io_aio_done, .arg = op,
    };
    op->t0 = blk_now_ns();
    op->sh->aio_pending++;
    blk_submit(op->sh->node, &op->req);
}

static struct io_op *io_aio_new(struct shell *sh, const char *name)
{
    struct io_op *op = calloc(1, sizeof(*op));

    if (op) {
        op->sh = sh;
        op->name = name;
    }
    return op;
}

static bool cmd_aio_write(struct shell *sh, int argc, char **argv)
{
    struct io_op *op = io_aio_new(sh, "aio_write");

    if (!op)
        return false;
    if (!io_prepare_write(op, argc, argv, "+CfiP:quz", true)) {
        io_args_release(&op->a);
        free(op);
        return false;
    }
    io_aio_submit(op);
    return true;
}

static bool cmd_aio_read(struct shell *sh, int argc, char **argv)
{
    struct io_op *op = io_aio_new(sh, "aio_read");

    if (!op)
        return false;
    op->op = BLK_READ;
    int at = io_letters(&op->a, argc, argv, "+CiP:qv", true);
    if (at < 0 || !io_extent(&op->a, argc, argv, at, true, true)) {
        io_args_release(&op->a);
        free(op);
        return false;
    }
    memset(op->a.buf, 0xcd, op->a.length);
    io_aio_submit(op);
    return true;
}

/* qemu-io's aio_flush waits for what is in flight; it sends no flush. */
static bool cmd_aio_flush(struct shell *sh, int argc, char **argv)
{
    while (sh->aio_pending)
        blk_loop_turn(sh->loop, true);
    return true;
}

/* ---- questions ------------------------------------------------------------------ */

struct io_status {
    struct shell *sh;
    uint64_t offset, length;
    struct blk_status st;
    bool above;                   /* this node and its backing chain */
};

static int io_status_fiber(void *arg)
{
    struct io_status *s = arg;

    return co_status(s->sh->node, s->offset, s->length, &s->st);
}

static bool cmd_length(struct shell *sh, int argc, char **argv)
{
    char text[64];

    io_size_text((double)blk_size(sh->node), text, sizeof(text));
    printf("%s\n", text);
    return true;
}

static bool cmd_alloc(struct shell *sh, int argc, char **argv)
{
    uint64_t start, len = 512, sum = 0;
    char text[64];

    if (argc < 2 || argc > 3 || !io_number(argv[1], &start) ||
        (argc == 3 && !io_number(argv[2], &len)))
        return false;
    if (start >= blk_size(sh->node) || len > blk_size(sh->node) - start) {
        printf("alloc: outside of the image\n");
        return false;
    }
    for (uint64_t off = start; off < start + len; ) {
        struct io_status s = { .sh = sh, .offset = off, .length = start + len - off };
        int ret = blk_run(sh->loop, io_status_fiber, &s);

        if (ret < 0) {
            printf("is_allocated failed: %s\n", strerror(-ret));
            return false;
        }
        if (s.st.flags & BLK_ST_ALLOCATED)
            sum += s.st.length;
        off += s.st.length;
    }
    io_size_text((double)start, text, sizeof(text));
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", sum, len, text);
    return true;
}

static void io_map_line(uint64_t off, uint64_t len, bool allocated)
{
    char a[64], b[64];

    io_size_text((double)len, a, sizeof(a));
    io_size_text((double)off, b, sizeof(b));
    printf("%s (0x%" PRIx64 ") bytes %s at offset %s (0x%" PRIx64 ")\n", a, len,
           allocated ? "    allocated" : "not allocated", b, off);
}

static bool cmd_map(struct shell *sh, int argc, char **argv)
{
    uint64_t size = blk_size(sh->node), start = 0;
    bool cur = false;

    for (uint64_t off = 0; off < size; ) {
        struct io_status s = { .sh = sh, .offset = off, .length = size - off };
        int ret = blk_run(sh->loop, io_status_fiber, &s);

        if (ret < 0) {
            printf("Failed to query allocation status: %s\n", strerror(-ret));
            return false;
        }
        bool allocated = s.st.flags & BLK_ST_ALLOCATED;
        if (off && allocated != cur) {
            io_map_line(start, off - start, cur);
            start = off;
        }
        cur = allocated;
        off += s.st.length;
    }
    if (size)
        io_map_line(start, size - start, cur);
    return true;
}

static bool cmd_info(struct shell *sh, int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_info info = { 0 };
    char text[64];

    printf("format name: %s\n", blk_format_name(sh->node));
    if (blk_get_info(sh->node, &info, &e) < 0) {
        printf("%s\n", e.text);
        return false;
    }
    io_size_text((double)info.cluster_size, text, sizeof(text));
    printf("cluster size: %s\n", text);
    blk_info_free(&info);
    return true;
}

/* ---- the rest -------------------------------------------------------------------- */

static bool cmd_truncate(struct shell *sh, int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    uint64_t size;

    if (argc != 2 || !io_number(argv[1], &size))
        return false;
    if (blk_truncate(sh->node, size, true, BLK_PREALLOC_OFF, &e) < 0) {
        printf("%s: %s\n", blk_program, e.text);
        return false;
    }
    return true;
}

static int io_sleep_fiber(void *arg)
{
    co_sleep(*(uint64_t *)arg);
    return 0;
}

static bool cmd_sleep(struct shell *sh, int argc, char **argv)
{
    uint64_t ms;

    if (argc != 2 || !io_number(argv[1], &ms) || ms > 86400000)
        return false;
    ms *= 1000000;
    return blk_run(sh->loop, io_sleep_fiber, &ms) == 0;
}

static bool cmd_abort(struct shell *sh, int argc, char **argv)
{
    fflush(stdout);
    abort();
}

static bool cmd_sigraise(struct shell *sh, int argc, char **argv)
{
    uint64_t sig;

    if (argc != 2 || !io_number(argv[1], &sig) || sig > 64)
        return false;
    fflush(stdout);
    raise((int)sig);
    return true;
}

static bool cmd_quit(struct shell *sh, int argc, char **argv)
{
    sh->quit = true;
    return true;
}

static bool cmd_help(struct shell *sh, int argc, char **argv);

static const struct io_command {
    const char *name, *alias;
    bool (*fn)(struct shell *sh, int argc, char **argv);
    const char *args, *help;
} commands[] = {
    { "read", "r", cmd_read, "[-qv] [-P byte [-s off] [-l len]] off len", "reads, verifies" },
    { "readv", NULL, cmd_read, "[-qv] [-P byte] off len [len..]", "reads into several buffers" },
    { "write", "w", cmd_write, "[-cfnquz] [-P byte | -s file] off len", "writes a pattern" },
    { "writev", NULL, cmd_write, "[-fq] [-P byte] off len [len..]", "writes several buffers" },
    { "discard", "d", cmd_discard, "[-q] off len", "discards" },
    { "flush", "f", cmd_flush, "", "makes everything durable" },
    { "aio_read", NULL, cmd_aio_read, "[-iqv] [-P byte] off len [len..]", "starts a read" },
    { "aio_write", NULL, cmd_aio_write, "[-fiquz] [-P byte] off len [len..]", "starts a write" },
    { "aio_flush", NULL, cmd_aio_flush, "", "waits for what was started" },
    { "alloc", NULL, cmd_alloc, "off [len]", "bytes this layer has" },
    { "map", NULL, cmd_map, "", "extents this layer has" },
    { "length", "l", cmd_length, "", "virtual size" },
    { "info", "i", cmd_info, "", "format and cluster size" },
    { "truncate", "t", cmd_truncate, "off", "new virtual size" },
    { "sleep", NULL, cmd_sleep, "ms", "lets time pass" },
    { "abort", NULL, cmd_abort, "", "dies by SIGABRT" },
    { "sigraise", NULL, cmd_sigraise, "signal", "raises a signal" },
    { "quit", "q", cmd_quit, "", "ends" },
    { "help", "?", cmd_help, "", "this" },
};

static bool cmd_help(struct shell *sh, int argc, char **argv)
{
    for (size_t i = 0; i < BLK_ARRAY_SIZE(commands); i++)
        printf("%-10s %-46s -- %s\n", commands[i].name, commands[i].args, commands[i].help);
    return true;
}

static const struct io_command *io_find(const char *name)
{
    for (size_t i = 0; i < BLK_ARRAY_SIZE(commands); i++) {
        const struct io_command *c = &commands[i];

        if (!strcmp(name, c->name) || (c->alias && !strcmp(name, c->alias)))
            return c;
    }
    return NULL;
}

/* Runs one line; line is cut up. */
static void io_line(struct shell *sh, char *line)
{
    char *argv[IO_ARGS_MAX + 1], *save = NULL;
    int argc = 0;

    for (char *w = strtok_r(line, " \t\n", &save); w; w = strtok_r(NULL, " \t\n", &save)) {
        if (argc == IO_ARGS_MAX) {
            printf("too many words\n");
            sh->failed = true;
            return;
        }
        argv[argc++] = w;
    }
    argv[argc] = NULL;
    if (!argc)
        return;
    const struct io_command *c = io_find(argv[0]);
    if (!c)
        printf("command \"%s\" not found\n", argv[0]);
    if (!c || !c->fn(sh, argc, argv))
        sh->failed = true;
    fflush(stdout);
}

static void io_interactive(struct shell *sh)
{
    char *line = NULL;
    size_t cap = 0;
    bool tty = isatty(STDIN_FILENO);

    while (!sh->quit) {
        if (tty) {
            printf("%s> ", blk_program);
            fflush(stdout);
        }
        if (getline(&line, &cap, stdin) < 0)
            break;
        io_line(sh, line);
    }
    free(line);
}

/* ---- main -------------------------------------------------------------------------- */

static const struct option long_options[] = {
    { "cmd", required_argument, NULL, 'c' }, { "format", required_argument, NULL, 'f' },
    { "read-only", no_argument, NULL, 'r' }, { "nocache", no_argument, NULL, 'n' },
    { "cache", required_argument, NULL, 't' }, { "discard", required_argument, NULL, 'd' },
    { "backing-urls", required_argument, NULL, 'B' },
    { "force-share", no_argument, NULL, 'U' }, { "image-opts", no_argument, NULL, 'o' },
    { "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' },
    { NULL, 0, NULL, 0 },
};

static void io_usage(void)
{
    printf("Usage: platter-io [-nrUh] [-f FMT] [-t CACHE] [-d ignore|unmap] [-c CMD]... FILE\n"
           "  -c, --cmd CMD        run CMD (repeatable); without it, lines of stdin\n"
           "  -f, --format FMT     image format\n"
           "  -r, --read-only      open read-only\n"
           "  -n, --nocache        O_DIRECT (as -t none)\n"
           "  -t, --cache MODE     none, writeback, writethrough, directsync, unsafe\n"
           "  -d, --discard MODE   what happens to discards (default: unmap)\n"
           "  -U, --force-share    take no locks\n"
           "      --backing-urls LIST  protocols that names inside images may use\n"
           "      --image-opts     FILE is a list of options\n\n");
    cmd_help(NULL, 0, NULL);
}

static bool io_cache_flags(const char *mode, unsigned *flags)
{
    static const struct { const char *name; unsigned flags; } modes[] = {
        { "none", BLK_O_DIRECT }, { "off", BLK_O_DIRECT },
        { "directsync", BLK_O_DIRECT | BLK_O_WRITETHROUGH },
        { "writeback", 0 }, { "writethrough", BLK_O_WRITETHROUGH }, { "unsafe", BLK_O_NO_FLUSH },
    };

    *flags &= ~(unsigned)(BLK_O_DIRECT | BLK_O_WRITETHROUGH | BLK_O_NO_FLUSH);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(modes); i++) {
        if (!strcmp(mode, modes[i].name)) {
            *flags |= modes[i].flags;
            return true;
        }
    }
    fprintf(stderr, "%s: Invalid cache option: %s\n", blk_program, mode);
    return false;
}

struct io_main {
    struct blk_open_args open;
    bool image_opts;
    char **cmds;                    /* into argv, at most argc */
    int ncmds;
};

/* 0: go on; otherwise an exit status plus one. */
static int io_options(struct io_main *m, int argc, char **argv)
{
    int c;

    while ((c = getopt_long(argc, argv, "hVc:d:f:rnt:U", long_options, NULL)) != -1) {
        switch (c) {
        case 'c': m->cmds[m->ncmds++] = optarg; break;
        case 'f': m->open.format = optarg; break;
        case 'r': m->open.flags &= ~(unsigned)BLK_O_RDWR; break;
        case 'n': m->open.flags |= BLK_O_DIRECT; break;
        case 'U': m->open.flags |= BLK_O_SHARE; break;
        case 'o': m->image_opts = true; break;
        case 'B': m->open.backing_urls = optarg; break;
        case 't':
            if (!io_cache_flags(optarg, &m->open.flags))
                return 2;
            break;
        case 'd':
            if (!strcmp(optarg, "ignore") || !strcmp(optarg, "off")) {
                m->open.flags &= ~(unsigned)BLK_O_UNMAP;
            } else if (strcmp(optarg, "unmap") && strcmp(optarg, "on")) {
                fprintf(stderr, "%s: Invalid discard option: %s\n", blk_program, optarg);
                return 2;
            }
            break;
        case 'h': io_usage(); return 1;
        case 'V': printf("%s\n", blk_build_info()); return 1;
        default:
            fprintf(stderr, "Try '%s --help' for more information.\n", blk_program);
            return 2;
        }
    }
    if (optind != argc - 1) {
        fprintf(stderr, "%s: Expecting exactly one image file name\n", blk_program);
        return 2;
    }
    m->open.filename = argv[optind];
    return 0;
}

static int io_open(struct shell *sh, struct io_main *m, struct blk_error *e)
{
    struct blk_opts *opts = NULL;
    int ret;

    if (m->image_opts) {
        opts = blk_opts_new();
        ret = blk_opts_parse(opts, m->open.filename, "driver", e);
        if (ret < 0)
            goto out;
        m->open.opts = opts;
        m->open.filename = NULL;
    }
    ret = blk_open(sh->loop, &m->open, &sh->node, e);
out:
    blk_opts_free(opts);
    return ret;
}

int main(int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct shell sh = { 0 };
    struct io_main m = { .open.flags = BLK_O_RDWR | BLK_O_UNMAP };
    int ret = 1;

    blk_program = "platter-io";
    m.cmds = calloc((size_t)argc + 1, sizeof(*m.cmds));
    int status = m.cmds ? io_options(&m, argc, argv) : 2;
    if (status) {
        ret = status - 1;
        goto out;
    }
    const char *name = m.open.filename;
    sh.loop = blk_loop_new(&e);
    if (!sh.loop || io_open(&sh, &m, &e) < 0) {
        char *shown = m.image_opts || !name ? strdup("") : blk_redact(name);
        fprintf(stderr, "%s: can't open%s%s: %s\n", blk_program, m.image_opts ? "" : " device ",
                shown ? shown : "", e.text);
        free(shown);
        if (*e.hint)
            fprintf(stderr, "%s\n", e.hint);
        goto out;
    }
    if (!m.ncmds)
        io_interactive(&sh);
    for (int i = 0; i < m.ncmds && !sh.quit; i++)
        io_line(&sh, m.cmds[i]);
    cmd_aio_flush(&sh, 0, NULL);
    fflush(stdout);
    if (blk_close(sh.node, &e) < 0) {
        fprintf(stderr, "%s: %s\n", blk_program, e.text);
        sh.failed = true;
    }
    ret = sh.failed;
out:
    if (sh.loop)
        blk_loop_free(sh.loop);
    free(m.cmds);
    return ret;
}
