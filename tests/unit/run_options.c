/*
 * run_options.c - platter-run's command line: what it means, and that every
 * mistake is one line that names it.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "vmm-shim/options.h"

static struct run_options o;
static struct blk_error err;

/* Arguments up to NULL. */
static int parse(char *first, ...)
{
    char *argv[80] = { "platter-run", first };
    int argc = first ? 2 : 1;
    va_list ap;

    va_start(ap, first);
    while (first && (argv[argc] = va_arg(ap, char *)) != NULL)
        argc++;
    va_end(ap);
    run_options_free(&o);
    blk_error_clear(&err);
    return run_options_parse(&o, argc, argv, &err);
}

static int teardown(void **state)
{
    run_options_free(&o);
    return 0;
}

static void refused(int ret, const char *text)
{
    assert_int_equal(ret, -EINVAL);
    assert_non_null(strstr(err.text, text));
    assert_null(strchr(err.text, '\n'));
    assert_non_null(strstr(err.hint, "--help"));
}

static void defaults(void **state)
{
    assert_int_equal(parse("--kernel", "vmlinuz", NULL), 0);
    assert_int_equal(o.action, RUN_GUEST);
    assert_string_equal(o.kernel, "vmlinuz");
    assert_null(o.initrd);
    assert_string_equal(o.append, "");
    assert_int_equal(o.memory, 512 << 20);
    assert_int_equal(o.cpus, 1);
    assert_int_equal(o.console, CONSOLE_STDIO);
    assert_int_equal(o.disks, 0);
    assert_false(o.reboot);
}

static void everything(void **state)
{
    assert_int_equal(parse("--kernel=k", "--initrd", "i", "--append", "a b=c,d", "--memory", "2G",
                           "--cpus", "3", "--console", "file:/tmp/x", "--reboot", "--disk", "one",
                           "-d", "two,readonly,serial=S1,cache=none,format=raw,queues=4,id=root,"
                           "queue-size=128,block-size=4096,discard=off,backing-urls=nfs", NULL), 0);
    assert_string_equal(o.append, "a b=c,d");
    assert_int_equal(o.memory, 2ull << 30);
    assert_int_equal(o.cpus, 3);
    assert_int_equal(o.console, CONSOLE_FILE);
    assert_string_equal(o.console_path, "/tmp/x");
    assert_true(o.reboot);
    assert_int_equal(o.disks, 2);
    assert_string_equal(o.disk[0].file, "one");
    assert_int_equal(o.disk[0].flags, BLK_O_RDWR | BLK_O_UNMAP | BLK_O_NO_SHARE | BLK_O_NO_PROBE);
    assert_string_equal(o.disk[1].file, "two");
    assert_true(o.disk[1].read_only);
    assert_int_equal(o.disk[1].flags, BLK_O_DIRECT | BLK_O_NO_SHARE | BLK_O_NO_PROBE);
    assert_string_equal(o.disk[1].serial, "S1");
    assert_string_equal(o.disk[1].format, "raw");
    assert_string_equal(o.disk[1].id, "root");
    assert_string_equal(o.disk[1].backing_urls, "nfs");
    assert_int_equal(o.disk[1].queues, 4);
    assert_int_equal(o.disk[1].queue_size, 128);
    assert_int_equal(o.disk[1].block_size, 4096);
}

static void cache_modes(void **state)
{
    static const struct {
        const char *text;
        unsigned flags;
    } modes[] = {
        { "d,cache=writeback", 0 },
        { "d,cache=none", BLK_O_DIRECT },
        { "d,cache=off", BLK_O_DIRECT },
        { "d,cache=writethrough", BLK_O_WRITETHROUGH },
        { "d,cache=directsync", BLK_O_DIRECT | BLK_O_WRITETHROUGH },
        { "d,cache=unsafe", BLK_O_NO_FLUSH },
    };

    for (size_t i = 0; i < BLK_ARRAY_SIZE(modes); i++) {
        assert_int_equal(parse("-k", "k", "-d", modes[i].text, NULL), 0);
        assert_int_equal(o.disk[0].flags, modes[i].flags | BLK_O_RDWR | BLK_O_UNMAP |
                         BLK_O_NO_SHARE | BLK_O_NO_PROBE);
        assert_int_equal(o.disk[0].writethrough, (modes[i].flags & BLK_O_WRITETHROUGH) != 0);
    }
    refused(parse("-k", "k", "-d", "d,cache=fast", NULL), "cache must be");
}

static void disk_names_with_commas_equals_and_urls(void **state)
{
    assert_int_equal(parse("-k", "k", "-d", "a,,b,serial=x,,y", NULL), 0);
    assert_string_equal(o.disk[0].file, "a,b");
    assert_string_equal(o.disk[0].serial, "x,y");
    assert_int_equal(parse("-k", "k", "-d", "nfs://h/p?version=3&uid=1,readonly", NULL), 0);
    assert_string_equal(o.disk[0].file, "nfs://h/p?version=3&uid=1");
    assert_true(o.disk[0].read_only);
    assert_int_equal(parse("-k", "k", "-d", "./a=b", NULL), 0);
    assert_string_equal(o.disk[0].file, "./a=b");
    assert_int_equal(parse("-k", "k", "-d", "readonly=on,file=f", NULL), 0);
    assert_string_equal(o.disk[0].file, "f");
    assert_int_equal(parse("-k", "k", "-d", "driver=raw,file.driver=mem,file.size=1M", NULL), 0);
    assert_null(o.disk[0].file);
    assert_string_equal(blk_opts_get(o.disk[0].node, "file.driver"), "mem");
}

