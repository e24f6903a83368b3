/*
 * URLs and names: parts, hostile text, redaction, resolving.
 */
#include "block/driver.h"

#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct blk_url u;

static void same(const char *got, const char *want)
{
    if (!want) {
        assert_null(got);
        return;
    }
    assert_non_null(got);
    assert_string_equal(got, want);
}

static void parts(const char *s, const char *scheme, const char *transport, const char *user,
                  const char *pass, const char *host, unsigned port, const char *path,
                  const char *query)
{
    struct blk_error e = BLK_ERROR_INIT;
    int r = blk_url_parse(s, &u, &e);
    if (r)
        fail_msg("%s: %s", s, e.text);
    same(u.scheme, scheme);
    same(u.transport, transport);
    same(u.user, user);
    same(u.password, pass);
    same(u.host, host);
    assert_int_equal(u.port, port);
    same(u.path, path);
    same(u.query, query);
    blk_url_free(&u);
}

static void urls_come_apart(void **state)
{
    parts("nfs://host/export/a.img", "nfs", NULL, NULL, NULL, "host", 0, "/export/a.img", NULL);
    parts("nfs://host", "nfs", NULL, NULL, NULL, "host", 0, NULL, NULL);
    parts("nfs://h:2049/a?uid=1&gid=2", "nfs", NULL, NULL, NULL, "h", 2049, "/a", "uid=1&gid=2");
    parts("gluster+unix:///vol/a?socket=/run/g", "gluster", "unix", NULL, NULL, NULL, 0, "/vol/a",
          "socket=/run/g");
    parts("nbd+unix://?socket=/s", "nbd", "unix", NULL, NULL, NULL, 0, NULL, "socket=/s");
    parts("iscsi://user%pw@[::1]:3260/iqn.2020-01.a:b/1", "iscsi", NULL, "user", "pw", "::1",
          3260, "/iqn.2020-01.a:b/1", NULL);
    parts("iscsi://user%41bc@h/t/0", "iscsi", NULL, "user", "41bc", "h", 0, "/t/0", NULL);
    parts("http://us%40er:p%3ass@h/a%20b", "http", NULL, "us@er", "p:ss", "h", 0, "/a b", NULL);
    parts("http://a:b:c@h", "http", NULL, "a", "b:c", "h", 0, NULL, NULL);
    parts("http://a@b@h/x#y", "http", NULL, "a@b", NULL, "h", 0, "/x#y", NULL);
    parts("https://h/p@q:r?x=@", "https", NULL, NULL, NULL, "h", 0, "/p@q:r", "x=@");
}

static void query_becomes_params(void **state)
{
    assert_int_equal(blk_url_parse("nfs://h/a?version=4&uid=%31;flag&e=&x=a%26b", &u, NULL), 0);
    assert_string_equal(blk_opts_get(u.params, "version"), "4");
    assert_string_equal(blk_opts_get(u.params, "uid"), "1");
    assert_string_equal(blk_opts_get(u.params, "flag"), "");
    assert_string_equal(blk_opts_get(u.params, "e"), "");
    assert_string_equal(blk_opts_get(u.params, "x"), "a&b");
    assert_null(blk_opts_unused(u.params));
    blk_url_free(&u);
}

static void hostile_urls_are_refused(void **state)
{
    static const char *const bad[] = {
        "", "nfs", "nfs:/h/a", "://h/a", "1nfs://h", "n fs://h", "nfs://h/%00", "nfs://h/%",
        "nfs://h/%4", "nfs://h/%zz", "nfs://%00/a", "nfs://h:0/a", "nfs://h:65536/a",
        "nfs://h:999999999999/a", "nfs://h:12x/a", "nfs://:80/a", "nfs://[::1/a", "nfs://[]/a",
        "nfs://[::1]x/a", "nfs://u%00@h/a", "nfs://h/a?x=%00", "nfs://h/a?%00=x", "nfs://h:-1/",
    };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(bad); i++) {
        struct blk_error e = BLK_ERROR_INIT;
        if (blk_url_parse(bad[i], &u, &e) != -EINVAL)
            fail_msg("'%s' passed", bad[i]);
        assert_non_null(strstr(e.text, "is not a valid URL"));
        assert_null(u.scheme);
    }
}

static void overlong_urls_are_refused(void **state)
{
    size_t len = 4 << 20;
    char *s = malloc(len + 1);
    memset(s, 'a', len);
    memcpy(s, "nfs://h/", 8);
    s[len] = 0;
    struct blk_error e = BLK_ERROR_INIT;
    assert_int_equal(blk_url_parse(s, &u, &e), -E2BIG);
    assert_true(strlen(e.text) < 100);
    /* 2000 parameters in a URL of permitted length */
    char *p = s + sprintf(s, "nfs://h/?");
    for (int i = 0; i < 2000; i++)
        p += sprintf(p, "a&");
    blk_error_clear(&e);
    assert_int_equal(blk_url_parse(s, &u, &e), -E2BIG);
    free(s);
}

static void errors_do_not_tell_secrets(void **state)
{
    struct blk_error e = BLK_ERROR_INIT;
    assert_int_equal(blk_url_parse("iscsi://u%topsecret@h:bad/x", &u, &e), -EINVAL);
    assert_null(strstr(e.text, "topsecret"));
    assert_non_null(strstr(e.text, "iscsi://u%***@h:bad/x"));
}

