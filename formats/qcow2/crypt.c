/*
 * crypt.c - encrypted images.
 *
 * LUKS: the header lies in clusters of its own, which an extension names.  A
 * sector's IV is its offset where it is stored, so q->data becomes a node that
 * encrypts and decrypts on its way to the storage; nothing else of this format
 * knows.
 *
 * AES, the old method: the key is the password, a sector's IV its guest offset.
 * What is stored may be read and copied as it is; requests are taken here, one at a
 * time, and turned into such that never mix data with what is not encrypted.
 *
 * Compressed clusters are not encrypted by either: neither are QEMU's.
 *
 * Invariant: plaintext never reaches the storage of a normal cluster; space is
 * never taken for zeros because it was never written (refcount.c: fresh).
 */
#include "formats/luks.h"
#include "formats/qcow2/qcow2.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define AES_KEY 16u
#define REQUEST_MAX (4u << 20)          /* bytes encrypted at a time: bounds buffers */
#define EXTENSION_LEN 16u

struct qcow2_crypt {
    bool aes;
    struct crypto_sectors *sectors;     /* NULL: opened for metadata only */
    char *secret;                       /* id of the one it was opened with */
    struct luks_place place;
    struct luks_header luks;
    struct blk_node *node;              /* LUKS: q->data */
    struct co_mutex lock;               /* AES: one request at a time */
};

/* ---- LUKS: a node between guest clusters and their storage ------------------------------ */

static int luks_read(struct blk_req *req)
{
    const struct qcow2_crypt *c = req->node->state;
    int err = co_readv(req->node->file, req->offset, req->iov, req->iovcnt, req->length);
    return err ? err : co_sectors_decrypt(c->sectors, req->offset, req->iov, req->iovcnt, 0,
                                          req->length);
}

static int luks_write(struct blk_req *req)
{
    const struct qcow2_crypt *c = req->node->state;
    uint8_t *buf = blk_buf_alloc(req->length);
    int err = buf ? co_sectors_encrypt(c->sectors, req->offset, req->iov, req->iovcnt, 0,
                                       req->length, buf) : -ENOMEM;

    err = err ? err : co_write(req->node->file, req->offset, buf, req->length, req->flags);
    blk_buf_free(buf);
    return err;
}

static void luks_submit(struct blk_node *n, struct blk_req *req)
{
    if (req->op == BLK_READ) {
        blk_req_fiber(req, luks_read);
    } else if (req->op == BLK_WRITE) {
        blk_req_fiber(req, luks_write);
    } else {
        blk_forward(req, n->file, req->offset, NULL);
    }
}

static const struct blk_driver luks_between = {
    .name = "qcow2-luks",
    .filter = true,
    .submit = luks_submit,
};

static int between_make(struct qcow2 *q, struct qcow2_crypt *c)
{
    c->node = blk_between_new(q->data, &luks_between, c);
    if (!c->node) {
        return -ENOMEM;
    }
    c->node->can_zero = BLK_CAP_NONE;   /* zeros are data like any other */
    c->node->starts_as_zeros = false;
    c->node->limits.req_align = BLK_MAX(c->node->limits.req_align, CRYPTO_SECTOR);
    c->node->limits.max_transfer = REQUEST_MAX;
    q->data = c->node;
    return 0;
}

/* ---- AES: requests ------------------------------------------------------------------------- */

/* Decrypt what of [off, off+len) was read from normal clusters. */
static int aes_decrypt(struct qcow2 *q, uint64_t off, const struct iovec *iov, int cnt,
                       uint64_t len)
{
    int err = 0;
    for (uint64_t pos = 0; !err && pos < len;) {
        struct blk_status st = { 0 };
        err = qcow2_status(q->n, off + pos, len - pos, &st);
        if (!err && st.flags & BLK_ST_DATA && !(st.flags & BLK_ST_COMPRESSED)) {
            err = co_sectors_decrypt(q->crypt->sectors, off + pos, iov, cnt, pos, st.length);
        }
        pos += st.length;
    }
    return err;
}

static int aes_read(struct blk_req *req)
{
    struct qcow2 *q = req->node->state;
    int err = qcow2_read_fiber(req);
    return err ? err : aes_decrypt(q, req->offset, req->iov, req->iovcnt, req->length);
}

