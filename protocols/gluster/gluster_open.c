/*
 * gluster_open.c - images on Gluster are opened, closed, created and deleted.
 *
 * Closing waits for the descriptor, whose errors may be of data (the core has flushed
 * before); the connection stays, see gluster_volume.c.
 */
#include "protocols/gluster/gluster_int.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

/* Larger requests are split by the core, whose parts go out side by side: measured
 * with a plain volume on the same host, see gluster_limits(). */
#define GLUSTER_TRANSFER_MAX (128u << 10)
/* zerofill writes its zeros on the bricks, and must be done before anybody takes the
 * server for dead. */
#define GLUSTER_ZERO_MAX     (64u << 20)
#define GLUSTER_DISCARD_MAX  (1u << 30)
#define GLUSTER_DIRECT_ALIGN 4096u
#define GLUSTER_SECTOR       512u   /* QEMU cannot read what follows a file's last whole one */

/* ---- open ---------------------------------------------------------------------------- */

static void gluster_limits(struct blk_node *n, const struct stat *st)
{
    uint32_t align = n->oflags & BLK_O_DIRECT ? GLUSTER_DIRECT_ALIGN
                   : n->oflags & BLK_O_RDWR ? GLUSTER_SECTOR : 1;

    n->size = (uint64_t)st->st_size;
    n->limits = (struct blk_limits){
        .req_align = align,
        .mem_align = 1,         /* libgfapi copies */
        .opt_transfer = GLUSTER_TRANSFER_MAX,
        .max_transfer = GLUSTER_TRANSFER_MAX,
        .max_zero = GLUSTER_ZERO_MAX,
        .max_discard = GLUSTER_DISCARD_MAX,
    };
    n->can_grow = n->oflags & BLK_O_RDWR;
    n->starts_as_zeros = true;
    n->can_zero = BLK_CAP_NATIVE;
    n->zero_may_be_slow = true;
    n->can_discard = BLK_CAP_NATIVE;
    n->can_fua = BLK_CAP_EMULATED;
}

static int gluster_open_file(struct blk_node *n, struct gluster_state *g, struct blk_error *e)
{
    struct gluster_opened opened;
    int flags = (g->writable ? O_RDWR : O_RDONLY) | (n->oflags & BLK_O_DIRECT ? O_DIRECT : 0);
    int r = gluster_job(n->loop, &g->name, GLUSTER_OPEN, flags, g->net.timeout_ns, &opened, e);

    if (r)
        return r;
    g->vol = opened.vol;
    g->fd = opened.fd;
    if (S_ISREG(opened.st.st_mode)) {
        gluster_limits(n, &opened.st);
        return 0;
    }
    glfs_close(g->fd);
    return blk_err(e, EINVAL, "'gluster' driver requires '%s' to be a regular file",
                   g->name.path);
}

/* Opened by options, the node still has a name: for messages, and what the names of
 * backing files are relative to. */
static int gluster_set_filename(struct blk_node *n, const struct gluster_name *name)
{
    return blk_node_rename(n, gluster_name_url(name));
}

int gluster_open(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct gluster_state *g = calloc(1, sizeof(*g));
    int r;

    if (!g)
        return blk_err_errno(e, ENOMEM, "Could not open '%s'", n->shown);
    g->writable = n->oflags & BLK_O_RDWR;
    gluster_requests_init(g, n);
    r = gluster_name_parse(&g->name, o, e);
    if (!r && !blk_opts_has(o, "filename"))
        r = gluster_set_filename(n, &g->name);
    r = r ? r : blk_net_init(&g->net, o, n->shown, e);
    r = r ? r : gluster_open_file(n, g, e);
    if (r) {
        gluster_name_free(&g->name);
        free(g);
        return r;
    }
    n->state = g;
    return 0;
}

/* ---- close ----------------------------------------------------------------------------- */

/*
 * Blocking.  A replicated volume acknowledges before it has noted, on the bricks that have
 * a write, which bricks missed it; a process that ended in between would leave those
 * unaccused, and they would give out old data when they are back.  Closing makes it
 * note what it has put off.  But it puts that off only after it has acknowledged: on its
 * only event thread (gluster_volume.c), which is past that when it has handled the
 * answer to anything asked later.
 */
