/*
 * opts_value.c - option values as numbers, sizes, booleans and modes, in QEMU's
 * grammar and QEMU's words.
 */
#include "block/opts.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *skip_space(const char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    return s;
}

/* Unsigned decimal (or, from base 0, also 0x hexadecimal and octal) at *s,
 * which moves past it.  A sign is not a number here. */
static int parse_digits(const char **s, int base, uint64_t *out)
{
    if (!isdigit((unsigned char)**s))
        return -EINVAL;
    char *end;
    errno = 0;
    unsigned long long v = strtoull(*s, &end, base);
    *s = end;
    if (errno == ERANGE)
        return -ERANGE;
    *out = v;
    return 0;
}

/* Shift for a suffix letter, or -1 when it is none.  No letter: bytes. */
static int suffix_shift(char c)
{
    static const char letters[] = "BKMGTPE";
    if (!c)
        return 0;
    const char *at = strchr(letters, toupper((unsigned char)c));
    return at ? (int)(at - letters) * 10 : -1;
}

/* Digits after the point: 0 up to, by rounding, 1. */
static double parse_fraction(const char **s)
{
    double f = 0, unit = 0.1;
    for (; isdigit((unsigned char)**s); (*s)++, unit /= 10)
        f += unit * (**s - '0');
    return f;
}

/* "-" and digits only: a number, but one below all sizes. */
static bool is_negative_number(const char *s)
{
    return *s == '-' && s[1] && !s[1 + strspn(s + 1, "0123456789")];
}

int blk_parse_size(const char *s, uint64_t *out)
{
    uint64_t whole = 0;
    double fraction = 0;
    s = skip_space(s);
    if (is_negative_number(s))
        return -ERANGE;
    if (*s == '+')
        s++;
    bool hex = s[0] == '0' && (s[1] == 'x' || s[1] == 'X');
    if (hex && !isxdigit((unsigned char)s[2]))
        return -EINVAL;
    bool no_whole = *s == '.' && isdigit((unsigned char)s[1]);
    int range = no_whole ? 0 : parse_digits(&s, hex ? 16 : 10, &whole);
    if (range == -EINVAL)
        return range;
    if (*s == '.' && !hex) {
        s++;
        fraction = parse_fraction(&s);
    }
    int shift = suffix_shift(*s);
    if (shift < 0 || (*s && (s[1] || hex)))     /* hexadecimal takes no suffix */
        return -EINVAL;
    if (fraction > 0 && !shift)
        return -EINVAL;                 /* parts of a byte */
    if (range || (shift && whole >> (64 - shift)))
        return -ERANGE;
    whole <<= shift;
    uint64_t part = (uint64_t)(fraction * (double)(1ull << shift) + 0.5);
    if (__builtin_add_overflow(whole, part, out))
        return -ERANGE;
    return 0;
}

int blk_opts_get_size(struct blk_opts *o, const char *key, uint64_t *out, struct blk_error *e)
{
    const char *value = blk_opts_get(o, key);
    if (!value)
        return 0;
    int r = blk_parse_size(value, out);
    if (r == -ERANGE)
        return blk_err(e, EINVAL, "Value '%s' is out of range for parameter '%s'", value, key);
    if (r) {
        r = blk_err(e, EINVAL, "Parameter '%s' expects a non-negative number below 2^64", key);
        blk_error_hint(e, "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, "
                          "peta-\nand exabytes, respectively.");
    }
    return r;
}

int blk_opts_get_u64(struct blk_opts *o, const char *key, uint64_t *out, struct blk_error *e)
{
    const char *value = blk_opts_get(o, key);
    if (!value)
        return 0;
    const char *p = skip_space(value);
    bool negative = *p == '-';          /* strtoull's: -1 is 2^64-1 */
    uint64_t v = 0;
    p += negative || *p == '+';
    int r = parse_digits(&p, 0, &v);
    if (r == -ERANGE)
        return blk_err(e, EINVAL, "Value '%s' is too large for parameter '%s'", value, key);
    if (r || *p)
        return blk_err(e, EINVAL, "Parameter '%s' expects a number", key);
    *out = negative ? -v : v;
    return 0;
}

int blk_opts_get_bool(struct blk_opts *o, const char *key, bool *out, struct blk_error *e)
{
    static const char *const words[] = { "on", "yes", "true", "y", "off", "no", "false", "n" };
    const char *value = blk_opts_get(o, key);
    if (!value)
        return 0;
    for (size_t i = 0; i < BLK_ARRAY_SIZE(words); i++) {
        if (!strcmp(value, words[i])) {
            *out = i < 4;
            return 0;
        }
    }
    return blk_err(e, EINVAL, "Parameter '%s' expects 'on' or 'off'", key);
}

int blk_parse_prealloc(const char *s, enum blk_prealloc *out, struct blk_error *e)
{
    static const char *const words[] = {
        [BLK_PREALLOC_OFF] = "off", [BLK_PREALLOC_METADATA] = "metadata",
        [BLK_PREALLOC_FALLOC] = "falloc", [BLK_PREALLOC_FULL] = "full",
    };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(words); i++) {
        if (!strcmp(s, words[i])) {
            *out = (enum blk_prealloc)i;
            return 0;
        }
    }
    return blk_err(e, EINVAL, "Parameter 'preallocation' does not accept value '%s'", s);
}

int blk_parse_cache(const char *mode, unsigned *flags)
{
    static const struct { const char *name; unsigned flags; } modes[] = {
        { "none", BLK_O_DIRECT },
        { "off", BLK_O_DIRECT },
        { "directsync", BLK_O_DIRECT | BLK_O_WRITETHROUGH },
        { "writeback", 0 },
        { "writethrough", BLK_O_WRITETHROUGH },
        { "unsafe", BLK_O_NO_FLUSH },
    };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(modes); i++) {
        if (!strcmp(mode, modes[i].name)) {
            *flags &= ~(unsigned)(BLK_O_DIRECT | BLK_O_WRITETHROUGH | BLK_O_NO_FLUSH);
            *flags |= modes[i].flags;
            return 0;
        }
    }
    return -EINVAL;
}
