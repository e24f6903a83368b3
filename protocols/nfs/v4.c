/*
 * v4.c - calls as NFSv4.0 compounds (RFC 7530).
 *
 * Each is PUTFH (or PUTROOTFH) and one or two operations.  READ, WRITE and SETATTR
 * carry the anonymous state id (all zeros): allowed without OPEN, checked against the
 * user's rights on each call, never stale.  A server in its grace period says so and
 * is asked again.
 *
 * libnfs 4.0.0 encodes every compound into 4 KiB.  A larger WRITE needs a buffer of its
 * own size, which only functions give that libnfs exports without declaring; where they
 * are missing, or look different, writes go in pieces that fit (v4_queue).
 */
#include "protocols/nfs/nfs.h"

#include <errno.h>
#include <nfsc/libnfs-raw-nfs4.h>
#include <stdlib.h>
#include <string.h>

#define V4_OPS 4
#define V4_ENCODE_BUF 4096u         /* libnfs's own, in front of what is asked for */
#define V4_SMALL_WRITE 3072u        /* fits with everything around it */

struct rpc_pdu;
extern struct rpc_pdu *rpc_allocate_pdu2(struct rpc_context *, int program, int version,
                                         int procedure, rpc_cb, void *, zdrproc_t decode,
                                         int decode_size, size_t hint) __attribute__((weak));
extern int rpc_queue_pdu(struct rpc_context *, struct rpc_pdu *) __attribute__((weak));
extern void rpc_free_pdu(struct rpc_context *, struct rpc_pdu *) __attribute__((weak));

/* How libnfs 4.0.0's rpc_pdu begins; checked before it is believed. */
struct v4_pdu_head { void *next; uint32_t xid; ZDR zdr; };
static bool v4_large = true;        /* any thread; only ever becomes false */

static int v4_errno(nfsstat4 status)
{
    switch (status) {
    case NFS4ERR_DELAY:
    case NFS4ERR_GRACE:
    case NFS4ERR_RESOURCE:
    case NFS4ERR_LOCKED:
        return NFS_LATER;
    case NFS4ERR_STALE:
    case NFS4ERR_BADHANDLE:
    case NFS4ERR_FHEXPIRED:
        return -EIO;
    case NFS4ERR_SYMLINK:
        return -ELOOP;
    case NFS4ERR_WRONGSEC:
        return -EACCES;
    case NFS4ERR_BADNAME:
    case NFS4ERR_BADCHAR:
        return -EINVAL;
    case NFS4ERR_NOTSUPP:
    case NFS4ERR_ATTRNOTSUPP:
        return -ENOTSUP;
    default:        /* the codes that both versions have are the same numbers */
        return nfs3_errno((int)status);
    }
}

/* Attributes asked for; replies give values in this order, where present. */
static uint32_t v4_mask[2] = {
    1u << FATTR4_TYPE | 1u << FATTR4_SIZE | 1u << FATTR4_FSID | 1u << FATTR4_FILEID |
        1u << FATTR4_MAXREAD | 1u << FATTR4_MAXWRITE,
    1u << (FATTR4_SPACE_USED - 32),
};

struct v4_args {
    nfs_argop4 ops[V4_OPS];
    u_int count;
    uint32_t size_mask;
    char size[8];
};

static nfs_argop4 *v4_op(struct v4_args *a, nfs_opnum4 op)
{
    nfs_argop4 *o = &a->ops[a->count++];
    memset(o, 0, sizeof(*o));
    o->argop = op;
    return o;
}

static void v4_getattr(struct v4_args *a)
{
    bitmap4 mask = { 2, v4_mask };
    v4_op(a, OP_GETATTR)->nfs_argop4_u.opgetattr.attr_request = mask;
}

static void v4_component(component4 *c, const char *name)
{
    c->utf8string_len = (u_int)strlen(name);
    c->utf8string_val = (char *)name;
}

