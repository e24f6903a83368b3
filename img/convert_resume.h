/*
 * convert_resume.h - the journal of convert --resume.
 *
 * The journal is a small file of JSON beside the target: what is copied from where to
 * where (names, sizes, inodes and times of all files that are read, the options, the
 * target's inode), and how much of it is done and durable.  It is replaced as a whole
 * (written beside, synced, renamed), so it is always one state or the next.  What lies
 * behind that point in the target is either what the source has there or what was
 * there before: copying it again gives the same image.
 */
#ifndef PLATTER_IMG_CONVERT_RESUME_H
#define PLATTER_IMG_CONVERT_RESUME_H

#include <jansson.h>
#include "img/convert.h"

struct journal;

/* path NULL: beside target, which then has to be a local file.  identity (taken over):
 * everything that has to be the same for going on.  A journal that is there must match:
 * -ESTALE.  NULL: the message is in e. */
struct journal *journal_open(const char *path, const char *target, json_t *identity,
                             struct blk_error *e);
/* Is this a convert that goes on? */
bool journal_resumes(const struct journal *j);
/* Where it goes on; 0 for a new one. */
uint64_t journal_at(const struct journal *j);
/* The target is open: what it is goes into a new journal and has to match an old one.
 * Durable when it returns.  Fiber. */
int journal_start(struct journal *j, struct blk_node *target, struct blk_error *e);
/* Everything before at is durable in the target.  Fiber. */
int journal_save(struct journal *j, uint64_t at);
/* The convert is complete: nothing is left of the journal. */
int journal_remove(struct journal *j, struct blk_error *e);
void journal_free(struct journal *j);       /* NULL is fine */

/* A source and its backing files, as they are now. */
json_t *journal_describe(struct blk_node *n);

#endif
