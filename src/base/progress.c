/* SPDX-License-Identifier: MIT */
#include <rhea/base.h>

#include "config.h"

void rhea_progress_report(const struct rhea_progress *progress,
                          const char *phase, uint64_t done, uint64_t total)
{
    if (progress && progress->report)
        progress->report(progress->opaque, phase, done, total);
}

bool rhea_progress_cancelled(const struct rhea_progress *progress)
{
    return progress && progress->cancelled &&
           progress->cancelled(progress->opaque);
}

const char *rhea_version(void)
{
    return RHEA_VERSION;
}