static void v4_setsize(struct v4_args *a, uint64_t size)
{
    fattr4 *f = &v4_op(a, OP_SETATTR)->nfs_argop4_u.opsetattr.obj_attributes;
    a->size_mask = 1u << FATTR4_SIZE;
    put_be64(a->size, size);
    f->attrmask = (bitmap4){ 1, &a->size_mask };
    f->attr_vals.attrlist4_len = sizeof(a->size);
    f->attr_vals.attrlist4_val = a->size;
}

static void v4_data(struct v4_args *a, struct nfs_call *call)
{
    if (call->op == NFS_READ) {
        READ4args *r = &v4_op(a, OP_READ)->nfs_argop4_u.opread;
        r->offset = call->offset;
        r->count = call->count;
    } else if (call->op == NFS_WRITE) {
        WRITE4args *w = &v4_op(a, OP_WRITE)->nfs_argop4_u.opwrite;
        w->offset = call->offset;
        w->stable = call->stable ? FILE_SYNC4 : UNSTABLE4;
        w->data.data_len = v4_large ? call->count : BLK_MIN(call->count, V4_SMALL_WRITE);
        w->data.data_val = call->data;
    } else {
        v4_op(a, OP_COMMIT);        /* 0, 0: the whole file */
    }
}

static bool v4_pdu_is_known(const struct v4_pdu_head *p, uint32_t hint)
{
    return p->zdr.x_op == ZDR_ENCODE && p->zdr.buf && p->zdr.pos > 0 &&
           p->zdr.size == (int)(V4_ENCODE_BUF + hint) && p->zdr.pos < (int)V4_ENCODE_BUF / 2;
}

/* 1: not in this way. */
static int v4_queue_large(struct rpc_context *rpc, struct nfs_call *call, COMPOUND4args *args,
                          rpc_cb cb)
{
    if (!rpc_allocate_pdu2 || !rpc_queue_pdu || !rpc_free_pdu)
        return 1;
    struct rpc_pdu *pdu = rpc_allocate_pdu2(rpc, NFS4_PROGRAM, NFS_V4, NFSPROC4_COMPOUND, cb,
                                            call->sent, (zdrproc_t)zdr_COMPOUND4res,
                                            sizeof(COMPOUND4res), call->count);
    if (!pdu)
        return -ENOMEM;
    struct v4_pdu_head *head = (struct v4_pdu_head *)(void *)pdu;
    bool known = v4_pdu_is_known(head, call->count);
    if (known && zdr_COMPOUND4args(&head->zdr, args))
        return rpc_queue_pdu(rpc, pdu) ? -ENOMEM : 0;
    rpc_free_pdu(rpc, pdu);
    return 1;
}

static int v4_queue(struct rpc_context *rpc, struct nfs_call *call, COMPOUND4args *args, rpc_cb cb)
{
    WRITE4args *w = &args->argarray.argarray_val[args->argarray.argarray_len - 1]
                         .nfs_argop4_u.opwrite;
    if (call->op == NFS_WRITE && w->data.data_len > V4_SMALL_WRITE) {
        int r = v4_queue_large(rpc, call, args, cb);
        if (r <= 0)
            return r;
        v4_large = false;
        w->data.data_len = V4_SMALL_WRITE;      /* the rest follows, as after a short write */
    }
    return rpc_nfs4_compound_async(rpc, cb, args, call->sent) ? -ENOMEM : 0;
}