static int close_noted(glfs_fd_t *fd)
{
    struct stat st;

    glfs_fstat(fd, &st);
    errno = 0;
    return glfs_close(fd) ? gluster_errno(EIO) : 0;
}

static int close_blocking(void *arg)
{
    struct gluster_state *g = arg;

    for (struct gluster_old_fd *old; (old = g->old_fds); free(old)) {
        g->old_fds = old->next;
        glfs_close(old->fd);
    }
    if (g->writable)
        return close_noted(g->fd);
    glfs_close(g->fd);
    return 0;
}

int gluster_close(struct blk_node *n, struct blk_error *e)
{
    struct gluster_state *g = n->state;
    int r;

    while (g->reopening || g->locking)
        co_sleep(BLK_NET_STEP_NS / 100);
    blk_timer_cancel(n->loop, &g->retry);
    blk_timer_cancel(n->loop, &g->lock_timer);
    r = gluster_co_work(n->loop, close_blocking, g);
    gluster_name_free(&g->name);
    free(g);
    n->state = NULL;
    if (r)
        return blk_err_errno(e, -r, "Could not close '%s'", n->shown);
    return 0;
}

/* ---- create ------------------------------------------------------------------------------ */

const struct blk_option_desc gluster_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "preallocation", BLK_OPT_STRING, "Preallocation mode (allowed values: off, falloc, full)",
      NULL },
    { "debug", BLK_OPT_NUMBER, "Gluster log level, valid range is 0-9", NULL },
    { "logfile", BLK_OPT_STRING, "Gluster log file", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

struct create_args {
    struct gluster_name name;
    struct blk_net net;
    uint64_t size;
    enum blk_prealloc prealloc;
    glfs_fd_t *fd;
    struct blk_error *e;
};

static int create_parse(struct create_args *c, struct blk_opts *o, struct blk_error *e)
{
    const char *p = blk_opts_get(o, "preallocation");
    int r = gluster_name_parse(&c->name, o, e);

    r = r ? r : blk_net_init(&c->net, o, c->name.path, e);
    r = r ? r : blk_opts_get_size(o, "size", &c->size, e);
    if (!r && p && blk_parse_prealloc(p, &c->prealloc, NULL) < 0)
        r = blk_err(e, EINVAL, "invalid parameter value: %s", p);
    c->size = blk_align_up(c->size, 512);
    return r;
}

/* Blocking.  Nothing of what was there is touched before the locks are ours. */
static int create_fill(void *arg)
{
    struct create_args *c = arg;
    int r = gluster_lock_fd(c->fd, c->name.path, GLUSTER_PERM_WRITE | GLUSTER_PERM_RESIZE,
                            GLUSTER_PERM_RESIZE, c->e);

    r = r ? r : gluster_resize(c->fd, 0, 0, BLK_PREALLOC_OFF, c->e);
    r = r ? r : gluster_resize(c->fd, 0, c->size, c->prealloc, c->e);
    int closed = close_noted(c->fd);
    return r || !closed ? r : blk_err_errno(c->e, -closed, "Could not close the new file");
}

int gluster_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                   struct blk_error *e)
{
    struct create_args c = { .e = e };
    struct gluster_opened opened;
    int r = create_parse(&c, o, e);

    r = r ? r : gluster_job(l, &c.name, GLUSTER_CREATE, O_RDWR, c.net.timeout_ns, &opened, e);
    if (!r) {
        c.fd = opened.fd;
        r = gluster_co_work(l, create_fill, &c);
    }
    gluster_name_free(&c.name);
    return r;
}

void gluster_uncreate(struct blk_opts *o)
{
    struct gluster_name name = { 0 };
    struct gluster_opened opened;

    if (co_loop() && !gluster_name_parse(&name, o, NULL))
        gluster_job(co_loop(), &name, GLUSTER_UNLINK, 0, BLK_NET_TIMEOUT * 1000000000ull, &opened,
                    NULL);
    gluster_name_free(&name);
}
