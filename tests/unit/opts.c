/*
 * Options: lists, JSON, typed values in QEMU's words, hostile text.
 */
#include "block/block.h"

#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct blk_opts *o;
static struct blk_error e;

static int setup(void **state)
{
    o = blk_opts_new();
    blk_error_clear(&e);
    return 0;
}

static int teardown(void **state)
{
    blk_opts_free(o);
    return 0;
}

/* The list as "k=v;k=v;". */
static void holds(const char *want)
{
    char *got = NULL;
    size_t len;
    FILE *f = open_memstream(&got, &len);
    const char *k, *v;
    for (size_t i = 0; blk_opts_at(o, i, &k, &v); i++)
        fprintf(f, "%s=%s;", k, v);
    fclose(f);
    assert_string_equal(got, want);
    free(got);
}

static void parses(const char *text, const char *implied, const char *want)
{
    teardown(NULL);
    setup(NULL);
    int r = blk_opts_parse(o, text, implied, &e);
    if (r)
        fail_msg("'%s': %s", text, e.text);
    holds(want);
}

static void lists_parse_as_in_qemu(void **state)
{
    parses("", NULL, "");
    parses("a=1,b=2", NULL, "a=1;b=2;");
    parses("a=1,,2,b=,,", NULL, "a=1,2;b=,;");
    parses("a=1,a=2,b=3,a=4", NULL, "a=4;b=3;");
    parses("flag,x=1,other", NULL, "flag=on;x=1;other=on;");
    parses("raw,x=1", "driver", "driver=raw;x=1;");
    parses("a,,b,x=1", "id", "id=a,b;x=1;");
    parses("a=b=c", NULL, "a=b=c;");
    parses("a=1,", NULL, "a=1;");
    parses("nofoo", NULL, "foo=off;");
    parses("a=,b=2", NULL, "a=;b=2;");
    parses("a=,,,b=2", NULL, "a=,;b=2;");
}

static void objects_have_no_flags(void **state)
{
    static const char *const bad[][2] = {
        { "secret,flag", "Expected '=' after parameter 'flag'" },
        { "secret,1a=2", "Invalid parameter '1a'" }, { "secret,a..b=2", "Invalid parameter 'a..b'" },
        { "secret,a.=2", "Invalid parameter 'a.'" }, { "secret,=2", "Invalid parameter ''" },
        { "secret,a b=2", "Invalid parameter 'a b'" },
    };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        blk_error_clear(&e);
        assert_int_equal(blk_opts_parse_keyval(o, bad[i][0], "type", &e), -EINVAL);
        assert_string_equal(e.text, bad[i][1]);
    }
    assert_int_equal(blk_opts_parse_keyval(o, "secret,a.0.b-c_d=2", "type", &e), 0);
}

static void empty_names_are_refused(void **state)
{
    static const char *const bad[] = { "=3", ",a=1", "a,,b=3", "a=1,=2" };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        blk_error_clear(&e);
        assert_int_equal(blk_opts_parse(o, bad[i], NULL, &e), -EINVAL);
        assert_string_equal(e.text, "Invalid parameter ''");
    }
}

static void a_million_options_are_refused_fast(void **state)
{
    size_t n = 1000000;
    char *s = malloc(n * 2 + 1);
    for (size_t i = 0; i < n; i++)
        memcpy(s + i * 2, "a,", 3);
    assert_int_equal(blk_opts_parse(o, s, NULL, &e), -E2BIG);
    free(s);
}

static void edits_keep_order(void **state)
{
    blk_opts_set(o, "a", "1");
    blk_opts_setf(o, "b", "%d-%s", 2, "x");
    blk_opts_set(o, "c", "3");
    blk_opts_set(o, "a", "4");
    blk_opts_set(o, "b", blk_opts_get(o, "b"));     /* from itself */
    holds("a=4;b=2-x;c=3;");
    blk_opts_del(o, "b");
    blk_opts_del(o, "nothing");
    holds("a=4;c=3;");
    struct blk_opts *d = blk_opts_dup(o);
    blk_opts_set(o, "a", "5");
    assert_string_equal(blk_opts_get(d, "a"), "4");
    blk_opts_free(d);
    d = blk_opts_dup(NULL);
    assert_null(blk_opts_unused(d));
    blk_opts_free(d);
    blk_opts_free(NULL);
}

static void gets_mark_has_does_not(void **state)
{
    blk_opts_set(o, "a", "1");
    blk_opts_set(o, "b", "2");
    assert_true(blk_opts_has(o, "a"));
    assert_string_equal(blk_opts_unused(o), "a");
    assert_string_equal(blk_opts_get(o, "a"), "1");
    assert_string_equal(blk_opts_unused(o), "b");
    uint64_t v;
    assert_int_equal(blk_opts_get_u64(o, "b", &v, &e), 0);
    assert_null(blk_opts_unused(o));
    assert_null(blk_opts_get(o, "c"));
    blk_opts_set(o, "a", "again");
    assert_string_equal(blk_opts_unused(o), "a");
    struct blk_opts *d = blk_opts_dup(o);
    assert_string_equal(blk_opts_unused(d), "a");
    blk_opts_free(d);
}

