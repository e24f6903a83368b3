/*
 * io_args.c - platter-io: the words of a command into a struct io_args, and how the
 * outcome is printed.
 */
#include "tools/io.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IO_LEN_MAX ((uint64_t)INT32_MAX & ~(uint64_t)511)

/* ---- output ---------------------------------------------------------------- */

void io_size_text(double value, char *out, size_t size)
{
    static const char *const unit[] = { " bytes", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB" };
    size_t u = 0;
    char num[64];

    while (u + 1 < BLK_ARRAY_SIZE(unit) && value >= 1024.0) {
        value /= 1024.0;
        u++;
    }
    snprintf(num, sizeof(num), "%.3f", value);
    char *trim = strstr(num, ".000");
    if (trim)
        *trim = '\0';
    snprintf(out, size, "%s%s", num, unit[u]);
}

void io_report(const char *verb, const struct io_args *a, uint64_t ns)
{
    char total[64], rate[64];
    double s = (double)(ns ? ns : 1) / 1e9;

    if (a->quiet)
        return;
    if (a->machine) {
        uint64_t hundredths = ns / 10000000, seconds = hundredths / 100;
        printf("%" PRIu64 ",1,%" PRIu64 ":%02u:%02u.%02u,%.3f,%.3f\n", a->length, seconds / 3600,
               (unsigned)(seconds / 60 % 60), (unsigned)(seconds % 60), (unsigned)(hundredths % 100),
               (double)a->length / s, 1.0 / s);
        return;
    }
    io_size_text((double)a->length, total, sizeof(total));
    io_size_text((double)a->length / s, rate, sizeof(rate));
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n",
           verb, a->length, a->length, a->offset);
    printf("%s, 1 ops; %05.2f sec (%s/sec and %.4f ops/sec)\n", total, s, rate, 1.0 / s);
}

void io_dump(const uint8_t *buf, uint64_t offset, uint64_t len)
{
    for (uint64_t i = 0; i < len; i += 16) {
        printf("%08" PRIx64 ":  ", offset + i);
        for (uint64_t j = i; j < i + 16 && j < len; j++)
            printf("%02x ", buf[j]);
        putchar(' ');
        for (uint64_t j = i; j < i + 16 && j < len; j++)
            putchar(isalnum(buf[j]) ? buf[j] : '.');
        putchar('\n');
    }
}

bool io_verify(const struct io_args *a)
{
    uint64_t len = a->check_len;

    for (uint64_t i = 0; i < len; i++) {
        if (a->buf[a->check_off + i] != a->pattern) {
            printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes\n",
                   a->offset + a->check_off, len);
            return false;
        }
    }
    return true;
}

/* ---- arguments -------------------------------------------------------------- */

bool io_number(const char *s, uint64_t *out)
{
    char *end;
    int ret = blk_parse_size(s, out);

    if (ret < 0 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X')) {
        errno = 0;
        *out = strtoull(s, &end, 16);
        ret = errno || *end || end == s + 2 ? -EINVAL : 0;
    }
    if (ret == 0 && *out > INT64_MAX)
        ret = -ERANGE;
    if (ret < 0)
        printf("Parsing error: %s -- %s\n",
               ret == -ERANGE ? "argument too large"
                              : "non-numeric argument, or extraneous/unrecognized suffix", s);
    return ret == 0;
}

static bool io_pattern(struct io_args *a, const char *s)
{
    char *end;
    unsigned long v = strtoul(s, &end, 0);

    if (*end || v > 0xff) {
        printf("%s is not a valid pattern byte\n", s);
        return false;
    }
    a->has_pattern = true;
    a->pattern = (uint8_t)v;
    return true;
}

