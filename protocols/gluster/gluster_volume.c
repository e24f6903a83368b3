/*
 * gluster_volume.c - connections to volumes, and the jobs that use them.
 *
 * A process has one connection (glfs_t) a volume, whatever the number of images and
 * loops that use it: a long chain opens quickly.  It stays until the process ends,
 * for taking it down (glfs_fini) takes ten seconds and nothing depends on it: an
 * image's data is safe once glfs_fsync() and glfs_close() have succeeded, and those
 * are waited for.
 *
 * Jobs run on a thread of their own, since libgfapi cannot be told to give up: when a
 * job's deadline passes, its fiber goes on without it and the thread cleans up.
 */
#include "protocols/gluster/gluster_int.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GLUSTER_POOL_THREADS 8u

struct gluster_volume {
    struct gluster_name name;   /* path does not count */
    glfs_t *fs;                 /* NULL while connecting */
    int err;                    /* connecting has failed */
    unsigned refs;              /* of a failed one: who still has to read err */
    struct gluster_volume *next;
};

static pthread_mutex_t volumes_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t volumes_changed = PTHREAD_COND_INITIALIZER;
static struct gluster_volume *volumes;

/* Signals are for the threads that expect them. 0 or -errno. */
static int thread_start(pthread_t *t, void *(*fn)(void *arg), void *arg)
{
    sigset_t all, old;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(t, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -r;
}

/* ---- volumes ------------------------------------------------------------------------- */

static bool volume_is(const struct gluster_volume *v, const struct gluster_name *name)
{
    if (strcmp(v->name.volume, name->volume) || v->name.nservers != name->nservers)
        return false;
    for (unsigned i = 0; i < name->nservers; i++) {
        const struct gluster_server *a = &v->name.server[i], *b = &name->server[i];
        if (strcmp(a->transport, b->transport) || strcmp(a->host, b->host) || a->port != b->port)
            return false;
    }
    return true;
}

/* What lies between the image and its bricks for the sake of many small files only
 * costs here, or worse: it acknowledges writes that have not been made, keeps old data
 * and attributes, and opens files later than it says.  Unknown ones are ignored. */
static const char *const volume_bypassed[] = {
    "*-write-behind", "*-open-behind", "*-quick-read", "*-io-cache", "*-read-ahead",
    "*-md-cache", "*-readdir-ahead",
};

static void *volume_take_down(void *arg)
{
    /* A command ends now, and had better not while this goes on; a process that stays
     * needs its memory and threads back. */
    sleep(2);
    glfs_fini(arg);
    return NULL;
}

/* Ask the servers in turn, the first-th first; 0 or -errno. */
static int volume_try(const struct gluster_name *name, unsigned first, glfs_t **out)
{
    glfs_t *fs = glfs_new(name->volume);
    int r = 0;

    if (!fs)
        return gluster_errno(ENOMEM);
    for (unsigned i = 0; !r && i < name->nservers; i++) {
        const struct gluster_server *s = &name->server[(first + i) % name->nservers];
        r = glfs_set_volfile_server(fs, s->transport, s->host, (int)s->port);
    }
    r = r ? r : glfs_set_logging(fs, name->logfile, (int)name->debug);
    for (size_t i = 0; !r && i < BLK_ARRAY_SIZE(volume_bypassed); i++)
        r = glfs_set_xlator_option(fs, volume_bypassed[i], "pass-through", "on");
    /* close_noted() counts on it. */
    r = r ? r : glfs_set_xlator_option(fs, "*-client-*", "event-threads", "1");
    errno = 0;
    r = r ? r : glfs_init(fs);
    if (r) {
        pthread_t t;

        r = gluster_errno(ENOTCONN);
        if (!thread_start(&t, volume_take_down, fs))
            pthread_detach(t);
        return r;
    }
    *out = fs;
    return 0;
}

/* libgfapi goes on to the next server itself, but with the transport and port of the
 * first: where they differ it has to be told. */
static int volume_connect(const struct gluster_name *name, glfs_t **out)
{
    int r = -ENOTCONN;

    for (unsigned i = 0; i < name->nservers && r == -ENOTCONN; i++)
        r = volume_try(name, i, out);
    return r;
}

static void volume_unlink(struct gluster_volume *v)
{
    struct gluster_volume **p = &volumes;

    while (*p != v)
        p = &(*p)->next;
    *p = v->next;
}

static void volume_put_failed(struct gluster_volume *v)
{
    if (--v->refs)
        return;
    gluster_name_free(&v->name);
    free(v);
}

/* Blocking, volumes_lock held.  A new entry, connected or failed. */
static struct gluster_volume *volume_make(const struct gluster_name *name)
{
    struct gluster_volume *v = calloc(1, sizeof(*v));
    glfs_t *fs = NULL;
    int err;

    if (!v || gluster_name_copy(&v->name, name)) {
        if (v)
            gluster_name_free(&v->name);
        free(v);
        return NULL;
    }
    v->next = volumes;
    volumes = v;
    v->refs = 1;
    pthread_mutex_unlock(&volumes_lock);
    err = volume_connect(name, &fs);
    pthread_mutex_lock(&volumes_lock);
    v->err = err;
    v->fs = fs;
    if (err)
        volume_unlink(v);
    pthread_cond_broadcast(&volumes_changed);
    return v;
}

/* Blocking. */
static int volume_get(const struct gluster_name *name, struct gluster_volume **out)
{
    struct gluster_volume *v;
    int err;

    pthread_mutex_lock(&volumes_lock);
    for (v = volumes; v && !volume_is(v, name); v = v->next)
        ;
    if (!v) {
        v = volume_make(name);
    } else {
        v->refs++;
        while (!v->fs && !v->err)
            pthread_cond_wait(&volumes_changed, &volumes_lock);
    }
    err = v ? v->err : -ENOMEM;
    if (v && err)
        volume_put_failed(v);
    else
        *out = v;
    pthread_mutex_unlock(&volumes_lock);
    return err;
}

/* ---- jobs ---------------------------------------------------------------------------- */

enum { JOB_RUNNING, JOB_DONE, JOB_ABANDONED };

struct job {
    struct gluster_name name;
    enum gluster_job_op op;
    int flags;
    struct gluster_opened out;
    int err;
    bool connected;             /* err is of the file, not of the volume */
    atomic_int state;
    pthread_t thread;
    struct blk_loop *loop;
    struct blk_post post;
    struct blk_timer timer;
    struct co *co;
    bool *late;                 /* the fiber's: it went on without the job */
};

static void job_free(struct job *j)
{
    gluster_name_free(&j->name);
    free(j);
}

static int job_file(struct job *j)
{
    glfs_t *fs = j->out.vol->fs;
    int err;

    errno = 0;
    if (j->op == GLUSTER_UNLINK)
        return glfs_unlink(fs, j->name.path) ? gluster_errno(EIO) : 0;
    if (j->op == GLUSTER_CREATE)
        j->out.fd = glfs_creat(fs, j->name.path, j->flags, 0644);
    else
        j->out.fd = glfs_open(fs, j->name.path, j->flags);
    if (!j->out.fd)
        return gluster_errno(EIO);
    if (!glfs_fstat(j->out.fd, &j->out.st))
        return 0;
    err = gluster_errno(EIO);
    glfs_close(j->out.fd);
    j->out.fd = NULL;
    return err;
}

static void *job_thread(void *arg)
{
    struct job *j = arg;

    j->err = volume_get(&j->name, &j->out.vol);
    j->connected = !j->err;
    if (j->connected)
        j->err = job_file(j);
    if (atomic_exchange(&j->state, JOB_DONE) == JOB_ABANDONED) {
        if (j->out.fd)
            glfs_close(j->out.fd);
        job_free(j);
    } else {
        blk_loop_post(j->loop, &j->post);
    }
    return NULL;
}

static void job_done(void *arg)
{
    struct job *j = arg;

    /* A thread that is still ending while the process does makes libcrypto free what it keeps
     * of the thread twice. */
    pthread_join(j->thread, NULL);
    blk_timer_cancel(j->loop, &j->timer);
    co_wake(j->co);
}

static void job_late(void *arg)
{
    struct job *j = arg;
    struct co *co = j->co;      /* abandoned, j is the thread's, which may free it */
    bool *late = j->late;
    pthread_t thread = j->thread;
    int running = JOB_RUNNING;

    if (atomic_compare_exchange_strong(&j->state, &running, JOB_ABANDONED)) {
        *late = true;
        pthread_detach(thread);
        co_wake(co);
    }
}

static int job_error(const struct job *j, struct blk_error *e)
{
    const struct gluster_name *name = &j->name;
    static const char *const verbs[] = { "open", "create", "delete" };

    if (j->connected)
        return blk_err_errno(e, -j->err, "Could not %s '%s' on Gluster volume '%s'",
                             verbs[j->op], name->path, name->volume);
    blk_err_errno(e, -j->err, "Could not connect to Gluster volume '%s' at %s%s%s",
                  name->volume, *name->server[0].transport == 'u' ? "unix:" : "",
                  name->server[0].host, name->nservers > 1 ? " and others" : "");
    blk_error_hint(e, "The volume may not exist or not be started; option logfile= names a "
                   "file for the library's own messages.");
    return j->err;
}

int gluster_job(struct blk_loop *l, const struct gluster_name *name, enum gluster_job_op op,
                int flags, uint64_t timeout_ns, struct gluster_opened *out, struct blk_error *e)
{
    struct job *j = calloc(1, sizeof(*j));
    bool late = false;
    int r;

    if (!j)
        return blk_err_errno(e, ENOMEM, "Could not open '%s'", name->path);
    j->late = &late;
    r = gluster_name_copy(&j->name, name);
    j->op = op;
    j->flags = flags;
    j->loop = l;
    j->co = co_self();
    j->post = (struct blk_post){ .fn = job_done, .arg = j };
    j->timer = (struct blk_timer){ .fn = job_late, .arg = j };
    r = r ? r : thread_start(&j->thread, job_thread, j);
    if (r) {
        job_free(j);
        return blk_err_errno(e, -r, "Could not open '%s'", name->path);
    }
    blk_timer_set(l, &j->timer, blk_now_ns() + timeout_ns);
    co_yield();
    if (late)
        return blk_err_errno(e, ETIMEDOUT, "Gluster volume '%s' at %s: no answer in %u s",
                             name->volume, name->server[0].host,
                             (unsigned)(timeout_ns / 1000000000u));
    r = j->err ? job_error(j, e) : 0;
    *out = j->out;
    job_free(j);
    return r;
}

/* ---- the pool ------------------------------------------------------------------------- */

static struct blk_pool *pool;

static void pool_make(void)
{
    pool = blk_pool_new(GLUSTER_POOL_THREADS);
    if (!pool)
        abort();                /* a few hundred bytes */
}

static struct blk_pool *pool_get(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, pool_make);
    return pool;
}

struct co_call {
    struct blk_work work;
    int (*fn)(void *arg);
    void *arg;
    int ret;
    struct co *co;
};

static void co_call_fn(struct blk_work *w)
{
    struct co_call *c = blk_container_of(w, struct co_call, work);

    c->ret = c->fn(c->arg);
}

static void co_call_done(struct blk_work *w)
{
    co_wake(blk_container_of(w, struct co_call, work)->co);
}

int gluster_co_work(struct blk_loop *l, int (*fn)(void *arg), void *arg)
{
    struct co_call c = {
        .work = { .fn = co_call_fn, .done = co_call_done, .loop = l },
        .fn = fn, .arg = arg, .co = co_self(),
    };

    blk_pool_submit(pool_get(), &c.work);
    co_yield();
    return c.ret;
}