static void take_moves_a_subtree(void **state)
{
    assert_int_equal(blk_opts_parse(o, "file.filename=a,x=1,file.locking=off,filed=2,y=3", NULL,
                                    &e), 0);
    struct blk_opts *d = blk_opts_take(o, "file.");
    holds("x=1;filed=2;y=3;");
    assert_string_equal(blk_opts_get(d, "filename"), "a");
    assert_string_equal(blk_opts_get(d, "locking"), "off");
    assert_null(blk_opts_unused(d));
    blk_opts_free(d);
}

static void json_flattens(void **state)
{
    assert_int_equal(blk_opts_parse_json(o,
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a,b\"},"
        "\"n\":-5,\"f\":0.5,\"t\":true,\"u\":false,\"backing\":null,"
        "\"list\":[\"x\",{\"y\":[1,2]}],\"d.o\":\"t\"}", &e), 0);
    holds("driver=qcow2;file.driver=file;file.filename=a,b;n=-5;f=0.5;t=on;u=off;backing=;"
          "list.0=x;list.1.y.0=1;list.1.y.1=2;d.o=t;");
    assert_int_equal(blk_opts_parse_json(o, "{\"driver\":\"raw\"}", &e), 0);
    assert_string_equal(blk_opts_get(o, "driver"), "raw");
    assert_int_equal(blk_opts_parse_json(o, "{}", &e), 0);
}

static void json_fails(const char *json, int err, const char *words)
{
    blk_error_clear(&e);
    assert_int_equal(blk_opts_parse_json(o, json, &e), -err);
    if (!strstr(e.text, words))
        fail_msg("'%.60s': %s", json, e.text);
}

static void bad_json_is_refused(void **state)
{
    json_fails("json:{", EINVAL, "Could not parse the JSON options: JSON parse error, ");
    json_fails("", EINVAL, "JSON parse error");
    json_fails("json:[1]", EINVAL, "Invalid JSON object given");
    json_fails("json:\"x\"", EINVAL, "Invalid JSON object given");
    json_fails("{\"a\":1,\"a\":2}", EINVAL, "duplicate");
    json_fails("{\"a\":1} x", EINVAL, "JSON parse error");
    json_fails("{\"a\":\"b\\u0000c\"}", EINVAL, "JSON parse error");
    json_fails("{\"a\\u0000b\":1}", EINVAL, "JSON parse error");
    json_fails("{\"a\":\"\xff\xfe\"}", EINVAL, "JSON parse error");
    json_fails("{\"a\":99999999999999999999}", EINVAL, "JSON parse error");
    json_fails("{\"\":1}", EINVAL, "Invalid parameter ''");
    json_fails("{\"a\":{}}", EINVAL, "JSON option 'a' is empty");
    json_fails("{\"a\":[]}", EINVAL, "JSON option 'a' is empty");
}

static void json_bombs_are_bounded(void **state)
{
    size_t len = BLK_JSON_MAX;
    char *s = malloc(2 * len + 64);
    /* deep */
    memset(s, '[', len - 1);
    s[len - 1] = 0;
    json_fails(s, E2BIG, "nested deeper");
    /* deep, but inside a string: not nesting */
    char *p = s + sprintf(s, "{\"a\":\"\\\"");
    memset(p, '[', 200);
    strcpy(p + 200, "\"}");
    assert_int_equal(blk_opts_parse_json(o, s, &e), 0);
    /* overlong */
    memset(s, ' ', len + 10);
    memcpy(s + len, "{}", 3);
    json_fails(s, E2BIG, "longer than");
    /* many members */
    p = s + sprintf(s, "{\"x\":[0");
    while (p < s + len - 100)
        p += sprintf(p, ",0");
    strcpy(p, "]}");
    json_fails(s, E2BIG, "JSON options");
    /* a long name over many leaves would multiply */
    p = s + sprintf(s, "{\"");
    memset(p, 'k', len / 2);
    sprintf(p + len / 2, "\":[1,2,3]}");
    json_fails(s, E2BIG, "name is longer");
    free(s);
}

static void size_is(const char *s, int want, uint64_t bytes)
{
    uint64_t v = 42;
    int r = blk_parse_size(s, &v);
    if (r != want || (!r && v != bytes))
        fail_msg("'%s': %d, %llu", s, r, (unsigned long long)v);
    if (r)
        assert_int_equal(v, 42);
}

