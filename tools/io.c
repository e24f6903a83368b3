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

static bool io_bad_usage(const char *name);

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

/* QEMU refuses what is not inside the image; storage opened by itself may grow here. */
static bool io_inside(const struct io_op *op)
{
    uint64_t size = blk_size(op->sh->node);

    return (op->a.offset <= size && op->a.length <= size - op->a.offset) ||
           (op->op == BLK_WRITE && blk_is_protocol(op->sh->node));
}

/* Runs the op, prints its outcome under verb ("read", "wrote", ...). */
static bool io_run(struct io_op *op, const char *verb)
{
    uint64_t t0 = blk_now_ns();
    /* The core would read zeros past the end, or say that there is no room. */
    int ret = op->op == BLK_FLUSH || io_inside(op) ? blk_run(op->sh->loop, io_run_fiber, op)
                                                   : -EIO;
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

static bool io_write_flags(struct io_op *op)
{
    struct io_args *a = &op->a;

    if (a->no_fallback && !a->zero) {
        printf("-n requires -z to be specified\n");
        return false;
    }
    if (a->unmap && !a->zero) {
        printf("-u requires -z to be specified\n");
        return false;
    }
    bool aio = !strncmp(op->name, "aio", 3);        /* there -z makes -P idle */
    if (!aio && a->zero + a->has_pattern + (a->source != NULL) > 1) {
        printf("Only one of -z, -P, and -s can be specified at the same time\n");
        return false;
    }
    op->op = a->zero ? BLK_WRITE_ZEROES : BLK_WRITE;
    op->flags = (a->fua ? BLK_REQ_FUA : 0u) | (a->unmap ? BLK_REQ_MAY_UNMAP : 0u) |
                (a->no_fallback ? BLK_REQ_FAST_ZERO : 0u) |
                (a->compressed && !a->zero ? BLK_REQ_COMPRESSED : 0u);
    return true;
}

static bool io_write_extent(struct io_op *op, int argc, char **argv, int at)
{
    if (!io_write_flags(op) || !io_extent(&op->a, argc, argv, at, op->op == BLK_WRITE))
        return false;
    if (op->op != BLK_WRITE)
        return true;
    memset(op->a.buf, op->a.has_pattern ? op->a.pattern : 0xcd, op->a.length);
    return !op->a.source || io_fill_from_file(&op->a);
}

/* The words of a command into op; false: what is wrong has been printed. */
static bool io_parse(struct io_op *op, int argc, char **argv, const char *letters, bool many)
{
    bool is_read = op->op == BLK_READ;
    int at = io_letters(&op->a, argc, argv, letters, is_read);

    if (at == IO_BAD_USAGE || (at >= 0 && (many ? argc - at < 2 : argc - at != 2)) ||
        (is_read && !op->a.has_pattern && (op->a.has_check_len || op->a.check_off)))
        return io_bad_usage(argv[0]);
    if (at < 0)
        return false;
    op->name = argv[0];
    return is_read || op->op == BLK_DISCARD ? io_extent(&op->a, argc, argv, at, is_read)
                                            : io_write_extent(op, argc, argv, at);
}

static bool cmd_read(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .op = BLK_READ };
    bool many = !strcmp(argv[0], "readv");
    bool ok = io_parse(&op, argc, argv, many ? "CP:qrv" : "Cl:pP:qrs:v", many) &&
              io_check_range(&op.a);

    if (ok) {
        memset(op.a.buf, 0xab, op.a.length);
        ok = io_run(&op, "read");
    }
    io_args_release(&op.a);
    return ok;
}

static bool cmd_write(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .op = BLK_WRITE };
    bool many = !strcmp(argv[0], "writev");
    bool ok = io_parse(&op, argc, argv, many ? "CfqrP:" : "cCfnpP:qrs:uz", many) &&
              io_run(&op, "wrote");

    io_args_release(&op.a);
    return ok;
}

