/*
 * convert_resume.c - the journal of convert --resume: see convert_resume.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "img/convert_resume.h"
#include "img/img.h"

#define JOURNAL_KIND    "platter convert journal"
#define JOURNAL_MAX     (1u << 20)          /* bytes read of what may be anything */

struct journal {
    char *path, *new_path;
    json_t *identity;
    json_t *target;                         /* as described when it was started */
    uint64_t at;
    bool resumes;
};

/* ---- what files are ------------------------------------------------------------------- */

static json_t *describe_file(struct blk_node *n)
{
    const char *name = blk_filename(n);
    uint64_t length = 0;
    struct stat st;

    if (!strcmp(blk_format_name(n), "file") && !stat(name, &st)) {
        return json_pack("{s:o, s:I, s:I, s:I, s:I}", "name", img_json_string(name),
                         "inode", (json_int_t)st.st_ino, "size", (json_int_t)st.st_size,
                         "mtime", (json_int_t)st.st_mtim.tv_sec,
                         "mtime-ns", (json_int_t)st.st_mtim.tv_nsec);
    }
    blk_storage_length(n, &length);
    return json_pack("{s:o, s:I}", "name", img_json_string(name), "size", (json_int_t)length);
}

json_t *journal_describe(struct blk_node *n)
{
    json_t *layers = json_array();

    for (; n; n = blk_backing(n)) {
        struct blk_node *files[] = { blk_file(n), blk_data_file(n) };
        json_t *layer = json_pack("{s:s, s:I}", "format", blk_format_name(n), "virtual-size",
                                  (json_int_t)blk_size(n));

        for (unsigned i = 0; i < BLK_ARRAY_SIZE(files); i++) {
            if (files[i]) {
                json_object_set_new(layer, i ? "data-file" : "file", describe_file(files[i]));
            }
        }
        json_array_append_new(layers, layer);
    }
    return layers;
}

/* A target changes while it is written: which file it is has to stay the same. */
static json_t *describe_target(struct blk_node *n)
{
    struct blk_node *file = blk_file(n) ? blk_file(n) : n;
    json_t *v = describe_file(file);

    json_object_del(v, "size");
    json_object_del(v, "mtime");
    json_object_del(v, "mtime-ns");
    json_object_set_new(v, "virtual-size", json_integer((json_int_t)blk_size(n)));
    return v;
}

/* ---- the file --------------------------------------------------------------------------- */

/* The first thing in which two identities differ, for the message. */
static const char *first_difference(const json_t *a, const json_t *b)
{
    const char *key;
    json_t *value, *object = (json_t *)a;

    json_object_foreach(object, key, value) {
        if (!json_equal(value, json_object_get(b, key))) {
            return key;
        }
    }
    return "options";
}

static int take_state(struct journal *j, const json_t *v, struct blk_error *e)
{
    const char *kind = json_string_value(json_object_get(v, "kind"));
    const json_t *identity = json_object_get(v, "identity"), *at = json_object_get(v, "copied");

    if (!kind || strcmp(kind, JOURNAL_KIND) || !json_is_integer(at) ||
        json_integer_value(at) < 0) {
        return blk_err(e, EINVAL, "'%s' is not the journal of a convert", j->path);
    }
    if (!json_equal(identity, j->identity)) {
        blk_err(e, ESTALE, "'%s' belongs to another convert: %s changed since it was started",
                j->path, first_difference(j->identity, identity));
        blk_error_hint(e, "Remove it to start from the beginning.");
        return -ESTALE;
    }
    j->target = json_incref(json_object_get(v, "target"));
    j->at = (uint64_t)json_integer_value(at);
    j->resumes = true;
    return 0;
}

static int read_state(struct journal *j, struct blk_error *e)
{
    json_error_t je;
    struct stat st;
    int err;

    if (stat(j->path, &st)) {
        return errno == ENOENT ? 0
                               : blk_err_errno(e, errno, "Could not read journal '%s'", j->path);
    }
    if (!S_ISREG(st.st_mode) || st.st_size > JOURNAL_MAX) {
        return blk_err(e, EINVAL, "'%s' is not the journal of a convert", j->path);
    }
    json_t *v = json_load_file(j->path, 0, &je);
    if (!v) {
        return blk_err(e, EINVAL, "Could not read journal '%s': %s", j->path, je.text);
    }
    err = take_state(j, v, e);
    json_decref(v);
    return err;
}