static void sizes_as_qemu_reads_them(void **state)
{
    size_is("0", 0, 0);
    size_is("10G", 0, 10ull << 30);
    size_is("1k", 0, 1024);
    size_is("1K", 0, 1024);
    size_is("1000b", 0, 1000);
    size_is("7E", 0, 7ull << 60);
    size_is("16E", -ERANGE, 0);
    size_is("7.9E", 0, 9108079886394091136ull);
    size_is("0.123456789G", 0, 132560718);
    size_is("1.5G", 0, 3ull << 29);
    size_is("0.3M", 0, 314573);
    size_is("1.k", 0, 1024);
    size_is("1.", 0, 1);
    size_is("1.0", 0, 1);
    size_is("1.5", -EINVAL, 0);
    size_is(".5k", 0, 512);
    size_is(".", -EINVAL, 0);
    size_is("0x10k", -EINVAL, 0);
    size_is("0x10", 0, 16);
    size_is("0x", -EINVAL, 0);
    size_is("010", 0, 10);
    size_is(" +1k", 0, 1024);
    size_is("18446744073709551615", 0, UINT64_MAX);
    size_is("18446744073709551616", -ERANGE, 0);
    size_is("99999999999999999999999G", -ERANGE, 0);
    size_is("-1", -ERANGE, 0);
    size_is("-1k", -EINVAL, 0);
    size_is("+-1", -EINVAL, 0);
    size_is("", -EINVAL, 0);
    size_is("k", -EINVAL, 0);
    size_is("1kB", -EINVAL, 0);
    size_is("1Q", -EINVAL, 0);
    size_is("1 k", -EINVAL, 0);
    size_is("1e3", -EINVAL, 0);
    size_is("1,5k", -EINVAL, 0);
}

static void fails_with(int r, const char *text, const char *hint)
{
    assert_int_equal(r, -EINVAL);
    assert_string_equal(e.text, text);
    assert_string_equal(e.hint, hint);
    blk_error_clear(&e);
}

static void typed_errors_in_qemus_words(void **state)
{
    uint64_t v = 7;
    bool b = true;
    enum blk_prealloc p = BLK_PREALLOC_FULL;
    blk_opts_parse(o, "cluster_size=abc,big=99999999999999999999,bits=x,lazy=maybe,empty=", NULL, &e);
    fails_with(blk_opts_get_size(o, "cluster_size", &v, &e),
               "Parameter 'cluster_size' expects a non-negative number below 2^64",
               "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
               "and exabytes, respectively.");
    fails_with(blk_opts_get_size(o, "big", &v, &e),
               "Value '99999999999999999999' is out of range for parameter 'big'", "");
    fails_with(blk_opts_get_u64(o, "bits", &v, &e), "Parameter 'bits' expects a number", "");
    fails_with(blk_opts_get_u64(o, "empty", &v, &e), "Parameter 'empty' expects a number", "");
    fails_with(blk_opts_get_u64(o, "big", &v, &e),
               "Value '99999999999999999999' is too large for parameter 'big'", "");
    fails_with(blk_opts_get_bool(o, "lazy", &b, &e), "Parameter 'lazy' expects 'on' or 'off'", "");
    fails_with(blk_parse_prealloc("maybe", &p, &e),
               "Parameter 'preallocation' does not accept value 'maybe'", "");
    assert_int_equal(v, 7);
    assert_true(b);
    assert_int_equal(p, BLK_PREALLOC_FULL);
}

static void typed_gets(void **state)
{
    uint64_t v = 7;
    bool b = false;
    enum blk_prealloc p;
    blk_opts_parse(o, "s=2k,n=0x20,on=on,off=off,yes=yes,flag", NULL, &e);
    assert_int_equal(blk_opts_get_size(o, "absent", &v, &e), 0);
    assert_int_equal(v, 7);
    assert_int_equal(blk_opts_get_size(o, "s", &v, &e), 0);
    assert_int_equal(v, 2048);
    assert_int_equal(blk_opts_get_u64(o, "n", &v, &e), 0);
    assert_int_equal(v, 32);
    assert_int_equal(blk_opts_get_bool(o, "on", &b, &e), 0);
    assert_true(b);
    assert_int_equal(blk_opts_get_bool(o, "off", &b, &e), 0);
    assert_false(b);
    assert_int_equal(blk_opts_get_bool(o, "yes", &b, &e), 0);
    assert_true(b);
    b = false;
    assert_int_equal(blk_opts_get_bool(o, "flag", &b, &e), 0);
    assert_true(b);
    assert_int_equal(blk_parse_prealloc("falloc", &p, &e), 0);
    assert_int_equal(p, BLK_PREALLOC_FALLOC);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(lists_parse_as_in_qemu), T(objects_have_no_flags), T(empty_names_are_refused),
        T(a_million_options_are_refused_fast), T(edits_keep_order), T(gets_mark_has_does_not),
        T(take_moves_a_subtree), T(json_flattens), T(bad_json_is_refused),
        T(json_bombs_are_bounded), T(sizes_as_qemu_reads_them), T(typed_errors_in_qemus_words),
        T(typed_gets),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
