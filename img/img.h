/*
 * img.h - the frame all subcommands of platter-img share: dispatch, options,
 * messages, opening images, output, progress.
 *
 * A subcommand is one file holding one const struct img_command.  Its main()
 * parses options on the plain stack and then calls img_run() with the part that
 * touches images, which runs in a fiber on the process's only loop.  Nothing
 * here knows a driver: only block/block.h is used.
 *
 * Messages go where qemu-img puts them: results to stdout, "PROGRAM: text" to
 * stderr.  PROGRAM is the last part of argv[0].
 */
#ifndef PLATTER_IMG_H
#define PLATTER_IMG_H

#include <getopt.h>
#include <jansson.h>
#include "block/block.h"

/* ---- commands -------------------------------------------------------------- */

struct img_command {
    const char *name;
    const char *summary;        /* one line, no full stop */
    const char *synopsis;       /* what follows "platter-img NAME ", may have \n */
    const char *arguments;      /* the option list of --help, "  -f, --format FMT\n..." */
    /* argv[0] is "PROGRAM NAME" (for getopt's own messages and img_try_help());
     * optind is reset.  Returns the exit status. */
    int (*main)(int argc, char **argv);
};

extern const struct img_command *const img_commands[];  /* commands.c; NULL-terminated */
extern const struct img_command img_amend, img_bench, img_bitmap, img_check, img_commit, img_compact,
    img_compare, img_convert,
    img_create, img_dd, img_digest, img_info, img_inspect, img_map, img_measure, img_rebase,
    img_resize, img_snapshot;

/* Prints --help of a command and returns 0: "return img_help(&img_create);" */
int img_help(const struct img_command *c);

/* Values getopt_long returns for options without a letter: 256.. */
enum {
    IMG_OPT_IMAGE_OPTS = 256,
    IMG_OPT_OBJECT,
    IMG_OPT_OUTPUT,
    IMG_OPT_FIRST_FREE,         /* commands number their own from here */
};

/* ---- messages -------------------------------------------------------------- */

void img_error(const char *fmt, ...) BLK_PRINTF(1, 2);      /* "PROGRAM: text" */
void img_warning(const char *fmt, ...) BLK_PRINTF(1, 2);    /* "PROGRAM: warning: text" */
/* A library error: its text, then its hint lines as they are. */
void img_report(const struct blk_error *e);
/* The same with "fmt" in front of the text, for "Could not open 'x': " and kin. */
void img_report_prefixed(const struct blk_error *e, const char *fmt, ...) BLK_PRINTF(2, 3);
/* "Try 'argv0 --help' for more info" on stderr; returns 1, the exit status. */
int img_try_help(const char *argv0);
/* img_error() and img_try_help(). */
int img_usage_error(const char *argv0, const char *fmt, ...) BLK_PRINTF(2, 3);
/* printf to stdout unless quiet. */
void img_print(bool quiet, const char *fmt, ...) BLK_PRINTF(2, 3);

/* ---- running --------------------------------------------------------------- */

/* Make the loop, run fn(arg) in a fiber on it, free the loop.  Returns what fn
 * returned (an exit status); 1 if no loop could be made.  Once a process. */
int img_run(int (*fn)(void *arg), void *arg);
struct blk_loop *img_loop(void);                /* inside img_run() */
/* Protocols that names inside images may use (--backing-urls); NULL: plain paths only. */
extern const char *img_backing_urls;

/* ---- option values --------------------------------------------------------- */

/* A size with suffix; what: "image size", for the message.  Prints and returns
 * -EINVAL unless it parses and lies in [min, max]. */
int img_parse_size_in(const char *what, const char *s, uint64_t min, uint64_t max, uint64_t *out);
/* The same with 0 .. INT64_MAX. */
int img_parse_size(const char *what, const char *s, uint64_t *out);
/* A whole number without a suffix, "0x10" too; the same messages. */
int img_parse_number(const char *what, const char *s, uint64_t min, uint64_t max, uint64_t *out);
/* --output: 0 with *json set (and progress no longer on stdout), or prints the usage error and returns -EINVAL. */
int img_parse_output(const char *argv0, const char *s, bool *json);
/* blk_parse_cache() that prints what is wrong; whose: "" or "source ". */
int img_parse_cache(const char *whose, const char *mode, unsigned *flags);
/* Append one -o argument to the list *all (malloc'd, NULL at first).  Prints
 * "Invalid option list" and returns -EINVAL for an empty element. */
int img_add_options(char **all, const char *more);
/* Does the list ask for help ("help" or "?")? */
bool img_options_want_help(const char *options);
/* Lines of -o help, in the order of d. */
void img_print_descs(const struct blk_option_desc *d);
/* -o help; filename NULL when none was given.  Returns the exit status. */
int img_print_create_options(const char *format, const char *filename);
/* --object text: define it.  Prints and returns -EINVAL if that fails; help ends the
 * process. */
int img_add_object(const char *text);

/* ---- creation options, for create, convert, measure, dd ---------------------- */

