/*
 * convert_verify.h - reading a convert's target back.
 */
#ifndef PLATTER_IMG_CONVERT_VERIFY_H
#define PLATTER_IMG_CONVERT_VERIFY_H

#include "img/convert.h"

#define CONVERT_DIGEST_HEX 65u          /* bytes of a digest as text */

/* Before convert_copy(); whole: it copies everything, from the start.  0 or -errno,
 * printed unless it is -ENOMEM. */
int convert_verify_start(struct convert *c, bool whole);
/* After it, with the target opened anew.  0 and the digest of the content, or -errno
 * with the message printed.  Fiber. */
int convert_verify(struct convert *c, struct blk_node *target, char *hex);
void convert_verify_free(struct convert *c);

#endif
