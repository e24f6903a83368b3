/*
 * convert_bitmaps.h - the bitmaps of convert's source.  Each call says itself what is
 * wrong and returns 0 or -errno.  Fiber.
 */
#ifndef IMG_CONVERT_BITMAPS_H
#define IMG_CONVERT_BITMAPS_H

#include "img/convert.h"

/* Can the source's bitmaps be copied?  An inconsistent one only if it may be left out. */
int convert_check_bitmaps(struct convert *c, bool skip_broken);

/* Before anything is copied by a convert that can go on: a bitmap in the target that has
 * a name of the source's is in the way at first; later it is a copy that an earlier run
 * made and does not go by what is copied again. */
int convert_clear_way_for_bitmaps(struct convert *c);

/* Copy them, with granularity and state. */
int convert_copy_bitmaps(struct convert *c);

#endif
