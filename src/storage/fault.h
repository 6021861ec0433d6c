/* SPDX-License-Identifier: MIT */
/*
 * A storage that passes calls through to another one and makes some fail, the
 * way disks do. To try a fault at each I/O in turn: run once with an empty
 * plan, ask fault_calls how many there were, then run with AT = 1, 2, ...
 */
#ifndef RHEA_STORAGE_FAULT_H
#define RHEA_STORAGE_FAULT_H

#include <rhea/storage.h>

enum {
    FAULT_READ = 1 << 0,
    FAULT_WRITE = 1 << 1,
    FAULT_FLUSH = 1 << 2,
    FAULT_TRUNCATE = 1 << 3,
    FAULT_ZERO = 1 << 4,
    FAULT_ALLOCATE = 1 << 5,
    FAULT_ANY = 0x3f,
};

/* What goes wrong; all zeroes: nothing. */
struct fault_plan {
    /* The call number AT (from 1) among those of CLASSES fails with the errno
     * CODE, and so do all of CLASSES after it if FOREVER. AT 0: none does. */
    unsigned classes;
    uint64_t at;
    int code;
    bool forever;
    /* A write or zero that fails has been carried out for its first half
     * (whole sectors). */
    bool half_done;

    /* From read number SHRINK_AT on (0: never), the storage ends at
     * SHRINK_TO for reads, and for who asks for its size. */
    uint64_t shrink_at, shrink_to;

    /* Every read of more than one byte returns only half of what was asked
     * for: callers have to go on. */
    bool short_reads;

    /* With LIMIT_GROWTH the storage, as large as it is at open, can grow by
     * BUDGET bytes; what goes beyond fails with ENOSPC and does nothing. */
    bool limit_growth;
    uint64_t budget;
};

/* INNER is owned by the new storage, not on failure. */
int fault_open(struct rhea_storage **out, struct rhea_storage *inner,
               const struct fault_plan *plan, struct rhea_error *err);

/* How many calls of CLASSES there were so far, failed ones included; S is a
 * fault storage. */
uint64_t fault_calls(const struct rhea_storage *s, unsigned classes);
/* How many calls were made to fail. */
uint64_t fault_hits(const struct rhea_storage *s);

#endif