static void readonly_takes_on_and_off(void **state)
{
    assert_int_equal(parse("-k", "k", "-d", "f,readonly=off", NULL), 0);
    assert_false(o.disk[0].read_only);
    assert_int_equal(parse("-k", "k", "-d", "f,readonly=on", NULL), 0);
    assert_true(o.disk[0].read_only);
    refused(parse("-k", "k", "-d", "f,readonly=maybe", NULL), "readonly");
}

static void bad_disks_are_named(void **state)
{
    refused(parse("-k", "k", "-d", "", NULL), "no file is named");
    refused(parse("-k", "k", "-d", "serial=x", NULL), "no file is named");
    refused(parse("-k", "k", "-d", "f,queues=0", NULL), "queues must be");
    refused(parse("-k", "k", "-d", "f,queues=65", NULL), "queues must be");
    refused(parse("-k", "k", "-d", "f,queues=-1", NULL), "queues must be");
    refused(parse("-k", "k", "-d", "f,queues=99999999999999999999", NULL), "queues must be");
    refused(parse("-k", "k", "-d", "f,queue-size=3", NULL), "power of two");
    refused(parse("-k", "k", "-d", "f,block-size=1000", NULL), "power of two");
    refused(parse("-k", "k", "-d", "f,serial=123456789012345678901", NULL), "longer than 20");
}

static void too_many_disks_are_refused(void **state)
{
    char *argv[2 * RUN_DISKS_MAX + 8] = { "platter-run", "-k", "k" };
    int argc = 3;

    for (unsigned i = 0; i <= RUN_DISKS_MAX; i++) {
        argv[argc++] = "-d";
        argv[argc++] = "f";
    }
    blk_error_clear(&err);
    run_options_free(&o);
    refused(run_options_parse(&o, argc, argv, &err), "more than 31 disks");
}

static void memory_sizes(void **state)
{
    assert_int_equal(parse("-k", "k", "-m", "256", NULL), 0);
    assert_int_equal(o.memory, 256 << 20);
    assert_int_equal(parse("-k", "k", "-m", "4194304K", NULL), 0);
    assert_int_equal(o.memory, 4ull << 30);
    refused(parse("-k", "k", "-m", "", NULL), "--memory");
    refused(parse("-k", "k", "-m", "lots", NULL), "not a size");
    refused(parse("-k", "k", "-m", "-1", NULL), "not a size");
    refused(parse("-k", "k", "-m", "1M", NULL), "must be from");
    refused(parse("-k", "k", "-m", "1E", NULL), "must be from");
    refused(parse("-k", "k", "-m", "18446744073709551615", NULL), "not a size");
    refused(parse("-k", "k", "-m", "4194305b", NULL), "multiple of 4096");
}

static void cpu_counts(void **state)
{
    refused(parse("-k", "k", "-c", "0", NULL), "--cpus must be");
    refused(parse("-k", "k", "-c", "255", NULL), "--cpus must be");
    refused(parse("-k", "k", "-c", "2x", NULL), "--cpus must be");
    refused(parse("-k", "k", "-c", " 2", NULL), "--cpus must be");
    assert_int_equal(parse("-k", "k", "-c", "254", NULL), 0);
}

static void mistakes_are_named(void **state)
{
    refused(parse(NULL), "no kernel");
    refused(parse("-k", "k", "stray", NULL), "unexpected argument 'stray'");
    refused(parse("-k", "k", "--bogus", NULL), "--bogus");
    refused(parse("-k", "k", "-Z", NULL), "'-Z'");
    refused(parse("-k", "k", "--memory", NULL), "needs a value");
    refused(parse("-k", "k", "--console", "tty", NULL), "--console must be");
    refused(parse("-k", "k", "--console", "file:", NULL), "--console must be");
}

static void actions_need_no_kernel(void **state)
{
    assert_int_equal(parse("--help", NULL), 0);
    assert_int_equal(o.action, RUN_SHOW_HELP);
    assert_int_equal(parse("--version", NULL), 0);
    assert_int_equal(o.action, RUN_SHOW_VERSION);
    assert_int_equal(parse("--check-host", NULL), 0);
    assert_int_equal(o.action, RUN_CHECK_HOST);
}

#define CASE(f) cmocka_unit_test_teardown(f, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(defaults),
        CASE(everything),
        CASE(cache_modes),
        CASE(disk_names_with_commas_equals_and_urls),
        CASE(readonly_takes_on_and_off),
        CASE(bad_disks_are_named),
        CASE(too_many_disks_are_refused),
        CASE(memory_sizes),
        CASE(cpu_counts),
        CASE(mistakes_are_named),
        CASE(actions_need_no_kernel),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
