/* SPDX-License-Identifier: MIT */
/*
 * The plan of a conversion: computed without a write, and complete: what can
 * be refused has been refused when plan_make returns.
 *
 * All positions and counts are in target clusters unless named otherwise. The
 * file after staging:
 *
 *   [ the source, untouched | L2 tables | rewritten data | L1 table |
 *     reference counts | blank clusters | slack ]
 *   0                       first                                  end   peak
 *
 * The slack is room for tables that step aside while tidying.
 */
#ifndef RHEA_INPLACE_PLAN_H
#define RHEA_INPLACE_PLAN_H

#include "base/bitmap.h"
#include "inplace/source.h"

struct plan {
    struct layout layout;

    /* The disk, in guest clusters. */
    uint64_t kept, zeroes, rewritten, filled, blank;
    uint64_t l2_tables;

    uint64_t first, l2_at, rewritten_at, l1_at, reftable_at, refblocks_at;
    uint64_t blank_at, end;
    uint64_t refblocks, slack;
    uint64_t final; /* clusters in the end */

    /* What the source refers to, in units of `unit` bytes, up to `first`. */
    struct bitmap used;
    uint64_t unit;

    /* What the sweep found, so that it need not be done again; given up
     * where there are too many. */
    struct sweep_run *runs;
    size_t n_runs, max_runs;
    bool runs_complete;

    bool name_moves; /* to layout.name_offset, from the source's place */

    struct rhea_inplace_plan report;
};

/* Safe to finish after failure. */
int plan_make(struct plan *p, struct source *src,
              const struct layout_ops *target,
              const struct rhea_inplace_options *options,
              struct rhea_error *err);
void plan_finish(struct plan *p);

/* Call FN for all of the source's clusters, as `sweep` does. */
int plan_each_run(const struct plan *p, struct source *src, sweep_fn *fn,
                  void *opaque, struct rhea_error *err);

#endif
