/*
 * nfs.c - files on NFS servers, without a mount: nfs://host[:port]/export/dir/file?args
 *
 * The folder of the file is mounted (NFSv3) or walked to from the server's root
 * (NFSv4); from then on the file is its handle.  A handle that has become stale is an
 * error: looking the name up again could find another file.
 * There are no locks: two writers on one image are the user's to prevent.
 */
#include "protocols/nfs/nfs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- names and options ------------------------------------------------------------------ */

/* Names of the same thing: in URLs (libnfs and QEMU), in --image-opts (QEMU). */
static const struct { const char *url, *opt; } url_args[] = {
    { "uid", "user" }, { "gid", "group" }, { "tcp-syncnt", "tcp-syn-count" },
    { "tcp-syncount", "tcp-syn-count" },
    { "readahead", "readahead-size" }, { "pagecache", "page-cache-size" },
    { "debug", "debug" }, { "version", "version" }, { "nfsport", "nfsport" },
    { "mountport", "mountport" }, { "connections", "connections" }, { "timeout", "timeout" },
    { "reconnect", "reconnect" }, { "auto-traverse-mounts", "auto-traverse-mounts" },
    { "dircache", "dircache" }, { "autoreconnect", "autoreconnect" }, { "if", "if" },
};

static int where_url_args(struct blk_url *u, struct blk_opts *o, struct blk_error *e)
{
    const char *key, *value;
    for (size_t i = 0; blk_opts_at(u->params, i, &key, &value); i++) {
        size_t a = 0;
        while (a < BLK_ARRAY_SIZE(url_args) && strcmp(url_args[a].url, key))
            a++;
        if (a == BLK_ARRAY_SIZE(url_args))
            return blk_err(e, EINVAL, "Unknown NFS parameter name: %s", key);
        if (!blk_opts_has(o, url_args[a].opt))
            blk_opts_set(o, url_args[a].opt, value);
    }
    return 0;
}

/* "/export/dir/file" into its folder and its last part. */
static int where_path(struct nfs_where *w, const char *path, struct blk_error *e)
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    if (!slash || !slash[1])
        return blk_err(e, EINVAL, "an NFS name is nfs://host[:port]/export/file[?arguments]");
    w->dir = slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
    w->file = strdup(slash + 1);
    return w->dir && w->file ? 0 : blk_err(e, ENOMEM, "Cannot allocate memory");
}

/* QEMU's own options: server.type=inet, server.host, path. */
static int where_from_opts(struct nfs_where *w, struct blk_opts *o, struct blk_error *e)
{
    const char *type = blk_opts_get(o, "server.type");
    const char *host = blk_opts_get(o, "server.host"), *path = blk_opts_get(o, "path");

    if (type && strcmp(type, "inet"))
        return blk_err(e, EINVAL, "Parameter 'type' does not accept value '%s'", type);
    if (!type || !host || !path)
        return blk_err(e, EINVAL, "Parameter '%s' is missing",
                       !type && !host ? "server" : !type ? "server.type" :
                       !host ? "server.host" : "path");
    w->host = strdup(host);
    return w->host ? where_path(w, path, e) : -ENOMEM;
}

static int where_from_url(struct nfs_where *w, const char *name, struct blk_opts *o,
                          struct blk_error *e)
{
    struct blk_url u;
    int r = blk_url_parse(name, &u, e);

    if (r)
        return r;
    if (!u.host || !*u.host)
        r = blk_err(e, EINVAL, "an NFS name needs a host: nfs://host/export/file");
    else if (!(w->host = strdup(u.host)))
        r = -ENOMEM;
    w->nfs_port = u.port;
    r = r ? r : where_path(w, u.path, e);
    r = r ? r : where_url_args(&u, o, e);
    blk_url_free(&u);
    return r;
}

static int where_number(struct blk_opts *o, const char *key, uint64_t max, int64_t *out,
                        struct blk_error *e)
{
    uint64_t v = 0;
    int r = blk_opts_has(o, key) ? blk_opts_get_u64(o, key, &v, NULL) : 0;
    if (r)
        return blk_err(e, EINVAL, "Parameter '%s' expects integer", key);
    if (blk_opts_has(o, key)) {
        if (v > max)
            return blk_err(e, EINVAL, "Parameter '%s' is larger than %llu", key,
                           (unsigned long long)max);
        *out = (int64_t)v;
    }
    return 0;
}

