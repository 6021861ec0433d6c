/* SPDX-License-Identifier: MIT */
/* What each target cluster needs, gathered while planning. */
#ifndef RHEA_INPLACE_SURVEY_H
#define RHEA_INPLACE_SURVEY_H

#include <pthread.h>

#include "inplace/plan.h"

/* Clusters of the disk from which on it pays to sweep on another thread: 8 MiB
 * of table entries. */
#define SURVEY_APART_MIN (UINT64_C(1) << 20)

struct survey {
    struct plan *p;
    struct source *src;
    bool apart;
    pthread_t thread;
    int ret;
    struct rhea_error err;
};

/* Fill P's runs, perhaps meanwhile, from P's layout; the caller may set up the
 * rest of P, save where things go. */
void survey_begin(struct survey *s, struct plan *p, struct source *src);
/* Wait for it. RET is what the caller's own work came to; its error goes first.
 * Afterwards runs_complete tells whether the runs are all there. */
int survey_end(struct survey *s, int ret, struct rhea_error *err);

#endif
