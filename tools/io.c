/*
 * io.c - platter-io: a shell that reads and writes patterns, for tests and for
 * people who want to poke at an image.  Commands, options and the words of the
 * output are qemu-io's, so that a script can run either.
 *
 * The exit status is 1 when the image cannot be opened, when any command failed, or when
 * closing failed.
 */
#include "tools/io.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IO_ARGS_MAX 64

/* ---- commands that fit nowhere else ------------------------------------------------ */

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
        if (blk_parse_prealloc(optarg, &prealloc, &e) < 0)
            return io_say("Invalid preallocation mode '%s'", optarg);
    }
    /* qemu-io reads the first word behind the options, and without one the option. */
    if (!io_number(argv[optind < argc ? optind : 1], &size))
        return false;
    return blk_truncate(sh->node, size, true, prealloc, &e) == 0 || io_failed(&e);
}

static int sleep_fiber(void *arg)
{
    co_sleep(*(uint64_t *)arg);
    return 0;
}

static bool cmd_sleep(struct shell *sh, int argc, char **argv)
{
    char *end;
    long ms = strtol(argv[1], &end, 0);

    if (ms < 0 || *end) {
        printf("%s is not a valid number\n", argv[1]);
        return false;
    }
    uint64_t ns = (uint64_t)BLK_MIN(ms, LONG_MAX / 2000000) * 1000000;
    return blk_run(sh->loop, sleep_fiber, &ns) == 0;
}

static bool cmd_abort(struct shell *sh, int argc, char **argv)
{
    abort();                        /* what stdio holds is lost, as in QEMU */
}

static bool cmd_sigraise(struct shell *sh, int argc, char **argv)
{
    uint64_t sig;

    if (!io_number(argv[1], &sig))
        return false;
    if (sig > _NSIG) {
        printf("signal argument '%s' is too large to be a valid signal\n", argv[1]);
        return false;
    }
    fflush(stdout);
    raise((int)sig);
    return true;
}

static bool cmd_quit(struct shell *sh, int argc, char **argv)
{
    sh->quit = true;
    return true;
}

/* ---- breakpoints: requests that a blkdebug node holds back --------------------------- */

static bool break_failed(const char *what, int err)
{
    printf("Could not %s: %s\n", what, strerror(-err));
    return false;
}

static bool cmd_break(struct shell *sh, int argc, char **argv)
{
    int err = blk_debug(sh->node, BLK_DEBUG_BREAK, argv[1], argv[2]);

    return err == 0 || break_failed("set breakpoint", err);
}

static bool cmd_remove_break(struct shell *sh, int argc, char **argv)
{
    int err = blk_debug(sh->node, BLK_DEBUG_REMOVE, NULL, argv[1]);

    if (err)
        printf("Could not remove breakpoint %s: %s\n", argv[1], strerror(-err));
    return err == 0;
}

static bool cmd_resume(struct shell *sh, int argc, char **argv)
{
    int err = blk_debug(sh->node, BLK_DEBUG_RESUME, NULL, argv[1]);

    return err == 0 || break_failed("resume request", err);
}

static bool cmd_wait_break(struct shell *sh, int argc, char **argv)
{
    fflush(stdout);
    while (blk_debug(sh->node, BLK_DEBUG_SUSPENDED, NULL, argv[1]) == 0)
        blk_loop_turn(sh->loop, true);
    return true;
}

/* ---- zoned storage, of which there is none ------------------------------------------- */

static bool zone(int argc, char **argv, int at, const char *what)
{
    uint64_t v;

    for (int i = at; i < argc; i++)
        if (!io_number(argv[i], &v))
            return false;
    printf("zone %s failed: %s\n", what, strerror(ENOTSUP));
    return false;
}

static bool cmd_zone(struct shell *sh, int argc, char **argv)
{
    return zone(argc, argv, 1, io_find_command(argv[0])->name + strlen("zone_"));
}

static bool cmd_zone_append(struct shell *sh, int argc, char **argv)
{
    return zone(argc, argv, argv[1][0] == '-' ? 2 : 1, "append");
}

/* ---- the table --------------------------------------------------------------------- */

