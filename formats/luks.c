/*
 * luks.c - the luks format: a LUKS header (which may be a file of its own,
 * "header.filename="), behind it the disk's sectors, encrypted.
 *
 * Invariants
 *  - Plaintext never reaches the storage: what is written was encrypted into a
 *    buffer of our own.
 *  - An image opened without guest data (info) needs no password.
 */
#include "formats/luks.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define REQUEST_MAX (4u << 20)          /* bytes encrypted at a time: bounds the buffer */

struct luks {
    struct luks_header h;
    struct luks_place place;
    uint64_t payload;                   /* its offset in n->file */
    struct crypto_sectors *sectors;     /* NULL: BLK_O_NO_IO */
    char *secret;                       /* id of the one it was opened with */
};

static int luks_probe(const uint8_t *buf, size_t len)
{
    return luks_magic(buf, len) ? 100 : 0;
}

/* ---- open ------------------------------------------------------------------------------- */

static int open_place(struct blk_node *n, struct luks *s, struct blk_opts *o, struct blk_error *e)
{
    struct blk_opts *ho = blk_opts_take(o, "header.");
    int err = 0;

    s->place = (struct luks_place){ n->file, 0, n->file->size, false };
    if (blk_opts_at(ho, 0, NULL, NULL)) {
        err = blk_open_data_file(n, NULL, ho, e);
        if (!err) {
            s->place = (struct luks_place){ n->data_file, 0, n->data_file->size, true };
        }
    }
    blk_opts_free(ho);
    return err;
}

static int set_size(struct blk_node *n, const struct luks *s, struct blk_error *e)
{
    uint64_t end = blk_align_up(n->file->size, CRYPTO_SECTOR);

    if (end < s->payload) {
        return blk_err_errno(e, EIO, "Could not refresh total sector count");
    }
    n->size = end - s->payload;
    return 0;
}

static void luks_free(struct luks *s)
{
    crypto_sectors_free(s->sectors);
    free(s->secret);
    crypto_wipe(s, sizeof(*s));
    free(s);
}

static int luks_open_node(struct blk_node *n, struct blk_opts *o, struct blk_error *e)
{
    struct luks *s = calloc(1, sizeof(*s));
    const char *secret = blk_opts_get(o, "key-secret"), *password;

    if (!s) {
        return blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    int err = open_place(n, s, o, e);
    if (!err && !(n->oflags & BLK_O_NO_IO)) {
        err = luks_password(secret, "", &password, e);      /* as in QEMU the first to be missed */
    }
    err = err ? err : luks_header_read(&s->place, &s->h, e);
    s->payload = (uint64_t)s->h.payload_sector * CRYPTO_SECTOR;
    if (!err && !(n->oflags & BLK_O_NO_IO)) {
        err = luks_open(&s->place, &s->h, secret, "", &s->sectors, e);
        s->secret = err ? NULL : strdup(secret);
    }
    err = err ? err : set_size(n, s, e);
    if (err) {
        luks_free(s);
        return err;
    }
    n->limits = n->file->limits;
    n->limits.req_align = BLK_MAX(n->limits.req_align, CRYPTO_SECTOR);
    n->limits.max_transfer = REQUEST_MAX;
    n->can_fua = n->file->can_fua;
    n->state = s;
    return 0;
}

static int luks_close(struct blk_node *n, struct blk_error *e)
{
    luks_free(n->state);
    n->state = NULL;
    return 0;
}

/* ---- requests ------------------------------------------------------------------------------ */

static int read_fiber(struct blk_req *req)
{
    struct luks *s = req->node->state;
    int err = co_readv(req->node->file, req->offset + s->payload, req->iov, req->iovcnt,
                       req->length);
    return err ? err : co_sectors_decrypt(s->sectors, req->offset, req->iov, req->iovcnt, 0,
                                          req->length);
}

static int write_fiber(struct blk_req *req)
{
    struct luks *s = req->node->state;
    uint8_t *buf = blk_buf_alloc(req->length);
    int err = buf ? co_sectors_encrypt(s->sectors, req->offset, req->iov, req->iovcnt, 0,
                                       req->length, buf) : -ENOMEM;

    err = err ? err : co_write(req->node->file, req->offset + s->payload, buf, req->length,
                               req->flags);
    blk_buf_free(buf);
    return err;
}

static void luks_submit(struct blk_node *n, struct blk_req *req)
{
    const struct luks *s = n->state;

    if (req->op == BLK_FLUSH) {
        blk_forward(req, n->file, 0, NULL);
    } else if (!s->sectors) {
        blk_complete(req, -EIO);
    } else {
        blk_req_fiber(req, req->op == BLK_READ ? read_fiber : write_fiber);
    }
}

/* Nothing of it is known: holes in the storage are noise to the guest. */
static int luks_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    st->flags = BLK_ST_DATA | BLK_ST_ALLOCATED;
    st->length = len;
    return 0;
}

