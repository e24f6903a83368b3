/*
 * options.c - see options.h.
 */
#include "vmm-shim/options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-shim/acpi.h"
#include "vmm-shim/layout.h"

#define MEMORY_DEFAULT (512ull << 20)
#define MEMORY_MIN     (4ull << 20)
#define MEMORY_MAX     (LAYOUT_MEM_END - LAYOUT_HIGH_BASE)
#define QUEUES_MAX     64u

static const char help_text[] =
"Usage: platter-run --kernel FILE [options]\n"
"Run a Linux guest under KVM, its disks served by Platter.\n"
"\n"
"  -k, --kernel FILE        bzImage (a distribution's vmlinuz)\n"
"  -i, --initrd FILE        initial RAM disk\n"
"  -a, --append TEXT        kernel command line\n"
"  -d, --disk FILE[,k=v...] a virtio disk; repeatable, the first is /dev/vda\n"
"        FILE                 path or URL (a comma is written ,,)\n"
"        format=NAME          raw, qcow2, ...; guessed when not given\n"
"        readonly[=on|off]    the guest cannot write\n"
"        serial=TEXT          up to 20 bytes, /dev/disk/by-id/virtio-TEXT\n"
"        cache=MODE           writeback (default), none, writethrough, directsync,\n"
"                             unsafe\n"
"        discard=on|off       pass the guest's discards on (default on)\n"
"        queues=N             request queues, 1-64 (default: one a CPU, at most 8)\n"
"        queue-size=N         entries a queue, a power of two up to 256\n"
"        block-size=N         logical block size, 512-4096\n"
"        id=NAME              what messages call it\n"
"        backing-urls=LIST    protocols that names inside images may use\n"
"        other keys           go to the image's driver\n"
"  -m, --memory SIZE        512M, 2G; a plain number is MiB (default 512M)\n"
"  -c, --cpus N             virtual CPUs (default 1)\n"
"      --console WHERE      stdio (default), none, or file:PATH\n"
"      --reboot             start again when the guest asks for a reset\n"
"      --check-host         say whether this host can run guests, and what to do\n"
"      --version\n"
"  -h, --help\n"
"\n"
"On a terminal Ctrl-a x ends the guest at once, Ctrl-a h shows help.\n"
"SIGUSR1: says what each CPU and each disk is doing.\n"
"\n"
"Exit status:\n"
"  0     the guest powered off (--check-host: guests can run)\n"
"  1     the guest was not started: KVM, kernel, disk, memory (--check-host: no)\n"
"  2     wrong options\n"
"  3     the guest asked for a reset (without --reboot)\n"
"  4     the guest crashed its CPU (triple fault)\n"
"  5     KVM or Platter could not go on\n"
"  6     a disk reported an error when it was flushed and closed\n"
"  7     ended with Ctrl-a x\n"
"  128+N ended by signal N (SIGTERM, SIGINT, SIGHUP), disks flushed and closed\n";

void run_options_help(void)
{
    fputs(help_text, stdout);
}

/* ---- values -------------------------------------------------------------------------- */

static int bad_usage(struct blk_error *e)
{
    blk_error_hint(e, "Try 'platter-run --help' for more information.");
    return -EINVAL;
}

/* Decimal digits only, within [min, max]. */
static int parse_count(const char *s, const char *what, unsigned min, unsigned max, unsigned *out,
                       struct blk_error *e)
{
    char *end;
    unsigned long v;

    errno = 0;
    v = isdigit((unsigned char)*s) ? strtoul(s, &end, 10) : 0;
    if (!isdigit((unsigned char)*s) || *end || errno || v < min || v > max)
        return blk_err(e, EINVAL, "%s must be a number from %u to %u, not '%s'", what, min, max,
                       s);
    *out = (unsigned)v;
    return 0;
}

static int parse_memory(struct run_options *o, const char *s, struct blk_error *e)
{
    size_t len = strlen(s);
    uint64_t v = 0;
    int ret = blk_parse_size(s, &v);

    if (ret == 0 && len > 0 && strspn(s, "0123456789") == len)
        ret = v > UINT64_MAX >> 20 ? -ERANGE : (v <<= 20, 0);
    if (ret < 0)
        return blk_err(e, EINVAL, "--memory: '%s' is not a size (512M, 2G)", s);
    if (v < MEMORY_MIN || v > MEMORY_MAX)
        return blk_err(e, EINVAL, "--memory must be from %" PRIu64 "M to %" PRIu64 "G, not '%s'",
                       (uint64_t)(MEMORY_MIN >> 20), (uint64_t)(MEMORY_MAX >> 30), s);
    if (v % 4096)
        return blk_err(e, EINVAL, "--memory must be a multiple of 4096 bytes, not '%s'", s);
    o->memory = v;
    return 0;
}

