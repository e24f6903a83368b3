/*
 * file.c (test) - requests to the "file" driver, with both engines, on a memory file
 * system and on the one TMPDIR is on.
 */
#include "tests/unit/file_place.h"

/* ---- many requests at once against a model --------------------------------------------- */

#define MODEL_SLOTS 32
#define MODEL_SLOT (192u * 1024)
#define MODEL_OPS 3000

struct model {
    struct place *p;
    struct slot {
        struct model *m;
        struct blk_req req;
        struct iovec iov[3];
        uint8_t *buf;
        bool busy;
    } slot[MODEL_SLOTS];
    uint8_t *content;
    unsigned busy, todo, rng;
    bool direct;
};

static unsigned model_random(struct model *m)
{
    m->rng = m->rng * 1103515245u + 12345u;
    return m->rng >> 8;
}

static void model_next(struct slot *s);

static void model_done(struct blk_req *req)
{
    struct slot *s = req->arg;
    struct model *m = s->m;

    assert_int_equal(req->result, 0);
    if (req->op == BLK_READ)
        assert_memory_equal(s->buf, m->content + req->offset, req->length);
    m->busy--;
    model_next(s);
}

/* Each slot has its own part of the file, so that order between slots is free. */
static void model_next(struct slot *s)
{
    static const enum blk_op ops[] = { BLK_READ, BLK_WRITE, BLK_READ, BLK_WRITE,
                                       BLK_WRITE_ZEROES, BLK_DISCARD, BLK_FLUSH };
    struct model *m = s->m;
    unsigned unit = m->direct ? 4096 : 1;
    uint64_t base = (uint64_t)(s - m->slot) * MODEL_SLOT;
    uint64_t off, len, cut;

    if (!m->todo)
        return;
    m->todo--;
    len = 1 + model_random(m) % (model_random(m) % 3 ? 9000 : MODEL_SLOT - 1);
    off = model_random(m) % (MODEL_SLOT - len);
    off -= off % unit;
    len = BLK_MAX(unit, len - len % unit);
    s->req = (struct blk_req){ .op = ops[model_random(m) % BLK_ARRAY_SIZE(ops)],
                               .offset = base + off, .length = len, .done = model_done, .arg = s };
    cut = len / 3 - len / 3 % unit;
    s->iov[0] = (struct iovec){ s->buf, cut };
    s->iov[1] = (struct iovec){ s->buf + cut, 0 };
    s->iov[2] = (struct iovec){ s->buf + cut, len - cut };
    s->req.iov = s->iov;
    s->req.iovcnt = 3;
    if (s->req.op == BLK_WRITE) {
        memset(s->buf, (int)model_random(m), len);
        s->buf[len / 2] = (uint8_t)model_random(m);
        memcpy(m->content + s->req.offset, s->buf, len);
    } else if (s->req.op == BLK_WRITE_ZEROES) {
        s->req.flags = model_random(m) % 2 ? BLK_REQ_MAY_UNMAP : 0;
        memset(m->content + s->req.offset, 0, len);
    } else if (s->req.op == BLK_DISCARD) {
        /* What it leaves is not defined by the interface: define it. */
        s->req.op = BLK_WRITE_ZEROES;
        s->req.flags = BLK_REQ_MAY_UNMAP;
        memset(m->content + s->req.offset, 0, len);
    } else if (s->req.op == BLK_FLUSH) {
        s->req.offset = s->req.length = 0;
        s->req.iovcnt = 0;
    }
    m->busy++;
    blk_submit(m->p->node, &s->req);
}

