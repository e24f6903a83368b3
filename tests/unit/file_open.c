/*
 * file_open.c (test) - opening, resizing and creating with the "file" driver, and its
 * locks: what is refused, in which words, and what is left untouched.
 */
#include "tests/unit/file_place.h"

/* ---- opening -------------------------------------------------------------------------------------- */

static void direct_io_takes_any_offset_and_length(void **state)
{
    static char buf[20000], back[20000];
    static const char *const engines[] = { "threads", "io_uring" };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(engines); i++) {
        struct place p;
        place_make(&p, false, engines[i]);
        place_open(&p, BLK_O_RDWR | BLK_O_DIRECT);
        assert_true(blk_node_limits(p.node)->req_align >= 512);
        for (size_t k = 0; k < sizeof(buf); k++)
            buf[k] = (char)(k * 31 + k / 255);
        assert_int_equal(do_write(&p, 0, buf, sizeof(buf)), 0);
        assert_int_equal(do_write(&p, 777, buf, 3333), 0);
        memmove(buf + 777, buf, 3333);
        assert_int_equal(do_read(&p, 13, back + 13, sizeof(back) - 13), 0);
        assert_memory_equal(buf + 13, back + 13, sizeof(buf) - 13);
        place_end(&p);
    }
}

static void refused_direct_io_is_said_in_qemus_words(void **state)
{
    struct place p;
    char want[400];

    place_make(&p, true, NULL);
    fault.direct_errno = EINVAL;
    assert_int_equal(place_open_opts(&p, BLK_O_DIRECT, ""), -EINVAL);
    snprintf(want, sizeof(want), "Could not open '%s': filesystem does not support O_DIRECT",
             p.path);
    assert_non_null(strstr(p.e.text, want));
    place_end(&p);
}

static void a75_strange_files_are_refused_at_once(void **state)
{
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    struct place p;
    char path[256];
    int s;

    place_make(&p, true, NULL);
    memcpy(path, p.path, sizeof(path));
    for (unsigned flags = 0; flags <= BLK_O_RDWR; flags += BLK_O_RDWR) {
        snprintf(p.path, sizeof(p.path), "%.190s/fifo", p.dir);
        assert_int_equal(mkfifo(p.path, 0600), 0);
        assert_int_equal(place_open_opts(&p, flags, ""), -EINVAL);
        assert_non_null(strstr(p.e.text, "to be a regular file"));
        unlink(p.path);
        snprintf(p.path, sizeof(p.path), "%.190s/sock", p.dir);
        snprintf(sa.sun_path, sizeof(sa.sun_path), "%.100s", p.path);
        s = socket(AF_UNIX, SOCK_STREAM, 0);
        assert_int_equal(bind(s, (struct sockaddr *)&sa, sizeof(sa)), 0);
        assert_int_equal(place_open_opts(&p, flags, ""), -EINVAL);
        assert_non_null(strstr(p.e.text, "to be a regular file"));
        __real_close(s);
        unlink(p.path);
        snprintf(p.path, sizeof(p.path), "/dev/zero");
        assert_int_equal(place_open_opts(&p, flags, ""), -EINVAL);
        assert_non_null(strstr(p.e.text, "to be a regular file"));
        snprintf(p.path, sizeof(p.path), "%.190s", p.dir);
        assert_int_equal(place_open_opts(&p, flags, ""), flags ? -EISDIR : -EINVAL);
    }
    memcpy(p.path, path, sizeof(path));
    place_end(&p);
}

