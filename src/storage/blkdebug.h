/* SPDX-License-Identifier: MIT */
/*
 * A storage in front of another one that fails, or stops, where it is told to:
 * for tests of formats and programs. What it is told are QEMU's blkdebug
 * options (qapi/block-core.json, BlockdevOptionsBlkdebug).
 *
 * A format tells its storage the points that it passes (rhea_storage_event). At
 * such an event the rules that wait for it take effect: an error is armed, for
 * the requests that follow; the state, a number that rules may ask for, is
 * changed; or the thread stops until it is told to go on.
 */
#ifndef RHEA_STORAGE_BLKDEBUG_H
#define RHEA_STORAGE_BLKDEBUG_H

#include <rhea/storage.h>

/* The blkdebug storage in front of the bytes of S; NULL: there is none. */
struct rhea_storage *blkdebug_find(struct rhea_storage *s);

/* Let whoever comes to EVENT next stop, and call that TAG. -ENOENT: there is no
 * such event. */
int blkdebug_break(struct rhea_storage *s, const char *event, const char *tag);
/* Forget that, and let those go on that have stopped so. -ENOENT: neither
 * is there. */
int blkdebug_remove_break(struct rhea_storage *s, const char *tag);
/* Let one go on that has stopped. -ENOENT: none has. */
int blkdebug_resume(struct rhea_storage *s, const char *tag);
/* Forget all breaks, let everybody go on. */
void blkdebug_resume_all(struct rhea_storage *s);
/* Whether somebody has stopped as TAG. */
bool blkdebug_stopped(struct rhea_storage *s, const char *tag);
/* The tag of one that has stopped since this was asked last, malloc'd; NULL:
 * nobody has. */
char *blkdebug_news(struct rhea_storage *s);

#endif
