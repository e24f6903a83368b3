/*
 * main.c - platter-run: the one place that prints errors and exits.
 */
#include <stdio.h>
#include <string.h>

#include "vmm-shim/hostcheck.h"
#include "vmm-shim/machine.h"

static void print_error(const struct blk_error *e)
{
    if (!e->text[0])
        return;
    fprintf(stderr, "%s: %s\n", blk_program, e->text);
    if (e->hint[0])
        fprintf(stderr, "%s\n", e->hint);
}

static enum run_exit run_guest(const struct run_options *o)
{
    enum run_exit code;

    do {
        struct blk_error e = BLK_ERROR_INIT;

        code = machine_run(o, &e);
        print_error(&e);
    } while (code == RUN_RESET && o->reboot);
    if (code == RUN_RESET)
        fprintf(stderr, "%s: the guest asked for a reset (--reboot starts it again)\n",
                blk_program);
    return code;
}

int main(int argc, char **argv)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct run_options o;
    enum run_exit code = RUN_POWER_OFF;

    blk_program = "platter-run";
    blk_report_names = true;
    if (run_options_parse(&o, argc, argv, &e) < 0) {
        print_error(&e);
        code = RUN_USAGE;
    } else if (o.action == RUN_SHOW_HELP) {
        run_options_help();
    } else if (o.action == RUN_SHOW_VERSION) {
        printf("platter-run %s\n%s\n", PLATTER_VERSION, blk_build_info());
    } else if (o.action == RUN_CHECK_HOST) {
        code = hostcheck_run() ? RUN_POWER_OFF : RUN_NOT_STARTED;
    } else {
        code = run_guest(&o);
    }
    run_options_free(&o);
    return (int)code;
}