static void model_run(bool memory, const char *aio, unsigned flags)
{
    struct place p;
    struct model *m = calloc(1, sizeof(*m));
    uint64_t size = (uint64_t)MODEL_SLOTS * MODEL_SLOT;
    uint8_t *back = blk_buf_alloc(size);

    place_make(&p, memory, aio);
    place_size(&p, size);
    place_open(&p, BLK_O_RDWR | flags);
    m->p = &p;
    m->todo = MODEL_OPS;
    m->rng = 42;
    m->direct = flags & BLK_O_DIRECT;
    m->content = calloc(1, size);
    assert_non_null(m->content);
    for (int i = 0; i < MODEL_SLOTS; i++) {
        m->slot[i].m = m;
        m->slot[i].buf = blk_buf_alloc(MODEL_SLOT);
        model_next(&m->slot[i]);
    }
    while (m->busy)
        blk_loop_turn(p.loop, true);
    assert_int_equal(do_read(&p, 0, back, size), 0);
    assert_memory_equal(back, m->content, size);
    for (int i = 0; i < MODEL_SLOTS; i++)
        blk_buf_free(m->slot[i].buf);
    free(m->content);
    blk_buf_free(back);
    free(m);
    place_end(&p);
}

static void parallel_requests_agree_with_a_model_memory(void **state)
{
    model_run(true, "threads", 0);
    model_run(true, "io_uring", 0);
}

static void parallel_requests_agree_with_a_model_disk(void **state)
{
    model_run(false, "threads", 0);
    model_run(false, "io_uring", 0);
    model_run(false, NULL, 0);
}

static void parallel_requests_agree_with_a_model_direct(void **state)
{
    model_run(false, "threads", BLK_O_DIRECT);
    model_run(false, "io_uring", BLK_O_DIRECT);
}

/* ---- counts that come short --------------------------------------------------------------- */

static void short_counts_are_continued(void **state)
{
    static char out[200000], in[200000];

    for (int memory = 0; memory < 2; memory++) {
        struct place p;
        place_make(&p, memory, "threads");
        place_open(&p, BLK_O_RDWR);
        for (size_t i = 0; i < sizeof(out); i++)
            out[i] = (char)(i * 7 + i / 251);
        fault.short_by = 4096 + 17;
        fault.eintr = 5;
        assert_int_equal(do_write(&p, 100, out, sizeof(out)), 0);
        assert_int_equal(do_write(&p, 100, out, 9000), 0);      /* the inline way */
        memset(in, 0, sizeof(in));
        assert_int_equal(do_read(&p, 100, in, sizeof(in)), 0);
        assert_memory_equal(in, out, sizeof(in));
        memset(in, 0, sizeof(in));
        assert_int_equal(do_read(&p, 100, in, 9000), 0);
        assert_memory_equal(in, out, 9000);
        place_end(&p);
    }
}

/* A write that crosses the file size limit is cut short by the kernel, whichever way
 * it came; what is left then fails, and with the kernel's own word for it. */
static void cut_write_reports_what_stopped_it(void **state)
{
    static const char *const engines[] = { "threads", "io_uring" };
    static char buf[1 << 20];
    struct rlimit old, lim;
    struct stat st;

    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(engines); i++) {
        struct place p;
        place_make(&p, false, engines[i]);
        place_open(&p, BLK_O_RDWR);
        lim = old;
        lim.rlim_cur = 300000;
        setrlimit(RLIMIT_FSIZE, &lim);
        assert_int_equal(do_write(&p, 0, buf, sizeof(buf)), -EFBIG);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(stat(p.path, &st), 0);
        assert_int_equal(st.st_size, 300000);
        place_end(&p);
    }
    signal(SIGXFSZ, SIG_DFL);
}

static void reads_of_a_file_cut_by_others_give_zeros(void **state)
{
    static const char *const engines[] = { "threads", "io_uring" };
    static char buf[300000];

    for (size_t i = 0; i < 2 * BLK_ARRAY_SIZE(engines); i++) {
        struct place p;
        place_make(&p, i & 1, engines[i / 2]);
        place_size(&p, sizeof(buf));
        place_open(&p, BLK_O_RDWR);
        memset(buf, 5, sizeof(buf));
        assert_int_equal(do_write(&p, 0, buf, sizeof(buf)), 0);
        place_size(&p, 1000);
        assert_int_equal(do_read(&p, 0, buf, sizeof(buf)), 0);
        assert_int_equal(buf[999], 5);
        assert_true(blk_is_zero(buf + 1000, sizeof(buf) - 1000));
        memset(buf, 5, sizeof(buf));
        assert_int_equal(do_read(&p, 500, buf, 2000), 0);
        assert_true(blk_is_zero(buf + 500, 1500));
        place_end(&p);
    }
}