/* Guest bytes into buf, zeros past the end of the disk. */
static int aes_fill(struct qcow2 *q, uint64_t off, uint8_t *buf, uint64_t len)
{
    uint64_t have = off < q->n->size ? BLK_MIN(len, q->n->size - off) : 0;
    struct iovec iov = { buf, have };
    struct blk_req req = { .op = BLK_READ, .node = q->n, .offset = off, .length = have,
                           .iov = &iov, .iovcnt = 1 };
    memset(buf + have, 0, len - have);
    return have ? aes_read(&req) : 0;
}

/* Can part of the cluster be written as it is, the rest being encrypted already? */
static int is_encrypted(struct qcow2 *q, uint64_t cluster, bool *out)
{
    uint64_t len = BLK_MIN(q->cluster_size, q->n->size - cluster);
    struct blk_status st = { 0 };
    int err = qcow2_status(q->n, cluster, len, &st);
    /* All of it: copying what surrounds a write does not encrypt. */
    *out = st.flags & BLK_ST_DATA && !(st.flags & BLK_ST_COMPRESSED) && st.length == len;
    return err;
}

/* Whole clusters where they are not encrypted yet. */
static int aes_write(struct blk_req *req)
{
    struct qcow2 *q = req->node->state;
    uint64_t end = req->offset + req->length, from = req->offset, to = end;
    uint64_t first = blk_align_down(from, q->cluster_size), last = blk_align_up(end, q->cluster_size);
    bool ready = true;
    int err = first < from ? is_encrypted(q, first, &ready) : 0;

    from = ready ? from : first;
    ready = true;
    err = err || last == end ? err : is_encrypted(q, last - q->cluster_size, &ready);
    to = ready ? to : last;
    if (err) {
        return err;
    }
    uint8_t *buf = blk_buf_alloc(to - from);
    struct iovec iov = { buf, to - from };
    struct blk_req whole = { .op = BLK_WRITE, .node = req->node, .offset = from,
                             .length = to - from, .iov = &iov, .iovcnt = 1, .flags = req->flags };
    err = buf ? aes_fill(q, from, buf, req->offset - from) : -ENOMEM;
    err = err ? err : aes_fill(q, end, buf + (end - from), to - end);
    if (!err) {
        blk_iov_to_buf(req->iov, req->iovcnt, 0, buf + (req->offset - from), req->length);
        err = crypto_sectors_crypt(q->crypt->sectors, from, buf, to - from, true);
    }
    err = err ? err : qcow2_write_plain(&whole);
    blk_buf_free(buf);
    return err;
}

int qcow2_aes_fiber(struct blk_req *req)
{
    struct qcow2 *q = req->node->state;
    int err;

    if (!q->crypt->sectors) {
        return -EIO;                    /* opened without the key */
    }
    co_lock(&q->crypt->lock);
    switch (req->op) {
    case BLK_READ:
        err = aes_read(req);
        break;
    case BLK_WRITE:
        err = req->flags & BLK_REQ_COMPRESSED ? qcow2_write_compressed(req) : aes_write(req);
        break;
    case BLK_WRITE_ZEROES:
        err = qcow2_zero_fiber(req);
        break;
    default:
        err = qcow2_discard_fiber(req);
        break;
    }
    co_unlock(&q->crypt->lock);
    return err;
}

bool qcow2_crypt_own(const struct qcow2 *q)
{
    return !q->crypt->sectors || q->crypt->aes;
}

bool qcow2_crypt_submit(struct qcow2 *q, struct blk_req *req)
{
    if (req->op == BLK_FLUSH || !qcow2_crypt_own(q)) {
        return false;
    }
    blk_req_fiber(req, qcow2_aes_fiber);
    return true;
}

/* ---- opening --------------------------------------------------------------------------------- */

static int find_place(struct qcow2 *q, struct qcow2_crypt *c, struct blk_error *e)
{
    const struct qcow2_ext *x = q->exts;
    uint64_t end;

    while (x && x->magic != QCOW2_EXT_CRYPTO) {
        x = x->next;
    }
    if (x && q->h.crypt_method != QCOW2_CRYPT_LUKS) {
        return blk_err(e, EINVAL, "CRYPTO header extension only expected with LUKS encryption "
                       "method");
    }
    if (q->h.crypt_method != QCOW2_CRYPT_LUKS) {
        return 0;
    }
    if (!x) {
        return blk_err(e, EINVAL, "Missing CRYPTO header for crypt method %u", q->h.crypt_method);
    }
    if (x->len != EXTENSION_LEN) {
        return blk_err(e, EINVAL, "CRYPTO header extension size %u, but expected size %u", x->len,
                       EXTENSION_LEN);
    }
    c->place = (struct luks_place){ q->file, be64(x->data), be64(x->data + 8), false };
    if (c->place.offset & (q->cluster_size - 1)) {
        return blk_err(e, EINVAL, "Encryption header offset '%llu' is not a multiple of cluster "
                       "size '%u'", (unsigned long long)c->place.offset, q->cluster_size);
    }
    if (c->place.offset < q->cluster_size || blk_add_overflow(c->place.offset, c->place.len, &end) ||
        c->place.offset >= q->file->size || c->place.len > QCOW2_MAX_CRYPTO_BYTES) {
        return blk_err(e, EINVAL, "Encryption header of %llu bytes at %#llx is not inside the image",
                       (unsigned long long)c->place.len, (unsigned long long)c->place.offset);
    }
    return luks_header_read(&c->place, &c->luks, e);
}