static void redacts(const char *name, const char *want)
{
    char *got = blk_redact(name);
    assert_non_null(got);
    if (strcmp(got, want))
        fail_msg("%s: got %s, want %s", name, got, want);
    free(got);
}

static void secrets_are_hidden(void **state)
{
    redacts("iscsi://user%pw@host/iqn:x@y/1", "iscsi://user%***@host/iqn:x@y/1");
    redacts("http://u:p@ss@h/x?a=1", "http://u:***@h/x?a=1");
    redacts("nbd://h/x?password=a,b&z=1", "nbd://h/x?password=***&z=1");
    redacts("https://h/x?X-Amz-Signature=1f&sig=2&size=3",
            "https://h/x?X-Amz-Signature=***&sig=***&size=3");
    redacts("iscsi://h/t/0?target_password=q;header_digest=crc32c",
            "iscsi://h/t/0?target_password=***;header_digest=crc32c");
    redacts("driver=iscsi,password=a,,b,lun=1", "driver=iscsi,password=***,lun=1");
    redacts("driver=raw,file.filename=http://u:p@h/x?k=v,file.cookie=c",
            "driver=raw,file.filename=http://u:***@h/x?k=v,file.cookie=***");
    redacts("driver=iscsi,initiator.Password=a", "driver=iscsi,initiator.Password=***");
    redacts("json:{\"driver\": \"iscsi\", \"password\": \"a\", \"lun\": 1}",
            "json:{\"driver\": \"iscsi\", \"password\": \"***\", \"lun\": 1}");
    redacts("json:{\"password\": 1234, \"file\":[{\"url\":\"ftp://a:b@c/\"}]}",
            "json:{\"password\": \"***\", \"file\": [{\"url\": \"ftp://a:***@c/\"}]}");
    redacts("json:{\"file\":{\"filename\":\"json:{\\\"password\\\":\\\"x\\\"}\"}}",
            "json:{\"file\": {\"filename\": \"json:{\\\"password\\\": \\\"***\\\"}\"}}");
    redacts("json:{\"password\":\"a\"", "json:***");
}

static void names_without_secrets_stay(void **state)
{
    static const char *const same_names[] = {
        "", "a.img", "/a/b,c=d.img", "nfs://h/a?password-secret=s0", "json:{\"a\":1}",
        "driver=luks,key-secret=x,password-secret=y", "nbd:unix:/run/s:exportname=a",
        "iscsi://h/iqn.2020:a@b/0", "a,,b", "user@host:x", "a,", ",=,",
    };
    for (size_t i = 0; i < BLK_ARRAY_SIZE(same_names); i++)
        redacts(same_names[i], same_names[i]);
}

static void deep_json_is_hidden_whole(void **state)
{
    size_t depth = 100000;
    char *s = malloc(depth + 6);
    memcpy(s, "json:", 5);
    memset(s + 5, '[', depth);
    s[depth + 5] = 0;
    redacts(s, "json:***");
    free(s);
}

static void protocol_is_a_colon_before_any_slash(void **state)
{
    assert_true(blk_has_protocol("nbd:localhost"));
    assert_true(blk_has_protocol("json:{}"));
    assert_true(blk_has_protocol("nfs://h/a"));
    assert_true(blk_has_protocol("a:b"));
    assert_false(blk_has_protocol("a.img"));
    assert_false(blk_has_protocol("./a:b"));
    assert_false(blk_has_protocol("/a:b"));
    assert_false(blk_has_protocol(""));
}

static void resolves(const char *base, const char *name, const char *want)
{
    char *got = blk_resolve_name(base, name);
    if (!want) {
        assert_null(got);
        return;
    }
    assert_non_null(got);
    if (strcmp(got, want))
        fail_msg("%s + %s: got %s, want %s", base, name, got, want);
    free(got);
}

static void names_resolve_against_the_base(void **state)
{
    resolves("a.qcow2", "b.img", "b.img");
    resolves("d/a.qcow2", "b.img", "d/b.img");
    resolves("/x/d/a.qcow2", "../b.img", "/x/d/../b.img");
    resolves("/a.qcow2", "b", "/b");
    resolves("d/a", "/abs", "/abs");
    resolves("d/a", "nfs://h/x", "nfs://h/x");
    resolves("d/a?b/c", "x", "d/a?b/x");
    resolves("file:/d/a", "b", "file:/d/b");
    resolves("file:a", "b", "file:b");
    resolves("nfs://h/e/a.qcow2", "b.img", "nfs://h/e/b.img");
    resolves("nfs://h/e/a.qcow2?x=/y/z", "b.img", "nfs://h/e/b.img");
    resolves("nfs://h", "b", "nfs://h/b");
    resolves("nfs://h?x=/y", "b", "nfs://h/b");
    resolves("nfs://u:p@h:1/a", "b/c", "nfs://u:p@h:1/b/c");
    resolves("json:{\"a\":\"b\"}", "b", NULL);
    resolves("json:{\"a\":\"b\"}", "/b", "/b");
    resolves("", "b", NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(urls_come_apart),
        cmocka_unit_test(query_becomes_params),
        cmocka_unit_test(hostile_urls_are_refused),
        cmocka_unit_test(overlong_urls_are_refused),
        cmocka_unit_test(errors_do_not_tell_secrets),
        cmocka_unit_test(secrets_are_hidden),
        cmocka_unit_test(names_without_secrets_stay),
        cmocka_unit_test(deep_json_is_hidden_whole),
        cmocka_unit_test(protocol_is_a_colon_before_any_slash),
        cmocka_unit_test(names_resolve_against_the_base),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