static void enospc_passes_as_it_is(void **state)
{
    static char buf[100000];

    for (int memory = 0; memory < 2; memory++) {
        struct place p;
        place_make(&p, memory, "threads");
        place_open(&p, BLK_O_RDWR);
        fault.write_errno = ENOSPC;
        assert_int_equal(do_write(&p, 0, buf, 512), -ENOSPC);
        assert_int_equal(do_write(&p, 0, buf, sizeof(buf)), -ENOSPC);
        fault.write_errno = 0;
        assert_int_equal(do_write(&p, 0, buf, sizeof(buf)), 0);
        place_end(&p);
    }
}

/* ---- flush ----------------------------------------------------------------------------------- */

static void failed_fdatasync_is_sticky(void **state)
{
    for (int memory = 0; memory < 2; memory++) {
        struct place p;
        char b[512] = "x";
        place_make(&p, memory, "threads");
        place_open(&p, BLK_O_RDWR);
        assert_int_equal(do_write(&p, 0, b, sizeof(b)), 0);
        assert_int_equal(do_flush(&p), 0);
        fault.sync_errno = EIO;
        assert_int_equal(do_flush(&p), -EIO);
        fault.sync_errno = 0;
        assert_int_equal(do_flush(&p), -EIO);
        assert_int_equal(do_write(&p, 0, b, sizeof(b)), 0);
        assert_int_equal(do_flush(&p), -EIO);
        place_close(&p);        /* reported by core or not: not this test's */
        place_end(&p);
    }
}

static void unsafe_cache_never_syncs(void **state)
{
    struct place p;
    char b[512] = "x";

    place_make(&p, false, "threads");
    place_open(&p, BLK_O_RDWR | BLK_O_NO_FLUSH);
    assert_int_equal(do_write(&p, 0, b, sizeof(b)), 0);
    assert_int_equal(do_flush(&p), 0);
    assert_int_equal(place_close(&p), 0);
    assert_int_equal(fault.syncs, 0);
    place_open(&p, BLK_O_RDWR);
    assert_int_equal(do_flush(&p), 0);
    assert_true(fault.syncs > 0);
    place_end(&p);
}

static void close_errors_are_reported(void **state)
{
    struct place p;

    place_make(&p, true, NULL);
    place_open(&p, BLK_O_RDWR);
    fault.close_errno = EDQUOT;
    assert_int_equal(place_close(&p), -EDQUOT);
    assert_non_null(strstr(p.e.text, p.path));
    place_end(&p);
}

/* ---- holes ------------------------------------------------------------------------------------ */

static void status_tells_holes_from_data(void **state)
{
    for (int memory = 0; memory < 2; memory++) {
        static char buf[65536];
        struct blk_status st;
        struct place p;

        memset(buf, 1, sizeof(buf));
        place_make(&p, memory, NULL);
        place_size(&p, 1 << 20);
        place_open(&p, BLK_O_RDWR | BLK_O_UNMAP);
        st = do_status(&p, 0, 1 << 20);
        assert_int_equal(st.flags & (BLK_ST_DATA | BLK_ST_ZERO), BLK_ST_ZERO);
        assert_int_equal(st.length, 1 << 20);
        assert_true(st.flags & BLK_ST_EOF);
        assert_int_equal(do_write(&p, 262144, buf, sizeof(buf)), 0);
        /* The cached hole is gone with the write. */
        st = do_status(&p, 0, 1 << 20);
        assert_int_equal(st.length, 262144);
        assert_true(st.flags & BLK_ST_ZERO);
        st = do_status(&p, 262144, (1 << 20) - 262144);
        assert_int_equal(st.flags & (BLK_ST_DATA | BLK_ST_OFFSET), BLK_ST_DATA | BLK_ST_OFFSET);
        assert_int_equal(st.length, sizeof(buf));
        assert_int_equal(st.host_offset, 262144);
        assert_ptr_equal(st.host, p.node);
        assert_int_equal(do_discard(&p, 262144, sizeof(buf)), 0);
        st = do_status(&p, 0, 1 << 20);
        assert_int_equal(st.length, 1 << 20);
        place_end(&p);
    }
}