/* The descriptors of a format's options followed by those of the protocol that
 * holds filename (NULL: no protocol), without doubles.  Free with free(). NULL:
 * e says why ("Unknown file format 'x'", ...). */
struct blk_option_desc *img_create_descs(const char *format, const char *filename,
                                         struct blk_error *e);
/* Parse "k=v,..." (NULL: nothing) into o, checking names and types in qemu's
 * order and words. */
int img_parse_create_options(struct blk_opts *o, const struct blk_option_desc *descs,
                             const char *text, struct blk_error *e);
/* Set one option, checked the same way; -EINVAL if the format has no such option. */
int img_set_create_option(struct blk_opts *o, const struct blk_option_desc *descs,
                          const char *key, const char *value, struct blk_error *e);

/* Those of d that are set in o, in JSON's types, nothing secret: a new object. */
json_t *img_options_json(struct blk_opts *o, const struct blk_option_desc *d);

/* ---- images ---------------------------------------------------------------- */

struct img_image {
    const char *filename;       /* or the option list, with image_opts */
    const char *format;         /* -f, or NULL */
    bool image_opts;            /* --image-opts */
    bool quiet;
    unsigned flags;             /* BLK_O_*; BLK_O_SHARE is -U */
    const struct blk_opts *opts;    /* more options beside filename, or NULL */
};
/* The options that most commands have, with what getopt_long() says of one: --help, -f,
 * -q, -U, --image-opts, --object, --output; any other is a mistake.  -1: go on; else the
 * exit status, help or the error having been printed. */
int img_common_option(const struct img_command *c, int ch, const char *argv0,
                      struct img_image *im, bool *json);
/* NULL: the message has been printed.  In a fiber or not. */
struct blk_node *img_open(const struct img_image *im);
/* The list of --image-opts, what it says of locks in *flags (BLK_O_*); without the option
 * an empty one.  NULL: the message is printed. */
struct blk_opts *img_image_options(const struct img_image *im, unsigned *flags);
/* Close; prints what went wrong. Returns 0 or -errno. NULL is fine. */
int img_close(struct blk_node *n);

/* -l of convert and measure: an id or, if no snapshot has that id, a name; or
 * "snapshot.id=ID,snapshot.name=NAME".  check: is it well-formed?  load: n, read-only,
 * reads as that snapshot from now on.  Both print what is wrong; 0 or -errno. */
int img_check_snapshot(const char *text);
int img_load_snapshot(struct blk_node *n, const char *text);

/* Check an image that is about to be changed in place and give its leaked clusters back
 * (*leaks: how many).  0, also where the format has no check; -errno with the message
 * printed: it could not be opened, or it is damaged.  im->flags: the cache mode. */
int img_mend(const struct img_image *im, uint64_t *leaks);

/* The overlay in top's chain whose backing file is called name (chain.c), as qemu-img
 * finds it; NULL: none is. */
struct blk_node *img_find_backing(struct blk_node *top, const char *name);

/* ---- output ---------------------------------------------------------------- */

/* "1.5 GiB", three significant digits, as qemu-img; buf of >= 32 bytes. */
char *img_human_size(uint64_t bytes, char *buf, size_t len);
/* QEMU's JSON: 4 spaces a level, keys in the order of its dictionaries, ASCII
 * only.  Without and with a line end. */
char *img_json_text(const json_t *v);           /* malloc'd; NULL: no memory */
void img_json_print(const json_t *v);
/* The result of a command as JSON: printed and released.  NULL: there was no memory
 * for it, which is said.  Returns the exit status, 0 or 1. */
int img_json_result(json_t *v);
/* A string of bytes that may be no UTF-8, which become U+FFFD; NULL: NULL. */
json_t *img_json_string(const char *s);
/* The members of an object in the order qemu's dictionaries have: an array of
 * *n keys owned by v, free() the array; NULL: no memory or empty. */
const char **img_json_keys(const json_t *v, size_t *n);
/* "Format specific information" and the like: nested keys and values, indented
 * by 4 spaces a level, '-' in keys shown as a space. */
void img_print_human_json(int indent, const json_t *v);

/* qemu's table of an array of SnapshotInfo, indented by margin (info.c). */
void img_print_snapshots(const json_t *list, int margin);

/* ---- progress -------------------------------------------------------------- */

/* -p and --progress (s NULL), or --progress=FD|json: lines of JSON to that file
 * descriptor or stderr, even with -q.  Prints and returns -errno. */
int img_parse_progress(const char *s, bool *on);
/* stdout is for a result in JSON. */
void img_progress_to_stderr(void);
/* enabled: -p.  On a terminal a bar with rate and time left; otherwise qemu's
 * "    (12.34/100%)\r", printed when it moved by min_skip percent or more.
 * SIGUSR1 prints a line on stderr at the next update in either case. */
void img_progress_start(bool enabled, double min_skip);
/* done of total units.  bytes: are the units bytes (a rate is then shown). */
void img_progress_set(uint64_t done, uint64_t total, bool bytes);
void img_progress_end(void);                    /* a line end, where one is needed */

#endif
