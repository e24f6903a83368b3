/*
 * walls.h - what this process can no longer do, once and for all.
 *
 * Raised in the process itself, before it reads the first byte of an image:
 *  - landlock: no file but the image can be opened, or none be written but it; nothing
 *    can be made, removed or renamed;
 *  - seccomp: no socket, no program, no process, no io_uring, no memory that can be
 *    executed, no signal to others;
 *  - limits: memory, processor time, no core file.
 * A wall that the kernel does not have is left out; walls_standing() tells which stand.
 * A build with AddressSanitizer has none but the limit of time: its tools need the rest.
 */
#ifndef PLATTER_IMG_WALLS_H
#define PLATTER_IMG_WALLS_H

#include <stdbool.h>
#include <stdint.h>

struct walls {
    const char *file;           /* the image's path; may be opened */
    bool writable;              /* for writing, too */
    bool others;                /* other files may be read */
    bool beside;                /* those in the image's directory be written, too */
    uint64_t memory_bytes;      /* of data */
    uint64_t cpu_seconds;
};

enum { WALL_LANDLOCK = 1, WALL_SECCOMP = 2, WALL_MEMORY = 4, WALL_CPU = 8 };

/* For this process and its threads to come; there is only one thread yet.  What hits
 * the limit of time or the list of system calls is ended with a line on stderr that
 * names the file, status 1; w->file stays the caller's, forever. */
void walls_raise(const struct walls *w);
/* From now on no file is opened at all.  Nothing where walls_raise() was not called. */
void walls_shut(void);
/* WALL_*: what the last walls_raise() achieved; 0 before. */
unsigned walls_standing(void);

#endif
