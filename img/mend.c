/*
 * mend.c - what comes before work inside an image: it has to be sound, and what it
 * counts but does not use is given back.
 */
#include <errno.h>

#include "img/img.h"

int img_mend(const struct img_image *im, uint64_t *leaks)
{
    struct img_image how = *im;
    struct blk_error e = BLK_ERROR_INIT;
    struct blk_check r = { 0 };
    struct blk_node *n;
    int err;

    *leaks = 0;
    how.quiet = true;
    how.flags |= BLK_O_RDWR | BLK_O_CHECK | BLK_O_NO_BACKING;
    n = img_open(&how);
    if (!n) {
        return -EIO;
    }
    err = blk_check(n, &r, 0, &e);
    if (!err && (r.corruptions || r.check_errors)) {
        err = blk_err(&e, EIO, "%s: the image is damaged; 'check -r all' may repair it",
                      blk_filename(n));
    } else if (!err && r.leaks) {
        r = (struct blk_check){ 0 };
        err = blk_check(n, &r, BLK_FIX_LEAKS, &e);
        *leaks = r.leaks_fixed;
    }
    if (err == -ENOTSUP) {
        err = 0;
    } else if (err) {
        img_report(&e);
    }
    return img_close(n) ? -EIO : err;
}
