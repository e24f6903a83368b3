/*
 * probe.c - what the LUN is and can do: capacity, identity, cache, limits, provisioning;
 * and which of its blocks are mapped.
 *
 * Answers are read as bytes, each with its length checked: a target may send anything.
 * What is missing is taken for the safe case: a volatile cache, no provisioning.
 */
#include "protocols/iscsi/iscsi_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PROBE_BLOCK_MAX     65536u
#define PROBE_ANSWER        255     /* bytes asked for */
#define PROBE_READY_TRIES   40u
#define PROBE_EXTENTS       128

enum { VPD_SERIAL = 0x80, VPD_IDENTITY = 0x83, VPD_LIMITS = 0xb0, VPD_PROVISIONING = 0xb2 };

/* ---- questions ------------------------------------------------------------------ */

static struct scsi_task *ask_ready(struct iscsi_op *op, struct iscsi_context *ctx)
{
    return iscsi_testunitready_task(ctx, (int)op->session->lun->cfg.lun, iscsi_answered, op);
}

static struct scsi_task *ask_capacity16(struct iscsi_op *op, struct iscsi_context *ctx)
{
    return iscsi_readcapacity16_task(ctx, (int)op->session->lun->cfg.lun, iscsi_answered, op);
}

static struct scsi_task *ask_capacity10(struct iscsi_op *op, struct iscsi_context *ctx)
{
    return iscsi_readcapacity10_task(ctx, (int)op->session->lun->cfg.lun, 0, 0, iscsi_answered, op);
}

/* ask_arg: the page, or 0 for the standard answer. */
static struct scsi_task *ask_inquiry(struct iscsi_op *op, struct iscsi_context *ctx)
{
    return iscsi_inquiry_task(ctx, (int)op->session->lun->cfg.lun, op->ask_arg != 0,
                              (int)op->ask_arg, PROBE_ANSWER, iscsi_answered, op);
}

static struct scsi_task *ask_caching(struct iscsi_op *op, struct iscsi_context *ctx)
{
    return iscsi_modesense6_task(ctx, (int)op->session->lun->cfg.lun, 1,
                                 SCSI_MODESENSE_PC_CURRENT, SCSI_MODEPAGE_CACHING, 0,
                                 PROBE_ANSWER, iscsi_answered, op);
}

static struct scsi_task *ask_mapped(struct iscsi_op *op, struct iscsi_context *ctx)
{
    const struct iscsi_lun *lun = op->session->lun;

    return iscsi_get_lba_status_task(ctx, (int)lun->cfg.lun, op->offset / lun->block,
                                     8 + 16 * PROBE_EXTENTS, iscsi_answered, op);
}

/* The answer's bytes; at least min of them. s NULL: as any request. */
static int probe_ask(struct iscsi_lun *lun, struct iscsi_session *s, struct iscsi_op *op,
                     struct scsi_task **t, int min)
{
    op->kind = ISCSI_ASK;
    int ret = iscsi_op_run(lun, s, op, t);

    if (!ret && (*t)->datain.size < min) {
        scsi_free_scsi_task(*t);
        ret = -EPROTO;
    }
    return ret;
}

int iscsi_probe_ready(struct iscsi_lun *lun, struct iscsi_session *s)
{
    int ret = -EIO;

    for (unsigned i = 0; i < PROBE_READY_TRIES; i++) {
        struct iscsi_op op = { .ask = ask_ready };
        struct scsi_task *t;

        ret = probe_ask(lun, s, &op, &t, 0);
        if (!ret)
            scsi_free_scsi_task(t);
        if (ret != -EAGAIN && ret != -EBUSY)
            return ret == -ENOMEDIUM ? 0 : ret;
        if (ret == -EBUSY && lun->conflict_told)
            return 0;               /* reserved: the requests themselves will say so */
        if (ret == -EBUSY)
            co_sleep(BLK_NET_STEP_NS);
    }
    return ret;
}

