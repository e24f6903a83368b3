/*
 * workload.c - a guest for the crash tests: random writes, zeroes, discards and
 * flushes on an image whose file is logged (formats/logwrites.c).
 *
 *   workload SEED OPS FORMAT IMAGE LOG [CLUSTER [DATA]]
 *
 * With CLUSTER (not 0), half of the writes are of whole clusters, compressed.  DATA is
 * the image's data file, logged with tag 1.
 *
 * Each 512-byte sector that operation k writes holds "k << 32 | sector number" in
 * each of its 64 words, so that a reader can tell whose data it sees.  What the
 * guest did goes into the same log, in the filter's record format:
 *   g  an operation was submitted: id k, flags kind (1 write, 2 zeroes, 3 discard,
 *      4 flush, 5 FUA write), offset, length
 *   c  it was acknowledged: id k, offset -result
 *   x  the image was closed without an error
 * Operations in flight (eight at most) do not overlap, so each sector has one order
 * of writes.  The exit status is 1 when anything failed.
 */
#include "block/block.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLOTS 8u
#define SECTOR 512u
#define MAX_LEN (192u << 10)

enum kind { WRITE = 1, ZEROES, DISCARD, FLUSH, FUA_WRITE };

struct record {
    uint32_t magic;
    uint8_t type, flags;
    uint16_t tag;
    uint64_t id, offset, length;
};

struct slot {
    struct guest *g;
    bool busy;
    enum kind kind;
    uint64_t id, offset, length;
    bool compressed;
    uint8_t *buf;
    struct iovec iov;
    struct blk_req req;
};

struct guest {
    struct blk_loop *loop;
    struct blk_node *node;
    int log;
    uint64_t rng, id, size, cluster;
    unsigned in_flight;
    bool failed;
    struct slot slots[SLOTS];
};

static uint64_t rnd_below(struct guest *g, uint64_t n)
{
    g->rng ^= g->rng << 13;
    g->rng ^= g->rng >> 7;
    g->rng ^= g->rng << 17;
    return (g->rng * 0x2545f4914f6cdd1dull >> 11) % n;
}

static void mark(struct guest *g, char type, unsigned kind, uint64_t id, uint64_t off, uint64_t len)
{
    struct record r = { 0x474f4c50u, (uint8_t)type, (uint8_t)kind, 0, id, off, len };

    if (write(g->log, &r, sizeof(r)) != sizeof(r)) {
        perror("log");
        exit(1);
    }
}

static void done(struct blk_req *req)
{
    struct slot *s = req->arg;

    mark(s->g, 'c', s->kind, s->id, (uint64_t)-(int64_t)req->result, 0);
    if (req->result < 0) {
        fprintf(stderr, "operation %" PRIu64 " (kind %d, %" PRIu64 "+%" PRIu64 "): %s\n", s->id,
                (int)s->kind, s->offset, s->length, strerror(-req->result));
        s->g->failed = true;
    }
    s->busy = false;
    s->g->in_flight--;
}

static bool overlaps(const struct guest *g, const struct slot *s)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        const struct slot *o = &g->slots[i];

        if (o != s && o->busy && o->kind != FLUSH && s->offset < o->offset + o->length &&
            o->offset < s->offset + s->length)
            return true;
    }
    return false;
}

static void pick(struct guest *g, struct slot *s)
{
    static const enum kind mix[] = {
        WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE, WRITE,
        ZEROES, ZEROES, DISCARD, DISCARD, DISCARD, FLUSH, FUA_WRITE,
    };

    s->kind = mix[rnd_below(g, BLK_ARRAY_SIZE(mix))];
    s->compressed = s->kind == WRITE && g->cluster && rnd_below(g, 2);
    do {
        uint64_t max = rnd_below(g, 5) ? 16384 : MAX_LEN;

        s->offset = rnd_below(g, g->size / SECTOR) * SECTOR;
        s->length = (1 + rnd_below(g, max / SECTOR)) * SECTOR;
        if (s->compressed) {
            s->offset -= s->offset % g->cluster;
            s->length += -s->length & (g->cluster - 1);
        }
        s->length = BLK_MIN(s->length, g->size - s->offset);
    } while (overlaps(g, s));
    if (s->kind == FLUSH)
        s->offset = s->length = 0;
}