static int where_options(struct nfs_where *w, struct blk_opts *o, struct blk_error *e)
{
    int64_t uid = -1, gid = -1, syncnt = 0, debug = 0, version = 3;
    int64_t nfs_port = w->nfs_port, mount_port = 0, connections = NFS_CONNECTIONS;
    /* Caches are the guest's and the format's: several connections share none. */
    static const char *const ignored[] = { "readahead-size", "page-cache-size", "dircache",
                                           "auto-traverse-mounts", "autoreconnect", "if" };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(ignored); i++)
        (void)blk_opts_get(o, ignored[i]);
    int r = where_number(o, "user", INT32_MAX, &uid, e);
    r = r ? r : where_number(o, "group", INT32_MAX, &gid, e);
    r = r ? r : where_number(o, "tcp-syn-count", 255, &syncnt, e);
    r = r ? r : where_number(o, "debug", 100, &debug, e);
    r = r ? r : where_number(o, "version", 4, &version, e);
    r = r ? r : where_number(o, "nfsport", 65535, &nfs_port, e);
    r = r ? r : where_number(o, "mountport", 65535, &mount_port, e);
    r = r ? r : where_number(o, "connections", NFS_CONNECTIONS_MAX, &connections, e);
    if (!r && (version < 3 || connections < 1))
        r = blk_err(e, EINVAL, version < 3 ? "NFS versions are 3 and 4" :
                    "Parameter 'connections' must be at least 1");
    w->uid = (int)uid;
    w->gid = (int)gid;
    w->syncnt = (int)syncnt;
    w->debug = (int)debug;
    w->nfs_port = (unsigned)nfs_port;
    w->mount_port = (unsigned)mount_port;
    w->connections = (unsigned)connections;
    w->version = version == 4 ? &nfs_v4 : &nfs_v3;
    return r;
}

/* ---- reaching the file ------------------------------------------------------------------- */

static void disk_free(struct nfs_disk *d)
{
    nfs_kept_free(d);
    if (d->hook.fn)
        nfs_conns_stop(d);
    nfs_io_free(d);
    free(d->where.host);
    free(d->where.dir);
    free(d->where.file);
    free(d->where.address);
    free(d);
}

/* With its connections up and d->dir known; the caller frees. */
static int disk_connect(struct nfs_disk *d, struct blk_error *e)
{
    int r = nfs_resolve(&d->where, e);
    if (!r && d->where.version->number == 3)
        r = nfs_mount_dir(d, &d->dir, e);
    return r ? r : nfs_conns_start(d, e);
}

/* From names and options; nothing is asked for yet. */
static int disk_new(struct blk_loop *l, struct blk_opts *o, const char *shown,
                    struct nfs_disk **out, struct blk_error *e)
{
    struct nfs_disk *d = calloc(1, sizeof(*d));
    const char *name = blk_opts_get(o, "filename");
    int r;

    if (!d)
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    d->loop = l;
    d->max_transfer = NFS_XFER_DEFAULT;
    r = name ? where_from_url(&d->where, name, o, e) : where_from_opts(&d->where, o, e);
    r = r ? r : where_options(&d->where, o, e);
    r = r ? r : blk_net_init(&d->net, o, shown, e);
    if (r) {
        disk_free(d);
        return r;
    }
    *out = d;
    return 0;
}

static int lookup_one(struct nfs_disk *d, const struct nfs_fhandle *dir, const char *name,
                      struct nfs_fhandle *fh, struct nfs_attrs *attrs)
{
    struct nfs_call call = { .op = NFS_LOOKUP, .fh = dir, .name = name };
    struct nfs_call attr = { .op = NFS_GETATTR, .fh = fh };
    int r = nfs_call_wait(d, &call);

    if (r)
        return r;
    *fh = call.out_fh;
    if (!call.attrs.valid) {
        r = nfs_call_wait(d, &attr);
        call.attrs = attr.attrs;
    }
    *attrs = call.attrs;
    return r;
}

static int walk(struct nfs_disk *d, const struct nfs_fhandle *from, const char *path,
                struct nfs_fhandle *fh, struct nfs_attrs *attrs, unsigned *links);

/* Relative targets only: what is above the export is the server's business. */
static int walk_link(struct nfs_disk *d, const struct nfs_fhandle *dir, struct nfs_fhandle *fh,
                     struct nfs_attrs *attrs, unsigned *links)
{
    struct nfs_call call = { .op = NFS_READLINK, .fh = fh };
    if (++*links > NFS_SYMLINKS_MAX)
        return -ELOOP;
    int r = nfs_call_wait(d, &call);
    if (!r)
        r = *call.link == '/' ? -EXDEV : walk(d, dir, call.link, fh, attrs, links);
    free(call.link);
    return r;
}

/* From a folder along path; symbolic links are followed. */
static int walk(struct nfs_disk *d, const struct nfs_fhandle *from, const char *path,
                struct nfs_fhandle *fh, struct nfs_attrs *attrs, unsigned *links)
{
    struct nfs_fhandle dir = *from, next;
    int r = 0;

