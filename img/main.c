/*
 * main.c - platter-img: global options and dispatch to a subcommand.
 *
 * Nothing is set up here that a command might not need: no loop, no threads, no
 * locale.  What a command printed counts: an exit status of 0 also says that
 * stdout took everything.
 */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "img/img.h"

static const char global_help[] =
    "  platter-img [standard options] COMMAND [--help | command options]\n"
    "\n"
    "Standard options:\n"
    "  -h, --help\n"
    "     print this and exit\n"
    "  -V, --version\n"
    "     print the version and what is compiled in, and exit\n"
    "  -T, --trace TRACE\n"
    "     accepted for scripts written for qemu-img; there are no trace events\n"
    "  --backing-urls LIST\n"
    "     protocols that names inside images may use, as \"nfs,iscsi\", or \"all\";\n"
    "     without it only plain paths are opened\n"
    "\n"
    "Commands:\n"
    "\n";

static void print_version(void)
{
    /* The first line of the build information is the library's version. */
    const char *libraries = strchr(blk_build_info(), '\n');

    printf("platter-img version %s%s\n", PLATTER_VERSION, libraries ? libraries : "");
}

static void print_drivers(bool protocols)
{
    const char *name;
    bool is_protocol, can_create;

    for (size_t i = 0; (name = blk_driver_at(i, &is_protocol, &can_create)); i++) {
        if (is_protocol == protocols) {
            printf(" %s", name);
        }
    }
    putchar('\n');
}

static int print_help(void)
{
    printf("platter-img version %s\nPlatter disk image utility.  Usage:\n\n%s",
           PLATTER_VERSION, global_help);
    for (size_t i = 0; img_commands[i]; i++) {
        printf("  %s - %s\n", img_commands[i]->name, img_commands[i]->summary);
    }
    printf("\nImage formats:");
    print_drivers(false);
    printf("Protocols:");
    print_drivers(true);
    return 0;
}

static const struct img_command *find_command(const char *name)
{
    for (size_t i = 0; img_commands[i]; i++) {
        if (!strcmp(img_commands[i]->name, name)) {
            return img_commands[i];
        }
    }
    return NULL;
}

/* argv[0] is the command's name: getopt's messages want the program's too. */
static int run_command(const char *program, int argc, char **argv)
{
    const struct img_command *c = find_command(argv[0]);
    char *title;
    int status;

    if (!c) {
        return img_usage_error(program, "Command not found: %s", argv[0]);
    }
    if (asprintf(&title, "%s %s", program, c->name) < 0) {
        img_error("%s", strerror(ENOMEM));
        return 1;
    }
    argv[0] = title;
    optind = 0;                 /* glibc: start over, read the short options anew */
    status = c->main(argc, argv);
    free(title);
    return status;
}

static int finish_stdout(int status)
{
    if ((fflush(stdout) || ferror(stdout)) && status == 0) {
        img_error("Could not write to standard output: %s", strerror(errno));
        return 1;
    }
    return status;
}

/* Buffers of a few MiB come and go with every request.  Left alone, malloc() maps each
 * and gives it back (its threshold never passes the size of an aligned one), and the
 * kernel clears every page again. */
static void keep_buffers(void)
{
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        {"trace", required_argument, NULL, 'T'},
        {"backing-urls", required_argument, NULL, 'B'},
        {NULL, 0, NULL, 0},
    };
    const char *slash = strrchr(argv[0], '/');
    int c;

    keep_buffers();
    blk_program = slash ? slash + 1 : argv[0];
    while ((c = getopt_long(argc, argv, "+hVT:", longs, NULL)) != -1) {
        switch (c) {
        case 'h':
            return finish_stdout(print_help());
        case 'V':
            print_version();
            return finish_stdout(0);
        case 'T':
            break;
        case 'B':
            img_backing_urls = optarg;
            break;
        default:
            return img_try_help(argv[0]);
        }
    }
    if (optind >= argc) {
        return img_usage_error(argv[0], "Not enough arguments");
    }
    c = run_command(argv[0], argc - optind, argv + optind);
    blk_objects_free();
    return finish_stdout(c);
}
