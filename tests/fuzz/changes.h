/* SPDX-License-Identifier: MIT */
/* Changes of a whole image, as the targets for one format make them. */
#ifndef RHEA_FUZZ_CHANGES_H
#define RHEA_FUZZ_CHANGES_H

#include "fuzz.h"
#include "guest.h"

/*
 * Open S, which is written to, and snapshot, resize and amend it, change its
 * bitmaps and so on, a few times each. G (NULL: nothing is known, for S is not
 * sound) is what its guest sees, and is kept. What can be said of snapshots is
 * checked, too. False where S does not open.
 */
bool changes_run(const struct rhea_format_ops *format, struct rhea_storage *s,
                 struct guest *g, uint64_t seed);

#endif
