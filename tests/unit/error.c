/*
 * Error texts: first one stays, prefixes, hints, truncation, reports.
 */
#include "block/block.h"

#include <errno.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

static void first_text_stays(void **state)
{
    struct blk_error e = BLK_ERROR_INIT;
    assert_int_equal(blk_err(&e, ENOENT, "no %s", "such"), -ENOENT);
    assert_int_equal(blk_err(&e, EIO, "later"), -EIO);
    assert_int_equal(e.err, ENOENT);
    assert_string_equal(e.text, "no such");
    blk_error_clear(&e);
    assert_int_equal(e.err, 0);
    assert_string_equal(e.text, "");
    assert_int_equal(blk_err(NULL, EIO, "nobody listens"), -EIO);
}

static void errno_text_is_appended(void **state)
{
    struct blk_error e = BLK_ERROR_INIT;
    assert_int_equal(blk_err_errno(&e, ENOSPC, "Could not write '%s'", "a"), -ENOSPC);
    assert_string_equal(e.text, "Could not write 'a': No space left on device");
}

static void prefix_goes_in_front(void **state)
{
    struct blk_error e = BLK_ERROR_INIT;
    blk_error_prefix(&e, "nothing to prefix: ");
    assert_string_equal(e.text, "");
    blk_err(&e, EINVAL, "bad");
    blk_error_prefix(&e, "inner: ");
    blk_error_prefix(&e, "outer %d: ", 1);
    assert_string_equal(e.text, "outer 1: inner: bad");
}

static void long_text_is_cut_visibly(void **state)
{
    struct blk_error e = BLK_ERROR_INIT;
    char big[9000];
    memset(big, 'x', sizeof(big) - 1);
    big[sizeof(big) - 1] = 0;
    blk_err(&e, EIO, "%s", big);
    assert_int_equal(strlen(e.text), sizeof(e.text) - 1);
    assert_string_equal(e.text + sizeof(e.text) - 4, "...");
    blk_error_prefix(&e, "front: ");
    assert_int_equal(strncmp(e.text, "front: xxx", 10), 0);
    assert_string_equal(e.text + sizeof(e.text) - 4, "...");
    blk_error_prefix(&e, "%s", big);
    assert_string_equal(e.text + strlen(e.text) - 3, "...");
}

static void cut_leaves_whole_utf8(void **state)
{
    struct blk_error e = BLK_ERROR_INIT;
    char big[9000];
    for (size_t i = 0; i < sizeof(big) - 3; i += 3)
        memcpy(big + i, "\xe2\x82\xac", 4);
    for (int shift = 0; shift < 3; shift++) {
        blk_error_clear(&e);
        blk_err(&e, EIO, "%.*s%s", shift, "ab", big);
        size_t len = strlen(e.text);
        assert_string_equal(e.text + len - 3, "...");
        assert_int_equal((len - 3 - (size_t)shift) % 3, 0);
    }
}

static void control_characters_cannot_pass(void **state)
{
    struct blk_error e = BLK_ERROR_INIT;
    blk_err(&e, EINVAL, "name '%s'", "a\nb\x1b[2Jc\x7f");
    assert_string_equal(e.text, "name 'a?b?[2Jc?'");
    blk_error_prefix(&e, "%s", "\r");
    assert_int_equal(e.text[0], '?');
}

static void hints_are_lines(void **state)
{
    struct blk_error e = BLK_ERROR_INIT;
    blk_error_hint(&e, "one\n");
    blk_error_hint(&e, "two %d", 2);
    assert_string_equal(e.hint, "one\ntwo 2");
    for (int i = 0; i < 100; i++)
        blk_error_hint(&e, "a longer line that fills the space");
    assert_true(strlen(e.hint) < sizeof(e.hint));
    blk_error_hint(NULL, "nobody");
}

static char got[2048];
static void keep_line(void *arg, const char *line)
{
    (*(int *)arg)++;
    strcpy(got, line);
}

static void reports_reach_the_listener(void **state)
{
    int calls = 0;
    blk_set_report(keep_line, &calls);
    blk_report("lost %s\n", "it");
    blk_set_report(NULL, NULL);
    assert_int_equal(calls, 1);
    assert_string_equal(got, "lost it?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_text_stays),
        cmocka_unit_test(errno_text_is_appended),
        cmocka_unit_test(prefix_goes_in_front),
        cmocka_unit_test(long_text_is_cut_visibly),
        cmocka_unit_test(cut_leaves_whole_utf8),
        cmocka_unit_test(control_characters_cannot_pass),
        cmocka_unit_test(hints_are_lines),
        cmocka_unit_test(reports_reach_the_listener),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
