/*
 * refuse_copy.c - preloaded: copy_file_range() as COPY_PLAN says, for copy-offload.t.
 *   COPY_PLAN=MODE[:K]   from the K-th call on (1): errno as a number, "short": not more
 *                        than 1000 bytes a call, "none": no progress, "half": one short
 *                        copy, then EXDEV; without a plan as it is
 *   COPY_LOG=FILE        a line for each call: what it returned
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

typedef ssize_t (*copy_fn)(int, off64_t *, int, off64_t *, size_t, unsigned);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long calls;

static void note(ssize_t r)
{
    const char *name = getenv("COPY_LOG");
    char line[32];
    int fd = name ? open(name, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;

    if (fd >= 0) {
        int n = snprintf(line, sizeof(line), "%zd\n", r);
        (void)!write(fd, line, (size_t)n);
        close(fd);
    }
}

static ssize_t planned(const char *mode, long call, copy_fn real, int in, off64_t *src, int out,
                       off64_t *dst, size_t len, unsigned flags)
{
    size_t little = len > 1000 ? 1000 : len;

    if (!strcmp(mode, "short") || (!strcmp(mode, "half") && !(call % 2))) {
        return real(in, src, out, dst, little, flags);
    }
    if (!strcmp(mode, "none")) {
        return 0;
    }
    errno = !strcmp(mode, "half") ? EXDEV : atoi(mode);
    return -1;
}

ssize_t copy_file_range(int in, off64_t *src, int out, off64_t *dst, size_t len, unsigned flags)
{
    const char *plan = getenv("COPY_PLAN"), *colon = plan ? strchr(plan, ':') : NULL;
    copy_fn real = (copy_fn)dlsym(RTLD_NEXT, "copy_file_range");
    long first = colon ? atol(colon + 1) : 1, call;
    char mode[16] = "";
    ssize_t r;

    pthread_mutex_lock(&lock);
    call = ++calls - first;
    pthread_mutex_unlock(&lock);
    if (plan && call >= 0) {
        snprintf(mode, sizeof(mode), "%.*s", colon ? (int)(colon - plan) : 15, plan);
        r = planned(mode, call, real, in, src, out, dst, len, flags);
    } else {
        r = real(in, src, out, dst, len, flags);
    }
    int err = errno;
    note(r);
    errno = err;
    return r;
}