/* ---- image operations -------------------------------------------------------------------------- */

static int luks_truncate(struct blk_node *n, uint64_t size, bool shrink, enum blk_prealloc p,
                         struct blk_error *e)
{
    const struct luks *s = n->state;
    uint64_t end;

    if (blk_add_overflow(size, s->payload, &end) || end > INT64_MAX) {
        return blk_err(e, EFBIG, "The requested file size is too large");
    }
    int err = blk_truncate(n->file, end, shrink, p, e);
    if (!err) {
        n->size = blk_align_up(size, CRYPTO_SECTOR);
    }
    return err;
}

static int luks_info_op(struct blk_node *n, struct blk_info *out, struct blk_error *e)
{
    const struct luks *s = n->state;
    out->specific = luks_info(&s->h);
    out->encrypted = true;
    return out->specific ? 0 : -ENOMEM;
}

/* QEMU offers the option, and refuses it. */
static int refuse_detached(struct blk_opts *o, struct blk_error *e)
{
    bool detached = false;
    int err = blk_opts_get_bool(o, "detached-header", &detached, e);
    return err || !blk_opts_has(o, "detached-header") ? err :
        blk_err(e, EINVAL, "Parameter 'detached-header' is unexpected");
}

static int luks_measure(struct blk_loop *l, struct blk_node *src, struct blk_opts *o,
                        struct blk_measure *out, struct blk_error *e)
{
    struct luks_create c;
    uint64_t size = 0;
    int err = blk_opts_get_size(o, "size", &size, e);

    err = err ? err : refuse_detached(o, e);
    err = err ? err : luks_create_options(&c, o, "", e);
    if (!err) {
        size = src ? src->size : size;
        out->required = out->fully_allocated = luks_header_bytes(&c.h) + size;
    }
    return err;
}

static int luks_create(struct blk_loop *l, struct blk_node *file, struct blk_opts *o,
                       struct blk_error *e)
{
    struct luks_create c;
    uint64_t size = 0, end;
    enum blk_prealloc p = BLK_PREALLOC_OFF;
    const char *prealloc = blk_opts_get(o, "preallocation");
    int err = blk_opts_get_size(o, "size", &size, e);

    err = err ? err : refuse_detached(o, e);
    if (!err && prealloc && blk_parse_prealloc(prealloc, &p, NULL)) {
        err = blk_err(e, EINVAL, "invalid parameter value: %s", prealloc);
    }
    err = err ? err : luks_create_options(&c, o, "", e);
    if (err) {
        return err;
    }
    if (blk_add_overflow(size, luks_header_bytes(&c.h), &end) || end > INT64_MAX) {
        return blk_err(e, EFBIG, "The requested file size is too large");
    }
    struct luks_place at = { file, 0, luks_header_bytes(&c.h), false };
    /* QEMU takes "metadata", of which there is none to make. */
    err = blk_truncate(file, end, true, p == BLK_PREALLOC_METADATA ? BLK_PREALLOC_OFF : p, e);
    return err ? err : luks_create_write(&c, &at, NULL, e);
}

static int luks_amend_op(struct blk_node *n, struct blk_opts *o, const struct blk_amend *a,
                         struct blk_error *e)
{
    struct luks *s = n->state;
    return luks_amend(&s->place, &s->h, o, "", s->secret, a->force, e);
}

static const struct blk_option_desc create_opts[] = {
    { "size", BLK_OPT_SIZE, "Virtual disk size", NULL },
    { "key-secret", BLK_OPT_STRING, "ID of the secret that provides the keyslot passphrase",
      NULL },
    LUKS_CREATE_OPTS(""),
    { "detached-header", BLK_OPT_BOOL, "Create a detached LUKS header", NULL },
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

static const struct blk_option_desc amend_opts[] = {
    LUKS_AMEND_OPTS(""),
    { NULL, BLK_OPT_STRING, NULL, NULL },
};

static const char *const luks_naming[] = { "key-secret", NULL };

const struct blk_driver blk_luks = {
    .name = "luks",
    .naming = luks_naming,
    .create_opts = create_opts,
    .preallocates = true,
    .amend_opts = amend_opts,
    .probe = luks_probe,
    .open = luks_open_node,
    .close = luks_close,
    .submit = luks_submit,
    .status = luks_status,
    .truncate = luks_truncate,
    .info = luks_info_op,
    .measure = luks_measure,
    .create = luks_create,
    .amend = luks_amend_op,
};