    *attrs = (struct nfs_attrs){ .valid = true, .directory = true };
    while (!r && *(path += strspn(path, "/"))) {
        size_t len = strcspn(path, "/");
        char *name = strndup(path, len);
        r = name ? lookup_one(d, &dir, name, &next, attrs) : -ENOMEM;
        free(name);
        if (!r && attrs->symlink)
            r = walk_link(d, &dir, &next, attrs, links);
        dir = r ? dir : next;
        path += len;
    }
    *fh = dir;
    return r;
}

/* d->dir, then d->fh and d->attrs of the file in it; -ENOENT with d->dir known. */
static int disk_find(struct nfs_disk *d, struct blk_error *e)
{
    struct nfs_attrs attrs;
    unsigned links = 0;
    int r = 0;

    if (d->where.version->number == 4) {
        struct nfs_fhandle root = { 0 };
        r = walk(d, &root, d->where.dir, &d->dir, &attrs, &links);
        if (r)
            return blk_err_errno(e, r == -ENOENT ? ENOTDIR : -r, "'%s'", d->where.dir);
    }
    r = walk(d, &d->dir, d->where.file, &d->fh, &d->attrs, &links);
    if (r == -ENOENT)
        return r;
    if (!r && d->attrs.directory)
        r = -EISDIR;
    else if (!r && !d->attrs.regular)
        return blk_err(e, EINVAL, "not a regular file");
    if (r && !d->conns[0])
        return blk_err(e, -r, "%s", d->cause);
    return r ? blk_err_errno(e, -r, "'%s'", d->where.file) : 0;
}

static uint32_t clamp_transfer(uint32_t v)
{
    if (!v)
        return NFS_XFER_DEFAULT;
    return BLK_MIN(BLK_MAX(v, NFS_XFER_MIN), NFS_XFER_MAX) & ~(NFS_XFER_MIN - 1);
}

static int disk_limits(struct nfs_disk *d, struct blk_error *e)
{
    struct nfs_call call = { .op = NFS_FSINFO, .fh = &d->fh };
    int r = nfs_call_wait(d, &call);
    if (r)
        return blk_err_errno(e, -r, "the server's limits (FSINFO)");
    d->max_transfer = BLK_MIN(clamp_transfer(call.rtmax), clamp_transfer(call.wtmax));
    return 0;
}

/* ---- the driver ----------------------------------------------------------------------------- */

/* Opened by options, the node still has a name, which is QEMU's. */
static void disk_rename(struct blk_node *n, struct nfs_disk *d)
{
    const struct nfs_where *w = &d->where;
    char *url = NULL, ids[40] = "";

    if (w->uid >= 0 && w->gid >= 0)
        snprintf(ids, sizeof(ids), "?uid=%d&gid=%d", w->uid, w->gid);
    if (asprintf(&url, "nfs://%s%s/%s%s", w->host, strcmp(w->dir, "/") ? w->dir : "", w->file,
                 ids) < 0)
        return;
    if (blk_node_rename(n, url))
        return;
    snprintf(d->net.shown, sizeof(d->net.shown), "%s", n->shown);
}

static int nfs_open_node(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    bool named = blk_opts_has(o, "filename");
    struct nfs_disk *d;
    int r = disk_new(n->loop, o, n->shown, &d, e);
    const char *unknown = r || named ? NULL : blk_opts_unused(o);

    if (r)
        return r;
    if (unknown) {
        r = blk_err(e, EINVAL, "Parameter '%s' is unexpected", unknown);
        disk_free(d);
        return r;
    }
    if (!named)
        disk_rename(n, d);
    d->node = n;
    d->unsafe = n->oflags & BLK_O_NO_FLUSH;
    r = disk_connect(d, e);
    r = r ? r : disk_find(d, e);
    if (r == -ENOENT)
        blk_err(e, ENOENT, "%s", strerror(ENOENT));
    r = r ? r : disk_limits(d, e);
    if (r) {
        blk_error_prefix(e, "Could not open '%s': ", n->shown);
        disk_free(d);
        return r;
    }
    d->opening = false;
    n->state = d;
    n->size = d->attrs.size;
    n->can_grow = n->oflags & BLK_O_RDWR;
    n->starts_as_zeros = true;
    n->can_zero = BLK_CAP_EMULATED;
    n->can_discard = BLK_CAP_NONE;
    n->can_fua = BLK_CAP_NATIVE;
    n->limits = (struct blk_limits){ .req_align = 1, .mem_align = 1,
                                     .opt_transfer = d->max_transfer,
                                     .max_transfer = d->max_transfer };
    nfs_conns_more(d);
    return 0;
}

/* Also what nobody has flushed is put on the server's disk, or reported. */
static int nfs_close_node(struct blk_node *n, struct blk_error *e)
{
    struct nfs_disk *d = n->state;
    int r = d->unsafe ? nfs_unsafe_end(d) : d->kept ? nfs_commit(d) : 0;

    n->state = NULL;
    if (r)
        blk_err_errno(e, -r, "Could not close '%s'", n->shown);
    d->closing = true;
    disk_free(d);
    return r;
}

