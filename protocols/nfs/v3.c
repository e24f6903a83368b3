/*
 * v3.c - calls as NFSv3 procedures (RFC 1813), and what its status codes mean here.
 */
#include "protocols/nfs/nfs.h"

#include <errno.h>
#include <nfsc/libnfs-raw-nfs.h>
#include <stdlib.h>
#include <string.h>

/* The low codes are errno numbers except where systems disagree. */
int nfs3_errno(int status)
{
    static const struct { int status, err; } map[] = {
        { NFS3_OK, 0 }, { NFS3ERR_PERM, -EPERM }, { NFS3ERR_NOENT, -ENOENT },
        { NFS3ERR_IO, -EIO }, { NFS3ERR_NXIO, -ENXIO }, { NFS3ERR_ACCES, -EACCES },
        { NFS3ERR_EXIST, -EEXIST }, { NFS3ERR_XDEV, -EXDEV }, { NFS3ERR_NODEV, -ENODEV },
        { NFS3ERR_NOTDIR, -ENOTDIR }, { NFS3ERR_ISDIR, -EISDIR }, { NFS3ERR_INVAL, -EINVAL },
        { NFS3ERR_FBIG, -EFBIG }, { NFS3ERR_NOSPC, -ENOSPC }, { NFS3ERR_ROFS, -EROFS },
        { NFS3ERR_MLINK, -EMLINK }, { NFS3ERR_NAMETOOLONG, -ENAMETOOLONG },
        { NFS3ERR_NOTEMPTY, -ENOTEMPTY }, { NFS3ERR_DQUOT, -EDQUOT },
        /* The file is gone: looking the name up again could find another one. */
        { NFS3ERR_STALE, -EIO }, { NFS3ERR_BADHANDLE, -EIO },
        { NFS3ERR_REMOTE, -EREMOTE }, { NFS3ERR_NOTSUPP, -ENOTSUP },
        { NFS3ERR_JUKEBOX, NFS_LATER },
    };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(map); i++)
        if (map[i].status == status)
            return map[i].err;
    return -EIO;
}

static nfs_fh3 v3_handle(const struct nfs_fhandle *fh)
{
    return (nfs_fh3){ { .data_len = fh->len, .data_val = (char *)fh->data } };
}

static int v3_take_handle(struct nfs_call *call, const nfs_fh3 *fh)
{
    if (!fh->data.data_len || fh->data.data_len > NFS3_FHSIZE)
        return -EPROTO;
    call->out_fh.len = fh->data.data_len;
    memcpy(call->out_fh.data, fh->data.data_val, fh->data.data_len);
    return 0;
}

static void v3_take_attrs(struct nfs_call *call, const fattr3 *a)
{
    call->attrs = (struct nfs_attrs){
        .valid = true, .regular = a->type == NF3REG, .directory = a->type == NF3DIR,
        .symlink = a->type == NF3LNK, .size = a->size, .used = a->used,
        .fsid = { a->fsid, 0 }, .fileid = a->fileid,
    };
}

static int v3_send_data(struct rpc_context *rpc, struct nfs_call *call, rpc_cb cb)
{
    if (call->op == NFS_READ) {
        READ3args a = { v3_handle(call->fh), call->offset, call->count };
        return rpc_nfs3_read_async(rpc, cb, &a, call->sent);
    }
    if (call->op == NFS_WRITE) {
        WRITE3args a = {
            .file = v3_handle(call->fh), .offset = call->offset, .count = call->count,
            .stable = call->stable ? FILE_SYNC : UNSTABLE,
            .data = { call->count, call->data },
        };
        return rpc_nfs3_write_async(rpc, cb, &a, call->sent);
    }
    /* 0, 0: the whole file */
    COMMIT3args a = { v3_handle(call->fh), 0, 0 };
    return rpc_nfs3_commit_async(rpc, cb, &a, call->sent);
}

static int v3_send_make(struct rpc_context *rpc, struct nfs_call *call, rpc_cb cb)
{
    CREATE3args a = { .where = { v3_handle(call->fh), (char *)call->name } };
    a.how.mode = UNCHECKED;     /* may be sent twice */
    a.how.createhow3_u.obj_attributes.mode.set_it = 1;
    a.how.createhow3_u.obj_attributes.mode.set_mode3_u.mode = 0644;
    return rpc_nfs3_create_async(rpc, cb, &a, call->sent);
}

static int v3_send_size(struct rpc_context *rpc, struct nfs_call *call, rpc_cb cb)
{
    SETATTR3args a = { .object = v3_handle(call->fh) };
    a.new_attributes.size.set_it = 1;
    a.new_attributes.size.set_size3_u.size = call->offset;
    return rpc_nfs3_setattr_async(rpc, cb, &a, call->sent);
}

