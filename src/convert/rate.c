/* SPDX-License-Identifier: MIT */
#include <time.h>

#include "base/checked.h"
#include "convert/rate.h"

#define RATE_NAP 0.1 /* seconds between two looks whether to give up */

static double rate_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void rate_init(struct rate *r, uint64_t limit)
{
    r->limit = limit;
    r->start = rate_now();
    atomic_store(&r->spent, 0);
}

void rate_wait(struct rate *r, uint64_t bytes, bool (*stop)(void *opaque),
               void *opaque)
{
    double due, left;

    if (!r->limit)
        return;
    /* What was moved before has had its time when these bytes may go. */
    due = r->start +
          (double)atomic_fetch_add(&r->spent, bytes) / (double)r->limit;
    while ((left = due - rate_now()) > 0 && !(stop && stop(opaque))) {
        struct timespec nap = {0};

        left = RHEA_MIN(left, RATE_NAP);
        nap.tv_nsec = (long)(left * 1e9);
        nanosleep(&nap, NULL);
    }
}