static int nfs_getattr(struct nfs_disk *d, struct nfs_attrs *out)
{
    struct nfs_call call = { .op = NFS_GETATTR, .fh = &d->fh };
    int r = nfs_call_wait(d, &call);
    *out = call.attrs;
    return r;
}

static int nfs_length(struct blk_node *n, uint64_t *out)
{
    struct nfs_attrs a;
    int r = nfs_getattr(n->state, &a);
    if (!r)
        *out = a.size;
    return r;
}

static int64_t nfs_allocated_size(struct blk_node *n)
{
    struct nfs_attrs a;
    int r = nfs_getattr(n->state, &a);
    return r ? r : (int64_t)a.used;
}

static int nfs_identity(struct blk_node *n, char *buf, size_t len)
{
    const struct nfs_disk *d = n->state;
    snprintf(buf, len, "nfs:%s:%llx.%llx:%llx", d->where.address,
             (unsigned long long)d->attrs.fsid[0], (unsigned long long)d->attrs.fsid[1],
             (unsigned long long)d->attrs.fileid);
    return 0;
}

static int disk_set_size(struct nfs_disk *d, uint64_t size)
{
    struct nfs_call call = { .op = NFS_SETSIZE, .fh = &d->fh, .offset = size };
    return nfs_call_wait(d, &call);
}

static int nfs_resize_node(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                        struct blk_error *e)
{
    struct nfs_disk *d = n->state;

    if (p != BLK_PREALLOC_OFF)
        return blk_err(e, ENOTSUP, "NFS can only be resized with preallocation=off");
    /* Writes that would have to be sent again later must not bring back what is cut. */
    int r = nfs_commit(d);
    r = r ? r : disk_set_size(d, size);
    if (r)
        return blk_err_errno(e, -r, "Could not resize '%s'", n->shown);
    n->size = size;
    return 0;
}

/* ---- making files ------------------------------------------------------------------------------ */

static int disk_make(struct nfs_disk *d, struct blk_error *e)
{
    struct nfs_call call = { .op = NFS_MAKE, .fh = &d->dir, .name = d->where.file };
    int r;

    if (d->where.version->number == 4)
        r = nfs_make_v4(d, e);
    else
        r = nfs_call_wait(d, &call);
    if (!r && d->where.version->number == 3 && call.out_fh.len)
        d->fh = call.out_fh;
    else if (!r)
        r = disk_find(d, e);
    return r ? blk_err_errno(e, -r, "'%s'", d->where.file) : 0;
}

static int nfs_create_node(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                      struct blk_error *e)
{
    const char *name = blk_opts_get(o, "filename");
    char *shown = blk_redact(name);
    struct nfs_disk *d = NULL;
    uint64_t size = 0;
    int r = blk_opts_get_size(o, "size", &size, e);

    r = r ? r : disk_new(l, o, shown, &d, e);
    if (!r && !(r = disk_connect(d, e))) {
        r = disk_find(d, e);
        r = r == -ENOENT ? disk_make(d, e) : r;
        /* What an older file of that name had does not shine through. */
        if (!r && (r = disk_set_size(d, 0)))
            blk_err_errno(e, -r, "'%s'", d->where.file);
        if (!r && size && (r = disk_set_size(d, size)))
            blk_err_errno(e, -r, "size of '%s'", d->where.file);
    }
    if (d)
        disk_free(d);
    if (r)
        blk_error_prefix(e, "Could not create '%s': ", shown);
    free(shown);
    return r;
}

static void nfs_uncreate(struct blk_opts *o)
{
    struct nfs_disk *d;
    if (disk_new(co_loop(), o, "nfs", &d, NULL))
        return;
    struct nfs_call call = { .op = NFS_UNLINK, .fh = &d->dir, .name = d->where.file };
    if (!disk_connect(d, NULL) && !disk_find(d, NULL))
        nfs_call_wait(d, &call);
    disk_free(d);
}

static const struct blk_option_desc nfs_create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

static const char *const nfs_schemes[] = { "nfs", NULL };

extern const struct blk_driver blk_nfs;
const struct blk_driver blk_nfs = {
    .name = "nfs",
    .protocol = true,
    .merge = 32768,
    .schemes = nfs_schemes,
    .create_opts = nfs_create_opts,
    .open = nfs_open_node,
    .close = nfs_close_node,
    .submit = nfs_submit,
    .truncate = nfs_resize_node,
    .allocated_size = nfs_allocated_size,
    .length = nfs_length,
    .identity = nfs_identity,
    .create = nfs_create_node,
    .uncreate = nfs_uncreate,
};
