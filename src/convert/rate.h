/* SPDX-License-Identifier: MIT */
/* Keeping to a number of bytes a second. Used by many threads at once. */
#ifndef RHEA_CONVERT_RATE_H
#define RHEA_CONVERT_RATE_H

#include <rhea/base.h>
#include <stdatomic.h>

struct rate {
    uint64_t limit; /* bytes a second; 0: none */
    double start;   /* in seconds */
    _Atomic uint64_t spent;
};

void rate_init(struct rate *r, uint64_t limit);
/* Wait until BYTES more may be moved. Returns early, at most a tenth of a
 * second late, when *STOP, which may be NULL, says to give up. */
void rate_wait(struct rate *r, uint64_t bytes, bool (*stop)(void *opaque),
               void *opaque);

#endif
