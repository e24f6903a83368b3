/*
 * io_rw.c - platter-io: the commands that read, write, discard and flush.
 *
 * Every synchronous command runs in a fiber until it ends (blk_run); the aio_ commands
 * submit a request that stays in flight until aio_flush, until the loop turns for another
 * command, or until the end.
 */
#include "tools/io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct io_op {
    struct shell *sh;
    const char *name;                   /* in messages: "read", "aio_write", ... */
    struct io_args a;
    enum blk_op op;
    unsigned flags;
    struct blk_req req;
    uint64_t t0;
    struct io_op *next;                 /* shell's refused */
};

/* ---- synchronous commands ---------------------------------------------------- */

static int run_vm_state(const struct io_op *op)
{
    const struct io_args *a = &op->a;

    return blk_vm_state(op->sh->node, op->op == BLK_WRITE, a->offset, a->iov, a->iovcnt,
                        a->length);
}

/* The last cluster may be cut short by the end of the image. */
static bool whole_clusters(const struct io_op *op)
{
    struct blk_info info;
    struct blk_error e = { 0 };
    uint64_t end = op->a.offset + op->a.length, mask = 0;

    if (!blk_get_info(op->sh->node, &info, &e)) {
        mask = info.cluster_size ? info.cluster_size - 1 : 0;
        blk_info_free(&info);
    }
    return !(op->a.offset & mask) && (!(end & mask) || end == blk_size(op->sh->node));
}

/* As in QEMU: no part of a cluster is written compressed to a qcow2 image, nothing over what
 * it has already, and nothing to a data file. */
static int check_compressed(const struct io_op *op)
{
    const struct io_args *a = &op->a;
    struct blk_status st;
    int err = 0;

    if (strcmp(blk_format_name(op->sh->node), "qcow2"))
        return 0;
    if (blk_data_file(op->sh->node))
        return -ENOTSUP;
    if (!whole_clusters(op))
        return -EINVAL;
    for (uint64_t at = 0; !err && at < a->length; at += st.length) {
        err = co_status(op->sh->node, a->offset + at, a->length - at, &st);
        if (!err && st.flags & (BLK_ST_OFFSET | BLK_ST_COMPRESSED))
            err = -EIO;
    }
    return err;
}

static int run_fiber(void *arg)
{
    struct io_op *op = arg;
    struct io_args *a = &op->a;
    int err = 0;

    if (a->vm_state)
        return run_vm_state(op);
    switch (op->op) {
    case BLK_READ:
        return co_readv(op->sh->node, a->offset, a->iov, a->iovcnt, a->length);
    case BLK_WRITE:
        if (op->flags & BLK_REQ_COMPRESSED)
            err = check_compressed(op);
        return err ? err : co_writev(op->sh->node, a->offset, a->iov, a->iovcnt, a->length,
                                     op->flags);
    case BLK_WRITE_ZEROES:
        return co_write_zeroes(op->sh->node, a->offset, a->length, op->flags);
    case BLK_DISCARD:
        return co_discard(op->sh->node, a->offset, a->length);
    default:
        return co_flush(op->sh->node);
    }
}

/* QEMU refuses what is not inside the image; storage opened by itself may grow here. */
static bool is_inside(const struct io_op *op)
{
    uint64_t size = blk_size(op->sh->node);

    return op->a.vm_state || op->op == BLK_FLUSH ||
           (op->a.offset <= size && op->a.length <= size - op->a.offset) ||
           (op->op == BLK_WRITE && blk_is_protocol(op->sh->node));
}

static void say_refused(struct shell *sh);

/* Runs the op, prints its outcome under verb ("read", "wrote", ...). */
static bool run(struct io_op *op, const char *verb)
{
    say_refused(op->sh);
    uint64_t t0 = blk_now_ns();
    /* The core would read zeros past the end, or say that there is no room. */
    int ret = is_inside(op) ? blk_run(op->sh->loop, run_fiber, op) : -EIO;
    uint64_t ns = blk_now_ns() - t0;

    if (ret < 0) {
        printf("%s failed: %s\n", op->name, strerror(-ret));
        return false;
    }
    bool ok = op->op != BLK_READ || !op->a.has_pattern || io_verify(&op->a);

    if (op->op == BLK_READ && op->a.verbose && !op->a.quiet)
        io_dump(op->a.buf, op->a.offset, op->a.length);
    io_report(verb, &op->a, ns);
    return ok;
}

/* The words of a command into op, whose extent starts at *at then; false: what is wrong
 * has been printed. */
