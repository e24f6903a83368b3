/*
 * io.h - what the files of platter-io share: the arguments of one command and how
 * they are parsed and reported.  Whatever is wrong with an argument is printed
 * where it is found; functions then return false.
 */
#ifndef PLATTER_IO_H
#define PLATTER_IO_H

#include "block/block.h"

struct shell {
    struct blk_loop *loop;
    struct blk_node *node;        /* NULL: no file is open */
    const char *backing_urls;
    unsigned aio_pending;
    bool failed;                  /* some command failed: exit status 1 */
    bool quit;
};

/* What the option letters of one command said. */
struct io_args {
    bool quiet, machine, verbose, zero, unmap, no_fallback, compressed, fua, ignore_error;
    bool has_pattern;
    uint8_t pattern;
    uint64_t check_off, check_len;      /* read -s / -l: where to verify */
    bool has_check_len;
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
 * caller prints the command's usage). */
#define IO_BAD_USAGE (-2)
int io_letters(struct io_args *a, int argc, char **argv, const char *allowed, bool is_read);
/* OFFSET LEN [LEN ...] from argv[at] on (at least these two): fills offset, length and
 * the iov over a fresh buffer (no buffer unless want_buf: zero writes and discards). */
bool io_extent(struct io_args *a, int argc, char **argv, int at, bool want_buf);
/* read -s/-l lie within what is read. */
bool io_check_range(const struct io_args *a);
/* Repeats the -s file's content over the buffer. */
bool io_fill_from_file(struct io_args *a);
void io_args_release(struct io_args *a);

/* ---- io_query.c --------------------------------------------------------------- */

/* Commands: the words in argv, the outcome on stdout; false: it failed. */
bool io_cmd_length(struct shell *sh, int argc, char **argv);
bool io_cmd_alloc(struct shell *sh, int argc, char **argv);
bool io_cmd_map(struct shell *sh, int argc, char **argv);
bool io_cmd_info(struct shell *sh, int argc, char **argv);

/* ---- io_open.c ---------------------------------------------------------------- */

struct io_open {
    const char *filename, *format;
    unsigned flags;                     /* BLK_O_* */
    struct blk_opts *opts;              /* -o and --image-opts; the caller frees it */
};

/* Prints the error on stderr; false, for "return io_failed(&e)". */
bool io_failed(const struct blk_error *e);
/* One of -r -n -U -t -d. */
bool io_open_flag(struct io_open *o, int letter, const char *value);
bool io_open_options(struct io_open *o, const char *text);
/* *out is the shell's node: one that is open already is an error. */
bool io_open(struct blk_loop *l, const struct io_open *o, const char *backing_urls,
             struct blk_node **out);

#endif
