/* SPDX-License-Identifier: MIT */
/* What a blkdebug storage is told to do; see blkdebug.h. */
#ifndef RHEA_STORAGE_BLKDEBUG_RULES_H
#define RHEA_STORAGE_BLKDEBUG_RULES_H

#include "storage/driver.h"

enum blkdebug_io {
    BLKDEBUG_READ = 1 << 0,
    BLKDEBUG_WRITE = 1 << 1,
    BLKDEBUG_WRITE_ZEROES = 1 << 2,
    BLKDEBUG_DISCARD = 1 << 3,
    BLKDEBUG_FLUSH = 1 << 4,
    BLKDEBUG_BLOCK_STATUS = 1 << 5,
};

struct blkdebug_rule {
    const char *event; /* constant */
    uint64_t state;    /* only in this one; 0: in any */
    enum { BLKDEBUG_INJECT, BLKDEBUG_SET_STATE, BLKDEBUG_BREAK } action;
    uint64_t new_state; /* SET_STATE */
    char *tag;          /* BREAK; owned */
    /* INJECT */
    int error;        /* positive errno; 0: none */
    unsigned io;      /* BLKDEBUG_*: the requests that fail */
    uint64_t offset;  /* and have this byte; UINT64_MAX: any */
    bool once, armed; /* armed: its event has come */
};

struct blkdebug_rules {
    struct blkdebug_rule *items;
    size_t n;
};

/* The constant with that name; NULL: there is no such event. */
const char *blkdebug_event_find(const char *name);
/* Takes over what RULE owns, also on failure. */
int blkdebug_rules_add(struct blkdebug_rules *rules,
                       const struct blkdebug_rule *rule,
                       struct rhea_error *err);
void blkdebug_rules_remove(struct blkdebug_rules *rules, size_t index);
void blkdebug_rules_finish(struct blkdebug_rules *rules);
/* From a file in the form that git's configuration has. */
int blkdebug_rules_read(struct blkdebug_rules *rules, const char *filename,
                        struct rhea_error *err);
/* From options inject-error.N.* and set-state.N.* */
int blkdebug_rules_take(struct blkdebug_rules *rules,
                        const struct storage_options *options,
                        struct rhea_error *err);

#endif