static const struct io_command commands[] = {
    { "abort", NULL, cmd_abort, 0, 0, IO_NO_FILE, NULL,
      "simulate a program crash using abort(3)" },
    { "aio_flush", NULL, io_cmd_aio_flush, 0, 0, 0, NULL,
      "completes all outstanding aio requests" },
    { "aio_read", NULL, io_cmd_aio_read, 2, -1, 0, "[-Ciqrv] [-P pattern] off len [len..]",
      "asynchronously reads a number of bytes" },
    { "aio_write", NULL, io_cmd_aio_write, 2, -1, IO_WRITES,
      "[-Cfiqruz] [-P pattern] off len [len..]", "asynchronously writes a number of bytes" },
    { "alloc", "a", io_cmd_alloc, 1, 2, 0, "offset [count]",
      "checks if offset is allocated in the file" },
    { "break", NULL, cmd_break, 2, 2, 0, "event tag",
      "sets a breakpoint on event and tags the stopped request as tag" },
    { "close", "c", io_cmd_close, 0, 0, 0, NULL, "close the current open file" },
    { "discard", "d", io_cmd_discard, 2, -1, IO_WRITES, "[-Cq] off len",
      "discards a number of bytes at a specified offset" },
    { "flush", "f", io_cmd_flush, 0, 0, 0, NULL, "flush all in-core file state to disk" },
    { "help", "?", io_cmd_help, 0, 1, IO_NO_FILE, "[command]", "help for one or all commands" },
    { "info", "i", io_cmd_info, 0, 0, 0, NULL, "prints information about the current file" },
    { "length", "l", io_cmd_length, 0, 0, 0, NULL, "gets the length of the current file" },
    { "map", NULL, io_cmd_map, 0, 0, 0, "", "prints the allocated areas of a file" },
    { "open", "o", io_cmd_open, 1, -1, IO_NO_FILE,
      "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]", "open the file specified by path" },
    { "quit", "q", cmd_quit, 0, -1, IO_NO_FILE, NULL, "exit the program" },
    { "read", "r", io_cmd_read, 2, -1, 0, "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
      "reads a number of bytes at a specified offset" },
    { "readv", NULL, io_cmd_read, 2, -1, 0, "[-Cqrv] [-P pattern] off len [len..]",
      "reads a number of bytes at a specified offset" },
    { "remove_break", NULL, cmd_remove_break, 1, 1, 0, "tag", "remove a breakpoint by tag" },
    { "reopen", NULL, io_cmd_reopen, 0, -1, 0, "[(-r|-w)] [-c cache] [-o options]",
      "reopens an image with new options" },
    { "resume", NULL, cmd_resume, 1, 1, 0, "tag", "resumes the request tagged as tag" },
    { "sigraise", NULL, cmd_sigraise, 1, 1, IO_NO_FILE, "signal", "raises a signal" },
    { "sleep", NULL, cmd_sleep, 1, 1, IO_NO_FILE, NULL,
      "waits for the given value in milliseconds" },
    { "truncate", "t", cmd_truncate, 1, 3, IO_WRITES, "[-m prealloc_mode] off",
      "truncates the current file at the given offset" },
    { "wait_break", NULL, cmd_wait_break, 1, 1, 0, "tag", "waits for the suspension of a request" },
    { "write", "w", io_cmd_write, 2, -1, IO_WRITES,
      "[-bcCfnqruz] [-P pattern | -s source_file] off len",
      "writes a number of bytes at a specified offset" },
    { "writev", NULL, io_cmd_writev, 2, -1, IO_WRITES, "[-Cfqr] [-P pattern] off len [len..]",
      "writes a number of bytes at a specified offset" },
    { "zone_append", "zap", cmd_zone_append, 3, 4, IO_WRITES, "offset len [len..]",
      "append write a number of bytes at a specified offset" },
    { "zone_close", "zc", cmd_zone, 2, 2, IO_WRITES, "offset len",
      "close a range of zones in zone block device" },
    { "zone_finish", "zf", cmd_zone, 2, 2, IO_WRITES, "offset len",
      "finish a range of zones in zone block device" },
    { "zone_open", "zo", cmd_zone, 2, 2, IO_WRITES, "offset len",
      "explicit open a range of zones in zone block device" },
    { "zone_report", "zrp", cmd_zone, 2, 2, 0, "offset number", "report zone information" },
    { "zone_reset", "zrs", cmd_zone, 2, 2, IO_WRITES, "offset len",
      "reset a zone write pointer in zone block device" },
};

const struct io_command *io_command_at(size_t i)
{
    return i < BLK_ARRAY_SIZE(commands) ? &commands[i] : NULL;
}

const struct io_command *io_find_command(const char *name)
{
    for (size_t i = 0; i < BLK_ARRAY_SIZE(commands); i++) {
        const struct io_command *c = &commands[i];

        if (!strcmp(name, c->name) || (c->alias && !strcmp(name, c->alias)))
            return c;
    }
    return NULL;
}

/* ---- one line ------------------------------------------------------------------------ */

static bool count_fits(const struct io_command *c, const char *name, int n)
{
    if (n >= c->min && (c->max < 0 || n <= c->max))
        return true;
    fprintf(stderr, "bad argument count %d to %s, expected ", n, name);
    if (c->max < 0)
        fprintf(stderr, "at least %d arguments\n", c->min);
    else if (c->max == c->min)
        fprintf(stderr, "%d arguments\n", c->min);
    else
        fprintf(stderr, "between %d and %d arguments\n", c->min, c->max);
    return false;
}

static bool may_run(struct shell *sh, const struct io_command *c, char **argv, int argc)
{
    if (!(c->flags & IO_NO_FILE) && !sh->node) {
        fprintf(stderr, "no file open, try 'help open'\n");
        return false;
    }
    if (!count_fits(c, argv[0], argc - 1))
        return false;
    return !(c->flags & IO_WRITES) || !blk_read_only(sh->node) ||
           io_say("Block node is read-only");
}

