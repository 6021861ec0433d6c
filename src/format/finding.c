/* SPDX-License-Identifier: MIT */
#include "format/finding.h"

#include <stdarg.h>
#include <stdio.h>

void check_tell(const struct rhea_check *check, bool is_error, const char *fmt,
                ...)
{
    char text[256];
    va_list args;
    if (!check->finding)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    check->finding(check->opaque, is_error, text);
}

void check_add(struct rhea_check *sum, const struct rhea_check *part)
{
    sum->corruptions += part->corruptions;
    sum->corruptions_fixed += part->corruptions_fixed;
    sum->leaks += part->leaks;
    sum->leaks_fixed += part->leaks_fixed;
    sum->errors += part->errors;
    sum->lost += part->lost;
    sum->allocated_clusters += part->allocated_clusters;
    sum->fragmented_clusters += part->fragmented_clusters;
    sum->compressed_clusters += part->compressed_clusters;
}