int iscsi_probe_capacity(struct iscsi_lun *lun, struct iscsi_session *s, uint32_t *block,
                         uint64_t *blocks)
{
    struct iscsi_op op = { .ask = ask_capacity16 };
    struct scsi_task *t;
    uint64_t last;
    int ret = probe_ask(lun, s, &op, &t, 15);

    if (!ret) {
        last = be64(t->datain.data);
        *block = be32(t->datain.data + 8);
        lun->thin = t->datain.data[14] & 0x80;
        lun->zero_unmapped = t->datain.data[14] & 0x40;
    } else if (ret == -ENOTSUP) {
        op = (struct iscsi_op){ .ask = ask_capacity10 };
        ret = probe_ask(lun, s, &op, &t, 8);
        if (ret < 0)
            return ret;
        last = be32(t->datain.data);
        *block = be32(t->datain.data + 4);
    } else {
        return ret;
    }
    scsi_free_scsi_task(t);
    if (*block < 512 || *block > PROBE_BLOCK_MAX || *block & (*block - 1) ||
        last >= BLK_SIZE_MAX / *block)
        return -EPROTO;
    *blocks = last + 1;
    return 0;
}

static void probe_hex(const uint8_t *p, size_t n, char *buf, size_t len)
{
    n = BLK_MIN(n, (len - 1) / 2);
    for (size_t i = 0; i < n; i++)
        sprintf(buf + 2 * i, "%02x", p[i]);
    buf[2 * n] = 0;
}

/* The logical unit's first world-wide name on page 83h, else its serial number. */
int iscsi_probe_serial(struct iscsi_lun *lun, struct iscsi_session *s, char *buf, size_t len)
{
    struct iscsi_op op = { .ask = ask_inquiry, .ask_arg = VPD_IDENTITY };
    struct scsi_task *t;
    int ret = probe_ask(lun, s, &op, &t, 4);

    *buf = 0;
    if (!ret) {
        const uint8_t *d = t->datain.data;
        size_t end = BLK_MIN((size_t)t->datain.size, 4u + be16(d + 2));

        for (size_t at = 4; !*buf && at + 4 <= end && at + 4 + d[at + 3] <= end;
             at += 4u + d[at + 3])
            if (!(d[at + 1] & 0x30) && (d[at + 1] & 15) >= 2 && (d[at + 1] & 15) <= 3)
                probe_hex(d + at + 4, d[at + 3], buf, len);
        scsi_free_scsi_task(t);
    }
    if (*buf || (ret < 0 && ret != -ENOTSUP))
        return *buf ? 0 : ret;
    op = (struct iscsi_op){ .ask = ask_inquiry, .ask_arg = VPD_SERIAL };
    ret = probe_ask(lun, s, &op, &t, 4);
    if (ret < 0)
        return ret == -ENOTSUP ? 0 : ret;
    probe_hex(t->datain.data + 4, BLK_MIN((size_t)t->datain.size - 4, t->datain.data[3]), buf, len);
    scsi_free_scsi_task(t);
    return 0;
}

/* ---- properties ----------------------------------------------------------------- */

static int probe_cache(struct iscsi_lun *lun, struct iscsi_session *s)
{
    struct iscsi_op op = { .ask = ask_caching };
    struct scsi_task *t;
    int ret = probe_ask(lun, s, &op, &t, 4);

    lun->volatile_cache = true;
    if (ret < 0)
        return ret == -ENOTSUP || ret == -EPROTO ? 0 : ret;
    const uint8_t *d = t->datain.data;
    size_t page = 4u + d[3];
    lun->write_protected = d[2] & 0x80;
    lun->dpofua = d[2] & 0x10;
    if ((size_t)t->datain.size >= page + 3 && (d[page] & 0x3f) == SCSI_MODEPAGE_CACHING)
        lun->volatile_cache = d[page + 2] & 4;
    scsi_free_scsi_task(t);
    return 0;
}

static int probe_limits(struct iscsi_lun *lun, struct iscsi_session *s)
{
    struct iscsi_op op = { .ask = ask_inquiry, .ask_arg = VPD_LIMITS };
    struct scsi_task *t;
    int ret = probe_ask(lun, s, &op, &t, 16);

    if (ret < 0)
        return ret == -ENOTSUP || ret == -EPROTO ? 0 : ret;
    const uint8_t *d = t->datain.data;
    if (d[1] == VPD_LIMITS) {
        lun->max_transfer = be32(d + 8);
        lun->opt_transfer = be32(d + 12);
        lun->max_unmap = t->datain.size >= 24 ? be32(d + 20) : 0;
        lun->max_write_same = t->datain.size >= 44 ? be64(d + 36) : 0;
    }
    scsi_free_scsi_task(t);
    return 0;
}