static void read_only_open_changes_nothing(void **state)
{
    struct stat a, b;
    struct place p;
    char buf[4096] = "";

    place_make(&p, false, NULL);
    place_size(&p, 100000);
    assert_int_equal(stat(p.path, &a), 0);
    place_open(&p, 0);
    assert_int_equal(do_read(&p, 0, buf, sizeof(buf)), 0);
    assert_true(do_write(&p, 0, buf, sizeof(buf)) < 0);
    assert_true(do_zero(&p, 0, 512, 0) < 0);
    assert_int_equal(do_flush(&p), 0);
    assert_int_equal(place_close(&p), 0);
    assert_int_equal(fault.syncs, 0);
    assert_int_equal(stat(p.path, &b), 0);
    assert_int_equal(a.st_mtim.tv_sec, b.st_mtim.tv_sec);
    assert_int_equal(a.st_mtim.tv_nsec, b.st_mtim.tv_nsec);
    assert_int_equal(a.st_ctim.tv_nsec, b.st_ctim.tv_nsec);
    assert_int_equal(a.st_size, b.st_size);
    assert_int_equal(chmod(p.path, 0400), 0);
    place_open(&p, 0);
    place_end(&p);
}

static void writes_past_the_end_grow_the_file(void **state)
{
    for (int memory = 0; memory < 2; memory++) {
        static char buf[300];
        uint64_t len;
        struct place p;

        place_make(&p, memory, NULL);
        place_open(&p, BLK_O_RDWR);
        memset(buf, 3, sizeof(buf));
        assert_int_equal(do_write(&p, 1000, buf, sizeof(buf)), 0);
        assert_int_equal(blk_size(p.node), 1300);
        assert_int_equal(blk_storage_length(p.node, &len), 0);
        assert_int_equal(len, 1300);
        assert_int_equal(do_read(&p, 900, buf, 100), 0);
        assert_true(blk_is_zero(buf, 100));
        place_end(&p);
    }
}

/* ---- truncate and create ---------------------------------------------------------------------------- */

static void truncate_grows_shrinks_and_preallocates(void **state)
{
    for (int memory = 0; memory < 2; memory++) {
        struct place p;

        place_make(&p, memory, NULL);
        place_open(&p, BLK_O_RDWR | BLK_O_RESIZE);
        assert_int_equal(blk_truncate(p.node, 1 << 20, false, BLK_PREALLOC_OFF, &p.e), 0);
        assert_int_equal(blk_size(p.node), 1 << 20);
        assert_true(blocks_of(&p) < 65536);
        assert_int_equal(blk_truncate(p.node, 2 << 20, false, BLK_PREALLOC_FALLOC, &p.e), 0);
        assert_true(blocks_of(&p) >= 1 << 20);
        assert_int_equal(blk_truncate(p.node, 3 << 20, false, BLK_PREALLOC_FULL, &p.e), 0);
        assert_true(blocks_of(&p) >= 2 << 20);
        assert_int_equal(do_status(&p, 2 << 20, 1 << 20).flags & BLK_ST_DATA, BLK_ST_DATA);
        assert_int_equal(blk_truncate(p.node, 4096, true, BLK_PREALLOC_FALLOC, &p.e), -ENOTSUP);
        assert_non_null(strstr(p.e.text, "Cannot use preallocation for shrinking files"));
        assert_int_equal(blk_truncate(p.node, 4096, true, BLK_PREALLOC_OFF, NULL), 0);
        assert_int_equal(blk_size(p.node), 4096);
        place_end(&p);
    }
}

static void failed_preallocation_leaves_the_old_length(void **state)
{
    struct place p;
    uint64_t len;

    place_make(&p, true, NULL);
    place_size(&p, 5000);
    place_open(&p, BLK_O_RDWR | BLK_O_RESIZE);
    fault.prealloc_errno = ENOSPC;
    assert_int_equal(blk_truncate(p.node, 1 << 20, false, BLK_PREALLOC_FALLOC, &p.e), -ENOSPC);
    assert_non_null(strstr(p.e.text, "Could not preallocate new data: No space left on device"));
    assert_int_equal(blk_storage_length(p.node, &len), 0);
    assert_int_equal(len, 5000);
    place_end(&p);
}

static int create(struct place *p, const char *opts)
{
    struct blk_opts *o = blk_opts_new();
    int ret;

    blk_error_clear(&p->e);
    assert_int_equal(blk_opts_parse(o, opts, NULL, &p->e), 0);
    ret = blk_create(p->loop, "raw", p->path, o, &p->e);
    blk_opts_free(o);
    return ret;
}

