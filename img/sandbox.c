/*
 * sandbox.c - which walls suit which image.
 *
 * Before they are raised nothing is looked at but the first bytes of the file, for
 * whether its format is one that has its data in several files.
 */
#include <fcntl.h>
#include <string.h>
#include <sched.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "img/sandbox.h"
#include "img/walls.h"

#define MEMORY_BASE     (1ull << 30)
#define MEMORY_PER_CPU  (24ull << 20)   /* a thread's stack and buffers */
#define MEMORY_SHARE    128             /* of the file: check's counters */
#define CPU_SHARE       (16ull << 20)   /* bytes of the file that a second is added for */

/* A protocol's module is loaded when it is used: not behind walls. */
static bool is_local_format(const char *format)
{
    bool protocol;
    const char *name;

    for (size_t i = 0; format && (name = blk_driver_at(i, &protocol, NULL)); i++) {
        if (!strcmp(name, format)) {
            return !protocol || !strcmp(name, "file") || !strcmp(name, "host_device");
        }
    }
    return true;
}

static bool is_local(const struct img_image *im)
{
    return !im->image_opts && !img_backing_urls && is_local_format(im->format) &&
           (!blk_has_protocol(im->filename) || !strncmp(im->filename, "file:", 5));
}

/* Is there a reason to open files beside this one: extents, a data file?  To be wrong
 * is to be refused them. */
static bool has_more_files(const char *path, const char *format)
{
    unsigned char b[80] = { 0 };
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : pread(fd, b, sizeof(b), 0);

    if (fd >= 0) {
        close(fd);
    }
    if (format && !strcmp(format, "vmdk")) {
        return true;
    }
    if (n == sizeof(b) && !memcmp(b, "QFI\xfb\0\0\0\3", 8)) {
        return b[79] & 4;       /* the incompatible feature "external data file" */
    }
    return n > 4 && (!memcmp(b, "KDMV", 4) || strchr("# v", b[0]));
}

static void raise_walls(const struct sandbox *s, const struct img_image *im)
{
    struct walls w = {
        .file = im->filename + (strncmp(im->filename, "file:", 5) ? 0 : 5),
        .writable = s->writable, .cpu_seconds = s->cpu_seconds,
    };
    struct stat st = { 0 };
    uint64_t bytes = stat(w.file, &st) ? 0 : (uint64_t)st.st_blocks * 512;
    cpu_set_t cpus;
    int ncpus = sched_getaffinity(0, sizeof(cpus), &cpus) ? 1 : CPU_COUNT(&cpus);
    bool more = !s->alone && has_more_files(w.file, im->format);

    w.others = s->chain || more;
    w.beside = s->writable && more;
    w.memory_bytes = MEMORY_BASE + bytes / MEMORY_SHARE + MEMORY_PER_CPU * (unsigned)ncpus;
    w.cpu_seconds += bytes / CPU_SHARE;
    /* What reads files when it is first used. */
    tzset();
    json_object_seed(0);
    walls_raise(&w);
}

int sandbox_run(const struct sandbox *s, const struct img_image *im, int (*fn)(void *arg),
                void *arg)
{
    if (!s->off && is_local(im)) {
        raise_walls(s, im);
    }
    return img_run(fn, arg);
}

void sandbox_shut(void)
{
    walls_shut();
}
