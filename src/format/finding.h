/* SPDX-License-Identifier: MIT */
/* What a check tells of: one sentence for each thing it finds. */
#ifndef RHEA_FORMAT_FINDING_H
#define RHEA_FORMAT_FINDING_H

#include <rhea/format.h>

void check_tell(const struct rhea_check *check, bool is_error, const char *fmt,
                ...) RHEA_PRINTF(3, 4);

/* Add what was found in a part of an image, all but the number of clusters that
 * the disk has, which the parts may share. */
void check_add(struct rhea_check *sum, const struct rhea_check *part);

#endif