static void create_empties_what_was_there(void **state)
{
    struct stat st;
    struct place p;
    char b[100] = "old";

    place_make(&p, true, NULL);
    place_open(&p, BLK_O_RDWR);
    assert_int_equal(do_write(&p, 0, b, sizeof(b)), 0);
    assert_int_equal(place_close(&p), 0);
    assert_int_equal(create(&p, "size=10M,preallocation=falloc"), 0);
    assert_int_equal(stat(p.path, &st), 0);
    assert_int_equal(st.st_size, 10 << 20);
    assert_true(blocks_of(&p) >= 10 << 20);
    place_open(&p, 0);
    assert_int_equal(do_read(&p, 0, b, sizeof(b)), 0);
    assert_true(blk_is_zero(b, sizeof(b)));
    assert_int_equal(place_close(&p), 0);
    assert_int_equal(create(&p, "size=1M,nocow=on,extent_size_hint=64k"), 0);
    assert_true(blocks_of(&p) < 65536);
    unlink(p.path);
    assert_int_equal(mkfifo(p.path, 0600), 0);
    assert_int_equal(create(&p, "size=1M"), -EINVAL);
    place_end(&p);
}

static void a132_create_through_a_symlink_writes_its_target(void **state)
{
    char target[300];
    struct stat st;
    struct place p;

    place_make(&p, true, NULL);
    snprintf(target, sizeof(target), "%.200s/target", p.dir);
    unlink(p.path);
    assert_int_equal(symlink(target, p.path), 0);
    assert_int_equal(create(&p, "size=1M"), 0);
    assert_int_equal(lstat(target, &st), 0);
    assert_true(S_ISREG(st.st_mode));
    assert_int_equal(lstat(p.path, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    unlink(target);
    place_end(&p);
}

/* ---- locks between nodes ------------------------------------------------------------------------------- */

static void second_user_is_refused_in_qemus_words(void **state)
{
    struct blk_node *first;
    struct place p;
    char hint[400];

    place_make(&p, true, NULL);
    place_open(&p, BLK_O_RDWR | BLK_O_NO_SHARE);
    first = p.node;
    assert_int_equal(place_open_opts(&p, BLK_O_RDWR | BLK_O_NO_SHARE, ""), -EAGAIN);
    assert_non_null(strstr(p.e.text, "Failed to get \"write\" lock"));
    snprintf(hint, sizeof(hint), "Is another process using the image [%s]?", p.path);
    assert_string_equal(p.e.hint, hint);
    assert_int_equal(place_open_opts(&p, BLK_O_NO_SHARE, ""), -EAGAIN);
    assert_non_null(strstr(p.e.text, "Failed to get shared \"write\" lock"));
    assert_int_equal(create(&p, "size=1M"), -EAGAIN);
    assert_int_equal(place_open_opts(&p, BLK_O_NO_SHARE | BLK_O_SHARE, ""), 0);
    assert_int_equal(place_close(&p), 0);
    assert_int_equal(place_open_opts(&p, BLK_O_RDWR | BLK_O_NO_SHARE, "locking=off"), 0);
    assert_int_equal(place_close(&p), 0);
    assert_true(place_open_opts(&p, 0, "locking=maybe") < 0);
    p.node = first;
    assert_int_equal(place_close(&p), 0);
    assert_int_equal(place_open_opts(&p, BLK_O_RDWR | BLK_O_NO_SHARE, ""), 0);
    place_end(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(direct_io_takes_any_offset_and_length),
        cmocka_unit_test(refused_direct_io_is_said_in_qemus_words),
        cmocka_unit_test(a75_strange_files_are_refused_at_once),
        cmocka_unit_test(read_only_open_changes_nothing),
        cmocka_unit_test(writes_past_the_end_grow_the_file),
        cmocka_unit_test(truncate_grows_shrinks_and_preallocates),
        cmocka_unit_test(failed_preallocation_leaves_the_old_length),
        cmocka_unit_test(create_empties_what_was_there),
        cmocka_unit_test(a132_create_through_a_symlink_writes_its_target),
        cmocka_unit_test(second_user_is_refused_in_qemus_words),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