static int open_aes(struct qcow2_crypt *c, const char *secret, struct blk_error *e)
{
    struct crypto_how how = { crypto_alg_find("aes-128"), CRYPTO_CBC, CRYPTO_PLAIN64, NULL };
    uint8_t key[AES_KEY] = { 0 };
    const char *password;
    int err;

    if (!secret) {
        return blk_err(e, EINVAL, "Parameter 'encrypt.key-secret' is required for cipher");
    }
    if (!how.alg) {
        return blk_err(e, ENOTSUP, "Encryption is not supported: built without libgcrypt");
    }
    err = blk_secret_get_text(secret, &password, e);
    if (!err) {
        memcpy(key, password, strnlen(password, AES_KEY));
        err = crypto_sectors_new(&how, key, &c->sectors, e);
    }
    crypto_wipe(key, sizeof(key));
    return err;
}

/* "encrypt.format", which only confirms, and "encrypt.key-secret", malloc'd. */
static int take_options(const struct qcow2 *q, struct blk_opts *o, char **secret,
                        struct blk_error *e)
{
    const char *have = q->h.crypt_method == QCOW2_CRYPT_AES ? "aes" : "luks";
    struct blk_opts *eo = blk_opts_take(o, "encrypt.");
    const char *format = blk_opts_get(eo, "format"), *id = blk_opts_get(eo, "key-secret");
    const char *unknown = blk_opts_unused(eo);
    int err = 0;

    if (format && !q->h.crypt_method) {
        err = blk_err(e, EINVAL, "No encryption in image header, but options specified format "
                      "'%s'", format);
    } else if (format && strcmp(format, have)) {
        err = blk_err(e, EINVAL, "Header reported '%s' encryption format but options specify "
                      "'%s'", have, format);
    } else if (unknown && q->h.crypt_method) {
        err = blk_err(e, EINVAL, "Parameter '%s' is unexpected", unknown);
    } else if (id && !(*secret = strdup(id))) {
        err = blk_err(e, ENOMEM, "Cannot allocate memory");
    }
    blk_opts_free(eo);
    return err;
}

int qcow2_crypt_open(struct qcow2 *q, struct blk_opts *o, struct blk_error *e)
{
    struct qcow2_crypt *c = calloc(1, sizeof(*c));
    int err = c ? 0 : blk_err(e, ENOMEM, "Cannot allocate memory");

    err = err ? err : find_place(q, c, e);
    err = err ? err : take_options(q, o, &c->secret, e);
    if (err || !q->h.crypt_method) {
        free(c ? c->secret : NULL);
        free(c);
        return err;
    }
    q->crypt = c;
    c->aes = q->h.crypt_method == QCOW2_CRYPT_AES;
    if (q->n->oflags & BLK_O_NO_IO) {
        return 0;
    }
    if (c->aes) {
        err = open_aes(c, c->secret, e);
    } else {
        err = luks_open(&c->place, &c->luks, c->secret, "encrypt.", &c->sectors, e);
        err = err ? err : between_make(q, c);
    }
    if (!err) {
        q->n->limits.req_align = CRYPTO_SECTOR;
        q->n->limits.max_transfer = REQUEST_MAX;
    }
    return err;
}

void qcow2_crypt_free(struct qcow2 *q)
{
    struct qcow2_crypt *c = q->crypt;
    if (c) {
        blk_between_free(c->node);
        crypto_sectors_free(c->sectors);
        free(c->secret);
        crypto_wipe(c, sizeof(*c));
        free(c);
    }
}

/* ---- the rest of the image's life -------------------------------------------------------------- */

