/*
 * snapshot.c - platter-img snapshot: list, create, apply and delete an image's
 * internal snapshots.
 */
#include <errno.h>
#include <string.h>
#include "img/img.h"

struct snapshot {
    struct img_image image;
    int action;                 /* 'l', 'c', 'a', 'd'; 0: none was given */
    const char *name;
    bool json;
};

static int list(struct blk_node *n, bool json)
{
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_info info;
    int err = blk_get_info(n, &info, &e);

    if (err) {
        img_report(&e);
    } else if (json) {
        err = img_json_result(info.snapshots ? json_incref(info.snapshots) : json_array());
    } else if (info.snapshots && json_array_size(info.snapshots)) {
        img_print_snapshots(info.snapshots, 0);
    }
    blk_info_free(&info);
    return err;
}

static int change(const struct snapshot *s, struct blk_node *n)
{
    struct blk_error e = BLK_ERROR_INIT;
    int err;

    switch (s->action) {
    case 'c':
        err = blk_snapshot(n, BLK_SNAPSHOT_CREATE, s->name, &e);
        if (err) {
            img_error("Could not create snapshot '%s': %s", s->name,
                      strerror(err == -ENOTSUP ? EOPNOTSUPP : -err));
        }
        return err;
    case 'a':
        err = blk_snapshot(n, BLK_SNAPSHOT_APPLY, s->name, &e);
        if (err) {
            img_report_prefixed(&e, "Could not apply snapshot '%s': ", s->name);
        }
        return err;
    default:
        err = blk_snapshot(n, BLK_SNAPSHOT_DELETE, s->name, &e);
        if (err == -ENOENT || err == -ENOTSUP) {
            img_error("Could not delete snapshot '%s': snapshot not found", s->name);
        } else if (err) {
            img_report_prefixed(&e, "Could not delete snapshot '%s': ", s->name);
        }
        return err;
    }
}

static int print_change(const struct snapshot *s)
{
    const char *did = s->action == 'c' ? "create" : s->action == 'a' ? "apply" : "delete";

    return img_json_result(json_pack("{s:o, s:s, s:o}", "filename",
                                     img_json_string(s->image.filename), "action", did,
                                     "snapshot", img_json_string(s->name)));
}

static int snapshot_run(void *arg)
{
    const struct snapshot *s = arg;
    struct blk_node *n = img_open(&s->image);
    int err, close_err;

    if (!n) {
        return 1;
    }
    err = s->action && s->action != 'l' ? change(s, n) : list(n, s->json);
    close_err = img_close(n);
    if (err || close_err) {
        return 1;
    }
    return s->json && s->action && s->action != 'l' ? print_change(s) : 0;
}

/* -1: go on; otherwise the exit status. */
static int parse_options(struct snapshot *s, int argc, char **argv)
{
    static const struct option longs[] = {
        {"help", no_argument, NULL, 'h'},
        {"quiet", no_argument, NULL, 'q'},
        {"object", required_argument, NULL, IMG_OPT_OBJECT},
        {"format", required_argument, NULL, 'f'},
        {"image-opts", no_argument, NULL, IMG_OPT_IMAGE_OPTS},
        {"force-share", no_argument, NULL, 'U'},
        {"output", required_argument, NULL, IMG_OPT_OUTPUT},
        {"list", no_argument, NULL, 'l'},
        {"create", required_argument, NULL, 'c'},
        {"apply", required_argument, NULL, 'a'},
        {"delete", required_argument, NULL, 'd'},
        {NULL, 0, NULL, 0},
    };
    int ch, status = -1;

    while (status < 0 && (ch = getopt_long(argc, argv, "hf:la:c:d:qU", longs, NULL)) != -1) {
        switch (ch) {
        case 'l': case 'a': case 'c': case 'd':
            if (s->action) {
                return img_usage_error(argv[0], "Cannot mix '-l', '-a', '-c', '-d'");
            }
            s->action = ch;
            s->name = optarg;
            break;
        default:
            status = img_common_option(&img_snapshot, ch, argv[0], &s->image, &s->json);
            break;
        }
    }
    return status;
}

static int snapshot_main(int argc, char **argv)
{
    struct snapshot s = { 0 };
    int status = parse_options(&s, argc, argv);

    if (status >= 0) {
        return status;
    }
    if (optind != argc - 1) {
        return img_usage_error(argv[0], "Expecting one image file name");
    }
    s.image.filename = argv[optind];
    if (s.action && s.action != 'l') {
        s.image.flags |= BLK_O_RDWR | BLK_O_UNMAP;
    }
    return img_run(snapshot_run, &s);
}

const struct img_command img_snapshot = {
    .name = "snapshot",
    .summary = "List or manipulate snapshots within image",
    .synopsis = "[-f FMT | --image-opts] [-l | -a|-c|-d SNAPSHOT] [-U] [-q]\n"
                "        [--output human|json] FILENAME",
    .arguments =
        "  -q, --quiet\n     accepted\n"
        "  -f, --format FMT\n     format of the image (default: found out)\n"
        "  --image-opts\n     FILENAME is a list of options, KEY=VALUE,...\n"
        "  -U, --force-share\n     take no locks (only with -l)\n"
        "  -l, --list\n     list the snapshots (the default)\n"
        "  -c, --create SNAPSHOT\n     keep the disk's present content under this name\n"
        "  -a, --apply SNAPSHOT\n     give the disk the content it had; id or name\n"
        "  -d, --delete SNAPSHOT\n     forget the snapshot of this name\n"
        "  --output human|json\n     how to print the result\n"
        "  --object OBJDEF\n     an object such as a secret\n",
    .main = snapshot_main,
};