static int v3_send(struct rpc_context *rpc, struct nfs_call *call, rpc_cb cb)
{
    nfs_fh3 fh = v3_handle(call->fh);
    int r = -1;

    switch (call->op) {
    case NFS_LOOKUP: {
        LOOKUP3args a = { { fh, (char *)call->name } };
        r = rpc_nfs3_lookup_async(rpc, cb, &a, call->sent);
        break;
    }
    case NFS_READLINK: {
        READLINK3args a = { fh };
        r = rpc_nfs3_readlink_async(rpc, cb, &a, call->sent);
        break;
    }
    case NFS_GETATTR: {
        GETATTR3args a = { fh };
        r = rpc_nfs3_getattr_async(rpc, cb, &a, call->sent);
        break;
    }
    case NFS_FSINFO: {
        FSINFO3args a = { fh };
        r = rpc_nfs3_fsinfo_async(rpc, cb, &a, call->sent);
        break;
    }
    case NFS_UNLINK: {
        REMOVE3args a = { { fh, (char *)call->name } };
        r = rpc_nfs3_remove_async(rpc, cb, &a, call->sent);
        break;
    }
    case NFS_SETSIZE:
        r = v3_send_size(rpc, call, cb);
        break;
    case NFS_MAKE:
        r = v3_send_make(rpc, call, cb);
        break;
    case NFS_READ:
    case NFS_WRITE:
    case NFS_COMMIT:
        r = v3_send_data(rpc, call, cb);
        break;
    }
    return r ? -ENOMEM : 0;
}

/* ---- replies: every one begins with its status ------------------------------------- */

static int v3_take_lookup(struct nfs_call *call, const LOOKUP3resok *ok)
{
    if (ok->obj_attributes.attributes_follow)
        v3_take_attrs(call, &ok->obj_attributes.post_op_attr_u.attributes);
    return v3_take_handle(call, &ok->object);
}

static int v3_take_make(struct nfs_call *call, const CREATE3resok *ok)
{
    if (ok->obj_attributes.attributes_follow)
        v3_take_attrs(call, &ok->obj_attributes.post_op_attr_u.attributes);
    call->out_fh.len = 0;       /* a server need not say; then it is looked up */
    return ok->obj.handle_follows ? v3_take_handle(call, &ok->obj.post_op_fh3_u.handle) : 0;
}

static int v3_take_write(struct nfs_call *call, const WRITE3resok *ok)
{
    call->got = ok->count;
    call->committed = ok->committed == DATA_SYNC || ok->committed == FILE_SYNC;
    memcpy(call->verf, ok->verf, sizeof(call->verf));
    return ok->count > call->count ? -EPROTO : 0;
}

static int v3_take_read(struct nfs_call *call, const READ3resok *ok)
{
    call->eof = ok->eof;
    return ok->count != ok->data.data_len ? -EPROTO :
           nfs_take_data(call, ok->data.data_val, ok->data.data_len);
}

static int v3_receive(struct nfs_call *call, void *data)
{
    int r = nfs3_errno((int)*(nfsstat3 *)data);
    if (r)
        return r;
    switch (call->op) {
    case NFS_LOOKUP:
        return v3_take_lookup(call, &((LOOKUP3res *)data)->LOOKUP3res_u.resok);
    case NFS_READLINK:
        call->link = strdup(((READLINK3res *)data)->READLINK3res_u.resok.data);
        return call->link ? 0 : -ENOMEM;
    case NFS_GETATTR:
        v3_take_attrs(call, &((GETATTR3res *)data)->GETATTR3res_u.resok.obj_attributes);
        return 0;
    case NFS_FSINFO:
        call->rtmax = ((FSINFO3res *)data)->FSINFO3res_u.resok.rtmax;
        call->wtmax = ((FSINFO3res *)data)->FSINFO3res_u.resok.wtmax;
        return 0;
    case NFS_MAKE:
        return v3_take_make(call, &((CREATE3res *)data)->CREATE3res_u.resok);
    case NFS_READ:
        return v3_take_read(call, &((READ3res *)data)->READ3res_u.resok);
    case NFS_WRITE:
        return v3_take_write(call, &((WRITE3res *)data)->WRITE3res_u.resok);
    case NFS_COMMIT:
        memcpy(call->verf, ((COMMIT3res *)data)->COMMIT3res_u.resok.verf, sizeof(call->verf));
        return 0;
    default:
        return 0;
    }
}

const struct nfs_version nfs_v3 = {
    .number = 3,
    .send = v3_send,
    .receive = v3_receive,
};
