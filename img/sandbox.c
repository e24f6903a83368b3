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

/* ---- is it local? ----------------------------------------------------------------- */

static bool is_path_driver(const char *driver)
{
    return !strcmp(driver, "file") || !strcmp(driver, "host_device");
}

/* A protocol's module is loaded when it is used: not behind walls.  The filter logwrites
 * makes files. */
static bool is_local_driver(const char *driver)
{
    bool protocol;
    const char *name;

    for (size_t i = 0; driver && (name = blk_driver_at(i, &protocol, NULL)); i++) {
        if (!strcmp(name, driver)) {
            return protocol ? is_path_driver(name) : strcmp(name, "logwrites");
        }
    }
    return true;
}

static bool is_key(const char *key, const char *word)
{
    const char *dot = strrchr(key, '.');
    return !strcmp(dot ? dot + 1 : key, word);
}

/* What an image is, as far as walls are concerned. */
struct place {
    const char *file;           /* the first path, NULL: none */
    unsigned files;
    bool local;
    bool writable;              /* "read-only=off" */
};

static void look_at_options(struct blk_opts *o, struct place *p)
{
    const char *key, *value;

    for (size_t i = 0; blk_opts_at(o, i, &key, &value); i++) {
        if (is_key(key, "driver")) {
            p->local = p->local && is_local_driver(value);
        } else if (is_key(key, "filename")) {
            p->file = p->file ? p->file : value;        /* a path, whatever it begins with */
            p->files++;
        } else if (is_key(key, "config")) {
            p->files++;                                 /* a blkdebug's rules */
        } else if (is_key(key, "read-only")) {
            bool ro = true;             /* what is no boolean is refused later */
            blk_opts_get_bool(o, key, &ro, NULL);
            p->writable |= !ro;
        } else if (is_key(key, "backing") || is_key(key, "file")) {
            p->local = false;           /* not what these usually say */
        }
    }
}

/* Strings in it live as long as the process. */
static struct place place_of(const struct img_image *im)
{
    static struct blk_opts *o;          /* keeps them */
    bool json = !im->image_opts && !strncmp(im->filename, "json:", 5);
    struct place p = { .local = !img_backing_urls && is_local_driver(im->format) };

    if (!im->image_opts && !json) {
        const char *protocol = blk_protocol_for_name(im->filename, NULL);
        bool path = protocol && is_path_driver(protocol);
        p.local = p.local && path;
        p.file = im->filename + (path && blk_has_protocol(im->filename) ? strlen(protocol) + 1 : 0);
        p.files = 1;
        return p;
    }
    o = blk_opts_new();
    if (json ? blk_opts_parse_json(o, im->filename + 5, NULL)
             : blk_opts_parse(o, im->filename, "file", NULL)) {
        p.local = false;                /* whoever opens it says what is wrong */
    } else {
        look_at_options(o, &p);
    }
    return p;
}

/* ---- walls that suit it --------------------------------------------------------------- */

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
    return n > 4 && (!memcmp(b, "KDMV", 4) || memchr("# v", b[0], 3));
}

static void raise_walls(const struct sandbox *s, const struct img_image *im,
                        const struct place *p)
{
    struct walls w = {
        .file = p->file, .writable = s->writable || p->writable, .cpu_seconds = s->cpu_seconds,
    };
    struct stat st = { 0 };
    uint64_t bytes = stat(w.file, &st) ? 0 : (uint64_t)st.st_blocks * 512;
    cpu_set_t cpus;
    int ncpus = sched_getaffinity(0, sizeof(cpus), &cpus) ? 1 : CPU_COUNT(&cpus);
    bool more = !s->alone && has_more_files(w.file, im->format);

    w.others = s->chain || more || p->files > 1;
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
    struct place p = s->off ? (struct place){ .local = false } : place_of(im);

    if (p.local && p.file && (p.files == 1 || !s->writable)) {
        raise_walls(s, im, &p);
    }
    return img_run(fn, arg);
}

void sandbox_shut(void)
{
    walls_shut();
}
