/* SPDX-License-Identifier: MIT */
/*
 * Judges a state of an image: QEMU's own tools say whether it is sound and
 * holds the same guest bytes as before.
 *
 * Where QEMU cannot open the source image (QED with tables of one cluster, or
 * of more than 64 bits of capacity), our own reader takes its place for states
 * of the source's format, and QEMU judges what comes of them.
 */
#ifndef RHEA_CRASH_JUDGE_H
#define RHEA_CRASH_JUDGE_H

#include <rhea/storage.h>

struct judge {
    const char *folder;               /* of the image and its backing files */
    char path[4096];                  /* the state, as a file */
    char output[4096];                /* what a program printed */
    const char *guest, *guest_format; /* a file with the right bytes */
    const char *source;               /* the source's format */
    bool qemu_opens_source;
    /* What a check finds in the source itself: one that was not closed
     * cleanly has wrong reference counts. */
    uint64_t source_corruptions;
    uint64_t n_judged;
    char why[5120]; /* of the last state that did not pass */
};

/* JUDGE's members up to qemu_opens_source are set. NAME, unique in the
 * folder, is for the file with the state. */
void judge_init(struct judge *j, const char *name);
void judge_finish(struct judge *j);

/* The source as it is before anything is done to it; learns what is wrong with
 * it. */
bool judge_source(struct judge *j, struct rhea_storage *source);

/* A state after a crash: of one format or the other, no corruption, the same
 * guest bytes; leaks are allowed. */
bool judge_state(struct judge *j, struct rhea_storage *state);

/* The finished image: of TARGET's format, and not a cluster leaks. */
bool judge_finished(struct judge *j, struct rhea_storage *state,
                    const char *target);

#endif
