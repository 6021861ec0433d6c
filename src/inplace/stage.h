/* SPDX-License-Identifier: MIT */
/*
 * Staging and commit. The order of writes:
 *
 *   reserve   blocks for everything that is written up to the end of tidying;
 *             no byte changes, and a full disk ends it here
 *   stage     rewritten clusters, missing parts of kept clusters, the target's
 *             tables: all in places that the source does not refer to
 *   flush
 *   commit    one write of the first sector
 *   flush
 */
#ifndef RHEA_INPLACE_STAGE_H
#define RHEA_INPLACE_STAGE_H

#include "inplace/plan.h"

/* On failure the file has its old size and contents. */
int stage_reserve(const struct plan *p, struct source *src,
                  const struct rhea_progress *progress, struct rhea_error *err);

/* Write all of the target but its header; ends with a flush. */
int stage_write(const struct plan *p, struct source *src,
                const struct rhea_progress *progress, struct rhea_error *err);

/* Switch formats. After a failure the file may be either. */
int stage_commit(const struct plan *p, struct source *src,
                 struct rhea_error *err);

#endif