static void walking_an_extent_asks_the_kernel_once(void **state)
{
    struct place p;

    place_make(&p, true, NULL);
    place_size(&p, 64 << 20);
    place_open(&p, 0);
    for (uint64_t off = 0; off < 64 << 20; off += 65536)
        assert_int_equal(do_status(&p, off, 65536).length, 65536);
    assert_int_equal(fault.seeks, 1);
    place_end(&p);
}

static void without_seek_data_all_is_data(void **state)
{
    struct blk_status st;
    struct place p;

    place_make(&p, true, NULL);
    place_size(&p, 1 << 20);
    fault.seek_errno = EINVAL;
    place_open(&p, 0);
    st = do_status(&p, 4096, 8192);
    assert_int_equal(st.flags & (BLK_ST_DATA | BLK_ST_ZERO), BLK_ST_DATA);
    assert_int_equal(st.length, 8192);
    place_end(&p);
}

/* ---- zeroes ------------------------------------------------------------------------------------- */

static void zeroes_keep_or_free_space_as_asked(void **state)
{
    static char buf[1 << 20], back[1 << 20];

    for (int memory = 0; memory < 2; memory++) {
        struct place p;
        place_make(&p, memory, NULL);
        place_open(&p, BLK_O_RDWR | BLK_O_UNMAP);
        memset(buf, 9, sizeof(buf));
        assert_int_equal(do_write(&p, 0, buf, sizeof(buf)), 0);
        assert_int_equal(do_zero(&p, 0, 1 << 19, 0), 0);
        assert_true(blocks_of(&p) >= 1 << 20);
        assert_int_equal(do_zero(&p, 0, 1 << 19, BLK_REQ_MAY_UNMAP), 0);
        assert_true(blocks_of(&p) < (1 << 20) - (1 << 18));
        memset(buf, 0, 1 << 19);
        assert_int_equal(do_read(&p, 0, back, sizeof(back)), 0);
        assert_memory_equal(buf, back, sizeof(buf));
        assert_int_equal(blk_size(p.node), 1 << 20);
        place_end(&p);
    }
}

static void zeroes_are_written_where_fallocate_fails(void **state)
{
    static char buf[1 << 18], back[1 << 18];

    for (int memory = 0; memory < 2; memory++) {
        struct place p;
        place_make(&p, memory, NULL);
        place_open(&p, BLK_O_RDWR);
        memset(buf, 9, sizeof(buf));
        assert_int_equal(do_write(&p, 0, buf, sizeof(buf)), 0);
        fault.fallocate_errno = EOPNOTSUPP;
        assert_int_equal(do_zero(&p, 1000, 100000, 0), 0);
        assert_int_equal(do_zero(&p, 150000, 5000, BLK_REQ_MAY_UNMAP), 0);
        memset(buf + 1000, 0, 100000);
        memset(buf + 150000, 0, 5000);
        assert_int_equal(do_read(&p, 0, back, sizeof(back)), 0);
        assert_memory_equal(buf, back, sizeof(buf));
        assert_int_equal(do_zero(&p, 0, 4096, BLK_REQ_FAST_ZERO), -ENOTSUP);
        place_end(&p);
    }
}

/* ---- engines ------------------------------------------------------------------------------------------- */

static unsigned open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;

    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void opening_many_files_makes_no_ring(void **state)
{
    struct blk_node *nodes[200];
    struct place p;
    unsigned before;
    char b[512];

    place_make(&p, true, "io_uring");
    place_size(&p, 4096);
    before = open_fds();
    for (size_t i = 0; i < BLK_ARRAY_SIZE(nodes); i++) {
        place_open(&p, 0);
        nodes[i] = p.node;
        assert_int_equal(do_read(&p, 0, b, sizeof(b)), 0);
    }
    assert_int_equal(open_fds(), before + BLK_ARRAY_SIZE(nodes));
    assert_int_equal(fault.rings, 0);
    for (size_t i = 0; i < BLK_ARRAY_SIZE(nodes); i++) {
        p.node = nodes[i];
        assert_int_equal(place_close(&p), 0);
    }
    place_end(&p);
}