int qcow2_crypt_mark(struct qcow2 *q)
{
    const struct luks_place *at = q->crypt && !q->crypt->aes ? &q->crypt->place : NULL;
    return at ? qcow2_meta_add(q, at->offset, qcow2_clusters(q, at->len)) : 0;
}

void qcow2_crypt_info(struct qcow2 *q, json_t *specific)
{
    json_t *j = q->crypt->aes ? json_object() : luks_info(&q->crypt->luks);
    json_object_set_new(j, "format", json_string(q->crypt->aes ? "aes" : "luks"));
    json_object_set_new(specific, "encrypt", j);
}

int qcow2_crypt_amend(struct qcow2 *q, struct blk_opts *o, bool force, struct blk_error *e)
{
    struct qcow2_crypt *c = q->crypt;
    if (!c) {
        return blk_err(e, EINVAL, "Can't amend encryption options - encryption not present");
    }
    if (c->aes) {
        return blk_err(e, ENOTSUP, "Only LUKS encryption options can be amended");
    }
    return luks_amend(&c->place, &c->luks, o, "encrypt.", c->secret, force, e);
}

/* ---- creation --------------------------------------------------------------------------------- */

struct qcow2_crypt_create {
    struct luks_create luks;
};

/* encrypt.format or its alias; NULL in *out: no encryption. */
static int take_format(struct blk_opts *o, const char **out, struct blk_error *e)
{
    bool old = false, any = false;
    const char *key;
    int err = blk_opts_get_bool(o, "encryption", &old, e);

    *out = blk_opts_get(o, "encrypt.format");
    if (!err && *out && old) {
        return blk_err(e, EINVAL, "'encrypt.format' and its alias 'encryption' can't be used at "
                       "the same time");
    }
    for (size_t i = 0; blk_opts_at(o, i, &key, NULL); i++) {
        any |= !strncmp(key, "encrypt.", 8);
    }
    if (!err && old) {
        *out = "aes";
    } else if (!err && !*out && any) {
        err = blk_err(e, EINVAL, "Parameter 'encrypt.format' is missing");
    }
    return err;
}

/* The old method has a password and nothing else. */
static int check_aes(struct blk_opts *o, bool need_key, struct blk_error *e)
{
    const char *secret = blk_opts_get(o, "encrypt.key-secret"), *key;
    struct qcow2_crypt probe = { 0 };
    int err = 0;

    for (size_t i = 0; !err && blk_opts_at(o, i, &key, NULL); i++) {
        if (!strncmp(key, "encrypt.", 8) && strcmp(key, "encrypt.format") &&
            strcmp(key, "encrypt.key-secret")) {
            err = blk_err(e, EINVAL, "Parameter '%s' is unexpected", key);
        }
    }
    err = err || !need_key ? err : open_aes(&probe, secret, e);
    crypto_sectors_free(probe.sectors);
    return err;
}

int qcow2_crypt_create_options(struct blk_opts *o, bool need_key, uint32_t *method,
                               struct qcow2_crypt_create **out, struct blk_error *e)
{
    const char *format;
    int err = take_format(o, &format, e);

    *method = 0;
    *out = NULL;
    if (err || !format) {
        return err;
    }
    if (strcmp(format, "luks")) {       /* "aes", also called "qcow" */
        *method = QCOW2_CRYPT_AES;
        return check_aes(o, need_key, e);
    }
    *method = QCOW2_CRYPT_LUKS;
    *out = malloc(sizeof(**out));
    return *out ? luks_create_options(&(*out)->luks, o, "encrypt.", e)
                : blk_err(e, ENOMEM, "Cannot allocate memory");
}

uint64_t qcow2_crypt_create_bytes(const struct qcow2_crypt_create *c)
{
    return c ? luks_header_bytes(&c->luks.h) : 0;
}

int qcow2_crypt_create_write(struct qcow2_crypt_create *c, struct blk_node *file, uint64_t offset,
                             struct qcow2_ext **ext, struct blk_error *e)
{
    struct luks_place at = { file, offset, luks_header_bytes(&c->luks.h), false };
    struct qcow2_ext *x = calloc(1, sizeof(*x) + EXTENSION_LEN);

    *ext = x;
    if (!x) {
        return -ENOMEM;
    }
    x->magic = QCOW2_EXT_CRYPTO;
    x->len = EXTENSION_LEN;
    put_be64(x->data, at.offset);
    put_be64(x->data + 8, at.len);
    return luks_create_write(&c->luks, &at, NULL, e);
}
