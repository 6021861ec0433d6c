/* SPDX-License-Identifier: MIT */
#ifndef RHEA_STORAGE_BLKDEBUG_INTERNAL_H
#define RHEA_STORAGE_BLKDEBUG_INTERNAL_H

#include <pthread.h>

#include "storage/blkdebug.h"
#include "storage/blkdebug_rules.h"
#include "storage/internal.h"

/* A thread that has stopped at an event. */
struct blkdebug_stop {
    char *tag;
    bool go, told;
    struct blkdebug_stop *next;
};

/* A write under way. */
struct blkdebug_flight {
    uint64_t start, end; /* all that it touches, whole blocks */
    bool alone;          /* nobody else may write there meanwhile */
    struct blkdebug_flight *next;
};

struct blkdebug {
    struct storage_wrapper w;
    /* Constant. 0: no limit. */
    uint64_t align, max_transfer, opt_write_zero, max_write_zero, opt_discard,
        max_discard;
    unsigned take, unshare; /* RHEA_LOCK_* */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct blkdebug_rules rules;
    uint64_t state;
    struct blkdebug_stop *stops;
    struct blkdebug_flight *flights;
};

void blkdebug_event(struct rhea_storage *s, const char *name);
/* Whether a request is to fail; a negative errno then. */
int blkdebug_check(struct blkdebug *b, unsigned io, uint64_t offset,
                   uint64_t len, struct rhea_error *err);

/* blkdebug_write.c: writes in whole blocks. */
int blkdebug_pwrite(struct rhea_storage *s, const void *buf, size_t len,
                    uint64_t offset, struct rhea_error *err);
int blkdebug_zero(struct rhea_storage *s, uint64_t offset, uint64_t len,
                  bool punch, struct rhea_error *err);
int blkdebug_discard(struct rhea_storage *s, uint64_t offset, uint64_t len,
                     struct rhea_error *err);

#endif
