/*
 * sandbox.h - which walls (walls.h) a command's work on an image is done behind.
 */
#ifndef PLATTER_IMG_SANDBOX_H
#define PLATTER_IMG_SANDBOX_H

#include "img/img.h"

struct sandbox {
    bool off;                   /* --no-sandbox */
    bool writable;              /* the image is changed */
    bool chain;                 /* backing files are opened */
    bool alone;                 /* no other file is, whatever the image says */
    unsigned cpu_seconds;       /* at least; large files may take longer */
};

/* What a command says of it in its --help. */
#define SANDBOX_HELP \
    "  --no-sandbox\n     do not give up rights before the image is read\n"
enum { IMG_OPT_NO_SANDBOX = IMG_OPT_FIRST_FREE + 64 };

/* As img_run(), behind walls around this process where im is local files.  Network
 * storage needs what they take away, and so does what --backing-urls may lead to. */
int sandbox_run(const struct sandbox *s, const struct img_image *im, int (*fn)(void *arg),
                void *arg);
/* All is open that is needed: from now on nothing is opened any more. */
void sandbox_shut(void);

#endif