/* Names end up in the directory entry, so that is synced as well. */
static int sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, (size_t)BLK_MAX(slash - path, 1)) : strdup(".");
    int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    int err = fd < 0 || fsync(fd) ? -errno : 0;

    if (fd >= 0) {
        close(fd);
    }
    free(dir);
    return err;
}

static int write_file(const char *path, const char *text)
{
    size_t len = strlen(text), done = 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), err = 0;

    if (fd < 0) {
        return -errno;
    }
    while (!err && done < len) {
        ssize_t n = write(fd, text + done, len - done);

        err = n < 0 && errno != EINTR ? -errno : 0;
        done += n > 0 ? (size_t)n : 0;
    }
    if (!err && fsync(fd)) {
        err = -errno;
    }
    if (close(fd) && !err) {
        err = -errno;
    }
    return err;
}

struct saving {
    struct journal *j;
    char *text;
    int err;
};

static void save_on_worker(void *arg)
{
    struct saving *s = arg;

    s->err = write_file(s->j->new_path, s->text);
    if (!s->err && rename(s->j->new_path, s->j->path)) {
        s->err = -errno;
    }
    s->err = s->err ? s->err : sync_directory(s->j->path);
}

int journal_save(struct journal *j, uint64_t at)
{
    json_t *v = json_pack("{s:s, s:O, s:O, s:I}", "kind", JOURNAL_KIND, "identity", j->identity,
                          "target", j->target, "copied", (json_int_t)at);
    struct saving s = { .j = j, .text = v ? json_dumps(v, JSON_INDENT(1)) : NULL };

    json_decref(v);
    if (!s.text) {
        return -ENOMEM;
    }
    co_work(save_on_worker, &s);
    free(s.text);
    return s.err;
}

int journal_start(struct journal *j, struct blk_node *target, struct blk_error *e)
{
    json_t *now = describe_target(target);
    int err = 0;

    if (j->resumes && !json_equal(now, j->target)) {
        err = blk_err(e, ESTALE, "'%s' belongs to another convert: the target was replaced since "
                      "it was started", j->path);
        blk_error_hint(e, "Remove it to start from the beginning.");
    } else if (!j->resumes) {
        j->target = json_incref(now);
        err = journal_save(j, 0);
        if (err) {
            blk_err_errno(e, -err, "Could not write journal '%s'", j->path);
        }
    }
    json_decref(now);
    return err;
}

/* ---- its life -------------------------------------------------------------------------------- */

struct journal *journal_open(const char *path, const char *target, json_t *identity,
                             struct blk_error *e)
{
    struct journal *j = calloc(1, sizeof(*j));

    if (!path && (blk_has_protocol(target) || !j)) {
        blk_err(e, EINVAL, "--resume needs --journal FILE where the target is not a local file");
        json_decref(identity);
        free(j);
        return NULL;
    }
    j->identity = identity;
    if (asprintf(&j->path, "%s%s", path ? path : target, path ? "" : ".journal") < 0) {
        j->path = NULL;
    }
    if (!j->path || !identity || asprintf(&j->new_path, "%s.new", j->path) < 0) {
        j->new_path = NULL;
        blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    if (!j->new_path || read_state(j, e)) {
        journal_free(j);
        return NULL;
    }
    return j;
}

bool journal_resumes(const struct journal *j)
{
    return j->resumes;
}

uint64_t journal_at(const struct journal *j)
{
    return j->at;
}

int journal_remove(struct journal *j, struct blk_error *e)
{
    if (unlink(j->path) && errno != ENOENT) {
        return blk_err_errno(e, errno, "Could not remove journal '%s'", j->path);
    }
    unlink(j->new_path);
    return 0;
}

void journal_free(struct journal *j)
{
    if (j) {
        json_decref(j->identity);
        json_decref(j->target);
        free(j->path);
        free(j->new_path);
        free(j);
    }
}
