/* SPDX-License-Identifier: MIT */
/* What check.c and check_grains.c share. */
#ifndef RHEA_FORMAT_VMDK_CHECK_H
#define RHEA_FORMAT_VMDK_CHECK_H

#include "base/bitmap.h"
#include "format/copy.h"
#include "format/finding.h"
#include "format/vmdk/sparse.h"

struct vmdk_checker {
    struct vmdk_extent *x;
    struct rhea_check *out;
    bool fix, differ;     /* copies of an extent that was not closed */
    uint64_t unit;        /* bytes of the file that a bit of USED stands for */
    struct bitmap used;   /* not of streams, whose grains say whose they are */
    struct bitmap places; /* sectors of tables, directories, descriptor */
    uint64_t front;       /* before this there are no grains */
    uint64_t lowest;      /* the grain that is first in the file */
    bool shared_tables;   /* some have more than one entry */
    struct copy_budget budget; /* to repair grains that are used twice */
    bool copied;               /* one, since the last flush */
    uint64_t last;             /* end of the grain before; 0: none */
    uint64_t end;              /* of all that is used */
    uint8_t *tables[2]; /* one grain table in both copies, as in the file */
};

/* A corruption, which is mended where repairing is asked for. */
RHEA_PRINTF(2, 3)
void check_mendable(struct vmdk_checker *c, const char *fmt, ...);
/* The same of copies that do not agree. That is no corruption where the extent
 * was not closed: a crash may leave it so. */
RHEA_PRINTF(2, 3)
void check_differ(struct vmdk_checker *c, const char *fmt, ...);

/* Mark what metadata takes. */
void check_use(struct vmdk_checker *c, uint64_t offset, uint64_t len);
/* Grain tables INDEX, at AT; 0: that copy is not there. The first is. */
int check_table(struct vmdk_checker *c, uint64_t index, const uint64_t at[2],
                struct rhea_error *err);
/* All of an extent; C has x, out and fix. Until check_finish, USED says what is
 * in use. With the lock. */
int vmdk_check_pass(struct vmdk_checker *c, struct rhea_error *err);
void vmdk_check_finish(struct vmdk_checker *c);
/* What nobody refers to, in grains; cut off where it ends the file, and FIX
 * says so. */
int vmdk_check_leaks(struct vmdk_checker *c, unsigned fix,
                     struct rhea_error *err);

#endif
