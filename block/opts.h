/*
 * opts.h - what the opts*.c files share.
 */
#ifndef PLATTER_OPTS_H
#define PLATTER_OPTS_H

#include "block/block.h"

#define OPTS_MAX        4096    /* options out of one text */
#define OPTS_KEY_MAX    1023    /* bytes of a flattened key */
#define OPTS_DEPTH_MAX  64      /* nested JSON objects and arrays */

/* JSON text, "json:" in front or not, within the limits; NULL with e set. */
json_t *opts_json_load(const char *json, struct blk_error *e);

/* A number, "on" or "off" that was no string in JSON. */
void opts_set_literal(struct blk_opts *o, const char *key, const char *value);

#endif