static int probe_provisioning(struct iscsi_lun *lun, struct iscsi_session *s)
{
    struct iscsi_op op = { .ask = ask_inquiry, .ask_arg = VPD_PROVISIONING };
    struct scsi_task *t;
    int ret = lun->thin ? probe_ask(lun, s, &op, &t, 6) : -ENOTSUP;

    if (ret < 0)
        return ret == -ENOTSUP || ret == -EPROTO ? 0 : ret;
    const uint8_t *d = t->datain.data;
    if (d[1] == VPD_PROVISIONING) {
        lun->can_unmap = d[5] & 0x80;
        lun->can_ws_unmap = d[5] & 0x40;
    }
    scsi_free_scsi_task(t);
    return 0;
}

static int probe_disk(struct iscsi_lun *lun, struct iscsi_session *s, struct blk_error *e)
{
    struct iscsi_op op = { .ask = ask_inquiry };
    struct scsi_task *t;
    int ret = probe_ask(lun, s, &op, &t, 5);

    if (ret < 0)
        return blk_err_errno(e, -ret, "%s: the target does not tell what the LUN is",
                             lun->net.shown);
    unsigned what = t->datain.data[0];
    scsi_free_scsi_task(t);
    if (what >> 5)
        return blk_err(e, ENOENT, "%s: there is no LUN %u", lun->net.shown, lun->cfg.lun);
    if (what & 31)
        return blk_err(e, ENOTSUP, "%s: LUN %u is no disk (type %u)", lun->net.shown,
                       lun->cfg.lun, what & 31);
    return 0;
}

int iscsi_probe(struct iscsi_lun *lun, struct blk_error *e)
{
    struct iscsi_session *s = &lun->s[0];
    int ret = probe_disk(lun, s, e);

    if (ret < 0)
        return ret;
    ret = iscsi_probe_ready(lun, s);
    if (ret < 0)
        return blk_err_errno(e, -ret, "%s: the LUN is not ready", lun->net.shown);
    ret = iscsi_probe_capacity(lun, s, &lun->block, &lun->blocks);
    if (ret < 0)
        return blk_err_errno(e, -ret, "%s: the LUN's capacity is not usable", lun->net.shown);
    ret = iscsi_probe_serial(lun, s, lun->serial, sizeof(lun->serial));
    ret = ret ? ret : probe_cache(lun, s);
    ret = ret ? ret : probe_limits(lun, s);
    ret = ret ? ret : probe_provisioning(lun, s);
    return ret ? blk_err_errno(e, -ret, "%s: the LUN does not answer", lun->net.shown) : 0;
}

/* ---- status --------------------------------------------------------------------- */

/* Blocks from lba on that are alike, and whether they are mapped. 0: no answer. */
static uint64_t status_extent(const struct scsi_task *t, uint64_t lba, bool *mapped)
{
    const uint8_t *d = t->datain.data;
    size_t end = BLK_MIN((size_t)t->datain.size, 4ull + be32(d));
    uint64_t next = lba;

    for (size_t at = 8; at + 16 <= end; at += 16) {
        uint64_t start = be64(d + at), count = be32(d + at + 8);
        bool m = !(d[at + 12] & 15);

        if (next == lba && start < lba && count > lba - start) {
            count -= lba - start;   /* the extent may begin before what was asked */
            start = lba;
        }
        if (start != next || !count || (next != lba && m != *mapped))
            break;
        *mapped = m;
        next += count;
    }
    return next - lba;
}

int iscsi_status(struct blk_node *n, uint64_t off, uint64_t len, struct blk_status *st)
{
    struct iscsi_lun *lun = n->state;
    struct iscsi_op op = { .ask = ask_mapped, .offset = blk_align_down(off, lun->block) };
    struct scsi_task *t;
    uint64_t end = off + len;
    bool mapped = true;

    if (lun->thin && lun->zero_unmapped) {
        int ret = probe_ask(lun, NULL, &op, &t, 8);
        uint64_t blocks = ret ? 0 : status_extent(t, op.offset / lun->block, &mapped);

        if (!ret)
            scsi_free_scsi_task(t);
        if (ret == -ENOTSUP)
            lun->zero_unmapped = false;
        if (blocks && blocks < (end - op.offset) / lun->block)
            end = op.offset + blocks * lun->block;
        if (!blocks)
            mapped = true;
    }
    blk_status_at(st, n, off, end - off, mapped ? BLK_ST_DATA : BLK_ST_ZERO);
    return 0;
}