int io_letters(struct io_args *a, int argc, char **argv, const char *allowed, bool is_read)
{
    int c;

    optind = 0;
    opterr = 1;
    while ((c = getopt(argc, argv, allowed)) != -1) {
        switch (c) {
        case 'q': a->quiet = true; break;
        case 'v': a->verbose = true; break;
        case 'z': a->zero = true; break;
        case 'u': a->unmap = true; break;
        case 'n': a->no_fallback = true; break;
        case 'c': a->compressed = true; break;
        case 'f': a->fua = true; break;
        case 'b': a->vm_state = true; break;
        case 'C': a->machine = true; break;
        case 'i': a->invalid = true; return optind;
        case 'p': break;                    /* as in qemu-io: no effect */
        case 'r': a->registered = true; break;
        case 'P':
            if (!io_pattern(a, optarg))
                return -1;
            break;
        case 'l':
            a->has_check_len = true;
            if (!io_number(optarg, &a->check_len))
                return -1;
            break;
        case 's':
            if (!is_read)
                a->source = optarg;
            else if (!io_number(optarg, &a->check_off))
                return -1;
            a->has_check_off = is_read;
            break;
        default:
            return IO_BAD_USAGE;
        }
    }
    return optind;
}

bool io_extent(struct io_args *a, char **argv, int at, bool limit, const char *hint)
{
    if (!io_number(argv[at], &a->offset) || !io_number(argv[at + 1], &a->length))
        return false;
    if (limit && a->length > IO_LEN_MAX) {
        printf("length cannot exceed %" PRIu64 "%s, given %s\n", IO_LEN_MAX, hint, argv[at + 1]);
        return false;
    }
    return true;
}

/* a's iov gets its places in a fresh buffer. */
static bool place_vector(struct io_args *a)
{
    a->buf = blk_buf_alloc(a->length ? (size_t)a->length : 1);
    if (!a->buf) {
        printf("%s\n", strerror(ENOMEM));
        return false;
    }
    uint8_t *p = a->buf;
    for (int i = 0; i < a->iovcnt; i++) {
        a->iov[i].iov_base = p;
        p += a->iov[i].iov_len;
    }
    return true;
}

bool io_extent_buffer(struct io_args *a)
{
    a->iov = calloc(1, sizeof(*a->iov));
    if (!a->iov)
        return false;
    a->iov[0].iov_len = (size_t)a->length;
    a->iovcnt = 1;
    return place_vector(a);
}

bool io_vector(struct io_args *a, int argc, char **argv, int at)
{
    int cnt = argc - at - 1;

    if (!io_number(argv[at], &a->offset))
        return false;
    a->iov = calloc((size_t)cnt, sizeof(*a->iov));
    if (!a->iov)
        return false;
    for (int i = 0; i < cnt; i++) {
        uint64_t len;

        if (!io_number(argv[at + 1 + i], &len))
            return false;
        if (len > IO_LEN_MAX) {
            printf("Argument '%s' exceeds maximum size %" PRIu64 "\n", argv[at + 1 + i],
                   IO_LEN_MAX);
            return false;
        }
        if (a->length > IO_LEN_MAX - len) {
            printf("The total number of bytes exceed the maximum size %" PRIu64 "\n",
                   IO_LEN_MAX);
            return false;
        }
        a->iov[i].iov_len = (size_t)len;
        a->length += len;
    }
    a->iovcnt = cnt;
    return place_vector(a);
}

bool io_whole_sectors(const struct io_args *a)
{
    if (a->offset % 512)
        printf("%" PRIu64 " is not a sector-aligned value for 'offset'\n", a->offset);
    else if (a->length % 512)
        printf("%" PRIu64 " is not a sector-aligned value for 'count'\n", a->length);
    return !((a->offset | a->length) % 512);
}

void io_args_release(struct io_args *a)
{
    blk_buf_free(a->buf);
    free(a->iov);
}

bool io_check_range(struct io_args *a)
{
    if (a->check_off > a->length || a->check_len > a->length - a->check_off) {
        printf("pattern verification range exceeds end of read data\n");
        return false;
    }
    if (!a->has_check_len)
        a->check_len = a->length - a->check_off;
    return true;
}

bool io_fill_from_file(struct io_args *a)
{
    FILE *f = fopen(a->source, "rb");
    size_t got = f ? fread(a->buf, 1, (size_t)a->length, f) : 0;
    bool bad = !f || ferror(f);

    if (bad)
        fprintf(stderr, "%s: %s\n", a->source, strerror(errno));
    else if (!got)
        fprintf(stderr, "%s: file is empty\n", a->source);
    if (f)
        fclose(f);
    for (size_t i = got; got && i < a->length; i++)
        a->buf[i] = a->buf[i - got];
    return !bad && got;
}