#ifdef HAVE_URING
static void refused_io_uring_falls_back_to_threads(void **state)
{
    static char buf[1 << 20], back[1 << 20];
    struct place p;

    place_make(&p, false, "io_uring");
    fault.ring_errno = EPERM;
    place_open(&p, BLK_O_RDWR);
    memset(buf, 4, sizeof(buf));
    assert_int_equal(do_write(&p, 0, buf, sizeof(buf)), 0);
    assert_int_equal(do_flush(&p), 0);
    assert_int_equal(do_read(&p, 0, back, sizeof(back)), 0);
    assert_memory_equal(buf, back, sizeof(buf));
    assert_int_equal(fault.rings, 1);       /* asked once, not once a request */
    place_end(&p);
}

static void *adopted_body(void *arg)
{
    static char buf[1 << 20];
    struct place *p = arg;

    blk_loop_adopt(p->loop);
    memset(buf, 8, sizeof(buf));
    assert_int_equal(do_write(p, 0, buf, sizeof(buf)), 0);
    assert_int_equal(do_read(p, 0, buf, sizeof(buf)), 0);
    return NULL;
}

static void a_loop_may_change_its_thread(void **state)
{
    static char buf[1 << 20];
    struct place p;
    pthread_t t;

    place_make(&p, false, "io_uring");
    place_open(&p, BLK_O_RDWR);
    assert_int_equal(do_write(&p, 0, buf, sizeof(buf)), 0);
    assert_int_equal(fault.rings, 1);
    assert_int_equal(pthread_create(&t, NULL, adopted_body, &p), 0);
    pthread_join(t, NULL);
    assert_int_equal(fault.rings, 2);
    blk_loop_adopt(p.loop);
    assert_int_equal(do_read(&p, 0, buf, sizeof(buf)), 0);
    assert_int_equal(buf[1000], 8);
    place_end(&p);
}
#endif

static void refused_nowait_reads_go_to_the_engine(void **state)
{
    static const int errnos[] = { EOPNOTSUPP, EAGAIN };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(errnos); i++) {
        char b[4096];
        struct place p;
        place_make(&p, false, "threads");
        place_size(&p, 8192);
        fault.nowait_errno = errnos[i];
        place_open(&p, BLK_O_RDWR);
        memset(b, 6, sizeof(b));
        assert_int_equal(do_write(&p, 100, b, sizeof(b)), 0);
        memset(b, 0, sizeof(b));
        assert_int_equal(do_read(&p, 100, b, sizeof(b)), 0);
        assert_int_equal(b[4095], 6);
        place_end(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parallel_requests_agree_with_a_model_memory),
        cmocka_unit_test(parallel_requests_agree_with_a_model_disk),
        cmocka_unit_test(parallel_requests_agree_with_a_model_direct),
        cmocka_unit_test(short_counts_are_continued),
        cmocka_unit_test(cut_write_reports_what_stopped_it),
        cmocka_unit_test(reads_of_a_file_cut_by_others_give_zeros),
        cmocka_unit_test(enospc_passes_as_it_is),
        cmocka_unit_test(failed_fdatasync_is_sticky),
        cmocka_unit_test(unsafe_cache_never_syncs),
        cmocka_unit_test(close_errors_are_reported),
        cmocka_unit_test(status_tells_holes_from_data),
        cmocka_unit_test(walking_an_extent_asks_the_kernel_once),
        cmocka_unit_test(without_seek_data_all_is_data),
        cmocka_unit_test(zeroes_keep_or_free_space_as_asked),
        cmocka_unit_test(zeroes_are_written_where_fallocate_fails),
        cmocka_unit_test(opening_many_files_makes_no_ring),
#ifdef HAVE_URING
        cmocka_unit_test(refused_io_uring_falls_back_to_threads),
        cmocka_unit_test(a_loop_may_change_its_thread),
#endif
        cmocka_unit_test(refused_nowait_reads_go_to_the_engine),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
