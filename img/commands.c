/*
 * commands.c - the subcommands there are, in the order --help lists them.
 */
#include "img/img.h"

const struct img_command *const img_commands[] = {
    &img_amend,
    &img_bench,
    &img_bitmap,
    &img_check,
    &img_commit,
    &img_compact,
    &img_compare,
    &img_convert,
    &img_create,
    &img_dd,
    &img_digest,
    &img_info,
    &img_inspect,
    &img_map,
    &img_measure,
    &img_rebase,
    &img_resize,
    &img_snapshot,
    NULL,
};