static int v4_send(struct rpc_context *rpc, struct nfs_call *call, rpc_cb cb)
{
    struct v4_args a = { .count = 0 };

    if (call->fh->len) {
        nfs_fh4 *fh = &v4_op(&a, OP_PUTFH)->nfs_argop4_u.opputfh.object;
        fh->nfs_fh4_len = call->fh->len;
        fh->nfs_fh4_val = (char *)call->fh->data;
    } else {
        v4_op(&a, OP_PUTROOTFH);
    }
    switch (call->op) {
    case NFS_LOOKUP:
        v4_component(&v4_op(&a, OP_LOOKUP)->nfs_argop4_u.oplookup.objname, call->name);
        v4_op(&a, OP_GETFH);
        v4_getattr(&a);
        break;
    case NFS_READLINK:
        v4_op(&a, OP_READLINK);
        break;
    case NFS_GETATTR:
    case NFS_FSINFO:
        v4_getattr(&a);
        break;
    case NFS_SETSIZE:
        v4_setsize(&a, call->offset);
        break;
    case NFS_UNLINK:
        v4_component(&v4_op(&a, OP_REMOVE)->nfs_argop4_u.opremove.target, call->name);
        break;
    case NFS_MAKE:
        return -ENOTSUP;            /* needs OPEN: nfs_make_v4() */
    case NFS_READ:
    case NFS_WRITE:
    case NFS_COMMIT:
        v4_data(&a, call);
        break;
    }
    COMPOUND4args args = { .argarray = { a.count, a.ops } };
    return v4_queue(rpc, call, &args, cb);
}

/* ---- replies ------------------------------------------------------------------------- */

struct v4_reader { const char *at; size_t left; };

static uint64_t v4_number(struct v4_reader *r, unsigned bytes, bool *ok)
{
    if (r->left < bytes) {
        *ok = false;
        return 0;
    }
    uint64_t v = bytes == 8 ? be64(r->at) : be32(r->at);
    r->at += bytes;
    r->left -= bytes;
    return v;
}

static bool v4_has(const bitmap4 *m, unsigned bit)
{
    return bit / 32 < m->bitmap4_len && m->bitmap4_val[bit / 32] & 1u << bit % 32;
}

/* FSINFO's numbers are 64 bits wide here. */
static uint32_t v4_clamp(uint64_t v)
{
    return (uint32_t)BLK_MIN(v, (uint64_t)UINT32_MAX);
}

static int v4_take_attrs(struct nfs_call *call, const fattr4 *f)
{
    struct v4_reader r = { f->attr_vals.attrlist4_val, f->attr_vals.attrlist4_len };
    const bitmap4 *m = &f->attrmask;
    struct nfs_attrs *a = &call->attrs;
    bool ok = true;

    for (unsigned w = 0; w < m->bitmap4_len; w++)
        if (m->bitmap4_val[w] & ~(w < 2 ? v4_mask[w] : 0))
            return -EPROTO;         /* more than was asked for: cannot be read */
    *a = (struct nfs_attrs){ .valid = v4_has(m, FATTR4_TYPE) && v4_has(m, FATTR4_SIZE) };
    if (v4_has(m, FATTR4_TYPE)) {
        uint64_t type = v4_number(&r, 4, &ok);
        a->regular = type == NF4REG;
        a->directory = type == NF4DIR;
        a->symlink = type == NF4LNK;
    }
    if (v4_has(m, FATTR4_SIZE))
        a->size = v4_number(&r, 8, &ok);
    if (v4_has(m, FATTR4_FSID)) {
        a->fsid[0] = v4_number(&r, 8, &ok);
        a->fsid[1] = v4_number(&r, 8, &ok);
    }
    if (v4_has(m, FATTR4_FILEID))
        a->fileid = v4_number(&r, 8, &ok);
    call->rtmax = v4_has(m, FATTR4_MAXREAD) ? v4_clamp(v4_number(&r, 8, &ok)) : 0;
    call->wtmax = v4_has(m, FATTR4_MAXWRITE) ? v4_clamp(v4_number(&r, 8, &ok)) : 0;
    a->used = v4_has(m, FATTR4_SPACE_USED) ? v4_number(&r, 8, &ok) : a->size;
    return ok ? 0 : -EPROTO;
}