static bool cmd_discard(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .op = BLK_DISCARD };
    bool ok = io_parse(&op, argc, argv, "Cq", false) && io_run(&op, "discard");

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

    op->sh->aio_pending--;
    if (req->result < 0)
        printf("%s failed: %s\n", op->name, strerror(-req->result));
    else if (is_read && op->a.has_pattern)
        io_verify(&op->a);
    if (req->result >= 0) {
        if (is_read && op->a.verbose)
            io_dump(op->a.buf, op->a.offset, op->a.length);
        io_report(is_read ? "read" : "wrote", &op->a, blk_now_ns() - op->t0);
    }
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
    if (io_inside(op)) {
        blk_submit(op->sh->node, &op->req);
    } else {
        op->req.result = -EIO;
        io_aio_done(&op->req);
    }
}

static bool io_aio(struct shell *sh, int argc, char **argv, enum blk_op what, const char *letters)
{
    struct io_op *op = calloc(1, sizeof(*op));

    if (!op)
        return false;
    op->sh = sh;
    op->op = what;
    op->name = argv[0];
    if (!io_parse(op, argc, argv, letters, true)) {
        io_args_release(&op->a);
        free(op);
        return false;
    }
    op->name = what == BLK_READ ? "aio_read" : "aio_write";     /* argv does not last */
    if (op->a.ignore_error) {
        io_args_release(&op->a);                /* -i: only counted as invalid in QEMU */
        free(op);
        return true;
    }
    if (what == BLK_READ)
        memset(op->a.buf, 0xab, op->a.length);
    io_aio_submit(op);
    return true;
}

static bool cmd_aio_write(struct shell *sh, int argc, char **argv)
{
    return io_aio(sh, argc, argv, BLK_WRITE, "CfiP:qruz");
}

static bool cmd_aio_read(struct shell *sh, int argc, char **argv)
{
    return io_aio(sh, argc, argv, BLK_READ, "CiP:qrv");
}

/* qemu-io's aio_flush waits for what is in flight; it sends no flush. */
static bool cmd_aio_flush(struct shell *sh, int argc, char **argv)
{
    while (sh->aio_pending)
        blk_loop_turn(sh->loop, true);
    return true;
}

/* ---- the rest -------------------------------------------------------------------- */

static bool cmd_truncate(struct shell *sh, int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    enum blk_prealloc prealloc = BLK_PREALLOC_OFF;
    uint64_t size;
    int c;

    optind = 0;
    while ((c = getopt(argc, argv, "m:")) != -1) {
        if (c != 'm')
            return io_bad_usage(argv[0]);
        if (blk_parse_prealloc(optarg, &prealloc, &e) < 0) {
            blk_error_clear(&e);
            blk_err(&e, EINVAL, "Invalid preallocation mode '%s'", optarg);
            return io_failed(&e);
        }
    }
    if (optind != argc - 1)
        return io_bad_usage(argv[0]);
    if (!io_number(argv[optind], &size))
        return false;
    return blk_truncate(sh->node, size, true, prealloc, &e) == 0 || io_failed(&e);
}

static int io_sleep_fiber(void *arg)
{
    co_sleep(*(uint64_t *)arg);
    return 0;
}

