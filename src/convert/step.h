/* SPDX-License-Identifier: MIT */
/*
 * Cutting the source into steps: each is done by one worker in one go. Where
 * bytes are read it is a window (window.h); what needs no reading is one step
 * however long it is, so that an empty terabyte costs a look into the tables
 * only.
 *
 * Not for many threads at once.
 */
#ifndef RHEA_CONVERT_STEP_H
#define RHEA_CONVERT_STEP_H

#include <rhea/convert.h>

#include "convert/source.h"

struct step {
    enum {
        STEP_WINDOW,
        STEP_ZERO,    /* reads as zeroes, all of it */
        STEP_BACKING, /* the target's backing image holds the same */
        STEP_CLONE,   /* the target can share it with STORAGE, from HOST on */
    } kind;
    uint64_t offset, length;
    uint64_t ticket; /* the caller's */
    struct rhea_storage *storage;
    uint64_t host;
};

struct steps {
    struct convert_source *source;
    struct rhea_image *target;
    const struct rhea_convert_options *options;
    /* Every step begins at a multiple of it. That of the target (window.h),
     * but where blocks are shared also a multiple of CLONE_BLOCK. */
    unsigned unit;
    bool clone;                 /* blocks may be shared */
    struct rhea_storage *asked; /* the last storage that data was found in: */
    bool can;                   /* whether its blocks can be */
};

/* UNIT: of the windows. */
void steps_init(struct steps *s, struct convert_source *source,
                struct rhea_image *target, unsigned unit,
                const struct rhea_convert_options *options);

/* The step at OFFSET, which lies inside the source and is where the one before
 * ended. */
int steps_find(struct steps *s, uint64_t offset, struct step *step,
               struct rhea_error *err);

#endif