static int parse_console(struct run_options *o, const char *s, struct blk_error *e)
{
    if (strcmp(s, "stdio") == 0) {
        o->console = CONSOLE_STDIO;
    } else if (strcmp(s, "none") == 0) {
        o->console = CONSOLE_NONE;
    } else if (strncmp(s, "file:", 5) == 0 && s[5]) {
        o->console = CONSOLE_FILE;
        o->console_path = s + 5;
    } else {
        return blk_err(e, EINVAL, "--console must be stdio, none or file:PATH, not '%s'", s);
    }
    return 0;
}

/* ---- disks ---------------------------------------------------------------------------- */

static int set_cache(struct disk_options *d, const char *mode, struct blk_error *e)
{
    if (blk_parse_cache(mode, &d->flags))
        return blk_err(e, EINVAL, "cache must be writeback, none, writethrough, directsync or "
                       "unsafe, not '%s'", mode);
    d->writethrough = d->flags & BLK_O_WRITETHROUGH;
    return 0;
}

/* Move a string key out of the node's options. */
static char *take_string(struct disk_options *d, const char *key)
{
    const char *v = blk_opts_get(d->node, key);
    char *copy = v ? strdup(v) : NULL;

    blk_opts_del(d->node, key);
    return copy;
}

static int take_bool(struct disk_options *d, const char *key, bool *out, struct blk_error *e)
{
    int ret = blk_opts_get_bool(d->node, key, out, e);

    blk_opts_del(d->node, key);
    return ret;
}

static int take_count(struct disk_options *d, const char *key, unsigned min, unsigned max,
                      bool power_of_two, unsigned *out, struct blk_error *e)
{
    char *v = take_string(d, key);
    int ret = v ? parse_count(v, key, min, max, out, e) : 0;

    if (ret == 0 && v && power_of_two && (*out & (*out - 1)))
        ret = blk_err(e, EINVAL, "%s must be a power of two, not '%s'", key, v);
    free(v);
    return ret;
}

static int take_disk_keys(struct disk_options *d, struct blk_error *e)
{
    bool discard = true;
    char *cache;
    int ret;

    d->format = take_string(d, "format");
    d->serial = take_string(d, "serial");
    d->id = take_string(d, "id");
    d->backing_urls = take_string(d, "backing-urls");
    if (d->serial && strlen(d->serial) > 20)
        return blk_err(e, EINVAL, "serial '%s' is longer than 20 bytes", d->serial);
    ret = take_bool(d, "readonly", &d->read_only, e);
    if (ret == 0)
        ret = take_bool(d, "discard", &discard, e);
    if (ret == 0)
        ret = take_count(d, "queues", 1, QUEUES_MAX, false, &d->queues, e);
    if (ret == 0)
        ret = take_count(d, "queue-size", 2, 256, true, &d->queue_size, e);
    if (ret == 0)
        ret = take_count(d, "block-size", 512, 4096, true, &d->block_size, e);
    if (ret < 0)
        return ret;
    /* A guest that writes to a guessed raw disk would choose its format. */
    d->flags |= BLK_O_NO_SHARE | BLK_O_NO_PROBE | (d->read_only ? 0 : BLK_O_RDWR) |
                (discard ? BLK_O_UNMAP : 0);
    cache = take_string(d, "cache");
    ret = cache ? set_cache(d, cache, e) : 0;
    free(cache);
    return ret;
}

/* Length of the first word: up to a comma that is not doubled. */
static size_t first_word(const char *s)
{
    size_t n = 0;

    while (s[n] && (s[n] != ',' || s[n + 1] == ','))
        n += s[n] == ',' ? 2 : 1;
    return n;
}

/* "key=..." rather than a file name that has a = somewhere (URL queries do). */
static bool is_key_value(const char *s, size_t len)
{
    size_t n = strcspn(s, "=:/,");

    return n > 0 && n < len && s[n] == '=';
}

static char *unescape_commas(const char *s, size_t len)
{
    char *copy = malloc(len + 1);
    size_t n = 0;

    for (size_t i = 0; copy && i < len; i++) {
        copy[n++] = s[i];
        i += s[i] == ',';
    }
    if (copy)
        copy[n] = 0;
    return copy;
}

