/* SPDX-License-Identifier: MIT */
/* Shared by check.c, check_refs.c and repair.c. */
#ifndef RHEA_FORMAT_QCOW2_CHECK_H
#define RHEA_FORMAT_QCOW2_CHECK_H

#include "format/finding.h"
#include "format/qcow2/qcow2.h"

/* References found, one number a host cluster, in the packing of refcount
 * blocks but at most 16 bits wide: more references than that do not occur. */
struct qcow2_tally {
    unsigned order;
    uint64_t max;  /* a number does not go beyond it */
    uint64_t n;    /* clusters looked at: those of the file */
    uint64_t room; /* clusters there is memory for */
    uint8_t *counts;
};

struct qcow2_checker {
    struct qcow2 *q;
    struct rhea_check *result;
    unsigned fix;
    uint64_t file_size;
    bool rebuild;     /* the refcount structure itself is broken */
    uint64_t highest; /* last cluster with a reference or a refcount */
    uint8_t *l2;      /* room for one table: an image may have 65,536 snapshots,
                         and memory takes time */
    struct qcow2_tally tally;
    struct bitmap core; /* where tables are that no repair writes over as if
                           they were L2 tables */
    struct bitmap seen; /* L2 tables that the L1 table at hand led to so far */
    uint32_t table_faults; /* of the snapshot table, for the end */
    unsigned repeats;      /* how often it led to one again */
    unsigned overflows;    /* references that the tally could not count */
    struct rhea_error *err;
};

/* L2 tables gone through again for one L1 table; more are not looked at, or a
 * small file could keep a check busy for days. */
#define QCOW2_REPEATS_MAX 1024
#define QCOW2_OVERFLOWS_TOLD 16

static inline uint64_t qcow2_tally_get(const struct qcow2_tally *t, uint64_t i)
{
    return qcow2_refcount_load(t->order, t->counts, i);
}

/* Memory for N clusters at least, new ones with no reference. */
int qcow2_tally_reserve(struct qcow2_tally *t, uint64_t n,
                        struct rhea_error *err);

/* Tell of it, and count a corruption. */
#define qcow2_check_corruption(c, ...)                                         \
    ((c)->result->corruptions++, check_tell((c)->result, true, __VA_ARGS__))

/* check.c: free what C holds. */
void qcow2_check_finish(struct qcow2_checker *c);
/* Forget what was seen, for another L1 table. */
int qcow2_check_unsee(struct qcow2_checker *c);
/* Whether the L2 table at HOST has been seen too often; it is now seen. */
bool qcow2_check_seen(struct qcow2_checker *c, uint64_t host);
/* Refuse to repair an entry of an L2 table at HOST, where something else is. */
int qcow2_check_guard(struct qcow2_checker *c, uint64_t host);
/* Go through everything and count it, from nothing. */
int qcow2_check_tally(struct qcow2_checker *c);

/* check_refs.c */
/* Compare what was found with the refcounts; with FIX, correct them (in
 * memory; refs_write makes it durable). */
int qcow2_check_compare(struct qcow2_checker *c, unsigned fix);
/* Compare the COPIED flags with the refcounts. */
int qcow2_check_copied(struct qcow2_checker *c);

/* repair.c: make a new refcount structure from the tally, at places that
 * nothing refers to, and switch to it. */
int qcow2_refs_rebuild(struct qcow2_checker *c);

#endif
