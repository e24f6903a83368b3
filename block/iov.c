/*
 * iov.c - buffers, iovec arithmetic and zero detection.
 *
 * The iovec functions take a range [off, off+len) that lies inside the vector:
 * the core has checked it; they assert.
 */
#include "block/block.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BUF_ALIGN 4096u

void *blk_buf_alloc(size_t len)
{
    void *p;
    if (len > SIZE_MAX - BUF_ALIGN || posix_memalign(&p, BUF_ALIGN, len ? len : 1))
        return NULL;
    return p;
}

void blk_buf_free(void *buf)
{
    free(buf);
}

/* ---- zero detection ----------------------------------------------------------- */

static inline uint64_t load64(const unsigned char *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

static bool is_zero_short(const unsigned char *p, size_t len)
{
    uint64_t any = 0;
    for (; len >= 8; p += 8, len -= 8)
        any |= load64(p);
    while (len--)
        any |= *p++;
    return !any;
}

static bool is_zero_words(const unsigned char *p, size_t len)
{
    for (; len >= 64; p += 64, len -= 64) {
        uint64_t a = load64(p) | load64(p + 8) | load64(p + 16) | load64(p + 24);
        uint64_t b = load64(p + 32) | load64(p + 40) | load64(p + 48) | load64(p + 56);
        if (a | b)
            return false;
    }
    return is_zero_short(p, len);
}

#if defined(__x86_64__)
/* Whole cache lines from an aligned start; the unaligned ends overlap. */
__attribute__((target("avx2")))
static bool is_zero_avx2(const unsigned char *p, size_t len)
{
    const unsigned char *end = p + len;
    __m256i first = _mm256_loadu_si256((const void *)p);
    if (!_mm256_testz_si256(first, first))
        return false;
    p = (const unsigned char *)(((uintptr_t)p + 32) & ~(uintptr_t)31);
    for (; (size_t)(end - p) >= 256; p += 256) {
        const __m256i *v = (const void *)p;
        __m256i a = _mm256_or_si256(_mm256_load_si256(v), _mm256_load_si256(v + 1));
        __m256i b = _mm256_or_si256(_mm256_load_si256(v + 2), _mm256_load_si256(v + 3));
        __m256i c = _mm256_or_si256(_mm256_load_si256(v + 4), _mm256_load_si256(v + 5));
        __m256i d = _mm256_or_si256(_mm256_load_si256(v + 6), _mm256_load_si256(v + 7));
        a = _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d));
        if (!_mm256_testz_si256(a, a))
            return false;
    }
    return is_zero_words(p, (size_t)(end - p));
}
#endif

bool blk_is_zero(const void *buf, size_t len)
{
    const unsigned char *p = buf;
    if (len < 64)
        return is_zero_short(p, len);
    /* Data seldom hides behind a zero start, middle and end. */
    if (load64(p) | load64(p + len / 2) | load64(p + len - 8))
        return false;
#if defined(__x86_64__)
    if (len >= 256 && __builtin_cpu_supports("avx2"))
        return is_zero_avx2(p, len);
#endif
    return is_zero_words(p, len);
}

/* ---- iovecs ---------------------------------------------------------------------- */

uint64_t blk_iov_size(const struct iovec *iov, int cnt)
{
    uint64_t sum = 0;
    for (int i = 0; i < cnt; i++)
        sum += iov[i].iov_len;
    return sum;
}

int blk_iov_slice(const struct iovec *iov, int cnt, uint64_t off, uint64_t len,
                  struct iovec *dst, int max)
{
    int n = 0;
    for (int i = 0; i < cnt && len; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        if (n == max)
            return -E2BIG;
        size_t part = (size_t)BLK_MIN(iov[i].iov_len - off, len);
        dst[n].iov_base = (char *)iov[i].iov_base + off;
        dst[n++].iov_len = part;
        len -= part;
        off = 0;
    }
    assert(!len);
    return n;
}

/* A walk over the contiguous pieces of [off, off+len). */
struct pieces {
    const struct iovec *iov;
    int left;
    uint64_t off, len;
};

/* The next piece and its length, or NULL at the end. */
static char *piece_next(struct pieces *w, size_t *part)
{
    if (!w->len)
        return NULL;
    while (w->left && w->off >= w->iov->iov_len) {
        w->off -= w->iov->iov_len;
        w->iov++;
        w->left--;
    }
    assert(w->left);
    char *p = (char *)w->iov->iov_base + w->off;
    *part = (size_t)BLK_MIN(w->iov->iov_len - w->off, w->len);
    w->off += *part;
    w->len -= *part;
    return p;
}

void blk_iov_zero(const struct iovec *iov, int cnt, uint64_t off, uint64_t len)
{
    struct pieces w = { iov, cnt, off, len };
    size_t part;
    for (char *p; (p = piece_next(&w, &part)); )
        memset(p, 0, part);
}

void blk_iov_from_buf(const struct iovec *iov, int cnt, uint64_t off, const void *buf, uint64_t len)
{
    struct pieces w = { iov, cnt, off, len };
    const char *src = buf;
    size_t part;
    for (char *p; (p = piece_next(&w, &part)); src += part)
        memcpy(p, src, part);
}

void blk_iov_to_buf(const struct iovec *iov, int cnt, uint64_t off, void *buf, uint64_t len)
{
    struct pieces w = { iov, cnt, off, len };
    char *dst = buf;
    size_t part;
    for (char *p; (p = piece_next(&w, &part)); dst += part)
        memcpy(dst, p, part);
}