static int v4_take_link(struct nfs_call *call, const READLINK4resok *ok)
{
    call->link = strndup(ok->link.utf8string_val, ok->link.utf8string_len);
    return call->link ? 0 : -ENOMEM;
}

static int v4_take_write(struct nfs_call *call, const WRITE4resok *ok)
{
    call->got = ok->count;
    call->committed = ok->committed == DATA_SYNC4 || ok->committed == FILE_SYNC4;
    memcpy(call->verf, ok->writeverf, sizeof(call->verf));
    return ok->count > call->count ? -EPROTO : 0;
}

static int v4_take_op(struct nfs_call *call, const nfs_resop4 *op)
{
    switch (op->resop) {
    case OP_GETFH: {
        const nfs_fh4 *fh = &op->nfs_resop4_u.opgetfh.GETFH4res_u.resok4.object;
        if (!fh->nfs_fh4_len || fh->nfs_fh4_len > NFS_FH_MAX)
            return -EPROTO;
        call->out_fh.len = fh->nfs_fh4_len;
        memcpy(call->out_fh.data, fh->nfs_fh4_val, fh->nfs_fh4_len);
        return 0;
    }
    case OP_GETATTR:
        return v4_take_attrs(call,
                             &op->nfs_resop4_u.opgetattr.GETATTR4res_u.resok4.obj_attributes);
    case OP_READLINK:
        return v4_take_link(call, &op->nfs_resop4_u.opreadlink.READLINK4res_u.resok4);
    case OP_READ: {
        const READ4resok *ok = &op->nfs_resop4_u.opread.READ4res_u.resok4;
        call->eof = ok->eof;
        return nfs_take_data(call, ok->data.data_val, ok->data.data_len);
    }
    case OP_WRITE:
        return v4_take_write(call, &op->nfs_resop4_u.opwrite.WRITE4res_u.resok4);
    case OP_COMMIT:
        memcpy(call->verf, op->nfs_resop4_u.opcommit.COMMIT4res_u.resok4.writeverf,
               sizeof(call->verf));
        return 0;
    default:
        return 0;
    }
}

/* How many operations v4_send() makes for it, and the last of them. */
static u_int v4_expect(const struct nfs_call *call, nfs_opnum4 *last)
{
    static const nfs_opnum4 ops[] = {
        [NFS_LOOKUP] = OP_GETATTR, [NFS_READLINK] = OP_READLINK, [NFS_GETATTR] = OP_GETATTR,
        [NFS_FSINFO] = OP_GETATTR, [NFS_SETSIZE] = OP_SETATTR, [NFS_UNLINK] = OP_REMOVE,
        [NFS_READ] = OP_READ, [NFS_WRITE] = OP_WRITE, [NFS_COMMIT] = OP_COMMIT,
    };
    *last = ops[call->op];
    return call->op == NFS_LOOKUP ? 4 : 2;
}

/* libnfs does not align what it decodes into. */
static nfs_resop4 v4_resop(const COMPOUND4res *res, u_int i)
{
    nfs_resop4 op;
    memcpy(&op, (const char *)res->resarray.resarray_val + i * sizeof(op), sizeof(op));
    return op;
}

static int v4_receive(struct nfs_call *call, void *data)
{
    const COMPOUND4res *res = data;
    nfs_opnum4 last;
    u_int count = v4_expect(call, &last);
    int r = v4_errno(res->status);

    if (r)
        return r;
    if (res->resarray.resarray_len != count || v4_resop(res, count - 1).resop != last)
        return -EPROTO;
    call->out_fh.len = 0;
    for (u_int i = 0; !r && i < count; i++) {
        nfs_resop4 op = v4_resop(res, i);
        r = v4_take_op(call, &op);
    }
    return r || call->op != NFS_LOOKUP || call->out_fh.len ? r : -EPROTO;
}

const struct nfs_version nfs_v4 = {
    .number = 4,
    .port = 2049,
    .send = v4_send,
    .receive = v4_receive,
};
