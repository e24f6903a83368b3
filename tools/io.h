/*
 * io.h - what the files of platter-io share: the shell, the arguments of one command and
 * how they are parsed and reported.  Whatever is wrong with an argument is printed where
 * it is found; functions then return false.
 */
#ifndef PLATTER_IO_H
#define PLATTER_IO_H

#include "block/block.h"

/* Without options each write is flushed before it is done: scripts that end a program in its
 * middle rely on it. */
#define IO_OPEN_FLAGS (BLK_O_RDWR | BLK_O_UNMAP | BLK_O_WRITETHROUGH)

/* How an image was opened, for reopen; strings are owned. */
struct io_open {
    char *filename, *format;
    unsigned flags;                     /* BLK_O_* */
    bool snapshot, copy_on_read, native_aio;
    struct blk_opts *opts;              /* -o and --image-opts; NULL: none */
};

struct io_op;

struct shell {
    struct blk_loop *loop;
    struct blk_node *node;        /* NULL: no file is open */
    struct io_open opened;        /* how */
    const char *backing_urls;
    unsigned aio_pending;
    struct io_op *refused;        /* aio requests that never were submitted, newest first */
    bool failed;                  /* some command failed: exit status 1 */
    bool quit;
};

/* What the option letters of one command said. */
struct io_args {
    bool quiet, machine, verbose, zero, unmap, no_fallback, compressed, fua, invalid;
    bool has_pattern, vm_state, registered;
    uint8_t pattern;
    uint64_t check_off, check_len;      /* read -s / -l: where to verify */
    bool has_check_off, has_check_len;
    const char *source;                 /* write -s */
    uint64_t offset, length;
    struct iovec *iov;                  /* owned, over buf */
    int iovcnt;
    uint8_t *buf;                       /* owned, blk_buf_alloc */
};

/* 65536 -> "64 KiB", as qemu-io's cvtstr(). */
void io_size_text(double value, char *out, size_t size);
/* "wrote 512/512 bytes at offset 0" and the rate, unless -q. */
void io_report(const char *verb, const struct io_args *a, uint64_t ns);
void io_dump(const uint8_t *buf, uint64_t offset, uint64_t len);
/* True if the checked part of a's buffer holds the pattern. */
bool io_verify(const struct io_args *a);

/* A size with an optional suffix, or 0x... */
bool io_number(const char *s, uint64_t *out);
/* Takes the letters in "allowed" (getopt syntax); is_read decides what -s means.
 * Returns the index of the first word after the options, -1, or IO_BAD_USAGE (the
 * caller prints the command's usage).  -i ends it: a->invalid. */
#define IO_BAD_USAGE (-2)
int io_letters(struct io_args *a, int argc, char **argv, const char *allowed, bool is_read);
/* OFFSET LEN from argv[at] on: fills offset, length and, with want_buf, an iov of one
 * over a fresh buffer.  limit: may length not be more than one request can have?  hint:
 * what the message says after the limit. */
bool io_extent(struct io_args *a, char **argv, int at, bool limit, const char *hint);
bool io_extent_buffer(struct io_args *a);
/* OFFSET LEN [LEN ...]: an iov entry for each length, over a fresh buffer. */
bool io_vector(struct io_args *a, int argc, char **argv, int at);
/* Both are whole sectors, or what is not is printed. */
bool io_whole_sectors(const struct io_args *a);
/* read -s/-l lie within what is read; sets check_len. */
bool io_check_range(struct io_args *a);
/* Repeats the -s file's content over the buffer. */
bool io_fill_from_file(struct io_args *a);
void io_args_release(struct io_args *a);

/* ---- io.c: commands -------------------------------------------------------------- */

enum { IO_NO_FILE = 1, IO_WRITES = 2 };

/* A command: the words in argv, the outcome on stdout; false: it failed. */
struct io_command {
    const char *name, *alias;
    bool (*fn)(struct shell *sh, int argc, char **argv);
    int min, max;                       /* words after the name; max -1: any number */
    unsigned flags;
    const char *args, *help;
};
const struct io_command *io_find_command(const char *name);
const struct io_command *io_command_at(size_t i);       /* NULL past the end */

/* ---- io_help.c -------------------------------------------------------------------- */

bool io_bad_usage(const char *name);    /* prints the command's usage; false */
bool io_cmd_help(struct shell *sh, int argc, char **argv);

/* ---- io_rw.c ---------------------------------------------------------------------- */

bool io_cmd_read(struct shell *sh, int argc, char **argv);       /* readv, too */
bool io_cmd_write(struct shell *sh, int argc, char **argv);
bool io_cmd_writev(struct shell *sh, int argc, char **argv);
bool io_cmd_discard(struct shell *sh, int argc, char **argv);
bool io_cmd_flush(struct shell *sh, int argc, char **argv);
bool io_cmd_aio_read(struct shell *sh, int argc, char **argv);
bool io_cmd_aio_write(struct shell *sh, int argc, char **argv);
/* Waits for what is in flight; sends no flush. */
bool io_cmd_aio_flush(struct shell *sh, int argc, char **argv);

/* ---- io_query.c --------------------------------------------------------------- */

bool io_cmd_length(struct shell *sh, int argc, char **argv);
bool io_cmd_alloc(struct shell *sh, int argc, char **argv);
bool io_cmd_map(struct shell *sh, int argc, char **argv);
bool io_cmd_info(struct shell *sh, int argc, char **argv);
/* The image itself, where a filter that -C put above it stands between. */
struct blk_node *io_image(const struct shell *sh);

/* ---- io_open.c ---------------------------------------------------------------- */

/* Prints the error on stderr; false, for "return io_failed(&e)". */
bool io_failed(const struct blk_error *e);
/* The same for a text of the shell's own, without a newline. */
bool io_say(const char *fmt, ...) BLK_PRINTF(1, 2);
/* One of -r -s -C -n -U -k -i -t -d. */
bool io_open_flag(struct io_open *o, int letter, const char *value);
bool io_open_options(struct io_open *o, const char *text);
void io_open_release(struct io_open *o);
/* o becomes the shell's, whatever comes of it, and is empty then: an open file is an error. */
bool io_open_file(struct shell *sh, struct io_open *o);
bool io_cmd_open(struct shell *sh, int argc, char **argv);
bool io_cmd_close(struct shell *sh, int argc, char **argv);
bool io_cmd_reopen(struct shell *sh, int argc, char **argv);

#endif
