/* SPDX-License-Identifier: MIT */
/* A check of a VDI image under way. */
#ifndef RHEA_FORMAT_VDI_CHECK_H
#define RHEA_FORMAT_VDI_CHECK_H

#include "format/vdi.h"

struct vdi_checker {
    struct vdi *v;
    struct rhea_check *out;
    struct bitmap used; /* blocks of the file that an entry leads to */
    uint64_t last;      /* the block before, for fragments */
    /* Entries that lead to nothing, to what an earlier one leads to, and to a
     * block that has too high a number. */
    uint64_t n_lost, n_shared, n_high;
    bool bad_count; /* in the header */

    /* Of a repair: entries that go on to share a block; no block below the
     * number is free. */
    uint64_t n_shared_left, next_free;
};

/* --- vdi_repair.c; with the lock held --- */

int vdi_repair_errors(struct vdi_checker *c, struct rhea_error *err);
/* Of an image without errors. */
int vdi_repair_leaks(struct vdi_checker *c, struct rhea_error *err);

#endif
