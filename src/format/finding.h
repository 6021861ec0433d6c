/* SPDX-License-Identifier: MIT */
/* What a check tells of: one sentence for each thing it finds. */
#ifndef RHEA_FORMAT_FINDING_H
#define RHEA_FORMAT_FINDING_H

#include <rhea/format.h>

void check_tell(const struct rhea_check *check, bool is_error, const char *fmt,
                ...) RHEA_PRINTF(3, 4);

#endif