static bool cmd_sleep(struct shell *sh, int argc, char **argv)
{
    uint64_t ms;

    if (!io_number(argv[1], &ms) || ms > 86400000)
        return false;
    fflush(stdout);             /* what came before is read meanwhile */
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

    if (!io_number(argv[1], &sig) || sig > 64)
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

static bool cmd_close(struct shell *sh, int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_node *n = sh->node;

    cmd_aio_flush(sh, 0, NULL);
    sh->node = NULL;
    return blk_close(n, &e) == 0 || io_failed(&e);
}

static bool cmd_open(struct shell *sh, int argc, char **argv)
{
    struct io_open o = { .flags = BLK_O_RDWR | BLK_O_UNMAP };
    bool ok = true;
    int c;

    optind = 0;
    while (ok && (c = getopt(argc, argv, "rnUt:d:o:")) != -1) {
        if (c == 'o')
            ok = io_open_options(&o, optarg);
        else if (c == '?')
            ok = io_bad_usage(argv[0]);
        else
            ok = io_open_flag(&o, c, optarg);
    }
    if (ok && optind == argc && !o.opts)
        ok = io_bad_usage(argv[0]);
    if (ok && optind < argc)
        o.filename = argv[optind];
    ok = ok && io_open(sh->loop, &o, sh->backing_urls, &sh->node);
    blk_opts_free(o.opts);
    return ok;
}

enum { IO_NO_FILE = 1, IO_WRITES = 2 };

static const struct io_command {
    const char *name, *alias;
    bool (*fn)(struct shell *sh, int argc, char **argv);
    int min, max;                       /* words after the name; max -1: any number */
    unsigned flags;
    const char *args, *help;
} commands[] = {
    { "abort", NULL, cmd_abort, 0, 0, IO_NO_FILE, "", "dies by SIGABRT" },
    { "aio_flush", NULL, cmd_aio_flush, 0, 0, 0, "", "waits for the requests in flight" },
    { "aio_read", NULL, cmd_aio_read, 2, -1, 0, "[-Ciqrv] [-P pattern] off len [len..]",
      "asynchronously reads a number of bytes" },
    { "aio_write", NULL, cmd_aio_write, 2, -1, IO_WRITES,
      "[-Cfiqruz] [-P pattern] off len [len..]", "asynchronously writes a number of bytes" },
    { "alloc", NULL, io_cmd_alloc, 1, 2, 0, "offset [count]",
      "checks if offset is allocated in the file" },
    { "close", NULL, cmd_close, 0, 0, 0, "", "close the current open file" },
    { "discard", "d", cmd_discard, 2, -1, IO_WRITES, "[-Cq] off len",
      "discards a number of bytes at a specified offset" },
    { "flush", "f", cmd_flush, 0, 0, 0, "", "makes everything durable" },
    { "help", "?", cmd_help, 0, 1, IO_NO_FILE, "[command]", "help for one or all commands" },
    { "info", "i", io_cmd_info, 0, 0, 0, "", "what the current file says of itself" },
    { "length", "l", io_cmd_length, 0, 0, 0, "", "the virtual size" },
    { "map", NULL, io_cmd_map, 0, 1, 0, "", "extents of this layer" },
    { "open", "o", cmd_open, 0, -1, IO_NO_FILE,
      "[-rnU] [-t cache] [-d discard] [-o options] [path]", "open the file specified by path" },
    { "quit", "q", cmd_quit, 0, 0, IO_NO_FILE, "", "ends" },
    { "read", "r", cmd_read, 2, -1, 0, "[-Cqrv] [-P pattern [-s off] [-l len]] off len",
      "reads a number of bytes at a specified offset" },
    { "readv", NULL, cmd_read, 2, -1, 0, "[-Cqrv] [-P pattern] off len [len..]",
      "reads a number of bytes at a specified offset" },
    { "sigraise", NULL, cmd_sigraise, 1, 1, IO_NO_FILE, "signal", "raises a signal" },
    { "sleep", NULL, cmd_sleep, 1, 1, 0, "", "lets milliseconds pass" },
    { "truncate", "t", cmd_truncate, 1, 3, IO_WRITES, "[-m prealloc_mode] off",
      "truncates the current file at the given offset" },
    { "write", "w", cmd_write, 2, -1, IO_WRITES,
      "[-cCfnqruz] [-P pattern | -s source_file] off len",
      "writes a number of bytes at a specified offset" },
    { "writev", NULL, cmd_write, 2, -1, IO_WRITES, "[-Cfqr] [-P pattern] off len [len..]",
      "writes a number of bytes at a specified offset" },
};

static const struct io_command *io_find(const char *name);

static void io_help_line(const struct io_command *c)
{
    printf("%s %s -- %s\n", c->name, c->args, c->help);
}

static bool io_bad_usage(const char *name)
{
    io_help_line(io_find(name));
    return false;
}

static bool cmd_help(struct shell *sh, int argc, char **argv)
{
    if (argc > 1) {
        const struct io_command *c = io_find(argv[1]);
        if (c)
            io_help_line(c);
        else
            printf("command %s not found\n", argv[1]);
        return c != NULL;
    }
    for (size_t i = 0; i < BLK_ARRAY_SIZE(commands); i++)
        io_help_line(&commands[i]);
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

static bool io_count_fits(const struct io_command *c, int n)
{
    if (n >= c->min && (c->max < 0 || n <= c->max))
        return true;
    if (c->max < 0)
        printf("bad argument count %d to %s, expected at least %d arguments\n", n, c->name, c->min);
    else if (c->max == c->min)
        printf("bad argument count %d to %s, expected %d arguments\n", n, c->name, c->min);
    else
        printf("bad argument count %d to %s, expected between %d and %d arguments\n", n, c->name,
               c->min, c->max);
    return false;
}

static bool io_may_run(struct shell *sh, const struct io_command *c)
{
    if (!(c->flags & IO_NO_FILE) && !sh->node) {
        fprintf(stderr, "no file open, try 'help open'\n");
        return false;
    }
    if (c->flags & IO_WRITES && blk_read_only(sh->node)) {
        fprintf(stderr, "%s: Block node is read-only\n", blk_program);
        return false;
    }
    return true;
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
        fprintf(stderr, "command \"%s\" not found\n", argv[0]);
    if (!c || !io_count_fits(c, argc - 1) || !io_may_run(sh, c) || !c->fn(sh, argc, argv))
        sh->failed = true;
}

static void io_interactive(struct shell *sh)
{
    char *line = NULL;
    size_t cap = 0;
    bool tty = isatty(STDIN_FILENO);

    while (!sh->quit) {
        if (tty)
            printf("%s> ", blk_program);
        fflush(stdout);             /* whoever feeds us waits for it */
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
    { "copy-on-read", no_argument, NULL, 'C' }, { "misalign", no_argument, NULL, 'm' }, { "native-aio", no_argument, NULL, 'k' },
    { "aio", required_argument, NULL, 'i' }, { "trace", required_argument, NULL, 'T' },
    { "backing-urls", required_argument, NULL, 'B' }, { "object", required_argument, NULL, 'O' },
    { "force-share", no_argument, NULL, 'U' }, { "image-opts", no_argument, NULL, 'o' },
    { "help", no_argument, NULL, 'h' }, { "version", no_argument, NULL, 'V' },
    { NULL, 0, NULL, 0 },
};

static void io_usage(void)
{
    printf("Usage: platter-io [OPTIONS]... [-c STRING]... [file]\n"
           "Reads and writes patterns in a disk image\n\n"
           "  -c, --cmd STRING     run this command (repeatable); without any, lines of stdin\n"
           "  -f, --format FMT     image format (default: found out)\n"
           "      --image-opts     file is a list of options, KEY=VALUE,...\n"
           "  -r, --read-only      open read-only\n"
           "  -n, --nocache        O_DIRECT, short for -t none\n"
           "  -t, --cache MODE     none, writeback, writethrough, directsync, unsafe\n"
           "  -d, --discard MODE   ignore or unmap (default)\n"
           "  -U, --force-share    take no locks\n"
           "      --object OBJDEF  an object such as a secret\n"
           "      --backing-urls LIST  protocols that names inside images may use\n"
           "  -m, -k, -i MODE, -T TRACE  accepted, without effect\n"
           "  -h, --help           this\n"
           "  -V, --version        version and what is compiled in\n\n"
           "See 'platter-io -c help' for the commands.\n");
}

static bool io_is_aio_mode(const char *s)
{
    return !strcmp(s, "threads") || !strcmp(s, "native") || !strcmp(s, "io_uring");
}

static bool io_object(const char *text)
{
    struct blk_error e = BLK_ERROR_INIT;

    if (blk_object_add(text, &e)) {
        fprintf(stderr, "%s: %s\n%s%s", blk_program, e.text, e.hint, *e.hint ? "\n" : "");
        return false;
    }
    return true;
}

struct io_main {
    struct io_open open;
    bool image_opts;
    char **cmds;                    /* into argv, at most argc */
    int ncmds;
};

/* 0: go on; otherwise an exit status plus one. */
static int io_options(struct io_main *m, struct shell *sh, int argc, char **argv)
{
    int c;

    while ((c = getopt_long(argc, argv, "hVc:d:f:rCnmki:t:T:U", long_options, NULL)) != -1) {
        switch (c) {
        case 'c': m->cmds[m->ncmds++] = optarg; break;
        case 'f': m->open.format = optarg; break;
        case 'o': m->image_opts = true; break;
        case 'O':
            if (!io_object(optarg))
                return 2;
            break;
        case 'B': sh->backing_urls = optarg; break;
        case 'C':
            fprintf(stderr, "%s: copy-on-read is not supported\n", blk_program);
            return 2;
        case 'm': case 'k': case 'T': break;
        case 'i':
            if (!io_is_aio_mode(optarg)) {
                fprintf(stderr, "%s: Invalid aio option: %s\n", blk_program, optarg);
                return 2;
            }
            break;
        case 'h': io_usage(); return 1;
        case 'V': printf("%s\n", blk_build_info()); return 1;
        case '?':
            fprintf(stderr, "Try '%s --help' for more information.\n", blk_program);
            return 2;
        default:
            if (!io_open_flag(&m->open, c, optarg))
                return 2;
            break;
        }
    }
    if (argc - optind > 1) {
        io_usage();
        return 2;
    }
    if (m->image_opts && m->open.format) {
        fprintf(stderr, "%s: --image-opts and -f are mutually exclusive\n", blk_program);
        return 2;
    }
    m->open.filename = optind < argc ? argv[optind] : NULL;
    return 0;
}

/* The image named on the command line, if any. */
static bool io_open_first(struct shell *sh, struct io_main *m)
{
    bool ok = true;

    if (!m->open.filename)
        return true;
    if (m->image_opts) {
        ok = io_open_options(&m->open, m->open.filename);
        m->open.filename = NULL;
    }
    ok = ok && io_open(sh->loop, &m->open, sh->backing_urls, &sh->node);
    blk_opts_free(m->open.opts);
    return ok;
}

int main(int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct shell sh = { 0 };
    struct io_main m = { .open.flags = BLK_O_RDWR | BLK_O_UNMAP };
    const char *slash = strrchr(argv[0], '/');
    int ret = 1;

    blk_program = slash ? slash + 1 : argv[0];
    m.cmds = calloc((size_t)argc + 1, sizeof(*m.cmds));
    int status = m.cmds ? io_options(&m, &sh, argc, argv) : 2;
    if (status) {
        ret = status - 1;
        goto out;
    }
    sh.loop = blk_loop_new(&e);
    if (!sh.loop) {
        io_failed(&e);
        goto out;
    }
    if (!io_open_first(&sh, &m))
        goto out;
    if (!m.ncmds)
        io_interactive(&sh);
    for (int i = 0; i < m.ncmds && !sh.quit; i++)
        io_line(&sh, m.cmds[i]);
    cmd_aio_flush(&sh, 0, NULL);
    if (sh.node && !cmd_close(&sh, 0, NULL))
        sh.failed = true;
    fflush(stdout);
    ret = sh.failed;
out:
    if (sh.loop)
        blk_loop_free(sh.loop);
    free(m.cmds);
    return ret;
}