static int parse_disk_text(struct disk_options *d, const char *text, struct blk_error *e)
{
    size_t len = first_word(text);
    const char *key, *value;
    int ret;

    if (len > 0 && !is_key_value(text, len)) {
        d->file = unescape_commas(text, len);
        if (!d->file)
            return blk_err(e, ENOMEM, "out of memory");
        text += len + (text[len] == ',');
    }
    ret = *text ? blk_opts_parse(d->node, text, NULL, e) : 0;
    if (ret < 0)
        return ret;
    if (!d->file)
        d->file = take_string(d, "file");
    ret = take_disk_keys(d, e);
    if (ret == 0 && !d->file && !blk_opts_at(d->node, 0, &key, &value))
        ret = blk_err(e, EINVAL, "no file is named");
    return ret;
}

static int parse_disk(struct run_options *o, const char *text, struct blk_error *e)
{
    struct disk_options *d = &o->disk[o->disks];
    int ret;

    if (o->disks == RUN_DISKS_MAX)
        return blk_err(e, EINVAL, "more than %u disks", RUN_DISKS_MAX);
    o->disks++;
    d->node = blk_opts_new();
    ret = parse_disk_text(d, text, e);
    if (ret < 0) {
        char *shown = blk_redact(text);

        blk_error_prefix(e, "--disk %s: ", shown ? shown : "");
        free(shown);
    }
    return ret;
}

/* ---- the command line ------------------------------------------------------------------ */

enum { OPT_CONSOLE = 256, OPT_REBOOT, OPT_CHECK_HOST, OPT_VERSION };

static const char short_options[] = ":k:i:a:d:m:c:h";
static const struct option long_options[] = {
    { "kernel", required_argument, NULL, 'k' },
    { "initrd", required_argument, NULL, 'i' },
    { "append", required_argument, NULL, 'a' },
    { "disk", required_argument, NULL, 'd' },
    { "memory", required_argument, NULL, 'm' },
    { "cpus", required_argument, NULL, 'c' },
    { "console", required_argument, NULL, OPT_CONSOLE },
    { "reboot", no_argument, NULL, OPT_REBOOT },
    { "check-host", no_argument, NULL, OPT_CHECK_HOST },
    { "version", no_argument, NULL, OPT_VERSION },
    { "help", no_argument, NULL, 'h' },
    { NULL, 0, NULL, 0 },
};

static int unknown_option(char **argv, struct blk_error *e)
{
    if (optopt && optopt < 256)
        return blk_err(e, EINVAL, "unknown option '-%c'", optopt);
    return blk_err(e, EINVAL, "unknown option '%s'", argv[optind - 1]);
}

static int take_option(struct run_options *o, int opt, char **argv, struct blk_error *e)
{
    switch (opt) {
    case 'k': o->kernel = optarg; return 0;
    case 'i': o->initrd = optarg; return 0;
    case 'a': o->append = optarg; return 0;
    case 'd': return parse_disk(o, optarg, e);
    case 'm': return parse_memory(o, optarg, e);
    case 'c': return parse_count(optarg, "--cpus", 1, ACPI_CPUS_MAX, &o->cpus, e);
    case 'h': o->action = RUN_SHOW_HELP; return 0;
    case OPT_CONSOLE:    return parse_console(o, optarg, e);
    case OPT_REBOOT:     o->reboot = true; return 0;
    case OPT_CHECK_HOST: o->action = RUN_CHECK_HOST; return 0;
    case OPT_VERSION:    o->action = RUN_SHOW_VERSION; return 0;
    case ':': return blk_err(e, EINVAL, "option '%s' needs a value", argv[optind - 1]);
    default:  return unknown_option(argv, e);
    }
}

int run_options_parse(struct run_options *o, int argc, char **argv, struct blk_error *e)
{
    int opt, ret = 0;

    memset(o, 0, sizeof(*o));
    o->append = "";
    o->memory = MEMORY_DEFAULT;
    o->cpus = 1;
    optind = 0;                     /* glibc: start anew */
    opterr = 0;
    while (ret == 0 &&
           (opt = getopt_long(argc, argv, short_options, long_options, NULL)) != -1)
        ret = take_option(o, opt, argv, e);
    if (ret < 0)
        return bad_usage(e);
    if (o->action != RUN_GUEST)
        return 0;
    if (optind < argc)
        ret = blk_err(e, EINVAL, "unexpected argument '%s'", argv[optind]);
    else if (!o->kernel)
        ret = blk_err(e, EINVAL, "no kernel is given (--kernel FILE)");
    return ret < 0 ? bad_usage(e) : 0;
}

void run_options_free(struct run_options *o)
{
    for (unsigned i = 0; i < o->disks; i++) {
        struct disk_options *d = &o->disk[i];

        free(d->file);
        free(d->format);
        free(d->serial);
        free(d->id);
        free(d->backing_urls);
        blk_opts_free(d->node);
    }
    o->disks = 0;
}