static void stamp(struct slot *s)
{
    uint64_t *w = (uint64_t *)(void *)s->buf;

    for (uint64_t i = 0; i < s->length / 8; i++)
        w[i] = s->id << 32 | (s->offset + i * 8) / SECTOR;
}

static void start(struct guest *g, struct slot *s)
{
    static const enum blk_op op[] = {
        [WRITE] = BLK_WRITE, [ZEROES] = BLK_WRITE_ZEROES, [DISCARD] = BLK_DISCARD,
        [FLUSH] = BLK_FLUSH, [FUA_WRITE] = BLK_WRITE,
    };
    bool data;

    pick(g, s);
    s->id = ++g->id;
    data = op[s->kind] == BLK_WRITE;
    if (data)
        stamp(s);
    s->iov = (struct iovec){ s->buf, s->length };
    s->req = (struct blk_req){
        .op = op[s->kind], .offset = s->offset, .length = s->length,
        .flags = s->compressed ? BLK_REQ_COMPRESSED : s->kind == FUA_WRITE ? BLK_REQ_FUA
               : s->kind == ZEROES && rnd_below(g, 2) ? BLK_REQ_MAY_UNMAP : 0u,
        .iov = data ? &s->iov : NULL, .iovcnt = data, .done = done, .arg = s,
    };
    s->busy = true;
    g->in_flight++;
    mark(g, 'g', s->kind, s->id, s->offset, s->length);
    blk_submit(g->node, &s->req);
}

static int open_logged(struct guest *g, const char *format, const char *image, const char *log,
                       const char *data, struct blk_error *e)
{
    struct blk_opts *o = blk_opts_new();
    struct blk_open_args a = { .opts = o, .flags = BLK_O_RDWR | BLK_O_UNMAP };

    blk_opts_set(o, "driver", format);
    blk_opts_set(o, "file.driver", "logwrites");
    blk_opts_set(o, "file.log", log);
    blk_opts_set(o, "file.file.driver", "file");
    blk_opts_set(o, "file.file.filename", image);
    if (data) {
        blk_opts_set(o, "data-file.driver", "logwrites");
        blk_opts_set(o, "data-file.log", log);
        blk_opts_set(o, "data-file.tag", "1");
        blk_opts_set(o, "data-file.file.driver", "file");
        blk_opts_set(o, "data-file.file.filename", data);
    }
    int ret = blk_open(g->loop, &a, &g->node, e);
    blk_opts_free(o);
    return ret;
}

int main(int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct guest *g = calloc(1, sizeof(*g));

    blk_program = "workload";
    if (argc < 6 || argc > 8 || !g)
        return 2;
    g->rng = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15ull + 1;
    g->cluster = argc >= 7 ? strtoull(argv[6], NULL, 0) : 0;
    g->log = open(argv[5], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    g->loop = blk_loop_new(&e);
    if (g->log < 0 || !g->loop ||
        open_logged(g, argv[3], argv[4], argv[5], argc == 8 ? argv[7] : NULL, &e) < 0) {
        fprintf(stderr, "workload: %s\n", e.text);
        return 1;
    }
    g->size = blk_size(g->node);
    for (unsigned i = 0; i < SLOTS; i++) {
        g->slots[i].g = g;
        g->slots[i].buf = blk_buf_alloc(MAX_LEN);
    }
    for (uint64_t ops = strtoull(argv[2], NULL, 0); g->id < ops || g->in_flight;) {
        for (unsigned i = 0; i < SLOTS && g->id < ops; i++) {
            if (!g->slots[i].busy && rnd_below(g, 4))
                start(g, &g->slots[i]);
        }
        if (g->in_flight)
            blk_loop_turn(g->loop, true);
    }
    if (blk_close(g->node, &e) < 0) {
        fprintf(stderr, "workload: %s\n", e.text);
        g->failed = true;
    } else {
        mark(g, 'x', 0, 0, 0, 0);
    }
    for (unsigned i = 0; i < SLOTS; i++)
        blk_buf_free(g->slots[i].buf);
    blk_loop_free(g->loop);
    close(g->log);
    int ret = g->failed;
    free(g);
    return ret;
}