static bool parse_letters(struct io_op *op, int argc, char **argv, const char *letters, bool many,
                          int *at)
{
    op->name = io_find_command(argv[0])->name;
    *at = io_letters(&op->a, argc, argv, letters, op->op == BLK_READ);
    if (op->a.invalid)
        return true;
    if (*at == IO_BAD_USAGE || (*at >= 0 && (many ? argc - *at < 2 : argc - *at != 2)))
        return io_bad_usage(argv[0]);
    return *at >= 0;
}

static bool parse_read(struct io_op *op, int argc, char **argv)
{
    int at;

    if (!parse_letters(op, argc, argv, "bCl:pP:qrs:v", false, &at) ||
        !io_extent(&op->a, argv, at, true, ""))
        return false;
    if (!op->a.has_pattern && (op->a.has_check_off || op->a.has_check_len))
        return io_bad_usage(argv[0]);
    return io_check_range(&op->a) && (!op->a.vm_state || io_whole_sectors(&op->a)) &&
           io_extent_buffer(&op->a);
}

static bool parse_vector(struct io_op *op, int argc, char **argv, const char *letters)
{
    int at;

    return parse_letters(op, argc, argv, letters, true, &at) &&
           io_vector(&op->a, argc, argv, at);
}

bool io_cmd_read(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .op = BLK_READ };
    bool many = !strcmp(argv[0], "readv");
    bool ok = many ? parse_vector(&op, argc, argv, "CP:qrv") : parse_read(&op, argc, argv);

    if (ok) {
        op.a.check_len = many ? op.a.length : op.a.check_len;
        memset(op.a.buf, 0xab, op.a.length);
        ok = run(&op, "read");
    }
    io_args_release(&op.a);
    return ok;
}

/* Letters of write that exclude each other. */
static const char *write_conflict(const struct io_args *a)
{
    if (a->vm_state && a->zero)
        return "-b and -z cannot be specified at the same time";
    if (a->fua && (a->vm_state || a->compressed))
        return "-f and -b or -c cannot be specified at the same time";
    if (a->no_fallback && !a->zero)
        return "-n requires -z to be specified";
    if (a->unmap && !a->zero)
        return "-u requires -z to be specified";
    if (a->zero && a->registered)
        return "cannot combine zero write with registered I/O buffer";
    if (a->zero + a->has_pattern + (a->source != NULL) > 1)
        return "Only one of -z, -P, and -s can be specified at the same time";
    return NULL;
}

static void set_write_flags(struct io_op *op)
{
    struct io_args *a = &op->a;

    op->op = a->zero ? BLK_WRITE_ZEROES : BLK_WRITE;
    op->flags = (a->fua ? BLK_REQ_FUA : 0u) | (a->unmap ? BLK_REQ_MAY_UNMAP : 0u) |
                (a->no_fallback ? BLK_REQ_FAST_ZERO : 0u) |
                (a->compressed && !a->zero ? BLK_REQ_COMPRESSED : 0u);
}

static void fill(struct io_args *a)
{
    memset(a->buf, a->has_pattern ? a->pattern : 0xcd, a->length);
}

static bool parse_write(struct io_op *op, int argc, char **argv)
{
    struct io_args *a = &op->a;
    int at;

    if (!parse_letters(op, argc, argv, "bcCfnpP:qrs:uz", false, &at))
        return false;
    const char *conflict = write_conflict(a);
    if (conflict) {
        printf("%s\n", conflict);
        return false;
    }
    set_write_flags(op);
    if (!io_extent(a, argv, at, !a->no_fallback, " without -n") ||
        ((a->vm_state || a->compressed) && !io_whole_sectors(a)))
        return false;
    if (a->zero)
        return true;
    if (!io_extent_buffer(a))
        return false;
    fill(a);
    return !a->source || io_fill_from_file(a);
}

bool io_cmd_write(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .op = BLK_WRITE };
    bool ok = parse_write(&op, argc, argv) && run(&op, "wrote");

    io_args_release(&op.a);
    return ok;
}

bool io_cmd_writev(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .op = BLK_WRITE };
    bool ok = parse_vector(&op, argc, argv, "CfqrP:");

    if (ok) {
        set_write_flags(&op);
        fill(&op.a);
        ok = run(&op, "wrote");
    }
    io_args_release(&op.a);
    return ok;
}

bool io_cmd_discard(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .op = BLK_DISCARD };
    int at;
    bool ok = parse_letters(&op, argc, argv, "Cq", false, &at) &&
              io_extent(&op.a, argv, at, true, "") && run(&op, "discard");

    io_args_release(&op.a);
    return ok;
}