/* Runs one line; line is cut up. */
static void io_line(struct shell *sh, char *line)
{
    char *argv[IO_ARGS_MAX + 1], *save = NULL;
    int argc = 0;

    for (char *w = strtok_r(line, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
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
    const struct io_command *c = io_find_command(argv[0]);
    if (!c)
        fprintf(stderr, "command \"%s\" not found\n", argv[0]);
    if (!c || !may_run(sh, c, argv, argc) || !c->fn(sh, argc, argv))
        sh->failed = true;
}

/* A prompt even where nobody sits: scripts take it out of qemu-io's output, too. */
static void io_interactive(struct shell *sh)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n = 0;

    while (!sh->quit && n >= 0) {
        printf("%s> ", blk_program);
        fflush(stdout);             /* whoever feeds us waits for it */
        n = getline(&line, &cap, stdin);
        if (n > 0) {
            line[n - (line[n - 1] == '\n')] = '\0';
            io_line(sh, line);
        }
    }
    free(line);
}

/* ---- main -------------------------------------------------------------------------- */

static const struct option long_options[] = {
    { "cmd", required_argument, NULL, 'c' }, { "format", required_argument, NULL, 'f' },
    { "read-only", no_argument, NULL, 'r' }, { "nocache", no_argument, NULL, 'n' },
    { "cache", required_argument, NULL, 't' }, { "discard", required_argument, NULL, 'd' },
    { "copy-on-read", no_argument, NULL, 'C' }, { "misalign", no_argument, NULL, 'm' },
    { "native-aio", no_argument, NULL, 'k' }, { "snapshot", no_argument, NULL, 's' },
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
           "  -s, --snapshot       what is written is gone at the end\n"
           "  -C, --copy-on-read   what is read from a backing file is kept in the image\n"
           "  -n, --nocache        O_DIRECT, short for -t none\n"
           "  -t, --cache MODE     writethrough (default), none, writeback, directsync,\n"
           "                       unsafe\n"
           "  -d, --discard MODE   ignore or unmap (default)\n"
           "  -U, --force-share    take no locks\n"
           "      --object OBJDEF  an object such as a secret\n"
           "      --backing-urls LIST  protocols that names inside images may use\n"
           "  -i, --aio MODE       threads, native or io_uring; the host decides\n"
           "  -k, --native-aio     short for -i native, which needs -n\n"
           "  -m, -T TRACE         accepted, without effect\n"
           "  -h, --help           this\n"
           "  -V, --version        version and what is compiled in\n\n"
           "See 'platter-io -c help' for the commands.\n");
}

static bool io_object(const char *text)
{
    struct blk_error e = BLK_ERROR_INIT;

    if (blk_object_add(text, &e)) {
        return io_failed(&e);
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

    while ((c = getopt_long(argc, argv, "hVc:d:f:rsCnmki:t:T:U", long_options, NULL)) != -1) {
        switch (c) {
        case 'c': m->cmds[m->ncmds++] = optarg; break;
        case 'f':
            free(m->open.format);
            m->open.format = strdup(optarg);
            break;
        case 'o': m->image_opts = true; break;
        case 'O':
            if (!io_object(optarg))
                return 2;
            break;
        case 'B': sh->backing_urls = optarg; break;
        case 'm': case 'T': break;
        case 'h': io_usage(); return 1;
        case 'V': printf("%s\n", blk_build_info()); return 1;
        case '?': io_usage(); return 2;
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
        io_say("--image-opts and -f are mutually exclusive");
        return 2;
    }
    m->open.filename = optind < argc ? strdup(argv[optind]) : NULL;
    return 0;
}

/* The image named on the command line, if any. */
static bool io_open_first(struct shell *sh, struct io_main *m)
{
    if (!m->open.filename)
        return true;
    if (m->image_opts) {
        bool ok = io_open_options(&m->open, m->open.filename);

        free(m->open.filename);
        m->open.filename = NULL;
        if (!ok)
            return false;
    }
    return io_open_file(sh, &m->open);
}

/* QEMU's processes keep this one to themselves: it does not end them. */
static void block_sigusr1(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

int main(int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct shell sh = { 0 };
    struct io_main m = { .open.flags = IO_OPEN_FLAGS };
    const char *slash = strrchr(argv[0], '/');
    int ret = 1;

    blk_program = slash ? slash + 1 : argv[0];
    block_sigusr1();
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
    io_cmd_aio_flush(&sh, 0, NULL);
    if (sh.node && !io_cmd_close(&sh, 0, NULL))
        sh.failed = true;
    fflush(stdout);
    ret = sh.failed;
out:
    io_open_release(&m.open);
    io_open_release(&sh.opened);
    if (sh.loop)
        blk_loop_free(sh.loop);
    free(m.cmds);
    return ret;
}