/* qemu-io keeps silent when it fails; nobody should have to look at the exit status to
 * learn that data is lost.  Of a corrupt image that has been said. */
bool io_cmd_flush(struct shell *sh, int argc, char **argv)
{
    struct io_op op = { .sh = sh, .op = BLK_FLUSH };
    int err;

    say_refused(sh);
    err = blk_run(sh->loop, run_fiber, &op);
    if (err && err != -ENOMEDIUM)
        printf("flush failed: %s\n", strerror(-err));
    return err == 0;
}

/* ---- asynchronous commands ---------------------------------------------------- */

static void aio_free(struct io_op *op)
{
    io_args_release(&op->a);
    free(op);
}

static void aio_done(struct blk_req *req)
{
    struct io_op *op = req->arg;
    bool is_read = op->op == BLK_READ;

    op->sh->aio_pending--;
    if (req->result < 0) {
        printf("%s failed: %s\n", is_read ? "readv" : "aio_write", strerror(-req->result));
    } else {
        if (is_read && op->a.has_pattern)
            io_verify(&op->a);
        if (is_read && op->a.verbose && !op->a.quiet)
            io_dump(op->a.buf, op->a.offset, op->a.length);
        io_report(is_read ? "read" : "wrote", &op->a, blk_now_ns() - op->t0);
    }
    aio_free(op);
}

/* QEMU tells of those in the reverse order, when its loop runs next. */
static void say_refused(struct shell *sh)
{
    while (sh->refused) {
        struct io_op *op = sh->refused;

        sh->refused = op->next;
        op->req.result = -EIO;
        aio_done(&op->req);
    }
}

static void aio_submit(struct io_op *op)
{
    bool data = op->op != BLK_WRITE_ZEROES;

    op->req = (struct blk_req) {
        .op = op->op, .flags = op->flags, .offset = op->a.offset, .length = op->a.length,
        .iov = data ? op->a.iov : NULL, .iovcnt = data ? op->a.iovcnt : 0,
        .done = aio_done, .arg = op,
    };
    op->t0 = blk_now_ns();
    op->sh->aio_pending++;
    if (is_inside(op)) {
        blk_submit(op->sh->node, &op->req);
    } else {
        op->next = op->sh->refused;
        op->sh->refused = op;
    }
}

static bool aio_parse_write(struct io_op *op, int argc, char **argv)
{
    struct io_args *a = &op->a;
    int at;

    if (!parse_letters(op, argc, argv, "CfiP:qruz", true, &at))
        return false;
    if (a->invalid)
        return true;
    const char *conflict = a->zero && at != argc - 2 ? "-z supports only a single length parameter"
                           : a->unmap && !a->zero ? "-u requires -z to be specified"
                           : a->zero && a->registered
                           ? "cannot combine zero write with registered I/O buffer" : NULL;
    if (conflict) {
        printf("%s\n", conflict);
        return false;
    }
    set_write_flags(op);
    if (a->zero)
        return io_extent(a, argv, at, false, "");
    if (!io_vector(a, argc, argv, at))
        return false;
    fill(a);
    return true;
}

static bool aio_parse_read(struct io_op *op, int argc, char **argv)
{
    int at;

    if (!parse_letters(op, argc, argv, "CiP:qrv", true, &at))
        return false;
    if (op->a.invalid)
        return true;
    if (!io_vector(&op->a, argc, argv, at))
        return false;
    op->a.check_len = op->a.length;
    memset(op->a.buf, 0xab, op->a.length);
    return true;
}

static bool aio_start(struct shell *sh, int argc, char **argv, enum blk_op what)
{
    struct io_op *op = calloc(1, sizeof(*op));

    if (!op)
        return false;
    op->sh = sh;
    op->op = what;
    bool ok = what == BLK_READ ? aio_parse_read(op, argc, argv) : aio_parse_write(op, argc, argv);
    if (ok && op->a.invalid)
        printf("injecting invalid %s request\n", what == BLK_READ ? "read" : "write");
    if (ok && !op->a.invalid)
        aio_submit(op);
    else
        aio_free(op);
    return ok;
}

bool io_cmd_aio_write(struct shell *sh, int argc, char **argv)
{
    return aio_start(sh, argc, argv, BLK_WRITE);
}

bool io_cmd_aio_read(struct shell *sh, int argc, char **argv)
{
    return aio_start(sh, argc, argv, BLK_READ);
}

bool io_cmd_aio_flush(struct shell *sh, int argc, char **argv)
{
    say_refused(sh);
    while (sh->aio_pending)
        blk_loop_turn(sh->loop, true);
    return true;
}
